//! A run as it is shown: the answer to `run.get`, and the document kept of a finished one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount::Money;
use crate::budget::Budget;
use crate::definition::Definition;
use crate::id::{LeaseId, Millis, RunId};
use crate::json::Json;
use crate::name::{AgentId, Capability, SignalName, StageName, WorkflowName};
use crate::record::{Outcome, Parent, SkipReason};
use crate::request::Usage;

/// What the starter of a run notes about it, to find it again: who asked, for which customer.
pub type Metadata = BTreeMap<String, String>;

/// What names a run's tenant in its metadata: tenants share agents by their weights. Runs that are a part of another one, that
/// repeat one, or that a schedule or a trigger starts with such metadata are of the same.
pub const TENANT_KEY: &str = "tenant";

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// It has not ended.
    Running,
    /// Every stage succeeded, was skipped, or failed and may do so.
    Succeeded,
    /// A stage failed for good.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// It took too long.
    TimedOut,
}

impl RunStatus {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
        }
    }

    /// Whether the run has ended.
    #[must_use]
    pub fn is_end(self) -> bool {
        self != Self::Running
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where a stage of a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StageStatus {
    /// It waits for the stages it depends on.
    Pending,
    /// It may run, and waits for an agent.
    Ready,
    /// An agent has it.
    Running,
    /// An attempt failed, the next one waits its time.
    Waiting,
    /// It gave a result.
    Succeeded,
    /// It failed for good.
    Failed,
    /// It does not run in this run.
    Skipped,
    /// Its run ended before it did.
    Cancelled,
}

impl StageStatus {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether an attempt is under way.
    #[must_use]
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Ready | Self::Running)
    }

    /// Whether the stage is over.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Skipped | Self::Cancelled)
    }
}

impl fmt::Display for StageStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A run with all that happened to its stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunView {
    /// The run.
    pub run: RunId,
    /// Its workflow.
    pub workflow: WorkflowName,
    /// The version it keeps.
    pub version: u32,
    /// Where it stands.
    pub status: RunStatus,
    /// Why it ended so, unless it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it was given.
    pub input: Json,
    /// Larger goes first.
    #[serde(default)]
    pub priority: i32,
    /// The client's idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The trace it is in: 32 hex digits.
    pub trace_id: String,
    /// When it started, in milliseconds since 1970.
    pub started_at: Millis,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Millis>,
    /// What its attempts cost together.
    pub cost: Money,
    /// What they used together.
    pub usage: Usage,
    /// What it may cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// A sequence in the log at or before its first record.
    pub first_seq: u64,
    /// What its starter noted about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: Metadata,
    /// Since when it is paused, and why, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<PausedView>,
    /// The run that it repeats a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun: Option<RerunView>,
    /// The attempt at a stage of another run that it makes, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// What it does, where no workflow says it: an agent has delegated it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Arc<Definition>>,
    /// The stages, in the order of the definition.
    pub stages: Vec<StageView>,
}

/// That a run is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PausedView {
    /// Since when, in milliseconds since 1970.
    pub since: Millis,
    /// Why, if somebody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// That a run repeats a part of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RerunView {
    /// The other run.
    pub of: RunId,
    /// The stage from which on everything is done anew.
    pub from: StageName,
    /// How many stages were kept as they are there. They have no attempts here.
    pub kept: u32,
}

/// One stage of a [`RunView`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageView {
    /// Its name.
    pub name: StageName,
    /// Which agents can do it; `no-agent` where none does.
    pub agent_type: Capability,
    /// The workflow of which a run does it, if none of agents do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<WorkflowName>,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<StageName>,
    /// Whether the run goes on without it.
    #[serde(default)]
    pub optional: bool,
    /// Where it stands.
    pub status: StageStatus,
    /// Why it was skipped, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<SkipReason>,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
    /// Every attempt, the first one first.
    #[serde(default)]
    pub attempts: Vec<AttemptView>,
    /// The items that it has a task each for, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<ItemView>,
    /// The run in which it was done, if its result was used again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<RunId>,
    /// Whose word it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<Waits>,
}

/// What a stage that no agent has waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Waits {
    /// Somebody must approve.
    Approval {
        /// What they are asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<String>,
        /// Until when.
        until: Millis,
    },
    /// A signal must come.
    Signal {
        /// Which.
        signal: SignalName,
        /// Until when.
        until: Millis,
    },
}

/// What came of a stage that people decide on: its result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Decision {
    /// Whether it is approved.
    pub approved: bool,
    /// Who decided, as far as that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Nobody decided in time, and so it counts as decided.
    #[serde(default)]
    pub timed_out: bool,
}

impl StageView {
    /// Who does it, as it is said to people: which agents, or a run of which workflow.
    #[must_use]
    pub fn done_by(&self) -> &str {
        self.workflow.as_ref().map_or(self.agent_type.as_str(), WorkflowName::as_str)
    }
}

/// One item of a [`StageView`]. Its result is in the stage's, at the same place, when the stage is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ItemView {
    /// Where it stands.
    pub status: StageStatus,
    /// Every attempt, the first one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<AttemptView>,
}

/// One attempt of a [`StageView`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptView {
    /// Counted from 1.
    pub attempt: u32,
    /// When the stage could run.
    pub ready_at: Millis,
    /// When an agent had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned_at: Option<Millis>,
    /// Who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// Which run, if no agent: what it cost and used is what the attempt did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<RunId>,
    /// Under which lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Millis>,
    /// How.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What kind of failure it was, if somebody said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What it cost.
    #[serde(default)]
    pub cost: Money,
    /// What it used.
    #[serde(default)]
    pub usage: Usage,
    /// The model that it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// That it began before all that its stage depends on was over, and what became of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculation: Option<Speculation>,
    /// Other agents that were given it as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<CopyView>,
}

/// An agent that was given the task of an attempt as well as another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CopyView {
    /// Which agent.
    pub agent: AgentId,
    /// Under which lease.
    pub lease: LeaseId,
    /// When it had it.
    pub assigned_at: Millis,
    /// When it was over for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Millis>,
    /// How: failed, lost, or cancelled because the attempt was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Where an attempt stands that began early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Speculation {
    /// It is not known yet whether it was given what its stage is given.
    Open,
    /// It was: it is an attempt like others.
    Committed,
    /// It was not, or it came to nothing before that was known: it does not count.
    Discarded,
}

/// A run in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunSummary {
    /// The run.
    pub run: RunId,
    /// Its workflow.
    pub workflow: WorkflowName,
    /// The version it keeps.
    pub version: u32,
    /// Where it stands.
    pub status: RunStatus,
    /// When it started, in milliseconds since 1970.
    pub started_at: Millis,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Millis>,
    /// How many stages it has.
    pub stages: u32,
    /// How many of them are over.
    pub stages_ended: u32,
    /// What it cost.
    pub cost: Money,
    /// What its starter noted about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: Metadata,
    /// Whether it is paused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// The attempt at a stage of another run that it makes, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
}

/// Counts of runs by status.
pub type RunCounts = BTreeMap<RunStatus, u64>;
