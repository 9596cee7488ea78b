//! The door of this crate: each role is a function from a task's input to its output.
//!
//! A task's input is one JSON object:
//!
//! ```json
//! {
//!   "input":    { "topic": "…", "sources": "folder", "length": 500 },
//!   "results":  { "literature_review": { "extracts": [] } },
//!   "params":   { "section": "Methodology" },
//!   "metadata": { "requires_citations": true }
//! }
//! ```
//!
//! A role finds what it needs among `results` by shape, not by the stage's name: whatever has `extracts` is research,
//! whatever has a `document` is a text. What each role reads beyond that is said at its module.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use rust_decimal::Decimal;
use serde_json::Value;

use crate::corpus::Limits;
use crate::{editing, research, verification, writing};

/// One of the four kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Finds passages; see [`crate::research`].
    Research,
    /// Composes an article; see [`crate::writing`].
    Writing,
    /// Cleans a document; see [`crate::editing`].
    Editing,
    /// Checks its citations; see [`crate::verification`].
    Verification,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Research, Self::Writing, Self::Editing, Self::Verification];

    /// As it is written in a workflow.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Research => "research",
            Self::Writing => "writing",
            Self::Editing => "editing",
            Self::Verification => "verification",
        }
    }

    /// Does the work, offline.
    pub fn run(self, task: &Value, context: &Context) -> Result<Value, RoleError> {
        match self {
            Self::Research => research(task, context),
            Self::Writing => writing(task, context),
            Self::Editing => editing(task, context),
            Self::Verification => verification(task, context),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(name: &str) -> Result<Self, RoleError> {
        Self::ALL.into_iter().find(|role| role.name() == name).ok_or_else(|| {
            RoleError::lasting(format!("{name:?} is not a role: it must be research, writing, editing or verification"))
        })
    }
}

/// What the agent allows, whatever the task says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// Where relative sources are looked for, and outside of which nothing is read; without it, the working directory
    /// and everything the process may read.
    pub root: Option<PathBuf>,
    /// How much is read.
    pub limits: Limits,
}

/// Finds passages; see [`crate::research`].
pub fn research(task: &Value, context: &Context) -> Result<Value, RoleError> {
    research::run(task, context).map(to_value)
}

/// Composes an article; see [`crate::writing`].
pub fn writing(task: &Value, _: &Context) -> Result<Value, RoleError> {
    writing::run(task).map(to_value)
}

/// Cleans a document; see [`crate::editing`].
pub fn editing(task: &Value, _: &Context) -> Result<Value, RoleError> {
    editing::run(task).map(to_value)
}

/// Checks a document's citations; see [`crate::verification`].
///
/// A verdict of "fail" is an error whose [`RoleError::output`] is the whole report, so that the stage fails; with the
/// parameter `"on_fail": "report"` it is a result like any other.
pub fn verification(task: &Value, context: &Context) -> Result<Value, RoleError> {
    verification::run(task, context).and_then(|report| verification::settle(task, report)).map(to_value)
}

pub(crate) fn to_value(output: impl serde::Serialize) -> Value {
    serde_json::to_value(output).expect("outputs have string keys and finite numbers")
}

/// Why a role gave no result.
#[derive(Debug, Clone, PartialEq)]
pub struct RoleError {
    /// What was wrong, where, and what would be right.
    pub message: String,
    /// Whether the same task may succeed when it is tried again.
    pub retryable: bool,
    /// When to try again, if somebody said.
    pub retry_after: Option<Duration>,
    /// What there is to see nonetheless, such as the report of a failed verification.
    pub output: Option<Box<Value>>,
    /// What was spent on a model before it failed.
    pub spent: Option<Box<Spent>>,
}

impl RoleError {
    /// Trying again will not help.
    pub fn lasting(message: impl Into<String>) -> Self {
        Self { message: message.into(), retryable: false, retry_after: None, output: None, spent: None }
    }

    /// Trying again may help.
    pub fn passing(message: impl Into<String>) -> Self {
        Self { retryable: true, ..Self::lasting(message) }
    }
}

impl fmt::Display for RoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for RoleError {}

/// What a model was used for a task.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Spent {
    /// The model that answered, as the endpoint calls it.
    pub model: String,
    /// Tokens it read.
    pub tokens_in: u64,
    /// Tokens it wrote.
    pub tokens_out: u64,
    /// At the configured prices; exact.
    pub cost: Decimal,
}
