//! `baton budgets`

use std::collections::BTreeMap;

use baton_protocol::request::{PoolList, PoolView, ShareBy, SharePool, Workload};
use baton_protocol::{Amount, Measure, ResourceName};
use clap::{Args, Subcommand};

use crate::Context;
use crate::commands::resources::all_pools;
use crate::failure::Exit;
use crate::output::{Output, Table};

/// Lists budgets, or shares out what is left of one among its parts. `baton resources set NAME --kind consumed --size AMOUNT
/// --measure cost --currency EUR` makes one
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Budgets {
    #[command(subcommand)]
    command: Option<Change>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Share out what is left, in proportion to priority or to workload
    Share(Share),
}

#[derive(Debug, Args)]
#[group(required = true, args = ["priority", "workload"])]
struct Share {
    /// The budget
    name: ResourceName,
    /// A part and its priority
    #[arg(long, value_name = "PART=NUMBER", value_parser = priority, num_args = 1..)]
    priority: Vec<(ResourceName, u32)>,
    /// A part, the tasks that it has done lately, and those that wait
    #[arg(long, value_name = "PART=RECENT/PENDING", value_parser = workload, num_args = 1.., conflicts_with = "priority")]
    workload: Vec<(ResourceName, Workload)>,
    /// What each has at the least, when it is by workload
    #[arg(long, value_name = "AMOUNT", requires = "workload", default_value = "0")]
    minimum: Amount,
}

fn part(text: &str) -> Result<(ResourceName, &str), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| "it must be PART=…".to_owned())?;
    Ok((name.parse().map_err(|error: baton_protocol::NameError| error.to_string())?, value))
}

fn priority(text: &str) -> Result<(ResourceName, u32), String> {
    let (name, value) = part(text)?;
    Ok((name, value.parse().map_err(|_| format!("{value:?} is not a whole number"))?))
}

fn workload(text: &str) -> Result<(ResourceName, Workload), String> {
    let (name, value) = part(text)?;
    let wrong = || format!("{value:?} is not RECENT/PENDING, like 3/10");
    let (recent, pending) = value.split_once('/').ok_or_else(wrong)?;
    let number = |text: &str| text.parse().map_err(|_| wrong());
    Ok((name, Workload { recent: number(recent)?, pending: number(pending)? }))
}

impl Budgets {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let list = match self.command {
            Some(Change::Share(share)) => {
                let by = if share.workload.is_empty() {
                    ShareBy::Priority(share.priority.into_iter().collect())
                } else {
                    let of: BTreeMap<_, _> = share.workload.into_iter().collect();
                    ShareBy::Workload { of, minimum: share.minimum }
                };
                client.share_pool(&SharePool { name: share.name, by }).await?
            }
            None => {
                let mut list = all_pools(&client).await?;
                list.pools.retain(|view| view.pool.measure == Some(Measure::Cost));
                list
            }
        };
        if self.json {
            context.out.json(&list)?;
        } else {
            show(context.out, &list)?;
        }
        Ok(Exit::Done)
    }
}

fn show(out: Output, list: &PoolList) -> anyhow::Result<()> {
    let mut table = Table::new(["budget", "currency", ">size", ">spent", ">set aside", ">left", "part of"]);
    for PoolView { name, pool, in_use, available, spent, overrun, .. } in &list.pools {
        let overrun = if overrun.is_zero() { String::new() } else { format!(" (+{overrun} too much)") };
        table.row([
            name.to_string().into(),
            pool.currency.clone().unwrap_or_default().into(),
            pool.size.unwrap_or_default().to_string().into(),
            format!("{spent}{overrun}").into(),
            in_use.to_string().into(),
            available.unwrap_or_default().to_string().into(),
            pool.parent.as_ref().map(ToString::to_string).unwrap_or_default().into(),
        ]);
    }
    out.table(&table)
}
