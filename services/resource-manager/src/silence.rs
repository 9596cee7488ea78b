//! Tasks of which nothing is heard: their agent lives, and tells of them no more.
//!
//! A stage's `heartbeat_timeout_ms` says for how long its agent may say nothing of a task. What was told is not in the log, as
//! heartbeats are not; so a new leader gives every task the whole time anew. What is in the log is that a lease ended.

use std::collections::{BTreeMap, BTreeSet};

use baton_machine::Turn;
use baton_machine::planted::{Bug, is_planted};
use baton_protocol::{LeaseId, Millis};

use crate::{ResourceManager, lease};

/// By when something must be heard of which lease. Those that have ended leave when it is their turn.
#[derive(Debug, Default)]
pub(crate) struct Silences {
    due: BTreeMap<LeaseId, Millis>,
    order: BTreeSet<(Millis, LeaseId)>,
}

impl Silences {
    fn set(&mut self, lease: LeaseId, due: Millis) {
        self.forget(lease);
        self.due.insert(lease, due);
        self.order.insert((due, lease));
    }

    fn forget(&mut self, lease: LeaseId) {
        if let Some(due) = self.due.remove(&lease) {
            self.order.remove(&(due, lease));
        }
    }

    /// Everybody was silent for less by that, and has until `least` at the least.
    pub(crate) fn forgive(&mut self, by: Millis, least: Millis) {
        let later = |(lease, due): (&LeaseId, &Millis)| (*lease, due.saturating_add(by).max(least));
        self.due = self.due.iter().map(later).collect();
        self.order = self.due.iter().map(|(lease, due)| (*due, *lease)).collect();
    }

    /// When the first is due.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.order.first().map(|(due, _)| *due)
    }
}

/// A lease begins, or something is heard of its task.
pub(crate) fn heard(turn: &mut Turn<'_, ResourceManager>, lease: LeaseId) {
    let state = turn.state();
    let timeout = state.leases.get(lease).and_then(|held| state.tasks.stage(&held.task)?.heartbeat_timeout_ms);
    if let Some(timeout) = timeout {
        let due = turn.now().saturating_add(timeout);
        turn.soft.silences.set(lease, due);
    }
}

/// A new leader does not know what was heard.
pub(crate) fn lead(turn: &mut Turn<'_, ResourceManager>) {
    let leases: Vec<_> = turn.state().leases.ids().collect();
    leases.into_iter().for_each(|lease| heard(turn, lease));
    // Whoever told something meanwhile told it to nobody.
    let least = turn.soft.nothing_expires_before;
    turn.soft.silences.forgive(0, least);
}

/// Ends the leases of which nothing was heard for too long.
pub(crate) fn tick(turn: &mut Turn<'_, ResourceManager>) {
    while let Some((_, lease)) = turn.soft.silences.order.first().copied().filter(|(due, _)| *due <= turn.now()) {
        turn.soft.silences.forget(lease);
        if !is_planted(Bug::TaskSilenceTolerated) {
            lease::end_silent(turn, lease);
        }
    }
}
