//! How much of each pool is used, and what is said of it.
//!
//! Of a held pool that is what is held, of a consumed one what is spent. A refilled one is meant to be used up and fills by itself,
//! and a lock has no per cent; of both nothing is said, nor of the account of a run, which goes with its run.
//!
//! What should be said follows from the log alone: it is worked out where a pool changes, and kept in order of time. So a leader
//! sees at a glance whether something is due, however many pools there are, and its successor sees the same. What is held comes
//! and goes with every lease: only what has been so all the while counts. What is spent stays spent: that is said at once.

use baton_machine::ShelfSet;
use baton_protocol::alert::{AlertKind, AlertSeverity};
use baton_protocol::budget::is_of_run;
use baton_protocol::{Amount, Millis, PoolKind, ResourceName};
use serde::{Deserialize, Serialize};

use crate::alert::{OVER_PERCENT, severity_at};
use crate::pool::Stock;

/// How much less than an alert says must be spent of an account, in per cent, until it is over.
const MARGIN_PERCENT: usize = 10;

/// What is said of how much of a pool is used, and what should be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// How much the alert that is active matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    said: Option<AlertSeverity>,
    /// Since when it is so.
    at: Millis,
    /// There was an alert, and it was forgotten for others that came later. Nothing is said until it would be over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    forgotten: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsaid: Option<Unsaid>,
}

impl Usage {
    /// Whether nothing ever was to be said.
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// What should be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Unsaid {
    since: Millis,
    /// The alert to be raised: of a held pool the least that there was to say all the while. None: what is said is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    raise: Option<AlertSeverity>,
}

/// The pools of which something should be said.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Due {
    /// Held ones, by since when.
    held: ShelfSet<(Millis, ResourceName)>,
    consumed: ShelfSet<ResourceName>,
}

/// What is to be said of a pool now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// That so much of it is used.
    Raise(AlertSeverity, String),
    /// That it is so no more.
    Clear,
}

/// What an alert about a pool is of; none: there are no such alerts.
pub(crate) fn kind_of(kind: PoolKind) -> Option<AlertKind> {
    match kind {
        PoolKind::Held => Some(AlertKind::PoolUsed),
        PoolKind::Consumed => Some(AlertKind::BudgetUsed),
        PoolKind::Refilled => None,
    }
}

impl Stock {
    /// How much of it is used, and how much there is.
    fn used(&self) -> Option<(Amount, Amount)> {
        let size = self.pool.size.filter(|size| !size.is_zero())?;
        match self.pool.kind {
            PoolKind::Held if self.exclusive => Some((size, size)),
            PoolKind::Held => Some((self.in_use, size)),
            PoolKind::Consumed => Some((self.spent, size)),
            PoolKind::Refilled => None,
        }
    }

    /// How much of it is used, in per cent.
    fn percent(&self) -> usize {
        let percent = self.used().and_then(|(used, size)| (used.nanos() * 100).checked_div(size.nanos()));
        percent.map_or(0, |percent| usize::try_from(percent).unwrap_or(usize::MAX))
    }

    /// What should be said that is not: an alert to be raised, or that the one that is active is over.
    fn wanted(&self) -> Option<Option<AlertSeverity>> {
        let Usage { said, forgotten, .. } = self.usage;
        let percent = self.percent();
        let is = severity_at(percent);
        if is > said && !forgotten {
            return Some(is);
        }
        let over = match self.pool.kind {
            PoolKind::Held => percent < OVER_PERCENT,
            // What is spent stays spent; the size may swing, where what is left of the whole is shared out again and again.
            PoolKind::Consumed | PoolKind::Refilled => severity_at(percent.saturating_add(MARGIN_PERCENT)) < said,
        };
        (said.is_some() && over).then_some(None)
    }

    /// Works out what should be said of it, as it is at that time.
    fn look(&mut self, at: Millis) {
        self.usage.forgotten &= self.percent() >= OVER_PERCENT;
        // The clock of the workflow-manager, which says what ends, may be behind.
        let at = at.max(self.usage.at).max(self.usage.unsaid.map_or(0, |unsaid| unsaid.since));
        let holds = self.pool.kind == PoolKind::Held;
        self.usage.unsaid = self.wanted().map(|raise| match (raise, self.usage.unsaid) {
            (None, Some(before @ Unsaid { raise: None, .. })) => before,
            // What was so for no time at all, between two records of one turn, does not count.
            (Some(severity), Some(Unsaid { since, raise: Some(before) })) if holds && since < at => {
                Unsaid { since, raise: Some(severity.min(before)) }
            }
            (raise, _) => Unsaid { since: at, raise },
        });
    }

    /// What is to be said of it, if something is.
    pub(crate) fn says(&self, name: &ResourceName) -> Option<Says> {
        let Some(severity) = self.usage.unsaid?.raise else { return Some(Says::Clear) };
        let ((used, size), percent) = (self.used().unwrap_or_default(), self.percent());
        let text = match (self.pool.kind, &self.pool.currency) {
            (PoolKind::Consumed, Some(currency)) => {
                format!("{used} of {size} {currency} of account {name} are spent, which is {percent} %")
            }
            (PoolKind::Consumed, None) => format!("{used} of {size} of {name} are spent, which is {percent} %"),
            _ if self.exclusive => format!("somebody has pool {name} alone: none of {size} is left"),
            _ => format!("{used} of {size} of pool {name} are in use, which is {percent} %"),
        };
        Some(Says::Raise(severity, text))
    }

    /// Whether an alert about it is active.
    pub(crate) fn is_said(&self) -> bool {
        self.usage.said.is_some()
    }
}

impl Due {
    /// A pool has changed.
    pub(crate) fn look(&mut self, name: &ResourceName, stock: &mut Stock, at: Millis) {
        if is_of_run(name) {
            return;
        }
        let before = stock.usage.unsaid;
        stock.look(at);
        if stock.usage.unsaid != before {
            self.take_out(name, stock.pool.kind, before);
            self.put(name, stock);
        }
    }

    /// What is said of a pool has changed: an alert was raised, or is over.
    pub(crate) fn said(&mut self, name: &ResourceName, stock: &mut Stock, said: Option<AlertSeverity>, at: Millis) {
        self.take_out(name, stock.pool.kind, stock.usage.unsaid);
        stock.usage = Usage { said, at, forgotten: false, unsaid: None };
        self.look(name, stock, at);
    }

    /// The alert about a pool was forgotten.
    pub(crate) fn forgotten(&mut self, name: &ResourceName, stock: &mut Stock, at: Millis) {
        self.take_out(name, stock.pool.kind, stock.usage.unsaid);
        stock.usage = Usage { said: None, at, forgotten: true, unsaid: None };
        self.look(name, stock, at);
    }

    /// A pool is as a snapshot kept it.
    pub(crate) fn put(&mut self, name: &ResourceName, stock: &Stock) {
        let Some(Unsaid { since, .. }) = stock.usage.unsaid else { return };
        match stock.pool.kind {
            PoolKind::Held => self.held.insert((since, name.clone())),
            PoolKind::Consumed | PoolKind::Refilled => self.consumed.insert(name.clone()),
        };
    }

    /// A pool is gone.
    pub(crate) fn gone(&mut self, name: &ResourceName, stock: &Stock) {
        self.take_out(name, stock.pool.kind, stock.usage.unsaid);
    }

    fn take_out(&mut self, name: &ResourceName, kind: PoolKind, unsaid: Option<Unsaid>) {
        let Some(Unsaid { since, .. }) = unsaid else { return };
        match kind {
            PoolKind::Held => self.held.remove(&(since, name.clone())),
            PoolKind::Consumed | PoolKind::Refilled => self.consumed.remove(name),
        };
    }

    /// The pools of which something is to be said: consumed ones, and held ones of which it has been so since then or before.
    pub(crate) fn until(&self, then: Option<Millis>) -> Vec<ResourceName> {
        let held = self.held.iter().take_while(|(since, _)| Some(*since) <= then).map(|(_, name)| name);
        self.consumed.iter().chain(held).cloned().collect()
    }

    /// Since when it has been so of the held pool of which it has been so for the longest time.
    pub(crate) fn oldest(&self) -> Option<Millis> {
        self.held.first().map(|(since, _)| *since)
    }
}
