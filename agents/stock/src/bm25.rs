//! Okapi BM25 over a few thousand short texts, in memory.

use std::collections::HashMap;

use crate::text::{Term, ratio};

/// How soon repetitions of a term stop counting.
const K1: f64 = 1.2;
/// How much longer texts are held back.
const B: f64 = 0.75;

/// An inverted index.
#[derive(Debug, Clone, Default)]
pub struct Index {
    /// For each term: in which texts, how often.
    postings: HashMap<Term, Vec<(usize, usize)>>,
    lengths: Vec<usize>,
}

impl Index {
    /// Indexes texts that were turned into terms.
    #[must_use]
    pub fn new(texts: &[Vec<Term>]) -> Self {
        let mut index = Self { postings: HashMap::new(), lengths: texts.iter().map(Vec::len).collect() };
        for (at, terms) in texts.iter().enumerate() {
            for term in terms {
                let postings = index.postings.entry(*term).or_default();
                match postings.last_mut() {
                    Some((text, count)) if *text == at => *count += 1,
                    _ => postings.push((at, 1)),
                }
            }
        }
        index
    }

    /// How rare a term is; 0 for one that is nowhere.
    #[must_use]
    pub fn idf(&self, term: Term) -> f64 {
        let holders = self.postings.get(&term).map_or(0, Vec::len);
        if holders == 0 {
            return 0.0;
        }
        let others = self.lengths.len() - holders;
        // The 1 + keeps it positive for terms that are in most texts.
        (1.0 + (ratio(others, 1) + 0.5) / (ratio(holders, 1) + 0.5)).ln()
    }

    /// The score of every text for a query; 0 where they share no term.
    #[must_use]
    pub fn scores(&self, query: &[Term]) -> Vec<f64> {
        let mut scores = vec![0.0; self.lengths.len()];
        let mean = ratio(self.lengths.iter().sum(), self.lengths.len()).max(1.0);
        let mut query = query.to_vec();
        query.sort_unstable();
        query.dedup();
        for term in query {
            let idf = self.idf(term);
            for (text, count) in self.postings.get(&term).into_iter().flatten() {
                let count = ratio(*count, 1);
                let length = ratio(self.lengths[*text], 1) / mean;
                scores[*text] += idf * count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * length));
            }
        }
        scores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_terms_and_short_texts_win() {
        let index = Index::new(&[vec![1, 2, 3], vec![1, 1, 4, 5, 6, 7, 8], vec![1], vec![2, 9]]);
        let scores = index.scores(&[1]);
        assert!(scores[2] > scores[0], "shorter wins: {scores:?}");
        assert!(scores[3].abs() < 1e-12);
        assert!(index.idf(9) > index.idf(1));
        assert!(index.idf(99).abs() < 1e-12);
    }

    #[test]
    fn repeating_a_query_term_changes_nothing() {
        let index = Index::new(&[vec![1, 2], vec![2, 3]]);
        assert_eq!(index.scores(&[2, 2, 3]), index.scores(&[3, 2]));
    }

    #[test]
    fn an_empty_index_scores_nothing() {
        assert!(Index::new(&[]).scores(&[1]).is_empty());
        assert!(Index::new(&[vec![]]).scores(&[1])[0].abs() < 1e-12);
    }
}
