//! Updates: conformance's [sig-apps] StatefulSet, and what keeps a set from getting stuck.

use super::world::Sim;
use kube::ResourceExt;
use serde_json::json;

fn rolling(edit: serde_json::Value) -> serde_json::Value {
    json!({"spec": {"updateStrategy": {"rollingUpdate": edit}}})
}

/// Conformance: StatefulSet, Rolling Update.
#[test]
fn a_rolling_update_replaces_one_at_a_time_from_the_highest_and_a_template_that_comes_back_is_a_rollback() {
    let mut sim = Sim::new(3, "v1", json!({}));
    sim.settle();
    let first = sim.set().status.expect("a status");
    assert_eq!(first.current_revision, first.update_revision);

    // As the conformance test does it: one pod is unhealthy when the template changes, and gets well.
    sim.image("v2");
    sim.run();
    let middle = sim.set().status.expect("a status");
    assert_ne!(middle.current_revision, middle.update_revision);
    assert_eq!(middle.current_revision, first.current_revision);
    assert_eq!(sim.deleted, ["web-2 Updated"]);
    assert_eq!((middle.current_replicas, middle.updated_replicas), (Some(2), None));
    sim.settle();
    assert_eq!(sim.deleted, ["web-2 Updated", "web-1 Updated", "web-0 Updated"]);
    assert_eq!(sim.show(), ["web-0 v2", "web-1 v2", "web-2 v2"]);
    let done = sim.set().status.expect("a status");
    assert_eq!((&done.current_revision, done.current_replicas), (&done.update_revision, Some(3)));
    assert_eq!(sim.revision_of("web-0"), done.update_revision.clone().expect("a revision"));

    sim.undo(1);
    sim.settle();
    assert_eq!(sim.show(), ["web-0 v1", "web-1 v1", "web-2 v1"]);
    let back = sim.set().status.expect("a status");
    assert_eq!(back.update_revision, first.update_revision, "the earlier revision, no new one");
    assert_eq!(sim.revisions().iter().map(|held| held.revision).collect::<Vec<_>>(), [2, 3]);
}

/// Conformance: StatefulSet, Rolling Update with Partition.
#[test]
fn a_partition_makes_canaries_and_phases_and_pods_that_got_lost_come_back_on_their_side_of_it() {
    let mut sim = Sim::new(3, "v1", rolling(json!({"partition": 3})));
    sim.settle();
    sim.image("v2");
    sim.settle();
    assert_eq!(sim.show(), ["web-0 v1", "web-1 v1", "web-2 v1"], "the partition is above all");
    sim.edit(rolling(json!({"partition": 2})));
    sim.settle();
    assert_eq!(sim.show(), ["web-0 v1", "web-1 v1", "web-2 v2"], "a canary");
    sim.mark_deleted("web-0");
    sim.mark_deleted("web-2");
    sim.settle();
    assert_eq!(sim.show(), ["web-0 v1", "web-1 v1", "web-2 v2"], "restored, each at its own revision");
    let status = sim.set().status.expect("a status");
    assert_ne!(status.current_revision, status.update_revision);
    assert_eq!((status.current_replicas, status.updated_replicas), (Some(2), Some(1)));
    for (partition, expected) in [(1, ["web-0 v1", "web-1 v2", "web-2 v2"]), (0, ["web-0 v2", "web-1 v2", "web-2 v2"])]
    {
        sim.edit(rolling(json!({"partition": partition})));
        sim.settle();
        assert_eq!(sim.show(), expected);
    }
    let status = sim.set().status.expect("a status");
    assert_eq!(status.current_revision, status.update_revision);
}

#[test]
fn on_delete_waits_for_the_user() {
    let mut sim = Sim::new(2, "v1", json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}}));
    sim.settle();
    sim.image("v2");
    sim.settle();
    assert_eq!(sim.show(), ["web-0 v1", "web-1 v1"]);
    sim.mark_deleted("web-1");
    sim.settle();
    assert_eq!(sim.show(), ["web-0 v1", "web-1 v2"]);
    assert!(sim.deleted.is_empty());
}

#[test]
fn as_many_go_at_once_as_may_be_unavailable() {
    for (unavailable, at_once) in [(json!(2), 2), (json!("40%"), 2), (json!("1%"), 1), (json!(0), 1)] {
        let mut edit = rolling(json!({"maxUnavailable": unavailable}));
        edit["spec"]["podManagementPolicy"] = json!("Parallel");
        let mut sim = Sim::new(5, "v1", edit);
        sim.settle();
        sim.image("v2");
        sim.run();
        assert_eq!(sim.deleted.len(), at_once, "{unavailable}: {:?}", sim.deleted);
        assert_eq!(sim.deleted[0], "web-4 Updated");
        sim.settle();
        assert_eq!(sim.set().status.expect("a status").updated_replicas, Some(5));
    }
}

/// kubernetes#67250.
#[test]
fn a_set_stuck_on_a_bad_revision_is_replaced_and_not_waited_for() {
    for policy in ["OrderedReady", "Parallel"] {
        let mut sim = Sim::new(3, "v1", json!({"spec": {"podManagementPolicy": policy}}));
        sim.settle();
        sim.image("bad");
        sim.settle();
        assert_eq!(sim.show(), ["web-0 v1", "web-1 v1", "web-2 bad unready"], "{policy}: it goes no further");
        sim.image("v1");
        sim.run();
        assert_eq!(sim.deleted.last().map(String::as_str), Some("web-2 Stuck"), "{policy}: at once");
        sim.settle();
        assert_eq!(sim.show(), ["web-0 v1", "web-1 v1", "web-2 v1"]);
        assert_eq!(sim.deleted, ["web-2 Updated", "web-2 Stuck"], "{policy}: nobody else was touched");
    }
}

#[test]
fn a_set_that_was_bad_from_the_start_is_mended_by_a_new_template() {
    for policy in ["OrderedReady", "Parallel"] {
        let mut sim = Sim::new(3, "bad", json!({"spec": {"podManagementPolicy": policy}}));
        sim.settle();
        sim.image("bad2");
        sim.settle();
        assert!(sim.show().iter().all(|pod| pod.ends_with("bad2 unready")), "{policy} {:?}", sim.show());
        sim.image("v1");
        sim.settle();
        assert_eq!(sim.show(), ["web-0 v1", "web-1 v1", "web-2 v1"], "{policy}");
    }
}

#[test]
fn a_broken_pod_of_a_good_revision_does_not_hold_an_update_up() {
    // The template changes because web-0 needs it.
    let mut sim = Sim::new(3, "v1", json!({}));
    sim.settle();
    sim.status("web-0", "Running", false);
    sim.image("v2");
    sim.run();
    assert_eq!(sim.deleted, ["web-0 Stuck"]);
    sim.settle();
    assert_eq!(sim.show(), ["web-0 v2", "web-1 v2", "web-2 v2"]);
}

#[test]
fn what_gets_lost_while_a_bad_revision_is_rolled_out_comes_back_as_it_was() {
    for policy in ["OrderedReady", "Parallel"] {
        let mut sim = Sim::new(4, "v1", json!({"spec": {"podManagementPolicy": policy}}));
        sim.settle();
        sim.image("bad");
        sim.settle();
        sim.mark_deleted("web-1");
        sim.settle();
        assert_eq!(sim.show(), ["web-0 v1", "web-1 v1", "web-2 v1", "web-3 bad unready"], "{policy}");
        sim.status("web-1", "Running", false);
        sim.run();
        assert!(!sim.deleted.contains(&"web-1 Stuck".to_owned()), "{policy}: there is nothing better for it yet");
    }
}

#[test]
fn scaling_comes_before_updating() {
    let mut sim = Sim::new(4, "v1", json!({}));
    sim.settle();
    sim.image("v2");
    sim.scale(2);
    sim.settle();
    assert_eq!(sim.deleted, ["web-3 ScaledDown", "web-2 ScaledDown", "web-1 Updated", "web-0 Updated"]);
}

#[test]
fn revisions_in_use_are_kept_and_the_rest_to_the_limit() {
    let mut sim = Sim::new(2, "v0", json!({"spec": {"revisionHistoryLimit": 2}}));
    sim.settle();
    for n in 1..6 {
        sim.image(&format!("v{n}"));
        sim.settle();
    }
    assert_eq!(sim.revisions().iter().map(|held| held.revision).collect::<Vec<_>>(), [4, 5, 6]);
    sim.edit(json!({"spec": {"revisionHistoryLimit": 0, "updateStrategy": {"rollingUpdate": {"partition": 2}}}}));
    sim.image("v6");
    sim.settle();
    let names: Vec<_> = sim.revisions().iter().map(|held| held.name_any()).collect();
    assert_eq!(names.len(), 2, "the new one and the one that runs");
    assert!(names.contains(&sim.revision_of("web-0")));
}

#[test]
fn a_name_taken_by_another_revision_counts_a_collision() {
    let mut sim = Sim::new(1, "v1", json!({}));
    let taken = {
        let seen = sim.seen().expect("web");
        let kind = proa_crds::Family::Standard.stateful_set();
        let parent = crate::history::Parent::of_stateful_set(&seen.set, &kind);
        match crate::history::History::of(&parent, &[]).current(&parent) {
            Err(crate::history::Pending::Record(crate::history::Write::Create(revision))) => revision.name_any(),
            other => panic!("{other:?}"),
        }
    };
    let strange = json!({"metadata": {"name": taken, "namespace": "ns"}, "data": {}, "revision": 1});
    assert!(sim.world.create("controllerrevisions", &strange));
    sim.settle();
    assert_eq!(sim.show(), ["web-0 v1"]);
    let status = sim.set().status.expect("a status");
    assert_eq!(status.collision_count, Some(1));
    assert_ne!(status.update_revision, Some(taken));
}
