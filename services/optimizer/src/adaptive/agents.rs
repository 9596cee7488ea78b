//! The agents as the planner sees them: when each is available, how fast it is, how it fails. Arrays, one entry for each agent,
//! so that a thousand are looked through in about a microsecond.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baton_protocol::{AgentId, Capability, Millis, TaskId, WorkflowName};

use super::ahead::Span;
use crate::durations::{Gauss, Speed};
use crate::fleet::{Holder, Load};
use crate::graph::Graph;
use crate::learning::{ALARM, PRIOR};
use crate::math::exp;
use crate::placement::{Finish, KEEP_MS, Room, TOLD};
use crate::queue::Shape;
use crate::runs::Run;
use crate::{Config, Optimizer};

/// By how much longer a task is expected to go on than its estimate says: waiting for what never ends costs more than not
/// waiting.
const MARGIN: f64 = 1.3;
/// After so many times as long as it was expected to take, nobody is kept for what comes after a task.
const LATE: f64 = 2.0;
/// An agent that fails more often than not counts as this many times slower, but for one task in this many average durations.
const ALARMED: f64 = 30.0;
const PROBE_AFTER: f64 = 20.0;
/// One that fails more often than this, by the same average, gets no other task than that, unless all that can do it are such. (Six
/// failures one after the other: an agent that fails one time in four does so by chance once in four thousand tasks.)
const HOPELESS: f64 = 0.75;
/// How much older a task may become before it is estimated anew how long it goes on, and which part of its time may go by.
const ESTIMATE_AGES: f64 = 0.1;
const ESTIMATE_PART: f64 = 0.2;
/// How much longer a task takes in expectation where it has just failed.
const FAILED_HERE: f64 = 1.25;
/// An agent that did what a task builds on may need so many times as long as the best one.
const NEAR_IS_AS_GOOD: f64 = 1.01;
/// How much faster an agent is hoped to be than it seems, for each unit of the variance of the logarithm of its speed, so that it is
/// tried: one of which nothing is known by 8 %. The median of its speed counts less this half of the variance where the mean of
/// how long it takes would count half of it more.
const HOPE: f64 = 0.5;
/// Up to so many tasks at work are estimated anew with every walk.
const FEW: usize = 64;
/// How many entries are looked at side by side.
const LANES: usize = 8;

/// The agents. Rows are for good: one that leaves keeps its row until it is back.
#[derive(Debug, Default)]
pub(super) struct Agents {
    rows: Vec<Row>,
    by_id: BTreeMap<AgentId, u32>,
    /// When each has a free slot: now, if that is past.
    available: Vec<f64>,
    /// The reciprocal of how many times faster than ordinary each is.
    inverse: Vec<f64>,
    /// When `available` is to be estimated anew.
    stale: Vec<f64>,
    /// How many tasks are at work.
    running: usize,
    /// Who is kept for tasks of a class that need much, and since when.
    kept: BTreeMap<usize, (usize, Millis)>,
    /// Rows that have changed.
    touched: Vec<u32>,
    /// Rows of agents that fail more often than not.
    alarmed: BTreeSet<u32>,
    /// Counts changes of who is there and what that can do.
    fleet: u64,
    groups: BTreeMap<(WorkflowName, u32), Known>,
    /// For each class, the first of those that it is linked with, directly or by others: there are agents that can do either.
    linked: Vec<usize>,
    /// Who can do what of the classes has changed since then.
    unlinked: bool,
}

/// Who can do what of a workflow.
#[derive(Debug)]
pub(super) struct Groups {
    /// For each stage, which of the fields it belongs to: types that just the same agents can do are one field.
    pub(super) field: Arc<[usize]>,
    /// How many fields there are.
    pub(super) fields: usize,
    /// How fast those agents are together that can do the same: the fields as bits, and the speed.
    pub(super) speeds: Vec<(u64, f64)>,
}

#[derive(Debug)]
struct Known {
    fleet: u64,
    uses: usize,
    /// Which of the fields each agent can do, as bits.
    members: Vec<(u32, u64)>,
    /// None where there are too many types or fields.
    groups: Option<Arc<Groups>>,
}

/// How many types of agents, and how many fields of them, are told apart in a workflow.
const MAX_TYPES: usize = 256;
const MAX_FIELDS: usize = 64;
/// Of how many workflows it is kept who can do what of them.
const MAX_KNOWN: usize = 64;

#[derive(Debug)]
struct Row {
    id: AgentId,
    is_touched: bool,
    is_new: bool,
    has_slot: bool,
    slots: u32,
    running: BTreeMap<TaskId, Running>,
    /// When it may have a task though it fails more often than not.
    probe: f64,
}

/// A task that an agent has, or is asked to take.
#[derive(Debug)]
struct Running {
    since: f64,
    /// When it is expected to end, and when to estimate that anew.
    ends: f64,
    stale: f64,
}

/// What tasks of one shape ask for, and who can do that.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) shape: Arc<Shape>,
    /// How long one unit of work occupies each agent; infinite for those that can not do it.
    factor: Vec<f64>,
    /// How likely each fails.
    failure: Vec<f64>,
    /// When each has the resources; long ago if it has them now.
    resources: Vec<f64>,
    room: Vec<bool>,
    /// How many have room.
    open: usize,
    /// Those that can do it and do not wait to be tried again.
    sound: Vec<bool>,
    sounds: usize,
    /// How many can do it, and the sum of how long one unit of work takes them.
    able: usize,
    inverse: f64,
}

/// What an agent is sought for.
pub(super) struct Look<'a> {
    /// How long it takes an agent of ordinary speed.
    pub(super) work: f64,
    /// What another attempt costs, besides itself.
    pub(super) retries: f64,
    /// Under whom it failed last.
    pub(super) failed_under: Option<&'a AgentId>,
    /// Who did most of what it builds on.
    pub(super) near: Option<&'a AgentId>,
    /// Who may not have it.
    pub(super) not: Option<&'a BTreeSet<AgentId>>,
    pub(super) now: f64,
}

/// The agent that would finish first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Best {
    pub(super) row: usize,
    /// When it can begin.
    pub(super) available: f64,
    /// How long it takes there.
    pub(super) duration: f64,
    /// Whether it is taken for what it did before.
    pub(super) is_near: bool,
}

impl Class {
    pub(super) fn new(shape: &Arc<Shape>) -> Self {
        Self {
            shape: Arc::clone(shape),
            factor: Vec::new(),
            failure: Vec::new(),
            resources: Vec::new(),
            room: Vec::new(),
            open: 0,
            sound: Vec::new(),
            sounds: 0,
            able: 0,
            inverse: 0.0,
        }
    }

    pub(super) fn has_room(&self, row: usize) -> bool {
        self.room[row]
    }

    /// How many agents have room.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    fn resize(&mut self, rows: usize) {
        self.factor.resize(rows, f64::INFINITY);
        self.failure.resize(rows, 0.0);
        self.resources.resize(rows, 0.0);
        self.room.resize(rows, false);
        self.sound.resize(rows, false);
    }
}

impl Agents {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn id(&self, row: usize) -> &AgentId {
        &self.rows[row].id
    }

    /// An agent may have changed, or has come.
    pub(super) fn touch(&mut self, id: &AgentId) {
        let row = self.row(id);
        self.touch_row(row);
    }

    /// An agent has come or gone, or can do something else.
    pub(super) fn came_or_left(&mut self, id: &AgentId) {
        self.touch(id);
        self.fleet += 1;
    }

    pub(super) fn touch_all(&mut self) {
        for row in 0..self.rows.len() {
            self.touch_row(row as u32);
        }
    }

    fn touch_row(&mut self, row: u32) {
        let of = &mut self.rows[row as usize];
        if !std::mem::replace(&mut of.is_touched, true) {
            self.touched.push(row);
        }
    }

    fn row(&mut self, id: &AgentId) -> u32 {
        if let Some(row) = self.by_id.get(id) {
            return *row;
        }
        let row = self.rows.len() as u32;
        let probe = f64::NEG_INFINITY;
        self.rows.push(Row {
            id: id.clone(),
            is_touched: false,
            is_new: true,
            has_slot: false,
            slots: 1,
            running: BTreeMap::new(),
            probe,
        });
        self.by_id.insert(id.clone(), row);
        self.available.push(0.0);
        self.inverse.push(1.0);
        self.stale.push(f64::INFINITY);
        row
    }

    /// A task is held by an agent, or asked for.
    pub(super) fn began(&mut self, task: &TaskId, id: &AgentId, since: Millis) {
        let row = self.row(id);
        self.touch_row(row);
        let since = since as f64;
        let new = Running { since, ends: since, stale: f64::NEG_INFINITY };
        self.running += usize::from(self.rows[row as usize].running.insert(task.clone(), new).is_none());
    }

    /// A task is not held by an agent any more, nor asked for.
    pub(super) fn ended(&mut self, task: &TaskId, id: &AgentId) {
        let Some(row) = self.by_id.get(id).copied() else { return };
        self.touch_row(row);
        self.running -= usize::from(self.rows[row as usize].running.remove(task).is_some());
    }

    /// Takes notice of all that has changed.
    pub(super) fn settle(&mut self, state: &Optimizer, room: &Room, classes: &mut [Class], now: Millis) {
        for class in classes.iter_mut() {
            class.resize(self.rows.len());
        }
        let at = now as f64;
        let due: Vec<_> = self.alarmed.iter().copied().filter(|row| self.rows[*row as usize].probe <= at).collect();
        for row in due {
            self.touch_row(row);
        }
        while !self.touched.is_empty() {
            for row in std::mem::take(&mut self.touched) {
                self.settle_one(state, room, classes, row as usize, now);
            }
        }
        let all = self.running <= FEW;
        for row in 0..self.stale.len() {
            if self.stale[row] <= at || (all && self.stale[row].is_finite()) {
                let ends = self.estimate(state, row, at);
                if !self.rows[row].has_slot {
                    self.available[row] = ends;
                    continue;
                }
                for class in classes.iter_mut().filter(|class| class.factor[row].is_finite() && !class.room[row]) {
                    class.resources[row] = ends;
                }
            }
        }
    }

    /// When the next task of an agent is expected to end, by all that is known now.
    fn estimate(&mut self, state: &Optimizer, row: usize, now: f64) -> f64 {
        let Row { id, running, .. } = &mut self.rows[row];
        let performance = state.learning.performance(id);
        let speed = performance.map_or_else(|| Speed::default().log, |known| known.speed.log);
        if self.running <= FEW {
            running.iter_mut().for_each(|(task, of)| of.estimate(work(state, task, speed), now));
        }
        // Of the others it was known that they end later.
        loop {
            let Some((task, first)) = running.iter_mut().min_by(|(_, a), (_, b)| a.ends.total_cmp(&b.ends)) else {
                self.stale[row] = f64::INFINITY;
                return f64::INFINITY;
            };
            if first.stale > now {
                self.stale[row] = first.stale;
                return first.ends;
            }
            first.estimate(work(state, task, speed), now);
        }
    }

    /// Takes notice of what has changed with an agent.
    pub(super) fn settle_one(
        &mut self,
        state: &Optimizer,
        room: &Room,
        classes: &mut [Class],
        row: usize,
        now: Millis,
    ) {
        let of = &mut self.rows[row];
        of.is_touched = false;
        let agent = state.fleet.get(&of.id);
        let performance = state.learning.performance(&of.id);
        let now = now as f64;
        let alarmed = performance.is_some_and(|performance| performance.failing > ALARM);
        if alarmed && agent.is_some() {
            self.alarmed.insert(row as u32);
        } else {
            self.alarmed.remove(&(row as u32));
        }
        let slower = if alarmed && now < of.probe { ALARMED } else { 1.0 };
        let waits = now < of.probe && performance.is_some_and(|performance| performance.failing > HOPELESS);
        let speed = performance.map_or_else(|| Speed::default().log, |known| known.speed.log);
        let inverse = exp(-speed.mean);
        let hoped = inverse * exp(-HOPE * speed.variance);
        let before = self.inverse[row];
        self.inverse[row] = inverse;
        let aside: Option<&Load> = room.aside(&of.id);
        let has_slot = agent.is_some_and(|agent| agent.held(aside) < agent.slots() as usize);
        of.has_slot = has_slot;
        if of.slots != agent.map_or(0, crate::fleet::Agent::slots) {
            of.slots = agent.map_or(0, crate::fleet::Agent::slots);
            self.fleet += 1;
        }
        self.fleet += u64::from(std::mem::take(&mut of.is_new));
        // When the next ends matters where nothing can begin before.
        self.stale[row] = f64::INFINITY;
        let mut ends = None;
        self.available[row] = match agent {
            Some(_) if has_slot => 0.0,
            Some(_) => *ends.insert(self.estimate(state, row, now)),
            None => f64::INFINITY,
        };
        let mut sounds_changed = false;
        for class in classes {
            class.resize(self.inverse.len());
            let Shape { agent_type, requires, resources, pools: _ } = class.shape.as_ref();
            // One whose circuit breaker is half open can do it as long as it may be tried.
            let has_room = has_slot
                && agent.is_some_and(|agent| {
                    agent.can(agent_type, requires) && agent.has_room(agent_type, resources, aside)
                });
            let able = has_room || agent.is_some_and(|agent| agent.could_hold(&class.shape));
            let was_able = class.factor[row].is_finite();
            if was_able {
                (class.able, class.inverse) = (class.able - 1, class.inverse - before);
            }
            class.open -= usize::from(class.room[row]);
            class.room[row] = false;
            class.factor[row] = f64::INFINITY;
            let (had_sounds, sound) = (class.sounds > 0, able && !waits);
            class.sounds = class.sounds + usize::from(sound) - usize::from(class.sound[row]);
            class.sound[row] = sound;
            sounds_changed |= had_sounds != (class.sounds > 0);
            if able {
                class.failure[row] =
                    performance.map_or(PRIOR, |performance| performance.failure(&class.shape.agent_type));
            }
            let able = sound || able && class.sounds == 0;
            self.unlinked |= able != was_able;
            if !able {
                continue;
            }
            (class.able, class.inverse) = (class.able + 1, class.inverse + inverse);
            class.factor[row] = slower * hoped * (1.0 - class.failure[row] / 2.0);
            class.room[row] = has_room;
            class.open += usize::from(class.room[row]);
            class.resources[row] = 0.0;
            if has_slot && !has_room {
                class.resources[row] = match ends {
                    Some(ends) => ends,
                    None => *ends.insert(self.estimate(state, row, now)),
                };
            }
        }
        if sounds_changed {
            // Those that wait to be tried again may be all there is, or not be any more.
            for row in self.alarmed.iter().copied().collect::<Vec<_>>() {
                self.touch_row(row);
            }
        }
    }

    /// Finds which classes are linked: what waits of one has nothing to do with what waits of another, unless there are agents that
    /// can do either, or something that is linked with both.
    pub(super) fn link(&mut self, classes: &[Class]) {
        if !std::mem::take(&mut self.unlinked) && self.linked.len() == classes.len() {
            return;
        }
        let linked = &mut self.linked;
        linked.clear();
        linked.extend(0..classes.len());
        for row in 0..self.rows.len() {
            let mut able = (0..classes.len()).filter(|class| classes[*class].factor[row].is_finite());
            let Some(one) = able.next() else { continue };
            for other in able {
                let (one, other) = (first(linked, one), first(linked, other));
                linked[one.max(other)] = one.min(other);
            }
        }
        for class in 0..linked.len() {
            linked[class] = first(linked, class);
        }
    }

    /// For each class, the first of those that it is [linked](Agents::link) with.
    pub(super) fn linked(&self) -> &[usize] {
        &self.linked
    }

    /// The agent that would finish a task first.
    pub(super) fn best(&mut self, class: &Class, look: &Look<'_>) -> Option<Best> {
        if class.able == 0 {
            return None;
        }
        let barred = look.not.into_iter().flatten().filter_map(|id| self.by_id.get(id).copied());
        let barred: Vec<_> = barred.map(|row| (row as usize, self.available[row as usize])).collect();
        for (row, _) in &barred {
            self.available[*row] = f64::INFINITY;
        }
        let risk = look.work * (1.0 + look.retries) * class.inverse / class.able as f64;
        let mut best = self.least(class, look, risk);
        if let Some((row, ends)) = best
            && let Some(id) = look.failed_under
            && self.rows[row].id == *id
        {
            let available = std::mem::replace(&mut self.available[row], f64::INFINITY);
            let other = self.least(class, look, risk);
            self.available[row] = available;
            let here = look.now + (ends - look.now) * FAILED_HERE;
            best = other.filter(|(_, other)| *other < here).or(best);
        }
        let near = best.and_then(|best| self.near(class, look, risk, best));
        for (row, available) in barred {
            self.available[row] = available;
        }
        let row = near.or(best.map(|(row, _)| row))?;
        let available = self.available[row].max(class.resources[row]).max(look.now);
        Some(self.beginning(row, look, available, near.is_some()))
    }

    fn beginning(&self, row: usize, look: &Look<'_>, available: f64, is_near: bool) -> Best {
        Best { row, available, duration: look.work * self.inverse[row], is_near }
    }

    /// The agent that would finish a task first which can not begin before it is `ready`, nor where something else is planned.
    pub(super) fn best_between(
        &self,
        class: &Class,
        look: &Look<'_>,
        ready: f64,
        planned: &[Vec<Span>],
    ) -> Option<Best> {
        let risk = look.work * (1.0 + look.retries) * class.inverse / class.able.max(1) as f64;
        let weigh = |row: usize| {
            let available = self.available[row].max(class.resources[row]).max(ready);
            let best = self.beginning(row, look, after(&planned[row], available, look.work * self.inverse[row]), false);
            let ends = best.available + look.work * class.factor[row] + class.failure[row] * risk;
            (best, if look.failed_under == Some(self.id(row)) { ready + (ends - ready) * FAILED_HERE } else { ends })
        };
        let may = |row: &usize| {
            let is_able = self.available[*row].is_finite() && class.factor[*row].is_finite();
            is_able && look.not.is_none_or(|not| !not.contains(self.id(*row)))
        };
        let rows = (0..self.rows.len()).filter(may).map(weigh);
        let (best, ends) = rows.min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        let near = look.near.filter(|near| look.failed_under != Some(*near)).and_then(|near| self.by_id.get(near));
        let near = near.map(|row| *row as usize).filter(|row| *row != best.row && may(row)).map(weigh);
        let near = near.filter(|(near, near_ends)| {
            near.available <= best.available && *near_ends <= ready + (ends - ready) * NEAR_IS_AS_GOOD
        });
        Some(near.map_or(best, |(near, _)| Best { is_near: true, ..near }))
    }

    /// How many agents have room.
    pub(super) fn with_room(&self, classes: &[Class]) -> usize {
        (0..self.rows.len()).filter(|row| classes.iter().any(|class| class.room[*row])).count()
    }

    /// Whether each agent does one thing at a time.
    pub(super) fn are_single(&self) -> bool {
        self.rows.iter().all(|row| row.slots <= 1)
    }

    /// When a task that an agent has is expected to end, with a margin. Infinite if it is so late that it seems to hang.
    pub(super) fn expected_end(&self, state: &Optimizer, task: &TaskId, holder: &Holder, now: Millis) -> f64 {
        let speed = state.learning.performance(&holder.agent).map_or_else(|| Speed::default().log, |of| of.speed.log);
        let (work, elapsed) = (work(state, task, speed), now.saturating_sub(holder.since) as f64);
        if elapsed > LATE * work.expected() { f64::INFINITY } else { now as f64 + MARGIN * work.remaining(elapsed) }
    }

    /// The agent that did most of what the task builds on, if it is another than the best one and nearly as good.
    fn near(&self, class: &Class, look: &Look<'_>, risk: f64, (best, ends): (usize, f64)) -> Option<usize> {
        let near = look.near.filter(|near| look.failed_under != Some(*near))?;
        let row = *self.by_id.get(near)? as usize;
        let begins_now = class.room[row] || !class.room[best];
        let nearly = self.ends(class, row, look, risk) <= look.now + (ends - look.now) * NEAR_IS_AS_GOOD;
        (row != best && begins_now && nearly).then_some(row)
    }

    /// When an agent would finish a task.
    fn ends(&self, class: &Class, row: usize, look: &Look<'_>, risk: f64) -> f64 {
        let begins = self.available[row].max(class.resources[row]).max(look.now);
        begins + look.work * class.factor[row] + class.failure[row] * risk
    }

    /// Who has room for a class.
    pub(super) fn who_has_room(&self, class: &Class) -> Vec<AgentId> {
        let rows = self.rows.iter().zip(&class.room).filter(|(_, has_room)| **has_room);
        rows.map(|(row, _)| row.id.clone()).collect()
    }

    /// The first of those that would finish a task first, and who was chosen, and what is weighed.
    pub(super) fn weigh(&self, class: &Class, look: &Look<'_>, chosen: Option<usize>) -> Vec<Finish> {
        let risk = look.work * (1.0 + look.retries) * class.inverse / class.able.max(1) as f64;
        let mut first: Vec<(f64, usize)> = Vec::with_capacity(TOLD + 1);
        for row in 0..self.rows.len() {
            let ends = self.ends(class, row, look, risk);
            if ends.is_finite() && (first.len() < TOLD || first.last().is_some_and(|(last, _)| ends < *last)) {
                let at = first.partition_point(|(other, _)| *other <= ends);
                first.insert(at, (ends, row));
                first.truncate(TOLD);
            }
        }
        if let Some(chosen) = chosen.filter(|chosen| first.iter().all(|(_, row)| row != chosen)) {
            first.push((f64::INFINITY, chosen));
        }
        let finish = |(_, row): (f64, usize)| Finish {
            agent: self.rows[row].id.clone(),
            has_room: class.room[row],
            available: self.available[row].max(class.resources[row]).max(look.now) - look.now,
            duration: look.work * class.factor[row],
            failure: class.failure[row],
            risk: class.failure[row] * risk,
        };
        first.into_iter().map(finish).collect()
    }

    /// How long a task is expected to go on at the agent that has it, and how likely it fails there. None if that agent is gone.
    pub(super) fn left(
        &self,
        state: &Optimizer,
        class: &Class,
        task: &TaskId,
        holder: &Holder,
        now: Millis,
    ) -> Option<(f64, f64)> {
        let row = *self.by_id.get(&holder.agent)? as usize;
        state.fleet.get(&holder.agent)?;
        let speed =
            state.learning.performance(&holder.agent).map_or_else(|| Speed::default().log, |known| known.speed.log);
        let left = work(state, task, speed).remaining(now.saturating_sub(holder.since) as f64);
        Some((left, class.failure[row]))
    }

    /// Whether any agent has room, and can do nothing that is waited for: these classes.
    pub(super) fn any_idle(&self, classes: &[Class], waits: &[usize]) -> bool {
        (0..self.rows.len()).any(|row| {
            classes.iter().any(|class| class.room[row])
                && !waits.iter().any(|class| classes[*class].factor[row].is_finite())
        })
    }

    /// The agent with room that would take least for so much work, of all but the one that has it and of those that can do nothing
    /// that is waited for; how long it takes, and how likely it fails.
    pub(super) fn idle(
        &self,
        class: &Class,
        (work, holder): (f64, &AgentId),
        classes: &[Class],
        waits: &[usize],
    ) -> Option<(usize, f64, f64)> {
        let idle = |row: &usize| {
            class.room[*row]
                && self.rows[*row].id != *holder
                && !waits.iter().any(|class| classes[*class].factor[*row].is_finite())
        };
        let takes = |row: usize| work * class.factor[row] / (1.0 - class.failure[row] / 2.0);
        let rows = (0..self.rows.len()).filter(idle);
        let row = rows.min_by(|a, b| takes(*a).total_cmp(&takes(*b)))?;
        Some((row, takes(row), class.failure[row]))
    }

    /// The agent with room that would finish a task first, if so many wait that it is not better left idle: if the others can not
    /// do all of them in that time. This is what a walk to the end of the queue would come to, were all tasks alike.
    pub(super) fn best_now(&self, class: &Class, look: &Look<'_>, waiting: usize) -> Option<Best> {
        let may = |row: &usize| {
            self.available[*row].is_finite() && look.not.is_none_or(|not| !not.contains(&self.rows[*row].id))
        };
        let rows = (0..self.rows.len()).filter(|row| class.room[*row]).filter(may);
        let row = rows.min_by(|a, b| class.factor[*a].total_cmp(&class.factor[*b]))?;
        let ends = look.now + look.work * class.factor[row];
        let mut done = 0.0;
        for other in 0..self.rows.len() {
            let begins = self.available[other].max(class.resources[other]).max(look.now);
            let each = look.work * class.factor[other] / f64::from(self.rows[other].slots.max(1));
            if each.is_finite() && begins < ends && other != row {
                done += (ends - begins) / each;
            }
        }
        (done < waiting as f64).then(|| self.beginning(row, look, look.now, false))
    }

    /// The row where `available + work · factor + failure · risk` is least, and what it is there. The loop has no branches, so
    /// that it is done for several rows at a time.
    fn least(&self, class: &Class, look: &Look<'_>, risk: f64) -> Option<(usize, f64)> {
        let (work, now) = (look.work, look.now);
        let rows = self.available.len();
        let of = |available: f64, resources: f64, factor: f64, failure: f64| {
            let begins = if available > resources { available } else { resources };
            let begins = if begins > now { begins } else { now };
            begins + work * factor + failure * risk
        };
        let (available, resources) = (&self.available[..rows], &class.resources[..rows]);
        let (factor, failure) = (&class.factor[..rows], &class.failure[..rows]);
        let mut least = [f64::INFINITY; LANES];
        let mut block = [0_u32; LANES];
        let whole = rows / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let (a, r) = (&available[at..at + LANES], &resources[at..at + LANES]);
            let (f, p) = (&factor[at..at + LANES], &failure[at..at + LANES]);
            for lane in 0..LANES {
                let ends = of(a[lane], r[lane], f[lane], p[lane]);
                let better = ends < least[lane];
                least[lane] = if better { ends } else { least[lane] };
                block[lane] = if better { at as u32 } else { block[lane] };
            }
        }
        let mut best = None;
        for lane in 0..LANES {
            take(&mut best, block[lane] as usize + lane, least[lane]);
        }
        for row in whole..rows {
            take(&mut best, row, of(available[row], resources[row], factor[row], failure[row]));
        }
        best
    }

    /// Which agent is kept for a task that needs much and has waited for a step of ageing: what comes after it is not placed there,
    /// so that the agent runs empty. It is the one that holds least, for a while the same one.
    pub(super) fn kept_for(
        &mut self,
        class: &Class,
        place: usize,
        state: &Optimizer,
        task: &TaskId,
        (config, now): (&Config, Millis),
    ) -> Option<usize> {
        if class.shape.resources.is_empty() {
            // The next slot that is free will do.
            return None;
        }
        let since = state.queue.get(task)?.since;
        if now.saturating_sub(since) < config.ageing_ms {
            return None;
        }
        // Not one that waits to be tried again, though it may hold least.
        let could = |row: usize| self.available[row].is_finite() && class.factor[row].is_finite();
        let before = self.kept.get(&place).filter(|(_, since)| now < since.saturating_add(KEEP_MS));
        if let Some((row, _)) = before.filter(|(row, _)| could(*row)) {
            return Some(*row);
        }
        let row = (0..self.rows.len()).filter(|row| could(*row)).min_by_key(|row| self.rows[*row].running.len())?;
        self.kept.insert(place, (row, now));
        Some(row)
    }

    /// In this walk, the agent is to have nothing more.
    pub(super) fn keep(&mut self, row: usize) -> (usize, f64) {
        (row, std::mem::replace(&mut self.available[row], f64::INFINITY))
    }

    /// In this walk, the agent is to have this task next. What it was is to be given back.
    pub(super) fn promise(&mut self, best: Best) -> (usize, f64) {
        let available = self.available[best.row];
        let slots = f64::from(self.rows[best.row].slots.max(1));
        self.available[best.row] = best.available + best.duration / slots;
        (best.row, available)
    }

    pub(super) fn unpromise(&mut self, row: usize, available: f64) {
        self.available[row] = available;
    }

    /// An agent that fails more often than not has got a task: it does not get another one soon.
    pub(super) fn probed(&mut self, state: &Optimizer, row: usize, now: Millis) {
        if self.alarmed.contains(&(row as u32)) {
            self.rows[row].probe = now as f64 + PROBE_AFTER * state.learning.durations.average_ms();
            self.touch_row(row as u32);
        }
    }

    /// When the next agent may be tried again that fails more often than not.
    pub(super) fn next_probe(&self, now: Millis) -> Option<Millis> {
        let probes = self.alarmed.iter().map(|row| self.rows[*row as usize].probe).filter(|probe| *probe > now as f64);
        probes.min_by(f64::total_cmp).map(|probe| probe as Millis + 1)
    }

    /// Who can do what of a workflow. None if there are too many fields.
    pub(super) fn groups(&mut self, state: &Optimizer, run: &Run, graph: &Graph) -> Option<Arc<Groups>> {
        let key = (run.workflow.clone(), run.version);
        let most = self.rows.len() / 4 + 1;
        match self.groups.get_mut(&key).filter(|known| known.fleet == self.fleet) {
            Some(known) if known.uses < most => known.uses += 1,
            Some(known) => {
                known.uses = 0;
                let speed = |row: u32| f64::from(self.rows[row as usize].slots) / self.inverse[row as usize];
                known.groups = known.groups.as_ref().map(|of| Arc::new(of.with(&known.members, speed)));
            }
            None => {
                if self.groups.len() >= MAX_KNOWN {
                    self.groups.clear();
                }
                let known = self.sort_out(state, graph);
                self.groups.insert(key.clone(), known);
            }
        }
        self.groups.get(&key)?.groups.clone()
    }

    fn sort_out(&self, state: &Optimizer, graph: &Graph) -> Known {
        let mut known = Known { fleet: self.fleet, uses: 0, members: Vec::new(), groups: None };
        let mut types: BTreeMap<&Capability, usize> = graph.stages.iter().map(|node| (&node.agent_type, 0)).collect();
        if types.len() > MAX_TYPES {
            return known;
        }
        let mut fields: Vec<Vec<bool>> = Vec::new();
        for (of, field) in &mut types {
            let who: Vec<_> = state.fleet.iter().map(|(_, agent)| agent.capabilities.contains_key(*of)).collect();
            *field = fields.iter().position(|known| *known == who).unwrap_or_else(|| {
                fields.push(who);
                fields.len() - 1
            });
        }
        if fields.len() > MAX_FIELDS {
            return known;
        }
        let mut speeds = Vec::with_capacity(state.fleet.len());
        for (nth, (id, agent)) in state.fleet.iter().enumerate() {
            let bits = fields.iter().enumerate().filter(|(_, who)| who[nth]).fold(0, |bits, (of, _)| bits | 1 << of);
            let speed = state.learning.performance(id).map_or(1.0, |known| exp(known.speed.log.mean));
            if let Some(row) = self.by_id.get(id).filter(|_| bits != 0) {
                known.members.push((*row, bits));
                speeds.push(speed * f64::from(agent.slots()));
            }
        }
        let field = graph.stages.iter().map(|node| types[&node.agent_type]).collect();
        let groups = Groups { field, fields: fields.len(), speeds: Vec::new() };
        let mut speeds = speeds.into_iter();
        known.groups = Some(Arc::new(groups.with(&known.members, |_| speeds.next().unwrap_or_default())));
        known
    }
}

impl Groups {
    /// The same with agents that are so fast now.
    fn with(&self, members: &[(u32, u64)], mut speed: impl FnMut(u32) -> f64) -> Self {
        let mut speeds: BTreeMap<u64, f64> = BTreeMap::new();
        for (row, bits) in members {
            *speeds.entry(*bits).or_default() += speed(*row);
        }
        Self { field: Arc::clone(&self.field), fields: self.fields, speeds: speeds.into_iter().collect() }
    }
}

/// The first of those that a class is known to be linked with.
fn first(linked: &[usize], mut class: usize) -> usize {
    while linked[class] != class {
        class = linked[class];
    }
    class
}

/// When there is a gap of this length between what is planned, at the earliest.
fn after(planned: &[Span], mut begins: f64, duration: f64) -> f64 {
    for (from, until) in planned {
        if begins + duration <= *from {
            break;
        }
        begins = begins.max(*until);
    }
    begins
}

fn take(best: &mut Option<(usize, f64)>, row: usize, ends: f64) {
    let better = best.is_none_or(|(least_row, least)| ends < least || (ends <= least && row < least_row));
    if ends.is_finite() && better {
        *best = Some((row, ends));
    }
}

impl Running {
    fn estimate(&mut self, log: Gauss, now: f64) {
        let elapsed = (now - self.since).max(0.0);
        self.ends = now + MARGIN * log.remaining(elapsed);
        let whole = self.ends - self.since;
        self.stale = now + (ESTIMATE_AGES * elapsed).max(ESTIMATE_PART * whole).max(1.0);
    }
}

/// The logarithm of how long a task takes an agent of this speed.
fn work(state: &Optimizer, task: &TaskId, speed: Gauss) -> Gauss {
    let durations = &state.learning.durations;
    let work = state.place(task).map_or_else(|| durations.any(), |place| durations.work(place));
    Gauss { mean: work.mean - speed.mean, variance: work.variance + speed.variance }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Classes that these agents can do.
    fn classes(of: &[&[usize]], rows: usize) -> Vec<Class> {
        let shape = || {
            let agent_type = Capability::new("x").unwrap();
            Arc::new(Shape {
                agent_type,
                requires: Default::default(),
                resources: Default::default(),
                pools: Default::default(),
            })
        };
        let class = |able: &&[usize]| {
            let mut class = Class::new(&shape());
            class.resize(rows);
            able.iter().for_each(|row| class.factor[*row] = 1.0);
            class
        };
        of.iter().map(class).collect()
    }

    #[test]
    fn o2_classes_are_linked_by_who_can_do_either() {
        let mut agents = Agents::default();
        (0..5).for_each(|n| agents.touch(&AgentId::new(&format!("agent-{n}")).unwrap()));
        // The first and the last have nobody in common, but each with another one.
        agents.link(&classes(&[&[0], &[1, 2], &[], &[3, 0], &[3, 4]], 5));
        assert_eq!(agents.linked(), [0, 1, 2, 0, 0]);
        // Agent 2 learns something else.
        agents.unlinked = true;
        agents.link(&classes(&[&[0, 2], &[1, 2], &[], &[3, 0], &[3, 4]], 5));
        assert_eq!(agents.linked(), [0, 0, 2, 0, 0]);
    }
}
