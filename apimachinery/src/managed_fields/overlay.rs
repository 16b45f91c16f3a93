//! Owns laying an apply configuration over an object that nobody owns the fields of: what mutating policies do
//! (KEP-3962, `k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch`).

use serde_json::{Map, Value};

use super::extract::{Shape, below, shape};
use super::typed;
use crate::object::Object;
use crate::schema::{Schema, Trail};

/// Lays a configuration over an object; what the configuration says nothing of stays.
///
/// # Errors
///
/// When it has fields the schema does not, cannot be split into fields, or touches what is one value: all that it does
/// not say of that would be lost, and nobody who wrote it thinks of that.
pub(super) fn overlay(schema: &Schema, object: &Object, config: &Value) -> Result<Object, String> {
    let Value::Object(config) = config else { return Err("the patch is not an object".to_owned()) };
    let typed = |why: String| format!("failed to convert patch object to typed object: {why}");
    let checked = schema.check(&Value::Object(config.clone()));
    if let Some(unknown) = checked.unknown.first() {
        return Err(typed(format!(".{}: field not declared in schema", unknown.as_str())));
    }
    let mut problems = checked.errors;
    problems.extend(typed::problems(schema, config));
    if !problems.is_empty() {
        return Err(typed(crate::field::join(&problems)));
    }
    let mut atomics = Vec::new();
    atomics_of_map(schema, config, &Trail::Root, &mut atomics);
    if !atomics.is_empty() {
        let all = atomics.join(", ");
        return Err(format!("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {all}"));
    }
    // What kind it is of is not the configuration's to say.
    let mut config = config.clone();
    config.retain(|field, _| !matches!(field.as_str(), "apiVersion" | "kind"));
    Ok(Object(typed::merge_map(schema, object.0.clone(), &config)))
}

fn atomics_of_map(schema: &Schema, map: &Map<String, Value>, trail: &Trail<'_>, found: &mut Vec<String>) {
    for (name, value) in map {
        atomics(below(schema, name), value, &Trail::Field(trail, name), found);
    }
}

fn atomics(schema: &Schema, value: &Value, trail: &Trail<'_>, found: &mut Vec<String>) {
    match (shape(schema, value), value) {
        (Shape::Leaf, Value::Object(_) | Value::Array(_)) => found.push(format!(".{}", trail.path().as_str())),
        (_, Value::Object(map)) => atomics_of_map(schema, map, trail, found),
        (_, Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                if let Value::Object(map) = item {
                    atomics_of_map(schema.element(), map, &Trail::Index(trail, index), found);
                }
            }
        }
        _ => {}
    }
}
