//! Owns what CEL rules see: objects as CEL values, by their schema.

use std::sync::Arc;

use kube_cel::cel::objects::Key;
use kube_cel::cel::{Value as Cel, functions};
use serde_json::Value;

use super::{Additional, Schema, Type};
use crate::cel::values::{self, escape};

/// A JSON value as rules see it.
pub(super) fn convert(schema: &Schema, value: &Value) -> Cel {
    let node = schema.resolved();
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) => match (number.as_i64(), node.kind) {
            (_, Type::Number) => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
            (Some(int), _) => Cel::Int(int),
            (None, Type::Integer) => number.as_f64().map_or(Cel::Null, whole),
            (None, _) => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => convert_string(node, text),
        Value::Array(items) => Cel::List(Arc::new(items.iter().map(|item| convert(node.element(), item)).collect())),
        Value::Object(fields) => {
            let is_map = !matches!(node.additional, Additional::Nothing);
            let field = |(name, child): (&String, &Value)| {
                let below = node.field(name).unwrap_or_else(|| Schema::any());
                // Keys of maps are data; names of fields must be spelled as CEL identifiers.
                let name = if is_map { name.clone() } else { escape(name) };
                (Key::String(Arc::new(name)), convert(below, child))
            };
            values::map(fields.iter().map(field).collect())
        }
    }
}

/// An integral float (`1.0`) of an integer field.
fn whole(number: f64) -> Cel {
    // In range by the check of types; what is not is clamped, which a cast does.
    #[allow(clippy::cast_possible_truncation)]
    Cel::Int(number as i64)
}

fn convert_string(node: &Schema, text: &str) -> Cel {
    let shared = || Arc::new(text.to_owned());
    let special = match node.format.as_deref().filter(|_| node.kind == Type::String) {
        Some("date-time") => functions::time::timestamp(shared()).ok(),
        Some("date") => functions::time::timestamp(Arc::new(format!("{text}T00:00:00Z"))).ok(),
        Some("duration") => functions::time::duration(shared()).ok(),
        Some("byte") => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.decode(text).ok().map(|bytes| Cel::Bytes(Arc::new(bytes)))
        }
        _ => None,
    };
    special.unwrap_or_else(|| Cel::String(shared()))
}
