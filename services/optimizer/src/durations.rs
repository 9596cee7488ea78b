//! How long a task will take: a model that learns from every task that succeeds.
//!
//! ```text
//! ln duration = kind + slope · (ln size − its mean) + run − agent + noise
//! ```
//!
//! Each factor is a normal distribution, and one observation moves all of them at once: the error is shared out in proportion
//! to how uncertain each is (the gain of a Kalman filter whose covariances are taken to be nothing, as in TrueSkill: Herbrich,
//! Minka and Graepel, 2006). So a new agent is judged by known work, and new work by known agents.
//!
//! A stage that was seen before in a workflow of that name is known by itself: how long it takes in an ordinary run. What is
//! expected of it is that and what is expected of its kind, each by how certain it is; and what it is off by then says more of the
//! agent and of the run.
//!
//! Of a kind that was never seen it is expected what all tasks take, and a little more where there is more to read.
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
/// The variance between what a stage takes in one run and in another, and of what it takes in runs that are alike.
const BETWEEN_RUNS: f64 = 0.05;
const STAGE_NOISE: f64 = 0.05;
/// What is expected of how the work of a kind grows with its size, before anything is known of it: as a power. Some kinds take the
/// same for anything, most take longer the more they are given.
const GROWS: Gauss = Gauss { mean: 0.5, variance: 0.1 };
/// The same of tasks that are of different kinds, and by how much their sizes count as different at the most, as a logarithm.
const GROWS_OVERALL: f64 = 0.1;
const MAX_SIZES_APART: f64 = 6.0;
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
    /// The mean of the logarithm of sizes.
    #[serde(default = "usual_size")]
    size: f64,
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stage {
    /// The logarithm of how long it takes an agent of ordinary speed in an ordinary run.
    #[serde(default)]
    log: Option<Gauss>,
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
        Self { seen: 0, log: Gauss { mean: 6.907_755_278_982_137, variance: 1.5 }, size: usual_size() }
    }
}

impl Default for Speed {
    fn default() -> Self {
        Self { log: Gauss { mean: 0.0, variance: UNKNOWN_AGENT }, surprise: 0.0 }
    }
}

/// The logarithm of the size that is expected before any is known: 160 kB.
fn usual_size() -> f64 {
    12.0
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
        let ordinary = match self.kinds.get(&node.kind) {
            Some(kind) => kind.expects(node.size, self.stage(workflow, &node.name)),
            None => self.all.expects(node.size),
        };
        Gauss { mean: ordinary.mean + run.mean, variance: ordinary.variance + run.variance }
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
            // By the kind alone, and by all that is known.
            let error = Error::of(took, kind.expects(node.size, None), run, agent);
            let mut known = error;
            if let Some(stage) = stage_of(&mut self.stages, &mut self.known, workflow, &node.name) {
                known = Error::of(took, kind.expects(node.size, Some(stage)), run, agent);
                stage.learn(ordinary, run, agent);
                stage.duration.take(duration_ms as f64, rate);
                if tokens > 0 {
                    stage.tokens.take(tokens as f64, rate);
                }
            }
            if tokens > 0 {
                kind.tokens.take(tokens as f64, rate);
            }
            kind.learn(node.size, error);
            run.learn(known, 1.0);
            run.variance = run.variance.max(1e-3);
            speed.learn(known);
        }
        self.all.learn(ordinary, node.size);
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
        self.all = all.sane();
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
            *of =
                Stage { log: stage.log.map(Gauss::sane), duration: stage.duration.sane(), tokens: stage.tokens.sane() };
        }
    }

    /// Whether anything was learned of such tasks, or stated.
    pub(crate) fn is_known(&self, place: Place<'_>) -> bool {
        self.kinds.contains_key(&place.node.kind) || place.node.duration_ms.is_some()
    }

    /// Whether this stage itself was done before, in whatever run of its workflow.
    pub(crate) fn has_seen(&self, workflow: &WorkflowName, stage: &StageName) -> bool {
        self.stage(workflow, stage).is_some_and(|stage| stage.log.is_some())
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

impl Stage {
    /// It would have taken an agent of ordinary speed so long, as a logarithm.
    fn learn(&mut self, ordinary: f64, run: Gauss, agent: Gauss) {
        let noise = STAGE_NOISE + agent.variance;
        let log = match self.log {
            // What the run is taken to be off by may be what its stages are: it is the first.
            None => Gauss { mean: ordinary, variance: noise + BETWEEN_RUNS },
            Some(mut log) => {
                let spread = log.variance + noise + run.variance;
                log.learn(Error { off: ordinary - run.mean - log.mean, spread }, 1.0);
                Gauss { variance: log.variance.max(0.02) + 0.005, ..log }
            }
        };
        self.log = Some(log);
    }
}

/// By how much a prediction was off, and the variance that was expected of that.
#[derive(Debug, Clone, Copy)]
struct Error {
    off: f64,
    spread: f64,
}

impl Error {
    fn of(took: f64, ordinary: Gauss, run: Gauss, agent: Gauss) -> Self {
        Self {
            off: took - (ordinary.mean + run.mean - agent.mean),
            spread: ordinary.variance + run.variance + agent.variance,
        }
    }

    /// As far as it counts.
    fn cut(self) -> f64 {
        let most = CLIP * self.spread.sqrt();
        self.off.clamp(-most, most)
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
        let mean = if all.seen > 0 { all.expects(node.size).mean } else { ordinary };
        Self {
            log: Gauss { mean, variance: all.log.variance.clamp(0.5, 2.0) },
            noise: 0.3,
            seen: 0,
            size: node.size,
            slope: GROWS,
            tokens: Moving::default(),
        }
    }

    /// The logarithm of how long a task takes an agent of ordinary speed in an ordinary run: by its size, and by what is known of its
    /// stage.
    fn expects(&self, size: f64, stage: Option<&Stage>) -> Gauss {
        let size = size - self.size;
        let mean = self.log.mean + self.slope.mean * size;
        let variance = self.log.variance + self.noise + (self.slope.variance * size * size).min(1.0);
        let Some(of_stage) = stage.and_then(|stage| stage.log) else { return Gauss { mean, variance } };
        let weight = variance / (variance + of_stage.variance + STAGE_NOISE);
        Gauss { mean: mean + weight * (of_stage.mean - mean), variance: variance * (1.0 - weight) + STAGE_NOISE }
    }

    fn learn(&mut self, size: f64, error: Error) {
        self.seen = self.seen.saturating_add(1);
        let apart = size - self.size;
        // What of the error's square the uncertainty of the factors does not explain is noise.
        let rate = (1.0 / (self.seen + 2) as f64).max(0.05);
        let unexplained = (error.cut() * error.cut()).min(9.0) - (error.spread - self.noise);
        self.log.learn(error, 1.0);
        self.log.variance += KIND_DRIFT;
        self.slope.learn(error, apart);
        self.slope = Gauss { mean: self.slope.mean.clamp(-0.2, 1.2), variance: self.slope.variance.max(1e-3) };
        self.noise = ((1.0 - rate) * self.noise + rate * unexplained.max(0.0)).max(0.01);
        self.size += (size - self.size) / self.seen.min(50) as f64;
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

    fn learn(&mut self, error: Error) {
        self.surprise += 0.3 * ((error.off / error.spread.sqrt()).clamp(-CLIP, CLIP) - self.surprise);
        let changed = self.surprise.abs() > CHANGED;
        self.log.learn(error, -1.0);
        self.log = Gauss { mean: self.log.mean.clamp(-2.5, 2.0), variance: self.log.variance + AGENT_DRIFT };
        if changed {
            self.log.variance = self.log.variance.max(UNKNOWN_AGENT);
            self.surprise = 0.0;
        }
    }
}

impl Pooled {
    /// The logarithm of how long a task of a kind that was never seen takes an agent of ordinary speed in an ordinary run.
    fn expects(&self, size: f64) -> Gauss {
        let apart = (size - self.size).clamp(-MAX_SIZES_APART, MAX_SIZES_APART);
        Gauss { mean: self.log.mean + GROWS_OVERALL * apart, variance: self.log.variance.min(2.0) + 0.3 }
    }

    fn learn(&mut self, ordinary: f64, size: f64) {
        self.seen = self.seen.saturating_add(1);
        let rate = (1.0 / self.seen as f64).max(0.02);
        self.size += rate * (size - self.size);
        let off = ordinary - self.log.mean;
        self.log.mean += rate * off;
        self.log.variance = (1.0 - rate) * (self.log.variance + rate * off * off);
    }

    fn sane(self) -> Self {
        Self { log: self.log.sane(), size: self.size.clamp(0.0, 50.0), ..self }
    }
}

impl Gauss {
    /// Takes its share of an error, of a prediction in which this counted so many times.
    fn learn(&mut self, error: Error, times: f64) {
        let gain = self.variance * times / error.spread;
        self.mean += gain * error.cut();
        self.variance *= 1.0 - gain * times;
    }

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

#[cfg(test)]
mod tests {
    use baton_protocol::Capability;

    use super::*;

    fn node(name: &str, kind: &str, size: u64) -> Node {
        Node {
            name: StageName::new(name).unwrap(),
            agent_type: Capability::new("x").unwrap(),
            asks: false,
            kind: kind.into(),
            size: ln(size as f64 + 10_000.0),
            duration_ms: None,
            tokens: None,
            priority: 0,
            due_ms: None,
            children: Vec::new(),
        }
    }

    /// Takes note of how long each of these takes, in one run.
    fn run(
        durations: &mut Durations,
        workflow: &WorkflowName,
        agents: &mut [(f64, Speed)],
        tasks: &[(&Node, usize, f64)],
    ) {
        let mut run = unknown_run();
        for (node, agent, ms) in tasks {
            let (faster, speed) = &mut agents[*agent];
            let place = Place { workflow, node, run };
            run = durations.learn(place, speed, ((ms / *faster) as Millis, 0), Rate::default());
        }
    }

    #[test]
    fn o6_what_was_seen_once_is_expected_to_take_as_long_again() {
        let (mut durations, workflow) = (Durations::default(), WorkflowName::new("w").unwrap());
        let mut agents = [0.5, 0.7, 1.0, 1.4, 2.0].map(|speed| (speed, Speed::default()));
        // The agents are known by other work.
        let other = node("other", "other", 0);
        for _ in 0..20 {
            run(&mut durations, &workflow, &mut agents, &[0, 1, 2, 3, 4].map(|agent| (&other, agent, 1000.0)));
        }
        // Stages of one kind, as far as is known, that have nothing in common.
        let stages: Vec<_> =
            (0..10).map(|n| (node(&format!("dump-{n}"), "dump", 0), 600.0 * 1.2_f64.powi(n))).collect();
        let mixed = (0..10).map(|nth| (&stages[nth * 7 % 10], nth * 3 % 5));
        let tasks: Vec<_> = mixed.map(|((stage, ms), agent)| (stage, agent, *ms)).collect();
        run(&mut durations, &workflow, &mut agents, &tasks);
        let place = |node| Place { workflow: &workflow, node, run: unknown_run() };
        let expected: Vec<_> = stages.iter().map(|(stage, _)| exp(durations.work(place(stage)).mean)).collect();
        let off: Vec<_> = stages.iter().zip(&expected).map(|((_, ms), expected)| expected / ms).collect();
        // A little towards what the rest takes, as it was seen but once.
        assert!(expected.is_sorted() && off.iter().all(|off| (0.7..1.5).contains(off)), "{off:.2?}");
        // One that was not seen is like the rest of its kind.
        let expected = exp(durations.work(place(&node("dump-10", "dump", 0))).mean);
        assert!((900.0..2000.0).contains(&expected), "{expected}");
    }

    #[test]
    fn o6_the_more_there_is_to_read_the_longer_it_is_expected_to_take() {
        let (mut durations, workflow) = (Durations::default(), WorkflowName::new("w").unwrap());
        let expected = |durations: &Durations, kind: &str, size: u64| {
            exp(durations.work(Place { workflow: &workflow, node: &node("new", kind, size), run: unknown_run() }).mean)
        };
        // Of a kind that was never seen a little, of one of which but one size was seen more.
        let [small, large] = [1_000_000, 100_000_000].map(|size| expected(&durations, "sort", size));
        assert!((1.3..2.0).contains(&(large / small)), "{small} {large}");
        let mut ann = [(1.0, Speed::default())];
        let begin = node("a", "sort", 1_000_000);
        (0..5).for_each(|_| run(&mut durations, &workflow, &mut ann, &[(&begin, 0, 1000.0)]));
        let [small, large] = [1_000_000, 100_000_000].map(|size| expected(&durations, "sort", size));
        assert!((900.0..1100.0).contains(&small) && (5.0..15.0).contains(&(large / small)), "{small} {large}");
        // Where size makes no difference, this is learned.
        for n in 0..20_u64 {
            let stage = node(&format!("s{n}"), "sort", 10_u64.pow(4 + n as u32 % 5));
            run(&mut durations, &workflow, &mut ann, &[(&stage, 0, 1000.0)]);
        }
        let [small, large] = [1_000_000, 100_000_000].map(|size| expected(&durations, "sort", size));
        assert!((0.7..1.6).contains(&(large / small)), "{small} {large}");
    }
}
