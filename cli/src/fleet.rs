//! All of Baton in this process: the broker's process beside it, the services, the stock agents.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use baton_broker::server::Error as BrokerError;
use baton_broker::{Broker, Durability, Finder, Found, Options};
use baton_client::{Client, ConnectSettings};
use baton_protocol::request::{AgentStatus, ListAgents, Role};
use baton_protocol::{AgentId, Service};
use baton_shell::{Instance, Settings};
use baton_telemetry::Spans;
use futures::future::{join_all, pending};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::agents::{Stock, start_stock_agent};
use crate::failure::{Exit, Failure};
use crate::services::{self, LogThread};

/// How long everything may take to get ready; a long log takes a while to read.
const START: Duration = Duration::from_secs(120);
/// How long a group of parts may take to drain.
const DRAIN: Duration = Duration::from_secs(15);
/// The same, when the broker is gone.
const CUT_OFF: Duration = Duration::from_millis(300);
/// How often what is not ready yet is looked at.
const POLL: Duration = Duration::from_millis(10);
/// The port at which NATS tools look for a server.
pub(crate) const USUAL_PORT: u16 = 4222;

/// What is to be run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) broker: BrokerPlan,
    pub(crate) settings: Settings,
    pub(crate) agents: Vec<Stock>,
    /// What the agents may read.
    pub(crate) sources: Option<PathBuf>,
}

/// Which broker.
#[derive(Debug, Clone)]
pub(crate) enum BrokerPlan {
    /// One of our own.
    Own {
        /// Where its data lies.
        data: PathBuf,
        durability: Durability,
        /// Whether fetching a nats-server is forbidden.
        offline: bool,
        /// Whether to listen where NATS tools look, if that port is free.
        usual_port: bool,
    },
    /// One that runs somewhere.
    There(Box<ConnectSettings>),
}

/// All that runs.
pub(crate) struct Fleet {
    pub(crate) client: Client,
    pub(crate) connect: ConnectSettings,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) own: Option<OwnBroker>,
    instances: Vec<Instance>,
    stock: Vec<AgentId>,
    agents: Group,
    gateway: Group,
    services: Group,
    spans: Vec<Spans>,
}

/// A broker of our own.
pub(crate) struct OwnBroker {
    pub(crate) found: Found,
    pub(crate) broker: Broker,
}

/// Parts that are started and stopped together.
struct Group {
    shutdown: CancellationToken,
    parts: JoinSet<(String, anyhow::Result<()>)>,
}

impl Fleet {
    /// Starts everything and waits until it is ready. What was started is stopped again when something fails.
    pub(crate) async fn start(plan: Plan) -> anyhow::Result<Self> {
        let mut settings = plan.settings;
        check_http(&settings.http.listen).await?;
        let (own, connect) = match plan.broker {
            BrokerPlan::Own { data, durability, offline, usual_port } => {
                let own = start_broker(&data, durability, offline, usual_port).await?;
                // It is one server, whatever the settings say of a cluster.
                settings.log.replicas = 1;
                let connect = ConnectSettings::alone(own.broker.client_url());
                (Some(own), connect)
            }
            BrokerPlan::There(connect) => (None, *connect),
        };
        let client = Client::connect(&connect.clone().named("baton-up")).await?;
        let mut fleet = Self {
            client,
            connect,
            http: None,
            own,
            instances: Vec::new(),
            stock: plan.agents.iter().map(|agent| agent.id.clone()).collect(),
            agents: Group::new(),
            gateway: Group::new(),
            services: Group::new(),
            spans: Vec::new(),
        };
        match fleet.begin(&settings, plan.agents, plan.sources).await {
            Ok(()) => Ok(fleet),
            Err(error) => {
                fleet.stop(|_| ()).await;
                Err(error)
            }
        }
    }

    async fn begin(&mut self, settings: &Settings, agents: Vec<Stock>, sources: Option<PathBuf>) -> anyhow::Result<()> {
        let traces = services::trace_config(settings)?;
        let (tell, mut bound) = oneshot::channel();
        let mut tell = Some(tell);
        let log = LogThread::start(&self.connect)?;
        for service in Service::ALL {
            let instance = Instance::new(service);
            let telemetry = services::telemetry(&instance, &traces)?;
            self.spans.push(telemetry.spans.clone());
            let is_gateway = service == Service::Gateway;
            let group = if is_gateway { &mut self.gateway } else { &mut self.services };
            let tell = if is_gateway { tell.take() } else { None };
            self.instances.push(instance.clone());
            let (connect, log) = (self.connect.clone(), Some(log.clone()));
            group.run(service.to_string(), |shutdown| {
                services::run(instance, connect, settings.clone(), telemetry, log, shutdown, tell)
            });
        }
        // Elsewhere, other instances may lead.
        let must_lead = self.own.is_some();
        let ready = services_ready(&self.instances, must_lead, &mut bound);
        let failure = failed(&mut self.services, &mut self.gateway, &mut self.agents, self.own.as_mut());
        self.http = Some(in_time("the services", ready, failure).await?);

        // Not before there is somebody whom they can greet.
        if !agents.is_empty() {
            let spans = Spans::start("agents", "stock", &traces)?;
            self.spans.push(spans.clone());
            for agent in agents {
                let connect = self.connect.clone().named(format!("baton-agent-{}", agent.id));
                let (sources, spans) = (sources.clone(), spans.clone());
                self.agents
                    .run(agent.id.to_string(), |shutdown| start_stock_agent(agent, connect, sources, spans, shutdown));
            }
        }
        let client = self.client.clone().with_deadline(START);
        let ready = agents_ready(&self.stock, &client);
        let failure = failed(&mut self.services, &mut self.gateway, &mut self.agents, self.own.as_mut());
        in_time("the agents", ready, failure).await
    }

    /// Waits until something that should run does not any more.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        failed(&mut self.services, &mut self.gateway, &mut self.agents, self.own.as_mut()).await
    }

    /// Stops everything in order: who asks before who answers, and the broker last. Tells of each step.
    pub(crate) async fn stop(mut self, mut tell: impl FnMut(Step)) {
        // Without its broker nothing can be said any more.
        let is_cut_off = self.own.as_ref().is_some_and(|own| own.broker.pid().is_none());
        let grace = if is_cut_off { CUT_OFF } else { DRAIN };
        let mut tell = |step| if is_cut_off { tracing::debug!(%step) } else { tell(step) };
        if !self.agents.parts.is_empty() {
            self.agents.drain(grace).await;
            tell(Step::Agents);
        }
        self.gateway.drain(grace).await;
        tell(Step::Gateway);
        self.services.drain(grace).await;
        tell(Step::Services);
        join_all(self.spans.iter().map(Spans::shutdown)).await;
        drop(self.client);
        if let Some(mut own) = self.own.filter(|_| !is_cut_off) {
            match own.broker.stop().await {
                Ok(_) => tell(Step::Broker),
                Err(error) => tracing::warn!(%error, "stopping the broker"),
            }
        }
    }
}

/// Something that has been stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Agents,
    Gateway,
    Services,
    Broker,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agents => "the agents have left",
            Self::Gateway => "the gateway is closed",
            Self::Services => "the services are drained",
            Self::Broker => "the broker is stopped",
        })
    }
}

impl Group {
    fn new() -> Self {
        Self { shutdown: CancellationToken::new(), parts: JoinSet::new() }
    }

    fn run<F>(&mut self, name: String, start: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let part = start(self.shutdown.clone());
        self.parts.spawn(async move { (name, part.await) });
    }

    /// Waits until a part ends that should not; for ever, if there is none.
    async fn ended(&mut self) -> anyhow::Error {
        match self.parts.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("the {name} ended by itself"),
            Some(Ok((name, Err(error)))) => error.context(format!("the {name} failed")),
            Some(Err(error)) => anyhow::Error::from(error).context("a part of Baton died"),
            None => pending().await,
        }
    }

    async fn drain(&mut self, grace: Duration) {
        self.shutdown.cancel();
        let all = async {
            while let Some(ended) = self.parts.join_next().await {
                match ended {
                    Ok((_, Ok(()))) => {}
                    Ok((name, Err(error))) => tracing::warn!(name, error = format!("{error:#}"), "while draining"),
                    Err(error) => tracing::warn!(%error, "while draining"),
                }
            }
        };
        if timeout(grace, all).await.is_err() {
            match grace {
                CUT_OFF => tracing::debug!("not drained: the broker is gone"),
                _ => tracing::warn!(after_ms = grace.as_millis(), "not drained in time: dropped"),
            }
        }
        self.parts.shutdown().await;
    }
}

/// Waits until something ends that should not. An agent that ends, perhaps because another process has taken its name,
/// is no reason to stop the others.
async fn failed(
    services: &mut Group,
    gateway: &mut Group,
    agents: &mut Group,
    own: Option<&mut OwnBroker>,
) -> anyhow::Error {
    let broker = async {
        match own {
            Some(own) => match own.broker.exited().await {
                Ok(status) => anyhow::Error::from(
                    Failure::new(Exit::Unavailable, format!("nats-server ended by itself ({status})"))
                        .hint(format!("its log is {}", own.broker.log_path().display())),
                ),
                Err(error) => error.into(),
            },
            None => pending().await,
        }
    };
    let agents = async {
        loop {
            let error = agents.ended().await;
            tracing::warn!(error = format!("{error:#}"), "an agent is gone");
        }
    };
    tokio::select! {
        error = broker => error,
        error = services.ended() => error,
        error = gateway.ended() => error,
        never = agents => never,
    }
}

/// Waits until parts are ready, unless one fails or it takes too long.
async fn in_time<T>(
    parts: &str,
    ready: impl Future<Output = anyhow::Result<T>>,
    failed: impl Future<Output = anyhow::Error>,
) -> anyhow::Result<T> {
    tokio::select! {
        ready = ready => ready,
        error = failed => Err(error),
        () = sleep(START) => {
            let message = format!("{parts} were not ready after {} s", START.as_secs());
            Err(Failure::new(Exit::Unavailable, message).hint("-v shows what happens").into())
        }
    }
}

/// Waits until the services lead (or follow one that leads elsewhere) and the gateway listens; gives its address.
async fn services_ready(
    instances: &[Instance],
    must_lead: bool,
    bound: &mut oneshot::Receiver<SocketAddr>,
) -> anyhow::Result<SocketAddr> {
    let is_ready = |instance: &Instance| match instance.status().role {
        Role::Leading | Role::Serving => true,
        Role::Following => !must_lead,
        Role::Loading => false,
    };
    while !instances.iter().all(is_ready) {
        sleep(POLL).await;
    }
    match bound.await {
        Ok(http) => Ok(http),
        // It ended without telling: its error says more.
        Err(_) => pending().await,
    }
}

/// Waits until agents are registered.
async fn agents_ready(stock: &[AgentId], client: &Client) -> anyhow::Result<()> {
    let mut missing: BTreeSet<_> = stock.iter().collect();
    while !missing.is_empty() {
        let list = client.list_agents(&ListAgents::default()).await?.agents;
        for agent in list.iter().filter(|agent| agent.status != AgentStatus::Gone) {
            missing.remove(&agent.agent);
        }
        if !missing.is_empty() {
            sleep(POLL).await;
        }
    }
    Ok(())
}

async fn start_broker(
    data: &Path,
    durability: Durability,
    offline: bool,
    usual_port: bool,
) -> anyhow::Result<OwnBroker> {
    let found = Finder::from_env().offline(offline).find().await?;
    prepare(data).with_context(|| format!("the data directory {} can not be made", data.display()))?;
    let port = if usual_port { USUAL_PORT } else { 0 };
    let folder = data.join("nats");
    let options = Options { durability, port, ..Options::default() };
    let mut started = Broker::start(&found.path, &folder, options.clone()).await;
    if let Err(BrokerError::PortInUse { .. }) = started {
        started = Broker::start(&found.path, &folder, Options { port: 0, ..options }).await;
    }
    match started {
        Ok(broker) => Ok(OwnBroker { found, broker }),
        Err(BrokerError::InUse { pid, .. }) => {
            let owner = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
            let message = format!("Baton already runs on {}: {owner}", data.display());
            Err(Failure::new(Exit::Running, message).hint("use that one, stop it, or give another --data").into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Makes the data directory, and keeps it out of Git.
fn prepare(data: &Path) -> std::io::Result<()> {
    if !data.is_dir() {
        std::fs::create_dir_all(data)?;
        std::fs::write(data.join(".gitignore"), "*\n")?;
    }
    Ok(())
}

/// Says at once, and clearly, that somebody else listens where the gateway should.
async fn check_http(address: &str) -> Result<(), Failure> {
    match tokio::net::TcpListener::bind(address).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let message = format!("the address {address} of the HTTP API is already in use by another program");
            Err(Failure::new(Exit::Failed, message).hint("choose another: --http 127.0.0.1:0 takes any free port"))
        }
        Err(error) => {
            let message = format!("the HTTP API can not listen at {address}: {error}");
            Err(Failure::usage(message).hint("an address looks like 127.0.0.1:8080"))
        }
    }
}

/// Ctrl-C, SIGTERM, and the end of the terminal (the broker is in a process group of its own and would stay), unless whoever
/// started this wants it to outlive the terminal: under `nohup`.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Option<Signal>,
}

impl Signals {
    pub(crate) fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: if outlives_terminal() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = async {
                match &mut self.hang_up {
                    Some(hang_up) => {
                        hang_up.recv().await;
                    }
                    None => std::future::pending().await,
                }
            } => {}
        }
    }
}

/// Whether this process was started with SIGHUP ignored. Only Linux says so.
fn outlives_terminal() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hang_up(&status))
}

/// Reads the mask of ignored signals in what `/proc/PID/status` says. SIGHUP is signal 1, the lowest bit.
fn ignores_hang_up(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// How long something took that began then.
pub(crate) fn since(begin: Instant) -> u128 {
    begin.elapsed().as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_respected() {
        let status = |mask: &str| format!("Name:\tbaton\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\nSigCgt:\t0\n");
        assert!(ignores_hang_up(&status("0000000000001001")));
        assert!(!ignores_hang_up(&status("0000000000001000")) && !ignores_hang_up("Name:\tbaton\n"));
    }
}
