//! The fold: the state, and what every record makes of it.
//!
//! Every function in here is total. A record that does not fit the state is late, repeated or stale, and does nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{ShelfSet, Shelves};
use baton_protocol::budget::run_of;
use baton_protocol::handoff::HandedOver;
use baton_protocol::pressure::{PressureChanged, PressureLevel};
use baton_protocol::record::{
    AgentLeft, AgentRegistered, Assigned, BudgetRefused, CopyEnded, LeaseEnded, LeftReason, Outcome, PoolSet,
    RunFinished, RunStarted, RunsForgotten, Signalled, StageCached, StageCommitted, StageEnded, StageExpanded,
    StageReady, StageSkipped, StageWaits, Stamp,
};
use baton_protocol::run::{RunCounts, RunStatus};
use baton_protocol::{AgentId, Capability, LeaseId, Millis, RunId, TaskId};
use serde::{Deserialize, Serialize};

use crate::attempt::Attempt;
use crate::cache::{Cache, Entry};
use crate::history::History;
use crate::run::Run;
use crate::schedule::Schedules;
use crate::text;
use crate::trigger::Triggers;
use crate::workflows::{Version, Workflows};

/// The workflow-manager's state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkflowManager {
    pub(crate) workflows: Workflows,
    /// Runs that have not ended.
    pub(crate) runs: Shelves<RunId, Arc<Run>>,
    /// How many of them are a part of others.
    #[serde(default)]
    pub(crate) live_children: usize,
    pub(crate) history: History,
    /// Results that may be used again.
    #[serde(default)]
    pub(crate) cache: Cache,
    /// Idempotency keys of live runs and of those in the history.
    pub(crate) keys: Shelves<String, RunId>,
    /// Runs by status, since the log began; those that run are counted where they are, and those that are a part of others not
    /// at all.
    counts: RunCounts,
    pub(crate) timers: Timers,
    agents: Shelves<AgentId, Arc<Agent>>,
    /// How many agents there are by what they can do.
    able: BTreeMap<Capability, usize>,
    /// Leases of stages that run.
    leases: Shelves<LeaseId, Held>,
    /// Leases of stages that run, though the agent is gone, and why: what is to be reacted to.
    pub(crate) lost: BTreeMap<LeaseId, String>,
    /// Tasks that wait for an agent, and that nobody will pay for, and why: what is to be reacted to.
    #[serde(default)]
    pub(crate) unpaid: BTreeMap<TaskId, String>,
    /// That more is to be done than can be; none: it is not so.
    #[serde(default)]
    pub(crate) pressure: Option<PressureChanged>,
    #[serde(default)]
    pub(crate) schedules: Schedules,
    #[serde(default)]
    pub(crate) triggers: Triggers,
}

/// An agent, as far as the resource-manager's records tell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Agent {
    /// None: it was never seen to register.
    session: Option<String>,
    can: BTreeSet<Capability>,
    holds: BTreeSet<LeaseId>,
}

/// What a lease is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Held {
    agent: AgentId,
    run: RunId,
    stage: usize,
}

/// Deadlines in order: of a run, or of one of its stages. Each has at most one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Timers(ShelfSet<(Millis, RunId, Option<usize>)>);

impl Timers {
    /// When the first one is due.
    pub(crate) fn next(&self) -> Option<Millis> {
        self.0.first().map(|(due, ..)| *due)
    }

    /// The first one that is due.
    pub(crate) fn due(&self, now: Millis) -> Option<(Millis, RunId, Option<usize>)> {
        self.0.first().copied().filter(|(due, ..)| *due <= now)
    }

    pub(crate) fn set(&mut self, run: &mut Run, stage: usize, due: Option<Millis>) {
        let kept = &mut run.stages[stage].due;
        if let Some(old) = kept.take() {
            self.0.remove(&(old, run.id, Some(stage)));
        }
        if let Some(due) = due {
            self.0.insert((due, run.id, Some(stage)));
        }
        *kept = due;
    }
}

/// Takes note of what an agent can do no more, and of what it can do now.
fn count_able(able: &mut BTreeMap<Capability, usize>, could: &BTreeSet<Capability>, can: &BTreeSet<Capability>) {
    for capability in could {
        if let Some(count) = able.get_mut(capability) {
            *count -= 1;
            if *count == 0 {
                able.remove(capability);
            }
        }
    }
    for capability in can {
        *able.entry(capability.clone()).or_default() += 1;
    }
}

impl WorkflowManager {
    /// A live run, and the version of its workflow.
    pub(crate) fn live(&self, run: RunId) -> Option<(&Run, &Version)> {
        let run = self.runs.get(&run)?.as_ref();
        Some((run, self.workflows.version_of(run)?))
    }

    /// A run, live or ended, if it is still here with all its stages.
    pub(crate) fn run(&self, run: RunId) -> Option<(&Run, &Version)> {
        let run = self.runs.get(&run).map(Arc::as_ref).or_else(|| self.history.run(run))?;
        Some((run, self.workflows.version_of(run)?))
    }

    /// The run that a live one is a part of, and that is a part of none itself; or the run.
    pub(crate) fn outermost(&self, run: RunId) -> RunId {
        let around = |run: &RunId| Some(self.runs.get(run)?.parent.as_ref()?.task.run);
        std::iter::successors(Some(run), around).last().unwrap_or(run)
    }

    /// Which stage runs under a lease.
    pub(crate) fn held(&self, lease: LeaseId) -> Option<(RunId, usize)> {
        self.leases.get(&lease).map(|held| (held.run, held.stage))
    }

    /// How many agents are there that can do what a stage asks for.
    pub(crate) fn able(&self, capability: &Capability) -> usize {
        self.able.get(capability).copied().unwrap_or(0)
    }

    /// Runs by status, since the log began.
    pub(crate) fn counts(&self) -> RunCounts {
        let mut counts = self.counts.clone();
        let live = self.live_alone();
        if live > 0 {
            counts.insert(RunStatus::Running, live as u64);
        }
        counts
    }

    /// How many runs are live that are a part of no other.
    pub(crate) fn live_alone(&self) -> usize {
        self.runs.len() - self.live_children
    }

    pub(crate) fn run_started(&mut self, stamp: Stamp, record: &RunStarted) {
        if self.runs.contains_key(&record.run) || self.history.past(record.run).is_some() {
            return;
        }
        let delegated =
            record.parent.as_ref().filter(|_| record.version == 0).and_then(|parent| self.delegated(&parent.task));
        let known = || self.workflows.version(&record.workflow, record.version).cloned();
        let Some(version) = delegated.clone().or_else(known) else { return };
        let mut run = Run::new(stamp, record, &version);
        run.own = delegated;
        if let Some(parent) = &record.parent {
            self.live_children += 1;
            let outermost = self.outermost(parent.task.run);
            if let Some(outermost) = self.runs.change(&outermost) {
                outermost.parts = outermost.parts.saturating_add(1);
            }
            if !self.child_started(stamp, run.id, &parent.task) {
                run.orphaned = Some(format!("task {}, which it was to do, is over", parent.task).into());
            }
        }
        self.timers.0.insert((run.due, run.id, None));
        if let Some(key) = &run.key {
            self.keys.get_or_insert_with(key, || run.id);
            self.schedules.begun(key, run.id);
        }
        self.runs.insert(run.id, Arc::new(run));
    }

    /// What an agent delegated in the attempt before this one.
    fn delegated(&self, task: &TaskId) -> Option<Arc<Version>> {
        let (run, version) = self.live(task.run)?;
        let delegated = run.delegated(run.place(version, task)?)?;
        Some(Arc::new(Version::new(&delegated.definition, run.started_at)))
    }

    /// A run makes an attempt at a stage of another one. Whether that was so.
    fn child_started(&mut self, stamp: Stamp, child: RunId, task: &TaskId) -> bool {
        let Some(run) = self.runs.change(&task.run) else { return false };
        let Some(version) = &self.workflows.of(run) else { return false };
        let Some(place) = run.place(version, task) else { return false };
        let started = run.child_started(stamp.at, place, task.attempt, child, version);
        if started {
            let due = run.until(place, version, stamp.at, run.definition(version, place).timeout_ms);
            self.timers.set(run, place, Some(due));
        }
        started
    }

    pub(crate) fn stage_ready(&mut self, stamp: Stamp, record: &StageReady) {
        let task = &record.task;
        let Some(run) = self.runs.change(&task.run) else { return };
        let Some(version) = &self.workflows.of(run) else { return };
        let Some(place) = run.place(version, task) else { return };
        if run.stage_ready(stamp.at, place, task.attempt, version) {
            run.stages[place].cache = record.cache.as_deref().map(Into::into);
            if record.speculative {
                run.begun_early(place, record.input.clone().unwrap_or_default());
            }
            let due = run.until(place, version, stamp.at, run.definition(version, place).start_timeout_ms);
            self.timers.set(run, place, Some(due).filter(|_| !is_planted(Bug::StartTimerForgotten)));
        }
    }

    pub(crate) fn assigned(&mut self, stamp: Stamp, record: &Assigned) {
        let Assigned { task, agent, resources: _, pools: _, beside } = record;
        let lease = LeaseId(stamp.number);
        let Some(run) = self.runs.change(&task.run) else { return };
        let Some(version) = &self.workflows.of(run) else { return };
        let Some(place) = run.place(version, task) else { return };
        if let Some(first) = *beside {
            // Its time is that of the attempt.
            if run.assigned_beside(stamp.at, place, record, (first, lease)) {
                self.leases.insert(lease, Held { agent: agent.clone(), run: task.run, stage: place });
                Arc::make_mut(self.agents.get_or_insert_with(agent, Arc::default)).holds.insert(lease);
            }
        } else if run.assigned(stamp.at, place, task, agent, lease) {
            self.unpaid.remove(task);
            let due = run.until(place, version, stamp.at, run.definition(version, place).timeout_ms);
            self.timers.set(run, place, Some(due));
            self.leases.insert(lease, Held { agent: agent.clone(), run: task.run, stage: place });
            Arc::make_mut(self.agents.get_or_insert_with(agent, Arc::default)).holds.insert(lease);
        }
    }

    pub(crate) fn stage_ended(&mut self, stamp: Stamp, record: &StageEnded) {
        let task = &record.task;
        let Some(run) = self.runs.change(&task.run) else { return };
        let Some(version) = &self.workflows.of(run) else { return };
        let Some(place) = run.place(version, task) else { return };
        if let Some(given_up) = run.stage_ended(stamp.at, place, record, version) {
            self.unpaid.remove(task);
            let due = match (&mut run.paused, record.retry_at) {
                // That wait begins when the run goes on.
                (Some(paused), Some(at)) => {
                    paused.left.insert(place, at.saturating_sub(stamp.at));
                    None
                }
                (_, at) => at,
            };
            self.timers.set(run, place, due);
            for item in given_up {
                self.timers.set(run, item, None);
            }
            let stage = &mut run.stages[place];
            let key = stage.cache.take();
            let attempt = stage.attempts.last();
            let (leases, child): (Vec<_>, _) =
                attempt.map_or_else(Default::default, |attempt| (attempt.leases().collect(), attempt.child));
            let result = record.result.clone().filter(|_| record.outcome == Outcome::Succeeded);
            if let (Some(key), Some(result)) = (key, result) {
                self.cache.put(key.into(), Entry { result, run: task.run, at: stamp.at });
            }
            for lease in leases {
                self.lease_over(lease);
            }
            if let Some(child) = child.and_then(|child| self.runs.change(&child))
                && !is_planted(Bug::ChildOutlivesStage)
            {
                let why = format!("stage {} of run {}, which it did, ended: {}", task.part(), task.run, record.outcome);
                child.orphaned = Some(why.into());
            }
        }
    }

    pub(crate) fn copy_ended(&mut self, stamp: Stamp, record: &CopyEnded) {
        let task = &record.task;
        let Some(run) = self.runs.change(&task.run) else { return };
        let Some(version) = &self.workflows.of(run) else { return };
        let Some(place) = run.place(version, task) else { return };
        if run.copy_ended(stamp.at, place, record) {
            self.lease_over(record.lease);
        }
    }

    pub(crate) fn stage_cached(&mut self, record: &StageCached) {
        let Some(run) = self.runs.change(&record.run) else { return };
        let Some(version) = &self.workflows.of(run) else { return };
        let Some(place) = version.plan.place(&record.stage) else { return };
        run.stage_cached(place, record, version);
    }

    pub(crate) fn stage_committed(&mut self, record: &StageCommitted) {
        let task = &record.task;
        let Some(run) = self.runs.change(&task.run) else { return };
        let Some(version) = &self.workflows.of(run) else { return };
        let Some(place) = run.place(version, task) else { return };
        if run.stage_committed(place, task.attempt, version)
            && let Some((due, total)) = run.stages[place].due.zip(run.total_due(place, version))
        {
            self.timers.set(run, place, Some(due.min(total)));
        }
    }

    pub(crate) fn stage_skipped(&mut self, record: &StageSkipped) {
        let Some(run) = self.runs.change(&record.run) else { return };
        let Some(version) = &self.workflows.of(run) else { return };
        let Some(place) = version.plan.place(&record.stage) else { return };
        run.stage_skipped(place, record.reason, version);
    }

    pub(crate) fn stage_expanded(&mut self, stamp: Stamp, record: &StageExpanded) {
        let Some(run) = self.runs.change(&record.run) else { return };
        let Some(version) = &self.workflows.of(run) else { return };
        let Some(place) = version.plan.place(&record.stage) else { return };
        let Ok(items) = record.items.read() else { return };
        run.stage_expanded(stamp.at, place, items, version);
    }

    pub(crate) fn stage_waits(&mut self, stamp: Stamp, record: &StageWaits) {
        let Some(run) = self.runs.change(&record.run) else { return };
        let Some(version) = &self.workflows.of(run) else { return };
        let Some(place) = version.plan.place(&record.stage) else { return };
        if run.stage_waits(stamp.at, place, version) {
            let due = stamp.at.saturating_add(version.definition.stages[place].timeout_ms);
            self.timers.set(run, place, Some(due));
        }
    }

    pub(crate) fn signalled(&mut self, record: &Signalled) {
        let Some(run) = self.runs.change(&record.run) else { return };
        let Some(version) = &self.workflows.of(run) else { return };
        run.signalled(record, version);
    }

    pub(crate) fn run_finished(&mut self, stamp: Stamp, record: &RunFinished) {
        let Some(mut shared) = self.runs.remove(&record.run) else { return };
        let run = Arc::make_mut(&mut shared);
        self.timers.0.remove(&(run.due, run.id, None));
        if !self.unpaid.is_empty() {
            self.unpaid.retain(|task, _| task.run != record.run);
        }
        for place in 0..run.stages.len() {
            if run.stages[place].due.is_some() {
                self.timers.set(run, place, None);
            }
        }
        for place in run.attempted() {
            let attempt = run.stages[place].attempts.last();
            for lease in attempt.into_iter().flat_map(Attempt::leases).collect::<Vec<_>>() {
                self.lease_over(lease);
            }
        }
        run.finished(stamp.at, record);
        match &run.parent {
            None => {
                if let Some(version) = self.workflows.version(&run.workflow, run.version) {
                    self.triggers.run_ended(stamp, record, run, version);
                }
                *self.counts.entry(record.status).or_default() += 1;
            }
            Some(parent) => {
                self.live_children = self.live_children.saturating_sub(1);
                if let Some(parent_run) = self.runs.change(&parent.task.run)
                    && let Some(version) = &self.workflows.of(parent_run)
                    && let Some(place) = parent_run.place(version, &parent.task)
                {
                    parent_run.child_finished(place, run);
                }
            }
        }
        let forgotten = self.history.push(shared);
        self.forget_keys(forgotten);
    }

    pub(crate) fn runs_forgotten(&mut self, record: &RunsForgotten) {
        let forgotten = self.history.forget(&record.runs);
        self.forget_keys(forgotten);
    }

    fn forget_keys(&mut self, of: Vec<(RunId, Option<String>)>) {
        for (forgotten, key) in of {
            if let Some(key) = key
                && self.keys.get(&key) == Some(&forgotten)
            {
                self.keys.remove(&key);
            }
        }
    }

    pub(crate) fn agent_registered(&mut self, record: &AgentRegistered) {
        let agent = Arc::make_mut(self.agents.get_or_insert_with(&record.agent, Arc::default));
        let can = record.capabilities.keys().chain([&record.agent_type]).cloned().collect();
        let could = std::mem::replace(&mut agent.can, can);
        count_able(&mut self.able, &could, &agent.can);
        if agent.session.as_ref() != Some(&record.session) {
            agent.session = Some(record.session.clone());
            let ended = std::mem::take(&mut agent.holds);
            self.lose(ended, &format!("agent {} was started again", record.agent));
        }
    }

    pub(crate) fn agent_left(&mut self, record: &AgentLeft) {
        let Some(agent) = self.agents.remove(&record.agent) else { return };
        count_able(&mut self.able, &agent.can, &BTreeSet::new());
        let why = match record.reason {
            LeftReason::Left => format!("agent {} left", record.agent),
            LeftReason::Lost => format!("agent {} was lost: it was not heard of for the time of a lease", record.agent),
        };
        self.lose(agent.holds.iter().copied(), &why);
    }

    pub(crate) fn lease_ended(&mut self, record: &LeaseEnded) {
        let holder = self.agents.change(&record.agent);
        if holder.is_some_and(|agent| agent.holds.remove(&record.lease)) {
            let what = if record.silent { "is given no more time" } else { "gave it back" };
            let why = text::cut(format!("agent {} {what}: {}", record.agent, record.reason), text::MAX_ERROR_BYTES);
            self.lose([record.lease], &why);
        }
    }

    /// The same attempt goes on under another lease. Its time does not begin anew.
    pub(crate) fn handed_over(&mut self, stamp: Stamp, record: &HandedOver) {
        let lease = LeaseId(stamp.number);
        let Some(Held { run, stage, .. }) = self.leases.get(&record.lease).cloned() else { return };
        let Some(run) = self.runs.change(&run) else { return };
        if !run.handed_over(stage, record, lease) {
            return;
        }
        let run = run.id;
        self.lease_over(record.lease);
        self.leases.insert(lease, Held { agent: record.to.clone(), run, stage });
        Arc::make_mut(self.agents.get_or_insert_with(&record.to, Arc::default)).holds.insert(lease);
    }

    pub(crate) fn budget_refused(&mut self, record: &BudgetRefused) {
        let Some(task) = &record.task else { return };
        let Some((run, version)) = self.live(task.run) else { return };
        let Some(place) = run.place(version, task) else { return };
        if run.waits_for_agent(place, task.attempt) {
            self.unpaid.insert(task.clone(), text::cut(record.reason.clone(), text::MAX_ERROR_BYTES));
        }
    }

    pub(crate) fn pressure_changed(&mut self, record: &PressureChanged) {
        self.pressure = (record.level > PressureLevel::None).then(|| record.clone());
    }

    /// The limit of a run is another one from now on: somebody gave it more, or shared out what there is.
    pub(crate) fn pool_set(&mut self, record: &PoolSet) {
        let run = run_of(&record.name).and_then(|run| self.runs.change(&run));
        if let Some(budget) = run.and_then(|run| run.budget.as_mut()).filter(|budget| budget.limit.is_some()) {
            budget.limit = record.pool.size.or(budget.limit);
        }
    }

    fn lose(&mut self, leases: impl IntoIterator<Item = LeaseId>, why: &str) {
        self.lost.extend(leases.into_iter().map(|lease| (lease, why.to_owned())));
    }

    fn lease_over(&mut self, lease: LeaseId) {
        self.lost.remove(&lease);
        let Some(held) = self.leases.remove(&lease) else { return };
        if let Some(agent) = self.agents.change(&held.agent) {
            agent.holds.remove(&lease);
            if agent.session.is_none() && agent.holds.is_empty() {
                self.agents.remove(&held.agent);
            }
        }
    }
}
