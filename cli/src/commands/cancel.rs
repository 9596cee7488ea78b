//! `baton cancel`

use baton_protocol::request::CancelRun;
use clap::Args;

use crate::failure::Exit;
use crate::{Context, pick};

/// Cancels a run: its agents are told to stop, and what they hold is free again
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The run: its id, a part of it, or `last`
    run: String,
    /// Why, for those who read its history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Cancel {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let run = pick::run(&client, &self.run).await?;
        let accepted = client.cancel_run(&CancelRun { run, reason: self.reason }).await?;
        if self.json {
            context.out.json(&accepted)?;
        } else {
            context.out.line(&format!("run {run} is {}", accepted.status))?;
        }
        Ok(Exit::Done)
    }
}
