//! Pods with names of their own and pods of every node, rolled out and back by stock kubectl.

use crate::harness::{Cluster, eventually};

const DATABASE: &str = "
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, annotations: {kubernetes.io/change-cause: first}}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: test/busybox:1
        command: [sh, -c, 'hostname > /data/index.html && exec httpd -f -p 8080 -h /data']
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
";

fn uid(cluster: &Cluster, pod: &str) -> String {
    cluster.kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"])
}

#[test]
fn a_stateful_set_keeps_names_and_data_and_does_not_wait_for_a_bad_revision_when_it_goes_back() {
    let cluster = Cluster::up();
    cluster.load_busybox();
    assert!(!cluster.apply(DATABASE).contains("Warning"));
    let rollout = |arguments: &[&str]| cluster.kubectl(&[&["rollout"], arguments, &["statefulset/db"]].concat());
    assert!(rollout(&["status", "--timeout=60s"]).contains("roll out complete"));
    let shown = cluster.kubectl(&["get", "sts", "db", "--no-headers"]);
    assert_eq!(shown.split_whitespace().take(2).collect::<Vec<_>>(), ["db", "2/2"]);

    // Each is known to the other by its name.
    let ask = |from: &str, to: &str| {
        let url = format!("http://{to}.db.default.svc.cluster.local:8080/");
        eventually("a pod answers by its name", || {
            let answer = cluster.try_kubectl(&["exec", from, "--", "timeout", "2", "wget", "-q", "-O", "-", &url]);
            answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).trim().to_owned())
        })
    };
    assert_eq!((ask("db-0", "db-1"), ask("db-1", "db-0")), ("db-1".to_owned(), "db-0".to_owned()));

    // What a pod wrote is there for the next one of its name, which has the same one.
    cluster.kubectl(&["exec", "db-1", "--", "sh", "-c", "echo kept > /data/diary"]);
    let before = uid(&cluster, "db-1");
    cluster.kubectl(&["delete", "pod", "db-1"]);
    rollout(&["status", "--timeout=60s"]);
    assert_ne!(uid(&cluster, "db-1"), before);
    assert_eq!(cluster.kubectl(&["exec", "db-1", "--", "cat", "/data/diary"]), "kept\n");
    cluster.kubectl(&["scale", "sts/db", "--replicas=3"]);
    rollout(&["status", "--timeout=60s"]);
    let scale = cluster.kubectl(&["get", "--raw", "/apis/apps/v1/namespaces/default/statefulsets/db/scale"]);
    assert!(scale.contains(r#""replicas":3"#) && scale.contains(r#""selector":"app=db""#), "{scale}");

    // A revision that cannot run stops at the first pod; going back replaces that one at once and no other.
    let (first, second) = (uid(&cluster, "db-0"), uid(&cluster, "db-1"));
    cluster.kubectl(&["set", "image", "sts/db", "main=test/missing:1"]);
    // Not `kubectl wait`: it gives up when it looks between the end of the old pod and its successor.
    let waiting = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
    eventually("the first pod of the revision cannot run", || {
        let shown = cluster.try_kubectl(&["get", "pod", "db-2", "-o", waiting]);
        String::from_utf8_lossy(&shown.stdout).contains("Image").then_some(())
    });
    let history = rollout(&["history"]);
    assert_eq!(history.lines().filter(|line| line.starts_with(['1', '2'])).count(), 2, "{history}");
    assert!(rollout(&["history", "--revision=2"]).contains("test/missing:1"));
    rollout(&["undo"]);
    rollout(&["status", "--timeout=60s"]);
    assert_eq!((uid(&cluster, "db-0"), uid(&cluster, "db-1")), (first, second));
    let image = cluster.kubectl(&["get", "sts", "db", "-o", "jsonpath={.spec.template.spec.containers[0].image}"]);
    assert_eq!(image, "test/busybox:1");
    let revisions =
        cluster.kubectl(&["get", "controllerrevisions", "-l", "app=db", "-o", "jsonpath={.items[*].revision}"]);
    let mut revisions: Vec<&str> = revisions.split(' ').collect();
    revisions.sort_unstable();
    assert_eq!(revisions, ["2", "3"], "the earlier revision came back with a new number");

    cluster.kubectl(&["delete", "sts", "db"]);
    cluster.kubectl(&["wait", "pod", "-l", "app=db", "--for=delete", "--timeout=60s"]);
    eventually("the history goes with its set", || {
        cluster.kubectl(&["get", "controllerrevisions", "-l", "app=db", "-o", "name"]).is_empty().then_some(())
    });
    assert_eq!(
        cluster.kubectl(&["get", "pvc", "-l", "app=db", "-o", "name"]).lines().count(),
        3,
        "claims are retained"
    );
    cluster.assert_nothing_was_forbidden();
}

const AGENT: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  updateStrategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: main, image: 'test/busybox:1', command: [sleep, '1000']}
";

#[test]
fn a_daemon_set_runs_on_a_cordoned_node_too_and_rolls_and_goes_back_with_its_old_pod_beside() {
    let cluster = Cluster::up();
    cluster.load_busybox();
    cluster.kubectl(&["cordon", "node-1"]);
    assert!(!cluster.apply(AGENT).contains("Warning"));
    let rollout = |arguments: &[&str]| cluster.kubectl(&[&["rollout"], arguments, &["daemonset/agent"]].concat());
    assert!(rollout(&["status", "--timeout=60s"]).ends_with("daemon set \"agent\" successfully rolled out\n"));
    let shown = cluster.kubectl(&["get", "ds", "agent", "--no-headers"]);
    assert_eq!(shown.split_whitespace().take(7).collect::<Vec<_>>(), ["agent", "1", "1", "1", "1", "1", "<none>"]);
    let pods = || cluster.kubectl(&["get", "pods", "-l", "app=agent", "-o", "jsonpath={.items[*].metadata.name}"]);
    let first = pods();
    let node = cluster.kubectl(&["get", "pod", &first, "-o", "jsonpath={.spec.nodeName}"]);
    assert_eq!(node, "node-1");

    // A revision that cannot run stays beside the one that does; going back touches nothing that runs.
    cluster.kubectl(&["set", "image", "ds/agent", "main=test/missing:1"]);
    eventually("the new pod is beside the old one", || (pods().split(' ').count() == 2).then_some(()));
    assert!(pods().contains(&first));
    rollout(&["undo"]);
    eventually("the new pod is gone again", || (pods() == first).then_some(()));
    assert!(rollout(&["status", "--timeout=60s"]).contains("successfully rolled out"));
    let history = rollout(&["history"]);
    assert_eq!(history.lines().filter(|line| line.starts_with(['2', '3'])).count(), 2, "{history}");
    assert!(rollout(&["history", "--revision=2"]).contains("test/missing:1"));

    rollout(&["restart"]);
    rollout(&["status", "--timeout=60s"]);
    eventually("the old pod has made way", || {
        (!pods().contains(&first) && pods().split(' ').count() == 1).then_some(())
    });

    // A pod that is taken away comes back, on a node that takes no others.
    cluster.kubectl(&["delete", "pod", &pods()]);
    rollout(&["status", "--timeout=60s"]);
    cluster.kubectl(&["delete", "ds", "agent"]);
    cluster.kubectl(&["wait", "pod", "-l", "app=agent", "--for=delete", "--timeout=60s"]);
    a_history_is_edited_by_hand(&cluster);
    cluster.assert_nothing_was_forbidden();
}

/// Conformance: "ControllerRevision [Serial] should manage the lifecycle of a ControllerRevision".
fn a_history_is_edited_by_hand(cluster: &Cluster) {
    cluster.apply(&AGENT.replace("agent", "kept"));
    let rolled_out = || cluster.kubectl(&["rollout", "status", "daemonset/kept", "--timeout=60s"]);
    rolled_out();
    let revisions = |path: &str| {
        let path = format!("jsonpath={{.items[*].{path}}}");
        let list = cluster.kubectl(&["get", "controllerrevisions", "-l", "app=kept", "-o", &path]);
        list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let [first] = &revisions("metadata.name")[..] else { panic!("one revision") };
    let made = cluster.kubectl(&["get", "controllerrevision", first, "-o", "json"]);
    let mut by_hand: serde_json::Value = serde_json::from_str(&made).expect("an object");
    let kept = ["labels", "ownerReferences"].map(|field| (field.to_owned(), by_hand["metadata"][field].clone()));
    by_hand["metadata"] = serde_json::Value::Object(kept.into_iter().collect());
    by_hand["metadata"]["name"] = "by-hand".into();
    by_hand["revision"] = 2.into();
    cluster.kubectl(&["label", "controllerrevision", first, "first=patched"]);
    cluster.kubectl_stdin(&["create", "-f", "-"], &by_hand.to_string());
    assert_eq!(revisions("metadata.name").len(), 2, "nobody minds two of one template");
    cluster.kubectl(&["delete", "controllerrevision", "-l", "first=patched"]);
    assert_eq!(revisions("metadata.name"), ["by-hand"]);
    cluster.kubectl(&["label", "controllerrevision", "by-hand", "by-hand=updated"]);
    let patch = r#"{"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}"#;
    cluster.kubectl(&["patch", "daemonset", "kept", "-p", patch]);
    rolled_out();
    assert_eq!(revisions("metadata.name").len(), 2);
    let by_hand = "/apis/apps/v1/namespaces/default/controllerrevisions?labelSelector=by-hand%3Dupdated";
    cluster.kubectl(&["delete", "--raw", by_hand]);
    assert_eq!(revisions("revision"), ["3"], "counted on from the one made by hand");
    cluster.kubectl(&["delete", "ds", "kept", "--timeout=30s"]);
}
