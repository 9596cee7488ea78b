//! What people do with runs: find, pause, repeat, cancel many.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use baton_protocol::request::{CancelRuns, ListRuns, PauseRun, RerunRun, RunAccepted, RunList, RunsCancelled};
use baton_protocol::run::RunStatus;
use baton_protocol::{Amount, Millis, RunId, StageName, WorkflowName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::runs::{Cancel, IDEMPOTENCY_KEY, key};
use crate::Door;
use crate::extract::{self, Id, Query};
use crate::problem::Problem;

/// What follows the question mark where runs are listed.
#[derive(Debug, Deserialize)]
pub(crate) struct Wanted {
    workflow: Option<WorkflowName>,
    status: Option<RunStatus>,
    limit: Option<u32>,
    before: Option<RunId>,
    since: Option<Millis>,
    until: Option<Millis>,
    metadata: Option<String>,
    paused: Option<bool>,
    #[serde(default)]
    children: bool,
    parent: Option<RunId>,
}

pub(crate) async fn list(State(door): State<Door>, Query(wanted): Query<Wanted>) -> Result<Json<RunList>, Problem> {
    let Wanted { workflow, status, limit, before, since, until, metadata, paused, children, parent } = wanted;
    let read = |text: String| {
        serde_json::from_str(&text).map_err(|error| {
            Problem::invalid(format!("the query parameter metadata is not a JSON object of texts: {error}"))
        })
    };
    let metadata = metadata.map(read).transpose()?.unwrap_or_default();
    let request = ListRuns { workflow, status, limit, before, since, until, metadata, paused, children, parent };
    Ok(Json(door.client.list_runs(&request).await?))
}

pub(crate) async fn pause(
    State(door): State<Door>,
    Id(run): Id<RunId>,
    reason: Cancel,
) -> Result<Json<RunAccepted>, Problem> {
    Ok(Json(door.client.pause_run(&PauseRun { run, reason: reason.into_reason() }).await?))
}

pub(crate) async fn resume(State(door): State<Door>, Id(run): Id<RunId>) -> Result<Json<RunAccepted>, Problem> {
    Ok(Json(door.client.resume_run(run).await?))
}

pub(crate) async fn cancel(
    State(door): State<Door>,
    extract::Json(request): extract::Json<CancelRuns>,
) -> Result<Json<RunsCancelled>, Problem> {
    Ok(Json(door.client.cancel_runs(&request).await?))
}

/// From where on a run is repeated.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct From {
    /// The stage that is done anew, with all that depend on it.
    from: StageName,
    /// How much it may cost at the most, where that is another limit than the other run had of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<Amount>,
    /// The same key gives the same run. A header `Idempotency-Key` says the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

pub(crate) async fn rerun(
    State(door): State<Door>,
    Id(run): Id<RunId>,
    headers: axum::http::HeaderMap,
    extract::Json(from): extract::Json<From>,
) -> Result<Response, Problem> {
    let key = key(extract::header(&headers, &IDEMPOTENCY_KEY)?, from.key)?;
    // As with a start, it is the key that makes a repeated request the same.
    let request = RerunRun { run, from: from.from, limit: from.limit, key, new_run: None };
    let accepted = door.client.rerun_run(request).await?;
    let status = if accepted.existing { StatusCode::OK } else { StatusCode::CREATED };
    let location = format!("/v1/runs/{}", accepted.run);
    Ok((status, [(LOCATION, location)], Json(accepted)).into_response())
}
