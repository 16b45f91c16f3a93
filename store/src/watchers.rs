//! Watching: a cursor into the ring of recent events, woken when there is something for it.
//!
//! A watcher owns no queue, so a slow one costs nothing: when the history has moved past its cursor it
//! is told that it lagged.

use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::embedded::Shared;
use crate::error::WatchError;
use crate::state::Next;
use crate::types::{Batch, Event, Revision};

/// One watcher, as the writer sees it.
#[derive(Debug)]
struct Sleeper {
    prefix: Box<str>,
    /// The revision before the first event for this watcher since it last looked; 0 when there is none.
    /// A watcher of quiet keys so skips what others did meanwhile, even when that has been forgotten.
    unseen_after: AtomicU64,
    bell: Notify,
}

/// Everyone who may want to be woken.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Mutex<Vec<Weak<Sleeper>>>);

impl Watchers {
    fn register(&self, prefix: &str) -> Arc<Sleeper> {
        let sleeper = Arc::new(Sleeper { prefix: prefix.into(), unseen_after: AtomicU64::new(0), bell: Notify::new() });
        self.0.lock().push(Arc::downgrade(&sleeper));
        sleeper
    }

    /// Wakes those who have something to see in `events`; called with the state still locked for writing,
    /// right after they were applied.
    pub(crate) fn publish(&self, events: &[Event]) {
        let Some(first) = events.first() else { return };
        let before = first.revision.0 - 1;
        self.0.lock().retain(|weak| {
            let Some(sleeper) = weak.upgrade() else { return false };
            if events.iter().any(|event| event.key().starts_with(&*sleeper.prefix)) {
                let _ = sleeper.unseen_after.compare_exchange(0, before, Ordering::Relaxed, Ordering::Relaxed);
                sleeper.bell.notify_one();
            }
            true
        });
    }

    /// Wakes everyone.
    pub(crate) fn wake_all(&self) {
        for sleeper in self.0.lock().iter().filter_map(Weak::upgrade) {
            sleeper.bell.notify_one();
        }
    }
}

struct Cursor {
    shared: Arc<Shared>,
    sleeper: Arc<Sleeper>,
    /// Everything up to here has been given, or was not wanted.
    after: Revision,
    /// The last look found nothing more: only what was announced since is news.
    caught_up: bool,
    ended: bool,
}

/// The stream behind [`crate::Log::watch`].
pub(crate) fn watch(
    shared: Arc<Shared>,
    prefix: &str,
    after: Revision,
) -> BoxStream<'static, Result<Batch, WatchError>> {
    // The position is checked now and not at the first poll: history may move on in between.
    let (sleeper, oldest) = (shared.watchers.register(prefix), shared.state.read().floor());
    if after < oldest {
        return stream::iter([Err(WatchError::Compacted { requested: after, oldest })]).boxed();
    }
    let cursor = Cursor { shared, sleeper, after, caught_up: false, ended: false };
    stream::unfold(cursor, |mut cursor| async move {
        let item = cursor.next().await?;
        Some((item, cursor))
    })
    .boxed()
}

impl Cursor {
    async fn next(&mut self) -> Option<Result<Batch, WatchError>> {
        while !self.ended {
            let closed = self.shared.is_closed();
            match self.look() {
                Next::Events(events, read) => {
                    self.after = read;
                    return Some(Ok(Batch { events, upto: read }));
                }
                Next::Behind(oldest) => {
                    self.ended = true;
                    return Some(Err(WatchError::Lagged { read: self.after, oldest }));
                }
                Next::UpToDate(_) if closed => self.ended = true,
                Next::UpToDate(read) => {
                    self.after = read;
                    self.caught_up = true;
                    self.sleeper.bell.notified().await;
                }
            }
        }
        None
    }

    fn look(&mut self) -> Next {
        // Events are applied and announced under one write lock: here both or neither are seen.
        let state = self.shared.state.read();
        let unseen_after = Revision(self.sleeper.unseen_after.swap(0, Ordering::Relaxed));
        if std::mem::take(&mut self.caught_up) {
            if unseen_after == Revision(0) {
                return Next::UpToDate(state.revision());
            }
            self.after = self.after.max(unseen_after);
        }
        state.next(&self.sleeper.prefix, self.after)
    }
}
