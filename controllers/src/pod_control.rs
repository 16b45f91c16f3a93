//! What every loop that keeps pods does to them: create, delete, adopt, release, patch; the events that tell of it, and
//! which news of pods wake the loop.
//!
//! Owns: the order, the pace and the bounds of these writes, and the search for pods whose creation was answered to
//! nobody. Never decides which pod is made or goes.

use crate::{
    ActError, Context, Informer, Key, Queue, Writes,
    events::{Kind, Note},
    informer::Watched,
    owners,
    patch::{MANAGER, params},
};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PostParams, Preconditions},
    core::{ApiResource, DynamicResourceScope, ObjectMeta},
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

    fn name(&self) -> &str {
        self.about.name.as_deref().unwrap_or_default()
    }

    fn uid(&self) -> &str {
        self.about.uid.as_deref().unwrap_or_default()
    }

    /// The pod's owners once this one controls it.
    pub(crate) fn joined(&self, pod: &Pod) -> Vec<OwnerReference> {
        let mut owners = owners::owners_without(&pod.metadata, "");
        owners.push(OwnerReference {
            api_version: self.about.api_version.clone().unwrap_or_default(),
            kind: self.about.kind.clone().unwrap_or_default(),
            name: self.name().to_owned(),
            uid: self.uid().to_owned(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        });
        owners
    }

    /// The pod's owners without this one.
    pub(crate) fn left(&self, pod: &Pod) -> Vec<OwnerReference> {
        owners::owners_without(&pod.metadata, self.uid())
    }
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

/// What most of Kubernetes' controllers say of pods.
pub(crate) fn words(deed: &Deed<'_>) -> String {
    match (deed.verb, deed.error) {
        ("create", None) => format!("Created pod: {}", deed.pod),
        ("create", Some(error)) => format!("Error creating: {error}"),
        (_, None) => format!("Deleted pod: {}", deed.pod),
        (_, Some(error)) => format!("Error deleting: {error}"),
    }
}

async fn held(pods: &Informer<Pod>, owner: &Owner) -> Result<Vec<Pod>, ActError> {
    let selected =
        kube::core::Selector::try_from(owner.selector.clone()).map_err(|error| ActError::Refused(error.to_string()))?;
    match pods.api(owner.namespace()).list(&ListParams::default().labels_from(&selected)).await {
        Ok(list) => Ok(list.items),
        // A pod that cannot be read is not read by asking again.
        Err(kube::Error::SerdeError(error)) => Err(ActError::Refused(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// The writer of one loop.
pub(crate) struct PodControl {
    context: Context,
    pods: Informer<Pod>,
    component: &'static str,
    words: fn(&Deed<'_>) -> String,
}

impl PodControl {
    /// `words` is what an event says of a pod that was created or deleted, or could not be.
    pub(crate) fn new(context: &Context, component: &'static str, words: fn(&Deed<'_>) -> String) -> Self {
        let pods = context.informers.of_resource(context.family.pod());
        PodControl { context: context.clone(), pods, component, words }
    }

    /// Writes an event about the owner.
    pub(crate) fn note(&self, owner: &Owner, note: Note) {
        self.context.recorder.note_about(self.component, owner.about.clone(), note);
    }

    fn tell(&self, owner: &Owner, reason: &'static str, verb: &'static str, pod: &str, error: Option<&ActError>) {
        let kind = if error.is_some() { Kind::Warning } else { Kind::Normal };
        let message = (self.words)(&Deed { verb, pod, owner: owner.name(), error });
        self.note(owner, Note { kind, reason, message });
    }

    /// Creates pods in batches of 1, 2, 4, 8 …: a server that refuses is asked few times.
    ///
    /// A name that is taken is a conflict: what has it is looked at next.
    pub(crate) async fn create(&self, owner: &Owner, pods: Vec<Pod>, writes: &Writes) -> Result<(), ActError> {
        let api = self.pods.api(owner.namespace());
        let post = PostParams { field_manager: Some(MANAGER.to_owned()), dry_run: false };
        let (mut left, mut batch) = (pods.as_slice(), 1);
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let results = join_all(now.iter().map(|pod| api.create(&post, pod))).await;
            let (mut failure, mut unanswered) = (None, false);
            for (pod, result) in now.iter().zip(results) {
                let wanted = pod.metadata.name.as_deref().unwrap_or_default();
                let taken = |error: &kube::Error| matches!(error, kube::Error::Api(s) if s.reason == "AlreadyExists");
                let (is_told, error) = match result {
                    Ok(made) => {
                        writes.wrote(&self.pods, &made);
                        self.tell(owner, reasons::SUCCESSFUL_CREATE, "create", &made.name_any(), None);
                        continue;
                    }
                    Err(error) if !wanted.is_empty() && taken(&error) => {
                        (!self.is_ours(owner, wanted, writes).await, ActError::from(error))
                    }
                    Err(error) => {
                        let error = told(ActError::from(error));
                        (!matches!(error, ActError::Gone(_)), error)
                    }
                };
                if is_told {
                    self.tell(owner, reasons::FAILED_CREATE, "create", wanted, Some(&error));
                }
                unanswered |= matches!(error, ActError::Failed(_));
                failure = Some(error);
            }
            if let Some(error) = failure {
                if unanswered {
                    self.find_out_later(owner, writes);
                }
                return Err(error);
            }
            left = later;
            batch *= 2;
        }
        Ok(())
    }

    /// Whether the pod of that name is the owner's, and merely was not seen yet.
    async fn is_ours(&self, owner: &Owner, pod: &str, writes: &Writes) -> bool {
        let Ok(held) = self.pods.api(owner.namespace()).get(pod).await else { return false };
        writes.wrote(&self.pods, &held);
        owners::is_controlled_by(&held.metadata, owner.uid())
    }

    /// An answer that got lost may have been a yes: what the server really holds must be in view before the next
    /// count, or the same pods are made twice.
    fn find_out_later(&self, owner: &Owner, writes: &Writes) {
        let asked = Arc::new((self.pods.clone(), owner.clone()));
        writes.unanswered(move || {
            let asked = asked.clone();
            Box::pin(async move {
                let (pods, owner) = &*asked;
                let (held, found) = (held(pods, owner).await?, Writes::default());
                let mine = held.iter().filter(|pod| owners::is_controlled_by(&pod.metadata, owner.uid()));
                mine.for_each(|pod| found.wrote(pods, pod));
                Ok(found)
            })
        });
    }

    /// The pods the owner selects, as the server has them now.
    pub(crate) async fn held(&self, owner: &Owner) -> Result<Vec<Pod>, ActError> {
        held(&self.pods, owner).await
    }

    /// Deletes these pods, all at once, and none that has got their name since. Goes on past an error; the last one is
    /// returned.
    pub(crate) async fn delete(&self, owner: &Owner, victims: &[Arc<Pod>], writes: &Writes) -> Result<(), ActError> {
        let api = self.pods.api(owner.namespace());
        let mut deletions: FuturesUnordered<_> = victims
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
            let mut result = result.map(drop).map_err(|error| told(ActError::from(error)));
            // It may be the answer that was lost: then the loop waits to see the pod go, and takes no other in its place.
            if matches!(result, Err(ActError::Failed(_))) && is_going(&api, pod).await {
                result = Ok(());
            }
            match result {
                Ok(()) => {
                    writes.deleted(&self.pods, &Key::of(pod.as_ref()), &uid);
                    self.tell(owner, reasons::SUCCESSFUL_DELETE, "delete", &pod.name_any(), None);
                }
                Err(ActError::Gone(_)) => {}
                Err(error) => {
                    self.tell(owner, reasons::FAILED_DELETE, "delete", &pod.name_any(), Some(&error));
                    outcome = Err(error);
                }
            }
        }
        outcome
    }

    /// Becomes the controller of a pod. The caller has made sure that the owner is there and stays.
    pub(crate) async fn adopt(&self, owner: &Owner, pod: &Arc<Pod>, writes: &Writes) -> Result<(), ActError> {
        self.patch(std::slice::from_ref(pod), |pod| owners::patch(&pod.metadata, &owner.joined(pod)), writes).await
    }

    /// Gives up a pod.
    pub(crate) async fn release(&self, owner: &Owner, pod: &Arc<Pod>, writes: &Writes) -> Result<(), ActError> {
        self.patch(std::slice::from_ref(pod), |pod| owners::patch(&pod.metadata, &owner.left(pod)), writes).await
    }

    /// Patches each pod (RFC 7386), side by side; one that is gone needs no patch.
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

/// Whether the server has that pod no more, or on its way out.
async fn is_going(api: &Api<Pod>, pod: &Pod) -> bool {
    match api.get(&pod.name_any()).await {
        Ok(now) => now.metadata.uid != pod.metadata.uid || now.metadata.deletion_timestamp.is_some(),
        Err(kube::Error::Api(status)) => status.code == 404,
        Err(_) => false,
    }
}

/// A refusal as it is once its event is written: in the server's words alone, which are Kubernetes' own.
fn told(error: ActError) -> ActError {
    match error {
        ActError::Refused(why) => ActError::Told(why),
        other => other,
    }
}

/// A patch of metadata that fails with a conflict when the pod changed meanwhile.
pub(crate) fn guarded(pod: &Pod, mut metadata: Value) -> Value {
    metadata["uid"] = json!(pod.metadata.uid);
    metadata["resourceVersion"] = json!(pod.metadata.resource_version);
    json!({"metadata": metadata})
}

/// A change of a pod wakes its controller; while it has none, all that select it.
pub(crate) fn wake_by_pods<K>(
    pods: &Informer<Pod>,
    keepers: &Informer<K>,
    queue: &Queue,
    selects: impl Fn(Arc<K>, &Pod) -> bool + Send + Sync + 'static,
) where
    K: Watched + Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
{
    let (to, keepers, kind) = (queue.clone(), keepers.clone(), keepers.resource());
    pods.on_change(move |change| {
        for pod in change.states() {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            match owners::controller_of(&pod.metadata) {
                Some(owner) if owner.kind == kind.kind && owner.api_version == kind.api_version => {
                    to.add(Key::new(namespace, &owner.name))
                }
                Some(_) => {}
                None if change.new.is_some() => {
                    for keeper in keepers.in_namespace(namespace) {
                        let key = Key::of(keeper.as_ref());
                        if selects(keeper, pod) {
                            to.add(key);
                        }
                    }
                }
                None => {}
            }
        }
    });
}
