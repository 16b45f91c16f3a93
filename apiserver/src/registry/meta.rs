//! The metadata only the server writes: names made up, uids, times.

use jiff::Timestamp;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use serde_json::{Map, Value};

use crate::outside::Entropy;
use crate::resources::Resource;

/// The letters of made-up name endings: no vowels, so that no words appear (Kubernetes' own set).
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A time as objects hold it: RFC 3339, whole seconds, UTC.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time with microseconds, as Leases have it.
pub fn micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// A name from a prefix: five more characters, the prefix cut so that it stays a DNS label.
pub fn generate_name(prefix: &str, entropy: &Entropy) -> String {
    let letter = || LETTERS[entropy.within(0..LETTERS.len() as u64) as usize];
    let mut name: String = prefix.chars().take(58).collect();
    name.extend((0..5).map(|_| char::from(letter())));
    name
}

/// Gives a new object its identity.
pub fn stamp(object: &mut Object, now: &str, entropy: &Entropy) {
    let metadata = object.metadata_mut();
    for field in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"] {
        metadata.shift_remove(field);
    }
    metadata.insert("uid".into(), Value::from(entropy.uid()));
    metadata.insert("creationTimestamp".into(), Value::from(now));
}

/// Puts an object where its path says; a different namespace or name in the body is an error.
pub fn place(resource: &Resource, object: &mut Object, namespace: &str, name: Option<&str>) -> Result<(), ApiError> {
    if !resource.namespaced() {
        if !object.namespace().is_empty() {
            object.metadata_mut().shift_remove("namespace");
        }
    } else if object.namespace().is_empty() {
        object.metadata_mut().insert("namespace".into(), Value::from(namespace));
    } else if object.namespace() != namespace {
        return Err(ApiError::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request ({} != {namespace})",
            object.namespace()
        )));
    }
    if let Some(name) = name {
        if object.name().is_empty() {
            object.metadata_mut().insert("name".into(), Value::from(name));
        } else if object.name() != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                object.name()
            )));
        }
    }
    Ok(())
}

/// Whether two states of an object say the same. The times of managed fields do not count: they follow
/// a write, they are no reason for one.
pub fn same(a: &Object, b: &Object) -> bool {
    let none = Map::new();
    let (of_a, of_b) = (a.metadata().unwrap_or(&none), b.metadata().unwrap_or(&none));
    same_but(&["metadata"], &a.0, &b.0)
        && same_but(&["resourceVersion", "managedFields"], of_a, of_b)
        && match (of_a.get("managedFields"), of_b.get("managedFields")) {
            (Some(Value::Array(a)), Some(Value::Array(b))) => {
                let same = |(a, b): (&Value, &Value)| match (a, b) {
                    (Value::Object(a), Value::Object(b)) => same_but(&["time"], a, b),
                    _ => a == b,
                };
                a.len() == b.len() && a.iter().zip(b).all(same)
            }
            (a, b) => a == b,
        }
}

/// Whether two maps are equal, these fields left out of account.
fn same_but(left_out: &[&str], a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let counts = |(name, _): &(&String, &Value)| !left_out.contains(&name.as_str());
    a.iter().filter(counts).count() == b.iter().filter(counts).count()
        && a.iter().filter(counts).all(|(name, value)| b.get(name) == Some(value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_made_up_name_is_its_prefix_and_five_letters() {
        let name = generate_name("web-", &Entropy::system());
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        assert_eq!(generate_name(&"x".repeat(80), &Entropy::system()).len(), 63);
    }

    #[test]
    fn the_version_and_the_times_of_managed_fields_make_no_difference_and_everything_else_does() {
        let object = |value: Value| Object::from_value(value).unwrap();
        let base = json!({"kind": "K", "spec": {"a": 1}, "metadata": {"name": "n", "resourceVersion": "1",
            "managedFields": [{"manager": "m", "time": "t", "fieldsV1": {"f:a": {}}}]}});
        let changed = |path: &str, value: Value| {
            let mut changed = base.clone();
            let (above, name) = path.rsplit_once('/').unwrap();
            let above = changed.pointer_mut(above).unwrap().as_object_mut().unwrap();
            match value {
                Value::Null => drop(above.shift_remove(name)),
                value => drop(above.insert(name.to_owned(), value)),
            }
            same(&object(base.clone()), &object(changed.clone())) && same(&object(changed), &object(base.clone()))
        };
        for path in ["/metadata/resourceVersion", "/metadata/managedFields/0/time"] {
            assert!(changed(path, json!("other")) && changed(path, Value::Null), "{path}");
        }
        for path in [
            "/spec/a",
            "/spec",
            "/new",
            "/metadata/name",
            "/metadata/managedFields/0/manager",
            "/metadata/managedFields",
        ] {
            assert!(!changed(path, json!("other")), "{path}");
            assert!(path == "/new" || !changed(path, Value::Null), "{path}");
        }
        assert!(!changed("/metadata", Value::Null));
    }

    #[test]
    fn times_are_whole_seconds() {
        assert_eq!(time("2026-01-02T03:04:05.678Z".parse().unwrap()), "2026-01-02T03:04:05Z");
    }
}
