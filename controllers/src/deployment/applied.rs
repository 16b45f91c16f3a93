//! What the appliers remember follows the revision.
//!
//! After an undo the next `kubectl apply` must make the object what its manifest says. Client-side apply compares the
//! manifest with the `last-applied-configuration` annotation, server-side apply with the fields its manager owns:
//! both are recorded with each revision and put back when the deployment goes back to it. A field that came back with
//! the undo and is not in the next manifest is then removed by either kind of apply.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A record larger than this is not kept: annotations of one object share 256 KiB.
pub(super) const RECORD_LIMIT: usize = 96 * 1024;

/// Managers that write templates while going back: what they wrote belongs to the appliers of that revision.
const GOING_BACK: [&str; 3] = [crate::patch::MANAGER, "kubectl-rollout", "proa"];

/// The template fields one server-side applier owned.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
struct Owned {
    manager: String,
    /// `fieldsV1` below `f:spec.f:template`.
    template: Value,
}

fn is_apply(entry: &ManagedFieldsEntry) -> bool {
    entry.operation.as_deref() == Some("Apply") && entry.subresource.as_deref().unwrap_or_default().is_empty()
}

fn template_of(entry: &ManagedFieldsEntry) -> Option<&Value> {
    entry.fields_v1.as_ref()?.0.get("f:spec")?.get("f:template")
}

/// What client-side apply is to remember after going back: what it remembers now, with the template of `recorded`, and
/// with the annotations of both. An undo takes the template and annotations back and leaves the rest of the object, so
/// the rest of the record stays too: a field set since then is still known to be the manifest's. `None` when nothing
/// changes.
pub(super) fn follow_client(current: &str, recorded: &str) -> Option<String> {
    let (Ok(mut now), Ok(then)) = (serde_json::from_str::<Value>(current), serde_json::from_str::<Value>(recorded))
    else {
        return (current != recorded).then(|| recorded.to_owned());
    };
    let before = now.clone();
    let template = then.pointer("/spec/template").cloned();
    if let (Some(spec), Some(template)) = (now.get_mut("spec").and_then(Value::as_object_mut), template) {
        spec.insert("template".to_owned(), template);
    }
    let notes = then.pointer("/metadata/annotations").and_then(Value::as_object);
    if let (Some(meta), Some(notes)) = (now.get_mut("metadata").and_then(Value::as_object_mut), notes) {
        let held = meta.entry("annotations").or_insert_with(|| json!({}));
        if let Some(held) = held.as_object_mut() {
            held.extend(notes.clone());
        }
    }
    // kubectl ends its record with a line break.
    (now != before).then(|| format!("{now}\n"))
}

/// The record of which server-side applier owns which template fields; `None` when there is none.
pub(super) fn record(managed: &[ManagedFieldsEntry]) -> Option<String> {
    let owned: Vec<Owned> = managed
        .iter()
        .filter(|entry| is_apply(entry))
        .filter_map(|entry| Some(Owned { manager: entry.manager.clone()?, template: template_of(entry)?.clone() }))
        .collect();
    let record = crate::patch::json(&owned).to_string();
    (!owned.is_empty() && record.len() <= RECORD_LIMIT).then_some(record)
}

/// The managed fields after going back to the revision of that record; `None` when nothing changes.
pub(super) fn follow(managed: &[ManagedFieldsEntry], record: &str) -> Option<Vec<ManagedFieldsEntry>> {
    let owned: Vec<Owned> = serde_json::from_str(record).ok()?;
    let mut all = Value::Null;
    for one in &owned {
        unite(&mut all, &one.template);
    }
    let mut result = managed.to_vec();
    for entry in &mut result {
        if entry.subresource.as_deref().is_some_and(|subresource| !subresource.is_empty()) {
            continue;
        }
        let manager = entry.manager.clone().unwrap_or_default();
        if is_apply(entry) {
            let theirs = owned.iter().find(|one| one.manager == manager).map(|one| one.template.clone());
            set_template(entry, theirs);
        } else if GOING_BACK.contains(&manager.as_str()) {
            let rest = template_of(entry).and_then(|held| subtract(held, &all));
            set_template(entry, rest);
        }
    }
    result.retain(|entry| {
        entry.fields_v1.as_ref().is_none_or(|fields| fields.0.as_object().is_none_or(|map| !map.is_empty()))
    });
    (result != managed).then_some(result)
}

fn set_template(entry: &mut ManagedFieldsEntry, template: Option<Value>) {
    let fields = &mut entry.fields_v1.get_or_insert_with(|| FieldsV1(json!({}))).0;
    match template {
        Some(template) => {
            if let Some(root) = fields.as_object_mut() {
                let spec = root.entry("f:spec").or_insert_with(|| json!({}));
                if let Some(spec) = spec.as_object_mut() {
                    spec.insert("f:template".to_owned(), template);
                }
            }
        }
        None => {
            if let Some(root) = fields.as_object_mut() {
                let emptied = root.get_mut("f:spec").and_then(Value::as_object_mut).is_some_and(|spec| {
                    spec.remove("f:template");
                    spec.is_empty()
                });
                if emptied {
                    root.remove("f:spec");
                }
            }
        }
    }
}

/// The field set `a` without the fields of `b`; `None` when nothing is left.
fn subtract(a: &Value, b: &Value) -> Option<Value> {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return None };
    let mut rest = Map::new();
    for (key, below) in a {
        match b.get(key) {
            None => {
                rest.insert(key.clone(), below.clone());
            }
            Some(theirs) => {
                if let Some(below) = subtract(below, theirs) {
                    rest.insert(key.clone(), below);
                }
            }
        }
    }
    (!rest.is_empty()).then_some(Value::Object(rest))
}

fn unite(into: &mut Value, other: &Value) {
    let Value::Object(other) = other else { return };
    if !into.is_object() {
        *into = json!({});
    }
    if let Value::Object(into) = into {
        for (key, below) in other {
            unite(into.entry(key.clone()).or_insert_with(|| json!({})), below);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(manager: &str, operation: &str, fields: Value) -> ManagedFieldsEntry {
        ManagedFieldsEntry {
            manager: Some(manager.into()),
            operation: Some(operation.into()),
            fields_v1: Some(FieldsV1(fields)),
            ..Default::default()
        }
    }

    #[test]
    fn the_appliers_own_again_what_they_owned_with_that_revision_and_whoever_went_back_owns_none_of_it() {
        let image = json!({"f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:image": {}, "f:old": {}}}}});
        let first = [entry("kubectl", "Apply", image.clone())];
        let recorded = record(&first).expect("something is owned");
        let second = [
            entry(
                "kubectl",
                "Apply",
                json!({"f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:image": {}, "f:new": {}}}}}),
            ),
            entry("kubectl-rollout", "Update", json!({"f:spec": {"f:template": {"f:spec": {"f:old": {}}}}})),
            entry("hpa", "Update", json!({"f:spec": {"f:template": {"f:metadata": {}}}})),
        ];
        let followed = follow(&second, &recorded).expect("something changes");
        assert_eq!(followed, [entry("kubectl", "Apply", image), second[2].clone()]);
        assert_eq!(follow(&followed, &recorded), None);
    }

    #[test]
    fn client_side_apply_remembers_the_template_of_that_revision_and_the_rest_of_the_last_manifest() {
        let then = json!({"metadata": {"annotations": {"a": "1"}}, "spec": {"replicas": 1, "template": "old"}});
        let now = json!({"metadata": {"annotations": {"a": "2", "b": "1"}}, "spec": {"template": "new", "minReadySeconds": 5}});
        let followed = follow_client(&now.to_string(), &then.to_string()).expect("something changes");
        assert_eq!(
            serde_json::from_str::<Value>(&followed).expect("JSON"),
            json!({"metadata": {"annotations": {"a": "1", "b": "1"}}, "spec": {"template": "old", "minReadySeconds": 5}})
        );
        assert_eq!(follow_client(&followed, &then.to_string()), None);
    }

    #[test]
    fn what_nobody_applies_stays_with_whoever_went_back() {
        let recorded =
            record(&[entry("a", "Apply", json!({"f:spec": {"f:template": {"f:x": {}}}}))]).expect("a record");
        let live = [
            entry("a", "Apply", json!({"f:spec": {"f:template": {"f:x": {}}}})),
            entry("proa-controllers", "Update", json!({"f:spec": {"f:template": {"f:x": {}, "f:y": {}}}})),
        ];
        let followed = follow(&live, &recorded).expect("something changes");
        assert_eq!(followed[1], entry("proa-controllers", "Update", json!({"f:spec": {"f:template": {"f:y": {}}}})));
    }

    #[test]
    fn without_server_side_appliers_there_is_nothing_to_record() {
        assert_eq!(
            record(&[entry("kubectl-client-side-apply", "Update", json!({"f:spec": {"f:template": {}}}))]),
            None
        );
    }
}
