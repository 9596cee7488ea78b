//! What is to be done in a history: random workflows, agents, and clients' wishes.

use std::collections::BTreeMap;

use baton_protocol::budget::agent_account;
use baton_protocol::definition::{
    Approval, Cache, Definition, Estimate, ForEach, Join, Mapping, OnFailure, OnTimeout, Otherwise, RetryPolicy,
    Speculative, StageDefinition, WaitFor,
};
use baton_protocol::request::{Acquire, RegisterAgent, SpentBy, Strategy};
use baton_protocol::run::RunStatus;
use baton_protocol::schedule::Overlap;
use baton_protocol::trigger::{On, RunEnded, SignalBy, StartBy, Then};
use baton_protocol::{
    AgentId, Amount, AtLimit, Balance, Budget, Capability, EventName, Json, Measure, Metadata, Millis, Pool, PoolKind,
    Refill, Requirements, ResourceName, Resources, Schedule, ScheduleName, SignalName, StageName, Take, Takes, Trigger,
    TriggerName, WorkflowName,
};
use baton_resource_manager::{PressureConfig, PressureLimits};
use serde_json::json;

use crate::check::cache::CACHE_KEY;
use crate::check::early::ASSUMED;
use crate::check::flow::{CONDITIONS, INPUT, ITEM_INPUT, ITEMS, OUTPUT};
use crate::draws::Draws;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// To register a definition.
    Register(usize),
    /// To start a run of a workflow.
    Start { workflow: usize, own_id: bool, key: Option<u32>, placed: Placed },
    /// To cancel a run that it knows of.
    Cancel(u32),
    /// To cancel every run of a workflow.
    CancelAll(usize),
    /// To pause a run that it knows of.
    Pause(u32),
    /// To pause or to cancel a run that is a part of another one.
    OfPart(u32, bool),
    /// To let a run go on that it knows of.
    Resume(u32),
    /// To repeat a run that it knows of, from one of its stages on.
    Rerun(u32, u32),
    /// To decide on a stage of a run that it knows of, and how.
    Word(u32, u32, bool),
    /// To give a run that it knows of a signal, and what comes with it.
    Signal(u32, u32, u32),
    /// To see a run that it knows of.
    Get(u32),
    /// To see a run that does not exist.
    GetNothing,
    /// To see all runs.
    List,
    /// To see all agents.
    Agents,
    /// To change how tasks are placed.
    Strategy(Strategy),
    /// To see how tasks are placed, or what is to be expected of the queue.
    Placement,
    /// To see all alerts.
    Alerts,
    /// To see how much pressure there is.
    Pressure,
    /// To acknowledge the last alert, or the one after it.
    Acknowledge(bool),
    /// To find the best agents for something.
    Find(u32),
    /// To see why a stage of a run that it knows of is where it is.
    Explain(u32),
    /// To see what was learned.
    Learning,
    /// To import what was learned of an agent elsewhere.
    Import(u32),
    /// To see all pools.
    Pools,
    /// To make a pool, or to change its size.
    SetPool(usize, Option<u32>),
    /// To remove a pool.
    RemovePool(usize),
    /// To acquire something.
    Acquire(usize),
    /// To share out what is left of an account, by priority or by workload, named or not.
    Share(bool, bool),
    /// To give an account more that asks for it, or to say that it gets no more.
    Decide(u32, bool),
    /// To see what was spent.
    Spending(SpentBy),
    /// To lease some task to some agent, whether that is right or not.
    Assign(u32, u32),
    /// A second agent is to be given a task that another one has.
    Second(u32, u32),
    /// To make a schedule, or to change it back.
    SetSchedule(usize),
    /// To pause a schedule, or to let it go on.
    PauseSchedule(usize, bool),
    /// To remove a schedule.
    RemoveSchedule(usize),
    /// To see a schedule, or all of them.
    Schedules(Option<usize>),
    /// To make a trigger.
    SetTrigger(usize),
    /// To remove a trigger.
    RemoveTrigger(usize),
    /// To see all triggers.
    Triggers,
    /// To raise an event with this number in its id, as an agent or not.
    Raise(u32, Option<u32>),
    /// To have some task handed over, to some agent or to whoever has room for it.
    HandOver(u32, Option<u32>),
}

/// How a run's tasks are to be placed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) strategy: Option<Strategy>,
    pub(crate) due_ms: Option<Millis>,
    /// Larger goes first.
    pub(crate) priority: i32,
    /// The limit of what it may cost.
    pub(crate) limit: Option<u32>,
    /// No result is used again.
    pub(crate) no_cache: bool,
    /// Who it is for.
    pub(crate) tenant: Option<&'static str>,
}

/// What is to be done in a history.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) definitions: Vec<Definition>,
    pub(crate) agents: Vec<(AgentId, RegisterAgent)>,
    /// By agent: from when to when it fails all tasks of what it mainly does, in virtual microseconds.
    pub(crate) sick: Vec<Option<(u64, u64)>>,
    pub(crate) pools: Vec<NamedPool>,
    pub(crate) schedules: Vec<(ScheduleName, Schedule)>,
    pub(crate) triggers: Vec<(TriggerName, Trigger)>,
    /// How many of a thousand tasks agents delegate, and of those that put together what was delegated before.
    pub(crate) delegates: (u32, u32),
    /// What clients want to acquire.
    pub(crate) wanted: Vec<Wanted>,
    /// When, in virtual microseconds, and what.
    pub(crate) wishes: Vec<(u64, Wish)>,
    /// When there is pressure.
    pub(crate) pressure: PressureConfig,
    /// How much memory the services take, in per cent, and from when on, in virtual microseconds.
    pub(crate) memory: Vec<(u64, u32)>,
}

/// A pool that there may be.
#[derive(Debug)]
pub(crate) struct NamedPool {
    pub(crate) name: ResourceName,
    pub(crate) pool: Pool,
    /// Whether the settings declare it.
    pub(crate) declared: bool,
}

/// Something that is acquired, and how its holder behaves.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) request: Acquire,
    pub(crate) hold_ms: Millis,
    pub(crate) renews: bool,
    /// It is never given back.
    pub(crate) forgets: bool,
    /// What is used of budgets, if it is not all.
    pub(crate) used: Option<u32>,
}

/// The signals that there are.
pub(crate) const SIGNALS: [&str; 2] = ["go", "stop"];

/// The code that some failures bear.
pub(crate) const FLAKY: &str = "flaky";

const CAPABILITIES: [&str; 3] = ["a", "b", "c"];

fn capability(name: &str) -> Capability {
    Capability::new(name).expect("a valid name")
}

fn cpu(amount: u32) -> Resources {
    if amount == 0 {
        return Resources::new();
    }
    BTreeMap::from([(ResourceName::new("cpu").expect("a valid name"), Amount::from(amount))])
}

impl Workload {
    /// A random one, to be done within so many virtual microseconds.
    pub(crate) fn draw(draws: &mut Draws, length: u64) -> Self {
        let kinds = 1 + draws.below(3);
        // Mostly there is somebody for everything.
        let least = if draws.chance(100) { 1 } else { kinds };
        let kinds = kinds as usize;
        let agents: Vec<_> = (0..least + draws.below(3)).map(|n| agent(draws, n, kinds)).collect();
        let sick = agents.iter().map(|_| draws.chance(150).then(|| sick(draws, length))).collect();
        let pools = if draws.chance(600) { pools(draws, &agents) } else { Vec::new() };
        let mut definitions: Vec<_> = (0..1 + draws.below(3)).map(|n| definition(draws, n, kinds, &pools)).collect();
        if draws.chance(350) {
            nest(draws, &mut definitions, kinds, &pools);
        }
        let delegates = if draws.chance(300) { *draws.pick(&[(150, 100), (100, 300), (400, 980)]) } else { (0, 0) };
        let mut wishes: Vec<_> = (0..definitions.len()).map(|n| (1000 * n as u64, Wish::Register(n))).collect();
        let pressed = draws.chance(500);
        let pressure = if pressed { pressure(draws) } else { no_pressure() };
        let memory = |draws: &mut Draws| (draws.between(0, length), *draws.pick(&[20, 52, 58, 85, 95]));
        let memory = (0..if pressed { draws.below(4) } else { 0 }).map(|_| memory(draws)).collect();
        // Several that come at once are more than can be done at once.
        let rush = (pressed && draws.chance(500)).then(|| draws.between(0, length));
        for _ in 0..1 + draws.below(if rush.is_some() { 8 } else { 4 }) {
            let workflow = draws.below(u32::try_from(definitions.len()).unwrap_or(1)) as usize;
            let key = draws.chance(400).then(|| draws.below(3));
            let placed = Placed {
                strategy: draws.chance(400).then(|| *draws.pick(&Strategy::ALL)),
                due_ms: draws.chance(200).then(|| draws.between(1, 20_000)),
                priority: *draws.pick(&[0, 0, -1, 1, -2]),
                limit: draws.chance(150).then(|| draws.below(12)),
                no_cache: draws.chance(150),
                tenant: None,
            };
            let start = Wish::Start { workflow, own_id: draws.chance(300), key, placed };
            let at = match rush {
                Some(rush) => rush + draws.between(0, 500_000),
                None => draws.between(0, length),
            };
            wishes.push((at, start));
        }
        for _ in 0..draws.below(12) {
            let wish = match draws.below(26) {
                22 if draws.chance(300) => Wish::OfPart(draws.below(8), draws.chance(500)),
                22 => Wish::Pause(draws.below(4)),
                23 => Wish::Resume(draws.below(4)),
                24 => Wish::Rerun(draws.below(4), draws.below(5)),
                25 if draws.chance(300) => Wish::CancelAll(draws.below(3) as usize),
                25 => Wish::Pause(draws.below(4)),
                0 | 8 => Wish::Get(draws.below(4)),
                1 | 9 => Wish::List,
                10 | 11 => Wish::Assign(draws.below(64), draws.below(4)),
                2 => Wish::Cancel(draws.below(4)),
                3 => Wish::Agents,
                4 => Wish::Strategy(*draws.pick(&Strategy::ALL)),
                5 => Wish::Placement,
                6 => Wish::GetNothing,
                12 => Wish::Explain(draws.below(4)),
                13 => Wish::Learning,
                14 => Wish::Import(draws.below(4)),
                15 => Wish::Find(draws.below(3)),
                16 => Wish::Alerts,
                17 | 18 => Wish::Acknowledge(draws.chance(100)),
                19 | 20 => Wish::HandOver(draws.below(64), draws.chance(300).then(|| draws.below(4))),
                21 => Wish::Pressure,
                _ => Wish::Register(draws.below(u32::try_from(definitions.len()).unwrap_or(1)) as usize),
            };
            wishes.push((draws.between(0, length), wish));
        }
        if definitions.iter().flat_map(|definition| &definition.stages).any(StageDefinition::asks) {
            for _ in 0..draws.below(16) {
                let number = draws.below(4);
                let wish = match draws.chance(500) {
                    true => Wish::Word(number, draws.below(3), draws.chance(600)),
                    false => Wish::Signal(number, draws.below(2), draws.below(3)),
                };
                wishes.push((draws.between(0, length), wish));
            }
        }
        if draws.chance(250) {
            hedged(draws, &mut definitions);
            wishes.push((2000, Wish::Strategy(Strategy::Adaptive)));
            for _ in 0..draws.below(20) {
                wishes.push((draws.between(0, length), Wish::Second(draws.below(64), draws.below(4))));
            }
        }
        let mut all_wanted = Vec::new();
        if !pools.is_empty() {
            let made = pools.iter().enumerate().filter(|(_, pool)| !pool.declared).map(|(n, _)| n);
            wishes.extend(made.map(|n| (500 + 100 * n as u64, Wish::SetPool(n, None))));
            for _ in 0..draws.below(10) {
                wishes.push((draws.between(0, length), Wish::Acquire(all_wanted.len())));
                all_wanted.push(wanted(draws, &pools));
            }
            for _ in 0..draws.below(5) {
                let pool = draws.below(u32::try_from(pools.len()).unwrap_or(1)) as usize;
                let wish = match draws.below(4) {
                    0 | 1 => Wish::Pools,
                    2 => Wish::SetPool(pool, Some(draws.below(6))),
                    _ => Wish::RemovePool(pool),
                };
                wishes.push((draws.between(0, length), wish));
            }
            for _ in 0..draws.below(8) {
                let wish = match draws.below(4) {
                    0 => Wish::Share(draws.chance(500), draws.chance(500)),
                    1 => Wish::Spending(*draws.pick(&SpentBy::ALL)),
                    _ => Wish::Decide(draws.below(8), draws.chance(600)),
                };
                wishes.push((draws.between(0, length), wish));
            }
        }
        let schedules = if draws.chance(200) { schedules(draws, &definitions) } else { Vec::new() };
        for n in 0..schedules.len() {
            wishes.push((draws.between(5000, length / 3), Wish::SetSchedule(n)));
            for _ in 0..draws.below(4) {
                let wish = match draws.below(6) {
                    0 => Wish::PauseSchedule(n, true),
                    1 => Wish::PauseSchedule(n, false),
                    2 => Wish::RemoveSchedule(n),
                    3 => Wish::SetSchedule(n),
                    4 => Wish::Schedules(Some(n)),
                    _ => Wish::Schedules(None),
                };
                wishes.push((draws.between(0, length), wish));
            }
        }
        let triggers = if draws.chance(200) { triggers(draws, &definitions) } else { Vec::new() };
        for n in 0..triggers.len() {
            wishes.push((draws.between(5000, length / 3), Wish::SetTrigger(n)));
            for _ in 0..draws.below(4) {
                let wish = match draws.below(8) {
                    0 => Wish::RemoveTrigger(n),
                    1 => Wish::SetTrigger(n),
                    2 => Wish::Triggers,
                    _ => Wish::Raise(draws.below(4), draws.chance(300).then(|| draws.below(4))),
                };
                wishes.push((draws.between(0, length), wish));
            }
        }
        // Drawn from what is drawn already, so that other histories stay what they were.
        if length == CROWDED && !pressed {
            crowd(length, &mut definitions, &mut wishes);
        }
        Self {
            definitions,
            agents,
            sick,
            pools,
            schedules,
            triggers,
            delegates,
            wanted: all_wanted,
            wishes,
            pressure,
            memory,
        }
    }
}

/// The name under which events are raised here.
pub(crate) const EVENT: &str = "data_available";

/// Some, of which one may fail and others may not be meant.
fn triggers(draws: &mut Draws, definitions: &[Definition]) -> Vec<(TriggerName, Trigger)> {
    let one = |draws: &mut Draws, n: u32| {
        let (from, to) = (draws.pick(definitions).name.clone(), draws.pick(definitions).name.clone());
        let status = draws.chance(500).then_some(RunStatus::Succeeded);
        // Two that are for ends may double what goes round in a circle.
        let on = if n > 0 || draws.chance(400) {
            On::Event(EventName::new(EVENT).expect("a valid name"))
        } else {
            On::RunEnded(RunEnded { workflow: from, status })
        };
        let ends = matches!(on, On::RunEnded(_));
        let number = if ends { "size(event.id) > 0" } else { "event.data.n % 2 == 0" };
        let when = match draws.below(4) {
            0 => Some(number),
            1 => Some("event.data.missing == 1"),
            _ if ends => Some("event.at > 0"),
            _ => None,
        };
        let input =
            if ends { Mapping::Each([("n".to_owned(), "0".into())].into()) } else { Mapping::One("event.data".into()) };
        let signal = signal_by(draws, definitions);
        let start = StartBy {
            workflow: to,
            version: None,
            input: Some(input),
            priority: *draws.pick(&[0, 0, 1, -1]),
            strategy: None,
            due_ms: None,
            budget: None,
            metadata: BTreeMap::new(),
            no_cache: draws.chance(200),
        };
        let when = when.map(Into::into);
        let trigger =
            Trigger { on, when, then: signal.map_or(Then::Start(start), Then::Signal), paused: draws.chance(50) };
        (TriggerName::new(&format!("t{n}")).expect("a valid name"), trigger)
    };
    (0..1 + draws.below(3)).map(|n| one(draws, n)).collect()
}

/// What a trigger does that gives a signal, where a workflow waits for one.
fn signal_by(draws: &mut Draws, definitions: &[Definition]) -> Option<SignalBy> {
    let awaited = |of: &Definition| of.stages.iter().find_map(|stage| Some(stage.wait_for.as_ref()?.signal.clone()));
    let (workflow, signal) = definitions.iter().find_map(|of| Some((of.name.clone(), awaited(of)?)))?;
    let only = draws.chance(200).then(|| ("trigger".to_owned(), "\"t0\"".into()));
    let by = SignalBy { workflow, signal, runs: only.into_iter().collect(), payload: None };
    draws.chance(700).then_some(by)
}

/// One or two, with times every few seconds.
fn schedules(draws: &mut Draws, definitions: &[Definition]) -> Vec<(ScheduleName, Schedule)> {
    let one = |draws: &mut Draws, n: u32| {
        let definition = draws.pick(definitions);
        let by_cron = draws.chance(300);
        let schedule = Schedule {
            workflow: definition.name.clone(),
            version: None,
            cron: by_cron.then(|| (*draws.pick(&["*/3 * * * * *", "*/4 * * * * *"])).to_owned()),
            time_zone: by_cron.then(|| (*draws.pick(&["Europe/Berlin", "America/New_York"])).to_owned()),
            every_ms: (!by_cron).then(|| draws.between(2000, 5000)),
            input: Json::of(&json!({ "n": 0 })).unwrap_or_default(),
            priority: *draws.pick(&[0, 0, 1, -1]),
            strategy: None,
            due_ms: None,
            budget: None,
            metadata: BTreeMap::new(),
            no_cache: draws.chance(200),
            overlap: *draws.pick(&[Overlap::Skip, Overlap::Skip, Overlap::Allow, Overlap::Cancel]),
            late_ms: draws.chance(300).then(|| draws.between(0, 1500)),
            paused: false,
        };
        (ScheduleName::new(&format!("s{n}")).expect("a valid name"), schedule)
    };
    (0..1 + draws.below(2)).map(|n| one(draws, n)).collect()
}

/// How long the faults go on in histories where tenants come, in virtual microseconds.
const CROWDED: u64 = 9_000_000;

/// Tenants, how many runs of one task each they bring, and their weights.
pub(crate) const TENANTS: [(&str, u64, u32); 3] = [("ann", 16, 1), ("bob", 10, 2), ("cas", 6, 1)];

/// Tenants bring the like at once.
fn crowd(length: u64, definitions: &mut Vec<Definition>, wishes: &mut Vec<(u64, Wish)>) {
    // Where nobody can do it, or be paid for it, that must come to an end.
    let ends = |stage: &mut StageDefinition| (stage.start_timeout_ms, stage.timeout_ms) = (15_000, 12_000);
    let definition = Definition::builder("crowd").add_stage("work", CAPABILITIES[0], &[]).with(ends).build();
    let workflow = definitions.len();
    definitions.push(definition.expect("it has one stage"));
    wishes.push((2000, Wish::Register(workflow)));
    for (later, (tenant, runs, _)) in (0..).zip(TENANTS) {
        let placed = Placed { tenant: Some(tenant), ..Placed::default() };
        for run in 0..runs {
            let start = Wish::Start { workflow, own_id: true, key: None, placed };
            wishes.push((length / 3 + 30_000 * later + 100 * run, start));
        }
    }
}

/// There is pressure as soon as a few tasks wait.
fn pressure(draws: &mut Draws) -> PressureConfig {
    let elevated = PressureLimits {
        queue: *draws.pick(&[1, 2, 3]),
        per_slot: *draws.pick(&[0, 1, 2]),
        memory_percent: 55,
        below: 0,
    };
    let critical = PressureLimits {
        queue: *draws.pick(&[0, 3, 5]),
        per_slot: *draws.pick(&[0, 0, 3]),
        memory_percent: 90,
        below: 1,
    };
    PressureConfig { elevated, critical, longest_ms: *draws.pick(&[2500, 2500, 600]) }
}

fn no_pressure() -> PressureConfig {
    let (elevated, critical) = (PressureLimits::default(), PressureLimits::default());
    PressureConfig { elevated, critical, ..PressureConfig::default() }
}

/// One of each kind, and accounts that are a part of one another, some of them agents'.
fn pools(draws: &mut Draws, agents: &[(AgentId, RegisterAgent)]) -> Vec<NamedPool> {
    let name = |name: &str| ResourceName::new(name).expect("a valid name");
    let declared = draws.chance(500);
    let size = |draws: &mut Draws, most: u32| Some(Amount::from(most - draws.below(most)));
    let held = Pool { size: size(draws, 4), ..Pool::lock() };
    let every_ms = draws.between(200, 2000);
    let refill = Some(Refill { amount: Amount::from(1 + draws.below(3)), every_ms });
    let refilled = Pool { kind: PoolKind::Refilled, size: size(draws, 5), refill, ..Pool::lock() };
    // In some histories tasks use what they say that they cost.
    let cost = draws.chance(500);
    let (measure, currency) = (cost.then_some(Measure::Cost), cost.then(|| "EUR".to_owned()));
    let consumed =
        move |size| Pool { kind: PoolKind::Consumed, size, measure, currency: currency.clone(), ..Pool::lock() };
    // Mostly there is enough; what is spent does not come back.
    let most = if draws.chance(300) { 12 } else { 200 };
    let limited = |draws: &mut Draws, pool: Pool| {
        let at_limit = *draws.pick(&[AtLimit::Wait, AtLimit::Wait, AtLimit::Fail, AtLimit::Ask]);
        Pool { at_limit, ..pool }
    };
    let whole = size(draws, most);
    // In some, what is left of it is shared out again and again.
    let balance = draws.chance(200).then(|| Balance { minimum: Amount::from(1), every_ms: draws.between(1000, 4000) });
    let whole = Pool { balance, ..limited(draws, consumed(whole)) };
    let part = |draws: &mut Draws| {
        let size = size(draws, most);
        limited(draws, Pool { parent: Some(name("budget")), ..consumed(size) })
    };
    let all = [
        ("gpu", held),
        ("lock:report", Pool::lock()),
        ("model:x/per_minute", refilled),
        ("budget", whole),
        ("budget/a", part(draws)),
        ("budget/b", part(draws)),
    ];
    let mut all: Vec<_> = all.into_iter().map(|(text, pool)| NamedPool { name: name(text), pool, declared }).collect();
    for (agent, _) in agents {
        if cost && draws.chance(250) {
            all.push(NamedPool { name: agent_account(agent), pool: part(draws), declared });
        }
    }
    all
}

/// Something that somebody wants of pools.
pub(crate) fn wanted(draws: &mut Draws, pools: &[NamedPool]) -> Wanted {
    let mut take = Takes::new();
    for _ in 0..1 + draws.below(2) {
        let pool = draws.pick(pools);
        let alone = pool.pool.kind == PoolKind::Held && draws.chance(300);
        let amount = Take::Amount(Amount::from(1 + draws.below(3)));
        take.insert(pool.name.clone(), if alone { Take::Exclusive } else { amount });
    }
    let wait_ms = if draws.chance(600) { draws.between(1, 4000) } else { 0 };
    let request = Acquire {
        wait_ms,
        ttl_ms: draws.between(300, 3000),
        priority: i32::try_from(draws.below(3)).unwrap_or(0),
        client: Some("sim".to_owned()),
        ..Acquire::new("a", take)
    };
    Wanted {
        request,
        hold_ms: draws.between(1, 1500),
        renews: draws.chance(300),
        forgets: draws.chance(250),
        used: draws.chance(400).then(|| draws.below(6)),
    }
}

/// What the main capability of an agent is like. Most agents are what most stages require.
fn metadata(draws: &mut Draws) -> Metadata {
    let algorithms = draws.pick::<&[&str]>(&[&["x", "y"], &["x", "y"], &["x"], &[]]);
    let size = u64::from(8 - draws.below(8));
    let version = format!("1.{}.0", 4 - draws.below(4));
    [
        ("algorithms".to_owned(), json!(algorithms)),
        ("size".to_owned(), json!(size)),
        ("version".to_owned(), json!(version)),
    ]
    .into()
}

/// What a stage requires of such an agent.
fn requires(draws: &mut Draws) -> Requirements {
    let mut requires = Requirements::none();
    let wanted = match draws.below(4) {
        0 => ("algorithms", json!(["x"])),
        1 => ("algorithms", json!(["y", "x"])),
        2 => ("size", json!(format!(">= {}", 1 + draws.below(6)))),
        _ => ("version", json!(format!("^1.{}", 1 + draws.below(3)))),
    };
    requires.add(wanted.0, wanted.1).expect("it can be asked for");
    requires
}

/// From when to when an agent is sick.
fn sick(draws: &mut Draws, length: u64) -> (u64, u64) {
    let from = draws.between(0, length / 2);
    (from, from + draws.between(length / 8, length))
}

fn agent(draws: &mut Draws, number: u32, kinds: usize) -> (AgentId, RegisterAgent) {
    let id = AgentId::new(&format!("agent-{number}")).expect("a valid id");
    let main = CAPABILITIES[number as usize % kinds];
    let also = draws.chance(400).then(|| (capability(draws.pick::<&str>(&CAPABILITIES)), BTreeMap::new()));
    let mut capabilities: BTreeMap<_, _> = also.into_iter().collect();
    if !draws.chance(100) {
        capabilities.insert(capability(main), metadata(draws));
    }
    let registration = RegisterAgent {
        session: String::new(),
        agent_type: capability(main),
        capabilities,
        resources: cpu(4 - draws.below(4)),
        slots: 1 + draws.below(4),
        priority: 0,
        batches: draws.chance(500),
    };
    (id, registration)
}

fn definition(draws: &mut Draws, number: u32, kinds: usize, pools: &[NamedPool]) -> Definition {
    let count = 1 + draws.below(5) as usize;
    let name = |n: usize| StageName::new(&format!("s{n}")).expect("a valid name");
    let stages: Vec<_> = (0..count)
        .map(|n| {
            let mut depends_on = Vec::new();
            for other in (0..n).rev().take(3) {
                if draws.below(5) < 2 {
                    depends_on.push(name(other));
                }
            }
            let nobody_can = draws.chance(20);
            StageDefinition {
                name: name(n),
                agent_type: if nobody_can {
                    capability("z")
                } else {
                    capability(draws.pick::<&str>(&CAPABILITIES[..kinds]))
                },
                workflow: None,
                workflow_version: None,
                requires: if draws.chance(150) { requires(draws) } else { Requirements::none() },
                depends_on,
                join: Join::default(),
                when: None,
                approval: None,
                wait_for: None,
                for_each: None,
                parallel: !draws.chance(120),
                optional: draws.chance(200),
                on_failure: OnFailure::default(),
                input: None,
                output: None,
                cache: None,
                speculative: None,
                hedge: false,
                input_schema: None,
                output_schema: None,
                params: BTreeMap::new(),
                resources: needs(draws, pools),
                budget: draws.chance(300).then(|| Amount::from(draws.below(4))),
                estimate: draws.chance(200).then(|| Estimate {
                    duration_ms: draws.chance(500).then(|| draws.between(1, 5000)),
                    size: draws.chance(500).then(|| draws.between(0, 1_000_000)),
                    ..Estimate::default()
                }),
                priority: *draws.pick(&[0, 0, 0, 0, 1, -1]),
                due_ms: draws.chance(100).then(|| draws.between(500, 20_000)),
                retry: RetryPolicy {
                    max_attempts: 4 - draws.below(4),
                    initial_ms: draws.between(0, 800),
                    factor: 2.0,
                    max_ms: 3000,
                    jitter: 0.2,
                    non_retryable: Vec::new(),
                },
                start_timeout_ms: millis(draws, 15_000, 2_000),
                timeout_ms: millis(draws, 12_000, 1_500),
                heartbeat_timeout_ms: None,
                total_timeout_ms: None,
            }
        })
        .collect();
    let mut definition = Definition {
        name: WorkflowName::new(&format!("w{}", number % 2)).expect("a valid name"),
        description: None,
        metadata: BTreeMap::new(),
        timeout_ms: millis(draws, 60_000, 5_000),
        budget: draws.chance(250).then(|| budget(draws)),
        input_schema: None,
        stages,
    };
    for stage in &mut definition.stages {
        if draws.chance(150) {
            // Long before its time is up.
            (stage.heartbeat_timeout_ms, stage.timeout_ms) = (Some(draws.between(400, 3_000)), 60_000);
        }
    }
    if draws.chance(500) {
        flow(draws, &mut definition);
    }
    definition
}

/// Stages whose tasks may be given to two agents.
fn hedged(draws: &mut Draws, definitions: &mut [Definition]) {
    for stage in definitions.iter_mut().flat_map(|definition| &mut definition.stages) {
        stage.hedge = stage.has_agent() && stage.speculative.is_none() && draws.chance(700);
    }
}

/// A stage instead of this one that no agent has.
fn asks(draws: &mut Draws, stage: &StageDefinition) -> StageDefinition {
    let otherwise = |draws: &mut Draws| if draws.chance(500) { Otherwise::Fail } else { Otherwise::Continue };
    let approval = draws.chance(600).then(|| Approval {
        ask: None,
        on_reject: otherwise(draws),
        on_timeout: *draws.pick(&[OnTimeout::Fail, OnTimeout::Approve, OnTimeout::Reject]),
    });
    let signal = SignalName::new(SIGNALS[draws.below(2) as usize]).expect("a valid name");
    let wait_for = approval.is_none().then(|| WaitFor { signal, on_timeout: otherwise(draws) });
    let asks = Definition::builder("w").add_approval(stage.name.as_str(), Approval::default(), &[]).build();
    let plain = asks.expect("it is right").stages.remove(0);
    StageDefinition {
        approval,
        wait_for,
        depends_on: stage.depends_on.clone(),
        join: stage.join,
        when: stage.when.clone(),
        parallel: stage.parallel,
        optional: stage.optional,
        timeout_ms: draws.between(300, 12_000),
        ..plain
    }
}

impl Workload {
    /// Whether who puts together what was delegated nearly always finds that more is to be done.
    pub(crate) fn delegates_for_ever(&self) -> bool {
        self.delegates.1 > 900
    }
}

/// Stages that runs do: of a workflow of its own, or of each other's, without end.
fn nest(draws: &mut Draws, definitions: &mut Vec<Definition>, kinds: usize, pools: &[NamedPool]) {
    let name = |number: u32| WorkflowName::new(&format!("w{number}")).expect("a valid name");
    let inner = Definition { name: name(2), ..definition(draws, 2, kinds, pools) };
    for definition in definitions.iter_mut() {
        let place = draws.below(u32::try_from(definition.stages.len()).unwrap_or(1)) as usize;
        let other = if definition.name == name(0) { name(1) } else { name(0) };
        let before = definition.clone();
        let stage = &mut definition.stages[place];
        let endless = draws.chance(400) && stage.for_each.is_none();
        stage.agent_type = Definition::builder("w")
            .add_workflow("s", "w2", &[])
            .build()
            .map_or_else(|_| capability("z"), |nobody| nobody.stages[0].agent_type.clone());
        stage.workflow = Some(if endless { other } else { inner.name.clone() });
        stage.workflow_version = draws.chance(150).then(|| 1 + draws.below(2));
        stage.requires = Requirements::none();
        (stage.resources, stage.estimate, stage.cache, stage.speculative) = (Resources::new(), None, None, None);
        stage.hedge = false;
        (stage.start_timeout_ms, stage.heartbeat_timeout_ms) = (60 * 60 * 1000, None);
        stage.timeout_ms = millis(draws, 40_000, 1_500);
        if stage.for_each.is_some() && stage.input.is_none() {
            let pairs = ITEM_INPUT.map(|(key, value)| (key.to_owned(), value.into()));
            stage.input = Some(Mapping::Each(pairs.into()));
        }
        if definition.check().is_err() {
            *definition = before;
        }
    }
    definitions.push(inner);
}

/// Conditions, joins, mappings, schemas, and what failures lead to.
fn flow(draws: &mut Draws, definition: &mut Definition) {
    let count = definition.stages.len();
    for n in 0..count {
        let stage = &mut definition.stages[n];
        let first = stage.depends_on.first().cloned();
        if draws.chance(350) {
            let drawn = if first.is_some() { draws.below(5) as usize } else { 0 };
            let name = first.as_ref().map_or("", |name| name.as_str());
            stage.when = Some(CONDITIONS[drawn].replace('?', name).as_str().into());
        }
        let mapping = |pairs: [(&str, &str); 2], name: &str| {
            Mapping::Each(pairs.map(|(key, value)| (key.to_owned(), value.replace('?', name).as_str().into())).into())
        };
        let name = first.as_ref().map_or("", |name| name.as_str());
        if draws.chance(250) {
            let drawn = draws.below(if first.is_some() { 3 } else { 2 }) as usize;
            stage.for_each = Some(ForEach {
                items: ITEMS[drawn].replace('?', name).as_str().into(),
                max_parallel: draws.chance(400).then(|| 1 + draws.below(2)),
                max_failures: draws.below(3),
            });
            stage.input = draws.chance(400).then(|| mapping(ITEM_INPUT, ""));
            stage.join = if first.is_some() { Join::Always } else { Join::Any };
        } else if let Some(first) = &first {
            stage.join = *draws.pick(&[Join::Any, Join::All, Join::Any, Join::Always]);
            stage.input = draws.chance(250).then(|| mapping(INPUT, first.as_str()));
        }
        stage.output = draws.chance(250).then(|| mapping(OUTPUT, ""));
        stage.output_schema = draws.chance(250).then(|| json!({ "type": "object" }));
        if draws.chance(250) {
            stage.retry.non_retryable = vec![FLAKY.to_owned(), "lost".to_owned()];
        }
        if draws.chance(250) {
            stage.total_timeout_ms = Some(draws.between(800, 9_000));
        }
        if stage.for_each.is_none() && draws.chance(250) {
            let keyed = stage.output.is_some() || draws.chance(600);
            let key = keyed.then(|| CACHE_KEY.into());
            stage.cache = Some(Cache { ttl_ms: draws.between(500, 15_000), key });
        }
        let may_be_early = stage.for_each.is_none() && stage.cache.is_none() && stage.parallel && stage.input.is_some();
        if may_be_early && draws.chance(800) {
            let others = stage.depends_on.clone();
            let assumed = others.into_iter().enumerate().filter(|(n, _)| *n == 0 || draws.chance(500));
            let assume = assumed.map(|(_, name)| (name, ASSUMED.into())).collect();
            (stage.speculative, stage.hedge) = (Some(Speculative { assume }), false);
        }
        if draws.chance(150) {
            *stage = asks(draws, stage);
        }
        let before = definition.clone();
        let fallback = n + 1 + draws.below(2) as usize;
        let stage = &mut definition.stages[n];
        match draws.below(4) {
            1 if !stage.optional => stage.on_failure = OnFailure::Continue,
            2 if !stage.optional && fallback < count => {
                stage.on_failure = OnFailure::Fallback(before.stages[fallback].name.clone());
            }
            _ => {}
        }
        // Two of one fallback, or a circle.
        if definition.check().is_err() {
            *definition = before;
        }
    }
    for n in 0..count {
        let OnFailure::Fallback(name) = definition.stages[n].on_failure.clone() else { continue };
        if let Some(fallback) = definition.stages.iter_mut().find(|stage| stage.name == name) {
            (fallback.when, fallback.join, fallback.speculative) = (None, Join::Any, None);
        }
    }
}

/// What a run may cost.
fn budget(draws: &mut Draws) -> Budget {
    let name = |name: &str| ResourceName::new(name).expect("a valid name");
    let of = draws.pick::<&str>(&["budget", "budget/a", "budget/b", "nothing"]);
    let of = Some(name(of)).filter(|_| draws.chance(700));
    let limit = Some(Amount::from(draws.below(20))).filter(|_| of.is_none() || draws.chance(700));
    let at_limit = *draws.pick(&[AtLimit::Wait, AtLimit::Fail, AtLimit::Ask]);
    Budget {
        currency: limit
            .filter(|_| of.is_none())
            .map(|_| (*draws.pick::<&str>(&["EUR", "EUR", "EUR", "USD"])).to_owned()),
        at_limit: if limit.is_some() { at_limit } else { AtLimit::Wait },
        limit,
        of,
    }
}

/// What a stage needs, of an agent's own and of pools.
fn needs(draws: &mut Draws, pools: &[NamedPool]) -> Resources {
    let mut resources = if draws.chance(250) { cpu(1 + draws.below(3)) } else { Resources::new() };
    if !pools.is_empty() && draws.chance(300) {
        let pool = draws.pick(pools);
        resources.insert(pool.name.clone(), Amount::from(1 + draws.below(2)));
    }
    resources
}

/// The dull length of time, or a shorter one.
fn millis(draws: &mut Draws, dull: Millis, least: Millis) -> Millis {
    if draws.chance(300) { draws.between(least, dull) } else { dull }
}
