//! Pools: how much of each there is, what is held of it, and by whom.
//!
//! All of it is exact: amounts have nine decimal places at the most, and what a refilled pool gets in a time that does not
//! divide evenly is carried on as a remainder.
//!
//! A consumed pool is an account. What is taken is first *reserved*, here and in every pool that this one is a part of; when
//! the lease ends, what was used is *spent* and the rest is free again. So a part never takes what the whole has not.
//!
//! What a task costs, it costs once: where it is paid from several accounts that are parts of the same one (its run's and its
//! agent's, of one team), that one is charged once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{ShelfSet, Shelves};
use baton_protocol::alert::AlertSeverity;
use baton_protocol::amount;
use baton_protocol::budget::run_account;
use baton_protocol::pool::{MAX_DEPTH, MAX_SIZE};
use baton_protocol::record::{
    Acquired, ApprovalAsked, BudgetRefused, Outcome, PoolSet, ReleaseReason, Released, Renewed, StageEnded, Stamp,
};
use baton_protocol::{
    AgentId, Amount, AtLimit, Budget, Holder, LeaseId, Measure, Millis, Pool, PoolKind, Refill, ResourceName,
    Resources, RunId, Take, Takes, TaskId,
};
use serde::{Deserialize, Serialize};

use crate::usage::{Due, Usage};

/// How many acquisitions that are over are remembered: a request for one of them that was held up must not acquire anew.
const MAX_OVER: usize = 10_000;

/// Whose acquisition, and what its holder calls it.
pub(crate) type Key = (Holder, String);

/// The pools, and what is held of them without a task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Kept", into = "Kept")]
pub(crate) struct Pools {
    pools: Shelves<ResourceName, Arc<Stock>>,
    acquisitions: Shelves<LeaseId, Arc<Acquisition>>,
    /// Acquisitions that are over: the latest.
    over: Shelves<LeaseId, Arc<Key>>,
    // What follows from those.
    keys: Shelves<Key, Known>,
    expiries: ShelfSet<(Millis, LeaseId)>,
    of_agent: Shelves<AgentId, Arc<BTreeSet<LeaseId>>>,
    under: Shelves<LeaseId, Arc<BTreeSet<LeaseId>>>,
    due: Due,
}

/// What of [`Pools`] a snapshot keeps.
#[derive(Serialize, Deserialize)]
struct Kept {
    pools: Shelves<ResourceName, Arc<Stock>>,
    acquisitions: Shelves<LeaseId, Arc<Acquisition>>,
    over: Shelves<LeaseId, Arc<Key>>,
}

/// What is known of an acquisition by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is held.
    Held(LeaseId),
    /// It was.
    Over(LeaseId),
}

/// A pool, and what is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stock {
    pub(crate) pool: Pool,
    /// Of a held pool what is held (of a lock, how many shares), of a consumed one what is reserved, here and in its parts.
    pub(crate) in_use: Amount,
    /// How many leases hold something of it, or of its parts.
    pub(crate) leases: u64,
    /// Whether one of them has it alone.
    pub(crate) exclusive: bool,
    /// What of a consumed pool is used up.
    pub(crate) spent: Amount,
    /// What was used beyond what there was.
    pub(crate) overrun: Amount,
    /// What was in a refilled pool at that time.
    level: Amount,
    at: Millis,
    /// What it was getting then, as a part of the ninth decimal place: so many of the refill's milliseconds.
    part: u64,
    /// Grows whenever somebody who waits for it may be served.
    pub(crate) freed: u64,
    /// What somebody is asked to give more for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) asked: Option<Wish>,
    /// Why nothing can be taken of it at all: of an account that a run was to have, and can not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) broken: Option<String>,
    /// What is said of how much of it is used.
    #[serde(default, skip_serializing_if = "Usage::is_nothing")]
    pub(crate) usage: Usage,
}

/// What somebody is asked to give an account more for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wish {
    pub(crate) wanted: Amount,
    pub(crate) task: Option<TaskId>,
    pub(crate) since: Millis,
}

/// Something that is held without a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Acquisition {
    pub(crate) id: String,
    pub(crate) holder: Holder,
    pub(crate) takes: Takes,
    pub(crate) ttl_ms: Millis,
    pub(crate) since: Millis,
    pub(crate) expires_at: Millis,
    pub(crate) under: Option<LeaseId>,
}

/// What is needed of one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Need {
    pub(crate) amount: Amount,
    pub(crate) exclusive: bool,
}

/// What is needed of each pool, those included that others are a part of.
pub(crate) type Needs = BTreeMap<ResourceName, Need>;

/// A pool that has not enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lack {
    pub(crate) pool: ResourceName,
    pub(crate) why: Why,
}

/// Why a pool has not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// More is wanted than it ever has.
    Never,
    /// Somebody must give back first.
    InUse,
    /// It will have enough after so many milliseconds.
    After(Millis),
}

impl Stock {
    fn new(pool: Pool, at: Millis) -> Self {
        let level = pool.size.unwrap_or_default();
        let nothing = Amount::ZERO;
        Self {
            pool,
            in_use: nothing,
            leases: 0,
            exclusive: false,
            spent: nothing,
            overrun: nothing,
            level,
            at,
            part: 0,
            freed: 0,
            asked: None,
            broken: None,
            usage: Usage::default(),
        }
    }

    /// What is in a refilled pool at that time, and the part of the ninth decimal place.
    fn level_at(&self, now: Millis) -> (Amount, u64) {
        let Some(Refill { amount, every_ms }) = self.pool.refill else { return (self.level, 0) };
        let (size, every) = (self.pool.size.unwrap_or_default(), u128::from(every_ms.max(1)));
        let gone_by = u128::from(now.saturating_sub(self.at));
        let faster = 1 + u128::from(is_planted(Bug::RefilledTooFast));
        let got = gone_by.saturating_mul(amount.nanos()).saturating_mul(faster).saturating_add(self.part.into());
        let level = self.level + Amount::from_nanos(got / every);
        if level >= size { (size, 0) } else { (level, u64::try_from(got % every).unwrap_or(0)) }
    }

    fn refill(&mut self, now: Millis) {
        if self.pool.kind == PoolKind::Refilled {
            (self.level, self.part) = self.level_at(now);
            self.at = self.at.max(now);
        }
    }

    /// How much could be taken at that time; none of a lock.
    pub(crate) fn available(&self, now: Millis) -> Option<Amount> {
        let size = self.pool.size?;
        Some(match self.pool.kind {
            PoolKind::Held if self.exclusive => Amount::ZERO,
            PoolKind::Held => size - self.in_use,
            PoolKind::Refilled => self.level_at(now).0,
            PoolKind::Consumed => size - self.in_use - self.spent,
        })
    }

    /// Which share of it is in use, from 0 to 1; of a lock, how many shares, and more than any number where one has it alone.
    fn load(&self, now: Millis) -> Amount {
        match (self.exclusive, self.pool.size, self.available(now)) {
            (true, _, _) => Amount::from(u32::MAX),
            (false, Some(size), Some(available)) if !size.is_zero() => {
                let used = (size - available).get().checked_div(size.get());
                used.and_then(|used| Amount::new(used).ok()).unwrap_or_default()
            }
            (false, Some(_), _) => Amount::from(1),
            (false, None, _) => self.in_use,
        }
    }

    /// Why that can not be taken, if it can not.
    fn lacks(&self, need: Need, now: Millis) -> Option<Why> {
        if is_planted(Bug::PoolsNotCounted) {
            return None;
        }
        if self.broken.is_some() {
            return Some(Why::Never);
        }
        if need.exclusive {
            return (self.leases > 0 && !is_planted(Bug::LockNotExclusive)).then_some(Why::InUse);
        }
        if self.exclusive {
            return Some(Why::InUse);
        }
        let (size, available) = (self.pool.size?, self.available(now)?);
        if need.amount > size {
            // Unless somebody gives it more.
            return Some(if self.pool.at_limit == AtLimit::Ask { Why::InUse } else { Why::Never });
        }
        if need.amount <= available {
            return None;
        }
        Some(match self.pool.refill {
            Some(Refill { amount, every_ms }) => {
                let (level, part) = self.level_at(now);
                let missing = (need.amount - level).nanos().saturating_mul(every_ms.into()).saturating_sub(part.into());
                Why::After(u64::try_from(missing.div_ceil(amount.nanos().max(1))).unwrap_or(u64::MAX))
            }
            None => Why::InUse,
        })
    }

    fn take(&mut self, need: Need, at: Millis) {
        self.refill(at);
        // Of a refilled pool too, which nothing is given back to: while somebody names it, another of its name and of another
        // kind would be given back what was never taken of it.
        self.leases += 1;
        match self.pool.kind {
            PoolKind::Held | PoolKind::Consumed => {
                self.exclusive |= need.exclusive;
                self.in_use = self.in_use + need.amount;
            }
            PoolKind::Refilled => self.level = self.level - need.amount,
        }
    }

    /// What was taken is not held any more.
    fn give_back(&mut self, need: Need) {
        self.leases = self.leases.saturating_sub(1);
        if self.pool.kind != PoolKind::Refilled {
            self.exclusive &= !need.exclusive;
            self.in_use = self.in_use - need.amount;
            self.freed += 1;
        }
    }

    /// Whether who wants more than it has must go without.
    pub(crate) fn fails(&self) -> bool {
        self.broken.is_some() || self.pool.at_limit == AtLimit::Fail
    }

    /// Whether it is money.
    pub(crate) fn is_account(&self) -> bool {
        self.pool.measure == Some(Measure::Cost)
    }

    /// What that is of it: of a lock any amount is one share.
    fn need(&self, take: Take) -> Need {
        match take {
            Take::Exclusive => Need { amount: Amount::ZERO, exclusive: true },
            Take::Amount(_) if self.pool.is_lock() => Need { amount: Amount::from(1), exclusive: false },
            Take::Amount(amount) => Need { amount: amount.rounded_up(), exclusive: false },
        }
    }
}

impl Pools {
    pub(crate) fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    pub(crate) fn get(&self, name: &ResourceName) -> Option<&Stock> {
        self.pools.get(name).map(Arc::as_ref)
    }

    /// All pools, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ResourceName, &Stock)> {
        self.pools.iter().map(|(name, stock)| (name, stock.as_ref()))
    }

    /// All that is held without a task, the oldest first.
    pub(crate) fn acquisitions(&self) -> impl Iterator<Item = (LeaseId, &Acquisition)> {
        self.acquisitions.iter().map(|(lease, acquisition)| (*lease, acquisition.as_ref()))
    }

    pub(crate) fn acquisition(&self, lease: LeaseId) -> Option<&Acquisition> {
        self.acquisitions.get(&lease).map(Arc::as_ref)
    }

    /// What is known of an acquisition.
    pub(crate) fn known(&self, key: &Key) -> Option<Known> {
        self.keys.get(key).copied().filter(|known| !matches!(known, Known::Over(_)) || !is_planted(Bug::AcquiredTwice))
    }

    /// Whether an acquisition was, and is over.
    pub(crate) fn is_over(&self, lease: LeaseId) -> bool {
        self.over.contains_key(&lease)
    }

    /// Whose time is up, the first first.
    pub(crate) fn next_expiry(&self) -> Option<(Millis, LeaseId)> {
        self.expiries.first().copied()
    }

    /// The pool and those that it is a part of.
    pub(crate) fn line<'a>(&'a self, name: &'a ResourceName) -> impl Iterator<Item = (&'a ResourceName, &'a Stock)> {
        let find = |name: &'a ResourceName| Some((name, self.get(name)?));
        let parent = |stock: &'a Stock| stock.pool.parent.as_ref().filter(|_| !is_planted(Bug::ParentNotCharged));
        std::iter::successors(find(name), move |(_, stock)| find(parent(stock)?)).take(MAX_DEPTH)
    }

    /// The pools that are a part of one.
    pub(crate) fn parts_of(&self, name: &ResourceName) -> impl Iterator<Item = &ResourceName> {
        self.iter().filter(move |(_, stock)| stock.pool.parent.as_ref() == Some(name)).map(|(name, _)| name)
    }

    /// What that needs of each pool; the first name that is none's, where there is one.
    pub(crate) fn needs(&self, takes: &Takes) -> Result<Needs, ResourceName> {
        match takes.keys().find(|name| self.get(name).is_none()) {
            Some(unknown) => Err(unknown.clone()),
            None => Ok(self.needs_of(takes)),
        }
    }

    /// What that needs of each pool that there is.
    fn needs_of(&self, takes: &Takes) -> Needs {
        let mut needs = Needs::new();
        for (name, take) in takes {
            let Some(stock) = self.get(name) else { continue };
            let (need, is_account) = (stock.need(*take), stock.is_account());
            for (name, _) in self.line(name) {
                let sum = needs.entry(name.clone()).or_default();
                let once = is_account && !is_planted(Bug::CostChargedTwice);
                sum.amount = if once { sum.amount.max(need.amount) } else { sum.amount + need.amount };
                sum.exclusive |= need.exclusive;
            }
        }
        needs
    }

    /// The consumed pool that has not enough, and that would not have enough if all that is set aside of it came back unused:
    /// the one that says most firmly what becomes of who wants it.
    pub(crate) fn at_limit<'a>(&'a self, needs: &'a Needs) -> Option<(&'a ResourceName, &'a Stock)> {
        let lacking = needs.iter().filter_map(|(name, need)| {
            let stock = self.get(name).filter(|stock| stock.pool.kind == PoolKind::Consumed)?;
            let size = stock.pool.size.unwrap_or_default();
            let short = stock.broken.is_some() || need.amount + stock.spent > size;
            short.then_some((name, stock))
        });
        lacking.max_by_key(|(_, stock)| match (&stock.broken, stock.pool.at_limit) {
            (Some(_), _) => 3,
            (None, AtLimit::Fail) => 2,
            (None, AtLimit::Ask) => 1,
            (None, AtLimit::Wait) => 0,
        })
    }

    /// The currency of the accounts that there are.
    pub(crate) fn currency(&self) -> Option<&String> {
        self.iter().find_map(|(_, stock)| stock.pool.currency.as_ref())
    }

    /// Which pool has not enough, if one has not: one that never will, then one that is in use, then the one that takes
    /// longest to fill up.
    pub(crate) fn lacks(&self, needs: &Needs, now: Millis) -> Option<Lack> {
        let weight = |lack: &Lack| match lack.why {
            Why::Never => (2, 0),
            Why::InUse => (1, 0),
            Why::After(ms) => (0, ms),
        };
        let lack = |(name, need): (&ResourceName, &Need)| {
            Some(Lack { pool: name.clone(), why: self.get(name)?.lacks(*need, now)? })
        };
        needs.iter().filter_map(lack).max_by_key(weight)
    }

    /// The one of these that is least in use.
    pub(crate) fn least_loaded<'a>(&self, of: &'a [ResourceName], now: Millis) -> Option<&'a ResourceName> {
        of.iter().min_by_key(|name| self.get(name).map(|stock| stock.load(now)))
    }

    /// Of which pools it is to be said how much of them is used.
    pub(crate) fn due(&self) -> &Due {
        &self.due
    }

    // The fold.

    pub(crate) fn set(&mut self, stamp: Stamp, record: &PoolSet) {
        let PoolSet { name, pool } = record;
        if let Some(stock) = self.pools.change(name) {
            stock.refill(stamp.at);
            stock.pool.clone_from(pool);
            stock.asked = None;
            // What the remainder is a part of may be another time now.
            (stock.level, stock.part) = (stock.level.min(pool.size.unwrap_or_default()), 0);
            stock.freed += 1;
            self.due.look(name, stock, stamp.at);
            return;
        }
        self.pools.insert(name.clone(), Arc::new(Stock::new(pool.clone(), stamp.at)));
    }

    pub(crate) fn remove(&mut self, name: &ResourceName) {
        if let Some(stock) = self.pools.remove(name) {
            self.due.gone(name, &stock);
        }
    }

    /// What is said of how much of a pool is used has changed.
    pub(crate) fn said(&mut self, at: Millis, name: &str, said: Option<AlertSeverity>) {
        if let Ok(name) = ResourceName::new(name)
            && let Some(stock) = self.pools.change(&name)
        {
            self.due.said(&name, stock, said, at);
        }
    }

    /// What was said of how much of a pool is used was forgotten.
    pub(crate) fn forgotten(&mut self, at: Millis, name: &str) {
        if let Ok(name) = ResourceName::new(name)
            && let Some(stock) = self.pools.change(&name)
        {
            self.due.forgotten(&name, stock, at);
        }
    }

    /// A run begins that may cost so much: it has an account from now on.
    pub(crate) fn run_started(&mut self, at: Millis, run: RunId, budget: &Budget) {
        let Some(mut pool) = budget.pool() else { return };
        let mut broken = None;
        match &budget.of {
            Some(of) => match self.get(of) {
                Some(stock) if stock.is_account() && self.line(of).count() < MAX_DEPTH => {
                    pool.currency.clone_from(&stock.pool.currency);
                }
                Some(stock) if stock.is_account() => {
                    broken = Some(format!("account {of} is part of too many others"));
                }
                Some(_) => broken = Some(format!("pool {of} is no account: it is not measured by cost")),
                None => broken = Some(format!("there is no account {of}")),
            },
            None => {
                if let (Some(ours), Some(its)) = (self.currency(), &pool.currency)
                    && ours != its
                {
                    broken = Some(format!("its budget is in {its}, and accounts are in {ours} here"));
                }
            }
        }
        if broken.is_some() {
            (pool.parent, pool.currency) = (None, None);
        }
        let stock = Stock { broken, ..Stock::new(pool, at) };
        self.pools.insert(run_account(run), Arc::new(stock));
    }

    /// A run is over, and so is its account. What was spent of it stays spent of those that it was a part of.
    pub(crate) fn run_finished(&mut self, run: RunId) {
        if !self.pools.is_empty() && !is_planted(Bug::AccountOutlivesRun) {
            self.pools.remove(&run_account(run));
        }
    }

    /// Somebody is asked whether an account gets more.
    pub(crate) fn approval_asked(&mut self, at: Millis, record: &ApprovalAsked) {
        let ApprovalAsked { account, wanted, task } = record;
        if let Some(stock) = self.pools.change(account) {
            stock.asked = Some(Wish { wanted: *wanted, task: task.clone(), since: at });
        }
    }

    /// An account gets no more.
    pub(crate) fn refused(&mut self, record: &BudgetRefused) {
        // A task that goes without is asked for nowhere else either.
        let concerns = |(name, stock): &(&ResourceName, &Arc<Stock>)| {
            let asked = stock.asked.as_ref().is_some_and(|asked| asked.task == record.task);
            asked && (record.task.is_some() || **name == record.account)
        };
        let names: Vec<_> = self.pools.iter().filter(concerns).map(|(name, _)| name.clone()).collect();
        for name in names {
            if let Some(stock) = self.pools.change(&name) {
                stock.asked = None;
            }
        }
    }

    /// A task has what it needs, or needs it no more: nobody is asked for it any more.
    pub(crate) fn forget_wishes(&mut self, task: &TaskId, takes: &Takes) {
        for name in self.needs_of(takes).into_keys() {
            let asked = self.get(&name).and_then(|stock| stock.asked.as_ref()?.task.as_ref());
            if asked == Some(task)
                && let Some(stock) = self.pools.change(&name)
            {
                stock.asked = None;
            }
        }
    }

    pub(crate) fn acquired(&mut self, lease: LeaseId, at: Millis, record: &Acquired) {
        let Acquired { id, holder, takes, ttl_ms, under } = record.clone();
        self.take(&takes, at);
        let expires_at = at.saturating_add(ttl_ms);
        let acquisition = Acquisition { id, holder, takes, ttl_ms, since: at, expires_at, under };
        self.hold(lease, &acquisition);
        self.acquisitions.insert(lease, Arc::new(acquisition));
    }

    fn hold(&mut self, lease: LeaseId, held: &Acquisition) {
        self.keys.insert((held.holder.clone(), held.id.clone()), Known::Held(lease));
        self.expiries.insert((held.expires_at, lease));
        if let Holder::Agent(agent) = &held.holder {
            Arc::make_mut(self.of_agent.get_or_insert_with(agent, Arc::default)).insert(lease);
        }
        if let Some(under) = &held.under {
            Arc::make_mut(self.under.get_or_insert_with(under, Arc::default)).insert(lease);
        }
    }

    pub(crate) fn renewed(&mut self, at: Millis, record: &Renewed) {
        let Some(held) = self.acquisitions.change(&record.lease) else { return };
        self.expiries.remove(&(held.expires_at, record.lease));
        held.ttl_ms = record.ttl_ms;
        held.expires_at = at.saturating_add(record.ttl_ms);
        self.expiries.insert((held.expires_at, record.lease));
    }

    pub(crate) fn released(&mut self, at: Millis, record: &Released) {
        let all_used = record.reason == ReleaseReason::Released;
        self.end(record.lease, at, |name, taken| record.used.get(name).copied().or_else(|| all_used.then_some(taken)));
    }

    /// What an agent holds ends.
    pub(crate) fn end_all_of(&mut self, at: Millis, agent: &AgentId) {
        if let Some(leases) =
            self.of_agent.get(agent).map(Arc::clone).filter(|_| !is_planted(Bug::AcquisitionOutlivesAgent))
        {
            leases.iter().for_each(|lease| self.end(*lease, at, |_, _| None));
        }
    }

    /// A task's lease has ended, and with it what was acquired under it.
    pub(crate) fn end_under(&mut self, at: Millis, task: LeaseId) {
        if self.under.is_empty() || is_planted(Bug::AcquisitionOutlivesTask) {
            return;
        }
        if let Some(leases) = self.under.get(&task).map(Arc::clone) {
            leases.iter().for_each(|lease| self.end(*lease, at, |_, _| None));
        }
    }

    fn end(&mut self, lease: LeaseId, at: Millis, used: impl Fn(&ResourceName, Amount) -> Option<Amount>) {
        let Some(held) = self.acquisitions.remove(&lease) else { return };
        self.give_back_named(&held.takes, at, |name, _, taken| used(name, taken));
        self.expiries.remove(&(held.expires_at, lease));
        if let Holder::Agent(agent) = &held.holder {
            forget(&mut self.of_agent, agent, lease);
        }
        if let Some(under) = &held.under {
            forget(&mut self.under, under, lease);
        }
        let key = (held.holder.clone(), held.id.clone());
        self.keys.insert(key.clone(), Known::Over(lease));
        self.over.insert(lease, Arc::new(key));
        if self.over.len() > MAX_OVER
            && let Some((oldest, key)) = self.over.pop_first()
            && self.keys.get(&*key) == Some(&Known::Over(oldest))
        {
            self.keys.remove(&*key);
        }
    }

    /// Takes that, whether it is there or not: who decided has looked.
    pub(crate) fn take(&mut self, takes: &Takes, at: Millis) {
        for (name, need) in self.needs_of(takes) {
            if let Some(stock) = self.pools.change(&name) {
                stock.take(need, at);
                self.due.look(&name, stock, at);
            }
        }
    }

    /// Whoever pays for a task is another one: what is set aside in accounts moves. What there is of other pools stays as it is.
    pub(crate) fn pay_instead(&mut self, before: &Takes, after: &Takes, at: Millis) {
        let accounts = |pools: &Self, takes: &Takes| -> Takes {
            let of_accounts = takes.iter().filter(|(name, _)| pools.get(name).is_some_and(Stock::is_account));
            of_accounts.map(|(name, take)| (name.clone(), *take)).collect()
        };
        let (before, after) = (accounts(self, before), accounts(self, after));
        self.give_back(&before, at, |_, _| None);
        self.take(&after, at);
    }

    /// Which account has not enough to pay for a task in place of another one, if one has not.
    pub(crate) fn lacks_instead(&self, before: &Takes, after: &Takes, now: Millis) -> Option<(Needs, Lack)> {
        // A clone costs little, and what is left when one has given back is nowhere worked out twice.
        let mut then = self.clone();
        then.pay_instead(before, &Takes::new(), now);
        let of_accounts = after.iter().filter(|(name, _)| self.get(name).is_some_and(Stock::is_account));
        let needs = then.needs_of(&of_accounts.map(|(name, take)| (name.clone(), *take)).collect());
        let lack = then.lacks(&needs, now)?;
        Some((needs, lack))
    }

    /// Gives back what was taken; `used` says what of a consumed pool was used, of how much.
    pub(crate) fn give_back(&mut self, takes: &Takes, at: Millis, used: impl Fn(&Pool, Amount) -> Option<Amount>) {
        self.give_back_named(takes, at, |_, pool, taken| used(pool, taken));
    }

    fn give_back_named(
        &mut self,
        takes: &Takes,
        at: Millis,
        used: impl Fn(&ResourceName, &Pool, Amount) -> Option<Amount>,
    ) {
        for (name, need) in self.needs_of(takes) {
            if let Some(stock) = self.pools.change(&name)
                && !(stock.pool.kind == PoolKind::Consumed && is_planted(Bug::NotGivenBack))
            {
                stock.give_back(need);
                self.due.look(&name, stock, at);
            }
        }
        // Only now, so that what is still set aside for the same lease is not in the way.
        let mut charged = BTreeMap::new();
        for (name, take) in takes {
            let Some(stock) = self.get(name).filter(|stock| stock.pool.kind == PoolKind::Consumed) else { continue };
            let used = used(name, &stock.pool, stock.need(*take).amount).unwrap_or_default().rounded_up();
            // Only what is paid in money is one and the same for all of them.
            let mut alone = BTreeMap::new();
            let once = stock.is_account() && !is_planted(Bug::CostChargedTwice);
            self.spend(name, at, used, if once { &mut charged } else { &mut alone });
        }
    }

    /// Spends what was used, of what there is in the whole line; what goes beyond is noted where it was used. What the accounts
    /// were charged for the same lease already counts.
    fn spend(&mut self, name: &ResourceName, at: Millis, used: Amount, charged: &mut BTreeMap<ResourceName, Amount>) {
        let line = self.names(name);
        let was = charged.clone();
        let was = |name: &ResourceName| was.get(name).copied().unwrap_or_default();
        let there_is = line.iter().filter_map(|name| Some(self.get(name)?.available(0)? + was(name))).min();
        let spent = used.min(there_is.unwrap_or_default());
        for name in line {
            let before = was(&name);
            if let Some(stock) = self.pools.change(&name) {
                stock.spent = stock.spent + (spent - before);
                self.due.look(&name, stock, at);
            }
            charged.insert(name, spent.max(before));
        }
        if let Some(stock) = self.pools.change(name) {
            stock.overrun = stock.overrun + (used - spent);
        }
    }

    fn names(&self, name: &ResourceName) -> Vec<ResourceName> {
        self.line(name).map(|(name, _)| name.clone()).collect()
    }

    /// What of a task's needs is of pools, and what of the agent's own.
    pub(crate) fn split(&self, resources: &Resources) -> (Resources, Resources) {
        amount::split(resources, |name| self.pools.contains_key(name))
    }
}

/// What a task's report says of what it used of a consumed pool. Where an attempt was lost, cancelled or out of time nobody
/// knows, and nothing counts.
pub(crate) fn used(report: &StageEnded, pool: &Pool, taken: Amount) -> Option<Amount> {
    let succeeded = matches!(report.outcome, Outcome::Succeeded | Outcome::Delegated);
    if !succeeded && report.outcome != Outcome::Failed {
        return None;
    }
    match pool.measure {
        None => succeeded.then_some(taken),
        Some(Measure::Cost) => Amount::new(report.cost.get()).ok().map(|cost| cost.min(largest())),
        Some(Measure::Tokens) => Some(Amount::from_nanos(
            (u128::from(report.usage.tokens_in) + u128::from(report.usage.tokens_out)).min(MAX_SIZE.into()) * NANOS,
        )),
        Some(Measure::DurationMs) => Some(Amount::from_nanos(u128::from(report.duration_ms.min(MAX_SIZE)) * NANOS)),
    }
}

/// The ninth decimal place.
const NANOS: u128 = 1_000_000_000;

fn largest() -> Amount {
    Amount::from_nanos(u128::from(MAX_SIZE) * NANOS)
}

/// What a task takes of pools.
pub(crate) fn takes(resources: &Resources) -> Takes {
    resources.iter().map(|(name, amount)| (name.clone(), Take::Amount(*amount))).collect()
}

fn forget<K: Ord + Clone>(index: &mut Shelves<K, Arc<BTreeSet<LeaseId>>>, key: &K, lease: LeaseId) {
    if let Some(leases) = index.change(key) {
        leases.remove(&lease);
        if leases.is_empty() {
            index.remove(key);
        }
    }
}

impl From<Kept> for Pools {
    fn from(kept: Kept) -> Self {
        let mut all = Self::default();
        for (lease, key) in kept.over.iter() {
            all.keys.insert(Key::clone(key), Known::Over(*lease));
        }
        for (lease, held) in kept.acquisitions.iter() {
            all.hold(*lease, held);
        }
        for (name, stock) in kept.pools.iter() {
            all.due.put(name, stock);
        }
        Self { pools: kept.pools, acquisitions: kept.acquisitions, over: kept.over, ..all }
    }
}

impl From<Pools> for Kept {
    fn from(all: Pools) -> Self {
        Self { pools: all.pools, acquisitions: all.acquisitions, over: all.over }
    }
}
