//! `baton resources`, `baton locks`

use baton_client::Client;
use baton_protocol::request::{HeldView, LeaseList, ListLeases, ListPools, PoolList, PoolView};
use baton_protocol::{Amount, Holder, Millis, Pool, PoolKind, Refill, ResourceName, Take};
use clap::{Args, Subcommand};

use crate::Context;
use crate::failure::Exit;
use crate::output::{Cell, Output, Table};

/// Lists pools of resources, or makes, changes and removes them
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Resources {
    #[command(subcommand)]
    command: Option<Change>,
    /// Write the answer as JSON
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
}

impl Set {
    fn pool(&self) -> Pool {
        let amount = self.refill.or(self.size).unwrap_or_default();
        let refill = self.every_ms.map(|every_ms| Refill { amount, every_ms });
        Pool { kind: self.kind, size: self.size.or(self.refill), refill, parent: self.parent.clone() }
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
        let list = all_pools(&client).await?;
        if self.json {
            context.out.json(&list)?;
            return Ok(Exit::Done);
        }
        show_pools(context.out, list.pools.iter().filter(|view| !view.pool.is_lock()))?;
        Ok(Exit::Done)
    }
}

fn show_pools<'a>(out: Output, pools: impl Iterator<Item = &'a PoolView>) -> anyhow::Result<()> {
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
    for view in pools {
        let Pool { kind, size, refill, parent } = &view.pool;
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
    out.table(&table)
}

/// Lists locks: who shares one, who has one alone. Of an election, who has it alone leads, and the token is the term
#[derive(Debug, Args)]
pub(crate) struct Locks {
    /// Only this one
    name: Option<ResourceName>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Locks {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let mut list = match self.name {
            Some(name) => client.list_pools(&ListPools { name: Some(name), after: None }).await?,
            None => all_pools(&client).await?,
        };
        list.pools.retain(|view| view.pool.is_lock());
        if self.json {
            context.out.json(&list)?;
            return Ok(Exit::Done);
        }
        let leases = all_leases(&client, None).await?.leases;
        let mut table = Table::new(["lock", "state", "holders (token)", ">waiting"]);
        for view in &list.pools {
            let state = match (view.exclusive, view.leases) {
                (true, _) => "exclusive",
                (false, 0) => "free",
                (false, _) => "shared",
            };
            let holds = |held: &&HeldView| held.takes.contains_key(&view.name);
            let holders: Vec<_> =
                leases.iter().filter(holds).map(|held| format!("{} ({})", held.holder, held.lease)).collect();
            table.row([
                view.name.to_string().into(),
                Cell::status(state),
                holders.join(", ").into(),
                view.waiting.to_string().into(),
            ]);
        }
        context.out.table(&table)?;
        Ok(Exit::Done)
    }
}

/// All pools, however many answers it takes.
pub(crate) async fn all_pools(client: &Client) -> anyhow::Result<PoolList> {
    let mut all = PoolList { pools: Vec::new(), more: false };
    loop {
        let after = all.pools.last().map(|view| view.name.clone());
        let list = client.list_pools(&ListPools { name: None, after }).await?;
        all.pools.extend(list.pools);
        if !list.more {
            return Ok(all);
        }
    }
}

/// All that is held of pools, or of one.
pub(crate) async fn all_leases(client: &Client, pool: Option<ResourceName>) -> anyhow::Result<LeaseList> {
    let mut all = LeaseList { leases: Vec::new(), more: false };
    loop {
        let after = all.leases.last().map(|held| held.lease);
        let list = client.list_leases(&ListLeases { pool: pool.clone(), after }).await?;
        all.leases.extend(list.leases);
        if !list.more {
            return Ok(all);
        }
    }
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
