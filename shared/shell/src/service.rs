//! One instance of a service, from its start to its drain.

use std::time::Duration;

use baton_client::ConnectSettings;
use baton_machine::Machine;
use baton_protocol::record::Record;
use baton_protocol::request::Role;
use baton_telemetry::{Metrics, Spans};
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::feed::Feed;
use crate::full::Gate;
use crate::instance::Instance;
use crate::log::LogError;
use crate::session::{End, Session};

/// How long a full log is left alone, at the least. To try costs a load of the log.
const FULL_PAUSE: Duration = Duration::from_millis(500);

/// Why a service stopped that nobody had asked to.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The log can not be used as it is.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log can not be read: going on would fold it wrongly.
    #[error("the log can not be read, so the {service} stops: {error}")]
    Unreadable {
        /// The service.
        service: baton_protocol::Service,
        /// Which message, and why.
        error: String,
    },
    /// The broker can not be reached, or does not let us in.
    #[error(transparent)]
    Connect(#[from] baton_client::ConnectError),
}

/// What a service shows of itself.
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// Its spans.
    pub spans: Spans,
    /// Its metrics.
    pub metrics: Metrics,
}

/// Runs an instance of a service until `shutdown`, then drains: what was decided is committed and answered, a snapshot
/// is kept, leadership is given up.
///
/// With a `feed` it leaves reading the log to that while it leads.
///
/// Only what a restart can not mend ends it with an error: a log that contradicts the settings or can not be read, and
/// a broker that was never reached.
pub async fn run<M: Machine>(
    instance: Instance,
    connect: ConnectSettings,
    settings: Settings,
    config: M::Config,
    telemetry: Telemetry,
    feed: Option<Feed>,
    shutdown: CancellationToken,
) -> Result<(), ShellError> {
    let service = M::Record::SERVICE;
    let connect = connect.named(format!("baton-{service}"));
    let mut pause = Duration::from_millis(20);
    let mut ever_connected = false;
    let mut known_log = None;
    let gate = Gate::new(&instance, &connect, &telemetry.metrics);
    loop {
        instance.update(|status| status.role = Role::Loading);
        telemetry.metrics.set("baton_leading", &[], 0.0);
        let session =
            Session::<M>::open(&instance, &settings, config.clone(), &telemetry, &gate, &mut known_log, &shutdown);
        let end = match session.await {
            Ok(Some(session)) => {
                ever_connected = true;
                let (end, landed) = session.run(feed.clone(), &shutdown).await;
                if landed {
                    pause = Duration::from_millis(20);
                }
                end
            }
            Ok(None) => return Ok(()),
            Err(end) => end,
        };
        match end {
            End::Drained => return Ok(()),
            End::Full(why) => {
                tracing::debug!(%service, why, "the log is full: trying again");
                pause = pause.max(FULL_PAUSE);
            }
            End::Broken(why) => tracing::info!(%service, %why, "the session ended: starting again"),
            End::Unreachable(error) if !ever_connected => return Err(error.into()),
            End::Unreachable(error) => tracing::info!(%service, %error, "the broker can not be reached: trying again"),
            // It was there before: in a cluster, a server that is just starting or stopping may say so.
            End::Fatal(ShellError::Log(error @ LogError::NoJetStream(_))) if known_log.is_some() => {
                tracing::warn!(%service, %error, "trying again");
            }
            End::Fatal(error) => return Err(error),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
