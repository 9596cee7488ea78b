//! Schedules: workflows that are started by themselves, at certain times.
//!
//! When that is, the workflow-manager decides, and writes down with each start when the next one is. So no start happens twice,
//! whoever leads, and a restart forgets none.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::budget::Budget;
use crate::id::{Millis, RunId};
use crate::json::Json;
use crate::name::{ScheduleName, WorkflowName};
use crate::request::Strategy;
use crate::run::Metadata;

/// The least time between two starts of a schedule with `every_ms`, in milliseconds.
pub const MIN_EVERY_MS: Millis = 1000;
/// The most: a hundred days, in milliseconds.
pub const MAX_EVERY_MS: Millis = 100 * 24 * 3600 * 1000;

/// How late a run may start where nothing else is said: an hour, in milliseconds.
pub const LATE_MS: Millis = 3_600_000;

/// The key in the metadata of a run that names the schedule which started it.
pub const SCHEDULE_KEY: &str = "schedule";
/// The key in the metadata of a run that says for when it was scheduled, as the schedule's time zone tells the time.
pub const SCHEDULED_KEY: &str = "scheduled_for";

/// When a workflow is started, and how. It says when with `cron` or with `every_ms`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The workflow.
    pub workflow: WorkflowName,
    /// The version; the one that is the latest at each start if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// When, as cron has it: minute, hour, day of the month, month, day of the week, as in `30 9 * * mon-fri`; with a sixth field
    /// in front, seconds. Also `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// Where `cron` tells the time: a name of the IANA time zone database, as `Europe/Berlin`. `UTC` if none is given. A time that is
    /// left out when clocks go forward is made up for right after; one that comes twice when they go back is taken once, unless
    /// the minute or hour is `*` or has a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// In place of `cron`: every so many milliseconds, counted from 1970; at least a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<Millis>,
    /// Given to every run: a JSON object.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub input: Json,
    /// Larger goes first.
    #[serde(default, skip_serializing_if = "crate::record::is_zero")]
    pub priority: i32,
    /// How the tasks of its runs are placed; as those of all runs are, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// In how many milliseconds a run should have ended. Placement strives for it; nothing ends because of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_ms: Option<Millis>,
    /// What each run may cost; as the definition says, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// What is noted about each run, to find it again. The keys `schedule` and `scheduled_for` are added.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: Metadata,
    /// The stages of its runs are done, whatever was done before: no result is used again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
    /// What happens when the time comes and the run before is still live.
    #[serde(default, skip_serializing_if = "Overlap::is_skip")]
    pub overlap: Overlap,
    /// How late a run may still start that could not start in time, because nobody led or too much was to be done: in milliseconds, an
    /// hour if none is given. However many times were missed, one run makes up for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_ms: Option<Millis>,
    /// Nothing is started while it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

impl Schedule {
    /// How late a run may start, in milliseconds.
    #[must_use]
    pub fn late_ms(&self) -> Millis {
        self.late_ms.unwrap_or(LATE_MS)
    }
}

/// What happens when a schedule's time comes and the run that it started before is still live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// This time is left out.
    #[default]
    Skip,
    /// Both run.
    Allow,
    /// The run before is cancelled.
    Cancel,
}

impl Overlap {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Skip, Self::Allow, Self::Cancel];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Allow => "allow",
            Self::Cancel => "cancel",
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
    fn is_skip(&self) -> bool {
        *self == Self::Skip
    }
}

impl std::fmt::Display for Overlap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Overlap {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|overlap| overlap.as_str() == text);
        found.ok_or_else(|| "it must be skip, allow or cancel".to_owned())
    }
}

/// See [`WorkflowRecord::ScheduleSet`](crate::WorkflowRecord::ScheduleSet).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleSet {
    /// Its name.
    pub name: ScheduleName,
    /// What it says.
    pub schedule: Schedule,
    /// When it starts a run next; none while it is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Millis>,
}

/// See [`WorkflowRecord::ScheduleRemoved`](crate::WorkflowRecord::ScheduleRemoved).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleRemoved {
    /// Its name.
    pub name: ScheduleName,
    /// The workflow that it started.
    pub workflow: WorkflowName,
}

/// See [`WorkflowRecord::ScheduleFired`](crate::WorkflowRecord::ScheduleFired).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleFired {
    /// Its name.
    pub name: ScheduleName,
    /// The workflow.
    pub workflow: WorkflowName,
    /// The time that had come.
    pub due: Millis,
    /// What came of it.
    pub outcome: Firing,
    /// When the next one is; none if no time ever fits again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Millis>,
}

/// What came of a time of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Firing {
    /// A run was started.
    Started(RunId),
    /// The run before was still live.
    Skipped(RunId),
    /// It was too late when somebody could look.
    Late,
    /// The run can not be started, and why.
    Refused(String),
}

impl Firing {
    /// As it is counted.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Started(_) => "started",
            Self::Skipped(_) => "skipped",
            Self::Late => "late",
            Self::Refused(_) => "refused",
        }
    }
}

impl std::fmt::Display for Firing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Started(run) => write!(f, "run {run} was started"),
            Self::Skipped(run) => write!(f, "left out: run {run} was still live"),
            Self::Late => f.write_str("left out: it was too late when it could be looked at"),
            Self::Refused(why) => write!(f, "refused: {why}"),
        }
    }
}
