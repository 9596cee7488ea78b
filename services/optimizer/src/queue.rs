//! The queue: tasks that are ready and wait for an agent.
//!
//! The order is by priority, where waiting for `ageing_ms` counts one step, then by age. The step depends on a setting
//! and on the time, so the order is not kept. The leader keeps those tasks that it may ask an agent for in [`Lines`]:
//! tasks of one shape and one priority, each line in the order of age, which never changes; a [`Walk`] merges the heads of
//! the lines. What can not be placed is left out a whole shape at a time, so that a long queue costs nothing where there
//! is no room.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Bound;
use std::sync::Arc;

use baton_machine::{Priorities, Shelves};
use baton_protocol::{AgentId, Capability, Millis, Requirements, Resources, TaskId};
use serde::{Deserialize, Serialize};

use crate::pools::Pools;

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

/// Tasks of one shape and one priority, the oldest first.
type Line = BTreeSet<(Millis, TaskId)>;

/// The tasks that may be placed, by shape and priority. Tasks that have left the queue are found and taken out when it is
/// their turn.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    lines: BTreeMap<Arc<Shape>, BTreeMap<i32, Line>>,
    len: usize,
}

impl Lines {
    pub(crate) fn add(&mut self, task: &TaskId, queued: &Queued) {
        let entry = (queued.since, task.clone());
        let lines = match self.lines.get_mut(&queued.shape) {
            Some(lines) => lines,
            None => self.lines.entry(Arc::clone(&queued.shape)).or_default(),
        };
        self.len += usize::from(lines.entry(queued.priority).or_default().insert(entry));
    }

    fn take(&mut self, head: &Head) {
        let Some(lines) = self.lines.get_mut(&head.shape) else { return };
        let Some(line) = lines.get_mut(&head.priority) else { return };
        let Reverse(entry) = &head.order.1;
        self.len -= usize::from(line.remove(entry));
        if line.is_empty() {
            lines.remove(&head.priority);
            if lines.is_empty() {
                self.lines.remove(&head.shape);
            }
        }
    }

    /// How many there are, those included that have left the queue.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the first stands in the queue.
    pub(crate) fn level(&self, now: Millis, ageing_ms: Millis) -> Option<i128> {
        let lines = self.lines.values().flatten();
        let first = lines.filter_map(|(priority, line)| Some(order((), *priority, line.first()?.0, now, ageing_ms).0));
        first.max()
    }

    /// A walk in the order in which they should be placed.
    pub(crate) fn walk(&mut self, now: Millis, ageing_ms: Millis) -> Walk<'_> {
        let mut heads = BinaryHeap::new();
        for (shape, lines) in &self.lines {
            for (priority, line) in lines {
                heads.extend(line.first().map(|first| Head::new(first, shape, *priority, now, ageing_ms)));
            }
        }
        Walk { lines: self, now, ageing_ms, heads, closed: BTreeSet::new() }
    }
}

/// A walk through the lines.
pub(crate) struct Walk<'a> {
    lines: &'a mut Lines,
    now: Millis,
    ageing_ms: Millis,
    heads: BinaryHeap<Head>,
    closed: BTreeSet<Arc<Shape>>,
}

/// The first of a line that is not passed yet.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Head {
    order: Order<TaskId>,
    pub(crate) shape: Arc<Shape>,
    pub(crate) priority: i32,
}

impl Head {
    fn new(entry: &(Millis, TaskId), shape: &Arc<Shape>, priority: i32, now: Millis, ageing_ms: Millis) -> Self {
        let (since, task) = entry;
        Self { order: order(task.clone(), priority, *since, now, ageing_ms), shape: Arc::clone(shape), priority }
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
    /// The next task, to be given back by [`Walk::keep`], [`Walk::take`] or [`Walk::close`]; or by nothing: then what is of its
    /// shape and priority goes on waiting.
    pub(crate) fn next(&mut self) -> Option<Head> {
        while let Some(head) = self.heads.pop() {
            if !self.closed.contains(&head.shape) {
                return Some(head);
            }
        }
        None
    }

    /// The task goes on waiting.
    pub(crate) fn keep(&mut self, head: &Head) {
        let line = self.lines.lines.get(&head.shape).and_then(|lines| lines.get(&head.priority));
        let Reverse(entry) = &head.order.1;
        let after = line.and_then(|line| line.range((Bound::Excluded(entry), Bound::Unbounded)).next());
        let (now, ageing_ms) = (self.now, self.ageing_ms);
        self.heads.extend(after.map(|entry| Head::new(entry, &head.shape, head.priority, now, ageing_ms)));
    }

    /// The task waits no more.
    pub(crate) fn take(&mut self, head: &Head) {
        self.keep(head);
        self.lines.take(head);
    }

    /// The task goes on waiting, and so does all that is still to come of this shape.
    pub(crate) fn close(&mut self, head: Head) {
        self.closed.insert(head.shape);
    }
}
