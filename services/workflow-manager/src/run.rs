//! One run: where its stages stand, and what each record makes of them.
//!
//! Nothing in here decides: [`Run::next`] says what is to be done, and [`crate::advance`] does it.

use baton_machine::planted::{Bug, is_planted};
use baton_protocol::definition::OnFailure;
use baton_protocol::record::{Outcome, RunFinished, RunStarted, SkipReason, StageEnded, Stamp};
use baton_protocol::request::Usage;
use baton_protocol::run::{RunStatus, StageStatus};
use baton_protocol::trace::{self, TraceContext};
use baton_protocol::{AgentId, Json, LeaseId, Millis, Money, RunId, TaskId, WorkflowName};
use serde::{Deserialize, Serialize};

use crate::text;
use crate::workflows::Version;

/// How many stages a reason names.
const MAX_BLOCKED: usize = 20;

/// A run, live or ended. Stages are told by their place in the definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) id: RunId,
    pub(crate) workflow: WorkflowName,
    pub(crate) version: u32,
    pub(crate) input: Json,
    pub(crate) priority: i32,
    pub(crate) key: Option<String>,
    /// The trace that its starter brought.
    pub(crate) trace: Option<TraceContext>,
    /// Tells starts apart: see [`fingerprint`].
    pub(crate) fingerprint: u64,
    pub(crate) started_at: Millis,
    pub(crate) first_seq: u64,
    /// When it has taken too long.
    pub(crate) due: Millis,
    pub(crate) status: RunStatus,
    pub(crate) reason: Option<String>,
    pub(crate) ended_at: Option<Millis>,
    pub(crate) stages: Vec<Stage>,
    /// Stages that wait for nothing more, and may run beside others.
    startable: Places,
    /// Stages that wait for nothing more, and run alone.
    startable_alone: Places,
    /// Stages that have begun and are not over.
    open: Places,
    /// How many stages are over.
    pub(crate) over: usize,
    /// The first stage that failed for good, and without which the run can not go on.
    failed: Option<usize>,
    /// The first stage that was cancelled: the run is about to end.
    cancelled: Option<usize>,
    pub(crate) cost: Money,
    pub(crate) usage: Usage,
    /// How long its attempts took together.
    pub(crate) busy_ms: Millis,
}

/// A stage of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stage {
    pub(crate) status: StageStatus,
    /// How many of the stages that it waits for are not over.
    waits_for: usize,
    /// Why it was skipped, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<SkipReason>,
    /// Its timer: when it has waited or run too long, or when its next attempt may start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) due: Option<Millis>,
    /// Never `null`: that reads back as none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Json>,
    pub(crate) attempts: Box<[Attempt]>,
}

/// Places of stages, in order. Few, or taken from the front.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Places(Vec<usize>);

impl Places {
    fn first(&self) -> Option<usize> {
        self.0.first().copied()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn insert(&mut self, place: usize) {
        if let Err(at) = self.0.binary_search(&place) {
            self.0.insert(at, place);
        }
    }

    fn remove(&mut self, place: usize) {
        if let Ok(at) = self.0.binary_search(&place) {
            self.0.remove(at);
        }
    }
}

impl Stage {
    /// Begins an attempt. The most stages have one.
    fn begin(&mut self, at: Millis) {
        let mut attempts = std::mem::take(&mut self.attempts).into_vec();
        attempts.reserve_exact(1);
        attempts.push(Attempt { ready_at: at, ..Attempt::default() });
        self.attempts = attempts.into_boxed_slice();
    }
}

/// An attempt at a stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Attempt {
    pub(crate) ready_at: Millis,
    pub(crate) assigned_at: Option<Millis>,
    pub(crate) agent: Option<AgentId>,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) ended_at: Option<Millis>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<String>,
    pub(crate) duration_ms: Millis,
    pub(crate) cost: Money,
    pub(crate) usage: Usage,
}

/// What is to be done with a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Move {
    /// This stage may begin.
    Begin(usize),
    /// The run is over.
    Finish(RunStatus, Option<String>),
    /// Nothing, until something happens.
    Wait,
}

impl Run {
    pub(crate) fn new(stamp: Stamp, record: &RunStarted, version: &Version) -> Self {
        let stages = version.plan.waits_for.iter().map(|waits_for| Stage {
            status: StageStatus::Pending,
            waits_for: *waits_for,
            skipped: None,
            due: None,
            result: None,
            attempts: Box::default(),
        });
        let mut run = Self {
            id: record.run,
            workflow: record.workflow.clone(),
            version: record.version,
            input: record.input.clone(),
            priority: record.priority,
            key: record.key.clone(),
            trace: record.trace,
            fingerprint: fingerprint(&record.workflow, &record.input),
            started_at: stamp.at,
            first_seq: stamp.seen,
            due: stamp.at.saturating_add(version.definition.timeout_ms),
            status: RunStatus::Running,
            reason: None,
            ended_at: None,
            stages: stages.collect(),
            startable: Places::default(),
            startable_alone: Places::default(),
            open: Places::default(),
            over: 0,
            failed: None,
            cancelled: None,
            cost: Money::ZERO,
            usage: Usage::default(),
            busy_ms: 0,
        };
        for place in 0..run.stages.len() {
            run.release(place, version);
        }
        run
    }

    /// What is to be done now. Depends on nothing but what was folded and the time, so that a successor goes on where
    /// its predecessor was cut off.
    pub(crate) fn next(&self, version: &Version, now: Millis) -> Move {
        let name = |place: usize| &version.definition.stages[place].name;
        if let Some(place) = self.failed {
            let attempts = text::count(self.stages[place].attempts.len(), "attempt");
            let reason = format!("stage {} failed after {attempts}: {}", name(place), self.last_error(place));
            return Move::Finish(RunStatus::Failed, Some(reason));
        }
        if let Some(place) = self.cancelled {
            // Whoever cancelled it could not finish. The stage bears the run's reason.
            let status = if self.due <= now { RunStatus::TimedOut } else { RunStatus::Cancelled };
            return Move::Finish(status, Some(self.last_error(place).to_owned()));
        }
        if self.over == self.stages.len() {
            return Move::Finish(RunStatus::Succeeded, None);
        }
        match self.startable(version) {
            Some(place) => Move::Begin(place),
            None if self.open.is_empty() => {
                Move::Finish(RunStatus::Failed, Some(format!("the run can never go on: {}", self.blocked(version))))
            }
            None => Move::Wait,
        }
    }

    /// The first stage, in the order of the definition, that may begin beside those that are open. One that runs alone
    /// begins when none is open, and holds back all others until it is over.
    fn startable(&self, version: &Version) -> Option<usize> {
        let beside = self.startable.first();
        if is_planted(Bug::AloneIgnored) {
            return beside.into_iter().chain(self.startable_alone.first()).min();
        }
        match self.open.first() {
            Some(open) if !version.definition.stages[open].parallel => None,
            Some(_) => beside,
            None => beside.into_iter().chain(self.startable_alone.first()).min(),
        }
    }

    /// Which stages wait for what, where nothing can go on.
    fn blocked(&self, version: &Version) -> String {
        let mut blocked = Vec::new();
        for (stage, definition) in self.stages.iter().zip(&version.definition.stages) {
            if stage.status == StageStatus::Pending && blocked.len() < MAX_BLOCKED {
                let waits = definition.depends_on.iter().filter(|dependency| {
                    version.plan.place(dependency).is_none_or(|place| !self.stages[place].status.is_end())
                });
                let waits: Vec<_> = waits.map(|dependency| dependency.as_str()).collect();
                blocked.push(format!("stage {} waits for {}", definition.name, waits.join(" and ")));
            }
        }
        blocked.join(", ")
    }

    fn last_error(&self, place: usize) -> &str {
        self.stages[place].attempts.last().and_then(|attempt| attempt.error.as_deref()).unwrap_or("no reason was given")
    }

    /// An attempt at a stage may run. Whether that was so.
    pub(crate) fn stage_ready(&mut self, at: Millis, place: usize, attempt: u32, version: &Version) -> bool {
        let stage = &mut self.stages[place];
        let due = matches!(stage.status, StageStatus::Pending | StageStatus::Waiting);
        if !due || stage.attempts.len() + 1 != attempt as usize {
            return false;
        }
        stage.begin(at);
        stage.status = StageStatus::Ready;
        self.begun(place, version);
        true
    }

    /// An agent has the stage. Whether that was so.
    pub(crate) fn assigned(
        &mut self,
        at: Millis,
        place: usize,
        task: &TaskId,
        agent: &AgentId,
        lease: LeaseId,
    ) -> bool {
        let stage = &mut self.stages[place];
        if stage.status != StageStatus::Ready || stage.attempts.len() != task.attempt as usize {
            return false;
        }
        let Some(attempt) = stage.attempts.last_mut() else { return false };
        attempt.assigned_at = Some(at);
        attempt.agent = Some(agent.clone());
        attempt.lease = Some(lease);
        stage.status = StageStatus::Running;
        true
    }

    /// An attempt is over. Whether that was so.
    pub(crate) fn stage_ended(&mut self, at: Millis, place: usize, record: &StageEnded, version: &Version) -> bool {
        let stage = &mut self.stages[place];
        match stage.status {
            // Something was wrong with it before it could begin.
            StageStatus::Pending | StageStatus::Waiting if stage.attempts.len() + 1 == record.task.attempt as usize => {
                stage.begin(at);
            }
            StageStatus::Ready | StageStatus::Running if stage.attempts.len() == record.task.attempt as usize => {}
            _ => return false,
        }
        let Some(attempt) = stage.attempts.last_mut() else { return false };
        attempt.ended_at = Some(at);
        attempt.outcome = Some(record.outcome);
        attempt.error.clone_from(&record.error);
        attempt.code.clone_from(&record.code);
        attempt.duration_ms = record.duration_ms;
        attempt.cost = record.cost;
        attempt.usage = record.usage;
        stage.result.clone_from(&record.result);
        stage.status = match record.outcome {
            Outcome::Succeeded => StageStatus::Succeeded,
            Outcome::Cancelled => StageStatus::Cancelled,
            Outcome::Failed | Outcome::Lost | Outcome::TimedOut if record.retry_at.is_some() => StageStatus::Waiting,
            Outcome::Failed | Outcome::Lost | Outcome::TimedOut => StageStatus::Failed,
        };
        self.cost = self.cost + record.cost;
        self.usage += record.usage;
        self.busy_ms = self.busy_ms.saturating_add(record.duration_ms);
        self.begun(place, version);
        match self.stages[place].status {
            StageStatus::Pending
            | StageStatus::Ready
            | StageStatus::Running
            | StageStatus::Waiting
            | StageStatus::Skipped => {}
            StageStatus::Cancelled => {
                self.open.remove(place);
                self.cancelled.get_or_insert(place);
            }
            StageStatus::Failed if is_fatal(version, place) => {
                self.open.remove(place);
                self.over += 1;
                self.failed.get_or_insert(place);
            }
            StageStatus::Succeeded | StageStatus::Failed => self.over(place, version),
        }
        true
    }

    /// A stage does not run. Whether that was so.
    pub(crate) fn stage_skipped(&mut self, place: usize, reason: SkipReason, version: &Version) -> bool {
        let stage = &mut self.stages[place];
        if stage.status != StageStatus::Pending || stage.waits_for > 0 {
            return false;
        }
        stage.status = StageStatus::Skipped;
        stage.skipped = Some(reason);
        self.begun(place, version);
        self.over(place, version);
        true
    }

    /// When a wait that began at that time ends: after its own time, or when all attempts have taken too long together.
    pub(crate) fn until(&self, place: usize, version: &Version, at: Millis, wait: Millis) -> Millis {
        let due = at.saturating_add(wait);
        if is_planted(Bug::TotalForgotten) {
            return due;
        }
        self.total_due(place, version).map_or(due, |total| due.min(total))
    }

    /// When all attempts at a stage have taken too long together, if there is such a time.
    pub(crate) fn total_due(&self, place: usize, version: &Version) -> Option<Millis> {
        let total = version.definition.stages[place].total_timeout_ms?;
        Some(self.stages[place].attempts.first()?.ready_at.saturating_add(total))
    }

    /// The run is over: what has not ended never will.
    pub(crate) fn finished(&mut self, at: Millis, record: &RunFinished) {
        self.status = record.status;
        self.reason.clone_from(&record.reason);
        self.ended_at = Some(at);
        for stage in &mut self.stages {
            stage.due = None;
            if !stage.status.is_end() {
                stage.status = StageStatus::Cancelled;
            }
        }
        (self.startable, self.startable_alone, self.open) = Default::default();
    }

    fn begun(&mut self, place: usize, version: &Version) {
        let startable =
            if version.definition.stages[place].parallel { &mut self.startable } else { &mut self.startable_alone };
        startable.remove(place);
        self.open.insert(place);
    }

    /// A stage is over, and those that wait for it may be able to begin.
    fn over(&mut self, place: usize, version: &Version) {
        self.open.remove(place);
        self.over += 1;
        for &dependent in &version.plan.dependents[place] {
            let stage = &mut self.stages[dependent];
            stage.waits_for = stage.waits_for.saturating_sub(1);
            self.release(dependent, version);
        }
    }

    fn release(&mut self, place: usize, version: &Version) {
        let stage = &self.stages[place];
        if stage.waits_for == 0 && stage.status == StageStatus::Pending {
            let alone = !version.definition.stages[place].parallel;
            let startable = if alone { &mut self.startable_alone } else { &mut self.startable };
            startable.insert(place);
        }
    }

    /// The stages that have an attempt under way.
    pub(crate) fn attempted(&self) -> Vec<usize> {
        let under_way = |place: &usize| matches!(self.stages[*place].status, StageStatus::Ready | StageStatus::Running);
        self.open.0.iter().copied().filter(under_way).collect()
    }

    /// Its own span, in its trace.
    pub(crate) fn span(&self) -> TraceContext {
        span(self.id, self.trace)
    }

    /// About how many bytes it takes.
    pub(crate) fn size(&self) -> usize {
        let stage = |stage: &Stage| {
            let attempts = stage.attempts.iter().map(|attempt| 256 + attempt.error.as_ref().map_or(0, String::len));
            64 + stage.result.as_ref().map_or(0, Json::size) + attempts.sum::<usize>()
        };
        512 + self.input.size() + self.stages.iter().map(stage).sum::<usize>()
    }
}

/// Whether a run fails when this stage has failed for good.
fn is_fatal(version: &Version, place: usize) -> bool {
    let stage = &version.definition.stages[place];
    !stage.may_fail() && !is_planted(Bug::FailureSwallowed) && !matches!(stage.on_failure, OnFailure::Fallback(_))
}

/// The span of a run, in the trace that was brought or in its own.
pub(crate) fn span(run: RunId, brought: Option<TraceContext>) -> TraceContext {
    brought.map_or(TraceContext::of_run(run), |brought| brought.at(trace::run_span(run)))
}

/// Tells two starts of one key apart: a hash of what is to be run on what.
///
/// It is kept in snapshots, and so must be the same in every build. Who finds a collision has fooled nobody but himself.
pub(crate) fn fingerprint(workflow: &WorkflowName, input: &Json) -> u64 {
    [workflow.as_str(), input.as_str()].iter().fold(0, |hash, text| {
        text.as_bytes().chunks(8).fold(baton_protocol::id::mix(hash ^ text.len() as u64), |hash, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            baton_protocol::id::mix(hash ^ u64::from_le_bytes(word))
        })
    })
}
