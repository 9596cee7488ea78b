//! Somebody's word: stages that people decide on, and stages that wait for a signal to their run.

use std::collections::{BTreeMap, BTreeSet};

use baton_protocol::definition::{OnTimeout, Otherwise};
use baton_protocol::record::{Outcome, Signalled, StageEnded, StageWaits, Stamp};
use baton_protocol::request::{DecideStage, SignalRun, SignalStored, StageDecided};
use baton_protocol::run::Decision;
use baton_protocol::{Json, RunId, SignalName, StageName};

use super::flow::{FLOW, Verdict};
use super::{Checked, Facts, Run, Stage, broken, hold};
use crate::coverage::Branch;

const WORD: &str = "what waits for somebody's word ends as that says";

/// What clients said.
#[derive(Debug, Default)]
pub(super) struct Words {
    decisions: BTreeSet<(RunId, StageName, bool, Option<String>)>,
    signals: BTreeMap<(RunId, SignalName), Vec<Json>>,
}

/// A signal that a run was given.
#[derive(Debug)]
pub(super) struct Given {
    payload: Json,
    /// Virtual time, in microseconds.
    on: u64,
}

impl Run {
    /// How a stage was decided on, as far as its result or its end says it.
    fn decided(stage: &Stage) -> Option<bool> {
        match stage.over? {
            Outcome::Succeeded => stage.result.as_ref()?.read::<Decision>().ok().map(|decision| decision.approved),
            Outcome::Failed => Some(false),
            _ => None,
        }
    }

    /// Whether it was given a signal.
    pub(super) fn has(&self, signal: &SignalName) -> bool {
        self.signals.contains_key(signal)
    }

    /// Whether a stage of it waits for a signal.
    pub(super) fn waits_for(&self, signal: &SignalName) -> bool {
        let awaited = self.definition.stages.iter().filter_map(|stage| stage.wait_for.as_ref());
        awaited.into_iter().any(|wait_for| wait_for.signal == *signal)
    }

    /// When the signal came that a stage waits for that goes on waiting.
    pub(super) fn heard_on(&self, place: usize) -> Option<u64> {
        let signal = &self.definition.stages.get(place)?.wait_for.as_ref()?.signal;
        self.signals.get(signal).map(|given| given.on)
    }
}

impl Facts {
    /// Some stage of a run that people decide on: one that waits, if one does.
    pub(crate) fn to_be_decided(&self, run: RunId, which: u32) -> Option<StageName> {
        let run = self.runs.get(&run)?;
        let stages = run.stages.iter().zip(&run.definition.stages).filter(|(_, of)| of.approval.is_some());
        let (waiting, others): (Vec<_>, Vec<_>) =
            stages.partition(|(stage, _)| !stage.is_over() && !stage.attempts.is_empty());
        let of = if waiting.is_empty() { others } else { waiting };
        let (_, definition) = of.get(which as usize % of.len().max(1))?;
        Some(definition.name.clone())
    }

    /// Somebody decides.
    pub(crate) fn decision_asked(&mut self, request: &DecideStage) {
        let DecideStage { run, stage, approved, by, .. } = request.clone();
        self.words.decisions.insert((run, stage, approved, by));
    }

    /// Somebody gives a run a signal.
    pub(crate) fn signal_asked(&mut self, request: &SignalRun) {
        let SignalRun { run, signal, payload, .. } = request.clone();
        self.words.signals.entry((run, signal)).or_default().push(payload);
    }

    /// A stage that no agent has begins.
    pub(super) fn stage_waits(&mut self, stamp: Stamp, record: &StageWaits) -> Checked {
        let StageWaits { run: id, stage } = record;
        let (seq, now) = (self.seq, self.now);
        let run = self.runs.get_mut(id).filter(|run| run.finished.is_none() && !run.ending);
        let Some((run, place)) = run.and_then(|run| run.place(stage.as_str()).map(|place| (run, place))) else {
            return Err(broken(FLOW, format!("stage {stage} waits in run {id}, which does not go on")));
        };
        hold!(!run.is_paused(), super::operations::PAUSED, "stage {stage} of run {id} begins to wait");
        let begun = !run.stages[place].attempts.is_empty() || run.stages[place].is_over();
        hold!(!begun && run.may_begin(place), FLOW, "stage {stage} of run {id} can not begin now");
        let verdict = run.verdict(place);
        hold!(verdict == Verdict::Runs, FLOW, "stage {stage} of run {id} waits for a word: {verdict:?}");
        run.runs_alone(place)?;
        let definition = run.definition(place).clone();
        hold!(definition.asks(), FLOW, "stage {stage} of run {id} waits for a word, and is an agent's");
        if run.heard_on(place).is_some() {
            self.seen.push(Branch::SignalBefore);
        }
        run.stages[place].attempts.push(super::Attempt::of_stage((seq, stamp.at, now), &definition));
        Ok(())
    }

    pub(super) fn signalled(&mut self, record: &Signalled) -> Checked {
        let Signalled { run: id, signal, payload, by } = record;
        let trigger = by.as_ref().and_then(|by| by.strip_prefix("trigger "));
        let said = match (trigger, self.runs.get(id)) {
            (Some(trigger), Some(run)) => self.is_given_by(trigger, run, signal),
            _ => self.words.signals.get(&(*id, signal.clone())).is_some_and(|said| said.contains(payload)),
        };
        hold!(said, WORD, "run {id} is given the signal {signal}, and nobody said so");
        let run = self.runs.get_mut(id).filter(|run| run.finished.is_none() && !run.ending);
        let Some(run) = run else {
            return Err(broken(WORD, format!("run {id} is given the signal {signal}, and does not go on")));
        };
        let given = Given { payload: payload.clone(), on: self.now };
        hold!(run.signals.insert(signal.clone(), given).is_none(), WORD, "run {id} is given the signal {signal} twice");
        Ok(())
    }

    /// A stage that no agent had is over.
    pub(super) fn word_given(&mut self, stamp: Stamp, place: usize, record: &StageEnded) -> Checked {
        let (task, seq, now) = (&record.task, self.seq, self.now);
        let Some(run) = self.runs.get_mut(&task.run) else { return Ok(()) };
        let definition = run.definition(place).clone();
        let open = run.stages[place].attempts.last_mut().filter(|attempt| attempt.ended.is_none());
        let Some(attempt) = open else { return Err(broken(WORD, format!("{task} ended, and was not open"))) };
        (attempt.ended, attempt.ended_on) = (Some(seq), Some(now));
        let late = stamp.at >= attempt.ready_at + definition.timeout_ms;
        let was_said = |approved, by: Option<Option<String>>| {
            let said = self
                .words
                .decisions
                .iter()
                .filter(|said| (said.0, &said.1, said.2) == (task.run, &task.stage, approved));
            by.map_or(said.clone().count() > 0, |by| said.clone().any(|said| said.3 == by))
        };
        let right = match (&definition.approval, &definition.wait_for, record.outcome) {
            (_, _, Outcome::Cancelled) => {
                run.ending = true;
                true
            }
            (Some(approval), _, Outcome::Succeeded) => {
                let decision: Decision = record.result.as_ref().and_then(|r| r.read().ok()).unwrap_or_default();
                let goes_on = decision.approved || approval.on_reject == Otherwise::Continue;
                let counts = if decision.approved { OnTimeout::Approve } else { OnTimeout::Reject };
                self.seen.push(if decision.approved { Branch::Approved } else { Branch::Rejected });
                goes_on
                    && match decision.timed_out {
                        true => late && approval.on_timeout == counts && decision.by.is_none(),
                        false => was_said(decision.approved, Some(decision.by)),
                    }
            }
            (Some(approval), _, Outcome::Failed) => {
                self.seen.push(Branch::Rejected);
                let by_time = late && approval.on_timeout == OnTimeout::Reject;
                let fails = approval.on_reject == Otherwise::Fail && record.code.as_deref() == Some("rejected");
                fails && (by_time || was_said(false, None))
            }
            (Some(approval), _, Outcome::TimedOut) => {
                self.seen.push(Branch::Undecided);
                late && approval.on_timeout == OnTimeout::Fail
            }
            (None, Some(wait_for), Outcome::Succeeded) => match run.signals.get(&wait_for.signal) {
                Some(given) => {
                    self.seen.push(Branch::Signalled);
                    record.result.clone().unwrap_or_default() == given.payload
                }
                None => late && wait_for.on_timeout == Otherwise::Continue && record.result.is_none(),
            },
            (None, Some(wait_for), Outcome::TimedOut) => {
                self.seen.push(Branch::NotSignalled);
                late && wait_for.on_timeout == Otherwise::Fail && !run.signals.contains_key(&wait_for.signal)
            }
            _ => false,
        };
        let nobodys = record.agent.is_none() && record.lease.is_none() && record.retry_at.is_none();
        hold!(right && nobodys, WORD, "{task} ended {}, and should not: {:?}", record.outcome, record.result);
        let ending = run.ending && record.outcome != Outcome::Cancelled;
        hold!(!ending, WORD, "{task} ended {} in a run that is ending", record.outcome);
        let stage = &mut run.stages[place];
        (stage.over, stage.result) = (Some(record.outcome), record.result.clone());
        Ok(())
    }

    /// A decision was acknowledged.
    pub(super) fn decision_stored(&self, answer: &StageDecided) -> Checked {
        let StageDecided { run, stage, approved, .. } = answer;
        let of = self.runs.get(run).and_then(|of| Some(&of.stages[of.place(stage.as_str())?]));
        let decided = of.and_then(Run::decided);
        hold!(decided == Some(*approved), WORD, "stage {stage} of run {run} was said to be decided: {decided:?}");
        Ok(())
    }

    /// A signal was acknowledged.
    pub(super) fn signal_stored(&self, request: &SignalRun, _: &SignalStored) -> Checked {
        let given = self.runs.get(&request.run).and_then(|run| run.signals.get(&request.signal));
        let right = given.is_some_and(|given| given.payload == request.payload);
        hold!(right, WORD, "run {} was said to be given {}: {given:?}", request.run, request.signal);
        Ok(())
    }

    /// Whether a stage waits for a decision, and did when that was asked.
    pub(super) fn is_asked(&self, request: &DecideStage, sent: u64) -> bool {
        let of = self.runs.get(&request.run).and_then(|of| Some(&of.stages[of.place(request.stage.as_str())?]));
        of.is_some_and(|stage| {
            !stage.is_over()
                && stage.attempts.last().is_some_and(|attempt| attempt.ended.is_none() && attempt.ready <= sent)
        })
    }

    /// Whether a run was given that signal.
    pub(super) fn was_given(&self, request: &SignalRun) -> bool {
        self.runs.get(&request.run).is_some_and(|run| run.signals.contains_key(&request.signal))
    }
}
