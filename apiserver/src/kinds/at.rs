//! Owns [`At`], a value together with its path: what validation walks over. Never knows a kind.

use proa_apimachinery::Object;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use serde_json::{Map, Value};

/// A value that may be absent, and where it is (or would be).
#[derive(Clone, Debug)]
pub(super) struct At<'a> {
    pub(super) value: Option<&'a Value>,
    pub(super) path: Path,
}

impl<'a> At<'a> {
    /// A top-level field of an object.
    pub(super) fn of(object: &'a Object, field: &str) -> At<'a> {
        At { value: object.0.get(field).filter(|v| !v.is_null()), path: Path::of(field) }
    }

    pub(super) fn new(value: Option<&'a Value>, path: Path) -> At<'a> {
        At { value, path }
    }

    pub(super) fn child(&self, field: &str) -> At<'a> {
        let value = self.value.and_then(|v| v.get(field)).filter(|v| !v.is_null());
        At { value, path: self.path.child(field) }
    }

    /// The elements of a list; none when it is absent.
    pub(super) fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let path = self.path.clone();
        let items = self.value.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        items.iter().enumerate().map(move |(i, value)| At { value: Some(value), path: path.index(i) })
    }

    /// The entries of a map, each at `path[key]`.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
        let path = self.path.clone();
        self.map().into_iter().flatten().map(move |(k, v)| (k.as_str(), At { value: Some(v), path: path.key(k) }))
    }

    pub(super) fn map(&self) -> Option<&'a Map<String, Value>> {
        self.value.and_then(Value::as_object)
    }

    pub(super) fn str(&self) -> &'a str {
        self.value.and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn int(&self) -> Option<i64> {
        self.value.and_then(Value::as_i64)
    }

    pub(super) fn bool(&self) -> bool {
        self.value.and_then(Value::as_bool).unwrap_or(false)
    }

    pub(super) fn len(&self) -> usize {
        match self.value {
            Some(Value::Array(items)) => items.len(),
            Some(Value::Object(map)) => map.len(),
            Some(Value::String(text)) => text.len(),
            _ => 0,
        }
    }

    /// Absent, or an empty string, list or map.
    pub(super) fn is_empty(&self) -> bool {
        match self.value {
            Some(Value::Number(_) | Value::Bool(_)) => false,
            _ => self.len() == 0,
        }
    }

    pub(super) fn present(&self) -> bool {
        self.value.is_some()
    }

    fn shown(&self) -> Value {
        self.value.cloned().unwrap_or(Value::Null)
    }

    // What is wrong with it.

    pub(super) fn invalid(&self, errors: &mut FieldErrors, detail: impl Into<String>) {
        errors.push(FieldError::invalid(&self.path, self.shown(), detail));
    }

    pub(super) fn forbidden(&self, errors: &mut FieldErrors, detail: impl Into<String>) {
        errors.push(FieldError::forbidden(&self.path, detail));
    }

    pub(super) fn missing(&self, errors: &mut FieldErrors, detail: impl Into<String>) {
        errors.push(FieldError::required(&self.path, detail));
    }

    pub(super) fn duplicate(&self, errors: &mut FieldErrors) {
        errors.push(FieldError::duplicate(&self.path, self.shown()));
    }

    pub(super) fn not_supported(&self, errors: &mut FieldErrors, supported: &[&str]) {
        errors.push(FieldError::not_supported(&self.path, self.shown(), supported));
    }

    /// Says so when it is empty; true when it is there.
    pub(super) fn required(&self, errors: &mut FieldErrors) -> bool {
        if self.is_empty() {
            self.missing(errors, "");
        }
        !self.is_empty()
    }

    /// Checks a non-empty string.
    pub(super) fn check(&self, errors: &mut FieldErrors, check: fn(&str) -> Vec<String>) {
        if !self.str().is_empty() {
            for detail in check(self.str()) {
                self.invalid(errors, detail);
            }
        }
    }

    /// Must be given and well-formed.
    pub(super) fn require(&self, errors: &mut FieldErrors, check: fn(&str) -> Vec<String>) {
        if self.required(errors) {
            self.check(errors, check);
        }
    }

    /// If given, one of these.
    pub(super) fn one_of(&self, errors: &mut FieldErrors, supported: &[&str]) {
        if !self.str().is_empty() && !supported.contains(&self.str()) {
            self.not_supported(errors, supported);
        }
    }

    pub(super) fn non_negative(&self, errors: &mut FieldErrors) {
        if self.int().is_some_and(|n| n < 0) {
            self.invalid(errors, "must be greater than or equal to 0");
        }
    }

    pub(super) fn positive(&self, errors: &mut FieldErrors) {
        if self.int().is_some_and(|n| n <= 0) {
            self.invalid(errors, "must be greater than 0");
        }
    }

    pub(super) fn range(&self, errors: &mut FieldErrors, low: i64, high: i64) {
        if self.int().is_some_and(|n| n < low || n > high) {
            self.invalid(errors, format!("must be between {low} and {high}, inclusive"));
        }
    }

    /// A user or group id.
    pub(super) fn id(&self, errors: &mut FieldErrors) {
        self.range(errors, 0, i64::from(i32::MAX));
    }
}

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
