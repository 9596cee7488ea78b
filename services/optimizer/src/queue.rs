//! The queue: tasks that are ready and wait for an agent.
//!
//! The order is by priority, where waiting for `ageing_ms` counts one step, then by age. The step depends on a setting
//! and on the time, so the order is not kept. The leader keeps those tasks that it may ask an agent for in [`Lines`]:
//! tasks of one shape, one [tenant](crate::tenants) and one priority. The runs in a line take turns, so that one with many tasks does
//! not hold up the others; those of one run go by age. A [`Walk`] merges the heads of the lines. What can not be placed is left out a
//! whole shape at a time, so that a long queue costs nothing where there is no room.

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
    /// In which round a run was served last.
    round: u64,
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
    /// A task comes. False if it was there.
    fn add(&mut self, since: Millis, task: &TaskId) -> bool {
        let run = task.run;
        // Whoever comes is behind those who wait for their turn in this round: they do not wait for ever.
        let of = self.runs.entry(run).or_insert_with(|| OfRun { round: self.round + 1, tasks: BTreeSet::new() });
        let before = of.place(run);
        let is_new = of.tasks.insert((since, task.clone()));
        let after = of.place(run);
        if before != after {
            if let Some(before) = before {
                self.order.remove(&before);
            }
            self.order.extend(after);
        }
        is_new
    }

    /// A task goes, because it is served or for another reason. Whether it was there, and which one is next.
    fn take(&mut self, entry: &(Millis, TaskId), served: bool) -> (bool, Option<&(Millis, TaskId)>) {
        let run = entry.1.run;
        let Some(of) = self.runs.get_mut(&run) else { return (false, None) };
        let Some(before) = of.place(run) else { return (false, None) };
        let was_there = of.tasks.remove(entry);
        if served {
            self.round = self.round.max(of.round);
            of.round += 1;
        }
        self.order.remove(&before);
        if let Some(after) = of.place(run) {
            self.order.insert(after);
        } else {
            self.runs.remove(&run);
        }
        let from = if served { Bound::Excluded(before) } else { Bound::Included(before) };
        let next = self.order.range((from, Bound::Unbounded)).next();
        (was_there, next.and_then(|(_, _, run)| self.runs.get(run)?.tasks.first()))
    }

    fn first(&self) -> Option<&(Millis, TaskId)> {
        let (_, _, run) = self.order.first()?;
        self.runs.get(run)?.tasks.first()
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

/// The tasks that may be placed, by shape, tenant and priority. Tasks that have left the queue are found and taken out when it is
/// their turn.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// First by the type of agents: where none of these has a free slot, nothing of it need be looked at.
    lines: BTreeMap<Capability, BTreeMap<Arc<Shape>, Lined>>,
    len: usize,
}

/// The lines of a shape, by tenant and priority.
type Lined = BTreeMap<(Seat, i32), Line>;

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

    fn take(&mut self, head: &Head, served: bool) -> Option<(Millis, TaskId)> {
        let shapes = self.lines.get_mut(&head.shape.agent_type)?;
        let lines = shapes.get_mut(&head.shape)?;
        let line = lines.get_mut(&(head.tenant, head.priority))?;
        let Reverse(entry) = &head.order.1;
        let (was_there, next) = line.take(entry, served);
        let next = next.cloned();
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

    /// How many there are, those included that have left the queue.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the first stands in the queue.
    pub(crate) fn level(&self, now: Millis, ageing_ms: Millis) -> Option<i128> {
        let lines = self.lines.values().flat_map(BTreeMap::values).flatten();
        let first = lines.filter_map(|((_, priority), line)| {
            let (since, _) = line.first()?;
            Some(order((), *priority, *since, now, ageing_ms).0)
        });
        first.max()
    }

    /// The lines of a shape.
    fn of(&self, shape: &Arc<Shape>) -> Option<&Lined> {
        self.lines.get(&shape.agent_type)?.get(shape)
    }

    /// A walk in the order in which they should be placed, through what is for the types of agents that are open.
    pub(crate) fn walk<'a>(
        &'a mut self,
        tenants: &'a mut Tenants,
        (now, ageing_ms): (Millis, Millis),
        mut is_open: impl FnMut(&Capability) -> bool,
    ) -> Walk<'a> {
        let mut waiting: BTreeMap<Seat, Waiting> = BTreeMap::new();
        for (shape, lines) in self.lines.iter().filter(|(of, _)| is_open(of)).flat_map(|(_, shapes)| shapes) {
            for ((tenant, priority), line) in lines {
                let Some(first) = line.first() else { continue };
                let of = waiting.entry(*tenant).or_default();
                of.since = of.since.min(first.0);
                *of.open.entry(*priority).or_default() += 1;
                of.heads.push(Head::new(first, shape, *tenant, *priority, (now, ageing_ms)));
            }
        }
        Walk { lines: self, tenants, now, ageing_ms, waiting, closed: BTreeSet::new() }
    }
}

/// A walk through the lines.
pub(crate) struct Walk<'a> {
    lines: &'a mut Lines,
    tenants: &'a mut Tenants,
    now: Millis,
    ageing_ms: Millis,
    waiting: BTreeMap<Seat, Waiting>,
    closed: BTreeSet<Arc<Shape>>,
}

/// What waits of a tenant.
struct Waiting {
    heads: BinaryHeap<Head>,
    /// How many lines are not passed yet, by priority.
    open: BTreeMap<i32, usize>,
    /// Since when the tenant has had something to do.
    since: Millis,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { heads: BinaryHeap::new(), open: BTreeMap::new(), since: Millis::MAX }
    }
}

impl Waiting {
    /// A line is passed.
    fn pass(&mut self, priority: i32) {
        if let Some(lines) = self.open.get_mut(&priority) {
            *lines = lines.saturating_sub(1);
            if *lines == 0 {
                self.open.remove(&priority);
            }
        }
    }
}

/// The first of a line that is not passed yet.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Head {
    order: Order<TaskId>,
    pub(crate) shape: Arc<Shape>,
    pub(crate) priority: i32,
    tenant: Seat,
}

impl Head {
    fn new(
        (since, task): &(Millis, TaskId),
        shape: &Arc<Shape>,
        tenant: Seat,
        priority: i32,
        (now, ageing_ms): (Millis, Millis),
    ) -> Self {
        let order = order(task.clone(), priority, *since, now, ageing_ms);
        Self { order, shape: Arc::clone(shape), priority, tenant }
    }

    pub(crate) fn task(&self) -> &TaskId {
        let Reverse((_, task)) = &self.order.1;
        task
    }

    pub(crate) fn since(&self) -> Millis {
        let Reverse((since, _)) = self.order.1;
        since
    }

    /// Whether this is the task that waits, and not one that had its name and has left the queue.
    pub(crate) fn is(&self, queued: &Queued) -> bool {
        queued.since == self.since() && queued.priority == self.priority && queued.shape == self.shape
    }
}

impl Walk<'_> {
    /// The next task, to be given back by one of the others.
    pub(crate) fn next(&mut self) -> Option<Head> {
        loop {
            let closed = &self.closed;
            self.waiting.retain(|_, of| {
                while of.heads.peek().is_some_and(|head| closed.contains(&head.shape)) {
                    of.heads.pop();
                }
                !of.heads.is_empty()
            });
            let first = match self.waiting.len() {
                0 => return None,
                1 => self.waiting.first_key_value().map(|(tenant, _)| *tenant),
                _ => self.first_tenant(),
            };
            let head = self.waiting.get_mut(&first?)?.heads.pop();
            if head.is_some() {
                return head;
            }
        }
    }

    /// Whose turn it is: who has something more urgent; of those with the same, who starts first; of these, who waits for longer.
    fn first_tenant(&self) -> Option<Seat> {
        let mut first: Option<(Seat, (i128, Reverse<u64>, &Order<TaskId>))> = None;
        for (tenant, of) in &self.waiting {
            let (Some((most, _)), Some(head)) = (of.open.last_key_value(), of.heads.peek()) else { continue };
            let level = i128::from(*most) + self.tenants.gained(*tenant, of.since, self.now, self.ageing_ms);
            let stands = (level, Reverse(self.tenants.start(*tenant, 0)), &head.order);
            if first.as_ref().is_none_or(|(_, before)| stands > *before) {
                first = Some((*tenant, stands));
            }
        }
        first.map(|(tenant, _)| tenant)
    }

    fn go_on(&mut self, head: &Head, next: Option<&(Millis, TaskId)>) {
        let Some(of) = self.waiting.get_mut(&head.tenant) else { return };
        match next {
            Some(next) => {
                let clock = (self.now, self.ageing_ms);
                of.heads.push(Head::new(next, &head.shape, head.tenant, head.priority, clock));
            }
            None => of.pass(head.priority),
        }
    }

    /// The task goes on waiting.
    pub(crate) fn keep(&mut self, head: &Head) {
        let line = self.lines.of(&head.shape).and_then(|lines| lines.get(&(head.tenant, head.priority)));
        let Reverse(entry) = &head.order.1;
        let next = line.and_then(|line| line.after(entry)).cloned();
        self.go_on(head, next.as_ref());
    }

    /// The task waits no more: it is placed.
    pub(crate) fn take(&mut self, head: &Head) {
        let next = self.lines.take(head, true);
        self.tenants.served(head.tenant, self.now);
        self.go_on(head, next.as_ref());
    }

    /// The task does not wait any more.
    pub(crate) fn forget(&mut self, head: &Head) {
        let next = self.lines.take(head, false);
        self.go_on(head, next.as_ref());
    }

    /// The task goes on waiting, and so does what is to come of its line.
    pub(crate) fn pass(&mut self, head: &Head) {
        self.go_on(head, None);
    }

    /// The task goes on waiting, and so does all that is still to come for this type of agents.
    pub(crate) fn close_type(&mut self, head: Head) {
        let agent_type = head.shape.agent_type.clone();
        if let Some(of) = self.waiting.get_mut(&head.tenant) {
            of.heads.push(head);
        }
        for of in self.waiting.values_mut() {
            let heads = std::mem::take(&mut of.heads).into_vec();
            let (closed, open): (Vec<_>, Vec<_>) =
                heads.into_iter().partition(|head| head.shape.agent_type == agent_type);
            closed.iter().for_each(|head| of.pass(head.priority));
            of.heads = open.into();
        }
    }

    /// The task goes on waiting, and so does all that is still to come of this shape.
    pub(crate) fn close(&mut self, head: Head) {
        self.go_on(&head, None);
        for (tenant, priority) in self.lines.of(&head.shape).into_iter().flat_map(BTreeMap::keys) {
            if (*tenant, *priority) != (head.tenant, head.priority)
                && let Some(of) = self.waiting.get_mut(tenant)
            {
                of.pass(*priority);
            }
        }
        self.closed.insert(head.shape);
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

    fn shape(of: &str) -> Arc<Shape> {
        let agent_type = Capability::new(of).unwrap();
        Arc::new(Shape {
            agent_type,
            requires: Requirements::none(),
            resources: Resources::new(),
            pools: Resources::new(),
        })
    }

    /// Lines with tenants of weight 1, by name.
    fn tenants(count: usize) -> Tenants {
        let mut tenants = Tenants::default();
        for n in 0..count {
            assert_eq!(tenants.seat(Some(&format!("t{n}").into()), &BTreeMap::new()), n);
        }
        tenants
    }

    /// Seats the first task, and gives whose it is.
    fn serve(lines: &mut Lines, tenants: &mut Tenants, now: Millis) -> Option<(Seat, TaskId)> {
        let mut walk = lines.walk(tenants, (now, AGEING), |_| true);
        let head = walk.next()?;
        walk.take(&head);
        Some((head.tenant, head.task().clone()))
    }

    proptest! {
        /// Whoever has something to do all the while is never more than a task behind another one, and no more are the runs of one
        /// tenant, however many tasks they bring and whenever these come.
        #[test]
        fn o1_tenants_and_their_runs_share_within_a_task(
            brings in prop::collection::vec((0..3usize, 0..3u64, 1..20u32, 0..400u64), 2..30),
            shapes in 1..3usize,
        ) {
            let mut tenants = tenants(3);
            let mut lines = Lines::default();
            let mut left: BTreeMap<Seat, BTreeMap<RunId, u32>> = BTreeMap::new();
            for (nth, (tenant, run, count, since)) in brings.iter().enumerate() {
                for n in 0..*count {
                    let task = task(*tenant, *run, nth as u32 * 100 + n);
                    *left.entry(*tenant).or_default().entry(task.run).or_default() += 1;
                    let shape = shape(["a", "b"][*tenant % shapes]);
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
                let wait = |of: &BTreeMap<RunId, u32>| of.values().any(|left| *left > 0);
                let waiting: Vec<_> = left.iter().filter(|(_, of)| wait(of)).map(|(tenant, _)| got[tenant]).collect();
                let most = got.values().max().unwrap();
                prop_assert!(waiting.iter().all(|got| most - got <= 1) || waiting.len() < 2, "{got:?}");
                for of in left.values() {
                    let runs = of.iter().filter(|(_, left)| **left > 0).map(|(run, _)| of_runs[run]);
                    let (least, most) = (runs.clone().min(), of.keys().map(|run| of_runs[run]).max());
                    prop_assert!(least.is_none_or(|least| most.unwrap() - least <= 1 || runs.count() < 2), "{of_runs:?}");
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
            let one = |priority, since| Queued { shape: shape("a"), priority, since, near: None };
            for n in 0..=before {
                lines.add(&task(0, 0, n), &one(priority, 0), 0);
            }
            let steps = u64::from(theirs.saturating_sub(priority).max(0).unsigned_abs()) + 1;
            let until = (u64::from(before) + 1) * (steps + others as u64) * AGEING;
            let mut placed = 0;
            // A task each 100 ms, and each other tenant brings more than that.
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
            let queued = Queued { shape: shape("a"), priority: 0, since: u64::from(nth), near: None };
            lines.add(&task(tenant, run, nth), &queued, tenant);
        }
        let mut walk = lines.walk(&mut tenants, (10, AGEING), |_| true);
        let mut seen = Vec::new();
        while let Some(head) = walk.next() {
            walk.keep(&head);
            seen.push(head.task().item.unwrap());
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        // What has left the queue is nobody's turn.
        let mut walk = lines.walk(&mut tenants, (10, AGEING), |_| true);
        let head = walk.next().unwrap();
        walk.forget(&head);
        drop(walk);
        assert_eq!((serve(&mut lines, &mut tenants, 10).unwrap().0, lines.len()), (0, 3));
    }
}
