//! The rule of tenants.

use std::collections::{BTreeMap, BTreeSet};

use baton_protocol::definition::StageDefinition;
use baton_protocol::request::Strategy;
use baton_protocol::{Capability, TaskId};

use super::{Attempt, Checked, Facts, Run, hold};
use crate::coverage::Branch;

const TURNS: &str = "no tenant is passed over again and again by others whose tasks are like its own";

/// So often may one be passed over in a row: what it was refused just now is not asked for at once.
const PASSED: u32 = 10;

/// A task counts that has waited for so long, in microseconds.
const WAITED: u64 = 500_000;

/// A tenant, and the tasks that are alike.
type Waiting = (Option<String>, (Capability, i32));

/// What is known of tenants.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    /// How often each was passed over since it was served last.
    passed: BTreeMap<Waiting, u32>,
    /// Whether the strategy was ever one that has an order of its own.
    looks_ahead: bool,
}

impl Tenants {
    pub(super) fn strategy_changed(&mut self, strategy: Strategy) {
        self.looks_ahead |= strategy == Strategy::Adaptive;
    }
}

/// What a task is like, if it needs nothing but an agent.
fn alike(run: &Run, definition: &StageDefinition, attempt: &Attempt) -> Option<(Capability, i32)> {
    let plain = attempt.requires.is_empty()
        && attempt.resources.is_empty()
        && definition.budget.is_none()
        && run.budget.as_ref().is_none_or(|budget| budget.limit.is_none())
        && run.strategy != Some(Strategy::Adaptive);
    plain.then(|| (attempt.agent_type.clone(), run.priority))
}

impl Facts {
    /// A task is about to be leased: its tenant is served, and others are passed over that have had the like for a while.
    pub(super) fn tenants_take_turns(&mut self, task: &TaskId) -> Checked {
        if self.tenants.looks_ahead {
            return Ok(());
        }
        let Some(run) = self.runs.get(&task.run) else { return Ok(()) };
        let Some((stage, definition)) =
            run.parts().find(|(place, ..)| Some(*place) == run.place_of(task)).map(|(_, stage, of)| (stage, of))
        else {
            return Ok(());
        };
        let Some(like) = stage.attempts.last().and_then(|attempt| alike(run, definition, attempt)) else {
            return Ok(());
        };
        let served = run.tenant.clone();
        let mut others = BTreeSet::new();
        let paused: BTreeSet<_> = self.paused().into_iter().collect();
        for (id, run) in self.runs.iter().filter(|(_, run)| run.finished.is_none() && run.tenant != served) {
            let waits = |attempt: &Attempt| {
                attempt.lease.is_none() && attempt.ended.is_none() && attempt.ready_on + WAITED <= self.now
            };
            let mut parts = run.parts().filter_map(|(_, stage, of)| Some((stage.attempts.last()?, of)));
            if !paused.contains(id)
                && parts.any(|(attempt, of)| waits(attempt) && alike(run, of, attempt).as_ref() == Some(&like))
            {
                others.insert(run.tenant.clone());
            }
        }
        self.tenants.passed.retain(|(tenant, of), _| *of != like || (*tenant != served && others.contains(tenant)));
        for tenant in others {
            let passed = self.tenants.passed.entry((tenant.clone(), like.clone())).or_default();
            *passed += 1;
            self.seen.push(Branch::TenantPassed);
            hold!(*passed <= PASSED, TURNS, "{tenant:?} waits for {} and was passed over {passed} times", like.0);
        }
        Ok(())
    }
}
