//! A task in an agent's hands.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use baton_client::{Client, Headers};
use baton_protocol::message::MessageType;
use baton_protocol::object::may_refer;
use baton_protocol::request::{
    Assignment, EventStored, Gathered, HandoffAnswer, HandoffOpen, OfferHandoff, Progress, RaiseEvent,
};
use baton_protocol::subject::{self, AgentVerb};
use baton_protocol::trace::{Span, SpanKind, TraceContext};
use baton_protocol::{AgentId, Code, EventName, Json, Millis, Rejection, Resources, TaskId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent::Spans;
use crate::lease::{LeaseError, LeaseGuard, Leases, Want};
use crate::output::TaskError;
use crate::speech::{Voice, headers};

/// How long the answer to an offer may be under way when its time is up: the services look at the clock, and a push takes a
/// while.
const LATE: Duration = Duration::from_secs(5);

/// What may be put in the place of references in one value, in bytes. Whoever gets more reads it by itself
/// ([`Client::get_object`]).
const MAX_EXPANDED_BYTES: u64 = 64 * 1024 * 1024;

/// A task to be done: the [`Assignment`] and what can be done with it. Copies are the same task.
#[derive(Clone)]
pub struct Task {
    inner: Arc<Inner>,
}

struct Inner {
    assignment: Assignment,
    voice: Voice,
    context: TraceContext,
    cancelled: CancellationToken,
    spans: Option<Spans>,
    /// What became of the last offer of it.
    handed: watch::Sender<Option<HandoffAnswer>>,
}

/// What goes with a task to the agent that goes on with it.
#[derive(Debug, Clone, Default)]
pub struct Handoff {
    /// Where to go on.
    pub state: Value,
    /// What has come of it so far.
    pub results: Value,
    /// What of the task's resources goes with it: all, unless it is said.
    pub resources: Option<Resources>,
    /// Why.
    pub reason: String,
    /// Larger is to be looked at first.
    pub priority: i32,
    /// How long the offer stands: 30 seconds unless given, an hour at the most.
    pub timeout: Option<Duration>,
}

/// Why a task was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// The resource-manager does not take the offer. The agent holds the task as before.
    #[error("the task is not offered: {0}")]
    Refused(Rejection),
    /// The other agent did not take it, or did not answer in time. The agent holds the task as before.
    #[error("the task is not taken: {0}")]
    NotTaken(String),
    /// The task is no longer this agent's: it was cancelled, or taken while nobody could say so.
    #[error("the task is no longer this agent's")]
    Over,
}

impl Task {
    pub(crate) fn new(assignment: Assignment, voice: Voice, spans: Option<Spans>) -> Self {
        let context = assignment.trace.at(random_span());
        let (cancelled, handed) = (CancellationToken::new(), watch::Sender::default());
        Self { inner: Arc::new(Inner { assignment, voice, context, cancelled, spans, handed }) }
    }

    /// The same task, with what it was given instead of references to it; as long as that is not very much.
    pub(crate) async fn expanded(self) -> Result<Self, TaskError> {
        let given = &self.inner.assignment;
        let values = [Some(&given.input), given.item.as_ref(), given.delegated.as_ref()];
        let values = values.into_iter().flatten().chain(given.results.values());
        if !values.into_iter().any(|value| may_refer(value.as_str())) {
            return Ok(self);
        }
        let mut assignment = given.clone();
        let Assignment { input, item, delegated, results, .. } = &mut assignment;
        let values = [Some(input), item.as_mut(), delegated.as_mut()];
        for value in values.into_iter().flatten().chain(results.values_mut()) {
            let whole = self.client().expand(std::mem::take(value), MAX_EXPANDED_BYTES).await;
            *value = whole.map_err(|error| {
                let failed = TaskError::failed(format!("what the task is about can not be read: {error}"));
                if error.code() == Some(Code::UnknownObject) { failed.permanent() } else { failed }
            })?;
        }
        let Inner { voice, context, cancelled, spans, handed, .. } = &*self.inner;
        let (voice, cancelled, spans, handed) = (voice.clone(), cancelled.clone(), spans.clone(), handed.clone());
        Ok(Self { inner: Arc::new(Inner { assignment, voice, context: *context, cancelled, spans, handed }) })
    }

    /// Its id: the run, the stage and the attempt.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.inner.assignment.task
    }

    /// The run's input. One that can not be read as asked is a permanent failure.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T, TaskError> {
        serde_json::from_str(self.input.as_str())
            .map_err(|error| TaskError::failed(format!("the run's input can not be used: {error}")).permanent())
    }

    /// The item that the task is about, of a stage that has one for each item of a list. One that is not there, or can not be
    /// read as asked, is a permanent failure.
    pub fn item<T: DeserializeOwned>(&self) -> Result<T, TaskError> {
        let item = self.inner.assignment.item.as_ref().map_or("null", |item| item.as_str());
        serde_json::from_str(item)
            .map_err(|error| TaskError::failed(format!("the task's item can not be used: {error}")).permanent())
    }

    /// The result of a stage that this one depends on. One that is not there, or can not be read as asked, is a
    /// permanent failure.
    pub fn result_of<T: DeserializeOwned>(&self, stage: &str) -> Result<T, TaskError> {
        let Some(result) = self.results.get(stage) else {
            let has: Vec<_> = self.results.keys().map(|stage| stage.as_str()).collect();
            let why = format!("there is no result of the stage {stage:?}; there are results of: {}", has.join(", "));
            return Err(TaskError::failed(why).permanent());
        };
        serde_json::from_str(result.as_str()).map_err(|error| {
            TaskError::failed(format!("the result of the stage {stage:?} can not be used: {error}")).permanent()
        })
    }

    /// Where to go on, if another agent has handed this task over and has said so. (An operator who hands it over can not.) A state
    /// that can not be read as asked is a failure.
    pub fn resumed<T: DeserializeOwned>(&self) -> Result<Option<T>, TaskError> {
        let Some(handover) = self.handover.as_ref().filter(|handover| !handover.state.is_null()) else {
            return Ok(None);
        };
        let unusable =
            |error| TaskError::failed(format!("the state that {} gave can not be used: {error}", handover.from));
        handover.state.read().map(Some).map_err(unusable)
    }

    /// What came of the stages that an agent delegated in this task's stage, if they are to be put together: the result of this
    /// task is the stage's then, or it delegates again.
    pub fn gathered(&self) -> Result<Option<Gathered>, TaskError> {
        let unusable =
            |error| TaskError::failed(format!("what came of the stages that were delegated can not be read: {error}"));
        self.delegated.as_ref().map(|gathered| gathered.read().map_err(unusable)).transpose()
    }

    /// Hands this task over to another agent, and waits until it has taken it. Then the task is no longer this agent's: what
    /// the handler returns is of no account, and it should return. Otherwise this agent goes on.
    ///
    /// Gives what the other agent wanted to be known.
    pub async fn hand_over(&self, to: &AgentId, handoff: Handoff) -> Result<Json, HandoffError> {
        let Handoff { state, results, resources, reason, priority, timeout } = handoff;
        let wrong = |error: serde_json::Error| HandoffError::Refused(Rejection::invalid(error.to_string()));
        let (state, results) = (Json::of(&state).map_err(wrong)?, Json::of(&results).map_err(wrong)?);
        let timeout_ms = timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let (lease, to) = (self.lease, to.clone());
        let request = OfferHandoff { lease, to, state, results, resources, reason, priority, timeout_ms };
        let voice = &self.inner.voice;
        let headers = headers(AgentVerb::Handoff, &voice.agent).of_run(self.run).in_trace(self.inner.context);
        let mut handed = self.inner.handed.subscribe();
        let open: HandoffOpen = tokio::select! {
            open = voice.until_answered(AgentVerb::Handoff, &request, headers) => open.map_err(|rejection| match rejection.code {
                // It may have been taken, and the answer to the first time that it was offered got lost.
                Code::StaleLease => HandoffError::Over,
                _ => HandoffError::Refused(rejection),
            })?,
            () = self.inner.cancelled.cancelled() => return Err(HandoffError::Over),
        };
        let is_it =
            |answer: &Option<HandoffAnswer>| answer.as_ref().is_some_and(|answer| answer.handoff == open.handoff);
        let answer = tokio::select! {
            // In this order: whoever has taken it is told of before the task is dropped.
            biased;
            answer = handed.wait_for(is_it) => answer.ok().and_then(|answer| answer.clone()),
            () = self.inner.cancelled.cancelled() => None,
            // Should the answer have got lost, a heartbeat tells whether the task is still this agent's.
            () = sleep(Duration::from_millis(open.timeout_ms).saturating_add(LATE)) => {
                return Err(HandoffError::NotTaken("nobody has answered".to_owned()));
            }
        };
        match answer {
            Some(HandoffAnswer { accepted: true, response, .. }) => Ok(response),
            Some(HandoffAnswer { reason, .. }) => Err(HandoffError::NotTaken(reason)),
            None => Err(HandoffError::Over),
        }
    }

    /// An offer of this task was answered.
    pub(crate) fn handed(&self, answer: HandoffAnswer) {
        self.inner.handed.send_replace(Some(answer));
    }

    /// Raises an event, for triggers: what each made of it is answered. Raised once more with the same id it is the same event, so an id
    /// that follows from the task makes a second attempt raise nothing twice.
    pub async fn raise<T: Serialize>(
        &self,
        event: EventName,
        id: impl Into<String>,
        data: &T,
    ) -> Result<EventStored, Rejection> {
        let data = Json::of(data).map_err(|error| Rejection::invalid(error.to_string()))?;
        let request = RaiseEvent { event, id: id.into(), source: None, data };
        let voice = &self.inner.voice;
        let headers = headers(AgentVerb::Raise, &voice.agent).of_run(self.run).in_trace(self.inner.context);
        voice.until_answered(AgentVerb::Raise, &request, headers).await
    }

    /// Tells observers how far this is, from 0 to 1. It is kept nowhere, and may get lost.
    ///
    /// Where the stage has a `heartbeat_timeout_ms` (it is in the assignment) it is also the sign that the task gets on: without
    /// one for that long the task is taken from this agent.
    pub async fn progress(&self, fraction: f64, message: impl Into<String>) {
        if self.inner.cancelled.is_cancelled() {
            return;
        }
        let fraction = if fraction.is_finite() { fraction.clamp(0.0, 1.0) } else { 0.0 };
        let progress = Progress { lease: self.lease, fraction, message: message.into() };
        let headers =
            Headers { source: Some(self.inner.voice.agent.to_string()), ..Headers::of(MessageType::StatusUpdate) };
        let headers = headers.of_run(self.run).in_trace(self.inner.context).to_map();
        let body = serde_json::to_vec(&progress).unwrap_or_default();
        let subject = subject::agent(&self.inner.voice.agent, AgentVerb::Progress);
        if let Err(error) = self.inner.voice.client.nats().publish_with_headers(subject, headers, body.into()).await {
            tracing::debug!(%error, "progress could not be told");
        }
    }

    /// Takes something of pools or locks for this task, all that is wanted or nothing. It ends with the task's lease, or sooner:
    /// when the guard is dropped.
    pub async fn acquire(&self, want: Want) -> Result<LeaseGuard, LeaseError> {
        let voice = &self.inner.voice;
        Leases::of_agent(voice.agent.clone(), voice.client.clone(), Some(self.lease)).acquire(want).await
    }

    /// Cancelled when the task is no longer wanted, or has taken longer than it may.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.inner.cancelled
    }

    /// The span of this piece of work, for what the handler calls to go on with: its `traceparent`.
    #[must_use]
    pub fn trace_context(&self) -> TraceContext {
        self.inner.context
    }

    /// The connection, for what a handler has to ask of Baton.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.inner.voice.client
    }

    /// Shows something that the handler did as a span of its own: a call to a model (`chat MODEL`), a search. The times
    /// are in milliseconds since 1970 ([`baton_client::now`]).
    pub fn span(
        &self,
        name: impl Into<String>,
        start: Millis,
        end: Millis,
        attributes: impl IntoIterator<Item = (&'static str, String)>,
    ) {
        self.show(Span {
            context: self.inner.context.at(random_span()),
            parent: Some(self.inner.context.span),
            name: name.into(),
            kind: SpanKind::Internal,
            start,
            end,
            attributes: attributes.into_iter().collect(),
            error: None,
        });
    }

    /// Shows the handling of this task as a span, which the others are parts of.
    pub(crate) fn show_handled(&self, start: Millis, end: Millis, error: Option<String>) {
        let agent = &self.inner.voice.agent;
        self.show(Span {
            context: self.inner.context,
            parent: Some(self.inner.assignment.trace.span),
            name: format!("invoke_agent {}", self.agent_type),
            kind: SpanKind::Consumer,
            start,
            end,
            attributes: vec![
                ("messaging.system", "nats".to_owned()),
                ("messaging.operation.type", "process".to_owned()),
                ("messaging.destination.name", subject::assign(agent)),
                ("messaging.destination.template", "baton.to.{agent}.assign".to_owned()),
                ("messaging.message.conversation_id", self.run.to_string()),
                ("gen_ai.operation.name", "invoke_agent".to_owned()),
                ("gen_ai.agent.name", agent.to_string()),
                ("baton.run.id", self.run.to_string()),
                ("baton.stage.name", self.id().part().to_string()),
                ("baton.attempt", self.attempt.to_string()),
                ("baton.agent.id", agent.to_string()),
            ],
            error,
        });
    }

    fn show(&self, span: Span) {
        if let Some(spans) = self.inner.spans.as_ref().filter(|_| span.context.sampled) {
            spans(span);
        }
    }
}

impl Deref for Task {
    type Target = Assignment;
    fn deref(&self) -> &Assignment {
        &self.inner.assignment
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").field("task", self.id()).field("lease", &self.lease).finish()
    }
}

fn random_span() -> u64 {
    loop {
        // Version and variant are constant bits of a UUID; the lower half of one hashed with the upper one has none.
        let (high, low) = Uuid::new_v4().as_u64_pair();
        let span = baton_protocol::id::mix(high ^ low.rotate_left(32));
        if span != 0 {
            return span;
        }
    }
}
