//! One type, two families: the custom kinds on a plain API server, driven by the same controllers and the same agent.

use std::process::Stdio;

use crate::harness::{Cluster, Part, eventually, text};

const SETS: &str = "
apiVersion: proa.dev/v1
kind: StatefulSet
metadata: {name: db, annotations: {proa.dev/rollback: on-failure}}
spec:
  replicas: 2
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db, family: custom}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: 'example/echo:v1'}]}
---
apiVersion: proa.dev/v1
kind: DaemonSet
metadata: {name: agent, annotations: {proa.dev/rollback: on-failure}}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent, family: custom}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: 'example/echo:v1'}]}
";

/// The sets of the custom family: a revision that crashes is taken back; then each goes back by hand, and its history says so.
fn goes_back_by_itself_and_by_hand(cluster: &Cluster) {
    const SETS_OF_FAMILY: [&str; 2] = ["statefulset.proa.dev/db", "daemonset.proa.dev/agent"];
    let told = |object: &str, what: &str| {
        eventually("its history tells it", || {
            let (_, history) = cluster.command_line(&["history", object]);
            history.contains(what).then_some(())
        });
    };
    SETS_OF_FAMILY.iter().for_each(|object| told(object, "healthy, current"));
    cluster.apply(&SETS.replace("echo:v1", "echo:v2"));
    SETS_OF_FAMILY.iter().for_each(|object| told(object, "example/echo:v2  -              healthy, current"));
    cluster.apply(&SETS.replace("echo:v1", "echo:broken"));
    for object in SETS_OF_FAMILY {
        cluster.kubectl(&["wait", object, "--for=condition=RolledBack", "--timeout=60s"]);
        told(object, "example/echo:v2      -              healthy, current");
        // Its log is read where Proa's own server serves it.
        let why = "jsonpath={.status.conditions[?(@.type==\"RolledBack\")].message}";
        let said = cluster.kubectl(&["get", object, "-o", why]);
        assert!(said.contains("last log lines:") && said.contains("broken on purpose"), "{said}");
        let name = object.replace(".proa.dev", "");
        let (_, said) = cluster.command_line(&["rollback", object]);
        assert_eq!(said, format!("{name} goes back from revision 4 to revision 1\n"), "the failed one is skipped");
        told(object, "example/echo:v1      -              healthy, current");
    }
}

#[test]
fn a_custom_deployment_rolls_out_and_back_on_a_plain_api_server() {
    let cluster = Cluster::prepared();
    let _server = Part(cluster.proa(&["server"]).stderr(Stdio::inherit()).spawn().expect("proa server starts"));
    eventually("the API server answers", || {
        (cluster.kubeconfig().exists() && cluster.try_kubectl(&["get", "namespaces"]).status.success()).then_some(())
    });
    let crds = cluster.namespace.command(crate::harness::PROA).arg("crds").output().expect("proa crds runs");
    cluster.kubectl_stdin(&["apply", "--server-side", "-f", "-"], &String::from_utf8_lossy(&crds.stdout));
    cluster.kubectl(&[
        "wait",
        "crd/deployments.proa.dev",
        "crd/pods.proa.dev",
        "--for=condition=Established",
        "--timeout=10s",
    ]);

    let kubeconfig = cluster.kubeconfig();
    let kubeconfig = kubeconfig.to_str().expect("a path");
    let controllers = || {
        let mut controllers = cluster.namespace.command(crate::harness::PROA);
        controllers.args(["controllers", "--family", "proa.dev", "--kubeconfig", kubeconfig]);
        Part(controllers.spawn().expect("proa controllers starts"))
    };
    let leader = controllers();
    let lease =
        ["-n", "kube-system", "get", "lease", "proa-controllers-proa.dev", "-o", "jsonpath={.spec.holderIdentity}"];
    eventually("somebody leads", || cluster.try_kubectl(&lease).status.success().then_some(()));
    let holder = cluster.kubectl(&lease);
    let _standby = controllers();
    let mut agent =
        cluster.proa(&["agent", "--family", "proa.dev", "--node-name", "machine", "--kubeconfig", kubeconfig]);
    let _agent = Part(agent.spawn().expect("proa agent starts"));
    eventually("the machine registers", || {
        cluster.try_kubectl(&["get", "nodes.proa.dev", "machine"]).status.success().then_some(())
    });

    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/custom-family.yaml");
    cluster.kubectl(&["apply", "-f", manifest]);
    let available = || cluster.wait_for("deployments.proa.dev/web", ".status.availableReplicas", "2");
    let images = || cluster.kubectl(&["get", "pods.proa.dev", "-o", "jsonpath={.items[*].spec.containers[0].image}"]);
    available();
    assert_eq!(images(), "example/echo:v1 example/echo:v1");
    cluster.apply(SETS);
    cluster.wait_for("statefulsets.proa.dev/db", ".status.availableReplicas", "2");
    cluster.wait_for("daemonsets.proa.dev/agent", ".status.numberAvailable", "1");
    cluster.kubectl(&["get", "pods.proa.dev", "db-0", "db-1"]);
    let raw = |path: &str| cluster.kubectl(&["get", "--raw", &format!("/apis/proa.dev/v1/namespaces/default/{path}")]);
    assert!(raw("pods/db-0/log").contains("listening on 8080"));
    assert!(raw("pods/db-0:8080/proxy/").starts_with("echo v1"));
    assert!(raw("statefulsets/db/scale").contains("\"selector\":\"app=db\""), "an autoscaler finds its pods");
    goes_back_by_itself_and_by_hand(&cluster);
    cluster.kubectl(&["delete", "statefulsets.proa.dev/db", "daemonsets.proa.dev/agent"]);
    eventually("their pods and revisions go with them", || {
        let left = ["get", "pods.proa.dev,controllerrevisions.proa.dev", "-l", "family=custom", "-o", "name"];
        cluster.kubectl(&left).is_empty().then_some(())
    });

    // A Deployment of the family is taken back by itself too.
    let web = ["annotate", "deployments.proa.dev/web", "proa.dev/rollback=on-failure"];
    cluster.kubectl(&web);
    let sample = std::fs::read_to_string(manifest).expect("the sample");
    cluster.apply(&sample.replace("echo:v1", "echo:broken"));
    cluster.kubectl(&["wait", "deployments.proa.dev/web", "--for=condition=RolledBack", "--timeout=60s"]);
    eventually("v1 runs alone", || (images() == "example/echo:v1 example/echo:v1").then_some(()));
    available();

    let second = std::fs::read_to_string(manifest).expect("the sample").replace("echo:v1", "echo:v2");
    cluster.apply(&second);
    eventually("v2 runs", || (images() == "example/echo:v2 example/echo:v2").then_some(()));
    available();

    // The leader dies; whoever stood by goes on.
    assert_eq!(cluster.kubectl(&lease), holder);
    leader.kill();
    let rollback = |arguments: &[&str]| {
        let mut rollback = cluster.namespace.command(crate::harness::PROA);
        let rollback = rollback.args(["rollback", "deployment/web", "--kubeconfig", kubeconfig]).args(arguments);
        let output = rollback.output().expect("proa rollback runs");
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    assert_eq!(rollback(&["--to", "3"]), "deployment/web goes back from revision 4 to revision 3\n");
    eventually("v1 runs again", || (images() == "example/echo:v1 example/echo:v1").then_some(()));
    available();
    assert_ne!(cluster.kubectl(&lease), holder);
    assert_eq!(rollback(&[]), "deployment/web goes back from revision 5 to revision 4\n");
    eventually("v2 runs again", || (images() == "example/echo:v2 example/echo:v2").then_some(()));
    assert_eq!(cluster.kubectl(&["get", "pods", "-o", "name"]), "", "no standard pod was made");

    // Without `-n` the namespace is the kubeconfig's.
    cluster.kubectl(&["config", "set-context", "--current", "--namespace=elsewhere"]);
    let mut elsewhere = cluster.namespace.command(crate::harness::PROA);
    let output = elsewhere.args(["rollback", "deployment/web", "--kubeconfig", kubeconfig]).output().expect("it runs");
    assert_eq!(text(&output), "proa: there is no deployment/web in namespace \"elsewhere\"\n");
    cluster.kubectl(&["config", "set-context", "--current", "--namespace="]);

    let astray = second.replacen("app: web", "app: astray", 1).replacen("app: web", "app: astray", 1);
    let output = cluster.try_kubectl_stdin(&["apply", "-f", "-"], &astray);
    assert!(text(&output).contains("`selector` does not match template `labels`"), "{}", text(&output));

    cluster.kubectl(&["delete", "deployments.proa.dev/web"]);
    eventually("what it made goes with it", || {
        let left = cluster.kubectl(&["get", "replicasets.proa.dev,pods.proa.dev", "-o", "name"]);
        left.is_empty().then_some(())
    });
}
