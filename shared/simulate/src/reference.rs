//! Policies to compare with, outside of the optimizer.

use std::collections::VecDeque;
use std::fmt;

use crate::bounds::Ahead;
use crate::draws::uniform;
use crate::engine::{Policy, Sim};

/// A policy to compare with. None of them knows how long anything takes, or learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// Each task is given to an agent as soon as it is ready; any of those that can do it, by lot.
    Random,
    /// As soon as it is ready; agents take turns.
    RoundRobin,
    /// As soon as it is ready, to the one of two drawn by lot that has fewer tasks (Mitzenmacher: The Power of Two Choices in
    /// Randomized Load Balancing, 2001).
    TwoChoices,
    /// As soon as it is ready, to the agent that has the fewest tasks.
    LeastOutstanding,
    /// Tasks wait in one queue; an agent that becomes free takes the first one that it can do.
    SharedQueue,
}

impl Reference {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Random, Self::RoundRobin, Self::TwoChoices, Self::LeastOutstanding, Self::SharedQueue];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random push",
            Self::RoundRobin => "round robin push",
            Self::TwoChoices => "two choices push",
            Self::LeastOutstanding => "least outstanding push",
            Self::SharedQueue => "shared queue",
        }
    }

    /// Begins anew.
    #[must_use]
    pub fn policy(self) -> Box<dyn Policy> {
        match self {
            Self::SharedQueue => Box::<SharedQueue>::default(),
            push => {
                Box::new(Push { rule: push, queues: Vec::new(), outstanding: Vec::new(), turns: Vec::new(), turn: 0 })
            }
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Early binding: what was given to an agent stays there.
#[derive(Debug)]
struct Push {
    rule: Reference,
    queues: Vec<VecDeque<usize>>,
    /// How many tasks each agent has, the one it works on included.
    outstanding: Vec<usize>,
    /// How often a task of each class was given away.
    turns: Vec<usize>,
    turn: usize,
}

impl Push {
    fn pick(&mut self, sim: &Sim<'_>, task: usize) -> usize {
        let class = sim.world.class[task];
        let able = &sim.world.fleet.able[class];
        let drawn = |what: u64| {
            let draw = uniform(&[sim.seed(), what, sim.world.key[task], u64::from(sim.begun[task])]);
            able[(draw * able.len() as f64) as usize]
        };
        match self.rule {
            Reference::Random => drawn(41),
            Reference::RoundRobin => {
                self.turns[class] += 1;
                able[(self.turns[class] - 1) % able.len()]
            }
            Reference::TwoChoices => {
                let (one, other) = (drawn(42), drawn(43));
                if self.outstanding[one] <= self.outstanding[other] { one } else { other }
            }
            Reference::LeastOutstanding | Reference::SharedQueue => {
                self.turn += 1;
                let from = |i: usize| able[(i + self.turn) % able.len()];
                let least = (0..able.len()).min_by_key(|&i| self.outstanding[from(i)]);
                from(least.unwrap_or(0))
            }
        }
    }
}

impl Policy for Push {
    fn ready(&mut self, sim: &mut Sim<'_>, tasks: &[usize]) {
        let agents = sim.running.len();
        self.queues.resize(agents, VecDeque::new());
        self.outstanding.resize(agents, 0);
        self.turns.resize(sim.world.fleet.classes(), 0);
        for &task in tasks {
            let agent = self.pick(sim, task);
            self.queues[agent].push_back(task);
            self.outstanding[agent] += 1;
        }
    }

    fn finished(&mut self, _: &mut Sim<'_>, _: usize, agent: usize, _: bool, _: f64) {
        self.outstanding[agent] -= 1;
    }

    fn dispatch(&mut self, sim: &mut Sim<'_>) {
        for agent in 0..self.queues.len() {
            if sim.is_idle(agent)
                && let Some(task) = self.queues[agent].pop_front()
            {
                sim.begin(task, agent, false);
            }
        }
    }
}

/// Late binding, first come first served.
#[derive(Debug, Default)]
struct SharedQueue {
    queue: Vec<usize>,
    /// Who is asked first.
    first: usize,
}

impl Policy for SharedQueue {
    fn ready(&mut self, _: &mut Sim<'_>, tasks: &[usize]) {
        self.queue.extend(tasks);
    }

    fn dispatch(&mut self, sim: &mut Sim<'_>) {
        let agents = sim.running.len();
        let turned = (0..agents).map(|i| (i + self.first) % agents);
        let mut idle: Vec<usize> = turned.filter(|&agent| sim.is_idle(agent)).collect();
        let mut rest = Vec::new();
        for task in std::mem::take(&mut self.queue) {
            let class = sim.world.class[task];
            match idle.iter().position(|&agent| sim.world.fleet.holds[agent][class]) {
                Some(place) => {
                    let agent = idle.remove(place);
                    self.first = agent + 1;
                    sim.begin(task, agent, false);
                }
                None => rest.push(task),
            }
        }
        self.queue = rest;
    }
}

/// Carries out a plan that was made ahead: each agent does its tasks in their order, and tries again what failed.
#[derive(Debug)]
pub struct Follow {
    todo: Vec<VecDeque<usize>>,
}

impl Follow {
    /// Follows a plan for so many agents.
    #[must_use]
    pub fn new(plan: &Ahead, agents: usize) -> Self {
        let mut todo = vec![VecDeque::new(); agents];
        for &task in &plan.order {
            todo[plan.agent[task]].push_back(task);
        }
        Self { todo }
    }
}

impl Policy for Follow {
    fn ready(&mut self, _: &mut Sim<'_>, _: &[usize]) {}

    fn dispatch(&mut self, sim: &mut Sim<'_>) {
        for (agent, todo) in self.todo.iter_mut().enumerate() {
            if !sim.is_idle(agent) {
                continue;
            }
            if todo.front().is_some_and(|&task| sim.done[task]) {
                todo.pop_front();
            }
            if let Some(&task) = todo.front().filter(|&&task| sim.waits[task] == 0) {
                sim.begin(task, agent, false);
            }
        }
    }
}
