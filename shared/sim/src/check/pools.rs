//! The rules of pools: what is held of them, by whom and until when.
//!
//! Unlike the rest of the facts, this is folded in the order in which the resource-manager took it: a task's end counts from the
//! first of its records on that was written after it had read of it. Nothing is kept up to date bit by bit: what is in use is
//! summed up anew from who holds what, whenever it matters.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use baton_protocol::record::{Acquired, PoolSet, ReleaseReason, Released, Renewed, Stamp};
use baton_protocol::request::{Acquire, PoolList, PoolView};
use baton_protocol::{AgentId, Amount, Holder, LeaseId, Millis, Pool, PoolKind, ResourceName, Resources, Take, Takes};

use super::{Checked, Facts, broken, hold};
use crate::coverage::Branch;

const POOL: &str = "no more of a pool is held than it has, and what somebody has alone nobody else has";
const ACCOUNTS: &str = "what is spent and set aside never exceeds an account, nor any that it is a part of";
const ONCE: &str = "an acquisition is made once, and ends once";
const END: &str = "no lease is without end";

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
    /// Ends of tasks that the resource-manager may not have read of: where in the log, whose lease, with success.
    unread: VecDeque<(u64, LeaseId, bool)>,
    /// The message with the last change.
    changed: u64,
    /// Virtual time of it, in microseconds.
    pub(super) changed_on: u64,
}

#[derive(Debug)]
struct Stock {
    pool: Pool,
    /// What is spent from here, its parts not included.
    spent: u128,
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

    /// Whether the end of the task that a lease is under is in the log already.
    pub(super) fn is_unread(&self, lease: LeaseId) -> bool {
        let under = self.held.get(&lease).and_then(|held| held.under);
        under.is_some_and(|under| self.unread.iter().any(|(_, ended, _)| *ended == under))
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

    /// What is held of a pool or its parts: how much, by how many leases, and whether one has it alone.
    fn in_use(&self, of: &ResourceName) -> (u128, u64, bool) {
        let (mut sum, mut leases, mut alone) = (0, 0, false);
        for (name, take) in self.held.values().flat_map(|held| &held.takes) {
            let Some(stock) = self.pools.get(name).filter(|_| self.is_part(name, of)) else { continue };
            leases += 1;
            if stock.pool.kind != PoolKind::Refilled {
                (sum, alone) = (sum + amount(&stock.pool, *take), alone || *take == Take::Exclusive);
            }
        }
        (sum, leases, alone)
    }

    /// What is spent of a pool and its parts.
    fn spent(&self, of: &ResourceName) -> u128 {
        let parts = self.pools.iter().filter(|(name, _)| self.is_part(name, of));
        parts.map(|(_, stock)| stock.spent).sum()
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
        let Some(held) = self.held.remove(&lease) else { return false };
        self.over.insert(lease);
        for (name, take) in &held.takes {
            let Some(stock) = self.pools.get(name).filter(|stock| stock.pool.kind == PoolKind::Consumed) else {
                continue;
            };
            let Take::Amount(taken) = take else { continue };
            let used = used(name, taken.rounded_up()).unwrap_or_default().nanos();
            // What was used beyond what there is, in it or in what it is a part of, is not spent of anything.
            let line = self.pools.iter().filter(|(other, _)| self.is_part(name, other));
            let free = line.map(|(other, stock)| stock.size() - self.in_use(other).0 - self.spent(other)).min();
            let spent = used.min(free.unwrap_or(0)) + stock.spent;
            if let Some(stock) = self.pools.get_mut(name) {
                stock.spent = spent;
            }
        }
        true
    }

    fn end_task(&mut self, lease: LeaseId, succeeded: bool) {
        self.end(lease, |_, taken| succeeded.then_some(taken));
        let under: Vec<_> = self.held.iter().filter(|(_, held)| held.under == Some(lease)).map(|(id, _)| *id).collect();
        for lease in under {
            self.end(lease, |_, _| None);
        }
    }

    /// Whether there is enough of that, and has been for a while: nothing was taken or given back lately.
    pub(super) fn has_room(&self, needs: &Resources) -> bool {
        needs.iter().all(|(name, needed)| {
            let Some(stock) = self.pools.get(name) else { return true };
            if needed.nanos() > stock.size() {
                return false;
            }
            self.pools.iter().filter(|(other, _)| self.is_part(name, other)).all(|(other, stock)| {
                let ((sum, _, alone), needed) = (self.in_use(other), amount(&stock.pool, Take::Amount(*needed)));
                !alone && (stock.pool.is_lock() || sum + self.spent(other) + needed <= stock.size())
            })
        })
    }
}

impl Facts {
    /// The resource-manager has read so far when it wrote what follows.
    pub(super) fn pools_read(&mut self, seen: u64) {
        while let Some((_, lease, succeeded)) = self.pools.unread.pop_front_if(|(seq, _, _)| *seq <= seen) {
            self.pools.end_task(lease, succeeded);
        }
    }

    /// A task's lease ended here in the log, by a record of the workflow-manager.
    pub(super) fn pools_task_ended(&mut self, lease: LeaseId, succeeded: bool) {
        let concerns = |held: &Held| held.under == Some(lease);
        if self.pools.held.contains_key(&lease) || self.pools.held.values().any(concerns) {
            self.pools.unread.push_back((self.seq, lease, succeeded));
            self.pools_changed();
        }
    }

    /// A task was leased that had ended there in the log.
    pub(super) fn pools_ended_before(&mut self, ended: u64, lease: LeaseId) {
        // In the order of the log: what is read is taken from the front.
        let at = self.pools.unread.partition_point(|(seq, _, _)| *seq <= ended);
        self.pools.unread.insert(at, (ended, lease, false));
    }

    /// A task goes to another agent: what it holds of pools goes with it, and what the giver acquired under its lease ends.
    pub(super) fn pools_handed_over(&mut self, before: LeaseId, lease: LeaseId, to: &AgentId) {
        let pools = &mut self.pools;
        let under: Vec<_> =
            pools.held.iter().filter(|(_, held)| held.under == Some(before)).map(|(id, _)| *id).collect();
        for acquired in under {
            pools.end(acquired, |_, _| None);
        }
        if let Some(held) = pools.held.remove(&before) {
            pools.held.insert(lease, Held { agent: Some(to.clone()), ..held });
        }
        // It may have ended in the log, and the resource-manager will read that later.
        for (_, of, _) in pools.unread.iter_mut().filter(|(_, of, _)| *of == before) {
            *of = lease;
        }
        self.pools_changed();
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
        self.pools.end_task(lease, false);
        self.pools_changed();
    }

    pub(super) fn pool_set(&mut self, stamp: Stamp, record: &PoolSet) -> Checked {
        let PoolSet { name, pool } = record;
        self.pools_changed();
        let (size, at) = (pool.size.map_or(0, Amount::nanos), stamp.at);
        let every = pool.refill.map_or(1, |refill| u128::from(refill.every_ms));
        match self.pools.pools.get_mut(name) {
            Some(stock) => {
                hold!(stock.pool.kind == pool.kind, POOL, "{name} is {} and becomes {}", stock.pool.kind, pool.kind);
                stock.fill(at);
                // The remainder of the last ninth decimal place is given up: the new time may not divide it.
                stock.level = (stock.level / stock.every()).min(size) * every;
                stock.pool = pool.clone();
            }
            None => {
                self.pools.since.insert(name.clone(), self.seq);
                let stock = Stock { pool: pool.clone(), spent: 0, level: size.saturating_mul(every), at };
                self.pools.pools.insert(name.clone(), stock);
            }
        }
        self.pools.covers()
    }

    pub(super) fn pool_removed(&mut self, name: &ResourceName) -> Checked {
        self.pools_changed();
        let (_, leases, _) = self.pools.in_use(name);
        hold!(leases == 0, POOL, "{name} is removed, and {leases} leases hold something of it");
        let removed = self.pools.pools.remove(name);
        // What was spent of a part stays spent of the whole.
        if let Some(Stock { pool: Pool { parent: Some(parent), .. }, spent, .. }) = removed
            && let Some(parent) = self.pools.pools.get_mut(&parent)
        {
            parent.spent += spent;
        }
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

    /// Somebody was told what there is of pools.
    pub(super) fn pools_shown(&self, list: &PoolList, sent: u64) -> Checked {
        // Only where nothing has happened since the question is there but one right answer.
        if self.pools.changed > sent || !self.pools.unread.is_empty() {
            return Ok(());
        }
        for PoolView { name, in_use, spent, exclusive, leases, .. } in &list.pools {
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
