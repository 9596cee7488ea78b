//! Capacity planning and advice, asked of the optimizer.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{Millis, RunId};
use crate::name::{Capability, StageName, WorkflowName};

/// Asks how many agents of which type a workflow needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanCapacity {
    /// The workflow, in its latest version.
    pub workflow: WorkflowName,
    /// How many runs begin in an hour.
    #[serde(default = "one")]
    pub runs_per_hour: f64,
    /// How many times more work they are than those that were learned from.
    #[serde(default = "one")]
    pub complexity: f64,
    /// Which part of the slots should be in use, at the most: the fuller, the longer tasks wait.
    #[serde(default = "most")]
    pub utilization: f64,
    /// What if: so many slots more, by type.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub more: BTreeMap<Capability, u32>,
}

fn one() -> f64 {
    1.0
}

fn most() -> f64 {
    0.8
}

/// How many agents of which type a workflow needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CapacityPlan {
    /// The workflow.
    pub workflow: WorkflowName,
    /// By the formula of the source document.
    pub formula: Formula,
    /// How long a run takes at the least, on agents of ordinary speed: its critical path, in milliseconds.
    pub shortest_run_ms: u64,
    /// How many tokens a run takes, in and out, as far as that is known or stated.
    pub tokens: u64,
    /// By what was learned, for each type.
    pub agents: Vec<AgentsNeeded>,
    /// What to do.
    pub advice: Vec<String>,
}

/// `required = stages · parallel stages · complexity`, rounded up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Formula {
    /// How many stages there are.
    pub stages: u64,
    /// How many may run side by side.
    pub parallel_stages: u64,
    /// As it was asked.
    pub complexity: f64,
    /// How many agents.
    pub required: u64,
}

/// What is needed of a type of agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentsNeeded {
    /// The type.
    pub agent_type: Capability,
    /// How many stages of a run it does.
    pub stages: u64,
    /// How long those take an agent of ordinary speed together, in milliseconds.
    pub work_ms: u64,
    /// How many slots are at work on average: rate × work, failed attempts and speeds of the agents there are taken into account.
    pub busy: f64,
    /// How many slots are needed, so that no larger part of them is in use than was asked for.
    pub needed: f64,
    /// How many slots there are. An agent that does several types counts for each.
    pub slots: f64,
    /// How many more were supposed.
    pub more: u32,
    /// Which part would be in use, of those there are and those that were supposed; above 1 the queue grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization: Option<f64>,
}

/// Asks how agents should work together on a workflow. What is not said follows from its graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Advise {
    /// The workflow, in its latest version.
    pub workflow: WorkflowName,
    /// How many agents; unless given, those there are that can do some of its stages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<u64>,
    /// Whether the order must be controlled strictly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict_order: Option<bool>,
    /// Whether there is a natural hierarchy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hierarchy: Option<bool>,
    /// Whether the loss of any agent must not matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_tolerance: Option<bool>,
}

/// How agents should work together on a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Advice {
    /// For how many agents.
    pub agents: u64,
    /// What they should be told by.
    pub protocol: Suggestion<Protocol>,
    /// How they should be organised.
    pub pattern: Suggestion<Pattern>,
}

/// A choice and its reasons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Suggestion<T> {
    /// The choice.
    pub choice: T,
    /// Why, in the order in which it was asked.
    pub reasons: Vec<String>,
}

/// How agents tell each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Question and answer: up to two.
    Synchronous,
    /// Messages that are answered when there is time: three to five.
    Asynchronous,
    /// Each hands on to the next: where stages follow one another.
    Pipeline,
    /// One word to all: large groups.
    Broadcast,
}

/// How agents are organised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// One that directs all others.
    Centralized,
    /// Heads that direct groups.
    Hierarchical,
    /// Everybody with everybody.
    PeerToPeer,
    /// By signs that each leaves for all.
    Swarm,
    /// Of two kinds.
    Hybrid(Hybrid),
}

/// Two patterns, one for the whole and one for its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Hybrid {
    /// Each team has a head; heads are peers.
    HierarchicalCentralized,
    /// One sets the goals, swarms reach them.
    CentralizedSwarm,
    /// Groups of peers, and heads between them.
    PeerToPeerHierarchical,
}

/// Asks when what waits will be begun, and what of that which is due will be late.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForecastQueue {}

/// What is to be expected of the queue, if nothing more comes and all goes as was learned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Forecast {
    /// When this was asked, in milliseconds since 1970.
    pub at: Millis,
    /// How many runs, and stages of runs, are due and not over. Runs that are paused do not count.
    pub due: u64,
    /// How many of these will be late.
    pub late: u64,
    /// How many of the late ones could be in time if nobody stood before them: what would help them is more agents, or that what
    /// matters less waits.
    pub held_up: u64,
    /// Those that will be late by most, or that are late by now; at most 100.
    pub first: Vec<Late>,
    /// What waits, by the type of agents that it waits for.
    pub queues: Vec<QueueForecast>,
    /// Whether whoever starts runs should hold back.
    pub back_pressure: BackPressure,
    /// After how long all that waits now will be begun, in milliseconds: until then it makes little sense to bring more. None while
    /// nothing waits, or where nobody can do some of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<Millis>,
    /// What would help.
    pub advice: Vec<String>,
}

/// A run that will be late, or a stage of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Late {
    /// The run.
    pub run: RunId,
    /// Its workflow.
    pub workflow: WorkflowName,
    /// The stage, if it is not the run as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<StageName>,
    /// When it is due, in milliseconds since 1970.
    pub due: Millis,
    /// When it is expected to be over, in milliseconds since 1970; none where nobody can do a task that it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<Millis>,
    /// When it could be if nobody stood before it, in milliseconds since 1970.
    pub could_end: Millis,
    /// For which type of agents it waits longest; none if it waits for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<Capability>,
}

/// What waits for one type of agents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QueueForecast {
    /// The type.
    pub agent_type: Capability,
    /// How many tasks wait.
    pub waiting: u64,
    /// How much work that is for one agent of ordinary speed that never fails, in milliseconds.
    pub work_ms: u64,
    /// How many slots there are for it, in those of such agents. An agent that does several types counts for each in proportion to what
    /// waits.
    pub slots: f64,
    /// After how long all of it will be begun, in milliseconds; none if nobody can do it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_after_ms: Option<Millis>,
    /// How many runs and stages will be late because they wait for it longest.
    pub late: u64,
    /// How many more such slots would let all of these be in time that can.
    pub more: u64,
}

/// Whether whoever starts runs should hold back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackPressure {
    /// Nothing is late because of others.
    #[default]
    None,
    /// Something will be: what matters less should wait.
    Elevated,
    /// Half of what is due will be late because of others, or more, or something waits that nobody can do: nothing that can wait
    /// should be started.
    Critical,
}
