//! The pod network with real packets, in namespaces the tests make.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use common::{Node, at, config, inside, ip, machine, serve};
use proa_network::netlink::Socket;
use proa_network::{PodNetRequest, PodNetwork};

#[test]
fn pods_reach_each_other_and_the_host_both_ways() {
    machine(|| async {
        let node = Node::new();
        let (a, b) = (node.pod("a").await, node.pod("b").await);
        let _server = serve::echo(Some(&b.netns), "b", at(&format!("{}:8080", b.ip)));
        let _host = serve::echo(None, "host", at("10.244.0.1:8080"));

        let (name, seen) = serve::ask(Some(&a.netns), at(&format!("{}:8080", b.ip))).unwrap();
        assert_eq!((name.as_str(), seen), ("b", a.ip), "TCP from pod to pod keeps the source");
        let udp = serve::udp(Some(&a.netns));
        assert_eq!(serve::ask_udp(&udp, at(&format!("{}:8080", b.ip))).unwrap(), ("b".into(), a.ip));

        let (name, seen) = serve::ask(None, at(&format!("{}:8080", b.ip))).unwrap();
        assert_eq!((name.as_str(), seen), ("b", node.pods.node_address()), "host to pod");
        let (name, seen) = serve::ask(Some(&a.netns), at("10.244.0.1:8080")).unwrap();
        assert_eq!((name.as_str(), seen), ("host", a.ip), "pod to host");
    });
}

#[test]
fn a_pod_reaches_itself_by_loopback_and_by_its_address() {
    machine(|| async {
        let node = Node::new();
        let a = node.pod("a").await;
        let _server = serve::echo(Some(&a.netns), "a", at("0.0.0.0:8080"));
        assert_eq!(serve::ask(Some(&a.netns), at("127.0.0.1:8080")).unwrap().0, "a");
        assert_eq!(serve::ask(Some(&a.netns), at(&format!("{}:8080", a.ip))).unwrap().0, "a");
    });
}

#[test]
fn the_first_packet_to_a_new_pod_arrives() {
    machine(|| async {
        let node = Node::new();
        let sender = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        for i in 0..50 {
            let pod = node.pod(&format!("pod-{i}")).await;
            // Nothing is in between: no other packet, no moment to settle.
            sender.send_to(b"hello", (pod.ip, 9)).unwrap();
            let received = inside(&pod.netns, || {
                let deadline = Instant::now() + std::time::Duration::from_secs(5);
                while received_packets("eth0") == 0 && Instant::now() < deadline {
                    std::thread::yield_now();
                }
                received_packets("eth0")
            });
            assert_eq!(received, 1, "pod {i}");
        }
    });
}

/// How many packets an interface of this thread's namespace has received.
fn received_packets(interface: &str) -> u64 {
    let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = devices.lines().find_map(|l| l.trim().strip_prefix(interface)?.strip_prefix(':')).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn setting_up_twice_gives_the_same_network_even_after_a_restart() {
    machine(|| async {
        let node = Node::new();
        let first = node.pod("a").await;
        let inode = |p: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(p).unwrap());
        let namespace = inode(&first.netns);
        assert_eq!(node.pod("a").await, first);
        let again = PodNetwork::open(node.config.clone()).unwrap();
        assert_eq!(again.setup("a", PodNetRequest::default()).await.unwrap(), first);
        assert_eq!(again.list().await.unwrap(), vec![first.clone()]);
        assert_eq!(inode(&first.netns), namespace, "the namespace was not replaced under running containers");
    });
}

#[test]
fn a_crash_half_way_is_finished_by_setting_up_again() {
    machine(|| async {
        let node = Node::new();
        let whole = node.pod("a").await;
        let claim = node.config.state_dir.join("addresses").join(whole.ip.to_string());
        let server = |ip| at(&format!("{ip}:8080"));
        // What a crash leaves: a claim that was never completed, beside any part of the rest.
        let damages: [fn(&proa_network::PodNet); 3] = [
            |_| {},
            |net| nix::mount::umount2(&net.netns, nix::mount::MntFlags::MNT_DETACH).unwrap(),
            |net| {
                nix::mount::umount2(&net.netns, nix::mount::MntFlags::MNT_DETACH).unwrap();
                std::fs::remove_file(&net.netns).unwrap();
            },
        ];
        for damage in damages {
            std::fs::write(&claim, "a\n").unwrap();
            damage(&whole);
            let after = PodNetwork::open(node.config.clone()).unwrap();
            assert!(after.list().await.unwrap().is_empty(), "what is half made is not listed");
            let net = after.setup("a", PodNetRequest::default()).await.unwrap();
            assert_eq!(net, whole);
            let _server = serve::echo(Some(&net.netns), "a", server(net.ip));
            assert_eq!(serve::ask(None, server(net.ip)).unwrap().0, "a");
        }
    });
}

#[test]
fn teardown_leaves_nothing_and_may_be_repeated() {
    machine(|| async {
        let node = Node::new();
        let before = interfaces();
        let a = node.pod("a").await;
        assert_ne!(interfaces(), before);
        for _ in 0..2 {
            node.pods.teardown("a").await.unwrap();
            assert_eq!(interfaces(), before);
            assert!(!a.netns.exists());
            assert!(node.pods.list().await.unwrap().is_empty());
        }
        node.pods.teardown("never-was").await.unwrap();
        assert_ne!(node.pod("b").await.ip, a.ip, "an address is not given out again at once");
    });
}

#[test]
fn a_sweep_removes_what_nobody_knows_and_nothing_else() {
    machine(|| async {
        let node = Node::new();
        let kept = node.pod("kept").await;
        node.pod("lost").await;
        // An interface whose claim and pin are gone already.
        let orphan = node.pod("orphan").await;
        nix::mount::umount2(&orphan.netns, nix::mount::MntFlags::MNT_DETACH).unwrap();
        let namespace_alive = std::fs::File::open(&kept.netns).unwrap();
        std::fs::remove_file(&orphan.netns).unwrap();
        std::fs::remove_file(node.config.state_dir.join("addresses").join(orphan.ip.to_string())).unwrap();

        let after = PodNetwork::open(node.config.clone()).unwrap();
        let swept = after.sweep(&BTreeSet::from(["kept".to_owned()])).await.unwrap();
        assert_eq!(swept.sandboxes, ["lost"]);
        assert_eq!(after.list().await.unwrap(), vec![kept.clone()]);
        assert!(interfaces().contains(&kept.interface));
        assert_eq!(interfaces().len(), 2, "lo and one pod: {:?}", interfaces());
        drop(namespace_alive);
    });
}

#[test]
fn reset_leaves_the_machine_as_it_was_found() {
    machine(|| async {
        // A namespace whose `lo` was never up has not even 127.0.0.1: let it have been up once.
        drop(Node::new());
        let dir = tempfile::tempdir().unwrap();
        let before = snapshot(dir.path());
        let node = Node::at(dir);
        node.pods.add_local_address(ip("10.96.0.10")).await.unwrap();
        node.pod("a").await;
        node.pod("b").await;
        assert_ne!(snapshot(node.dir.path()), before);
        let _listener = std::net::TcpListener::bind("10.96.0.10:53").expect("the node answers at the DNS address");
        for _ in 0..2 {
            proa_network::reset(&node.config.state_dir, &node.config.instance).unwrap();
            assert_eq!(snapshot(node.dir.path()), before);
            assert!(!node.config.state_dir.exists());
        }
    });
}

#[test]
fn reset_finds_what_is_left_of_an_installation_whose_directory_is_gone() {
    machine(|| async {
        let node = Node::new();
        let before = interfaces();
        node.pod("a").await;
        assert_ne!(interfaces(), before);
        let elsewhere = node.dir.path().join("nothing-here");
        proa_network::reset(&elsewhere, "another").unwrap();
        assert_ne!(interfaces(), before, "another's are left alone");
        proa_network::reset(&elsewhere, &node.config.instance).unwrap();
        assert_eq!(interfaces(), before);
    });
}

#[test]
fn a_failed_setup_leaves_nothing() {
    machine(|| async {
        let node = Node::new();
        let before = interfaces();
        let asked = PodNetRequest { mtu: Some(1), ..PodNetRequest::default() };
        let error = node.pods.setup("a", asked).await.unwrap_err().to_string();
        assert!(error.contains("interface"), "{error}");
        assert_eq!(interfaces(), before);
        assert_eq!(std::fs::read_dir(node.config.state_dir.join("netns")).unwrap().count(), 0);
        assert!(node.pods.setup("../a", PodNetRequest::default()).await.is_err());
    });
}

#[test]
fn two_instances_on_one_machine_do_not_sweep_each_other() {
    machine(|| async {
        let node = Node::new();
        let a = node.pod("a").await;
        let dir = tempfile::tempdir().unwrap();
        let other = proa_network::NetConfig {
            instance: "other".into(),
            pod_cidr: common::cidr("10.245.0.0/24"),
            service_cidr: None,
            ..config(dir.path())
        };
        let pods = PodNetwork::open(other.clone()).unwrap();
        pods.setup("a", PodNetRequest::default()).await.unwrap();
        pods.sweep(&BTreeSet::new()).await.unwrap();
        assert!(interfaces().contains(&a.interface));
        proa_network::reset(&other.state_dir, &other.instance).unwrap();
        assert!(interfaces().contains(&a.interface));
    });
}

#[test]
fn sixteen_pods_at_once_all_get_a_working_network_of_their_own() {
    machine(|| async {
        let node = Node::new();
        let mut tasks = tokio::task::JoinSet::new();
        let begun = Instant::now();
        for pod in 0..16 {
            let pods = node.pods.clone();
            tasks.spawn(async move {
                let begun = Instant::now();
                (pods.setup(&format!("pod-{pod}"), PodNetRequest::default()).await.unwrap(), begun.elapsed())
            });
        }
        let nets = tasks.join_all().await;
        eprintln!("16 in parallel: {:?} in all", begun.elapsed());
        let addresses: BTreeSet<_> = nets.iter().map(|(net, _)| net.ip).collect();
        assert_eq!(addresses.len(), 16);
        for (net, _) in &nets {
            let _server = serve::echo(Some(&net.netns), &net.id, at(&format!("{}:80", net.ip)));
            assert_eq!(serve::ask(None, at(&format!("{}:80", net.ip))).unwrap().0, net.id);
        }
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for (net, _) in nets {
            let pods = node.pods.clone();
            tasks.spawn(async move { pods.teardown(&net.id).await.unwrap() });
        }
        tasks.join_all().await;
        eprintln!("16 torn down in parallel: {:?} in all", begun.elapsed());
        assert_eq!(interfaces().len(), 1);
        let mut alone = Vec::new();
        let mut gone = Vec::new();
        for pod in 0..20 {
            let begun = Instant::now();
            node.pod(&format!("alone-{pod}")).await;
            alone.push(begun.elapsed());
            let begun = Instant::now();
            node.pods.teardown(&format!("alone-{pod}")).await.unwrap();
            gone.push(begun.elapsed());
        }
        alone.sort();
        gone.sort();
        // Removing an interface takes the kernel long: it must not hold up those that come.
        let leaving = node.pods.clone();
        node.pod("leaving-0").await;
        let churn = tokio::spawn(async move {
            for pod in 0..10 {
                leaving.teardown(&format!("leaving-{pod}")).await.unwrap();
                leaving.setup(&format!("leaving-{}", pod + 1), PodNetRequest::default()).await.unwrap();
            }
        });
        let mut busy = Vec::new();
        for pod in 0..20 {
            let begun = Instant::now();
            node.pod(&format!("coming-{pod}")).await;
            busy.push(begun.elapsed());
        }
        busy.sort();
        churn.await.unwrap();
        eprintln!("while others leave: p50 {:?}, p90 {:?}", busy[10], busy[18]);
        eprintln!("one alone: p50 {:?}, p90 {:?}; teardown p50 {:?}", alone[10], alone[18], gone[10]);
    });
}

/// Names of the interfaces of this thread's namespace.
fn interfaces() -> BTreeSet<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    text.lines().skip(2).filter_map(|l| l.split(':').next()).map(|n| n.trim().to_owned()).collect()
}

/// Everything of the machine that the network may touch.
fn snapshot(state_dir: &Path) -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let mut socket = Socket::netfilter().unwrap();
    vec![
        format!("{:?}", interfaces()),
        read("/proc/thread-self/net/route"),
        read("/proc/thread-self/net/fib_trie"),
        read("/proc/sys/net/ipv4/ip_forward"),
        format!("{:?}", proa_network::nft::tables(&mut socket).unwrap()),
        read("/proc/thread-self/mountinfo")
            .lines()
            .filter(|l| l.contains(state_dir.to_str().unwrap()))
            .count()
            .to_string(),
    ]
}

#[test]
fn a_pod_has_a_loopback_and_one_interface() {
    machine(|| async {
        let node = Node::new();
        let a = node.pod("a").await;
        let names = inside(&a.netns, interfaces);
        assert!(names.contains("lo") && names.contains("eth0"), "{names:?}");
        let low =
            inside(&a.netns, || std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap());
        assert_eq!(low.trim(), "0");
    });
}
