//! The optimizer and the real resource-manager on one log. The test plays the workflow-manager, the agents, and a network
//! that loses questions and answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use baton_machine::{Effect, Processor, Reply, RequestContext};
use baton_protocol::amount::covers;
use baton_protocol::record::{
    AgentRegistered, AnyCommit, Outcome, ResourceRecord, RunPaused, RunResumed, StageReady, WorkflowRecord,
};
use baton_protocol::request::{OptimizerRequest, Requests, ResourceRequest, SetStrategy, Strategy};
use baton_protocol::{AgentId, Json, LeaseId, Millis, Resources, RunId, TaskId};
use baton_resource_manager::ResourceManager;
use proptest::prelude::*;
use proptest::strategy::Strategy as Generator;
use serde_json::json;

use super::{Log, START, ended, finished, ready, run, started, task, workflow};
use crate::{Config, Optimizer};

struct World {
    log: Log,
    optimizer: Processor<Optimizer>,
    manager: Processor<ResourceManager>,
    config: Config,
    workflow_next: u64,
    token: u64,
    now: Millis,
    questions: VecDeque<(u64, Json)>,
    /// Which question each token of the resource-manager answers.
    asking: BTreeMap<u64, u64>,
    answers: VecDeque<(u64, Reply)>,
    facts: Facts,
}

/// What the log says, in its own order, and nothing of how the services see it.
#[derive(Default)]
struct Facts {
    read: usize,
    agents: BTreeMap<AgentId, AgentRegistered>,
    open: BTreeMap<TaskId, (StageReady, Millis)>,
    leases: BTreeMap<TaskId, (LeaseId, AgentId)>,
    leased: BTreeSet<TaskId>,
    /// Tasks whose lease ended without a report.
    lost: Vec<(TaskId, LeaseId, AgentId)>,
    paused: BTreeSet<RunId>,
    /// In the order of their leases.
    order: Vec<TaskId>,
}

impl Facts {
    fn read(&mut self, log: &Log) {
        for (service, payload) in log.messages.iter().skip(self.read) {
            match AnyCommit::decode(*service, payload).unwrap() {
                AnyCommit::Workflow(commit) => commit.stamped().for_each(|(s, record)| self.workflow(s.at, record)),
                AnyCommit::Resource(commit) => {
                    commit.stamped().for_each(|(stamp, record)| self.resource(LeaseId(stamp.number), record));
                }
                AnyCommit::Optimizer(_) => {}
            }
        }
        self.read = log.messages.len();
    }

    fn workflow(&mut self, at: Millis, record: &WorkflowRecord) {
        match record {
            WorkflowRecord::StageReady(record) => {
                self.open.insert(record.task.clone(), (record.clone(), at));
            }
            WorkflowRecord::StageEnded(record) => {
                self.open.remove(&record.task);
                self.leases.remove(&record.task);
            }
            WorkflowRecord::WorkflowRegistered(_)
            | WorkflowRecord::RunStarted(_)
            | WorkflowRecord::StageSkipped(_)
            | WorkflowRecord::StageExpanded(_)
            | WorkflowRecord::StageWaits(_)
            | WorkflowRecord::StageCached(_)
            | WorkflowRecord::StageCommitted(_)
            | WorkflowRecord::CopyEnded(_)
            | WorkflowRecord::Signalled(_)
            | WorkflowRecord::RunsForgotten(_)
            | WorkflowRecord::ScheduleSet(_)
            | WorkflowRecord::ScheduleRemoved(_)
            | WorkflowRecord::ScheduleFired(_)
            | WorkflowRecord::TriggerSet(_)
            | WorkflowRecord::TriggerRemoved(_)
            | WorkflowRecord::EventRaised(_)
            | WorkflowRecord::TriggerFired(_) => {}
            WorkflowRecord::RunPaused(record) => {
                self.paused.insert(record.run);
            }
            WorkflowRecord::RunResumed(record) => {
                self.paused.remove(&record.run);
            }
            WorkflowRecord::RunFinished(record) => {
                self.paused.remove(&record.run);
                self.open.retain(|task, _| task.run != record.run);
                self.leases.retain(|task, _| task.run != record.run);
            }
        }
    }

    fn resource(&mut self, number: LeaseId, record: &ResourceRecord) {
        match record {
            ResourceRecord::AgentRegistered(record) => {
                let before = self.agents.insert(record.agent.clone(), record.clone());
                if before.is_none_or(|before| before.session != record.session) {
                    self.lose(|_, agent| *agent == record.agent);
                }
            }
            ResourceRecord::AgentLeft(record) => {
                self.agents.remove(&record.agent);
                self.lose(|_, agent| *agent == record.agent);
            }
            ResourceRecord::Assigned(record) => {
                assert!(self.leased.insert(record.task.clone()), "{} is leased twice", record.task);
                self.order.push(record.task.clone());
                if self.open.contains_key(&record.task) {
                    self.leases.insert(record.task.clone(), (number, record.agent.clone()));
                }
                assert!(self.fits(&record.agent, None), "{} holds too much", record.agent);
            }
            ResourceRecord::LeaseEnded(record) => self.lose(|lease, _| lease == record.lease),
            ResourceRecord::HandedOver(_)
            | ResourceRecord::HandoffOffered(_)
            | ResourceRecord::HandoffEnded(_)
            | ResourceRecord::BreakerOpened(_)
            | ResourceRecord::BreakerHalfOpened(_)
            | ResourceRecord::BreakerClosed(_)
            | ResourceRecord::AlertRaised(_)
            | ResourceRecord::AlertCleared(_)
            | ResourceRecord::AlertAcknowledged(_)
            | ResourceRecord::PressureChanged(_) => {}
            ResourceRecord::PoolSet(_)
            | ResourceRecord::PoolRemoved(_)
            | ResourceRecord::Acquired(_)
            | ResourceRecord::Renewed(_)
            | ResourceRecord::Released(_)
            | ResourceRecord::ApprovalAsked(_)
            | ResourceRecord::BudgetRefused(_) => {}
        }
    }

    fn lose(&mut self, ended: impl Fn(LeaseId, &AgentId) -> bool) {
        for (task, (lease, agent)) in self.leases.extract_if(.., |_, (lease, agent)| ended(*lease, agent)) {
            self.lost.push((task, lease, agent));
        }
    }

    /// Whether the agent has what it holds, and room for this besides.
    fn fits(&self, agent: &AgentId, more: Option<&StageReady>) -> bool {
        let record = &self.agents[agent];
        let held = self.leases.iter().filter(|(_, (_, a))| a == agent).map(|(task, _)| &self.open[task].0);
        let all: Vec<_> = held.chain(more).collect();
        let mut sum = Resources::new();
        for (name, amount) in all.iter().flat_map(|ready| &ready.resources) {
            let entry = sum.entry(name.clone()).or_default();
            *entry = *entry + *amount;
        }
        let can = more.is_none_or(|ready| {
            record.agent_type == ready.agent_type || record.capabilities.contains_key(&ready.agent_type)
        });
        can && all.len() <= record.slots as usize && covers(&record.resources, &sum).is_ok()
    }
}

impl World {
    fn new(config: Config) -> Self {
        let mut world = Self {
            log: Log::default(),
            optimizer: Processor::new(config.clone()),
            manager: Processor::new(Default::default()),
            config,
            workflow_next: 1,
            token: 0,
            now: START,
            questions: VecDeque::new(),
            asking: BTreeMap::new(),
            answers: VecDeque::new(),
            facts: Facts::default(),
        };
        world.optimizer.lead("o", START);
        world.manager.lead("r", START);
        world.workflow(vec![workflow()]);
        world
    }

    fn workflow(&mut self, records: Vec<WorkflowRecord>) {
        self.log.append(&mut self.workflow_next, self.now, records);
        self.facts.read(&self.log);
    }

    /// The optimizer reads, decides and asks.
    fn turn_optimizer(&mut self) {
        self.log.feed(&mut self.optimizer, self.now);
        self.optimizer.tick(self.now);
        self.log.settle(&mut self.optimizer, self.now);
        for effect in self.optimizer.immediate() {
            match effect {
                Effect::Ask { body, tag, .. } => self.questions.push_back((tag, body)),
                Effect::Span(_) | Effect::Measure(_) => {}
                effect => panic!("{effect:?}"),
            }
        }
    }

    /// The resource-manager reads, takes a question, commits and answers.
    fn turn_manager(&mut self, lost: bool) {
        if let Some((tag, body)) = self.questions.pop_front().filter(|_| !lost) {
            let request = ResourceRequest::decode("lease.assign", "", body.as_str().as_bytes()).unwrap();
            self.asking.insert(self.token + 1, tag);
            self.ask_manager("lease.assign", request);
        }
        self.settle_manager();
    }

    fn ask_manager(&mut self, endpoint: &'static str, request: ResourceRequest) {
        self.token += 1;
        self.manager.request(self.token, endpoint, request, RequestContext::default(), self.now);
    }

    fn settle_manager(&mut self) {
        self.log.feed(&mut self.manager, self.now);
        self.manager.tick(self.now);
        for effect in self.log.settle(&mut self.manager, self.now).effects {
            if let Effect::Answer { token, reply } = effect
                && let Some(tag) = self.asking.remove(&token)
            {
                self.answers.push_back((tag, reply));
            }
        }
        self.facts.read(&self.log);
    }

    fn turn_answer(&mut self, lost: bool) {
        if let Some((tag, reply)) = self.answers.pop_front().filter(|_| !lost) {
            self.optimizer.answered(tag, reply, self.now);
        }
    }

    fn agent(&mut self, agent: &str, verb: &str, body: &serde_json::Value) {
        let endpoint = ResourceRequest::ENDPOINTS.iter().find(|e| e.name == format!("agent.{verb}")).unwrap().name;
        let subject = format!("baton.agent.{agent}.{verb}");
        let request = ResourceRequest::decode(endpoint, &subject, body.to_string().as_bytes()).unwrap();
        self.ask_manager(endpoint, request);
    }

    fn register(&mut self, agent: &str, session: &str, agent_type: &str, slots: u32, cpu: u32) {
        let capabilities: BTreeMap<_, _> =
            if cpu > 2 { BTreeMap::from([("common", json!({}))]) } else { BTreeMap::new() };
        let body = json!({
            "session": session, "agent_type": agent_type, "slots": slots, "resources": { "cpu": cpu },
            "capabilities": capabilities,
        });
        self.agent(agent, "register", &body);
    }

    /// What the workflow-manager does about leases that ended without a report: it ends the attempt, and begins another.
    fn retry_lost(&mut self, open: &BTreeMap<TaskId, (StageReady, Millis)>) {
        for (task, lease, agent) in std::mem::take(&mut self.facts.lost) {
            if self.facts.paused.contains(&task.run) {
                self.facts.lost.push((task, lease, agent));
                continue;
            }
            let Some((ready, _)) = open.get(&task) else { continue };
            let mut next = ready.clone();
            next.task.attempt += 1;
            let lost = ended(task, Some((lease.0, agent.as_str())), Outcome::Lost, 0);
            self.workflow(vec![lost, WorkflowRecord::StageReady(next)]);
        }
    }

    /// Everybody says all that there is to say, nothing is lost, and agents are heard of.
    fn quiesce(&mut self) {
        // The longest that anything waits for is an answer that was lost.
        for _ in 0..60 {
            let open = self.facts.open.clone();
            self.retry_lost(&open);
            for (agent, session) in self.present() {
                self.agent(&agent, "heartbeat", &json!({ "session": session }));
            }
            for _ in 0..4 {
                self.turn_manager(false);
                while !self.questions.is_empty() {
                    self.turn_manager(false);
                }
                while !self.answers.is_empty() {
                    self.turn_answer(false);
                }
                self.turn_optimizer();
            }
            self.now += 50;
        }
        self.log.check(&self.optimizer, self.config.clone(), self.now);
        self.log.check(&self.manager, Default::default(), self.now);
    }

    fn present(&self) -> Vec<(String, String)> {
        self.facts.agents.values().map(|agent| (agent.agent.to_string(), agent.session.clone())).collect()
    }

    /// Whatever is paused goes on.
    fn resume_all(&mut self) {
        let paused = self.facts.paused.iter();
        let resumed: Vec<_> = paused.map(|run| WorkflowRecord::RunResumed(RunResumed { run: *run })).collect();
        if !resumed.is_empty() {
            self.workflow(resumed);
            self.quiesce();
        }
    }

    /// No task waits where a capable agent has room.
    fn check_placed(&self) {
        for (task, (ready, _)) in self.facts.open.iter().filter(|(task, _)| !self.facts.leases.contains_key(task)) {
            assert!(!self.facts.leased.contains(task) || self.facts.paused.contains(&task.run), "{task} was given up");
            if self.facts.paused.contains(&task.run) {
                continue;
            }
            for agent in self.facts.agents.keys() {
                assert!(!self.facts.fits(agent, Some(ready)), "{task} waits, and {agent} has room");
            }
        }
    }

    /// The report of the oldest lease: the task succeeds.
    fn end_one(&mut self, nth: usize) -> bool {
        let Some((task, (lease, agent))) = self.facts.leases.iter().nth(nth % self.facts.leases.len().max(1)) else {
            return false;
        };
        let run = (0..100_000).find(|n| run(*n) == task.run).unwrap();
        let record = ended(task.clone(), Some((lease.0, agent.as_str())), Outcome::Succeeded, 10);
        self.workflow(vec![record, finished(run)]);
        true
    }
}

#[derive(Debug, Clone)]
enum Act {
    Register { agent: u8, session: u8, agent_type: u8, slots: u8, cpu: u8 },
    Leave { agent: u8 },
    Decline { nth: u8 },
    Ready { agent_type: u8, priority: i8, cpu: u8 },
    EndLeased { nth: u8 },
    EndWaiting { nth: u8 },
    Retry,
    Pause { nth: u8 },
    Resume { nth: u8 },
    Strategy(Strategy),
    Optimizer,
    Manager { lost: bool },
    Answer { lost: bool },
    NewOptimizer,
    NewManager,
    Wait(u16),
}

const TYPES: [&str; 3] = ["research", "writing", "common"];

fn act() -> impl Generator<Value = Act> {
    let rarely = || prop::bool::weighted(0.1);
    prop_oneof![
        4 => (0..5u8, 0..3u8, 0..2u8, 1..4u8, 0..5u8).prop_map(|(agent, session, agent_type, slots, cpu)| Act::Register { agent, session, agent_type, slots, cpu }),
        1 => (0..5u8).prop_map(|agent| Act::Leave { agent }),
        1 => any::<u8>().prop_map(|nth| Act::Decline { nth }),
        8 => (0..3u8, -2..3i8, 0..4u8).prop_map(|(agent_type, priority, cpu)| Act::Ready { agent_type, priority, cpu }),
        5 => any::<u8>().prop_map(|nth| Act::EndLeased { nth }),
        1 => any::<u8>().prop_map(|nth| Act::EndWaiting { nth }),
        2 => Just(Act::Retry),
        2 => any::<u8>().prop_map(|nth| Act::Pause { nth }),
        2 => any::<u8>().prop_map(|nth| Act::Resume { nth }),
        1 => prop::sample::select(&Strategy::ALL).prop_map(Act::Strategy),
        8 => Just(Act::Optimizer),
        8 => rarely().prop_map(|lost| Act::Manager { lost }),
        6 => rarely().prop_map(|lost| Act::Answer { lost }),
        1 => Just(Act::NewOptimizer),
        1 => Just(Act::NewManager),
        2 => (0..3000u16).prop_map(Act::Wait),
    ]
}

impl World {
    fn act(&mut self, act: &Act, runs: &mut u64) {
        match *act {
            Act::Register { agent, session, agent_type, slots, cpu } => {
                let (id, session) = (format!("a{agent}"), format!("s{session}"));
                self.register(&id, &session, TYPES[agent_type as usize], slots.into(), cpu.into());
            }
            Act::Leave { agent } => {
                for (id, session) in self.present().into_iter().filter(|(id, _)| *id == format!("a{agent}")) {
                    self.agent(&id, "leave", &json!({ "session": session }));
                }
            }
            Act::Decline { nth } => {
                let count = self.facts.leases.len().max(1);
                if let Some((lease, agent)) = self.facts.leases.values().nth(nth as usize % count).cloned() {
                    self.agent(agent.as_str(), "decline", &json!({ "lease": lease, "reason": "busy" }));
                }
            }
            Act::Ready { agent_type, priority, cpu } => {
                *runs += 1;
                let ready = ready(task(*runs, 1), TYPES[agent_type as usize], priority.into(), cpu.into());
                self.workflow(vec![started(*runs), ready]);
            }
            Act::EndLeased { nth } => {
                self.end_one(nth.into());
            }
            // The workflow-manager may end a task that is being leased at the same time.
            Act::EndWaiting { nth } => {
                let count = self.facts.open.len().max(1);
                if let Some(task) = self.facts.open.keys().nth(nth as usize % count).cloned() {
                    self.workflow(vec![ended(task, None, Outcome::TimedOut, 0)]);
                }
            }
            Act::Retry => {
                let open = self.facts.open.clone();
                self.retry_lost(&open);
            }
            Act::Pause { nth } => {
                let going_on = self.facts.open.keys().filter(|task| !self.facts.paused.contains(&task.run));
                let runs: Vec<_> = going_on.map(|task| task.run).collect();
                if let Some(run) = runs.get(nth as usize % runs.len().max(1)) {
                    self.workflow(vec![WorkflowRecord::RunPaused(RunPaused {
                        run: *run,
                        reason: None,
                        with_parent: false,
                    })]);
                }
            }
            Act::Resume { nth } => {
                let count = self.facts.paused.len().max(1);
                if let Some(run) = self.facts.paused.iter().nth(nth as usize % count).copied() {
                    self.workflow(vec![WorkflowRecord::RunResumed(RunResumed { run })]);
                }
            }
            Act::Strategy(strategy) => {
                let request = OptimizerRequest::SetStrategy(SetStrategy { strategy });
                self.optimizer.request(1, "strategy.set", request, RequestContext::default(), self.now);
            }
            Act::Optimizer => self.turn_optimizer(),
            Act::Manager { lost } => self.turn_manager(lost),
            Act::Answer { lost } => self.turn_answer(lost),
            // A successor knows nothing of what was asked; the answers still come.
            Act::NewOptimizer => {
                self.log.settle(&mut self.optimizer, self.now);
                self.optimizer = Processor::new(self.config.clone());
                self.log.feed(&mut self.optimizer, self.now);
                self.optimizer.lead("o2", self.now);
            }
            // What it had decided and not committed is gone, and nobody was told.
            Act::NewManager => {
                self.manager = Processor::new(Default::default());
                self.log.feed(&mut self.manager, self.now);
                self.manager.lead("r2", self.now);
            }
            Act::Wait(ms) => self.now += Millis::from(ms),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever was lost, late or repeated: once it is quiet, no task waits where a capable agent has room; and if tasks
    /// end, all that can be done is done.
    #[test]
    fn o1_o8_all_that_can_be_placed_is_placed(acts in prop::collection::vec(act(), 1..120)) {
        // No agent is kept for a large task here: that is waiting with room.
        let mut world = World::new(Config { ageing_ms: 1 << 40, ..Config::default() });
        let mut runs = 0;
        for act in &acts {
            // That one waits on purpose.
            let looks_ahead = matches!(act, Act::Strategy(Strategy::Adaptive));
            world.act(if looks_ahead { &Act::Strategy(Strategy::Swarm) } else { act }, &mut runs);
        }
        world.quiesce();
        world.check_placed();
        world.resume_all();
        while world.end_one(0) {
            world.quiesce();
            world.check_placed();
        }
    }

    /// The same where tasks may wait for a better agent: not for ever.
    #[test]
    fn o2_whatever_the_strategy_all_is_placed_in_the_end(acts in prop::collection::vec(act(), 1..120), own in prop::sample::select(&Strategy::ALL)) {
        let mut world = World::new(Config { ageing_ms: 1 << 40, ..Config::default() });
        let mut runs = 0;
        world.act(&Act::Strategy(own), &mut runs);
        for act in &acts {
            world.act(act, &mut runs);
        }
        world.quiesce();
        world.resume_all();
        while world.end_one(0) {
            world.quiesce();
        }
        for _ in 0..20 {
            world.now += 30_000;
            world.quiesce();
        }
        world.check_placed();
    }

    /// Urgent and small tasks keep coming; the one that nobody wants to take is taken all the same.
    #[test]
    fn o1_nothing_waits_for_ever(urgency in 1..4i32, cpu in 0..5u32, agents in 1..3u8, strategy in prop::sample::select(&Strategy::ALL)) {
        let mut world = World::new(Config { ageing_ms: 2000, ..Config::default() });
        world.act(&Act::Strategy(strategy), &mut 0);
        for agent in 0..agents {
            world.register(&format!("a{agent}"), "s", "research", 4, 4);
        }
        // Every agent is busy from the start.
        let mut n = 1;
        for _ in 0..4 * agents {
            n += 1;
            world.workflow(vec![started(n), ready(task(n, 1), "research", urgency, 1)]);
        }
        world.quiesce();
        prop_assert_eq!(world.facts.leases.len(), 4 * usize::from(agents));
        world.workflow(vec![started(1), ready(task(1, 1), "research", 0, cpu)]);
        let mut rounds = 0;
        while !world.facts.leased.contains(&task(1, 1)) {
            rounds += 1;
            prop_assert!(rounds < 200, "it starves");
            // More comes than can be done, and every agent is always busy.
            for _ in 0..=agents {
                n += 1;
                world.workflow(vec![started(n), ready(task(n, 1), "research", urgency, 1)]);
            }
            for agent in 0..agents {
                world.agent(&format!("a{agent}"), "heartbeat", &json!({ "session": "s" }));
                world.end_one(rounds);
            }
            for _ in 0..3 {
                world.turn_optimizer();
                while !world.questions.is_empty() {
                    world.turn_manager(false);
                }
                while !world.answers.is_empty() {
                    world.turn_answer(false);
                }
            }
            world.now += 200;
        }
    }
}

/// The first in the queue is the first to be leased, over many agents and through both services.
#[test]
fn o1_the_order_of_the_queue_is_the_order_of_the_leases() {
    let mut world = World::new(Config::default());
    let records = (1..=40).flat_map(|n| [started(n), ready(task(n, 1), "research", (n % 4) as i32, 0)]);
    world.workflow(records.collect());
    world.register("ann", "s", "research", 2, 0);
    world.settle_manager();
    world.quiesce();
    while world.end_one(0) {
        world.quiesce();
    }
    let priorities: Vec<_> =
        world.facts.order.iter().map(|t| (1..=40).find(|n| run(*n) == t.run).unwrap() % 4).collect();
    assert_eq!(priorities.len(), 40);
    assert!(priorities.is_sorted_by(|a, b| a >= b), "{priorities:?}");
}
