//! What follows from a node's state, and from its silence. Pure.

use crate::{
    Plan, pods,
    taints::{NO_EXECUTE, NO_SCHEDULE, NOT_READY, Stay, UNREACHABLE, stay},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{NodeCondition, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};
use proa_crds::{Node, Pod};
use std::{collections::HashSet, sync::Arc, time::Duration};

/// A node that has not been heard of for this long is unreachable (Kubernetes' `--node-monitor-grace-period`).
pub const GRACE: Duration = Duration::from_secs(50);
/// A node that never told its state gets longer (`--node-startup-grace-period`).
pub const STARTUP_GRACE: Duration = Duration::from_secs(60);

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that keep pods away while they are `True`.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// What nobody knows any more once a node is silent.
const UNKNOWN_WHEN_SILENT: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// A node, what is on it, and since when we have not heard of it.
#[derive(Debug)]
pub struct Seen {
    /// The node.
    pub node: Arc<Node>,
    /// The pods bound to it.
    pub pods: Vec<Arc<Pod>>,
    /// When its lease or its status was last seen to change, by our clock: clocks of machines differ.
    pub heard: Timestamp,
    /// Since when each of its `NoExecute` taints has been there, by our clock.
    pub tainted: Vec<(Taint, Timestamp)>,
    /// The uids of the pods that have been marked as not ready in this silence.
    pub marked: HashSet<String>,
}

/// One write.
#[derive(Debug)]
pub enum Action {
    /// The node's conditions, as a whole.
    Conditions(Vec<NodeCondition>),
    /// The node's taints, as a whole.
    Taints(Vec<Taint>),
    /// The pod's node is silent: nobody can say that the pod is ready.
    NotReady(Arc<Pod>),
    /// The pod does not tolerate a taint (any longer).
    Evict(Arc<Pod>),
}

/// Decides about one node.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Action> {
    let mut plan = Plan::nothing();
    let conditions = judge_silence(seen, now, &mut plan);
    let current =
        conditions.as_deref().or(seen.node.status.as_ref().and_then(|s| s.conditions.as_deref())).unwrap_or_default();
    if let Some(taints) = taints(&seen.node, current, now) {
        plan.actions.push(Action::Taints(taints));
    }
    if ready(current) == Some("Unknown") {
        // Once in a silence, as on Kubernetes: a pod that is ready again after that has been heard, and its node would only
        // say so again.
        let is_marked = |pod: &Pod| pod.metadata.uid.as_ref().is_some_and(|uid| seen.marked.contains(uid));
        let ready = seen.pods.iter().filter(|pod| pods::is_ready(pod) && !is_marked(pod));
        plan.actions.extend(ready.cloned().map(Action::NotReady));
    }
    if let Some(conditions) = conditions {
        // First of all: it is what the taints and the pods follow from.
        plan.actions.insert(0, Action::Conditions(conditions));
    }
    evict(seen, now, &mut plan);
    plan
}

pub(super) fn ready(conditions: &[NodeCondition]) -> Option<&str> {
    conditions.iter().find(|condition| condition.type_ == "Ready").map(|condition| condition.status.as_str())
}

/// The conditions of a node that has been silent for too long; otherwise looks again when it would be.
fn judge_silence(seen: &Seen, now: Timestamp, plan: &mut Plan<Action>) -> Option<Vec<NodeCondition>> {
    let mut conditions = seen.node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let told = ready(&conditions).is_some();
    let grace = if told { GRACE } else { STARTUP_GRACE };
    let silent = since(seen.heard, now);
    if silent < grace {
        plan.look_again(grace - silent);
        return None;
    }
    let mut changed = false;
    for type_ in UNKNOWN_WHEN_SILENT {
        match conditions.iter_mut().find(|condition| condition.type_ == type_) {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(now));
                changed = true;
            }
            None => {
                conditions.push(NodeCondition {
                    type_: type_.to_owned(),
                    status: "Unknown".to_owned(),
                    reason: Some("NodeStatusNeverUpdated".to_owned()),
                    message: Some("Kubelet never posted node status.".to_owned()),
                    last_transition_time: Some(Time(now)),
                    last_heartbeat_time: seen.node.metadata.creation_timestamp.clone(),
                });
                changed = true;
            }
        }
    }
    changed.then_some(conditions)
}

/// The node's taints with those that follow from its conditions; `None` when they are right.
fn taints(node: &Node, conditions: &[NodeCondition], now: Timestamp) -> Option<Vec<Taint>> {
    let held = node.spec.taints.clone().unwrap_or_default();
    let wanted = wanted(node, conditions);
    let is_ours = |taint: &Taint| {
        let by_condition = PRESSURES.iter().any(|(_, key)| taint.key == *key && taint.effect == NO_SCHEDULE);
        by_condition
            || [NOT_READY, UNREACHABLE].contains(&taint.key.as_str())
                && [NO_SCHEDULE, NO_EXECUTE].contains(&taint.effect.as_str())
            || taint.key == UNSCHEDULABLE && taint.effect == NO_SCHEDULE
    };
    let is = |taint: &Taint, (key, effect): &(&str, &str)| taint.key == *key && taint.effect == *effect;
    let mut taints: Vec<Taint> =
        held.iter().filter(|taint| !is_ours(taint) || wanted.iter().any(|w| is(taint, w))).cloned().collect();
    for want in &wanted {
        if !taints.iter().any(|taint| is(taint, want)) {
            let (key, effect) = (want.0.to_owned(), want.1.to_owned());
            taints.push(Taint { key, effect, value: None, time_added: Some(Time(now)) });
        }
    }
    (taints != held).then_some(taints)
}

fn wanted(node: &Node, conditions: &[NodeCondition]) -> Vec<(&'static str, &'static str)> {
    let mut wanted = match ready(conditions) {
        Some("True") => vec![],
        Some("False") => vec![(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)],
        Some(_) => vec![(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)],
        // It has not told anything yet: nothing is placed there, and nothing that is there has to leave.
        None => vec![(NOT_READY, NO_SCHEDULE)],
    };
    let is_true =
        |type_: &str| conditions.iter().any(|condition| condition.type_ == type_ && condition.status == "True");
    wanted.extend(PRESSURES.iter().filter(|(type_, _)| is_true(type_)).map(|(_, key)| (*key, NO_SCHEDULE)));
    if node.spec.unschedulable == Some(true) {
        wanted.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    wanted
}

fn evict(seen: &Seen, now: Timestamp, plan: &mut Plan<Action>) {
    if seen.tainted.is_empty() {
        return;
    }
    for pod in seen.pods.iter().filter(|pod| pods::is_active(pod)) {
        let tolerations = pod.spec.tolerations.as_deref().unwrap_or_default();
        let left = seen.tainted.iter().filter_map(|(taint, from)| match stay(taint, tolerations) {
            Stay::Forever => None,
            Stay::For(stay) => Some(stay.saturating_sub(since(*from, now))),
        });
        match left.min() {
            None => {}
            Some(Duration::ZERO) => plan.actions.push(Action::Evict(pod.clone())),
            Some(left) => plan.look_again(left),
        }
    }
}

fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}
