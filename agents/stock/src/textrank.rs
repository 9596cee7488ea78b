//! Which sentences are central: TextRank over their shared words, and a choice that avoids repetition (MMR).

use crate::text::{self, Term};

/// How often a reader goes on to a similar sentence rather than to any.
const DAMPING: f64 = 0.85;
const ROUNDS: usize = 30;

/// How central each sentence (an ascending set of terms) is, from 0 to 1; the most central one has 1.
#[must_use]
pub fn rank(sentences: &[Vec<Term>]) -> Vec<f64> {
    let n = sentences.len();
    let mut edges: Vec<Vec<(usize, f64)>> = vec![Vec::new(); n];
    let mut sums = vec![0.0; n];
    for a in 0..n {
        for b in a + 1..n {
            let shared = text::shared(&sentences[a], &sentences[b]);
            if shared == 0 {
                continue;
            }
            // As in Mihalcea and Tarau: long sentences share more by chance. The 1 + keeps it finite.
            let size = text::ratio(sentences[a].len(), 1).ln_1p() + text::ratio(sentences[b].len(), 1).ln_1p();
            let weight = text::ratio(shared, 1) / size;
            edges[a].push((b, weight));
            edges[b].push((a, weight));
            sums[a] += weight;
            sums[b] += weight;
        }
    }
    let mut ranks = vec![1.0; n];
    for _ in 0..ROUNDS {
        ranks = (0..n)
            .map(|a| {
                let inflow: f64 = edges[a].iter().map(|(b, weight)| ranks[*b] * weight / sums[*b]).sum();
                1.0 - DAMPING + DAMPING * inflow
            })
            .collect();
    }
    normalize(&mut ranks);
    ranks
}

/// Scales so that the largest is 1.
pub fn normalize(values: &mut [f64]) {
    let most = values.iter().copied().fold(0.0, f64::max);
    if most > 0.0 {
        for value in values {
            *value /= most;
        }
    }
}

/// The candidates in the order of what each adds: its relevance, less its likeness to those already `taken`.
///
/// `sets` are ascending. The first of equals wins, so the order is stable.
#[must_use]
pub fn marginal_order(relevance: &[f64], sets: &[Vec<Term>], taken: &[&[Term]], novelty: f64) -> Vec<usize> {
    let likeness = |set: &[Term], other: &[Term]| text::jaccard(set, other).max(0.8 * text::containment(set, other));
    let mut nearest: Vec<f64> =
        sets.iter().map(|set| taken.iter().map(|other| likeness(set, other)).fold(0.0, f64::max)).collect();
    let mut left: Vec<usize> = (0..relevance.len()).collect();
    let mut order = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let worth = |at: usize| relevance[at] - novelty * nearest[at];
        let mut best = 0;
        for place in 1..left.len() {
            if worth(left[place]) > worth(left[best]) + 1e-12 {
                best = place;
            }
        }
        let chosen = left.remove(best);
        for &other in &left {
            nearest[other] = nearest[other].max(likeness(&sets[other], &sets[chosen]));
        }
        order.push(chosen);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_that_shares_most_is_central() {
        let ranks = rank(&[vec![1, 2, 3], vec![1, 4], vec![2, 5], vec![3, 6], vec![7, 8]]);
        assert!((ranks[0] - 1.0).abs() < 1e-12);
        assert!(ranks[4] < ranks[1], "{ranks:?}");
        assert!(rank(&[]).is_empty());
    }

    #[test]
    fn repetition_comes_last() {
        let sets = vec![vec![1, 2, 3], vec![1, 2, 3], vec![4, 5, 6]];
        assert_eq!(marginal_order(&[1.0, 0.9, 0.5], &sets, &[], 0.7), [0, 2, 1]);
        assert_eq!(marginal_order(&[1.0, 0.9, 0.5], &sets, &[&[1, 2, 3]], 0.7), [2, 0, 1]);
        assert_eq!(marginal_order(&[1.0, 0.9, 0.5], &sets, &[], 0.0), [0, 1, 2]);
    }
}
