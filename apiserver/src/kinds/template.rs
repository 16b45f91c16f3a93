//! Owns pod templates inside workloads: their defaults, validation and what is refused. Never knows
//! which workload it is in.

use proa_apimachinery::Object;
use proa_apimachinery::field::{FieldError, FieldErrors};
use serde_json::{Map, Value};

use super::at::{At, map_at};
use super::{Rules, meta, pod};

pub(super) const POD_TEMPLATE: Rules = Rules {
    default: |object| {
        if let Some(template) = map_at(&mut object.0, "template") {
            defaults(template);
        }
    },
    validate: |_, new, _, errors| content(&At::of(new, "template"), &["Always", "Never", "OnFailure"], errors),
    ..Rules::COUNTED
};

/// Defaults of the template in `spec.template`.
pub(super) fn defaults_in(spec: &mut Map<String, Value>) {
    if let Some(template) = map_at(spec, "template") {
        defaults(template);
    }
}

/// Defaults of a template.
pub(super) fn defaults(template: &mut Map<String, Value>) {
    // Written by tools that print empty times; nothing of it is kept.
    if let Some(metadata) = map_at(template, "metadata") {
        metadata.retain(|_, value| !value.is_null());
    }
    if let Some(spec) = map_at(template, "spec") {
        pod::spec_defaults(spec);
    }
}

/// Metadata and spec of a template.
pub(super) fn content(template: &At<'_>, restart: &[&str], errors: &mut FieldErrors) {
    content_with(template, &[], restart, errors);
}

/// The same, where pods get volumes from claims that are made with them.
fn content_with(template: &At<'_>, claimed: &[&str], restart: &[&str], errors: &mut FieldErrors) {
    let metadata = template.child("metadata");
    meta::labels(metadata.child("labels").value, &metadata.child("labels").path, errors);
    meta::annotations(metadata.child("annotations").value, &metadata.child("annotations").path, errors);
    let spec = template.child("spec");
    pod::validate_spec(&spec, claimed, errors);
    let policy = spec.child("restartPolicy");
    if matches!(policy.str(), "Always" | "OnFailure" | "Never") && !restart.contains(&policy.str()) {
        policy.not_supported(errors, restart);
    }
    if !spec.child("ephemeralContainers").is_empty() {
        spec.child("ephemeralContainers").forbidden(errors, "ephemeral containers not allowed in pod template");
    }
}

/// `spec.selector` and `spec.template` of a workload that keeps pods alive, which must agree.
pub(super) fn selected(new: &Object, workload: &str, errors: &mut FieldErrors) {
    let spec = At::of(new, "spec");
    let (selector, template) = (spec.child("selector"), spec.child("template"));
    if !selector.present() {
        selector.missing(errors, "");
    } else {
        pod::label_selector(&selector, errors);
        let empty = selector.child("matchLabels").is_empty() && selector.child("matchExpressions").is_empty();
        if empty {
            selector.invalid(errors, format!("empty selector is invalid for {workload}"));
        }
    }
    if !template.present() {
        template.missing(errors, "");
        return;
    }
    let labels = template.child("metadata").child("labels");
    if selector.present() && !pod::selects(&selector, &labels) {
        let shown = labels.value.cloned().unwrap_or_else(|| Value::Object(Map::new()));
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(&labels.path, shown, detail));
    }
    let claims = spec.child("volumeClaimTemplates").items();
    let claimed: Vec<&str> = claims.map(|claim| claim.child("metadata").child("name").str()).collect();
    content_with(&template, &claimed, &["Always"], errors);
    let deadline = template.child("spec").child("activeDeadlineSeconds");
    if deadline.present() {
        deadline.forbidden(errors, format!("activeDeadlineSeconds in {workload} is not Supported"));
    }
}

/// What is refused in `spec.template`.
pub(super) fn unsupported(object: &Object) -> FieldErrors {
    proa_apimachinery::unsupported::refused(&At::of(object, "spec").child("template").child("spec"))
}

/// Warnings about `spec.template`.
pub(super) fn warnings(object: &Object) -> Vec<String> {
    pod::spec_warnings(&At::of(object, "spec").child("template").child("spec"))
}
