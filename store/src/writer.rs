//! The one thread that writes: it takes every transaction that is waiting, makes one frame of them, and
//! syncs once. While it syncs, the next ones gather.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::checkpoint;
use crate::codec::{open_frame, seal_frame, write_record};
use crate::disk::is_full;
use crate::embedded::Shared;
use crate::error::CommitError;
use crate::resolve::{Overlay, resolve};
use crate::segment::{Segments, checkpoint_name};
use crate::state::Record;
use crate::types::{Committed, Revision, Txn};

/// A frame is closed once its transactions reach this size; the rest waits for the next one.
const FRAME_BYTES: usize = 8 << 20;

/// A transaction waiting to be written.
pub(crate) struct Pending {
    pub(crate) txn: Txn,
    pub(crate) reply: oneshot::Sender<Result<Committed, CommitError>>,
}

#[derive(Default)]
struct Waiting {
    pending: VecDeque<Pending>,
    closed: bool,
}

/// Where transactions wait. Bounded by its callers: each waits for its own answer.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    bell: Condvar,
}

impl Queue {
    /// Adds a transaction; gives it back when the store is closed.
    pub(crate) fn push(&self, pending: Pending) -> Result<(), Pending> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(pending);
        }
        waiting.pending.push_back(pending);
        drop(waiting);
        self.bell.notify_one();
        Ok(())
    }

    /// Takes no more; what is waiting is still written.
    pub(crate) fn close(&self) {
        self.waiting.lock().closed = true;
        self.bell.notify_one();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.waiting.lock().closed
    }

    /// Takes no more and answers no one who waits: their channels close.
    fn abandon(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        waiting.pending.clear();
    }

    /// Everything that waits, at least one; `None` once closed and empty.
    fn take(&self) -> Option<VecDeque<Pending>> {
        let mut waiting = self.waiting.lock();
        loop {
            if !waiting.pending.is_empty() {
                return Some(std::mem::take(&mut waiting.pending));
            }
            if waiting.closed {
                return None;
            }
            self.bell.wait(&mut waiting);
        }
    }
}

/// Counters since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commits: AtomicU64,
    pub(crate) frames: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
}

/// What will be answered to a transaction once the frame is on the disk.
enum Answer {
    Written,
    Nothing,
    Refused(CommitError),
}

struct Judged {
    reply: oneshot::Sender<Result<Committed, CommitError>>,
    answer: Answer,
    /// It rests on something of the same frame: if the frame fails, so does this answer.
    tentative: bool,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    segments: Segments,
    checkpoint_bytes: u64,
    frame: Vec<u8>,
    checkpointing: Option<JoinHandle<Option<Revision>>>,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, segments: Segments, checkpoint_bytes: u64) -> Writer {
        Writer { shared, segments, checkpoint_bytes, frame: Vec::new(), checkpointing: None }
    }

    /// Writes until the queue is closed.
    pub(crate) fn run(mut self) {
        // Should this thread ever panic, nobody must wait for it for ever.
        let _last_words = Abandon(self.shared.clone());
        while let Some(mut waiting) = self.shared.queue.take() {
            while !waiting.is_empty() {
                self.write(&mut waiting);
                self.checkpoint();
            }
        }
        if let Some(running) = self.checkpointing.take() {
            self.finish_checkpoint(running);
        }
    }

    /// Writes one frame of what is waiting.
    fn write(&mut self, waiting: &mut VecDeque<Pending>) {
        let last = self.shared.state.read().revision();
        let salt = self.segments.prepare(last);
        open_frame(&mut self.frame, last.next());
        let (records, judged) = self.judge(waiting, last);
        if !records.is_empty() {
            seal_frame(&mut self.frame, salt);
            if let Err(error) = self.segments.append(&self.frame) {
                tracing::error!(%error, "a group commit failed");
                let error = Arc::new(error);
                let failure = if is_full(&error) { CommitError::Full(error) } else { CommitError::Io(error) };
                return fail(judged, last, &failure);
            }
            self.shared.counters.frames.fetch_add(1, Ordering::Relaxed);
            self.shared.counters.commits.fetch_add(records.len() as u64, Ordering::Relaxed);
        }
        // A frame of one huge transaction must not stay allocated.
        if self.frame.capacity() > 2 * FRAME_BYTES {
            self.frame = Vec::new();
        }
        self.publish(records, judged, last);
    }

    /// Decides every transaction in turn and encodes those that go through.
    fn judge(&mut self, waiting: &mut VecDeque<Pending>, last: Revision) -> (Vec<Record>, Vec<Judged>) {
        let state = self.shared.state.read();
        let (mut overlay, mut revision) = (Overlay::default(), last);
        let (mut records, mut judged) = (Vec::new(), Vec::with_capacity(waiting.len()));
        while self.frame.len() < FRAME_BYTES
            && let Some(Pending { txn, reply }) = waiting.pop_front()
        {
            let tentative = overlay.touches(&txn);
            let answer = match resolve(&state, &overlay, &txn, revision.next()) {
                Err(refused) => Answer::Refused(refused),
                Ok(changes) if changes.is_empty() => Answer::Nothing,
                Ok(changes) => {
                    revision = revision.next();
                    overlay.record(revision, &changes);
                    write_record(&mut self.frame, &changes);
                    records.push(Record { revision, changes });
                    Answer::Written
                }
            };
            judged.push(Judged { reply, answer, tentative });
        }
        (records, judged)
    }

    /// Makes a durable frame visible: first to readers, then to watchers, then to those who wrote it.
    fn publish(&self, records: Vec<Record>, judged: Vec<Judged>, last: Revision) {
        let mut revision = last;
        let mut written = Vec::new().into_iter();
        if !records.is_empty() {
            let mut state = self.shared.state.write();
            let applied = state.apply(records, Instant::now());
            self.shared.watchers.publish(&applied.events);
            drop(state);
            written = applied.written.into_iter();
        }
        for Judged { reply, answer, .. } in judged {
            let result = match answer {
                Answer::Written => {
                    revision = revision.next();
                    Ok(Committed { revision, entries: written.next().unwrap_or_default() })
                }
                Answer::Nothing => Ok(Committed { revision, entries: Vec::new() }),
                Answer::Refused(error) => Err(error),
            };
            // Whoever no longer waits does not need to know.
            let _ = reply.send(result);
        }
    }

    /// Starts a checkpoint in the background when it would free more than it costs.
    fn checkpoint(&mut self) {
        match self.checkpointing.take() {
            Some(running) if running.is_finished() => self.finish_checkpoint(running),
            running => self.checkpointing = running,
        }
        if self.checkpointing.is_some() {
            return;
        }
        let (floor, live) = {
            let state = self.shared.state.read();
            (state.floor(), state.live_bytes() as u64)
        };
        if self.segments.dead_bytes(floor) < self.checkpoint_bytes.max(live) {
            return;
        }
        let (shared, dir) = (self.shared.clone(), self.segments.dir.clone());
        let started = thread::Builder::new().name("store-checkpoint".into()).spawn(move || {
            let revision = shared.state.write().pin();
            let result = checkpoint::write(&dir, &shared.state, revision);
            shared.state.write().unpin(Instant::now());
            match result {
                Ok(()) => Some(revision),
                Err(error) => {
                    tracing::warn!(%error, "a checkpoint failed; the log grows until one succeeds");
                    None
                }
            }
        });
        match started {
            Ok(running) => self.checkpointing = Some(running),
            Err(error) => tracing::warn!(%error, "cannot start a checkpoint"),
        }
    }

    /// Removes what a finished checkpoint replaces. Recovery removes what is left behind here.
    fn finish_checkpoint(&mut self, running: JoinHandle<Option<Revision>>) {
        let Ok(Some(revision)) = running.join() else { return };
        self.shared.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        let previous = self.shared.checkpoint.swap(revision.0, Ordering::Relaxed);
        let older = (previous != 0 && previous != revision.0)
            .then(|| self.segments.dir.join(checkpoint_name(Revision(previous))));
        for path in self.segments.take_dead(revision).iter().chain(&older) {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove a file that is no longer needed");
            }
        }
    }
}

struct Abandon(Arc<Shared>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.queue.abandon();
        self.0.watchers.wake_all();
    }
}

/// Answers a frame that did not reach the disk.
fn fail(judged: Vec<Judged>, last: Revision, failure: &CommitError) {
    for Judged { reply, answer, tentative } in judged {
        let result = match answer {
            Answer::Written => Err(failure.clone()),
            _ if tentative => Err(failure.clone()),
            Answer::Nothing => Ok(Committed { revision: last, entries: Vec::new() }),
            Answer::Refused(error) => Err(error),
        };
        let _ = reply.send(result);
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::path::Path;

    use futures::executor::block_on;

    use super::*;
    use crate::disk::faulty::FaultyDisk;
    use crate::{Embedded, Expect, Log, Options, Value};

    fn open(disk: &FaultyDisk, dir: &Path) -> Embedded {
        Embedded::open_on(Arc::new(disk.clone()), dir, Options::default()).unwrap()
    }

    fn put(store: &Embedded, key: &str, expect: Expect) -> Result<Revision, CommitError> {
        block_on(store.commit(Txn::put(key, Value::plain("value"), expect))).map(|done| done.revision)
    }

    #[test]
    fn a_failed_write_or_sync_leaves_nothing_and_the_next_commit_works() {
        for reopen_after in [false, true] {
            let (disk, dir) = (FaultyDisk::default(), tempfile::tempdir().unwrap());
            let store = open(&disk, dir.path());
            assert_eq!(put(&store, "a", Expect::Any).unwrap(), Revision(2));

            disk.0.lock().writes.push(ErrorKind::StorageFull);
            assert!(matches!(put(&store, "b", Expect::Any), Err(CommitError::Full(_))));
            disk.0.lock().syncs.push(ErrorKind::Other);
            assert!(matches!(put(&store, "c", Expect::Any), Err(CommitError::Io(_))));
            assert_eq!(store.revision(), Revision(2));

            let store = if reopen_after {
                drop(store);
                open(&disk, dir.path())
            } else {
                store
            };
            assert_eq!(put(&store, "d", Expect::Absent).unwrap(), Revision(3));
            drop(store);
            let keys: Vec<_> = block_on(open(&disk, dir.path()).range("", None, None, 0)).unwrap().entries;
            assert_eq!(keys.iter().map(|e| &*e.key).collect::<Vec<_>>(), ["a", "d"]);
        }
    }

    #[test]
    fn nothing_is_written_behind_a_tail_that_could_not_be_cut_off() {
        let (disk, dir) = (FaultyDisk::default(), tempfile::tempdir().unwrap());
        let store = open(&disk, dir.path());
        put(&store, "a", Expect::Any).unwrap();
        {
            let mut faults = disk.0.lock();
            faults.writes.push(ErrorKind::StorageFull);
            faults.truncates.extend([ErrorKind::Other; 3]);
        }
        assert!(matches!(put(&store, "b", Expect::Any), Err(CommitError::Full(_))));
        assert!(matches!(put(&store, "b", Expect::Any), Err(CommitError::Io(_))));
        assert!(matches!(put(&store, "b", Expect::Any), Err(CommitError::Io(_))));
        assert_eq!(put(&store, "b", Expect::Any).unwrap(), Revision(3));
        drop(store);
        assert_eq!(open(&disk, dir.path()).revision(), Revision(3));
    }

    /// Puts everything in one frame by queueing it before the writer starts.
    #[test]
    fn what_rests_on_a_failed_frame_fails_with_it() {
        let disk = FaultyDisk::default();
        let dir = tempfile::tempdir().unwrap();
        let (shared, mut writer) = {
            let bounds = crate::state::HistoryBounds { events: 10, bytes: 1 << 20, age: std::time::Duration::MAX };
            let recovered = crate::recovery::recover(dir.path(), Arc::new(disk.clone()), bounds, 1 << 20).unwrap();
            let shared = Arc::new(Shared::new(recovered.state, recovered.checkpoint));
            (shared.clone(), Writer::new(shared, recovered.segments, 1 << 20))
        };
        let mut waiting = VecDeque::new();
        let mut answers = Vec::new();
        for expect in [Expect::Absent, Expect::Absent, Expect::At(Revision(9))] {
            let (reply, answer) = oneshot::channel();
            let key = if expect == Expect::Absent { "a" } else { "other" };
            waiting.push_back(Pending { txn: Txn::put(key, Value::plain("x"), expect), reply });
            answers.push(answer);
        }
        disk.0.lock().writes.push(ErrorKind::StorageFull);
        writer.write(&mut waiting);
        let answers: Vec<_> = answers.into_iter().map(|a| block_on(a).unwrap()).collect();
        assert!(matches!(answers[0], Err(CommitError::Full(_))));
        // It conflicted with something that never happened: that must not be told as a conflict.
        assert!(matches!(answers[1], Err(CommitError::Full(_))));
        assert!(matches!(answers[2], Err(CommitError::Conflict { current: None, .. })));
        assert_eq!(shared.state.read().revision(), Revision::FIRST);
    }
}
