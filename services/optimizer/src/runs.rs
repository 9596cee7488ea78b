//! The runs that have not ended: what ties a task to its workflow and its trace.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use baton_machine::Shelves;
use baton_protocol::record::{Outcome, RunStarted, StageEnded, StageReady};
use baton_protocol::request::Strategy;
use baton_protocol::run::TENANT_KEY;
use baton_protocol::trace::{TraceContext, part_span};
use baton_protocol::{AgentId, Capability, LeaseId, Millis, Part, RunId, StageName, TaskId, WorkflowName};
use serde::{Deserialize, Serialize};

use crate::durations::{Gauss, unknown_run};
use crate::fleet::{Holder, NO_LEASE};
use crate::queue::Shape;

/// Of how many tasks of a run it is known who did them: of those that succeeded last.
const MAX_DONE: usize = 32;

/// The tenant of a run that is a part of no other: what its metadata say, or else the account that it is paid from, a team's or
/// a project's.
fn tenant(record: &RunStarted) -> Option<Arc<str>> {
    let account = || Some(record.budget.as_ref()?.of.as_ref()?.as_str());
    record.metadata.get(TENANT_KEY).map(String::as_str).or_else(account).map(Arc::from)
}

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
    /// What was given to it at its start: larger goes first.
    #[serde(default)]
    pub(crate) priority: i32,
    /// When it should have ended.
    #[serde(default)]
    pub(crate) due: Option<Millis>,
    /// When it began.
    #[serde(default)]
    pub(crate) since: Millis,
    /// Who it is for: tenants share what is equally urgent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<Arc<str>>,
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
    /// Whether a second agent may be given it as well, and which one is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    hedge: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    second: Option<Arc<Holder>>,
}

impl Open {
    fn holders(&self) -> impl Iterator<Item = &Arc<Holder>> {
        self.holder.iter().chain(&self.second)
    }
}

/// What becomes free when a task ends.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) run: &'a mut Run,
    /// The task type, if anything is known of the task.
    pub(crate) agent_type: Option<Capability>,
    pub(crate) holder: Option<Arc<Holder>>,
    /// Who had it as well.
    pub(crate) second: Option<Arc<Holder>>,
}

/// A run that has ended, with the tasks that were open, and who held each.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) run: Arc<Run>,
    pub(crate) open: Vec<(TaskId, Vec<Arc<Holder>>)>,
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

    /// How many of its tasks are under way, and how many of these an agent has.
    pub(crate) fn open_and_held(&self) -> (usize, usize) {
        (self.open.len(), self.open.values().filter(|open| open.holder.is_some()).count())
    }

    /// Its tasks that agents have, and who has each: once more where a second one has it.
    pub(crate) fn held(&self, run: RunId) -> impl Iterator<Item = (TaskId, &Holder)> {
        let of = move |part: &Part, open: &Open| part.task(run, open.attempt);
        self.open
            .iter()
            .flat_map(move |(part, open)| open.holders().map(move |holder| (of(part, open), holder.as_ref())))
    }
}

impl Runs {
    /// Whether it is a new one.
    pub(crate) fn started(&mut self, at: Millis, record: &RunStarted) -> bool {
        let before = self.runs.len();
        let parent = record.parent.as_ref().and_then(|parent| self.runs.get(&parent.task.run));
        let due = record.due.or(parent.and_then(|run| run.due));
        let tenant = parent.map_or_else(|| tenant(record), |run| run.tenant.clone());
        self.runs.get_or_insert_with(&record.run, || {
            Arc::new(Run {
                workflow: record.workflow.clone(),
                version: record.version,
                trace: record.trace,
                strategy: record.strategy,
                priority: record.priority,
                due,
                since: at,
                tenant,
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
    pub(crate) fn stage_ready(&mut self, StageReady { task, agent_type, hedge, .. }: &StageReady) -> bool {
        let Some(run) = self.runs.change(&task.run).filter(|run| !run.open.contains_key(&task.part())) else {
            return false;
        };
        let agent_type = Some(agent_type.clone());
        let open = Open { attempt: task.attempt, agent_type, holder: None, hedge: *hedge, second: None };
        run.open.insert(task.part(), open);
        true
    }

    /// Whether an attempt is under way.
    pub(crate) fn is_open(&self, task: &TaskId) -> bool {
        let open = self.runs.get(&task.run).and_then(|run| run.open.get(&task.part()));
        open.is_some_and(|open| open.attempt == task.attempt)
    }

    /// A task that asks for this is held by this.
    pub(crate) fn held(&mut self, task: &TaskId, mut holder: Holder, shape: Option<Arc<Shape>>) {
        if let Some(open) = self.open(task) {
            // What is taken of pools is taken once.
            holder.hedge = shape.filter(|shape| open.hedge && shape.pools.is_empty());
            open.holder = Some(Arc::new(holder));
        }
    }

    /// A task that is held under that lease is held by this as well.
    pub(crate) fn held_beside(&mut self, task: &TaskId, beside: LeaseId, mut second: Holder) {
        let Some(open) = self.open(task) else { return };
        if let Some(first) = open.holder.as_ref().filter(|first| first.lease == beside) {
            second.hedge.clone_from(&first.hedge);
            open.second = Some(Arc::new(second));
        }
    }

    /// What a task that is under way asks for, if that is known.
    pub(crate) fn agent_type(&self, task: &TaskId) -> Option<&Capability> {
        let open = self.runs.get(&task.run)?.open.get(&task.part())?;
        open.agent_type.as_ref().filter(|_| open.attempt == task.attempt)
    }

    /// A task is held no more under a lease. Gives who held it. If somebody else does as well, that one does alone from now on.
    pub(crate) fn freed(&mut self, task: &TaskId, lease: LeaseId) -> Option<Arc<Holder>> {
        let open = self.open(task)?;
        if open.second.as_ref().is_some_and(|second| second.lease == lease) {
            return open.second.take();
        }
        // A holder of which an older edition has not kept the lease is the only one.
        if open.holder.as_ref().is_some_and(|holder| holder.lease != lease && holder.lease != NO_LEASE) {
            return None;
        }
        std::mem::replace(&mut open.holder, open.second.take())
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
        Some(Ended { run, agent_type: open.agent_type, holder: open.holder, second: open.second })
    }

    /// Ends a run. Gives the tasks that were open, and who held each.
    pub(crate) fn finished(&mut self, run: RunId) -> Option<Finished> {
        let ended = self.runs.remove(&run)?;
        let task = |(part, open): (&Part, &Open)| (part.task(run, open.attempt), open.holders().cloned().collect());
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

    /// All runs that live.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RunId, &Run)> {
        self.runs.iter().map(|(id, run)| (id, run.as_ref()))
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

    /// Who holds a task as well as that one does.
    pub(crate) fn second(&self, task: &TaskId) -> Option<&Holder> {
        let open = self.runs.get(&task.run)?.open.get(&task.part())?;
        open.second.as_deref().filter(|_| open.attempt == task.attempt)
    }

    /// All tasks that are held, and by whom: some by two.
    pub(crate) fn held_tasks(&self) -> impl Iterator<Item = (TaskId, &Holder)> {
        self.runs.iter().flat_map(|(run, of)| of.held(*run))
    }

    /// Where in its run's trace a part of a task is.
    pub(crate) fn trace(&self, task: &TaskId, part: &str) -> TraceContext {
        let of_run = || TraceContext::of_run(task.run);
        self.runs.get(&task.run).and_then(|run| run.trace).unwrap_or_else(of_run).at(part_span(task, part))
    }
}
