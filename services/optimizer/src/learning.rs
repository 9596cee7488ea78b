//! What is learned from how tasks ended: how good an agent is, how long a stage takes.
//!
//! Both are exponential moving averages with the learning rate of the first source (0.1). The rate is a constant: all
//! instances fold the same log, and must come to the same. Averages are kept in integers (millionths, microseconds), so
//! that a snapshot gives back exactly what was put in.

use std::collections::{BTreeMap, BTreeSet};

use baton_machine::Shelves;
use baton_protocol::record::{Outcome, StageEnded};
use baton_protocol::{AgentId, Millis, StageName, WorkflowName};
use serde::{Deserialize, Serialize};

/// The learning rate: a new sample counts one part in this many.
const ONE_IN: i128 = 10;
/// A score of 1.
pub(crate) const FULL: u32 = 1_000_000;
/// The score of an agent of which nothing is known.
const UNKNOWN: u32 = FULL / 2;
/// What of a sample is success as such; the rest is time efficiency ("historical success rate with time efficiency").
const SUCCESS: u32 = FULL / 10 * 7;
/// Of how many agents that are gone what was learned is kept, for when they come back.
const MAX_GONE: usize = 1000;

/// What was learned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Learning {
    agents: Shelves<AgentId, Performance>,
    /// Agents that are gone, by when that was.
    gone: BTreeSet<(Millis, AgentId)>,
    stages: BTreeMap<WorkflowName, BTreeMap<StageName, Estimate>>,
}

/// What was learned of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Performance {
    /// In millionths.
    pub(crate) score: u32,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    /// Since when it is gone.
    gone: Option<Millis>,
}

/// What was learned of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Estimate {
    micros: u64,
    pub(crate) samples: u64,
}

impl Default for Performance {
    fn default() -> Self {
        Self { score: UNKNOWN, succeeded: 0, failed: 0, gone: None }
    }
}

impl Estimate {
    pub(crate) fn ms(&self) -> Millis {
        self.micros.saturating_add(500) / 1000
    }
}

impl Learning {
    /// Learns from the end of a task. Gives the agent whose score has changed.
    pub(crate) fn stage_ended<'a>(&mut self, workflow: &WorkflowName, record: &'a StageEnded) -> Option<&'a AgentId> {
        let agent = record.agent.as_ref().filter(|_| record.lease.is_some());
        let sample = match record.outcome {
            Outcome::Succeeded => {
                let estimate = self.estimate(workflow, &record.task.stage).map(|estimate| estimate.micros);
                self.learn_duration(workflow, &record.task.stage, record.duration_ms);
                SUCCESS + efficiency(estimate, micros(record.duration_ms), FULL - SUCCESS)
            }
            Outcome::Failed | Outcome::Lost | Outcome::TimedOut => 0,
            // It says nothing of the agent.
            Outcome::Cancelled => return None,
        };
        let performance = self.agents.get_or_insert_with(agent?, Performance::default);
        match record.outcome {
            Outcome::Succeeded => performance.succeeded += 1,
            _ => performance.failed += 1,
        }
        performance.score = u32::try_from(moved(performance.score.into(), sample.into())).unwrap_or(FULL);
        agent
    }

    fn learn_duration(&mut self, workflow: &WorkflowName, stage: &StageName, duration_ms: Millis) {
        let sample = micros(duration_ms);
        let known = self.stages.get_mut(workflow).and_then(|stages| stages.get_mut(stage));
        let estimate = match known {
            Some(estimate) => estimate,
            None => {
                let stages = self.stages.entry(workflow.clone()).or_default();
                stages.entry(stage.clone()).or_insert(Estimate { micros: sample, samples: 0 })
            }
        };
        estimate.micros = moved(estimate.micros, sample);
        estimate.samples += 1;
    }

    /// An agent is back: what was learned of it counts again.
    pub(crate) fn returned(&mut self, agent: &AgentId) {
        if let Some(performance) = self.agents.get_mut(agent)
            && let Some(at) = performance.gone.take()
        {
            self.gone.remove(&(at, agent.clone()));
        }
    }

    /// An agent is gone. What was learned of it is kept for a while.
    pub(crate) fn left(&mut self, at: Millis, agent: &AgentId) {
        let Some(performance) = self.agents.get_mut(agent) else { return };
        if let Some(before) = performance.gone.replace(at) {
            self.gone.remove(&(before, agent.clone()));
        }
        self.gone.insert((at, agent.clone()));
        while self.gone.len() > MAX_GONE {
            if let Some((_, oldest)) = self.gone.pop_first() {
                self.agents.remove(&oldest);
            }
        }
    }

    pub(crate) fn performance(&self, agent: &AgentId) -> Performance {
        self.agents.get(agent).cloned().unwrap_or_default()
    }

    /// An agent's score in millionths.
    pub(crate) fn score(&self, agent: &AgentId) -> u32 {
        self.agents.get(agent).map_or(UNKNOWN, |performance| performance.score)
    }

    /// How long a stage is expected to take, if anything like it has been seen.
    pub(crate) fn estimate(&self, workflow: &WorkflowName, stage: &StageName) -> Option<&Estimate> {
        self.stages.get(workflow)?.get(stage)
    }

    pub(crate) fn estimates(&self) -> impl Iterator<Item = (&WorkflowName, &StageName, &Estimate)> {
        self.stages.iter().flat_map(|(workflow, stages)| stages.iter().map(move |(stage, e)| (workflow, stage, e)))
    }
}

/// The average after a sample.
fn moved(average: u64, sample: u64) -> u64 {
    let step = (i128::from(sample) - i128::from(average)) / ONE_IN;
    u64::try_from(i128::from(average) + step).unwrap_or(u64::MAX)
}

/// All of `full` if it took no longer than expected, half of it if it took twice as long.
fn efficiency(expected: Option<u64>, took: u64, full: u32) -> u32 {
    match expected {
        Some(expected) if expected < took => {
            u32::try_from(u128::from(full) * u128::from(expected) / u128::from(took)).unwrap_or(full)
        }
        Some(_) | None => full,
    }
}

fn micros(ms: Millis) -> u64 {
    ms.saturating_mul(1000)
}
