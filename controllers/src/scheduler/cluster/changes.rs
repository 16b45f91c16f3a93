//! Which nodes changed, in order: whoever remembers what it found on the nodes looks at those again. Pure.

use super::node::Slot;
use std::collections::VecDeque;

/// Whoever is further behind looks at every node.
const KEPT: usize = 4096;

/// How many changes there have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark(u64);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    forgotten: u64,
    kept: VecDeque<Slot>,
}

impl Changes {
    /// The node, or what is on it, is no longer as it was.
    pub(super) fn add(&mut self, slot: Slot) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
            self.forgotten += 1;
        }
        self.kept.push_back(slot);
    }

    /// Now.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.forgotten + self.kept.len() as u64)
    }

    /// The nodes that changed since, each once; `None` when that is no longer known.
    pub(crate) fn since(&self, mark: Mark) -> Option<Vec<Slot>> {
        let from = usize::try_from(mark.0.checked_sub(self.forgotten)?).ok()?;
        let mut slots: Vec<Slot> = self.kept.range(from.min(self.kept.len())..).copied().collect();
        slots.sort_unstable();
        slots.dedup();
        Some(slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_since_is_known_until_too_much_has() {
        let mut changes = Changes::default();
        let begin = changes.mark();
        for slot in [3, 1, 3] {
            changes.add(slot);
        }
        let later = changes.mark();
        assert_eq!(changes.since(begin), Some(vec![1, 3]));
        assert_eq!(changes.since(later), Some(vec![]));
        (0..KEPT).for_each(|_| changes.add(7));
        assert_eq!(changes.since(begin), None);
        assert_eq!(changes.since(later), Some(vec![7]));
    }
}
