//! Agents. What is asked of their metadata may come in two ways: as one JSON object, or key by key as people write it.

use axum::Json;
use axum::extract::{RawQuery, State};
use baton_protocol::request::{AgentList, AgentsFound, FindAgents, ListAgents};
use baton_protocol::{Capability, Requirements, Resources};
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

#[derive(Debug, Deserialize)]
pub(crate) struct Wanted {
    capability: Capability,
    metadata: Option<String>,
    limit: Option<u32>,
}

pub(crate) async fn list(
    State(door): State<Door>,
    Query(filter): Query<Filter>,
    RawQuery(query): RawQuery,
) -> Result<Json<AgentList>, Problem> {
    Ok(Json(door.client.list_agents(&asked(filter, query.as_deref())?).await?))
}

/// Which agents are asked for.
pub(crate) fn asked(filter: Filter, query: Option<&str>) -> Result<ListAgents, Problem> {
    let Filter { capability, metadata, gone } = filter;
    let requires = requires(metadata, query)?;
    Ok(ListAgents { capability, requires, gone })
}

pub(crate) async fn find(
    State(door): State<Door>,
    Query(wanted): Query<Wanted>,
    RawQuery(query): RawQuery,
) -> Result<Json<AgentsFound>, Problem> {
    let Wanted { capability, metadata, limit } = wanted;
    let requires = requires(metadata, query.as_deref())?;
    let request = FindAgents { capability, requires, resources: Resources::new(), limit };
    Ok(Json(door.client.find_agents(&request).await?))
}

fn requires(metadata: Option<String>, query: Option<&str>) -> Result<Requirements, Problem> {
    let read = |text: String| {
        serde_json::from_str(&text)
            .map_err(|error| Problem::invalid(format!("the query parameter metadata can not be read: {error}")))
    };
    let mut all: Requirements = metadata.map(read).transpose()?.unwrap_or_default();
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    for (_, text) in pairs.filter(|(name, _)| name == "require") {
        all.add_text(&text).map_err(|error| Problem::invalid(format!("the query parameter require: {error}")))?;
    }
    Ok(all)
}
