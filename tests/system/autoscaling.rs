//! Figures and autoscaling with nothing added: what `kubectl top` shows is what containers use, and what an autoscaler
//! decides stays decided when its target goes back.

use crate::harness::{Cluster, eventually, kubectls};

/// One process that never rests, held to twice what it asks for.
const BUSY: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: busy}
spec:
  selector: {matchLabels: {app: busy}}
  template:
    metadata: {labels: {app: busy}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: spin
          image: test/busybox:1
          command: [sh, -c, "while :; do :; done"]
          resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {cpu: 100m, memory: 64Mi}}
"#;

/// Anything with a scale subresource can be a target.
const FLEET: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: fleets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: fleets, singular: fleet, kind: Fleet}
  versions:
    - name: v1
      served: true
      storage: true
      subresources:
        status: {}
        scale: {specReplicasPath: .spec.boats, statusReplicasPath: .status.boats, labelSelectorPath: .status.selector}
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec: {type: object, properties: {boats: {type: integer}}}
            status: {type: object, properties: {boats: {type: integer}, selector: {type: string}}}
"#;

#[test]
fn an_autoscaler_follows_the_load_and_its_size_survives_going_back() {
    let cluster = Cluster::up();
    cluster.load_busybox();
    cluster.apply(BUSY);
    cluster.apply(FLEET);
    cluster.kubectl(&["rollout", "status", "deployment/busy", "--timeout=60s"]);
    let kubectls = kubectls();
    for kubectl in [kubectls.first(), kubectls.last()].into_iter().flatten() {
        let top = |arguments: &[&str]| {
            let output = cluster.command_of(kubectl, arguments).output().expect("kubectl runs");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        // A tenth of a processor, give or take: its limit.
        eventually("the pod's use is known", || {
            let said = top(&["top", "pods", "--containers", "-l", "app=busy", "--no-headers"]);
            let fields: Vec<&str> = said.split_whitespace().collect();
            let [_, "spin", cpu, memory] = fields.as_slice() else { return None };
            let used: u32 = cpu.strip_suffix('m')?.parse().ok()?;
            ((60..=140).contains(&used) && memory.ends_with("Mi")).then_some(())
        });
        let nodes = top(&["top", "nodes", "--no-headers"]);
        assert!(nodes.starts_with("node-1") && nodes.contains('%') && !nodes.contains("<unknown>"), "{nodes}");
    }
    let raw = cluster.kubectl(&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods"]);
    let list: serde_json::Value = serde_json::from_str(&raw).expect("JSON");
    assert_eq!(
        (&list["kind"], list["items"][0]["containers"][0]["name"].as_str()),
        (&"PodMetricsList".into(), Some("spin"))
    );

    cluster.kubectl(&["autoscale", "deployment/busy", "--min=1", "--max=3", "--cpu-percent=50"]);
    let replicas = || cluster.kubectl(&["get", "deployment", "busy", "-o", "jsonpath={.spec.replicas}"]);
    let grown = std::time::Instant::now();
    while replicas() != "3" {
        assert!(grown.elapsed().as_secs() < 60, "{}", cluster.kubectl(&["describe", "hpa", "busy"]));
        cluster.kubectl(&["wait", "deployment/busy", "--for=jsonpath={.spec.replicas}=3", "--timeout=60s"]);
    }
    let described = cluster.kubectl(&["describe", "hpa", "busy"]);
    for expected in [
        "ValidMetricFound",
        "SuccessfulRescale",
        "TooManyReplicas",
        "cpu resource utilization (percentage of request) above target",
    ] {
        assert!(described.contains(expected), "{expected}:\n{described}");
    }
    let shown = cluster.kubectl(&["get", "hpa", "busy", "--no-headers"]);
    assert!(shown.contains("Deployment/busy") && shown.contains("%/50%"), "{shown}");
    cluster.kubectl(&["rollout", "status", "deployment/busy", "--timeout=60s"]);

    // Going back is about the template: how many there are is the autoscaler's to say.
    cluster.kubectl(&["set", "env", "deployment/busy", "RELEASE=2"]);
    cluster.kubectl(&["rollout", "status", "deployment/busy", "--timeout=60s"]);
    cluster.kubectl(&["rollout", "undo", "deployment/busy"]);
    cluster.kubectl(&["rollout", "status", "deployment/busy", "--timeout=60s"]);
    let back = cluster.kubectl(&[
        "get",
        "deployment",
        "busy",
        "-o",
        "jsonpath={.spec.replicas} {.spec.template.spec.containers[0].env}",
    ]);
    assert_eq!(back, "3 ");
    let applied = cluster.apply(BUSY);
    assert!(applied.contains("unchanged"), "the manifest says nothing of replicas: {applied}");
    assert_eq!(replicas(), "3");

    // By itself too, from a revision whose pods never get ready.
    cluster.kubectl(&["annotate", "deployment/busy", "proa.dev/rollback=on-failure"]);
    let unready = r#"{"spec": {"progressDeadlineSeconds": 5, "template": {"spec": {"containers": [
        {"name": "spin", "readinessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1}}]}}}}"#;
    cluster.kubectl(&["patch", "deployment", "busy", "-p", unready]);
    cluster.kubectl(&["wait", "deployment/busy", "--for=condition=RolledBack", "--timeout=60s"]);
    let why = "jsonpath={.status.conditions[?(@.type==\"RolledBack\")].message}";
    let why = cluster.kubectl(&["get", "deployment", "busy", "-o", why]);
    assert!(why.contains("ProgressDeadlineExceeded"), "{why}");
    cluster.kubectl(&["rollout", "status", "deployment/busy", "--timeout=60s"]);
    assert_eq!(replicas(), "3");

    cluster.kubectl(&["wait", "crd/fleets.example.com", "--for=condition=Established", "--timeout=30s"]);
    cluster.apply("{apiVersion: example.com/v1, kind: Fleet, metadata: {name: f}, spec: {boats: 1}}");
    let target = "{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: f}, spec: {minReplicas: 4, maxReplicas: 9, scaleTargetRef: {apiVersion: example.com/v1, kind: Fleet, name: f}}}";
    cluster.apply(target);
    cluster.kubectl(&["wait", "fleet/f", "--for=jsonpath={.spec.boats}=4", "--timeout=60s"]);
    cluster.assert_nothing_was_forbidden();
}
