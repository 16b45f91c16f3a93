//! What can go wrong, by verb; each variant says whether trying again can help.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::types::{Key, Revision};

/// Why a transaction was not committed. Nothing of it was applied, but for [`CommitError::Uncertain`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// An expectation did not hold. Read again, then try again.
    #[error("{key} is at {}, which is not what was expected", .current.map_or("no revision".into(), |r| format!("revision {r}")))]
    Conflict {
        /// The first key that was not as expected.
        key: Key,
        /// The revision it was last modified at; `None` when it does not exist.
        current: Option<Revision>,
    },
    /// The disk is full, or a quota is. Trying again helps once there is room.
    #[error("no room to write the log: {0}")]
    Full(Arc<io::Error>),
    /// The disk failed. Every later commit first tries to bring the log back to its last good state.
    #[error("writing the log failed: {0}")]
    Io(Arc<io::Error>),
    /// The transaction is larger than the store takes; trying again does not help.
    #[error("too large for the store: {0}")]
    TooLarge(String),
    /// The transaction itself makes no sense; trying again does not help.
    #[error("malformed transaction: {0}")]
    Invalid(String),
    /// The store is away. Trying again helps once it is back.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store went away in the middle: the transaction may have been committed. Read again to see.
    #[error("whether it was stored is not known: {0}")]
    Uncertain(String),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a range or a get was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The revision asked for has left the history.
    #[error("revision {requested} has been compacted, the oldest is {oldest}")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The oldest revision that can still be read.
        oldest: Revision,
    },
    /// The revision asked for has not happened yet.
    #[error("revision {requested} is in the future, the newest is {current}")]
    FutureRevision {
        /// The revision asked for.
        requested: Revision,
        /// The store's current revision.
        current: Revision,
    },
    /// A value is in no form we know: somebody else wrote it.
    #[error("{key} cannot be read: {why}")]
    Unreadable {
        /// Its key.
        key: Key,
        /// What is wrong with it.
        why: Arc<str>,
    },
    /// The store is away. Trying again helps once it is back.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a watch ended. The watcher must list again and watch from there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The revision to start after had already left the history.
    #[error("revision {requested} has been compacted, the oldest is {oldest}")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The oldest revision that can still be watched from.
        oldest: Revision,
    },
    /// The watcher read so slowly that events it had not seen have left the history.
    #[error("the watcher fell behind: it had read up to {read}, the oldest is {oldest}")]
    Lagged {
        /// The last revision the watcher had been given.
        read: Revision,
        /// The oldest revision that can still be watched from.
        oldest: Revision,
    },
    /// A value is in no form we know: somebody else wrote it.
    #[error("{key} cannot be read: {why}")]
    Unreadable {
        /// Its key.
        key: Key,
        /// What is wrong with it.
        why: Arc<str>,
    },
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process (or another handle of this one) has the directory open.
    #[error("{dir} is in use by another process")]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// A file is damaged in a way no crash explains. Nothing was changed.
    #[error("{path} is damaged at byte {offset}: {what}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The files were written by a newer version of the store.
    #[error("{path} has format version {found}, this program reads version {supported}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// There is a store already.
    #[error("{dir} already holds a store")]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(path: impl Into<PathBuf>, source: io::Error) -> OpenError {
        OpenError::Io { path: path.into(), source }
    }

    pub(crate) fn corrupt(path: impl Into<PathBuf>, offset: u64, what: impl Into<String>) -> OpenError {
        OpenError::Corrupt { path: path.into(), offset, what: what.into() }
    }
}
