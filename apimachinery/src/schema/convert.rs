//! Owns the reading of JSON Schema into [`Schema`]: k8s-openapi's dialect for built-ins, OpenAPI v3 for
//! custom resources. Never rejects; what makes a custom resource's schema wrong is `structural`'s to say.

use serde_json::{Map, Value};

use super::{Additional, ListType, Reference, Schema, Type, validate::Rules};

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const DEFS: &str = "#/$defs/";

/// One built-in definition.
pub(super) fn builtin(name: &str, value: &Value) -> Schema {
    let mut schema = node(value, Dialect::Builtin);
    schema.name = Some(name.into());
    if name == QUANTITY {
        schema.kind = Type::Quantity;
    }
    let is_root = schema.properties.contains_key("apiVersion") && schema.properties.contains_key("kind");
    if is_root {
        // k8s-openapi requires metadata where its type is not optional; Kubernetes does not.
        schema.required.retain(|field| &**field != "metadata");
    }
    schema
}

/// The schema of a custom resource, or of a part of it.
pub(super) fn custom(value: &Value) -> Schema {
    node(value, Dialect::Custom)
}

#[derive(Clone, Copy, PartialEq)]
enum Dialect {
    Builtin,
    Custom,
}

fn node(value: &Value, dialect: Dialect) -> Schema {
    let empty = Map::new();
    let map = value.as_object().unwrap_or(&empty);
    let text = |key: &str| map.get(key).and_then(Value::as_str);
    let flag = |key: &str| map.get(key).and_then(Value::as_bool) == Some(true);
    if let (Dialect::Builtin, Some(target)) = (dialect, text("$ref").and_then(|r| r.strip_prefix(DEFS))) {
        return Schema { reference: Some(Reference::new(target)), ..Schema::blank() };
    }
    let mut schema = Schema {
        kind: kind_of(map),
        nullable: flag("nullable"),
        format: text("format").map(Into::into),
        preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
        embedded_resource: flag("x-kubernetes-embedded-resource"),
        atomic_map: text("x-kubernetes-map-type") == Some("atomic"),
        default: map.get("default").filter(|_| dialect == Dialect::Custom).cloned(),
        list_type: list_type(map),
        required: strings(map.get("required")),
        ..Schema::blank()
    };
    for (name, property) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        schema.properties.insert(name.as_str().into(), node(property, dialect));
    }
    schema.properties.shrink_to_fit();
    if let Some(items) = map.get("items").filter(|items| items.is_object()) {
        schema.items = Some(Box::new(node(items, dialect)));
    }
    schema.additional = match map.get("additionalProperties") {
        Some(Value::Bool(true)) => Additional::Anything,
        Some(value @ Value::Object(_)) => Additional::Schema(Box::new(node(value, dialect))),
        // A built-in "object" that names no field (RawExtension, FieldsV1) holds anything.
        _ if dialect == Dialect::Builtin && schema.kind == Type::Object && schema.properties.is_empty() => {
            Additional::Anything
        }
        _ => Additional::Nothing,
    };
    if dialect == Dialect::Custom {
        schema.rules = Rules::read(map).map(Box::new);
    }
    schema
}

fn kind_of(map: &Map<String, Value>) -> Type {
    if map.get("x-kubernetes-int-or-string").and_then(Value::as_bool) == Some(true) {
        return Type::IntOrString;
    }
    match map.get("type").and_then(Value::as_str) {
        Some("object") => Type::Object,
        Some("array") => Type::Array,
        Some("string") => Type::String,
        Some("integer") => Type::Integer,
        Some("number") => Type::Number,
        Some("boolean") => Type::Boolean,
        _ => Type::Any,
    }
}

fn list_type(map: &Map<String, Value>) -> ListType {
    match map.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListType::Set,
        Some("map") => ListType::Map(strings(map.get("x-kubernetes-list-map-keys"))),
        _ => ListType::Atomic,
    }
}

fn strings(value: Option<&Value>) -> Vec<Box<str>> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect()
}
