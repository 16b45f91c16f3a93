//! Deployments: revisions of a pod template, rolled out and back.
//!
//! Owns: the replica sets of a deployment (their sizes, annotations, number), its status, and the Secrets that keep a
//! revision's configuration. Never touches a pod, and never the ConfigMaps and Secrets users made.
//!
//! Going back is done the way `kubectl rollout undo` does it: the template of the earlier replica set is written to the
//! deployment, with the annotation `proa.dev/revision-of` (which kubectl copies from the replica set by itself). The
//! loop recognises that annotation, whoever wrote it, and lets configuration and what appliers remember follow. So there
//! is one way back for a user's undo, for `proa rollback` and for the automatic one.

mod hash;
mod judge;
mod plan;
mod revisions;
mod roll;
mod scale;
mod status;
#[cfg(test)]
mod tests;
mod undo;

pub use plan::{Action, Seen, plan};
pub(crate) use revisions::same_template;

use crate::{
    ActError, Change, Context, Informer, Key, Loop, Plan, Queue, Writes,
    events::{Kind, Note},
    owners,
    patch::{MANAGER, json, merge_diff, params},
    pods,
    rollback::{checks, config::references, evidence, marks, sight::Sight},
    selector,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PostParams, Preconditions, PropagationPolicy},
};
use proa_crds::{Deployment, Pod, ReplicaSet, policy::WorkloadKind, reasons};
use serde_json::{Value, json};

const COMPONENT: &str = "deployment-controller";

/// The deployment loop.
pub struct Deployments {
    context: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    sight: Sight,
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
            sight: Sight::new(context, WorkloadKind::Deployment),
            context: context.clone(),
        }
    }

    async fn patch(&self, key: &Key, patch: &Value, writes: &Writes) -> Result<(), ActError> {
        let written = self.deployments.api(&key.namespace).patch(&key.name, &params(), &Patch::Merge(patch)).await?;
        writes.wrote(&self.deployments, &written);
        Ok(())
    }

    async fn patch_status(&self, key: &Key, change: &Value, writes: &Writes) -> Result<(), ActError> {
        let mut change = change.clone();
        if let Some(held) = self.deployments.get(key) {
            change = crate::scale::status_with_selector(&self.deployments.resource(), &held.spec.selector, change);
        }
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
        self.sight.wire(queue, &self.deployments, |deployment| {
            deployment.spec.template.spec.as_ref().map(references).unwrap_or_default()
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
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.deployments.synced().await;
            self.sets.synced().await;
            self.pods.synced().await;
            self.sight.synced().await;
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let deployment = self.deployments.get(key)?;
        let replica_sets = self.sets.controlled_by(deployment.metadata.uid.as_deref()?);
        let mut orphans = self.sets.orphans(&key.namespace);
        orphans.retain(|set| selector::matches(&deployment.spec.selector, set.metadata.labels.as_ref()));
        let pods: Vec<_> = replica_sets
            .iter()
            .filter_map(|set| set.metadata.uid.as_deref())
            .flat_map(|uid| self.pods.controlled_by(uid))
            .collect();
        let mut wanted = deployment.spec.template.spec.as_ref().map(references).unwrap_or_default();
        wanted.extend(replica_sets.iter().filter_map(|set| revisions::pod_spec(set)).flat_map(references));
        let revisions = || replica_sets.iter().map(|set| &set.metadata);
        Some(Seen {
            family: self.context.family,
            policy: self.sight.policy(&deployment.metadata),
            live: self.sight.live(&key.namespace, wanted, revisions(), &pods),
            around: self.sight.around(&pods),
            checks: self.sight.checks(revisions()),
            deployment,
            replica_sets,
            orphans,
            pods,
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
                self.sight.answers.forget(&uid);
                Ok(())
            }
            Action::Patch(patch) => self.patch(key, &patch, writes).await,
            Action::PatchStatus(change) => self.patch_status(key, &change, writes).await,
            Action::KeepConfig(secret) => self.sight.keep_config(key, &secret, writes).await,
            Action::DropConfig { secret, owner } => self.sight.drop_config(key, &secret, &owner, writes).await,
            Action::Read(unknown) => self.sight.read(key, &unknown).await,
            Action::Ask(question) => {
                let now = self.context.clock.now();
                checks::ask(&self.sight.proxies, &key.namespace, &question, &self.sight.answers, now).await;
                Ok(())
            }
            Action::MarkFailed { name, failure, previous } => {
                let client = &self.context.client;
                let failure = evidence::gather(client, &self.pods, &key.namespace, *failure, previous).await;
                let patch = json!({"metadata": {"annotations": marks::failed_with(&failure)}});
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
