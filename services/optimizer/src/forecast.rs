//! What is to be expected of the queue: when all that waits will be begun, which of the runs that are due will be late, and what would
//! help them.
//!
//! The tasks that wait are taken in the order of urgency. Each begins when the slots of its type have done what stands before it; an
//! agent that can do several types is there for each in proportion to what waits for it. From there on a run needs the longest path of
//! work that is left: what it has to wait for later is not known, nor what else will come. So a run that is said to be late will be late,
//! but for luck; and one that is not may be all the same.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use baton_protocol::request::{BackPressure, Forecast, LateRun, QueueForecast};
use baton_protocol::{AgentId, Capability, Millis, RunId, StageName, TaskId};

use crate::Optimizer;
use crate::durations::{Gauss, Place};
use crate::graph::Graph;
use crate::math::exp;
use crate::queue::order;
use crate::runs::Run;

/// How many late runs are told.
const TOLD: usize = 100;
/// What an agent that always fails is taken to fail with: it is tried ten times for a task.
const MOST_FAILURE: f64 = 0.9;

/// What waits for a type of agents, and who is there for it.
#[derive(Debug, Default)]
struct Type {
    queued: u64,
    /// How long it takes one agent of ordinary speed that never fails, in milliseconds.
    work: f64,
    /// How many such agents there are for it.
    slots: f64,
    /// In how many milliseconds a slot is free, on average.
    busy: f64,
    late: u64,
    /// How many more slots would let all be in time that can.
    more: f64,
}

/// Where a run stands that is due.
struct Outlook<'a> {
    run: &'a Run,
    due: Millis,
    graph: &'a Graph,
    /// The longest path of work from each stage to the end, itself included.
    paths: Vec<f64>,
    /// In how many milliseconds it ends, and could end if nobody stood before it.
    ends: f64,
    could_end: f64,
    /// What it waits for longest: the type, what stands before, and the path of work from there.
    waits: Option<(&'a Capability, f64, f64)>,
}

pub(crate) fn forecast(state: &Optimizer, ageing_ms: Millis, now: Millis) -> Forecast {
    let mut types = types(state, now);
    let mut outlooks: BTreeMap<RunId, Outlook<'_>> =
        state.runs.iter().filter_map(|(id, run)| Some((*id, Outlook::new(state, *id, run, now)?))).collect();
    let mut queue: Vec<_> = state.queue.iter().collect();
    queue.sort_by_cached_key(|(task, queued)| {
        Reverse(order((*task).clone(), queued.priority, queued.since, now, ageing_ms))
    });
    let mut before: BTreeMap<&Capability, f64> = BTreeMap::new();
    for (task, queued) in queue {
        let agent_type = &queued.shape.agent_type;
        let stands_before = before.entry(agent_type).or_default();
        if let Some(outlook) = outlooks.get_mut(&task.run) {
            let begins = types.get(agent_type).map_or(f64::INFINITY, |of| of.begins(*stands_before));
            outlook.waits(&task.stage, agent_type, begins, *stands_before);
        }
        *stands_before += work(state, task);
    }
    let due = outlooks.len() as u64;
    let mut late: Vec<(RunId, Outlook<'_>)> = outlooks.into_iter().filter(|(_, it)| it.ends > it.left(now)).collect();
    late.sort_by(|(a, one), (b, other)| {
        let by = |it: &Outlook<'_>| it.ends - it.left(now);
        by(other).total_cmp(&by(one)).then(a.cmp(b))
    });
    let mut held_up = 0;
    for (_, outlook) in &late {
        let could = outlook.could_end <= outlook.left(now);
        held_up += u64::from(could);
        if let Some((agent_type, stands_before, rest)) = outlook.waits
            && let Some(of) = types.get_mut(agent_type)
        {
            of.late += 1;
            if could {
                of.more = of.more.max(of.lacks(outlook.left(now) - rest, stands_before));
            }
        }
    }
    let queues: Vec<_> = types.iter().filter(|(_, of)| of.queued > 0).map(|(name, of)| of.told(name)).collect();
    let nobody = queues.iter().any(|queue| queue.begun_after_ms.is_none());
    let late_anyway = late.len() as u64 - held_up;
    Forecast {
        at: now,
        due,
        late: late.len() as u64,
        held_up,
        runs: late.iter().take(TOLD).map(|(run, outlook)| outlook.told(*run, now)).collect(),
        back_pressure: match held_up {
            _ if nobody => BackPressure::Critical,
            0 => BackPressure::None,
            held_up if 2 * held_up >= due => BackPressure::Critical,
            _ => BackPressure::Elevated,
        },
        retry_after_ms: queues.iter().map(|queue| queue.begun_after_ms).max().flatten().filter(|_| !nobody),
        advice: advice(&queues, late_anyway),
        queues,
    }
}

/// What waits, and who is there for it.
fn types(state: &Optimizer, now: Millis) -> BTreeMap<Capability, Type> {
    let mut types: BTreeMap<Capability, Type> = BTreeMap::new();
    for (task, queued) in state.queue.iter() {
        let of = types.entry(queued.shape.agent_type.clone()).or_default();
        (of.queued, of.work) = (of.queued + 1, of.work + work(state, task));
    }
    let mut rests: BTreeMap<AgentId, f64> = BTreeMap::new();
    for (task, holder) in state.runs.held_tasks() {
        *rests.entry(holder.agent.clone()).or_default() += at_work(state, &task, &holder.agent, holder.since, now);
    }
    let mut shares = Vec::new();
    for (id, agent) in state.fleet.iter() {
        let can: Vec<_> = types.iter().filter(|(of, _)| agent.capabilities.contains_key(*of)).collect();
        let all: f64 = can.iter().map(|(_, of)| of.work).sum();
        let speed = state.learning.performance(id).map_or(1.0, |known| exp(known.speed.log.mean));
        for (name, of) in can {
            let share = of.work / all * f64::from(agent.slots());
            // A failed attempt takes half the time, on average, and is done again.
            let failure = state.learning.failure(id, name).min(MOST_FAILURE);
            let slots = share * speed * (1.0 - failure) / (1.0 - failure / 2.0);
            let rest = rests.get(id).map_or(0.0, |rest| rest * share / f64::from(agent.slots()));
            shares.push((name.clone(), share, slots, rest));
        }
    }
    for (name, count, slots, rest) in shares {
        if let Some(of) = types.get_mut(&name) {
            // Until the end, how many there are is counted in `more`.
            (of.slots, of.busy, of.more) = (of.slots + slots, of.busy + rest, of.more + count);
        }
    }
    for of in types.values_mut() {
        let count = std::mem::take(&mut of.more);
        of.busy = if count > 0.0 { of.busy / count } else { 0.0 };
    }
    types
}

/// How long a task takes an agent of ordinary speed, in milliseconds.
fn work(state: &Optimizer, task: &TaskId) -> f64 {
    let durations = &state.learning.durations;
    state.place(task).map_or_else(|| durations.average_ms(), |place| durations.work(place).expected()).max(1.0)
}

/// How much longer a task goes on that an agent has had since then, in milliseconds.
fn at_work(state: &Optimizer, task: &TaskId, agent: &AgentId, since: Millis, now: Millis) -> f64 {
    let durations = &state.learning.durations;
    let log = state.place(task).map_or_else(|| durations.any(), |place| durations.work(place));
    let speed = state.learning.performance(agent).map_or(0.0, |known| known.speed.log.mean);
    Gauss { mean: log.mean - speed, variance: log.variance }.remaining(now.saturating_sub(since) as f64)
}

impl Type {
    /// In how many milliseconds something begins that so much work stands before.
    fn begins(&self, before: f64) -> f64 {
        if self.slots > 0.0 { self.busy + before / self.slots } else { f64::INFINITY }
    }

    /// How many more slots it takes so that something begins in so many milliseconds that so much work stands before.
    fn lacks(&self, within: f64, before: f64) -> f64 {
        let done = self.slots * (within - self.busy).max(0.0);
        ((before - done) / within.max(1.0)).max(1.0)
    }

    fn told(&self, agent_type: &Capability) -> QueueForecast {
        let begun = self.begins(self.work);
        QueueForecast {
            agent_type: agent_type.clone(),
            queued: self.queued,
            work_ms: self.work.round() as u64,
            slots: self.slots,
            begun_after_ms: begun.is_finite().then(|| begun.round() as Millis),
            late: self.late,
            more: self.more.ceil() as u64,
        }
    }
}

impl<'a> Outlook<'a> {
    /// None if the run is not due, or its graph is not known.
    fn new(state: &'a Optimizer, id: RunId, run: &'a Run, now: Millis) -> Option<Self> {
        let (due, graph) = (run.due?, state.graphs.get(&run.workflow, run.version)?.as_ref());
        let place = |node| Place { workflow: &run.workflow, node, run: run.work };
        let work: Vec<f64> =
            graph.stages.iter().map(|node| state.learning.durations.work(place(node)).expected()).collect();
        let mut paths = work.clone();
        for at in (0..paths.len()).rev() {
            let after = graph.stages[at].children.iter().map(|child| paths[*child as usize]);
            paths[at] += after.fold(0.0, f64::max);
        }
        let held = run.held(id).filter_map(|(task, holder)| {
            let at = graph.place(&task.stage)? as usize;
            Some(at_work(state, &task, &holder.agent, holder.since, now) + paths[at] - work[at])
        });
        let mut ends = held.fold(0.0, f64::max);
        if run.open_and_held().0 == 0 {
            // It is about to try something again.
            let left = (0..paths.len()).filter(|at| !run.is_over(*at as u32)).map(|at| paths[at]);
            ends = left.fold(ends, f64::max);
        }
        Some(Self { run, due, graph, paths, ends, could_end: ends, waits: None })
    }

    /// In how many milliseconds it is due; less than nothing if it is late by now.
    fn left(&self, now: Millis) -> f64 {
        self.due as f64 - now as f64
    }

    /// A task of it waits, and begins in so many milliseconds.
    fn waits(&mut self, stage: &StageName, agent_type: &'a Capability, begins: f64, stands_before: f64) {
        let Some(rest) = self.graph.place(stage).map(|at| self.paths[at as usize]) else { return };
        self.could_end = self.could_end.max(rest);
        if begins + rest > self.ends {
            (self.ends, self.waits) = (begins + rest, Some((agent_type, stands_before, rest)));
        }
    }

    fn told(&self, run: RunId, now: Millis) -> LateRun {
        LateRun {
            run,
            workflow: self.run.workflow.clone(),
            due: self.due,
            ends: self.ends.is_finite().then(|| now.saturating_add(self.ends.round() as Millis)),
            could_end: now.saturating_add(self.could_end.round() as Millis),
            waits_for: self.waits.map(|(agent_type, ..)| agent_type.clone()),
        }
    }
}

/// What would help.
fn advice(queues: &[QueueForecast], late_anyway: u64) -> Vec<String> {
    let mut advice = Vec::new();
    for QueueForecast { agent_type, queued, begun_after_ms, more, .. } in queues {
        if begun_after_ms.is_none() {
            advice.push(format!("{agent_type}: {queued} tasks wait, and no agent that is there can do them"));
        } else if *more > 0 {
            advice.push(format!(
                "{agent_type}: with {more} more slots of ordinary speed all runs would be in time that can; or start fewer runs, \
                 or give those that are due a higher priority"
            ));
        }
    }
    if late_anyway > 0 {
        advice.push(format!(
            "{late_anyway} runs will be late whatever is done: what they still have to do takes too long"
        ));
    }
    advice
}
