//! `baton simulate`

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context as _;
use baton_protocol::request::Strategy;
use baton_simulate::capacity::{self, Answer, Tried};
use baton_simulate::claims::{self, Claim};
use baton_simulate::experiment;
use baton_simulate::generate::{Shape, generate};
use baton_simulate::packing::{self, Packer, Request};
use baton_simulate::stream::{self, Arrivals};
use baton_simulate::who::{Fleets, History, Who};
use baton_simulate::workload::Graph;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Output, Table};
use crate::style::Tone;

/// How many tasks each generated workflow has.
const GENERATED: usize = 120;
/// How many requests are made up to draw from.
const REQUESTS: usize = 10_000;

/// Replays workflows in virtual time through the optimizer, under every strategy, beside policies to compare with, bounds and
/// a scheduler that knows everything. Nothing is started, and nothing is asked. docs/simulate.md tells how to read it
#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// Workflow instances in WfFormat 1.5 (.json) or requests to language models (.csv, .jsonl): a file, or a directory of them
    /// [default: three workflows that are made up]
    #[arg(long, value_name = "FILE|DIR")]
    trace: Vec<PathBuf>,
    #[command(flatten)]
    fleet: FleetArgs,
    /// What the fleets are drawn from, a fleet of each size each
    #[arg(long, value_name = "S", value_delimiter = ',', default_values_t = [301, 302, 303])]
    seed: Vec<u64>,
    /// What the luck of attempts depends on; averaged over
    #[arg(long, value_name = "S", value_delimiter = ',', default_values_t = [5, 6])]
    luck: Vec<u64>,
    /// Which strategies and policies, by name; `all`, or `strategies` for those of the optimizer alone
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "all")]
    strategy: Vec<String>,
    /// What the optimizer has seen: `none`, `siblings` (other workflows), `same` (these), or all is `known`
    #[arg(long, value_enum, value_name = "WHAT", default_value_t, hide_possible_values = true)]
    history: Seen,
    /// Many runs, one after another, that are this part of what the fleet can do
    #[arg(long, value_name = "PART", value_delimiter = ',', help_heading = "Many runs at a time")]
    load: Vec<f64>,
    /// Many runs, all at once
    #[arg(long, help_heading = "Many runs at a time")]
    backlog: bool,
    /// How many runs
    #[arg(long, value_name = "N", default_value_t = 30, help_heading = "Many runs at a time")]
    runs: usize,
    /// Let a fifth of the agents become slow and a tenth begin to fail, after this part of the time [default: a third]
    #[arg(long, value_name = "PART", num_args = 0..=1, require_equals = true, help_heading = "Many runs at a time")]
    drift: Option<Option<f64>>,
    /// Let ADAPTIVE go by the runs' deadlines alone, as with `deadlines_first = true` in the settings
    #[arg(long, help_heading = "Many runs at a time")]
    deadlines_first: bool,
    /// Draw so many requests to language models, all there at once [default: 10000 where --trace has some]
    #[arg(long, value_name = "N", help_heading = "Requests to language models")]
    requests: Option<usize>,
    /// How many agents of which kind does each workflow need if so many runs start in an hour? With --within
    #[arg(long, value_name = "N", requires = "within", help_heading = "How many agents")]
    rate: Option<f64>,
    /// In how many seconds 95 % of the runs are to be done
    #[arg(long, value_name = "S", requires = "rate", help_heading = "How many agents")]
    within: Option<f64>,
    /// Measure what better coordination is claimed to bring
    #[arg(long, conflicts_with_all = ["rate", "load", "backlog", "drift", "deadlines_first"])]
    claims: bool,
    /// Show each measurement too, not the means alone
    #[arg(long)]
    each: bool,
    /// Write each measurement as a line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(super) enum Seen {
    /// Nothing
    #[default]
    None,
    /// Other workflows
    Siblings,
    /// The same workflows
    Same,
    /// Everything: how fast agents are, how often they fail, how long each task takes
    Known,
}

impl From<Seen> for History {
    fn from(seen: Seen) -> Self {
        match seen {
            Seen::None => Self::None,
            Seen::Siblings => Self::Siblings,
            Seen::Same => Self::Same,
            Seen::Known => Self::Known,
        }
    }
}

/// From one number to another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span(f64, f64);

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

/// What is replayed.
struct Work {
    graphs: Vec<Arc<Graph>>,
    requests: Vec<Request>,
}

impl Simulate {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<Exit> {
        self.check()?;
        let mut told = Told { out: context.out, json: self.json, written: Ok(()) };
        let Work { graphs, requests } = self.work()?;
        match (self.rate, self.within) {
            _ if self.claims => self.claims(graphs, requests, &mut told)?,
            _ if graphs.is_empty() => self.requests(requests, &mut told)?,
            (Some(rate), Some(within)) => return self.capacity(&graphs, rate, within, &mut told),
            _ if self.load.is_empty() && !self.backlog => self.alone(graphs, &mut told)?,
            _ => self.stream(graphs, &mut told)?,
        }
        told.written.map(|()| Exit::Done)
    }

    fn check(&self) -> Result<(), Failure> {
        self.fleets()?;
        if let Some(load) = self.load.iter().find(|load| !(**load > 0.0 && **load <= 10.0)) {
            return Err(Failure::usage(format!("--load {load} is not more than 0 and at most 10")));
        }
        if !(1..=10_000).contains(&self.runs) {
            return Err(Failure::usage(format!("--runs {} is not from 1 to 10000", self.runs)));
        }
        if let Some(part) = self.drift.flatten().filter(|part| !(0.0..=1.0).contains(part)) {
            return Err(Failure::usage(format!("--drift={part} is not from 0 to 1")));
        }
        if self.drift.is_some() && self.load.is_empty() && !self.backlog {
            return Err(Failure::usage("--drift needs many runs: say --load or --backlog as well"));
        }
        if self.deadlines_first && self.load.is_empty() && !self.backlog {
            return Err(Failure::usage("--deadlines-first needs many runs: say --load or --backlog as well"));
        }
        let positive = |value: Option<f64>| value.is_none_or(|value| value > 0.0 && value.is_finite());
        if !positive(self.rate) || !positive(self.within) {
            return Err(Failure::usage("--rate and --within must be more than 0"));
        }
        if self.requests == Some(0) {
            return Err(Failure::usage("--requests must be at least 1"));
        }
        Ok(())
    }

    /// Each workflow alone.
    fn alone(&self, graphs: Vec<Arc<Graph>>, told: &mut Told) -> anyhow::Result<()> {
        let plan = experiment::Plan {
            graphs,
            fleets: self.fleets()?,
            luck: self.luck.clone(),
            who: self.who()?,
            history: self.history.into(),
        };
        let all = experiment::run(&plan, |it| told.line(it))?;
        if self.each {
            told.table(&each(&all));
        }
        told.table(&table(&experiment::table(&all)));
        Ok(())
    }

    /// Many workflows at a time.
    fn stream(&self, graphs: Vec<Arc<Graph>>, told: &mut Told) -> anyhow::Result<()> {
        if matches!(self.history, Seen::Siblings) && graphs.len() < 2 {
            let why = "--history siblings needs two workflows: one is seen before, the other is measured";
            return Err(Failure::usage(why).into());
        }
        let loads = self.load.iter().copied().map(Arrivals::Load);
        let plan = stream::Plan {
            graphs,
            fleets: self.fleets()?,
            luck: self.luck.clone(),
            who: self.who()?.into_iter().filter(|who| *who != Who::HeftPlan).collect(),
            history: self.history.into(),
            runs: self.runs,
            arrivals: loads.chain(self.backlog.then_some(Arrivals::Backlog)).collect(),
            drift: self.drift.map(|part| part.unwrap_or(stream::DRIFTS_AFTER)),
            deadlines_first: self.deadlines_first,
        };
        let all = stream::run(&plan, |it| told.line(it))?;
        told.table(&stream_table(&stream::table(&all)));
        Ok(())
    }

    /// Requests to language models.
    fn requests(&self, requests: Vec<Request>, told: &mut Told) -> anyhow::Result<()> {
        let plan = packing::Plan {
            requests,
            count: self.requests.unwrap_or(REQUESTS),
            agents: self.fleet.agents.clone(),
            seeds: self.seed.clone(),
            who: self.named(&Packer::all(), |who| matches!(who, Packer::Strategy(_)))?,
        };
        let all = packing::run(&plan, |it| told.line(it));
        told.table(&request_table(&all));
        Ok(())
    }

    /// What is claimed, and what was found.
    fn claims(&self, graphs: Vec<Arc<Graph>>, requests: Vec<Request>, told: &mut Told) -> anyhow::Result<()> {
        let plan = claims::Plan {
            graphs,
            requests,
            count: self.requests.unwrap_or(REQUESTS),
            fleets: self.fleets()?,
            luck: self.luck.clone(),
            runs: self.runs,
            history: self.history.into(),
            strategy: self.one_strategy()?,
        };
        let all = claims::check(&plan)?;
        all.iter().for_each(|claim| told.line(claim));
        told.table(&claim_table(&all));
        Ok(())
    }

    /// How many agents each workflow needs.
    fn capacity(&self, graphs: &[Arc<Graph>], rate: f64, within: f64, told: &mut Told) -> anyhow::Result<Exit> {
        let mut exit = Exit::Done;
        for graph in graphs {
            let FleetArgs { speeds: Span(slowest, fastest), failures: Span(least, most), .. } = self.fleet;
            let plan = capacity::Plan {
                graph: Arc::clone(graph),
                rate,
                within,
                runs: self.runs,
                speeds: (slowest, fastest),
                failures: (least, most),
                seeds: self.seed.clone(),
                who: Who::Strategy(self.one_strategy()?),
            };
            let answer = capacity::find(&plan).with_context(|| graph.name.clone())?;
            told.line(&answer);
            if self.each {
                told.table(&tried_table(&answer));
            }
            match &answer.enough {
                Some(enough) => {
                    told.text(&format!(
                        "{}: {} agents do {:.0} % of the runs within {:.1} s ({:.1} s on average); tried {} fleets\n\
                         the sources' formula, stages × stages side by side, says {}",
                        graph.name,
                        enough.total(),
                        100.0 * capacity::SHARE,
                        enough.within,
                        enough.completion,
                        answer.tried.len(),
                        answer.formula,
                    ));
                    told.table(&kind_table(enough));
                }
                None => {
                    exit = Exit::Failed;
                    told.text(&format!(
                        "{}: no number of such agents does {:.0} % of the runs within {within} s: where nobody ever waits, it \
                         takes {:.1} s",
                        graph.name,
                        100.0 * capacity::SHARE,
                        answer.best.within,
                    ));
                }
            }
        }
        std::mem::replace(&mut told.written, Ok(())).map(|()| exit)
    }

    /// The strategy that is meant, where it can only be one: the best there is, unless one is named.
    fn one_strategy(&self) -> Result<Strategy, Failure> {
        let mut named = self.who()?.into_iter().filter_map(|who| match who {
            Who::Strategy(strategy) => Some(strategy),
            Who::Reference(_) | Who::HeftPlan => None,
        });
        named.next_back().ok_or_else(|| Failure::usage("--strategy must name one of the optimizer's"))
    }

    fn fleets(&self) -> Result<Fleets, Failure> {
        self.fleet.draw(&self.seed)
    }

    fn who(&self) -> Result<Vec<Who>, Failure> {
        self.named(&Who::all(), |who| matches!(who, Who::Strategy(_)))
    }

    fn named<T: ToString + Copy + PartialEq>(
        &self,
        all: &[T],
        is_strategy: impl Fn(&T) -> bool,
    ) -> Result<Vec<T>, Failure> {
        named(&self.strategy, all, is_strategy)
    }

    /// What is replayed: workflows or requests, where not both are needed; made up where --trace has none.
    fn work(&self) -> anyhow::Result<Work> {
        let (mut graphs, mut requests) = (Vec::new(), Vec::new());
        for path in files(&self.trace)? {
            if path.extension().is_some_and(|extension| extension == "csv" || extension == "jsonl") {
                requests.extend(packing::open(&path).map_err(|error| Failure::usage(error.to_string()))?);
            } else {
                graphs.push(Arc::new(graph(&path)?));
            }
        }
        if !self.claims && !graphs.is_empty() && !requests.is_empty() {
            let why = "--trace has workflows (.json) and requests (.csv, .jsonl): give one of both";
            return Err(Failure::usage(why).into());
        }
        let nothing = graphs.is_empty() && requests.is_empty();
        if graphs.is_empty() && (self.claims || (nothing && self.requests.is_none())) {
            graphs = made_up();
        }
        if requests.is_empty() && (self.claims || (nothing && self.requests.is_some())) {
            requests = packing::generate(REQUESTS, 1);
        }
        Ok(Work { graphs, requests })
    }
}

/// The agents that there are.
#[derive(Debug, Args)]
pub(super) struct FleetArgs {
    /// How many agents there are; several numbers are several fleets
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [8, 32])]
    pub(super) agents: Vec<usize>,
    /// The slowest and the fastest speed
    #[arg(long, value_name = "A..B", default_value = "0.5..2")]
    speeds: Span,
    /// The least and the greatest probability with which an attempt of an agent fails
    #[arg(long, value_name = "A..B", default_value = "0..0.25")]
    failures: Span,
}

impl FleetArgs {
    /// The fleets, drawn from these.
    pub(super) fn draw(&self, seeds: &[u64]) -> Result<Fleets, Failure> {
        let (Span(slowest, fastest), Span(least, most)) = (self.speeds, self.failures);
        if slowest <= 0.0 {
            return Err(Failure::usage(format!("--speeds begins with {slowest}; a speed is more than 0")));
        }
        if least < 0.0 || most >= 1.0 {
            return Err(Failure::usage(format!("--failures {least}..{most} is not from 0 to below 1")));
        }
        if let Some(agents) = self.agents.iter().find(|agents| !(1..=10_000).contains(*agents)) {
            return Err(Failure::usage(format!("--agents {agents} is not from 1 to 10000")));
        }
        let (agents, seeds) = (self.agents.clone(), seeds.to_vec());
        Ok(Fleets { agents, speeds: (slowest, fastest), failures: (least, most), seeds })
    }
}

/// Those of all that are meant, each once.
pub(super) fn named<T: ToString + Copy + PartialEq>(
    names: &[String],
    all: &[T],
    is_strategy: impl Fn(&T) -> bool,
) -> Result<Vec<T>, Failure> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], " ");
    let mut meant: Vec<T> = Vec::new();
    for name in names {
        let found: Vec<T> = match name.to_lowercase().as_str() {
            "all" => all.to_vec(),
            "strategies" => all.iter().copied().filter(&is_strategy).collect(),
            _ => all.iter().copied().filter(|it| plain(&it.to_string()) == plain(name)).collect(),
        };
        if found.is_empty() {
            let known: Vec<_> = all.iter().map(ToString::to_string).collect();
            let known = known.join(", ");
            return Err(Failure::usage(format!("--strategy {name:?} is none of: all, strategies, {known}")));
        }
        let new: Vec<T> = found.into_iter().filter(|it| !meant.contains(it)).collect();
        meant.extend(new);
    }
    Ok(meant)
}

/// The files that are meant: those given, and those of the directories given that have something to replay.
fn files(trace: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in trace {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = path.read_dir().and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = entries.with_context(|| format!("{} can not be read", path.display()))?;
        let mut found: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        let known = |path: &PathBuf| {
            path.extension().is_some_and(|extension| ["json", "csv", "jsonl"].iter().any(|known| extension == *known))
        };
        found.retain(known);
        found.sort();
        if found.is_empty() {
            let why = format!("there is no .json, .csv or .jsonl file in {}", path.display());
            return Err(Failure::usage(why).into());
        }
        files.extend(found);
    }
    Ok(files)
}

/// Where measurements go: lines of JSON as they are made, or tables at the end.
struct Told {
    out: Output,
    json: bool,
    written: anyhow::Result<()>,
}

impl Told {
    fn line(&mut self, measurement: &impl Serialize) {
        if self.json && self.written.is_ok() {
            self.written = self.out.json_line(measurement);
        }
    }

    fn text(&mut self, text: &str) {
        if !self.json && self.written.is_ok() {
            self.written = self.out.line(text);
        }
    }

    fn table(&mut self, table: &Table) {
        if !self.json && self.written.is_ok() {
            self.written = self.out.table(table);
        }
    }
}

/// Workflows: the instances given, or such as are made up.
pub(super) fn workflows(trace: &[PathBuf]) -> anyhow::Result<Vec<Arc<Graph>>> {
    let graphs =
        files(trace)?.into_iter().map(|path| Ok(Arc::new(graph(&path)?))).collect::<Result<Vec<_>, Failure>>()?;
    Ok(if graphs.is_empty() { made_up() } else { graphs })
}

/// Workflows that are made up.
fn made_up() -> Vec<Arc<Graph>> {
    Shape::ALL.map(|shape| Arc::new(generate(shape, 1, GENERATED))).into()
}

fn graph(path: &Path) -> Result<Graph, Failure> {
    let instance = baton_wfformat::open(path).map_err(|error| Failure::usage(error.to_string()))?;
    let name = path.file_stem().map_or_else(|| instance.name.clone(), |stem| stem.to_string_lossy().into_owned());
    Ok(Graph::of(&name, &instance))
}

fn ratio(value: f64) -> Cell {
    format!("{value:.3}").into()
}

fn maybe(value: Option<f64>) -> Cell {
    value.map(ratio).unwrap_or_default()
}

/// The means over workflows that were alone.
fn table(rows: &[experiment::Row]) -> Table {
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
        table.row([
            row.agents.to_string().into(),
            row.policy.clone().into(),
            ratio(row.to_bound),
            ratio(row.to_heft),
            maybe(row.worst),
            maybe(row.completion),
            ratio(row.utilization),
            ratio(row.succeeded),
            format!("{:.4}", row.within_three).into(),
            ratio(row.waste),
            maybe(row.messages),
            maybe(row.messages_alone),
        ]);
    }
    table
}

/// Every workflow that was alone.
fn each(measurements: &[experiment::Measurement]) -> Table {
    let titles = ["workflow", ">tasks", ">agents", ">seed", "policy", ">bound s", ">heft s", ">makespan s", ">to heft"];
    let mut table = Table::new(titles);
    for it in measurements {
        table.row([
            it.instance.clone().into(),
            it.tasks.to_string().into(),
            it.agents.to_string().into(),
            it.fleet.to_string().into(),
            it.policy.clone().into(),
            format!("{:.1}", it.bound).into(),
            format!("{:.1}", it.heft).into(),
            format!("{:.1}", it.makespan).into(),
            ratio(it.to_heft),
        ]);
    }
    table
}

/// The means over streams.
fn stream_table(rows: &[stream::Row]) -> Table {
    let mut table = Table::new([
        ">agents",
        ">load",
        "policy",
        ">completion",
        ">weighted",
        ">slowdown",
        ">p95",
        ">in time",
        ">weighted",
        ">utilized",
        ">succeeded",
        ">within 3",
        ">wasted",
        ">messages",
        ">alone",
    ]);
    for row in rows {
        table.row([
            row.agents.to_string().into(),
            row.arrivals.clone().into(),
            row.policy.clone().into(),
            maybe(row.completion),
            maybe(row.weighted),
            format!("{:.2}", row.slowdown).into(),
            format!("{:.2}", row.slowdown_p95).into(),
            ratio(row.in_time),
            ratio(row.in_time_weighted),
            ratio(row.utilization),
            ratio(row.succeeded),
            format!("{:.4}", row.within_three).into(),
            ratio(row.waste),
            maybe(row.messages),
            maybe(row.messages_alone),
        ]);
    }
    table
}

/// Requests.
fn request_table(rows: &[packing::Measurement]) -> Table {
    let titles = [">agents", ">seed", "policy", ">makespan s", ">mean s", ">p95 s", ">slots", ">memory", ">dominant"];
    let mut table = Table::new(titles);
    for row in rows {
        table.row([
            row.agents.to_string().into(),
            row.seed.to_string().into(),
            row.policy.clone().into(),
            format!("{:.1}", row.makespan).into(),
            format!("{:.1}", row.completion).into(),
            format!("{:.1}", row.completion_p95).into(),
            ratio(row.slots),
            ratio(row.memory),
            ratio(row.dominant),
        ]);
    }
    table
}

/// What is claimed.
fn claim_table(claims: &[Claim]) -> Table {
    let titles = ["claim", ">agents", "workload", ">before", ">after", ">change", ">claimed", "verdict"];
    let mut table = Table::new(titles);
    for claim in claims {
        let (change, claimed) = (100.0 * claim.change(), 100.0 * claim.claimed);
        let verdict = if claim.is_reproduced() {
            Cell::toned("reproduced", Tone::Good)
        } else {
            Cell::toned(format!("{:.0} % of it", 100.0 * claim.change() / claim.claimed), Tone::Bad)
        };
        table.row([
            claim.claim.into(),
            claim.agents.to_string().into(),
            claim.workload.clone().into(),
            ratio(claim.before),
            ratio(claim.after),
            format!("{change:+.0} %").into(),
            format!("{claimed:+.0} %").into(),
            verdict,
        ]);
    }
    table
}

/// A fleet that is enough.
fn kind_table(fleet: &Tried) -> Table {
    let mut table = Table::new(["kind", ">agents", ">utilized"]);
    for ((kind, agents), utilization) in fleet.agents.iter().zip(&fleet.utilization) {
        table.row([kind.clone().into(), agents.to_string().into(), ratio(*utilization)]);
    }
    table
}

/// All fleets that were tried.
fn tried_table(answer: &Answer) -> Table {
    let mut table = Table::new([">agents", ">within s", ">mean s", "of each kind"]);
    for tried in &answer.tried {
        let kinds: Vec<String> = tried.agents.iter().map(|(_, agents)| agents.to_string()).collect();
        table.row([
            Cell::from(tried.total().to_string()),
            format!("{:.1}", tried.within).into(),
            format!("{:.1}", tried.completion).into(),
            kinds.join(" ").into(),
        ]);
    }
    table
}
