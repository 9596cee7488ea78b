//! What people do with runs: pause them, repeat them, have them forgotten. And what a run is that another one has started.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::definition::Definition;
use crate::id::{RunId, TaskId};
use crate::json::Json;
use crate::name::StageName;

/// See [`WorkflowRecord::RunPaused`](super::WorkflowRecord::RunPaused).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunPaused {
    /// The run.
    pub run: RunId,
    /// Why, if somebody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// It is paused because the run is that it is a part of, and goes on with that one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_parent: bool,
}

/// See [`WorkflowRecord::RunResumed`](super::WorkflowRecord::RunResumed).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunResumed {
    /// The run.
    pub run: RunId,
}

/// See [`WorkflowRecord::RunsForgotten`](super::WorkflowRecord::RunsForgotten).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunsForgotten {
    /// Those that are forgotten, in the order of their ends; with each, those that are a part of it.
    pub runs: Vec<RunId>,
}

/// What a run is a part of: the attempt at a stage of another run that it makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Parent {
    /// That attempt, and with it the run.
    pub task: TaskId,
    /// How many runs it is a part of, one within the other: 1 where the other run is a part of none.
    pub depth: u32,
}

/// What an agent wants to be done by others, in place of a result of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Delegated {
    /// The stages, as a workflow that is there for this once.
    pub definition: Arc<Definition>,
    /// What a run of it is given instead of the input of the run around it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Json>,
    /// Whether an agent is to put together what comes of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub aggregate: bool,
}

/// What a run repeats of another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rerun {
    /// The other run.
    pub of: RunId,
    /// The stage from which on everything is done anew.
    pub from: StageName,
    /// The stages that are not, with what came of them in the other run.
    #[serde(default)]
    pub kept: Vec<KeptStage>,
}

/// A stage that another run has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KeptStage {
    /// Its name.
    pub stage: StageName,
    /// What came of it, if anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
}
