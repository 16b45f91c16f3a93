//! Going back by hand, whatever the kind and however long the history.

use crate::harness::{Cluster, eventually};

/// A StatefulSet `db` and a DaemonSet `log` of echo servers.
fn sets(image: &str) -> String {
    let set = |kind: &str, name: &str, more: &str| {
        format!(
            "
apiVersion: apps/v1
kind: {kind}
metadata: {{name: {name}}}
spec:
  {more}selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: echo
        image: {image}
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
"
        )
    };
    format!("{}---{}", set("StatefulSet", "db", "serviceName: db\n  "), set("DaemonSet", "log", ""))
}

#[test]
fn stateful_sets_and_daemon_sets_go_back_by_hand_as_deployments_do_and_tell_their_history() {
    let cluster = Cluster::up();
    const BOTH: [&str; 2] = ["statefulset/db", "daemonset/log"];
    let each = |work: &dyn Fn(&str)| BOTH.iter().for_each(|object| work(object));
    let field = |object: &str, path: &str| cluster.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")]);
    let image = |object: &str| field(object, ".spec.template.spec.containers[0].image");
    let rolled_out = |object: &str| drop(cluster.kubectl(&["rollout", "status", object, "--timeout=60s"]));
    let result = |object: &str, wanted: &str| {
        eventually("its history tells it", || {
            let (_, history) = cluster.command_line(&["history", object]);
            history.lines().find(|line| line.ends_with(wanted)).map(str::to_owned)
        })
    };
    cluster.apply(&sets("example/echo:v1"));
    each(&rolled_out);
    // Nobody asked for automatic rollback: nothing is judged, and that it is rolled out is said all the same.
    each(&|object| assert!(result(object, "rolled out, current").starts_with("1 ")));
    each(&|object| {
        let (done, said) = cluster.command_line(&["rollback", object]);
        assert!(!done && said.contains("has no earlier revision that is not known to fail"), "{said}");
    });
    cluster.apply(&sets("example/echo:v2"));
    each(&rolled_out);

    // Back, and forth again: an undo of an undo.
    let went = |object: &str, arguments: &[&str], from: i32, to: i32| {
        let (done, said) = cluster.command_line(&[&["rollback", object], arguments].concat());
        assert!(done, "{said}");
        assert_eq!(said, format!("{object} goes back from revision {from} to revision {to}\n"));
        rolled_out(object);
    };
    each(&|object| {
        went(object, &[], 2, 1);
        assert_eq!(image(object), "example/echo:v1");
        let line = result(object, "current");
        assert!(
            line.starts_with("3 ") && line.contains("kubernetes-admin (proa)"),
            "the next number, and whose it is: {line}"
        );
        went(object, &["--to", "2"], 3, 2);
        assert_eq!(image(object), "example/echo:v2");
        let (done, said) = cluster.command_line(&["rollback", object, "--to", "9"]);
        let (kind, name) = object.split_once('/').expect("a kind and a name");
        assert!(!done, "{said}");
        assert_eq!(said, format!("proa: {kind} \"{name}\" has no revision 9; its history holds [3, 4]\n"));
        let (_, said) = cluster.command_line(&["rollback", object, "--to", "4", "-o", "json"]);
        assert!(said.contains("\"unchanged\": true"), "{said}");
    });

    // One that failed is skipped, and refused when it is asked for.
    cluster.kubectl(&["annotate", "namespace/default", "proa.dev/rollback=on-failure"]);
    each(&|object| drop(result(object, "healthy, current")));
    cluster.apply(&sets("example/echo:broken"));
    each(&|object| {
        cluster.kubectl(&["wait", object, "--for=condition=RolledBack", "--timeout=60s"]);
        assert!(result(object, "healthy, current").starts_with("6 "));
        let (_, said) = cluster.command_line(&["rollback", object, "--to", "5"]);
        let command = format!("kubectl annotate {} --overwrite proa.dev/retry=", object.replace('/', " "));
        assert!(said.contains("is known to fail (CrashLoop: ") && said.contains(&command), "{said}");
        rolled_out(object);
        went(object, &[], 6, 3);
        assert_eq!(image(object), "example/echo:v1");
        let (_, history) = cluster.command_line(&["history", object]);
        assert!(history.contains("failed (CrashLoop)") && history.contains("broken on purpose"), "{history}");
        let (_, diff) = cluster.command_line(&["diff", object, "5", "7"]);
        assert!(diff.contains("-    image: example/echo:broken\n+    image: example/echo:v1\n"), "{diff}");
    });
    cluster.assert_nothing_was_forbidden();
}

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
