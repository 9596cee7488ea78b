//! `baton run`

use std::path::PathBuf;
use std::time::Duration;

use baton_client::{Client, DEADLINE};
use baton_protocol::request::{StartRun, Strategy};
use baton_protocol::run::RunStatus;
use baton_protocol::{Amount, AtLimit, Budget, ResourceName, RunId, WorkflowName};
use clap::Args;

use crate::failure::Exit;
use crate::filter::{meta, metadata_of};
use crate::input::{Pair, input, pair};
use crate::watch::{Show, say, watch};
use crate::{Context, show};

/// Starts a run of a workflow, and prints its id
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The workflow
    workflow: WorkflowName,
    /// A part of the input: `topic=leases`, `n=3`, `list=[1,2]`; what is not JSON is text
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = pair)]
    input: Vec<Pair>,
    /// The input, a JSON object, from a file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    input_file: Option<PathBuf>,
    /// The same key gives the same run: repeating the command starts nothing new
    #[arg(long)]
    key: Option<String>,
    /// Noted about the run, to find it again: `--meta customer=acme`
    #[arg(long, value_name = "KEY=VALUE", value_parser = meta)]
    meta: Vec<(String, String)>,
    /// Who it is for: tenants share agents by their weights. The same as `--meta tenant=NAME`
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Larger goes first
    #[arg(long, default_value_t = 0, value_name = "N", allow_negative_numbers = true)]
    priority: i32,
    /// How its tasks are placed, instead of as those of all runs are: ADAPTIVE, ROUND_ROBIN …
    #[arg(long, value_name = "STRATEGY")]
    strategy: Option<Strategy>,
    /// In how many seconds it should have ended: placement strives for it, nothing ends because of it
    #[arg(long, value_name = "SECONDS")]
    due: Option<u64>,
    /// What it may cost at the most, instead of what the definition says
    #[arg(long, value_name = "AMOUNT")]
    budget: Option<Amount>,
    /// The budget that it is paid from
    #[arg(long, value_name = "NAME")]
    budget_of: Option<ResourceName>,
    /// The currency of its budget, where that is a part of no other
    #[arg(long, value_name = "CODE", requires = "budget")]
    currency: Option<String>,
    /// What becomes of a task when its budget is used up: wait, fail or ask
    #[arg(long, value_name = "WHAT", default_value_t = AtLimit::Wait)]
    at_limit: AtLimit,
    /// Do all its stages, whatever was done before: no result is used again
    #[arg(long)]
    no_cache: bool,
    /// The workflow's version; the latest one unless given
    #[arg(long, value_name = "N")]
    version: Option<u32>,
    /// When it is refused for the moment (too many runs are live, the log is full), ask again for that long instead of
    /// giving up at once
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    patience: u64,
    /// Watch the run until it ends; the exit code says whether it succeeded
    #[arg(long, short)]
    watch: bool,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Run {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let budget = (self.budget.is_some() || self.budget_of.is_some()).then_some(Budget {
            limit: self.budget,
            of: self.budget_of,
            currency: self.currency,
            at_limit: self.at_limit,
        });
        let request = StartRun {
            version: self.version,
            priority: self.priority,
            key: self.key,
            strategy: self.strategy,
            due_ms: self.due.map(|seconds| seconds.saturating_mul(1000)),
            metadata: metadata_of(self.meta, self.tenant)?,
            budget,
            no_cache: self.no_cache,
            ..StartRun::new(self.workflow, input(self.input_file.as_deref(), &self.input)?)
        };
        let client = context.client().await?;
        // Waiting for room is for those who asked to: a script may have something better to do.
        let patience = Duration::from_secs(self.patience);
        let starter = client.clone().waits_when_refused(!patience.is_zero()).with_deadline(patience.max(DEADLINE));
        let request = StartRun { input: client.shrink(request.input).await?, ..request };
        let accepted = starter.start_run(request).await?;
        let run = accepted.run;
        if !self.watch {
            if self.json {
                context.out.json(&accepted)?;
            } else {
                // Only the id, for scripts: RUN=$(baton run article).
                context.out.line(&run.to_string())?;
                if context.out.terminal {
                    let there = if accepted.existing { "it was there already; " } else { "" };
                    say(&context.err.dim(&format!("{there}see `baton log {run} --follow`, `baton show {run}`")));
                }
            }
            return Ok(Exit::Done);
        }
        until_its_end(context, &client, run, self.json).await
    }
}

/// Watches a run until it ends, and shows what came of it.
pub(crate) async fn until_its_end(context: &Context, client: &Client, run: RunId, json: bool) -> anyhow::Result<Exit> {
    let shown = if json { Show::BarsOnly(context.err) } else { Show::Something(context.err) };
    let view = watch(client, run, shown).await?.view;
    if json {
        context.out.json(&view)?;
    } else {
        show::run(context.out, &view, false)?;
    }
    Ok(if view.status == RunStatus::Succeeded { Exit::Done } else { Exit::Failed })
}
