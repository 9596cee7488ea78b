//! Who should do it: the queue, placement, learning.
//!
//! The optimizer keeps the tasks that are ready in a queue and chooses an agent for each. It grants nothing: it asks the
//! resource-manager (`lease.assign`), whose record is the lease. So whatever is wrong or late in here costs time, never a
//! second lease.
//!
//! # Invariants
//!
//! - A task is in the queue from its *ready* to its *assigned*, or to its end; never longer, never again.
//! - What is asked for is set aside until the log or a refusal answers: no slot is promised twice.
//! - No task waits while a capable agent has room for it, and none waits for ever behind smaller ones: see
//!   `placement`.
//! - What was learned follows from the log alone: no setting enters the fold, and all of it is in integers, so that a
//!   snapshot gives back exactly what was put in.
//!
//! # What is deliberately not here
//!
//! Leases and capacity as facts (resource-manager), what may run when (workflow-manager). There is one writer of
//! strategies and one strategy for all runs so far.

mod ask;
mod find;
mod fleet;
mod learning;
mod placement;
mod queue;
mod runs;
#[cfg(test)]
mod tests;
mod view;

use baton_machine::{Foreign, Machine, Reply, RequestContext, Turn, answer};
use baton_protocol::record::{
    AnyCommit, OptimizerRecord, ResourceRecord, StageEnded, StageReady, Stamp, StrategyChanged, WorkflowRecord,
};
use baton_protocol::request::{Done, OptimizerRequest, Strategy};
use baton_protocol::{AgentId, Millis, RunId, Service};
use serde::{Deserialize, Serialize};

use crate::fleet::{Breaker, Fleet, Holder};
use crate::learning::Learning;
use crate::queue::{Queue, Queued, Shape};
use crate::runs::Runs;

pub use crate::ask::Soft;

/// Who should do it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    strategy: Strategy,
    queue: Queue,
    fleet: Fleet,
    runs: Runs,
    learning: Learning,
    /// How often an agent got free by a record that does not name it.
    unnamed: u64,
}

/// Settings. How fast is learned is not among them: instances with different settings would fold the log differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Waiting this long counts as much as one step of priority.
    pub ageing_ms: Millis,
    /// How long what was asked for is set aside when no answer comes.
    pub ask_timeout_ms: Millis,
}

impl Default for Config {
    fn default() -> Self {
        Self { ageing_ms: 60_000, ask_timeout_ms: 2000 }
    }
}

impl Machine for Optimizer {
    type Record = OptimizerRecord;
    type Request = OptimizerRequest;
    type Soft = Soft;
    type Config = Config;

    const FOLLOWS: &'static [Service] = &[Service::WorkflowManager, Service::ResourceManager];

    fn apply(&mut self, _: Stamp, record: &OptimizerRecord) {
        match record {
            OptimizerRecord::StrategyChanged(record) => self.strategy = record.strategy,
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
        ask::show_queue(turn);
    }

    fn request(turn: &mut Turn<'_, Self>, request: OptimizerRequest, _: &RequestContext) -> Reply {
        match request {
            OptimizerRequest::SetStrategy(request) => {
                if turn.state().strategy != request.strategy {
                    turn.emit(OptimizerRecord::StrategyChanged(StrategyChanged { strategy: request.strategy }));
                }
                answer(&Done {})
            }
            OptimizerRequest::FindAgents(request) => answer(&find::agents(turn.state(), &request)),
            OptimizerRequest::GetPlacement(_) => answer(&view::placement(turn.state(), turn.config(), turn.now())),
        }
    }

    fn answered(turn: &mut Turn<'_, Self>, tag: u64, reply: Reply) {
        if ask::answered(turn, tag, reply) {
            ask::place(turn);
        }
    }

    fn lead(turn: &mut Turn<'_, Self>) {
        ask::begin(turn);
        ask::place(turn);
        ask::show_queue(turn);
    }

    fn tick(turn: &mut Turn<'_, Self>) {
        ask::expire(turn);
        ask::place(turn);
    }

    fn deadline(&self, soft: &Soft, config: &Config) -> Option<Millis> {
        soft.deadline(config)
    }
}

impl Optimizer {
    fn observe_workflow(&mut self, stamp: Stamp, record: &WorkflowRecord) {
        match record {
            WorkflowRecord::WorkflowRegistered(_) => {}
            WorkflowRecord::RunStarted(record) => self.runs.started(record),
            WorkflowRecord::StageReady(record) => self.stage_ready(stamp, record),
            WorkflowRecord::StageEnded(record) => self.stage_ended(stamp, record),
            WorkflowRecord::RunFinished(record) => self.run_finished(stamp, record.run),
        }
    }

    fn observe_resource(&mut self, stamp: Stamp, record: &ResourceRecord) {
        match record {
            ResourceRecord::AgentRegistered(record) => {
                self.learning.returned(&record.agent);
                let score = self.learning.score(&record.agent);
                self.fleet.registered(stamp, record, score);
            }
            ResourceRecord::AgentLeft(record) => {
                self.fleet.left(&record.agent);
                self.learning.left(stamp.at, &record.agent);
            }
            // A task that has ended as it was leased is not in the queue any more, and its lease is none.
            ResourceRecord::Assigned(record) => {
                if let Some(Queued { shape, .. }) = self.queue.remove(&record.task)
                    && let Some(holder) = self.fleet.leased(&record.agent, &shape.agent_type, &record.resources)
                {
                    self.runs.held(&record.task, holder);
                }
            }
            // The workflow-manager ends the attempt; the next one is another task.
            ResourceRecord::LeaseEnded(record) => {
                let holder = self.runs.freed(&record.task);
                self.freed(stamp, holder.as_deref(), Some(&record.agent));
            }
            ResourceRecord::BreakerOpened(record) => {
                self.fleet.switched(&record.agent, &record.capability, Some(Breaker::Open));
            }
            ResourceRecord::BreakerHalfOpened(record) => {
                let probes = Breaker::HalfOpen(record.probes);
                self.fleet.switched(&record.agent, &record.capability, Some(probes));
            }
            ResourceRecord::BreakerClosed(record) => self.fleet.switched(&record.agent, &record.capability, None),
            ResourceRecord::AlertRaised(_) | ResourceRecord::AlertCleared(_) | ResourceRecord::AlertAcknowledged(_) => {
            }
        }
    }

    fn stage_ready(&mut self, stamp: Stamp, record: &StageReady) {
        if self.runs.stage_ready(&record.task) {
            let (agent_type, requires) = (record.agent_type.clone(), record.requires.clone());
            let shape = Shape { agent_type, requires, resources: record.resources.clone() };
            self.queue.insert(record.task.clone(), shape, record.priority, stamp.at);
        }
    }

    fn stage_ended(&mut self, stamp: Stamp, record: &StageEnded) {
        let Some(ended) = self.runs.stage_ended(record) else { return };
        self.freed(stamp, ended.holder.as_deref(), record.agent.as_ref());
        if ended.holder.is_none() {
            self.queue.remove(&record.task);
        }
        if let Some(agent) = self.learning.stage_ended(&ended.workflow, record) {
            self.fleet.scored(agent, self.learning.score(agent));
            if !self.fleet.is_present(agent) {
                self.learning.left(stamp.at, agent);
            }
        }
    }

    fn run_finished(&mut self, stamp: Stamp, run: RunId) {
        for (task, holder) in self.runs.finished(run) {
            self.queue.remove(&task);
            self.freed(stamp, holder.as_deref(), None);
        }
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
