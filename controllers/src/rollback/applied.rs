//! What the appliers remember follows the revision.
//!
//! After an undo the next `kubectl apply` must make the object what its manifest says. Client-side apply compares the
//! manifest with the `last-applied-configuration` annotation, server-side apply with the fields its manager owns:
//! both are recorded with each revision and put back when the deployment goes back to it. A field that came back with
//! the undo and is not in the next manifest is then removed by either kind of apply.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use proa_crds::annotations;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A record larger than this is not kept: annotations of one object share 256 KiB.
pub(crate) const RECORD_LIMIT: usize = 96 * 1024;

/// What one server-side applier owned of what an undo brings back.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
struct Owned {
    manager: String,
    /// `fieldsV1` below `f:spec.f:template`.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    template: Value,
    /// `fieldsV1` below `f:metadata.f:annotations`.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    annotations: Value,
}

const TEMPLATE: [&str; 2] = ["f:spec", "f:template"];
const ANNOTATIONS: [&str; 2] = ["f:metadata", "f:annotations"];

fn is_apply(entry: &ManagedFieldsEntry) -> bool {
    entry.operation.as_deref() == Some("Apply") && entry.subresource.as_deref().unwrap_or_default().is_empty()
}

fn part<'a>(entry: &'a ManagedFieldsEntry, [outer, inner]: [&str; 2]) -> Option<&'a Value> {
    entry.fields_v1.as_ref()?.0.get(outer)?.get(inner)
}

/// What client-side apply is to remember after going back: what it remembers now, with the template of `recorded`, and
/// with the annotations of both. An undo takes the template and annotations back and leaves the rest of the object, so
/// the rest of the record stays too: a field set since then is still known to be the manifest's. `None` when nothing
/// changes.
pub(crate) fn follow_client(current: &str, recorded: &str) -> Option<String> {
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

/// Whether that is who went back: an undo brings the mark of the replica set along. By name nobody could tell, because
/// kubectl gives none for an undo, and the server takes that of its program file (`kubectl`, `kubectl.exe`, `oc` …).
fn went_back(entry: &ManagedFieldsEntry) -> bool {
    let mark = format!("f:{}", annotations::REVISION_OF);
    !is_apply(entry) && part(entry, ANNOTATIONS).is_some_and(|owned| owned.get(mark).is_some())
}

/// The record of which server-side applier owns what; `None` when none owns anything of it.
pub(crate) fn record(managed: &[ManagedFieldsEntry]) -> Option<String> {
    let owned: Vec<Owned> = managed
        .iter()
        .filter(|entry| is_apply(entry))
        .map(|entry| Owned {
            manager: entry.manager.clone().unwrap_or_default(),
            template: part(entry, TEMPLATE).cloned().unwrap_or_default(),
            annotations: part(entry, ANNOTATIONS).cloned().unwrap_or_default(),
        })
        .filter(|owned| !owned.manager.is_empty())
        .filter(|owned| owned.template.is_object() || owned.annotations.is_object())
        .collect();
    let record = crate::patch::json(&owned).to_string();
    (!owned.is_empty() && record.len() <= RECORD_LIMIT).then_some(record)
}

/// The managed fields after going back to the revision of that record; `None` when nothing changes. The template is the
/// revision's, so an applier owns of it what it owned then. Of the annotations (`held` are those there are) it owns what it
/// owns now as well: an undo leaves those the revision does not have an opinion on.
pub(crate) fn follow(
    managed: &[ManagedFieldsEntry],
    record: &str,
    held: &BTreeMap<String, String>,
) -> Option<Vec<ManagedFieldsEntry>> {
    follow_from(managed, record, held, went_back)
}

/// As [`follow`] where an undo leaves no mark: whoever wrote without applying may have gone back.
pub(crate) fn follow_unmarked(
    managed: &[ManagedFieldsEntry],
    record: &str,
    held: &BTreeMap<String, String>,
) -> Option<Vec<ManagedFieldsEntry>> {
    follow_from(managed, record, held, |entry| !is_apply(entry))
}

fn follow_from(
    managed: &[ManagedFieldsEntry],
    record: &str,
    held: &BTreeMap<String, String>,
    went_back: impl Fn(&ManagedFieldsEntry) -> bool,
) -> Option<Vec<ManagedFieldsEntry>> {
    let mut owned: Vec<Owned> = serde_json::from_str(record).ok()?;
    // The marks of the replica set are about to go.
    let marks: Map<String, Value> =
        annotations::REPLICA_SET_ONLY.iter().map(|name| (format!("f:{name}"), json!({}))).collect();
    let (mut template, mut notes) = (Value::Null, Value::Object(marks));
    for one in &mut owned {
        if let Some(fields) = one.annotations.as_object_mut() {
            fields.retain(|key, _| key.strip_prefix("f:").is_some_and(|name| held.contains_key(name)));
        }
        unite(&mut template, &one.template);
        unite(&mut notes, &one.annotations);
    }
    let mut result = managed.to_vec();
    for entry in &mut result {
        if entry.subresource.as_deref().is_some_and(|subresource| !subresource.is_empty()) {
            continue;
        }
        if is_apply(entry) {
            let theirs = owned.iter().find(|one| Some(&one.manager) == entry.manager.as_ref());
            set_part(entry, TEMPLATE, theirs.map(|one| one.template.clone()));
            let mut owned = part(entry, ANNOTATIONS).cloned().unwrap_or_default();
            theirs.inspect(|one| unite(&mut owned, &one.annotations));
            set_part(entry, ANNOTATIONS, Some(owned));
        } else if went_back(entry) {
            for (at, theirs) in [(TEMPLATE, &template), (ANNOTATIONS, &notes)] {
                let rest = part(entry, at).and_then(|held| subtract(held, theirs));
                set_part(entry, at, rest);
            }
        }
    }
    result.retain(|entry| {
        entry.fields_v1.as_ref().is_none_or(|fields| fields.0.as_object().is_none_or(|map| !map.is_empty()))
    });
    (result != managed).then_some(result)
}

/// Puts a field set where it belongs in an entry; without one, and with an empty one, takes out what is there.
fn set_part(entry: &mut ManagedFieldsEntry, [outer, inner]: [&str; 2], fields: Option<Value>) {
    let Some(root) = entry.fields_v1.get_or_insert_with(|| FieldsV1(json!({}))).0.as_object_mut() else { return };
    let fields = fields.filter(|fields| fields.as_object().is_some_and(|map| !map.is_empty()));
    if let Some(fields) = fields {
        if let Some(below) = root.entry(outer).or_insert_with(|| json!({})).as_object_mut() {
            below.insert(inner.to_owned(), fields);
        }
    } else if let Some(below) = root.get_mut(outer).and_then(Value::as_object_mut) {
        below.remove(inner);
        if below.is_empty() {
            root.remove(outer);
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

    /// What an undo wrote: these template fields, these annotations, and the mark.
    fn undo(manager: &str, template: Value, mut notes: Value) -> ManagedFieldsEntry {
        notes[format!("f:{}", annotations::REVISION_OF)] = json!({});
        entry(
            manager,
            "Update",
            json!({"f:metadata": {"f:annotations": notes}, "f:spec": {"f:paused": {}, "f:template": template}}),
        )
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
            undo("kubectl", json!({"f:spec": {"f:old": {}}}), json!({})),
            entry("hpa", "Update", json!({"f:spec": {"f:template": {"f:metadata": {}}}})),
        ];
        let followed = follow(&second, &recorded, &BTreeMap::new()).expect("something changes");
        let rest = entry("kubectl", "Update", json!({"f:spec": {"f:paused": {}}}));
        assert_eq!(followed, [entry("kubectl", "Apply", image), rest, second[2].clone()]);
        assert_eq!(follow(&followed, &recorded, &BTreeMap::new()), None);
    }

    #[test]
    fn a_stock_undo_keeps_nothing_that_an_applier_owned_and_an_edit_keeps_what_is_its_own() {
        let cause = json!({"f:cause": {}, "f:team": {}});
        let first = json!({"f:metadata": {"f:annotations": cause}, "f:spec": {"f:template": {"f:image": {}}}});
        let recorded = record(&[entry("kubectl", "Apply", first.clone())]).expect("something is owned");
        let edited = entry("kubectl-edit", "Update", json!({"f:spec": {"f:template": {"f:dns": {}}}}));
        let undone = [
            entry("kubectl", "Apply", json!({"f:metadata": {"f:annotations": {"f:team": {}, "f:since": {}}}})),
            undo("kubectl.1.33", json!({"f:image": {}}), json!({"f:cause": {}})),
            edited.clone(),
        ];
        let held = ["cause", "since"].map(|key| (key.to_owned(), String::new())).into();
        let expected = [
            entry(
                "kubectl",
                "Apply",
                json!({"f:metadata": {"f:annotations": {"f:cause": {}, "f:team": {}, "f:since": {}}}, "f:spec": {"f:template": {"f:image": {}}}}),
            ),
            entry("kubectl.1.33", "Update", json!({"f:spec": {"f:paused": {}}})),
            edited,
        ];
        assert_eq!(follow(&undone, &recorded, &held).expect("something changes"), expected);
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
            undo("proa-controllers", json!({"f:x": {}, "f:y": {}}), json!({})),
        ];
        let followed = follow(&live, &recorded, &BTreeMap::new()).expect("something changes");
        assert_eq!(
            followed[1],
            entry("proa-controllers", "Update", json!({"f:spec": {"f:paused": {}, "f:template": {"f:y": {}}}}))
        );
    }

    #[test]
    fn without_server_side_appliers_there_is_nothing_to_record() {
        assert_eq!(
            record(&[entry("kubectl-client-side-apply", "Update", json!({"f:spec": {"f:template": {}}}))]),
            None
        );
    }
}
