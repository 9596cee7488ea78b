//! Triggers: events that start runs, or release stages that wait for a signal.
//!
//! An event is raised by anybody, under a name (`data_available`), or is the end of a run. Each trigger that is for it looks at it by
//! itself: what goes wrong with one concerns no other.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::budget::Budget;
use crate::definition::{Expression, Mapping};
use crate::id::{Millis, Number, RunId};
use crate::json::Json;
use crate::name::{EventName, SignalName, TriggerName, WorkflowName};
use crate::request::Strategy;
use crate::run::{Metadata, RunStatus};

/// The key in the metadata of a run that names the trigger which started it.
pub const TRIGGER_KEY: &str = "trigger";
/// The key in the metadata of a run that says for which event.
pub const EVENT_KEY: &str = "event";
/// The key in the metadata of a run that says how many triggers led to it, one by the run of the other.
pub const CHAIN_KEY: &str = "chain";
/// How many triggers may lead to a run, one by the run of the other: a circle ends there, before two that meet in it have doubled too
/// often.
pub const MAX_CHAIN: u32 = 8;

/// What is done when something happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Written", into = "Written")]
#[schemars(with = "Written")]
pub struct Trigger {
    /// Which events it is for.
    pub on: On,
    /// Only those for which this gives true. It sees `event`, with `name`, `id`, `data`, `source` and `at`.
    pub when: Option<Expression>,
    /// What is done.
    pub then: Then,
    /// Events that come while it is are passed over.
    pub paused: bool,
}

/// What a trigger does.
#[derive(Debug, Clone, PartialEq)]
pub enum Then {
    /// It starts a run.
    Start(StartBy),
    /// It gives a signal to live runs.
    Signal(SignalBy),
}

impl Then {
    /// The workflow whose runs it starts, or gives a signal to.
    #[must_use]
    pub fn workflow(&self) -> &WorkflowName {
        match self {
            Self::Start(start) => &start.workflow,
            Self::Signal(signal) => &signal.workflow,
        }
    }
}

/// A trigger as it is written.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "Trigger")]
struct Written {
    /// Which events it is for.
    on: On,
    /// Only those for which this gives true. It sees `event`, with `name`, `id`, `data`, `source` and `at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    when: Option<Expression>,
    /// The run that is started: either this, or `signal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start: Option<StartBy>,
    /// The signal that is given to live runs: either this, or `start`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signal: Option<SignalBy>,
    /// Events that come while it is are passed over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    paused: bool,
}

impl TryFrom<Written> for Trigger {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let Written { on, when, start, signal, paused } = written;
        let then = match (start, signal) {
            (Some(start), None) => Then::Start(start),
            (None, Some(signal)) => Then::Signal(signal),
            (None, None) => return Err("a trigger says what it does: `start` or `signal`"),
            (Some(_), Some(_)) => return Err("a trigger does one thing: `start` or `signal`; make two triggers"),
        };
        Ok(Self { on, when, then, paused })
    }
}

impl From<Trigger> for Written {
    fn from(trigger: Trigger) -> Self {
        let Trigger { on, when, then, paused } = trigger;
        let (start, signal) = match then {
            Then::Start(start) => (Some(start), None),
            Then::Signal(signal) => (None, Some(signal)),
        };
        Self { on, when, start, signal, paused }
    }
}

/// Which events a trigger is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum On {
    /// Those that are raised under this name.
    Event(EventName),
    /// The ends of a workflow's runs. Their `data` has `run`, `workflow`, `version`, `status`, `reason`, `metadata`, `input` and
    /// `results`, which is `null` where they are more than 256 KiB together.
    RunEnded(RunEnded),
}

/// Which ends of runs a trigger is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunEnded {
    /// Of this workflow.
    pub workflow: WorkflowName,
    /// That ended so; all, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<RunStatus>,
}

/// How a trigger starts a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartBy {
    /// The workflow.
    pub workflow: WorkflowName,
    /// The version; the latest one if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The input, from `event`: one expression, or an object of several. The event's data as it is, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Mapping>,
    /// Larger goes first.
    #[serde(default, skip_serializing_if = "crate::record::is_zero")]
    pub priority: i32,
    /// How its tasks are placed; as those of all runs are, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// In how many milliseconds it should have ended. Placement strives for it; nothing ends because of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_ms: Option<Millis>,
    /// What it may cost; as the definition says, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// What is noted about it, to find it again. The keys `trigger`, `event` and `chain` are added.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: Metadata,
    /// Its stages are done, whatever was done before: no result is used again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
}

/// To which runs a trigger gives a signal.
///
/// It is given to every live run of the workflow that was started before the event, bears what `runs` says in its metadata, has
/// a stage that waits for the signal, and was not given it before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalBy {
    /// The workflow whose runs are meant.
    pub workflow: WorkflowName,
    /// The signal, which a stage of it waits for.
    pub signal: SignalName,
    /// Only runs whose metadata have what these give, from `event`: `{order: event.data.order}`. All, unless given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub runs: BTreeMap<String, Expression>,
    /// What comes with the signal, from `event`: one expression, or an object of several. The event's data as it is, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Mapping>,
}

/// See [`WorkflowRecord::TriggerSet`](crate::WorkflowRecord::TriggerSet).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TriggerSet {
    /// Its name.
    pub name: TriggerName,
    /// What it says.
    pub trigger: Trigger,
}

/// See [`WorkflowRecord::TriggerRemoved`](crate::WorkflowRecord::TriggerRemoved).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TriggerRemoved {
    /// Its name.
    pub name: TriggerName,
    /// The workflow that it was about.
    pub workflow: WorkflowName,
}

/// See [`WorkflowRecord::EventRaised`](crate::WorkflowRecord::EventRaised).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventRaised {
    /// Under which name.
    pub event: EventName,
    /// Its id: the same event raised once more has the same.
    pub id: String,
    /// Who raised it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What there is to say about it.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub data: Json,
}

/// See [`WorkflowRecord::TriggerFired`](crate::WorkflowRecord::TriggerFired).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TriggerFired {
    /// Its name.
    pub name: TriggerName,
    /// The workflow that it is about.
    pub workflow: WorkflowName,
    /// The record of the event: that it was raised, or that a run ended.
    pub event: Number,
    /// What came of it.
    pub outcome: Reaction,
}

/// What came of an event for one trigger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reaction {
    /// A run was started.
    Started(RunId),
    /// So many runs have the signal now.
    Signalled(u32),
    /// Its condition gave false.
    Unmatched,
    /// An expression can not be evaluated, the run can not be started, or too many runs are meant; and why.
    Failed(String),
}

impl Reaction {
    /// As it is counted.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Started(_) => "started",
            Self::Signalled(_) => "signalled",
            Self::Unmatched => "unmatched",
            Self::Failed(_) => "failed",
        }
    }
}

impl std::fmt::Display for Reaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Started(run) => write!(f, "run {run} was started"),
            Self::Signalled(0) => f.write_str("no run waits for it"),
            Self::Signalled(1) => f.write_str("1 run was given the signal"),
            Self::Signalled(runs) => write!(f, "{runs} runs were given the signal"),
            Self::Unmatched => f.write_str("its condition gave false"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}
