//! `baton leases`

use baton_client::now;
use baton_protocol::request::{Acquire, LeaseList, LeastLoaded, Release, Renew};
use baton_protocol::{Amount, LeaseId, Millis, ResourceName, Resources, Take, Takes};
use clap::{Args, Subcommand};

use crate::Context;
use crate::commands::resources::{holder, takes};
use crate::failure::Exit;
use crate::follow::follow;
use crate::output::Table;
use crate::text::{ago, span};

/// Lists what is held of pools and locks, or acquires, renews and releases
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Leases {
    #[command(subcommand)]
    command: Option<Change>,
    /// Only what is held of this pool
    #[arg(long, value_name = "NAME")]
    pool: Option<ResourceName>,
    /// Go on until Ctrl-C, and show it again whenever it changes
    #[arg(long, short)]
    follow: bool,
    /// Write the answer as JSON; one a line with --follow
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Take from pools, all that is asked for or nothing; writes the lease, which is the fencing token
    Acquire(AcquireArgs),
    /// Keep what was acquired for longer
    Renew {
        /// The lease
        lease: u64,
        /// How long from now on, in milliseconds; as long as before unless given
        #[arg(long, value_name = "MS")]
        ttl_ms: Option<Millis>,
    },
    /// Give back what was acquired
    Release {
        /// The lease
        lease: u64,
        /// What was used of a consumed pool; all that was taken unless given
        #[arg(long, value_name = "POOL=AMOUNT", value_parser = used)]
        used: Vec<(ResourceName, Amount)>,
    },
}

/// Takes from pools, all that is asked for or nothing
#[derive(Debug, Args)]
struct AcquireArgs {
    /// What is taken: gpu=2, report.md=shared, report.md=exclusive
    #[arg(required_unless_present = "least_loaded", value_name = "POOL=AMOUNT", value_parser = taken)]
    take: Vec<(ResourceName, Take)>,
    /// This too, of that one of several pools that is least in use: gpu-1,gpu-2=1
    #[arg(long, value_name = "POOLS=AMOUNT", value_parser = least_loaded)]
    least_loaded: Option<LeastLoaded>,
    /// How long to wait until it is there, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    wait_ms: Millis,
    /// How long it is held unless it is renewed, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = baton_protocol::request::DEFAULT_TTL_MS)]
    ttl_ms: Millis,
    /// Larger goes first, among those who wait
    #[arg(long, value_name = "NUMBER", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// What to call it: asked for again by this id, it is the same
    #[arg(long, value_name = "TEXT")]
    id: Option<String>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

fn pair(text: &str) -> Result<(ResourceName, &str), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| "it must be POOL=AMOUNT".to_owned())?;
    Ok((name.parse().map_err(|error: baton_protocol::NameError| error.to_string())?, value))
}

fn taken(text: &str) -> Result<(ResourceName, Take), String> {
    let (name, value) = pair(text)?;
    Ok((name, value.parse()?))
}

fn least_loaded(text: &str) -> Result<LeastLoaded, String> {
    let (names, value) = text.split_once('=').ok_or_else(|| "it must be POOL,POOL=AMOUNT".to_owned())?;
    let of = names.split(',').map(|name| name.parse().map_err(|error: baton_protocol::NameError| error.to_string()));
    Ok(LeastLoaded { of: of.collect::<Result<_, _>>()?, take: value.parse()? })
}

fn used(text: &str) -> Result<(ResourceName, Amount), String> {
    let (name, value) = pair(text)?;
    Ok((name, value.parse().map_err(|error: baton_protocol::amount::AmountError| error.to_string())?))
}

impl Leases {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        match self.command {
            Some(Change::Acquire(args)) => return args.run(context).await,
            Some(Change::Renew { lease, ttl_ms }) => {
                let granted = client.renew_lease(&Renew { lease: LeaseId(lease), ttl_ms }).await?;
                context.out.line(&format!("{} more", span(granted.ttl_ms)))?;
                return Ok(Exit::Done);
            }
            Some(Change::Release { lease, used }) => {
                let used: Resources = used.into_iter().collect();
                client.release_lease(&Release { lease: LeaseId(lease), used }).await?;
                return Ok(Exit::Done);
            }
            None => {}
        }
        if self.follow {
            return follow(context, client.live_leases(self.pool).await?, self.json, table).await;
        }
        let list = client.all_leases(self.pool).await?;
        if self.json {
            context.out.json(&list)?;
        } else {
            context.out.table(&table(&list))?;
        }
        Ok(Exit::Done)
    }
}

fn table(list: &LeaseList) -> Table {
    let mut table = Table::new([">lease", "holder", "holds", "since", "ends"]);
    for held in &list.leases {
        let ends = match held.expires_at {
            Some(at) => format!("in {}", span(at.saturating_sub(now()))),
            None => "with its task".to_owned(),
        };
        table.row([
            held.lease.to_string().into(),
            holder(held).into(),
            takes(held).into(),
            ago(held.since, now()).into(),
            ends.into(),
        ]);
    }
    table
}

impl AcquireArgs {
    async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let take: Takes = self.take.into_iter().collect();
        let request = Acquire {
            wait_ms: self.wait_ms,
            ttl_ms: self.ttl_ms,
            priority: self.priority,
            client: Some("baton-cli".to_owned()),
            least_loaded: self.least_loaded,
            ..Acquire::new(self.id.unwrap_or_default(), take)
        };
        let granted = context.client().await?.acquire(&request).await?;
        match self.json {
            true => context.out.json(&granted)?,
            false => context.out.line(&granted.lease.to_string())?,
        }
        Ok(Exit::Done)
    }
}
