//! Owns the strategies of Jobs and CronJobs. Never runs one.

use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::{Object, names};
use serde_json::{Map, Value, json};

use super::at::{At, map_at, map_in, or_set, spec_mut};
use super::{Op, Rules, meta, pod, template};

pub(super) const JOB: Rules = Rules {
    name: names::is_dns1123_label,
    default: |object| job_defaults(spec_mut(object)),
    prepare: job_prepare,
    validate: |_, new, old, errors| {
        let spec = At::of(new, "spec");
        job_spec(&spec, errors);
        let (selector, template) = (spec.child("selector"), spec.child("template"));
        if selector.present() {
            pod::label_selector(&selector, errors);
            let labels = template.child("metadata").child("labels");
            if !pod::selects(&selector, &labels) {
                labels.invalid(errors, "`selector` does not match template `labels`");
            }
        }
        if let Some(old) = old {
            let suspended = old.get_bool(&["spec", "suspend"]) == Some(true);
            for field in [
                "completions",
                "selector",
                "template",
                "completionMode",
                "podFailurePolicy",
                "backoffLimitPerIndex",
                "managedBy",
            ] {
                let indexed = new.get_str(&["spec", "completionMode"]) == Some("Indexed");
                let may = (field == "template" && suspended)
                    || (field == "completions"
                        && indexed
                        && new.get(&["spec", field]) == new.get(&["spec", "parallelism"]));
                if !may {
                    let path = ["spec", field];
                    meta::immutable(new.get(&path), old.get(&path), &spec.path.child(field), errors);
                }
            }
        }
    },
    unsupported: template::unsupported,
    warnings: template::warnings,
    ..Rules::WITH_STATUS
};

fn job_defaults(spec: &mut Map<String, Value>) {
    template::defaults_in(spec);
    let given = |spec: &Map<String, Value>, field: &str| spec.get(field).is_some_and(|v| !v.is_null());
    if !given(spec, "completions") && !given(spec, "parallelism") {
        spec.insert("completions".to_owned(), 1.into());
        spec.insert("parallelism".to_owned(), 1.into());
    }
    or_set(spec, "parallelism", 1);
    let limit = if given(spec, "backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 };
    or_set(spec, "backoffLimit", limit);
    or_set(spec, "completionMode", "NonIndexed");
    or_set(spec, "suspend", false);
    or_set(spec, "manualSelector", false);
    let replacement = if given(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    or_set(spec, "podReplacementPolicy", replacement);
}

/// Jobs select their pods by their own UID, unless the user manages that.
fn job_prepare(op: Op, new: &mut Object, _: Option<&Object>) {
    if op != Op::Create {
        return;
    }
    new.set(&["status"], json!({}));
    if new.get_bool(&["spec", "manualSelector"]) == Some(true) || new.uid().is_empty() {
        return;
    }
    let (uid, name) = (new.uid().to_owned(), new.name().to_owned());
    let spec = spec_mut(new);
    let labels = map_in(map_in(map_in(spec, "template"), "metadata"), "labels");
    for (key, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        or_set(labels, key, value.as_str());
    }
    let selector = map_in(map_in(spec, "selector"), "matchLabels");
    or_set(selector, "batch.kubernetes.io/controller-uid", uid);
}

fn job_spec(spec: &At<'_>, errors: &mut FieldErrors) {
    for field in [
        "parallelism",
        "completions",
        "backoffLimit",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        spec.child(field).non_negative(errors);
    }
    spec.child("completionMode").one_of(errors, &["Indexed", "NonIndexed"]);
    if spec.child("completionMode").str() == "Indexed" && !spec.child("completions").present() {
        spec.child("completions").missing(errors, "when completion mode is Indexed");
    }
    let template = spec.child("template");
    if !template.present() {
        template.missing(errors, "");
        return;
    }
    template::content(&template, &["OnFailure", "Never"], errors);
}

pub(super) const CRON_JOB: Rules = Rules {
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
    prepare: |op, new, _| {
        if op == Op::Create {
            new.set(&["status"], json!({}));
        }
    },
    validate: |op, new, _, errors| {
        let spec = At::of(new, "spec");
        // Jobs append eleven characters to the name.
        if op == Op::Create && new.name().len() > 52 {
            errors.push(FieldError::invalid(
                &Path::of("metadata.name"),
                new.name(),
                "must be no more than 52 characters",
            ));
        }
        let schedule = spec.child("schedule");
        if schedule.required(errors)
            && let Err(why) = parse_schedule(schedule.str())
        {
            schedule.invalid(errors, why);
        }
        spec.child("concurrencyPolicy").one_of(errors, &["Allow", "Forbid", "Replace"]);
        for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            spec.child(field).non_negative(errors);
        }
        let zone = spec.child("timeZone");
        if zone.present() && (zone.str().is_empty() || zone.str().contains(char::is_whitespace)) {
            zone.invalid(errors, "unknown time zone");
        }
        let job = spec.child("jobTemplate").child("spec");
        job_spec(&job, errors);
        if job.child("manualSelector").bool() {
            job.child("manualSelector").not_supported(errors, &["nil", "false"]);
        }
    },
    unsupported: |object| {
        let template = At::of(object, "spec").child("jobTemplate").child("spec").child("template");
        proa_apimachinery::unsupported::refused(&template.child("spec"))
    },
    ..Rules::WITH_STATUS
};

/// Five fields, or one of the words cron knows.
fn parse_schedule(text: &str) -> Result<(), String> {
    if text.contains("TZ") {
        return Err("cannot use TZ or CRON_TZ in schedule, use timeZone field instead".to_owned());
    }
    if let Some(word) = text.strip_prefix('@') {
        let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        let every = word.strip_prefix("every ").is_some_and(|d| proa_apimachinery::duration::parse_go(d).is_ok());
        return if known.contains(&word) || every { Ok(()) } else { Err(format!("unrecognized descriptor: {text}")) };
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let ranges: [(u32, u32, &[&str]); 5] = [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, &MONTHS), (0, 6, &DAYS)];
    for (field, (low, high, words)) in fields.iter().zip(ranges) {
        for part in field.split(',') {
            let (span, step) = part.split_once('/').map_or((part, None), |(span, step)| (span, Some(step)));
            if step.is_some_and(|s| s.parse::<u32>().map_or(true, |s| s == 0)) {
                return Err(format!("failed to parse step in {part}"));
            }
            if matches!(span, "*" | "?") {
                continue;
            }
            let number = |text: &str| {
                let word = words.iter().position(|w| w.eq_ignore_ascii_case(text)).map(|i| i as u32 + low);
                text.parse::<u32>().ok().or(word).ok_or_else(|| format!("failed to parse int from {text}"))
            };
            let (first, last) = span.split_once('-').map_or((span, span), |(a, b)| (a, b));
            let (first, last) = (number(first)?, number(last)?);
            if first < low || last > high || first > last {
                return Err(format!("value {part} is out of range [{low}, {high}]"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0-6 1,15 jan-mar MON", "@hourly", "@every 1h30m", "0 0 1 1 0"] {
            assert_eq!(parse_schedule(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "*/0 * * * *",
            "a * * * *",
            "@never",
            "5-1 * * * *",
            "TZ=UTC * * * * *",
        ] {
            assert!(parse_schedule(bad).is_err(), "{bad}");
        }
    }
}
