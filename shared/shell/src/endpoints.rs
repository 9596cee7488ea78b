//! A machine's endpoints as a NATS micro service, registered where the instance leads.
//!
//! Every instance has a queue group of its own: a leader that is paused and does not know that it was replaced must not
//! swallow a part of the requests. It gets them as well, and can not answer: the fence refuses it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_nats::service::{self, ServiceExt, endpoint};
use async_nats::{Client, HeaderMap};
use baton_machine::{Machine, Reply, RequestContext};
use baton_protocol::record::Record;
use baton_protocol::request::{Endpoint, Requests};
use baton_protocol::{Rejection, header, subject};
use baton_telemetry::Metrics;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::instance::{Instance, is_inbox};
use crate::log::{LogError, other};
use crate::room::{self, Place, Room};

/// A request that was read, on its way to the machine.
pub(crate) struct Incoming<M: Machine> {
    pub(crate) asked: Asked,
    pub(crate) request: M::Request,
    pub(crate) context: RequestContext,
}

/// Who asked, and wants an answer.
pub(crate) struct Asked {
    pub(crate) endpoint: &'static Endpoint,
    since: Instant,
    request: service::Request,
    counters: Arc<Counters>,
    metrics: Metrics,
    /// The largest message that the broker allows, in bytes.
    max_payload: usize,
    /// Given back when this is answered, or dropped with its session.
    _place: Place,
}

#[derive(Default)]
pub(crate) struct Counters {
    rejected: AtomicU64,
    set_aside: AtomicU64,
}

/// The running micro service. It ends when dropped.
pub(crate) struct Endpoints {
    service: Option<service::Service>,
    readers: JoinSet<()>,
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        if let Some(service) = self.service.take() {
            tokio::spawn(service.stop());
        }
    }
}

impl Endpoints {
    /// Registers the micro service and reads requests until dropped.
    pub(crate) async fn start<M: Machine>(
        client: &Client,
        instance: &Instance,
        metrics: &Metrics,
        out: &mpsc::Sender<Incoming<M>>,
    ) -> Result<Self, LogError> {
        let failed = |error| other("registering the micro service", error);
        let counters = Arc::new(Counters::default());
        let shown = Arc::clone(&counters);
        let service = client
            .service_builder()
            .description(about(instance))
            .queue_group(instance.name())
            .metadata(HashMap::from([("instance".to_owned(), instance.name().to_owned())]))
            .stats_handler(move |_, _: endpoint::Stats| {
                serde_json::json!({
                    "rejected": shown.rejected.load(Ordering::Relaxed),
                    "set_aside": shown.set_aside.load(Ordering::Relaxed),
                })
            })
            .start(format!("baton-{}", instance.service()), env!("CARGO_PKG_VERSION"))
            .await
            .map_err(failed)?;
        let mut tasks = JoinSet::new();
        for endpoint in M::Request::ENDPOINTS {
            let requests = service
                .endpoint_builder()
                .name(endpoint.name.replace('.', "-"))
                .metadata(schemas(endpoint))
                .add(endpoint.subject(instance.service()))
                .await
                .map_err(failed)?;
            let reader = Reader::<M> {
                endpoint,
                client: client.clone(),
                instance: instance.clone(),
                metrics: metrics.clone(),
                counters: Arc::clone(&counters),
                out: out.clone(),
                room: Room::new(),
            };
            tasks.spawn(reader.run(requests));
        }
        // Whoever is told that this instance leads may ask it.
        client.flush().await.map_err(|error| other("registering the micro service", error))?;
        Ok(Self { service: Some(service), readers: tasks })
    }

    /// Takes no more requests, and reads those that are here already.
    pub(crate) async fn finish(mut self) {
        if let Some(service) = self.service.take() {
            let _ = service.stop().await;
        }
        while self.readers.join_next().await.is_some() {}
    }
}

fn about(instance: &Instance) -> &'static str {
    use baton_protocol::Service;
    match instance.service() {
        Service::WorkflowManager => "Baton: what may run when",
        Service::ResourceManager => "Baton: who holds what",
        Service::Optimizer => "Baton: who should do it",
        Service::Gateway => "Baton: who may come in",
    }
}

fn schemas(endpoint: &Endpoint) -> HashMap<String, String> {
    let text = |schema: schemars::Schema| serde_json::to_string(&schema).unwrap_or_default();
    HashMap::from([
        ("about".to_owned(), endpoint.about.to_owned()),
        ("request_schema".to_owned(), text((endpoint.request)())),
        ("response_schema".to_owned(), text((endpoint.answer)())),
    ])
}

struct Reader<M: Machine> {
    endpoint: &'static Endpoint,
    client: Client,
    instance: Instance,
    metrics: Metrics,
    counters: Arc<Counters>,
    out: mpsc::Sender<Incoming<M>>,
    room: Room,
}

impl<M: Machine> Reader<M> {
    async fn run(self, mut requests: endpoint::Endpoint) {
        // Written once: to refuse must cost little, or the flood is dropped unread and nobody is told.
        let full = room::full(self.endpoint.name);
        let (headers, body) = (error_headers(&full), Bytes::from(serde_json::to_vec(&full).unwrap_or_default()));
        while let Some(request) = requests.next().await {
            let message = &request.message;
            if let Some(reply) = message.reply.as_ref().filter(|reply| !is_inbox(reply)) {
                tracing::warn!(subject = %message.subject, %reply, "a request wants its answer where no inbox is: dropped");
                self.metrics.count("baton_requests_set_aside_total", &[]);
                self.instance.update(|status| status.set_aside += 1);
                continue;
            }
            let place = self.room.place(message.payload.len());
            let Some(place) = place else {
                self.counters.rejected.fetch_add(1, Ordering::Relaxed);
                self.metrics.count("baton_requests_total", &[self.endpoint.name, full.code.as_str()]);
                if let Some(reply) = message.reply.clone() {
                    let _ = self.client.publish_with_headers(reply, headers.clone(), body.clone()).await;
                }
                continue;
            };
            let decoded = M::Request::decode(self.endpoint.name, &message.subject, &message.payload);
            let trace = message.headers.as_ref().and_then(|headers| headers.get(header::TRACEPARENT));
            let context = RequestContext { trace: trace.and_then(|value| value.as_str().parse().ok()) };
            let asked = self.asked(request, place);
            match decoded {
                Ok(request) => {
                    if self.out.send(Incoming { asked, request, context }).await.is_err() {
                        return;
                    }
                }
                Err(rejection) => {
                    self.set_aside(&asked, &rejection).await;
                    asked.answer(Err(rejection)).await;
                }
            }
        }
    }

    fn asked(&self, request: service::Request, place: Place) -> Asked {
        Asked {
            endpoint: self.endpoint,
            since: Instant::now(),
            request,
            counters: Arc::clone(&self.counters),
            metrics: self.metrics.clone(),
            max_payload: self.client.max_payload(),
            _place: place,
        }
    }

    /// Keeps what could not be read where an operator can look at it, and counts it.
    async fn set_aside(&self, asked: &Asked, rejection: &Rejection) {
        self.counters.set_aside.fetch_add(1, Ordering::Relaxed);
        self.metrics.count("baton_requests_set_aside_total", &[]);
        self.instance.update(|status| status.set_aside += 1);
        let message = &asked.request.message;
        tracing::warn!(subject = %message.subject, error = %rejection, "a request can not be read: set aside");
        let kept = Bytes::copy_from_slice(&message.payload[..message.payload.len().min(64 * 1024)]);
        let mut headers = HeaderMap::new();
        for (name, value) in [("Baton-Subject", message.subject.as_str()), ("Baton-Error", rejection.message.as_str())]
        {
            if let Ok(value) = one_line(value).parse::<async_nats::HeaderValue>() {
                headers.insert(name, value);
            }
        }
        let _ = self.client.publish_with_headers(subject::aside(M::Record::SERVICE), headers, kept).await;
    }
}

fn one_line(text: &str) -> String {
    text.chars().take(1000).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Asked {
    /// Answers, and counts.
    pub(crate) async fn answer(self, reply: Reply) {
        let reply = reply.and_then(|json| {
            // The broker would drop it, and the asker would wait in vain.
            let (size, most) = (json.size(), self.max_payload);
            if size + 1024 <= most {
                return Ok(json);
            }
            let message = format!("the answer has {size} bytes; the broker allows {most}: ask for less");
            Err(Rejection::new(baton_protocol::Code::TooLarge, message))
        });
        let outcome = match &reply {
            Ok(_) => "ok",
            Err(rejection) => {
                self.counters.rejected.fetch_add(1, Ordering::Relaxed);
                rejection.code.as_str()
            }
        };
        self.metrics.count("baton_requests_total", &[self.endpoint.name, outcome]);
        self.metrics.observe("baton_request_seconds", &[self.endpoint.name], self.since.elapsed().as_secs_f64());
        if self.request.message.reply.is_none() {
            return;
        }
        let sent = match reply {
            Ok(json) => self.request.respond(Ok(Bytes::from_owner(json))).await,
            Err(rejection) => {
                let body = serde_json::to_vec(&rejection).unwrap_or_default();
                self.request.respond_with_headers(Ok(body.into()), error_headers(&rejection)).await
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "an answer could not be sent");
        }
    }

    /// Answers with bytes that are JSON already.
    pub(crate) async fn answer_bytes(self, body: Bytes) {
        self.metrics.count("baton_requests_total", &[self.endpoint.name, "ok"]);
        let _ = self.request.respond(Ok(body)).await;
    }
}

pub(crate) fn error_headers(rejection: &Rejection) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = one_line(&rejection.message).parse::<async_nats::HeaderValue>() {
        headers.insert(service::NATS_SERVICE_ERROR, value);
    }
    headers.insert(service::NATS_SERVICE_ERROR_CODE, rejection.code.http_status().to_string().as_str());
    headers
}
