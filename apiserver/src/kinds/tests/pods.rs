use serde_json::json;

use super::super::pod;
use super::super::{Graceful, Op};
use super::*;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec:
  containers:
  - name: main
    image: nginx
    ports: [{containerPort: 80, name: http}]
    env: [{name: A, value: b}]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data}]
";

#[test]
fn a_pod_gets_every_default_of_kubernetes() {
    let pod = created(POD);
    assert_eq!(
        pod.0["spec"],
        json!({
            "containers": [{
                "name": "main", "image": "nginx",
                "ports": [{"containerPort": 80, "name": "http", "protocol": "TCP"}],
                "env": [{"name": "A", "value": "b"}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File", "resources": {},
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true,
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            ],
        })
    );
    assert_eq!(pod.0["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    assert_eq!(pod.generation(), 1);
}

#[test]
fn probes_hooks_volumes_and_resources_get_theirs() {
    let changes: &[(&str, &str)] = &[
        ("spec.containers.0.livenessProbe", "{httpGet: {port: 80}}"),
        ("spec.containers.0.resources", "{limits: {cpu: 0.5, memory: 1024Mi}}"),
        ("spec.containers.0.env", "[{name: N, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]"),
        (
            "spec.volumes",
            "[{name: data, configMap: {name: c}}, {name: p, projected: {sources: [{serviceAccountToken: {path: t}}]}}]",
        ),
        ("spec.serviceAccountName", "me"),
    ];
    let mut pod = with(POD, changes);
    kind_of(&pod).strategy.default(&mut pod);
    let container = &pod.0["spec"]["containers"][0];
    assert_eq!(
        container["livenessProbe"],
        json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
    );
    assert_eq!(
        container["resources"],
        json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}})
    );
    assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    assert_eq!(pod.0["spec"]["volumes"][0]["configMap"]["defaultMode"], 420);
    assert_eq!(
        pod.0["spec"]["volumes"][1]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
        3600
    );
    assert_eq!(pod.get_str(&["spec", "serviceAccount"]), Some("me"));
    assert_eq!(pod::qos_class(&pod), "Guaranteed");
}

#[test]
fn what_is_wrong_with_a_pod_is_said_as_kubernetes_says_it() {
    let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    let bad_name = format!("spec.containers[0].name: Invalid value: \"Main\": {label}");
    table(
        POD,
        &[
            (&[("spec.containers", "[]"), ("spec.volumes", "~")], "spec.containers: Required value"),
            (&[("spec.containers.0.name", "Main")], &bad_name),
            (&[("spec.containers.0.image", "~")], "spec.containers[0].image: Required value"),
            (
                &[("spec.containers", "[{name: a, image: i}, {name: a, image: i}]")],
                "spec.containers[1].name: Duplicate value: \"a\"",
            ),
            (
                &[("spec.restartPolicy", "Sometimes")],
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
            (
                &[("spec.containers.0.imagePullPolicy", "Maybe")],
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ),
            (
                &[("spec.containers.0.ports.0.containerPort", "70000")],
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                &[("spec.containers.0.volumeMounts.0.name", "other")],
                "spec.containers[0].volumeMounts[0].name: Not found: \"other\"",
            ),
            (
                &[("spec.containers.0.resources", "{requests: {cpu: 2}, limits: {cpu: 1}}")],
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (
                &[("spec.containers.0.resources", "{requests: {example.com/foo: 1}, limits: {example.com/foo: 2}}")],
                "spec.containers[0].resources.requests: Invalid value: \"1\": must be equal to example.com/foo limit of 2",
            ),
            (
                &[("spec.containers.0.resources", "{requests: {example.com/foo: 1}}")],
                "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
            ),
            (
                &[("spec.containers.0.resources", "{limits: {cpu: lots}}")],
                "spec.containers[0].resources.limits[cpu]: Invalid value: \"lots\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'\nspec.containers[0].resources.requests[cpu]: Invalid value: \"lots\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            (
                &[("spec.containers.0.livenessProbe", "{}")],
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            ),
            (
                &[("spec.containers.0.livenessProbe", "{exec: {command: [a]}, tcpSocket: {port: 1}}")],
                "spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
            ),
            (
                &[("spec.volumes.0", "{name: data, emptyDir: {}, hostPath: {path: /x}}")],
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
            ),
            (
                &[("spec.terminationGracePeriodSeconds", "-1")],
                "spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                &[("spec.activeDeadlineSeconds", "0")],
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
            ),
            (
                &[("spec.dnsPolicy", "None")],
                "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
            ),
            (
                &[("spec.tolerations", "[{key: a, operator: Exists, value: b}]")],
                "spec.tolerations[0].operator: Invalid value: \"Exists\": value must be empty when `operator` is 'Exists'",
            ),
            (
                &[("metadata.labels", "{a: '-'}")],
                "metadata.labels[a]: Invalid value: \"-\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
            (&[("metadata.name", "~")], "metadata.name: Required value: name or generateName is required"),
            (&[("metadata.name", "~"), ("metadata.generateName", "web-")], ""),
        ],
    );
}

#[test]
fn a_stored_pod_changes_its_image_and_little_else() {
    let old = stored(POD);
    let change = |path: &[&str], value: Value| {
        let mut new = old.clone();
        new.set(path, value);
        update(&old, &new, Op::Update)
    };
    let mut image = old.clone();
    image.0["spec"]["containers"][0]["image"] = "nginx:2".into();
    assert_eq!(update(&old, &image, Op::Update).unwrap().generation(), 2);
    assert_eq!(change(&["metadata", "labels"], json!({"a": "b"})).unwrap().generation(), 1);
    assert!(change(&["spec", "activeDeadlineSeconds"], json!(5)).is_ok());
    let refused = change(&["spec", "hostNetwork"], json!(true)).unwrap_err();
    assert!(refused[0].starts_with("spec: Forbidden: pod updates may not change fields other than"), "{refused:?}");
    assert!(change(&["spec", "tolerations"], json!([])).is_err());
    let more = |t: Value| json!([old.0["spec"]["tolerations"][0], old.0["spec"]["tolerations"][1], t]);
    assert!(change(&["spec", "tolerations"], more(json!({"key": "x", "operator": "Exists"}))).is_ok());
}

#[test]
fn status_is_written_by_status_only() {
    let old = stored(POD);
    let mut new = old.clone();
    new.set(&["status", "phase"], "Running");
    new.set(&["spec", "nodeName"], "n1");
    let updated = update(&old, &new, Op::UpdateStatus).unwrap();
    assert_eq!(updated.get_str(&["status", "phase"]), Some("Running"));
    assert_eq!(updated.get(&["spec", "nodeName"]), None);
    let mut new = old.clone();
    new.set(&["status", "phase"], "Running");
    assert_eq!(update(&old, &new, Op::Update).unwrap().get_str(&["status", "phase"]), Some("Pending"));
}

#[test]
fn a_running_pod_is_given_time_others_go_at_once() {
    let strategy = kind_of(&parse(POD)).strategy;
    let mut pod = stored(POD);
    assert_eq!(strategy.graceful(&pod, None), Graceful::Now);
    pod.set(&["spec", "nodeName"], "n1");
    assert_eq!(strategy.graceful(&pod, None), Graceful::After(30));
    assert_eq!(strategy.graceful(&pod, Some(5)), Graceful::After(5));
    assert_eq!(strategy.graceful(&pod, Some(0)), Graceful::Now);
    pod.set(&["status", "phase"], "Succeeded");
    assert_eq!(strategy.graceful(&pod, None), Graceful::Now);
}

#[test]
fn the_service_account_brings_its_token_and_pull_secrets() {
    let account =
        parse("{apiVersion: v1, kind: ServiceAccount, metadata: {name: default}, imagePullSecrets: [{name: pull}]}");
    let mut pod = created(POD);
    pod::admit_service_account(&mut pod, &account, "abcde");
    assert_eq!(pod.get_str(&["spec", "serviceAccountName"]), Some("default"));
    assert_eq!(pod.0["spec"]["imagePullSecrets"], json!([{"name": "pull"}]));
    assert_eq!(pod.0["spec"]["containers"][0]["volumeMounts"][1]["mountPath"], pod::TOKEN_PATH);
    assert_eq!(pod.0["spec"]["volumes"][1]["name"], "kube-api-access-abcde");
    assert_eq!(errors_of(&pod), Vec::<String>::new());
    let mut off = with(POD, &[("spec.automountServiceAccountToken", "false")]);
    pod::admit_service_account(&mut off, &account, "abcde");
    assert_eq!(off.get_list(&["spec", "volumes"]).len(), 1);
}

#[test]
fn what_is_not_done_yet_is_refused_by_name() {
    for (changes, expected) in [
        (
            ("spec.volumes.0", "{name: data, nfs: {server: s, path: /}}"),
            "spec.volumes[0].nfs: Forbidden: nfs volumes are not supported by Proa yet",
        ),
        (
            ("spec.volumes.0", "{name: data, csi: {driver: d.example.com}}"),
            "spec.volumes[0].csi: Forbidden: csi volumes are not supported by Proa yet",
        ),
        (
            ("spec.runtimeClassName", "gvisor"),
            "spec.runtimeClassName: Forbidden: runtime classes are not supported by Proa yet",
        ),
        (
            ("spec.shareProcessNamespace", "true"),
            "spec.shareProcessNamespace: Forbidden: sharing the process namespace is not supported by Proa yet",
        ),
        (("spec.hostUsers", "false"), "spec.hostUsers: Forbidden: user namespaces are not supported by Proa yet"),
        (
            ("spec.containers.0.livenessProbe", "{grpc: {port: 1}}"),
            "spec.containers[0].livenessProbe.grpc: Forbidden: gRPC probes are not supported by Proa yet",
        ),
        (
            ("spec.securityContext", "{seccompProfile: {type: Localhost, localhostProfile: p}}"),
            "spec.securityContext.seccompProfile.type: Forbidden: Localhost profiles are not supported by Proa yet",
        ),
        (
            ("spec.containers.0.resources", "{limits: {hugepages-2Mi: 2Mi}}"),
            "spec.containers[0].resources.limits[hugepages-2Mi]: Forbidden: the resource hugepages-2Mi is not supported by Proa yet",
        ),
    ] {
        let pod = with(POD, &[changes]);
        let refused: Vec<String> = kind_of(&pod).strategy.unsupported(&pod).iter().map(ToString::to_string).collect();
        assert_eq!(refused, [expected]);
    }
    for change in [
        ("spec.os", "{name: linux}"),
        ("spec.shareProcessNamespace", "false"),
        ("spec.hostNetwork", "true"),
        ("spec.securityContext", "{runAsUser: 1, fsGroup: 2, seccompProfile: {type: RuntimeDefault}}"),
        ("spec.initContainers", "[{name: s, image: i, restartPolicy: Always}]"),
        ("spec.setHostnameAsFQDN", "false"),
        ("spec.volumes.0", "{name: data, persistentVolumeClaim: {claimName: c}}"),
        ("spec.volumes.0", "{name: data, ephemeral: {volumeClaimTemplate: {spec: {}}}}"),
    ] {
        let pod = with(POD, &[change]);
        assert_eq!(kind_of(&pod).strategy.unsupported(&pod), vec![], "{change:?}");
    }
}
