//! The four services, run in this process.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use baton_client::ConnectSettings;
use baton_protocol::Service;
use baton_shell::{
    AlertSettings, BreakerSettings, Feed, Instance, PressureLimitSettings, PressureSettings, Settings, Telemetry,
};
use baton_telemetry::spans::TraceConfig;
use baton_telemetry::{Metrics, Spans};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
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
/// for one of them to wake up. The optimizer does it on the thread that reads the log, where there is one. The gateway
/// serves many at a time, on the threads that there are, and tells through `bound` where it listens.
pub(crate) async fn run(
    instance: Instance,
    connect: ConnectSettings,
    settings: Settings,
    telemetry: Telemetry,
    log: Option<LogThread>,
    shutdown: CancellationToken,
    bound: Option<oneshot::Sender<SocketAddr>>,
) -> anyhow::Result<()> {
    let service = instance.service();
    // Ends the service as well when this future is dropped.
    let shutdown = shutdown.child_token();
    let _guard = shutdown.clone().drop_guard();
    let feed = log.as_ref().map(|log| log.feed.clone());
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
                let alerts = alerts(&settings.alerts);
                let pressure = pressure(&settings.pressure);
                let config =
                    baton_resource_manager::Config { lease_ms, heartbeat_ms, breakers, pools, alerts, pressure };
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
                let placement = &settings.placement;
                let config = baton_optimizer::Config {
                    ageing_ms: placement.ageing_ms,
                    deadlines_first: placement.deadlines_first,
                    learning_rate: placement.learning_rate_millionths(),
                    tenants: placement.tenants.clone(),
                    ..baton_optimizer::Config::default()
                };
                let run = baton_shell::run::<baton_optimizer::Optimizer>;
                run(instance, connect, settings, config, telemetry, feed, shutdown).await.map_err(anyhow::Error::from)
            }
            Service::Gateway => {
                let run = baton_gateway::run(instance, connect, settings, telemetry, shutdown, bound);
                run.await.map_err(anyhow::Error::from)
            }
        }
    });
    let ended = match (service, log) {
        (Service::Gateway, _) => run.await,
        (Service::Optimizer, Some(log)) => log.run(run).await,
        _ => on_a_thread(service.as_str(), run).await,
    };
    ended.with_context(|| format!("the {service} stopped"))
}

fn breakers(settings: &BreakerSettings) -> baton_resource_manager::BreakerConfig {
    let BreakerSettings { enabled, window, min_tasks, error_percent, open_ms, max_open_ms, probes, restart_after } =
        *settings;
    baton_resource_manager::BreakerConfig {
        enabled,
        window,
        min_tasks,
        error_percent,
        open_ms,
        max_open_ms,
        probes,
        restart_after,
    }
}

fn alerts(settings: &AlertSettings) -> baton_resource_manager::AlertConfig {
    let AlertSettings { queue_depth, run_failed, pools, pool_used_ms, webhooks: _ } = *settings;
    baton_resource_manager::AlertConfig { queue_depth, run_failed, pools, pool_used_ms }
}

fn pressure(settings: &PressureSettings) -> baton_resource_manager::PressureConfig {
    let limits = |limits: &PressureLimitSettings| {
        let PressureLimitSettings { queue, per_slot, memory_percent, below } = *limits;
        baton_resource_manager::PressureLimits { queue, per_slot, memory_percent, below }
    };
    let PressureSettings { elevated, critical, longest_ms } = settings;
    baton_resource_manager::PressureConfig {
        elevated: limits(elevated),
        critical: limits(critical),
        longest_ms: *longest_ms,
    }
}

/// The thread that reads the log for all services of this process, until they are gone.
///
/// The optimizer runs on it as well: it waits for nothing but what is read, so that it answers at once, and is not woken up. The
/// others have a thread each: all on one would take turns under load.
#[derive(Clone)]
pub(crate) struct LogThread {
    feed: Feed,
    runtime: Handle,
    /// The thread ends when nobody has this any more.
    _used: mpsc::Sender<()>,
}

impl LogThread {
    /// Starts it.
    pub(crate) fn start(connect: &ConnectSettings) -> anyhow::Result<Self> {
        let (feed, reading) = Feed::new(connect.clone());
        let (used, mut unused) = mpsc::channel(1);
        let runtime = thread("log", async move {
            tokio::spawn(reading);
            unused.recv().await;
        })?;
        Ok(Self { feed, runtime, _used: used })
    }

    /// Runs a service on it.
    async fn run(&self, run: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> anyhow::Result<()> {
        self.runtime.spawn(run).await.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")))
    }
}

/// Runs a service on a thread of its own.
async fn on_a_thread<F>(name: &'static str, run: F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (tell, ended) = oneshot::channel();
    thread(name, async {
        // As a task, so that what wakes it up on this thread need not look for other events first.
        let _ = tell.send(tokio::spawn(run).await);
    })?;
    ended.await.ok().and_then(Result::ok).unwrap_or_else(|| Err(anyhow::anyhow!("it panicked")))
}

/// Starts a thread with a runtime of its own, which goes on as long as `run` does.
fn thread(name: &'static str, run: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let handle = runtime.handle().clone();
    let run = move || {
        runtime.block_on(run);
        // What still sends something away must not hold anybody up.
        runtime.shutdown_background();
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).context("a thread")?;
    Ok(handle)
}
