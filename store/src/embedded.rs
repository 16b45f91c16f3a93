//! The embedded back end: one directory, no server.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, ready};
use futures::stream::BoxStream;
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::disk::{Disk, RealDisk, own_dir, to_write};
use crate::error::{CommitError, OpenError, RangeError, WatchError};
use crate::log::Log;
use crate::recovery::recover;
use crate::state::{HistoryBounds, State};
use crate::types::{Batch, Chunk, Committed, Entry, Revision, Txn};
use crate::watchers::{Watchers, watch};
use crate::writer::{Counters, Pending, Queue, Writer};

/// How much an embedded store keeps, and when it tidies up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The most events kept in history.
    pub history_events: usize,
    /// The most bytes of old and new values that history keeps alive.
    pub history_bytes: usize,
    /// How long an event is kept. History is looked at when something is committed: an idle store keeps
    /// what it has.
    pub history_age: Duration,
    /// The length in bytes at which a log file is closed and the next one begun.
    pub segment_bytes: u64,
    /// The bytes of log that have left history before a checkpoint is worth writing; never less than the
    /// size of the checkpoint itself.
    pub checkpoint_bytes: u64,
}

impl Default for Options {
    /// Ten minutes of history, at most 100,000 events and 64 MiB; log files of 8 MiB.
    fn default() -> Options {
        Options {
            history_events: 100_000,
            history_bytes: 64 << 20,
            history_age: Duration::from_secs(600),
            segment_bytes: 8 << 20,
            checkpoint_bytes: 16 << 20,
        }
    }
}

impl Options {
    pub(crate) fn bounds(&self) -> HistoryBounds {
        HistoryBounds { events: self.history_events, bytes: self.history_bytes, age: self.history_age }
    }
}

/// Counters since the store was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Transactions committed.
    pub commits: u64,
    /// Group commits: writes, each with one fdatasync.
    pub frames: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Bytes of all current keys and values.
    pub live_bytes: u64,
}

/// What the handle, the writer and the watchers share.
pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    pub(crate) queue: Queue,
    pub(crate) watchers: Watchers,
    pub(crate) counters: Counters,
    /// The revision of the newest checkpoint file, 0 for none.
    pub(crate) checkpoint: AtomicU64,
}

impl Shared {
    pub(crate) fn new(state: State, checkpoint: Option<Revision>) -> Shared {
        Shared {
            state: RwLock::new(state),
            queue: Queue::default(),
            watchers: Watchers::default(),
            counters: Counters::default(),
            checkpoint: AtomicU64::new(checkpoint.map_or(0, |revision| revision.0)),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}

/// A log in a directory of this machine.
///
/// Dropping it closes it: what is queued is written first.
pub struct Embedded {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Embedded {
    /// Opens the store in `dir`, making it when it does not exist. Nobody but its owner may look into it: Secrets lie there
    /// as they are.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]; nothing is changed on disk in that case.
    pub async fn open(dir: &Path, options: Options) -> Result<Embedded, OpenError> {
        let dir = dir.to_path_buf();
        let opened = tokio::task::spawn_blocking(move || Embedded::open_on(Arc::new(RealDisk), &dir, options)).await;
        opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    pub(crate) fn open_on(disk: Arc<dyn Disk>, dir: &Path, options: Options) -> Result<Embedded, OpenError> {
        own_dir(dir).map_err(|e| OpenError::io(dir, e))?;
        let lock = lock(dir)?;
        let recovered = recover(dir, disk, options.bounds(), options.segment_bytes)?;
        let shared = Arc::new(Shared::new(recovered.state, recovered.checkpoint));
        let writer = Writer::new(shared.clone(), recovered.segments, options.checkpoint_bytes);
        let thread = thread::Builder::new().name("store-writer".into()).spawn(move || {
            writer.run();
            // Only now may another process have the directory.
            drop(lock);
        });
        let thread = thread.map_err(|e| OpenError::io(dir, e))?;
        Ok(Embedded { shared, writer: Mutex::new(Some(thread)) })
    }

    /// Writes what is queued, ends every watch and lets go of the directory. Later commits and reads are
    /// refused.
    pub async fn close(&self) {
        if let Some(writer) = self.stop() {
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
        self.shared.watchers.wake_all();
    }

    fn stop(&self) -> Option<JoinHandle<()>> {
        self.shared.queue.close();
        self.writer.lock().take()
    }

    /// The oldest revision that can still be read, and watched from.
    pub fn oldest(&self) -> Revision {
        self.shared.state.read().floor()
    }

    /// Counters since the store was opened.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        Stats {
            commits: counters.commits.load(Ordering::Relaxed),
            frames: counters.frames.load(Ordering::Relaxed),
            checkpoints: counters.checkpoints.load(Ordering::Relaxed),
            live_bytes: self.shared.state.read().live_bytes() as u64,
        }
    }
}

/// Holds the directory for as long as the file is open; the kernel lets go when the process dies.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("LOCK");
    let file = to_write().truncate(false).open(&path);
    let file = file.map_err(|e| OpenError::io(&path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { dir: dir.into() }),
        Err(TryLockError::Error(error)) => Err(OpenError::io(path, error)),
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some(writer) = self.stop() {
            let _ = writer.join();
        }
        self.shared.watchers.wake_all();
    }
}

impl Log for Embedded {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        let (reply, answer) = oneshot::channel();
        if self.shared.queue.push(Pending { txn, reply }).is_err() {
            return ready(Err(CommitError::Closed)).boxed();
        }
        answer.map(|answer| answer.unwrap_or(Err(CommitError::Closed))).boxed()
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
