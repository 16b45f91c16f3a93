//! Pauses between the pods of one place that end as soon as they are made.
//!
//! Owns: how often a pod had to be made anew in a place (a node of a daemon set, an ordinal of a stateful set), and when
//! the next one may be. Kept in memory: another process begins anew.

use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

/// The pause after the first end, doubled after each further one (as Kubernetes' DaemonSets).
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause. After twice as long without an end the count begins anew.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// The places of every owner, by its uid.
#[derive(Debug, Default)]
pub(crate) struct Backoff(Mutex<HashMap<String, BTreeMap<String, Ends>>>);

#[derive(Clone, Copy, Debug)]
struct Ends {
    pause: Duration,
    last: Timestamp,
}

impl Backoff {
    /// A pod of that place ended and was taken away.
    pub(crate) fn ended(&self, owner: &str, place: &str, now: Timestamp) {
        let mut owners = self.0.lock();
        let places = owners.entry(owner.to_owned()).or_default();
        places.retain(|_, ends| now.duration_since(ends.last).unsigned_abs() < 2 * LONGEST);
        let pause = places.get(place).map_or(FIRST, |ends| (ends.pause * 2).min(LONGEST));
        places.insert(place.to_owned(), Ends { pause, last: now });
    }

    /// Until when the pods of each place are left as they ended.
    pub(crate) fn pauses(&self, owner: &str) -> BTreeMap<String, Timestamp> {
        let owners = self.0.lock();
        let until = |ends: &Ends| ends.last.checked_add(ends.pause).unwrap_or(Timestamp::MAX);
        owners.get(owner).into_iter().flatten().map(|(place, ends)| (place.clone(), until(ends))).collect()
    }

    /// The owner is gone.
    pub(crate) fn forget(&self, owner: &str) {
        self.0.lock().remove(owner);
    }
}

/// How long a pause still lasts; `None` when it is over or there is none.
pub(crate) fn left(pauses: &BTreeMap<String, Timestamp>, place: &str, now: Timestamp) -> Option<Duration> {
    let left = Duration::try_from(pauses.get(place)?.duration_since(now)).ok()?;
    (!left.is_zero()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_are_forgotten_after_a_while() {
        let backoff = Backoff::default();
        let mut now = Timestamp::UNIX_EPOCH;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            backoff.ended("u", "node-1", now);
            let pause = left(&backoff.pauses("u"), "node-1", now).expect("a pause");
            pauses.push(pause.as_secs());
            now = now.checked_add(pause).expect("a time");
            assert_eq!(left(&backoff.pauses("u"), "node-1", now), None);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        assert_eq!(left(&backoff.pauses("u"), "node-2", now), None);
        now = now.checked_add(2 * LONGEST).expect("a time");
        backoff.ended("u", "node-1", now);
        assert_eq!(left(&backoff.pauses("u"), "node-1", now), Some(FIRST));
        backoff.forget("u");
        assert!(backoff.pauses("u").is_empty());
    }
}
