//! `baton service`

use baton_protocol::Service as Name;
use baton_shell::Instance;
use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::failure::Exit;
use crate::fleet::Signals;
use crate::{Context, services};

/// Runs one service until Ctrl-C or SIGTERM, then drains it
#[derive(Debug, Args)]
pub(crate) struct Service {
    /// workflow-manager, resource-manager, optimizer or gateway
    name: Name,
}

impl Service {
    pub(crate) async fn run(self, context: Context) -> anyhow::Result<Exit> {
        let mut signals = Signals::listen()?;
        let instance = Instance::new(self.name);
        let telemetry = services::telemetry(&instance, &services::trace_config(&context.settings)?)?;
        let spans = telemetry.spans.clone();
        let shutdown = CancellationToken::new();
        tracing::info!(service = %self.name, instance = instance.name(), version = env!("CARGO_PKG_VERSION"), "starting");
        let connect = context.connect_settings();
        let service = services::run(instance, connect, context.settings, telemetry, None, shutdown.clone(), None);
        tokio::pin!(service);
        let ended = tokio::select! {
            ended = &mut service => ended,
            () = signals.next() => {
                tracing::info!("draining; a second signal ends it at once");
                shutdown.cancel();
                tokio::select! {
                    ended = &mut service => ended,
                    () = signals.next() => return Ok(Exit::Interrupted),
                }
            }
        };
        spans.shutdown().await;
        ended.map(|()| {
            tracing::info!("drained");
            Exit::Done
        })
    }
}
