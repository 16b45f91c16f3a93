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
use crate::types::{Event, Revision};

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
        let sleeper =
            Arc::new(Sleeper { prefix: prefix.into(), unseen_after: AtomicU64::new(0), bell: Notify::new() });
        self.0.lock().push(Arc::downgrade(&sleeper));
        sleeper
    }

    /// Wakes those who have something to see in `events`, which are applied already.
    pub(crate) fn publish(&self, events: &[Event]) {
        let Some(first) = events.first() else { return };
        let before = first.revision.0 - 1;
        self.0.lock().retain(|weak| {
            let Some(sleeper) = weak.upgrade() else { return false };
            if events.iter().any(|event| event.key().starts_with(&*sleeper.prefix)) {
                let _ = sleeper.unseen_after.compare_exchange(0, before, Ordering::SeqCst, Ordering::SeqCst);
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
    after: Revision,
    ended: bool,
}

/// The stream behind [`crate::Log::watch`].
pub(crate) fn watch(
    shared: Arc<Shared>,
    prefix: &str,
    after: Revision,
) -> BoxStream<'static, Result<Arc<[Event]>, WatchError>> {
    // The position is checked now and not at the first poll: history may move on in between.
    let (sleeper, oldest) = (shared.watchers.register(prefix), shared.state.read().floor());
    if after < oldest {
        return stream::iter([Err(WatchError::Compacted { requested: after, oldest })]).boxed();
    }
    let cursor = Cursor { shared, sleeper, after, ended: false };
    stream::unfold(cursor, |mut cursor| async move {
        let item = cursor.next().await?;
        Some((item, cursor))
    })
    .boxed()
}

impl Cursor {
    async fn next(&mut self) -> Option<Result<Arc<[Event]>, WatchError>> {
        while !self.ended {
            // Taken before looking, so that what arrives while looking is announced again.
            let unseen_after = self.sleeper.unseen_after.swap(0, Ordering::SeqCst);
            self.after = self.after.max(Revision(unseen_after));
            let closed = self.shared.is_closed();
            let next = self.shared.state.read().next(&self.sleeper.prefix, self.after);
            match next {
                Next::Events(events, read) => {
                    self.after = read;
                    return Some(Ok(events));
                }
                Next::Behind(oldest) => {
                    self.ended = true;
                    return Some(Err(WatchError::Lagged { read: self.after, oldest }));
                }
                Next::UpToDate(_) if closed => self.ended = true,
                Next::UpToDate(read) => {
                    self.after = read;
                    self.sleeper.bell.notified().await;
                }
            }
        }
        None
    }
}
