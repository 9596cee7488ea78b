//! A run that repeats another one from a stage on.
//!
//! What is kept of the other run is written into the new one's first record: whoever hands out tasks needs the results, and
//! the other run may be forgotten before this one ends.

use baton_machine::RequestContext;
use baton_machine::planted::{Bug, is_planted};
use baton_protocol::record::{KeptStage, Rerun, RunStarted, WorkflowRecord};
use baton_protocol::request::{MAX_MESSAGE_BYTES, RerunRun, RunAccepted};
use baton_protocol::run::StageStatus;
use baton_protocol::{Amount, Budget, Code, Json, Rejection, StageName};

use crate::run::Run;
use crate::start::{self, Known};
use crate::workflows::{Plan, Version};
use crate::{Turn, advance, telemetry};

/// How many bytes of results may be kept: they must fit into a message of the log, with the input.
const MAX_KEPT_BYTES: usize = MAX_MESSAGE_BYTES - 300 * 1024;

/// How many names a rejection lists.
const MAX_NAMES: usize = 50;

/// Starts a run that repeats another one from a stage on, or gives the one that the same request started before.
pub(crate) fn rerun(
    turn: &mut Turn<'_>,
    request: &RerunRun,
    context: &RequestContext,
) -> Result<RunAccepted, Rejection> {
    start::check_ids(request.key.as_ref(), request.new_run)?;
    if let Some(known) = start::bearing(turn.state(), request.key.as_ref(), request.new_run) {
        let same = known.rerun.as_ref().is_some_and(|(of, from)| *of == request.run && *from == request.from);
        if same && start::bears(&known, request.key.as_ref(), request.new_run) {
            return Ok(known.accepted(true));
        }
        let message = format!("key or id were used for run {}, which is another one; use new ones", known.run);
        return Err(Rejection::new(Code::KeyConflict, message));
    }
    start::check_new(turn.state(), request.new_run)?;
    let Some((other, version)) = turn.state().run(request.run) else {
        return Err(not_here(turn, request.run));
    };
    if !other.status.is_end() {
        let message = format!("run {} has not ended: it can be repeated when it has, or is cancelled", request.run);
        return Err(Rejection::invalid(message));
    }
    if let Some(parent) = &other.parent {
        let message = format!("run {} is a part of run {}: repeat that one", other.id, parent.task.run);
        return Err(Rejection::invalid(message));
    }
    let kept = kept(other, version, &request.from)?;
    let bytes = Json::of(&kept).map_or(usize::MAX, |json| json.size());
    if bytes > MAX_KEPT_BYTES {
        let message = format!("what is to be kept has {bytes} bytes; at most {MAX_KEPT_BYTES} are allowed");
        return Err(Rejection::new(Code::TooLarge, message));
    }
    let record = RunStarted {
        run: request.run,
        workflow: other.workflow.clone(),
        version: other.version,
        input: other.input.clone(),
        priority: other.priority,
        key: request.key.clone(),
        trace: context.trace,
        strategy: other.strategy,
        // By when the other one was wanted says nothing of this one.
        due: None,
        budget: budget(other, request.limit)?,
        metadata: other.metadata.clone(),
        rerun: Some(Box::new(Rerun { of: request.run, from: request.from.clone(), kept })),
        parent: None,
        no_cache: other.no_cache,
    };
    start::admit(turn, record.priority)?;
    let run = request.new_run.unwrap_or_else(|| start::unused(turn));
    turn.emit(WorkflowRecord::RunStarted(RunStarted { run, ..record }));
    telemetry::run_started(turn, run);
    advance::advance(turn, run);
    let known = Known::of(turn.state(), run);
    known.map(|known| known.accepted(false)).ok_or_else(|| Rejection::new(Code::Internal, "the run was not started"))
}

/// What the new run may cost: what the other one might, of which nothing is spent yet, or with another limit.
fn budget(other: &Run, limit: Option<Amount>) -> Result<Option<Budget>, Rejection> {
    let Some(limit) = limit else { return Ok(other.budget.as_deref().cloned()) };
    let Some(budget) = other.budget.as_deref().filter(|budget| budget.limit.is_some()) else {
        let message = format!("limit: run {} had none of its own, so that there is none to be changed", other.id);
        return Err(Rejection::invalid(message));
    };
    let budget = Budget { limit: Some(limit), ..budget.clone() };
    budget.check().map_err(|error| Rejection::invalid(error.to_string()))?;
    Ok(Some(budget))
}

fn not_here(turn: &Turn<'_>, run: baton_protocol::RunId) -> Rejection {
    match Known::of(turn.state(), run) {
        Some(_) => {
            let message = format!("run {run} ended too long ago: its results are not at hand any more");
            Rejection::invalid(message)
        }
        None => Rejection::new(Code::UnknownRun, format!("there is no run {run} that ended lately")),
    }
}

/// The stages that need not be done anew: they succeeded, and wait neither for that stage nor for one that failed or never
/// ended. One that was skipped is looked at again, and with the same results it is skipped again.
fn kept(other: &Run, version: &Version, from: &StageName) -> Result<Vec<KeptStage>, Rejection> {
    let definitions = &version.definition.stages;
    let Some(from) = version.plan.place(from) else {
        let mut names: Vec<_> = definitions.iter().take(MAX_NAMES).map(|stage| stage.name.as_str()).collect();
        if definitions.len() > MAX_NAMES {
            names.push("…");
        }
        let message = format!("run {} has no stage {from}; its stages are: {}", other.id, names.join(", "));
        return Err(Rejection::invalid(message));
    };
    let status = |place: usize| other.stages[place].status;
    let succeeded = |place: &usize| status(*place) == StageStatus::Succeeded;
    let undone = (0..definitions.len()).filter(|place| !succeeded(place) && status(*place) != StageStatus::Skipped);
    let mut anew = downstream(&version.plan, undone.chain([from]).collect());
    if is_planted(Bug::RerunKeepsTooMuch) {
        anew = (0..definitions.len()).map(|place| place == from).collect();
    }
    let kept = (0..definitions.len()).filter(|place| succeeded(place) && !anew[*place]);
    let stage = |place: usize| definitions[place].name.clone();
    Ok(kept.map(|place| KeptStage { stage: stage(place), result: other.stages[place].result.clone() }).collect())
}

/// Of each stage, whether it is one of these or waits for one, through however many others.
fn downstream(plan: &Plan, from: Vec<usize>) -> Vec<bool> {
    let mut reached = vec![false; plan.dependents.len()];
    let mut stack = from;
    while let Some(place) = stack.pop() {
        if !std::mem::replace(&mut reached[place], true) {
            stack.extend(&plan.dependents[place]);
        }
    }
    reached
}
