//! The cache of one resource: an ordered map of current objects and a ring of recent changes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Included, Unbounded};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use proa_store::Key;
use tokio::sync::watch;
use tokio::time::Instant;

use super::item::{Change, ChangeKind, Item};

/// How much a ring holds. What falls out can no longer be watched from.
struct Bound {
    changes: usize,
    /// Of objects.
    bytes: usize,
}

/// What a ring keeps however old it is.
const KEPT: Bound = Bound { changes: 8_192, bytes: 4 << 20 };

/// What it keeps of the young: as much as the store's own history does, whose bytes these are.
const KEPT_YOUNG: Bound = Bound { changes: 100_000, bytes: 64 << 20 };

/// Watchers learn where they are once a minute (bookmarks): one whose connection breaks just before, and who
/// comes back at once, must find its place however much was written since.
const YOUNG: Duration = Duration::from_secs(75);

/// The current objects and recent changes of one stored resource.
pub struct Cache {
    name: Arc<str>,
    prefix: String,
    state: RwLock<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    items: BTreeMap<Key, Arc<Item>>,
    ring: VecDeque<Recent>,
    ring_bytes: usize,
    /// Changes after this revision are all in the ring.
    floor: u64,
    /// The revision of the newest change.
    last: u64,
}

/// A change and when it was applied.
struct Recent {
    change: Arc<Change>,
    at: Instant,
}

/// The wanted changes are no longer in the ring.
#[derive(Debug, PartialEq, Eq)]
pub struct TooOld {
    /// The oldest revision a watch can start from.
    pub floor: u64,
}

/// Some items and the revision they are true at.
pub struct Snapshot {
    /// In key order.
    pub items: Vec<Arc<Item>>,
    /// The revision.
    pub revision: u64,
}

impl State {
    fn over(&self, bound: &Bound) -> bool {
        self.ring.len() > bound.changes || self.ring_bytes > bound.bytes
    }

    /// Forgets what is past the bounds, but nothing after `before`: watchers that are awake must see the newest
    /// commits however large they are.
    fn forget(&mut self, before: u64, now: Instant) {
        while let Some(oldest) = self.ring.front() {
            let young = now.saturating_duration_since(oldest.at) < YOUNG;
            let bound = if young { &KEPT_YOUNG } else { &KEPT };
            if oldest.change.revision > before || !self.over(bound) {
                break;
            }
            self.floor = oldest.change.revision;
            self.ring_bytes = self.ring_bytes.saturating_sub(oldest.change.item.bytes.len());
            self.ring.pop_front();
        }
        // A burst is over: what it made the ring grow to is given back.
        if self.ring.capacity() > 4 * self.ring.len().max(64) {
            self.ring.shrink_to_fit();
        }
    }
}

impl Cache {
    pub(super) fn new(name: &str, floor: u64) -> Self {
        Cache {
            name: Arc::from(name),
            prefix: format!("{}{name}/", super::ROOT),
            state: RwLock::new(State { floor, ..State::default() }),
            changed: watch::Sender::new(0),
        }
    }

    /// The stored resource, for example `deployments.apps`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The store's key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if namespace.is_empty() {
            format!("{}{name}", self.prefix)
        } else {
            format!("{}{namespace}/{name}", self.prefix)
        }
    }

    /// The prefix of all keys, or of those in a namespace.
    pub fn prefix(&self, namespace: &str) -> String {
        if namespace.is_empty() { self.prefix.clone() } else { format!("{}{namespace}/", self.prefix) }
    }

    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Item>> {
        self.state.read().items.get(self.key(namespace, name).as_str()).cloned()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.state.read().items.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The revision of the newest change seen here.
    pub fn last_revision(&self) -> u64 {
        self.state.read().last
    }

    /// A receiver that wakes on every change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How many watch.
    pub fn watchers(&self) -> usize {
        self.changed.receiver_count()
    }

    /// All objects (of a namespace, when not empty). `applied` must have been read before the call.
    pub fn snapshot(&self, namespace: &str, applied: u64) -> Snapshot {
        let prefix = self.prefix(namespace);
        let state = self.state.read();
        let items = if namespace.is_empty() {
            state.items.values().cloned().collect()
        } else {
            state
                .items
                .range::<str, _>((Included(prefix.as_str()), Unbounded))
                .take_while(|(key, _)| key.starts_with(&prefix))
                .map(|(_, item)| Arc::clone(item))
                .collect()
        };
        Snapshot { items, revision: applied.max(state.last) }
    }

    /// All objects now, for readers that do not care about the revision.
    pub fn items(&self, namespace: &str) -> Vec<Arc<Item>> {
        self.snapshot(namespace, 0).items
    }

    /// Changes after `cursor`, oldest first, at most `max`.
    pub fn changes_after(&self, cursor: u64, max: usize) -> Result<Vec<Arc<Change>>, TooOld> {
        let state = self.state.read();
        if cursor < state.floor {
            return Err(TooOld { floor: state.floor });
        }
        let start = state.ring.partition_point(|recent| recent.change.revision <= cursor);
        let from = |start: usize| state.ring.range(start..).map(|recent| Arc::clone(&recent.change));
        let mut changes: Vec<Arc<Change>> = from(start).take(max).collect();
        // A commit of several objects has one revision: never stop inside it, the cursor could not resume there.
        if changes.len() == max {
            let last = changes.last().map_or(0, |change| change.revision);
            changes.extend(from(start + max).take_while(|change| change.revision == last));
        }
        Ok(changes)
    }

    /// Takes in the changes of one group commit.
    pub(super) fn apply(&self, changes: Vec<Arc<Change>>, now: Instant) {
        let last = {
            let mut guard = self.state.write();
            let state = &mut *guard;
            let before = state.last;
            for mut change in changes {
                let key = Arc::clone(&change.item.key);
                let previous = match change.kind {
                    ChangeKind::Put => state.items.insert(key, Arc::clone(&change.item)),
                    ChangeKind::Delete => state.items.remove(&*key),
                };
                // The change was made for this cache just now and is not shared yet.
                if let Some(fresh) = Arc::get_mut(&mut change) {
                    fresh.previous = previous;
                }
                state.last = change.revision;
                state.ring_bytes += change.item.bytes.len();
                state.ring.push_back(Recent { change, at: now });
            }
            state.forget(before, now);
            state.last
        };
        self.changed.send_replace(last);
    }

    /// Forgets what was young when something last changed here and is not any more.
    pub(super) fn tidy(&self, now: Instant) {
        if self.state.read().over(&KEPT) {
            let mut state = self.state.write();
            let last = state.last;
            state.forget(last, now);
        }
    }

    pub(super) fn replace(&self, items: Vec<Arc<Item>>, revision: u64) {
        {
            let mut state = self.state.write();
            state.items = items.into_iter().map(|item| (Arc::clone(&item.key), item)).collect();
            state.ring = VecDeque::new();
            state.ring_bytes = 0;
            state.floor = revision;
            state.last = revision;
        }
        self.changed.send_replace(revision);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const LARGE: usize = 1 << 20;

    /// One commit of `count` objects of a mebibyte each; they share their bytes, so that the test costs none.
    fn commit(cache: &Cache, revision: u64, count: usize, now: Instant) {
        let bytes = Bytes::from_static(&[b' '; LARGE]);
        let change = |n: usize| {
            let key: Key = cache.key("ns", &format!("o{n}")).into();
            Arc::new(Change::put(revision, Arc::new(Item::new(key, bytes.clone(), revision, revision))))
        };
        cache.apply((0..count).map(change).collect(), now);
    }

    fn seen(cache: &Cache, cursor: u64) -> Result<usize, TooOld> {
        cache.changes_after(cursor, usize::MAX).map(|changes| changes.len())
    }

    #[test]
    fn a_commit_larger_than_the_ring_reaches_those_who_were_up_to_date() {
        let (cache, now) = (Cache::new("configmaps", 1), Instant::now());
        commit(&cache, 2, 1, now);
        commit(&cache, 3, 100, now);
        assert_eq!(seen(&cache, 2), Ok(100));
        assert_eq!(seen(&cache, 1), Err(TooOld { floor: 2 }));
    }

    #[test]
    fn what_is_young_stays_and_goes_when_it_no_longer_is() {
        let (cache, start) = (Cache::new("configmaps", 1), Instant::now());
        for revision in 2..=31 {
            commit(&cache, revision, 1, start);
        }
        assert_eq!(seen(&cache, 1), Ok(30), "thirty mebibytes in one moment");
        cache.tidy(start + YOUNG / 2);
        assert_eq!(seen(&cache, 1), Ok(30));
        cache.tidy(start + YOUNG);
        assert_eq!(seen(&cache, 27), Ok(4));
        assert_eq!(seen(&cache, 26), Err(TooOld { floor: 27 }));
    }
}
