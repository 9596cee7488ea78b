//! What the optimizer learned, to be kept elsewhere or brought from there.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::json::Json;
use crate::name::{AgentId, StageName, WorkflowName};

/// The most lessons that are imported at a time.
pub const MAX_LESSONS: usize = 1000;

/// Asks for what was learned, a page at a time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GetLearning {
    /// Only what comes after this; everything, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Subject>,
}

/// What was learned, or a part of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LearningPage {
    /// In the order of what they are about.
    pub lessons: Vec<Lesson>,
    /// Whether there is more: to be asked for after the last of them.
    pub more: bool,
}

/// Brings what was learned elsewhere. It takes the place of what was learned here of the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ImportLearning {
    /// At most 1000.
    pub lessons: Vec<Lesson>,
}

/// What was learned of one thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Lesson {
    /// What it is about.
    pub of: Subject,
    /// What is known. An object whose fields are the optimizer's; it is read as a whole or refused.
    pub known: Json,
}

/// What something was learned of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// All tasks together.
    AllTasks,
    /// An agent: how fast it is, how it fails, how good it is at what.
    Agent(AgentId),
    /// A kind of work: how long it takes for how much of it.
    Kind(String),
    /// A stage of a workflow: by how much it differs from its kind.
    Stage(WorkflowName, StageName),
}
