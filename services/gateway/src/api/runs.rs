//! Runs.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use baton_client::{ClientError, Headers, now};
use baton_protocol::id::mix;
use baton_protocol::message::MessageType;
use baton_protocol::request::{
    AskHandoff, CancelRun, DecideStage, HandoffAsked, RunAccepted, SignalRun, SignalStored, StageDecided, StartRun,
};
use baton_protocol::run::RunView;
use baton_protocol::trace::{Span, SpanKind, TraceContext, run_span};
use baton_protocol::{AgentId, Millis, Part, RunId, Service, SignalName, StageName, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::extract::{self, Id, Query, media_type, read};
use crate::problem::Problem;
use crate::{Door, Inner};

pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

pub(crate) async fn get(State(door): State<Door>, Id(run): Id<RunId>) -> Result<Json<RunView>, Problem> {
    Ok(Json(door.client.get_run(run).await?))
}

/// What a run is cancelled or paused with.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Cancel {
    /// Why, for those who read the run's history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Cancel {
    pub(crate) fn into_reason(self) -> Option<String> {
        self.reason
    }
}

impl<S: Send + Sync> FromRequest<S> for Cancel {
    type Rejection = Problem;

    /// Nothing at all will do.
    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let media = media_type(request.headers());
        let body = read(request.into_body()).await?;
        if body.trim_ascii().is_empty() { Ok(Self::default()) } else { extract::json(media.as_deref(), &body) }
    }
}

pub(crate) async fn cancel(
    State(door): State<Door>,
    Id(run): Id<RunId>,
    Cancel { reason }: Cancel,
) -> Result<Json<RunAccepted>, Problem> {
    Ok(Json(door.client.cancel_run(&CancelRun { run, reason }).await?))
}

/// How a task is handed over.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HandOver {
    /// The stage, or `STAGE.ITEM` of one that has a task for each item of a list: its attempt that is under way is meant.
    stage: Part,
    /// Who holds it, as far as is known. If another one does by now, nothing is offered. Asked again with it, it moves once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<AgentId>,
    /// Who is to take it; unless it is said, of those that can do it and have room the one with the most of its slots free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<AgentId>,
    /// Why, for those who read the run's history.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
    /// How long the other agent may take to answer: from 1 to 3600000 milliseconds; 30000 if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<Millis>,
}

pub(crate) async fn hand_over(
    State(door): State<Door>,
    Id(run): Id<RunId>,
    extract::Json(asked): extract::Json<HandOver>,
) -> Result<(StatusCode, Json<HandoffAsked>), Problem> {
    let HandOver { stage, from, to, reason, timeout_ms } = asked;
    let request = AskHandoff { run, stage, from, to, reason, timeout_ms };
    Ok((StatusCode::ACCEPTED, Json(door.client.ask_handoff(request).await?)))
}

pub(crate) async fn delete(
    State(door): State<Door>,
    Id(run): Id<RunId>,
    Query(Cancel { reason }): Query<Cancel>,
) -> Result<Json<RunAccepted>, Problem> {
    Ok(Json(door.client.cancel_run(&CancelRun { run, reason }).await?))
}

/// A decision on a stage.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Decision {
    /// The stage.
    stage: StageName,
    /// Who decides, for those who read the run's history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub(crate) async fn approve(
    State(door): State<Door>,
    Id(run): Id<RunId>,
    extract::Json(decision): extract::Json<Decision>,
) -> Result<Json<StageDecided>, Problem> {
    decide(&door, run, true, decision).await
}

pub(crate) async fn reject(
    State(door): State<Door>,
    Id(run): Id<RunId>,
    extract::Json(decision): extract::Json<Decision>,
) -> Result<Json<StageDecided>, Problem> {
    decide(&door, run, false, decision).await
}

async fn decide(door: &Inner, run: RunId, approved: bool, decision: Decision) -> Result<Json<StageDecided>, Problem> {
    let Decision { stage, by, reason } = decision;
    Ok(Json(door.client.decide_stage(&DecideStage { run, stage, approved, by, reason }).await?))
}

/// A signal to a run.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Signal {
    /// Its name, as a stage's `wait_for` says it.
    signal: SignalName,
    /// What comes with it: the result of the stages that wait for it.
    #[serde(default)]
    payload: baton_protocol::Json,
    /// Who gives it, for those who read the run's history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
}

pub(crate) async fn signal(
    State(door): State<Door>,
    Id(run): Id<RunId>,
    extract::Json(Signal { signal, payload, by }): extract::Json<Signal>,
) -> Result<Json<SignalStored>, Problem> {
    Ok(Json(door.client.signal_run(&SignalRun { run, signal, payload, by }).await?))
}

pub(crate) async fn start(
    State(door): State<Door>,
    headers: HeaderMap,
    extract::Json(mut request): extract::Json<StartRun>,
) -> Result<Response, Problem> {
    request.key = key(extract::header(&headers, &IDEMPOTENCY_KEY)?, request.key)?;
    request.input = door.client.shrink(request.input).await?;
    // With a key it is the key that makes a repeated start the same, so the run's id is left to the service: a new one
    // here would contradict the run that bears the key.
    if request.run.is_none() && request.key.is_none() {
        request.run = Some(RunId::from_uuid(Uuid::now_v7()));
    }
    let started = Started::new(&headers, &request);
    request.trace = Some(started.context);

    let mut words = Headers::of(MessageType::CoordinationRequest).in_trace(started.context);
    words.correlation = request.run.map(|run| run.to_string());
    let answer = door.client.request(Service::WorkflowManager, "run.start", &request, words).await;
    started.show(&door, &request, &answer);

    let accepted: RunAccepted = answer?;
    let status = if accepted.existing { StatusCode::OK } else { StatusCode::CREATED };
    let location = format!("/v1/runs/{}", accepted.run);
    Ok((status, [(LOCATION, location)], Json(accepted)).into_response())
}

/// The idempotency key, which may be said in two places.
pub(crate) fn key(header: Option<String>, body: Option<String>) -> Result<Option<String>, Problem> {
    // The header is a structured field by its specification: a string in quotes. Many leave them out.
    let bare = |text: String| match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(inside) => inside.replace("\\\"", "\"").replace("\\\\", "\\"),
        None => text,
    };
    match (header.map(bare), body) {
        (Some(header), Some(body)) if header != body => {
            let detail = format!("the header Idempotency-Key says {header:?}, the key in the body is {body:?}");
            Err(Problem::invalid(detail))
        }
        (header, body) => Ok(header.or(body)),
    }
}

/// The span of a start. It is in the run's trace, and the run's own span is its child.
struct Started {
    context: TraceContext,
    parent: Option<u64>,
    at: Millis,
}

impl Started {
    fn new(headers: &HeaderMap, request: &StartRun) -> Self {
        // A traceparent that is none is left out of account, as its specification demands.
        let header = headers.get(header::TRACEPARENT).and_then(|value| value.to_str().ok()?.parse().ok());
        let caller: Option<TraceContext> = header.or(request.trace);
        let id = Uuid::new_v4().as_u128();
        let span = mix(id as u64 ^ mix((id >> 64) as u64)).max(1);
        let context = match caller {
            Some(caller) => caller.at(span),
            None => {
                // A run's id is its trace, where it is known already; otherwise one is made as a run's id is.
                let trace = request.run.map_or_else(|| Uuid::now_v7().as_u128(), |run| run.as_u128());
                TraceContext { trace, span, sampled: true }
            }
        };
        Self { context, parent: caller.map(|caller| caller.span), at: now() }
    }

    /// Exports the span, now that it is known how it ended.
    fn show(self, door: &Inner, request: &StartRun, answer: &Result<RunAccepted, ClientError>) {
        let Self { mut context, mut parent, at } = self;
        let mut attributes = vec![
            ("http.request.method", "POST".to_owned()),
            ("http.route", "/v1/runs".to_owned()),
            ("baton.workflow.name", request.workflow.to_string()),
        ];
        let (status, error) = match answer {
            Ok(accepted) => {
                attributes.push(("baton.run.id", accepted.run.to_string()));
                // A repeated start belongs to the run that was there.
                if accepted.existing
                    && parent.is_none()
                    && let Ok(trace) = u128::from_str_radix(&accepted.trace_id, 16)
                {
                    context.trace = trace;
                    parent = Some(run_span(accepted.run));
                }
                (if accepted.existing { 200 } else { 201 }, None)
            }
            Err(error) => {
                let problem = Problem::from(error.clone());
                attributes.push(("error.type", problem.kind.code().to_owned()));
                let status = problem.kind.status().as_u16();
                // What the caller did wrong is no failure of the gateway's.
                (status, (status >= 500).then_some(problem.detail))
            }
        };
        attributes.push(("http.response.status_code", status.to_string()));
        let name = "POST /v1/runs".to_owned();
        door.spans.export(Span {
            context,
            parent,
            name,
            kind: SpanKind::Server,
            start: at,
            end: now(),
            attributes,
            error,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g1_a_key_may_be_said_in_two_places_but_not_differently() {
        let say = |header: Option<&str>, body: Option<&str>| {
            key(header.map(str::to_owned), body.map(str::to_owned)).map_err(|problem| problem.kind.status().as_u16())
        };
        assert_eq!(say(None, None), Ok(None));
        assert_eq!(say(Some("a"), None), Ok(Some("a".to_owned())));
        assert_eq!(say(None, Some("a")), Ok(Some("a".to_owned())));
        assert_eq!(say(Some("\"a\\\"b\""), Some("a\"b")), Ok(Some("a\"b".to_owned())));
        assert_eq!(say(Some("a"), Some("b")), Err(400));
    }
}
