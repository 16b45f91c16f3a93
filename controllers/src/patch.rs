//! Writes: JSON merge patches (RFC 7386) made from two states of an object, and requests whose answers nobody reads.
//!
//! Controllers never replace an object: a field they do not know would be lost.

use kube::{Client, api::PatchParams, core::request};
use serde::Serialize;
use serde_json::{Map, Value};

/// The merge patch that turns `from` into `to`; `None` when they are equal.
pub fn merge_diff(from: &Value, to: &Value) -> Option<Value> {
    match (from, to) {
        (Value::Object(from), Value::Object(to)) => {
            let mut patch = Map::new();
            for key in from.keys().filter(|key| !to.contains_key(*key)) {
                patch.insert(key.clone(), Value::Null);
            }
            for (key, value) in to {
                let change = match from.get(key) {
                    Some(old) => merge_diff(old, value),
                    None => Some(value.clone()),
                };
                if let Some(change) = change {
                    patch.insert(key.clone(), change);
                }
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        _ if from == to => None,
        _ => Some(to.clone()),
    }
}

/// The field manager of every write of ours.
pub const MANAGER: &str = "proa-controllers";

/// Patch parameters that name us as the field manager.
pub fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() }
}

/// Sends a write and reads of the answer only whether it was taken: what came of it the watch brings anyway, and reading
/// a pod costs more than writing it.
///
/// # Errors
///
/// What the server answered, as [`kube::Api`] has it.
pub async fn unread(
    client: &Client,
    request: Result<http::Request<Vec<u8>>, request::Error>,
) -> Result<(), kube::Error> {
    client.request_text(request.map_err(kube::Error::BuildRequest)?).await.map(drop)
}

/// An object as JSON. The API types serialize to JSON always; what does not would be `null`.
pub fn json<T: Serialize>(object: &T) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn apply(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        let target = target.as_object_mut().expect("made an object above");
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                apply(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0..5i64).prop_map(Value::from),
            "[ab]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_patch_of_two_states_leads_from_one_to_the_other(from in tree(), to in tree()) {
            let mut patched = from.clone();
            if let Some(patch) = merge_diff(&from, &to) {
                apply(&mut patched, &patch);
            }
            prop_assert_eq!(patched, to);
        }
    }
}
