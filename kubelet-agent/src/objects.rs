//! Owns the node's reading of ConfigMaps and Secrets: fetched live when a container starts, watched one by
//! one and only while a volume of a pod shows them. Never lists a namespace (the node authorizer would refuse).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::core::ApiResource;
use kube::runtime::watcher;
use parking_lot::Mutex;
use proa_crds::annotations;
use serde_json::Value;
use tokio::sync::Notify;

use crate::pods::Pod;
use crate::watches::watch;

/// Which of the two kinds that hold configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ObjectKind {
    /// a ConfigMap
    ConfigMap,
    /// a Secret
    Secret,
}

impl ObjectKind {
    /// The word of "not found" messages.
    pub(crate) fn singular(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }

    /// The kind's own name.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

/// One object in the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectRef {
    pub(crate) kind: ObjectKind,
    pub(crate) name: String,
}

impl ObjectRef {
    pub(crate) fn config_map(name: &str) -> Self {
        Self { kind: ObjectKind::ConfigMap, name: name.to_owned() }
    }

    pub(crate) fn secret(name: &str) -> Self {
        Self { kind: ObjectKind::Secret, name: name.to_owned() }
    }
}

/// What an object holds; text and binary data look alike here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) entries: BTreeMap<String, Vec<u8>>,
    /// it will never change: no watch is needed
    pub(crate) immutable: bool,
}

impl Contents {
    #[cfg(test)]
    pub(crate) fn of<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        Self {
            entries: pairs.into_iter().map(|(k, v)| (k.to_owned(), v.as_bytes().to_vec())).collect(),
            immutable: false,
        }
    }

    fn config_map(object: ConfigMap) -> Self {
        let mut entries: BTreeMap<_, _> = object.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes())).collect();
        entries.extend(object.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0)));
        Self { entries, immutable: object.immutable == Some(true) }
    }

    fn secret(object: Secret) -> Self {
        let entries = object.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect();
        Self { entries, immutable: object.immutable == Some(true) }
    }

    /// A kept copy: the JSON of the object's `data` and `binaryData` (proa.dev/config-revision Secrets).
    fn kept(kind: ObjectKind, json: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(json).ok()?;
        let mut object = serde_json::Map::new();
        for field in ["data", "binaryData"] {
            if let Some(v) = value.get(field) {
                object.insert(field.to_owned(), v.clone());
            }
        }
        let object = Value::Object(object);
        let mut contents = match kind {
            ObjectKind::ConfigMap => Self::config_map(serde_json::from_value(object).ok()?),
            ObjectKind::Secret => Self::secret(serde_json::from_value(object).ok()?),
        };
        contents.immutable = true;
        Some(contents)
    }
}

/// Namespace and object of a watch.
type Watched = (String, ObjectRef);

/// Reads and watches objects through the API.
pub(crate) struct Objects {
    client: kube::Client,
    watched: Mutex<HashMap<Watched, Vec<Weak<Notify>>>>,
}

impl Objects {
    pub(crate) fn new(client: kube::Client) -> Arc<Self> {
        Arc::new(Self { client, watched: Mutex::default() })
    }

    /// The object as it is now; `None` when there is none.
    pub(crate) async fn get(&self, namespace: &str, object: &ObjectRef) -> Result<Option<Contents>, kube::Error> {
        match object.kind {
            ObjectKind::ConfigMap => {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
                Ok(api.get_opt(&object.name).await?.map(Contents::config_map))
            }
            ObjectKind::Secret => {
                let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
                Ok(api.get_opt(&object.name).await?.map(Contents::secret))
            }
        }
    }

    /// What `pod` reads under these names: the live objects, or, while it carries the configuration
    /// revision annotation, the copies kept with its revision. What the copy does not hold (a root CA
    /// that admission added) is read live.
    pub(crate) async fn read_for(
        &self,
        pod: &Pod,
        refs: &[ObjectRef],
    ) -> Result<BTreeMap<ObjectRef, Option<Contents>>, kube::Error> {
        let mut found = BTreeMap::new();
        if refs.is_empty() {
            return Ok(found);
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let kept = match kept_name(pod) {
            Some(name) => self.get(namespace, &ObjectRef::secret(name)).await?,
            None => None,
        };
        let live = refs.iter().filter(|r| {
            let key = format!("{}.{}", r.kind.singular(), r.name);
            let copy = kept.as_ref().and_then(|k| k.entries.get(&key)).and_then(|json| Contents::kept(r.kind, json));
            let is_live = copy.is_none();
            if let Some(copy) = copy {
                found.insert((*r).clone(), Some(copy));
            }
            is_live
        });
        let live: Vec<&ObjectRef> = live.collect();
        let fetched = futures::future::try_join_all(live.iter().map(|r| self.get(namespace, r))).await?;
        found.extend(live.into_iter().cloned().zip(fetched));
        Ok(found)
    }

    /// Wakes `interested` when the object changes, for as long as somebody holds that `Notify`.
    pub(crate) fn watch(self: &Arc<Self>, namespace: &str, object: &ObjectRef, interested: &Arc<Notify>) {
        let key = (namespace.to_owned(), object.clone());
        let mut watched = self.watched.lock();
        let entry = watched.entry(key.clone());
        let fresh = matches!(entry, std::collections::hash_map::Entry::Vacant(_));
        let listeners = entry.or_default();
        let weak = Arc::downgrade(interested);
        if !listeners.iter().any(|l| l.ptr_eq(&weak)) {
            listeners.push(weak);
        }
        if fresh {
            let objects = Arc::downgrade(self);
            let client = self.client.clone();
            tokio::spawn(async move {
                let kind = match key.1.kind {
                    ObjectKind::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
                    ObjectKind::Secret => ApiResource::erase::<Secret>(&()),
                };
                follow(client, kind, key, objects).await;
            });
        }
    }

    /// Tells the listeners of `key`; false, and forgotten, when nobody listens any more.
    fn tell(&self, key: &(String, ObjectRef)) -> bool {
        let mut watched = self.watched.lock();
        let Some(listeners) = watched.get_mut(key) else { return false };
        listeners.retain(|l| match l.upgrade() {
            Some(notify) => {
                notify.notify_one();
                true
            }
            None => false,
        });
        if listeners.is_empty() {
            watched.remove(key);
            return false;
        }
        true
    }

    /// Drops watches nobody wants; called when a pod is gone.
    pub(crate) fn forget_unwanted(&self) {
        let mut watched = self.watched.lock();
        for listeners in watched.values_mut() {
            listeners.retain(|l| l.strong_count() > 0);
        }
    }

    fn wanted(&self, key: &(String, ObjectRef)) -> bool {
        let mut watched = self.watched.lock();
        match watched.get(key) {
            Some(listeners) if listeners.iter().any(|l| l.strong_count() > 0) => true,
            _ => {
                watched.remove(key);
                false
            }
        }
    }
}

/// The kept copy a pod reads from, if it carries the annotation.
pub(crate) fn kept_name(pod: &Pod) -> Option<&str> {
    let name = pod.metadata.annotations.as_ref()?.get(annotations::CONFIG_REVISION)?;
    (!name.is_empty()).then_some(name.as_str())
}

/// Watches one object until nobody wants it. The interest is looked at when something happens and once a
/// minute: an unwanted watch costs a little memory, never a wake-up of a pod.
async fn follow(client: kube::Client, kind: ApiResource, key: (String, ObjectRef), objects: Weak<Objects>) {
    // Only told, never read here: a state that cannot be decoded is an event like any other.
    let api = Api::namespaced_with(client, &key.0, &kind);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.1.name));
    let mut events = watch(api, config);
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(60));
    tick.tick().await;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = tick.tick() => {
                match objects.upgrade() {
                    Some(objects) if objects.wanted(&key) => continue,
                    _ => return,
                }
            }
        };
        let Some(objects) = objects.upgrade() else { return };
        let alive = match event {
            Some(Ok(watcher::Event::Init)) => objects.wanted(&key),
            Some(Ok(_)) => objects.tell(&key),
            Some(Err(error)) => {
                tracing::debug!(object = ?key, %error, "watch of a referenced object failed; trying again");
                objects.wanted(&key)
            }
            None => return,
        };
        if !alive {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_copy_reads_like_the_object() {
        let config = Contents::kept(ObjectKind::ConfigMap, br#"{"data":{"a":"1"},"binaryData":{"b":"AQI="}}"#).unwrap();
        assert_eq!(config.entries["a"], b"1");
        assert_eq!(config.entries["b"], [1, 2]);
        let secret = Contents::kept(ObjectKind::Secret, br#"{"data":{"pw":"aHVudGVy"}}"#).unwrap();
        assert_eq!(secret.entries["pw"], b"hunter");
        assert!(secret.immutable);
        assert_eq!(Contents::kept(ObjectKind::Secret, b"nonsense"), None);
    }
}
