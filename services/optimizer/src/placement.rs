//! Placement: which task goes to which agent, now.
//!
//! Tasks are taken in the order of the queue. A strategy is asked for an agent with room for each; where there is none,
//! all tasks of that shape are left out. So a long queue or a large fleet costs little where nothing can be placed:
//! shapes are few, and the agents that have room for one are kept in a [pool](Pools), the one to be preferred first.
//!
//! The strategies differ in which agent with room is preferred:
//!
//! | strategy | prefers |
//! |---|---|
//! | `ROUND_ROBIN` | whose turn it is, by name |
//! | `LOAD_BALANCED` | the smallest part of its slots in use; then priority, score, the longest idle |
//! | `PRIORITY_BASED` | the highest priority, then the best score: what goes first in the queue gets the best |
//! | `HISTORICAL` | who did tasks of this type best so far |
//! | `SWARM` | drawn, with odds as the trails that those left who succeeded |
//!
//! `ADAPTIVE` is its own module, [`adaptive`](crate::adaptive): it also decides the order, and to wait.
//!
//! Of agents that are as free as the first, and [nearly as good](Rank::is_nearly), that one is taken which did most of what the task
//! builds on, if it is among them: what it needs may still be there. (Not where agents take turns or are drawn.)
//!
//! A task whose last attempt failed goes to another agent if one has room: what an agent declined, or can not do, must
//! not use up its attempts there.
//!
//! A task that needs much may find no agent with enough left for as long as smaller ones keep coming. Once it has waited
//! for one step of ageing, an agent is *kept* for it: what comes after it in the queue is not placed there, so that the
//! agent runs empty. It is the one that holds least; being kept it holds less and less, so that the choice settles.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use baton_protocol::id::mix;
use baton_protocol::request::Strategy;
use baton_protocol::{AgentId, Capability, LeaseId, Millis, Requirements, Resources, TaskId};

use crate::Optimizer;
use crate::fleet::{Agent, Load, Rank};
use crate::queue::{Head, Lines, Shape};
use crate::regret::Sampling;
use crate::tenants::Tenants;

/// How many pools are kept. Beyond that those are forgotten that were not asked for longest.
const MAX_POOLS: usize = 64;
/// How many agents are told of that were weighed.
pub(crate) const TOLD: usize = 3;
/// What an agent that has left no trail is drawn with: as much as half a success.
const NO_TRAIL: f64 = 0.05;
/// How long an agent stays the one that is kept for a shape, at the most.
pub(crate) const KEEP_MS: Millis = 1000;

/// Whose turn it was, by capability.
type Turns = BTreeMap<Capability, AgentId>;

/// What was chosen for a task.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) task: TaskId,
    pub(crate) agent: AgentId,
    pub(crate) shape: Arc<Shape>,
    pub(crate) since: Millis,
    pub(crate) strategy: Strategy,
    /// Whether the agent was taken for what it had done before.
    pub(crate) is_near: bool,
    /// The lease under which another agent is at it.
    pub(crate) beside: Option<LeaseId>,
    /// How it was weighed.
    pub(crate) weighed: Weighed,
    /// Of some: who had room for it, the chosen one included.
    pub(crate) had_room: Vec<AgentId>,
}

/// Those that came first when a task was weighed.
#[derive(Debug, Clone)]
pub(crate) enum Weighed {
    /// By rank, among those with room.
    Ranked(Vec<Rank>),
    /// By when each would finish it, with room or without.
    Finish(Vec<Finish>),
}

/// When an agent would finish a task, all in milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct Finish {
    pub(crate) agent: AgentId,
    pub(crate) has_room: bool,
    /// In how long it can begin.
    pub(crate) available: f64,
    pub(crate) duration: f64,
    /// How likely it fails.
    pub(crate) failure: f64,
    /// What that costs.
    pub(crate) risk: f64,
}

/// Whether a task may be placed now.
pub(crate) enum Standing<'a> {
    /// Yes.
    Free {
        /// But not with these agents.
        not: Option<&'a BTreeSet<AgentId>>,
        /// Nor with this one, if another has room: the attempt before failed under it.
        rather_not: Option<&'a AgentId>,
        /// With this one, where it is nearly as good as any: it did what the task builds on.
        near: Option<&'a AgentId>,
        /// How its run's tasks are placed.
        strategy: Strategy,
    },
    /// It does not wait any more.
    Gone,
    /// Not now, and no other of its shape: a pool that they need has not enough.
    Shut,
    /// Not now; but one of its shape, tenant and priority has waited for longer, and may be.
    NotYet,
    /// Not now, and no other of its shape, tenant and priority: those that matter more come first.
    Later,
}

/// The agents as the leader sees them: what is set aside counts as held.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// What was asked for and is not in the log yet, by agent. Nobody is in here with nothing.
    aside: BTreeMap<AgentId, Load>,
    pools: Pools,
    turns: Turns,
    /// How often an agent was drawn.
    draws: u64,
    /// Of which tasks it is kept who had room.
    sampling: Sampling,
    kept: BTreeMap<Arc<Shape>, Kept>,
}

/// Who is kept for a shape.
#[derive(Debug)]
struct Kept {
    agent: AgentId,
    /// When it was chosen.
    since: Millis,
}

/// The agents that have room, by what for.
#[derive(Debug, Default)]
struct Pools {
    pools: BTreeMap<Capability, Vec<Pool>>,
    len: usize,
    /// Counts what was asked for.
    asked: u64,
}

/// Which agent of a pool is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    LeastLoaded,
    Priority,
    Skill,
}

impl First {
    fn of(strategy: Strategy) -> Self {
        match strategy {
            Strategy::RoundRobin | Strategy::LoadBalanced | Strategy::Swarm => Self::LeastLoaded,
            // Here is only what it can not look ahead for.
            Strategy::Adaptive => Self::LeastLoaded,
            Strategy::PriorityBased => Self::Priority,
            Strategy::Historical => Self::Skill,
        }
    }
}

/// The agents that have room for one shape.
#[derive(Debug)]
struct Pool {
    agent_type: Capability,
    requires: Requirements,
    resources: Resources,
    first: First,
    by_id: BTreeMap<AgentId, Rank>,
    ranked: BTreeSet<Rank>,
    asked: u64,
}

impl Pool {
    fn is_of(&self, shape: &Shape, first: First) -> bool {
        self.resources == shape.resources && self.requires == shape.requires && self.first == first
    }

    /// Ranks an agent that has the capability, if it is what is asked for and has room.
    fn update(&mut self, state: &Optimizer, id: &AgentId, agent: Option<&Agent>, aside: Option<&Load>) {
        let agent = agent.filter(|agent| {
            (self.requires.is_empty() || agent.can(&self.agent_type, &self.requires))
                && agent.has_room(&self.agent_type, &self.resources, aside)
        });
        let rank = agent.map(|agent| {
            let first = match self.first {
                First::LeastLoaded => 0,
                First::Priority => agent.worth(),
                First::Skill => state.learning.skill(id, &self.agent_type).into(),
            };
            agent.rank(id, first, aside)
        });
        self.set(id, rank);
    }

    fn set(&mut self, id: &AgentId, rank: Option<Rank>) {
        let before = self.by_id.get_mut(id);
        match (before, rank) {
            (None, None) => {}
            (Some(before), Some(rank)) => {
                if *before != rank {
                    self.ranked.remove(before);
                    self.ranked.insert(rank.clone());
                    *before = rank;
                }
            }
            (Some(_), None) => {
                if let Some(before) = self.by_id.remove(id) {
                    self.ranked.remove(&before);
                }
            }
            (None, Some(rank)) => {
                self.by_id.insert(id.clone(), rank.clone());
                self.ranked.insert(rank);
            }
        }
    }
}

impl Pools {
    /// The pool of a shape.
    fn of(&mut self, shape: &Shape, first: First, state: &Optimizer, aside: &BTreeMap<AgentId, Load>) -> &Pool {
        self.asked += 1;
        let asked = self.asked;
        let known = self.pools.get(&shape.agent_type);
        let known = known.and_then(|pools| pools.iter().position(|pool| pool.is_of(shape, first)));
        if known.is_none() {
            self.make_room();
        }
        let pools = self.pools.entry(shape.agent_type.clone()).or_default();
        let at = known.unwrap_or_else(|| {
            let (by_id, ranked) = (BTreeMap::new(), BTreeSet::new());
            let (agent_type, requires) = (shape.agent_type.clone(), shape.requires.clone());
            let resources = shape.resources.clone();
            let mut pool = Pool { agent_type, requires, resources, first, by_id, ranked, asked };
            let able = state.fleet.iter().filter(|(_, agent)| agent.capabilities.contains_key(&shape.agent_type));
            for (id, agent) in able {
                pool.update(state, id, Some(agent), aside.get(id));
            }
            pools.push(pool);
            self.len += 1;
            pools.len() - 1
        });
        pools[at].asked = asked;
        &pools[at]
    }

    /// Forgets half of the pools if there are too many.
    fn make_room(&mut self) {
        if self.len < MAX_POOLS {
            return;
        }
        let mut asked: Vec<_> = self.pools.values().flatten().map(|pool| pool.asked).collect();
        asked.sort_unstable();
        let least = asked[asked.len() / 2];
        for pools in self.pools.values_mut() {
            pools.retain(|pool| pool.asked >= least);
        }
        self.pools.retain(|_, pools| !pools.is_empty());
        self.len = self.pools.values().map(Vec::len).sum();
    }
}

impl Room {
    /// What an agent holds may have changed, but not what it can do.
    pub(crate) fn changed(&mut self, state: &Optimizer, id: &AgentId) {
        let Some(agent) = state.fleet.get(id) else { return };
        let aside = self.aside.get(id);
        for capability in agent.capabilities.keys() {
            for pool in self.pools.pools.get_mut(capability).into_iter().flatten() {
                pool.update(state, id, Some(agent), aside);
            }
        }
    }

    /// An agent has come or gone, or can do something else.
    pub(crate) fn came_or_left(&mut self, state: &Optimizer, id: &AgentId) {
        let (agent, aside) = (state.fleet.get(id), self.aside.get(id));
        for (capability, pools) in &mut self.pools.pools {
            let able = agent.filter(|agent| agent.capabilities.contains_key(capability));
            for pool in pools {
                pool.update(state, id, able, aside);
            }
        }
    }

    /// Any agent may have changed.
    pub(crate) fn forget_pools(&mut self) {
        self.pools = Pools::default();
    }

    /// What was asked of an agent and is not in the log yet.
    pub(crate) fn aside(&self, id: &AgentId) -> Option<&Load> {
        self.aside.get(id)
    }

    pub(crate) fn set_aside(&mut self, state: &Optimizer, id: &AgentId, shape: &Shape) {
        match self.aside.get_mut(id) {
            Some(aside) => aside.add(&shape.resources),
            None => self.aside.entry(id.clone()).or_default().add(&shape.resources),
        }
        self.changed(state, id);
    }

    pub(crate) fn release(&mut self, state: &Optimizer, id: &AgentId, shape: &Shape) {
        if let Some(aside) = self.aside.get_mut(id) {
            aside.take(&shape.resources);
            if aside.is_nothing() {
                self.aside.remove(id);
            }
        }
        self.changed(state, id);
    }

    /// The agent that should have a task of this shape, if one of those that may has room; and whether it is taken for what it
    /// did before.
    fn choose(
        &mut self,
        state: &Optimizer,
        strategy: Strategy,
        (shape, near): (&Shape, Option<&AgentId>),
        may: impl Fn(&AgentId) -> bool,
    ) -> Option<(AgentId, bool)> {
        let first = First::of(strategy);
        let pool = self.pools.of(shape, first, state, &self.aside);
        match strategy {
            Strategy::LoadBalanced | Strategy::PriorityBased | Strategy::Historical | Strategy::Adaptive => {
                let first = pool.ranked.iter().find(|rank| may(&rank.agent))?;
                let near = near.filter(|near| **near != first.agent && may(near)).and_then(|near| pool.by_id.get(near));
                let near = near.filter(|near| near.is_nearly(first));
                Some((near.unwrap_or(first).agent.clone(), near.is_some()))
            }
            Strategy::RoundRobin => {
                let from = self.turns.get(&shape.agent_type).map_or(Bound::Unbounded, Bound::Excluded);
                let after = pool.by_id.range::<AgentId, _>((from, Bound::Unbounded));
                let agent = after.chain(&pool.by_id).map(|(id, _)| id).find(|agent| may(agent))?.clone();
                self.turns.insert(shape.agent_type.clone(), agent.clone());
                Some((agent, false))
            }
            Strategy::Swarm => {
                let trail = |id| state.learning.trail(id, &shape.agent_type) + NO_TRAIL;
                let trails: Vec<_> = pool.by_id.keys().filter(|id| may(id)).map(|id| (id, trail(id))).collect();
                self.draws += 1;
                let sum: f64 = trails.iter().map(|(_, trail)| trail).sum();
                let mut drawn = sum * (mix(self.draws) >> 11) as f64 / (1_u64 << 53) as f64;
                let reached = trails.iter().find(|(_, trail)| {
                    drawn -= trail;
                    drawn < 0.0
                });
                reached.or(trails.last()).map(|(id, _)| ((*id).clone(), false))
            }
        }
    }

    /// Whether it is kept of a task who had room for it, if so many had.
    pub(crate) fn samples(&mut self, agents: usize) -> bool {
        self.sampling.takes(agents)
    }

    /// Who has room for this shape, if that is kept.
    fn who_has_room(&mut self, state: &Optimizer, strategy: Strategy, shape: &Shape) -> Vec<AgentId> {
        let Self { pools, aside, sampling, .. } = self;
        let pool = pools.of(shape, First::of(strategy), state, aside);
        if sampling.takes(pool.by_id.len()) { pool.by_id.keys().cloned().collect() } else { Vec::new() }
    }

    /// Whether any agent that can do something has a free slot. Where none has, and tasks need ten thousand different things, that saves
    /// looking for each of them.
    fn has_a_slot(&mut self, state: &Optimizer, agent_type: &Capability) -> bool {
        let (agent_type, requires) = (agent_type.clone(), Requirements::default());
        let any = Shape { agent_type, requires, resources: Resources::new(), pools: Resources::new() };
        !self.pools.of(&any, First::LeastLoaded, state, &self.aside).by_id.is_empty()
    }

    /// Those with room for this shape that come first.
    pub(crate) fn weigh(&mut self, state: &Optimizer, strategy: Strategy, shape: &Shape) -> Weighed {
        let pool = self.pools.of(shape, First::of(strategy), state, &self.aside);
        Weighed::Ranked(pool.ranked.iter().take(TOLD).cloned().collect())
    }

    /// Who is kept for a shape that has no room anywhere, if anybody could hold it at all who is not kept yet.
    fn keep_one(
        &mut self,
        state: &Optimizer,
        shape: &Arc<Shape>,
        kept: &BTreeSet<AgentId>,
        now: Millis,
    ) -> Option<AgentId> {
        if shape.resources.is_empty() {
            // The next slot that is free will do.
            return None;
        }
        let could = |id: &AgentId, agent: &Agent| !kept.contains(id) && agent.could_hold(shape);
        let before = self.kept.get(shape).filter(|kept| now < kept.since.saturating_add(KEEP_MS));
        let before = before.filter(|kept| state.fleet.get(&kept.agent).is_some_and(|agent| could(&kept.agent, agent)));
        if let Some(before) = before {
            return Some(before.agent.clone());
        }
        let able = state.fleet.iter().filter(|(id, agent)| could(id, agent));
        let (id, _) = able.min_by_key(|(id, agent)| (agent.held(self.aside.get(*id)), *id))?;
        self.kept.insert(Arc::clone(shape), Kept { agent: id.clone(), since: now });
        Some(id.clone())
    }

    /// Chooses an agent for as many tasks as possible. What is chosen is set aside, and stands in line no more.
    pub(crate) fn plan<'a>(
        &mut self,
        (lines, tenants): (&mut Lines, &mut Tenants),
        state: &Optimizer,
        (now, ageing_ms): (Millis, Millis),
        standing: impl Fn(&Head) -> Standing<'a>,
    ) -> Vec<Chosen> {
        let mut plan = Vec::new();
        let mut kept = BTreeSet::new();
        let waits = |since, task: &TaskId| state.queue.get(task).is_some_and(|queued| queued.since == since);
        let mut walk = lines.walk(tenants, (now, ageing_ms), |agent_type| self.has_a_slot(state, agent_type), waits);
        while let Some(head) = walk.next() {
            if !self.has_a_slot(state, &head.shape.agent_type) {
                walk.close_type(&head);
                continue;
            }
            let (not, rather_not, near, strategy) = match standing(&head) {
                Standing::Free { not, rather_not, near, strategy } => (not, rather_not, near, strategy),
                Standing::Gone => {
                    walk.forget(&head);
                    continue;
                }
                Standing::Shut => {
                    walk.close(head);
                    continue;
                }
                Standing::NotYet => {
                    walk.keep(&head);
                    continue;
                }
                Standing::Later => continue,
            };
            let shape = &head.shape;
            let may = |id: &AgentId| !kept.contains(id) && not.is_none_or(|not| !not.contains(id));
            let elsewhere =
                rather_not.and_then(|failed| self.choose(state, strategy, (shape, near), |id| id != failed && may(id)));
            let chosen = elsewhere.or_else(|| self.choose(state, strategy, (shape, near), may));
            if let Some((agent, is_near)) = chosen {
                walk.take(&head);
                let weighed = self.weigh(state, strategy, shape);
                let had_room = self.who_has_room(state, strategy, shape);
                self.set_aside(state, &agent, shape);
                let (task, shape, since) = (head.task().clone(), Arc::clone(shape), head.since());
                plan.push(Chosen { task, agent, shape, since, strategy, is_near, beside: None, weighed, had_room });
            } else if not.is_none_or(BTreeSet::is_empty) {
                if now.saturating_sub(head.oldest) >= ageing_ms {
                    kept.extend(self.keep_one(state, shape, &kept, now));
                }
                walk.close(head);
            } else {
                // Another task of this shape may go where this one may not.
                walk.keep(&head);
            }
        }
        self.kept.retain(|_, kept| now < kept.since.saturating_add(KEEP_MS));
        plan
    }
}
