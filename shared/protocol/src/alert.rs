//! Alerts: something that a person should know of, raised once, kept until it is over.
//!
//! An alert is of a [`AlertKind`] and about something: an agent, a workflow, a pool. While it is active no second one of that
//! kind about the same is raised. It is *cleared* when what it is about is over; until somebody has *acknowledged* it, it is
//! shown as new.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{Millis, Number};

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertSeverity {
    /// Worth knowing; nothing need be done.
    Informational,
    /// It may become bad.
    Warning,
    /// It is bad.
    Critical,
}

/// What an alert is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertKind {
    /// An agent was not heard of for the time of a lease. Over when it is there again.
    AgentLost,
    /// A circuit breaker opened. Over when it is closed, or its agent is gone.
    BreakerOpened,
    /// An agent whose breaker opened again and again is asked to begin anew. Over when it has, or is gone.
    AgentRestart,
    /// More tasks wait for an agent than should. Over when they are few again.
    QueueDepth,
    /// A run of a workflow failed or took too long. Over when a later one succeeds.
    RunFailed,
    /// Much of a held pool was in use for a while. Over when little of it was for a while.
    PoolUsed,
    /// Much of a consumed pool, of a budget for one, is spent. Over when it is given more.
    BudgetUsed,
    /// There is [pressure](crate::pressure). Over when there is none.
    Pressure,
}

impl AlertKind {
    /// Whether it is about a pool.
    #[must_use]
    pub fn is_of_pool(self) -> bool {
        matches!(self, Self::PoolUsed | Self::BudgetUsed)
    }
}

macro_rules! words {
    ($type:ident, $what:literal, $($variant:ident = $word:literal),+) => {
        impl $type {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As it is written.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|one| one.as_str() == text).ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|one| one.as_str()).collect();
                    format!(concat!($what, " {:?} is not known; there are: {}"), text, all.join(", "))
                })
            }
        }
    };
}

words!(AlertSeverity, "severity", Informational = "informational", Warning = "warning", Critical = "critical");
words!(
    AlertKind,
    "kind",
    AgentLost = "agent_lost",
    BreakerOpened = "breaker_opened",
    AgentRestart = "agent_restart",
    QueueDepth = "queue_depth",
    RunFailed = "run_failed",
    PoolUsed = "pool_used",
    BudgetUsed = "budget_used",
    Pressure = "pressure"
);

/// See [`ResourceRecord::AlertRaised`](crate::record::ResourceRecord::AlertRaised). The record's number is the alert's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AlertRaised {
    /// How much it matters.
    pub severity: AlertSeverity,
    /// What it is of.
    pub kind: AlertKind,
    /// What it is about: an agent, `ann/research` for a breaker, a workflow, a pool.
    pub about: String,
    /// What has happened, for a person.
    pub message: String,
}

/// See [`ResourceRecord::AlertCleared`](crate::record::ResourceRecord::AlertCleared).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AlertCleared {
    /// The alert.
    pub alert: Number,
    /// As it was raised.
    pub severity: AlertSeverity,
    /// As it was raised.
    pub kind: AlertKind,
    /// As it was raised.
    pub about: String,
}

/// See [`ResourceRecord::AlertAcknowledged`](crate::record::ResourceRecord::AlertAcknowledged).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AlertAcknowledged {
    /// The alert.
    pub alert: Number,
    /// As it was raised.
    pub severity: AlertSeverity,
    /// As it was raised.
    pub kind: AlertKind,
    /// Who has seen it, as that one says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// An alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AlertView {
    /// Its id: the number of the record that raised it.
    pub alert: Number,
    /// How much it matters.
    pub severity: AlertSeverity,
    /// What it is of.
    pub kind: AlertKind,
    /// What it is about.
    pub about: String,
    /// What has happened.
    pub message: String,
    /// When, in milliseconds since 1970.
    pub raised_at: Millis,
    /// When it was over; none: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared_at: Option<Millis>,
    /// When somebody acknowledged it; none: nobody has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_at: Option<Millis>,
    /// Who that was, if it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_by: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r11_words_are_written_as_they_are_read() {
        for kind in AlertKind::ALL {
            assert_eq!(serde_json::to_string(kind).unwrap(), format!("\"{kind}\""));
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        for severity in AlertSeverity::ALL {
            assert_eq!(serde_json::to_string(severity).unwrap(), format!("\"{severity}\""));
        }
        assert!("urgent".parse::<AlertSeverity>().unwrap_err().contains("informational, warning, critical"));
    }
}
