//! What the second source document claims of better coordination, measured on stated workloads: tasks that are given away in
//! turns as soon as they are ready, against the optimizer.

use std::sync::Arc;

use baton_protocol::request::Strategy;
use serde::Serialize;

use crate::experiment;
use crate::packing::{self, Packer, Request};
use crate::reference::Reference;
use crate::stream::{self, Arrivals};
use crate::who::{Error, Fleets, History, Who, geometric_mean, mean};
use crate::workload::Graph;

/// At which load runs come where nothing goes wrong.
const CALM: f64 = 0.6;
/// At which load they come where agents become slow and begin to fail.
const ROUGH: f64 = 0.85;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The workflows.
    pub graphs: Vec<Arc<Graph>>,
    /// What requests to language models are drawn from.
    pub requests: Vec<Request>,
    /// How many of them are drawn.
    pub count: usize,
    /// The fleets.
    pub fleets: Fleets,
    /// What the luck of attempts depends on; averaged over.
    pub luck: Vec<u64>,
    /// How many runs a stream has.
    pub runs: usize,
    /// What was seen before.
    pub history: History,
    /// How the optimizer places.
    pub strategy: Strategy,
}

/// A claim, and what was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Claim {
    /// What is claimed.
    pub claim: &'static str,
    /// On which workload it was measured.
    pub workload: String,
    /// How many agents.
    pub agents: usize,
    /// By which part the value changes, as it is claimed: −0.25 for a quarter less.
    pub claimed: f64,
    /// The value where tasks are given away in turns (or where each message is sent alone).
    pub before: f64,
    /// The value under the optimizer.
    pub after: f64,
}

impl Claim {
    /// By which part the value changes.
    #[must_use]
    pub fn change(&self) -> f64 {
        self.after / self.before - 1.0
    }

    /// Whether it changes by as much as is claimed.
    #[must_use]
    pub fn is_reproduced(&self) -> bool {
        if self.claimed > 0.0 { self.change() >= self.claimed } else { self.change() <= self.claimed }
    }
}

/// Measures all claims on fleets of each size.
pub fn check(plan: &Plan) -> Result<Vec<Claim>, Error> {
    let mut claims = Vec::new();
    for &agents in &plan.fleets.agents {
        claims.extend(of_size(plan, agents)?);
    }
    Ok(claims)
}

fn of_size(plan: &Plan, agents: usize) -> Result<Vec<Claim>, Error> {
    let who = vec![Who::Reference(Reference::RoundRobin), Who::Strategy(plan.strategy)];
    let fleets = Fleets { agents: vec![agents], ..plan.fleets.clone() };
    let stream = |arrivals: Arrivals, drift: Option<f64>| {
        stream::run(
            &stream::Plan {
                graphs: plan.graphs.clone(),
                fleets: fleets.clone(),
                luck: plan.luck.clone(),
                who: who.clone(),
                history: plan.history,
                runs: plan.runs,
                arrivals: vec![arrivals],
                drift,
                deadlines_first: false,
            },
            |_| {},
        )
    };
    let (calm, rough) =
        (stream(Arrivals::Load(CALM), None)?, stream(Arrivals::Load(ROUGH), Some(stream::DRIFTS_AFTER))?);
    let backlog = stream(Arrivals::Backlog, None)?;
    let packed = packing::run(
        &packing::Plan {
            requests: plan.requests.clone(),
            count: plan.count,
            agents: vec![agents],
            seeds: fleets.seeds.clone(),
            who: vec![Packer::RoundRobin, Packer::Strategy(plan.strategy)],
        },
        |_| {},
    );
    let alone = experiment::run(
        &experiment::Plan { graphs: plan.graphs.clone(), fleets, luck: plan.luck.clone(), who, history: plan.history },
        |_| {},
    )?;
    let strategy = plan.strategy.as_str();
    let is_after = |policy: &str| policy == strategy;
    let of_stream = |measured: &[stream::Measurement], after: bool, of: fn(&stream::Measurement) -> f64| {
        mean(measured.iter().filter(|it| is_after(&it.policy) == after).map(of))
    };
    let both = |measured: &[stream::Measurement], of: fn(&stream::Measurement) -> f64| {
        (of_stream(measured, false, of), of_stream(measured, true, of))
    };
    let of_packed = |after: bool| mean(packed.iter().filter(|it| is_after(&it.policy) == after).map(|it| it.dominant));
    let of_alone =
        |after: bool| geometric_mean(alone.iter().filter(|it| is_after(&it.policy) == after).map(|it| it.to_bound));
    let sent = |of: fn(&stream::Measurement) -> Option<f64>| {
        mean(calm.iter().filter(|it| is_after(&it.policy)).filter_map(of))
    };
    let runs = plan.runs;
    let claim = |claim, workload: String, claimed: f64, (before, after): (f64, f64)| Claim {
        claim,
        workload,
        agents,
        claimed,
        before,
        after,
    };
    let up = |from: f64, to: f64| to / from - 1.0;
    Ok(vec![
        claim(
            "utilization 60 % → 85 %",
            format!("{runs} runs, all at once"),
            up(0.60, 0.85),
            both(&backlog, |it| it.utilization),
        ),
        claim(
            "utilization 60 % → 85 %",
            format!("{} requests to language models, all at once; what there is most use of", plan.count),
            up(0.60, 0.85),
            (of_packed(false), of_packed(true)),
        ),
        claim(
            "completion −25 %",
            format!("{runs} runs at load {CALM}, seconds a run"),
            -0.25,
            both(&calm, |it| it.completion),
        ),
        claim(
            "success 75 % → 90 %",
            format!("{runs} runs at load {ROUGH}; a fifth of the agents become slow, a tenth fail"),
            up(0.75, 0.90),
            both(&rough, |it| it.succeeded),
        ),
        claim(
            "messages −40 %",
            format!("{runs} runs at load {CALM}, messages a task: each alone, and as sent"),
            -0.40,
            (sent(|it| it.messages_alone), sent(|it| it.messages)),
        ),
        claim(
            "overall 30 %",
            "each workflow alone, makespan by its bound".to_owned(),
            -0.30,
            (of_alone(false), of_alone(true)),
        ),
    ])
}
