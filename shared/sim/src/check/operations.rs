//! The rules of what people do with runs: pausing them, repeating them, having them forgotten.

use std::collections::BTreeSet;

use baton_protocol::record::{Outcome, Rerun, RunPaused, RunResumed, RunStarted, RunsForgotten, Stamp};
use baton_protocol::request::{RerunRun, RunAccepted, RunsCancelled};
use baton_protocol::run::RunStatus;
use baton_protocol::{Millis, RunId, StageName, TaskId, WorkflowName};

use super::answers::{APPLIED, COMMITTED};
use super::{Checked, Facts, Run, broken, hold};
use crate::coverage::Branch;

pub(super) const PAUSED: &str = "a paused run begins nothing";
const PAUSES: &str = "a run is paused and resumed in turns, while it lives, by who asked";
const RERUN: &str = "a run that repeats another one keeps what succeeded there and waits for nothing that is done anew";
const FORGOTTEN: &str = "only runs that have ended are forgotten, the oldest first, once, and not before their time";

/// A time during which a run was paused.
#[derive(Debug)]
pub(super) struct Pause {
    from: u64,
    from_at: Millis,
    /// Where and when it went on; the last is virtual time in microseconds.
    to: Option<(u64, Millis, u64)>,
}

impl Pause {
    /// How much of a time it took.
    pub(super) fn overlap(&self, from: Millis, to: Millis) -> Millis {
        let end = self.to.map_or(to, |(_, at, _)| at.min(to));
        end.saturating_sub(self.from_at.max(from))
    }
}

impl Run {
    pub(super) fn is_paused(&self) -> bool {
        self.pauses.last().is_some_and(|pause| pause.to.is_none())
    }

    /// Whether it was, for somebody who had read so far.
    pub(super) fn was_paused(&self, seen: u64) -> bool {
        let last = self.pauses.iter().rev().find(|pause| pause.from <= seen);
        last.is_some_and(|pause| pause.to.is_none_or(|(to, ..)| to > seen))
    }

    /// Whether it is not listed any more.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.forgotten
    }

    /// When it last went on, in virtual microseconds.
    pub(super) fn resumed_on(&self) -> u64 {
        self.pauses.last().and_then(|pause| pause.to).map_or(0, |(_, _, on)| on)
    }
}

impl Facts {
    /// So many runs that have ended are known at the least, and for that long.
    pub(crate) fn keeping(mut self, count: usize, age: Millis, known: Millis) -> Self {
        self.keeps = (count, age, known);
        self
    }

    /// Somebody asked for all runs of a workflow to be cancelled.
    pub(crate) fn cancel_all_asked(&mut self, workflow: WorkflowName) {
        self.cancels_of.insert(workflow);
    }

    /// Somebody asked for a run to be paused.
    pub(crate) fn pause_asked(&mut self, run: RunId) {
        self.pauses.insert(run);
    }

    /// The runs that are paused.
    pub(crate) fn paused(&self) -> Vec<RunId> {
        let paused = self.runs.iter().filter(|(_, run)| run.finished.is_none() && run.is_paused());
        paused.map(|(id, _)| *id).collect()
    }

    /// A stage of a run.
    pub(crate) fn stage_of(&self, run: RunId, number: usize) -> Option<StageName> {
        let stages = &self.runs.get(&run)?.definition.stages;
        Some(stages[number % stages.len()].name.clone())
    }

    pub(super) fn run_paused(&mut self, stamp: Stamp, record: &RunPaused) -> Checked {
        let with_parent = record.with_parent && self.is_part_of_a_paused(record.run);
        let (seq, asked) = (self.seq, with_parent || (!record.with_parent && self.pauses.contains(&record.run)));
        let run = self.runs.get_mut(&record.run).filter(|run| run.finished.is_none() && !run.is_paused());
        let Some(run) = run.filter(|_| asked) else {
            return Err(broken(PAUSES, format!("run {} was paused", record.run)));
        };
        run.pauses.push(Pause { from: seq, from_at: stamp.at, to: None });
        self.seen.push(if with_parent { Branch::PausedWithParent } else { Branch::Paused });
        Ok(())
    }

    pub(super) fn run_resumed(&mut self, stamp: Stamp, record: &RunResumed) -> Checked {
        let (seq, now) = (self.seq, self.now);
        let run = self.runs.get_mut(&record.run).filter(|run| run.finished.is_none() && run.is_paused());
        let Some(pause) = run.and_then(|run| run.pauses.last_mut()) else {
            return Err(broken(PAUSES, format!("run {} was resumed", record.run)));
        };
        pause.to = Some((seq, stamp.at, now));
        self.seen.push(Branch::Resumed);
        Ok(())
    }

    /// Nobody leases a task of a run of which it has read that it is paused.
    pub(super) fn not_paused(&self, task: &TaskId, stamp: Stamp) -> Checked {
        let pauses = self.runs.get(&task.run).map(|run| &run.pauses);
        let mut known = pauses.into_iter().flatten().filter(|pause| pause.from <= stamp.seen);
        let paused = known.any(|pause| pause.to.is_none_or(|(to, ..)| to > stamp.seen));
        hold!(!paused, PAUSED, "{task} was leased, and its run was paused");
        Ok(())
    }

    /// A run repeats another one.
    pub(super) fn rerun(&mut self, record: &RunStarted, rerun: &Rerun, run: &mut Run) -> Checked {
        let other = self.runs.get(&rerun.of).filter(|other| other.finished.is_some());
        let same = |other: &&Run| other.workflow == record.workflow && other.version == record.version;
        let Some(other) = other.filter(same) else {
            return Err(broken(RERUN, format!("run {} repeats {}", record.run, rerun.of)));
        };
        let (stages, waits) = (&run.definition.stages, run.definition.waits());
        let undone = |place: &usize| {
            let stage = &other.stages[*place];
            stage.over != Some(Outcome::Succeeded) && !stage.skipped
        };
        let mut anew: BTreeSet<usize> = (0..stages.len()).filter(undone).collect();
        anew.extend(run.place(rerun.from.as_str()));
        // Definitions may name a stage before what it waits for.
        for _ in 0..stages.len() {
            let waiting = waits.iter().enumerate().filter(|(_, waits)| waits.iter().any(|other| anew.contains(other)));
            let more: Vec<usize> = waiting.map(|(place, _)| place).collect();
            anew.extend(more);
        }
        for (place, definition) in stages.iter().enumerate() {
            let (stage, name) = (&other.stages[place], &definition.name);
            let kept = rerun.kept.iter().find(|kept| kept.stage == *name);
            let keep = stage.over == Some(Outcome::Succeeded) && !anew.contains(&place);
            hold!(kept.is_some() == keep, RERUN, "run {} keeps {kept:?} of {name}", record.run);
            let Some(kept) = kept else { continue };
            let result = stage.result.as_ref() == kept.result.as_ref();
            hold!(result, RERUN, "run {} keeps {:?} of {name}, not {:?}", record.run, kept.result, stage.result);
            run.stages[place].over = Some(Outcome::Succeeded);
            run.stages[place].result.clone_from(&kept.result);
        }
        self.seen.push(Branch::Rerun);
        Ok(())
    }

    pub(super) fn runs_forgotten(&mut self, stamp: Stamp, record: &RunsForgotten) -> Checked {
        let (count, age, grace) = self.keeps;
        for id in &record.runs {
            // Those that are a part of another one go with it.
            let all_known = self.known_ended();
            let mut known: Vec<_> = self
                .runs
                .iter()
                .filter(|(_, run)| run.finished.is_some() && !run.forgotten && run.parent.is_none())
                .map(|(id, run)| (run.finished.map(|(seq, _)| seq), run.ended_at, *id))
                .collect();
            known.sort_unstable();
            let oldest = known.first().copied();
            // Those that ended in one commit are told apart by the order of their ends, which is not kept here.
            let is_oldest = known.iter().any(|(seq, _, other)| *seq == oldest.and_then(|(seq, ..)| seq) && other == id);
            hold!(is_oldest, FORGOTTEN, "run {id} was forgotten");
            let Some(run) = self.runs.get_mut(id) else { continue };
            let since = stamp.at.saturating_sub(run.ended_at);
            let due = (all_known > count && since >= grace) || (age > 0 && since >= age);
            hold!(due, FORGOTTEN, "run {id} was forgotten at {}, it ended at {}", stamp.at, run.ended_at);
            run.forgotten = true;
            for part in self.within(*id) {
                if let Some(part) = self.runs.get_mut(&part) {
                    part.forgotten = true;
                }
            }
        }
        self.seen.push(Branch::Forgotten);
        Ok(())
    }

    /// Runs were said to be cancelled.
    pub(super) fn cancelled_together(&self, answer: &RunsCancelled) -> Checked {
        for run in &answer.runs {
            let end = self.runs.get(run).and_then(|run| run.finished).map(|(_, status)| status);
            hold!(end == Some(RunStatus::Cancelled), COMMITTED, "run {run} was said to be cancelled, and is {end:?}");
        }
        Ok(())
    }

    /// A run was said to be paused.
    pub(super) fn was_paused(&self, run: RunId) -> Checked {
        let paused = self.runs.get(&run).is_some_and(|run| !run.pauses.is_empty());
        hold!(paused, APPLIED, "run {run} was said to be paused, and never was");
        Ok(())
    }

    /// A run was said to go on.
    pub(super) fn was_resumed(&self, run: RunId, answer: &RunAccepted) -> Checked {
        let known = self.runs.get(&run);
        let resumed = known.is_some_and(|run| answer.existing || run.pauses.iter().any(|pause| pause.to.is_some()));
        hold!(resumed, APPLIED, "run {run} was said to go on, and does not");
        Ok(())
    }

    /// A run was said to repeat another one.
    pub(super) fn repeated(&self, request: &RerunRun, answer: &RunAccepted) -> Checked {
        let repeats = self.runs.get(&answer.run).and_then(|run| run.repeats);
        let right = repeats == Some(request.run) && request.new_run.is_none_or(|run| run == answer.run);
        hold!(right, COMMITTED, "run {} was said to repeat {}, and repeats {repeats:?}", answer.run, request.run);
        Ok(())
    }
}
