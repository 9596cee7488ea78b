//! The queue: tasks that are ready and wait for an agent.
//!
//! The order is by priority, where waiting for `ageing_ms` counts one step, then by age. The step depends on a setting
//! and on the time, so the order is not kept. The leader keeps those tasks that it may ask an agent for in [`Lines`]:
//! tasks of one shape, one [tenant](crate::tenants) and one priority. The runs in a line take turns, so that one with many
//! tasks does not hold up the others; the tasks of one run go by age. A [`Walk`] merges the heads of the lines: for each type of
//! agents, first by whose turn it is. What can not be placed is left out a whole shape at a time, and a whole type where
//! nobody has a free slot, so that a long queue costs nothing where there is no room.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Bound;
use std::sync::Arc;

use baton_machine::{Priorities, Shelves};
use baton_protocol::{AgentId, Capability, Millis, Requirements, Resources, RunId, TaskId};
use serde::{Deserialize, Serialize};

use crate::pools::Pools;
use crate::tenants::{Seat, Tenants};

/// The tasks that wait.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Shelves<TaskId, Queued>", into = "Shelves<TaskId, Queued>")]
pub(crate) struct Queue {
    tasks: Shelves<TaskId, Queued>,
    /// Follows from the tasks.
    priorities: Priorities,
}

impl From<Shelves<TaskId, Queued>> for Queue {
    fn from(tasks: Shelves<TaskId, Queued>) -> Self {
        let priorities = tasks.iter().map(|(_, queued)| queued.priority).collect();
        Self { tasks, priorities }
    }
}

impl From<Queue> for Shelves<TaskId, Queued> {
    fn from(queue: Queue) -> Self {
        queue.tasks
    }
}

/// What a task asks of an agent. Tasks of one shape fit the same agents.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Shape {
    /// What the agent must be able to do.
    pub(crate) agent_type: Capability,
    /// What its metadata of that capability must be.
    #[serde(default, skip_serializing_if = "Requirements::is_empty")]
    pub(crate) requires: Requirements,
    /// What it must have free beside one slot.
    pub(crate) resources: Resources,
    /// What is taken of pools besides: any agent will do for that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) pools: Resources,
}

/// A task that waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Queued {
    pub(crate) shape: Arc<Shape>,
    pub(crate) priority: i32,
    pub(crate) since: Millis,
    /// Who did most of what it builds on, so that what that left is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) near: Option<AgentId>,
}

impl Queue {
    /// A task waits, or waits again as it did.
    pub(crate) fn insert(&mut self, task: TaskId, queued: Queued) {
        self.priorities.add(queued.priority);
        let before = self.tasks.insert(task, queued);
        before.into_iter().for_each(|before| self.priorities.take(before.priority));
    }

    /// There are other pools than before: what is of them and what of an agent's own is said anew.
    pub(crate) fn split_anew(&mut self, pools: &Pools) {
        let changed: Vec<_> = self
            .tasks
            .iter()
            .filter_map(|(task, queued)| {
                let Shape { agent_type, requires, resources, pools: before } = queued.shape.as_ref();
                let all = resources.iter().chain(before).map(|(name, amount)| (name.clone(), *amount)).collect();
                let (pools, resources) = pools.split(&all);
                let shape = Shape { agent_type: agent_type.clone(), requires: requires.clone(), resources, pools };
                (shape != *queued.shape).then(|| (task.clone(), Queued { shape: Arc::new(shape), ..queued.clone() }))
            })
            .collect();
        for (task, queued) in changed {
            self.tasks.insert(task, queued);
        }
    }

    pub(crate) fn remove(&mut self, task: &TaskId) -> Option<Queued> {
        let queued = self.tasks.remove(task)?;
        self.priorities.take(queued.priority);
        Some(queued)
    }

    /// Whether a task of this priority or a greater one waits.
    pub(crate) fn any_from(&self, priority: i32) -> bool {
        self.priorities.any_from(priority)
    }

    pub(crate) fn get(&self, task: &TaskId) -> Option<&Queued> {
        self.tasks.get(task)
    }

    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&TaskId, &Queued)> {
        self.tasks.iter()
    }
}

/// Where a task stands in the queue: higher levels first, then the older, then the smaller id. The level is the priority,
/// with what the task gained by waiting. What is greater goes first.
pub(crate) type Order<T> = (i128, Reverse<(Millis, T)>);

pub(crate) fn order<T>(task: T, priority: i32, since: Millis, now: Millis, ageing_ms: Millis) -> Order<T> {
    let gained = now.saturating_sub(since) / ageing_ms.max(1);
    (i128::from(priority) + i128::from(gained), Reverse((since, task)))
}

/// Tasks of one shape, one tenant and one priority. Its runs take turns, in rounds; those of one run, and the runs of one round, go
/// by age.
#[derive(Debug, Default)]
struct Line {
    /// Which run is next.
    order: BTreeSet<(u64, Millis, RunId)>,
    runs: BTreeMap<RunId, OfRun>,
    /// Which run has the task that is the oldest.
    ages: BTreeSet<(Millis, RunId)>,
    /// In which round a run was served last, and since when the task had waited.
    round: u64,
    last: Millis,
}

/// The tasks of a run in a line.
#[derive(Debug)]
struct OfRun {
    round: u64,
    tasks: BTreeSet<(Millis, TaskId)>,
}

impl OfRun {
    /// Its place in the order of the line.
    fn place(&self, run: RunId) -> Option<(u64, Millis, RunId)> {
        Some((self.round, self.tasks.first()?.0, run))
    }
}

impl Line {
    /// A run stands elsewhere than before, or nowhere.
    fn moved(&mut self, before: Option<(u64, Millis, RunId)>, after: Option<(u64, Millis, RunId)>) {
        if before == after {
            return;
        }
        if let Some((round, since, run)) = before {
            self.order.remove(&(round, since, run));
            self.ages.remove(&(since, run));
        }
        if let Some((round, since, run)) = after {
            self.order.insert((round, since, run));
            self.ages.insert((since, run));
        }
    }

    /// A task comes. False if it was there.
    fn add(&mut self, since: Millis, task: &TaskId) -> bool {
        let run = task.run;
        // Whoever comes is behind those who wait for their turn in this round: they do not wait for ever. Whoever comes back, and has
        // waited for longer than who was served last, goes on where it was.
        let comes_back = self.round > 0 && since <= self.last;
        let round = self.round + u64::from(!comes_back);
        let of = self.runs.entry(run).or_insert_with(|| OfRun { round, tasks: BTreeSet::new() });
        let before = of.place(run);
        let is_new = of.tasks.insert((since, task.clone()));
        let after = of.place(run);
        self.moved(before, after);
        is_new
    }

    /// A task goes, because it is served or for another reason. Whether it was there, and which one is next.
    fn take(&mut self, entry: &(Millis, TaskId), served: bool) -> (bool, Option<&(Millis, TaskId)>) {
        let run = entry.1.run;
        let Some(of) = self.runs.get_mut(&run) else { return (false, None) };
        let Some(before) = of.place(run) else { return (false, None) };
        let was_there = of.tasks.remove(entry);
        if served {
            (self.round, self.last) = (self.round.max(of.round), entry.0);
            of.round += 1;
        }
        let after = of.place(run);
        if after.is_none() {
            self.runs.remove(&run);
        }
        self.moved(Some(before), after);
        let from = if served { Bound::Excluded(before) } else { Bound::Included(before) };
        let next = self.order.range((from, Bound::Unbounded)).next();
        (was_there, next.and_then(|(_, _, run)| self.runs.get(run)?.tasks.first()))
    }

    fn first(&self) -> Option<&(Millis, TaskId)> {
        let (_, _, run) = self.order.first()?;
        self.runs.get(run)?.tasks.first()
    }

    /// Since when the task has waited that is the oldest.
    fn since(&self) -> Option<Millis> {
        self.ages.first().map(|(since, _)| *since)
    }

    /// Takes the oldest out as long as they have left the queue, where they are not found as the next ones. How many.
    fn sweep(&mut self, waits: impl Fn(Millis, &TaskId) -> bool) -> usize {
        let mut gone = 0;
        while self.runs.len() > 1
            && let Some((_, run)) = self.ages.first()
            && let Some(oldest) = self.runs.get(run).and_then(|of| of.tasks.first()).cloned()
            && !waits(oldest.0, &oldest.1)
        {
            self.take(&oldest, false);
            gone += 1;
        }
        gone
    }

    /// The task that comes after one that goes on waiting.
    fn after(&self, entry: &(Millis, TaskId)) -> Option<&(Millis, TaskId)> {
        let of = self.runs.get(&entry.1.run)?;
        let next = of.tasks.range((Bound::Excluded(entry), Bound::Unbounded)).next();
        next.or_else(|| {
            let from = Bound::Excluded(of.place(entry.1.run)?);
            let (_, _, run) = self.order.range((from, Bound::Unbounded)).next()?;
            self.runs.get(run)?.tasks.first()
        })
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// The lines of a shape, by tenant and priority.
type Lined = BTreeMap<(Seat, i32), Line>;

/// The tasks that may be placed, by shape, tenant and priority. Tasks that have left the queue are found and taken out when it is
/// their turn.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// By the type of agents.
    lines: BTreeMap<Capability, BTreeMap<Arc<Shape>, Lined>>,
    len: usize,
}

impl Lines {
    pub(crate) fn add(&mut self, task: &TaskId, queued: &Queued, tenant: Seat) {
        let agent_type = &queued.shape.agent_type;
        let shapes = match self.lines.get_mut(agent_type) {
            Some(shapes) => shapes,
            None => self.lines.entry(agent_type.clone()).or_default(),
        };
        let lines = match shapes.get_mut(&queued.shape) {
            Some(lines) => lines,
            None => shapes.entry(Arc::clone(&queued.shape)).or_default(),
        };
        self.len += usize::from(lines.entry((tenant, queued.priority)).or_default().add(queued.since, task));
    }

    /// Takes a task out. The one that comes next in its line.
    fn take(&mut self, head: &Head, served: bool) -> Option<Next> {
        let shapes = self.lines.get_mut(&head.shape.agent_type)?;
        let lines = shapes.get_mut(&head.shape)?;
        let line = lines.get_mut(&(head.tenant, head.priority))?;
        let (was_there, next) = line.take(head.entry(), served);
        let next = next.cloned();
        let next = next.zip(line.since());
        self.len -= usize::from(was_there);
        if line.is_empty() {
            lines.remove(&(head.tenant, head.priority));
            if lines.is_empty() {
                shapes.remove(&head.shape);
                if shapes.is_empty() {
                    self.lines.remove(&head.shape.agent_type);
                }
            }
        }
        next
    }

    /// The task that comes in a line after one that goes on waiting.
    fn after(&self, head: &Head) -> Option<Next> {
        let line = self.lines.get(&head.shape.agent_type)?.get(&head.shape)?.get(&(head.tenant, head.priority))?;
        line.after(head.entry()).cloned().zip(line.since())
    }

    /// How many there are, those included that have left the queue.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the first stands in the queue.
    pub(crate) fn level(&self, now: Millis, ageing_ms: Millis) -> Option<i128> {
        let lines = self.lines.values().flat_map(BTreeMap::values).flatten();
        let first =
            lines.filter_map(|((_, priority), line)| Some(order((), *priority, line.since()?, now, ageing_ms).0));
        first.max()
    }

    /// A walk in the order in which they should be placed, through what is for the types of agents that are open. Of what has left
    /// the queue it is said that it does not wait.
    pub(crate) fn walk<'a>(
        &'a mut self,
        tenants: &'a mut Tenants,
        (now, ageing_ms): (Millis, Millis),
        mut is_open: impl FnMut(&Capability) -> bool,
        waits: impl Fn(Millis, &TaskId) -> bool,
    ) -> Walk<'a> {
        let mut types = BTreeMap::new();
        for (agent_type, shapes) in self.lines.iter_mut().filter(|(agent_type, _)| is_open(agent_type)) {
            let mut waiting: BTreeMap<Seat, Waiting> = BTreeMap::new();
            for (shape, lines) in shapes {
                for ((tenant, priority), line) in lines {
                    self.len -= line.sweep(&waits);
                    let Some((first, since)) = line.first().cloned().zip(line.since()) else { continue };
                    let of = waiting.entry(*tenant).or_insert_with(|| Waiting { since, heads: BTreeMap::new() });
                    of.since = of.since.min(since);
                    let head = Head::new((first, since), shape, *tenant, *priority, (now, ageing_ms));
                    of.heads.entry(*priority).or_default().push(head);
                }
            }
            types.insert(agent_type.clone(), waiting);
        }
        Walk { lines: self, tenants, clock: (now, ageing_ms), types, closed: BTreeSet::new() }
    }
}

/// A task that is next in its line, and since when the oldest of the line has waited.
type Next = ((Millis, TaskId), Millis);

/// A walk through the lines.
pub(crate) struct Walk<'a> {
    lines: &'a mut Lines,
    tenants: &'a mut Tenants,
    clock: (Millis, Millis),
    /// What waits for each type of agents, by tenant.
    types: BTreeMap<Capability, BTreeMap<Seat, Waiting>>,
    closed: BTreeSet<Arc<Shape>>,
}

/// What waits of a tenant for a type of agents.
struct Waiting {
    /// Since when the tenant has had something to do.
    since: Millis,
    /// The heads of the lines that are not passed yet, by priority.
    heads: BTreeMap<i32, BinaryHeap<Head>>,
}

impl Waiting {
    /// Passes what is of shapes that are closed. Whether anything is left.
    fn pass(&mut self, closed: &BTreeSet<Arc<Shape>>) -> bool {
        self.heads.retain(|_, heads| {
            while heads.peek().is_some_and(|head| closed.contains(&head.shape)) {
                heads.pop();
            }
            !heads.is_empty()
        });
        !self.heads.is_empty()
    }

    fn first(&self) -> Option<&Head> {
        self.heads.values().filter_map(BinaryHeap::peek).max()
    }
}

/// The first of a line that is not passed yet. It stands in the queue where the oldest of its line does.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Head {
    order: Order<TaskId>,
    pub(crate) shape: Arc<Shape>,
    pub(crate) priority: i32,
    tenant: Seat,
    /// Since when the oldest of its line has waited.
    pub(crate) oldest: Millis,
}

impl Head {
    fn new(
        ((since, task), oldest): Next,
        shape: &Arc<Shape>,
        tenant: Seat,
        priority: i32,
        (now, ageing_ms): (Millis, Millis),
    ) -> Self {
        let (level, _) = order((), priority, oldest, now, ageing_ms);
        Self { order: (level, Reverse((since, task))), shape: Arc::clone(shape), priority, tenant, oldest }
    }

    fn entry(&self) -> &(Millis, TaskId) {
        let Reverse(entry) = &self.order.1;
        entry
    }

    pub(crate) fn task(&self) -> &TaskId {
        &self.entry().1
    }

    pub(crate) fn since(&self) -> Millis {
        self.entry().0
    }

    /// Whether this is the task that waits, and not one that had its name and has left the queue.
    pub(crate) fn is(&self, queued: &Queued) -> bool {
        queued.since == self.since() && queued.priority == self.priority && queued.shape == self.shape
    }
}

impl Walk<'_> {
    /// The next task, to be given back by one of the others; or by nothing: then what is of its line goes on waiting.
    pub(crate) fn next(&mut self) -> Option<Head> {
        let closed = &self.closed;
        self.types.retain(|_, waiting| {
            waiting.retain(|_, of| of.pass(closed));
            !waiting.is_empty()
        });
        let mut first: Option<(&Capability, Seat, &Head)> = None;
        for (agent_type, waiting) in &self.types {
            let turn = self.turn(agent_type, waiting);
            if let Some((seat, head)) = turn.filter(|(_, head)| first.is_none_or(|(.., before)| *head > before)) {
                first = Some((agent_type, seat, head));
            }
        }
        let (agent_type, seat, head) = first?;
        let (agent_type, priority) = (agent_type.clone(), head.priority);
        self.types.get_mut(&agent_type)?.get_mut(&seat)?.heads.get_mut(&priority)?.pop()
    }

    /// Whose turn it is with a type of agents: who has something that matters more; of those with the same, who starts first; of
    /// these, who waits for longer.
    fn turn<'a>(&self, of: &Capability, waiting: &'a BTreeMap<Seat, Waiting>) -> Option<(Seat, &'a Head)> {
        if waiting.len() == 1 {
            return waiting.first_key_value().and_then(|(seat, of)| Some((*seat, of.first()?)));
        }
        let stands = |(seat, waits): (&Seat, &'a Waiting)| {
            let (most, _) = waits.heads.last_key_value()?;
            let level = i128::from(*most) + self.tenants.gained(*seat, of, waits.since, self.clock);
            Some(((level, Reverse(self.tenants.start(*seat, of, 0)), waits.first()?), *seat))
        };
        waiting.iter().filter_map(stands).max().map(|((.., head), seat)| (seat, head))
    }

    fn go_on(&mut self, head: &Head, next: Option<Next>) {
        let waiting = self.types.get_mut(&head.shape.agent_type).and_then(|waiting| waiting.get_mut(&head.tenant));
        if let (Some(of), Some(next)) = (waiting, next) {
            let next = Head::new(next, &head.shape, head.tenant, head.priority, self.clock);
            of.heads.entry(head.priority).or_default().push(next);
        }
    }

    /// The task goes on waiting.
    pub(crate) fn keep(&mut self, head: &Head) {
        let next = self.lines.after(head);
        self.go_on(head, next);
    }

    /// The task waits no more: it is placed.
    pub(crate) fn take(&mut self, head: &Head) {
        let next = self.lines.take(head, true);
        let (now, _) = self.clock;
        self.tenants.served(head.tenant, &head.shape.agent_type, now);
        self.go_on(head, next);
    }

    /// The task has left the queue.
    pub(crate) fn forget(&mut self, head: &Head) {
        let next = self.lines.take(head, false);
        self.go_on(head, next);
    }

    /// The task goes on waiting, and so does all that is still to come of this shape.
    pub(crate) fn close(&mut self, head: Head) {
        self.closed.insert(head.shape);
    }

    /// The task goes on waiting, and so does all that is still to come for this type of agents.
    pub(crate) fn close_type(&mut self, head: &Head) {
        self.types.remove(&head.shape.agent_type);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AGEING: Millis = 1000;

    fn task(tenant: Seat, run: u64, nth: u32) -> TaskId {
        let run = RunId::derive(1, (tenant as u128) << 64 | u128::from(run));
        TaskId { run, stage: "work".parse().unwrap(), item: Some(nth), attempt: 1 }
    }

    fn shape(of: &str, cpu: u32) -> Arc<Shape> {
        let agent_type = Capability::new(of).unwrap();
        let resources = if cpu == 0 { Resources::new() } else { [("cpu".parse().unwrap(), cpu.into())].into() };
        Arc::new(Shape { agent_type, requires: Requirements::default(), resources, pools: Resources::new() })
    }

    /// So many tenants of weight 1.
    fn tenants(count: usize) -> Tenants {
        let mut tenants = Tenants::default();
        for n in 0..count {
            assert_eq!(tenants.seat(Some(&format!("t{n}").into()), &BTreeMap::new()), n);
        }
        tenants
    }

    /// A task of a run of the first tenant comes.
    fn add(lines: &mut Lines, run: u64, nth: u32, priority: i32, since: Millis) {
        lines.add(&task(0, run, nth), &Queued { shape: shape("a", 0), priority, since, near: None }, 0);
    }

    /// Places the first task, and gives whose it is.
    fn serve(lines: &mut Lines, tenants: &mut Tenants, now: Millis) -> Option<(Seat, TaskId)> {
        let mut walk = lines.walk(tenants, (now, AGEING), |_| true, |_, _| true);
        let head = walk.next()?;
        walk.take(&head);
        Some((head.tenant, head.task().clone()))
    }

    proptest! {
        /// Whoever has something to do all the while is never more than a task behind another one, however many tasks that one brings and
        /// whenever these came; nor is any run of a tenant behind another one of it.
        #[test]
        fn o1_tenants_and_their_runs_share_within_a_task(
            brings in prop::collection::vec((0..3usize, 0..3u64, 1..20u32, 0..400u64), 2..30),
            shapes in 1..3u32,
        ) {
            let mut tenants = tenants(3);
            let mut lines = Lines::default();
            let mut left: BTreeMap<Seat, BTreeMap<RunId, u32>> = BTreeMap::new();
            for (nth, (tenant, run, count, since)) in brings.iter().enumerate() {
                for n in 0..*count {
                    let task = task(*tenant, *run, nth as u32 * 100 + n);
                    *left.entry(*tenant).or_default().entry(task.run).or_default() += 1;
                    let shape = shape("a", *tenant as u32 % shapes);
                    lines.add(&task, &Queued { shape, priority: 0, since: *since, near: None }, *tenant);
                }
            }
            let mut got: BTreeMap<Seat, i64> = left.keys().map(|tenant| (*tenant, 0)).collect();
            let mut of_runs: BTreeMap<RunId, i64> = left.values().flatten().map(|(run, _)| (*run, 0)).collect();
            while let Some((tenant, task)) = serve(&mut lines, &mut tenants, 500) {
                *got.get_mut(&tenant).unwrap() += 1;
                *of_runs.get_mut(&task.run).unwrap() += 1;
                let of = left.get_mut(&tenant).unwrap();
                *of.get_mut(&task.run).unwrap() -= 1;
                let waits = |of: &BTreeMap<RunId, u32>| of.values().any(|left| *left > 0);
                let waiting: Vec<_> = left.iter().filter(|(_, of)| waits(of)).map(|(tenant, _)| got[tenant]).collect();
                let most = got.values().max().unwrap();
                prop_assert!(waiting.iter().all(|got| most - got <= 1) || waiting.len() < 2, "{got:?}");
                for of in left.values() {
                    let runs: Vec<_> = of.iter().filter(|(_, left)| **left > 0).map(|(run, _)| of_runs[run]).collect();
                    let most = of.keys().map(|run| of_runs[run]).max().unwrap();
                    prop_assert!(runs.iter().all(|got| most - got <= 1) || runs.len() < 2, "{of_runs:?}");
                }
            }
            prop_assert!(left.values().flat_map(BTreeMap::values).all(|left| *left == 0) && lines.len() == 0);
        }

        /// Whatever others bring, and however much that matters more: what waits is placed within as many steps of ageing as there
        /// are of priority between them, for each task that its own tenant has before it.
        #[test]
        fn o1_no_tenant_waits_for_ever(priority in -3..3i32, theirs in -3..4i32, before in 0..4u32, others in 1..3usize) {
            let mut tenants = tenants(3);
            let mut lines = Lines::default();
            let one = |priority, since| Queued { shape: shape("a", 0), priority, since, near: None };
            for n in 0..=before {
                lines.add(&task(0, 0, n), &one(priority, 0), 0);
            }
            let steps = u64::from(theirs.saturating_sub(priority).max(0).unsigned_abs()) + 1;
            let until = (u64::from(before) + 1) * (steps + others as u64) * AGEING;
            let mut placed = 0;
            // A task each 100 ms, and each other tenant brings as many.
            for at in (0..until).step_by(100) {
                for tenant in 1..=others {
                    lines.add(&task(tenant, at, 0), &one(theirs, at), tenant);
                }
                let (tenant, _) = serve(&mut lines, &mut tenants, at).unwrap();
                placed += u32::from(tenant == 0);
            }
            prop_assert_eq!(placed, before + 1);
        }
    }

    #[test]
    fn o1_a_walk_that_keeps_tasks_sees_each_of_them_once() {
        let (mut lines, mut tenants) = (Lines::default(), tenants(2));
        for (tenant, run, nth) in [(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 0, 3), (1, 0, 4)] {
            let queued = Queued { shape: shape("a", 0), priority: 0, since: u64::from(nth), near: None };
            lines.add(&task(tenant, run, nth), &queued, tenant);
        }
        let mut walk = lines.walk(&mut tenants, (10, AGEING), |_| true, |_, _| true);
        let mut seen = Vec::new();
        while let Some(head) = walk.next() {
            walk.keep(&head);
            seen.push(head.task().item.unwrap());
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        // What has left the queue is nobody's turn.
        let mut walk = lines.walk(&mut tenants, (10, AGEING), |_| true, |_, _| true);
        let head = walk.next().unwrap();
        walk.forget(&head);
        drop(walk);
        assert_eq!((serve(&mut lines, &mut tenants, 10).unwrap().0, lines.len()), (0, 3));
    }

    #[test]
    fn o1_an_old_task_behind_other_runs_of_its_line_is_not_passed_over() {
        let (mut lines, mut tenants) = (Lines::default(), tenants(1));
        // Run 0 had its turn, so that its last task is behind run 1, which came lately.
        (0..3).for_each(|nth| add(&mut lines, 0, nth, 0, 0));
        assert_eq!(serve(&mut lines, &mut tenants, 100).unwrap().1, task(0, 0, 0));
        add(&mut lines, 1, 3, 0, 2900);
        assert_eq!(serve(&mut lines, &mut tenants, 2900).unwrap().1, task(0, 0, 1));
        (4..8).for_each(|nth| add(&mut lines, 2, nth, 1, 2900));
        // By its age it is more urgent than what is of priority 1, and so its line goes first.
        assert_eq!(serve(&mut lines, &mut tenants, 3000).unwrap().1, task(0, 1, 3));
        assert_eq!(serve(&mut lines, &mut tenants, 3000).unwrap().1, task(0, 0, 2));
        assert_eq!(serve(&mut lines, &mut tenants, 3000).unwrap().1, task(0, 2, 4));
    }

    #[test]
    fn what_has_left_the_queue_makes_nothing_more_urgent() {
        let (mut lines, mut tenants) = (Lines::default(), tenants(1));
        (0..3).for_each(|nth| add(&mut lines, 0, nth, 0, 0));
        assert_eq!(serve(&mut lines, &mut tenants, 100).unwrap().1, task(0, 0, 0));
        add(&mut lines, 1, 3, 0, 2900);
        assert_eq!(serve(&mut lines, &mut tenants, 2900).unwrap().1, task(0, 0, 1));
        add(&mut lines, 2, 4, 1, 2900);
        // The oldest is behind run 1, and gone.
        let mut walk = lines.walk(&mut tenants, (3000, AGEING), |_| true, |_, of| *of != task(0, 0, 2));
        let head = walk.next().unwrap();
        assert_eq!((head.task(), head.oldest), (&task(0, 2, 4), 2900));
        walk.take(&head);
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn o1_what_nobody_is_free_for_is_not_looked_at() {
        let (mut lines, mut tenants) = (Lines::default(), tenants(2));
        for n in 0..4 {
            let of = if n % 2 == 0 { "a" } else { "b" };
            lines.add(&task(0, 0, n), &Queued { shape: shape(of, n), priority: 0, since: 0, near: None }, 0);
        }
        let mut walk = lines.walk(&mut tenants, (10, AGEING), |of| of.as_str() == "b", |_, _| true);
        let head = walk.next().unwrap();
        assert_eq!(head.task().item, Some(1));
        walk.close_type(&head);
        assert!(walk.next().is_none());
    }
}
