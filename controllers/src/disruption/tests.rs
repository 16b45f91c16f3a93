//! Tables of budgets: what is there, what is asked for, how many may go.

use super::{Action, Seen, Size, plan};
use crate::Plan;
use jiff::Timestamp;
use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use proa_crds::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const NOW: &str = "2026-11-21T10:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn budget(spec: Value, status: Value) -> Arc<PodDisruptionBudget> {
    let metadata = json!({"name": "b", "namespace": "ns", "generation": 3});
    Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).expect("a budget"))
}

fn pod(name: &str, ready: bool, edit: Value) -> Arc<Pod> {
    let ready = if ready { "True" } else { "False" };
    let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": []},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
    crate::sim::merge(&mut pod, &edit);
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

/// `ready` of `all` pods of one owner that wants `size`.
fn seen(budget: Arc<PodDisruptionBudget>, ready: usize, all: usize, size: Size) -> Seen {
    let owner = OwnerReference { uid: "u".into(), kind: "Thing".into(), name: "t".into(), ..Default::default() };
    let pods = (0..all).map(|n| (pod(&format!("p{n}"), n < ready, json!({})), Some("u".to_owned()))).collect();
    let owners = if all == 0 { BTreeMap::new() } else { BTreeMap::from([("u".to_owned(), (owner, size))]) };
    Seen { budget, pods, owners }
}

fn status(plan: &Plan<Action>) -> &PodDisruptionBudgetStatus {
    let status = plan.actions.iter().find_map(|action| match action {
        Action::Status(status, _) => Some(&**status),
        _ => None,
    });
    status.expect("a status is written")
}

fn reasons(plan: &Plan<Action>) -> Vec<&str> {
    let notes = plan.actions.iter().filter_map(|action| match action {
        Action::Status(_, notes) => Some(notes),
        _ => None,
    });
    notes.flatten().map(|note| note.reason).collect()
}

#[test]
fn a_budget_allows_what_is_healthy_beyond_what_is_desired() {
    // spec, ready, pods, wanted by their owner; healthy desired, pods expected, allowed
    let table = [
        (json!({"minAvailable": 2}), 3, 3, 3, (2, 3, 1)),
        (json!({"minAvailable": 3}), 3, 3, 3, (3, 3, 0)),
        (json!({"minAvailable": 2}), 1, 3, 3, (2, 3, 0)),
        (json!({"minAvailable": 0}), 3, 3, 3, (0, 3, 3)),
        // A number counts the pods there are, a share those that are wanted; a share of pods rounds up.
        (json!({"minAvailable": 1}), 2, 2, 5, (1, 2, 1)),
        (json!({"minAvailable": "50%"}), 5, 5, 5, (3, 5, 2)),
        (json!({"minAvailable": "28%"}), 7, 7, 7, (2, 7, 5)),
        (json!({"minAvailable": "100%"}), 7, 7, 7, (7, 7, 0)),
        (json!({"minAvailable": "50%"}), 3, 3, 10, (5, 10, 0)),
        (json!({"maxUnavailable": 1}), 3, 3, 3, (2, 3, 1)),
        (json!({"maxUnavailable": 0}), 3, 3, 3, (3, 3, 0)),
        (json!({"maxUnavailable": 5}), 3, 3, 3, (0, 3, 3)),
        (json!({"maxUnavailable": "30%"}), 10, 10, 10, (7, 10, 3)),
        (json!({"maxUnavailable": "1%"}), 10, 10, 10, (9, 10, 1)),
        (json!({"maxUnavailable": 1}), 2, 3, 3, (2, 3, 0)),
    ];
    for (spec, ready, all, wanted, (desired, expected, allowed)) in table {
        let plan = plan(&seen(budget(spec.clone(), Value::Null), ready, all, Size::Wanted(wanted)), at(NOW));
        let status = status(&plan);
        let found = (status.desired_healthy, status.expected_pods, status.disruptions_allowed);
        assert_eq!(found, (Some(desired), Some(expected), Some(allowed)), "{spec}, {ready} of {all} ready");
        assert_eq!((status.current_healthy, status.observed_generation), (Some(ready as i32), Some(3)));
        let condition = &status.conditions.as_ref().unwrap()[0];
        let words = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
        assert_eq!(
            (&*condition.status, &*condition.reason, condition.observed_generation),
            (words.0, words.1, Some(3))
        );
    }
}

#[test]
fn a_budget_without_pods_allows_nothing_and_says_so() {
    let plan = plan(&seen(budget(json!({"minAvailable": 0}), Value::Null), 0, 0, Size::NotAsked), at(NOW));
    assert_eq!((status(&plan).disruptions_allowed, reasons(&plan)), (Some(0), vec!["NoPods"]));
}

#[test]
fn a_status_that_is_true_is_not_written_again() {
    let first = plan(&seen(budget(json!({"minAvailable": 1}), Value::Null), 2, 2, Size::NotAsked), at(NOW));
    let held = serde_json::to_value(status(&first)).unwrap();
    let later = plan(&seen(budget(json!({"minAvailable": 1}), held), 2, 2, Size::NotAsked), at("2026-11-21T11:00:00Z"));
    assert!(later.actions.is_empty() && later.again.is_none(), "{later:?}");
}

#[test]
fn sizes_are_asked_for_only_where_the_budget_is_in_their_terms() {
    let asks = |spec: Value| {
        let plan = plan(&seen(budget(spec, Value::Null), 1, 1, Size::NotAsked), at(NOW));
        matches!(plan.actions.as_slice(), [Action::Ask(owners)] if owners[0].name == "t")
    };
    assert!(!asks(json!({"minAvailable": 1})));
    assert!(asks(json!({"minAvailable": "1%"})));
    assert!(asks(json!({"maxUnavailable": 1})));
}

#[test]
fn what_cannot_be_counted_is_not_disrupted() {
    let failing = seen(budget(json!({"maxUnavailable": 1}), Value::Null), 3, 3, Size::Unknown("no scale".into()));
    let found = plan(&failing, at(NOW));
    let condition = &status(&found).conditions.as_ref().unwrap()[0];
    assert_eq!(
        (&*condition.reason, &*condition.message, status(&found).disruptions_allowed),
        ("SyncFailed", "no scale", Some(0))
    );
    assert_eq!((reasons(&found), found.again.is_some()), (vec!["CalculateExpectedPodCountFailed"], true));
    // Said once: a second look at the same finds nothing to write.
    let held = serde_json::to_value(status(&found)).unwrap();
    let again = seen(budget(json!({"maxUnavailable": 1}), held), 3, 3, Size::Unknown("no scale".into()));
    assert!(plan(&again, at(NOW)).actions.is_empty());

    let mut alone = seen(budget(json!({"maxUnavailable": 1}), Value::Null), 3, 3, Size::Wanted(3));
    alone.pods.push((pod("stray", true, json!({})), None));
    assert_eq!(reasons(&plan(&alone, at(NOW))), ["UnmanagedPods"]);
}

#[test]
fn a_granted_eviction_counts_until_its_pod_goes_or_two_minutes_have_passed() {
    let held = json!({"disruptionsAllowed": 0, "disruptedPods": {"p0": "2026-11-21T09:59:00Z"}});
    let mut granted = seen(budget(json!({"minAvailable": 2}), held), 4, 4, Size::NotAsked);
    let soon = plan(&granted, at(NOW));
    assert_eq!((status(&soon).current_healthy, status(&soon).disruptions_allowed), (Some(3), Some(1)));
    assert!(status(&soon).disrupted_pods.as_ref().unwrap().contains_key("p0"));
    assert_eq!(soon.again, Some(Duration::from_secs(61)));

    let late = plan(&granted, at("2026-11-21T10:01:01Z"));
    assert!(matches!(&late.actions[0], Action::NotDeleted(pod) if pod.metadata.name.as_deref() == Some("p0")));
    assert_eq!((status(&late).current_healthy, status(&late).disrupted_pods.as_ref()), (Some(4), None));

    // Marked for deletion it is neither healthy nor remembered.
    granted.pods[0].0 = pod("p0", true, json!({"metadata": {"deletionTimestamp": NOW}}));
    let marked = plan(&granted, at(NOW));
    assert_eq!((status(&marked).current_healthy, status(&marked).disrupted_pods.as_ref()), (Some(3), None));
}

proptest! {
    /// Whoever evicts as many as are allowed, one after the other, never gets below what is desired.
    #[test]
    fn evictions_never_go_below_the_budget(all in 1usize..12, down in 0usize..12, min in 0i32..12, percent in 0i32..101, share: bool) {
        let ready = all.saturating_sub(down);
        let spec = if share { json!({"minAvailable": format!("{percent}%")}) } else { json!({"minAvailable": min}) };
        let mut seen = seen(budget(spec, Value::Null), ready, all, Size::Wanted(all as i32));
        let mut held = PodDisruptionBudgetStatus::default();
        let mut evicted = 0usize;
        loop {
            seen.budget = budget(serde_json::to_value(seen.budget.spec.clone()).unwrap(), serde_json::to_value(&held).unwrap());
            if let Some(Action::Status(status, _)) = plan(&seen, at(NOW)).actions.pop() {
                held = *status;
            }
            if held.disruptions_allowed.unwrap_or(0) <= 0 {
                break;
            }
            // The grant: one less, the pod named; whether it is marked before the next count is left open.
            held.disruptions_allowed = held.disruptions_allowed.map(|allowed| allowed - 1);
            let name = format!("p{evicted}");
            if evicted.is_multiple_of(2) {
                seen.pods[evicted].0 = pod(&name, true, json!({"metadata": {"deletionTimestamp": NOW}}));
            } else {
                held.disrupted_pods.get_or_insert_default().insert(name, k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(NOW)));
            }
            evicted += 1;
            prop_assert!(evicted <= all);
        }
        let desired = held.desired_healthy.unwrap_or(0);
        prop_assert!(evicted == 0 || (ready - evicted) as i32 >= desired, "{evicted} of {ready} evicted, {desired} desired");
    }
}
