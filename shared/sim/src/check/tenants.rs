//! The rule of tenants.
//!
//! It is held against what the optimizer asks for, in its order, and not against the leases: what is granted, and when, is another
//! service's. Of two tenants that have the like to do all the while, neither may be served more than `1/w + 1/v` tasks ahead for each
//! unit of weight. That follows from start-time fair queueing: the next task of a tenant starts between the start of what was
//! served last and `1/w` after it. It holds only as long as nothing else moves the starts, so that counting begins anew with
//! each term, with each placement that was refused, and with each task for the same type of agents that is not like these; and
//! where a tenant was not served for so long that it may go first.

use std::collections::{BTreeMap, BTreeSet};

use baton_protocol::definition::StageDefinition;
use baton_protocol::request::{AssignTasks, Strategy};
use baton_protocol::run::TENANT_KEY;
use baton_protocol::{Capability, Millis, Number, TaskId};

use super::{Attempt, Checked, Facts, Run, hold};
use crate::coverage::Branch;
use crate::workload::TENANTS;

const SHARE: &str = "of tenants that have the like to do none is served far ahead of its share";

/// Whoever was not served for so long, in milliseconds of the asker's time, may go first for that: a little less than a step of ageing.
const UNSERVED: Millis = 4500;

/// An instance, its session and its term: another one knows nothing of how far tenants have come.
pub(crate) type Asker = (usize, u64, u64);

/// None: of whoever names none.
type Tenant = Option<String>;

/// What is known of tenants.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    /// By which record each task was ready.
    ready: BTreeMap<TaskId, Number>,
    /// Whether the strategy was ever one that looks ahead, and may let a task wait for a better agent.
    looks_ahead: bool,
    askers: BTreeMap<Asker, Served>,
}

/// What one asked for.
#[derive(Debug, Default)]
struct Served {
    asked: BTreeSet<TaskId>,
    /// When a tenant was served last with a type of agents, by the asker's time.
    last: BTreeMap<(Capability, Tenant), Millis>,
    /// How many tasks each of two was given since both have had the like to do.
    pairs: BTreeMap<(Capability, Tenant, Tenant), (u32, u32)>,
}

impl Tenants {
    pub(super) fn strategy_changed(&mut self, strategy: Strategy) {
        self.looks_ahead |= strategy == Strategy::Adaptive;
    }

    pub(super) fn ready(&mut self, task: &TaskId, number: Number) {
        self.ready.insert(task.clone(), number);
    }
}

fn weight(tenant: &Tenant) -> u32 {
    let known = TENANTS.iter().find(|(name, ..)| tenant.as_deref() == Some(name));
    known.map_or(1, |(.., weight)| *weight)
}

fn tenant(run: &Run) -> Tenant {
    run.metadata.get(TENANT_KEY).cloned()
}

/// Whether a task needs nothing but an agent, and its run is a tenant's and nothing out of the ordinary: all such tasks for a type of
/// agents are alike. (What is of no tenant may be more urgent.)
fn is_plain(run: &Run, definition: &StageDefinition, attempt: &Attempt) -> bool {
    tenant(run).is_some()
        && attempt.requires.is_empty()
        && attempt.resources.is_empty()
        && attempt.counts
        && definition.speculative.is_none()
        && definition.priority == 0
        && run.priority == 0
        && run.budget.is_none()
        && run.parent.is_none()
        && run.pauses.is_empty()
        && run.strategy != Some(Strategy::Adaptive)
}

impl Facts {
    /// An instance of the optimizer asks for placements, at a time of its own.
    pub(crate) fn placements_asked(&mut self, asker: Asker, asked: &AssignTasks, time: Millis) -> Checked {
        // Under pressure it depends on when a task was ready whether it may be asked for.
        if self.tenants.looks_ahead || self.pressure.was_ever() {
            return Ok(());
        }
        let mut served = self.tenants.askers.remove(&asker).unwrap_or_default();
        // A second agent for a task is nothing that its tenant is given.
        for placement in asked.placements.iter().filter(|placement| placement.beside.is_none()) {
            self.served(&mut served, &placement.task, asked.seen, time)?;
        }
        self.tenants.askers.insert(asker, served);
        Ok(())
    }

    /// An instance hears that a placement was refused: its tenant has not come further.
    pub(crate) fn placement_refused(&mut self, node: usize) {
        for (_, served) in self.tenants.askers.iter_mut().filter(|((of, ..), _)| *of == node) {
            served.pairs.clear();
        }
    }

    fn served(&mut self, served: &mut Served, task: &TaskId, seen: Number, time: Millis) -> Checked {
        let Some((run, place)) = self.runs.get(&task.run).and_then(|run| Some((run, run.place_of(task)?))) else {
            return Ok(());
        };
        let (definition, stage) = (run.definition(place), &run.stages[place]);
        let (what, whose) = (definition.agent_type.clone(), tenant(run));
        let plain = stage.attempts.last().is_some_and(|attempt| is_plain(run, definition, attempt));
        served.asked.insert(task.clone());
        let last = |tenant: &Tenant| served.last.get(&(what.clone(), tenant.clone()));
        let unserved = |tenant: &Tenant| last(tenant).is_some_and(|last| time >= last.saturating_add(UNSERVED));
        let waiting = if plain { self.who_waits(&what, &served.asked, seen) } else { BTreeSet::new() };
        let counts = plain && !unserved(&whose) && !waiting.iter().any(unserved);
        served.last.insert((what.clone(), whose.clone()), time);
        let goes_on = |tenant: &Tenant| *tenant == whose || waiting.contains(tenant);
        served.pairs.retain(|(of, one, other), _| *of != what || (counts && goes_on(one) && goes_on(other)));
        if !counts {
            return Ok(());
        }
        for other in waiting.iter().filter(|other| **other != whose) {
            self.seen.push(Branch::TenantWaits);
            let (one, two) = if whose < *other { (&whose, other) } else { (other, &whose) };
            let given = served.pairs.entry((what.clone(), one.clone(), two.clone())).or_default();
            *(if *one == whose { &mut given.0 } else { &mut given.1 }) += 1;
            // Both sides are multiplied by the weights.
            let (w, v) = (weight(one), weight(two));
            hold!(
                (given.0 * v).abs_diff(given.1 * w) <= w + v,
                SHARE,
                "while both had something to do for {what}, {one:?} was given {} tasks and {two:?} {}",
                given.0,
                given.1
            );
        }
        // If it was its last one, it has nothing to do from now on.
        served.pairs.retain(|(of, one, other), _| *of != what || (waiting.contains(one) && waiting.contains(other)));
        Ok(())
    }

    /// Who has plain tasks for a type of agents that somebody who had read so far has not asked for yet.
    fn who_waits(&self, what: &Capability, asked: &BTreeSet<TaskId>, seen: Number) -> BTreeSet<Tenant> {
        let mut waiting = BTreeSet::new();
        for (id, run) in self.runs.iter().filter(|(_, run)| run.finished.is_none() && tenant(run).is_some()) {
            for (place, stage, definition) in run.parts().filter(|(.., definition)| definition.agent_type == *what) {
                let Some(attempt) = stage.attempts.last().filter(|attempt| attempt.waits()) else { continue };
                let task = TaskId {
                    run: *id,
                    stage: definition.name.clone(),
                    item: run.item(place),
                    attempt: u32::try_from(stage.attempts.len()).unwrap_or(u32::MAX),
                };
                let read = self.tenants.ready.get(&task).is_some_and(|number| *number <= seen);
                if read && !asked.contains(&task) && is_plain(run, definition, attempt) {
                    waiting.insert(tenant(run));
                }
            }
        }
        waiting
    }
}
