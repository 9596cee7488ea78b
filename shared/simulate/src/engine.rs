//! Virtual time: agents that take as long as their speed says and fail as their luck says, and somebody who gives them tasks.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::draws::{normal, uniform};
use crate::workload::World;

/// Events that are no further apart than this happen at once, in seconds.
const AT_ONCE_S: f64 = 1e-9;
/// So often a policy may be woken up while nothing else happens before it counts as stuck.
const MAX_WAKES: u32 = 100_000;

/// Who gives tasks to agents.
pub trait Policy {
    /// A job has come.
    fn arrived(&mut self, _sim: &mut Sim<'_>, _job: usize) {}

    /// These tasks may run: what they wait for is done, or their last attempt has just failed.
    fn ready(&mut self, sim: &mut Sim<'_>, tasks: &[usize]);

    /// An attempt is over, after so many seconds.
    fn finished(&mut self, _sim: &mut Sim<'_>, _task: usize, _agent: usize, _ok: bool, _seconds: f64) {}

    /// All of a job is done.
    fn completed(&mut self, _sim: &mut Sim<'_>, _job: usize) {}

    /// Everything of this moment has been told: begin what is to begin ([`Sim::begin`]).
    fn dispatch(&mut self, sim: &mut Sim<'_>);

    /// When it wants to be called, if nothing else happens until then.
    fn wakes(&self) -> Option<f64> {
        None
    }

    /// That time has come.
    fn wake(&mut self, _sim: &mut Sim<'_>) {}
}

/// An agent that behaves differently from some time on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// From when on, in seconds: for attempts that begin later.
    pub at: f64,
    /// Who.
    pub agent: usize,
    /// By how much tasks take longer.
    pub slower: f64,
    /// With which probability attempts fail.
    pub failure: f64,
}

/// How a simulation goes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conditions {
    /// What all luck depends on.
    pub seed: u64,
    /// Whether nothing fails.
    pub flawless: bool,
    /// By how much times differ from one run to the next: the standard deviation of their logarithm.
    pub noise: f64,
    /// Agents that change, by time.
    pub drift: Vec<Drift>,
    /// How long after the end of an attempt its agent can begin another one, and whoever places learns of it: what messages take, in
    /// seconds.
    pub latency: f64,
}

/// An attempt, as its luck has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attempt {
    /// How long it takes, in seconds.
    pub takes: f64,
    /// Whether it succeeds.
    pub ok: bool,
}

impl Conditions {
    /// How an attempt at a task goes on an agent that has not changed, after so many that failed. The first agent that is at it is
    /// copy 0, the others have luck of their own.
    #[must_use]
    pub fn attempt(&self, world: &World, (task, agent): (usize, usize), tries: (u32, u32)) -> Attempt {
        self.luck(world, task, tries, (world.takes(task, agent), world.fleet.failure[agent]))
    }

    /// How one goes that takes so long unless it fails, with this probability.
    fn luck(
        &self,
        world: &World,
        task: usize,
        (failed, copy): (u32, u32),
        (mut takes, failure): (f64, f64),
    ) -> Attempt {
        let draw = 8 * u64::from(failed) + u64::from(copy.min(7));
        let Self { seed, flawless, noise, .. } = *self;
        let luck = |what: u64| uniform(&[seed, what, world.key[task], draw]);
        if noise > 0.0 {
            takes *= (noise * normal(&[seed, 23, world.key[task], draw]) - 0.5 * noise.powi(2)).exp();
        }
        let ok = flawless || luck(21) >= failure;
        if !ok {
            takes *= luck(22);
        }
        Attempt { takes, ok }
    }
}

/// Nothing happens any more, and not everything is done.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("at {now:.3} s nothing happens any more, and {left} of {tasks} tasks are not done: {waiting} are ready")]
pub struct Stuck {
    /// When.
    pub now: f64,
    /// How many tasks are not done.
    pub left: usize,
    /// How many of them could run.
    pub waiting: usize,
    /// How many tasks there are.
    pub tasks: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum What {
    Arrival(usize),
    End { agent: usize, attempt: u64, ok: bool },
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Event {
    at: f64,
    order: u64,
    what: What,
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then(self.order.cmp(&other.order))
    }
}

/// What an agent is doing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Running {
    /// The task.
    pub task: usize,
    /// Since when, in seconds.
    pub since: f64,
    /// Whether it is a second copy, made in case the first one fails or is late.
    pub hedge: bool,
    attempt: u64,
}

/// What came of a simulation. Times are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// From the first arrival to the last end.
    pub makespan: f64,
    /// From the arrival of a task's job to its end, on average over the tasks.
    pub completion: f64,
    /// Which part of the time agents were at work.
    pub utilization: f64,
    /// Which part of their work came to nothing: of attempts that failed, and of copies that were late.
    pub waste: f64,
    /// Which part of the attempts succeeded.
    pub succeeded: f64,
    /// Which part of the tasks succeeded at once.
    pub at_once: f64,
    /// Which part of the tasks needed no more than three attempts.
    pub within_three: f64,
    /// Which part of the edges joins tasks that ran on different agents.
    pub crossing: f64,
    /// How many attempts were begun.
    pub attempts: u64,
    /// How many of them were second copies.
    pub hedges: u64,
    /// When each job was done.
    pub done: Vec<f64>,
    /// How long each agent was at work.
    pub busy: Vec<f64>,
    /// The part of the jobs none of whose tasks needed more than three attempts.
    pub jobs_within_three: f64,
}

/// A simulation at some moment.
#[derive(Debug)]
pub struct Sim<'a> {
    /// What is run by whom.
    pub world: &'a World,
    conditions: &'a Conditions,
    /// The time, in seconds.
    pub now: f64,
    /// What each agent is doing.
    pub running: Vec<Option<Running>>,
    /// How often each task was begun.
    pub begun: Vec<u32>,
    /// How often each task has failed.
    pub failed: Vec<u32>,
    /// How many of those that each task waits for are not done.
    pub waits: Vec<usize>,
    /// Whether each task is done.
    pub done: Vec<bool>,
    /// How many tasks of each job are not done.
    pub left: Vec<usize>,
    events: BinaryHeap<Reverse<Event>>,
    next: u64,
    attempts: u64,
    /// Who runs each task.
    copies: Vec<Vec<usize>>,
    /// How many second copies each task has had since it last failed.
    copied: Vec<u32>,
    ends: Vec<f64>,
    ended_on: Vec<usize>,
    job_ends: Vec<f64>,
    slower: Vec<f64>,
    failure: Vec<f64>,
    drifted: usize,
    busy: Vec<f64>,
    wasted: f64,
    ended: u64,
    failures: u64,
    hedges: u64,
}

impl<'a> Sim<'a> {
    /// Simulates all jobs of a world under a policy.
    pub fn run(world: &'a World, conditions: &'a Conditions, policy: &mut dyn Policy) -> Result<Outcome, Stuck> {
        let mut sim = Self::new(world, conditions);
        let mut left = world.len();
        let mut wakes = 0;
        while left > 0 {
            let next = sim.events.peek().map(|Reverse(event)| event.at);
            if let Some(at) = policy.wakes().filter(|at| next.is_none_or(|next| *at < next)) {
                wakes += 1;
                if wakes > MAX_WAKES {
                    return Err(sim.stuck(left));
                }
                sim.now = sim.now.max(at);
                policy.wake(&mut sim);
                continue;
            }
            let Some(at) = next else { return Err(sim.stuck(left)) };
            wakes = 0;
            sim.now = at;
            sim.drift();
            let mut ready = Vec::new();
            while let Some(Reverse(event)) = sim.events.peek().copied().filter(|Reverse(e)| e.at <= at + AT_ONCE_S) {
                sim.events.pop();
                match event.what {
                    What::Arrival(job) => {
                        policy.arrived(&mut sim, job);
                        let offset = world.offset[job];
                        let tasks = offset..offset + world.jobs[job].graph.len();
                        ready.extend(tasks.filter(|&task| sim.waits[task] == 0));
                    }
                    What::End { agent, attempt, ok } => {
                        if let Some(running) = sim.running[agent].filter(|running| running.attempt == attempt) {
                            left -= usize::from(ok);
                            sim.end(agent, running, ok, policy, &mut ready);
                        }
                    }
                }
            }
            policy.ready(&mut sim, &ready);
            policy.dispatch(&mut sim);
        }
        Ok(sim.outcome())
    }

    fn new(world: &'a World, conditions: &'a Conditions) -> Self {
        let (n, agents) = (world.len(), world.fleet.len());
        let arrivals = world
            .jobs
            .iter()
            .enumerate()
            .map(|(job, it)| Reverse(Event { at: it.arrives, order: job as u64, what: What::Arrival(job) }));
        Self {
            world,
            conditions,
            now: 0.0,
            running: vec![None; agents],
            begun: vec![0; n],
            failed: vec![0; n],
            waits: world.parents.iter().map(Vec::len).collect(),
            done: vec![false; n],
            left: world.jobs.iter().map(|job| job.graph.len()).collect(),
            events: arrivals.collect(),
            next: world.jobs.len() as u64,
            attempts: 0,
            copies: vec![Vec::new(); n],
            copied: vec![0; n],
            ends: vec![0.0; n],
            ended_on: vec![0; n],
            job_ends: vec![0.0; world.jobs.len()],
            slower: vec![1.0; agents],
            failure: world.fleet.failure.clone(),
            drifted: 0,
            busy: vec![0.0; agents],
            wasted: 0.0,
            ended: 0,
            failures: 0,
            hedges: 0,
        }
    }

    /// Whether an agent is doing nothing.
    #[must_use]
    pub fn is_idle(&self, agent: usize) -> bool {
        self.running[agent].is_none()
    }

    /// Who is working on a task.
    #[must_use]
    pub fn copies(&self, task: usize) -> &[usize] {
        &self.copies[task]
    }

    /// Whether a task may be begun, and nobody is working on it.
    #[must_use]
    pub fn is_waiting(&self, task: usize) -> bool {
        let arrived = self.world.jobs[self.world.job[task]].arrives <= self.now + AT_ONCE_S;
        arrived && !self.done[task] && self.waits[task] == 0 && self.copies[task].is_empty()
    }

    /// What luck depends on.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.conditions.seed
    }

    /// An agent that is idle and can do it begins an attempt at a task.
    ///
    /// A second copy (`hedge`) has luck of its own, and does not change that of the first.
    ///
    /// # Panics
    /// If the agent is at work or can not do it, or the task is done or waits for others: a policy must know.
    pub fn begin(&mut self, task: usize, agent: usize, hedge: bool) {
        let world = self.world;
        assert!(self.running[agent].is_none(), "agent {agent} is at work");
        assert!(!self.done[task] && self.waits[task] == 0, "task {task} can not run now");
        assert!(world.fleet.holds[agent][world.class[task]], "agent {agent} can not do task {task}");
        self.copied[task] = if hedge { self.copied[task] + 1 } else { 0 };
        let tries = (self.failed[task], self.copied[task]);
        let usual = (world.takes(task, agent) * self.slower[agent], self.failure[agent]);
        let Attempt { takes, ok } = self.conditions.luck(world, task, tries, usual);
        self.begun[task] += 1;
        self.attempts += 1;
        self.hedges += u64::from(hedge);
        self.running[agent] = Some(Running { task, since: self.now, hedge, attempt: self.attempts });
        self.copies[task].push(agent);
        self.next += 1;
        let what = What::End { agent, attempt: self.attempts, ok };
        self.events.push(Reverse(Event { at: self.now + takes + self.conditions.latency, order: self.next, what }));
    }

    /// What an agent is doing is broken off: its work so far is lost. Its luck is not, so that breaking off is no second try.
    pub fn cancel(&mut self, agent: usize) {
        let Some(running) = self.running[agent].take() else { return };
        let spent = self.now - running.since;
        self.busy[agent] += spent;
        self.wasted += spent;
        self.copies[running.task].retain(|&other| other != agent);
    }

    fn drift(&mut self) {
        while let Some(drift) = self.conditions.drift.get(self.drifted).filter(|drift| drift.at <= self.now) {
            self.slower[drift.agent] = drift.slower;
            self.failure[drift.agent] = drift.failure;
            self.drifted += 1;
        }
    }

    fn end(&mut self, agent: usize, running: Running, ok: bool, policy: &mut dyn Policy, ready: &mut Vec<usize>) {
        let (task, spent) = (running.task, self.now - running.since - self.conditions.latency);
        self.running[agent] = None;
        self.busy[agent] += spent;
        self.ended += 1;
        self.copies[task].retain(|&other| other != agent);
        policy.finished(self, task, agent, ok, spent);
        if !ok {
            self.failures += 1;
            self.wasted += spent;
            match self.copies[task].first() {
                // The second copy is the first one now.
                Some(&other) => {
                    if let Some(running) = &mut self.running[other] {
                        running.hedge = false;
                    }
                }
                None => {
                    self.failed[task] += 1;
                    ready.push(task);
                }
            }
            return;
        }
        for other in std::mem::take(&mut self.copies[task]) {
            self.cancel(other);
        }
        self.done[task] = true;
        self.ends[task] = self.now;
        self.ended_on[task] = agent;
        let job = self.world.job[task];
        self.left[job] -= 1;
        if self.left[job] == 0 {
            self.job_ends[job] = self.now;
            policy.completed(self, job);
        }
        for &child in &self.world.children[task] {
            self.waits[child] -= 1;
            if self.waits[child] == 0 {
                ready.push(child);
            }
        }
    }

    fn stuck(&self, left: usize) -> Stuck {
        let waiting = (0..self.world.len()).filter(|&task| self.is_waiting(task)).count();
        Stuck { now: self.now, left, waiting, tasks: self.world.len() }
    }

    fn outcome(self) -> Outcome {
        let (world, n) = (self.world, self.world.len() as f64);
        let from = world.jobs.iter().map(|job| job.arrives).fold(f64::INFINITY, f64::min);
        let makespan = self.ends.iter().copied().fold(0.0, f64::max) - from;
        let took = |(task, end): (usize, &f64)| end - world.jobs[world.job[task]].arrives;
        let part = |of: u64, all: f64| of as f64 / all.max(1.0);
        let count = |wanted: &dyn Fn(&u32) -> bool| self.failed.iter().filter(|failed| wanted(failed)).count() as u64;
        let edges = world.parents.iter().map(Vec::len).sum::<usize>();
        let crosses = |child: usize| {
            let parents = world.parents[child].iter();
            parents.filter(|&&parent| self.ended_on[parent] != self.ended_on[child]).count()
        };
        let busy: f64 = self.busy.iter().sum();
        let mut slow = vec![false; world.jobs.len()];
        for (task, _) in self.failed.iter().enumerate().filter(|(_, failed)| **failed >= 3) {
            slow[world.job[task]] = true;
        }
        Outcome {
            makespan,
            completion: self.ends.iter().enumerate().map(took).sum::<f64>() / n,
            utilization: busy / (world.fleet.len() as f64 * makespan),
            waste: self.wasted / busy.max(1e-9),
            succeeded: 1.0 - part(self.failures, self.ended as f64),
            at_once: part(count(&|failed| *failed == 0), n),
            within_three: part(count(&|failed| *failed < 3), n),
            crossing: part((0..world.len()).map(crosses).sum::<usize>() as u64, edges as f64),
            attempts: self.attempts,
            hedges: self.hedges,
            done: self.job_ends,
            busy: self.busy,
            jobs_within_three: 1.0 - part(slow.iter().filter(|slow| **slow).count() as u64, slow.len() as f64),
        }
    }
}
