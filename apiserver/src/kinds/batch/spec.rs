//! Owns what a Job's spec may say, and what of it may change. Never knows a selector: a CronJob's template has none.

use proa_apimachinery::Object;
use proa_apimachinery::field::{FieldErrors, Path};
use proa_apimachinery::names;
use serde_json::Value;

use super::super::{meta, template};
use super::At;
use super::policy;

/// Above it the indexes that completed are too long to be written down.
const MOST_PARALLEL: i64 = 100_000;
/// Above so many completions …
const MANY: i64 = 100_000;
/// … fewer pods may run and fewer indexes may fail at a time.
const FEWER: i64 = 10_000;
const MANAGED_BY_LIMIT: usize = 63;

/// Whether the completion mode is `Indexed`.
pub(super) fn is_indexed(spec: &At<'_>) -> bool {
    spec.child("completionMode").str() == "Indexed"
}

/// What is wrong with a Job's spec, its selector aside.
pub(super) fn validate(spec: &At<'_>, errors: &mut FieldErrors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        spec.child(field).non_negative(errors);
    }
    if spec.child("maxFailedIndexes").present() && !spec.child("backoffLimitPerIndex").present() {
        spec.child("backoffLimitPerIndex").missing(errors, "when maxFailedIndexes is specified");
    }
    let manager = spec.child("managedBy");
    if manager.present() {
        domain_prefixed(&manager, errors);
        if manager.len() > MANAGED_BY_LIMIT {
            errors.push(proa_apimachinery::FieldError::too_long(&manager.path, MANAGED_BY_LIMIT));
        }
    }
    spec.child("completionMode").one_of(errors, &["NonIndexed", "Indexed"]);
    if is_indexed(spec) {
        indexed(spec, errors);
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
            if spec.child(field).present() {
                spec.child(field).invalid(errors, "requires indexed completion mode");
            }
        }
    }
    if spec.child("podFailurePolicy").present() {
        policy::failure(spec, errors);
    }
    if spec.child("successPolicy").present() && is_indexed(spec) {
        policy::success(spec, errors);
    }
    let replacement = spec.child("podReplacementPolicy");
    let replacements: &[&str] =
        if spec.child("podFailurePolicy").present() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    replacement.one_of(errors, replacements);
    pods(spec, errors);
}

fn indexed(spec: &At<'_>, errors: &mut FieldErrors) {
    let (completions, parallelism) = (spec.child("completions"), spec.child("parallelism"));
    let failed = spec.child("maxFailedIndexes");
    if !completions.present() {
        completions.missing(errors, "when completion mode is Indexed");
    }
    let above = |at: &At<'_>, limit: i64| at.int().is_some_and(|n| n > limit);
    if above(&parallelism, MOST_PARALLEL) {
        let detail = format!("must be less than or equal to {MOST_PARALLEL} when completion mode is Indexed");
        parallelism.invalid(errors, detail);
    }
    if completions.int().is_some_and(|completions| above(&failed, completions)) {
        failed.invalid(errors, "must be less than or equal to completions");
    }
    if above(&failed, MOST_PARALLEL) {
        failed.invalid(errors, format!("must be less than or equal to {MOST_PARALLEL}"));
    }
    if above(&completions, MANY) && spec.child("backoffLimitPerIndex").present() {
        if !failed.present() {
            failed.missing(errors, format!("must be specified when completions is above {MANY}"));
        }
        let detail = format!(
            "must be less than or equal to {FEWER} when completions are above {MANY} and used with backoff limit per index"
        );
        for field in [&parallelism, &failed] {
            if above(field, FEWER) {
                field.invalid(errors, detail.clone());
            }
        }
    }
}

/// The template, which must not run for ever.
fn pods(spec: &At<'_>, errors: &mut FieldErrors) {
    let template = spec.child("template");
    if !template.present() {
        template.missing(errors, "");
        return;
    }
    template::content(&template, &["Always", "OnFailure", "Never"], errors);
    let restart = template.child("spec").child("restartPolicy");
    match restart.str() {
        "" | "Always" => restart.missing(errors, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.child("podFailurePolicy").present() => {
            restart.invalid(errors, "only \"Never\" is supported when podFailurePolicy is specified");
        }
        _ => {}
    }
}

/// `example.com/controller`: a domain, a slash, a path.
fn domain_prefixed(at: &At<'_>, errors: &mut FieldErrors) {
    if !at.required(errors) {
        return;
    }
    let path = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@%/".contains(&b))
    };
    match at.str().split_once('/') {
        None => at.invalid(errors, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
        Some(("", _) | (_, "")) => at.invalid(errors, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
        Some((domain, rest)) => {
            for detail in names::is_dns1123_subdomain(domain) {
                at.invalid(errors, detail);
            }
            if !path(rest) {
                at.invalid(errors, "Invalid path (regex used for validation is '^[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+$')");
            }
        }
    }
}

/// What of a Job's spec may not change.
pub(super) fn unchanged(new: &Object, old: &Object, errors: &mut FieldErrors) {
    let (is, was) = (At::of(new, "spec"), At::of(old, "spec"));
    completions(&is, &was, errors);
    for field in
        ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        let (is, was) = (is.child(field), was.child(field));
        meta::immutable(is.value, was.value, &is.path, errors);
    }
    let (is, was) = (is.child("template"), was.child("template"));
    let mut allowed = was.value.cloned().unwrap_or_default();
    if let (true, Some(wanted)) = (may_be_redirected(old), is.value) {
        redirect(&mut allowed, wanted);
    }
    meta::immutable(is.value, Some(&allowed), &is.path, errors);
}

/// Elastic Indexed Jobs (KEP-3715): completions change together with parallelism.
fn completions(is: &At<'_>, was: &At<'_>, errors: &mut FieldErrors) {
    let (new, old) = (is.child("completions"), was.child("completions"));
    if !is_indexed(is) {
        return meta::immutable(new.value, old.value, &new.path, errors);
    }
    if new.present() && new.value != old.value && new.value != is.child("parallelism").value {
        new.invalid(errors, "can only be modified in tandem with spec.parallelism");
    }
}

/// A suspended Job none of whose pods runs may be sent elsewhere, and given other resources (KEP-2926, KEP-5440).
fn may_be_redirected(old: &Object) -> bool {
    let suspended = old.get_bool(&["spec", "suspend"]) == Some(true);
    let count = |field: &str| old.get_i64(&["status", field]).unwrap_or(0);
    let never_ran = old.get(&["status", "startTime"]).is_none_or(Value::is_null);
    let stopped = super::status::holds(old, "Suspended") && count("active") == 0;
    suspended && (never_ran || stopped)
}

/// Takes over what says where pods run and what they get.
fn redirect(template: &mut Value, wanted: &Value) {
    for path in [
        &["metadata", "annotations"][..],
        &["metadata", "labels"],
        &["spec", "nodeSelector"],
        &["spec", "tolerations"],
        &["spec", "schedulingGates"],
        &["spec", "affinity", "nodeAffinity"],
    ] {
        take(template, wanted, path);
    }
    // An affinity with nothing in it is none.
    if wanted.pointer("/spec/affinity").is_none()
        && template.pointer("/spec/affinity").and_then(Value::as_object).is_some_and(serde_json::Map::is_empty)
        && let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.shift_remove("affinity");
    }
    for field in ["containers", "initContainers"] {
        let path = format!("/spec/{field}");
        let (Some(Value::Array(held)), Some(Value::Array(new))) = (template.pointer_mut(&path), wanted.pointer(&path))
        else {
            continue;
        };
        for (held, new) in held.iter_mut().zip(new).filter(|(held, new)| held["name"] == new["name"]) {
            take(held, new, &["resources"]);
        }
    }
}

/// Sets what is at a path to what another value has there.
fn take(target: &mut Value, from: &Value, path: &[&str]) {
    let Some((last, parents)) = path.split_last() else { return };
    let wanted = path.iter().try_fold(from, |value, field| value.get(field));
    let mut at = target;
    for field in parents {
        let Value::Object(map) = at else { return };
        if wanted.is_none() && !map.contains_key(*field) {
            return;
        }
        at = map.entry((*field).to_owned()).or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
    let Value::Object(map) = at else { return };
    match wanted {
        Some(wanted) => {
            map.insert((*last).to_owned(), wanted.clone());
        }
        None => {
            map.shift_remove(*last);
        }
    }
}

/// What a user should know of a Job that is accepted.
pub(super) fn warnings(spec: &At<'_>) -> Vec<String> {
    let above = |field: &str, limit: i64| spec.child(field).int().is_some_and(|n| n > limit);
    let large = is_indexed(spec) && above("completions", MANY) && above("parallelism", FEWER);
    let path = Path::of("spec.completions");
    let text = format!(
        "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, a Kubernetes control plane might not be able to track completedIndexes when a big number of indexes fail"
    );
    if large { vec![text] } else { Vec::new() }
}
