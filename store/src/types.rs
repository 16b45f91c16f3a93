//! The vocabulary of the log: keys, revisions, transactions, entries, events.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// The position of a commit in the history of the store: one counter, in commit order; gap-free in a store that
/// nobody else writes to.
///
/// An empty store is at revision 1, so that 0 stays free for "any" (Kubernetes API conventions,
/// resource versions); the first commit is revision 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of a store nothing was ever committed to.
    pub const FIRST: Revision = Revision(1);

    /// The revision after this one.
    pub fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of an entry: any text, by convention `/registry/<resource[.group]>/<namespace>/<name>`.
pub type Key = Arc<str>;

/// The bytes to be stored under a key.
///
/// The store keeps these bytes for as long as they are current or in history: hand over a buffer of
/// their own, not a slice that pins a larger one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The encoded object.
    pub bytes: Bytes,
    /// Where the decimal revision of the commit is inserted, as a byte offset into `bytes`. An object
    /// that carries its own resource version is so encoded once, before its revision is known.
    pub revision_at: Option<usize>,
}

impl Value {
    /// Bytes stored as they are.
    pub fn plain(bytes: impl Into<Bytes>) -> Value {
        Value { bytes: bytes.into(), revision_at: None }
    }

    /// Bytes with the decimal revision inserted at `offset`.
    pub fn with_revision_at(bytes: impl Into<Bytes>, offset: usize) -> Value {
        Value { bytes: bytes.into(), revision_at: Some(offset) }
    }

    /// The bytes once they are committed at this revision.
    pub fn at_revision(&self, revision: Revision) -> Bytes {
        crate::resolve::finish(self, revision)
    }
}

/// What must be true of a key for a transaction to go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The key holds no entry.
    Absent,
    /// The key's entry was last modified by this revision.
    At(Revision),
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Stores a value under a key.
    Put {
        /// The key.
        key: Key,
        /// Its new value.
        value: Value,
        /// What must hold before.
        expect: Expect,
    },
    /// Changes nothing: what must hold of a key that the transaction rests on.
    Check {
        /// The key.
        key: Key,
        /// What must hold.
        expect: Expect,
    },
    /// Removes a key. Removing an absent key with [`Expect::Any`] does nothing.
    Delete {
        /// The key.
        key: Key,
        /// What must hold before.
        expect: Expect,
        /// The final bytes that watchers see; the previous bytes when `None`. An etcd has no place for them: there
        /// watchers see the previous bytes.
        last: Option<Value>,
    },
}

impl Op {
    /// The key this step touches.
    pub fn key(&self) -> &Key {
        match self {
            Op::Put { key, .. } | Op::Delete { key, .. } | Op::Check { key, .. } => key,
        }
    }

    /// What must hold of the key before.
    pub fn expect(&self) -> Expect {
        match self {
            Op::Put { expect, .. } | Op::Delete { expect, .. } | Op::Check { expect, .. } => *expect,
        }
    }
}

/// Steps that happen all at one revision or not at all. No key may occur twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The steps.
    pub ops: Vec<Op>,
}

impl Txn {
    /// A transaction of one put.
    pub fn put(key: impl Into<Key>, value: Value, expect: Expect) -> Txn {
        Txn { ops: vec![Op::Put { key: key.into(), value, expect }] }
    }

    /// A transaction of one delete.
    pub fn delete(key: impl Into<Key>, expect: Expect, last: Option<Value>) -> Txn {
        Txn { ops: vec![Op::Delete { key: key.into(), expect, last }] }
    }
}

/// A key with its value and the revisions that made it. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The value as stored, its revision inserted.
    pub bytes: Bytes,
    /// The commit that created the key (after its last deletion).
    pub created: Revision,
    /// The commit that last wrote the key.
    pub modified: Revision,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The commit it belongs to.
    pub revision: Revision,
    /// What changed.
    pub kind: EventKind,
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &Key {
        match &self.kind {
            EventKind::Put { entry, .. } => &entry.key,
            EventKind::Delete { key, .. } => key,
        }
    }
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was written.
    Put {
        /// What it holds now.
        entry: Entry,
        /// What it held before; `None` when it was created.
        previous: Option<Entry>,
    },
    /// It was removed.
    Delete {
        /// The key.
        key: Key,
        /// The final bytes, as given with the delete, or the previous ones.
        last: Bytes,
        /// What it held before.
        previous: Entry,
    },
}

/// What a watch gives at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Changes, in revision order. May be none: then nothing happened up to `upto`.
    pub events: Arc<[Event]>,
    /// Everything up to here has been given.
    pub upto: Revision,
}

/// A transaction that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its revision; the store's current one when the transaction changed nothing.
    pub revision: Revision,
    /// The entries written, one for each put, in the order of the transaction.
    pub entries: Vec<Entry>,
}

/// A page of entries, in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The entries.
    pub entries: Vec<Entry>,
    /// The revision they were all read at.
    pub revision: Revision,
    /// Whether the prefix holds more entries after these.
    pub more: bool,
    /// How many more.
    pub remaining: usize,
}
