//! One history: the instances, the broker, the agents and the clients, turned by virtual time.
//!
//! | file | who |
//! |---|---|
//! | `world.rs` | the queue of events, messages on core NATS, faults, the calm |
//! | `world/nodes.rs` | instances of the services, as the shell's sessions turn them |
//! | `world/agents.rs` | agents, as the SDK's keeper keeps their word |
//! | `world/leases.rs` | who acquires something of pools |
//! | `world/clients.rs` | clients, and what they were told |

mod agents;
mod clients;
mod leases;
mod nodes;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;

use baton_machine::{Outgoing, Reply};
use baton_protocol::id::mix;
use baton_protocol::request::{Assignment, CancelTask, HandoffAnswer, HandoffOffer, RestartAgent};
use baton_protocol::{Code, Json, LeaseId, Millis, RunId, Service};

use baton_resource_manager::{AlertConfig, BreakerConfig};

use crate::check::{Asked, Checked, Facts, Violation, broken};
use crate::coverage::{Branch, Coverage, Fault};
use crate::draws::Draws;
use crate::engine::{Configs, Engine, State, engine};
use crate::log::{Entry, Log};
use crate::request::AnyRequest;
use crate::workload::{TENANTS, Workload};
use agents::Process;
use clients::Clients;
use leases::{Deed, Leaser};
use nodes::Node;

/// Virtual microseconds.
pub(crate) type Micros = u64;

/// When virtual time begins, in milliseconds since 1970.
const EPOCH: Millis = 1_790_000_000_000;

/// How long a question waits for its answer.
const ASK_TIMEOUT: Micros = 2_000_000;

/// How long after a question that was not answered it is asked again.
const ASK_AGAIN: Micros = 250_000;

/// How long the calm may take at the most: whoever is refused comes when the others are done, and a run may take a minute.
const PATIENCE: Micros = 900_000_000;

/// How long the calm takes at the least: what was held up must have come.
const CALM: Micros = 6_000_000;

/// How long into the calm schedules start runs.
const SCHEDULES: Micros = 20_000_000;

/// How much of the memory is taken, in per cent, unless anything else is said.
const MEMORY: u32 = 10;

const SERVICES: [Service; 3] = Service::WRITERS;

/// What happens at a time.
#[derive(Debug)]
enum Event {
    /// An instance opens a session.
    Open(usize, u64),
    /// An instance reads on in the log.
    Tail(usize, u64),
    /// An instance looks at who tries to lead.
    Campaign(usize, u64),
    /// An instance that won looks where the log ends.
    Won(usize, u64),
    /// Something sent reaches the broker.
    Store(Box<Store>),
    /// Its acknowledgement reaches the instance: the sequence, or none if the fence refused it.
    Landed(usize, u64, u64, Option<u64>),
    /// The acknowledgement has not come in time.
    GiveUp(usize, u64, u64),
    /// An instance's deadline.
    Tick(usize, u64),
    /// A request is sent again.
    Send(u64),
    /// A request reaches the broker.
    Deliver(u64, Rc<Asked>),
    /// A request reaches an instance.
    DeliverTo(usize, u64, u64, Rc<Asked>),
    /// An answer, or none, reaches who asked.
    Answer(u64, u32, Option<Rc<Reply>>),
    /// A document reaches its bucket.
    Keep(usize, u64, String, Json),
    /// A message reaches an agent.
    ToAgent(usize, Rc<Told>),
    /// A message reaches an agent's process.
    ToProcess(usize, Rc<Told>),
    /// An agent's process does something.
    Process(usize, Doing),
    /// Somebody does something about an acquisition.
    Lease(usize, Deed),
    /// A client wants something.
    Wish(usize),
    /// A fault may come.
    Fault,
    /// The services take so much of the memory from now on.
    Memory(u32),
    /// Faults end.
    Calm,
    /// Somebody looks whether all has come to rest.
    Watch,
}

/// Something sent to the broker.
#[derive(Debug)]
struct Store {
    node: usize,
    session: u64,
    flight: u64,
    outgoing: Outgoing,
    state: Option<Opaque>,
    /// Whether the acknowledgement gets lost.
    silent: bool,
}

/// A machine's state, which has no text.
struct Opaque(State);

impl std::fmt::Debug for Opaque {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

/// What an agent is told.
#[derive(Debug)]
pub(crate) enum Told {
    Assign(Vec<Assignment>),
    Cancel(CancelTask),
    Offer(HandoffOffer),
    Handed(HandoffAnswer),
    Restart(RestartAgent),
}

/// What an agent's process does.
#[derive(Debug, Clone)]
pub(crate) enum Doing {
    /// It registers.
    Up,
    /// It sends a heartbeat.
    Beat,
    /// It has done what it holds a lease for.
    Done(LeaseId),
    /// It reports all that it has done lately.
    Report,
    /// It tells how far it is with what it holds.
    Tell(LeaseId),
    /// It offers what it holds to another agent.
    Offer(LeaseId),
    /// It answers an offer.
    Acknowledge(baton_protocol::Number, bool),
    /// It says something again, or something that makes no sense.
    Stray(Box<baton_protocol::request::Report>),
    /// It goes.
    Leave,
    /// It is started again.
    Again,
}

#[derive(Debug)]
struct Scheduled {
    at: Micros,
    order: u64,
    event: Event,
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest first.
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scheduled {}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asker {
    /// An instance, in a session, under a tag.
    Node(usize, u64, u64),
    /// An agent's process.
    Process(usize, Purpose),
    /// A client.
    Client(clients::Wanted),
    /// Somebody who acquires something.
    Leaser(usize, Deed),
}

/// What an agent asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    Register,
    Heartbeat,
    Report(LeaseId),
    Reports(Vec<LeaseId>),
    Acknowledge,
    Other,
}

/// A request that is not answered yet.
#[derive(Debug)]
struct Pending {
    asker: Asker,
    asked: Rc<Asked>,
    attempt: u32,
    /// It is asked again until it is answered.
    until_answered: bool,
}

/// How rough a history is.
#[derive(Debug)]
struct Weather {
    /// Messages lost, in a thousand.
    loss: u32,
    /// Messages that come twice, in a thousand.
    twice: u32,
    /// Messages that are held up, in a thousand.
    late: u32,
    /// Commits with a fate of their own, in a thousand.
    commits: u32,
    /// What agents do wrong, in a thousand of each kind.
    agents: u32,
    /// The mean time between two greater faults.
    every: Micros,
}

/// How a history went.
#[derive(Debug)]
pub struct Outcome {
    /// The rule that was broken, if one was.
    pub violation: Option<Violation>,
    /// What happened.
    pub coverage: Coverage,
    /// A hash of everything that happened, in order.
    pub digest: u64,
    /// The draws that were taken.
    pub tape: Vec<u32>,
    /// The history as text, if it was asked for.
    pub transcript: String,
}

pub(crate) struct World {
    draws: Draws,
    now: Micros,
    order: u64,
    queue: BinaryHeap<Scheduled>,
    configs: Configs,
    workload: Workload,
    weather: Weather,
    burst_until: Micros,
    calm_at: Micros,
    calm: bool,
    /// How much of the memory the services take, in per cent.
    memory: u32,
    log: Log,
    entries: BTreeMap<Service, Entry>,
    snapshots: BTreeMap<Service, Vec<u8>>,
    documents: BTreeMap<RunId, baton_protocol::run::RunStatus>,
    keeping: u64,
    nodes: Vec<Node>,
    shadows: Vec<Box<dyn Engine>>,
    processes: Vec<Process>,
    clients: Clients,
    leasers: Vec<Leaser>,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    facts: Facts,
    coverage: Coverage,
    digest: u64,
    story: Option<Vec<(Micros, String)>>,
}

/// How long a run is known after its end, in milliseconds.
const KNOWN_MS: Millis = 3000;

impl World {
    pub(crate) fn new(mut draws: Draws, with_story: bool) -> Self {
        let calm_at = 1_000_000 * draws.between(6, 14);
        let rough = draws.below(4);
        let weather = Weather {
            loss: [0, 10, 30, 80][rough as usize],
            twice: [0, 10, 30, 60][rough as usize],
            late: [0, 20, 60, 150][rough as usize],
            commits: [0, 20, 60, 120][draws.below(4) as usize],
            agents: [0, 20, 60, 120][draws.below(4) as usize],
            every: [4_000_000, 2_000_000, 1_000_000, 500_000][draws.below(4) as usize],
        };
        // In some histories there is room for few runs, and the others are refused until one of them ends.
        let max_live_runs = *draws.pick(&[100, 100, 100, 2]);
        let keep_ended = *draws.pick(&[100, 100, 100, 1]);
        let keep_ended_ms = *draws.pick(&[0, 0, 0, 5_000]);
        let max_parts = *draws.pick(&[20_000, 20_000, 5]);
        let workload = Workload::draw(&mut draws, calm_at * 9 / 10);
        let configs = Configs {
            workflow: baton_workflow_manager::Config {
                max_live_runs,
                keep_ended,
                keep_ended_ms,
                known_ms: KNOWN_MS,
                max_parts,
            },
            resource: baton_resource_manager::Config {
                lease_ms: 2000,
                heartbeat_ms: 600,
                breakers: BreakerConfig {
                    window: 6,
                    min_tasks: 2,
                    open_ms: 400,
                    max_open_ms: 1500,
                    restart_after: 2,
                    ..BreakerConfig::default()
                },
                pools: workload
                    .pools
                    .iter()
                    .filter(|pool| pool.declared)
                    .map(|p| (p.name.clone(), p.pool.clone()))
                    .collect(),
                alerts: AlertConfig { queue_depth: 5, run_failed: true, pools: true, pool_used_ms: 500 },
                pressure: workload.pressure.clone(),
            },
            optimizer: baton_optimizer::Config {
                ageing_ms: 5000,
                // Drawn from what is drawn already, so that histories stay what they were.
                learning_rate: if max_live_runs < 100 { 250_000 } else { 100_000 },
                tenants: TENANTS.iter().map(|(tenant, _, weight)| ((*tenant).to_owned(), *weight)).collect(),
                ..baton_optimizer::Config::default()
            },
            commit_bytes: *draws.pick(&[128 * 1024, 3000, 600]),
            snapshot_every: *draws.pick(&[0, 5, 20]),
            prove_by_commit: draws.chance(250),
        };
        let resource = configs.resource.clone();
        let mut facts = Facts::new(max_live_runs, resource.breakers, resource.alerts, resource.pressure)
            .keeping(keep_ended, keep_ended_ms, KNOWN_MS)
            .with_parts(max_parts);
        facts.memory_taken(MEMORY);
        let shadows = SERVICES.map(|service| engine(service, &configs, None).expect("a fresh one")).into();
        let mut world = Self {
            draws,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            configs,
            workload,
            weather,
            burst_until: 0,
            calm_at,
            calm: false,
            memory: MEMORY,
            log: Log::default(),
            entries: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            documents: BTreeMap::new(),
            keeping: 0,
            nodes: Vec::new(),
            shadows,
            processes: Vec::new(),
            clients: Clients::default(),
            leasers: Vec::new(),
            pending: BTreeMap::new(),
            next_id: 0,
            facts,
            coverage: Coverage::default(),
            digest: 0,
            story: with_story.then(Vec::new),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for node in 0..2 * SERVICES.len() {
            self.nodes.push(Node::new(SERVICES[node / 2], node));
            // The second instance of each comes a little later, so that the first leads in the dullest of histories.
            self.at(if node % 2 == 0 { 0 } else { 400_000 }, Event::Open(node, 0));
        }
        for who in 0..self.workload.agents.len() {
            self.start_process(who, 5_000);
        }
        for wish in 0..self.workload.wishes.len() {
            let at = self.workload.wishes[wish].0;
            self.at(at, Event::Wish(wish));
        }
        for (at, percent) in self.workload.memory.clone() {
            self.at(at, Event::Memory(percent));
        }
        self.after(self.weather.every, Event::Fault);
        self.at(self.calm_at, Event::Calm);
    }

    /// Turns until everything has come to rest, or a rule is broken.
    pub(crate) fn run(mut self) -> Outcome {
        let violation = self.turn().err();
        self.coverage.virtual_ms = self.now / 1000;
        self.coverage.commits = self.log.end();
        let transcript = self.story.as_ref().map(|story| crate::transcript::text(&self.log, story)).unwrap_or_default();
        Outcome { violation, coverage: self.coverage, digest: self.digest, tape: self.draws.into_tape(), transcript }
    }

    fn turn(&mut self) -> Checked {
        while let Some(Scheduled { at, event, .. }) = self.queue.pop() {
            self.now = at;
            self.coverage.events += 1;
            self.digest = mix(self.digest ^ at);
            if matches!(event, Event::Watch) && self.watch()? {
                return self.rest();
            }
            self.happens(event)?;
            for branch in std::mem::take(&mut self.facts.seen) {
                self.coverage.branch(branch);
            }
        }
        Ok(())
    }

    fn happens(&mut self, event: Event) -> Checked {
        match event {
            Event::Open(node, session) => self.open(node, session),
            Event::Tail(node, session) => self.tail(node, session),
            Event::Campaign(node, session) => self.campaign(node, session),
            Event::Won(node, session) => self.won(node, session),
            Event::Store(store) => self.store(*store),
            Event::Landed(node, session, flight, outcome) => self.landed(node, session, flight, outcome),
            Event::GiveUp(node, session, flight) => self.give_up(node, session, flight),
            Event::Tick(node, session) => self.tick(node, session),
            Event::Send(id) => {
                self.send(id);
                Ok(())
            }
            Event::Deliver(id, asked) => {
                self.deliver(id, &asked);
                Ok(())
            }
            Event::DeliverTo(node, session, id, asked) => self.deliver_to(node, session, id, &asked),
            Event::Answer(id, attempt, reply) => self.answer(id, attempt, reply),
            Event::Keep(node, session, key, body) => self.keep(node, session, &key, &body),
            Event::ToAgent(who, told) => {
                for process in 0..self.processes.len() {
                    if self.processes[process].who == who && self.processes[process].alive {
                        self.after(0, Event::ToProcess(process, Rc::clone(&told)));
                    }
                }
                Ok(())
            }
            Event::ToProcess(process, told) => {
                self.told(process, &told);
                Ok(())
            }
            Event::Process(process, doing) => {
                self.does(process, doing);
                Ok(())
            }
            Event::Lease(leaser, deed) => {
                self.lease_deed(leaser, deed);
                Ok(())
            }
            Event::Wish(wish) => {
                self.wish(wish);
                Ok(())
            }
            Event::Fault => {
                self.fault();
                Ok(())
            }
            Event::Memory(percent) => {
                self.take_memory(percent);
                Ok(())
            }
            Event::Calm => {
                self.begin_calm();
                Ok(())
            }
            Event::Watch => Ok(()),
        }
    }

    fn at(&mut self, at: Micros, event: Event) {
        self.order += 1;
        self.queue.push(Scheduled { at: at.max(self.now), order: self.order, event });
    }

    fn after(&mut self, wait: Micros, event: Event) {
        self.at(self.now + wait, event);
    }

    /// Notes what happened, where somebody wants to read it.
    fn tell(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.story.is_some() {
            let line = (self.now, what(self));
            if let Some(story) = &mut self.story {
                story.push(line);
            }
        }
    }

    fn fault_of(&mut self, fault: Fault, what: impl FnOnce(&Self) -> String) {
        self.coverage.fault(fault);
        self.tell(what);
    }

    // The network.

    /// How long a message takes, or nothing if it is lost.
    fn passage(&mut self) -> Option<Micros> {
        if self.calm {
            return Some(200);
        }
        let fate = self.draws.below(1000);
        let loss = if self.now < self.burst_until { 600 } else { self.weather.loss };
        if fate >= 1000 - loss {
            self.coverage.fault(Fault::MessageLost);
            return None;
        }
        if fate >= 1000 - (loss + self.weather.late).min(1000) {
            self.coverage.fault(Fault::MessageDelayed);
            return Some(self.draws.between(5_000, 2_500_000));
        }
        Some(200 + u64::from(fate))
    }

    /// When the copies of a message arrive.
    fn passages(&mut self) -> [Option<Micros>; 2] {
        let first = self.passage();
        let twice = !self.calm && self.draws.chance(self.weather.twice);
        if twice {
            self.coverage.fault(Fault::MessageDuplicated);
        }
        [first, if twice { self.passage() } else { None }]
    }

    fn ask(&mut self, asker: Asker, request: AnyRequest, until_answered: bool) {
        self.next_id += 1;
        let id = self.next_id;
        let asked = Rc::new(Asked { request, sent: self.log.end() });
        self.pending.insert(id, Pending { asker, asked, attempt: 0, until_answered });
        self.send(id);
    }

    fn send(&mut self, id: u64) {
        let Some(pending) = self.pending.get(&id) else { return };
        let (asked, attempt) = (Rc::clone(&pending.asked), pending.attempt);
        for passage in self.passages().into_iter().flatten() {
            self.after(passage, Event::Deliver(id, Rc::clone(&asked)));
        }
        self.after(ASK_TIMEOUT, Event::Answer(id, attempt, None));
    }

    /// A request reaches every instance that serves it: each has a queue group of its own.
    fn deliver(&mut self, id: u64, asked: &Rc<Asked>) {
        let service = asked.request.service();
        let mut served = false;
        for node in 0..self.nodes.len() {
            let Node { service: of, session, engine, .. } = &self.nodes[node];
            if *of == service && engine.as_ref().is_some_and(|engine| engine.is_leading()) {
                served = true;
                let session = *session;
                self.after(0, Event::DeliverTo(node, session, id, Rc::clone(asked)));
            }
        }
        if !served && let Some(pending) = self.pending.get(&id) {
            self.coverage.branch(Branch::NoResponder);
            let attempt = pending.attempt;
            self.after(200, Event::Answer(id, attempt, None));
        }
    }

    /// An answer reaches who asked, or their patience is at an end.
    fn answer(&mut self, id: u64, attempt: u32, reply: Option<Rc<Reply>>) -> Checked {
        let Some(pending) = self.pending.get_mut(&id) else {
            if reply.is_some() {
                self.coverage.branch(Branch::AnsweredTwice);
            }
            return Ok(());
        };
        if reply.is_none() && pending.attempt != attempt {
            return Ok(());
        }
        let waits = match &pending.asker {
            Asker::Node(node, ..) => self.nodes[*node].paused_until,
            Asker::Process(process, _) => self.processes[*process].stalled_until,
            Asker::Client(_) | Asker::Leaser(..) => 0,
        };
        if waits > self.now {
            self.at(waits, Event::Answer(id, attempt, reply));
            return Ok(());
        }
        let final_answer = reply.as_deref().filter(|reply| !is_for_now(reply));
        if pending.until_answered && final_answer.is_none() {
            let alive = match &pending.asker {
                Asker::Process(process, _) => self.processes[*process].alive,
                Asker::Node(..) | Asker::Client(_) | Asker::Leaser(..) => true,
            };
            if alive {
                pending.attempt += 1;
                self.after(ASK_AGAIN, Event::Send(id));
                return Ok(());
            }
        }
        let Some(Pending { asker, asked, .. }) = self.pending.remove(&id) else { return Ok(()) };
        match asker {
            Asker::Node(node, session, tag) => self.told_node(node, session, tag, reply.as_deref()),
            Asker::Process(process, purpose) => {
                self.told_process(process, purpose, &asked, reply.as_deref());
                Ok(())
            }
            Asker::Client(wanted) => {
                self.told_client(wanted, reply.as_deref());
                Ok(())
            }
            Asker::Leaser(leaser, deed) => {
                self.told_leaser(leaser, deed, reply.as_deref());
                Ok(())
            }
        }
    }

    // Faults.

    fn fault(&mut self) {
        if self.calm {
            return;
        }
        let every = u32::try_from(self.weather.every).unwrap_or(u32::MAX);
        let wait = every / 2 + self.draws.below(every);
        self.after(u64::from(wait), Event::Fault);
        let node = self.draws.below(6) as usize;
        match self.draws.below(15) {
            0 => {}
            1 | 2 => {
                self.fault_of(Fault::Crash, |world| format!("{} crashes", world.nodes[node].name));
                let down = self.draws.between(20_000, 3_000_000);
                self.crash(node, down);
            }
            3 => {
                let until = self.now + self.draws.between(100_000, 7_000_000);
                let until = until.min(self.calm_at);
                self.fault_of(Fault::Pause, |world| {
                    format!("{} is paused until {} ms", world.nodes[node].name, until / 1000)
                });
                self.nodes[node].paused_until = until;
            }
            4 => {
                self.fault_of(Fault::Disconnect, |world| format!("{} loses its connection", world.nodes[node].name));
                self.end_session(node);
            }
            5 => {
                let by = self.draws.between(100, 20_000);
                self.fault_of(Fault::ClockForward, |world| format!("{}'s clock: +{by} ms", world.nodes[node].name));
                self.nodes[node].step(i64::try_from(by).unwrap_or(0));
                self.retick(node);
            }
            6 => {
                let by = self.draws.between(100, 20_000);
                self.fault_of(Fault::ClockBack, |world| format!("{}'s clock: -{by} ms", world.nodes[node].name));
                self.nodes[node].step(-i64::try_from(by).unwrap_or(0));
            }
            7 | 8 => {
                let (service, other) = (self.nodes[node].service, node ^ 1);
                let has_rival = self.nodes[other].holding && !self.nodes[node].holding;
                if has_rival && self.nodes[node].engine.is_some() {
                    self.fault_of(Fault::FalseLeader, |world| {
                        format!("{} believes that it may lead {service}", world.nodes[node].name)
                    });
                    self.win(node);
                }
            }
            9 => {
                self.coverage.fault(Fault::Burst);
                self.burst_until = self.now + self.draws.between(200_000, 3_000_000);
                self.tell(|world| format!("the network fails until {} ms", world.burst_until / 1000));
            }
            10 | 11 => {
                let until = (self.now + self.draws.between(500_000, 6_000_000)).min(self.calm_at);
                self.fault_of(Fault::Deaf, |world| {
                    format!("{} is deaf until {} ms", world.nodes[node].name, until / 1000)
                });
                self.nodes[node].deaf_until = until;
            }
            kind => self.agent_fault(kind),
        }
    }

    fn take_memory(&mut self, percent: u32) {
        self.tell(|_| format!("{percent} % of the memory is taken"));
        self.memory = percent;
        self.facts.memory_taken(percent);
        for engine in self.nodes.iter_mut().filter_map(|node| node.engine.as_mut()) {
            engine.takes_memory(percent);
        }
    }

    fn begin_calm(&mut self) {
        self.calm = true;
        self.take_memory(MEMORY);
        self.tell(|_| "the calm begins".to_owned());
        self.facts.calm(self.now);
        // Something is wanted in the calm as well.
        self.wish_in_calm();
        self.after(500_000, Event::Watch);
    }

    /// Whether everything has come to rest.
    fn watch(&mut self) -> Result<bool, Violation> {
        self.facts.nobody_idles(self.now)?;
        self.facts.nothing_waits_for_ever(self.now)?;
        self.facts.acquisitions_end(self.now)?;
        self.facts.unpaid_end(self.now)?;
        self.agents_know()?;
        self.resume_all();
        if self.now >= self.calm_at + SCHEDULES {
            self.end_schedules();
        }
        let in_peace = |service: &Service| self.nodes.iter().any(|n| n.service == *service && n.leads_in_peace());
        let led = SERVICES.iter().all(in_peace);
        let wanted = self.pending.values().any(|pending| pending.until_answered);
        let settled = self.now >= self.calm_at + CALM;
        if settled
            && led
            && self.facts.live() == 0
            && self.facts.schedules().is_empty()
            && !self.facts.triggers_wait()
            && self.facts.alive() + self.facts.pools.alive() == 0
            && !wanted
            && self.keeping == 0
        {
            return Ok(true);
        }
        if self.now > self.calm_at + PATIENCE {
            let asked: Vec<_> = self.pending.values().filter(|pending| pending.until_answered).collect();
            let text = format!("{}\n{asked:?}", self.facts.unfinished());
            return Err(broken("the calm converges", text));
        }
        self.after(500_000, Event::Watch);
        Ok(false)
    }

    /// What must hold when everything has come to rest.
    fn rest(&mut self) -> Checked {
        self.facts.at_rest()?;
        for (id, run) in &self.facts.runs {
            let kept = self.documents.get(id).copied();
            // Of a run that is forgotten before its end is known to everybody, nobody keeps the document again.
            if kept.is_none() && run.is_forgotten() {
                continue;
            }
            if kept != run.finished.map(|(_, status)| status) {
                let text = format!("run {id} is {:?}, and its document says {kept:?}", run.finished);
                return Err(broken("every finished run is kept as a document", text));
            }
        }
        let accepted: Vec<_> = self.clients.accepted().collect();
        for run in accepted {
            if !self.facts.runs.contains_key(&run) {
                return Err(broken("every accepted run has exactly one end", format!("run {run} is not in the log")));
            }
        }
        self.followers_agree()
    }
}

/// Whether waiting may bring another answer.
fn is_for_now(reply: &Reply) -> bool {
    reply.as_ref().is_err_and(|rejection| matches!(rejection.code, Code::Unavailable | Code::Overloaded))
}
