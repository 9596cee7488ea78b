//! A run is paused, and goes on.
//!
//! A paused run begins nothing new. What agents have in hand goes on, with the time that it may take, and so does the time
//! that the run may take: that is what ends a pause that nobody ends. Waits for an agent and for the next attempt stand
//! still; what is left of them is kept, and begins again when the run goes on.

use std::collections::BTreeMap;

use baton_machine::planted::{Bug, is_planted};
use baton_protocol::record::{RunPaused, RunResumed, Stamp, WorkflowRecord};
use baton_protocol::request::{PauseRun, ResumeRun, RunAccepted};
use baton_protocol::run::StageStatus;
use baton_protocol::{Code, Millis, Rejection, RunId};
use serde::{Deserialize, Serialize};

use crate::start::Known;
use crate::{Turn, WorkflowManager, advance, child, text};

/// A run that is paused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Paused {
    pub(crate) since: Millis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// It goes on with the run that it is a part of.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) with_parent: bool,
    /// What is left of the waits that stand still, by the place of the stage.
    pub(crate) left: BTreeMap<usize, Millis>,
}

/// Pauses a run. One that is paused already stays as it is.
pub(crate) fn pause(turn: &mut Turn<'_>, request: PauseRun) -> Result<RunAccepted, Rejection> {
    let PauseRun { run, reason } = request;
    let known = live(turn, &run)?;
    if known.paused {
        return Ok(known.accepted(true));
    }
    let reason = reason.map(|reason| text::cut(reason, text::MAX_REASON_BYTES));
    turn.emit(WorkflowRecord::RunPaused(RunPaused { run, reason, with_parent: false }));
    for within in child::within(turn.state(), run) {
        child::follow(turn, within);
    }
    Ok(RunAccepted { paused: true, ..known.accepted(false) })
}

/// Lets a run go on. One that is not paused goes on anyway.
pub(crate) fn resume(turn: &mut Turn<'_>, request: &ResumeRun) -> Result<RunAccepted, Rejection> {
    let known = live(turn, &request.run)?;
    if !known.paused {
        return Ok(known.accepted(true));
    }
    let parent = turn.state().runs.get(&request.run).and_then(|run| run.parent.as_ref()).map(|parent| parent.task.run);
    if let Some(parent) = parent.filter(|parent| turn.state().runs.get(parent).is_some_and(|run| run.paused.is_some()))
    {
        let message = format!("run {} is a part of run {parent}, which is paused: resume that one", request.run);
        return Err(Rejection::invalid(message));
    }
    turn.emit(WorkflowRecord::RunResumed(RunResumed { run: request.run }));
    let within = child::within(turn.state(), request.run);
    for run in &within {
        child::follow(turn, *run);
    }
    for run in within.into_iter().chain([request.run]) {
        advance::advance(turn, run);
    }
    Ok(RunAccepted { paused: false, ..known.accepted(false) })
}

fn live(turn: &Turn<'_>, run: &RunId) -> Result<Known, Rejection> {
    let Some(known) = Known::of(turn.state(), *run) else {
        let message = format!("run {run} is not running: it ended long ago, or there never was one");
        return Err(Rejection::new(Code::UnknownRun, message));
    };
    if known.status.is_end() {
        return Err(Rejection::new(Code::RunEnded, format!("run {run} has already ended: {}", known.status)));
    }
    Ok(known)
}

impl WorkflowManager {
    pub(crate) fn run_paused(&mut self, stamp: Stamp, record: &RunPaused) {
        let Some(run) = self.runs.change(&record.run) else { return };
        if run.paused.is_some() {
            return;
        }
        let mut paused = Paused {
            since: stamp.at,
            reason: record.reason.clone(),
            with_parent: record.with_parent,
            left: BTreeMap::new(),
        };
        for place in run.begun_places() {
            let stage = &run.stages[place];
            if matches!(stage.status, StageStatus::Ready | StageStatus::Waiting)
                && let Some(due) = stage.due
            {
                paused.left.insert(place, due.saturating_sub(stamp.at));
                self.timers.set(run, place, None);
            }
        }
        run.paused = Some(Box::new(paused));
    }

    pub(crate) fn run_resumed(&mut self, stamp: Stamp, record: &RunResumed) {
        let Some(run) = self.runs.change(&record.run) else { return };
        let Some(paused) = run.paused.take() else { return };
        if is_planted(Bug::WaitsLostInPause) {
            return;
        }
        let Some(version) = &self.workflows.of(run) else { return };
        for (place, left) in paused.left {
            let stage = &run.stages[place];
            if matches!(stage.status, StageStatus::Ready | StageStatus::Waiting) && stage.due.is_none() {
                let due = match stage.status {
                    StageStatus::Waiting => stamp.at.saturating_add(left),
                    // The time for all attempts together did not stand still.
                    _ => run.until(place, version, stamp.at, left),
                };
                self.timers.set(run, place, Some(due));
            }
        }
    }
}
