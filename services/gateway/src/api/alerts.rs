//! Alerts.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use baton_protocol::Number;
use baton_protocol::request::{AcknowledgeAlert, AlertList, Done, ListAlerts};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::extract::{Id, Query, media_type, read};
use crate::problem::Problem;
use crate::{Door, extract};

/// Who acknowledges an alert.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct Acknowledge {
    /// A name, for those who read it later.
    #[serde(default)]
    by: Option<String>,
}

impl<S: Send + Sync> FromRequest<S> for Acknowledge {
    type Rejection = Problem;

    /// Nothing at all will do.
    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let media = media_type(request.headers());
        let body = read(request.into_body()).await?;
        if body.trim_ascii().is_empty() { Ok(Self::default()) } else { extract::json(media.as_deref(), &body) }
    }
}

pub(crate) async fn list(
    State(door): State<Door>,
    Query(request): Query<ListAlerts>,
) -> Result<Json<AlertList>, Problem> {
    Ok(Json(door.client.list_alerts(&request).await?))
}

pub(crate) async fn acknowledge(
    State(door): State<Door>,
    Id(alert): Id<Number>,
    Acknowledge { by }: Acknowledge,
) -> Result<Json<Done>, Problem> {
    Ok(Json(door.client.acknowledge_alert(&AcknowledgeAlert { alert, by }).await?))
}
