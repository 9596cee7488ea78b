//! Sharing out what is left of an account among those that are a part of it: by priority, or by workload.
//!
//! Both are as the coordination document gives them (`allocate_resources_by_priority`, `balance_agent_resources`), in whole
//! units of the ninth decimal place, so that the shares are exactly what there is and never more.

/// Shares in proportion to these weights. All of it is given out, to the last unit: what does not divide evenly goes, a unit
/// each, to the largest remainders, the first first. Without any weight everybody gets the same.
pub(crate) fn in_proportion(available: u128, weights: &[u64]) -> Vec<u128> {
    let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    if weights.is_empty() {
        return Vec::new();
    }
    if total == 0 {
        return in_proportion(available, &vec![1; weights.len()]);
    }
    // What is multiplied has 80 bits and 40 at the most.
    let parts = weights.iter().map(|weight| available * u128::from(*weight));
    let mut shares: Vec<_> = parts.clone().map(|part| part / total).collect();
    let mut by_remainder: Vec<_> = parts.map(|part| part % total).enumerate().collect();
    by_remainder.sort_by_key(|(index, remainder)| (std::cmp::Reverse(*remainder), *index));
    let left = available - shares.iter().sum::<u128>();
    for (index, _) in by_remainder.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
        shares[index] += 1;
    }
    shares
}

/// How much somebody has to do: 0.3 of what was done lately and 0.7 of what waits, in tenths.
pub(crate) fn workload(recent: u32, pending: u32) -> u64 {
    3 * u64::from(recent) + 7 * u64::from(pending)
}

/// Shares in proportion to workload, but at least the minimum each. Where the minimum makes that more than there is, those who
/// have more than it give up in proportion; where there is not even the minimum for all, everybody gets the same. Without any
/// workload everybody gets the minimum.
pub(crate) fn by_workload(available: u128, workloads: &[u64], minimum: u128) -> Vec<u128> {
    let count = workloads.len() as u128;
    if minimum.saturating_mul(count) >= available {
        return in_proportion(available, &vec![1; workloads.len()]);
    }
    if workloads.iter().all(|workload| *workload == 0) {
        return vec![minimum; workloads.len()];
    }
    let mut open: Vec<usize> = (0..workloads.len()).collect();
    let mut shares = vec![minimum; workloads.len()];
    // Whoever's part would be less than the minimum has the minimum; the others share the rest, until that holds for all.
    loop {
        let left = available - minimum * (count - open.len() as u128);
        let weights: Vec<_> = open.iter().map(|index| workloads[*index]).collect();
        let parts = in_proportion(left, &weights);
        if parts.iter().all(|part| *part >= minimum) {
            open.iter().zip(parts).for_each(|(index, part)| shares[*index] = part);
            return shares;
        }
        let enough = open.iter().zip(parts).filter(|(_, part)| *part >= minimum);
        open = enough.map(|(index, _)| *index).collect();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn r9_the_document_s_own_numbers() {
        // Priorities 7, 5 and 3 of 150.
        assert_eq!(in_proportion(150, &[7, 5, 3]), [70, 50, 30]);
        // What does not divide evenly is given out all the same.
        assert_eq!(in_proportion(100, &[1, 1, 1]), [34, 33, 33]);
        assert_eq!(in_proportion(5, &[0, 0]), [3, 2]);
    }

    #[test]
    fn r10_workload_counts_and_the_minimum_holds() {
        assert_eq!((workload(10, 0), workload(0, 10)), (30, 70));
        // 100 in proportion to 30 and 70.
        assert_eq!(by_workload(100, &[30, 70], 10), [30, 70]);
        // Nobody works: the minimum, as in the document.
        assert_eq!(by_workload(100, &[0, 0], 10), [10, 10]);
        // The idle one has the minimum, and the busy one what is left: the document would have given 10 + 100.
        assert_eq!(by_workload(100, &[0, 9], 10), [10, 90]);
        assert_eq!(by_workload(15, &[0, 9, 5], 10), [5, 5, 5]);
    }

    proptest! {
        #[test]
        fn r9_r10_never_more_than_there_is(
            available in 0u128..1_000_000_000_000_000_000_000_000, weights in prop::collection::vec(0u64..1_000_000, 1..20), minimum in 0u128..1_000_000_000_000,
        ) {
            let shares = in_proportion(available, &weights);
            prop_assert_eq!(shares.iter().sum::<u128>(), available);
            let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            for (share, weight) in shares.iter().zip(&weights) {
                let Some(exact) = (available * u128::from(*weight)).checked_div(total) else { continue };
                prop_assert!(*share == exact || *share == exact + 1);
            }
            let shares = by_workload(available, &weights, minimum);
            prop_assert!(shares.iter().sum::<u128>() <= available);
            let enough = minimum * weights.len() as u128 <= available;
            prop_assert!(!enough || shares.iter().all(|share| *share >= minimum));
        }
    }
}
