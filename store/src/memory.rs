//! The log in memory alone: for tests and simulations, never for anything that must outlive its process.
//!
//! Owns no thread, reads no clock and draws no chance: a commit is judged, applied and announced before
//! [`Log::commit`] returns its future, so the same calls in the same order give the same log. Says the same as
//! [`crate::Embedded`] (the model tests run against both).

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use futures::stream::BoxStream;

use crate::embedded::Shared;
use crate::error::{CommitError, RangeError, WatchError};
use crate::log::Log;
use crate::resolve::{Overlay, resolve};
use crate::state::{HistoryBounds, Record, State};
use crate::types::{Batch, Chunk, Committed, Entry, Revision, Txn};
use crate::watchers::watch;

/// A log that lives as long as its handle and its watchers.
pub struct Memory {
    shared: Arc<Shared>,
    /// History is bounded by events and bytes only: age never matters, so any instant does.
    epoch: Instant,
}

impl Memory {
    /// An empty log that keeps at most `history_events` events of history.
    pub fn new(history_events: usize) -> Memory {
        Memory::over(State::new(bounds(history_events)))
    }

    /// A log of its own with the current entries of this one, at its revision and without its history: many
    /// simulations start from one prepared state.
    pub fn fork(&self, history_events: usize) -> Memory {
        let state = self.shared.state.read();
        let mut forked = State::at_checkpoint(state.revision(), bounds(history_events));
        for entry in state.page(state.revision(), None, usize::MAX) {
            forked.restore(entry);
        }
        Memory::over(forked)
    }

    /// The oldest revision that can still be read, and watched from.
    pub fn oldest(&self) -> Revision {
        self.shared.state.read().floor()
    }

    /// Ends every watch; later commits and reads are refused.
    pub fn close(&self) {
        self.shared.queue.close();
        self.shared.watchers.wake_all();
    }

    fn over(state: State) -> Memory {
        Memory { shared: Arc::new(Shared::new(state, None)), epoch: Instant::now() }
    }

    fn apply(&self, txn: &Txn) -> Result<Committed, CommitError> {
        if self.shared.is_closed() {
            return Err(CommitError::Closed);
        }
        let mut state = self.shared.state.write();
        let revision = state.revision().next();
        let changes = resolve(&state, &Overlay::default(), txn, revision)?;
        if changes.is_empty() {
            return Ok(Committed { revision: state.revision(), entries: Vec::new() });
        }
        let applied = state.apply(vec![Record { revision, changes }], self.epoch);
        self.shared.watchers.publish(&applied.events);
        Ok(Committed { revision, entries: applied.written.into_iter().next().unwrap_or_default() })
    }
}

fn bounds(events: usize) -> HistoryBounds {
    HistoryBounds { events, bytes: usize::MAX, age: Duration::MAX }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.close();
    }
}

impl Log for Memory {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        ready(self.apply(&txn)).boxed()
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        at: Option<Revision>,
        after_key: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Chunk, RangeError>> {
        let read = || match self.shared.is_closed() {
            true => Err(RangeError::Closed),
            false => self.shared.state.read().range(prefix, at, after_key, limit),
        };
        ready(read()).boxed()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Entry>, Revision), RangeError>> {
        let read = || {
            if self.shared.is_closed() {
                return Err(RangeError::Closed);
            }
            let state = self.shared.state.read();
            Ok((state.get(key).cloned(), state.revision()))
        };
        ready(read()).boxed()
    }

    fn watch(&self, prefix: &str, after: Revision) -> BoxStream<'static, Result<Batch, WatchError>> {
        watch(self.shared.clone(), prefix, after)
    }

    fn revision(&self) -> Revision {
        self.shared.state.read().revision()
    }

    fn current(&self) -> BoxFuture<'_, Result<Revision, RangeError>> {
        let read = || match self.shared.is_closed() {
            true => Err(RangeError::Closed),
            false => Ok(self.shared.state.read().revision()),
        };
        ready(read()).boxed()
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), RangeError>> {
        let mut state = self.shared.state.write();
        let current = state.revision();
        if before > current {
            return ready(Err(RangeError::FutureRevision { requested: before, current })).boxed();
        }
        state.compact(before);
        ready(Ok(())).boxed()
    }
}
