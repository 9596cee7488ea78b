//! Connects to NATS as its other tools do, and asks Baton's services.
//!
//! - [`ConnectSettings`] finds the broker: flags, `BATON_…`, `NATS_…`, a NATS context, localhost.
//! - [`Client`] asks every question of [`baton_protocol::request`], and asks again while a service has no leader.
//! - [`Client::run_events`] follows a run, complete and in order; [`Client::log`] reads the log.
//! - [`Client::live_agents`] and its like give what a service answers whenever it is something else.
//! - [`Client::put_object`] and its like keep what is too large for a message.
//! - [`Client::why`] says what a stage waits for.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use baton_client::{Client, ConnectSettings};
//! use baton_protocol::request::ListRuns;
//!
//! let client = Client::connect(&ConnectSettings::default()).await?;
//! for run in client.list_runs(&ListRuns::default()).await?.runs {
//!     println!("{} {}", run.run, run.status);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Deliberately absent: no retry of anything that must not be repeated (every request of the protocol may be), no cache,
//! and no way to write to the log.

mod client;
mod connect;
mod error;
mod events;
mod gather;
mod headers;
mod live;
mod objects;
mod settings;
mod why;

pub use client::{ATTEMPT, Client, DEADLINE};
pub use connect::{ConnectError, Connection, Link, connect};
pub use error::ClientError;
pub use events::{CommitStream, LogEnds, RunEvent, RunEventStream, RunRecordStream};
pub use headers::{Headers, now};
pub use live::{Live, Shown};
pub use settings::{ConnectSettings, Secret, SettingsError, config_dir, write_context, write_context_in};
