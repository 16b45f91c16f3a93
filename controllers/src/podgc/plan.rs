//! Which pods nobody needs any more. Pure.

use crate::{Plan, pods};
use jiff::Timestamp;
use proa_crds::Pod;
use std::{sync::Arc, time::Duration};

/// How many ended pods are kept (Kubernetes' `--terminated-pod-gc-threshold`).
pub const KEPT_AFTER_THEIR_END: usize = 12_500;
/// How long a node may be missing before its pods go (Kubernetes waits the same).
pub const QUARANTINE: Duration = Duration::from_secs(40);

/// What is known of the node a pod is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// It is there, or there is none yet.
    There,
    /// It has not been there since.
    Missing(Timestamp),
    /// It is not ready, and somebody has said that it will not come back as it was (KEP-2268).
    OutOfService,
}

/// One pod with what decides about it, or all that have ended.
#[derive(Debug)]
pub enum Seen {
    /// A pod, and what is known of its node.
    Pod(Arc<Pod>, Home),
    /// The pods that have ended.
    Ended(Vec<Arc<Pod>>),
}

/// Why a pod goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its node does not exist any more.
    Orphaned,
    /// It was deleted before it got a node: nobody else will finish that.
    NeverPlaced,
    /// It was deleted, and its node is out of service: nobody else will finish that either.
    OutOfService,
    /// It ended long ago and there are too many of those.
    Ended,
}

/// Remove this pod at once.
#[derive(Debug)]
pub struct Action(pub Arc<Pod>, pub Why);

/// Whether the pod has ended, is deleted, and waits for nothing but its finalizers: whose they are has the word.
fn only_held(pod: &Pod) -> bool {
    let held = pod.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty());
    held && pod.metadata.deletion_timestamp.is_some() && pods::is_over(pod)
}

/// Decides about one pod, or about all that have ended.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    match seen {
        Seen::Pod(pod, _) if only_held(pod) => Plan::nothing(),
        Seen::Pod(pod, _) if pods::node(pod).is_none() => {
            let deleted = pod.metadata.deletion_timestamp.is_some();
            Plan::act(deleted.then(|| Action(pod.clone(), Why::NeverPlaced)).into_iter().collect())
        }
        Seen::Pod(_, Home::There) => Plan::nothing(),
        Seen::Pod(pod, Home::OutOfService) => {
            let deleted = pod.metadata.deletion_timestamp.is_some();
            Plan::act(deleted.then(|| Action(pod.clone(), Why::OutOfService)).into_iter().collect())
        }
        Seen::Pod(pod, Home::Missing(missing_since)) => {
            let missing = Duration::try_from(now.duration_since(*missing_since)).unwrap_or_default();
            if missing >= QUARANTINE {
                return Plan::act(vec![Action(pod.clone(), Why::Orphaned)]);
            }
            Plan { actions: Vec::new(), again: Some(QUARANTINE - missing) }
        }
        Seen::Ended(ended) => {
            let mut oldest: Vec<&Arc<Pod>> = ended.iter().collect();
            oldest.sort_by_key(|pod| {
                // What its node has thrown out goes before what came to its own end.
                let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
                let made = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
                (reason != Some("Evicted"), made, pod.metadata.name.clone())
            });
            let surplus = ended.len().saturating_sub(KEPT_AFTER_THEIR_END);
            Plan::act(oldest.into_iter().take(surplus).map(|pod| Action(pod.clone(), Why::Ended)).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(metadata: Value, node: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": metadata, "spec": {"nodeName": node, "containers": []}}))
                .unwrap(),
        )
    }

    fn said(plan: Plan<Action>) -> Vec<(String, Why)> {
        plan.actions.iter().map(|Action(pod, why)| (pod.metadata.name.clone().unwrap(), *why)).collect()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_pod_whose_node_is_gone_goes_after_the_quarantine() {
        let orphan = pod(json!({"name": "a"}), "gone");
        let early = plan(&Seen::Pod(orphan.clone(), Home::Missing(at(100))), at(110));
        assert_eq!((early.actions.len(), early.again), (0, Some(Duration::from_secs(30))));
        let late = plan(&Seen::Pod(orphan.clone(), Home::Missing(at(100))), at(140));
        assert_eq!(said(late), [("a".to_owned(), Why::Orphaned)]);
        assert!(plan(&Seen::Pod(orphan, Home::There), at(999)).actions.is_empty());
    }

    #[test]
    fn a_pod_deleted_before_it_got_a_node_goes_at_once() {
        let deleted = pod(json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}), "");
        assert_eq!(said(plan(&Seen::Pod(deleted, Home::There), at(0))), [("a".to_owned(), Why::NeverPlaced)]);
        assert!(plan(&Seen::Pod(pod(json!({"name": "a"}), ""), Home::There), at(0)).actions.is_empty());
    }

    #[test]
    fn a_deleted_pod_of_a_node_out_of_service_goes_at_once_and_no_other() {
        let deleted = pod(json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}), "n");
        let goes = plan(&Seen::Pod(deleted, Home::OutOfService), at(0));
        assert_eq!(said(goes), [("a".to_owned(), Why::OutOfService)]);
        assert!(plan(&Seen::Pod(pod(json!({"name": "a"}), "n"), Home::OutOfService), at(0)).actions.is_empty());
    }

    /// A Job's pod keeps its finalizer until it is counted, and it is counted when it has ended.
    #[test]
    fn a_pod_that_others_hold_is_ended_once_and_then_left_to_them() {
        let held = json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x/y"]});
        for (node, home) in [("", Home::There), ("gone", Home::Missing(at(0)))] {
            let waiting = pod(held.clone(), node);
            assert_eq!(plan(&Seen::Pod(waiting.clone(), home), at(999)).actions.len(), 1);
            let mut ended = (*waiting).clone();
            ended.status.get_or_insert_default().phase = Some("Failed".into());
            assert!(plan(&Seen::Pod(Arc::new(ended), home), at(999)).actions.is_empty());
        }
    }

    #[test]
    fn of_too_many_ended_pods_the_oldest_go() {
        let made = |i: usize| {
            pod(json!({"name": format!("p{i}"), "creationTimestamp": at(20_000 - i as i64).to_string()}), "n")
        };
        let ended: Vec<_> = (0..KEPT_AFTER_THEIR_END + 2).map(made).collect();
        let oldest = [KEPT_AFTER_THEIR_END + 1, KEPT_AFTER_THEIR_END].map(|i| (format!("p{i}"), Why::Ended));
        assert_eq!(said(plan(&Seen::Ended(ended.clone()), at(0))), oldest);
        // The newest of all, if its node threw it out, goes first.
        let mut ended = ended;
        let mut evicted = (*ended[0]).clone();
        evicted.status.get_or_insert_default().reason = Some("Evicted".to_owned());
        ended[0] = Arc::new(evicted);
        assert_eq!(said(plan(&Seen::Ended(ended), at(0)))[0].0, "p0");
    }
}
