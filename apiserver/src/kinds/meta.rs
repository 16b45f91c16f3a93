//! Owns what is common to the metadata of all kinds: which fields the server alone writes, and what
//! users' fields must look like (`k8s.io/apimachinery/pkg/api/validation`). Never looks below `metadata`.

use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::{Object, names};
use serde_json::{Map, Value};

use super::Op;

/// All annotations of an object together, keys and values, in bytes.
pub const ANNOTATIONS_MAX: usize = 256 * 1024;

const SYSTEM: [&str; 6] =
    ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"];

/// A new object brings none of what the server writes.
pub fn reset_system_fields(object: &mut Object) {
    let metadata = object.metadata_mut();
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
        metadata.shift_remove(field);
    }
    drop_empty(metadata);
}

/// An update keeps what the server wrote; `uid` and `creationTimestamp` given by the user are left to
/// validation, absent ones are filled in.
pub fn keep_system_fields(new: &mut Object, old: &Object) {
    let empty = Map::new();
    let before = old.metadata().unwrap_or(&empty);
    let metadata = new.metadata_mut();
    for field in SYSTEM {
        let given = metadata.get(field).is_some_and(|v| !v.is_null());
        if matches!(field, "uid" | "creationTimestamp") && given {
            continue;
        }
        match before.get(field) {
            Some(value) => {
                metadata.insert(field.to_owned(), value.clone());
            }
            None => {
                metadata.shift_remove(field);
            }
        }
    }
    for field in ["name", "namespace"] {
        if let (false, Some(value)) = (metadata.contains_key(field), before.get(field)) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    // Once an object is going, no one may put a new hold on it; validation says so.
    drop_empty(metadata);
}

/// Status writers touch neither owners nor finalizers.
pub fn keep_ownership(new: &mut Object, old: &Object) {
    let empty = Map::new();
    let before = old.metadata().unwrap_or(&empty);
    let metadata = new.metadata_mut();
    for field in ["ownerReferences", "finalizers"] {
        match before.get(field) {
            Some(value) => {
                metadata.insert(field.to_owned(), value.clone());
            }
            None => {
                metadata.shift_remove(field);
            }
        }
    }
}

/// `null` and empty collections are the same as nothing (they are not stored on Kubernetes either).
fn drop_empty(metadata: &mut Map<String, Value>) {
    metadata.retain(|_, value| match value {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    });
}

/// Validates `metadata`.
pub fn validate(op: Op, new: &Object, old: Option<&Object>, name: fn(&str) -> Vec<String>, errors: &mut FieldErrors) {
    let at = Path::of("metadata");
    if op == Op::Delete {
        return;
    }
    let empty = Map::new();
    let metadata = new.metadata().unwrap_or(&empty);
    // The stored name was checked when it was stored.
    if op == Op::Create {
        validate_name(new, &at, name, errors);
    }
    labels(metadata.get("labels"), &at.child("labels"), errors);
    annotations(metadata.get("annotations"), &at.child("annotations"), errors);
    finalizers(new, old, &at.child("finalizers"), errors);
    owners(new, &at.child("ownerReferences"), errors);
    if let (Op::Update | Op::UpdateStatus, Some(old)) = (op, old) {
        for (field, before, after) in [
            ("name", old.name(), new.name()),
            ("namespace", old.namespace(), new.namespace()),
            ("uid", old.uid(), new.uid()),
            ("creationTimestamp", old.creation_timestamp(), new.creation_timestamp()),
        ] {
            if before != after {
                errors.push(FieldError::invalid(&at.child(field), after, "field is immutable"));
            }
        }
    }
}

fn validate_name(object: &Object, at: &Path, name: fn(&str) -> Vec<String>, errors: &mut FieldErrors) {
    let prefix = object.generate_name();
    if !prefix.is_empty() {
        // What is appended is a fine ending, so the prefix may end in a dash or a dot.
        let masked = format!("{}a", prefix.strip_suffix(['-', '.']).unwrap_or(prefix));
        for detail in name(&masked) {
            errors.push(FieldError::invalid(&at.child("generateName"), prefix, detail));
        }
    }
    if object.name().is_empty() {
        if prefix.is_empty() {
            errors.push(FieldError::required(&at.child("name"), "name or generateName is required"));
        }
        return;
    }
    for detail in name(object.name()) {
        errors.push(FieldError::invalid(&at.child("name"), object.name(), detail));
    }
}

/// A map of labels anywhere in an object.
pub fn labels(labels: Option<&Value>, at: &Path, errors: &mut FieldErrors) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        for detail in names::is_qualified_name(key) {
            errors.push(FieldError::invalid(at, key.as_str(), detail));
        }
        let value = value.as_str().unwrap_or_default();
        for detail in names::is_label_value(value) {
            errors.push(FieldError::invalid(&at.key(key), value, detail));
        }
    }
}

/// A map of annotations anywhere in an object.
pub fn annotations(annotations: Option<&Value>, at: &Path, errors: &mut FieldErrors) {
    let mut total = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        // Keys may have capitals in their prefix, unlike labels'.
        for detail in names::is_qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(at, key.as_str(), detail));
        }
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(at, ANNOTATIONS_MAX));
    }
}

fn finalizers(new: &Object, old: Option<&Object>, at: &Path, errors: &mut FieldErrors) {
    for (i, finalizer) in new.finalizers().enumerate() {
        for detail in names::is_qualified_name(finalizer) {
            errors.push(FieldError::invalid(&at.index(i), finalizer, detail));
        }
    }
    let has = |name: &str| new.finalizers().any(|f| f == name);
    if has("orphan") && has("foregroundDeletion") {
        let detail = "finalizer orphan and finalizer foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(at, new.finalizers().collect::<Vec<_>>(), detail));
    }
    if let Some(old) = old.filter(|old| old.deletion_timestamp().is_some()) {
        let added: Vec<&str> = new.finalizers().filter(|f| !old.finalizers().any(|o| o == *f)).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            errors.push(FieldError::forbidden(at, detail));
        }
    }
}

/// Groups whose kinds take any qualified name as a finalizer, as custom resources do (`finalizers.fluxcd.io`).
const FREE_FINALIZERS: [&str; 3] = ["admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io"];

/// The stricter rule of Kubernetes' own kinds (`core/validation.ValidateFinalizerName`): a finalizer without a
/// domain is one of the standard ones.
pub fn standard_finalizers(new: &Object, errors: &mut FieldErrors) {
    let group = new.api_version().split_once('/').map_or("", |(group, _)| group);
    if FREE_FINALIZERS.contains(&group) {
        return;
    }
    let at = Path::of("metadata.finalizers");
    for (i, finalizer) in new.finalizers().enumerate() {
        if !finalizer.contains('/') && !matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes") {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(&at.index(i), finalizer, detail));
        }
    }
}

fn owners(new: &Object, at: &Path, errors: &mut FieldErrors) {
    let mut controller: Option<String> = None;
    for (i, owner) in new.owner_references().iter().enumerate() {
        let here = at.index(i);
        for (field, value, what) in [
            ("apiVersion", &owner.api_version, "version must not be empty"),
            ("kind", &owner.kind, "must not be empty"),
            ("name", &owner.name, "must not be empty"),
            ("uid", &owner.uid, "must not be empty"),
        ] {
            if value.is_empty() {
                errors.push(FieldError::invalid(&here.child(field), "", what));
            }
        }
        if owner.api_version == "v1" && owner.kind == "Event" {
            errors.push(FieldError::invalid(
                &here,
                "v1, Kind=Event",
                "v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner.controller {
            let this = format!("{}/{}", owner.kind, owner.name);
            match &controller {
                Some(other) => {
                    let detail = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {other} and {this}"
                    );
                    errors.push(FieldError::invalid(at, Value::Null, detail));
                }
                None => controller = Some(this),
            }
        }
    }
}

/// `apimachinery`'s immutable check: an error at `at` when the two differ.
pub fn immutable(new: Option<&Value>, old: Option<&Value>, at: &Path, errors: &mut FieldErrors) {
    if new != old {
        errors.push(FieldError::invalid(at, new.cloned().unwrap_or(Value::Null), "field is immutable"));
    }
}
