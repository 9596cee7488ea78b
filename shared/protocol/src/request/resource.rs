//! What may be asked of the resource-manager, and what it tells agents.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    AcknowledgeAlert, AcknowledgeHandoff, Acquire, AcquireAnswer, AlertList, ApproveBudget, AskHandoff, DenyBudget,
    Done, Endpoint, GetPressure, GetSpending, Granted, HandoffAcknowledged, HandoffAsked, HandoffOffer, HandoffOpen,
    LeaseList, ListAlerts, ListLeases, ListPools, Mark, OfferHandoff, PoolList, Release, RemovePool, Renew, Requests,
    SetPool, SharePool, Spending, body, endpoint, schema, speaker, unknown_endpoint,
};
use crate::amount::Resources;
use crate::breaker::BreakerView;
use crate::handoff::Handover;
use crate::id::{LeaseId, Millis, Number, RunId, Service, TaskId};
use crate::json::Json;
use crate::name::{AgentId, Capability, StageName, WorkflowName};
use crate::pressure::PressureView;
use crate::rejection::Rejection;
use crate::requirement::Requirements;
use crate::subject::AgentVerb;
use crate::trace::TraceContext;

/// What may be asked of the resource-manager.
#[derive(Debug, Clone, PartialEq)]
pub enum ResourceRequest {
    /// See [`RegisterAgent`].
    Register(AgentId, RegisterAgent),
    /// See [`Heartbeat`].
    Heartbeat(AgentId, Heartbeat),
    /// See [`Decline`].
    Decline(AgentId, Decline),
    /// See [`Leave`].
    Leave(AgentId, Leave),
    /// See [`Progress`].
    Progress(AgentId, Progress),
    /// See [`OfferHandoff`].
    OfferHandoff(AgentId, OfferHandoff),
    /// See [`AcknowledgeHandoff`].
    AcknowledgeHandoff(AgentId, AcknowledgeHandoff),
    /// See [`ListAgents`].
    ListAgents(ListAgents),
    /// See [`AssignTasks`].
    Assign(AssignTasks),
    /// See [`SetPool`].
    SetPool(SetPool),
    /// See [`SharePool`].
    SharePool(SharePool),
    /// See [`ApproveBudget`].
    ApproveBudget(ApproveBudget),
    /// See [`DenyBudget`].
    DenyBudget(DenyBudget),
    /// See [`GetSpending`].
    GetSpending(GetSpending),
    /// See [`RemovePool`].
    RemovePool(RemovePool),
    /// See [`ListPools`].
    ListPools(ListPools),
    /// See [`Acquire`]; by an agent, or by anybody else.
    Acquire(Option<AgentId>, Acquire),
    /// See [`Renew`]; by an agent, or by anybody else.
    Renew(Option<AgentId>, Renew),
    /// See [`Release`]; by an agent, or by anybody else.
    Release(Option<AgentId>, Release),
    /// See [`ListLeases`].
    ListLeases(ListLeases),
    /// See [`ListAlerts`].
    ListAlerts(ListAlerts),
    /// See [`AcknowledgeAlert`].
    AcknowledgeAlert(AcknowledgeAlert),
    /// See [`AskHandoff`].
    AskHandoff(AskHandoff),
    /// See [`GetPressure`].
    GetPressure(GetPressure),
}

impl Requests for ResourceRequest {
    const ENDPOINTS: &'static [Endpoint] = &[
        endpoint(
            "agent.register",
            Some(AgentVerb::Register),
            "Registers an agent, or a new session of it.",
            schema::<RegisterAgent>,
            schema::<Registered>,
        ),
        endpoint(
            "agent.heartbeat",
            Some(AgentVerb::Heartbeat),
            "Keeps an agent's leases, and says what it should start and drop.",
            schema::<Heartbeat>,
            schema::<HeartbeatAnswer>,
        ),
        endpoint(
            "agent.decline",
            Some(AgentVerb::Decline),
            "Gives a task back undone.",
            schema::<Decline>,
            schema::<Done>,
        ),
        endpoint(
            "agent.leave",
            Some(AgentVerb::Leave),
            "Takes an agent out; what it held runs elsewhere.",
            schema::<Leave>,
            schema::<Done>,
        ),
        endpoint(
            "agent.progress",
            Some(AgentVerb::Progress),
            "Tells observers how far a task is.",
            schema::<Progress>,
            schema::<Done>,
        ),
        endpoint(
            "agent.handoff",
            Some(AgentVerb::Handoff),
            "Offers a task to another agent.",
            schema::<OfferHandoff>,
            schema::<HandoffOpen>,
        ),
        endpoint(
            "agent.acknowledge",
            Some(AgentVerb::Acknowledge),
            "Takes a task that was offered, or does not.",
            schema::<AcknowledgeHandoff>,
            schema::<HandoffAcknowledged>,
        ),
        endpoint("agent.list", None, "Lists the agents.", schema::<ListAgents>, schema::<AgentList>),
        endpoint(
            "lease.assign",
            None,
            "Leases tasks to agents: all that each needs, or nothing. The optimizer asks.",
            schema::<AssignTasks>,
            schema::<AssignAnswer>,
        ),
        endpoint("pool.set", None, "Makes a pool, or changes one.", schema::<SetPool>, schema::<Done>),
        endpoint(
            "pool.share",
            None,
            "Shares out what is left of a consumed pool among its parts.",
            schema::<SharePool>,
            schema::<PoolList>,
        ),
        endpoint(
            "budget.approve",
            None,
            "Gives an account more, and lets go on what waits for it.",
            schema::<ApproveBudget>,
            schema::<Done>,
        ),
        endpoint(
            "budget.deny",
            None,
            "Says that an account gets no more: the task that was asked for fails.",
            schema::<DenyBudget>,
            schema::<Done>,
        ),
        endpoint(
            "budget.spending",
            None,
            "Adds up what was spent by run, stage, agent, model or attempt.",
            schema::<GetSpending>,
            schema::<Spending>,
        ),
        endpoint("pool.remove", None, "Removes a pool that nobody uses.", schema::<RemovePool>, schema::<Done>),
        endpoint("pool.list", None, "Lists the pools.", schema::<ListPools>, schema::<PoolList>),
        endpoint(
            "lease.acquire",
            None,
            "Takes from pools, all that is asked for or nothing; waits if that is wanted.",
            schema::<Acquire>,
            schema::<AcquireAnswer>,
        ),
        endpoint("lease.renew", None, "Keeps what was acquired for longer.", schema::<Renew>, schema::<Granted>),
        endpoint("lease.release", None, "Gives back what was acquired.", schema::<Release>, schema::<Done>),
        endpoint("lease.list", None, "Lists what is held of pools.", schema::<ListLeases>, schema::<LeaseList>),
        endpoint(
            "agent.acquire",
            Some(AgentVerb::Acquire),
            "Takes from pools for an agent, all that is asked for or nothing; waits if that is wanted.",
            schema::<Acquire>,
            schema::<AcquireAnswer>,
        ),
        endpoint(
            "agent.renew",
            Some(AgentVerb::Renew),
            "Keeps what an agent acquired for longer.",
            schema::<Renew>,
            schema::<Granted>,
        ),
        endpoint(
            "agent.release",
            Some(AgentVerb::Release),
            "Gives back what an agent acquired.",
            schema::<Release>,
            schema::<Done>,
        ),
        endpoint("alert.list", None, "Lists alerts, the latest first.", schema::<ListAlerts>, schema::<AlertList>),
        endpoint(
            "alert.acknowledge",
            None,
            "Says that somebody has seen an alert.",
            schema::<AcknowledgeAlert>,
            schema::<Done>,
        ),
        endpoint(
            "handoff.ask",
            None,
            "Offers a task that is under way to another agent, in the name of who holds it.",
            schema::<AskHandoff>,
            schema::<HandoffAsked>,
        ),
        endpoint(
            "pressure.get",
            None,
            "Shows how much more is to be done than can be.",
            schema::<GetPressure>,
            schema::<PressureView>,
        ),
    ];

    fn decode(endpoint: &str, subject: &str, payload: &[u8]) -> Result<Self, Rejection> {
        Ok(match endpoint {
            "agent.register" => Self::Register(speaker(subject)?, body(endpoint, payload)?),
            "agent.heartbeat" => Self::Heartbeat(speaker(subject)?, body(endpoint, payload)?),
            "agent.decline" => Self::Decline(speaker(subject)?, body(endpoint, payload)?),
            "agent.leave" => Self::Leave(speaker(subject)?, body(endpoint, payload)?),
            "agent.progress" => Self::Progress(speaker(subject)?, body(endpoint, payload)?),
            "agent.handoff" => Self::OfferHandoff(speaker(subject)?, body(endpoint, payload)?),
            "agent.acknowledge" => Self::AcknowledgeHandoff(speaker(subject)?, body(endpoint, payload)?),
            "agent.list" => Self::ListAgents(body(endpoint, payload)?),
            "lease.assign" => Self::Assign(body(endpoint, payload)?),
            "pool.set" => Self::SetPool(body(endpoint, payload)?),
            "pool.share" => Self::SharePool(body(endpoint, payload)?),
            "budget.approve" => Self::ApproveBudget(body(endpoint, payload)?),
            "budget.deny" => Self::DenyBudget(body(endpoint, payload)?),
            "budget.spending" => Self::GetSpending(body(endpoint, payload)?),
            "pool.remove" => Self::RemovePool(body(endpoint, payload)?),
            "pool.list" => Self::ListPools(body(endpoint, payload)?),
            "lease.acquire" => Self::Acquire(None, body(endpoint, payload)?),
            "lease.renew" => Self::Renew(None, body(endpoint, payload)?),
            "lease.release" => Self::Release(None, body(endpoint, payload)?),
            "lease.list" => Self::ListLeases(body(endpoint, payload)?),
            "agent.acquire" => Self::Acquire(Some(speaker(subject)?), body(endpoint, payload)?),
            "agent.renew" => Self::Renew(Some(speaker(subject)?), body(endpoint, payload)?),
            "agent.release" => Self::Release(Some(speaker(subject)?), body(endpoint, payload)?),
            "alert.list" => Self::ListAlerts(body(endpoint, payload)?),
            "alert.acknowledge" => Self::AcknowledgeAlert(body(endpoint, payload)?),
            "handoff.ask" => Self::AskHandoff(body(endpoint, payload)?),
            "pressure.get" => Self::GetPressure(body(endpoint, payload)?),
            _ => return Err(unknown_endpoint(endpoint)),
        })
    }

    fn waits_for(&self) -> Option<Mark> {
        match self {
            Self::Assign(request) => Some(Mark { service: Service::WorkflowManager, number: request.seen }),
            _ => None,
        }
    }
}

/// Registers an agent. Who it is, is in the subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RegisterAgent {
    /// This life of the agent's process: any text that is new with each start. Registering again with the same session
    /// keeps what the agent holds; with another one ends it.
    pub session: String,
    /// What it mainly does.
    pub agent_type: Capability,
    /// What it can do besides, with metadata: `{"regression": {"formats": ["json"]}}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capabilities: BTreeMap<Capability, BTreeMap<String, Value>>,
    /// What it has: `{"cpu": 4, "memory": 8192}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: Resources,
    /// How many tasks it does at a time.
    #[serde(default = "one")]
    pub slots: u32,
    /// Larger is preferred.
    #[serde(default)]
    pub priority: i32,
    /// Whether it takes several assignments in one message ([`Assignments`]). One that does not gets a message for each.
    #[serde(default)]
    pub batches: bool,
}

fn one() -> u32 {
    1
}

/// The agent is registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Registered {
    /// Send a heartbeat this often.
    pub heartbeat_ms: Millis,
    /// After this long without one, the agent's leases end.
    pub lease_ms: Millis,
}

/// "I am still here." Who says so is in the subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeat {
    /// The session that was registered.
    pub session: String,
    /// The leases that the agent works under, or whose report is not yet stored.
    #[serde(default)]
    pub holds: Vec<LeaseId>,
}

/// What the agent should do to hold what it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeartbeatAnswer {
    /// Leased to it, and it does not know.
    #[serde(default)]
    pub start: Vec<Assignment>,
    /// No longer leased to it.
    #[serde(default)]
    pub drop: Vec<LeaseId>,
    /// Offered to it by other agents, and not answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offers: Vec<HandoffOffer>,
    /// It is asked to begin anew, and has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartAgent>,
    /// Send a heartbeat this often.
    pub heartbeat_ms: Millis,
    /// After this long without one, the agent's leases end.
    pub lease_ms: Millis,
}

/// A task for an agent: on `baton.to.AGENT.assign`, or in the answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Assignment {
    /// The lease. The report names it.
    pub lease: LeaseId,
    /// The task. The report names it too.
    pub task: TaskId,
    /// Its run.
    pub run: RunId,
    /// Its stage.
    pub stage: StageName,
    /// Its attempt, from 1.
    pub attempt: u32,
    /// The item that it is about, of a stage that has a task for each item of a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<Json>,
    /// Where that is in the list, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// The workflow.
    pub workflow: WorkflowName,
    /// What the stage asks for.
    pub agent_type: Capability,
    /// The run's input, or what the stage's `input` makes of it.
    pub input: Json,
    /// The results of the stages that this one depends on; that of a fallback under the name of the stage that failed.
    #[serde(default)]
    pub results: BTreeMap<StageName, Json>,
    /// The stage's parameters.
    #[serde(default)]
    pub params: BTreeMap<String, Value>,
    /// The workflow's metadata.
    #[serde(default)]
    pub metadata: BTreeMap<String, Value>,
    /// What the agent holds for it, beside one slot.
    #[serde(default)]
    pub resources: Resources,
    /// When the stage could run, in milliseconds since 1970 by the workflow-manager's clock.
    #[serde(default)]
    pub ready_at: Millis,
    /// How long it may take, in milliseconds from now.
    pub timeout_ms: Millis,
    /// How long the agent may tell no progress of it; then it is taken from it. None: as long as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_timeout_ms: Option<Millis>,
    /// The trace to go on with; also in the header `traceparent`.
    pub trace: TraceContext,
    /// Where to go on, if another agent has handed it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<Handover>,
    /// What came of the stages that were delegated, if they are to be put together: a [`Gathered`](super::Gathered).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<super::Gathered>")]
    pub delegated: Option<Json>,
}

/// Several tasks for an agent that said that it takes them so: on `baton.to.AGENT.assignments`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Assignments {
    /// The tasks.
    pub assignments: Vec<Assignment>,
}

/// A lease that the agent should drop: on `baton.to.AGENT.cancel`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CancelTask {
    /// The lease that has ended.
    pub lease: LeaseId,
    /// Its task.
    pub task: TaskId,
    /// Why.
    pub reason: String,
}

/// An agent is asked to begin anew, as another session: on `baton.to.AGENT.restart`, and in the answers to its heartbeats. It
/// ends what it has in hand, says goodbye, and registers with a new session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestartAgent {
    /// The session that should end. Another one is not meant.
    pub session: String,
    /// Why.
    pub reason: String,
}

/// Gives a task back undone: the agent can not do it now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Decline {
    /// The lease.
    pub lease: LeaseId,
    /// Why.
    pub reason: String,
}

/// Takes an agent out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Leave {
    /// The session that was registered.
    pub session: String,
}

/// How far a task is. Never in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// The lease.
    pub lease: LeaseId,
    /// From 0 to 1.
    pub fraction: f64,
    /// What the agent is doing.
    #[serde(default)]
    pub message: String,
}

/// An event on `baton.event.run.RUN.progress`: progress that somebody who holds the lease has told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProgressEvent {
    /// The task.
    pub task: TaskId,
    /// Who does it.
    pub agent: AgentId,
    /// From 0 to 1.
    pub fraction: f64,
    /// What the agent is doing.
    #[serde(default)]
    pub message: String,
    /// When, in milliseconds since 1970.
    pub at: Millis,
}

/// Lists the agents.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListAgents {
    /// Only agents that can do this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<Capability>,
    /// Only agents whose metadata of that capability are so.
    #[serde(default, alias = "metadata", skip_serializing_if = "Requirements::is_empty")]
    pub requires: Requirements,
    /// Also agents that are gone.
    #[serde(default)]
    pub gone: bool,
}

/// The agents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentList {
    /// By id.
    pub agents: Vec<AgentView>,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentView {
    /// The agent.
    pub agent: AgentId,
    /// Whether it is there, and at work.
    pub status: AgentStatus,
    /// What it mainly does.
    pub agent_type: Capability,
    /// What it can do besides.
    #[serde(default)]
    pub capabilities: BTreeMap<Capability, BTreeMap<String, Value>>,
    /// What it has.
    #[serde(default)]
    pub resources: Resources,
    /// What of that is leased.
    #[serde(default)]
    pub in_use: Resources,
    /// How many tasks it does at a time.
    pub slots: u32,
    /// What it holds.
    pub leases: Vec<LeaseView>,
    /// Its circuit breakers: those that are not closed, and those under which a task failed lately.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub breakers: Vec<BreakerView>,
    /// Since when it is asked to begin anew, in milliseconds since 1970, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_asked: Option<Millis>,
    /// Larger is preferred.
    #[serde(default)]
    pub priority: i32,
    /// When it registered, in milliseconds since 1970.
    pub registered_at: Millis,
    /// When it was last heard of; none since this leader took over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_at: Option<Millis>,
}

/// A lease of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseView {
    /// The lease.
    pub lease: LeaseId,
    /// The task.
    pub task: TaskId,
    /// Since when, in milliseconds since 1970.
    pub since: Millis,
}

/// Where an agent stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AgentStatus {
    /// It is there and holds nothing.
    Idle,
    /// It holds a lease.
    Busy,
    /// It is gone.
    Gone,
}

/// Leases tasks to agents. The optimizer asks; each placement is granted or refused for itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AssignTasks {
    /// The number of the last record of the workflow-manager that the asker had read: the resource-manager reads that
    /// far first.
    pub seen: Number,
    /// What goes where.
    pub placements: Vec<Placement>,
}

/// One task for one agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Placement {
    /// The task.
    pub task: TaskId,
    /// The agent.
    pub agent: AgentId,
    /// The lease under which another agent has it: this one is to be given it as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<LeaseId>,
}

/// What became of the placements that were refused; the others are granted, and in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AssignAnswer {
    /// How many were granted.
    pub granted: u32,
    /// The others.
    #[serde(default)]
    pub refused: Vec<Refusal>,
}

/// A placement that was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// The task.
    pub task: TaskId,
    /// The agent.
    pub agent: AgentId,
    /// Why.
    pub rejection: Rejection,
}
