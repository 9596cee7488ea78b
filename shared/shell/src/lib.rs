//! The shell: everything around a machine that is not a rule.
//!
//! One shell runs any [`Machine`](baton_machine::Machine): it connects, takes leadership, loads the snapshot, replays the
//! log, follows it, commits decisions behind the fence, answers requests, keeps documents, shows traces and counts,
//! drains. A service has no NATS code of its own beyond its table of endpoints.
//!
//! A **session** is one connection's life: it ends when the connection breaks, when a commit is refused or its outcome
//! unknown, or when the instance is deposed; then everything is dropped and loaded again from a fresh connection. That is
//! the only way in which state is ever repaired.
//!
//! What this crate deliberately lacks: retries of a commit (an unknown outcome is resolved by reading the log), a
//! `is_leader` check before an effect (the fence decides), and knowledge of any service's rules.

mod clock;
pub mod config;
mod effects;
mod endpoints;
mod feed;
mod full;
mod instance;
mod leadership;
mod log;
mod memory;
mod objects;
mod room;
mod service;
mod session;
mod snapshots;
mod trim;

/// The wall clock, in milliseconds since 1970. A machine never calls it; the shell hands the time in.
pub(crate) use baton_client::now as now_ms;
pub use config::{AlertSettings, BreakerSettings, PressureLimitSettings, PressureSettings, Settings, WebhookSettings};
pub use feed::Feed;
pub use instance::{Instance, serve_status};
pub use service::{ShellError, Telemetry, run};
