//! StorageClasses and VolumeAttributesClasses: what a class is made of never changes
//! (`pkg/apis/storage/validation`).

use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::{Object, names};

use super::super::at::or_set;
use super::{At, Rules, driver_name, meta};

/// How many parameters a class may have, and how large they may be together, in bytes.
const PARAMETERS: usize = 512;
const PARAMETERS_SIZE: usize = 256 << 10;

pub(in super::super) const STORAGE_CLASS: Rules = Rules {
    default: |object| {
        or_set(&mut object.0, "reclaimPolicy", "Delete");
        or_set(&mut object.0, "volumeBindingMode", "Immediate");
    },
    validate: |_, new, old, errors| {
        let provisioner = At::of(new, "provisioner");
        if provisioner.required(errors) {
            for detail in names::is_qualified_name(&provisioner.str().to_lowercase()) {
                provisioner.invalid(errors, detail);
            }
        }
        parameters(&At::of(new, "parameters"), errors);
        At::of(new, "reclaimPolicy").one_of(errors, &["Delete", "Retain"]);
        At::of(new, "volumeBindingMode").one_of(errors, &["Immediate", "WaitForFirstConsumer"]);
        topologies(&At::of(new, "allowedTopologies"), errors);
        if let Some(old) = old {
            forbidden(new, old, &["parameters", "provisioner", "reclaimPolicy"], errors);
            let field = "volumeBindingMode";
            meta::immutable(new.0.get(field), old.0.get(field), &Path::of(field), errors);
        }
    },
    ..Rules::GENERIC
};

pub(in super::super) const VOLUME_ATTRIBUTES_CLASS: Rules = Rules {
    validate: |_, new, old, errors| {
        driver_name(&At::of(new, "driverName"), errors);
        let given = At::of(new, "parameters");
        if given.is_empty() {
            given.missing(errors, "must contain at least one key/value pair");
        }
        parameters(&given, errors);
        if let Some(old) = old {
            forbidden(new, old, &["driverName", "parameters"], errors);
        }
    },
    ..Rules::GENERIC
};

fn forbidden(new: &Object, old: &Object, fields: &[&str], errors: &mut FieldErrors) {
    for field in fields {
        if new.0.get(*field) != old.0.get(*field) {
            At::of(new, field).forbidden(errors, format!("updates to {field} are forbidden."));
        }
    }
}

fn parameters(parameters: &At<'_>, errors: &mut FieldErrors) {
    if parameters.len() > PARAMETERS {
        errors.push(FieldError::too_long(&parameters.path, PARAMETERS));
        return;
    }
    let mut size = 0;
    for (key, value) in parameters.entries() {
        if key.is_empty() {
            errors.push(FieldError::invalid(&parameters.path, key, "field can not be empty."));
        }
        size += key.len() + value.len();
    }
    if size > PARAMETERS_SIZE {
        errors.push(FieldError::too_long(&parameters.path, PARAMETERS_SIZE));
    }
}

fn topologies(terms: &At<'_>, errors: &mut FieldErrors) {
    for term in terms.items() {
        let mut keys = Vec::new();
        for requirement in term.child("matchLabelExpressions").items() {
            let (key, values) = (requirement.child("key"), requirement.child("values"));
            key.require(errors, names::is_qualified_name);
            if keys.contains(&key.str()) {
                key.duplicate(errors);
            }
            keys.push(key.str());
            values.required(errors);
            let mut seen = Vec::new();
            for value in values.items() {
                if seen.contains(&value.str()) {
                    value.duplicate(errors);
                }
                seen.push(value.str());
            }
        }
    }
}
