//! The message types of the source documents, in one enum.
//!
//! Where two sources have two words for one thing, Baton writes one and reads both: `task_completion` is read as
//! `task_complete`, `task_failure` as `task_failed`, `error_report` as `error`. The trading types of the fourth source
//! are not Baton's; a type of the user's own is written `x-NAME`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};

macro_rules! message_types {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal $(| $alias:literal)*;)+) => {
        /// What a message is: the value of the header [`crate::header::TYPE`].
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum MessageType {
            $($(#[doc = $doc])+ $variant,)+
            /// A type of the user's own, written `x-NAME`; this is the name.
            Custom(crate::name::Capability),
        }

        impl MessageType {
            /// Every type of Baton's own, with its name and meaning.
            pub const ALL: &'static [(Self, &'static str, &'static str)] =
                &[$((Self::$variant, $name, concat!($($doc),+)),)+];

            /// As it is written.
            #[must_use]
            pub fn name(&self) -> Cow<'static, str> {
                match self {
                    $(Self::$variant => $name.into(),)+
                    Self::Custom(name) => format!("x-{name}").into(),
                }
            }
        }

        impl FromStr for MessageType {
            type Err = MessageTypeError;
            fn from_str(text: &str) -> Result<Self, MessageTypeError> {
                Ok(match text {
                    $($name $(| $alias)* => Self::$variant,)+
                    _ => {
                        let name = text.strip_prefix("x-").and_then(|name| crate::name::Capability::new(name).ok());
                        Self::Custom(name.ok_or_else(|| MessageTypeError(text.chars().take(80).collect()))?)
                    }
                })
            }
        }
    };
}

/// A message type that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a message type: it must be one of Baton's, or x-NAME for one of your own")]
pub struct MessageTypeError(String);

message_types! {
    /// A task is given to an agent, with its lease.
    TaskAssignment = "task_assignment";
    /// A task ended with a result.
    TaskComplete = "task_complete" | "task_completion";
    /// A task ended without one.
    TaskFailed = "task_failed" | "task_failure";
    /// An agent is asked to do a task.
    TaskRequest = "task_request";
    /// The answer to a task request.
    TaskResponse = "task_response";
    /// Where an agent stands: idle, busy, gone.
    AgentStatus = "agent_status";
    /// A state has changed.
    StatusUpdate = "status_update";
    /// How good a piece of work is.
    QualityReport = "quality_report";
    /// Something is asked of whoever coordinates.
    CoordinationRequest = "coordination_request";
    /// Coordinators bring their states together.
    CoordinationSync = "coordination_sync";
    /// A stage of a run has ended.
    StageComplete = "stage_complete";
    /// Something went wrong.
    Error = "error" | "error_report";
    /// An agent asks for more of a resource.
    ResourceRequest = "resource_request";
    /// More of a resource is granted.
    ResourceGrant = "resource_grant";
    /// An agent offers its task to another.
    HandoffInitiate = "handoff_initiate";
    /// The other takes it, or does not.
    HandoffAcknowledge = "handoff_acknowledge";
    /// For all agents.
    Broadcast = "broadcast";
    /// An agent is still there.
    Heartbeat = "heartbeat";
    /// Data is asked for.
    DataRequest = "data_request";
    /// The data that was asked for.
    DataResponse = "data_response";
    /// Data has changed.
    DataUpdate = "data_update";
    /// A setting has changed.
    ConfigurationChange = "configuration_change";
    /// Something to decide on together.
    Proposal = "proposal";
    /// A voice for or against a proposal.
    Vote = "vote";
    /// What was decided.
    Decision = "decision";
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}

impl Serialize for MessageType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

impl<'de> Deserialize<'de> for MessageType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for MessageType {
    fn schema_name() -> Cow<'static, str> {
        "MessageType".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let types: Vec<_> = Self::ALL
            .iter()
            .map(|(_, name, about)| json_schema!({ "const": name, "description": about.trim() }))
            .collect();
        json_schema!({
            "description": "What a message is: one of Baton's types, or x-NAME for one of the user's own.",
            "anyOf": [{ "oneOf": types }, { "type": "string", "pattern": "^x-[a-z0-9][a-z0-9_-]{0,62}$" }]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m1_every_type_of_the_sources_is_read() {
        for name in [
            // S0
            "task_assignment",
            "task_complete",
            "task_failed",
            "agent_status",
            "quality_report",
            "coordination_request",
            "stage_complete",
            "error",
            // S1
            "task_request",
            "task_response",
            "status_update",
            "resource_request",
            "resource_grant",
            "coordination_sync",
            "handoff_initiate",
            "handoff_acknowledge",
            "broadcast",
            "heartbeat",
            "error_report",
            // S4, without the trading ones
            "task_completion",
            "task_failure",
            "data_request",
            "data_response",
            "data_update",
            "configuration_change",
            "proposal",
            "vote",
            "decision",
        ] {
            let read: MessageType = name.parse().unwrap();
            assert!(!matches!(read, MessageType::Custom(_)), "{name}");
        }
        assert_eq!("x-market_signal".parse::<MessageType>().unwrap().to_string(), "x-market_signal");
        assert!("market_signal".parse::<MessageType>().unwrap_err().to_string().contains("x-NAME"));
    }
}
