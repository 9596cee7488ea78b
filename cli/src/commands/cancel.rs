//! `baton cancel`

use baton_client::Client;
use baton_protocol::request::{CancelRun, CancelRuns};
use clap::Args;

use crate::failure::{Exit, Failure};
use crate::filter::Filter;
use crate::text::count;
use crate::{Context, pick};

/// Cancels a run, or all live ones that are meant: agents are told to stop, and what they hold is free again
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The run: its id, a part of it, or `last`
    #[arg(required_unless_present_any = ["all", "workflow", "since", "until", "meta", "paused"])]
    run: Option<String>,
    #[command(flatten)]
    filter: Filter,
    /// All live runs, or all that the options above mean
    #[arg(long)]
    all: bool,
    /// Why, for those who read the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Write the answer as JSON; of many, each that is cancelled
    #[arg(long)]
    json: bool,
}

impl Cancel {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let Some(run) = &self.run else { return self.many(context, &client).await };
        if self.all || self.filter.says() {
            return Err(Failure::usage("give either a run, or what the runs that are meant have in common").into());
        }
        let run = pick::run(&client, run).await?;
        let accepted = client.cancel_run(&CancelRun { run, reason: self.reason }).await?;
        if self.json {
            context.out.json(&accepted)?;
        } else {
            context.out.line(&format!("run {run} is {}", accepted.status))?;
        }
        Ok(Exit::Done)
    }

    /// Asks until there are no more.
    async fn many(self, context: &Context, client: &Client) -> anyhow::Result<Exit> {
        if !self.all {
            let hint = "add --all, if all of them are meant";
            return Err(Failure::usage("the options mean any number of runs").hint(hint).into());
        }
        let request = CancelRuns { filter: self.filter.filter()?, all: true, reason: self.reason, limit: None };
        let mut cancelled = 0;
        loop {
            let answer = client.cancel_runs(&request).await?;
            cancelled += answer.runs.len();
            for run in &answer.runs {
                context.out.line(&run.to_string())?;
            }
            if !answer.more {
                break;
            }
        }
        if !self.json {
            crate::watch::say(&context.err.dim(&format!("{} cancelled", count(cancelled, "run"))));
        }
        Ok(Exit::Done)
    }
}
