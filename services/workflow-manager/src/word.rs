//! Somebody's word: people approve or reject, and runs are given signals.

use baton_machine::planted::{Bug, is_planted};
use baton_protocol::definition::{Approval, OnTimeout, Otherwise, StageDefinition};
use baton_protocol::nearest::nearest;
use baton_protocol::record::{Outcome, Signalled, WorkflowRecord};
use baton_protocol::request::{DecideStage, MAX_JSON_BYTES, SignalRun, SignalStored, StageDecided};
use baton_protocol::run::{Decision, StageStatus, Waits};
use baton_protocol::{Code, Json, Rejection, RunId, SignalName, WorkflowName};

use crate::advance::{self, Again, Ending};
use crate::run::{Run, Stage};
use crate::workflows::Version;
use crate::{Turn, text};

/// The longest name of who gave a word, in bytes.
const MAX_BY_BYTES: usize = 200;

/// The code of a stage that was rejected.
const REJECTED: &str = "rejected";

/// People decide on a stage.
pub(crate) fn decide(turn: &mut Turn<'_>, request: DecideStage) -> Result<StageDecided, Rejection> {
    let DecideStage { run: id, stage: name, approved, by, reason } = request;
    let by = check_by(by)?;
    let (run, version) = turn.state().run(id).ok_or_else(|| unknown(id))?;
    let Some(place) = version.plan.place(&name) else {
        let hint = version.definition.hint(name.as_str());
        return Err(Rejection::invalid(format!("workflow {} has no stage {name}{hint}", run.workflow)));
    };
    let Some(approval) = &version.definition.stages[place].approval else {
        return Err(Rejection::invalid(format!(
            "stage {name} of workflow {} asks nobody: it has no approval",
            run.workflow
        )));
    };
    let stage = &run.stages[place];
    match (stage.status, decided(stage)) {
        (StageStatus::Running, _) if !run.status.is_end() => {}
        (_, Some(decision)) if decision.approved == approved && !decision.timed_out => {
            return Ok(StageDecided { run: id, stage: name, approved, existing: true });
        }
        (status, decision) => {
            let stands = match (status, decision) {
                (StageStatus::Pending, _) => "it has not begun".to_owned(),
                (_, Some(decision)) => said(&decision),
                (status, None) => match stage.attempts.last().and_then(|last| last.error.as_ref()) {
                    Some(error) => format!("{status}, {error}"),
                    None => status.to_string(),
                },
            };
            return Err(Rejection::new(
                Code::NotWaiting,
                format!("stage {name} of run {id} is not to be decided on: {stands}"),
            ));
        }
    }
    let reason = reason.map(|reason| text::cut(reason, text::MAX_REASON_BYTES));
    let counts = approved || is_planted(Bug::RejectionApproves);
    let ending = ending(approval, &Decision { approved: counts, by, reason, timed_out: false });
    advance::end(turn, id, place, ending);
    advance::advance(turn, id);
    Ok(StageDecided { run: id, stage: name, approved, existing: false })
}

/// A run is given a signal.
pub(crate) fn signal(turn: &mut Turn<'_>, request: SignalRun) -> Result<SignalStored, Rejection> {
    let SignalRun { run: id, signal, payload, by } = request;
    let by = check_by(by)?;
    let bytes = payload.size();
    if bytes > MAX_JSON_BYTES {
        let message = format!("the payload has {bytes} bytes; at most {MAX_JSON_BYTES} are allowed: pass references");
        return Err(Rejection::new(Code::TooLarge, message));
    }
    let (run, version) = turn.state().run(id).ok_or_else(|| unknown(id))?;
    match run.signals.get(&signal) {
        Some(given) if *given == payload => return Ok(SignalStored { run: id, signal, existing: true }),
        Some(_) => {
            let message = format!("run {id} was given the signal {signal} already, with something else");
            return Err(Rejection::new(Code::NotWaiting, message));
        }
        None => {}
    }
    check_awaited(version, &run.workflow, &signal)?;
    if run.status.is_end() {
        return Err(Rejection::new(Code::RunEnded, format!("run {id} has already ended: {}", run.status)));
    }
    give(turn, id, &signal, &payload, by);
    Ok(SignalStored { run: id, signal, existing: false })
}

/// Gives a signal to a live run.
pub(crate) fn give(turn: &mut Turn<'_>, run: RunId, signal: &SignalName, payload: &Json, by: Option<String>) {
    let (signal, payload) = (signal.clone(), payload.clone());
    turn.emit(WorkflowRecord::Signalled(Signalled { run, signal, payload, by }));
    advance::advance(turn, run);
}

fn awaited(version: &Version) -> impl Iterator<Item = &str> {
    version.definition.stages.iter().filter_map(|stage| Some(stage.wait_for.as_ref()?.signal.as_str()))
}

/// Whether a stage waits for a signal, in runs of that version.
pub(crate) fn is_awaited(version: &Version, signal: &SignalName) -> bool {
    awaited(version).any(|known| known == signal.as_str())
}

/// Refuses a signal that no stage waits for.
pub(crate) fn check_awaited(version: &Version, workflow: &WorkflowName, signal: &SignalName) -> Result<(), Rejection> {
    if is_awaited(version, signal) {
        return Ok(());
    }
    let near = nearest(signal.as_str(), awaited(version));
    let hint = near.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
    Err(Rejection::invalid(format!("no stage of workflow {workflow} waits for the signal {signal}{hint}")))
}

/// A stage for whose word a run was given a signal.
pub(crate) fn heard(run: &Run, stage: &StageDefinition) -> Ending {
    let given = stage.wait_for.as_ref().and_then(|wait_for| run.signals.get(&wait_for.signal)).cloned();
    succeeded(given)
}

/// What becomes of a stage whose word was not given in time; none if it waits for no word.
pub(crate) fn overdue(stage: &StageDefinition) -> Option<Ending> {
    let waited = text::duration(stage.timeout_ms);
    let late = |error: String| Ending::unreported(Outcome::TimedOut, error, Again::Never);
    if let Some(approval) = &stage.approval {
        let counts = |approved| ending(approval, &Decision { approved, timed_out: true, ..Decision::default() });
        return Some(match approval.on_timeout {
            OnTimeout::Fail => late(format!("nobody decided within {waited}")),
            OnTimeout::Approve => counts(true),
            OnTimeout::Reject => counts(false),
        });
    }
    let wait_for = stage.wait_for.as_ref()?;
    Some(match wait_for.on_timeout {
        Otherwise::Fail => late(format!("no signal {} came within {waited}", wait_for.signal)),
        Otherwise::Continue => succeeded(None),
    })
}

/// For whose word a stage waits.
pub(crate) fn waits(stage: &Stage, definition: &StageDefinition) -> Option<Waits> {
    let until = stage.due.filter(|_| stage.status == StageStatus::Running)?;
    let approval = definition.approval.as_ref().map(|approval| Waits::Approval { ask: approval.ask.clone(), until });
    let signal = definition.wait_for.as_ref().map(|wait| Waits::Signal { signal: wait.signal.clone(), until });
    approval.or(signal)
}

fn ending(approval: &Approval, decision: &Decision) -> Ending {
    if decision.approved || approval.on_reject == Otherwise::Continue {
        return succeeded(Json::of(decision).ok());
    }
    let code = Some(REJECTED.to_owned());
    Ending { code, ..Ending::unreported(Outcome::Failed, said(decision), Again::Never) }
}

fn succeeded(result: Option<Json>) -> Ending {
    let result = result.filter(|result| !result.is_null());
    Ending { result, error: None, ..Ending::unreported(Outcome::Succeeded, String::new(), Again::Never) }
}

/// How a stage was decided on, if it was. Of one that failed because of it, the text that says why says by whom; of one that
/// was decided on in the run that this one repeats, the result is all there is.
fn decided(stage: &Stage) -> Option<Decision> {
    let Some(last) = stage.attempts.last() else { return stage.result.as_ref()?.read().ok() };
    match last.outcome? {
        Outcome::Succeeded => stage.result.as_ref()?.read().ok(),
        Outcome::Failed if last.code.as_deref() == Some(REJECTED) => {
            let timed_out = last.error.as_deref() == Some(NOBODY);
            Some(Decision { reason: last.error.clone(), timed_out, ..Decision::default() })
        }
        _ => None,
    }
}

/// Why a stage is rejected that nobody decided on.
const NOBODY: &str = "nobody decided in time, which counts as rejected";

fn said(decision: &Decision) -> String {
    let Decision { approved, by, reason, timed_out } = decision;
    let done = if *approved { "approved" } else { REJECTED };
    match (timed_out, by, reason) {
        (true, ..) if *approved => "nobody decided in time, which counts as approved".to_owned(),
        (true, ..) => NOBODY.to_owned(),
        (false, None, None) => format!("it was {done}"),
        (false, None, Some(reason)) => format!("it was {done}: {reason}"),
        (false, Some(by), None) => format!("{by} {done} it"),
        (false, Some(by), Some(reason)) => format!("{by} {done} it: {reason}"),
    }
}

fn check_by(by: Option<String>) -> Result<Option<String>, Rejection> {
    let by = by.filter(|by| !by.is_empty());
    match by.as_ref().map_or(0, String::len) {
        0..=MAX_BY_BYTES => Ok(by),
        bytes => Err(Rejection::invalid(format!("by has {bytes} bytes; at most {MAX_BY_BYTES} are allowed"))),
    }
}

fn unknown(run: RunId) -> Rejection {
    Rejection::new(Code::UnknownRun, format!("run {run} is not running: it ended long ago, or there never was one"))
}
