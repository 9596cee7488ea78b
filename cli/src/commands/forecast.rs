//! `baton forecast`

use baton_protocol::Millis;
use baton_protocol::request::{BackPressure, Forecast as Answer, LateRun};
use clap::Args;

use crate::Context;
use crate::failure::Exit;
use crate::output::{Output, Table};
use crate::text::span;

/// Says when what waits will be done, which of the runs that are due will be late, and what would help: if nothing more comes, and all goes
/// as was learned. Exit code 1 if whoever starts runs should hold back
#[derive(Debug, Args)]
pub(crate) struct Forecast {
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Forecast {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let answer = context.client().await?.forecast_queue().await?;
        if self.json {
            context.out.json(&answer)?;
        } else {
            show(context.out, &answer)?;
        }
        Ok(if answer.back_pressure == BackPressure::None { Exit::Done } else { Exit::Failed })
    }
}

fn show(out: Output, answer: &Answer) -> anyhow::Result<()> {
    let holds = match answer.back_pressure {
        BackPressure::None => "no need to hold back",
        BackPressure::Elevated => "elevated: what matters less should wait",
        BackPressure::Critical => "critical: nothing should be started that can wait",
    };
    out.line(&format!(
        "due       {} runs; {} of them will be late, {} because of others",
        answer.due, answer.late, answer.held_up
    ))?;
    out.line(&format!("pressure  {holds}"))?;
    if let Some(after) = answer.retry_after_ms {
        out.line(&format!("done      what waits now in {}", span(after)))?;
    }
    for line in &answer.advice {
        out.line(&format!("          - {line}"))?;
    }
    let mut queues = Table::new(["agents", ">waiting", ">work", ">slots", ">begun in", ">late", ">more slots"]);
    for queue in &answer.queues {
        queues.row([
            queue.agent_type.to_string().into(),
            queue.queued.to_string().into(),
            span(queue.work_ms).into(),
            format!("{:.1}", queue.slots).into(),
            queue.begun_after_ms.map_or_else(|| "never".to_owned(), span).into(),
            queue.late.to_string().into(),
            queue.more.to_string().into(),
        ]);
    }
    let mut runs = Table::new(["run", "workflow", ">late by", ">at best", "waits for"]);
    for run in &answer.runs {
        let by = |ends: Millis| span(ends.saturating_sub(run.due));
        let LateRun { run: id, workflow, could_end, ends, waits_for, .. } = run;
        runs.row([
            id.to_string().into(),
            workflow.to_string().into(),
            ends.map_or_else(|| "for ever".to_owned(), by).into(),
            by(*could_end).into(),
            waits_for.as_ref().map(ToString::to_string).unwrap_or_default().into(),
        ]);
    }
    for table in [queues, runs].iter().filter(|table| !table.is_empty()) {
        out.line("")?;
        out.table(table)?;
    }
    Ok(())
}
