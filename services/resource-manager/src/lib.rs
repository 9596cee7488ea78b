//! Who holds what: agents, capacity, leases.
//!
//! The resource-manager owns the registry of agents and the leases that they hold. An [`Assigned`] record *is* a lease:
//! its number is the lease's id and fencing token. The optimizer asks for leases (`lease.assign`); this machine grants
//! all that a task needs, or nothing. Granted work is pushed to the agent once the record is committed, and what a push
//! could not deliver, the next heartbeat heals.
//!
//! # Invariants
//!
//! - The leases of an agent never exceed its slots and resources, at any position of the log.
//! - A task is leased at most once. When its lease ends without a report, the workflow-manager ends the attempt, and the
//!   next attempt is another task: a late report can not be taken for a current one.
//! - No task of a capability is leased to an agent whose breaker for it is open, and while it is half-open no more than its
//!   probes.
//! - A lease ends by exactly one fact: its task ended, its run ended, its agent left or came back in another session, or
//!   it was declined. The first two are facts of the workflow-manager and are not written again here.
//! - Heartbeats are not in the log. What is known of them is known to the leader alone, and a new one starts afresh.
//!
//! # What is deliberately not here
//!
//! The choice of an agent (optimizer), retries and timeouts of tasks (workflow-manager), refilled and consumed
//! resources, locks, alerts.
//!
//! [`Assigned`]: baton_protocol::record::Assigned

mod agent;
mod alert;
mod breaker;
mod lease;
mod task;
#[cfg(test)]
mod tests;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Foreign, Machine, Reply, RequestContext, Turn};
use baton_protocol::record::{AnyCommit, ResourceRecord, Stamp, WorkflowRecord};
use baton_protocol::request::ResourceRequest;
use baton_protocol::{LeaseId, Millis, Service};
use serde::{Deserialize, Serialize};

use crate::agent::{Agents, Heard};
use crate::alert::Alerts;
use crate::breaker::Breakers;
use crate::lease::{Leases, Pushed};
use crate::task::Tasks;

pub use crate::alert::AlertConfig;
pub use crate::breaker::{BreakerConfig, MAX_WINDOW};

/// Who holds what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ResourceManager {
    agents: Agents,
    leases: Leases,
    /// Who is given no tasks of which capability, because it failed too many.
    #[serde(default)]
    breakers: Breakers,
    /// What a person should know of.
    #[serde(default)]
    alerts: Alerts,
    /// What the workflow-manager says: which tasks there are, and what an agent needs to know to do one.
    tasks: Tasks,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// After this long without a heartbeat an agent is lost, and its leases end.
    pub lease_ms: Millis,
    /// How often agents are told to send heartbeats.
    pub heartbeat_ms: Millis,
    /// When an agent is given no more tasks of a capability.
    pub breakers: BreakerConfig,
    /// When alerts are raised.
    pub alerts: AlertConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lease_ms: 10_000,
            heartbeat_ms: 2000,
            breakers: BreakerConfig::default(),
            alerts: AlertConfig::default(),
        }
    }
}

/// What only the leader knows: when agents were last heard of, what was pushed to them.
#[derive(Debug, Default)]
pub struct Soft {
    heard: Heard,
    /// When it last looked at the clock.
    looked: Option<Millis>,
    pushed: Pushed,
}

impl Machine for ResourceManager {
    type Record = ResourceRecord;
    type Request = ResourceRequest;
    type Soft = Soft;
    type Config = Config;

    const FOLLOWS: &'static [Service] = &[Service::WorkflowManager];

    fn apply(&mut self, stamp: Stamp, record: &ResourceRecord) {
        match record {
            ResourceRecord::AgentRegistered(record) => {
                if self.agents.registered(stamp, record) && !is_planted(Bug::OldSessionKeepsLeases) {
                    self.leases.end_all_of(&record.agent);
                    self.breakers.forget(&record.agent);
                }
            }
            ResourceRecord::AgentLeft(record) => {
                self.agents.left(stamp, &record.agent);
                self.leases.end_all_of(&record.agent);
                self.breakers.forget(&record.agent);
            }
            ResourceRecord::Assigned(record) => {
                let lease = LeaseId(stamp.number);
                let holds = self.agents.is_present(&record.agent) && self.tasks.leased(&record.task, lease);
                if holds && !is_planted(Bug::GrantForgotten) {
                    if let Some(open) = self.tasks.open(&record.task) {
                        self.breakers.granted(&record.agent, &open.agent_type, lease);
                    }
                    self.leases.begin(lease, stamp.at, record);
                }
            }
            ResourceRecord::LeaseEnded(record) => {
                self.leases.end(record.lease);
                self.breakers.over(record.lease);
            }
            ResourceRecord::BreakerOpened(record) => self.breakers.opened(record),
            ResourceRecord::BreakerHalfOpened(record) => self.breakers.half_opened(record),
            ResourceRecord::BreakerClosed(record) => self.breakers.closed(record),
            ResourceRecord::AlertRaised(record) => self.alerts.raised(stamp, record),
            ResourceRecord::AlertCleared(record) => self.alerts.cleared(stamp, record),
            ResourceRecord::AlertAcknowledged(record) => self.alerts.acknowledged(stamp, record),
        }
    }

    fn observe(&mut self, stamp: Stamp, record: Foreign<'_>) {
        let record = match record {
            Foreign::Workflow(record) => record,
            Foreign::Resource(_) | Foreign::Optimizer(_) => return,
        };
        match record {
            WorkflowRecord::WorkflowRegistered(record) => self.tasks.workflow_registered(record),
            WorkflowRecord::RunStarted(record) => self.tasks.run_started(record),
            WorkflowRecord::StageReady(record) => self.tasks.stage_ready(stamp, record),
            WorkflowRecord::StageEnded(record) => {
                let capability = self.tasks.open(&record.task).map(|open| open.agent_type.clone());
                let lease = self.tasks.stage_ended(record);
                if let Some(lease) = lease {
                    self.leases.end(lease);
                }
                if let Some(capability) = capability {
                    let there = record.agent.as_ref().is_some_and(|agent| self.agents.is_present(agent));
                    self.breakers.ended(record, &capability, lease, there);
                }
            }
            WorkflowRecord::RunFinished(record) => {
                if let Some(workflow) = self.tasks.workflow_of(record.run) {
                    self.alerts.run_finished(record, workflow);
                }
                for lease in self.tasks.run_finished(record.run) {
                    self.leases.end(lease);
                    self.breakers.over(lease);
                }
            }
        }
    }

    fn react(turn: &mut Turn<'_, Self>, commit: &AnyCommit) {
        agent::look(turn);
        match commit {
            AnyCommit::Workflow(commit) => {
                lease::recall(turn, commit);
                breaker::react(turn, commit);
                alert::react(turn, commit);
            }
            AnyCommit::Resource(_) | AnyCommit::Optimizer(_) => {}
        }
    }

    fn request(turn: &mut Turn<'_, Self>, request: ResourceRequest, _: &RequestContext) -> Reply {
        agent::look(turn);
        match request {
            ResourceRequest::Register(agent, request) => agent::register(turn, agent, request),
            ResourceRequest::Heartbeat(agent, request) => agent::heartbeat(turn, &agent, &request),
            ResourceRequest::Leave(agent, request) => agent::leave(turn, &agent, &request),
            ResourceRequest::ListAgents(request) => agent::list(turn, &request),
            ResourceRequest::Decline(agent, request) => lease::decline(turn, &agent, request),
            ResourceRequest::Progress(agent, request) => lease::progress(turn, agent, request),
            ResourceRequest::Assign(request) => {
                let reply = lease::assign(turn, request);
                alert::look_at_queue(turn);
                reply
            }
            ResourceRequest::ListAlerts(request) => alert::list(turn, &request),
            ResourceRequest::AcknowledgeAlert(request) => alert::acknowledge(turn, request),
        }
    }

    /// It asks nothing of anybody.
    fn answered(_: &mut Turn<'_, Self>, _: u64, _: Reply) {}

    fn lead(turn: &mut Turn<'_, Self>) {
        agent::look(turn);
        agent::begin_term(turn);
        breaker::lead(turn);
        alert::lead(turn);
    }

    fn tick(turn: &mut Turn<'_, Self>) {
        agent::look(turn);
        agent::lose_the_silent(turn);
        breaker::tick(turn);
    }

    fn deadline(&self, soft: &Soft, config: &Config) -> Option<Millis> {
        let silent = soft.heard.oldest().map(|oldest| {
            let lost = oldest.saturating_add(config.lease_ms);
            let look = soft.looked.map(|at| at.saturating_add(config.heartbeat_ms));
            look.map_or(lost, |look| look.min(lost))
        });
        silent.into_iter().chain(self.breakers.deadline()).min()
    }
}
