//! `baton forecast`

use baton_protocol::Millis;
use baton_protocol::request::{BackPressure, Forecast as Answer, Late};
use clap::Args;

use crate::Context;
use crate::failure::Exit;
use crate::output::{Output, Table};
use crate::text::span;

/// Says when what waits will be begun, what of that which is due will be late, and what would help: if nothing more comes, and all goes
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
    let Answer { due, late, held_up, .. } = answer;
    out.line(&format!("due       {due}; {late} of them will be late, {held_up} because of others"))?;
    out.line(&format!(
        "pressure  {}",
        match answer.back_pressure {
            BackPressure::None => "none",
            BackPressure::Elevated => "elevated: what matters less should wait",
            BackPressure::Critical => "critical: nothing should be started that can wait",
        }
    ))?;
    if let Some(after) = answer.retry_after_ms {
        out.line(&format!("begun     all that waits now in {}", span(after)))?;
    }
    for line in &answer.advice {
        out.line(&format!("          - {line}"))?;
    }
    let mut queues = Table::new(["agents", ">waiting", ">work", ">slots", ">begun in", ">late", ">more slots"]);
    for queue in &answer.queues {
        queues.row([
            queue.agent_type.to_string().into(),
            queue.waiting.to_string().into(),
            span(queue.work_ms).into(),
            format!("{:.1}", queue.slots).into(),
            queue.begun_after_ms.map_or_else(|| "never".to_owned(), span).into(),
            queue.late.to_string().into(),
            queue.more.to_string().into(),
        ]);
    }
    let mut late = Table::new(["run", "workflow", "stage", ">late by", ">at best", "waits for"]);
    for Late { run, workflow, stage, due, ends, could_end, waits_for } in &answer.first {
        let by = |ends: Millis| span(ends.saturating_sub(*due));
        late.row([
            run.to_string().into(),
            workflow.to_string().into(),
            stage.as_ref().map(ToString::to_string).unwrap_or_default().into(),
            ends.map_or_else(|| "for ever".to_owned(), by).into(),
            by(*could_end).into(),
            waits_for.as_ref().map(ToString::to_string).unwrap_or_default().into(),
        ]);
    }
    for table in [queues, late].iter().filter(|table| !table.is_empty()) {
        out.line("")?;
        out.table(table)?;
    }
    Ok(())
}
