//! The rules of runs that do a stage of another run.

use std::sync::Arc;

use baton_protocol::definition::OnFailure;
use baton_protocol::record::{Outcome, Parent, RunStarted, StageEnded, Stamp};
use baton_protocol::request::{Delegate, Gathered, GatheredStage, Report};
use baton_protocol::run::RunStatus;
use baton_protocol::{Amount, AtLimit, Budget, Definition, Json, RunId, StageDefinition, StageName, TaskId};

use super::flow::{GIVEN, Made};
use super::operations::PAUSED;
use super::{Attempt, Checked, Facts, Run, Stage, broken, hold};
use crate::coverage::Branch;

pub(super) const PART: &str = "a run that does a stage lives no longer than the attempt that it makes";
const RETURNS: &str = "a stage that a run does ends with what came of that run";
const INHERITED: &str = "a run that does a stage is started as the definition and the other run say";

/// How many runs may be one within the other, beside the outermost.
const MAX_DEPTH: u32 = 8;

/// How often a stage may be delegated.
const MAX_DELEGATIONS: usize = 8;

impl Run {
    fn depth(&self) -> u32 {
        self.parent.as_ref().map_or(0, |parent| parent.depth)
    }

    /// What comes of it as a whole: of each stage on which no other depends, fallbacks left out, its result.
    fn output(&self) -> Option<Json> {
        let stages = &self.definition.stages;
        let stands_in =
            |name: &StageName| stages.iter().any(|stage| stage.on_failure == OnFailure::Fallback(name.clone()));
        let own = || stages.iter().filter(|stage| !stands_in(&stage.name));
        let depended_on = |name: &StageName| own().any(|stage| stage.depends_on.contains(name));
        let is_last = |stage: &StageDefinition| !stands_in(&stage.name) && !depended_on(&stage.name);
        let last = stages.iter().enumerate().filter(|(_, stage)| is_last(stage));
        let members = last
            .map(|(place, stage)| format!("\"{}\":{}", stage.name, self.result(place).map_or("null", Json::as_str)));
        Json::from_text(format!("{{{}}}", members.collect::<Vec<_>>().join(","))).ok()
    }

    /// What a run may cost that does a stage of this one, where its workflow says this.
    fn budget_of_part(&self, id: RunId, of_stage: Option<Amount>, own: Option<&Budget>) -> Option<Budget> {
        let Some((paying, account)) = self.budget.as_ref().and_then(|budget| Some((budget, budget.account(id)?)))
        else {
            return own.cloned();
        };
        let of_stage = of_stage.filter(|amount| !amount.is_zero());
        let of_own = own.and_then(|own| own.limit);
        let limit = match (of_stage, of_own) {
            (Some(stage), Some(own)) => Some(stage.min(own)),
            (limit, None) | (None, limit) => limit,
        };
        let at_limit = if of_own.is_some() { own.map(|own| own.at_limit) } else { Some(paying.at_limit) };
        let at_limit = at_limit.filter(|_| limit.is_some()).unwrap_or(AtLimit::Wait);
        Some(Budget { limit, of: Some(account), currency: None, at_limit })
    }

    /// Whether what an agent is given of it is what came of it.
    fn gathered_right(&self, gathered: &Gathered) -> bool {
        let same = |(stage, (shown, definition)): (&Stage, (&GatheredStage, &StageDefinition))| {
            shown.name == definition.name && shown.result == stage.result
        };
        let count = self.definition.stages.len();
        let shown = gathered.stages.iter().zip(&self.definition.stages);
        gathered.stages.len() == count && self.stages.iter().zip(shown).all(same)
    }

    /// What is to become of a report that delegates.
    pub(super) fn made_of_delegation(&self, place: usize, report: &Report, delegate: &Delegate) -> Made {
        let refused = |code: &str, may_retry| {
            let code = Some(code.to_owned());
            Made { outcome: Outcome::Failed, result: None, code, may_retry, delegated: None }
        };
        if report.result.as_ref().is_some_and(|result| !result.is_null()) {
            return refused("invalid_delegation", true);
        }
        let attempt = self.stages[place].attempts.get(report.task.attempt as usize - 1);
        if attempt.is_some_and(|attempt| !attempt.counts) {
            return refused("invalid_delegation", true);
        }
        let before = self.stages[place].attempts.iter().take(report.task.attempt as usize - 1);
        if before.filter(|attempt| attempt.delegated.is_some()).count() >= MAX_DELEGATIONS {
            return refused("too_many_delegations", false);
        }
        let stages = delegate.stages.read::<Vec<StageDefinition>>().ok();
        let sound = |stages: &Vec<StageDefinition>| {
            Definition { stages: stages.clone(), ..Definition::clone(&self.definition) }.check().is_ok()
        };
        match stages.filter(sound) {
            Some(stages) => Made {
                outcome: Outcome::Delegated,
                result: None,
                code: None,
                may_retry: false,
                delegated: Some((stages, delegate.aggregate)),
            },
            None => refused("invalid_delegation", true),
        }
    }

    /// The code because of which it failed, if a run would have been too deep within others, or one part too many.
    fn failed_for_good(&self) -> Option<&'static str> {
        let stages = self.definition.stages.iter().enumerate();
        let mut fatal = stages.filter(|(place, stage)| {
            Self::is_fatal(stage) && self.stages[*place].over.is_some_and(Outcome::is_failure)
        });
        let code = |place: usize| {
            let code = self.stages[place].code.as_deref()?;
            ["too_deep", "too_many_parts"].into_iter().find(|known| *known == code)
        };
        fatal.find_map(|(place, _)| code(place).or_else(|| self.fans.get(&place)?.clone().find_map(code)))
    }
}

impl Facts {
    /// So many runs may be a part of one over its whole life.
    pub(crate) fn with_parts(mut self, most: u32) -> Self {
        self.max_parts = most;
        self
    }

    /// The run that this one is a part of, and that is a part of none.
    fn outermost(&self, run: RunId) -> RunId {
        let around = |id: &RunId| Some(self.runs.get(id)?.parent.as_ref()?.task.run);
        std::iter::successors(Some(run), around).last().unwrap_or(run)
    }

    /// What an agent delegated to the run that makes this attempt.
    pub(super) fn delegated_to(&self, task: &TaskId) -> Option<Arc<Definition>> {
        let run = self.runs.get(&task.run)?;
        let delegated = run.stages[run.place_of(task)?].delegated()?;
        Some(Arc::clone(&delegated.definition))
    }

    /// Why no run can begin that should do a stage, if a run should.
    pub(super) fn no_run_can_begin(&self, id: RunId, run: &Run, place: usize) -> Option<&'static str> {
        let parts = self.runs.get(&self.outermost(id)).map_or(0, |run| run.parts);
        let too_many = || match run.depth() {
            MAX_DEPTH.. => Some("too_deep"),
            _ => (parts >= self.max_parts).then_some("too_many_parts"),
        };
        if run.stages[place].delegated().is_some() {
            return too_many();
        }
        let stage = run.definition(place);
        let versions = self.definitions.get(stage.workflow.as_ref()?).map_or(0, Vec::len);
        if versions == 0 || stage.workflow_version.is_some_and(|version| version as usize > versions) {
            return Some("unknown_workflow");
        }
        too_many()
    }

    /// A run starts that does a stage of another one: the attempt that it makes begins here.
    pub(super) fn child_started(
        &mut self,
        stamp: Stamp,
        record: &RunStarted,
        parent: &Parent,
        definition_of_run: &Definition,
    ) -> Checked {
        let (task, id) = (&parent.task, record.run);
        let place = self.attempt_begins(stamp, task)?;
        let run = &self.runs[&task.run];
        let definition = run.definition(place);
        let latest = self.definitions.get(&record.workflow).map_or(0, Vec::len) as u64;
        let delegated = run.stages[place].delegated();
        let version = if delegated.is_some() { 0 } else { definition.workflow_version.map_or(latest, u64::from) };
        let workflow = if delegated.is_some() { Some(&run.workflow) } else { definition.workflow.as_ref() };
        let right = workflow == Some(&record.workflow) && version == u64::from(record.version);
        hold!(right, INHERITED, "run {id} of {} v{} does {task}", record.workflow, record.version);
        hold!(self.no_run_can_begin(task.run, run, place).is_none(), INHERITED, "run {id} can not do {task}");
        hold!(parent.depth == run.depth() + 1, INHERITED, "run {id} is said to be within {} others", parent.depth);
        let right = if delegated.is_some() { run.input.read().unwrap_or_default() } else { run.input_of(place) };
        let given = record.input.read::<serde_json::Value>().unwrap_or_default();
        hold!(given == right, GIVEN, "run {id}, which does {task}, is given {given}, not {right}");
        let same = (record.priority, record.strategy) == (run.priority_of(place), run.strategy) && record.key.is_none();
        let due = definition.due_ms.map(|due_ms| run.started_at + due_ms);
        hold!(record.due == due, INHERITED, "run {id} is due at {:?}, not {due:?}", record.due);
        hold!(same, INHERITED, "run {id} does not bear what run {} does: {record:?}", task.run);
        let of_stage = definition.budget.filter(|_| delegated.is_none());
        let budget = run.budget_of_part(task.run, of_stage, definition_of_run.budget.as_ref());
        hold!(record.budget == budget, INHERITED, "run {id} may cost {:?}, not {budget:?}", record.budget);
        let begun = Attempt::of_stage((self.seq, stamp.at, self.now), definition);
        let attempt = Attempt { child: Some(id), ..begun };
        if let Some(run) = self.runs.get_mut(&task.run) {
            run.stages[place].attempts.push(attempt);
        }
        let outermost = self.outermost(task.run);
        if let Some(run) = self.runs.get_mut(&outermost) {
            run.parts += 1;
        }
        self.seen.push(if parent.depth > 2 { Branch::ChildDeep } else { Branch::ChildStarted });
        Ok(())
    }

    /// A stage ended with what came of the run that did it. Whether it may be tried again, and whether it may not.
    pub(super) fn gave(
        &self,
        run: &Run,
        place: usize,
        child: Option<RunId>,
        record: &StageEnded,
    ) -> Result<(bool, bool), super::Violation> {
        let task = &record.task;
        let ended = child.and_then(|child| self.runs.get(&child)).filter(|child| child.finished.is_some());
        let Some((child, (_, status))) = ended.and_then(|child| Some((child, child.finished?))) else {
            return Err(broken(RETURNS, format!("{task} ended {}, and the run that does it has not", record.outcome)));
        };
        let free = record.cost.is_zero() && record.usage.is_zero() && record.agent.is_none();
        hold!(free, RETURNS, "{task} was done by a run, and is said to have been an agent's: {record:?}");
        let before = run.stages[place].attempts.iter().rev().nth(1).and_then(|attempt| attempt.delegated.as_ref());
        if before.is_some_and(|delegated| delegated.aggregate) && status != RunStatus::Cancelled {
            let gathered = record.result.as_ref().and_then(|result| result.read::<Gathered>().ok());
            let right = record.outcome == Outcome::Delegated
                && gathered.is_some_and(|gathered| gathered.status == status && child.gathered_right(&gathered));
            hold!(right, RETURNS, "{task} ended {}, and what came of it is to be put together", record.outcome);
            return Ok((false, true));
        }
        let failed = |code: &str, may_retry: bool| (Outcome::Failed, None, Some(code.to_owned()), may_retry);
        let (outcome, result, code, may_retry) = match status {
            RunStatus::Succeeded => {
                let made = run.made_of(place, child.output().as_ref());
                (made.outcome, made.result, made.code, made.may_retry)
            }
            RunStatus::Failed => match child.failed_for_good() {
                Some(code) => failed(code, false),
                None => failed("run_failed", true),
            },
            RunStatus::TimedOut => failed("run_timed_out", true),
            RunStatus::Cancelled | RunStatus::Running => failed("run_cancelled", false),
        };
        let right = (record.outcome, &record.result, &record.code) == (outcome, &result, &code);
        hold!(right, RETURNS, "{task} ended {} {:?}, not {outcome} {code:?}", record.outcome, record.code);
        Ok((may_retry, !may_retry))
    }

    /// An attempt is over that a run makes.
    pub(super) fn child_is_over(&mut self, child: RunId, record: &StageEnded) -> Checked {
        let (now, code) = (self.now, record.code.clone());
        let place = self.runs.get(&record.task.run).and_then(|run| run.place_of(&record.task));
        if let Some(stage) = self.runs.get_mut(&record.task.run).zip(place).map(|(run, place)| &mut run.stages[place]) {
            stage.code = code;
        }
        let Some(run) = self.runs.get_mut(&child).filter(|run| run.finished.is_none()) else { return Ok(()) };
        // Nothing but its end may follow.
        (run.ending, run.orphaned_on) = (true, Some(now));
        self.seen.push(Branch::ChildCancelled);
        Ok(())
    }

    /// A run has ended here in the log: no run is left that is a part of it.
    pub(super) fn no_part_is_left(&self, id: RunId) -> Checked {
        let is_part = |run: &Run| run.parent.as_ref().is_some_and(|parent| parent.task.run == id);
        let left = self.runs.iter().find(|(_, run)| run.finished.is_none() && is_part(run));
        hold!(left.is_none(), PART, "run {id} ended, and {:?}, which is a part of it, goes on", left.map(|(id, _)| id));
        Ok(())
    }

    /// When a run ended, in virtual microseconds.
    pub(super) fn ended_on(&self, run: RunId) -> Option<u64> {
        self.runs.get(&run).filter(|run| run.finished.is_some()).map(|run| run.ended_on)
    }

    /// Whether the run that it is a part of is paused.
    pub(super) fn is_part_of_a_paused(&self, run: RunId) -> bool {
        let parent = self.runs.get(&run).and_then(|run| run.parent.as_ref());
        parent.and_then(|parent| self.runs.get(&parent.task.run)).is_some_and(Run::is_paused)
    }

    /// None of the runs is paused that the run of a task is a part of.
    pub(super) fn no_pause_around(&self, task: &TaskId) -> Checked {
        let parent = |id: &RunId| self.runs.get(id)?.parent.as_ref().map(|parent| parent.task.run);
        let mut around = std::iter::successors(parent(&task.run), parent);
        let paused = around.find(|id| self.runs.get(id).is_some_and(Run::is_paused));
        hold!(paused.is_none(), PAUSED, "{task} begins, and run {paused:?}, which it is a part of, is paused");
        Ok(())
    }

    /// The runs that are a part of another one, directly or through others.
    pub(super) fn within(&self, id: RunId) -> Vec<RunId> {
        let mut found = vec![id];
        let mut next = 0;
        while let Some(of) = found.get(next).copied() {
            let is_part = |run: &Run| run.parent.as_ref().is_some_and(|parent| parent.task.run == of);
            found.extend(self.runs.iter().filter(|(_, run)| is_part(run)).map(|(id, _)| *id));
            next += 1;
        }
        found.split_off(1)
    }

    /// How many runs have ended and are known, without those that are a part of live ones.
    pub(super) fn known_ended(&self) -> usize {
        let known =
            self.runs.iter().filter(|(_, run)| run.parent.is_none() && run.finished.is_some() && !run.forgotten);
        known.map(|(id, _)| 1 + self.within(*id).len()).sum()
    }

    /// A live run that is a part of another one.
    pub(crate) fn part(&self, number: usize) -> Option<RunId> {
        let parts = self.runs.iter().filter(|(_, run)| run.finished.is_none() && run.parent.is_some());
        let parts: Vec<_> = parts.map(|(id, _)| *id).collect();
        (!parts.is_empty()).then(|| parts[number % parts.len()])
    }
}
