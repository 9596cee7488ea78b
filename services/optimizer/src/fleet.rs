//! The agents that are there, and what each holds, as the log tells it.
//!
//! Capacity is the resource-manager's; this is a view of it, to choose by. It may be behind, never ahead: a task's end is
//! in the log before the lease that takes its place.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use baton_machine::Shelves;
use baton_protocol::amount::covers;
use baton_protocol::breaker::BreakerState;
use baton_protocol::record::{AgentRegistered, Assigned, Stamp};
use baton_protocol::request::Strategy;
use baton_protocol::{
    AgentId, Amount, Capability, LeaseId, Metadata, Millis, Number, Requirements, ResourceName, Resources,
};
use serde::{Deserialize, Serialize};

use crate::learning::FULL;
use crate::queue::Shape;

/// By how much scores and skills may differ to be nearly the same, in millionths: less than one success, or failure, of an
/// agent that is neither good nor bad is worth at the usual learning rate.
const CLOSE: u32 = FULL / 50;

/// The agents that are there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Shelves<AgentId, Arc<Agent>>", into = "Shelves<AgentId, Arc<Agent>>")]
pub(crate) struct Fleet {
    agents: Shelves<AgentId, Arc<Agent>>,
    /// Follows from the agents.
    loads: Loads,
}

impl From<Shelves<AgentId, Arc<Agent>>> for Fleet {
    fn from(agents: Shelves<AgentId, Arc<Agent>>) -> Self {
        let mut loads = Loads::default();
        agents.iter().for_each(|(_, agent)| loads.add(agent));
        Self { agents, loads }
    }
}

impl From<Fleet> for Shelves<AgentId, Arc<Agent>> {
    fn from(fleet: Fleet) -> Self {
        fleet.agents
    }
}

/// Sums over all agents. In whole numbers, so that what is added and taken again leaves nothing behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Loads {
    agents: u64,
    pub(crate) slots: u64,
    /// How many tasks they hold.
    pub(crate) held: u64,
    /// The parts of their slots in use, and the squares of these, in 2^20ths.
    sum: u128,
    squares: u128,
}

impl Loads {
    fn add(&mut self, agent: &Agent) {
        let load = agent.load_parts();
        self.agents += 1;
        self.slots += u64::from(agent.slots);
        self.held += agent.holds.tasks as u64;
        self.sum += load;
        self.squares += load * load;
    }

    fn take(&mut self, agent: &Agent) {
        let load = agent.load_parts();
        self.agents -= 1;
        self.slots -= u64::from(agent.slots);
        self.held -= agent.holds.tasks as u64;
        self.sum -= load;
        self.squares -= load * load;
    }

    /// How evenly agents are loaded: Jain's index, from `1/n` where one has all to 1 where all have as much. None if nobody has
    /// anything.
    pub(crate) fn balance(&self) -> Option<f64> {
        let sum = self.sum as f64;
        (self.squares > 0).then(|| sum * sum / (self.agents as f64 * self.squares as f64))
    }
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Agent {
    session: String,
    /// The record that began the session: what was held before it is held no more.
    life: Number,
    /// What it can do, its type included, and what it says of that.
    pub(crate) capabilities: BTreeMap<Capability, Metadata>,
    /// The capabilities of which it is given no tasks, or few: its circuit breakers that are not closed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    breakers: BTreeMap<Capability, Breaker>,
    resources: Resources,
    slots: u32,
    priority: i32,
    /// In millionths.
    score: u32,
    /// When a lease of it last ended, or it came.
    idle_since: Millis,
    /// What it holds.
    holds: Load,
}

/// A circuit breaker that is not closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Breaker {
    Open,
    /// About so many tasks are let through now. The resource-manager counts them; this is to ask for no more in vain.
    HalfOpen(u32),
}

/// What somebody holds: so many tasks, and what they need.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Load {
    tasks: usize,
    /// With how many of the tasks need any.
    resources: BTreeMap<ResourceName, (Amount, usize)>,
}

/// Who holds a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) agent: AgentId,
    /// Under which lease.
    #[serde(default = "unknown")]
    pub(crate) lease: LeaseId,
    life: Number,
    resources: Resources,
    /// For which capability the agent was tried with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    probe: Option<Capability>,
    /// Since when.
    #[serde(default)]
    pub(crate) since: Millis,
    /// By which strategy it was placed.
    #[serde(default)]
    pub(crate) strategy: Strategy,
    /// The pools that it holds something of for the task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) pools: Vec<ResourceName>,
    /// What the task asks for, if a second agent may be given it as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hedge: Option<Arc<Shape>>,
}

/// Where an older edition has not kept it.
fn unknown() -> LeaseId {
    NO_LEASE
}

/// No lease: they are counted from 1.
pub(crate) const NO_LEASE: LeaseId = LeaseId(0);

/// What makes an agent preferable: what a strategy puts first, if anything; less of its slots in use, then higher priority,
/// a better score, longer idleness. Less is better.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    first: Reverse<u64>,
    load: u64,
    priority: Reverse<i32>,
    score: Reverse<u32>,
    idle_since: Millis,
    pub(crate) agent: AgentId,
}

impl Rank {
    /// Whether it is as free as one that comes before it, of the same priority, and in nothing else worse by more than a little.
    pub(crate) fn is_nearly(&self, before: &Self) -> bool {
        let close = |first: u64, other: u64| first.abs_diff(other) <= u64::from(CLOSE);
        (self.load, self.priority) == (before.load, before.priority)
            && close(self.first.0, before.first.0)
            && close(self.score.0.into(), before.score.0.into())
    }

    /// How good it is at such tasks, if the rank is by that.
    pub(crate) fn skill(&self) -> Option<f64> {
        Some(self.first.0 as f64 / f64::from(FULL))
    }

    /// What is weighed, by name, at a time.
    pub(crate) fn terms(&self, now: Millis) -> [(&'static str, f64); 4] {
        [
            ("load", self.load as f64 / (1_u64 << 32) as f64),
            ("priority", f64::from(self.priority.0)),
            ("score", f64::from(self.score.0) / f64::from(FULL)),
            ("idle_ms", now.saturating_sub(self.idle_since) as f64),
        ]
    }
}

impl Load {
    pub(crate) fn is_nothing(&self) -> bool {
        self.tasks == 0
    }

    pub(crate) fn add(&mut self, resources: &Resources) {
        self.tasks += 1;
        for (name, amount) in resources {
            if !self.resources.contains_key(name) {
                self.resources.insert(name.clone(), Default::default());
            }
            if let Some((sum, tasks)) = self.resources.get_mut(name) {
                (*sum, *tasks) = (*sum + *amount, *tasks + 1);
            }
        }
    }

    pub(crate) fn take(&mut self, resources: &Resources) {
        self.tasks = self.tasks.saturating_sub(1);
        for (name, amount) in resources {
            if let Some((sum, tasks)) = self.resources.get_mut(name) {
                (*sum, *tasks) = (*sum - *amount, tasks.saturating_sub(1));
                if *tasks == 0 {
                    self.resources.remove(name);
                }
            }
        }
    }

    fn of(&self, name: &ResourceName) -> Amount {
        self.resources.get(name).map(|(sum, _)| *sum).unwrap_or_default()
    }
}

impl Agent {
    /// Its priority, then its score, as a number: more is better.
    pub(crate) fn worth(&self) -> u64 {
        u64::from(self.priority.cast_unsigned() ^ 1 << 31) << 32 | u64::from(self.score)
    }

    /// Its rank if it held this besides what it does. What comes first: more is better.
    pub(crate) fn rank(&self, id: &AgentId, first: u64, aside: Option<&Load>) -> Rank {
        // In units small enough to tell any two fractions of up to 1024 slots apart.
        let load = (self.held(aside) as u64).saturating_mul(1 << 32) / u64::from(self.slots.max(1));
        Rank {
            first: Reverse(first),
            load,
            priority: Reverse(self.priority),
            score: Reverse(self.score),
            idle_since: self.idle_since,
            agent: id.clone(),
        }
    }

    /// How many tasks it takes at a time.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    /// Which part of its slots is in use, in 2^20ths.
    fn load_parts(&self) -> u128 {
        ((self.holds.tasks as u128) << 20) / u128::from(self.slots.max(1))
    }

    /// How many it holds, with what is set aside.
    pub(crate) fn held(&self, aside: Option<&Load>) -> usize {
        self.holds.tasks + aside.map_or(0, |aside| aside.tasks)
    }

    /// Whether there is room for a task of a capability that it has, and that needs this, beside what it holds and what is
    /// set aside.
    pub(crate) fn has_room(&self, capability: &Capability, resources: &Resources, aside: Option<&Load>) -> bool {
        let may = match self.breakers.get(capability) {
            None => usize::MAX,
            Some(Breaker::Open) => 0,
            Some(Breaker::HalfOpen(probes)) => *probes as usize,
        };
        if aside.map_or(0, |aside| aside.tasks) >= may || self.held(aside) >= self.slots as usize {
            return false;
        }
        resources.iter().all(|(name, need)| {
            let used = self.holds.of(name) + aside.map(|aside| aside.of(name)).unwrap_or_default();
            used + *need <= self.resources.get(name).copied().unwrap_or_default()
        })
    }

    /// Where its circuit breaker for a capability stands.
    pub(crate) fn breaker(&self, capability: &Capability) -> BreakerState {
        match self.breakers.get(capability) {
            None => BreakerState::Closed,
            Some(Breaker::Open) => BreakerState::Open,
            Some(Breaker::HalfOpen(_)) => BreakerState::HalfOpen,
        }
    }

    /// Whether it can do that, and is what is asked for.
    pub(crate) fn can(&self, capability: &Capability, requires: &Requirements) -> bool {
        let metadata = self.capabilities.get(capability);
        metadata.is_some_and(|metadata| requires.are_met(Some(metadata)))
    }

    /// Whether there would be room if it held nothing.
    pub(crate) fn could_hold(&self, shape: &Shape) -> bool {
        self.can(&shape.agent_type, &shape.requires)
            && !self.breakers.contains_key(&shape.agent_type)
            && covers(&self.resources, &shape.resources).is_ok()
    }
}

impl Fleet {
    /// Whether a session of that agent is in the fleet.
    pub(crate) fn has_session(&self, agent: &AgentId, session: &str) -> bool {
        self.agents.get(agent).is_some_and(|agent| agent.session == session)
    }

    pub(crate) fn registered(&mut self, stamp: Stamp, record: &AgentRegistered, score: u32) {
        let before = self.remove(&record.agent);
        let kept = before.filter(|before| before.session == record.session);
        let (life, holds, idle_since, breakers) = kept.map_or_else(
            || (stamp.number, Load::default(), stamp.at, BTreeMap::new()),
            |agent| (agent.life, agent.holds.clone(), agent.idle_since, agent.breakers.clone()),
        );
        let mut capabilities = record.capabilities.clone();
        capabilities.entry(record.agent_type.clone()).or_default();
        let agent = Agent {
            session: record.session.clone(),
            life,
            capabilities,
            breakers,
            resources: record.resources.clone(),
            slots: record.slots,
            priority: record.priority,
            score,
            idle_since,
            holds,
        };
        self.loads.add(&agent);
        self.agents.insert(record.agent.clone(), Arc::new(agent));
    }

    pub(crate) fn left(&mut self, agent: &AgentId) {
        self.remove(agent);
    }

    fn remove(&mut self, agent: &AgentId) -> Option<Arc<Agent>> {
        let agent = self.agents.remove(agent)?;
        self.loads.take(&agent);
        Some(agent)
    }

    /// Sums over all agents.
    pub(crate) fn loads(&self) -> Loads {
        self.loads
    }

    /// An agent has a task that needs this, of its own and of pools, if it is there.
    pub(crate) fn leased(
        &mut self,
        Stamp { number, at: since, .. }: Stamp,
        capability: &Capability,
        record: &Assigned,
        strategy: Strategy,
    ) -> Option<Holder> {
        let Assigned { agent: id, resources, pools, .. } = record;
        let agent = self.agents.change(id)?;
        self.loads.take(agent);
        agent.holds.add(resources);
        self.loads.add(agent);
        let probe = match agent.breakers.get_mut(capability) {
            Some(Breaker::HalfOpen(probes)) => {
                *probes = probes.saturating_sub(1);
                Some(capability.clone())
            }
            Some(Breaker::Open) | None => None,
        };
        let pools = pools.keys().cloned().collect();
        Some(Holder {
            agent: id.clone(),
            lease: LeaseId(number),
            life: agent.life,
            resources: resources.clone(),
            probe,
            since,
            strategy,
            pools,
            hedge: None,
        })
    }

    /// A task is held no more. Whether it was, by an agent that is still there.
    pub(crate) fn freed(&mut self, at: Millis, holder: &Holder) -> bool {
        let agent = self.agents.change(&holder.agent).filter(|agent| agent.life == holder.life);
        let Some(agent) = agent else { return false };
        self.loads.take(agent);
        agent.holds.take(&holder.resources);
        self.loads.add(agent);
        agent.idle_since = at;
        if let Some(Breaker::HalfOpen(probes)) = holder.probe.as_ref().and_then(|probe| agent.breakers.get_mut(probe)) {
            *probes += 1;
        }
        true
    }

    /// A circuit breaker of an agent has another state; none: it is closed.
    pub(crate) fn switched(&mut self, agent: &AgentId, capability: &Capability, breaker: Option<Breaker>) {
        let Some(agent) = self.agents.change(agent) else { return };
        match breaker {
            Some(breaker) => agent.breakers.insert(capability.clone(), breaker),
            None => agent.breakers.remove(capability),
        };
    }

    pub(crate) fn scored(&mut self, agent: &AgentId, score: u32) {
        if let Some(agent) = self.agents.change(agent) {
            agent.score = score;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.agents.len()
    }

    pub(crate) fn is_present(&self, agent: &AgentId) -> bool {
        self.agents.contains_key(agent)
    }

    pub(crate) fn get(&self, agent: &AgentId) -> Option<&Agent> {
        self.agents.get(agent).map(Arc::as_ref)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&AgentId, &Agent)> {
        self.agents.iter().map(|(id, agent)| (id, agent.as_ref()))
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &AgentId> {
        self.agents.keys()
    }
}
