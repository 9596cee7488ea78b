//! Trace context: which trace a run is, and which span a task is, without anybody having to be told.
//!
//! A run's id is its trace id, unless who started it brought a trace of its own. The span ids of a run's own span and of
//! its tasks are hashes, so that any service, also one that has just restarted, gives the same ones. Header:
//! `traceparent` (W3C Trace Context, `00-TRACE-SPAN-FLAGS`).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::id::{RunId, TaskId, mix};

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace, 16 bytes.
    pub trace: u128,
    /// The span, 8 bytes.
    pub span: u64,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl TraceContext {
    /// The trace of a run whose starter brought none, at the run's own span.
    #[must_use]
    pub fn of_run(run: RunId) -> Self {
        Self { trace: run.as_u128(), span: run_span(run), sampled: true }
    }

    /// The same trace at another span.
    #[must_use]
    pub fn at(self, span: u64) -> Self {
        Self { span, ..self }
    }
}

/// Whether a trace is recorded, at that share of all traces.
///
/// All services answer the same, and what is recorded at a smaller share is also recorded at a larger one. The whole
/// id is hashed: UUIDv7 ids begin with the time and carry fixed bits, and a sampler that compares some bits of them
/// with a threshold, as OpenTelemetry's does, is only fair where those bits happen to be random.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
pub fn sampled(trace: u128, ratio: f64) -> bool {
    let hash = mix(mix((trace >> 64) as u64) ^ trace as u64);
    ((hash >> 11) as f64) < ratio * (1u64 << 53) as f64
}

/// The span of a run.
#[must_use]
pub fn run_span(run: RunId) -> u64 {
    nonzero(mix(run.as_u128() as u64 ^ mix((run.as_u128() >> 64) as u64)))
}

/// The span of a task: one stage at one attempt.
#[must_use]
pub fn task_span(task: &TaskId) -> u64 {
    let item = task.item.map_or(0, |item| mix(u64::from(item) + 1));
    let seed = mix(run_span(task.run) ^ u64::from(task.attempt) ^ item);
    nonzero(task.stage.as_str().bytes().fold(seed, |hash, byte| mix(hash ^ u64::from(byte))))
}

/// A further span of a task, told apart by what it is: `place`, `assign`, `report`.
#[must_use]
pub fn part_span(task: &TaskId, part: &str) -> u64 {
    nonzero(part.bytes().fold(mix(task_span(task)), |hash, byte| mix(hash ^ u64::from(byte))))
}

/// A finished span, as data: a machine decides what is shown, the shell exports it.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The span and its trace.
    pub context: TraceContext,
    /// The span that it is part of.
    pub parent: Option<u64>,
    /// Its name, never with ids in it: `invoke_workflow article`.
    pub name: String,
    /// What it is to the messages it is about.
    pub kind: SpanKind,
    /// When it began, in milliseconds since 1970.
    pub start: crate::Millis,
    /// When it ended.
    pub end: crate::Millis,
    /// What else is to be known.
    pub attributes: Vec<(&'static str, String)>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// What a span is to the messages it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Neither.
    Internal,
    /// It answers a request.
    Server,
    /// It sends a message.
    Producer,
    /// It handles a message.
    Consumer,
}

fn nonzero(span: u64) -> u64 {
    span.max(1)
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// A `traceparent` that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a traceparent: it must look like 00-<32 hex digits>-<16 hex digits>-<2 hex digits>")]
pub struct TraceContextError(String);

impl FromStr for TraceContext {
    type Err = TraceContextError;
    fn from_str(text: &str) -> Result<Self, TraceContextError> {
        let read = || {
            let mut parts = text.split('-');
            let version = parts.next().filter(|p| p.len() == 2 && *p != "ff")?;
            u8::from_str_radix(version, 16).ok()?;
            let trace = parts.next().filter(|p| p.len() == 32)?;
            let span = parts.next().filter(|p| p.len() == 16)?;
            let flags = parts.next().filter(|p| p.len() == 2)?;
            let context = Self {
                trace: u128::from_str_radix(trace, 16).ok()?,
                span: u64::from_str_radix(span, 16).ok()?,
                sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
            };
            (context.trace != 0 && context.span != 0 && (version != "00" || parts.next().is_none())).then_some(context)
        };
        read().ok_or_else(|| TraceContextError(text.chars().take(80).collect()))
    }
}

impl Serialize for TraceContext {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TraceContext {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::parse(deserializer)
    }
}

impl JsonSchema for TraceContext {
    fn schema_name() -> Cow<'static, str> {
        "TraceContext".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
            "description": "A W3C traceparent."
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_reads_as_it_is_written() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(text.parse::<TraceContext>().unwrap().to_string(), text);
        for bad in ["", "00", &text[..50], "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "x0-é"] {
            assert!(bad.parse::<TraceContext>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_of_a_run_differ() {
        let run = RunId::derive(1, 1);
        let task =
            |stage: &str, attempt| TaskId { run, stage: crate::StageName::new(stage).unwrap(), item: None, attempt };
        let mut spans = vec![run_span(run)];
        for stage in ["a", "b", "ab"] {
            for attempt in 1..4 {
                let task = task(stage, attempt);
                spans.extend([task_span(&task), part_span(&task, "place"), part_span(&task, "assign")]);
            }
        }
        let count = spans.len();
        spans.sort_unstable();
        spans.dedup();
        assert_eq!(spans.len(), count);
    }
}
