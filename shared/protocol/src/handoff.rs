//! Handoffs: an agent gives a task that it holds to another agent, with what it has done so far.
//!
//! The holder *offers* the task: it says to whom, where it stands (its state), what has come of it so far, what of the
//! task's resources goes with it, and why. The other agent accepts or rejects. When it accepts, one record ends the giver's
//! lease and begins the other one's, so that at every position of the log the task has one holder. Until then, and when the
//! offer is rejected or nobody answers it in time, the giver holds the task as before.
//!
//! An offer that is open ends with the lease that it is of: when the task is reported, cancelled, or its holder is gone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount::Resources;
use crate::id::{LeaseId, Millis, Number, TaskId};
use crate::json::Json;
use crate::name::AgentId;

/// See [`ResourceRecord::HandoffOffered`](crate::record::ResourceRecord::HandoffOffered). The record's number is the
/// handoff's id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandoffOffered {
    /// The giver's lease.
    pub lease: LeaseId,
    /// Its task.
    pub task: TaskId,
    /// Who gives.
    pub from: AgentId,
    /// Who is to take.
    pub to: AgentId,
    /// What the taker is to hold for the task, beside one slot.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// Where to go on: `{"progress": 0.5, "phase": 2}`, any JSON.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub state: Json,
    /// What has come of it so far: `{"processed_records": 1000}`, any JSON.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub results: Json,
    /// Why: `load_balancing`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Larger is to be looked at first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// When the offer is over, in milliseconds since 1970.
    pub until: Millis,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// See [`ResourceRecord::HandedOver`](crate::record::ResourceRecord::HandedOver). The record's number is the taker's lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandedOver {
    /// The handoff.
    pub handoff: Number,
    /// The giver's lease, which ends here.
    pub lease: LeaseId,
    /// The task.
    pub task: TaskId,
    /// Who gave.
    pub from: AgentId,
    /// Who took.
    pub to: AgentId,
    /// What the taker holds for the task, beside one slot.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// What the taker holds for it of pools, where that is not what the giver held: whoever holds the task pays for it, from its own
    /// account if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pools: Option<Resources>,
}

/// See [`ResourceRecord::HandoffEnded`](crate::record::ResourceRecord::HandoffEnded).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandoffEnded {
    /// The handoff.
    pub handoff: Number,
    /// The giver's lease, which goes on.
    pub lease: LeaseId,
    /// The task.
    pub task: TaskId,
    /// Who goes on.
    pub from: AgentId,
    /// Who did not take it.
    pub to: AgentId,
    /// Whether that one said no; otherwise it said nothing in time.
    pub rejected: bool,
    /// Why, as it was said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What came with a task that was handed over: a part of its [`Assignment`](crate::request::Assignment).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Handover {
    /// The handoff.
    pub handoff: Number,
    /// Who gave it.
    pub from: AgentId,
    /// Where to go on: `{"progress": 0.5, "phase": 2}`, any JSON.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub state: Json,
    /// What has come of it so far: `{"processed_records": 1000}`, any JSON.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub results: Json,
    /// Why it was given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Larger is to be looked at first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
}
