//! The parts of the platform, each in a process of its own.

use std::process::Stdio;

use crate::harness::{Cluster, PROA, Part, eventually, text};

fn controllers(cluster: &Cluster) -> Part {
    let mut command = cluster.namespace.command(PROA);
    command.arg("controllers").arg("--kubeconfig").arg(cluster.kubeconfig());
    Part(command.stderr(Stdio::inherit()).spawn().expect("proa controllers starts"))
}

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: echo, image: 'example/echo:v1'}]
";

#[test]
fn three_processes_run_a_deployment_and_losing_the_controllers_loses_nothing() {
    let cluster = Cluster::prepared();
    let _server = Part(cluster.proa(&["server"]).stderr(Stdio::inherit()).spawn().expect("proa server starts"));
    eventually("the API server answers", || {
        (cluster.kubeconfig().exists() && cluster.try_kubectl(&["get", "namespaces"]).status.success()).then_some(())
    });
    let first = controllers(&cluster);
    let kubeconfig = cluster.kubeconfig();
    let kubeconfig = kubeconfig.to_str().expect("a path");
    let agent = cluster.proa(&["agent", "--node-name", "node-1", "--kubeconfig", kubeconfig]).spawn();
    let _agent = Part(agent.expect("proa agent starts"));
    eventually("the default service account exists", || {
        cluster.try_kubectl(&["get", "serviceaccount", "default"]).status.success().then_some(())
    });
    cluster.apply(WEB);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);

    // The agent signed its own certificate: the API server knows it by what the Node says.
    let pin = cluster.kubectl(&[
        "get",
        "node",
        "node-1",
        "-o",
        "jsonpath={.metadata.annotations.proa\\.dev/serving-certificate}",
    ]);
    assert_eq!(pin.len(), 64, "{pin}");
    assert_eq!(
        cluster.kubectl(&["exec", "deployment/web", "--", "/proa", "--version"]).split(' ').next(),
        Some("proa")
    );
    let address = cluster.kubectl(&["get", "pods", "-o", "jsonpath={.items[0].status.podIP}"]);
    let (status, _) =
        cluster.get(format!("{address}:8080").parse().expect("an address"), "/").expect("the pod answers");
    assert_eq!(status, 200);
    let pod = cluster.kubectl(&["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"]);
    eventually("the log says something", || (!cluster.kubectl(&["logs", &pod]).is_empty()).then_some(()));

    // Without controllers what runs goes on, and what is asked for is done once they are back.
    let before = cluster.kubectl(&["get", "pods", "-o", "name"]);
    first.kill();
    cluster.kubectl(&["set", "image", "deployment/web", "echo=example/echo:v2"]);
    cluster.kubectl(&["delete", &format!("pod/{pod}"), "--timeout=30s"]);
    assert_eq!(cluster.kubectl(&["get", "pods", "-o", "name"]).lines().count(), before.lines().count() - 1);
    let _second = controllers(&cluster);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let images = cluster.kubectl(&[
        "get",
        "pods",
        "--field-selector=status.phase=Running",
        "-o",
        "jsonpath={.items[*].spec.containers[0].image}",
    ]);
    assert!(images.split(' ').filter(|image| *image == "example/echo:v2").count() == 2, "{images}");
    let history = cluster.try_kubectl(&["rollout", "history", "deployment/web"]);
    assert!(text(&history).lines().filter(|line| line.starts_with(['1', '2'])).count() == 2, "{}", text(&history));
}
