//! Circuit breakers: an agent that fails tasks of a capability again and again is given no more of them for a while.
//!
//! A breaker belongs to an agent and a capability, and is *closed* until too many of the last tasks have failed. Then it is
//! *open*: no such task is leased to the agent. After a time it is *half-open*: a few tasks, the probes, are. If they
//! succeed it is closed; if one fails it is open again, for twice as long. It ends with the agent's session: another process
//! begins with closed ones.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::Millis;
use crate::name::{AgentId, Capability};

/// See [`ResourceRecord::BreakerOpened`](crate::record::ResourceRecord::BreakerOpened).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BreakerOpened {
    /// The agent.
    pub agent: AgentId,
    /// What it is given no more.
    pub capability: Capability,
    /// How many of its last tasks failed; of probes, the one that did.
    pub failed: u32,
    /// Of how many.
    pub of: u32,
    /// How often it was opened without having been closed in between, this time included.
    pub times: u32,
    /// When it is tried again, in milliseconds since 1970.
    pub until: Millis,
    /// Whether the agent is asked with this to begin anew, as another session: being given nothing for a while did not help.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restart: bool,
}

/// See [`ResourceRecord::BreakerHalfOpened`](crate::record::ResourceRecord::BreakerHalfOpened).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BreakerHalfOpened {
    /// The agent.
    pub agent: AgentId,
    /// What it is given again.
    pub capability: Capability,
    /// How many tasks must succeed. It is given no more than that many.
    pub probes: u32,
}

/// See [`ResourceRecord::BreakerClosed`](crate::record::ResourceRecord::BreakerClosed).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BreakerClosed {
    /// The agent.
    pub agent: AgentId,
    /// What it is given again as before.
    pub capability: Capability,
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// The agent is given tasks.
    Closed,
    /// It is given some, to see whether it works.
    HalfOpen,
    /// It is given none.
    Open,
}

impl BreakerState {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// A breaker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BreakerView {
    /// What it is about.
    pub capability: Capability,
    /// Where it stands.
    pub state: BreakerState,
    /// How many of the last tasks failed. Nothing is counted while it is open.
    pub failed: u32,
    /// Of how many.
    pub of: u32,
    /// While it is open: when it is tried again, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Millis>,
    /// While it is half-open: how many tasks must still succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes_left: Option<u32>,
}
