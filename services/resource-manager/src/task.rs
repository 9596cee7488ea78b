//! What the workflow-manager says, as far as it takes to lease a task and to tell an agent what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use baton_machine::Shelves;
use baton_machine::planted::{Bug, is_planted};
use baton_protocol::definition::{Definition, OnFailure};
use baton_protocol::record::{
    KeptStage, Outcome, RunStarted, StageEnded, StageExpanded, StageReady, Stamp, WorkflowRegistered,
};
use baton_protocol::request::Assignment;
use baton_protocol::trace::{TraceContext, task_span};
use baton_protocol::{
    Capability, Json, LeaseId, Millis, Part, Requirements, Resources, RunId, StageName, TaskId, WorkflowName,
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
pub(crate) struct Tasks {
    definitions: BTreeMap<WorkflowName, BTreeMap<u32, Arc<Definition>>>,
    runs: Shelves<RunId, Arc<Run>>,
    /// Those of them that are paused: none, as a rule.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    paused: BTreeSet<RunId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Run {
    workflow: WorkflowName,
    version: u32,
    input: Json,
    trace: Option<TraceContext>,
    results: BTreeMap<StageName, Json>,
    /// The items that stages have a task each for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    items: BTreeMap<StageName, Items>,
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
    /// The one lease it ever has. It stays when the lease ends: a task is leased once.
    pub(crate) lease: Option<LeaseId>,
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
        self.runs.get_or_insert_with(&record.run, || {
            Arc::new(Run {
                workflow: record.workflow.clone(),
                version: record.version,
                input: record.input.clone(),
                trace: record.trace,
                results: record.rerun.iter().flat_map(|rerun| &rerun.kept).map(kept).collect(),
                items: BTreeMap::new(),
                open: BTreeMap::new(),
            })
        });
    }

    pub(crate) fn stage_ready(&mut self, stamp: Stamp, record: &StageReady) {
        let Some(run) = self.runs.change(&record.task.run) else { return };
        run.open.entry(record.task.part()).or_insert_with(|| {
            Arc::new(Open {
                attempt: record.task.attempt,
                inputs: record.inputs.clone(),
                input: record.input.clone(),
                agent_type: record.agent_type.clone(),
                requires: record.requires.clone(),
                resources: record.resources.clone(),
                priority: record.priority,
                ready_at: stamp.at,
                lease: None,
            })
        });
    }

    /// Ends a task; gives the lease it had. That may be one that the workflow-manager did not know of yet.
    pub(crate) fn stage_ended(&mut self, record: &StageEnded) -> Option<LeaseId> {
        let run = self.runs.change(&record.task.run)?;
        let part = record.task.part();
        if part.item.is_none()
            && let Some(items) = run.items.get_mut(&part.stage)
        {
            // The stage as a whole: nobody was given it.
            let results = std::mem::take(&mut items.results);
            if record.outcome == Outcome::Succeeded {
                run.results.insert(part.stage, Json::of(&results).unwrap_or_default());
            }
            return None;
        }
        run.open.get(&part).filter(|open| open.attempt == record.task.attempt)?;
        let open = run.open.remove(&part)?;
        if record.outcome == Outcome::Succeeded {
            let result = record.result.clone().unwrap_or_default();
            match part.item {
                None => drop(run.results.insert(part.stage, result)),
                Some(item) => {
                    if let Some(items) = run.items.get_mut(&part.stage)
                        && let Some(place) = items.results.get_mut(item as usize)
                    {
                        *place = result;
                    }
                }
            }
        }
        open.lease
    }

    pub(crate) fn stage_expanded(&mut self, record: &StageExpanded) {
        let Some(run) = self.runs.change(&record.run) else { return };
        let items: Vec<Json> = record.items.read().unwrap_or_default();
        let results = vec![Json::null(); items.len()];
        run.items.entry(record.stage.clone()).or_insert(Items { items, results });
    }

    /// Its tasks are not leased until the run goes on.
    pub(crate) fn run_paused(&mut self, run: RunId) {
        if self.runs.contains_key(&run) && !is_planted(Bug::LeasedInPause) {
            self.paused.insert(run);
        }
    }

    pub(crate) fn run_resumed(&mut self, run: RunId) {
        self.paused.remove(&run);
    }

    pub(crate) fn is_paused(&self, run: RunId) -> bool {
        self.paused.contains(&run)
    }

    /// Ends a run; gives the leases that its tasks had.
    pub(crate) fn run_finished(&mut self, run: RunId) -> Vec<LeaseId> {
        self.paused.remove(&run);
        let run = self.runs.remove(&run);
        run.iter().flat_map(|run| run.open.values()).filter_map(|open| open.lease).collect()
    }

    /// Notes a task's lease. False if it can not have one.
    pub(crate) fn leased(&mut self, task: &TaskId, lease: LeaseId) -> bool {
        let open = self.runs.change(&task.run).and_then(|run| run.open.get_mut(&task.part())).map(Arc::make_mut);
        let Some(open) =
            open.filter(|open| open.attempt == task.attempt && (open.lease.is_none() || is_planted(Bug::LeasedTwice)))
        else {
            return false;
        };
        open.lease = Some(lease);
        true
    }

    /// The task, if it is ready and has not ended.
    pub(crate) fn open(&self, task: &TaskId) -> Option<&Open> {
        let open = self.runs.get(&task.run)?.open.get(&task.part())?;
        Some(open.as_ref()).filter(|open| open.attempt == task.attempt)
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
        let definition = self.definitions.get(&run.workflow)?.get(&run.version)?;
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
            timeout_ms: stage.timeout_ms.saturating_sub(now.saturating_sub(lease.since)),
            trace: self.trace(&lease.task),
            task: lease.task.clone(),
        })
    }

    /// Whether there is a definition to do the task by.
    pub(crate) fn is_defined(&self, task: &TaskId) -> bool {
        let definition = || {
            let run = self.runs.get(&task.run)?;
            self.definitions.get(&run.workflow)?.get(&run.version)?.stage(task.stage.as_str())
        };
        definition().is_some()
    }
}
