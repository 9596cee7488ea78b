//! Pressure: more is to be done than can be, and what matters least waits first.
//!
//! The resource-manager judges by how many tasks wait for an agent, how many slots its agents have, and how much memory its
//! process takes. A [level](PressureLevel) other than `none` says which priority is too low for now: runs of less are refused
//! and told when to ask again, and tasks of less, of runs that were accepted before, are leased to nobody while any other
//! task waits. They start by themselves when none does or the pressure is over, and each has waited long enough after
//! [`longest_ms`](PressureChanged::longest_ms), whatever else waits.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::Millis;

/// How much pressure there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PressureLevel {
    /// None to speak of.
    #[default]
    None,
    /// What matters least waits.
    Elevated,
    /// Only what matters most goes on.
    Critical,
}

impl PressureLevel {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::None, Self::Elevated, Self::Critical];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Elevated => "elevated",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for PressureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What there is pressure from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PressureCause {
    /// Many tasks wait.
    Queue,
    /// Many tasks wait for each slot of the agents that are there.
    Slots,
    /// The service takes much of the memory that it may take.
    Memory,
}

impl PressureCause {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Slots => "slots",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for PressureCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// See [`ResourceRecord::PressureChanged`](crate::record::ResourceRecord::PressureChanged).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PressureChanged {
    /// How much there is from here on.
    pub level: PressureLevel,
    /// What from; nothing where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<PressureCause>,
    /// What is of less priority than this waits. It says nothing where there is none.
    pub below: i32,
    /// How long a task waits for that at the most, from when it was ready, in milliseconds.
    pub longest_ms: Millis,
    /// When it is expected to have fallen, by how fast tasks have been leased lately, in milliseconds since 1970. If it has not
    /// by then, this record is written once more.
    pub until: Millis,
    /// How many tasks wait for an agent.
    pub waiting: u64,
    /// How many slots the agents that are there have, used or not.
    pub slots: u64,
    /// How much of the memory that the service may take it takes, in per cent; none where that can not be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_percent: Option<u32>,
}

impl PressureChanged {
    /// Whether a task waits, as long as any other does that matters more: it is of so much priority, and was ready then.
    #[must_use]
    pub fn holds_back(&self, priority: i32, ready_at: Millis, now: Millis) -> bool {
        priority < self.below && now < self.held_until(ready_at)
    }

    /// Until when it does at the most.
    #[must_use]
    pub fn held_until(&self, ready_at: Millis) -> Millis {
        ready_at.saturating_add(self.longest_ms)
    }
}

/// How things stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PressureView {
    /// How much there is.
    pub level: PressureLevel,
    /// What from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<PressureCause>,
    /// Since when it is at this level, in milliseconds since 1970; none where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Millis>,
    /// What is of less priority than this waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<i32>,
    /// When a run that is refused is to be asked for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<Millis>,
    /// How many tasks wait for an agent.
    pub waiting: u64,
    /// How many of them are of less priority than that.
    pub waiting_below: u64,
    /// How many slots the agents that are there have, used or not.
    pub slots: u64,
    /// How much of the memory that it may take the service takes, in per cent; none where that can not be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_percent: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r13_a_task_is_held_back_by_its_priority_and_not_for_ever() {
        let pressure = PressureChanged {
            level: PressureLevel::Elevated,
            causes: vec![PressureCause::Queue],
            below: 0,
            longest_ms: 500,
            until: 9000,
            waiting: 7,
            slots: 1,
            memory_percent: None,
        };
        let held = |priority, now| pressure.holds_back(priority, 1000, now);
        assert_eq!([held(-1, 1000), held(-1, 1499), held(-1, 1500)], [true, true, false]);
        assert!(!held(0, 1000) && held(i32::MIN, 1200));
        for level in PressureLevel::ALL {
            assert_eq!(serde_json::to_string(level).unwrap(), format!("\"{level}\""));
        }
    }
}
