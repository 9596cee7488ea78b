//! Guaranteed messages on their way to the stream: each is sent again until the broker says that it is stored.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::{HeaderMap, Message, StatusCode, Subscriber};
use baton_client::{Link, now};
use baton_protocol::message::MessageType;
use baton_protocol::{AgentId, Millis, subject};
use futures::StreamExt;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, interval};

use super::MessageError;
use super::counts::Counts;
use super::letter::{self, Outgoing};

/// How long an acknowledgement is waited for before the message is sent again.
const ACK: Duration = Duration::from_secs(2);
/// How long after a refusal that may pass it is sent again.
const REFUSED: Duration = Duration::from_millis(250);
/// How often is looked whether something has to be sent again.
const LOOK: Duration = Duration::from_millis(100);

/// That a guaranteed message is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its place in the stream.
    pub sequence: u64,
    /// Whether it had been stored already, by a sending whose acknowledgement was lost.
    pub duplicate: bool,
}

/// A guaranteed message under way. It is sent until it is stored, also when this is dropped, but not after the messages
/// were [closed](super::Messages::close): then this gives [`MessageError::Closed`].
#[derive(Debug)]
#[must_use = "the message is sent all the same, but only this tells whether it was stored"]
pub struct Posted(oneshot::Receiver<Result<Stored, MessageError>>);

impl Future for Posted {
    type Output = Result<Stored, MessageError>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|told| told.unwrap_or(Err(MessageError::Closed)))
    }
}

/// A message that is not known to be stored.
struct Flight {
    to: AgentId,
    message: Outgoing,
    targets: Option<Arc<str>>,
    time: Millis,
    again_at: Instant,
    until: Instant,
    done: oneshot::Sender<Result<Stored, MessageError>>,
    _place: OwnedSemaphorePermit,
}

/// Sends guaranteed messages of one agent, at most so many at a time.
pub(crate) struct Outbox {
    nats: async_nats::Client,
    from: AgentId,
    /// Ids begin with it: no other process has it, so nobody can use one of them up.
    pub(crate) session: String,
    inbox: String,
    pub(crate) next: AtomicU64,
    window: Arc<Semaphore>,
    patience: Duration,
    /// `None` once it is closed.
    flights: Mutex<Option<BTreeMap<u64, Flight>>>,
    counts: Arc<Counts>,
}

/// What the broker says of a message that was to be stored.
#[derive(Deserialize)]
struct PubAck {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<AckError>,
}

#[derive(Deserialize)]
struct AckError {
    code: u16,
    #[serde(default)]
    description: String,
}

impl Outbox {
    pub(crate) fn new(
        nats: async_nats::Client,
        from: AgentId,
        window: usize,
        patience: Duration,
        counts: &Arc<Counts>,
    ) -> Self {
        let (session, _) = uuid::Uuid::new_v4().as_u64_pair();
        Self {
            inbox: nats.new_inbox(),
            nats,
            from,
            session: format!("{session:016x}"),
            next: AtomicU64::new(1),
            window: Arc::new(Semaphore::new(window)),
            patience,
            flights: Mutex::new(Some(BTreeMap::new())),
            counts: Arc::clone(counts),
        }
    }

    fn flights(&self) -> MutexGuard<'_, Option<BTreeMap<u64, Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends nothing any more. Whoever waits, for room or for a message to be stored, is told.
    pub(crate) fn close(&self) {
        let flights = self.flights().take();
        self.window.close();
        // Outside the lock: this wakes those that wait.
        drop(flights);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.flights().is_none()
    }

    pub(crate) fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.session)
    }

    /// Sends a message as soon as there is room in the window; the answer tells when it is stored.
    pub(crate) async fn post(
        &self,
        to: AgentId,
        message: Outgoing,
        targets: Option<Arc<str>>,
    ) -> Result<Posted, MessageError> {
        let place = Arc::clone(&self.window).acquire_owned().await.map_err(|_| MessageError::Closed)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let time = now();
        let (done, told) = oneshot::channel();
        let (subject, headers) = self.written(number, &to, &message, targets.as_deref(), time);
        let body = message.body.clone();
        let begin = Instant::now();
        // It is worth no more attempts than it is worth reading.
        let until = begin + message.ttl.map_or(self.patience, |ttl| ttl.min(self.patience));
        let flight = Flight { to, message, targets, time, again_at: begin + ACK, until, done, _place: place };
        self.flights().as_mut().ok_or(MessageError::Closed)?.insert(number, flight);
        self.counts.sent.one();
        let sent =
            self.nats.publish_with_reply_and_headers(subject, format!("{}.{number}", self.inbox), headers, body).await;
        if let Err(error) = sent {
            self.flights().as_mut().and_then(|flights| flights.remove(&number));
            return Err(MessageError::Unsent(error.to_string()));
        }
        Ok(Posted(told))
    }

    fn written(
        &self,
        number: u64,
        to: &AgentId,
        message: &Outgoing,
        targets: Option<&str>,
        time: Millis,
    ) -> (String, HeaderMap) {
        let id = self.id(number);
        let mut headers = message.headers(id.clone(), time, &MessageType::DataUpdate);
        letter::guaranteed(&mut headers, id);
        if let Some(targets) = targets {
            letter::multicast(&mut headers, targets);
        }
        (subject::mail(&self.from, to), headers)
    }

    /// Where acknowledgements come.
    pub(crate) async fn subscribe(&self) -> Result<Subscriber, MessageError> {
        let heard = self.nats.subscribe(format!("{}.*", self.inbox)).await;
        heard.map_err(|error| MessageError::Unsent(error.to_string()))
    }

    /// Hears acknowledgements and sends again what has none, for as long as it is polled.
    pub(crate) async fn run(self: Arc<Self>, mut heard: Subscriber, mut link: watch::Receiver<Link>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut connects = link.borrow_and_update().connects;
        loop {
            tokio::select! {
                biased;
                message = heard.next() => match message {
                    Some(message) => self.heard(&message),
                    None => return,
                },
                _ = look.tick() => {
                    let now = link.borrow().connects;
                    // What was under way went down with the old connection, or its acknowledgement did.
                    let anew = std::mem::replace(&mut connects, now) != now;
                    self.again(anew).await;
                }
            }
        }
    }

    fn heard(&self, message: &Message) {
        let Some(number) = message.subject.rsplit('.').next().and_then(|number| number.parse().ok()) else { return };
        let outcome = if message.status == Some(StatusCode::NO_RESPONDERS) {
            None
        } else {
            match serde_json::from_slice::<PubAck>(&message.payload) {
                Ok(PubAck { error: Some(AckError { code, description }), .. }) => {
                    // Less than 500 says that the message is wrong, not the time.
                    (code < 500).then_some(Err(MessageError::Refused(description)))
                }
                Ok(PubAck { seq, duplicate, error: None }) => Some(Ok(Stored { sequence: seq, duplicate })),
                Err(error) => Some(Err(MessageError::Refused(format!("the broker's answer can not be read: {error}")))),
            }
        };
        let mut guard = self.flights();
        let Some(flights) = guard.as_mut() else { return };
        let Some(outcome) = outcome else {
            if let Some(flight) = flights.get_mut(&number) {
                flight.again_at = flight.again_at.min(Instant::now() + REFUSED);
            }
            return;
        };
        let Some(flight) = flights.remove(&number) else { return };
        drop(guard);
        if outcome.is_ok() {
            self.counts.stored.one();
        }
        // Nobody has to listen.
        let _ = flight.done.send(outcome);
    }

    async fn again(&self, all: bool) {
        let now = Instant::now();
        let mut due = Vec::new();
        {
            let mut guard = self.flights();
            let Some(flights) = guard.as_mut() else { return };
            let over: Vec<u64> = flights.iter().filter(|(_, f)| f.until <= now).map(|(number, _)| *number).collect();
            for number in over {
                if let Some(flight) = flights.remove(&number) {
                    let _ = flight.done.send(Err(MessageError::Unknown));
                }
            }
            for (number, flight) in flights.iter_mut().filter(|(_, flight)| all || flight.again_at <= now) {
                flight.again_at = now + ACK;
                let targets = flight.targets.as_deref();
                let (subject, headers) = self.written(*number, &flight.to, &flight.message, targets, flight.time);
                due.push((*number, subject, headers, flight.message.body.clone()));
            }
        }
        self.counts.repeated.add(due.len() as u64);
        for (number, subject, headers, body) in due {
            let reply = format!("{}.{number}", self.inbox);
            if let Err(error) = self.nats.publish_with_reply_and_headers(subject, reply, headers, body).await {
                tracing::debug!(%error, "a guaranteed message could not be sent again");
            }
        }
    }
}
