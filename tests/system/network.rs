//! Services, names and packets between pods.

use crate::harness::{Cluster, eventually};

const TWO_PODS: &str = "
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
      containers: [{name: echo, image: 'example/echo:v1', ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http, nodePort: 30081}]}
---
apiVersion: v1
kind: Service
metadata: {name: each}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'test/busybox:1', command: [sleep, '3600']}]
";

#[test]
fn services_answer_by_address_by_name_and_on_the_node_and_spread_over_their_pods() {
    let cluster = Cluster::up();
    cluster.load_busybox();
    cluster.apply(TWO_PODS);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.kubectl(&["wait", "pod/box", "--for=condition=Ready", "--timeout=30s"]);
    let exec = |command: &str| cluster.kubectl(&["exec", "box", "--", "sh", "-c", command]);

    for url in ["http://web/", "http://web.default/", "http://web.default.svc.cluster.local/", "http://each:8080/"] {
        let answer = eventually(url, || {
            let output = cluster.try_kubectl(&["exec", "box", "--", "timeout", "2", "wget", "-q", "-O", "-", url]);
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        });
        assert!(answer.starts_with("echo v1 pod=web-"), "{url}: {answer}");
    }
    let mut pods: Vec<String> = exec("for i in $(seq 40); do wget -q -O - http://web/; done").lines().map(str::to_owned).collect();
    pods.sort();
    pods.dedup();
    assert_eq!(pods.len(), 2, "both pods are reached: {pods:?}");

    let node: std::net::SocketAddr = "127.0.0.1:30081".parse().expect("an address");
    assert_eq!(eventually("the node port answers", || cluster.get(node, "/healthz").ok()).0, 200);

    let addresses = exec("nslookup each.default.svc.cluster.local | grep -c '^Address.*10\\.'");
    assert_eq!(addresses.trim(), "2", "a headless service names its pods");
    let missing = cluster.try_kubectl(&["exec", "box", "--", "nslookup", "absent.default.svc.cluster.local"]);
    assert!(!missing.status.success());

    // Endpoints follow the pods.
    cluster.kubectl(&["scale", "deployment", "web", "--replicas=0"]);
    eventually("nobody answers any more", || cluster.get(node, "/").is_err().then_some(()));
    let slices = "jsonpath={.items[*].endpoints}";
    eventually("the slice is empty", || {
        let endpoints = cluster.kubectl(&["get", "endpointslices", "-l", "kubernetes.io/service-name=web", "-o", slices]);
        (endpoints.is_empty() || endpoints == "[]").then_some(())
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service_and_the_node_through_the_host_network() {
    let cluster = Cluster::up();
    cluster.load_busybox();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: self, labels: {app: self}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: 'example/echo:v1'}
  - {name: box, image: 'test/busybox:1', command: [sleep, '3600']}
---
apiVersion: v1
kind: Service
metadata: {name: self}
spec: {selector: {app: self}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers: [{name: box, image: 'test/busybox:1', command: [sleep, '3600']}]
",
    );
    cluster.kubectl(&["wait", "pod/self", "pod/host", "--for=condition=Ready", "--timeout=30s"]);
    let hairpin = eventually("a pod reaches itself", || {
        let output = cluster.try_kubectl(&["exec", "self", "-c", "box", "--", "timeout", "2", "wget", "-q", "-O", "-", "http://self.default/"]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    assert!(hairpin.contains("pod=self"), "{hairpin}");
    let links = cluster.kubectl(&["exec", "host", "--", "ls", "/sys/class/net"]);
    assert!(links.contains("lo"), "{links}");
    let status = cluster.kubectl(&["get", "pod", "host", "-o", "jsonpath={.status.podIP} {.status.hostIP}"]);
    let (pod, host) = status.split_once(' ').expect("two addresses");
    assert_eq!(pod, host);
}
