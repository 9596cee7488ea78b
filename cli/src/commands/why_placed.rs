//! `baton why-placed`

use baton_client::now;
use baton_protocol::StageName;
use baton_protocol::request::{ExplainPlacement, PlacementExplained};
use clap::Args;

use crate::failure::Exit;
use crate::output::{Cell, Output, Table};
use crate::text::{ago, span};
use crate::{Context, pick};

/// Says why an agent has a task, or why the task waits: who was considered, and how each was weighed
#[derive(Debug, Args)]
pub(crate) struct WhyPlaced {
    /// The run: its id, a part of it, or `last`
    run: String,
    /// The stage
    stage: StageName,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

/// What may have been weighed, in the order in which it is shown.
const TERMS: [&str; 11] = [
    ">trail",
    ">skill",
    ">load",
    ">priority",
    ">score",
    ">idle_ms",
    ">available_ms",
    ">duration_ms",
    ">failure",
    ">failure_cost_ms",
    ">ends_ms",
];

impl WhyPlaced {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let run = pick::run(&client, &self.run).await?;
        let why = client.explain_placement(&ExplainPlacement { run, stage: self.stage }).await?;
        if self.json {
            context.out.json(&why)?;
        } else {
            show(context.out, &why)?;
        }
        Ok(Exit::Done)
    }
}

fn show(out: Output, why: &PlacementExplained) -> anyhow::Result<()> {
    let agent = why.agent.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    out.line(&format!("task      {}\nagent     {agent}\nstrategy  {}", why.task, why.strategy))?;
    match (why.since, why.at) {
        (Some(since), Some(at)) => out.line(&format!("waited    {}", span(at.saturating_sub(since))))?,
        (Some(since), None) => out.line(&format!("waits     since {}", ago(since, now())))?,
        (None, _) => {}
    }
    out.line(&format!("\n{}", why.reason))?;
    let said = |title: &&&str| why.candidates.iter().any(|candidate| candidate.terms.contains_key(&title[1..]));
    let titles: Vec<&'static str> = TERMS.iter().filter(said).copied().collect();
    let mut table = Table::new(["agent", "room"].into_iter().chain(titles.iter().copied()).collect::<Vec<_>>());
    for candidate in &why.candidates {
        let room = if candidate.has_room { "yes" } else { "no" };
        let term = |title: &&str| candidate.terms.get(&title[1..]).map_or_else(String::new, |term| number(*term));
        let terms = titles.iter().map(term);
        let cells = [candidate.agent.to_string(), room.to_owned()].into_iter().chain(terms);
        table.row(cells.map(Cell::from).collect::<Vec<_>>());
    }
    if !table.is_empty() {
        out.line("")?;
        out.table(&table)?;
    }
    Ok(())
}

/// As many digits as say something.
fn number(value: f64) -> String {
    if value.fract().abs() < 1e-9 || value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}
