//! The face every back end shows.

use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::error::{CommitError, RangeError, WatchError};
use crate::types::{Batch, Chunk, Committed, Entry, Revision, Txn};

/// A revisioned key-value log.
///
/// A commit that returned `Ok` is durable and visible to every read that starts afterwards.
pub trait Log: Send + Sync + 'static {
    /// Applies a transaction at the next revision, durably, or not at all. Dropping the future does not
    /// call the commit back.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>>;

    /// The entries whose key starts with `prefix`, in key order, as of revision `at` (`None`: now),
    /// beginning after `after_key`, at most `limit` of them (0: all).
    fn range<'a>(
        &'a self,
        prefix: &'a str,
        at: Option<Revision>,
        after_key: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Chunk, RangeError>>;

    /// One entry, and the revision it was read at.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Entry>, Revision), RangeError>>;

    /// Every event after revision `after` on keys that start with `prefix`, in revision order, in
    /// batches; the events of one revision are never split over two batches. All watchers of the same
    /// keys share a batch. After an error the stream ends; it also ends when the store is closed.
    fn watch(&self, prefix: &str, after: Revision) -> BoxStream<'static, Result<Batch, WatchError>>;

    /// The revision of the newest commit this handle has heard of.
    fn revision(&self) -> Revision;

    /// A revision that is no older than any commit anybody was told of before the call. Watches from [`Log::watch`] of
    /// all keys get there, whether or not anything happened for them.
    fn current(&self) -> BoxFuture<'_, Result<Revision, RangeError>>;

    /// Whether the store answered when it was last asked.
    fn is_available(&self) -> bool {
        true
    }

    /// Forgets the history before revision `before` (which itself can still be read, and watched from).
    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), RangeError>>;
}
