//! Owns the small changes strategies make to objects. Never knows a kind.

use proa_apimachinery::Object;
pub(super) use proa_apimachinery::at::At;
use serde_json::{Map, Value};

/// Sets a field that is absent, null or an empty string.
pub(super) fn or_set(map: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    let unset = match map.get(field) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if unset {
        map.insert(field.to_owned(), value.into());
    }
}

/// The map at a field, if it is one.
pub(super) fn map_at<'a>(map: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Map<String, Value>> {
    map.get_mut(field).and_then(Value::as_object_mut)
}

/// The maps in the list at a field.
pub(super) fn maps_at<'a>(
    map: &'a mut Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// The object's spec, made when absent.
pub(super) fn spec_mut(object: &mut Object) -> &mut Map<String, Value> {
    map_in(&mut object.0, "spec")
}

/// The map at a field, made when absent; types were checked by the schema before.
pub(super) fn map_in<'a>(map: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    or_set(map, field, Map::new());
    if !map.get(field).is_some_and(Value::is_object) {
        map.insert(field.to_owned(), Value::Object(Map::new()));
    }
    match map.get_mut(field) {
        Some(Value::Object(map)) => map,
        _ => unreachable!("made an object just above"),
    }
}
