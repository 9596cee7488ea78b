//! `baton handoff`

use std::collections::BTreeMap;

use baton_client::{Client, RunEvent};
use baton_protocol::record::Event;
use baton_protocol::request::{AskHandoff, HandoffAsked};
use baton_protocol::{AgentId, Millis, Number, Part, RunId, TaskId};
use clap::Args;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use crate::failure::Exit;
use crate::{Context, pick};

/// Has a task that is under way handed over to another agent, which begins it anew: only its holder could say how far it is.
/// Waits until the other one has taken it; if that one does not, the task stays where it is
#[derive(Debug, Args)]
pub(crate) struct Handoff {
    /// The run: its id, a part of it, or `last`
    run: String,
    /// The stage, or STAGE.ITEM: its attempt that is under way
    stage: Part,
    /// Who is to take it; unless given, of those that can do it and have room the one with the most of its slots free
    #[arg(long, value_name = "AGENT")]
    to: Option<AgentId>,
    /// Why, for those who read the run's history
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// How long the other agent may take to answer, in milliseconds; 30000 unless given
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<Millis>,
    /// Do not wait for the other agent's answer
    #[arg(long)]
    no_wait: bool,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

/// How it ended.
#[derive(Debug, Serialize)]
struct Ended {
    #[serde(flatten)]
    asked: HandoffAsked,
    /// The taker's lease; none: it was not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<Number>,
    /// Why it was not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Handoff {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let run = pick::run(&client, &self.run).await?;
        let Self { stage, to, reason, timeout_ms, .. } = self;
        let request = AskHandoff { run, stage, from: None, to, reason, timeout_ms };
        let asked = client.ask_handoff(request).await?;
        let HandoffAsked { task, from, to, .. } = &asked;
        let which = format!("{}/{} of run {run}", task.part(), task.attempt);
        if self.no_wait {
            match self.json {
                true => context.out.json(&asked)?,
                false => context.out.line(&format!("{which} is offered by {from} to {to}"))?,
            }
            return Ok(Exit::Done);
        }
        let (lease, why) = outcome(&client, run, &asked).await?;
        let (line, exit) = match (&lease, &why) {
            (Some(lease), _) => (format!("{which} went from {from} to {to}, lease {lease}"), Exit::Done),
            (None, why) => {
                let why = why.as_deref().unwrap_or("no reason was given");
                (format!("{which} stays with {from}: {why}"), Exit::Failed)
            }
        };
        match self.json {
            true => context.out.json(&Ended { asked, lease, why })?,
            false => context.out.line(&line)?,
        }
        Ok(exit)
    }
}

/// The taker's lease, or why it has none.
async fn outcome(
    client: &Client,
    run: RunId,
    asked: &HandoffAsked,
) -> anyhow::Result<(Option<Number>, Option<String>)> {
    let mut events = client.run_events(run, None).await?;
    while let Some(event) = events.try_next().await? {
        let RunEvent::Record(event) = event else { continue };
        if let Some(outcome) = read(&event, asked) {
            return Ok(outcome);
        }
    }
    Ok((None, Some("the run is over".to_owned())))
}

/// What a record says of how the offer ended, if it does.
fn read(event: &Event, asked: &HandoffAsked) -> Option<(Option<Number>, Option<String>)> {
    #[derive(Deserialize)]
    struct Body {
        handoff: Option<Number>,
        task: Option<TaskId>,
        #[serde(default)]
        reason: String,
    }
    // A record is written as its kind and its body.
    let body = event.record.read::<BTreeMap<String, Body>>().ok()?.into_values().next()?;
    let of_it = body.handoff == Some(asked.handoff);
    match event.kind.as_str() {
        "handed_over" if of_it => Some((Some(event.number), None)),
        "handoff_ended" if of_it => Some((None, Some(body.reason))),
        "stage_ended" if body.task.as_ref() == Some(&asked.task) => Some((None, Some("the task has ended".to_owned()))),
        "run_finished" => Some((None, Some("the run is over".to_owned()))),
        _ => None,
    }
}
