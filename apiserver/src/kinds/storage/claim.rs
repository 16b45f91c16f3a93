//! PersistentVolumeClaims: their defaults, and what of them may change (`ValidatePersistentVolumeClaimUpdate`).

use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::quantity::Quantity;
use proa_apimachinery::{Object, names};
use serde_json::{Map, Value};

use super::super::at::{map_at, or_set, spec_mut};
use super::{At, BETA_CLASS, Op, Rules, meta, modes, pending, pod};

const IMMUTABLE: &str =
    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

/// The class a claim or a volume asks for: `None` leaves it to the default, the empty one wants none.
pub fn class_name(object: &Object) -> Option<&str> {
    object.annotation(BETA_CLASS).or_else(|| object.get_str(&["spec", "storageClassName"]))
}

/// Defaults of a claim's spec, also inside StatefulSets and ephemeral volumes.
pub(in super::super) fn claim_defaults(spec: &mut Map<String, Value>) {
    or_set(spec, "volumeMode", "Filesystem");
    // The older field and the newer one say the same, where the older one can (KEP-1495).
    let local = |source: &Value| source.get("namespace").and_then(Value::as_str).is_none_or(str::is_empty);
    match (spec.get("dataSource").cloned(), spec.get("dataSourceRef").cloned()) {
        (Some(source), None) if source.is_object() => drop(spec.insert("dataSourceRef".to_owned(), source)),
        (None, Some(source)) if source.is_object() && local(&source) => {
            spec.insert("dataSource".to_owned(), source);
        }
        _ => {}
    }
    if let Some(resources) = map_at(spec, "resources") {
        for field in ["requests", "limits"] {
            if let Some(list) = map_at(resources, field) {
                pod::canonical_quantities(list);
            }
        }
    }
}

/// A claim's spec, wherever it stands.
fn spec_of(spec: &At<'_>, errors: &mut FieldErrors) {
    modes(spec, errors);
    spec.child("storageClassName").check(errors, names::is_dns1123_subdomain);
    spec.child("volumeAttributesClassName").check(errors, names::is_dns1123_subdomain);
    pod::label_selector(&spec.child("selector"), errors);
    let requests = spec.child("resources").child("requests");
    let storage = At { path: requests.path.key("storage"), ..requests.child("storage") };
    if storage.value.is_none() {
        storage.missing(errors, "");
    } else if storage.value.map(Quantity::from_value).is_some_and(|size| size.is_ok_and(|size| size.sign() <= 0)) {
        storage.invalid(errors, "must be greater than zero");
    }
    pod::resources(&spec.child("resources"), errors);
    for field in ["dataSource", "dataSourceRef"] {
        let source = spec.child(field);
        if source.present() {
            source.child("kind").required(errors);
            source.child("name").required(errors);
            if source.child("apiGroup").is_empty() && source.child("kind").str() != "PersistentVolumeClaim" {
                source.invalid(errors, "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
            }
        }
    }
}

/// The claim a generic ephemeral volume is made with (KEP-1698).
pub(in super::super) fn template(volume: &At<'_>, errors: &mut FieldErrors) {
    let template = volume.child("volumeClaimTemplate");
    if !template.present() {
        template.missing(errors, "");
        return;
    }
    let metadata = template.child("metadata");
    for (field, _) in metadata.map().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        if !matches!(field.as_str(), "labels" | "annotations" | "creationTimestamp") {
            metadata.child(field).forbidden(errors, "cannot be set");
        }
    }
    meta::labels(metadata.child("labels").value, &metadata.path.child("labels"), errors);
    meta::annotations(metadata.child("annotations").value, &metadata.path.child("annotations"), errors);
    spec_of(&template.child("spec"), errors);
}

pub(in super::super) const PERSISTENT_VOLUME_CLAIM: Rules = Rules {
    status: true,
    default: |object| claim_defaults(spec_mut(object)),
    prepare: pending,
    validate: |op, new, old, errors| {
        let spec = At::of(new, "spec");
        spec_of(&spec, errors);
        if let (Op::Update, Some(old)) = (op, old) {
            update(&spec, new, old, errors);
        }
    },
    ..Rules::GENERIC
};

fn storage(object: &Object, from: &[&str]) -> Option<Quantity> {
    object.get(from).and_then(|size| Quantity::from_value(size).ok())
}

fn update(spec: &At<'_>, new: &Object, old: &Object, errors: &mut FieldErrors) {
    const SIZE: [&str; 4] = ["spec", "resources", "requests", "storage"];
    let unbound = |o: &Object| o.get_str(&["spec", "volumeName"]).is_none_or(str::is_empty);
    let bound = old.get_str(&["status", "phase"]) == Some("Bound");
    // The default class is given to a claim that waits without one (KEP-3333); an annotation may become the field.
    let upgraded = old.get(&["spec", "storageClassName"]).is_none_or(Value::is_null)
        && match (old.annotation(BETA_CLASS), new.get_str(&["spec", "storageClassName"])) {
            (None, given) => given.is_some() && unbound(old),
            (Some(class), given) => given == Some(class),
        };
    let fixed = |o: &Object| {
        let mut spec = o.0.get("spec").cloned().unwrap_or(Value::Null);
        if let Value::Object(map) = &mut spec {
            // Sizes are compared as sizes: `1Gi` is `1024Mi`.
            if bound
                && let Some(requests) = map_at(map, "resources").and_then(|resources| map_at(resources, "requests"))
            {
                requests.shift_remove("storage");
            }
            map.shift_remove("volumeAttributesClassName");
            // Binding fills this in.
            if unbound(old) {
                map.shift_remove("volumeName");
            }
            if upgraded {
                map.shift_remove("storageClassName");
            }
        }
        spec
    };
    if fixed(new) != fixed(old) {
        spec.forbidden(errors, IMMUTABLE);
    }
    let at = spec.child("resources").child("requests").child("storage");
    // What was asked for too much may be taken back, but not below what is there (KEP-1790).
    if let (Some(wanted), Some(before)) = (storage(new, &SIZE), storage(old, &SIZE))
        && wanted < before
        && storage(old, &["status", "capacity", "storage"]).is_none_or(|have| wanted <= have)
    {
        at.forbidden(errors, "field can not be less than status.capacity");
    }
    let attributes = |o: &Object| o.get_str(&["spec", "volumeAttributesClassName"]).unwrap_or_default().to_owned();
    if attributes(new) != attributes(old) {
        let at = spec.child("volumeAttributesClassName");
        if !bound {
            at.forbidden(errors, "update is forbidden when the claim is not bound");
        } else if attributes(new).is_empty() {
            at.forbidden(errors, "update from non-nil value to nil is forbidden");
        }
    }
    let annotation = |o: &Object| o.annotation(BETA_CLASS).map(str::to_owned);
    if annotation(old).is_some() && annotation(new) != annotation(old) {
        let at = proa_apimachinery::field::Path::of("metadata.annotations").child(BETA_CLASS);
        errors.push(proa_apimachinery::FieldError::invalid(
            &at,
            annotation(new).unwrap_or_default(),
            "field is immutable",
        ));
    }
}
