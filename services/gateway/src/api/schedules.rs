//! Schedules: workflows that are started by themselves.

use axum::Json;
use axum::extract::State;
use baton_protocol::request::{ListSchedules, ScheduleList, ScheduleView, SetSchedule};
use baton_protocol::{Schedule, ScheduleName};

use crate::Door;
use crate::extract::{self, Id, Query};
use crate::problem::Problem;

pub(crate) async fn list(
    State(door): State<Door>,
    Query(asked): Query<ListSchedules>,
) -> Result<Json<ScheduleList>, Problem> {
    Ok(Json(door.client.list_schedules(&asked).await?))
}

pub(crate) async fn get(State(door): State<Door>, Id(name): Id<ScheduleName>) -> Result<Json<ScheduleView>, Problem> {
    Ok(Json(door.client.get_schedule(name).await?))
}

pub(crate) async fn set(
    State(door): State<Door>,
    Id(name): Id<ScheduleName>,
    extract::Json(schedule): extract::Json<Schedule>,
) -> Result<Json<ScheduleView>, Problem> {
    Ok(Json(door.client.set_schedule(&SetSchedule { name, schedule }).await?))
}

pub(crate) async fn pause(State(door): State<Door>, Id(name): Id<ScheduleName>) -> Result<Json<ScheduleView>, Problem> {
    Ok(Json(door.client.pause_schedule(name, true).await?))
}

pub(crate) async fn resume(
    State(door): State<Door>,
    Id(name): Id<ScheduleName>,
) -> Result<Json<ScheduleView>, Problem> {
    Ok(Json(door.client.pause_schedule(name, false).await?))
}

pub(crate) async fn remove(
    State(door): State<Door>,
    Id(name): Id<ScheduleName>,
) -> Result<Json<ScheduleView>, Problem> {
    Ok(Json(door.client.remove_schedule(name).await?))
}
