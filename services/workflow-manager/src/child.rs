//! Runs that do a stage of another run: their beginning, and what their end makes of the stage.
//!
//! There is one mechanism. The record with which such a run starts is also the beginning of the attempt that it makes, and
//! the attempt ends when the run has ended, or before it: then the run is cancelled. So one lives only as long as what it
//! is a part of.

use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_protocol::record::{Delegated, Outcome, Parent, RunPaused, RunResumed, RunStarted, WorkflowRecord};
use baton_protocol::request::{Delegate, Gathered, GatheredStage, MAX_JSON_BYTES};
use baton_protocol::run::RunStatus;
use baton_protocol::trace::task_span;
use baton_protocol::{Amount, Budget, Definition, Json, RunId};

use crate::advance::{Again, Ending};
use crate::flow::{self, Failure};
use crate::run::Run;
use crate::start::Known;
use crate::workflows::Version;
use crate::{Turn, WorkflowManager, definition, text};

/// How many runs may be one within the other, beside the outermost.
pub(crate) const MAX_DEPTH: u32 = 8;

/// How many runs that are a part of others may be live at a time. They are not refused by the limit of live runs: those that
/// they are a part of wait for them.
pub(crate) const MAX_LIVE: usize = 10_000;

/// How often a stage may be delegated: whoever puts together what came of it may find that more is to be done.
pub(crate) const MAX_DELEGATIONS: usize = 8;

/// The codes of a stage that would begin a run too deep within others, or one too many. What is around it fails with the same:
/// another attempt would come to the same end, and so would one at each level.
const TOO_DEEP: &str = "too_deep";
const TOO_MANY_PARTS: &str = "too_many_parts";

/// Why a run can not begin that should do a stage, and whether it may later.
pub(crate) type Refused = (Failure, Again);

/// The run that does the next attempt at a stage, if a run does it.
pub(crate) fn begin(
    turn: &Turn<'_>,
    run: &Run,
    version: &Version,
    place: usize,
) -> Option<Result<RunStarted, Refused>> {
    let stage = run.definition(version, place);
    let refused = |code, error| Err((Failure { code, error }, Again::Never));
    let state = turn.state();
    let delegated = run.delegated(place);
    let (name, number, found) = match (delegated, &stage.workflow) {
        (Some(_), _) => (&run.workflow, 0, None),
        (None, Some(name)) => match state.workflows.find(name, stage.workflow_version) {
            Ok((number, found)) => (name, number, Some(found)),
            Err(rejection) => return Some(refused("unknown_workflow", rejection.message)),
        },
        (None, None) => return None,
    };
    let depth = run.depth() + 1;
    if depth > MAX_DEPTH {
        let error = format!("a run of workflow {name} would be within {depth} others; it may be within {MAX_DEPTH}");
        return Some(refused(TOO_DEEP, error));
    }
    let (most, outermost) = (turn.config().max_parts, state.outermost(run.id));
    if state.runs.get(&outermost).is_some_and(|run| run.parts >= most) {
        let error = format!("{most} runs were a part of run {outermost} so far; no more may be");
        return Some(refused(TOO_MANY_PARTS, error));
    }
    if state.live_children >= MAX_LIVE {
        let error = format!("{MAX_LIVE} runs are live that are a part of others; no more may be");
        return Some(Err((Failure { code: "too_many_runs", error }, Again::Later)));
    }
    let given = match delegated {
        Some(delegated) => Ok(delegated.input.clone()),
        None => flow::input(run, version, place, None),
    };
    let input = match given {
        Ok(input) => input.unwrap_or_else(|| run.input.clone()),
        Err(failure) => return Some(Err((failure, Again::Never))),
    };
    if !input.as_str().starts_with('{') {
        return Some(refused("invalid_input", "the input of a run must be a JSON object".to_owned()));
    }
    if let Some(Err(why)) = found.map(|found| found.plan.flows.check_input(&input)) {
        let error = format!("its input does not fit the input_schema of workflow {name}: {why}");
        return Some(refused("invalid_input", error));
    }
    let attempt = u32::try_from(run.stages[place].attempts.len() + 1).unwrap_or(u32::MAX);
    let task = run.task(version, place, attempt);
    Some(Ok(RunStarted {
        run: unused(turn, task_span(&task)),
        workflow: name.clone(),
        version: number,
        input,
        priority: run.priority.saturating_add(stage.priority),
        key: None,
        trace: Some(run.span().at(task_span(&task))),
        strategy: run.strategy,
        due: stage.due_ms.map(|due_ms| run.started_at.saturating_add(due_ms)),
        budget: match found {
            Some(found) => budget(run, stage.budget, found.definition.budget.as_ref()),
            // What the stage may cost is what its agents are expected to.
            None => budget(run, None, None),
        },
        metadata: run.metadata.clone(),
        rerun: None,
        parent: Some(Box::new(Parent { task, depth })),
        no_cache: run.no_cache,
    }))
}

/// What a run may cost that does a stage: what its workflow says or the stage, whichever is less, out of what the other run
/// may.
fn budget(run: &Run, of_stage: Option<Amount>, own: Option<&Budget>) -> Option<Budget> {
    let limit = own.and_then(|own| own.limit);
    let limit = limit.into_iter().chain(of_stage.filter(|amount| !amount.is_zero())).min();
    let paying = run.budget.as_deref().and_then(|budget| Some((budget, budget.account(run.id)?)));
    let Some((paying, account)) = paying else { return own.cloned() };
    let at_limit = own.filter(|own| own.limit.is_some()).map_or(paying.at_limit, |own| own.at_limit);
    let at_limit = if limit.is_some() { at_limit } else { baton_protocol::AtLimit::Wait };
    Some(Budget { limit, of: Some(account), currency: None, at_limit })
}

/// The id of a run that does a task: the time, and a hash of the task.
fn unused(turn: &Turn<'_>, task: u64) -> RunId {
    let mut ids = (0u128..).map(|round| RunId::derive(turn.now(), round << 64 | u128::from(task)));
    ids.find(|id| Known::of(turn.state(), *id).is_none()).expect("some id is free")
}

/// How an attempt ends whose run has ended.
pub(crate) fn ending(state: &WorkflowManager, run: &Run, version: &Version, place: usize) -> Ending {
    let child = run.stages[place].attempts.last().and_then(|attempt| attempt.child);
    let child = child.expect("a stage is given back by the run that did it");
    let Some((child, of_child)) = state.run(child) else {
        let error = format!("run {child} ended, and what came of it is not at hand any more");
        return failed("run_failed", error, Again::Later);
    };
    let why = child.reason.as_deref().unwrap_or("no reason was given");
    if run.aggregates(place) && !is_planted(Bug::NotPutTogether) && child.status != RunStatus::Cancelled {
        return match gathered(child, of_child) {
            Ok(gathered) => Ending { outcome: Outcome::Delegated, ..Ending::gave(Some(gathered)) },
            Err(Failure { code, error }) => failed(code, error, Again::Later),
        };
    }
    match child.status {
        RunStatus::Succeeded => {
            match output(child, of_child).and_then(|made| flow::output(run, version, place, Some(made))) {
                Ok(result) => Ending::gave(result.filter(|result| !result.is_null())),
                Err(Failure { code, error }) => failed(code, error, Again::Later),
            }
        }
        RunStatus::Failed => {
            let error = format!("run {} failed: {why}", child.id);
            match child.failed_with(&[TOO_DEEP, TOO_MANY_PARTS]) {
                Some(code) => failed(code, error, Again::Never),
                None => failed("run_failed", error, Again::Later),
            }
        }
        RunStatus::TimedOut => failed("run_timed_out", format!("run {} timed out: {why}", child.id), Again::Later),
        // Somebody wanted it to end.
        RunStatus::Cancelled | RunStatus::Running => {
            failed("run_cancelled", format!("run {} was cancelled: {why}", child.id), Again::Never)
        }
    }
}

fn failed(code: &str, error: String, again: Again) -> Ending {
    let error = text::cut(error, text::MAX_ERROR_BYTES);
    Ending { code: Some(code.to_owned()), ..Ending::unreported(Outcome::Failed, error, again) }
}

/// What comes of a run as a whole: the results of its last stages, by their names, in the order of the definition.
pub(crate) fn output(run: &Run, version: &Version) -> Result<Json, Failure> {
    let member = |place: usize| {
        let result = version.plan.flows.giver(run, place).and_then(|giver| run.stages[giver].result.as_ref());
        format!("\"{}\":{}", version.definition.stages[place].name, result.map_or("null", Json::as_str))
    };
    let members: Vec<_> = version.definition.last_stages().into_iter().map(member).collect();
    flow::fits(Json::from_text(format!("{{{}}}", members.join(",")))).map_err(|why| Failure {
        code: "output_failed",
        error: format!("what came of run {} is no result: {why}", run.id),
    })
}

/// What came of each stage of a run, for whoever puts it together.
fn gathered(run: &Run, version: &Version) -> Result<Json, Failure> {
    let stages = run.stages.iter().zip(&version.definition.stages).map(|(stage, definition)| GatheredStage {
        name: definition.name.clone(),
        status: stage.status,
        result: stage.result.clone(),
        error: stage.attempts.last().and_then(|attempt| attempt.error.clone()),
    });
    let whole = Gathered { run: run.id, status: run.status, reason: run.reason.clone(), stages: stages.collect() };
    flow::fits(Json::of(&whole)).map_err(|why| Failure {
        code: "output_failed",
        error: format!("what came of run {} can not be given to an agent: {why}", run.id),
    })
}

/// What an agent wants to be done by others, or what is wrong with it.
pub(crate) fn delegated(
    run: &Run,
    version: &Version,
    place: usize,
    attempt: u32,
    delegate: &Delegate,
) -> Result<Delegated, (Failure, Again)> {
    let wrong = |error: String| (Failure { code: "invalid_delegation", error }, Again::Later);
    if run.delegations(place, attempt) >= MAX_DELEGATIONS && !is_planted(Bug::DelegatedForEver) {
        let error = format!("it was delegated {MAX_DELEGATIONS} times already, and may not be again");
        return Err((Failure { code: "too_many_delegations", error }, Again::Never));
    }
    let bytes = delegate.stages.size() + delegate.input.size();
    if bytes > MAX_JSON_BYTES {
        return Err(wrong(format!("what is delegated has {bytes} bytes; at most {MAX_JSON_BYTES} are allowed")));
    }
    let input = Some(&delegate.input).filter(|input| !input.is_null());
    if input.is_some_and(|input| !input.as_str().starts_with('{')) {
        return Err(wrong("delegate.input: the input of a run must be a JSON object".to_owned()));
    }
    let around = &version.definition;
    // The attempt that it makes has a time of its own.
    let timeout_ms = around.timeout_ms;
    let definition = definition::delegated(&delegate.stages).and_then(|stages| {
        let (name, metadata) = (run.workflow.clone(), around.metadata.clone());
        let (description, budget, input_schema) = (None, None, None);
        let made = Definition { name, description, metadata, timeout_ms, budget, input_schema, stages };
        definition::check(&made).map(|()| made).map_err(|error| error.to_string())
    });
    let definition =
        definition.map_err(|why| wrong(text::cut(format!("delegate.stages: {why}"), text::MAX_ERROR_BYTES)))?;
    Ok(Delegated { definition: Arc::new(definition), input: input.cloned(), aggregate: delegate.aggregate })
}

/// The run that waits for the end of this one, if it has ended and that is not noted there.
pub(crate) fn awaiting(state: &WorkflowManager, id: RunId) -> Option<RunId> {
    let parent = state.history.past(id)?.summary.parent.as_ref()?.task.run;
    state.runs.get(&parent).filter(|run| run.waits_for_return()).map(|run| run.id)
}

/// Pauses a run where the one is paused that it is a part of, and resumes it where that one was.
pub(crate) fn follow(turn: &mut Turn<'_>, id: RunId) {
    let state = turn.state();
    let Some(run) = state.runs.get(&id) else { return };
    let Some(parent) = run.parent.as_ref().and_then(|parent| state.runs.get(&parent.task.run)) else { return };
    match (&parent.paused, &run.paused) {
        (Some(paused), None) if !is_planted(Bug::ChildNotPaused) => {
            let record = RunPaused { run: id, reason: paused.reason.clone(), with_parent: true };
            turn.emit(WorkflowRecord::RunPaused(record));
        }
        (None, Some(paused)) if paused.with_parent => {
            turn.emit(WorkflowRecord::RunResumed(RunResumed { run: id }));
        }
        _ => {}
    }
}

/// The live runs that are a part of this one, directly or through others; each after the one that it is a part of.
pub(crate) fn within(state: &WorkflowManager, id: RunId) -> Vec<RunId> {
    all_within(id, |run| state.runs.get(run).map(|run| run.children.clone()).unwrap_or_default())
}

/// What is within a run, where this says what is a part of each; each after what it is a part of.
pub(crate) fn all_within(id: RunId, of: impl Fn(&RunId) -> Vec<RunId>) -> Vec<RunId> {
    let mut found = of(&id);
    let mut next = 0;
    while let Some(run) = found.get(next) {
        found.extend(of(run));
        next += 1;
    }
    found
}
