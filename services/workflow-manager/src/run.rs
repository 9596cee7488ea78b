//! One run: where its stages stand, and what each record makes of them.
//!
//! Nothing in here decides: [`Run::next`] says what is to be done, and [`crate::advance`] does it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_protocol::definition::{OnFailure, StageDefinition};
use baton_protocol::handoff::HandedOver;
use baton_protocol::record::{
    Assigned, CopyEnded, Delegated, KeptStage, Outcome, Parent, Rerun, RunFinished, RunStarted, Signalled, SkipReason,
    StageCached, StageEnded, Stamp,
};
use baton_protocol::request::{Strategy, Usage};
use baton_protocol::run::{Metadata, RerunView, RunStatus, Speculation, StageStatus};
use baton_protocol::trace::{self, TraceContext};
use baton_protocol::{AgentId, Budget, Json, LeaseId, Millis, Money, Number, RunId, SignalName, TaskId, WorkflowName};
use serde::{Deserialize, Serialize};

use crate::attempt::{Attempt, Copy};
use crate::pause::Paused;
use crate::text;
use crate::workflows::Version;

/// How many stages a reason names.
const MAX_BLOCKED: usize = 20;

/// A run, live or ended. Stages are told by their place in the definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) id: RunId,
    pub(crate) workflow: WorkflowName,
    pub(crate) version: u32,
    /// What it does, if no workflow says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) own: Option<Arc<Version>>,
    pub(crate) input: Json,
    pub(crate) priority: i32,
    /// How its tasks are placed, if its starter said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) strategy: Option<Strategy>,
    pub(crate) key: Option<String>,
    /// The trace that its starter brought.
    pub(crate) trace: Option<TraceContext>,
    /// Tells starts apart: see [`fingerprint`].
    pub(crate) fingerprint: u64,
    /// The record that started it.
    #[serde(default)]
    pub(crate) started_by: Number,
    pub(crate) started_at: Millis,
    pub(crate) first_seq: u64,
    /// When it has taken too long.
    pub(crate) due: Millis,
    /// What it may cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) budget: Option<Box<Budget>>,
    pub(crate) status: RunStatus,
    pub(crate) reason: Option<String>,
    pub(crate) ended_at: Option<Millis>,
    /// First those of the definition, then a place for each item of those that have a task for each.
    pub(crate) stages: Vec<Stage>,
    /// The stages that have a task for each item of a list, once the list is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    fans: BTreeMap<usize, Fan>,
    /// Of each place that is an item's, its stage and where in the list it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    owners: Vec<(usize, u32)>,
    /// What it was told, and what came with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) signals: BTreeMap<SignalName, Json>,
    /// The stages that wait for a signal that it was given.
    #[serde(default, skip_serializing_if = "Places::is_empty")]
    heard: Places,
    /// Those of them that are to end: all their items are over, or too many have failed.
    #[serde(default, skip_serializing_if = "Places::is_empty")]
    joining: Places,
    /// Stages that wait for nothing more, and may run beside others.
    startable: Places,
    /// Stages that wait for nothing more, and run alone.
    startable_alone: Places,
    /// Stages that have begun and are not over.
    open: Places,
    /// How many stages are over.
    pub(crate) over: usize,
    /// The first stage that failed for good, and without which the run can not go on.
    failed: Option<usize>,
    /// The first stage that was cancelled: the run is about to end.
    cancelled: Option<usize>,
    pub(crate) cost: Money,
    pub(crate) usage: Usage,
    /// How long its attempts took together.
    pub(crate) busy_ms: Millis,
    /// What its starter noted about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: Metadata,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) paused: Option<Box<Paused>>,
    /// The run that it repeats a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rerun: Option<Box<RerunView>>,
    /// The attempt at a stage of another run that it makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<Box<Parent>>,
    /// Why it is to end: the attempt that it makes is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) orphaned: Option<Box<str>>,
    /// Live runs that make attempts at its stages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) children: Vec<RunId>,
    /// How many runs were a part of it so far, if it is a part of none: those within others, too.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) parts: u32,
    /// The stages under way whose runs have ended.
    #[serde(default, skip_serializing_if = "Places::is_empty")]
    returned: Places,
    /// Its stages are done, whatever was done before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) no_cache: bool,
}

/// A stage with a task for each item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fan {
    /// The place of the first item; those of the others follow.
    start: usize,
    pub(crate) items: Vec<Json>,
    /// How many items may begin or have begun.
    released: usize,
    over: usize,
    failed: u32,
}

impl Fan {
    pub(crate) fn places(&self) -> Range<usize> {
        self.start..self.start + self.items.len()
    }
}

/// A stage of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stage {
    pub(crate) status: StageStatus,
    /// How many of the stages that it waits for are not over.
    waits_for: usize,
    /// Why it was skipped, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<SkipReason>,
    /// Its timer: when it has waited or run too long, or when its next attempt may start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) due: Option<Millis>,
    /// Never `null`: that reads back as none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Json>,
    /// How many bytes came of what was delegated: whoever puts it together is given them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) gathered: usize,
    /// Under what the result of the attempt under way is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cache: Option<Box<str>>,
    /// The run in which it was done, if its result was used again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cached: Option<RunId>,
    /// The last attempt, if that began early and it is not known yet whether it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) early: Option<Box<Early>>,
    pub(crate) attempts: Box<[Attempt]>,
}

/// An attempt that began before all that its stage waits for was over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Early {
    /// What its agent was given.
    pub(crate) input: Json,
    /// It is over, with a result or without one.
    #[serde(default)]
    pub(crate) held: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Json>,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Places of stages, in order. Few, or taken from the front.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Places(Vec<usize>);

impl Places {
    fn first(&self) -> Option<usize> {
        self.0.first().copied()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it was not there.
    fn insert(&mut self, place: usize) -> bool {
        let found = self.0.binary_search(&place);
        if let Err(at) = found {
            self.0.insert(at, place);
        }
        found.is_err()
    }

    fn remove(&mut self, place: usize) {
        if let Ok(at) = self.0.binary_search(&place) {
            self.0.remove(at);
        }
    }
}

impl Stage {
    fn new(waits_for: usize) -> Self {
        Self {
            status: StageStatus::Pending,
            waits_for,
            skipped: None,
            due: None,
            result: None,
            gathered: 0,
            cache: None,
            cached: None,
            early: None,
            attempts: Box::default(),
        }
    }

    /// Whether what began early of it is under way.
    fn is_early(&self) -> bool {
        self.early.as_ref().is_some_and(|early| !early.held)
    }

    /// What began early of it does not count.
    fn discard(&mut self) {
        if self.early.take().is_some()
            && let Some(attempt) = self.attempts.last_mut()
        {
            attempt.speculation = Some(Speculation::Discarded);
        }
    }

    /// Begins an attempt. The most stages have one.
    fn begin(&mut self, at: Millis) {
        let mut attempts = std::mem::take(&mut self.attempts).into_vec();
        attempts.reserve_exact(1);
        attempts.push(Attempt { ready_at: at, ..Attempt::default() });
        self.attempts = attempts.into_boxed_slice();
    }
}

/// What is to be done with a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Move {
    /// This stage may begin.
    Begin(usize),
    /// This one may begin before all that it waits for is over.
    BeginEarly(usize),
    /// The run is over.
    Finish(RunStatus, Option<String>),
    /// This item is not wanted any more: too many others have failed.
    Drop(usize),
    /// All items of this stage are over, or not wanted any more.
    Join(usize),
    /// The signal has come for which this stage waits.
    Hear(usize),
    /// The run has ended that makes an attempt at this stage.
    Return(usize),
    /// Nothing, until something happens.
    Wait,
}

impl Run {
    pub(crate) fn new(stamp: Stamp, record: &RunStarted, version: &Version) -> Self {
        let stages = version.plan.waits_for.iter().map(|waits_for| Stage::new(*waits_for));
        let mut run = Self {
            id: record.run,
            workflow: record.workflow.clone(),
            version: record.version,
            own: None,
            input: record.input.clone(),
            priority: record.priority,
            strategy: record.strategy,
            key: record.key.clone(),
            trace: record.trace,
            fingerprint: fingerprint(&record.workflow, &record.input),
            started_by: stamp.number,
            started_at: stamp.at,
            first_seq: stamp.seen,
            due: stamp.at.saturating_add(version.definition.timeout_ms),
            budget: record.budget.clone().map(Box::new),
            status: RunStatus::Running,
            reason: None,
            ended_at: None,
            stages: stages.collect(),
            fans: BTreeMap::new(),
            owners: Vec::new(),
            joining: Places::default(),
            signals: BTreeMap::new(),
            heard: Places::default(),
            startable: Places::default(),
            startable_alone: Places::default(),
            open: Places::default(),
            over: 0,
            failed: None,
            cancelled: None,
            cost: Money::ZERO,
            usage: Usage::default(),
            busy_ms: 0,
            metadata: record.metadata.clone(),
            paused: None,
            rerun: None,
            parent: record.parent.clone(),
            orphaned: None,
            children: Vec::new(),
            parts: 0,
            returned: Places::default(),
            // Who repeats a run wants other results.
            no_cache: record.no_cache || record.rerun.is_some(),
        };
        for place in 0..run.stages.len() {
            run.release(place, version);
        }
        if let Some(rerun) = &record.rerun {
            run.keep(rerun, version);
        }
        run
    }

    /// Stages that another run has done are over.
    fn keep(&mut self, rerun: &Rerun, version: &Version) {
        let mut kept = 0;
        for KeptStage { stage, result } in &rerun.kept {
            let Some(place) = version.plan.place(stage) else { continue };
            if self.stages[place].status != StageStatus::Pending {
                continue;
            }
            self.stages[place].status = StageStatus::Succeeded;
            self.stages[place].result.clone_from(result);
            self.begun(place, version);
            self.over(place, version);
            kept += 1;
        }
        self.rerun = Some(Box::new(RerunView { of: rerun.of, from: rerun.from.clone(), kept }));
    }

    /// What is to be done now. Depends on nothing but what was folded and the time, so that a successor goes on where
    /// its predecessor was cut off.
    pub(crate) fn next(&self, version: &Version, now: Millis) -> Move {
        let name = |place: usize| &version.definition.stages[place].name;
        if let Some(why) = &self.orphaned {
            return Move::Finish(RunStatus::Cancelled, Some(why.to_string()));
        }
        let nobodys = |place: &usize| self.fans.contains_key(place) || self.definition(version, *place).asks();
        if let Some(place) = self.failed.filter(nobodys) {
            let reason = format!("stage {} failed: {}", name(place), self.last_error(place));
            return Move::Finish(RunStatus::Failed, Some(reason));
        }
        if let Some(place) = self.failed {
            let attempts = text::count(self.stages[place].attempts.len(), "attempt");
            let reason = format!("stage {} failed after {attempts}: {}", name(place), self.last_error(place));
            return Move::Finish(RunStatus::Failed, Some(reason));
        }
        if let Some(place) = self.cancelled {
            // Whoever cancelled it could not finish. The stage bears the run's reason.
            let status = if self.due <= now { RunStatus::TimedOut } else { RunStatus::Cancelled };
            return Move::Finish(status, Some(self.last_error(place).to_owned()));
        }
        if let Some(place) = self.heard.first() {
            return Move::Hear(place);
        }
        if let Some(place) = self.returned.first() {
            return Move::Return(place);
        }
        if let Some(place) = self.joining.first() {
            let items = self.fans[&place].places();
            let is_left = |item: &usize| items.contains(item) && self.stages[*item].status.is_under_way();
            return self.open.0.iter().copied().find(is_left).map_or(Move::Join(place), Move::Drop);
        }
        if self.over == self.count() {
            return Move::Finish(RunStatus::Succeeded, None);
        }
        match self.startable(version) {
            Some(_) if self.paused.is_some() && !is_planted(Bug::PauseIgnored) => Move::Wait,
            Some(place) => Move::Begin(place),
            None if self.open.is_empty() => {
                Move::Finish(RunStatus::Failed, Some(format!("the run can never go on: {}", self.blocked(version))))
            }
            None if self.paused.is_some() => Move::Wait,
            None => self.early(version).map_or(Move::Wait, Move::BeginEarly),
        }
    }

    /// The first stage that may begin before all that it waits for is over. What runs alone is not held up by what may not
    /// count.
    fn early(&self, version: &Version) -> Option<usize> {
        let alone = |open: usize| !self.definition(version, open).parallel;
        if !self.startable_alone.is_empty() || self.open.first().is_some_and(alone) {
            return None;
        }
        version.plan.flows.early(self)
    }

    /// Whether a stage waits for others, and nothing of it ever began. Once is enough: what came to nothing then is done when
    /// it is due.
    pub(crate) fn may_begin_early(&self, place: usize) -> bool {
        let stage = &self.stages[place];
        stage.status == StageStatus::Pending && stage.waits_for > 0 && stage.attempts.is_empty()
    }

    /// The first stage, in the order of the definition, that may begin beside those that are open. One that runs alone
    /// begins when none is open, and holds back all others until it is over.
    fn startable(&self, version: &Version) -> Option<usize> {
        let beside = self.startable.first();
        if is_planted(Bug::AloneIgnored) {
            return beside.into_iter().chain(self.startable_alone.first()).min();
        }
        match self.open.first() {
            // Its own items go on together.
            Some(open) if !self.definition(version, open).parallel => {
                self.startable.0.iter().copied().find(|place| *place >= self.count() && self.base(*place) == open)
            }
            Some(_) => beside,
            None => beside.into_iter().chain(self.startable_alone.first()).min(),
        }
    }

    /// Which stages wait for what, where nothing can go on.
    fn blocked(&self, version: &Version) -> String {
        let mut blocked = Vec::new();
        for (stage, definition) in self.stages.iter().zip(&version.definition.stages) {
            if stage.status == StageStatus::Pending && blocked.len() < MAX_BLOCKED {
                let waits = definition.depends_on.iter().filter(|dependency| {
                    version.plan.place(dependency).is_none_or(|place| !self.stages[place].status.is_end())
                });
                let waits: Vec<_> = waits.map(|dependency| dependency.as_str()).collect();
                blocked.push(format!("stage {} waits for {}", definition.name, waits.join(" and ")));
            }
        }
        blocked.join(", ")
    }

    fn last_error(&self, place: usize) -> &str {
        self.stages[place].attempts.last().and_then(|attempt| attempt.error.as_deref()).unwrap_or("no reason was given")
    }

    /// An attempt at a stage may run. Whether that was so.
    pub(crate) fn stage_ready(&mut self, at: Millis, place: usize, attempt: u32, version: &Version) -> bool {
        let stage = &mut self.stages[place];
        let due = matches!(stage.status, StageStatus::Pending | StageStatus::Waiting);
        if !due || stage.attempts.len() + 1 != attempt as usize {
            return false;
        }
        stage.discard();
        stage.begin(at);
        stage.status = StageStatus::Ready;
        self.begun(place, version);
        true
    }

    /// The attempt that is ready now began early, and is given this.
    pub(crate) fn begun_early(&mut self, place: usize, input: Json) {
        let stage = &mut self.stages[place];
        stage.early = Some(Box::new(Early { input, held: false, result: None }));
        if let Some(attempt) = stage.attempts.last_mut() {
            attempt.speculation = Some(Speculation::Open);
        }
    }

    /// What began early of a stage counts. Whether it did, and goes on.
    pub(crate) fn stage_committed(&mut self, place: usize, attempt: u32, version: &Version) -> bool {
        let stage = &mut self.stages[place];
        if stage.attempts.len() != attempt as usize || stage.waits_for > 0 {
            return false;
        }
        let (Some(early), Some(attempt)) = (stage.early.take(), stage.attempts.last_mut()) else { return false };
        attempt.speculation = Some(Speculation::Committed);
        if !early.held {
            self.startable.remove(place);
            return true;
        }
        stage.result = early.result;
        stage.status = StageStatus::Succeeded;
        self.begun(place, version);
        self.over(place, version);
        false
    }

    /// A run makes the next attempt at a stage. Whether that was so.
    pub(crate) fn child_started(
        &mut self,
        at: Millis,
        place: usize,
        attempt: u32,
        child: RunId,
        version: &Version,
    ) -> bool {
        if !self.stage_ready(at, place, attempt, version) {
            return false;
        }
        let stage = &mut self.stages[place];
        stage.status = StageStatus::Running;
        if let Some(attempt) = stage.attempts.last_mut() {
            attempt.child = Some(child);
        }
        self.children.push(child);
        true
    }

    /// A run has ended that makes an attempt at a stage. What it cost and used is what the attempt did.
    pub(crate) fn child_finished(&mut self, place: usize, child: &Self) {
        self.children.retain(|known| *known != child.id);
        self.cost = self.cost + child.cost;
        self.usage += child.usage;
        self.busy_ms = self.busy_ms.saturating_add(child.busy_ms);
        let mut attempts = self.stages[place].attempts.iter_mut().rev();
        let Some(attempt) = attempts.find(|attempt| attempt.child == Some(child.id)) else { return };
        (attempt.cost, attempt.usage) = (child.cost, child.usage);
        if attempt.ended_at.is_none() && !is_planted(Bug::ReturnForgotten) {
            self.returned.insert(place);
        }
    }

    /// What is to be done by a run as the next attempt at a stage, as the agent wants it that made the last one.
    pub(crate) fn delegated(&self, place: usize) -> Option<&Delegated> {
        self.stages[place].attempts.last()?.delegated.as_deref()
    }

    /// Whether an agent is to put together what comes of the run that makes the last attempt at a stage.
    pub(crate) fn aggregates(&self, place: usize) -> bool {
        let before = self.stages[place].attempts.iter().rev().nth(1);
        before.and_then(|attempt| attempt.delegated.as_ref()).is_some_and(|delegated| delegated.aggregate)
    }

    /// How often agents delegated a stage in the attempts before that one.
    pub(crate) fn delegations(&self, place: usize, before: u32) -> usize {
        let attempts = self.stages[place].attempts.iter().take((before as usize).saturating_sub(1));
        attempts.filter(|attempt| attempt.delegated.is_some()).count()
    }

    /// How many attempts at a stage came to nothing.
    pub(crate) fn failures(&self, place: usize) -> u32 {
        let failed = |attempt: &&Attempt| attempt.counts() && attempt.outcome.is_some_and(Outcome::is_failure);
        u32::try_from(self.stages[place].attempts.iter().filter(failed).count()).unwrap_or(u32::MAX)
    }

    /// Whether a run has ended that makes an attempt at one of its stages, and the attempt has not.
    pub(crate) fn waits_for_return(&self) -> bool {
        !self.returned.is_empty()
    }

    /// How many runs it is within.
    pub(crate) fn depth(&self) -> u32 {
        self.parent.as_ref().map_or(0, |parent| parent.depth)
    }

    /// Which of these codes the last attempt failed with at the stage because of which it failed, or at an item of that one.
    pub(crate) fn failed_with<'a>(&self, codes: &[&'a str]) -> Option<&'a str> {
        let of = |place: usize| {
            let code = self.stages[place].attempts.last()?.code.as_deref()?;
            codes.iter().copied().find(|known| *known == code)
        };
        let failed = self.failed?;
        of(failed).or_else(|| self.fans.get(&failed)?.places().find_map(of))
    }

    /// Whether that attempt at a stage waits for an agent.
    pub(crate) fn waits_for_agent(&self, place: usize, attempt: u32) -> bool {
        let stage = &self.stages[place];
        stage.status == StageStatus::Ready && stage.attempts.len() == attempt as usize
    }

    /// An agent has the stage. Whether that was so.
    pub(crate) fn assigned(
        &mut self,
        at: Millis,
        place: usize,
        task: &TaskId,
        agent: &AgentId,
        lease: LeaseId,
    ) -> bool {
        let stage = &mut self.stages[place];
        if stage.status != StageStatus::Ready || stage.attempts.len() != task.attempt as usize {
            return false;
        }
        let Some(attempt) = stage.attempts.last_mut() else { return false };
        attempt.assigned_at = Some(at);
        attempt.agent = Some(agent.clone());
        attempt.lease = Some(lease);
        stage.status = StageStatus::Running;
        true
    }

    /// Another agent has the stage as well as the one that has it under that lease. Whether that was so.
    pub(crate) fn assigned_beside(
        &mut self,
        at: Millis,
        place: usize,
        record: &Assigned,
        leases: (LeaseId, LeaseId),
    ) -> bool {
        let (first, lease) = leases;
        let stage = &mut self.stages[place];
        let under_way = stage.status == StageStatus::Running && stage.attempts.len() == record.task.attempt as usize;
        let attempt = stage.attempts.last_mut().filter(|attempt| under_way && attempt.lease == Some(first));
        let Some(attempt) = attempt.filter(|attempt| attempt.under().1.is_none()) else { return false };
        attempt.copies.push(Copy {
            agent: record.agent.clone(),
            lease,
            assigned_at: at,
            ended_at: None,
            outcome: None,
            error: None,
            code: None,
        });
        true
    }

    /// Of two that were at an attempt, one is at it no more. Whether that was so.
    pub(crate) fn copy_ended(&mut self, at: Millis, place: usize, record: &CopyEnded) -> bool {
        let stage = &mut self.stages[place];
        let under_way = stage.status == StageStatus::Running && stage.attempts.len() == record.task.attempt as usize;
        let Some(attempt) = stage.attempts.last_mut().filter(|_| under_way) else { return false };
        let (error, code) = (record.error.as_deref(), record.code.as_deref());
        if !attempt.copy_over(record.lease, at, record.outcome, error, code) {
            return false;
        }
        self.cost = self.cost + record.cost;
        self.usage += record.usage;
        true
    }

    /// Another agent has the stage. Whether that was so.
    pub(crate) fn handed_over(&mut self, place: usize, record: &HandedOver, lease: LeaseId) -> bool {
        let stage = &mut self.stages[place];
        let under_way = stage.status == StageStatus::Running && stage.attempts.len() == record.task.attempt as usize;
        let attempt = stage.attempts.last_mut().filter(|attempt| under_way && attempt.lease == Some(record.lease));
        let Some(attempt) = attempt else { return false };
        attempt.agent = Some(record.to.clone());
        attempt.lease = Some(lease);
        true
    }

    /// An attempt is over. If that was so, the items that will not be tried again because of it.
    pub(crate) fn stage_ended(
        &mut self,
        at: Millis,
        place: usize,
        record: &StageEnded,
        version: &Version,
    ) -> Option<Vec<usize>> {
        let stage = &mut self.stages[place];
        match stage.status {
            // Something was wrong with it before it could begin.
            StageStatus::Pending | StageStatus::Waiting if stage.attempts.len() + 1 == record.task.attempt as usize => {
                stage.discard();
                stage.begin(at);
            }
            StageStatus::Ready | StageStatus::Running if stage.attempts.len() == record.task.attempt as usize => {}
            _ => return None,
        }
        let attempt = stage.attempts.last_mut()?;
        if let Some(other) = &record.other {
            attempt.copy_over(other.lease, at, Outcome::Cancelled, Some("the attempt is over"), None);
        }
        let ready_at = attempt.ready_at;
        attempt.ended_at = Some(at);
        attempt.outcome = Some(record.outcome);
        attempt.error.clone_from(&record.error);
        attempt.code.clone_from(&record.code);
        attempt.duration_ms = record.duration_ms;
        if attempt.child.is_none() {
            (attempt.cost, attempt.usage) = (record.cost, record.usage);
        }
        attempt.model = record.model.as_deref().map(Into::into);
        attempt.delegated.clone_from(&record.delegated);
        match record.outcome {
            Outcome::Succeeded if record.speculative => {
                attempt.gave = Some(hash_of(record.result.as_ref()));
                if let Some(early) = &mut stage.early {
                    early.held = true;
                    early.result.clone_from(&record.result);
                }
            }
            Outcome::Delegated if record.delegated.is_none() => {
                stage.gathered = record.result.as_ref().map_or(0, Json::size);
            }
            _ => stage.result.clone_from(&record.result),
        }
        // One that could not even begin early is one that does not count, too.
        if record.speculative && stage.early.is_none() {
            stage.attempts.last_mut()?.speculation = Some(Speculation::Discarded);
        }
        if !(record.speculative && record.outcome == Outcome::Succeeded) {
            stage.discard();
        }
        stage.status = match record.outcome {
            _ if record.speculative => StageStatus::Pending,
            Outcome::Succeeded => StageStatus::Succeeded,
            Outcome::Cancelled => StageStatus::Cancelled,
            Outcome::Delegated => StageStatus::Waiting,
            Outcome::Failed | Outcome::Lost | Outcome::TimedOut if record.retry_at.is_some() => StageStatus::Waiting,
            Outcome::Failed | Outcome::Lost | Outcome::TimedOut => StageStatus::Failed,
        };
        self.cost = self.cost + record.cost;
        self.usage += record.usage;
        // While it waits for somebody's word a run is not held up by its coordination.
        let waited = if self.definition(version, place).asks() { at.saturating_sub(ready_at) } else { 0 };
        self.busy_ms = self.busy_ms.saturating_add(record.duration_ms).saturating_add(waited);
        self.returned.remove(place);
        self.begun(place, version);
        if place >= self.count() {
            return Some(self.item_ended(place, version));
        }
        let mut given_up = Vec::new();
        if let Some(fan) = self.fans.get(&place) {
            if record.outcome == Outcome::Succeeded {
                self.stages[place].result = Some(list(fan.places().map(|item| self.stages[item].result.as_ref())));
            }
            self.joining.remove(place);
            given_up = self.give_up(place);
        }
        self.heard.remove(place);
        match self.stages[place].status {
            StageStatus::Ready | StageStatus::Running | StageStatus::Waiting | StageStatus::Skipped => {}
            // It waits for its dependencies, as if nothing had begun.
            StageStatus::Pending => {
                self.open.remove(place);
                self.release(place, version);
            }
            StageStatus::Cancelled => {
                self.open.remove(place);
                self.cancelled.get_or_insert(place);
            }
            StageStatus::Failed if is_fatal(version, place) => {
                self.open.remove(place);
                self.over += 1;
                self.failed.get_or_insert(place);
            }
            StageStatus::Succeeded | StageStatus::Failed => self.over(place, version),
        }
        Some(given_up)
    }

    /// A stage does not run. Whether that was so.
    pub(crate) fn stage_skipped(&mut self, place: usize, reason: SkipReason, version: &Version) -> bool {
        let stage = &mut self.stages[place];
        if stage.status != StageStatus::Pending || stage.waits_for > 0 {
            return false;
        }
        stage.discard();
        stage.status = StageStatus::Skipped;
        stage.skipped = Some(reason);
        self.begun(place, version);
        self.over(place, version);
        true
    }

    /// A stage has the result that was given before.
    pub(crate) fn stage_cached(&mut self, place: usize, record: &StageCached, version: &Version) {
        let stage = &mut self.stages[place];
        if stage.status != StageStatus::Pending || stage.waits_for > 0 {
            return;
        }
        stage.status = StageStatus::Succeeded;
        stage.result = Some(record.result.clone());
        stage.cached = Some(record.of);
        self.begun(place, version);
        self.over(place, version);
    }

    /// It is known which items a stage has a task each for. Whether that was so.
    pub(crate) fn stage_expanded(&mut self, at: Millis, place: usize, items: Vec<Json>, version: &Version) -> bool {
        let stage = &mut self.stages[place];
        if stage.status != StageStatus::Pending || stage.waits_for > 0 {
            return false;
        }
        stage.begin(at);
        stage.status = StageStatus::Running;
        self.begun(place, version);
        let start = self.stages.len();
        for item in 0..items.len() {
            self.owners.push((place, u32::try_from(item).unwrap_or(u32::MAX)));
            self.stages.push(Stage::new(0));
        }
        let each = version.definition.stages[place].for_each.as_ref();
        let most = each.and_then(|each| each.max_parallel).map_or(usize::MAX, |most| most as usize);
        let most = if is_planted(Bug::ItemsNotLimited) { usize::MAX } else { most };
        let released = items.len().min(most);
        for item in start..start + released {
            self.startable.insert(item);
        }
        if items.is_empty() {
            self.joining.insert(place);
        }
        self.fans.insert(place, Fan { start, items, released, over: 0, failed: 0 });
        true
    }

    /// A stage that no agent has begins to wait for somebody's word. Whether that was so.
    pub(crate) fn stage_waits(&mut self, at: Millis, place: usize, version: &Version) -> bool {
        let stage = &mut self.stages[place];
        if stage.status != StageStatus::Pending || stage.waits_for > 0 {
            return false;
        }
        stage.begin(at);
        stage.status = StageStatus::Running;
        self.begun(place, version);
        let wait_for = version.definition.stages[place].wait_for.as_ref();
        let was_given = wait_for.is_some_and(|wait_for| self.signals.contains_key(&wait_for.signal));
        if was_given && !is_planted(Bug::SignalForgotten) {
            self.heard.insert(place);
        }
        true
    }

    /// It is given a signal. Of one name the first one counts.
    pub(crate) fn signalled(&mut self, record: &Signalled, version: &Version) {
        if self.signals.contains_key(&record.signal) {
            return;
        }
        self.signals.insert(record.signal.clone(), record.payload.clone());
        for place in &self.open.0 {
            let stage = version.definition.stages.get(*place);
            let wait_for = stage.and_then(|stage| stage.wait_for.as_ref());
            if wait_for.is_some_and(|wait_for| wait_for.signal == record.signal) {
                self.heard.insert(*place);
            }
        }
    }

    /// An item's attempt is over, and perhaps the item. The items that will not be tried again because of it.
    fn item_ended(&mut self, place: usize, version: &Version) -> Vec<usize> {
        let status = self.stages[place].status;
        if !status.is_end() {
            return Vec::new();
        }
        self.open.remove(place);
        let (base, _) = self.owners[place - self.count()];
        let each = version.definition.stages[base].for_each.as_ref();
        let Some(fan) = self.fans.get_mut(&base) else { return Vec::new() };
        fan.over += 1;
        fan.failed += u32::from(status == StageStatus::Failed);
        if fan.failed > each.map_or(0, |each| each.max_failures) {
            // Once: then those that are under way end one after another.
            if self.joining.insert(base) {
                return self.give_up(base);
            }
        } else if status == StageStatus::Cancelled {
            self.cancelled.get_or_insert(place);
        } else if fan.over == fan.items.len() {
            self.joining.insert(base);
        } else if fan.released < fan.items.len() {
            self.startable.insert(fan.start + fan.released);
            fan.released += 1;
        }
        Vec::new()
    }

    /// Items of a stage that have no attempt under way never will have one again. Those that waited for their next one.
    fn give_up(&mut self, place: usize) -> Vec<usize> {
        let Some(items) = self.fans.get(&place).map(Fan::places) else { return Vec::new() };
        self.startable.0.retain(|item| !items.contains(item));
        let mut waited = Vec::new();
        for item in items {
            let status = &mut self.stages[item].status;
            if *status == StageStatus::Waiting {
                waited.push(item);
            }
            if matches!(*status, StageStatus::Pending | StageStatus::Waiting) {
                *status = StageStatus::Cancelled;
            }
        }
        for item in &waited {
            self.open.remove(*item);
        }
        waited
    }

    /// How many stages the definition has.
    pub(crate) fn count(&self) -> usize {
        self.stages.len() - self.owners.len()
    }

    /// The place of the stage that a place is of: itself, or of which it is an item.
    pub(crate) fn base(&self, place: usize) -> usize {
        place.checked_sub(self.count()).map_or(place, |item| self.owners[item].0)
    }

    /// Which item of its stage a place is, if it is one.
    pub(crate) fn item(&self, place: usize) -> Option<u32> {
        place.checked_sub(self.count()).map(|item| self.owners[item].1)
    }

    /// What the definition says of a place.
    pub(crate) fn definition<'a>(&self, version: &'a Version, place: usize) -> &'a StageDefinition {
        &version.definition.stages[self.base(place)]
    }

    /// The items of a stage, if it has a task for each and they are known.
    pub(crate) fn fan(&self, place: usize) -> Option<&Fan> {
        self.fans.get(&place)
    }

    /// Why a stage fails, if more of its items have failed than may.
    pub(crate) fn too_many_failed(&self, place: usize, version: &Version) -> Option<String> {
        let fan = self.fans.get(&place)?;
        let most = version.definition.stages[place].for_each.as_ref().map_or(0, |each| each.max_failures);
        if fan.failed <= most || is_planted(Bug::ItemFailuresIgnored) {
            return None;
        }
        let first = fan.places().find(|item| self.stages[*item].status == StageStatus::Failed)?;
        let failed = format!("{} of {}", fan.failed, text::count(fan.items.len(), "item"));
        let (item, why) = (first - fan.start, self.last_error(first));
        Some(format!("{failed} failed, and {most} may; item {item}: {why}"))
    }

    /// The place that a task is of.
    pub(crate) fn place(&self, version: &Version, task: &TaskId) -> Option<usize> {
        let base = version.plan.place(&task.stage)?;
        match task.item {
            None => Some(base),
            Some(item) => self.fans.get(&base)?.places().nth(item as usize),
        }
    }

    /// The task of a place at an attempt.
    pub(crate) fn task(&self, version: &Version, place: usize, attempt: u32) -> TaskId {
        let stage = self.definition(version, place).name.clone();
        TaskId { run: self.id, stage, item: self.item(place), attempt }
    }

    /// When a wait that began at that time ends: after its own time, or when all attempts have taken too long together.
    pub(crate) fn until(&self, place: usize, version: &Version, at: Millis, wait: Millis) -> Millis {
        let due = at.saturating_add(wait);
        if is_planted(Bug::TotalForgotten) {
            return due;
        }
        self.total_due(place, version).map_or(due, |total| due.min(total))
    }

    /// When all attempts at a stage have taken too long together, if there is such a time.
    pub(crate) fn total_due(&self, place: usize, version: &Version) -> Option<Millis> {
        let total = self.definition(version, place).total_timeout_ms?;
        let first = self.stages[place].attempts.iter().find(|attempt| attempt.counts())?;
        Some(first.ready_at.saturating_add(total))
    }

    /// The run is over: what has not ended never will.
    pub(crate) fn finished(&mut self, at: Millis, record: &RunFinished) {
        self.status = record.status;
        self.reason.clone_from(&record.reason);
        self.ended_at = Some(at);
        self.paused = None;
        for stage in &mut self.stages {
            stage.due = None;
            stage.discard();
            if !stage.status.is_end() {
                stage.status = StageStatus::Cancelled;
            }
        }
        (self.startable, self.startable_alone, self.open, self.joining) = Default::default();
        (self.heard, self.returned) = Default::default();
    }

    fn begun(&mut self, place: usize, version: &Version) {
        let alone = place < self.count() && !self.definition(version, place).parallel;
        let startable = if alone { &mut self.startable_alone } else { &mut self.startable };
        startable.remove(place);
        self.open.insert(place);
    }

    /// A stage is over, and those that wait for it may be able to begin.
    fn over(&mut self, place: usize, version: &Version) {
        self.open.remove(place);
        self.over += 1;
        for &dependent in &version.plan.dependents[place] {
            let stage = &mut self.stages[dependent];
            stage.waits_for = stage.waits_for.saturating_sub(1);
            self.release(dependent, version);
        }
    }

    fn release(&mut self, place: usize, version: &Version) {
        let stage = &self.stages[place];
        if stage.waits_for == 0 && (stage.status == StageStatus::Pending || stage.is_early()) {
            let alone = !version.definition.stages[place].parallel;
            let startable = if alone { &mut self.startable_alone } else { &mut self.startable };
            startable.insert(place);
        }
    }

    /// The stages that have begun and are not over.
    pub(crate) fn begun_places(&self) -> Vec<usize> {
        self.open.0.clone()
    }

    /// The stages that have an attempt under way.
    pub(crate) fn attempted(&self) -> Vec<usize> {
        let under_way = |place: &usize| self.stages[*place].status.is_under_way();
        self.open.0.iter().copied().filter(under_way).collect()
    }

    /// Its own span, in its trace.
    pub(crate) fn span(&self) -> TraceContext {
        span(self.id, self.trace)
    }

    /// About how many bytes it takes.
    pub(crate) fn size(&self) -> usize {
        let stage = |stage: &Stage| {
            let attempts = stage.attempts.iter().map(|attempt| {
                let delegated = attempt.delegated.as_ref().map_or(0, |delegated| delegated.definition.stages.len());
                256 + 256 * attempt.copies.len() + 1024 * delegated + attempt.error.as_ref().map_or(0, String::len)
            });
            let early = stage.early.as_ref();
            let early = early.map_or(0, |early| 64 + early.input.size() + early.result.as_ref().map_or(0, Json::size));
            64 + stage.result.as_ref().map_or(0, Json::size) + early + attempts.sum::<usize>()
        };
        let items = self.fans.values().flat_map(|fan| &fan.items).map(|item| 16 + item.size());
        let signals = self.signals.values().map(|payload| 64 + payload.size()).sum::<usize>();
        512 + self.input.size() + self.stages.iter().map(stage).sum::<usize>() + items.sum::<usize>() + signals
    }
}

/// Several values as one list.
fn list<'a>(values: impl Iterator<Item = Option<&'a Json>>) -> Json {
    let mut values: Vec<_> = values.map(|value| value.map_or("null", Json::as_str)).collect();
    if is_planted(Bug::ItemsOutOfOrder) {
        values.reverse();
    }
    Json::from_text(format!("[{}]", values.join(","))).unwrap_or_default()
}

/// Whether a run fails when this stage has failed for good.
fn is_fatal(version: &Version, place: usize) -> bool {
    let stage = &version.definition.stages[place];
    !stage.may_fail() && !is_planted(Bug::FailureSwallowed) && !matches!(stage.on_failure, OnFailure::Fallback(_))
}

/// The span of a run, in the trace that was brought or in its own.
pub(crate) fn span(run: RunId, brought: Option<TraceContext>) -> TraceContext {
    brought.map_or(TraceContext::of_run(run), |brought| brought.at(trace::run_span(run)))
}

/// Tells two starts of one key apart: a hash of what is to be run on what.
///
/// It is kept in snapshots, and so must be the same in every build. Who finds a collision has fooled nobody but himself.
pub(crate) fn fingerprint(workflow: &WorkflowName, input: &Json) -> u64 {
    hash(&[workflow.as_str(), input.as_str()])
}

/// A hash of a result, or of there being none.
pub(crate) fn hash_of(result: Option<&Json>) -> u64 {
    hash(&[result.map_or("", Json::as_str)])
}

fn hash(texts: &[&str]) -> u64 {
    texts.iter().fold(0, |hash, text| {
        text.as_bytes().chunks(8).fold(baton_protocol::id::mix(hash ^ text.len() as u64), |hash, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            baton_protocol::id::mix(hash ^ u64::from_le_bytes(word))
        })
    })
}
