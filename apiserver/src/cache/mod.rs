//! The watch cache: owns the current objects and the recent changes of every resource, in memory.
//!
//! One task reads the store's log in revision order and hands each change to the cache of its
//! resource (an ordered map of current objects, a ring of recent changes). Reads are served from
//! here and are consistent: a reader first waits until the cache has applied the revision the store
//! was at when the request came. The cache never writes, and never decodes an object before somebody
//! asks for its labels or fields.

mod item;
mod resource;

pub use item::{Change, ChangeKind, EventType, Item, Meta, event_line, protobuf_frame};
pub use resource::{Cache, Snapshot, TooOld};

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use parking_lot::RwLock;
use proa_apimachinery::status::ApiError;
use proa_store::{Batch, Event, EventKind, Log, RangeError, Revision};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::encryption::ENVELOPE;

/// Where all objects live in the store.
pub const ROOT: &str = "/registry/";

/// How long a read waits for a revision that the store has not reached.
const FUTURE_WAIT: Duration = Duration::from_secs(3);

/// How long a consistent read waits for what is committed to come by: a store of our own hands it over at once, a
/// cluster that is looking for a new leader takes seconds.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(20);

/// How often caches in which nothing changes are looked over for what they need no longer keep.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// The caches of all resources.
pub struct Caches {
    log: Arc<dyn Log>,
    resources: RwLock<HashMap<Arc<str>, Arc<Cache>>>,
    /// The revision everything was last read at. What happened before is in no ring.
    read_at: AtomicU64,
    applied: watch::Sender<u64>,
}

/// Why the caches could not be filled.
#[derive(Debug, thiserror::Error)]
#[error("reading the store: {0}")]
pub struct LoadError(String);

impl Caches {
    /// Reads everything from the store, then follows it until `stop`.
    pub async fn load(log: Arc<dyn Log>, stop: CancellationToken) -> Result<Arc<Caches>, LoadError> {
        let caches = Arc::new(Caches {
            log,
            resources: RwLock::default(),
            read_at: AtomicU64::new(0),
            applied: watch::Sender::new(0),
        });
        let revision = caches.reload().await?;
        caches.applied.send_replace(revision);
        tokio::spawn(Arc::clone(&caches).follow(stop));
        Ok(caches)
    }

    /// The cache of a stored resource, for example `pods` or `deployments.apps`; made when new.
    pub fn resource(&self, name: &str) -> Arc<Cache> {
        if let Some(cache) = self.resources.read().get(name) {
            return Arc::clone(cache);
        }
        let mut resources = self.resources.write();
        if let Some(cache) = resources.get(name) {
            return Arc::clone(cache);
        }
        // It had no object when everything was read. Before that it may have had some: who watches from there
        // has to list again, or would never learn that they are gone.
        let cache = Arc::new(Cache::new(name, self.read_at.load(Ordering::Relaxed)));
        resources.insert(Arc::from(name), Arc::clone(&cache));
        cache
    }

    /// Every resource's cache.
    pub fn all(&self) -> Vec<Arc<Cache>> {
        self.resources.read().values().cloned().collect()
    }

    /// The revision up to which every cache has applied the log.
    pub fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Waits until the caches hold everything acknowledged before now; the revision they then have.
    pub async fn consistent(&self) -> Result<u64, ApiError> {
        let target = self.log.current().await.map_err(unavailable)?.0;
        if self.applied() >= target {
            return Ok(self.applied());
        }
        match tokio::time::timeout(CATCH_UP_WITHIN, self.reach(target)).await {
            Ok(reached) => reached,
            Err(_) => Err(ApiError::timeout(format!("the watch cache did not reach revision {target} in time"), 1)),
        }
    }

    /// Waits until `revision` is applied; an error when the store does not get there in time.
    pub async fn at_least(&self, revision: u64) -> Result<u64, ApiError> {
        if self.applied() >= revision {
            return Ok(self.applied());
        }
        // Another server may have named a revision at which nothing happened for us: asking makes the watch get there.
        let reach = async {
            self.log.current().await.map_err(unavailable)?;
            self.reach(revision).await
        };
        match tokio::time::timeout(FUTURE_WAIT, reach).await {
            Ok(reached) => reached,
            Err(_) => Err(too_large(revision, self.applied())),
        }
    }

    async fn reach(&self, revision: u64) -> Result<u64, ApiError> {
        if self.applied() >= revision {
            return Ok(self.applied());
        }
        let mut applied = self.applied.subscribe();
        match applied.wait_for(|have| *have >= revision).await {
            Ok(have) => Ok(*have),
            Err(_) => Err(ApiError::internal("the server is shutting down")),
        }
    }

    async fn reload(&self) -> Result<u64, LoadError> {
        let mut entries: HashMap<Arc<str>, Vec<Arc<Item>>> = HashMap::new();
        let mut after: Option<String> = None;
        let mut at: Option<Revision> = None;
        let revision = loop {
            let chunk = self
                .log
                .range(ROOT, at, after.as_deref(), 5_000)
                .await
                .map_err(|error| LoadError(error.to_string()))?;
            at = Some(chunk.revision);
            after = chunk.entries.last().map(|entry| entry.key.to_string());
            for entry in chunk.entries {
                if entry.bytes.starts_with(ENVELOPE) {
                    let why = "is encrypted: its keys are to be given with --encryption-provider-config";
                    return Err(LoadError(format!("{} {why}", entry.key)));
                }
                if let Some(resource) = resource_of(&entry.key) {
                    let resource: Arc<str> = Arc::from(resource);
                    entries.entry(resource).or_default().push(Arc::new(Item::from_entry(entry)));
                }
            }
            if !chunk.more {
                break chunk.revision.0;
            }
        };
        // Before the caches that exist are counted: one that is made meanwhile begins here too.
        self.read_at.store(revision, Ordering::Relaxed);
        let known: Vec<Arc<str>> = self.resources.read().keys().cloned().collect();
        for name in known {
            entries.entry(name).or_default();
        }
        for (name, items) in entries {
            self.resource(&name).replace(items, revision);
        }
        Ok(revision)
    }

    async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut tidied = Instant::now();
        while !stop.is_cancelled() {
            let from = self.applied();
            let mut events = self.log.watch(ROOT, Revision(from));
            let failure = loop {
                let next = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    next = events.next() => next,
                };
                match next {
                    Some(Ok(batch)) => {
                        let now = Instant::now();
                        self.apply(&batch, now);
                        // Rides on the commits that come anyway (leases): a quiet server has nothing to tidy.
                        if now.duration_since(tidied) >= TIDY_EVERY {
                            tidied = now;
                            self.all().iter().for_each(|cache| cache.tidy(now));
                        }
                    }
                    Some(Err(error)) => break error.to_string(),
                    None => break "the log ended".to_owned(),
                }
            };
            tracing::warn!(failure, from = self.applied(), "following the store again");
            // Too far behind to catch up by events: read the whole state. Watchers older than it are told to list again.
            match self.reload().await {
                Ok(revision) => drop(self.applied.send_replace(revision)),
                Err(error) => {
                    tracing::warn!(%error, "the store cannot be read");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// Applies a batch: each resource's changes under one lock, then the new revision for waiters.
    fn apply(&self, batch: &Batch, now: Instant) {
        let mut groups: Vec<(&str, Vec<Arc<Change>>)> = Vec::new();
        for event in batch.events.iter() {
            let (key, change) = change_of(event);
            let Some(resource) = resource_of(key) else { continue };
            match groups.iter_mut().find(|(name, _)| *name == resource) {
                Some((_, changes)) => changes.push(change),
                None => groups.push((resource, vec![change])),
            }
        }
        for (resource, changes) in groups {
            self.resource(resource).apply(changes, now);
        }
        self.applied.send_replace(batch.upto.0);
    }
}

fn change_of(event: &Event) -> (&str, Arc<Change>) {
    let revision = event.revision.0;
    match &event.kind {
        EventKind::Put { entry, .. } => {
            (&*entry.key, Arc::new(Change::put(revision, Arc::new(Item::from_entry(entry.clone())))))
        }
        EventKind::Delete { key, last, previous } => (
            &**key,
            Arc::new(Change::delete(
                revision,
                Arc::new(Item::new(key.clone(), last.clone(), previous.created.0, revision)),
            )),
        ),
    }
}

/// The stored resource of a key, for example `secrets` or `deployments.apps`.
pub fn resource_of(key: &str) -> Option<&str> {
    key.strip_prefix(ROOT)?.split_once('/').map(|(resource, _)| resource)
}

/// A read that the store could not answer.
fn unavailable(error: RangeError) -> ApiError {
    match error {
        RangeError::Closed => ApiError::unavailable("the server is shutting down"),
        other => ApiError::unavailable(other.to_string()),
    }
}

/// Kubernetes' answer to a resource version from the future (API concepts, "Unavailable resource versions").
fn too_large(wanted: u64, have: u64) -> ApiError {
    ApiError::timeout(format!("Too large resource version: {wanted}, current: {have}"), 1)
}
