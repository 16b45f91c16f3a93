//! Owns the OpenAPI v3 form of the schemas: what `/openapi/v3` serves and `kubectl explain` reads.

use std::collections::{BTreeSet, VecDeque};

use serde_json::{Map, Value, json};

use super::definitions::Descriptions;
use super::{Schema, builtin, facts};

const DEFS: &str = "#/$defs/";
const COMPONENTS: &str = "#/components/schemas/";

/// The definitions named, and all they refer to, as the `components.schemas` of an OpenAPI v3 document.
/// Names that do not exist are left out. The answer is made anew each time: cache it.
pub fn openapi_components<'a>(names: impl IntoIterator<Item = &'a str>) -> Map<String, Value> {
    let descriptions = Descriptions::read();
    let mut wanted: VecDeque<String> = names.into_iter().map(str::to_owned).collect();
    let mut seen: BTreeSet<String> = wanted.iter().cloned().collect();
    let mut components = Map::new();
    while let Some(name) = wanted.pop_front() {
        let Some(mut definition) = builtin::raw(&name, &descriptions) else { continue };
        publish(&name, &mut definition);
        references(&definition, &mut |target| {
            if seen.insert(target.to_owned()) {
                wanted.push_back(target.to_owned());
            }
        });
        components.insert(name, definition);
    }
    components.sort_keys();
    components
}

/// Turns a definition as k8s-openapi words it into what Kubernetes publishes.
fn publish(name: &str, definition: &mut Value) {
    let Some(map) = definition.as_object_mut() else { return };
    let is_root = map
        .get("properties")
        .and_then(Value::as_object)
        .is_some_and(|p| p.contains_key("apiVersion") && p.contains_key("kind") && p.contains_key("metadata"));
    if let Some(required) = map.get_mut("required").and_then(Value::as_array_mut).filter(|_| is_root) {
        required.retain(|field| field != "metadata");
        if required.is_empty() {
            map.shift_remove("required");
        }
    }
    for (field, fact) in facts::table().get(name).into_iter().flatten() {
        if *field == "." {
            fact.publish(map);
        } else if let Some(property) =
            map.get_mut("properties").and_then(|p| p.get_mut(*field)).and_then(Value::as_object_mut)
        {
            fact.publish(property);
        }
    }
    match name {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" | "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => {
            map.shift_remove("x-kubernetes-int-or-string");
            if name.ends_with("Quantity") {
                map.insert("oneOf".into(), json!([{"type": "string"}, {"type": "number"}]));
            } else {
                map.insert("format".into(), "int-or-string".into());
                map.insert("oneOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
            }
        }
        _ => {}
    }
    if let Some((group, version, kind)) = builtin::group_version_kind(name) {
        let gvk = json!([{"group": group, "kind": kind, "version": version}]);
        map.insert("x-kubernetes-group-version-kind".into(), gvk);
    }
    let fields = ["properties"].iter().filter_map(|f| map.get(*f)).filter_map(Value::as_object);
    let names: Vec<String> = fields.flat_map(|m| m.keys().cloned()).collect();
    for field in names {
        if let Some(property) = map.get_mut("properties").and_then(|p| p.get_mut(&field)) {
            wrap(property);
        }
    }
    for field in ["items", "additionalProperties"] {
        if let Some(child) = map.get_mut(field) {
            wrap(child);
        }
    }
}

/// OpenAPI 3.0 ignores what stands beside a `$ref`: such a property becomes an `allOf` of one.
fn wrap(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    if let Some(target) = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(DEFS)) {
        let target = json!({"$ref": format!("{COMPONENTS}{target}")});
        map.shift_remove("$ref");
        if map.is_empty() {
            *schema = target;
        } else {
            map.insert("allOf".into(), json!([target]));
            map.sort_keys();
        }
        return;
    }
    for field in ["items", "additionalProperties"] {
        if let Some(child) = map.get_mut(field) {
            wrap(child);
        }
    }
}

fn references(value: &Value, found: &mut impl FnMut(&str)) {
    match value {
        Value::Object(map) => {
            for (key, child) in map {
                match child.as_str().filter(|_| key == "$ref").and_then(|r| r.strip_prefix(COMPONENTS)) {
                    Some(target) => found(target),
                    None => references(child, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

impl Schema {
    /// The OpenAPI v3 form: a reference for a built-in definition; for a custom resource what its author
    /// wrote, with the type's own fields added.
    pub fn to_openapi(&self) -> Value {
        if let Some(name) = self.definition_name() {
            return json!({"$ref": format!("{COMPONENTS}{name}")});
        }
        let mut value = self.source.as_deref().cloned().unwrap_or_else(|| json!({"type": "object"}));
        if let Some(map) = value.as_object_mut() {
            let properties = map.entry("properties").or_insert_with(|| json!({}));
            if let Some(properties) = properties.as_object_mut() {
                let text = |what: &str| json!({"type": "string", "description": what});
                properties.insert(
                    "apiVersion".into(),
                    text("APIVersion defines the versioned schema of this representation of an object."),
                );
                properties.insert(
                    "kind".into(),
                    text("Kind is a string value representing the REST resource this object represents."),
                );
                let meta = format!("{COMPONENTS}io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
                properties.insert(
                    "metadata".into(),
                    json!({"allOf": [{"$ref": meta}], "description": "Standard object's metadata."}),
                );
            }
        }
        value
    }
}
