//! Owns what makes the schema of a custom resource acceptable: it must be structural (every value has a
//! type, told outside of logic), and use nothing Kubernetes forbids
//! (KEP-1693; `apiextensions/validation.go`; API documentation "Specifying a structural schema").

use serde_json::{Map, Value};

use super::{cel, check::type_fits, convert, validate::compile_pattern};
use crate::field::{FieldError, FieldErrors, Path};

/// Schemas nest no deeper than this.
const DEEPEST: usize = 100;
/// Problems past this many are not looked for.
const MOST: usize = 50;

const FORBIDDEN: [&str; 9] = [
    "$ref",
    "definitions",
    "dependencies",
    "deprecated",
    "discriminator",
    "patternProperties",
    "readOnly",
    "writeOnly",
    "xml",
];
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// What may not stand inside allOf, anyOf, oneOf and not: there only values are restricted.
const OUTSIDE_OF_LOGIC: [&str; 8] = [
    "type",
    "default",
    "description",
    "title",
    "nullable",
    "additionalProperties",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-list-type",
];

/// Everything that is wrong with the schema.
pub(super) fn problems(schema: &Value) -> FieldErrors {
    let mut check = Check { errors: FieldErrors::new(), cel: cel::Tally::default() };
    let root = Path::root();
    let Some(map) = schema.as_object() else {
        return vec![FieldError::required(&root, "schemas are required")];
    };
    match map.get("type").and_then(Value::as_str) {
        Some("object") => {}
        None => check.errors.push(FieldError::required(&root.child("type"), "must not be empty at the root")),
        Some(other) => check.errors.push(FieldError::invalid(&root.child("type"), other, "must be object at the root")),
    }
    check.node(map, &root, 0, Place::Root, None);
    check.errors
}

struct Check {
    errors: FieldErrors,
    cel: cel::Tally,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Root,
    Inside,
    Logic,
}

impl Check {
    fn forbid(&mut self, path: &Path, detail: &str) {
        self.errors.push(FieldError::forbidden(path, detail));
    }

    /// `outside`: for a schema in logic, the structural one it restricts, if there is one.
    fn node(
        &mut self,
        map: &Map<String, Value>,
        path: &Path,
        depth: usize,
        place: Place,
        outside: Option<&Map<String, Value>>,
    ) {
        if self.errors.len() >= MOST {
            return;
        }
        if depth > DEEPEST {
            self.forbid(path, "schemas may not nest deeper than 100 levels");
            return;
        }
        for field in FORBIDDEN {
            if map.contains_key(field) {
                self.forbid(&path.child(field), &format!("{field} is not supported"));
            }
        }
        if place == Place::Logic {
            for field in OUTSIDE_OF_LOGIC {
                let int_or_string = field == "type" && is_int_or_string_branch(map, outside);
                if map.contains_key(field) && !int_or_string {
                    self.forbid(&path.child(field), "must be empty to be structural");
                }
            }
        } else {
            self.kind(map, path, place);
            self.extensions(map, path, place);
        }
        self.values(map, path, place);
        self.children(map, path, depth, place, outside);
        if let Some(rules) = map.get("x-kubernetes-validations") {
            let at = path.child("x-kubernetes-validations");
            if place == Place::Logic {
                self.forbid(&at, "must be empty to be structural");
            } else {
                cel::problems(rules, map, &at, &mut self.cel, &mut self.errors);
            }
        }
    }

    fn kind(&mut self, map: &Map<String, Value>, path: &Path, place: Place) {
        let flag = |field: &str| map.get(field).and_then(Value::as_bool) == Some(true);
        let at = path.child("type");
        match map.get("type").and_then(Value::as_str) {
            Some(kind) if !TYPES.contains(&kind) => self.errors.push(FieldError::not_supported(&at, kind, &TYPES)),
            Some(_) if flag("x-kubernetes-int-or-string") => {
                self.forbid(&at, "must be empty if x-kubernetes-int-or-string is true");
            }
            Some("array") if map.get("items").is_none_or(Value::is_null) => {
                self.errors.push(FieldError::required(&path.child("items"), "must be specified"));
            }
            Some("") | None if place != Place::Root => {
                let excused = flag("x-kubernetes-int-or-string") || flag("x-kubernetes-preserve-unknown-fields");
                if !excused {
                    self.errors.push(FieldError::required(&at, "must not be empty for specified object fields"));
                }
            }
            _ => {}
        }
        if map.get("items").is_some_and(Value::is_array) {
            self.forbid(&path.child("items"), "items must be a schema object and not an array");
        }
        if flag("uniqueItems") {
            self.forbid(
                &path.child("uniqueItems"),
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            );
        }
        let additional = map.get("additionalProperties");
        let has_properties = map.get("properties").and_then(Value::as_object).is_some_and(|p| !p.is_empty());
        if has_properties && additional.is_some_and(|a| !a.is_null() && a != &Value::Bool(false)) {
            self.forbid(
                &path.child("additionalProperties"),
                "additionalProperties and properties are mutual exclusive",
            );
        }
        if additional == Some(&Value::Bool(false)) {
            self.forbid(&path.child("additionalProperties"), "must not be used");
        }
    }

    fn extensions(&mut self, map: &Map<String, Value>, path: &Path, place: Place) {
        let text = |field: &str| map.get(field).and_then(Value::as_str);
        let flag = |field: &str| map.get(field).and_then(Value::as_bool) == Some(true);
        let preserves = map.get("x-kubernetes-preserve-unknown-fields");
        if preserves == Some(&Value::Bool(false)) {
            let at = path.child("x-kubernetes-preserve-unknown-fields");
            self.errors.push(FieldError::invalid(&at, false, "must be true or undefined"));
        }
        if flag("x-kubernetes-embedded-resource") {
            if text("type") != Some("object") {
                self.errors.push(FieldError::invalid(
                    &path.child("type"),
                    text("type").unwrap_or(""),
                    "must be object if x-kubernetes-embedded-resource is true",
                ));
            }
            let has_properties = map.get("properties").and_then(Value::as_object).is_some_and(|p| !p.is_empty());
            if !has_properties && preserves != Some(&Value::Bool(true)) {
                self.errors.push(FieldError::required(&path.child("properties"), "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"));
            }
        }
        let keys_at = path.child("x-kubernetes-list-map-keys");
        let keys: Vec<&str> = map
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        match text("x-kubernetes-list-type") {
            None if !keys.is_empty() => {
                self.errors.push(FieldError::invalid(
                    &path.child("x-kubernetes-list-type"),
                    Value::Null,
                    "must be map if x-kubernetes-list-map-keys is non-empty",
                ));
            }
            None => {}
            Some(kind) => self.list(kind, &keys, &keys_at, map, path),
        }
        match text("x-kubernetes-map-type") {
            None | Some("granular" | "atomic") => {}
            Some(other) => self.errors.push(FieldError::not_supported(
                &path.child("x-kubernetes-map-type"),
                other,
                &["atomic", "granular"],
            )),
        }
        if place == Place::Root {
            for (name, property) in
                map.get("properties").and_then(|p| p.get("metadata")).and_then(Value::as_object).into_iter().flatten()
            {
                let allowed = matches!(name.as_str(), "type" | "properties" | "description" | "title" | "required");
                let names_only = name != "properties"
                    || property.as_object().is_some_and(|p| p.keys().all(|k| k == "name" || k == "generateName"));
                if !allowed || !names_only {
                    self.forbid(&path.child("properties").key("metadata"), "must not specify anything other than name and generateName, but metadata is implicitly specified");
                    break;
                }
            }
        }
    }

    fn list(&mut self, kind: &str, keys: &[&str], keys_at: &Path, map: &Map<String, Value>, path: &Path) {
        let at = path.child("x-kubernetes-list-type");
        if !["atomic", "set", "map"].contains(&kind) {
            self.errors.push(FieldError::not_supported(&at, kind, &["atomic", "set", "map"]));
            return;
        }
        if map.get("type").and_then(Value::as_str) != Some("array") {
            let got = map.get("type").and_then(Value::as_str).unwrap_or("");
            self.errors.push(FieldError::invalid(
                &path.child("type"),
                got,
                "must be array if x-kubernetes-list-type is specified",
            ));
        }
        let element = map.get("items").and_then(Value::as_object);
        if kind != "map" {
            if !keys.is_empty() {
                self.errors.push(FieldError::invalid(
                    &at,
                    kind,
                    "must be map if x-kubernetes-list-map-keys is non-empty",
                ));
            }
            let composite = element.and_then(|e| e.get("type")).and_then(Value::as_str);
            let atomic = |e: &Map<String, Value>| {
                e.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic")
                    || e.get("x-kubernetes-list-type").and_then(Value::as_str).is_none_or(|t| t == "atomic")
                        && composite == Some("array")
            };
            if kind == "set" && matches!(composite, Some("object" | "array")) && !element.is_some_and(atomic) {
                self.errors.push(FieldError::invalid(
                    &path.child("items"),
                    composite.unwrap_or(""),
                    "set lists must hold scalars or atomic values",
                ));
            }
            return;
        }
        if keys.is_empty() {
            self.errors.push(FieldError::required(keys_at, "must not be empty if x-kubernetes-list-type is map"));
        }
        let properties = element.and_then(|e| e.get("properties")).and_then(Value::as_object);
        let required: Vec<&str> = element
            .and_then(|e| e.get("required"))
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for (index, key) in keys.iter().enumerate() {
            let at = keys_at.index(index);
            if keys[..index].contains(key) {
                self.errors.push(FieldError::duplicate(&at, *key));
            }
            match properties.and_then(|p| p.get(*key)) {
                None => {
                    self.errors.push(FieldError::invalid(&at, *key, "entries must all be names of item properties"))
                }
                Some(property) => {
                    if matches!(property.get("type").and_then(Value::as_str), Some("array" | "object")) {
                        self.errors.push(FieldError::invalid(&at, *key, "must be a scalar type"));
                    }
                    if !required.contains(key) && property.get("default").is_none() {
                        let place = path.child("items").child("properties").key(key).child("default");
                        self.errors.push(FieldError::required(&place, "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"));
                    }
                }
            }
        }
    }

    fn values(&mut self, map: &Map<String, Value>, path: &Path, place: Place) {
        if let Some(pattern) = map.get("pattern").and_then(Value::as_str)
            && let Err(error) = compile_pattern(pattern)
        {
            let detail = format!("must be a valid regular expression, but isn't: {error}");
            self.errors.push(FieldError::invalid(&path.child("pattern"), pattern, detail));
        }
        let Some(default) = map.get("default").filter(|_| place == Place::Inside) else { return };
        let schema = convert::custom(&Value::Object(map.clone()));
        let at = path.child("default");
        if default.is_null() && schema.nullable {
            return;
        }
        if !type_fits(schema.kind, default) || default.is_null() {
            let detail = format!("must be of type {}", schema.kind.name());
            self.errors.push(FieldError::invalid(&at, default.clone(), detail));
            return;
        }
        let mut pruned = default.clone();
        schema.prune(&mut pruned);
        if pruned != *default {
            self.errors.push(FieldError::invalid(&at, default.clone(), "must not have unknown fields"));
        }
        schema.default(&mut pruned);
        for error in schema.validate(&pruned, None) {
            let detail = format!("must validate: {}", error.body());
            self.errors.push(FieldError::invalid(&at, default.clone(), detail));
        }
    }

    fn children(
        &mut self,
        map: &Map<String, Value>,
        path: &Path,
        depth: usize,
        place: Place,
        outside: Option<&Map<String, Value>>,
    ) {
        let in_logic = place == Place::Logic;
        let inside = if in_logic { Place::Logic } else { Place::Inside };
        for (name, property) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let at = path.child("properties").key(name);
            let own = place == Place::Root && matches!(name.as_str(), "metadata" | "apiVersion" | "kind");
            let beyond = outside.and_then(|o| o.get("properties")?.get(name)).and_then(Value::as_object);
            match property.as_object() {
                Some(_) if own => {}
                Some(_) if in_logic && beyond.is_none() => self.unspecified(&at),
                Some(property) => self.node(property, &at, depth + 1, inside, beyond),
                None => self.errors.push(FieldError::invalid(&at, property.clone(), "must be a schema")),
            }
        }
        for field in ["items", "additionalProperties"] {
            let Some(below) = map.get(field).and_then(Value::as_object) else { continue };
            let at = path.child(field);
            let beyond = outside.and_then(|o| o.get(field)).and_then(Value::as_object);
            if in_logic && beyond.is_none() && field == "items" {
                self.unspecified(&at);
            } else {
                self.node(below, &at, depth + 1, inside, beyond);
            }
        }
        let outside = if in_logic { outside } else { Some(map) };
        for field in ["allOf", "anyOf", "oneOf"] {
            let schemas = map.get(field).and_then(Value::as_array).into_iter().flatten();
            for (index, schema) in schemas.filter_map(Value::as_object).enumerate() {
                self.node(schema, &path.child(field).index(index), depth + 1, Place::Logic, outside);
            }
        }
        if let Some(not) = map.get("not").and_then(Value::as_object) {
            self.node(not, &path.child("not"), depth + 1, Place::Logic, outside);
        }
    }

    /// Rule 2 of structural schemas: logic may restrict only what is specified outside of it.
    fn unspecified(&mut self, at: &Path) {
        let detail = "must be specified outside of allOf, anyOf, oneOf and not as well to be structural";
        self.errors.push(FieldError::required(at, detail));
    }
}

/// `anyOf: [{type: integer}, {type: string}]` beside int-or-string holds the only types logic may.
fn is_int_or_string_branch(map: &Map<String, Value>, outside: Option<&Map<String, Value>>) -> bool {
    let flag = outside.and_then(|o| o.get("x-kubernetes-int-or-string")).and_then(Value::as_bool);
    flag == Some(true) && matches!(map.get("type").and_then(Value::as_str), Some("integer" | "string"))
}
