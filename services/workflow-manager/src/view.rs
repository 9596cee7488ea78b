//! Runs as they are shown.

use std::iter::Peekable;
use std::sync::Arc;

use baton_machine::{Reply, Shelves};
use baton_protocol::request::{ListRuns, MAX_MESSAGE_BYTES, RunFilter, RunList};
use baton_protocol::run::{AttemptView, CopyView, ItemView, PausedView, RunSummary, RunView, StageStatus, StageView};
use baton_protocol::subject::RUNS_BUCKET;
use baton_protocol::{Code, Json, Rejection, RunId};

use crate::attempt::{Attempt, Copy};
use crate::run::{Fan, Run, Stage};
use crate::workflows::Version;
use crate::{Turn, WorkflowManager, text, word};

/// The largest document. A run with more in it is shown without some of its results.
const MAX_DOCUMENT_BYTES: usize = MAX_MESSAGE_BYTES;

/// How many bytes it takes to say what was left out.
const MAX_NOTE_BYTES: usize = 256;

const WRITABLE: &str = "what the protocol answers can be written as JSON";

/// How many runs are listed if nothing else is asked for, and how many at the most.
const LIMIT: (u32, u32) = (100, 1000);

/// Gives a run. One that is here no more is in the bucket of finished runs.
pub(crate) fn get(turn: &mut Turn<'_>, run: RunId) -> Reply {
    if let Some((run, version)) = turn.state().run(run) {
        return Ok(document(run, version));
    }
    let unknown = Rejection::new(Code::UnknownRun, format!("there is no run {run}"));
    turn.answer_document(RUNS_BUCKET, run.to_string(), unknown.clone());
    Err(unknown)
}

/// Lists runs, the newest first.
pub(crate) fn list(state: &WorkflowManager, request: &ListRuns) -> RunList {
    let limit = request.limit.unwrap_or(LIMIT.0).clamp(1, LIMIT.1) as usize;
    let filter = RunFilter {
        workflow: request.workflow.clone(),
        since: request.since,
        until: request.until,
        metadata: request.metadata.clone(),
        paused: request.paused,
    };
    let within = |summary: &RunSummary| match (&summary.parent, request.parent) {
        (parent, Some(of)) => parent.as_ref().is_some_and(|parent| parent.task.run == of),
        (Some(_), None) => request.children,
        (None, None) => true,
    };
    let wanted = |summary: &RunSummary| {
        request.status.is_none_or(|status| status == summary.status) && within(summary) && filter.is_meant(summary)
    };
    let live = up_to(&state.runs, request.before).rev().map(|(_, run)| summary(run));
    let ended = state.history.newest_first(request.before).cloned();
    let mut found = Merged { live: live.peekable(), ended: ended.peekable() }.filter(wanted);
    let runs = found.by_ref().take(limit).collect();
    RunList { runs, counts: state.counts(), more: found.next().is_some() }
}

/// The entries before that one, or all.
pub(crate) fn up_to<V: Clone>(
    runs: &Shelves<RunId, V>,
    before: Option<RunId>,
) -> impl DoubleEndedIterator<Item = (&RunId, &V)> {
    let all = before.is_none().then(|| runs.iter()).into_iter().flatten();
    all.chain(before.map(|before| runs.before(&before)).into_iter().flatten())
}

/// Two lists, each the newest first, in one.
struct Merged<L: Iterator, E: Iterator> {
    live: Peekable<L>,
    ended: Peekable<E>,
}

impl<L: Iterator<Item = RunSummary>, E: Iterator<Item = RunSummary>> Iterator for Merged<L, E> {
    type Item = RunSummary;
    fn next(&mut self) -> Option<RunSummary> {
        let ended = self.ended.peek().map(|summary| summary.run);
        let live = self.live.next_if(|live| ended.is_none_or(|ended| live.run > ended));
        live.or_else(|| self.ended.next())
    }
}

/// A run in a list.
pub(crate) fn summary(run: &Run) -> RunSummary {
    let count = |count| u32::try_from(count).unwrap_or(u32::MAX);
    RunSummary {
        run: run.id,
        workflow: run.workflow.clone(),
        version: run.version,
        status: run.status,
        started_at: run.started_at,
        ended_at: run.ended_at,
        stages: count(run.count()),
        stages_ended: count(run.over),
        cost: run.cost,
        metadata: run.metadata.clone(),
        paused: run.paused.is_some(),
        parent: run.parent.as_deref().cloned(),
    }
}

/// A run with all that happened to it, as the document that is kept and shown. It must fit into a message: where it would
/// not, something is left out, what is the least missed first, and the document says so.
pub(crate) fn document(run: &Run, version: &Version) -> Json {
    let mut view = view(run, version);
    let reason = view.reason.clone();
    let mut whole = Json::of(&view).expect(WRITABLE);
    let mut left_out = Vec::new();
    for leave_out in
        [leave_out_results, leave_out_dependencies, leave_out_definition, leave_out_items, leave_out_stages]
    {
        if whole.size() <= MAX_DOCUMENT_BYTES {
            break;
        }
        let excess = whole.size() - MAX_DOCUMENT_BYTES + MAX_NOTE_BYTES;
        left_out.extend(leave_out(&mut view, excess));
        let note = format!("{} left out here: the whole is too large", left_out.join(" and "));
        view.reason = Some(reason.as_ref().map_or(note.clone(), |reason| format!("{reason} ({note})")));
        whole = Json::of(&view).expect(WRITABLE);
    }
    whole
}

/// The results of the earliest stages: each was given to the stages that needed it, and the log has it.
fn leave_out_results(view: &mut RunView, excess: usize) -> Option<String> {
    let (mut bytes, mut count) = (0, 0);
    for stage in &mut view.stages {
        if bytes >= excess {
            break;
        }
        if let Some(result) = stage.result.take() {
            bytes += result.size();
            count += 1;
        }
    }
    (count > 0).then(|| text::count(count, "result"))
}

/// What stages wait for: the workflow's definition says it too.
fn leave_out_dependencies(view: &mut RunView, _: usize) -> Option<String> {
    let had = view.stages.iter_mut().map(|stage| std::mem::take(&mut stage.depends_on).len()).sum::<usize>();
    (had > 0).then(|| "what stages depend on".to_owned())
}

/// What was delegated: the log has it.
fn leave_out_definition(view: &mut RunView, _: usize) -> Option<String> {
    view.definition.take().map(|_| "the definition".to_owned())
}

/// The attempts of items that succeeded, and then all items.
fn leave_out_items(view: &mut RunView, excess: usize) -> Option<String> {
    let had: usize = view.stages.iter().map(|stage| stage.items.len()).sum();
    let (mut bytes, size) = (0, |item: &ItemView| Json::of(&item.attempts).map_or(0, |json| json.size()));
    let succeeded = |item: &&mut ItemView| item.status == StageStatus::Succeeded;
    for item in view.stages.iter_mut().flat_map(|stage| &mut stage.items).filter(succeeded) {
        bytes += size(item);
        item.attempts.clear();
    }
    if bytes < excess {
        view.stages.iter_mut().for_each(|stage| stage.items.clear());
    }
    (had > 0).then(|| if bytes < excess { text::count(had, "item") } else { "attempts at items".to_owned() })
}

/// Stages that succeeded, the earliest first; then any, from the end.
fn leave_out_stages(view: &mut RunView, excess: usize) -> Option<String> {
    let size = |stage: &StageView| Json::of(stage).map_or(0, |json| json.size() + 1);
    let (all, mut bytes) = (view.stages.len(), 0);
    view.stages.retain(|stage| {
        let goes = stage.status == StageStatus::Succeeded && bytes < excess;
        bytes += if goes { size(stage) } else { 0 };
        !goes
    });
    while bytes < excess
        && let Some(stage) = view.stages.pop()
    {
        bytes += size(&stage);
    }
    let count = all - view.stages.len();
    (count > 0).then(|| text::count(count, "stage"))
}

fn view(run: &Run, version: &Version) -> RunView {
    let items = |place| {
        let places = run.fan(place).map(Fan::places).into_iter().flatten();
        let item =
            |item: &Stage| ItemView { status: item.status, attempts: (1..).zip(&item.attempts).map(attempt).collect() };
        places.map(|place| item(&run.stages[place])).collect()
    };
    let stages = run.stages.iter().zip(&version.definition.stages).enumerate();
    let stages = stages.map(|(place, (stage, definition))| StageView {
        name: definition.name.clone(),
        agent_type: definition.agent_type.clone(),
        workflow: definition.workflow.clone(),
        depends_on: definition.depends_on.clone(),
        optional: definition.optional,
        status: stage.status,
        skipped: stage.skipped,
        result: stage.result.clone(),
        attempts: (1..).zip(&stage.attempts).map(attempt).collect(),
        items: items(place),
        cached: stage.cached,
        waits: word::waits(stage, definition),
    });
    RunView {
        run: run.id,
        workflow: run.workflow.clone(),
        version: run.version,
        status: run.status,
        reason: run.reason.clone(),
        input: run.input.clone(),
        priority: run.priority,
        key: run.key.clone(),
        trace_id: format!("{:032x}", run.span().trace),
        started_at: run.started_at,
        ended_at: run.ended_at,
        cost: run.cost,
        usage: run.usage,
        budget: run.budget.as_deref().cloned(),
        first_seq: run.first_seq,
        metadata: run.metadata.clone(),
        paused: run.paused.as_ref().map(|paused| PausedView { since: paused.since, reason: paused.reason.clone() }),
        rerun: run.rerun.as_deref().cloned(),
        parent: run.parent.as_deref().cloned(),
        definition: run.own.as_ref().map(|own| Arc::clone(&own.definition)),
        stages: stages.collect(),
    }
}

fn attempt((number, attempt): (u32, &Attempt)) -> AttemptView {
    AttemptView {
        attempt: number,
        ready_at: attempt.ready_at,
        assigned_at: attempt.assigned_at,
        agent: attempt.agent.clone(),
        child: attempt.child,
        lease: attempt.lease,
        ended_at: attempt.ended_at,
        outcome: attempt.outcome,
        error: attempt.error.clone(),
        code: attempt.code.clone(),
        cost: attempt.cost,
        usage: attempt.usage,
        model: attempt.model.as_deref().map(ToOwned::to_owned),
        speculation: attempt.speculation,
        copies: attempt.copies.iter().map(copy).collect(),
    }
}

fn copy(copy: &Copy) -> CopyView {
    CopyView {
        agent: copy.agent.clone(),
        lease: copy.lease,
        assigned_at: copy.assigned_at,
        ended_at: copy.ended_at,
        outcome: copy.outcome,
        error: copy.error.as_deref().map(ToOwned::to_owned),
    }
}
