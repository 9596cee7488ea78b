//! Carries out what a machine wanted done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::kv::Store;
use async_nats::{Client, HeaderMap};
use backon::{ExponentialBuilder, Retryable};
use baton_machine::{Effect, Publication, Released, Reply, Token, Value};
use baton_protocol::record::Event;
use baton_protocol::{Code, Json, Rejection, header, subject};
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

use crate::endpoints::Asked;
use crate::instance::Instance;
use crate::service::Telemetry;

/// How long a question to another service may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// How many documents may be on their way at a time.
const KEEPING: usize = 64;

/// The hands of a session.
pub(crate) struct Hands {
    pub(crate) client: Client,
    pub(crate) instance: Instance,
    pub(crate) telemetry: Telemetry,
    pub(crate) runs: Store,
    pub(crate) answers: mpsc::Sender<(u64, Reply)>,
    asked: HashMap<Token, Asked>,
    next_token: Token,
    keeping: Arc<Semaphore>,
}

impl Hands {
    pub(crate) fn new(
        client: Client,
        instance: Instance,
        telemetry: Telemetry,
        runs: Store,
        answers: mpsc::Sender<(u64, Reply)>,
    ) -> Self {
        let keeping = Arc::new(Semaphore::new(KEEPING));
        Self { client, instance, telemetry, runs, answers, asked: HashMap::new(), next_token: 0, keeping }
    }

    /// Remembers who asked.
    pub(crate) fn remember(&mut self, asked: Asked) -> Token {
        self.next_token += 1;
        self.asked.insert(self.next_token, asked);
        self.next_token
    }

    /// Does what may be done now that its commit is acknowledged.
    pub(crate) async fn release(&mut self, released: Released) {
        for effect in released.effects {
            self.carry_out(effect).await;
        }
        for (subject, event) in released.events {
            self.announce(subject, &event).await;
        }
    }

    async fn announce(&self, subject: String, event: &Event) {
        let mut headers = self.headers("status_update");
        if let Some(run) = event.run {
            headers.insert(header::CORRELATION_ID, run.to_string().as_str());
        }
        let Ok(body) = serde_json::to_vec(event) else { return };
        let _ = self.client.publish_with_headers(subject, headers, body.into()).await;
    }

    fn headers(&self, kind: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::TYPE, kind);
        headers.insert(header::SOURCE, self.instance.service().as_str());
        headers.insert(header::VERSION, header::CURRENT_VERSION);
        headers
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
                let headers = self.headers("coordination_request");
                tokio::spawn(async move {
                    let subject = subject::request(service, endpoint);
                    let reply = ask(&client, subject, headers, &body).await;
                    let _ = answers.send((tag, reply)).await;
                });
            }
            Effect::Keep { bucket: _, key, body } => self.keep(key, body).await,
            Effect::Span(span) => self.telemetry.spans.export(span),
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
        let mut headers = self.headers(kind);
        if let Some(run) = run {
            headers.insert(header::CORRELATION_ID, run.to_string().as_str());
        }
        if let Some(trace) = trace {
            headers.insert(header::TRACEPARENT, trace.to_string().as_str());
        }
        let body = Bytes::from_owner(body);
        if let Err(error) = self.client.publish_with_headers(subject, headers, body).await {
            tracing::debug!(%error, "a message could not be published");
        }
    }

    /// Keeps a document; tries until it is kept, as long as the process lives. A successor keeps again what this one did
    /// not get to.
    async fn keep(&self, key: String, body: Json) {
        let Ok(permit) = Arc::clone(&self.keeping).acquire_owned().await else { return };
        let runs = self.runs.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let put = || runs.put(key.as_str(), Bytes::from_owner(body.clone()));
            let retries = ExponentialBuilder::default().with_max_times(8);
            if let Err(error) = put.retry(retries).await {
                tracing::warn!(%error, key, "a document could not be kept");
            }
        });
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
