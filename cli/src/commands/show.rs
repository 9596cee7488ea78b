//! `baton show`

use clap::Args;

use crate::failure::{Exit, Failure};
use crate::show::{document, run as show};
use crate::{Context, markdown, pick};

/// Shows a run with its stages and attempts
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The run: its id, a part of it, or `last`
    run: String,
    /// Show every stage, also of a run that has many
    #[arg(long)]
    all: bool,
    /// Write the document that the run made, and nothing else
    #[arg(long, conflicts_with = "json")]
    document: bool,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let run = pick::run(&client, &self.run).await?;
        let view = client.get_run(run).await?;
        if self.json {
            context.out.json(&view)?;
        } else if self.document {
            let none = || Failure::new(Exit::Failed, format!("no stage of run {run} has made a document"));
            let document = document(&view).ok_or_else(none)?;
            context.out.text(&markdown::for_output(&document, context.out))?;
        } else {
            show(context.out, &view, self.all)?;
        }
        Ok(Exit::Done)
    }
}
