//! Who should do it: the queue, placement, learning.
//!
//! The optimizer keeps the tasks that are ready in a queue and chooses an agent for each. It grants nothing: it asks the
//! resource-manager (`lease.assign`), whose record is the lease. So whatever is wrong or late in here costs time, never a
//! second lease.
//!
//! # Invariants
//!
//! - A task is in the queue from its *ready* to its *assigned*, or to its end; never longer, never again. While its
//!   run is paused it is not in it.
//! - What is asked for is set aside until the log or a refusal answers: no slot is promised twice.
//! - No task waits while a capable agent has room for it, and none waits for ever behind smaller ones: see
//!   `placement`. Under ADAPTIVE one may wait for a better agent, but not for ever: see `adaptive`.
//! - Of tenants that have the like to do, none is served far ahead of its share: see `tenants`.
//! - Under pressure no task of a low priority is asked for while one that matters more waits, unless it has waited for long.
//! - What was learned follows from the log alone: no setting enters the fold but by a record, and what is in floats comes
//!   of the four operations and the square root, which are exact everywhere; a snapshot gives back exactly what was put in.
//!
//! # What is deliberately not here
//!
//! Leases and capacity as facts (resource-manager), what may run when (workflow-manager).

mod adaptive;
mod ask;
mod capacity;
mod durations;
mod figures;
mod find;
mod fleet;
mod forecast;
mod graph;
mod hold;
mod learning;
mod math;
mod placement;
mod pools;
mod queue;
mod regret;
mod runs;
mod tenants;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Foreign, Machine, Reply, RequestContext, Turn, answer};
use baton_protocol::pressure::{PressureChanged, PressureLevel};
use baton_protocol::record::{
    AnyCommit, Assigned, CopyEnded, LearningImported, LearningRateChanged, OptimizerRecord, Outcome, ResourceRecord,
    StageEnded, StageReady, Stamp, StrategyChanged, WorkflowRecord,
};
use baton_protocol::request::{Done, ImportLearning, Lesson, MAX_LESSONS, OptimizerRequest, Strategy, Subject};
use baton_protocol::{
    AgentId, Code, LeaseId, Millis, Rejection, ResourceName, Resources, RunId, Service, StageName, TaskId,
};
use serde::{Deserialize, Serialize};

use crate::durations::Place;
use crate::figures::Figures;
use crate::fleet::{Breaker, Fleet, Holder};
use crate::graph::Graphs;
use crate::hold::Held;
use crate::learning::{Learned, Learning, Rate};
use crate::pools::Pools;
use crate::queue::{Queue, Queued, Shape};
use crate::runs::{Ended, Finished, Runs};

pub use crate::ask::Soft;

/// Who should do it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    strategy: Strategy,
    queue: Queue,
    fleet: Fleet,
    #[serde(default)]
    graphs: Graphs,
    runs: Runs,
    learning: Learning,
    #[serde(default)]
    figures: Figures,
    #[serde(default)]
    pools: Pools,
    /// How often an agent got free by a record that does not name it.
    unnamed: u64,
    /// That more is to be done than can be; none: it is not so.
    #[serde(default)]
    pressure: Option<PressureChanged>,
    /// Tasks of runs that are paused.
    #[serde(default, skip_serializing_if = "Held::is_empty")]
    held: Held,
}

/// Settings. None enters the fold: instances with different settings would fold the log differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Waiting this long counts as much as one step of priority.
    pub ageing_ms: Millis,
    /// How long what was asked for is set aside when no answer comes.
    pub ask_timeout_ms: Millis,
    /// Whether runs that are due go by their deadlines alone, where placement is ADAPTIVE: as many as possible are in time, and
    /// what is not due waits.
    pub deadlines_first: bool,
    /// How much of a moving average a new sample makes up, in millionths, from 1 to a million. Whoever leads writes it into the log, and
    /// from there on it holds for all.
    pub learning_rate: u32,
    /// The weights of tenants, by name, from 1 to 1000: in proportion to these they share agents. Whoever is not named has 1.
    pub tenants: BTreeMap<String, u32>,
}

impl Default for Config {
    fn default() -> Self {
        let learning_rate = Rate::default().millionths();
        let tenants = BTreeMap::new();
        Self { ageing_ms: 60_000, ask_timeout_ms: 2000, deadlines_first: false, learning_rate, tenants }
    }
}

impl Machine for Optimizer {
    type Record = OptimizerRecord;
    type Request = OptimizerRequest;
    type Soft = Soft;
    type Config = Config;

    const FOLLOWS: &'static [Service] = &[Service::WorkflowManager, Service::ResourceManager];

    fn apply(&mut self, stamp: Stamp, record: &OptimizerRecord) {
        match record {
            OptimizerRecord::StrategyChanged(record) => self.strategy = record.strategy,
            OptimizerRecord::LearningImported(record) => {
                record.lessons.iter().for_each(|lesson| self.import(stamp, lesson));
            }
            OptimizerRecord::LearningRateChanged(record) => self.learning.rate = Rate::of(record.millionths),
        }
    }

    fn observe(&mut self, stamp: Stamp, record: Foreign<'_>) {
        match record {
            Foreign::Workflow(record) => self.observe_workflow(stamp, record),
            Foreign::Resource(record) => self.observe_resource(stamp, record),
            Foreign::Optimizer(_) => {}
        }
    }

    fn react(turn: &mut Turn<'_, Self>, commit: &AnyCommit) {
        if ask::settle(turn, commit) {
            ask::place(turn);
        }
        ask::show(turn);
    }

    fn request(turn: &mut Turn<'_, Self>, request: OptimizerRequest, _: &RequestContext) -> Reply {
        match request {
            OptimizerRequest::SetStrategy(request) => {
                if turn.state().strategy != request.strategy {
                    turn.emit(OptimizerRecord::StrategyChanged(StrategyChanged { strategy: request.strategy }));
                    ask::line_up_all(turn);
                    ask::place(turn);
                }
                answer(&Done {})
            }
            OptimizerRequest::FindAgents(request) => answer(&find::agents(turn.state(), &request)),
            OptimizerRequest::ExplainPlacement(request) => answer(&ask::explain(turn, &request)?),
            OptimizerRequest::PlanCapacity(request) => answer(&capacity::plan(turn.state(), &request)?),
            OptimizerRequest::Advise(request) => answer(&capacity::advise(turn.state(), &request)?),
            OptimizerRequest::ForecastQueue(_) => {
                let (ageing_ms, now) = (turn.config().ageing_ms, turn.now());
                answer(&forecast::forecast(turn.state(), ageing_ms, now))
            }
            OptimizerRequest::GetLearning(request) => answer(&turn.state().learning.page(request.after.as_ref())),
            OptimizerRequest::ImportLearning(request) => {
                import(turn, request)?;
                answer(&Done {})
            }
            OptimizerRequest::GetPlacement(_) => {
                let regret = turn.soft.regret();
                answer(&view::placement(turn.state(), turn.config(), turn.now(), regret))
            }
        }
    }

    fn answered(turn: &mut Turn<'_, Self>, tag: u64, reply: Reply) {
        if ask::answered(turn, tag, reply) {
            ask::place(turn);
        }
    }

    fn lead(turn: &mut Turn<'_, Self>) {
        let millionths = Rate::of(turn.config().learning_rate).millionths();
        if millionths != turn.state().learning.rate.millionths() || is_planted(Bug::LearningRateAgain) {
            turn.emit(OptimizerRecord::LearningRateChanged(LearningRateChanged { millionths }));
        }
        ask::begin(turn);
        ask::place(turn);
        ask::show(turn);
    }

    fn tick(turn: &mut Turn<'_, Self>) {
        ask::expire(turn);
        ask::place(turn);
    }

    fn deadline(&self, soft: &Soft, config: &Config) -> Option<Millis> {
        soft.deadline(config)
    }
}

/// Takes what was learned elsewhere, all of it or nothing.
fn import(turn: &mut Turn<'_, Optimizer>, request: ImportLearning) -> Result<(), Rejection> {
    let ImportLearning { lessons } = request;
    if lessons.len() > MAX_LESSONS {
        let message = format!("there are {} lessons; at most {MAX_LESSONS} are imported at a time", lessons.len());
        return Err(Rejection::new(Code::TooLarge, message));
    }
    for (nth, lesson) in lessons.iter().enumerate() {
        Learning::check(lesson).map_err(|error| {
            Rejection::invalid(format!("lesson {nth}, of {:?}, can not be read: {error}", lesson.of))
        })?;
    }
    if !lessons.is_empty() {
        turn.emit(OptimizerRecord::LearningImported(LearningImported { lessons }));
        ask::learned_elsewhere(turn);
    }
    Ok(())
}

impl Optimizer {
    fn import(&mut self, stamp: Stamp, lesson: &Lesson) {
        self.learning.import(lesson);
        if let Subject::Agent(agent) = &lesson.of {
            self.fleet.scored(agent, self.learning.score(agent));
            if !self.fleet.is_present(agent) {
                self.learning.left(stamp.at, agent);
            }
        }
    }

    fn observe_workflow(&mut self, stamp: Stamp, record: &WorkflowRecord) {
        match record {
            WorkflowRecord::WorkflowRegistered(record) => self.graphs.registered(record.version, &record.definition),
            WorkflowRecord::RunStarted(record) => {
                if let Some(budget) = &record.budget {
                    self.pools.run_started(record.run, budget);
                }
                if self.runs.started(stamp.at, record) {
                    self.graphs.run_started(&record.workflow, record.version);
                }
            }
            WorkflowRecord::StageExpanded(_) | WorkflowRecord::StageWaits(_) | WorkflowRecord::Signalled(_) => {}
            WorkflowRecord::StageReady(record) => self.stage_ready(stamp, record),
            WorkflowRecord::StageEnded(record) => self.stage_ended(stamp, record),
            WorkflowRecord::StageSkipped(record) => self.stage_over(record.run, &record.stage),
            WorkflowRecord::StageCached(record) => self.stage_over(record.run, &record.stage),
            // One that is under way is over when it ends.
            WorkflowRecord::StageCommitted(record) => {
                if !self.runs.is_open(&record.task) {
                    self.stage_over(record.task.run, &record.task.stage);
                }
            }
            WorkflowRecord::CopyEnded(record) => self.copy_ended(stamp, record),
            WorkflowRecord::RunFinished(record) => self.run_finished(stamp, record.run),
            WorkflowRecord::RunPaused(record) => self.run_paused(record.run),
            WorkflowRecord::RunResumed(record) => self.run_resumed(record.run),
            WorkflowRecord::RunsForgotten(_)
            | WorkflowRecord::ScheduleSet(_)
            | WorkflowRecord::ScheduleRemoved(_)
            | WorkflowRecord::ScheduleFired(_)
            | WorkflowRecord::TriggerSet(_)
            | WorkflowRecord::TriggerRemoved(_)
            | WorkflowRecord::EventRaised(_)
            | WorkflowRecord::TriggerFired(_) => {}
        }
    }

    fn observe_resource(&mut self, stamp: Stamp, record: &ResourceRecord) {
        match record {
            ResourceRecord::AgentRegistered(record) => {
                let anew = !self.fleet.has_session(&record.agent, &record.session);
                self.learning.returned(&record.agent, anew);
                let score = self.learning.score(&record.agent);
                self.fleet.registered(stamp, record, score);
                self.pools.touch_all();
            }
            ResourceRecord::AgentLeft(record) => {
                self.fleet.left(&record.agent);
                self.learning.left(stamp.at, &record.agent);
                self.pools.touch_all();
            }
            // A task that has ended as it was leased is not in the queue any more, and its lease is none.
            ResourceRecord::Assigned(record) => {
                let strategy = self.strategy_of(record.task.run);
                if let Some(beside) = record.beside {
                    self.assigned_beside(stamp, record, beside);
                } else if let Some(Queued { shape, since, .. }) = self.dequeue(&record.task)
                    && let Some(holder) = self.fleet.leased(stamp, &shape.agent_type, record, strategy)
                {
                    self.figures.placed(stamp.at.saturating_sub(since));
                    self.runs.held(&record.task, holder, Some(shape));
                }
            }
            // The workflow-manager ends the attempt; the next one is another task.
            ResourceRecord::LeaseEnded(record) => {
                let holder = self.runs.freed(&record.task, record.lease);
                self.freed(stamp, holder.as_deref(), Some(&record.agent));
                self.pools.ended(Some(record.lease), pools_of(holder.as_deref()));
            }
            ResourceRecord::HandedOver(record) => {
                let Some(before) = self.runs.freed(&record.task, record.lease) else { return };
                self.freed(stamp, Some(&before), Some(&record.from));
                let Some(agent_type) = self.runs.agent_type(&record.task).cloned() else { return };
                let (agent, resources) = (record.to.clone(), record.resources.clone());
                let (task, pools) = (record.task.clone(), Resources::new());
                let taken = Assigned { task, agent, resources, pools, beside: None };
                if let Some(mut holder) = self.fleet.leased(stamp, &agent_type, &taken, before.strategy) {
                    // What it holds of pools goes with it.
                    holder.pools.clone_from(&before.pools);
                    self.runs.held(&record.task, holder, before.hedge.clone());
                }
                self.pools.ended(Some(record.lease), &before.pools);
            }
            ResourceRecord::HandoffOffered(_) | ResourceRecord::HandoffEnded(_) => {}
            ResourceRecord::BreakerOpened(record) => {
                self.fleet.switched(&record.agent, &record.capability, Some(Breaker::Open));
            }
            ResourceRecord::BreakerHalfOpened(record) => {
                let probes = Breaker::HalfOpen(record.probes);
                self.fleet.switched(&record.agent, &record.capability, Some(probes));
            }
            ResourceRecord::BreakerClosed(record) => self.fleet.switched(&record.agent, &record.capability, None),
            ResourceRecord::PoolSet(record) => {
                if self.pools.set(record) {
                    self.queue.split_anew(&self.pools);
                }
            }
            ResourceRecord::PoolRemoved(record) => {
                self.pools.remove(&record.name);
                self.queue.split_anew(&self.pools);
            }
            ResourceRecord::Acquired(record) => self.pools.acquired(record),
            ResourceRecord::Renewed(_) | ResourceRecord::ApprovalAsked(_) | ResourceRecord::BudgetRefused(_) => {}
            ResourceRecord::Released(record) => self.pools.touch(&record.pools),
            ResourceRecord::PressureChanged(record) => {
                self.pressure = (record.level > PressureLevel::None).then(|| record.clone());
            }
            ResourceRecord::AlertRaised(_) | ResourceRecord::AlertCleared(_) | ResourceRecord::AlertAcknowledged(_) => {
            }
        }
    }

    fn stage_ready(&mut self, stamp: Stamp, record: &StageReady) {
        if self.runs.stage_ready(record) {
            let (agent_type, requires) = (record.agent_type.clone(), record.requires.clone());
            let (pools, resources) = self.pools.split(&record.resources);
            let shape = Arc::new(Shape { agent_type, requires, resources, pools });
            let near = self.near(record);
            let queued = Queued { shape, priority: record.priority, since: stamp.at, near };
            self.queue.insert(record.task.clone(), queued);
        }
    }

    /// Who did most of what a task builds on.
    fn near(&self, record: &StageReady) -> Option<AgentId> {
        let run = self.runs.get(record.task.run)?;
        let graph = self.graphs.get(&run.workflow, run.version)?;
        run.who_did(record.inputs.iter().filter_map(|stage| graph.place(stage)))
    }

    fn stage_ended(&mut self, stamp: Stamp, record: &StageEnded) {
        // A stage with items is over when it ends as a whole, which nobody was given.
        if record.task.item.is_none() && record.retry_at.is_none() && !record.speculative {
            self.stage_over(record.task.run, &record.task.stage);
        }
        let Some(Ended { run, agent_type, holder, second }) = self.runs.stage_ended(record) else { return };
        let graph = self.graphs.get(&run.workflow, run.version);
        let place = graph.and_then(|graph| Some((graph, graph.place(&record.task.stage)?)));
        if let (Outcome::Succeeded, Some((_, place)), Some(agent)) = (record.outcome, place, &record.agent) {
            run.set_done(place, agent);
        }
        if let Some(agent_type) = &agent_type {
            let node = place.map(|(graph, place)| &graph.stages[place as usize]);
            let place = node.map(|node| Place { workflow: &run.workflow, node, run: run.work });
            let strategy = holder.as_ref().map_or(self.strategy, |holder| holder.strategy);
            let learned = self.learning.stage_ended(&learning::Ended { record, agent_type, place, strategy });
            if let Some(Learned { agent, run: work }) = learned {
                run.work = work.unwrap_or(run.work);
                self.figures.ended(stamp.at, record.outcome == Outcome::Succeeded, record.duration_ms);
                self.fleet.scored(agent, self.learning.score(agent));
                if !self.fleet.is_present(agent) {
                    self.learning.left(stamp.at, agent);
                }
            }
        }
        let other = record.other.as_ref().map(|other| &other.agent);
        for holder in holder.iter().chain(&second) {
            let named = record.agent.as_ref().filter(|agent| **agent == holder.agent).or(other);
            self.freed(stamp, Some(holder), named);
        }
        self.pools.ended(record.lease, pools_of(holder.as_deref()));
        if holder.is_none() {
            self.dequeue(&record.task);
        }
    }

    /// A second agent is given a task that another one has under that lease.
    fn assigned_beside(&mut self, stamp: Stamp, record: &Assigned, beside: LeaseId) {
        let Some(first) = self.runs.holder(&record.task).filter(|first| first.lease == beside) else { return };
        let (Some(shape), strategy) = (first.hedge.clone(), first.strategy) else { return };
        if let Some(second) = self.fleet.leased(stamp, &shape.agent_type, record, strategy) {
            self.runs.held_beside(&record.task, beside, second);
        }
    }

    /// Of two that were at a task, one is at it no more.
    fn copy_ended(&mut self, stamp: Stamp, record: &CopyEnded) {
        let Some(agent_type) = self.runs.agent_type(&record.task).cloned() else { return };
        let holder = self.runs.freed(&record.task, record.lease);
        self.freed(stamp, holder.as_deref(), Some(&record.agent));
        let strategy = holder.as_ref().map_or(self.strategy, |holder| holder.strategy);
        let ended = record.as_ended();
        self.learning.stage_ended(&learning::Ended { record: &ended, agent_type: &agent_type, place: None, strategy });
        self.fleet.scored(&record.agent, self.learning.score(&record.agent));
        if !self.fleet.is_present(&record.agent) {
            self.learning.left(stamp.at, &record.agent);
        }
    }

    /// There is no work left in a stage.
    fn stage_over(&mut self, run: RunId, stage: &StageName) {
        let Some(run) = self.runs.get_mut(run) else { return };
        let graph = self.graphs.get(&run.workflow, run.version);
        if let Some(place) = graph.and_then(|graph| graph.place(stage)) {
            run.set_over(place);
        }
    }

    fn run_finished(&mut self, stamp: Stamp, run: RunId) {
        self.pools.run_finished(run);
        self.held.run_finished(run);
        let Some(Finished { run, open }) = self.runs.finished(run) else { return };
        self.graphs.run_finished(&run.workflow, run.version);
        for (task, holders) in open {
            self.queue.remove(&task);
            for holder in &holders {
                self.freed(stamp, Some(holder), None);
            }
            self.pools.ended(None, pools_of(holders.first().map(Arc::as_ref)));
        }
    }

    /// Where a task stands, if the graph of its workflow is known.
    fn place<'a>(&'a self, task: &TaskId) -> Option<Place<'a>> {
        let run = self.runs.get(task.run)?;
        let graph = self.graphs.get(&run.workflow, run.version)?;
        let place = graph.place(&task.stage)?;
        Some(Place { workflow: &run.workflow, node: &graph.stages[place as usize], run: run.work })
    }

    /// What says which tasks are asked for by nobody, while others wait.
    fn held_back(&self) -> Option<&PressureChanged> {
        let pressure = self.pressure.as_ref()?;
        let held = self.queue.any_from(pressure.below) || is_planted(Bug::HeldBackForEver);
        held.then_some(pressure)
    }

    /// Whether a priority is too low for what is to be done now.
    fn is_low(&self, priority: i32) -> bool {
        self.pressure.as_ref().is_some_and(|pressure| priority < pressure.below)
    }

    /// How the tasks of a run are placed.
    fn strategy_of(&self, run: RunId) -> Strategy {
        self.runs.get(run).and_then(|run| run.strategy).unwrap_or(self.strategy)
    }

    fn freed(&mut self, stamp: Stamp, holder: Option<&Holder>, named: Option<&AgentId>) {
        if let Some(holder) = holder
            && self.fleet.freed(stamp.at, holder)
            && named != Some(&holder.agent)
        {
            self.unnamed += 1;
        }
    }
}

fn pools_of(holder: Option<&Holder>) -> &[ResourceName] {
    holder.map(|holder| holder.pools.as_slice()).unwrap_or_default()
}
