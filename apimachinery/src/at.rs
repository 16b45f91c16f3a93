//! Owns [`At`], a value together with its path: what validation walks over. Never knows a kind.

use serde_json::{Map, Value};

use crate::Object;
use crate::field::{FieldError, FieldErrors, Path};

/// A value that may be absent, and where it is (or would be).
#[derive(Clone, Debug)]
pub struct At<'a> {
    /// None when it is absent or null.
    pub value: Option<&'a Value>,
    /// Where it is, or would be.
    pub path: Path,
}

impl<'a> At<'a> {
    /// A top-level field of an object.
    pub fn of(object: &'a Object, field: &str) -> At<'a> {
        At { value: object.0.get(field).filter(|v| !v.is_null()), path: Path::of(field) }
    }

    /// A value from elsewhere.
    pub fn new(value: Option<&'a Value>, path: Path) -> At<'a> {
        At { value, path }
    }

    /// A field of it.
    pub fn child(&self, field: &str) -> At<'a> {
        let value = self.value.and_then(|v| v.get(field)).filter(|v| !v.is_null());
        At { value, path: self.path.child(field) }
    }

    /// The elements of a list; none when it is absent.
    pub fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let path = self.path.clone();
        let items = self.value.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        items.iter().enumerate().map(move |(i, value)| At { value: Some(value), path: path.index(i) })
    }

    /// The entries of a map, each at `path[key]`.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
        let path = self.path.clone();
        self.map().into_iter().flatten().map(move |(k, v)| (k.as_str(), At { value: Some(v), path: path.key(k) }))
    }

    /// It as a map, when it is one.
    pub fn map(&self) -> Option<&'a Map<String, Value>> {
        self.value.and_then(Value::as_object)
    }

    /// It as a string; empty when it is none.
    pub fn str(&self) -> &'a str {
        self.value.and_then(Value::as_str).unwrap_or_default()
    }

    /// It as an integer, when it is one.
    pub fn int(&self) -> Option<i64> {
        self.value.and_then(Value::as_i64)
    }

    /// Whether it is `true`.
    pub fn bool(&self) -> bool {
        self.value.and_then(Value::as_bool).unwrap_or(false)
    }

    /// Elements of a list or map, bytes of a string, else 0.
    pub fn len(&self) -> usize {
        match self.value {
            Some(Value::Array(items)) => items.len(),
            Some(Value::Object(map)) => map.len(),
            Some(Value::String(text)) => text.len(),
            _ => 0,
        }
    }

    /// Absent, or an empty string, list or map.
    pub fn is_empty(&self) -> bool {
        match self.value {
            Some(Value::Number(_) | Value::Bool(_)) => false,
            _ => self.len() == 0,
        }
    }

    /// Whether it is there.
    pub fn present(&self) -> bool {
        self.value.is_some()
    }

    fn shown(&self) -> Value {
        self.value.cloned().unwrap_or(Value::Null)
    }

    // What is wrong with it.

    /// Says that its value cannot be.
    pub fn invalid(&self, errors: &mut FieldErrors, detail: impl Into<String>) {
        errors.push(FieldError::invalid(&self.path, self.shown(), detail));
    }

    /// Says that it may not be given.
    pub fn forbidden(&self, errors: &mut FieldErrors, detail: impl Into<String>) {
        errors.push(FieldError::forbidden(&self.path, detail));
    }

    /// Says that it must be given.
    pub fn missing(&self, errors: &mut FieldErrors, detail: impl Into<String>) {
        errors.push(FieldError::required(&self.path, detail));
    }

    /// Says that it is there twice.
    pub fn duplicate(&self, errors: &mut FieldErrors) {
        errors.push(FieldError::duplicate(&self.path, self.shown()));
    }

    /// Says which values there are.
    pub fn not_supported(&self, errors: &mut FieldErrors, supported: &[&str]) {
        errors.push(FieldError::not_supported(&self.path, self.shown(), supported));
    }

    /// Says so when it is empty; true when it is there.
    pub fn required(&self, errors: &mut FieldErrors) -> bool {
        if self.is_empty() {
            self.missing(errors, "");
        }
        !self.is_empty()
    }

    /// Checks a non-empty string.
    pub fn check(&self, errors: &mut FieldErrors, check: fn(&str) -> Vec<String>) {
        if !self.str().is_empty() {
            for detail in check(self.str()) {
                self.invalid(errors, detail);
            }
        }
    }

    /// Must be given and well-formed.
    pub fn require(&self, errors: &mut FieldErrors, check: fn(&str) -> Vec<String>) {
        if self.required(errors) {
            self.check(errors, check);
        }
    }

    /// If given, one of these.
    pub fn one_of(&self, errors: &mut FieldErrors, supported: &[&str]) {
        if !self.str().is_empty() && !supported.contains(&self.str()) {
            self.not_supported(errors, supported);
        }
    }

    /// If given, zero or more.
    pub fn non_negative(&self, errors: &mut FieldErrors) {
        if self.int().is_some_and(|n| n < 0) {
            self.invalid(errors, "must be greater than or equal to 0");
        }
    }

    /// If given, more than zero.
    pub fn positive(&self, errors: &mut FieldErrors) {
        if self.int().is_some_and(|n| n <= 0) {
            self.invalid(errors, "must be greater than 0");
        }
    }

    /// If given, between the two, inclusive.
    pub fn range(&self, errors: &mut FieldErrors, low: i64, high: i64) {
        if self.int().is_some_and(|n| n < low || n > high) {
            self.invalid(errors, format!("must be between {low} and {high}, inclusive"));
        }
    }

    /// A user or group id.
    pub fn id(&self, errors: &mut FieldErrors) {
        self.range(errors, 0, i64::from(i32::MAX));
    }
}
