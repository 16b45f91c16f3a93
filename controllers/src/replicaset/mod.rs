//! ReplicaSets and ReplicationControllers: as many pods as asked for.
//!
//! Owns: the pods a replica set controls (create, delete, adopt, release) and its status. Never touches a pod's
//! spec or a pod of someone else.

mod controller;
mod order;
mod plan;
#[cfg(test)]
mod tests;

pub use controller::ReplicationController;
pub(crate) use order::to_delete;
pub use plan::{Action, Seen, failed, plan};

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    events::{Kind, Note},
    informer::Watched,
    owners,
    patch::{json, merge_diff, params},
    pod_control::{Owner, PodControl, wake_by_pods, words},
    pods,
    scale::status_with_selector,
    selector,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::{api::apps::v1::ReplicaSetStatus, api::core::v1::PodTemplateSpec};
use kube::{
    Resource, ResourceExt,
    api::Patch,
    core::{ApiResource, DynamicResourceScope, ObjectMeta, TypeMeta},
};
use proa_crds::{Family, Pod, ReplicaSet, annotations, reasons};
use serde_json::json;
use std::sync::Arc;

/// What the loop drives: ReplicaSets, or what reads as one.
pub trait Replicates: Watched + Resource<DynamicType = ApiResource, Scope = DynamicResourceScope> {
    /// For logs and metrics.
    const NAME: &'static str;
    /// Who speaks in its events.
    const COMPONENT: &'static str;

    /// Where it is served.
    fn resource(family: Family) -> ApiResource;

    /// It as a ReplicaSet.
    fn as_set(object: Arc<Self>) -> Arc<ReplicaSet>;
}

impl Replicates for ReplicaSet {
    const NAME: &'static str = "replicaset";
    const COMPONENT: &'static str = "replicaset-controller";

    fn resource(family: Family) -> ApiResource {
        family.replica_set()
    }

    fn as_set(object: Arc<Self>) -> Arc<ReplicaSet> {
        object
    }
}

/// The replica set loop.
pub struct ReplicaSets<S: Replicates = ReplicaSet> {
    context: Context,
    sets: Informer<S>,
    pods: Informer<Pod>,
    control: PodControl,
}

impl<S: Replicates> ReplicaSets<S> {
    /// The loop of that context's family.
    pub fn new(context: &Context) -> Self {
        let pods = context.informers.of_resource(context.family.pod());
        ReplicaSets {
            sets: context.informers.of_resource(S::resource(context.family)),
            control: PodControl::new(context, S::COMPONENT, words),
            pods,
            context: context.clone(),
        }
    }

    fn set(&self, key: &Key) -> Result<Arc<ReplicaSet>, ActError> {
        self.sets.get(key).map(S::as_set).ok_or_else(|| ActError::Gone(key.to_string()))
    }

    fn owner(&self, set: &ReplicaSet) -> Owner {
        Owner::new(&set.metadata, self.sets.dynamic_type(), &set.spec.selector)
    }

    async fn create(&self, set: &ReplicaSet, count: usize, writes: &Writes) -> Result<(), ActError> {
        let pod = pod_of(set, self.sets.dynamic_type(), self.pods.dynamic_type());
        self.control.create(&self.owner(set), vec![pod; count], writes).await
    }

    async fn write_status(&self, set: &ReplicaSet, status: &ReplicaSetStatus, writes: &Writes) -> Result<(), ActError> {
        let held = set.status.as_ref().map_or_else(|| json!({}), json);
        let Some(change) = merge_diff(&held, &json(status)) else { return Ok(()) };
        let api = self.sets.api(&set.namespace().unwrap_or_default());
        let patch = json!({"status": status_with_selector(&self.sets.resource(), &set.spec.selector, change)});
        let written = api.patch_status(&set.name_any(), &params(), &Patch::Merge(&patch)).await?;
        writes.wrote(&self.sets, &written);
        Ok(())
    }

    async fn adopt(&self, set: &ReplicaSet, pod: &Arc<Pod>, writes: &Writes) -> Result<(), ActError> {
        // Our view may be old: a set that is being deleted must not adopt (its pods would be deleted with it).
        self.sets.confirm_staying(&Key::of(set)).await?;
        self.control.adopt(&self.owner(set), pod, writes).await
    }
}

/// The pod a replica set's template describes.
pub fn pod_of(set: &ReplicaSet, set_resource: &kube::core::ApiResource, pod_resource: &kube::core::ApiResource) -> Pod {
    let PodTemplateSpec { metadata, spec } = set.spec.template.clone().unwrap_or_default();
    let template = metadata.unwrap_or_default();
    let mut notes = template.annotations.unwrap_or_default();
    if let Some(secret) = set.annotations().get(annotations::CONFIG_REVISION) {
        notes.insert(annotations::CONFIG_REVISION.to_owned(), secret.clone());
    }
    Pod {
        types: Some(TypeMeta { api_version: pod_resource.api_version.clone(), kind: pod_resource.kind.clone() }),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            namespace: set.namespace(),
            labels: template.labels,
            annotations: Some(notes).filter(|notes| !notes.is_empty()),
            finalizers: template.finalizers,
            owner_references: Some(vec![owners::controller_reference(set, set_resource)]),
            ..Default::default()
        },
        spec: spec.unwrap_or_default(),
        status: None,
    }
}

impl<S: Replicates> Loop for ReplicaSets<S> {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        S::NAME
    }

    fn wire(&self, queue: &Queue) {
        self.pods.index_by_controller();
        self.sets.index_by_controller();
        let to = queue.clone();
        self.sets.on_change(move |change| to.add(change.key.clone()));
        wake_by_pods(&self.pods, &self.sets, queue, |set, pod| {
            selector::matches(&S::as_set(set).spec.selector, pod.metadata.labels.as_ref())
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.sets.synced().await;
            self.pods.synced().await;
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let replica_set = S::as_set(self.sets.get(key)?);
        let pods = self.pods.controlled_by(replica_set.metadata.uid.as_deref()?);
        let mut orphans = self.pods.orphans(&key.namespace);
        orphans.retain(|pod| selector::matches(&replica_set.spec.selector, pod.metadata.labels.as_ref()));
        // Only shrinking asks for the neighbours.
        let wanted = usize::try_from(replica_set.spec.replicas.unwrap_or(1)).unwrap_or(0);
        let related = match owners::controller_of(&replica_set.metadata) {
            Some(owner) if pods.iter().filter(|pod| pods::is_active(pod)).count() > wanted => self
                .sets
                .controlled_by(&owner.uid)
                .iter()
                .filter_map(|sibling| sibling.meta().uid.as_deref())
                .flat_map(|uid| self.pods.controlled_by(uid))
                .collect(),
            _ => pods.clone(),
        };
        Some(Seen { replica_set, pods, orphans, related })
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Action> {
        plan(seen, now)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        let set = self.set(key)?;
        let (outcome, status, reason) = match action {
            Action::Adopt(pod) => return self.adopt(&set, &pod, writes).await,
            Action::Release(pod) => return self.control.release(&self.owner(&set), &pod, writes).await,
            Action::PointToConfig(pods, pointer) => {
                let patch = json!({"metadata": {"annotations": {annotations::CONFIG_REVISION: pointer}}});
                return self.control.patch(&pods, |_| patch.clone(), writes).await;
            }
            Action::Status(status) => return self.write_status(&set, &status, writes).await,
            Action::Refuse(status) => {
                let message = selector::MISMATCH.to_owned();
                let note = Note { kind: Kind::Warning, reason: reasons::SELECTOR_MISMATCH, message };
                self.control.note(&self.owner(&set), note);
                return self.write_status(&set, &status, writes).await;
            }
            Action::Create(count, status) => {
                // Our view may be old: pods of a set that is gone would only be taken away again.
                self.sets.confirm(key).await?;
                (self.create(&set, count, writes).await, status, reasons::FAILED_CREATE)
            }
            Action::Delete(pods, status) => {
                (self.control.delete(&self.owner(&set), &pods, writes).await, status, reasons::FAILED_DELETE)
            }
        };
        if let Err(error @ (ActError::Refused(_) | ActError::Told(_) | ActError::Failed(_))) = &outcome {
            let status = failed(*status, reason, error.to_string(), self.context.clock.now());
            // The failure itself is what is reported; that the status cannot be written either adds nothing.
            let _ = self.write_status(&set, &status, writes).await;
        }
        outcome
    }
}
