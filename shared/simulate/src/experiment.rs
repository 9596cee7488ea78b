//! Instances × fleets × luck × policies, and the table of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use baton_optimizer::Config;
use serde::Serialize;

use crate::bounds::{Bounds, bounds, heft};
use crate::engine::{Conditions, Outcome, Stuck};
use crate::fleet::Fleet;
use crate::machine::{Learned, Messages};
use crate::reference::Reference;
use crate::who::{Error, Fleets, History, Who, geometric_mean, mean, mean_of_all};
use crate::workload::{Graph, Job, World};

/// What luck depends on where history is made.
const HISTORY_SEED: u64 = 1000;
/// The same where the same workflow was seen before.
const REPEAT_SEED: u64 = 4242;
/// By how much times differ between a run and the one that was seen before: the standard deviation of their logarithm.
const REPEAT_NOISE: f64 = 0.2;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The workflows, each alone.
    pub graphs: Vec<Arc<Graph>>,
    /// The fleets.
    pub fleets: Fleets,
    /// What the luck of attempts depends on; averaged over.
    pub luck: Vec<u64>,
    /// Who places.
    pub who: Vec<Who>,
    /// What was seen before: `siblings`, one run of each of the other workflows on this fleet; `same`, that and then one run
    /// of this very workflow, in which everything took a little more or less; `known`, all that there is to learn.
    pub history: History,
}

/// One workflow on one fleet under one policy: the mean over the seeds of luck. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    /// The workflow.
    pub instance: String,
    /// How many tasks it has.
    pub tasks: usize,
    /// How many agents.
    pub agents: usize,
    /// What the fleet was drawn from.
    pub fleet: u64,
    /// Who placed.
    pub policy: String,
    /// What was seen before.
    pub history: History,
    /// The critical path.
    pub critical_path: f64,
    /// The area bound.
    pub area: f64,
    /// The lower bound of the makespan.
    pub bound: f64,
    /// The makespan of clairvoyant HEFT where nothing fails.
    pub heft: f64,
    /// The makespan.
    pub makespan: f64,
    /// By the lower bound.
    pub to_bound: f64,
    /// By HEFT's.
    pub to_heft: f64,
    /// The mean time from the start to the end of a task.
    pub completion: f64,
    /// Which part of the time agents were at work.
    pub utilization: f64,
    /// Which part of the attempts succeeded.
    pub succeeded: f64,
    /// Which part of the tasks needed no more than three attempts.
    pub within_three: f64,
    /// Which part of the work came to nothing.
    pub waste: f64,
    /// Which part of the edges joins tasks on different agents.
    pub crossing: f64,
    /// How many messages a task took; none where nobody sends any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<f64>,
    /// How many it would have taken if nothing were sent together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_alone: Option<f64>,
    /// How many second copies there were a task.
    pub hedges: f64,
}

/// Measures; tells each measurement as it is made.
pub fn run(plan: &Plan, mut tell: impl FnMut(&Measurement)) -> Result<Vec<Measurement>, Error> {
    let mut all = Vec::new();
    for fleet in plan.fleets.draw() {
        for place in 0..plan.graphs.len() {
            let cell = Cell::new(plan, &fleet, place);
            for &who in &plan.who {
                let name = &plan.graphs[place].name;
                let measurement = cell.measure(who).map_err(|stuck| Error::new(name, &fleet, who, stuck))?;
                tell(&measurement);
                all.push(measurement);
            }
        }
    }
    Ok(all)
}

/// One workflow on one fleet.
#[derive(Debug)]
pub struct Cell<'a> {
    plan: &'a Plan,
    fleet: &'a Arc<Fleet>,
    /// Which of the workflows.
    place: usize,
    world: World,
    bounds: Bounds,
    /// The makespan of HEFT.
    heft: f64,
}

impl<'a> Cell<'a> {
    /// The workflow at this place of a plan, on a fleet.
    ///
    /// # Panics
    /// If the plan has no such workflow.
    #[must_use]
    pub fn new(plan: &'a Plan, fleet: &'a Arc<Fleet>, place: usize) -> Self {
        let world = World::new(vec![Job::new(&plan.graphs[place])], fleet);
        let (bounds, heft) = (bounds(&world), heft(&world).makespan);
        Self { plan, fleet, place, world, bounds, heft }
    }

    /// The workflow and the fleet together.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The lower bound of the makespan, in seconds.
    #[must_use]
    pub fn bound(&self) -> f64 {
        self.bounds.makespan
    }

    /// The makespan of clairvoyant HEFT where nothing fails, in seconds.
    #[must_use]
    pub fn heft(&self) -> f64 {
        self.heft
    }

    fn measure(&self, who: Who) -> Result<Measurement, Stuck> {
        let learned = self.learn(who)?;
        let simulate =
            |seed: &u64| self.simulate(who, &Conditions { seed: *seed, ..Conditions::default() }, learned.as_ref());
        let outcomes = self.plan.luck.iter().map(simulate).collect::<Result<Vec<_>, _>>()?;
        Ok(self.mean(who, &outcomes))
    }

    /// Simulates it under a policy, which goes on from what it has learned. Gives what was said, too, where anything is.
    pub fn simulate(
        &self,
        who: Who,
        conditions: &Conditions,
        learned: Option<&Learned>,
    ) -> Result<(Outcome, Option<Messages>), Stuck> {
        who.simulate(&self.world, conditions, &self.plan.graphs, (&Config::default(), learned))
    }

    /// What the optimizer has learned before it is given the workflow; nothing if nothing was seen before, or nobody learns.
    pub fn learn(&self, who: Who) -> Result<Option<Learned>, Stuck> {
        let Plan { graphs, history, .. } = self.plan;
        if *history == History::Known {
            return Ok(who.knows(self.fleet, graphs, &Config::default()));
        }
        let mut learned = None;
        if *history == History::None || !matches!(who, Who::Strategy(_)) {
            return Ok(learned);
        }
        for (nth, graph) in graphs.iter().enumerate().filter(|(nth, _)| *nth != self.place) {
            let conditions = Conditions { seed: HISTORY_SEED + nth as u64, ..Conditions::default() };
            let world = World::new(vec![Job::new(graph)], self.fleet);
            learned = who.learn(&world, &conditions, graphs, (&Config::default(), learned.as_ref()))?;
        }
        if *history == History::Same {
            let conditions = Conditions { seed: REPEAT_SEED, noise: REPEAT_NOISE, ..Conditions::default() };
            learned = who.learn(&self.world, &conditions, graphs, (&Config::default(), learned.as_ref()))?;
        }
        Ok(learned)
    }

    fn mean(&self, who: Who, outcomes: &[(Outcome, Option<Messages>)]) -> Measurement {
        let graph = &self.plan.graphs[self.place];
        let tasks = graph.len();
        let average = |of: &dyn Fn(&Outcome) -> f64| mean(outcomes.iter().map(|(outcome, _)| of(outcome)));
        let per_task = |of: fn(&Messages) -> u64| {
            let counts = outcomes.iter().map(|(_, messages)| messages.as_ref().map(|it| of(it) as f64 / tasks as f64));
            mean_of_all(counts)
        };
        let (bound, heft) = (self.bounds.makespan, self.heft);
        Measurement {
            instance: graph.name.clone(),
            tasks,
            agents: self.fleet.len(),
            fleet: self.fleet.plan.seed,
            policy: who.to_string(),
            history: self.plan.history,
            critical_path: self.bounds.critical_path,
            area: self.bounds.area,
            bound,
            heft,
            makespan: average(&|it| it.makespan),
            to_bound: average(&|it| it.makespan / bound),
            to_heft: average(&|it| it.makespan / heft),
            completion: average(&|it| it.completion),
            utilization: average(&|it| it.utilization),
            succeeded: average(&|it| it.succeeded),
            within_three: average(&|it| it.within_three),
            waste: average(&|it| it.waste),
            crossing: average(&|it| it.crossing),
            messages: per_task(Messages::sent),
            messages_alone: per_task(Messages::each_alone),
            hedges: average(&|it| it.hedges as f64) / tasks as f64,
        }
    }
}

/// A row of the table: a policy on fleets of one size, over all instances and fleets. Ratios are geometric means, parts are
/// means.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// How many agents.
    pub agents: usize,
    /// Who placed.
    pub policy: String,
    /// Makespan by the lower bound.
    pub to_bound: f64,
    /// Makespan by clairvoyant HEFT's.
    pub to_heft: f64,
    /// The greatest ratio of the makespan to that of the shared queue, on one instance; none if that was not measured.
    pub worst: Option<f64>,
    /// Completion by that of round robin push; none if that was not measured.
    pub completion: Option<f64>,
    /// Utilization.
    pub utilization: f64,
    /// Success of an attempt.
    pub succeeded: f64,
    /// Tasks done within three attempts.
    pub within_three: f64,
    /// Work that came to nothing.
    pub waste: f64,
    /// Messages a task.
    pub messages: Option<f64>,
    /// Messages a task if nothing were sent together.
    pub messages_alone: Option<f64>,
}

/// The table of measurements, in their order.
#[must_use]
pub fn table(measurements: &[Measurement]) -> Vec<Row> {
    let mut cells: Vec<((usize, &str), Vec<&Measurement>)> = Vec::new();
    for measurement in measurements {
        let key = (measurement.agents, measurement.policy.as_str());
        match cells.iter_mut().find(|(known, _)| *known == key) {
            Some((_, cell)) => cell.push(measurement),
            None => cells.push((key, vec![measurement])),
        }
    }
    let cell_of = |agents: usize, who: Reference| {
        cells.iter().find(|((a, policy), _)| *a == agents && *policy == who.as_str()).map(|(_, cell)| cell)
    };
    // All policies are measured on the same instances and fleets, in the same order.
    let ratios = |cell: &[&Measurement], base: &[&Measurement], of: fn(&Measurement) -> f64| {
        cell.iter().zip(base).map(|(one, other)| of(one) / of(other)).collect::<Vec<f64>>()
    };
    let row = |((agents, policy), cell): &((usize, &str), Vec<&Measurement>)| {
        let average = |of: fn(&Measurement) -> f64| mean(cell.iter().map(|it| of(it)));
        let maybe = |of: fn(&Measurement) -> Option<f64>| mean_of_all(cell.iter().map(|it| of(it)));
        let queue = cell_of(*agents, Reference::SharedQueue);
        let worst = queue.map(|queue| {
            let mut by_instance: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            for (it, ratio) in cell.iter().zip(ratios(cell, queue, |it| it.to_heft)) {
                by_instance.entry(&it.instance).or_default().push(ratio);
            }
            by_instance.into_values().map(geometric_mean).fold(0.0, f64::max)
        });
        let turns = cell_of(*agents, Reference::RoundRobin);
        Row {
            agents: *agents,
            policy: (*policy).to_owned(),
            to_bound: geometric_mean(cell.iter().map(|it| it.to_bound)),
            to_heft: geometric_mean(cell.iter().map(|it| it.to_heft)),
            worst,
            completion: turns.map(|turns| geometric_mean(ratios(cell, turns, |it| it.completion))),
            utilization: average(|it| it.utilization),
            succeeded: average(|it| it.succeeded),
            within_three: average(|it| it.within_three),
            waste: average(|it| it.waste),
            messages: maybe(|it| it.messages),
            messages_alone: maybe(|it| it.messages_alone),
        }
    };
    cells.iter().map(row).collect()
}
