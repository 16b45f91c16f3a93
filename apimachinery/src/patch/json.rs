//! Owns JSON patch (RFC 6902), over the json-patch crate: bounds and wording.

use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use super::{MOST_OPERATIONS, PatchError};

/// All `copy` operations of one patch together may make this many nodes and string bytes: without a
/// bound, thirty of them would fill any memory.
const MOST_COPIED: usize = 3 << 20;

/// No operation may build anything deeper, far below what recursion can bear.
const DEEPEST: usize = 128;

/// Applies a JSON patch.
pub fn json(document: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations = patch.as_array().ok_or_else(|| {
        PatchError::Malformed("error decoding patch: a JSON patch is a list of operations".to_owned())
    })?;
    if operations.len() > MOST_OPERATIONS {
        let asked = operations.len();
        let message = format!("The allowed maximum operations in a JSON patch is {MOST_OPERATIONS}, got {asked}");
        return Err(PatchError::TooLarge(message));
    }
    let Patch(operations) = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Malformed(format!("error decoding patch: {error}")))?;
    let mut document = document.clone();
    let mut copied = 0;
    for operation in &operations {
        guard(&document, operation, &mut copied)?;
        json_patch::patch(&mut document, std::slice::from_ref(operation)).map_err(|error| {
            PatchError::Unprocessable(format!(
                "the server rejected our request due to an error in our request: {error}"
            ))
        })?;
    }
    Ok(document)
}

fn guard(document: &Value, operation: &PatchOperation, copied: &mut usize) -> Result<(), PatchError> {
    let (levels, added) = match operation {
        PatchOperation::Add(op) => (op.path.tokens().count(), depth(&op.value)),
        PatchOperation::Replace(op) => (op.path.tokens().count(), depth(&op.value)),
        PatchOperation::Move(op) => (op.path.tokens().count(), op.from.resolve(document).map_or(0, depth)),
        PatchOperation::Copy(op) => {
            let source = op.from.resolve(document).ok();
            *copied = copied.saturating_add(source.map_or(0, size));
            if *copied > MOST_COPIED {
                let message = format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MOST_COPIED}"
                );
                return Err(PatchError::TooLarge(message));
            }
            (op.path.tokens().count(), source.map_or(0, depth))
        }
        PatchOperation::Remove(_) | PatchOperation::Test(_) => (0, 0),
    };
    if levels + added > DEEPEST {
        return Err(PatchError::TooLarge(format!("the patch nests deeper than {DEEPEST} levels")));
    }
    Ok(())
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Object(map) => 8 + map.iter().map(|(k, v)| k.len() + size(v)).sum::<usize>(),
        Value::Array(items) => 8 + items.iter().map(size).sum::<usize>(),
        Value::String(text) => 8 + text.len(),
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json as j;

    use super::*;

    #[test]
    fn operations_apply_in_order() {
        let table = [
            (j!({"a": 1}), j!([{"op": "add", "path": "/b", "value": 2}]), Ok(j!({"a": 1, "b": 2}))),
            (j!({"a": [1]}), j!([{"op": "add", "path": "/a/-", "value": 2}]), Ok(j!({"a": [1, 2]}))),
            (j!({"a": 1}), j!([{"op": "replace", "path": "/a", "value": 2}]), Ok(j!({"a": 2}))),
            (j!({"a": 1}), j!([{"op": "remove", "path": "/a"}]), Ok(j!({}))),
            (j!({"a/b": 1}), j!([{"op": "move", "from": "/a~1b", "path": "/c"}]), Ok(j!({"c": 1}))),
            (j!({"a": 1}), j!([{"op": "copy", "from": "/a", "path": "/c"}]), Ok(j!({"a": 1, "c": 1}))),
            (j!({"a": 1}), j!([{"op": "test", "path": "/a", "value": 2}]), Err("422")),
            (j!({"a": 1}), j!([{"op": "remove", "path": "/b"}]), Err("422")),
            (j!({"a": 1}), j!([{"op": "fly", "path": "/b"}]), Err("400")),
            (j!({"a": 1}), j!({"op": "fly"}), Err("400")),
        ];
        for (document, patch, expected) in table {
            let got = json(&document, &patch).map_err(|error| match error {
                PatchError::Malformed(_) => "400",
                PatchError::Unprocessable(_) => "422",
                PatchError::TooLarge(_) => "413",
            });
            assert_eq!(got, expected, "{patch}");
        }
    }

    #[test]
    fn a_patch_cannot_ask_for_endless_work() {
        let many = Value::Array(vec![j!({"op": "test", "path": "", "value": 1}); MOST_OPERATIONS + 1]);
        assert!(matches!(json(&j!(1), &many), Err(PatchError::TooLarge(_))));
        let doubling: Vec<Value> = (0..60).map(|n| j!({"op": "copy", "from": "", "path": format!("/a{n}")})).collect();
        assert!(matches!(json(&j!({"x": "y"}), &Value::Array(doubling)), Err(PatchError::TooLarge(_))));
    }
}
