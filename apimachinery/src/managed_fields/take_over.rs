//! From client-side to server-side apply: the fields change hands first, or nobody would ever remove one that has left
//! the manifest (KEP-555, "Upgrade from client-side to server-side apply").

use super::entries::{Entries, Entry, Id};
use super::{Manager, Operation, set::Set};
use crate::object::Object;

pub(super) fn take_over(object: &mut Object, from: &str, applier: Manager<'_>, now: &str) -> bool {
    let Some(mut entries) = Entries::read(object.get(&["metadata", "managedFields"]).cloned()) else { return false };
    let is_theirs = |entry: &Entry| {
        entry.id.manager == from && entry.id.operation == Operation::Update && entry.id.subresource.is_empty()
    };
    let (theirs, others) = entries.0.into_iter().partition::<Vec<_>, _>(is_theirs);
    entries = Entries(others);
    if theirs.is_empty() {
        return false;
    }
    let id = Id::of(applier);
    let mut own = entries.take(&id).unwrap_or_else(|| Entry::new(id, now.to_owned(), Set::default()));
    for entry in theirs {
        own.fields.absorb(entry.fields);
    }
    entries.0.push(own);
    entries.write(object.metadata_mut());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const PROA: Manager<'static> =
        Manager { name: "proa", operation: Operation::Apply, api_version: "v1", subresource: "" };

    fn entry(manager: &str, operation: &str, subresource: &str, data: &str) -> Value {
        let mut entry = json!({"manager": manager, "operation": operation, "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {format!("f:{data}"): {}}}});
        if !subresource.is_empty() {
            entry["subresource"] = subresource.into();
        }
        entry
    }

    fn after(entries: Value) -> Option<Vec<String>> {
        let mut object = Object::from_value(json!({"metadata": {"name": "a", "managedFields": entries}})).unwrap();
        if !take_over(&mut object, "client-side", PROA, "2026-02-02T00:00:00Z") {
            return None;
        }
        let text = |entry: &Value| {
            format!(
                "{} {} {}",
                entry["manager"].as_str().unwrap(),
                entry["operation"].as_str().unwrap(),
                entry["fieldsV1"]
            )
        };
        Some(object.get_list(&["metadata", "managedFields"]).iter().map(text).collect())
    }

    #[test]
    fn the_fields_of_the_client_side_applier_become_the_server_side_ones() {
        let both = json!([
            entry("proa", "Apply", "", "a"),
            entry("client-side", "Update", "", "b"),
            entry("x", "Update", "", "c")
        ]);
        assert_eq!(
            after(both).unwrap(),
            [r#"proa Apply {"f:data":{"f:a":{},"f:b":{}}}"#, r#"x Update {"f:data":{"f:c":{}}}"#]
        );
        let first = json!([entry("client-side", "Update", "", "b")]);
        assert_eq!(after(first).unwrap(), [r#"proa Apply {"f:data":{"f:b":{}}}"#]);
    }

    #[test]
    fn what_others_own_or_what_is_owned_elsewhere_stays() {
        assert_eq!(after(json!([entry("x", "Update", "", "a")])), None);
        assert_eq!(after(json!([entry("client-side", "Update", "status", "a")])), None);
        assert_eq!(after(json!([entry("client-side", "Apply", "", "a")])), None);
        assert_eq!(after(json!([])), None);
    }
}
