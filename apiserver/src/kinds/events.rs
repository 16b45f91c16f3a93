//! Owns Events, one stored kind in two versions: `v1` as stored, `events.k8s.io/v1` by conversion.
//! Never makes an event.

use proa_apimachinery::Object;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::names;

use super::at::At;
use super::{Convert, Op, Rules};

pub(super) const CORE_EVENT: Rules = Rules {
    validate: |_, new, _, errors| {
        namespace(new, "involvedObject", errors);
    },
    ..Rules::GENERIC
};

pub(super) const NEW_EVENT: Rules = Rules { validate: new_event, ..Rules::GENERIC };

/// An event lives where the object lives it is about; events about cluster objects live in `default`.
fn namespace(event: &Object, field: &str, errors: &mut FieldErrors) {
    let about = At::of(event, field).child("namespace");
    if about.str().is_empty() {
        if !matches!(event.namespace(), "" | "default" | "kube-system") {
            errors.push(FieldError::invalid(&about.path, "", "does not match event.namespace"));
        }
    } else if about.str() != event.namespace() {
        about.invalid(errors, "does not match event.namespace");
    }
}

fn new_event(op: Op, new: &Object, old: Option<&Object>, errors: &mut FieldErrors) {
    namespace(new, "regarding", errors);
    // Events made through the old version have less; they may still be updated through this one.
    if op != Op::Create {
        if let Some(old) = old {
            for field in ["regarding", "related", "reason", "action", "type", "reportingController", "eventTime"] {
                if new.0.get(field) != old.0.get(field) {
                    super::meta::immutable(new.0.get(field), old.0.get(field), &Path::of(field), errors);
                }
            }
        }
        return;
    }
    At::of(new, "eventTime").required(errors);
    At::of(new, "reportingController").require(errors, names::is_qualified_name);
    let instance = At::of(new, "reportingInstance");
    if instance.required(errors) && instance.len() > 128 {
        instance.invalid(errors, "can have at most 128 characters");
    }
    for (field, limit) in [("action", 128), ("reason", 128)] {
        let at = At::of(new, field);
        if at.required(errors) && at.len() > limit {
            at.invalid(errors, format!("can have at most {limit} characters"));
        }
    }
    if At::of(new, "note").len() > 1024 {
        At::of(new, "note").invalid(errors, "can have at most 1024 characters");
    }
    let type_ = At::of(new, "type");
    if !matches!(type_.str(), "Normal" | "Warning") {
        type_.invalid(errors, "has invalid value: must be Normal or Warning");
    }
}

/// Field of `events.k8s.io/v1` and of `v1`, where the names differ.
const RENAMED: [(&str, &str); 7] = [
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

pub(super) const CONVERT: Convert = Convert::Functions {
    to_storage: |object| rename(object, "v1", |name| RENAMED.iter().find(|(new, _)| *new == name).map(|(_, old)| *old)),
    from_storage: |object| {
        rename(object, "events.k8s.io/v1", |name| RENAMED.iter().find(|(_, old)| *old == name).map(|(new, _)| *new))
    },
};

fn rename(object: Object, api_version: &str, other: impl Fn(&str) -> Option<&'static str>) -> Object {
    let mut map: serde_json::Map<String, serde_json::Value> =
        object.0.into_iter().map(|(name, value)| (other(&name).map_or(name, str::to_owned), value)).collect();
    map.insert("apiVersion".to_owned(), api_version.into());
    Object(map)
}
