//! Owns what a Job's policies for failed pods and for success may say.

use std::collections::BTreeSet;

use proa_apimachinery::field::{FieldError, FieldErrors};
use proa_apimachinery::indexes::Indexes;
use proa_apimachinery::names;
use serde_json::Value;

use super::At;

const MOST_RULES: usize = 20;
const MOST_EXIT_CODES: usize = 255;
const MOST_CONDITIONS: usize = 20;
/// The longest list of indexes a rule of success may have, in bytes.
const INDEXES_LIMIT: usize = 64 * 1024;

fn too_many(at: &At<'_>, limit: usize, errors: &mut FieldErrors) {
    if at.len() > limit {
        errors.push(FieldError::too_many(&at.path, at.len(), limit));
    }
}

/// Says so when it is absent, or none of these.
fn one_of(at: &At<'_>, supported: &[&str], errors: &mut FieldErrors) {
    let quoted: Vec<String> = supported.iter().map(|word| format!("{word:?}")).collect();
    match at.str() {
        "" => at.missing(errors, format!("valid values: [{}]", quoted.join(" "))),
        _ => at.one_of(errors, supported),
    }
}

/// `podFailurePolicy` (KEP-3329).
pub(super) fn failure(spec: &At<'_>, errors: &mut FieldErrors) {
    let rules = spec.child("podFailurePolicy").child("rules");
    too_many(&rules, MOST_RULES, errors);
    let pod = spec.child("template").child("spec");
    let containers = ["containers", "initContainers"].map(|field| pod.child(field));
    let names: BTreeSet<&str> =
        containers.iter().flat_map(At::items).map(|container| container.child("name").str()).collect();
    for rule in rules.items() {
        let action = rule.child("action");
        one_of(&action, &["Count", "FailIndex", "FailJob", "Ignore"], errors);
        if action.str() == "FailIndex" && !spec.child("backoffLimitPerIndex").present() {
            action.invalid(errors, "requires the backoffLimitPerIndex to be set");
        }
        let (codes, conditions) = (rule.child("onExitCodes"), rule.child("onPodConditions"));
        if codes.present() {
            exit_codes(&codes, &names, errors);
        }
        too_many(&conditions, MOST_CONDITIONS, errors);
        for pattern in conditions.items() {
            let type_ = pattern.child("type");
            for detail in names::is_qualified_name(type_.str()) {
                type_.invalid(errors, detail);
            }
            one_of(&pattern.child("status"), &["False", "True", "Unknown"], errors);
        }
        let wrong = |detail: &str| FieldError { value: None, ..FieldError::invalid(&rule.path, Value::Null, detail) };
        match (codes.present(), !conditions.is_empty()) {
            (true, true) => {
                errors.push(wrong("specifying both OnExitCodes and OnPodConditions is not supported"));
            }
            (false, false) => {
                errors.push(wrong("specifying one of OnExitCodes and OnPodConditions is required"));
            }
            _ => {}
        }
    }
}

fn exit_codes(codes: &At<'_>, containers: &BTreeSet<&str>, errors: &mut FieldErrors) {
    let operator = codes.child("operator");
    one_of(&operator, &["In", "NotIn"], errors);
    let container = codes.child("containerName");
    if container.present() && !containers.contains(container.str()) {
        container.invalid(errors, "must be one of the container or initContainer names in the pod template");
    }
    let values = codes.child("values");
    if values.is_empty() {
        values.invalid(errors, "at least one value is required");
    }
    too_many(&values, MOST_EXIT_CODES, errors);
    let (mut seen, mut last, mut ordered) = (BTreeSet::new(), None, true);
    for value in values.items() {
        let code = value.int();
        if operator.str() == "In" && code == Some(0) {
            value.invalid(errors, "must not be 0 for the In operator");
        }
        if !seen.insert(code) {
            value.duplicate(errors);
        }
        ordered &= last <= code;
        last = code;
    }
    if !ordered {
        values.invalid(errors, "must be ordered");
    }
}

/// `successPolicy` (KEP-3998), of an Indexed Job.
pub(super) fn success(spec: &At<'_>, errors: &mut FieldErrors) {
    let rules = spec.child("successPolicy").child("rules");
    if rules.is_empty() {
        rules.missing(errors, "at least one rules must be specified when the successPolicy is specified");
    }
    too_many(&rules, MOST_RULES, errors);
    let completions = spec.child("completions").int().unwrap_or(0);
    let limit = u32::try_from(completions).unwrap_or(0);
    for rule in rules.items() {
        let (indexes, count) = (rule.child("succeededIndexes"), rule.child("succeededCount"));
        if !indexes.present() && !count.present() {
            let detail = "at least one of succeededCount or succeededIndexes must be specified";
            errors.push(FieldError::required(&rule.path, detail));
        }
        let mut named = 0;
        if indexes.present() {
            if indexes.len() > INDEXES_LIMIT {
                errors.push(FieldError::too_long(&indexes.path, INDEXES_LIMIT));
            }
            match Indexes::parse(indexes.str(), Some(limit)) {
                Ok(indexes) => named = i64::from(indexes.len()),
                Err(why) => indexes.invalid(errors, format!("error parsing succeededIndexes: {why}")),
            }
        }
        count.non_negative(errors);
        if count.int().is_some_and(|count| count > completions) {
            let detail = format!("must be less than or equal to {completions} (the number of specified completions)");
            count.invalid(errors, detail);
        }
        if indexes.present() && count.int().is_some_and(|count| count > named) {
            let what = "the number of indexes in the specified succeededIndexes field";
            count.invalid(errors, format!("must be less than or equal to {named} ({what})"));
        }
    }
}
