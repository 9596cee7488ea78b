//! How good placements were, in hindsight.
//!
//! When a task is placed, it is kept who had room for it: of every task where these are few, of some where they are many. When it has
//! ended, it is known better how fast each of them is. The *regret* is the part of its time that the task would have saved
//! with the fastest; a task that failed would have saved all of it, if another agent had room. The leader alone knows this.

use std::collections::BTreeMap;

use baton_protocol::record::{Outcome, WorkflowRecord};
use baton_protocol::{AgentId, RunId, TaskId};

use crate::Optimizer;
use crate::math::exp;

/// How many agents are kept with each placement as having had room, on average, and how many placements may be made up for at a
/// time.
const EACH: usize = 16;
const MOST: usize = 65_536;
/// Of how many tasks it is kept who had room, at the most.
const MAX_KEPT: usize = 4096;

/// Of which tasks it is kept who had room.
#[derive(Debug, Default)]
pub(crate) struct Sampling {
    /// How many agents may be kept: so many more with each placement.
    left: usize,
}

impl Sampling {
    /// Whether so many agents are kept with the next placement.
    pub(crate) fn takes(&mut self, agents: usize) -> bool {
        self.left = (self.left + EACH).min(MOST);
        let takes = agents <= self.left;
        self.left -= if takes { agents } else { 0 };
        takes
    }
}

/// Placements that are to be judged, and those that were.
#[derive(Debug, Default)]
pub(crate) struct Regrets {
    kept: BTreeMap<RunId, BTreeMap<TaskId, Kept>>,
    len: usize,
    judged: u64,
    sum: f64,
}

/// Who has a task, and who could have had it.
#[derive(Debug)]
struct Kept {
    agent: AgentId,
    had_room: Vec<AgentId>,
}

impl Kept {
    fn regret(&self, state: &Optimizer, outcome: Outcome) -> Option<f64> {
        match outcome {
            Outcome::Succeeded => {
                let speed =
                    |agent: &AgentId| state.learning.performance(agent).map_or(0.0, |known| known.speed.log.mean);
                let best = self.had_room.iter().map(speed).fold(f64::NEG_INFINITY, f64::max);
                Some(1.0 - exp((speed(&self.agent) - best).min(0.0)))
            }
            Outcome::Failed | Outcome::Lost | Outcome::TimedOut => Some(f64::from(u8::from(self.had_room.len() > 1))),
            // They say nothing of the agent.
            Outcome::Cancelled | Outcome::Delegated => None,
        }
    }
}

impl Regrets {
    /// A task was placed; nobody is given if it is not kept who had room.
    pub(crate) fn placed(&mut self, task: &TaskId, agent: &AgentId, had_room: Vec<AgentId>) {
        if !had_room.is_empty() && self.len < MAX_KEPT {
            let kept = Kept { agent: agent.clone(), had_room };
            let of_run = self.kept.entry(task.run).or_default();
            self.len += usize::from(of_run.insert(task.clone(), kept).is_none());
        }
    }

    /// Judges a placement, if its task has ended, and it is kept who had room.
    pub(crate) fn judge(&mut self, state: &Optimizer, record: &WorkflowRecord) -> Option<f64> {
        match record {
            WorkflowRecord::StageEnded(record) => {
                let of_run = self.kept.get_mut(&record.task.run)?;
                let kept = of_run.remove(&record.task)?;
                self.len -= 1;
                if of_run.is_empty() {
                    self.kept.remove(&record.task.run);
                }
                // What was handed over is not what was placed.
                let regret =
                    kept.regret(state, record.outcome).filter(|_| record.agent.as_ref() == Some(&kept.agent))?;
                (self.judged, self.sum) = (self.judged + 1, self.sum + regret);
                Some(regret)
            }
            WorkflowRecord::RunFinished(record) => {
                self.len -= self.kept.remove(&record.run).map_or(0, |of_run| of_run.len());
                None
            }
            _ => None,
        }
    }

    /// How much those that were judged are regretted, on average.
    pub(crate) fn average(&self) -> Option<f64> {
        (self.judged > 0).then(|| self.sum / self.judged as f64)
    }
}
