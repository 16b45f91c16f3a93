//! Tables of the standards: each rule broken once, and kept.

use serde_json::{Value, json};

use super::*;
use policy::Version;

const LATEST: Version = Version::Latest;

fn object(value: Value) -> Object {
    Object::from_value(value).expect("an object")
}

/// A pod that restricted lets in.
fn good() -> Value {
    json!({"metadata": {"name": "p"}, "spec": {
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "a", "image": "i", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}})
}

/// The good pod with one thing changed.
fn with(at: &str, value: Value) -> Value {
    let mut pod = good();
    let (above, last) = at.rsplit_once('/').expect("a path");
    let mut place = &mut pod;
    for step in above.split('/').skip(1) {
        place = match step.parse::<usize>() {
            Ok(index) => &mut place[index],
            Err(_) => &mut place[step],
        };
    }
    place[last] = value;
    pod
}

fn judged(level: Level, version: Version, pod: &Value) -> Option<String> {
    let pod = object(pod.clone());
    let judged = Judged::pod(&pod).expect("it has a spec");
    against(Standard { level, version }, &judged).map(|(_, details)| details)
}

const CONTAINER: &str = "/spec/containers/0/securityContext";

#[test]
fn the_good_pod_violates_nothing_and_a_plain_one_only_what_restricted_asks() {
    for level in [Level::Privileged, Level::Baseline, Level::Restricted] {
        assert_eq!(judged(level, LATEST, &good()), None);
    }
    let plain = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
    assert_eq!(judged(Level::Baseline, LATEST, &plain), None);
    assert_eq!(
        judged(Level::Restricted, LATEST, &plain).as_deref(),
        Some(
            "allowPrivilegeEscalation != false (containers \"a\", \"b\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (containers \"a\", \"b\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or containers \"a\", \"b\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or containers \"a\", \"b\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        )
    );
}

#[test]
fn what_baseline_forbids_restricted_forbids_too_in_kubernetes_words() {
    let volume = |source: &str| json!([{"name": "v", source: {}}]);
    let table = [
        ("/spec/hostNetwork".to_owned(), json!(true), "host namespaces (hostNetwork=true)"),
        ("/spec/hostPID".to_owned(), json!(true), "host namespaces (hostPID=true)"),
        (
            format!("{CONTAINER}/privileged"),
            json!(true),
            "privileged (container \"a\" must not set securityContext.privileged=true)",
        ),
        (
            format!("{CONTAINER}/procMount"),
            json!("Unmasked"),
            "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            "/spec/containers/0/ports".to_owned(),
            json!([{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 81}, {"containerPort": 1, "hostPort": 0}]),
            "hostPort (container \"a\" uses hostPorts 80, 81)",
        ),
        (
            "/spec/containers/0/livenessProbe".to_owned(),
            json!({"httpGet": {"host": "example.com", "port": 80}}),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"example.com\")",
        ),
        (
            "/spec/containers/0/lifecycle".to_owned(),
            json!({"preStop": {"tcpSocket": {"host": "10.0.0.1", "port": 80}}}),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"10.0.0.1\")",
        ),
        (
            "/spec/securityContext/seLinuxOptions".to_owned(),
            json!({"type": "spc_t", "user": "u"}),
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
        ),
        (
            format!("{CONTAINER}/seccompProfile"),
            json!({"type": "Unconfined"}),
            "seccompProfile (container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            "/spec/securityContext/sysctls".to_owned(),
            json!([{"name": "net.ipv4.tcp_syncookies", "value": "1"}, {"name": "kernel.msgmax", "value": "1"}]),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            "/spec/securityContext/windowsOptions".to_owned(),
            json!({"hostProcess": true}),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
        (
            "/spec/securityContext/appArmorProfile".to_owned(),
            json!({"type": "Unconfined"}),
            "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
        ),
        (
            "/metadata/annotations".to_owned(),
            json!({"container.apparmor.security.beta.kubernetes.io/a": "unconfined"}),
            "forbidden AppArmor profile (annotation must not set AppArmor profile type to \"container.apparmor.security.beta.kubernetes.io/a=\"unconfined\"\")",
        ),
    ];
    for (at, value, wanted) in table {
        let pod = with(&at, value);
        for level in [Level::Baseline, Level::Restricted] {
            assert_eq!(judged(level, LATEST, &pod).as_deref(), Some(wanted), "{at} at {level:?}");
        }
        assert_eq!(judged(Level::Privileged, LATEST, &pod), None);
    }
    // Where restricted is stricter it says so in its own words, once.
    let stricter = [
        (
            with("/spec/volumes", volume("hostPath")),
            Some("hostPath volumes (volume \"v\")"),
            "restricted volume types (volume \"v\" uses restricted volume type \"hostPath\")",
        ),
        (
            with("/spec/volumes", volume("nfs")),
            None,
            "restricted volume types (volume \"v\" uses restricted volume type \"nfs\")",
        ),
        (
            with(&format!("{CONTAINER}/capabilities"), json!({"drop": ["ALL"], "add": ["NET_ADMIN"]})),
            Some(
                "non-default capabilities (container \"a\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
            ),
            "unrestricted capabilities (container \"a\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
        ),
        (
            with(&format!("{CONTAINER}/capabilities"), json!({"drop": ["ALL"], "add": ["CHOWN"]})),
            None,
            "unrestricted capabilities (container \"a\" must not include \"CHOWN\" in securityContext.capabilities.add)",
        ),
    ];
    for (pod, of_baseline, of_restricted) in stricter {
        assert_eq!(judged(Level::Baseline, LATEST, &pod).as_deref(), of_baseline);
        assert_eq!(judged(Level::Restricted, LATEST, &pod).as_deref(), Some(of_restricted));
    }
}

#[test]
fn what_restricted_asks_for_is_asked_by_name() {
    let table = [
        (
            with(&format!("{CONTAINER}/allowPrivilegeEscalation"), json!(true)),
            Some(
                "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false)",
            ),
        ),
        (
            with("/spec/securityContext/runAsNonRoot", json!(false)),
            Some("runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false)"),
        ),
        (
            with(&format!("{CONTAINER}/runAsNonRoot"), json!(false)),
            Some("runAsNonRoot != true (container \"a\" must not set securityContext.runAsNonRoot=false)"),
        ),
        (
            with(&format!("{CONTAINER}/runAsUser"), json!(0)),
            Some("runAsUser=0 (container \"a\" must not set runAsUser=0)"),
        ),
        (with(&format!("{CONTAINER}/runAsUser"), json!(1000)), None),
        (with(&format!("{CONTAINER}/capabilities"), json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]})), None),
        (
            with(
                "/spec/ephemeralContainers",
                json!([{"name": "e", "securityContext": {"privileged": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]),
            ),
            Some("privileged (container \"e\" must not set securityContext.privileged=true)"),
        ),
    ];
    for (pod, wanted) in table {
        assert_eq!(judged(Level::Restricted, LATEST, &pod).as_deref(), wanted, "{pod}");
    }
}

#[test]
fn a_version_has_the_rules_of_its_release() {
    let unmasked = {
        let mut pod = with(&format!("{CONTAINER}/procMount"), json!("Unmasked"));
        pod["spec"]["hostUsers"] = json!(false);
        pod
    };
    let root = {
        let mut pod = with(&format!("{CONTAINER}/runAsUser"), json!(0));
        pod["spec"]["hostUsers"] = json!(false);
        pod
    };
    let sysctl = |name: &str| with("/spec/securityContext/sysctls", json!([{"name": name, "value": "1"}]));
    let engine = with("/spec/securityContext/seLinuxOptions", json!({"type": "container_engine_t"}));
    let host = with("/spec/containers/0/readinessProbe", json!({"tcpSocket": {"host": "h", "port": 1}}));
    let table = [
        (Level::Baseline, 34, &unmasked, false),
        (Level::Baseline, 35, &unmasked, true),
        (Level::Restricted, 35, &unmasked, false),
        (Level::Restricted, 22, &root, true),
        (Level::Restricted, 34, &root, false),
        (Level::Restricted, 35, &root, true),
        (Level::Baseline, 28, &sysctl("net.ipv4.tcp_fin_timeout"), false),
        (Level::Baseline, 29, &sysctl("net.ipv4.tcp_fin_timeout"), true),
        (Level::Baseline, 99, &sysctl("net.ipv4.tcp_rmem"), true),
        (Level::Baseline, 30, &engine, false),
        (Level::Baseline, 31, &engine, true),
        (Level::Baseline, 33, &host, true),
        (Level::Baseline, 34, &host, false),
    ];
    for (level, minor, pod, let_in) in table {
        assert_eq!(judged(level, Version::Minor(minor), pod).is_none(), let_in, "{level:?} v1.{minor}: {pod}");
    }
    let annotated = with("/metadata/annotations", json!({"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}));
    assert_eq!(
        judged(Level::Baseline, Version::Minor(18), &annotated).as_deref(),
        Some("seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")")
    );
    assert_eq!(judged(Level::Baseline, Version::Minor(19), &annotated), None);
}

#[test]
fn labels_say_what_is_enforced_and_what_is_told() {
    let read = |labels: Value| {
        let labels: serde_json::Map<String, Value> = labels
            .as_object()
            .expect("a map")
            .iter()
            .map(|(label, value)| (format!("pod-security.kubernetes.io/{label}"), value.clone()))
            .collect();
        let (policy, errors) = policy::of(&object(json!({"metadata": {"labels": labels}})));
        (policy.enforce.to_string(), policy.warn.to_string(), words(&errors))
    };
    let told = |enforce: &str, warn: &str| (enforce.to_owned(), warn.to_owned(), Vec::<String>::new());
    assert_eq!(read(json!({})), told("privileged:latest", "privileged:latest"));
    assert_eq!(read(json!({"enforce": "baseline"})), told("baseline:latest", "baseline:latest"));
    assert_eq!(
        read(json!({"enforce": "baseline", "enforce-version": "v1.24"})),
        told("baseline:v1.24", "baseline:v1.24")
    );
    assert_eq!(
        read(json!({"enforce": "baseline", "warn": "privileged"})),
        told("baseline:latest", "privileged:latest")
    );
    assert_eq!(
        read(json!({"warn": "restricted", "audit": "baseline"})),
        told("privileged:latest", "restricted:latest")
    );
    let (enforce, warn, errors) = read(json!({"enforce": "strict", "audit": "strict", "warn-version": "1.24"}));
    assert_eq!((enforce.as_str(), warn.as_str()), ("restricted:latest", "privileged:latest"));
    assert_eq!(
        errors,
        [
            "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
            "metadata.labels[pod-security.kubernetes.io/audit]: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
            "metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"1.24\": must be \"latest\" or \"v1.x\"",
        ]
    );
}

#[test]
fn who_asks_for_more_learns_which_pods_would_not_be_let_in_again() {
    let pod = |name: &str, owner: Option<&str>, privileged: bool| {
        let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": [
            {"name": "c", "securityContext": {"privileged": privileged}}]}});
        if let Some(uid) = owner {
            pod["metadata"]["ownerReferences"] =
                json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": uid, "controller": true}]);
        }
        object(pod)
    };
    let baseline = Standard { level: Level::Baseline, version: LATEST };
    let pods = vec![pod("b", Some("r"), true), pod("a", Some("r"), true), pod("c", None, true), pod("d", None, false)];
    assert_eq!(
        existing("shop", baseline, pods),
        [
            "existing pods in namespace \"shop\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "a (and 2 other pods): privileged"
        ]
    );
    assert!(existing("shop", baseline, vec![pod("d", None, false)]).is_empty());
}
