//! Which of those who may change an object are asked, once or again (KEP-492): after the first round those see it again
//! that said so and whose object somebody changed after them. Alike for webhooks and policies.

use std::collections::BTreeSet;

/// Two rounds over whoever `K` names.
pub struct Round<K> {
    second: bool,
    changed: bool,
    /// Those of `reinvocationPolicy: IfNeeded` that have been asked.
    asked: BTreeSet<K>,
    again: BTreeSet<K>,
}

impl<K> Default for Round<K> {
    fn default() -> Self {
        Round { second: false, changed: false, asked: BTreeSet::new(), again: BTreeSet::new() }
    }
}

impl<K: Ord + Clone> Round<K> {
    /// Whether one of them changed the object.
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// Begins the second round; `since`: whether anything else changed the object after the first.
    pub fn second(&mut self, since: bool) {
        self.second = true;
        if since {
            self.again.extend(self.asked.iter().cloned());
        }
    }

    /// Whether this one is not asked in this round.
    pub fn skips(&self, who: &K) -> bool {
        self.second && !self.again.contains(who)
    }

    /// Notes that one was asked: whether it changed the object, and whether it wants to be asked again if need be.
    pub fn note(&mut self, who: K, changed: bool, again: bool) {
        if changed {
            self.changed = true;
            self.again.extend(self.asked.iter().cloned());
        }
        if again {
            self.asked.insert(who);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Round;

    #[test]
    fn those_see_an_object_again_who_asked_to_and_after_whom_it_changed() {
        let mut round = Round::default();
        round.note("never", false, false);
        round.note("before", true, true);
        round.note("changes", true, false);
        round.note("after", false, true);
        assert!(round.changed());
        assert!(!round.skips(&"never"), "the first round asks everybody");
        round.second(false);
        assert_eq!(["never", "before", "changes", "after"].map(|who| round.skips(&who)), [true, false, true, true]);
        round.second(true);
        assert_eq!(["never", "before", "changes", "after"].map(|who| round.skips(&who)), [true, false, true, false]);
    }
}
