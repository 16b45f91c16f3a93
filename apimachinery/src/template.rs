//! Pod templates as revisions compare them: by what they say, not by how it is written down.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// The label and the annotation a revision adds to the template it was made from.
const ADDED: [(&str, &str); 2] = [("labels", "pod-template-hash"), ("annotations", "proa.dev/configuration")];

/// The template without what its revision added to it, without nulls and empty lists, and without the metadata and maps of
/// strings that say nothing. Two templates are the same when these are equal.
pub fn plain(mut template: Value) -> Value {
    if let Some(metadata) = template.get_mut("metadata") {
        for (map, key) in ADDED {
            if let Some(map) = metadata.get_mut(map).and_then(Value::as_object_mut) {
                map.shift_remove(key);
            }
        }
    }
    tidy(template)
}

/// Whether the template carries something its revision added.
pub fn is_of_a_revision(template: &Value) -> bool {
    let held =
        |map: &str, key: &str| template.get("metadata").and_then(|metadata| metadata.get(map)?.get(key)).is_some();
    ADDED.iter().any(|(map, key)| held(map, key))
}

/// A digest of [`plain`]: equal for equal templates, whatever the order of their fields.
pub fn digest(template: &Value) -> String {
    let mut hash = Sha256::new();
    feed(&plain(template.clone()), &mut hash);
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn feed(value: &Value, hash: &mut Sha256) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            hash.update(b"{");
            for (key, value) in entries {
                hash.update(Value::from(key.as_str()).to_string());
                hash.update(b":");
                feed(value, hash);
            }
            hash.update(b"}");
        }
        Value::Array(list) => {
            hash.update(b"[");
            for value in list {
                feed(value, hash);
                hash.update(b",");
            }
            hash.update(b"]");
        }
        other => hash.update(other.to_string()),
    }
}

fn tidy(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(key, value)| (key, tidy(value)))
                .filter(|(key, value)| match value {
                    Value::Null => false,
                    Value::Array(list) => !list.is_empty(),
                    // `emptyDir: {}` says something; an empty map of labels does not.
                    Value::Object(map) if map.is_empty() => !matches!(
                        key.as_str(),
                        "labels" | "annotations" | "nodeSelector" | "metadata" | "limits" | "requests" | "matchLabels"
                    ),
                    _ => true,
                })
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(tidy).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_digest_sees_what_a_template_says_and_not_how() {
        let one =
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let same = json!({
            "spec": {"volumes": [], "containers": [{"image": "i", "env": [], "name": "c"}], "nodeSelector": {}},
            "metadata": {"creationTimestamp": null, "labels": {"pod-template-hash": "x", "app": "web"},
                "annotations": {"proa.dev/configuration": "y"}},
        });
        assert_eq!(digest(&one), digest(&same));
        assert!(is_of_a_revision(&same) && !is_of_a_revision(&one));
        let mut other = one.clone();
        other["spec"]["containers"][0]["image"] = json!("j");
        assert_ne!(digest(&one), digest(&other));
        assert_ne!(digest(&json!({"a": "1"})), digest(&json!({"a": 1})));
        assert_eq!(digest(&one).len(), 32);
    }
}
