//! Automatic rollback of stateful sets and daemon sets, and configuration as a part of their revisions.
//!
//! Owns: the marks on their ControllerRevisions, the Secrets that keep a revision's configuration, the template of an object
//! that goes back, and the conditions that say so. Never makes or deletes a pod, and never writes a revision's number: that
//! is the work of the loop of each kind, which holds still while the current revision [`is_held`].

mod configuration;
mod follow;
mod plan;
#[cfg(test)]
mod tests;
mod ward;

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    history::{History, mark_of, template_of},
    owners,
    patch::{json, params},
    rollback::{checks, config::references, evidence, marks, sight::Sight},
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::{
    ResourceExt,
    api::{ApiResource, Patch},
};
use plan::{Action, Seen};
use proa_crds::{ControllerRevision, DaemonSet, Family, Pod, StatefulSet, annotations};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use ward::{Guarded, Ward};

pub(crate) use configuration::is_awaited;

/// Whether that revision of an object must not be rolled out (any further): it is known to fail, or it has just become the
/// current one again and what its pods are to read is not decided yet.
fn is_held(object: &kube::core::ObjectMeta, revision: &ControllerRevision) -> bool {
    let arrived = marks::note(&revision.metadata, annotations::CURRENT_AS);
    if arrived.is_some_and(|number| *number != revision.revision.to_string()) {
        return true;
    }
    let told = marks::note(object, annotations::FAILED_REVISIONS).is_some();
    let failure = marks::failure_of(&revision.metadata).filter(|_| told);
    failure.is_some_and(|failure| !marks::is_retried(object, &failure))
}

/// How many pods a rollout may give that revision of the object; `None`: as many as it wants.
pub(crate) fn reach(object: &kube::core::ObjectMeta, revision: &ControllerRevision) -> Option<usize> {
    if is_held(object, revision) {
        return Some(0);
    }
    // What has proven itself comes back at once.
    if marks::note(object, annotations::GRADUAL).is_none() || marks::is_healthy(&revision.metadata) {
        return None;
    }
    match marks::note(&revision.metadata, annotations::ROLLOUT_LIMIT) {
        Some(annotations::ROLLOUT_UNLIMITED) => None,
        limit => Some(limit.and_then(|limit| limit.parse().ok()).unwrap_or(0)),
    }
}

/// Wakes the sets of that kind by the guard's word on their revisions. Nothing else of a revision wakes its set: what users
/// make of them by hand is looked at when their set is (conformance: ControllerRevision, resource lifecycle, has two of one
/// template for a while).
pub(crate) fn wake_by_revisions(revisions: &Informer<ControllerRevision>, kind: ApiResource, queue: &Queue) {
    let to = queue.clone();
    revisions.on_change(move |change| {
        let (Some(old), Some(new)) = (change.old.as_ref(), change.new.as_ref()) else { return };
        let owner = owners::controller_of(&new.metadata)
            .filter(|owner| owner.kind == kind.kind && owner.api_version == kind.api_version);
        if let Some(owner) = owner.filter(|_| says_otherwise(&old.metadata, &new.metadata)) {
            to.add(Key::new(new.metadata.namespace.as_deref().unwrap_or_default(), &owner.name));
        }
    });
}

/// Whether the guard says something else of a revision than before, of how far it may go or what its pods read.
fn says_otherwise(old: &kube::core::ObjectMeta, new: &kube::core::ObjectMeta) -> bool {
    let words = [
        annotations::CURRENT_AS,
        annotations::FAILURE,
        annotations::HEALTHY,
        annotations::ROLLOUT_LIMIT,
        annotations::CONFIG_REVISION,
    ];
    words.iter().any(|word| marks::note(old, word) != marks::note(new, word))
}

/// The pod as that revision wants it: reading the copy of its configuration, where it was gone back to.
pub(crate) fn configured(mut pod: Pod, revision: &ControllerRevision) -> Pod {
    if let Some(secret) = marks::note(&revision.metadata, annotations::CONFIG_REVISION) {
        let notes = pod.metadata.annotations.get_or_insert_default();
        notes.insert(annotations::CONFIG_REVISION.to_owned(), secret.to_owned());
    }
    pod
}

/// Starts the guards of both kinds.
pub(crate) fn start(context: &Context) {
    context.start(Guards::<StatefulSet>::new(context));
    context.start(Guards::<DaemonSet>::new(context));
}

/// The guard loop of one kind.
struct Guards<K: Guarded> {
    context: Context,
    wards: Informer<K>,
    revisions: Informer<ControllerRevision>,
    pods: Informer<Pod>,
    sight: Sight,
}

impl<K: Guarded> Guards<K> {
    fn new(context: &Context) -> Self {
        let wards = context.informers.of_resource::<K>(K::resource(context.family));
        // Who owns which field of a template is recorded with its revision.
        wards.keep_managed_fields();
        let revisions = context.informers.of_resource(context.family.controller_revision());
        // The custom family may be installed without these kinds.
        if context.family == Family::Proa {
            wards.may_be_unknown();
            revisions.may_be_unknown();
        }
        Guards {
            wards,
            revisions,
            pods: context.informers.of_resource(context.family.pod()),
            sight: Sight::new(context, K::KIND),
            context: context.clone(),
        }
    }

    async fn mark(&self, key: &Key, revision: &str, changes: &Value, writes: &Writes) -> Result<(), ActError> {
        let patch = json!({"metadata": {"annotations": changes}});
        let written = self.revisions.api(&key.namespace).patch(revision, &params(), &Patch::Merge(&patch)).await?;
        writes.wrote(&self.revisions, &written);
        Ok(())
    }
}

impl<K: Guarded> Loop for Guards<K> {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        K::NAME
    }

    fn wire(&self, queue: &Queue) {
        self.pods.index_by_controller();
        self.revisions.index_by_controller();
        let resource = self.wards.resource();
        self.sight.wire(queue, &self.wards, move |ward: &K| {
            ward.parent(&resource).template.spec.as_ref().map(references).unwrap_or_default()
        });
        let to = queue.clone();
        self.wards.on_change(move |change| to.add(change.key.clone()));
        let kind = self.wards.resource();
        let owner = move |meta: &kube::core::ObjectMeta| {
            let owner = owners::controller_of(meta)?;
            let ours = owner.kind == kind.kind && owner.api_version == kind.api_version;
            ours.then(|| Key::new(meta.namespace.as_deref().unwrap_or_default(), &owner.name))
        };
        let (to, of_pod) = (queue.clone(), owner.clone());
        self.pods.on_change(move |change| {
            change.states().filter_map(|pod| of_pod(&pod.metadata)).for_each(|key| to.add(key));
        });
        let to = queue.clone();
        self.revisions.on_change(move |change| {
            change.states().filter_map(|held| owner(&held.metadata)).for_each(|key| to.add(key));
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.wards.synced().await;
            self.revisions.synced().await;
            self.pods.synced().await;
            self.sight.synced().await;
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let object = self.wards.get(key)?;
        let uid = object.meta().uid.as_deref()?;
        let parent = object.parent(&self.wards.resource());
        let history = History::of(&parent, &self.revisions.controlled_by(uid));
        let pods = self.pods.controlled_by(uid);
        let stays = |pod: &&std::sync::Arc<Pod>| pod.metadata.deletion_timestamp.is_none();
        let of_revision = |held: &std::sync::Arc<ControllerRevision>| {
            let mark = mark_of(K::KEEPER, held);
            let made = |pod: &&std::sync::Arc<Pod>| {
                let labels = pod.metadata.labels.as_ref();
                mark.is_some()
                    && labels.and_then(|labels| labels.get(annotations::CONTROLLER_REVISION_HASH)).map(String::as_str)
                        == mark
            };
            (held.name_any(), pods.iter().filter(stays).filter(made).cloned().collect::<Vec<_>>())
        };
        let by_revision: BTreeMap<_, _> = history.all().iter().map(of_revision).collect();
        let current = history.current(&parent).ok().cloned();
        let mut wanted = parent.template.spec.as_ref().map(references).unwrap_or_default();
        let recorded = history.all().iter().filter_map(|held| template_of(held)?.spec);
        wanted.extend(recorded.flat_map(|spec| references(&spec)));
        let metas = || history.all().iter().map(|held| &held.metadata);
        let complete = current.as_ref().is_some_and(|current| object.is_complete(&current.name_any()));
        Some(Seen {
            family: self.context.family,
            ward: Ward {
                meta: object.meta().clone(),
                template: parent.template.clone(),
                conditions: object.conditions(),
                wanted: object.wanted(),
                complete,
            },
            current,
            pods: by_revision,
            policy: self.sight.policy(object.meta()),
            live: self.sight.live(&key.namespace, wanted, metas(), &pods),
            around: self.sight.around(&pods),
            checks: self.sight.checks(metas()),
            revisions: history.all().to_vec(),
        })
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Action> {
        plan::plan(seen, now)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        let client = &self.context.client;
        match action {
            Action::Mark { revision, changes } => self.mark(key, &revision, &changes, writes).await,
            Action::Patch(patch) => {
                let written = self.wards.api(&key.namespace).patch(&key.name, &params(), &Patch::Merge(&patch)).await?;
                writes.wrote(&self.wards, &written);
                Ok(())
            }
            Action::Conditions(conditions) => {
                // The loop of the kind writes the rest of the status: the list must be the one that was seen.
                let held = self.wards.get(key).ok_or_else(|| ActError::Gone(key.to_string()))?;
                let version = held.meta().resource_version.clone();
                let patch =
                    json!({"metadata": {"resourceVersion": version}, "status": {"conditions": json(&conditions)}});
                let api = self.wards.api(&key.namespace);
                let written = api.patch_status(&key.name, &params(), &Patch::Merge(&patch)).await?;
                writes.wrote(&self.wards, &written);
                Ok(())
            }
            Action::MarkFailed { revision, failure, previous } => {
                let failure = evidence::gather(client, &self.pods, &key.namespace, *failure, previous).await;
                self.mark(key, &revision, &marks::failed_with(&failure), writes).await
            }
            Action::PointToConfig { pods, secret } => {
                for pod in pods {
                    let patch = json!({"metadata": {"annotations": {annotations::CONFIG_REVISION: secret}}});
                    let api = self.pods.api(&key.namespace);
                    match api.patch(&pod, &params(), &Patch::Merge(&patch)).await.map_err(ActError::from) {
                        Ok(written) => writes.wrote(&self.pods, &written),
                        Err(ActError::Gone(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
            Action::KeepConfig(secret) => self.sight.keep_config(key, &secret, writes).await,
            Action::DropConfig { secret, owner } => self.sight.drop_config(key, &secret, &owner, writes).await,
            Action::Read(unknown) => self.sight.read(key, &unknown).await,
            Action::Ask(question) => {
                let now = self.context.clock.now();
                checks::ask(&self.sight.proxies, &key.namespace, &question, &self.sight.answers, now).await;
                Ok(())
            }
            Action::Note(note) => {
                if let Some(held) = self.wards.get(key) {
                    self.context.recorder.note(K::COMPONENT, self.wards.dynamic_type(), held.as_ref(), note);
                }
                Ok(())
            }
        }
    }
}
