//! Workflows.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use baton_protocol::WorkflowName;
use baton_protocol::request::{GetWorkflow, ListWorkflows, RegisterWorkflow, WorkflowList, WorkflowView};
use serde::Deserialize;

use crate::Door;
use crate::extract::{Id, Query, is_json, json, media_type, read, unsupported};
use crate::problem::Problem;

/// The media types of a definition as it is written. The first is RFC 9512's; the others are older than that.
const YAML: [&str; 4] = ["application/yaml", "text/yaml", "application/x-yaml", "text/x-yaml"];

pub(crate) async fn list(
    State(door): State<Door>,
    Query(asked): Query<ListWorkflows>,
) -> Result<Json<WorkflowList>, Problem> {
    Ok(Json(door.client.list_workflows(&asked).await?))
}

pub(crate) async fn register(State(door): State<Door>, Sent(request): Sent) -> Result<Response, Problem> {
    let view = door.client.register_workflow(&request).await?;
    let location = format!("/v1/workflows/{}?version={}", view.definition.name, view.version);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(view)).into_response())
}

pub(crate) async fn validate(State(door): State<Door>, Sent(request): Sent) -> Result<Json<WorkflowView>, Problem> {
    Ok(Json(door.client.validate_workflow(&request).await?))
}

#[derive(Debug, Deserialize)]
pub(crate) struct Which {
    version: Option<u32>,
}

pub(crate) async fn get(
    State(door): State<Door>,
    Id(name): Id<WorkflowName>,
    Query(Which { version }): Query<Which>,
) -> Result<Json<WorkflowView>, Problem> {
    Ok(Json(door.client.get_workflow(&GetWorkflow { name, version }).await?))
}

/// Gives the workflow that is called `validate`.
pub(crate) async fn get_validate(door: State<Door>, which: Query<Which>) -> Result<Json<WorkflowView>, Problem> {
    let name = WorkflowName::new("validate").map_err(|error| Problem::invalid(error.to_string()))?;
    get(door, Id(name), which).await
}

/// A definition as it was sent: wrapped in JSON, or as it is written.
pub(crate) struct Sent(RegisterWorkflow);

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let media = media_type(request.headers());
        let body = read(request.into_body()).await?;
        match media.as_deref() {
            Some(media) if is_json(media) => json(Some(media), &body).map(Self),
            Some(media) if YAML.contains(&media) => {
                let source = String::from_utf8(body.into())
                    .map_err(|error| Problem::invalid(format!("the body is not UTF-8: {error}")))?;
                Ok(Self(RegisterWorkflow { source: Some(source), definition: None }))
            }
            media => Err(unsupported(media, "application/json, application/yaml or text/yaml")),
        }
    }
}
