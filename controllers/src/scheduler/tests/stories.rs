//! Single pods and a few nodes: what Kubernetes' filters, scores and queue promise.

use super::world::*;
use crate::scheduler::{Configuration, core::Core};
use serde_json::{Value, json};

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
        assert_eq!(said(&mut cluster(&nodes, &[]), &pod("p", cpu, extra)), expected);
    }
}

#[test]
fn a_tolerated_taint_is_no_obstacle_and_a_soft_one_only_a_dislike() {
    let tolerant = json!({"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}});
    assert_eq!(said(&mut cluster(&[node("a", taint("k", "NoSchedule"))], &[]), &pod("p", "1", tolerant)), "a");
    let soft = [node("a", taint("k", "PreferNoSchedule")), node("b", json!({}))];
    assert_eq!(said(&mut cluster(&soft, &[]), &pod("p", "1", json!({}))), "b");
    assert_eq!(said(&mut cluster(&soft[..1], &[]), &pod("p", "1", json!({}))), "a");
    let cordoned = json!({"spec": {"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}});
    let daemon = json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}]}});
    assert_eq!(said(&mut cluster(&[node("a", cordoned)], &[]), &pod("p", "1", daemon)), "a");
}

#[test]
fn preferred_affinity_outweighs_a_little_load() {
    let prefers = json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 50, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}]}}}});
    let nodes = [
        node("big", json!({"status": {"allocatable": {"cpu": "8"}}})),
        node("ssd", json!({"metadata": {"labels": {"disk": "ssd"}}})),
    ];
    assert_eq!(said(&mut cluster(&nodes, &[]), &pod("p", "500m", prefers)), "ssd");
    assert_eq!(said(&mut cluster(&nodes, &[]), &pod("p", "500m", json!({}))), "big");
}

#[test]
fn an_image_that_is_there_draws_the_pod() {
    let nodes = [
        node("without", json!({})),
        node("with", json!({"status": {"images": [{"names": ["i:latest"], "sizeBytes": 900 << 20}]}})),
    ];
    for i in 0..20 {
        assert_eq!(said(&mut cluster(&nodes, &[]), &pod(&format!("p{i}"), "100m", json!({}))), "with");
    }
}

#[test]
fn pods_spread_over_equal_nodes() {
    let mut core = core(&["a", "b", "c"].map(|name| node(name, json!({}))));
    (0..12).for_each(|i| tell(&mut core, &pod(&format!("p{i}"), "100m", json!({})), MS(0)));
    assert_eq!(placed(&mut core, MS(0)).into_values().collect::<Vec<_>>(), [4, 4, 4]);
}

#[test]
fn a_pod_waits_for_the_node_and_goes_there_at_once() {
    let mut core = core(&[]);
    tell(&mut core, &pod("p", "1", json!({})), MS(0));
    assert_eq!(next(&mut core, MS(0)).unwrap(), "p: no nodes available to schedule pods");
    core.node_changed("a", Some(&node("a", taint("node.kubernetes.io/not-ready", "NoSchedule"))), MS(100));
    assert_eq!(
        next(&mut core, MS(100)).unwrap(),
        "p: 0/1 nodes are available: 1 node(s) had untolerated taint(s). \
         preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
    );
    core.node_changed("a", Some(&node("a", json!({}))), MS(300));
    assert_eq!(next(&mut core, MS(300)).unwrap(), "p to a");
    assert_eq!(next(&mut core, MS(300)), None);
}

#[test]
fn our_own_condition_does_not_wake_a_pod_and_a_lifted_gate_does() {
    let mut core = core(&[]);
    tell(&mut core, &pod("p", "1", json!({"spec": {"schedulingGates": [{"name": "wait"}]}})), MS(0));
    assert_eq!(next(&mut core, MS(0)), None);
    tell(&mut core, &pod("p", "1", json!({})), MS(10));
    assert_eq!(next(&mut core, MS(10)).unwrap(), "p: no nodes available to schedule pods");
    let condition = json!({"type": "PodScheduled", "status": "False"});
    tell(&mut core, &pod("p", "1", json!({"status": {"conditions": [condition]}})), MS(20));
    assert_eq!(next(&mut core, MS(5000)), None);
}

#[test]
fn what_is_decided_counts_before_it_is_seen_and_no_longer_after_it_failed() {
    let mut core = core(&[node("a", json!({}))]);
    let first = pod("first", "2", json!({}));
    tell(&mut core, &first, MS(0));
    tell(&mut core, &pod("second", "2", json!({})), MS(0));
    assert_eq!(next(&mut core, MS(0)).unwrap(), "first to a");
    assert!(next(&mut core, MS(0)).unwrap().starts_with("second: 0/1 nodes are available: 1 Insufficient cpu."));
    core.binding_failed(&first, MS(1));
    assert!(next(&mut core, MS(25)).unwrap().ends_with(" to a"));
}

#[test]
fn a_binding_that_is_never_seen_is_not_believed_for_ever() {
    let mut core = core(&[node("a", json!({}))]);
    let first = pod("first", "2", json!({}));
    tell(&mut core, &first, MS(0));
    assert_eq!(next(&mut core, MS(0)).unwrap(), "first to a");
    core.bound(&first, MS(5));
    assert_eq!(next(&mut core, MS(200_000)), None);
    let doubted = core.wakes_at().expect("a doubt");
    assert_eq!(doubted, MS(300_005));
    assert_eq!(next(&mut core, doubted).unwrap(), "first to a");
}

#[test]
fn a_pod_that_ends_makes_room_for_the_one_that_waits() {
    let mut core = core(&[node("a", json!({}))]);
    let at = |phase: &str| pod("first", "2", json!({"spec": {"nodeName": "a"}, "status": {"phase": phase}}));
    tell(&mut core, &at("Running"), MS(0));
    tell(&mut core, &pod("second", "2", json!({})), MS(0));
    assert!(next(&mut core, MS(0)).unwrap().starts_with("second: "));
    tell(&mut core, &at("Succeeded"), MS(50));
    assert_eq!(next(&mut core, MS(50)).unwrap(), "second to a");
}

#[test]
fn a_pod_seen_bound_frees_nothing_and_wakes_no_one() {
    let mut core = core(&[node("a", json!({}))]);
    tell(&mut core, &pod("first", "2", json!({})), MS(0));
    tell(&mut core, &pod("second", "2", json!({})), MS(0));
    assert_eq!(next(&mut core, MS(0)).unwrap(), "first to a");
    assert!(next(&mut core, MS(0)).unwrap().starts_with("second: "));
    tell(&mut core, &on("a", "first", "2", json!({})), MS(10));
    assert_eq!(next(&mut core, MS(9_000)), None);
    // A resize that is not enough wakes nobody either: hints ask the node.
    let resized = |generation: u32, cpu: &str| on("a", "first", cpu, json!({"metadata": {"generation": generation}}));
    tell(&mut core, &resized(2, "1m"), MS(9_000));
    assert_eq!(next(&mut core, MS(9_000)), None);
    tell(&mut core, &resized(3, "0"), MS(9_500));
    assert_eq!(next(&mut core, MS(9_500)).unwrap(), "second to a");
    core.check();
}

#[test]
fn two_pods_do_not_get_the_same_host_port() {
    let port = |ip: &str, protocol: &str| {
        let port = json!({"containerPort": 80, "hostPort": 8080, "hostIP": ip, "protocol": protocol});
        json!({"spec": {"containers": [{"name": "c", "ports": [port]}]}})
    };
    let mut core = core(&[node("a", json!({}))]);
    let mut goes = |name: &str, extra: Value| {
        tell(&mut core, &pod(name, "1m", extra), MS(0));
        next(&mut core, MS(0)).unwrap().ends_with(" to a")
    };
    assert!(goes("one", port("127.0.0.1", "TCP")));
    assert!(goes("two", port("127.0.0.2", "TCP")));
    assert!(!goes("three", port("127.0.0.1", "TCP")));
    assert!(!goes("any", port("", "TCP")));
    assert!(goes("udp", port("127.0.0.1", "UDP")));
}

/// [sig-scheduling] SchedulerPredicates validates that there exists conflict between pods with same hostPort and protocol
/// but one using 0.0.0.0 hostIP.
#[test]
fn a_port_of_every_address_conflicts_with_the_same_port_of_one() {
    let with = |ip: &str| {
        let port = json!({"containerPort": 8080, "hostPort": 54322, "hostIP": ip, "protocol": "TCP"});
        json!({"spec": {"containers": [{"name": "c", "ports": [port]}]}})
    };
    let mut nodes = cluster(&[node("a", json!({}))], &[on("a", "pod4", "1m", with("0.0.0.0"))]);
    assert_eq!(
        said(&mut nodes, &pod("pod5", "1m", with("127.0.0.1"))),
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
    );
}

/// [sig-scheduling] SchedulerPredicates validates resource limits of pods that are allowed to run.
#[test]
fn what_a_node_has_left_is_given_and_not_one_thousandth_more() {
    let mut nodes = cluster(&[node("a", json!({}))], &[on("a", "filler", "1400m", json!({}))]);
    assert_eq!(said(&mut nodes, &pod("fits", "600m", json!({}))), "a");
    assert_eq!(said(&mut nodes, &pod("additional", "601m", json!({}))), "0/1 nodes are available: 1 Insufficient cpu.");
    let asks = |amount: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"example.com/foo": amount}}}]}});
    let has = json!({"status": {"allocatable": {"example.com/foo": "5"}}});
    let mut nodes = cluster(&[node("a", has)], &[on("a", "holder", "1m", asks("3"))]);
    assert_eq!(said(&mut nodes, &pod("fits", "1m", asks("2"))), "a");
    assert_eq!(
        said(&mut nodes, &pod("not", "1m", asks("3"))),
        "0/1 nodes are available: 1 Insufficient example.com/foo."
    );
}

/// [sig-scheduling] SchedulerPredicates validates that NodeSelector is respected if matching; … if not matching.
#[test]
fn a_node_selector_is_respected_whether_it_matches_or_not() {
    let nodes = [node("a", json!({})), node("b", labelled("kubernetes.io/e2e", "42"))];
    let selects = |value: &str| json!({"spec": {"nodeSelector": {"kubernetes.io/e2e": value}}});
    assert_eq!(said(&mut cluster(&nodes, &[]), &pod("p", "1m", selects("42"))), "b");
    assert_eq!(
        said(&mut cluster(&nodes, &[]), &pod("p", "1m", selects("nonempty"))),
        "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
    );
}

#[test]
fn a_pod_that_names_its_nodes_is_told_of_those_alone() {
    let nodes =
        [node("a", json!({})), node("b", json!({})), node("full", json!({"status": {"allocatable": {"cpu": "0"}}}))];
    let field = json!({"key": "metadata.name", "operator": "In", "values": ["full"]});
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [field]}]}}});
    assert_eq!(
        said(&mut cluster(&nodes, &[]), &pod("daemon", "1", json!({"spec": {"affinity": affinity}}))),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]."
    );
}

#[test]
fn large_clusters_are_looked_at_in_part_and_in_turn() {
    let nodes: Vec<_> = (0..1000).map(|i| zoned(&format!("n{i:04}"), &format!("z{}", i % 3))).collect();
    let mut core = core(&nodes);
    (0..1000).for_each(|i| tell(&mut core, &pod(&format!("p{i}"), "1", json!({})), MS(0)));
    let counts = placed(&mut core, MS(0));
    assert_eq!(counts.values().sum::<usize>(), 1000);
    assert!(counts.len() > 900, "nearly every node got one: {}", counts.len());
}

#[test]
fn the_more_important_pod_goes_first() {
    let mut core = core(&[node("a", json!({}))]);
    tell(&mut core, &pod("low", "2", json!({})), MS(0));
    tell(&mut core, &pod("high", "2", json!({"spec": {"priority": 10}})), MS(0));
    assert_eq!(next(&mut core, MS(0)).unwrap(), "high to a");
}

#[test]
fn a_pod_is_decided_by_the_profile_it_names_and_by_no_other() {
    let file = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration", "profiles": [
        {"schedulerName": "default-scheduler"},
        {"schedulerName": "packer", "pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy":
            {"type": "MostAllocated", "resources": [{"name": "cpu", "weight": 1}]}}}],
         "plugins": {"score": {"disabled": [{"name": "NodeResourcesBalancedAllocation"}]}}}]});
    let mut core = Core::new(&Configuration::from_value(&file).unwrap());
    for name in ["a", "b"] {
        core.node_changed(name, Some(&node(name, json!({}))), MS(0));
    }
    tell(&mut core, &on("a", "there", "500m", json!({})), MS(0));
    let named = |name: &str| json!({"spec": {"schedulerName": name}});
    tell(&mut core, &pod("packed", "100m", named("packer")), MS(0));
    assert_eq!(next(&mut core, MS(0)).unwrap(), "packed to a");
    tell(&mut core, &pod("spread", "100m", json!({})), MS(0));
    assert_eq!(next(&mut core, MS(0)).unwrap(), "spread to b");
    tell(&mut core, &pod("elsewhere", "100m", named("somebody-else")), MS(0));
    assert_eq!(next(&mut core, MS(0)), None);
}
