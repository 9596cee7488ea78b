//! Triggers: events that start runs, or give signals to them.
//!
//! An event is kept until every trigger that is for it has come to something, and each is written down by itself. So a trigger that
//! fails silences no other, a start that has to wait for room is not forgotten, and a leader that dies half-way leaves the rest to
//! its successor; a run that was started and not written down is found by its key.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{RequestContext, Shelves};
use baton_protocol::definition::{Expression, Mapping};
use baton_protocol::nearest::nearest;
use baton_protocol::record::{RunFinished, Stamp, WorkflowRecord};
use baton_protocol::request::{
    EventStored, LastReaction, ListTriggers, MAX_JSON_BYTES, MAX_KEY_BYTES, RaiseEvent, RemoveTrigger, SetTrigger,
    StartRun, TriggerList, TriggerReaction, TriggerView,
};
use baton_protocol::run::Metadata;
use baton_protocol::trigger::{
    CHAIN_KEY, EVENT_KEY, EventRaised, MAX_CHAIN, On, Reaction, SignalBy, StartBy, TRIGGER_KEY, Then, TriggerFired,
    TriggerRemoved, TriggerSet,
};
use baton_protocol::{AgentId, Code, Json, Millis, Number, Rejection, Trigger, TriggerName, WorkflowName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::expression::{Place, Program, Scope, Values};
use crate::run::Run;
use crate::workflows::Version;
use crate::{Turn, WorkflowManager, start, text, word};

/// How the keys of triggers' runs begin. Nobody else may use such keys.
pub(crate) const KEY: &str = "trigger:";

/// How many triggers there may be.
const MAX_TRIGGERS: usize = 1000;
/// How large one may be, as JSON, in bytes: as many as are listed at a time must fit into a message.
const MAX_TRIGGER_BYTES: usize = 8 * 1024;
/// How many are listed at a time.
const LISTED: usize = 100;
/// How many ids of events are known.
const MAX_KNOWN: usize = 10_000;
/// How late a run may be started that had to wait for room.
const LATE_MS: Millis = 3_600_000;
/// How many events are looked at in one turn, the oldest first.
const EVENTS: usize = 1000;
/// How many runs are given a signal for an event at the most: it is done at once, or not at all.
const MAX_SIGNALLED: usize = 1000;
/// How many keys of the metadata may say which runs are given one.
const MAX_KEYS: usize = 16;
/// The longest name of who raised an event, in bytes.
const MAX_SOURCE_BYTES: usize = 200;

/// All triggers, and the events that are not over for all of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Triggers {
    all: Shelves<TriggerName, Arc<Entry>>,
    /// Those that are for the ends of runs, by workflow.
    ends: BTreeMap<WorkflowName, BTreeSet<TriggerName>>,
    /// Ids of events that were raised lately, and in which order.
    known: Shelves<String, Number>,
    order: VecDeque<String>,
    /// Events by the number of their records, with the triggers that have come to nothing yet.
    open: BTreeMap<Number, Open>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    trigger: Trigger,
    set_at: Millis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<LastReaction>,
}

impl Entry {
    fn view(&self, name: &TriggerName) -> TriggerView {
        TriggerView { name: name.clone(), trigger: self.trigger.clone(), set_at: self.set_at, last: self.last.clone() }
    }
}

/// An event that is not over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Open {
    event: Arc<Happened>,
    triggers: BTreeSet<TriggerName>,
}

/// What happened.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Happened {
    name: String,
    id: String,
    source: Option<String>,
    data: Json,
    at: Millis,
    /// How many triggers led to it.
    chain: u32,
}

impl Happened {
    /// As expressions see it.
    fn value(&self) -> Result<Value, String> {
        let data: Value = self.data.read().map_err(|error| error.to_string())?;
        Ok(json!({ "name": self.name, "id": self.id, "source": self.source, "data": data, "at": self.at }))
    }
}

impl Triggers {
    pub(crate) fn set(&mut self, stamp: Stamp, record: &TriggerSet) {
        let TriggerSet { name, trigger } = record;
        let before = self.all.get(name).and_then(|entry| entry.last.clone());
        self.leave(name);
        if let On::RunEnded(ended) = &trigger.on {
            self.ends.entry(ended.workflow.clone()).or_default().insert(name.clone());
        }
        self.all.insert(name.clone(), Arc::new(Entry { trigger: trigger.clone(), set_at: stamp.at, last: before }));
    }

    pub(crate) fn removed(&mut self, record: &TriggerRemoved) {
        self.leave(&record.name);
        self.open.retain(|_, open| {
            open.triggers.remove(&record.name);
            !open.triggers.is_empty()
        });
    }

    /// Takes a trigger out; what is open for it stays.
    fn leave(&mut self, name: &TriggerName) {
        let Some(entry) = self.all.remove(name) else { return };
        if let On::RunEnded(ended) = &entry.trigger.on
            && let Some(names) = self.ends.get_mut(&ended.workflow)
        {
            names.remove(name);
            if names.is_empty() {
                self.ends.remove(&ended.workflow);
            }
        }
    }

    pub(crate) fn raised(&mut self, stamp: Stamp, record: &EventRaised) {
        let EventRaised { event, id, source, data } = record;
        if self.known.insert(id.clone(), stamp.number).is_none() {
            self.order.push_back(id.clone());
        }
        while self.order.len() > MAX_KNOWN {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
        let is_for = |entry: &Entry| matches!(&entry.trigger.on, On::Event(name) if name == event);
        let meant = self.all.iter().filter(|(_, entry)| is_for(entry) && !entry.trigger.paused);
        let triggers: BTreeSet<_> = meant.map(|(name, _)| name.clone()).collect();
        let (name, id, source, data) = (event.to_string(), id.clone(), source.clone(), data.clone());
        self.happened(stamp, triggers, Happened { name, id, source, data, at: stamp.at, chain: 0 });
    }

    /// A run has ended.
    pub(crate) fn run_ended(&mut self, stamp: Stamp, record: &RunFinished, run: &Run, version: &Version) {
        let Some(names) = self.ends.get(&run.workflow) else { return };
        let is_for = |name: &&TriggerName| {
            self.all.get(*name).is_some_and(|entry| match &entry.trigger.on {
                On::RunEnded(ended) => {
                    ended.status.is_none_or(|status| status == record.status) && !entry.trigger.paused
                }
                On::Event(_) => false,
            })
        };
        let triggers: BTreeSet<_> = names.iter().filter(is_for).cloned().collect();
        if triggers.is_empty() || is_planted(Bug::EndsTriggerNothing) {
            return;
        }
        let chain = run.metadata.get(CHAIN_KEY).and_then(|chain| chain.parse().ok()).unwrap_or(0);
        let (name, id) = ("run_ended".to_owned(), record.run.to_string());
        let data = told(record, run, version);
        self.happened(stamp, triggers, Happened { name, id, source: None, data, at: stamp.at, chain });
    }

    fn happened(&mut self, stamp: Stamp, triggers: BTreeSet<TriggerName>, event: Happened) {
        if !triggers.is_empty() {
            self.open.insert(stamp.number, Open { event: Arc::new(event), triggers });
        }
    }

    pub(crate) fn fired(&mut self, stamp: Stamp, record: &TriggerFired) {
        let TriggerFired { name, event, outcome, .. } = record;
        if let Some(open) = self.open.get_mut(event) {
            open.triggers.remove(name);
            let silenced = is_planted(Bug::FailureSilencesOthers) && matches!(outcome, Reaction::Failed(_));
            if open.triggers.is_empty() || silenced {
                self.open.remove(event);
            }
        }
        if let Some(entry) = self.all.get_mut(name) {
            let last = LastReaction { at: stamp.at, event: *event, outcome: outcome.clone() };
            Arc::make_mut(entry).last = Some(last);
        }
    }

    #[cfg(test)]
    pub(crate) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    fn known(&self, name: &TriggerName) -> Result<&Entry, Rejection> {
        self.all.get(name).map(Arc::as_ref).ok_or_else(|| {
            let near = nearest(name.as_str(), self.all.keys().map(TriggerName::as_str));
            let meant = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            Rejection::new(Code::UnknownTrigger, format!("there is no trigger {name}{meant}"))
        })
    }
}

/// What is told of the end of a run.
fn told(record: &RunFinished, run: &Run, version: &Version) -> Json {
    let stages = version.definition.stages.iter().zip(&run.stages);
    let results: BTreeMap<_, _> =
        stages.filter_map(|(definition, stage)| Some((definition.name.as_str(), stage.result.as_ref()?))).collect();
    let small = results.values().map(|result| result.size()).sum::<usize>() <= MAX_JSON_BYTES;
    #[derive(Serialize)]
    struct Told<'a> {
        run: String,
        workflow: &'a str,
        version: u32,
        status: &'a str,
        reason: Option<&'a str>,
        metadata: &'a Metadata,
        input: &'a Json,
        results: Option<&'a BTreeMap<&'a str, &'a Json>>,
    }
    let told = Told {
        run: record.run.to_string(),
        workflow: run.workflow.as_str(),
        version: run.version,
        status: record.status.as_str(),
        reason: record.reason.as_deref(),
        metadata: &run.metadata,
        input: &run.input,
        results: small.then_some(&results),
    };
    Json::of(&told).unwrap_or_default()
}

/// Makes a trigger, or changes one.
pub(crate) fn set(turn: &mut Turn<'_>, request: SetTrigger) -> Result<TriggerView, Rejection> {
    let SetTrigger { name, trigger } = request;
    let known = turn.state().triggers.all.get(&name);
    if known.is_none_or(|known| known.trigger != trigger) {
        if known.is_none() && turn.state().triggers.all.len() >= MAX_TRIGGERS {
            return Err(Rejection::invalid(format!("there are {MAX_TRIGGERS} triggers already, which is the most")));
        }
        check(turn, &trigger)?;
        turn.emit(WorkflowRecord::TriggerSet(Box::new(TriggerSet { name: name.clone(), trigger })));
    }
    Ok(turn.state().triggers.known(&name)?.view(&name))
}

fn check(turn: &Turn<'_>, trigger: &Trigger) -> Result<(), Rejection> {
    let bytes = Json::of(trigger).map_or(usize::MAX, |json| json.size());
    if bytes > MAX_TRIGGER_BYTES {
        let message = format!("the trigger has {bytes} bytes as JSON; at most {MAX_TRIGGER_BYTES} are allowed");
        return Err(Rejection::new(Code::TooLarge, message));
    }
    if let On::RunEnded(ended) = &trigger.on {
        turn.state().workflows.find(&ended.workflow, None)?;
        if ended.status.is_some_and(|status| !status.is_end()) {
            return Err(invalid("on.run_ended.status: it must be how a run ends".to_owned()));
        }
    }
    if let Some(when) = &trigger.when {
        program(when).map_err(|why| invalid(format!("when: {why}")))?;
    }
    match &trigger.then {
        Then::Start(start) => check_start(turn, trigger, start),
        Then::Signal(signal) => check_signal(turn, signal),
    }
}

fn invalid(why: impl std::fmt::Display) -> Rejection {
    Rejection::invalid(format!("the trigger is not valid: {why}"))
}

fn check_mapping(what: &str, mapping: Option<&Mapping>) -> Result<(), Rejection> {
    for (key, expression) in mapping.into_iter().flat_map(Mapping::expressions) {
        let key = key.map(|key| format!(".{key}")).unwrap_or_default();
        program(expression).map_err(|why| invalid(format!("{what}{key}: {why}")))?;
    }
    Ok(())
}

fn check_signal(turn: &Turn<'_>, by: &SignalBy) -> Result<(), Rejection> {
    let (_, version) = turn.state().workflows.find(&by.workflow, None)?;
    word::check_awaited(version, &by.workflow, &by.signal)?;
    if by.runs.len() > MAX_KEYS {
        return Err(invalid(format!("signal.runs: it has {} keys; at most {MAX_KEYS} are allowed", by.runs.len())));
    }
    for (key, expression) in &by.runs {
        program(expression).map_err(|why| invalid(format!("signal.runs.{key}: {why}")))?;
    }
    check_mapping("signal.payload", by.payload.as_ref())
}

fn check_start(turn: &Turn<'_>, trigger: &Trigger, start: &StartBy) -> Result<(), Rejection> {
    turn.state().workflows.find(&start.workflow, start.version)?;
    if let On::RunEnded(ended) = &trigger.on
        && ended.workflow == start.workflow
        && trigger.when.is_none()
    {
        let why = "each run would start the next one; say with `when` which may";
        return Err(invalid(format!("it starts the workflow whose ends it is for: {why}")));
    }
    check_mapping("start.input", start.input.as_ref())?;
    if let Some(budget) = &start.budget {
        budget.check().map_err(|error| invalid(format!("start.budget: {error}")))?;
    }
    if let Some(key) = start.metadata.keys().find(|key| [TRIGGER_KEY, EVENT_KEY, CHAIN_KEY].contains(&key.as_str())) {
        return Err(invalid(format!("start.metadata: the key {key:?} is written by the trigger itself")));
    }
    let name = TriggerName::new("x").expect("a name");
    start::check_metadata(&noted(&start.metadata, &name, String::new(), 1))
}

fn program(expression: &Expression) -> Result<Program, String> {
    Program::compile(expression, &Scope { place: Place::Event, stage: &|_| Err("there are no stages".to_owned()) })
}

fn noted(own: &Metadata, name: &TriggerName, event: String, chain: u32) -> Metadata {
    let mut metadata = own.clone();
    metadata.insert(TRIGGER_KEY.to_owned(), name.to_string());
    metadata.insert(EVENT_KEY.to_owned(), event);
    metadata.insert(CHAIN_KEY.to_owned(), chain.to_string());
    metadata
}

/// Removes a trigger.
pub(crate) fn remove(turn: &mut Turn<'_>, request: RemoveTrigger) -> Result<TriggerView, Rejection> {
    let RemoveTrigger { name } = request;
    let known = turn.state().triggers.known(&name)?;
    let (view, workflow) = (known.view(&name), known.trigger.then.workflow().clone());
    turn.emit(WorkflowRecord::TriggerRemoved(TriggerRemoved { name, workflow }));
    Ok(view)
}

/// The triggers, by name.
pub(crate) fn list(state: &WorkflowManager, request: &ListTriggers) -> TriggerList {
    let meant = |(name, entry): &(&TriggerName, &Arc<Entry>)| {
        request.after.as_ref().is_none_or(|after| *name > after)
            && request.name.as_ref().is_none_or(|wanted| *name == wanted)
            && request.event.as_ref().is_none_or(|event| matches!(&entry.trigger.on, On::Event(on) if on == event))
    };
    let mut found = state.triggers.all.iter().filter(meant);
    let triggers = found.by_ref().take(LISTED).map(|(name, entry)| entry.view(name)).collect();
    TriggerList { triggers, more: found.next().is_some() }
}

/// Somebody raises an event.
pub(crate) fn raise(
    turn: &mut Turn<'_>,
    agent: Option<AgentId>,
    request: RaiseEvent,
) -> Result<EventStored, Rejection> {
    let RaiseEvent { event, id, source, data } = request;
    if id.is_empty() || id.len() > MAX_KEY_BYTES {
        let message = format!("the event's id has {} bytes; it must have 1 to {MAX_KEY_BYTES}", id.len());
        return Err(Rejection::invalid(message));
    }
    if data.size() > MAX_JSON_BYTES {
        let message = format!(
            "the event's data have {} bytes; at most {MAX_JSON_BYTES} are allowed: pass references",
            data.size()
        );
        return Err(Rejection::new(Code::TooLarge, message));
    }
    if turn.state().triggers.known.contains_key(&id) {
        return Ok(EventStored { existing: true, reactions: Vec::new(), waiting: Vec::new() });
    }
    let source = agent.map(|agent| agent.to_string()).or(source);
    let source = source.map(|source| text::cut_to(source, MAX_SOURCE_BYTES));
    turn.count("baton_events_raised_total", &[], 1.0);
    let number = turn.emit(WorkflowRecord::EventRaised(EventRaised { event, id, source, data }));
    fire(turn);
    let meant = |(name, entry): (&TriggerName, &Arc<Entry>)| {
        let last = entry.last.as_ref().filter(|last| last.event == number)?;
        Some(TriggerReaction { trigger: name.clone(), outcome: last.outcome.clone() })
    };
    let triggers = &turn.state().triggers;
    let reactions = triggers.all.iter().filter_map(meant).collect();
    let waiting = triggers.open.get(&number).map(|open| open.triggers.iter().cloned().collect()).unwrap_or_default();
    Ok(EventStored { existing: false, reactions, waiting })
}

/// When somebody has to look.
pub(crate) fn due(state: &WorkflowManager, wait_until: Millis) -> Option<Millis> {
    (!state.triggers.open.is_empty()).then_some(wait_until)
}

/// Does what triggers say about events that are open, some at a time.
pub(crate) fn fire(turn: &mut Turn<'_>) {
    if turn.state().triggers.open.is_empty() || turn.soft.triggers_wait > turn.now() {
        return;
    }
    let triggers = &turn.state().triggers;
    let events = triggers.open.iter().take(EVENTS);
    let each = events.flat_map(|(number, open)| open.triggers.iter().map(|name| (*number, name)));
    let priority = |trigger: &Trigger| match &trigger.then {
        Then::Start(start) => start.priority,
        // It needs no room, so it waits for nobody.
        Then::Signal(_) => i32::MAX,
    };
    let open = each
        .filter_map(|(number, name)| Some((priority(&triggers.all.get(name)?.trigger), (number, name.clone()))))
        .collect();
    turn.soft.triggers_wait = start::by_themselves(turn, open, |turn, (number, name)| fire_one(turn, *number, name));
}

/// Does what one trigger says about an event. Gives in how many milliseconds that can be tried again, where it can not be done now.
fn fire_one(turn: &mut Turn<'_>, number: Number, name: &TriggerName) -> Option<Millis> {
    let triggers = &turn.state().triggers;
    let event = Arc::clone(&triggers.open.get(&number)?.event);
    let entry = Arc::clone(triggers.all.get(name)?);
    let outcome = match wish(&entry.trigger, (name, number), &event) {
        Err(why) => Reaction::Failed(why),
        Ok(None) => Reaction::Unmatched,
        Ok(Some(Wish::Signal(by, meant, payload))) => signal(turn, (name, number), by, &meant, &payload),
        Ok(Some(Wish::Start(request))) => match start::start(turn, *request, &RequestContext::default()) {
            Ok(accepted) => Reaction::Started(accepted.run),
            Err(rejection) if rejection.code.is_retryable() => {
                if turn.now().saturating_sub(event.at) <= LATE_MS {
                    return Some(rejection.retry_after_ms.unwrap_or(Millis::MAX));
                }
                Reaction::Failed(format!("for an hour there was no room: {}", rejection.message))
            }
            Err(rejection) => Reaction::Failed(rejection.message),
        },
    };
    let outcome = match outcome {
        Reaction::Failed(why) => Reaction::Failed(text::cut(why, text::MAX_REASON_BYTES)),
        other => other,
    };
    turn.count("baton_triggers_fired_total", &[outcome.as_str()], 1.0);
    let workflow = entry.trigger.then.workflow().clone();
    turn.emit(WorkflowRecord::TriggerFired(TriggerFired { name: name.clone(), workflow, event: number, outcome }));
    None
}

/// What a trigger is to do for an event.
enum Wish<'a> {
    Start(Box<StartRun>),
    /// To give a signal to runs which bear that in their metadata, and what comes with it.
    Signal(&'a SignalBy, Metadata, Json),
}

/// What a trigger is to do for an event; nothing if its condition gives false.
fn wish<'a>(
    trigger: &'a Trigger,
    (name, number): (&TriggerName, Number),
    event: &Happened,
) -> Result<Option<Wish<'a>>, String> {
    let seen = event.value()?;
    let values = || Values { event: Some(seen.clone()), ..Values::default() };
    if let Some(when) = &trigger.when {
        let holds = program(when).and_then(|when| when.holds(values())).map_err(|why| format!("when: {why}"))?;
        if !holds {
            return Ok(None);
        }
    }
    let of = |what: &str, expression: &Expression| {
        let value = program(expression).and_then(|program| program.value(values()));
        value.map_err(|why| format!("{what}: {why}"))
    };
    let mapped = |what: &str, mapping: Option<&Mapping>| {
        let value = match mapping {
            None => return Ok(event.data.clone()),
            Some(Mapping::One(expression)) => of(what, expression)?,
            Some(Mapping::Each(each)) => {
                let made = each.iter().map(|(key, one)| Ok((key.clone(), of(&format!("{what}.{key}"), one)?)));
                Value::Object(made.collect::<Result<_, String>>()?)
            }
        };
        Json::of(&value).map_err(|error| error.to_string())
    };
    let start = match &trigger.then {
        Then::Start(start) => start,
        Then::Signal(by) => {
            let meant = by.runs.iter().map(|(key, expression)| {
                let what = format!("signal.runs.{key}");
                Ok((key.clone(), as_noted(of(&what, expression)?).map_err(|why| format!("{what}: {why}"))?))
            });
            let meant = meant.collect::<Result<_, String>>()?;
            return Ok(Some(Wish::Signal(by, meant, mapped("signal.payload", by.payload.as_ref())?)));
        }
    };
    if event.chain >= MAX_CHAIN {
        return Err(format!("{MAX_CHAIN} triggers led to this event already, one by the run of the other"));
    }
    let input = mapped("start.input", start.input.as_ref())?;
    Ok(Some(Wish::Start(Box::new(StartRun {
        version: start.version,
        priority: start.priority,
        key: Some(format!("{KEY}{name}:{number}")),
        strategy: start.strategy,
        due_ms: start.due_ms,
        budget: start.budget.clone(),
        metadata: noted(&start.metadata, name, text::cut_to(event.id.clone(), 255), event.chain + 1),
        no_cache: start.no_cache,
        ..StartRun::new(start.workflow.clone(), input)
    }))))
}

/// A value as metadata bear it.
fn as_noted(value: Value) -> Result<String, &'static str> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => Err("it gives no text, and no number"),
    }
}

/// Gives a signal to the runs that are meant, at once or not at all. What a leader that died left undone is done by its
/// successor: who has the signal already counts, as if it were given now.
fn signal(
    turn: &mut Turn<'_>,
    (name, number): (&TriggerName, Number),
    by: &SignalBy,
    meant: &Metadata,
    payload: &Json,
) -> Reaction {
    if payload.size() > MAX_JSON_BYTES {
        let bytes = payload.size();
        return Reaction::Failed(format!("signal.payload: it has {bytes} bytes; at most {MAX_JSON_BYTES} are allowed"));
    }
    let is_meant = |run: &Run| {
        run.workflow == by.workflow
            && run.started_by < number
            && meant.iter().all(|(key, value)| run.metadata.get(key) == Some(value))
            && run.signals.get(&by.signal).is_none_or(|given| given == payload)
    };
    let state = turn.state();
    let waits = |run: &Run| state.live(run.id).is_some_and(|(_, version)| word::is_awaited(version, &by.signal));
    let runs = state.runs.iter().filter(|(_, run)| is_meant(run) && waits(run));
    let mut runs: Vec<_> = runs.map(|(id, run)| (run.depth(), *id, run.signals.contains_key(&by.signal))).collect();
    // What a run is a part of comes before it.
    runs.sort_unstable();
    if runs.len() > MAX_SIGNALLED {
        let count = runs.len();
        let why = format!("{count} runs are meant; at most {MAX_SIGNALLED} are given a signal for one event");
        return Reaction::Failed(format!("{why}: say with `runs` which"));
    }
    if is_planted(Bug::TriggerSignalsOne) {
        runs.truncate(1);
    }
    let mut have = 0;
    for (_, run, given) in runs {
        if !given {
            // The signal to one may have ended another, which was a part of it.
            if !turn.state().runs.contains_key(&run) {
                continue;
            }
            word::give(turn, run, &by.signal, payload, Some(format!("trigger {name}")));
        }
        have += 1;
    }
    Reaction::Signalled(have)
}
