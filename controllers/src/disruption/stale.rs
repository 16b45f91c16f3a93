//! Announced disruptions that never came: a pod marked for disruption and not deleted within two minutes is no longer
//! about to go (KEP-3329, "stale DisruptionTarget condition").

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    pod_status::{Wanted, set_condition},
    pods,
};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use proa_crds::Pod;
use std::{sync::Arc, time::Duration};

/// The condition of a pod that somebody is about to remove.
const DISRUPTION_TARGET: &str = "DisruptionTarget";
/// How long an announcement holds (Kubernetes' `stalePodDisruptionTimeout`).
const HOLDS: SignedDuration = SignedDuration::from_mins(2);

/// The loop that takes back announcements.
pub struct StaleDisruptions {
    context: Context,
    pods: Informer<Pod>,
}

impl StaleDisruptions {
    /// The loop of that context's family.
    pub fn new(context: &Context) -> Self {
        StaleDisruptions { pods: context.informers.of_resource(context.family.pod()), context: context.clone() }
    }
}

/// Since when the pod's disruption has been announced. What the node's agent announces holds until the pod has ended.
fn announced(pod: &Pod) -> Option<Timestamp> {
    if !pods::is_active(pod) {
        return None;
    }
    let condition = pods::condition(pod, DISRUPTION_TARGET).filter(|condition| condition.status == "True")?;
    if condition.reason.as_deref() == Some("TerminationByKubelet") {
        return None;
    }
    condition.last_transition_time.as_ref().map(|time| time.0)
}

/// Decides about one pod: whether its announcement is stale.
fn plan(pod: &Arc<Pod>, now: Timestamp) -> Plan<Arc<Pod>> {
    let Some(since) = announced(pod) else { return Plan::nothing() };
    let left = HOLDS - now.duration_since(since);
    if left.is_positive() {
        return Plan { actions: Vec::new(), again: Some(Duration::try_from(left).unwrap_or_default()) };
    }
    Plan::act(vec![pod.clone()])
}

impl Loop for StaleDisruptions {
    type Seen = Arc<Pod>;
    type Action = Arc<Pod>;

    fn name(&self) -> &'static str {
        "stale-disruption"
    }

    fn wire(&self, queue: &Queue) {
        let to = queue.clone();
        self.pods.on_change(move |change| {
            if change.new.as_ref().is_some_and(|pod| announced(pod).is_some()) {
                to.add(change.key.clone());
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.pods.synced())
    }

    fn see(&self, key: &Key) -> Option<Arc<Pod>> {
        self.pods.get(key)
    }

    fn plan(&self, seen: &Arc<Pod>, now: Timestamp) -> Plan<Arc<Pod>> {
        plan(seen, now)
    }

    async fn act(&self, _: &Key, pod: Arc<Pod>, writes: &Writes) -> Result<(), ActError> {
        let wanted = Wanted { type_: DISRUPTION_TARGET, status: "False", reason: "", message: String::new() };
        let written = set_condition(&self.pods, &pod, &wanted, self.context.clock.now()).await?;
        writes.wrote(&self.pods, &written);
        Ok(())
    }

    fn workers(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(phase: &str, reason: &str, edit: serde_json::Value) -> Arc<Pod> {
        let condition = json!({"type": DISRUPTION_TARGET, "status": "True", "reason": reason, "lastTransitionTime": "2026-11-21T10:00:00Z"});
        let mut pod = json!({"metadata": {"name": "a"}, "spec": {"containers": []}, "status": {"phase": phase, "conditions": [condition]}});
        crate::sim::merge(&mut pod, &edit);
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn a_disruption_that_was_announced_and_never_came_is_taken_back_after_two_minutes() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let running = pod("Running", "EvictionByEvictionAPI", json!({}));
        let early = plan(&running, at("2026-11-21T10:01:30Z"));
        assert_eq!((early.actions.len(), early.again), (0, Some(Duration::from_secs(30))));
        assert_eq!(plan(&running, at("2026-11-21T10:02:00Z")).actions.len(), 1);
        for stays in [
            pod("Failed", "EvictionByEvictionAPI", json!({})),
            pod("Running", "TerminationByKubelet", json!({})),
            pod("Running", "EvictionByEvictionAPI", json!({"metadata": {"deletionTimestamp": "2026-11-21T10:00:00Z"}})),
        ] {
            assert!(plan(&stays, at("2026-11-21T11:00:00Z")).actions.is_empty());
        }
    }
}
