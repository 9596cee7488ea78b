//! What may be asked of the workflow-manager.

mod operations;
mod schedule;
mod trigger;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Endpoint, Mark, Requests, Strategy, body, endpoint, schema, speaker, unknown_endpoint};
use crate::amount::Money;
use crate::budget::Budget;
use crate::definition::Definition;
use crate::id::{LeaseId, Millis, RunId, Service, TaskId};
use crate::json::Json;
use crate::name::{AgentId, SignalName, StageName, WorkflowName};
use crate::rejection::Rejection;
use crate::run::{Metadata, RunCounts, RunStatus, RunSummary, RunView, StageStatus};
use crate::subject::AgentVerb;
use crate::trace::TraceContext;

pub use operations::*;
pub use schedule::*;
pub use trigger::*;

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
    /// See [`CancelRuns`].
    CancelRuns(CancelRuns),
    /// See [`PauseRun`].
    PauseRun(PauseRun),
    /// See [`ResumeRun`].
    ResumeRun(ResumeRun),
    /// See [`RerunRun`].
    RerunRun(RerunRun),
    /// See [`DecideStage`].
    DecideStage(DecideStage),
    /// See [`SignalRun`].
    SignalRun(SignalRun),
    /// See [`SetSchedule`].
    SetSchedule(Box<SetSchedule>),
    /// See [`PauseSchedule`].
    PauseSchedule(PauseSchedule),
    /// See [`RemoveSchedule`].
    RemoveSchedule(RemoveSchedule),
    /// See [`GetSchedule`].
    GetSchedule(GetSchedule),
    /// See [`ListSchedules`].
    ListSchedules(ListSchedules),
    /// See [`SetTrigger`].
    SetTrigger(Box<SetTrigger>),
    /// See [`RemoveTrigger`].
    RemoveTrigger(RemoveTrigger),
    /// See [`ListTriggers`].
    ListTriggers(ListTriggers),
    /// See [`RaiseEvent`]; by an agent, if one is given.
    RaiseEvent(Option<AgentId>, RaiseEvent),
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
        endpoint("runs.cancel", None, "Cancels runs, some at a time.", schema::<CancelRuns>, schema::<RunsCancelled>),
        endpoint("run.pause", None, "Pauses a run.", schema::<PauseRun>, schema::<RunAccepted>),
        endpoint("run.resume", None, "Lets a paused run go on.", schema::<ResumeRun>, schema::<RunAccepted>),
        endpoint(
            "run.rerun",
            None,
            "Starts a run that repeats another one from a stage on.",
            schema::<RerunRun>,
            schema::<RunAccepted>,
        ),
        endpoint(
            "stage.decide",
            None,
            "Approves or rejects a stage that people decide on.",
            schema::<DecideStage>,
            schema::<StageDecided>,
        ),
        endpoint("run.signal", None, "Gives a run a signal.", schema::<SignalRun>, schema::<SignalStored>),
        endpoint(
            "schedule.set",
            None,
            "Makes a schedule, by which a workflow is started again and again, or changes one.",
            schema::<SetSchedule>,
            schema::<ScheduleView>,
        ),
        endpoint(
            "schedule.pause",
            None,
            "Pauses a schedule, or lets it go on.",
            schema::<PauseSchedule>,
            schema::<ScheduleView>,
        ),
        endpoint("schedule.remove", None, "Removes a schedule.", schema::<RemoveSchedule>, schema::<ScheduleView>),
        endpoint(
            "schedule.get",
            None,
            "Gives a schedule, and when it starts runs next.",
            schema::<GetSchedule>,
            schema::<ScheduleView>,
        ),
        endpoint("schedule.list", None, "Lists the schedules.", schema::<ListSchedules>, schema::<ScheduleList>),
        endpoint(
            "trigger.set",
            None,
            "Makes a trigger, by which events start runs or give them signals, or changes one.",
            schema::<SetTrigger>,
            schema::<TriggerView>,
        ),
        endpoint("trigger.remove", None, "Removes a trigger.", schema::<RemoveTrigger>, schema::<TriggerView>),
        endpoint("trigger.list", None, "Lists the triggers.", schema::<ListTriggers>, schema::<TriggerList>),
        endpoint("event.raise", None, "Raises an event.", schema::<RaiseEvent>, schema::<EventStored>),
        endpoint(
            "agent.raise",
            Some(AgentVerb::Raise),
            "Raises an event, as an agent.",
            schema::<RaiseEvent>,
            schema::<EventStored>,
        ),
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
            "runs.cancel" => Self::CancelRuns(body(endpoint, payload)?),
            "run.pause" => Self::PauseRun(body(endpoint, payload)?),
            "run.resume" => Self::ResumeRun(body(endpoint, payload)?),
            "run.rerun" => Self::RerunRun(body(endpoint, payload)?),
            "stage.decide" => Self::DecideStage(body(endpoint, payload)?),
            "run.signal" => Self::SignalRun(body(endpoint, payload)?),
            "schedule.set" => Self::SetSchedule(Box::new(body(endpoint, payload)?)),
            "schedule.pause" => Self::PauseSchedule(body(endpoint, payload)?),
            "schedule.remove" => Self::RemoveSchedule(body(endpoint, payload)?),
            "schedule.get" => Self::GetSchedule(body(endpoint, payload)?),
            "schedule.list" => Self::ListSchedules(body(endpoint, payload)?),
            "trigger.set" => Self::SetTrigger(Box::new(body(endpoint, payload)?)),
            "trigger.remove" => Self::RemoveTrigger(body(endpoint, payload)?),
            "trigger.list" => Self::ListTriggers(body(endpoint, payload)?),
            "event.raise" => Self::RaiseEvent(None, body(endpoint, payload)?),
            "agent.raise" => Self::RaiseEvent(Some(speaker(subject)?), body(endpoint, payload)?),
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
pub struct ListWorkflows {
    /// Only those whose names begin so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// At most this many; 100 if none is given, 1000 at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only those after this one: the last of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<WorkflowName>,
}

/// The workflows there are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkflowList {
    /// By name.
    pub workflows: Vec<WorkflowSummary>,
    /// Whether there are more after them.
    #[serde(default)]
    pub more: bool,
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
    /// Its first stages, in order: of a workflow of many not all.
    pub stages: Vec<StageName>,
    /// How many stages it has; not said by a service that lists all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage_count: Option<u32>,
    /// When the latest version was registered.
    pub registered_at: Millis,
}

impl WorkflowSummary {
    /// How many stages it has.
    #[must_use]
    pub fn stage_count(&self) -> usize {
        self.stage_count.map_or(self.stages.len(), |count| count as usize)
    }
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
    /// How its tasks are placed; as those of all runs are, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// In how many milliseconds it should have ended. Placement strives for it; nothing ends because of it (that is
    /// `timeout_ms` of the definition).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_ms: Option<Millis>,
    /// What it may cost; as the definition says, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Noted about it, to find it again: at most 16 keys of 1 to 63 bytes with values of at most 255.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: Metadata,
    /// Its stages are done, whatever was done before: no result is used again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
}

impl StartRun {
    /// Starts the latest version of a workflow, with nothing said but the input.
    #[must_use]
    pub fn new(workflow: WorkflowName, input: Json) -> Self {
        Self {
            workflow,
            version: None,
            input,
            priority: 0,
            key: None,
            run: None,
            trace: None,
            strategy: None,
            due_ms: None,
            budget: None,
            metadata: Metadata::new(),
            no_cache: false,
        }
    }
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
    /// Whether it is paused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
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
    /// Only runs that started at that time or later, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Millis>,
    /// Only runs that started before that time, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Millis>,
    /// Only runs with all of this in their metadata.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: Metadata,
    /// Only paused runs, or only others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// Also runs that are a part of another one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub children: bool,
    /// Only those that are a part of this run: that make an attempt at one of its stages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<RunId>,
}

/// Some runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunList {
    /// The newest first.
    pub runs: Vec<RunSummary>,
    /// How many there are in all, by status, since the log began. Those that are a part of another one are not counted.
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

/// Approves or rejects a stage that people decide on. The same decision again is answered the same; another one is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DecideStage {
    /// The run.
    pub run: RunId,
    /// The stage.
    pub stage: StageName,
    /// Whether it is approved.
    pub approved: bool,
    /// Who decides, for those who read the run's history: at most 200 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A stage was decided on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StageDecided {
    /// The run.
    pub run: RunId,
    /// The stage.
    pub stage: StageName,
    /// Whether it is approved.
    pub approved: bool,
    /// Whether it was decided so before this request.
    #[serde(default)]
    pub existing: bool,
}

/// Gives a run a signal: every stage that waits for it, or will, goes on. Of one name a run is given one; the same again is
/// answered the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SignalRun {
    /// The run.
    pub run: RunId,
    /// The signal: some stage of the workflow must name it.
    pub signal: SignalName,
    /// What comes with it: the result of the stages that wait for it.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub payload: Json,
    /// Who gives it, for those who read the run's history: at most 200 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// A signal is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SignalStored {
    /// The run.
    pub run: RunId,
    /// The signal.
    pub signal: SignalName,
    /// Whether it was given before this request.
    #[serde(default)]
    pub existing: bool,
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
    /// What kind of failure it was, in at most 64 bytes: `rate_limited`, `404`. A stage's `retry.non_retryable` may name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Whether another attempt may succeed.
    #[serde(default = "yes")]
    pub retryable: bool,
    /// What it cost.
    #[serde(default)]
    pub cost: Money,
    /// What it used.
    #[serde(default)]
    pub usage: Usage,
    /// The model that it used, if it used one: what was spent is added up by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What others are to do, in place of a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegate: Option<Delegate>,
}

/// Work that an agent hands on: a run is started that does these stages, and what comes of it is the result of the agent's stage,
/// or is given to the next agent that has it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Delegate {
    /// The stages, as in the definition of a workflow: a list of
    /// [`StageDefinition`](crate::definition::StageDefinition).
    #[schemars(with = "Vec<crate::definition::StageDefinition>")]
    pub stages: Json,
    /// What the run is given: a JSON object. The input of the run around it, unless given.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub input: Json,
    /// Whether an agent is to put together what comes of them: then the stage has another task, with all of it, and its result is
    /// that of this task. Otherwise its result is that of the last stages, by their names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub aggregate: bool,
}

/// What came of the stages that were delegated, for the agent that is to put it together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gathered {
    /// The run that did them.
    pub run: RunId,
    /// How it ended.
    pub status: RunStatus,
    /// Why, unless it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The stages, in their order.
    pub stages: Vec<GatheredStage>,
}

/// What came of one stage that was delegated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GatheredStage {
    /// Its name.
    pub name: StageName,
    /// How it ended.
    pub status: StageStatus,
    /// What came of it, if anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
    /// Why its last attempt failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
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
