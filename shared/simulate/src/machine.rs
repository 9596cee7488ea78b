//! The optimizer itself as a policy.
//!
//! It is the machine that runs in the service, turned by the same processor, on a log in memory. What the other two services
//! would append is appended here: what is ready, what ended and how, which agents there are, and a lease for whatever is
//! asked for and can be granted. Commits and answers take no time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baton_machine::{Effect, Outgoing, Processor, Reply, RequestContext, Snapshot, answer};
use baton_optimizer::{Config, Optimizer};
use baton_protocol::record::{
    AgentRegistered, AnyCommit, Assigned, Cause, Commit, FORMAT, Outcome, Record, ResourceRecord, RunFinished,
    RunStarted, StageEnded, StageReady, Turn, WorkflowRecord, WorkflowRegistered,
};
use baton_protocol::request::{
    AssignAnswer, AssignTasks, OptimizerRequest, Placement, Refusal, SetStrategy, Strategy, Usage,
};
use baton_protocol::run::RunStatus;
use baton_protocol::{
    AgentId, Capability, Code, Json, LeaseId, Millis, Money, Number, Rejection, Resources, RunId, StageName, TaskId,
    WorkflowName,
};

use crate::engine::{Policy, Sim};
use crate::fleet::{Fleet, class_of};
use crate::names;
use crate::workload::Graph;

/// When the log begins.
const START: Millis = 1_763_665_200_000;
/// The largest commit, in bytes: what the shell takes unless it is told otherwise.
const COMMIT_BYTES: usize = 128 * 1024;
/// How long nothing happens between one simulation and the next.
const PAUSE_MS: Millis = 1000;

/// What was said between the services and the agents. One commit, question, answer, push or report is one message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Messages {
    /// Commits to the log.
    pub commits: u64,
    /// The records in them.
    pub records: u64,
    /// Questions to the resource-manager; each is answered.
    pub questions: u64,
    /// What was asked for in them.
    pub placements: u64,
    /// What was refused.
    pub refused: u64,
    /// Assignments that were pushed to agents; each is reported on once, and that is acknowledged.
    pub assignments: u64,
}

impl Messages {
    /// How many messages that were.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.commits + 2 * self.questions + 3 * self.assignments
    }

    /// How many it would have been if each record were a commit, and each placement asked for alone.
    #[must_use]
    pub fn each_alone(&self) -> u64 {
        self.records + 2 * self.placements + 3 * self.assignments
    }
}

/// The optimizer as it stands, with all that it has learned.
#[derive(Debug, Clone)]
pub struct Learned {
    snapshot: Snapshot<Optimizer>,
    log: Log,
    known: BTreeSet<WorkflowName>,
    started: u64,
    time: Millis,
}

/// Where the log stands.
#[derive(Debug, Clone, Default)]
struct Log {
    /// The sequence of the last message.
    last: u64,
    /// The number of the last record of the workflow-manager.
    workflow: Number,
    /// The number of the last record of the resource-manager.
    resource: Number,
}

/// The optimizer, given a world to place.
#[derive(Debug)]
pub struct Machine {
    processor: Processor<Optimizer>,
    log: Log,
    /// The workflows that are registered.
    known: BTreeSet<WorkflowName>,
    /// How many runs were started so far.
    started: u64,
    /// When the simulation began.
    base: Millis,
    /// When it is now.
    time: Millis,
    /// What the workflow-manager will append next.
    pending: Vec<WorkflowRecord>,
    /// The ends of runs, which come after those of their tasks.
    finished: Vec<WorkflowRecord>,
    /// The run of each job, and back.
    runs: Vec<RunId>,
    job_of: BTreeMap<RunId, usize>,
    /// What each task is called.
    stages: Vec<StageName>,
    /// What the tasks of each job are called for.
    capabilities: Vec<Vec<Capability>>,
    /// The attempt at each task.
    attempt: Vec<u32>,
    /// The lease that each agent's work is under.
    lease: Vec<LeaseId>,
    /// What was said in this simulation.
    pub messages: Messages,
}

impl Machine {
    /// A machine that knows nothing but a fleet, whose agents can do what the categories of these graphs ask for.
    #[must_use]
    pub fn new(strategy: Strategy, fleet: &Fleet, graphs: &[Arc<Graph>]) -> Self {
        let mut machine = Self::around(Processor::new(Config::default()), Log::default(), START);
        machine.processor.lead("simulate", START);
        let categories: BTreeSet<&str> =
            graphs.iter().flat_map(|graph| &graph.categories).map(String::as_str).collect();
        let agents = (0..fleet.len()).map(|agent| {
            let held = categories.iter().filter(|category| fleet.holds[agent][class_of(category)]);
            ResourceRecord::AgentRegistered(AgentRegistered {
                agent: names::agent(agent),
                session: "s".into(),
                agent_type: Capability::new("worker").expect("it is a name"),
                capabilities: held.map(|category| (names::capability(category), BTreeMap::new())).collect(),
                resources: Resources::new(),
                slots: 1,
                priority: 0,
                batches: false,
            })
        });
        let agents = agents.collect();
        machine.append_resource(agents);
        let request = OptimizerRequest::SetStrategy(SetStrategy { strategy });
        machine.processor.request(0, "strategy.set", request, RequestContext::default(), START);
        machine.settle(None);
        machine
    }

    /// Goes on from where a machine stood.
    #[must_use]
    pub fn resume(learned: &Learned) -> Self {
        let Learned { snapshot, log, known, started, time } = learned.clone();
        let mut machine = Self::around(Processor::restore(snapshot, Config::default()), log, time);
        (machine.known, machine.started) = (known, started);
        machine.processor.lead("simulate", time);
        machine.settle(None);
        machine
    }

    fn around(mut processor: Processor<Optimizer>, log: Log, base: Millis) -> Self {
        processor.show_traces(0.0);
        Self {
            processor,
            log,
            known: BTreeSet::new(),
            started: 0,
            base,
            time: base,
            pending: Vec::new(),
            finished: Vec::new(),
            runs: Vec::new(),
            job_of: BTreeMap::new(),
            stages: Vec::new(),
            capabilities: Vec::new(),
            attempt: Vec::new(),
            lease: Vec::new(),
            messages: Messages::default(),
        }
    }

    /// The machine.
    #[must_use]
    pub fn optimizer(&self) -> &Optimizer {
        self.processor.machine()
    }

    /// Ends a simulation: what was learned in it.
    ///
    /// # Panics
    /// If something is still to be committed, which nothing is after a simulation.
    #[must_use]
    pub fn learned(&self) -> Learned {
        let snapshot = self.processor.snapshot().expect("everything is committed");
        let time = self.time + PAUSE_MS;
        Learned { snapshot, log: self.log.clone(), known: self.known.clone(), started: self.started, time }
    }

    fn clock(&mut self, sim: &Sim<'_>) {
        self.time = self.time.max(self.base + (sim.now * 1000.0) as Millis);
    }

    /// Appends a commit of another service, and has the machine read it.
    fn append<R: Record>(&mut self, records: Vec<R>, first: Number, wrap: impl FnOnce(Commit<R>) -> AnyCommit) {
        self.messages.commits += 1;
        self.messages.records += records.len() as u64;
        let seen = self.log.last;
        self.log.last += 1;
        let turns = vec![Turn { at: self.time, seen, cause: Cause::Timer, records }];
        let commit = Commit { format: FORMAT, instance: "simulate".into(), term: 1, first, handled: seen, turns };
        let commit = Arc::new(wrap(commit));
        self.processor.read_commit(self.log.last, &commit, self.time).expect("the log has no gap");
    }

    fn append_workflow(&mut self, records: Vec<WorkflowRecord>) {
        let first = self.log.workflow + 1;
        self.log.workflow += records.len() as u64;
        self.append(records, first, AnyCommit::Workflow);
    }

    fn append_resource(&mut self, records: Vec<ResourceRecord>) {
        let first = self.log.resource + 1;
        self.log.resource += records.len() as u64;
        self.append(records, first, AnyCommit::Resource);
    }

    /// Commits what the machine decided, and answers what it asks, until it has nothing more to say.
    fn settle(&mut self, mut sim: Option<&mut Sim<'_>>) {
        loop {
            let mut effects = self.processor.immediate();
            while let Some(outgoing) = self.processor.take(COMMIT_BYTES) {
                let seq = match outgoing {
                    Outgoing::Commit { records, .. } => {
                        self.log.last += 1;
                        self.messages.commits += u64::from(records > 0);
                        self.messages.records += records;
                        self.log.last
                    }
                    Outgoing::Prove { .. } => 0,
                };
                effects.extend(self.processor.acknowledged(seq).effects);
            }
            let mut asked = false;
            for effect in effects {
                if let Effect::Ask { endpoint, body, tag, .. } = effect {
                    asked = true;
                    self.messages.questions += 1;
                    let reply = self.asked(endpoint, &body, sim.as_deref_mut());
                    self.processor.answered(tag, reply, self.time);
                }
            }
            if !asked {
                return;
            }
        }
    }

    /// What the resource-manager would answer.
    fn asked(&mut self, endpoint: &str, body: &Json, sim: Option<&mut Sim<'_>>) -> Reply {
        let (Some(sim), "lease.assign") = (sim, endpoint) else {
            return Err(Rejection::new(Code::Unavailable, format!("a simulation does not answer {endpoint}")));
        };
        let question = body.read::<AssignTasks>();
        let question = question.map_err(|error| Rejection::new(Code::InvalidRequest, error.to_string()))?;
        let (mut leases, mut refused) = (Vec::new(), Vec::new());
        for Placement { task, agent } in question.placements {
            self.messages.placements += 1;
            let lease = LeaseId(self.log.resource + 1 + leases.len() as u64);
            match self.grant(lease, &task, &agent, sim) {
                Ok(()) => leases.push(ResourceRecord::Assigned(Assigned { task, agent, resources: Resources::new() })),
                Err((code, why)) => {
                    refused.push(Refusal { task, agent, rejection: Rejection::new(code, why.to_owned()) });
                }
            }
        }
        self.messages.refused += refused.len() as u64;
        self.messages.assignments += leases.len() as u64;
        let granted = u32::try_from(leases.len()).unwrap_or(u32::MAX);
        if !leases.is_empty() {
            self.append_resource(leases);
        }
        answer(&AssignAnswer { granted, refused })
    }

    /// An agent begins a task, if it may.
    fn grant(
        &mut self,
        lease: LeaseId,
        id: &TaskId,
        agent: &AgentId,
        sim: &mut Sim<'_>,
    ) -> Result<(), (Code, &'static str)> {
        let job = *self.job_of.get(&id.run).ok_or((Code::UnknownRun, "there is no such run"))?;
        let task = sim.world.offset[job] + names::place_of_stage(&id.stage).unwrap_or(usize::MAX / 2);
        if sim.world.job.get(task) != Some(&job) || self.attempt[task] != id.attempt || !sim.is_waiting(task) {
            return Err((Code::NotReady, "the task does not wait for an agent"));
        }
        let agent = names::place_of_agent(agent).filter(|agent| *agent < sim.running.len());
        let agent = agent.ok_or((Code::UnknownAgent, "there is no such agent"))?;
        if !sim.is_idle(agent) || !sim.world.fleet.holds[agent][sim.world.class[task]] {
            return Err((Code::NoCapacity, "the agent is at work, or can not do it"));
        }
        sim.begin(task, agent, false);
        self.lease[agent] = lease;
        Ok(())
    }

    fn id(&self, sim: &Sim<'_>, task: usize) -> TaskId {
        TaskId {
            run: self.runs[sim.world.job[task]],
            stage: self.stages[task].clone(),
            item: None,
            attempt: self.attempt[task],
        }
    }

    /// Makes room for what is known of a world.
    fn begin(&mut self, sim: &Sim<'_>) {
        let world = sim.world;
        let first = self.started;
        self.runs = (0..world.jobs.len() as u64).map(|job| RunId::derive(self.base, u128::from(first + job))).collect();
        self.started += world.jobs.len() as u64;
        self.job_of = self.runs.iter().enumerate().map(|(job, run)| (*run, job)).collect();
        self.stages = (0..world.len()).map(|task| names::stage(world.place(task))).collect();
        self.attempt = vec![0; world.len()];
        self.lease = vec![LeaseId(0); world.fleet.len()];
        self.capabilities = world.jobs.iter().map(|job| names::capabilities(&job.graph)).collect();
    }
}

impl Policy for Machine {
    fn arrived(&mut self, sim: &mut Sim<'_>, job: usize) {
        self.clock(sim);
        if self.runs.is_empty() {
            self.begin(sim);
        }
        let it = &sim.world.jobs[job];
        let workflow = names::workflow(&it.graph);
        if self.known.insert(workflow.clone()) {
            let definition = names::definition(&it.graph);
            let registered = WorkflowRegistered { version: 1, definition };
            self.pending.push(WorkflowRecord::WorkflowRegistered(registered));
        }
        self.pending.push(WorkflowRecord::RunStarted(RunStarted {
            run: self.runs[job],
            workflow,
            version: 1,
            input: Json::null(),
            priority: it.weight.log2().round() as i32,
            key: None,
            trace: None,
        }));
    }

    fn ready(&mut self, sim: &mut Sim<'_>, tasks: &[usize]) {
        self.clock(sim);
        for &task in tasks {
            self.attempt[task] += 1;
            let job = sim.world.job[task];
            let it = &sim.world.jobs[job];
            let parents = sim.world.parents[task].iter();
            self.pending.push(WorkflowRecord::StageReady(StageReady {
                task: self.id(sim, task),
                agent_type: self.capabilities[job][it.graph.category[sim.world.place(task)]].clone(),
                inputs: parents.map(|&parent| self.stages[parent].clone()).collect(),
                input: None,
                resources: Resources::new(),
                priority: it.weight.log2().round() as i32,
            }));
        }
        self.pending.append(&mut self.finished);
    }

    fn finished(&mut self, sim: &mut Sim<'_>, task: usize, agent: usize, ok: bool, seconds: f64) {
        self.clock(sim);
        self.pending.push(WorkflowRecord::StageEnded(StageEnded {
            task: self.id(sim, task),
            lease: Some(self.lease[agent]),
            agent: Some(names::agent(agent)),
            outcome: if ok { Outcome::Succeeded } else { Outcome::Failed },
            result: None,
            error: (!ok).then(|| "the attempt failed".to_owned()),
            code: None,
            retry_at: (!ok).then_some(self.time),
            duration_ms: (seconds * 1000.0).round() as Millis,
            cost: Money::ZERO,
            usage: Usage::default(),
        }));
    }

    fn completed(&mut self, _: &mut Sim<'_>, job: usize) {
        self.finished.push(WorkflowRecord::RunFinished(RunFinished {
            run: self.runs[job],
            status: RunStatus::Succeeded,
            reason: None,
        }));
    }

    fn dispatch(&mut self, sim: &mut Sim<'_>) {
        self.clock(sim);
        let records = std::mem::take(&mut self.pending);
        if !records.is_empty() {
            self.append_workflow(records);
        }
        self.settle(Some(sim));
    }

    fn wakes(&self) -> Option<f64> {
        let at = self.processor.deadline()?.max(self.time + 1);
        Some(at.saturating_sub(self.base) as f64 / 1000.0)
    }

    fn wake(&mut self, sim: &mut Sim<'_>) {
        // What is woken up at a millisecond is to find that it is one, whatever becomes of its fraction.
        self.time = self.time.max(self.base + (sim.now * 1000.0).round() as Millis);
        self.processor.tick(self.time);
        self.settle(Some(sim));
    }
}
