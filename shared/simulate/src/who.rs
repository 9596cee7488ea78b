//! Who places tasks: the optimizer under each of its strategies, and others.

use std::fmt;
use std::sync::Arc;

use baton_optimizer::Config;
use baton_protocol::request::Strategy;
use serde::Serialize;

use crate::bounds::heft;
use crate::engine::{Conditions, Outcome, Policy, Sim, Stuck};
use crate::fleet::Fleet;
use crate::machine::{Learned, Machine, Messages};
use crate::reference::{Follow, Reference};
use crate::truth;
use crate::workload::{Graph, World};

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

    /// Simulates a world. The optimizer goes on from what it has learned, or knows nothing but the fleet and what these graphs
    /// ask for. Gives what was said, too, where anything is.
    pub fn simulate(
        self,
        world: &World,
        conditions: &Conditions,
        graphs: &[Arc<Graph>],
        (config, learned): (&Config, Option<&Learned>),
    ) -> Result<(Outcome, Option<Messages>), Stuck> {
        let alone = |policy: &mut dyn Policy| Ok((Sim::run(world, conditions, policy)?, None));
        match self {
            Self::Reference(reference) => alone(&mut *reference.policy()),
            Self::HeftPlan => alone(&mut Follow::new(&heft(world), world.fleet.len())),
            Self::Strategy(strategy) => {
                let new = || Machine::new(strategy, config.clone(), &world.fleet, graphs);
                let mut machine = learned.map_or_else(new, Machine::resume);
                let outcome = Sim::run(world, conditions, &mut machine)?;
                Ok((outcome, Some(machine.messages())))
            }
        }
    }

    /// What the optimizer learns from a world, after all that it has learned; nothing where nobody learns.
    pub fn learn(
        self,
        world: &World,
        conditions: &Conditions,
        graphs: &[Arc<Graph>],
        (config, learned): (&Config, Option<&Learned>),
    ) -> Result<Option<Learned>, Stuck> {
        let Self::Strategy(strategy) = self else { return Ok(None) };
        let new = || Machine::new(strategy, config.clone(), &world.fleet, graphs);
        let mut machine = learned.map_or_else(new, Machine::resume);
        Sim::run(world, conditions, &mut machine)?;
        Ok(Some(machine.learned()))
    }

    /// What the optimizer knows if it has learned all that there is to learn; nothing where nobody learns.
    #[must_use]
    pub fn knows(self, fleet: &Fleet, graphs: &[Arc<Graph>], config: &Config) -> Option<Learned> {
        let Self::Strategy(strategy) = self else { return None };
        let mut machine = Machine::new(strategy, config.clone(), fleet, graphs);
        machine.teach(truth::lessons(fleet, graphs));
        Some(machine.learned())
    }
}

/// Every strategy of the optimizer.
#[must_use]
pub fn strategies() -> Vec<Strategy> {
    Strategy::ALL.to_vec()
}

/// What the optimizer has seen before it is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum History {
    /// Nothing.
    #[default]
    None,
    /// Other workflows on this fleet.
    Siblings,
    /// The same workflows on this fleet.
    Same,
    /// Everything: how fast its agents are, how often they fail, how long each task takes.
    Known,
}

/// Which fleets there are, and how they are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleets {
    /// How large they are.
    pub agents: Vec<usize>,
    /// The slowest and the fastest speed.
    pub speeds: (f64, f64),
    /// The least and the greatest probability with which an attempt fails.
    pub failures: (f64, f64),
    /// What they are drawn from, one of each size each.
    pub seeds: Vec<u64>,
}

impl Fleets {
    /// All of them, by size.
    pub fn draw(&self) -> impl Iterator<Item = Arc<Fleet>> {
        let sizes = self.agents.iter().flat_map(|agents| self.seeds.iter().map(|seed| (*agents, *seed)));
        sizes.map(|(agents, seed)| {
            let (speeds, failures) = (self.speeds, self.failures);
            Arc::new(Fleet::new(crate::fleet::FleetPlan { agents, speeds, failures, seed }))
        })
    }
}

/// A simulation that got stuck, and which.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{what} on {agents} agents (seed {seed}) under {policy}: {stuck}")]
pub struct Error {
    /// What was done.
    pub what: String,
    /// How many agents.
    pub agents: usize,
    /// What the fleet was drawn from.
    pub seed: u64,
    /// Who placed.
    pub policy: String,
    /// What happened.
    pub stuck: Stuck,
}

impl Error {
    pub(crate) fn new(what: &str, fleet: &Fleet, who: Who, stuck: Stuck) -> Self {
        let (agents, seed) = (fleet.len(), fleet.plan.seed);
        Self { what: what.to_owned(), agents, seed, policy: who.to_string(), stuck }
    }
}

/// The geometric mean.
#[must_use]
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0.0), |(sum, count), value| (sum + value.ln(), count + 1.0));
    f64::exp(sum / count)
}

/// The mean.
#[must_use]
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

/// The mean, if there is a value everywhere.
pub(crate) fn mean_of_all(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    values.into_iter().collect::<Option<Vec<f64>>>().map(mean)
}
