//! Logs, metrics and spans of a Baton process.
//!
//! | module | what | where it goes |
//! |---|---|---|
//! | [`logs`] | what a process says to its operator | stderr |
//! | [`spans`] | finished spans, as data | an OpenTelemetry collector (OTLP over gRPC) |
//! | [`metrics`] | counts and times, as data | Prometheus' text format, on request |
//!
//! Machines have no clock and do no I/O: they say *which* span has ended and *which* counter has grown, and this crate
//! sends or keeps it. So spans come with the ids, the beginning and the end that the machine gave them, instead of
//! being opened and closed around code; and metrics are named by a table instead of being handed around as objects.
//!
//! # What is not here
//!
//! Nothing global but the log subscriber: a process may hold several services, each with its own [`Spans`] and
//! [`Metrics`]. No HTTP endpoint: the gateway asks each service over NATS and [merges](metrics::merge) the answers. No
//! bridge from OpenTelemetry's metrics to Prometheus: the `prometheus` crate does all of it.

pub mod logs;
pub mod metrics;
pub mod spans;

pub use logs::{LogConfig, LogError, LogFormat};
pub use metrics::Metrics;
pub use spans::{Spans, TraceConfig, TraceError};
