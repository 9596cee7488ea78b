//! The rules of triggers: each looks at each event that it is for, once, whatever becomes of the others.

use std::collections::{BTreeMap, BTreeSet};

use baton_protocol::definition::Expression;
use baton_protocol::record::{RunFinished, RunStarted, Stamp};
use baton_protocol::request::EventStored;
use baton_protocol::trigger::{
    EVENT_KEY, EventRaised, MAX_CHAIN, On, Reaction, TRIGGER_KEY, Then, TriggerFired, TriggerRemoved, TriggerSet,
};
use baton_protocol::{Number, RunId, SignalName, Trigger, TriggerName, WorkflowName};

use super::answers::COMMITTED;
use super::{Checked, Facts, Run, broken, hold};
use crate::coverage::Branch;

const FIRED: &str = "each trigger comes to something once for each event that it is for";
const STARTED: &str = "a trigger's run is started by it, once for each event";
const SIGNALLED: &str = "a trigger gives its signal to every run that is meant, and to no other";
const RAISED: &str = "an event is raised once";

/// What is known of triggers.
#[derive(Debug, Default)]
pub(crate) struct Triggers {
    all: BTreeMap<TriggerName, Trigger>,
    events: BTreeSet<String>,
    /// Events that triggers have still to look at, by their records.
    open: BTreeMap<Number, Open>,
    /// Of each run that a trigger started: which one did, and for which event.
    runs: BTreeMap<RunId, (TriggerName, String)>,
}

/// An event that triggers have still to look at.
#[derive(Debug)]
struct Open {
    id: String,
    names: BTreeSet<TriggerName>,
    /// When it happened, in virtual microseconds.
    on: u64,
}

impl Triggers {
    /// The signal that a trigger gives to a run for the event of that record, if it means it.
    fn gives(&self, name: &TriggerName, event: Number, run: &Run) -> Option<&SignalName> {
        let Then::Signal(by) = &self.all.get(name)?.then else { return None };
        // All that is drawn is a text.
        let text = |expression: &Expression| expression.as_str().trim_matches('"').to_owned();
        let noted = by.runs.iter().all(|(key, value)| run.metadata.get(key) == Some(&text(value)));
        let meant = run.workflow == by.workflow && run.started_by < event && noted && run.waits_for(&by.signal);
        meant.then_some(&by.signal)
    }
}

impl Facts {
    /// Whether a trigger gives that signal to a run, for an event that it has still to look at.
    pub(super) fn is_given_by(&self, name: &str, run: &Run, signal: &SignalName) -> bool {
        let Ok(name) = name.parse::<TriggerName>() else { return false };
        let open = self.triggers.open.iter().filter(|(_, open)| open.names.contains(&name));
        open.into_iter().any(|(event, _)| self.triggers.gives(&name, *event, run) == Some(signal))
    }

    /// The triggers that there are.
    pub(crate) fn triggers(&self) -> Vec<TriggerName> {
        self.triggers.all.keys().cloned().collect()
    }

    /// Whether some trigger has still to look at some event.
    pub(crate) fn triggers_wait(&self) -> bool {
        !self.triggers.open.is_empty()
    }

    pub(super) fn trigger_set(&mut self, record: &TriggerSet) -> Checked {
        self.triggers.all.insert(record.name.clone(), record.trigger.clone());
        Ok(())
    }

    pub(super) fn trigger_removed(&mut self, record: &TriggerRemoved) -> Checked {
        let known = self.triggers.all.remove(&record.name);
        hold!(known.is_some(), FIRED, "trigger {} was removed, and there was none", record.name);
        self.triggers.open.retain(|_, open| {
            open.names.remove(&record.name);
            !open.names.is_empty()
        });
        Ok(())
    }

    pub(super) fn event_raised(&mut self, stamp: Stamp, record: &EventRaised) -> Checked {
        let once = self.triggers.events.insert(record.id.clone());
        hold!(once, RAISED, "event {} {} was raised twice", record.event, record.id);
        let is_for = |trigger: &Trigger| matches!(&trigger.on, On::Event(name) if *name == record.event);
        self.opened(stamp, record.id.clone(), is_for);
        Ok(())
    }

    pub(super) fn trigger_run_ended(&mut self, stamp: Stamp, workflow: &WorkflowName, record: &RunFinished) {
        let is_for = |trigger: &Trigger| match &trigger.on {
            On::RunEnded(on) => on.workflow == *workflow && on.status.is_none_or(|status| status == record.status),
            On::Event(_) => false,
        };
        self.opened(stamp, record.run.to_string(), is_for);
    }

    fn opened(&mut self, stamp: Stamp, id: String, is_for: impl Fn(&Trigger) -> bool) {
        let meant = self.triggers.all.iter().filter(|(_, trigger)| is_for(trigger) && !trigger.paused);
        let names: BTreeSet<_> = meant.map(|(name, _)| name.clone()).collect();
        if !names.is_empty() {
            self.triggers.open.insert(stamp.number, Open { id, names, on: self.now });
        }
    }

    /// A run was started that says it is a trigger's.
    pub(super) fn trigger_started(&mut self, record: &RunStarted) -> Checked {
        let Some(name) = record.metadata.get(TRIGGER_KEY) else { return Ok(()) };
        let name: TriggerName = name.parse().map_err(|error| broken(STARTED, format!("{error}")))?;
        let event = record.metadata.get(EVENT_KEY).cloned().unwrap_or_default();
        let waits = |open: &Open| open.id == event && open.names.contains(&name);
        let meant = self.triggers.open.values().any(waits);
        hold!(meant, STARTED, "run {} of trigger {name}, which is not for event {event}", record.run);
        let once = self.triggers.runs.values().all(|(other, of)| *other != name || *of != event);
        hold!(once, STARTED, "run {} is the second of trigger {name} for event {event}", record.run);
        let same = self.triggers.all.get(&name).is_some_and(|trigger| match &trigger.then {
            Then::Start(start) => {
                start.workflow == record.workflow
                    && start.priority == record.priority
                    && start.no_cache == record.no_cache
            }
            Then::Signal(_) => false,
        });
        hold!(same, STARTED, "run {} is not as trigger {name} says", record.run);
        self.triggers.runs.insert(record.run, (name, event));
        Ok(())
    }

    pub(super) fn trigger_fired(&mut self, record: &TriggerFired) -> Checked {
        let TriggerFired { name, event, outcome, .. } = record;
        let open = self.triggers.open.get_mut(event);
        let Some(open) = open.filter(|open| open.names.contains(name)) else {
            return Err(broken(FIRED, format!("trigger {name} fired for {event}, for which it is not, or no more")));
        };
        let id = open.id.clone();
        open.names.remove(name);
        if open.names.is_empty() {
            self.triggers.open.remove(event);
        }
        let branch = match outcome {
            Reaction::Started(run) => {
                let own = self.triggers.runs.get(run) == Some(&(name.clone(), id));
                hold!(own, STARTED, "trigger {name} started {run} for {event}, it says");
                Branch::TriggerStarted
            }
            Reaction::Signalled(runs) => {
                let without = self.runs.iter().find(|(_, run)| {
                    let goes_on = run.finished.is_none() && !run.ending;
                    goes_on && self.triggers.gives(name, *event, run).is_some_and(|signal| !run.has(signal))
                });
                hold!(without.is_none(), SIGNALLED, "trigger {name} gave {runs} runs a signal, and not {without:?}");
                match runs {
                    0 => Branch::TriggerUnmatched,
                    _ => Branch::TriggerSignalled,
                }
            }
            Reaction::Unmatched => Branch::TriggerUnmatched,
            Reaction::Failed(why) if why.contains(&MAX_CHAIN.to_string()) => Branch::TriggerChain,
            Reaction::Failed(_) => Branch::TriggerFailed,
        };
        self.seen.push(branch);
        Ok(())
    }

    /// In the calm a trigger looks at an event soon, where nothing is ever too much.
    pub(super) fn triggers_look_in_time(&self, late: impl Fn(u64) -> bool) -> Checked {
        for (number, open) in &self.triggers.open {
            let priority = |name: &TriggerName| {
                self.triggers.all.get(name).map_or(0, |trigger| match &trigger.then {
                    Then::Start(start) => start.priority,
                    Then::Signal(_) => 0,
                })
            };
            let pressed = open.names.iter().any(|name| self.was_pressed(0, priority(name)));
            let room = self.max_live_runs >= 10 && !pressed;
            hold!(!room || !late(open.on), FIRED, "triggers {:?} have not looked at event {number}", open.names);
        }
        Ok(())
    }

    /// At rest every trigger has looked at every event that it is for.
    pub(super) fn triggers_at_rest(&self) -> Checked {
        let open = &self.triggers.open;
        hold!(open.is_empty(), FIRED, "triggers have not looked at {open:?}");
        Ok(())
    }

    /// Somebody was told that an event was raised.
    pub(super) fn event_stored(&self, id: &str, answer: &EventStored) -> Checked {
        hold!(self.triggers.events.contains(id), COMMITTED, "event {id} was said to be raised, and is not in the log");
        for reaction in &answer.reactions {
            if let Reaction::Started(run) = &reaction.outcome {
                let own = self.triggers.runs.contains_key(run);
                hold!(own, COMMITTED, "run {run} was said to be started by {}", reaction.trigger);
            }
        }
        Ok(())
    }
}
