//! Owns the strategy of CronJobs.

use proa_apimachinery::cron::{Schedule, time_zone};
use proa_apimachinery::field::{FieldError, FieldErrors, Path};

use super::super::{Op, Rules, pod, template};
use super::At;
use super::spec;
use super::{map_at, or_set, spec_mut};

/// Jobs are called after the CronJob and their time, which takes eleven characters of a label's 63.
const NAME_LIMIT: usize = 52;

pub(in super::super) const CRON_JOB: Rules = Rules {
    default: |object| {
        let spec = spec_mut(object);
        or_set(spec, "concurrencyPolicy", "Allow");
        or_set(spec, "suspend", false);
        or_set(spec, "successfulJobsHistoryLimit", 3);
        or_set(spec, "failedJobsHistoryLimit", 1);
        if let Some(job) = map_at(spec, "jobTemplate").and_then(|t| map_at(t, "spec")) {
            template::defaults_in(job);
        }
    },
    validate: |op, new, old, errors| {
        let spec = At::of(new, "spec");
        if op == Op::Create && new.name().len() > NAME_LIMIT {
            let detail = format!("must be no more than {NAME_LIMIT} characters");
            errors.push(FieldError::invalid(&Path::of("metadata.name"), new.name(), detail));
        }
        schedule(&spec.child("schedule"), errors);
        for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            spec.child(field).non_negative(errors);
        }
        let zone = spec.child("timeZone");
        if old.is_none_or(|old| At::of(old, "spec").child("timeZone").value != zone.value) {
            named_zone(&zone, errors);
        }
        spec.child("concurrencyPolicy").one_of(errors, &["Allow", "Forbid", "Replace"]);
        let job = spec.child("jobTemplate").child("spec");
        spec::validate(&job, errors);
        if job.child("selector").present() {
            job.child("selector").invalid(errors, "`selector` will be auto-generated");
        }
        if job.child("manualSelector").bool() {
            job.child("manualSelector").not_supported(errors, &["nil", "false"]);
        }
    },
    unsupported: |object| {
        let template = At::of(object, "spec").child("jobTemplate").child("spec").child("template");
        proa_apimachinery::unsupported::refused(&template.child("spec"))
    },
    warnings: |object| {
        let job = At::of(object, "spec").child("jobTemplate").child("spec");
        let mut warnings = pod::spec_warnings(&job.child("template").child("spec"));
        warnings.extend(spec::warnings(&job));
        warnings
    },
    ..Rules::WITH_STATUS
};

fn schedule(at: &At<'_>, errors: &mut FieldErrors) {
    if !at.required(errors) {
        return;
    }
    if at.str().contains("TZ") {
        at.invalid(errors, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
    } else if let Err(why) = Schedule::parse(at.str()) {
        at.invalid(errors, why);
    }
}

fn named_zone(at: &At<'_>, errors: &mut FieldErrors) {
    let name = at.str();
    if !at.present() {
    } else if name.is_empty() {
        at.invalid(errors, "timeZone must be nil or non-empty string");
    } else if name.eq_ignore_ascii_case("Local") {
        at.invalid(errors, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
    } else if time_zone(name).is_none() {
        at.invalid(errors, format!("unknown time zone {name}"));
    }
}
