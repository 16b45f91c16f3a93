//! The claims of generic ephemeral volumes (KEP-1698): made for a pod, called after it, owned by it, gone with it.

use super::facts::{ephemeral_claim, is_deleting};
use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    events::{Kind, Note, Recorder},
    owners,
    patch::MANAGER,
    pods,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{
    api::PostParams,
    core::{ApiResource, ObjectMeta},
};
use proa_crds::Pod;
use std::{collections::BTreeMap, sync::Arc};

const COMPONENT: &str = "ephemeral_volume";

/// The loop.
pub struct EphemeralVolumes {
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    recorder: Recorder,
}

impl EphemeralVolumes {
    /// The loop of a cluster.
    pub fn new(context: &Context) -> Self {
        EphemeralVolumes {
            pods: context.informers.of_resource(context.family.pod()),
            claims: context.informers.of(),
            recorder: context.recorder.clone(),
        }
    }
}

/// A pod, and the claims there are of the names its volumes' claims have.
#[derive(Clone, Debug)]
pub struct Seen {
    pub(super) pod: Arc<Pod>,
    pub(super) resource: ApiResource,
    pub(super) claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
}

/// One thing to do for a pod.
#[derive(Debug)]
pub enum Action {
    /// Make this claim.
    Create(Box<PersistentVolumeClaim>),
    /// The name is taken by a claim of somebody else.
    Taken {
        /// The volume.
        volume: String,
        /// Its claim's name.
        claim: String,
    },
}

/// Decides about one pod.
pub(super) fn plan(seen: &Seen) -> Plan<Action> {
    let pod = &*seen.pod;
    if is_deleting(pod) || pods::is_over(pod) {
        return Plan::nothing();
    }
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let mut actions = Vec::new();
    for volume in pod.spec.volumes.iter().flatten() {
        let Some(template) = volume.ephemeral.as_ref().and_then(|source| source.volume_claim_template.as_ref()) else {
            continue;
        };
        let name = ephemeral_claim(pod, &volume.name);
        match seen.claims.get(&name) {
            Some(claim) if owners::is_controlled_by(&claim.metadata, uid) => {}
            Some(_) => actions.push(Action::Taken { volume: volume.name.clone(), claim: name }),
            None => {
                let given = template.metadata.clone().unwrap_or_default();
                actions.push(Action::Create(Box::new(PersistentVolumeClaim {
                    metadata: ObjectMeta {
                        name: Some(name),
                        namespace: pod.metadata.namespace.clone(),
                        labels: given.labels,
                        annotations: given.annotations,
                        owner_references: Some(vec![owners::controller_reference(pod, &seen.resource)]),
                        ..ObjectMeta::default()
                    },
                    spec: Some(template.spec.clone()),
                    status: None,
                })));
            }
        }
    }
    // A claim that is in the way keeps the pod from starting: the others are made all the same, before that is said.
    actions.sort_by_key(|action| matches!(action, Action::Taken { .. }));
    Plan::act(actions)
}

impl Loop for EphemeralVolumes {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "ephemeral-volumes"
    }

    fn wire(&self, queue: &Queue) {
        let to = queue.clone();
        self.pods.on_change(move |change| {
            let has = |pod: &Arc<Pod>| pod.spec.volumes.iter().flatten().any(|volume| volume.ephemeral.is_some());
            if change.new.as_ref().is_some_and(has) {
                to.add(change.key.clone());
            }
        });
        let to = queue.clone();
        self.claims.on_change(move |change| {
            // One that was in the way, or was deleted by hand.
            let Some(claim) = change.old.as_ref().filter(|_| change.new.is_none()) else { return };
            if let Some(owner) = owners::controller_of(&claim.metadata).filter(|owner| owner.kind == "Pod") {
                to.add(Key::new(&change.key.namespace, &owner.name));
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(self.pods.synced(), self.claims.synced());
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let pod = self.pods.get(key)?;
        let names = pod.spec.volumes.iter().flatten().filter(|volume| volume.ephemeral.is_some());
        let names = names.map(|volume| ephemeral_claim(&pod, &volume.name));
        let claims = names.filter_map(|name| Some((name.clone(), self.claims.get(&Key::new(&key.namespace, &name))?)));
        Some(Seen { claims: claims.collect(), resource: self.pods.resource(), pod })
    }

    fn plan(&self, seen: &Seen, _: Timestamp) -> Plan<Action> {
        plan(seen)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        match action {
            Action::Create(claim) => {
                // What a pod that is gone gets would be in the way of the next one of its name.
                self.pods.confirm(key).await?;
                let post = PostParams { field_manager: Some(MANAGER.to_owned()), dry_run: false };
                match self.claims.api(&key.namespace).create(&post, &claim).await {
                    Ok(made) => writes.wrote(&self.claims, &made),
                    Err(error) => return Err(error.into()),
                }
                Ok(())
            }
            Action::Taken { volume, claim } => {
                let message = format!(
                    "ephemeral volume {volume}: PVC {}/{claim} was not created for pod {key} (pod is not owner)",
                    key.namespace
                );
                if let Some(pod) = self.pods.get(key) {
                    let note = Note { kind: Kind::Warning, reason: "FailedBinding", message: message.clone() };
                    self.recorder.note(COMPONENT, self.pods.dynamic_type(), pod.as_ref(), note);
                }
                // Tried again, ever more seldom: somebody may move the other claim out of the way.
                Err(ActError::Refused(message))
            }
        }
    }
}

/// What a plan comes to, in a word each.
#[cfg(test)]
pub(super) fn made(plan: &Plan<Action>) -> Vec<String> {
    plan.actions
        .iter()
        .map(|action| match action {
            Action::Create(claim) => claim.metadata.name.clone().unwrap_or_default(),
            Action::Taken { claim, .. } => format!("{claim} is taken"),
        })
        .collect()
}
