//! Who holds what: agents, capacity, leases, pools.
//!
//! The resource-manager owns the registry of agents and the leases that they hold. An [`Assigned`] record *is* a lease:
//! its number is the lease's id and fencing token. The optimizer asks for leases (`lease.assign`); this machine grants
//! all that a task needs, or nothing. Granted work is pushed to the agent once the record is committed, and what a push
//! could not deliver, the next heartbeat heals.
//!
//! # Invariants
//!
//! - The leases of an agent never exceed its slots and resources, at any position of the log.
//! - A task is leased at most once, and to a second agent beside the first where its stage says so and nothing is taken of
//!   pools. When its lease ends without a report, the workflow-manager ends the attempt, and the
//!   next attempt is another task: a late report can not be taken for a current one. A task that is handed over gets another
//!   lease in the record that ends the first one: it has one holder at every position of the log.
//! - No task of a capability is leased to an agent whose breaker for it is open, and while it is half-open no more than its
//!   probes.
//! - Under pressure no task of a low priority is leased while one that matters more waits, unless it has waited for long.
//! - A lease ends by exactly one fact: its task ended, its run ended, its agent left or came back in another session, or
//!   it was declined. The first two are facts of the workflow-manager and are not written again here.
//! - No more of a pool is held than it has, at any position of the log; what somebody has alone nobody else has. What is
//!   acquired ends by exactly one fact too: it was given back, its time was up, the task that it was for ended, or its
//!   agent left or came back in another session.
//! - Heartbeats are not in the log. What is known of them is known to the leader alone, and a new one starts afresh.
//!
//! # What is deliberately not here
//!
//! The choice of an agent (optimizer), retries and timeouts of tasks (workflow-manager), who is told of alerts, and how
//! (gateway).
//!
//! | file | what |
//! |---|---|
//! | `agent.rs` | agents: the registry, heartbeats |
//! | `lease.rs`, `task.rs` | tasks, and the leases on them |
//! | `pool.rs` | pools, and what is held of them |
//! | `usage.rs` | how much of each pool is used, and what is said of it |
//! | `acquire.rs`, `waiting.rs` | decisions about pools, and who waits for them |
//! | `budget.rs`, `share.rs`, `spending.rs` | money: limits, shares, what it went for |
//! | `pressure.rs` | what waits when more is to be done than can be |
//!
//! [`Assigned`]: baton_protocol::record::Assigned

mod acquire;
mod agent;
mod alert;
mod breaker;
mod budget;
mod handoff;
mod lease;
mod pool;
mod pressure;
mod share;
mod silence;
mod spending;
mod task;
#[cfg(test)]
mod tests;
mod usage;
mod waiting;

use std::collections::BTreeMap;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Foreign, Machine, Reply, RequestContext, Turn};
use baton_protocol::budget::agent_account;
use baton_protocol::handoff::HandedOver;
use baton_protocol::record::{AnyCommit, CopyEnded, ResourceRecord, StageEnded, Stamp, WorkflowRecord};
use baton_protocol::request::ResourceRequest;
use baton_protocol::{AgentId, LeaseId, Millis, Pool, ResourceName, Service};
use serde::{Deserialize, Serialize};

use crate::agent::{Agents, Heard};
use crate::alert::Alerts;
use crate::breaker::Breakers;
use crate::budget::Balances;
use crate::handoff::Handoffs;
use crate::lease::{Leases, Pushed};
use crate::pool::Pools;
use crate::pressure::{Drain, Pressure};
use crate::silence::Silences;
use crate::spending::Spending;
use crate::task::Tasks;
use crate::waiting::Waiting;

pub use crate::alert::AlertConfig;
pub use crate::breaker::{BreakerConfig, MAX_WINDOW};
pub use crate::pressure::{PressureConfig, PressureLimits};

/// Who holds what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ResourceManager {
    agents: Agents,
    leases: Leases,
    /// Who is given no tasks of which capability, because it failed too many.
    #[serde(default)]
    breakers: Breakers,
    #[serde(default)]
    pools: Pools,
    /// What a person should know of.
    #[serde(default)]
    alerts: Alerts,
    /// Tasks that their holders offer to others.
    #[serde(default)]
    handoffs: Handoffs,
    #[serde(default)]
    spending: Spending,
    #[serde(default)]
    pressure: Pressure,
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
    /// Pools that each leader makes, or changes to this, when its term begins.
    pub pools: BTreeMap<ResourceName, Pool>,
    /// When alerts are raised.
    pub alerts: AlertConfig,
    /// When there is pressure, and what waits then.
    pub pressure: PressureConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lease_ms: 10_000,
            heartbeat_ms: 2000,
            breakers: BreakerConfig::default(),
            pools: BTreeMap::new(),
            alerts: AlertConfig::default(),
            pressure: PressureConfig::default(),
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
    waiting: Waiting,
    /// By when something must be heard of which tasks.
    silences: Silences,
    /// When what is left of which accounts is shared out again.
    balances: Balances,
    /// Nothing that is held of pools expires before this time: nobody could renew while there was no leader.
    nothing_expires_before: Millis,
    drain: Drain,
}

impl Soft {
    /// When what is held until then may end.
    fn may_expire(&self, at: Millis) -> Millis {
        at.max(self.nothing_expires_before)
    }
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
                    self.end_all_of(stamp.at, &record.agent);
                    self.breakers.forget(&record.agent);
                }
            }
            ResourceRecord::AgentLeft(record) => {
                self.agents.left(stamp, &record.agent);
                self.end_all_of(stamp.at, &record.agent);
                self.breakers.forget(&record.agent);
            }
            ResourceRecord::Assigned(record) => {
                let lease = LeaseId(stamp.number);
                let holds = self.agents.is_present(&record.agent)
                    && match record.beside {
                        None => self.tasks.leased(&record.task, lease),
                        Some(first) => self.tasks.leased_beside(&record.task, first, lease),
                    };
                if holds && !is_planted(Bug::GrantForgotten) {
                    if let Some(open) = self.tasks.open(&record.task) {
                        self.breakers.granted(&record.agent, &open.agent_type, lease);
                    }
                    self.leases.begin(lease, stamp.at, record);
                    if !record.pools.is_empty() {
                        let takes = pool::takes(&record.pools);
                        self.pools.take(&takes, stamp.at);
                        self.pools.forget_wishes(&record.task, &takes);
                    }
                }
            }
            ResourceRecord::LeaseEnded(record) => {
                self.end(stamp.at, record.lease, None);
                self.breakers.over(record.lease);
            }
            ResourceRecord::HandoffOffered(record) => self.handoffs.offered(stamp, record),
            ResourceRecord::HandedOver(record) => self.handed_over(stamp, record),
            ResourceRecord::HandoffEnded(record) => {
                self.handoffs.over(record.handoff);
            }
            ResourceRecord::BreakerOpened(record) => self.breakers.opened(stamp.at, record),
            ResourceRecord::BreakerHalfOpened(record) => self.breakers.half_opened(record),
            ResourceRecord::BreakerClosed(record) => self.breakers.closed(record),
            ResourceRecord::PoolSet(record) => self.pools.set(stamp, record),
            ResourceRecord::PoolRemoved(record) => self.pools.remove(&record.name),
            ResourceRecord::Acquired(record) => self.pools.acquired(LeaseId(stamp.number), stamp.at, record),
            ResourceRecord::Renewed(record) => self.pools.renewed(stamp.at, record),
            ResourceRecord::Released(record) => self.pools.released(stamp.at, record),
            ResourceRecord::AlertRaised(record) => {
                let forgotten = self.alerts.raised(stamp, record);
                if record.kind.is_of_pool() {
                    self.pools.said(stamp.at, &record.about, Some(record.severity));
                }
                if let Some(forgotten) = forgotten.filter(|forgotten| forgotten.kind.is_of_pool()) {
                    self.pools.forgotten(stamp.at, &forgotten.about);
                }
            }
            ResourceRecord::AlertCleared(record) => {
                if self.alerts.cleared(stamp, record) && record.kind.is_of_pool() {
                    self.pools.said(stamp.at, &record.about, None);
                }
            }
            ResourceRecord::AlertAcknowledged(record) => self.alerts.acknowledged(stamp, record),
            ResourceRecord::ApprovalAsked(record) => self.pools.approval_asked(stamp.at, record),
            ResourceRecord::BudgetRefused(record) => {
                self.pools.refused(record);
                if let Some(task) = &record.task {
                    self.tasks.refused(task);
                }
            }
            ResourceRecord::PressureChanged(record) => self.pressure.changed(stamp, record),
        }
    }

    fn observe(&mut self, stamp: Stamp, record: Foreign<'_>) {
        let record = match record {
            Foreign::Workflow(record) => record,
            Foreign::Resource(_) | Foreign::Optimizer(_) => return,
        };
        match record {
            WorkflowRecord::WorkflowRegistered(record) => self.tasks.workflow_registered(record),
            WorkflowRecord::RunStarted(record) => {
                self.tasks.run_started(record);
                if let Some(budget) = &record.budget {
                    self.pools.run_started(stamp.at, record.run, budget);
                }
            }
            WorkflowRecord::StageReady(record) => self.tasks.stage_ready(stamp, record),
            WorkflowRecord::StageEnded(record) => {
                let open = self.tasks.open(&record.task);
                let capability = open.map(|open| open.agent_type.clone());
                if let Some(open) = open.filter(|open| !self.pools.is_empty() && !open.resources.is_empty()) {
                    let (of_pools, _) = self.pools.split(&open.resources);
                    self.pools.forget_wishes(&record.task, &pool::takes(&of_pools));
                }
                if let Some(agent) = record.agent.as_ref().filter(|_| capability.is_some() && !self.pools.is_empty())
                    && self.pools.get(&agent_account(agent)).is_some()
                {
                    self.spending.worked(stamp.at, agent);
                }
                if let Some(workflow) = self.tasks.workflow_of(record.task.run).filter(|_| capability.is_some()) {
                    self.spending.ended(workflow, record);
                }
                let open = self.tasks.stage_ended(record);
                let leases = open.as_ref().map(|open| (open.lease, open.second)).unwrap_or_default();
                // The one that it was reported under, if it was under one of them.
                let (lease, other) = match leases {
                    (first, Some(second)) if record.lease == Some(second) => (Some(second), first),
                    leases => leases,
                };
                if let Some(lease) = lease {
                    self.end(stamp.at, lease, Some(record));
                }
                if let Some(other) = other.filter(|_| !is_planted(Bug::CopyOutlives)) {
                    self.end(stamp.at, other, None);
                    self.breakers.over(other);
                }
                if let Some(capability) = capability {
                    let there = record.agent.as_ref().is_some_and(|agent| self.agents.is_present(agent));
                    self.breakers.ended(record, &capability, lease, there);
                }
            }
            WorkflowRecord::StageExpanded(record) => self.tasks.stage_expanded(record),
            WorkflowRecord::RunPaused(record) => self.tasks.run_paused(record.run),
            WorkflowRecord::RunResumed(record) => self.tasks.run_resumed(record.run),
            WorkflowRecord::StageWaits(record) => self.tasks.stage_waits(record),
            WorkflowRecord::StageCached(record) => self.tasks.stage_cached(record),
            WorkflowRecord::StageCommitted(record) => self.tasks.stage_committed(record),
            WorkflowRecord::CopyEnded(record) => self.copy_ended(stamp, record),
            WorkflowRecord::StageSkipped(_)
            | WorkflowRecord::Signalled(_)
            | WorkflowRecord::RunsForgotten(_)
            | WorkflowRecord::ScheduleSet(_)
            | WorkflowRecord::ScheduleRemoved(_)
            | WorkflowRecord::ScheduleFired(_)
            | WorkflowRecord::TriggerSet(_)
            | WorkflowRecord::TriggerRemoved(_)
            | WorkflowRecord::EventRaised(_)
            | WorkflowRecord::TriggerFired(_) => {}
            WorkflowRecord::RunFinished(record) => {
                if let Some(workflow) = self.tasks.workflow_of(record.run)
                    && !self.tasks.is_part(record.run)
                {
                    self.alerts.run_finished(record, workflow);
                }
                for lease in self.tasks.run_finished(record.run) {
                    self.end(stamp.at, lease, None);
                    self.breakers.over(lease);
                }
                self.pools.run_finished(record.run);
            }
        }
    }

    fn react(turn: &mut Turn<'_, Self>, commit: &AnyCommit) {
        agent::look(turn);
        match commit {
            AnyCommit::Workflow(commit) => {
                lease::recall(turn, commit);
                breaker::react(turn, commit);
                alert::react(turn);
            }
            AnyCommit::Resource(_) | AnyCommit::Optimizer(_) => {}
        }
        settle(turn);
    }

    fn request(turn: &mut Turn<'_, Self>, request: ResourceRequest, _: &RequestContext) -> Reply {
        agent::look(turn);
        let reply = match request {
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
            ResourceRequest::OfferHandoff(agent, request) => handoff::offer(turn, &agent, request),
            ResourceRequest::AcknowledgeHandoff(agent, request) => handoff::acknowledge(turn, &agent, request),
            ResourceRequest::AskHandoff(request) => handoff::ask(turn, request),
            ResourceRequest::ListAlerts(request) => alert::list(turn, &request),
            ResourceRequest::AcknowledgeAlert(request) => alert::acknowledge(turn, request),
            ResourceRequest::GetPressure(_) => pressure::get(turn),
            ResourceRequest::SetPool(request) => acquire::set_pool(turn, request),
            ResourceRequest::SharePool(request) => budget::share(turn, request),
            ResourceRequest::ApproveBudget(request) => budget::approve(turn, request),
            ResourceRequest::DenyBudget(request) => budget::deny(turn, request),
            ResourceRequest::GetSpending(request) => budget::spending(turn, &request),
            ResourceRequest::RemovePool(request) => acquire::remove_pool(turn, request),
            ResourceRequest::ListPools(request) => acquire::list_pools(turn, &request),
            ResourceRequest::Acquire(agent, request) => acquire::acquire(turn, agent, &request),
            ResourceRequest::Renew(agent, request) => acquire::renew(turn, agent.as_ref(), &request),
            ResourceRequest::Release(agent, request) => acquire::release(turn, agent.as_ref(), request),
            ResourceRequest::ListLeases(request) => acquire::list_leases(turn, &request),
        };
        settle(turn);
        reply
    }

    /// It asks nothing of anybody.
    fn answered(_: &mut Turn<'_, Self>, _: u64, _: Reply) {}

    fn lead(turn: &mut Turn<'_, Self>) {
        agent::look(turn);
        agent::begin_term(turn);
        silence::lead(turn);
        breaker::lead(turn);
        acquire::declare(turn);
        budget::lead(turn);
        alert::lead(turn);
        pressure::lead(turn);
    }

    fn tick(turn: &mut Turn<'_, Self>) {
        agent::look(turn);
        agent::lose_the_silent(turn);
        silence::tick(turn);
        breaker::tick(turn);
        acquire::tick(turn);
        handoff::tick(turn);
        budget::tick(turn);
        settle(turn);
    }

    fn deadline(&self, soft: &Soft, config: &Config) -> Option<Millis> {
        let lost = soft.heard.oldest().map(|at| at.saturating_add(config.lease_ms));
        let expiry = self.pools.next_expiry().map(|(at, _)| soft.may_expire(at));
        // Whoever waits for something to end must look at the clock in the meantime: time that goes by without a look counts as
        // slept, and puts the end off.
        let silent = soft.silences.deadline();
        let look = lost.or(expiry).or(silent).and(soft.looked).map(|at| at.saturating_add(config.heartbeat_ms));
        let waits =
            [soft.waiting.deadline(), self.breakers.deadline(), self.handoffs.deadline(), self.pressure.deadline()];
        let (told, shared) = (alert::deadline(self, config), soft.balances.deadline());
        [lost, look, expiry, silent, told, shared].into_iter().chain(waits).flatten().min()
    }
}

/// What follows from whatever was done: who waits may be served, and people may have to be told.
fn settle(turn: &mut Turn<'_, ResourceManager>) {
    acquire::serve(turn);
    alert::look_at_pools(turn);
    pressure::look(turn);
}

impl ResourceManager {
    /// A task's lease ends, and with it what was acquired under it. What it took of consumed pools is used as its report says.
    fn end(&mut self, at: Millis, lease: LeaseId, report: Option<&StageEnded>) {
        self.handoffs.lease_over(lease);
        let Some(ended) = self.leases.end(lease) else { return };
        // What was acquired besides is free again before the task's own is settled: it may have been money for the same.
        self.pools.end_under(at, lease);
        if !ended.pools.is_empty() {
            self.pools.give_back(&pool::takes(&ended.pools), at, |pool, taken| pool::used(report?, pool, taken));
        }
    }

    /// Of two that were at a task, one is at it no more, and the other one goes on.
    fn copy_ended(&mut self, stamp: Stamp, record: &CopyEnded) {
        let capability = self.tasks.open(&record.task).map(|open| open.agent_type.clone());
        let (Some(capability), true) = (capability, self.tasks.copy_ended(&record.task, record.lease)) else { return };
        let ended = record.as_ended();
        if let Some(workflow) = self.tasks.workflow_of(record.task.run) {
            self.spending.ended(workflow, &ended);
        }
        self.end(stamp.at, record.lease, Some(&ended));
        let there = self.agents.is_present(&record.agent);
        self.breakers.ended(&ended, &capability, Some(record.lease), there);
    }

    /// An agent is gone, or begins anew: all that it holds ends.
    fn end_all_of(&mut self, at: Millis, agent: &AgentId) {
        self.handoffs.giver_gone(agent);
        for (lease, ended) in self.leases.end_all_of(agent) {
            if !ended.pools.is_empty() {
                self.pools.give_back(&pool::takes(&ended.pools), at, |_, _| None);
            }
            self.pools.end_under(at, lease);
        }
        self.pools.end_all_of(at, agent);
    }

    /// A task goes from one agent to another, and what it holds of pools with it; the taker's own account pays for it in place of the
    /// giver's. What the giver acquired besides is the giver's, and ends with the giver's lease.
    fn handed_over(&mut self, stamp: Stamp, record: &HandedOver) {
        let (before, lease) = (record.lease, LeaseId(stamp.number));
        let Some(offer) = self.handoffs.over(record.handoff) else { return };
        let Some(capability) = self.tasks.handed_over(&record.task, before, lease) else { return };
        self.breakers.over(before);
        self.breakers.granted(&record.to, &capability, lease);
        let held = self.leases.get(before).map(|held| pool::takes(&held.pools));
        self.leases.hand_over(lease, stamp.at, record, offer);
        self.pools.end_under(stamp.at, before);
        if let Some((held, pools)) = held.zip(record.pools.as_ref()) {
            self.pools.pay_instead(&held, &pool::takes(pools), stamp.at);
        }
    }
}
