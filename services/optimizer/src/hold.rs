//! Tasks of runs that are paused: they are out of the queue, and come back with the time that they had waited.

use std::collections::BTreeMap;

use baton_protocol::{RunId, TaskId};
use serde::{Deserialize, Serialize};

use crate::Optimizer;
use crate::queue::Queued;

/// What is held, run by run; a run that is paused has an entry.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Held(BTreeMap<RunId, BTreeMap<TaskId, Queued>>);

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn contains(&self, task: &TaskId) -> bool {
        self.0.get(&task.run).is_some_and(|held| held.contains_key(task))
    }

    pub(crate) fn is_paused(&self, run: RunId) -> bool {
        self.0.contains_key(&run)
    }

    /// A task is over, or was leased all the same.
    pub(crate) fn remove(&mut self, task: &TaskId) -> Option<Queued> {
        self.0.get_mut(&task.run)?.remove(task)
    }

    pub(crate) fn run_finished(&mut self, run: RunId) {
        self.0.remove(&run);
    }
}

impl Optimizer {
    /// Takes a run's tasks out of the queue.
    pub(crate) fn run_paused(&mut self, run: RunId) {
        if self.runs.get(run).is_none() {
            return;
        }
        let held = self.held.0.entry(run).or_default();
        for task in self.runs.open_tasks(run) {
            held.extend(self.queue.remove(&task).map(|queued| (task, queued)));
        }
    }

    /// Puts a run's tasks back.
    pub(crate) fn run_resumed(&mut self, run: RunId) {
        for (task, queued) in self.held.0.remove(&run).into_iter().flatten() {
            self.queue.insert(task, queued);
        }
        // There may be other pools than before the pause.
        self.queue.split_anew(&self.pools);
    }

    /// Takes a task out of the queue, or from among those that are held.
    pub(crate) fn dequeue(&mut self, task: &TaskId) -> Option<Queued> {
        self.queue.remove(task).or_else(|| if self.held.is_empty() { None } else { self.held.remove(task) })
    }
}
