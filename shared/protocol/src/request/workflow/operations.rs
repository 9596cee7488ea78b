//! What people may ask for beside starting and cancelling a run: pausing it, repeating a part of it, cancelling many.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::id::{Millis, RunId};
use crate::name::{StageName, WorkflowName};
use crate::run::{Metadata, RunSummary};

/// Pauses a run: it begins nothing new until it is resumed. What agents have in hand goes on, and so do the times that the
/// run and an attempt under way may take; waits for an agent and for the next attempt stand still.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PauseRun {
    /// The run.
    pub run: RunId,
    /// Why, for those who find it paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Lets a paused run go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResumeRun {
    /// The run.
    pub run: RunId,
}

/// Starts a run that repeats another one from a stage on: that stage is done anew, and so is whatever did not succeed, and all
/// that depend on these; the results of the others are kept. It has the same workflow in the same version, and the same
/// input, priority, strategy, metadata and budget, of which nothing is spent yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RerunRun {
    /// The run to repeat: one that has ended.
    pub run: RunId,
    /// From which stage on.
    pub from: StageName,
    /// How much it may cost at the most, where that is another limit than the other run had of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Amount>,
    /// The same key gives the same run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The new run's id, if the client wants to choose it: a UUIDv7. A repeated one gives the same run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_run: Option<RunId>,
}

/// Which runs are meant. All that is said must be true of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunFilter {
    /// Of this workflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<WorkflowName>,
    /// Started at that time or later, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Millis>,
    /// Started before that time, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Millis>,
    /// With all of this in their metadata.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: Metadata,
    /// Only paused ones, or only others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

impl RunFilter {
    /// Whether a run is meant.
    #[must_use]
    pub fn is_meant(&self, run: &RunSummary) -> bool {
        self.workflow.as_ref().is_none_or(|workflow| *workflow == run.workflow)
            && self.since.is_none_or(|since| run.started_at >= since)
            && self.until.is_none_or(|until| run.started_at < until)
            && self.paused.is_none_or(|paused| paused == run.paused)
            && self.metadata.iter().all(|(key, value)| run.metadata.get(key) == Some(value))
    }

    /// Whether every run is meant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Cancels live runs, the oldest first. So many at a time as may be done at once: whoever wants all of them asks again
/// until there are no more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CancelRuns {
    /// Which. One that means every run must be given with `all`.
    #[serde(default)]
    pub filter: RunFilter,
    /// That every run is meant indeed, if the filter says nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Why, for those who read their history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// At most this many; 100 if none is given, which is also the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Which runs were cancelled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunsCancelled {
    /// These, the oldest first.
    pub runs: Vec<RunId>,
    /// Whether there are more of them.
    pub more: bool,
}
