//! How many agents of which kind a workflow needs at a rate of runs, found by trying.

use std::sync::Arc;

use baton_optimizer::Config;
use serde::Serialize;

use crate::draws::uniform;
use crate::engine::{Conditions, Outcome, Stuck};
use crate::fleet::{Fleet, FleetPlan};
use crate::who::{Who, mean};
use crate::workload::{Graph, Job, World};

/// This part of the runs is to be done within the time that is asked for.
pub const SHARE: f64 = 0.95;
/// By how much a kind grows at a step: a tenth, at least one.
const STEP: usize = 10;
/// More agents of one kind are not tried.
pub const MOST: usize = 2000;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The workflow.
    pub graph: Arc<Graph>,
    /// How many runs start in an hour.
    pub rate: f64,
    /// In how much time they are to be done, in seconds.
    pub within: f64,
    /// How many runs are simulated.
    pub runs: usize,
    /// The slowest and the fastest speed of an agent.
    pub speeds: (f64, f64),
    /// The least and the greatest probability with which an attempt fails.
    pub failures: (f64, f64),
    /// What fleets and arrivals are drawn from; a fleet is enough if it is for each of them.
    pub seeds: Vec<u64>,
    /// Who places.
    pub who: Who,
}

/// A fleet, and what it was worth. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tried {
    /// How many agents of each kind.
    pub agents: Vec<(String, usize)>,
    /// Which part of the time those of each kind were at work.
    pub utilization: Vec<f64>,
    /// From a run's start to its end, on average.
    pub completion: f64,
    /// The time within which so many of the runs as there should be were done.
    pub within: f64,
}

impl Tried {
    /// How many agents.
    #[must_use]
    pub fn total(&self) -> usize {
        self.agents.iter().map(|(_, agents)| agents).sum()
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// The fleets that were tried, in their order.
    pub tried: Vec<Tried>,
    /// The smallest one found that is enough; none if there is none.
    pub enough: Option<Tried>,
    /// What so many agents are worth that nobody ever waits.
    pub best: Tried,
    /// The first source's formula: stages × stages side by side.
    pub formula: usize,
}

/// How many tasks of a graph may run side by side at the most, if all take equally long.
fn side_by_side(graph: &Graph) -> usize {
    let mut level = vec![0usize; graph.len()];
    for &task in &graph.order {
        level[task] = graph.parents[task].iter().map(|&parent| level[parent] + 1).max().unwrap_or(0);
    }
    let mut counts = vec![0; graph.len()];
    level.iter().for_each(|&level| counts[level] += 1);
    counts.into_iter().max().unwrap_or(0)
}

/// Finds a fleet that is enough: from what the work itself needs, agents are added where agents are busiest, and at last taken
/// away one by one where that still is enough.
pub fn find(plan: &Plan) -> Result<Answer, Stuck> {
    let kinds = &plan.graph.categories;
    let at_least_one = |count: f64| (count.ceil() as usize).max(1);
    // Nobody waits where there is an agent for each task of all runs that may be under way.
    let tasks_of = |kind: usize| plan.graph.category.iter().filter(|category| **category == kind).count();
    let under_way = at_least_one(plan.rate / 3600.0 * plan.graph.seconds.iter().sum::<f64>() / plan.speeds.0);
    let plenty = |kind: usize| (tasks_of(kind) * under_way.min(plan.runs)).clamp(1, MOST);
    let best = attempt(plan, &(0..kinds.len()).map(plenty).collect::<Vec<_>>())?;
    let formula = plan.graph.len() * side_by_side(&plan.graph);
    let (mut tried, mut enough) = (Vec::new(), None);
    if best.within > plan.within {
        return Ok(Answer { tried, enough, best, formula });
    }
    let mut counts: Vec<usize> =
        (0..kinds.len()).map(|kind| at_least_one(load(plan, kind)).min(plenty(kind))).collect();
    while enough.is_none() {
        let this = attempt(plan, &counts)?;
        if this.within <= plan.within {
            enough = Some(this.clone());
        } else {
            let may_grow = (0..kinds.len()).filter(|&kind| counts[kind] < plenty(kind));
            let busiest = may_grow.max_by(|a, b| this.utilization[*a].total_cmp(&this.utilization[*b]));
            let Some(busiest) = busiest else {
                enough = Some(best.clone());
                break;
            };
            counts[busiest] = (counts[busiest] + (counts[busiest] / STEP).max(1)).min(plenty(busiest));
        }
        tried.push(this);
    }
    for kind in 0..kinds.len() {
        while counts[kind] > 1 {
            counts[kind] -= 1;
            let this = attempt(plan, &counts)?;
            tried.push(this.clone());
            if this.within > plan.within {
                counts[kind] += 1;
                break;
            }
            enough = Some(this);
        }
    }
    Ok(Answer { tried, enough, best, formula })
}

/// How many agents of average speed a kind of work keeps busy.
fn load(plan: &Plan, kind: usize) -> f64 {
    let graph = &plan.graph;
    let of_kind = (0..graph.len()).filter(|&task| graph.category[task] == kind);
    let work: f64 = of_kind.map(|task| graph.seconds[task]).sum();
    let (slow, fast) = plan.speeds;
    let speed = if fast > slow { (fast - slow) / (fast / slow).ln() } else { slow };
    plan.rate / 3600.0 * work / speed
}

/// Tries a fleet.
fn attempt(plan: &Plan, counts: &[usize]) -> Result<Tried, Stuck> {
    let kinds: Vec<(String, usize)> = plan.graph.categories.iter().cloned().zip(counts.iter().copied()).collect();
    let (mut completions, mut busy) = (Vec::new(), vec![Vec::new(); kinds.len()]);
    let mut late: f64 = 0.0;
    for &seed in &plan.seeds {
        let drawn = FleetPlan { agents: 0, speeds: plan.speeds, failures: plan.failures, seed };
        let fleet = Arc::new(Fleet::of_kinds(drawn, &kinds));
        let world = World::new(arrivals(plan, seed), &fleet);
        let conditions = Conditions { seed, ..Conditions::default() };
        let (outcome, _) =
            plan.who.simulate(&world, &conditions, std::slice::from_ref(&plan.graph), (&Config::default(), None))?;
        let Outcome { done, makespan, .. } = &outcome;
        let mut took: Vec<f64> = done.iter().zip(&world.jobs).map(|(done, job)| done - job.arrives).collect();
        took.sort_by(f64::total_cmp);
        late = late.max(took[((SHARE * took.len() as f64).ceil() as usize).clamp(1, took.len()) - 1]);
        for (kind, busy) in busy.iter_mut().enumerate() {
            busy.push(mean(fleet.able[kind].iter().map(|&agent| outcome.busy[agent] / makespan)));
        }
        completions.extend(took);
    }
    Ok(Tried {
        agents: kinds,
        utilization: busy.into_iter().map(mean).collect(),
        completion: mean(completions),
        within: late,
    })
}

/// Runs that come at random times, at the rate that is asked for.
fn arrivals(plan: &Plan, seed: u64) -> Vec<Job> {
    let span = plan.runs as f64 * 3600.0 / plan.rate;
    let mut times: Vec<f64> = (0..plan.runs as u64).map(|run| uniform(&[seed, 54, run]) * span).collect();
    times.sort_by(f64::total_cmp);
    times.into_iter().map(|arrives| Job { arrives, ..Job::new(&plan.graph) }).collect()
}
