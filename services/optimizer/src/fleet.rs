//! The agents that are there, and what each holds, as the log tells it.
//!
//! Capacity is the resource-manager's; this is a view of it, to choose by. It may be behind, never ahead: a task's end is
//! in the log before the lease that takes its place.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use baton_protocol::amount::covers;
use baton_protocol::record::{AgentRegistered, Assigned};
use baton_protocol::{AgentId, Amount, Capability, Millis, Resources, TaskId};
use serde::{Deserialize, Serialize};

use crate::queue::Shape;

/// The agents that are there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<AgentId, Agent>", into = "BTreeMap<AgentId, Agent>")]
pub(crate) struct Fleet {
    agents: BTreeMap<AgentId, Agent>,
    // The rest follows from `agents`.
    holders: BTreeMap<TaskId, AgentId>,
    /// All that can do something.
    able: BTreeMap<Capability, BTreeSet<AgentId>>,
    /// Those of them that have a free slot, the one to be preferred first.
    free: BTreeMap<Capability, BTreeSet<Rank>>,
    /// The same by id.
    free_by_id: BTreeMap<Capability, BTreeSet<AgentId>>,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Agent {
    session: String,
    /// What it can do, its type included.
    capabilities: BTreeSet<Capability>,
    resources: Resources,
    slots: u32,
    priority: i32,
    /// In millionths.
    score: u32,
    /// When a lease of it last ended, or it came.
    idle_since: Millis,
    /// What it holds.
    leases: BTreeMap<TaskId, Resources>,
}

/// What makes an agent preferable: less of its slots in use, then higher priority, a better score, longer idleness. Less
/// is better.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    load: u64,
    priority: Reverse<i32>,
    score: Reverse<u32>,
    idle_since: Millis,
    pub(crate) agent: AgentId,
}

impl Agent {
    /// Its rank if it held this many more than it does.
    pub(crate) fn rank(&self, id: &AgentId, more: usize) -> Rank {
        let held = (self.leases.len() + more) as u64;
        // In units small enough to tell any two fractions of up to 1024 slots apart.
        let load = held.saturating_mul(1 << 32) / u64::from(self.slots.max(1));
        Rank {
            load,
            priority: Reverse(self.priority),
            score: Reverse(self.score),
            idle_since: self.idle_since,
            agent: id.clone(),
        }
    }

    /// How many it holds.
    pub(crate) fn held(&self) -> usize {
        self.leases.len()
    }

    fn has_free_slot(&self) -> bool {
        self.leases.len() < self.slots as usize
    }

    /// Whether there is room for a task of this shape beside what it holds and what is set aside.
    pub(crate) fn has_room(&self, shape: &Shape, set_aside: Option<&BTreeMap<TaskId, Resources>>) -> bool {
        let count = set_aside.map_or(0, BTreeMap::len);
        if self.leases.len() + count >= self.slots as usize || !self.capabilities.contains(&shape.agent_type) {
            return false;
        }
        shape.resources.iter().all(|(name, need)| {
            let all = self.leases.values().chain(set_aside.into_iter().flat_map(BTreeMap::values));
            let used: Amount = all.filter_map(|resources| resources.get(name)).copied().sum();
            used + *need <= self.resources.get(name).copied().unwrap_or_default()
        })
    }

    /// Whether there would be room if it held nothing.
    pub(crate) fn could_hold(&self, shape: &Shape) -> bool {
        covers(&self.resources, &shape.resources).is_ok()
    }
}

impl Fleet {
    pub(crate) fn registered(&mut self, at: Millis, record: &AgentRegistered, score: u32) {
        let before = self.remove(&record.agent);
        let kept = before.filter(|before| before.session == record.session);
        let (leases, idle_since) = kept.map_or_else(|| (BTreeMap::new(), at), |agent| (agent.leases, agent.idle_since));
        let capabilities = record.capabilities.keys().chain([&record.agent_type]).cloned().collect();
        let agent = Agent {
            session: record.session.clone(),
            capabilities,
            resources: record.resources.clone(),
            slots: record.slots,
            priority: record.priority,
            score,
            idle_since,
            leases,
        };
        self.insert(record.agent.clone(), agent);
    }

    pub(crate) fn left(&mut self, agent: &AgentId) {
        self.remove(agent);
    }

    pub(crate) fn leased(&mut self, record: &Assigned) {
        let (task, resources) = (record.task.clone(), record.resources.clone());
        self.change(&record.agent, |agent| {
            agent.leases.insert(task, resources);
        });
        if self.agents.contains_key(&record.agent) {
            self.holders.insert(record.task.clone(), record.agent.clone());
        }
    }

    /// A task is held by nobody any more.
    pub(crate) fn freed(&mut self, at: Millis, task: &TaskId) {
        let Some(holder) = self.holders.remove(task) else { return };
        self.change(&holder, |agent| {
            agent.leases.remove(task);
            agent.idle_since = at;
        });
    }

    pub(crate) fn scored(&mut self, agent: &AgentId, score: u32) {
        self.change(agent, |agent| agent.score = score);
    }

    pub(crate) fn is_present(&self, agent: &AgentId) -> bool {
        self.agents.contains_key(agent)
    }

    pub(crate) fn get(&self, agent: &AgentId) -> Option<&Agent> {
        self.agents.get(agent)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &AgentId> {
        self.agents.keys()
    }

    /// All that can do this.
    pub(crate) fn able(&self, what: &Capability) -> Option<&BTreeSet<AgentId>> {
        self.able.get(what)
    }

    /// Those that can do this and have a free slot, the one to be preferred first.
    pub(crate) fn free(&self, what: &Capability) -> Option<&BTreeSet<Rank>> {
        self.free.get(what)
    }

    /// Those that can do this and have a free slot, by id.
    pub(crate) fn free_by_id(&self, what: &Capability) -> Option<&BTreeSet<AgentId>> {
        self.free_by_id.get(what)
    }

    fn insert(&mut self, id: AgentId, agent: Agent) {
        for task in agent.leases.keys() {
            self.holders.insert(task.clone(), id.clone());
        }
        for capability in &agent.capabilities {
            add(&mut self.able, capability, id.clone());
        }
        self.rank(&id, &agent);
        self.agents.insert(id, agent);
    }

    fn remove(&mut self, id: &AgentId) -> Option<Agent> {
        let agent = self.agents.remove(id)?;
        self.unrank(id, &agent);
        for capability in &agent.capabilities {
            take(&mut self.able, capability, id);
        }
        for task in agent.leases.keys() {
            self.holders.remove(task);
        }
        Some(agent)
    }

    fn change(&mut self, id: &AgentId, change: impl FnOnce(&mut Agent)) {
        let Some(mut agent) = self.agents.remove(id) else { return };
        self.unrank(id, &agent);
        change(&mut agent);
        self.rank(id, &agent);
        self.agents.insert(id.clone(), agent);
    }

    fn rank(&mut self, id: &AgentId, agent: &Agent) {
        if agent.has_free_slot() {
            for capability in &agent.capabilities {
                add(&mut self.free, capability, agent.rank(id, 0));
                add(&mut self.free_by_id, capability, id.clone());
            }
        }
    }

    fn unrank(&mut self, id: &AgentId, agent: &Agent) {
        let rank = agent.rank(id, 0);
        for capability in &agent.capabilities {
            take(&mut self.free, capability, &rank);
            take(&mut self.free_by_id, capability, id);
        }
    }
}

fn add<T: Ord>(index: &mut BTreeMap<Capability, BTreeSet<T>>, capability: &Capability, entry: T) {
    index.entry(capability.clone()).or_default().insert(entry);
}

fn take<T: Ord>(index: &mut BTreeMap<Capability, BTreeSet<T>>, capability: &Capability, entry: &T) {
    if let Some(entries) = index.get_mut(capability) {
        entries.remove(entry);
        if entries.is_empty() {
            index.remove(capability);
        }
    }
}

impl From<BTreeMap<AgentId, Agent>> for Fleet {
    fn from(agents: BTreeMap<AgentId, Agent>) -> Self {
        let mut fleet = Self::default();
        for (id, agent) in agents {
            fleet.insert(id, agent);
        }
        fleet
    }
}

impl From<Fleet> for BTreeMap<AgentId, Agent> {
    fn from(fleet: Fleet) -> Self {
        fleet.agents
    }
}
