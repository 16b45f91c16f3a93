//! Two nodes and the overlay between them. The second node lives in a namespace that the first one's machine routes to.

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::SocketAddr;

use common::{Node, cidr, config, inside, ip, machine, serve};
use proa_network::{NetConfig, Peer, PodNetRequest, PodNetwork};

#[test]
fn pods_of_two_nodes_reach_each_other_under_their_own_addresses() {
    machine(|| async {
        let first = Node::new();
        // The wire: a routed pair from 192.168.7.1 (here) to 192.168.7.2 (the second node).
        let wire = NetConfig {
            state_dir: first.dir.path().join("wire"),
            instance: "wire".into(),
            pod_cidr: cidr("192.168.7.0/24"),
            cluster_cidr: cidr("192.168.7.0/24"),
            service_cidr: None,
            ..config(first.dir.path())
        };
        let wires = PodNetwork::open(wire.clone()).unwrap();
        let there = wires.setup("second", PodNetRequest::default()).await.unwrap();
        let second = inside(&there.netns, || {
            let dir = tempfile::tempdir().unwrap();
            let config = NetConfig { pod_cidr: cidr("10.244.1.0/24"), ..config(dir.path()) };
            Node::with(dir, config)
        });
        let to_second = Peer { node: ip("192.168.7.2"), pod_cidr: cidr("10.244.1.0/24") };
        let to_first = Peer { node: ip("192.168.7.1"), pod_cidr: cidr("10.244.0.0/24") };
        let gone = Peer { node: ip("192.168.7.3"), pod_cidr: cidr("10.244.2.0/24") };
        first.pods.set_peers(ip("192.168.7.1"), vec![gone, to_second]).await.unwrap();
        second.pods.set_peers(ip("192.168.7.2"), vec![to_first]).await.unwrap();

        let (a, b) = (first.pod("a").await, second.pod("b").await);
        let target = SocketAddr::new(b.ip, 8080);
        let _server = serve::echo(Some(&b.netns), "b", target);
        assert_eq!(serve::ask(Some(&a.netns), target).unwrap(), ("b".into(), a.ip));
        assert_eq!(serve::ask(None, target).unwrap().1, first.pods.node_address(), "from the first node itself");

        // More than any packet holds, both ways: sizes are worked out along the path.
        let sink = inside(&b.netns, move || std::net::TcpListener::bind((b.ip, 9000)).unwrap());
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = sink.accept().unwrap();
            let mut all = vec![0; 1 << 20];
            stream.read_exact(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let mut stream = serve::connect(Some(&a.netns), SocketAddr::new(b.ip, 9000)).unwrap();
        let sent: Vec<u8> = (0..1 << 20).map(|i: u32| i as u8).collect();
        stream.write_all(&sent).unwrap();
        let mut back = vec![0; sent.len()];
        stream.read_exact(&mut back).unwrap();
        echo.join().unwrap();
        assert!(sent == back);

        // A restart and a peer less: what stays is not interrupted, and a sweep does not take the overlay for a leak.
        let mut kept = serve::connect(Some(&a.netns), target).unwrap();
        let again = PodNetwork::open(first.config.clone()).unwrap();
        again.set_peers(ip("192.168.7.1"), vec![to_second]).await.unwrap();
        again.sweep(&BTreeSet::from(["a".to_owned()])).await.unwrap();
        assert_eq!(serve::say(&mut kept).unwrap().0, "b");
        let routes = || std::fs::read_to_string("/proc/thread-self/net/route").unwrap();
        assert!(routes().contains("0001F40A") && !routes().contains("0002F40A"), "{}", routes());
        again.set_peers(ip("192.168.7.1"), vec![]).await.unwrap();
        assert!(!routes().contains("0001F40A"));

        inside(&there.netns, move || drop(second));
        proa_network::reset(&wire.state_dir, &wire.instance).unwrap();
    });
}
