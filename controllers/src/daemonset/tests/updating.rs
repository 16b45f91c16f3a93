//! Updates of daemon sets.

use super::world::Sim;
use serde_json::json;

fn surge(surge: serde_json::Value) -> serde_json::Value {
    json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": surge}}}})
}

/// Conformance: DaemonSet-RollingUpdate.
#[test]
fn a_rolling_update_goes_over_the_nodes_within_its_bound() {
    for (unavailable, at_once) in [(json!(1), 1), (json!(2), 2), (json!("50%"), 3), (json!("1%"), 1)] {
        let edit = json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": unavailable}}}});
        let mut sim = Sim::new(5, "v1", edit);
        sim.settle();
        sim.image("v2");
        sim.run();
        assert_eq!(sim.deleted.len(), at_once, "{unavailable}");
        sim.settle();
        assert_eq!(sim.show(), ["node-0 v2", "node-1 v2", "node-2 v2", "node-3 v2", "node-4 v2"]);
        assert_eq!(sim.revisions(), [1, 2]);
    }
}

/// Conformance: DaemonSet-Rollback.
#[test]
fn a_rollback_restarts_nothing_that_was_not_updated() {
    let mut sim = Sim::new(4, "v1", json!({}));
    sim.settle();
    sim.image("bad");
    sim.settle();
    assert_eq!(sim.show(), ["node-0 bad unready", "node-1 v1", "node-2 v1", "node-3 v1"], "it goes no further");
    sim.image("v1");
    sim.settle();
    assert_eq!(sim.deleted, ["node-0 Updated", "node-0 Updated"], "the bad one at once, and nobody else");
    assert_eq!(sim.show(), ["node-0 v1", "node-1 v1", "node-2 v1", "node-3 v1"]);
    assert_eq!(sim.revisions(), [2, 3]);
}

#[test]
fn on_delete_waits_for_the_user() {
    let mut sim = Sim::new(2, "v1", json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}}));
    sim.settle();
    sim.image("v2");
    sim.settle();
    assert_eq!(sim.show(), ["node-0 v1", "node-1 v1"]);
    let pod = sim.pods()[0].clone();
    sim.mark_deleted(&pod);
    sim.settle();
    let images: Vec<_> = sim.show().iter().map(|pod| pod.split(' ').nth(1).unwrap_or_default().to_owned()).collect();
    assert_eq!((images.iter().filter(|image| *image == "v2").count(), sim.deleted.len()), (1, 0));
}

#[test]
fn old_pods_that_do_not_serve_are_replaced_at_once_and_within_no_bound() {
    let mut sim = Sim::new(3, "bad", json!({}));
    sim.settle();
    sim.image("v2");
    sim.run();
    assert_eq!(sim.deleted.len(), 3);
    sim.settle();
    assert_eq!(sim.show(), ["node-0 v2", "node-1 v2", "node-2 v2"]);
}

/// KEP-1591.
#[test]
fn with_a_surge_the_new_pod_is_there_before_the_old_one_goes() {
    let mut sim = Sim::new(3, "v1", surge(json!(1)));
    sim.settle();
    sim.image("v2");
    sim.run();
    assert!(sim.deleted.is_empty());
    assert_eq!(sim.show(), ["node-0 v1", "node-0 v2 unready", "node-1 v1", "node-2 v1"]);
    let status = sim.set().status.expect("a status");
    assert_eq!((status.number_available, status.updated_number_scheduled), (Some(3), None), "not done there yet");
    sim.settle();
    assert_eq!(sim.show(), ["node-0 v2", "node-1 v2", "node-2 v2"]);
    assert_eq!(sim.deleted, ["node-0 Updated", "node-1 Updated", "node-2 Updated"]);
}

#[test]
fn a_surge_waits_for_min_ready_seconds() {
    let mut edit = surge(json!("100%"));
    edit["spec"]["minReadySeconds"] = json!(10);
    let mut sim = Sim::new(2, "v1", edit);
    sim.settle();
    sim.world.pass(10);
    sim.settle();
    sim.image("v2");
    sim.settle();
    assert_eq!(sim.show().len(), 4, "{:?}", sim.show());
    sim.world.pass(10);
    sim.settle();
    assert_eq!(sim.show(), ["node-0 v2", "node-1 v2"]);
}

#[test]
fn a_surge_that_does_not_come_up_leaves_the_old_pods_alone_and_goes_back_without_touching_them() {
    let mut sim = Sim::new(3, "v1", surge(json!(1)));
    sim.settle();
    sim.image("bad");
    sim.settle();
    assert_eq!(sim.show(), ["node-0 bad unready", "node-0 v1", "node-1 v1", "node-2 v1"]);
    sim.image("v1");
    sim.settle();
    assert_eq!(
        (sim.deleted.len(), sim.show()),
        (1, vec!["node-0 v1".to_owned(), "node-1 v1".into(), "node-2 v1".into()])
    );
}
