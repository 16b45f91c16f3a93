//! Owns the two operations on values that ownership needs: laying a configuration over a live value, and
//! taking fields out of a value.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{
    extract::{Shape, below, element_of, shape},
    path::Element,
    set::Set,
};
use crate::{
    field::{FieldError, FieldErrors},
    schema::{ListType, Schema, Trail},
};

/// Lays `config` over `live`: objects field by field, splitting lists element by element, anything else
/// is replaced.
pub(super) fn merge_map(
    schema: &Schema,
    mut live: Map<String, Value>,
    config: &Map<String, Value>,
) -> Map<String, Value> {
    for (name, value) in config {
        match live.get_mut(name) {
            Some(slot) => *slot = merge(below(schema, name), slot.take(), value),
            None => {
                live.insert(name.clone(), value.clone());
            }
        }
    }
    live
}

fn merge(schema: &Schema, live: Value, config: &Value) -> Value {
    let splits = shape(schema, config);
    if splits == Shape::Leaf || splits != shape(schema, &live) {
        return config.clone();
    }
    match (live, config) {
        (Value::Object(live), Value::Object(config)) => Value::Object(merge_map(schema, live, config)),
        (Value::Array(live), Value::Array(config)) => Value::Array(merge_list(schema, live, config)),
        (_, config) => config.clone(),
    }
}

/// Elements of both lists in an order that keeps the configuration's, and the live one's as well as can be.
fn merge_list(list: &Schema, live: Vec<Value>, config: &[Value]) -> Vec<Value> {
    let of = |items: &[Value]| -> Vec<Element> { items.iter().filter_map(|item| element_of(list, item)).collect() };
    let (ours, theirs) = (of(&live), of(config));
    if ours == theirs && ours.iter().collect::<BTreeSet<_>>().len() == ours.len() {
        return live.into_iter().zip(config).map(|(live, config)| merge(list.element(), live, config)).collect();
    }
    // A live element that comes twice is not merged into: the configuration's replaces both.
    let mut counts: BTreeMap<&Element, usize> = BTreeMap::new();
    for element in &ours {
        *counts.entry(element).or_default() += 1;
    }
    let configured: BTreeSet<&Element> = theirs.iter().collect();
    let mut shared = theirs.iter().filter(|element| counts.contains_key(element)).peekable();
    let mut first: BTreeMap<&Element, usize> = BTreeMap::new();
    for (index, element) in ours.iter().enumerate().rev() {
        first.insert(element, index);
    }
    let mut live: Vec<Option<Value>> = live.into_iter().map(Some).collect();
    let mut merged: BTreeSet<&Element> = BTreeSet::new();
    let mut result = Vec::with_capacity(live.len().max(config.len()));
    let (mut l, mut r) = (0, 0);
    while l < ours.len() || r < theirs.len() {
        if let (Some(mine), Some(their)) = (ours.get(l), theirs.get(r)) {
            // A shared element, but not the one whose turn it is: it comes where the configuration has it.
            let wrong_turn =
                mine != their && configured.contains(mine) && shared.peek().is_some_and(|next| *next != mine);
            if wrong_turn {
                l += 1;
                continue;
            }
        }
        if let Some(mine) = ours.get(l) {
            if !configured.contains(mine) {
                result.extend(live[l].take());
                l += 1;
                continue;
            }
            if merged.contains(mine) {
                l += 1;
                continue;
            }
        }
        if let Some(their) = theirs.get(r) {
            let alone = counts.get(their) == Some(&1);
            let base = first.get(their).filter(|_| alone).and_then(|index| live[*index].take());
            result.push(match base {
                Some(base) => merge(list.element(), base, &config[r]),
                None => config[r].clone(),
            });
            merged.insert(their);
            if shared.peek() == Some(&their) {
                shared.next();
            }
            r += 1;
        } else {
            l += 1;
        }
    }
    result
}

/// Takes every path of the set out of an object.
pub(super) fn remove(schema: &Schema, map: &mut Map<String, Value>, doomed: &Set) {
    for (element, node) in &*doomed.nodes {
        let Element::Field(name) = element else { continue };
        if node.member {
            map.shift_remove(&**name);
        } else if let Some(value) = map.get_mut(&**name) {
            remove_below(below(schema, name), value, &node.below);
        }
    }
}

fn remove_below(schema: &Schema, value: &mut Value, doomed: &Set) {
    match (shape(schema, value), value) {
        (Shape::Map, Value::Object(map)) => remove(schema, map, doomed),
        (Shape::List, Value::Array(items)) => items.retain_mut(|item| {
            let node = element_of(schema, item).and_then(|element| doomed.nodes.get(&element));
            match node {
                Some(node) if node.member => false,
                Some(node) => {
                    remove_below(schema.element(), item, &node.below);
                    true
                }
                None => true,
            }
        }),
        _ => {}
    }
}

/// What makes a configuration impossible to split: elements of list maps without a key, elements that come
/// twice, sets of anything but scalars.
pub(super) fn problems(schema: &Schema, config: &Map<String, Value>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    problems_of_map(schema, config, &Trail::Root, &mut errors);
    errors
}

fn problems_of_map(schema: &Schema, map: &Map<String, Value>, trail: &Trail<'_>, errors: &mut FieldErrors) {
    for (name, value) in map {
        match value {
            Value::Object(inner) if !below(schema, name).is_atomic_map() => {
                problems_of_map(below(schema, name), inner, &Trail::Field(trail, name), errors);
            }
            Value::Array(items) => problems_of_list(below(schema, name), items, &Trail::Field(trail, name), errors),
            _ => {}
        }
    }
}

fn problems_of_list(list: &Schema, items: &[Value], trail: &Trail<'_>, errors: &mut FieldErrors) {
    if *list.list_type() == ListType::Atomic || errors.len() > 20 {
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        let at = Trail::Index(trail, index);
        match element_of(list, item) {
            None => {
                let detail = match list.list_type() {
                    ListType::Map(keys) => {
                        format!("associative list with keys has an element that omits all key fields {keys:?}")
                    }
                    _ => "a set holds scalar values only".to_owned(),
                };
                errors.push(FieldError::invalid(&at.path(), item.clone(), detail));
            }
            Some(element) => {
                if let Some(twin) = seen.replace(element) {
                    let text = twin.to_string();
                    let detail = format!("duplicate entries for key {text}");
                    errors.push(FieldError::invalid(&at.path(), text, detail));
                }
            }
        }
        if let Value::Object(inner) = item {
            problems_of_map(list.element(), inner, &at, errors);
        }
    }
}
