//! The rules of pools: what is held of them, by whom and until when.
//!
//! Unlike the rest of the facts, this is folded in the order in which the resource-manager took it: a task's end counts from the
//! first of its records on that was written after it had read of it. Nothing is kept up to date bit by bit: what is in use is
//! summed up anew from who holds what, whenever it matters: that is one side of the books, and what the resource-manager shows
//! is the other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use baton_protocol::budget::{agent_account, is_of_run, least, run_account};
use baton_protocol::record::{
    Acquired, ApprovalAsked, BudgetRefused, Outcome, PoolSet, ReleaseReason, Released, Renewed, StageEnded, Stamp,
};
use baton_protocol::request::{Acquire, PoolList, PoolView, Spending};
use baton_protocol::{
    AgentId, Amount, AtLimit, Budget, Holder, LeaseId, Measure, Millis, Money, Pool, PoolKind, ResourceName, Resources,
    RunId, Take, Takes, TaskId,
};

use super::{Checked, Facts, broken, hold};
use crate::coverage::Branch;

const POOL: &str = "no more of a pool is held than it has, and what somebody has alone nobody else has";
const ACCOUNTS: &str = "what is spent and set aside never exceeds an account, nor any that it is a part of";
const ONCE: &str = "an acquisition is made once, and ends once";
const END: &str = "no lease is without end";
const PAYS: &str = "whoever holds a task pays for it";
const LIMIT: &str = "at its limit an account does what it says: it lets wait, fails or asks";

/// What there is of pools.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    pools: BTreeMap<ResourceName, Stock>,
    /// Where in the log each was made.
    since: BTreeMap<ResourceName, u64>,
    held: BTreeMap<LeaseId, Held>,
    /// All acquisitions that ever were.
    ids: BTreeMap<(Holder, String), LeaseId>,
    over: BTreeSet<LeaseId>,
    /// What the resource-manager may not have read yet, and where in the log that is.
    unread: VecDeque<(Place, Unread)>,
    /// How many of these there were.
    places: u64,
    /// Where in the log tasks ended, by the lease that they had, and how: also of those that held nothing of pools, which may be in
    /// other hands by then.
    ends: BTreeMap<LeaseId, (Place, End)>,
    /// What all tasks cost, and how many said so.
    paid: (u128, u64),
    /// Tasks that are to fail for want of money, and on what virtual microsecond that was said.
    pub(super) unpaid: BTreeMap<TaskId, (u64, u64)>,
    /// Accounts that somebody said get no more.
    denied: BTreeSet<ResourceName>,
    /// Held pools of which at least so many per cent are in use: by the resource-manager's clock since when, and on what virtual
    /// microsecond that began.
    above: BTreeMap<(ResourceName, u128), (Millis, u64)>,
    /// The message with the last change.
    changed: u64,
    /// Virtual time of it, in microseconds.
    pub(super) changed_on: u64,
}

/// A message of the log, and the order within it.
type Place = (u64, u64);

/// What the workflow-manager said.
#[derive(Debug, Clone)]
enum Unread {
    /// A task's lease has ended.
    Ended(LeaseId, End),
    /// A run has a budget.
    Started(RunId, Budget, Millis),
    /// It is over.
    Finished(RunId),
    /// A task has ended: nobody is asked for it any more.
    Settled(TaskId),
}

/// How a task ended, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq)]
struct End {
    succeeded: bool,
    /// What it cost, if its agent said so.
    cost: Option<Money>,
}

impl End {
    const LOST: Self = Self { succeeded: false, cost: None };

    fn used(self, pool: &Pool, taken: Amount) -> Option<Amount> {
        match pool.measure {
            None => self.succeeded.then_some(taken),
            Some(_) => self.cost.and_then(|cost| Amount::new(cost.get()).ok()),
        }
    }
}

#[derive(Debug)]
struct Stock {
    pool: Pool,
    /// What is spent of it and its parts.
    spent: u128,
    /// Somebody is asked to give more; for which task, if it is one.
    asked: Option<Option<TaskId>>,
    /// A run was to have it, and can not have it.
    broken: bool,
    /// Of a refilled pool, in units so small that the refill is a whole number of them each millisecond.
    level: u128,
    at: Millis,
}

#[derive(Debug)]
struct Held {
    takes: Takes,
    agent: Option<AgentId>,
    /// The lease of the task that it is for; of a task's own, that lease.
    under: Option<LeaseId>,
    /// Until when, and when that was said, in virtual microseconds; none of a task's.
    expires: Option<(Millis, Millis, u64)>,
}

impl Stock {
    fn size(&self) -> u128 {
        self.pool.size.map_or(u128::MAX, Amount::nanos)
    }

    fn is_account(&self) -> bool {
        self.pool.measure == Some(Measure::Cost)
    }

    fn every(&self) -> u128 {
        self.pool.refill.map_or(1, |refill| refill.every_ms.into())
    }

    fn fill(&mut self, at: Millis) {
        if let Some(refill) = self.pool.refill {
            let got = u128::from(at.saturating_sub(self.at)) * refill.amount.nanos();
            self.level = (self.level + got).min(self.size() * self.every());
            self.at = self.at.max(at);
        }
    }
}

/// What that is of a pool: of a lock any amount is one share.
fn amount(pool: &Pool, take: Take) -> u128 {
    match take {
        Take::Exclusive => 0,
        Take::Amount(_) if pool.is_lock() => Amount::from(1).nanos(),
        Take::Amount(amount) => amount.nanos(),
    }
}

fn takes(resources: &Resources) -> Takes {
    resources.iter().map(|(name, amount)| (name.clone(), Take::Amount(*amount))).collect()
}

impl Pools {
    /// Whether there is a pool of that name.
    pub(crate) fn has(&self, name: &ResourceName) -> bool {
        self.pools.contains_key(name)
    }

    /// Whether there ever was one.
    pub(crate) fn was_set(&self, name: &ResourceName) -> bool {
        self.since.contains_key(name)
    }

    /// Whether there has been one all the time since that message.
    pub(super) fn has_been_since(&self, name: &ResourceName, seq: u64) -> bool {
        self.pools.contains_key(name) && self.since.get(name).is_some_and(|since| *since <= seq)
    }

    /// Whether it is the account of a run whose end is in the log already: who has read of that, and written nothing since, has it
    /// no more.
    pub(super) fn is_over(&self, name: &ResourceName) -> bool {
        self.unread.iter().any(|(_, unread)| matches!(unread, Unread::Finished(run) if run_account(*run) == *name))
    }

    /// Whether the end of the task that a lease is under is in the log already.
    pub(super) fn is_unread(&self, lease: LeaseId) -> bool {
        let under = self.held.get(&lease).and_then(|held| held.under);
        under.is_some_and(|under| {
            self.unread.iter().any(|(_, unread)| matches!(unread, Unread::Ended(ended, _) if *ended == under))
        })
    }

    /// The accounts that somebody is asked to give more.
    pub(crate) fn asking(&self) -> Vec<ResourceName> {
        self.pools.iter().filter(|(_, stock)| stock.asked.is_some()).map(|(name, _)| name.clone()).collect()
    }

    /// Whether it is an account.
    pub(super) fn is_account(&self, name: &ResourceName) -> bool {
        self.pools.get(name).is_some_and(Stock::is_account)
    }

    /// How many acquisitions go on.
    pub(crate) fn alive(&self) -> usize {
        // What was acquired for a task that has ended is over, though the resource-manager may have had nothing to write since.
        self.held.iter().filter(|(lease, held)| held.expires.is_some() && !self.is_unread(**lease)).count()
    }

    fn is_part(&self, name: &ResourceName, of: &ResourceName) -> bool {
        let mut next = Some(name);
        for _ in 0..20 {
            match next {
                Some(name) if name == of => return true,
                Some(name) => next = self.pools.get(name).and_then(|stock| stock.pool.parent.as_ref()),
                None => return false,
            }
        }
        false
    }

    /// What somebody who takes that has of a pool: how much, and whether alone. What is paid from several accounts is paid once
    /// by one that they are parts of.
    fn part_of(&self, takes: &Takes, of: &ResourceName) -> Option<(u128, bool)> {
        let mut part = None;
        for (name, take) in takes {
            let Some(stock) = self.pools.get(name).filter(|_| self.is_part(name, of)) else { continue };
            let (sum, alone) = part.unwrap_or((0, false));
            let amount = amount(&stock.pool, *take);
            let sum = if stock.is_account() { amount.max(sum) } else { amount + sum };
            part = Some((sum, alone || *take == Take::Exclusive));
        }
        part
    }

    /// What is held of a pool or its parts: how much, by how many leases, and whether one has it alone.
    /// Whether something of them is held under a lease.
    pub(super) fn holds(&self, lease: LeaseId) -> bool {
        self.held.contains_key(&lease)
    }

    fn in_use(&self, of: &ResourceName) -> (u128, u64, bool) {
        let refilled = self.pools.get(of).is_some_and(|stock| stock.pool.kind == PoolKind::Refilled);
        let parts: Vec<_> = self.held.values().filter_map(|held| self.part_of(&held.takes, of)).collect();
        let leases = parts.len() as u64;
        if refilled {
            return (0, leases, false);
        }
        (parts.iter().map(|(amount, _)| amount).sum(), leases, parts.iter().any(|(_, alone)| *alone))
    }

    /// How much of a pool is used, in per cent, if that is something to tell: of a held one what is held, of a consumed one what
    /// is spent.
    pub(super) fn used(&self, name: &ResourceName) -> Option<(PoolKind, u128)> {
        let stock = self.pools.get(name).filter(|_| !is_of_run(name))?;
        let size = stock.pool.size?.nanos();
        let used = match stock.pool.kind {
            PoolKind::Held => match self.in_use(name) {
                (_, _, true) => size,
                (sum, _, false) => sum,
            },
            PoolKind::Consumed => stock.spent,
            PoolKind::Refilled => return None,
        };
        Some((stock.pool.kind, (100 * used).checked_div(size).unwrap_or(0)))
    }

    /// Since when so much of a held pool is in use, by the resource-manager's clock.
    pub(super) fn used_since(&self, name: &ResourceName, percent: u128) -> Option<Millis> {
        self.above.get(&(name.clone(), percent)).map(|(at, _)| *at)
    }

    /// The pools of which so much is used that it is to be told, how much that is, and since what virtual microsecond it is so of
    /// those that are held. Nothing of those where that may have changed, and the resource-manager had nothing to write since.
    pub(super) fn to_be_told(&self) -> Vec<(ResourceName, PoolKind, u128, u64)> {
        let unread = self.unread.iter().any(|(_, unread)| matches!(unread, Unread::Ended(..)));
        let of_pool = |name: &ResourceName| {
            let (kind, percent) = self.used(name).filter(|(_, percent)| *percent >= 50)?;
            let since = match kind {
                PoolKind::Held if unread => return None,
                PoolKind::Held => self.above.get(&(name.clone(), 50))?.1,
                PoolKind::Refilled | PoolKind::Consumed => 0,
            };
            Some((name.clone(), kind, percent, since))
        };
        self.pools.keys().filter_map(of_pool).collect()
    }

    /// What is spent of a pool and its parts.
    fn spent(&self, of: &ResourceName) -> u128 {
        self.pools.get(of).map_or(0, |stock| stock.spent)
    }

    /// Whether an account, or one that it is a part of, could not pay that even if all that is set aside came back.
    fn is_beyond(&self, needs: &Resources, of: impl Fn(&Stock) -> bool) -> bool {
        let takes = takes(needs);
        self.pools.iter().any(|(name, stock)| {
            let part = self.part_of(&takes, name).filter(|_| stock.pool.kind == PoolKind::Consumed && of(stock));
            part.is_some_and(|(amount, _)| stock.broken || amount + stock.spent > stock.size())
        })
    }

    /// Whether a task that needs that must fail, or somebody must be asked for more, and is not.
    pub(super) fn must_act(&self, needs: &Resources) -> bool {
        if self.is_beyond(needs, |stock| stock.broken || stock.pool.at_limit == AtLimit::Fail) {
            return true;
        }
        // Whoever is asked is asked for one at a time.
        let asks = |stock: &Stock| stock.pool.at_limit == AtLimit::Ask;
        self.is_beyond(needs, asks) && !self.is_beyond(needs, |stock| asks(stock) && stock.asked.is_some())
    }

    /// Whether nothing was spent that the resource-manager may not have had anything to write about since.
    pub(super) fn is_settled(&self) -> bool {
        let spends =
            |unread: &Unread| matches!(unread, Unread::Ended(_, End { cost: Some(cost), .. }) if !cost.is_zero());
        !self.unread.iter().any(|(_, unread)| spends(unread))
    }

    /// Whether an agent's own account could pay that.
    pub(super) fn can_pay(&self, agent: &AgentId, needs: &Resources, expected: Option<Amount>) -> bool {
        let account = agent_account(agent);
        if !self.pools.get(&account).is_some_and(Stock::is_account) {
            return true;
        }
        let mut needs: Resources =
            needs.iter().filter(|(name, _)| self.has(name)).map(|(name, amount)| (name.clone(), *amount)).collect();
        needs.entry(account).or_insert(expected.filter(|amount| !amount.is_zero()).unwrap_or_else(least));
        self.is_settled() && self.has_room(&needs)
    }

    /// Every pool has what is held of it.
    fn covers(&self) -> Checked {
        for (name, stock) in &self.pools {
            let (sum, leases, alone) = self.in_use(name);
            hold!(!alone || leases == 1, POOL, "{name} is had alone, and by {leases} leases");
            match stock.pool.kind {
                PoolKind::Held => hold!(sum <= stock.size(), POOL, "{sum} of {name} are held, of {}", stock.size()),
                PoolKind::Refilled => {}
                PoolKind::Consumed => {
                    let spent = self.spent(name);
                    let size = stock.size();
                    hold!(sum + spent <= size, ACCOUNTS, "{sum} of {name} are set aside, {spent} spent, of {size}");
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, lease: LeaseId, at: Millis, held: Held) -> Checked {
        for (name, take) in &held.takes {
            let Some(stock) = self.pools.get_mut(name) else {
                return Err(broken(POOL, format!("lease {lease} holds something of {name}, which is no pool")));
            };
            hold!(!stock.broken, LIMIT, "lease {lease} is paid from {name}, which can not be used");
            if stock.pool.kind == PoolKind::Refilled {
                stock.fill(at);
                let needed = amount(&stock.pool, *take) * stock.every();
                hold!(needed <= stock.level, POOL, "lease {lease} takes {take} of {name}, which has {:?}", stock.level);
                stock.level -= needed;
            }
        }
        self.held.insert(lease, held);
        self.covers()
    }

    /// A lease has ended, and what was acquired under it.
    fn end(&mut self, lease: LeaseId, used: impl Fn(&ResourceName, Amount) -> Option<Amount>) -> bool {
        self.end_with(lease, |name, _, taken| used(name, taken))
    }

    fn end_with(&mut self, lease: LeaseId, used: impl Fn(&ResourceName, &Pool, Amount) -> Option<Amount>) -> bool {
        let Some(held) = self.held.remove(&lease) else { return false };
        self.over.insert(lease);
        // What each account was charged for this lease: what it costs, it costs once.
        let mut once: BTreeMap<ResourceName, u128> = BTreeMap::new();
        for (name, take) in &held.takes {
            let Some(stock) = self.pools.get(name).filter(|stock| stock.pool.kind == PoolKind::Consumed) else {
                continue;
            };
            let Take::Amount(taken) = take else { continue };
            let used = used(name, &stock.pool, taken.rounded_up()).unwrap_or_default().nanos();
            let is_account = stock.is_account();
            let line: Vec<_> = self.pools.keys().filter(|other| self.is_part(name, other)).cloned().collect();
            let charged = |name: &ResourceName| if is_account { once.get(name).copied().unwrap_or(0) } else { 0 };
            // What was used beyond what there is, in it or in what it is a part of, is not spent of anything.
            let free = line.iter().map(|other| {
                let size = self.pools.get(other).map_or(0, Stock::size);
                size - self.in_use(other).0 - self.spent(other) + charged(other)
            });
            let spent = used.min(free.min().unwrap_or(0));
            for other in line {
                let before = if is_account { once.get(&other).copied().unwrap_or(0) } else { 0 };
                if let Some(stock) = self.pools.get_mut(&other) {
                    stock.spent += spent.saturating_sub(before);
                }
                if is_account {
                    once.insert(other, spent.max(before));
                }
            }
        }
        true
    }

    fn end_task(&mut self, lease: LeaseId, end: End) {
        let under: Vec<_> = self.held.iter().filter(|(_, held)| held.under == Some(lease)).map(|(id, _)| *id).collect();
        for lease in under {
            self.end(lease, |_, _| None);
        }
        self.end_with(lease, |_, pool, taken| end.used(pool, taken));
    }

    /// A run has an account of its own.
    fn run_started(&mut self, run: RunId, budget: &Budget, at: Millis) {
        let Some(mut pool) = budget.pool() else { return };
        let ours = self.pools.values().find_map(|stock| stock.pool.currency.clone());
        let of = budget.of.as_ref().map(|of| self.pools.get(of).filter(|stock| stock.is_account()));
        let broken = match of {
            Some(None) => true,
            Some(Some(of)) => {
                pool.currency.clone_from(&of.pool.currency);
                false
            }
            None => ours.is_some() && ours != pool.currency,
        };
        if broken {
            (pool.parent, pool.currency) = (None, None);
        }
        let stock = Stock { pool, spent: 0, asked: None, broken, level: 0, at };
        self.pools.insert(run_account(run), stock);
    }

    /// Whether there is enough of that, and has been for a while: nothing was taken or given back lately.
    pub(super) fn has_room(&self, needs: &Resources) -> bool {
        // All that is wanted of a pool together, where several that are wanted are parts of it.
        let takes = takes(needs);
        self.pools.iter().all(|(name, stock)| {
            let Some((wanted, _)) = self.part_of(&takes, name) else { return true };
            let (sum, _, alone) = self.in_use(name);
            let fits = stock.pool.is_lock() || sum + self.spent(name) + wanted <= stock.size();
            !alone && !stock.broken && fits
        })
    }
}

impl Facts {
    /// A place in the log that comes after all that were asked for before.
    fn pools_place(&mut self) -> Place {
        self.pools.places += 1;
        (self.seq, self.pools.places)
    }

    /// The resource-manager has read so far when it wrote what follows.
    pub(super) fn pools_read(&mut self, seen: u64) {
        while let Some((_, unread)) = self.pools.unread.pop_front_if(|((seq, _), _)| *seq <= seen) {
            // A list that was made before may reach who asked after.
            if !matches!(unread, Unread::Settled(_)) {
                self.pools.changed = self.seq;
            }
            match unread {
                Unread::Ended(lease, end) => self.pools.end_task(lease, end),
                Unread::Started(run, budget, at) => self.pools.run_started(run, &budget, at),
                Unread::Finished(run) => {
                    self.pools.pools.remove(&run_account(run));
                }
                Unread::Settled(task) => self.pools_settled(&task),
            }
            // What is in use only falls here.
            self.pools_used(0);
        }
    }

    /// Notes of which pools how much is used, as of this time of the resource-manager's.
    pub(super) fn pools_used(&mut self, at: Millis) {
        let pools = &mut self.pools;
        let held: Vec<_> = pools.pools.iter().filter(|(_, stock)| stock.pool.kind == PoolKind::Held).collect();
        let held: Vec<_> = held.into_iter().map(|(name, _)| (name.clone(), pools.used(name))).collect();
        pools.above.retain(|(name, _), _| pools.pools.contains_key(name));
        for (name, used) in held {
            let percent = used.map_or(0, |(_, percent)| percent);
            for least in [50, 80, 100] {
                if percent >= least {
                    pools.above.entry((name.clone(), least)).or_insert((at, self.now));
                } else {
                    pools.above.remove(&(name.clone(), least));
                }
            }
        }
    }

    /// A run with a budget began here in the log.
    pub(super) fn pools_run_started(&mut self, stamp: Stamp, run: RunId, budget: &Budget) {
        if budget.limit.is_some() {
            let place = self.pools_place();
            self.pools.unread.push_back((place, Unread::Started(run, budget.clone(), stamp.at)));
            self.pools_changed();
        }
    }

    /// A run is over here in the log.
    pub(super) fn pools_run_finished(&mut self, run: RunId) {
        let account = run_account(run);
        let started = |(_, unread): &(Place, Unread)| matches!(unread, Unread::Started(id, ..) if *id == run);
        if self.pools.has(&account) || self.pools.unread.iter().any(started) {
            let place = self.pools_place();
            self.pools.unread.push_back((place, Unread::Finished(run)));
        }
    }

    /// A task's lease ended here in the log, by a record of the workflow-manager.
    pub(super) fn pools_task_ended(&mut self, lease: LeaseId, outcome: Outcome, cost: Money) {
        let succeeded = matches!(outcome, Outcome::Succeeded | Outcome::Delegated);
        let reported = succeeded || outcome == Outcome::Failed;
        let end = End { succeeded, cost: reported.then_some(cost) };
        let place = self.pools_place();
        self.pools.ends.insert(lease, (place, end));
        let concerns = |held: &Held| held.under == Some(lease);
        if self.pools.held.contains_key(&lease) || self.pools.held.values().any(concerns) {
            self.pools.unread.push_back((place, Unread::Ended(lease, end)));
            self.pools_changed();
        }
    }

    /// A task was leased that had ended there in the log.
    pub(super) fn pools_ended_before(&mut self, ended: u64, lease: LeaseId) {
        // In the order of the log: what is read is taken from the front. What ended without a lease held nothing.
        let place = self.pools.ends.get(&lease).map_or((ended, u64::MAX), |(place, _)| *place);
        let at = self.pools.unread.partition_point(|(other, _)| *other <= place);
        self.pools.unread.insert(at, (place, Unread::Ended(lease, End::LOST)));
    }

    /// A task goes to another agent: what it holds of pools goes with it, and what the giver acquired under its lease ends.
    pub(super) fn pools_handed_over(
        &mut self,
        (before, lease): (LeaseId, LeaseId),
        (from, to): (&AgentId, &AgentId),
        instead: Option<&Resources>,
        needs: &Resources,
    ) -> Checked {
        let pools = &mut self.pools;
        let under: Vec<_> =
            pools.held.iter().filter(|(_, held)| held.under == Some(before)).map(|(id, _)| *id).collect();
        for acquired in under {
            pools.end(acquired, |_, _| None);
        }
        // If it has ended in the log, it has so for whoever it is handed to next as well.
        let over = pools.ends.get(&before).copied();
        if let Some(over) = over {
            pools.ends.insert(lease, over);
        }
        if let Some(held) = pools.held.remove(&before) {
            let takes = instead.map_or(held.takes, takes);
            let pays = |agent: &AgentId| takes.contains_key(&agent_account(agent));
            let named = |agent: &AgentId| needs.contains_key(&agent_account(agent));
            hold!(named(from) || !pays(from), PAYS, "{from} has handed lease {before} over, and pays for {lease}");
            let account = pools.is_account(&agent_account(to));
            hold!(pays(to) == (account || named(to)), PAYS, "{to} holds lease {lease}, and takes {takes:?} for it");
            pools.held.insert(lease, Held { agent: Some(to.clone()), takes, ..held });
        } else {
            let account = pools.is_account(&agent_account(to));
            hold!(
                instead.is_some_and(|pools| !pools.is_empty()) == account,
                PAYS,
                "{to} takes {instead:?} for {lease}"
            );
            if let Some(instead) = instead.filter(|pools| !pools.is_empty()) {
                let held = Held { takes: takes(instead), agent: Some(to.clone()), under: None, expires: None };
                pools.held.insert(lease, held);
                // It may have ended in the log, and the resource-manager will read that later.
                if let Some((ended, end)) = over {
                    let at = pools.unread.partition_point(|(other, _)| *other <= ended);
                    pools.unread.insert(at, (ended, Unread::Ended(lease, end)));
                }
            }
        }
        // It may have ended in the log, and the resource-manager will read that later.
        for (_, unread) in &mut pools.unread {
            if let Unread::Ended(of, _) = unread
                && *of == before
            {
                *of = lease;
            }
        }
        self.pools_changed();
        self.pools.covers()
    }

    fn pools_changed(&mut self) {
        (self.pools.changed, self.pools.changed_on) = (self.seq, self.now);
    }

    /// An agent is gone, or begins anew.
    pub(super) fn pools_agent_gone(&mut self, agent: &AgentId) {
        let of_agent = self.pools.held.iter().filter(|(_, held)| held.agent.as_ref() == Some(agent));
        let leases: Vec<_> = of_agent.map(|(lease, _)| *lease).collect();
        if !leases.is_empty() {
            self.pools_changed();
        }
        for lease in leases {
            self.pools.end(lease, |_, _| None);
        }
    }

    /// A task is given back, or its holder is gone.
    pub(super) fn pools_lease_lost(&mut self, lease: LeaseId) {
        self.pools.end_task(lease, End::LOST);
        self.pools_changed();
    }

    pub(super) fn pool_set(&mut self, stamp: Stamp, record: &PoolSet) -> Checked {
        let PoolSet { name, pool } = record;
        self.pools_changed();
        let (size, at) = (pool.size.map_or(0, Amount::nanos), stamp.at);
        let every = pool.refill.map_or(1, |refill| u128::from(refill.every_ms));
        match self.pools.pools.get_mut(name) {
            Some(stock) => {
                // That of a run came without this record.
                self.pools.since.entry(name.clone()).or_insert(self.seq);
                hold!(stock.pool.kind == pool.kind, POOL, "{name} is {} and becomes {}", stock.pool.kind, pool.kind);
                stock.fill(at);
                // The remainder of the last ninth decimal place is given up: the new time may not divide it.
                stock.level = (stock.level / stock.every()).min(size) * every;
                stock.pool = pool.clone();
                stock.asked = None;
            }
            None => {
                self.pools.since.insert(name.clone(), self.seq);
                let (pool, level) = (pool.clone(), size.saturating_mul(every));
                let stock = Stock { pool, spent: 0, asked: None, broken: false, level, at };
                self.pools.pools.insert(name.clone(), stock);
            }
        }
        self.pools.covers()
    }

    pub(super) fn pool_removed(&mut self, name: &ResourceName) -> Checked {
        self.pools_changed();
        let (_, leases, _) = self.pools.in_use(name);
        hold!(leases == 0, POOL, "{name} is removed, and {leases} leases hold something of it");
        // What was spent of a part stays spent of the whole.
        self.pools.pools.remove(name);
        Ok(())
    }

    pub(super) fn acquired(&mut self, stamp: Stamp, record: &Acquired) -> Checked {
        let Acquired { id, holder, takes, ttl_ms, under } = record;
        let lease = LeaseId(stamp.number);
        self.pools_changed();
        let before = self.pools.ids.insert((holder.clone(), id.clone()), lease);
        hold!(before.is_none(), ONCE, "{holder}'s {id} is lease {before:?} and {lease}");
        let agent = match holder {
            Holder::Agent(agent) => {
                let there = self.agents.get(agent).is_some_and(|agent| agent.gone.is_none());
                hold!(there, ONCE, "lease {lease} is {agent}'s, who is not there");
                Some(agent.clone())
            }
            Holder::Client(_) => None,
        };
        if let Some(under) = under {
            let task = self.leases.get(under).filter(|task| Some(&task.agent) == agent.as_ref());
            let right = task.is_some_and(|task| task.lost.is_none() && task.ended.is_none_or(|at| at > stamp.seen));
            hold!(right, ONCE, "lease {lease} is under {under}, which {holder} does not hold");
            self.seen.push(Branch::AcquiredForTask);
        }
        let expires = Some((stamp.at + ttl_ms, *ttl_ms, self.now));
        if takes.values().any(|take| *take == Take::Exclusive) {
            self.seen.push(Branch::LockedAlone);
        }
        self.pools.begin(lease, stamp.at, Held { takes: takes.clone(), agent, under: *under, expires })?;
        if let Some((under, ended)) = under.and_then(|under| Some((under, self.leases.get(&under)?.ended?))) {
            // The task had ended in the log, and the resource-manager will read that later.
            self.pools_ended_before(ended, under);
        }
        Ok(())
    }

    /// A task holds that of pools.
    pub(super) fn pools_assigned(
        &mut self,
        stamp: Stamp,
        lease: LeaseId,
        agent: &AgentId,
        pools: &Resources,
    ) -> Checked {
        if pools.is_empty() {
            return Ok(());
        }
        self.pools_changed();
        self.seen.push(Branch::AssignedFromPool);
        if let Some(task) = self.leases.get(&lease).map(|lease| lease.task.clone()) {
            self.pools_settled(&task);
        }
        let held = Held { takes: takes(pools), agent: Some(agent.clone()), under: None, expires: None };
        self.pools.begin(lease, stamp.at, held)
    }

    pub(super) fn renewed(&mut self, stamp: Stamp, record: &Renewed) -> Checked {
        let now = self.now;
        let held = self.pools.held.get_mut(&record.lease).filter(|held| held.expires.is_some());
        let Some(held) = held else {
            return Err(broken(ONCE, format!("lease {} is renewed and not held", record.lease)));
        };
        held.expires = Some((stamp.at + record.ttl_ms, record.ttl_ms, now));
        Ok(())
    }

    pub(super) fn released(&mut self, stamp: Stamp, record: &Released) -> Checked {
        let Released { lease, pools, reason, used } = record;
        self.pools_changed();
        let Some(held) = self.pools.held.get(lease) else {
            return Err(broken(ONCE, format!("lease {lease} ends and is not held")));
        };
        hold!(held.takes.keys().eq(pools), ONCE, "lease {lease} holds {:?}, not {pools:?}", held.takes);
        let expired = *reason == ReleaseReason::Expired;
        if expired {
            let at = held.expires.map_or(Millis::MAX, |(at, _, _)| at);
            hold!(stamp.at >= at, END, "lease {lease} is said to be over at {}, and is at {at}", stamp.at);
            self.seen.push(Branch::AcquisitionExpired);
        }
        let all = |taken| (!expired).then_some(taken);
        let covered = self.pools.end(*lease, |name, taken| used.get(name).copied().or_else(|| all(taken)));
        hold!(covered, ONCE, "lease {lease} ends twice");
        self.pools.covers()
    }

    /// What is acquired ends when its time is up, in the calm.
    pub(crate) fn acquisitions_end(&self, now: u64) -> Checked {
        let Some(calm) = self.calm else { return Ok(()) };
        for (lease, held) in &self.pools.held {
            let Some((_, ttl_ms, on)) = held.expires.filter(|_| !self.pools.is_unread(*lease)) else { continue };
            let late = now.saturating_sub(on.max(calm)) > ttl_ms * 1000 + super::LATE;
            hold!(!late, END, "lease {lease} goes on, and was given for {ttl_ms} ms");
        }
        Ok(())
    }

    /// Somebody is asked whether an account gets more.
    pub(super) fn approval_asked(&mut self, record: &ApprovalAsked) -> Checked {
        let ApprovalAsked { account, wanted, task } = record;
        self.seen.push(Branch::ApprovalAsked);
        let needs = Resources::from([(account.clone(), *wanted)]);
        let beyond = self.pools.is_beyond(&needs, |stock| stock.pool.at_limit == AtLimit::Ask);
        hold!(beyond, LIMIT, "somebody is asked for more of {account}, for {wanted}, and it has as much");
        // The one that was asked for may have ended: then nobody is asked for it any more.
        let asked = self.pools.pools.get(account).and_then(|stock| stock.asked.clone()).flatten();
        let over = asked.is_some_and(|task| self.attempt(&task).is_none_or(|attempt| attempt.ended.is_some()));
        let stock = self.pools.pools.get_mut(account).filter(|stock| stock.asked.is_none() || over);
        let Some(stock) = stock else {
            return Err(broken(LIMIT, format!("somebody is asked again for more of {account}")));
        };
        stock.asked = Some(task.clone());
        Ok(())
    }

    /// An account has not enough, and somebody must go without.
    pub(super) fn budget_refused(&mut self, stamp: Stamp, record: &BudgetRefused) -> Checked {
        let BudgetRefused { account, task, .. } = record;
        self.seen.push(Branch::BudgetRefused);
        let stock = self.pools.pools.get_mut(account);
        let Some(stock) = stock else { return Err(broken(LIMIT, format!("{account} is no account"))) };
        let was_asked = stock.asked.as_ref() == Some(task) && self.pools.denied.contains(account);
        let fails = stock.broken || stock.pool.at_limit == AtLimit::Fail;
        if stock.asked.as_ref() == Some(task) {
            stock.asked = None;
        }
        let Some(task) = task else {
            hold!(was_asked, LIMIT, "{account} gets no more, and nobody said so");
            return Ok(());
        };
        let Some(attempt) = self.attempt(task).filter(|attempt| attempt.ended.is_none_or(|at| at > stamp.seen)) else {
            return Err(broken(LIMIT, format!("{task} is not paid for, and does not wait")));
        };
        hold!(attempt.lease.is_none(), LIMIT, "{task} is not paid for, and is leased");
        let needs = attempt.resources.clone();
        let fails = fails && self.pools.is_beyond(&needs, |stock| stock.broken || stock.pool.at_limit == AtLimit::Fail);
        hold!(was_asked || fails, LIMIT, "{task} is not paid for, and {account} could pay it or would wait");
        let first = self.pools.unpaid.insert(task.clone(), (self.seq, self.now)).is_none();
        hold!(first, LIMIT, "{task} is refused twice");
        // Nor is anybody asked for it elsewhere any more.
        self.pools_settled(task);
        Ok(())
    }

    /// Somebody says that an account gets no more.
    pub(crate) fn denial_sent(&mut self, account: &ResourceName) {
        self.pools.denied.insert(account.clone());
    }

    /// A task has ended, or has an agent: nobody is asked for it any more.
    fn pools_settled(&mut self, task: &TaskId) {
        for stock in self.pools.pools.values_mut() {
            if stock.asked.as_ref().is_some_and(|asked| asked.as_ref() == Some(task)) {
                stock.asked = None;
                // From now on somebody may be asked for another.
                self.pools.changed_on = self.now;
            }
        }
    }

    /// What is not paid for ends soon, in the calm.
    pub(crate) fn unpaid_end(&self, now: u64) -> Checked {
        let Some(calm) = self.calm else { return Ok(()) };
        for (task, (_, on)) in &self.pools.unpaid {
            let open = self.attempt(task).is_some_and(|attempt| attempt.ended.is_none());
            let late = now.saturating_sub((*on).max(calm)) > super::LATE;
            hold!(!(open && late), LIMIT, "{task} is not paid for, and goes on");
        }
        Ok(())
    }

    /// What is left of an account was shared out.
    pub(super) fn pools_shared(&self, list: &PoolList) -> Checked {
        let left = |view: &PoolView| view.available.map_or(0, Amount::nanos);
        let Some((whole, parts)) = list.pools.split_first() else {
            return Err(broken(ACCOUNTS, "nothing was shared out".to_owned()));
        };
        let given: u128 = parts.iter().map(left).sum();
        hold!(
            given <= left(whole),
            ACCOUNTS,
            "{given} of {} were given out, and {} were left",
            whole.name,
            left(whole)
        );
        Ok(())
    }

    /// Somebody was told what was spent.
    pub(super) fn spending_told(&self, told: &Spending) -> Checked {
        let all = told.rows.iter().map(|row| &row.spent).chain([&told.rest]);
        let (mut cost, mut attempts) = (0, 0);
        for spent in all {
            cost += spent.cost.nanos();
            attempts += spent.attempts;
        }
        let right = told.more || (cost, attempts) == (told.total.cost.nanos(), told.total.attempts);
        hold!(right, ACCOUNTS, "what was spent does not add up: {told:?}");
        let (cost, attempts) = self.pools.paid;
        let known = told.total.cost.nanos() <= cost && told.total.attempts <= attempts;
        hold!(known, super::answers::COMMITTED, "more was spent than was reported: {:?} of {cost}", told.total);
        Ok(())
    }

    /// A task ended, and its agent may have said what it cost.
    pub(super) fn pools_paid(&mut self, record: &StageEnded) {
        if self.pools.pools.values().any(|stock| stock.pool.at_limit == AtLimit::Ask) {
            let place = self.pools_place();
            self.pools.unread.push_back((place, Unread::Settled(record.task.clone())));
        }
        self.paid(record);
    }

    /// Somebody said what it cost.
    pub(super) fn paid(&mut self, record: &StageEnded) {
        if record.agent.is_some() && !(record.cost.is_zero() && record.usage.is_zero()) {
            self.pools.paid.0 += Amount::new(record.cost.get()).map_or(0, Amount::nanos);
            self.pools.paid.1 += 1;
        }
    }

    /// Somebody was told what there is of pools.
    pub(super) fn pools_shown(&self, list: &PoolList, sent: u64) -> Checked {
        // Only where nothing has happened since the question is there but one right answer.
        let over: Vec<_> = self
            .pools
            .unread
            .iter()
            .filter_map(|(_, unread)| match unread {
                Unread::Finished(run) => Some(run_account(*run)),
                Unread::Started(..) | Unread::Ended(..) | Unread::Settled(_) => None,
            })
            .collect();
        let counts = |(_, unread): &(Place, Unread)| matches!(unread, Unread::Started(..) | Unread::Ended(..));
        if self.pools.changed > sent || self.pools.unread.iter().any(counts) {
            return Ok(());
        }
        for PoolView { name, in_use, spent, exclusive, leases, .. } in &list.pools {
            if over.contains(name) {
                continue;
            }
            hold!(self.pools.has(name), ACCOUNTS, "{name} is shown, and is there no more");
            let (sum, holders, alone) = self.pools.in_use(name);
            let right = (in_use.nanos(), *leases, *exclusive) == (sum, holders, alone);
            hold!(right, POOL, "{name} is shown with {in_use} in use by {leases}; it is {sum} by {holders}");
            let was = self.pools.spent(name);
            hold!(spent.nanos() == was, ACCOUNTS, "{name} is shown with {spent} spent; it is {was}");
        }
        Ok(())
    }

    /// Somebody was told that it holds that.
    pub(super) fn acquisition_told(&self, holder: &Holder, request: &Acquire, lease: LeaseId) -> Checked {
        let known = self.pools.ids.get(&(holder.clone(), request.id.clone()));
        hold!(known == Some(&lease), super::answers::COMMITTED, "{holder} is told of lease {lease}: {known:?}");
        Ok(())
    }

    /// Whether an acquisition goes on.
    pub(super) fn is_acquired(&self, lease: LeaseId) -> bool {
        self.pools.held.get(&lease).is_some_and(|held| held.expires.is_some())
    }

    /// Whether an acquisition went on and is over.
    pub(super) fn was_acquired(&self, lease: LeaseId) -> bool {
        self.pools.over.contains(&lease)
    }

    /// The acquisition of that name, if there ever was one.
    pub(super) fn acquisition(&self, holder: &Holder, id: &str) -> Option<LeaseId> {
        self.pools.ids.get(&(holder.clone(), id.to_owned())).copied()
    }
}
