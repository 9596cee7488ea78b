//! The optimizer itself as a policy: what it is told of a world, and what it does there.

use std::collections::BTreeMap;
use std::sync::Arc;

use baton_optimizer::{Config, Optimizer};
use baton_protocol::record::{
    AgentRegistered, CopyEnded, OtherCopy, Outcome, ResourceRecord, RunFinished, RunStarted, StageEnded, StageReady,
    WorkflowRecord, WorkflowRegistered,
};
use baton_protocol::request::{Lesson, Strategy, Usage};
use baton_protocol::run::RunStatus;
use baton_protocol::{
    AgentId, Capability, Code, Json, LeaseId, Millis, Money, Requirements, Resources, RunId, StageName, TaskId,
};

use crate::driver::Driver;
use crate::engine::{Policy, Sim};
use crate::fleet::Fleet;
use crate::names;
use crate::workload::{Graph, Job};

pub use crate::driver::{Learned, Messages};

/// The optimizer, given a world to place.
#[derive(Debug)]
pub struct Machine {
    driver: Driver,
    view: View,
    /// What the workflow-manager will append next.
    pending: Vec<WorkflowRecord>,
    /// The ends of runs, which come after those of their tasks.
    finished: Vec<WorkflowRecord>,
    /// Whether a second agent may be given a task.
    hedge: bool,
}

/// What in the world is called how in the log.
#[derive(Debug, Default)]
struct View {
    /// The run of each job, and back.
    runs: Vec<RunId>,
    job_of: BTreeMap<RunId, usize>,
    /// What each task is called.
    stages: Vec<StageName>,
    /// What the tasks of each job are called for, by category.
    capabilities: Vec<Vec<Capability>>,
    /// The attempt at each task.
    attempt: Vec<u32>,
    /// The lease that each agent's work is under.
    lease: Vec<LeaseId>,
}

impl Machine {
    /// A machine that knows nothing but a fleet, whose agents can do what the categories of these graphs ask for.
    #[must_use]
    pub fn new(strategy: Strategy, config: Config, fleet: &Fleet, graphs: &[Arc<Graph>]) -> Self {
        let agents = (0..fleet.len()).map(|agent| {
            ResourceRecord::AgentRegistered(AgentRegistered {
                agent: names::agent(agent),
                session: "s".into(),
                agent_type: Capability::new(names::WORKER).expect("it is a name"),
                capabilities: names::held(fleet, agent, graphs)
                    .into_iter()
                    .map(|held| (held, BTreeMap::new()))
                    .collect(),
                resources: Resources::new(),
                slots: 1,
                priority: 0,
                batches: false,
            })
        });
        Self::around(Driver::new(strategy, config, agents.collect()))
    }

    /// Goes on from where a machine stood.
    #[must_use]
    pub fn resume(learned: &Learned) -> Self {
        Self::around(Driver::resume(learned))
    }

    fn around(driver: Driver) -> Self {
        Self { driver, view: View::default(), pending: Vec::new(), finished: Vec::new(), hedge: true }
    }

    /// The machine.
    #[must_use]
    pub fn optimizer(&self) -> &Optimizer {
        self.driver.optimizer()
    }

    /// Tells it what was learned elsewhere.
    ///
    /// # Panics
    /// If a lesson can not be read.
    pub fn teach(&mut self, lessons: Vec<Lesson>) {
        self.driver.teach(lessons);
    }

    /// What was said since it was made.
    #[must_use]
    pub fn messages(&self) -> Messages {
        self.driver.messages
    }

    /// Ends a simulation: what was learned in it.
    ///
    /// # Panics
    /// If something is still to be committed, which nothing is after a simulation.
    #[must_use]
    pub fn learned(&self) -> Learned {
        self.driver.learned()
    }
}

impl View {
    fn new(driver: &mut Driver, sim: &Sim<'_>) -> Self {
        let world = sim.world;
        let runs = driver.runs(world.jobs.len());
        Self {
            job_of: runs.iter().enumerate().map(|(job, run)| (*run, job)).collect(),
            runs,
            stages: (0..world.len()).map(|task| names::stage(world.place(task))).collect(),
            capabilities: world.jobs.iter().map(|job| names::capabilities(&job.graph)).collect(),
            attempt: vec![0; world.len()],
            lease: vec![LeaseId(0); world.fleet.len()],
        }
    }

    fn id(&self, sim: &Sim<'_>, task: usize) -> TaskId {
        TaskId {
            run: self.runs[sim.world.job[task]],
            stage: self.stages[task].clone(),
            item: None,
            attempt: self.attempt[task],
        }
    }

    /// An agent begins a task, if it may.
    fn grant(
        &mut self,
        sim: &mut Sim<'_>,
        lease: LeaseId,
        id: &TaskId,
        agent: &AgentId,
        beside: Option<LeaseId>,
    ) -> Result<Resources, (Code, &'static str)> {
        let job = *self.job_of.get(&id.run).ok_or((Code::UnknownRun, "there is no such run"))?;
        let place = names::place_of_stage(&id.stage).ok_or((Code::NotReady, "there is no such stage"))?;
        let task = sim.world.offset[job].saturating_add(place);
        let is_task = sim.world.job.get(task) == Some(&job) && self.attempt[task] == id.attempt;
        let may = |first| match sim.copies(task) {
            [only] => self.lease[*only] == first,
            _ => false,
        };
        if !is_task || !beside.map_or_else(|| sim.is_waiting(task), may) {
            return Err((Code::NotReady, "the task does not wait for an agent"));
        }
        let agent = names::place_of_agent(agent).filter(|agent| *agent < sim.running.len());
        let agent = agent.ok_or((Code::UnknownAgent, "there is no such agent"))?;
        if !sim.is_idle(agent) || !sim.world.fleet.holds[agent][sim.world.class[task]] {
            return Err((Code::NoCapacity, "the agent is at work, or can not do it"));
        }
        sim.begin(task, agent, beside.is_some());
        self.lease[agent] = lease;
        Ok(Resources::new())
    }
}

/// The step of priority that a job's weight is: each doubles it.
fn priority(job: &Job) -> i32 {
    job.weight.log2().round() as i32
}

impl Policy for Machine {
    fn arrived(&mut self, sim: &mut Sim<'_>, job: usize) {
        self.driver.at(sim.now);
        if self.view.runs.is_empty() {
            self.view = View::new(&mut self.driver, sim);
        }
        let it = &sim.world.jobs[job];
        let workflow = names::workflow(&it.graph);
        if self.driver.is_new(&workflow) {
            let definition = names::definition(&it.graph);
            self.pending.push(WorkflowRecord::WorkflowRegistered(WorkflowRegistered { version: 1, definition }));
        }
        self.pending.push(WorkflowRecord::RunStarted(RunStarted {
            run: self.view.runs[job],
            workflow,
            version: 1,
            input: Json::null(),
            priority: priority(it),
            key: None,
            trace: None,
            strategy: None,
            due: it.deadline.map(|seconds| self.driver.in_millis(seconds)),
            budget: None,
            metadata: Default::default(),
            rerun: None,
            parent: None,
            no_cache: false,
        }));
    }

    fn ready(&mut self, sim: &mut Sim<'_>, tasks: &[usize]) {
        self.driver.at(sim.now);
        for &task in tasks {
            self.view.attempt[task] += 1;
            let job = sim.world.job[task];
            let it = &sim.world.jobs[job];
            let parents = sim.world.parents[task].iter();
            self.pending.push(WorkflowRecord::StageReady(StageReady {
                task: self.view.id(sim, task),
                agent_type: self.view.capabilities[job][it.graph.category[sim.world.place(task)]].clone(),
                requires: Requirements::none(),
                inputs: parents.map(|&parent| self.view.stages[parent].clone()).collect(),
                input: None,
                cache: None,
                hedge: self.hedge,
                speculative: false,
                resources: Resources::new(),
                priority: priority(it),
            }));
        }
        self.pending.append(&mut self.finished);
    }

    fn finished(&mut self, sim: &mut Sim<'_>, task: usize, agent: usize, ok: bool, seconds: f64) {
        self.driver.at(sim.now);
        let holder = |agent: usize| OtherCopy { lease: self.view.lease[agent], agent: names::agent(agent) };
        let other = sim.copies(task).first().map(|other| holder(*other));
        if !ok && other.is_some() {
            let OtherCopy { lease, agent } = holder(agent);
            self.pending.push(WorkflowRecord::CopyEnded(Box::new(CopyEnded {
                task: self.view.id(sim, task),
                lease,
                agent,
                outcome: Outcome::Failed,
                error: Some("the attempt failed".to_owned()),
                code: None,
                duration_ms: (seconds * 1000.0).round() as Millis,
                cost: Money::ZERO,
                usage: Usage::default(),
                model: None,
            })));
            return;
        }
        self.pending.push(WorkflowRecord::StageEnded(StageEnded {
            task: self.view.id(sim, task),
            lease: Some(self.view.lease[agent]),
            agent: Some(names::agent(agent)),
            outcome: if ok { Outcome::Succeeded } else { Outcome::Failed },
            result: None,
            error: (!ok).then(|| "the attempt failed".to_owned()),
            hopeless: false,
            code: None,
            retry_at: (!ok).then(|| self.driver.time()),
            duration_ms: (seconds * 1000.0).round() as Millis,
            cost: Money::ZERO,
            usage: Usage::default(),
            model: None,
            delegated: None,
            speculative: false,
            other: other.map(Box::new),
        }));
    }

    fn completed(&mut self, _: &mut Sim<'_>, job: usize) {
        self.finished.push(WorkflowRecord::RunFinished(RunFinished {
            run: self.view.runs[job],
            status: RunStatus::Succeeded,
            reason: None,
        }));
    }

    fn dispatch(&mut self, sim: &mut Sim<'_>) {
        self.driver.at(sim.now);
        let (records, view) = (std::mem::take(&mut self.pending), &mut self.view);
        self.driver.tell(records, &mut |lease, task, agent, beside| view.grant(sim, lease, task, agent, beside));
    }

    fn wakes(&self) -> Option<f64> {
        self.driver.wakes()
    }

    fn wake(&mut self, sim: &mut Sim<'_>) {
        let (now, view) = (sim.now, &mut self.view);
        self.driver.wake(now, &mut |lease, task, agent, beside| view.grant(sim, lease, task, agent, beside));
    }
}
