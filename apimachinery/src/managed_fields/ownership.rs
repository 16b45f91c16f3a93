//! Owns the decisions of server-side apply: what an apply removes, whom it conflicts with, and who owns
//! what after any write.

use serde_json::{Map, Value};

use super::{
    ApplyError, Conflicts, Manager, Operation,
    entries::{Entries, Entry, Id, strip},
    extract::{compare, fields_of_map},
    path::Element,
    set::Set,
    typed,
};
use crate::{object::Object, schema::Schema};

/// Owns what an object had before anyone applied to it without ownership being recorded.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// What kubectl's client-side apply remembers of its last configuration.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager of `kubectl apply --server-side`.
const KUBECTL: &str = "kubectl";
/// The annotations of an object together may take this many bytes.
const MOST_ANNOTATION_BYTES: usize = 256 << 10;

pub(super) fn apply(
    schema: &Schema,
    live: Option<&Object>,
    config: &Object,
    manager: Manager<'_>,
    force: bool,
    now: &str,
) -> Result<Object, ApplyError> {
    let given = config.metadata().and_then(|m| m.get("managedFields"));
    if given.is_some_and(|v| !v.is_null() && v.as_array().is_none_or(|list| !list.is_empty())) {
        return Err(ApplyError::ManagedFieldsGiven);
    }
    let problems = typed::problems(schema, &config.0);
    if !problems.is_empty() {
        return Err(ApplyError::Malformed(problems));
    }
    let mut before = match live {
        Some(live) => live.0.clone(),
        None => Object::new(config.api_version(), config.kind()).0,
    };
    let recorded =
        before.get_mut("metadata").and_then(Value::as_object_mut).and_then(|m| m.shift_remove("managedFields"));
    let mut entries = Entries::read(recorded).unwrap_or_default();
    if live.is_some() && entries.0.is_empty() {
        adopt(schema, &mut entries, &before, manager, now);
    }

    let id = Id::of(Manager { operation: Operation::Apply, ..manager });
    let stated = fields_of_map(schema, &config.0);
    let mut wanted = stated.clone();
    strip(&mut wanted);
    let last = entries.take(&id);
    let mut after = typed::merge_map(schema, before.clone(), &config.0);
    if let Some(last) = last.as_ref().filter(|last| !last.fields.difference(&stated).is_empty()) {
        let mut managed = entries.union();
        // With the name and the type: nobody owns those, but they say that there is a metadata.
        managed.absorb(stated);
        let given_up = last.fields.with_named_parents(schema);
        let mut doomed = given_up.difference(&managed.with_named_parents(schema));
        if let Some(metadata) = doomed.nodes_mut().get_mut(&Element::field("metadata")) {
            metadata.member = false;
        }
        typed::remove(schema, &mut after, &doomed);
    }
    let difference = compare(schema, &before, &after);
    let taken = difference.modified.union(&difference.added);
    let conflicts = conflicts_with(&entries, &taken, &Set::default());
    if !conflicts.0.is_empty() && !force {
        let inherited = if manager.name == KUBECTL { last_applied_fields(schema, &before) } else { None };
        let conflicts = match inherited {
            Some(inherited) => conflicts_with(&entries, &taken, &inherited),
            None => conflicts,
        };
        if !conflicts.0.is_empty() {
            return Err(ApplyError::Conflicts(conflicts));
        }
    }
    release(&mut entries, &taken, &difference.removed);

    let unchanged = before == after;
    let same_fields = last.as_ref().is_some_and(|last| last.fields == wanted && last.id.api_version == id.api_version);
    let time = match &last {
        Some(last) if unchanged && same_fields => last.time.clone(),
        _ => now.to_owned(),
    };
    entries.0.push(match last {
        Some(last) if same_fields => Entry { time, ..last },
        _ => Entry::new(id, time, wanted),
    });
    let mut result = Object(after);
    if manager.name == KUBECTL {
        refresh_last_applied(&mut result, config);
    }
    entries.write(result.metadata_mut());
    Ok(result)
}

/// Everything a live object without recorded ownership has, someone must have set.
fn adopt(schema: &Schema, entries: &mut Entries, live: &Map<String, Value>, manager: Manager<'_>, now: &str) {
    let mut fields = compare(schema, &blank(schema, live), live).added;
    strip(&mut fields);
    let id = Id::of(Manager { name: BEFORE_FIRST_APPLY, operation: Operation::Update, ..manager });
    entries.0.push(Entry::new(Id { subresource: String::new(), ..id }, now.to_owned(), fields));
}

fn conflicts_with(entries: &Entries, taken: &Set, allowed: &Set) -> Conflicts {
    let mut conflicts = Conflicts::default();
    let mut sorted: Vec<&Entry> = entries.0.iter().collect();
    sorted.sort_by(|a, b| (&a.id.manager, &a.id.api_version).cmp(&(&b.id.manager, &b.id.api_version)));
    for entry in sorted {
        let contested = entry.fields.intersection(taken).difference(allowed);
        conflicts.add(&entry.id, &contested);
    }
    conflicts
}

/// Everyone loses what was taken from them and what is no longer there.
fn release(entries: &mut Entries, taken: &Set, removed: &Set) {
    for entry in &mut entries.0 {
        for lost in [taken, removed] {
            if !entry.fields.intersection(lost).is_empty() {
                entry.fields = entry.fields.difference(lost);
            }
        }
    }
    entries.0.retain(|entry| !entry.fields.is_empty());
}

/// The fields that client-side apply set and nobody has changed since: server-side apply by the same tool
/// may take them without a conflict.
fn last_applied_fields(schema: &Schema, live: &Map<String, Value>) -> Option<Set> {
    let text = live.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()?;
    let Ok((Value::Object(applied), _)) = crate::json::from_json(text.as_bytes(), crate::json::MAX_DEPTH) else {
        return None;
    };
    if applied.get("apiVersion") != live.get("apiVersion") {
        return None;
    }
    let difference = compare(schema, &applied, live);
    let fields = fields_of_map(schema, &applied);
    Some(fields.difference(&difference.modified).difference(&difference.added).difference(&difference.removed))
}

/// Objects that carry the annotation of client-side apply keep it true, so that one can go back to it.
fn refresh_last_applied(result: &mut Object, config: &Object) {
    if result.annotation(LAST_APPLIED).is_none() {
        return;
    }
    let mut config = config.clone();
    config.remove_annotation(LAST_APPLIED);
    let text = format!("{}\n", Value::Object(config.0));
    let others: usize = result.annotations().filter(|(k, _)| *k != LAST_APPLIED).map(|(k, v)| k.len() + v.len()).sum();
    if others + LAST_APPLIED.len() + text.len() <= MOST_ANNOTATION_BYTES {
        result.set_annotation(LAST_APPLIED, text);
    } else {
        result.remove_annotation(LAST_APPLIED);
    }
}

pub(super) fn update(schema: &Schema, live: Option<&Object>, new: &mut Object, manager: Manager<'_>, now: &str) {
    let sent = new.0.get_mut("metadata").and_then(Value::as_object_mut).and_then(|m| m.shift_remove("managedFields"));
    let stored = live.and_then(|live| live.metadata()?.get("managedFields"));
    let resets = sent
        .as_ref()
        .and_then(Value::as_array)
        .is_some_and(|list| matches!(&list[..], [only] if only.as_object().is_some_and(Map::is_empty)));
    // Mostly what is sent is what is there: then nothing is copied.
    let of_live = |sent: Option<Value>| {
        let live = if sent.as_ref() == stored { sent } else { stored.cloned() };
        Entries::read(live).unwrap_or_default()
    };
    let mut entries = if !manager.subresource.is_empty() {
        of_live(sent)
    } else if resets {
        Entries::default()
    } else if sent.as_ref() == stored {
        Entries::read(sent).unwrap_or_default()
    } else {
        match Entries::read(sent) {
            Some(entries) if !entries.0.is_empty() => entries,
            _ => of_live(None),
        }
    };
    // Who owns an object nobody kept records of is settled by the first apply.
    if live.is_some() && entries.0.is_empty() {
        return;
    }
    let difference = match live {
        Some(live) => compare(schema, &live.0, &new.0),
        None => compare(schema, &blank(schema, &new.0), &new.0),
    };
    let mut taken = difference.modified.union(&difference.added);
    strip(&mut taken);
    let id = Id::of(Manager { operation: Operation::Update, ..manager });
    release(&mut entries, &taken, &difference.removed);
    if !taken.is_empty() {
        let rest = entries.take(&id).map(|entry| entry.fields).unwrap_or_default();
        entries.0.push(Entry::new(id, now.to_owned(), rest.union(&taken)));
    }
    entries.write(new.metadata_mut());
}

/// The object before its creation. In built-in kinds some structs are always there, if empty: nobody is
/// their first owner.
fn blank(schema: &Schema, new: &Map<String, Value>) -> Map<String, Value> {
    const ALWAYS_THERE: [&str; 8] = [
        "ObjectMeta",
        "PodTemplateSpec",
        "PodSpec",
        "DeploymentStrategy",
        "JobSpec",
        "JobTemplateSpec",
        "StatefulSetUpdateStrategy",
        "DaemonSetUpdateStrategy",
    ];
    fn fill(schema: &Schema, new: &Map<String, Value>, top: bool) -> Map<String, Value> {
        let mut blank = Map::new();
        for (name, value) in new {
            let Some(property) = schema.property(name) else { continue };
            let of_type = property.definition_name().and_then(|n| n.rsplit('.').next()).unwrap_or_default();
            let plain = ALWAYS_THERE.contains(&of_type) || (top && matches!(&**name, "metadata" | "spec" | "status"));
            if let (true, Value::Object(inner)) = (plain && !of_type.is_empty(), value) {
                blank.insert(name.clone(), Value::Object(fill(property, inner, false)));
            } else if name == "containers" && schema.definition_name().is_some_and(|n| n.ends_with(".PodSpec")) {
                blank.insert(name.clone(), Value::Null);
            }
        }
        blank
    }
    let mut blank = fill(schema, new, true);
    for field in ["apiVersion", "kind"] {
        if let Some(value) = new.get(field) {
            blank.insert(field.to_owned(), value.clone());
        }
    }
    blank
}
