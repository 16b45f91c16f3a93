//! Stories of revisions that are ready first and crash then.

use super::{
    going_back::{assert_clean, images, on_failure},
    world::{Sim, manifest},
};
use crate::deployment::revisions::number;
use kube::ResourceExt;
use proa_crds::annotations;
use serde_json::json;

fn seconds_of_probation() -> i64 {
    proa_crds::RolloutPolicySpec::default().soak_seconds.into()
}

fn is_healthy(sim: &Sim, image: &str) -> bool {
    sim.set_of(image).expect("it").annotations().contains_key(annotations::HEALTHY)
}

#[test]
fn a_revision_that_crashes_soon_after_its_rollout_goes_back_and_is_healthy_no_more() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(3, "v1", on_failure()));
    sim.world.pass(3600);
    sim.roll_out(&manifest(3, "v2", on_failure()));
    assert_eq!(sim.condition("Progressing").expect("it").1, "NewReplicaSetAvailable");
    assert!(is_healthy(&sim, "v2"));
    sim.world.pass(seconds_of_probation() - 1);
    sim.crash("v2");
    sim.settle();
    assert_eq!(images(&sim), [("v1".into(), 3)]);
    let (status, reason, message) = sim.condition("RolledBack").expect("it");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "CrashLoop"));
    assert!(message.contains("revision 2 failed") && message.contains("boom"), "{message}");
    assert!(!is_healthy(&sim, "v2") && is_healthy(&sim, "v1"));
    assert_clean(&sim);
    // It stays known: nothing else is ever gone back to, and the next failure does not find it healthy.
    sim.roll_out(&manifest(3, "crash", on_failure()));
    assert_eq!(images(&sim), [("v1".into(), 3)]);
}

#[test]
fn a_revision_that_has_proven_itself_stays_whatever_happens_to_it() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "v1", on_failure()));
    sim.roll_out(&manifest(2, "v2", on_failure()));
    sim.world.pass(seconds_of_probation());
    sim.crash("v2");
    sim.settle();
    assert_eq!((images(&sim), sim.condition("RolledBack")), ([("v2".into(), 2)].to_vec(), None));
}

#[test]
fn going_back_cannot_flap_between_two_revisions_that_both_crash() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "v1", on_failure()));
    sim.roll_out(&manifest(2, "v2", on_failure()));
    sim.crash("v2");
    sim.settle();
    assert_eq!(images(&sim), [("v1".into(), 2)]);
    sim.crash("v1");
    sim.settle();
    assert_eq!((images(&sim), number(&sim.set_of("v1").expect("it"))), ([("v1".into(), 2)].to_vec(), 3));
}

#[test]
fn one_pod_that_crashes_is_not_the_revision() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "v1", on_failure()));
    sim.roll_out(&manifest(2, "v2", on_failure()));
    sim.crash("v2");
    let survivor = sim.pods()[0].name_any();
    sim.world.delete("pods", &crate::Key::new("ns", &survivor));
    sim.step_sets();
    sim.step_nodes(usize::MAX);
    sim.settle();
    assert_eq!(sim.condition("RolledBack"), None);
}

#[test]
fn a_revision_of_no_pods_is_neither_healthy_nor_trusted() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "v1", on_failure()));
    sim.roll_out(&manifest(0, "crash", on_failure()));
    assert!(!is_healthy(&sim, "crash"));
    sim.roll_out(&manifest(2, "crash", on_failure()));
    assert_eq!(images(&sim), [("v1".into(), 2)]);
}

#[test]
fn the_revision_to_go_back_to_is_kept_until_the_new_one_has_proven_itself() {
    let mut without_history = on_failure();
    crate::sim::merge(&mut without_history, &json!({"spec": {"revisionHistoryLimit": 0}}));
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "v1", without_history.clone()));
    sim.roll_out(&manifest(2, "v2", without_history));
    assert!(sim.set_of("v1").is_some());
    sim.world.pass(seconds_of_probation());
    sim.settle();
    assert!(sim.set_of("v1").is_none());
}
