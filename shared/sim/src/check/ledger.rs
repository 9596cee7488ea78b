//! The rules of the log: what each record may follow.

use baton_machine::Machine;
use baton_optimizer::Optimizer;
use baton_protocol::budget::{agent_account, least};
use baton_protocol::definition::OnFailure;
use baton_protocol::record::{
    AgentLeft, AgentRegistered, AnyCommit, Assigned, Commit, LearningRateChanged, LeaseEnded, LeftReason,
    OptimizerRecord, Outcome, Record, ResourceRecord, RunFinished, RunStarted, StageEnded, StageReady, Stamp,
    WorkflowRecord, WorkflowRegistered,
};
use baton_protocol::run::RunStatus;
use baton_protocol::{LeaseId, Service, TaskId};

use baton_resource_manager::ResourceManager;
use baton_workflow_manager::WorkflowManager;

use super::copies::COPIES;
use super::flow::{FLOW, GIVEN, Verdict};
use super::{Agent, Attempt, Checked, Facts, Lease, Run, Stage, can, hold, meets};
use crate::coverage::Branch;
use crate::workload::FLAKY;

/// How long after the calm began silence of before may still show, in microseconds.
const SETTLES: u64 = 8_000_000;

const ONE_END: &str = "every accepted run has exactly one end";
pub(super) const ORDER: &str = "stages run in the order that the definition says";
const ONCE: &str = "no stage's result counts twice";
const UNDER_LEASE: &str = "no report under an ended lease changes anything";
const CAPACITY: &str = "leases never exceed what their agent has";
const REQUIRED: &str = "a task is leased only to an agent that is what its stage requires";
const LEASED_ONCE: &str = "a task is leased at most once, while it waits";
const ONE_LEADER: &str = "one leader a term, and no older term after a newer one";
const NO_GAP: &str = "a service's records are numbered without a gap";
const READING: &str = "what a writer had read only grows";
const TIME: &str = "time does not go backwards";
const WAITS: &str = "every wait lasts as long as it should";
const REPLACED: &str = "a session that was replaced does not come back";
const SILENT: &str = "a task is taken from its agent only when nothing was heard of it for as long as its stage says";
const LEARNS: &str = "the learning rate is in the log when it is another, and no more often";
/// The learning rate before any is in the log, in millionths.
const LEARNING_RATE: u32 = 100_000;
const CALM: &str = "nothing is lost in the calm";

/// Whether a service observes what the other one writes, and so what follows from it.
fn follows(service: Service, other: Service) -> bool {
    let follows = match service {
        Service::WorkflowManager => WorkflowManager::FOLLOWS,
        Service::ResourceManager => ResourceManager::FOLLOWS,
        Service::Optimizer => Optimizer::FOLLOWS,
        Service::Gateway => &[],
    };
    service == other || follows.contains(&other)
}

impl Facts {
    /// Takes message `seq` of the log, at a virtual time in microseconds.
    pub(crate) fn take(&mut self, seq: u64, commit: &AnyCommit, now: u64) -> Checked {
        hold!(seq == self.seq + 1, NO_GAP, "message {seq} comes after {}", self.seq);
        (self.seq, self.now) = (seq, now);
        if self.times.is_empty() {
            self.times.push([0; 3]);
        }
        let mut latest = self.times.last().copied().unwrap_or([0; 3]);
        for (service, time) in Service::WRITERS.iter().zip(&mut latest) {
            if *service == commit.service() {
                *time = (*time).max(commit.at().unwrap_or(0));
            }
        }
        self.times.push(latest);
        match commit {
            AnyCommit::Workflow(commit) => {
                self.writer(commit)?;
                commit.stamped().try_for_each(|(stamp, record)| self.workflow(stamp, record))
            }
            AnyCommit::Resource(commit) => {
                self.writer(commit)?;
                commit.stamped().try_for_each(|(stamp, record)| self.resource(stamp, record))?;
                self.breakers_decided(commit.handled)
            }
            AnyCommit::Optimizer(commit) => {
                self.writer(commit)?;
                commit.stamped().try_for_each(|(_, record)| self.optimizer(record))
            }
        }
    }

    fn optimizer(&mut self, record: &OptimizerRecord) -> Checked {
        match record {
            OptimizerRecord::StrategyChanged(record) => {
                self.strategies += 1;
                self.tenants.strategy_changed(record.strategy);
            }
            OptimizerRecord::LearningImported(record) => self.imported.extend(record.lessons.iter().cloned()),
            OptimizerRecord::LearningRateChanged(LearningRateChanged { millionths }) => {
                let before = self.learning_rate.replace(*millionths).unwrap_or(LEARNING_RATE);
                hold!(
                    before != *millionths,
                    LEARNS,
                    "the learning rate is changed from {before} to {millionths} millionths"
                );
            }
        }
        Ok(())
    }

    fn writer<R: Record>(&mut self, commit: &Commit<R>) -> Checked {
        let (service, seq) = (R::SERVICE, self.seq);
        let writer = self.writers.entry(service).or_default();
        let expected = writer.next.max(1);
        hold!(
            commit.first == expected,
            NO_GAP,
            "{service}: message {seq} starts with {}, not {expected}",
            commit.first
        );
        writer.next = commit.first + commit.len();
        let (term, last) = (commit.term, writer.term);
        hold!(term >= last, ONE_LEADER, "{service}: message {seq} is of term {term}, after one of term {last}");
        writer.term = term;
        let instance = writer.instances.entry(term).or_insert_with(|| commit.instance.clone());
        let other = &commit.instance;
        hold!(instance == other, ONE_LEADER, "{service}: {instance} and {other} both lead in term {term}");
        for turn in &commit.turns {
            let times =
                usize::try_from(turn.seen).ok().and_then(|seen| self.times.get(seen)).copied().unwrap_or([0; 3]);
            let caused = Service::WRITERS.iter().zip(times).filter(|(other, _)| follows(service, **other));
            let caused = caused.map(|(_, time)| time).max().unwrap_or(0);
            hold!(turn.at >= caused, TIME, "{service}: message {seq} is of {}, and follows from {caused}", turn.at);
            hold!(turn.at >= writer.at, TIME, "{service}: message {seq} is of {}, after {}", turn.at, writer.at);
            let (read, before) = (turn.seen, writer.seen);
            hold!((before..seq).contains(&read), READING, "{service}: {read} in message {seq}, after {before}");
            (writer.at, writer.seen) = (turn.at, turn.seen);
        }
        let (handled, before) = (commit.handled, writer.handled);
        hold!((before..seq).contains(&handled), READING, "{service}: handled {handled} in {seq}, after {before}");
        (writer.handled, writer.message) = (handled, seq);
        if service == Service::WorkflowManager {
            let seen = writer.seen;
            self.door_has_read(seq, seen);
        }
        Ok(())
    }

    fn workflow(&mut self, stamp: Stamp, record: &WorkflowRecord) -> Checked {
        match record {
            WorkflowRecord::WorkflowRegistered(record) => self.workflow_registered(record),
            WorkflowRecord::RunStarted(record) => self.run_started(stamp, record),
            WorkflowRecord::StageReady(record) => self.stage_ready(stamp, record),
            WorkflowRecord::StageEnded(record) => self.stage_ended(stamp, record),
            WorkflowRecord::StageSkipped(record) => self.stage_skipped(record),
            WorkflowRecord::StageExpanded(record) => self.stage_expanded(stamp.at, record),
            WorkflowRecord::StageWaits(record) => self.stage_waits(stamp, record),
            WorkflowRecord::Signalled(record) => self.signalled(record),
            WorkflowRecord::StageCached(record) => self.stage_cached(stamp, record),
            WorkflowRecord::StageCommitted(record) => self.stage_committed(stamp, record),
            WorkflowRecord::CopyEnded(record) => self.copy_ended(stamp, record),
            WorkflowRecord::RunFinished(record) => self.run_finished(stamp, record),
            WorkflowRecord::RunPaused(record) => self.run_paused(stamp, record),
            WorkflowRecord::RunResumed(record) => self.run_resumed(stamp, record),
            WorkflowRecord::RunsForgotten(record) => self.runs_forgotten(stamp, record),
            WorkflowRecord::ScheduleSet(record) => self.schedule_set(stamp, record),
            WorkflowRecord::ScheduleRemoved(record) => self.schedule_removed(record),
            WorkflowRecord::ScheduleFired(record) => self.schedule_fired(stamp, record),
            WorkflowRecord::TriggerSet(record) => self.trigger_set(record),
            WorkflowRecord::TriggerRemoved(record) => self.trigger_removed(record),
            WorkflowRecord::EventRaised(record) => self.event_raised(stamp, record),
            WorkflowRecord::TriggerFired(record) => self.trigger_fired(record),
        }
    }

    fn resource(&mut self, stamp: Stamp, record: &ResourceRecord) -> Checked {
        self.pools_read(stamp.seen);
        self.resource_record(stamp, record)?;
        self.pools_used(stamp.at);
        Ok(())
    }

    fn resource_record(&mut self, stamp: Stamp, record: &ResourceRecord) -> Checked {
        match record {
            ResourceRecord::AgentRegistered(record) => self.agent_registered(stamp, record),
            ResourceRecord::AgentLeft(record) => self.agent_left(stamp, record),
            ResourceRecord::Assigned(record) => self.assigned(stamp, record),
            ResourceRecord::LeaseEnded(record) => self.lease_ended(stamp, record),
            ResourceRecord::HandoffOffered(record) => self.handoff_offered(stamp, record),
            ResourceRecord::HandedOver(record) => self.handed_over(stamp, record),
            ResourceRecord::HandoffEnded(record) => self.handoff_ended(stamp, record),
            ResourceRecord::BreakerOpened(record) => self.breaker_opened(stamp, record),
            ResourceRecord::BreakerHalfOpened(record) => self.breaker_half_opened(stamp, record),
            ResourceRecord::BreakerClosed(record) => self.breaker_closed(stamp, record),
            ResourceRecord::PoolSet(record) => self.pool_set(stamp, record),
            ResourceRecord::PoolRemoved(record) => self.pool_removed(&record.name),
            ResourceRecord::Acquired(record) => self.acquired(stamp, record),
            ResourceRecord::Renewed(record) => self.renewed(stamp, record),
            ResourceRecord::Released(record) => self.released(stamp, record),
            ResourceRecord::AlertRaised(record) => self.alert_raised(stamp, record),
            ResourceRecord::AlertCleared(record) => self.alert_cleared(record),
            ResourceRecord::AlertAcknowledged(record) => self.alert_acknowledged(record),
            ResourceRecord::ApprovalAsked(record) => self.approval_asked(record),
            ResourceRecord::BudgetRefused(record) => self.budget_refused(stamp, record),
            ResourceRecord::PressureChanged(record) => self.pressure_changed(stamp, record),
        }
    }

    fn workflow_registered(&mut self, record: &WorkflowRegistered) -> Checked {
        let versions = self.definitions.entry(record.definition.name.clone()).or_default();
        let next = versions.len() + 1;
        hold!(record.version as usize == next, NO_GAP, "version {} of a workflow, not {next}", record.version);
        versions.push((self.seq, record.definition.clone()));
        Ok(())
    }

    fn run_started(&mut self, stamp: Stamp, record: &RunStarted) -> Checked {
        let versions = self.definitions.get(&record.workflow);
        let version = versions.and_then(|versions| versions.get((record.version as usize).checked_sub(1)?));
        let definition = match &record.parent {
            Some(parent) if record.version == 0 => self.delegated_to(&parent.task),
            _ => version.map(|(_, definition)| definition.clone()),
        };
        let Some(definition) = definition else {
            return Err(super::broken(ORDER, format!("run {} is of a workflow that is not there", record.run)));
        };
        if let Some(key) = &record.key {
            let other = self.runs.iter().find(|(_, run)| run.key.as_ref() == Some(key) && !run.forgotten);
            hold!(other.is_none(), "one key starts one run", "{key:?} started {:?} and {}", other, record.run);
        }
        match &record.parent {
            None => self.may_start_now(stamp, record.run, record.priority)?,
            Some(parent) => self.child_started(stamp, record, parent, &definition)?,
        }
        let mut run = Run {
            started: self.seq,
            started_at: stamp.at,
            started_by: stamp.number,
            started_on: self.now,
            workflow: record.workflow.clone(),
            version: record.version,
            key: record.key.clone(),
            strategy: record.strategy,
            priority: record.priority,
            due: record.due,
            budget: record.budget.clone(),
            definition: definition.clone(),
            input: record.input.clone(),
            metadata: record.metadata.clone(),
            stages: definition.stages.iter().map(|_| Stage::default()).collect(),
            owners: Vec::new(),
            fans: std::collections::BTreeMap::new(),
            signals: std::collections::BTreeMap::new(),
            uses_cache: !record.no_cache && record.rerun.is_none(),
            ending: false,
            pauses: Vec::new(),
            repeats: record.rerun.as_ref().map(|rerun| rerun.of),
            forgotten: false,
            finished: None,
            ended_at: 0,
            ended_on: 0,
            parent: record.parent.as_deref().cloned(),
            parts: 0,
            orphaned_on: None,
        };
        if let Some(rerun) = &record.rerun {
            self.rerun(record, rerun, &mut run)?;
        }
        // What is a part of a run bears what that bears, and so does what repeats one.
        if record.parent.is_none() && record.rerun.is_none() {
            self.schedule_started(record)?;
            self.trigger_started(record)?;
        }
        hold!(self.runs.insert(record.run, run).is_none(), ONE_END, "run {} started twice", record.run);
        if let Some(budget) = &record.budget {
            self.pools_run_started(stamp, record.run, budget);
        }
        let (live, most) = (self.live_alone(), self.max_live_runs);
        hold!(live <= most, "no more runs are live than may be", "{live} are, and {most} may be");
        Ok(())
    }

    fn stage_ready(&mut self, stamp: Stamp, record: &StageReady) -> Checked {
        let (task, seq, now) = (&record.task, self.seq, self.now);
        let place = match record.speculative {
            true => self.begins_early(task, record.input.as_ref())?,
            false => self.attempt_begins(stamp, task)?,
        };
        self.not_done_before(stamp, place, record)?;
        let Some(run) = self.runs.get_mut(&task.run) else { return Ok(()) };
        let definition = run.definition(place);
        let by_run = !definition.has_agent() || run.stages[place].delegated().is_some();
        hold!(!by_run, FLOW, "{task} is ready, and a run should do it");
        let given = record.input.as_ref().map(|input| input.read::<serde_json::Value>().unwrap_or_default());
        let right = definition.input.as_ref().map(|_| run.input_if(place, record.speculative));
        hold!(given == right, GIVEN, "{task} is given {given:?}, not {right:?}");
        let mut inputs = Vec::new();
        for dependency in &definition.depends_on {
            let other = run.definition.stages.iter().position(|stage| stage.name == *dependency).unwrap_or(place);
            if run.result(other).is_some() && definition.speculative.is_none() {
                inputs.push(dependency.clone());
            }
        }
        hold!(record.inputs == inputs, ORDER, "{task} is given {:?}, not {inputs:?}", record.inputs);
        let priority = run.priority_of(place);
        hold!(record.priority == priority, ORDER, "{task} is of priority {}, not {priority}", record.priority);
        let same = record.agent_type == definition.agent_type && record.requires == definition.requires;
        hold!(same, ORDER, "{task} asks for {} and {}, which its stage does not", record.agent_type, record.requires);
        let mut needs = definition.resources.clone();
        if let Some(account) = run.budget.as_ref().and_then(|budget| budget.account(task.run)) {
            needs.entry(account).or_insert_with(|| expected(definition));
        }
        hold!(record.resources == needs, ORDER, "{task} needs {needs:?}, and asks for {:?}", record.resources);
        let gathered = run.stages[place].gathered.clone();
        let asked = (record.agent_type.clone(), record.requires.clone(), record.resources.clone());
        let attempt = Attempt::begun((seq, stamp.at, now), asked);
        let early = given.filter(|_| record.speculative);
        self.tenants.ready(task, stamp.number);
        run.stages[place].attempts.push(Attempt { gathered, counts: !record.speculative, early, ..attempt });
        Ok(())
    }

    /// An attempt at a stage begins here in the log, by whoever makes it. Its place.
    pub(super) fn attempt_begins(&mut self, stamp: Stamp, task: &TaskId) -> Result<usize, super::Violation> {
        self.no_pause_around(task)?;
        let Some(run) = self.runs.get_mut(&task.run) else {
            return Err(super::broken(ORDER, format!("{task} is ready in a run that never started")));
        };
        hold!(run.finished.is_none() && !run.ending, ONE_END, "{task} is ready in a run that is over");
        hold!(!run.is_paused(), super::operations::PAUSED, "{task} is ready, and its run is paused");
        let Some(place) = run.place_of(task) else {
            return Err(super::broken(ORDER, format!("{task} is no stage of its workflow")));
        };
        let definition = run.definition(place);
        hold!(!definition.asks(), FLOW, "{task} is ready, and no agent's");
        hold!(definition.for_each.is_some() == task.item.is_some(), FLOW, "{task} is not of an item, or should not be");
        hold!(run.may_begin(place), FLOW, "{task} is ready before what it waits for is over");
        run.thrown_away(&task.stage, place)?;
        let definition = run.definition(place);
        if !run.stages[place].has_begun() && task.item.is_none() {
            let verdict = run.verdict(place);
            hold!(verdict == Verdict::Runs, FLOW, "{task} is ready, and should not run: {verdict:?}");
            let stands_for = |other: &baton_protocol::StageDefinition| {
                other.on_failure == OnFailure::Fallback(definition.name.clone())
            };
            if run.definition.stages.iter().any(stands_for) {
                self.seen.push(Branch::FallbackRan);
            }
        }
        for dependency in &definition.depends_on {
            let other = run.definition.stages.iter().position(|stage| stage.name == *dependency).unwrap_or(place);
            let may_go_on = match run.stages[other].over {
                Some(Outcome::Succeeded) => true,
                Some(_) => !Run::is_fatal(&run.definition.stages[other]),
                None => run.stages[other].skipped,
            };
            hold!(may_go_on, ORDER, "{task} is ready and {dependency} is not done");
        }
        run.runs_alone(place)?;
        run.items_in_order(place)?;
        let stage = &mut run.stages[place];
        let open = stage.attempts.last().is_some_and(|attempt| attempt.ended.is_none());
        hold!(!open && !stage.is_over(), ONCE, "{task} is ready, and the attempt before is not over");
        let next = stage.attempts.len() + 1;
        hold!(task.attempt as usize == next, ONCE, "{task} is attempt {next}");
        // The wait stood still while the run was paused.
        let stood_still = run.pauses.iter().map(|pause| pause.overlap(stage.ended_at, stamp.at)).sum::<u64>();
        let retry_at = stage.retry_at.take().map(|at| at + stood_still);
        hold!(
            retry_at.is_none_or(|at| at <= stamp.at),
            WAITS,
            "{task} was to wait until {retry_at:?}, not {}",
            stamp.at
        );
        if retry_at.is_some() {
            self.seen.push(Branch::Retried);
        }
        Ok(place)
    }

    fn stage_ended(&mut self, stamp: Stamp, record: &StageEnded) -> Checked {
        let (task, seq, calm) = (&record.task, self.seq, self.calm);
        let Some(run) = self.runs.get_mut(&task.run) else {
            return Err(super::broken(ORDER, format!("{task} ended in a run that never started")));
        };
        hold!(run.finished.is_none(), ONE_END, "{task} ended after its run");
        let place = run.place_of(task);
        let Some(place) = place else { return Err(super::broken(ORDER, format!("{task} is no stage"))) };
        if run.fans.contains_key(&place) {
            return self.joined(record);
        }
        let by_run = !run.definition(place).has_agent();
        let last = run.stages[place].attempts.last();
        // Runs may be refused at any attempt: as parts of one they become more.
        if last.is_none() && record.speculative {
            return self.never_began_early(stamp, place, record);
        }
        let could_not = match last.filter(|_| run.stages[place].has_begun()) {
            None => task.item.is_none() || by_run,
            Some(last) => by_run && last.ended.is_some(),
        };
        // Those that no run could begin which was to do what an agent delegated.
        if (could_not || run.stages[place].delegated().is_some()) && !run.ending {
            let right = record.outcome == Outcome::Failed && record.lease.is_none() && record.retry_at.is_none();
            hold!(right, ONCE, "{task} ended, and was not open");
            return self.never_began(task.run, place, record.code.as_deref());
        }
        if run.definition(place).asks() {
            return self.word_given(stamp, place, record);
        }
        let total_due = run.total_due(place);
        let definition = run.definition(place).clone();
        let definition = &definition;
        let stage = &mut run.stages[place];
        let number = stage.attempts.len();
        let current = stage.attempts.last_mut().filter(|attempt| attempt.ended.is_none());
        let Some(attempt) = current.filter(|_| task.attempt as usize == number) else {
            return Err(super::broken(ONCE, format!("{task} ended, and was not open")));
        };
        (attempt.ended, attempt.ended_on, attempt.outcome) = (Some(seq), Some(self.now), Some(record.outcome));
        attempt.delegated = record.delegated.as_deref().cloned();
        let child = attempt.child;
        // The writer may not have read yet that an agent has it, or another one.
        let lease = attempt.lease_at(&self.leases, stamp.seen);
        let second = attempt.second.filter(|second| self.leases[second].granted <= stamp.seen);
        let reported = matches!(record.outcome, Outcome::Succeeded | Outcome::Failed | Outcome::Delegated);
        let (lease, other) = match (lease, second) {
            (first, Some(second))
                if (reported || known_lost(&self.leases, second, stamp.seen)) && record.lease == Some(second) =>
            {
                (Some(second), first)
            }
            leases => leases,
        };
        let named = record.other.as_ref().map(|other| other.lease);
        hold!(named == other, COPIES, "{task} ended, and {named:?} is called back, not {other:?}");
        if other.is_some() {
            self.seen.push(if lease == second { Branch::SecondWon } else { Branch::SecondLost });
        }
        hold!(record.lease == lease, UNDER_LEASE, "{task} ended under lease {:?}, not {lease:?}", record.lease);
        let known_lost = lease.is_some_and(|lease| known_lost(&self.leases, lease, stamp.seen));
        let stood_still = run.pauses.iter().map(|pause| pause.overlap(attempt.ready_at, stamp.at)).sum::<u64>();
        let first = attempt.first().filter(|_| lease.is_some());
        let since = match (first, child) {
            (Some(lease), _) => (self.leases[&lease].granted_at, definition.timeout_ms),
            (None, Some(_)) => (attempt.ready_at, definition.timeout_ms),
            (None, None) => (attempt.ready_at + stood_still, definition.start_timeout_ms),
        };
        if attempt.lease != lease && lease.is_some() {
            self.seen.push(Branch::ReportedByGiver);
        }
        let all: std::collections::BTreeSet<_> = attempt.lease.into_iter().chain(attempt.second).chain(lease).collect();
        for id in all {
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            if other == Some(id) {
                let named = record.other.as_ref().map(|other| &other.agent);
                hold!(named == Some(&lease.agent), COPIES, "{task} was not {named:?}'s as well");
                lease.outcome = Some(Outcome::Cancelled);
            } else if lease.granted <= stamp.seen {
                hold!(record.agent.as_ref() == Some(&lease.agent), UNDER_LEASE, "{task} was not {:?}'s", record.agent);
                lease.outcome = Some(record.outcome);
                lease.result.clone_from(&record.result);
            } else {
                self.seen.push(Branch::DeadOnArrival);
            }
            lease.ended.get_or_insert(seq);
            if let Some(agent) = self.agents.get_mut(&lease.agent) {
                agent.changed_on = self.now;
            }
        }
        let (held_as, beside) = match (attempt.lease, attempt.second) {
            (first, Some(second)) if record.lease == Some(second) => (Some(second), first),
            leases => leases,
        };
        let capability = attempt.agent_type.clone();
        let (mut may_retry, mut may_not) = (true, false);
        let run = &self.runs[&task.run];
        let definition = run.definition(place).clone();
        let definition = &definition;
        match record.outcome {
            Outcome::Succeeded | Outcome::Failed | Outcome::Delegated if child.is_some() => {
                let run = &self.runs[&task.run];
                (may_retry, may_not) = self.gave(run, place, child, record)?;
                self.seen.push(match record.outcome {
                    Outcome::Succeeded => Branch::ChildSucceeded,
                    Outcome::Delegated => Branch::Gathered,
                    _ => Branch::ChildFailed,
                });
            }
            Outcome::Failed if lease.is_none() => {
                let unpaid = self.pools.unpaid.get(task).is_some_and(|(at, _)| *at <= stamp.seen);
                hold!(unpaid, UNDER_LEASE, "{task} failed under no lease, and was not refused");
                hold!(record.hopeless, UNDER_LEASE, "{task} is not paid for, and not hopeless");
                may_not = true;
            }
            Outcome::Succeeded | Outcome::Failed | Outcome::Delegated => {
                let Some(id) = lease else {
                    return Err(super::broken(UNDER_LEASE, format!("{task} was reported under no lease")));
                };
                hold!(!known_lost, UNDER_LEASE, "{task} was reported under lease {id}, which had ended");
                let lease = &self.leases[&id];
                if lease.lost.is_some() {
                    self.seen.push(Branch::JustInTime);
                }
                // Two processes of one agent may have done it, and each has reported: either may have counted.
                let sent = self.reports.get(&id).into_iter().flatten();
                let sent = sent.filter(|(agent, report)| *agent == lease.agent && report.task == *task);
                let made = sent.map(|(_, report)| run.made(place, report));
                let made = made.filter(|made| {
                    let delegated =
                        record.delegated.as_ref().map(|delegated| (&delegated.definition.stages, delegated.aggregate));
                    let wanted = made.delegated.as_ref().map(|(stages, aggregate)| (stages, *aggregate));
                    let same = made.outcome == record.outcome && made.result == record.result;
                    same && made.code == record.code && delegated == wanted
                });
                let sent: Vec<_> = made.map(|made| made.may_retry).collect();
                hold!(!sent.is_empty(), UNDER_LEASE, "nobody reported what {task} ended with");
                may_retry = record.outcome == Outcome::Failed && sent.contains(&true);
                may_not = record.outcome != Outcome::Failed || sent.contains(&false);
                let said = match record.outcome {
                    Outcome::Failed => sent.contains(&!record.hopeless),
                    _ => !record.hopeless,
                };
                hold!(said, UNDER_LEASE, "nobody said of {task} that it is hopeless: {}", record.hopeless);
                match (record.outcome, record.code.as_deref()) {
                    (Outcome::Delegated, _) => self.seen.push(Branch::Delegated),
                    (_, Some("invalid_delegation")) => self.seen.push(Branch::DelegationRefused),
                    (_, Some("too_many_delegations")) => self.seen.push(Branch::DelegatedTooOften),
                    (_, Some(code)) if code != FLAKY => self.seen.push(Branch::ResultRefused),
                    _ => {}
                }
            }
            Outcome::Lost => {
                hold!(known_lost, UNDER_LEASE, "{task} is lost, and its lease {lease:?} had not ended");
                self.seen.push(Branch::AttemptLost);
            }
            Outcome::TimedOut => {
                let (at, timeout) = since;
                let due = total_due.map_or(at + timeout, |total| total.min(at + timeout));
                hold!(stamp.at >= due, WAITS, "{task} timed out at {}, not {due}", stamp.at);
                let in_all = total_due.is_some_and(|total| stamp.at >= total);
                if in_all {
                    (may_retry, may_not) = (false, true);
                    self.seen.push(Branch::TotalTimedOut);
                }
                self.seen.push(match (lease, child) {
                    (_, Some(_)) => Branch::ChildTimedOut,
                    (Some(_), None) => Branch::RunTimedOut,
                    (None, None) => Branch::StartTimedOut,
                });
                let leased_in_calm =
                    first.is_some_and(|lease| calm.is_some_and(|calm| self.leases[&lease].granted_on > calm + SETTLES));
                // Of the time in all, it may have waited the most.
                hold!(!leased_in_calm || in_all, CALM, "{task} was leased in the calm and timed out");
            }
            // One of a stage too many of whose items have failed, or of a run that ends.
            Outcome::Cancelled => {
                let run = self.runs.get_mut(&task.run).expect("it was there above");
                if run.is_dropped(place) {
                    self.seen.push(Branch::ItemDropped);
                } else if !record.speculative {
                    run.ending = true;
                }
            }
        }
        self.ended_early(place, record)?;
        let run = self.runs.get_mut(&task.run).expect("it was there above");
        let ending = run.ending && record.outcome != Outcome::Cancelled;
        hold!(!ending, ONE_END, "{task} ended {} in a run that is ending", record.outcome);
        let with_result = record.result.is_some();
        let gathered = record.outcome == Outcome::Delegated && child.is_some();
        let may_have = record.outcome == Outcome::Succeeded || gathered;
        hold!(!with_result || may_have, ONCE, "{task} has a result and {}", record.outcome);
        let code = record.code.as_deref().unwrap_or(record.outcome.as_str());
        let hopeless = definition.retry.non_retryable.iter().any(|known| known == code);
        if hopeless {
            self.seen.push(Branch::CodeNotRetried);
        }
        let goes_on = matches!(record.outcome, Outcome::Failed | Outcome::Lost) && !hopeless && !record.hopeless;
        hold!(other.is_none() || !goes_on, COPIES, "{task} {}, and lease {other:?} goes on", record.outcome);
        let wait = match record.outcome {
            Outcome::Lost => 0,
            _ => definition.retry.wait_ms(task),
        };
        let in_time = total_due.is_none_or(|due| stamp.at + wait < due);
        (may_retry, may_not) = (may_retry && !hopeless && in_time, may_not || hopeless || !in_time);
        let stage = &mut run.stages[place];
        let failed = stage.attempts.iter().filter(|attempt| attempt.counts);
        let failed = failed.filter(|attempt| attempt.outcome.is_some_and(Outcome::is_failure)).count();
        let (last, may_fail) = (failed >= definition.retry.max_attempts as usize, definition.may_fail());
        if !record.speculative {
            let result = if gathered { &mut stage.gathered } else { &mut stage.result };
            result.clone_from(&record.result);
        }
        (stage.retry_at, stage.ended_at) = (record.retry_at, stamp.at);
        match (record.outcome, record.retry_at) {
            _ if record.speculative => {}
            (Outcome::Delegated, at) => {
                hold!(at == Some(stamp.at), WAITS, "{task} was delegated, and goes on at {at:?}");
            }
            (Outcome::Succeeded | Outcome::Cancelled, Some(_)) => {
                return Err(super::broken(WAITS, format!("{task} is tried again after {}", record.outcome)));
            }
            (_, Some(at)) => {
                hold!(!last && may_retry, WAITS, "{task} is tried again, and should not be");
                hold!(at == stamp.at + wait, WAITS, "{task} is tried again at {at}, not {}", stamp.at + wait);
            }
            (Outcome::Succeeded | Outcome::Cancelled, None) => stage.over = Some(record.outcome),
            (_, None) => {
                hold!(last || may_not, WAITS, "{task} is not tried again, and should be");
                stage.over = Some(record.outcome);
                if may_fail {
                    self.seen.push(Branch::OptionalFailed);
                }
            }
        }
        if let Some(child) = child {
            return self.child_is_over(child, record);
        }
        self.may_be_used_again(stamp, place, record);
        self.breakers_ended(record, &capability, held_as);
        self.pools_paid(record);
        if let Some(lease) = held_as {
            self.pools_task_ended(lease, record.outcome, record.cost);
        }
        if let Some(beside) = beside {
            self.probe_gone(beside, self.seq);
            self.pools_task_ended(beside, Outcome::Cancelled, baton_protocol::Money::ZERO);
        }
        Ok(())
    }

    fn run_finished(&mut self, stamp: Stamp, record: &RunFinished) -> Checked {
        let seq = self.seq;
        let gives_way = self.gives_way(record.run);
        let Some(run) = self.runs.get_mut(&record.run) else {
            return Err(super::broken(ONE_END, format!("run {} ended and never started", record.run)));
        };
        hold!(run.finished.is_none(), ONE_END, "run {} ended twice", record.run);
        (run.finished, run.ended_at, run.ended_on) = (Some((seq, record.status)), stamp.at, self.now);
        let orphaned = run.orphaned_on.is_some();
        let open = run.stages.iter().any(|stage| stage.attempts.last().is_some_and(|attempt| attempt.ended.is_none()));
        hold!(!open, ONE_END, "run {} ended with an attempt open", record.run);
        let stages = run.stages[..run.definition.stages.len()].iter();
        let failed = stages.clone().zip(&run.definition.stages).any(|(stage, definition)| {
            Run::is_fatal(definition) && stage.over.is_some_and(|over| over != Outcome::Succeeded)
        });
        let over = stages.clone().all(Stage::is_over);
        let (branch, right) = match record.status {
            RunStatus::Running => (Branch::RunFailed, false),
            RunStatus::Succeeded => (Branch::Succeeded, over && !failed),
            RunStatus::Failed => (Branch::RunFailed, failed),
            RunStatus::Cancelled => {
                let (alone, together) = (self.cancels.contains(&record.run), self.cancels_of.contains(&run.workflow));
                if together && !alone && !orphaned {
                    self.seen.push(Branch::CancelledTogether);
                }
                if gives_way && !alone && !together {
                    self.seen.push(Branch::ScheduleCancelled);
                }
                let asked = alone || together || gives_way || orphaned;
                (Branch::Cancelled, asked)
            }
            RunStatus::TimedOut => {
                (Branch::RunTooLong, stamp.at >= run.started_at.saturating_add(run.definition.timeout_ms))
            }
        };
        hold!(right, ONE_END, "run {} ended {}, and should not", record.run, record.status);
        let as_part = !orphaned || record.status == RunStatus::Cancelled;
        hold!(as_part, super::children::PART, "run {} ended {}, and what it did was over", record.run, record.status);
        let (workflow, is_part) = (run.workflow.clone(), run.parent.is_some());
        if !is_part {
            self.trigger_run_ended(stamp, &workflow, record);
            self.alerts_run_finished(workflow, record.status);
        }
        self.no_part_is_left(record.run)?;
        self.seen.push(branch);
        self.pools_run_finished(record.run);
        Ok(())
    }

    fn agent_registered(&mut self, stamp: Stamp, record: &AgentRegistered) -> Checked {
        let (seq, now) = (self.seq, self.now);
        let before = self.agents.remove(&record.agent);
        let kept = before.as_ref().is_some_and(|a| a.gone.is_none() && a.record.session == record.session);
        let (sessions, since) = match before {
            Some(before) => {
                let mut sessions = before.sessions;
                if before.gone.is_some() {
                    self.seen.push(Branch::Reregistered);
                }
                if before.record.session != record.session {
                    sessions.insert(before.record.session);
                }
                (sessions, if kept { before.since } else { seq })
            }
            None => (std::collections::BTreeSet::new(), seq),
        };
        let (agent, session) = (&record.agent, &record.session);
        hold!(!sessions.contains(session), REPLACED, "{agent} is back in session {session}, which was replaced");
        if !kept {
            self.lose(&record.agent);
            self.breakers_reset(&record.agent, stamp);
            self.pools_agent_gone(&record.agent);
        }
        let agent = Agent { record: record.clone(), since, gone: None, sessions, changed_on: now };
        hold!(self.has_room(&agent, None), CAPACITY, "{} shrinks below what it holds", record.agent);
        self.agents.insert(record.agent.clone(), agent);
        Ok(())
    }

    fn agent_left(&mut self, stamp: Stamp, record: &AgentLeft) -> Checked {
        let (seq, now) = (self.seq, self.now);
        let agent = self.agents.get_mut(&record.agent).filter(|agent| agent.gone.is_none());
        let Some(agent) = agent else {
            return Err(super::broken("an agent leaves once", format!("{} was not there", record.agent)));
        };
        (agent.gone, agent.changed_on) = (Some(seq), now);
        self.left.insert((record.agent.clone(), agent.record.session.clone()));
        self.lose(&record.agent);
        self.breakers_reset(&record.agent, stamp);
        self.pools_agent_gone(&record.agent);
        if record.reason == LeftReason::Lost {
            self.loss_is_told(&record.agent)?;
            self.seen.push(Branch::AgentLost);
            let calm = self.calm.is_some_and(|calm| now > calm + SETTLES);
            hold!(!calm, CALM, "{} was lost", record.agent);
        }
        Ok(())
    }

    fn assigned(&mut self, stamp: Stamp, record: &Assigned) -> Checked {
        let Assigned { task, agent: id, resources, pools, beside } = record;
        self.may_be_leased_now(stamp, task)?;
        if let Some(first) = *beside {
            self.may_be_second(stamp, record, first)?;
        }
        let (seq, now, lease) = (self.seq, self.now, LeaseId(stamp.number));
        let of_pool: std::collections::BTreeSet<_> = pools.keys().filter(|name| self.pools.has(name)).collect();
        let apart = of_pool.len() == pools.len()
            && resources.iter().all(|(name, amount)| amount.is_zero() || !self.pools.has(name));
        hold!(apart, CAPACITY, "{task} holds {resources:?} of {id}'s own and {pools:?} of pools");
        self.not_paused(task, stamp)?;
        let run = self.runs.get_mut(&task.run);
        let cost = run.as_ref().and_then(|run| run.definition.stage(task.stage.as_str())).map_or_else(least, expected);
        let place = run.as_ref().and_then(|run| run.place_of(task));
        let attempt = run.and_then(|run| run.stages[place?].attempts.get_mut((task.attempt as usize).checked_sub(1)?));
        let Some(attempt) = attempt.filter(|attempt| attempt.ready <= stamp.seen) else {
            return Err(super::broken(LEASED_ONCE, format!("{task} is leased and not ready")));
        };
        hold!(attempt.ended.is_none_or(|at| at > stamp.seen), LEASED_ONCE, "{task} is leased after its end");
        let once = attempt.lease.is_none() || beside.is_some();
        hold!(once, LEASED_ONCE, "{task} is leased as {:?} and as {lease}", attempt.lease);
        let mut all: baton_protocol::Resources =
            resources.iter().chain(pools).map(|(n, amount)| (n.clone(), *amount)).collect();
        let account = agent_account(id);
        if self.pools.is_account(&account) && !attempt.resources.contains_key(&account) {
            let paid = all.remove(&account);
            hold!(paid == Some(cost), CAPACITY, "{task} takes {paid:?} of {account}, and is to cost {cost}");
        }
        let same = all == attempt.resources || beside.is_some();
        hold!(same, CAPACITY, "{task} needs {:?} and holds {all:?}", attempt.resources);
        match beside {
            None => attempt.lease = Some(lease),
            Some(_) => attempt.second = Some(lease),
        }
        let ended = attempt.ended;
        if ended.is_some() {
            self.seen.push(Branch::DeadOnArrival);
        }
        let (what, requires) = (attempt.agent_type.clone(), attempt.requires.clone());
        let Some(agent) = self.agents.get_mut(id).filter(|agent| agent.gone.is_none()) else {
            return Err(super::broken(CAPACITY, format!("{task} is leased to {id}, who is not there")));
        };
        hold!(can(&agent.record, &what), CAPACITY, "{task} is leased to {id}, who can not do it");
        let fits = meets(&agent.record, &what, &requires);
        hold!(fits, REQUIRED, "{task} requires {requires} of {what}, and {id} is {:?}", agent.record.capabilities);
        agent.changed_on = now;
        self.breakers_assigned(stamp, id, &what, lease, ended)?;
        let held = Lease::new((task, id, resources), (seq, stamp.at, now), ended);
        self.leases.insert(lease, held);
        let agent = &self.agents[id];
        hold!(self.has_room(agent, None), CAPACITY, "{id} holds more than it has, with {task}");
        self.pools_assigned(stamp, lease, id, pools)?;
        if let Some(ended) = ended {
            // It had ended before it was leased, and the resource-manager will read that later.
            self.pools_ended_before(ended, lease);
        }
        Ok(())
    }

    fn lease_ended(&mut self, stamp: Stamp, record: &LeaseEnded) -> Checked {
        let now = self.now;
        let known = self.leases.get_mut(&record.lease).filter(|lease| lease.task == record.task);
        let Some(lease) = known.filter(|lease| lease.lost.is_none() && lease.ended.is_none_or(|at| at > stamp.seen))
        else {
            return Err(super::broken("every lease ends once", format!("lease {} had ended", record.lease)));
        };
        lease.lost = Some(self.seq);
        if record.silent {
            let run = self.runs.get(&record.task.run);
            let stage = run.and_then(|run| run.definition.stage(record.task.stage.as_str()));
            let Some(timeout) = stage.and_then(|stage| stage.heartbeat_timeout_ms) else {
                return Err(super::broken(SILENT, format!("{} may be silent", record.task)));
            };
            let term = self.writers.get(&Service::ResourceManager).map(|writer| writer.term);
            // What another leader heard is not known to this one, which has given it the whole time.
            let told = lease.told.filter(|(_, told_in, _)| Some(*told_in) == term).map_or(0, |(at, ..)| at);
            let due = lease.granted_at.max(told) + timeout;
            hold!(stamp.at >= due, SILENT, "{} was ended at {}, not {due}", record.task, stamp.at);
            self.seen.push(Branch::Silent);
        }
        self.probe_gone(record.lease, stamp.seen);
        if let Some(agent) = self.agents.get_mut(&record.agent) {
            agent.changed_on = now;
        }
        self.pools_lease_lost(record.lease);
        Ok(())
    }

    fn lose(&mut self, agent: &baton_protocol::AgentId) {
        let seq = self.seq;
        self.leases.values_mut().filter(|lease| lease.agent == *agent && lease.is_alive()).for_each(|lease| {
            lease.lost = Some(seq);
        });
    }
}

/// Whether a lease was lost as far as the log is read.
fn known_lost(leases: &std::collections::BTreeMap<LeaseId, Lease>, lease: LeaseId, seen: u64) -> bool {
    leases[&lease].lost.is_some_and(|lost| lost <= seen)
}

/// What is set aside for a task.
fn expected(definition: &baton_protocol::StageDefinition) -> baton_protocol::Amount {
    definition.budget.filter(|amount| !amount.is_zero()).unwrap_or_else(least)
}
