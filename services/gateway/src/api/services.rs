//! The services themselves.

use axum::Json;
use axum::extract::State;
use baton_protocol::request::InstanceStatus;
use schemars::JsonSchema;
use serde::Serialize;

use crate::Door;
use crate::problem::Problem;

/// How every instance of every service stands.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct InstanceList {
    /// Service by service.
    instances: Vec<InstanceStatus>,
}

pub(crate) async fn list(State(door): State<Door>) -> Result<Json<InstanceList>, Problem> {
    Ok(Json(InstanceList { instances: door.client.all_statuses().await? }))
}
