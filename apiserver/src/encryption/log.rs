//! A store in which some values are ciphertext: seals what goes in, opens what comes out. Who uses it sees plaintext.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use proa_store::{
    Batch, Chunk, CommitError, Committed, Entry, Event, EventKind, Form, Key, Log, Op, RangeError, Revision, Txn,
    Value, WatchError,
};

use super::{Encryption, Opened};
use crate::cache::{ROOT, resource_of};
use crate::layout::KubernetesLayout;

/// A log whose values are sealed by [`Encryption`].
pub struct EncryptedLog {
    under: Arc<dyn Log>,
    seals: Arc<Seals>,
}

impl EncryptedLog {
    /// Puts encryption over a log.
    pub fn new(under: Arc<dyn Log>, encryption: Arc<Encryption>) -> EncryptedLog {
        let layout = KubernetesLayout::new(ROOT);
        EncryptedLog { under, seals: Arc::new(Seals { encryption, layout }) }
    }

    /// The keys.
    pub fn encryption(&self) -> &Arc<Encryption> {
        &self.seals.encryption
    }

    /// Whether what is stored there is not written as it would be now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn is_stale(&self, key: &str) -> Result<bool, RangeError> {
        let (Some(found), _) = self.under.get(key).await? else { return Ok(false) };
        let Some(resource) = resource_of(key) else { return Ok(false) };
        Ok(self.seals.open(resource, &found.key, &found.bytes)?.stale)
    }
}

/// The keys, and what an opened value is read by: a kube-apiserver may have sealed it, in a form of its own.
struct Seals {
    encryption: Arc<Encryption>,
    layout: KubernetesLayout,
}

/// A value that cannot be read.
struct Locked {
    key: Key,
    why: String,
}

impl From<Locked> for RangeError {
    fn from(Locked { key, why }: Locked) -> Self {
        RangeError::Unreadable { key, why: why.into() }
    }
}

impl From<Locked> for WatchError {
    fn from(Locked { key, why }: Locked) -> Self {
        WatchError::Unreadable { key, why: why.into() }
    }
}

impl Seals {
    /// The revision is not in the ciphertext: it is not known yet. Read back, the entry knows which it was.
    fn sealed(&self, key: &str, value: Value) -> Value {
        let Some(resource) = resource_of(key) else { return value };
        let sealed = self.encryption.seal(resource, &self.layout.key_out(key), value.bytes.clone());
        // What no provider touched is stored as it came.
        if sealed == value.bytes { value } else { Value::plain(sealed) }
    }

    /// What a provider binds a ciphertext to is the place Kubernetes keeps the object at, whatever the store is.
    fn open(&self, resource: &str, key: &Key, stored: &Bytes) -> Result<Opened, Locked> {
        let opened = self.encryption.open(resource, &self.layout.key_out(key), stored);
        opened.map_err(|why| Locked { key: key.clone(), why: why.to_string() })
    }

    fn opened(&self, key: &Key, stored: &Bytes, revision: Revision) -> Result<Bytes, Locked> {
        let Some(resource) = resource_of(key) else { return Ok(stored.clone()) };
        let opened = self.open(resource, key, stored)?.bytes;
        if opened == *stored {
            return Ok(opened);
        }
        let value = self.layout.adopt(&opened).map_err(|why| Locked { key: key.clone(), why })?;
        Ok(value.at_revision(revision))
    }

    fn entry(&self, mut entry: Entry) -> Result<Entry, Locked> {
        entry.bytes = self.opened(&entry.key, &entry.bytes, entry.modified)?;
        Ok(entry)
    }

    fn event(&self, event: &Event) -> Result<Event, Locked> {
        let kind = match &event.kind {
            EventKind::Put { entry, previous } => EventKind::Put {
                entry: self.entry(entry.clone())?,
                previous: previous.clone().map(|previous| self.entry(previous)).transpose()?,
            },
            EventKind::Delete { key, last, previous } => EventKind::Delete {
                key: key.clone(),
                last: self.opened(key, last, event.revision)?,
                previous: self.entry(previous.clone())?,
            },
        };
        Ok(Event { revision: event.revision, kind })
    }
}

impl Log for EncryptedLog {
    fn commit(&self, mut txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        let mut plain = Vec::new();
        for op in &mut txn.ops {
            match op {
                Op::Put { key, value, .. } => {
                    let plaintext = value.clone();
                    *value = self.seals.sealed(key, plaintext.clone());
                    plain.push(plaintext);
                }
                Op::Delete { key, last: Some(last), .. } => *last = self.seals.sealed(key, last.clone()),
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
            let entries = chunk.entries.into_iter().map(|found| self.seals.entry(found));
            chunk.entries = entries.collect::<Result<_, Locked>>()?;
            Ok(chunk)
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Entry>, Revision), RangeError>> {
        Box::pin(async move {
            let (found, revision) = self.under.get(key).await?;
            Ok((found.map(|found| self.seals.entry(found)).transpose()?, revision))
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> BoxStream<'static, Result<Batch, WatchError>> {
        let seals = Arc::clone(&self.seals);
        let batches = self.under.watch(prefix, after).map(move |batch| {
            let Batch { events, upto } = batch?;
            let events = events.iter().map(|one| seals.event(one)).collect::<Result<_, Locked>>()?;
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

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use proa_store::{Expect, Memory};
    use serde_json::json;

    use super::*;

    /// Secrets and deployments sealed with a key that is bound to the place of the object.
    fn keys() -> Arc<Encryption> {
        let secret = STANDARD.encode([7; 32]);
        let file = json!({"kind": "EncryptionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1", "resources": [{
            "resources": ["secrets", "deployments.apps"],
            "providers": [{"aesgcm": {"keys": [{"name": "key1", "secret": secret}]}}, {"identity": {}}],
        }]});
        Arc::new(Encryption::parse(file.to_string().as_bytes()).unwrap())
    }

    #[tokio::test]
    async fn what_a_kube_apiserver_sealed_is_opened_and_read_as_what_it_wrote_plainly() {
        let memory = Arc::new(Memory::new(100));
        let log = EncryptedLog::new(memory.clone(), keys());
        let theirs =
            json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "web", "namespace": "default"}});
        // Bound to the key in etcd, which is not our own.
        let place = "/registry/deployments/default/web";
        let sealed = keys().seal("deployments.apps", place, Bytes::from(theirs.to_string()));
        let key = "/registry/deployments.apps/default/web";
        let stored = KubernetesLayout::new(ROOT).value_in(key, &sealed).unwrap();
        let begun = memory.revision();
        let revision = memory.commit(Txn::put(key, stored, Expect::Absent)).await.unwrap().revision;

        let read = log.get(key).await.unwrap().0.unwrap();
        let object: serde_json::Value = serde_json::from_slice(&read.bytes).unwrap();
        assert_eq!(
            (&object["kind"], &object["metadata"]["resourceVersion"]),
            (&json!("Deployment"), &json!(revision.to_string()))
        );
        let watched = log.watch("/registry/", begun).next().await.unwrap().unwrap();
        let EventKind::Put { entry, .. } = &watched.events[0].kind else { panic!("{watched:?}") };
        assert_eq!(entry.bytes, read.bytes);
    }

    #[tokio::test]
    async fn our_own_seals_go_through_the_form_an_etcd_keeps_and_come_back() {
        let memory = Arc::new(Memory::new(100));
        let log = EncryptedLog::new(memory.clone(), keys());
        let value = crate::registry::codec::encode(
            &proa_apimachinery::Object::from_value(
                json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}}),
            )
            .unwrap(),
        );
        let key = "/registry/secrets/default/a";
        let committed = log.commit(Txn::put(key, value, Expect::Absent)).await.unwrap();
        let kept = memory.get(key).await.unwrap().0.unwrap().bytes;
        let layout = KubernetesLayout::new(ROOT);
        let back = layout.value_in(key, &layout.value_out(&Value::plain(kept.clone()))).unwrap();
        assert_eq!(back, Value::plain(kept));
        assert_eq!(log.get(key).await.unwrap().0.unwrap().bytes, committed.entries[0].bytes);
    }
}
