//! The cache of one resource: an ordered map of current objects and a ring of recent changes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use proa_store::Key;
use tokio::sync::watch;

use super::item::{Change, ChangeKind, Item};

/// A ring holds at most this many changes …
const RING_CHANGES: usize = 8_192;
/// … and at most this many bytes of objects. What falls out can no longer be watched from.
const RING_BYTES: usize = 4 << 20;

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
    ring: VecDeque<Arc<Change>>,
    ring_bytes: usize,
    /// Changes after this revision are all in the ring.
    floor: u64,
    /// The revision of the newest change.
    last: u64,
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

    /// All objects (of a namespace, when not empty). `applied` must have been read before the call.
    pub fn snapshot(&self, namespace: &str, applied: u64) -> Snapshot {
        let prefix = self.prefix(namespace);
        let state = self.state.read();
        let items = if namespace.is_empty() {
            state.items.values().cloned().collect()
        } else {
            state
                .items
                .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
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
        let start = state.ring.partition_point(|change| change.revision <= cursor);
        let mut changes: Vec<Arc<Change>> = state.ring.range(start..).take(max).cloned().collect();
        // A commit of several objects has one revision: never stop inside it, the cursor could not resume there.
        if changes.len() == max {
            let last = changes.last().map_or(0, |change| change.revision);
            changes.extend(state.ring.range(start + max..).take_while(|change| change.revision == last).cloned());
        }
        Ok(changes)
    }

    pub(super) fn apply(&self, changes: Vec<Arc<Change>>) {
        let last = {
            let mut guard = self.state.write();
            let state = &mut *guard;
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
                state.ring.push_back(change);
            }
            while state.ring.len() > RING_CHANGES || state.ring_bytes > RING_BYTES {
                let Some(oldest) = state.ring.pop_front() else { break };
                state.ring_bytes = state.ring_bytes.saturating_sub(oldest.item.bytes.len());
                state.floor = oldest.revision;
            }
            state.last
        };
        self.changed.send_replace(last);
    }

    pub(super) fn replace(&self, items: Vec<Arc<Item>>, revision: u64) {
        {
            let mut state = self.state.write();
            state.items = items.into_iter().map(|item| (Arc::clone(&item.key), item)).collect();
            state.ring.clear();
            state.ring_bytes = 0;
            state.floor = revision;
            state.last = revision;
        }
        self.changed.send_replace(revision);
    }
}
