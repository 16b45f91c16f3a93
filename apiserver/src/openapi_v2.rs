//! OpenAPI v2, for clients that do not read v3.
//!
//! In JSON it is the v3 documents in one, in the words of v2 ([`from_v3`]). In protobuf (gnostic's `Document`) it is
//! the part that kubectl up to 1.27 needs: which query parameters a PATCH of each kind understands
//! (`fieldValidation`, `dryRun`); those clients take schemas from v3.

use serde_json::{Map, Value, json};

use crate::resources::{Resource, Table};

/// The media type of the answer. Clients ask for `…v2@v1.0+protobuf`, which is not a media type by
/// RFC 9110 and which they cannot parse themselves: Kubernetes answers with a dot, too.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    // Field numbers here are below 16, so a key is one byte: number, then wire type 2 (length-delimited).
    out.push(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
}

fn message(fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, bytes) in fields {
        field(&mut out, *number, bytes);
    }
    out
}

/// The document: one path per kind with its PATCH. The numbers are those of gnostic's `OpenAPIv2.proto`.
pub fn document(table: &Table) -> Vec<u8> {
    let mut paths = Vec::new();
    for resource in table.all().filter(|resource| !resource.kind.is_virtual) {
        let item = message(&[(8, &patch_operation(resource))]);
        let path = path(resource);
        field(&mut paths, 2, &message(&[(1, path.as_bytes()), (2, &item)]));
    }
    let info = message(&[(1, b"Proa"), (2, b"v1.36.0+proa")]);
    message(&[(1, b"2.0"), (2, &info), (8, &paths)])
}

/// One document of definitions and paths from those of v3, one per group and version.
pub fn from_v3(documents: impl Iterator<Item = Value>) -> Value {
    let (mut paths, mut definitions) = (Map::new(), Map::new());
    for mut document in documents {
        for (name, schema) in take(&mut document, "/components/schemas") {
            definitions.entry(name).or_insert_with(|| schema_of(schema));
        }
        paths.extend(take(&mut document, "/paths").into_iter().map(|(path, item)| (path, path_item(item))));
    }
    definitions.sort_keys();
    json!({
        "swagger": "2.0",
        "info": {"title": "Proa", "version": "v1.36.0+proa"},
        "paths": paths,
        "definitions": definitions,
    })
}

/// Adds what another server's document says: its paths, and the definitions this one does not have.
pub fn add(document: &mut Value, other: &Value) {
    for (field, replace) in [("paths", true), ("definitions", false)] {
        let (Some(have), Some(more)) = (document[field].as_object_mut(), other[field].as_object()) else { continue };
        for (key, value) in more {
            if replace || !have.contains_key(key) {
                have.insert(key.clone(), value.clone());
            }
        }
    }
}

fn take(value: &mut Value, pointer: &str) -> Map<String, Value> {
    match value.pointer_mut(pointer).map(Value::take) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// A schema in the words of v2: references lead to `definitions` and may have neighbours; a value has one type,
/// and none is null.
fn schema_of(schema: Value) -> Value {
    let Value::Object(mut map) = schema else { return schema };
    for field in ["anyOf", "not", "nullable"] {
        map.shift_remove(field);
    }
    if map.shift_remove("oneOf").is_some() {
        // An integer or a string, a number or a string: Kubernetes calls both a string.
        map.entry("type").or_insert_with(|| "string".into());
    }
    // v3 wraps a reference that has neighbours in an `allOf` of one.
    let wrapped = map.shift_remove("allOf").and_then(|all| all.get(0).cloned());
    if let Some(Value::Object(only)) = wrapped {
        map.extend(only);
    }
    if let Some(Value::String(target)) = map.get_mut("$ref") {
        *target = target.replacen("#/components/schemas/", "#/definitions/", 1);
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(|property| *property = schema_of(property.take()));
    }
    for field in ["items", "additionalProperties"] {
        if let Some(below) = map.get_mut(field) {
            *below = schema_of(below.take());
        }
    }
    map.into()
}

fn path_item(mut item: Value) -> Value {
    for (key, value) in item.as_object_mut().into_iter().flatten() {
        *value = if key == "parameters" { parameters(value.take()) } else { operation(value.take()) };
    }
    item
}

/// A parameter's type stands beside its name, not in a schema.
fn parameters(list: Value) -> Value {
    let Value::Array(mut list) = list else { return list };
    for parameter in &mut list {
        let schema = take(parameter, "/schema");
        if let Some(parameter) = parameter.as_object_mut() {
            parameter.shift_remove("schema");
            parameter.extend(schema);
        }
    }
    list.into()
}

/// The body is one of the parameters, and media types are named once for all.
fn operation(mut operation: Value) -> Value {
    let mut parameters = parameters(operation["parameters"].take());
    let content = take(&mut operation, "/requestBody/content");
    if let (Some(list), Some(first)) = (parameters.as_array_mut(), content.values().next()) {
        list.push(
            json!({"name": "body", "in": "body", "required": true, "schema": schema_of(first["schema"].clone())}),
        );
        operation["consumes"] = content.keys().cloned().collect();
    }
    let answer = operation.pointer_mut("/responses/200/content/application~1json/schema").map(Value::take);
    operation["parameters"] = parameters;
    operation["produces"] = json!(["application/json"]);
    operation["responses"] = json!({"200": {"description": "OK", "schema": answer.map(schema_of)}});
    if let Some(map) = operation.as_object_mut() {
        map.shift_remove("requestBody");
    }
    operation
}

fn path(resource: &Resource) -> String {
    let kind = &resource.kind;
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let place = if resource.namespaced() { "/namespaces/{namespace}" } else { "" };
    format!("{root}{place}/{}/{{name}}", kind.plural)
}

fn patch_operation(resource: &Resource) -> Vec<u8> {
    let mut operation = Vec::new();
    for name in ["dryRun", "fieldManager", "fieldValidation", "force"] {
        let query = message(&[(2, b"query"), (4, name.as_bytes()), (6, b"string")]);
        let parameter = message(&[(2, &message(&[(3, &query)]))]);
        field(&mut operation, 8, &message(&[(1, &parameter)]));
    }
    let kind = &resource.kind;
    let yaml = format!("group: \"{}\"\nkind: {}\nversion: {}\n", kind.group, kind.kind, kind.version);
    let any = message(&[(2, yaml.as_bytes())]);
    field(&mut operation, 13, &message(&[(1, b"x-kubernetes-group-version-kind"), (2, &any)]));
    operation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_v3_reads_as_one_of_v2() {
        let reference = json!({"$ref": "#/components/schemas/B"});
        let schema = json!({"type": "object", "properties": {
            "b": {"allOf": [reference], "description": "why", "default": {}},
            "not": {"type": "array", "items": reference, "nullable": true},
            "port": {"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"},
        }});
        let parameter = json!({"name": "dryRun", "in": "query", "required": false, "schema": {"type": "string"}});
        let body = json!({"required": true, "content": {"application/json": {"schema": reference}}});
        let answer = json!({"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}});
        let post =
            json!({"parameters": [parameter], "requestBody": body, "responses": answer, "x-kubernetes-action": "post"});
        let v3 =
            json!({"components": {"schemas": {"A": schema}}, "paths": {"/api/v1/a": {"parameters": [], "post": post}}});
        let v2 = from_v3([v3].into_iter());
        let reference = json!({"$ref": "#/definitions/B"});
        assert_eq!(
            v2["definitions"]["A"]["properties"],
            json!({
                "b": {"description": "why", "default": {}, "$ref": "#/definitions/B"},
                "not": {"type": "array", "items": reference},
                "port": {"type": "string", "format": "int-or-string"},
            })
        );
        let post = &v2["paths"]["/api/v1/a"]["post"];
        assert_eq!(
            post["parameters"][0],
            json!({"name": "dryRun", "in": "query", "required": false, "type": "string"})
        );
        assert_eq!(post["parameters"][1]["schema"], reference);
        assert_eq!(post["responses"]["200"]["schema"], reference);
        assert_eq!(post["consumes"], json!(["application/json"]));
    }

    #[test]
    fn lengths_past_127_take_more_bytes() {
        let mut out = Vec::new();
        field(&mut out, 1, &[0; 300]);
        assert_eq!(out[..3], [0x0a, 0xac, 0x02]);
        assert_eq!(out.len(), 303);
    }
}
