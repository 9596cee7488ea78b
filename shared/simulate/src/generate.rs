//! Workflows made up from a seed, for when there is no trace.

use std::collections::BTreeSet;

use crate::draws::{normal, uniform};
use crate::workload::Graph;

/// How many kinds of work there are in a generated workflow.
const KINDS: usize = 6;

/// What a generated workflow looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One task splits, many do the same side by side, some collect, one ends it.
    Fan,
    /// Rows of tasks of different kinds, side by side, that end in one.
    Lanes,
    /// Each task waits for up to three of those before it.
    Tangle,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fan, Self::Lanes, Self::Tangle];

    fn as_str(self) -> &'static str {
        match self {
            Self::Fan => "fan",
            Self::Lanes => "lanes",
            Self::Tangle => "tangle",
        }
    }

    /// What task `i` of `n` waits for, and its kind.
    fn task(self, seed: u64, i: usize, n: usize) -> (BTreeSet<usize>, usize) {
        let last = n - 1;
        let collectors = (n / 10).max(1).min(n.saturating_sub(2));
        match self {
            _ if i == 0 => (BTreeSet::new(), 0),
            Self::Fan if i == last => ((n - 1 - collectors..last).collect(), 3),
            Self::Fan if i >= last - collectors => {
                let nth = i - (last - collectors);
                ((1..last - collectors).filter(|part| part % collectors == nth).chain([0]).collect(), 2)
            }
            Self::Fan => ([0].into(), 1),
            Self::Lanes if i == last => {
                ((1..last).filter(|task| task % KINDS == 0 || task + KINDS > last).collect(), 0)
            }
            Self::Lanes => ([if i % KINDS == 1 { 0 } else { i - 1 }].into(), i % KINDS),
            Self::Tangle => {
                let draw = |what: u64, j: usize| uniform(&[seed, what, i as u64, j as u64]);
                let parents = 0..1 + (draw(71, 0) * 3.0) as usize;
                (parents.map(|j| (draw(72, j) * i as f64) as usize).collect(), (draw(73, 0) * KINDS as f64) as usize)
            }
        }
    }
}

/// A workflow of so many tasks. Tasks of one kind are alike: their times are log-normal around the kind's, and grow with what
/// they read.
///
/// # Panics
/// If there are fewer than three tasks.
#[must_use]
pub fn generate(shape: Shape, seed: u64, tasks: usize) -> Graph {
    assert!(tasks >= 3, "a generated workflow has at least three tasks");
    let mut graph = Graph {
        name: format!("{}-{tasks}-{seed}", shape.as_str()),
        seconds: Vec::new(),
        category: Vec::new(),
        categories: (0..KINDS).map(|kind| format!("{}-{kind}", shape.as_str())).collect(),
        parents: Vec::new(),
        children: vec![Vec::new(); tasks],
        input_bytes: Vec::new(),
        order: (0..tasks).collect(),
    };
    for i in 0..tasks {
        let (parents, kind) = shape.task(seed, i, tasks);
        let size = normal(&[seed, 74, i as u64]);
        let seconds = (2.0 + normal(&[seed, 75, kind as u64]) + 0.4 * size + 0.2 * normal(&[seed, 76, i as u64])).exp();
        parents.iter().for_each(|&parent| graph.children[parent].push(i));
        graph.seconds.push(seconds);
        graph.category.push(kind);
        graph.parents.push(parents.into_iter().collect());
        graph.input_bytes.push((1e6 * size.exp()) as u64);
    }
    graph
}
