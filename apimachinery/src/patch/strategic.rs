//! Owns strategic merge patch: merge patch that knows, from the schema, how lists merge, and obeys the
//! directives a client puts beside the data (`$patch`, `$retainKeys`, `$setElementOrder/…`,
//! `$deleteFromPrimitiveList/…`). See the API convention on strategic merge patch.

use serde_json::{Map, Value};

use super::{PatchError, elements};
use crate::schema::{Patch, Schema};

pub(super) const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch to an object of a built-in kind. Custom resources have no patch
/// strategies: the server answers 415 for those before it gets here, and a schema without facts refuses.
pub fn strategic(schema: &Schema, document: &Value, patch: &Value) -> Result<Value, PatchError> {
    if schema.definition_name().is_none() {
        let message = "strategic merge patch is not supported for custom resources".to_owned();
        return Err(PatchError::Malformed(message));
    }
    let (Value::Object(document), Value::Object(patch)) = (document, patch) else {
        return Err(PatchError::Malformed("a strategic merge patch is an object".to_owned()));
    };
    merge_map(schema, document.clone(), patch).map(Value::Object)
}

pub(super) fn malformed(message: impl Into<String>) -> PatchError {
    PatchError::Malformed(message.into())
}

/// Merges `patch` into `original`, both being values of `schema`.
pub(super) fn merge_map(
    schema: &Schema,
    mut original: Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>, PatchError> {
    match patch.get(PATCH) {
        None => {}
        Some(Value::String(directive)) => match directive.as_str() {
            "replace" => {
                let fields = patch.iter().filter(|(name, _)| *name != PATCH);
                return Ok(fields.map(|(name, value)| (name.clone(), value.clone())).collect());
            }
            "delete" => return Ok(Map::new()),
            "merge" => {}
            other => return Err(malformed(format!("Unknown patch type found: {other}"))),
        },
        Some(_) => return Err(malformed("the $patch directive must be a string")),
    }
    retain(&mut original, patch)?;
    for (name, value) in patch {
        if name == PATCH || name == RETAIN_KEYS || name.starts_with(ELEMENT_ORDER) {
            continue;
        }
        if let Some(field) = name.strip_prefix(DELETE_PRIMITIVES) {
            delete_primitives(&mut original, field, value)?;
            continue;
        }
        merge_field(schema, &mut original, patch, name, value)?;
    }
    reorder_untouched(schema, &mut original, patch)?;
    Ok(original)
}

fn merge_field(
    schema: &Schema,
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    name: &str,
    value: &Value,
) -> Result<(), PatchError> {
    if value.is_null() {
        original.shift_remove(name);
        return Ok(());
    }
    let field = schema.field(name).unwrap_or_else(|| Schema::any());
    let strategy = field.patch();
    match (original.get_mut(name), value) {
        (Some(slot @ Value::Object(_)), Value::Object(below)) => {
            if strategy.is_some_and(|s| s.replace) {
                *slot = without_directives(field, value)?;
            } else if let Value::Object(map) = slot.take() {
                *slot = Value::Object(merge_map(field, map, below)?);
            }
        }
        (Some(slot @ Value::Array(_)), Value::Array(below)) => {
            let order = element_order(patch, name)?;
            *slot = match (strategy.filter(|s| s.merge), slot.take()) {
                (Some(strategy), Value::Array(items)) => {
                    Value::Array(merge_list(field, strategy, items, below, order)?)
                }
                _ => without_directives(field, value)?,
            };
        }
        (slot, _) => {
            let value = without_directives(field, value)?;
            match slot {
                Some(slot) => *slot = value,
                None => {
                    original.insert(name.to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

/// `$retainKeys`: every field of the original that is not listed goes.
fn retain(original: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<(), PatchError> {
    let Some(keys) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let keys = keys.as_array().ok_or_else(|| malformed("$retainKeys must be a list of field names"))?;
    let keys: Vec<&str> = keys.iter().filter_map(Value::as_str).collect();
    let is_listed = |name: &str| keys.contains(&name);
    let stray = patch.iter().find(|(name, value)| !name.starts_with('$') && !value.is_null() && !is_listed(name));
    if let Some((name, _)) = stray {
        return Err(malformed(format!("the patch sets {name:?}, which $retainKeys does not list")));
    }
    original.retain(|name, _| is_listed(name));
    Ok(())
}

fn delete_primitives(original: &mut Map<String, Value>, field: &str, value: &Value) -> Result<(), PatchError> {
    let doomed = value.as_array().ok_or_else(|| malformed(format!("{DELETE_PRIMITIVES}{field} must be a list")))?;
    if let Some(Value::Array(items)) = original.get_mut(field) {
        let doomed: std::collections::HashSet<String> = doomed.iter().map(Value::to_string).collect();
        items.retain(|item| !doomed.contains(&item.to_string()));
    }
    Ok(())
}

fn element_order<'a>(patch: &'a Map<String, Value>, name: &str) -> Result<Option<&'a Vec<Value>>, PatchError> {
    match patch.get(&format!("{ELEMENT_ORDER}{name}")) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(order)) => Ok(Some(order)),
        Some(_) => Err(malformed(format!("{ELEMENT_ORDER}{name} must be a list"))),
    }
}

fn merge_list(
    field: &Schema,
    strategy: &Patch,
    items: Vec<Value>,
    patch: &[Value],
    order: Option<&Vec<Value>>,
) -> Result<Vec<Value>, PatchError> {
    let before = items.clone();
    let merged = match &strategy.merge_key {
        Some(key) => elements::merge(field, key, items, patch)?,
        None => elements::union(items, patch)?,
    };
    match order {
        Some(order) => {
            elements::check_order(strategy.merge_key.as_deref(), patch, order)?;
            Ok(elements::reorder(strategy.merge_key.as_deref(), merged, &before, order))
        }
        None => Ok(merged),
    }
}

/// `$setElementOrder/…` may come for a list that the patch does not change otherwise (or only deletes from).
fn reorder_untouched(
    schema: &Schema,
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), PatchError> {
    for name in patch.keys().filter_map(|name| name.strip_prefix(ELEMENT_ORDER)) {
        if patch.contains_key(name) {
            continue;
        }
        let strategy = schema.field(name).and_then(Schema::patch).filter(|s| s.merge);
        let (Some(order), Some(strategy)) = (element_order(patch, name)?, strategy) else { continue };
        if let Some(Value::Array(items)) = original.get_mut(name) {
            let before = items.clone();
            *items = elements::reorder(strategy.merge_key.as_deref(), std::mem::take(items), &before, order);
        }
    }
    Ok(())
}

/// What a patch value looks like where there is nothing to merge it into: nulls and directives are gone,
/// and what it would delete is not there.
pub(super) fn without_directives(schema: &Schema, value: &Value) -> Result<Value, PatchError> {
    match value {
        Value::Object(map) => {
            if map.get(PATCH).and_then(Value::as_str) == Some("delete") {
                return Ok(Value::Object(Map::new()));
            }
            merge_map(schema, Map::new(), map).map(Value::Object)
        }
        Value::Array(items) => {
            let strategy = schema.patch().filter(|s| s.merge);
            match strategy.and_then(|s| s.merge_key.as_deref()) {
                Some(key) => elements::merge(schema, key, Vec::new(), items).map(Value::Array),
                None => {
                    let kept = items.iter().filter(|item| item.get(PATCH).is_none());
                    kept.map(|item| without_directives(schema.element(), item))
                        .collect::<Result<_, _>>()
                        .map(Value::Array)
                }
            }
        }
        other => Ok(other.clone()),
    }
}
