//! Placement: which task goes to which agent, now.
//!
//! Tasks are taken in the order of the queue. A strategy is asked for an agent with room for each; where there is none,
//! all tasks of that shape are left out. So a long queue or a large fleet costs little where nothing can be placed:
//! shapes are few, and agents without a free slot are not looked at.
//!
//! A task whose last attempt failed goes to another agent if one has room: what an agent declined, or can not do, must
//! not use up its attempts there.
//!
//! A task that needs much may find no agent with enough left for as long as smaller ones keep coming. Once it has waited
//! for one step of ageing, an agent is *kept* for it: what comes after it in the queue is not placed there, so that the
//! agent runs empty. It is the one that holds least; being kept it holds less and less, so that the choice settles.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::ops::Bound;

use baton_protocol::request::Strategy;
use baton_protocol::{AgentId, Capability, Millis, Resources, TaskId};

use crate::fleet::{Fleet, Rank};
use crate::queue::{Queue, Shape};

/// What was asked for and is not in the log yet, by agent. Nobody is in here with nothing.
pub(crate) type SetAside = BTreeMap<AgentId, BTreeMap<TaskId, Resources>>;

/// Whose turn it was, by capability.
pub(crate) type Turns = BTreeMap<Capability, AgentId>;

/// What was chosen for a task.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) task: TaskId,
    pub(crate) agent: AgentId,
    pub(crate) agent_type: Capability,
    pub(crate) since: Millis,
}

/// Whether a task may be placed now.
pub(crate) enum Standing<'a> {
    /// Yes.
    Free {
        /// But not with these agents.
        not: &'a BTreeSet<AgentId>,
        /// Nor with this one, if another has room: the attempt before failed under it.
        rather_not: Option<&'a AgentId>,
    },
    /// Not now.
    Held,
}

/// Chooses among the agents that have room.
trait Choose<'a> {
    /// The agent that should have a task of this shape. It has room, and is none of these.
    fn choose(&mut self, room: &Room<'a>, shape: &'a Shape, not: &BTreeSet<AgentId>) -> Option<AgentId>;

    /// There is less room than there was when the agent had this rank.
    fn changed(&mut self, room: &Room<'a>, before: &Rank);
}

/// Chooses an agent for as many tasks as possible. What is chosen is set aside.
pub(crate) fn plan<'a>(
    queue: &'a Queue,
    room: &mut Room<'a>,
    strategy: Strategy,
    turns: &mut Turns,
    (now, ageing_ms): (Millis, Millis),
    standing: impl Fn(&TaskId) -> Standing<'a>,
) -> Vec<Chosen> {
    let mut choose: Box<dyn Choose<'a> + '_> = match strategy {
        Strategy::RoundRobin => Box::new(RoundRobin { turns }),
        Strategy::LoadBalanced => Box::new(LeastLoaded { pools: BTreeMap::new() }),
    };
    let mut plan = Vec::new();
    let mut walk = queue.walk(now, ageing_ms);
    while let Some((task, shape, since)) = walk.next() {
        let Standing::Free { not, rather_not } = standing(task) else { continue };
        let elsewhere = rather_not.and_then(|failed| {
            let not = not.iter().chain([failed]).cloned().collect();
            choose.choose(room, shape, &not)
        });
        if let Some(agent) = elsewhere.or_else(|| choose.choose(room, shape, not)) {
            let before = room.rank(&agent);
            room.set_aside(&agent, task, shape);
            changed(&mut *choose, room, before);
            plan.push(Chosen { task: task.clone(), agent, agent_type: shape.agent_type.clone(), since });
        } else if not.is_empty() {
            walk.close(shape);
            if now.saturating_sub(since) >= ageing_ms
                && let Some(agent) = room.keep_one(shape)
            {
                changed(&mut *choose, room, room.rank(&agent));
            }
        } else {
            // Another task of this shape may go where this one may not.
        }
    }
    plan
}

fn changed<'a>(choose: &mut (dyn Choose<'a> + '_), room: &Room<'a>, before: Option<Rank>) {
    if let Some(before) = before {
        choose.changed(room, &before);
    }
}

/// The agents, with what is set aside and who is kept.
pub(crate) struct Room<'a> {
    fleet: &'a Fleet,
    set_aside: SetAside,
    kept: BTreeSet<AgentId>,
}

impl<'a> Room<'a> {
    pub(crate) fn new(fleet: &'a Fleet, set_aside: SetAside) -> Self {
        Self { fleet, set_aside, kept: BTreeSet::new() }
    }

    /// What is set aside now.
    pub(crate) fn into_set_aside(self) -> SetAside {
        self.set_aside
    }

    fn has_room(&self, id: &AgentId, shape: &Shape) -> bool {
        let Some(agent) = self.fleet.get(id).filter(|_| !self.kept.contains(id)) else { return false };
        agent.has_room(shape, self.set_aside.get(id))
    }

    /// Whether the fleet's rank of the agent is not the whole truth.
    fn is_set_aside(&self, id: &AgentId) -> bool {
        self.set_aside.contains_key(id)
    }

    fn count_set_aside(&self, id: &AgentId) -> usize {
        self.set_aside.get(id).map_or(0, BTreeMap::len)
    }

    fn rank(&self, id: &AgentId) -> Option<Rank> {
        Some(self.fleet.get(id)?.rank(id, self.count_set_aside(id)))
    }

    fn set_aside(&mut self, agent: &AgentId, task: &TaskId, shape: &Shape) {
        self.set_aside.entry(agent.clone()).or_default().insert(task.clone(), shape.resources.clone());
    }

    /// Keeps an agent for a shape that has no room anywhere, if one could hold it at all.
    fn keep_one(&mut self, shape: &Shape) -> Option<AgentId> {
        if shape.resources.is_empty() {
            // The next slot that is free will do.
            return None;
        }
        let holds = |id: &AgentId| Some(self.fleet.get(id)?.held() + self.count_set_aside(id));
        let could = |id: &&AgentId| !self.kept.contains(*id) && self.fleet.get(id).is_some_and(|a| a.could_hold(shape));
        let agent = self.fleet.able(&shape.agent_type)?.iter().filter(could).min_by_key(|id| (holds(id), *id))?.clone();
        self.kept.insert(agent.clone());
        Some(agent)
    }
}

/// The agent with the smallest part of its slots in use; see [`Rank`] for ties.
///
/// The fleet keeps its agents ranked. Those with something set aside rank lower than the fleet knows, and are ranked
/// here; a plan only ever adds to them, so that the rest is read from the front to the back once.
struct LeastLoaded<'a> {
    pools: BTreeMap<&'a Shape, Pool<'a>>,
}

/// The agents with room for one shape.
struct Pool<'a> {
    untouched: Peekable<Ranked<'a>>,
    set_aside: BTreeSet<Rank>,
}

type Ranked<'a> = std::iter::Flatten<std::option::IntoIter<&'a BTreeSet<Rank>>>;

impl<'a> Pool<'a> {
    fn open(room: &Room<'a>, shape: &Shape) -> Self {
        let untouched = room.fleet.free(&shape.agent_type).into_iter().flatten().peekable();
        let set_aside = room.set_aside.keys().filter(|agent| room.has_room(agent, shape));
        let set_aside = set_aside.filter_map(|agent| room.rank(agent)).collect();
        Self { untouched, set_aside }
    }

    fn first(&mut self, room: &Room<'a>, shape: &Shape, not: &BTreeSet<AgentId>) -> Option<AgentId> {
        let fits = |rank: &&&'a Rank| !room.is_set_aside(&rank.agent) && room.has_room(&rank.agent, shape);
        while self.untouched.peek().is_some_and(|rank| !fits(&rank)) {
            self.untouched.next();
        }
        let untouched = self.untouched.clone().find(|rank| fits(&rank) && !not.contains(&rank.agent));
        let set_aside = self.set_aside.iter().find(|rank| !not.contains(&rank.agent));
        untouched.into_iter().chain(set_aside).min().map(|rank| rank.agent.clone())
    }
}

impl<'a> Choose<'a> for LeastLoaded<'a> {
    fn choose(&mut self, room: &Room<'a>, shape: &'a Shape, not: &BTreeSet<AgentId>) -> Option<AgentId> {
        self.pools.entry(shape).or_insert_with(|| Pool::open(room, shape)).first(room, shape, not)
    }

    fn changed(&mut self, room: &Room<'a>, before: &Rank) {
        for (shape, pool) in &mut self.pools {
            pool.set_aside.remove(before);
            if room.is_set_aside(&before.agent) && room.has_room(&before.agent, shape) {
                pool.set_aside.extend(room.rank(&before.agent));
            }
        }
    }
}

/// Agents take turns, by id, for each agent type on its own.
struct RoundRobin<'t> {
    turns: &'t mut Turns,
}

impl<'a> Choose<'a> for RoundRobin<'_> {
    fn choose(&mut self, room: &Room<'a>, shape: &'a Shape, not: &BTreeSet<AgentId>) -> Option<AgentId> {
        let free = room.fleet.free_by_id(&shape.agent_type)?;
        let from = self.turns.get(&shape.agent_type).map_or(Bound::Unbounded, Bound::Excluded);
        let after = free.range::<AgentId, _>((from, Bound::Unbounded));
        let agent = after.chain(free).find(|agent| room.has_room(agent, shape) && !not.contains(*agent))?.clone();
        self.turns.insert(shape.agent_type.clone(), agent.clone());
        Some(agent)
    }

    fn changed(&mut self, _: &Room<'a>, _: &Rank) {}
}
