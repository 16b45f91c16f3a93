//! Going back by hand, whatever the kind and however long the history.

use crate::harness::{Cluster, eventually};

/// So many revisions are there before the story begins.
const BEFORE: i64 = 254;

/// A Deployment without pods whose template has that value.
fn many(value: i64) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: many}}
spec:
  replicas: 0
  revisionHistoryLimit: 300
  selector: {{matchLabels: {{app: many}}}}
  template:
    metadata: {{labels: {{app: many}}}}
    spec: {{containers: [{{name: echo, image: 'example/echo:v1', env: [{{name: VALUE, value: 'v{value}'}}]}}]}}
"
    )
}

/// The ReplicaSet of an earlier revision, as a Deployment that was deleted with `--cascade=orphan` left it.
fn left_behind(revision: i64) -> String {
    format!(
        "
apiVersion: apps/v1
kind: ReplicaSet
metadata:
  name: many-{revision}
  labels: {{app: many, pod-template-hash: h{revision}}}
  annotations: {{deployment.kubernetes.io/revision: '{revision}'}}
spec:
  replicas: 0
  selector: {{matchLabels: {{app: many, pod-template-hash: h{revision}}}}}
  template:
    metadata: {{labels: {{app: many, pod-template-hash: h{revision}}}}}
    spec: {{containers: [{{name: echo, image: 'example/echo:v1', env: [{{name: VALUE, value: 'v{revision}'}}]}}]}}
"
    )
}

#[test]
fn a_history_of_256_revisions_is_shown_gone_back_in_and_shortened() {
    let cluster = Cluster::up();
    let earlier: Vec<String> = (1..=BEFORE).map(left_behind).collect();
    cluster.kubectl_stdin(&["create", "-f", "-"], &earlier.join("---"));
    let revision = |wanted: i64| {
        let path = ".metadata.annotations.deployment\\.kubernetes\\.io/revision";
        cluster.wait_for("deployment/many", path, &wanted.to_string());
    };
    let value = || {
        let path = "jsonpath={.spec.template.spec.containers[0].env[0].value}";
        cluster.kubectl(&["get", "deployment", "many", "-o", path])
    };
    cluster.apply(&many(BEFORE + 1));
    revision(255);
    cluster.apply(&many(BEFORE + 2));
    revision(256);
    let lines = || {
        let (done, history) = cluster.command_line(&["history", "deployment/many"]);
        assert!(done, "{history}");
        history.lines().count() - 1
    };
    assert_eq!(lines(), 256);
    cluster.kubectl(&["rollout", "undo", "deployment/many", "--to-revision=1"]);
    revision(257);
    assert_eq!(value(), "v1");
    // The undo of the undo, then to one in the middle, and every revision is there still.
    assert_eq!(
        cluster.command_line(&["rollback", "deployment/many"]).1,
        "deployment/many goes back from revision 257 to revision 256\n"
    );
    revision(258);
    assert_eq!(value(), "v256");
    assert!(cluster.command_line(&["rollback", "deployment/many", "--to", "128"]).0);
    revision(259);
    assert_eq!((value(), lines()), ("v128".to_owned(), 256));

    cluster.kubectl(&["patch", "deployment", "many", "-p", r#"{"spec":{"revisionHistoryLimit":3}}"#]);
    eventually("the oldest go", || (lines() == 4).then_some(()));
    let (_, history) = cluster.command_line(&["history", "deployment/many"]);
    let kept: Vec<&str> = history.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(kept, ["255", "257", "258", "259"]);
}
