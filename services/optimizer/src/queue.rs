//! The queue: tasks that are ready and wait for an agent.
//!
//! The order is by priority, where waiting for `ageing_ms` counts one step, then by age. The step depends on a setting
//! and on the time, so the order is not kept: tasks stand in *lines* of one shape and one priority, each in the order of
//! age, which never changes; a [walk](Queue::walk) merges the heads of the lines. What can not be placed is left out a
//! whole shape at a time, so that a long queue costs nothing where there is no room.

use std::cmp::Ordering;
use std::collections::btree_set::Iter;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use baton_protocol::{Capability, Millis, Resources, TaskId};
use serde::{Deserialize, Serialize};

/// The tasks that wait.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<TaskId, Queued>", into = "BTreeMap<TaskId, Queued>")]
pub(crate) struct Queue {
    tasks: BTreeMap<TaskId, Queued>,
    /// By shape and priority: follows from `tasks`.
    lines: BTreeMap<Shape, BTreeMap<i32, Line>>,
}

/// Tasks of one shape and one priority, the oldest first.
type Line = BTreeSet<(Millis, TaskId)>;

/// What a task asks of an agent. Tasks of one shape fit the same agents.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Shape {
    /// What the agent must be able to do.
    pub(crate) agent_type: Capability,
    /// What it must have free beside one slot.
    pub(crate) resources: Resources,
}

/// A task that waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Queued {
    pub(crate) shape: Shape,
    pub(crate) priority: i32,
    pub(crate) since: Millis,
}

impl Queue {
    pub(crate) fn insert(&mut self, task: TaskId, shape: Shape, priority: i32, since: Millis) {
        self.remove(&task);
        self.line_up(task.clone(), &shape, priority, since);
        self.tasks.insert(task, Queued { shape, priority, since });
    }

    fn line_up(&mut self, task: TaskId, shape: &Shape, priority: i32, since: Millis) {
        self.lines.entry(shape.clone()).or_default().entry(priority).or_default().insert((since, task));
    }

    pub(crate) fn remove(&mut self, task: &TaskId) -> Option<Queued> {
        let queued = self.tasks.remove(task)?;
        if let Some(lines) = self.lines.get_mut(&queued.shape) {
            if let Some(line) = lines.get_mut(&queued.priority) {
                line.remove(&(queued.since, task.clone()));
                if line.is_empty() {
                    lines.remove(&queued.priority);
                }
            }
            if lines.is_empty() {
                self.lines.remove(&queued.shape);
            }
        }
        Some(queued)
    }

    pub(crate) fn get(&self, task: &TaskId) -> Option<&Queued> {
        self.tasks.get(task)
    }

    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// The tasks in the order in which they should be placed.
    pub(crate) fn walk(&self, now: Millis, ageing_ms: Millis) -> Walk<'_> {
        let mut walk = Walk { now, ageing_ms: ageing_ms.max(1), heads: BinaryHeap::new(), closed: BTreeSet::new() };
        for (shape, lines) in &self.lines {
            for (priority, line) in lines {
                walk.advance(shape, *priority, line.iter());
            }
        }
        walk
    }
}

impl From<BTreeMap<TaskId, Queued>> for Queue {
    fn from(tasks: BTreeMap<TaskId, Queued>) -> Self {
        let mut queue = Self::default();
        for (task, queued) in &tasks {
            queue.line_up(task.clone(), &queued.shape, queued.priority, queued.since);
        }
        queue.tasks = tasks;
        queue
    }
}

impl From<Queue> for BTreeMap<TaskId, Queued> {
    fn from(queue: Queue) -> Self {
        queue.tasks
    }
}

/// A walk through the queue.
pub(crate) struct Walk<'a> {
    now: Millis,
    ageing_ms: Millis,
    heads: BinaryHeap<Head<'a>>,
    closed: BTreeSet<&'a Shape>,
}

/// The first of a line that is not passed yet.
struct Head<'a> {
    /// Its priority, with what it gained by waiting.
    level: i128,
    since: Millis,
    task: &'a TaskId,
    shape: &'a Shape,
    priority: i32,
    rest: Iter<'a, (Millis, TaskId)>,
}

impl<'a> Walk<'a> {
    /// Leaves out what is still to come of this shape.
    pub(crate) fn close(&mut self, shape: &'a Shape) {
        self.closed.insert(shape);
    }

    fn advance(&mut self, shape: &'a Shape, priority: i32, mut rest: Iter<'a, (Millis, TaskId)>) {
        if let Some((since, task)) = rest.next() {
            let gained = self.now.saturating_sub(*since) / self.ageing_ms;
            let level = i128::from(priority) + i128::from(gained);
            self.heads.push(Head { level, since: *since, task, shape, priority, rest });
        }
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = (&'a TaskId, &'a Shape, Millis);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(Head { since, task, shape, priority, rest, .. }) = self.heads.pop() {
            if self.closed.contains(shape) {
                continue;
            }
            self.advance(shape, priority, rest);
            return Some((task, shape, since));
        }
        None
    }
}

impl Head<'_> {
    /// Higher levels, then the older, then the smaller id. A heap gives the greatest first.
    fn key(&self) -> (i128, std::cmp::Reverse<(Millis, &TaskId)>) {
        (self.level, std::cmp::Reverse((self.since, self.task)))
    }
}

impl Ord for Head<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head<'_> {}
