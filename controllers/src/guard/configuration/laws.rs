//! What holds of a set whose configuration is rolled out, whatever its users do and in whatever order.

use super::tests::{Sim, key};
use crate::rollback::marks;
use k8s_openapi::api::core::v1::ConfigMap;
use proa_crds::{RolloutPolicySpec, annotations};
use proptest::prelude::*;
use serde_json::json;
use std::sync::Arc;

/// What somebody does.
#[derive(Clone, Debug)]
enum Deed {
    Configure(&'static str),
    Image(u8),
    /// To one of the revisions there are.
    Undo(usize),
    Retry(u8),
    /// Whether a change of configuration is a rollout from now on.
    Policy(bool),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => prop::sample::select(&["one", "two", "three", "bad"][..]).prop_map(Deed::Configure),
        2 => (1..4u8).prop_map(Deed::Image),
        3 => (0..8usize).prop_map(Deed::Undo),
        1 => (0..3u8).prop_map(Deed::Retry),
        1 => any::<bool>().prop_map(Deed::Policy),
    ]
}

fn policy(rollout: bool) -> RolloutPolicySpec {
    let configuration = if rollout { "Rollout" } else { "Live" };
    serde_json::from_value(json!({"configuration": configuration})).expect("a policy")
}

fn carry_out(sim: &mut Sim, deed: &Deed) {
    match deed {
        Deed::Configure(value) => return sim.configure(value),
        Deed::Image(number) => sim.edit(json!({"spec": {"template": {"spec": {"containers": [
            {"name": "c", "image": format!("v{number}"), "envFrom": [{"configMapRef": {"name": "conf"}}]}]}}}})),
        Deed::Undo(which) => {
            let numbers = sim.numbers();
            return sim.undo(numbers[which % numbers.len()]);
        }
        Deed::Retry(wish) => {
            sim.edit(json!({"metadata": {"annotations": {annotations::RETRY: format!("{wish}")}}}));
        }
        Deed::Policy(rollout) => sim.policy = Some(policy(*rollout)),
    }
    sim.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_set_comes_to_rest_with_the_live_configuration_or_says_that_it_reads_a_copy(
        deeds in prop::collection::vec(deed(), 1..10),
    ) {
        let mut sim = Sim::new("one");
        for deed in &deeds {
            carry_out(&mut sim, deed);
            let template = sim.template();
            prop_assert!(template.pointer("/metadata/annotations").is_none(), "{deed:?} left a mark: {template}");
            let pod = sim.pod();
            let copy = marks::note(&pod.metadata, annotations::CONFIG_REVISION);
            let says = sim.condition("ConfigRevision").is_some_and(|(status, _)| status == "True");
            prop_assert_eq!(copy.is_some(), says, "{:?}: the condition tells what pods read", deed);
            if !says && sim.policy == Some(policy(true)) {
                let map: Arc<ConfigMap> = sim.world.get("configmaps", &key("conf")).expect("it");
                let live = map.data.as_ref().expect("data")["k"].clone();
                prop_assert_eq!(sim.read.last(), Some(&live), "{:?}: what its pod started with is live", deed);
            }
        }
    }
}
