//! `overload`: ten times more is submitted than agents can do.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use baton_client::now;
use baton_protocol::record::{Event, Outcome as Attempt, WorkflowRecord};
use clap::Args;
use futures::StreamExt;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::check::Verdict;
use crate::fleet::FleetOptions;
use crate::load::{Load, Submitted};
use crate::random::Random;
use crate::world::{Ended, World, runner};

/// How much more is submitted than agents can do.
const TIMES: f64 = 10.0;

/// How many runs may be live at a time.
const LIVE: usize = 300;

/// How often what is due is submitted.
const TICK: Duration = Duration::from_millis(10);

/// How long it may take until everything is as before.
const NORMAL: Duration = Duration::from_secs(30);

/// How many probes tell how long a run takes when there is no hurry.
const PROBES: usize = 5;

/// The goodput that must be kept, as a share of the peak.
const GOODPUT: f64 = 0.8;

/// How soon a refusal must come.
const REFUSAL_MS: f64 = 50.0;

/// What is to be done.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How long the overload lasts
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// How long the peak is measured before
    #[arg(long, default_value_t = 20)]
    pub peak_seconds: u64,
    /// Decides the load; drawn if it is not given
    #[arg(long)]
    pub seed: Option<u64>,
    /// How many agents there are, each a process
    #[arg(long, default_value_t = 12)]
    pub agents: usize,
    /// The most that the broker stores, in MiB
    #[arg(long, default_value_t = 2048)]
    pub store_mib: u64,
    /// Prints the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Decided the load.
    pub seed: u64,
    /// Stages a second that succeeded when as many runs were under way as agents can use.
    pub peak: f64,
    /// Stages a second that succeeded under overload.
    pub goodput: f64,
    /// Runs a second that were submitted under overload.
    pub submitted: f64,
    /// Runs that were accepted under overload.
    pub accepted: u64,
    /// Runs that were refused under overload.
    pub refused: u64,
    /// Of those, the ones that were told when to ask again.
    pub refused_with_retry: u64,
    /// Submissions that got no answer.
    pub unanswered: u64,
    /// How soon refusals came, in milliseconds: p50, p99, the latest.
    pub refusal_ms: [f64; 3],
    /// How soon runs were accepted, in milliseconds: p50, p99, the latest.
    pub acceptance_ms: [f64; 3],
    /// How long a run takes when there is no hurry, in milliseconds.
    pub unhurried_ms: u64,
    /// From the end of the overload until a run took no more than twice as long as that, in milliseconds; none: not in time.
    pub normal_ms: Option<u64>,
    /// What the checker says.
    pub verdict: Verdict,
    /// What else is not as it should be.
    pub troubles: Vec<String>,
    /// Where everything was kept, if there is anything to look at.
    pub folder: Option<PathBuf>,
}

impl Outcome {
    fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut require = |holds: bool, what: String| {
            if !holds {
                failures.push(what);
            }
        };
        require(self.goodput >= GOODPUT * self.peak, format!("goodput is below {GOODPUT} of the peak"));
        require(self.refused > 0, "nothing was refused".to_owned());
        require(
            self.refusal_ms[1] <= REFUSAL_MS,
            format!("one refusal in a hundred takes longer than {REFUSAL_MS} ms"),
        );
        require(self.refused == self.refused_with_retry, "some refusals do not say when to ask again".to_owned());
        require(self.unanswered == 0, format!("{} submissions got no answer", self.unanswered));
        require(self.normal_ms.is_some(), format!("not normal again within {NORMAL:?}"));
        failures
    }

    /// Whether all is as it should be.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.failures().is_empty() && self.verdict.findings.is_empty() && self.troubles.is_empty()
    }
}

/// Overloads, and prints what came of it. Whether all is well.
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

/// Overloads.
pub async fn run(options: &Options) -> anyhow::Result<Outcome> {
    let seed = options.seed.unwrap_or_else(|| baton_protocol::id::mix(now()) >> 32);
    let fleet = FleetOptions {
        agents: options.agents,
        cluster: false,
        slots: 1,
        // So long that it is the agents who are the limit.
        task_ms: (50, 150),
        runner: runner(None)?,
        max_file_store: options.store_mib * 1024 * 1024,
        environment: vec![("BATON_WORKFLOWS__MAX_LIVE_RUNS".to_owned(), LIVE.to_string())],
        seed,
    };
    let mut world = World::start(fleet).await?;
    let random = Random::new(seed);
    let done = Done::watch(&world).await?;
    let unhurried = unhurried(&world).await?;

    // The peak: enough runs under way that no agent idles.
    let load = Load::start(&world.clients, 4 * options.agents, &random);
    sleep(Duration::from_secs(2)).await;
    let (peak, runs) = done.rates(Duration::from_secs(options.peak_seconds)).await;
    world.calm(load).await?;
    eprintln!("peak: {peak:.0} stages/s, {runs:.1} runs/s; a run takes {unhurried:?} when there is no hurry");

    // Ten times as much, whatever the answers are.
    let length = Duration::from_secs(options.seconds);
    let tally = Arc::new(Mutex::new(Tally::default()));
    let submitting = submit(&world, runs * TIMES, length, &random, &tally);
    let ((goodput, _), submitted) = tokio::join!(done.rates(length), submitting);
    let over = Instant::now();
    let normal = timeout(NORMAL, normal(&world, unhurried)).await.ok().transpose()?;
    let normal_ms = normal.map(|at| ms(at.saturating_duration_since(over)));
    if let Err(error) = world.fleet.whole().await {
        world.troubles.push(format!("{error:#}"));
    }
    let mut tally = std::mem::take(&mut *tally.lock().unwrap_or_else(PoisonError::into_inner));
    let mut outcome = Outcome {
        seed,
        peak,
        goodput,
        submitted: submitted as f64 / length.as_secs_f64(),
        accepted: tally.accepted.len() as u64,
        refused: tally.refused.len() as u64,
        refused_with_retry: tally.with_retry,
        unanswered: tally.unanswered,
        refusal_ms: percentiles(&mut tally.refused),
        acceptance_ms: percentiles(&mut tally.accepted),
        unhurried_ms: ms(unhurried),
        normal_ms,
        verdict: Verdict::default(),
        troubles: Vec::new(),
        folder: None,
    };
    let Ended { verdict, troubles, folder } = world.end(outcome.failures().is_empty()).await?;
    (outcome.verdict, outcome.troubles, outcome.folder) = (verdict, troubles, folder);
    Ok(outcome)
}

/// How soon submissions were answered, in milliseconds.
#[derive(Debug, Default)]
struct Tally {
    accepted: Vec<f64>,
    refused: Vec<f64>,
    with_retry: u64,
    unanswered: u64,
}

/// Submits at a rate, whatever the answers are; gives how many submissions there were.
async fn submit(world: &World, rate: f64, length: Duration, random: &Random, tally: &Arc<Mutex<Tally>>) -> u64 {
    let began = Instant::now();
    let mut tick = interval(TICK);
    let random = random.fork(u64::MAX - 1);
    let mut submitted = 0;
    let mut answers = JoinSet::new();
    while began.elapsed() < length {
        tick.tick().await;
        while (submitted as f64) < began.elapsed().as_secs_f64() * rate {
            submitted += 1;
            let (clients, tally, mut random) = (world.clients.clone(), Arc::clone(tally), random.fork(submitted));
            answers.spawn(async move {
                let asked = Instant::now();
                let answer = clients.submit(&mut random).await;
                let took = asked.elapsed().as_secs_f64() * 1000.0;
                let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                match answer {
                    Submitted::Accepted => tally.accepted.push(took),
                    Submitted::Refused { retry_after } => {
                        tally.refused.push(took);
                        tally.with_retry += u64::from(retry_after);
                    }
                    Submitted::Unanswered => tally.unanswered += 1,
                }
            });
        }
        while answers.try_join_next().is_some() {}
    }
    while answers.join_next().await.is_some() {}
    submitted
}

/// Counts what is done, as observers see it.
struct Done {
    stages: Arc<AtomicU64>,
    runs: Arc<AtomicU64>,
}

impl Done {
    async fn watch(world: &World) -> anyhow::Result<Self> {
        let done = Self { stages: Arc::default(), runs: Arc::default() };
        let nats = world.fleet.nats.connect().await;
        let mut events = nats.subscribe("baton.event.run.*.*").await?;
        let (stages, runs) = (Arc::clone(&done.stages), Arc::clone(&done.runs));
        tokio::spawn(async move {
            while let Some(message) = events.next().await {
                if message.subject.ends_with(".run_finished") {
                    runs.fetch_add(1, Ordering::Relaxed);
                } else if message.subject.ends_with(".stage_ended") && succeeded(&message.payload) {
                    stages.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(done)
    }

    /// Stages that succeed, and runs that end, a second, in the time to come.
    async fn rates(&self, length: Duration) -> (f64, f64) {
        let count = || (self.stages.load(Ordering::Relaxed), self.runs.load(Ordering::Relaxed));
        let (before, began) = (count(), Instant::now());
        sleep(length).await;
        let (after, seconds) = (count(), began.elapsed().as_secs_f64());
        ((after.0 - before.0) as f64 / seconds, (after.1 - before.1) as f64 / seconds)
    }
}

fn succeeded(payload: &[u8]) -> bool {
    let event = serde_json::from_slice::<Event>(payload);
    let record = event.ok().and_then(|event| event.record.read::<WorkflowRecord>().ok());
    matches!(record, Some(WorkflowRecord::StageEnded(ended)) if ended.outcome == Attempt::Succeeded)
}

/// How long a run takes when there is no hurry: the middle of some.
async fn unhurried(world: &World) -> anyhow::Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..PROBES {
        let began = Instant::now();
        times.push(world.clients.probe().await?.saturating_duration_since(began));
    }
    times.sort_unstable();
    times.get(PROBES / 2).copied().context("there were probes")
}

/// Waits until a run takes no more than twice as long as when there was no hurry; gives when it ended.
async fn normal(world: &World, unhurried: Duration) -> anyhow::Result<Instant> {
    loop {
        let began = Instant::now();
        let ended = world.clients.probe().await?;
        if ended.saturating_duration_since(began) <= 2 * unhurried {
            return Ok(ended);
        }
    }
}

fn percentiles(times: &mut [f64]) -> [f64; 3] {
    times.sort_unstable_by(f64::total_cmp);
    let at =
        |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1))).copied();
    [0.5, 0.99, 1.0].map(|share| at(share).unwrap_or_default())
}

fn text(outcome: &Outcome) -> String {
    let Outcome { peak, goodput, submitted, refusal_ms: [p50, p99, max], acceptance_ms: [a50, a99, amax], .. } =
        outcome;
    let mut text = format!(
        "peak       {peak:.0} stages/s\n\
         overload   {submitted:.0} runs/s submitted; goodput {goodput:.0} stages/s, {:.0} % of the peak\n\
         answers    {} accepted in {a50:.1} ms (p50), {a99:.1} ms (p99), {amax:.1} ms (max)\n\
         \u{20}          {} refused in {p50:.1} ms (p50), {p99:.1} ms (p99), {max:.1} ms (max), {} of them told when to ask again\n\
         \u{20}          {} without an answer\n\
         afterwards {}, a run takes {} ms when there is no hurry\n\
         history    {} runs, {} stages; {} findings, {} troubles\n",
        goodput / peak.max(0.001) * 100.0,
        outcome.accepted,
        outcome.refused,
        outcome.refused_with_retry,
        outcome.unanswered,
        outcome
            .normal_ms
            .map_or_else(|| "not normal in time".to_owned(), |ms| format!("normal after {:.1} s", ms as f64 / 1000.0)),
        outcome.unhurried_ms,
        outcome.verdict.counts.accepted,
        outcome.verdict.counts.stages,
        outcome.verdict.findings.len(),
        outcome.troubles.len(),
    );
    for failure in outcome.failures() {
        text += &format!("not as it should be: {failure}\n");
    }
    for finding in outcome.verdict.findings.iter().take(20) {
        text += &format!("{:?}: {}\n", finding.rule, finding.what);
    }
    for trouble in &outcome.troubles {
        text += &format!("trouble: {trouble}\n");
    }
    text
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
