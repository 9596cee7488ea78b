//! `baton budgets`

use std::collections::BTreeMap;

use baton_client::Client;
use baton_protocol::request::{
    ApproveBudget, DenyBudget, GetSpending, ListPools, PoolList, PoolView, ShareBy, SharePool, Spending, Spent,
    SpentBy, Workload,
};
use baton_protocol::{Amount, AtLimit, Balance, Measure, Millis, Pool, PoolKind, ResourceName};
use clap::{Args, Subcommand, ValueEnum};

use crate::Context;
use crate::failure::{Exit, Failure};
use crate::follow::follow;
use crate::output::{Output, Table};

/// Lists budgets and what is left of each; makes and shares them out, gives more, says what was spent
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Budgets {
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
    /// Make a budget, or change its size. `agent:ID` is that of an agent
    Set(Set),
    /// Share out what is left of a budget among its parts
    Share(Share),
    /// Give a budget more; what waits for it goes on
    Approve {
        /// The budget
        name: ResourceName,
        /// How much more
        amount: Amount,
    },
    /// Say that a budget gets no more: the task that was asked for fails
    Deny {
        /// The budget
        name: ResourceName,
        /// Why, for those who read the run's history
        #[arg(long)]
        reason: Option<String>,
    },
    /// Add up what was spent
    Spending {
        /// By run, stage, agent, model or attempt
        #[arg(long, default_value = "stage", value_name = "WHAT")]
        by: SpentBy,
        /// Write the answer as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Set {
    /// The budget
    name: ResourceName,
    /// How much it has in all
    amount: Amount,
    /// The currency; that of the budget that it is a part of unless given
    #[arg(long, value_name = "CODE")]
    currency: Option<String>,
    /// The budget that it is a part of: it never spends what that has not
    #[arg(long, value_name = "NAME")]
    of: Option<ResourceName>,
    /// What becomes of who wants more: wait, fail or ask
    #[arg(long, value_name = "WHAT", default_value_t = AtLimit::Wait)]
    at_limit: AtLimit,
}

#[derive(Debug, Args)]
struct Share {
    /// The budget
    name: ResourceName,
    /// In proportion to priority, or to workload: 0.3 of the tasks done lately and 0.7 of those that wait
    #[arg(long, value_name = "WHAT")]
    by: By,
    /// Its parts, each with its priority (`team/a=3`), or with the tasks done and those that wait (`team/a=3/10`). Without any,
    /// the agents that have a part of it
    #[arg(value_name = "PART=NUMBER")]
    parts: Vec<String>,
    /// What each has at the least, by workload
    #[arg(long, value_name = "AMOUNT", default_value = "0")]
    minimum: Amount,
    /// Share it out again that often from now on, by the workload of the agents that have a part of it, in milliseconds; 0: not
    /// any more
    #[arg(long, value_name = "MS", conflicts_with = "parts")]
    every_ms: Option<Millis>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Priority,
    Workload,
}

impl Share {
    fn by(&self) -> anyhow::Result<ShareBy> {
        let mut parts = BTreeMap::new();
        for text in &self.parts {
            let (name, value) =
                text.split_once('=').ok_or_else(|| anyhow::anyhow!("{text:?} is not PART=NUMBER, like team/a=3"))?;
            parts.insert(name.parse::<ResourceName>()?, value);
        }
        if self.by == By::Priority {
            let mut of = BTreeMap::new();
            for (name, value) in parts {
                of.insert(name, number(value)?);
            }
            return Ok(ShareBy::Priority(of));
        }
        let mut of = BTreeMap::new();
        for (name, value) in parts {
            let (recent, pending) =
                value.split_once('/').ok_or_else(|| anyhow::anyhow!("{value:?} is not DONE/WAITING, like 3/10"))?;
            of.insert(name, Workload { recent: number(recent)?, pending: number(pending)? });
        }
        Ok(ShareBy::Workload { of, minimum: self.minimum })
    }
}

fn number(text: &str) -> anyhow::Result<u32> {
    text.parse().map_err(|_| anyhow::anyhow!("{text:?} is not a whole number from 0 on"))
}

impl Budgets {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let list = match self.command {
            Some(Change::Set(Set { name, amount, mut currency, of, at_limit })) => {
                let known = client.all_pools().await?.pools;
                let find = |name: &ResourceName| known.iter().find(|view| view.name == *name).map(|view| &view.pool);
                let before = find(&name);
                if currency.is_none() {
                    // Its own, if it is there already; otherwise that of what it is a part of.
                    currency = before.or_else(|| find(of.as_ref()?)).and_then(|pool| pool.currency.clone());
                }
                let pool = Pool {
                    parent: of,
                    measure: Some(Measure::Cost),
                    currency,
                    at_limit,
                    balance: before.and_then(|pool| pool.balance),
                    ..Pool::new(PoolKind::Consumed, amount)
                };
                client.set_pool(name, pool).await?;
                return Ok(Exit::Done);
            }
            Some(Change::Share(share)) => {
                let by = share.by()?;
                if let Some(every_ms) = share.every_ms {
                    if share.by != By::Workload {
                        return Err(Failure::usage("--every-ms: it is shared out again by workload only").into());
                    }
                    balance(&client, &share.name, share.minimum, every_ms).await?;
                }
                client.share_pool(&SharePool { name: share.name, by }).await?
            }
            Some(Change::Approve { name, amount }) => {
                client.approve_budget(&ApproveBudget { name, amount }).await?;
                return Ok(Exit::Done);
            }
            Some(Change::Deny { name, reason }) => {
                client.deny_budget(&DenyBudget { name, reason }).await?;
                return Ok(Exit::Done);
            }
            Some(Change::Spending { by, json }) => {
                let mut all = client.spending(&GetSpending { by, after: None }).await?;
                while all.more {
                    let after = all.rows.last().map(|row| row.key.clone());
                    let next = client.spending(&GetSpending { by, after }).await?;
                    (all.total, all.rest, all.more) = (next.total, next.rest, next.more);
                    all.rows.extend(next.rows);
                }
                if json || self.json {
                    context.out.json(&all)?;
                } else {
                    show_spending(context.out, by, &all)?;
                }
                return Ok(Exit::Done);
            }
            None if self.follow => {
                return follow(context, client.live_pools(is_budget).await?, self.json, table).await;
            }
            None => {
                let mut list = client.all_pools().await?;
                list.pools.retain(is_budget);
                list
            }
        };
        if self.json {
            context.out.json(&list)?;
        } else {
            context.out.table(&table(&list))?;
        }
        Ok(Exit::Done)
    }
}

/// From now on a budget is shared out that often, or not any more.
async fn balance(client: &Client, name: &ResourceName, minimum: Amount, every_ms: Millis) -> anyhow::Result<()> {
    let list = client.list_pools(&ListPools { name: Some(name.clone()), after: None }).await?;
    let balance = (every_ms > 0).then_some(Balance { minimum, every_ms });
    for view in list.pools {
        client.set_pool(view.name, Pool { balance, ..view.pool }).await?;
    }
    Ok(())
}

fn is_budget(view: &PoolView) -> bool {
    view.pool.measure == Some(Measure::Cost)
}

fn table(list: &PoolList) -> Table {
    let mut table =
        Table::new(["budget", ">size", ">spent", ">set aside", ">left", "", "at limit", "part of", "asks for"]);
    for PoolView { name, pool, in_use, available, spent, overrun, asked, .. } in &list.pools {
        let overrun = if overrun.is_zero() { String::new() } else { format!(" (+{overrun} too much)") };
        let asked = asked.as_ref().map(|asked| {
            let task = asked.task.as_ref().map(|task| format!(" for {task}")).unwrap_or_default();
            format!("{}{task}", asked.wanted)
        });
        table.row([
            name.to_string().into(),
            pool.size.unwrap_or_default().to_string().into(),
            format!("{spent}{overrun}").into(),
            in_use.to_string().into(),
            available.unwrap_or_default().to_string().into(),
            pool.currency.clone().unwrap_or_default().into(),
            pool.at_limit.to_string().into(),
            pool.parent.as_ref().map(ToString::to_string).unwrap_or_default().into(),
            asked.unwrap_or_default().into(),
        ]);
    }
    table
}

fn show_spending(out: Output, by: SpentBy, all: &Spending) -> anyhow::Result<()> {
    let mut table = Table::new([by.as_str(), ">attempts", ">failed", ">cost", ">tokens in", ">tokens out"]);
    let rows = all.rows.iter().map(|row| (row.key.as_str(), row.spent));
    let rest = (all.rest != Spent::default()).then_some(("(others)", all.rest));
    for (key, spent) in rows.chain(rest).chain([("total", all.total)]) {
        table.row([
            key.to_owned().into(),
            spent.attempts.to_string().into(),
            spent.failed.to_string().into(),
            spent.cost.to_string().into(),
            spent.tokens_in.to_string().into(),
            spent.tokens_out.to_string().into(),
        ]);
    }
    out.table(&table)
}
