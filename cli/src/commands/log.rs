//! `baton log`

use baton_client::{Client, RunEvent};
use baton_protocol::RunId;
use baton_protocol::record::Event;
use clap::Args;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};

use crate::failure::Exit;
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
    /// Write each record as JSON, one a line
    #[arg(long)]
    json: bool,
}

impl Log {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let run = pick::run(&client, &self.run).await?;
        let mut events = if self.follow { follow(&client, run).await? } else { so_far(&client, run).await? };
        let mut transcript = Transcript::new(context.out.style);
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
    let from = client.get_run(run).await?.first_seq;
    let to = client.log_ends().await?.last;
    let events = client.log(from, Some(to)).map_err(anyhow::Error::from).map_ok(move |(seq, commit)| {
        let of_run = |event: &Event| event.run == Some(run);
        let events = commit.events(seq).map_err(anyhow::Error::from);
        stream::iter(match events {
            Ok(events) => events.into_iter().filter(of_run).map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    });
    let mut ended = false;
    let until_end = events.try_flatten().take_while(move |event| {
        let go_on = !ended;
        ended = matches!(event, Ok(event) if event.kind == "run_finished");
        std::future::ready(go_on)
    });
    Ok(until_end.boxed())
}
