//! PATCH in its four forms: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge, apply.

use http::StatusCode;
use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::managed_fields::{self, ApplyError, Conflict, Manager, Operation};
use proa_apimachinery::object::Object;
use proa_apimachinery::patch;
use proa_apimachinery::status::{ApiError, StatusCause};
use serde_json::Value;

use super::options::{self, FieldValidation, WriteOptions};
use super::write::{self, Ownership};
use super::{Call, codec, fields, get, meta};
use crate::http::Response;
use crate::kinds::Op;

/// What a patch may be sent as.
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    options::APPLY,
];

/// A JSON patch of more operations than this is an attack (Kubernetes' own limit).
const MAX_OPERATIONS: usize = 10_000;

enum Form {
    Json,
    Merge,
    Strategic,
}

/// PATCH.
pub async fn patch(call: &Call<'_>) -> Result<Response, ApiError> {
    let options = WriteOptions::read(call.request)?;
    let form = match codec::media_type(call.request).as_str() {
        "application/json-patch+json" => Form::Json,
        "application/merge-patch+json" => Form::Merge,
        "application/strategic-merge-patch+json" if call.resource.custom.is_none() => Form::Strategic,
        options::APPLY => return apply(call, options).await,
        _ => return Err(ApiError::unsupported_media_type(PATCH_TYPES)),
    };
    let decoded = codec::decode_json(&call.request.body)?;
    let operations = decoded.value.as_array().map_or(0, Vec::len);
    if operations > MAX_OPERATIONS {
        return Err(ApiError::too_large(MAX_OPERATIONS));
    }
    let name = call.name().to_owned();
    let op = call.update_op();
    let change = |old: &Object| {
        let new = patched(call, &form, old, &decoded.value)?;
        checked(call, new, decoded.duplicates.clone(), options.validation)
    };
    let outcome = write::modify(call, op, &name, &options, Ownership::Update, change).await?;
    get::answer(call, StatusCode::OK, outcome.bytes())
}

fn patched(call: &Call<'_>, form: &Form, old: &Object, patch: &Value) -> Result<Value, ApiError> {
    let failed = |error: &dyn std::fmt::Display| ApiError::bad_request(error.to_string());
    match form {
        Form::Json => patch::json(&old.to_value(), patch).map_err(|error| {
            // Kubernetes answers a patch that does not apply with 422 and this sentence.
            if patch.is_array() { ApiError::new(422, "Invalid", error.to_string()) } else { failed(&error) }
        }),
        Form::Merge => {
            if !patch.is_object() {
                return Err(ApiError::bad_request("a merge patch must be an object"));
            }
            let mut value = old.to_value();
            patch::merge(&mut value, patch);
            Ok(value)
        }
        Form::Strategic => {
            patch::strategic(&call.resource.kind.schema, &old.to_value(), patch).map_err(|error| failed(&error))
        }
    }
}

/// The patched object is checked as if it had been sent whole.
fn checked(
    call: &Call<'_>,
    value: Value,
    duplicates: Vec<String>,
    validation: FieldValidation,
) -> Result<(Object, FieldErrors), ApiError> {
    let mut object = codec::object(&call.resource, value)?;
    let missing = fields::check(call, &mut object, duplicates, validation)?;
    Ok((object, missing))
}

/// Server-side apply (KEP-555): creates the object when there is none.
async fn apply(call: &Call<'_>, options: WriteOptions) -> Result<Response, ApiError> {
    let decoded = codec::decode_yaml(&call.request.body)?;
    let mut config = codec::object(&call.resource, decoded.value)?;
    let name = call.name().to_owned();
    meta::place(&call.resource, &mut config, call.namespace(), Some(&name))?;
    if config.metadata().is_some_and(|metadata| {
        metadata.get("managedFields").and_then(Value::as_array).is_some_and(|fields| !fields.is_empty())
    }) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    if op_is_main(call) && call.resource.has_subresource("status") {
        config.0.shift_remove("status");
    }
    // Missing required fields may be there already, set by somebody else: only the merged object is judged.
    fields::check(call, &mut config, decoded.duplicates, options.validation)?;
    let op = call.update_op();
    let api_version = call.resource.api_version();
    let manager = Manager {
        name: &options.manager,
        operation: Operation::Apply,
        api_version: &api_version,
        subresource: &call.request.info.subresource,
    };
    let now = meta::time(call.core.now());
    let schema = &call.resource.kind.schema;
    for _ in 0..8 {
        call.core.caches.consistent().await?;
        if call.resource.cache.get(call.namespace(), &name).is_none() {
            if op == Op::UpdateStatus {
                return Err(call.not_found(&name));
            }
            if !config.uid().is_empty() {
                let why = format!("Precondition failed: UID in precondition: {}, UID in object meta: ", config.uid());
                return Err(ApiError::conflict(call.resource.group_resource(), &name, &why));
            }
            let merged = managed_fields::apply(schema, None, &config, manager, options.force, &now)
                .map_err(|error| refused(&error))?;
            let (object, missing) = checked(call, merged.into_value(), Vec::new(), FieldValidation::Ignore)?;
            match write::create(call, object, &options, Ownership::Applied, missing).await {
                // Somebody else created it meanwhile: then this is an update.
                Err(error) if error.reason == "AlreadyExists" => continue,
                other => return get::answer(call, StatusCode::CREATED, other?),
            }
        }
        let change = |old: &Object| {
            let merged = managed_fields::apply(schema, Some(old), &config, manager, options.force, &now)
                .map_err(|error| refused(&error))?;
            checked(call, merged.into_value(), Vec::new(), FieldValidation::Ignore)
        };
        match write::modify(call, op, &name, &options, Ownership::Applied, change).await {
            Err(error) if error.code == 404 && op != Op::UpdateStatus => {}
            other => return get::answer(call, StatusCode::OK, other?.bytes()),
        }
    }
    Err(ApiError::stale(call.resource.group_resource(), &name))
}

fn op_is_main(call: &Call<'_>) -> bool {
    call.request.info.subresource.is_empty()
}

/// How a failed apply is answered.
pub fn refused(error: &ApplyError) -> ApiError {
    match error {
        ApplyError::Conflicts(conflicts) => {
            let mut error = ApiError::new(409, "Conflict", conflicts.to_string());
            let cause = |conflict: &Conflict| StatusCause {
                reason: "FieldManagerConflict".into(),
                message: conflict.message(),
                field: conflict.field.clone(),
            };
            error.details.get_or_insert_default().causes = conflicts.0.iter().map(cause).collect();
            error
        }
        other => ApiError::bad_request(other.to_string()),
    }
}
