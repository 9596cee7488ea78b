//! Instances × fleets × luck × policies, and the table of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use baton_protocol::request::Strategy;
use serde::Serialize;

use crate::bounds::{Ahead, Bounds, bounds, heft};
use crate::engine::{Conditions, Outcome, Policy, Sim, Stuck};
use crate::fleet::{Fleet, FleetPlan};
use crate::machine::{Learned, Machine, Messages};
use crate::reference::{Follow, Reference};
use crate::workload::{Graph, Job, World};

/// What luck depends on where history is made.
const HISTORY_SEED: u64 = 1000;
/// The same where the same workflow was seen before.
const REPEAT_SEED: u64 = 4242;
/// By how much times differ between a run and the one that was seen before: the standard deviation of their logarithm.
const REPEAT_NOISE: f64 = 0.2;

/// Who places tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The optimizer, under a strategy.
    Strategy(Strategy),
    /// A policy to compare with.
    Reference(Reference),
    /// HEFT's plan, which knew how long everything takes, carried out where attempts fail.
    HeftPlan,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Strategy(strategy) => f.pad(strategy.as_str()),
            Self::Reference(reference) => reference.fmt(f),
            Self::HeftPlan => f.pad("heft plan"),
        }
    }
}

impl Who {
    /// All: the policies to compare with, and every strategy that the optimizer has.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let references = Reference::ALL.into_iter().map(Self::Reference);
        references.chain([Self::HeftPlan]).chain(strategies().into_iter().map(Self::Strategy)).collect()
    }

    /// The one that is called so, however it is spelt.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let plain = |text: &str| text.to_lowercase().replace(['_', '-'], " ");
        Self::all().into_iter().find(|who| plain(&who.to_string()) == plain(name))
    }
}

/// Every strategy of the optimizer.
#[must_use]
pub fn strategies() -> Vec<Strategy> {
    let names = ["ROUND_ROBIN", "PRIORITY_BASED", "LOAD_BALANCED", "SWARM", "HISTORICAL", "ADAPTIVE"];
    names.iter().filter_map(|name| serde_json::from_value(serde_json::Value::from(*name)).ok()).collect()
}

/// What the optimizer has seen before it is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum History {
    /// Nothing.
    #[default]
    None,
    /// One run of each of the other workflows on this fleet.
    Siblings,
    /// The same, and then one run of this very workflow, in which everything took a little more or less.
    Same,
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The workflows, each alone.
    pub graphs: Vec<Arc<Graph>>,
    /// How large the fleets are.
    pub agents: Vec<usize>,
    /// The slowest and the fastest speed.
    pub speeds: (f64, f64),
    /// The least and the greatest probability with which an attempt fails.
    pub failures: (f64, f64),
    /// What fleets are drawn from, one fleet of each size each.
    pub fleets: Vec<u64>,
    /// What the luck of attempts depends on; averaged over.
    pub luck: Vec<u64>,
    /// Who places.
    pub who: Vec<Who>,
    /// What was seen before.
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

/// A simulation that got stuck, and which.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{instance} on {agents} agents (seed {fleet}) under {policy}: {stuck}")]
pub struct Error {
    /// The workflow.
    pub instance: String,
    /// How many agents.
    pub agents: usize,
    /// What the fleet was drawn from.
    pub fleet: u64,
    /// Who placed.
    pub policy: String,
    /// What happened.
    pub stuck: Stuck,
}

/// Measures; tells each measurement as it is made.
pub fn run(plan: &Plan, mut tell: impl FnMut(&Measurement)) -> Result<Vec<Measurement>, Error> {
    let mut all = Vec::new();
    for &agents in &plan.agents {
        for &seed in &plan.fleets {
            let drawn = FleetPlan { agents, speeds: plan.speeds, failures: plan.failures, seed };
            let fleet = Arc::new(Fleet::new(drawn));
            for place in 0..plan.graphs.len() {
                let cell = Cell::new(plan, &fleet, place);
                for &who in &plan.who {
                    let measurement = cell.measure(who)?;
                    tell(&measurement);
                    all.push(measurement);
                }
            }
        }
    }
    Ok(all)
}

/// One workflow on one fleet.
struct Cell<'a> {
    plan: &'a Plan,
    fleet: &'a Arc<Fleet>,
    /// Which of the workflows.
    place: usize,
    world: World,
    bounds: Bounds,
    heft: Ahead,
}

impl<'a> Cell<'a> {
    fn new(plan: &'a Plan, fleet: &'a Arc<Fleet>, place: usize) -> Self {
        let world = World::new(vec![Job::new(&plan.graphs[place])], fleet);
        let (bounds, heft) = (bounds(&world), heft(&world));
        Self { plan, fleet, place, world, bounds, heft }
    }

    fn graph(&self) -> &'a Arc<Graph> {
        &self.plan.graphs[self.place]
    }

    fn measure(&self, who: Who) -> Result<Measurement, Error> {
        let error = |stuck| Error {
            instance: self.graph().name.clone(),
            agents: self.fleet.len(),
            fleet: self.fleet.plan.seed,
            policy: who.to_string(),
            stuck,
        };
        let learned = match who {
            Who::Strategy(strategy) => self.learn(strategy).map_err(error)?,
            Who::Reference(_) | Who::HeftPlan => None,
        };
        let outcomes = self.plan.luck.iter().map(|seed| self.simulate(who, learned.as_ref(), *seed));
        let outcomes = outcomes.collect::<Result<Vec<_>, _>>().map_err(error)?;
        Ok(self.mean(who, &outcomes))
    }

    fn simulate(&self, who: Who, learned: Option<&Learned>, seed: u64) -> Result<(Outcome, Option<Messages>), Stuck> {
        let conditions = Conditions { seed, ..Conditions::default() };
        let alone = |policy: &mut dyn Policy| Ok((Sim::run(&self.world, &conditions, policy)?, None));
        match who {
            Who::Reference(reference) => alone(&mut *reference.policy()),
            Who::HeftPlan => alone(&mut Follow::new(&self.heft, self.fleet.len())),
            Who::Strategy(strategy) => {
                let new = || Machine::new(strategy, self.fleet, &self.plan.graphs);
                let mut machine = learned.map_or_else(new, Machine::resume);
                let outcome = Sim::run(&self.world, &conditions, &mut machine)?;
                Ok((outcome, Some(machine.messages)))
            }
        }
    }

    /// What the optimizer has learned before it is given the workflow.
    fn learn(&self, strategy: Strategy) -> Result<Option<Learned>, Stuck> {
        let Plan { graphs, history, .. } = self.plan;
        if *history == History::None {
            return Ok(None);
        }
        let mut learned = Machine::new(strategy, self.fleet, graphs).learned();
        let mut see = |graph: &Arc<Graph>, conditions: &Conditions| {
            let world = World::new(vec![Job::new(graph)], self.fleet);
            let mut machine = Machine::resume(&learned);
            Sim::run(&world, conditions, &mut machine)?;
            learned = machine.learned();
            Ok(())
        };
        for (nth, graph) in graphs.iter().enumerate().filter(|(nth, _)| *nth != self.place) {
            see(graph, &Conditions { seed: HISTORY_SEED + nth as u64, ..Conditions::default() })?;
        }
        if *history == History::Same {
            see(self.graph(), &Conditions { seed: REPEAT_SEED, noise: REPEAT_NOISE, ..Conditions::default() })?;
        }
        Ok(Some(learned))
    }

    fn mean(&self, who: Who, outcomes: &[(Outcome, Option<Messages>)]) -> Measurement {
        let tasks = self.graph().len();
        let mean = |of: &dyn Fn(&Outcome) -> f64| {
            outcomes.iter().map(|(outcome, _)| of(outcome)).sum::<f64>() / outcomes.len() as f64
        };
        let per_task = |of: &dyn Fn(&Messages) -> u64| {
            let counts: Option<Vec<u64>> = outcomes.iter().map(|(_, messages)| messages.as_ref().map(of)).collect();
            counts.map(|counts| counts.iter().sum::<u64>() as f64 / (counts.len() * tasks) as f64)
        };
        let (bound, heft) = (self.bounds.makespan, self.heft.makespan);
        Measurement {
            instance: self.graph().name.clone(),
            tasks,
            agents: self.fleet.len(),
            fleet: self.fleet.plan.seed,
            policy: who.to_string(),
            history: self.plan.history,
            critical_path: self.bounds.critical_path,
            area: self.bounds.area,
            bound,
            heft,
            makespan: mean(&|it| it.makespan),
            to_bound: mean(&|it| it.makespan / bound),
            to_heft: mean(&|it| it.makespan / heft),
            completion: mean(&|it| it.completion),
            utilization: mean(&|it| it.utilization),
            succeeded: mean(&|it| it.succeeded),
            within_three: mean(&|it| it.within_three),
            waste: mean(&|it| it.waste),
            crossing: mean(&|it| it.crossing),
            messages: per_task(&|it| it.sent()),
            messages_alone: per_task(&|it| it.each_alone()),
            hedges: mean(&|it| it.hedges as f64) / tasks as f64,
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

/// The geometric mean.
#[must_use]
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0.0), |(sum, count), value| (sum + value.ln(), count + 1.0));
    f64::exp(sum / count)
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
        let mean = |of: fn(&Measurement) -> f64| cell.iter().map(|it| of(it)).sum::<f64>() / cell.len() as f64;
        let maybe = |of: fn(&Measurement) -> Option<f64>| {
            let values: Option<Vec<f64>> = cell.iter().map(|it| of(it)).collect();
            values.map(|values| values.iter().sum::<f64>() / values.len() as f64)
        };
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
            utilization: mean(|it| it.utilization),
            succeeded: mean(|it| it.succeeded),
            within_three: mean(|it| it.within_three),
            waste: mean(|it| it.waste),
            messages: maybe(|it| it.messages),
            messages_alone: maybe(|it| it.messages_alone),
        }
    };
    cells.iter().map(row).collect()
}
