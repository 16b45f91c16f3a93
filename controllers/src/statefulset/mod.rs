//! Stateful sets: pods with names of their own, in order.
//!
//! Owns: the pods of a stateful set, their persistent volume claims, its history and its status. Never makes a volume, and
//! never deletes a claim: the garbage collector does, where the owner references say so (KEP-1847).

mod claims;
mod identity;
mod plan;
mod status;
#[cfg(test)]
mod tests;

pub use plan::{Action, Seen, Why, plan};

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    backoff::Backoff,
    events::{Kind, Note},
    guard,
    history::{Outcome, Parent, Recorder},
    owners,
    patch::{MANAGER, json, merge_diff, params},
    pod_control::{Deed, Owner, PodControl},
    scale::status_with_selector,
    selector,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::StatefulSetStatus, core::v1::PersistentVolumeClaim};
use kube::{
    ResourceExt,
    api::{Patch, PostParams},
};
use proa_crds::{Pod, RolloutPolicy, StatefulSet, policy::WorkloadKind, reasons, rollout_policies};
use serde_json::{Value, json};
use std::sync::Arc;

const COMPONENT: &str = "statefulset-controller";

/// The stateful set loop.
pub struct StatefulSets {
    context: Context,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    recorder: Recorder,
    policies: Informer<RolloutPolicy>,
    control: PodControl,
    backoff: Arc<Backoff>,
}

impl StatefulSets {
    /// The loop of that context's family.
    pub fn new(context: &Context) -> Self {
        let policies = context.informers.of_resource::<RolloutPolicy>(rollout_policies());
        // Another API server need not know the kind.
        policies.may_be_unknown();
        StatefulSets {
            policies,
            sets: context.informers.of_resource(context.family.stateful_set()),
            pods: context.informers.of_resource(context.family.pod()),
            claims: context.informers.of(),
            recorder: Recorder { revisions: context.informers.of_resource(context.family.controller_revision()) },
            control: PodControl::new(context, COMPONENT, words),
            backoff: Arc::default(),
            context: context.clone(),
        }
    }

    fn owner(&self, set: &StatefulSet) -> Owner {
        Owner::new(&set.metadata, self.sets.dynamic_type(), &set.spec.selector)
    }

    fn note(&self, set: &StatefulSet, kind: Kind, reason: &'static str, message: String) {
        self.control.note(&self.owner(set), Note { kind, reason, message });
    }

    async fn write_status(
        &self,
        set: &StatefulSet,
        status: &StatefulSetStatus,
        writes: &Writes,
    ) -> Result<(), ActError> {
        let held = set.status.as_ref().map_or_else(|| json!({}), json);
        let Some(change) = merge_diff(&held, &json(status)) else { return Ok(()) };
        self.patch_status(set, &change, writes).await
    }

    async fn patch_status(&self, set: &StatefulSet, change: &Value, writes: &Writes) -> Result<(), ActError> {
        let change = status_with_selector(&self.sets.resource(), &set.spec.selector, change.clone());
        let patch = json!({"metadata": {"uid": set.metadata.uid}, "status": change});
        let api = self.sets.api(&set.namespace().unwrap_or_default());
        let written = api.patch_status(&set.name_any(), &params(), &Patch::Merge(&patch)).await?;
        writes.wrote(&self.sets, &written);
        Ok(())
    }

    async fn create_claim(
        &self,
        set: &StatefulSet,
        claim: &PersistentVolumeClaim,
        pod: &str,
        writes: &Writes,
    ) -> Result<(), ActError> {
        let api = self.claims.api(&set.namespace().unwrap_or_default());
        let post = PostParams { field_manager: Some(MANAGER.to_owned()), dry_run: false };
        let (name, set_name) = (claim.name_any(), set.name_any());
        let error = match api.create(&post, claim).await {
            Ok(made) => {
                writes.wrote(&self.claims, &made);
                let message = format!("create Claim {name} Pod {pod} in StatefulSet {set_name} success");
                self.note(set, Kind::Normal, reasons::SUCCESSFUL_CREATE, message);
                return Ok(());
            }
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                // Made in an earlier life, or by the user: either way it is the one.
                writes.wrote(&self.claims, &api.get(&name).await?);
                return Ok(());
            }
            Err(error) => ActError::from(error),
        };
        if !matches!(error, ActError::Gone(_)) {
            let message = format!("create Claim {name} for Pod {pod} in StatefulSet {set_name} failed error: {error}");
            self.note(set, Kind::Warning, reasons::FAILED_CREATE, message);
        }
        Err(error)
    }

    async fn delete(&self, set: &StatefulSet, pods: &[Arc<Pod>], why: Why, writes: &Writes) -> Result<(), ActError> {
        for pod in pods {
            let (namespace, set_name, name) = (pod.namespace().unwrap_or_default(), set.name_any(), pod.name_any());
            match why {
                Why::Failed => {
                    let message = format!("StatefulSet {namespace}/{set_name} is recreating failed Pod {name}");
                    self.note(set, Kind::Warning, reasons::RECREATING_FAILED_POD, message);
                }
                Why::Succeeded => {
                    let message = format!("StatefulSet {namespace}/{set_name} is recreating terminated Pod {name}");
                    self.note(set, Kind::Normal, reasons::RECREATING_TERMINATED_POD, message);
                }
                Why::Stuck => {
                    let message =
                        format!("Pod {name} is of an earlier revision and not ready: it is replaced, not waited for");
                    self.note(set, Kind::Normal, reasons::REPLACING_UNREADY_POD, message);
                }
                Why::ScaledDown | Why::Updated => continue,
            }
            if why != Why::Stuck {
                let uid = set.metadata.uid.as_deref().unwrap_or_default();
                self.backoff.ended(uid, &name, self.context.clock.now());
            }
        }
        self.control.delete(&self.owner(set), pods, writes).await
    }
}

/// What events say of pods, as Kubernetes words it.
fn words(deed: &Deed<'_>) -> String {
    let Deed { verb, pod, owner, error } = deed;
    match error {
        None => format!("{verb} Pod {pod} in StatefulSet {owner} successful"),
        Some(error) => format!("{verb} Pod {pod} in StatefulSet {owner} failed error: {error}"),
    }
}

impl Loop for StatefulSets {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "statefulset"
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
        let (to, sets, kind) = (queue.clone(), self.sets.clone(), self.sets.resource());
        self.pods.on_change(move |change| {
            for pod in change.states() {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                match owners::controller_of(&pod.metadata) {
                    Some(owner) if owner.kind == kind.kind && owner.api_version == kind.api_version => {
                        to.add(Key::new(namespace, &owner.name))
                    }
                    // A pod of somebody else may have kept a name from a set.
                    Some(_) if change.new.is_some() => {}
                    _ => {
                        for set in sets.in_namespace(namespace) {
                            if identity::ordinal(&set, pod).is_some() {
                                to.add(Key::of(set.as_ref()));
                            }
                        }
                    }
                }
            }
        });
        let (to, sets) = (queue.clone(), self.sets.clone());
        self.claims.on_change(move |change| {
            for set in sets.in_namespace(&change.key.namespace) {
                if claims::belongs(&set, &change.key.name) {
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
            self.claims.synced().await;
            self.recorder.revisions.synced().await;
            self.policies.synced().await;
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let set = self.sets.get(key)?;
        let policies = self.policies.in_namespace(&key.namespace);
        if guard::is_awaited(WorkloadKind::StatefulSet, &set.metadata, &set.spec.template, &policies) {
            return None;
        }
        let uid = set.metadata.uid.as_deref()?;
        let mut orphans = self.pods.orphans(&key.namespace);
        orphans.retain(|pod| selector::matches(&set.spec.selector, pod.metadata.labels.as_ref()));
        let claims = match claims::templates(&set).next() {
            None => Vec::new(),
            Some(_) => self.claims.in_namespace(&key.namespace),
        };
        let claims = claims.into_iter().filter(|claim| claims::belongs(&set, &claim.name_any()));
        Some(Seen {
            pods: self.pods.controlled_by(uid),
            orphans,
            revisions: self.recorder.revisions.controlled_by(uid),
            orphan_revisions: self.recorder.revisions.orphans(&key.namespace),
            claims: claims.map(|claim| (claim.name_any(), claim)).collect(),
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
                match self.recorder.write(&Parent::of_stateful_set(&set, kind), write, writes).await? {
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
            Action::CreateClaim(claim, pod) => self.create_claim(&set, &claim, &pod, writes).await,
            Action::PatchClaim(claim, patch) => {
                let api = self.claims.api(&key.namespace);
                match api.patch(&claim.name_any(), &params(), &Patch::Merge(&patch)).await.map_err(ActError::from) {
                    Ok(written) => writes.wrote(&self.claims, &written),
                    Err(ActError::Gone(_)) => {}
                    Err(error) => return Err(error),
                }
                Ok(())
            }
            Action::Create(pods) => {
                // Our view may be old: pods of a set that is gone would only be taken away again.
                self.sets.confirm_staying(key).await?;
                self.control.create(&self.owner(&set), pods, writes).await
            }
            Action::PatchPod(pod, patch) => self.control.patch(&[pod], |_| patch.clone(), writes).await,
            Action::Delete(pods, why) => self.delete(&set, &pods, why, writes).await,
        }
    }
}
