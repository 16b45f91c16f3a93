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
    apply(&cluster, &[], &shop("v3", "again").replace("example/echo:v3", "example/echo:v2"));
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
