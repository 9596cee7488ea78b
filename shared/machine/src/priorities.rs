//! Counts by priority.

use std::collections::BTreeMap;

/// How many of something there are of each priority. Most are of priority 0, so these are counted apart: what comes and
/// goes one by one must not make and drop an entry each time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Priorities {
    plain: usize,
    /// Of the others; none has zero.
    others: BTreeMap<i32, usize>,
    len: usize,
}

impl Priorities {
    /// There is one more.
    pub fn add(&mut self, priority: i32) {
        self.len += 1;
        match priority {
            0 => self.plain += 1,
            _ => *self.others.entry(priority).or_default() += 1,
        }
    }

    /// There is one less.
    ///
    /// # Panics
    /// If there was none.
    pub fn take(&mut self, priority: i32) {
        self.len -= 1;
        if priority == 0 {
            self.plain -= 1;
        } else {
            let count = self.others.get_mut(&priority).expect("it was counted when it came");
            *count -= 1;
            if *count == 0 {
                self.others.remove(&priority);
            }
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there is any of this priority or a greater one.
    #[must_use]
    pub fn any_from(&self, least: i32) -> bool {
        (least <= 0 && self.plain > 0) || self.others.last_key_value().is_some_and(|(greatest, _)| *greatest >= least)
    }

    /// How many there are of less priority.
    #[must_use]
    pub fn below(&self, bound: i32) -> usize {
        let plain = if bound > 0 { self.plain } else { 0 };
        self.others.range(..bound).map(|(_, count)| count).sum::<usize>() + plain
    }
}

impl FromIterator<i32> for Priorities {
    fn from_iter<T: IntoIterator<Item = i32>>(all: T) -> Self {
        let mut counts = Self::default();
        all.into_iter().for_each(|priority| counts.add(priority));
        counts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_what_a_list_says(all in prop::collection::vec(-2..3i32, 0..12), bound in -3..4i32) {
            let mut counts: Priorities = all.iter().copied().collect();
            for taken in 0..=all.len() {
                let left = &all[taken..];
                prop_assert_eq!(counts.len(), left.len());
                prop_assert_eq!(counts.is_empty(), left.is_empty());
                prop_assert_eq!(counts.any_from(bound), left.iter().any(|one| *one >= bound));
                prop_assert_eq!(counts.below(bound), left.iter().filter(|one| **one < bound).count());
                prop_assert_eq!(&counts, &left.iter().copied().collect::<Priorities>());
                if let Some(first) = left.first() {
                    counts.take(*first);
                }
            }
        }
    }
}
