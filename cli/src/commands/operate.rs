//! `baton pause`, `baton resume`, `baton rerun`

use baton_protocol::request::{PauseRun, RerunRun};
use baton_protocol::{Amount, StageName};
use clap::Args;

use super::run::until_its_end;
use crate::failure::Exit;
use crate::{Context, pick};

/// Pauses a run: it begins nothing new; what agents have in hand goes on
#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// The run: its id, a part of it, or `last`
    run: String,
    /// Why, for those who find it paused
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Lets a paused run go on
#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// The run: its id, a part of it, or `last`
    run: String,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Starts a run that repeats one that has ended, from a stage on, and prints its id
#[derive(Debug, Args)]
pub(crate) struct Rerun {
    /// The run: its id, a part of it, or `last`
    run: String,
    /// The stage that is done anew, with all that depend on it and whatever did not succeed; other results are kept
    #[arg(long, value_name = "STAGE")]
    from: StageName,
    /// How much it may cost at the most, if that is not what the other run might
    #[arg(long, value_name = "AMOUNT")]
    budget: Option<Amount>,
    /// The same key gives the same run: repeating the command starts nothing new
    #[arg(long)]
    key: Option<String>,
    /// Watch the new run until it ends; the exit code says whether it succeeded
    #[arg(long, short)]
    watch: bool,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Pause {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let run = pick::run(&client, &self.run).await?;
        let accepted = client.pause_run(&PauseRun { run, reason: self.reason }).await?;
        if self.json {
            context.out.json(&accepted)?;
        } else {
            let before = if accepted.existing { " already" } else { "" };
            context.out.line(&format!("run {run} is paused{before}; `baton resume {run}` lets it go on"))?;
        }
        Ok(Exit::Done)
    }
}

impl Resume {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let run = pick::run(&client, &self.run).await?;
        let accepted = client.resume_run(run).await?;
        if self.json {
            context.out.json(&accepted)?;
        } else {
            let before = if accepted.existing { ": it was not paused" } else { "" };
            context.out.line(&format!("run {run} goes on{before}"))?;
        }
        Ok(Exit::Done)
    }
}

impl Rerun {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let run = pick::run(&client, &self.run).await?;
        let request = RerunRun { run, from: self.from, limit: self.budget, key: self.key, new_run: None };
        let accepted = client.rerun_run(request).await?;
        if self.watch {
            return until_its_end(context, &client, accepted.run, self.json).await;
        }
        if self.json {
            context.out.json(&accepted)?;
        } else {
            context.out.line(&accepted.run.to_string())?;
        }
        Ok(Exit::Done)
    }
}
