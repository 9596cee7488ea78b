//! A message on its way out, and one that has come.

use std::sync::Arc;
use std::time::Duration;

use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use async_nats::{Message, Subject};
use baton_client::now;
use baton_protocol::header::{self, Priority, Routing};
use baton_protocol::message::MessageType;
use baton_protocol::subject::{self, Said};
use baton_protocol::trace::TraceContext;
use baton_protocol::{AgentId, Json, Millis, RunId};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::output::TaskError;

const ID: HeaderName = HeaderName::from_static(header::ID);
const TIME: HeaderName = HeaderName::from_static(header::TIME);
const TYPE: HeaderName = HeaderName::from_static(header::TYPE);
const TTL_MS: HeaderName = HeaderName::from_static(header::TTL_MS);
const PRIORITY: HeaderName = HeaderName::from_static(header::PRIORITY);
const ROUTING: HeaderName = HeaderName::from_static(header::ROUTING);
const TARGETS: HeaderName = HeaderName::from_static(header::TARGETS);
const CORRELATION_ID: HeaderName = HeaderName::from_static(header::CORRELATION_ID);
const TRACEPARENT: HeaderName = HeaderName::from_static(header::TRACEPARENT);
const RESPONSE_WANTED: HeaderName = HeaderName::from_static(header::RESPONSE_WANTED);
const TIMEOUT_MS: HeaderName = HeaderName::from_static(header::TIMEOUT_MS);
const NATS_MSG_ID: HeaderName = async_nats::header::NATS_MESSAGE_ID;
pub(crate) const NATS_SEQUENCE: HeaderName = async_nats::header::NATS_SEQUENCE;
pub(crate) const NATS_LAST_SEQUENCE: HeaderName = async_nats::header::NATS_LAST_SEQUENCE;
pub(crate) const NATS_SUBJECT: HeaderName = async_nats::header::NATS_SUBJECT;

/// A message to be sent: its body, and what its headers say.
#[derive(Debug, Clone)]
#[must_use]
pub struct Outgoing {
    pub(crate) body: Bytes,
    pub(crate) message_type: Option<MessageType>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) priority: Priority,
    pub(crate) correlation: Option<HeaderValue>,
    pub(crate) trace: Option<TraceContext>,
}

impl Outgoing {
    /// A message with this body.
    pub fn json<T: Serialize + ?Sized>(body: &T) -> Result<Self, serde_json::Error> {
        Ok(Self::raw(serde_json::to_vec(body)?))
    }

    /// A message whose body is JSON already. It is not looked into.
    pub fn raw(body: impl Into<Bytes>) -> Self {
        Self {
            body: body.into(),
            message_type: None,
            ttl: None,
            priority: Priority::Normal,
            correlation: None,
            trace: None,
        }
    }

    /// Its type. Unless given it is `data_update`, of a broadcast `broadcast`, of a request `data_request`.
    pub fn of(mut self, message_type: MessageType) -> Self {
        self.message_type = Some(message_type);
        self
    }

    /// How long it is worth reading; whoever gets it later drops it. The clocks of the two machines are compared.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How urgent it is. That is told, and changes nothing in the order.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// What it belongs to. A value with a line break in it is left out.
    pub fn correlation(mut self, correlation: &str) -> Self {
        self.correlation = correlation.parse().ok();
        self
    }

    /// The run that it belongs to.
    pub fn of_run(self, run: RunId) -> Self {
        self.correlation(&run.to_string())
    }

    /// The trace that it belongs to.
    pub fn in_trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// As NATS carries it. What the subject says (who sends it, to whom) is said there only, where the broker pins it;
    /// what is as usual is left out: every header costs the fast path.
    pub(crate) fn headers(&self, id: String, time: Millis, usual: &MessageType) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(ID, id);
        map.insert(TIME, time.to_string());
        map.insert(TYPE, self.message_type.as_ref().unwrap_or(usual).name().as_ref());
        if let Some(ttl) = self.ttl {
            map.insert(TTL_MS, ttl.as_millis().to_string());
        }
        if self.priority != Priority::Normal {
            map.insert(PRIORITY, self.priority.as_str());
        }
        if let Some(correlation) = &self.correlation {
            map.insert(CORRELATION_ID, correlation.clone());
        }
        if let Some(trace) = self.trace {
            map.insert(TRACEPARENT, trace.to_string());
        }
        map
    }
}

impl From<Json> for Outgoing {
    fn from(body: Json) -> Self {
        Self::raw(body.as_str().to_owned())
    }
}

/// Adds who else gets it.
pub(crate) fn multicast(map: &mut HeaderMap, targets: &str) {
    map.insert(ROUTING, Routing::Multicast.as_str());
    map.insert(TARGETS, targets);
}

/// Adds that an answer is wanted.
pub(crate) fn wants_answer(map: &mut HeaderMap, timeout: Duration) {
    map.insert(RESPONSE_WANTED, "true");
    map.insert(TIMEOUT_MS, timeout.as_millis().to_string());
}

/// Adds what the broker tells repeated messages by.
pub(crate) fn guaranteed(map: &mut HeaderMap, id: String) {
    map.insert(NATS_MSG_ID, id);
}

/// A message that has come. Copies are the same message.
#[derive(Debug, Clone)]
pub struct Received(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    message: Message,
    from: AgentId,
    route: Route,
    message_type: MessageType,
    sequence: Option<u64>,
}

/// How a message found its reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// It was for this agent, and perhaps for some others.
    Direct,
    /// It was for all agents.
    Broadcast,
    /// It was published to this topic.
    Topic(String),
}

impl Received {
    /// Reads what is about the message; `None` where it is not one of an agent. A message that names no type, or one that
    /// does not exist, is a `data_update`.
    #[must_use]
    pub fn read(message: Message) -> Option<Self> {
        // A fetched message has the subject on which it was stored in a header. On any other it would be the sender's word.
        let is_fetched = subject::parse_from_post(&message.subject).is_some();
        let stored = if is_fetched { text(&message, NATS_SUBJECT)? } else { &message.subject };
        let (from, said) = subject::parse_said(stored)?;
        let from = AgentId::new(from).ok()?;
        let route = match said {
            Said::Direct | Said::Mail => Route::Direct,
            Said::ToAll => Route::Broadcast,
            Said::Topic(topic) => Route::Topic(topic.to_owned()),
        };
        let sequence = if said == Said::Mail { number(&message, NATS_SEQUENCE) } else { None };
        let message_type = text(&message, TYPE).and_then(|name| name.parse().ok());
        let message_type = message_type.unwrap_or(MessageType::DataUpdate);
        Some(Self(Arc::new(Inner { message, from, route, message_type, sequence })))
    }

    /// The body, as asked.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, TaskError> {
        serde_json::from_slice(&self.0.message.payload)
            .map_err(|error| TaskError::failed(format!("the message's body can not be used: {error}")).permanent())
    }

    /// The body as it came.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.0.message.payload
    }

    /// Who sent it. The broker pins that, where agents have permissions.
    #[must_use]
    pub fn from(&self) -> &AgentId {
        &self.0.from
    }

    /// How it came here.
    #[must_use]
    pub fn route(&self) -> &Route {
        &self.0.route
    }

    /// What it is.
    #[must_use]
    pub fn message_type(&self) -> &MessageType {
        &self.0.message_type
    }

    /// Its id, as the sender gave it.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        text(&self.0.message, ID).or_else(|| text(&self.0.message, NATS_MSG_ID))
    }

    /// When it was sent by the sender's clock, in milliseconds since 1970.
    #[must_use]
    pub fn time(&self) -> Option<Millis> {
        number(&self.0.message, TIME)
    }

    /// What it belongs to.
    #[must_use]
    pub fn correlation(&self) -> Option<&str> {
        text(&self.0.message, CORRELATION_ID)
    }

    /// How urgent it is.
    #[must_use]
    pub fn priority(&self) -> Priority {
        let name = text(&self.0.message, PRIORITY);
        Priority::ALL.into_iter().find(|priority| Some(priority.as_str()) == name).unwrap_or_default()
    }

    /// The trace that it belongs to.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        text(&self.0.message, TRACEPARENT)?.parse().ok()
    }

    /// Any header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        // A name that can be none would be a panic.
        let name: HeaderName = name.parse().ok()?;
        text(&self.0.message, name)
    }

    /// Its place in the stream, if it is guaranteed.
    #[must_use]
    pub fn sequence(&self) -> Option<u64> {
        self.0.sequence
    }

    /// Whether the sender waits for an answer.
    #[must_use]
    pub fn wants_answer(&self) -> bool {
        self.reply().is_some()
    }

    /// Where the answer goes: to an inbox, and nowhere else.
    pub(crate) fn reply(&self) -> Option<&Subject> {
        let reply = self.0.message.reply.as_ref().filter(|_| self.0.sequence.is_none())?;
        (!reply.starts_with("baton.") && !reply.starts_with('$')).then_some(reply)
    }

    /// Whether it is too late to read it.
    pub(crate) fn is_expired(&self) -> bool {
        let Some(ttl) = number(&self.0.message, TTL_MS) else { return false };
        self.time().is_some_and(|time| now() > time.saturating_add(ttl))
    }
}

/// The last value of a header: what the broker adds stands behind what a sender may have written under the same name.
pub(crate) fn text(message: &Message, name: HeaderName) -> Option<&str> {
    message.headers.as_ref()?.get_last(name).map(HeaderValue::as_str)
}

pub(crate) fn number(message: &Message, name: HeaderName) -> Option<u64> {
    text(message, name)?.parse().ok()
}
