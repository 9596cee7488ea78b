//! Pools, as far as it takes to know when it is worth asking for a task again that was refused for want of one.
//!
//! Capacity is the resource-manager's; nothing is counted here. A pool is *touched* by whatever may have freed something of
//! it. What was refused is asked for again once one of its pools was touched, and after a while in any case.

use std::collections::BTreeMap;

use baton_machine::ShelfSet;
use baton_protocol::amount;
use baton_protocol::budget::run_account;
use baton_protocol::pool::MAX_DEPTH;
use baton_protocol::record::{Acquired, PoolSet};
use baton_protocol::{Budget, LeaseId, ResourceName, Resources, RunId};
use serde::{Deserialize, Serialize};

/// The pools that there are, and how often each was touched.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pools {
    pools: BTreeMap<ResourceName, Seen>,
    /// How often any was touched.
    touched: u64,
    /// How often all may have been.
    all_touched: u64,
    /// Tasks' leases under which something was acquired besides.
    under: ShelfSet<LeaseId>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Seen {
    touched: u64,
    parent: Option<ResourceName>,
}

impl Pools {
    /// There is such a pool, or it has changed. Whether it is new.
    pub(crate) fn set(&mut self, record: &PoolSet) -> bool {
        let is_new = !self.pools.contains_key(&record.name);
        self.pools.entry(record.name.clone()).or_default().parent.clone_from(&record.pool.parent);
        self.touch([&record.name]);
        is_new
    }

    /// A run begins, and has an account from now on: none of its tasks waits yet.
    pub(crate) fn run_started(&mut self, run: RunId, budget: &Budget) {
        if budget.limit.is_some() {
            self.pools.insert(run_account(run), Seen { touched: 0, parent: budget.of.clone() });
        }
    }

    /// A run is over, and so is its account: none of its tasks waits any more.
    pub(crate) fn run_finished(&mut self, run: RunId) {
        if !self.pools.is_empty() {
            self.pools.remove(&run_account(run));
        }
    }

    pub(crate) fn remove(&mut self, name: &ResourceName) {
        self.pools.remove(name);
        self.touch_all();
    }

    pub(crate) fn acquired(&mut self, record: &Acquired) {
        if let Some(under) = record.under {
            self.under.insert(under);
        }
    }

    /// Something of these was freed, and so of those that they are a part of.
    pub(crate) fn touch<'a>(&mut self, names: impl IntoIterator<Item = &'a ResourceName>) {
        for name in names {
            self.touched += 1;
            let mut next = Some(name.clone());
            for _ in 0..MAX_DEPTH {
                let Some(seen) = next.and_then(|name| self.pools.get_mut(&name)) else { break };
                seen.touched += 1;
                next = seen.parent.clone();
            }
        }
    }

    /// Something of any of them may have been freed.
    pub(crate) fn touch_all(&mut self) {
        if !self.pools.is_empty() {
            self.touched += 1;
            self.all_touched += 1;
        }
    }

    /// A task's lease has ended; it held something of these.
    pub(crate) fn ended(&mut self, lease: Option<LeaseId>, pools: &[ResourceName]) {
        self.touch(pools);
        if lease.is_some_and(|lease| !self.under.is_empty() && self.under.remove(&lease)) {
            self.touch_all();
        }
    }

    /// How often any of them was touched.
    pub(crate) fn touched(&self) -> u64 {
        self.touched
    }

    /// Differs from what it was when any of these was touched in between.
    pub(crate) fn watch(&self, resources: &Resources) -> u64 {
        let line = |name| {
            let find = |name: &ResourceName| self.pools.get(name);
            std::iter::successors(find(name), move |seen| find(seen.parent.as_ref()?)).take(MAX_DEPTH)
        };
        self.all_touched + resources.keys().flat_map(line).map(|seen| seen.touched).sum::<u64>()
    }

    /// What of a task's needs is of pools, and what of an agent's own.
    pub(crate) fn split(&self, needs: &Resources) -> (Resources, Resources) {
        amount::split(needs, |name| self.pools.contains_key(name))
    }
}
