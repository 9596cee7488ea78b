//! `baton resources`, `baton locks`

use baton_protocol::request::{HeldView, LockList, LockView, PoolList, PoolView};
use baton_protocol::{Amount, AtLimit, Holder, Measure, Millis, Pool, PoolKind, Refill, ResourceName, Take};
use clap::{Args, Subcommand};

use crate::Context;
use crate::failure::Exit;
use crate::follow::follow;
use crate::output::{Cell, Table};

/// Lists pools of resources, or makes, changes and removes them
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Resources {
    #[command(subcommand)]
    command: Option<Change>,
    /// Go on until Ctrl-C, and show it again whenever it changes
    #[arg(long, short)]
    follow: bool,
    /// Write the answer as JSON; one a line with --follow
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Make a pool, or change one
    Set(Set),
    /// Remove a pool that nobody uses
    Remove {
        /// The pool
        name: ResourceName,
    },
}

/// Makes a pool, or changes one
#[derive(Debug, Args)]
struct Set {
    /// The pool: gpu, or model:gpt-x/tokens_per_minute
    name: ResourceName,
    /// What becomes of what is taken: held, refilled or consumed
    #[arg(long, value_name = "KIND", default_value = "held")]
    kind: PoolKind,
    /// How much there is; a held pool without a size is a lock
    #[arg(long, value_name = "AMOUNT")]
    size: Option<Amount>,
    /// How much of a refilled pool comes back in that time; its size unless given
    #[arg(long, value_name = "AMOUNT", requires = "every_ms")]
    refill: Option<Amount>,
    /// In which time the refill comes back, evenly, in milliseconds
    #[arg(long, value_name = "MS")]
    every_ms: Option<Millis>,
    /// The pool that a consumed one is a part of
    #[arg(long, value_name = "NAME")]
    parent: Option<ResourceName>,
    /// What of a task's report says how much was used: cost, tokens or duration_ms
    #[arg(long, value_name = "WHAT")]
    measure: Option<Measure>,
    /// The currency of a pool that is measured by cost
    #[arg(long, value_name = "CODE")]
    currency: Option<String>,
    /// What becomes of who wants more than a consumed pool has: wait, fail or ask
    #[arg(long, value_name = "WHAT", default_value_t = AtLimit::Wait)]
    at_limit: AtLimit,
}

impl Set {
    fn pool(&self) -> Pool {
        let amount = self.refill.or(self.size).unwrap_or_default();
        let refill = self.every_ms.map(|every_ms| Refill { amount, every_ms });
        Pool {
            kind: self.kind,
            size: self.size.or(self.refill),
            refill,
            parent: self.parent.clone(),
            measure: self.measure,
            currency: self.currency.clone(),
            at_limit: self.at_limit,
            balance: None,
        }
    }
}

impl Resources {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        match self.command {
            Some(Change::Set(set)) => {
                let pool = set.pool();
                client.set_pool(set.name, pool).await?;
                return Ok(Exit::Done);
            }
            Some(Change::Remove { name }) => {
                client.remove_pool(name).await?;
                return Ok(Exit::Done);
            }
            None => {}
        }
        if self.follow {
            // What the table does not show is no change of it.
            let keep: fn(&PoolView) -> bool = if self.json { |_| true } else { |view| !view.pool.is_lock() };
            return follow(context, client.live_pools(keep).await?, self.json, pool_table).await;
        }
        let list = client.all_pools().await?;
        if self.json {
            context.out.json(&list)?;
        } else {
            context.out.table(&pool_table(&list))?;
        }
        Ok(Exit::Done)
    }
}

/// Locks have a table of their own.
fn pool_table(list: &PoolList) -> Table {
    let mut table = Table::new([
        "pool",
        "kind",
        ">size",
        ">in use",
        ">available",
        ">spent",
        ">leases",
        ">waiting",
        "refill",
        "part of",
    ]);
    let text = |amount: Option<Amount>| amount.map(|amount| amount.to_string()).unwrap_or_default();
    for view in list.pools.iter().filter(|view| !view.pool.is_lock()) {
        let Pool { kind, size, refill, parent, measure: _, currency: _, at_limit: _, balance: _ } = &view.pool;
        let consumed = *kind == PoolKind::Consumed;
        let overrun = if view.overrun.is_zero() { String::new() } else { format!(" (+{} too much)", view.overrun) };
        table.row([
            view.name.to_string().into(),
            kind.to_string().into(),
            text(*size).into(),
            (if *kind == PoolKind::Refilled { String::new() } else { view.in_use.to_string() }).into(),
            text(view.available).into(),
            (if consumed { format!("{}{overrun}", view.spent) } else { String::new() }).into(),
            view.leases.to_string().into(),
            view.waiting.to_string().into(),
            refill.map(|refill| format!("{} in {} ms", refill.amount, refill.every_ms)).unwrap_or_default().into(),
            parent.as_ref().map(ToString::to_string).unwrap_or_default().into(),
        ]);
    }
    table
}

/// Lists locks: who shares one, who has one alone. Of an election, who has it alone leads, and the token is the term
#[derive(Debug, Args)]
pub(crate) struct Locks {
    /// Only this one
    name: Option<ResourceName>,
    /// Go on until Ctrl-C, and show it again whenever it changes
    #[arg(long, short)]
    follow: bool,
    /// Write the answer as JSON; one a line with --follow
    #[arg(long)]
    json: bool,
}

impl Locks {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        if self.follow {
            return follow(context, client.live_locks(self.name).await?, self.json, lock_table).await;
        }
        let list = client.locks(self.name).await?;
        if self.json {
            context.out.json(&list)?;
        } else {
            context.out.table(&lock_table(&list))?;
        }
        Ok(Exit::Done)
    }
}

fn lock_table(list: &LockList) -> Table {
    let mut table = Table::new(["lock", "state", "holders (token)", ">waiting"]);
    for LockView { lock, holders } in &list.pools {
        let state = match (lock.exclusive, lock.leases) {
            (true, _) => "exclusive",
            (false, 0) => "free",
            (false, _) => "shared",
        };
        let holders: Vec<_> = holders.iter().map(|held| format!("{} ({})", held.holder, held.lease)).collect();
        table.row([
            lock.name.to_string().into(),
            Cell::status(state),
            holders.join(", ").into(),
            lock.waiting.to_string().into(),
        ]);
    }
    table
}

/// Who holds something, in few words.
pub(crate) fn holder(held: &HeldView) -> String {
    match (&held.holder, &held.task) {
        (Holder::Agent(agent), Some(task)) => format!("{agent} for {}/{}", task.part(), task.attempt),
        (holder, _) => holder.to_string(),
    }
}

/// What is held, in few words.
pub(crate) fn takes(held: &HeldView) -> String {
    let take = |(name, take): (&ResourceName, &Take)| format!("{name} {take}");
    held.takes.iter().map(take).collect::<Vec<_>>().join(", ")
}
