//! Deployments: revisions of a pod template, rolled out and back.
//!
//! Owns: the replica sets of a deployment (their sizes, annotations, number), its status, and the Secrets that keep a
//! revision's configuration. Never touches a pod, and never the ConfigMaps and Secrets users made.
//!
//! Going back is done the way `kubectl rollout undo` does it: the template of the earlier replica set is written to the
//! deployment, with the annotation `proa.dev/revision-of` (which kubectl copies from the replica set by itself). The
//! loop recognises that annotation, whoever wrote it, and lets configuration and what appliers remember follow. So there
//! is one way back for a user's undo, for `proa rollback` and for the automatic one.

mod applied;
mod config;
mod go_back;
mod hash;
mod plan;
mod revisions;
mod roll;
mod rollback;
mod scale;
mod status;
#[cfg(test)]
mod tests;
mod undo;
mod verdict;

pub use config::{Live, Reference, kept_name, references};
pub use go_back::{Outcome, RollbackError, rollback};
pub use plan::{Action, Seen, plan};
pub(crate) use revisions::same_template;
pub use rollback::Failure;

use crate::{
    ActError, Change, Context, Informer, Key, Loop, Plan, Queue, Writes,
    events::{Kind, Note},
    owners,
    patch::{MANAGER, json, merge_diff, params},
    pods, selector,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::{
    ResourceExt,
    api::{DeleteParams, LogParams, Patch, PostParams, Preconditions, PropagationPolicy},
};
use parking_lot::Mutex;
use proa_crds::{Deployment, Pod, ReplicaSet, annotations, reasons};
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

const COMPONENT: &str = "deployment-controller";
const BY_CONFIG: &str = "config";
/// Evidence is worth waiting for, but not for long: the healthy revision is to come back.
const LOG_TIMEOUT: Duration = Duration::from_secs(2);

/// The deployment loop.
pub struct Deployments {
    context: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    namespaces: Informer<Namespace>,
    config_maps: Informer<ConfigMap>,
    secrets: Informer<Secret>,
    /// When the content of an object that is there was seen to change.
    changed: Arc<Mutex<HashMap<(String, Reference), Timestamp>>>,
    /// Since when changes of content are seen.
    since: Timestamp,
}

impl Deployments {
    /// The loop of that context's family.
    pub fn new(context: &Context) -> Self {
        let deployments = context.informers.of_resource::<Deployment>(context.family.deployment());
        // Who owns which field of a template is recorded with its revision.
        deployments.keep_managed_fields();
        Deployments {
            deployments,
            sets: context.informers.of_resource(context.family.replica_set()),
            pods: context.informers.of_resource(context.family.pod()),
            namespaces: context.informers.of(),
            config_maps: context.informers.of(),
            secrets: context.informers.of(),
            since: context.clock.now(),
            context: context.clone(),
            changed: Arc::default(),
        }
    }

    fn live(&self, namespace: &str, wanted: BTreeSet<Reference>, sets: &[Arc<ReplicaSet>]) -> Live {
        let mut live = Live { since: self.since, ..Live::default() };
        let changed = self.changed.lock();
        for reference in wanted {
            let (Reference::ConfigMap(name) | Reference::Secret(name)) = &reference;
            let key = Key::new(namespace, name);
            match &reference {
                Reference::ConfigMap(name) => {
                    live.config_maps.extend(self.config_maps.get(&key).map(|map| (name.clone(), map)))
                }
                Reference::Secret(name) => {
                    live.secrets.extend(self.secrets.get(&key).map(|secret| (name.clone(), secret)))
                }
            }
            if let Some(at) = changed.get(&(namespace.to_owned(), reference.clone())) {
                live.changed.insert(reference, *at);
            }
        }
        drop(changed);
        for set in sets {
            let name = kept_name(&set.name_any());
            if let Some(secret) = self.secrets.get(&Key::new(namespace, &name)) {
                live.secrets.insert(name, secret);
            }
        }
        live
    }

    /// Wakes the deployments that read a ConfigMap or Secret whose content changed, and remembers when it did.
    fn route_config<K: crate::informer::Watched>(
        &self,
        queue: &Queue,
        informer: &Informer<K>,
        reference: fn(String) -> Reference,
        same: fn(&K, &K) -> bool,
    ) {
        let (to, deployments, changed, clock, since) =
            (queue.clone(), self.deployments.clone(), self.changed.clone(), self.context.clock.clone(), self.since);
        informer.on_change(move |change: &Change<K>| {
            if let (Some(old), Some(new)) = (&change.old, &change.new)
                && same(old, new)
            {
                return;
            }
            let reference = reference(change.key.name.to_string());
            let id = (change.key.namespace.to_string(), reference.clone());
            match &change.new {
                None => drop(changed.lock().remove(&id)),
                // What was there before us and is listed for the first time has not changed.
                Some(new) if change.old.is_some() || is_made_since(new.as_ref(), since) => {
                    changed.lock().insert(id, clock.now());
                }
                Some(_) => {}
            }
            for deployment in deployments.by_index(BY_CONFIG, &config_index(&change.key.namespace, &reference)) {
                to.add(Key::of(deployment.as_ref()));
            }
        });
    }

    async fn patch(&self, key: &Key, patch: &Value, writes: &Writes) -> Result<(), ActError> {
        let written = self.deployments.api(&key.namespace).patch(&key.name, &params(), &Patch::Merge(patch)).await?;
        writes.wrote(&self.deployments, &written);
        Ok(())
    }

    async fn patch_status(&self, key: &Key, change: &Value, writes: &Writes) -> Result<(), ActError> {
        let patch = json!({"status": change});
        let written =
            self.deployments.api(&key.namespace).patch_status(&key.name, &params(), &Patch::Merge(&patch)).await?;
        writes.wrote(&self.deployments, &written);
        Ok(())
    }

    async fn patch_set(&self, key: &Key, name: &str, patch: &Value, writes: &Writes) -> Result<(), ActError> {
        let written = self.sets.api(&key.namespace).patch(name, &params(), &Patch::Merge(patch)).await?;
        writes.wrote(&self.sets, &written);
        Ok(())
    }

    async fn create(
        &self,
        key: &Key,
        deployment: &Deployment,
        set: &ReplicaSet,
        writes: &Writes,
    ) -> Result<(), ActError> {
        let api = self.sets.api(&key.namespace);
        let post = PostParams { field_manager: Some(MANAGER.to_owned()), dry_run: false };
        let error = match api.create(&post, set).await {
            Ok(created) => {
                writes.wrote(&self.sets, &created);
                return Ok(());
            }
            Err(error) => error,
        };
        if matches!(&error, kube::Error::Api(status) if status.reason == "AlreadyExists") {
            let taken = api.get(&set.name_any()).await?;
            let same = match (&taken.spec.template, &set.spec.template) {
                (Some(taken), Some(wanted)) => revisions::same_template(taken, wanted),
                _ => false,
            };
            if same && owners::is_controlled_by(&taken.metadata, deployment.metadata.uid.as_deref().unwrap_or_default())
            {
                // Ours, made in an earlier life and not yet seen.
                writes.wrote(&self.sets, &taken);
                return Ok(());
            }
            let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
            self.patch_status(key, &json!({"collisionCount": collisions + 1}), writes).await?;
            return Err(ActError::Conflict(format!("the name {} is taken by another template", set.name_any())));
        }
        let error = ActError::from(error);
        if matches!(error, ActError::Refused(_) | ActError::Failed(_)) {
            let message = format!("Failed to create new replica set {:?}: {error}", set.name_any());
            self.note(
                deployment,
                Note { kind: Kind::Warning, reason: reasons::REPLICA_SET_CREATE_ERROR, message: message.clone() },
            );
            if status::has_deadline(deployment) {
                let held = deployment.status.clone().unwrap_or_default();
                let mut status = held.clone();
                status::set(
                    &mut status,
                    status::make(
                        proa_crds::conditions::PROGRESSING,
                        "False",
                        reasons::REPLICA_SET_CREATE_ERROR,
                        message,
                        self.context.clock.now(),
                    ),
                );
                if let Some(change) = merge_diff(&json(&held), &json(&status)) {
                    // The failure itself is what is reported.
                    let _ = self.patch_status(key, &change, writes).await;
                }
            }
        }
        Err(error)
    }

    fn note(&self, deployment: &Deployment, note: Note) {
        self.context.recorder.note(COMPONENT, self.deployments.dynamic_type(), deployment, note);
    }

    async fn set_owners(
        &self,
        key: &Key,
        set: &ReplicaSet,
        owners: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference],
        writes: &Writes,
    ) -> Result<(), ActError> {
        let patch = json!({"metadata": {"ownerReferences": owners, "uid": set.metadata.uid, "resourceVersion": set.metadata.resource_version}});
        self.patch_set(key, &set.name_any(), &patch, writes).await
    }

    async fn adopt(&self, key: &Key, set: &ReplicaSet, writes: &Writes) -> Result<(), ActError> {
        let held = self.deployments.get(key).ok_or_else(|| ActError::Gone(key.to_string()))?;
        let live = self.deployments.api(&key.namespace).get(&key.name).await?;
        if live.metadata.uid != held.metadata.uid || live.metadata.deletion_timestamp.is_some() {
            return Err(ActError::Gone(key.to_string()));
        }
        let mut owners = owners::owners_without(&set.metadata, "");
        owners.push(owners::controller_reference(&live, self.deployments.dynamic_type()));
        self.set_owners(key, set, &owners, writes).await
    }

    async fn keep_config(&self, key: &Key, secret: &Secret, writes: &Writes) -> Result<(), ActError> {
        let api = self.secrets.api(&key.namespace);
        let held = self.secrets.get(&Key::new(&key.namespace, &secret.name_any()));
        let written = match held {
            Some(held) if held.type_ != secret.type_ => {
                return Err(ActError::Refused(format!("the secret {} is not a kept configuration", secret.name_any())));
            }
            Some(held) => {
                let Some(change) = merge_diff(&json(&held.data), &json(&secret.data)) else { return Ok(()) };
                let patch = json!({"data": change, "metadata": {"uid": held.metadata.uid}});
                api.patch(&secret.name_any(), &params(), &Patch::Merge(&patch)).await?
            }
            None => api.create(&PostParams { field_manager: Some(MANAGER.to_owned()), dry_run: false }, secret).await?,
        };
        writes.wrote(&self.secrets, &written);
        Ok(())
    }

    /// The last log lines of the container that showed a failure; empty when they cannot be had in time.
    async fn log_of(&self, key: &Key, failure: &Failure, previous: bool) -> String {
        let (Some(pod), Some(container)) = (&failure.pod, &failure.container) else { return String::new() };
        let resource = self.pods.resource();
        let root =
            if resource.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}", resource.api_version) };
        let wanted = LogParams {
            container: Some(container.clone()),
            previous,
            tail_lines: Some(rollback::LOG_LINES),
            ..LogParams::default()
        };
        let Ok(request) = kube::core::Request::new(format!("{root}/namespaces/{}/{}", key.namespace, resource.plural))
            .logs(pod, &wanted)
        else {
            return String::new();
        };
        match tokio::time::timeout(LOG_TIMEOUT, self.context.client.request_text(request)).await {
            Ok(Ok(log)) => rollback::last_lines(&log),
            _ => String::new(),
        }
    }
}

/// Whether the object was made after that time. Times on the wire are whole seconds, rounded down.
fn is_made_since<K: kube::Resource>(object: &K, since: Timestamp) -> bool {
    object.meta().creation_timestamp.as_ref().is_some_and(|made| made.0.as_second() >= since.as_second())
}

fn config_index(namespace: &str, reference: &Reference) -> String {
    format!("{namespace}/{reference}")
}

/// Whether a pod's change can tell a deployment something its replica sets' counts do not.
fn is_telling(change: &Change<Pod>) -> bool {
    let signs = |pod: &Pod| {
        pods::container_statuses(pod)
            .map(|container| {
                let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
                (container.restart_count, waiting.map(|waiting| (waiting.reason.clone(), waiting.message.clone())))
            })
            .collect::<Vec<_>>()
    };
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => signs(old) != signs(new) || pods::is_over(old) != pods::is_over(new),
        (Some(_), None) => true,
        _ => false,
    }
}

impl Loop for Deployments {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "deployment"
    }

    fn wire(&self, queue: &Queue) {
        self.sets.index_by_controller();
        self.pods.index_by_controller();
        self.deployments.add_index(BY_CONFIG, |deployment| {
            let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
            let found = deployment.spec.template.spec.as_ref().map(references).unwrap_or_default();
            found.iter().map(|reference| config_index(namespace, reference)).collect()
        });
        let to = queue.clone();
        self.deployments.on_change(move |change| to.add(change.key.clone()));
        let (to, deployments, kind) = (queue.clone(), self.deployments.clone(), self.deployments.resource());
        self.sets.on_change(move |change| {
            for set in change.states() {
                match owners::controller_of(&set.metadata) {
                    Some(owner) if owner.kind == kind.kind && owner.api_version == kind.api_version => {
                        to.add(Key::new(&change.key.namespace, &owner.name))
                    }
                    Some(_) => {}
                    None => {
                        for deployment in deployments.in_namespace(&change.key.namespace) {
                            if selector::matches(&deployment.spec.selector, set.metadata.labels.as_ref()) {
                                to.add(Key::of(deployment.as_ref()));
                            }
                        }
                    }
                }
            }
        });
        let (to, sets) = (queue.clone(), self.sets.clone());
        self.pods.on_change(move |change| {
            if !is_telling(change) {
                return;
            }
            let set = change
                .latest()
                .and_then(|pod| owners::controller_of(&pod.metadata))
                .and_then(|owner| sets.get(&Key::new(&change.key.namespace, &owner.name)));
            if let Some(owner) = set.as_ref().and_then(|set| owners::controller_of(&set.metadata)) {
                to.add(Key::new(&change.key.namespace, &owner.name));
            }
        });
        let (to, deployments) = (queue.clone(), self.deployments.clone());
        self.namespaces.on_change(move |change| {
            let wish = |namespace: &Option<Arc<Namespace>>| {
                namespace.as_ref().and_then(|namespace| namespace.annotations().get(annotations::ROLLBACK).cloned())
            };
            if wish(&change.old) != wish(&change.new) {
                for deployment in deployments.in_namespace(&change.key.name) {
                    to.add(Key::of(deployment.as_ref()));
                }
            }
        });
        self.route_config(queue, &self.config_maps, Reference::ConfigMap, |a, b| {
            a.data == b.data && a.binary_data == b.binary_data
        });
        self.route_config(queue, &self.secrets, Reference::Secret, |a, b| a.data == b.data);
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.deployments.synced().await;
            self.sets.synced().await;
            self.pods.synced().await;
            self.namespaces.synced().await;
            self.config_maps.synced().await;
            self.secrets.synced().await;
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let deployment = self.deployments.get(key)?;
        let replica_sets = self.sets.controlled_by(deployment.metadata.uid.as_deref()?);
        let mut orphans = self.sets.orphans(&key.namespace);
        orphans.retain(|set| selector::matches(&deployment.spec.selector, set.metadata.labels.as_ref()));
        let pods = replica_sets
            .iter()
            .filter_map(|set| set.metadata.uid.as_deref())
            .flat_map(|uid| self.pods.controlled_by(uid))
            .collect();
        let namespace = self.namespaces.get(&Key::new("", &key.namespace));
        let mut wanted = deployment.spec.template.spec.as_ref().map(references).unwrap_or_default();
        wanted.extend(replica_sets.iter().flat_map(|set| config::references_of(set)));
        Some(Seen {
            family: self.context.family,
            live: self.live(&key.namespace, wanted, &replica_sets),
            deployment,
            replica_sets,
            orphans,
            pods,
            namespace_wants_rollback: namespace.is_some_and(|namespace| rollback::is_wanted(namespace.as_ref())),
        })
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Action> {
        plan(seen, now)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        match action {
            Action::Adopt(set) => self.adopt(key, &set, writes).await,
            Action::Release(set) => {
                let held = self.deployments.get(key).ok_or_else(|| ActError::Gone(key.to_string()))?;
                let owners = owners::owners_without(&set.metadata, held.metadata.uid.as_deref().unwrap_or_default());
                self.set_owners(key, &set, &owners, writes).await
            }
            Action::Create(set) => {
                // Our view may be old: what a deployment that is gone gets is taken away again at once, for ever.
                self.deployments.confirm(key).await?;
                let held = self.deployments.get(key).ok_or_else(|| ActError::Gone(key.to_string()))?;
                self.create(key, &held, &set, writes).await
            }
            Action::PatchSet { name, patch } => self.patch_set(key, &name, &patch, writes).await,
            Action::DeleteSet { name, uid } => {
                let deletion = DeleteParams {
                    preconditions: Some(Preconditions { uid: Some(uid.clone()), resource_version: None }),
                    propagation_policy: Some(PropagationPolicy::Background),
                    ..DeleteParams::default()
                };
                match self.sets.api(&key.namespace).delete(&name, &deletion).await.map_err(ActError::from) {
                    Ok(_) | Err(ActError::Gone(_)) => {}
                    Err(error) => return Err(error),
                }
                writes.deleted(&self.sets, &Key::new(&key.namespace, &name), &uid);
                Ok(())
            }
            Action::Patch(patch) => self.patch(key, &patch, writes).await,
            Action::PatchStatus(change) => self.patch_status(key, &change, writes).await,
            Action::KeepConfig(secret) => self.keep_config(key, &secret, writes).await,
            Action::MarkFailed { name, mut failure, previous } => {
                let log = self.log_of(key, &failure, previous).await;
                if !log.is_empty() {
                    failure.log = log;
                }
                let patch = json!({"metadata": {"annotations": rollback::failed_with(&failure)}});
                self.patch_set(key, &name, &patch, writes).await
            }
            Action::Note(note) => {
                if let Some(held) = self.deployments.get(key) {
                    self.note(&held, note);
                }
                Ok(())
            }
        }
    }
}
