//! The workflow-manager: what may run **when**?
//!
//! It owns definitions, runs and stages: it says when a stage may run, and takes the reports of the agents that ran it.
//! Who runs it is not its question: it learns from the resource-manager's records that a stage is assigned, and that an
//! agent is gone.
//!
//! | file | what |
//! |---|---|
//! | `lib.rs` | which word leads where |
//! | [`definition`], [`predefined`], `workflows.rs` | definitions: from text, ready made, all their versions |
//! | `fold.rs` | the state, and what every record makes of it |
//! | `child.rs` | runs that do a stage of another run |
//! | `run.rs`, `attempt.rs` | one run: its stages, what is to be done next; the attempts at them, and who is at each |
//! | `flow.rs`, `expression.rs` | what a definition says of a stage beyond its dependencies; CEL within bounds |
//! | `history.rs` | runs that have ended |
//! | `cache.rs` | results that may be used again |
//! | `pause.rs`, `rerun.rs`, `retention.rs` | runs are paused, repeated from a stage on, forgotten |
//! | `start.rs`, `report.rs`, `word.rs`, `advance.rs` | decisions: a run is asked for, an agent reports, people decide and signal, everything else |
//! | `schedule.rs`, `trigger.rs` | runs that are started by themselves: at certain times, for events |
//! | `view.rs` | runs as they are shown |
//! | `telemetry.rs` | spans and measurements |
//!
//! There is no I/O in here, no clock, no randomness, no `async`, no logging, and nothing knows NATS.
//!
//! # Invariants
//!
//! - A run has exactly one end, and keeps the version of its workflow that it started with.
//! - Of a stage's attempts at most one is open, and only a report under its lease, or under that of a second agent that was
//!   given it as well, gives it a result. So a late report of an old attempt changes nothing.
//! - Where one of two agents that are at an attempt fails or is lost, the attempt goes on with the other.
//! - What began early is taken up only where its agent was given what the stage is given; otherwise nothing of it is left but
//!   what it cost.
//! - Nothing waits for ever: a stage that is ready, running or waiting has a timer, and so has a run.
//! - A run that does a stage of another one is live only while that stage's attempt is under way: it ends in the turn in
//!   which the attempt does, and the attempt in the turn in which it does.
//! - What is decided follows from the fold and the time alone (`Run::next`). So a turn that a crash cut in half is
//!   finished by the next leader.

mod advance;
mod attempt;
mod cache;
mod child;
pub mod definition;
mod expression;
mod flow;
mod fold;
mod history;
mod pause;
pub mod predefined;
mod report;
mod rerun;
mod retention;
mod run;
mod schedule;
mod start;
mod telemetry;
mod text;
mod trigger;
mod view;
mod word;
mod workflows;

#[cfg(test)]
mod tests;

use baton_machine::{Foreign, Machine, Reply, RequestContext, answer};
use baton_protocol::record::{AnyCommit, OptimizerRecord, ResourceRecord, Stamp, WorkflowRecord};
use baton_protocol::request::WorkflowRequest;
use baton_protocol::{Millis, Rejection, Service};
use serde::Serialize;

pub use fold::WorkflowManager;

type Turn<'a> = baton_machine::Turn<'a, WorkflowManager>;

/// What it is told beside the log. Decisions may depend on it, the fold does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How many runs may be live at a time. One more is refused, until one of them ends.
    pub max_live_runs: usize,
    /// How many runs that have ended are listed; of more, the oldest are forgotten. At most 10,000.
    pub keep_ended: usize,
    /// How long a run is listed after its end; 0 for as long as there is room.
    pub keep_ended_ms: Millis,
    /// How long a run is known after its end even if it is one too many: whoever asks twice must find it.
    pub known_ms: Millis,
    /// How many runs may be a part of a run that is a part of none, one within the other or side by side, over its whole life.
    pub max_parts: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_live_runs: 10_000,
            keep_ended: history::MAX_KNOWN,
            keep_ended_ms: 0,
            known_ms: 120_000,
            max_parts: 20_000,
        }
    }
}

/// What only the leader knows.
#[derive(Debug, Default)]
pub struct Soft {
    /// When its term began.
    leads_since: Millis,
    /// Until when no schedule is looked at: runs were refused, since too much is under way.
    schedules_wait: Millis,
    /// The same of triggers.
    triggers_wait: Millis,
    /// Runs that were just started for stages of others, and are to be advanced.
    started: Vec<baton_protocol::RunId>,
}

impl Machine for WorkflowManager {
    type Record = WorkflowRecord;
    type Request = WorkflowRequest;
    type Soft = Soft;
    type Config = Config;

    const FOLLOWS: &'static [Service] = &[Service::ResourceManager];

    fn apply(&mut self, stamp: Stamp, record: &WorkflowRecord) {
        match record {
            WorkflowRecord::WorkflowRegistered(record) => self.workflows.registered(stamp.at, record),
            WorkflowRecord::RunStarted(record) => self.run_started(stamp, record),
            WorkflowRecord::StageReady(record) => self.stage_ready(stamp, record),
            WorkflowRecord::StageEnded(record) => self.stage_ended(stamp, record),
            WorkflowRecord::StageSkipped(record) => self.stage_skipped(record),
            WorkflowRecord::StageExpanded(record) => self.stage_expanded(stamp, record),
            WorkflowRecord::StageWaits(record) => self.stage_waits(stamp, record),
            WorkflowRecord::Signalled(record) => self.signalled(record),
            WorkflowRecord::StageCached(record) => self.stage_cached(record),
            WorkflowRecord::StageCommitted(record) => self.stage_committed(record),
            WorkflowRecord::CopyEnded(record) => self.copy_ended(stamp, record),
            WorkflowRecord::RunFinished(record) => self.run_finished(stamp, record),
            WorkflowRecord::RunPaused(record) => self.run_paused(stamp, record),
            WorkflowRecord::RunResumed(record) => self.run_resumed(stamp, record),
            WorkflowRecord::RunsForgotten(record) => self.runs_forgotten(record),
            WorkflowRecord::ScheduleSet(record) => self.schedules.set(stamp, record),
            WorkflowRecord::ScheduleRemoved(record) => self.schedules.removed(record),
            WorkflowRecord::ScheduleFired(record) => self.schedules.fired(stamp, record),
            WorkflowRecord::TriggerSet(record) => self.triggers.set(stamp, record),
            WorkflowRecord::TriggerRemoved(record) => self.triggers.removed(record),
            WorkflowRecord::EventRaised(record) => self.triggers.raised(stamp, record),
            WorkflowRecord::TriggerFired(record) => self.triggers.fired(stamp, record),
        }
    }

    fn observe(&mut self, stamp: Stamp, record: Foreign<'_>) {
        match record {
            Foreign::Resource(ResourceRecord::AgentRegistered(record)) => self.agent_registered(record),
            Foreign::Resource(ResourceRecord::AgentLeft(record)) => self.agent_left(record),
            Foreign::Resource(ResourceRecord::Assigned(record)) => self.assigned(stamp, record),
            Foreign::Resource(ResourceRecord::LeaseEnded(record)) => self.lease_ended(record),
            Foreign::Resource(ResourceRecord::HandedOver(record)) => self.handed_over(stamp, record),
            Foreign::Resource(ResourceRecord::BudgetRefused(record)) => self.budget_refused(record),
            Foreign::Resource(ResourceRecord::PressureChanged(record)) => self.pressure_changed(record),
            Foreign::Resource(ResourceRecord::PoolSet(record)) => self.pool_set(record),
            Foreign::Resource(
                ResourceRecord::HandoffOffered(_)
                | ResourceRecord::HandoffEnded(_)
                | ResourceRecord::BreakerOpened(_)
                | ResourceRecord::BreakerHalfOpened(_)
                | ResourceRecord::BreakerClosed(_)
                | ResourceRecord::PoolRemoved(_)
                | ResourceRecord::Acquired(_)
                | ResourceRecord::Renewed(_)
                | ResourceRecord::Released(_)
                | ResourceRecord::AlertRaised(_)
                | ResourceRecord::AlertCleared(_)
                | ResourceRecord::AlertAcknowledged(_)
                | ResourceRecord::ApprovalAsked(_),
            )
            | Foreign::Optimizer(
                OptimizerRecord::StrategyChanged(_)
                | OptimizerRecord::LearningImported(_)
                | OptimizerRecord::LearningRateChanged(_),
            )
            | Foreign::Workflow(_) => {}
        }
    }

    fn react(turn: &mut Turn<'_>, _commit: &AnyCommit) {
        advance::give_up_lost(turn);
        advance::give_up_unpaid(turn);
    }

    fn request(turn: &mut Turn<'_>, request: WorkflowRequest, context: &RequestContext) -> Reply {
        match request {
            WorkflowRequest::RegisterWorkflow(request) => reply(workflows::register(turn, &request)),
            WorkflowRequest::ValidateWorkflow(request) => reply(workflows::validate(&request)),
            WorkflowRequest::ListWorkflows(request) => answer(&turn.state().workflows.list(&request)),
            WorkflowRequest::GetWorkflow(request) => reply(turn.state().workflows.get(&request)),
            WorkflowRequest::StartRun(request) => {
                start::check_own(request.key.as_ref())?;
                reply(start::start(turn, request, context))
            }
            WorkflowRequest::GetRun(request) => view::get(turn, request.run),
            WorkflowRequest::ListRuns(request) => answer(&view::list(turn.state(), &request)),
            WorkflowRequest::CancelRun(request) => reply(start::cancel(turn, request)),
            WorkflowRequest::CancelRuns(request) => reply(start::cancel_many(turn, request)),
            WorkflowRequest::PauseRun(request) => reply(pause::pause(turn, request)),
            WorkflowRequest::ResumeRun(request) => reply(pause::resume(turn, &request)),
            WorkflowRequest::DecideStage(request) => reply(word::decide(turn, request)),
            WorkflowRequest::SignalRun(request) => reply(word::signal(turn, request)),
            WorkflowRequest::RerunRun(request) => {
                start::check_own(request.key.as_ref())?;
                reply(rerun::rerun(turn, &request, context))
            }
            WorkflowRequest::SetSchedule(request) => reply(schedule::set(turn, *request)),
            WorkflowRequest::PauseSchedule(request) => reply(schedule::pause(turn, request)),
            WorkflowRequest::RemoveSchedule(request) => reply(schedule::remove(turn, request)),
            WorkflowRequest::GetSchedule(request) => reply(schedule::get(turn, &request)),
            WorkflowRequest::ListSchedules(request) => answer(&schedule::list(turn.state(), &request)),
            WorkflowRequest::SetTrigger(request) => reply(trigger::set(turn, *request)),
            WorkflowRequest::RemoveTrigger(request) => reply(trigger::remove(turn, request)),
            WorkflowRequest::ListTriggers(request) => answer(&trigger::list(turn.state(), &request)),
            WorkflowRequest::RaiseEvent(agent, request) => reply(trigger::raise(turn, agent, request)),
            WorkflowRequest::Report(agent, request) => reply(report::report(turn, &agent, request)),
            WorkflowRequest::Reports(agent, request) => answer(&report::reports(turn, &agent, request)),
        }
    }

    /// It asks nobody anything.
    fn answered(_: &mut Turn<'_>, _: u64, _: Reply) {}

    fn lead(turn: &mut Turn<'_>) {
        turn.soft.leads_since = turn.now();
        predefined::register(turn);
        advance::take_over(turn);
    }

    fn tick(turn: &mut Turn<'_>) {
        advance::tick(turn);
        schedule::fire(turn);
        trigger::fire(turn);
        retention::forget(turn);
    }

    fn deadline(&self, soft: &Soft, config: &Config) -> Option<Millis> {
        let scheduled = schedule::due(self, soft.schedules_wait);
        let triggered = trigger::due(self, soft.triggers_wait);
        self.timers.next().into_iter().chain(retention::due(self, config)).chain(scheduled).chain(triggered).min()
    }

    fn floor(&self) -> Option<u64> {
        retention::floor(self)
    }
}

fn reply<T: Serialize>(result: Result<T, Rejection>) -> Reply {
    answer(&result?)
}
