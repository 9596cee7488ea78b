//! Spans and measurements, as effects: the machine says what is shown, the shell shows it.
//!
//! One trace a run. The run's own span is shown at its end, with its true start; those of its attempts are parts of it.
//! What an agent did is a part of its attempt.

use baton_machine::Effect;
use baton_protocol::id::mix;
use baton_protocol::record::Outcome;
use baton_protocol::request::Report;
use baton_protocol::run::RunStatus;
use baton_protocol::trace::{self, Span, SpanKind, TraceContext};
use baton_protocol::{AgentId, Millis, RunId, TaskId};

use crate::Turn;
use crate::run;

/// A run was accepted.
pub(crate) fn run_started(turn: &mut Turn<'_>, id: RunId) {
    let now = turn.now();
    let Some((run, _)) = turn.state().run(id) else { return };
    let own = run.span();
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
    let Some((run, _)) = turn.state().run(id) else { return };
    let end = run.ended_at.unwrap_or(run.started_at);
    let duration = end.saturating_sub(run.started_at);
    let (workflow, status, busy) = (run.workflow.clone(), run.status, run.busy_ms);
    let span = Span {
        context: run.span(),
        parent: run.trace.map(|brought| brought.span),
        name: format!("invoke_workflow {workflow}"),
        kind: SpanKind::Internal,
        start: run.started_at,
        end,
        attributes: vec![
            ("messaging.message.conversation_id", id.to_string()),
            ("baton.run.id", id.to_string()),
            ("baton.workflow.name", workflow.to_string()),
            ("baton.workflow.version", run.version.to_string()),
            ("baton.outcome", status.to_string()),
        ],
        error: run.reason.clone().filter(|_| matches!(status, RunStatus::Failed | RunStatus::TimedOut)),
    };
    turn.effect(Effect::Span(span));
    turn.count("workflows_executed_total", &[workflow.as_str(), status.as_str()], 1.0);
    // The first source's measure: what a run took beyond the work itself. Stages that overlap can hide all of it.
    turn.count("coordination_overhead_seconds_total", &[], seconds(duration.saturating_sub(busy)));
    turn.measure_value("coordination_efficiency_seconds", &["run"], seconds(duration));
    live_runs(turn);
}

/// The last attempt at a stage has ended.
pub(crate) fn attempt_ended(turn: &mut Turn<'_>, id: RunId, place: usize) {
    let now = turn.now();
    let Some((run, version)) = turn.state().run(id) else { return };
    let name = &version.definition.stages[place].name;
    let attempts = &run.stages[place].attempts;
    let Some((attempt, outcome)) = attempts.last().and_then(|attempt| Some((attempt, attempt.outcome?))) else {
        return;
    };
    let number = u32::try_from(attempts.len()).unwrap_or(u32::MAX);
    let task = TaskId { run: id, stage: name.clone(), attempt: number };
    let mut attributes = of_task(&task, attempt.agent.as_ref());
    attributes.push(("baton.outcome", outcome.to_string()));
    let span = Span {
        context: run.span().at(trace::task_span(&task)),
        parent: Some(trace::run_span(id)),
        name: format!("stage {name}"),
        kind: SpanKind::Internal,
        start: attempt.ready_at,
        end: attempt.ended_at.unwrap_or(now),
        attributes,
        error: match outcome {
            Outcome::Succeeded | Outcome::Cancelled => None,
            Outcome::Failed | Outcome::Lost | Outcome::TimedOut => attempt.error.clone(),
        },
    };
    let assigned_after = attempt.assigned_at.map(|at| at.saturating_sub(attempt.ready_at));
    turn.effect(Effect::Span(span));
    turn.count("stages_executed_total", &[outcome.as_str()], 1.0);
    if let Some(after) = assigned_after {
        turn.measure_value("coordination_efficiency_seconds", &["assign"], seconds(after));
    }
}

/// An agent's report is about to be stored. Its span is a part of what the agent was doing, if the agent said so.
pub(crate) fn reported(turn: &mut Turn<'_>, report: &Report, agent: &AgentId, brought: Option<TraceContext>) {
    let now = turn.now();
    let task = &report.task;
    let Some((run, _)) = turn.state().run(task.run) else { return };
    let own = run::span(task.run, run.trace);
    let parent = brought.filter(|brought| brought.trace == own.trace);
    let mut attributes = of_task(task, Some(agent));
    attributes.push(("messaging.system", "nats".to_owned()));
    let span = Span {
        context: own.at(trace::part_span(task, "report")),
        parent: Some(parent.map_or(trace::task_span(task), |brought| brought.span)),
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
    let live = turn.state().runs.len() as f64;
    turn.gauge("active_coordinations", &[], live);
}

fn of_task(task: &TaskId, agent: Option<&AgentId>) -> Vec<(&'static str, String)> {
    let mut attributes = vec![
        ("messaging.message.conversation_id", task.run.to_string()),
        ("baton.run.id", task.run.to_string()),
        ("baton.stage.name", task.stage.to_string()),
        ("baton.attempt", task.attempt.to_string()),
    ];
    attributes.extend(agent.map(|agent| ("baton.agent.id", agent.to_string())));
    attributes
}

fn seconds(ms: Millis) -> f64 {
    ms as f64 / 1000.0
}
