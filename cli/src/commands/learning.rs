//! `baton learning`

use std::path::PathBuf;

use anyhow::Context as _;
use baton_protocol::request::{GetLearning, ImportLearning, Lesson, MAX_LESSONS};
use clap::{Args, Subcommand};

use crate::Context;
use crate::failure::Exit;

/// The most bytes of lessons in one request.
const BATCH: usize = 400 * 1024;

/// What was learned of agents and tasks: export it, import it
#[derive(Debug, Subcommand)]
pub(crate) enum Learning {
    /// Write all that was learned, a lesson a line as JSON
    Export,
    /// Take what was exported, in place of what was learned here of the same agents, kinds and stages
    Import(Import),
}

/// See [`Learning::Import`].
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The file; `-` is standard input
    file: PathBuf,
}

impl Learning {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        match self {
            Self::Export => export(context).await,
            Self::Import(Import { file }) => import(context, &file).await,
        }
    }
}

async fn export(context: &Context) -> anyhow::Result<Exit> {
    let client = context.client().await?;
    let mut after = None;
    loop {
        let page = client.get_learning(&GetLearning { after }).await?;
        for lesson in &page.lessons {
            context.out.json_line(lesson)?;
        }
        after = page.lessons.last().map(|lesson| lesson.of.clone());
        if !page.more || after.is_none() {
            return Ok(Exit::Done);
        }
    }
}

async fn import(context: &Context, file: &std::path::Path) -> anyhow::Result<Exit> {
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).context("standard input can not be read")?
    } else {
        std::fs::read_to_string(file).with_context(|| format!("{} can not be read", file.display()))?
    };
    let client = context.client().await?;
    let (mut lessons, mut bytes, mut count) = (Vec::new(), 0, 0);
    for (nth, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let lesson: Lesson =
            serde_json::from_str(line).with_context(|| format!("line {} is no lesson of an export", nth + 1))?;
        if lessons.len() == MAX_LESSONS || bytes + line.len() > BATCH {
            count += lessons.len();
            client.import_learning(&ImportLearning { lessons: std::mem::take(&mut lessons) }).await?;
            bytes = 0;
        }
        bytes += line.len();
        lessons.push(lesson);
    }
    count += lessons.len();
    client.import_learning(&ImportLearning { lessons }).await?;
    context.out.line(&format!("{count} lessons imported"))?;
    Ok(Exit::Done)
}
