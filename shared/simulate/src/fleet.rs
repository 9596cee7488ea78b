//! The agents of a simulation: how fast each is, how often it fails, which classes of work it can do.

use crate::draws::{fnv1a, uniform};
use baton_protocol::id::mix;

/// How many classes of capabilities there are, where categories belong to classes by a hash.
pub const CLASSES: usize = 4;

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

/// Which class of capability a category of tasks belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kinds {
    /// One of [`CLASSES`], by a hash.
    Hashed,
    /// Each of these is a class of its own.
    Named(Vec<String>),
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
    pub holds: Vec<Vec<bool>>,
    /// Who can do a class, ascending.
    pub able: Vec<Vec<usize>>,
    kinds: Kinds,
}

impl Fleet {
    /// Draws a fleet. Each agent holds a class with probability 0.6; then classes that too few hold, fewer than a quarter of
    /// the fleet or two, are given to more; nobody holds none.
    #[must_use]
    pub fn new(plan: FleetPlan) -> Self {
        let FleetPlan { agents, seed, .. } = plan;
        let of_class = |what: u64, a: usize, c: usize| uniform(&[seed, what, a as u64, c as u64]);
        let mut holds: Vec<Vec<bool>> =
            (0..agents).map(|a| (0..CLASSES).map(|c| of_class(13, a, c) < 0.6).collect()).collect();
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
        Self::with(plan, holds, Kinds::Hashed)
    }

    /// Draws a fleet of specialists: so many agents that can do each of these categories, and nothing else.
    #[must_use]
    pub fn of_kinds(plan: FleetPlan, kinds: &[(String, usize)]) -> Self {
        let agents: Vec<usize> = kinds.iter().enumerate().flat_map(|(c, (_, n))| std::iter::repeat_n(c, *n)).collect();
        let holds = agents.iter().map(|kind| (0..kinds.len()).map(|c| c == *kind).collect()).collect();
        let names = kinds.iter().map(|(name, _)| name.clone()).collect();
        Self::with(FleetPlan { agents: agents.len(), ..plan }, holds, Kinds::Named(names))
    }

    fn with(plan: FleetPlan, holds: Vec<Vec<bool>>, kinds: Kinds) -> Self {
        let FleetPlan { agents, speeds: (slow, fast), failures: (least, most), seed } = plan;
        let draw = |what: u64, agent: usize| uniform(&[seed, what, agent as u64]);
        let speed = (0..agents).map(|a| (slow.ln() + draw(11, a) * (fast / slow).ln()).exp()).collect();
        let failure = (0..agents).map(|a| least + (most - least) * draw(12, a)).collect();
        let classes = match &kinds {
            Kinds::Hashed => CLASSES,
            Kinds::Named(names) => names.len(),
        };
        let able = (0..classes).map(|c| (0..agents).filter(|&a| holds[a][c]).collect()).collect();
        Self { plan, speed, failure, holds, able, kinds }
    }

    /// The class that a category belongs to.
    ///
    /// # Panics
    /// If the fleet is one of specialists, and none of them are for it.
    #[must_use]
    pub fn class_of(&self, category: &str) -> usize {
        match &self.kinds {
            Kinds::Hashed => (mix(fnv1a(category)) % CLASSES as u64) as usize,
            Kinds::Named(names) => {
                let place = names.iter().position(|name| name == category);
                place.unwrap_or_else(|| panic!("nobody can do {category:?}"))
            }
        }
    }

    /// How many classes there are.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.able.len()
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
