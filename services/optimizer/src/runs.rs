//! The runs that have not ended: what ties a task to its workflow and its trace.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use baton_machine::Shelves;
use baton_protocol::record::{Outcome, RunStarted, StageEnded};
use baton_protocol::request::Strategy;
use baton_protocol::trace::{TraceContext, part_span};
use baton_protocol::{AgentId, Capability, Millis, Part, RunId, StageName, TaskId, WorkflowName};
use serde::{Deserialize, Serialize};

use crate::durations::{Gauss, unknown_run};
use crate::fleet::Holder;

/// Of how many tasks of a run it is known who did them: of those that succeeded last.
const MAX_DONE: usize = 32;

/// The runs that have not ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Runs {
    runs: Shelves<RunId, Arc<Run>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) workflow: WorkflowName,
    #[serde(default)]
    pub(crate) version: u32,
    trace: Option<TraceContext>,
    /// How its tasks are placed, if not as those of all runs are.
    #[serde(default)]
    pub(crate) strategy: Option<Strategy>,
    /// When it should have ended.
    #[serde(default)]
    pub(crate) due: Option<Millis>,
    /// When it began.
    #[serde(default)]
    pub(crate) since: Millis,
    /// Who did what, by the places of the stages in the graph, the latest last.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    done: VecDeque<(u32, AgentId)>,
    /// The stages that are over, by their places in the graph: a bit each.
    #[serde(default)]
    over: Vec<u64>,
    /// How much more or less work it is than others.
    #[serde(default = "unknown_run")]
    pub(crate) work: Gauss,
    /// The attempt that is under way, by part: there is at most one.
    open: BTreeMap<Part, Open>,
    /// Under whom the last attempt failed, by part.
    failed: BTreeMap<Part, AgentId>,
}

/// An attempt that is under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Open {
    attempt: u32,
    /// What it asks for.
    #[serde(default)]
    agent_type: Option<Capability>,
    holder: Option<Arc<Holder>>,
}

/// What becomes free when a task ends.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) run: &'a mut Run,
    /// The task type, if anything is known of the task.
    pub(crate) agent_type: Option<Capability>,
    pub(crate) holder: Option<Arc<Holder>>,
}

/// A run that has ended, with the tasks that were open, and who held each.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) run: Arc<Run>,
    pub(crate) open: Vec<(TaskId, Option<Arc<Holder>>)>,
}

impl Run {
    /// Which task of a stage is under way; of several, that of the first item.
    pub(crate) fn task(&self, run: RunId, stage: &StageName) -> Option<TaskId> {
        let first = self.open.range(Part::from(stage.clone())..).next();
        first.filter(|(part, _)| part.stage == *stage).map(|(part, open)| part.task(run, open.attempt))
    }

    /// Under whom the attempt before this one failed.
    pub(crate) fn failed_under(&self, task: &TaskId) -> Option<&AgentId> {
        // Few have failed: a part is not made for nothing.
        if self.failed.is_empty() { None } else { self.failed.get(&task.part()) }
    }

    /// An agent has done a task of the stage at this place of the graph.
    pub(crate) fn set_done(&mut self, place: u32, agent: &AgentId) {
        if self.done.len() == MAX_DONE {
            self.done.pop_front();
        }
        self.done.push_back((place, agent.clone()));
    }

    /// Who did most of the tasks of the stages at these places, as far as that is known; of several the one that did the last.
    pub(crate) fn who_did(&self, places: impl Iterator<Item = u32>) -> Option<AgentId> {
        if self.done.is_empty() {
            return None;
        }
        let places: Vec<u32> = places.take(MAX_DONE).collect();
        let mut did: BTreeMap<&AgentId, (usize, usize)> = BTreeMap::new();
        for (nth, (_, agent)) in self.done.iter().enumerate().filter(|(_, (place, _))| places.contains(place)) {
            let (count, last) = did.entry(agent).or_default();
            (*count, *last) = (*count + 1, nth);
        }
        did.into_iter().max_by_key(|(_, did)| *did).map(|(agent, _)| agent.clone())
    }

    /// Whether the stage at this place of the graph is over.
    pub(crate) fn is_over(&self, place: u32) -> bool {
        self.over.get(place as usize / 64).is_some_and(|bits| bits >> (place % 64) & 1 == 1)
    }

    /// The stage at this place of the graph is over.
    pub(crate) fn set_over(&mut self, place: u32) {
        let at = place as usize / 64;
        if self.over.len() <= at {
            self.over.resize(at + 1, 0);
        }
        self.over[at] |= 1 << (place % 64);
    }

    fn held(&self, run: RunId) -> impl Iterator<Item = (TaskId, &Holder)> {
        self.open.iter().filter_map(move |(part, open)| {
            let holder = open.holder.as_deref()?;
            Some((part.task(run, open.attempt), holder))
        })
    }
}

impl Runs {
    /// Whether it is a new one.
    pub(crate) fn started(&mut self, at: Millis, record: &RunStarted) -> bool {
        let before = self.runs.len();
        let parent = record.parent.as_ref().and_then(|parent| self.runs.get(&parent.task.run));
        let due = record.due.or(parent.and_then(|run| run.due));
        self.runs.get_or_insert_with(&record.run, || {
            Arc::new(Run {
                workflow: record.workflow.clone(),
                version: record.version,
                trace: record.trace,
                strategy: record.strategy,
                due,
                since: at,
                done: VecDeque::new(),
                over: Vec::new(),
                work: unknown_run(),
                open: BTreeMap::new(),
                failed: BTreeMap::new(),
            })
        });
        self.runs.len() > before
    }

    /// Opens a task. False if its run is not live, or the stage has an attempt under way.
    pub(crate) fn stage_ready(&mut self, task: &TaskId, agent_type: &Capability) -> bool {
        let Some(run) = self.runs.change(&task.run).filter(|run| !run.open.contains_key(&task.part())) else {
            return false;
        };
        let open = Open { attempt: task.attempt, agent_type: Some(agent_type.clone()), holder: None };
        run.open.insert(task.part(), open);
        true
    }

    /// Whether an attempt is under way.
    pub(crate) fn is_open(&self, task: &TaskId) -> bool {
        let open = self.runs.get(&task.run).and_then(|run| run.open.get(&task.part()));
        open.is_some_and(|open| open.attempt == task.attempt)
    }

    /// A task is held by this.
    pub(crate) fn held(&mut self, task: &TaskId, holder: Holder) {
        if let Some(open) = self.open(task) {
            open.holder = Some(Arc::new(holder));
        }
    }

    /// What a task that is under way asks for, if that is known.
    pub(crate) fn agent_type(&self, task: &TaskId) -> Option<&Capability> {
        let open = self.runs.get(&task.run)?.open.get(&task.part())?;
        open.agent_type.as_ref().filter(|_| open.attempt == task.attempt)
    }

    /// A task is held no more. Gives who held it.
    pub(crate) fn freed(&mut self, task: &TaskId) -> Option<Arc<Holder>> {
        self.open(task)?.holder.take()
    }

    fn open(&mut self, task: &TaskId) -> Option<&mut Open> {
        let open = self.runs.change(&task.run)?.open.get_mut(&task.part());
        open.filter(|open| open.attempt == task.attempt)
    }

    /// Ends a task, if it was open.
    pub(crate) fn stage_ended(&mut self, record: &StageEnded) -> Option<Ended<'_>> {
        let (part, attempt) = (record.task.part(), record.task.attempt);
        let run = self.runs.change(&record.task.run)?;
        run.open.get(&part).filter(|open| open.attempt == attempt)?;
        let open = run.open.remove(&part)?;
        match (record.outcome, &record.agent) {
            (Outcome::Failed | Outcome::Lost | Outcome::TimedOut, Some(agent)) => {
                run.failed.insert(part, agent.clone());
            }
            (Outcome::Succeeded | Outcome::Cancelled | Outcome::Delegated, _) => {
                run.failed.remove(&part);
            }
            (Outcome::Failed | Outcome::Lost | Outcome::TimedOut, None) => {}
        }
        Some(Ended { run, agent_type: open.agent_type, holder: open.holder })
    }

    /// Ends a run. Gives the tasks that were open, and who held each.
    pub(crate) fn finished(&mut self, run: RunId) -> Option<Finished> {
        let ended = self.runs.remove(&run)?;
        let task = |(part, open): (&Part, &Open)| (part.task(run, open.attempt), open.holder.clone());
        Some(Finished { open: ended.open.iter().map(task).collect(), run: ended })
    }

    /// The tasks of a run that are open.
    pub(crate) fn open_tasks(&self, run: RunId) -> Vec<TaskId> {
        let open = self.runs.get(&run).into_iter().flat_map(|run| &run.open);
        open.map(|(part, open)| part.task(run, open.attempt)).collect()
    }

    /// Under whom the attempt before this one failed.
    pub(crate) fn failed_under(&self, task: &TaskId) -> Option<&AgentId> {
        self.runs.get(&task.run)?.failed_under(task)
    }

    /// A run, while it lives.
    pub(crate) fn get(&self, run: RunId) -> Option<&Run> {
        self.runs.get(&run).map(Arc::as_ref)
    }

    /// A run, while it lives, to be changed.
    pub(crate) fn get_mut(&mut self, run: RunId) -> Option<&mut Run> {
        self.runs.change(&run)
    }

    /// Who holds a task.
    pub(crate) fn holder(&self, task: &TaskId) -> Option<&Holder> {
        let open = self.runs.get(&task.run)?.open.get(&task.part())?;
        open.holder.as_deref().filter(|_| open.attempt == task.attempt)
    }

    /// All tasks that are held, and by whom.
    pub(crate) fn held_tasks(&self) -> impl Iterator<Item = (TaskId, &Holder)> {
        self.runs.iter().flat_map(|(run, of)| of.held(*run))
    }

    /// Where in its run's trace a part of a task is.
    pub(crate) fn trace(&self, task: &TaskId, part: &str) -> TraceContext {
        let of_run = || TraceContext::of_run(task.run);
        self.runs.get(&task.run).and_then(|run| run.trace).unwrap_or_else(of_run).at(part_span(task, part))
    }
}
