//! `baton agent`

use std::collections::BTreeSet;
use std::path::PathBuf;

use baton_client::ConnectSettings;
use baton_protocol::request::GetWorkflow;
use baton_protocol::{AgentId, Capability, WorkflowName};
use baton_stock::roles::Role;
use baton_stock::sleep::{Pace, Sleeper};
use baton_telemetry::Spans;
use clap::{Args, Subcommand, ValueEnum};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agents::{start_sleeper, start_stock_agent, stock};
use crate::commands::import::scale;
use crate::failure::{Exit, Failure};
use crate::fleet::Signals;
use crate::{Context, services};

/// Runs agents
#[derive(Debug, Subcommand)]
pub(crate) enum Agent {
    /// Run agents that come with Baton: they work on documents, offline or through a model
    Stock(Stock),
    /// Run agents that sleep as long as each task says: for imported workflows, and to try things out
    Sleep(Sleep),
}

/// Runs agents that come with Baton until Ctrl-C or SIGTERM
#[derive(Debug, Args)]
pub(crate) struct Stock {
    /// What they do; a name given twice starts two
    #[arg(required = true, value_enum)]
    names: Vec<Name>,
    /// Begins the agents' ids: P-research-1; the host's name if none is given. Two processes must not run an agent of the
    /// same id: the later one takes the earlier one's place
    #[arg(long, value_name = "P")]
    id_prefix: Option<String>,
    /// The directory in which they read, and outside of which they do not; what a run calls its sources is looked for in
    /// there [default: the working directory]
    #[arg(long, value_name = "DIR")]
    sources: Option<PathBuf>,
}

/// Runs agents that sleep as long as each task says (in the parameter `sleep_ms`) until Ctrl-C or SIGTERM
#[derive(Debug, Args)]
pub(crate) struct Sleep {
    /// What they can do; the first is their type
    #[arg(required_unless_present = "workflow")]
    capabilities: Vec<Capability>,
    /// Also all that this workflow's stages ask for
    #[arg(long, value_name = "NAME")]
    workflow: Option<WorkflowName>,
    /// How many agents
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// How many tasks each does at a time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    slots: u32,
    /// By how much every task's time is multiplied
    #[arg(long, default_value_t = 1.0, value_name = "X", value_parser = scale)]
    scale: f64,
    /// How fast they are: at 2 a task takes half as long
    #[arg(long, default_value_t = 1.0, value_name = "X", value_parser = scale)]
    speed: f64,
    /// Begins the agents' ids: P-sleep-1; the host's name if none is given
    #[arg(long, value_name = "P")]
    id_prefix: Option<String>,
}

/// A stock agent's role, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    Research,
    Writing,
    Editing,
    Verification,
    /// One of each
    All,
}

impl Name {
    fn roles(self) -> Vec<Role> {
        match self {
            Self::Research => vec![Role::Research],
            Self::Writing => vec![Role::Writing],
            Self::Editing => vec![Role::Editing],
            Self::Verification => vec![Role::Verification],
            Self::All => Role::ALL.to_vec(),
        }
    }
}

impl Agent {
    pub(crate) async fn run(self, context: Context) -> anyhow::Result<Exit> {
        match self {
            Self::Stock(command) => command.run(context).await,
            Self::Sleep(command) => command.run(context).await,
        }
    }
}

impl Stock {
    async fn run(self, context: Context) -> anyhow::Result<Exit> {
        let sources = self.sources.as_deref().map(directory).transpose()?;
        let roles: Vec<Role> = self.names.iter().flat_map(|name| name.roles()).collect();
        let prefix = self.id_prefix.clone().unwrap_or_else(host);
        let agents = stock(&roles, Some(&prefix)).map_err(|error| Failure::usage(error.to_string()))?;
        let agents = agents.into_iter().map(|agent| (agent.id.clone(), agent)).collect();
        run_all(&context, agents, |agent, connect, spans, shutdown| {
            start_stock_agent(agent, connect, sources.clone(), spans, shutdown)
        })
        .await
    }
}

impl Sleep {
    async fn run(self, context: Context) -> anyhow::Result<Exit> {
        let mut capabilities: Vec<Capability> = self.capabilities;
        if let Some(name) = self.workflow {
            let view = context.client().await?.get_workflow(&GetWorkflow { name, version: None }).await?;
            let of_agents = view.definition.stages.into_iter().filter(|stage| stage.has_agent());
            capabilities.extend(of_agents.map(|stage| stage.agent_type));
        }
        let mut known = BTreeSet::new();
        capabilities.retain(|capability| known.insert(capability.clone()));
        let sleeper = Sleeper {
            capabilities: capabilities.iter().map(ToString::to_string).collect(),
            slots: self.slots,
            pace: Pace { scale: self.scale, speed: self.speed },
        };
        let prefix = self.id_prefix.unwrap_or_else(host);
        let ids = (1..=self.count).map(|number| AgentId::new(&format!("{prefix}-sleep-{number}")));
        let ids: Vec<AgentId> = ids.collect::<Result<_, _>>().map_err(|error| Failure::usage(error.to_string()))?;
        let agents = ids.into_iter().map(|id| (id.clone(), id)).collect();
        run_all(&context, agents, |id, connect, spans, shutdown| {
            start_sleeper(id, sleeper.clone(), connect, spans, shutdown)
        })
        .await
    }
}

/// Runs agents until a signal comes, or until one of them fails.
async fn run_all<A, F>(
    context: &Context,
    agents: Vec<(AgentId, A)>,
    start: impl Fn(A, ConnectSettings, Spans, CancellationToken) -> F,
) -> anyhow::Result<Exit>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let mut signals = Signals::listen()?;
    let spans = Spans::start("agents", "stock", &services::trace_config(&context.settings)?)?;
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    for (id, agent) in agents {
        tracing::info!(agent = %id, "starting");
        let connect = context.connect_settings().named(format!("baton-agent-{id}"));
        tasks.spawn(start(agent, connect, spans.clone(), shutdown.clone()));
    }
    let outcome = tokio::select! {
        outcome = all(&mut tasks) => outcome,
        () = signals.next() => {
            tracing::info!("leaving; a second signal ends it at once");
            shutdown.cancel();
            tokio::select! {
                outcome = all(&mut tasks) => outcome,
                () = signals.next() => return Ok(Exit::Interrupted),
            }
        }
    };
    spans.shutdown().await;
    outcome.map(|()| Exit::Done)
}

/// The host's name as a part of an agent's id. In a container it is the container's: the same after a restart, another one
/// for every replica.
fn host() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    host_part(&name)
}

fn host_part(name: &str) -> String {
    let short = name.split('.').next().unwrap_or_default();
    let part: String = short.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(32).collect();
    let part = part.trim_matches('-');
    if part.is_empty() { "host".to_owned() } else { part.to_owned() }
}

/// Waits for all; the first that fails ends the others.
async fn all(tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// A directory that is there, whole: agents may have another working directory.
pub(crate) fn directory(path: &std::path::Path) -> Result<PathBuf, Failure> {
    let wrong = |why: String| Failure::usage(format!("the sources {} can not be used: {why}", path.display()));
    let whole = path.canonicalize().map_err(|error| wrong(error.to_string()))?;
    if whole.is_dir() { Ok(whole) } else { Err(wrong("it is no directory".to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::host_part;

    #[test]
    fn any_host_s_name_gives_a_part_of_an_id() {
        for (name, part) in [
            ("laptop", "laptop"),
            ("box-1.example.org", "box-1"),
            ("3f2a9c", "3f2a9c"),
            ("--é--", "host"),
            ("", "host"),
        ] {
            assert_eq!(host_part(name), part);
            assert!(baton_protocol::AgentId::new(&format!("{part}-verification-1")).is_ok());
        }
    }
}
