//! DELETE of one object or of a collection: preconditions, propagation, grace, finalizers.

use std::sync::Arc;

use futures::StreamExt;
use http::StatusCode;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::object::Object;
use proa_apimachinery::status::{ApiError, success};
use proa_store::{CommitError, Expect, Revision, Txn};
use serde_json::{Value, json};

use super::selection::Selection;
use super::{Call, codec, get, list, meta, options, write};
use crate::admission::chain;
use crate::cache::Item;
use crate::conversion;
use crate::http::{Response, answer};
use crate::kinds::{Graceful, Op};

/// How many objects of a collection are deleted at a time: they share the store's writes.
const CONCURRENT_DELETES: usize = 64;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// `DeleteOptions`, from the body and the query.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    grace: Option<i64>,
    propagation: Option<Propagation>,
    uid: Option<String>,
    version: Option<String>,
    /// Do everything except deleting.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads the options of a request.
    pub fn read(call: &Call<'_>) -> Result<DeleteOptions, ApiError> {
        if call.request.body.is_empty() {
            return DeleteOptions::from_query(call);
        }
        let body = codec::decode(call.request)?.value;
        if body.is_null() { DeleteOptions::from_query(call) } else { DeleteOptions::from_value(&body, call) }
    }

    fn from_query(call: &Call<'_>) -> Result<DeleteOptions, ApiError> {
        let query = &call.request.query;
        let mut errors = FieldErrors::new();
        let dry_run = options::dry_run(query.all("dryRun"), &mut errors);
        let grace = match query.get("gracePeriodSeconds") {
            None => None,
            Some(grace) => Some(
                grace.parse().map_err(|_| ApiError::bad_request(format!("invalid gracePeriodSeconds {grace:?}")))?,
            ),
        };
        let orphan = query.get("orphanDependents").map(|_| query.flag("orphanDependents"));
        DeleteOptions::build(grace, query.get("propagationPolicy"), orphan, None, dry_run, errors)
    }

    /// From the JSON of a `DeleteOptions` (also the one inside an eviction).
    pub fn from_value(body: &Value, call: &Call<'_>) -> Result<DeleteOptions, ApiError> {
        let wrong = |field: &str| ApiError::bad_request(format!("DeleteOptions: {field} has the wrong type"));
        let given = |field: &str| body.get(field).filter(|value| !value.is_null());
        let grace = match given("gracePeriodSeconds") {
            None => None,
            Some(grace) => Some(grace.as_i64().ok_or_else(|| wrong("gracePeriodSeconds"))?),
        };
        let policy = match given("propagationPolicy") {
            None => None,
            Some(policy) => Some(policy.as_str().ok_or_else(|| wrong("propagationPolicy"))?),
        };
        let orphan = given("orphanDependents").and_then(Value::as_bool);
        let mut errors = FieldErrors::new();
        let sent = given("dryRun").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let dry_run = options::dry_run(sent.chain(call.request.query.all("dryRun")), &mut errors);
        DeleteOptions::build(grace, policy, orphan, given("preconditions"), dry_run, errors)
    }

    fn build(
        grace: Option<i64>,
        policy: Option<&str>,
        orphan: Option<bool>,
        preconditions: Option<&Value>,
        dry_run: bool,
        mut errors: FieldErrors,
    ) -> Result<DeleteOptions, ApiError> {
        // A negative wait counts as the shortest there is, as on Kubernetes.
        let grace = grace.map(|grace| if grace < 0 { 1 } else { grace });
        let at = Path::of("propagationPolicy");
        let propagation = match (policy, orphan) {
            (Some(policy), Some(_)) => {
                let both = "orphanDependents and deletionPropagation cannot be both set";
                errors.push(FieldError::invalid(&at, policy, both));
                None
            }
            (Some("Orphan"), None) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some("Background"), None) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), None) => Some(Propagation::Foreground),
            (Some(other), None) => {
                errors.push(FieldError::not_supported(&at, other, &["Foreground", "Background", "Orphan"]));
                None
            }
            (None, None) => None,
        };
        options::valid("DeleteOptions", errors)?;
        let text = |field: &str| {
            preconditions
                .and_then(|value| value.get(field))
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        Ok(DeleteOptions { grace, propagation, uid: text("uid"), version: text("resourceVersion"), dry_run })
    }

    /// The JSON of these options.
    pub fn to_value(&self) -> Value {
        let mut value = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(grace) = self.grace {
            value["gracePeriodSeconds"] = grace.into();
        }
        if let Some(propagation) = self.propagation {
            let name = match propagation {
                Propagation::Orphan => "Orphan",
                Propagation::Background => "Background",
                Propagation::Foreground => "Foreground",
            };
            value["propagationPolicy"] = name.into();
        }
        if self.dry_run {
            value["dryRun"] = json!(["All"]);
        }
        for (field, wanted) in [("uid", &self.uid), ("resourceVersion", &self.version)] {
            if let Some(wanted) = wanted {
                value["preconditions"][field] = wanted.as_str().into();
            }
        }
        value
    }

    /// Whether the deletion is of one state of the object only.
    pub fn names_a_version(&self) -> bool {
        self.version.is_some()
    }

    /// Deletes this state of the object and no other.
    pub fn require_version(&mut self, version: &str) {
        self.version = Some(version.to_owned());
    }

    /// Whether the object is the one meant.
    ///
    /// # Errors
    ///
    /// A conflict when it is another, or in another state.
    pub fn check(&self, call: &Call<'_>, object: &Object) -> Result<(), ApiError> {
        for (what, wanted, have) in
            [("UID", &self.uid, object.uid()), ("ResourceVersion", &self.version, object.resource_version())]
        {
            if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != have) {
                let why =
                    format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {have}");
                return Err(ApiError::conflict(call.resource.group_resource(), object.name(), &why));
            }
        }
        Ok(())
    }

    /// How many seconds the deletion waits: asked of the strategy, shortened by what the client wants.
    fn wait(&self, call: &Call<'_>, object: &Object) -> i64 {
        match call.resource.kind.strategy.graceful(object, self.grace) {
            Graceful::Now => 0,
            Graceful::After(seconds) => seconds.max(0),
        }
    }
}

/// What a delete did.
pub enum Deleted {
    /// The object is gone; as it was.
    Gone(Object),
    /// It is marked and somebody still has work to do; its state now.
    Marked(bytes::Bytes),
}

/// DELETE of one object.
pub async fn delete(call: &Call<'_>) -> Result<Response, ApiError> {
    let options = DeleteOptions::read(call)?;
    match delete_named(call, call.name(), &options).await? {
        Deleted::Gone(object) if call.resource.kind.returns_deleted => {
            get::answer(call, StatusCode::OK, codec::plain(&object))
        }
        Deleted::Gone(object) => {
            Ok(answer(StatusCode::OK, &success(call.resource.group_resource(), object.name(), object.uid())))
        }
        Deleted::Marked(bytes) => get::answer(call, StatusCode::OK, bytes),
    }
}

/// Deletes one object by name.
pub async fn delete_named(call: &Call<'_>, name: &str, options: &DeleteOptions) -> Result<Deleted, ApiError> {
    loop {
        let Some(write::Current { item, object: old }) = write::current(call, name).await? else {
            return Err(call.not_found(name));
        };
        options.check(call, &old)?;
        chain::delete(call, options, &old).await?;
        let mut new = old.clone();
        propagate(&mut new, options.propagation);
        let wait = options.wait(call, &old);
        if wait == 0 && !write::pending(&new) {
            if options.dry_run {
                return Ok(Deleted::Gone(new));
            }
            match write::remove(call, &item, new).await {
                Ok(()) => {
                    write::take_up(call).await;
                    return Ok(Deleted::Gone(old));
                }
                Err(CommitError::Conflict { .. }) => continue,
                Err(error) => return Err(write::commit_error(error)),
            }
        }
        mark(call, &mut new, &old, wait);
        if meta::same(&new, &old) {
            return Ok(Deleted::Marked(conversion::served(call.core, &call.resource, &item.bytes).await?));
        }
        if options.dry_run {
            return Ok(Deleted::Marked(codec::plain(&new)));
        }
        // However large it has become, it may go.
        let value = codec::encode(&conversion::to_storage(call.core, &call.resource, new).await?);
        match call.core.log.commit(Txn::put(item.key.clone(), value, Expect::At(Revision(item.revision)))).await {
            Ok(committed) => {
                let bytes = committed.entries.into_iter().next().map(|entry| entry.bytes).unwrap_or_default();
                write::take_up(call).await;
                return Ok(Deleted::Marked(conversion::served(call.core, &call.resource, &bytes).await?));
            }
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(write::commit_error(error)),
        }
    }
}

/// The propagation policy lives in finalizers, which the garbage collector acts on.
fn propagate(object: &mut Object, policy: Option<Propagation>) {
    let Some(policy) = policy else { return };
    let wanted = match policy {
        Propagation::Orphan => Some(ORPHAN),
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Background => None,
    };
    let mut finalizers: Vec<String> =
        object.finalizers().filter(|name| !matches!(*name, ORPHAN | FOREGROUND)).map(str::to_owned).collect();
    finalizers.extend(wanted.map(str::to_owned));
    if finalizers.is_empty() {
        object.metadata_mut().shift_remove("finalizers");
    } else {
        object.metadata_mut().insert("finalizers".into(), Value::from(finalizers));
    }
}

/// Marks an object as deleted `wait` seconds from now. A second delete may shorten the wait, never lengthen it.
fn mark(call: &Call<'_>, new: &mut Object, old: &Object, wait: i64) {
    let now = call.core.now();
    let deadline = now.checked_add(jiff::SignedDuration::from_secs(wait)).unwrap_or(now);
    let grace = old.metadata().and_then(|metadata| metadata.get("deletionGracePeriodSeconds")).and_then(Value::as_i64);
    if old.deletion_timestamp().is_some() {
        if grace.is_none_or(|grace| wait >= grace) {
            return;
        }
    } else if old.generation() > 0 {
        new.metadata_mut().insert("generation".into(), Value::from(old.generation() + 1));
    }
    let metadata = new.metadata_mut();
    metadata.insert("deletionTimestamp".into(), Value::from(meta::time(deadline)));
    metadata.insert("deletionGracePeriodSeconds".into(), Value::from(wait));
    call.resource.kind.strategy.prepare(Op::Delete, new, Some(old));
}

/// DELETE of a collection. Answers with what it was told to delete, as it was before.
pub async fn collection(call: &Call<'_>) -> Result<Response, ApiError> {
    let options = DeleteOptions::read(call)?;
    let selection = Selection::read(&call.resource, &call.request.query, call.namespace())?;
    if call.resource.namespaced() && call.namespace().is_empty() {
        return Err(super::not_allowed(call));
    }
    let page = list::page(call, &selection).await?;
    let options = &options;
    let delete = |item: Arc<Item>| async move { delete_named(call, item.name(), options).await };
    let mut deletions = futures::stream::iter(page.items.clone()).map(delete).buffer_unordered(CONCURRENT_DELETES);
    let mut failure = None;
    while let Some(deleted) = deletions.next().await {
        // Whatever else can go, goes; the caller tries again for the rest.
        failure = failure.or(deleted.err().filter(|error| error.code != 404));
    }
    drop(deletions);
    match failure {
        Some(error) => Err(error),
        None => list::answer(call, page),
    }
}
