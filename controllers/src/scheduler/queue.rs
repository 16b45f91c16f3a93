//! The scheduling queue: pods that are to be tried, that pause, and that wait for the world to change. Pure: time is a
//! [`Duration`] since any fixed origin.

use super::decide::Rejectors;
use crate::Key;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

/// First and longest pause after attempts that failed (doubling in between), unless the configuration says otherwise.
pub(crate) const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(10));
/// Events get lost: what waits longer than this is tried again.
const PARKED_AT_MOST: Duration = Duration::from_secs(300);

/// Higher priority first, then the older.
type Rank = (Reverse<i32>, u64);

/// Who kept pods out, and what those pods are like ([`PodInfo::signature`](super::cluster::pod::PodInfo::signature)).
pub(crate) type Kind = (Rejectors, u64);

#[derive(Debug)]
enum Place {
    /// To be tried now.
    Active(Rank),
    /// To be tried at that time.
    Pausing(Duration),
    /// To be tried when something changes that matters, or at that time.
    Parked(Duration, Kind),
    /// Being tried.
    Out,
}

#[derive(Debug)]
struct Waiting {
    priority: i32,
    arrival: u64,
    attempts: u32,
    last_attempt: Duration,
    /// Something changed that matters while the pod was being tried.
    stale: bool,
    place: Place,
}

/// Pods that want a node.
#[derive(Debug)]
pub(crate) struct SchedulingQueue {
    backoff: (Duration, Duration),
    pods: HashMap<Key, Waiting>,
    /// Those that are parked, by what they are alike in: news are held against one of them.
    parked: BTreeMap<Kind, BTreeSet<Key>>,
    active: BTreeMap<Rank, Key>,
    /// Those that pause and those that are parked, by when they are tried at the latest.
    timed: BTreeSet<(Duration, Key)>,
    arrivals: u64,
}

impl Default for SchedulingQueue {
    fn default() -> Self {
        SchedulingQueue::new(BACKOFF)
    }
}

impl SchedulingQueue {
    /// An empty queue with that first and longest pause.
    pub(crate) fn new(backoff: (Duration, Duration)) -> Self {
        SchedulingQueue {
            backoff,
            pods: HashMap::new(),
            parked: BTreeMap::new(),
            active: BTreeMap::new(),
            timed: BTreeSet::new(),
            arrivals: 0,
        }
    }

    /// Takes in a pod, or news of a pod that waits: what changed in it may let it in.
    pub(crate) fn add(&mut self, key: &Key, priority: i32, now: Duration) {
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.priority = priority;
            match waiting.place {
                Place::Out => waiting.stale = true,
                Place::Active(_) | Place::Pausing(_) => {}
                Place::Parked(..) => self.wake(key, now),
            }
            return;
        }
        self.arrivals += 1;
        let arrival = self.arrivals;
        let place = Place::Out;
        let waiting = Waiting { priority, arrival, attempts: 0, last_attempt: Duration::ZERO, stale: false, place };
        self.pods.insert(key.clone(), waiting);
        self.activate(key);
    }

    /// The pod no longer wants a node.
    pub(crate) fn remove(&mut self, key: &Key) {
        self.unplace(key);
        self.pods.remove(key);
    }

    /// The next pod to try.
    pub(crate) fn next(&mut self, now: Duration) -> Option<Key> {
        while let Some((at, _)) = self.timed.first()
            && *at <= now
            && let Some((_, key)) = self.timed.pop_first()
        {
            self.unplace(&key);
            self.activate(&key);
        }
        let (_, key) = self.active.pop_first()?;
        let waiting = self.pods.get_mut(&key)?;
        waiting.place = Place::Out;
        waiting.stale = false;
        waiting.attempts = waiting.attempts.saturating_add(1);
        waiting.last_attempt = now;
        Some(key)
    }

    /// There is no node for a pod that was tried: it waits until something changes for those who kept it out.
    pub(crate) fn park(&mut self, key: &Key, kind: Kind, now: Duration) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let until = now + PARKED_AT_MOST;
        waiting.place = Place::Parked(until, kind);
        let stale = waiting.stale;
        self.timed.insert((until, key.clone()));
        self.parked.entry(kind).or_default().insert(key.clone());
        if stale {
            self.wake(key, now);
        }
    }

    /// The pods that wait for something to change, by kind.
    pub(crate) fn parked(&self) -> &BTreeMap<Kind, BTreeSet<Key>> {
        &self.parked
    }

    /// Who kept the pod out, if it waits for something to change.
    pub(crate) fn rejectors(&self, key: &Key) -> Option<Rejectors> {
        match self.pods.get(key)?.place {
            Place::Parked(_, (rejectors, _)) => Some(rejectors),
            _ => None,
        }
    }

    /// Trying failed for another reason: again after a pause.
    pub(crate) fn pause(&mut self, key: &Key) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let until = waiting.last_attempt + pause(self.backoff, waiting.attempts);
        waiting.place = Place::Pausing(until);
        self.timed.insert((until, key.clone()));
    }

    /// When to look again although nothing happened.
    pub(crate) fn wakes_at(&self) -> Option<Duration> {
        self.timed.first().map(|(at, _)| *at)
    }

    /// Something changed that may let the pod in: it is tried again after its pause.
    pub(crate) fn wake(&mut self, key: &Key, now: Duration) {
        self.unplace(key);
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let until = waiting.last_attempt + pause(self.backoff, waiting.attempts);
        if until <= now {
            self.activate(key);
        } else {
            waiting.place = Place::Pausing(until);
            self.timed.insert((until, key.clone()));
        }
    }

    fn activate(&mut self, key: &Key) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let rank = (Reverse(waiting.priority), waiting.arrival);
        waiting.place = Place::Active(rank);
        self.active.insert(rank, key.clone());
    }

    fn unplace(&mut self, key: &Key) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        match std::mem::replace(&mut waiting.place, Place::Out) {
            Place::Active(rank) => {
                self.active.remove(&rank);
            }
            Place::Pausing(until) => {
                self.timed.remove(&(until, key.clone()));
            }
            Place::Parked(until, kind) => {
                self.timed.remove(&(until, key.clone()));
                if let Some(alike) = self.parked.get_mut(&kind) {
                    alike.remove(key);
                    if alike.is_empty() {
                        self.parked.remove(&kind);
                    }
                }
            }
            Place::Out => {}
        }
    }
}

fn pause((first, longest): (Duration, Duration), attempts: u32) -> Duration {
    first.saturating_mul(1u32 << attempts.saturating_sub(1).min(16)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const SOMEBODY: Kind = (1, 0);

    #[test]
    fn the_more_important_goes_first_then_the_older() {
        let mut queue = SchedulingQueue::default();
        for (name, priority) in [("old", 0), ("new", 0), ("vip", 1000)] {
            queue.add(&key(name), priority, at(0));
        }
        let order: Vec<Key> = std::iter::from_fn(|| queue.next(at(0))).collect();
        assert_eq!(order, [key("vip"), key("old"), key("new")]);
    }

    #[test]
    fn pauses_grow_and_hold_back_what_is_woken_too_often() {
        let mut queue = SchedulingQueue::default();
        queue.add(&key("a"), 0, at(0));
        let mut now = at(0);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let started = now;
            queue.next(now).expect("due");
            queue.park(&key("a"), SOMEBODY, now);
            queue.wake(&key("a"), now);
            assert_eq!(queue.next(now), None);
            now = queue.wakes_at().unwrap();
            pauses.push((now - started).as_millis());
        }
        assert_eq!(pauses[..4], [20, 40, 80, 160]);
        assert_eq!(pauses[11], 10_000);
    }

    #[test]
    fn news_that_arrive_while_a_pod_is_tried_are_not_lost() {
        let mut queue = SchedulingQueue::default();
        queue.add(&key("a"), 0, at(0));
        queue.next(at(0)).unwrap();
        queue.add(&key("a"), 0, at(0));
        queue.park(&key("a"), SOMEBODY, at(0));
        assert_eq!(queue.next(at(20)), Some(key("a")));
    }

    #[test]
    fn what_waits_too_long_is_tried_again_without_news() {
        let mut queue = SchedulingQueue::default();
        queue.add(&key("a"), 0, at(0));
        queue.next(at(0)).unwrap();
        queue.park(&key("a"), SOMEBODY, at(0));
        assert_eq!(queue.next(PARKED_AT_MOST - at(1)), None);
        assert_eq!(queue.next(PARKED_AT_MOST), Some(key("a")));
    }

    #[test]
    fn a_removed_pod_is_never_handed_out() {
        let mut queue = SchedulingQueue::default();
        for name in ["a", "b"] {
            queue.add(&key(name), 0, at(0));
        }
        queue.remove(&key("a"));
        assert_eq!(queue.next(at(0)), Some(key("b")));
        queue.remove(&key("b"));
        queue.pause(&key("b"));
        assert_eq!(queue.next(at(99_999)), None);
    }
}
