//! Writes to pods, as every loop that keeps pods makes them: created in growing batches, deleted side by side, patched.
//!
//! Owns: the order and the bounds of those writes, and their events. Never decides how many pods there should be.

use crate::{
    ActError, Context, Informer, Key, Writes,
    events::{Kind, Note, Recorder},
    patch::params,
    pod_control::{self, find_out_later},
};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PostParams, Preconditions},
    core::{ApiResource, ObjectMeta},
};
use proa_crds::{Pod, reasons};
use serde_json::{Value, json};
use std::sync::Arc;

/// For whom pods are written.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    about: ObjectReference,
    selector: LabelSelector,
}

impl Owner {
    pub(crate) fn new(meta: &ObjectMeta, resource: &ApiResource, selector: &LabelSelector) -> Self {
        let about = ObjectReference {
            api_version: Some(resource.api_version.clone()),
            kind: Some(resource.kind.clone()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: None,
        };
        Owner { about, selector: selector.clone() }
    }

    fn namespace(&self) -> &str {
        self.about.namespace.as_deref().unwrap_or_default()
    }
}

/// The writer of one loop.
pub(crate) struct PodControl {
    pods: Informer<Pod>,
    recorder: Recorder,
    component: &'static str,
}

impl PodControl {
    pub(crate) fn new(context: &Context, pods: &Informer<Pod>, component: &'static str) -> Self {
        PodControl { pods: pods.clone(), recorder: context.recorder.clone(), component }
    }

    /// Writes an event about the owner.
    pub(crate) fn note(&self, owner: &Owner, kind: Kind, reason: &'static str, message: String) {
        self.recorder.note_about(self.component, owner.about.clone(), Note { kind, reason, message });
    }

    /// Creates pods in batches of 1, 2, 4, 8 …: a server that refuses is asked few times.
    pub(crate) async fn create(&self, owner: &Owner, pods: Vec<Pod>, writes: &Writes) -> Result<(), ActError> {
        let api = self.pods.api(owner.namespace());
        let (mut left, mut batch) = (pods.as_slice(), 1);
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let post = PostParams::default();
            let results = join_all(now.iter().map(|pod| api.create(&post, pod))).await;
            let mut failure = None;
            for result in results {
                match result {
                    Ok(pod) => {
                        writes.wrote(&self.pods, &pod);
                        let message = format!("Created pod: {}", pod.name_any());
                        self.note(owner, Kind::Normal, reasons::SUCCESSFUL_CREATE, message);
                    }
                    Err(error) => failure = Some(ActError::from(error)),
                }
            }
            if let Some(error) = failure {
                if matches!(error, ActError::Failed(_)) {
                    let uid = owner.about.uid.clone().unwrap_or_default();
                    find_out_later(&self.pods, owner.namespace(), uid, &owner.selector, writes);
                }
                if !matches!(error, ActError::Gone(_)) {
                    self.note(owner, Kind::Warning, reasons::FAILED_CREATE, format!("Error creating: {error}"));
                }
                return Err(error);
            }
            left = later;
            batch *= 2;
        }
        Ok(())
    }

    /// The pods the owner selects, as the server has them now.
    pub(crate) async fn held(&self, owner: &Owner) -> Result<Vec<Pod>, ActError> {
        pod_control::held(&self.pods, owner.namespace(), &owner.selector).await
    }

    /// Deletes these pods, and none that has got their name since.
    pub(crate) async fn delete(&self, owner: &Owner, victims: &[Arc<Pod>], writes: &Writes) -> Result<(), ActError> {
        let api = self.pods.api(owner.namespace());
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
                    let message = format!("Deleted pod: {}", pod.name_any());
                    self.note(owner, Kind::Normal, reasons::SUCCESSFUL_DELETE, message);
                }
                Err(ActError::Gone(_)) => {}
                Err(error) => {
                    self.note(owner, Kind::Warning, reasons::FAILED_DELETE, format!("Error deleting: {error}"));
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Patches each pod (RFC 7386); a pod that is gone needs no patch.
    pub(crate) async fn patch(
        &self,
        pods: &[Arc<Pod>],
        patch: impl Fn(&Pod) -> Value,
        writes: &Writes,
    ) -> Result<(), ActError> {
        let patches = pods.iter().map(|pod| {
            let api = self.pods.api(&pod.namespace().unwrap_or_default());
            let patch = patch(pod);
            async move { api.patch(&pod.name_any(), &params(), &Patch::Merge(&patch)).await }
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
}

/// A patch of metadata that fails with a conflict when the pod changed meanwhile.
pub(crate) fn guarded(pod: &Pod, mut metadata: Value) -> Value {
    metadata["uid"] = json!(pod.metadata.uid);
    metadata["resourceVersion"] = json!(pod.metadata.resource_version);
    json!({"metadata": metadata})
}
