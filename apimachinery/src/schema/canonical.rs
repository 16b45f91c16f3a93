//! Owns the one form values take before they are checked and stored: what Kubernetes' decoder followed by
//! its encoder makes of them. Clients decode what is stored by type, so two spellings of a value must not
//! survive here. What has the wrong type is left as it is, for [`Schema::check`] to refuse.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Additional, Schema, Type, builtin, formats};
use crate::quantity::Quantity;

const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";

impl Schema {
    /// Brings every value into its canonical form: quantities, times and base64 as Kubernetes prints them,
    /// whole numbers of custom resources without a fraction, and the empty value for a null where a
    /// built-in kind's list or map holds values of a type.
    pub fn canonicalize(&self, value: &mut Value) {
        canonicalize(self, value, false, false);
    }

    /// Whether this is the definition of a time.
    pub(super) fn is_time(&self) -> bool {
        matches!(self.name.as_deref(), Some(TIME | MICRO_TIME))
    }
}

/// `below`: not the object itself, whose kind has been looked at.
fn canonicalize(schema: &Schema, value: &mut Value, builtin: bool, below: bool) {
    let node = schema.resolved();
    let builtin = builtin || node.name.is_some();
    match value {
        Value::Object(map) => {
            if below {
                state_kind(node, map);
            }
            for (name, child) in map.iter_mut() {
                if let Some(property) = node.properties.get(name.as_str()) {
                    canonicalize(property, child, builtin, true);
                } else if let Additional::Schema(schema) = &node.additional {
                    element(schema, child, builtin);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &node.items {
                items.iter_mut().for_each(|item| element(schema, item, builtin));
            }
        }
        Value::String(text) => {
            if let Some(canonical) = text_of(node, text, builtin) {
                *text = canonical;
            }
        }
        Value::Number(number) => match node.kind {
            Type::Quantity => {
                if let Ok(quantity) = Quantity::parse(&number.to_string()) {
                    *value = quantity.to_string().into();
                }
            }
            // A custom resource's numbers pass through Go's float64, which prints `3.0` as `3`.
            Type::Integer | Type::Number | Type::IntOrString if !builtin => {
                if let Some(whole) = number.as_f64().filter(|_| number.is_f64()).and_then(crate::json::whole) {
                    *value = whole.into();
                }
            }
            _ => {}
        },
        Value::Null | Value::Bool(_) => {}
    }
}

/// A whole object inside another (a claim template of a StatefulSet) is of its field's kind, whatever it calls itself.
fn state_kind(node: &Schema, map: &mut Map<String, Value>) {
    let called = ["apiVersion", "kind"].into_iter().any(|field| map.contains_key(field));
    let kind = node.name.as_deref().filter(|_| called).and_then(builtin::group_version_kind);
    let Some((group, version, kind)) = kind else { return };
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    for (field, right) in [("apiVersion", api_version), ("kind", kind)] {
        if let Some(Value::String(text)) = map.get_mut(field) {
            *text = right;
        }
    }
}

/// Go has no null among the elements of a `[]string` or the values of a `map[string]string`: its decoder
/// leaves the type's zero value there.
fn element(schema: &Schema, value: &mut Value, builtin: bool) {
    let node = schema.resolved();
    if value.is_null() && (builtin || node.name.is_some()) {
        *value = match node.kind {
            Type::Any => Value::Null,
            Type::Object => json!({}),
            Type::Array => json!([]),
            Type::String => json!(""),
            Type::Integer | Type::Number | Type::IntOrString => json!(0),
            Type::Boolean => json!(false),
            Type::Quantity => json!("0"),
        };
        return;
    }
    canonicalize(schema, value, builtin, true);
}

/// The canonical form of a string, where it is another one.
fn text_of(node: &Schema, text: &str, builtin: bool) -> Option<String> {
    let canonical = match (node.kind, node.name.as_deref(), node.format.as_deref()) {
        (Type::Quantity, ..) => Quantity::parse(text).ok()?.to_string(),
        (Type::String, Some(TIME), _) => time(text, "%Y-%m-%dT%H:%M:%SZ")?,
        (Type::String, Some(MICRO_TIME), _) => time(text, "%Y-%m-%dT%H:%M:%S%.6fZ")?,
        // Go reads base64 over line breaks and writes it without.
        (Type::String, _, Some("byte")) if builtin => text.replace(['\n', '\r'], ""),
        _ => return None,
    };
    (canonical != text).then_some(canonical)
}

fn time(text: &str, format: &str) -> Option<String> {
    let at: Timestamp = formats::is_date_time(text).then(|| text.parse().ok()).flatten()?;
    jiff::fmt::strtime::format(format, at).ok()
}
