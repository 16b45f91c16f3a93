//! One object and one change of it, as the cache holds them.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use proa_apimachinery::object::Object;
use proa_apimachinery::part::Part;
use proa_apimachinery::protobuf;
use proa_apimachinery::status::ApiError;
use proa_store::{Entry, Key};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// An object as it was committed. Labels and fields are decoded when first asked for.
pub struct Item {
    /// The store's key.
    pub key: Key,
    /// The committed JSON, `resourceVersion` included.
    pub bytes: Bytes,
    /// The revision that created the object.
    pub created: u64,
    /// The revision that wrote these bytes.
    pub revision: u64,
    meta: OnceLock<Meta>,
}

/// Names and values.
pub(super) type Pairs = Box<[(Box<str>, Box<str>)]>;

/// What selectors look at.
#[derive(Default)]
pub struct Meta {
    /// `metadata.labels`.
    pub labels: Pairs,
    /// The kind's selectable fields, in the order of its row. Without their names: there are many objects of a kind.
    pub fields: Box<[Box<str>]>,
}

impl Meta {
    /// The labels of an object, and its fields as `fields` finds them.
    pub fn of(object: &Object, fields: &dyn Fn(&Object) -> Box<[Box<str>]>) -> Meta {
        let labels = object.labels().map(|(key, value)| (key.into(), value.into())).collect();
        Meta { labels, fields: fields(object) }
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(have, _)| **have == *key).map(|(_, value)| &**value)
    }

    /// The value of a selectable field; absent ones read as empty, as on Kubernetes.
    pub fn field(&self, at: usize) -> &str {
        self.fields.get(at).map_or("", |value| value)
    }
}

impl Item {
    /// An item from its parts.
    pub fn new(key: Key, bytes: Bytes, created: u64, revision: u64) -> Self {
        Item { key, bytes, created, revision, meta: OnceLock::new() }
    }

    /// An item from the store's entry.
    pub fn from_entry(entry: Entry) -> Self {
        Item::new(entry.key, entry.bytes, entry.created.0, entry.modified.0)
    }

    /// The namespace part of the key; empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        let mut parts = self.key.split('/').skip(3);
        match (parts.next(), parts.next()) {
            (Some(namespace), Some(_)) => namespace,
            _ => "",
        }
    }

    /// The name part of the key.
    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }

    /// The decoded object. The store holds only what this server encoded, so an undecodable entry is
    /// damage; it reads as an empty object, which no request can match.
    pub fn object(&self) -> Object {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|error| {
            tracing::error!(key = %self.key, %error, "stored object does not decode");
            Object::default()
        })
    }

    /// Whether it is on its way out. Every create asks that of its namespace: no more of it is decoded than that.
    pub fn is_terminating(&self) -> bool {
        #[derive(Default, Deserialize)]
        struct Head {
            metadata: Metadata,
        }
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            deletion_timestamp: Option<IgnoredAny>,
        }
        serde_json::from_slice::<Head>(&self.bytes).is_ok_and(|head| head.metadata.deletion_timestamp.is_some())
    }

    /// Labels and selectable fields, decoded once per item: `part` of it, which holds them.
    pub fn meta(&self, part: &Part, fields: &dyn Fn(&Object) -> Box<[Box<str>]>) -> &Meta {
        self.meta.get_or_init(|| Meta::of(&part.read(&self.bytes).unwrap_or_else(|_| self.object()), fields))
    }
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was created or changed.
    Put,
    /// It is gone; the item holds its last state under the deleting revision.
    Delete,
}

/// One committed change, shared by every watcher.
pub struct Change {
    /// The revision of the commit.
    pub revision: u64,
    /// What happened.
    pub kind: ChangeKind,
    /// The object after the change (for a deletion: its last state).
    pub item: Arc<Item>,
    /// The object before the change. Filled by the cache, which knows it already.
    pub previous: Option<Arc<Item>>,
    frames: Frames,
    protobuf_frames: OnceLock<Box<Frames>>,
}

/// The event on the wire, by its type.
type Frames = [OnceLock<Bytes>; 3];

/// The type of a watch event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum EventType {
    /// The object came into view.
    Added = 0,
    /// It changed.
    Modified = 1,
    /// It went out of view.
    Deleted = 2,
}

impl EventType {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        ["ADDED", "MODIFIED", "DELETED"][self as usize]
    }
}

impl Change {
    pub(super) fn put(revision: u64, item: Arc<Item>) -> Self {
        Change {
            revision,
            kind: ChangeKind::Put,
            item,
            previous: None,
            frames: Frames::default(),
            protobuf_frames: OnceLock::new(),
        }
    }

    pub(super) fn delete(revision: u64, item: Arc<Item>) -> Self {
        Change {
            revision,
            kind: ChangeKind::Delete,
            item,
            previous: None,
            frames: Frames::default(),
            protobuf_frames: OnceLock::new(),
        }
    }

    /// The event's frame in protobuf, encoded once for all watchers that want it so.
    pub fn protobuf_frame(&self, event: EventType) -> Bytes {
        let frames = self.protobuf_frames.get_or_init(Box::default);
        frames[event as usize].get_or_init(|| protobuf_frame(event.name(), &self.item.bytes)).clone()
    }

    /// The same change of the same object, shown in another form.
    pub fn showing(&self, item: Arc<Item>, previous: Option<Arc<Item>>) -> Change {
        Change {
            revision: self.revision,
            kind: self.kind,
            item,
            previous,
            frames: Frames::default(),
            protobuf_frames: OnceLock::new(),
        }
    }

    /// The event's line on the wire, encoded once for all watchers.
    pub fn frame(&self, event: EventType) -> Bytes {
        self.frames[event as usize].get_or_init(|| event_line(event.name(), &self.item.bytes)).clone()
    }
}

/// An event in protobuf, given its object's JSON. An object that does not fit its type is told as an error: the client
/// lists again, and learns there which it is.
pub fn protobuf_frame(event: &str, object: &[u8]) -> Bytes {
    let encoded = protobuf::encode(object).map(|object| protobuf::frame(event, &object));
    let told = encoded.or_else(|error| {
        tracing::error!(%error, "an event could not be encoded");
        let status = ApiError::internal(error).to_status().to_string();
        protobuf::encode(status.as_bytes()).map(|status| protobuf::frame("ERROR", &status))
    });
    told.unwrap_or_default().into()
}

/// `{"type":…,"object":…}` and a newline.
pub fn event_line(event: &str, object: &[u8]) -> Bytes {
    let mut line = BytesMut::with_capacity(object.len() + event.len() + 24);
    line.put_slice(b"{\"type\":\"");
    line.put_slice(event.as_bytes());
    line.put_slice(b"\",\"object\":");
    line.put_slice(object);
    line.put_slice(b"}\n");
    line.freeze()
}
