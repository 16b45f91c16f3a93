//! One object that cannot be read must not stop the list or watch that holds it.
//!
//! A Kubernetes API server serves custom resources that fit their schema and not our types, and built-in kinds with
//! fields of a newer version. `Api<Decoded<K>>` reads every object on its own.

use std::borrow::Cow;

use kube::core::{ObjectMeta, Resource};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// An object as the server sent it: read, or why it could not be.
#[derive(Clone, Debug)]
pub enum Decoded<K> {
    /// The object.
    Object(K),
    /// Its identity, and what is wrong with it.
    Undecodable(Box<Undecodable>),
}

/// What is known of an object that cannot be read.
#[derive(Clone, Debug)]
pub struct Undecodable {
    /// Name, namespace, uid and resource version; nothing else.
    pub metadata: ObjectMeta,
    /// What the decoder said.
    pub error: String,
}

/// The fields of `metadata` that say which object and which state of it, and that are strings on every server.
#[derive(Deserialize)]
struct Identified {
    metadata: Identity,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Decoded<K> {
    /// Only from JSON. In a watch event `type` must come before `object`, as Kubernetes writes it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let error = match serde_json::from_str(text.get()) {
            Ok(object) => return Ok(Decoded::Object(object)),
            Err(error) => error.to_string(),
        };
        // Without a name it is no object at all: the answer as a whole is wrong.
        let Identified { metadata } = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        let metadata = ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            ..ObjectMeta::default()
        };
        Ok(Decoded::Undecodable(Box::new(Undecodable { metadata, error })))
    }
}

impl<K: Resource> Resource for Decoded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &K::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &K::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &K::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &K::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Decoded::Object(object) => object.meta(),
            Decoded::Undecodable(unread) => &unread.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Decoded::Object(object) => object.meta_mut(),
            Decoded::Undecodable(unread) => &mut unread.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::{ObjectList, WatchEvent};

    use super::*;

    const GOOD: &str = r#"{"metadata":{"name":"good","resourceVersion":"7"},"data":{"a":"b"}}"#;
    const BAD: &str =
        r#"{"metadata":{"name":"bad","namespace":"ns","uid":"u","resourceVersion":"8","finalizers":[null]}}"#;

    #[test]
    fn a_list_and_a_watch_survive_an_object_that_cannot_be_read() {
        let list = format!(r#"{{"kind":"ConfigMapList","apiVersion":"v1","metadata":{{}},"items":[{BAD},{GOOD}]}}"#);
        assert!(serde_json::from_str::<ObjectList<ConfigMap>>(&list).is_err(), "or there is nothing to guard against");
        let list: ObjectList<Decoded<ConfigMap>> = serde_json::from_str(&list).unwrap();
        let [Decoded::Undecodable(bad), Decoded::Object(good)] = &list.items[..] else { panic!("{list:?}") };
        assert_eq!(bad.metadata.name.as_deref(), Some("bad"));
        assert_eq!(bad.metadata.resource_version.as_deref(), Some("8"));
        assert!(bad.error.contains("null"), "{bad:?}");
        assert_eq!(good.data.as_ref().unwrap()["a"], "b");
        let event = format!(r#"{{"type":"ADDED","object":{BAD}}}"#);
        let event: WatchEvent<Decoded<ConfigMap>> = serde_json::from_str(&event).unwrap();
        assert!(matches!(event, WatchEvent::Added(Decoded::Undecodable(_))));
    }

    #[test]
    fn what_has_no_metadata_is_no_object() {
        assert!(serde_json::from_str::<Decoded<ConfigMap>>("[]").is_err());
    }
}
