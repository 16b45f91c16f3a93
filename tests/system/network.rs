//! Services, names and packets between pods.

use std::net::UdpSocket;
use std::time::Duration;

use crate::harness::{Cluster, Namespace, eventually};

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
    let mut pods: Vec<String> =
        exec("for i in $(seq 40); do wget -q -O - http://web/; done").lines().map(str::to_owned).collect();
    pods.sort();
    pods.dedup();
    assert_eq!(pods.len(), 2, "both pods are reached: {pods:?}");

    let node: std::net::SocketAddr = "127.0.0.1:30081".parse().expect("an address");
    assert_eq!(eventually("the node port answers", || cluster.get(node, "/healthz").ok()).0, 200);

    let addresses = exec("nslookup each.default.svc.cluster.local | grep -c '^Address.*10\\.244\\.'");
    assert_eq!(addresses.trim(), "2", "a headless service names its pods");
    // A namespace without a Service: its node has to learn of it all the same.
    assert!(exec("nslookup 10-244-0-9.kube-public.pod.cluster.local").contains("10.244.0.9"));
    let missing = cluster.try_kubectl(&["exec", "box", "--", "nslookup", "absent.default.svc.cluster.local"]);
    assert!(!missing.status.success());

    // Endpoints follow the pods.
    cluster.kubectl(&["scale", "deployment", "web", "--replicas=0"]);
    eventually("nobody answers any more", || cluster.get(node, "/").is_err().then_some(()));
    let slices = "jsonpath={.items[*].endpoints}";
    eventually("the slice is empty", || {
        let endpoints =
            cluster.kubectl(&["get", "endpointslices", "-l", "kubernetes.io/service-name=web", "-o", slices]);
        (endpoints.is_empty() || endpoints == "[]").then_some(())
    });
    cluster.assert_nothing_was_forbidden();
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
        let output = cluster.try_kubectl(&[
            "exec",
            "self",
            "-c",
            "box",
            "--",
            "timeout",
            "2",
            "wget",
            "-q",
            "-O",
            "-",
            "http://self.default/",
        ]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    assert!(hairpin.contains("pod=self"), "{hairpin}");
    let links = cluster.kubectl(&["exec", "host", "--", "ls", "/sys/class/net"]);
    assert!(links.contains("lo"), "{links}");
    let status = cluster.kubectl(&["get", "pod", "host", "-o", "jsonpath={.status.podIP} {.status.hostIP}"]);
    let (pod, host) = status.split_once(' ').expect("two addresses");
    assert_eq!(pod, host);
}

#[test]
fn pods_reach_the_world_as_their_node_and_the_world_reaches_node_ports_and_udp_services_answer() {
    let cluster = Cluster::up();
    cluster.load_busybox();
    let world = World::beside(&cluster);
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: box, labels: {app: box}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: 'example/echo:v1', ports: [{containerPort: 8080, hostPort: 8089}]}
  - {name: box, image: 'test/busybox:1', command: [sleep, '3600']}
---
apiVersion: v1
kind: Service
metadata: {name: box}
spec: {type: NodePort, selector: {app: box}, ports: [{port: 80, targetPort: 8080, nodePort: 30082}]}
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {ports: [{port: 69, protocol: UDP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: far-1, labels: {kubernetes.io/service-name: far}}
addressType: IPv4
ports: [{name: '', port: 6900, protocol: UDP}]
endpoints: [{addresses: [10.99.0.2]}]
",
    );
    cluster.kubectl(&["wait", "pod/box", "--for=condition=Ready", "--timeout=30s"]);
    // From inside, with the node's address as the source; and back, over a node port and a host port.
    let (fetched, seen) = world.fetch_through(&cluster, "tftp -g -l /tmp/file -r any 10.99.0.2 6900; cat /tmp/file");
    assert_eq!((fetched.as_str(), seen.as_str()), ("from the world", "10.99.0.1"));
    let (fetched, _) = world.fetch_through(&cluster, "tftp -g -l /tmp/other -r any far.default 69; cat /tmp/other");
    assert_eq!(fetched, "from the world", "a UDP service without a selector");
    for port in [30082, 8089] {
        let node: std::net::SocketAddr = format!("10.99.0.1:{port}").parse().expect("an address");
        let (status, body) =
            eventually("the node answers the world", || world.0.enter(|| crate::harness::get(node, "/")).ok());
        assert!(status == 200 && body.contains("pod=box"), "{status} {body}");
    }
}

/// A network namespace that plays the internet: 10.99.0.2, where the cluster's node is 10.99.0.1.
struct World(Namespace);

impl World {
    fn beside(cluster: &Cluster) -> World {
        let world = Namespace::new();
        let mut anchor = world.command("/bin/busybox").args(["sleep", "60"]).spawn().expect("busybox runs");
        let pid = anchor.id().to_string();
        let ip = |namespace: &Namespace, arguments: &str| {
            let status = namespace.command("/bin/busybox").arg("ip").args(arguments.split(' ')).status();
            assert!(status.expect("busybox runs").success(), "ip {arguments}");
        };
        ip(&cluster.namespace, "link add out0 type veth");
        ip(&cluster.namespace, &format!("link set veth0 netns {pid}"));
        ip(&cluster.namespace, "addr add 10.99.0.1/24 dev out0");
        ip(&cluster.namespace, "link set out0 up");
        ip(&world, "addr add 10.99.0.2/24 dev veth0");
        ip(&world, "link set veth0 up");
        anchor.kill().expect("busybox runs");
        anchor.wait().expect("busybox ends");
        World(world)
    }

    /// Runs a TFTP client in the pod `box` against a server of one packet out here: what the client printed, and whom the
    /// server saw.
    fn fetch_through(&self, cluster: &Cluster, command: &str) -> (String, String) {
        let server = self.0.enter(|| UdpSocket::bind("10.99.0.2:6900").expect("a socket"));
        server.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        std::thread::scope(|scope| {
            let client = scope.spawn(|| cluster.kubectl(&["exec", "box", "-c", "box", "--", "sh", "-c", command]));
            let (_, from) = server.recv_from(&mut [0; 512]).expect("a request");
            // RFC 1350: DATA (3), block 1; a short block is the last.
            server.send_to(b"\0\x03\0\x01from the world", from).expect("the answer is sent");
            (client.join().expect("the client"), from.ip().to_string())
        })
    }
}
