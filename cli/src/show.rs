//! A run as it stands.

use std::collections::BTreeMap;

use baton_client::now;
use baton_protocol::record::{Outcome, Parent};
use baton_protocol::run::{AttemptView, RunView, Speculation, StageStatus, StageView, Waits};
use serde::Deserialize;

use crate::groups;
use crate::output::{Cell, Output, Table};
use crate::style::Tone;
use crate::text::{count, json, short, span, time};

/// How many characters of a result or an error are shown.
const RESULT: usize = 30;

/// How many characters of what a stage waits for are shown.
const WAITS: usize = 120;

/// Of how many items of a stage that runs do there is a line each.
const ITEM_RUNS: usize = 20;

/// Of how many failed attempts at items of a stage there is a line each.
const FAILED_ITEMS: usize = 10;

/// Writes a run and its stages: many of them as groups, unless all are wanted.
pub(crate) fn run(out: Output, view: &RunView, all: bool) -> anyhow::Result<()> {
    let style = out.style;
    let mut facts = vec![
        ("run", style.bold(&view.run.to_string())),
        ("workflow", format!("{} v{}", view.workflow, view.version)),
        ("status", style.tone(Tone::of(view.status.as_str()), view.status.as_str())),
    ];
    if let Some(paused) = &view.paused {
        let reason = paused.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        facts.push(("paused", format!("since {}{reason}", time(paused.since))));
    }
    if let Some(rerun) = &view.rerun {
        let kept = count(rerun.kept as usize, "stage");
        facts.push(("repeats", format!("run {} from {} on; {kept} kept", rerun.of, rerun.from)));
    }
    if let Some(Parent { task, .. }) = &view.parent {
        facts.push(("does", format!("stage {} of run {}, attempt {}", task.part(), task.run, task.attempt)));
    }
    if let Some(reason) = &view.reason {
        facts.push(("because", reason.clone()));
    }
    facts.push(("input", json(&view.input, 200)));
    facts.push(("started", time(view.started_at)));
    facts.push(("took", took(view)));
    facts.push(("cost", cost(view)));
    if let Some(key) = &view.key {
        facts.push(("key", key.clone()));
    }
    if !view.metadata.is_empty() {
        let pairs: Vec<_> = view.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
        facts.push(("metadata", pairs.join(" ")));
    }
    facts.push(("trace", view.trace_id.clone()));
    let text: String =
        facts.iter().map(|(name, fact)| format!("{}  {fact}\n", style.dim(&format!("{name:<8}")))).collect();
    out.text(&format!("{text}\n"))?;
    if all || view.stages.len() < groups::MANY {
        return out.table(&stages(&view.stages));
    }
    out.table(&groups::table(view))?;
    let (stages_of_interest, more) = groups::attention(view);
    if !stages_of_interest.is_empty() {
        out.line("")?;
        out.table(&stages(stages_of_interest))?;
    }
    let more = if more > 0 { format!("{more} more that failed, try again or run; ") } else { String::new() };
    out.line(&style.dim(&format!("{more}--all shows every stage, `waited` and `took` are medians")))
}

/// How long a run took, or has been running.
pub(crate) fn took(view: &RunView) -> String {
    match view.ended_at {
        Some(end) => span(end.saturating_sub(view.started_at)),
        None => format!("{} so far", span(now().saturating_sub(view.started_at))),
    }
}

/// What a run cost.
pub(crate) fn cost(view: &RunView) -> String {
    let usage = view.usage;
    match (view.cost.is_zero(), usage.is_zero()) {
        (true, true) => "nothing: no model was asked".to_owned(),
        _ => format!("{}; tokens {} in, {} out", view.cost, usage.tokens_in, usage.tokens_out),
    }
}

/// A line an attempt.
pub(crate) fn stages<'a>(stages: impl IntoIterator<Item = &'a StageView>) -> Table {
    let mut table = Table::new(["stage", "status", "attempt", "agent", ">waited", ">took", ">cost", "what came of it"]);
    for stage in stages {
        if stage.attempts.is_empty() {
            let waits: Vec<_> = stage.depends_on.iter().map(ToString::to_string).collect();
            let result = || stage.result.as_ref().map(|result| json(result, RESULT)).unwrap_or_default();
            let waits = match (stage.skipped, stage.cached) {
                (Some(reason), _) => reason.text().to_owned(),
                (None, Some(of)) => format!("as in run {of}: {}", result()),
                // Another run has done it.
                (None, None) if stage.status == StageStatus::Succeeded => format!("kept: {}", result()),
                (None, None) if waits.is_empty() => String::new(),
                (None, None) => format!("waits for {}", short(&waits.join(", "), WAITS)),
            };
            let status = Cell::status(stage.status.as_str());
            table.row([
                stage.name.to_string().into(),
                status,
                "".into(),
                "".into(),
                "".into(),
                "".into(),
                "".into(),
                waits.into(),
            ]);
        }
        for (at, attempt) in stage.attempts.iter().enumerate() {
            let mut cells = row(stage, attempt, at + 1 == stage.attempts.len());
            if attempt.error.is_none() && !stage.items.is_empty() {
                cells.truncate(cells.len() - 1);
                cells.push(items(stage).into());
            }
            if let Some(waits) = &stage.waits {
                cells.truncate(cells.len() - 1);
                cells.push(word(stage, waits).into());
            }
            table.row(cells);
        }
        let runs = stage.items.iter().enumerate().flat_map(|(index, item)| {
            let last = item.attempts.last().filter(|attempt| attempt.child.is_some() && attempt.error.is_none());
            last.map(|attempt| (index, item.status, attempt))
        });
        for (index, status, attempt) in runs.take(ITEM_RUNS) {
            let mut cells = row(stage, attempt, false);
            cells.splice(..2, [format!("{}.{index}", stage.name).into(), Cell::status(status.as_str())]);
            table.row(cells);
        }
        let failed = stage.items.iter().enumerate().flat_map(|(index, item)| {
            item.attempts.iter().filter(|attempt| attempt.error.is_some()).map(move |attempt| (index, attempt))
        });
        for (index, attempt) in failed.take(FAILED_ITEMS) {
            let outcome = attempt.outcome.map_or(StageStatus::Running.as_str(), Outcome::as_str);
            let mut cells = row(stage, attempt, false);
            cells.splice(..2, [format!("{}.{index}", stage.name).into(), Cell::status(outcome)]);
            table.row(cells);
        }
    }
    table
}

/// For whose word a stage waits.
fn word(stage: &StageView, waits: &Waits) -> String {
    match waits {
        Waits::Approval { ask: None, .. } => format!("baton approve RUN {0}, or baton reject RUN {0}", stage.name),
        Waits::Approval { ask: Some(ask), .. } => {
            format!("{} baton approve RUN {1}, or baton reject RUN {1}", short(ask, WAITS), stage.name)
        }
        Waits::Signal { signal, .. } => format!("waits for the signal {signal}"),
    }
}

/// How the items of a stage stand.
fn items(stage: &StageView) -> String {
    let mut counts: BTreeMap<StageStatus, usize> = BTreeMap::new();
    stage.items.iter().for_each(|item| *counts.entry(item.status).or_default() += 1);
    let counts: Vec<_> = counts.iter().map(|(status, count)| format!("{count} {status}")).collect();
    format!("{}: {}", count(stage.items.len(), "item"), counts.join(", "))
}

fn row(stage: &StageView, attempt: &AttemptView, is_last: bool) -> Vec<Cell> {
    // The stage's status is that of its last attempt, and more: ready, waiting for its next one.
    let status = match attempt.outcome {
        Some(outcome) if !is_last => outcome.as_str(),
        _ => stage.status.as_str(),
    };
    let mut agent = match (&attempt.agent, attempt.lease, attempt.child) {
        (Some(agent), Some(lease), _) => format!("{agent}, lease {lease}"),
        (Some(agent), None, _) => agent.to_string(),
        (None, _, Some(child)) => format!("run {child}"),
        (None, _, None) => String::new(),
    };
    for copy in &attempt.copies {
        let how = copy.outcome.map_or_else(|| "is at it as well".to_owned(), |outcome| outcome.to_string());
        agent.push_str(&format!("; {}, lease {}: {how}", copy.agent, copy.lease));
    }
    // A run begins at once.
    let begun = attempt.assigned_at.or(attempt.child.map(|_| attempt.ready_at));
    let between = |from: Option<u64>, to: Option<u64>| match (from, to) {
        (Some(from), Some(to)) => span(to.saturating_sub(from)),
        _ => String::new(),
    };
    let what = match (&attempt.error, &stage.result) {
        (None, None) if attempt.speculation == Some(Speculation::Open) => {
            "it began early: whether it counts is not known yet".into()
        }
        (None, _) if attempt.speculation == Some(Speculation::Discarded) => "it began early, and does not count".into(),
        (Some(error), _) => Cell::toned(short(error, 3 * RESULT), Tone::Bad),
        (None, Some(result)) if is_last => json(result, RESULT).into(),
        _ => "".into(),
    };
    vec![
        stage.name.to_string().into(),
        Cell::status(status),
        attempt.attempt.to_string().into(),
        agent.into(),
        between(Some(attempt.ready_at), attempt.assigned_at).into(),
        between(begun, attempt.ended_at).into(),
        attempt.cost.to_string().into(),
        what,
    ]
}

/// The document that a run has made: the last stage's that has one.
pub(crate) fn document(view: &RunView) -> Option<String> {
    #[derive(Deserialize)]
    struct Text {
        document: String,
    }
    let text = |stage: &StageView| stage.result.as_ref()?.read::<Text>().ok();
    view.stages.iter().rev().find_map(text).map(|text| text.document)
}
