//! ADAPTIVE: what is done soonest, by all that was learned.
//!
//! The strategy is HEFT (Topcuoglu, Hariri and Wu, *Performance-Effective and Low-Complexity Task Scheduling for Heterogeneous
//! Computing*, 2002) made dynamic. As there, the tasks of a run are ranked by the longest path of work from them to
//! the end of the run, and each, in that order, goes to the agent that would finish it first. But nothing is planned for
//! good: tasks stay in the queue until an agent starts them *now*, durations are [learned](crate::durations), and so is who
//! fails.
//!
//! With every event the queue is walked in order, as far as a [window](Planner::window) goes. For each task the agent is found
//! with the least
//!
//! ```text
//! available + d · (1 − p/2) + p · mean d · (1 + 4 · retries)
//! ```
//!
//! where `d` is the expected duration there, `p` how likely the agent fails, and a failure costs half the time and
//! another attempt anywhere. A busy agent is *available* when its task is expected to end, with a margin. If the best agent has
//! room now, the task is asked for; if it has not, the task waits for it, and so do, in this walk alone, those after it that
//! would rather have the same agent. So a slow agent stays idle where waiting for a fast one ends sooner, and where there
//! is much to do it does not.
//!
//! Where that is known and small, what is [to come](ahead) is planned as well.
//!
//! [Tenants](crate::tenants) take turns with each type of agents. The runs of one go by priority, age and what is left of them:
//! see [`Planner::key`]. Within a run, of tasks with like rank those go first
//! that soonest give work to the type of agent that is the [bottleneck](bottleneck).
//!
//! All of this is known to the leader alone, and follows from the state: a new leader makes it anew.

mod agents;
mod ahead;
mod hedge;
mod jobs;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use baton_protocol::request::Strategy;
use baton_protocol::{AgentId, Capability, Millis, RunId, StageName, TaskId};

use self::agents::{Agents, Class, Look};
use self::jobs::{Job, Line, Walk};
use crate::graph::Graph;
use crate::placement::{Chosen, Room, Weighed};
use crate::queue::{Queued, Shape};
use crate::tenants::{Seat, Tenants};
use crate::{Config, Optimizer};

/// How many tasks a walk may leave waiting, at the least, and how many agents it looks at for all of them together, at the
/// most.
const WINDOW: usize = 64;
const MAX_LOOKS: usize = 65_536;
/// How many stages are ranked anew for each task that ends, at the most, and how many a run counts for besides its own.
const RANKED: usize = 30;
const EACH_RUN: usize = 10;
/// How many tasks end between two rankings of the same run, on average, at the least.
const RANK_APART: usize = 4;
/// How many agents may be known that are not there any more, and how many shapes, before all is made anew.
const MAX_STALE: usize = 64;
const MAX_CLASSES: usize = 256;
/// How much a failure costs more with each retry.
const RETRY_COST: f64 = 4.0;
/// Tasks that wait though an agent has room are looked at again after this part of the time that they are to wait.
const AGAIN: f64 = 0.25;
/// But not sooner nor later than this.
const AGAIN_MS: (f64, f64) = (50.0, 5000.0);

/// What a leader knows of the runs whose tasks are placed so, and of the agents.
#[derive(Debug, Default)]
pub(crate) struct Planner {
    agents: Agents,
    /// What tasks ask for, and which of them wait.
    classes: Vec<Class>,
    lines: Vec<Line>,
    by_shape: BTreeMap<Arc<Shape>, usize>,
    jobs: BTreeMap<RunId, Job>,
    /// What it costs to rank all runs.
    cost: usize,
    /// How many tasks wait.
    waiting: usize,
    /// Which run was ranked last, and how much more that may cost.
    ranked: Option<RunId>,
    credit: usize,
    /// When to look at those again that wait though there is room.
    again: Option<Millis>,
    /// Tasks that an agent has alone, and that a second one may be given.
    alone: BTreeSet<TaskId>,
    /// When to look at these again, at the soonest, and when if nothing happens.
    hedge_after: Millis,
    hedge_again: Option<Millis>,
}

impl Planner {
    /// A planner that knows what agents do now.
    pub(crate) fn new(state: &Optimizer) -> Self {
        let mut planner = Self::default();
        for agent in state.fleet.ids() {
            planner.agents.touch(agent);
        }
        for (task, holder) in state.runs.held_tasks() {
            planner.agents.began(&task, &holder.agent, holder.since);
            if holder.hedge.is_some() {
                planner.held(state, &task);
            }
        }
        planner
    }

    /// Whether it knows too much that is not there any more.
    pub(crate) fn is_stale(&self, state: &Optimizer) -> bool {
        self.agents.len() > 2 * state.fleet.len() + MAX_STALE || self.classes.len() > MAX_CLASSES
    }

    /// Where the first run stands in the queue: its priority, with what it gained by waiting.
    pub(crate) fn level(&self, (config, now): (&Config, Millis)) -> Option<i128> {
        let first = self.lines.iter().flat_map(|line| line.runs.values()).filter_map(BTreeSet::first).min()?;
        Some(self.jobs.get(&first.1)?.level(config, now))
    }

    /// When to plan again, if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        let again = self.again.filter(|_| self.waiting > 0);
        again.into_iter().chain(self.hedge_again).min()
    }

    /// An agent may have changed.
    pub(crate) fn touch(&mut self, agent: &AgentId) {
        self.agents.touch(agent);
    }

    /// An agent has come or gone, or can do something else.
    pub(crate) fn came_or_left(&mut self, agent: &AgentId) {
        self.agents.came_or_left(agent);
    }

    /// A task is held by an agent, or asked for.
    pub(crate) fn began(&mut self, task: &TaskId, agent: &AgentId, since: Millis) {
        self.agents.began(task, agent, since);
    }

    /// A task is not held by an agent any more, nor asked for.
    pub(crate) fn ended(&mut self, task: &TaskId, agent: &AgentId) {
        self.agents.ended(task, agent);
    }

    /// A task waits. False if the graph of its workflow is not known.
    pub(crate) fn add(
        &mut self,
        state: &Optimizer,
        task: &TaskId,
        (queued, tenant): (&Queued, Seat),
        (config, now): (&Config, Millis),
    ) -> bool {
        if !self.ensure_job(state, task.run) {
            return false;
        }
        let class = self.class(&queued.shape);
        let Some(job) = self.jobs.get_mut(&task.run) else { return false };
        let Some(place) = job.graph.place(&task.stage) else { return false };
        if job.ready.is_empty() {
            (job.key, job.tenant) = (job.key(config, now), tenant);
        }
        if job.add(class, place, task) {
            self.waiting += 1;
            self.lines[class].waiting += 1;
            self.lines[class].add(job, task.run);
        }
        true
    }

    /// Knows of a run. False if the graph of its workflow is not known.
    fn ensure_job(&mut self, state: &Optimizer, id: RunId) -> bool {
        if self.jobs.contains_key(&id) {
            return true;
        }
        let Some(run) = state.runs.get(id) else { return false };
        let Some(graph) = state.graphs.get(&run.workflow, run.version) else { return false };
        self.cost += cost(graph);
        let mut job = Job::new(graph, run, &state.learning.durations);
        job.rank(state, run, &mut self.agents);
        self.jobs.insert(id, job);
        true
    }

    /// A task does not wait any more.
    pub(crate) fn remove(&mut self, task: &TaskId) {
        let Some(job) = self.jobs.get_mut(&task.run) else { return };
        let Some(place) = job.graph.place(&task.stage) else { return };
        if let Some((class, is_last)) = job.remove(place, task) {
            self.waiting -= 1;
            self.lines[class].waiting -= 1;
            if is_last {
                self.lines[class].remove(job, task.run);
            }
        }
    }

    /// A task of a stage has ended, and something was learned; or the stage was skipped.
    pub(crate) fn learned(
        &mut self,
        state: &Optimizer,
        (run, stage): (RunId, &StageName),
        (config, now): (&Config, Millis),
    ) {
        if let Some(job) = self.jobs.get_mut(&run) {
            let is_over = |place: &u32| state.runs.get(run).is_none_or(|run| run.is_over(*place));
            if let Some(place) = job.graph.place(stage).filter(is_over) {
                job.over(place);
            }
            rekey(&mut self.lines, job, run, config, now);
        }
        self.credit += RANKED.min(self.cost.div_ceil(RANK_APART));
        while let Some((run, cost)) = self.next_to_rank().filter(|(_, cost)| *cost <= self.credit) {
            self.credit -= cost;
            self.ranked = Some(run);
            let (Some(job), Some(of)) = (self.jobs.get_mut(&run), state.runs.get(run)) else { return };
            job.rank(state, of, &mut self.agents);
            rekey(&mut self.lines, job, run, config, now);
        }
    }

    /// Runs are ranked anew by what was learned since, all of them in turns: which one is next, and what it costs.
    fn next_to_rank(&self) -> Option<(RunId, usize)> {
        let after = self.ranked.and_then(|run| self.jobs.range((Bound::Excluded(run), Bound::Unbounded)).next());
        let (run, job) = after.or_else(|| self.jobs.first_key_value())?;
        Some((*run, cost(&job.graph)))
    }

    /// A run has ended.
    pub(crate) fn forget(&mut self, run: RunId) {
        let Some(job) = self.jobs.remove(&run) else { return };
        self.cost -= cost(&job.graph);
        for (class, entries) in &job.ready {
            self.waiting -= entries.len();
            self.lines[*class].waiting -= entries.len();
            self.lines[*class].remove(&job, run);
        }
    }

    /// Which class has this shape.
    fn class(&mut self, shape: &Arc<Shape>) -> usize {
        if let Some(class) = self.by_shape.get(shape) {
            return *class;
        }
        self.classes.push(Class::new(shape));
        self.lines.push(Line::default());
        self.by_shape.insert(Arc::clone(shape), self.classes.len() - 1);
        self.agents.touch_all();
        self.classes.len() - 1
    }

    /// How many tasks wait for each type of agents.
    fn waiting_by_type(&self) -> BTreeMap<Capability, usize> {
        let mut waiting = BTreeMap::new();
        for (class, line) in self.classes.iter().zip(&self.lines).filter(|(_, line)| line.waiting > 0) {
            *waiting.entry(class.shape.agent_type.clone()).or_default() += line.waiting;
        }
        waiting
    }

    /// How many tasks a walk may leave waiting: enough to keep every agent busy, as long as that does not take long.
    fn window(&self) -> usize {
        let agents = self.agents.len().max(1);
        (4 * agents).clamp(WINDOW, WINDOW.max(MAX_LOOKS / agents))
    }

    /// Those that would finish a task first that waits.
    pub(crate) fn weigh(&mut self, state: &Optimizer, room: &Room, now: Millis, task: &TaskId) -> Option<Weighed> {
        self.agents.settle(state, room, &mut self.classes, now);
        let job = self.jobs.get(&task.run)?;
        let place = job.graph.place(&task.stage)?;
        let class = job.class_of(place, task)?;
        let look = Look {
            work: job.work_now(state, task.run, place),
            retries: RETRY_COST * f64::from(task.attempt.saturating_sub(1)),
            failed_under: None,
            near: None,
            not: None,
            now: now as f64,
        };
        Some(Weighed::Finish(self.agents.weigh(&self.classes[class], &look, None)))
    }

    /// Chooses agents for what should start now. What is chosen is set aside, and waits here no more. Shapes that are shut are
    /// passed over.
    pub(crate) fn plan<'a>(
        &mut self,
        state: &Optimizer,
        (room, tenants): (&mut Room, &mut Tenants),
        (config, now): (&Config, Millis),
        barred: impl Fn(&TaskId) -> Option<&'a BTreeSet<AgentId>>,
        is_shut: impl Fn(&Shape) -> bool,
    ) -> Vec<Chosen> {
        self.again = None;
        if self.waiting == 0 {
            return Vec::new();
        }
        self.agents.settle(state, room, &mut self.classes, now);
        let known = self.classes.len();
        let looks_ahead = self.looks_ahead() && !self.classes.iter().any(|class| is_shut(&class.shape));
        if self.classes.len() > known {
            self.agents.settle(state, room, &mut self.classes, now);
        }
        let mut window = self.window();
        self.agents.link(&self.classes);
        let has_room = |(class, line): (&Class, &Line)| line.waiting > 0 && class.open() > 0;
        let can_begin = self.classes.iter().zip(&self.lines).any(has_room);
        let ahead = (looks_ahead && can_begin).then(|| self.look_ahead(state, now, &barred));
        let of = (&self.lines[..], &self.classes[..], self.agents.linked());
        let mut walk = Walk::new(&self.jobs, of, state, (config, now));
        for (class, _) in self.classes.iter().enumerate().filter(|(_, of)| is_shut(&of.shape)) {
            walk.close(class);
        }
        let mut plan = Vec::new();
        let mut promised = Vec::new();
        let mut waits = f64::INFINITY;
        let mut rivals = None;
        while let Some((class, run, job, entry)) = walk.next(&self.classes, tenants) {
            let planned = ahead.as_ref().map(|ahead| ahead.get(&(run, entry.place, entry.item)).copied());
            if planned.is_some_and(|planned| planned.is_none()) {
                continue;
            }
            let work = job.work_now(state, run, entry.place);
            let stage = job.graph.stages[entry.place as usize].name.clone();
            let task = TaskId { run, stage, item: entry.item, attempt: entry.attempt };
            let queued = state.queue.get(&task);
            let look = Look {
                work,
                retries: RETRY_COST * f64::from(entry.attempt.saturating_sub(1)),
                failed_under: if entry.attempt > 1 { state.runs.failed_under(&task) } else { None },
                near: queued.and_then(|queued| queued.near.as_ref()),
                not: barred(&task),
                now: now as f64,
            };
            let of = &self.classes[class];
            let best = if let Some(planned) = planned {
                planned
            } else if window > 0 {
                self.agents.best(of, &look)
            } else {
                // All that is for agents of a type is for the same ones, whatever it needs of them.
                let waiting = rivals.get_or_insert_with(|| self.waiting_by_type());
                let waiting = waiting.get(&of.shape.agent_type).copied().unwrap_or_default();
                self.agents.best_now(of, &look, waiting)
            };
            let Some(best) = best else {
                if window == 0 {
                    walk.close(class);
                }
                continue;
            };
            if !of.has_room(best.row) || planned.is_some() && best.available > now as f64 {
                window = window.saturating_sub(1);
                walk.promised(&of.shape.agent_type, job.tenant);
                if let Some(row) = self.agents.kept_for(of, class, state, &task, (config, now)) {
                    promised.push(self.agents.keep(row));
                    continue;
                }
                if of.open() > 0 {
                    waits = waits.min(best.available - now as f64);
                }
                promised.push(self.agents.promise(best));
                continue;
            }
            let weighed = Weighed::Finish(self.agents.weigh(of, &look, Some(best.row)));
            let had_room = if room.samples(of.open()) { self.agents.who_has_room(of) } else { Vec::new() };
            let (agent, shape) = (self.agents.id(best.row).clone(), Arc::clone(&of.shape));
            room.set_aside(state, &agent, &shape);
            self.agents.probed(state, best.row, now);
            self.agents.began(&task, &agent, now);
            self.agents.settle_one(state, room, &mut self.classes, best.row, now);
            tenants.served(job.tenant, &shape.agent_type, now);
            let since = queued.map_or(now, |queued| queued.since);
            let (strategy, is_near) = (Strategy::Adaptive, best.is_near);
            plan.push(Chosen { task, agent, shape, since, strategy, is_near, beside: None, weighed, had_room });
        }
        for (row, available) in promised.into_iter().rev() {
            self.agents.unpromise(row, available);
        }
        for Chosen { task, .. } in &plan {
            self.remove(task);
        }
        let again = (AGAIN * waits).clamp(AGAIN_MS.0, AGAIN_MS.1) as Millis;
        let again = waits.is_finite().then(|| now.saturating_add(again));
        self.again = again.into_iter().chain(self.agents.next_probe(now)).min();
        plan
    }
}

/// What it costs to rank a run.
fn cost(graph: &Graph) -> usize {
    graph.stages.len() + EACH_RUN
}

/// Moves a run to where it stands now.
fn rekey(lines: &mut [Line], job: &mut Job, run: RunId, config: &Config, now: Millis) {
    let key = job.key(config, now);
    if key == job.key {
        return;
    }
    job.ready.keys().for_each(|class| lines[*class].remove(job, run));
    job.key = key;
    job.ready.keys().for_each(|class| lines[*class].add(job, run));
}
