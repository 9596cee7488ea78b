//! The way through a workflow: which stages run and which are skipped, what agents are given, and what their results are.
//!
//! It is worked out here once more, from the definition and the log. Expressions are not evaluated: those that the workload
//! draws are few, and what each of them means is written down here by hand ([`CONDITIONS`]).

use baton_protocol::definition::{Join, OnFailure};
use baton_protocol::record::{Outcome, SkipReason, StageEnded, StageExpanded, StageSkipped};
use baton_protocol::request::{Assignment, Report, ReportStatus};
use baton_protocol::run::RunView;
use baton_protocol::{Json, Millis, RunId, StageDefinition, TaskId};
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
    /// What was delegated, and whether it is to be put together.
    pub(super) delegated: Option<(Vec<StageDefinition>, bool)>,
}

/// The lists that are drawn for stages that have a task for each item, and what they are; `?` is a stage that it depends on.
pub(crate) const ITEMS: [&str; 3] = ["[7, 7, 7]", "[[input.n, 2, 3, 4], []][input.n % 2]", "[results.?.lease, 1]"];

/// The mapping of the inputs of items that is drawn.
pub(crate) const ITEM_INPUT: [(&str, &str); 2] = [("n", "input.n"), ("was", "string(index) + string(item)")];

impl Run {
    /// All that agents are given, stages and items, with what the definition says of them. A stage that has items is not.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, &super::Stage, &StageDefinition)> {
        let stages = self.stages.iter().enumerate().filter(|(place, _)| !self.fans.contains_key(place));
        stages.map(|(place, stage)| (place, stage, self.definition(place)))
    }

    fn base(&self, place: usize) -> usize {
        place.checked_sub(self.definition.stages.len()).map_or(place, |item| self.owners[item].0)
    }

    pub(super) fn definition(&self, place: usize) -> &StageDefinition {
        &self.definition.stages[self.base(place)]
    }

    /// Of which priority its tasks are.
    pub(super) fn priority_of(&self, place: usize) -> i32 {
        self.priority + self.definition(place).priority
    }

    pub(super) fn item(&self, place: usize) -> Option<u32> {
        place.checked_sub(self.definition.stages.len()).map(|item| self.owners[item].1)
    }

    /// The place that a task is of.
    pub(super) fn place_of(&self, task: &TaskId) -> Option<usize> {
        let place = self.place(task.stage.as_str())?;
        match task.item {
            None => Some(place),
            Some(item) => self.fans.get(&place)?.clone().nth(item as usize),
        }
    }

    /// The list of a stage; none if it can not be found.
    fn items(&self, place: usize) -> Option<Vec<Value>> {
        let items = self.definition(place).for_each.as_ref()?.items.as_str();
        let name = items.split_once("results.").map(|(_, rest)| rest.split('.').next().unwrap_or_default());
        match name {
            None if items == ITEMS[0] => Some(vec![json!(7); 3]),
            None if self.n() % 2 == 0 => Some(vec![json!(self.n()), json!(2), json!(3), json!(4)]),
            None => Some(Vec::new()),
            Some(name) => {
                let result = self.result_before(self.place(name)?, self.base(place));
                let value: Value = result.and_then(|result| result.read().ok()).unwrap_or_default();
                Some(vec![json!(value["lease"].as_i64()?), json!(1)])
            }
        }
    }

    /// How many items of a stage have failed more than may.
    fn too_many_failed(&self, place: usize) -> bool {
        let items = self.fans.get(&place).cloned().into_iter().flatten();
        let failed = items.filter(|item| {
            self.stages[*item].over.is_some_and(|over| !matches!(over, Outcome::Succeeded | Outcome::Cancelled))
        });
        failed.count() > self.definition(place).for_each.as_ref().map_or(0, |each| each.max_failures as usize)
    }

    /// The document of a run says of each stage what came of it.
    pub(super) fn shown_right(&self, view: &RunView) -> Checked {
        for (place, (stage, shown)) in self.stages.iter().zip(&view.stages).enumerate() {
            let (id, name, result, given) = (view.run, &shown.name, &stage.result, &shown.result);
            hold!(given == result, FLOW, "stage {name} of run {id} is said to have given {given:?}, not {result:?}");
            let (items, shown) = (self.fans.get(&place).map_or(0, ExactSizeIterator::len), shown.items.len());
            hold!(shown == items, FLOW, "stage {name} of run {id} is said to have {shown} items, not {items}");
        }
        Ok(())
    }

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

    /// What the items of a stage gave, in their order, each as it was written.
    fn list(&self, place: usize) -> Option<Json> {
        let items = self.fans.get(&place).cloned().into_iter().flatten();
        let written = items.map(|item| self.stages[item].result.as_ref().map_or("null", Json::as_str));
        Json::from_text(format!("[{}]", written.collect::<Vec<_>>().join(","))).ok()
    }

    fn value(&self, place: usize) -> Value {
        self.result(place).and_then(|result| result.read().ok()).unwrap_or(Value::Null)
    }

    /// The same for a stage that begins early, if it does.
    fn value_if(&self, place: usize, early: bool, other: usize) -> Value {
        if early && self.assumes(place, other) { json!({ "lease": 0 }) } else { self.value(other) }
    }

    fn status_if(&self, place: usize, early: bool, other: usize) -> &'static str {
        if early && self.assumes(place, other) { "succeeded" } else { self.status(other) }
    }

    fn status(&self, place: usize) -> &'static str {
        match self.stages[place].over {
            _ if self.stages[place].skipped => "skipped",
            Some(Outcome::Succeeded) => "succeeded",
            _ => "failed",
        }
    }

    pub(super) fn n(&self) -> i64 {
        self.input.read::<Value>().ok().and_then(|input| input["n"].as_i64()).unwrap_or(0)
    }

    /// What is to become of a stage that has not begun.
    pub(super) fn verdict(&self, place: usize) -> Verdict {
        self.verdict_if(place, false)
    }

    /// The same, or if others give what is assumed.
    pub(super) fn verdict_if(&self, place: usize, early: bool) -> Verdict {
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
        let runs = || match &stage.for_each {
            Some(_) if self.items(place).is_none() => Verdict::Fails("items_failed"),
            _ => Verdict::Runs,
        };
        let Some(when) = &stage.when else { return runs() };
        match self.holds(place, early, when.as_str(), count) {
            Some(true) => runs(),
            Some(false) => Verdict::Skipped(SkipReason::Condition),
            None => Verdict::Fails("condition_failed"),
        }
    }

    /// What the condition of a stage with so many dependencies gives; none if it can not be evaluated. `results` as a whole
    /// has all that is depended on.
    fn holds(&self, place: usize, early: bool, condition: &str, dependencies: usize) -> Option<bool> {
        let (status, value) = (|other| self.status_if(place, early, other), |other| self.value_if(place, early, other));
        let name: String = condition.split_once('.')?.1.chars().take_while(char::is_ascii_alphanumeric).collect();
        let other = self.place(&name);
        match CONDITIONS.iter().position(|drawn| drawn.replace('?', &name) == condition)? {
            0 => Some(self.n() % 2 == 0),
            1 => Some(status(other?) == "failed"),
            2 => Some(status(other?) != "skipped"),
            3 => value(other?)["lease"].as_i64().map(|lease| lease % 2 == 0),
            _ => Some(value(other?) == Value::Null || dependencies == 1),
        }
    }

    /// What a stage's agent is to be given as its input.
    pub(super) fn input_of(&self, place: usize) -> Value {
        self.input_if(place, false)
    }

    /// The same, or if others give what is assumed.
    pub(super) fn input_if(&self, place: usize, early: bool) -> Value {
        let stage = self.definition(place);
        let other = stage.depends_on.first().and_then(|name| self.place(name.as_str()));
        if let (Some(_), Some(index)) = (&stage.input, self.item(place)) {
            let item = self.items(self.base(place)).unwrap_or_default()[index as usize].clone();
            return json!({ "n": self.n(), "was": format!("{index}{item}") });
        }
        match (&stage.input, other) {
            (Some(_), Some(other)) => json!({ "n": self.n(), "was": self.status_if(place, early, other) }),
            _ => self.input.read().unwrap_or_default(),
        }
    }

    /// What a report makes of the attempt that it ends.
    pub(super) fn made(&self, place: usize, report: &Report) -> Made {
        if report.status == ReportStatus::Failed {
            let (outcome, code, may_retry) = (Outcome::Failed, report.code.clone(), report.retryable);
            return Made { outcome, result: None, code, may_retry, delegated: None };
        }
        match &report.delegate {
            Some(delegate) => self.made_of_delegation(place, report, delegate),
            None => self.made_of(place, report.result.as_ref()),
        }
    }

    /// What a result makes of the attempt that it ends.
    pub(super) fn made_of(&self, place: usize, given: Option<&Json>) -> Made {
        let stage = self.definition(place);
        let value: Value = given.and_then(|result| result.read().ok()).unwrap_or_default();
        let refused = |code: &str| Made {
            outcome: Outcome::Failed,
            result: None,
            code: Some(code.to_owned()),
            may_retry: true,
            delegated: None,
        };
        if stage.output_schema.is_some() && !value.is_object() {
            return refused("invalid_result");
        }
        let result = match (&stage.output, value["lease"].as_i64()) {
            (None, _) => given.cloned(),
            (Some(_), Some(lease)) => Json::of(&json!({ "lease": lease, "n": self.n() + 1 })).ok(),
            (Some(_), None) => return refused("output_failed"),
        };
        Made { outcome: Outcome::Succeeded, result, code: None, may_retry: false, delegated: None }
    }

    /// When a stage's attempts have taken too long together.
    pub(super) fn total_due(&self, place: usize) -> Option<Millis> {
        let first = self.stages[place].attempts.iter().find(|attempt| attempt.counts)?.ready_at;
        Some(first + self.definition(place).total_timeout_ms?)
    }

    /// Whether an item that is open is not wanted any more.
    pub(super) fn is_dropped(&self, place: usize) -> bool {
        self.item(place).is_some() && self.too_many_failed(self.base(place))
    }

    /// Items begin in their order, no more at a time than may, and none where too many have failed.
    pub(super) fn items_in_order(&self, place: usize) -> Checked {
        let base = self.base(place);
        let (Some(index), Some(fan)) = (self.item(place), self.fans.get(&base)) else { return Ok(()) };
        let name = &self.definition(place).name;
        let begun = |item: &usize| !self.stages[*item].attempts.is_empty() || self.stages[*item].is_over();
        let before = fan.clone().take(index as usize).all(|item| begun(&item));
        hold!(before, FLOW, "item {index} of {name} begins before one that comes before it");
        hold!(!self.too_many_failed(base), FLOW, "item {index} of {name} begins, and too many have failed");
        let most = self.definition(place).for_each.as_ref().and_then(|each| each.max_parallel).unwrap_or(u32::MAX);
        let open = fan.clone().filter(|item| *item != place && begun(item) && !self.stages[*item].is_over()).count();
        hold!(open < most as usize, FLOW, "item {index} of {name} begins, and {open} are under way already");
        Ok(())
    }

    /// A stage that runs alone does so; its own items run together.
    pub(super) fn runs_alone(&self, place: usize) -> Checked {
        let (base, parallel) = (self.base(place), self.definition(place).parallel);
        for (other, stage) in self.stages.iter().enumerate() {
            let begun = self.base(other) != base && !stage.is_over() && stage.has_begun();
            let (both, name) = (parallel && self.definition(other).parallel, &self.definition(other).name);
            let own = &self.definition(place).name;
            hold!(
                !begun || both,
                super::ledger::ORDER,
                "{own} and {name} run at the same time, and one should run alone"
            );
        }
        Ok(())
    }

    /// All that a stage waits for is over.
    pub(super) fn may_begin(&self, place: usize) -> bool {
        let base = self.base(place);
        let expanded = base == place || self.fans.contains_key(&base);
        expanded && self.definition.waits()[base].iter().all(|other| self.stages[*other].is_over())
    }
}

impl Facts {
    pub(super) fn stage_skipped(&mut self, record: &StageSkipped) -> Checked {
        let StageSkipped { run: id, stage, reason } = record;
        let run = self.runs.get_mut(id).filter(|run| run.finished.is_none() && !run.ending);
        let Some((run, place)) = run.and_then(|run| run.place(stage.as_str()).map(|place| (run, place))) else {
            return Err(broken(FLOW, format!("stage {stage} is skipped in run {id}, which does not go on")));
        };
        let begun = run.stages[place].has_begun() || run.stages[place].is_over();
        hold!(!begun, FLOW, "stage {stage} of run {id} is skipped, and had begun");
        hold!(run.may_begin(place), FLOW, "stage {stage} of run {id} is skipped before what it waits for is over");
        run.thrown_away(stage, place)?;
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
        let run = self.runs.get(&task.run).and_then(|run| Some((run, run.place_of(task)?)));
        let Some((run, place)) = run else { return Ok(()) };
        let given: Value = assignment.input.read().unwrap_or_default();
        let attempt = run.stages[place].attempts.get((task.attempt as usize).wrapping_sub(1));
        let right = attempt.and_then(|attempt| attempt.early.clone()).unwrap_or_else(|| run.input_of(place));
        hold!(given == right, GIVEN, "{task} is given {given}, not {right}");
        let items = run.items(run.base(place));
        let item = task.item.and_then(|item| items?.get(item as usize).cloned());
        let given = assignment.item.as_ref().and_then(|item| item.read().ok());
        hold!(
            given == item && assignment.index == task.item,
            GIVEN,
            "{task} is given the item {given:?}, not {item:?}"
        );
        let (given, right) = (&assignment.delegated, attempt.and_then(|attempt| attempt.gathered.clone()));
        hold!(*given == right, GIVEN, "{task} is given {given:?} of what was delegated, not {right:?}");
        for name in &run.definition(place).depends_on {
            let result = run.place(name.as_str()).and_then(|other| run.result_before(other, run.base(place)));
            // It is given nothing that may not be there yet.
            let result = result.filter(|_| run.definition(place).speculative.is_none());
            let given = assignment.results.get(name);
            hold!(given == result, GIVEN, "{task} is given {given:?} of {name}, not {result:?}");
        }
        Ok(())
    }

    /// It is known which items a stage has a task each for.
    pub(super) fn stage_expanded(&mut self, at: Millis, record: &StageExpanded) -> Checked {
        let StageExpanded { run: id, stage, items } = record;
        let (seq, now) = (self.seq, self.now);
        let run = self.runs.get_mut(id).filter(|run| run.finished.is_none() && !run.ending);
        let Some((run, place)) = run.and_then(|run| run.place(stage.as_str()).map(|place| (run, place))) else {
            return Err(broken(FLOW, format!("stage {stage} has items in run {id}, which does not go on")));
        };
        let begun = !run.stages[place].attempts.is_empty() || run.stages[place].is_over();
        hold!(!begun && run.may_begin(place), FLOW, "stage {stage} of run {id} can not begin now");
        let (verdict, right) = (run.verdict(place), run.items(place));
        hold!(verdict == Verdict::Runs, FLOW, "stage {stage} of run {id} has items: {verdict:?}");
        let items: Option<Vec<Value>> = items.read().ok();
        hold!(items == right, FLOW, "stage {stage} of run {id} has the items {items:?}, not {right:?}");
        run.runs_alone(place)?;
        let start = run.stages.len();
        for item in 0..items.unwrap_or_default().len() {
            run.owners.push((place, u32::try_from(item).unwrap_or(u32::MAX)));
            run.stages.push(super::Stage::default());
        }
        run.fans.insert(place, start..run.stages.len());
        let definition = run.definition(place).clone();
        run.stages[place].attempts.push(super::Attempt::of_stage((seq, at, now), &definition));
        self.seen.push(Branch::Expanded);
        Ok(())
    }

    /// A stage with items is over.
    pub(super) fn joined(&mut self, record: &StageEnded) -> Checked {
        let (task, seq, now) = (&record.task, self.seq, self.now);
        let Some(run) = self.runs.get_mut(&task.run) else { return Ok(()) };
        let Some(place) = run.place_of(task) else { return Ok(()) };
        let failed = run.too_many_failed(place);
        let mut items = run.fans.get(&place).cloned().into_iter().flatten();
        let over = items.all(|item| match run.stages[item].over {
            Some(_) => true,
            None => failed && run.stages[item].attempts.last().is_none_or(|attempt| attempt.ended.is_some()),
        });
        let right = match record.outcome {
            Outcome::Succeeded => over && !failed && !run.ending,
            Outcome::Failed => over && failed && !run.ending,
            Outcome::Cancelled => true,
            Outcome::Lost | Outcome::TimedOut | Outcome::Delegated => false,
        };
        hold!(
            right && record.retry_at.is_none(),
            FLOW,
            "{task} ended {}, and should not: {:?}",
            record.outcome,
            run.stages
        );
        let list = run.list(place);
        let open = run.stages[place].attempts.last_mut().filter(|attempt| attempt.ended.is_none());
        let Some(attempt) = open else { return Err(broken(FLOW, format!("{task} ended, and was not open"))) };
        (attempt.ended, attempt.ended_on) = (Some(seq), Some(now));
        run.stages[place].over = Some(record.outcome);
        match record.outcome {
            Outcome::Succeeded => run.stages[place].result = list,
            Outcome::Cancelled => run.ending = true,
            _ => {
                // Those that had not begun, or waited to be tried again, were given up without a word.
                for item in run.fans.get(&place).cloned().into_iter().flatten() {
                    run.stages[item].over.get_or_insert(Outcome::Cancelled);
                }
                self.seen.push(Branch::ItemsFailed);
            }
        }
        Ok(())
    }

    /// A stage could not begin.
    pub(super) fn never_began(&mut self, id: RunId, place: usize, code: Option<&str>) -> Checked {
        let Some(run) = self.runs.get(&id) else { return Ok(()) };
        let no_run = self.no_run_can_begin(id, run, place);
        let name = run.definition(place).name.clone();
        hold!(run.may_begin(place), FLOW, "stage {name} of run {id} ended before what it waits for was over");
        let goes_on = run.item(place).is_some() || run.stages[place].has_begun();
        let verdict = if goes_on { Verdict::Runs } else { run.verdict(place) };
        let right = match verdict {
            Verdict::Fails(why) => Some(why) == code,
            Verdict::Runs => no_run.is_some() && no_run == code,
            Verdict::Skipped(_) => false,
        };
        let Some(run) = self.runs.get_mut(&id) else { return Ok(()) };
        hold!(right, FLOW, "stage {name} of run {id} could not begin: {code:?}, {verdict:?}");
        run.thrown_away(&name, place)?;
        run.stages[place].over = Some(Outcome::Failed);
        run.stages[place].code = code.map(ToOwned::to_owned);
        self.seen.push(match no_run {
            Some("too_deep") => Branch::TooDeep,
            Some("too_many_parts") => Branch::TooManyParts,
            Some(_) => Branch::NoSuchWorkflow,
            None => Branch::ConditionFailed,
        });
        Ok(())
    }
}
