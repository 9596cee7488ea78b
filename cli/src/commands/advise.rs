//! `baton advise`

use baton_protocol::WorkflowName;
use baton_protocol::request::{Advice, Advise as Request};
use clap::Args;
use serde_json::Value;

use crate::Context;
use crate::failure::Exit;
use crate::output::Output;

/// Says how agents should work together on a workflow, and why. What is not said follows from its graph
#[derive(Debug, Args)]
pub(crate) struct Advise {
    /// The workflow, in its latest version
    workflow: WorkflowName,
    /// For how many agents; unless given, those there are that can do some of its stages
    #[arg(long, value_name = "N")]
    agents: Option<u64>,
    /// Whether the order must be controlled strictly
    #[arg(long, value_name = "BOOL")]
    strict_order: Option<bool>,
    /// Whether there is a natural hierarchy
    #[arg(long, value_name = "BOOL")]
    hierarchy: Option<bool>,
    /// Whether the loss of any agent must not matter
    #[arg(long, value_name = "BOOL")]
    fault_tolerance: Option<bool>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Advise {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let Self { workflow, agents, strict_order, hierarchy, fault_tolerance, json } = self;
        let request = Request { workflow, agents, strict_order, hierarchy, fault_tolerance };
        let advice = context.client().await?.advise(&request).await?;
        if json {
            context.out.json(&advice)?;
        } else {
            show(context.out, &advice)?;
        }
        Ok(Exit::Done)
    }
}

fn show(out: Output, advice: &Advice) -> anyhow::Result<()> {
    out.line(&format!("agents    {}", advice.agents))?;
    let protocol = (&serde_json::to_value(advice.protocol.choice)?, &advice.protocol.reasons);
    let pattern = (&serde_json::to_value(advice.pattern.choice)?, &advice.pattern.reasons);
    for (what, (choice, reasons)) in [("protocol", protocol), ("pattern", pattern)] {
        out.line(&format!("{what:9} {}", named(choice)))?;
        for reason in reasons {
            out.line(&format!("          - {reason}"))?;
        }
    }
    Ok(())
}

/// A choice in words: `hybrid: centralized swarm`.
fn named(choice: &Value) -> String {
    let plain = |text: &str| text.replace('_', " ");
    match choice {
        Value::String(name) => plain(name),
        Value::Object(of) => of.iter().map(|(kind, name)| format!("{}: {}", plain(kind), named(name))).collect(),
        other => other.to_string(),
    }
}
