//! `baton strategy`

use baton_client::now;
use baton_protocol::request::{PlacementView, Strategy as Chosen};
use clap::Args;

use crate::Context;
use crate::failure::Exit;
use crate::output::{Output, Table};
use crate::text::{ago, span};

/// Shows how tasks are placed, what waits, and what was learned; or changes how tasks are placed, from now on
#[derive(Debug, Args)]
pub(crate) struct Strategy {
    /// The strategy from now on: ROUND_ROBIN, PRIORITY_BASED, LOAD_BALANCED, ADAPTIVE, HISTORICAL or SWARM
    set: Option<Chosen>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Strategy {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        if let Some(strategy) = self.set {
            client.set_strategy(strategy).await?;
        }
        let view = client.get_placement().await?;
        match (self.json, self.set) {
            (true, _) => context.out.json(&view)?,
            (false, Some(_)) => context.out.line(view.strategy.as_str())?,
            (false, None) => show(context.out, &view)?,
        }
        Ok(Exit::Done)
    }
}

fn show(out: Output, view: &PlacementView) -> anyhow::Result<()> {
    out.line(&format!("strategy  {}\nqueued    {}", view.strategy.as_str(), view.queued))?;
    let figures = &view.figures;
    let part = |part: Option<f64>| part.map_or_else(|| "-".to_owned(), |part| format!("{:.1} %", 100.0 * part));
    let took = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| span(ms.round() as u64));
    out.line(&format!(
        "tasks     {} ended, {} of them well; {} in the last hour; {} at work\ntook      {} on average, after waiting {}\nagents    \
         {} of their slots in use; balance {}; regret {}",
        figures.total_coordinations,
        part(figures.success_rate),
        figures.throughput_per_hour,
        figures.active_coordinations,
        took(figures.average_coordination_ms),
        took(figures.average_wait_ms),
        part(figures.resource_efficiency),
        part(figures.balance),
        part(figures.regret),
    ))?;
    let mut queue = Table::new(["task", "for", ">priority", "waits since", ">expected"]);
    for task in &view.queue {
        queue.row([
            task.task.to_string().into(),
            task.agent_type.to_string().into(),
            task.priority.to_string().into(),
            ago(task.since, now()).into(),
            task.estimate_ms.map(span).unwrap_or_default().into(),
        ]);
    }
    let mut tenants = Table::new(["tenant", ">weight", ">waiting", ">at work"]);
    // Who is alone shares with nobody.
    for tenant in view.tenants.iter().filter(|_| view.tenants.len() > 1) {
        tenants.row([
            tenant.tenant.clone().unwrap_or_else(|| "(none)".to_owned()).into(),
            tenant.weight.to_string().into(),
            tenant.waiting.to_string().into(),
            tenant.active.to_string().into(),
        ]);
    }
    let mut agents = Table::new(["agent", ">score", ">succeeded", ">failed"]);
    for agent in &view.agents {
        agents.row([
            agent.agent.to_string().into(),
            format!("{:.3}", agent.score).into(),
            agent.succeeded.to_string().into(),
            agent.failed.to_string().into(),
        ]);
    }
    let mut stages = Table::new(["workflow", "stage", ">expected", ">learned from"]);
    for stage in &view.stages {
        stages.row([
            stage.workflow.to_string().into(),
            stage.stage.to_string().into(),
            span(stage.estimate_ms).into(),
            stage.samples.to_string().into(),
        ]);
    }
    for table in [queue, tenants, agents, stages].iter().filter(|table| !table.is_empty()) {
        out.line("")?;
        out.table(table)?;
    }
    Ok(())
}
