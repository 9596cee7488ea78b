//! What must hold, said in the words of the protocol: from the log, and from what was said to whom. Nothing in here knows how
//! the services are made.
//!
//! [`Facts`] folds the log in its own order. A rule that a service must have kept when it decided is held against what that
//! service had read by then (`seen`), not against what stood in the log already: two services write at the same time.

mod alerts;
mod answers;
mod breakers;
pub(crate) mod cache;
mod children;
mod copies;
pub(crate) mod early;
pub(crate) mod flow;
mod handoffs;
mod ledger;
mod operations;
mod pools;
mod pressure;
mod schedules;
mod tenants;
mod triggers;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use baton_protocol::amount::covers;
use baton_protocol::record::{AgentRegistered, Delegated, Outcome, Parent};
use baton_protocol::request::{Lesson, Report, Strategy};
use baton_protocol::run::{Metadata, RunStatus};
use baton_protocol::{
    AgentId, Budget, Capability, Definition, Json, LeaseId, Millis, Number, Requirements, Resources, RunId, Service,
    SignalName, TaskId, WorkflowName,
};

use baton_resource_manager::{AlertConfig, BreakerConfig, PressureConfig};

use alerts::Alerts;
pub(crate) use answers::Asked;
use breakers::{Breakers, meets};
use handoffs::Handoffs;
use pressure::Pressure;

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which rule: the same text for every history that breaks it.
    pub check: &'static str,
    /// How.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.text)
    }
}

pub(crate) type Checked = Result<(), Violation>;

pub(crate) fn broken(check: &'static str, text: impl Into<String>) -> Violation {
    Violation { check, text: text.into() }
}

macro_rules! hold {
    ($condition:expr, $check:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::check::broken($check, format!($($text)+)));
        }
    };
}
pub(crate) use hold;

/// What the log says so far.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// How many runs may be live at a time.
    max_live_runs: usize,
    /// How many runs may be a part of one over its whole life.
    max_parts: u32,
    /// The sequence of its last message.
    pub(crate) seq: u64,
    /// Virtual time of its last message, in microseconds.
    now: u64,
    /// The latest time in the log up to each message.
    times: Vec<[Millis; 3]>,
    writers: BTreeMap<Service, Writer>,
    definitions: BTreeMap<WorkflowName, Vec<(u64, Arc<Definition>)>>,
    pub(crate) runs: BTreeMap<RunId, Run>,
    agents: BTreeMap<AgentId, Agent>,
    /// Sessions that were said to be over.
    left: BTreeSet<(AgentId, String)>,
    pub(crate) leases: BTreeMap<LeaseId, Lease>,
    pub(crate) pools: pools::Pools,
    strategies: u64,
    /// Lessons that were imported.
    imported: Vec<Lesson>,
    /// The learning rate, once one is in the log, in millionths.
    learning_rate: Option<u32>,
    /// Every report that was ever sent, by the lease it names.
    reports: BTreeMap<LeaseId, Vec<(AgentId, Report)>>,
    /// Runs that somebody asked to be cancelled.
    cancels: BTreeSet<RunId>,
    words: words::Words,
    /// What was done and may be used again.
    done: Vec<cache::Done>,
    /// What attempts were given whose results may be used again.
    given: BTreeMap<TaskId, serde_json::Value>,
    breakers: Breakers,
    alerts: Alerts,
    handoffs: Handoffs,
    pressure: Pressure,
    tenants: tenants::Tenants,
    /// Workflows all of whose runs somebody asked to be cancelled.
    cancels_of: BTreeSet<WorkflowName>,
    /// Runs that somebody asked to be paused.
    pauses: BTreeSet<RunId>,
    schedules: schedules::Schedules,
    triggers: triggers::Triggers,
    /// How many runs that have ended are known at the least; for how long any is; for how long one too many is.
    keeps: (usize, Millis, Millis),
    /// When the calm began, in virtual microseconds.
    calm: Option<u64>,
    /// Rare things that the log shows, to be counted.
    pub(crate) seen: Vec<crate::coverage::Branch>,
}

#[derive(Debug, Default)]
struct Writer {
    /// Where its last message is.
    message: u64,
    next: Number,
    term: u64,
    instances: BTreeMap<u64, String>,
    at: Millis,
    seen: u64,
    handled: u64,
}

#[derive(Debug)]
pub(crate) struct Run {
    started: u64,
    started_at: Millis,
    /// The record that started it.
    started_by: Number,
    /// Virtual time, in microseconds.
    started_on: u64,
    pub(crate) workflow: WorkflowName,
    pub(crate) version: u32,
    key: Option<String>,
    strategy: Option<Strategy>,
    priority: i32,
    due: Option<Millis>,
    budget: Option<Budget>,
    definition: Arc<Definition>,
    input: Json,
    metadata: Metadata,
    /// Those of the definition, then the items of those that have a task for each.
    stages: Vec<Stage>,
    /// Of each place that is an item's: its stage, and which item.
    owners: Vec<(usize, u32)>,
    /// Where the items of a stage are, once they are known.
    fans: BTreeMap<usize, std::ops::Range<usize>>,
    /// The signals that it was given.
    signals: BTreeMap<SignalName, words::Given>,
    /// Results are used again in it.
    uses_cache: bool,
    /// A stage was cancelled: nothing but the end may follow.
    ending: bool,
    /// When it was paused, and when it went on.
    pauses: Vec<operations::Pause>,
    /// Which run it repeats.
    repeats: Option<RunId>,
    /// It is not listed any more.
    forgotten: bool,
    pub(crate) finished: Option<(u64, RunStatus)>,
    ended_at: Millis,
    /// Virtual time, in microseconds.
    ended_on: u64,
    /// The attempt that it makes at a stage of another run.
    pub(crate) parent: Option<Parent>,
    /// How many were a part of it so far, directly or through others, if it is a part of none.
    parts: u32,
    /// When that was over before it was, in virtual microseconds.
    orphaned_on: Option<u64>,
}

#[derive(Debug, Default)]
struct Stage {
    attempts: Vec<Attempt>,
    retry_at: Option<Millis>,
    /// When its last attempt ended.
    ended_at: Millis,
    over: Option<Outcome>,
    skipped: bool,
    result: Option<Json>,
    /// Why its last attempt failed, if a run made it or could not.
    code: Option<String>,
    /// What came of what was delegated, to be put together.
    gathered: Option<Json>,
    /// What began early of it.
    early: Option<early::Early>,
}

impl Stage {
    /// What a run is to do as its next attempt, because an agent said so.
    fn delegated(&self) -> Option<&Delegated> {
        self.attempts.last().filter(|attempt| attempt.ended.is_some())?.delegated.as_ref()
    }

    fn is_over(&self) -> bool {
        self.over.is_some() || self.skipped
    }
}

#[derive(Debug)]
struct Attempt {
    ready: u64,
    ready_at: Millis,
    /// Virtual time, in microseconds.
    ready_on: u64,
    agent_type: Capability,
    requires: Requirements,
    resources: Resources,
    /// The run that makes it, if no agent does.
    child: Option<RunId>,
    /// What its agent is given that was delegated before.
    gathered: Option<Json>,
    /// What its agent delegated.
    delegated: Option<Delegated>,
    /// It did not begin early, or it did and counts all the same.
    counts: bool,
    /// What its agent is given, if it began early.
    early: Option<serde_json::Value>,
    outcome: Option<Outcome>,
    lease: Option<LeaseId>,
    /// That of the second agent that is at it.
    second: Option<LeaseId>,
    /// The leases that it had before it was handed over, or was done by a second agent alone, in order.
    before: Vec<LeaseId>,
    ended: Option<u64>,
    /// Virtual time, in microseconds.
    ended_on: Option<u64>,
}

impl Attempt {
    /// One that begins at that place in the log, at that time of the writer's clock and that virtual time.
    fn begun((ready, ready_at, ready_on): (u64, Millis, u64), of: (Capability, Requirements, Resources)) -> Self {
        let (agent_type, requires, resources) = of;
        Self {
            ready,
            ready_at,
            ready_on,
            agent_type,
            requires,
            resources,
            child: None,
            gathered: None,
            delegated: None,
            counts: true,
            early: None,
            outcome: None,
            lease: None,
            second: None,
            before: Vec::new(),
            ended: None,
            ended_on: None,
        }
    }

    /// The same, of whoever does a stage.
    fn of_stage(when: (u64, Millis, u64), stage: &baton_protocol::StageDefinition) -> Self {
        Self::begun(when, (stage.agent_type.clone(), stage.requires.clone(), stage.resources.clone()))
    }
}

#[derive(Debug)]
struct Agent {
    record: AgentRegistered,
    /// Where it registered in this session.
    since: u64,
    gone: Option<u64>,
    /// Sessions that it had before.
    sessions: BTreeSet<String>,
    /// When its room last changed, in virtual microseconds.
    changed_on: u64,
}

#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) task: TaskId,
    pub(crate) agent: AgentId,
    resources: Resources,
    granted: u64,
    granted_at: Millis,
    /// Virtual time, in microseconds.
    pub(crate) granted_on: u64,
    /// Where the resource-manager said that its holder is gone, gave it back, or handed it over.
    lost: Option<u64>,
    /// It was handed over.
    moved: bool,
    /// When something was last told of its task: by the teller's leader's clock, in its term, in virtual microseconds.
    told: Option<(Millis, u64, u64)>,
    /// Where its task ended.
    ended: Option<u64>,
    /// What counted under it.
    outcome: Option<Outcome>,
    result: Option<Json>,
}

impl Attempt {
    /// Whether it waits for an agent.
    fn waits(&self) -> bool {
        self.ended.is_none() && self.lease.is_none() && self.child.is_none()
    }

    /// The first lease that it had: its time goes on when it is handed over.
    fn first(&self) -> Option<LeaseId> {
        self.before.first().copied().or(self.lease)
    }

    /// The lease that it has as far as the log is read.
    fn lease_at(&self, leases: &BTreeMap<LeaseId, Lease>, read: u64) -> Option<LeaseId> {
        self.before.iter().copied().chain(self.lease).rev().find(|lease| leases[lease].granted <= read)
    }
}

impl Lease {
    /// Granted by the message with this sequence, at this moment of virtual time; its task may have ended before.
    fn new(
        (task, agent, resources): (&TaskId, &AgentId, &Resources),
        (granted, granted_at, granted_on): (u64, Millis, u64),
        ended: Option<u64>,
    ) -> Self {
        let (task, agent, resources) = (task.clone(), agent.clone(), resources.clone());
        let (lost, moved, told, outcome, result) = (None, false, None, None, None);
        Self { task, agent, resources, granted, granted_at, granted_on, lost, moved, told, ended, outcome, result }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.lost.is_none() && self.ended.is_none()
    }
}

/// How late a wait may end, in microseconds: a new leader must be found first.
const LATE: u64 = 12_000_000;

/// A task must not wait longer than this while an agent that can do it idles, in the calm, in microseconds.
const PATIENCE: u64 = 10_000_000;

impl Facts {
    /// An empty log of services that let so many runs live at a time, open breakers so, raise alerts so, and are under pressure
    /// so.
    pub(crate) fn new(
        max_live_runs: usize,
        breakers: BreakerConfig,
        alerts: AlertConfig,
        pressure: PressureConfig,
    ) -> Self {
        let (breakers, alerts, pressure) = (Breakers::new(breakers), Alerts::new(alerts), Pressure::new(pressure));
        Self { max_live_runs, breakers, alerts, pressure, ..Self::default() }
    }

    /// From now on nothing is disturbed any more.
    pub(crate) fn calm(&mut self, now: u64) {
        self.calm = Some(now);
    }

    /// An agent sent a report.
    pub(crate) fn reported(&mut self, agent: &AgentId, report: &Report) {
        self.reports.entry(report.lease).or_default().push((agent.clone(), report.clone()));
    }

    /// Somebody asked for a run to be cancelled.
    pub(crate) fn cancel_asked(&mut self, run: RunId) {
        self.cancels.insert(run);
    }

    /// The leases of an agent that are alive.
    fn held(&self, agent: &AgentId) -> impl Iterator<Item = &Lease> {
        self.leases.values().filter(move |lease| lease.is_alive() && lease.agent == *agent)
    }

    /// What of a task's needs is of pools, and what of an agent's own.
    fn split(&self, needs: &Resources) -> (Resources, Resources) {
        needs.clone().into_iter().partition(|(name, amount)| !amount.is_zero() && self.pools.has(name))
    }

    /// Whether an agent has room for that beside what it holds.
    fn has_room(&self, agent: &Agent, more: Option<&Resources>) -> bool {
        let (mut slots, mut sum) = (0, Resources::new());
        let held: Vec<_> = self.held(&agent.record.agent).map(|lease| &lease.resources).chain(more).collect();
        for resources in held {
            slots += 1;
            for (name, amount) in resources {
                let entry = sum.entry(name.clone()).or_default();
                *entry = *entry + *amount;
            }
        }
        slots <= agent.record.slots && covers(&agent.record.resources, &sum).is_ok()
    }

    /// No task waits while an agent that can do it idles.
    pub(crate) fn nobody_idles(&self, now: u64) -> Checked {
        let Some(calm) = self.calm else { return Ok(()) };
        for (id, run) in self.runs.iter().filter(|(_, run)| run.finished.is_none() && !run.is_paused()) {
            for (_, stage, definition) in run.parts() {
                let Some(task) = stage.attempts.last().filter(|task| task.waits()) else { continue };
                let (of_pools, own) = self.split(&task.resources);
                if !self.pools.has_room(&of_pools) && !self.pools.must_act(&of_pools) {
                    continue;
                }
                if !of_pools.is_empty() && !self.pools.is_settled() {
                    continue;
                }
                for agent in self.agents.values().filter(|agent| agent.gone.is_none()) {
                    let pools = if of_pools.is_empty() { 0 } else { self.pools.changed_on };
                    let since = task.ready_on.max(agent.changed_on).max(run.resumed_on()).max(pools).max(calm);
                    if now.saturating_sub(since) > PATIENCE
                        && can(&agent.record, &task.agent_type)
                        && meets(&agent.record, &task.agent_type, &task.requires)
                        && self.is_let_through(&agent.record.agent, &task.agent_type)
                        && self.has_room(agent, Some(&own))
                        && (self.pools.must_act(&of_pools)
                            || self.pools.can_pay(&agent.record.agent, &of_pools, definition.budget))
                    {
                        let text = format!(
                            "stage {} of run {id} has waited for {} ms while {} has room for it",
                            definition.name,
                            (now - since) / 1000,
                            agent.record.agent
                        );
                        return Err(broken("no task waits while a capable agent idles", text));
                    }
                }
            }
        }
        Ok(())
    }

    /// The agents that are there, with their sessions.
    pub(crate) fn present(&self) -> impl Iterator<Item = (&AgentId, &String)> {
        self.agents.iter().filter(|(_, agent)| agent.gone.is_none()).map(|(id, agent)| (id, &agent.record.session))
    }

    /// The tasks that an agent has, and that a second one may be given; the leases that they have.
    pub(crate) fn hedged_tasks(&self) -> Vec<(TaskId, LeaseId)> {
        let may = |task: &TaskId| {
            let run = self.runs.get(&task.run)?;
            Some(run.definition(run.place_of(task)?).hedge)
        };
        let held = self.open_tasks().into_iter().filter(|task| may(task) == Some(true));
        held.filter_map(|task| self.attempt(&task)?.lease.map(|lease| (task, lease))).collect()
    }

    /// The tasks that have not ended.
    pub(crate) fn open_tasks(&self) -> Vec<TaskId> {
        let of_run = |(id, run): (&RunId, &Run)| {
            let open = |(_, stage, _): &(usize, &Stage, &baton_protocol::StageDefinition)| {
                stage.attempts.last().is_some_and(|attempt| attempt.ended.is_none() && attempt.child.is_none())
            };
            let open = run.parts().filter(open);
            let task = |(place, stage, definition): (usize, &Stage, &baton_protocol::StageDefinition)| TaskId {
                run: *id,
                stage: definition.name.clone(),
                item: run.item(place),
                attempt: u32::try_from(stage.attempts.len()).unwrap_or(u32::MAX),
            };
            open.map(task).collect::<Vec<_>>()
        };
        self.runs.iter().flat_map(of_run).collect()
    }

    /// How many tasks were never leased and have not ended, and may be leased.
    fn waiting(&self) -> usize {
        let going_on = self.runs.values().filter(|run| run.finished.is_none() && !run.is_paused());
        let parts = going_on.flat_map(Run::parts);
        parts.filter(|(_, stage, of)| !of.asks() && stage.attempts.last().is_some_and(Attempt::waits)).count()
    }

    /// The number of a service's last record.
    pub(crate) fn number(&self, service: Service) -> Number {
        self.writers.get(&service).map_or(0, |writer| writer.next.saturating_sub(1))
    }

    /// Every wait ends when it should, in the calm.
    pub(crate) fn nothing_waits_for_ever(&mut self, now: u64) -> Checked {
        let Some(calm) = self.calm else { return Ok(()) };
        self.alerts_are_so(now, calm)?;
        self.pressure_is_so(now, calm)?;
        self.breakers_half_open_in_time(now, calm)?;
        self.offers_are_over_in_time(now, calm)?;
        let late = |since: u64, ms: Millis| now.saturating_sub(since.max(calm)) > ms * 1000 + LATE;
        self.schedules_fire_in_time(calm, late)?;
        self.triggers_look_in_time(|since| late(since, 0))?;
        for (id, run) in self.runs.iter().filter(|(_, run)| run.finished.is_none()) {
            let orphaned = run.orphaned_on.is_some_and(|since| late(since, 0));
            hold!(!orphaned, children::PART, "run {id} goes on, and the stage that it did is over");
            let definition = &run.definition;
            hold!(!late(run.started_on, definition.timeout_ms), "nothing waits for ever", "run {id} goes on");
            for (place, stage, definition) in run.parts() {
                let Some(task) = stage.attempts.last().filter(|_| !stage.is_over()) else { continue };
                if run.is_paused() && !definition.asks() && (task.ended.is_some() || task.waits()) {
                    continue;
                }
                let name = &definition.name;
                let heard = run.heard_on(place).is_some_and(|on| late(on.max(task.ready_on), 0));
                hold!(!heard, "nothing waits for ever", "stage {name} of run {id} waits for a signal that came");
                // What came of it early, waits for what it depends on.
                if !task.counts && task.ended.is_some() {
                    continue;
                }
                let in_all = stage.attempts.iter().find(|task| task.counts).zip(definition.total_timeout_ms);
                // What was late while the run was paused ends when it goes on.
                let too_long =
                    in_all.is_some_and(|(first, total)| late(first.ready_on, total) && late(run.resumed_on(), 0));
                hold!(!too_long, "nothing waits for ever", "stage {name} of run {id} takes too long in all");
                if let Some(ended_on) =
                    task.child.filter(|_| task.ended.is_none()).and_then(|child| self.ended_on(child))
                {
                    let (what, name) = ("nothing waits for ever", &definition.name);
                    hold!(
                        !late(ended_on, 0),
                        what,
                        "stage {name} of run {id} goes on, and the run that does it has ended"
                    );
                }
                let (since, ms) = match (task.ended_on, task.first()) {
                    (None, _) if task.child.is_some() => (task.ready_on, definition.timeout_ms),
                    (Some(ended), _) => (ended.max(run.resumed_on()), definition.retry.max_ms),
                    (None, None) if definition.asks() => (task.ready_on, definition.timeout_ms),
                    (None, None) => (task.ready_on.max(run.resumed_on()), definition.start_timeout_ms),
                    (None, Some(lease)) => (self.leases[&lease].granted_on, definition.timeout_ms),
                };
                hold!(
                    !late(since, ms),
                    "nothing waits for ever",
                    "stage {name} of run {id} waits for more than {ms} ms"
                );
                let held = task.lease.filter(|_| task.ended.is_none()).map(|lease| &self.leases[&lease]);
                if let Some((held, silence)) = held.zip(definition.heartbeat_timeout_ms) {
                    let heard = held.told.map_or(0, |(_, _, on)| on).max(held.granted_on);
                    hold!(!late(heard, silence), "nothing waits for ever", "{name} of run {id} is held in silence");
                }
            }
        }
        Ok(())
    }

    /// How many runs have not ended.
    pub(crate) fn live(&self) -> usize {
        self.runs.values().filter(|run| run.finished.is_none()).count()
    }

    /// How many of them are counted by the limit: those that are a part of no other.
    fn live_alone(&self) -> usize {
        self.runs.values().filter(|run| run.finished.is_none() && run.parent.is_none()).count()
    }

    /// How many leases have not ended.
    pub(crate) fn alive(&self) -> usize {
        self.leases.values().filter(|lease| lease.is_alive()).count()
    }

    /// What must hold when everything has come to rest.
    pub(crate) fn at_rest(&self) -> Checked {
        self.triggers_at_rest()?;
        for (id, run) in &self.runs {
            hold!(run.finished.is_some(), "every accepted run has exactly one end", "run {id} has none");
        }
        for (id, lease) in &self.leases {
            hold!(!lease.is_alive(), "every lease ends", "lease {id} of {} has not ended", lease.task);
        }
        Ok(())
    }

    /// What still goes on, for whoever wonders why it does.
    pub(crate) fn unfinished(&self) -> String {
        let mut lines = Vec::new();
        for (id, run) in self.runs.iter().filter(|(_, run)| run.finished.is_none()) {
            for (_, stage, definition) in run.parts() {
                let state = match (stage.over, stage.attempts.last()) {
                    _ if stage.skipped => "skipped".to_owned(),
                    (Some(outcome), _) => format!("over, {outcome}"),
                    (None, None) => "not begun".to_owned(),
                    (None, Some(Attempt { ended: Some(_), .. })) => format!("to be tried again {:?}", stage.retry_at),
                    (None, Some(Attempt { lease: None, .. })) => "waits for an agent".to_owned(),
                    (None, Some(Attempt { lease: Some(lease), .. })) => {
                        format!("under lease {lease} of {}", self.leases[lease].agent)
                    }
                };
                lines.push(format!("run {id}: stage {} ({}): {state}", definition.name, stage.attempts.len()));
            }
        }
        lines.join("\n")
    }
}

/// Whether an agent can do what asks for that.
fn can(agent: &AgentRegistered, what: &Capability) -> bool {
    agent.agent_type == *what || agent.capabilities.contains_key(what)
}
