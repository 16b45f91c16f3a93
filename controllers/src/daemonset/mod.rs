//! Daemon sets: one pod on every node that qualifies.
//!
//! Owns: the pods of a daemon set, its history and its status. Never binds a pod: the scheduler does, by the node affinity
//! each pod is made with.

mod nodes;
mod plan;
mod status;
#[cfg(test)]
mod tests;

pub use plan::{Action, Seen, Why, plan};

use crate::{
    ActError, Change, Context, Informer, Key, Loop, Plan, Queue, Writes,
    backoff::Backoff,
    events::{Kind, Note},
    guard,
    history::{Outcome, Parent, Recorder},
    patch::{json, merge_diff, params},
    pod_control::{Owner, PodControl, wake_by_pods, words},
    selector,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSetStatus;
use kube::{ResourceExt, api::Patch};
use proa_crds::{DaemonSet, Node, Pod, RolloutPolicy, policy::WorkloadKind, reasons, rollout_policies};
use serde_json::{Value, json};
use std::sync::Arc;

const COMPONENT: &str = "daemonset-controller";

/// The daemon set loop.
pub struct DaemonSets {
    context: Context,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    recorder: Recorder,
    policies: Informer<RolloutPolicy>,
    control: PodControl,
    backoff: Arc<Backoff>,
}

impl DaemonSets {
    /// The loop of that context's family.
    pub fn new(context: &Context) -> Self {
        let policies = context.informers.of_resource::<RolloutPolicy>(rollout_policies());
        // Another API server need not know the kind.
        policies.may_be_unknown();
        DaemonSets {
            policies,
            sets: context.informers.of_resource(context.family.daemon_set()),
            pods: context.informers.of_resource(context.family.pod()),
            nodes: context.informers.of_resource(context.family.node()),
            recorder: Recorder { revisions: context.informers.of_resource(context.family.controller_revision()) },
            control: PodControl::new(context, COMPONENT, words),
            backoff: Arc::default(),
            context: context.clone(),
        }
    }

    fn owner(&self, set: &DaemonSet) -> Owner {
        Owner::new(&set.metadata, self.sets.dynamic_type(), &set.spec.selector)
    }

    fn note(&self, set: &DaemonSet, kind: Kind, reason: &'static str, message: String) {
        self.control.note(&self.owner(set), Note { kind, reason, message });
    }

    async fn write_status(&self, set: &DaemonSet, status: &DaemonSetStatus, writes: &Writes) -> Result<(), ActError> {
        let held = set.status.as_ref().map_or_else(|| json!({}), json);
        let Some(change) = merge_diff(&held, &json(status)) else { return Ok(()) };
        self.patch_status(set, &change, writes).await
    }

    async fn patch_status(&self, set: &DaemonSet, change: &Value, writes: &Writes) -> Result<(), ActError> {
        let patch = json!({"metadata": {"uid": set.metadata.uid}, "status": change});
        let api = self.sets.api(&set.namespace().unwrap_or_default());
        let written = api.patch_status(&set.name_any(), &params(), &Patch::Merge(&patch)).await?;
        writes.wrote(&self.sets, &written);
        Ok(())
    }

    async fn delete(&self, set: &DaemonSet, pods: &[Arc<Pod>], why: &Why, writes: &Writes) -> Result<(), ActError> {
        if let Why::Failed(node) | Why::Succeeded(node) = why {
            let (namespace, uid) =
                (set.namespace().unwrap_or_default(), set.metadata.uid.as_deref().unwrap_or_default());
            for pod in pods.iter().map(|pod| pod.name_any()) {
                match why {
                    Why::Failed(_) => {
                        let message =
                            format!("Found failed daemon pod {namespace}/{pod} on node {node}, will try to kill it");
                        self.note(set, Kind::Warning, reasons::FAILED_DAEMON_POD, message);
                    }
                    _ => {
                        let message = format!(
                            "Found succeeded daemon pod {namespace}/{pod} on node {node}, will try to delete it"
                        );
                        self.note(set, Kind::Normal, reasons::SUCCEEDED_DAEMON_POD, message);
                    }
                }
            }
            self.backoff.ended(uid, node, self.context.clock.now());
        }
        self.control.delete(&self.owner(set), pods, writes).await
    }
}

/// Whether a change of a node can change where daemons belong.
fn moves_daemons(change: &Change<Node>) -> bool {
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => old.metadata.labels != new.metadata.labels || old.spec.taints != new.spec.taints,
        _ => true,
    }
}

impl Loop for DaemonSets {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "daemonset"
    }

    fn wire(&self, queue: &Queue) {
        self.pods.index_by_controller();
        self.recorder.revisions.index_by_controller();
        let (to, backoff) = (queue.clone(), self.backoff.clone());
        self.sets.on_change(move |change| {
            if let (Some(uid), None) = (change.old.as_ref().and_then(|old| old.metadata.uid.as_deref()), &change.new) {
                backoff.forget(uid);
            }
            to.add(change.key.clone());
        });
        wake_by_pods(&self.pods, &self.sets, queue, |set, pod| {
            selector::matches(&set.spec.selector, pod.metadata.labels.as_ref())
        });
        let (to, sets) = (queue.clone(), self.sets.clone());
        self.nodes.on_change(move |change| {
            if moves_daemons(change) {
                for set in sets.list() {
                    to.add(Key::of(set.as_ref()));
                }
            }
        });
        guard::wake_by_revisions(&self.recorder.revisions, self.sets.resource(), queue);
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.sets.synced().await;
            self.pods.synced().await;
            self.nodes.synced().await;
            self.recorder.revisions.synced().await;
            self.policies.synced().await;
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let set = self.sets.get(key)?;
        let policies = self.policies.in_namespace(&key.namespace);
        if guard::is_awaited(WorkloadKind::DaemonSet, &set.metadata, &set.spec.template, &policies) {
            return None;
        }
        let uid = set.metadata.uid.as_deref()?;
        let mut orphans = self.pods.orphans(&key.namespace);
        orphans.retain(|pod| selector::matches(&set.spec.selector, pod.metadata.labels.as_ref()));
        Some(Seen {
            pods: self.pods.controlled_by(uid),
            orphans,
            revisions: self.recorder.revisions.controlled_by(uid),
            orphan_revisions: self.recorder.revisions.orphans(&key.namespace),
            nodes: self.nodes.list(),
            pauses: self.backoff.pauses(uid),
            resources: (self.sets.resource(), self.pods.resource()),
            set,
        })
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Action> {
        plan(seen, now)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        let set = self.sets.get(key).ok_or_else(|| ActError::Gone(key.to_string()))?;
        let kind = self.sets.dynamic_type();
        match action {
            Action::Adopt(pod) => {
                // Our view may be old: a set that is being deleted must not adopt (its pods would be deleted with it).
                self.sets.confirm_staying(key).await?;
                self.control.adopt(&self.owner(&set), &pod, writes).await
            }
            Action::Release(pod) => self.control.release(&self.owner(&set), &pod, writes).await,
            Action::Record(write) => {
                self.sets.confirm_staying(key).await?;
                match self.recorder.write(&Parent::of_daemon_set(&set, kind), write, writes).await? {
                    Outcome::Done => Ok(()),
                    Outcome::NameTaken => {
                        let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
                        self.patch_status(&set, &json!({"collisionCount": collisions + 1}), writes).await
                    }
                }
            }
            Action::Status(status) => self.write_status(&set, &status, writes).await,
            Action::Refuse(why, status) => {
                self.note(&set, Kind::Warning, why.reason, why.message);
                self.write_status(&set, &status, writes).await
            }
            Action::Create(pods) => {
                // Our view may be old: pods of a set that is gone would only be taken away again.
                self.sets.confirm_staying(key).await?;
                self.control.create(&self.owner(&set), pods, writes).await
            }
            Action::Delete(pods, why) => self.delete(&set, &pods, &why, writes).await,
        }
    }
}
