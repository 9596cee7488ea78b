//! How long a task will take: a model that learns from every task that succeeds.
//!
//! ```text
//! ln duration = kind + slope · (ln size − its mean) + run − agent + noise
//! ```
//!
//! Each factor is a normal distribution, and one observation moves all of them at once: the error is shared out in proportion
//! to how uncertain each is (the gain of a Kalman filter whose covariances are taken to be nothing, as in TrueSkill: Herbrich,
//! Minka and Graepel, 2006). So a new agent is judged by known work, and new work by known agents. A stage that was seen
//! before in a workflow of that name has an offset of its own, in place of the size.
//!
//! Errors beyond three standard deviations count as three: one task that hung does not spoil what is known. A little noise is
//! added to each factor with every observation, so that none is ever certain, and what changes is followed.
//!
//! Durations are in milliseconds, their logarithms natural. Only the four operations and the square root are used (see
//! [`math`](crate::math)): every instance comes to the same bits.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use baton_machine::Shelves;
use baton_protocol::{Millis, StageName, WorkflowName};
use serde::{Deserialize, Serialize};

use crate::graph::Node;
use crate::learning::Rate;
use crate::math::{exp, ln, tail};

/// Of how many kinds, and of how many stages, something is learned. Whatever comes beyond is taken as like all others.
const MAX_KINDS: usize = 10_000;
const MAX_STAGES: usize = 200_000;

/// The variance of an agent's speed, and of a run, of which nothing is known.
const UNKNOWN_AGENT: f64 = 0.16;
const UNKNOWN_RUN: f64 = 0.3;
/// By how much the variance of an agent's speed and of a kind grow with each observation.
const AGENT_DRIFT: f64 = 2e-4;
const KIND_DRIFT: f64 = 1e-3;
/// What an observation of a stage that was seen before is still off by.
const STAGE_NOISE: f64 = 0.05;
/// The variance of what a definition says how long a stage takes.
const STATED: f64 = 0.25;
/// Errors count up to this many standard deviations.
const CLIP: f64 = 3.0;
/// The most variance that an expectation is corrected for: a wild guess should not be taken for a long task.
const MAX_SKEW: f64 = 1.0;
/// An agent that was off by so many standard deviations on average, lately and always the same way, has changed: it is learned
/// anew.
const CHANGED: f64 = 1.5;

/// What is known of a number: its mean and its variance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Gauss {
    pub(crate) mean: f64,
    pub(crate) variance: f64,
}

/// What was learned of durations.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Durations {
    all: Pooled,
    kinds: BTreeMap<Arc<str>, Kind>,
    stages: BTreeMap<WorkflowName, Shelves<StageName, Stage>>,
    /// How many stages there are.
    known: usize,
}

/// All tasks together: what is known of a kind that was never seen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pooled {
    seen: u64,
    log: Gauss,
}

/// What was learned of a kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kind {
    log: Gauss,
    /// The variance between tasks of the kind that nothing explains.
    noise: f64,
    seen: u64,
    /// The mean of the logarithm of sizes.
    size: f64,
    slope: Gauss,
    tokens: Moving,
}

/// What was learned of a stage of a workflow.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stage {
    /// By how much it is off its kind.
    offset: Gauss,
    seen: u64,
    /// Its duration in milliseconds, whoever did it.
    duration: Moving,
    tokens: Moving,
}

/// A moving average and variance, by the [learning rate](Rate).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Moving {
    pub(crate) mean: f64,
    pub(crate) variance: f64,
    pub(crate) seen: u64,
}

/// What was learned of an agent's speed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Speed {
    /// The logarithm of how many times faster than ordinary it is.
    pub(crate) log: Gauss,
    /// By how many standard deviations it was off lately, and which way.
    surprise: f64,
}

impl Default for Pooled {
    fn default() -> Self {
        // A second, give or take a factor of three.
        Self { seen: 0, log: Gauss { mean: 6.907_755_278_982_137, variance: 1.5 } }
    }
}

impl Default for Speed {
    fn default() -> Self {
        Self { log: Gauss { mean: 0.0, variance: UNKNOWN_AGENT }, surprise: 0.0 }
    }
}

/// A run of which nothing is known.
pub(crate) fn unknown_run() -> Gauss {
    Gauss { mean: 0.0, variance: UNKNOWN_RUN }
}

impl Moving {
    fn sane(self) -> Self {
        Self { mean: self.mean.clamp(0.0, 1e15), variance: self.variance.clamp(0.0, 1e30), ..self }
    }

    /// Takes a sample into account.
    pub(crate) fn take(&mut self, sample: f64, rate: Rate) {
        self.seen = self.seen.saturating_add(1);
        let weight = if self.seen == 1 { 1.0 } else { rate.part() };
        let off = sample - self.mean;
        self.mean += weight * off;
        self.variance = (1.0 - weight) * (self.variance + weight * off * off);
    }
}

/// Where a task stands: what is asked for when it is estimated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) workflow: &'a WorkflowName,
    pub(crate) node: &'a Node,
    pub(crate) run: Gauss,
}

impl Durations {
    /// The logarithm of how long a task takes an agent of ordinary speed.
    pub(crate) fn work(&self, place: Place<'_>) -> Gauss {
        let learned = self.learned(place);
        let is_new = !self.kinds.contains_key(&place.node.kind);
        match place.node.duration_ms {
            Some(stated) if is_new => {
                let run = place.run;
                Gauss { mean: ln_ms(stated) + run.mean, variance: STATED + run.variance }
            }
            // What was learned and what is stated, each by how certain it is.
            Some(stated) => {
                let weight = learned.variance / (learned.variance + STATED);
                let stated = ln_ms(stated);
                Gauss {
                    mean: learned.mean + weight * (stated - learned.mean),
                    variance: learned.variance * (1.0 - weight),
                }
            }
            None => learned,
        }
    }

    fn learned(&self, Place { workflow, node, run }: Place<'_>) -> Gauss {
        let Some(kind) = self.kinds.get(&node.kind) else {
            let Gauss { mean, variance } = self.all.log;
            return Gauss { mean: mean + run.mean, variance: variance.min(2.0) + run.variance + 0.3 };
        };
        if let Some(stage) = self.stage(workflow, &node.name).filter(|stage| stage.seen > 0) {
            let variance = kind.log.variance + stage.offset.variance + STAGE_NOISE + run.variance;
            return Gauss { mean: kind.log.mean + run.mean + stage.offset.mean, variance };
        }
        let size = node.size - kind.size;
        let variance = kind.log.variance + kind.noise + (kind.slope.variance * size * size).min(1.0) + run.variance;
        Gauss { mean: kind.log.mean + kind.slope.mean * size + run.mean, variance }
    }

    fn stage(&self, workflow: &WorkflowName, stage: &StageName) -> Option<&Stage> {
        self.stages.get(workflow)?.get(stage)
    }

    /// Learns from a task that succeeded: of the work, of the run and of the agent.
    pub(crate) fn learn(
        &mut self,
        place: Place<'_>,
        speed: &mut Speed,
        (duration_ms, tokens): (Millis, u64),
        rate: Rate,
    ) -> Gauss {
        let Place { workflow, node, mut run } = place;
        let took = ln_ms(duration_ms);
        let agent = speed.log;
        let ordinary = took + agent.mean;
        if self.kinds.len() < MAX_KINDS || self.kinds.contains_key(&node.kind) {
            let kind = match self.kinds.get_mut(&node.kind) {
                Some(kind) => kind,
                None => {
                    self.kinds.entry(Arc::clone(&node.kind)).or_insert_with(|| Kind::new(&self.all, ordinary, node))
                }
            };
            let size = node.size - kind.size;
            let error = took - (kind.log.mean + kind.slope.mean * size + run.mean - agent.mean);
            let spread =
                kind.log.variance + kind.noise + size * size * kind.slope.variance + run.variance + agent.variance;
            let most = CLIP * spread.sqrt();
            let error_cut = error.clamp(-most, most);
            if let Some(stage) = stage_of(&mut self.stages, &mut self.known, workflow, &node.name) {
                if stage.seen == 0 {
                    stage.offset = Gauss { mean: kind.slope.mean * size, variance: kind.noise.max(STAGE_NOISE) };
                }
                let error = took - (kind.log.mean + stage.offset.mean + run.mean - agent.mean);
                let spread = kind.log.variance + stage.offset.variance + STAGE_NOISE + run.variance + agent.variance;
                stage.learn(error, spread);
                stage.duration.take(duration_ms as f64, rate);
                if tokens > 0 {
                    stage.tokens.take(tokens as f64, rate);
                }
            }
            if tokens > 0 {
                kind.tokens.take(tokens as f64, rate);
            }
            kind.learn(node.size, size, error_cut, spread);
            let gain = run.variance / spread;
            run.mean += gain * error_cut;
            run.variance = (run.variance * (1.0 - gain)).max(1e-3);
            speed.learn(error, error_cut, spread);
        }
        self.all.learn(ordinary);
        run
    }

    /// How long a stage takes on average, whoever does it; none if it was never seen.
    pub(crate) fn average(&self, workflow: &WorkflowName, stage: &StageName) -> Option<Moving> {
        self.stage(workflow, stage).map(|stage| stage.duration)
    }

    /// What was learned of the duration of a stage in milliseconds, and of its tokens.
    pub(crate) fn stages(&self) -> impl Iterator<Item = (&WorkflowName, &StageName, Moving, Moving)> {
        let of = |(workflow, stages)| {
            let stages: &Shelves<StageName, Stage> = stages;
            stages.iter().map(move |(name, stage)| (workflow, name, stage.duration, stage.tokens))
        };
        self.stages.iter().flat_map(of)
    }

    /// How many tokens a task takes, in and out, if that is known.
    pub(crate) fn tokens(&self, workflow: &WorkflowName, node: &Node) -> Option<Moving> {
        let stage = self.stage(workflow, &node.name).map(|stage| stage.tokens);
        let kind = self.kinds.get(&node.kind).map(|kind| kind.tokens);
        let learned = stage.into_iter().chain(kind).find(|tokens| tokens.seen > 0);
        learned.or_else(|| node.tokens.map(|tokens| Moving { mean: tokens as f64, variance: 0.0, seen: 0 }))
    }

    /// What is known of all tasks together, as it is exported.
    pub(crate) fn all(&self) -> &Pooled {
        &self.all
    }

    /// All kinds after this one.
    pub(crate) fn kinds_after(&self, kind: Option<&str>) -> impl Iterator<Item = (&Arc<str>, &Kind)> {
        let from = kind.map_or(Bound::Unbounded, Bound::Excluded);
        self.kinds.range::<str, _>((from, Bound::Unbounded))
    }

    /// All stages after this one.
    pub(crate) fn stages_after<'a>(
        &'a self,
        after: Option<(&'a WorkflowName, &'a StageName)>,
    ) -> impl Iterator<Item = (&'a WorkflowName, &'a StageName, &'a Stage)> {
        let from = after.map_or(Bound::Unbounded, |(workflow, _)| Bound::Included(workflow));
        let workflows = self.stages.range::<WorkflowName, _>((from, Bound::Unbounded));
        let stages = workflows.flat_map(|(workflow, stages)| stages.iter().map(move |(name, of)| (workflow, name, of)));
        stages.filter(move |(workflow, name, _)| after.is_none_or(|after| (*workflow, *name) > after))
    }

    /// Takes what was learned elsewhere, if there is room.
    pub(crate) fn import_all(&mut self, all: Pooled) {
        self.all = Pooled { log: all.log.sane(), ..all };
    }

    /// The same of a kind.
    pub(crate) fn import_kind(&mut self, name: &str, kind: Kind) {
        if self.kinds.len() < MAX_KINDS || self.kinds.contains_key(name) {
            self.kinds.insert(name.into(), kind.sane());
        }
    }

    /// The same of a stage.
    pub(crate) fn import_stage(&mut self, workflow: &WorkflowName, name: &StageName, stage: Stage) {
        let of = stage_of(&mut self.stages, &mut self.known, workflow, name);
        if let Some(of) = of {
            *of = Stage {
                offset: stage.offset.sane(),
                duration: stage.duration.sane(),
                tokens: stage.tokens.sane(),
                ..stage
            };
        }
    }

    /// Whether anything was learned of such tasks, or stated.
    pub(crate) fn is_known(&self, place: Place<'_>) -> bool {
        self.kinds.contains_key(&place.node.kind) || place.node.duration_ms.is_some()
    }

    /// The logarithm of how long a task takes of which nothing is known.
    pub(crate) fn any(&self) -> Gauss {
        self.all.log
    }

    /// How long tasks take on average, in milliseconds.
    pub(crate) fn average_ms(&self) -> f64 {
        self.all.log.expected()
    }
}

/// What is learned of a stage, if there is room for it.
fn stage_of<'a>(
    stages: &'a mut BTreeMap<WorkflowName, Shelves<StageName, Stage>>,
    known: &mut usize,
    workflow: &WorkflowName,
    name: &StageName,
) -> Option<&'a mut Stage> {
    if !stages.contains_key(workflow) {
        if *known >= MAX_STAGES {
            return None;
        }
        stages.insert(workflow.clone(), Shelves::default());
    }
    let stages = stages.get_mut(workflow)?;
    let before = stages.len();
    if *known >= MAX_STAGES && !stages.contains_key(name) {
        return None;
    }
    stages.get_or_insert_with(name, Stage::default);
    *known += stages.len() - before;
    stages.get_mut(name)
}

impl Default for Stage {
    fn default() -> Self {
        let offset = Gauss { mean: 0.0, variance: STAGE_NOISE };
        Self { offset, seen: 0, duration: Moving::default(), tokens: Moving::default() }
    }
}

impl Stage {
    fn learn(&mut self, error: f64, spread: f64) {
        self.seen = self.seen.saturating_add(1);
        let gain = self.offset.variance / spread;
        self.offset.mean += gain * error;
        self.offset.variance = (self.offset.variance * (1.0 - gain)).max(0.02) + 0.005;
    }
}

impl Kind {
    fn sane(self) -> Self {
        Self {
            log: self.log.sane(),
            noise: self.noise.clamp(0.01, 10.0),
            size: self.size.clamp(0.0, 50.0),
            slope: Gauss { mean: self.slope.mean.clamp(-0.2, 1.2), variance: self.slope.variance.clamp(1e-3, 1.0) },
            tokens: self.tokens.sane(),
            ..self
        }
    }

    fn new(all: &Pooled, ordinary: f64, node: &Node) -> Self {
        let mean = if all.seen > 0 { all.log.mean } else { ordinary };
        Self {
            log: Gauss { mean, variance: all.log.variance.clamp(0.5, 2.0) },
            noise: 0.3,
            seen: 0,
            size: node.size,
            slope: Gauss { mean: 0.0, variance: 0.1 },
            tokens: Moving::default(),
        }
    }

    fn learn(&mut self, ln_size: f64, size: f64, error: f64, spread: f64) {
        self.seen = self.seen.saturating_add(1);
        // What of the error's square the uncertainty of the factors does not explain is noise.
        let rate = (1.0 / (self.seen + 2) as f64).max(0.05);
        let unexplained = ((error * error).min(9.0) - (spread - self.noise)).max(0.0);
        self.noise = ((1.0 - rate) * self.noise + rate * unexplained).max(0.01);
        let gain = self.log.variance / spread;
        let gain_slope = self.slope.variance * size / spread;
        self.log.mean += gain * error;
        self.log.variance = self.log.variance * (1.0 - gain) + KIND_DRIFT;
        self.slope.mean = (self.slope.mean + gain_slope * error).clamp(-0.2, 1.2);
        self.slope.variance = (self.slope.variance * (1.0 - gain_slope * size)).max(1e-3);
        self.size += (ln_size - self.size) / self.seen.min(50) as f64;
    }
}

impl Speed {
    pub(crate) fn sane(self) -> Self {
        let log = Gauss { mean: self.log.mean.clamp(-2.5, 2.0), variance: self.log.variance.clamp(AGENT_DRIFT, 1.0) };
        Self { log, surprise: 0.0 }
    }

    /// It may be another by now.
    pub(crate) fn doubt(&mut self) {
        self.log.variance = (self.log.variance + UNKNOWN_AGENT) / 2.0;
        self.surprise = 0.0;
    }

    fn learn(&mut self, error: f64, error_cut: f64, spread: f64) {
        let gain = self.log.variance / spread;
        self.surprise += 0.3 * ((error / spread.sqrt()).clamp(-CLIP, CLIP) - self.surprise);
        let changed = self.surprise.abs() > CHANGED;
        self.log.mean = (self.log.mean - gain * error_cut).clamp(-2.5, 2.0);
        self.log.variance = self.log.variance * (1.0 - gain) + AGENT_DRIFT;
        if changed {
            self.log.variance = self.log.variance.max(UNKNOWN_AGENT);
            self.surprise = 0.0;
        }
    }
}

impl Pooled {
    fn learn(&mut self, ordinary: f64) {
        self.seen = self.seen.saturating_add(1);
        let rate = (1.0 / self.seen as f64).max(0.02);
        let off = ordinary - self.log.mean;
        self.log.mean += rate * off;
        self.log.variance = (1.0 - rate) * (self.log.variance + rate * off * off);
    }
}

impl Gauss {
    /// As it could have been learned: what comes from elsewhere may be anything.
    fn sane(self) -> Self {
        Self { mean: self.mean.clamp(-50.0, 50.0), variance: self.variance.clamp(1e-3, 10.0) }
    }

    /// The expectation of the number whose logarithm this is.
    pub(crate) fn expected(self) -> f64 {
        exp(self.mean + 0.5 * self.variance.min(MAX_SKEW))
    }

    /// How much longer it goes on, on average, for what has gone on for this long: `E[X − t | X > t]` of a log-normal `X`. What is
    /// overdue is expected to go on for a while, instead of ending at any moment for ever.
    pub(crate) fn remaining(self, elapsed: f64) -> f64 {
        let variance = self.variance.clamp(0.01, 1.5);
        let whole = exp(self.mean + 0.5 * variance);
        if elapsed <= 0.0 {
            return whole;
        }
        let deviation = variance.sqrt();
        let z = (ln(elapsed) - self.mean) / deviation;
        let beyond = tail(z);
        if beyond < 1e-6 {
            return 0.3 * elapsed;
        }
        (whole * tail(z - deviation) / beyond - elapsed).max(0.02 * elapsed)
    }
}

/// The logarithm of a duration. What took no time took half a millisecond.
fn ln_ms(duration_ms: Millis) -> f64 {
    ln((duration_ms as f64).max(0.5))
}
