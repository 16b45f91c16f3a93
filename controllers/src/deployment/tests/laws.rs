//! Laws of a rollout, from any state and in any interleaving.

use super::going_back::on_failure;
use super::world::{Sim, manifest};
use crate::{
    Key,
    deployment::{revisions::wanted, scale},
    pods,
};
use kube::ResourceExt;
use proa_crds::annotations;
use proptest::prelude::*;
use serde_json::{Value, json};

#[derive(Clone, Debug)]
enum Step {
    /// The loop runs, and dies after so many writes.
    Deployment(usize),
    Sets,
    Nodes(usize),
    Template(u8),
    /// A template of which no pod gets ready.
    Bad(u8),
    Scale(i32),
    /// Somebody deletes a pod.
    Lose(usize),
    /// A pod fails for good.
    Fail(usize),
    Passes(i64),
}

fn calm() -> BoxedStrategy<Step> {
    prop_oneof![
        4 => (0..6usize).prop_map(Step::Deployment),
        4 => Just(Step::Sets),
        4 => (1..4usize).prop_map(Step::Nodes),
        1 => (1..5u8).prop_map(Step::Template),
        1 => (0..BAD.len() as u8).prop_map(Step::Bad),
        1 => (0..40i64).prop_map(Step::Passes),
    ]
    .boxed()
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(calm(), 0..60)
}

fn steps_with_disturbances() -> impl Strategy<Value = Vec<Step>> {
    let wild = prop_oneof![
        2 => (0..12i32).prop_map(Step::Scale),
        1 => (0..12usize).prop_map(Step::Lose),
        1 => (0..12usize).prop_map(Step::Fail),
    ];
    proptest::collection::vec(prop_oneof![4 => calm(), 1 => wild], 0..60)
}

/// Images that fail.
const BAD: [&str; 2] = ["crash", "missing"];

fn is_bad(image: &str) -> bool {
    BAD.contains(&image)
}

fn fence() -> impl Strategy<Value = (Value, Value)> {
    let value = || prop_oneof![(0..4i32).prop_map(|n| json!(n)), (0..101i32).prop_map(|n| json!(format!("{n}%")))];
    (value(), value())
}

fn template(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}})
}

fn take(sim: &mut Sim, step: &Step) {
    let pick = |n: usize| {
        let pods = sim.pods();
        (!pods.is_empty()).then(|| Key::new("ns", &pods[n % pods.len()].name_any()))
    };
    match step {
        Step::Deployment(writes) => drop(sim.step_deployment_to(*writes)),
        Step::Sets => drop(sim.step_sets()),
        Step::Nodes(most) => drop(sim.step_nodes(*most)),
        Step::Template(n) => sim.edit(template(&format!("v{n}"))),
        Step::Bad(n) => sim.edit(template(BAD[usize::from(*n)])),
        Step::Scale(n) => sim.edit(json!({"spec": {"replicas": n}})),
        Step::Lose(n) => pick(*n).into_iter().for_each(|pod| sim.world.delete("pods", &pod)),
        Step::Fail(n) => {
            let failed = json!({"status": {"phase": "Failed", "conditions": null}});
            pick(*n).into_iter().for_each(|pod| assert!(sim.world.patch("pods", &pod, &failed)));
        }
        Step::Passes(seconds) => sim.world.pass(*seconds),
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
    fn from_any_state_the_wanted_one_is_reached_and_then_nothing_moves((surge, unavailable) in fence(), total in 0..10i32, steps in steps_with_disturbances()) {
        let strategy = json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}});
        let mut sim = Sim::new();
        sim.apply(&manifest(total, "v0", strategy));
        for step in &steps {
            take(&mut sim, step);
        }
        sim.edit(template("v9"));
        sim.settle();
        let deployment = sim.deployment();
        let image = deployment.spec.template.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).expect("an image");
        let total = usize::try_from(scale::replicas(&deployment)).expect("not negative");
        let expected: Vec<_> = [(image, total)].into_iter().filter(|(_, n)| *n > 0).collect();
        prop_assert_eq!(sim.images().into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_recreation_reaches_the_wanted_state_too(total in 0..6i32, steps in steps_with_disturbances()) {
        let mut sim = Sim::new();
        sim.apply(&manifest(total, "v0", json!({"spec": {"strategy": {"type": "Recreate"}}})));
        for step in &steps {
            take(&mut sim, step);
            // What has failed runs no more.
            let running = sim.pods().into_iter().filter(|pod| pods::phase(pod) != "Failed");
            let mut images: Vec<_> = running.map(|pod| super::world::image_of(&pod)).collect();
            images.sort();
            images.dedup();
            prop_assert!(images.len() <= 1, "{images:?} at the same time");
        }
        sim.edit(template("v9"));
        sim.settle();
        let total = usize::try_from(scale::replicas(&sim.deployment())).expect("not negative");
        prop_assert_eq!(sim.images().values().sum::<usize>(), total);
    }

    /// Whatever is asked for and wherever the loop dies: it goes back once for each time somebody asked for what fails, from
    /// that to what works, and says why.
    #[test]
    fn a_guarded_rollout_never_flaps_and_ends_in_a_revision_that_works(total in 1..6i32, steps in steps()) {
        let mut sim = Sim::new();
        sim.roll_out(&manifest(total, "v0", on_failure()));
        let (mut asked, mut returned) = (0, 0);
        let mut moved = |before: &str, after: &str| {
            if before != after {
                returned += 1;
                prop_assert!(is_bad(before) && !is_bad(after), "from {before} to {after}");
            }
            Ok(())
        };
        for step in &steps {
            let before = sim.image();
            take(&mut sim, step);
            match step {
                Step::Bad(_) => asked += i32::from(sim.image() != before),
                Step::Template(_) => {}
                _ => moved(&before, &sim.image())?,
            }
        }
        let before = sim.image();
        for _ in 0..4 {
            sim.settle();
            sim.world.pass(100);
        }
        moved(&before, &sim.image())?;
        prop_assert!(returned <= asked, "went back {returned} times; asked for what fails {asked} times");
        let image = sim.image();
        prop_assert!(!is_bad(&image), "{image}");
        prop_assert_eq!(sim.images().into_iter().collect::<Vec<_>>(), [(image, total as usize)]);
        prop_assert!(!sim.step_deployment(), "and then nothing moves");
        if is_bad(&before) {
            let failed = sim.set_of(&before).expect("a failed revision is kept");
            prop_assert!(failed.annotations().contains_key(annotations::FAILURE), "and says why it failed");
        }
    }
}
