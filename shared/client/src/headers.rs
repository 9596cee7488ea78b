//! Headers of what we send.

use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::header::{HeaderMap, HeaderValue};
use baton_protocol::message::MessageType;
use baton_protocol::trace::TraceContext;
use baton_protocol::{Millis, RunId, header};
use uuid::Uuid;

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
        let mut put = |name: &'static str, value: Option<String>| {
            let Some(value) = value else { return };
            match value.parse::<HeaderValue>() {
                Ok(value) => map.insert(name, value),
                Err(_) => tracing::warn!(header = name, "a header value with a line break in it is left out"),
            }
        };
        put(header::ID, Some(self.id.unwrap_or_else(Uuid::now_v7).to_string()));
        put(header::TIME, Some(now().to_string()));
        put(header::VERSION, Some(header::CURRENT_VERSION.to_owned()));
        put(header::TYPE, self.message_type.as_ref().map(ToString::to_string));
        put(header::SOURCE, self.source.clone());
        put(header::CORRELATION_ID, self.correlation.clone());
        put(header::TRACEPARENT, self.trace.map(|trace| trace.to_string()));
        put(header::TRACESTATE, self.tracestate.clone());
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
