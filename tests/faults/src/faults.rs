//! `faults`: load, faults one at a time, and the history checked afterwards.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use baton_client::{Client, now};
use baton_protocol::{Millis, Service};
use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::check::{Class, Verdict};
use crate::fleet::{self, FleetOptions, Gateways, PATIENCE};
use crate::inject::Injector;
use crate::kind::{Kind, Schedule};
use crate::load::{Clients, Load};
use crate::random::Random;
use crate::table;
use crate::world::{Ended, World, runner};

/// How long the load goes on undisturbed at first, in runs.
const WARM_UP: u64 = 20;

/// What is to be done.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Injects faults for this long; the rest comes on top
    #[arg(long, default_value_t = 10.0)]
    pub minutes: f64,
    /// Injects at most this many faults
    #[arg(long)]
    pub count: Option<usize>,
    /// Decides the order of the faults, their victims, and the load; drawn if it is not given
    #[arg(long)]
    pub seed: Option<u64>,
    /// Goes on until at least this many runs were accepted
    #[arg(long, default_value_t = 300)]
    pub runs: u64,
    /// Keeps this many runs under way
    #[arg(long, default_value_t = 16)]
    pub in_flight: usize,
    /// How many agents there are, each a process
    #[arg(long, default_value_t = 12)]
    pub agents: usize,
    /// Uses a cluster of three servers with three replicas of everything; without --only, its servers are what is struck
    #[arg(long)]
    pub cluster: bool,
    /// Only faults of these kinds
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Kind>,
    /// Not these kinds
    #[arg(long, value_delimiter = ',')]
    pub except: Vec<Kind>,
    /// The most that the broker stores, in MiB
    #[arg(long, default_value_t = 1024)]
    pub store_mib: u64,
    /// Keeps notes and logs also if all is well
    #[arg(long)]
    pub keep: bool,
    /// Prints the outcome as JSON
    #[arg(long)]
    pub json: bool,
    /// The binary that has the command `agent`; this one unless given
    #[arg(long, hide = true)]
    pub runner: Option<PathBuf>,
}

/// One fault that was injected.
#[derive(Debug, Clone, Serialize)]
pub struct Injected {
    /// Its kind.
    pub kind: Kind,
    /// What was struck.
    pub what: String,
    /// From when …
    pub from: Millis,
    /// … to when it and what came of it lasted.
    pub to: Millis,
    /// From the injection to the end of a run that was submitted after it, in milliseconds; none: there was no end in time.
    pub recovery_ms: Option<u64>,
    /// From the injection to the first commit of the struck leader's successor, in milliseconds.
    pub leader_ms: Option<u64>,
    /// From the injection until every run had ended that was under way then, in milliseconds.
    pub under_way_ms: Option<u64>,
    /// Whether everything was in order again in time.
    pub survived: bool,
}

/// What came of it all.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Decided everything that was drawn.
    pub seed: u64,
    /// The faults.
    pub injected: Vec<Injected>,
    /// What the checker says.
    pub verdict: Verdict,
    /// What else is not as it should be.
    pub troubles: Vec<String>,
    /// How long the load lasted, in milliseconds.
    pub load_ms: u64,
    /// Runs that were started over HTTP.
    pub by_http: u64,
    /// Bad messages that wanted an answer, and those that got one.
    pub bad: (usize, usize),
    /// Where everything was kept, if there is anything to look at.
    pub folder: Option<PathBuf>,
}

impl Outcome {
    /// Whether nothing was lost, duplicated or otherwise wrong, and everything recovered.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.verdict.findings.is_empty()
            && self.troubles.is_empty()
            && self.injected.iter().all(|injected| injected.survived)
    }
}

/// Runs the faults. An error means that the runner could not do its work.
pub async fn run(options: Options) -> anyhow::Result<Outcome> {
    let seed = options.seed.unwrap_or_else(|| baton_protocol::id::mix(now()) >> 32);
    let kinds = kinds(&options)?;
    if let Some(count) = options.count {
        let schedule: Vec<_> = Schedule::new(kinds.clone(), seed).take(count).map(Kind::name).collect();
        eprintln!("schedule: {}", schedule.join(" "));
    }
    let mut world = World::start(FleetOptions {
        cluster: options.cluster,
        agents: options.agents,
        slots: 1,
        task_ms: (10, 80),
        runner: runner(options.runner.as_ref())?,
        max_file_store: options.store_mib * 1024 * 1024,
        environment: Vec::new(),
        seed,
    })
    .await?;
    let random = Random::new(seed);
    let mut session = Session {
        injector: Injector::new(&world.fleet).await?,
        random: random.fork(u64::MAX),
        gateways: world.fleet.gateways.clone(),
        injected: Vec::new(),
        clients: world.clients.clone(),
    };
    let began = Instant::now();
    let load = Load::start(&session.clients, options.in_flight, &random);
    if let Err(error) = session.inject(&options, kinds, &mut world, seed).await {
        world.troubles.push(format!("{error:#}"));
    }
    session.until_accepted(options.runs).await;
    world.calm(load).await?;
    let load_ms = ms(began.elapsed());
    let by_http = session.clients.by_http();
    let survived = session.injected.iter().all(|injected| injected.survived);
    let Ended { verdict, troubles, folder } = world.end(survived && !options.keep).await?;
    let Session { injected, injector, .. } = session;
    Ok(Outcome { seed, injected, verdict, troubles, load_ms, by_http, bad: injector.asked, folder })
}

/// Runs the faults and prints what came of it. Whether all is well.
pub async fn command(options: Options) -> anyhow::Result<bool> {
    let json = options.json;
    let outcome = run(options).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        println!("{}", table::of(&outcome));
    }
    Ok(outcome.is_good())
}

fn kinds(options: &Options) -> anyhow::Result<Vec<Kind>> {
    let all = if options.cluster { Kind::all_of_clusters() } else { Kind::all() };
    let mut kinds = if options.only.is_empty() { all } else { options.only.clone() };
    let impossible = |kind: &&Kind| if options.cluster { kind.is_of_links() } else { kind.is_of_clusters() };
    if let Some(kind) = kinds.iter().find(impossible) {
        anyhow::bail!("{} can not happen {} --cluster", kind.name(), if options.cluster { "with" } else { "without" });
    }
    kinds.retain(|kind| !options.except.contains(kind));
    anyhow::ensure!(!kinds.is_empty(), "no kind of fault is left");
    Ok(kinds)
}

struct Session {
    injector: Injector,
    random: Random,
    gateways: Gateways,
    clients: Clients,
    injected: Vec<Injected>,
}

impl Session {
    async fn inject(
        &mut self,
        options: &Options,
        kinds: Vec<Kind>,
        world: &mut World,
        seed: u64,
    ) -> anyhow::Result<()> {
        self.until_accepted(WARM_UP).await;
        let end = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
        let schedule = Schedule::new(kinds, seed).take(options.count.unwrap_or(usize::MAX));
        for (number, kind) in schedule.enumerate() {
            if Instant::now() >= end {
                break;
            }
            // Faults meet the load at any moment.
            sleep(Duration::from_millis(self.random.within(100..600))).await;
            let injected =
                self.one(kind, world).await.with_context(|| format!("fault {}, {}", number + 1, kind.name()))?;
            eprintln!("{:>4}  {}", number + 1, table::line(&injected));
            let survived = injected.survived;
            self.injected.push(injected);
            if !survived {
                break;
            }
        }
        Ok(())
    }

    /// Injects a fault, watches until the system is back, takes the fault away, and waits until all is in order.
    async fn one(&mut self, kind: Kind, world: &mut World) -> anyhow::Result<Injected> {
        let fleet = &mut world.fleet;
        let open = self.clients.open();
        let from = now();
        let before = self.injector.asked;
        let strike = self.injector.strike(kind, fleet, open.first().copied(), &mut self.random);
        let strike = timeout(PATIENCE, strike).await.context("striking takes for ever")??;
        let under_way = self.clients.open();
        let at = strike.at;
        let client = fleet.client.clone();
        let healing = timeout(PATIENCE + PATIENCE, self.injector.heal(strike.heal, fleet));
        let recovery = timeout(PATIENCE, self.clients.probe());
        let leader = timeout(PATIENCE, successor(&client, &self.gateways, strike.led));
        let ended = timeout(PATIENCE, async {
            while !self.clients.open().is_disjoint(&under_way) {
                sleep(Duration::from_millis(20)).await;
            }
            Instant::now()
        });
        let (healed, recovered, led, ended) = tokio::join!(healing, recovery, leader, ended);
        healed.context("taking the fault away takes for ever")?.context("the fault can not be taken away")?;
        let recovered = match recovered {
            Ok(recovered) => Some(recovered?),
            Err(_) => None,
        };
        let (asked, answered) = (self.injector.asked.0 - before.0, self.injector.asked.1 - before.1);
        let answers = if asked > 0 { format!(", {answered} of {asked} answered") } else { String::new() };
        let since = |moment: Instant| ms(moment.saturating_duration_since(at));
        let mut injected = Injected {
            kind,
            what: strike.what + &answers,
            from,
            to: now(),
            recovery_ms: recovered.map(since),
            leader_ms: led.as_ref().ok().copied().flatten().map(since),
            under_way_ms: ended.as_ref().ok().copied().map(since),
            survived: recovered.is_some() && led.is_ok() && ended.is_ok(),
        };
        if !fleet.replaced_have_stopped().await {
            world.troubles.push(format!("{} goes on though another process has its id", injected.what));
            injected.survived = false;
        }
        if let Err(error) = fleet.whole().await {
            world.troubles.push(format!("after {}: {error:#}", kind.name()));
            injected.survived = false;
        }
        injected.to = now();
        Ok(injected)
    }

    async fn until_accepted(&self, runs: u64) {
        let mut last = (self.clients.accepted(), Instant::now());
        while self.clients.accepted() < runs && last.1.elapsed() < PATIENCE {
            sleep(Duration::from_millis(50)).await;
            let accepted = self.clients.accepted();
            if accepted != last.0 {
                last = (accepted, Instant::now());
            }
        }
    }
}

/// Waits for the first sign of a struck leader's successor: a commit in a newer term; of a gateway, an answer.
async fn successor(client: &Client, gateways: &Gateways, led: Option<(Service, u64)>) -> Option<Instant> {
    let (service, term) = led?;
    loop {
        let is_back = if service == Service::Gateway {
            answers(gateways).await
        } else {
            fleet::term(client, service).await.is_ok_and(|now| now > term)
        };
        if is_back {
            return Some(Instant::now());
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn answers(gateways: &Gateways) -> bool {
    let urls: Vec<_> = gateways.lock().unwrap_or_else(std::sync::PoisonError::into_inner).values().cloned().collect();
    for url in urls {
        // What a gateway can answer only when it is connected and a service leads.
        let asked = timeout(Duration::from_secs(1), reqwest::get(format!("{url}/v1/runs?limit=1"))).await;
        if matches!(asked, Ok(Ok(answer)) if answer.status().is_success()) {
            return true;
        }
    }
    false
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How many findings of that class belong to each fault: to the first one that was not over then, or to the last one.
#[must_use]
pub fn blamed(outcome: &Outcome, class: Class) -> BTreeMap<Kind, usize> {
    let mut blamed = BTreeMap::new();
    for finding in outcome.verdict.findings.iter().filter(|finding| finding.rule.class() == class) {
        let fault = outcome.injected.iter().find(|injected| injected.to >= finding.at).or(outcome.injected.last());
        if let Some(fault) = fault {
            *blamed.entry(fault.kind).or_default() += 1;
        }
    }
    blamed
}
