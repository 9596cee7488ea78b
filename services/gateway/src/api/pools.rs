//! Pools and locks, and what is held of them.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use baton_client::{ATTEMPT, Headers};
use baton_protocol::message::MessageType;
use baton_protocol::request::{
    Acquire, AcquireAnswer, ApproveBudget, DenyBudget, Done, GetSpending, Granted, LeaseList, ListLeases, ListPools,
    PoolList, Release, Renew, ShareBy, SharePool, Spending,
};
use baton_protocol::{Amount, LeaseId, Millis, Pool, ResourceName, Resources, Service, subject};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Door;
use crate::extract::{self, Id, Query, media_type, read};
use crate::problem::Problem;

pub(crate) async fn list(State(door): State<Door>, Query(asked): Query<ListPools>) -> Result<Json<PoolList>, Problem> {
    Ok(Json(door.client.list_pools(&asked).await?))
}

pub(crate) async fn set(
    State(door): State<Door>,
    Id(name): Id<ResourceName>,
    extract::Json(pool): extract::Json<Pool>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(door.client.set_pool(name, pool).await?))
}

pub(crate) async fn share(
    State(door): State<Door>,
    Id(name): Id<ResourceName>,
    extract::Json(by): extract::Json<ShareBy>,
) -> Result<Json<PoolList>, Problem> {
    Ok(Json(door.client.share_pool(&SharePool { name, by }).await?))
}

/// How much more an account gets.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct More {
    /// How much more.
    amount: Amount,
}

/// Why an account gets no more.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct No {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub(crate) async fn approve(
    State(door): State<Door>,
    Id(name): Id<ResourceName>,
    extract::Json(More { amount }): extract::Json<More>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(door.client.approve_budget(&ApproveBudget { name, amount }).await?))
}

pub(crate) async fn deny(
    State(door): State<Door>,
    Id(name): Id<ResourceName>,
    Maybe(No { reason }): Maybe<No>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(door.client.deny_budget(&DenyBudget { name, reason }).await?))
}

pub(crate) async fn spending(
    State(door): State<Door>,
    Query(asked): Query<GetSpending>,
) -> Result<Json<Spending>, Problem> {
    Ok(Json(door.client.spending(&asked).await?))
}

pub(crate) async fn remove(State(door): State<Door>, Id(name): Id<ResourceName>) -> Result<Json<Done>, Problem> {
    Ok(Json(door.client.remove_pool(name).await?))
}

pub(crate) async fn leases(
    State(door): State<Door>,
    Query(asked): Query<ListLeases>,
) -> Result<Json<LeaseList>, Problem> {
    Ok(Json(door.client.list_leases(&asked).await?))
}

/// Asked once: who wants to wait is told within a second that it does, and asks again.
pub(crate) async fn acquire(
    State(door): State<Door>,
    extract::Json(request): extract::Json<Acquire>,
) -> Result<Response, Problem> {
    let subject = subject::request(Service::ResourceManager, "lease.acquire");
    let headers = Headers::of(MessageType::ResourceRequest);
    let answer: AcquireAnswer =
        door.client.request_once(Service::ResourceManager, &subject, &request, headers, ATTEMPT).await?;
    let status = if answer.granted.is_some() { StatusCode::CREATED } else { StatusCode::ACCEPTED };
    Ok((status, Json(answer)).into_response())
}

/// How a lease is renewed.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct For {
    /// How long from now on, in milliseconds; as long as before unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<Millis>,
}

/// What was used of consumed pools.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Used {
    /// By pool; of those that are not named, all that was taken.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    used: Resources,
}

/// A body that may be left out.
pub(crate) struct Maybe<T>(T);

impl<S: Send + Sync, T: Default + DeserializeOwned> FromRequest<S> for Maybe<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let media = media_type(request.headers());
        let body = read(request.into_body()).await?;
        let sent = if body.trim_ascii().is_empty() { T::default() } else { extract::json(media.as_deref(), &body)? };
        Ok(Self(sent))
    }
}

pub(crate) async fn renew(
    State(door): State<Door>,
    Id(lease): Id<u64>,
    Maybe(For { ttl_ms }): Maybe<For>,
) -> Result<Json<Granted>, Problem> {
    Ok(Json(door.client.renew_lease(&Renew { lease: LeaseId(lease), ttl_ms }).await?))
}

pub(crate) async fn release(
    State(door): State<Door>,
    Id(lease): Id<u64>,
    Maybe(Used { used }): Maybe<Used>,
) -> Result<Json<Done>, Problem> {
    Ok(Json(door.client.release_lease(&Release { lease: LeaseId(lease), used }).await?))
}
