//! `/scale`: the number of replicas of any kind that has one, as an `autoscaling/v1` Scale.
//!
//! A Scale is never stored. What is written to it is written to the object's own field, and owned there.

use http::StatusCode;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::managed_fields::{self, Manager, Operation};
use proa_apimachinery::object::Object;
use proa_apimachinery::patch;
use proa_apimachinery::selector::LabelSelector;
use proa_apimachinery::status::{ApiError, GroupResource};
use serde_json::{Value, json};

use crate::http::{Response, answer};
use crate::kinds::{Op, ScalePaths};
use crate::registry::options::{self, WriteOptions};
use crate::registry::patch::refused;
use crate::registry::write::{self, Ownership};
use crate::registry::{Call, codec, fields, meta};

const SCALE: (&str, &str, &str) = ("autoscaling", "v1", "Scale");

/// What a Scale may be patched with; it has no list to merge by keys.
const PATCH_TYPES: &[&str] = &["application/json-patch+json", "application/merge-patch+json", options::APPLY];

/// GET.
pub(super) async fn get(call: &Call<'_>) -> Result<Response, ApiError> {
    let paths = paths(call)?;
    let current = write::current(call, call.name()).await?.ok_or_else(|| call.not_found(call.name()))?;
    Ok(answer(StatusCode::OK, &scale_of(paths, &current.object)))
}

/// PUT and PATCH.
pub(super) async fn set(call: &Call<'_>) -> Result<Response, ApiError> {
    let paths = paths(call)?.clone();
    let options = WriteOptions::read(call.request)?;
    let media = codec::media_type(call.request);
    let patching = call.request.info.verb == "patch";
    let apply = patching && media == options::APPLY;
    let decoded = match (patching, apply) {
        (_, true) => codec::decode_yaml(&call.request.body)?,
        (true, _) => codec::decode_json(&call.request.body)?,
        (false, _) => codec::decode(call.request)?,
    };
    let whole = |value: Value| scale(call, value, decoded.duplicates.clone(), &options);
    let outcome = if apply {
        let wanted = whole(decoded.value.clone())?;
        let config = config(call, &paths, &wanted)?;
        let api_version = call.resource.api_version();
        let manager = Manager {
            name: &options.manager,
            operation: Operation::Apply,
            api_version: &api_version,
            subresource: &call.request.info.subresource,
        };
        let now = meta::time(call.core.now());
        let change = |old: &Object| {
            precondition(call, &wanted, old)?;
            let schema = &call.resource.kind.schema;
            let new = managed_fields::apply(schema, Some(old), &config, manager, options.force, &now)
                .map_err(|error| refused(&error))?;
            Ok((new, FieldErrors::new()))
        };
        write::modify(call, Op::Update, call.name(), &options, Ownership::Applied, change).await?
    } else {
        let change = |old: &Object| {
            let wanted = whole(match patching {
                true => patched(&media, scale_of(&paths, old), &decoded.value)?,
                false => decoded.value.clone(),
            })?;
            precondition(call, &wanted, old)?;
            let mut new = old.clone();
            if !wanted.resource_version().is_empty() {
                new.metadata_mut().insert("resourceVersion".into(), wanted.resource_version().into());
            }
            new.set(&steps(&paths.spec_replicas), wanted.get_i64(&["spec", "replicas"]).unwrap_or(0));
            Ok((new, FieldErrors::new()))
        };
        write::modify(call, Op::Update, call.name(), &options, Ownership::Update, change).await?
    };
    let object: Object = serde_json::from_slice(&outcome.bytes()).map_err(ApiError::internal)?;
    Ok(answer(StatusCode::OK, &scale_of(&paths, &object)))
}

fn paths<'a>(call: &'a Call<'_>) -> Result<&'a ScalePaths, ApiError> {
    call.resource.kind.scale().ok_or_else(ApiError::no_such_resource)
}

/// The fields on the way to a path of a scale subresource.
pub(crate) fn steps(path: &str) -> Vec<&str> {
    path.trim_start_matches('.').split('.').collect()
}

/// A Scale as it was sent or as a patch left it, checked.
fn scale(call: &Call<'_>, value: Value, duplicates: Vec<String>, options: &WriteOptions) -> Result<Object, ApiError> {
    let mut scale =
        Object::from_value(value).map_err(|_| ApiError::bad_request("the body of the request is not an object"))?;
    fields::check_body(call, SCALE, &mut scale, duplicates, options.validation)?;
    meta::place(&call.resource, &mut scale, call.namespace(), Some(call.name()))?;
    let mut errors = FieldErrors::new();
    // Every client that knows what a Scale is sends one, be it empty for zero replicas. A body without is
    // something else, and must not stop everything.
    if scale.get(&["spec"]).is_none() {
        errors.push(FieldError::required(&Path::of("spec"), ""));
    }
    let replicas = scale.get_i64(&["spec", "replicas"]).unwrap_or(0);
    if replicas < 0 {
        let path = Path::of("spec.replicas");
        errors.push(FieldError::invalid(&path, replicas, "must be greater than or equal to 0"));
    }
    match errors.is_empty() {
        true => Ok(scale),
        false => Err(ApiError::invalid(GroupResource::new(SCALE.0, SCALE.2), call.name(), errors)),
    }
}

fn precondition(call: &Call<'_>, scale: &Object, old: &Object) -> Result<(), ApiError> {
    if scale.uid().is_empty() || scale.uid() == old.uid() {
        return Ok(());
    }
    let why = format!("Precondition failed: UID in precondition: {}, UID in object meta: {}", scale.uid(), old.uid());
    Err(ApiError::conflict(call.resource.group_resource(), call.name(), &why))
}

/// What an applied Scale says about the object itself: whoever applies it owns the object's field.
fn config(call: &Call<'_>, paths: &ScalePaths, scale: &Object) -> Result<Object, ApiError> {
    let Some(replicas) = scale.get(&["spec", "replicas"]) else {
        let missing = FieldError::required(&Path::of("spec.replicas"), "");
        return Err(ApiError::invalid(GroupResource::new(SCALE.0, SCALE.2), call.name(), vec![missing]));
    };
    let mut config = Object::default();
    config.0.insert("apiVersion".into(), call.resource.api_version().into());
    config.0.insert("kind".into(), call.resource.kind.kind.as_ref().into());
    for field in ["name", "namespace", "resourceVersion"] {
        if let Some(value) = scale.metadata().and_then(|metadata| metadata.get(field)) {
            config.metadata_mut().insert(field.into(), value.clone());
        }
    }
    config.set(&steps(&paths.spec_replicas), replicas.clone());
    Ok(config)
}

fn patched(media: &str, mut scale: Value, patch: &Value) -> Result<Value, ApiError> {
    match media {
        "application/json-patch+json" => {
            patch::json(&scale, patch).map_err(|error| ApiError::bad_request(error.to_string()))
        }
        "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
            patch::merge(&mut scale, patch);
            Ok(scale)
        }
        _ => Err(ApiError::unsupported_media_type(PATCH_TYPES)),
    }
}

/// The `autoscaling/v1` Scale of an object.
pub(crate) fn scale_of(paths: &ScalePaths, object: &Object) -> Value {
    let replicas = |path: &str| object.get_i64(&steps(path)).unwrap_or(0);
    let selector =
        paths.label_selector.as_ref().and_then(|path| object.get(&steps(path))).map(selector_text).unwrap_or_default();
    let mut metadata = json!({"name": object.name(), "uid": object.uid(), "resourceVersion": object.resource_version(), "creationTimestamp": object.creation_timestamp()});
    if !object.namespace().is_empty() {
        metadata["namespace"] = object.namespace().into();
    }
    let mut spec = json!({});
    let wanted = replicas(&paths.spec_replicas);
    if wanted != 0 {
        spec["replicas"] = wanted.into();
    }
    let mut status = json!({"replicas": replicas(&paths.status_replicas)});
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// A selector in its text form, from whichever form the kind keeps it in.
fn selector_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(map) if map.contains_key("matchLabels") || map.contains_key("matchExpressions") => {
            LabelSelector::from_value(value).map(|selector| selector.to_string()).unwrap_or_default()
        }
        Value::Object(map) => {
            let mut pairs: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
            pairs.sort();
            pairs.join(",")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_the_selector_in_text_whatever_its_form() {
        assert_eq!(selector_text(&json!("a=b")), "a=b");
        assert_eq!(selector_text(&json!({"matchLabels": {"a": "b"}})), "a=b");
        assert_eq!(selector_text(&json!({"b": "1", "a": "2"})), "a=2,b=1");
    }

    #[test]
    fn a_scale_reads_and_names_the_kinds_own_paths() {
        let paths = ScalePaths {
            spec_replicas: ".spec.n".into(),
            status_replicas: ".status.n".into(),
            label_selector: Some(".status.s".into()),
        };
        let object =
            Object::from_value(json!({"metadata": {"name": "x"}, "spec": {"n": 3}, "status": {"n": 2, "s": "a=b"}}))
                .unwrap();
        let scale = scale_of(&paths, &object);
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "a=b"}));
    }
}
