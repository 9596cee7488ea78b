//! `baton runs`

use baton_client::now;
use baton_protocol::RunId;
use baton_protocol::record::Parent;
use baton_protocol::request::{ListRuns, RunFilter};
use baton_protocol::run::{RunStatus, RunSummary};
use clap::Args;

use crate::Context;
use crate::failure::Exit;
use crate::filter::Filter;
use crate::output::{Cell, Table};
use crate::text::{ago, count, span};

/// Lists runs, the newest first: those that run, and those that ended lately
#[derive(Debug, Args)]
pub(crate) struct Runs {
    #[command(flatten)]
    filter: Filter,
    /// Only runs that stand so: running, succeeded, failed, cancelled, timed_out
    #[arg(long, value_parser = status)]
    status: Option<RunStatus>,
    /// Only runs older than this one: the last of the page before
    #[arg(long, value_name = "RUN")]
    before: Option<RunId>,
    /// Also runs that are a part of another one: that do a stage of it
    #[arg(long)]
    children: bool,
    /// Only those that are a part of this run
    #[arg(long, value_name = "RUN")]
    of: Option<RunId>,
    /// At most so many
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Runs {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let RunFilter { workflow, since, until, metadata, paused } = self.filter.filter()?;
        let request = ListRuns {
            workflow,
            status: self.status,
            limit: Some(self.limit),
            before: self.before,
            since,
            until,
            metadata,
            paused,
            children: self.children,
            parent: self.of,
        };
        let list = context.client().await?.list_runs(&request).await?;
        if self.json {
            context.out.json(&list)?;
            return Ok(Exit::Done);
        }
        let within = self.children || self.of.is_some();
        let mut columns = vec!["run", "workflow", "status", "stages", "started", ">took", ">cost"];
        columns.extend(within.then_some("does"));
        let mut table = Table::new(columns);
        for run in &list.runs {
            let mut cells = row(run, now());
            if within {
                let does =
                    run.parent.as_ref().map(|Parent { task, .. }| format!("{} of run {}", task.part(), task.run));
                cells.push(does.unwrap_or_default().into());
            }
            table.row(cells);
        }
        context.out.table(&table)?;
        if context.out.terminal {
            let all: Vec<_> = list.counts.iter().map(|(status, count)| format!("{count} {status}")).collect();
            let all = if all.is_empty() { "no run yet".to_owned() } else { all.join(", ") };
            let shown =
                if list.more { format!("{} shown; in all ", count(list.runs.len(), "run")) } else { String::new() };
            context.out.line(&context.out.style.dim(&format!("{shown}{all}")))?;
        }
        Ok(Exit::Done)
    }
}

fn row(run: &RunSummary, now: u64) -> Vec<Cell> {
    vec![
        run.run.to_string().into(),
        format!("{} v{}", run.workflow, run.version).into(),
        if run.paused { Cell::status("paused") } else { Cell::status(run.status.as_str()) },
        format!("{}/{}", run.stages_ended, run.stages).into(),
        ago(run.started_at, now).into(),
        span(run.ended_at.unwrap_or(now).saturating_sub(run.started_at)).into(),
        run.cost.to_string().into(),
    ]
}

pub(crate) fn status(text: &str) -> Result<RunStatus, String> {
    let known =
        [RunStatus::Running, RunStatus::Succeeded, RunStatus::Failed, RunStatus::Cancelled, RunStatus::TimedOut];
    known
        .into_iter()
        .find(|status| status.as_str() == text.replace('-', "_"))
        .ok_or_else(|| format!("it must be one of {}", known.map(RunStatus::as_str).join(", ")))
}
