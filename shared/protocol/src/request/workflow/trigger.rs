//! What may be asked about triggers, and events that are raised.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{Millis, Number};
use crate::json::Json;
use crate::name::{EventName, TriggerName};
use crate::trigger::{Reaction, Trigger};

/// Makes a trigger, or changes one. It is for events that come after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SetTrigger {
    /// Its name.
    pub name: TriggerName,
    /// What it says.
    pub trigger: Trigger,
}

/// Removes a trigger. Runs that it started go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RemoveTrigger {
    /// Its name.
    pub name: TriggerName,
}

/// Lists the triggers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListTriggers {
    /// Only this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<TriggerName>,
    /// Only those for this event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<EventName>,
    /// Only those after this one: the last of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<TriggerName>,
}

/// The triggers there are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TriggerList {
    /// By name.
    pub triggers: Vec<TriggerView>,
    /// Whether there are more after them.
    #[serde(default)]
    pub more: bool,
}

/// A trigger as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TriggerView {
    /// Its name.
    pub name: TriggerName,
    /// What it says.
    pub trigger: Trigger,
    /// When it was made or changed.
    pub set_at: Millis,
    /// What came of the last event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastReaction>,
}

/// What came of the last event for a trigger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastReaction {
    /// When.
    pub at: Millis,
    /// The record of the event.
    pub event: Number,
    /// What came of it.
    pub outcome: Reaction,
}

/// Raises an event. What triggers make of it is answered, as far as it is known at once: where too much is under way, they start their
/// runs later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RaiseEvent {
    /// Under which name.
    pub event: EventName,
    /// Its id, at most 255 bytes: an event that is raised once more with the same id is the same event. The last 10,000 ids are known.
    pub id: String,
    /// Who raises it. An agent's own id stands here if an agent does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What there is to say about it, as JSON; at most 256 KiB.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub data: Json,
}

/// An event was raised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventStored {
    /// Whether it had been raised before: nothing happened now.
    pub existing: bool,
    /// What each trigger made of it, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reactions: Vec<TriggerReaction>,
    /// The triggers that have to wait, since too much is under way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<TriggerName>,
}

/// What a trigger made of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TriggerReaction {
    /// The trigger.
    pub trigger: TriggerName,
    /// What came of it.
    pub outcome: Reaction,
}
