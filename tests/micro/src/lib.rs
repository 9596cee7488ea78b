//! What the micro-benchmarks turn: the three machines on a log in memory, with agents that do nothing.
//!
//! A [`World`] calls the processors as the shell does: it reads commits, gives requests, takes what is decided and
//! acknowledges it. There is no broker, no network and no waiting, and time goes on by a millisecond a round. How long
//! each processor was at work is measured around every call; what the world itself does is not counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use baton_machine::{Effect, Machine, Outgoing, Processor, Released, Reply, RequestContext};
use baton_optimizer::Optimizer;
use baton_protocol::definition::Definition;
use baton_protocol::record::{AnyCommit, Record, ResourceRecord, WorkflowRecord};
use baton_protocol::request::{
    AssignTasks, OptimizerRequest, RegisterAgent, RegisterWorkflow, Report, ReportStatus, ResourceRequest, SetStrategy,
    StartRun, Strategy, Usage, WorkflowRequest,
};
use baton_protocol::{AgentId, Capability, Json, LeaseId, Millis, Money, Service, TaskId, WorkflowName};
use baton_resource_manager::{PressureConfig, PressureLimits, ResourceManager};
use baton_workflow_manager::WorkflowManager;

/// When the log begins.
const START: Millis = 1_763_665_200_000;

/// The largest commit, in bytes: what the shell takes unless it is told otherwise.
const COMMIT_BYTES: usize = 128 * 1024;

/// How often all agents are heard of.
const HEARTBEAT_MS: Millis = 1000;

/// What is run.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// Four stages, one after another, each of another agent type.
    Chain,
    /// One stage, then this many side by side, then one.
    Fan(usize),
}

impl Work {
    /// The agent types that it asks for.
    #[must_use]
    pub fn agent_types(self) -> &'static [&'static str] {
        match self {
            Self::Chain => &["research", "writing", "editing", "verification"],
            Self::Fan(_) => &["work"],
        }
    }

    /// How many stages a run has.
    #[must_use]
    pub fn stages(self) -> usize {
        match self {
            Self::Chain => 4,
            Self::Fan(width) => width + 2,
        }
    }

    fn definition(self, cpu: u32) -> Definition {
        let builder = Definition::builder("work");
        let builder = match self {
            Self::Chain => builder
                .add_stage("research", "research", &[])
                .add_stage("writing", "writing", &["research"])
                .add_stage("editing", "editing", &["writing"])
                .add_stage("verification", "verification", &["editing"]),
            Self::Fan(width) => {
                let names: Vec<_> = (0..width).map(|n| format!("part-{n}")).collect();
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                let begun = builder.add_stage("split", "work", &[]);
                let parts = names.iter().fold(begun, |builder, name| builder.add_stage(name, "work", &["split"]));
                parts.add_stage("join", "work", &names)
            }
        };
        let mut definition = builder.build().expect("the definition is one");
        for stage in definition.stages.iter_mut().filter(|_| cpu > 0) {
            stage.resources.insert("cpu".parse().expect("it is a name"), cpu.into());
        }
        definition
    }
}

/// How large a world is.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// What is run.
    pub work: Work,
    /// How many agents there are; the agent types share them evenly.
    pub agents: usize,
    /// How many tasks each takes at a time.
    pub slots: u32,
    /// How many runs are live at a time.
    pub runs: usize,
    /// How many reports and starts the workflow-manager is given before it commits.
    pub batch: usize,
    /// How much `cpu` each stage asks for; 0 for none.
    pub cpu: u32,
    /// How many of the agent types each agent can do.
    pub skills: usize,
}

/// How long each machine's processor was at work.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// The workflow-manager's.
    pub workflow: Duration,
    /// The resource-manager's.
    pub resource: Duration,
    /// The optimizer's.
    pub optimizer: Duration,
}

/// A message of the log.
#[derive(Debug, Clone)]
pub struct Message {
    /// Who wrote it.
    pub service: Service,
    /// As it is stored.
    pub payload: Vec<u8>,
    /// As it is read.
    pub commit: Arc<AnyCommit>,
}

/// Three machines, a log, and agents that do nothing.
#[derive(Debug)]
pub struct World {
    /// The workflow-manager.
    pub workflow: Processor<WorkflowManager>,
    /// The resource-manager.
    pub resource: Processor<ResourceManager>,
    /// The optimizer.
    pub optimizer: Processor<Optimizer>,
    /// How long each was at work.
    pub spent: Spent,
    /// How many stages have ended.
    pub ended: u64,
    /// How many runs have finished.
    pub finished: u64,
    scale: Scale,
    keep: bool,
    /// The sequence of the last message.
    last: u64,
    /// The messages that not everybody has read, or all.
    log: VecDeque<Message>,
    /// The sequence before the first of them.
    dropped: u64,
    now: Millis,
    /// When all agents were last heard of.
    heard: Millis,
    token: u64,
    /// What agents hold, the oldest first.
    held: VecDeque<(LeaseId, TaskId, AgentId)>,
    /// How many runs are to be started.
    to_start: usize,
    input: Json,
    result: Json,
}

fn timed<T>(spent: &mut Duration, act: impl FnOnce() -> T) -> T {
    let before = Instant::now();
    let result = act();
    *spent += before.elapsed();
    result
}

/// Takes all that is decided and acknowledges it. What may leave, the messages, and how often.
fn settle<M: Machine>(
    processor: &mut Processor<M>,
    last: &mut u64,
    spent: &mut Duration,
) -> (Vec<Released<M>>, Vec<Vec<u8>>) {
    let (mut released, mut messages) = (Vec::new(), Vec::new());
    while let Some(outgoing) = timed(spent, || processor.take(COMMIT_BYTES)) {
        let seq = match outgoing {
            Outgoing::Commit { payload, .. } => {
                messages.push(payload);
                *last += 1;
                *last
            }
            Outgoing::Prove { .. } => 0,
        };
        released.push(timed(spent, || processor.acknowledged(seq)));
    }
    (released, messages)
}

impl World {
    /// A world where all agents are registered and no run has started. `keep` keeps the whole log.
    ///
    /// # Panics
    /// If the machines refuse what they are asked.
    #[must_use]
    pub fn new(scale: Scale, keep: bool) -> Self {
        let config = baton_workflow_manager::Config { max_live_runs: usize::MAX, ..Default::default() };
        let json = |text: &str| Json::from_text(text.to_owned()).expect("this is JSON");
        let mut world = Self {
            workflow: Processor::new(config),
            resource: Processor::new(baton_resource_manager::Config {
                // However many tasks wait, none is refused.
                pressure: PressureConfig {
                    elevated: PressureLimits::default(),
                    critical: PressureLimits::default(),
                    ..PressureConfig::default()
                },
                ..baton_resource_manager::Config::default()
            }),
            optimizer: Processor::new(baton_optimizer::Config::default()),
            spent: Spent::default(),
            ended: 0,
            finished: 0,
            scale,
            keep,
            last: 0,
            log: VecDeque::new(),
            dropped: 0,
            now: START,
            heard: START,
            token: 0,
            held: VecDeque::new(),
            to_start: scale.runs,
            input: json(r#"{"topic":"the town of Ulm in the eighteenth century"}"#),
            result: json(r#"{"text":"done"}"#),
        };
        world.workflow.lead("w", START);
        world.resource.lead("r", START);
        world.optimizer.lead("o", START);
        let definition = Json::of(&scale.work.definition(scale.cpu)).expect("a definition can be written");
        let register = RegisterWorkflow { source: None, definition: Some(definition) };
        world.ask_workflow("workflow.register", WorkflowRequest::RegisterWorkflow(register));
        world.join();
        world
    }

    /// All agents that are not there yet register.
    pub fn join(&mut self) {
        for number in 0..self.scale.agents {
            self.register(number);
        }
        self.settle();
    }

    /// Says how many agents there should be: see [`World::join`].
    pub fn with_agents(&mut self, agents: usize) {
        self.scale.agents = agents;
    }

    /// A world where as many runs are live as should be.
    ///
    /// # Panics
    /// If the machines refuse what they are asked.
    #[must_use]
    pub fn filled(scale: Scale) -> Self {
        let mut world = Self::new(scale, false);
        while world.to_start > 0 {
            world.start(1000);
            world.settle();
        }
        world
    }

    /// Tasks are placed so from now on.
    ///
    /// # Panics
    /// If the machines refuse what they are asked.
    pub fn place_by(&mut self, strategy: Strategy) {
        self.token += 1;
        let (token, now) = (self.token, self.now);
        let request = OptimizerRequest::SetStrategy(SetStrategy { strategy });
        self.optimizer.request(token, "strategy.set", request, RequestContext::default(), now);
        self.settle();
    }

    /// The log, if it was kept.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        self.log.iter()
    }

    /// The world's time.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.now
    }

    /// The agent with this number.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn agent(&self, number: usize) -> AgentId {
        AgentId::new(&format!("agent-{number:05}")).expect("it is a name")
    }

    fn register(&mut self, number: usize) {
        let types = self.scale.work.agent_types();
        let skill = |nth: usize| Capability::new(types[(number + nth) % types.len()]).expect("it is a name");
        let request = RegisterAgent {
            session: format!("session-{number}"),
            agent_type: skill(0),
            capabilities: (1..self.scale.skills).map(|nth| (skill(nth), Default::default())).collect(),
            resources: [("cpu", 1024), ("memory", 65536)]
                .map(|(name, amount)| (name.parse().expect("it is a name"), amount.into()))
                .into(),
            slots: self.scale.slots,
            priority: 0,
            batches: true,
        };
        let (agent, now) = (self.agent(number), self.now);
        self.token += 1;
        let (token, context) = (self.token, RequestContext::default());
        self.resource.request(token, "agent.register", ResourceRequest::Register(agent, request), context, now);
    }

    fn ask_workflow(&mut self, endpoint: &'static str, request: WorkflowRequest) {
        self.token += 1;
        let (token, now) = (self.token, self.now);
        timed(&mut self.spent.workflow, || {
            self.workflow.request(token, endpoint, request, RequestContext::default(), now);
        });
    }

    /// Starts runs, as many as should be live and are not, up to `most`. How many.
    pub fn start(&mut self, most: usize) -> usize {
        let count = most.min(self.to_start);
        for _ in 0..count {
            let request = StartRun::new(WorkflowName::new("work").expect("it is a name"), self.input.clone());
            self.ask_workflow("run.start", WorkflowRequest::StartRun(request));
        }
        self.to_start -= count;
        count
    }

    /// Agents report, those that have held their task for longest first, up to `most`.
    pub fn report(&mut self, most: usize) {
        for _ in 0..most {
            let Some((lease, task, agent)) = self.held.pop_front() else { return };
            let report = Report {
                lease,
                task,
                status: ReportStatus::Succeeded,
                result: Some(self.result.clone()),
                error: None,
                code: None,
                retryable: true,
                cost: Money::ZERO,
                usage: Usage::default(),
                model: None,
                delegate: None,
            };
            self.ask_workflow("agent.report", WorkflowRequest::Report(agent, report));
        }
    }

    /// One round: what has ended is replaced, agents report, and everybody does what follows.
    pub fn round(&mut self) {
        self.now += 1;
        let started = self.start(self.scale.batch);
        self.report(self.scale.batch - started);
        self.settle();
    }

    /// Turns the world until so many more stages have ended. How long each machine was at work.
    ///
    /// # Panics
    /// If nothing goes on.
    pub fn turn(&mut self, stages: u64) -> (Spent, u64) {
        let (before, until) = (self.spent, self.ended + stages);
        let begun = self.ended;
        let mut idle = 0;
        while self.ended < until {
            let ended = self.ended;
            self.round();
            idle = if self.ended == ended { idle + 1 } else { 0 };
            assert!(idle < 10_000, "nothing goes on");
        }
        let spent = Spent {
            workflow: self.spent.workflow - before.workflow,
            resource: self.spent.resource - before.resource,
            optimizer: self.spent.optimizer - before.optimizer,
        };
        (spent, self.ended - begun)
    }

    /// Everybody commits and reads until nothing is left.
    ///
    /// # Panics
    /// If a message can not be read.
    pub fn settle(&mut self) {
        let now = self.now;
        loop {
            let before = self.last;
            let (_, messages) = settle(&mut self.workflow, &mut self.last, &mut self.spent.workflow);
            self.append(Service::WorkflowManager, messages);
            self.feed();
            let mut asked = true;
            while std::mem::take(&mut asked) {
                let questions = timed(&mut self.spent.optimizer, || self.optimizer.immediate());
                for question in questions {
                    asked = true;
                    self.ask(question);
                }
                let (released, messages) = settle(&mut self.resource, &mut self.last, &mut self.spent.resource);
                self.append(Service::ResourceManager, messages);
                for effect in released.into_iter().flat_map(|released| released.effects) {
                    if let Effect::Answer { token, reply } = effect {
                        self.answer(token, reply);
                    }
                }
                self.feed();
            }
            let (_, messages) = settle(&mut self.optimizer, &mut self.last, &mut self.spent.optimizer);
            self.append(Service::Optimizer, messages);
            self.feed();
            if self.last == before {
                break;
            }
        }
        assert!(self.workflow.deadline().is_none_or(|deadline| deadline > now), "no run takes so long");
        if !self.keep {
            self.dropped = self.last;
            self.log.clear();
        }
        if now >= self.heard + HEARTBEAT_MS {
            // Not counted: it would be the same whatever goes on.
            self.heard = now;
            self.join();
        }
        assert!(self.resource.deadline().is_none_or(|deadline| deadline > now), "nobody is silent");
        if self.optimizer.deadline().is_some_and(|deadline| deadline <= now) {
            timed(&mut self.spent.optimizer, || self.optimizer.tick(now));
        }
    }

    /// The optimizer's question goes to the resource-manager. Its token is above all others.
    fn ask(&mut self, question: Effect) {
        let Effect::Ask { body, tag, .. } = question else { return };
        let request: AssignTasks = body.read().expect("the question can be read");
        let (now, token) = (self.now, ASKED | tag);
        timed(&mut self.spent.resource, || {
            self.resource.request(
                token,
                "lease.assign",
                ResourceRequest::Assign(request),
                RequestContext::default(),
                now,
            );
        });
    }

    fn answer(&mut self, token: u64, reply: Reply) {
        if token & ASKED != 0 {
            let now = self.now;
            timed(&mut self.spent.optimizer, || self.optimizer.answered(token & !ASKED, reply, now));
        }
    }

    fn append(&mut self, service: Service, messages: Vec<Vec<u8>>) {
        for payload in messages {
            let commit = AnyCommit::decode(service, &payload).expect("what was committed can be read");
            match &commit {
                AnyCommit::Workflow(commit) => {
                    for (_, record) in commit.stamped() {
                        match record {
                            WorkflowRecord::StageEnded(_) => self.ended += 1,
                            WorkflowRecord::RunFinished(_) => {
                                self.finished += 1;
                                self.to_start += 1;
                            }
                            _ => {}
                        }
                    }
                }
                AnyCommit::Resource(commit) => {
                    for (stamp, record) in commit.stamped() {
                        if let ResourceRecord::Assigned(record) = record {
                            let held = (LeaseId(stamp.number), record.task.clone(), record.agent.clone());
                            self.held.push_back(held);
                        }
                    }
                }
                AnyCommit::Optimizer(_) => {}
            }
            self.log.push_back(Message { service, payload, commit: Arc::new(commit) });
        }
    }

    fn feed(&mut self) {
        read(&mut self.workflow, &self.log, self.dropped, self.now, &mut self.spent.workflow);
        read(&mut self.resource, &self.log, self.dropped, self.now, &mut self.spent.resource);
        read(&mut self.optimizer, &self.log, self.dropped, self.now, &mut self.spent.optimizer);
    }
}

/// Marks the tokens of the optimizer's questions.
const ASKED: u64 = 1 << 63;

fn read<M: Machine>(
    processor: &mut Processor<M>,
    log: &VecDeque<Message>,
    dropped: u64,
    now: Millis,
    spent: &mut Duration,
) {
    let from = processor.position().max(dropped);
    timed(spent, || {
        for (index, message) in log.iter().enumerate().skip((from - dropped) as usize) {
            let seq = dropped + index as u64 + 1;
            // Each service decodes what others wrote, and knows what it wrote itself.
            processor.read(seq, message.service, &message.payload, now).expect("the log can be read");
        }
    });
}

/// Folds a log from its beginning, decoding each message. Gives the processor.
///
/// # Panics
/// If a message can not be read.
pub fn replay<M: Machine>(log: &[Message], config: M::Config) -> Processor<M> {
    let mut processor = Processor::new(config);
    for (seq, message) in (1..).zip(log) {
        processor.read(seq, message.service, &message.payload, START).expect("the log can be read");
    }
    processor
}

/// Folds a log from its beginning that is decoded already. Gives the processor.
///
/// # Panics
/// If a message can not be read.
pub fn fold<M: Machine>(log: &[Message], config: M::Config) -> Processor<M> {
    let mut processor = Processor::new(config);
    for (seq, message) in (1..).zip(log) {
        processor.read_commit(seq, &message.commit, START).expect("the log can be read");
    }
    processor
}

/// How many records a log holds.
#[must_use]
pub fn records(log: &[Message]) -> u64 {
    log.iter()
        .map(|message| match &*message.commit {
            AnyCommit::Workflow(commit) => commit.len(),
            AnyCommit::Resource(commit) => commit.len(),
            AnyCommit::Optimizer(commit) => commit.len(),
        })
        .sum()
}

/// The service whose machine this is.
#[must_use]
pub fn service<M: Machine>() -> Service {
    M::Record::SERVICE
}
