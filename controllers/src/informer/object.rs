//! What an informer holds, whatever its kind: all kinds share one store and one watch loop, and their type comes back
//! where they are read. Code made anew for every kind was a good part of the binary.

use kube::{Resource, core::ObjectMeta};
use proa_crds::{Decoded, Encoded, Pod};
use serde::de::DeserializeOwned;
use std::{
    any::{Any, TypeId},
    sync::Arc,
};

/// An object whose type only its readers know.
pub(crate) trait Object: Any + Send + Sync {
    /// Its `metadata`.
    fn metadata(&self) -> &ObjectMeta;
    /// Its `metadata`, to be changed before anybody else holds it.
    fn metadata_mut(&mut self) -> &mut ObjectMeta;
}

impl<K: Resource + Send + Sync + 'static> Object for K {
    fn metadata(&self) -> &ObjectMeta {
        self.meta()
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        self.meta_mut()
    }
}

/// An object as a store holds it.
pub(crate) type Held = Arc<dyn Object>;

/// How an informer reads what it watches.
pub(super) type Decode = fn(Encoded) -> Decoded<Held>;

/// The [`Decode`] of one type.
pub(super) fn decode<K: Object + DeserializeOwned>() -> Decode {
    fn hold<K: Object>(read: Decoded<K>) -> Decoded<Held> {
        match read {
            Decoded::Object(object) => Decoded::Object(Arc::new(object)),
            Decoded::Undecodable(unread) => Decoded::Undecodable(unread),
        }
    }
    match TypeId::of::<K>() == TypeId::of::<Pod>() {
        true => |object| hold(object.decode_pod()),
        false => |object| hold(object.decode::<K>()),
    }
}

/// The object with its type. An informer holds what its own [`decode`] made, so it has no other.
pub(super) fn typed<K: Send + Sync + 'static>(object: Held) -> Arc<K> {
    let any: Arc<dyn Any + Send + Sync> = object;
    any.downcast().expect("an informer holds objects of its own type")
}

/// As [`typed`], of a reference.
pub(super) fn typed_ref<K: 'static>(object: &dyn Object) -> &K {
    (object as &dyn Any).downcast_ref().expect("an informer holds objects of its own type")
}
