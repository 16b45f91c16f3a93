//! Owns sets of completion indexes as the batch API writes them: `1,3-5,7`. Never knows a Job.

use std::fmt;

/// Numbers from 0 on, as intervals in order that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(u32, u32)>);

impl Indexes {
    /// Reads a set. With a limit every number must be below it.
    ///
    /// # Errors
    ///
    /// What is wrong with the text, in the words of Kubernetes' API server.
    pub fn parse(text: &str, limit: Option<u32>) -> Result<Indexes, String> {
        let mut set = Indexes::default();
        if text.is_empty() {
            return Ok(set);
        }
        let number = |text: &str| match text.parse::<u32>() {
            Err(_) => Err(format!("cannot convert string to integer for index: {text:?}")),
            Ok(number) if number >= limit.unwrap_or(i32::MAX.unsigned_abs()) => {
                Err(format!("too large index: {text:?}"))
            }
            Ok(number) => Ok(number),
        };
        let disordered =
            |before: u32, after: u32| format!("non-increasing order, previous: {before}, current: {after}");
        let mut last = None;
        for part in text.split(',') {
            let (first, end) = match part.split('-').collect::<Vec<_>>()[..] {
                [one] => (number(one)?, None),
                [first, end] => (number(first)?, Some(number(end)?)),
                _ => {
                    return Err(format!(
                        "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
                    ));
                }
            };
            if let Some(end) = end.filter(|end| *end <= first) {
                return Err(disordered(first, end));
            }
            if let Some(last) = last.filter(|last| *last >= first) {
                return Err(disordered(last, first));
            }
            let end = end.unwrap_or(first);
            set.push(first, end);
            last = Some(end);
        }
        Ok(set)
    }

    /// Adds an interval that begins after all others.
    fn push(&mut self, first: u32, last: u32) {
        match self.0.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
            _ => self.0.push((first, last)),
        }
    }

    /// Those below `limit`.
    #[must_use]
    pub fn below(&self, limit: u32) -> Indexes {
        let kept = self.0.iter().filter(|(first, _)| *first < limit);
        Indexes(kept.map(|(first, last)| (*first, (*last).min(limit - 1))).collect())
    }

    /// Whether the number is in the set.
    pub fn contains(&self, index: u32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    /// How many numbers there are.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers both sets hold.
    pub fn common(&self, other: &Indexes) -> u32 {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut common = 0;
        while let (Some((first, last)), Some((begin, end))) = (ours.peek(), theirs.peek()) {
            let (low, high) = (first.max(begin), last.min(end));
            common += if low <= high { high - low + 1 } else { 0 };
            if last < end {
                ours.next()
            } else {
                theirs.next()
            };
        }
        common
    }

    /// Adds numbers, in any order.
    pub fn extend(&mut self, more: impl IntoIterator<Item = u32>) {
        let mut parts = std::mem::take(&mut self.0);
        parts.extend(more.into_iter().map(|index| (index, index)));
        parts.sort_unstable();
        for (first, last) in parts {
            match self.0.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
                _ => self.0.push((first, last)),
            }
        }
    }
}

impl FromIterator<u32> for Indexes {
    fn from_iter<I: IntoIterator<Item = u32>>(indexes: I) -> Indexes {
        let mut set = Indexes::default();
        set.extend(indexes);
        set
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_set_is_written_as_kubernetes_writes_it() {
        for (indexes, text) in [(vec![], ""), (vec![3], "3"), (vec![1, 2, 4, 5, 6, 9], "1,2,4-6,9")] {
            assert_eq!(indexes.into_iter().collect::<Indexes>().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_set_is_refused_in_the_words_of_kubernetes() {
        for (text, error) in [
            ("a", "cannot convert string to integer for index: \"a\""),
            ("1,", "cannot convert string to integer for index: \"\""),
            ("10", "too large index: \"10\""),
            (
                "1-2-3",
                "the fragment \"1-2-3\" violates the requirement that an index interval can have at most two parts separated by '-'",
            ),
            ("5,3", "non-increasing order, previous: 5, current: 3"),
            ("5-3", "non-increasing order, previous: 5, current: 3"),
        ] {
            assert_eq!(Indexes::parse(text, Some(10)).unwrap_err(), error, "{text}");
        }
    }

    fn numbers() -> impl Strategy<Value = BTreeSet<u32>> {
        proptest::collection::btree_set(0..40u32, 0..20)
    }

    proptest! {
        #[test]
        fn a_set_of_indexes_is_a_set(one in numbers(), two in numbers(), limit in 0..45u32) {
            let (a, b): (Indexes, Indexes) = (one.iter().copied().collect(), two.iter().copied().collect());
            prop_assert_eq!(a.len() as usize, one.len());
            prop_assert_eq!(a.common(&b) as usize, one.intersection(&two).count());
            prop_assert!((0..45).all(|n| a.contains(n) == one.contains(&n)));
            prop_assert_eq!(a.below(limit), one.iter().copied().filter(|n| *n < limit).collect());
            let mut both = a.clone();
            both.extend(two.iter().copied());
            prop_assert_eq!(&both, &one.union(&two).copied().collect());
            prop_assert_eq!(Indexes::parse(&both.to_string(), Some(40)), Ok(both));
        }

        #[test]
        fn nothing_a_client_sends_makes_the_parser_panic(text in "[0-9,-]{0,24}") {
            let _ = Indexes::parse(&text, None).map(|set| (set.len(), set.below(7).to_string()));
        }
    }
}
