//! `baton bench dag`

use std::path::PathBuf;
use std::time::Duration;

use baton_bench::{DagMeans, DagMeasurement, DagPlan, Processes, Scale, Setup};
use baton_broker::Durability;
use baton_protocol::request::Strategy;
use baton_simulate::experiment;
use baton_simulate::who::Who;
use clap::Args;

use crate::Context;
use crate::commands::simulate::{FleetArgs, Seen, named, workflows};
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Table};
use crate::style::Tone;
use crate::watch;

/// So near the simulation a makespan should be: docs/simulate.md.
const NEAR: f64 = 0.05;
/// The most agents: each has a connection.
const MOST: usize = 500;

/// Runs workflow instances with agents that sleep, beside their simulation: the same fleet, luck and history as `baton simulate` has
/// it, all times scaled. A broker and services of its own for each. docs/simulate.md tells how to read it
#[derive(Debug, Args)]
pub(crate) struct Dag {
    /// Workflow instances in WfFormat 1.5 (.json): a file, or a directory of them [default: three workflows that are made up]
    #[arg(long, value_name = "FILE|DIR")]
    trace: Vec<PathBuf>,
    #[command(flatten)]
    fleet: FleetArgs,
    /// What the fleets are drawn from, a fleet of each size each
    #[arg(long, value_name = "S", value_delimiter = ',', default_values_t = [301])]
    seed: Vec<u64>,
    /// What the luck of attempts depends on, a run each
    #[arg(long, value_name = "S", value_delimiter = ',', default_values_t = [5])]
    luck: Vec<u64>,
    /// Which strategies of the optimizer, by name, or `all`
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "ADAPTIVE")]
    strategy: Vec<String>,
    /// What the optimizer has seen before, in simulations: `none`, `siblings`, `same`, or all is `known`
    #[arg(long, value_enum, value_name = "WHAT", default_value_t, hide_possible_values = true)]
    history: Seen,
    /// How long a task of an instance takes an agent of speed 1 on average, in milliseconds: all times are scaled so
    #[arg(long, value_name = "MS", default_value_t = 100.0, conflicts_with = "scale")]
    mean: f64,
    /// By how much tasks take longer than the instances say, instead
    #[arg(long, value_name = "X")]
    scale: Option<f64>,
    /// How long a task takes an agent of speed 1 at the least, so scaled, in milliseconds: messages take a few
    #[arg(long, value_name = "MS", default_value_t = 20.0, allow_negative_numbers = true)]
    least: f64,
    /// Run each so many times
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: usize,
    /// What an acknowledged write survives: `process` or `power`, as for `baton up`
    #[arg(long, value_name = "WHAT", default_value = "process")]
    durability: Durability,
    /// How many processes the services are: `one` for all, or `many`: one each
    #[arg(long, value_name = "HOW", default_value = "one")]
    processes: Processes,
    /// Which part of the traces is kept, from 0 to 1; a collector that takes and forgets them is started too
    #[arg(long, value_name = "PART", default_value_t = 0.01)]
    sample: f64,
    /// Never fetch a nats-server
    #[arg(long)]
    offline: bool,
    /// Write each run as a line of JSON, and then the means
    #[arg(long)]
    json: bool,
}

impl Dag {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let plan = self.plan(context)?;
        let (out, json) = (context.out, self.json);
        let mut written = Ok(());
        let tell = |measurement: &DagMeasurement| {
            if !json {
                watch::say(&measurement.describe());
            } else if written.is_ok() {
                written = out.json_line(measurement);
            }
        };
        let all = baton_bench::run_dags(&plan, tell).await?;
        written?;
        let means = baton_bench::dag_means(&all);
        if json {
            means.iter().try_for_each(|means| out.json_line(means))?;
        } else {
            out.table(&each(&all))?;
            out.text("\n")?;
            out.table(&table(&means))?;
        }
        Ok(Exit::Done)
    }

    fn plan(&self, context: &Context) -> anyhow::Result<DagPlan> {
        if context.global.server.is_some() {
            return Err(Failure::usage("baton bench dag starts brokers of its own: leave --server out").into());
        }
        let milliseconds = |name: &str, value: f64| {
            let length = Duration::try_from_secs_f64(value / 1000.0);
            length.map_err(|_| Failure::usage(format!("--{name} {value} is no length of time in milliseconds")))
        };
        let scale = match self.scale {
            Some(scale) if scale > 0.0 && scale.is_finite() => Scale::By(scale),
            Some(scale) => return Err(Failure::usage(format!("--scale {scale} is not more than 0")).into()),
            None => Scale::Mean(milliseconds("mean", self.mean)?),
        };
        let least = milliseconds("least", self.least)?;
        if self.repeat == 0 {
            return Err(Failure::usage("--repeat must be at least 1").into());
        }
        if let Some(agents) = self.fleet.agents.iter().find(|agents| **agents > MOST) {
            return Err(Failure::usage(format!("--agents {agents} is more than {MOST}")).into());
        }
        let experiment = experiment::Plan {
            fleets: self.fleet.draw(&self.seed)?,
            luck: self.luck.clone(),
            who: named(&self.strategy, &Strategy::ALL.map(Who::Strategy), |_| true)?,
            history: self.history.into(),
            graphs: workflows(&self.trace)?,
        };
        let setup = Setup {
            durability: self.durability,
            processes: self.processes,
            sample: super::share(self.sample)?,
            server: None,
            offline: self.offline,
            program: super::program()?,
            data: None,
        };
        Ok(DagPlan { experiment, scale, least, repeat: self.repeat, setup })
    }
}

fn ratio(value: f64) -> Cell {
    format!("{value:.3}").into()
}

fn seconds(value: f64) -> Cell {
    format!("{value:.2}").into()
}

fn milliseconds(value: f64) -> Cell {
    format!("{value:.1}").into()
}

/// A ratio to the simulation, by whether it is near.
fn compared(value: f64) -> Cell {
    let tone = if (value - 1.0).abs() <= NEAR { Tone::Good } else { Tone::Bad };
    Cell::toned(format!("{value:.3}"), tone)
}

/// Every run.
fn each(all: &[DagMeasurement]) -> Table {
    let mut table = Table::new([
        "workflow",
        ">tasks",
        ">agents",
        ">seed",
        "policy",
        ">scale",
        ">heft s",
        ">simulated s",
        ">baton s",
        ">simulated to heft",
        ">to heft",
        ">ratio",
        ">handed on ms",
        ">ratio late",
    ]);
    for it in all {
        table.row([
            it.instance.clone().into(),
            it.tasks.to_string().into(),
            it.agents.to_string().into(),
            it.fleet.to_string().into(),
            it.policy.clone().into(),
            format!("{:.2e}", it.scale).into(),
            seconds(it.heft),
            seconds(it.simulated),
            seconds(it.makespan),
            ratio(it.simulated_to_heft),
            ratio(it.to_heft),
            compared(it.ratio),
            milliseconds(it.handed_on.p50_ms + it.overslept.p50_ms),
            ratio(it.ratio_late),
        ]);
    }
    table
}

/// The geometric means.
fn table(means: &[DagMeans]) -> Table {
    let mut table = Table::new([
        ">agents",
        "policy",
        ">runs",
        ">simulated to heft",
        ">to heft",
        ">ratio",
        ">least",
        ">greatest",
        ">handed on ms",
        ">ratio late",
    ]);
    for it in means {
        table.row([
            it.agents.to_string().into(),
            it.policy.clone().into(),
            it.runs.to_string().into(),
            ratio(it.simulated_to_heft),
            ratio(it.to_heft),
            compared(it.ratio),
            ratio(it.ratios.0),
            ratio(it.ratios.1),
            milliseconds(it.handed_on_ms),
            ratio(it.ratio_late),
        ]);
    }
    table
}
