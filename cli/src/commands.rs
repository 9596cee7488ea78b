//! The commands, one module each.

pub(crate) mod advise;
pub(crate) mod agent;
pub(crate) mod agents;
pub(crate) mod alerts;
pub(crate) mod bench;
pub(crate) mod budgets;
pub(crate) mod cancel;
pub(crate) mod capacity;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod forecast;
pub(crate) mod graph;
pub(crate) mod handoff;
pub(crate) mod healthcheck;
pub(crate) mod import;
pub(crate) mod learning;
pub(crate) mod leases;
pub(crate) mod log;
pub(crate) mod message;
pub(crate) mod objects;
pub(crate) mod operate;
pub(crate) mod resources;
pub(crate) mod run;
pub(crate) mod runs;
pub(crate) mod schedules;
pub(crate) mod service;
pub(crate) mod show;
pub(crate) mod simulate;
pub(crate) mod strategy;
pub(crate) mod triggers;
pub(crate) mod up;
pub(crate) mod why;
pub(crate) mod why_placed;
pub(crate) mod word;
pub(crate) mod workflow;

use baton_client::{Client, ConnectError, ConnectSettings, Connection};

/// The NATS context that `baton up` writes.
pub(crate) const DEV_CONTEXT: &str = "baton-dev";

/// Connects as [`open`] does, to ask services.
pub(crate) async fn connect(settings: &ConnectSettings) -> Result<Client, ConnectError> {
    Ok(Client::new(open(settings).await?.nats))
}

/// Connects. Where nothing says which broker is meant and none listens at the usual place, the one that `baton up`
/// started is meant, if it is there: its port may be another one.
pub(crate) async fn open(settings: &ConnectSettings) -> Result<Connection, ConnectError> {
    let error = match Connection::open(settings).await {
        Err(error) if is_guess(&error) => error,
        connected => return connected,
    };
    let dev = ConnectSettings { context: Some(DEV_CONTEXT.to_owned()), ..settings.clone() };
    Connection::open(&dev).await.map_err(|_| error)
}

/// Whether nobody had said where the broker is.
fn is_guess(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Unreachable { from, .. } if from == "the default")
}
