//! Pressure.

use axum::Json;
use axum::extract::State;
use baton_protocol::pressure::PressureView;

use crate::Door;
use crate::problem::Problem;

pub(crate) async fn get(State(door): State<Door>) -> Result<Json<PressureView>, Problem> {
    Ok(Json(door.client.pressure().await?))
}
