//! Owns how the elements of a merged list find each other, and the order they end up in.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{
    PatchError,
    strategic::{PATCH, malformed, merge_map, without_directives},
};
use crate::schema::{ListType, Schema};

/// Merges a list of objects by `key`.
///
/// Where the schema tells elements apart by more than the merge key (a port is a number and a protocol,
/// `TCP` unless said), elements that agree on all of it are matched first; Kubernetes merges by the key
/// alone and so folds 53/TCP and 53/UDP into one.
pub(super) fn merge(field: &Schema, key: &str, items: Vec<Value>, patch: &[Value]) -> Result<Vec<Value>, PatchError> {
    let mut items = items;
    let mut changes: Vec<&Map<String, Value>> = Vec::with_capacity(patch.len());
    let mut doomed: HashMap<String, Vec<&Map<String, Value>>> = HashMap::new();
    let mut replaces = false;
    for change in patch {
        let map = change
            .as_object()
            .ok_or_else(|| malformed(format!("an element of a list merged by {key:?} is not an object: {change}")))?;
        match map.get(PATCH) {
            None => changes.push(map),
            Some(Value::String(directive)) => match directive.as_str() {
                "delete" => {
                    let value = map
                        .get(key)
                        .ok_or_else(|| malformed(format!("delete patch type with no merge key defined: {key:?}")))?;
                    doomed.entry(value.to_string()).or_default().push(map);
                }
                "replace" => {
                    replaces = true;
                    if map.len() > 1 {
                        changes.push(map);
                    }
                }
                "merge" => changes.push(map),
                other => return Err(malformed(format!("Unknown patch type found: {other}"))),
            },
            Some(_) => return Err(malformed("the $patch directive must be a string")),
        }
    }
    if replaces {
        items.clear();
    } else if !doomed.is_empty() {
        items.retain(|item| {
            let named = item.get(key).and_then(|value| doomed.get(&value.to_string()));
            !named.into_iter().flatten().any(|doomed| deletes(field, doomed, item))
        });
    }
    if let Some(change) = changes.iter().find(|change| change.get(key).is_none_or(Value::is_null)) {
        let shown = Value::Object((*change).clone());
        return Err(malformed(format!("map: {shown} does not contain declared merge key: {key}")));
    }
    let places = places(field, key, &items, &changes);
    let mut added: HashMap<String, Vec<usize>> = HashMap::new();
    for (change, place) in changes.into_iter().zip(places) {
        let mut change = std::borrow::Cow::Borrowed(change);
        if change.contains_key(PATCH) {
            change.to_mut().shift_remove(PATCH);
        }
        match place.and_then(|place| items.get_mut(place)) {
            Some(slot) => {
                let original = match slot.take() {
                    Value::Object(map) => map,
                    _ => Map::new(),
                };
                *slot = Value::Object(merge_map(field.element(), original, &change)?);
            }
            None => {
                // The same new element twice in one patch: the second changes the first.
                let name = change.get(key).map(Value::to_string).unwrap_or_default();
                let twins = added.entry(name).or_default();
                let twin = twins.iter().copied().find(|twin| same_key(field, &items[*twin], &change));
                match twin.and_then(|twin| items[twin].as_object_mut()) {
                    Some(map) => *map = merge_map(field.element(), std::mem::take(map), &change)?,
                    None => {
                        twins.push(items.len());
                        items.push(without_directives(field.element(), &Value::Object(change.into_owned()))?);
                    }
                }
            }
        }
    }
    Ok(items)
}

/// For each change, the original element it changes; `None` for a new one.
fn places(field: &Schema, key: &str, items: &[Value], changes: &[&Map<String, Value>]) -> Vec<Option<usize>> {
    let mut places = vec![None; changes.len()];
    let mut by_key: HashMap<String, Vec<usize>> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        if let Some(value) = item.get(key) {
            by_key.entry(value.to_string()).or_default().push(index);
        }
    }
    let mut taken = vec![false; items.len()];
    let candidates = |change: &Map<String, Value>| change.get(key).and_then(|value| by_key.get(&value.to_string()));
    for exact in [true, false] {
        for (place, change) in places.iter_mut().zip(changes).filter(|(place, _)| place.is_none()) {
            let found = candidates(change)
                .into_iter()
                .flatten()
                .copied()
                .find(|index| !taken[*index] && (!exact || same_key(field, &items[*index], change)));
            if let Some(index) = found {
                taken[index] = true;
                *place = Some(index);
            }
        }
    }
    places
}

fn key_field<'a>(field: &'a Schema, name: &str, map: Option<&'a Value>) -> Option<&'a Value> {
    map.filter(|value| !value.is_null()).or_else(|| field.element().property(name)?.default.as_ref())
}

/// Whether two elements agree on everything the schema tells elements apart by.
fn same_key(field: &Schema, item: &Value, change: &Map<String, Value>) -> bool {
    let ListType::Map(keys) = field.list_type() else { return true };
    keys.iter().all(|name| key_field(field, name, item.get(&**name)) == key_field(field, name, change.get(&**name)))
}

/// Whether a `$patch: delete` element of the same merge key means this one: by any other key it names.
fn deletes(field: &Schema, doomed: &Map<String, Value>, item: &Value) -> bool {
    let ListType::Map(keys) = field.list_type() else { return true };
    let named = keys.iter().filter(|name| doomed.contains_key(&***name));
    named
        .into_iter()
        .all(|name| key_field(field, name, item.get(&**name)) == key_field(field, name, doomed.get(&**name)))
}

/// Merges a list of scalars: what is new is added at the end; no value comes twice.
pub(super) fn union(items: Vec<Value>, patch: &[Value]) -> Result<Vec<Value>, PatchError> {
    let replaces = patch.iter().any(|item| item.get(PATCH).and_then(Value::as_str) == Some("replace"));
    let items = if replaces { Vec::new() } else { items };
    let mut seen = HashSet::with_capacity(items.len() + patch.len());
    let added = patch.iter().filter(|item| item.get(PATCH).is_none()).cloned();
    Ok(items.into_iter().chain(added).filter(|item| seen.insert(item.to_string())).collect())
}

fn identity(key: Option<&str>, item: &Value) -> String {
    match key {
        Some(key) => item.get(key).map_or_else(String::new, Value::to_string),
        None => item.to_string(),
    }
}

/// The elements a patch sets must be in its own order list, and in that order.
pub(super) fn check_order(key: Option<&str>, patch: &[Value], order: &[Value]) -> Result<(), PatchError> {
    let order: Vec<String> = order.iter().map(|item| identity(key, item)).collect();
    let mut from = 0;
    for change in patch.iter().filter(|change| change.get(PATCH).is_none()) {
        let wanted = identity(key, change);
        match order[from..].iter().position(|o| *o == wanted) {
            Some(found) => from += found,
            None => {
                return Err(malformed(format!(
                    "The order in patch list doesn't match $setElementOrder list: {change} is missing or out of order"
                )));
            }
        }
    }
    Ok(())
}

/// Puts elements into the order the patch asks for. Elements only the server has keep their own order and,
/// as well as can be, their places relative to the others.
pub(super) fn reorder(key: Option<&str>, merged: Vec<Value>, before: &[Value], order: &[Value]) -> Vec<Value> {
    let positions = |items: &[Value]| -> HashMap<String, usize> {
        items.iter().enumerate().rev().map(|(index, item)| (identity(key, item), index)).collect()
    };
    let (wanted, was) = (positions(order), positions(before));
    let place = |item: &Value, places: &HashMap<String, usize>| places.get(&identity(key, item)).copied();
    let (mut listed, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(item, &wanted).is_some());
    listed.sort_by_key(|item| place(item, &wanted));
    others.sort_by_key(|item| place(item, &was).unwrap_or(usize::MAX));
    let mut result = Vec::with_capacity(listed.len() + others.len());
    let (mut listed, mut others) = (listed.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(ours), Some(theirs)) = (listed.peek(), others.peek()) {
        let earlier = match (place(theirs, &was), place(ours, &was)) {
            (Some(theirs), Some(ours)) => theirs < ours,
            _ => false,
        };
        result.extend(if earlier { others.next() } else { listed.next() });
    }
    result.extend(listed);
    result.extend(others);
    result
}
