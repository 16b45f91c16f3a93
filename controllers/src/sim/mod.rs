//! A world for tests of plans: objects as JSON, no server, no tasks, time passed in.
//!
//! A loop's test gives the world to its `see`-like function, plans, and applies the actions with [`World::create`],
//! [`World::patch`] and [`World::delete`], which do what the API server's write path does to metadata: uid, generation,
//! resource version, creation and deletion time.

use crate::{Key, owners};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::client::Body;
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// A client whose every request is answered with what the function says of its path, and the paths that were asked.
pub(crate) fn client(
    answer: impl Fn(&str) -> (u16, String) + Clone + Send + 'static,
) -> (kube::Client, Arc<Mutex<Vec<String>>>) {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = asked.clone();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let path = request.uri().to_string();
        let (status, body) = answer(&path);
        seen.lock().push(path);
        async move { http::Response::builder().status(status).body(Body::from(body.into_bytes())) }
    });
    (kube::Client::new(service, "default"), asked)
}

/// Applies a JSON merge patch (RFC 7386).
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(target) = target {
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

/// Objects by kind and key, and the time.
#[derive(Clone, Debug)]
pub(crate) struct World {
    objects: BTreeMap<(&'static str, Key), Value>,
    revision: u64,
    pub(crate) now: Timestamp,
}

impl World {
    pub(crate) fn new() -> Self {
        World { objects: BTreeMap::new(), revision: 0, now: "2026-11-21T10:00:00Z".parse().expect("a time") }
    }

    pub(crate) fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// The typed object of that key.
    pub(crate) fn get<K: DeserializeOwned>(&self, kind: &'static str, key: &Key) -> Option<Arc<K>> {
        self.objects
            .get(&(kind, key.clone()))
            .map(|value| Arc::new(serde_json::from_value(value.clone()).expect("an object of its type")))
    }

    /// Every typed object of that kind.
    pub(crate) fn list<K: DeserializeOwned>(&self, kind: &'static str) -> Vec<Arc<K>> {
        self.objects
            .iter()
            .filter(|((held, _), _)| *held == kind)
            .map(|(_, value)| Arc::new(serde_json::from_value(value.clone()).expect("an object of its type")))
            .collect()
    }

    /// The objects of that kind controlled by `uid`.
    pub(crate) fn controlled_by<K: DeserializeOwned + kube::Resource>(
        &self,
        kind: &'static str,
        uid: &str,
    ) -> Vec<Arc<K>> {
        let mut list = self.list::<K>(kind);
        list.retain(|object| owners::is_controlled_by(object.meta(), uid));
        list
    }

    /// The object as it stands.
    pub(crate) fn raw(&self, kind: &'static str, key: &Key) -> Option<&Value> {
        self.objects.get(&(kind, key.clone()))
    }

    fn next_revision(&mut self) -> String {
        self.revision += 1;
        self.revision.to_string()
    }

    /// Creates an object; `false` when the name is taken. A `generateName` gets a number.
    pub(crate) fn create<T: Serialize>(&mut self, kind: &'static str, object: &T) -> bool {
        let mut value = crate::patch::json(object);
        let revision = self.next_revision();
        let now = Time(self.now);
        let meta = value.get_mut("metadata").and_then(Value::as_object_mut).expect("metadata");
        if let (None, Some(prefix)) = (meta.get("name"), meta.get("generateName").and_then(Value::as_str)) {
            let name = format!("{prefix}{revision}");
            meta.insert("name".to_owned(), json!(name));
        }
        meta.insert("uid".to_owned(), json!(format!("{kind}-{revision}")));
        meta.insert("generation".to_owned(), json!(1));
        meta.insert("creationTimestamp".to_owned(), json!(now));
        meta.insert("resourceVersion".to_owned(), json!(revision));
        let text = |name: &str| meta.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = Key::new(&text("namespace"), &text("name"));
        if self.objects.contains_key(&(kind, key.clone())) {
            return false;
        }
        self.objects.insert((kind, key), value);
        true
    }

    /// Merges a patch; `false` on a conflict (resource version) or when there is no such object.
    pub(crate) fn patch(&mut self, kind: &'static str, key: &Key, patch: &Value) -> bool {
        let revision = self.next_revision();
        let Some(object) = self.objects.get_mut(&(kind, key.clone())) else { return false };
        let expected = patch.pointer("/metadata/resourceVersion");
        if expected.is_some_and(|expected| {
            !expected.is_null() && Some(expected) != object.pointer("/metadata/resourceVersion")
        }) {
            return false;
        }
        let before = object.clone();
        merge(object, patch);
        if *object != before {
            if object.get("spec") != before.get("spec") {
                let generation = object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0) + 1;
                merge(object, &json!({"metadata": {"generation": generation}}));
            }
            merge(object, &json!({"metadata": {"resourceVersion": revision}}));
        }
        true
    }

    /// Takes an object out at once, and what it controls.
    pub(crate) fn delete(&mut self, kind: &'static str, key: &Key) {
        let Some(gone) = self.objects.remove(&(kind, key.clone())) else { return };
        self.revision += 1;
        let uid = gone.pointer("/metadata/uid").cloned();
        let orphans: Vec<_> = self
            .objects
            .iter()
            .filter(|(_, value)| value.pointer("/metadata/ownerReferences/0/uid") == uid.as_ref())
            .map(|(id, _)| id.clone())
            .collect();
        for (kind, key) in orphans {
            self.delete(kind, &key);
        }
    }
}
