//! Owns what a Job's status may claim (KEP-4368): other controllers may write it too, and everybody believes it.

use std::collections::BTreeSet;

use proa_apimachinery::Object;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::indexes::Indexes;
use serde_json::Value;

use super::At;
use super::spec::is_indexed;

/// Whether the condition of that type is true.
pub(super) fn holds(job: &Object, type_: &str) -> bool {
    job.get_list(&["status", "conditions"]).iter().any(|held| held["type"] == type_ && held["status"] == "True")
}

/// What is wrong with a status in place of another.
pub(super) fn validate(new: &Object, old: &Object, errors: &mut FieldErrors) {
    let status = At::of(new, "status");
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        status.child(field).non_negative(errors);
    }
    uncounted(&status.child("uncountedTerminatedPods"), errors);
    // What was wrong before does not stand in the way of other changes.
    let changed =
        |fields: &[&str]| fields.iter().any(|field| new.get(&["status", field]) != old.get(&["status", field]));
    if changed(&["conditions"]) {
        conditions(new, old, errors);
    }
    if changed(&["conditions", "startTime", "completionTime"]) {
        times(new, old, &status, errors);
    }
    if changed(&["conditions", "active", "terminating", "uncountedTerminatedPods"]) {
        nothing_left(new, &status, errors);
    }
    if changed(&["completedIndexes", "failedIndexes"]) {
        indexes(new, &status, errors);
    }
    let count = |job: &Object, field: &str| job.get_i64(&["status", field]).unwrap_or(0);
    if changed(&["ready", "active"]) && count(new, "ready") > count(new, "active") {
        status.child("ready").invalid(errors, "cannot set more ready pods than active");
    }
    // Elastic Indexed Jobs may lose completions, and with them successes.
    for field in ["failed", "succeeded"] {
        let elastic = field == "succeeded" && is_indexed(&At::of(new, "spec"));
        if !elastic && count(new, field) < count(old, field) {
            status.child(field).invalid(errors, format!("cannot decrease the {field} counter"));
        }
    }
}

fn uncounted(at: &At<'_>, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for uid in ["succeeded", "failed"].iter().flat_map(|field| at.child(field).items().collect::<Vec<_>>()) {
        if uid.str().is_empty() {
            uid.invalid(errors, "must not be empty");
        } else if !seen.insert(uid.str()) {
            uid.duplicate(errors);
        }
    }
}

/// An end is announced before it is there, is not taken back, and is either a success or a failure.
fn conditions(new: &Object, old: &Object, errors: &mut FieldErrors) {
    let mut wrong = |detail: &str| {
        let path = Path::of("status.conditions");
        errors.push(FieldError { value: None, ..FieldError::invalid(&path, Value::Null, detail) });
    };
    let is = |type_| holds(new, type_);
    if is("Complete") && is("Failed") {
        wrong("cannot set Complete=True and Failed=true conditions");
    }
    if is("Complete") && is("FailureTarget") {
        wrong("cannot set Complete=True and FailureTarget=true conditions");
    }
    if is("Failed") && !is("FailureTarget") {
        wrong("cannot set Failed=True condition without the FailureTarget=true condition");
    }
    if is("Complete") && !is("SuccessCriteriaMet") {
        wrong("cannot set Complete=True condition without the SuccessCriteriaMet=true condition");
    }
    if is("SuccessCriteriaMet") && is("Failed") {
        wrong("cannot set SuccessCriteriaMet=True and Failed=true conditions");
    }
    if is("SuccessCriteriaMet") && is("FailureTarget") {
        wrong("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    }
    for type_ in ["Failed", "Complete", "FailureTarget"] {
        if holds(old, type_) && !is(type_) {
            wrong(&format!("cannot disable the terminal {type_}=True condition"));
        }
    }
    if holds(old, "SuccessCriteriaMet") && !is("SuccessCriteriaMet") {
        wrong("cannot disable the SuccessCriteriaMet=True condition");
    }
    if holds(old, "Complete") && !holds(old, "SuccessCriteriaMet") && is("SuccessCriteriaMet") {
        wrong("cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions");
    }
}

fn times(new: &Object, old: &Object, status: &At<'_>, errors: &mut FieldErrors) {
    let (start, completion) = (status.child("startTime"), status.child("completionTime"));
    let complete = holds(new, "Complete");
    if completion.present() && !complete {
        completion.invalid(errors, "cannot set completionTime when there is no Complete=True condition");
    }
    if complete && !completion.present() {
        completion.missing(errors, "completionTime is required for Complete jobs");
    }
    let time = |at: &At<'_>| at.str().parse::<jiff::Timestamp>().ok();
    if let (Some(began), Some(ended)) = (time(&start), time(&completion))
        && ended.as_second() < began.as_second()
    {
        completion.invalid(errors, "completionTime cannot be set before startTime");
    }
    if !start.present() && (complete || holds(new, "Failed")) {
        start.missing(errors, "startTime is required for finished job");
    }
    let was = |field: &str| old.get(&["status", field]).filter(|value| !value.is_null());
    if completion.present() && was("completionTime").is_some_and(|was| Some(was) != completion.value) {
        completion.invalid(errors, "completionTime cannot be mutated");
    }
    // The time of a suspended Job begins anew when it is resumed.
    let suspended = new.get_bool(&["spec", "suspend"]) == Some(true) || holds(old, "Suspended");
    if !suspended && was("startTime").is_some_and(|was| Some(was) != start.value) {
        start.missing(errors, "startTime cannot be removed for unsuspended job");
    }
}

/// What is finished has no pods left to wait for.
fn nothing_left(new: &Object, status: &At<'_>, errors: &mut FieldErrors) {
    if !holds(new, "Complete") && !holds(new, "Failed") {
        return;
    }
    for field in ["active", "terminating"] {
        if status.child(field).int().is_some_and(|count| count > 0) {
            status.child(field).invalid(errors, format!("{field}>0 is invalid for finished job"));
        }
    }
    let uncounted = status.child("uncountedTerminatedPods");
    if !uncounted.child("succeeded").is_empty() || !uncounted.child("failed").is_empty() {
        uncounted.invalid(errors, "uncountedTerminatedPods needs to be empty for finished job");
    }
}

fn indexes(new: &Object, status: &At<'_>, errors: &mut FieldErrors) {
    let spec = At::of(new, "spec");
    let (completed, failed) = (status.child("completedIndexes"), status.child("failedIndexes"));
    if !completed.is_empty() && !is_indexed(&spec) {
        completed.invalid(errors, "cannot set non-empty completedIndexes when non-indexed completion mode");
    }
    if failed.present() && !spec.child("backoffLimitPerIndex").present() {
        failed.invalid(errors, "cannot set non-null failedIndexes when backoffLimitPerIndex is null");
    }
    let Some(limit) = spec.child("completions").int().and_then(|n| u32::try_from(n).ok()) else { return };
    let mut read = |at: &At<'_>, name: &str| match Indexes::parse(at.str(), Some(limit)) {
        Ok(indexes) => indexes,
        Err(why) => {
            at.invalid(errors, format!("error parsing {name}: {why}"));
            Indexes::default()
        }
    };
    let (succeeded, given_up) = (read(&completed, "completedIndexes"), read(&failed, "failedIndexes"));
    if succeeded.common(&given_up) > 0 {
        failed.invalid(errors, "failedIndexes and completedIndexes overlap");
    }
}
