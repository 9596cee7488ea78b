//! What agents say and hear of handoffs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount::Resources;
use crate::id::{LeaseId, Millis, Number, Part, RunId, TaskId};
use crate::json::Json;
use crate::name::{AgentId, Capability, StageName, WorkflowName};

use super::Assignment;

/// Offers a task that the agent holds to another agent. Offering it again to the same one is asking what became of the offer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OfferHandoff {
    /// The lease.
    pub lease: LeaseId,
    /// Who is to take the task.
    pub to: AgentId,
    /// Where to go on: `{"progress": 0.5, "phase": 2}`, any JSON.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub state: Json,
    /// What has come of it so far: `{"processed_records": 1000}`, any JSON.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub results: Json,
    /// What of the task's resources goes with it: all, unless it is said. What is left out the rest of the work does not need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Larger is to be looked at first.
    #[serde(default)]
    pub priority: i32,
    /// How long the offer stands: from 1 to 3600000 milliseconds; 30000 if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<Millis>,
}

/// The offer stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandoffOpen {
    /// The handoff.
    pub handoff: Number,
    /// How long it stands still, in milliseconds.
    pub timeout_ms: Millis,
}

/// Asks for a task to be handed over, for somebody who is not the agent that holds it: an operator. The offer is made in that
/// one's name and without any state, for nobody else knows how far it is. Asking again while the offer stands is answered the
/// same; so it is when the offer was taken, if `from` was said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AskHandoff {
    /// The run.
    pub run: RunId,
    /// The stage, or `STAGE.ITEM` of one that has a task for each item of a list: its attempt that is under way is meant.
    pub stage: Part,
    /// Who holds it, as far as is known. If another one does by now, nothing is offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<AgentId>,
    /// Who is to take it. Unless it is said: of those that can do it and have room for it the one that has the most of its slots
    /// free, then the one of higher priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<AgentId>,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// How long the offer stands: from 1 to 3600000 milliseconds; 30000 if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<Millis>,
}

/// The task is offered. Whether it is taken the log tells: `handed_over` or `handoff_ended`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandoffAsked {
    /// The handoff.
    pub handoff: Number,
    /// The task.
    pub task: TaskId,
    /// Who holds it.
    pub from: AgentId,
    /// Who is asked to take it.
    pub to: AgentId,
    /// How long the offer stands still, in milliseconds.
    pub timeout_ms: Millis,
}

/// A task that another agent offers: on `baton.to.AGENT.handoff`, and in the answers to heartbeats for as long as the offer
/// stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandoffOffer {
    /// The handoff. The acknowledgement names it.
    pub handoff: Number,
    /// Who gives.
    pub from: AgentId,
    /// The task.
    pub task: TaskId,
    /// Its run.
    pub run: RunId,
    /// Its stage.
    pub stage: StageName,
    /// The workflow.
    pub workflow: WorkflowName,
    /// What the stage asks for.
    pub agent_type: Capability,
    /// Where to go on: `{"progress": 0.5, "phase": 2}`, any JSON.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub state: Json,
    /// What has come of it so far: `{"processed_records": 1000}`, any JSON.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub results: Json,
    /// What the taker is to hold for it, beside one slot.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// Why it is given.
    #[serde(default)]
    pub reason: String,
    /// Larger is to be looked at first.
    #[serde(default)]
    pub priority: i32,
    /// How long the offer stands still, in milliseconds.
    pub timeout_ms: Millis,
}

/// Takes a task that was offered, or does not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AcknowledgeHandoff {
    /// The handoff.
    pub handoff: Number,
    /// Whether the agent takes it.
    pub accepted: bool,
    /// Why not.
    #[serde(default)]
    pub reason: String,
    /// What the giver should know: `{"estimated_completion": 120}`. It is passed on, and kept nowhere.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub response: Json,
}

/// The acknowledgement is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandoffAcknowledged {
    /// The task, for who has taken it. The next heartbeat gives it too, should this get lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment: Option<Assignment>,
}

/// What became of an offer: on `baton.to.AGENT.handed`, for who gave. If it was accepted, the lease is another's now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandoffAnswer {
    /// The handoff.
    pub handoff: Number,
    /// The giver's lease.
    pub lease: LeaseId,
    /// The task.
    pub task: TaskId,
    /// Who was asked.
    pub to: AgentId,
    /// Whether that one has taken it.
    pub accepted: bool,
    /// Why not.
    #[serde(default)]
    pub reason: String,
    /// What that one wanted to be known.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub response: Json,
}
