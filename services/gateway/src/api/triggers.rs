//! Triggers, and events that are raised.

use axum::Json;
use axum::extract::State;
use baton_protocol::request::{EventStored, ListTriggers, RaiseEvent, SetTrigger, TriggerList, TriggerView};
use baton_protocol::{EventName, Trigger, TriggerName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::runs::{IDEMPOTENCY_KEY, key};
use crate::Door;
use crate::extract::{self, Id, Query};
use crate::problem::Problem;

pub(crate) async fn list(
    State(door): State<Door>,
    Query(asked): Query<ListTriggers>,
) -> Result<Json<TriggerList>, Problem> {
    Ok(Json(door.client.list_triggers(&asked).await?))
}

pub(crate) async fn set(
    State(door): State<Door>,
    Id(name): Id<TriggerName>,
    extract::Json(trigger): extract::Json<Trigger>,
) -> Result<Json<TriggerView>, Problem> {
    Ok(Json(door.client.set_trigger(&SetTrigger { name, trigger }).await?))
}

pub(crate) async fn remove(State(door): State<Door>, Id(name): Id<TriggerName>) -> Result<Json<TriggerView>, Problem> {
    Ok(Json(door.client.remove_trigger(name).await?))
}

/// What happened.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Happened {
    /// Its id: raised once more with the same, it is the same event. A header `Idempotency-Key` says the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// Who raises it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    /// What there is to say about it, as JSON.
    #[serde(default)]
    data: baton_protocol::Json,
}

pub(crate) async fn raise(
    State(door): State<Door>,
    Id(event): Id<EventName>,
    headers: axum::http::HeaderMap,
    extract::Json(happened): extract::Json<Happened>,
) -> Result<Json<EventStored>, Problem> {
    let Happened { id, source, data } = happened;
    let id = key(extract::header(&headers, &IDEMPOTENCY_KEY)?, id)?;
    let id = id.unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    Ok(Json(door.client.raise_event(&RaiseEvent { event, id, source, data }).await?))
}
