//! The etcd back end: a cluster of etcd 3.4 or newer, over its v3 API, shared by any number of API servers.
//!
//! Owns how our verbs are said in etcd's, trying again where that is safe, and following a cluster whose members come
//! and go. Never keeps a copy of what lies there. Where it differs from the back ends of one process:
//!
//! - revisions are etcd's: in commit order, but others write there too, so not every one is one of ours;
//! - watchers of a deletion see what was there before, at the deletion's revision, as on Kubernetes: etcd has no place
//!   for other final bytes;
//! - a commit whose outcome was lost with its connection is tried again; what then cannot be told is
//!   [`CommitError::Uncertain`].
//!
//! - `wire`, `messages`: protocol buffers, by hand: the few messages need no compiler; pure.
//! - `channel`: connections, TLS, gRPC's frames.
//! - `commit`: transactions and their outcome; pure.
//! - `follow`: watches. `compactor`: forgetting. `form`: keys and values as they lie there.

mod channel;
mod commit;
mod compactor;
mod follow;
mod form;
mod messages;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep};

use crate::error::{CommitError, RangeError, WatchError};
use crate::log::Log;
use crate::resolve::check_form;
use crate::types::{Batch, Chunk, Committed, Entry, Expect, Revision, Txn};
pub use channel::EtcdServers;
use channel::{CallError, Channel};
pub use form::Form;
use messages::{RangeRequest, RangeResponse, TxnResponse};

/// How long a question is put again before its asker is told that etcd is away: longer than a cluster takes to find a
/// new leader, shorter than clients wait.
const PATIENCE: Duration = Duration::from_secs(20);
/// The pause before that.
const AGAIN: Duration = Duration::from_millis(50);

/// How an etcd is used.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// Its members.
    pub servers: EtcdServers,
    /// How much history is kept; `None`: compacting is left to others.
    pub compact_every: Option<Duration>,
    /// Whether watches may ask how far they are. Not given: if the server's version answers that in order with events,
    /// which is 3.4.31, 3.5.13 and newer ones (etcd-io/etcd#15220).
    pub ask_progress: Option<bool>,
}

impl EtcdOptions {
    /// Kubernetes' habits: five minutes of history.
    pub fn new(servers: EtcdServers) -> EtcdOptions {
        EtcdOptions { servers, compact_every: Some(Duration::from_secs(300)), ask_progress: None }
    }
}

/// Why an etcd cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EtcdError {
    /// What is said of it makes no sense.
    #[error("{0}")]
    Settings(String),
    /// It cannot be reached, or does not let us in.
    #[error("etcd: {0}")]
    Unavailable(String),
    /// It is too old.
    #[error("etcd {0} is too old: 3.4 is the oldest that can be used")]
    Version(String),
}

/// How a watch learns that nothing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// By asking.
    Asked,
    /// By writing a key it will see.
    Marked,
}

/// What the handle and its watches share.
struct Shared {
    channel: Channel,
    form: Box<dyn Form>,
    progress: Progress,
    /// The newest revision heard of.
    newest: AtomicU64,
    /// The revision watches should reach, though nothing may happen for them up to there.
    wanted: watch::Sender<Revision>,
    closed: watch::Sender<bool>,
    readings: Readings,
}

/// Readings of the current revision, shared by those who ask at once.
#[derive(Default)]
struct Readings {
    begun: AtomicU64,
    last: Mutex<Reading>,
}

/// The last one that ended: its number and what it found.
#[derive(Clone, Copy, Default)]
struct Reading {
    number: u64,
    found: Revision,
}

/// A log in an etcd cluster.
pub struct Etcd {
    shared: Arc<Shared>,
}

impl Etcd {
    /// Connects to the cluster.
    ///
    /// # Errors
    /// See [`EtcdError`].
    pub async fn open(options: EtcdOptions, form: impl Form) -> Result<Etcd, EtcdError> {
        let channel = Channel::new(options.servers).map_err(EtcdError::Settings)?;
        let status = ask(&channel, messages::STATUS, &[]).await;
        let status = status.map_err(|error| EtcdError::Unavailable(error.to_string()))?;
        let version = messages::version(status).map_err(|error| EtcdError::Unavailable(error.to_string()))?;
        let asked = match capability(&version) {
            Capability::TooOld => return Err(EtcdError::Version(version)),
            Capability::Usable => false,
            Capability::OrderedProgress => true,
        };
        let progress = if options.ask_progress.unwrap_or(asked) { Progress::Asked } else { Progress::Marked };
        let shared = Arc::new(Shared {
            channel,
            form: Box::new(form),
            progress,
            newest: AtomicU64::new(0),
            wanted: watch::Sender::new(Revision(0)),
            closed: watch::Sender::new(false),
            readings: Readings::default(),
        });
        // Also says whether we are let in to what will be asked for.
        shared.read_revision().await.map_err(|error| EtcdError::Unavailable(error.to_string()))?;
        if let Some(interval) = options.compact_every {
            tokio::spawn(compactor::run(shared.clone(), interval));
        }
        Ok(Etcd { shared })
    }

    /// Ends every watch; later commits and reads are refused.
    pub fn close(&self) {
        self.shared.closed.send_replace(true);
    }

    /// The oldest revision that can still be read, and watched from.
    ///
    /// # Errors
    /// When etcd is away.
    pub async fn oldest(&self) -> Result<Revision, RangeError> {
        use futures::StreamExt;
        // A watch from the beginning is told where that is.
        let probe = async {
            let mut from_the_start = follow::follow(self.shared.clone(), "", Revision(0));
            loop {
                match from_the_start.next().await {
                    Some(Err(WatchError::Compacted { oldest, .. } | WatchError::Lagged { oldest, .. })) => {
                        return oldest;
                    }
                    Some(Ok(batch)) if batch.events.is_empty() => {}
                    // What cannot be read was written after the beginning.
                    Some(Ok(_) | Err(WatchError::Unreadable { .. })) | None => return Revision::FIRST,
                }
            }
        };
        // Nothing was ever written or compacted: nothing will be said.
        match tokio::time::timeout(Duration::from_secs(2), probe).await {
            Ok(oldest) => Ok(oldest),
            Err(_) => Ok(Revision::FIRST),
        }
    }

    /// Stores an entry of another store, whatever its revisions were there: they begin anew here.
    ///
    /// # Errors
    /// See [`CommitError`]; a key that is there already is a conflict.
    pub async fn adopt(&self, entry: &Entry) -> Result<(), CommitError> {
        let value = self.shared.form.value_in(&entry.key, &entry.bytes);
        let value = value.map_err(|why| CommitError::Invalid(format!("{}: {why}", entry.key)))?;
        self.shared.commit(&Txn::put(entry.key.clone(), value, Expect::Absent)).await.map(drop)
    }

    /// Brings the cluster to a revision by writing: etcd has no other way, and clients of what is put into it must not
    /// see their revisions run backwards. Says how far it is after each thousand writes.
    ///
    /// # Errors
    /// When etcd is away.
    pub async fn go_on_at(&self, revision: Revision, mut told: impl FnMut(Revision)) -> Result<(), RangeError> {
        let away = |error: CallError| RangeError::Unavailable(error.to_string());
        loop {
            let current = self.shared.current().await.map_err(away)?;
            told(current);
            let missing = revision.0.saturating_sub(current.0).min(1_000);
            if missing == 0 {
                return Ok(());
            }
            let writes = (0..missing).map(|_| self.shared.write_mark());
            for written in futures::future::join_all(writes).await {
                written.map_err(away)?;
            }
        }
    }

    fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.close();
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Capability {
    TooOld,
    Usable,
    /// Its answers to a question for progress come in order with events.
    OrderedProgress,
}

fn capability(version: &str) -> Capability {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse::<u64>().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    match (part(), part(), part()) {
        (..3, _, _) | (3, ..4, _) => Capability::TooOld,
        (3, 4, ..31) | (3, 5, ..13) => Capability::Usable,
        _ => Capability::OrderedProgress,
    }
}

/// A question that may be put twice, put until it is answered.
async fn ask(channel: &Channel, path: &'static str, message: &[u8]) -> Result<Bytes, CallError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match channel.call(path, message).await {
            Err(error) if error.passes() && Instant::now() < until => {
                tracing::debug!(%error, path, "etcd is asked again");
                sleep(AGAIN).await;
            }
            answer => return answer,
        }
    }
}

impl Shared {
    async fn ask(&self, path: &'static str, message: &[u8]) -> Result<Bytes, CallError> {
        ask(&self.channel, path, message).await
    }

    /// Somebody heard of this revision.
    fn saw(&self, revision: Revision) {
        self.newest.fetch_max(revision.0, Ordering::Relaxed);
    }

    /// The revision the cluster is at, agreed on by a majority.
    async fn read_revision(&self) -> Result<Revision, CallError> {
        let mark = self.form.mark();
        let range = RangeRequest { key: mark.as_bytes(), keys_only: true, ..RangeRequest::default() };
        let answer = self.ask(messages::RANGE, &range.encode().finish()).await?;
        let revision = messages::header_of(answer).map_err(|error| CallError::Lost(error.to_string()))?;
        self.saw(revision);
        Ok(revision)
    }

    /// The revision of a reading that began after this call.
    async fn current(&self) -> Result<Revision, CallError> {
        let begun_before = self.readings.begun.load(Ordering::SeqCst);
        let mut last = self.readings.last.lock().await;
        if last.number > begun_before {
            return Ok(last.found);
        }
        let number = self.readings.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let found = self.read_revision().await?;
        *last = Reading { number, found };
        self.wanted.send_if_modified(|wanted| {
            let further = found > *wanted;
            *wanted = found.max(*wanted);
            further
        });
        Ok(found)
    }

    async fn write_mark(&self) -> Result<(), CallError> {
        self.channel.call(messages::PUT, &messages::put(self.form.mark().as_bytes(), b"").finish()).await.map(drop)
    }

    async fn compact(&self, before: Revision) -> Result<(), CallError> {
        match self.ask(messages::COMPACT, &messages::compact(before)).await {
            // Somebody else was there already.
            Err(CallError::Refused { message, .. }) if message.contains("has been compacted") => Ok(()),
            answer => answer.map(drop),
        }
    }

    async fn commit(&self, txn: &Txn) -> Result<Committed, CommitError> {
        check_form(txn)?;
        let form = &*self.form;
        let until = Instant::now() + PATIENCE;
        let mut doubt = false;
        loop {
            let request = commit::request(form, txn, doubt)?.encode();
            let answer = self.channel.call(messages::TXN, &request).await;
            let error = match answer {
                Ok(answer) => match TxnResponse::decode(answer) {
                    Ok(response) => {
                        self.saw(response.revision);
                        return match commit::outcome(txn, &response) {
                            Err(CommitError::Conflict { key, .. }) if doubt => {
                                commit::done_before(form, txn, &response).ok_or(CommitError::Uncertain(format!(
                                    "the connection broke while it was under way, and {key} is not as it was before"
                                )))
                            }
                            outcome => outcome,
                        };
                    }
                    Err(error) => CallError::Lost(error.to_string()),
                },
                Err(error) => error,
            };
            doubt |= error.leaves_doubt();
            if !error.passes() || Instant::now() >= until {
                return Err(if doubt { CommitError::Uncertain(error.to_string()) } else { commit_error(error) });
            }
            tracing::debug!(%error, doubt, "a commit is tried again");
            sleep(AGAIN).await;
        }
    }

    async fn range(&self, request: RangeRequest<'_>) -> Result<RangeResponse, RangeError> {
        let requested = request.at;
        let answer = self.ask(messages::RANGE, &request.encode().finish()).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(CallError::Refused { message, .. }) if message.contains("has been compacted") => {
                return Err(RangeError::Compacted { requested, oldest: requested.next() });
            }
            Err(CallError::Refused { message, .. }) if message.contains("future revision") => {
                let current = Revision(self.newest.load(Ordering::Relaxed));
                return Err(RangeError::FutureRevision { requested, current });
            }
            Err(error) => return Err(RangeError::Unavailable(error.to_string())),
        };
        let response = RangeResponse::decode(answer).map_err(|error| RangeError::Unavailable(error.to_string()))?;
        self.saw(response.revision);
        Ok(response)
    }

    /// Those of the keys that are ours, as entries.
    fn entries(&self, response: &mut RangeResponse) -> Result<Vec<Entry>, RangeError> {
        let mut entries = Vec::with_capacity(response.kvs.len());
        for kv in response.kvs.drain(..) {
            let Some(key) = std::str::from_utf8(&kv.key).ok().and_then(|key| self.form.key_in(key)) else { continue };
            match self.entry_at(&key, kv) {
                Ok((entry, _)) => entries.push(entry),
                Err(why) => return Err(RangeError::Unreadable { key, why: why.into() }),
            }
        }
        Ok(entries)
    }

    async fn page(
        &self,
        prefix: &str,
        at: Option<Revision>,
        after_key: Option<&str>,
        limit: usize,
    ) -> Result<Chunk, RangeError> {
        let prefix = self.form.key_out(prefix);
        let end = messages::prefix_end(prefix.as_bytes());
        let start = match after_key.map(|after| self.form.key_out(after)) {
            // The next key there can be.
            Some(after) if after.as_bytes() >= prefix.as_bytes() => [after.as_bytes(), b"\0"].concat(),
            _ => messages::prefix_start(prefix.as_bytes()).to_vec(),
        };
        if start >= end && end != [0] {
            // Nothing is there, at whatever revision: etcd says which, and whether it still knows it.
            let request =
                RangeRequest { key: prefix.as_bytes(), at: at.unwrap_or_default(), ..RangeRequest::default() };
            let revision = self.range(request).await?.revision;
            let revision = at.unwrap_or(revision);
            return Ok(Chunk { entries: Vec::new(), revision, more: false, remaining: 0 });
        }
        let request =
            RangeRequest { key: &start, end: &end, limit, at: at.unwrap_or_default(), ..RangeRequest::default() };
        let mut response = self.range(request).await?;
        let remaining = usize::try_from(response.count).unwrap_or(usize::MAX).saturating_sub(response.kvs.len());
        let entries = self.entries(&mut response)?;
        Ok(Chunk { entries, revision: at.unwrap_or(response.revision), more: response.more, remaining })
    }
}

fn commit_error(error: CallError) -> CommitError {
    match &error {
        CallError::Refused { message, .. } if message.contains("database space exceeded") => {
            CommitError::Full(Arc::new(std::io::Error::new(std::io::ErrorKind::StorageFull, message.clone())))
        }
        // By etcd's own bound, or that of its gRPC server.
        CallError::Refused { message, .. }
            if message.contains("request is too large") || message.contains("message larger than max") =>
        {
            CommitError::TooLarge(message.clone())
        }
        _ => CommitError::Unavailable(error.to_string()),
    }
}

impl Log for Etcd {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        async move {
            if self.is_closed() {
                return Err(CommitError::Closed);
            }
            self.shared.commit(&txn).await
        }
        .boxed()
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        at: Option<Revision>,
        after_key: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Chunk, RangeError>> {
        async move {
            if self.is_closed() {
                return Err(RangeError::Closed);
            }
            self.shared.page(prefix, at, after_key, limit).await
        }
        .boxed()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Entry>, Revision), RangeError>> {
        async move {
            if self.is_closed() {
                return Err(RangeError::Closed);
            }
            let key = self.shared.form.key_out(key);
            let request = RangeRequest { key: key.as_bytes(), ..RangeRequest::default() };
            let mut response = self.shared.range(request).await?;
            let entry = self.shared.entries(&mut response)?.into_iter().next();
            Ok((entry, response.revision))
        }
        .boxed()
    }

    fn watch(&self, prefix: &str, after: Revision) -> BoxStream<'static, Result<Batch, WatchError>> {
        follow::follow(self.shared.clone(), prefix, after)
    }

    fn revision(&self) -> Revision {
        Revision(self.shared.newest.load(Ordering::Relaxed))
    }

    fn is_available(&self) -> bool {
        self.shared.channel.answers()
    }

    fn current(&self) -> BoxFuture<'_, Result<Revision, RangeError>> {
        async move {
            if self.is_closed() {
                return Err(RangeError::Closed);
            }
            self.shared.current().await.map_err(|error| RangeError::Unavailable(error.to_string()))
        }
        .boxed()
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), RangeError>> {
        async move {
            if self.is_closed() {
                return Err(RangeError::Closed);
            }
            match self.shared.compact(before).await {
                Err(CallError::Refused { message, .. }) if message.contains("future revision") => {
                    Err(RangeError::FutureRevision { requested: before, current: self.revision() })
                }
                answer => answer.map_err(|error| RangeError::Unavailable(error.to_string())),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Key, Value};

    /// Keys and values as they are, the revision's place left out.
    pub(super) struct AsIs;

    impl Form for AsIs {
        fn key_out(&self, key: &str) -> String {
            key.to_owned()
        }

        fn key_in(&self, key: &str) -> Option<Key> {
            Some(key.into())
        }

        fn value_out(&self, value: &Value) -> Bytes {
            value.bytes.clone()
        }

        fn value_in(&self, _key: &str, kept: &Bytes) -> Result<Value, String> {
            Ok(Value::plain(kept.clone()))
        }

        fn mark(&self) -> String {
            "mark".to_owned()
        }
    }

    #[test]
    fn progress_is_asked_for_only_where_its_answer_comes_in_order() {
        use Capability::{OrderedProgress, TooOld, Usable};
        let table = [
            ("2.3.8", TooOld),
            ("3.3.27", TooOld),
            ("3.4.23", Usable),
            ("3.4.31", OrderedProgress),
            ("3.5.12", Usable),
            ("3.5.13", OrderedProgress),
            ("3.6.0-rc.1", OrderedProgress),
            ("4.0.0", OrderedProgress),
        ];
        for (version, expected) in table {
            assert_eq!(capability(version), expected, "{version}");
        }
    }
}
