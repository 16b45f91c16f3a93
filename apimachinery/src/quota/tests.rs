//! Tables of what counts, and the laws of letting in.

use serde_json::json;

use super::*;

const PODS: Subject<'static> = Subject { group: "", plural: "pods" };

fn object(value: Value) -> Object {
    Object::from_value(value).expect("an object")
}

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

/// A pod of one container `c` that asks for so much.
fn pod(requests: Value, limits: Value) -> Object {
    object(json!({"metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]}}))
}

fn quota(hard: Value, used: Value) -> Object {
    object(json!({"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}}))
}

fn with(mut base: Object, path: &[&str], value: Value) -> Object {
    base.set(path, value);
    base
}

/// What an object uses, as text.
fn used(subject: Subject<'_>, of: &Object) -> Value {
    to_json(&usage(subject, of, now()))
}

#[test]
fn a_pod_uses_what_it_asks_for_under_both_names_and_extended_resources_as_requests_alone() {
    let pod = pod(
        json!({"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "2Gi", "example.com/gpu": "2", "hugepages-2Mi": "4Mi"}),
        json!({"cpu": "1", "memory": "2Gi", "example.com/gpu": "2"}),
    );
    let wanted = json!({
        "count/pods": "1", "pods": "1",
        "cpu": "500m", "requests.cpu": "500m", "limits.cpu": "1",
        "memory": "1Gi", "requests.memory": "1Gi", "limits.memory": "2Gi",
        "ephemeral-storage": "2Gi", "requests.ephemeral-storage": "2Gi",
        "requests.example.com/gpu": "2",
        "hugepages-2Mi": "4Mi", "requests.hugepages-2Mi": "4Mi",
    });
    assert_eq!(used(PODS, &pod), wanted);
}

#[test]
fn a_pod_that_has_ended_or_should_be_gone_is_an_object_and_no_more() {
    let only_counted = json!({"count/pods": "1"});
    for phase in ["Succeeded", "Failed"] {
        assert_eq!(
            used(PODS, &with(pod(json!({"cpu": "1"}), json!({})), &["status", "phase"], json!(phase))),
            only_counted
        );
    }
    let going = |since: &str| {
        let mut pod = pod(json!({"cpu": "1"}), json!({}));
        pod.set(&["metadata", "deletionTimestamp"], since);
        pod.set(&["metadata", "deletionGracePeriodSeconds"], 30);
        used(PODS, &pod)
    };
    assert_eq!(going("2025-12-31T23:59:00Z"), only_counted);
    assert_eq!(going("2025-12-31T23:59:50Z")["pods"], "1");
}

#[test]
fn services_count_their_node_ports_and_balancers() {
    let services = Subject { group: "", plural: "services" };
    let table = [
        (json!({"type": "ClusterIP", "ports": [{"port": 1}]}), ["0", "0"]),
        (json!({"type": "NodePort", "ports": [{"port": 1}, {"port": 2}]}), ["2", "0"]),
        (json!({"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}), ["2", "1"]),
        (
            json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
                "ports": [{"port": 1, "nodePort": 30000}, {"port": 2}]}),
            ["1", "1"],
        ),
    ];
    for (spec, [node_ports, balancers]) in table {
        let wanted = json!({"count/services": "1", "services": "1", "services.nodeports": node_ports,
            "services.loadbalancers": balancers});
        assert_eq!(used(services, &object(json!({"spec": spec}))), wanted, "{spec}");
    }
}

#[test]
fn claims_count_for_all_and_for_their_class() {
    let claims = Subject { group: "", plural: "persistentvolumeclaims" };
    let claim = object(json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}}));
    let wanted = json!({
        "count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "1Gi",
        "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
        "gold.storageclass.storage.k8s.io/requests.storage": "1Gi",
    });
    assert_eq!(used(claims, &claim), wanted);
    let growing = with(claim, &["status", "allocatedResources"], json!({"storage": "3Gi"}));
    assert_eq!(used(claims, &growing)["requests.storage"], "3Gi");
}

#[test]
fn a_name_is_about_the_resources_it_says() {
    let of = |group, plural| Subject { group, plural };
    let table = [
        ("count/widgets.example.com", of("example.com", "widgets"), true),
        ("count/widgets.example.com", of("", "widgets"), false),
        ("count/widgets", of("", "widgets"), true),
        ("count/widgets.", of("", "widgets"), false),
        ("count/deployments.apps", of("apps", "deployments"), true),
        ("configmaps", of("", "configmaps"), true),
        ("deployments", of("apps", "deployments"), false),
        ("endpoints", of("", "endpoints"), false),
        ("requests.cpu", PODS, true),
        ("requests.storage", PODS, false),
        ("requests.nvidia.com/gpu", PODS, true),
        ("requests.hugepages-2Mi", PODS, true),
        ("limits.nvidia.com/gpu", PODS, false),
        ("gold.storageclass.storage.k8s.io/requests.storage", of("", "persistentvolumeclaims"), true),
        ("gold.storageclass.storage.k8s.io/requests.storage", PODS, false),
        ("services.nodeports", of("", "services"), true),
        ("nonsense", PODS, false),
    ];
    for (name, subject, wanted) in table {
        assert_eq!(concerns(name, subject), wanted, "{name} of {subject:?}");
    }
}

fn let_in(quota: &Object, pod: &Object) -> Result<Option<Value>, String> {
    admit(quota, PODS, pod, None, now()).map(|used| used.map(|used| to_json(&used)))
}

#[test]
fn one_that_fits_is_charged_and_one_too_many_is_refused_in_kubernetes_words() {
    let plain = pod(json!({}), json!({}));
    let used = let_in(&quota(json!({"pods": "2"}), json!({"pods": "1"})), &plain);
    assert_eq!(used, Ok(Some(json!({"pods": "2"}))));
    let refused = let_in(&quota(json!({"pods": "2"}), json!({"pods": "2"})), &plain);
    assert_eq!(refused.unwrap_err(), "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2");
    let asking = pod(json!({"cpu": "600m", "memory": "1Gi"}), json!({}));
    let full = quota(
        json!({"pods": "9", "requests.cpu": "1", "requests.memory": "1Gi"}),
        json!({"pods": "1", "requests.cpu": "500m", "requests.memory": "512Mi"}),
    );
    assert_eq!(
        let_in(&full, &asking).unwrap_err(),
        "exceeded quota: q, requested: requests.cpu=600m,requests.memory=1Gi, used: requests.cpu=500m,requests.memory=512Mi, limited: requests.cpu=1,requests.memory=1Gi"
    );
}

#[test]
fn what_was_never_counted_lets_nothing_in() {
    let refused = let_in(&quota(json!({"pods": "2", "count/pods": "2"}), json!({})), &pod(json!({}), json!({})));
    assert_eq!(refused.unwrap_err(), "status unknown for quota: q, resources: count/pods,pods");
    // A quota nobody has taken up yet bounds nothing.
    let new = object(json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}}));
    assert_eq!(let_in(&new, &pod(json!({}), json!({}))), Ok(None));
}

#[test]
fn where_cpu_or_memory_is_bounded_every_container_says_what_it_wants() {
    let bounded = quota(
        json!({"requests.cpu": "1", "limits.memory": "1Gi", "requests.example.com/gpu": "1"}),
        json!({"requests.cpu": "0", "limits.memory": "0", "requests.example.com/gpu": "0"}),
    );
    let silent = object(json!({"spec": {
        "containers": [{"name": "b"}, {"name": "a", "resources": {"requests": {"cpu": "1m"}}}],
        "initContainers": [{"name": "i"}]}}));
    assert_eq!(
        let_in(&bounded, &silent).unwrap_err(),
        "failed quota: q: must specify limits.memory for: a,b,i; requests.cpu for: b,i"
    );
    let said = with(silent, &["spec", "resources"], json!({"requests": {"cpu": "1m"}, "limits": {"memory": "1Mi"}}));
    assert!(let_in(&bounded, &said).is_ok(), "said of the whole pod");
}

#[test]
fn an_update_is_charged_by_what_it_changes() {
    let services = Subject { group: "", plural: "services" };
    let of = |type_: &str| object(json!({"spec": {"type": type_, "ports": [{"port": 1}]}}));
    let hard = json!({"services": "1", "services.nodeports": "1"});
    let quota = quota(hard, json!({"services": "1", "services.nodeports": "0"}));
    let change = |new: &str, old: &str| admit(&quota, services, &of(new), Some(&of(old)), now());
    let grown = change("NodePort", "ClusterIP").expect("it fits").expect("it counts");
    assert_eq!(to_json(&grown), json!({"services": "1", "services.nodeports": "1"}));
    assert_eq!(change("ClusterIP", "ClusterIP"), Ok(None));
}

#[test]
fn scopes_say_which_pods_count() {
    let plain = || pod(json!({}), json!({}));
    let asking = || pod(json!({"cpu": "1"}), json!({}));
    let dated = || with(plain(), &["spec", "activeDeadlineSeconds"], json!(5));
    let of_class = |name: &str| with(plain(), &["spec", "priorityClassName"], json!(name));
    let abroad = || {
        let term = json!({"topologyKey": "zone", "namespaceSelector": {}});
        with(
            plain(),
            &["spec", "affinity"],
            json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"podAffinityTerm": term}]}}),
        )
    };
    let selector = |operator: &str, values: Value| {
        json!({"scopeSelector": {"matchExpressions":
            [{"scopeName": "PriorityClass", "operator": operator, "values": values}]}})
    };
    let scopes = |names: &[&str]| json!({"scopes": names});
    let table = [
        (scopes(&["Terminating"]), plain(), false),
        (scopes(&["Terminating"]), dated(), true),
        (scopes(&["NotTerminating"]), plain(), true),
        (scopes(&["NotTerminating"]), dated(), false),
        (scopes(&["BestEffort"]), plain(), true),
        (scopes(&["BestEffort"]), asking(), false),
        (scopes(&["NotBestEffort"]), asking(), true),
        (scopes(&["BestEffort", "Terminating"]), plain(), false),
        (scopes(&["PriorityClass"]), plain(), false),
        (scopes(&["PriorityClass"]), of_class("high"), true),
        (selector("In", json!(["high", "low"])), of_class("high"), true),
        (selector("In", json!(["low"])), of_class("high"), false),
        (selector("NotIn", json!(["low"])), of_class("high"), true),
        (selector("NotIn", json!(["low"])), plain(), true),
        (selector("DoesNotExist", json!([])), plain(), true),
        (selector("DoesNotExist", json!([])), of_class("high"), false),
        (scopes(&["CrossNamespacePodAffinity"]), plain(), false),
        (scopes(&["CrossNamespacePodAffinity"]), abroad(), true),
        (scopes(&["VolumeAttributesClass"]), plain(), false),
    ];
    for (spec, pod, wanted) in table {
        let quota = object(json!({"spec": spec}));
        assert_eq!(Scopes::of(&quota).hold(PODS, &pod), wanted, "{spec} {pod:?}");
    }
    let claims = Subject { group: "", plural: "persistentvolumeclaims" };
    let fast = object(json!({"spec": {"volumeAttributesClassName": "fast"}}));
    let of_fast = json!({"scopeSelector": {"matchExpressions":
        [{"scopeName": "VolumeAttributesClass", "operator": "In", "values": ["fast"]}]}});
    assert!(Scopes::of(&object(json!({"spec": of_fast}))).hold(claims, &fast));
    let secrets = Subject { group: "", plural: "secrets" };
    assert!(!Scopes::of(&object(json!({"spec": scopes(&["BestEffort"])}))).hold(secrets, &plain()));
}

#[test]
fn counting_again_gives_what_letting_in_one_by_one_gave() {
    let hard = json!({"pods": "10", "requests.cpu": "10", "count/pods": "10", "configmaps": "3"});
    let mut charged =
        quota(hard.clone(), json!({"pods": "0", "requests.cpu": "0", "count/pods": "0", "configmaps": "0"}));
    let names = ["pods", "requests.cpu", "count/pods", "configmaps"];
    let mut count = Count::new(&charged.clone(), names.to_vec(), now());
    assert!(count.begin(PODS));
    assert!(count.begin(Subject { group: "", plural: "configmaps" }));
    assert!(!count.begin(Subject { group: "apps", plural: "deployments" }));
    for milli in [100, 250, 400] {
        let pod = pod(json!({"cpu": format!("{milli}m")}), json!({}));
        let used = admit(&charged, PODS, &pod, None, now()).expect("it fits").expect("it counts");
        charged.set(&["status", "used"], to_json(&used));
        count.add(PODS, &pod);
    }
    assert_eq!(to_json(&count.used()), charged.get(&["status", "used"]).cloned().unwrap_or_default());
}
