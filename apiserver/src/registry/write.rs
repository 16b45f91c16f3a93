//! What every write goes through after field validation: defaults, admission, preparation, validation,
//! allocation, field ownership, commit.

use bytes::Bytes;
use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::managed_fields::{self, Manager, Operation};
use proa_apimachinery::object::Object;
use proa_apimachinery::part::Part;
use proa_apimachinery::status::ApiError;
use proa_store::{CommitError, Expect, Key, Op as StoreOp, Revision, Txn, Value as Stored};
use serde_json::Value;

use super::options::WriteOptions;
use super::{Call, codec, meta};
use crate::admission::{self, chain};
use crate::allocate::{Around, Claims};
use crate::authz::escalation;
use crate::cache::Item;
use crate::kinds::{self, Op};
use crate::{conversion, crd};

/// How often a write that lost a race starts over before the client is told.
const ATTEMPTS: usize = 64;

/// Who answers for `managedFields` in a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// The difference between before and after belongs to the writer.
    Update,
    /// Server-side apply has set them already.
    Applied,
}

/// A new state that may be stored.
struct Completed {
    /// What is allocated for it; taken by the commit of the claims.
    claims: Claims,
    /// The state as its writer meant it, where a webhook changed it since.
    written: Option<Object>,
}

/// Default → mutating admission → prepare → validate → validating admission → allocate.
async fn complete(
    call: &Call<'_>,
    op: Op,
    options: &WriteOptions,
    new: &mut Object,
    old: Option<&Object>,
    missing: FieldErrors,
) -> Result<Completed, ApiError> {
    let kind = &call.resource.kind;
    kind.strategy.default(new);
    let written = chain::mutate(call, op, options, new, old).await?;
    kind.strategy.prepare(op, new, old);
    admission::policy::check_types(call, op, new, old);
    let mut errors = kind.strategy.validate(op, new, old);
    // What was missing when the object came may have been filled in since. Status is written by
    // controllers, whom Kubernetes does not hold to the schema either.
    if !missing.is_empty() || written.is_some() {
        let checked = kind.schema.check(&new.to_value());
        let held = op != Op::UpdateStatus || call.resource.custom.is_some();
        for error in if held { checked.missing } else { checked.unset_times } {
            if !errors.iter().any(|have| have.path == error.path) {
                errors.push(error);
            }
        }
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid(call.resource.group_kind(), new.name(), errors));
    }
    if op != Op::UpdateStatus {
        let unsupported = kind.strategy.unsupported(new);
        if !unsupported.is_empty() {
            let why = proa_apimachinery::field::join(&unsupported);
            let mut error = ApiError::forbidden(call.resource.group_resource(), new.name(), &why);
            let causes = ApiError::invalid(call.resource.group_kind(), new.name(), unsupported).details;
            if let (Some(details), Some(causes)) = (&mut error.details, causes) {
                details.causes = causes.causes;
            }
            return Err(error);
        }
        escalation::check(call.core, call.user(), &kind.group, &kind.plural, new.namespace(), new, old)?;
    }
    chain::validate(call, op, options, new, old).await?;
    if op != Op::UpdateStatus {
        for warning in kind.strategy.warnings(new) {
            call.warn(warning);
        }
    }
    let allocations = kind.strategy.allocate(op, new, old);
    if allocations.is_empty() {
        return Ok(Completed { claims: Claims::default(), written });
    }
    // What was let go a moment ago, on another connection, is free.
    call.core.caches.consistent().await?;
    let now = meta::time(call.core.now());
    let claims = call
        .core
        .allocators
        .fulfil(allocations, new, &around(call, &now))
        .map_err(|errors| ApiError::invalid(call.resource.group_kind(), new.name(), errors))?;
    Ok(Completed { claims, written })
}

/// The fields a write sets belong to its writer; what webhooks made of it since belongs to nobody, as on Kubernetes:
/// whoever applies the same again must not take it away.
fn own_written(
    call: &Call<'_>,
    options: &WriteOptions,
    op: Op,
    (new, old): (&mut Object, Option<&Object>),
    written: Option<Object>,
    now: &str,
) {
    let Some(mut written) = written else { return own(call, options, op, new, old, now) };
    call.resource.kind.strategy.prepare(op, &mut written, old);
    own(call, options, op, &mut written, old, now);
    match written.metadata_mut().shift_remove("managedFields") {
        Some(fields) => drop(new.metadata_mut().insert("managedFields".into(), fields)),
        None => drop(new.metadata_mut().shift_remove("managedFields")),
    }
}

fn around<'a>(call: &'a Call<'_>, now: &'a str) -> Around<'a> {
    Around { caches: &call.core.caches, entropy: &call.core.config.entropy, now }
}

fn own(call: &Call<'_>, options: &WriteOptions, op: Op, new: &mut Object, old: Option<&Object>, now: &str) {
    let api_version = call.resource.api_version();
    let subresource = if op == Op::UpdateStatus { "status" } else { call.request.info.subresource.as_str() };
    let manager =
        Manager { name: &options.manager, operation: Operation::Update, api_version: &api_version, subresource };
    managed_fields::update(&call.resource.kind.schema, old, new, manager, now);
}

/// Creates an object: its bytes as committed (or as they would be, in a dry run).
pub async fn create(
    call: &Call<'_>,
    object: Object,
    options: &WriteOptions,
    ownership: Ownership,
    missing: FieldErrors,
) -> Result<Bytes, ApiError> {
    let resource = &call.resource;
    let generated = object.name().is_empty() && !object.generate_name().is_empty();
    let now = meta::time(call.core.now());
    let mut tries = 0;
    loop {
        tries += 1;
        let namespace = admission::namespace_accepts(call, call.namespace(), object.name()).await?;
        let definition = definition_accepts(call)?;
        let mut new = object.clone();
        if generated {
            let name = meta::generate_name(new.generate_name(), &call.core.config.entropy);
            new.metadata_mut().insert("name".into(), Value::from(name));
        }
        meta::stamp(&mut new, &now, &call.core.config.entropy);
        let Completed { claims, written } =
            complete(call, Op::Create, options, &mut new, None, missing.clone()).await?;
        if ownership == Ownership::Update {
            own_written(call, options, Op::Create, (&mut new, None), written, &now);
        }
        let charge = admission::quota::charge(call, Op::Create, &new, None).await?;
        let name = new.name().to_owned();
        if options.dry_run {
            if resource.cache.get(call.namespace(), &name).is_some() {
                return Err(ApiError::already_exists(resource.group_resource(), &name));
            }
            return Ok(codec::plain(&new));
        }
        let key = resource.cache.key(call.namespace(), &name);
        let claimed = claims.writes(&around(call, &now), &new);
        let value = encoded(call, new).await?;
        let mut txn = Txn::put(key.as_str(), value, Expect::Absent);
        txn.ops.extend(charge.iter().flat_map(|charge| charge.writes()));
        txn.ops.extend(claimed);
        // What it lives in and what defines it are as they were looked at: whoever takes them away sees this object.
        txn.ops.extend(namespace.map(|item| unchanged(item.key.clone(), item.revision)));
        txn.ops.extend(definition);
        match call.core.log.commit(txn).await {
            Ok(committed) => {
                let bytes = committed.entries.into_iter().next().map(|entry| entry.bytes).unwrap_or_default();
                take_up(call).await;
                return conversion::served(call.core, resource, &bytes).await;
            }
            // A quota was written meanwhile, by its controller or its owner; an address was taken; the namespace changed.
            Err(CommitError::Conflict { key: other, .. }) if *other != *key && tries < ATTEMPTS => {
                crd::serve_now(call.core).await;
            }
            Err(CommitError::Conflict { .. }) if generated && tries < 8 => {}
            Err(CommitError::Conflict { .. }) => {
                return Err(ApiError::already_exists(resource.group_resource(), &name));
            }
            Err(error) => return Err(commit_error(error)),
        }
    }
}

/// What a transaction rests on: that a key is as it was at `revision`.
fn unchanged(key: Key, revision: u64) -> StoreOp {
    StoreOp::Check { key, expect: Expect::At(Revision(revision)) }
}

/// Nothing new is created of a kind whose definition is going, or has gone since the request came: the definition must
/// still be the one that is served when the object is committed.
fn definition_accepts(call: &Call<'_>) -> Result<Option<StoreOp>, ApiError> {
    if call.resource.custom.is_none() {
        return Ok(None);
    }
    let kind = &call.resource.kind;
    let table = call.core.resources.table();
    let now = table.find(&kind.group, &kind.version, &kind.plural).and_then(|resource| resource.custom.as_ref());
    let custom = now.ok_or_else(ApiError::no_such_resource)?;
    if !custom.terminating {
        let definitions = call.core.caches.resource(crd::RESOURCE);
        return Ok(Some(unchanged(definitions.key("", &custom.definition).into(), custom.revision)));
    }
    let mut error = ApiError::method_not_allowed(call.resource.group_resource(), "create");
    error.message = "create not allowed while custom resource definition is terminating".to_owned();
    Err(error)
}

/// A definition is served as it now is by the time its writer is answered; a configuration of admission holds for
/// whatever is written after, and who answers for a group for whatever is asked.
pub async fn take_up(call: &Call<'_>) {
    if call.resource.custom.is_some() {
        return;
    }
    match &*call.resource.kind.group {
        "apiextensions.k8s.io" => crd::serve_now(call.core).await,
        // A server that is closing admits nothing any more, and passes nothing on.
        "admissionregistration.k8s.io" | "apiregistration.k8s.io" => drop(call.core.caches.consistent().await),
        _ => {}
    }
}

/// An object takes at most this many bytes in the store, which is what etcd takes in one request: patches would
/// otherwise grow it past what a body may have, and past what anybody can list.
const MAX_OBJECT: usize = 3 << 19;

/// The form in the store.
async fn encoded(call: &Call<'_>, object: Object) -> Result<Stored, ApiError> {
    within_limit(codec::encode(&conversion::to_storage(call.core, &call.resource, object).await?))
}

fn within_limit(value: Stored) -> Result<Stored, ApiError> {
    if value.bytes.len() <= MAX_OBJECT {
        return Ok(value);
    }
    let mut error = ApiError::too_large(MAX_OBJECT);
    error.message = format!(
        "Request entity too large: the object would take {} bytes to store, limit is {MAX_OBJECT}",
        value.bytes.len()
    );
    Err(error)
}

/// What became of an update.
pub enum Outcome {
    /// The object as it is now (or would be).
    Stored(Bytes),
    /// The update removed the last reason to keep a deleted object.
    Removed(Bytes),
}

impl Outcome {
    /// The object's bytes.
    pub fn bytes(self) -> Bytes {
        match self {
            Outcome::Stored(bytes) | Outcome::Removed(bytes) => bytes,
        }
    }
}

/// An object as the cache has it, decoded and in the served version.
pub struct Current {
    /// The cache's item.
    pub item: std::sync::Arc<Item>,
    /// The object.
    pub object: Object,
}

/// The object now, consistently.
pub async fn current(call: &Call<'_>, name: &str) -> Result<Option<Current>, ApiError> {
    call.core.caches.consistent().await?;
    let Some(item) = call.resource.cache.get(call.namespace(), name) else { return Ok(None) };
    let object = conversion::to_served(call.core, &call.resource, &item).await?;
    Ok(Some(Current { item, object }))
}

/// Changes an object: reads it, lets `change` make the new state, completes and commits that, and starts
/// over when somebody else was faster. A resource version in the new state that is not the current one is
/// a conflict, so only writers who gave none are ever retried.
pub async fn modify<F>(
    call: &Call<'_>,
    op: Op,
    name: &str,
    options: &WriteOptions,
    ownership: Ownership,
    mut change: F,
) -> Result<Outcome, ApiError>
where
    F: FnMut(&Object) -> Result<(Object, FieldErrors), ApiError>,
{
    let resource = &call.resource;
    let group_resource = resource.group_resource();
    for _ in 0..ATTEMPTS {
        let Some(Current { item, object: old }) = current(call, name).await? else { return Err(call.not_found(name)) };
        let (mut new, missing) = change(&old)?;
        meta::place(resource, &mut new, call.namespace(), Some(name))?;
        let version = new.resource_version();
        if !version.is_empty() && version != "0" && version != old.resource_version() {
            return Err(ApiError::stale(group_resource, name));
        }
        if !new.uid().is_empty() && new.uid() != old.uid() {
            let why =
                format!("Precondition failed: UID in precondition: {}, UID in object meta: {}", new.uid(), old.uid());
            return Err(ApiError::conflict(group_resource, name, &why));
        }
        let now = meta::time(call.core.now());
        keep_managed_fields(&mut new, &old);
        let Completed { claims, written } = complete(call, op, options, &mut new, Some(&old), missing).await?;
        if ownership == Ownership::Update {
            own_written(call, options, op, (&mut new, Some(&old)), written, &now);
        }
        // What says nothing new and yet is stored in another version than it would be now is written: so clients move
        // what is stored from one version to the next.
        if meta::same(&new, &old) && resource.is_in_storage_version(&item.bytes) && !stale(call, &item).await? {
            return Ok(Outcome::Stored(conversion::served(call.core, resource, &item.bytes).await?));
        }
        let remove = op != Op::Create && finished(&new);
        if options.dry_run {
            let bytes = codec::plain(&new);
            return Ok(if remove { Outcome::Removed(bytes) } else { Outcome::Stored(bytes) });
        }
        let claimed = match remove {
            true => released(call, &old),
            false => claims.writes(&around(call, &now), &new),
        };
        let charge = if remove { None } else { admission::quota::charge(call, op, &new, Some(&old)).await? };
        let mut txn = replace(call, &item, new, remove).await?;
        txn.ops.extend(charge.iter().flat_map(|charge| charge.writes()));
        txn.ops.extend(claimed);
        match call.core.log.commit(txn).await {
            Ok(committed) => {
                take_up(call).await;
                return Ok(match committed.entries.into_iter().next() {
                    Some(entry) => Outcome::Stored(conversion::served(call.core, resource, &entry.bytes).await?),
                    None => Outcome::Removed(conversion::served(call.core, resource, &item.bytes).await?),
                });
            }
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(commit_error(error)),
        }
    }
    Err(ApiError::stale(group_resource, name))
}

/// Whether what is stored has to be written again although it says the same: it is encrypted with a key that is on its way
/// out, or not at all (Kubernetes' way to rotate keys is to write everything once).
async fn stale(call: &Call<'_>, item: &Item) -> Result<bool, ApiError> {
    match &call.core.encrypted {
        Some(log) => log.is_stale(&item.key).await.map_err(ApiError::internal),
        None => Ok(false),
    }
}

/// Changes fields that only a subresource may change (a pod's node, a namespace's finalizers): the new
/// state is made from the stored one by this server itself, so the kind's rules for users do not run. What came from the
/// user the caller has held to its schema already, and metadata is held to what is asked of everybody's.
///
/// `part` is all that `change` looks at and changes besides `metadata`: a pod is bound without a look at its containers.
pub async fn assign<F>(
    call: &Call<'_>,
    name: &str,
    part: &[&[&str]],
    options: &WriteOptions,
    mut change: F,
) -> Result<Outcome, ApiError>
where
    F: FnMut(&Object) -> Result<(Object, FieldErrors), ApiError>,
{
    let resource = &call.resource;
    let always: [&[&str]; 3] = [&["apiVersion"], &["kind"], &["metadata"]];
    let part = Part::at(part.iter().chain(&always).map(|path| path.to_vec()));
    // What is stored in another form has other fields there, and a dry run answers with the whole object.
    let mut in_part = resource.stored_as_served() && !options.dry_run;
    for _ in 0..ATTEMPTS {
        call.core.caches.consistent().await?;
        let Some(item) = resource.cache.get(call.namespace(), name) else { return Err(call.not_found(name)) };
        let read = if in_part { part.read(&item.bytes).ok() } else { None };
        in_part = read.is_some();
        let old = read.unwrap_or_else(|| resource.to_served(item.object()));
        let (mut new, _) = change(&old)?;
        if new.resource_version() != old.resource_version() {
            return Err(ApiError::stale(resource.group_resource(), name));
        }
        let mut errors = FieldErrors::new();
        // The name is the stored one.
        kinds::meta::validate(Op::Update, &new, Some(&old), |_| Vec::new(), &mut errors);
        if !errors.is_empty() {
            return Err(ApiError::invalid(resource.group_kind(), name, errors));
        }
        let now = meta::time(call.core.now());
        own(call, options, Op::Update, &mut new, Some(&old), &now);
        let remove = finished(&new);
        if options.dry_run {
            return Ok(Outcome::Stored(codec::plain(&new)));
        }
        let txn = match in_part {
            false => replace(call, &item, new, remove).await?,
            true => match codec::encode_part(&part, &item.bytes, new) {
                Some(value) if !remove => {
                    Txn::put(item.key.clone(), within_limit(value)?, Expect::At(Revision(item.revision)))
                }
                // Written by somebody else, in an order we do not write in, or about to go and shown once more: then whole.
                _ => {
                    in_part = false;
                    continue;
                }
            },
        };
        match call.core.log.commit(txn).await {
            Ok(committed) => {
                return Ok(match committed.entries.into_iter().next() {
                    Some(entry) => Outcome::Stored(conversion::served(call.core, resource, &entry.bytes).await?),
                    None => Outcome::Removed(conversion::served(call.core, resource, &item.bytes).await?),
                });
            }
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(commit_error(error)),
        }
    }
    Err(ApiError::stale(resource.group_resource(), name))
}

/// What commits the new state of an object; `remove`: as its last.
async fn replace(call: &Call<'_>, item: &Item, new: Object, remove: bool) -> Result<Txn, ApiError> {
    let (key, expect) = (item.key.clone(), Expect::At(Revision(item.revision)));
    if remove {
        // However large it has become, it may go.
        let last = codec::encode(&call.resource.kind.to_storage(new));
        return Ok(Txn::delete(key, expect, Some(last)));
    }
    Ok(Txn::put(key, encoded(call, new).await?, expect))
}

/// A writer who sends no `managedFields` keeps them; one who sends an empty list resets them.
fn keep_managed_fields(new: &mut Object, old: &Object) {
    let kept = old.metadata().and_then(|metadata| metadata.get("managedFields")).cloned();
    if let (false, Some(kept)) = (new.metadata().is_some_and(|metadata| metadata.contains_key("managedFields")), kept) {
        new.metadata_mut().insert("managedFields".into(), kept);
    }
}

/// Whether a deleted object has nothing left to wait for.
pub fn finished(object: &Object) -> bool {
    let grace = object
        .metadata()
        .and_then(|metadata| metadata.get("deletionGracePeriodSeconds"))
        .and_then(Value::as_i64)
        .unwrap_or(0);
    object.deletion_timestamp().is_some() && grace == 0 && !pending(object)
}

/// Whether finalizers hold the object. Namespaces have a second list of them in their spec.
pub fn pending(object: &Object) -> bool {
    object.finalizers().next().is_some()
        || (object.kind() == "Namespace"
            && object.api_version() == "v1"
            && !object.get_list(&["spec", "finalizers"]).is_empty())
}

/// Removes an object for good.
pub async fn remove(call: &Call<'_>, item: &Item, last: Object) -> Result<(), CommitError> {
    let released = released(call, &last);
    let value = codec::encode(&call.resource.kind.to_storage(last));
    let op = StoreOp::Delete { key: item.key.clone(), expect: Expect::At(Revision(item.revision)), last: Some(value) };
    call.core.log.commit(Txn { ops: [op].into_iter().chain(released).collect() }).await?;
    Ok(())
}

/// What goes with an object: what was allocated to it.
fn released(call: &Call<'_>, object: &Object) -> Vec<StoreOp> {
    let wanted = call.resource.kind.strategy.allocate(Op::Delete, object, Some(object));
    // Letting go can neither fail nor change the object.
    let claims = call.core.allocators.fulfil(wanted, &mut object.clone(), &around(call, "")).unwrap_or_default();
    claims.writes(&around(call, ""), object)
}

/// A failed commit as clients see it.
pub fn commit_error(error: CommitError) -> ApiError {
    match error {
        CommitError::Full(_) => ApiError::new(507, "InsufficientStorage", error.to_string()),
        CommitError::TooLarge(_) => {
            let mut too_large = ApiError::too_large(MAX_OBJECT);
            too_large.message = format!("Request entity too large: {error}");
            too_large
        }
        CommitError::Closed => ApiError::unavailable("the server is shutting down"),
        CommitError::Unavailable(_) => ApiError::unavailable(error.to_string()),
        CommitError::Uncertain(_) => ApiError::timeout(error.to_string(), 1),
        other => ApiError::internal(other),
    }
}
