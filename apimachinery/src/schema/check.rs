//! Owns the check every decoded object passes before anything looks at it: values of the right JSON
//! types, and which fields the schema does not know. Never judges values beyond their type and format.

use serde_json::{Number, Value};

use super::{Additional, Schema, Type, formats};
use crate::field::{FieldError, FieldErrors, Path};
use crate::json;

/// What [`Schema::check`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checked {
    /// Values of a wrong type. An object with any must not be stored.
    pub errors: FieldErrors,
    /// Fields the schema does not know, as `spec.containers[0].foo`: an error under strict field
    /// validation, a warning under `Warn`; pruned in any case.
    pub unknown: Vec<Path>,
    /// Fields the schema requires and the object lacks. Kubernetes' decoder does not look at these for
    /// built-in kinds; their validation does, so this is for kinds without one of their own.
    pub missing: FieldErrors,
    /// Those among the missing that are times (`lastTransitionTime` of a condition). Other types have a zero
    /// value that clients read; a time has none, so nobody may leave it out.
    pub unset_times: FieldErrors,
}

/// A path under construction: costs nothing until someone asks for its text.
#[derive(Clone, Copy)]
pub(crate) enum Trail<'a> {
    Root,
    Field(&'a Trail<'a>, &'a str),
    Index(&'a Trail<'a>, usize),
}

impl Trail<'_> {
    pub(crate) fn path(&self) -> Path {
        match self {
            Trail::Root => Path::root(),
            Trail::Field(parent, name) => parent.path().child(name),
            Trail::Index(parent, index) => parent.path().index(*index),
        }
    }
}

/// At most this many findings of each sort are reported: a hostile object must not make a huge answer.
const MOST: usize = 100;

impl Schema {
    /// Types and unknown fields of a whole object.
    pub fn check(&self, value: &Value) -> Checked {
        let mut checked = Checked::default();
        check(self, value, false, &Trail::Root, &mut checked);
        checked
    }
}

fn check(schema: &Schema, value: &Value, builtin: bool, trail: &Trail<'_>, checked: &mut Checked) {
    let node = schema.resolved();
    let builtin = builtin || node.name.is_some();
    // Null reads as absent; where a custom resource's schema forbids it, value validation says so.
    if value.is_null() {
        return;
    }
    if !type_fits(node.kind, value) {
        if checked.errors.len() < MOST {
            checked.errors.push(wrong_type(trail, node.kind, value));
        }
        return;
    }
    match value {
        Value::Object(map) => {
            for (name, child) in map {
                let below = Trail::Field(trail, name);
                if let Some(property) = node.properties.get(name.as_str()) {
                    check(property, child, builtin, &below, checked);
                } else if let Additional::Schema(schema) = &node.additional {
                    check(schema, child, builtin, &below, checked);
                } else if node.field(name).is_none()
                    && !(node.embedded_resource && matches!(name.as_str(), "apiVersion" | "kind" | "metadata"))
                    && checked.unknown.len() < MOST
                {
                    checked.unknown.push(below.path());
                }
            }
            let absent = |name: &str| map.get(name).is_none_or(|value| builtin && value.is_null());
            for required in node.required.iter().filter(|name| absent(name)) {
                if checked.missing.len() >= MOST {
                    break;
                }
                let error = FieldError::required(&trail.path().child(required), "");
                if builtin && node.field(required).is_some_and(|field| field.resolved().is_time()) {
                    checked.unset_times.push(error.clone());
                }
                checked.missing.push(error);
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &node.items {
                for (index, item) in items.iter().enumerate() {
                    check(schema, item, builtin, &Trail::Index(trail, index), checked);
                }
            }
        }
        Value::String(text) => {
            let problem = match node.format.as_deref() {
                // Only built-ins: for custom resources formats belong to value validation.
                Some(format) if builtin => formats::check_decoded(format, text),
                _ if node.kind == Type::Quantity => crate::quantity::Quantity::parse(text).err().map(|e| e.to_string()),
                _ => None,
            };
            if let Some(detail) = problem {
                checked.errors.push(FieldError::invalid(&trail.path(), text.as_str(), detail));
            }
        }
        Value::Number(number) => {
            let wanted = match (node.kind, node.format.as_deref()) {
                (Type::Integer, Some("int32")) => "int32",
                (Type::Integer, _) => "int64",
                // Go reads it into the int32 of an `intstr.IntOrString`.
                (Type::IntOrString, _) if builtin => "int32",
                _ => return,
            };
            if !is_of_width(number, wanted, builtin) {
                let detail = format!("{} in body must be of type {wanted}: {number}", trail.path());
                checked.errors.push(FieldError::type_invalid(&trail.path(), number.to_string(), detail));
            }
        }
        _ => {}
    }
}

/// Whether a value that is not null is of the type.
pub(super) fn type_fits(kind: Type, value: &Value) -> bool {
    match kind {
        Type::Any => true,
        Type::Object => value.is_object(),
        Type::Array => value.is_array(),
        Type::String => value.is_string(),
        Type::Integer => is_integer(value),
        Type::Number => value.is_number(),
        Type::Boolean => value.is_boolean(),
        Type::IntOrString => value.is_string() || is_integer(value),
        Type::Quantity => value.is_string() || value.is_number(),
    }
}

/// Go's decoder takes no `1.0` for an integer ("cannot unmarshal number 1.0 into Go value of type int32");
/// JSON Schema, which custom resources are held to, does.
fn is_of_width(number: &Number, wanted: &str, builtin: bool) -> bool {
    let whole = number.as_i64().or_else(|| number.as_f64().filter(|_| !builtin).and_then(json::whole));
    whole.is_some_and(|whole| wanted != "int32" || i32::try_from(whole).is_ok())
}

/// JSON Schema calls `1.0` an integer.
fn is_integer(value: &Value) -> bool {
    match value {
        Value::Number(n) => n.is_i64() || n.is_u64() || n.as_f64().is_some_and(|f| f.fract() == 0.0),
        _ => false,
    }
}

/// The name of a value's JSON type.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The error for a value of the wrong type, in the words of Kubernetes' schema validation.
pub(super) fn wrong_type(trail: &Trail<'_>, wanted: Type, value: &Value) -> FieldError {
    let got = type_name(value);
    let path = trail.path();
    let shown = if path.is_root() { "<root>" } else { path.as_str() };
    let detail = format!("{shown} in body must be of type {}: \"{got}\"", wanted.name());
    FieldError::type_invalid(&path, got, detail)
}
