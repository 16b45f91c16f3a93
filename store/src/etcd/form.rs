//! What etcd calls a key and how it keeps a value: for whoever opens the store to say.

use bytes::Bytes;

use crate::resolve::finish;
use crate::types::{Key, Revision, Value};

/// The form of keys and values in etcd.
///
/// In etcd a key has the revision that last wrote it, so a value there does not carry it; and others may have
/// written what is there, in their own form.
pub trait Form: Send + Sync + 'static {
    /// Where a key, or all keys that start with a prefix, lie in etcd. What follows the part that names the resource
    /// stays as it is, so that order within one is kept.
    fn key_out(&self, key: &str) -> String;

    /// The key of what lies there; `None` for what is none of ours.
    fn key_in(&self, key: &str) -> Option<Key>;

    /// The bytes to be kept of a value.
    fn value_out(&self, value: &Value) -> Bytes;

    /// The value of kept bytes.
    ///
    /// # Errors
    /// Says what is wrong with bytes that cannot be understood.
    fn value_in(&self, key: &str, kept: &Bytes) -> Result<Value, String>;

    /// A key that [`Form::key_in`] does not know, below the prefix everything is watched by. Writing it makes a watch
    /// tell how far it is, where etcd cannot be asked.
    fn mark(&self) -> String;
}

/// The final bytes of a value, in a buffer of their own: an answer's must not stay alive behind one small value.
pub(crate) fn own_bytes(value: &Value, revision: Revision) -> Bytes {
    match value.revision_at {
        Some(_) => finish(value, revision),
        None => Bytes::copy_from_slice(&value.bytes),
    }
}
