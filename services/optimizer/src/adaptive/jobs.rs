//! The runs as the planner sees them: how urgent each of their tasks is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baton_protocol::{Capability, Millis, RunId, TaskId};

use super::agents::{Agents, Class};
use crate::durations::{Durations, Place};
use crate::graph::Graph;
use crate::math::{exp, ln};
use crate::runs::Run;
use crate::tenants::{Seat, Tenants};
use crate::{Config, Optimizer};

/// How much more urgent a run is at the most because it is due.
const URGENCY: f64 = 8.0;
/// How often the work is shared out among the agents when the bottleneck is sought.
const ROUNDS: usize = 30;
/// How many times the longest path it is at the most to the bottleneck.
const FAR: f64 = 10.0;

/// Where a run stands: greater first.
pub(super) type Key = Reverse<u64>;

/// A task that waits: those of a greater priority within their run first, of these the more urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    priority: Reverse<i32>,
    urgency: Reverse<u64>,
    pub(super) place: u32,
    pub(super) item: Option<u32>,
    pub(super) attempt: u32,
}

/// A run.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) graph: Arc<Graph>,
    pub(super) key: Key,
    /// How long each stage takes an agent of ordinary speed, in milliseconds.
    pub(super) work: Vec<f64>,
    urgency: Vec<f64>,
    /// The longest path of work from each stage to the end, itself included.
    rank: Vec<f64>,
    /// The longest path of work.
    longest: f64,
    /// How much work is left.
    left: f64,
    priority: i32,
    /// Known once a task of it waits.
    pub(super) tenant: Seat,
    since: Millis,
    /// When the run should have ended, or one of its stages that are not over.
    due: Option<Millis>,
    due_of_run: Option<Millis>,
    over: Vec<bool>,
    /// Which stages were done before, when the run was new.
    pub(super) seen: Vec<bool>,
    /// In which class each stage will wait, as far as is known before it is ready. Empty if nobody has asked.
    pub(super) will_be: Vec<Option<usize>>,
    /// The tasks that wait, by class.
    pub(super) ready: BTreeMap<usize, BTreeSet<Entry>>,
    /// In which class a stage, or an item of it, waits.
    class: BTreeMap<(u32, Option<u32>), usize>,
}

impl Job {
    pub(super) fn new(graph: &Arc<Graph>, run: &Run, durations: &Durations) -> Self {
        let over = (0..graph.stages.len() as u32).map(|place| run.is_over(place)).collect();
        let mut job = Self {
            graph: Arc::clone(graph),
            key: Reverse(0),
            work: Vec::new(),
            urgency: Vec::new(),
            rank: Vec::new(),
            longest: 0.0,
            left: 0.0,
            priority: run.priority,
            tenant: 0,
            since: run.since,
            due: None,
            due_of_run: run.due,
            over,
            seen: graph.stages.iter().map(|node| durations.has_seen(&run.workflow, &node.name)).collect(),
            will_be: Vec::new(),
            ready: BTreeMap::new(),
            class: BTreeMap::new(),
        };
        job.find_due();
        job
    }

    /// Finds when something of it is due first.
    fn find_due(&mut self) {
        let stages = self.graph.stages.iter().zip(&self.over).filter(|(_, over)| !**over);
        let of_stages = stages.filter_map(|(stage, _)| Some(self.since.saturating_add(stage.due_ms?)));
        self.due = of_stages.chain(self.due_of_run).min();
    }

    /// A task waits. False if it did before.
    pub(super) fn add(&mut self, class: usize, place: u32, task: &TaskId) -> bool {
        let entry = self.entry(place, task.item, task.attempt);
        self.class.insert((place, task.item), class);
        self.ready.entry(class).or_default().insert(entry)
    }

    /// A task waits no more. Gives its class, and whether it was the last there.
    pub(super) fn remove(&mut self, place: u32, task: &TaskId) -> Option<(usize, bool)> {
        let class = self.class_of(place, task)?;
        let entry = self.entry(place, task.item, task.attempt);
        let entries = self.ready.get_mut(&class)?;
        if !entries.remove(&entry) {
            return None;
        }
        self.class.remove(&(place, task.item));
        let is_last = entries.is_empty();
        if is_last {
            self.ready.remove(&class);
        }
        Some((class, is_last))
    }

    /// In which class a task of a stage waits.
    pub(super) fn class_of(&self, place: u32, task: &TaskId) -> Option<usize> {
        self.class.get(&(place, task.item)).copied()
    }

    /// How long a stage takes an agent of ordinary speed, by all that is known now.
    pub(super) fn work_now(&self, state: &Optimizer, run: RunId, place: u32) -> f64 {
        let node = &self.graph.stages[place as usize];
        state.runs.get(run).map_or(self.work[place as usize], |run| {
            state.learning.durations.work(Place { workflow: &run.workflow, node, run: run.work }).expected()
        })
    }

    /// The longest path of work from a stage to the end, without itself.
    pub(super) fn path_after(&self, place: u32) -> f64 {
        let of = |all: &[f64]| all.get(place as usize).copied().unwrap_or_default();
        of(&self.rank) - of(&self.work)
    }

    /// Whether any of its stages was done before.
    pub(super) fn has_seen(&self) -> bool {
        self.seen.contains(&true)
    }

    pub(super) fn is_over(&self, at: usize) -> bool {
        self.over[at]
    }

    /// The tasks that wait, each with its class.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (usize, Entry)> {
        self.ready.iter().flat_map(|(class, entries)| entries.iter().map(|entry| (*class, *entry)))
    }

    pub(super) fn entry(&self, place: u32, item: Option<u32>, attempt: u32) -> Entry {
        let urgency = self.urgency.get(place as usize).copied().unwrap_or_default();
        let priority = Reverse(self.graph.stages[place as usize].priority);
        Entry { priority, urgency: Reverse(sortable(urgency)), place, item, attempt }
    }

    /// A stage is over.
    pub(super) fn over(&mut self, place: u32) {
        if !std::mem::replace(&mut self.over[place as usize], true) {
            self.left = (self.left - self.work[place as usize]).max(0.0);
            if self.graph.stages[place as usize].due_ms.is_some() {
                self.find_due();
            }
        }
    }

    /// Ranks all stages by what is known now.
    pub(super) fn rank(&mut self, state: &Optimizer, run: &Run, agents: &mut Agents) {
        let graph = Arc::clone(&self.graph);
        let durations = &state.learning.durations;
        let place = |node| Place { workflow: &run.workflow, node, run: run.work };
        self.work.clear();
        self.work.extend(graph.stages.iter().map(|node| durations.work(place(node)).expected()));
        // The upward rank of HEFT: the longest path of work from a stage to the end, itself included.
        let mut rank = self.work.clone();
        for at in (0..rank.len()).rev() {
            let after = graph.stages[at].children.iter().map(|child| rank[*child as usize]);
            rank[at] += after.fold(0.0, f64::max);
        }
        self.longest = rank.iter().copied().fold(0.0, f64::max);
        self.left = self.work.iter().zip(&self.over).filter(|(_, over)| !**over).map(|(work, _)| work).sum();
        let ready: Vec<_> = self.ready.iter().flat_map(|(class, of)| of.iter().map(|e| (*class, *e))).collect();
        self.urgency.clone_from(&rank);
        self.rank = rank;
        if let Some(distance) = self.to_bottleneck(state, run, agents) {
            self.urgency.iter_mut().zip(distance).for_each(|(rank, distance)| *rank -= distance);
        }
        self.ready.clear();
        for (class, Entry { place, item, attempt, .. }) in ready {
            let entry = self.entry(place, item, attempt);
            self.ready.entry(class).or_default().insert(entry);
        }
    }

    /// The shortest path of work from each stage to one for the type of agent that has most to do for what there is of it. None
    /// where all is for one type.
    ///
    /// Agents that can do several types turn to each in proportion to its load, in rounds, so that the load evens out as far as
    /// it can.
    fn to_bottleneck(&self, state: &Optimizer, run: &Run, agents: &mut Agents) -> Option<Vec<f64>> {
        let groups = agents.groups(state, run, &self.graph)?;
        if groups.fields < 2 {
            return None;
        }
        let of = &groups.field;
        let mut work = vec![0.0; groups.fields];
        for ((at, of), over) in of.iter().enumerate().zip(&self.over) {
            work[*of] += if *over || self.graph.stages[at].asks { 0.0 } else { self.work[at] };
        }
        let bottleneck = bottleneck(&work, &groups.speeds);
        let far = FAR * self.longest;
        let mut distance = vec![0.0; of.len()];
        for at in (0..of.len()).rev().filter(|at| of[*at] != bottleneck) {
            let after = self.graph.stages[at].children.iter().map(|child| distance[*child as usize]);
            distance[at] = (self.work[at] + after.fold(far, f64::min)).min(far);
        }
        Some(distance)
    }

    /// Its priority, with what it gained by waiting.
    pub(super) fn level(&self, config: &Config, now: Millis) -> i128 {
        i128::from(self.priority) + i128::from(now.saturating_sub(self.since) / config.ageing_ms.max(1))
    }

    /// Where a run stands, as a power of two: its weight doubles with each step of priority, and with each `ageing_ms` that it
    /// is older than others; it is greater the less is left to do, and up to nine times so when it is due. (The order of Smith's
    /// rule, with the urgency of the apparent tardiness cost: Vepsäläinen and Morton, 1987.) As ageing is the same for
    /// all, the order does not change by itself but for what is due.
    pub(super) fn key(&self, config: &Config, now: Millis) -> Key {
        let ageing = config.ageing_ms.max(1) as f64;
        let waits = f64::from(self.priority) - self.since as f64 / ageing;
        if config.deadlines_first {
            // By the deadline alone, those without one after all others.
            let due = self.due.map_or(-1e15 + waits, |due| -(due as f64));
            return Reverse(sortable(due));
        }
        let urgency = self.due.map_or(1.0, |due| {
            let slack = due as f64 - now as f64 - self.longest;
            if slack < -2.0 * self.longest {
                // It will be late whatever is done.
                return 1.0;
            }
            1.0 + URGENCY * exp(-slack.max(0.0) / self.longest.max(1.0))
        });
        Reverse(sortable(waits + (ln(urgency) - ln(self.left.max(1.0))) / std::f64::consts::LN_2))
    }
}

/// The type with the most work for how fast agents do it, when these have shared it out as evenly as they can. Groups of agents
/// are given by the bits of what they can do.
fn bottleneck(work: &[f64], groups: &[(u64, f64)]) -> usize {
    let types = work.len();
    let mut load = work.to_vec();
    let mut shares = vec![0.0; types * groups.len()];
    for ((bits, _), share) in groups.iter().zip(shares.chunks_mut(types)) {
        let even = 1.0 / f64::from(bits.count_ones().max(1));
        share.iter_mut().enumerate().filter(|(of, _)| bits >> of & 1 == 1).for_each(|(_, share)| *share = even);
    }
    // Where all are specialists there is nothing to share out.
    let rounds = if groups.iter().any(|(bits, _)| bits.count_ones() > 1) { ROUNDS } else { 1 };
    let mut speed = vec![0.0; types];
    for _ in 0..rounds {
        speed.fill(0.0);
        for ((_, fast), share) in groups.iter().zip(shares.chunks(types)) {
            speed.iter_mut().zip(share).for_each(|(speed, share)| *speed += share * fast);
        }
        load.iter_mut().zip(work.iter().zip(&speed)).for_each(|(load, (work, speed))| *load = work / speed.max(1e-9));
        let most = load.iter().copied().fold(1e-9, f64::max);
        speed.iter_mut().zip(&load).for_each(|(pull, load)| *pull = damped(load.max(1e-6 * most) / most));
        let pull = &speed;
        for share in shares.chunks_mut(types) {
            let mut sum = 0.0;
            for (share, pull) in share.iter_mut().zip(pull) {
                *share *= pull;
                sum += *share;
            }
            if sum > 0.0 {
                share.iter_mut().for_each(|share| *share /= sum);
            }
        }
    }
    let most = load.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    most.map_or(0, |(of, _)| of)
}

/// How strongly agents turn to where so much is to be done, each round: the power of 5/16, which takes roots alone.
fn damped(x: f64) -> f64 {
    let fourth = x.sqrt().sqrt();
    fourth * fourth.sqrt().sqrt()
}

/// A number whose order as an integer is that of the float.
fn sortable(x: f64) -> u64 {
    let bits = x.to_bits();
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

/// What waits of a class.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// The runs of each tenant.
    pub(super) runs: BTreeMap<Seat, BTreeSet<(Key, RunId)>>,
    /// How many tasks.
    pub(super) waiting: usize,
}

impl Line {
    /// Tasks of a run wait.
    pub(super) fn add(&mut self, job: &Job, run: RunId) {
        self.runs.entry(job.tenant).or_default().insert((job.key, run));
    }

    /// They do no more.
    pub(super) fn remove(&mut self, job: &Job, run: RunId) {
        if let Some(runs) = self.runs.get_mut(&job.tenant) {
            runs.remove(&(job.key, run));
            if runs.is_empty() {
                self.runs.remove(&job.tenant);
            }
        }
    }
}

/// A walk through the tasks that wait: for each type of agents those of the tenant whose turn it is, of these the most urgent first.
/// What waits for agents of which none has room, nor could do anything that one with room can, is left out.
pub(super) struct Walk<'a> {
    jobs: &'a BTreeMap<RunId, Job>,
    cursors: Vec<Cursor<'a>>,
    /// For each class, the first of those that it is linked with.
    linked: Vec<usize>,
    /// By these: whether an agent has room for anything of them that is left.
    open: Vec<bool>,
    clock: (&'a Config, Millis),
    /// The tenants of each type of agents for which several wait.
    shared: BTreeMap<Capability, BTreeMap<Seat, Shares>>,
}

/// A tenant among others.
struct Shares {
    /// Since when it has had something to do.
    since: Millis,
    /// How many of its tasks were left waiting in this walk.
    promised: u64,
}

struct Cursor<'a> {
    class: usize,
    tenant: Seat,
    runs: std::collections::btree_set::Iter<'a, (Key, RunId)>,
    run: Option<(Key, RunId, &'a Job)>,
    entries: std::collections::btree_set::Iter<'a, Entry>,
    next: Option<Entry>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        jobs: &'a BTreeMap<RunId, Job>,
        (lines, classes, linked): (&'a [Line], &[Class], &[usize]),
        state: &Optimizer,
        clock: (&'a Config, Millis),
    ) -> Self {
        static NONE: BTreeSet<Entry> = BTreeSet::new();
        let cursor = |class: usize, tenant: Seat, runs: &'a BTreeSet<(Key, RunId)>| {
            let (run, entries, next) = (None, NONE.iter(), None);
            let mut cursor = Cursor { class, tenant, runs: runs.iter(), run, entries, next };
            cursor.advance(jobs);
            cursor
        };
        let mut open = vec![false; linked.len()];
        for (class, linked) in classes.iter().zip(linked) {
            open[*linked] |= class.open() > 0;
        }
        let mut cursors = Vec::new();
        let waits = |(class, line): &(usize, &Line)| line.waiting > 0 && open[linked[*class]];
        for (class, line) in lines.iter().enumerate().filter(waits) {
            cursors.extend(line.runs.iter().map(|(tenant, runs)| cursor(class, *tenant, runs)));
        }
        let mut shared: BTreeMap<Capability, BTreeMap<Seat, Shares>> = BTreeMap::new();
        if cursors.iter().any(|cursor: &Cursor<'_>| cursor.tenant != cursors[0].tenant) {
            for cursor in &cursors {
                let of = shared.entry(classes[cursor.class].shape.agent_type.clone()).or_default();
                let of = of.entry(cursor.tenant).or_insert(Shares { since: Millis::MAX, promised: 0 });
                of.since = cursor.since(state).unwrap_or(Millis::MAX).min(of.since);
            }
            shared.retain(|_, tenants| tenants.len() > 1);
        }
        Self { jobs, cursors, linked: linked.to_vec(), open, clock, shared }
    }

    /// The next task. None if no agent has room for any that is left.
    pub(super) fn next(&mut self, classes: &[Class], tenants: &Tenants) -> Option<(usize, RunId, &'a Job, Entry)> {
        self.open.fill(false);
        for cursor in self.cursors.iter().filter(|cursor| cursor.next.is_some()) {
            self.open[self.linked[cursor.class]] |= classes[cursor.class].open() > 0;
        }
        let turns = self.turns(classes, tenants);
        let first = |cursor: &Cursor<'_>| Some((cursor.run?.0, cursor.next?.urgency, cursor.run?.1));
        let (open, linked) = (&self.open, &self.linked);
        let is_its = |cursor: &Cursor<'_>| {
            let turn = if turns.is_empty() { None } else { turns.get(&classes[cursor.class].shape.agent_type) };
            cursor.next.is_some() && open[linked[cursor.class]] && turn.is_none_or(|turn| *turn == cursor.tenant)
        };
        let cursors = self.cursors.iter_mut().filter(|cursor| is_its(cursor));
        let cursor = cursors.min_by_key(|cursor| first(cursor))?;
        let (_, run, job) = cursor.run?;
        let entry = cursor.next?;
        cursor.advance(self.jobs);
        Some((cursor.class, run, job, entry))
    }

    /// Whose turn it is with each type of agents for which several wait: who has something that matters more; of those with the same,
    /// who starts first.
    fn turns(&self, classes: &[Class], tenants: &Tenants) -> BTreeMap<Capability, Seat> {
        if self.shared.is_empty() {
            return BTreeMap::new();
        }
        let mut most: BTreeMap<(&Capability, Seat), i32> = BTreeMap::new();
        for cursor in self.cursors.iter().filter(|cursor| cursor.next.is_some() && self.open[self.linked[cursor.class]])
        {
            let Some((.., job)) = cursor.run else { continue };
            let of = most.entry((&classes[cursor.class].shape.agent_type, cursor.tenant)).or_insert(job.priority);
            *of = job.priority.max(*of);
        }
        let (config, now) = self.clock;
        let turn = |(agent_type, shares): (&Capability, &BTreeMap<Seat, Shares>)| {
            let stands = |(seat, Shares { since, promised }): (&Seat, &Shares)| {
                let gained = tenants.gained(*seat, agent_type, *since, (now, config.ageing_ms));
                let level = i128::from(*most.get(&(agent_type, *seat))?) + gained;
                Some((level, Reverse(tenants.start(*seat, agent_type, *promised)), Reverse(*seat)))
            };
            let (.., Reverse(seat)) = shares.iter().filter_map(stands).max()?;
            Some((agent_type.clone(), seat))
        };
        self.shared.iter().filter_map(turn).collect()
    }

    /// A task of a tenant is left waiting. So that those of others are looked at too, this counts in the walk.
    pub(super) fn promised(&mut self, agent_type: &Capability, tenant: Seat) {
        if let Some(of) = self.shared.get_mut(agent_type).and_then(|of| of.get_mut(&tenant)) {
            of.promised += 1;
        }
    }

    /// Passes over what is left of a class.
    pub(super) fn close(&mut self, class: usize) {
        self.cursors.retain(|cursor| cursor.class != class);
    }
}

impl<'a> Cursor<'a> {
    fn advance(&mut self, jobs: &'a BTreeMap<RunId, Job>) {
        loop {
            self.next = self.entries.next().copied();
            if self.next.is_some() {
                return;
            }
            let Some((key, run)) = self.runs.next() else { return };
            let Some(job) = jobs.get(run) else { continue };
            let Some(entries) = job.ready.get(&self.class) else { continue };
            (self.run, self.entries) = (Some((*key, *run, job)), entries.iter());
        }
    }

    /// Since when its first task waits.
    fn since(&self, state: &Optimizer) -> Option<Millis> {
        let ((_, run, job), Entry { place, item, attempt, .. }) = (self.run?, self.next?);
        let stage = job.graph.stages[place as usize].name.clone();
        state.queue.get(&TaskId { run, stage, item, attempt }).map(|queued| queued.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o2_the_bottleneck_is_what_few_can_do() {
        // Of ten agents nine can do the first, and one the second.
        assert_eq!(bottleneck(&[10.0, 5.0], &[(0b01, 9.0), (0b10, 1.0)]), 1);
        // If all of them can do the first and half the second too, they help out where it is needed.
        assert_eq!(bottleneck(&[10.0, 2.0], &[(0b01, 5.0), (0b11, 5.0)]), 0);
        // Nobody can do the third.
        assert_eq!(bottleneck(&[10.0, 2.0, 1.0], &[(0b01, 5.0), (0b11, 5.0)]), 2);
    }

    #[test]
    fn floats_sort_as_they_should() {
        let numbers = [f64::NEG_INFINITY, -2.5, -1e-9, 0.0, 1e-9, 3.0, f64::INFINITY];
        assert!(numbers.map(sortable).is_sorted());
    }
}
