//! `baton approve`, `baton reject`, `baton signal`

use baton_protocol::request::{DecideStage, SignalRun};
use baton_protocol::{Json, SignalName, StageName};
use clap::Args;

use crate::failure::Exit;
use crate::input::{Pair, input, pair};
use crate::{Context, pick};

/// Approves a stage, or rejects it: `baton show RUN` says what is asked
#[derive(Debug, Args)]
pub(crate) struct Decide {
    /// The run: its id, a part of it, or `last`
    run: String,
    /// The stage that people decide on
    stage: StageName,
    /// Why, for those who read the run's history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Who decides, for those who read the run's history; the user that runs the command, unless given
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Decide {
    pub(crate) async fn run(self, context: &Context, approved: bool) -> anyhow::Result<Exit> {
        let Self { run, stage, reason, by, json } = self;
        let client = context.client().await?;
        let run = pick::run(&client, &run).await?;
        let by = by.or_else(user);
        let decided = client.decide_stage(&DecideStage { run, stage, approved, by, reason }).await?;
        if json {
            context.out.json(&decided)?;
        } else {
            let (done, before) =
                (if approved { "approved" } else { "rejected" }, if decided.existing { " before" } else { "" });
            context.out.line(&format!("stage {} of run {run} was {done}{before}", decided.stage))?;
        }
        Ok(Exit::Done)
    }
}

/// Gives a run a signal: every stage that waits for it goes on
#[derive(Debug, Args)]
pub(crate) struct Signal {
    /// The run: its id, a part of it, or `last`
    run: String,
    /// The signal, as a stage's `wait_for` names it
    signal: SignalName,
    /// A part of what comes with it: `price=3`, `list=[1,2]`; what is not JSON is text
    #[arg(long = "data", short = 'd', value_name = "KEY=VALUE", value_parser = pair)]
    data: Vec<Pair>,
    /// Who gives it, for those who read the run's history; the user that runs the command, unless given
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Signal {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let Self { run, signal, data, by, json } = self;
        let client = context.client().await?;
        let run = pick::run(&client, &run).await?;
        let payload = if data.is_empty() { Json::null() } else { input(None, &data)? };
        let by = by.or_else(user);
        let stored = client.signal_run(&SignalRun { run, signal, payload, by }).await?;
        if json {
            context.out.json(&stored)?;
        } else {
            let before = if stored.existing { " before" } else { "" };
            context.out.line(&format!("run {run} was given the signal {}{before}", stored.signal))?;
        }
        Ok(Exit::Done)
    }
}

/// Who runs the command, as far as the system says.
fn user() -> Option<String> {
    std::env::var("USER").ok().filter(|user| !user.is_empty())
}
