//! Stories of rolling forward.

use super::world::{Sim, manifest, web};
use crate::deployment::revisions::{number, wanted};
use kube::ResourceExt;
use proa_crds::annotations;
use serde_json::json;

fn images(sim: &Sim) -> Vec<(String, usize)> {
    sim.images().into_iter().collect()
}

#[test]
fn a_deployment_comes_up_and_says_so() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(3, "v1", json!({})));
    assert_eq!(images(&sim), [("v1".into(), 3)]);
    let status = sim.deployment().status.clone().expect("a status");
    assert_eq!(
        (status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas),
        (Some(3), Some(3), Some(3), Some(3))
    );
    assert_eq!((status.unavailable_replicas, status.observed_generation), (None, Some(1)));
    assert_eq!(sim.condition("Progressing").expect("it").1, "NewReplicaSetAvailable");
    assert_eq!(sim.condition("Available").expect("it").1, "MinimumReplicasAvailable");
    assert_eq!(sim.deployment().annotations()[annotations::REVISION], "1");
    let set = sim.set_of("v1").expect("it");
    assert_eq!(
        (
            set.annotations()[annotations::DESIRED_REPLICAS].as_str(),
            set.annotations()[annotations::MAX_REPLICAS].as_str()
        ),
        ("3", "4")
    );
    assert!(set.annotations().contains_key(annotations::HEALTHY));
    let hash = &set.labels()[annotations::POD_TEMPLATE_HASH];
    assert_eq!(set.name_any(), format!("web-{hash}"));
    assert_eq!(set.spec.selector.match_labels.as_ref().expect("labels")[annotations::POD_TEMPLATE_HASH], *hash);
    assert_eq!(sim.events, [format!("ScalingReplicaSet Scaled up replica set {} from 0 to 3", set.name_any())]);
}

#[test]
fn a_new_template_is_a_new_revision_and_an_earlier_one_comes_back_with_a_new_number() {
    let mut sim = Sim::new();
    for image in ["v1", "v2", "v3", "v1"] {
        let cause = json!({"metadata": {"annotations": {annotations::CHANGE_CAUSE: format!("to {image}")}}});
        sim.roll_out(&manifest(2, image, cause));
    }
    assert_eq!(images(&sim), [("v1".into(), 2)]);
    let numbers: Vec<_> = ["v1", "v2", "v3"].iter().map(|image| number(&sim.set_of(image).expect("kept"))).collect();
    assert_eq!(numbers, [4, 2, 3]);
    let set = sim.set_of("v1").expect("it");
    assert_eq!(set.annotations()[annotations::REVISION_HISTORY], "1");
    assert_eq!(set.annotations()[annotations::CHANGE_CAUSE], "to v1");
    assert_eq!(sim.deployment().annotations()[annotations::REVISION], "4");
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut sim = Sim::new();
    for image in ["v1", "v2", "v3", "v4", "v5"] {
        sim.roll_out(&manifest(1, image, json!({"spec": {"revisionHistoryLimit": 2}})));
    }
    assert_eq!(sim.sets().len(), 3);
    assert!(sim.set_of("v1").is_none() && sim.set_of("v2").is_none());
}

#[test]
fn a_recreation_has_no_old_pod_beside_a_new_one() {
    let strategy = json!({"spec": {"strategy": {"type": "Recreate"}}});
    let mut sim = Sim::new();
    sim.roll_out(&manifest(3, "v1", strategy.clone()));
    sim.apply(&manifest(3, "v2", strategy));
    for _ in 0..100 {
        let mut kinds: Vec<_> = sim.pods().iter().map(|pod| super::world::image_of(pod)).collect();
        kinds.dedup();
        assert!(kinds.len() <= 1, "{kinds:?}");
        if !(sim.step_deployment() | sim.step_sets() | sim.step_nodes(1)) {
            break;
        }
    }
    assert_eq!(images(&sim), [("v2".into(), 3)]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_keeps_the_shares() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(10, "v1", json!({})));
    sim.roll_out(&manifest(10, "slow", json!({})));
    let sizes = |sim: &Sim| ["v1", "slow"].map(|image| wanted(&sim.set_of(image).expect("it")));
    assert_eq!(sizes(&sim), [8, 5]);
    sim.edit(json!({"spec": {"replicas": 20}}));
    sim.step_deployment();
    // Twenty with a surge of five: 25/13 of each.
    assert_eq!(sizes(&sim), [15, 10]);
    sim.settle();
    assert!(sim.images()["v1"] >= 15, "{:?}", sim.images());
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(2, "v1", json!({})));
    sim.roll_out(&manifest(4, "v2", json!({"spec": {"paused": true}})));
    assert_eq!(images(&sim), [("v1".into(), 4)]);
    assert_eq!(sim.condition("Progressing").expect("it").1, "DeploymentPaused");
    sim.edit(json!({"spec": {"paused": null}}));
    sim.settle();
    assert_eq!(images(&sim), [("v2".into(), 4)]);
    assert_eq!(sim.condition("Progressing").expect("it").1, "NewReplicaSetAvailable");
}

#[test]
fn a_rollout_that_does_not_move_runs_into_its_deadline() {
    let deadline = json!({"spec": {"progressDeadlineSeconds": 30}});
    let mut sim = Sim::new();
    sim.roll_out(&manifest(4, "v1", deadline.clone()));
    sim.roll_out(&manifest(4, "slow", deadline.clone()));
    assert_eq!(sim.condition("Progressing").expect("it").1, "ReplicaSetUpdated");
    sim.world.pass(29);
    sim.settle();
    assert_eq!(sim.condition("Progressing").expect("it").1, "ReplicaSetUpdated");
    sim.world.pass(2);
    sim.settle();
    let (status, reason, message) = sim.condition("Progressing").expect("it");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ProgressDeadlineExceeded"));
    assert!(message.contains("timed out progressing"));
    sim.roll_out(&manifest(4, "v3", deadline));
    assert_eq!(sim.condition("Progressing").expect("it").1, "NewReplicaSetAvailable");
}

#[test]
fn a_rollover_gives_up_the_unfinished_revision_first() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(8, "v1", json!({})));
    sim.roll_out(&manifest(8, "slow", json!({})));
    sim.roll_out(&manifest(8, "v3", json!({})));
    assert_eq!(images(&sim), [("v3".into(), 8)]);
}

#[test]
fn a_name_taken_by_another_template_counts_a_collision_and_gets_another_hash() {
    let mut sim = Sim::new();
    sim.apply(&manifest(1, "v1", json!({})));
    let first = match crate::deployment::plan(&sim.seen(), sim.world.now).actions.first() {
        Some(crate::deployment::Action::Create(set)) => set.name_any(),
        other => panic!("{other:?}"),
    };
    let foreign = json!({"metadata": {"name": first, "namespace": "ns", "labels": {"app": "other"}}, "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "other"}}}});
    sim.world.create("replicasets", &foreign);
    sim.settle();
    assert_eq!(sim.deployment().status.as_ref().and_then(|status| status.collision_count), Some(1));
    let mine = sim.set_of("v1").expect("another name");
    assert_ne!(mine.name_any(), first);
    assert_eq!(images(&sim), [("v1".into(), 1)]);
}

#[test]
fn min_ready_seconds_hold_the_rollout_back() {
    let slow = json!({"spec": {"minReadySeconds": 10}});
    let mut sim = Sim::new();
    sim.apply(&manifest(4, "v1", slow.clone()));
    sim.settle();
    assert_eq!(sim.deployment().status.as_ref().and_then(|status| status.available_replicas), None);
    sim.world.pass(10);
    sim.settle();
    assert_eq!(sim.deployment().status.as_ref().and_then(|status| status.available_replicas), Some(4));
    sim.roll_out(&manifest(4, "v2", slow));
    assert!(sim.images()["v1"] >= 3, "{:?}", sim.images());
    for _ in 0..6 {
        sim.world.pass(10);
        sim.settle();
    }
    assert_eq!(images(&sim), [("v2".into(), 4)]);
}

#[test]
fn an_orphan_with_the_right_labels_is_adopted_and_a_stranger_released() {
    let mut sim = Sim::new();
    sim.roll_out(&manifest(1, "v1", json!({})));
    let set = sim.set_of("v1").expect("it");
    let key = crate::Key::new("ns", &set.name_any());
    sim.world.patch("replicasets", &key, &json!({"metadata": {"ownerReferences": null}}));
    sim.settle();
    assert!(crate::owners::controller_of(&sim.set_of("v1").expect("it").metadata).is_some());
    sim.world.patch("replicasets", &key, &json!({"metadata": {"labels": {"app": "stray"}}}));
    sim.step_deployment();
    assert!(crate::owners::controller_of(&sim.set_of("v1").expect("it").metadata).is_none());
    assert!(sim.world.raw("deployments", &web()).is_some());
}
