//! Refusals: part of the protocol, with a stable code each.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::Millis;

/// A request that was refused. The code says what a program can do about it, the message says it to a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rejection {
    /// The stable code.
    pub code: Code,
    /// What was wrong, where, and what would be right.
    pub message: String,
    /// When to try again, where waiting helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<Millis>,
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request can not be read: it is not JSON, a field is missing or has a wrong type, a name breaks the rule.
    InvalidRequest,
    /// The workflow definition is wrong.
    InvalidWorkflow,
    /// No such workflow, or no such version of it.
    UnknownWorkflow,
    /// No such run.
    UnknownRun,
    /// The agent is not registered: it should register.
    UnknownAgent,
    /// No such alert, or it is forgotten.
    UnknownAlert,
    /// No such handoff, or it is over: what was offered is not to be had any more.
    UnknownHandoff,
    /// No such schedule.
    UnknownSchedule,
    /// No such trigger.
    UnknownTrigger,
    /// No such object: there never was, or it was kept as long as objects are.
    UnknownObject,
    /// The agent has registered again with another session: this process should stop.
    AgentReplaced,
    /// The lease has ended or was never given: the report changes nothing, the work should be dropped.
    StaleLease,
    /// The idempotency key was used for a different request.
    KeyConflict,
    /// The run has already ended.
    RunEnded,
    /// Something is larger than allowed.
    TooLarge,
    /// No agent can take the task now: a placement's refusal.
    NoCapacity,
    /// The task is not waiting for an agent: a placement's refusal.
    NotReady,
    /// The stage waits for nobody's word: it has not begun, or the word was given otherwise. Or the run was given such a signal
    /// already, with something else.
    NotWaiting,
    /// No such pool: nothing of that name can be acquired.
    UnknownResource,
    /// A pool has not as much as was asked for, or others have waited for it longer.
    PoolExhausted,
    /// A pool can not be changed so, or removed, while as much of it is in use.
    PoolInUse,
    /// Too much is under way: as many runs are live as are allowed, or too many requests wait. Nothing was stored; ask
    /// again after `retry_after_ms`.
    Overloaded,
    /// The service can not answer now; ask again.
    Unavailable,
    /// A defect in Baton.
    Internal,
    /// A code this reader does not know yet.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// Every code, for the documentation.
    pub const ALL: [Self; 24] = [
        Self::InvalidRequest,
        Self::InvalidWorkflow,
        Self::UnknownWorkflow,
        Self::UnknownRun,
        Self::UnknownAgent,
        Self::UnknownAlert,
        Self::UnknownHandoff,
        Self::UnknownSchedule,
        Self::UnknownTrigger,
        Self::UnknownObject,
        Self::AgentReplaced,
        Self::StaleLease,
        Self::KeyConflict,
        Self::RunEnded,
        Self::TooLarge,
        Self::NoCapacity,
        Self::NotReady,
        Self::NotWaiting,
        Self::UnknownResource,
        Self::PoolExhausted,
        Self::PoolInUse,
        Self::Overloaded,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The code as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidWorkflow => "invalid_workflow",
            Self::UnknownWorkflow => "unknown_workflow",
            Self::UnknownRun => "unknown_run",
            Self::UnknownAgent => "unknown_agent",
            Self::UnknownAlert => "unknown_alert",
            Self::UnknownHandoff => "unknown_handoff",
            Self::UnknownSchedule => "unknown_schedule",
            Self::UnknownTrigger => "unknown_trigger",
            Self::UnknownObject => "unknown_object",
            Self::AgentReplaced => "agent_replaced",
            Self::StaleLease => "stale_lease",
            Self::KeyConflict => "key_conflict",
            Self::RunEnded => "run_ended",
            Self::TooLarge => "too_large",
            Self::NoCapacity => "no_capacity",
            Self::NotReady => "not_ready",
            Self::NotWaiting => "not_waiting",
            Self::UnknownResource => "unknown_resource",
            Self::PoolExhausted => "pool_exhausted",
            Self::PoolInUse => "pool_in_use",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }

    /// A title for people, the same for every rejection of this code.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::InvalidRequest => "The request can not be read",
            Self::InvalidWorkflow => "The workflow definition is wrong",
            Self::UnknownWorkflow => "No such workflow",
            Self::UnknownRun => "No such run",
            Self::UnknownAgent => "The agent is not registered",
            Self::UnknownAlert => "No such alert",
            Self::UnknownHandoff => "No such handoff",
            Self::UnknownSchedule => "No such schedule",
            Self::UnknownTrigger => "No such trigger",
            Self::UnknownObject => "No such object",
            Self::AgentReplaced => "The agent has registered again elsewhere",
            Self::StaleLease => "The lease has ended",
            Self::KeyConflict => "The idempotency key was used for another request",
            Self::RunEnded => "The run has ended",
            Self::TooLarge => "Something is too large",
            Self::NoCapacity => "No capacity now",
            Self::NotReady => "The task is not waiting for an agent",
            Self::NotWaiting => "Nobody's word is waited for",
            Self::UnknownResource => "No such pool",
            Self::PoolExhausted => "The pool has not as much now",
            Self::PoolInUse => "The pool is in use",
            Self::Overloaded => "Too much is under way",
            Self::Unavailable => "The service can not answer now",
            Self::Internal => "A defect in Baton",
            Self::Unknown => "Unknown",
        }
    }

    /// The HTTP status that says the same; also the `Nats-Service-Error-Code`.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::InvalidWorkflow => 422,
            Self::UnknownWorkflow
            | Self::UnknownRun
            | Self::UnknownAgent
            | Self::UnknownAlert
            | Self::UnknownHandoff
            | Self::UnknownSchedule
            | Self::UnknownTrigger
            | Self::UnknownObject
            | Self::UnknownResource => 404,
            Self::AgentReplaced
            | Self::StaleLease
            | Self::KeyConflict
            | Self::RunEnded
            | Self::NotReady
            | Self::NotWaiting
            | Self::PoolInUse => 409,
            Self::TooLarge => 413,
            // Not 429: that is for an asker who asks too often. The limit counts everybody's runs, and whoever meets it
            // has done nothing wrong, nor has one whose priority is too low for now; "a temporary overload" with `Retry-After` is
            // what 503 is for (RFC 9110, 15.6.4).
            Self::NoCapacity | Self::PoolExhausted | Self::Overloaded | Self::Unavailable => 503,
            Self::Internal | Self::Unknown => 500,
        }
    }

    /// Whether asking again, unchanged, may succeed.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::NoCapacity | Self::PoolExhausted | Self::Overloaded | Self::Unavailable)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Rejection {
    /// A rejection.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_ms: None }
    }

    /// A request that can not be read.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, message)
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, ms: Millis) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Rejection {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_as_they_are_named_and_unknown_ones_are_read() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{code}\""));
        }
        assert_eq!(serde_json::from_str::<Code>("\"from_the_future\"").unwrap(), Code::Unknown);
    }
}
