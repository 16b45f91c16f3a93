//! The log's content in memory: an ordered map of current entries, the bounded history behind it, and
//! the ring of recent events.
//!
//! Pure: no IO, no clock (time is passed in), no locks. Never holds a second copy of a value: the map,
//! the history and the events share the same bytes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::RangeError;
use crate::types::{Chunk, Entry, Event, EventKind, Key, Revision};

/// A transaction whose expectations held, with final bytes: what a log frame records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) revision: Revision,
    pub(crate) changes: Vec<Change>,
}

/// One change of one key, with final bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Put { key: Key, bytes: Bytes },
    Delete { key: Key, last: Option<Bytes> },
}

/// How much history is kept; whichever bound is reached first holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HistoryBounds {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
    pub(crate) age: Duration,
}

/// A key's state from a revision on.
#[derive(Clone, Debug)]
enum Version {
    Live(Entry),
    Gone(Revision),
}

impl Version {
    fn revision(&self) -> Revision {
        match self {
            Version::Live(entry) => entry.modified,
            Version::Gone(revision) => *revision,
        }
    }

    fn live(&self) -> Option<&Entry> {
        match self {
            Version::Live(entry) => Some(entry),
            Version::Gone(_) => None,
        }
    }
}

#[derive(Debug)]
struct Slot {
    latest: Version,
    /// Older versions that a read at a kept revision can still see, oldest first.
    older: Vec<Version>,
}

impl Slot {
    fn at(&self, at: Revision) -> Option<&Entry> {
        if self.latest.revision() <= at {
            return self.latest.live();
        }
        let next = self.older.partition_point(|v| v.revision() <= at);
        next.checked_sub(1).and_then(|i| self.older[i].live())
    }

    /// Drops the versions no read at `floor` or later can see; true when nothing is left.
    fn prune(&mut self, floor: Revision) -> bool {
        if self.latest.revision() <= floor {
            self.older = Vec::new();
            return self.latest.live().is_none();
        }
        let visible = self.older.partition_point(|v| v.revision() <= floor).saturating_sub(1);
        self.older.drain(..visible);
        // What is gone at the floor reads the same as what never was.
        if self.older.first().is_some_and(|v| v.live().is_none() && v.revision() <= floor) {
            self.older.remove(0);
        }
        false
    }
}

/// The events of one group commit.
#[derive(Debug)]
struct Batch {
    events: Arc<[Event]>,
    last: Revision,
    bytes: usize,
    at: Instant,
}

/// What a group commit did.
#[derive(Debug)]
pub(crate) struct Applied {
    /// The entries written by each record, one per put.
    pub(crate) written: Vec<Vec<Entry>>,
    /// Every event, in order.
    pub(crate) events: Arc<[Event]>,
}

/// What a watcher that has read up to some revision gets next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Events, and the revision up to which everything has now been read.
    Events(Arc<[Event]>, Revision),
    /// Nothing yet; everything up to this revision has been read.
    UpToDate(Revision),
    /// Events after the watcher's position have been forgotten; this is the oldest position left.
    Behind(Revision),
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct State {
    slots: BTreeMap<Key, Slot>,
    ring: VecDeque<Batch>,
    ring_events: usize,
    ring_bytes: usize,
    live_bytes: usize,
    revision: Revision,
    /// The oldest revision that can be read, and watched from.
    floor: Revision,
    /// While a checkpoint reads at this revision the floor does not pass it.
    pin: Option<Revision>,
    bounds: HistoryBounds,
}

impl State {
    pub(crate) fn new(bounds: HistoryBounds) -> State {
        State {
            slots: BTreeMap::new(),
            ring: VecDeque::new(),
            ring_events: 0,
            ring_bytes: 0,
            live_bytes: 0,
            revision: Revision::FIRST,
            floor: Revision::FIRST,
            pin: None,
            bounds,
        }
    }

    /// A state as a checkpoint at `revision` left it; its entries follow through [`State::restore`].
    pub(crate) fn at_checkpoint(revision: Revision, bounds: HistoryBounds) -> State {
        State { revision, floor: revision, ..State::new(bounds) }
    }

    /// Puts back one entry of a checkpoint.
    pub(crate) fn restore(&mut self, entry: Entry) {
        self.live_bytes += entry.key.len() + entry.bytes.len();
        let key = entry.key.clone();
        self.slots.insert(key, Slot { latest: Version::Live(entry), older: Vec::new() });
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    /// Bytes of all current keys and values.
    pub(crate) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.slots.get(key).and_then(|slot| slot.latest.live())
    }

    /// Applies the records of one group commit.
    ///
    /// Records must follow the current revision without a gap (the caller numbers them).
    pub(crate) fn apply(&mut self, records: Vec<Record>, now: Instant) -> Applied {
        let mut written = Vec::with_capacity(records.len());
        let mut events = Vec::with_capacity(records.iter().map(|r| r.changes.len()).sum());
        let mut bytes = 0;
        for record in records {
            debug_assert_eq!(record.revision, self.revision.next());
            self.revision = record.revision;
            let mut entries = Vec::with_capacity(record.changes.len());
            for change in record.changes {
                if let Some(event) = self.change(record.revision, change) {
                    bytes += cost(&event);
                    if let EventKind::Put { entry, .. } = &event.kind {
                        entries.push(entry.clone());
                    }
                    events.push(event);
                }
            }
            written.push(entries);
        }
        let events: Arc<[Event]> = events.into();
        if !events.is_empty() {
            self.ring_events += events.len();
            self.ring_bytes += bytes;
            self.ring.push_back(Batch { events: events.clone(), last: self.revision, bytes, at: now });
        }
        self.bound(now);
        Applied { written, events }
    }

    fn change(&mut self, revision: Revision, change: Change) -> Option<Event> {
        match change {
            Change::Put { key, bytes } => {
                self.live_bytes += key.len() + bytes.len();
                let Some(slot) = self.slots.get_mut(&key) else {
                    let entry = Entry { key: key.clone(), bytes, created: revision, modified: revision };
                    self.slots.insert(key, Slot { latest: Version::Live(entry.clone()), older: Vec::new() });
                    return Some(Event { revision, kind: EventKind::Put { entry, previous: None } });
                };
                let previous = slot.latest.live().cloned();
                let (key, created) = match &previous {
                    Some(p) => (p.key.clone(), p.created),
                    None => (key, revision),
                };
                self.live_bytes -= previous.as_ref().map_or(0, |p| p.key.len() + p.bytes.len());
                let entry = Entry { key, bytes, created, modified: revision };
                let replaced = std::mem::replace(&mut slot.latest, Version::Live(entry.clone()));
                slot.older.push(replaced);
                Some(Event { revision, kind: EventKind::Put { entry, previous } })
            }
            Change::Delete { key, last } => {
                let slot = self.slots.get_mut(&key)?;
                let previous = slot.latest.live().cloned()?;
                self.live_bytes -= previous.key.len() + previous.bytes.len();
                let replaced = std::mem::replace(&mut slot.latest, Version::Gone(revision));
                slot.older.push(replaced);
                let last = last.unwrap_or_else(|| previous.bytes.clone());
                let kind = EventKind::Delete { key: previous.key.clone(), last, previous };
                Some(Event { revision, kind })
            }
        }
    }

    /// Forgets what is past the bounds of the history, but never the newest batch: watchers that are
    /// awake must see it however large it is.
    fn bound(&mut self, now: Instant) {
        let mut floor = self.floor;
        let (mut events, mut bytes) = (self.ring_events, self.ring_bytes);
        for batch in self.ring.range(..self.ring.len().saturating_sub(1)) {
            let old = now.saturating_duration_since(batch.at) > self.bounds.age;
            if events <= self.bounds.events && bytes <= self.bounds.bytes && !old {
                break;
            }
            events -= batch.events.len();
            bytes -= batch.bytes;
            floor = batch.last;
        }
        if floor > self.floor {
            self.compact(floor);
        }
    }

    /// Forgets the history before `before`, as far as it has happened and no checkpoint reads it.
    pub(crate) fn compact(&mut self, before: Revision) {
        let floor = before.min(self.revision).min(self.pin.unwrap_or(Revision(u64::MAX)));
        if floor <= self.floor {
            return;
        }
        self.floor = floor;
        while let Some(batch) = self.ring.front() {
            for event in batch.events.iter().take_while(|e| e.revision <= floor) {
                if let Some(slot) = self.slots.get_mut(event.key())
                    && slot.prune(floor)
                {
                    self.slots.remove(event.key());
                }
            }
            if batch.last > floor {
                break;
            }
            self.ring_events -= batch.events.len();
            self.ring_bytes -= batch.bytes;
            self.ring.pop_front();
        }
    }

    /// Holds the floor where it is until [`State::unpin`], so that a checkpoint can read there at leisure.
    pub(crate) fn pin(&mut self) -> Revision {
        self.pin = Some(self.floor);
        self.floor
    }

    pub(crate) fn unpin(&mut self, now: Instant) {
        self.pin = None;
        self.bound(now);
    }

    pub(crate) fn range(
        &self,
        prefix: &str,
        at: Option<Revision>,
        after_key: Option<&str>,
        limit: usize,
    ) -> Result<Chunk, RangeError> {
        let revision = at.unwrap_or(self.revision);
        if revision > self.revision {
            return Err(RangeError::FutureRevision { requested: revision, current: self.revision });
        }
        if revision < self.floor {
            return Err(RangeError::Compacted { requested: revision, oldest: self.floor });
        }
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut found = self.iter(prefix, revision, after_key);
        let entries: Vec<Entry> = found.by_ref().take(limit).cloned().collect();
        let remaining = found.count();
        Ok(Chunk { entries, revision, more: remaining > 0, remaining })
    }

    /// Up to `limit` entries as of `at` after `after_key`, without counting the rest: for a checkpoint.
    pub(crate) fn page(&self, at: Revision, after_key: Option<&str>, limit: usize) -> Vec<Entry> {
        self.iter("", at, after_key).take(limit).cloned().collect()
    }

    fn iter<'a>(&'a self, prefix: &'a str, at: Revision, after_key: Option<&str>) -> impl Iterator<Item = &'a Entry> {
        let lower = match after_key {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.slots
            .range::<str, _>((lower, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .filter_map(move |(_, slot)| slot.at(at))
    }

    /// The next events on keys under `prefix` for a watcher that has read up to `after`.
    pub(crate) fn next(&self, prefix: &str, after: Revision) -> Next {
        if after < self.floor {
            return Next::Behind(self.floor);
        }
        let first = self.ring.partition_point(|batch| batch.last <= after);
        for batch in self.ring.range(first..) {
            let wanted = |e: &Event| e.revision > after && e.key().starts_with(prefix);
            let count = batch.events.iter().filter(|e| wanted(e)).count();
            if count == batch.events.len() {
                return Next::Events(batch.events.clone(), batch.last);
            }
            if count > 0 {
                let events = batch.events.iter().filter(|e| wanted(e)).cloned().collect();
                return Next::Events(events, batch.last);
            }
        }
        Next::UpToDate(self.revision.max(after))
    }
}

/// What an event keeps alive: its key and the value it replaced or announced last.
fn cost(event: &Event) -> usize {
    let overhead = std::mem::size_of::<Event>();
    let held = match &event.kind {
        EventKind::Put { entry, .. } => entry.bytes.len(),
        EventKind::Delete { last, previous, .. } => last.len().max(previous.bytes.len()),
    };
    overhead + event.key().len() + held
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: HistoryBounds = HistoryBounds { events: 100, bytes: 1 << 20, age: Duration::from_secs(60) };

    fn put(key: &str, bytes: &'static str) -> Change {
        Change::Put { key: key.into(), bytes: Bytes::from_static(bytes.as_bytes()) }
    }

    fn gone(key: &str) -> Change {
        Change::Delete { key: key.into(), last: None }
    }

    fn commit(state: &mut State, now: Instant, changes: Vec<Change>) -> Revision {
        let revision = state.revision().next();
        state.apply(vec![Record { revision, changes }], now);
        revision
    }

    fn read(state: &State, at: Revision) -> Vec<(String, String)> {
        let text = |e: &Entry| (e.key.to_string(), String::from_utf8_lossy(&e.bytes).into_owned());
        state.range("", Some(at), None, 0).unwrap().entries.iter().map(text).collect()
    }

    #[test]
    fn an_old_revision_reads_as_it_was() {
        let (mut state, now) = (State::new(BOUNDS), Instant::now());
        let one = commit(&mut state, now, vec![put("a", "1"), put("b", "1")]);
        let two = commit(&mut state, now, vec![put("a", "2"), gone("b")]);
        let three = commit(&mut state, now, vec![put("b", "3")]);
        let pairs = |v: &[(&str, &str)]| v.iter().map(|(k, x)| (k.to_string(), x.to_string())).collect::<Vec<_>>();
        assert_eq!(read(&state, Revision::FIRST), pairs(&[]));
        assert_eq!(read(&state, one), pairs(&[("a", "1"), ("b", "1")]));
        assert_eq!(read(&state, two), pairs(&[("a", "2")]));
        assert_eq!(read(&state, three), pairs(&[("a", "2"), ("b", "3")]));
        state.compact(two);
        assert_eq!(read(&state, two), pairs(&[("a", "2")]));
        assert_eq!(state.range("", Some(one), None, 0), Err(RangeError::Compacted { requested: one, oldest: two }));
    }

    #[test]
    fn a_deleted_key_costs_nothing_once_compacted() {
        let (mut state, now) = (State::new(BOUNDS), Instant::now());
        for _ in 0..10 {
            commit(&mut state, now, vec![put("a", "1")]);
            commit(&mut state, now, vec![gone("a")]);
        }
        state.compact(state.revision());
        assert!(state.slots.is_empty());
        assert!(state.ring.is_empty());
        assert_eq!((state.live_bytes, state.ring_bytes, state.ring_events), (0, 0, 0));
    }

    #[test]
    fn history_is_bounded_by_count_bytes_and_age() {
        let start = Instant::now();
        let mut by_count = State::new(HistoryBounds { events: 3, ..BOUNDS });
        let mut by_age = State::new(BOUNDS);
        let mut by_bytes = State::new(HistoryBounds { bytes: 1000, ..BOUNDS });
        for i in 0..50 {
            commit(&mut by_count, start, vec![put("a", "1")]);
            commit(&mut by_age, start + Duration::from_secs(10 * i), vec![put("a", "1")]);
            commit(&mut by_bytes, start, vec![put("a", "1")]);
        }
        assert_eq!(by_count.ring.len(), 3);
        assert_eq!(by_count.floor(), Revision(by_count.revision().0 - 3));
        assert_eq!(by_age.ring.len(), 7);
        assert!(by_bytes.ring_bytes <= 1000 && !by_bytes.ring.is_empty());
        assert_eq!(by_count.slots.values().map(|s| s.older.len()).sum::<usize>(), 3);
    }

    #[test]
    fn a_watcher_shares_whole_batches_and_skips_other_keys() {
        let (mut state, now) = (State::new(BOUNDS), Instant::now());
        let one = commit(&mut state, now, vec![put("/a/1", "x"), put("/a/2", "x")]);
        let two = commit(&mut state, now, vec![put("/b/1", "x")]);
        let Next::Events(first, read) = state.next("/a/", Revision::FIRST) else { panic!() };
        assert!(Arc::ptr_eq(&first, &state.ring[0].events));
        assert_eq!(read, one);
        assert!(matches!(state.next("/a/", one), Next::UpToDate(r) if r == two));
        state.compact(two);
        assert!(matches!(state.next("/a/", one), Next::Behind(r) if r == two));
    }

    #[test]
    fn a_pinned_floor_waits_for_the_checkpoint() {
        let (mut state, now) = (State::new(HistoryBounds { events: 1, ..BOUNDS }), Instant::now());
        commit(&mut state, now, vec![put("a", "1")]);
        commit(&mut state, now, vec![put("a", "2")]);
        let pinned = state.pin();
        for _ in 0..5 {
            commit(&mut state, now, vec![put("a", "3")]);
        }
        assert_eq!(read(&state, pinned), vec![("a".to_string(), "1".to_string())]);
        state.unpin(now);
        assert_eq!(state.floor(), Revision(state.revision().0 - 1));
    }
}
