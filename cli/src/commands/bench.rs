//! `baton bench`

mod dag;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use baton_bench::{AgentsPlan, Measurement, Plan, Processes, Setup, Work};
use baton_broker::Durability;
use clap::{Args, Subcommand, ValueEnum};

use crate::Context;
use crate::failure::{Exit, Failure};

/// Measures Baton on this machine: starts a broker, the services and agents that do nothing, runs something for a while, and
/// says how fast it was and what it took. docs/performance.md tells how to read it
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Bench {
    #[command(subcommand)]
    other: Option<Other>,
    /// What is done
    #[arg(value_enum, default_value_t = Name::Article)]
    work: Name,
    /// How many runs are under way at a time [default: 64; 8 for fanout]
    #[arg(long, value_name = "N")]
    inflight: Option<usize>,
    /// Start so many runs a second instead, whatever becomes of them
    #[arg(long, value_name = "R", conflicts_with = "inflight")]
    rate: Option<f64>,
    /// How long is measured
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    seconds: f64,
    /// How long is run before that
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    warm_up: f64,
    /// What an acknowledged write survives: `process` or `power`, as for `baton up`
    #[arg(long, value_name = "WHAT", default_value = "process")]
    durability: Durability,
    /// How many processes the services are: `one` for all, or `many`: one each
    #[arg(long, value_name = "HOW", default_value = "one")]
    processes: Processes,
    /// How many agents there are
    #[arg(long, value_name = "N", default_value_t = 4)]
    agents: usize,
    /// Let so many runs wait meanwhile that nobody works on
    #[arg(long, value_name = "N", default_value_t = 0)]
    live: usize,
    /// Which part of the traces is kept, from 0 to 1; a collector that takes and forgets them is started too
    #[arg(long, value_name = "PART", default_value_t = 0.01)]
    sample: f64,
    /// Measure the bare broker with the same hops as well
    #[arg(long)]
    floor: bool,
    /// Measure so many times, with a world of its own each
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: usize,
    /// Where the broker's data lies while it is measured [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Never fetch a nats-server
    #[arg(long)]
    offline: bool,
    /// Write each measurement as a line of JSON
    #[arg(long)]
    json: bool,
}

/// What is measured in another way.
#[derive(Debug, Subcommand)]
enum Other {
    Dag(dag::Dag),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Runs of four stages in a row
    Article,
    /// Runs of one stage, a hundred side by side, and one that joins them
    Fanout,
    /// Runs that are accepted, and that nobody works on
    Submit,
    /// Messages from one agent to another, guaranteed and fire-and-forget
    Messages,
    /// Agents that are registered and have nothing to do
    Agents,
    /// Pools that are acquired and released while agents send heartbeats, and bare requests beside that
    Leases,
    /// The bare broker with the hops of an article
    Floor,
}

impl From<Name> for Work {
    fn from(name: Name) -> Self {
        match name {
            Name::Article => Self::Article,
            Name::Fanout => Self::Fanout,
            Name::Submit => Self::Submit,
            Name::Messages => Self::Messages,
            Name::Agents => Self::Agents,
            Name::Leases => Self::Leases,
            Name::Floor => Self::Floor,
        }
    }
}

impl Bench {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        if let Some(Other::Dag(dag)) = self.other {
            return dag.run(context).await;
        }
        let plan = self.plan(context)?;
        let (out, json) = (context.out, self.json);
        let mut written = Ok(());
        let tell = |measurement: &Measurement| {
            let line = if json { out.json_line(measurement) } else { out.line(&measurement.describe()) };
            if written.is_ok() {
                written = line;
            }
        };
        let all = baton_bench::run(&plan, tell).await?;
        written?;
        Ok(if all.iter().any(|measurement| measurement.errors > 0) { Exit::Failed } else { Exit::Done })
    }

    fn plan(&self, context: &Context) -> Result<Plan, Failure> {
        let seconds = |name: &str, value: f64| {
            Duration::try_from_secs_f64(value)
                .map_err(|_| Failure::usage(format!("--{name} {value} is no length of time in seconds")))
        };
        let positive = |name: &str, value: usize| {
            if value > 0 { Ok(value) } else { Err(Failure::usage(format!("--{name} must be at least 1"))) }
        };
        if self.rate.is_some_and(|rate| !(rate > 0.0 && rate <= 1e6)) {
            return Err(Failure::usage("--rate must be more than 0 and at most 1000000"));
        }
        let usual = if self.work == Name::Fanout { 8 } else { 64 };
        Ok(Plan {
            work: self.work.into(),
            inflight: positive("inflight", self.inflight.unwrap_or(usual))?,
            rate: self.rate,
            seconds: seconds("seconds", self.seconds)?,
            warm_up: seconds("warm-up", self.warm_up)?,
            agents: positive("agents", self.agents)?,
            live: self.live,
            floor: self.floor,
            repeat: positive("repeat", self.repeat)?,
            setup: Setup {
                durability: self.durability,
                processes: self.processes,
                sample: share(self.sample)?,
                server: context.global.server.clone(),
                offline: self.offline,
                program: program()?,
                data: self.data.clone(),
            },
        })
    }
}

/// Which part of the traces is kept, if it is a part.
fn share(sample: f64) -> Result<f64, Failure> {
    let is_part = (0.0..=1.0).contains(&sample);
    if is_part { Ok(sample) } else { Err(Failure::usage(format!("--sample {sample} is not from 0 to 1"))) }
}

/// This program, which services are started with.
fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| Failure::usage(format!("this program: {error}")))
}

/// One of the two agents that `baton bench messages` lets talk
#[derive(Debug, Args)]
pub(crate) struct BenchMessages {
    role: String,
    work: String,
}

impl BenchMessages {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        baton_bench::run_messages(&self.role, &self.work).await?;
        Ok(Exit::Done)
    }
}

/// The process of agents that `baton bench` starts
#[derive(Debug, Args)]
pub(crate) struct BenchAgents {
    /// How many
    #[arg(long)]
    agents: usize,
    /// How many tasks each does at a time
    #[arg(long)]
    slots: u32,
    /// What they are called for
    #[arg(long, value_delimiter = ',', required = true)]
    types: Vec<String>,
}

impl BenchAgents {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let server = context.global.server.clone().context("no --server is given")?;
        let plan = AgentsPlan { server, agents: self.agents, slots: self.slots, types: self.types };
        baton_bench::run_agents(plan).await?;
        Ok(Exit::Done)
    }
}
