//! Owns what may change in a stored pod. Never looks at a pod alone: that is `spec`'s.

use proa_apimachinery::Object;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use serde_json::Value;

const WHAT: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Compares a pod's spec with what is stored.
pub(super) fn validate(new: &Object, old: &Object, errors: &mut FieldErrors) {
    let at = Path::of("spec");
    for field in ["containers", "initContainers"] {
        if new.get_list(&["spec", field]).len() != old.get_list(&["spec", field]).len() {
            errors.push(FieldError::forbidden(&at.child(field), "pod updates may not add or remove containers"));
            return;
        }
    }
    deadline(new, old, &at, errors);
    let kept = old
        .get_list(&["spec", "tolerations"])
        .iter()
        .all(|toleration| new.get_list(&["spec", "tolerations"]).contains(toleration));
    if !kept {
        errors.push(FieldError::forbidden(
            &at.child("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    // Put back what may change, then nothing else may differ.
    let mut masked = new.0.get("spec").cloned().unwrap_or(Value::Null);
    let before = old.0.get("spec").cloned().unwrap_or(Value::Null);
    for field in ["containers", "initContainers"] {
        let theirs = old.get_list(&["spec", field]);
        let ours = masked.get_mut(field).and_then(Value::as_array_mut);
        for (mine, theirs) in ours.into_iter().flatten().zip(theirs) {
            // A container may be renamed by nobody: equal names pair equal containers.
            copy(mine, theirs, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        copy(&mut masked, &before, field);
    }
    let gated = !old.get_list(&["spec", "schedulingGates"]).is_empty();
    gates(new, old, &at, errors);
    if gated {
        // A gated pod may still be narrowed to fewer nodes (KEP-3838).
        copy(&mut masked, &before, "nodeSelector");
        if let (Some(mine), Some(theirs)) = (masked.get_mut("affinity"), before.get("affinity")) {
            copy(mine, theirs, "nodeAffinity");
        } else {
            copy(&mut masked, &before, "affinity");
        }
    }
    if masked != before {
        let changed = differences(&masked, &before);
        errors.push(FieldError::forbidden(&at, format!("{WHAT}\nchanged: {}", changed.join(", "))));
    }
}

fn copy(to: &mut Value, from: &Value, field: &str) {
    let Value::Object(map) = to else { return };
    match from.get(field) {
        Some(value) => {
            map.insert(field.to_owned(), value.clone());
        }
        None => {
            map.shift_remove(field);
        }
    }
}

/// The fields of a spec that differ, for the message.
fn differences(new: &Value, old: &Value) -> Vec<String> {
    let (Value::Object(new), Value::Object(old)) = (new, old) else { return Vec::new() };
    let mut fields: Vec<String> =
        new.iter().filter(|(k, v)| old.get(*k) != Some(*v)).map(|(k, _)| format!("spec.{k}")).collect();
    fields.extend(old.keys().filter(|k| !new.contains_key(*k)).map(|k| format!("spec.{k}")));
    fields
}

fn deadline(new: &Object, old: &Object, at: &Path, errors: &mut FieldErrors) {
    let field = ["spec", "activeDeadlineSeconds"];
    let at = at.child("activeDeadlineSeconds");
    match (new.get_i64(&field), old.get_i64(&field)) {
        (Some(new), Some(old)) if new > old => {
            errors.push(FieldError::invalid(&at, new, "must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            errors.push(FieldError::invalid(&at, Value::Null, "must not update from a positive integer to nil value"));
        }
        _ => {}
    }
}

fn gates(new: &Object, old: &Object, at: &Path, errors: &mut FieldErrors) {
    let before = old.get_list(&["spec", "schedulingGates"]);
    let added = new.get_list(&["spec", "schedulingGates"]).iter().any(|gate| !before.contains(gate));
    if added {
        errors.push(FieldError::forbidden(
            &at.child("schedulingGates"),
            "only deletion is allowed, but found new scheduling gates",
        ));
    }
}
