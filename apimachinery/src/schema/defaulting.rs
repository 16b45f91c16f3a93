//! Owns what the server changes in an object before it looks at it: unknown fields are pruned, nulls
//! read as absent, defaults are filled in (KEP-1904 and the API documentation on pruning and defaulting).

use serde_json::{Map, Value};

use super::{Additional, ListType, Schema, Type};

impl Schema {
    /// Drops fields the schema does not know. In built-in kinds, nulls go as well: Kubernetes' decoder
    /// reads them as absent.
    pub fn prune(&self, value: &mut Value) {
        prune(self, value, false);
    }

    /// Fills in the defaults of absent fields; nulls of fields that are not nullable count as absent.
    pub fn default(&self, value: &mut Value) {
        fill(self, value, false);
    }
}

fn prune(schema: &Schema, value: &mut Value, builtin: bool) {
    let node = schema.resolved();
    let builtin = builtin || node.name.is_some();
    match value {
        Value::Object(map) => {
            let keeps_unknown = node.preserve_unknown || node.kind == Type::Any;
            map.retain(|name, child| {
                if builtin && child.is_null() && !matches!(node.additional, Additional::Anything) {
                    return false;
                }
                match (node.properties.get(name.as_str()), &node.additional) {
                    (Some(property), _) => prune(property, child, builtin),
                    (None, Additional::Schema(schema)) => prune(schema, child, builtin),
                    (None, Additional::Anything) => {}
                    (None, Additional::Nothing) => {
                        let of_type = matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
                        return keeps_unknown || (node.embedded_resource && of_type);
                    }
                }
                true
            });
        }
        Value::Array(items) => {
            if let Some(schema) = &node.items {
                items.iter_mut().for_each(|item| prune(schema, item, builtin));
            }
        }
        _ => {}
    }
}

fn fill(schema: &Schema, value: &mut Value, builtin: bool) {
    let node = schema.resolved();
    let builtin = builtin || node.name.is_some();
    match value {
        Value::Object(map) => {
            if !builtin {
                map.retain(|name, child| {
                    let property = node.properties.get(name.as_str()).map(Schema::resolved);
                    !child.is_null() || property.is_none_or(|p| p.nullable || p.kind == Type::Any)
                });
            }
            for (name, property) in &node.properties {
                if let Some(default) = property.default.as_ref().filter(|_| !map.contains_key(&**name)) {
                    map.insert(name.to_string(), default.clone());
                }
            }
            for (name, child) in map.iter_mut() {
                match (node.properties.get(name.as_str()), &node.additional) {
                    (Some(property), _) => fill(property, child, builtin),
                    (None, Additional::Schema(schema)) => {
                        fill_null(schema, child);
                        fill(schema, child, builtin);
                    }
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &node.items {
                for item in items {
                    fill_null(schema, item);
                    fill(schema, item, builtin);
                }
            }
        }
        _ => {}
    }
}

/// A null element of a list or map takes the element's default, when null is not allowed there.
fn fill_null(schema: &Schema, value: &mut Value) {
    let node = schema.resolved();
    if let (true, false, Some(default)) = (value.is_null(), node.nullable, &node.default) {
        *value = default.clone();
    }
}

/// The key of an element of a list map: its key fields, defaults filled in. `None` when it has none of
/// them, or is no object.
pub(crate) fn element_key<'a>(list: &'a Schema, element: &'a Value) -> Option<Vec<(&'a str, &'a Value)>> {
    let ListType::Map(keys) = list.list_type() else { return None };
    let map: &Map<String, Value> = element.as_object()?;
    let of_key = |key: &'a str| {
        let value = map.get(key).filter(|v| !v.is_null());
        let value = value.or_else(|| list.element().property(key).and_then(|p| p.default.as_ref()))?;
        Some((key, value))
    };
    let fields: Vec<_> = keys.iter().filter_map(|key| of_key(key)).collect();
    if fields.is_empty() { None } else { Some(fields) }
}
