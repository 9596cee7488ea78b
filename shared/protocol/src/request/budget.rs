//! What may be asked of the resource-manager about money: to share it out, to give more, to say what it went for.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::id::{Millis, TaskId};
use crate::name::ResourceName;

/// Shares out what is left of a consumed pool among pools that are a part of it: the size of each becomes what is set aside and
/// spent there, and its share. Never more is given out than there is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SharePool {
    /// The pool whose rest is shared out.
    pub name: ResourceName,
    /// Among which of its parts, and how.
    pub by: ShareBy,
}

/// How something is shared out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ShareBy {
    /// In proportion to the priority of each. If none is named, among the agents that have a part of it (`agent:ID`), by the
    /// priority that each registered with; none has less than 1.
    Priority(BTreeMap<ResourceName, u32>),
    /// In proportion to the workload of each: 0.3 of the tasks done lately and 0.7 of those that wait.
    Workload {
        /// The workload of each. If none is named, among the agents that have a part of it (`agent:ID`): what each has ended in
        /// the last five to ten minutes, and what it has in hand.
        #[serde(default)]
        of: BTreeMap<ResourceName, Workload>,
        /// What each has at the least, as far as there is as much.
        #[serde(default)]
        minimum: Amount,
    },
}

/// How much somebody has to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Workload {
    /// Tasks that were done lately.
    #[serde(default)]
    pub recent: u32,
    /// Tasks that wait.
    #[serde(default)]
    pub pending: u32,
}

/// Gives an account more. What waits for it goes on as far as that is enough.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApproveBudget {
    /// The account.
    pub name: ResourceName,
    /// How much more.
    pub amount: Amount,
}

/// Says that an account gets no more: the task that was asked for fails, acquisitions that wait for it are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DenyBudget {
    /// The account.
    pub name: ResourceName,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Somebody is asked whether an account gets more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalView {
    /// How much is wanted of it.
    pub wanted: Amount,
    /// The task that wants it, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// Since when, in milliseconds since 1970.
    pub since: Millis,
}

/// What was spent, added up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GetSpending {
    /// By what.
    pub by: SpentBy,
    /// Only after this key: to go on where a list ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// By what it is added up what was spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpentBy {
    /// By run: of the latest ten thousand.
    Run,
    /// By stage, as `WORKFLOW/STAGE`.
    Stage,
    /// By agent.
    Agent,
    /// By model, as agents name it.
    Model,
    /// By attempt: what goes to the second and later ones is spent again.
    Attempt,
}

impl SpentBy {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Run, Self::Stage, Self::Agent, Self::Model, Self::Attempt];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Stage => "stage",
            Self::Agent => "agent",
            Self::Model => "model",
            Self::Attempt => "attempt",
        }
    }
}

impl fmt::Display for SpentBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for SpentBy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|by| by.as_str() == text);
        known.ok_or_else(|| "it must be run, stage, agent, model or attempt".to_owned())
    }
}

/// What was spent. The rows and the rest are the total, to the last digit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spending {
    /// All that was ever spent, by tasks that said what they cost or used.
    pub total: Spent,
    /// What of it has no row: runs, agents and models of long ago, where there are too many, and tasks that named no model.
    pub rest: Spent,
    /// By key: see [`SpentBy`].
    pub rows: Vec<SpentRow>,
    /// Whether there are more than the list has room for: ask on with `after`.
    #[serde(default)]
    pub more: bool,
}

/// What was spent by one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SpentRow {
    /// Who or what it is.
    pub key: String,
    /// What was spent.
    pub spent: Spent,
}

/// What tasks cost and used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spent {
    /// How many attempts.
    pub attempts: u64,
    /// How many of them failed.
    pub failed: u64,
    /// What they cost, with at most nine decimal places.
    pub cost: Amount,
    /// Tokens read by models.
    pub tokens_in: u64,
    /// Tokens written by models.
    pub tokens_out: u64,
}
