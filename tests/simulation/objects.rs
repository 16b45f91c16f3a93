//! What the store holds, parsed once per commit: laws look at it again and again.
//!
//! Owns: every object any law speaks of, by its key in the store.

use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// No law speaks of these.
const UNREAD: [&str; 4] =
    ["/registry/leases.", "/registry/events", "/registry/clusterroles.rbac", "/registry/clusterrolebindings.rbac"];

/// Objects by key. Cloning is cheap.
#[derive(Clone, Default)]
pub(crate) struct Objects(BTreeMap<String, Arc<Value>>);

impl Objects {
    /// Takes in what was written; `None` for what no law speaks of.
    pub(crate) fn put(&mut self, key: &str, bytes: &[u8]) -> Option<Put> {
        if UNREAD.iter().any(|prefix| key.starts_with(prefix)) {
            return None;
        }
        let after: Arc<Value> = Arc::new(serde_json::from_slice(bytes).expect("objects are stored as JSON"));
        let before = self.0.insert(key.to_owned(), after.clone());
        Some(Put { before, after })
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<Arc<Value>> {
        self.0.remove(key)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).map(AsRef::as_ref)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, object)| (key.as_str(), object.as_ref()))
    }

    /// Those whose key begins so, with their keys.
    pub(crate) fn keyed<'a>(&'a self, prefix: &str) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        let prefix = prefix.to_owned();
        let from = self.0.range(prefix.clone()..).map(|(key, object)| (key.as_str(), object.as_ref()));
        from.take_while(move |(key, _)| key.starts_with(&prefix))
    }

    /// Those whose key begins so.
    pub(crate) fn of<'a>(&'a self, prefix: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.keyed(prefix).map(|(_, object)| object)
    }
}

/// A write of one object.
pub(crate) struct Put {
    pub(crate) before: Option<Arc<Value>>,
    pub(crate) after: Arc<Value>,
}
