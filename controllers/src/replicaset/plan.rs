//! What to do about one replica set. Pure.

use super::{controller::tells_terminating, order};
use crate::{Plan, pods, selector};
use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use proa_crds::{Pod, ReplicaSet, annotations, conditions, reasons};
use std::{collections::BTreeMap, sync::Arc};

/// At most this many pods are created or deleted in one go, as on Kubernetes.
const BURST: usize = 500;

/// A snapshot of one replica set.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The replica set.
    pub replica_set: Arc<ReplicaSet>,
    /// The pods it controls.
    pub pods: Vec<Arc<Pod>>,
    /// Pods of its namespace that nobody controls and its selector selects.
    pub orphans: Vec<Arc<Pod>>,
    /// The pods of every replica set with the same owner, for the deletion order.
    pub related: Vec<Arc<Pod>>,
}

/// One thing to do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Become the controller of a pod.
    Adopt(Arc<Pod>),
    /// Give up a pod the selector no longer selects.
    Release(Arc<Pod>),
    /// Create pods from the template. When that fails, the status is written with the failure.
    Create(usize, Box<ReplicaSetStatus>),
    /// Delete pods. When that fails, the status is written with the failure.
    Delete(Vec<Arc<Pod>>, Box<ReplicaSetStatus>),
    /// Give these pods the replica set's kept-configuration annotation (`None`: take it away).
    PointToConfig(Vec<Arc<Pod>>, Option<String>),
    /// Write the status.
    Status(Box<ReplicaSetStatus>),
    /// Write the status, and an event that says why no pods are made.
    Refuse(Box<ReplicaSetStatus>),
}

/// Decides what to do.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    let set = &*seen.replica_set;
    let leaving = set.metadata.deletion_timestamp.is_some();
    let (kept, strangers): (Vec<_>, Vec<_>) =
        seen.pods.iter().cloned().partition(|pod| selector::matches(&set.spec.selector, pod.metadata.labels.as_ref()));

    if !leaving && !selector::matches(&set.spec.selector, template_labels(set)) {
        return selecting_others(set, now);
    }
    if !leaving && !selector::is_empty(&set.spec.selector) {
        let adopt = seen.orphans.iter().filter(|pod| pods::is_active(pod)).cloned().map(Action::Adopt);
        let release = strangers.into_iter().map(Action::Release);
        let claims: Vec<_> = adopt.chain(release).collect();
        if !claims.is_empty() {
            return Plan::act(claims);
        }
    }

    let active: Vec<_> = kept.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
    let terminating =
        kept.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some() && !pods::is_over(pod)).count();
    let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
    let (mut status, next_available) = status(set, &active, terminating, wanted, now);
    status.terminating_replicas = status.terminating_replicas.filter(|_| tells_terminating(set));

    let mut plan = Plan::nothing();
    if !leaving {
        let pointer = set.metadata.annotations.as_ref().and_then(|map| map.get(annotations::CONFIG_REVISION));
        let pointing = |pod: &Pod| {
            pod.metadata.annotations.as_ref().and_then(|map| map.get(annotations::CONFIG_REVISION)).cloned()
        };
        let misled: Vec<_> = active.iter().filter(|pod| pointing(pod).as_ref() != pointer).cloned().collect();
        if !misled.is_empty() {
            plan.actions.push(Action::PointToConfig(misled, pointer.cloned()));
        }
        if active.len() < wanted {
            plan.actions.push(Action::Create((wanted - active.len()).min(BURST), Box::new(status)));
            return plan;
        }
        if active.len() > wanted {
            let count = (active.len() - wanted).min(BURST);
            plan.actions.push(Action::Delete(order::to_delete(active, &seen.related, count, now), Box::new(status)));
            return plan;
        }
    }
    if set.status.as_ref() != Some(&status) {
        plan.actions.push(Action::Status(Box::new(status)));
    }
    if let Some(delay) = next_available {
        plan.look_again(delay);
    }
    plan
}

/// The pods of such a template would be given up as soon as they are made, and others made in their place, without end.
/// In the standard family the API server refuses it.
fn selecting_others(set: &ReplicaSet, now: Timestamp) -> Plan<Action> {
    let held = set.status.clone().unwrap_or_default();
    let counted = ReplicaSetStatus { observed_generation: set.metadata.generation, ..held.clone() };
    let status = failed(counted, reasons::SELECTOR_MISMATCH, selector::MISMATCH.to_owned(), now);
    if status == held { Plan::nothing() } else { Plan::act(vec![Action::Refuse(Box::new(status))]) }
}

fn template_labels(set: &ReplicaSet) -> Option<&BTreeMap<String, String>> {
    set.spec.template.as_ref()?.metadata.as_ref()?.labels.as_ref()
}

/// The status of that view, and when the next ready pod becomes available.
fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    wanted: usize,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<std::time::Duration>) {
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let fully_labeled = |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        template_labels(set)
            .into_iter()
            .flatten()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    };
    let (mut labeled, mut ready, mut available) = (0, 0, 0);
    let mut next = None;
    for pod in active {
        labeled += i32::from(fully_labeled(pod));
        if let Some(wait) = pods::available_in(pod, min_ready, now) {
            ready += 1;
            if wait.is_zero() {
                available += 1;
            } else {
                next = Some(next.map_or(wait, |next: std::time::Duration| next.min(wait)));
            }
        }
    }
    let held = set.status.as_ref();
    // A failure stands until the size is right again; creating or deleting sets it (see `failed`).
    let conditions = held.and_then(|held| held.conditions.clone()).map(|list| {
        list.into_iter()
            .filter(|held| held.type_ != conditions::REPLICA_FAILURE || active.len() != wanted)
            .collect::<Vec<_>>()
    });
    let status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: Some(labeled).filter(|n| *n > 0),
        ready_replicas: Some(ready).filter(|n| *n > 0),
        available_replicas: Some(available).filter(|n| *n > 0),
        terminating_replicas: Some(count(terminating)),
        observed_generation: set.metadata.generation,
        conditions: conditions.filter(|list| !list.is_empty()),
    };
    (status, next)
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// The status with `ReplicaFailure` set.
pub fn failed(mut status: ReplicaSetStatus, reason: &str, message: String, now: Timestamp) -> ReplicaSetStatus {
    let list = status.conditions.get_or_insert_default();
    let same = list.iter().any(|held| {
        held.type_ == conditions::REPLICA_FAILURE && held.status == "True" && held.reason.as_deref() == Some(reason)
    });
    if !same {
        list.retain(|held| held.type_ != conditions::REPLICA_FAILURE);
        list.push(ReplicaSetCondition {
            type_: conditions::REPLICA_FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        });
    }
    status
}
