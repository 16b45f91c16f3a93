//! Replicas as conformance's [sig-apps] and [sig-scheduling] want them of a whole system: they serve, a quota stops them,
//! the more important push the less important out, and a port of the host belongs to one pod.

use crate::harness::{Cluster, eventually};

/// Two replicas that answer with their name, kept by a set or a controller.
fn basic(kind: &str, name: &str) -> String {
    let (version, selector) = match kind {
        "ReplicaSet" => ("apps/v1", format!("matchLabels: {{app: {name}}}")),
        _ => ("v1", format!("app: {name}")),
    };
    format!(
        "
---
apiVersion: {version}
kind: {kind}
metadata: {{name: {name}}}
spec:
  replicas: 2
  selector: {{{selector}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: main, image: 'example/echo:v1', ports: [{{containerPort: 8080}}]}}]
"
    )
}

/// A pod of that importance that asks for so many boats, kept by a ReplicaSet.
fn sailing(name: &str, boats: u32) -> String {
    let amount = format!("{{scheduling.k8s.io/boats: {boats}}}");
    format!(
        "
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {{name: {name}}}
value: {}
---
apiVersion: apps/v1
kind: ReplicaSet
metadata: {{name: {name}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      priorityClassName: {name}
      terminationGracePeriodSeconds: 1
      containers: [{{name: main, image: 'example/echo:v1', resources: {{requests: {amount}, limits: {amount}}}}}]
",
        name.trim_start_matches("rs-")
    )
}

/// Two that want the same port of one node: one alone, and one that a set makes anew for as long as it is refused.
const PORTS: [&str; 2] = [
    "
apiVersion: v1
kind: Pod
metadata: {name: holder}
spec:
  nodeName: node-1
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: 'example/echo:v1', ports: [{containerPort: 8080, hostPort: 21017}]}]
",
    "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ss}
spec:
  serviceName: test
  selector: {matchLabels: {app: ss}}
  template:
    metadata: {labels: {app: ss}}
    spec:
      nodeName: node-1
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: 'example/echo:v1', ports: [{containerPort: 8080, hostPort: 21017}]}]
",
];

fn names(cluster: &Cluster, app: &str, field: &str) -> Vec<String> {
    let path = format!("jsonpath={{.items[*].{field}}}");
    let list = cluster.kubectl(&["get", "pods", "-l", &format!("app={app}"), "-o", &path]);
    list.split_whitespace().map(str::to_owned).collect()
}

/// Conformance: "ReplicaSet should serve a basic image on each replica with a public image", "ReplicationController should
/// serve a basic image on each replica with a public image", "ReplicationController should surface a failure condition on
/// a common issue like exceeded quota".
#[test]
fn each_replica_of_a_set_and_of_a_controller_answers_with_its_name_and_a_quota_stops_a_controller() {
    let cluster = Cluster::up();
    cluster.apply(&[basic("ReplicaSet", "rs"), basic("ReplicationController", "rc")].concat());
    for (object, app) in [("replicaset/rs", "rs"), ("rc/rc", "rc")] {
        cluster.wait_for(object, ".status.readyReplicas", "2");
        for name in names(&cluster, app, "metadata.name") {
            // As the conformance test asks: through the API server's proxy.
            let path = format!("/api/v1/namespaces/default/pods/{name}:8080/proxy/");
            eventually("the replica answers with its name", || {
                let answer = cluster.try_kubectl(&["get", "--raw", &path]);
                String::from_utf8_lossy(&answer.stdout).contains(&name).then_some(())
            });
        }
    }

    cluster.kubectl(&["create", "quota", "condition-test", "--hard=pods=4"]);
    cluster.wait_for("resourcequota/condition-test", ".status.used.pods", "4");
    let failure = "{.status.conditions[?(@.type==\"ReplicaFailure\")]";
    cluster.kubectl(&["scale", "rc", "rc", "--replicas=3"]);
    cluster.kubectl(&["wait", "rc/rc", "--for=condition=ReplicaFailure", "--timeout=60s"]);
    let told = cluster.kubectl(&["get", "rc", "rc", "-o", &format!("jsonpath={failure}.reason}} {failure}.message}}")]);
    assert!(
        told.starts_with("FailedCreate ")
            && told.contains("exceeded quota: condition-test, requested: pods=1, used: pods=4, limited: pods=4"),
        "{told}"
    );
    cluster.kubectl(&["scale", "rc", "rc", "--replicas=2"]);
    eventually("the failure is over", || {
        cluster.kubectl(&["get", "rc", "rc", "-o", &format!("jsonpath={failure}}}")]).is_empty().then_some(())
    });
}

/// Conformance: "StatefulSet Should recreate evicted statefulset", "PreemptionExecutionPath runs ReplicaSets to verify
/// preemption running path".
#[test]
fn what_a_node_refuses_and_what_is_pushed_out_is_made_anew_and_runs_when_there_is_room() {
    let cluster = Cluster::up();
    let [holder, set] = PORTS;
    cluster.apply(holder);
    cluster.wait_for("pod/holder", ".status.phase", "Running");
    cluster.apply(set);
    let events = |field: &str| {
        let path = format!("jsonpath={{.items[*].{field}}}");
        let of = "--field-selector=reason=NodePorts,involvedObject.name=ss-0";
        cluster.kubectl(&["get", "events", of, "-o", &path])
    };
    let refused = eventually("it is refused, deleted and made anew", || {
        let uids = events("involvedObject.uid");
        (uids.split_whitespace().count() > 1).then_some(uids)
    });
    let why = events("message");
    assert!(
        why.contains(
            "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
        ),
        "{why}"
    );
    assert_eq!(cluster.kubectl(&["get", "pod", "holder", "-o", "jsonpath={.status.phase}"]), "Running");
    cluster.kubectl(&["delete", "pod", "holder", "--timeout=30s"]);
    cluster.wait_for("sts/ss", ".status.readyReplicas", "1");
    let runs = cluster.kubectl(&["get", "pod", "ss-0", "-o", "jsonpath={.metadata.uid}"]);
    assert!(!refused.contains(&runs), "another pod of that name");
    cluster.kubectl(&["delete", "sts", "ss", "--timeout=30s"]);

    let added = r#"{"status": {"capacity": {"scheduling.k8s.io/boats": "10"}}}"#;
    cluster.kubectl(&["patch", "node", "node-1", "--subresource=status", "--type=merge", "-p", added]);
    cluster.wait_for("node/node-1", ".status.allocatable.scheduling\\.k8s\\.io/boats", "10");
    let mut before = Vec::new();
    for (name, boats) in [("rs-1", 2), ("rs-2", 3), ("rs-3", 4)] {
        cluster.apply(&sailing(name, boats));
        cluster.wait_for(&format!("replicaset/{name}"), ".status.readyReplicas", "1");
        before.push(names(&cluster, name, "metadata.uid"));
    }
    cluster.apply(&sailing("rs-4", 6));
    cluster.wait_for("replicaset/rs-4", ".status.readyReplicas", "1");
    // The two least important made room; their sets have made them anew, and those wait.
    for (name, before) in ["rs-1", "rs-2"].into_iter().zip(&before) {
        eventually("a new pod waits", || {
            let (uids, phases) = (names(&cluster, name, "metadata.uid"), names(&cluster, name, "status.phase"));
            (uids.len() == 1 && uids != *before && phases == ["Pending"]).then_some(())
        });
    }
    assert_eq!(names(&cluster, "rs-3", "metadata.uid"), before[2], "what is more important than they stays");
    cluster.kubectl(&["delete", "replicaset", "rs-4", "--timeout=30s"]);
    for name in ["rs-1", "rs-2"] {
        cluster.wait_for(&format!("replicaset/{name}"), ".status.readyReplicas", "1");
    }
    cluster.assert_nothing_was_forbidden();
}
