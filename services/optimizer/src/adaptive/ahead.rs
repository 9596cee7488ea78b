//! What is to come: HEFT anew with every event, where that is known and small.
//!
//! A walk through the queue gives what is ready to whoever ends it first. An agent that something more urgent will want in a moment is
//! taken by then. So where stages are known, as they were done in other runs, they are planned before they are ready: all that is not
//! over, the more urgent first, each where it ends first, in a gap between what is planned there already if it fits. What the
//! plan begins now is asked for, and the rest of it forgotten.
//!
//! That takes time for each stage and agent, and pays where little is to be done at a time: with many agents or runs
//! there is no looking ahead. Nor is there where tenants take turns, tasks need more than a slot, or agents have more than one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use baton_protocol::{AgentId, Capability, Millis, RunId, TaskId};

use super::agents::{Best, Class, Look};
use super::jobs::{Entry, Job};
use super::{Planner, RETRY_COST};
use crate::Optimizer;
use crate::queue::Shape;

/// How many stages and tasks, times agents, are looked at, at the most.
const MAX_STEPS: usize = 16_384;
/// How many types of agents and shapes of tasks there are then, at the most.
const MAX_CLASSES: usize = 64;

/// Where each task that waits is to begin, and when: at least those that begin now.
pub(super) type Ahead = BTreeMap<(RunId, u32, Option<u32>), Best>;

/// When an agent is to do something: from, until.
pub(super) type Span = (f64, f64);

impl Planner {
    /// Whether to look ahead now. If so, there is a class for each type of agents that is to come.
    pub(super) fn looks_ahead(&mut self) -> bool {
        let steps = (self.cost + self.waiting) * self.agents.len();
        let is_small = steps <= MAX_STEPS && self.classes.len() <= MAX_CLASSES;
        if !is_small || !self.agents.are_single() || !self.jobs.values().any(Job::has_seen) {
            return false;
        }
        let mut waiting = self.classes.iter().zip(&self.lines).filter(|(_, line)| line.waiting > 0);
        if waiting.any(|(class, line)| !class.shape.resources.is_empty() || line.runs.len() > 1) {
            return false;
        }
        let unsorted: Vec<_> = self.jobs.iter().filter(|(_, job)| job.will_be.is_empty()).map(|(id, _)| *id).collect();
        for run in unsorted {
            let Some(graph) = self.jobs.get(&run).map(|job| Arc::clone(&job.graph)) else { continue };
            let will_be = graph.stages.iter().map(|node| self.class_for(&node.agent_type)).collect();
            if let Some(job) = self.jobs.get_mut(&run) {
                job.will_be = will_be;
            }
        }
        true
    }

    /// A class of tasks for a type of agents: what else a task needs is not known before it is ready. None if there are too many.
    fn class_for(&mut self, agent_type: &Capability) -> Option<usize> {
        let known = self.classes.iter().position(|class| class.shape.agent_type == *agent_type);
        if known.is_some() || self.classes.len() >= MAX_CLASSES {
            return known;
        }
        let (requires, resources, pools) = Default::default();
        Some(self.class(&Arc::new(Shape { agent_type: agent_type.clone(), requires, resources, pools })))
    }

    /// Plans what waits and what is to come, as far as that has a say in what begins now.
    pub(super) fn look_ahead<'a>(
        &self,
        state: &Optimizer,
        now: Millis,
        barred: impl Fn(&TaskId) -> Option<&'a BTreeSet<AgentId>>,
    ) -> Ahead {
        let mut order: Vec<_> = self.jobs.iter().map(|(run, job)| (job.key, *run, job)).collect();
        order.sort_unstable_by_key(|(key, run, _)| (*key, *run));
        let mut planned = vec![Vec::new(); self.agents.len()];
        let mut ahead = Ahead::new();
        let mut free = self.agents.with_room(&self.classes);
        for (_, run, job) in order {
            let mut frontier = Frontier::new(job);
            for (task, holder) in state.runs.get(run).into_iter().flat_map(|of| of.held(run)) {
                if let Some(place) = job.graph.place(&task.stage) {
                    frontier.held(place, self.agents.expected_end(state, &task, holder, now));
                }
            }
            for (class, entry) in job.waiting() {
                frontier.waits(class, entry);
            }
            frontier.begin();
            while let Some(place) = frontier.next() {
                if free == 0 || frontier.left == 0 {
                    break;
                }
                let at = place as usize;
                let mut ends = frontier.begins(place, now);
                let waiting = frontier.waiting.remove(&place);
                let is_held = frontier.held.contains_key(&place);
                for (class, entry) in waiting.iter().flatten() {
                    frontier.left -= 1;
                    let stage = job.graph.stages[at].name.clone();
                    let task = TaskId { run, stage, item: entry.item, attempt: entry.attempt };
                    let look = Look {
                        work: job.work_now(state, run, place),
                        retries: RETRY_COST * f64::from(entry.attempt.saturating_sub(1)),
                        failed_under: if entry.attempt > 1 { state.runs.failed_under(&task) } else { None },
                        near: state.queue.get(&task).and_then(|queued| queued.near.as_ref()),
                        not: barred(&task),
                        now: now as f64,
                    };
                    let class: &Class = &self.classes[*class];
                    let Some(best) = self.agents.best_between(class, &look, now as f64, &planned) else {
                        ends = f64::INFINITY;
                        continue;
                    };
                    // An agent that is late seems to be available, and has no room nevertheless.
                    let begins = best.available <= now as f64 && class.has_room(best.row);
                    free = free.saturating_sub(usize::from(begins));
                    ends = ends.max(reserve(&mut planned, best));
                    ahead.insert((run, place, entry.item), best);
                }
                if waiting.is_none() && !is_held {
                    if !frontier.is_to_come(place) || job.graph.stages[at].asks {
                        // It waits for something else than agents.
                        continue;
                    }
                    let (work, begins) = (job.work[at], ends);
                    let (failed_under, near, not) = (None, None, None);
                    let look = Look { work, retries: 0.0, failed_under, near, not, now: now as f64 };
                    let class = job.will_be[at].filter(|_| job.seen[at]).map(|class| &self.classes[class]);
                    let best = class.and_then(|class| self.agents.best_between(class, &look, begins, &planned));
                    ends = best.map_or(begins + work, |best| reserve(&mut planned, best));
                }
                // Where nobody knows when it ends, no agent is kept for what comes after it: that might be for ever.
                if ends.is_finite() {
                    frontier.over(place, ends);
                }
            }
        }
        ahead
    }
}

/// Plans something for an agent. Gives when it ends.
fn reserve(planned: &mut [Vec<Span>], best: Best) -> f64 {
    let ends = best.available + best.duration;
    let spans = &mut planned[best.row];
    let at = spans.partition_point(|(begins, _)| *begins < best.available);
    spans.insert(at, (best.available, ends));
    ends
}

/// The stages of a run that are not over, in the order in which they are planned: the more urgent first, none before
/// those that it waits for.
struct Frontier<'a> {
    job: &'a Job,
    /// What can be planned.
    next: BinaryHeap<Reverse<Entry>>,
    /// For how many each waits that are not planned, and when those end that are.
    missing: Vec<u32>,
    ready: Vec<f64>,
    /// When what is under way ends: the later of two copies, as the other one may fail. Infinite if nobody knows.
    held: BTreeMap<u32, f64>,
    /// What waits, by stage: in which class.
    waiting: BTreeMap<u32, Vec<(usize, Entry)>>,
    /// How many tasks wait that are not planned.
    left: usize,
}

impl<'a> Frontier<'a> {
    fn new(job: &'a Job) -> Self {
        let stages = job.graph.stages.len();
        let mut missing = vec![0; stages];
        let live = job.graph.stages.iter().enumerate().filter(|(at, _)| !job.is_over(*at));
        live.flat_map(|(_, node)| &node.children).for_each(|child| missing[*child as usize] += 1);
        Self {
            job,
            next: BinaryHeap::new(),
            missing,
            ready: vec![0.0; stages],
            held: BTreeMap::new(),
            waiting: BTreeMap::new(),
            left: 0,
        }
    }

    fn held(&mut self, place: u32, ends: f64) {
        let latest = self.held.entry(place).or_insert(ends);
        *latest = latest.max(ends);
    }

    fn waits(&mut self, class: usize, entry: Entry) {
        self.waiting.entry(entry.place).or_default().push((class, entry));
        self.left += 1;
    }

    /// Begins with what waits for no other stage, or waits and is under way already, whatever else it could have waited for.
    fn begin(&mut self) {
        for place in self.waiting.keys().chain(self.held.keys()) {
            self.missing[*place as usize] = 0;
        }
        let first = (0..self.missing.len()).filter(|at| self.missing[*at] == 0 && !self.job.is_over(*at));
        self.next = first.map(|at| Reverse(self.job.entry(at as u32, None, 0))).collect();
    }

    fn next(&mut self) -> Option<u32> {
        Some(self.next.pop()?.0.place)
    }

    /// Whether something has to end before a stage is ready.
    fn is_to_come(&self, place: u32) -> bool {
        self.ready[place as usize] > 0.0
    }

    /// When all that a stage waits for has ended, and what is under way of it.
    fn begins(&self, place: u32, now: Millis) -> f64 {
        let held = self.held.get(&place).copied().unwrap_or_default();
        self.ready[place as usize].max(held).max(now as f64)
    }

    /// It is known when a stage ends.
    fn over(&mut self, place: u32, ends: f64) {
        for child in &self.job.graph.stages[place as usize].children {
            let at = *child as usize;
            self.ready[at] = self.ready[at].max(ends);
            if self.missing[at] == 0 {
                // It has begun already.
                continue;
            }
            self.missing[at] -= 1;
            if self.missing[at] == 0 {
                self.next.push(Reverse(self.job.entry(*child, None, 0)));
            }
        }
    }
}
