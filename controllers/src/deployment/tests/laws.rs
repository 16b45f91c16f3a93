//! Laws of a rollout, from any state and in any interleaving.

use super::world::{Sim, manifest};
use crate::{
    deployment::{revisions::wanted, scale},
    pods,
};
use proptest::prelude::*;
use serde_json::json;

#[derive(Clone, Debug)]
enum Step {
    Deployment,
    Sets,
    Nodes(usize),
    Template(u8),
    Scale(i32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Deployment),
        4 => Just(Step::Sets),
        4 => (1..4usize).prop_map(Step::Nodes),
        1 => (1..5u8).prop_map(Step::Template),
    ];
    proptest::collection::vec(step, 0..60)
}

fn steps_with_scaling() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Deployment),
        4 => Just(Step::Sets),
        4 => (1..4usize).prop_map(Step::Nodes),
        1 => (1..5u8).prop_map(Step::Template),
        1 => (0..12i32).prop_map(Step::Scale),
    ];
    proptest::collection::vec(step, 0..60)
}

fn fence() -> impl Strategy<Value = (serde_json::Value, serde_json::Value)> {
    let value = || prop_oneof![(0..4i32).prop_map(|n| json!(n)), (0..101i32).prop_map(|n| json!(format!("{n}%")))];
    (value(), value())
}

fn take(sim: &mut Sim, step: &Step) {
    match step {
        Step::Deployment => drop(sim.step_deployment()),
        Step::Sets => drop(sim.step_sets()),
        Step::Nodes(most) => drop(sim.step_nodes(*most)),
        Step::Template(n) => {
            sim.edit(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": format!("v{n}")}]}}}}))
        }
        Step::Scale(n) => sim.edit(json!({"spec": {"replicas": n}})),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_rollout_never_passes_its_surge_and_never_falls_below_its_bound((surge, unavailable) in fence(), total in 1..10i32, steps in steps()) {
        let strategy = json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}});
        let mut sim = Sim::new();
        sim.roll_out(&manifest(total, "v0", strategy));
        let bounds = scale::fence(&sim.deployment());
        for step in &steps {
            take(&mut sim, step);
            let asked: i32 = sim.sets().iter().map(|set| wanted(set)).sum();
            prop_assert!(asked <= total + bounds.surge, "{asked} pods asked for, {total} + {} allowed", bounds.surge);
            let ready = sim.pods().iter().filter(|pod| pods::is_active(pod) && pods::is_ready(pod)).count();
            let ready = i32::try_from(ready).expect("few");
            prop_assert!(ready >= total - bounds.unavailable, "{ready} available, {total} - {} promised", bounds.unavailable);
        }
    }

    #[test]
    fn from_any_state_the_wanted_one_is_reached_and_then_nothing_moves((surge, unavailable) in fence(), total in 0..10i32, steps in steps_with_scaling()) {
        let strategy = json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}});
        let mut sim = Sim::new();
        sim.apply(&manifest(total, "v0", strategy));
        for step in &steps {
            take(&mut sim, step);
        }
        sim.settle();
        let deployment = sim.deployment();
        let image = deployment.spec.template.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).expect("an image");
        let total = usize::try_from(scale::replicas(&deployment)).expect("not negative");
        let expected: Vec<_> = [(image, total)].into_iter().filter(|(_, n)| *n > 0).collect();
        prop_assert_eq!(sim.images().into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_recreation_reaches_the_wanted_state_too(total in 0..6i32, steps in steps_with_scaling()) {
        let mut sim = Sim::new();
        sim.apply(&manifest(total, "v0", json!({"spec": {"strategy": {"type": "Recreate"}}})));
        for step in &steps {
            take(&mut sim, step);
            let mut images: Vec<_> = sim.pods().iter().map(|pod| super::world::image_of(pod)).collect();
            images.sort();
            images.dedup();
            prop_assert!(images.len() <= 1, "{images:?} at the same time");
        }
        sim.settle();
        let total = usize::try_from(scale::replicas(&sim.deployment())).expect("not negative");
        prop_assert_eq!(sim.images().values().sum::<usize>(), total);
    }
}
