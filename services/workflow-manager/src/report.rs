//! An agent reports how its task ended.

use baton_machine::planted::{Bug, is_planted};
use baton_protocol::record::{Outcome, StageEnded, WorkflowRecord};
use baton_protocol::request::{
    MAX_JSON_BYTES, Report, ReportAnswer, ReportStatus, ReportStored, Reports, ReportsAnswered,
};
use baton_protocol::{AgentId, Code, Json, Rejection};

use crate::advance::{self, Again, Ending};
use crate::run::{Attempt, Stage};
use crate::{Turn, WorkflowManager, telemetry, text};

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
    advance::end(turn, run, place, ending(report));
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
    let Ending { outcome, result, error, again, cost, usage, model } = ending(report);
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
        retry_at: None,
        duration_ms: 0,
        cost,
        usage,
        model,
    };
    turn.emit(WorkflowRecord::StageEnded(ended));
}

fn ending(report: Report) -> Ending {
    let Report { lease: _, task: _, status, result, error, retryable, cost, usage, model } = report;
    let model = model.map(|model| text::cut(model, MAX_MODEL_BYTES));
    match status {
        // `null` is written as it is, and read back as none: it is none from the beginning.
        ReportStatus::Succeeded => Ending {
            outcome: Outcome::Succeeded,
            result: result.filter(|result| !result.is_null()),
            error: None,
            again: Again::Never,
            cost,
            usage,
            model,
        },
        ReportStatus::Failed => Ending {
            outcome: Outcome::Failed,
            result: None,
            error: Some(error.map_or_else(
                || "the agent gave no reason".to_owned(),
                |error| text::cut(error, text::MAX_ERROR_BYTES),
            )),
            again: if retryable { Again::Later } else { Again::Never },
            cost,
            usage,
            model,
        },
    }
}

/// What the report is about, or why it is about nothing.
fn find(state: &WorkflowManager, agent: &AgentId, report: &Report) -> Result<Found, String> {
    let Report { task, lease, .. } = report;
    let Some((run, version)) = state.run(task.run) else {
        return Err(format!("run {} is not running: it ended long ago, or there never was one", task.run));
    };
    let Some(place) = version.plan.place(&task.stage) else {
        return Err(format!("workflow {} has no stage {}", run.workflow, task.stage));
    };
    let attempts = &run.stages[place].attempts;
    if is_planted(Bug::LeaseNotChecked) && attempts.last().is_some_and(|attempt| attempt.outcome.is_none()) {
        return Ok(Found::Open(place));
    }
    let Some(attempt) = attempts.get((task.attempt as usize).wrapping_sub(1)) else {
        let begun = text::count(attempts.len(), "attempt");
        return Err(format!("task {task} has not begun: stage {} had {begun} so far", task.stage));
    };
    let (Some(held), Some(holder)) = (attempt.lease, &attempt.agent) else {
        return Err(format!("task {task} was never leased to an agent"));
    };
    if held != *lease || holder != agent {
        return Err(format!("task {task} was leased to {holder} (lease {held}), not to {agent} (lease {lease})"));
    }
    match attempt.outcome {
        None => Ok(Found::Open(place)),
        Some(Outcome::Succeeded | Outcome::Failed) if is_stored(&run.stages[place], attempt, report) => {
            Ok(Found::Stored)
        }
        // Two processes of one agent may have done the task. Whoever is told that a report is stored may rely on it.
        Some(Outcome::Succeeded | Outcome::Failed) => {
            Err(format!("lease {held} of task {task} has ended: another report was stored under it"))
        }
        Some(outcome @ (Outcome::Lost | Outcome::TimedOut | Outcome::Cancelled)) => {
            let why = attempt.error.as_deref().unwrap_or("no reason was given");
            Err(format!("lease {held} of task {task} has ended, {outcome}: {why}"))
        }
    }
}

/// Whether what ended the attempt is what the report says.
fn is_stored(stage: &Stage, attempt: &Attempt, report: &Report) -> bool {
    let Ending { outcome, result, error, .. } = ending(report.clone());
    let same_result = outcome != Outcome::Succeeded || stage.result == result;
    attempt.outcome == Some(outcome) && attempt.error == error && same_result
}
