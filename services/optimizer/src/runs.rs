//! The runs that have not ended: what ties a task to its workflow and its trace.

use std::collections::BTreeMap;

use baton_protocol::record::{Outcome, RunStarted, StageEnded};
use baton_protocol::trace::{TraceContext, part_span};
use baton_protocol::{AgentId, RunId, StageName, TaskId, WorkflowName};
use serde::{Deserialize, Serialize};

/// The runs that have not ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Runs {
    runs: BTreeMap<RunId, Run>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Run {
    workflow: WorkflowName,
    trace: Option<TraceContext>,
    /// The attempt that is under way, by stage: there is at most one.
    open: BTreeMap<StageName, u32>,
    /// Under whom the last attempt failed, by stage.
    failed: BTreeMap<StageName, AgentId>,
}

impl Runs {
    pub(crate) fn started(&mut self, record: &RunStarted) {
        self.runs.entry(record.run).or_insert_with(|| Run {
            workflow: record.workflow.clone(),
            trace: record.trace,
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
        });
    }

    /// Opens a task. False if its run is not live, or the stage has an attempt under way.
    pub(crate) fn stage_ready(&mut self, task: &TaskId) -> bool {
        let Some(run) = self.runs.get_mut(&task.run).filter(|run| !run.open.contains_key(&task.stage)) else {
            return false;
        };
        run.open.insert(task.stage.clone(), task.attempt);
        true
    }

    /// Ends a task. Gives its workflow if it was open.
    pub(crate) fn stage_ended(&mut self, record: &StageEnded) -> Option<&WorkflowName> {
        let TaskId { run, stage, attempt } = &record.task;
        let run = self.runs.get_mut(run)?;
        if run.open.get(stage) != Some(attempt) {
            return None;
        }
        run.open.remove(stage);
        match (record.outcome, &record.agent) {
            (Outcome::Failed | Outcome::Lost | Outcome::TimedOut, Some(agent)) => {
                run.failed.insert(stage.clone(), agent.clone());
            }
            (Outcome::Succeeded | Outcome::Cancelled, _) => {
                run.failed.remove(stage);
            }
            (Outcome::Failed | Outcome::Lost | Outcome::TimedOut, None) => {}
        }
        Some(&run.workflow)
    }

    /// Ends a run. Gives the tasks that were open.
    pub(crate) fn finished(&mut self, run: RunId) -> Vec<TaskId> {
        let open = self.runs.remove(&run).map(|run| run.open).unwrap_or_default();
        open.into_iter().map(|(stage, attempt)| TaskId { run, stage, attempt }).collect()
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
