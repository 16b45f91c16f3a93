//! The world outside the API: what really runs on which machine, and the record of everything that was committed.
//!
//! Owns: the log that remembers (and hashes) every commit, and the containers of the hollow nodes. The laws are judged
//! on this, never on what a status says.

use crate::laws::Records;
use crate::objects::Objects;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use jiff::Timestamp;
use parking_lot::Mutex;
use proa_store::{Batch, Chunk, CommitError, Committed, Entry, Log, Memory, Op, RangeError, Revision, Txn, WatchError};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use tokio::time::Instant;

/// When every simulated world begins.
pub(crate) const START: &str = "2026-11-21T10:00:00Z";

/// A story of so many commits does not come to rest: something goes round in circles.
const ENDLESS: usize = 20_000;

/// What really runs, by pod uid.
#[derive(Default)]
pub(crate) struct Machines {
    pub(crate) containers: BTreeMap<String, Container>,
    addresses: u32,
    /// Laws that were broken, in words.
    pub(crate) broken: Vec<String>,
}

/// One pod's container on a hollow node.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) node: String,
    /// Whose it is, `namespace/name`.
    pod: String,
    /// Since when it answers.
    pub(crate) ready: Option<Instant>,
}

impl Machines {
    /// Starts a pod's container; it does not answer yet. Of a name there is never a second one anywhere: what a stateful
    /// set promises (Kubernetes: "at most one semantics"), also of pods whose node is not heard.
    pub(crate) fn start(&mut self, uid: &str, pod: &str, node: &str) -> String {
        if let Some(other) = self.containers.values().find(|container| container.pod == pod) {
            self.broken.push(format!("{pod} runs on {node} while it still runs on {}", other.node));
        }
        self.addresses += 1;
        let address = format!("10.244.{}.{}", self.addresses / 250, self.addresses % 250 + 1);
        let container = Container { node: node.to_owned(), pod: pod.to_owned(), ready: None };
        self.containers.insert(uid.to_owned(), container);
        address
    }
}

/// A store that tells the record of each commit before anybody else hears of it.
pub(crate) struct Observed {
    memory: Memory,
    pub(crate) records: Mutex<Records>,
    trace: Mutex<Trace>,
}

/// What was committed, in a number; with `PROA_TRACE` set also in words.
struct Trace {
    hash: DefaultHasher,
    lines: Vec<(u64, String)>,
    origin: Instant,
    /// How many commits were of more than a sign of life or a word about something.
    changes: u64,
}

impl Observed {
    /// A log that has been written to before: these are the objects it holds.
    pub(crate) fn new(memory: Memory, objects: Objects) -> Observed {
        let trace = Trace { hash: DefaultHasher::new(), lines: Vec::new(), origin: Instant::now(), changes: 0 };
        Observed { memory, records: Mutex::new(Records::new(objects)), trace: Mutex::new(trace) }
    }

    /// The simulated time of day.
    pub(crate) fn now(&self) -> Timestamp {
        now_from(self.trace.lock().origin)()
    }

    /// A log that begins where this one is.
    pub(crate) fn fork(&self) -> Memory {
        self.memory.fork(usize::MAX)
    }

    /// Every commit so far: a hash of all up to it, and what it touched.
    pub(crate) fn trace(&self) -> Vec<(u64, String)> {
        self.trace.lock().lines.clone()
    }

    /// A number that grows with every commit of anything but leases and events: no law of a world at rest looks at those.
    pub(crate) fn changes(&self) -> u64 {
        self.trace.lock().changes
    }

    /// Every current entry under a prefix.
    pub(crate) fn entries(&self, prefix: &str) -> Vec<Entry> {
        let chunk = self.memory.range(prefix, None, None, 0).now_or_never();
        chunk.expect("a log in memory answers at once").expect("an open log is read").entries
    }

    fn note(&self, txn: &Txn, committed: &Committed) {
        let mut trace = self.trace.lock();
        let at = trace.origin.elapsed();
        let mut what = format!("{:>9.3} r{}", at.as_secs_f64(), committed.revision);
        for op in txn.ops.iter().filter(|op| !matches!(op, Op::Check { .. })) {
            op.key().hash(&mut trace.hash);
            let idle = ["/registry/leases.", "/registry/events"].iter().any(|prefix| op.key().starts_with(prefix));
            trace.changes += u64::from(!idle);
            what.push(' ');
            what.push_str(if matches!(op, Op::Put { .. }) { "+" } else { "-" });
            what.push_str(op.key());
        }
        for entry in &committed.entries {
            entry.bytes.hash(&mut trace.hash);
        }
        at.hash(&mut trace.hash);
        let hash = trace.hash.finish();
        if std::env::var_os("PROA_TRACE").is_some() {
            eprintln!("{what} {}", committed.entries.iter().map(|e| crate::laws::digest(&e.bytes)).collect::<String>());
        }
        trace.lines.push((hash, what));
    }
}

impl Log for Observed {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        if self.trace.lock().lines.len() >= ENDLESS {
            self.records.lock().broken.push(format!("no rest after {ENDLESS} commits"));
            return futures::future::ready(Err(CommitError::Closed)).boxed();
        }
        // The log in memory commits at once: what is recorded here is in the order of the commits.
        let answer = self.memory.commit(txn.clone()).now_or_never().expect("a log in memory answers at once");
        if let Ok(committed) = &answer {
            self.note(&txn, committed);
            self.records.lock().committed(&txn, committed);
        }
        futures::future::ready(answer).boxed()
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        at: Option<Revision>,
        after_key: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Chunk, RangeError>> {
        self.memory.range(prefix, at, after_key, limit)
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Entry>, Revision), RangeError>> {
        self.memory.get(key)
    }

    fn watch(&self, prefix: &str, after: Revision) -> BoxStream<'static, Result<Batch, WatchError>> {
        self.memory.watch(prefix, after)
    }

    fn revision(&self) -> Revision {
        self.memory.revision()
    }

    fn current(&self) -> BoxFuture<'_, Result<Revision, RangeError>> {
        self.memory.current()
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), RangeError>> {
        self.memory.compact(before)
    }
}

/// The simulated time of day.
pub(crate) fn now_from(origin: Instant) -> impl Fn() -> Timestamp + Clone + Send + Sync + 'static {
    let start: Timestamp = START.parse().expect("a time");
    move || start.checked_add(origin.elapsed()).unwrap_or(start)
}
