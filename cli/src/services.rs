//! The four services, run in this process.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use baton_client::ConnectSettings;
use baton_protocol::Service;
use baton_shell::{BreakerSettings, Feed, Instance, Settings, Telemetry};
use baton_telemetry::spans::TraceConfig;
use baton_telemetry::{Metrics, Spans};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Where traces go: what the settings say, and what OpenTelemetry's own variables say where they are silent.
pub(crate) fn trace_config(settings: &Settings) -> anyhow::Result<TraceConfig> {
    let environment = TraceConfig::from_env()?;
    Ok(TraceConfig {
        endpoint: settings.telemetry.otlp_endpoint.clone().or(environment.endpoint),
        // Both may thin out; the smaller share is what was asked for.
        sample_ratio: settings.telemetry.sample_ratio.min(environment.sample_ratio),
    })
}

/// What a service shows of itself: its own spans and metrics.
pub(crate) fn telemetry(instance: &Instance, config: &TraceConfig) -> anyhow::Result<Telemetry> {
    let service = instance.service().as_str();
    let spans = Spans::start(service, instance.name(), config)?;
    let metrics = Metrics::new(service, instance.name());
    metrics.watch(&spans);
    Ok(Telemetry { spans, metrics })
}

/// Runs an instance of a service until `shutdown`, and drains it.
///
/// A service that keeps the log does all that it does on one thread: it is one loop, and what passes between threads waits
/// for one of them to wake up. The gateway serves many at a time, on the threads that there are, and tells through `bound`
/// where it listens.
pub(crate) async fn run(
    instance: Instance,
    connect: ConnectSettings,
    settings: Settings,
    telemetry: Telemetry,
    feed: Option<Feed>,
    shutdown: CancellationToken,
    bound: Option<oneshot::Sender<SocketAddr>>,
) -> anyhow::Result<()> {
    let service = instance.service();
    // Ends the service as well when this future is dropped.
    let shutdown = shutdown.child_token();
    let _guard = shutdown.clone().drop_guard();
    // On the heap: it is large, and a thread's stack is not.
    let run = Box::pin(async move {
        match service {
            Service::WorkflowManager => {
                let run = baton_shell::run::<baton_workflow_manager::WorkflowManager>;
                let config = baton_workflow_manager::Config {
                    max_live_runs: settings.workflows.max_live_runs,
                    keep_ended: settings.workflows.keep_ended,
                    keep_ended_ms: settings.workflows.keep_ended_ms,
                    ..baton_workflow_manager::Config::default()
                };
                run(instance, connect, settings, config, telemetry, feed, shutdown).await.map_err(anyhow::Error::from)
            }
            Service::ResourceManager => {
                let (lease_ms, heartbeat_ms) = (settings.agents.lease_ms, settings.agents.heartbeat_ms);
                let (breakers, pools) = (breakers(&settings.breakers), settings.pools.clone());
                let config = baton_resource_manager::Config { lease_ms, heartbeat_ms, breakers, pools };
                // Who agents are is known here, so here is also where their messages are kept. Every instance has a post office;
                // it comes and goes with its service and never ends it.
                let post = baton_post::Settings {
                    replicas: settings.log.replicas,
                    max_age: Duration::from_millis(settings.messages.max_age_ms),
                    max_bytes: settings.messages.max_bytes,
                };
                let post = baton_post::run(connect.clone(), post, telemetry.metrics.clone(), shutdown.clone());
                let run = baton_shell::run::<baton_resource_manager::ResourceManager>;
                let service = run(instance, connect, settings, config, telemetry, feed, shutdown);
                tokio::select! {
                    ended = service => ended.map_err(anyhow::Error::from),
                    never = async { post.await; std::future::pending().await } => never,
                }
            }
            Service::Optimizer => {
                let ageing_ms = settings.placement.ageing_ms;
                let config = baton_optimizer::Config { ageing_ms, ..baton_optimizer::Config::default() };
                let run = baton_shell::run::<baton_optimizer::Optimizer>;
                run(instance, connect, settings, config, telemetry, feed, shutdown).await.map_err(anyhow::Error::from)
            }
            Service::Gateway => {
                let run = baton_gateway::run(instance, connect, settings, telemetry, shutdown, bound);
                run.await.map_err(anyhow::Error::from)
            }
        }
    });
    let ended = if service == Service::Gateway { run.await } else { on_a_thread(service.as_str(), run).await };
    ended.with_context(|| format!("the {service} stopped"))
}

fn breakers(settings: &BreakerSettings) -> baton_resource_manager::BreakerConfig {
    let BreakerSettings { enabled, window, min_tasks, error_percent, open_ms, max_open_ms, probes } = *settings;
    baton_resource_manager::BreakerConfig { enabled, window, min_tasks, error_percent, open_ms, max_open_ms, probes }
}

/// Reads the log for all services of this process, on a thread of its own, until they are gone.
pub(crate) fn feed(connect: &ConnectSettings) -> Feed {
    let (feed, reading) = Feed::new(connect.clone());
    tokio::spawn(on_a_thread("log", async {
        reading.await;
        Ok(())
    }));
    feed
}

/// Runs a service on a thread of its own.
async fn on_a_thread<F>(name: &'static str, run: F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (tell, ended) = oneshot::channel();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let ended = runtime.context("a runtime").and_then(|runtime| {
            let ended = runtime.block_on(run);
            // What still sends something away must not hold anybody up.
            runtime.shutdown_background();
            ended
        });
        let _ = tell.send(ended);
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).context("a thread")?;
    ended.await.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")))
}
