//! What the workflow-manager says, as far as it takes to lease a task and to tell an agent what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Priorities, Shelves};
use baton_protocol::definition::{Definition, OnFailure, StageDefinition};
use baton_protocol::record::{
    KeptStage, Outcome, RunStarted, StageCached, StageCommitted, StageEnded, StageExpanded, StageReady, StageWaits,
    Stamp, WorkflowRegistered,
};
use baton_protocol::request::Assignment;
use baton_protocol::trace::{TraceContext, task_span};
use baton_protocol::{
    Amount, Capability, Json, LeaseId, Millis, Part, Requirements, Resources, RunId, StageName, TaskId, WorkflowName,
};
use serde::{Deserialize, Serialize};

use crate::lease::Lease;

/// A name that no stage's is less than.
static FIRST: LazyLock<StageName> = LazyLock::new(|| StageName::new("0").expect("it is a name"));
/// A name that no stage's is greater than.
static LAST: LazyLock<StageName> = LazyLock::new(|| StageName::new(&"z".repeat(63)).expect("it is a name"));

/// A task that none of a run's is before.
pub(crate) fn first_task(run: RunId) -> TaskId {
    TaskId { run, stage: FIRST.clone(), item: None, attempt: 0 }
}

/// A task that none of a run's is after.
pub(crate) fn last_task(run: RunId) -> TaskId {
    TaskId { run, stage: LAST.clone(), item: Some(u32::MAX), attempt: u32::MAX }
}

/// Definitions, and the runs that have not ended.
///
/// Every version of a definition is kept: a run may be started on an old one at any time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Kept", into = "Kept")]
pub(crate) struct Tasks {
    definitions: BTreeMap<WorkflowName, BTreeMap<u32, Arc<Definition>>>,
    runs: Shelves<RunId, Arc<Run>>,
    /// Those of them that are paused: none, as a rule.
    paused: BTreeSet<RunId>,
    /// The tasks that were never leased and have not ended, those of paused runs left out: nobody may take them. Follows from
    /// the runs.
    waiting: Priorities,
}

/// What a snapshot keeps of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    definitions: BTreeMap<WorkflowName, BTreeMap<u32, Arc<Definition>>>,
    runs: Shelves<RunId, Arc<Run>>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    paused: BTreeSet<RunId>,
}

impl From<Kept> for Tasks {
    fn from(Kept { definitions, runs, paused }: Kept) -> Self {
        let going_on = runs.iter().filter(|(id, _)| !paused.contains(*id));
        let waiting = going_on.flat_map(|(_, run)| run.waiting()).collect();
        Self { definitions, runs, paused, waiting }
    }
}

impl From<Tasks> for Kept {
    fn from(Tasks { definitions, runs, paused, .. }: Tasks) -> Self {
        Self { definitions, runs, paused }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Run {
    workflow: WorkflowName,
    version: u32,
    /// What it does, if no workflow says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    own: Option<Arc<Definition>>,
    /// It is a part of another one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_part: bool,
    /// What agents have delegated, and no run does yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    delegated: BTreeMap<Part, Arc<Definition>>,
    /// What came of what was delegated, for those who put it together.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    gathered: BTreeMap<Part, Json>,
    input: Json,
    trace: Option<TraceContext>,
    results: BTreeMap<StageName, Json>,
    /// The items that stages have a task each for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    items: BTreeMap<StageName, Items>,
    /// The stages that wait for somebody's word. Nobody has them, and what comes of them is a result all the same.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    waits: BTreeSet<StageName>,
    /// What stages gave that began early, as long as it is not known whether it counts. What does not is never asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    early: BTreeMap<StageName, Json>,
    /// The attempt that is under way, by part: there is at most one.
    open: BTreeMap<Part, Arc<Open>>,
}

/// The items of a stage, and what came of each so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Items {
    items: Vec<Json>,
    /// `null` where there is none.
    results: Vec<Json>,
}

impl Run {
    /// The priorities of those of its tasks that were never leased and have not ended.
    fn waiting(&self) -> impl Iterator<Item = i32> {
        self.open.values().filter(|open| open.lease.is_none()).map(|open| open.priority)
    }
}

/// A task that is ready and has not ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Open {
    attempt: u32,
    inputs: Vec<StageName>,
    /// What its agent is given instead of the run's input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input: Option<Json>,
    /// Which agents can do it.
    pub(crate) agent_type: Capability,
    /// What their metadata of that capability must be.
    #[serde(default, skip_serializing_if = "Requirements::is_empty")]
    pub(crate) requires: Requirements,
    /// What it needs beside a slot.
    pub(crate) resources: Resources,
    /// Larger goes first.
    #[serde(default)]
    pub(crate) priority: i32,
    /// Since when it waits.
    pub(crate) ready_at: Millis,
    /// An account that it needs has not enough, and says that it fails. The workflow-manager will end it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) refused: bool,
    /// The lease it has, or had: a task is leased once, and another agent's lease takes the place of the first one's when it is
    /// handed over.
    pub(crate) lease: Option<LeaseId>,
    /// Whether a second agent may be given it while the first one is at it, and the lease of that one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) hedge: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) second: Option<LeaseId>,
}

impl Open {
    /// The leases it has, or had.
    pub(crate) fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.lease.into_iter().chain(self.second)
    }
}

impl Run {
    /// What counts as a stage's result: its own, or that of the first of its fallbacks that has one.
    fn result(&self, definition: &Definition, name: &StageName) -> Option<&Json> {
        let mut name = name;
        for _ in 0..definition.stages.len() {
            if let Some(result) = self.results.get(name) {
                return Some(result);
            }
            let OnFailure::Fallback(fallback) = &definition.stage(name.as_str())?.on_failure else { return None };
            name = fallback;
        }
        None
    }
}

impl Run {
    /// Notes what came of a stage, or of an item of one.
    fn gave(&mut self, part: Part, result: Option<Json>) {
        let result = result.unwrap_or_default();
        self.gathered.remove(&part);
        match part.item {
            None => drop(self.results.insert(part.stage, result)),
            Some(item) => {
                if let Some(items) = self.items.get_mut(&part.stage)
                    && let Some(place) = items.results.get_mut(item as usize)
                {
                    *place = result;
                }
            }
        }
    }
}

/// A stage that another run has done, with what its dependents are given.
fn kept(KeptStage { stage, result }: &KeptStage) -> (StageName, Json) {
    (stage.clone(), result.clone().unwrap_or_default())
}

impl Tasks {
    pub(crate) fn workflow_registered(&mut self, record: &WorkflowRegistered) {
        let versions = self.definitions.entry(record.definition.name.clone()).or_default();
        versions.insert(record.version, Arc::clone(&record.definition));
    }

    pub(crate) fn run_started(&mut self, record: &RunStarted) {
        // The run around it has it from the report of the agent that delegated it.
        let around = record.parent.as_ref().filter(|_| record.version == 0);
        let own = around.and_then(|parent| self.runs.change(&parent.task.run)?.delegated.remove(&parent.task.part()));
        self.runs.get_or_insert_with(&record.run, || {
            Arc::new(Run {
                workflow: record.workflow.clone(),
                version: record.version,
                own,
                is_part: record.parent.is_some(),
                delegated: BTreeMap::new(),
                gathered: BTreeMap::new(),
                input: record.input.clone(),
                trace: record.trace,
                results: record.rerun.iter().flat_map(|rerun| &rerun.kept).map(kept).collect(),
                items: BTreeMap::new(),
                waits: BTreeSet::new(),
                early: BTreeMap::new(),
                open: BTreeMap::new(),
            })
        });
    }

    pub(crate) fn stage_ready(&mut self, stamp: Stamp, record: &StageReady) {
        let paused = self.is_paused(record.task.run);
        let Some(run) = self.runs.change(&record.task.run) else { return };
        let part = record.task.part();
        if !paused && !run.open.contains_key(&part) {
            self.waiting.add(record.priority);
        }
        run.open.entry(part).or_insert_with(|| {
            Arc::new(Open {
                attempt: record.task.attempt,
                inputs: record.inputs.clone(),
                input: record.input.clone(),
                agent_type: record.agent_type.clone(),
                requires: record.requires.clone(),
                resources: record.resources.clone(),
                priority: record.priority,
                ready_at: stamp.at,
                refused: false,
                lease: None,
                hedge: record.hedge,
                second: None,
            })
        });
    }

    /// Ends a task; gives what it was. That may have leases that the workflow-manager did not know of yet.
    pub(crate) fn stage_ended(&mut self, record: &StageEnded) -> Option<Arc<Open>> {
        let paused = self.is_paused(record.task.run);
        let run = self.runs.change(&record.task.run)?;
        let part = record.task.part();
        if part.item.is_none()
            && let Some(items) = run.items.get_mut(&part.stage)
        {
            // The stage as a whole: nobody was given it.
            let results = std::mem::take(&mut items.results);
            if record.outcome == Outcome::Succeeded {
                // No item is left: of a stage that is cancelled some end after it.
                items.items = Vec::new();
                run.results.insert(part.stage, Json::of(&results).unwrap_or_default());
            }
            return None;
        }
        if run.waits.remove(&part.stage) {
            if record.outcome == Outcome::Succeeded {
                run.results.insert(part.stage, record.result.clone().unwrap_or_default());
            }
            return None;
        }
        if let Some(delegated) = &record.delegated {
            run.delegated.insert(part.clone(), Arc::clone(&delegated.definition));
        }
        if run.open.get(&part).is_none_or(|open| open.attempt != record.task.attempt) {
            // Another run did it: nobody was given it, and what came of it is a result all the same.
            if record.outcome == Outcome::Delegated {
                run.gathered.extend(record.result.clone().map(|gathered| (part, gathered)));
            } else if record.outcome == Outcome::Succeeded && record.lease.is_none() {
                run.gave(part, record.result.clone());
            }
            return None;
        }
        let open = run.open.remove(&part)?;
        if !paused && open.lease.is_none() {
            self.waiting.take(open.priority);
        }
        match record.outcome {
            Outcome::Succeeded if record.speculative => {
                run.early.insert(part.stage, record.result.clone().unwrap_or_default());
            }
            Outcome::Succeeded => run.gave(part, record.result.clone()),
            Outcome::Failed | Outcome::Lost | Outcome::TimedOut | Outcome::Cancelled | Outcome::Delegated => {}
        }
        Some(open)
    }

    /// Of two leases of a task, one is over. Whether it had it.
    pub(crate) fn copy_ended(&mut self, task: &TaskId, lease: LeaseId) -> bool {
        let Some(run) = self.runs.change(&task.run) else { return false };
        let Some(open) = run.open.get_mut(&task.part()).map(Arc::make_mut) else { return false };
        if open.attempt != task.attempt {
            return false;
        }
        if open.second == Some(lease) {
            open.second = None;
            return true;
        }
        let had = open.lease == Some(lease) && open.second.is_some();
        if had {
            open.lease = open.second.take();
        }
        had
    }

    pub(crate) fn stage_waits(&mut self, record: &StageWaits) {
        if let Some(run) = self.runs.change(&record.run) {
            run.waits.insert(record.stage.clone());
        }
    }

    /// What a stage gave that began early counts, if it is over.
    pub(crate) fn stage_committed(&mut self, record: &StageCommitted) {
        let Some(run) = self.runs.change(&record.task.run) else { return };
        if let Some(result) = run.early.remove(&record.task.stage) {
            run.results.insert(record.task.stage.clone(), result);
        }
    }

    pub(crate) fn stage_cached(&mut self, record: &StageCached) {
        if let Some(run) = self.runs.change(&record.run) {
            run.results.insert(record.stage.clone(), record.result.clone());
        }
    }

    pub(crate) fn stage_expanded(&mut self, record: &StageExpanded) {
        let Some(run) = self.runs.change(&record.run) else { return };
        let items: Vec<Json> = record.items.read().unwrap_or_default();
        let results = vec![Json::null(); items.len()];
        run.items.entry(record.stage.clone()).or_insert(Items { items, results });
    }

    /// Its tasks are not leased until the run goes on.
    pub(crate) fn run_paused(&mut self, run: RunId) {
        let Some(known) = self.runs.get(&run) else { return };
        if !is_planted(Bug::LeasedInPause) && self.paused.insert(run) {
            known.waiting().for_each(|priority| self.waiting.take(priority));
        }
    }

    pub(crate) fn run_resumed(&mut self, run: RunId) {
        if self.paused.remove(&run) {
            self.runs
                .get(&run)
                .into_iter()
                .flat_map(|run| run.waiting())
                .for_each(|priority| self.waiting.add(priority));
        }
    }

    pub(crate) fn is_paused(&self, run: RunId) -> bool {
        self.paused.contains(&run)
    }

    /// Ends a run; gives the leases that its tasks had.
    pub(crate) fn run_finished(&mut self, run: RunId) -> Vec<LeaseId> {
        let paused = self.paused.remove(&run);
        let run = self.runs.remove(&run);
        run.iter().filter(|_| !paused).flat_map(|run| run.waiting()).for_each(|priority| self.waiting.take(priority));
        run.iter().flat_map(|run| run.open.values()).flat_map(|open| open.leases()).collect()
    }

    /// Notes the lease of a second agent that is given a task which another one has. False if it can not have one.
    pub(crate) fn leased_beside(&mut self, task: &TaskId, first: LeaseId, lease: LeaseId) -> bool {
        let open = self.runs.change(&task.run).and_then(|run| run.open.get_mut(&task.part())).map(Arc::make_mut);
        let may = |open: &&mut Open| open.attempt == task.attempt && open.lease == Some(first) && open.second.is_none();
        let Some(open) = open.filter(may) else { return false };
        open.second = Some(lease);
        true
    }

    /// Notes a task's lease. False if it can not have one.
    pub(crate) fn leased(&mut self, task: &TaskId, lease: LeaseId) -> bool {
        let paused = self.is_paused(task.run);
        let open = self.runs.change(&task.run).and_then(|run| run.open.get_mut(&task.part())).map(Arc::make_mut);
        let Some(open) =
            open.filter(|open| open.attempt == task.attempt && (open.lease.is_none() || is_planted(Bug::LeasedTwice)))
        else {
            return false;
        };
        if !paused && open.lease.is_none() {
            self.waiting.take(open.priority);
        }
        open.lease = Some(lease);
        true
    }

    /// Notes that a task is another agent's now, under another lease. What it asks for; none if it is not under way.
    pub(crate) fn handed_over(&mut self, task: &TaskId, from: LeaseId, lease: LeaseId) -> Option<Capability> {
        let open = self.runs.change(&task.run)?.open.get_mut(&task.part()).map(Arc::make_mut)?;
        if open.attempt != task.attempt || open.lease != Some(from) {
            return None;
        }
        open.lease = Some(lease);
        Some(open.agent_type.clone())
    }

    /// How many tasks wait for an agent and may have one.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a task of this priority or a greater one waits for an agent.
    pub(crate) fn any_waits_from(&self, priority: i32) -> bool {
        self.waiting.any_from(priority)
    }

    /// How many tasks of less priority wait for an agent.
    pub(crate) fn waiting_below(&self, priority: i32) -> usize {
        self.waiting.below(priority)
    }

    /// Whose a run is that has not ended.
    pub(crate) fn workflow_of(&self, run: RunId) -> Option<&WorkflowName> {
        self.runs.get(&run).map(|run| &run.workflow)
    }

    /// Whether a run is a part of another one: what becomes of it is for that one to say.
    pub(crate) fn is_part(&self, run: RunId) -> bool {
        self.runs.get(&run).is_some_and(|run| run.is_part)
    }

    /// The task is not to be leased any more.
    pub(crate) fn refused(&mut self, task: &TaskId) {
        let open = self.runs.change(&task.run).and_then(|run| run.open.get_mut(&task.part())).map(Arc::make_mut);
        if let Some(open) = open.filter(|open| open.attempt == task.attempt) {
            open.refused = true;
        }
    }

    /// What an attempt at the task's stage is expected to cost, if anybody has said so.
    pub(crate) fn expected_cost(&self, task: &TaskId) -> Option<Amount> {
        self.stage(task)?.budget
    }

    pub(crate) fn stage(&self, task: &TaskId) -> Option<&StageDefinition> {
        let run = self.runs.get(&task.run)?;
        self.definition(run)?.stage(task.stage.as_str())
    }

    /// What a run does.
    fn definition<'a>(&'a self, run: &'a Run) -> Option<&'a Definition> {
        let known = || self.definitions.get(&run.workflow)?.get(&run.version);
        run.own.as_ref().or_else(known).map(Arc::as_ref)
    }

    /// The task, if it is ready and has not ended.
    pub(crate) fn open(&self, task: &TaskId) -> Option<&Open> {
        let open = self.runs.get(&task.run)?.open.get(&task.part())?;
        Some(open.as_ref()).filter(|open| open.attempt == task.attempt)
    }

    /// The task of a part of a run that is ready and has not ended; none where the part has none, nothing at all where the run is not
    /// under way.
    pub(crate) fn of_part(&self, run: RunId, part: &Part) -> Option<Option<(TaskId, &Open)>> {
        let open = self.runs.get(&run)?.open.get(part);
        let named = |open: &Open| part.task(run, open.attempt);
        Some(open.map(|open| (named(open), open.as_ref())))
    }

    /// Where in its run's trace a task is. What an agent does is a part of this span and not of the push's: the
    /// workflow-manager can show it from the log whoever died, so the tree stays whole.
    pub(crate) fn trace(&self, task: &TaskId) -> TraceContext {
        let of_run = || TraceContext::of_run(task.run);
        self.runs.get(&task.run).and_then(|run| run.trace).unwrap_or_else(of_run).at(task_span(task))
    }

    /// All that the agent needs to know.
    pub(crate) fn assignment(&self, id: LeaseId, lease: &Lease, now: Millis) -> Option<Assignment> {
        let run = self.runs.get(&lease.task.run)?;
        let open = self.open(&lease.task)?;
        let definition = self.definition(run)?;
        let stage = definition.stage(lease.task.stage.as_str())?;
        let result = |name: &StageName| Some((name.clone(), run.result(definition, name)?.clone()));
        let items = run.items.get(&lease.task.stage);
        let item = lease.task.item.and_then(|item| items?.items.get(item as usize).cloned());
        Some(Assignment {
            lease: id,
            run: lease.task.run,
            stage: lease.task.stage.clone(),
            attempt: lease.task.attempt,
            item,
            index: lease.task.item,
            workflow: run.workflow.clone(),
            agent_type: open.agent_type.clone(),
            input: open.input.as_ref().unwrap_or(&run.input).clone(),
            results: open.inputs.iter().filter_map(result).collect(),
            params: stage.params.clone(),
            metadata: definition.metadata.clone(),
            resources: lease
                .resources
                .iter()
                .chain(&lease.pools)
                .map(|(name, amount)| (name.clone(), *amount))
                .collect(),
            ready_at: open.ready_at,
            timeout_ms: stage.timeout_ms.saturating_sub(now.saturating_sub(lease.begun())),
            heartbeat_timeout_ms: stage.heartbeat_timeout_ms,
            delegated: run.gathered.get(&lease.task.part()).cloned(),
            handover: lease.carried.as_ref().map(|carried| carried.handover.clone()),
            trace: self.trace(&lease.task),
            task: lease.task.clone(),
        })
    }

    /// Whether there is a definition to do the task by.
    pub(crate) fn is_defined(&self, task: &TaskId) -> bool {
        self.stage(task).is_some()
    }
}
