//! What may be asked of the optimizer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Done, Endpoint, Requests, body, endpoint, schema, unknown_endpoint};
use crate::amount::Resources;
use crate::breaker::BreakerState;
use crate::id::{Millis, TaskId};
use crate::name::{AgentId, Capability, StageName, WorkflowName};
use crate::rejection::Rejection;
use crate::requirement::Requirements;

/// What may be asked of the optimizer.
#[derive(Debug, Clone, PartialEq)]
pub enum OptimizerRequest {
    /// See [`SetStrategy`].
    SetStrategy(SetStrategy),
    /// See [`GetPlacement`].
    GetPlacement(GetPlacement),
    /// See [`FindAgents`].
    FindAgents(FindAgents),
}

impl Requests for OptimizerRequest {
    const ENDPOINTS: &'static [Endpoint] = &[
        endpoint(
            "strategy.set",
            None,
            "Changes how tasks are placed, from now on.",
            schema::<SetStrategy>,
            schema::<Done>,
        ),
        endpoint(
            "placement.get",
            None,
            "Gives the strategy, the queue, and what was learned of agents and stages.",
            schema::<GetPlacement>,
            schema::<PlacementView>,
        ),
        endpoint(
            "agent.find",
            None,
            "Finds agents that can do something, the one to be preferred first.",
            schema::<FindAgents>,
            schema::<AgentsFound>,
        ),
    ];

    fn decode(endpoint: &str, _subject: &str, payload: &[u8]) -> Result<Self, Rejection> {
        Ok(match endpoint {
            "strategy.set" => Self::SetStrategy(body(endpoint, payload)?),
            "placement.get" => Self::GetPlacement(body(endpoint, payload)?),
            "agent.find" => Self::FindAgents(body(endpoint, payload)?),
            _ => return Err(unknown_endpoint(endpoint)),
        })
    }
}

/// How tasks are placed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Strategy {
    /// Agents take turns.
    RoundRobin,
    /// The agent with the smallest part of its slots in use.
    #[default]
    LoadBalanced,
}

impl Strategy {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "ROUND_ROBIN",
            Self::LoadBalanced => "LOAD_BALANCED",
        }
    }
}

/// Changes how tasks are placed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SetStrategy {
    /// The strategy.
    pub strategy: Strategy,
}

/// Gives what the optimizer knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GetPlacement {}

/// What the optimizer knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlacementView {
    /// How tasks are placed.
    pub strategy: Strategy,
    /// How many tasks wait.
    pub queued: u64,
    /// The first of them, in the order in which they will be placed; at most 100.
    pub queue: Vec<QueuedTask>,
    /// What was learned of the agents.
    pub agents: Vec<AgentPerformance>,
    /// What was learned of the stages.
    pub stages: Vec<StageEstimate>,
}

/// Finds agents that can do something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FindAgents {
    /// What they must be able to do.
    pub capability: Capability,
    /// What their metadata of that capability must be.
    #[serde(default, skip_serializing_if = "Requirements::is_empty")]
    pub requires: Requirements,
    /// What they should have free, beside a slot. Those that have not come last.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// At most so many; 1000 at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// The agents that can do it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentsFound {
    /// How many there are; not all need be listed.
    pub found: u64,
    /// Those with room first; among them those whose smallest part is in use, then higher priority, then the better score.
    pub agents: Vec<AgentFound>,
}

/// An agent that can do it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentFound {
    /// The agent.
    pub agent: AgentId,
    /// Whether it could be given such a task now.
    pub has_room: bool,
    /// From 0 to 1: an exponential moving average of success, weighted by time; 0.5 of one that nothing is known of.
    pub score: f64,
    /// How many tasks it holds.
    pub holds: u64,
    /// How many it may hold.
    pub slots: u32,
    /// Its circuit breaker for the capability.
    pub breaker: BreakerState,
}

/// A task that waits for an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QueuedTask {
    /// The task.
    pub task: TaskId,
    /// Which agents can do it.
    pub agent_type: Capability,
    /// Larger goes first.
    pub priority: i32,
    /// Since when it waits, in milliseconds since 1970.
    pub since: Millis,
    /// How long it is expected to take; none while nothing like it has been seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate_ms: Option<Millis>,
}

/// What was learned of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentPerformance {
    /// The agent.
    pub agent: AgentId,
    /// From 0 to 1: an exponential moving average of success, weighted by time.
    pub score: f64,
    /// Tasks that succeeded.
    pub succeeded: u64,
    /// Tasks that did not.
    pub failed: u64,
}

/// What was learned of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageEstimate {
    /// Its workflow.
    pub workflow: WorkflowName,
    /// The stage.
    pub stage: StageName,
    /// How long it is expected to take.
    pub estimate_ms: Millis,
    /// From how many tasks that was learned.
    pub samples: u64,
}
