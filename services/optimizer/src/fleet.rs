//! The agents that are there, and what each holds, as the log tells it.
//!
//! Capacity is the resource-manager's; this is a view of it, to choose by. It may be behind, never ahead: a task's end is
//! in the log before the lease that takes its place.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baton_machine::Shelves;
use baton_protocol::amount::covers;
use baton_protocol::record::{AgentRegistered, Stamp};
use baton_protocol::{AgentId, Amount, Capability, Millis, Number, ResourceName, Resources};
use serde::{Deserialize, Serialize};

use crate::queue::Shape;

/// The agents that are there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Fleet {
    agents: Shelves<AgentId, Arc<Agent>>,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Agent {
    session: String,
    /// The record that began the session: what was held before it is held no more.
    life: Number,
    /// What it can do, its type included.
    pub(crate) capabilities: BTreeSet<Capability>,
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
    life: Number,
    resources: Resources,
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
    /// Its rank if it held this besides what it does.
    pub(crate) fn rank(&self, id: &AgentId, aside: Option<&Load>) -> Rank {
        // In units small enough to tell any two fractions of up to 1024 slots apart.
        let load = (self.held(aside) as u64).saturating_mul(1 << 32) / u64::from(self.slots.max(1));
        Rank {
            load,
            priority: Reverse(self.priority),
            score: Reverse(self.score),
            idle_since: self.idle_since,
            agent: id.clone(),
        }
    }

    /// How many it holds, with what is set aside.
    pub(crate) fn held(&self, aside: Option<&Load>) -> usize {
        self.holds.tasks + aside.map_or(0, |aside| aside.tasks)
    }

    /// Whether there is room for a task that it can do and that needs this, beside what it holds and what is set aside.
    pub(crate) fn has_room(&self, resources: &Resources, aside: Option<&Load>) -> bool {
        if self.held(aside) >= self.slots as usize {
            return false;
        }
        resources.iter().all(|(name, need)| {
            let used = self.holds.of(name) + aside.map(|aside| aside.of(name)).unwrap_or_default();
            used + *need <= self.resources.get(name).copied().unwrap_or_default()
        })
    }

    /// Whether there would be room if it held nothing.
    pub(crate) fn could_hold(&self, shape: &Shape) -> bool {
        self.capabilities.contains(&shape.agent_type) && covers(&self.resources, &shape.resources).is_ok()
    }
}

impl Fleet {
    pub(crate) fn registered(&mut self, stamp: Stamp, record: &AgentRegistered, score: u32) {
        let before = self.agents.remove(&record.agent);
        let kept = before.filter(|before| before.session == record.session);
        let (life, holds, idle_since) = kept.map_or_else(
            || (stamp.number, Load::default(), stamp.at),
            |agent| (agent.life, agent.holds.clone(), agent.idle_since),
        );
        let agent = Agent {
            session: record.session.clone(),
            life,
            capabilities: record.capabilities.keys().chain([&record.agent_type]).cloned().collect(),
            resources: record.resources.clone(),
            slots: record.slots,
            priority: record.priority,
            score,
            idle_since,
            holds,
        };
        self.agents.insert(record.agent.clone(), Arc::new(agent));
    }

    pub(crate) fn left(&mut self, agent: &AgentId) {
        self.agents.remove(agent);
    }

    /// An agent has a task that needs this, if it is there.
    pub(crate) fn leased(&mut self, id: &AgentId, resources: &Resources) -> Option<Holder> {
        let agent = self.agents.change(id)?;
        agent.holds.add(resources);
        Some(Holder { agent: id.clone(), life: agent.life, resources: resources.clone() })
    }

    /// A task is held no more. Whether it was, by an agent that is still there.
    pub(crate) fn freed(&mut self, at: Millis, holder: &Holder) -> bool {
        let agent = self.agents.change(&holder.agent).filter(|agent| agent.life == holder.life);
        let Some(agent) = agent else { return false };
        agent.holds.take(&holder.resources);
        agent.idle_since = at;
        true
    }

    pub(crate) fn scored(&mut self, agent: &AgentId, score: u32) {
        if let Some(agent) = self.agents.change(agent) {
            agent.score = score;
        }
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
