//! Garbage collection: what is owned goes with its owners.
//!
//! Owns: background, foreground and orphaning cascading deletion over every kind the server serves. An owner that was
//! never seen counts as gone only after the server said so, and every deletion names the uid and the resource version
//! it was decided on. Never touches an object without owners, except for the finalizers of cascading deletion.

mod plan;
#[cfg(test)]
mod tests;

pub use plan::{Action, Policy, Seen, plan};

use crate::{
    ActError, Key, Loop, Plan, Queue, Writes,
    catalogue::{Catalogue, Graph, Item, Presence},
    patch::params,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, Preconditions, PropagationPolicy};
use serde_json::{Value, json};

/// The garbage collection loop. Its keys are uids.
pub struct GarbageCollector {
    catalogue: Catalogue,
}

impl GarbageCollector {
    /// The loop over that catalogue.
    pub fn new(catalogue: &Catalogue) -> Self {
        GarbageCollector { catalogue: catalogue.clone() }
    }

    /// Patches an object as it was seen, or not at all; waits until that shows.
    async fn patch(&self, item: &Item, metadata: Value) -> Result<(), ActError> {
        let mut patch = json!({"metadata": {"uid": &*item.uid, "resourceVersion": item.version}});
        if let (Some(into), Value::Object(from)) = (patch["metadata"].as_object_mut(), metadata) {
            into.extend(from);
        }
        let api = self.catalogue.api(&item.resource, &item.key.namespace);
        match api.patch_metadata(&item.key.name, &params(), &Patch::Merge(&patch)).await.map_err(ActError::from) {
            Ok(_) | Err(ActError::Gone(_)) => {}
            Err(error) => return Err(error),
        }
        self.catalogue.until(|graph| has_moved_on(graph, item)).await;
        Ok(())
    }

    async fn delete(&self, item: &Item, policy: Policy) -> Result<(), ActError> {
        let deletion = DeleteParams {
            propagation_policy: Some(match policy {
                Policy::Background => PropagationPolicy::Background,
                Policy::Foreground => PropagationPolicy::Foreground,
                Policy::Orphan => PropagationPolicy::Orphan,
            }),
            preconditions: Some(Preconditions {
                uid: Some(item.uid.to_string()),
                resource_version: Some(item.version.clone()),
            }),
            ..Default::default()
        };
        let api = self.catalogue.api(&item.resource, &item.key.namespace);
        match api.delete(&item.key.name, &deletion).await.map_err(ActError::from) {
            Ok(_) | Err(ActError::Gone(_)) => {}
            Err(error) => return Err(error),
        }
        self.catalogue.until(|graph| has_moved_on(graph, item)).await;
        Ok(())
    }

    async fn ask_for(&self, owner: &OwnerReference, namespace: &str) -> Result<(), ActError> {
        let Some(resource) = self.catalogue.known().find(&owner.api_version, &owner.kind) else {
            // Not known is not gone: its definition may be on its way.
            return Err(ActError::Failed(format!("no kind {} in {} is served", owner.kind, owner.api_version)));
        };
        // An owner in a namespace cannot be found from outside of one: such a reference is left as it is.
        let there = if resource.namespaced && namespace.is_empty() {
            true
        } else {
            let found = self.catalogue.api(&resource, namespace).get_metadata_opt(&owner.name).await?;
            found.is_some_and(|found| found.metadata.uid.as_deref() == Some(&*owner.uid))
        };
        self.catalogue.learn(&owner.uid, namespace, there);
        Ok(())
    }
}

fn has_moved_on(graph: &Graph, item: &Item) -> bool {
    graph.get(&item.uid).is_none_or(|now| now.version != item.version)
}

fn is_leaving(graph: &Graph, owner: &OwnerReference, item: &Item) -> bool {
    graph.presence(owner, &item.key.namespace) != Presence::Present
}

fn key(uid: &str) -> Key {
    Key::new("", uid)
}

impl Loop for GarbageCollector {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "garbage-collector"
    }

    fn wire(&self, queue: &Queue) {
        let (to, catalogue) = (queue.clone(), self.catalogue.clone());
        self.catalogue.on_change(move |change| {
            let Some(item) = change.new.as_ref().or(change.old.as_ref()) else { return };
            let graph = catalogue.graph();
            // Most changes are of objects that live, under owners that live: they cost nothing here.
            if change.new.is_some()
                && (item.deleting || item.owners.iter().any(|owner| is_leaving(&graph, owner, item)))
            {
                to.add(key(&item.uid));
            }
            let waited = change.old.as_ref().is_some_and(|old| old.deletes_dependents_first());
            if change.new.is_none() || item.deletes_dependents_first() != waited {
                graph.dependents(&item.uid).iter().for_each(|dependent| to.add(key(&dependent.uid)));
            }
            // An owner that waits for this one to go, or to let go.
            let owners = change.old.iter().flat_map(|old| &old.owners);
            for owner in owners.filter(|owner| graph.get(&owner.uid).is_some_and(|owner| owner.deleting)) {
                to.add(key(&owner.uid));
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.catalogue.synced())
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let graph = self.catalogue.graph();
        let item = graph.get(&key.name)?.clone();
        if item.owners.is_empty() && !item.deleting {
            return None;
        }
        let owners =
            item.owners.iter().map(|owner| (owner.clone(), graph.presence(owner, &item.key.namespace))).collect();
        Some(Seen { owners, dependents: graph.dependents(&item.uid), item })
    }

    fn plan(&self, seen: &Seen, _now: Timestamp) -> Plan<Action> {
        plan(seen)
    }

    async fn act(&self, key: &Key, action: Action, _writes: &Writes) -> Result<(), ActError> {
        match action {
            Action::AskFor(owner) => {
                let namespace = self.catalogue.graph().get(&key.name).map(|item| item.key.namespace.clone());
                let namespace = namespace.ok_or_else(|| ActError::Gone(key.to_string()))?;
                self.ask_for(&owner, &namespace).await
            }
            Action::Disown(item, uids) => {
                let left: Vec<&OwnerReference> =
                    item.owners.iter().filter(|owner| !uids.contains(&owner.uid)).collect();
                self.patch(&item, json!({"ownerReferences": left})).await
            }
            Action::Unblock(item) => {
                let owners: Vec<OwnerReference> = item
                    .owners
                    .iter()
                    .map(|owner| OwnerReference { block_owner_deletion: Some(false), ..owner.clone() })
                    .collect();
                self.patch(&item, json!({"ownerReferences": owners})).await
            }
            Action::Delete(item, policy) => self.delete(&item, policy).await,
            Action::Finish(item, finalizer) => {
                let left: Vec<&String> = item.finalizers.iter().filter(|held| *held != finalizer).collect();
                self.patch(&item, json!({"finalizers": left})).await
            }
        }
    }
}
