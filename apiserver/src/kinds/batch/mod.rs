//! Owns the strategies of Jobs and CronJobs. Never runs one.

mod cronjob;
mod policy;
mod spec;
mod status;

pub(super) use cronjob::CRON_JOB;

use proa_apimachinery::Object;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::names;
use serde_json::{Map, Value};

use super::at::{At, map_at, map_in, maps_at, or_set, spec_mut};
use super::{Op, Rules, pod, template};

/// The labels by which a Job finds its pods, with and without the prefix they have had since 1.27.
const UID_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
const NAME_LABELS: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

pub(super) const JOB: Rules = Rules {
    default: |object| {
        if object.get(&["metadata", "labels"]).and_then(Value::as_object).is_none_or(Map::is_empty)
            && let Some(labels) = object.get(&["spec", "template", "metadata", "labels"]).cloned()
        {
            object.set(&["metadata", "labels"], labels);
        }
        job_defaults(spec_mut(object));
    },
    prepare: job_prepare,
    validate: |op, new, old, errors| {
        let spec = At::of(new, "spec");
        if op == Op::Create {
            generated(new, &spec, errors);
            hostnames(new, &spec, errors);
        }
        spec::validate(&spec, errors);
        let (selector, template) = (spec.child("selector"), spec.child("template"));
        if selector.present() {
            pod::label_selector(&selector, errors);
            let labels = template.child("metadata").child("labels");
            if template.present() && !pod::selects(&selector, &labels) {
                labels.invalid(errors, "`selector` does not match template `labels`");
            }
        } else {
            selector.missing(errors, "");
        }
        if let Some(old) = old {
            spec::unchanged(new, old, errors);
        }
    },
    validate_status: status::validate,
    unsupported: template::unsupported,
    warnings: |job| {
        let mut warnings = template::warnings(job);
        if !names::is_dns1123_label(job.name()).is_empty() {
            warnings.push("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended".to_owned());
        }
        warnings.extend(spec::warnings(&At::of(job, "spec")));
        warnings
    },
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
    if let Some(policy) = map_at(spec, "podFailurePolicy") {
        for rule in maps_at(policy, "rules") {
            for pattern in maps_at(rule, "onPodConditions") {
                or_set(pattern, "status", "True");
            }
        }
    }
}

/// Jobs select their pods by their own UID, unless the user manages that.
fn job_prepare(op: Op, new: &mut Object, _: Option<&Object>) {
    if op != Op::Create || new.get_bool(&["spec", "manualSelector"]) == Some(true) || new.uid().is_empty() {
        return;
    }
    let (uid, name) = (new.uid().to_owned(), new.name().to_owned());
    let spec = spec_mut(new);
    let labels = map_in(map_in(map_in(spec, "template"), "metadata"), "labels");
    for (keys, value) in [(UID_LABELS, &uid), (NAME_LABELS, &name)] {
        for key in keys {
            or_set(labels, key, value.as_str());
        }
    }
    let selector = map_in(map_in(spec, "selector"), "matchLabels");
    or_set(selector, UID_LABELS[0], uid);
}

/// A selector that is not managed by the user is the one the server makes: nobody else's pods are counted.
fn generated(new: &Object, spec: &At<'_>, errors: &mut FieldErrors) {
    let selector = spec.child("selector");
    if spec.child("manualSelector").bool() || !selector.present() {
        return;
    }
    let labels = spec.child("template").child("metadata").child("labels");
    let expected = [(UID_LABELS, new.uid()), (NAME_LABELS, new.name())];
    let mut made = Map::new();
    for (keys, value) in expected {
        for key in keys {
            made.insert(key.to_owned(), value.into());
            let held = labels.value.and_then(|labels| labels.get(key)).and_then(Value::as_str);
            let detail = format!("must be '{value}'");
            match held {
                Some(held) if held == value => {}
                Some(_) => errors.push(FieldError::invalid(
                    &labels.path.key(key),
                    labels.value.cloned().unwrap_or_default(),
                    detail,
                )),
                None => errors.push(FieldError::required(&labels.path.key(key), detail)),
            }
        }
    }
    let made = Value::Object(made);
    if !pod::selects(&selector, &At::new(Some(&made), labels.path.clone())) {
        selector.invalid(errors, "`selector` not auto-generated");
    }
}

/// Pods of an Indexed Job are called after it and their index.
fn hostnames(new: &Object, spec: &At<'_>, errors: &mut FieldErrors) {
    let last = spec.child("completions").int().filter(|n| *n > 0 && spec::is_indexed(spec));
    if let Some(completions) = last {
        let longest = format!("{}-{}", new.name(), completions - 1);
        if !names::is_dns1123_label(&longest).is_empty() {
            let detail = format!("will not able to create pod with invalid DNS label: {longest}");
            errors.push(FieldError::invalid(&Path::of("metadata.name"), new.name(), detail));
        }
    }
}
