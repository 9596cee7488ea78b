//! The agents of a simulation: how fast each is, how often it fails, which classes of work it can do.

use crate::draws::{fnv1a, uniform};
use baton_protocol::id::mix;

/// How many classes of capabilities there are.
pub const CLASSES: usize = 4;

/// The class of a category of tasks.
#[must_use]
pub fn class_of(category: &str) -> usize {
    (mix(fnv1a(category)) % CLASSES as u64) as usize
}

/// What a fleet is drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FleetPlan {
    /// How many agents.
    pub agents: usize,
    /// The slowest and the fastest speed; drawn evenly on a logarithmic scale. An agent of speed 2 takes half of a task's
    /// reference time.
    pub speeds: (f64, f64),
    /// The least and the greatest probability with which an attempt fails, drawn evenly for each agent.
    pub failures: (f64, f64),
    /// What all draws depend on.
    pub seed: u64,
}

/// Agents.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// What it was drawn from.
    pub plan: FleetPlan,
    /// How fast each is.
    pub speed: Vec<f64>,
    /// With which probability an attempt of each fails.
    pub failure: Vec<f64>,
    /// Which classes each can do.
    pub holds: Vec<[bool; CLASSES]>,
    /// Who can do a class, ascending.
    pub able: [Vec<usize>; CLASSES],
}

impl Fleet {
    /// Draws a fleet. Each agent holds a class with probability 0.6; then classes that too few hold, fewer than a quarter of
    /// the fleet or two, are given to more; nobody holds none.
    #[must_use]
    pub fn new(plan: FleetPlan) -> Self {
        let FleetPlan { agents, speeds: (slow, fast), failures: (least, most), seed } = plan;
        let draw = |what: u64, agent: usize| uniform(&[seed, what, agent as u64]);
        let speed = (0..agents).map(|a| (slow.ln() + draw(11, a) * (fast / slow).ln()).exp()).collect();
        let failure = (0..agents).map(|a| least + (most - least) * draw(12, a)).collect();
        let of_class = |what: u64, a: usize, c: usize| uniform(&[seed, what, a as u64, c as u64]);
        let mut holds: Vec<[bool; CLASSES]> =
            (0..agents).map(|a| std::array::from_fn(|c| of_class(13, a, c) < 0.6)).collect();
        let enough = agents.min((agents / 4).max(2));
        for c in 0..CLASSES {
            let mut order: Vec<usize> = (0..agents).collect();
            order.sort_by(|a, b| of_class(14, *a, c).total_cmp(&of_class(14, *b, c)));
            let mut have = holds.iter().filter(|holds| holds[c]).count();
            for a in order {
                if have >= enough {
                    break;
                }
                have += usize::from(!holds[a][c]);
                holds[a][c] = true;
            }
        }
        for (a, holds) in holds.iter_mut().enumerate() {
            if !holds.contains(&true) {
                holds[a % CLASSES] = true;
            }
        }
        let able = std::array::from_fn(|c| (0..agents).filter(|&a| holds[a][c]).collect());
        Self { plan, speed, failure, holds, able }
    }

    /// How many agents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.speed.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.speed.is_empty()
    }
}
