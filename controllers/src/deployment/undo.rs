//! What follows an undo, whoever made it: numbers, settings, kept configuration, and what appliers remember. Pure.

use super::{
    plan::{Action, Planner},
    revisions::{
        annotation_changes, annotations_for, configuration_of, name, note, number, pod_spec, same_template,
        without_hash,
    },
};
use crate::{
    patch::{json, merge_diff},
    rollback::{applied, config, marks},
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use proa_crds::{Deployment, ReplicaSet, annotations};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

impl Planner<'_> {
    /// An undo has arrived (stock kubectl's, ours, an automatic one): the revision gets its new number and, if it must,
    /// its kept configuration; then what the appliers remember follows, and the marks of the replica set leave the
    /// deployment.
    pub(super) fn follow_undo(&mut self) {
        let held = self.deployment.metadata.annotations.as_ref();
        let mut changes: Map<String, Value> = annotations::REPLICA_SET_ONLY
            .iter()
            .filter(|key| held.is_some_and(|held| held.contains_key(**key)))
            .map(|key| ((*key).to_owned(), Value::Null))
            .collect();
        let mut managed = None;
        let named = note(self.deployment, annotations::REVISION_OF);
        // A template that is not (any longer) that replica set's was not brought by the undo.
        let target = self.revisions.new.filter(|new| {
            named == Some(name(new))
                || self.revisions.all.iter().any(|set| {
                    named == Some(name(set))
                        && set.spec.template.as_ref().is_some_and(|t| same_template(t, &self.deployment.spec.template))
                })
        });
        if let Some(new) = target {
            let revision = self.revisions.highest_old() + 1;
            let comes_back = number(new) < revision;
            let mut wanted = annotations_for(self.deployment, new.metadata.annotations.as_ref(), revision);
            let mut unwanted = Map::new();
            // The settings are those of the revision that was current last. It is the new one itself when it never left,
            // and when it has got its number but the deployment was not written yet.
            let before = if comes_back { self.revisions.latest_old() } else { Some(new) };
            if let Some(before) = before.filter(|_| replaced_annotations(self.deployment, new)) {
                for (key, value) in lost_settings(self.deployment, before) {
                    match &value {
                        Value::String(value) => wanted.insert(key.clone(), value.clone()),
                        _ => wanted.remove(&key),
                    };
                    unwanted.insert(key.clone(), Value::Null);
                    changes.insert(key, value);
                }
            }
            unwanted.retain(|key, _| !wanted.contains_key(key));
            let retried = marks::failure_of(&new.metadata).is_some();
            if comes_back
                && !retried
                && config::is_kept(wanted.get(annotations::CONFIG_REVISIONS).map(String::as_str))
                && let Some(secret) = config::pin(&new.metadata, pod_spec(new), &self.seen.live)
            {
                wanted.insert(annotations::CONFIG_REVISION.to_owned(), secret.to_owned());
                // It stays the current one until the configuration changes again, should a policy make a rollout of that.
                let references = pod_spec(new).map(config::references).unwrap_or_default();
                let left = config::digest(&references, &self.seen.live);
                if configuration_of(new) != Some(left.as_str()) {
                    wanted.insert(annotations::CONFIGURATION_LEFT.to_owned(), left);
                }
            }
            let mut set_changes = annotation_changes(new.metadata.annotations.as_ref(), wanted);
            set_changes.extend(unwanted);
            if !set_changes.is_empty() {
                self.annotate_set(name(new), Value::Object(set_changes));
            }
            if let Some(recorded) = note(new, annotations::APPLIED_CONFIGURATION)
                && let Some(current) = note(self.deployment, annotations::LAST_APPLIED)
                && let Some(followed) = applied::follow_client(current, recorded)
            {
                changes.insert(annotations::LAST_APPLIED.to_owned(), Value::String(followed));
            }
            let entries = self.deployment.metadata.managed_fields.as_deref().unwrap_or_default();
            let nothing = BTreeMap::new();
            managed = note(new, annotations::APPLIED_FIELDS)
                .and_then(|record| applied::follow(entries, record, held.unwrap_or(&nothing)));
            let revision = revision.max(number(new)).to_string();
            if note(self.deployment, annotations::REVISION) != Some(&revision) {
                changes.insert(annotations::REVISION.to_owned(), Value::String(revision));
            }
        }
        let mut patch =
            json!({"metadata": {"annotations": changes, "resourceVersion": self.deployment.metadata.resource_version}});
        // An undo of stock kubectl brings the template as the replica set has it.
        let template = &self.deployment.spec.template;
        if let (Some(change), Some(patch)) = (template_diff(template, &without_hash(template)), patch.as_object_mut()) {
            patch.insert("spec".to_owned(), json!({"template": change}));
        }
        if let (Some(managed), Some(meta)) = (managed, patch.get_mut("metadata").and_then(Value::as_object_mut)) {
            meta.insert("managedFields".to_owned(), json(&managed));
        }
        self.act(Action::Patch(patch));
    }
}

/// Whether the undo to that replica set replaced all annotations, as stock kubectl's does: then other marks of the
/// replica set came along. Ours brings none of them and leaves the settings as they are.
fn replaced_annotations(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let marks = || annotations::REPLICA_SET_ONLY.iter().filter(|mark| **mark != annotations::REVISION_OF);
    marks().any(|mark| note(deployment, mark).is_some()) || !marks().any(|mark| note(set, mark).is_some())
}

/// The settings an undo took from the deployment or put back onto it: as they were while `before` was current.
fn lost_settings(deployment: &Deployment, before: &ReplicaSet) -> Vec<(String, Value)> {
    annotations::SETTINGS
        .iter()
        .filter(|key| note(deployment, key) != note(before, key))
        .map(|key| ((*key).to_owned(), note(before, key).map_or(Value::Null, |value| Value::String(value.to_owned()))))
        .collect()
}

/// The merge patch that takes a deployment to the revision of a replica set, in the way of `kubectl rollout undo`: the
/// template and the change cause are the revision's, and [`annotations::REVISION_OF`] says so to the deployment loop.
/// It fails with a conflict when the deployment changed meanwhile.
pub(super) fn template_patch(deployment: &Deployment, set: &ReplicaSet) -> Value {
    let template = without_hash(&set.spec.template.clone().unwrap_or_default());
    let mut notes = marks::cause_comes_back(&deployment.metadata, note(set, annotations::CHANGE_CAUSE));
    notes.insert(annotations::REVISION_OF.to_owned(), Value::String(name(set).to_owned()));
    let mut patch =
        json!({"metadata": {"annotations": notes, "resourceVersion": deployment.metadata.resource_version}});
    if let (Some(change), Some(patch)) = (template_diff(&deployment.spec.template, &template), patch.as_object_mut()) {
        patch.insert("spec".to_owned(), json!({"template": change}));
    }
    patch
}

fn template_diff(from: &PodTemplateSpec, to: &PodTemplateSpec) -> Option<Value> {
    merge_diff(&json(from), &json(to))
}
