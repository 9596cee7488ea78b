//! Schedules: workflows that are started by themselves.
//!
//! What a schedule says is kept here, with the next time. When that has come, what comes of it is written down together with the
//! time after it. So nothing happens twice, also not where a leader died between the two records of one turn: the run's key names
//! schedule and time, and a second start under it gives the run that there is. The fold evaluates no calendar: another edition of
//! Baton, with other time zones, folds the same log to the same state.

use std::collections::BTreeSet;
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{RequestContext, ShelfSet, Shelves};
use baton_protocol::nearest::nearest;
use baton_protocol::record::{Stamp, WorkflowRecord};
use baton_protocol::request::{
    CancelRun, GetSchedule, LastFiring, ListSchedules, MAX_MESSAGE_BYTES, PauseSchedule, RemoveSchedule, ScheduleList,
    ScheduleView, SetSchedule, StartRun,
};
use baton_protocol::schedule::{
    Firing, MAX_EVERY_MS, MIN_EVERY_MS, Overlap, SCHEDULE_KEY, SCHEDULED_KEY, ScheduleFired, ScheduleRemoved,
    ScheduleSet,
};
use baton_protocol::{Code, Json, Millis, Rejection, RunId, Schedule, ScheduleName};
use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Year};
use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};

use crate::{Turn, WorkflowManager, start, text};

/// How the keys of schedules' runs begin. Nobody else may use such keys.
pub(crate) const KEY: &str = "schedule:";

/// How many schedules there may be.
const MAX_SCHEDULES: usize = 10_000;
/// The most bytes of the input that a schedule gives to its runs: schedules are all kept in memory.
const MAX_INPUT_BYTES: usize = 64 * 1024;
/// How large the rest of a schedule may be, as JSON, in bytes.
const MAX_SCHEDULE_BYTES: usize = 8 * 1024;
/// How many schedules are listed if nothing else is asked for, and how many at the most.
const LIMIT: (u32, u32) = (100, 1000);
/// How many bytes a list may have: it must fit into a message.
const MAX_LIST_BYTES: usize = MAX_MESSAGE_BYTES - 64 * 1024;
/// How many next times are shown of one schedule.
const SHOWN: usize = 5;

/// All schedules.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Schedules {
    all: Shelves<ScheduleName, Arc<Entry>>,
    /// Those that have a next time, by it.
    due: ShelfSet<(Millis, ScheduleName)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    schedule: Schedule,
    set_at: Millis,
    next: Option<Millis>,
    /// The run that was started for a time, until it is written down what that came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    begun: Option<(Millis, RunId)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<LastFiring>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_run: Option<RunId>,
}

impl Entry {
    fn view(&self, name: &ScheduleName, next: Vec<Millis>) -> ScheduleView {
        ScheduleView {
            name: name.clone(),
            schedule: self.schedule.clone(),
            set_at: self.set_at,
            next,
            last: self.last.clone(),
            last_run: self.last_run,
        }
    }
}

impl Schedules {
    pub(crate) fn set(&mut self, stamp: Stamp, record: &ScheduleSet) {
        let ScheduleSet { name, schedule, next } = record;
        let before = self.remove(name);
        if let Some(next) = next {
            self.due.insert((*next, name.clone()));
        }
        let (last, last_run) = before.map_or((None, None), |before| (before.last.clone(), before.last_run));
        let (set_at, begun) = (stamp.at, None);
        let entry = Entry { schedule: schedule.clone(), set_at, next: *next, begun, last, last_run };
        self.all.insert(name.clone(), Arc::new(entry));
    }

    pub(crate) fn removed(&mut self, record: &ScheduleRemoved) {
        self.remove(&record.name);
    }

    fn remove(&mut self, name: &ScheduleName) -> Option<Arc<Entry>> {
        let entry = self.all.remove(name)?;
        if let Some(next) = entry.next {
            self.due.remove(&(next, name.clone()));
        }
        Some(entry)
    }

    /// A run was started with this key.
    pub(crate) fn begun(&mut self, key: &str, run: RunId) {
        let Some((name, due)) = key.strip_prefix(KEY).and_then(|rest| rest.rsplit_once(':')) else { return };
        if let (Some(entry), Ok(due)) = (self.all.get_mut(name), due.parse()) {
            Arc::make_mut(entry).begun = Some((due, run));
        }
    }

    pub(crate) fn fired(&mut self, stamp: Stamp, record: &ScheduleFired) {
        let Some(entry) = self.all.get_mut(&record.name) else { return };
        let entry = Arc::make_mut(entry);
        if let Some(old) = entry.next {
            self.due.remove(&(old, record.name.clone()));
        }
        (entry.next, entry.begun) = (record.next, None);
        if let Some(next) = record.next {
            self.due.insert((next, record.name.clone()));
        }
        if let Firing::Started(run) = record.outcome {
            entry.last_run = Some(run);
        }
        entry.last = Some(LastFiring { due: record.due, at: stamp.at, outcome: record.outcome.clone() });
    }

    /// When the first one is due.
    pub(crate) fn next(&self) -> Option<Millis> {
        self.due.first().map(|(due, _)| *due)
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn known(&self, name: &ScheduleName) -> Result<&Entry, Rejection> {
        self.all.get(name).map(Arc::as_ref).ok_or_else(|| {
            let near = nearest(name.as_str(), self.all.keys().map(ScheduleName::as_str));
            let meant = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            Rejection::new(Code::UnknownSchedule, format!("there is no schedule {name}{meant}"))
        })
    }
}

/// When a schedule's times are.
enum When {
    Cron(Box<Cron>, TimeZone),
    Every(Millis),
}

impl When {
    fn of(schedule: &Schedule) -> Result<Self, String> {
        let zone = match &schedule.time_zone {
            Some(name) => zone(name)?,
            None => TimeZone::UTC,
        };
        match (&schedule.cron, schedule.every_ms) {
            (Some(text), None) => Ok(Self::Cron(Box::new(cron(text)?), zone)),
            (None, Some(_)) if schedule.time_zone.is_some() => {
                Err("time_zone: it says where `cron` tells the time; `every_ms` is the same everywhere".to_owned())
            }
            (None, Some(every)) if !(MIN_EVERY_MS..=MAX_EVERY_MS).contains(&every) => {
                Err(format!("every_ms: it must be {MIN_EVERY_MS} to {MAX_EVERY_MS}, not {every}"))
            }
            (None, Some(every)) => Ok(Self::Every(every)),
            (Some(_), Some(_)) => Err("give either `cron` or `every_ms`, not both".to_owned()),
            (None, None) => Err("say when, with `cron` (as \"30 9 * * mon-fri\") or with `every_ms`".to_owned()),
        }
    }

    /// The first time after that one.
    fn after(&self, at: Millis) -> Option<Millis> {
        match self {
            Self::Every(every) => Some((at / every).saturating_add(1).saturating_mul(*every)),
            Self::Cron(cron, zone) => {
                let at = Timestamp::from_millisecond(i64::try_from(at).ok()?).ok()?.to_zoned(zone.clone());
                millis(cron.find_next_occurrence(&at, false).ok()?.timestamp())
            }
        }
    }

    /// The last time up to that one.
    fn until(&self, at: Millis) -> Option<Millis> {
        match self {
            Self::Every(every) => Some(at / every * every),
            Self::Cron(cron, zone) => {
                let at = Timestamp::from_millisecond(i64::try_from(at).ok()?).ok()?.to_zoned(zone.clone());
                millis(cron.find_previous_occurrence(&at, true).ok()?.timestamp())
            }
        }
    }

    /// A time, as its zone tells it.
    fn told(&self, at: Millis) -> String {
        let Some(at) = i64::try_from(at).ok().and_then(|at| Timestamp::from_millisecond(at).ok()) else {
            return at.to_string();
        };
        match self {
            Self::Every(_) => at.to_string(),
            Self::Cron(_, zone) => at.display_with_offset(zone.to_offset(at)).to_string(),
        }
    }
}

fn millis(at: Timestamp) -> Option<Millis> {
    Millis::try_from(at.as_millisecond()).ok()
}

fn cron(text: &str) -> Result<Cron, String> {
    let fields = "minute, hour, day of the month, month, day of the week, as in \"30 9 * * mon-fri\"";
    let parser = CronParser::builder().year(Year::Disallowed).build();
    parser.parse(text).map_err(|error| {
        let why = match error {
            CronError::EmptyPattern => "it is empty".to_owned(),
            CronError::InvalidPattern(why) | CronError::IllegalCharacters(why) | CronError::ComponentError(why) => why,
            other => other.to_string(),
        };
        format!("cron {text:.80?}: {}; its fields are {fields}", why.trim_end_matches('.'))
    })
}

fn zone(name: &str) -> Result<TimeZone, String> {
    let zones = TimeZoneDatabase::bundled();
    zones.get(name).map_err(|_| {
        let names: Vec<String> = zones.available().map(|name| name.to_string()).collect();
        let near = nearest(name, names.iter().map(String::as_str));
        let meant = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        format!("time_zone: no time zone is called {name:.80?}; they are called as in Europe/Berlin{meant}")
    })
}

/// Makes a schedule, or changes one.
pub(crate) fn set(turn: &mut Turn<'_>, request: SetSchedule) -> Result<ScheduleView, Rejection> {
    let SetSchedule { name, schedule } = request;
    let known = turn.state().schedules.all.get(&name);
    if known.is_none_or(|known| known.schedule != schedule) {
        if known.is_none() && turn.state().schedules.all.len() >= MAX_SCHEDULES {
            let message = format!("there are {MAX_SCHEDULES} schedules already, which is the most");
            return Err(Rejection::invalid(message));
        }
        let next = check(turn, &schedule)?;
        let next = (!schedule.paused).then_some(next);
        turn.emit(WorkflowRecord::ScheduleSet(Box::new(ScheduleSet { name: name.clone(), schedule, next })));
    }
    get(turn, &GetSchedule { name })
}

/// Whether runs can be started so, as far as it can be told now; and when the first one would be.
fn check(turn: &Turn<'_>, schedule: &Schedule) -> Result<Millis, Rejection> {
    let invalid = |why: String| Rejection::invalid(format!("the schedule is not valid: {why}"));
    let when = When::of(schedule).map_err(invalid)?;
    let input = start::input(&schedule.input)?;
    if input.size() > MAX_INPUT_BYTES {
        let why = format!("the input has {} bytes; at most {MAX_INPUT_BYTES} are allowed here", input.size());
        return Err(Rejection::new(Code::TooLarge, format!("the schedule is not valid: {why}")));
    }
    let rest = Schedule { input: Json::default(), ..schedule.clone() };
    let bytes = Json::of(&rest).map_or(usize::MAX, |json| json.size());
    if bytes > MAX_SCHEDULE_BYTES {
        let why = format!("without its input it has {bytes} bytes; at most {MAX_SCHEDULE_BYTES} are allowed");
        return Err(Rejection::new(Code::TooLarge, format!("the schedule is not valid: {why}")));
    }
    let own: BTreeSet<&str> = [SCHEDULE_KEY, SCHEDULED_KEY].into();
    if let Some(key) = schedule.metadata.keys().find(|key| own.contains(key.as_str())) {
        return Err(invalid(format!("metadata: the key {key:?} is written by the schedule itself")));
    }
    let metadata = noted(schedule, &ScheduleName::new("x").expect("a name"), String::new());
    start::check_metadata(&metadata)?;
    start::check_against(turn, &schedule.workflow, schedule.version, &input, schedule.budget.as_ref())?;
    when.after(turn.now()).ok_or_else(|| invalid("no time will ever fit it".to_owned()))
}

fn noted(schedule: &Schedule, name: &ScheduleName, time: String) -> baton_protocol::run::Metadata {
    let mut metadata = schedule.metadata.clone();
    metadata.insert(SCHEDULE_KEY.to_owned(), name.to_string());
    metadata.insert(SCHEDULED_KEY.to_owned(), time);
    metadata
}

/// Pauses a schedule, or lets it go on.
pub(crate) fn pause(turn: &mut Turn<'_>, request: PauseSchedule) -> Result<ScheduleView, Rejection> {
    let PauseSchedule { name, paused } = request;
    let known = turn.state().schedules.known(&name)?;
    if known.schedule.paused != paused {
        let schedule = Schedule { paused, ..known.schedule.clone() };
        let next = When::of(&schedule).ok().and_then(|when| when.after(turn.now())).filter(|_| !paused);
        turn.emit(WorkflowRecord::ScheduleSet(Box::new(ScheduleSet { name: name.clone(), schedule, next })));
    }
    get(turn, &GetSchedule { name })
}

/// Removes a schedule.
pub(crate) fn remove(turn: &mut Turn<'_>, request: RemoveSchedule) -> Result<ScheduleView, Rejection> {
    let RemoveSchedule { name } = request;
    let known = turn.state().schedules.known(&name)?;
    let (view, workflow) = (known.view(&name, Vec::new()), known.schedule.workflow.clone());
    turn.emit(WorkflowRecord::ScheduleRemoved(ScheduleRemoved { name, workflow }));
    Ok(view)
}

/// A schedule, and its next times.
pub(crate) fn get(turn: &Turn<'_>, request: &GetSchedule) -> Result<ScheduleView, Rejection> {
    let known = turn.state().schedules.known(&request.name)?;
    let mut times: Vec<Millis> = known.next.into_iter().collect();
    if let (Some(first), Ok(when)) = (known.next, When::of(&known.schedule)) {
        times.extend(std::iter::successors(when.after(first), |time| when.after(*time)).take(SHOWN - 1));
    }
    Ok(known.view(&request.name, times))
}

/// The schedules, by name.
pub(crate) fn list(state: &WorkflowManager, request: &ListSchedules) -> ScheduleList {
    let (usual, most) = LIMIT;
    let limit = request.limit.unwrap_or(usual).clamp(1, most) as usize;
    let meant = |(name, entry): &(&ScheduleName, &Arc<Entry>)| {
        request.after.as_ref().is_none_or(|after| *name > after)
            && request.workflow.as_ref().is_none_or(|workflow| entry.schedule.workflow == *workflow)
    };
    let mut found = state.schedules.all.iter().filter(meant).peekable();
    let (mut schedules, mut bytes) = (Vec::new(), 0);
    while let Some((name, entry)) = found.peek()
        && schedules.len() < limit
    {
        let view = entry.view(name, entry.next.into_iter().collect());
        // Without their inputs, which may be large.
        let view = ScheduleView { schedule: Schedule { input: Json::default(), ..view.schedule }, ..view };
        bytes += Json::of(&view).map_or(usize::MAX, |json| json.size());
        if bytes > MAX_LIST_BYTES {
            break;
        }
        schedules.push(view);
        found.next();
    }
    ScheduleList { schedules, more: found.peek().is_some() }
}

/// When somebody has to look.
pub(crate) fn due(state: &WorkflowManager, wait_until: Millis) -> Option<Millis> {
    state.schedules.next().map(|due| due.max(wait_until))
}

/// Starts what is due, some at a time.
pub(crate) fn fire(turn: &mut Turn<'_>) {
    let now = turn.now();
    if turn.soft.schedules_wait > now {
        return;
    }
    let schedules = &turn.state().schedules;
    let due = schedules.due.iter().take_while(|(due, _)| *due <= now);
    let due = due.filter_map(|(_, name)| Some((schedules.all.get(name)?.schedule.priority, name.clone()))).collect();
    turn.soft.schedules_wait = start::by_themselves(turn, due, fire_one);
}

/// Sees to the time of a schedule that has come. Gives in how many milliseconds that can be tried again, where it can not be done now.
fn fire_one(turn: &mut Turn<'_>, name: &ScheduleName) -> Option<Millis> {
    let now = turn.now();
    let entry = Arc::clone(turn.state().schedules.all.get(name)?);
    let (schedule, first) = (&entry.schedule, entry.next?);
    let (due, next, outcome) = match When::of(schedule) {
        // Another edition of Baton took it.
        Err(why) => (first, None, Firing::Refused(why)),
        // A leader that died had come so far.
        Ok(when) if entry.begun.is_some() => {
            let (due, run) = entry.begun?;
            give_way(turn, name, &entry, run);
            (due, when.after(due.max(now)), Firing::Started(run))
        }
        Ok(when) => {
            // However many times have come, one run makes up for them.
            let due = when.until(now).map_or(first, |last| last.max(first));
            let late_ms = if is_planted(Bug::MissedTimeForgotten) { 0 } else { schedule.late_ms() };
            let outcome = if now.saturating_sub(due) > late_ms {
                Firing::Late
            } else {
                match begin(turn, name, &entry, due, when.told(due)) {
                    Ok(outcome) => outcome,
                    Err(wait) => return Some(wait),
                }
            };
            (due, when.after(now), outcome)
        }
    };
    turn.count("baton_schedules_fired_total", &[outcome.as_str()], 1.0);
    let workflow = schedule.workflow.clone();
    turn.emit(WorkflowRecord::ScheduleFired(ScheduleFired { name: name.clone(), workflow, due, outcome, next }));
    None
}

/// Starts a schedule's run. An error says in how many milliseconds it can be tried again.
fn begin(turn: &mut Turn<'_>, name: &ScheduleName, entry: &Entry, due: Millis, time: String) -> Result<Firing, Millis> {
    let schedule = &entry.schedule;
    let before = entry.last_run.filter(|run| turn.state().runs.contains_key(run));
    if let (Some(before), Overlap::Skip) = (before, schedule.overlap)
        && !is_planted(Bug::OverlapIgnored)
    {
        return Ok(Firing::Skipped(before));
    }
    let request = StartRun {
        version: schedule.version,
        priority: schedule.priority,
        key: Some(format!("{KEY}{name}:{due}")),
        strategy: schedule.strategy,
        due_ms: schedule.due_ms,
        budget: schedule.budget.clone(),
        metadata: noted(schedule, name, time),
        no_cache: schedule.no_cache,
        ..StartRun::new(schedule.workflow.clone(), schedule.input.clone())
    };
    match start::start(turn, request, &RequestContext::default()) {
        Ok(accepted) => {
            give_way(turn, name, entry, accepted.run);
            Ok(Firing::Started(accepted.run))
        }
        Err(rejection) if rejection.code.is_retryable() => Err(rejection.retry_after_ms.unwrap_or(Millis::MAX)),
        Err(rejection) => Ok(Firing::Refused(text::cut(rejection.message, text::MAX_REASON_BYTES))),
    }
}

/// Cancels the run before, where a schedule says so.
fn give_way(turn: &mut Turn<'_>, name: &ScheduleName, entry: &Entry, to: RunId) {
    let before = entry.last_run.filter(|run| *run != to && turn.state().runs.contains_key(run));
    if let (Some(run), Overlap::Cancel) = (before, entry.schedule.overlap) {
        let reason = Some(format!("schedule {name} has started the next run"));
        // It may have ended by itself.
        let _ = start::cancel(turn, CancelRun { run, reason });
    }
}
