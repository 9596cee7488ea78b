//! The runs that have not ended: what ties a task to its workflow and its trace.

use std::collections::BTreeMap;
use std::sync::Arc;

use baton_machine::Shelves;
use baton_protocol::record::{Outcome, RunStarted, StageEnded};
use baton_protocol::trace::{TraceContext, part_span};
use baton_protocol::{AgentId, RunId, StageName, TaskId, WorkflowName};
use serde::{Deserialize, Serialize};

use crate::fleet::Holder;

/// The runs that have not ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Runs {
    runs: Shelves<RunId, Arc<Run>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Run {
    workflow: WorkflowName,
    trace: Option<TraceContext>,
    /// The attempt that is under way, by stage: there is at most one.
    open: BTreeMap<StageName, Open>,
    /// Under whom the last attempt failed, by stage.
    failed: BTreeMap<StageName, AgentId>,
}

/// An attempt that is under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Open {
    attempt: u32,
    holder: Option<Arc<Holder>>,
}

/// What becomes free when a task ends.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) workflow: WorkflowName,
    pub(crate) holder: Option<Arc<Holder>>,
}

impl Runs {
    pub(crate) fn started(&mut self, record: &RunStarted) {
        self.runs.get_or_insert_with(&record.run, || {
            Arc::new(Run {
                workflow: record.workflow.clone(),
                trace: record.trace,
                open: BTreeMap::new(),
                failed: BTreeMap::new(),
            })
        });
    }

    /// Opens a task. False if its run is not live, or the stage has an attempt under way.
    pub(crate) fn stage_ready(&mut self, task: &TaskId) -> bool {
        let Some(run) = self.runs.change(&task.run).filter(|run| !run.open.contains_key(&task.stage)) else {
            return false;
        };
        run.open.insert(task.stage.clone(), Open { attempt: task.attempt, holder: None });
        true
    }

    /// A task is held by this.
    pub(crate) fn held(&mut self, task: &TaskId, holder: Holder) {
        if let Some(open) = self.open(task) {
            open.holder = Some(Arc::new(holder));
        }
    }

    /// A task is held no more. Gives who held it.
    pub(crate) fn freed(&mut self, task: &TaskId) -> Option<Arc<Holder>> {
        self.open(task)?.holder.take()
    }

    fn open(&mut self, task: &TaskId) -> Option<&mut Open> {
        let open = self.runs.change(&task.run)?.open.get_mut(&task.stage);
        open.filter(|open| open.attempt == task.attempt)
    }

    /// Ends a task, if it was open.
    pub(crate) fn stage_ended(&mut self, record: &StageEnded) -> Option<Ended> {
        let TaskId { run, stage, attempt } = &record.task;
        let run = self.runs.change(run)?;
        run.open.get(stage).filter(|open| open.attempt == *attempt)?;
        let open = run.open.remove(stage)?;
        match (record.outcome, &record.agent) {
            (Outcome::Failed | Outcome::Lost | Outcome::TimedOut, Some(agent)) => {
                run.failed.insert(stage.clone(), agent.clone());
            }
            (Outcome::Succeeded | Outcome::Cancelled, _) => {
                run.failed.remove(stage);
            }
            (Outcome::Failed | Outcome::Lost | Outcome::TimedOut, None) => {}
        }
        Some(Ended { workflow: run.workflow.clone(), holder: open.holder })
    }

    /// Ends a run. Gives the tasks that were open, and who held each.
    pub(crate) fn finished(&mut self, run: RunId) -> Vec<(TaskId, Option<Arc<Holder>>)> {
        let ended = self.runs.remove(&run);
        let open = ended.iter().flat_map(|run| &run.open);
        open.map(|(stage, open)| (TaskId { run, stage: stage.clone(), attempt: open.attempt }, open.holder.clone()))
            .collect()
    }

    /// The tasks of a run that are open.
    pub(crate) fn open_tasks(&self, run: RunId) -> Vec<TaskId> {
        let open = self.runs.get(&run).into_iter().flat_map(|run| &run.open);
        open.map(|(stage, open)| TaskId { run, stage: stage.clone(), attempt: open.attempt }).collect()
    }

    /// Under whom the attempt before this one failed.
    pub(crate) fn failed_under(&self, task: &TaskId) -> Option<&AgentId> {
        self.runs.get(&task.run)?.failed.get(&task.stage)
    }

    /// The run's workflow, while it lives.
    pub(crate) fn workflow(&self, run: RunId) -> Option<&WorkflowName> {
        self.runs.get(&run).map(|run| &run.workflow)
    }

    /// Where in its run's trace a part of a task is.
    pub(crate) fn trace(&self, task: &TaskId, part: &str) -> TraceContext {
        let of_run = || TraceContext::of_run(task.run);
        self.runs.get(&task.run).and_then(|run| run.trace).unwrap_or_else(of_run).at(part_span(task, part))
    }
}
