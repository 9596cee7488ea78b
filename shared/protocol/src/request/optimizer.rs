//! What may be asked of the optimizer.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Advice, Advise, CapacityPlan, Done, Endpoint, Forecast, ForecastQueue, GetLearning, ImportLearning, LearningPage,
    PlanCapacity, Requests, body, endpoint, schema, unknown_endpoint,
};
use crate::amount::Resources;
use crate::breaker::BreakerState;
use crate::id::{Millis, RunId, TaskId};
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
    /// See [`ExplainPlacement`].
    ExplainPlacement(ExplainPlacement),
    /// See [`PlanCapacity`].
    PlanCapacity(PlanCapacity),
    /// See [`Advise`].
    Advise(Advise),
    /// See [`ForecastQueue`].
    ForecastQueue(ForecastQueue),
    /// See [`GetLearning`].
    GetLearning(GetLearning),
    /// See [`ImportLearning`].
    ImportLearning(ImportLearning),
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
        endpoint(
            "placement.explain",
            None,
            "Says why an agent has a task, or why the task waits: who was considered, and how each was weighed.",
            schema::<ExplainPlacement>,
            schema::<PlacementExplained>,
        ),
        endpoint(
            "capacity.plan",
            None,
            "Says how many agents of which type a workflow and a rate of runs need, or what if there were more.",
            schema::<PlanCapacity>,
            schema::<CapacityPlan>,
        ),
        endpoint(
            "advice.get",
            None,
            "Says how agents should work together on a workflow, and why.",
            schema::<Advise>,
            schema::<Advice>,
        ),
        endpoint(
            "queue.forecast",
            None,
            "Says when what waits will be begun, what of that which is due will be late, and what would help.",
            schema::<ForecastQueue>,
            schema::<Forecast>,
        ),
        endpoint(
            "learning.get",
            None,
            "Gives what was learned, a page at a time.",
            schema::<GetLearning>,
            schema::<LearningPage>,
        ),
        endpoint(
            "learning.import",
            None,
            "Brings what was learned elsewhere, in place of what was learned here of the same.",
            schema::<ImportLearning>,
            schema::<Done>,
        ),
    ];

    fn decode(endpoint: &str, _subject: &str, payload: &[u8]) -> Result<Self, Rejection> {
        Ok(match endpoint {
            "strategy.set" => Self::SetStrategy(body(endpoint, payload)?),
            "placement.get" => Self::GetPlacement(body(endpoint, payload)?),
            "agent.find" => Self::FindAgents(body(endpoint, payload)?),
            "placement.explain" => Self::ExplainPlacement(body(endpoint, payload)?),
            "capacity.plan" => Self::PlanCapacity(body(endpoint, payload)?),
            "advice.get" => Self::Advise(body(endpoint, payload)?),
            "queue.forecast" => Self::ForecastQueue(body(endpoint, payload)?),
            "learning.get" => Self::GetLearning(body(endpoint, payload)?),
            "learning.import" => Self::ImportLearning(body(endpoint, payload)?),
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
    /// The agent with the highest priority, then the best score: what goes first in the queue gets the best.
    PriorityBased,
    /// The agent with the smallest part of its slots in use.
    #[default]
    LoadBalanced,
    /// What is done soonest, by all that was learned: looks ahead over the graph of the workflow, and waits for a faster
    /// agent where that ends sooner.
    Adaptive,
    /// The agent that did tasks of this type best so far.
    Historical,
    /// Agents are drawn by the trails that those left who succeeded; trails evaporate.
    Swarm,
}

impl Strategy {
    /// All there are.
    pub const ALL: [Self; 6] =
        [Self::RoundRobin, Self::PriorityBased, Self::LoadBalanced, Self::Adaptive, Self::Historical, Self::Swarm];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "ROUND_ROBIN",
            Self::PriorityBased => "PRIORITY_BASED",
            Self::LoadBalanced => "LOAD_BALANCED",
            Self::Adaptive => "ADAPTIVE",
            Self::Historical => "HISTORICAL",
            Self::Swarm => "SWARM",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Strategy {
    type Err = String;

    /// Capitals do not matter, and `-` is as good as `_`.
    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.to_ascii_uppercase().replace('-', "_");
        let known = Self::ALL.into_iter().find(|strategy| strategy.as_str() == name);
        known.ok_or_else(|| {
            format!("there is no strategy {text:?}; there are {}", Self::ALL.map(Self::as_str).join(", "))
        })
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
    /// How much of a moving average a new sample makes up, from 0 to 1.
    #[serde(default)]
    pub learning_rate: f64,
    /// How many tasks wait.
    pub queued: u64,
    /// The first of them, by priority and waiting time; at most 100. Tenants and their runs take turns besides.
    pub queue: Vec<QueuedTask>,
    /// What was learned of the agents.
    pub agents: Vec<AgentPerformance>,
    /// What was learned of the stages.
    pub stages: Vec<StageEstimate>,
    /// How it goes altogether.
    #[serde(default)]
    pub figures: Figures,
    /// The tenants that have runs which have not ended; at most 1000.
    #[serde(default)]
    pub tenants: Vec<TenantView>,
}

/// A tenant, as the optimizer sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TenantView {
    /// Its name; none: all runs that name no tenant are one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// In proportion to this it shares agents with others.
    pub weight: u32,
    /// How many of its tasks wait.
    pub waiting: u64,
    /// How many of them an agent has.
    pub active: u64,
}

/// How coordination goes: since the log began, unless a line says otherwise. The names are those of the first source document.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Figures {
    /// How many tasks an agent had that have ended.
    pub total_coordinations: u64,
    /// How many agents have now.
    pub active_coordinations: u64,
    /// Which part of them succeeded, from 0 to 1; none before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<f64>,
    /// How long those took that succeeded, on average, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average_coordination_ms: Option<f64>,
    /// How long tasks waited for an agent, on average, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average_wait_ms: Option<f64>,
    /// Which part of the slots of all agents is in use now, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_efficiency: Option<f64>,
    /// How many tasks succeeded in the last hour.
    pub throughput_per_hour: u64,
    /// How evenly agents are loaded now: Jain's index of the parts of their slots in use, from `1/n` where one has all, to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<f64>,
    /// Which part of their time tasks would have saved with the fastest of those agents that had room when they were placed, on
    /// average, as is known in hindsight: 0 is the best. A task that failed would have saved all of it, if another agent had
    /// room. Of some of the tasks that ended since the instance leads; none before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regret: Option<f64>,
}

/// Asks why an agent has a task, or why the task waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainPlacement {
    /// The run.
    pub run: RunId,
    /// The stage; its last attempt is meant, and of several items the first that is under way.
    pub stage: StageName,
}

/// Why an agent has a task, or why the task waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlacementExplained {
    /// The task.
    pub task: TaskId,
    /// How it is placed.
    pub strategy: Strategy,
    /// Who has it, or is asked to take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// Since when it waits, or waited, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Millis>,
    /// When the agent was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Millis>,
    /// In a sentence.
    pub reason: String,
    /// Those that came first when it was weighed: then, if the task is placed; now, if it waits.
    pub candidates: Vec<Candidate>,
}

/// An agent that was considered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    /// The agent.
    pub agent: AgentId,
    /// Whether it had room.
    pub has_room: bool,
    /// What was weighed, by name: see docs/placement.md.
    pub terms: BTreeMap<String, f64>,
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
    /// Who it is for, if its run names a tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
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
