//! Which nodes have a pod, whatever happens to nodes and pods.

use super::world::Sim;
use serde_json::json;

/// Conformance: DaemonSet-Creation.
#[test]
fn every_node_has_one_pod_and_one_that_is_deleted_is_replaced() {
    let mut sim = Sim::new(3, "v1", json!({}));
    sim.settle();
    assert_eq!(sim.show(), ["node-0 v1", "node-1 v1", "node-2 v1"]);
    let status = sim.set().status.expect("a status");
    assert_eq!((status.desired_number_scheduled, status.current_number_scheduled, status.number_ready), (3, 3, 3));
    assert_eq!(
        (status.number_available, status.number_unavailable, status.updated_number_scheduled),
        (Some(3), None, Some(3))
    );
    let pod = sim.pods()[0].clone();
    sim.mark_deleted(&pod);
    sim.run();
    assert_eq!(sim.pods().len(), 3, "the new one waits until the old one is gone");
    sim.settle();
    assert_eq!((sim.show().len(), sim.created), (3, 4));
}

#[test]
fn nodes_that_come_and_go_get_and_lose_their_pod() {
    let mut sim = Sim::new(1, "v1", json!({}));
    sim.settle();
    sim.join("node-9", json!({}));
    sim.settle();
    assert_eq!(sim.show(), ["node-0 v1", "node-9 v1"]);
    sim.leave("node-0");
    sim.settle();
    assert_eq!(sim.show(), ["node-9 v1"]);
    assert_eq!(sim.set().status.expect("a status").desired_number_scheduled, 1);
    assert!(sim.deleted.is_empty(), "pods of nodes that are gone are the garbage collector's");
}

/// Conformance: DaemonSet-NodeSelection.
#[test]
fn pods_come_and_go_with_the_labels_of_their_nodes() {
    let mut sim = Sim::new(2, "v1", json!({"spec": {"template": {"spec": {"nodeSelector": {"color": "blue"}}}}}));
    sim.settle();
    assert!(sim.show().is_empty());
    sim.edit_node("node-1", json!({"metadata": {"labels": {"color": "blue"}}}));
    sim.settle();
    assert_eq!(sim.show(), ["node-1 v1"]);
    sim.edit_node("node-1", json!({"metadata": {"labels": {"color": "green"}}}));
    sim.run();
    assert_eq!(sim.deleted, ["node-1 NotWanted"]);
    sim.settle();
    sim.edit(json!({"spec": {"template": {"spec": {"nodeSelector": {"color": "green"}}}}}));
    sim.settle();
    assert_eq!(sim.show(), ["node-1 v1"]);
}

#[test]
fn a_taint_that_must_not_be_scheduled_on_keeps_new_pods_away_and_leaves_the_one_that_runs() {
    let taint = |effect: &str| json!({"spec": {"taints": [{"key": "dedicated", "effect": effect}]}});
    let mut sim = Sim::new(2, "v1", json!({}));
    sim.settle();
    sim.edit_node("node-0", taint("NoSchedule"));
    sim.settle();
    assert_eq!(sim.show(), ["node-0 v1", "node-1 v1"]);
    let status = sim.set().status.expect("a status");
    assert_eq!((status.desired_number_scheduled, status.number_misscheduled), (1, 1));
    // An update would not be able to put anything in its place.
    sim.image("v2");
    sim.settle();
    assert_eq!(sim.show(), ["node-0 v1", "node-1 v2"]);
    sim.edit_node("node-0", taint("NoExecute"));
    sim.settle();
    assert_eq!(sim.show(), ["node-1 v2"]);
}

/// Conformance: DaemonSet-FailedPodCreation.
#[test]
fn a_pod_that_failed_is_made_anew_after_a_pause_that_grows() {
    let mut sim = Sim::new(2, "v1", json!({}));
    sim.settle();
    sim.status("node-1", "Failed", false);
    sim.settle();
    assert_eq!(sim.deleted, ["node-1 Failed"]);
    assert_eq!(sim.show(), ["node-0 v1", "node-1 v1"]);
    let mut sim = Sim::new(1, "failing", json!({}));
    for _ in 0..3 {
        sim.run();
        sim.nodes(9);
    }
    assert_eq!((sim.created, sim.deleted.len()), (1, 1), "it waits");
    sim.world.pass(1);
    sim.run();
    assert_eq!(sim.created, 2);
}

#[test]
fn of_two_pods_on_a_node_the_one_that_serves_stays() {
    let mut sim = Sim::new(1, "v1", json!({}));
    sim.settle();
    let mut twin = serde_json::to_value(&sim.pods()[0]).expect("JSON");
    twin["metadata"]["name"] = json!("aaa");
    twin["status"] = json!({"phase": "Running"});
    assert!(sim.world.create("pods", &twin));
    sim.run();
    let left: Vec<_> = sim.show().into_iter().filter(|pod| !pod.ends_with("leaving")).collect();
    assert_eq!(left, ["node-0 v1"]);
}

#[test]
fn a_pod_without_an_owner_is_adopted_and_one_the_selector_does_not_select_released() {
    let mut sim = Sim::new(1, "v1", json!({}));
    sim.settle();
    let key = crate::Key::of(&sim.pods()[0]);
    sim.world.patch("pods", &key, &json!({"metadata": {"ownerReferences": null}}));
    sim.settle();
    assert_eq!((sim.created, sim.show()), (1, vec!["node-0 v1".to_owned()]));
    sim.world.patch("pods", &key, &json!({"metadata": {"labels": {"app": "other"}}}));
    sim.settle();
    assert_eq!(sim.created, 2, "a new one in its place");
    assert_eq!(sim.show(), ["node-0 v1", "node-0 v1"]);
}

#[test]
fn a_set_that_is_being_deleted_makes_and_takes_nothing() {
    let mut sim = Sim::new(2, "v1", json!({}));
    sim.settle();
    sim.edit(json!({"metadata": {"deletionTimestamp": "2026-11-21T10:00:00Z"}}));
    sim.join("node-9", json!({}));
    sim.image("v2");
    sim.run();
    assert_eq!((sim.created, sim.deleted.len()), (2, 0));
}

#[test]
fn a_pod_that_waits_for_a_node_that_is_gone_is_taken_away() {
    let mut sim = Sim::new(1, "v1", json!({}));
    sim.run();
    sim.leave("node-0");
    sim.run();
    assert_eq!(sim.deleted, ["node-0 NotWanted"]);
}
