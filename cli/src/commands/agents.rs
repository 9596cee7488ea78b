//! `baton agents`

use baton_client::now;
use baton_protocol::breaker::{BreakerState, BreakerView};
use baton_protocol::request::{AgentList, AgentStatus, AgentView, FindAgents, ListAgents};
use baton_protocol::{Capability, Requirements, Resources};
use clap::Args;

use crate::Context;
use crate::failure::{Exit, Failure};
use crate::follow::follow;
use crate::output::{Cell, Table};
use crate::text::{ago, span};

/// Lists the agents
#[derive(Debug, Args)]
pub(crate) struct Agents {
    /// Only agents that can do this
    #[arg(long, value_name = "NAME")]
    capability: Option<Capability>,
    /// Only agents whose metadata of that capability are so: algorithms=regression, 'context_tokens>=32000', version^1.2; may be
    /// given several times
    #[arg(long, value_name = "KEY=VALUE", requires = "capability")]
    require: Vec<String>,
    /// Those to be preferred first: with room, with the least of it in use, with the better score
    #[arg(long, requires = "capability", conflicts_with = "gone")]
    best: bool,
    /// Also agents that are gone
    #[arg(long)]
    gone: bool,
    /// Go on until Ctrl-C, and show it again whenever it changes
    #[arg(long, short, conflicts_with = "best")]
    follow: bool,
    /// Write the answer as JSON; one a line with --follow
    #[arg(long)]
    json: bool,
}

impl Agents {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let mut requires = Requirements::none();
        for text in &self.require {
            requires.add_text(text).map_err(|error| Failure::usage(format!("--require: {error}")))?;
        }
        if let (true, Some(capability)) = (self.best, &self.capability) {
            let (capability, resources) = (capability.clone(), Resources::new());
            let request = FindAgents { capability, requires, resources, limit: None };
            return best(context, &request, self.json).await;
        }
        let request = ListAgents { capability: self.capability, requires, gone: self.gone };
        let client = context.client().await?;
        if self.follow {
            return follow(context, client.live_agents(request).await?, self.json, table).await;
        }
        let list = client.list_agents(&request).await?;
        if self.json {
            context.out.json(&list)?;
        } else {
            context.out.table(&table(&list))?;
        }
        Ok(Exit::Done)
    }
}

fn table(list: &AgentList) -> Table {
    let mut table = Table::new(["agent", "status", "type", ">slots", "holds", "resources in use", "breakers", "heard"]);
    for agent in &list.agents {
        table.row(row(agent, now()));
    }
    table
}

fn row(agent: &AgentView, now: u64) -> Vec<Cell> {
    let status = match agent.status {
        AgentStatus::Idle => "idle",
        AgentStatus::Busy => "busy",
        AgentStatus::Gone => "gone",
    };
    let also = agent.capabilities.keys().filter(|capability| **capability != agent.agent_type);
    let also: String = also.map(|capability| format!(", {capability}")).collect();
    let leases: Vec<_> = agent
        .leases
        .iter()
        .map(|held| format!("{}/{} ({})", held.task.part(), held.task.attempt, held.lease))
        .collect();
    vec![
        agent.agent.to_string().into(),
        Cell::status(status),
        format!("{}{also}", agent.agent_type).into(),
        format!("{}/{}", agent.leases.len(), agent.slots).into(),
        leases.join(" ").into(),
        resources(&agent.resources, &agent.in_use).into(),
        troubles(agent, now).into(),
        agent.heard_at.map_or_else(|| "not yet".to_owned(), |heard| ago(heard, now)).into(),
    ]
}

async fn best(context: &Context, request: &FindAgents, json: bool) -> anyhow::Result<Exit> {
    let found = context.client().await?.find_agents(request).await?;
    if json {
        context.out.json(&found)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(["agent", "room", ">slots", ">score", "breaker"]);
    for agent in &found.agents {
        table.row([
            agent.agent.to_string().into(),
            if agent.has_room { "yes" } else { "no" }.into(),
            format!("{}/{}", agent.holds, agent.slots).into(),
            format!("{:.3}", agent.score).into(),
            agent.breaker.as_str().replace('_', "-").into(),
        ]);
    }
    context.out.table(&table)?;
    Ok(Exit::Done)
}

/// What keeps an agent from being given tasks, or may soon; and that it is asked to begin anew.
fn troubles(agent: &AgentView, now: u64) -> String {
    let restart = agent.restart_asked.map(|since| format!("asked to begin anew {}", ago(since, now)));
    let breakers = Some(breakers(&agent.breakers, now)).filter(|breakers| !breakers.is_empty());
    breakers.into_iter().chain(restart).collect::<Vec<_>>().join("; ")
}

fn breakers(breakers: &[BreakerView], now: u64) -> String {
    let one = |breaker: &BreakerView| {
        let BreakerView { capability, state, failed, of, until, probes_left } = breaker;
        match state {
            BreakerState::Closed => format!("{capability}: {failed} of {of} failed"),
            BreakerState::HalfOpen => format!("{capability} half-open, {} to go", probes_left.unwrap_or_default()),
            BreakerState::Open => {
                format!("{capability} open for {}", span(until.unwrap_or_default().saturating_sub(now)))
            }
        }
    };
    breakers.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn resources(all: &Resources, in_use: &Resources) -> String {
    let part = |(name, amount)| format!("{name} {}/{amount}", in_use.get(name).copied().unwrap_or_default());
    all.iter().map(part).collect::<Vec<_>>().join(", ")
}
