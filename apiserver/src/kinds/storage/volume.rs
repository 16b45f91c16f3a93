//! PersistentVolumes: one source that never changes, a size, and who may reach it (`ValidatePersistentVolume`).

use proa_apimachinery::field::{FieldErrors, Path};
use proa_apimachinery::quantity::Quantity;
use proa_apimachinery::{Object, names};
use serde_json::Value;

use super::super::at::{map_at, or_set, spec_mut};
use super::super::pod;
use super::{At, BETA_CLASS, Op, Rules, driver_name, meta, modes, pending};

/// The fields of a volume's spec that are no source.
const COMMON: [&str; 9] = [
    "capacity",
    "accessModes",
    "claimRef",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "mountOptions",
    "volumeMode",
    "nodeAffinity",
    "volumeAttributesClassName",
];

pub(in super::super) const PERSISTENT_VOLUME: Rules = Rules {
    status: true,
    default: |object| {
        let spec = spec_mut(object);
        or_set(spec, "persistentVolumeReclaimPolicy", "Retain");
        or_set(spec, "volumeMode", "Filesystem");
        if let Some(list) = map_at(spec, "capacity") {
            pod::canonical_quantities(list);
        }
        if let Some(path) = map_at(spec, "hostPath") {
            path.entry("type").or_insert_with(|| "".into());
        }
    },
    prepare: pending,
    validate: |op, new, old, errors| {
        validate(new, errors);
        if let (Op::Update, Some(old)) = (op, old) {
            update(new, old, errors);
        }
    },
    unsupported: |volume| {
        let mut errors = FieldErrors::new();
        let policy = At::of(volume, "spec").child("persistentVolumeReclaimPolicy");
        if policy.str() == "Recycle" {
            policy.forbidden(&mut errors, "the Recycle policy, deprecated in Kubernetes, is not supported by Proa");
        }
        errors
    },
    ..Rules::GENERIC
};

fn sources<'a>(spec: &At<'a>) -> Vec<(&'a String, &'a Value)> {
    let fields = spec.map().into_iter().flatten();
    fields.filter(|(field, value)| !COMMON.contains(&field.as_str()) && !value.is_null()).collect()
}

fn validate(new: &Object, errors: &mut FieldErrors) {
    let spec = At::of(new, "spec");
    modes(&spec, errors);
    let capacity = spec.child("capacity");
    if capacity.is_empty() {
        capacity.missing(errors, "");
    } else if capacity.child("storage").value.is_none() || capacity.len() > 1 {
        capacity.not_supported(errors, &["storage"]);
    }
    pod::quantities(&capacity, errors);
    let storage = capacity.child("storage");
    if storage.value.map(Quantity::from_value).is_some_and(|size| size.is_ok_and(|size| size.sign() <= 0)) {
        let at = At { path: capacity.path.key("storage"), ..storage };
        at.invalid(errors, "must be greater than zero");
    }
    spec.child("persistentVolumeReclaimPolicy").one_of(errors, &["Delete", "Recycle", "Retain"]);
    spec.child("storageClassName").check(errors, names::is_dns1123_subdomain);
    node_affinity(&spec, errors);
    match sources(&spec).as_slice() {
        [] => spec.missing(errors, "must specify a volume type"),
        [(kind, _)] => source(kind, &spec.child(kind), &spec, errors),
        [_, (extra, _), ..] => spec.child(extra).forbidden(errors, "may not specify more than 1 volume type"),
    }
    if spec.child("volumeAttributesClassName").value.is_some() {
        let class = spec.child("volumeAttributesClassName");
        if class.required(errors) {
            class.check(errors, names::is_dns1123_subdomain);
        }
    }
}

fn source(kind: &str, at: &At<'_>, spec: &At<'_>, errors: &mut FieldErrors) {
    match kind {
        "hostPath" | "local" => {
            let path = at.child("path");
            if path.required(errors) && path.str().split('/').any(|part| part == "..") {
                path.invalid(errors, "must not contain '..'");
            }
            if kind == "local" && !spec.child("nodeAffinity").present() {
                spec.child("nodeAffinity").missing(errors, "Local volume requires node affinity");
            }
            let recycled = spec.child("persistentVolumeReclaimPolicy");
            if kind == "hostPath" && path.str() == "/" && recycled.str() == "Recycle" {
                recycled.forbidden(errors, "may not be 'recycle' for a hostPath mount of '/'");
            }
        }
        "nfs" => {
            at.child("server").required(errors);
            let path = at.child("path");
            if path.required(errors) && !path.str().starts_with('/') {
                path.invalid(errors, "must be an absolute path");
            }
        }
        "csi" => {
            driver_name(&at.child("driver"), errors);
            at.child("volumeHandle").required(errors);
        }
        _ => {}
    }
}

fn node_affinity(spec: &At<'_>, errors: &mut FieldErrors) {
    let affinity = spec.child("nodeAffinity");
    if !affinity.present() {
        return;
    }
    let required = affinity.child("required");
    if !required.present() {
        required.missing(errors, "must specify required node constraints");
        return;
    }
    let terms = required.child("nodeSelectorTerms");
    if terms.is_empty() {
        terms.missing(errors, "must have at least one node selector term");
    }
    for term in terms.items() {
        for requirement in term.child("matchExpressions").items() {
            requirement.child("key").require(errors, names::is_qualified_name);
            let (operator, values) = (requirement.child("operator"), requirement.child("values"));
            match operator.str() {
                "In" | "NotIn" if values.is_empty() => {
                    values.missing(errors, "must be specified when `operator` is 'In' or 'NotIn'");
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    values.forbidden(errors, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
                }
                "Gt" | "Lt" if values.len() != 1 => {
                    values.missing(errors, "must be specified single value when `operator` is 'Lt' or 'Gt'");
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
                _ => operator.invalid(errors, "not a valid selector operator"),
            }
        }
    }
}

fn update(new: &Object, old: &Object, errors: &mut FieldErrors) {
    let (spec, before) = (At::of(new, "spec"), At::of(old, "spec"));
    if sources(&spec) != sources(&before) {
        let at = At { path: Path::of("spec.persistentvolumesource"), ..spec.clone() };
        at.forbidden(errors, "spec.persistentvolumesource is immutable after creation");
    }
    let immutable = |field: &str, errors: &mut FieldErrors| {
        meta::immutable(spec.child(field).value, before.child(field).value, &spec.path.child(field), errors);
    };
    immutable("volumeMode", errors);
    if before.child("nodeAffinity").present() {
        immutable("nodeAffinity", errors);
    }
    let class = |o: &Object| o.annotation(BETA_CLASS).map(str::to_owned);
    if class(old).is_some() && class(new) != class(old) {
        let at = Path::of("metadata.annotations").child(BETA_CLASS);
        errors.push(proa_apimachinery::FieldError::invalid(&at, class(new).unwrap_or_default(), "field is immutable"));
    }
    let (attributes, had) = (spec.child("volumeAttributesClassName"), before.child("volumeAttributesClassName"));
    if had.present() && !attributes.present() {
        attributes.forbidden(errors, "update from non-nil value to nil is forbidden");
    }
}
