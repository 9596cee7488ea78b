//! Second copies: a task that is late, or may fail, is given to a second agent that would idle. What is done first counts.
//!
//! Only what a run waits for is worth it: tasks from which the longest path to the end of their run is nearly as long as from any
//! other that is under way. And only where the run is expected to end sooner by it: an attempt that fails costs another one, which
//! the second copy saves, and of two copies the faster one is waited for.

use std::collections::BTreeMap;

use baton_protocol::request::Strategy;
use baton_protocol::{Millis, RunId, TaskId};

use super::agents::Look;
use super::{AGAIN, AGAIN_MS, Planner};
use crate::Optimizer;
use crate::placement::{Chosen, Room, Weighed};

/// From a task the path to the end of its run must be at least this part of the longest one.
const CRITICAL: f64 = 0.8;
/// By which part of what is left of the task the second copy must shorten it, and by how much at the least, in milliseconds: it
/// costs an agent's time.
const GAIN: f64 = 0.2;
const GAIN_MS: f64 = 50.0;
/// How many tasks are looked at in a millisecond, on average, at the most.
const LOOKS_A_MS: usize = 100;

/// A task that an agent has alone.
struct Alone {
    task: TaskId,
    class: usize,
    /// How long it is expected to go on, and how likely it fails.
    left: f64,
    failure: f64,
    /// How long an agent of ordinary speed takes to do it.
    work: f64,
    /// The longest path of work from it to the end of its run, itself included as far as it is left.
    path: f64,
}

impl Planner {
    /// Takes notice of who holds a task now: whether a second agent may be given it.
    pub(crate) fn held(&mut self, state: &Optimizer, task: &TaskId) {
        let adaptive = state.strategy_of(task.run) == Strategy::Adaptive;
        let alone = state.runs.holder(task).filter(|_| adaptive && state.runs.second(task).is_none());
        match alone.and_then(|holder| holder.hedge.as_ref()) {
            Some(shape) => {
                self.class(shape);
                self.ensure_job(state, task.run);
                if self.alone.insert(task.clone()) {
                    // Nothing need happen before it is looked at: whoever could take it may idle already.
                    self.hedge_again = Some(0);
                }
            }
            None => {
                self.alone.remove(task);
            }
        }
    }

    /// Chooses second agents for tasks that are under way, where agents with room have nothing else to do. What is asked for already,
    /// or was refused lately, may not be.
    pub(crate) fn hedge(
        &mut self,
        state: &Optimizer,
        room: &mut Room,
        now: Millis,
        may: impl Fn(&TaskId) -> bool,
    ) -> Vec<Chosen> {
        let mut plan = Vec::new();
        self.hedge_again = self.hedge_again.filter(|again| *again > now && !self.alone.is_empty());
        if self.alone.is_empty() {
            return plan;
        }
        if now < self.hedge_after {
            self.hedge_again = Some(self.hedge_after);
            return plan;
        }
        self.agents.settle(state, room, &mut self.classes, now);
        let waits: Vec<_> = (0..self.classes.len()).filter(|class| self.lines[*class].waiting > 0).collect();
        if !self.agents.any_idle(&self.classes, &waits) {
            return plan;
        }
        self.hedge_again = None;
        self.hedge_after = now + (self.alone.len() / LOOKS_A_MS) as Millis;
        let mut all: Vec<_> =
            self.alone.iter().filter(|task| may(task)).filter_map(|task| self.look(state, task, now)).collect();
        let mut longest: BTreeMap<RunId, f64> = BTreeMap::new();
        for of in &all {
            let longest = longest.entry(of.task.run).or_default();
            *longest = longest.max(of.path);
        }
        all.retain(|of| of.path >= CRITICAL * longest.get(&of.task.run).copied().unwrap_or_default());
        all.sort_by(|a, b| b.path.total_cmp(&a.path).then_with(|| a.task.cmp(&b.task)));
        let mut soonest = f64::INFINITY;
        for of in all {
            let class = &self.classes[of.class];
            let Some(holder) = state.runs.holder(&of.task) else { continue };
            let idle = self.agents.idle(class, (of.work, &holder.agent), &self.classes, &waits);
            let Some((row, takes, failure)) = idle else { continue };
            let alone = of.left + of.failure * takes;
            let (sooner, later, sooner_fails) =
                if of.left <= takes { (of.left, takes, of.failure) } else { (takes, of.left, failure) };
            let both = sooner + sooner_fails * (later - sooner) + of.failure * failure * takes;
            if alone - both <= (GAIN * alone).max(GAIN_MS) {
                soonest = soonest.min(of.left);
                continue;
            }
            let look = Look { work: of.work, retries: 0.0, failed_under: None, near: None, not: None, now: now as f64 };
            let weighed = Weighed::Finish(self.agents.weigh(class, &look, Some(row)));
            let (agent, shape) = (self.agents.id(row).clone(), class.shape.clone());
            let (since, beside) = (holder.since, Some(holder.lease));
            room.set_aside(state, &agent, &shape);
            self.agents.probed(state, row, now);
            self.agents.began(&of.task, &agent, now);
            self.agents.settle_one(state, room, &mut self.classes, row, now);
            let (strategy, is_near) = (Strategy::Adaptive, false);
            plan.push(Chosen {
                task: of.task,
                agent,
                shape,
                since,
                strategy,
                is_near,
                beside,
                weighed,
                had_room: Vec::new(),
            });
        }
        if soonest.is_finite() {
            let again = now.saturating_add((AGAIN * soonest).clamp(AGAIN_MS.0, AGAIN_MS.1) as Millis);
            self.hedge_again = Some(again);
        }
        plan
    }

    fn look(&self, state: &Optimizer, task: &TaskId, now: Millis) -> Option<Alone> {
        let holder = state.runs.holder(task)?;
        let class = *self.by_shape.get(holder.hedge.as_ref()?)?;
        let job = self.jobs.get(&task.run)?;
        let place = job.graph.place(&task.stage)?;
        let (left, failure) = self.agents.left(state, &self.classes[class], task, holder, now)?;
        let work = job.work_now(state, task.run, place);
        let path = left + job.path_after(place);
        Some(Alone { task: task.clone(), class, left, failure, work, path })
    }
}
