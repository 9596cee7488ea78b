//! Records: the facts of the log, and the commits they travel in.
//!
//! A stage costs three records: *ready* ([`WorkflowRecord::StageReady`]), *assigned* ([`ResourceRecord::Assigned`], which
//! is the lease) and *ended* ([`WorkflowRecord::StageEnded`]); a run two more: *started* and *finished*. Facts are not
//! written twice.

mod operations;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::alert::{AlertAcknowledged, AlertCleared, AlertKind, AlertRaised, AlertSeverity};
use crate::amount::{Amount, Money, Resources};
use crate::breaker::{BreakerClosed, BreakerHalfOpened, BreakerOpened};
use crate::budget::Budget;
use crate::definition::Definition;
use crate::handoff::{HandedOver, HandoffEnded, HandoffOffered};
use crate::id::{LeaseId, Millis, Number, Position, RunId, Service, TaskId};
use crate::json::Json;
use crate::name::{AgentId, Capability, ResourceName, SignalName, StageName, WorkflowName};
use crate::pool::{Holder, Pool, Takes};
use crate::pressure::PressureChanged;
use crate::request::{Lesson, Strategy, Usage};
use crate::requirement::Requirements;
use crate::run::Metadata;
use crate::schedule::{ScheduleFired, ScheduleRemoved, ScheduleSet};
use crate::trace::TraceContext;
use crate::trigger::{EventRaised, TriggerFired, TriggerRemoved, TriggerSet};

pub use operations::*;

/// The version of the commit format. A service stops at a commit of a newer one: it would fold it wrongly.
pub const FORMAT: u32 = 1;

/// One message of the log: all that a service decided since its last commit, all or nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Commit<R> {
    /// The format, [`FORMAT`].
    pub format: u32,
    /// The instance that wrote it.
    pub instance: String,
    /// Its term. It only grows along a service's commits.
    pub term: u64,
    /// The number of the first record in here (or of the next one, where there is none).
    pub first: Number,
    /// The sequence of the last message of other services that has been handled to the end.
    pub handled: u64,
    /// The turns, in the order in which they were taken.
    pub turns: Vec<Turn<R>>,
}

/// The records that one input led a machine to emit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Turn<R> {
    /// When, in milliseconds since 1970.
    pub at: Millis,
    /// The sequence of the last message of other services that had been seen. With it a fold can take everything in the
    /// order in which the writer took it.
    pub seen: u64,
    /// What led to it.
    pub cause: Cause,
    /// The records, numbered on from the commit's `first`.
    pub records: Vec<R>,
}

impl<R> Commit<R> {
    /// How many records it holds.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.turns.iter().map(|turn| turn.records.len() as u64).sum()
    }

    /// Whether it holds no records: it then only moves the cursor or begins a term.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The records with their stamps.
    pub fn stamped(&self) -> impl Iterator<Item = (Stamp, &R)> {
        let records = self.turns.iter().flat_map(|turn| turn.records.iter().map(move |record| (turn, record)));
        records.enumerate().map(|(index, (turn, record))| {
            (Stamp { number: self.first + index as u64, at: turn.at, seen: turn.seen }, record)
        })
    }
}

/// What led to a turn, for those who read the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A request to this endpoint.
    Request(Cow<'static, str>),
    /// A message of another service, by its sequence in the log.
    Log(u64),
    /// A deadline passed.
    Timer,
    /// A term began.
    Lead,
    /// The answer to something this service had asked of another.
    Answer,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(endpoint) => write!(f, "request {endpoint}"),
            Self::Log(seq) => write!(f, "log {seq}"),
            Self::Timer => f.write_str("timer"),
            Self::Lead => f.write_str("term began"),
            Self::Answer => f.write_str("answer"),
        }
    }
}

/// When and where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Its number in its service's sequence.
    pub number: Number,
    /// When it was emitted.
    pub at: Millis,
    /// The sequence in the log up to which its writer had seen others' messages: a position at or before its own.
    pub seen: u64,
}

/// What the workflow-manager appends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkflowRecord {
    /// A workflow has a new version.
    WorkflowRegistered(WorkflowRegistered),
    /// A run was accepted.
    RunStarted(RunStarted),
    /// A stage may run.
    StageReady(StageReady),
    /// An attempt at a stage is over.
    StageEnded(StageEnded),
    /// A stage will not run in this run.
    StageSkipped(StageSkipped),
    /// It is known for which items a stage has a task each.
    StageExpanded(StageExpanded),
    /// A stage that no agent has waits for somebody's word.
    StageWaits(StageWaits),
    /// A run was told something.
    Signalled(Signalled),
    /// A stage need not run: its result is one that was given before.
    StageCached(StageCached),
    /// What an attempt was given that began early, is what its stage is given: the attempt counts.
    StageCommitted(StageCommitted),
    /// Of two agents that were at one attempt, one is at it no more, and nothing came of what it did.
    CopyEnded(Box<CopyEnded>),
    /// A run is over.
    RunFinished(RunFinished),
    /// A run begins nothing new until it is resumed.
    RunPaused(RunPaused),
    /// A run that was paused goes on.
    RunResumed(RunResumed),
    /// Runs that ended long ago are not listed any more.
    RunsForgotten(RunsForgotten),
    /// A schedule was made or changed.
    ScheduleSet(Box<ScheduleSet>),
    /// There is a schedule no more.
    ScheduleRemoved(ScheduleRemoved),
    /// A time of a schedule has come, and it is known what came of it.
    ScheduleFired(ScheduleFired),
    /// A trigger was made or changed.
    TriggerSet(Box<TriggerSet>),
    /// There is a trigger no more.
    TriggerRemoved(TriggerRemoved),
    /// Somebody raised an event.
    EventRaised(EventRaised),
    /// It is known what came of an event for one trigger.
    TriggerFired(TriggerFired),
}

/// See [`WorkflowRecord::WorkflowRegistered`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkflowRegistered {
    /// The version, counted from 1.
    pub version: u32,
    /// The definition.
    pub definition: Arc<Definition>,
}

/// See [`WorkflowRecord::RunStarted`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunStarted {
    /// The run.
    pub run: RunId,
    /// Its workflow.
    pub workflow: WorkflowName,
    /// The version it keeps to its end. 0 where an agent of the run that it is a part of has said what is to be done: then it is
    /// in the record with which that agent's attempt ended.
    pub version: u32,
    /// What it was given.
    pub input: Json,
    /// Larger goes first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// The client's idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The trace that it belongs to, if its starter brought one; otherwise its id is its trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
    /// How its tasks are placed; none: as those of all runs are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// When it should have ended, in milliseconds since 1970. Placement strives for it; nothing ends because of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Millis>,
    /// What it may cost. If that has a limit, the run's account is there from this record on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// What its starter noted about it, to find it again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: Metadata,
    /// The run that it repeats a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun: Option<Box<Rerun>>,
    /// The attempt at a stage of another run that it makes. That attempt begins with this record, and ends when this run has
    /// ended; nothing else is written of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Box<Parent>>,
    /// Its stages are done, whatever was done before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
pub(crate) fn is_zero(value: &i32) -> bool {
    *value == 0
}

/// See [`WorkflowRecord::StageReady`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageReady {
    /// The task.
    pub task: TaskId,
    /// Which agents can do it.
    pub agent_type: Capability,
    /// What their metadata of that capability must be.
    #[serde(default, skip_serializing_if = "Requirements::is_empty")]
    pub requires: Requirements,
    /// The stages whose results it is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<StageName>,
    /// What its agent is given instead of the run's input, where the definition says so. It is written down, so that no
    /// other edition of Baton makes something else of the same expressions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Json>,
    /// What an agent must set aside for it, beside one slot.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: Resources,
    /// Larger goes first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// Under what its result is kept, to be used again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// A second agent may be given it while the first one is at it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hedge: bool,
    /// It begins early: `input` is what the stage will be given if what is assumed turns out so. If it does, a
    /// [`StageCommitted`] follows; if not, what it gave counts for nothing, and the stage begins as if it had never been.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub speculative: bool,
}

/// See [`WorkflowRecord::StageEnded`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageEnded {
    /// The task.
    pub task: TaskId,
    /// The lease it ran under; none if no agent had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
    /// Who did it; none if no agent had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// How it ended.
    pub outcome: Outcome,
    /// What came of it. Where it was delegated, and is to be put together by an agent: what came of that, a
    /// [`Gathered`](crate::request::Gathered).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether the agent said that another attempt is of no use: then the task is to blame, and not the agent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hopeless: bool,
    /// What kind of failure it was, if somebody said so: a code of the agent's own, or of Baton's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// When the next attempt may start; none: the stage is over, unless the attempt was speculative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Millis>,
    /// From assignment to report.
    #[serde(default)]
    pub duration_ms: Millis,
    /// What the agent says it cost.
    #[serde(default, skip_serializing_if = "Money::is_zero")]
    pub cost: Money,
    /// What the agent says it used.
    #[serde(default, skip_serializing_if = "Usage::is_zero")]
    pub usage: Usage,
    /// The model that the agent says it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What its agent wants to be done by others: the run that begins next does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegated: Option<Box<Delegated>>,
    /// It began early, and the stage is not over by it. Its result counts once a [`StageCommitted`] says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub speculative: bool,
    /// The other agent that was at it, whose lease ends with it and who is called back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<Box<OtherCopy>>,
}

/// An agent that was at the same attempt as another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OtherCopy {
    /// Under which lease.
    pub lease: LeaseId,
    /// Which agent.
    pub agent: AgentId,
}

/// See [`WorkflowRecord::CopyEnded`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CopyEnded {
    /// The task. Its attempt goes on under the other lease, as if it had never had this one.
    pub task: TaskId,
    /// The lease that has ended.
    pub lease: LeaseId,
    /// Whose it was.
    pub agent: AgentId,
    /// How it ended: failed or lost.
    pub outcome: Outcome,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What kind of failure it was, if somebody said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// From assignment to report.
    #[serde(default)]
    pub duration_ms: Millis,
    /// What the agent says it cost.
    #[serde(default, skip_serializing_if = "Money::is_zero")]
    pub cost: Money,
    /// What the agent says it used.
    #[serde(default, skip_serializing_if = "Usage::is_zero")]
    pub usage: Usage,
    /// The model that the agent says it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl CopyEnded {
    /// What would have been the end of the attempt if nobody else had been at it.
    #[must_use]
    pub fn as_ended(&self) -> StageEnded {
        let Self { task, lease, agent, outcome, error, code, duration_ms, cost, usage, model } = self.clone();
        StageEnded {
            task,
            lease: Some(lease),
            agent: Some(agent),
            outcome,
            result: None,
            error,
            hopeless: false,
            code,
            retry_at: None,
            duration_ms,
            cost,
            usage,
            model,
            delegated: None,
            speculative: false,
            other: None,
        }
    }
}

/// See [`WorkflowRecord::StageSkipped`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageSkipped {
    /// The run.
    pub run: RunId,
    /// The stage.
    pub stage: StageName,
    /// Why.
    pub reason: SkipReason,
}

/// See [`WorkflowRecord::StageExpanded`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageExpanded {
    /// The run.
    pub run: RunId,
    /// The stage.
    pub stage: StageName,
    /// The items: a list, in the order of the results.
    pub items: Json,
}

/// See [`WorkflowRecord::StageWaits`]. For what it waits its definition says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StageWaits {
    /// The run.
    pub run: RunId,
    /// The stage.
    pub stage: StageName,
}

/// See [`WorkflowRecord::Signalled`]. A signal of a name comes once in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Signalled {
    /// The run.
    pub run: RunId,
    /// The signal.
    pub signal: SignalName,
    /// What came with it.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub payload: Json,
    /// Who gave it, as far as that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// See [`WorkflowRecord::StageCached`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageCached {
    /// The run.
    pub run: RunId,
    /// The stage.
    pub stage: StageName,
    /// The run in which it was done.
    pub of: RunId,
    /// What came of it there.
    pub result: Json,
}

/// See [`WorkflowRecord::StageCommitted`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageCommitted {
    /// The task. If its attempt is over, what that gave is the stage's result; if it is under way, it is one like others
    /// from now on.
    pub task: TaskId,
}

/// Why a stage does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// Its condition gave false.
    Condition,
    /// Stages that it depends on were skipped.
    Dependencies,
    /// It is a fallback, and the stage that it stands for did not fail.
    NotNeeded,
}

impl SkipReason {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Condition => "condition",
            Self::Dependencies => "dependencies",
            Self::NotNeeded => "not_needed",
        }
    }

    /// As it is said to people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Condition => "its condition gave false",
            Self::Dependencies => "what it depends on was skipped",
            Self::NotNeeded => "the stage that it stands for did not fail",
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With a result.
    Succeeded,
    /// The agent said that it failed.
    Failed,
    /// The agent died, left, or was replaced.
    Lost,
    /// It waited or ran too long.
    TimedOut,
    /// Its run was cancelled, or failed elsewhere.
    Cancelled,
    /// It goes on as the next attempt: its agent has handed the work on to a run, or that run has ended and an agent is to put
    /// together what came of it.
    Delegated,
}

impl Outcome {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Delegated => "delegated",
        }
    }

    /// Whether it is one of those after which another attempt may be made because this one came to nothing.
    #[must_use]
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::Lost | Self::TimedOut)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// See [`WorkflowRecord::RunFinished`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunFinished {
    /// The run.
    pub run: RunId,
    /// Its one end: never `running`.
    pub status: crate::run::RunStatus,
    /// Why, unless it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What the resource-manager appends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResourceRecord {
    /// An agent joined, or joined again with a new session: what its old session held has ended.
    AgentRegistered(AgentRegistered),
    /// An agent is gone, and with it every lease it held.
    AgentLeft(AgentLeft),
    /// An agent holds a task. The record's number is the lease's id.
    Assigned(Assigned),
    /// A lease ended while its agent lives on: the agent declined the task, or said nothing of it for too long.
    LeaseEnded(LeaseEnded),
    /// An agent offers a task that it holds to another agent. The record's number is the handoff's id.
    HandoffOffered(HandoffOffered),
    /// The other agent has taken it: the giver's lease ends, and the other's begins. The record's number is that lease's id.
    HandedOver(HandedOver),
    /// The other agent has not taken it: the giver holds it as before.
    HandoffEnded(HandoffEnded),
    /// An agent is given no more tasks of a capability for a while: too many of them failed.
    BreakerOpened(BreakerOpened),
    /// An agent is given some tasks of that capability again, to see whether it works.
    BreakerHalfOpened(BreakerHalfOpened),
    /// An agent works again.
    BreakerClosed(BreakerClosed),
    /// There is a pool, or it has changed.
    PoolSet(PoolSet),
    /// There is a pool no more.
    PoolRemoved(PoolRemoved),
    /// Somebody holds something of pools. The record's number is the lease's id, and its fencing token.
    Acquired(Acquired),
    /// It is held for longer.
    Renewed(Renewed),
    /// It is held no more, though its holder lives on. What an agent holds ends without this record when the agent leaves or
    /// has another session, and what it holds under a task's lease when that ends.
    Released(Released),
    /// A person should know of something. The record's number is the alert's id.
    AlertRaised(AlertRaised),
    /// What an alert was about is over.
    AlertCleared(AlertCleared),
    /// Somebody has seen an alert.
    AlertAcknowledged(AlertAcknowledged),
    /// An account has not enough, and somebody is to say whether it gets more.
    ApprovalAsked(ApprovalAsked),
    /// An account has not enough, and will not have: a task that needs it fails.
    BudgetRefused(BudgetRefused),
    /// There is more or less pressure than before, or it lasts longer than was expected.
    PressureChanged(PressureChanged),
}

/// See [`ResourceRecord::AgentRegistered`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentRegistered {
    /// The agent.
    pub agent: AgentId,
    /// This life of its process.
    pub session: String,
    /// What it mainly does.
    pub agent_type: Capability,
    /// What it can do besides, with metadata.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capabilities: BTreeMap<Capability, BTreeMap<String, Value>>,
    /// What it has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: Resources,
    /// How many tasks it does at a time.
    pub slots: u32,
    /// Larger is preferred.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// Whether it takes several assignments in one message.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub batches: bool,
}

/// See [`ResourceRecord::AgentLeft`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentLeft {
    /// The agent.
    pub agent: AgentId,
    /// Why.
    pub reason: LeftReason,
}

/// Why an agent is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeftReason {
    /// It said so.
    Left,
    /// It was not heard of for the time of a lease.
    Lost,
}

/// See [`ResourceRecord::Assigned`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Assigned {
    /// The task.
    pub task: TaskId,
    /// Who holds it.
    pub agent: AgentId,
    /// What of the agent's own is held for it, beside one slot.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: Resources,
    /// What is held for it of pools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pools: Resources,
    /// The lease under which another agent is at it: this is a second copy, and what is done first counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<LeaseId>,
}

/// See [`ResourceRecord::PoolSet`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolSet {
    /// The pool's name.
    pub name: ResourceName,
    /// What it is from now on.
    pub pool: Pool,
}

/// See [`ResourceRecord::PoolRemoved`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolRemoved {
    /// The pool's name.
    pub name: ResourceName,
}

/// See [`ResourceRecord::Acquired`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Acquired {
    /// What the holder calls it. Asked for again by this id, it is the same.
    pub id: String,
    /// Who holds it.
    pub holder: Holder,
    /// What is held.
    pub takes: Takes,
    /// How long, in milliseconds, unless it is renewed.
    pub ttl_ms: Millis,
    /// The lease of the task that it is for: it ends with that one at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under: Option<LeaseId>,
}

/// See [`ResourceRecord::Renewed`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Renewed {
    /// The lease.
    pub lease: LeaseId,
    /// How long from now on, in milliseconds.
    pub ttl_ms: Millis,
}

/// See [`ResourceRecord::Released`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Released {
    /// The lease.
    pub lease: LeaseId,
    /// The pools that it held something of, for those who wait for them.
    pub pools: Vec<ResourceName>,
    /// Why it ended.
    pub reason: ReleaseReason,
    /// What was used of consumed pools. Of those that are not named, it is all that was taken; nothing where the time was up.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub used: Resources,
}

/// See [`ResourceRecord::ApprovalAsked`]. It is answered when the account is changed, or by [`ResourceRecord::BudgetRefused`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalAsked {
    /// The account that has not enough.
    pub account: ResourceName,
    /// How much is wanted of it.
    pub wanted: Amount,
    /// The task that wants it, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
}

/// See [`ResourceRecord::BudgetRefused`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BudgetRefused {
    /// The account that has not enough.
    pub account: ResourceName,
    /// The task that fails; none: who wanted it was no task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// Why, for people.
    pub reason: String,
}

/// Why something is held no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseReason {
    /// Somebody gave it back.
    Released,
    /// Its time was up.
    Expired,
}

/// See [`ResourceRecord::LeaseEnded`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseEnded {
    /// The lease.
    pub lease: LeaseId,
    /// Its task.
    pub task: TaskId,
    /// Who held it.
    pub agent: AgentId,
    /// Why it ended.
    pub reason: String,
    /// Whether it was taken from its agent, which had said nothing of the task for longer than its stage allows. Otherwise the
    /// agent gave it back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
}

/// What the optimizer appends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerRecord {
    /// Placement works differently from here on.
    StrategyChanged(StrategyChanged),
    /// What was learned elsewhere counts from here on.
    LearningImported(LearningImported),
    /// What is learned counts more, or less, from here on.
    LearningRateChanged(LearningRateChanged),
}

/// See [`OptimizerRecord::StrategyChanged`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StrategyChanged {
    /// The strategy.
    pub strategy: Strategy,
}

/// See [`OptimizerRecord::LearningImported`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LearningImported {
    /// What was learned. What can not be read is passed over.
    pub lessons: Vec<Lesson>,
}

/// See [`OptimizerRecord::LearningRateChanged`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LearningRateChanged {
    /// How much of an average a new sample makes up, in millionths.
    pub millionths: u32,
}

/// What every service's records have in common.
pub trait Record:
    fmt::Debug + Clone + PartialEq + Serialize + serde::de::DeserializeOwned + Send + Sync + 'static
{
    /// Who writes it.
    const SERVICE: Service;

    /// Its kind, as it is written: `stage_ready`.
    fn kind(&self) -> &'static str;

    /// What it is about, for the subject of its event.
    fn topic(&self) -> Topic<'_>;

    /// The run that it is told of beside the one that it is about: that one does a stage of it from here on.
    fn part_of(&self) -> Option<RunId> {
        None
    }

    /// The commit, if it is one of these records' writer.
    fn commit(commit: &AnyCommit) -> Option<&Commit<Self>>;
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic<'a> {
    /// A run.
    Run(&'a RunId),
    /// An agent.
    Agent(&'a AgentId),
    /// A workflow.
    Workflow(&'a WorkflowName),
    /// A pool.
    Pool(&'a ResourceName),
    /// An alert of this severity and kind.
    Alert(AlertSeverity, AlertKind),
    /// A service.
    Service(Service),
}

impl Record for WorkflowRecord {
    const SERVICE: Service = Service::WorkflowManager;

    fn kind(&self) -> &'static str {
        match self {
            Self::WorkflowRegistered(_) => "workflow_registered",
            Self::RunStarted(_) => "run_started",
            Self::StageReady(_) => "stage_ready",
            Self::StageEnded(_) => "stage_ended",
            Self::StageSkipped(_) => "stage_skipped",
            Self::StageExpanded(_) => "stage_expanded",
            Self::StageWaits(_) => "stage_waits",
            Self::Signalled(_) => "signalled",
            Self::StageCached(_) => "stage_cached",
            Self::StageCommitted(_) => "stage_committed",
            Self::CopyEnded(_) => "copy_ended",
            Self::RunFinished(_) => "run_finished",
            Self::RunPaused(_) => "run_paused",
            Self::RunResumed(_) => "run_resumed",
            Self::RunsForgotten(_) => "runs_forgotten",
            Self::ScheduleSet(_) => "schedule_set",
            Self::ScheduleRemoved(_) => "schedule_removed",
            Self::ScheduleFired(_) => "schedule_fired",
            Self::TriggerSet(_) => "trigger_set",
            Self::TriggerRemoved(_) => "trigger_removed",
            Self::EventRaised(_) => "event_raised",
            Self::TriggerFired(_) => "trigger_fired",
        }
    }

    fn topic(&self) -> Topic<'_> {
        match self {
            Self::WorkflowRegistered(r) => Topic::Workflow(&r.definition.name),
            Self::RunStarted(r) => Topic::Run(&r.run),
            Self::StageReady(r) => Topic::Run(&r.task.run),
            Self::StageEnded(r) => Topic::Run(&r.task.run),
            Self::StageSkipped(r) => Topic::Run(&r.run),
            Self::StageExpanded(r) => Topic::Run(&r.run),
            Self::StageWaits(r) => Topic::Run(&r.run),
            Self::Signalled(r) => Topic::Run(&r.run),
            Self::StageCached(r) => Topic::Run(&r.run),
            Self::StageCommitted(r) => Topic::Run(&r.task.run),
            Self::CopyEnded(r) => Topic::Run(&r.task.run),
            Self::RunFinished(r) => Topic::Run(&r.run),
            Self::RunPaused(r) => Topic::Run(&r.run),
            Self::RunResumed(r) => Topic::Run(&r.run),
            Self::RunsForgotten(_) => Topic::Service(Service::WorkflowManager),
            Self::ScheduleSet(r) => Topic::Workflow(&r.schedule.workflow),
            Self::ScheduleRemoved(r) => Topic::Workflow(&r.workflow),
            Self::ScheduleFired(r) => Topic::Workflow(&r.workflow),
            Self::TriggerSet(r) => Topic::Workflow(r.trigger.then.workflow()),
            Self::TriggerRemoved(r) => Topic::Workflow(&r.workflow),
            Self::EventRaised(_) => Topic::Service(Service::WorkflowManager),
            Self::TriggerFired(r) => Topic::Workflow(&r.workflow),
        }
    }

    fn part_of(&self) -> Option<RunId> {
        match self {
            Self::RunStarted(r) => r.parent.as_ref().map(|parent| parent.task.run),
            _ => None,
        }
    }

    fn commit(commit: &AnyCommit) -> Option<&Commit<Self>> {
        match commit {
            AnyCommit::Workflow(commit) => Some(commit),
            _ => None,
        }
    }
}

impl Record for ResourceRecord {
    const SERVICE: Service = Service::ResourceManager;

    fn kind(&self) -> &'static str {
        match self {
            Self::AgentRegistered(_) => "agent_registered",
            Self::AgentLeft(_) => "agent_left",
            Self::Assigned(_) => "assigned",
            Self::LeaseEnded(_) => "lease_ended",
            Self::HandoffOffered(_) => "handoff_offered",
            Self::HandedOver(_) => "handed_over",
            Self::HandoffEnded(_) => "handoff_ended",
            Self::BreakerOpened(_) => "breaker_opened",
            Self::BreakerHalfOpened(_) => "breaker_half_opened",
            Self::BreakerClosed(_) => "breaker_closed",
            Self::PoolSet(_) => "pool_set",
            Self::PoolRemoved(_) => "pool_removed",
            Self::Acquired(_) => "acquired",
            Self::Renewed(_) => "renewed",
            Self::Released(_) => "released",
            Self::AlertRaised(_) => "alert_raised",
            Self::AlertCleared(_) => "alert_cleared",
            Self::AlertAcknowledged(_) => "alert_acknowledged",
            Self::ApprovalAsked(_) => "approval_asked",
            Self::BudgetRefused(_) => "budget_refused",
            Self::PressureChanged(_) => "pressure_changed",
        }
    }

    fn topic(&self) -> Topic<'_> {
        match self {
            Self::AgentRegistered(r) => Topic::Agent(&r.agent),
            Self::AgentLeft(r) => Topic::Agent(&r.agent),
            Self::Assigned(r) => Topic::Run(&r.task.run),
            Self::LeaseEnded(r) => Topic::Run(&r.task.run),
            Self::HandoffOffered(r) => Topic::Run(&r.task.run),
            Self::HandedOver(r) => Topic::Run(&r.task.run),
            Self::HandoffEnded(r) => Topic::Run(&r.task.run),
            Self::BreakerOpened(r) => Topic::Agent(&r.agent),
            Self::BreakerHalfOpened(r) => Topic::Agent(&r.agent),
            Self::BreakerClosed(r) => Topic::Agent(&r.agent),
            Self::PoolSet(r) => Topic::Pool(&r.name),
            Self::PoolRemoved(r) => Topic::Pool(&r.name),
            Self::Acquired(r) => r.takes.keys().next().map_or(Topic::Service(Self::SERVICE), Topic::Pool),
            Self::Renewed(_) | Self::PressureChanged(_) => Topic::Service(Self::SERVICE),
            Self::Released(r) => r.pools.first().map_or(Topic::Service(Self::SERVICE), Topic::Pool),
            Self::AlertRaised(r) => Topic::Alert(r.severity, r.kind),
            Self::AlertCleared(r) => Topic::Alert(r.severity, r.kind),
            Self::AlertAcknowledged(r) => Topic::Alert(r.severity, r.kind),
            Self::ApprovalAsked(r) => Topic::Pool(&r.account),
            Self::BudgetRefused(r) => r.task.as_ref().map_or(Topic::Pool(&r.account), |task| Topic::Run(&task.run)),
        }
    }

    fn commit(commit: &AnyCommit) -> Option<&Commit<Self>> {
        match commit {
            AnyCommit::Resource(commit) => Some(commit),
            _ => None,
        }
    }
}

impl Record for OptimizerRecord {
    const SERVICE: Service = Service::Optimizer;

    fn kind(&self) -> &'static str {
        match self {
            Self::StrategyChanged(_) => "strategy_changed",
            Self::LearningImported(_) => "learning_imported",
            Self::LearningRateChanged(_) => "learning_rate_changed",
        }
    }

    fn topic(&self) -> Topic<'_> {
        match self {
            Self::StrategyChanged(_) | Self::LearningImported(_) | Self::LearningRateChanged(_) => {
                Topic::Service(Service::Optimizer)
            }
        }
    }

    fn commit(commit: &AnyCommit) -> Option<&Commit<Self>> {
        match commit {
            AnyCommit::Optimizer(commit) => Some(commit),
            _ => None,
        }
    }
}

/// A commit of any service.
#[derive(Debug, Clone, PartialEq)]
pub enum AnyCommit {
    /// The workflow-manager's.
    Workflow(Commit<WorkflowRecord>),
    /// The resource-manager's.
    Resource(Commit<ResourceRecord>),
    /// The optimizer's.
    Optimizer(Commit<OptimizerRecord>),
}

/// A message of the log that can not be read. A service stops at it: it would fold wrongly.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Not a commit.
    #[error("a commit of {service} can not be read: {error}")]
    Unreadable {
        /// Whose log subject it was on.
        service: Service,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// Written by a newer Baton.
    #[error("a commit of {service} has format {format}, this Baton reads up to {FORMAT}: upgrade it")]
    TooNew {
        /// Whose.
        service: Service,
        /// Its format.
        format: u32,
    },
    /// The gateway has no log.
    #[error("{0} writes no log")]
    NoWriter(Service),
}

impl AnyCommit {
    /// Reads a message of a service's log subject.
    pub fn decode(service: Service, payload: &[u8]) -> Result<Self, CommitError> {
        Ok(match service {
            Service::WorkflowManager => Self::Workflow(decode(payload)?),
            Service::ResourceManager => Self::Resource(decode(payload)?),
            Service::Optimizer => Self::Optimizer(decode(payload)?),
            Service::Gateway => return Err(CommitError::NoWriter(service)),
        })
    }

    /// Whose it is.
    #[must_use]
    pub fn service(&self) -> Service {
        match self {
            Self::Workflow(_) => Service::WorkflowManager,
            Self::Resource(_) => Service::ResourceManager,
            Self::Optimizer(_) => Service::Optimizer,
        }
    }

    /// When the last of its turns was taken.
    #[must_use]
    pub fn at(&self) -> Option<Millis> {
        match self {
            Self::Workflow(c) => c.turns.last().map(|turn| turn.at),
            Self::Resource(c) => c.turns.last().map(|turn| turn.at),
            Self::Optimizer(c) => c.turns.last().map(|turn| turn.at),
        }
    }

    /// The number after the last record in it.
    #[must_use]
    pub fn next(&self) -> Number {
        match self {
            Self::Workflow(c) => c.first + c.len(),
            Self::Resource(c) => c.first + c.len(),
            Self::Optimizer(c) => c.first + c.len(),
        }
    }

    /// Its records as observers see them, if it is message `seq` of the log.
    pub fn events(&self, seq: u64) -> Result<Vec<Event>, serde_json::Error> {
        match self {
            Self::Workflow(c) => c.events(seq),
            Self::Resource(c) => c.events(seq),
            Self::Optimizer(c) => c.events(seq),
        }
    }
}

/// Reads a commit of one service.
pub fn decode<R: Record>(payload: &[u8]) -> Result<Commit<R>, CommitError> {
    let service = R::SERVICE;
    let commit: Commit<R> = match serde_json::from_slice(payload) {
        Ok(commit) => commit,
        Err(error) => {
            // A newer format may look different altogether; say that rather than where the reading stopped.
            #[derive(Deserialize)]
            struct Format {
                format: u32,
            }
            return Err(match serde_json::from_slice(payload) {
                Ok(Format { format }) if format > FORMAT => CommitError::TooNew { service, format },
                _ => CommitError::Unreadable { service, error },
            });
        }
    };
    if commit.format > FORMAT {
        return Err(CommitError::TooNew { service, format: commit.format });
    }
    Ok(commit)
}

impl Event {
    /// Whether it belongs to what happens to a run.
    #[must_use]
    pub fn is_of(&self, run: RunId) -> bool {
        self.run == Some(run) || self.part_of == Some(run)
    }
}

impl<R: Record> Commit<R> {
    /// The records as observers see them, if the commit is message `seq` of the log.
    pub fn events(&self, seq: u64) -> Result<Vec<Event>, serde_json::Error> {
        let causes = self.turns.iter().flat_map(|turn| turn.records.iter().map(|_| &turn.cause));
        self.stamped()
            .zip(causes)
            .map(|((stamp, record), cause)| {
                Ok(Event {
                    position: Position { seq, index: u32::try_from(stamp.number - self.first).unwrap_or(u32::MAX) },
                    service: R::SERVICE,
                    number: stamp.number,
                    at: stamp.at,
                    cause: cause.clone(),
                    kind: record.kind().into(),
                    run: match record.topic() {
                        Topic::Run(run) => Some(*run),
                        _ => None,
                    },
                    part_of: record.part_of(),
                    record: Json::of(record)?,
                })
            })
            .collect()
    }
}

/// A record as observers see it: on `baton.event.>`, in a run's event stream, in `baton log`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Where the record is in the log. Events of one run come in this order; a repeated one is the same event.
    pub position: Position,
    /// Who wrote it.
    pub service: Service,
    /// Its number in that service's sequence.
    pub number: Number,
    /// When, in milliseconds since 1970.
    pub at: Millis,
    /// What led to it.
    pub cause: Cause,
    /// Its kind: `stage_ready` …
    pub kind: String,
    /// The run it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The run that it is told of, too: that one has begun which does a stage of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<RunId>,
    /// The record: an object with one key, its kind.
    pub record: Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit() -> Commit<WorkflowRecord> {
        let run = RunId::derive(1000, 1);
        let task = TaskId { run, stage: StageName::new("a").unwrap(), item: None, attempt: 1 };
        let records = vec![
            WorkflowRecord::RunStarted(RunStarted {
                run,
                workflow: WorkflowName::new("w").unwrap(),
                version: 1,
                input: Json::from_text("{\"topic\":\"x\"}".into()).unwrap(),
                priority: 0,
                key: None,
                trace: None,
                strategy: None,
                due: None,
                budget: None,
                metadata: Default::default(),
                rerun: None,
                parent: None,
                no_cache: false,
            }),
            WorkflowRecord::StageReady(StageReady {
                task,
                agent_type: Capability::new("x").unwrap(),
                requires: Requirements::none(),
                inputs: vec![],
                input: None,
                cache: None,
                hedge: false,
                speculative: false,
                resources: Resources::new(),
                priority: 0,
            }),
        ];
        let turns = vec![Turn { at: 1000, seen: 3, cause: Cause::Request("run.start".into()), records }];
        Commit { format: FORMAT, instance: "i".into(), term: 2, first: 7, handled: 3, turns }
    }

    #[test]
    fn m8_old_readers_survive_new_fields_but_not_new_formats() {
        let mut value = serde_json::to_value(commit()).unwrap();
        value["new_field"] = 1.into();
        value["turns"][0]["records"][1]["stage_ready"]["new_field"] = serde_json::json!({ "a": 1 });
        assert_eq!(decode::<WorkflowRecord>(value.to_string().as_bytes()).unwrap(), commit());
        value["format"] = 2.into();
        let error = decode::<WorkflowRecord>(value.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains("format 2") && error.contains("upgrade"), "{error}");
        let error = decode::<WorkflowRecord>(b"{\"format\":1,").unwrap_err().to_string();
        assert!(error.contains("workflow-manager"), "{error}");
    }

    #[test]
    fn an_unknown_record_stops_the_reader() {
        let text = serde_json::to_string(&commit()).unwrap().replace("stage_ready", "stage_pondered");
        let error = decode::<WorkflowRecord>(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("stage_pondered"), "{error}");
    }

    #[test]
    fn events_carry_positions_and_numbers() {
        let events = commit().events(12).unwrap();
        let seen: Vec<_> = events.iter().map(|e| (e.position.to_string(), e.number, e.kind.as_str())).collect();
        assert_eq!(seen, [("12.0".into(), 7, "run_started"), ("12.1".into(), 8, "stage_ready")]);
    }
}
