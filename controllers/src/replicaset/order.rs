//! Which pods go first when a replica set shrinks (as Kubernetes; KEP-2255 deletion cost, KEP-2185 random scale-down).

use crate::pods;
use jiff::Timestamp;
use proa_crds::{Pod, annotations};
use std::{
    cmp::{Ordering, Reverse},
    collections::HashMap,
    sync::Arc,
};

/// The `count` pods to delete: those that do least, cost least, crowd a node, or are youngest.
///
/// `related` are the active pods of every replica set with the same owner; how many of them share a node says how
/// crowded it is.
pub(crate) fn to_delete(
    mut active: Vec<Arc<Pod>>,
    related: &[Arc<Pod>],
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    if count < active.len() {
        let mut crowd: HashMap<&str, usize> = HashMap::new();
        for node in related.iter().filter(|pod| pods::is_active(pod)).filter_map(|pod| pods::node(pod)) {
            *crowd.entry(node).or_default() += 1;
        }
        let rank = |pod: &Pod| pods::node(pod).and_then(|node| crowd.get(node).copied()).unwrap_or(0);
        active.sort_by(|a, b| order(a, rank(a), b, rank(b), now));
        active.truncate(count);
    }
    active
}

/// `Less`: `a` is deleted before `b`.
fn order(a: &Pod, rank_a: usize, b: &Pod, rank_b: usize, now: Timestamp) -> Ordering {
    let by_phase = |pod: &Pod| match pods::phase(pod) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    pods::node(a)
        .is_some()
        .cmp(&pods::node(b).is_some())
        .then_with(|| by_phase(a).cmp(&by_phase(b)))
        .then_with(|| pods::is_ready(a).cmp(&pods::is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| Reverse(rank_a).cmp(&Reverse(rank_b)))
        .then_with(|| {
            if pods::is_ready(a) && pods::is_ready(b) {
                by_age(pods::ready_since(a), pods::ready_since(b), now)
            } else {
                Ordering::Equal
            }
        })
        .then_with(|| Reverse(pods::restarts(a)).cmp(&Reverse(pods::restarts(b))))
        .then_with(|| by_age(created(a), created(b), now))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod.metadata.annotations.as_ref().and_then(|map| map.get(annotations::POD_DELETION_COST));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// The younger first, but ages of the same order of magnitude (base 2) count as equal, so that pods of one generation
/// do not all go from the same place.
fn by_age(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let magnitude = |since: Option<Timestamp>| match since {
        // Unknown counts as just now.
        None => -1,
        Some(since) => i64::from((now.duration_since(since).as_secs().max(0).unsigned_abs() + 1).ilog2()),
    };
    magnitude(a).cmp(&magnitude(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2026-11-21T10:00:00Z".parse().expect("a time")
    }

    fn pod(name: &str, edit: Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-11-21T09:00:00Z"},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-21T09:00:10Z"}],
            },
        });
        crate::sim::merge(&mut pod, &edit);
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    /// The first of the two is deleted, whichever way they are given.
    fn check(first: Value, second: Value) {
        let (a, b) = (pod("a", first.clone()), pod("b", second.clone()));
        let related = [a.clone(), b.clone()];
        for pair in [vec![a.clone(), b.clone()], vec![b, a]] {
            let gone = to_delete(pair, &related, 1, now());
            assert_eq!(gone[0].metadata.name.as_deref(), Some("a"), "{first} before {second}");
        }
    }

    #[test]
    fn the_pod_that_does_least_goes_first() {
        check(json!({"spec": {"nodeName": null}}), json!({}));
        check(json!({"status": {"phase": "Pending"}}), json!({"status": {"phase": "Unknown"}}));
        check(json!({"status": {"conditions": []}}), json!({}));
        check(json!({"metadata": {"annotations": {annotations::POD_DELETION_COST: "-5"}}}), json!({}));
        check(
            json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-21T09:59:50Z"}]}}),
            json!({}),
        );
        check(
            json!({"status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 3}]}}),
            json!({}),
        );
        check(json!({"metadata": {"creationTimestamp": "2026-11-21T09:58:00Z"}}), json!({}));
    }

    #[test]
    fn of_equals_the_one_on_the_crowded_node_goes_first() {
        let (a, b) = (pod("a", json!({})), pod("b", json!({"spec": {"nodeName": "n2"}})));
        let crowd = [a.clone(), b.clone(), pod("c", json!({}))];
        assert_eq!(to_delete(vec![b, a], &crowd, 1, now())[0].metadata.name.as_deref(), Some("a"));
    }
}
