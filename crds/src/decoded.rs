//! One object that cannot be read must not stop the list or watch that holds it.
//!
//! A Kubernetes API server serves custom resources that fit their schema and not our types, and built-in kinds with
//! fields of a newer version. `Api<Encoded>` lists and watches every kind alike: it reads which object it is and keeps
//! the text, and who knows the type decodes each object on its own. One watcher in the binary instead of one for every
//! kind is also what keeps it small.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::{ApiResource, DynamicResourceScope, ObjectMeta, Resource};
use serde::de::{DeserializeOwned, DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::Pod;

/// An object as the server wrote it.
#[derive(Clone, Debug)]
pub struct Encoded {
    metadata: ObjectMeta,
    text: Box<str>,
    /// Where in the text the value of `metadata.managedFields` is.
    managed_fields: Option<Range<usize>>,
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

/// What `metadata` says of which object it is and which state of it: strings on every server.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity<'a> {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    #[serde(borrow)]
    managed_fields: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Field {
    Metadata,
    #[serde(other)]
    Other,
}

/// Reads an object up to the end of its `metadata` and no further: half of a pod comes after it, and whoever wants the rest
/// reads it with its type.
struct Head<'s, M>(&'s mut Option<M>);

impl<'de, M: Deserialize<'de>> DeserializeSeed<'de> for Head<'_, M> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, M: Deserialize<'de>> Visitor<'de> for Head<'_, M> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with metadata")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key()? {
            match field {
                Field::Metadata => {
                    *self.0 = Some(map.next_value()?);
                    break;
                }
                Field::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

fn head<'a, M: Deserialize<'a>>(text: &'a str) -> Result<M, serde_json::Error> {
    let mut found = None;
    // The decoder minds that the object goes on; whether it is well formed was seen when its text was cut out.
    let read = Head(&mut found).deserialize(&mut serde_json::Deserializer::from_str(text));
    match (found, read) {
        (Some(metadata), _) => Ok(metadata),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(serde_json::Error::missing_field("metadata")),
    }
}

/// Not made anew wherever an object is read (see [`Encoded::decode_pod`]).
#[inline(never)]
fn identity(text: &str) -> Result<Identity<'_>, serde_json::Error> {
    head(text)
}

/// What an object's `metadata` says of what it belongs to. There are many objects, and most of their metadata is who wrote
/// what.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ties {
    /// `metadata.uid`
    pub uid: Option<String>,
    /// `metadata.name`
    pub name: Option<String>,
    /// `metadata.namespace`
    pub namespace: Option<String>,
    /// `metadata.resourceVersion`
    pub resource_version: Option<String>,
    /// `metadata.ownerReferences`
    pub owner_references: Option<Vec<OwnerReference>>,
    /// `metadata.finalizers`
    pub finalizers: Option<Vec<String>>,
    /// Whether there is a `metadata.deletionTimestamp`
    pub deletion_timestamp: Option<IgnoredAny>,
}

impl Encoded {
    /// Name, namespace, uid and resource version; nothing else.
    pub fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    /// Reads whose the object is, and what holds it.
    ///
    /// # Errors
    /// What the decoder says.
    #[inline(never)]
    pub fn ties(&self) -> Result<Ties, serde_json::Error> {
        head(&self.text)
    }

    /// The object without `metadata.managedFields`: a third of a pod, and in the form of a type the dearest part of it. For
    /// readers that never look at them.
    #[must_use]
    pub fn without_managed_fields(mut self) -> Encoded {
        if let Some(value) = self.managed_fields.take() {
            let mut text = String::from(self.text);
            text.replace_range(value, "null");
            self.text = text.into();
        }
        self
    }

    /// Reads the whole object.
    pub fn decode<K: DeserializeOwned>(self) -> Decoded<K> {
        let read = serde_json::from_str(&self.text);
        self.decoded(read)
    }

    /// As [`Encoded::decode`]. Pods come by the ten thousand, and a reader made here, in a crate that is compiled for speed,
    /// takes a third of the time of one made where it is used.
    #[inline(never)]
    pub fn decode_pod(self) -> Decoded<Pod> {
        let read = serde_json::from_str(&self.text);
        self.decoded(read)
    }

    fn decoded<K>(self, read: Result<K, serde_json::Error>) -> Decoded<K> {
        match read {
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
        let text: Box<str> = Box::<RawValue>::deserialize(deserializer)?.into();
        // Without a name it is no object at all: the answer as a whole is wrong.
        let identity = identity(&text).map_err(D::Error::custom)?;
        let managed_fields = identity.managed_fields.map(|value| {
            let begin = value.get().as_ptr() as usize - text.as_ptr() as usize;
            begin..begin + value.get().len()
        });
        let metadata = ObjectMeta {
            name: identity.name,
            namespace: identity.namespace,
            uid: identity.uid,
            resource_version: identity.resource_version,
            ..ObjectMeta::default()
        };
        Ok(Encoded { metadata, text, managed_fields })
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
        for text in ["[]", "{}", r#"{"kind":"ConfigMap"}"#, r#"{"metadata":null}"#, r#"{"metadata":{"name":7}}"#] {
            assert!(serde_json::from_str::<Encoded>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn where_metadata_stands_in_an_object_does_not_matter() {
        for text in [GOOD, r#"{"data":{"a":"b"},"\u006detadata":{"resourceVersion":"7","name":"good"}}"#] {
            let read: Encoded = serde_json::from_str(text).unwrap();
            assert_eq!(read.metadata().name.as_deref(), Some("good"), "{text}");
            assert_eq!(read.metadata().resource_version.as_deref(), Some("7"), "{text}");
        }
    }

    #[test]
    fn metadata_is_read_without_the_rest() {
        let read: Encoded = serde_json::from_str(r#"{"metadata":{"name":"n","finalizers":["a"]},"data":7}"#).unwrap();
        let ties = read.ties().unwrap();
        assert_eq!((ties.name.as_deref(), ties.finalizers.unwrap()), (Some("n"), vec!["a".to_owned()]));
        assert!(ties.deletion_timestamp.is_none());
        let bad: Encoded = serde_json::from_str(BAD).unwrap();
        assert!(bad.ties().is_err());
        let going = r#"{"metadata":{"name":"n","deletionTimestamp":"2026-01-01T00:00:00Z"}}"#;
        assert!(serde_json::from_str::<Encoded>(going).unwrap().ties().unwrap().deletion_timestamp.is_some());
    }

    #[test]
    fn managed_fields_are_cut_out_and_nothing_else() {
        let bare = r#"{"metadata":{"name":"n","uid":"ü","managedFields":null,"labels":{"managedFields":"[{}]"}},"data":{"a":"b"}}"#;
        for fields in ["[]", r#"[{"manager":"]}","fieldsV1":{"f:metadata":{}}}]"#, "null"] {
            let text = bare.replace("null", fields);
            let read: Encoded = serde_json::from_str(&text).unwrap();
            assert_eq!(&*read.clone().without_managed_fields().text, bare);
            let kept = read.clone().decode::<ConfigMap>();
            let Decoded::Object(kept) = kept else { panic!("{kept:?}") };
            assert_eq!(kept.metadata.managed_fields.is_some(), fields != "null");
            let cut = read.without_managed_fields().decode::<ConfigMap>();
            let Decoded::Object(cut) = cut else { panic!("{cut:?}") };
            assert_eq!(cut, ConfigMap { metadata: ObjectMeta { managed_fields: None, ..kept.metadata }, ..kept });
        }
    }
}
