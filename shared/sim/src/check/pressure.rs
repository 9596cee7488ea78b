//! The rules of pressure.

use std::collections::BTreeSet;

use baton_protocol::alert::{AlertKind, AlertSeverity};
use baton_protocol::pressure::{PressureChanged, PressureLevel, PressureView};
use baton_protocol::record::Stamp;
use baton_protocol::{RunId, TaskId};
use baton_resource_manager::PressureConfig;

use super::{Attempt, Checked, Facts, LATE, Run, hold};
use crate::coverage::Branch;

const LEVELS: &str = "the level of pressure is what the limits say";
const LOW: &str = "under pressure no task of a low priority is leased while another waits";
const DOOR: &str = "under pressure no run of a low priority is accepted";

/// What is known of pressure.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    config: PressureConfig,
    /// What was said, and where in the log. The last one is so now.
    said: Vec<(u64, PressureChanged)>,
    /// How far the workflow-manager had read at which of its messages.
    read: Vec<(u64, u64)>,
    /// How much of the memory was ever said to be taken, and now.
    readings: BTreeSet<u32>,
    memory: u32,
    /// Since when the level is not what it should be, in virtual microseconds.
    wrong_on: Option<u64>,
    /// Since when no alert says so, in virtual microseconds: where the level falls, one is over before the other is raised.
    untold_on: Option<u64>,
}

impl Pressure {
    pub(super) fn new(config: PressureConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// What was so then, and what has been so since.
    fn since(&self, seq: u64) -> impl Iterator<Item = &PressureChanged> {
        let first = self.said.iter().rposition(|(at, _)| *at <= seq).unwrap_or(0);
        self.said[first..].iter().map(|(_, said)| said)
    }

    /// Whether there ever was any.
    pub(super) fn was_ever(&self) -> bool {
        !self.said.is_empty()
    }

    pub(super) fn level(&self) -> PressureLevel {
        self.said.last().map_or(PressureLevel::None, |(_, said)| said.level)
    }

    /// What the limits say: a level is left only well below where it is reached.
    fn should_be(&self, before: PressureLevel, waiting: u64, slots: u64, memory: u32) -> PressureLevel {
        let levels =
            [(PressureLevel::Critical, &self.config.critical), (PressureLevel::Elevated, &self.config.elevated)];
        let reached = |(level, limits): &(PressureLevel, &baton_resource_manager::PressureLimits)| {
            let (tenths, points) = if before >= *level { (8, 5) } else { (10, 0) };
            let many = |limit: u64| limit > 0 && 10 * waiting >= tenths * limit;
            many(limits.queue)
                || many(limits.per_slot * slots.max(1))
                || (limits.memory_percent > 0 && memory + points >= limits.memory_percent)
        };
        levels.iter().find(|level| reached(level)).map_or(PressureLevel::None, |(level, _)| *level)
    }
}

/// Whether it keeps a priority waiting.
fn presses(said: &PressureChanged, priority: i32) -> bool {
    said.level > PressureLevel::None && priority < said.below
}

impl Facts {
    /// How much of the memory is taken from now on.
    pub(crate) fn memory_taken(&mut self, percent: u32) {
        self.pressure.readings.insert(percent);
        self.pressure.memory = percent;
    }

    /// The priorities of the tasks that wait for an agent, as the resource-manager knows when it has read so far.
    fn waiting_as_read(&self, seen: u64) -> impl Iterator<Item = i32> {
        let waits = move |attempt: &&Attempt| {
            attempt.ready <= seen
                && attempt.lease.is_none()
                && attempt.child.is_none()
                && attempt.ended.is_none_or(|at| at > seen)
        };
        let of_run = move |run: &'_ Run| {
            let parts = run.parts().filter(|(_, _, definition)| !definition.asks());
            let tasks = parts.flat_map(move |(place, stage, _)| {
                std::iter::repeat_n(run.priority_of(place), stage.attempts.iter().filter(waits).count())
            });
            tasks.collect::<Vec<_>>()
        };
        let going_on = self.runs.values().filter(move |run| !run.was_paused(seen));
        going_on.flat_map(of_run)
    }

    fn slots(&self) -> u64 {
        let there = self.agents.values().filter(|agent| agent.gone.is_none());
        there.map(|agent| u64::from(agent.record.slots)).sum()
    }

    pub(super) fn pressure_changed(&mut self, stamp: Stamp, record: &PressureChanged) -> Checked {
        let PressureChanged { level, causes, below, longest_ms, until, waiting, slots, memory_percent } = record;
        let (known, there) = (self.waiting_as_read(stamp.seen).count() as u64, self.slots());
        hold!(known == *waiting, LEVELS, "{waiting} tasks are said to wait, and {known} do: {record:?}");
        hold!(there == *slots, LEVELS, "there are said to be {slots} slots, and there are {there}: {record:?}");
        let read = memory_percent.is_none_or(|percent| self.pressure.readings.contains(&percent));
        hold!(read, LEVELS, "so much memory was never taken: {record:?}");
        let before = self.pressure.level();
        let should = self.pressure.should_be(before, *waiting, *slots, memory_percent.unwrap_or(0));
        hold!(*level == should, LEVELS, "it is {level} after {before}, and should be {should}: {record:?}");
        if *level == before {
            let over = self.pressure.said.last().is_some_and(|(_, said)| stamp.at >= said.until);
            hold!(over && before > PressureLevel::None, LEVELS, "it is {level} as before: {record:?}");
            self.seen.push(Branch::PressureLasts);
        }
        let (limits, severity) = match level {
            PressureLevel::None => {
                hold!(causes.is_empty(), LEVELS, "there is none, and it has causes: {record:?}");
                self.seen.push(Branch::PressureFell);
                self.pressure.said.push((self.seq, record.clone()));
                return Ok(());
            }
            PressureLevel::Elevated => (&self.pressure.config.elevated, AlertSeverity::Warning),
            PressureLevel::Critical => (&self.pressure.config.critical, AlertSeverity::Critical),
        };
        let right = (*below, *longest_ms) == (limits.below, self.pressure.config.longest_ms);
        hold!(right && !causes.is_empty() && *until > stamp.at, LEVELS, "{record:?} at {}", stamp.at);
        if *level > before {
            let told = self.alert_stands(AlertKind::Pressure, "pressure", severity);
            hold!(told, LEVELS, "it rises, and there is no alert: {record:?}");
            self.seen.push(Branch::PressureRose);
        }
        if *level == PressureLevel::Critical {
            self.seen.push(Branch::PressureCritical);
        }
        self.pressure.said.push((self.seq, record.clone()));
        Ok(())
    }

    /// A task is about to be leased.
    pub(super) fn may_be_leased_now(&mut self, stamp: Stamp, task: &TaskId) -> Checked {
        let Some((_, said)) = self.pressure.said.last() else { return Ok(()) };
        let run = self.runs.get(&task.run).and_then(|run| Some((run, run.place_of(task)?)));
        let Some((run, place)) = run.filter(|(run, place)| presses(said, run.priority_of(*place))) else {
            return Ok(());
        };
        let attempt = run.stages[place].attempts.get((task.attempt as usize).wrapping_sub(1));
        let Some(attempt) = attempt else { return Ok(()) };
        let long = stamp.at >= attempt.ready_at + said.longest_ms;
        let others = self.waiting_as_read(stamp.seen).any(|priority| priority >= said.below);
        let priority = run.priority_of(place);
        hold!(long || !others, LOW, "{task} is of priority {priority}, and tasks of {} or more wait", said.below);
        self.seen.push(if others { Branch::LowWaitedLong } else { Branch::LowAlone });
        Ok(())
    }

    /// A run is about to start.
    pub(super) fn may_start_now(&self, stamp: Stamp, run: RunId, priority: i32) -> Checked {
        let read = self.pressure.said.iter().rev().find(|(seq, _)| *seq <= stamp.seen);
        let pressed = read.is_some_and(|(_, said)| presses(said, priority));
        hold!(!pressed, DOOR, "run {run} is of priority {priority}: {read:?}");
        Ok(())
    }

    /// The workflow-manager has written message `seq` and read so far.
    pub(super) fn door_has_read(&mut self, seq: u64, seen: u64) {
        self.pressure.read.push((seq, seen));
    }

    /// Whether there was too much pressure for a priority at any time since then.
    pub(super) fn was_pressed(&self, sent: u64, priority: i32) -> bool {
        self.pressure.since(sent).any(|said| presses(said, priority))
    }

    /// Whether there was as far as the workflow-manager had read then, or has since.
    pub(super) fn was_pressed_at_the_door(&self, sent: u64, priority: i32) -> bool {
        let read = self.pressure.read.iter().rev().find(|(seq, _)| *seq <= sent);
        self.was_pressed(read.map_or(0, |(_, seen)| *seen), priority)
    }

    /// It was shown how things stand.
    pub(super) fn pressure_shown(&self, view: &PressureView, sent: u64) -> Checked {
        let before = self.pressure.said.iter().all(|(seq, _)| *seq > sent) && view.level == PressureLevel::None;
        let so = before || self.pressure.since(sent).any(|said| said.level == view.level);
        hold!(so, LEVELS, "it was not {} since then: {view:?}", view.level);
        Ok(())
    }

    /// In the calm, the level is soon what it should be, and somebody is told.
    pub(super) fn pressure_is_so(&mut self, now: u64, calm: u64) -> Checked {
        let (level, waiting) = (self.pressure.level(), self.waiting() as u64);
        let should = self.pressure.should_be(level, waiting, self.slots(), self.pressure.memory);
        let wrong_on = (level != should).then(|| self.pressure.wrong_on.unwrap_or(now));
        self.pressure.wrong_on = wrong_on;
        let late = wrong_on.is_some_and(|on| now > on.max(calm) + LATE);
        hold!(!late, LEVELS, "it is still {level}, and should be {should}: {waiting} tasks wait");
        let told = self.alert_stands(AlertKind::Pressure, "pressure", AlertSeverity::Warning);
        let untold_on = (level > PressureLevel::None && !told).then(|| self.pressure.untold_on.unwrap_or(now));
        self.pressure.untold_on = untold_on;
        let late = untold_on.is_some_and(|on| now > on.max(calm) + LATE);
        hold!(!late, LEVELS, "it is still {level}, and there is no alert");
        Ok(())
    }
}
