//! The laws of the work queue, without time or tasks.
//!
//! Time is a [`Duration`] since any fixed origin and is passed in.

use crate::Key;
use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::Duration,
};

/// First and longest pause after failures of one key (doubling in between).
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(60));

/// A key whose plans still act after this many runs in a row is slowed down: it must not drive the server as fast as it
/// can when some write never takes effect.
const PATIENCE: u32 = 30;

/// Keys that wait, keys that are being worked on, keys for later.
///
/// A key is in work at most once; a key added while in work is handed out again after [`Core::done`].
#[derive(Debug, Default)]
pub(crate) struct Core {
    ready: VecDeque<Key>,
    /// Keys that must be handed out (again): those in `ready`, and those in work that were added meanwhile.
    dirty: HashSet<Key>,
    working: HashSet<Key>,
    later: BTreeSet<(Duration, Key)>,
    due: HashMap<Key, Duration>,
    failures: HashMap<Key, u32>,
    streaks: HashMap<Key, u32>,
    closed: bool,
}

impl Core {
    /// Asks for `key` to be handed out.
    pub(crate) fn add(&mut self, key: Key) {
        if self.closed || !self.dirty.insert(key.clone()) {
            return;
        }
        if !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// Asks for `key` to be handed out at `at` (the earliest wish wins).
    pub(crate) fn add_at(&mut self, key: Key, at: Duration) {
        if self.closed {
            return;
        }
        match self.due.get(&key) {
            Some(earlier) if *earlier <= at => return,
            Some(after) => {
                self.later.remove(&(*after, key.clone()));
            }
            None => {}
        }
        self.due.insert(key.clone(), at);
        self.later.insert((at, key));
    }

    /// Counts a failure of `key`; the pause before it is tried again.
    pub(crate) fn failed(&mut self, key: &Key) -> Duration {
        let count = self.failures.entry(key.clone()).or_default();
        let pause = BACKOFF.0.saturating_mul(1u32 << (*count).min(16)).min(BACKOFF.1);
        *count = count.saturating_add(1);
        pause
    }

    /// A run over `key` went well: its failures are forgotten. When it acted, the pause before it is looked at again.
    pub(crate) fn succeeded(&mut self, key: &Key, acted: bool) -> Duration {
        self.failures.remove(key);
        if !acted {
            self.streaks.remove(key);
            return Duration::ZERO;
        }
        let streak = self.streaks.entry(key.clone()).or_default();
        *streak = streak.saturating_add(1);
        match streak.checked_sub(PATIENCE) {
            None | Some(0) => Duration::ZERO,
            Some(over) => BACKOFF.0.saturating_mul(1 << over.min(10)).min(BACKOFF.1),
        }
    }

    /// The next key to work on, if one is due.
    pub(crate) fn next(&mut self, now: Duration) -> Option<Key> {
        while let Some((at, _)) = self.later.first() {
            if *at > now {
                break;
            }
            if let Some((_, key)) = self.later.pop_first() {
                self.due.remove(&key);
                self.add(key);
            }
        }
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }

    /// When the next delayed key is due.
    pub(crate) fn wakes_at(&self) -> Option<Duration> {
        self.later.first().map(|(at, _)| *at)
    }

    /// The worker is done with `key`.
    pub(crate) fn done(&mut self, key: &Key) {
        self.working.remove(key);
        if self.dirty.contains(key) {
            self.ready.push_back(key.clone());
        }
    }

    /// No more additions; what is ready is still handed out, what is delayed is dropped.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.later.clear();
        self.due.clear();
    }

    /// Closed and nothing left to hand out.
    pub(crate) fn drained(&self) -> bool {
        self.closed && self.ready.is_empty() && self.working.is_empty()
    }

    /// Keys that wait to be handed out now.
    pub(crate) fn depth(&self) -> usize {
        self.ready.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u8) -> Key {
        Key::new("ns", &format!("k{n}"))
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u8),
        Later(u8, u64),
        Take,
        Done(u8),
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..4u8).prop_map(Step::Add),
            (0..4u8, 0..50u64).prop_map(|(k, t)| Step::Later(k, t)),
            Just(Step::Take),
            (0..4u8).prop_map(Step::Done),
            (0..30u64).prop_map(Step::Pass),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn never_two_workers_on_one_key_and_every_added_key_is_handed_out_after_it_was_added(steps in steps()) {
            let mut core = Core::default();
            let mut now = Duration::ZERO;
            let mut working: HashSet<Key> = HashSet::new();
            let mut wanted: HashSet<Key> = HashSet::new();
            for step in steps {
                match step {
                    Step::Add(k) => { core.add(key(k)); wanted.insert(key(k)); }
                    Step::Later(k, t) => { core.add_at(key(k), now + Duration::from_millis(t)); wanted.insert(key(k)); }
                    Step::Take => if let Some(k) = core.next(now) {
                        prop_assert!(working.insert(k.clone()), "{k} was already in work");
                        if !core.due.contains_key(&k) { wanted.remove(&k); }
                    },
                    Step::Done(k) => if working.remove(&key(k)) { core.done(&key(k)); },
                    Step::Pass(t) => now += Duration::from_millis(t),
                }
            }
            for k in working.drain() { core.done(&k); }
            now += Duration::from_secs(1);
            while let Some(k) = core.next(now) { wanted.remove(&k); core.done(&k); }
            prop_assert!(wanted.is_empty(), "never handed out: {wanted:?}");
        }
    }

    #[test]
    fn of_two_delays_the_earliest_wins() {
        let mut core = Core::default();
        core.add_at(key(1), Duration::from_secs(5));
        core.add_at(key(1), Duration::from_secs(2));
        core.add_at(key(1), Duration::from_secs(9));
        assert_eq!(core.wakes_at(), Some(Duration::from_secs(2)));
        assert_eq!(core.next(Duration::from_secs(1)), None);
        assert_eq!(core.next(Duration::from_secs(2)), Some(key(1)));
        assert_eq!(core.wakes_at(), None);
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_a_success_resets_them() {
        let mut core = Core::default();
        let pauses: Vec<_> = (0..20).map(|_| core.failed(&key(1)).as_millis()).collect();
        assert_eq!(&pauses[..4], &[5, 10, 20, 40]);
        assert_eq!(pauses[19], 60_000);
        core.succeeded(&key(1), false);
        assert_eq!(core.failed(&key(1)).as_millis(), 5);
    }

    #[test]
    fn a_key_that_never_comes_to_rest_is_slowed_down() {
        let mut core = Core::default();
        let pauses: Vec<_> = (0..40).map(|_| core.succeeded(&key(1), true).as_millis()).collect();
        assert!(pauses[..30].iter().all(|pause| *pause == 0));
        assert_eq!((pauses[30], pauses[31], pauses[39]), (10, 20, 5120));
        core.succeeded(&key(1), false);
        assert!(core.succeeded(&key(1), true).is_zero());
    }

    #[test]
    fn closing_hands_out_what_is_ready_and_takes_no_more() {
        let mut core = Core::default();
        core.add(key(1));
        core.add_at(key(2), Duration::from_secs(1));
        core.close();
        core.add(key(3));
        assert!(!core.drained());
        assert_eq!(core.next(Duration::from_secs(9)), Some(key(1)));
        assert_eq!(core.next(Duration::from_secs(9)), None);
        assert!(!core.drained(), "key 1 is still in work");
        core.done(&key(1));
        assert!(core.drained());
    }
}
