//! Namespace deletion: everything in a namespace goes before the namespace does.
//!
//! Owns: the content of namespaces marked for deletion and the finalizer `kubernetes`. Never touches a namespace that
//! stays, and never a finalizer of someone else.

mod plan;

pub use plan::{Action, FINALIZER, Seen, plan};

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    catalogue::{Catalogue, Resource},
    patch::params,
};
use futures::future::{BoxFuture, join_all};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, Patch, PostParams};
use serde_json::json;

/// The namespace loop.
pub struct Namespaces {
    namespaces: Informer<Namespace>,
    catalogue: Catalogue,
}

impl Namespaces {
    /// The loop of that context over that catalogue.
    pub fn new(context: &Context, catalogue: &Catalogue) -> Self {
        Namespaces { namespaces: context.informers.of(), catalogue: catalogue.clone() }
    }

    async fn delete_all(&self, resource: &Resource, namespace: &str) -> Result<(), ActError> {
        let api = self.catalogue.api(resource, namespace);
        let deletion = DeleteParams::background();
        if resource.can("deletecollection") {
            api.delete_collection(&deletion, &ListParams::default()).await?;
        } else {
            let listed = api.list_metadata(&ListParams::default()).await?;
            let names: Vec<String> = listed.items.into_iter().filter_map(|object| object.metadata.name).collect();
            for result in join_all(names.iter().map(|name| api.delete(name, &deletion))).await {
                match result.map_err(ActError::from) {
                    Ok(_) | Err(ActError::Gone(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Asks the server about every resource once more (the catalogue does not hold all of them), then lets go.
    async fn finish(&self, key: &Key, writes: &Writes) -> Result<(), ActError> {
        let known = self.catalogue.known();
        let deletable = known
            .resources
            .iter()
            .filter(|r| r.namespaced && r.can("list") && (r.can("delete") || r.can("deletecollection")));
        let looks = deletable.map(|resource| async move {
            let api = self.catalogue.api(resource, &key.name);
            let first = ListParams::default().limit(1);
            let left = !api.list_metadata(&first).await?.items.is_empty();
            if left {
                self.delete_all(resource, &key.name).await?;
                let still = !api.list_metadata(&first).await?.items.is_empty();
                return Ok::<_, ActError>(still.then(|| resource.label()));
            }
            Ok(None)
        });
        for look in join_all(looks).await {
            match look {
                Ok(None) | Err(ActError::Gone(_)) => {}
                Ok(Some(label)) => return Err(ActError::Conflict(format!("{label} is not empty yet"))),
                // What is listed but cannot be (a method that is not allowed) holds nothing of ours.
                Err(ActError::Refused(why)) => tracing::debug!(why, "skipped while emptying a namespace"),
                Err(error) => return Err(error),
            }
        }
        let api = self.namespaces.cluster_api();
        let mut namespace = api.get(&key.name).await?;
        if let Some(spec) = &mut namespace.spec {
            spec.finalizers.get_or_insert_default().retain(|name| name != FINALIZER);
        }
        let finished = api.replace_subresource("finalize", &key.name, &PostParams::default(), &namespace).await;
        match finished.map_err(ActError::from) {
            Ok(written) => {
                let uid = written.metadata.uid.clone().unwrap_or_default();
                if written.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
                    writes.deleted(&self.namespaces, key, &uid);
                } else {
                    writes.wrote(&self.namespaces, &written);
                }
                Ok(())
            }
            Err(ActError::Gone(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Loop for Namespaces {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "namespace"
    }

    fn wire(&self, queue: &Queue) {
        let to = queue.clone();
        self.namespaces.on_change(move |change| to.add(change.key.clone()));
        let (to, namespaces) = (queue.clone(), self.namespaces.clone());
        self.catalogue.on_change(move |change| {
            let Some(item) = change.new.as_ref().or(change.old.as_ref()) else { return };
            let key = Key::new("", &item.key.namespace);
            if !item.key.namespace.is_empty()
                && namespaces.get(&key).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
            {
                to.add(key);
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(self.namespaces.synced(), self.catalogue.synced());
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let namespace = self.namespaces.get(key)?;
        namespace.metadata.deletion_timestamp.as_ref()?;
        let remaining = self.catalogue.graph().remaining(&key.name);
        Some(Seen { namespace, remaining, failures: self.catalogue.known().failures })
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Action> {
        plan(seen, now)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        match action {
            Action::DeleteAll(resource) => {
                self.delete_all(&resource, &key.name).await?;
                let label = resource.label();
                let touched = |graph: &crate::catalogue::Graph| {
                    graph.remaining(&key.name).get(&label).is_none_or(|left| left.untouched == 0)
                };
                self.catalogue.until(touched).await;
                Ok(())
            }
            Action::Conditions(conditions) => {
                let patch = json!({"status": {"conditions": conditions}});
                let written =
                    self.namespaces.cluster_api().patch_status(&key.name, &params(), &Patch::Merge(&patch)).await?;
                writes.wrote(&self.namespaces, &written);
                Ok(())
            }
            Action::Finish => self.finish(key, writes).await,
        }
    }
}
