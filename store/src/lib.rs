//! The store: a revisioned key-value log.
//!
//! Owns revisions, durability, history and compaction. Never knows what a Pod is: keys are text, values
//! are bytes.
//!
//! A commit is a transaction: it gets one revision, and is durable before it is acknowledged. The
//! embedded back end ([`Embedded`]) keeps everything current in memory, and on disk a log of the changes
//! beside a checkpoint of the state where that log begins:
//!
//! ```text
//! checkpoint-<revision>          the state at the oldest revision of history
//! log-<first revision>           every commit since, in frames of one group commit each
//! LOCK                           held (flock) while a process has the directory open
//! ```
//!
//! - `writer`: one thread turns waiting transactions into one frame, one write, one fdatasync.
//! - `resolve`: does a transaction's expectation hold; pure.
//! - `state`: current entries, history, recent events; pure.
//! - `watchers`: cursors into the recent events.
//! - `memory`: the same log without files, for tests and simulations.
//! - `etcd`: the same log in an etcd cluster, for several API servers.
//! - `codec`, `segment`, `entries`, `checkpoint`, `recovery`, `disk`: the files.
//! - `backup`: all of a store in one file, and back.

mod backup;
mod checkpoint;
mod codec;
mod disk;
mod embedded;
mod entries;
mod error;
mod etcd;
mod log;
mod memory;
mod recovery;
mod resolve;
mod segment;
mod state;
mod types;
mod watchers;
mod writer;

pub use backup::{AFTER_BACKUP, BackupReader, BackupWriter, Filling, Snapshot, holds_a_store};
pub use embedded::{Embedded, Options, Stats};
pub use error::{CommitError, OpenError, RangeError, WatchError};
pub use etcd::{Etcd, EtcdError, EtcdOptions, EtcdServers, Form};
pub use log::Log;
pub use memory::Memory;
pub use types::{Batch, Chunk, Committed, Entry, Event, EventKind, Expect, Key, Op, Revision, Txn, Value};
