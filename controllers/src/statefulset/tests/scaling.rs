//! Identity, order, and pods that end: conformance's [sig-apps] StatefulSet, and what the documentation promises.

use super::world::Sim;
use kube::ResourceExt;
use proa_crds::annotations;
use serde_json::json;

fn parallel() -> serde_json::Value {
    json!({"spec": {"podManagementPolicy": "Parallel"}})
}

#[test]
fn a_pod_has_the_name_the_host_name_and_the_labels_of_its_ordinal() {
    let mut sim = Sim::new(2, "v1", json!({"spec": {"ordinals": {"start": 5}}}));
    sim.settle();
    assert_eq!(sim.show(), ["web-5 v1", "web-6 v1"]);
    let pod = sim.pod("web-6").expect("a pod");
    assert_eq!((pod.spec.hostname.as_deref(), pod.spec.subdomain.as_deref()), (Some("web-6"), Some("web")));
    let labels = pod.labels();
    assert_eq!((labels[annotations::POD_NAME].as_str(), labels[annotations::POD_INDEX].as_str()), ("web-6", "6"));
    assert_eq!(labels[annotations::CONTROLLER_REVISION_HASH], sim.revisions()[0].name_any());
    let owner = &pod.owner_references()[0];
    assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.controller), ("StatefulSet", "web", Some(true)));
}

#[test]
fn a_label_that_says_which_pod_it_is_comes_back() {
    let mut sim = Sim::new(1, "v1", json!({}));
    sim.settle();
    let lost = json!({"metadata": {"labels": {annotations::POD_NAME: null, annotations::POD_INDEX: "9"}}});
    assert!(sim.world.patch("pods", &crate::Key::new("ns", "web-0"), &lost));
    sim.settle();
    let pod = sim.pod("web-0").expect("a pod");
    assert_eq!(
        (pod.labels()[annotations::POD_NAME].as_str(), pod.labels()[annotations::POD_INDEX].as_str()),
        ("web-0", "0")
    );
    assert!(sim.deleted.is_empty());
}

/// Conformance: StatefulSet, Scaling.
#[test]
fn scaling_goes_up_in_order_and_down_in_reverse_and_halts_while_a_pod_is_unhealthy() {
    let mut sim = Sim::new(3, "v1", json!({}));
    sim.run();
    assert_eq!(sim.show(), ["web-0 v1 unready"], "one after the other");
    sim.settle();
    assert_eq!(sim.created, ["web-0 v1", "web-1 v1", "web-2 v1"]);

    sim.status("web-0", "Running", false);
    sim.scale(4);
    sim.run();
    assert_eq!(sim.show().len(), 3, "halted: a pod below is not ready");
    sim.status("web-0", "Running", true);
    sim.settle();
    assert_eq!(sim.show(), ["web-0 v1", "web-1 v1", "web-2 v1", "web-3 v1"]);

    for pod in ["web-0", "web-1", "web-2", "web-3"] {
        sim.status(pod, "Running", false);
    }
    sim.scale(0);
    sim.run();
    assert!(sim.deleted.is_empty(), "halted: {:?}", sim.deleted);
    for pod in ["web-0", "web-1", "web-2", "web-3"] {
        sim.status(pod, "Running", true);
    }
    sim.run();
    assert_eq!(sim.deleted, ["web-3 ScaledDown"], "the next one goes when this one is gone");
    sim.settle();
    assert_eq!(sim.deleted, ["web-3 ScaledDown", "web-2 ScaledDown", "web-1 ScaledDown", "web-0 ScaledDown"]);
    let status = sim.set().status.expect("a status");
    assert_eq!((status.replicas, status.available_replicas), (0, Some(0)));
}

/// Conformance: StatefulSet, Burst Scaling.
#[test]
fn a_parallel_set_scales_to_the_end_even_with_unhealthy_pods() {
    let mut sim = Sim::new(1, "bad", parallel());
    sim.settle();
    sim.scale(4);
    sim.run();
    assert_eq!(sim.show().len(), 4, "{:?}", sim.show());
    sim.scale(0);
    sim.run();
    assert_eq!(sim.deleted, ["web-3 ScaledDown", "web-2 ScaledDown", "web-1 ScaledDown", "web-0 ScaledDown"]);
    sim.settle();
    assert!(sim.show().is_empty());
}

/// Conformance: StatefulSet, Recreate Failed Pod.
#[test]
fn a_pod_that_failed_or_was_evicted_is_made_anew_under_its_name() {
    for phase in ["Failed", "Succeeded"] {
        let mut sim = Sim::new(2, "v1", json!({}));
        sim.settle();
        let before = sim.pod("web-0").expect("a pod").uid();
        sim.status("web-0", phase, false);
        sim.settle();
        assert_eq!(sim.deleted, [format!("web-0 {phase}")]);
        assert_eq!(sim.show(), ["web-0 v1", "web-1 v1"]);
        assert_ne!(sim.pod("web-0").expect("a pod").uid(), before);
    }
}

#[test]
fn a_pod_that_fails_again_and_again_is_made_anew_after_a_pause() {
    let mut sim = Sim::new(1, "failing", json!({}));
    sim.run();
    sim.nodes(1);
    sim.run();
    sim.nodes(1);
    assert_eq!(sim.deleted, ["web-0 Failed"]);
    sim.run();
    assert_eq!(sim.created.len(), 1, "it waits");
    sim.world.pass(2);
    sim.run();
    assert_eq!(sim.created.len(), 2);
}

#[test]
fn pods_are_adopted_by_selector_and_name_and_strangers_are_released() {
    let mut sim = Sim::new(2, "v1", json!({}));
    let pod = |name: &str, app: &str| {
        json!({"metadata": {"name": name, "namespace": "ns", "labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": "own"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-21T09:00:00Z"}]}})
    };
    for (name, app) in [("web-0", "web"), ("web-x", "web"), ("web-7", "other")] {
        assert!(sim.world.create("pods", &pod(name, app)));
    }
    sim.settle();
    // What was adopted is of no revision of ours, so the update takes it.
    assert_eq!(sim.show(), ["web-0 v1", "web-1 v1", "web-7 own", "web-x own"]);
    let lost = json!({"metadata": {"labels": {"app": "other"}}});
    assert!(sim.world.patch("pods", &crate::Key::new("ns", "web-1"), &lost));
    sim.step(usize::MAX);
    assert!(sim.pod("web-1").expect("a pod").owner_references().is_empty());
}

#[test]
fn a_set_that_is_being_deleted_makes_and_takes_nothing_and_still_counts() {
    let mut sim = Sim::new(3, "v1", json!({}));
    sim.settle();
    sim.edit(json!({"metadata": {"deletionTimestamp": "2026-11-21T10:00:00Z"}}));
    sim.scale(1);
    sim.status("web-0", "Running", false);
    sim.run();
    assert!(sim.deleted.is_empty());
    assert_eq!(sim.set().status.expect("a status").ready_replicas, Some(2));
}

#[test]
fn a_pod_counts_as_available_after_min_ready_seconds_and_the_next_one_waits_for_that() {
    let mut sim = Sim::new(2, "v1", json!({"spec": {"minReadySeconds": 10}}));
    sim.run();
    sim.nodes(1);
    sim.run();
    let status = sim.set().status.expect("a status");
    assert_eq!((status.ready_replicas, status.available_replicas), (Some(1), Some(0)));
    let plan = super::super::plan(&sim.seen().expect("web"), sim.world.now);
    assert_eq!(plan.again, Some(std::time::Duration::from_secs(10)));
    assert_eq!(sim.show().len(), 1);
    sim.world.pass(10);
    sim.run();
    assert_eq!((sim.show().len(), sim.set().status.expect("a status").available_replicas), (2, Some(1)));
}

#[test]
fn a_set_that_does_not_select_its_own_pods_makes_none_and_says_why() {
    for (selector, reason) in
        [(json!({"matchLabels": {"app": "x"}}), "SelectorMismatch"), (json!({"matchLabels": null}), "SelectingAll")]
    {
        let mut sim = Sim::new(2, "v1", json!({"spec": {"selector": selector}}));
        sim.run();
        assert!(sim.show().is_empty());
        let conditions = sim.set().status.and_then(|status| status.conditions).expect("conditions");
        assert_eq!((conditions[0].type_.as_str(), conditions[0].reason.as_deref()), ("ReplicaFailure", Some(reason)));
    }
}
