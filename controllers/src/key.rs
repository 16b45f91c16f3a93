//! What a work queue holds and a store is keyed by: namespace and name.

use kube::{Resource, core::ObjectMeta};
use std::{fmt, sync::Arc};

/// Namespace (empty for cluster-scoped objects) and name. Cheap to clone; ordered by namespace, then name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The namespace, or the empty string.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Key { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        Key::in_metadata(object.meta())
    }

    /// The key of the object with that metadata.
    pub(crate) fn in_metadata(metadata: &ObjectMeta) -> Self {
        let name = metadata.name.as_deref().or(metadata.generate_name.as_deref());
        Key::new(metadata.namespace.as_deref().unwrap_or_default(), name.unwrap_or_default())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}
