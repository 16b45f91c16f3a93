//! One revision: what it records and how that is read back.

use super::{Keeper, Parent, configuration::template_with};
use crate::{hash::name_hash, patch::json};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::core::{ObjectMeta, TypeMeta};
use proa_crds::{ControllerRevision, annotations};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Longest part of a revision's name that comes from its parent's (as Kubernetes).
const PREFIX: usize = 223;

/// Annotations of a parent that are not recorded: what the last apply said belongs to the object alone, and a retry is a
/// wish of one moment.
const NOT_RECORDED: [&str; 6] = [
    annotations::LAST_APPLIED,
    annotations::RETRY,
    annotations::DEPRECATED_TEMPLATE_GENERATION,
    annotations::FAILED_REVISIONS,
    annotations::GRADUAL,
    annotations::CONFIGURATION_WANTED,
];

/// What is recorded of a template: the strategic merge patch that puts it back, in the place of whatever there is.
pub fn data_of(template: &PodTemplateSpec) -> Value {
    let mut recorded = Map::from_iter([("$patch".to_owned(), "replace".into())]);
    if let Value::Object(fields) = sorted(json(template)) {
        recorded.extend(fields);
    }
    json!({"spec": {"template": recorded}})
}

/// The template a revision recorded; `None` when it holds something else.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.pointer("/spec/template")?.clone();
    template.as_object_mut()?.shift_remove("$patch");
    serde_json::from_value(template).ok()
}

/// The strategic merge patch that brings a revision back, as `kubectl rollout undo` sends it.
pub fn undo(revision: &ControllerRevision) -> &Value {
    &revision.data
}

/// The hash in a revision's labels: `controller.kubernetes.io/hash`, or what only DaemonSets of Kubernetes write.
pub fn hash_of(revision: &ControllerRevision) -> Option<&str> {
    let labels = revision.metadata.labels.as_ref()?;
    let hash = labels.get(annotations::CONTROLLER_REVISION_HASH).or_else(|| labels.get(annotations::REVISION_HASH));
    hash.map(String::as_str)
}

/// A new revision of the parent's template.
pub(super) fn revision(parent: &Parent<'_>, number: i64) -> ControllerRevision {
    let data = data_of(&template_with(parent.template.clone(), parent.configuration.digest()));
    let hash = name_hash(data.to_string().as_bytes(), parent.collisions);
    let name = parent.meta.name.as_deref().unwrap_or_default();
    let prefix = name.get(..PREFIX).unwrap_or(name);
    let mut labels = parent.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(annotations::REVISION_HASH.to_owned(), hash.clone());
    if parent.keeper == Keeper::DaemonSet {
        labels.insert(annotations::CONTROLLER_REVISION_HASH.to_owned(), hash.clone());
    }
    let notes: BTreeMap<_, _> = parent
        .meta
        .annotations
        .iter()
        .flatten()
        .filter(|(key, _)| !NOT_RECORDED.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    ControllerRevision {
        types: Some(TypeMeta {
            api_version: parent.reference.api_version.clone(),
            kind: "ControllerRevision".to_owned(),
        }),
        metadata: ObjectMeta {
            name: Some(format!("{prefix}-{hash}")),
            namespace: parent.meta.namespace.clone(),
            labels: Some(labels),
            annotations: Some(notes).filter(|notes| !notes.is_empty()),
            owner_references: Some(vec![parent.reference.clone()]),
            ..ObjectMeta::default()
        },
        data,
        revision: number,
    }
}

/// The same with the fields of every object in order, as Go writes maps.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        other => other,
    }
}
