//! `baton agents`

use std::collections::BTreeMap;

use baton_client::now;
use baton_protocol::request::{AgentStatus, AgentView, ListAgents};
use baton_protocol::{Capability, Resources};
use clap::Args;

use crate::Context;
use crate::failure::Exit;
use crate::output::{Cell, Table};
use crate::text::ago;

/// Lists the agents
#[derive(Debug, Args)]
pub(crate) struct Agents {
    /// Only agents that can do this
    #[arg(long, value_name = "NAME")]
    capability: Option<Capability>,
    /// Also agents that are gone
    #[arg(long)]
    gone: bool,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Agents {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let request = ListAgents { capability: self.capability, metadata: BTreeMap::new(), gone: self.gone };
        let list = context.client().await?.list_agents(&request).await?;
        if self.json {
            context.out.json(&list)?;
            return Ok(Exit::Done);
        }
        let mut table = Table::new(["agent", "status", "type", ">slots", "holds", "resources in use", "heard"]);
        for agent in &list.agents {
            table.row(row(agent, now()));
        }
        context.out.table(&table)?;
        Ok(Exit::Done)
    }
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
        agent.heard_at.map_or_else(|| "not yet".to_owned(), |heard| ago(heard, now)).into(),
    ]
}

fn resources(all: &Resources, in_use: &Resources) -> String {
    let part = |(name, amount)| format!("{name} {}/{amount}", in_use.get(name).copied().unwrap_or_default());
    all.iter().map(part).collect::<Vec<_>>().join(", ")
}
