//! Placement.

use axum::Json;
use axum::extract::State;
use baton_protocol::request::{
    Advice, Advise, CapacityPlan, Done, ExplainPlacement, Forecast, GetLearning, ImportLearning, LearningPage,
    PlacementExplained, PlacementView, PlanCapacity, SetStrategy,
};
use baton_protocol::{RunId, StageName};
use serde::Deserialize;

use crate::problem::Problem;
use crate::{Door, extract};

pub(crate) async fn get(State(door): State<Door>) -> Result<Json<PlacementView>, Problem> {
    Ok(Json(door.client.get_placement().await?))
}

/// Which stage is meant.
#[derive(Debug, Deserialize)]
pub(crate) struct OfStage {
    stage: StageName,
}

pub(crate) async fn explain(
    State(door): State<Door>,
    extract::Id(run): extract::Id<RunId>,
    extract::Query(OfStage { stage }): extract::Query<OfStage>,
) -> Result<Json<PlacementExplained>, Problem> {
    Ok(Json(door.client.explain_placement(&ExplainPlacement { run, stage }).await?))
}

pub(crate) async fn capacity(
    State(door): State<Door>,
    extract::Json(request): extract::Json<PlanCapacity>,
) -> Result<Json<CapacityPlan>, Problem> {
    Ok(Json(door.client.plan_capacity(&request).await?))
}

pub(crate) async fn advice(
    State(door): State<Door>,
    extract::Json(request): extract::Json<Advise>,
) -> Result<Json<Advice>, Problem> {
    Ok(Json(door.client.advise(&request).await?))
}

pub(crate) async fn forecast(State(door): State<Door>) -> Result<Json<Forecast>, Problem> {
    Ok(Json(door.client.forecast_queue().await?))
}

pub(crate) async fn learning(
    State(door): State<Door>,
    extract::Json(request): extract::Json<GetLearning>,
) -> Result<Json<LearningPage>, Problem> {
    Ok(Json(door.client.get_learning(&request).await?))
}

pub(crate) async fn import_learning(
    State(door): State<Door>,
    extract::Json(request): extract::Json<ImportLearning>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(door.client.import_learning(&request).await?))
}

pub(crate) async fn set_strategy(
    State(door): State<Door>,
    extract::Json(SetStrategy { strategy }): extract::Json<SetStrategy>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(door.client.set_strategy(strategy).await?))
}
