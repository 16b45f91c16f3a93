//! Owns the shape every API object shares: a JSON map with `apiVersion`, `kind` and `metadata`, and the
//! accessors everybody needs on it. Never validates: a field of the wrong type reads as absent.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One API object. Field order is kept as it was sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Object(pub Map<String, Value>);

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerRef {
    /// Group and version of the owner, as in its own `apiVersion`.
    pub api_version: String,
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner; it lives in the same namespace or in none.
    pub name: String,
    /// Identity of the owner: a new object of the same name is not it.
    pub uid: String,
    /// Whether the owner manages this object; at most one does.
    pub controller: bool,
    /// Whether foreground deletion of the owner waits for this object.
    pub block_owner_deletion: bool,
}

impl Object {
    /// An object with nothing but its type.
    pub fn new(api_version: &str, kind: &str) -> Object {
        let mut map = Map::new();
        map.insert("apiVersion".into(), api_version.into());
        map.insert("kind".into(), kind.into());
        Object(map)
    }

    /// The object a JSON value is; gives the value back when it is not an object.
    pub fn from_value(value: Value) -> Result<Object, Value> {
        match value {
            Value::Object(map) => Ok(Object(map)),
            other => Err(other),
        }
    }

    /// The object as a JSON value, no copy made.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    /// The object as a JSON value, copied.
    pub fn to_value(&self) -> Value {
        Value::Object(self.0.clone())
    }

    /// `apiVersion`, or "".
    pub fn api_version(&self) -> &str {
        self.top("apiVersion")
    }

    /// `kind`, or "".
    pub fn kind(&self) -> &str {
        self.top("kind")
    }

    fn top(&self, field: &str) -> &str {
        self.0.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// `metadata`, when it is an object.
    pub fn metadata(&self) -> Option<&Map<String, Value>> {
        self.0.get("metadata").and_then(Value::as_object)
    }

    /// `metadata`, made (or replaced, when it is no object) if need be.
    pub fn metadata_mut(&mut self) -> &mut Map<String, Value> {
        child_map(&mut self.0, "metadata")
    }

    fn meta(&self, field: &str) -> &str {
        self.metadata().and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
    }

    /// `metadata.name`, or "".
    pub fn name(&self) -> &str {
        self.meta("name")
    }

    /// `metadata.generateName`, or "".
    pub fn generate_name(&self) -> &str {
        self.meta("generateName")
    }

    /// `metadata.namespace`, or "" for objects without one.
    pub fn namespace(&self) -> &str {
        self.meta("namespace")
    }

    /// `metadata.uid`, or "".
    pub fn uid(&self) -> &str {
        self.meta("uid")
    }

    /// `metadata.resourceVersion`, or "". Opaque to clients; here the decimal of a store revision.
    pub fn resource_version(&self) -> &str {
        self.meta("resourceVersion")
    }

    /// `metadata.creationTimestamp` in RFC 3339, or "".
    pub fn creation_timestamp(&self) -> &str {
        self.meta("creationTimestamp")
    }

    /// `metadata.deletionTimestamp`: set once deletion has begun.
    pub fn deletion_timestamp(&self) -> Option<&str> {
        self.metadata()?.get("deletionTimestamp")?.as_str().filter(|t| !t.is_empty())
    }

    /// `metadata.generation`: counts changes of the desired state. 0 when absent.
    pub fn generation(&self) -> i64 {
        self.metadata().and_then(|m| m.get("generation")).and_then(Value::as_i64).unwrap_or(0)
    }

    /// The string-valued entries of `metadata.labels`.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.strings("labels")
    }

    /// The string-valued entries of `metadata.annotations`.
    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        self.strings("annotations")
    }

    fn strings(&self, field: &str) -> impl Iterator<Item = (&str, &str)> {
        self.metadata()
            .and_then(|m| m.get(field))
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }

    /// One label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata()?.get("labels")?.get(key)?.as_str()
    }

    /// One annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata()?.get("annotations")?.get(key)?.as_str()
    }

    /// Sets one label.
    pub fn set_label(&mut self, key: &str, value: impl Into<String>) {
        child_map(self.metadata_mut(), "labels").insert(key.to_owned(), Value::String(value.into()));
    }

    /// Sets one annotation.
    pub fn set_annotation(&mut self, key: &str, value: impl Into<String>) {
        child_map(self.metadata_mut(), "annotations").insert(key.to_owned(), Value::String(value.into()));
    }

    /// Removes one annotation, and the map with it when it was the last.
    pub fn remove_annotation(&mut self, key: &str) -> Option<Value> {
        let metadata = self.0.get_mut("metadata")?.as_object_mut()?;
        let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
        let removed = annotations.shift_remove(key);
        if annotations.is_empty() {
            metadata.shift_remove("annotations");
        }
        removed
    }

    /// `metadata.finalizers`: who must let go before the object may disappear.
    pub fn finalizers(&self) -> impl Iterator<Item = &str> {
        self.metadata()
            .and_then(|m| m.get("finalizers"))
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
    }

    /// `metadata.ownerReferences`; malformed entries read as far as they can.
    pub fn owner_references(&self) -> Vec<OwnerRef> {
        let entries = self.metadata().and_then(|m| m.get("ownerReferences")).and_then(Value::as_array);
        entries.into_iter().flatten().filter_map(Value::as_object).map(OwnerRef::read).collect()
    }

    /// The owner that manages this object, if any.
    pub fn controller(&self) -> Option<OwnerRef> {
        self.owner_references().into_iter().find(|owner| owner.controller)
    }

    /// The value at a path of field names.
    pub fn get(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.0.get(*first)?, |value, field| value.get(*field))
    }

    /// The string at a path.
    pub fn get_str(&self, path: &[&str]) -> Option<&str> {
        self.get(path)?.as_str()
    }

    /// The integer at a path.
    pub fn get_i64(&self, path: &[&str]) -> Option<i64> {
        self.get(path)?.as_i64()
    }

    /// The boolean at a path.
    pub fn get_bool(&self, path: &[&str]) -> Option<bool> {
        self.get(path)?.as_bool()
    }

    /// The list at a path; empty when absent.
    pub fn get_list(&self, path: &[&str]) -> &[Value] {
        self.get(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The value at a path, to change in place.
    pub fn get_mut(&mut self, path: &[&str]) -> Option<&mut Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.0.get_mut(*first)?, |value, field| value.get_mut(*field))
    }

    /// Sets the value at a path; what is missing on the way is made, what is no object on the way is
    /// replaced. An empty path changes nothing.
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        let Some((last, way)) = path.split_last() else { return };
        let parent = way.iter().fold(&mut self.0, |map, field| child_map(map, field));
        parent.insert((*last).to_owned(), value.into());
    }

    /// Removes and returns the value at a path. Parents left empty stay.
    pub fn remove(&mut self, path: &[&str]) -> Option<Value> {
        let (last, way) = path.split_last()?;
        let parent = way.iter().try_fold(&mut self.0, |map, field| map.get_mut(*field)?.as_object_mut())?;
        parent.shift_remove(*last)
    }
}

fn child_map<'a>(map: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    let child = map.entry(field).or_insert_with(|| Value::Object(Map::new()));
    if !child.is_object() {
        *child = Value::Object(Map::new());
    }
    match child {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
}

impl OwnerRef {
    fn read(map: &Map<String, Value>) -> OwnerRef {
        let text = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let flag = |field: &str| map.get(field).and_then(Value::as_bool).unwrap_or_default();
        OwnerRef {
            api_version: text("apiVersion"),
            kind: text("kind"),
            name: text("name"),
            uid: text("uid"),
            controller: flag("controller"),
            block_owner_deletion: flag("blockOwnerDeletion"),
        }
    }
}

impl From<Map<String, Value>> for Object {
    fn from(map: Map<String, Value>) -> Object {
        Object(map)
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Value {
        Value::Object(object.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Object {
        Object::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "shop", "generation": 3, "labels": {"app": "web", "odd": 1},
                "finalizers": ["a/b"], "ownerReferences": [{"kind": "ReplicaSet", "name": "rs", "uid": "u", "controller": true}]},
            "spec": {"replicas": 2}
        }))
        .unwrap()
    }

    #[test]
    fn accessors_read_what_is_there_and_default_the_rest() {
        let pod = pod();
        assert_eq!((pod.name(), pod.namespace(), pod.uid(), pod.generation()), ("web", "shop", "", 3));
        assert_eq!(pod.labels().collect::<Vec<_>>(), [("app", "web")]);
        assert_eq!(pod.finalizers().collect::<Vec<_>>(), ["a/b"]);
        assert_eq!(pod.controller().unwrap().name, "rs");
        assert_eq!(pod.deletion_timestamp(), None);
        assert_eq!(Object::default().name(), "");
    }

    #[test]
    fn set_makes_the_way_and_remove_leaves_parents() {
        let mut pod = pod();
        pod.set(&["spec", "strategy", "type"], "Recreate");
        pod.set(&["spec", "replicas", "odd"], 1);
        assert_eq!(pod.get_str(&["spec", "strategy", "type"]), Some("Recreate"));
        assert_eq!(pod.get_i64(&["spec", "replicas", "odd"]), Some(1));
        assert_eq!(pod.remove(&["spec", "strategy", "type"]), Some(json!("Recreate")));
        assert_eq!(pod.get(&["spec", "strategy"]), Some(&json!({})));
        assert_eq!(pod.remove(&["no", "where"]), None);
    }

    #[test]
    fn the_last_annotation_takes_its_map_along() {
        let mut pod = pod();
        pod.set_annotation("a", "1");
        assert_eq!(pod.annotation("a"), Some("1"));
        pod.remove_annotation("a");
        assert!(pod.metadata().unwrap().get("annotations").is_none());
    }
}
