//! `baton simulate`

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context as _;
use baton_simulate::experiment::{self, History, Measurement, Plan, Row, Who};
use baton_simulate::generate::{Shape, generate};
use baton_simulate::workload::Graph;
use clap::{Args, ValueEnum};

use crate::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Table};

/// How many tasks each generated workflow has.
const GENERATED: usize = 120;

/// Replays workflows in virtual time through the optimizer, under every strategy, beside policies to compare with, bounds and
/// a scheduler that knows everything. Nothing is started, and nothing is asked. docs/simulate.md tells how to read it
#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// A workflow instance in WfFormat 1.5, or a directory of them [default: three that are made up]
    #[arg(long, value_name = "FILE|DIR")]
    trace: Vec<PathBuf>,
    /// How many agents there are; several numbers are several fleets
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [8, 32])]
    agents: Vec<usize>,
    /// The slowest and the fastest speed
    #[arg(long, value_name = "A..B", default_value = "0.5..2")]
    speeds: Span,
    /// The least and the greatest probability with which an attempt of an agent fails
    #[arg(long, value_name = "A..B", default_value = "0..0.25")]
    failures: Span,
    /// What the fleets are drawn from, a fleet of each size each
    #[arg(long, value_name = "S", value_delimiter = ',', default_values_t = [301, 302, 303])]
    seed: Vec<u64>,
    /// What the luck of attempts depends on; averaged over
    #[arg(long, value_name = "S", value_delimiter = ',', default_values_t = [5, 6])]
    luck: Vec<u64>,
    /// Which strategies and policies, by name; `all`, or `strategies` for those of the optimizer alone
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "all")]
    strategy: Vec<String>,
    /// What the optimizer has seen before: `none`, `siblings` (the other workflows), `same` (this one as well)
    #[arg(long, value_enum, value_name = "WHAT", default_value_t, hide_possible_values = true)]
    history: Seen,
    /// Show each workflow too, not the means alone
    #[arg(long)]
    each: bool,
    /// Write each measurement as a line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Seen {
    /// Nothing
    #[default]
    None,
    /// The other workflows
    Siblings,
    /// The other workflows, and this one
    Same,
}

impl From<Seen> for History {
    fn from(seen: Seen) -> Self {
        match seen {
            Seen::None => Self::None,
            Seen::Siblings => Self::Siblings,
            Seen::Same => Self::Same,
        }
    }
}

/// From one number to another.
#[derive(Debug, Clone, Copy)]
struct Span(f64, f64);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| {
            let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
            number.ok_or_else(|| format!("{text:?} is no number; write two as in 0.5..2"))
        };
        let (from, to) = (number(from)?, number(to)?);
        if from > to {
            return Err(format!("it begins with {from}, which is more than the {to} that it ends with"));
        }
        Ok(Self(from, to))
    }
}

impl Simulate {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let plan = self.plan()?;
        let mut written = Ok(());
        let tell = |measurement: &Measurement| {
            if self.json && written.is_ok() {
                written = context.out.json_line(measurement);
            }
        };
        let all = experiment::run(&plan, tell)?;
        written?;
        if self.each && !self.json {
            context.out.table(&each(&all))?;
            context.out.line("")?;
        }
        if !self.json {
            context.out.table(&table(&experiment::table(&all)))?;
        }
        Ok(Exit::Done)
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        let Span(slowest, fastest) = self.speeds;
        let Span(least, most) = self.failures;
        if slowest <= 0.0 {
            return Err(Failure::usage(format!("--speeds begins with {slowest}; a speed is more than 0")).into());
        }
        if least < 0.0 || most >= 1.0 {
            return Err(Failure::usage(format!("--failures {least}..{most} is not from 0 to below 1")).into());
        }
        if let Some(agents) = self.agents.iter().find(|agents| !(1..=10_000).contains(*agents)) {
            return Err(Failure::usage(format!("--agents {agents} is not from 1 to 10000")).into());
        }
        Ok(Plan {
            graphs: self.graphs()?,
            agents: self.agents.clone(),
            speeds: (slowest, fastest),
            failures: (least, most),
            fleets: self.seed.clone(),
            luck: self.luck.clone(),
            who: self.who()?,
            history: self.history.into(),
        })
    }

    fn who(&self) -> Result<Vec<Who>, Failure> {
        let mut who = Vec::new();
        for name in &self.strategy {
            match name.to_lowercase().as_str() {
                "all" => who.extend(Who::all()),
                "strategies" => who.extend(experiment::strategies().into_iter().map(Who::Strategy)),
                _ => who.push(Who::named(name).ok_or_else(|| {
                    let names: Vec<_> = Who::all().iter().map(ToString::to_string).collect();
                    Failure::usage(format!("--strategy {name:?} is none of: all, strategies, {}", names.join(", ")))
                })?),
            }
        }
        let mut once = Vec::new();
        who.retain(|it| {
            !once.contains(it) && {
                once.push(*it);
                true
            }
        });
        Ok(who)
    }

    fn graphs(&self) -> anyhow::Result<Vec<Arc<Graph>>> {
        if self.trace.is_empty() {
            return Ok(Shape::ALL.map(|shape| Arc::new(generate(shape, 1, GENERATED))).into());
        }
        let mut files = Vec::new();
        for path in &self.trace {
            if path.is_dir() {
                let entries = path.read_dir().and_then(Iterator::collect::<Result<Vec<_>, _>>);
                let entries = entries.with_context(|| format!("{} can not be read", path.display()))?;
                let mut found: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
                found.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
                found.sort();
                if found.is_empty() {
                    return Err(Failure::usage(format!("there is no .json file in {}", path.display())).into());
                }
                files.extend(found);
            } else {
                files.push(path.clone());
            }
        }
        files.iter().map(|path| Ok(Arc::new(graph(path)?))).collect()
    }
}

fn graph(path: &Path) -> Result<Graph, Failure> {
    let instance = baton_wfformat::open(path).map_err(|error| Failure::usage(error.to_string()))?;
    let name = path.file_stem().map_or_else(|| instance.name.clone(), |stem| stem.to_string_lossy().into_owned());
    Ok(Graph::of(&name, &instance))
}

fn ratio(value: f64) -> String {
    format!("{value:.3}")
}

fn maybe(value: Option<f64>) -> String {
    value.map(ratio).unwrap_or_default()
}

/// The means.
fn table(rows: &[Row]) -> Table {
    let mut table = Table::new([
        ">agents",
        "policy",
        ">to bound",
        ">to heft",
        ">worst to queue",
        ">completion",
        ">utilized",
        ">succeeded",
        ">within 3",
        ">wasted",
        ">messages",
        ">alone",
    ]);
    for row in rows {
        let cells: [Cell; 12] = [
            row.agents.to_string().into(),
            row.policy.clone().into(),
            ratio(row.to_bound).into(),
            ratio(row.to_heft).into(),
            maybe(row.worst).into(),
            maybe(row.completion).into(),
            ratio(row.utilization).into(),
            ratio(row.succeeded).into(),
            format!("{:.4}", row.within_three).into(),
            ratio(row.waste).into(),
            maybe(row.messages).into(),
            maybe(row.messages_alone).into(),
        ];
        table.row(cells);
    }
    table
}

/// Every measurement.
fn each(measurements: &[Measurement]) -> Table {
    let mut table = Table::new([
        "workflow",
        ">tasks",
        ">agents",
        ">seed",
        "policy",
        ">bound s",
        ">heft s",
        ">makespan s",
        ">to heft",
    ]);
    for it in measurements {
        let cells: [Cell; 9] = [
            it.instance.clone().into(),
            it.tasks.to_string().into(),
            it.agents.to_string().into(),
            it.fleet.to_string().into(),
            it.policy.clone().into(),
            format!("{:.1}", it.bound).into(),
            format!("{:.1}", it.heft).into(),
            format!("{:.1}", it.makespan).into(),
            ratio(it.to_heft).into(),
        ];
        table.row(cells);
    }
    table
}
