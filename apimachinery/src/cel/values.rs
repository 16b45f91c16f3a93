//! Owns values: JSON as expressions see it and back, and what the types of values are called.

use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::cel::Value as Cel;
use kube_cel::cel::objects::{Key, Map as CelMap, Opaque, OptionalValue};
use serde_json::{Map, Value};

use super::functions;
use super::made::Made;
use super::types::Type;

/// A type as a value: `type(x) == string`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kind(pub String);

impl Opaque for Kind {
    fn runtime_type_name(&self) -> &str {
        "type"
    }
}

/// The types expressions may name.
const TYPE_NAMES: [&str; 13] = [
    "bool",
    "bytes",
    "double",
    "google.protobuf.Duration",
    "google.protobuf.Timestamp",
    "int",
    "list",
    "map",
    "null_type",
    "optional_type",
    "string",
    "type",
    "uint",
];

/// Whether this names a type.
pub(super) fn is_type_name(name: &str) -> bool {
    TYPE_NAMES.contains(&name)
}

/// The name of a value's type.
pub(super) fn type_name(value: &Cel) -> &str {
    match value {
        Cel::List(_) => "list",
        Cel::Map(_) => "map",
        Cel::Int(_) => "int",
        Cel::UInt(_) => "uint",
        Cel::Float(_) => "double",
        Cel::String(_) => "string",
        Cel::Bytes(_) => "bytes",
        Cel::Bool(_) => "bool",
        Cel::Duration(_) => "google.protobuf.Duration",
        Cel::Timestamp(_) => "google.protobuf.Timestamp",
        Cel::Null => "null_type",
        Cel::Opaque(opaque) => match opaque.downcast_ref::<Made>() {
            Some(made) => &made.name,
            None => opaque.runtime_type_name(),
        },
        Cel::Function(..) => "function",
    }
}

/// The type of a constant.
pub(super) fn type_of(value: &Cel) -> Type<'static> {
    match value {
        Cel::Int(_) => Type::Int,
        Cel::UInt(_) => Type::Uint,
        Cel::Float(_) => Type::Double,
        Cel::String(_) => Type::String,
        Cel::Bytes(_) => Type::Bytes,
        Cel::Bool(_) => Type::Bool,
        Cel::Null => Type::Null,
        _ => Type::Dyn,
    }
}

/// Text as a value.
pub(super) fn text(text: impl Into<String>) -> Cel {
    Cel::String(Arc::new(text.into()))
}

/// A list as a value.
pub(super) fn list(items: Vec<Cel>) -> Cel {
    Cel::List(Arc::new(items))
}

/// A map as a value.
pub(crate) fn map(entries: HashMap<Key, Cel>) -> Cel {
    Cel::Map(CelMap { map: Arc::new(entries) })
}

/// An optional as a value.
pub(crate) fn optional(value: Option<Cel>) -> Cel {
    Cel::Opaque(Arc::new(value.map_or_else(OptionalValue::none, OptionalValue::of)))
}

/// What an optional holds; none when the value is no optional.
pub(super) fn as_optional(value: &Cel) -> Option<Option<&Cel>> {
    let Cel::Opaque(opaque) = value else { return None };
    opaque.downcast_ref::<OptionalValue>().map(OptionalValue::value)
}

/// JSON as expressions see it where no schema says more.
pub fn from_json(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) => match number.as_i64() {
            Some(int) => Cel::Int(int),
            None => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(string) => text(string.as_str()),
        Value::Array(items) => list(items.iter().map(from_json).collect()),
        Value::Object(fields) => {
            map(fields.iter().map(|(name, child)| (Key::from(name.clone()), from_json(child))).collect())
        }
    }
}

/// A value as JSON.
///
/// # Errors
///
/// When JSON has nothing like it, or it is an object that says another type than its place has.
pub fn to_json(value: &Cel) -> Result<Value, String> {
    Ok(match value {
        Cel::Null => Value::Null,
        Cel::Bool(flag) => (*flag).into(),
        Cel::Int(int) => (*int).into(),
        Cel::UInt(int) => (*int).into(),
        Cel::Float(number) => (*number).into(),
        Cel::String(string) => string.as_str().into(),
        Cel::Bytes(bytes) => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.encode(bytes.as_slice()).into()
        }
        Cel::Duration(_) | Cel::Timestamp(_) => to_json(&functions::library("string", false, vec![value.clone()])?)?,
        Cel::List(items) => items.iter().map(to_json).collect::<Result<Vec<_>, _>>()?.into(),
        Cel::Map(entries) => {
            // The order of keys says nothing: one of them all the same, so that a mutation is the same twice.
            let mut sorted: Vec<_> = entries.map.iter().collect();
            sorted.sort_by_key(|(key, _)| *key);
            let mut fields = Map::new();
            for (key, value) in sorted {
                let Key::String(name) = key else { return Err(format!("the key {key} is not a string")) };
                fields.insert(name.to_string(), to_json(value)?);
            }
            Value::Object(fields)
        }
        Cel::Opaque(opaque) => match opaque.downcast_ref::<Made>() {
            Some(made) => made.to_json()?,
            None => return Err(format!("a value of type {} cannot be part of an object", type_name(value))),
        },
        Cel::Function(..) => return Err("a function cannot be part of an object".to_owned()),
    })
}

/// The words fields may be called and variables not (documentation of `x-kubernetes-validations`, escaping).
const RESERVED: [&str; 20] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
];

const ESCAPES: [(&str, &str); 4] = [("__underscores__", "__"), ("__dot__", "."), ("__dash__", "-"), ("__slash__", "/")];

/// A field's name spelled as a CEL identifier.
pub(crate) fn escape(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    if !name.contains(['.', '-', '/']) && !name.contains("__") {
        return name.to_owned();
    }
    ESCAPES.iter().fold(name.to_owned(), |name, (escaped, plain)| name.replace(plain, escaped))
}

/// The name of the field an identifier spells.
pub(super) fn unescape(name: &str) -> String {
    if !name.contains("__") {
        return name.to_owned();
    }
    let inner = name.strip_prefix("__").and_then(|name| name.strip_suffix("__"));
    if let Some(word) = inner.filter(|word| RESERVED.contains(word)) {
        return word.to_owned();
    }
    let (mut plain, mut rest) = (String::new(), name);
    while let Some(at) = rest.find("__") {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let (escaped, meant) =
            ESCAPES.into_iter().find(|(escaped, _)| rest.starts_with(escaped)).unwrap_or(("__", "__"));
        plain.push_str(meant);
        rest = &rest[escaped.len()..];
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_documented_and_back() {
        for (name, escaped) in [
            ("plain", "plain"),
            ("my_field", "my_field"),
            ("namespace", "__namespace__"),
            ("a-b", "a__dash__b"),
            ("a.b/c", "a__dot__b__slash__c"),
            ("a__b", "a__underscores__b"),
            ("a__dash__b", "a__underscores__dash__underscores__b"),
        ] {
            assert_eq!(escape(name), escaped);
            assert_eq!(unescape(escaped), name);
        }
    }
}
