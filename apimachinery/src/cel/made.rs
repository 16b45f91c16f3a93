//! Owns what mutations make: `Object{…}`, an apply configuration whose parts say where they belong, and `JSONPatch{…}`
//! (KEP-3962, `k8s.io/apiserver/pkg/cel/mutation`).

use kube_cel::cel::Value as Cel;
use kube_cel::cel::objects::Opaque;
use serde_json::{Map, Value};

use super::operators::equal;
use super::values::to_json;

/// Something made, by the name of its type.
#[derive(Debug)]
pub(super) struct Made {
    pub name: Box<str>,
    pub fields: Vec<(Box<str>, Cel)>,
}

impl Made {
    pub(super) fn field(&self, name: &str) -> Option<&Cel> {
        self.fields.iter().find(|(have, _)| **have == *name).map(|(_, value)| value)
    }

    /// As JSON; its parts must be of the types their places have: `Object.spec` at `spec`.
    pub(super) fn to_json(&self) -> Result<Value, String> {
        let mut fields = Map::new();
        for (field, value) in &self.fields {
            if self.name.split('.').next() == Some("Object") {
                belongs(&format!("{}.{field}", self.name), value)?;
            }
            fields.insert(field.to_string(), to_json(value)?);
        }
        Ok(Value::Object(fields))
    }
}

/// Whether every object below says the type of the path it is at.
fn belongs(path: &str, value: &Cel) -> Result<(), String> {
    match value {
        Cel::Opaque(opaque) => match opaque.downcast_ref::<Made>() {
            Some(made) if *made.name != *path => Err(format!(
                "type mismatch: unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type",
                made.name
            )),
            _ => Ok(()),
        },
        Cel::List(items) => items.iter().try_for_each(|item| belongs(path, item)),
        Cel::Map(entries) => entries.map.iter().try_for_each(|(key, value)| belongs(&format!("{path}.{key}"), value)),
        _ => Ok(()),
    }
}

impl PartialEq for Made {
    fn eq(&self, other: &Made) -> bool {
        self.name == other.name
            && self.fields.len() == other.fields.len()
            && self.fields.iter().all(|(name, value)| other.field(name).is_some_and(|have| equal(value, have)))
    }
}

// As with every value of the language, a NaN in it is the exception nobody can ask for.
impl Eq for Made {}

impl Opaque for Made {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.mutation.Made"
    }
}
