//! Requests to language models: many short tasks that differ in how much memory they hold, a slot and the tokens of their
//! context each, all there at once. How full do agents get that have so many slots and so much memory?

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};

use baton_optimizer::Config;
use baton_protocol::definition::Definition;
use baton_protocol::record::{
    AgentRegistered, Outcome, ResourceRecord, RunFinished, RunStarted, StageEnded, StageReady, WorkflowRecord,
    WorkflowRegistered,
};
use baton_protocol::request::{Strategy, Usage};
use baton_protocol::run::RunStatus;
use baton_protocol::{
    AgentId, Amount, Capability, Code, Json, LeaseId, Millis, Money, Requirements, ResourceName, Resources, RunId,
    TaskId,
};
use serde::{Deserialize, Serialize};

use crate::draws::{normal, uniform};
use crate::driver::Driver;
use crate::names;
use crate::who::strategies;

/// Requests that hold more tokens are left out: the smallest agent could not take them.
const MOST_TOKENS: u64 = 32_000;
/// How many requests are a run.
const RUN: usize = 100;
/// How many requests that wait a policy may choose from.
const WINDOW: usize = 128;
/// Fullness is measured until so much is done; then the agents run empty.
const MEASURED: f64 = 0.9;
/// What a stage says that it needs is a whole number of blocks of so many tokens: engines page the memory of contexts, and the
/// optimizer is faster the fewer different needs there are.
const BLOCK: u64 = 64;
/// So often the optimizer is woken up while nothing else happens.
const MAX_WAKES: u32 = 10_000;

/// A request to a language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// How many tokens it brings.
    pub context: u64,
    /// How many it is answered with.
    pub generated: u64,
}

impl Request {
    /// How many tokens an agent of speed 1 holds for it.
    #[must_use]
    pub fn tokens(self) -> u64 {
        self.context + self.generated
    }

    /// How long an agent of speed 1 takes, in seconds.
    #[must_use]
    pub fn seconds(self) -> f64 {
        0.2 + self.context as f64 / 8000.0 + 0.02 * self.generated as f64
    }

    fn fits(self) -> bool {
        self.tokens() <= MOST_TOKENS && self.generated > 0
    }
}

/// What is wrong with a trace of requests.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file can not be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{}, line {line}: {what}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

/// Reads requests: from `.jsonl`, objects with `input_length` and `output_length` (as Mooncake's traces are); from anything
/// else, comma-separated values with columns `ContextTokens` and `GeneratedTokens` (as Azure's traces are). What no agent could
/// take is left out.
pub fn open(path: &Path) -> Result<Vec<Request>, TraceError> {
    let text = std::fs::read_to_string(path).map_err(|error| TraceError::Io { path: path.to_owned(), error })?;
    let read = if path.extension().is_some_and(|extension| extension == "jsonl") { read_objects } else { read_columns };
    let requests = read(&text).map_err(|(line, what)| TraceError::Line { path: path.to_owned(), line, what })?;
    Ok(requests.into_iter().filter(|request| request.fits()).collect())
}

fn read_objects(text: &str) -> Result<Vec<Request>, (usize, String)> {
    #[derive(Deserialize)]
    struct Line {
        input_length: u64,
        output_length: u64,
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            let Line { input_length, output_length } =
                serde_json::from_str(line).map_err(|error| (at + 1, error.to_string()))?;
            Ok(Request { context: input_length, generated: output_length })
        })
        .collect()
}

fn read_columns(text: &str) -> Result<Vec<Request>, (usize, String)> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let titles: Vec<&str> = lines.next().map(|(_, line)| line.split(',').map(str::trim).collect()).unwrap_or_default();
    let column = |title: &str| {
        let place = titles.iter().position(|found| *found == title);
        place.ok_or_else(|| (1, format!("there is no column {title}; the columns are: {}", titles.join(", "))))
    };
    let (context, generated) = (column("ContextTokens")?, column("GeneratedTokens")?);
    lines
        .map(|(at, line)| {
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            let number = |place: usize| {
                let field = fields.get(place).copied().unwrap_or_default();
                field.parse().map_err(|_| (at + 1, format!("{}: {field:?} is no number of tokens", titles[place])))
            };
            Ok(Request { context: number(context)?, generated: number(generated)? })
        })
        .collect()
}

/// Requests that are made up: log-normal contexts of about 1,300 tokens, answers of about 120.
#[must_use]
pub fn generate(count: usize, seed: u64) -> Vec<Request> {
    let request = |nth: u64| Request {
        context: (7.2 + 1.1 * normal(&[seed, 81, nth])).exp() as u64,
        generated: 1 + (4.8 + normal(&[seed, 82, nth])).exp() as u64,
    };
    (0..).map(request).filter(|request| request.fits()).take(count).collect()
}

/// Who places requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packer {
    /// Each is given to an agent at once, by lot.
    Random,
    /// At once, in turns.
    RoundRobin,
    /// At once, to the agent that has the fewest for its slots.
    LeastOutstanding,
    /// An agent takes the first that it has room for.
    SharedQueue,
    /// An agent takes the one that needs most of what it has most of (Grandl and others: Multi-Resource Packing for Cluster
    /// Schedulers, 2014).
    Alignment,
    /// The optimizer, under a strategy.
    Strategy(Strategy),
}

impl Packer {
    /// All of them.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let alone = [Self::Random, Self::RoundRobin, Self::LeastOutstanding, Self::SharedQueue, Self::Alignment];
        alone.into_iter().chain(strategies().into_iter().map(Self::Strategy)).collect()
    }
}

impl fmt::Display for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Random => "random push",
            Self::RoundRobin => "round robin push",
            Self::LeastOutstanding => "least outstanding push",
            Self::SharedQueue => "shared queue",
            Self::Alignment => "alignment",
            Self::Strategy(strategy) => strategy.as_str(),
        })
    }
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What requests are drawn from.
    pub requests: Vec<Request>,
    /// How many are drawn.
    pub count: usize,
    /// How many agents there are.
    pub agents: Vec<usize>,
    /// What all is drawn from.
    pub seeds: Vec<u64>,
    /// Who places.
    pub who: Vec<Packer>,
}

/// A backlog on one fleet under one policy. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    /// How many requests.
    pub requests: usize,
    /// How many agents.
    pub agents: usize,
    /// What all was drawn from.
    pub seed: u64,
    /// Who placed.
    pub policy: String,
    /// When the last was done.
    pub makespan: f64,
    /// When they were done, on average.
    pub completion: f64,
    /// When 95 % were done.
    pub completion_p95: f64,
    /// Which part of the slots was in use, until nine tenths were done.
    pub slots: f64,
    /// Which part of the memory.
    pub memory: f64,
    /// The greater of the two: what there is most use of.
    pub dominant: f64,
}

/// An agent's size and speed.
#[derive(Debug, Clone, Copy)]
struct Host {
    slots: usize,
    tokens: u64,
    speed: f64,
}

/// Measures; tells each measurement as it is made.
#[must_use]
pub fn run(plan: &Plan, mut tell: impl FnMut(&Measurement)) -> Vec<Measurement> {
    let mut all = Vec::new();
    for &agents in &plan.agents {
        for &seed in &plan.seeds {
            let pick = |nth: usize| {
                let drawn = uniform(&[seed, 1, nth as u64]) * plan.requests.len() as f64;
                plan.requests[drawn as usize]
            };
            let requests: Vec<Request> = (0..plan.count).map(pick).collect();
            let host = |agent: usize| {
                let draw = |what: u64| uniform(&[seed, what, agent as u64]);
                Host {
                    slots: [8, 16, 32][(draw(2) * 3.0) as usize],
                    tokens: [32_000, 64_000, 128_000][(draw(3) * 3.0) as usize],
                    speed: 0.5 * 4f64.powf(draw(4)),
                }
            };
            let hosts: Vec<Host> = (0..agents).map(host).collect();
            for &who in &plan.who {
                let mut backlog = Backlog::new(&requests, &hosts);
                match who {
                    Packer::Strategy(strategy) => Baton::new(strategy, &requests, &hosts).work_off(&mut backlog),
                    _ => Alone::new(who, seed, &requests, &hosts).work_off(&mut backlog),
                }
                let measurement = backlog.measurement(seed, who);
                tell(&measurement);
                all.push(measurement);
            }
        }
    }
    all
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct End {
    at: f64,
    request: usize,
    agent: usize,
}

impl Eq for End {}

impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for End {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then(self.request.cmp(&other.request))
    }
}

/// What is under way, and how full the agents are.
#[derive(Debug)]
struct Backlog<'a> {
    requests: &'a [Request],
    hosts: &'a [Host],
    now: f64,
    /// What is free of each agent.
    slots: Vec<usize>,
    tokens: Vec<u64>,
    ends: BinaryHeap<Reverse<End>>,
    done: Vec<f64>,
    ended: usize,
    /// When enough was done to stop measuring fullness.
    measured: Option<f64>,
    /// The parts in use, times how long.
    used_slots: f64,
    used_tokens: f64,
}

impl<'a> Backlog<'a> {
    fn new(requests: &'a [Request], hosts: &'a [Host]) -> Self {
        Self {
            requests,
            hosts,
            now: 0.0,
            slots: hosts.iter().map(|host| host.slots).collect(),
            tokens: hosts.iter().map(|host| host.tokens).collect(),
            ends: BinaryHeap::new(),
            done: vec![0.0; requests.len()],
            ended: 0,
            measured: None,
            used_slots: 0.0,
            used_tokens: 0.0,
        }
    }

    fn has_room(&self, agent: usize, request: usize) -> bool {
        self.slots[agent] > 0 && self.tokens[agent] >= self.requests[request].tokens()
    }

    fn begin(&mut self, agent: usize, request: usize) -> f64 {
        let seconds = self.requests[request].seconds() / self.hosts[agent].speed;
        self.slots[agent] -= 1;
        self.tokens[agent] -= self.requests[request].tokens();
        self.ends.push(Reverse(End { at: self.now + seconds, request, agent }));
        seconds
    }

    /// The next end, and what it frees.
    fn end(&mut self) -> Option<End> {
        let Reverse(end) = self.ends.pop()?;
        if self.measured.is_none() {
            let part = |free: &mut dyn Iterator<Item = f64>, all: f64| 1.0 - free.sum::<f64>() / all;
            let slots = self.hosts.iter().map(|host| host.slots as f64).sum();
            let tokens = self.hosts.iter().map(|host| host.tokens as f64).sum();
            let passed = end.at - self.now;
            self.used_slots += passed * part(&mut self.slots.iter().map(|free| *free as f64), slots);
            self.used_tokens += passed * part(&mut self.tokens.iter().map(|free| *free as f64), tokens);
        }
        self.now = end.at;
        self.done[end.request] = end.at;
        self.ended += 1;
        if self.ended as f64 >= MEASURED * self.requests.len() as f64 {
            self.measured.get_or_insert(end.at);
        }
        self.slots[end.agent] += 1;
        self.tokens[end.agent] += self.requests[end.request].tokens();
        Some(end)
    }

    fn measurement(mut self, seed: u64, who: Packer) -> Measurement {
        assert_eq!(self.ended, self.requests.len(), "{who} left requests undone");
        self.done.sort_by(f64::total_cmp);
        let span = self.measured.unwrap_or(self.now);
        let (slots, memory) = (self.used_slots / span, self.used_tokens / span);
        Measurement {
            requests: self.requests.len(),
            agents: self.hosts.len(),
            seed,
            policy: who.to_string(),
            makespan: self.now,
            completion: self.done.iter().sum::<f64>() / self.done.len() as f64,
            completion_p95: self.done[(0.95 * self.done.len() as f64) as usize],
            slots,
            memory,
            dominant: slots.max(memory),
        }
    }
}

/// A policy outside of the optimizer.
#[derive(Debug)]
struct Alone {
    who: Packer,
    /// What was given to each agent, where it is given at once.
    given: Vec<VecDeque<usize>>,
    /// What waits for all.
    waiting: Vec<usize>,
}

impl Alone {
    fn new(who: Packer, seed: u64, requests: &[Request], hosts: &[Host]) -> Self {
        let mut given = vec![VecDeque::new(); hosts.len()];
        let agents = hosts.len();
        let mut waiting = Vec::new();
        for request in 0..requests.len() {
            let agent = match who {
                Packer::Random => (uniform(&[seed, 9, request as u64]) * agents as f64) as usize,
                Packer::RoundRobin => request % agents,
                Packer::LeastOutstanding => {
                    let share = |agent: usize| given[agent].len() as f64 / hosts[agent].slots as f64;
                    let turned = |agent: usize| (agent + request) % agents;
                    let order =
                        |a: &usize, b: &usize| share(*a).total_cmp(&share(*b)).then(turned(*a).cmp(&turned(*b)));
                    (0..agents).min_by(order).unwrap_or(0)
                }
                Packer::SharedQueue | Packer::Alignment | Packer::Strategy(_) => {
                    waiting.push(request);
                    continue;
                }
            };
            given[agent].push_back(request);
        }
        Self { who, given, waiting }
    }

    fn work_off(mut self, backlog: &mut Backlog<'_>) {
        let mut fastest: Vec<usize> = (0..backlog.hosts.len()).collect();
        fastest.sort_by(|a, b| backlog.hosts[*b].speed.total_cmp(&backlog.hosts[*a].speed));
        fastest.into_iter().for_each(|agent| self.fill(backlog, agent));
        while let Some(End { agent, .. }) = backlog.end() {
            self.fill(backlog, agent);
        }
    }

    fn fill(&mut self, backlog: &mut Backlog<'_>, agent: usize) {
        while let Some(&request) = self.given[agent].front().filter(|&&request| backlog.has_room(agent, request)) {
            self.given[agent].pop_front();
            backlog.begin(agent, request);
        }
        while let Some(place) = self.choose(backlog, agent) {
            let request = self.waiting.remove(place);
            backlog.begin(agent, request);
        }
    }

    fn choose(&self, backlog: &Backlog<'_>, agent: usize) -> Option<usize> {
        let window = &self.waiting[..self.waiting.len().min(WINDOW)];
        let mut fit = window.iter().enumerate().filter(|(_, request)| backlog.has_room(agent, **request));
        if self.who != Packer::Alignment {
            return fit.next().map(|(place, _)| place);
        }
        let Host { slots, tokens, .. } = backlog.hosts[agent];
        let free_slots = backlog.slots[agent] as f64 / slots as f64;
        let free_tokens = backlog.tokens[agent] as f64 / tokens as f64;
        let aligned = |request: usize| {
            free_slots / slots as f64 + backlog.requests[request].tokens() as f64 / tokens as f64 * free_tokens
        };
        let mut best: Option<(f64, usize)> = None;
        for (place, request) in fit {
            let score = aligned(*request);
            if best.is_none_or(|(most, _)| score > most) {
                best = Some((score, place));
            }
        }
        best.map(|(_, place)| place)
    }
}

/// The optimizer. A hundred requests each are a run of stages that wait for nothing.
struct Baton {
    driver: Driver,
    runs: Vec<RunId>,
    run_of: BTreeMap<RunId, usize>,
    /// Under which lease each request is done, and how long it takes.
    leases: Vec<(LeaseId, f64)>,
    begun: Vec<bool>,
    /// How many requests of each run are not done.
    left: Vec<usize>,
}

/// What an agent sets aside for a request.
fn need(request: Request) -> Resources {
    resources(request.tokens().next_multiple_of(BLOCK))
}

fn resources(tokens: u64) -> Resources {
    let amount = Amount::from(u32::try_from(tokens).unwrap_or(u32::MAX));
    [(ResourceName::new("tokens").expect("it is a name"), amount)].into()
}

fn model() -> Capability {
    Capability::new("model").expect("it is a name")
}

impl Baton {
    fn new(strategy: Strategy, requests: &[Request], hosts: &[Host]) -> Self {
        let agent = |(place, host): (usize, &Host)| {
            ResourceRecord::AgentRegistered(AgentRegistered {
                agent: names::agent(place),
                session: "s".into(),
                agent_type: model(),
                capabilities: BTreeMap::new(),
                resources: resources(host.tokens),
                slots: u32::try_from(host.slots).unwrap_or(u32::MAX),
                priority: 0,
                batches: false,
            })
        };
        let mut driver = Driver::new(strategy, Config::default(), hosts.iter().enumerate().map(agent).collect());
        let runs = driver.runs(requests.len().div_ceil(RUN));
        Self {
            run_of: runs.iter().enumerate().map(|(place, run)| (*run, place)).collect(),
            left: requests.chunks(RUN).map(<[Request]>::len).collect(),
            leases: vec![(LeaseId(0), 0.0); requests.len()],
            begun: vec![false; requests.len()],
            runs,
            driver,
        }
    }

    fn id(&self, request: usize) -> TaskId {
        TaskId { run: self.runs[request / RUN], stage: names::stage(request % RUN), item: None, attempt: 1 }
    }

    /// All runs start.
    fn started(&self, requests: &[Request]) -> Vec<WorkflowRecord> {
        let mut records = Vec::new();
        for (place, chunk) in requests.chunks(RUN).enumerate() {
            let mut builder = Definition::builder(&format!("requests-{place}"));
            for (stage, request) in chunk.iter().enumerate() {
                builder = builder
                    .add_stage(names::stage(stage).as_str(), model().as_str(), &[])
                    .with(|stage| stage.resources = need(*request));
            }
            let definition = builder.build().expect("stages that wait for nothing have no cycle");
            let workflow = definition.name.clone();
            let registered = WorkflowRegistered { version: 1, definition: definition.into() };
            records.push(WorkflowRecord::WorkflowRegistered(registered));
            records.push(WorkflowRecord::RunStarted(RunStarted {
                run: self.runs[place],
                workflow,
                version: 1,
                input: Json::null(),
                priority: 0,
                key: None,
                trace: None,
                strategy: None,
                due: None,
                budget: None,
                metadata: Default::default(),
                rerun: None,
                parent: None,
                no_cache: false,
            }));
            records.extend(chunk.iter().enumerate().map(|(stage, request)| {
                WorkflowRecord::StageReady(StageReady {
                    task: self.id(place * RUN + stage),
                    agent_type: model(),
                    requires: Requirements::none(),
                    inputs: Vec::new(),
                    input: None,
                    cache: None,
                    hedge: false,
                    speculative: false,
                    resources: need(*request),
                    priority: 0,
                })
            }));
        }
        records
    }

    fn ended(&mut self, end: End) -> Vec<WorkflowRecord> {
        let (lease, seconds) = self.leases[end.request];
        let mut records = vec![WorkflowRecord::StageEnded(StageEnded {
            task: self.id(end.request),
            lease: Some(lease),
            agent: Some(names::agent(end.agent)),
            outcome: Outcome::Succeeded,
            result: None,
            error: None,
            hopeless: false,
            code: None,
            retry_at: None,
            duration_ms: (seconds * 1000.0).round() as Millis,
            cost: Money::ZERO,
            usage: Usage::default(),
            model: None,
            delegated: None,
            speculative: false,
            other: None,
        })];
        let place = end.request / RUN;
        self.left[place] -= 1;
        if self.left[place] == 0 {
            let (run, status) = (self.runs[place], RunStatus::Succeeded);
            records.push(WorkflowRecord::RunFinished(RunFinished { run, status, reason: None }));
        }
        records
    }

    fn work_off(mut self, backlog: &mut Backlog<'_>) {
        let mut records = self.started(backlog.requests);
        let (mut wake, mut woken) = (None, 0);
        loop {
            let Self { driver, run_of, leases, begun, .. } = &mut self;
            let mut grant = |lease: LeaseId, task: &TaskId, agent: &AgentId, _: Option<LeaseId>| {
                let of_run = run_of.get(&task.run).ok_or((Code::UnknownRun, "there is no such run"))?;
                let stage = names::place_of_stage(&task.stage).ok_or((Code::NotReady, "there is no such stage"))?;
                let request = of_run * RUN + stage;
                let agent = names::place_of_agent(agent).filter(|agent| *agent < backlog.hosts.len());
                let agent = agent.ok_or((Code::UnknownAgent, "there is no such agent"))?;
                if begun.get(request).is_none_or(|begun| *begun) {
                    return Err((Code::NotReady, "the request does not wait"));
                }
                if !backlog.has_room(agent, request) {
                    return Err((Code::NoCapacity, "the agent has no room for it"));
                }
                begun[request] = true;
                leases[request] = (lease, backlog.begin(agent, request));
                Ok(need(backlog.requests[request]))
            };
            match wake.take() {
                Some(at) => driver.wake(at, &mut grant),
                None => driver.tell(std::mem::take(&mut records), &mut grant),
            }
            let next = backlog.ends.peek().map(|Reverse(end)| end.at);
            wake = self.driver.wakes().filter(|at| next.is_none_or(|next| *at < next) && woken < MAX_WAKES);
            if wake.is_some() {
                woken += 1;
                continue;
            }
            let Some(end) = backlog.end() else { return };
            woken = 0;
            self.driver.at(backlog.now);
            records = self.ended(end);
        }
    }
}
