//! Placement.

use axum::Json;
use axum::extract::State;
use baton_protocol::request::{Done, PlacementView, SetStrategy};

use crate::problem::Problem;
use crate::{Door, extract};

pub(crate) async fn get(State(door): State<Door>) -> Result<Json<PlacementView>, Problem> {
    Ok(Json(door.client.get_placement().await?))
}

pub(crate) async fn set_strategy(
    State(door): State<Door>,
    extract::Json(SetStrategy { strategy }): extract::Json<SetStrategy>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(door.client.set_strategy(strategy).await?))
}
