//! Stories and laws of placing pods, without a server.

use super::{
    core::{Core, Step},
    *,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn node(name: &str, extra: Value) -> Node {
    let mut node = json!({
        "metadata": {"name": name},
        "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}},
    });
    merge(&mut node, extra);
    serde_json::from_value(node).unwrap()
}

fn pod(name: &str, cpu: &str, extra: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]},
    });
    merge(&mut pod, extra);
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn info(nodes: &[Node]) -> Vec<NodeInfo> {
    let made = nodes.iter().map(|node| {
        let mut info = NodeInfo::unknown(&node.name_any());
        info.update(node);
        info
    });
    made.collect()
}

fn said(pod: &Arc<Pod>, nodes: &[Node]) -> String {
    match decide(&PodInfo::of(pod.clone()), info(nodes).iter()) {
        Decision::Node(name) => name.to_string(),
        Decision::Nowhere(nowhere) => nowhere.to_string(),
    }
}

fn taint(key: &str, effect: &str) -> Value {
    json!({"spec": {"taints": [{"key": key, "effect": effect}]}})
}

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn each_obstacle_is_told_in_kubernetes_words() {
    let small = json!({"status": {"allocatable": {"cpu": "100m"}}});
    let cases = [
        (json!({}), "1", vec![], "no nodes available to schedule pods"),
        (
            json!({}),
            "1",
            vec![node("a", small.clone()), node("b", taint("k", "NoSchedule")), node("c", taint("k", "NoExecute"))],
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s).",
        ),
        (
            json!({}),
            "3",
            vec![node("a", json!({})), node("b", json!({}))],
            "0/2 nodes are available: 2 Insufficient cpu.",
        ),
        (
            json!({"spec": {"nodeSelector": {"disk": "ssd"}}}),
            "1",
            vec![node("a", json!({}))],
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
        ),
        (
            json!({}),
            "1",
            vec![node("a", json!({"spec": {"unschedulable": true}}))],
            "0/1 nodes are available: 1 node(s) were unschedulable.",
        ),
        (
            json!({}),
            "1",
            vec![node("a", json!({"status": {"allocatable": {"pods": "0", "cpu": "100m"}}}))],
            "0/1 nodes are available: 1 Insufficient cpu, 1 Too many pods.",
        ),
        (
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]}}),
            "1",
            vec![node("a", json!({}))],
            "0/1 nodes are available: 1 Insufficient example.com/gpu.",
        ),
    ];
    for (extra, cpu, nodes, expected) in cases {
        assert_eq!(said(&pod("p", cpu, extra), &nodes), expected);
    }
}

#[test]
fn a_tolerated_taint_is_no_obstacle_and_a_soft_one_only_a_dislike() {
    let tolerant = json!({"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}});
    assert_eq!(said(&pod("p", "1", tolerant), &[node("a", taint("k", "NoSchedule"))]), "a");
    let soft = [node("a", taint("k", "PreferNoSchedule")), node("b", json!({}))];
    assert_eq!(said(&pod("p", "1", json!({})), &soft), "b");
    assert_eq!(said(&pod("p", "1", json!({})), &soft[..1]), "a");
    let cordoned = json!({"spec": {"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}});
    let daemon = json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}]}});
    assert_eq!(said(&pod("p", "1", daemon), &[node("a", cordoned)]), "a");
}

#[test]
fn preferred_affinity_outweighs_a_little_load() {
    let prefers = json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 50, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}]}}}});
    let nodes = [
        node("big", json!({"status": {"allocatable": {"cpu": "8"}}})),
        node("ssd", json!({"metadata": {"labels": {"disk": "ssd"}}})),
    ];
    assert_eq!(said(&pod("p", "500m", prefers), &nodes), "ssd");
    assert_eq!(said(&pod("p", "500m", json!({})), &nodes), "big");
}

#[test]
fn an_image_that_is_there_draws_the_pod() {
    let nodes = [
        node("without", json!({})),
        node("with", json!({"status": {"images": [{"names": ["i:latest"], "sizeBytes": 900 << 20}]}})),
    ];
    for i in 0..20 {
        assert_eq!(said(&pod(&format!("p{i}"), "100m", json!({})), &nodes), "with");
    }
}

#[test]
fn pods_spread_over_equal_nodes() {
    let mut core = Core::default();
    for name in ["a", "b", "c"] {
        core.node_changed(name, Some(&node(name, json!({}))), MS(0));
    }
    let mut counts = std::collections::BTreeMap::new();
    for i in 0..12 {
        let pod = pod(&format!("p{i}"), "100m", json!({}));
        core.pod_changed(&Key::of(pod.as_ref()), Some(&pod), MS(0));
        let Some(Step::Bind(_, node)) = core.next(MS(0)) else { panic!() };
        *counts.entry(node).or_insert(0) += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [4, 4, 4]);
}

#[test]
fn a_pod_waits_for_the_node_and_goes_there_at_once() {
    let mut core = Core::default();
    let pod = pod("p", "1", json!({}));
    let key = Key::of(pod.as_ref());
    core.pod_changed(&key, Some(&pod), MS(0));
    let Some(Step::Tell(_, message)) = core.next(MS(0)) else { panic!() };
    assert_eq!(message, "no nodes available to schedule pods");
    core.node_changed("a", Some(&node("a", taint("node.kubernetes.io/not-ready", "NoSchedule"))), MS(100));
    let Some(Step::Tell(_, message)) = core.next(MS(100)) else { panic!() };
    assert_eq!(message, "0/1 nodes are available: 1 node(s) had untolerated taint(s).");
    core.node_changed("a", Some(&node("a", json!({}))), MS(300));
    assert!(matches!(core.next(MS(300)), Some(Step::Bind(_, node)) if &*node == "a"));
    assert!(core.next(MS(300)).is_none());
}

#[test]
fn our_own_condition_does_not_wake_a_pod_and_a_lifted_gate_does() {
    let mut core = Core::default();
    let gated = pod("p", "1", json!({"spec": {"schedulingGates": [{"name": "wait"}]}}));
    let key = Key::of(gated.as_ref());
    core.pod_changed(&key, Some(&gated), MS(0));
    assert!(core.next(MS(0)).is_none());
    let free = pod("p", "1", json!({}));
    core.pod_changed(&key, Some(&free), MS(10));
    assert!(matches!(core.next(MS(10)), Some(Step::Tell(..))));
    let told = pod("p", "1", json!({"status": {"conditions": [{"type": "PodScheduled", "status": "False"}]}}));
    core.pod_changed(&key, Some(&told), MS(20));
    assert!(core.next(MS(5000)).is_none());
}

#[test]
fn what_is_decided_counts_before_it_is_seen_and_no_longer_after_it_failed() {
    let mut core = Core::default();
    core.node_changed("a", Some(&node("a", json!({}))), MS(0));
    let (first, second) = (pod("first", "2", json!({})), pod("second", "2", json!({})));
    for pod in [&first, &second] {
        core.pod_changed(&Key::of(pod.as_ref()), Some(pod), MS(0));
    }
    assert!(matches!(core.next(MS(0)), Some(Step::Bind(pod, _)) if pod.name_any() == "first"));
    assert!(matches!(core.next(MS(0)), Some(Step::Tell(pod, _)) if pod.name_any() == "second"));
    core.binding_failed(&first, MS(1));
    assert!(matches!(core.next(MS(25)), Some(Step::Bind(..))));
}

#[test]
fn a_pod_that_ends_makes_room_for_the_one_that_waits() {
    let mut core = Core::default();
    core.node_changed("a", Some(&node("a", json!({}))), MS(0));
    let on_node = |phase: &str| pod("first", "2", json!({"spec": {"nodeName": "a"}, "status": {"phase": phase}}));
    core.pod_changed(&Key::new("ns", "first"), Some(&on_node("Running")), MS(0));
    let second = pod("second", "2", json!({}));
    core.pod_changed(&Key::of(second.as_ref()), Some(&second), MS(0));
    assert!(matches!(core.next(MS(0)), Some(Step::Tell(..))));
    core.pod_changed(&Key::new("ns", "first"), Some(&on_node("Succeeded")), MS(50));
    assert!(matches!(core.next(MS(50)), Some(Step::Bind(pod, _)) if pod.name_any() == "second"));
}

#[test]
fn a_pod_seen_bound_frees_nothing_and_wakes_no_one() {
    let mut core = Core::default();
    core.node_changed("a", Some(&node("a", json!({}))), MS(0));
    let (first, second) = (pod("first", "2", json!({})), pod("second", "2", json!({})));
    for pod in [&first, &second] {
        core.pod_changed(&Key::of(pod.as_ref()), Some(pod), MS(0));
    }
    assert!(matches!(core.next(MS(0)), Some(Step::Bind(..))));
    assert!(matches!(core.next(MS(0)), Some(Step::Tell(..))));
    let bound = pod("first", "2", json!({"spec": {"nodeName": "a"}}));
    core.pod_changed(&Key::of(bound.as_ref()), Some(&bound), MS(10));
    assert!(core.next(MS(9_000)).is_none());
    let smaller = pod("first", "1m", json!({"metadata": {"generation": 2}, "spec": {"nodeName": "a"}}));
    core.pod_changed(&Key::of(smaller.as_ref()), Some(&smaller), MS(9_000));
    // A resize is looked at: it may be enough, here it is not.
    assert!(matches!(core.next(MS(9_000)), Some(Step::Tell(..))));
    core.pod_changed(&Key::of(smaller.as_ref()), None, MS(10_000));
    assert!(matches!(core.next(MS(10_000)), Some(Step::Bind(..))));
    core.check();
}

#[test]
fn two_pods_do_not_get_the_same_host_port() {
    let port = |ip: &str| json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": ip}]}]}});
    let mut core = Core::default();
    core.node_changed("a", Some(&node("a", json!({}))), MS(0));
    let mut place = |name: &str, extra: Value| {
        let pod = pod(name, "1m", extra);
        core.pod_changed(&Key::of(pod.as_ref()), Some(&pod), MS(0));
        matches!(core.next(MS(0)), Some(Step::Bind(..)))
    };
    assert!(place("one", port("127.0.0.1")));
    assert!(place("two", port("127.0.0.2")));
    assert!(!place("three", port("127.0.0.1")));
    assert!(!place("any", port("")));
    let udp = json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}]}]}});
    assert!(place("udp", udp));
}

#[derive(Clone, Debug)]
enum Happening {
    Pod(u8, u8),
    Bound(u8),
    Gone(u8),
    Node(u8, bool),
    Decide,
    Fails(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0..12u8, 1..8u8).prop_map(|(p, cpu)| Happening::Pod(p, cpu)),
        3 => (0..12u8).prop_map(Happening::Bound),
        2 => (0..12u8).prop_map(Happening::Gone),
        1 => (0..3u8, any::<bool>()).prop_map(|(n, there)| Happening::Node(n, there)),
        6 => Just(Happening::Decide),
        1 => (0..12u8).prop_map(Happening::Fails),
    ]
}

proptest! {
    /// Whatever happens in whatever order: what is placed on a node never exceeds what the node has.
    #[test]
    fn a_node_is_never_overcommitted(happenings in proptest::collection::vec(happening(), 0..120)) {
        let mut core = Core::default();
        let mut decided: std::collections::HashMap<u8, (Arc<Pod>, Arc<str>)> = Default::default();
        let mut seen: std::collections::HashMap<u8, Arc<Pod>> = Default::default();
        for (i, happening) in happenings.into_iter().enumerate() {
            let now = MS(i as u64 * 1000);
            match happening {
                Happening::Pod(p, cpu) => if let std::collections::hash_map::Entry::Vacant(free) = seen.entry(p) {
                    let pod = pod(&p.to_string(), &format!("{}m", u32::from(cpu) * 250), json!({"metadata": {"uid": format!("{p}-{i}")}}));
                    core.pod_changed(&Key::of(pod.as_ref()), Some(&pod), now);
                    free.insert(pod);
                },
                Happening::Bound(p) => if let Some((pod, node)) = decided.get(&p) {
                    let mut bound = Pod::clone(pod);
                    bound.spec.node_name = Some(node.to_string());
                    core.pod_changed(&Key::of(&bound), Some(&Arc::new(bound)), now);
                },
                Happening::Gone(p) => if let Some(pod) = seen.remove(&p) {
                    decided.remove(&p);
                    core.pod_changed(&Key::of(pod.as_ref()), None, now);
                },
                Happening::Node(n, there) => {
                    let name = format!("n{n}");
                    let node = node(&name, json!({}));
                    core.node_changed(&name, there.then_some(&node), now);
                }
                Happening::Decide => if let Some(Step::Bind(pod, node)) = core.next(now) {
                    decided.insert(pod.name_any().parse().unwrap(), (pod, node));
                },
                Happening::Fails(p) => if let Some((pod, _)) = decided.get(&p).cloned() {
                    core.binding_failed(&pod, now);
                    // A failure that arrives after the pod was seen bound changes nothing.
                    decided.remove(&p);
                },
            }
            core.check();
        }
    }
}
