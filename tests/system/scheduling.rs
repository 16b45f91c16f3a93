//! Where pods go, and who leaves for whom: the conformance tests of [sig-scheduling] that only a whole system proves.

use std::process::Stdio;

use crate::harness::{Cluster, PROA, Part, eventually};

/// Hollow nodes beside the real one.
fn hollow(cluster: &Cluster, count: u32) -> Part {
    let mut command = cluster.namespace.command(PROA);
    command.args(["agent", "--node-name", "pretend", "--hollow", &count.to_string()]);
    command.arg("--kubeconfig").arg(cluster.kubeconfig());
    let part = Part(command.stderr(Stdio::inherit()).spawn().expect("proa agent starts"));
    let nodes = ["get", "nodes", "-l", "proa.dev/hollow=pretend", "--no-headers"];
    eventually("the hollow nodes are ready", || {
        (cluster.kubectl(&nodes).lines().filter(|line| line.contains(" Ready ")).count() == count as usize)
            .then_some(())
    });
    part
}

fn asks(name: &str, class: &str, boats: u32, more: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}{more}}}
spec:
  priorityClassName: {class}
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: main, image: 'example/echo:v1', resources: {{requests: {{scheduling.k8s.io/boats: {boats}}}, limits: {{scheduling.k8s.io/boats: {boats}}}}}}}
"
    )
}

/// [sig-scheduling] SchedulerPreemption: basic preemption works; lower priority pod preemption by critical pod; the pod
/// disruption condition is added to the preempted pod; PriorityClass endpoints.
#[test]
fn the_less_important_leaves_told_why_and_the_more_important_gets_its_place() {
    let cluster = Cluster::up();
    let added = r#"{"status": {"capacity": {"scheduling.k8s.io/boats": "2"}}}"#;
    cluster.kubectl(&["patch", "node", "node-1", "--subresource=status", "--type=merge", "-p", added]);
    // What others add to a node's capacity its agent offers.
    cluster.wait_for("node/node-1", ".status.allocatable.scheduling\\.k8s\\.io/boats", "2");
    for (name, value) in [("low", "1"), ("high", "1000")] {
        cluster.kubectl(&["create", "priorityclass", name, &format!("--value={value}")]);
    }
    cluster.kubectl(&["patch", "priorityclass", "low", "-p", r#"{"description": "not much"}"#]);
    let refused = cluster.kubectl_fails(&["patch", "priorityclass", "low", "-p", r#"{"value": 5}"#]);
    assert!(refused.contains("may not be changed in an update"), "{refused}");

    cluster.apply(&asks("victim", "low", 2, ", finalizers: [example.com/test]"));
    cluster.wait_for("pod/victim", ".status.phase", "Running");
    cluster.apply(&asks("preemptor", "high", 2, ""));
    let condition = ".status.conditions[?(@.type==\"DisruptionTarget\")]";
    cluster.wait_for("pod/victim", &format!("{condition}.reason"), "PreemptionByScheduler");
    let told = ["get", "pod", "victim", "-o", &format!("jsonpath={{{condition}.message}}")].map(str::to_owned);
    let told = cluster.kubectl(&told.each_ref().map(String::as_str));
    assert_eq!(told, "default-scheduler: preempting to accommodate a higher priority pod");
    cluster.wait_for("pod/preemptor", ".status.phase", "Running");
    assert_eq!(
        cluster.kubectl(&["get", "pod", "preemptor", "-o", "jsonpath={.status.nominatedNodeName}{.spec.nodeName}"]),
        "node-1node-1"
    );
    let events =
        cluster.kubectl(&["get", "events", "--field-selector=reason=Preempted", "-o", "jsonpath={.items[*].message}"]);
    assert!(events.contains(" on node node-1"), "{events}");
    // It was asked to go, not torn out: what holds its object is kept.
    cluster.kubectl(&["patch", "pod", "victim", "--type=merge", "-p", r#"{"metadata": {"finalizers": null}}"#]);
    cluster.kubectl(&["wait", "pod/victim", "--for=delete", "--timeout=30s"]);

    // An equal waits, and is told all of it in one sentence.
    cluster.apply(&asks("equal", "high", 1, ""));
    let scheduled = ".status.conditions[?(@.type==\"PodScheduled\")].message";
    cluster.wait_for(
        "pod/equal",
        scheduled,
        "0/1 nodes are available: 1 Insufficient scheduling.k8s.io/boats. \
         preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
    );
    let critical = asks("critical", "system-node-critical", 2, ", namespace: kube-system");
    cluster.apply(&critical);
    cluster.kubectl(&[
        "-n",
        "kube-system",
        "wait",
        "pod/critical",
        "--for=jsonpath={.status.phase}=Running",
        "--timeout=60s",
    ]);
    cluster.kubectl(&["wait", "pod/preemptor", "--for=delete", "--timeout=30s"]);
    cluster.assert_nothing_was_forbidden();
}

#[test]
fn pods_spread_keep_apart_and_stay_together_over_hollow_nodes() {
    let cluster = Cluster::prepared();
    let config = cluster.scratch().join("scheduler.yaml");
    let file = "
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: packer
  plugins: {score: {disabled: [{name: '*'}], enabled: [{name: NodeResourcesFit}]}}
  pluginConfig:
  - name: NodeResourcesFit
    args: {scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 1}]}}
";
    std::fs::write(&config, file).expect("the configuration is written");
    let mut cluster = cluster;
    cluster.start(&["--scheduler-config", config.to_str().expect("a path")]);
    let _hollow = hollow(&cluster, 3);
    let deployment = |name: &str, replicas: u32, spec: &str| {
        format!(
            "
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      nodeSelector: {{proa.dev/hollow: pretend}}
      containers: [{{name: main, image: pause, resources: {{requests: {{cpu: 100m}}}}}}]
{spec}"
        )
    };
    let term = |app: &str| {
        format!("[{{topologyKey: kubernetes.io/hostname, labelSelector: {{matchLabels: {{app: {app}}}}}}}]")
    };
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    cluster.apply(&[
        deployment("spread", 6, "      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: spread}}}]\n"),
        deployment("apart", 4, &format!("      affinity: {{podAntiAffinity: {{{required}: {}}}}}\n", term("apart"))),
        deployment("together", 4, &format!("      affinity: {{podAffinity: {{{required}: {}}}}}\n", term("together"))),
    ].concat());
    let rolled_out = |name: &str| {
        cluster.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"]);
    };
    ["spread", "together"].into_iter().for_each(rolled_out);
    // Once the others are there one node is the fullest, and stays so.
    cluster.apply(&deployment("packed", 4, "      schedulerName: packer\n"));
    rolled_out("packed");
    let nodes = |app: &str| {
        let nodes =
            cluster.kubectl(&["get", "pods", "-l", &format!("app={app}"), "-o", "jsonpath={.items[*].spec.nodeName}"]);
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        nodes.split_whitespace().for_each(|node| *counts.entry(node.to_owned()).or_default() += 1);
        counts.into_values().collect::<Vec<_>>()
    };
    assert_eq!(nodes("spread"), [2, 2, 2]);
    assert_eq!(nodes("together"), [4]);
    assert_eq!(nodes("packed"), [4]);
    eventually("three of four are apart", || (nodes("apart") == [1, 1, 1]).then_some(()));
    let pending =
        cluster.kubectl(&["get", "pods", "-l", "app=apart", "--field-selector=status.phase=Pending", "-o", "name"]);
    cluster.wait_for(
        pending.trim(),
        ".status.conditions[?(@.type==\"PodScheduled\")].message",
        "0/4 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, \
         3 node(s) didn't match pod anti-affinity rules. preemption: 0/4 nodes are available: \
         1 Preemption is not helpful for scheduling, 3 No preemption victims found for incoming pod.",
    );
    // A hollow pod goes when it is told to, and one that does not restart succeeds.
    cluster.kubectl(&["delete", "deployment", "apart", "--cascade=foreground", "--timeout=60s"]);
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  nodeSelector: {proa.dev/hollow: pretend}
  containers: [{name: main, image: pause}]
",
    );
    cluster.wait_for("pod/once", ".status.phase", "Succeeded");
}
