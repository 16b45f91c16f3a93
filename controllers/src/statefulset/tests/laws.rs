//! Laws of a stateful set, from any state and in any interleaving, with crashes between writes.

use super::world::{Sim, image_of};
use crate::pods;
use proa_crds::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

#[derive(Clone, Debug)]
enum Step {
    /// The loop runs, and dies after so many writes.
    Loop(usize),
    Nodes(usize),
    Image(u8),
    Bad,
    Scale(i32),
    Start(i32),
    Partition(i32),
    Delete(u8),
    Fail(u8),
    Unready(u8),
}

fn steps(disturbed: bool) -> impl Strategy<Value = Vec<Step>> {
    let calm = prop_oneof![
        6 => (0..6usize).prop_map(Step::Loop),
        4 => (1..4usize).prop_map(Step::Nodes),
        1 => (1..4u8).prop_map(Step::Image),
        1 => Just(Step::Bad),
    ];
    let wild = prop_oneof![
        1 => (0..7i32).prop_map(Step::Scale),
        1 => (0..3i32).prop_map(Step::Start),
        1 => (0..4i32).prop_map(Step::Partition),
        1 => (0..6u8).prop_map(Step::Delete),
        1 => (0..6u8).prop_map(Step::Fail),
        1 => (0..6u8).prop_map(Step::Unready),
    ];
    let step = if disturbed { prop_oneof![3 => calm.clone(), 1 => wild].boxed() } else { calm.boxed() };
    proptest::collection::vec(step, 0..60)
}

fn take(sim: &mut Sim, step: &Step) {
    match step {
        Step::Loop(writes) => drop(sim.step(*writes)),
        Step::Nodes(most) => drop(sim.nodes(*most)),
        Step::Image(n) => sim.image(&format!("v{n}")),
        Step::Bad => sim.image("bad"),
        Step::Scale(n) => sim.scale(*n),
        Step::Start(n) => sim.edit(json!({"spec": {"ordinals": {"start": n}}})),
        Step::Partition(n) => sim.edit(json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": n}}}})),
        Step::Delete(n) => sim.mark_deleted(&format!("web-{n}")),
        Step::Fail(n) => sim.status(&format!("web-{n}"), "Failed", false),
        Step::Unready(n) => sim.status(&format!("web-{n}"), "Running", false),
    }
    sim.world.pass(1);
}

fn kind() -> impl Strategy<Value = (String, Value)> {
    let policy = prop_oneof![Just("OrderedReady".to_owned()), Just("Parallel".to_owned())];
    let unavailable = prop_oneof![(0..4i32).prop_map(|n| json!(n)), (1..101i32).prop_map(|n| json!(format!("{n}%")))];
    (policy, unavailable)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn an_update_never_takes_more_than_may_be_unavailable((policy, unavailable) in kind(), total in 1..7i32, steps in steps(false)) {
        let edit = json!({"spec": {"podManagementPolicy": policy, "updateStrategy": {"rollingUpdate": {"maxUnavailable": unavailable}}}});
        let mut sim = Sim::new(total, "v0", edit);
        sim.settle();
        let may = match &unavailable {
            Value::String(percent) => total * percent.trim_end_matches('%').parse::<i32>().expect("a number") / 100,
            number => i32::try_from(number.as_i64().expect("a number")).expect("small"),
        }.max(1);
        for step in &steps {
            take(&mut sim, step);
            let available = i32::try_from(sim.available()).expect("few");
            prop_assert!(available >= total - may, "{available} of {total}, {may} may be missing: {:?}", sim.show());
        }
    }

    #[test]
    fn from_any_state_the_wanted_one_is_reached_and_then_nothing_moves((policy, unavailable) in kind(), total in 0..6i32, steps in steps(true), claims in any::<bool>()) {
        let mut edit = json!({"spec": {"podManagementPolicy": policy, "updateStrategy": {"rollingUpdate": {"maxUnavailable": unavailable}}}});
        if claims {
            edit["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {}}]);
            edit["spec"]["persistentVolumeClaimRetentionPolicy"] = json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
        }
        let mut sim = Sim::new(total, "v0", edit);
        for step in &steps {
            take(&mut sim, step);
        }
        sim.edit(json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}}));
        sim.image("v9");
        sim.settle();
        let set = sim.set();
        let total = set.spec.replicas.expect("a size");
        let start = set.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
        let expected: Vec<String> = (start..start + total).map(|n| format!("web-{n} v9")).collect();
        prop_assert_eq!(sim.show(), expected);
        let status = set.status.expect("a status");
        prop_assert_eq!((status.replicas, status.ready_replicas.unwrap_or(0), status.updated_replicas.unwrap_or(0)), (total, total, total));
        prop_assert_eq!(&status.current_revision, &status.update_revision);
        if claims {
            let missing = (start..start + total).map(|n| format!("data-web-{n}")).find(|name| !sim.claims().contains(name));
            prop_assert_eq!(missing, None);
        }
        prop_assert!(!sim.step(usize::MAX));
    }

    /// An ordered set never has a pod made while one below it is not available.
    #[test]
    fn an_ordered_set_is_made_in_order(total in 1..6i32, steps in steps(true)) {
        let mut sim = Sim::new(total, "v0", json!({}));
        for step in &steps {
            let before = sim.created.len();
            let waiting: Vec<String> = sim.world.list::<Pod>("pods").iter()
                .filter(|pod| !pods::is_ready(pod) || pod.metadata.deletion_timestamp.is_some() || image_of(pod) == "bad")
                .filter_map(|pod| pod.metadata.name.clone())
                .collect();
            take(&mut sim, step);
            let ordinal = |name: &str| name.trim_start_matches("web-").parse::<i64>().expect("an ordinal");
            let start = i64::from(sim.set().spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0));
            for made in &sim.created[before..] {
                let made = ordinal(made.split(' ').next().expect("a name"));
                let below: Vec<_> = waiting.iter().filter(|name| (start..made).contains(&ordinal(name))).collect();
                prop_assert!(below.is_empty(), "web-{made} was made beside {below:?}");
            }
            prop_assert!(sim.created.len() <= before + 1, "one at a time");
        }
    }
}
