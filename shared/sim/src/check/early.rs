//! The rules of what begins before all is over that it waits for.

use baton_protocol::record::{Outcome, StageCommitted, StageEnded, Stamp};
use baton_protocol::{Json, StageName, TaskId};
use serde_json::Value;

use super::flow::Verdict;
use super::{Attempt, Checked, Facts, Run, Stage, Violation, broken, hold};
use crate::coverage::Branch;

const EARLY: &str = "what begins early counts if it was given what its stage is given, and only then";

/// The one result that is assumed, as it is drawn: `{'lease': 0}`.
pub(crate) const ASSUMED: &str = "{'lease': 0}";

/// What began early of a stage, as long as it is not known whether it counts.
#[derive(Debug)]
pub(super) struct Early {
    given: Value,
    /// What it gave, if it is over.
    held: Option<Option<Json>>,
}

impl Stage {
    /// Whether an attempt was made that counts, or one is under way that may.
    pub(super) fn has_begun(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.counts || attempt.ended.is_none())
    }

    /// Whether what began early of it is under way, and it is not known whether it counts.
    fn is_early(&self) -> bool {
        self.early.as_ref().is_some_and(|early| early.held.is_none())
    }
}

impl Run {
    /// Whether a stage begins early with an assumption about another one.
    pub(super) fn assumes(&self, place: usize, other: usize) -> bool {
        let speculative = self.definition(place).speculative.as_ref();
        speculative.is_some_and(|speculative| speculative.assume.contains_key(&self.definition(other).name))
    }

    /// What is to become of a stage that began early, now that all is over that it waits for.
    fn is_right(&self, place: usize) -> bool {
        let given = self.stages[place].early.as_ref().map(|early| &early.given);
        self.verdict(place) == Verdict::Runs && given == Some(&self.input_of(place))
    }

    /// Something is decided of a stage whose early attempt is thrown away.
    pub(super) fn thrown_away(&mut self, name: &StageName, place: usize) -> Checked {
        if self.stages[place].early.is_some() {
            hold!(!self.stages[place].is_early(), EARLY, "stage {name} begins, and what began early is under way");
            hold!(!self.is_right(place), EARLY, "what stage {name} gave early is thrown away, and counts");
            self.stages[place].early = None;
        }
        Ok(())
    }
}

impl Facts {
    /// An attempt begins before all is over that its stage waits for. Its place.
    pub(super) fn begins_early(&mut self, task: &TaskId, input: Option<&Json>) -> Result<usize, Violation> {
        self.no_pause_around(task)?;
        let run = self.runs.get_mut(&task.run).filter(|run| run.finished.is_none() && !run.ending);
        let Some((run, place)) = run.and_then(|run| run.place_of(task).map(|place| (run, place))) else {
            return Err(broken(EARLY, format!("{task} begins in a run that does not go on")));
        };
        hold!(!run.is_paused(), super::operations::PAUSED, "{task} begins early, and its run is paused");
        let stage = &run.stages[place];
        let first = stage.attempts.is_empty() && !stage.is_over() && task.attempt == 1;
        hold!(first, EARLY, "{task} begins early, and something of it began before");
        hold!(!run.may_begin(place), EARLY, "{task} begins early, and is due");
        for name in &run.definition(place).depends_on {
            let other = run.place(name.as_str()).unwrap_or(place);
            let stage = &run.stages[other];
            let far = stage.is_over() || (run.assumes(place, other) && !stage.attempts.is_empty());
            hold!(far, EARLY, "{task} begins early, and {name} is not that far");
        }
        let verdict = run.verdict_if(place, true);
        hold!(verdict == Verdict::Runs, EARLY, "{task} begins early, and should not run: {verdict:?}");
        run.runs_alone(place)?;
        let given = input.and_then(|input| input.read::<Value>().ok()).unwrap_or_default();
        let right = run.input_if(place, true);
        hold!(given == right, EARLY, "{task} begins early with {given}, not {right}");
        run.stages[place].early = Some(Early { given, held: None });
        self.seen.push(Branch::BeganEarly);
        Ok(place)
    }

    /// A stage could not begin early.
    pub(super) fn never_began_early(&mut self, stamp: Stamp, place: usize, record: &StageEnded) -> Checked {
        let (task, begun) = (&record.task, (self.seq, stamp.at, self.now));
        let Some(run) = self.runs.get_mut(&task.run) else { return Ok(()) };
        let stage = &run.stages[place];
        let first = stage.attempts.is_empty() && !stage.is_over() && task.attempt == 1;
        let right = first && record.outcome == Outcome::Failed && record.lease.is_none() && record.retry_at.is_none();
        hold!(right && !run.may_begin(place), EARLY, "{task} could not begin early: {record:?}");
        let verdict = run.verdict_if(place, true);
        hold!(verdict != Verdict::Runs, EARLY, "{task} could not begin early, and should");
        let definition = run.definition(place).clone();
        let attempt = Attempt::of_stage(begun, &definition);
        let (ended, ended_on) = (Some(self.seq), Some(self.now));
        let attempt = Attempt { counts: false, outcome: Some(record.outcome), ended, ended_on, ..attempt };
        run.stages[place].attempts.push(attempt);
        self.seen.push(Branch::NotEarly);
        Ok(())
    }

    /// An attempt has ended, before it was known whether it counts or not.
    pub(super) fn ended_early(&mut self, place: usize, record: &StageEnded) -> Checked {
        let task = &record.task;
        let Some(run) = self.runs.get_mut(&task.run) else { return Ok(()) };
        let was_early = run.stages[place].is_early();
        if !record.speculative {
            let right = !was_early || record.outcome == Outcome::Cancelled;
            hold!(right, EARLY, "{task} began early, and ends its stage");
            run.stages[place].early = None;
            return Ok(());
        }
        hold!(was_early && record.retry_at.is_none(), EARLY, "{task} ended early, and did not begin so");
        if record.outcome == Outcome::Cancelled {
            hold!(run.may_begin(place), EARLY, "{task} is given up before it is known whether it counts");
            hold!(!run.is_right(place), EARLY, "{task} is given up, and counts");
            self.seen.push(Branch::DiscardedUnderWay);
        }
        let early = run.stages[place].early.as_mut().filter(|_| record.outcome == Outcome::Succeeded);
        match early {
            Some(early) => early.held = Some(record.result.clone()),
            None => run.stages[place].early = None,
        }
        Ok(())
    }

    pub(super) fn stage_committed(&mut self, stamp: Stamp, record: &StageCommitted) -> Checked {
        let task = &record.task;
        let run = self.runs.get_mut(&task.run).filter(|run| run.finished.is_none() && !run.ending);
        let Some((run, place)) = run.and_then(|run| run.place_of(task).map(|place| (run, place))) else {
            return Err(broken(EARLY, format!("{task} counts in a run that does not go on")));
        };
        hold!(!run.is_paused(), super::operations::PAUSED, "{task} counts, and its run is paused");
        let last = run.stages[place].attempts.len() == task.attempt as usize && run.stages[place].early.is_some();
        hold!(last && run.may_begin(place), EARLY, "{task} counts, and did not begin early or is not due");
        let (verdict, right) = (run.verdict(place), run.input_of(place));
        hold!(run.is_right(place), EARLY, "{task} counts, and its stage is given {right}: {verdict:?}");
        run.runs_alone(place)?;
        let stage = &mut run.stages[place];
        let held = stage.early.take().and_then(|early| early.held);
        if let Some(attempt) = stage.attempts.last_mut() {
            attempt.counts = true;
        }
        self.seen.push(if held.is_some() { Branch::CommittedLater } else { Branch::CommittedUnderWay });
        if let Some(result) = held {
            (stage.over, stage.result, stage.ended_at) = (Some(Outcome::Succeeded), result, stamp.at);
        }
        Ok(())
    }
}
