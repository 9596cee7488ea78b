//! What tests need: a real nats-server each, built binaries as processes, a Python that knows NATS, a place for spans, a bad
//! network.
//!
//! Everything here owns what it starts and ends it when dropped, always by its own process number. Nothing uses a fixed
//! port or a directory that another test could use, and nothing sleeps in the hope that something has happened meanwhile:
//! [`wait_for`] looks at a state until it is reached.
//!
//! A test cannot go on without these, so they panic where a library would return an error, and the panic shows the end of
//! the log that explains it.
//!
//! Deliberately absent: fake servers, and anything that knows Baton's records. Checkers belong to `shared/sim`.

mod binary;
mod cluster;
mod nats;
mod otlp;
mod port;
mod process;
mod proxy;
mod python;
mod wait;

pub use baton_broker::{Durability, Options as NatsOptions, Stopped};
pub use binary::baton_binary;
pub use cluster::{Isolation, NatsCluster};
pub use nats::NatsServer;
pub use otlp::{OtlpReceiver, Span};
pub use process::{Process, ProcessBuilder};
pub use proxy::{Close, Direction, Proxy};
pub use python::{Python, python_with_nats};
pub use wait::{Outcome, wait_for};
