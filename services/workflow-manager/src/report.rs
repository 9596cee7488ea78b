//! An agent reports how its task ended.

use baton_machine::planted::{Bug, is_planted};
use baton_protocol::definition::MAX_CODE_BYTES;
use baton_protocol::record::{Outcome, StageEnded, WorkflowRecord};
use baton_protocol::request::{
    MAX_JSON_BYTES, Report, ReportAnswer, ReportStatus, ReportStored, Reports, ReportsAnswered,
};
use baton_protocol::{AgentId, Code, Json, Rejection};

use crate::advance::{self, Again, Ending};
use baton_protocol::run::Speculation;

use crate::attempt::{Attempt, Copy};
use crate::flow::{self, Failure};
use crate::run::{self, Run};
use crate::workflows::Version;
use crate::{Turn, WorkflowManager, child, telemetry, text};

/// The longest name of a model that is kept, in bytes.
const MAX_MODEL_BYTES: usize = 100;

/// What a report finds.
enum Found {
    /// Its lease, at this place of the run.
    Open(usize),
    /// That it was stored already.
    Stored,
}

/// Ends a task as its agent says. A report that was stored before is answered the same again; another one, or one without
/// a lease, changes nothing and is refused.
pub(crate) fn report(turn: &mut Turn<'_>, agent: &AgentId, report: Report) -> Result<ReportStored, Rejection> {
    let found = find(turn.state(), agent, &report).map_err(|why| Rejection::new(Code::StaleLease, why))?;
    let stored = ReportStored { lease: report.lease };
    let place = match found {
        Found::Open(place) => place,
        Found::Stored => {
            if is_planted(Bug::ReportAppliedTwice) {
                planted_again(turn, agent, report);
            }
            return Ok(stored);
        }
    };
    let result = report.result.as_ref().map_or(0, Json::size);
    if result > MAX_JSON_BYTES {
        let message = format!(
            "the result has {result} bytes; at most {MAX_JSON_BYTES} are allowed: keep large results elsewhere and pass \
             references"
        );
        return Err(Rejection::new(Code::TooLarge, message));
    }
    telemetry::reported(turn, &report, agent);
    let run = report.task.run;
    let Some((live, version)) = turn.state().live(run) else { return Ok(stored) };
    let ending = ending(report, live, version, place);
    advance::end(turn, run, place, ending);
    advance::advance(turn, run);
    Ok(stored)
}

/// Takes each report for itself.
pub(crate) fn reports(turn: &mut Turn<'_>, agent: &AgentId, request: Reports) -> ReportsAnswered {
    let answers = request.reports.into_iter().map(|one| match report(turn, agent, one) {
        Ok(stored) => ReportAnswer::Stored(stored),
        Err(rejection) => ReportAnswer::Refused(rejection),
    });
    ReportsAnswered { answers: answers.collect() }
}

/// Stores a report that was stored before: what [`Bug::ReportAppliedTwice`] does.
fn planted_again(turn: &mut Turn<'_>, agent: &AgentId, report: Report) {
    let Report { lease, task, .. } = report.clone();
    let Ending { outcome, result, error, code, again, speculative: _, cost, usage, model, delegated, lease: _ } =
        said(report);
    let (lease, agent) = (Some(lease), Some(agent.clone()));
    let hopeless = outcome == Outcome::Failed && again == Again::Never;
    let ended = StageEnded {
        task,
        lease,
        agent,
        outcome,
        result,
        error,
        hopeless,
        code,
        retry_at: None,
        duration_ms: 0,
        cost,
        usage,
        model,
        delegated,
        speculative: false,
        other: None,
    };
    turn.emit(WorkflowRecord::StageEnded(ended));
}

/// What a report makes of its attempt: a result that does not fit what the stage promises is a failure, and another attempt
/// may give one that does.
fn ending(mut report: Report, run: &Run, version: &Version, place: usize) -> Ending {
    let (attempt, delegate) = (report.task.attempt, report.delegate.take());
    let both = report.result.as_ref().is_some_and(|result| !result.is_null());
    let mut ending = said(report);
    let begun = run.stages[place].attempts.get((attempt as usize).wrapping_sub(1));
    let early = begun.and_then(|attempt| attempt.speculation).is_some_and(|at| at != Speculation::Committed);
    if let Some(delegate) = delegate.filter(|_| ending.outcome == Outcome::Succeeded) {
        let refused = |(Failure { code, error }, again)| (Some(code.to_owned()), Some(error), again);
        let both = both.then(|| {
            let error = "it has a result, and delegates: give one of the two".to_owned();
            (Failure { code: "invalid_delegation", error }, Again::Later)
        });
        let early = early.then(|| {
            let error = "it began early, and delegates: it may yet turn out that it does not count".to_owned();
            (Failure { code: "invalid_delegation", error }, Again::Later)
        });
        match both.or(early).map_or_else(|| child::delegated(run, version, place, attempt, &delegate), Err) {
            Ok(delegated) => (ending.outcome, ending.delegated) = (Outcome::Delegated, Some(Box::new(delegated))),
            Err(why) => {
                (ending.outcome, ending.result) = (Outcome::Failed, None);
                (ending.code, ending.error, ending.again) = refused(why);
            }
        }
        return ending;
    }
    if ending.outcome == Outcome::Succeeded {
        match flow::output(run, version, place, ending.result.take()) {
            Ok(result) => ending.result = result.filter(|result| !result.is_null()),
            Err(Failure { code, error }) => {
                (ending.outcome, ending.again) = (Outcome::Failed, Again::Later);
                (ending.code, ending.error) = (Some(code.to_owned()), Some(error));
            }
        }
    }
    ending
}

/// What a report says.
fn said(report: Report) -> Ending {
    let Report { lease, task: _, status, result, error, code, retryable, cost, usage, model, delegate: _ } = report;
    let model = model.map(|model| text::cut(model, MAX_MODEL_BYTES));
    match status {
        // `null` is written as it is, and read back as none: it is none from the beginning.
        ReportStatus::Succeeded => Ending {
            outcome: Outcome::Succeeded,
            result: result.filter(|result| !result.is_null()),
            error: None,
            code: None,
            again: Again::Never,
            speculative: false,
            cost,
            usage,
            model,
            delegated: None,
            lease: Some(lease),
        },
        ReportStatus::Failed => Ending {
            outcome: Outcome::Failed,
            result: None,
            error: Some(error.map_or_else(
                || "the agent gave no reason".to_owned(),
                |error| text::cut(error, text::MAX_ERROR_BYTES),
            )),
            code: code.filter(|code| !code.is_empty()).map(|code| text::cut_to(code, MAX_CODE_BYTES)),
            again: if retryable { Again::Later } else { Again::Never },
            speculative: false,
            cost,
            usage,
            model,
            delegated: None,
            lease: Some(lease),
        },
    }
}

/// What the report is about, or why it is about nothing.
fn find(state: &WorkflowManager, agent: &AgentId, report: &Report) -> Result<Found, String> {
    let Report { task, lease, .. } = report;
    let Some((run, version)) = state.run(task.run) else {
        return Err(format!("run {} is not running: it ended long ago, or there never was one", task.run));
    };
    let Some(place) = run.place(version, task) else {
        return Err(format!("workflow {} has no stage {}", run.workflow, task.part()));
    };
    let attempts = &run.stages[place].attempts;
    if is_planted(Bug::LeaseNotChecked) && attempts.last().is_some_and(|attempt| attempt.outcome.is_none()) {
        return Ok(Found::Open(place));
    }
    let Some(attempt) = attempts.get((task.attempt as usize).wrapping_sub(1)) else {
        let begun = text::count(attempts.len(), "attempt");
        return Err(format!("task {task} has not begun: stage {} had {begun} so far", task.part()));
    };
    if let Some(copy) = attempt.copies.iter().find(|copy| copy.lease == *lease && copy.agent == *agent) {
        return of_copy(place, copy, report);
    }
    let (Some(held), Some(holder)) = (attempt.lease, &attempt.agent) else {
        return Err(format!("task {task} was never leased to an agent"));
    };
    if held != *lease || holder != agent {
        return Err(format!("task {task} was leased to {holder} (lease {held}), not to {agent} (lease {lease})"));
    }
    match attempt.outcome {
        None => Ok(Found::Open(place)),
        Some(Outcome::Succeeded | Outcome::Failed | Outcome::Delegated)
            if is_stored(run, version, place, attempt, report) =>
        {
            Ok(Found::Stored)
        }
        // Two processes of one agent may have done the task. Whoever is told that a report is stored may rely on it.
        Some(Outcome::Succeeded | Outcome::Failed | Outcome::Delegated) => {
            Err(format!("lease {held} of task {task} has ended: another report was stored under it"))
        }
        Some(outcome @ (Outcome::Lost | Outcome::TimedOut | Outcome::Cancelled)) => {
            let why = attempt.error.as_deref().unwrap_or("no reason was given");
            Err(format!("lease {held} of task {task} has ended, {outcome}: {why}"))
        }
    }
}

/// What a report is about under a lease that an attempt had besides another one.
fn of_copy(place: usize, copy: &Copy, report: &Report) -> Result<Found, String> {
    let Some(outcome) = copy.outcome else { return Ok(Found::Open(place)) };
    let Copy { lease, error, code, .. } = copy;
    if outcome == Outcome::Failed {
        let said = said(report.clone());
        let same = said.outcome == Outcome::Failed && said.error.as_deref() == error.as_deref();
        return match same && said.code.as_deref() == code.as_deref() {
            true => Ok(Found::Stored),
            false => {
                Err(format!("lease {lease} of task {} has ended: another report was stored under it", report.task))
            }
        };
    }
    let why = error.as_deref().unwrap_or("no reason was given");
    Err(format!("lease {lease} of task {} has ended, {outcome}: {why}", report.task))
}

/// Whether what ended the attempt is what the report says.
fn is_stored(run: &Run, version: &Version, place: usize, attempt: &Attempt, report: &Report) -> bool {
    let Ending { outcome, result, error, code, delegated, .. } = ending(report.clone(), run, version, place);
    let same_result = match outcome {
        // What was thrown away is told by its hash.
        Outcome::Succeeded if attempt.gave.is_some() => attempt.gave == Some(run::hash_of(result.as_ref())),
        Outcome::Succeeded => run.stages[place].result == result,
        _ => attempt.delegated == delegated,
    };
    attempt.outcome == Some(outcome) && attempt.error == error && attempt.code == code && same_result
}
