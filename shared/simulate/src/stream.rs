//! Many workflows on one fleet: a stream of them at some load, or all at once; on agents that stay as they are, or some of which
//! become slow or begin to fail.

use std::fmt;
use std::sync::Arc;

use baton_optimizer::Config;
use serde::Serialize;

use crate::bounds::bounds;
use crate::draws::{normal, uniform};
use crate::engine::{Conditions, Drift, Outcome, Stuck};
use crate::fleet::Fleet;
use crate::machine::{Learned, Messages};
use crate::reference::Reference;
use crate::who::{Error, Fleets, History, Who, geometric_mean, mean, mean_of_all};
use crate::workload::{Graph, Job, World};

/// How long the tasks of a run take on average, in seconds; runs differ.
const MEAN_TASK_S: f64 = 10.0;
/// By how much they differ: the standard deviation of the logarithm.
const RUNS_DIFFER: f64 = 0.5;
/// How many runs there are in a history, at which load.
const HISTORY: (usize, f64) = (15, 0.6);
/// What the history of a fleet is drawn from, more than the fleet itself, and what its luck depends on.
const HISTORY_SEEDS: (u64, u64) = (7000, 9000);
/// After which part of the time agents change, unless it is said.
pub const DRIFTS_AFTER: f64 = 1.0 / 3.0;
/// By how much tasks take longer on agents that become slow.
const SLOWER: f64 = 4.0;
/// With which probability attempts fail on agents that begin to fail.
const FAILING: f64 = 0.9;

/// When runs come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// One after another, so that they are as much work as this part of what the fleet can do.
    Load(f64),
    /// All at once.
    Backlog,
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(load) => write!(f, "{load}"),
            Self::Backlog => f.write_str("backlog"),
        }
    }
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The workflows that runs are drawn from.
    pub graphs: Vec<Arc<Graph>>,
    /// The fleets.
    pub fleets: Fleets,
    /// What the luck of attempts depends on, more than the fleet itself; averaged over.
    pub luck: Vec<u64>,
    /// Who places.
    pub who: Vec<Who>,
    /// What was seen before: `same`, a stream of these workflows; `siblings`, a stream of every second one of them, while only
    /// the others are measured.
    pub history: History,
    /// How many runs there are.
    pub runs: usize,
    /// When they come.
    pub arrivals: Vec<Arrivals>,
    /// After which part of the time in which runs come, if ever, a fifth of the agents become four times slower and another tenth
    /// fail nine times of ten, early.
    pub drift: Option<f64>,
    /// Whether the optimizer has runs go by their deadlines alone, under ADAPTIVE.
    pub deadlines_first: bool,
}

impl Plan {
    /// The settings of the optimizer.
    fn config(&self) -> Config {
        Config { deadlines_first: self.deadlines_first, ..Config::default() }
    }
}

/// A stream on one fleet under one policy: the mean over the seeds of luck. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    /// When runs came.
    pub arrivals: String,
    /// How many runs.
    pub runs: usize,
    /// How many tasks they have.
    pub tasks: usize,
    /// How many agents.
    pub agents: usize,
    /// What the fleet was drawn from.
    pub fleet: u64,
    /// Who placed.
    pub policy: String,
    /// What was seen before.
    pub history: History,
    /// When agents changed, as in the plan.
    pub drift: Option<f64>,
    /// From a run's arrival to its end, on average.
    pub completion: f64,
    /// The same, weighted.
    pub weighted: f64,
    /// That by its lower bound on the empty fleet: the geometric mean.
    pub slowdown: f64,
    /// The same for the run that is longer than 95 % of them.
    pub slowdown_p95: f64,
    /// Which part of the runs met their deadlines.
    pub in_time: f64,
    /// The same, weighted.
    pub in_time_weighted: f64,
    /// Which part of the time agents were at work.
    pub utilization: f64,
    /// The area bound by the makespan.
    pub efficiency: f64,
    /// Which part of the attempts succeeded.
    pub succeeded: f64,
    /// Which part of the tasks needed no more than three attempts.
    pub within_three: f64,
    /// Which part of the work came to nothing.
    pub waste: f64,
    /// From the first arrival to the last end.
    pub makespan: f64,
    /// How many messages a task took; none where nobody sends any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<f64>,
    /// How many it would have taken if nothing were sent together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_alone: Option<f64>,
}

/// Runs that come to a fleet.
#[derive(Debug)]
pub struct Stream {
    /// The runs, and the fleet.
    pub world: World,
    /// In how much time they come, in seconds.
    pub span: f64,
    /// How long all agents would work on them at least, in seconds.
    pub area: f64,
    /// The lower bound of each on the empty fleet, in seconds.
    pub alone: Vec<f64>,
}

impl Stream {
    /// Draws a stream. A run's tasks take 10 s on average, times a log-normal factor; it weighs 1, 2, 4 or 8, and should be done
    /// in 2, 4 or 8 times of its own lower bound.
    #[must_use]
    pub fn draw(graphs: &[Arc<Graph>], fleet: &Arc<Fleet>, seed: u64, runs: usize, arrivals: Arrivals) -> Self {
        let draw = |what: u64, run: usize| uniform(&[seed, what, run as u64]);
        let job = |run: usize| {
            let graph = match arrivals {
                Arrivals::Backlog => &graphs[run % graphs.len()],
                Arrivals::Load(_) => &graphs[(draw(51, run) * graphs.len() as f64) as usize],
            };
            let differs = (RUNS_DIFFER * normal(&[seed, 52, run as u64])).exp();
            let scale = MEAN_TASK_S * differs * graph.len() as f64 / graph.seconds.iter().sum::<f64>();
            let weight = match draw(53, run) {
                x if x < 0.3 => 1.0,
                x if x < 0.7 => 2.0,
                x if x < 0.9 => 4.0,
                _ => 8.0,
            };
            Job { scale, weight, ..Job::new(graph) }
        };
        let mut jobs: Vec<Job> = (0..runs).map(job).collect();
        let alone = |job: &Job| bounds(&World::new(vec![job.clone()], fleet)).makespan;
        let alone: Vec<f64> = jobs.iter().map(alone).collect();
        let area = bounds(&World::new(jobs.clone(), fleet)).area;
        let span = match arrivals {
            Arrivals::Backlog => 0.0,
            Arrivals::Load(load) => area / load,
        };
        let mut times: Vec<f64> = (0..runs).map(|run| draw(54, run) * span).collect();
        times.sort_by(f64::total_cmp);
        for (run, job) in jobs.iter_mut().enumerate() {
            job.arrives = times[run];
            job.deadline = Some(times[run] + [2.0, 4.0, 8.0][(draw(55, run) * 3.0) as usize] * alone[run]);
        }
        Self { world: World::new(jobs, fleet), span, area, alone }
    }

    /// A fifth of the agents become slow and a tenth begin to fail, after a part of the time in which runs come.
    #[must_use]
    pub fn drift(&self, after: f64) -> Vec<Drift> {
        let fleet = &self.world.fleet;
        let seed = fleet.plan.seed;
        let mut agents: Vec<usize> = (0..fleet.len()).collect();
        agents.sort_by(|a, b| uniform(&[seed, 61, *a as u64]).total_cmp(&uniform(&[seed, 61, *b as u64])));
        let (slow, failing) = (fleet.len() / 5, fleet.len() / 10);
        let at = self.span * after;
        let slow =
            agents[..slow].iter().map(|&agent| Drift { at, agent, slower: SLOWER, failure: fleet.failure[agent] });
        let failing = agents[fleet.len() / 5..][..failing].iter();
        slow.chain(failing.map(|&agent| Drift { at, agent, slower: 1.0, failure: FAILING })).collect()
    }
}

/// Measures; tells each measurement as it is made.
pub fn run(plan: &Plan, mut tell: impl FnMut(&Measurement)) -> Result<Vec<Measurement>, Error> {
    let (measured, seen) = halves(plan);
    let mut all = Vec::new();
    for fleet in plan.fleets.draw() {
        for &arrivals in &plan.arrivals {
            let stream = Stream::draw(&measured, &fleet, fleet.plan.seed, plan.runs, arrivals);
            for &who in &plan.who {
                let measurement = measure(plan, &stream, &seen, who, arrivals);
                let measurement = measurement.map_err(|stuck| Error::new("a stream", &fleet, who, stuck))?;
                tell(&measurement);
                all.push(measurement);
            }
        }
    }
    Ok(all)
}

/// The workflows that are measured, and those that were seen before.
fn halves(plan: &Plan) -> (Vec<Arc<Graph>>, Vec<Arc<Graph>>) {
    let half = |first: usize| plan.graphs.iter().skip(first).step_by(2).cloned().collect();
    match plan.history {
        History::None | History::Known => (plan.graphs.clone(), Vec::new()),
        History::Same => (plan.graphs.clone(), plan.graphs.clone()),
        History::Siblings => (half(1), half(0)),
    }
}

fn measure(
    plan: &Plan,
    stream: &Stream,
    seen: &[Arc<Graph>],
    who: Who,
    arrivals: Arrivals,
) -> Result<Measurement, Stuck> {
    let Stream { world, area, alone, .. } = stream;
    let seed = world.fleet.plan.seed;
    let learned = learn(plan, stream, seen, who)?;
    let drift = plan.drift.map(|after| stream.drift(after)).unwrap_or_default();
    let simulate = |luck: &u64| {
        let conditions = Conditions { seed: seed + luck, drift: drift.clone(), ..Conditions::default() };
        who.simulate(world, &conditions, &plan.graphs, (&plan.config(), learned.as_ref()))
    };
    let outcomes: Vec<(Outcome, Option<Messages>)> = plan.luck.iter().map(simulate).collect::<Result<_, _>>()?;
    let average = |of: &dyn Fn(&Outcome) -> f64| mean(outcomes.iter().map(|(outcome, _)| of(outcome)));
    let took =
        |it: &Outcome| -> Vec<f64> { it.done.iter().zip(&world.jobs).map(|(done, job)| done - job.arrives).collect() };
    let slowdowns = |it: &Outcome| {
        let mut slowdowns: Vec<f64> = took(it).iter().zip(alone).map(|(took, alone)| took / alone).collect();
        slowdowns.sort_by(f64::total_cmp);
        slowdowns
    };
    let weights: f64 = world.jobs.iter().map(|job| job.weight).sum();
    let in_time = |it: &Outcome| -> Vec<f64> {
        let in_time = |(done, job): (&f64, &Job)| f64::from(job.deadline.is_none_or(|deadline| *done <= deadline));
        it.done.iter().zip(&world.jobs).map(in_time).collect()
    };
    let weighted =
        |values: Vec<f64>| values.iter().zip(&world.jobs).map(|(value, job)| value * job.weight).sum::<f64>() / weights;
    let per_task = |of: fn(&Messages) -> u64| {
        mean_of_all(outcomes.iter().map(|(_, said)| said.as_ref().map(|it| of(it) as f64 / world.len() as f64)))
    };
    Ok(Measurement {
        arrivals: arrivals.to_string(),
        runs: world.jobs.len(),
        tasks: world.len(),
        agents: world.fleet.len(),
        fleet: seed,
        policy: who.to_string(),
        history: plan.history,
        drift: plan.drift,
        completion: average(&|it| mean(took(it))),
        weighted: average(&|it| weighted(took(it))),
        slowdown: average(&|it| geometric_mean(slowdowns(it))),
        slowdown_p95: average(&|it| slowdowns(it)[(0.95 * alone.len() as f64) as usize]),
        in_time: average(&|it| mean(in_time(it))),
        in_time_weighted: average(&|it| weighted(in_time(it))),
        utilization: average(&|it| it.utilization),
        efficiency: average(&|it| area / it.makespan),
        succeeded: average(&|it| it.succeeded),
        within_three: average(&|it| it.within_three),
        waste: average(&|it| it.waste),
        makespan: average(&|it| it.makespan),
        messages: per_task(Messages::sent),
        messages_alone: per_task(Messages::each_alone),
    })
}

/// What the optimizer has learned before runs come.
fn learn(plan: &Plan, stream: &Stream, seen: &[Arc<Graph>], who: Who) -> Result<Option<Learned>, Stuck> {
    let fleet = &stream.world.fleet;
    if plan.history == History::Known {
        return Ok(who.knows(fleet, &plan.graphs, &plan.config()));
    }
    if seen.is_empty() || !matches!(who, Who::Strategy(_)) {
        return Ok(None);
    }
    let (seed, (runs, load), (drawn, luck)) = (fleet.plan.seed, HISTORY, HISTORY_SEEDS);
    let before = Stream::draw(seen, fleet, seed + drawn, runs, Arrivals::Load(load));
    let conditions = Conditions { seed: seed + luck, ..Conditions::default() };
    who.learn(&before.world, &conditions, &plan.graphs, (&plan.config(), None))
}

/// A row of the table: a policy on fleets of one size with runs that come in one way. Ratios are to least outstanding push, and
/// geometric means over the fleets; parts are means.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// How many agents.
    pub agents: usize,
    /// When runs came.
    pub arrivals: String,
    /// Who placed.
    pub policy: String,
    /// The mean completion; none if least outstanding push was not measured.
    pub completion: Option<f64>,
    /// The weighted mean completion.
    pub weighted: Option<f64>,
    /// The geometric mean of the slowdown: no ratio.
    pub slowdown: f64,
    /// Its 95th percentile.
    pub slowdown_p95: f64,
    /// Deadlines met.
    pub in_time: f64,
    /// Deadlines met, weighted.
    pub in_time_weighted: f64,
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
    let key = |it: &Measurement| (it.agents, it.arrivals.clone(), it.policy.clone());
    let mut keys = Vec::new();
    for measurement in measurements {
        if !keys.contains(&key(measurement)) {
            keys.push(key(measurement));
        }
    }
    keys.sort_by_key(|(agents, ..)| *agents);
    let cell = |wanted: &(usize, String, String)| -> Vec<&Measurement> {
        measurements.iter().filter(|it| key(it) == *wanted).collect()
    };
    let row = |wanted: &(usize, String, String)| {
        let (agents, arrivals, policy) = wanted.clone();
        let (cell, base) = (cell(wanted), cell(&(agents, arrivals.clone(), Reference::LeastOutstanding.to_string())));
        // Fleets are measured in one order under each policy.
        let ratio = |of: fn(&Measurement) -> f64| {
            let ratios = cell.iter().zip(&base).map(|(one, other)| of(one) / of(other));
            (cell.len() == base.len()).then(|| geometric_mean(ratios))
        };
        let average = |of: fn(&Measurement) -> f64| mean(cell.iter().map(|it| of(it)));
        Row {
            agents,
            arrivals,
            policy,
            completion: ratio(|it| it.completion),
            weighted: ratio(|it| it.weighted),
            slowdown: geometric_mean(cell.iter().map(|it| it.slowdown)),
            slowdown_p95: average(|it| it.slowdown_p95),
            in_time: average(|it| it.in_time),
            in_time_weighted: average(|it| it.in_time_weighted),
            utilization: average(|it| it.utilization),
            succeeded: average(|it| it.succeeded),
            within_three: average(|it| it.within_three),
            waste: average(|it| it.waste),
            messages: mean_of_all(cell.iter().map(|it| it.messages)),
            messages_alone: mean_of_all(cell.iter().map(|it| it.messages_alone)),
        }
    };
    keys.iter().map(row).collect()
}
