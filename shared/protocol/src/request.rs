//! Requests: what may be asked of each service, and what is answered.
//!
//! Every endpoint is in a table ([`Requests::ENDPOINTS`]) that gives its name, subject and schemas; the service shell
//! serves the table as a NATS micro service. Bodies are plain JSON. A refused request is answered with a
//! [`Rejection`], with its code in the header `Nats-Service-Error-Code` (as an HTTP status) and its text in
//! `Nats-Service-Error`.

use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, schema_for};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::amount::{Money, Resources};
use crate::definition::Definition;
use crate::id::{LeaseId, Millis, Number, RunId, Service, TaskId};
use crate::json::Json;
use crate::name::{AgentId, Capability, StageName, WorkflowName};
use crate::rejection::Rejection;
use crate::run::{RunCounts, RunStatus, RunSummary, RunView};
use crate::subject::{self, AgentVerb};
use crate::trace::TraceContext;

/// The longest result or input that travels in a message, in bytes. Larger ones are to be kept elsewhere and passed by
/// reference.
pub const MAX_JSON_BYTES: usize = 256 * 1024;

/// The largest body that Baton sends, in bytes: it fits, with headers, into the mebibyte that a nats-server allows unless it
/// is told otherwise.
pub const MAX_MESSAGE_BYTES: usize = 896 * 1024;

/// How deep the JSON of a request may nest. Readers of every language must be able to take what ends up in the log, some
/// levels deeper.
pub const MAX_JSON_DEPTH: usize = 64;

/// The longest idempotency key, in bytes.
pub const MAX_KEY_BYTES: usize = 255;

/// One thing that may be asked.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// Its name: `run.start`. Agents' endpoints are named `agent.VERB`.
    pub name: &'static str,
    /// Whether an agent asks, on its own subject; otherwise anyone, on `baton.req.SERVICE.NAME`.
    pub verb: Option<AgentVerb>,
    /// What it is for, in a sentence.
    pub about: &'static str,
    /// The schema of the request.
    pub request: fn() -> Schema,
    /// The schema of the answer.
    pub answer: fn() -> Schema,
}

impl Endpoint {
    /// The subject (for an agent's endpoint, the pattern) that it listens on.
    #[must_use]
    pub fn subject(&self, service: Service) -> String {
        match self.verb {
            Some(verb) => subject::agents(verb),
            None => subject::request(service, self.name),
        }
    }
}

const fn endpoint(
    name: &'static str,
    verb: Option<AgentVerb>,
    about: &'static str,
    request: fn() -> Schema,
    answer: fn() -> Schema,
) -> Endpoint {
    Endpoint { name, verb, about, request, answer }
}

fn schema<T: JsonSchema>() -> Schema {
    schema_for!(T)
}

/// A record that must have been read before a request can be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Whose record.
    pub service: Service,
    /// Its number.
    pub number: Number,
}

/// All that may be asked of one service.
pub trait Requests: fmt::Debug + Sized + Send + 'static {
    /// The endpoints.
    const ENDPOINTS: &'static [Endpoint];

    /// Reads a request. The rejection says what is wrong and where.
    fn decode(endpoint: &str, subject: &str, payload: &[u8]) -> Result<Self, Rejection>;

    /// The record that it names, which must have been read first.
    fn waits_for(&self) -> Option<Mark> {
        None
    }
}

/// Reads a body; an empty one is read as `{}`.
fn body<T: DeserializeOwned>(endpoint: &str, payload: &[u8]) -> Result<T, Rejection> {
    let payload = if payload.trim_ascii().is_empty() { b"{}".as_slice() } else { payload };
    if depth(payload) > MAX_JSON_DEPTH {
        let message = format!("the body of {endpoint} nests deeper than {MAX_JSON_DEPTH} levels");
        return Err(Rejection::invalid(message));
    }
    serde_json::from_slice(payload)
        .map_err(|error| Rejection::invalid(format!("the body of {endpoint} can not be read: {error}")))
}

/// How deep a JSON text nests. Of a text that is not JSON it is at least as deep as a parser would get.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn speaker(subject: &str) -> Result<AgentId, Rejection> {
    subject::parse_agent(subject).map_err(|error| Rejection::invalid(format!("subject {subject:?}: {error}")))
}

fn unknown_endpoint(endpoint: &str) -> Rejection {
    Rejection::invalid(format!("there is no endpoint {endpoint:?}"))
}

/// What may be asked of the workflow-manager.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkflowRequest {
    /// See [`RegisterWorkflow`].
    RegisterWorkflow(RegisterWorkflow),
    /// See [`RegisterWorkflow`]; checks only.
    ValidateWorkflow(RegisterWorkflow),
    /// See [`ListWorkflows`].
    ListWorkflows(ListWorkflows),
    /// See [`GetWorkflow`].
    GetWorkflow(GetWorkflow),
    /// See [`StartRun`].
    StartRun(StartRun),
    /// See [`GetRun`].
    GetRun(GetRun),
    /// See [`ListRuns`].
    ListRuns(ListRuns),
    /// See [`CancelRun`].
    CancelRun(CancelRun),
    /// See [`Report`].
    Report(AgentId, Report),
    /// See [`Reports`].
    Reports(AgentId, Reports),
}

impl Requests for WorkflowRequest {
    const ENDPOINTS: &'static [Endpoint] = &[
        endpoint(
            "workflow.register",
            None,
            "Registers a workflow, or a new version of it.",
            schema::<RegisterWorkflow>,
            schema::<WorkflowView>,
        ),
        endpoint(
            "workflow.validate",
            None,
            "Checks a workflow definition without registering it.",
            schema::<RegisterWorkflow>,
            schema::<WorkflowView>,
        ),
        endpoint("workflow.list", None, "Lists the workflows.", schema::<ListWorkflows>, schema::<WorkflowList>),
        endpoint("workflow.get", None, "Gives a workflow's definition.", schema::<GetWorkflow>, schema::<WorkflowView>),
        endpoint("run.start", None, "Starts a run of a workflow.", schema::<StartRun>, schema::<RunAccepted>),
        endpoint("run.get", None, "Gives a run with its stages and attempts.", schema::<GetRun>, schema::<RunView>),
        endpoint("run.list", None, "Lists runs, the newest first.", schema::<ListRuns>, schema::<RunList>),
        endpoint("run.cancel", None, "Cancels a run.", schema::<CancelRun>, schema::<RunAccepted>),
        endpoint(
            "agent.report",
            Some(AgentVerb::Report),
            "Ends a task: what came of it.",
            schema::<Report>,
            schema::<ReportStored>,
        ),
        endpoint(
            "agent.reports",
            Some(AgentVerb::Reports),
            "Ends several tasks: what came of each.",
            schema::<Reports>,
            schema::<ReportsAnswered>,
        ),
    ];

    fn decode(endpoint: &str, subject: &str, payload: &[u8]) -> Result<Self, Rejection> {
        Ok(match endpoint {
            "workflow.register" => Self::RegisterWorkflow(body(endpoint, payload)?),
            "workflow.validate" => Self::ValidateWorkflow(body(endpoint, payload)?),
            "workflow.list" => Self::ListWorkflows(body(endpoint, payload)?),
            "workflow.get" => Self::GetWorkflow(body(endpoint, payload)?),
            "run.start" => Self::StartRun(body(endpoint, payload)?),
            "run.get" => Self::GetRun(body(endpoint, payload)?),
            "run.list" => Self::ListRuns(body(endpoint, payload)?),
            "run.cancel" => Self::CancelRun(body(endpoint, payload)?),
            "agent.report" => Self::Report(speaker(subject)?, body(endpoint, payload)?),
            "agent.reports" => Self::Reports(speaker(subject)?, body(endpoint, payload)?),
            _ => return Err(unknown_endpoint(endpoint)),
        })
    }

    fn waits_for(&self) -> Option<Mark> {
        match self {
            Self::Report(_, report) => Some(Mark { service: Service::ResourceManager, number: report.lease.0 }),
            Self::Reports(_, Reports { reports }) => {
                let number = reports.iter().map(|report| report.lease.0).max()?;
                Some(Mark { service: Service::ResourceManager, number })
            }
            _ => None,
        }
    }
}

/// Registers a workflow, or a new version of it. Give either `source` (YAML or JSON text) or `definition`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RegisterWorkflow {
    /// The definition as YAML or JSON text; errors then name line and column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The definition as JSON: see [`Definition`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Json>,
}

/// A workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkflowView {
    /// The version, counted from 1; 0 for one that was only checked.
    pub version: u32,
    /// When it was registered, in milliseconds since 1970.
    pub registered_at: Millis,
    /// The definition.
    pub definition: Definition,
}

/// Lists the workflows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListWorkflows {}

/// The workflows there are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkflowList {
    /// By name.
    pub workflows: Vec<WorkflowSummary>,
}

/// A workflow in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkflowSummary {
    /// Its name.
    pub name: WorkflowName,
    /// Its latest version.
    pub version: u32,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its stages, in order.
    pub stages: Vec<StageName>,
    /// When the latest version was registered.
    pub registered_at: Millis,
}

/// Gives a workflow's definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GetWorkflow {
    /// The workflow.
    pub name: WorkflowName,
    /// The version; the latest one if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
}

/// Starts a run of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StartRun {
    /// The workflow.
    pub workflow: WorkflowName,
    /// The version; the latest one if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Given to every agent with its task: a JSON object.
    #[serde(default)]
    pub input: Json,
    /// Larger goes first.
    #[serde(default)]
    pub priority: i32,
    /// The same key gives the same run: a start that is repeated because its answer got lost starts nothing new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The run's id, if the client wants to choose it: a UUIDv7. A repeated one gives the same run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The trace to join. A `traceparent` header says the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
}

/// A run that was accepted, or cancelled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunAccepted {
    /// The run.
    pub run: RunId,
    /// Its workflow.
    pub workflow: WorkflowName,
    /// The version it keeps to its end.
    pub version: u32,
    /// Where it stands.
    pub status: RunStatus,
    /// Whether it was there before this request.
    #[serde(default)]
    pub existing: bool,
    /// Its trace: 32 hex digits.
    pub trace_id: String,
}

/// Gives a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GetRun {
    /// The run.
    pub run: RunId,
}

/// Lists runs, the newest first: those that run, and those that ended lately.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListRuns {
    /// Only runs of this workflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<WorkflowName>,
    /// Only runs that stand so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<RunStatus>,
    /// At most this many; 100 if none is given, 1000 at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only runs older than this one: the last of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<RunId>,
}

/// Some runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunList {
    /// The newest first.
    pub runs: Vec<RunSummary>,
    /// How many there are in all, by status, since the log began.
    pub counts: RunCounts,
    /// Whether there are older ones.
    pub more: bool,
}

/// Cancels a run. Cancelling a cancelled run is answered the same again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CancelRun {
    /// The run.
    pub run: RunId,
    /// Why, for those who read its history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How an agent's task ended. Sent on `baton.agent.AGENT.report` until it is answered; a repeated report counts once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// The lease under which the task was done.
    pub lease: LeaseId,
    /// The task.
    pub task: TaskId,
    /// Whether it succeeded.
    pub status: ReportStatus,
    /// What came of it, if it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether another attempt may succeed.
    #[serde(default = "yes")]
    pub retryable: bool,
    /// What it cost.
    #[serde(default)]
    pub cost: Money,
    /// What it used.
    #[serde(default)]
    pub usage: Usage,
}

fn yes() -> bool {
    true
}

/// How several tasks of an agent ended, for an agent that has many in hand. Sent on `baton.agent.AGENT.reports` until it is
/// answered; each report in it is stored or refused for itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reports {
    /// The reports.
    pub reports: Vec<Report>,
}

/// What became of several reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReportsAnswered {
    /// An answer for each report, in their order.
    pub answers: Vec<ReportAnswer>,
}

/// What became of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReportAnswer {
    /// It is stored.
    Stored(ReportStored),
    /// It is refused.
    Refused(Rejection),
}

/// Whether a task succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReportStatus {
    /// It gave a result.
    Succeeded,
    /// It did not.
    Failed,
}

/// What a task used of what is counted but not billed by Baton.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens read by a model.
    #[serde(default)]
    pub tokens_in: u64,
    /// Tokens written by a model.
    #[serde(default)]
    pub tokens_out: u64,
}

impl Usage {
    /// Whether nothing was used.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.tokens_in = self.tokens_in.saturating_add(other.tokens_in);
        self.tokens_out = self.tokens_out.saturating_add(other.tokens_out);
    }
}

/// The report is stored; the agent may forget the task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReportStored {
    /// The lease that has ended.
    pub lease: LeaseId,
}

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
    /// See [`ListAgents`].
    ListAgents(ListAgents),
    /// See [`AssignTasks`].
    Assign(AssignTasks),
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
        endpoint("agent.list", None, "Lists the agents.", schema::<ListAgents>, schema::<AgentList>),
        endpoint(
            "lease.assign",
            None,
            "Leases tasks to agents: all that each needs, or nothing. The optimizer asks.",
            schema::<AssignTasks>,
            schema::<AssignAnswer>,
        ),
    ];

    fn decode(endpoint: &str, subject: &str, payload: &[u8]) -> Result<Self, Rejection> {
        Ok(match endpoint {
            "agent.register" => Self::Register(speaker(subject)?, body(endpoint, payload)?),
            "agent.heartbeat" => Self::Heartbeat(speaker(subject)?, body(endpoint, payload)?),
            "agent.decline" => Self::Decline(speaker(subject)?, body(endpoint, payload)?),
            "agent.leave" => Self::Leave(speaker(subject)?, body(endpoint, payload)?),
            "agent.progress" => Self::Progress(speaker(subject)?, body(endpoint, payload)?),
            "agent.list" => Self::ListAgents(body(endpoint, payload)?),
            "lease.assign" => Self::Assign(body(endpoint, payload)?),
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
    /// The workflow.
    pub workflow: WorkflowName,
    /// What the stage asks for.
    pub agent_type: Capability,
    /// The run's input.
    pub input: Json,
    /// The results of the stages that this one depends on.
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
    /// The trace to go on with; also in the header `traceparent`.
    pub trace: TraceContext,
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

/// It is done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// Lists the agents.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListAgents {
    /// Only agents that can do this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<Capability>,
    /// Only agents whose metadata of that capability has all of this: a list asks for a superset, anything else for the
    /// same value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, Value>,
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

/// What every instance of every service answers on [`subject::status`], leading or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceStatus {
    /// The service.
    pub service: Service,
    /// The instance.
    pub instance: String,
    /// The version of Baton it runs.
    pub version: String,
    /// What it does.
    pub role: Role,
    /// The term it last saw or leads in.
    pub term: u64,
    /// The sequence in the log up to which it has read.
    pub read: u64,
    /// The number of its service's last record.
    pub number: Number,
    /// Requests that it could not read, since it started.
    pub set_aside: u64,
    /// What the broker says, while it stores nothing more: then every request is refused, until there is room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<String>,
    /// Its clock, in milliseconds since 1970.
    pub now: Millis,
    /// When it started.
    pub started_at: Millis,
}

/// What an instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It reads the log from its last snapshot.
    Loading,
    /// It folds along, ready to take over.
    Following,
    /// It decides.
    Leading,
    /// It has no log (the gateway).
    Serving,
}

impl Role {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Following => "following",
            Self::Leading => "leading",
            Self::Serving => "serving",
        }
    }
}

/// What may be asked of the optimizer.
#[derive(Debug, Clone, PartialEq)]
pub enum OptimizerRequest {
    /// See [`SetStrategy`].
    SetStrategy(SetStrategy),
    /// See [`GetPlacement`].
    GetPlacement(GetPlacement),
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
    ];

    fn decode(endpoint: &str, _subject: &str, payload: &[u8]) -> Result<Self, Rejection> {
        Ok(match endpoint {
            "strategy.set" => Self::SetStrategy(body(endpoint, payload)?),
            "placement.get" => Self::GetPlacement(body(endpoint, payload)?),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rejection::Code;

    #[test]
    fn a_request_that_can_not_be_read_says_where() {
        let error =
            WorkflowRequest::decode("run.start", "baton.req.workflow-manager.run.start", b"{\"workflow\": \"A\"}")
                .unwrap_err();
        assert_eq!(error.code, Code::InvalidRequest);
        assert!(error.message.contains("run.start") && error.message.contains("\"A\""), "{error}");
        let error = ResourceRequest::decode("agent.register", "baton.agent.Ann.register", b"{}").unwrap_err();
        assert!(error.message.contains("\"Ann\""), "{error}");
    }

    #[test]
    fn what_nests_too_deep_never_gets_into_the_log() {
        let nested = |levels| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        let register = |levels| {
            let body = format!(
                r#"{{"session": "s", "agent_type": "x", "capabilities": {{"y": {{"a": {}, "b": "[{{\\\"[["}}}}}}"#,
                nested(levels)
            );
            ResourceRequest::decode("agent.register", "baton.agent.ann.register", body.as_bytes())
        };
        register(MAX_JSON_DEPTH - 3).unwrap();
        let error = register(MAX_JSON_DEPTH - 2).unwrap_err();
        assert!(error.message.contains("deeper than 64"), "{error}");
    }

    #[test]
    fn a_report_waits_for_its_lease() {
        let text = br#"{"lease": 17, "task": "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b/a/1", "status": "succeeded", "result": {"x": 1}}"#;
        let request = WorkflowRequest::decode("agent.report", "baton.agent.ann.report", text).unwrap();
        assert_eq!(request.waits_for(), Some(Mark { service: Service::ResourceManager, number: 17 }));
    }

    #[test]
    fn several_reports_wait_for_the_last_of_their_leases() {
        let report = |lease| {
            format!(
                r#"{{"lease": {lease}, "task": "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b/a/1", "status": "succeeded"}}"#
            )
        };
        let text = format!(r#"{{"reports": [{}, {}, {}]}}"#, report(3), report(17), report(5));
        let request = WorkflowRequest::decode("agent.reports", "baton.agent.ann.reports", text.as_bytes()).unwrap();
        assert_eq!(request.waits_for(), Some(Mark { service: Service::ResourceManager, number: 17 }));
    }

    #[test]
    fn every_endpoint_can_be_decoded() {
        fn check<R: Requests>() {
            for endpoint in R::ENDPOINTS {
                let error = R::decode(endpoint.name, "baton.agent.ann.x", b"7").unwrap_err();
                assert!(!error.message.contains("there is no endpoint"), "{}", endpoint.name);
            }
        }
        check::<WorkflowRequest>();
        check::<ResourceRequest>();
        check::<OptimizerRequest>();
    }
}
