//! What may be asked about schedules.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{Millis, RunId};
use crate::name::{ScheduleName, WorkflowName};
use crate::schedule::{Firing, Schedule};

/// Makes a schedule, or changes one. The next time follows from what it says now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SetSchedule {
    /// Its name.
    pub name: ScheduleName,
    /// What it says.
    pub schedule: Schedule,
}

/// Pauses a schedule, or lets it go on: times that came meanwhile are left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PauseSchedule {
    /// Its name.
    pub name: ScheduleName,
    /// Whether it is paused from now on.
    pub paused: bool,
}

/// Removes a schedule. Runs that it started go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RemoveSchedule {
    /// Its name.
    pub name: ScheduleName,
}

/// Gives one schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GetSchedule {
    /// Its name.
    pub name: ScheduleName,
}

/// Lists the schedules.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListSchedules {
    /// Only those of this workflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<WorkflowName>,
    /// At most this many; 100 if none is given, 1000 at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only those after this one: the last of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ScheduleName>,
}

/// The schedules there are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleList {
    /// By name.
    pub schedules: Vec<ScheduleView>,
    /// Whether there are more after them.
    #[serde(default)]
    pub more: bool,
}

/// A schedule as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleView {
    /// Its name.
    pub name: ScheduleName,
    /// What it says.
    pub schedule: Schedule,
    /// When it was made or changed.
    pub set_at: Millis,
    /// When it starts runs next, in milliseconds since 1970: in a list the first time, otherwise several. None while it is paused.
    #[serde(default)]
    pub next: Vec<Millis>,
    /// What came of the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastFiring>,
    /// The last run that it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<RunId>,
}

/// What came of the last time of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastFiring {
    /// The time that had come.
    pub due: Millis,
    /// When it was looked at.
    pub at: Millis,
    /// What came of it.
    pub outcome: Firing,
}
