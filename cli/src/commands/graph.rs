//! `baton workflow graph`

use std::path::{Path, PathBuf};

use baton_client::Client;
use baton_protocol::request::GetWorkflow;
use baton_protocol::{Code, WorkflowName};
use clap::Args;

use crate::failure::Failure;
use crate::graph::{Graph, lanes, svg};
use crate::groups::MANY;
use crate::text::count;
use crate::{Context, files, pick};

/// Draws the graph of a definition, of a registered workflow, or of a run with the states of its stages
#[derive(Debug, Args)]
pub(crate) struct Draw {
    /// A file with a definition (a path with a dot or a slash, or `-`), the name of a workflow, or a run: its id, a part of
    /// it, or `last`
    what: String,
    /// Write an SVG into a file; `-` is standard output
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Draw every stage for itself, also where many stand at the same place
    #[arg(long)]
    all: bool,
}

impl Draw {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let graph = graph(context, &self.what).await?;
        let stages = graph.stages();
        let graph = if self.all || stages < MANY { graph } else { graph.folded() };
        let out = context.out;
        let Some(file) = self.svg else {
            let title = format!("{}: {}", graph.title, count(stages, "stage"));
            return out.text(&format!("{}\n\n{}", out.style.bold(&title), lanes::draw(&graph, out.width(), out.style)));
        };
        let drawn = svg::draw(&graph);
        if file == Path::new("-") {
            return out.text(&drawn);
        }
        let failed = |error| Failure::usage(format!("{} can not be written: {error}", file.display()));
        std::fs::write(&file, drawn).map_err(failed)?;
        out.line(&format!("{}: {}, {}", file.display(), graph.title, count(stages, "stage")))
    }
}

async fn graph(context: &Context, what: &str) -> anyhow::Result<Graph> {
    // A name has neither dots nor slashes.
    if what == "-" || what.contains(['.', '/', '\\']) {
        let definition = baton_workflow_manager::definition::parse(&files::read(Path::new(what))?)
            .map_err(|error| Failure::usage(format!("{what}: {error}")))?;
        return Ok(Graph::of(format!("workflow {}", definition.name), &definition));
    }
    let client = context.client().await?;
    match what.parse::<WorkflowName>() {
        Ok(name) if what != "last" && what.parse::<baton_protocol::RunId>().is_err() => {
            let found = client.get_workflow(&GetWorkflow { name, version: None }).await;
            let is_hex = what.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
            match found {
                Ok(view) => {
                    let title = format!("workflow {} v{}", view.definition.name, view.version);
                    Ok(Graph::of(title, &view.definition))
                }
                // The last characters of a run's id look like a name.
                Err(error) if error.code() == Some(Code::UnknownWorkflow) && is_hex => of_run(&client, what).await,
                Err(error) => Err(error.into()),
            }
        }
        _ => of_run(&client, what).await,
    }
}

async fn of_run(client: &Client, what: &str) -> anyhow::Result<Graph> {
    let run = pick::run(client, what).await?;
    let view = client.get_run(run).await?;
    let definition = client.definition_of(&view).await?;
    let title = format!("run {run} of {} v{}, {}", view.workflow, view.version, view.status);
    Ok(Graph::of(title, &definition).with_states(&view))
}
