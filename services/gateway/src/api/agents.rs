//! Agents.

use axum::Json;
use axum::extract::State;
use baton_protocol::Capability;
use baton_protocol::request::{AgentList, ListAgents};
use serde::Deserialize;

use crate::Door;
use crate::extract::Query;
use crate::problem::Problem;

#[derive(Debug, Deserialize)]
pub(crate) struct Filter {
    capability: Option<Capability>,
    metadata: Option<String>,
    #[serde(default)]
    gone: bool,
}

pub(crate) async fn list(State(door): State<Door>, Query(filter): Query<Filter>) -> Result<Json<AgentList>, Problem> {
    let Filter { capability, metadata, gone } = filter;
    let read = |text: String| {
        serde_json::from_str(&text)
            .map_err(|error| Problem::invalid(format!("the query parameter metadata is not a JSON object: {error}")))
    };
    let metadata = metadata.map(read).transpose()?.unwrap_or_default();
    Ok(Json(door.client.list_agents(&ListAgents { capability, metadata, gone }).await?))
}
