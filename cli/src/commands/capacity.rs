//! `baton capacity`

use std::collections::BTreeMap;

use baton_protocol::request::{CapacityPlan, PlanCapacity};
use baton_protocol::{Capability, WorkflowName};
use clap::Args;

use crate::Context;
use crate::failure::Exit;
use crate::output::{Output, Table};
use crate::text::span;

/// Says how many agents of which type a workflow and a rate of runs need
#[derive(Debug, Args)]
pub(crate) struct Capacity {
    /// The workflow, in its latest version
    workflow: WorkflowName,
    /// How many runs begin in an hour
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    runs_per_hour: f64,
    /// How many times more work they are than those that were learned from
    #[arg(long, value_name = "TIMES", default_value_t = 1.0)]
    complexity: f64,
    /// Which part of the slots should be in use at the most
    #[arg(long, value_name = "PART", default_value_t = 0.8)]
    utilization: f64,
    /// What if there were so many slots more: `--more research=2`
    #[arg(long, value_name = "TYPE=N", value_parser = more)]
    more: Vec<(Capability, u32)>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

fn more(text: &str) -> Result<(Capability, u32), String> {
    let (agent_type, slots) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is not TYPE=N, as in research=2"))?;
    let agent_type = agent_type.parse().map_err(|error: baton_protocol::NameError| error.to_string())?;
    Ok((agent_type, slots.parse().map_err(|error| format!("{slots:?} is no number of slots: {error}"))?))
}

impl Capacity {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let request = PlanCapacity {
            workflow: self.workflow,
            runs_per_hour: self.runs_per_hour,
            complexity: self.complexity,
            utilization: self.utilization,
            more: self.more.into_iter().collect::<BTreeMap<_, _>>(),
        };
        let plan = context.client().await?.plan_capacity(&request).await?;
        if self.json {
            context.out.json(&plan)?;
        } else {
            show(context.out, &plan)?;
        }
        Ok(Exit::Done)
    }
}

fn show(out: Output, plan: &CapacityPlan) -> anyhow::Result<()> {
    let formula = &plan.formula;
    out.line(&format!(
        "by the formula  {} agents = {} stages x {} side by side x complexity {}\nshortest run    {}\ntokens a run    {}\n",
        formula.required,
        formula.stages,
        formula.parallel_stages,
        formula.complexity,
        span(plan.shortest_run_ms),
        plan.tokens
    ))?;
    let titles = ["type", ">stages", ">work a run", ">slots at work", ">needed", ">there", ">supposed", ">utilization"];
    let mut table = Table::new(titles);
    for of in &plan.agents {
        let utilization = of.utilization.map_or_else(|| "-".to_owned(), |part| format!("{:.0} %", 100.0 * part));
        table.row([
            of.agent_type.to_string().into(),
            of.stages.to_string().into(),
            span(of.work_ms).into(),
            format!("{:.2}", of.busy).into(),
            of.needed.to_string().into(),
            of.slots.to_string().into(),
            of.more.to_string().into(),
            utilization.into(),
        ]);
    }
    out.table(&table)?;
    for line in &plan.advice {
        out.line(&format!("\n{line}"))?;
    }
    Ok(())
}
