//! Releases with the real kubectl: a set of objects goes back as a whole, and history is read as a newcomer reads it.

use crate::harness::{Cluster, eventually, text};

const SET: &str = "--applyset=configmaps/shop";

/// Five objects of an application; one of them is named after the version.
fn shop(version: &str, greeting: &str) -> String {
    format!(
        "
apiVersion: v1
kind: ConfigMap
metadata: {{name: settings}}
data: {{GREETING: {greeting}, {version}: only}}
---
apiVersion: v1
kind: Secret
metadata: {{name: key}}
stringData: {{password: {greeting}-secret}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: echo, image: 'example/echo:{version}', envFrom: [{{configMapRef: {{name: settings}}}}]}}]
---
apiVersion: v1
kind: {kind}
metadata: {{name: only-in-{version}}}
",
        // A kind of its own: the set must learn of it again when it comes back.
        kind = if version == "v1" { "ServiceAccount" } else { "ConfigMap" },
    )
}

fn apply(cluster: &Cluster, more: &[&str], manifest: &str) -> String {
    apply_to(cluster, SET, more, manifest)
}

fn apply_to(cluster: &Cluster, set: &str, more: &[&str], manifest: &str) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("shop.yaml");
    std::fs::write(&file, manifest).expect("the manifest is written");
    let mut arguments = vec!["apply", "--prune", set, "-n", "default"];
    arguments.extend(more);
    arguments.extend(["-f", file.to_str().expect("a path")]);
    let mut kubectl = cluster.kubectl_command(&arguments);
    let output = kubectl.env("KUBECTL_APPLYSET", "true").output().expect("kubectl runs");
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

fn healthy(cluster: &Cluster, revision: &str) {
    cluster.wait_for("release/shop", ".status.revision", revision);
    cluster.kubectl(&["wait", "release/shop", "--for=condition=Ready", "--timeout=60s"]);
}

fn names(cluster: &Cluster) -> String {
    cluster.kubectl(&[
        "get",
        "configmaps,secrets,services,serviceaccounts,deployments",
        "-l",
        "applyset.kubernetes.io/part-of",
        "-o",
        "jsonpath={.items[*].metadata.name}",
    ])
}

fn data(cluster: &Cluster) -> String {
    cluster.kubectl(&["get", "configmap", "settings", "-o", "jsonpath={.data}"])
}

#[test]
fn a_release_of_five_objects_goes_back_as_a_whole_and_the_next_apply_says_what_its_manifest_says() {
    let cluster = Cluster::up();
    apply(&cluster, &[], &shop("v1", "hello"));
    healthy(&cluster, "1");
    apply(&cluster, &[], &shop("v2", "goodbye"));
    healthy(&cluster, "2");
    assert_eq!(names(&cluster), "only-in-v2 settings key web web");

    // First it shows what it would change, and changes nothing.
    let (done, said) = cluster.command_line(&["rollback", "release/shop", "--dry-run"]);
    assert!(done, "{said}");
    let expected = "\
release/shop: from revision 2 to revision 1
  create serviceaccount/only-in-v1
  change configmap/settings
    .data.GREETING: \"goodbye\" -> \"hello\"
    .data.v1: (none) -> \"only\"
    .data.v2: \"only\" -> (none)
  change secret/key
    .data.password: \"<14 bytes>\" -> \"<12 bytes, changed>\"
  change deployment.apps/web
    .spec.template.spec.containers[name=echo].image: \"example/echo:v2\" -> \"example/echo:v1\"
  remove configmap/only-in-v2
";
    assert_eq!(said, expected);
    assert!(data(&cluster).contains("goodbye"));

    let (done, said) = cluster.command_line(&["rollback", "release/shop"]);
    assert!(done && said.ends_with("went back to revision 1, which is now revision 3\n"), "{said}");
    healthy(&cluster, "3");
    assert_eq!(names(&cluster), "settings key web only-in-v1 web");
    assert_eq!(data(&cluster), r#"{"GREETING":"hello","v1":"only"}"#);
    let image = ["get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0].image}"];
    assert_eq!(cluster.kubectl(&image), "example/echo:v1");
    let managers = cluster.kubectl(&["get", "cm,secret,sa,svc,deploy", "-o", "yaml", "--show-managed-fields"]);
    assert!(!managers.contains("manager: proa-release"), "whoever went back owns nothing: {managers}");

    // The record of the last apply went back too: what came back and is not in the next manifest goes.
    // A template that never was: the copy of its configuration follows what is live from the start.
    apply(&cluster, &[], &shop("v3", "again").replace("example/echo:v3'", "example/echo:v2', imagePullPolicy: Never"));
    healthy(&cluster, "4");
    assert_eq!(data(&cluster), r#"{"GREETING":"again","v3":"only"}"#);
    assert_eq!(names(&cluster), "only-in-v3 settings key web web", "the set prunes what came back with the release");

    // History and differences, as a newcomer reads them.
    let (_, history) = cluster.command_line(&["history", "release/shop"]);
    let lines: Vec<&str> = history.lines().collect();
    assert!(lines[0].starts_with("REVISION  WHEN ") && lines.len() == 5, "{history}");
    assert!(lines[1].contains("example/echo:v1") && lines[1].ends_with("healthy"), "{history}");
    assert!(lines[3].contains("rolled back to revision 1"), "{history}");
    assert!(lines[4].contains("kubernetes-admin (kubectl") && lines[4].ends_with("healthy, current"), "{history}");
    let (_, diff) = cluster.command_line(&["diff", "release/shop", "1", "2"]);
    assert!(diff.contains("-  GREETING: hello\n") && diff.contains("+  GREETING: goodbye\n"), "{diff}");
    assert!(!diff.contains("hello-secret") && !diff.contains("goodbye-secret"), "{diff}");
    let (_, diff) = cluster.command_line(&["diff", "release/shop", "1", "2", "--show-secrets"]);
    assert!(diff.contains("-  password: hello-secret\n+  password: goodbye-secret\n"), "{diff}");
    let (_, history) = cluster.command_line(&["history", "deployment/web", "-o", "json"]);
    assert!(history.contains("\"name\": \"configmap/settings\"") && history.contains("kubernetes-admin"), "{history}");
    let (_, diff) = cluster.command_line(&["diff", "deployment/web", "3", "4"]);
    assert!(diff.contains("-GREETING: hello\n") && diff.contains("+GREETING: again\n"), "{diff}");
    cluster.assert_nothing_was_forbidden();
}

#[test]
fn a_release_applied_server_side_goes_back_by_itself_when_a_member_fails_and_stays_refused() {
    let cluster = Cluster::up();
    // For the release, and for the Deployment in it: a crash loop is found at once.
    cluster.kubectl(&["annotate", "namespace/default", "proa.dev/rollback=on-failure"]);
    let apply = |manifest: &str| apply(&cluster, &["--server-side"], manifest);
    apply(&shop("v1", "hello"));
    healthy(&cluster, "1");
    let broken = shop("v2", "broken").replace("example/echo:v2", "example/echo:broken");
    apply(&broken);
    cluster.kubectl(&["wait", "release/shop", "--for=condition=RolledBack", "--timeout=60s"]);
    cluster.kubectl(&["wait", "release/shop", "--for=condition=Ready", "--timeout=60s"]);
    assert_eq!(data(&cluster), r#"{"GREETING":"hello","v1":"only"}"#, "not only the Deployment went back");
    assert_eq!(names(&cluster), "settings key web only-in-v1 web");
    let (_, history) = cluster.command_line(&["history", "release/shop"]);
    assert!(history.contains("failed (CrashLoop)") && history.contains("broken on purpose"), "{history}");

    // A pipeline applies the same again.
    apply(&broken);
    eventually("it is taken back again", || (data(&cluster) == r#"{"GREETING":"hello","v1":"only"}"#).then_some(()));
    // Server-side apply needs no force after all this: its manager owns what it did with that revision.
    apply(&shop("v1", "mended"));
    eventually("the next manifest holds", || data(&cluster).contains("mended").then_some(()));
    cluster.kubectl(&["wait", "release/shop", "--for=condition=Ready", "--timeout=60s"]);
    assert_eq!(data(&cluster), r#"{"GREETING":"mended","v1":"only"}"#);
    cluster.assert_nothing_was_forbidden();
}

/// Two objects of an application, without a Deployment: nothing has to roll.
fn notes(value: &str) -> String {
    let note = |name: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{part: notes}}}}\ndata: {{A: {value}}}\n"
        )
    };
    format!("{}---\n{}", note("one"), note("two"))
}

const BY_LABEL_AND_BY_NAME: &str = "
apiVersion: proa.dev/v1
kind: Release
metadata: {name: labelled}
spec: {members: {selector: {matchLabels: {part: notes}}}}
---
apiVersion: proa.dev/v1
kind: Release
metadata: {name: listed}
spec: {members: {objects: [{apiVersion: v1, kind: ConfigMap, name: one}]}}
---
apiVersion: proa.dev/v1
kind: Release
metadata: {name: own}
";

#[test]
fn a_release_is_chosen_by_label_or_by_name_or_is_the_set_itself_and_force_takes_what_is_in_the_way() {
    let cluster = Cluster::up();
    let ready = |release: &str, revision: &str| {
        let release = format!("release/{release}");
        cluster.wait_for(&release, ".status.revision", revision);
        cluster.kubectl(&["wait", &release, "--for=condition=Ready", "--timeout=60s"]);
    };
    let value = |name: &str| cluster.kubectl(&["get", "configmap", name, "-o", "jsonpath={.data.A}"]);
    cluster.apply(BY_LABEL_AND_BY_NAME);
    cluster.apply(&notes("first"));
    ["labelled", "listed"].iter().for_each(|release| ready(release, "1"));
    cluster.apply(&notes("second"));
    ["labelled", "listed"].iter().for_each(|release| ready(release, "2"));

    // By name: that one object, and it is told as JSON. By label: all of them.
    let (done, said) = cluster.command_line(&["rollback", "release/listed", "-o", "json"]);
    assert!(done && said.contains("\"object\": \"configmap/one\"") && !said.contains("configmap/two"), "{said}");
    assert_eq!((value("one"), value("two")), ("first".to_owned(), "second".to_owned()));
    ready("labelled", "3");
    let (done, said) = cluster.command_line(&["rollback", "release/labelled", "--to", "1"]);
    assert!(done && said.contains("change configmap/two") && !said.contains("change configmap/one"), "{said}");
    assert_eq!((value("one"), value("two")), ("first".to_owned(), "first".to_owned()));

    // A wish that cannot be granted is refused by the command, and by a condition that stays.
    let (done, said) = cluster.command_line(&["rollback", "release/listed", "--to", "9"]);
    assert!(!done && said.contains("there is no revision 9; its history holds [1, 2, 3]"), "{said}");
    cluster.kubectl(&["patch", "release", "listed", "--type=merge", "-p", r#"{"spec":{"rollbackTo":{"revision":9}}}"#]);
    cluster.kubectl(&["wait", "release/listed", "--for=condition=Stalled", "--timeout=60s"]);
    let listed = |path: &str| cluster.kubectl(&["get", "release", "listed", "-o", &format!("jsonpath={{{path}}}")]);
    eventually("the wish is taken in", || listed(".spec.rollbackTo").is_empty().then_some(()));

    // What cannot be changed in place stands in the way until somebody says so.
    cluster.kubectl(&["patch", "configmap", "one", "--type=merge", "-p", r#"{"data":{"A":"last"},"immutable":true}"#]);
    cluster.wait_for("release/listed", ".status.revision", "4");
    let (done, said) = cluster.command_line(&["rollback", "release/listed"]);
    assert!(!done && said.contains("with --force it is removed and made anew"), "{said}");
    assert_eq!(value("one"), "last");
    let (done, said) = cluster.command_line(&["rollback", "release/listed", "--to", "3", "--force"]);
    assert!(done && said.contains("which is now revision 5"), "{said}");
    assert_eq!(value("one"), "first");

    // Without members it is the parent of an ApplySet, which kubectl takes it for.
    eventually("it says that it is a parent", || {
        let labels = ["get", "release", "own", "-o", "jsonpath={.metadata.labels.applyset\\.kubernetes\\.io/id}"];
        cluster.kubectl(&labels).starts_with("applyset-").then_some(())
    });
    let own = |manifest: &str| apply_to(&cluster, "--applyset=releases.proa.dev/own", &[], manifest);
    own(&notes("third").replace("name: ", "name: my-"));
    ready("own", "1");
    own(&notes("fourth").replace("name: two", "name: three").replace("name: ", "name: my-"));
    ready("own", "2");
    assert!(!cluster.kubectl(&["get", "configmaps", "-o", "name"]).contains("my-two"), "kubectl prunes");
    let (done, said) = cluster.command_line(&["rollback", "release/own"]);
    assert!(done && said.contains("create configmap/my-two") && said.contains("remove configmap/my-three"), "{said}");
    assert_eq!((value("my-one"), value("my-two")), ("third".to_owned(), "third".to_owned()));
    cluster.assert_nothing_was_forbidden();
}
