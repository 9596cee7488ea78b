//! The processes: broker, services, agents, the collector of traces.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use baton_broker::{Broker, Finder, Options};
use baton_client::{Client, ConnectSettings};
use baton_protocol::Service;
use baton_protocol::request::{AgentStatus, InstanceStatus, ListAgents, Role};
use baton_protocol::subject::{self, Shard};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::sleep;

use crate::agents::{SUBJECT, Seen};
use crate::floor::{self, Form};
use crate::leases;
use crate::load::{self, Load};
use crate::measurement::{Latency, Measurement, Shares};
use crate::messages;
use crate::plan::{Plan, Processes, Setup, Work};
use crate::usage::{self, Usage};

/// How long everything may take to get ready.
const START: Duration = Duration::from_secs(120);
/// The size of a message between agents.
const MESSAGE_BYTES: usize = 128;
const POLL: Duration = Duration::from_millis(20);

/// All that runs while something is measured.
pub(crate) struct World {
    client: Client,
    server: String,
    broker: Option<Broker>,
    services: Vec<Child>,
    agents: Option<Child>,
    sink: Option<Child>,
    registered: Duration,
    _data: Option<tempfile::TempDir>,
}

/// What had been used and written at some moment.
struct Reading {
    broker: Usage,
    services: Usage,
    agents: Usage,
    load: Usage,
    bytes: u64,
    messages: u64,
    records: u64,
}

impl World {
    /// Starts everything that the plan needs.
    pub(crate) async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let mut world = Self::open(&plan.setup).await?;
        if plan.work == Work::Floor {
            return Ok(world);
        }
        world.start_services(&plan.setup, &[]).await?;
        load::register(&world.client, plan.types()).await?;
        if plan.live > 0 {
            load::fill(&world.client, plan.live).await?;
        }
        if !matches!(plan.work, Work::Submit | Work::Messages) {
            world.start_agents(plan).await?;
        }
        Ok(world)
    }

    /// Starts the broker alone.
    pub(crate) async fn open(setup: &Setup) -> anyhow::Result<Self> {
        let (broker, server, data) = match &setup.server {
            Some(server) => (None, server.clone(), None),
            None => {
                let found = Finder::from_env().offline(setup.offline).find().await?;
                let temporary = if setup.data.is_none() { Some(tempfile::tempdir()?) } else { None };
                let folder = temporary.as_ref().map(tempfile::TempDir::path).or(setup.data.as_deref());
                let folder = folder.context("no place for the broker's data")?.join("nats");
                let options = Options { durability: setup.durability, ..Options::default() };
                let broker = Broker::start(&found.path, folder, options).await?;
                let server = broker.client_url();
                (Some(broker), server, temporary)
            }
        };
        let client = Client::connect(&ConnectSettings::alone(server.clone()).named("baton-bench")).await?;
        let client = client.with_deadline(START);
        Ok(Self {
            client,
            server,
            broker,
            services: Vec::new(),
            agents: None,
            sink: None,
            registered: Duration::ZERO,
            _data: data,
        })
    }

    /// Starts the services, unless they run already, with these settings besides those that any measurement needs.
    pub(crate) async fn start_services(&mut self, setup: &Setup, besides: &[(&str, &str)]) -> anyhow::Result<()> {
        if setup.server.is_some() {
            return Ok(());
        }
        let traces = if setup.sample > 0.0 {
            let mut sink = spawn(&setup.program, &["bench-sink"], Stdio::piped())?;
            let output = sink.stdout.take().context("the collector says nothing")?;
            let address = BufReader::new(output).lines().next_line().await?.context("the collector did not start")?;
            self.sink = Some(sink);
            Some(address)
        } else {
            None
        };
        let sample = setup.sample.to_string();
        let mut settings = vec![
            ("BATON_HTTP__LISTEN", "127.0.0.1:0"),
            ("BATON_WORKFLOWS__MAX_LIVE_RUNS", "1000000000"),
            // However many tasks wait, none is refused: that is what is measured.
            ("BATON_PRESSURE__ELEVATED__QUEUE", "0"),
            ("BATON_PRESSURE__ELEVATED__PER_SLOT", "0"),
            ("BATON_PRESSURE__CRITICAL__QUEUE", "0"),
            ("BATON_TELEMETRY__LOG_FILTER", "warn"),
            ("BATON_TELEMETRY__SAMPLE_RATIO", &sample),
        ];
        if let Some(address) = &traces {
            settings.push(("BATON_TELEMETRY__OTLP_ENDPOINT", address));
        }
        settings.extend(besides);
        let commands: Vec<Vec<&str>> = match setup.processes {
            Processes::One => vec![vec!["up", "--nats", &self.server, "--no-agents"]],
            Processes::Many => {
                Service::ALL.iter().map(|service| vec!["service", service.as_str(), "--server", &self.server]).collect()
            }
        };
        for arguments in commands {
            let mut command = command(&setup.program, &arguments, Stdio::null());
            command.envs(settings.iter().copied());
            self.services.push(command.spawn().context("starting a service")?);
        }
        Ok(())
    }

    async fn start_agents(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let (agents, slots, types) = (plan.agents.to_string(), plan.slots().to_string(), plan.types().join(","));
        let begin = Instant::now();
        let arguments =
            ["bench-agents", "--server", &self.server, "--agents", &agents, "--slots", &slots, "--types", &types];
        self.agents = Some(spawn(&plan.setup.program, &arguments, Stdio::null())?);
        self.wait_for_agents(plan.agents).await?;
        self.registered = begin.elapsed();
        Ok(())
    }

    /// Waits until so many agents have registered.
    pub(crate) async fn wait_for_agents(&self, agents: usize) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let request = ListAgents::default();
            let list = self.client.list_agents(&request).await?.agents;
            let here = list.iter().filter(|agent| agent.status != AgentStatus::Gone).count();
            if here >= agents {
                return Ok(());
            }
            if begin.elapsed() > START {
                bail!("only {here} of {agents} agents have registered");
            }
            // The list of many agents is long: looking costs something, too.
            sleep(POLL.max(begin.elapsed() / 10)).await;
        }
    }

    /// Whom everything is asked through.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The broker.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Measures what the plan says.
    pub(crate) async fn measure(&self, plan: &Plan) -> anyhow::Result<Vec<Measurement>> {
        let mut all = Vec::new();
        if plan.work == Work::Messages {
            for guaranteed in [true, false] {
                all.push(self.measure_messages(plan, guaranteed).await?);
            }
            return Ok(all);
        }
        if plan.work == Work::Leases {
            return self.measure_leases(plan).await;
        }
        if plan.work != Work::Floor {
            all.push(self.measure_baton(plan).await?);
        }
        if plan.floor || plan.work == Work::Floor {
            for form in Form::ALL {
                let floor = self.measure_floor(plan, form).await?;
                if let Some(baton) = all.first_mut().filter(|_| form == Form::Each && plan.work == Work::Article) {
                    baton.of_floor = Some(baton.workflows_per_s / floor.workflows_per_s);
                }
                all.push(floor);
            }
        }
        Ok(all)
    }

    async fn measure_baton(&self, plan: &Plan) -> anyhow::Result<Measurement> {
        let load = if plan.work == Work::Agents { None } else { Some(Load::start(&self.client, plan).await?) };
        sleep(plan.warm_up).await;
        self.ask_agents(plan).await?;
        let before = self.read().await?;
        let (counted, took) = match &load {
            Some(load) => {
                let (counted, took) = load.count(plan.seconds).await;
                (Some(counted), took)
            }
            None => {
                let begin = Instant::now();
                sleep(plan.seconds).await;
                (None, begin.elapsed())
            }
        };
        let after = self.read().await?;
        let seen = self.ask_agents(plan).await?;
        if let Some(load) = load {
            load.stop().await;
        }
        let seconds = took.as_secs_f64();
        let mut measurement = self.frame(plan, "baton", seconds);
        let count = counted.as_ref().map_or(0, |counted| counted.count);
        if let Some(counted) = &counted {
            measurement.latency = Latency::of(&counted.latency);
            measurement.errors = counted.errors;
        }
        measurement.count(count, plan.work.stages());
        measurement.coordination = seen.filter(|seen| seen.tasks > 0).map(|seen| seen.coordination);
        measurement.use_between(&before, &after, count * plan.work.stages());
        measurement.registered_ms = (plan.work == Work::Agents).then_some(self.registered.as_secs_f64() * 1000.0);
        Ok(measurement)
    }

    async fn measure_floor(&self, plan: &Plan, form: Form) -> anyhow::Result<Measurement> {
        let connect = async |name: &str| {
            let settings = ConnectSettings::alone(self.server.clone()).named(name);
            Ok(Client::connect(&settings).await?.nats().clone())
        };
        let before = self.read_usage();
        let begin = Instant::now();
        let measured = floor::measure(connect, form, plan.inflight, plan.warm_up, plan.seconds).await?;
        let all = begin.elapsed();
        let after = self.read_usage();
        let mut measurement = self.frame(plan, "jetstream", measured.took.as_secs_f64());
        measurement.form = Some(form.as_str().to_owned());
        measurement.work = Work::Floor.to_string();
        measurement.agents = 0;
        measurement.latency = Latency::of(&measured.latency);
        measurement.count(measured.articles, Work::Floor.stages());
        // Of processors all of it is counted, warming up included: that is the same work.
        let stages = measured.articles as f64 * all.as_secs_f64() / measured.took.as_secs_f64() * 4.0;
        measurement.use_between(&before, &after, stages as u64);
        let stages = (measured.articles * Work::Floor.stages()).max(1) as f64;
        measurement.cores = Shares {
            broker: (after.broker.cpu - before.broker.cpu).as_secs_f64() / all.as_secs_f64(),
            load: (after.load.cpu - before.load.cpu).as_secs_f64() / all.as_secs_f64(),
            ..Shares::default()
        };
        measurement.log_bytes_per_stage = measured.bytes as f64 / stages;
        measurement.log_records_per_stage = 3.0;
        measurement.log_records_per_commit = 3.0 * stages / measured.messages.max(1) as f64;
        Ok(measurement)
    }

    async fn measure_messages(&self, plan: &Plan, guaranteed: bool) -> anyhow::Result<Measurement> {
        let work = messages::Work {
            guaranteed,
            rate: plan.rate.map(|rate| rate as u32),
            seconds: plan.seconds.as_secs().max(1),
            bytes: MESSAGE_BYTES,
            server: self.server.clone(),
            name: uuid::Uuid::now_v7().simple().to_string(),
        };
        let js = async_nats::jetstream::new(self.client.nats().clone());
        let begin = Instant::now();
        while js.get_stream(subject::MESSAGES_STREAM).await.is_err() {
            if begin.elapsed() > START {
                bail!("no service has made the stream of messages");
            }
            sleep(POLL).await;
        }
        let (before, children, begin) = (self.read_usage(), usage::of_ended(), Instant::now());
        let figures = messages::measure(&plan.setup.program, &work).await?;
        let took = begin.elapsed();
        let mut measurement = self.frame(plan, "baton", took.as_secs_f64());
        measurement.form = Some(if guaranteed { "guaranteed" } else { "fire-and-forget" }.to_owned());
        measurement.agents = 2;
        measurement.inflight = 0;
        measurement.messages_per_s = Some(figures.per_second);
        measurement.latency = figures.latency;
        measurement.errors = figures.sent.saturating_sub(figures.handled);
        measurement.use_between(&before, &self.read_usage(), 0);
        measurement.cores.agents = (usage::of_ended().cpu - children.cpu).as_secs_f64() / took.as_secs_f64();
        measurement.seconds = plan.seconds.as_secs_f64();
        Ok(measurement)
    }

    /// Leases, and bare requests on the same broker.
    async fn measure_leases(&self, plan: &Plan) -> anyhow::Result<Vec<Measurement>> {
        let before = self.read().await?;
        let begin = Instant::now();
        let counted = leases::measure(&self.client, plan).await?;
        let (after, all) = (self.read().await?, begin.elapsed());
        let mut measurement = self.frame(plan, "baton", all.as_secs_f64());
        // What is used is of all the time, warming up included.
        measurement.use_between(&before, &after, 0);
        measurement.count_requests(&counted);
        let connect = async |name: &str| {
            let settings = ConnectSettings::alone(self.server.clone()).named(name);
            Ok(Client::connect(&settings).await?.nats().clone())
        };
        let begin = Instant::now();
        let (before, counted) = (self.read_usage(), leases::measure_bare(connect, plan).await?);
        let mut bare = self.frame(plan, "nats", begin.elapsed().as_secs_f64());
        bare.use_between(&before, &self.read_usage(), 0);
        bare.work = "requests".to_owned();
        bare.count_requests(&counted);
        measurement.of_floor = measurement.operations_per_s.zip(bare.operations_per_s).map(|(ours, bare)| ours / bare);
        measurement.p99_of_floor = Some(measurement.latency.p99_ms / bare.latency.p99_ms.max(0.001));
        Ok(vec![measurement, bare])
    }

    fn frame(&self, plan: &Plan, system: &str, seconds: f64) -> Measurement {
        Measurement {
            system: system.to_owned(),
            version: if system == "baton" {
                env!("CARGO_PKG_VERSION").to_owned()
            } else {
                self.client.nats().server_info().version
            },
            work: plan.work.to_string(),
            inflight: plan.inflight,
            rate: plan.rate,
            durability: plan.setup.durability().to_owned(),
            processes: plan.setup.processes.as_str().to_owned(),
            agents: if plan.work == Work::Submit { 0 } else { plan.agents },
            live: plan.live,
            sample: plan.setup.sample,
            seconds,
            ..Measurement::default()
        }
    }

    /// Asks the agents what they have seen since they were asked last.
    async fn ask_agents(&self, _: &Plan) -> anyhow::Result<Option<Seen>> {
        if self.agents.is_none() {
            return Ok(None);
        }
        let answer = self.client.nats().request(SUBJECT, bytes::Bytes::new()).await.context("asking the agents")?;
        Ok(Some(serde_json::from_slice(&answer.payload)?))
    }

    fn read_usage(&self) -> Reading {
        let pids = |children: &[Child]| children.iter().filter_map(Child::id).collect::<Vec<_>>();
        Reading {
            broker: usage::of(&self.broker.iter().filter_map(Broker::pid).collect::<Vec<_>>()),
            services: usage::of(&pids(&self.services)),
            agents: usage::of(&self.agents.iter().chain(&self.sink).filter_map(Child::id).collect::<Vec<_>>()),
            load: usage::of(&[std::process::id()]),
            bytes: 0,
            messages: 0,
            records: 0,
        }
    }

    async fn read(&self) -> anyhow::Result<Reading> {
        let js = async_nats::jetstream::new(self.client.nats().clone());
        let log = js.get_stream(subject::log_stream(Shard::default())).await.context("looking at the log")?;
        let state = &log.cached_info().state;
        let mut records = 0;
        for service in Service::WRITERS {
            let question = self.client.nats().request(subject::status(service), bytes::Bytes::new());
            let answer = question.await.with_context(|| format!("asking the {service} how it stands"))?;
            let status: InstanceStatus = serde_json::from_slice(&answer.payload)?;
            if status.role != Role::Leading {
                tracing::warn!(%service, role = status.role.as_str(), "it does not lead: its records are not counted");
            }
            records += status.number;
        }
        Ok(Reading { bytes: state.bytes, messages: state.messages, records, ..self.read_usage() })
    }

    /// Stops everything, the broker last.
    pub(crate) async fn stop(mut self) {
        // Their standard input ends with the value.
        for mut child in self.agents.take().into_iter().chain(self.services.drain(..)).chain(self.sink.take()) {
            let _ = child.kill().await;
        }
        if let Some(mut broker) = self.broker.take()
            && let Err(error) = broker.stop().await
        {
            tracing::warn!(%error, "stopping the broker");
        }
    }
}

impl Measurement {
    fn count_requests(&mut self, counted: &leases::Counted) {
        self.seconds = counted.took.as_secs_f64();
        self.operations_per_s = Some(counted.operations as f64 / self.seconds);
        self.latency = Latency::of(&counted.latency);
        self.errors = counted.errors;
    }

    fn count(&mut self, count: u64, stages: u64) {
        self.workflows_per_s = count as f64 / self.seconds;
        self.stages_per_s = self.workflows_per_s * stages as f64;
    }

    fn use_between(&mut self, before: &Reading, after: &Reading, stages: u64) {
        let cores = |after: Usage, before: Usage| after.cpu.saturating_sub(before.cpu).as_secs_f64() / self.seconds;
        self.cores = Shares {
            broker: cores(after.broker, before.broker),
            services: cores(after.services, before.services),
            agents: cores(after.agents, before.agents),
            load: cores(after.load, before.load),
        };
        let mb = |usage: Usage| usage.memory as f64 / 1e6;
        self.memory_mb = Shares {
            broker: mb(after.broker),
            services: mb(after.services),
            agents: mb(after.agents),
            load: mb(after.load),
        };
        if stages > 0 {
            let each = |grown: u64| grown as f64 / stages as f64;
            let cpu =
                |reading: &Reading| reading.broker.cpu + reading.services.cpu + reading.agents.cpu + reading.load.cpu;
            self.cpu_us_per_stage = (cpu(after).saturating_sub(cpu(before))).as_secs_f64() * 1e6 / stages as f64;
            self.log_bytes_per_stage = each(after.bytes - before.bytes);
            self.log_records_per_stage = each(after.records - before.records);
            let commits = (after.messages - before.messages).max(1);
            self.log_records_per_commit = (after.records - before.records) as f64 / commits as f64;
        }
    }
}

fn command(program: &Path, arguments: &[&str], output: Stdio) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(output).kill_on_drop(true);
    // A settings file in the working directory is none of a measurement's.
    command.current_dir(std::env::temp_dir());
    // Surroundings that name another broker, or settings of the user's own, are none of a measurement's.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BATON_") || name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command
}

fn spawn(program: &Path, arguments: &[&str], output: Stdio) -> anyhow::Result<Child> {
    command(program, arguments, output).spawn().with_context(|| format!("starting {}", arguments[0]))
}
