//! Laws of a daemon set, from any state and in any interleaving, with crashes between writes.

use super::super::nodes;
use super::world::Sim;
use crate::pods;
use kube::ResourceExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    /// The loop runs, and dies after so many writes.
    Loop(usize),
    Nodes(usize),
    Image(u8),
    Bad,
    Delete(u8),
    Fail(u8),
    Unready(u8),
    Join(u8),
    Leave(u8),
    Taint(u8, bool),
}

fn steps(disturbed: bool) -> impl Strategy<Value = Vec<Step>> {
    let calm = prop_oneof![
        6 => (0..6usize).prop_map(Step::Loop),
        4 => (1..4usize).prop_map(Step::Nodes),
        1 => (1..4u8).prop_map(Step::Image),
        1 => Just(Step::Bad),
    ];
    let wild = prop_oneof![
        (0..6u8).prop_map(Step::Delete),
        (0..6u8).prop_map(Step::Fail),
        (0..6u8).prop_map(Step::Unready),
        (0..6u8).prop_map(Step::Join),
        (0..6u8).prop_map(Step::Leave),
        (0..6u8, any::<bool>()).prop_map(|(node, execute)| Step::Taint(node, execute)),
    ];
    let step = if disturbed { prop_oneof![3 => calm.clone(), 1 => wild].boxed() } else { calm.boxed() };
    proptest::collection::vec(step, 0..60)
}

fn take(sim: &mut Sim, step: &Step) {
    let node = |n: &u8| format!("node-{n}");
    match step {
        Step::Loop(writes) => drop(sim.step(*writes)),
        Step::Nodes(most) => drop(sim.nodes(*most)),
        Step::Image(n) => sim.image(&format!("v{n}")),
        Step::Bad => sim.image("bad"),
        Step::Delete(n) => {
            if let Some(pod) = sim.pods().get(usize::from(*n)) {
                sim.mark_deleted(pod);
            }
        }
        Step::Fail(n) => sim.status(&node(n), "Failed", false),
        Step::Unready(n) => sim.status(&node(n), "Running", false),
        Step::Join(n) => {
            if sim.world.raw("nodes", &crate::Key::new("", &node(n))).is_none() {
                sim.join(&node(n), json!({}));
            }
        }
        Step::Leave(n) => sim.leave(&node(n)),
        Step::Taint(n, execute) => {
            let effect = if *execute { "NoExecute" } else { "NoSchedule" };
            sim.edit_node(&node(n), json!({"spec": {"taints": [{"key": "dedicated", "effect": effect}]}}));
        }
    }
    sim.world.pass(1);
}

fn fence() -> impl Strategy<Value = (Value, Value)> {
    let value = || prop_oneof![(1..4i32).prop_map(|n| json!(n)), (1..101i32).prop_map(|n| json!(format!("{n}%")))];
    prop_oneof![value().prop_map(|n| (n, json!(0))), value().prop_map(|n| (json!(0), n))]
}

fn strategy((unavailable, surge): &(Value, Value)) -> Value {
    json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}}}})
}

fn part(value: &Value, total: usize) -> usize {
    match value {
        Value::String(percent) => {
            (total * percent.trim_end_matches('%').parse::<usize>().expect("a number")).div_ceil(100)
        }
        number => usize::try_from(number.as_u64().expect("a number")).expect("small"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn an_update_never_passes_its_surge_and_never_falls_below_its_bound(fence in fence(), total in 1..7usize, steps in steps(false)) {
        let mut sim = Sim::new(total, "v0", strategy(&fence));
        sim.settle();
        let (unavailable, surge) = (part(&fence.0, total), part(&fence.1, total));
        for step in &steps {
            take(&mut sim, step);
            let available = sim.available();
            prop_assert!(available + unavailable >= total, "{available} of {total}, {unavailable} may be missing: {:?}", sim.show());
            let mut per_node: BTreeMap<String, usize> = BTreeMap::new();
            for pod in sim.pods().iter().filter(|pod| pods::is_active(pod)) {
                *per_node.entry(nodes::node_of(pod).expect("a node").to_owned()).or_default() += 1;
            }
            prop_assert!(per_node.values().all(|pods| *pods <= 2));
            let surging = per_node.values().filter(|pods| **pods > 1).count();
            prop_assert!(surging <= surge, "{surging} nodes with two pods, {surge} allowed: {:?}", sim.show());
        }
    }

    #[test]
    fn from_any_state_the_wanted_one_is_reached_and_then_nothing_moves(fence in fence(), total in 0..6usize, steps in steps(true)) {
        let mut sim = Sim::new(total, "v0", strategy(&fence));
        for step in &steps {
            take(&mut sim, step);
        }
        for node in sim.world.list::<proa_crds::Node>("nodes") {
            sim.edit_node(&node.name_any(), json!({"spec": {"taints": null}}));
        }
        sim.image("v9");
        sim.settle();
        let expected: Vec<String> = sim.world.list::<proa_crds::Node>("nodes").iter().map(|node| format!("{} v9", node.name_any())).collect();
        let total = i32::try_from(expected.len()).expect("few");
        prop_assert_eq!(sim.show(), expected);
        let status = sim.set().status.expect("a status");
        prop_assert_eq!((status.desired_number_scheduled, status.number_ready, status.number_misscheduled), (total, total, 0));
        prop_assert_eq!(status.updated_number_scheduled.unwrap_or(0), total);
        prop_assert!(!sim.step(usize::MAX));
    }
}
