//! What services answer, as it changes, as server-sent events.

use axum::extract::{RawQuery, State};
use axum::response::Response;
use baton_client::{Live, Shown};
use baton_protocol::request::{ListAlerts, PoolView};
use baton_protocol::{Measure, ResourceName};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};

use crate::Door;
use crate::api::agents::{Filter, asked};
use crate::events::{KEEP_ALIVE, data, opening, response};
use crate::extract::Query;
use crate::problem::Problem;

pub(crate) async fn agents(
    State(door): State<Door>,
    Query(filter): Query<Filter>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let live = door.client.live_agents(asked(filter, query.as_deref())?).await?;
    Ok(streamed(&door, "agents", live))
}

pub(crate) async fn pools(State(door): State<Door>) -> Result<Response, Problem> {
    Ok(streamed(&door, "pools", door.client.live_pools(|_| true).await?))
}

pub(crate) async fn budgets(State(door): State<Door>) -> Result<Response, Problem> {
    let is_budget = |view: &PoolView| view.pool.measure == Some(Measure::Cost);
    Ok(streamed(&door, "budgets", door.client.live_pools(is_budget).await?))
}

/// Of which lock.
#[derive(Debug, Deserialize)]
pub(crate) struct Lock {
    name: Option<ResourceName>,
}

pub(crate) async fn locks(State(door): State<Door>, Query(asked): Query<Lock>) -> Result<Response, Problem> {
    Ok(streamed(&door, "locks", door.client.live_locks(asked.name).await?))
}

/// Of which pool.
#[derive(Debug, Deserialize)]
pub(crate) struct Of {
    pool: Option<ResourceName>,
}

pub(crate) async fn leases(State(door): State<Door>, Query(asked): Query<Of>) -> Result<Response, Problem> {
    Ok(streamed(&door, "leases", door.client.live_leases(asked.pool).await?))
}

pub(crate) async fn alerts(State(door): State<Door>, Query(asked): Query<ListAlerts>) -> Result<Response, Problem> {
    Ok(streamed(&door, "alerts", door.client.live_alerts(asked).await?))
}

/// Each answer that is another one. An error that may pass is told, and the stream goes on.
fn streamed<A: Serialize + Send + 'static>(door: &Door, kind: &'static str, live: Live<A>) -> Response {
    let answers = live.filter_map(async move |shown| match shown {
        Ok(Shown { answer, changed }) => changed.then(|| data(kind, &answer)),
        Err(error) => Some(data("problem", &Problem::from(error).details())),
    });
    let events = stream::iter([opening("answers as they change")]).chain(answers);
    response(events.take_until(door.shutdown.clone().cancelled_owned()), KEEP_ALIVE)
}
