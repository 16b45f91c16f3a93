//! What a loop that owns pods does to them: create, delete, adopt, release, patch; and the events that tell of it.
//!
//! Owns: the order and the pace of these writes. Never decides which pod is made or goes.

use crate::{
    ActError, Context, Informer, Key, Writes,
    events::{Kind, Note},
    owners,
    patch::{MANAGER, params},
};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{
    Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PostParams, Preconditions},
    core::ApiResource,
};
use proa_crds::{Pod, reasons};
use serde_json::Value;
use std::sync::Arc;

/// The pods of one kind of owner.
pub(crate) struct PodControl {
    context: Context,
    pods: Informer<Pod>,
    component: &'static str,
    /// What an event says of a pod that was created or deleted, or could not be.
    words: fn(&Deed<'_>) -> String,
}

/// The pods a selector selects, as the server has them now.
pub(crate) async fn held(
    pods: &Informer<Pod>,
    namespace: &str,
    selector: &LabelSelector,
) -> Result<Vec<Pod>, ActError> {
    let selected =
        kube::core::Selector::try_from(selector.clone()).map_err(|error| ActError::Refused(error.to_string()))?;
    match pods.api(namespace).list(&ListParams::default().labels_from(&selected)).await {
        Ok(list) => Ok(list.items),
        // A pod that cannot be read is not read by asking again.
        Err(kube::Error::SerdeError(error)) => Err(ActError::Refused(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// An answer that got lost may have been a yes: what the server really holds of the owner of that uid must be in view
/// before the next count, or the same pods are made twice.
pub(crate) fn find_out_later(
    pods: &Informer<Pod>,
    namespace: &str,
    uid: String,
    selector: &LabelSelector,
    writes: &Writes,
) {
    let asked = Arc::new((pods.clone(), namespace.to_owned(), uid, selector.clone()));
    writes.unanswered(move || {
        let asked = asked.clone();
        Box::pin(async move {
            let (pods, namespace, uid, selector) = &*asked;
            let (held, found) = (held(pods, namespace, selector).await?, Writes::default());
            let mine = held.iter().filter(|pod| owners::is_controlled_by(&pod.metadata, uid));
            mine.for_each(|pod| found.wrote(pods, pod));
            Ok(found)
        })
    });
}

/// What was done or tried, for an event.
pub(crate) struct Deed<'a> {
    /// `create` or `delete`.
    pub(crate) verb: &'static str,
    /// The pod's name; empty where it was to be generated.
    pub(crate) pod: &'a str,
    /// The owner's name.
    pub(crate) owner: &'a str,
    /// Why it failed, if it did.
    pub(crate) error: Option<&'a ActError>,
}

impl PodControl {
    pub(crate) fn new(context: &Context, component: &'static str, words: fn(&Deed<'_>) -> String) -> Self {
        let pods = context.informers.of_resource(context.family.pod());
        PodControl { context: context.clone(), pods, component, words }
    }

    pub(crate) fn note<K: Resource>(&self, resource: &ApiResource, owner: &K, note: Note) {
        self.context.recorder.note(self.component, resource, owner, note);
    }

    fn tell<K: Resource>(&self, resource: &ApiResource, owner: &K, reason: &'static str, deed: Deed<'_>) {
        let kind = if deed.error.is_some() { Kind::Warning } else { Kind::Normal };
        self.note(resource, owner, Note { kind, reason, message: (self.words)(&deed) });
    }

    /// Creates pods in batches of 1, 2, 4, 8 …: a server that refuses is asked few times.
    ///
    /// A name that is taken is a conflict: what has it is looked at next.
    pub(crate) async fn create<K: Resource>(
        &self,
        resource: &ApiResource,
        owner: &K,
        selector: &LabelSelector,
        pods: Vec<Pod>,
        writes: &Writes,
    ) -> Result<(), ActError> {
        let (namespace, name) = (owner.namespace().unwrap_or_default(), owner.name_any());
        let api = self.pods.api(&namespace);
        let post = PostParams { field_manager: Some(MANAGER.to_owned()), dry_run: false };
        let (mut left, mut batch) = (&pods[..], 1);
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let results = join_all(now.iter().map(|pod| api.create(&post, pod))).await;
            let mut failure = None;
            for (pod, result) in now.iter().zip(results) {
                let wanted = pod.metadata.name.as_deref().unwrap_or_default();
                match result {
                    Ok(made) => {
                        writes.wrote(&self.pods, &made);
                        let deed = Deed { verb: "create", pod: &made.name_any(), owner: &name, error: None };
                        self.tell(resource, owner, reasons::SUCCESSFUL_CREATE, deed);
                    }
                    Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" && !wanted.is_empty() => {
                        let error = ActError::Conflict(status.message.clone());
                        if !self.is_ours(owner, wanted, writes).await {
                            let deed = Deed { verb: "create", pod: wanted, owner: &name, error: Some(&error) };
                            self.tell(resource, owner, reasons::FAILED_CREATE, deed);
                        }
                        failure = Some(error);
                    }
                    Err(error) => {
                        let error = ActError::from(error);
                        if !matches!(error, ActError::Gone(_)) {
                            let deed = Deed { verb: "create", pod: wanted, owner: &name, error: Some(&error) };
                            self.tell(resource, owner, reasons::FAILED_CREATE, deed);
                        }
                        failure = Some(error);
                    }
                }
            }
            if let Some(error) = failure {
                if matches!(error, ActError::Failed(_)) {
                    let uid = owner.meta().uid.clone().unwrap_or_default();
                    find_out_later(&self.pods, &namespace, uid, selector, writes);
                }
                return Err(error);
            }
            left = later;
            batch *= 2;
        }
        Ok(())
    }

    /// Whether the pod of that name is the owner's, and merely was not seen yet.
    async fn is_ours<K: Resource>(&self, owner: &K, pod: &str, writes: &Writes) -> bool {
        let Ok(held) = self.pods.api(&owner.namespace().unwrap_or_default()).get(pod).await else { return false };
        writes.wrote(&self.pods, &held);
        owners::is_controlled_by(&held.metadata, owner.meta().uid.as_deref().unwrap_or_default())
    }

    /// Deletes pods, all at once. Goes on past an error; the last one is returned.
    pub(crate) async fn delete<K: Resource>(
        &self,
        resource: &ApiResource,
        owner: &K,
        pods: &[Arc<Pod>],
        writes: &Writes,
    ) -> Result<(), ActError> {
        let (api, name) = (self.pods.api(&owner.namespace().unwrap_or_default()), owner.name_any());
        let mut deletions: FuturesUnordered<_> = pods
            .iter()
            .map(|pod| {
                let api = &api;
                async move {
                    let uid = pod.metadata.uid.clone().unwrap_or_default();
                    let only_this = Preconditions { uid: Some(uid.clone()), resource_version: None };
                    let deletion = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
                    (pod, uid, api.delete(&pod.name_any(), &deletion).await)
                }
            })
            .collect();
        let mut outcome = Ok(());
        while let Some((pod, uid, result)) = deletions.next().await {
            let deed = |error| Deed {
                verb: "delete",
                pod: pod.metadata.name.as_deref().unwrap_or_default(),
                owner: &name,
                error,
            };
            match result.map_err(ActError::from) {
                Ok(_) => {
                    writes.deleted(&self.pods, &Key::of(pod.as_ref()), &uid);
                    self.tell(resource, owner, reasons::SUCCESSFUL_DELETE, deed(None));
                }
                Err(ActError::Gone(_)) => {}
                Err(error) => {
                    self.tell(resource, owner, reasons::FAILED_DELETE, deed(Some(&error)));
                    outcome = Err(error);
                }
            }
        }
        outcome
    }

    /// Becomes the controller of a pod. The caller has made sure that the owner is there and stays.
    pub(crate) async fn adopt<K: Resource>(
        &self,
        resource: &ApiResource,
        owner: &K,
        pod: &Pod,
        writes: &Writes,
    ) -> Result<(), ActError> {
        let mut owners = owners::owners_without(&pod.metadata, "");
        owners.push(owners::controller_reference(owner, resource));
        self.patch(pod, &owners::patch(&pod.metadata, &owners), writes).await
    }

    /// Gives up a pod.
    pub(crate) async fn release<K: Resource>(&self, owner: &K, pod: &Pod, writes: &Writes) -> Result<(), ActError> {
        let owners = owners::owners_without(&pod.metadata, owner.meta().uid.as_deref().unwrap_or_default());
        self.patch(pod, &owners::patch(&pod.metadata, &owners), writes).await
    }

    /// Merges a patch into a pod; one that is gone is left alone.
    pub(crate) async fn patch(&self, pod: &Pod, patch: &Value, writes: &Writes) -> Result<(), ActError> {
        let api = self.pods.api(&pod.namespace().unwrap_or_default());
        match api.patch(&pod.name_any(), &params(), &Patch::Merge(patch)).await.map_err(ActError::from) {
            Ok(written) => writes.wrote(&self.pods, &written),
            Err(ActError::Gone(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
