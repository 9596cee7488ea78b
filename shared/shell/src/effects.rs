//! Carries out what a machine wanted done.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::Store;
use async_nats::{Client, HeaderMap};
use backon::{ExponentialBuilder, Retryable};
use baton_client::Headers;
use baton_machine::{Effect, Publication, Released, Reply, Token, Value};
use baton_protocol::message::MessageType;
use baton_protocol::record::Event;
use baton_protocol::trace::Span;
use baton_protocol::{Code, Json, Rejection, subject};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::endpoints::Asked;
use crate::instance::Instance;
use crate::service::Telemetry;

/// How long a question to another service may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// How many documents are on their way at a time.
const KEEPING: usize = 64;

/// How many more may wait. What comes on top is left to the log, and to a successor that keeps again what ended lately.
const WAITING: usize = 4096;

/// How long a drain waits for documents to be kept.
const KEEP_TIMEOUT: Duration = Duration::from_secs(3);

/// The hands of a session.
pub(crate) struct Hands {
    pub(crate) client: Client,
    pub(crate) instance: Instance,
    pub(crate) telemetry: Telemetry,
    pub(crate) runs: Store,
    pub(crate) answers: mpsc::Sender<(u64, Reply)>,
    asked: HashMap<Token, Asked>,
    next_token: Token,
    /// The session's loop must not wait for documents, so another task keeps them.
    keep: Option<mpsc::Sender<(String, Json)>>,
    keeper: JoinSet<()>,
    /// How many documents were not kept.
    left_out: u64,
}

impl Hands {
    pub(crate) fn new(
        client: Client,
        instance: Instance,
        telemetry: Telemetry,
        runs: Store,
        answers: mpsc::Sender<(u64, Reply)>,
    ) -> Self {
        let (keep, documents) = mpsc::channel::<(String, Json)>(WAITING);
        let mut keeper = JoinSet::new();
        let store = runs.clone();
        keeper.spawn(ReceiverStream::new(documents).for_each_concurrent(KEEPING, move |(key, body)| {
            let store = store.clone();
            async move { put(&store, &key, &body).await }
        }));
        let (asked, next_token, keep) = (HashMap::new(), 0, Some(keep));
        Self { client, instance, telemetry, runs, answers, asked, next_token, keep, keeper, left_out: 0 }
    }

    /// Waits a while until all documents are kept.
    pub(crate) async fn finish(&mut self) {
        self.keep = None;
        let _ = tokio::time::timeout(KEEP_TIMEOUT, self.keeper.join_next()).await;
    }

    /// Remembers who asked.
    pub(crate) fn remember(&mut self, asked: Asked) -> Token {
        self.next_token += 1;
        self.asked.insert(self.next_token, asked);
        self.next_token
    }

    /// Those who asked and have no answer: they will get none from here.
    pub(crate) fn forget(&mut self) -> Vec<Asked> {
        self.asked.drain().map(|(_, asked)| asked).collect()
    }

    /// Does what may be done now that its commit is acknowledged.
    pub(crate) async fn release<M>(&mut self, released: Released<M>) {
        for effect in released.effects {
            self.carry_out(effect).await;
        }
        for (subject, event) in released.events {
            self.announce(subject, &event).await;
        }
    }

    /// Without headers: all that they would say is in the body, and there are more events than anything else.
    async fn announce(&self, subject: String, event: &Event) {
        let Ok(body) = serde_json::to_vec(event) else { return };
        let _ = self.client.publish(subject, body.into()).await;
    }

    fn headers(&self, message_type: MessageType) -> Headers {
        Headers { source: Some(self.instance.service().to_string()), ..Headers::of(message_type) }
    }

    pub(crate) async fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Answer { token, reply } => {
                if let Some(asked) = self.asked.remove(&token) {
                    asked.answer(reply).await;
                }
            }
            Effect::AnswerDocument { token, bucket: _, key, or } => {
                let Some(asked) = self.asked.remove(&token) else { return };
                let runs = self.runs.clone();
                tokio::spawn(async move {
                    match runs.get(key).await {
                        Ok(Some(document)) => asked.answer_bytes(document).await,
                        Ok(None) => asked.answer(Err(or)).await,
                        Err(error) => {
                            let text = format!("the document can not be read now: {error}");
                            asked.answer(Err(Rejection::new(Code::Unavailable, text).retry_after(1000))).await;
                        }
                    }
                });
            }
            Effect::Publish(publication) => self.publish(publication).await,
            Effect::Ask { service, endpoint, body, tag } => {
                let (client, answers) = (self.client.clone(), self.answers.clone());
                let headers = self.headers(MessageType::CoordinationRequest).to_map();
                let metrics = self.telemetry.metrics.clone();
                tokio::spawn(async move {
                    let (subject, begin) = (subject::request(service, endpoint), Instant::now());
                    let reply = ask(&client, subject, headers, &body).await;
                    metrics.observe("baton_ask_seconds", &[endpoint], begin.elapsed().as_secs_f64());
                    let _ = answers.send((tag, reply)).await;
                });
            }
            Effect::Keep { bucket: _, key, body } => self.keep(key, body),
            Effect::Span(span) => {
                log(&span);
                self.telemetry.spans.export(span);
            }
            Effect::Measure(measure) => {
                let labels: Vec<&str> = measure.labels.iter().map(String::as_str).collect();
                let metrics = &self.telemetry.metrics;
                match measure.value {
                    Value::Add(by) => metrics.add(measure.metric, &labels, by),
                    Value::Observe(value) => metrics.observe(measure.metric, &labels, value),
                    Value::Set(value) => metrics.set(measure.metric, &labels, value),
                }
            }
        }
    }

    async fn publish(&self, publication: Publication) {
        let Publication { subject, body, kind, run, trace } = publication;
        let correlation = run.map(|run| run.to_string());
        let headers = Headers { correlation, trace, ..self.headers(kind) }.to_map();
        let body = Bytes::from_owner(body);
        if let Err(error) = self.client.publish_with_headers(subject, headers, body).await {
            tracing::debug!(%error, "a message could not be published");
        }
    }

    fn keep(&mut self, key: String, body: Json) {
        if let Some(keep) = &self.keep
            && keep.try_send((key, body)).is_err()
        {
            self.telemetry.metrics.count("baton_documents_dropped_total", &[]);
            self.left_out += 1;
            // The first, and then ever fewer: where one is left out there are many.
            if self.left_out.is_power_of_two() {
                let count = self.left_out;
                tracing::warn!(count, "finished runs are not kept as documents: too many wait; the log has them");
            }
        }
    }
}

/// Keeps a document; tries for a while.
async fn put(store: &Store, key: &str, body: &Json) {
    let put = || store.put(key, Bytes::from_owner(body.clone()));
    if let Err(error) = put.retry(ExponentialBuilder::default().with_max_times(6)).await {
        tracing::warn!(%error, key, "a finished run could not be kept as a document; the log has it");
    }
}

/// What is shown as a span is told in the log as well, with the run's and the trace's ids; what failed, louder.
fn log(span: &Span) {
    if span.error.is_none() && !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let attribute = |name| span.attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str());
    let (run, stage, agent) = (attribute("baton.run.id"), attribute("baton.stage.name"), attribute("baton.agent.id"));
    let (trace, ms) = (format_args!("{:032x}", span.context.trace), span.end.saturating_sub(span.start));
    match &span.error {
        Some(error) => tracing::info!(run, trace = %trace, stage, agent, ms, error, "{}", span.name),
        None => tracing::debug!(run, trace = %trace, stage, agent, ms, "{}", span.name),
    }
}

async fn ask(client: &Client, subject: String, headers: HeaderMap, body: &Json) -> Reply {
    let payload = Bytes::from_owner(body.clone());
    let unavailable = |text: String| Rejection::new(Code::Unavailable, text);
    let request = client.request_with_headers(subject.clone(), headers, payload);
    let message = tokio::time::timeout(ASK_TIMEOUT, request)
        .await
        .map_err(|_| unavailable(format!("{subject} did not answer")))?
        .map_err(|error| unavailable(format!("{subject}: {error}")))?;
    let refused =
        message.headers.as_ref().is_some_and(|h| h.get(async_nats::service::NATS_SERVICE_ERROR_CODE).is_some());
    if refused {
        let rejection = serde_json::from_slice(&message.payload);
        return Err(rejection.unwrap_or_else(|error| unavailable(format!("{subject}: {error}"))));
    }
    String::from_utf8(message.payload.to_vec())
        .map_err(|error| unavailable(format!("{subject}: {error}")))
        .and_then(|text| Json::from_text(text).map_err(|error| unavailable(format!("{subject}: {error}"))))
}
