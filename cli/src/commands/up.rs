//! `baton up`

use std::path::PathBuf;

use baton_broker::Durability;
use baton_client::write_context;
use baton_protocol::Service;
use baton_stock::roles::Role;
use clap::Args;
use tokio::time::Instant;

use crate::Context;
use crate::agents::{Stock, stock};
use crate::commands::DEV_CONTEXT;
use crate::commands::agent::directory;
use crate::failure::Exit;
use crate::fleet::{BrokerPlan, Fleet, Plan, Signals, USUAL_PORT, since};
use crate::output::Output;

/// The agents of `up` and `demo`: two where a workflow may have two stages at work at a time.
pub(crate) const ROLES: [Role; 6] =
    [Role::Research, Role::Research, Role::Writing, Role::Writing, Role::Editing, Role::Verification];

/// Starts everything on this machine: broker, services, agents, HTTP API. Ctrl-C stops it in order, a second one at once
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Where the data lies
    #[arg(long, value_name = "DIR", default_value = "./.baton")]
    data: PathBuf,
    /// Use this broker instead of starting one; --server and --context say the same
    #[arg(long, value_name = "URL", conflicts_with_all = ["server", "context"])]
    nats: Option<String>,
    /// Where the HTTP API listens; port 0 takes any free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
    /// Start no agents
    #[arg(long)]
    no_agents: bool,
    /// The directory in which the agents read, and outside of which they do not [default: the working directory]
    #[arg(long, value_name = "DIR")]
    sources: Option<PathBuf>,
    /// Never fetch a nats-server
    #[arg(long)]
    offline: bool,
    /// What an acknowledged write survives: `process` (the kill of any process; the loss of power may take the last two
    /// minutes) or `power` (also that: every write is synced first, see docs/durability.md for the price)
    #[arg(long, value_name = "WHAT", default_value = "process")]
    durability: Durability,
}

impl Up {
    pub(crate) async fn run(self, context: Context) -> anyhow::Result<Exit> {
        let begin = Instant::now();
        let mut signals = Signals::listen()?;
        let mut settings = context.settings.clone();
        if let Some(http) = &self.http {
            settings.http.listen.clone_from(http);
        }
        let plan = Plan {
            broker: self.broker(&context),
            settings,
            agents: if self.no_agents { Vec::new() } else { stock(&ROLES, None)? },
            sources: self.sources.as_deref().map(directory).transpose()?,
        };
        let agents = plan.agents.clone();
        let mut fleet = tokio::select! {
            fleet = Fleet::start(plan) => fleet?,
            () = signals.next() => return Ok(Exit::Interrupted),
        };
        // Nobody has to read what we say.
        let out = context.out;
        let _ = out.text(&self.describe(out, &fleet, &agents));
        let _ = out.line(&format!("ready in {} ms", since(begin)));

        let failure = tokio::select! {
            failure = fleet.failed() => Some(failure),
            () = signals.next() => None,
        };
        let _ = out.line("\nstopping; Ctrl-C again ends it at once");
        let stop = fleet.stop(|step| {
            let _ = out.line(&format!("  {step}"));
        });
        tokio::select! {
            () = stop => {}
            // Dropped with the broker, which is killed: its data outlives that.
            () = signals.next() => return Ok(Exit::Interrupted),
        }
        failure.map_or(Ok(Exit::Done), Err)
    }

    fn broker(&self, context: &Context) -> BrokerPlan {
        let mut connect = context.connect_settings();
        if let Some(nats) = &self.nats {
            connect.server = Some(nats.clone());
        }
        if connect.server.is_some() || connect.context.is_some() {
            return BrokerPlan::There(Box::new(connect));
        }
        BrokerPlan::Own {
            data: self.data.clone(),
            durability: self.durability,
            offline: self.offline,
            usual_port: true,
        }
    }

    /// What runs where.
    fn describe(&self, out: Output, fleet: &Fleet, agents: &[Stock]) -> String {
        let names = |names: Vec<String>| names.join(", ");
        let mut facts = Vec::new();
        let info = fleet.client.nats().server_info();
        match &fleet.own {
            Some(own) => {
                facts.push(("nats", format!("{}  {}", own.broker.client_url(), own.found)));
                if own.broker.port() != USUAL_PORT {
                    facts.push((
                        "",
                        format!("(port {USUAL_PORT} is taken: give other commands --context {DEV_CONTEXT})"),
                    ));
                }
                if let Some(orphan) = own.broker.replaced_orphan() {
                    facts.push(("", format!("(process {orphan}, left over by a killed Baton, was stopped first)")));
                }
            }
            None => facts.push(("nats", format!("nats://{}:{}  nats-server {}", info.host, info.port, info.version))),
        }
        facts.push(("services", names(Service::ALL.iter().map(ToString::to_string).collect())));
        let agents = names(agents.iter().map(|agent| agent.id.to_string()).collect());
        facts.push(("agents", if agents.is_empty() { "none".to_owned() } else { agents }));
        if let Some(http) = fleet.http {
            facts.push(("http", format!("http://{http}")));
        }
        if let Some(own) = &fleet.own {
            let outlives = match self.durability {
                Durability::Process => {
                    "survives the kill of any process; the loss of power may take the last two minutes"
                }
                Durability::Power => "survives the loss of power",
            };
            facts.push(("data", format!("{}  {outlives}", self.data.display())));
            match write_context(DEV_CONTEXT, &own.broker.client_url()) {
                Ok(_) => facts.push(("context", format!("nats --context {DEV_CONTEXT}"))),
                Err(error) => tracing::warn!(%error, "the NATS context {DEV_CONTEXT} was not written"),
            }
        }
        facts.push(("stop", "Ctrl-C".to_owned()));
        let line = |(name, fact): (&str, String)| format!("  {}  {fact}\n", out.style.bold(&format!("{name:<8}")));
        format!("baton {}\n\n{}\n", env!("CARGO_PKG_VERSION"), facts.into_iter().map(line).collect::<String>())
    }
}
