//! Owns the schemas of custom resources: reading `openAPIV3Schema`, refusing what is not structural.

use std::sync::Arc;

use serde_json::Value;

use super::{Additional, Reference, Schema, convert, structural};
use crate::field::FieldErrors;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The schema of a custom resource from `spec.versions[].schema.openAPIV3Schema`, or why it is none
/// (paths start at that field). The type's own fields (apiVersion, kind, metadata) are added.
pub fn from_openapi_v3(value: &Value) -> Result<Schema, FieldErrors> {
    let errors = structural::problems(value);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut schema = convert::custom(value);
    embedded(&mut schema);
    for field in ["apiVersion", "kind"] {
        let text = Schema { kind: super::Type::String, ..Schema::blank() };
        schema.properties.entry(field.into()).or_insert(text);
    }
    let metadata = Schema { reference: Some(Reference::new(OBJECT_META)), ..Schema::blank() };
    let rules = schema.properties.insert("metadata".into(), metadata).and_then(|own| {
        // An author may restrict metadata.name and generateName, nothing else.
        let restricts = own.properties.values().any(|p| p.rules.is_some());
        restricts.then_some(own)
    });
    schema.metadata_rules = rules.map(Box::new);
    schema.source = Some(Arc::new(value.clone()));
    Ok(schema)
}

/// Objects within the object have metadata too, known as every object's is, unless the author says more.
fn embedded(schema: &mut Schema) {
    if schema.embedded_resource {
        let metadata = || Schema { reference: Some(Reference::new(OBJECT_META)), ..Schema::blank() };
        schema.properties.entry("metadata".into()).or_insert_with(metadata);
    }
    schema.properties.values_mut().for_each(embedded);
    schema.items.as_deref_mut().into_iter().for_each(embedded);
    if let Additional::Schema(below) = &mut schema.additional {
        embedded(below);
    }
}
