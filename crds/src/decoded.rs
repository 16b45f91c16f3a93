//! One object that cannot be read must not stop the list or watch that holds it.
//!
//! A Kubernetes API server serves custom resources that fit their schema and not our types, and built-in kinds with
//! fields of a newer version. `Api<Encoded>` lists and watches every kind alike: it reads which object it is and keeps
//! the text, and who knows the type decodes each object on its own. One watcher in the binary instead of one for every
//! kind is also what keeps it small.

use std::borrow::Cow;

use kube::core::{ApiResource, DynamicResourceScope, ObjectMeta, Resource};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// An object as the server wrote it.
#[derive(Clone, Debug)]
pub struct Encoded {
    metadata: ObjectMeta,
    text: Box<RawValue>,
}

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

impl Encoded {
    /// Name, namespace, uid and resource version; nothing else.
    pub fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    /// Reads the whole object.
    pub fn decode<K: DeserializeOwned>(self) -> Decoded<K> {
        match serde_json::from_str(self.text.get()) {
            Ok(object) => Decoded::Object(object),
            Err(error) => {
                Decoded::Undecodable(Box::new(Undecodable { metadata: self.metadata, error: error.to_string() }))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Encoded {
    /// Only from JSON. In a watch event `type` must come before `object`, as Kubernetes writes it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        // Without a name it is no object at all: the answer as a whole is wrong.
        let Identified { metadata } = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        let metadata = ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            ..ObjectMeta::default()
        };
        Ok(Encoded { metadata, text })
    }
}

impl Resource for Encoded {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(dt: &ApiResource) -> Cow<'_, str> {
        dt.kind.as_str().into()
    }

    fn group(dt: &ApiResource) -> Cow<'_, str> {
        dt.group.as_str().into()
    }

    fn version(dt: &ApiResource) -> Cow<'_, str> {
        dt.version.as_str().into()
    }

    fn plural(dt: &ApiResource) -> Cow<'_, str> {
        dt.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
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
        let list: ObjectList<Encoded> = serde_json::from_str(&list).unwrap();
        let items: Vec<Decoded<ConfigMap>> = list.items.into_iter().map(Encoded::decode).collect();
        let [Decoded::Undecodable(bad), Decoded::Object(good)] = &items[..] else { panic!("{items:?}") };
        assert_eq!(bad.metadata.name.as_deref(), Some("bad"));
        assert_eq!(bad.metadata.resource_version.as_deref(), Some("8"));
        assert!(bad.error.contains("null"), "{bad:?}");
        assert_eq!(good.data.as_ref().unwrap()["a"], "b");
        let event = format!(r#"{{"type":"ADDED","object":{BAD}}}"#);
        let event: WatchEvent<Encoded> = serde_json::from_str(&event).unwrap();
        let WatchEvent::Added(added) = event else { panic!("{event:?}") };
        assert_eq!(added.metadata().uid.as_deref(), Some("u"));
        assert!(matches!(added.decode::<ConfigMap>(), Decoded::Undecodable(_)));
    }

    #[test]
    fn what_has_no_metadata_is_no_object() {
        assert!(serde_json::from_str::<Encoded>("[]").is_err());
    }
}
