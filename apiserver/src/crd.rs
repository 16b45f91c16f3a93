//! Custom resources: served while their CustomResourceDefinition exists.
//!
//! Owns the step from a stored definition to rows in the table of resources, the conditions that say so,
//! and the removal of instances when a definition goes. Wakes on every change of a definition.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::Method;
use parking_lot::Mutex;
use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use proa_store::{CommitError, Expect, Revision, Txn};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::cache::Item;
use crate::core::Core;
use crate::kinds;
use crate::kinds::crd::FINALIZER;
use crate::registry::options::WriteOptions;
use crate::registry::{Call, itself, meta, write};
use crate::resources::{Custom, Resource};

/// Where definitions are stored.
pub const RESOURCE: &str = "customresourcedefinitions.apiextensions.k8s.io";
const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// How long what failed waits (a full disk, say).
const RETRY: Duration = Duration::from_secs(5);

/// How many instances of a definition that goes are deleted at a time: they share the store's writes.
const CONCURRENT_DELETES: usize = 64;

/// What those who take up definitions share.
#[derive(Default)]
pub struct Definitions {
    /// One at a time: an older look at the definitions must not undo a newer one.
    taking_up: Mutex<()>,
    /// Wakes the loop though no definition changed: an instance of one that is going has.
    again: Notify,
}

/// Takes up all definitions once; called before the server answers anything.
pub fn load(core: &Arc<Core>) {
    take_up(core);
}

/// Serves what was just committed, so that whoever is told of a definition can use it. A server that is
/// closing has nobody left to tell.
pub async fn serve_now(core: &Arc<Core>) {
    if core.caches.consistent().await.is_ok() {
        take_up(core);
    }
}

/// Follows the definitions until the server stops.
pub async fn follow(core: Arc<Core>) {
    let cache = core.caches.resource(RESOURCE);
    let mut changed = cache.subscribe();
    loop {
        changed.borrow_and_update();
        take_up(&core);
        let mut again = false;
        for item in cache.items("") {
            if let Err(error) = settle(&core, &item).await {
                // A conflict means somebody else wrote: that write wakes this loop again. Nothing else does.
                again |= error.code != 409;
                tracing::debug!(name = item.name(), %error, "the definition's status waits");
            }
        }
        tokio::select! {
            biased;
            woken = changed.changed() => if woken.is_err() { return },
            () = core.definitions.again.notified() => {}
            () = tokio::time::sleep(RETRY), if again => {}
            () = core.stop.cancelled() => return,
        }
    }
}

fn take_up(core: &Arc<Core>) {
    let _one = core.definitions.taking_up.lock();
    let items = core.caches.resource(RESOURCE).items("");
    let table = core.resources.table();
    let served: Vec<_> = table.all().filter_map(|resource| resource.custom.clone()).collect();
    for custom in &served {
        if !items.iter().any(|item| item.name() == custom.definition) {
            core.resources.remove_custom(&custom.definition);
        }
    }
    for item in &items {
        let known = served.iter().any(|custom| custom.definition == item.name() && custom.revision == item.revision);
        if !known {
            serve(core, item);
        }
    }
}

fn serve(core: &Arc<Core>, item: &Item) {
    let object = item.object();
    // A definition whose names are taken by an older one is stored, but not served.
    let kinds = if conflict(core, &object).is_some() { Vec::new() } else { kinds::crd::from_crd(&object) };
    let definition = Custom {
        definition: item.name().to_owned(),
        revision: item.revision,
        terminating: object.deletion_timestamp().is_some(),
    };
    core.resources.set_custom(&core.caches, definition, kinds);
}

/// The other resource that has this definition's plural or kind already.
fn conflict(core: &Core, object: &Object) -> Option<String> {
    let group = object.get_str(&["spec", "group"])?;
    let (plural, kind) = (object.get_str(&["spec", "names", "plural"])?, object.get_str(&["spec", "names", "kind"])?);
    let table = core.resources.table();
    let other = table.group(group)?.versions.iter().flat_map(|version| &version.resources).find(|resource| {
        let own = resource.custom.as_ref().is_some_and(|custom| custom.definition == object.name());
        !own && (resource.kind.plural == plural || resource.kind.kind == kind)
    })?;
    Some(other.kind.plural.to_string())
}

/// Brings the status of a definition, or its end, one step further.
async fn settle(core: &Arc<Core>, item: &Item) -> Result<(), ApiError> {
    let object = item.object();
    if object.deletion_timestamp().is_some() {
        return if object.finalizers().any(|name| name == FINALIZER) { clean_up(core, &object).await } else { Ok(()) };
    }
    if !object.finalizers().any(|name| name == FINALIZER) {
        let mut finalizers: Vec<&str> = object.finalizers().collect();
        finalizers.push(FINALIZER);
        set_finalizers(core, &object, &finalizers).await?;
        // The write wakes the loop, which then sees to the status.
        return Ok(());
    }
    let names = accepted_names(&object);
    let stored = stored_versions(&object);
    let clash = conflict(core, &object);
    let mut conditions = object.get_list(&["status", "conditions"]).to_vec();
    let now = meta::time(core.now());
    let (accepted, reason, message) = match &clash {
        None => ("True", "NoConflicts", "no conflicts found".to_owned()),
        Some(other) => ("False", "PluralConflict", format!("the names are already in use by {other}")),
    };
    let mut changed = set_condition(&mut conditions, "NamesAccepted", accepted, reason, &message, &now);
    if clash.is_none() {
        changed |= set_condition(
            &mut conditions,
            "Established",
            "True",
            "InitialNamesAccepted",
            "the initial names have been accepted",
            &now,
        );
    } else {
        changed |=
            set_condition(&mut conditions, "Established", "False", "NotAccepted", "not all names are accepted", &now);
    }
    let same = |path: &[&str], value: &Value| object.get(path) == Some(value);
    if !changed && same(&["status", "acceptedNames"], &names) && same(&["status", "storedVersions"], &stored) {
        return Ok(());
    }
    let patch = json!({
        "metadata": {"resourceVersion": object.resource_version()},
        "status": {"conditions": conditions, "acceptedNames": names, "storedVersions": stored},
    });
    itself::send(core, Method::PATCH, &format!("{PATH}/{}/status", object.name()), "", &patch).await
}

fn accepted_names(object: &Object) -> Value {
    let mut names = object.get(&["spec", "names"]).cloned().unwrap_or_else(|| json!({}));
    let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(names) = names.as_object_mut() {
        names.entry("singular").or_insert_with(|| kind.to_lowercase().into());
        names.entry("listKind").or_insert_with(|| format!("{kind}List").into());
    }
    names
}

fn stored_versions(object: &Object) -> Value {
    let mut stored: Vec<Value> = object.get_list(&["status", "storedVersions"]).to_vec();
    let versions = object.get_list(&["spec", "versions"]);
    let storage = versions
        .iter()
        .find(|version| version.get("storage").and_then(Value::as_bool) == Some(true))
        .and_then(|version| version.get("name"));
    if let Some(name) = storage.filter(|name| !stored.contains(name)) {
        stored.push(name.clone());
    }
    stored.into()
}

/// Sets a condition; whether anything changed.
pub(crate) fn set_condition(
    conditions: &mut Vec<Value>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: &str,
) -> bool {
    let mut condition =
        json!({"type": kind, "status": status, "lastTransitionTime": now, "reason": reason, "message": message});
    match conditions.iter_mut().find(|have| have["type"] == kind) {
        Some(have) => {
            if have["status"] == status {
                condition["lastTransitionTime"] = have["lastTransitionTime"].clone();
            }
            let changed = *have != condition;
            *have = condition;
            changed
        }
        None => {
            conditions.push(condition);
            true
        }
    }
}

/// Deletes the instances of a deleted definition; once none is left, lets the definition go.
async fn clean_up(core: &Arc<Core>, object: &Object) -> Result<(), ApiError> {
    // By where they are stored: a definition that serves no version has instances all the same.
    let cache = core.caches.resource(object.name());
    let mut changed = cache.subscribe();
    changed.borrow_and_update();
    let table = core.resources.table();
    let mine =
        |resource: &&Arc<Resource>| resource.custom.as_ref().is_some_and(|custom| custom.definition == object.name());
    let served = table.all().find(mine).cloned();
    let foreign = table.all().any(|resource| !mine(&resource) && Arc::ptr_eq(&resource.cache, &cache));
    if !foreign {
        let delete = |item: Arc<Item>| {
            let (core, served) = (Arc::clone(core), served.clone());
            async move {
                match served {
                    Some(resource) => delete_instance(&core, &resource, &item).await,
                    None => remove_unserved(&core, &item).await,
                }
            }
        };
        let mut deletions = futures::stream::iter(cache.items("")).map(delete).buffer_unordered(CONCURRENT_DELETES);
        let mut failure = None;
        while let Some(deleted) = deletions.next().await {
            failure = failure.or(deleted.err());
        }
        drop(deletions);
        if let Some(error) = failure {
            return Err(error);
        }
        core.caches.consistent().await?;
        if !cache.is_empty() {
            // Finalizers hold an instance: look again when it changes.
            let core = Arc::clone(core);
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    _ = changed.changed() => core.definitions.again.notify_one(),
                    () = core.stop.cancelled() => {}
                }
            });
            return Ok(());
        }
    }
    let finalizers: Vec<&str> = object.finalizers().filter(|name| *name != FINALIZER).collect();
    set_finalizers(core, object, &finalizers).await
}

async fn delete_instance(core: &Arc<Core>, resource: &Resource, item: &Item) -> Result<(), ApiError> {
    let base = format!("/apis/{}/{}", resource.kind.group, resource.kind.version);
    let place = if resource.namespaced() { format!("namespaces/{}/", item.namespace()) } else { String::new() };
    let path = format!("{base}/{place}{}/{}", resource.kind.plural, item.name());
    match itself::send(core, Method::DELETE, &path, "", &Value::Null).await {
        Err(error) if error.code != 404 => Err(error),
        _ => Ok(()),
    }
}

/// Removes an instance of a definition that serves none. One with finalizers stays, and its definition with it,
/// until it is served again and whoever set them can see to it.
async fn remove_unserved(core: &Arc<Core>, item: &Item) -> Result<(), ApiError> {
    if item.object().finalizers().next().is_some() {
        return Ok(());
    }
    match core.log.commit(Txn::delete(Arc::clone(&item.key), Expect::At(Revision(item.revision)), None)).await {
        // Somebody was faster: the next look finds what is left.
        Ok(_) | Err(CommitError::Conflict { .. }) => Ok(()),
        Err(error) => Err(write::commit_error(error)),
    }
}

/// Sets a definition's finalizers, if it is still the one that was looked at. The last one to go lets a
/// deleted definition go.
async fn set_finalizers(core: &Arc<Core>, object: &Object, finalizers: &[&str]) -> Result<(), ApiError> {
    let table = core.resources.table();
    let resource = table
        .find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
        .cloned()
        .ok_or_else(ApiError::no_such_resource)?;
    let request = itself::request(Method::PUT, &format!("{PATH}/{}", object.name()), "", &Value::Null);
    let call = Call { core, request: &request, resource, warnings: parking_lot::Mutex::default() };
    let options = WriteOptions::read(&request)?;
    let version = object.resource_version().to_owned();
    let change = |old: &Object| {
        let mut new = old.clone();
        let metadata = new.metadata_mut();
        metadata.insert("resourceVersion".into(), version.as_str().into());
        if finalizers.is_empty() {
            metadata.shift_remove("finalizers");
        } else {
            metadata.insert("finalizers".into(), finalizers.into());
        }
        Ok((new, FieldErrors::new()))
    };
    write::assign(&call, object.name(), &[], &options, change).await.map(drop)
}
