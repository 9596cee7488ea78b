//! Spans and measurements, as effects: the machine says what is shown, the shell shows it.
//!
//! One trace a run. The run's own span is shown at its end, with its true start; those of its attempts are parts of it.
//! What an agent did is a part of its attempt.

use baton_machine::Effect;
use baton_protocol::id::mix;
use baton_protocol::record::Outcome;
use baton_protocol::request::Report;
use baton_protocol::run::RunStatus;
use baton_protocol::trace::{self, Span, SpanKind};
use baton_protocol::{AgentId, LeaseId, Millis, RunId, TaskId};

use crate::Turn;
use crate::attempt::{Attempt, Copy};
use crate::run::{self, Run};
use crate::workflows::Version;

/// A run was accepted.
pub(crate) fn run_started(turn: &mut Turn<'_>, id: RunId) {
    let now = turn.now();
    let Some((run, _)) = turn.state().run(id) else { return };
    let own = run.span();
    if !turn.shows(own) {
        return live_runs(turn);
    }
    let span = Span {
        context: own.at(mix(own.span).max(1)),
        parent: Some(run.trace.map_or(own.span, |brought| brought.span)),
        name: "process run.start".to_owned(),
        kind: SpanKind::Server,
        start: now,
        end: now,
        attributes: vec![
            ("messaging.system", "nats".to_owned()),
            ("messaging.message.conversation_id", id.to_string()),
            ("baton.run.id", id.to_string()),
            ("baton.workflow.name", run.workflow.to_string()),
        ],
        error: None,
    };
    turn.effect(Effect::Span(span));
    live_runs(turn);
}

/// A run has ended.
pub(crate) fn run_finished(turn: &mut Turn<'_>, id: RunId) {
    show_again(turn, id);
    let Some((run, _)) = turn.state().run(id) else { return };
    let failed = matches!(run.status, RunStatus::Failed | RunStatus::TimedOut);
    let span = (failed || turn.shows(run.span())).then(|| run_span(run));
    let duration = run.ended_at.unwrap_or(run.started_at).saturating_sub(run.started_at);
    let (workflow, status, busy, is_part) = (run.workflow.clone(), run.status, run.busy_ms, run.parent.is_some());
    if let Some(span) = span {
        turn.effect(Effect::Span(span));
    }
    // What a part took is in what the run around it took.
    if is_part {
        return;
    }
    turn.count("workflows_executed_total", &[workflow.as_str(), status.as_str()], 1.0);
    // The first source's measure: what a run took beyond the work itself. Stages that overlap can hide all of it.
    turn.count("coordination_overhead_seconds_total", &[], seconds(duration.saturating_sub(busy)));
    turn.measure_value("coordination_efficiency_seconds", &["run"], seconds(duration));
    live_runs(turn);
}

/// The last attempt at a stage has ended.
pub(crate) fn attempt_ended(turn: &mut Turn<'_>, id: RunId, place: usize) {
    let Some((run, version)) = turn.state().run(id) else { return };
    let Some(attempt) = run.stages[place].attempts.last() else { return };
    let well = attempt.outcome.is_some_and(|outcome| !outcome.is_failure());
    let span = if well && !turn.shows(run.span()) {
        None
    } else {
        attempt_span(run, version, place, run.stages[place].attempts.len() - 1)
    };
    let mut spans: Vec<_> = span.into_iter().collect();
    // The others were shown when they ended.
    if !well || turn.shows(run.span()) {
        let copies = copy_spans(run, version, place, run.stages[place].attempts.len() - 1);
        spans.extend(copies.filter(|(copy, _)| copy.outcome == Some(Outcome::Cancelled)).map(|(_, span)| span));
    }
    let won = u32::from(attempt.won_by_second());
    let lost = attempt.copies.len() as u32 - won;
    let assigned_after = attempt.assigned_at.map(|at| at.saturating_sub(attempt.ready_at));
    let outcome = attempt.outcome.map_or("", Outcome::as_str);
    for span in spans {
        turn.effect(Effect::Span(span));
    }
    for (result, count) in [("won", won), ("lost", lost)].into_iter().filter(|(_, count)| *count > 0) {
        turn.count("hedges_total", &[result], f64::from(count));
    }
    turn.count("stages_executed_total", &[outcome], 1.0);
    if let Some(after) = assigned_after {
        turn.measure_value("coordination_efficiency_seconds", &["assign"], seconds(after));
    }
}

/// Of two that were at an attempt, one is at it no more.
pub(crate) fn copy_ended(turn: &mut Turn<'_>, id: RunId, place: usize, lease: LeaseId) {
    let Some((run, version)) = turn.state().run(id) else { return };
    let index = run.stages[place].attempts.len().saturating_sub(1);
    let span = copy_spans(run, version, place, index).find(|(copy, _)| copy.lease == lease).map(|(_, span)| span);
    if let Some(span) = span {
        turn.effect(Effect::Span(span));
    }
}

/// The spans of those that were given an attempt as well, and have not ended it.
fn copy_spans<'a>(
    run: &'a Run,
    version: &'a Version,
    place: usize,
    index: usize,
) -> impl Iterator<Item = (&'a Copy, Span)> {
    let name = &run.definition(version, place).name;
    let task = run.task(version, place, u32::try_from(index + 1).unwrap_or(u32::MAX));
    let copies = run.stages[place].attempts.get(index).into_iter().flat_map(|attempt| &attempt.copies);
    copies.filter_map(move |copy| {
        let (outcome, end) = copy.outcome.zip(copy.ended_at)?;
        let mut attributes = of_task(&task, Some(&copy.agent));
        attributes.push(("baton.outcome", outcome.to_string()));
        let span = Span {
            context: run.span().at(trace::part_span(&task, &format!("copy {}", copy.lease))),
            parent: Some(trace::task_span(&task)),
            name: format!("stage {name}: one of two copies"),
            kind: SpanKind::Internal,
            start: copy.assigned_at,
            end,
            attributes,
            error: copy.error.as_deref().map(ToOwned::to_owned).filter(|_| outcome.is_failure()),
        };
        Some((copy, span))
    })
}

/// It is known of an attempt that began early whether it counts.
pub(crate) fn speculated(turn: &mut Turn<'_>, counts: bool) {
    turn.count("speculations_total", &[if counts { "committed" } else { "discarded" }], 1.0);
}

/// Shows again what a predecessor may have shown to nobody before it died: spans wait a moment for company before they
/// are sent. The ids are the same, so what was sent already is only sent once more.
pub(crate) fn show_again(turn: &mut Turn<'_>, id: RunId) {
    let since = turn.soft.leads_since;
    let Some((run, version)) = turn.state().run(id) else { return };
    let mut spans = Vec::new();
    for (place, stage) in run.stages.iter().enumerate() {
        let ended_before = |(_, attempt): &(usize, &Attempt)| attempt.ended_at.is_some_and(|at| at <= since);
        let attempts = stage.attempts.iter().enumerate().filter(ended_before);
        for (index, _) in attempts {
            spans.extend(attempt_span(run, version, place, index));
            spans.extend(copy_spans(run, version, place, index).map(|(_, span)| span));
        }
    }
    if run.ended_at.is_some_and(|at| at <= since) {
        spans.push(run_span(run));
    }
    for span in spans {
        turn.effect(Effect::Span(span));
    }
}

fn attempt_span(run: &Run, version: &Version, place: usize, index: usize) -> Option<Span> {
    let name = &run.definition(version, place).name;
    let attempt = &run.stages[place].attempts[index];
    let outcome = attempt.outcome?;
    let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
    let task = run.task(version, place, number);
    let mut attributes = of_task(&task, attempt.agent.as_ref());
    attributes.push(("baton.outcome", outcome.to_string()));
    if attempt.speculation.is_some() {
        attributes.push(("baton.speculative", "true".to_owned()));
    }
    Some(Span {
        context: run.span().at(trace::task_span(&task)),
        parent: Some(trace::run_span(run.id)),
        name: format!("stage {name}"),
        kind: SpanKind::Internal,
        start: attempt.ready_at,
        end: attempt.ended_at?,
        attributes,
        error: attempt.error.clone().filter(|_| outcome.is_failure()),
    })
}

fn run_span(run: &Run) -> Span {
    Span {
        context: run.span(),
        parent: run.trace.map(|brought| brought.span),
        name: format!("invoke_workflow {}", run.workflow),
        kind: SpanKind::Internal,
        start: run.started_at,
        end: run.ended_at.unwrap_or(run.started_at),
        attributes: vec![
            ("messaging.message.conversation_id", run.id.to_string()),
            ("baton.run.id", run.id.to_string()),
            ("baton.workflow.name", run.workflow.to_string()),
            ("baton.workflow.version", run.version.to_string()),
            ("baton.outcome", run.status.to_string()),
        ],
        error: run.reason.clone().filter(|_| matches!(run.status, RunStatus::Failed | RunStatus::TimedOut)),
    }
}

/// An agent's report is about to be stored. Its span is a part of the attempt's and not of the agent's own: an agent that
/// dies takes its spans with it.
pub(crate) fn reported(turn: &mut Turn<'_>, report: &Report, agent: &AgentId) {
    let now = turn.now();
    let task = &report.task;
    let Some((run, _)) = turn.state().run(task.run) else { return };
    let own = run::span(task.run, run.trace);
    if !turn.shows(own) {
        return;
    }
    let mut attributes = of_task(task, Some(agent));
    attributes.push(("messaging.system", "nats".to_owned()));
    let span = Span {
        context: own.at(trace::part_span(task, "report")),
        parent: Some(trace::task_span(task)),
        name: "process agent.report".to_owned(),
        kind: SpanKind::Consumer,
        start: now,
        end: now,
        attributes,
        error: None,
    };
    turn.effect(Effect::Span(span));
}

/// How many runs there are.
pub(crate) fn live_runs(turn: &mut Turn<'_>) {
    let live = turn.state().live_alone() as f64;
    turn.gauge("active_coordinations", &[], live);
}

fn of_task(task: &TaskId, agent: Option<&AgentId>) -> Vec<(&'static str, String)> {
    let mut attributes = vec![
        ("messaging.message.conversation_id", task.run.to_string()),
        ("baton.run.id", task.run.to_string()),
        ("baton.stage.name", task.part().to_string()),
        ("baton.attempt", task.attempt.to_string()),
    ];
    attributes.extend(agent.map(|agent| ("baton.agent.id", agent.to_string())));
    attributes
}

fn seconds(ms: Millis) -> f64 {
    ms as f64 / 1000.0
}
