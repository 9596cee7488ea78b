//! What is to be expected of the queue: when all that waits will be begun, which of what is due will be late, and what would help.
//!
//! The tasks that wait are taken by priority and age. Each begins when the slots of its type have done what stands before it; an
//! agent that can do several types is there for each in proportion to what waits for it. From there on a run needs the longest path of
//! work that is left: what it has to wait for later is not known, nor what else will come. So what is said to be late will be late, but for
//! luck; and what is not may be all the same.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use baton_protocol::request::{BackPressure, Forecast, Late, QueueForecast};
use baton_protocol::{AgentId, Capability, Millis, RunId, TaskId};

use crate::Optimizer;
use crate::durations::{Gauss, Place};
use crate::graph::Graph;
use crate::math::exp;
use crate::queue::order;
use crate::runs::Run;

/// How much of what is late is told.
const TOLD: usize = 100;
/// What an agent that always fails is taken to fail with: it is tried ten times for a task.
const MOST_FAILURE: f64 = 0.9;

/// What waits for a type of agents, and who is there for it.
#[derive(Debug, Default)]
struct Type {
    queued: u64,
    /// How long it takes one agent of ordinary speed that never fails, in milliseconds.
    work: f64,
    /// How many slots there are for it, and in those of ordinary speed that never fail.
    count: f64,
    slots: f64,
    /// In how many milliseconds these are free, summed up.
    busy: f64,
    late: u64,
    /// How many more slots would let all be in time that can.
    more: f64,
}

/// Where something stands that is due: a run, or one of its stages.
struct Outlook<'a> {
    id: RunId,
    run: &'a Run,
    graph: &'a Graph,
    /// The stage, if it is not the run as a whole.
    stage: Option<usize>,
    due: Millis,
    /// The longest path of work from each stage to the end of what is due, itself included; less than nothing where none leads there.
    paths: Vec<f64>,
    /// In how many milliseconds it is over, and could be if nobody stood before it.
    ends: f64,
    could_end: f64,
    /// What it waits for longest: the type, what stands before, and the path of work from there.
    waits: Option<(&'a Capability, f64, f64)>,
}

pub(crate) fn forecast(state: &Optimizer, ageing_ms: Millis, now: Millis) -> Forecast {
    let mut types = types(state, now);
    let mut outlooks: BTreeMap<RunId, Vec<Outlook<'_>>> = BTreeMap::new();
    for (id, run) in state.runs.iter().filter(|(id, _)| !state.held.is_paused(**id)) {
        let of_run = Outlook::all(state, *id, run, now);
        if !of_run.is_empty() {
            outlooks.insert(*id, of_run);
        }
    }
    let mut queue: Vec<_> = state.queue.iter().collect();
    queue.sort_by_cached_key(|(task, queued)| {
        Reverse(order((*task).clone(), queued.priority, queued.since, now, ageing_ms))
    });
    let mut before: BTreeMap<&Capability, f64> = BTreeMap::new();
    for (task, queued) in queue {
        let agent_type = &queued.shape.agent_type;
        let stands_before = before.entry(agent_type).or_default();
        let begins = types.get(agent_type).map_or(f64::INFINITY, |of| of.begins(*stands_before));
        for outlook in outlooks.get_mut(&task.run).into_iter().flatten() {
            outlook.waits(task, agent_type, begins, *stands_before);
        }
        *stands_before += work(state, task);
    }
    let all = outlooks.into_values().flatten();
    let (mut late, in_time): (Vec<_>, Vec<_>) = all.partition(|outlook: &Outlook<'_>| outlook.ends > outlook.left(now));
    late.sort_by(|one, other| {
        let by = |it: &Outlook<'_>| it.ends - it.left(now);
        by(other).total_cmp(&by(one)).then((one.id, one.stage).cmp(&(other.id, other.stage)))
    });
    let mut held_up = 0;
    for outlook in &late {
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
    let queues: Vec<_> = types.iter().map(|(name, of)| of.told(name)).collect();
    let nobody = queues.iter().any(|queue| queue.begun_after_ms.is_none());
    let due = (late.len() + in_time.len()) as u64;
    Forecast {
        at: now,
        due,
        late: late.len() as u64,
        held_up,
        first: late.iter().take(TOLD).map(|outlook| outlook.told(now)).collect(),
        back_pressure: match held_up {
            _ if nobody => BackPressure::Critical,
            0 => BackPressure::None,
            held_up if 2 * held_up >= due => BackPressure::Critical,
            _ => BackPressure::Elevated,
        },
        retry_after_ms: queues.iter().map(|queue| queue.begun_after_ms).max().flatten().filter(|_| !nobody),
        advice: advice(&queues, late.len() as u64 - held_up),
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
    let wanted: BTreeMap<Capability, f64> = types.iter().map(|(name, of)| (name.clone(), of.work)).collect();
    for (id, agent) in state.fleet.iter() {
        let can = || wanted.iter().filter(|(name, _)| agent.capabilities.contains_key(*name));
        let all: f64 = can().map(|(_, work)| work).sum();
        let speed = state.learning.performance(id).map_or(1.0, |known| exp(known.speed.log.mean));
        for (name, work) in can() {
            let share = work / all;
            // A failed attempt takes half the time, on average, and is done again.
            let failure = state.learning.failure(id, name).min(MOST_FAILURE);
            let each = speed * (1.0 - failure) / (1.0 - failure / 2.0);
            if let Some(of) = types.get_mut(name) {
                of.count += share * f64::from(agent.slots());
                of.slots += share * f64::from(agent.slots()) * each;
                of.busy += share * rests.get(id).copied().unwrap_or_default();
            }
        }
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
    /// In how many milliseconds a slot is free, on average.
    fn free(&self) -> f64 {
        if self.count > 0.0 { self.busy / self.count } else { 0.0 }
    }

    /// In how many milliseconds something begins that so much work stands before.
    fn begins(&self, before: f64) -> f64 {
        if self.slots > 0.0 { self.free() + before / self.slots } else { f64::INFINITY }
    }

    /// How many more slots it takes so that something begins in so many milliseconds that so much work stands before.
    fn lacks(&self, within: f64, before: f64) -> f64 {
        let done = self.slots * (within - self.free()).max(0.0);
        ((before - done) / within.max(1.0)).max(1.0)
    }

    fn told(&self, agent_type: &Capability) -> QueueForecast {
        let begun = self.begins(self.work);
        QueueForecast {
            agent_type: agent_type.clone(),
            waiting: self.queued,
            work_ms: self.work.round() as u64,
            slots: self.slots,
            begun_after_ms: begun.is_finite().then(|| begun.round() as Millis),
            late: self.late,
            more: self.more.ceil() as u64,
        }
    }
}

impl<'a> Outlook<'a> {
    /// All that is due of a run: itself, and those of its stages that are not over. Nothing if its graph is not known.
    fn all(state: &'a Optimizer, id: RunId, run: &'a Run, now: Millis) -> Vec<Self> {
        let Some(graph) = state.graphs.get(&run.workflow, run.version) else { return Vec::new() };
        let open = graph.stages.iter().enumerate().filter(|(at, _)| !run.is_over(*at as u32));
        let of_stages = open.filter_map(|(at, stage)| Some((Some(at), run.since.saturating_add(stage.due_ms?))));
        let due: Vec<_> = run.due.map(|due| (None, due)).into_iter().chain(of_stages).collect();
        if due.is_empty() {
            return Vec::new();
        }
        let place = |node| Place { workflow: &run.workflow, node, run: run.work };
        let works = graph.stages.iter().map(|node| state.learning.durations.work(place(node)).expected());
        let works: Vec<f64> = works.collect();
        due.into_iter()
            .map(|(stage, due)| Self::new(state, (id, run), (graph.as_ref(), works.as_slice()), (stage, due), now))
            .collect()
    }

    fn new(
        state: &Optimizer,
        (id, run): (RunId, &'a Run),
        (graph, works): (&'a Graph, &[f64]),
        (stage, due): (Option<usize>, Millis),
        now: Millis,
    ) -> Self {
        let mut paths = vec![f64::NEG_INFINITY; works.len()];
        for at in (0..paths.len()).rev() {
            let after = graph.stages[at].children.iter().map(|child| paths[*child as usize]);
            let ends_here = stage.is_none_or(|stage| stage == at);
            paths[at] = works[at] + after.fold(if ends_here { 0.0 } else { f64::NEG_INFINITY }, f64::max);
        }
        // Of two agents that have the same task, the one that is done first counts.
        let mut held: BTreeMap<TaskId, f64> = BTreeMap::new();
        for (task, holder) in run.held(id) {
            let rest = at_work(state, &task, &holder.agent, holder.since, now);
            let of_task = held.entry(task).or_insert(rest);
            *of_task = of_task.min(rest);
        }
        let held = held.iter().filter_map(|(task, rest)| {
            let at = graph.place(&task.stage)? as usize;
            Some(rest + paths[at] - works[at])
        });
        // What neither waits nor is with an agent is to come, or somebody else's.
        let open = |at: &usize| run.task(id, &graph.stages[*at].name).is_some();
        let others = (0..paths.len()).filter(|at| !run.is_over(*at as u32) && !open(at)).map(|at| paths[at]);
        let ends = held.chain(others).fold(0.0, f64::max);
        Self { id, run, graph, stage, due, paths, ends, could_end: ends, waits: None }
    }

    /// In how many milliseconds it is due; less than nothing if it is late by now.
    fn left(&self, now: Millis) -> f64 {
        self.due as f64 - now as f64
    }

    /// A task of its run waits, and begins in so many milliseconds.
    fn waits(&mut self, task: &TaskId, agent_type: &'a Capability, begins: f64, stands_before: f64) {
        let Some(rest) = self.graph.place(&task.stage).map(|at| self.paths[at as usize]) else { return };
        if rest < 0.0 {
            return;
        }
        self.could_end = self.could_end.max(rest);
        if begins + rest > self.ends {
            (self.ends, self.waits) = (begins + rest, Some((agent_type, stands_before, rest)));
        }
    }

    fn told(&self, now: Millis) -> Late {
        Late {
            run: self.id,
            workflow: self.run.workflow.clone(),
            stage: self.stage.map(|at| self.graph.stages[at].name.clone()),
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
    for QueueForecast { agent_type, waiting, begun_after_ms, more, .. } in queues {
        if begun_after_ms.is_none() {
            let tasks = if *waiting == 1 { "1 task waits".to_owned() } else { format!("{waiting} tasks wait") };
            advice.push(format!("{agent_type}: {tasks}, and no agent that is there can do that"));
        } else if *more > 0 {
            advice.push(format!(
                "{agent_type}: {more} more slots of ordinary speed would let all be in time that can; or start less, or give what is due a \
                 higher priority"
            ));
        }
    }
    if late_anyway > 0 {
        advice.push(format!(
            "{late_anyway} will be late whatever is done: what is still to be done there takes too long by itself"
        ));
    }
    advice
}
