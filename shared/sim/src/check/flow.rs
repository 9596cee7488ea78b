//! The way through a workflow: which stages run and which are skipped, what agents are given, and what their results are.
//!
//! It is worked out here once more, from the definition and the log. Expressions are not evaluated: those that the workload
//! draws are few, and what each of them means is written down here by hand ([`CONDITIONS`]).

use baton_protocol::definition::{Join, OnFailure};
use baton_protocol::record::{Outcome, SkipReason, StageSkipped};
use baton_protocol::request::{Assignment, Report, ReportStatus};
use baton_protocol::{Json, Millis, RunId, StageDefinition};
use serde_json::{Value, json};

use super::{Checked, Facts, Run, broken, hold};
use crate::coverage::Branch;

pub(super) const FLOW: &str = "stages run, or are skipped, as the definition says";
pub(super) const GIVEN: &str = "an agent is given what the definition says";

/// The conditions that are drawn; `?` is a stage that the one with the condition depends on.
pub(crate) const CONDITIONS: [&str; 5] = [
    "input.n % 2 == 0",
    "status.? == 'failed'",
    "status.? != 'skipped'",
    "results.?.lease % 2 == 0",
    "results.? == null || size(results) == 1",
];

/// The one mapping of inputs that is drawn, of a stage with a dependency `?`, and the one of outputs.
pub(crate) const INPUT: [(&str, &str); 2] = [("n", "input.n"), ("was", "status.?")];
pub(crate) const OUTPUT: [(&str, &str); 2] = [("lease", "result.lease"), ("n", "input.n + 1")];

/// What should become of a stage, now that all it waits for is over.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    Runs,
    Skipped(SkipReason),
    /// It can not begin, for this reason.
    Fails(&'static str),
}

/// What should become of a report.
pub(super) struct Made {
    pub(super) outcome: Outcome,
    pub(super) result: Option<Json>,
    pub(super) code: Option<String>,
    pub(super) may_retry: bool,
}

impl Run {
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.definition.stages.iter().position(|stage| stage.name.as_str() == name)
    }

    /// Whether a stage that has failed ends its run.
    pub(super) fn is_fatal(stage: &StageDefinition) -> bool {
        !stage.may_fail() && !matches!(stage.on_failure, OnFailure::Fallback(_))
    }

    /// What counts as a stage's result: its own, or its fallback's.
    pub(super) fn result(&self, place: usize) -> Option<&Json> {
        let fallback = || match &self.definition.stages[place].on_failure {
            OnFailure::Fallback(other) => self.result(self.place(other.as_str())?),
            OnFailure::Fail | OnFailure::Continue => None,
        };
        self.stages[place].result.as_ref().or_else(fallback)
    }

    /// What counted as a stage's result when another one began, which may be its fallback: an assignment may come when that is
    /// over.
    fn result_before(&self, place: usize, began: usize) -> Option<&Json> {
        let fallback = || match &self.definition.stages[place].on_failure {
            OnFailure::Fallback(other) => self.result_before(self.place(other.as_str())?, began),
            OnFailure::Fail | OnFailure::Continue => None,
        };
        if place == began { None } else { self.stages[place].result.as_ref().or_else(fallback) }
    }

    fn value(&self, place: usize) -> Value {
        self.result(place).and_then(|result| result.read().ok()).unwrap_or(Value::Null)
    }

    fn status(&self, place: usize) -> &'static str {
        match self.stages[place].over {
            _ if self.stages[place].skipped => "skipped",
            Some(Outcome::Succeeded) => "succeeded",
            _ => "failed",
        }
    }

    fn n(&self) -> i64 {
        self.input.read::<Value>().ok().and_then(|input| input["n"].as_i64()).unwrap_or(0)
    }

    /// What is to become of a stage that has not begun.
    pub(super) fn verdict(&self, place: usize) -> Verdict {
        let stage = &self.definition.stages[place];
        let stages = || self.definition.stages.iter().enumerate();
        let stood_for = stages().find(|(_, other)| other.on_failure == OnFailure::Fallback(stage.name.clone()));
        if let Some((other, _)) = stood_for
            && self.status(other) != "failed"
        {
            return Verdict::Skipped(SkipReason::NotNeeded);
        }
        let count = stage.depends_on.len();
        let skipped = stage.depends_on.iter().filter_map(|name| self.place(name.as_str()));
        let skipped = skipped.filter(|other| self.stages[*other].skipped).count();
        let left_out = match stage.join {
            Join::Any => stood_for.is_none() && count > 0 && skipped == count,
            Join::All => skipped > 0,
            Join::Always => false,
        };
        if left_out {
            return Verdict::Skipped(SkipReason::Dependencies);
        }
        let Some(when) = &stage.when else { return Verdict::Runs };
        match self.holds(when.as_str(), count) {
            Some(true) => Verdict::Runs,
            Some(false) => Verdict::Skipped(SkipReason::Condition),
            None => Verdict::Fails("condition_failed"),
        }
    }

    /// What the condition of a stage with so many dependencies gives; none if it can not be evaluated. `results` as a whole
    /// has all that is depended on.
    fn holds(&self, condition: &str, dependencies: usize) -> Option<bool> {
        let name: String = condition.split_once('.')?.1.chars().take_while(char::is_ascii_alphanumeric).collect();
        let other = self.place(&name);
        match CONDITIONS.iter().position(|drawn| drawn.replace('?', &name) == condition)? {
            0 => Some(self.n() % 2 == 0),
            1 => Some(self.status(other?) == "failed"),
            2 => Some(self.status(other?) != "skipped"),
            3 => self.value(other?)["lease"].as_i64().map(|lease| lease % 2 == 0),
            _ => Some(self.value(other?) == Value::Null || dependencies == 1),
        }
    }

    /// What a stage's agent is to be given as its input.
    pub(super) fn input_of(&self, place: usize) -> Value {
        let stage = &self.definition.stages[place];
        let other = stage.depends_on.first().and_then(|name| self.place(name.as_str()));
        match (&stage.input, other) {
            (Some(_), Some(other)) => json!({ "n": self.n(), "was": self.status(other) }),
            _ => self.input.read().unwrap_or_default(),
        }
    }

    /// What a report makes of the attempt that it ends.
    pub(super) fn made(&self, place: usize, report: &Report) -> Made {
        if report.status == ReportStatus::Failed {
            let (outcome, code, may_retry) = (Outcome::Failed, report.code.clone(), report.retryable);
            return Made { outcome, result: None, code, may_retry };
        }
        let stage = &self.definition.stages[place];
        let value: Value = report.result.as_ref().and_then(|result| result.read().ok()).unwrap_or_default();
        let refused =
            |code: &str| Made { outcome: Outcome::Failed, result: None, code: Some(code.to_owned()), may_retry: true };
        if stage.output_schema.is_some() && !value.is_object() {
            return refused("invalid_result");
        }
        let result = match (&stage.output, value["lease"].as_i64()) {
            (None, _) => report.result.clone(),
            (Some(_), Some(lease)) => Json::of(&json!({ "lease": lease, "n": self.n() + 1 })).ok(),
            (Some(_), None) => return refused("output_failed"),
        };
        Made { outcome: Outcome::Succeeded, result, code: None, may_retry: false }
    }

    /// When a stage's attempts have taken too long together.
    pub(super) fn total_due(&self, place: usize) -> Option<Millis> {
        let first = self.stages[place].attempts.first()?.ready_at;
        Some(first + self.definition.stages[place].total_timeout_ms?)
    }

    /// All that a stage waits for is over.
    pub(super) fn may_begin(&self, place: usize) -> bool {
        self.definition.waits()[place].iter().all(|other| self.stages[*other].is_over())
    }
}

impl Facts {
    pub(super) fn stage_skipped(&mut self, record: &StageSkipped) -> Checked {
        let StageSkipped { run: id, stage, reason } = record;
        let run = self.runs.get_mut(id).filter(|run| run.finished.is_none() && !run.ending);
        let Some((run, place)) = run.and_then(|run| run.place(stage.as_str()).map(|place| (run, place))) else {
            return Err(broken(FLOW, format!("stage {stage} is skipped in run {id}, which does not go on")));
        };
        let begun = !run.stages[place].attempts.is_empty() || run.stages[place].is_over();
        hold!(!begun, FLOW, "stage {stage} of run {id} is skipped, and had begun");
        hold!(run.may_begin(place), FLOW, "stage {stage} of run {id} is skipped before what it waits for is over");
        let verdict = run.verdict(place);
        hold!(
            verdict == Verdict::Skipped(*reason),
            FLOW,
            "stage {stage} of run {id} is skipped: {reason}, {verdict:?}"
        );
        run.stages[place].skipped = true;
        self.seen.push(match reason {
            SkipReason::Condition => Branch::SkippedByCondition,
            SkipReason::Dependencies => Branch::SkippedByJoin,
            SkipReason::NotNeeded => Branch::FallbackNotNeeded,
        });
        Ok(())
    }

    /// An agent is given what the definition says.
    pub(super) fn given_right(&self, assignment: &Assignment) -> Checked {
        let task = &assignment.task;
        let run = self.runs.get(&task.run).and_then(|run| Some((run, run.place(task.stage.as_str())?)));
        let Some((run, place)) = run else { return Ok(()) };
        let given: Value = assignment.input.read().unwrap_or_default();
        let right = run.input_of(place);
        hold!(given == right, GIVEN, "{task} is given {given}, not {right}");
        for name in &run.definition.stages[place].depends_on {
            let result = run.place(name.as_str()).and_then(|other| run.result_before(other, place));
            let given = assignment.results.get(name);
            hold!(given == result, GIVEN, "{task} is given {given:?} of {name}, not {result:?}");
        }
        Ok(())
    }

    /// A stage could not begin.
    pub(super) fn never_began(&mut self, id: RunId, place: usize, code: Option<&str>) -> Checked {
        let Some(run) = self.runs.get_mut(&id) else { return Ok(()) };
        let name = run.definition.stages[place].name.clone();
        hold!(run.may_begin(place), FLOW, "stage {name} of run {id} ended before what it waits for was over");
        let verdict = run.verdict(place);
        let right = matches!(verdict, Verdict::Fails(why) if Some(why) == code);
        hold!(right, FLOW, "stage {name} of run {id} could not begin: {code:?}, {verdict:?}");
        run.stages[place].over = Some(Outcome::Failed);
        self.seen.push(Branch::ConditionFailed);
        Ok(())
    }
}
