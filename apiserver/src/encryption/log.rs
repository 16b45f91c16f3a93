//! A store in which some values are ciphertext: seals what goes in, opens what comes out. Who uses it sees plaintext.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use proa_store::{
    Batch, Chunk, CommitError, Committed, Entry, Event, EventKind, Key, Log, Op, RangeError, Revision, Txn, Value,
    WatchError,
};

use super::{Encryption, OpenError};
use crate::cache::resource_of;
use crate::registry::codec::revision_place;

/// A log whose values are sealed by [`Encryption`].
pub struct EncryptedLog {
    under: Arc<dyn Log>,
    encryption: Arc<Encryption>,
}

impl EncryptedLog {
    /// Puts encryption over a log.
    pub fn new(under: Arc<dyn Log>, encryption: Arc<Encryption>) -> EncryptedLog {
        EncryptedLog { under, encryption }
    }

    /// The keys.
    pub fn encryption(&self) -> &Arc<Encryption> {
        &self.encryption
    }

    /// Whether what is stored there is not written as it would be now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn is_stale(&self, key: &str) -> Result<bool, RangeError> {
        let (Some(found), _) = self.under.get(key).await? else { return Ok(false) };
        let Some(resource) = resource_of(key) else { return Ok(false) };
        let opened = self.encryption.open(resource, key, &found.bytes);
        Ok(opened.map_err(|why| Locked { key: found.key.clone(), why })?.stale)
    }
}

/// The revision is not in the ciphertext: it is not known yet. Read back, the entry knows which it was.
fn sealed(encryption: &Encryption, key: &str, value: Value) -> Value {
    let Some(resource) = resource_of(key) else { return value };
    let sealed = encryption.seal(resource, key, value.bytes.clone());
    // What no provider touched is stored as it came.
    if sealed == value.bytes { value } else { Value::plain(sealed) }
}

/// A value that cannot be opened.
struct Locked {
    key: Key,
    why: OpenError,
}

impl From<Locked> for RangeError {
    fn from(Locked { key, why }: Locked) -> Self {
        RangeError::Unreadable { key, why: why.to_string().into() }
    }
}

impl From<Locked> for WatchError {
    fn from(Locked { key, why }: Locked) -> Self {
        WatchError::Unreadable { key, why: why.to_string().into() }
    }
}

fn opened(encryption: &Encryption, key: &Key, stored: &Bytes, revision: Revision) -> Result<Bytes, Locked> {
    let Some(resource) = resource_of(key) else { return Ok(stored.clone()) };
    let opened = encryption.open(resource, key, stored).map_err(|why| Locked { key: key.clone(), why })?.bytes;
    if opened == *stored {
        return Ok(opened);
    }
    Ok(match revision_place(&opened) {
        Some(at) => Value::with_revision_at(opened, at).at_revision(revision),
        None => opened,
    })
}

fn entry(encryption: &Encryption, mut entry: Entry) -> Result<Entry, Locked> {
    entry.bytes = opened(encryption, &entry.key, &entry.bytes, entry.modified)?;
    Ok(entry)
}

fn event(encryption: &Encryption, event: &Event) -> Result<Event, Locked> {
    let kind = match &event.kind {
        EventKind::Put { entry: put, previous } => EventKind::Put {
            entry: entry(encryption, put.clone())?,
            previous: previous.clone().map(|previous| entry(encryption, previous)).transpose()?,
        },
        EventKind::Delete { key, last, previous } => EventKind::Delete {
            key: key.clone(),
            last: opened(encryption, key, last, event.revision)?,
            previous: entry(encryption, previous.clone())?,
        },
    };
    Ok(Event { revision: event.revision, kind })
}

impl Log for EncryptedLog {
    fn commit(&self, mut txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        let mut plain = Vec::new();
        for op in &mut txn.ops {
            match op {
                Op::Put { key, value, .. } => {
                    let plaintext = value.clone();
                    *value = sealed(&self.encryption, key, plaintext.clone());
                    plain.push(plaintext);
                }
                Op::Delete { key, last: Some(last), .. } => *last = sealed(&self.encryption, key, last.clone()),
                Op::Delete { .. } | Op::Check { .. } => {}
            }
        }
        Box::pin(async move {
            let mut committed = self.under.commit(txn).await?;
            // The plaintext is at hand: nothing has to be opened again.
            for (entry, value) in committed.entries.iter_mut().zip(plain) {
                entry.bytes = value.at_revision(entry.modified);
            }
            Ok(committed)
        })
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        at: Option<Revision>,
        after_key: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Chunk, RangeError>> {
        Box::pin(async move {
            let mut chunk = self.under.range(prefix, at, after_key, limit).await?;
            let entries = chunk.entries.into_iter().map(|found| entry(&self.encryption, found));
            chunk.entries = entries.collect::<Result<_, Locked>>()?;
            Ok(chunk)
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Entry>, Revision), RangeError>> {
        Box::pin(async move {
            let (found, revision) = self.under.get(key).await?;
            Ok((found.map(|found| entry(&self.encryption, found)).transpose()?, revision))
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> BoxStream<'static, Result<Batch, WatchError>> {
        let encryption = Arc::clone(&self.encryption);
        let batches = self.under.watch(prefix, after).map(move |batch| {
            let Batch { events, upto } = batch?;
            let events = events.iter().map(|one| event(&encryption, one)).collect::<Result<_, Locked>>()?;
            Ok(Batch { events, upto })
        });
        Box::pin(batches)
    }

    fn revision(&self) -> Revision {
        self.under.revision()
    }

    fn current(&self) -> BoxFuture<'_, Result<Revision, RangeError>> {
        self.under.current()
    }

    fn is_available(&self) -> bool {
        self.under.is_available()
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), RangeError>> {
        self.under.compact(before)
    }
}
