//! `soak`: a long steady load, in which memory and open files must stay bounded.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use baton_client::now;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::check::Verdict;
use crate::fleet::{BROKER, FleetOptions};
use crate::load::Load;
use crate::random::Random;
use crate::world::{Ended, World, runner};

/// How often the processes are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// In how many parts the soak is shown.
const PARTS: u64 = 10;

/// After this many parts everything is warm: caches, histories and pools have their size.
const WARM: u64 = 5;

/// How much memory may grow from the first warm part to the last part: by this share, and this many bytes.
const GROWTH: (f64, u64) = (0.10, 8 * 1024 * 1024);

/// How many files may be open in the last part beyond those of the first warm one.
const FILES: usize = 8;

/// How long it may take until another stage ends.
const STUCK: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Ends after this many stages
    #[arg(long, default_value_t = 200_000)]
    pub stages: u64,
    /// Decides the load; drawn if it is not given
    #[arg(long)]
    pub seed: Option<u64>,
    /// Keeps this many runs under way
    #[arg(long, default_value_t = 64)]
    pub in_flight: usize,
    /// How many agents there are, each a process
    #[arg(long, default_value_t = 4)]
    pub agents: usize,
    /// How many tasks each of them does at a time
    #[arg(long, default_value_t = 16)]
    pub slots: u32,
    /// The most that the broker stores, in MiB
    #[arg(long, default_value_t = 4096)]
    pub store_mib: u64,
    /// Prints the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// What a process needed in one part of the soak.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Part {
    /// The mean of its resident memory, in bytes.
    pub memory: u64,
    /// The most files it had open.
    pub files: usize,
    samples: u64,
    sum: u64,
}

impl Part {
    fn take(&mut self, memory: u64, files: usize) {
        self.samples += 1;
        self.sum += memory;
        self.memory = self.sum / self.samples;
        self.files = self.files.max(files);
    }
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Decided the load.
    pub seed: u64,
    /// Each process with its parts.
    pub processes: BTreeMap<String, Vec<Part>>,
    /// How long the load lasted, in milliseconds.
    pub load_ms: u64,
    /// Processes whose memory or files grow.
    pub growing: Vec<String>,
    /// What the checker says.
    pub verdict: Verdict,
    /// What else is not as it should be.
    pub troubles: Vec<String>,
    /// Where everything was kept, if there is anything to look at.
    pub folder: Option<PathBuf>,
}

impl Outcome {
    /// Whether everything is bounded, and nothing was lost, duplicated or otherwise wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.growing.is_empty() && self.verdict.findings.is_empty() && self.troubles.is_empty()
    }
}

/// Soaks, and prints what came of it. Whether all is well.
pub async fn command(options: Options) -> anyhow::Result<bool> {
    let json = options.json;
    let outcome = run(&options).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        println!("{}", text(&outcome));
    }
    Ok(outcome.is_good())
}

/// Soaks.
pub async fn run(options: &Options) -> anyhow::Result<Outcome> {
    let seed = options.seed.unwrap_or_else(|| baton_protocol::id::mix(now()) >> 32);
    let fleet = FleetOptions {
        agents: options.agents,
        cluster: false,
        slots: options.slots,
        task_ms: (1, 10),
        runner: runner(None)?,
        max_file_store: options.store_mib * 1024 * 1024,
        environment: Vec::new(),
        seed,
    };
    let mut world = World::start(fleet).await?;
    let began = Instant::now();
    let load = Load::start(&world.clients, options.in_flight, &Random::new(seed));
    let mut processes: BTreeMap<String, Vec<Part>> = BTreeMap::new();
    let names: Vec<_> = world.fleet.service_names().into_iter().chain([BROKER.to_owned()]).collect();
    let mut progress = (0, Instant::now());
    while world.clients.stages() < options.stages {
        let stages = world.clients.stages();
        if stages > progress.0 {
            progress = (stages, Instant::now());
        } else if progress.1.elapsed() > STUCK {
            world.troubles.push(format!("no stage has ended for {STUCK:?}, after {stages}"));
            break;
        }
        let part = (stages * PARTS / options.stages.max(1)) as usize;
        for name in &names {
            let parts = processes.entry(name.clone()).or_default();
            if let Some((memory, files)) = world.fleet.usage(name) {
                if parts.len() <= part {
                    eprintln!("{stages:>8} stages  {name:<20} {:>6.1} MiB  {files:>4} files", mib(memory));
                    parts.resize(part + 1, Part::default());
                }
                parts[part].take(memory, files);
            }
        }
        sleep(EVERY).await;
    }
    world.calm(load).await?;
    let load_ms = u64::try_from(began.elapsed().as_millis())?;
    // The broker keeps a document of every run, and in memory an entry of its index: it is shown, and may grow.
    let growing = processes
        .iter()
        .filter(|(name, parts)| *name != BROKER && grows(parts))
        .map(|(name, _)| name.clone())
        .collect::<Vec<_>>();
    let Ended { verdict, troubles, folder } = world.end(growing.is_empty()).await?;
    Ok(Outcome { seed, processes, load_ms, growing, verdict, troubles, folder })
}

/// Whether the last part needed more than the first one in which everything was warm.
fn grows(parts: &[Part]) -> bool {
    let (Some(warm), Some(last)) = (parts.get(WARM as usize), parts.last()) else { return false };
    let more = last.memory.saturating_sub(warm.memory);
    let memory = more > GROWTH.1 && more as f64 > warm.memory as f64 * GROWTH.0;
    memory || last.files > warm.files + FILES
}

fn text(outcome: &Outcome) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let parts = (1..=PARTS).map(|part| format!("{}%", part * 100 / PARTS));
    table.set_header(["MiB, mean (files, most)".to_owned()].into_iter().chain(parts));
    for (name, parts) in &outcome.processes {
        let shown = parts.iter().map(|part| format!("{:.1} ({})", mib(part.memory), part.files));
        table.add_row([name.clone()].into_iter().chain(shown));
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let seconds = outcome.load_ms as f64 / 1000.0;
    let counts = &outcome.verdict.counts;
    let mut text = format!(
        "{table}\n\nseed {}: {} stages of {} runs in {seconds:.0} s, {:.0} stages/s; {} findings, {} troubles; growing: {}\n",
        outcome.seed,
        counts.stages,
        counts.accepted,
        counts.stages as f64 / seconds.max(0.001),
        outcome.verdict.findings.len(),
        outcome.troubles.len(),
        if outcome.growing.is_empty() { "nothing".to_owned() } else { outcome.growing.join(", ") },
    );
    for finding in outcome.verdict.findings.iter().take(20) {
        text += &format!("{:?}: {}\n", finding.rule, finding.what);
    }
    for trouble in &outcome.troubles {
        text += &format!("trouble: {trouble}\n");
    }
    text
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(mib: [u64; 10]) -> Vec<Part> {
        mib.iter().map(|mib| Part { memory: mib << 20, files: 20, samples: 1, sum: mib << 20 }).collect()
    }

    #[test]
    fn what_grows_while_warm_is_seen_and_what_warms_up_is_not() {
        assert!(!grows(&parts([10, 20, 40, 80, 100, 100, 101, 100, 102, 101])));
        assert!(grows(&parts([10, 20, 40, 80, 100, 100, 110, 120, 130, 140])));
        let mut files = parts([50; 10]);
        files[9].files = 40;
        assert!(grows(&files));
        assert!(!grows(&parts([50; 10])[..3]));
    }
}
