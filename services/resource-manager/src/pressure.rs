//! Pressure: when more is to be done than can be, what matters least waits first.
//!
//! It is judged by what is counted anyway, so that to look costs a few comparisons: how many tasks wait for an agent, how
//! many slots there are, how much memory the process takes. The last is not in the log: like the time it is given to the
//! leader with each turn, and what is decided by it is written down ([`PressureChanged`]).
//!
//! Each level is reached at a limit and left some way below it, so that it does not come and go. The record says how long
//! that is expected to take, by how fast tasks have been leased lately; where it takes longer it is written once more.

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Reply, Turn, answer};
use baton_protocol::alert::{AlertKind, AlertSeverity};
use baton_protocol::pressure::{PressureCause, PressureChanged, PressureLevel, PressureView};
use baton_protocol::record::{ResourceRecord, Stamp};
use baton_protocol::{Code, Millis, Rejection, TaskId};
use serde::{Deserialize, Serialize};

use crate::task::Open;
use crate::{ResourceManager, alert};

/// What the alert is about.
const ABOUT: &str = "pressure";
/// Of a limit of tasks, how much is left of it where the level falls.
const FALLS_PERCENT: u64 = 80;
/// So much below the limit of memory the level falls. It is little: a process gives memory back late.
const FALLS_MEMORY: u32 = 5;
/// When pressure is expected to fall: at the least, at the most, and where that can not be told, from now on.
const FALLS_MS: (Millis, Millis, Millis) = (1000, 60_000, 5000);
/// Over how long it is counted how many tasks are leased.
const WINDOW_MS: Millis = 5000;

/// When there is pressure, and what it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PressureConfig {
    /// When it is elevated.
    pub elevated: PressureLimits,
    /// When it is critical.
    pub critical: PressureLimits,
    /// How long a task waits for that at the most, from when it was ready, in milliseconds.
    pub longest_ms: Millis,
}

/// When a level is reached: as soon as one of these limits is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PressureLimits {
    /// So many tasks wait for an agent; 0: any number may.
    pub queue: u64,
    /// So many tasks wait for each slot of the agents that are there; 0: any number may.
    pub per_slot: u64,
    /// The process takes so much of the memory that it may take, in per cent; 0: it may take all.
    pub memory_percent: u32,
    /// Runs of less priority are refused, and tasks of less wait.
    pub below: i32,
}

impl Default for PressureConfig {
    fn default() -> Self {
        Self {
            elevated: PressureLimits { queue: 1000, per_slot: 100, memory_percent: 80, below: 0 },
            critical: PressureLimits { queue: 100_000, per_slot: 0, memory_percent: 90, below: 1 },
            longest_ms: 300_000,
        }
    }
}

/// What is judged.
#[derive(Debug, Clone, Copy)]
struct Measured {
    waiting: u64,
    slots: u64,
    memory: Option<u32>,
}

impl PressureLimits {
    /// How many tasks may wait, as long as there are so many slots; none: any number.
    fn tasks(&self, slots: u64) -> [(PressureCause, Option<u64>); 2] {
        let limit = |most: u64| (most > 0).then_some(most);
        let per_slot = self.per_slot.saturating_mul(slots.max(1));
        [(PressureCause::Queue, limit(self.queue)), (PressureCause::Slots, limit(per_slot))]
    }

    /// The limits that are reached; where the level holds already, those that it is not far enough below of.
    fn reached(&self, measured: Measured, holds: bool) -> impl Iterator<Item = PressureCause> {
        let holds = holds && !is_planted(Bug::PressureFallsAtOnce);
        let Measured { waiting, slots, memory } = measured;
        let tasks = self
            .tasks(slots)
            .into_iter()
            .filter(move |(_, limit)| limit.is_some_and(|limit| waiting >= if holds { floor(limit) } else { limit }));
        let less = if holds { FALLS_MEMORY } else { 0 };
        let most = self.memory_percent;
        let memory = memory.filter(|taken| most > 0 && taken.saturating_add(less) >= most);
        tasks.map(|(cause, _)| cause).chain(memory.map(|_| PressureCause::Memory))
    }
}

/// As many of a limit as must be left for the level to hold.
fn floor(limit: u64) -> u64 {
    limit.saturating_mul(FALLS_PERCENT).div_ceil(100)
}

impl PressureConfig {
    /// The limits of a level that is one.
    fn limits(&self, level: PressureLevel) -> Option<&PressureLimits> {
        match level {
            PressureLevel::None => None,
            PressureLevel::Elevated => Some(&self.elevated),
            PressureLevel::Critical => Some(&self.critical),
        }
    }

    /// The level after this one.
    fn judge(&self, before: PressureLevel, measured: Measured) -> PressureLevel {
        let reached = |level: PressureLevel| {
            let limits = self.limits(level);
            limits.is_some_and(|limits| limits.reached(measured, before >= level).next().is_some())
        };
        let levels = [PressureLevel::Critical, PressureLevel::Elevated];
        levels.into_iter().find(|level| reached(*level)).unwrap_or(PressureLevel::None)
    }
}

/// How much pressure there is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Pressure {
    /// None: there is none.
    stands: Option<Standing>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Standing {
    /// Since when it is at this level.
    since: Millis,
    record: PressureChanged,
}

impl Pressure {
    pub(crate) fn changed(&mut self, stamp: Stamp, record: &PressureChanged) {
        let same = self.stands.take().filter(|before| before.record.level == record.level);
        let since = same.map_or(stamp.at, |before| before.since);
        self.stands = (record.level > PressureLevel::None).then(|| Standing { since, record: record.clone() });
    }

    pub(crate) fn level(&self) -> PressureLevel {
        self.record().map_or(PressureLevel::None, |record| record.level)
    }

    fn record(&self) -> Option<&PressureChanged> {
        self.stands.as_ref().map(|stands| &stands.record)
    }

    /// When to look again, if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.record().map(|record| record.until)
    }
}

/// How fast tasks are leased: how many in what time.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    since: Option<Millis>,
    tasks: u64,
    /// In the time before that.
    before: (Millis, u64),
}

impl Drain {
    /// So many were leased now.
    pub(crate) fn note(&mut self, now: Millis, tasks: u32) {
        let since = *self.since.get_or_insert(now);
        if now.saturating_sub(since) >= WINDOW_MS {
            self.before = (now - since, self.tasks);
            (self.since, self.tasks) = (Some(now), 0);
        }
        self.tasks += u64::from(tasks);
    }

    /// How long so many will take at that; none: that can not be told.
    fn time_for(&self, tasks: u64, now: Millis) -> Option<Millis> {
        let ms = now.saturating_sub(self.since?) + self.before.0;
        let leased = self.tasks + self.before.1;
        tasks.saturating_mul(ms.max(1)).checked_div(leased)
    }
}

/// Looks whether there is more pressure than before, or less.
pub(crate) fn look(turn: &mut Turn<'_, ResourceManager>) {
    let measured = measure(turn);
    let (before, config) = (turn.state().pressure.level(), turn.config());
    let mut level = config.pressure.judge(before, measured);
    if is_planted(Bug::PressureNeverFalls) {
        level = level.max(before);
    }
    let Some(limits) = config.pressure.limits(level) else {
        if before > PressureLevel::None {
            let over = unlimited(turn, level, measured);
            change(turn, before, &over);
        }
        return;
    };
    let (below, longest_ms, now) = (limits.below, config.pressure.longest_ms, turn.now());
    let as_before = turn.state().pressure.record().is_some_and(|record| {
        (record.level, record.below, record.longest_ms) == (level, below, longest_ms) && now < record.until
    });
    if as_before {
        return;
    }
    let causes = limits.reached(measured, before >= level).collect();
    let until = falls_at(turn, limits, measured);
    let record = PressureChanged { causes, below, longest_ms, until, ..unlimited(turn, level, measured) };
    change(turn, before, &record);
}

fn measure(turn: &Turn<'_, ResourceManager>) -> Measured {
    let state = turn.state();
    Measured { waiting: state.tasks.waiting() as u64, slots: state.agents.slots(), memory: turn.memory_percent() }
}

/// What is to be said of a level, but for what follows from its limits.
fn unlimited(turn: &Turn<'_, ResourceManager>, level: PressureLevel, measured: Measured) -> PressureChanged {
    let Measured { waiting, slots, memory: memory_percent } = measured;
    let (below, longest_ms, until) = (0, 0, turn.now());
    PressureChanged { level, causes: Vec::new(), below, longest_ms, until, waiting, slots, memory_percent }
}

/// When the level is expected to fall.
fn falls_at(turn: &Turn<'_, ResourceManager>, limits: &PressureLimits, measured: Measured) -> Millis {
    let (now, (least, most, unknown)) = (turn.now(), FALLS_MS);
    let floors = limits.tasks(measured.slots).into_iter().filter_map(|(_, limit)| limit.map(floor));
    let excess = floors.map(|floor| (measured.waiting + 1).saturating_sub(floor)).max().unwrap_or(0);
    let wait = if excess > 0 { turn.soft.drain.time_for(excess, now) } else { None };
    now.saturating_add(wait.unwrap_or(unknown).clamp(least, most))
}

/// The alert stands before what it tells of, and ends after it.
fn change(turn: &mut Turn<'_, ResourceManager>, before: PressureLevel, record: &PressureChanged) {
    let level = record.level;
    if level > before {
        tell(turn, record);
    }
    turn.emit(ResourceRecord::PressureChanged(record.clone()));
    if level < before {
        alert::clear(turn, AlertKind::Pressure, ABOUT);
        tell(turn, record);
    }
    show(turn);
}

/// Raises the alert, unless there is one that says as much.
fn tell(turn: &mut Turn<'_, ResourceManager>, record: &PressureChanged) {
    let severity = match record.level {
        PressureLevel::None => return,
        PressureLevel::Elevated => AlertSeverity::Warning,
        PressureLevel::Critical => AlertSeverity::Critical,
    };
    alert::raise(turn, severity, AlertKind::Pressure, ABOUT, || {
        let PressureChanged { level, causes, below, waiting, slots, memory_percent, .. } = record;
        let causes: Vec<_> = causes.iter().map(|cause| cause.as_str()).collect();
        let memory = memory_percent.map_or_else(String::new, |percent| format!(", {percent} % of the memory is taken"));
        format!(
            "pressure is {level} ({}): {waiting} tasks wait, there are {slots} slots{memory}; what is of less priority than \
             {below} waits",
            causes.join(", ")
        )
    });
}

/// Begins a term. A predecessor may have been cut off between the alert and its fact.
pub(crate) fn lead(turn: &mut Turn<'_, ResourceManager>) {
    look(turn);
    if let Some(record) = turn.state().pressure.record().cloned() {
        tell(turn, &record);
    }
    show(turn);
}

/// Why a task is leased to nobody for now, if its priority is too low.
pub(crate) fn holds_back(state: &ResourceManager, task: &TaskId, open: &Open, now: Millis) -> Result<(), Rejection> {
    let Some(record) = state.pressure.record() else { return Ok(()) };
    let PressureChanged { level, below, .. } = record;
    let held = record.holds_back(open.priority, open.ready_at, now) && state.tasks.any_waits_from(*below);
    if !held || is_planted(Bug::PressureIgnoredByLeases) {
        return Ok(());
    }
    let message = format!(
        "task {task} is of priority {}: while the pressure is {level}, what is of less than {below} waits for the others",
        open.priority
    );
    Err(Rejection::new(Code::NotReady, message))
}

pub(crate) fn get(turn: &Turn<'_, ResourceManager>) -> Reply {
    let (state, now) = (turn.state(), turn.now());
    let Measured { waiting, slots, memory: memory_percent } = measure(turn);
    let stands = state.pressure.stands.as_ref();
    let record = stands.map(|stands| &stands.record);
    answer(&PressureView {
        level: state.pressure.level(),
        causes: record.map(|record| record.causes.clone()).unwrap_or_default(),
        since: stands.map(|stands| stands.since),
        below: record.map(|record| record.below),
        retry_after_ms: record.map(|record| record.until.saturating_sub(now)),
        waiting,
        waiting_below: record.map_or(0, |record| state.tasks.waiting_below(record.below) as u64),
        slots,
        memory_percent,
    })
}

fn show(turn: &mut Turn<'_, ResourceManager>) {
    let level = turn.state().pressure.level();
    turn.gauge("baton_pressure_level", &[], f64::from(level as u8));
}
