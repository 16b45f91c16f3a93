//! Owns the wire forms of lists that are not lists of objects: `meta.k8s.io/v1` `Table` and
//! `PartialObjectMetadata`. Never computes a cell.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// The head of one table column (`TableColumnDefinition`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The heading, as `Ready`; kubectl prints it in capitals.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean`, `date`.
    pub type_: String,
    /// `name` for the column that is the object's name.
    pub format: String,
    /// What it shows.
    pub description: String,
    /// 0 is always shown, more only with `-o wide`.
    pub priority: i32,
}

impl Column {
    fn to_value(&self) -> Value {
        json!({"name": self.name, "type": self.type_, "format": self.format,
               "description": self.description, "priority": self.priority})
    }
}

/// What a row carries beside its cells (`?includeObject=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata, the default.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// Reads the query parameter; nothing is `Metadata`.
    pub fn parse(text: &str) -> Option<IncludeObject> {
        match text {
            "" | "Metadata" => Some(IncludeObject::Metadata),
            "None" => Some(IncludeObject::None),
            "Object" => Some(IncludeObject::Object),
            _ => None,
        }
    }
}

/// One row: its cells, and as much of the object as was asked for.
pub fn row(cells: Vec<Value>, object: &Map<String, Value>, include: IncludeObject) -> Value {
    match include {
        IncludeObject::None => json!({"cells": cells}),
        IncludeObject::Metadata => json!({"cells": cells, "object": partial_metadata(object)}),
        IncludeObject::Object => json!({"cells": cells, "object": object}),
    }
}

/// A `Table`. `list_metadata` is the list's own (`resourceVersion`, `continue`, `remainingItemCount`).
/// No columns leaves the definitions empty, as later events of a watch do.
pub fn table(columns: &[Column], rows: Vec<Value>, list_metadata: Map<String, Value>) -> Value {
    let definitions: Value =
        if columns.is_empty() { Value::Null } else { columns.iter().map(Column::to_value).collect() };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata,
           "columnDefinitions": definitions, "rows": rows})
}

/// An object's `PartialObjectMetadata`.
pub fn partial_metadata(object: &Map<String, Value>) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| json!({}));
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

/// The same from an object's bytes, in that version of `meta.k8s.io`: its metadata is copied as it stands, nothing else of it
/// is decoded. Without any it is empty, as above.
pub fn partial_metadata_bytes(object: &[u8], version: &str) -> String {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    let metadata = serde_json::from_slice::<Head<'_>>(object).map_or("{}", |head| head.metadata.get());
    format!(r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/{version}","metadata":{metadata}}}"#)
}

/// A `PartialObjectMetadataList`.
pub fn partial_metadata_list<'a>(
    objects: impl IntoIterator<Item = &'a Map<String, Value>>,
    list_metadata: Map<String, Value>,
) -> Value {
    let items: Vec<Value> = objects.into_iter().map(partial_metadata).collect();
    json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata, "items": items})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_the_same_from_a_value_and_from_bytes() {
        let object = json!({"kind": "Pod", "metadata": {"name": "a", "labels": {"b": "\"c\""}}, "spec": {"d": 1}});
        for object in [object, json!({"spec": {}})] {
            let bytes = partial_metadata_bytes(object.to_string().as_bytes(), "v1");
            let read: Value = serde_json::from_str(&bytes).unwrap();
            assert_eq!(read, partial_metadata(object.as_object().unwrap()));
        }
    }

    #[test]
    fn a_row_carries_what_was_asked_for() {
        let object = json!({"kind": "Pod", "metadata": {"name": "a"}, "spec": {}});
        let object = object.as_object().unwrap();
        assert_eq!(row(vec![json!("a")], object, IncludeObject::None), json!({"cells": ["a"]}));
        assert_eq!(
            row(vec![], object, IncludeObject::Metadata)["object"],
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "a"}})
        );
        assert_eq!(row(vec![], object, IncludeObject::Object)["object"]["kind"], "Pod");
    }

    #[test]
    fn a_table_names_its_columns() {
        let column = Column {
            name: "Name".into(),
            type_: "string".into(),
            format: "name".into(),
            description: "d".into(),
            priority: 0,
        };
        let table = table(&[column], vec![], Map::new());
        assert_eq!(table["kind"], "Table");
        assert_eq!(table["columnDefinitions"][0]["format"], "name");
        assert_eq!(table["rows"], json!([]));
    }
}
