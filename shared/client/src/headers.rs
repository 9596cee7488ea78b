//! Headers of what we send.

use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use baton_protocol::message::MessageType;
use baton_protocol::trace::TraceContext;
use baton_protocol::{Millis, RunId, header};
use uuid::Uuid;

// A name that is known is not parsed again for each message.
const ID: HeaderName = HeaderName::from_static(header::ID);
const TIME: HeaderName = HeaderName::from_static(header::TIME);
const VERSION: HeaderName = HeaderName::from_static(header::VERSION);
const TYPE: HeaderName = HeaderName::from_static(header::TYPE);
const SOURCE: HeaderName = HeaderName::from_static(header::SOURCE);
const CORRELATION_ID: HeaderName = HeaderName::from_static(header::CORRELATION_ID);
const TRACEPARENT: HeaderName = HeaderName::from_static(header::TRACEPARENT);
const TRACESTATE: HeaderName = HeaderName::from_static(header::TRACESTATE);

/// Everything about a message that is not its body.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Headers {
    /// The message's id; a new one if none is given. A repeated message keeps its id.
    pub id: Option<Uuid>,
    /// Its type.
    pub message_type: Option<MessageType>,
    /// Who sends it.
    pub source: Option<String>,
    /// What it belongs to: for messages of a run, the run's id.
    pub correlation: Option<String>,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
    /// The trace state that came with the trace.
    pub tracestate: Option<String>,
}

impl Headers {
    /// Headers of a message of that type.
    #[must_use]
    pub fn of(message_type: MessageType) -> Self {
        Self { message_type: Some(message_type), ..Self::default() }
    }

    /// The same, for a message that belongs to a run.
    #[must_use]
    pub fn of_run(mut self, run: RunId) -> Self {
        self.correlation = Some(run.to_string());
        self
    }

    /// The same, for a message that belongs to a trace.
    #[must_use]
    pub fn in_trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// As NATS carries them, with the time. A value that a header can not hold (with a line break in it) is left out:
    /// it says nothing that the body does not.
    #[must_use]
    pub fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        let mut put = |name: HeaderName, value: &str| match value.parse::<HeaderValue>() {
            Ok(value) => map.insert(name, value),
            Err(_) => tracing::warn!(header = %name, "a header value with a line break in it is left out"),
        };
        let id = self.id.unwrap_or_else(Uuid::now_v7);
        put(ID, id.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()));
        put(TIME, &now().to_string());
        put(VERSION, header::CURRENT_VERSION);
        if let Some(message_type) = &self.message_type {
            put(TYPE, &message_type.name());
        }
        if let Some(source) = &self.source {
            put(SOURCE, source);
        }
        if let Some(correlation) = &self.correlation {
            put(CORRELATION_ID, correlation);
        }
        if let Some(trace) = self.trace {
            put(TRACEPARENT, &trace.to_string());
        }
        if let Some(tracestate) = &self.tracestate {
            put(TRACESTATE, tracestate);
        }
        map
    }
}

/// The time, in milliseconds since 1970.
#[must_use]
pub fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| Millis::try_from(since.as_millis()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_a_header_can_not_hold_is_left_out() {
        let headers = Headers {
            source: Some("ann".into()),
            tracestate: Some("a=1\r\nNats-Expected-Stream: X".into()),
            ..Headers::of(MessageType::Heartbeat)
        };
        let map = headers.to_map();
        assert_eq!(map.get(header::SOURCE).unwrap().as_str(), "ann");
        assert_eq!(map.get(header::TYPE).unwrap().as_str(), "heartbeat");
        assert_eq!(map.get(header::VERSION).unwrap().as_str(), "1.0");
        assert!(map.get(header::TRACESTATE).is_none());
        assert!(map.get(header::ID).unwrap().as_str().parse::<Uuid>().is_ok());
    }
}
