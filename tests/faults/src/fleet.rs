//! A broker, two instances of each service, and agents: each a process that can be killed, paused and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use baton_client::{Client, ConnectSettings};
use baton_protocol::Service;
use baton_protocol::record::AnyCommit;
use baton_protocol::request::{AgentStatus, InstanceStatus, ListAgents, Role};
use baton_protocol::subject::{self, Shard};
use baton_testkit::{NatsOptions, Process, ProcessBuilder, Proxy, baton_binary};
use tokio::time::{Instant, sleep};

use crate::broker::Broker;

/// How long anything may take to be in order again.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// After this long without a heartbeat an agent is lost.
pub const LEASE: Duration = Duration::from_millis(2000);

/// After this long without a word a leader is replaced.
pub const LEADER_TTL: Duration = Duration::from_millis(1500);

/// The broker's name among the processes.
pub const BROKER: &str = "nats-server";

/// How many instances each service has.
pub const INSTANCES: usize = 2;

/// How a fleet is started.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// Whether the broker is a cluster of three servers, to which everything connects directly.
    pub cluster: bool,
    /// How many agents there are.
    pub agents: usize,
    /// How many tasks each does at a time.
    pub slots: u32,
    /// How long tasks take, in milliseconds: from, to.
    pub task_ms: (u64, u64),
    /// The binary that has the command `agent`: the runner's own.
    pub runner: PathBuf,
    /// The most that the broker stores, in bytes.
    pub max_file_store: u64,
    /// Further settings of the services, as variables.
    pub environment: Vec<(String, String)>,
    /// Decides how long the agents' tasks take.
    pub seed: u64,
}

/// Where the gateways are now.
pub type Gateways = Arc<Mutex<BTreeMap<String, String>>>;

/// The processes.
pub struct Fleet {
    /// The broker.
    pub nats: Broker,
    /// Asks the services; repeats a question for as long as [`PATIENCE`].
    pub client: Client,
    /// Where the gateways are.
    pub gateways: Gateways,
    options: FleetOptions,
    folder: PathBuf,
    processes: BTreeMap<String, Process>,
    /// Each service's process has its own way to the broker.
    links: BTreeMap<String, Proxy>,
    /// Processes of agents that were replaced by a second one, and have to stop.
    replaced: Vec<(String, Process)>,
    /// Those that are down because somebody wants them to be.
    down: BTreeSet<String>,
    /// Services that ended though nobody had asked them to.
    ended: Vec<String>,
}

impl Fleet {
    /// Starts everything, and waits until it is in order.
    pub async fn start(options: FleetOptions, folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder.join("logs"))?;
        fs::create_dir_all(folder.join("home"))?;
        let max_file_store = Some(options.max_file_store);
        let nats = Broker::start(options.cluster, NatsOptions { max_file_store, ..NatsOptions::default() }).await;
        let settings = ConnectSettings::server(nats.urls()).named("baton-faults");
        let client = Client::connect(&settings).await?.with_deadline(PATIENCE);
        let mut fleet = Self {
            nats,
            client,
            gateways: Gateways::default(),
            options,
            folder: folder.to_owned(),
            processes: BTreeMap::new(),
            links: BTreeMap::new(),
            replaced: Vec::new(),
            down: BTreeSet::new(),
            ended: Vec::new(),
        };
        if let Broker::One(server) = &fleet.nats {
            let broker = (std::net::Ipv4Addr::LOCALHOST, server.port());
            for name in fleet.service_names() {
                fleet.links.insert(name, Proxy::start(broker.into()).await);
            }
        }
        for name in fleet.service_names().into_iter().chain(fleet.agent_names()) {
            fleet.launch(&name).await?;
        }
        if let Err(error) = fleet.whole().await {
            bail!("{error:#}\n{}", fleet.log_tails());
        }
        Ok(fleet)
    }

    /// Where files are kept.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names of the services' processes.
    #[must_use]
    pub fn service_names(&self) -> Vec<String> {
        Service::ALL.into_iter().flat_map(instances).collect()
    }

    /// The names of the agents, which are their ids.
    #[must_use]
    pub fn agent_names(&self) -> Vec<String> {
        (1..=self.options.agents).map(|number| format!("agent-{number:02}")).collect()
    }

    /// Starts a process by its name.
    pub async fn launch(&mut self, name: &str) -> anyhow::Result<()> {
        self.down.remove(name);
        let process = match service_of(name) {
            Some(service) => self.service(name, service),
            None => self.agent(name),
        };
        self.processes.insert(name.to_owned(), process.start());
        if service_of(name) == Some(Service::Gateway) {
            let process = self.processes.get_mut(name).context("the gateway was just started")?;
            let address = address(process).await?;
            self.gateways.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), address);
        }
        Ok(())
    }

    fn service(&self, name: &str, service: Service) -> ProcessBuilder {
        let server = self.links.get(name).map_or_else(|| self.nats.urls(), Proxy::url);
        let replicas = if self.options.cluster { "3" } else { "1" };
        let ms = |duration: Duration| duration.as_millis().to_string();
        let settings = [
            ("BATON_AGENTS__LEASE_MS", ms(LEASE)),
            ("BATON_AGENTS__HEARTBEAT_MS", "300".to_owned()),
            ("BATON_LEADER__TTL_MS", ms(LEADER_TTL)),
            // Agents fail here because tasks tell them to. Three that were told to often enough would be given nothing for half a
            // minute, and the fourth may be the one that is killed.
            ("BATON_BREAKERS__ENABLED", "false".to_owned()),
            // Often, so that services start from snapshots and not from the log's beginning.
            ("BATON_LOG__SNAPSHOT_RECORDS", "2000".to_owned()),
            ("BATON_HTTP__LISTEN", "127.0.0.1:0".to_owned()),
            ("BATON_LOG__REPLICAS", replicas.to_owned()),
        ];
        Process::command(baton_binary())
            .args(["service", service.as_str(), "--server", &server])
            .envs(settings)
            .envs(self.options.environment.iter().map(|(name, value)| (name, value)))
            .env("HOME", self.folder.join("home"))
            .env_remove("NATS_URL")
            .env_remove("NATS_CONTEXT")
            .current_dir(self.folder.join("home"))
    }

    fn agent(&self, id: &str) -> ProcessBuilder {
        let (from, to) = self.options.task_ms;
        let number: u64 = id.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or_default();
        Process::command(&self.options.runner)
            .args(["agent", "--id", id, "--server", &self.nats.urls()])
            .args(["--slots", &self.options.slots.to_string()])
            .args(["--from-ms", &from.to_string(), "--to-ms", &to.to_string()])
            .args(["--seed", &self.options.seed.wrapping_add(number).to_string()])
            .arg("--notes")
            .arg(self.folder.join(format!("{id}.notes")))
            .env("HOME", self.folder.join("home"))
            .env_remove("NATS_URL")
            .env_remove("NATS_CONTEXT")
    }

    /// A running process.
    pub fn process(&mut self, name: &str) -> anyhow::Result<&mut Process> {
        self.processes.get_mut(name).with_context(|| format!("{name} is not running"))
    }

    /// SIGKILL. It stays down until it is started again.
    pub async fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let Some(mut process) = self.processes.remove(name) else { bail!("{name} is not running") };
        process.kill().await;
        self.down.insert(name.to_owned());
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.keep_log(name, &process);
        Ok(())
    }

    /// The way of a service's process to the broker.
    pub fn link(&self, name: &str) -> anyhow::Result<&Proxy> {
        self.links.get(name).with_context(|| format!("{name} has no link"))
    }

    /// Starts a second process of the same agent beside the one that runs, which it will replace.
    pub fn replace(&mut self, agent: &str) -> anyhow::Result<()> {
        let second = self.agent(agent).start();
        let first = self.processes.insert(agent.to_owned(), second);
        self.replaced.push((agent.to_owned(), first.with_context(|| format!("{agent} was not running"))?));
        Ok(())
    }

    /// Waits until the processes that were replaced have stopped, as they have to. False: some have not.
    pub async fn replaced_have_stopped(&mut self) -> bool {
        let end = Instant::now() + PATIENCE;
        for (agent, mut process) in std::mem::take(&mut self.replaced) {
            while process.is_running() {
                if Instant::now() > end {
                    self.keep_log(&agent, &process);
                    return false;
                }
                sleep(Duration::from_millis(20)).await;
            }
            self.keep_log(&agent, &process);
        }
        true
    }

    /// Keeps what a process wrote, after its end.
    pub fn keep_log(&self, name: &str, process: &Process) {
        let text = process.stdout() + &process.stderr();
        let path = self.folder.join("logs").join(format!("{name}.log"));
        // For people only.
        let file = File::options().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
    }

    /// Starts again what is down, whoever wanted it, and says which of the services had ended by themselves.
    pub async fn revive(&mut self) -> anyhow::Result<()> {
        let names: Vec<_> = self.processes.keys().cloned().collect();
        for name in names {
            let Some(process) = self.processes.get_mut(&name) else { continue };
            if process.is_running() {
                continue;
            }
            if let Some(process) = self.processes.remove(&name) {
                self.keep_log(&name, &process);
                // An agent that was replaced has to stop; a service never has.
                if service_of(&name).is_some() {
                    self.ended.push(format!("{name} ended by itself\n{}", process.log_tail()));
                }
                self.down.insert(name);
            }
        }
        for name in self.down.clone() {
            self.launch(&name).await?;
        }
        Ok(())
    }

    /// Services that ended though nobody had asked them to, each with the end of its log.
    #[must_use]
    pub fn ended(&self) -> &[String] {
        &self.ended
    }

    /// Starts again what is down, and waits until every instance answers, each service has one leader, and every agent is
    /// registered.
    pub async fn whole(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.revive().await?;
            let missing = self.missing().await;
            match missing {
                None => return Ok(()),
                Some(missing) if Instant::now() > end => bail!("not in order after {PATIENCE:?}: {missing}"),
                Some(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// What is not in order.
    async fn missing(&self) -> Option<String> {
        for service in Service::ALL {
            let statuses = self.statuses(service).await;
            let fit = |status: &&InstanceStatus| status.role != Role::Loading;
            let leads = |status: &&InstanceStatus| matches!(status.role, Role::Leading | Role::Serving);
            if statuses.iter().filter(fit).count() < INSTANCES || !statuses.iter().any(|status| leads(&status)) {
                return Some(format!("{service}: {statuses:?}"));
            }
        }
        let client = self.client.clone().with_deadline(Duration::from_secs(1));
        let list = match client.list_agents(&ListAgents::default()).await {
            Ok(list) => list,
            Err(error) => return Some(error.to_string()),
        };
        let here: BTreeSet<&str> = list
            .agents
            .iter()
            .filter(|agent| agent.status != AgentStatus::Gone)
            .map(|agent| agent.agent.as_str())
            .collect();
        self.agent_names()
            .into_iter()
            .find(|name| !here.contains(name.as_str()))
            .map(|name| format!("{name} is not here"))
    }

    /// How the instances of a service stand.
    pub async fn statuses(&self, service: Service) -> Vec<InstanceStatus> {
        self.client.statuses_of(service, INSTANCES).await.unwrap_or_default()
    }

    /// The process that leads a service, and the one that does not.
    pub async fn roles(&mut self, service: Service) -> anyhow::Result<(String, String)> {
        let end = Instant::now() + PATIENCE;
        loop {
            let statuses = self.statuses(service).await;
            let leading = statuses.iter().filter(|status| matches!(status.role, Role::Leading | Role::Serving));
            // One that was paused and has not noticed yet may believe that it leads: the newest term does.
            let leader = leading.max_by_key(|status| status.term).map(|status| status.instance.clone());
            if let Some(leader) = leader {
                // An instance's name begins with the number of its process.
                let pid = leader.split('-').next().and_then(|pid| pid.parse::<u32>().ok());
                let names = instances(service);
                let leads = |name: &&String| self.processes.get(*name).is_some_and(|process| process.pid() == pid);
                if let Some(name) = names.iter().find(leads) {
                    let other = names.iter().find(|other| *other != name).context("there are two instances")?;
                    return Ok((name.clone(), other.clone()));
                }
            }
            if Instant::now() > end {
                bail!("nobody leads the {service}: {statuses:?}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The agents that work on something.
    pub async fn busy_agents(&self) -> Vec<String> {
        let client = self.client.clone().with_deadline(Duration::from_secs(2));
        let agents = client.list_agents(&ListAgents::default()).await.map(|list| list.agents).unwrap_or_default();
        let busy = agents.into_iter().filter(|agent| agent.status == AgentStatus::Busy);
        busy.map(|agent| agent.agent.to_string()).filter(|agent| self.processes.contains_key(agent)).collect()
    }

    /// The resident memory, in bytes, and the open files of a process; none where the system does not tell.
    #[must_use]
    pub fn usage(&self, name: &str) -> Option<(u64, usize)> {
        let process = self.processes.get(name).and_then(Process::pid);
        let pid = if name == BROKER { self.nats.pid()? } else { process? };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some((kib * 1024, fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count()))
    }

    /// The ends of all logs, for people.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let services = self.processes.iter().filter(|(name, _)| service_of(name).is_some());
        let mut tails: Vec<_> = services.map(|(name, process)| format!("{name}: {}", process.log_tail())).collect();
        tails.push(format!("nats-server:\n{}", self.nats.log_tail(20)));
        tails.join("\n\n")
    }

    /// Keeps the logs of all that runs, and ends it.
    pub async fn stop(mut self) {
        for (name, mut process) in std::mem::take(&mut self.processes) {
            process.kill().await;
            self.keep_log(&name, &process);
        }
    }

    /// Keeps what the broker logged.
    pub fn keep_broker_log(&self) {
        let _ = fs::write(self.folder.join("logs/nats-server.log"), self.nats.log_tail(100_000));
    }
}

/// The term of a service's last commit.
pub async fn term(client: &Client, service: Service) -> anyhow::Result<u64> {
    let mut context = async_nats::jetstream::new(client.nats().clone());
    context.set_timeout(Duration::from_millis(500));
    let shard = Shard::default();
    let stream = context.get_stream_no_info(subject::log_stream(shard)).await?;
    let message = stream.get_last_raw_message_by_subject(&subject::log(shard, service)).await?;
    Ok(match AnyCommit::decode(service, &message.payload)? {
        AnyCommit::Workflow(commit) => commit.term,
        AnyCommit::Resource(commit) => commit.term,
        AnyCommit::Optimizer(commit) => commit.term,
    })
}

/// The names of a service's processes.
#[must_use]
pub fn instances(service: Service) -> Vec<String> {
    (1..=INSTANCES).map(|number| format!("{service}-{number}")).collect()
}

/// The service that a process is an instance of; none for an agent.
#[must_use]
pub fn service_of(name: &str) -> Option<Service> {
    name.rsplit_once('-').and_then(|(service, _)| service.parse().ok())
}

/// Where a gateway listens: it says so once it does.
async fn address(process: &mut Process) -> anyhow::Result<String> {
    const BEFORE: &str = "listening on ";
    process.wait_for_output(BEFORE, PATIENCE).await;
    let text = process.stdout() + &process.stderr();
    let (_, rest) = text.split_once(BEFORE).context("it was just seen")?;
    let (scheme, rest) = rest.split_once("://").context("an address has a scheme")?;
    let end = rest.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit()).unwrap_or(rest.len());
    Ok(format!("{scheme}://{}", &rest[..end]))
}
