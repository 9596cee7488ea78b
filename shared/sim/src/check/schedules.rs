//! The rules of schedules: every time of theirs comes to something once, and to nothing that they do not say.

use std::collections::BTreeMap;

use baton_protocol::record::{RunStarted, Stamp};
use baton_protocol::request::ScheduleView;
use baton_protocol::schedule::{
    Firing, Overlap, SCHEDULE_KEY, SCHEDULED_KEY, ScheduleFired, ScheduleRemoved, ScheduleSet,
};
use baton_protocol::{Millis, RunId, Schedule, ScheduleName};

use super::answers::APPLIED;
use super::{Checked, Facts, broken, hold};
use crate::coverage::Branch;

const NEXT: &str = "a schedule that is not paused has a next time, which is to come";
const FIRED: &str = "a time of a schedule comes to something once, when it has come, as the schedule says";
const STARTED: &str = "a schedule's run is started by it, once for each time";
const OVERLAP: &str = "of a schedule whose runs may not overlap one is live at a time";
const IN_TIME: &str = "nothing waits for ever";

/// What is known of schedules.
#[derive(Debug, Default)]
pub(crate) struct Schedules {
    all: BTreeMap<ScheduleName, Known>,
    /// Of each run that a schedule started: which one did, and for when, as it says; and by which record that was made.
    runs: BTreeMap<RunId, (ScheduleName, String, u64)>,
}

#[derive(Debug)]
struct Known {
    schedule: Schedule,
    next: Option<Millis>,
    /// When that was written, in virtual microseconds.
    next_on: u64,
    /// The last time that came to something.
    last: Option<Millis>,
    /// The message of the log that made it.
    made: u64,
    /// The record that made it. One that was removed and made again is another one.
    number: u64,
}

impl Facts {
    /// The schedules that there are.
    pub(crate) fn schedules(&self) -> Vec<ScheduleName> {
        self.schedules.all.keys().cloned().collect()
    }

    /// Whether a schedule is there, and was when something was sent.
    pub(super) fn schedule_is_there(&self, name: &ScheduleName, sent: u64) -> bool {
        self.schedules.all.get(name).is_some_and(|known| known.made <= sent)
    }

    pub(super) fn schedule_set(&mut self, stamp: Stamp, record: &ScheduleSet) -> Checked {
        let ScheduleSet { name, schedule, next } = record;
        let right = next.map_or(schedule.paused, |next| !schedule.paused && next > stamp.at);
        hold!(right, NEXT, "schedule {name} was set at {}, next {next:?}", stamp.at);
        if schedule.paused {
            self.seen.push(Branch::SchedulePaused);
        }
        let known = self.schedules.all.get(name);
        let (last, made, number) =
            known.map_or((None, self.seq, stamp.number), |known| (known.last, known.made, known.number));
        let known = Known { schedule: schedule.clone(), next: *next, next_on: self.now, last, made, number };
        self.schedules.all.insert(name.clone(), known);
        Ok(())
    }

    pub(super) fn schedule_removed(&mut self, record: &ScheduleRemoved) -> Checked {
        let known = self.schedules.all.remove(&record.name);
        hold!(known.is_some(), FIRED, "schedule {} was removed, and there was none", record.name);
        Ok(())
    }

    /// A run was started that says it is a schedule's.
    pub(super) fn schedule_started(&mut self, record: &RunStarted) -> Checked {
        let Some(name) = record.metadata.get(SCHEDULE_KEY) else { return Ok(()) };
        let time = record.metadata.get(SCHEDULED_KEY).cloned().unwrap_or_default();
        let name: ScheduleName = name.parse().map_err(|error| broken(STARTED, format!("{error}")))?;
        let once = self.schedules.runs.values().all(|(other, when, _)| *other != name || *when != time);
        hold!(once, STARTED, "run {} is the second of schedule {name} for {time}", record.run);
        let known = self.schedules.all.get(&name).filter(|known| known.next.is_some());
        let Some(known) = known else {
            return Err(broken(STARTED, format!("run {} of schedule {name}, which is not there", record.run)));
        };
        let schedule = &known.schedule;
        let same = schedule.workflow == record.workflow
            && schedule.priority == record.priority
            && schedule.no_cache == record.no_cache;
        hold!(same, STARTED, "run {} is not as schedule {name} says", record.run);
        if schedule.overlap == Overlap::Skip {
            let live = self.live_of(known.number);
            hold!(live.is_empty(), OVERLAP, "run {} of schedule {name} starts beside {live:?}", record.run);
        }
        let number = known.number;
        self.schedules.runs.insert(record.run, (name, time, number));
        Ok(())
    }

    /// The live runs of the schedule that a record made.
    fn live_of(&self, number: u64) -> Vec<RunId> {
        let own = self.schedules.runs.iter().filter(|(_, (_, _, by))| *by == number);
        let live = |run: &RunId| self.runs.get(run).is_some_and(|run| run.finished.is_none());
        own.map(|(run, _)| *run).filter(live).collect()
    }

    /// Whether a run may have been cancelled because its schedule started the next one.
    pub(super) fn gives_way(&self, run: RunId) -> bool {
        let Some((name, ..)) = self.schedules.runs.get(&run) else { return false };
        let known = self.schedules.all.get(name);
        known.is_some_and(|known| known.schedule.overlap == Overlap::Cancel)
            && self.schedules.runs.range(run..).any(|(other, (of, ..))| *other != run && of == name)
    }

    pub(super) fn schedule_fired(&mut self, stamp: Stamp, record: &ScheduleFired) -> Checked {
        let ScheduleFired { name, due, outcome, next, .. } = record;
        let at = stamp.at;
        let Some(known) = self.schedules.all.get(name) else {
            return Err(broken(FIRED, format!("schedule {name} fired, and there is none")));
        };
        let Some(expected) = known.next else {
            return Err(broken(FIRED, format!("schedule {name} fired, and is paused")));
        };
        let right = *due >= expected && *due <= at && known.last.is_none_or(|last| *due > last);
        hold!(right, FIRED, "schedule {name} fired at {at} for {due}, expected {expected}, last {:?}", known.last);
        hold!(next.is_some_and(|next| next > at), NEXT, "schedule {name} fired at {at}, next {next:?}");
        if at.saturating_sub(expected) > 1000 {
            self.seen.push(Branch::ScheduleMadeUp);
        }
        // A leader may have died between the two, and its successor written down what came of it.
        let looked = match outcome {
            Firing::Started(run) => self.runs.get(run).map_or(at, |run| run.started_at),
            Firing::Skipped(_) | Firing::Late | Firing::Refused(_) => at,
        };
        let late = looked.saturating_sub(*due) > known.schedule.late_ms();
        hold!(late == (*outcome == Firing::Late), FIRED, "schedule {name} fired at {at} for {due}: {outcome}");
        match outcome {
            Firing::Started(run) => {
                let own = self.schedules.runs.get(run).is_some_and(|(of, ..)| of == name);
                hold!(own, STARTED, "schedule {name} started {run}, it says");
                self.seen.push(Branch::ScheduleStarted);
            }
            Firing::Skipped(run) => {
                let live = self.runs.get(run).is_some_and(|run| run.finished.is_none());
                let skips = known.schedule.overlap == Overlap::Skip;
                hold!(live && skips, OVERLAP, "schedule {name} skipped {due} for {run}");
                self.seen.push(Branch::ScheduleSkipped);
            }
            Firing::Late => self.seen.push(Branch::ScheduleLate),
            // Whoever registers a workflow that there is can be refused nothing.
            Firing::Refused(why) => return Err(broken(FIRED, format!("schedule {name} was refused: {why}"))),
        }
        let now = self.now;
        if let Some(known) = self.schedules.all.get_mut(name) {
            (known.next, known.next_on, known.last) = (*next, now, Some(*due));
        }
        Ok(())
    }

    /// In the calm a time that has come comes to something soon, where nothing is ever too much.
    pub(super) fn schedules_fire_in_time(&self, calm: u64, late: impl Fn(u64, Millis) -> bool) -> Checked {
        for (name, known) in &self.schedules.all {
            let Some(next) = known.next else { continue };
            let pressed = self.max_live_runs < 10 || self.was_pressed(0, known.schedule.priority);
            let wait = known.schedule.every_ms.unwrap_or(next);
            hold!(pressed || !late(known.next_on.max(calm), wait), IN_TIME, "schedule {name} does not fire at {next}");
        }
        Ok(())
    }

    /// A schedule was shown.
    pub(super) fn schedule_shown(&self, view: &ScheduleView) -> Checked {
        let first = view.next.first();
        let right = view.schedule.paused == first.is_none() && view.next.is_sorted();
        hold!(right, APPLIED, "schedule {} is shown with the times {:?}", view.name, view.next);
        Ok(())
    }
}
