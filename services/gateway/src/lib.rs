//! The HTTP door: API, event streams, metrics. It asks the services over NATS and has no state of its own, so any number
//! of gateways may run.
//!
//! One table (`routes.rs`) says what there is: the router and the OpenAPI document are both built from it, so that they can
//! not drift apart. Bodies are the protocol's own words; every error is a problem ([`ProblemDetails`]).
//!
//! What this crate deliberately lacks: rules. What a workflow, a run or an agent may do is decided by the services; a
//! refusal is passed on as it came. Authentication is lacking too, hence the [default](baton_shell::Settings) of
//! listening on the local machine only, and the checks (`security.rs`) that make it true.

mod api;
mod events;
mod extract;
mod health;
mod live;
mod metrics;
mod openapi;
mod problem;
mod routes;
mod security;
mod webhooks;

use std::collections::HashMap;
use std::fmt;
use std::future::IntoFuture;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::service::{Service, ServiceExt};
use axum::serve::ListenerExt;
use baton_client::{Client, ConnectError, ConnectSettings};
use baton_protocol::request::Role;
use baton_shell::{Instance, Settings, Telemetry};
use baton_telemetry::{Metrics, Spans};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use openapi::document;
pub use problem::ProblemDetails;

use crate::health::Readiness;
use crate::security::Policy;

/// How long requests that are under way may go on after the shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the gateway stopped, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The broker can not be reached, or does not let us in.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The broker does not let us say how we stand.
    #[error("the gateway can not be asked how it stands: {0}")]
    Status(#[from] async_nats::SubscribeError),
    /// The address can not be listened on.
    #[error(
        "can not listen on {address} for HTTP: {error}. Choose another address with http.listen in baton.toml or with \
         BATON_HTTP__LISTEN; port 0 takes any free one"
    )]
    Listen {
        /// The address.
        address: String,
        /// What is wrong with it.
        error: std::io::Error,
    },
    /// Connections can no longer be taken.
    #[error("the gateway takes no more connections: {0}")]
    Serve(std::io::Error),
}

/// Runs a gateway until `shutdown`; then requests under way are answered and event streams end.
///
/// It listens on `settings.http.listen`; the address that this came to is sent to `bound` when requests are taken.
///
/// # Errors
/// When the broker can not be reached at the start, or the address can not be listened on. A broker that goes away
/// later is waited for.
pub async fn run(
    instance: Instance,
    connect: ConnectSettings,
    settings: Settings,
    telemetry: Telemetry,
    shutdown: CancellationToken,
    bound: Option<oneshot::Sender<SocketAddr>>,
) -> Result<(), GatewayError> {
    let wanted = &settings.http.listen;
    let unusable = |error| GatewayError::Listen { address: wanted.clone(), error };
    let listener = TcpListener::bind(wanted).await.map_err(unusable)?;
    let address = listener.local_addr().map_err(unusable)?;
    let nats = baton_client::connect(&connect.named("baton-gateway")).await?;

    let mut tasks = JoinSet::new();
    baton_shell::serve_status(&nats, &instance, &telemetry.metrics, &mut tasks).await?;
    webhooks::start(&nats, &settings.alerts.webhooks, &telemetry.metrics, &mut tasks).await?;
    let service = register(&nats, &instance).await;
    instance.update(|status| status.role = Role::Serving);

    let hosts: Arc<[String]> = settings.http.allowed_hosts.as_slice().into();
    let policy = Policy { local: address.ip().is_loopback() || !hosts.is_empty(), hosts };
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "anyone who reaches this address may use Baton: the gateway does not authenticate yet");
    }
    // Whoever asks over HTTP is told at once when to ask again, with `Retry-After`, instead of being one more who waits here.
    let client =
        Client::new(nats.clone()).with_source(format!("gateway/{}", instance.name())).waits_when_refused(false);
    let door = Door::new(client, telemetry, shutdown.clone());
    let router = routes::router(door, policy);
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let server = axum::serve(listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    tracing::info!("listening on http://{address}");
    if let Some(bound) = bound {
        let _ = bound.send(address);
    }

    let served = tokio::select! {
        served = server.into_future() => served.map_err(GatewayError::Serve),
        () = async { shutdown.cancelled().await; tokio::time::sleep(DRAIN).await } => {
            tracing::warn!("some requests were not answered within {} s of the shutdown", DRAIN.as_secs());
            Ok(())
        }
    };
    if let Some(service) = service {
        let _ = service.stop().await;
    }
    let _ = nats.flush().await;
    served
}

/// Shows the gateway where other NATS services show themselves. It works without: that is a convenience.
async fn register(nats: &async_nats::Client, instance: &Instance) -> Option<Service> {
    let service = nats
        .service_builder()
        .description("Baton: who may come in")
        .metadata(HashMap::from([("instance".to_owned(), instance.name().to_owned())]))
        .start("baton-gateway", env!("CARGO_PKG_VERSION"))
        .await;
    service.inspect_err(|error| tracing::warn!(%error, "the gateway is not listed among the NATS services")).ok()
}

/// What every handler has.
#[derive(Clone)]
pub(crate) struct Door(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) client: Client,
    pub(crate) metrics: Metrics,
    pub(crate) spans: Spans,
    pub(crate) readiness: Readiness,
    pub(crate) shutdown: CancellationToken,
}

impl Door {
    fn new(client: Client, telemetry: Telemetry, shutdown: CancellationToken) -> Self {
        let Telemetry { spans, metrics } = telemetry;
        Self(Arc::new(Inner { client, metrics, spans, readiness: Readiness::default(), shutdown }))
    }
}

impl Inner {
    pub(crate) fn is_connected(&self) -> bool {
        self.client.nats().connection_state() == State::Connected
    }
}

impl Deref for Door {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("connected", &self.is_connected()).finish_non_exhaustive()
    }
}
