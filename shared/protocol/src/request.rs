//! Requests: what may be asked of each service, and what is answered.
//!
//! Every endpoint is in a table ([`Requests::ENDPOINTS`]) that gives its name, subject and schemas; the service shell
//! serves the table as a NATS micro service. Bodies are plain JSON. A refused request is answered with a
//! [`Rejection`], with its code in the header `Nats-Service-Error-Code` (as an HTTP status) and its text in
//! `Nats-Service-Error`.

mod alert;
mod budget;
mod capacity;
mod handoff;
mod learning;
mod optimizer;
mod pool;
mod pressure;
mod resource;
mod workflow;

use std::fmt;

use schemars::{JsonSchema, Schema, schema_for};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::id::{Millis, Number, Service};
use crate::name::AgentId;
use crate::rejection::Rejection;
use crate::subject::{self, AgentVerb};

pub use alert::*;
pub use budget::*;
pub use capacity::*;
pub use handoff::*;
pub use learning::*;
pub use optimizer::*;
pub use pool::*;
pub use pressure::*;
pub use resource::*;
pub use workflow::*;

/// The longest result or input that travels in a message, in bytes. Larger ones are to be kept elsewhere and passed by
/// reference.
pub const MAX_JSON_BYTES: usize = 256 * 1024;

/// The largest body that Baton sends, in bytes: it fits, with headers, into the mebibyte that a nats-server allows unless it
/// is told otherwise.
pub const MAX_MESSAGE_BYTES: usize = 896 * 1024;

/// The longest definition of a workflow, in bytes of JSON. Like every record it must fit into a message of the log.
pub const MAX_DEFINITION_BYTES: usize = 768 * 1024;

/// How deep the JSON of a request may nest. Readers of every language must be able to take what ends up in the log, some
/// levels deeper.
pub const MAX_JSON_DEPTH: usize = 64;

/// The longest idempotency key, in bytes.
pub const MAX_KEY_BYTES: usize = 255;

/// One thing that may be asked.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// Its name: `run.start`. Agents' endpoints are named `agent.VERB`.
    pub name: &'static str,
    /// Whether an agent asks, on its own subject; otherwise anyone, on `baton.req.SERVICE.NAME`.
    pub verb: Option<AgentVerb>,
    /// What it is for, in a sentence.
    pub about: &'static str,
    /// The schema of the request.
    pub request: fn() -> Schema,
    /// The schema of the answer.
    pub answer: fn() -> Schema,
}

impl Endpoint {
    /// The subject (for an agent's endpoint, the pattern) that it listens on.
    #[must_use]
    pub fn subject(&self, service: Service) -> String {
        match self.verb {
            Some(verb) => subject::agents(verb),
            None => subject::request(service, self.name),
        }
    }
}

const fn endpoint(
    name: &'static str,
    verb: Option<AgentVerb>,
    about: &'static str,
    request: fn() -> Schema,
    answer: fn() -> Schema,
) -> Endpoint {
    Endpoint { name, verb, about, request, answer }
}

fn schema<T: JsonSchema>() -> Schema {
    schema_for!(T)
}

/// A record that must have been read before a request can be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Whose record.
    pub service: Service,
    /// Its number.
    pub number: Number,
}

/// All that may be asked of one service.
pub trait Requests: fmt::Debug + Sized + Send + 'static {
    /// The endpoints.
    const ENDPOINTS: &'static [Endpoint];

    /// Reads a request. The rejection says what is wrong and where.
    fn decode(endpoint: &str, subject: &str, payload: &[u8]) -> Result<Self, Rejection>;

    /// The record that it names, which must have been read first.
    fn waits_for(&self) -> Option<Mark> {
        None
    }
}

/// Reads a body; an empty one is read as `{}`.
fn body<T: DeserializeOwned>(endpoint: &str, payload: &[u8]) -> Result<T, Rejection> {
    let payload = if payload.trim_ascii().is_empty() { b"{}".as_slice() } else { payload };
    if depth(payload) > MAX_JSON_DEPTH {
        let message = format!("the body of {endpoint} nests deeper than {MAX_JSON_DEPTH} levels");
        return Err(Rejection::invalid(message));
    }
    serde_json::from_slice(payload)
        .map_err(|error| Rejection::invalid(format!("the body of {endpoint} can not be read: {error}")))
}

/// How deep a JSON text nests. Of a text that is not JSON it is at least as deep as a parser would get.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn speaker(subject: &str) -> Result<AgentId, Rejection> {
    subject::parse_agent(subject).map_err(|error| Rejection::invalid(format!("subject {subject:?}: {error}")))
}

fn unknown_endpoint(endpoint: &str) -> Rejection {
    Rejection::invalid(format!("there is no endpoint {endpoint:?}"))
}

/// It is done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// What every instance of every service answers on [`subject::status`], leading or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceStatus {
    /// The service.
    pub service: Service,
    /// The instance.
    pub instance: String,
    /// The version of Baton it runs.
    pub version: String,
    /// What it does.
    pub role: Role,
    /// The term it last saw or leads in.
    pub term: u64,
    /// The sequence in the log up to which it has read.
    pub read: u64,
    /// The number of its service's last record.
    pub number: Number,
    /// Requests that it could not read, since it started.
    pub set_aside: u64,
    /// What the broker says, while it stores nothing more: then every request is refused, until there is room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<String>,
    /// Its clock, in milliseconds since 1970.
    pub now: Millis,
    /// When it started.
    pub started_at: Millis,
}

/// What an instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It reads the log from its last snapshot.
    Loading,
    /// It folds along, ready to take over.
    Following,
    /// It decides.
    Leading,
    /// It has no log (the gateway).
    Serving,
}

impl Role {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Following => "following",
            Self::Leading => "leading",
            Self::Serving => "serving",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rejection::Code;

    #[test]
    fn a_request_that_can_not_be_read_says_where() {
        let error =
            WorkflowRequest::decode("run.start", "baton.req.workflow-manager.run.start", b"{\"workflow\": \"A\"}")
                .unwrap_err();
        assert_eq!(error.code, Code::InvalidRequest);
        assert!(error.message.contains("run.start") && error.message.contains("\"A\""), "{error}");
        let error = ResourceRequest::decode("agent.register", "baton.agent.Ann.register", b"{}").unwrap_err();
        assert!(error.message.contains("\"Ann\""), "{error}");
    }

    #[test]
    fn what_nests_too_deep_never_gets_into_the_log() {
        let nested = |levels| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        let register = |levels| {
            let body = format!(
                r#"{{"session": "s", "agent_type": "x", "capabilities": {{"y": {{"a": {}, "b": "[{{\\\"[["}}}}}}"#,
                nested(levels)
            );
            ResourceRequest::decode("agent.register", "baton.agent.ann.register", body.as_bytes())
        };
        register(MAX_JSON_DEPTH - 3).unwrap();
        let error = register(MAX_JSON_DEPTH - 2).unwrap_err();
        assert!(error.message.contains("deeper than 64"), "{error}");
    }

    #[test]
    fn a_report_waits_for_its_lease() {
        let text = br#"{"lease": 17, "task": "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b/a/1", "status": "succeeded", "result": {"x": 1}}"#;
        let request = WorkflowRequest::decode("agent.report", "baton.agent.ann.report", text).unwrap();
        assert_eq!(request.waits_for(), Some(Mark { service: Service::ResourceManager, number: 17 }));
    }

    #[test]
    fn several_reports_wait_for_the_last_of_their_leases() {
        let report = |lease| {
            format!(
                r#"{{"lease": {lease}, "task": "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b/a/1", "status": "succeeded"}}"#
            )
        };
        let text = format!(r#"{{"reports": [{}, {}, {}]}}"#, report(3), report(17), report(5));
        let request = WorkflowRequest::decode("agent.reports", "baton.agent.ann.reports", text.as_bytes()).unwrap();
        assert_eq!(request.waits_for(), Some(Mark { service: Service::ResourceManager, number: 17 }));
    }

    #[test]
    fn every_endpoint_can_be_decoded() {
        fn check<R: Requests>() {
            for endpoint in R::ENDPOINTS {
                let error = R::decode(endpoint.name, "baton.agent.ann.x", b"7").unwrap_err();
                assert!(!error.message.contains("there is no endpoint"), "{}", endpoint.name);
            }
        }
        check::<WorkflowRequest>();
        check::<ResourceRequest>();
        check::<OptimizerRequest>();
    }
}
