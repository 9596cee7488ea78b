//! `baton log`

use std::collections::{BTreeMap, VecDeque};
use std::future::ready;

use baton_client::{Client, RunEvent};
use baton_protocol::record::Event;
use baton_protocol::{RunId, StageName, TaskId};
use clap::Args;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;

use crate::failure::{Exit, Failure};
use crate::text::short;
use crate::transcript::Transcript;
use crate::{Context, pick};

/// Shows a run's records, in the order of the log
#[derive(Debug, Args)]
pub(crate) struct Log {
    /// The run: its id, a part of it, or `last`
    run: String,
    /// Go on until the run ends
    #[arg(long, short)]
    follow: bool,
    /// Only records of this stage, and the run's first and last
    #[arg(long, value_name = "NAME")]
    stage: Option<StageName>,
    /// Only the last so many records
    #[arg(long, value_name = "N", conflicts_with = "follow")]
    last: Option<usize>,
    /// Write each record as JSON, one a line
    #[arg(long)]
    json: bool,
}

impl Log {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let run = pick::run(&client, &self.run).await?;
        if let Some(stage) = &self.stage {
            check_stage(&client, run, stage).await?;
        }
        let events = if self.follow { follow(&client, run).await? } else { so_far(&client, run).await? };
        let stage = self.stage;
        let mut events = events.try_filter(move |event| ready(is_of(event, stage.as_ref()))).boxed();
        let mut transcript = Transcript::new(context.out.style);
        if let Some(most) = self.last {
            let (mut kept, mut first) = (VecDeque::new(), None);
            while let Some(event) = events.try_next().await? {
                first.get_or_insert(event.at);
                kept.push_back(event);
                if kept.len() > most {
                    kept.pop_front();
                }
            }
            // Times are told from the run's start, whichever record is shown first.
            transcript = first.map_or(transcript, |first| Transcript::since(first, context.out.style));
            events = stream::iter(kept.into_iter().map(Ok)).boxed();
        }
        while let Some(event) = events.try_next().await? {
            if self.json {
                context.out.json_line(&event)?;
            } else {
                context.out.line(&transcript.line(&event))?;
            }
        }
        if !self.json {
            context.out.line(&transcript.end())?;
        }
        Ok(Exit::Done)
    }
}

/// Says which stages there are, where a stage is asked for that there is not.
async fn check_stage(client: &Client, run: RunId, stage: &StageName) -> anyhow::Result<()> {
    let view = client.get_run(run).await?;
    // Of a run with very many stages the document may lack some.
    let definition = client.definition_of(&view).await?;
    if definition.stage(stage.as_str()).is_some() {
        return Ok(());
    }
    let names: Vec<_> = definition.stages.iter().map(|stage| stage.name.as_str()).collect();
    let message = format!("run {run} has no stage {stage}; its stages are: {}", short(&names.join(", "), 400));
    Err(Failure::usage(message).into())
}

/// Whether a record is about a stage. Those that are about the whole run always count.
fn is_of(event: &Event, stage: Option<&StageName>) -> bool {
    #[derive(Deserialize)]
    struct About {
        task: Option<TaskId>,
    }
    let Some(stage) = stage else { return true };
    // A record is written as its kind and its body.
    let body = event.record.read::<BTreeMap<String, About>>();
    body.is_ok_and(|body| body.values().all(|about| about.task.as_ref().is_none_or(|task| task.stage == *stage)))
}

type Events = BoxStream<'static, anyhow::Result<Event>>;

async fn follow(client: &Client, run: RunId) -> anyhow::Result<Events> {
    let events = client.run_events(run, None).await?.filter_map(async |event| match event {
        Ok(RunEvent::Record(event)) => Some(Ok(event)),
        Ok(RunEvent::Progress(_)) => None,
        Err(error) => Some(Err(error.into())),
    });
    Ok(events.boxed())
}

/// What is in the log now, up to the run's end if that is in it.
async fn so_far(client: &Client, run: RunId) -> anyhow::Result<Events> {
    Ok(client.run_records(run).await?.map_err(anyhow::Error::from).boxed())
}
