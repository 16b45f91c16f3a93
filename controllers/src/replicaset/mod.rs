//! ReplicaSets: as many pods as asked for.
//!
//! Owns: the pods a replica set controls (create, delete, adopt, release) and its status. Never touches a pod's
//! spec or a pod of someone else.

mod order;
mod plan;
#[cfg(test)]
mod tests;

pub use plan::{Action, Seen, failed, plan};

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    events::{Kind, Note},
    owners,
    patch::{json, merge_diff, params},
    pods, selector,
};
use futures::{
    StreamExt,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use jiff::Timestamp;
use k8s_openapi::{api::apps::v1::ReplicaSetStatus, api::core::v1::PodTemplateSpec};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PostParams, Preconditions},
    core::{ObjectMeta, TypeMeta},
};
use proa_crds::{Pod, ReplicaSet, annotations, reasons};
use serde_json::{Value, json};
use std::sync::Arc;

const COMPONENT: &str = "replicaset-controller";

/// The replica set loop.
pub struct ReplicaSets {
    context: Context,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
}

impl ReplicaSets {
    /// The loop of that context's family.
    pub fn new(context: &Context) -> Self {
        ReplicaSets {
            sets: context.informers.of_resource(context.family.replica_set()),
            pods: context.informers.of_resource(context.family.pod()),
            context: context.clone(),
        }
    }

    fn set(&self, key: &Key) -> Result<Arc<ReplicaSet>, ActError> {
        self.sets.get(key).ok_or_else(|| ActError::Gone(key.to_string()))
    }

    fn note(&self, set: &ReplicaSet, kind: Kind, reason: &'static str, message: String) {
        self.context.recorder.note(COMPONENT, self.sets.dynamic_type(), set, Note { kind, reason, message });
    }

    /// Creates pods in batches of 1, 2, 4, 8 …: a server that refuses is asked few times.
    async fn create(&self, set: &ReplicaSet, count: usize, writes: &Writes) -> Result<(), ActError> {
        let pod = pod_of(set, self.sets.dynamic_type(), self.pods.dynamic_type());
        let api = self.pods.api(&set.namespace().unwrap_or_default());
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let now = batch.min(left);
            let post = PostParams::default();
            let results = join_all((0..now).map(|_| api.create(&post, &pod))).await;
            let mut failure = None;
            for result in results {
                match result {
                    Ok(pod) => {
                        writes.wrote(&self.pods, &pod);
                        self.note(
                            set,
                            Kind::Normal,
                            reasons::SUCCESSFUL_CREATE,
                            format!("Created pod: {}", pod.name_any()),
                        );
                    }
                    Err(error) => failure = Some(ActError::from(error)),
                }
            }
            if let Some(error) = failure {
                if matches!(error, ActError::Failed(_)) {
                    self.find_out(set, writes).await;
                }
                if !matches!(error, ActError::Gone(_)) {
                    self.note(set, Kind::Warning, reasons::FAILED_CREATE, format!("Error creating: {error}"));
                }
                return Err(error);
            }
            left -= now;
            batch *= 2;
        }
        Ok(())
    }

    /// An answer that got lost may have been a yes: what the server really holds must be in view before the next
    /// count, or the same pods are made twice.
    async fn find_out(&self, set: &ReplicaSet, writes: &Writes) {
        let api = self.pods.api(&set.namespace().unwrap_or_default());
        let Ok(selected) = kube::core::Selector::try_from(set.spec.selector.clone()) else { return };
        if let Ok(pods) = api.list(&ListParams::default().labels_from(&selected)).await {
            let uid = set.metadata.uid.as_deref().unwrap_or_default();
            let mine = pods.items.iter().filter(|pod| owners::is_controlled_by(&pod.metadata, uid));
            mine.for_each(|pod| writes.wrote(&self.pods, pod));
        }
    }

    async fn delete(&self, set: &ReplicaSet, victims: Vec<Arc<Pod>>, writes: &Writes) -> Result<(), ActError> {
        let api = self.pods.api(&set.namespace().unwrap_or_default());
        let mut deletions: FuturesUnordered<_> = victims
            .iter()
            .map(|pod| {
                let api = &api;
                async move {
                    let uid = pod.metadata.uid.clone().unwrap_or_default();
                    let only_this = Preconditions { uid: Some(uid.clone()), resource_version: None };
                    let deletion = DeleteParams { preconditions: Some(only_this), ..Default::default() };
                    let result = api.delete(&pod.name_any(), &deletion).await;
                    (pod, uid, result)
                }
            })
            .collect();
        let mut failure = None;
        while let Some((pod, uid, result)) = deletions.next().await {
            match result.map_err(ActError::from) {
                Ok(_) => {
                    writes.deleted(&self.pods, &Key::of(pod.as_ref()), &uid);
                    self.note(
                        set,
                        Kind::Normal,
                        reasons::SUCCESSFUL_DELETE,
                        format!("Deleted pod: {}", pod.name_any()),
                    );
                }
                Err(ActError::Gone(_)) => {}
                Err(error) => {
                    self.note(set, Kind::Warning, reasons::FAILED_DELETE, format!("Error deleting: {error}"));
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn patch_pods(&self, pods: &[Arc<Pod>], patch: &Value, writes: &Writes) -> Result<(), ActError> {
        let patches = pods.iter().map(|pod| {
            let api = self.pods.api(&pod.namespace().unwrap_or_default());
            async move { api.patch(&pod.name_any(), &params(), &Patch::Merge(patch)).await }
        });
        let mut outcome = Ok(());
        for result in join_all(patches).await {
            match result.map_err(ActError::from) {
                Ok(pod) => writes.wrote(&self.pods, &pod),
                Err(ActError::Gone(_)) => {}
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    async fn write_status(&self, set: &ReplicaSet, status: &ReplicaSetStatus, writes: &Writes) -> Result<(), ActError> {
        let held = set.status.as_ref().map_or_else(|| json!({}), json);
        let Some(change) = merge_diff(&held, &json(status)) else { return Ok(()) };
        let api = self.sets.api(&set.namespace().unwrap_or_default());
        let patch = json!({"status": change});
        let written = api.patch_status(&set.name_any(), &params(), &Patch::Merge(&patch)).await?;
        writes.wrote(&self.sets, &written);
        Ok(())
    }

    async fn adopt(&self, set: &ReplicaSet, pod: &Arc<Pod>, writes: &Writes) -> Result<(), ActError> {
        // Our view may be old: a set that is being deleted must not adopt (its pods would be deleted with it).
        let live = self.sets.api(&set.namespace().unwrap_or_default()).get(&set.name_any()).await?;
        if live.metadata.uid != set.metadata.uid || live.metadata.deletion_timestamp.is_some() {
            return Err(ActError::Gone(set.name_any()));
        }
        let mut owners = owners::owners_without(&pod.metadata, "");
        owners.push(owners::controller_reference(set, self.sets.dynamic_type()));
        self.patch_pods(std::slice::from_ref(pod), &owners::patch(&pod.metadata, &owners), writes).await
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

impl Loop for ReplicaSets {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "replicaset"
    }

    fn wire(&self, queue: &Queue) {
        self.pods.index_by_controller();
        self.sets.index_by_controller();
        let to = queue.clone();
        self.sets.on_change(move |change| to.add(change.key.clone()));
        let (to, sets, kind) = (queue.clone(), self.sets.clone(), self.sets.resource());
        self.pods.on_change(move |change| {
            for pod in change.states() {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                match owners::controller_of(&pod.metadata) {
                    Some(owner) if owner.kind == kind.kind && owner.api_version == kind.api_version => {
                        to.add(Key::new(namespace, &owner.name))
                    }
                    Some(_) => {}
                    None if change.new.is_some() => {
                        for set in sets.in_namespace(namespace) {
                            if selector::matches(&set.spec.selector, pod.metadata.labels.as_ref()) {
                                to.add(Key::of(set.as_ref()));
                            }
                        }
                    }
                    None => {}
                }
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.sets.synced().await;
            self.pods.synced().await;
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let replica_set = self.sets.get(key)?;
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
                .filter_map(|sibling| sibling.metadata.uid.as_deref())
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
            Action::Release(pod) => {
                let owners = owners::owners_without(&pod.metadata, set.metadata.uid.as_deref().unwrap_or_default());
                return self
                    .patch_pods(std::slice::from_ref(&pod), &owners::patch(&pod.metadata, &owners), writes)
                    .await;
            }
            Action::PointToConfig(pods, pointer) => {
                let patch = json!({"metadata": {"annotations": {annotations::CONFIG_REVISION: pointer}}});
                return self.patch_pods(&pods, &patch, writes).await;
            }
            Action::Status(status) => return self.write_status(&set, &status, writes).await,
            Action::Refuse(status) => {
                self.note(&set, Kind::Warning, reasons::SELECTOR_MISMATCH, selector::MISMATCH.to_owned());
                return self.write_status(&set, &status, writes).await;
            }
            Action::Create(count, status) => {
                // Our view may be old: pods of a set that is gone would only be taken away again.
                self.sets.confirm(key).await?;
                (self.create(&set, count, writes).await, status, reasons::FAILED_CREATE)
            }
            Action::Delete(pods, status) => (self.delete(&set, pods, writes).await, status, reasons::FAILED_DELETE),
        };
        if let Err(error @ (ActError::Refused(_) | ActError::Failed(_))) = &outcome {
            let status = failed(*status, reason, error.to_string(), self.context.clock.now());
            // The failure itself is what is reported; that the status cannot be written either adds nothing.
            let _ = self.write_status(&set, &status, writes).await;
        }
        outcome
    }
}
