//! Who leaves for whom.

use super::world::*;
use crate::{Key, scheduler::cluster::Budget};
use serde_json::{Value, json};

fn priority(value: i32) -> Value {
    json!({"spec": {"priority": value}})
}

fn foo(amount: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"scheduling.k8s.io/foo": amount}}}]}})
}

fn one_node() -> [proa_crds::Node; 1] {
    [node("a", json!({"status": {"allocatable": {"scheduling.k8s.io/foo": "5"}}}))]
}

/// [sig-scheduling] SchedulerPreemption validates basic preemption works.
#[test]
fn the_less_important_leaves_for_the_more_important_and_no_more_than_must() {
    let pods =
        [on("a", "low", "1m", and(foo("2"), priority(1))), on("a", "medium", "1m", and(foo("2"), priority(100)))];
    let preemptor = pod("preemptor", "1m", and(foo("3"), priority(1000)));
    assert_eq!(preempted(&mut cluster(&one_node(), &pods), &preemptor), Ok(("a".into(), vec!["low".into()])));
}

/// [sig-scheduling] SchedulerPreemption validates lower priority pod preemption by critical pod.
#[test]
fn a_critical_pod_has_its_way() {
    let pods =
        [on("a", "low", "1m", and(foo("3"), priority(1))), on("a", "medium", "1m", and(foo("2"), priority(100)))];
    let critical = pod("critical", "1m", and(foo("3"), priority(2_000_000_000)));
    assert_eq!(preempted(&mut cluster(&one_node(), &pods), &critical), Ok(("a".into(), vec!["low".into()])));
}

#[test]
fn equals_and_betters_are_never_asked_to_leave() {
    let pods = [on("a", "equal", "2", priority(5)), on("b", "better", "2", priority(6))];
    let nodes = [node("a", json!({})), node("b", json!({})), node("tainted", taint("k", "NoSchedule"))];
    assert_eq!(
        preempted(&mut cluster(&nodes, &pods), &pod("p", "1", priority(5))),
        Err("0/3 nodes are available: 1 Preemption is not helpful for scheduling, \
             2 No preemption victims found for incoming pod."
            .into())
    );
}

#[test]
fn who_never_preempts_waits() {
    let pods = [on("a", "low", "2", priority(1))];
    let polite = pod("p", "1", json!({"spec": {"priority": 10, "preemptionPolicy": "Never"}}));
    let nodes = [node("a", json!({}))];
    let expected = "not eligible due to preemptionPolicy=Never.";
    assert_eq!(preempted(&mut cluster(&nodes, &pods), &polite), Err(expected.into()));
    let mut core = core(&nodes);
    pods.iter().for_each(|pod| tell(&mut core, pod, MS(0)));
    tell(&mut core, &polite, MS(0));
    let message = format!("p: 0/1 nodes are available: 1 Insufficient cpu. preemption: {expected}");
    assert_eq!(next(&mut core, MS(0)).unwrap(), message);
}

fn budget(allowed: i64) -> Budget {
    let selector = serde_json::from_value(json!({"matchLabels": {"app": "db"}})).unwrap();
    Budget { selector: Some(selector), allowed, disrupted: Vec::new() }
}

#[test]
fn budgets_are_kept_where_there_is_a_choice_and_broken_where_there_is_none() {
    let db = || labelled("app", "db");
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let pods = [on("a", "db", "2", and(db(), priority(1))), on("b", "web", "2", priority(2))];
    let preemptor = pod("p", "2", priority(10));
    let key = Key::new("ns", "db");
    let mut there = cluster(&nodes, &pods);
    assert_eq!(preempted(&mut there, &preemptor).unwrap().0, "a", "the less important victim");
    there.budgets.insert(key.clone(), budget(0));
    assert_eq!(preempted(&mut there, &preemptor).unwrap().0, "b", "the budget counts more");
    let mut only = cluster(&nodes[..1], &pods[..1]);
    only.budgets.insert(key.clone(), budget(0));
    assert_eq!(preempted(&mut only, &preemptor).unwrap().0, "a");
    // On one node the protected stay as long as others can go.
    let pods = [on("a", "db", "1", and(db(), priority(1))), on("a", "web", "1", priority(2))];
    let mut both = cluster(&nodes[..1], &pods);
    both.budgets.insert(key, budget(0));
    assert_eq!(preempted(&mut both, &pod("p", "1", priority(10))).unwrap().1, ["web"]);
}

#[test]
fn of_several_nodes_the_one_that_hurts_least_is_taken() {
    let at = |name: &str, start: &str| json!({"metadata": {"name": name}, "status": {"startTime": start}});
    let nodes = ["a", "b"].map(|name| node(name, json!({})));
    let wins = |pods: &[std::sync::Arc<proa_crds::Pod>]| {
        preempted(&mut cluster(&nodes, pods), &pod("p", "2", priority(100))).unwrap().0
    };
    // A less important most important victim; then a smaller sum; then fewer victims; then the younger.
    assert_eq!(wins(&[on("a", "1", "2", priority(9)), on("b", "2", "2", priority(8))]), "b");
    let sums = [
        on("a", "1", "1", priority(9)),
        on("a", "2", "1", priority(5)),
        on("b", "3", "1", priority(9)),
        on("b", "4", "1", priority(1)),
    ];
    assert_eq!(wins(&sums), "b");
    let numbers = [on("a", "1", "1", priority(9)), on("a", "2", "1", priority(-5)), on("b", "3", "2", priority(9))];
    assert_eq!(wins(&numbers), "b");
    let ages = [
        on("a", "1", "2", and(priority(9), at("1", "2026-01-01T00:00:00Z"))),
        on("b", "2", "2", and(priority(9), at("2", "2026-01-02T00:00:00Z"))),
    ];
    assert_eq!(wins(&ages), "b");
}

#[test]
fn the_promised_node_is_kept_for_the_pod_and_nobody_is_asked_twice() {
    let mut core = core(&[node("a", json!({}))]);
    let low = on("a", "low", "2", priority(1));
    tell(&mut core, &low, MS(0));
    let high = pod("high", "2", priority(10));
    tell(&mut core, &high, MS(0));
    assert_eq!(next(&mut core, MS(0)).unwrap(), "high gets a of low");
    // While the victims are being asked, nothing makes the pod ask others.
    let changed = pod("high", "2", and(priority(10), labelled("seen", "again")));
    tell(&mut core, &changed, MS(50));
    assert_eq!(next(&mut core, MS(100)), None);
    // The victim takes its time; the pod is looked at again, for it has changed, and does not ask anew.
    let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    tell(&mut core, &on("a", "low", "2", and(priority(1), leaving)), MS(100));
    core.room_made(&changed, true, MS(500));
    let waits = next(&mut core, MS(500)).unwrap();
    assert!(waits.ends_with("not eligible due to a terminating pod on the nominated node."), "{waits}");
    // A less important one that comes in between does not slip in.
    tell(&mut core, &pod("late", "1", priority(2)), MS(600));
    assert!(next(&mut core, MS(600)).unwrap().starts_with("late: 0/1 nodes are available: 1 Insufficient cpu."));
    core.pod_changed(&Key::new("ns", "low"), None, MS(3000));
    assert_eq!(next(&mut core, MS(3000)).unwrap(), "high to a");
    assert_eq!(next(&mut core, MS(3000)), None, "what was made free for one wakes nobody else");
    core.check();
}

#[test]
fn a_more_important_pod_takes_over_the_promise() {
    let mut core = core(&[node("a", json!({}))]);
    tell(&mut core, &on("a", "low", "2", priority(1)), MS(0));
    tell(&mut core, &pod("high", "2", priority(10)), MS(0));
    assert_eq!(next(&mut core, MS(0)).unwrap(), "high gets a of low");
    tell(&mut core, &pod("higher", "2", priority(20)), MS(10));
    assert_eq!(next(&mut core, MS(10)).unwrap(), "higher gets a of low");
    core.room_made(&pod("higher", "2", priority(20)), true, MS(20));
    core.pod_changed(&Key::new("ns", "low"), None, MS(1000));
    assert_eq!(next(&mut core, MS(1000)).unwrap(), "higher to a");
}

#[test]
fn a_promise_outlives_the_scheduler() {
    let mut core = core(&[node("a", json!({}))]);
    let promised = and(priority(10), json!({"status": {"nominatedNodeName": "a"}}));
    tell(&mut core, &pod("late", "2", priority(5)), MS(0));
    tell(&mut core, &pod("high", "2", promised), MS(0));
    assert_eq!(next(&mut core, MS(0)).unwrap(), "high to a");
}

#[test]
fn anti_affinity_and_spread_are_undone_by_the_right_victims() {
    let apart = json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}});
    let web = || and(labelled("app", "web"), priority(1));
    let nodes = [zoned("a1", "a")];
    let pods = [on("a1", "web", "1m", web()), on("a1", "other", "1m", priority(1))];
    let preemptor = pod("p", "1m", and(apart, priority(10)));
    assert_eq!(preempted(&mut cluster(&nodes, &pods), &preemptor).unwrap().1, ["web"]);
    let spread = json!({"spec": {"topologySpreadConstraints": [{"topologyKey": "zone", "maxSkew": 1,
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
    let nodes =
        [zoned("a1", "a"), node("b1", json!({"metadata": {"labels": {"zone": "b"}}, "spec": {"unschedulable": true}}))];
    let preemptor = pod("p", "1m", and(and(spread, labelled("app", "web")), priority(10)));
    assert_eq!(preempted(&mut cluster(&nodes, &pods), &preemptor).unwrap().1, ["web"]);
}

/// [sig-scheduling] PreemptionExecutionPath runs ReplicaSets to verify preemption running path: priorities 1 to 3 fill the
/// node, priority 4 comes, and the lowest leave first.
#[test]
fn waves_of_rising_priority_push_the_lowest_out() {
    let mut core = core(&one_node());
    for (set, asks) in [(1, "1"), (2, "1"), (3, "2")] {
        tell(&mut core, &pod(&format!("rs-pod{set}"), "1m", and(foo(asks), priority(set))), MS(0));
    }
    assert_eq!(placed(&mut core, MS(0))["a"], 3);
    tell(&mut core, &pod("rs-pod4", "1m", and(foo("3"), priority(4))), MS(10));
    let step = next(&mut core, MS(10)).unwrap();
    assert_eq!(step, "rs-pod4 gets a of rs-pod2, rs-pod1");
}
