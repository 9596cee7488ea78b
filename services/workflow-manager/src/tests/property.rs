//! Random workflows, random agents, leaders that die in the middle of a turn. What must hold is said here in the words of
//! the protocol, from the log alone: nothing in [`Model`] knows how the workflow-manager is made.

use std::collections::{BTreeMap, BTreeSet};

use baton_protocol::definition::{Definition, ForEach, Join, OnFailure, RetryPolicy};
use baton_protocol::record::{AnyCommit, LeftReason, Outcome, ResourceRecord, SkipReason, Stamp, WorkflowRecord};
use baton_protocol::request::{CancelRun, CancelRuns, PauseRun, RerunRun, ResumeRun, RunFilter, WorkflowRequest};
use baton_protocol::run::RunStatus;
use baton_protocol::{AgentId, Code, Json, LeaseId, Millis, Money, Part, RunId, StageDefinition, StageName, TaskId};
use proptest::prelude::*;

use super::harness::{World, failed, id, start, succeeded};

/// What the log says.
#[derive(Default)]
struct Model {
    read: usize,
    definition: Option<Definition>,
    runs: BTreeMap<RunId, Run>,
    sessions: BTreeMap<AgentId, String>,
    /// Every lease there ever was.
    leases: BTreeMap<LeaseId, (TaskId, AgentId)>,
    /// Those whose agents are gone.
    lost: BTreeSet<LeaseId>,
    /// Those that a report ended: as what, and with what error.
    reported: BTreeMap<LeaseId, (Outcome, Option<String>)>,
    /// Runs that somebody wanted cancelled.
    cancelled: BTreeSet<RunId>,
}

/// When a run was paused, and when it went on.
#[derive(Default)]
struct Pauses(Vec<(Millis, Option<Millis>)>);

impl Pauses {
    fn is_paused(&self) -> bool {
        self.0.last().is_some_and(|(_, to)| to.is_none())
    }

    /// How much of a time was pause.
    fn stood(&self, from: Millis, to: Millis) -> Millis {
        let part = |(since, until): &(Millis, Option<Millis>)| {
            until.map_or(to, |until| until.min(to)).saturating_sub((*since).max(from))
        };
        self.0.iter().map(part).sum()
    }

    /// When it last went on.
    fn resumed(&self) -> Millis {
        self.0.last().and_then(|(_, to)| *to).unwrap_or(0)
    }
}

struct Run {
    started_at: Millis,
    pauses: Pauses,
    /// Stages, and their items once they are known.
    stages: BTreeMap<Part, Stage>,
    ending: bool,
    finished: Option<RunStatus>,
    cost: Money,
}

#[derive(Default)]
struct Stage {
    attempts: u32,
    ready_at: Millis,
    /// The attempt under way, and who has it.
    open: Option<Option<(LeaseId, Millis)>>,
    retry_at: Option<Millis>,
    /// When its last attempt ended.
    ended_at: Millis,
    over: Option<Outcome>,
    skipped: bool,
    result: Option<Json>,
    /// When its first attempt could run.
    since: Option<Millis>,
}

impl Stage {
    fn begun(&self) -> bool {
        self.over.is_none() && self.attempts > 0
    }

    fn is_over(&self) -> bool {
        self.over.is_some() || self.skipped
    }
}

/// The conditions that are drawn, with a stage in them where there is a `?`.
const CONDITIONS: [&str; 5] = [
    "true",
    "false",
    "input.topic == 'tea' && size(results) < 100",
    "status.? == 'failed' || results.? == null",
    "!(status.? in ['failed']) && size(status) > 0",
];

impl Run {
    fn stage(&self, name: &StageName) -> &Stage {
        &self.stages[&Part::from(name.clone())]
    }

    /// The items of a stage, in their order.
    fn items(&self, name: &StageName) -> impl Iterator<Item = &Stage> {
        let stages = self.stages.iter();
        stages.filter(move |(part, _)| part.stage == *name && part.item.is_some()).map(|(_, stage)| stage)
    }

    /// Whether more items of a stage have failed than may.
    fn too_many_failed(&self, stage: &StageDefinition) -> bool {
        let failed =
            |item: &&Stage| item.over.is_some_and(|over| !matches!(over, Outcome::Succeeded | Outcome::Cancelled));
        let most = stage.for_each.as_ref().map_or(0, |each| each.max_failures as usize);
        self.items(&stage.name).filter(failed).count() > most
    }

    /// Which item of a stage may begin next, if one may: in their order, and so many at a time.
    fn next_item(&self, stage: &StageDefinition) -> Option<u32> {
        let most = stage.for_each.as_ref()?.max_parallel.map_or(usize::MAX, |most| most as usize);
        let under_way = self.items(&stage.name).filter(|item| item.begun()).count();
        let next = self.items(&stage.name).position(|item| item.attempts == 0 && !item.is_over())?;
        let may = under_way < most && self.stage(&stage.name).begun() && !self.too_many_failed(stage);
        may.then(|| u32::try_from(next).unwrap())
    }

    /// What a condition gives: as the words say, not as CEL says.
    fn holds(&self, condition: &str) -> bool {
        let stage = || {
            let at = condition.find("status.").unwrap() + "status.".len();
            self.stage(&StageName::new(&condition[at..=at]).unwrap())
        };
        match condition {
            "true" => true,
            "false" => false,
            condition if condition.starts_with("input") => true,
            condition if condition.contains("null") => stage().over != Some(Outcome::Succeeded),
            _ => stage().over.is_none_or(|over| over == Outcome::Succeeded),
        }
    }

    /// Nothing runs beside a stage that runs alone, but its own items.
    fn runs_beside(&self, whole: &Definition, stage: &StageDefinition) {
        for (part, _) in self.stages.iter().filter(|(part, other)| part.stage != stage.name && other.begun()) {
            let both = stage.parallel && whole.stage(part.stage.as_str()).unwrap().parallel;
            assert!(both, "{} and {part} run at the same time", stage.name);
        }
    }

    /// Why a stage should be skipped, now that all it waits for is over.
    fn should_skip(&self, whole: &Definition, stage: &StageDefinition) -> Option<SkipReason> {
        let stands_for = whole.stages.iter().find(|other| other.on_failure == OnFailure::Fallback(stage.name.clone()));
        if stands_for.is_some_and(|other| self.stage(&other.name).over.is_none_or(|over| over == Outcome::Succeeded)) {
            return Some(SkipReason::NotNeeded);
        }
        let skipped = stage.depends_on.iter().filter(|name| self.stage(name).skipped).count();
        let left_out = match stage.join {
            Join::Any => stands_for.is_none() && skipped > 0 && skipped == stage.depends_on.len(),
            Join::All => skipped > 0,
            Join::Always => false,
        };
        if left_out {
            return Some(SkipReason::Dependencies);
        }
        let when = stage.when.as_ref()?;
        (!self.holds(when.as_str())).then_some(SkipReason::Condition)
    }

    /// Whether a stage has a result, of its own or of its fallback.
    fn has_result(&self, whole: &Definition, name: &StageName) -> bool {
        let fallback = || match &whole.stage(name.as_str()).unwrap().on_failure {
            OnFailure::Fallback(fallback) => self.has_result(whole, fallback),
            _ => false,
        };
        self.stage(name).result.is_some() || fallback()
    }
}

impl Run {
    /// What a run that repeats this one from a stage on keeps of it.
    fn kept(&self, whole: &Definition, from: &StageName) -> Vec<(StageName, Option<Json>)> {
        assert!(self.finished.is_some(), "only what has ended is repeated");
        let stage = |place: usize| self.stage(&whole.stages[place].name);
        let succeeded = |place: usize| stage(place).over == Some(Outcome::Succeeded);
        let waits = whole.waits();
        let mut anew: BTreeSet<usize> =
            (0..waits.len()).filter(|place| !succeeded(*place) && !stage(*place).skipped).collect();
        anew.extend(whole.stages.iter().position(|stage| stage.name == *from));
        for _ in 0..waits.len() {
            let more: Vec<_> =
                (0..waits.len()).filter(|place| waits[*place].iter().any(|w| anew.contains(w))).collect();
            anew.extend(more);
        }
        let kept = (0..waits.len()).filter(|place| succeeded(*place) && !anew.contains(place));
        kept.map(|place| (whole.stages[place].name.clone(), stage(place).result.clone())).collect()
    }

    /// A stage with items is over: all of them are, or too many have failed.
    fn joined(&mut self, stage: &StageDefinition, outcome: Outcome) {
        let too_many_failed = self.too_many_failed(stage);
        let (name, open) = (&stage.name, |item: &Stage| item.open.is_some());
        match outcome {
            Outcome::Succeeded => {
                assert!(
                    !too_many_failed && !self.ending && self.items(name).all(Stage::is_over),
                    "{name} has items left"
                );
                let results = self.items(name).map(|item| item.result.clone().unwrap_or_default());
                let list = Json::of(&results.collect::<Vec<_>>()).unwrap();
                self.stages.get_mut(&Part::from(name.clone())).unwrap().result = Some(list);
            }
            Outcome::Failed => {
                assert!(too_many_failed && !self.ending && !self.items(name).any(open), "{name} has items under way");
                // Those that had not begun, or waited to be tried again, never will be.
                let items = self.stages.iter_mut().filter(|(part, _)| part.stage == *name && part.item.is_some());
                for (_, item) in items {
                    item.over.get_or_insert(Outcome::Cancelled);
                }
            }
            Outcome::Cancelled => self.ending = true,
            Outcome::Lost | Outcome::TimedOut | Outcome::Delegated => panic!("nobody has {name} as a whole"),
        }
        self.stages.get_mut(&Part::from(name.clone())).unwrap().over = Some(outcome);
    }
}

/// Whether a run must end when this stage has failed.
fn is_fatal(stage: &StageDefinition) -> bool {
    !stage.optional && stage.on_failure == OnFailure::Fail
}

impl Model {
    fn read(&mut self, world: &World) {
        for (service, payload) in &world.log[self.read..] {
            match AnyCommit::decode(*service, payload).unwrap() {
                AnyCommit::Workflow(commit) => commit.stamped().for_each(|(stamp, record)| self.own(stamp, record)),
                AnyCommit::Resource(commit) => commit.stamped().for_each(|(stamp, record)| self.other(stamp, record)),
                AnyCommit::Optimizer(_) => unreachable!(),
            }
        }
        self.read = world.log.len();
    }

    fn stage(&self, name: &StageName) -> &StageDefinition {
        self.definition.as_ref().unwrap().stage(name.as_str()).unwrap()
    }

    fn own(&mut self, stamp: Stamp, record: &WorkflowRecord) {
        let definition = self.definition.clone();
        match record {
            WorkflowRecord::WorkflowRegistered(record) => {
                if record.definition.name.as_str() == "w" {
                    self.definition = Some(Definition::clone(&record.definition));
                }
            }
            WorkflowRecord::RunStarted(record) => {
                let whole = definition.unwrap();
                let names = whole.stages.iter().map(|stage| (stage.name.clone().into(), Stage::default()));
                let mut stages: BTreeMap<Part, Stage> = names.collect();
                if let Some(rerun) = &record.rerun {
                    let expected = self.runs[&rerun.of].kept(&whole, &rerun.from);
                    let kept: Vec<_> =
                        rerun.kept.iter().map(|kept| (kept.stage.clone(), kept.result.clone())).collect();
                    assert_eq!(kept, expected);
                    for (name, result) in kept {
                        let stage = Stage { over: Some(Outcome::Succeeded), result, ..Stage::default() };
                        stages.insert(name.into(), stage);
                    }
                }
                let run = Run {
                    started_at: stamp.at,
                    pauses: Pauses::default(),
                    stages,
                    ending: false,
                    finished: None,
                    cost: Money::ZERO,
                };
                assert!(self.runs.insert(record.run, run).is_none(), "a run starts once");
            }
            WorkflowRecord::StageReady(record) => {
                let definition = self.stage(&record.task.stage).clone();
                let whole = self.definition.clone().unwrap();
                let run = self.runs.get_mut(&record.task.run).unwrap();
                assert!(run.finished.is_none() && !run.ending, "nothing begins in a run that ends");
                assert!(!run.pauses.is_paused(), "nothing begins in a run that is paused");
                for dependency in &definition.depends_on {
                    let may_go_on = match run.stage(dependency).over {
                        Some(Outcome::Succeeded) => true,
                        Some(_) => !is_fatal(whole.stage(dependency.as_str()).unwrap()),
                        None => run.stage(dependency).skipped,
                    };
                    assert!(may_go_on, "{} does not wait for {dependency}", definition.name);
                }
                assert_eq!(run.should_skip(&whole, &definition), None);
                let with_result = |stage: &&StageName| run.has_result(&whole, stage);
                let inputs: Vec<_> = definition.depends_on.iter().filter(with_result).cloned().collect();
                assert_eq!(record.inputs, inputs);
                run.runs_beside(&whole, &definition);
                assert_eq!(record.task.item.is_some(), definition.for_each.is_some());
                if record.task.attempt == 1 && record.task.item.is_some() {
                    assert_eq!(run.next_item(&definition), record.task.item, "{}", record.task);
                }
                let stage = run.stages.get_mut(&record.task.part()).unwrap();
                assert!(stage.open.is_none() && !stage.is_over(), "an attempt begins when the last one is over");
                assert_eq!(record.task.attempt, stage.attempts + 1);
                assert!(record.task.attempt <= definition.retry.max_attempts);
                let stood = run.pauses.stood(stage.ended_at, stamp.at);
                assert!(stage.retry_at.take().is_none_or(|at| at + stood <= stamp.at), "an attempt waits its time");
                stage.attempts += 1;
                stage.ready_at = stamp.at;
                stage.since.get_or_insert(stamp.at);
                stage.open = Some(None);
            }
            WorkflowRecord::StageEnded(record) => {
                let definition = self.stage(&record.task.stage).clone();
                let run = self.runs.get_mut(&record.task.run).unwrap();
                assert!(run.finished.is_none(), "nothing happens after the end of a run");
                let too_many_failed = run.too_many_failed(&definition);
                if record.task.item.is_none() && definition.for_each.is_some() && run.stage(&definition.name).begun() {
                    run.joined(&definition, record.outcome);
                    return;
                }
                let stage = run.stages.get_mut(&record.task.part()).unwrap();
                assert_eq!(record.task.attempt, stage.attempts);
                let lease = stage.open.take().expect("an attempt ends once");
                assert_eq!(record.lease, lease.map(|(lease, _)| lease));
                assert_eq!(record.agent.as_ref(), record.lease.map(|lease| &self.leases[&lease].1));
                let since = lease.map_or(stamp.at, |(_, at)| at);
                assert_eq!(record.duration_ms, stamp.at - since);
                let end = stage.since.and_then(|at| Some(at + definition.total_timeout_ms?)).unwrap_or(Millis::MAX);
                let lost = record.lease.is_some_and(|lease| self.lost.contains(&lease));
                match record.outcome {
                    Outcome::Succeeded | Outcome::Failed => {
                        assert!(!lost);
                        let lease = record.lease.expect("only a report succeeds or fails");
                        let reported = self.reported.insert(lease, (record.outcome, record.error.clone()));
                        assert_eq!(reported, None);
                    }
                    Outcome::Lost => assert!(lost),
                    Outcome::TimedOut => {
                        let due = match lease {
                            // Where it was leased as its run was paused, the time for all attempts may have been up.
                            Some((_, at)) => end.min(at + definition.timeout_ms).max(at),
                            // The wait for an agent stands still in a pause; the time for all attempts does not, and
                            // is looked at when the run goes on.
                            None => {
                                let stood = run.pauses.stood(stage.ready_at, stamp.at);
                                let due = stage.ready_at + stood + definition.start_timeout_ms;
                                end.min(due).max(run.pauses.resumed()).max(stage.ready_at)
                            }
                        };
                        assert_eq!(stamp.at, due, "it had time until then");
                    }
                    Outcome::Cancelled if record.task.item.is_some() && too_many_failed => {}
                    Outcome::Cancelled => run.ending = true,
                    Outcome::Delegated => panic!("nobody delegates here"),
                }
                assert!(!run.ending || record.outcome == Outcome::Cancelled);
                stage.result.clone_from(&record.result);
                (stage.retry_at, stage.ended_at) = (record.retry_at, stamp.at);
                run.cost = run.cost + record.cost;
                let code = record.code.clone().unwrap_or(record.outcome.to_string());
                let hopeless = definition.retry.non_retryable.contains(&code);
                if let Some(at) = record.retry_at {
                    assert!(!hopeless && at < end);
                    assert!(stage.attempts < definition.retry.max_attempts);
                    assert!(matches!(record.outcome, Outcome::Failed | Outcome::Lost | Outcome::TimedOut));
                } else {
                    assert!(
                        !matches!(record.outcome, Outcome::Lost | Outcome::TimedOut)
                            || stage.attempts == definition.retry.max_attempts
                            || hopeless
                            || definition.total_timeout_ms.is_some(),
                        "what was lost or timed out is tried again"
                    );
                    stage.over = Some(record.outcome);
                }
            }
            WorkflowRecord::StageSkipped(record) => {
                let whole = definition.unwrap();
                let stage = whole.stage(record.stage.as_str()).unwrap();
                let run = self.runs.get_mut(&record.run).unwrap();
                assert!(run.finished.is_none() && !run.ending && !run.pauses.is_paused());
                let waits = &whole.waits()[whole.stages.iter().position(|other| other.name == stage.name).unwrap()];
                assert!(waits.iter().all(|other| run.stage(&whole.stages[*other].name).is_over()));
                assert_eq!(run.should_skip(&whole, stage), Some(record.reason), "{}", stage.name);
                let state = run.stages.get_mut(&Part::from(record.stage.clone())).unwrap();
                assert!(state.attempts == 0 && !state.is_over());
                state.skipped = true;
            }
            WorkflowRecord::StageWaits(_) | WorkflowRecord::Signalled(_) => panic!("no stage asks for anybody's word"),
            WorkflowRecord::StageCached(_) => panic!("no stage has a cache"),
            WorkflowRecord::StageCommitted(_) => panic!("no stage begins early"),
            WorkflowRecord::CopyEnded(_) => panic!("no stage is given to two agents"),
            WorkflowRecord::StageExpanded(record) => {
                let whole = definition.unwrap();
                let stage = whole.stage(record.stage.as_str()).unwrap();
                let run = self.runs.get_mut(&record.run).unwrap();
                assert!(run.finished.is_none() && !run.ending && !run.pauses.is_paused());
                assert_eq!(run.should_skip(&whole, stage), None, "{}", stage.name);
                run.runs_beside(&whole, stage);
                assert_eq!(record.items.as_str(), stage.for_each.as_ref().unwrap().items.as_str());
                let items = record.items.read::<Vec<u32>>().unwrap();
                let state = run.stages.get_mut(&Part::from(record.stage.clone())).unwrap();
                assert!(state.attempts == 0 && !state.is_over());
                state.attempts = 1;
                let part = |item| Part { stage: record.stage.clone(), item: Some(item) };
                run.stages.extend(items.into_iter().map(|item| (part(item), Stage::default())));
            }
            WorkflowRecord::RunPaused(record) => {
                let run = self.runs.get_mut(&record.run).unwrap();
                assert!(run.finished.is_none() && !run.pauses.is_paused());
                run.pauses.0.push((stamp.at, None));
            }
            WorkflowRecord::RunResumed(record) => {
                let run = self.runs.get_mut(&record.run).unwrap();
                assert!(run.finished.is_none() && run.pauses.is_paused());
                run.pauses.0.last_mut().unwrap().1 = Some(stamp.at);
            }
            WorkflowRecord::RunsForgotten(_) => panic!("there are not so many"),
            WorkflowRecord::ScheduleSet(_)
            | WorkflowRecord::ScheduleRemoved(_)
            | WorkflowRecord::ScheduleFired(_)
            | WorkflowRecord::TriggerSet(_)
            | WorkflowRecord::TriggerRemoved(_)
            | WorkflowRecord::EventRaised(_)
            | WorkflowRecord::TriggerFired(_) => panic!("nobody asked for one"),
            WorkflowRecord::RunFinished(record) => {
                let definition = definition.unwrap();
                let run = self.runs.get_mut(&record.run).unwrap();
                assert!(run.stages.values().all(|stage| stage.open.is_none()), "no attempt outlives its run");
                let failed = definition.stages.iter().any(|stage| {
                    is_fatal(stage) && run.stage(&stage.name).over.is_some_and(|over| over != Outcome::Succeeded)
                });
                let all_over = definition.stages.iter().all(|stage| run.stage(&stage.name).is_over());
                match record.status {
                    RunStatus::Running => panic!("running is no end"),
                    RunStatus::Succeeded => assert!(all_over && !failed),
                    RunStatus::Failed => assert!(failed),
                    RunStatus::Cancelled => assert!(self.cancelled.contains(&record.run)),
                    RunStatus::TimedOut => assert!(stamp.at >= run.started_at + definition.timeout_ms),
                }
                assert_eq!(record.reason.is_none(), record.status == RunStatus::Succeeded);
                assert!(run.finished.replace(record.status).is_none(), "a run ends once");
            }
        }
    }

    fn other(&mut self, stamp: Stamp, record: &ResourceRecord) {
        match record {
            ResourceRecord::AgentRegistered(record) => {
                let old = self.sessions.insert(record.agent.clone(), record.session.clone());
                if old.as_ref() != Some(&record.session) {
                    self.lose(&record.agent);
                }
            }
            ResourceRecord::AgentLeft(record) => {
                self.sessions.remove(&record.agent);
                self.lose(&record.agent);
            }
            ResourceRecord::Assigned(record) => {
                let lease = LeaseId(stamp.number);
                self.leases.insert(lease, (record.task.clone(), record.agent.clone()));
                let run = self.runs.get_mut(&record.task.run).unwrap();
                let stage = run.stages.get_mut(&record.task.part()).unwrap();
                if stage.attempts == record.task.attempt && stage.open == Some(None) {
                    stage.open = Some(Some((lease, stamp.at)));
                }
            }
            ResourceRecord::LeaseEnded(record) => {
                self.lost.insert(record.lease);
            }
            ResourceRecord::HandedOver(_)
            | ResourceRecord::HandoffOffered(_)
            | ResourceRecord::HandoffEnded(_)
            | ResourceRecord::BreakerOpened(_)
            | ResourceRecord::BreakerHalfOpened(_)
            | ResourceRecord::BreakerClosed(_)
            | ResourceRecord::AlertRaised(_)
            | ResourceRecord::AlertCleared(_)
            | ResourceRecord::AlertAcknowledged(_)
            | ResourceRecord::PressureChanged(_) => {}
            ResourceRecord::PoolSet(_)
            | ResourceRecord::PoolRemoved(_)
            | ResourceRecord::Acquired(_)
            | ResourceRecord::Renewed(_)
            | ResourceRecord::Released(_)
            | ResourceRecord::ApprovalAsked(_)
            | ResourceRecord::BudgetRefused(_) => {}
        }
    }

    fn lose(&mut self, agent: &AgentId) {
        let held = self.leases.iter().filter(|(_, (_, holder))| holder == agent).map(|(lease, _)| *lease);
        self.lost.extend(held);
    }

    /// Tasks that wait for an agent.
    fn ready(&self) -> Vec<TaskId> {
        self.open().filter(|(_, lease)| lease.is_none()).map(|(task, _)| task).collect()
    }

    /// Tasks that an agent has.
    fn held(&self) -> Vec<(TaskId, LeaseId)> {
        self.open().filter_map(|(task, lease)| Some((task, lease?))).collect()
    }

    fn open(&self) -> impl Iterator<Item = (TaskId, Option<LeaseId>)> {
        self.runs.iter().flat_map(|(id, run)| {
            run.stages.iter().filter_map(|(part, stage)| {
                let lease = stage.open?.map(|(lease, _)| lease);
                Some((part.task(*id, stage.attempts), lease))
            })
        })
    }

    fn live(&self) -> Vec<RunId> {
        self.runs.iter().filter(|(_, run)| run.finished.is_none()).map(|(id, _)| *id).collect()
    }

    /// When a leader is there and all is committed, nothing that can be done is undone.
    fn nothing_is_left_undone(&self, now: Millis) {
        let definition = self.definition.as_ref().unwrap();
        let waits = definition.waits();
        for run in self.runs.values().filter(|run| run.finished.is_none()) {
            assert!(!run.ending, "an end that has begun is finished");
            assert!(run.started_at + definition.timeout_ms > now);
            let over = definition.stages.iter().all(|stage| run.stage(&stage.name).is_over());
            assert!(!over, "a run whose stages are over is over");
            let begun = |definition: &&StageDefinition| run.stage(&definition.name).begun();
            let alone = definition.stages.iter().filter(begun).any(|definition| !definition.parallel);
            let any = definition.stages.iter().any(|definition| begun(&definition));
            for (part, state) in &run.stages {
                let stage = definition.stage(part.stage.as_str()).unwrap();
                let (paused, pauses) = (run.pauses.is_paused(), &run.pauses);
                let waits = |at: Millis| paused || at + pauses.stood(state.ended_at, now) > now;
                assert!(state.is_over() || state.retry_at.is_none_or(waits), "a wait is over");
                match state.open {
                    Some(Some((lease, at))) => {
                        assert!(!self.lost.contains(&lease), "a lost attempt is over");
                        assert!(at + stage.timeout_ms > now);
                    }
                    Some(None) => {
                        let stood = pauses.stood(state.ready_at, now);
                        assert!(paused || state.ready_at + stood + stage.start_timeout_ms > now);
                    }
                    None => {}
                }
            }
            for (stage, waits) in definition.stages.iter().zip(&waits) {
                let state = run.stage(&stage.name);
                let paused = run.pauses.is_paused();
                assert!(paused || run.next_item(stage).is_none(), "an item of {} could begin", stage.name);
                let items_over = stage.for_each.is_some() && run.items(&stage.name).all(Stage::is_over);
                assert!(!(items_over && state.begun()), "{} could end", stage.name);
                let over = |other: &usize| run.stage(&definition.stages[*other].name).is_over();
                let may_begin = state.attempts == 0 && !state.is_over() && waits.iter().all(over);
                let room = if stage.parallel { !alone } else { !any };
                assert!(paused || !(may_begin && room), "{} could begin", stage.name);
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Start,
    Assign {
        task: usize,
        agent: u8,
    },
    /// Assigns a task that may have ended meanwhile.
    AssignLate {
        lease: usize,
        agent: u8,
    },
    Report {
        task: usize,
        outcome: Said,
    },
    /// Reports under any lease there ever was.
    ReportLate {
        lease: usize,
        agent: Option<u8>,
        outcome: Said,
    },
    Register {
        agent: u8,
        session: u8,
    },
    Leave {
        agent: u8,
    },
    Decline {
        task: usize,
    },
    Wait(Millis),
    Cancel {
        run: usize,
    },
    /// Cancels the two oldest that live.
    CancelSome,
    Pause {
        run: usize,
    },
    Resume {
        run: usize,
    },
    Rerun {
        run: usize,
        stage: usize,
    },
}

#[derive(Debug, Clone, Copy)]
enum Said {
    Done,
    Failed,
    Hopeless,
    /// Failed, with a code that stages may not want to be tried again after.
    Coded,
}

/// An act, and how many commits of what follows are stored before the leader dies, if it dies.
type Step = (Act, Option<usize>);

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![6 => Just(Said::Done), 3 => Just(Said::Failed), 1 => Just(Said::Hopeless), 1 => Just(Said::Coded)]
}

fn step() -> impl Strategy<Value = Step> {
    let (pick, agent) = (0..1000usize, 0..3u8);
    let act = prop_oneof![
        1 => Just(Act::Start),
        8 => (pick.clone(), agent.clone()).prop_map(|(task, agent)| Act::Assign { task, agent }),
        1 => (pick.clone(), agent.clone()).prop_map(|(lease, agent)| Act::AssignLate { lease, agent }),
        8 => (pick.clone(), said()).prop_map(|(task, outcome)| Act::Report { task, outcome }),
        3 => (pick.clone(), prop::option::of(agent.clone()), said())
            .prop_map(|(lease, agent, outcome)| Act::ReportLate { lease, agent, outcome }),
        1 => (agent.clone(), 0..2u8).prop_map(|(agent, session)| Act::Register { agent, session }),
        1 => agent.prop_map(|agent| Act::Leave { agent }),
        1 => pick.clone().prop_map(|task| Act::Decline { task }),
        2 => prop_oneof![Just(1), Just(700), Just(5000), Just(30_000)].prop_map(Act::Wait),
        1 => pick.clone().prop_map(|run| Act::Cancel { run }),
        1 => Just(Act::CancelSome),
        2 => pick.clone().prop_map(|run| Act::Pause { run }),
        2 => pick.clone().prop_map(|run| Act::Resume { run }),
        2 => (pick.clone(), pick).prop_map(|(run, stage)| Act::Rerun { run, stage }),
    ];
    (act, prop_oneof![9 => Just(None), 1 => (0..4usize).prop_map(Some)])
}

/// What is drawn for a stage beside its dependencies.
#[derive(Debug, Clone)]
struct Drawn {
    after: u8,
    parallel: bool,
    optional: bool,
    max_attempts: u32,
    join: u8,
    when: Option<usize>,
    on_failure: u8,
    fussy: bool,
    total: bool,
    /// How many items, how many of them at a time, and how many may fail.
    each: Option<(u32, Option<u32>, u32)>,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let flow = (0..8u8, prop::option::weighted(0.3, 0..CONDITIONS.len()), 0..8u8);
    let policy = (prop::bool::weighted(0.3), prop::bool::weighted(0.2));
    let each = prop::option::weighted(0.3, (0..5u32, prop::option::of(1..3u32), 0..3u32));
    (any::<u8>(), prop::bool::weighted(0.8), prop::bool::weighted(0.2), 1..4u32, flow, policy, each).prop_map(
        |(after, parallel, optional, max_attempts, (join, when, on_failure), (fussy, total), each)| Drawn {
            after,
            parallel,
            optional,
            max_attempts,
            join,
            when,
            on_failure,
            fussy,
            total,
            each,
        },
    )
}

/// A workflow of up to seven stages: each may depend on those before it, and then the order is changed. What can not be is
/// left out.
fn definition() -> impl Strategy<Value = Definition> {
    let order = prop::collection::vec(any::<u16>(), 7);
    (prop::collection::vec(drawn(), 1..8), order, prop_oneof![Just(100_000u64), Just(1_000_000)]).prop_map(
        |(stages, order, timeout_ms)| {
            let names = ["a", "b", "c", "d", "e", "f", "g"];
            let count = stages.len();
            let mut builder = Definition::builder("w");
            for (i, drawn) in stages.iter().enumerate() {
                let after: Vec<&str> = (0..i).filter(|j| drawn.after >> j & 1 == 1).map(|j| names[j]).collect();
                builder = builder.add_stage(names[i], "x", &after).with(|stage| {
                    stage.parallel = drawn.parallel;
                    stage.optional = drawn.optional;
                    stage.retry = RetryPolicy { max_attempts: drawn.max_attempts, ..RetryPolicy::default() };
                    if drawn.fussy {
                        stage.retry.non_retryable = vec!["coded".to_owned(), "lost".to_owned()];
                    }
                    stage.start_timeout_ms = 20_000;
                    stage.timeout_ms = 25_000;
                    stage.total_timeout_ms = drawn.total.then_some(30_000);
                    stage.for_each = drawn.each.map(|(items, max_parallel, max_failures)| {
                        let items = Json::of(&(0..items).collect::<Vec<_>>()).unwrap();
                        ForEach { items: items.as_str().into(), max_parallel, max_failures }
                    });
                    if let Some(first) = after.first() {
                        stage.join =
                            [Join::All, Join::Always].get(usize::from(drawn.join)).copied().unwrap_or_default();
                        stage.when = drawn.when.map(|when| CONDITIONS[when].replace('?', first).as_str().into());
                    } else {
                        stage.when = drawn.when.filter(|when| *when < 3).map(|when| CONDITIONS[when].into());
                    }
                    if !drawn.optional && drawn.on_failure == 0 {
                        stage.on_failure = OnFailure::Continue;
                    }
                });
            }
            let mut definition = builder.build().unwrap();
            for (i, drawn) in stages.iter().enumerate() {
                let fallback = usize::from(drawn.on_failure % 3) + i + 1;
                if drawn.on_failure > 4 && !drawn.optional && fallback < count {
                    let before = definition.clone();
                    definition.stages[i].on_failure = OnFailure::Fallback(StageName::new(names[fallback]).unwrap());
                    (definition.stages[fallback].when, definition.stages[fallback].join) = (None, Join::Any);
                    if definition.check().is_err() {
                        definition = before;
                    }
                }
            }
            definition.timeout_ms = timeout_ms;
            definition.stages.sort_by_key(|stage| order[usize::from(stage.name.as_str().as_bytes()[0] - b'a')]);
            definition
        },
    )
}

fn picked<T: Clone>(from: &[T], pick: usize) -> Option<T> {
    from.get(pick % from.len().max(1)).cloned()
}

fn agent(number: u8) -> String {
    format!("agent-{number}")
}

fn report(lease: LeaseId, task: &TaskId, outcome: Said) -> baton_protocol::request::Report {
    match outcome {
        Said::Done => succeeded(lease, task, &format!("{{\"lease\":{lease}}}")),
        Said::Failed => failed(lease, task, "not this time", true),
        Said::Hopeless => failed(lease, task, "never", false),
        Said::Coded => {
            baton_protocol::request::Report { code: Some("coded".to_owned()), ..failed(lease, task, "a code", true) }
        }
    }
}

fn act(world: &mut World, model: &mut Model, act: Act) {
    match act {
        Act::Start => drop(world.try_ask(WorkflowRequest::StartRun(start("w")), None)),
        Act::Assign { task, agent: number } => {
            let there: Vec<_> = model.sessions.keys().cloned().collect();
            if let (Some(task), Some(agent)) = (picked(&model.ready(), task), picked(&there, number.into())) {
                world.assign(&task, agent.as_str());
            }
        }
        Act::AssignLate { lease, agent: number } => {
            let tasks: Vec<_> = model.leases.values().map(|(task, _)| task.clone()).collect();
            if let Some(task) = picked(&tasks, lease) {
                world.assign(&task, &agent(number));
            }
        }
        Act::Report { task, outcome } => {
            if let Some((task, lease)) = picked(&model.held(), task) {
                let holder = model.leases[&lease].1.clone();
                let reply = world.try_ask(WorkflowRequest::Report(holder, report(lease, &task, outcome)), None);
                assert!(reply.is_none_or(|reply| reply.is_ok()), "who holds a lease may report");
            }
        }
        Act::ReportLate { lease, agent: number, outcome } => {
            let leases: Vec<_> = model.leases.iter().map(|(lease, of)| (*lease, of.clone())).collect();
            if let Some((lease, (task, holder))) = picked(&leases, lease) {
                let speaker = number.map_or(holder.clone(), |number| id(&agent(number)));
                let report = report(lease, &task, outcome);
                let outcome = if report.error.is_none() { Outcome::Succeeded } else { Outcome::Failed };
                let stored = model.reported.get(&lease) == Some(&(outcome, report.error.clone()));
                let holds = model.held().contains(&(task, lease)) || stored;
                let reply = world.try_ask(WorkflowRequest::Report(speaker.clone(), report), None);
                match reply {
                    None => {}
                    Some(Ok(_)) => assert!(holds && speaker == holder, "who holds no lease changes nothing"),
                    Some(Err(rejection)) => {
                        assert_eq!(rejection.code, Code::StaleLease);
                        assert!(!holds || speaker != holder, "{rejection}");
                    }
                }
            }
        }
        Act::Register { agent: number, session } => world.agent(&agent(number), &format!("s{session}"), "x"),
        Act::Leave { agent: number } => world.leave(&agent(number), LeftReason::Lost),
        Act::Decline { task } => {
            if let Some((task, lease)) = picked(&model.held(), task) {
                let holder = model.leases[&lease].1.clone();
                world.decline(lease, &task, holder.as_str(), "not now");
            }
        }
        Act::Wait(ms) => world.wait(ms),
        Act::Cancel { run } => {
            let runs: Vec<_> = model.runs.keys().copied().collect();
            if let Some(run) = picked(&runs, run) {
                model.cancelled.insert(run);
                world.try_ask(WorkflowRequest::CancelRun(CancelRun { run, reason: None }), None);
            }
        }
        Act::CancelSome => {
            model.cancelled.extend(model.live().into_iter().take(2));
            let filter = RunFilter { workflow: Some("w".parse().unwrap()), ..RunFilter::default() };
            let request = CancelRuns { filter, all: false, reason: None, limit: Some(2) };
            world.try_ask(WorkflowRequest::CancelRuns(request), None);
        }
        Act::Pause { run } => {
            if let Some(run) = picked(&model.live(), run) {
                world.try_ask(WorkflowRequest::PauseRun(PauseRun { run, reason: None }), None);
            }
        }
        Act::Resume { run } => {
            let paused: Vec<_> = model.live().into_iter().filter(|run| model.runs[run].pauses.is_paused()).collect();
            if let Some(run) = picked(&paused, run) {
                resume(world, run);
            }
        }
        Act::Rerun { run, stage } => {
            let runs: Vec<_> = model.runs.keys().copied().collect();
            let stages: Vec<_> = model.definition.iter().flat_map(|whole| &whole.stages).collect();
            if let (Some(run), Some(stage)) = (picked(&runs, run), picked(&stages, stage)) {
                let from = stage.name.clone();
                let request = RerunRun { run, from, limit: None, key: None, new_run: None };
                let reply = world.try_ask(WorkflowRequest::RerunRun(request), None);
                let ended = model.runs[&run].finished.is_some();
                assert!(reply.is_none_or(|reply| reply.is_ok() == ended), "what has ended is repeated");
            }
        }
    }
}

/// Lets a run go on, and does what is due then.
fn resume(world: &mut World, run: RunId) {
    world.try_ask(WorkflowRequest::ResumeRun(ResumeRun { run }), None);
    if world.stores > 0 {
        world.wait(0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn w8_every_run_ends_once_whatever_agents_and_leaders_do(
        definition in definition(),
        steps in prop::collection::vec(step(), 1..60),
        max_bytes in prop_oneof![Just(1usize), Just(400), Just(1_000_000)],
    ) {
        let mut world = World::new();
        let mut model = Model::default();
        world.check = false;
        world.max_bytes = max_bytes;
        world.register(&definition);
        world.start("w");
        for number in 0..3 {
            world.agent(&agent(number), "s0", "x");
        }
        model.read(&world);
        for (index, (next, dies)) in steps.into_iter().enumerate() {
            if let Some(stores) = dies {
                world.stores = stores;
            }
            act(&mut world, &mut model, next);
            model.read(&world);
            if dies.is_some() {
                world.lead();
                // What came due while nobody led.
                world.wait(0);
                model.read(&world);
            }
            model.nothing_is_left_undone(world.now);
            if index % 8 == 7 {
                world.verify();
            }
        }
        // From here on all goes well.
        let paused: Vec<_> = model.live().into_iter().filter(|run| model.runs[run].pauses.is_paused()).collect();
        paused.into_iter().for_each(|run| resume(&mut world, run));
        model.read(&world);
        for _ in 0..200 {
            let ready = model.ready();
            for task in &ready {
                let lease = world.assign(task, "calm");
                world.report("calm", report(lease, task, Said::Done)).unwrap();
            }
            if ready.is_empty() {
                world.wait(1000);
            }
            model.read(&world);
            model.nothing_is_left_undone(world.now);
            if model.live().is_empty() {
                break;
            }
        }
        world.verify();
        prop_assert!(model.live().is_empty(), "a run did not end");
        for (id, run) in &model.runs {
            let view = world.view(*id);
            prop_assert_eq!(Some(view.status), run.finished);
            prop_assert_eq!(view.cost, run.cost);
            for stage in &view.stages {
                prop_assert_eq!(stage.result.as_ref(), run.stage(&stage.name).result.as_ref(), "{}", stage.name);
            }
            prop_assert!(world.documents.contains_key(&id.to_string()));
        }
        prop_assert_eq!(world.processor.deadline(), None);
    }
}
