//! Owns how a value splits into fields: which it consists of, and which differ between two values.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{path::Element, set::Set};
use crate::schema::{ListType, Schema, element_key};

/// How a value splits.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Shape {
    /// Not at all: scalars, and what the schema says is one value.
    Leaf,
    /// Into its fields or entries.
    Map,
    /// Into its elements, each known by itself or its keys.
    List,
}

/// How a value splits, by its schema and, where that is silent, by itself: unknown objects split into
/// their fields, unknown lists do not split.
pub(super) fn shape(schema: &Schema, value: &Value) -> Shape {
    match value {
        Value::Object(_) if !schema.is_atomic_map() => Shape::Map,
        Value::Array(items) if *schema.list_type() != ListType::Atomic => {
            let splits = items.iter().all(|item| is_known(schema, item));
            if splits { Shape::List } else { Shape::Leaf }
        }
        _ => Shape::Leaf,
    }
}

/// Whether an element of a list can be told from others: what [`element_of`] answers, without the answer.
fn is_known(list: &Schema, item: &Value) -> bool {
    match list.list_type() {
        ListType::Atomic => false,
        ListType::Set => !matches!(item, Value::Null | Value::Array(_) | Value::Object(_)),
        ListType::Map(keys) => item.as_object().is_some_and(|map| {
            let given = |key: &str| map.get(key).is_some_and(|value| !value.is_null());
            let defaulted = |key: &str| list.element().property(key).is_some_and(|p| p.default.is_some());
            keys.iter().any(|key| given(key) || defaulted(key))
        }),
    }
}

/// The path element by which an element of a list is known; `None` when it cannot be told from others.
pub(super) fn element_of(list: &Schema, item: &Value) -> Option<Element> {
    match list.list_type() {
        ListType::Atomic => None,
        ListType::Set => match item {
            Value::Null | Value::Array(_) | Value::Object(_) => None,
            scalar => Some(Element::Value(scalar.clone())),
        },
        ListType::Map(_) => element_key(list, item).map(Element::key),
    }
}

/// The schema of a field or entry.
pub(super) fn below<'a>(schema: &'a Schema, name: &str) -> &'a Schema {
    schema.field(name).unwrap_or_else(|| Schema::any())
}

/// Every field a value consists of.
pub(super) fn fields(schema: &Schema, value: &Value) -> Set {
    let (_, set) = node(schema, value);
    set
}

/// Every field an object consists of.
pub(super) fn fields_of_map(schema: &Schema, map: &Map<String, Value>) -> Set {
    let resolved = schema.resolved();
    let mut set = Set::default();
    for (name, child) in map {
        let (leaf, inner) = node(below(schema, name), child);
        let empty = child.is_null() || child.as_object().is_some_and(Map::is_empty);
        let unnamed = !resolved.properties.contains_key(name.as_str());
        set.put(Element::field(name), leaf || empty || unnamed, inner);
    }
    set
}

/// Whether the value is a field itself, and the fields below it.
fn node(schema: &Schema, value: &Value) -> (bool, Set) {
    match (shape(schema, value), value) {
        (Shape::Map, Value::Object(map)) => (false, fields_of_map(schema, map)),
        (Shape::List, Value::Array(items)) => {
            let mut set = Set::default();
            for (element, items) in grouped(schema, items) {
                // Duplicates are owned as one, without a look inside.
                let inner = match items[..] {
                    [item] => node(schema.element(), item).1,
                    _ => Set::default(),
                };
                set.put(element, true, inner);
            }
            (false, set)
        }
        _ => (true, Set::default()),
    }
}

fn grouped<'a>(list: &Schema, items: &'a [Value]) -> BTreeMap<Element, Vec<&'a Value>> {
    let mut groups: BTreeMap<Element, Vec<&Value>> = BTreeMap::new();
    for item in items {
        if let Some(element) = element_of(list, item) {
            groups.entry(element).or_default().push(item);
        }
    }
    groups
}

/// What differs between two values.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: Set,
    pub(super) removed: Set,
    pub(super) modified: Set,
}

impl Comparison {
    fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.modified.is_empty()
    }

    fn put(&mut self, element: Element, change: Change) {
        let Change { own, below } = change;
        self.added.put(element.clone(), own == Some(Kind::Added), below.added);
        self.removed.put(element.clone(), own == Some(Kind::Removed), below.removed);
        self.modified.put(element, own == Some(Kind::Modified), below.modified);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Added,
    Removed,
    Modified,
}

struct Change {
    own: Option<Kind>,
    below: Comparison,
}

/// What differs between an object before and after.
pub(super) fn compare(schema: &Schema, old: &Map<String, Value>, new: &Map<String, Value>) -> Comparison {
    let mut comparison = Comparison::default();
    for (name, value) in new {
        if let Some(change) = change(below(schema, name), old.get(name), Some(value)) {
            comparison.put(Element::field(name), change);
        }
    }
    for (name, value) in old {
        if !new.contains_key(name)
            && let Some(change) = change(below(schema, name), Some(value), None)
        {
            comparison.put(Element::field(name), change);
        }
    }
    comparison
}

/// `None` when there is no difference.
fn change(schema: &Schema, old: Option<&Value>, new: Option<&Value>) -> Option<Change> {
    // Both there and both splitting into fields: the fields tell, one look at each is enough.
    if let (Some(Value::Object(old)), Some(Value::Object(new))) = (old, new)
        && !schema.is_atomic_map()
        && !(old.is_empty() && new.is_empty())
    {
        let below = compare(schema, old, new);
        return (!below.is_empty()).then_some(Change { own: None, below });
    }
    if old == new {
        return None;
    }
    let shape_of = |value: Option<&Value>| value.filter(|v| !v.is_null()).map(|v| shape(schema, v));
    let shape = match (shape_of(old), shape_of(new)) {
        (Some(old), Some(new)) if old != new => Shape::Leaf,
        (Some(shape), _) | (None, Some(shape)) => shape,
        (None, None) => Shape::Leaf,
    };
    let vacant = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    };
    let own = match (old, new) {
        (None, _) => Some(Kind::Added),
        (_, None) => Some(Kind::Removed),
        _ => None,
    };
    // Nothing against nothing, said differently (null, {}, absent): the value itself differs.
    if shape == Shape::Leaf || (vacant(old) && vacant(new)) {
        return Some(Change { own: own.or(Some(Kind::Modified)), below: Comparison::default() });
    }
    let below = match shape {
        Shape::Map => {
            let nothing = Map::new();
            match (old.and_then(Value::as_object), new.and_then(Value::as_object)) {
                (Some(old), Some(new)) => compare(schema, old, new),
                (None, Some(new)) => compare(schema, &nothing, new),
                (Some(old), None) => compare(schema, old, &nothing),
                (None, None) => Comparison::default(),
            }
        }
        _ => compare_lists(schema, old.and_then(Value::as_array), new.and_then(Value::as_array)),
    };
    Some(Change { own, below })
}

fn put_if(comparison: &mut Comparison, element: Element, change: Option<Change>) {
    if let Some(change) = change {
        comparison.put(element, change);
    }
}

fn compare_lists(list: &Schema, old: Option<&Vec<Value>>, new: Option<&Vec<Value>>) -> Comparison {
    let mut before = grouped(list, old.map_or(&[], Vec::as_slice));
    let after = grouped(list, new.map_or(&[], Vec::as_slice));
    let mut comparison = Comparison::default();
    for (element, items) in after {
        let olds = before.remove(&element).unwrap_or_default();
        let of = |own| Change { own: Some(own), below: Comparison::default() };
        match (&olds[..], &items[..]) {
            ([], [item]) => put_if(&mut comparison, element, change(list.element(), None, Some(item))),
            ([old], [item]) => put_if(&mut comparison, element, change(list.element(), Some(old), Some(item))),
            ([_, _, ..], [item]) => {
                put_if(&mut comparison, element.clone(), change(list.element(), None, Some(item)));
                comparison.put(element, of(Kind::Removed));
            }
            ([old], [_, ..]) => {
                put_if(&mut comparison, element.clone(), change(list.element(), Some(old), None));
                comparison.put(element, of(Kind::Added));
            }
            ([], _) => comparison.put(element, of(Kind::Added)),
            (olds, items) if olds != items => comparison.put(element, of(Kind::Modified)),
            _ => {}
        }
    }
    for (element, olds) in before {
        match olds[..] {
            [old] => put_if(&mut comparison, element, change(list.element(), Some(old), None)),
            _ => comparison.put(element, Change { own: Some(Kind::Removed), below: Comparison::default() }),
        }
    }
    comparison
}
