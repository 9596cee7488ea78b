//! A log that takes nothing, because it or the broker's store is full: what is answered meanwhile, and how it ends.
//!
//! A commit that the broker refuses is not stored, so the state that it was decided from is ahead of the log: the session
//! ends and loads again, as after any failure. Whoever waited for an answer is told that nothing can be stored. So is
//! whoever asks later, by a [`Gate`] that is closed from the first refusal until a commit has landed. It outlives
//! sessions: a new one tries every now and then whether there is room, and takes requests when there is.
//!
//! While the gate is closed, no other instance should take requests, or one asker could be refused here and heard there.
//! So the entry of the leader that was refused is kept: the gate answers pings. A store that is wholly full takes no
//! leader's entry either; then every instance that wanted to lead closes its gate, and the first that gets an entry
//! leaves the others the time to see it before it takes requests. A refusal therefore says that the request can not be
//! stored now, never that it was not: that is for whoever asks again to see.

use std::error::Error;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, HeaderMap, Message, Subscriber};
use baton_client::{ConnectError, ConnectSettings, Connection};
use baton_machine::Machine;
use baton_protocol::record::Record;
use baton_protocol::request::{Endpoint, Requests};
use baton_protocol::{Code, Millis, Rejection};
use baton_telemetry::Metrics;
use futures::{Stream, StreamExt, stream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::endpoints::{Endpoints, Incoming, error_headers};
use crate::instance::{Instance, is_inbox, serve_status};
use crate::session::{End, Session};

/// When to ask again. Whether there is room is found out about as often.
const RETRY_MS: Millis = 1000;

/// How long a session that has found room waits before it takes requests. Others look twice as often who leads.
const GRACE: Duration = Duration::from_millis(500);

/// How long those who refused may take to answer what was on its way to them, when they are asked to end.
const LAST: Duration = Duration::from_secs(1);

/// Why the broker stores nothing, if that is so: what it said.
pub(crate) fn reason(error: &(dyn Error + 'static)) -> Option<String> {
    let mut chain = std::iter::successors(Some(error), |error| (*error).source());
    let refused = chain.find_map(|error| error.downcast_ref::<jetstream::Error>())?;
    let full = [
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::MEMORY_RESOURCES_EXCEEDED,
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::STREAM_STORE_FAILED,
    ];
    full.contains(&refused.error_code()).then(|| refused.to_string())
}

/// What is answered while nothing can be stored.
fn refusal(why: &str) -> Rejection {
    let message = format!("the log is full: the request can not be stored now ({why})");
    Rejection::new(Code::Unavailable, message).retry_after(RETRY_MS)
}

/// Open as a rule. Closed, it answers every request to the service with a refusal.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Inner>);

struct Inner {
    instance: Instance,
    connect: ConnectSettings,
    metrics: Metrics,
    closed: Mutex<Option<Closed>>,
}

/// It has a connection of its own, because sessions come and go. All ends when this is dropped.
struct Closed {
    client: Client,
    /// Asks those who refuse to end.
    opening: CancellationToken,
    refusing: JoinSet<()>,
    _status: JoinSet<()>,
}

impl Gate {
    pub(crate) fn new(instance: &Instance, connect: &ConnectSettings, metrics: &Metrics) -> Self {
        let (instance, connect, metrics) = (instance.clone(), connect.clone(), metrics.clone());
        metrics.set("baton_log_full", &[], 0.0);
        Self(Arc::new(Inner { instance, connect, metrics, closed: Mutex::new(None) }))
    }

    /// How to connect to the broker.
    pub(crate) fn connect_settings(&self) -> &ConnectSettings {
        &self.0.connect
    }

    /// Why it is closed, if it is.
    pub(crate) fn why(&self) -> Option<String> {
        self.0.instance.status().full
    }

    /// Closes it, unless it is closed already.
    pub(crate) async fn close<M: Machine>(&self, why: &str) {
        let mut closed = self.0.closed.lock().await;
        if self.why().is_none() {
            let service = M::Record::SERVICE;
            tracing::error!(%service, why, "the log is full: nothing can be stored, every request is refused until there is room");
        }
        self.0.instance.update(|status| status.full = Some(why.to_owned()));
        self.0.metrics.set("baton_log_full", &[], 1.0);
        if closed.is_none() {
            match self.refuse::<M>().await {
                Ok(refusing) => *closed = Some(refusing),
                Err(error) => tracing::warn!(%error, "nobody is told that the log is full"),
            }
        }
    }

    /// Opens it: requests are for the session, which takes them already, or for another instance. One that the broker sends
    /// just then may stay without an answer, as when a leader dies; whoever asked repeats it.
    pub(crate) async fn open(&self) {
        let closed = self.0.closed.lock().await.take();
        if self.why().is_none() {
            return;
        }
        self.0.instance.update(|status| status.full = None);
        self.0.metrics.set("baton_log_full", &[], 0.0);
        tracing::info!(service = %self.0.instance.service(), "the log takes commits again");
        if let Some(Closed { client, opening, mut refusing, _status }) = closed {
            opening.cancel();
            tokio::spawn(async move {
                let ended = async { while refusing.join_next().await.is_some() {} };
                let _ = timeout(LAST, ended).await;
                let _ = timeout(LAST, client.flush()).await;
            });
        }
    }

    /// Takes over the endpoints of a session that ends, and refuses what comes in by them. They are in the gate's queue
    /// group: were they taken down now, the requests on their way to them would stay without an answer.
    async fn take_over<M: Machine>(&self, endpoints: Endpoints, mut requests: mpsc::Receiver<Incoming<M>>) {
        let mut closed = self.0.closed.lock().await;
        let Some(Closed { opening, refusing, .. }) = &mut *closed else { return };
        let (gate, opening) = (Arc::downgrade(&self.0), opening.clone());
        refusing.spawn(async move {
            let answering = async {
                while let Some(incoming) = requests.recv().await {
                    let why = gate.upgrade().and_then(|inner| inner.instance.status().full);
                    incoming.asked.answer(Err(refusal(&why.unwrap_or_default()))).await;
                }
            };
            let ending = async {
                opening.cancelled().await;
                endpoints.finish().await;
            };
            tokio::join!(answering, ending);
        });
    }

    async fn refuse<M: Machine>(&self) -> Result<Closed, ConnectError> {
        let Inner { instance, connect, metrics, .. } = &*self.0;
        let client = Connection::open(connect).await?.nats;
        let (opening, mut refusing, mut status) = (CancellationToken::new(), JoinSet::new(), JoinSet::new());
        // Who asks how this instance stands is answered, also between two sessions.
        if let Err(error) = serve_status(&client, instance, metrics, &mut status).await {
            tracing::debug!(%error, "status");
        }
        for endpoint in M::Request::ENDPOINTS {
            // A session's endpoints are in the same group: whoever of the two is asked, it is one.
            let group = instance.name().to_owned();
            match client.queue_subscribe(endpoint.subject(instance.service()), group).await {
                Ok(requests) => {
                    let (client, instance, metrics) = (client.clone(), instance.clone(), metrics.clone());
                    let requests = until(requests, opening.clone());
                    refusing.spawn(requests.for_each(move |message| {
                        let (client, instance, metrics) = (client.clone(), instance.clone(), metrics.clone());
                        async move { answer(&client, &instance, &metrics, endpoint, message).await }
                    }));
                }
                Err(error) => tracing::warn!(%error, endpoint = endpoint.name, "nobody is told that the log is full"),
            }
        }
        let _ = timeout(Duration::from_secs(1), client.flush()).await;
        Ok(Closed { client, opening, refusing, _status: status })
    }
}

/// What comes by a subscription until it is asked to end, and what was on its way then.
fn until(requests: Subscriber, end: CancellationToken) -> impl Stream<Item = Message> {
    stream::unfold((requests, end), async |(mut requests, end)| {
        if !end.is_cancelled() {
            tokio::select! {
                message = requests.next() => return message.map(|message| (message, (requests, end))),
                () = end.cancelled() => {
                    let _ = requests.drain().await;
                }
            }
        }
        requests.next().await.map(|message| (message, (requests, end)))
    })
}

async fn answer(client: &Client, instance: &Instance, metrics: &Metrics, endpoint: &Endpoint, message: Message) {
    let Some(reply) = message.reply.filter(|reply| is_inbox(reply)) else { return };
    let rejection = refusal(&instance.status().full.unwrap_or_default());
    metrics.count("baton_requests_total", &[endpoint.name, rejection.code.as_str()]);
    let headers: HeaderMap = error_headers(&rejection);
    let body = serde_json::to_vec(&rejection).unwrap_or_default();
    if let Err(error) = client.publish_with_headers(reply, headers, body.into()).await {
        tracing::debug!(%error, "a refusal could not be sent");
    }
}

impl<M: Machine> Session<M> {
    /// The broker refused a commit, for want of room. What was decided since the last one is lost with the session:
    /// whoever waits for it is told.
    pub(crate) async fn refused(&mut self, why: String) -> End {
        self.telemetry.metrics.count("baton_commits_refused_total", &[]);
        self.gate.close::<M>(&why).await;
        let refusal = refusal(&why);
        for asked in self.hands.forget() {
            asked.answer(Err(refusal.clone())).await;
        }
        if let Some(endpoints) = self.endpoints.take() {
            let requests = mem::replace(&mut self.requests, mpsc::channel(1)).1;
            self.gate.take_over(endpoints, requests).await;
        }
        if let Some(trimmer) = self.trimmer(self.processor.time()) {
            trimmer.trim(true).await;
        }
        End::Full(why)
    }

    /// Opens the gate once a commit of this session has shown that there is room, and takes requests.
    pub(crate) async fn reopen(&mut self) -> Result<(), End> {
        if !self.landed || self.endpoints.is_some() || !self.processor.is_leading() || self.gate.why().is_none() {
            return Ok(());
        }
        let since = *self.room_since.get_or_insert_with(Instant::now);
        if since.elapsed() < GRACE {
            return Ok(());
        }
        self.serve().await?;
        self.gate.open().await;
        Ok(())
    }
}
