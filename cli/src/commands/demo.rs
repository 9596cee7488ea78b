//! `baton demo`

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use baton_broker::Durability;
use baton_client::Client;
use baton_protocol::request::StartRun;
use baton_protocol::run::{RunStatus, RunView, StageView};
use baton_protocol::{Json, Money, RunId, WorkflowName};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::agents::stock;
use crate::commands::agent::directory;
use crate::commands::up::ROLES;
use crate::failure::{Exit, Failure};
use crate::fleet::{BrokerPlan, Fleet, Plan, Signals};
use crate::output::{Cell, Table};
use crate::text::{slug, span};
use crate::transcript::transcript;
use crate::watch::{Show, Watched, say, watch};
use crate::{Context, markdown, services, show};

/// The project's own documentation, as it was when this binary was built: (name, text).
const DOCUMENTS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/documents.rs"));

/// Starts everything, lets agents write an article, shows it with what it took, stops everything
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// What to write about
    #[arg(long, default_value = "leases and fencing tokens in a fleet of agents")]
    topic: String,
    /// A directory of Markdown or text to draw on [default: Baton's own documentation, which is in this binary]
    #[arg(long, value_name = "DIR")]
    sources: Option<PathBuf>,
    /// The workflow
    #[arg(long, value_enum, default_value_t)]
    workflow: Workflow,
    /// Where the article goes [default: ./article-TOPIC.md]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write one JSON object instead
    #[arg(long)]
    json: bool,
    /// Where the data lies; it is kept then [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Never fetch a nats-server
    #[arg(long)]
    offline: bool,
}

/// A predefined workflow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Workflow {
    #[default]
    Article,
    Paper,
}

impl Workflow {
    fn name(self) -> &'static str {
        match self {
            Self::Article => "article",
            Self::Paper => "paper",
        }
    }
}

/// The run's input.
#[derive(Serialize)]
struct Input<'a> {
    topic: &'a str,
    sources: &'a Path,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    run: RunId,
    workflow: WorkflowName,
    status: RunStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    topic: String,
    stages: Vec<StageReport>,
    duration_ms: u64,
    cost: Money,
    tokens_in: u64,
    tokens_out: u64,
    /// The file with the article.
    document: Option<PathBuf>,
    trace_id: String,
}

#[derive(Debug, Serialize)]
struct StageReport {
    name: String,
    /// Who did the last attempt.
    agent: Option<String>,
    attempts: usize,
    status: &'static str,
    /// From the moment it could run to its end, all attempts included.
    duration_ms: u64,
}

impl Demo {
    pub(crate) async fn run(self, context: Context) -> anyhow::Result<Exit> {
        let mut signals = Signals::listen()?;
        let scratch = tempfile::Builder::new().prefix("baton-demo-").tempdir();
        let scratch = scratch.context("no temporary directory can be made")?;
        let sources = match &self.sources {
            Some(sources) => directory(sources)?,
            None => unpack(&scratch.path().join("documents"))?,
        };
        let plan = self.plan(&context, scratch.path(), sources.clone())?;
        if !self.json {
            say(&context.err.dim("starting a broker, four services and six agents …"));
        }
        let mut fleet = tokio::select! {
            fleet = Fleet::start(plan) => fleet?,
            () = signals.next() => return Ok(Exit::Interrupted),
        };
        let client = fleet.client.clone();
        let watched = tokio::select! {
            watched = self.write(&context, &client, &sources) => watched,
            failure = fleet.failed() => Err(failure),
            () = signals.next() => Err(Failure::new(Exit::Interrupted, "interrupted").into()),
        };
        drop(client);
        let stop = fleet.stop(|_| ());
        tokio::select! {
            () = stop => {}
            () = signals.next() => return Ok(Exit::Interrupted),
        }
        let Watched { view, events } = watched?;
        let document = self.keep(&view)?;
        if self.json {
            context.out.json(&self.report(&view, document))?;
        } else {
            let transcript = transcript(&events, context.out.style);
            self.tell(&context, &view, document.as_deref(), &transcript)?;
        }
        Ok(if view.status == RunStatus::Succeeded { Exit::Done } else { Exit::Failed })
    }

    fn plan(&self, context: &Context, scratch: &Path, sources: PathBuf) -> anyhow::Result<Plan> {
        let mut settings = context.settings.clone();
        settings.http.listen = "127.0.0.1:0".to_owned();
        Ok(Plan {
            broker: BrokerPlan::Own {
                data: self.data.clone().unwrap_or_else(|| scratch.join("data")),
                durability: Durability::Process,
                offline: self.offline,
                usual_port: false,
            },
            settings,
            agents: stock(&ROLES, None)?,
            sources: Some(sources),
        })
    }

    /// Runs the workflow.
    async fn write(&self, context: &Context, client: &Client, sources: &Path) -> anyhow::Result<Watched> {
        let request =
            StartRun::new(WorkflowName::new(self.workflow.name())?, Json::of(&Input { topic: &self.topic, sources })?);
        let run = client.start_run(request).await?.run;
        let shown = if self.json { Show::Nothing } else { Show::BarsOnly(context.err) };
        watch(client, run, shown).await
    }

    /// Writes the document into its file.
    fn keep(&self, view: &RunView) -> anyhow::Result<Option<PathBuf>> {
        let Some(document) = show::document(view).filter(|_| view.status == RunStatus::Succeeded) else {
            return Ok(None);
        };
        let path = self
            .out
            .clone()
            .unwrap_or_else(|| PathBuf::from(format!("./{}-{}.md", self.workflow.name(), slug(&self.topic))));
        fs::write(&path, format!("{}\n", document.trim_end()))
            .with_context(|| format!("{} can not be written", path.display()))?;
        Ok(Some(path))
    }

    fn report(&self, view: &RunView, document: Option<PathBuf>) -> Report {
        Report {
            run: view.run,
            workflow: view.workflow.clone(),
            status: view.status,
            reason: view.reason.clone(),
            topic: self.topic.clone(),
            stages: view.stages.iter().map(stage_report).collect(),
            duration_ms: view.ended_at.map_or(0, |end| end.saturating_sub(view.started_at)),
            cost: view.cost,
            tokens_in: view.usage.tokens_in,
            tokens_out: view.usage.tokens_out,
            document,
            trace_id: view.trace_id.clone(),
        }
    }

    /// Tells a person.
    fn tell(&self, context: &Context, view: &RunView, document: Option<&Path>, transcript: &str) -> anyhow::Result<()> {
        let out = context.out;
        let style = out.style;
        if let Some(text) = show::document(view) {
            out.line("")?;
            out.text(&markdown::for_output(&text, out))?;
        }
        out.line(&format!("\n{}", style.bold("What happened")))?;
        out.text(transcript)?;
        out.line("")?;
        out.table(&stages(view))?;
        out.line("")?;
        let fact = |name: &str, fact: &str| out.line(&format!("{}  {fact}", style.bold(&format!("{name:<8}"))));
        let status = style.tone(crate::style::Tone::of(view.status.as_str()), view.status.as_str());
        let because = view.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        fact("run", &format!("{}  {status}{because}", view.run))?;
        fact("took", &show::took(view))?;
        fact("cost", &show::cost(view))?;
        fact("trace", &self.trace(context, view)?)?;
        if let Some(data) = &self.data {
            let data = data.display();
            fact("data", &format!("{data}; `baton up --data {data}` and `baton log {}` show it again", view.run))?;
        }
        if let Some(document) = document {
            fact("written", &document.display().to_string())?;
        }
        Ok(())
    }

    fn trace(&self, context: &Context, view: &RunView) -> anyhow::Result<String> {
        let id = &view.trace_id;
        let Some(endpoint) = services::trace_config(&context.settings)?.endpoint else {
            return Ok(format!(
                "{id}; sent nowhere. With Jaeger (docker run --rm -p 4317:4317 -p 16686:16686 jaegertracing/jaeger) and \
                 OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 there is a page of it"
            ));
        };
        Ok(match jaeger(&endpoint) {
            Some(page) => format!("{page}/trace/{id} (sent to {endpoint})"),
            None => format!("{id}, sent to {endpoint}"),
        })
    }
}

/// Where Jaeger usually shows what is sent to that collector.
fn jaeger(endpoint: &str) -> Option<String> {
    let (_, rest) = endpoint.split_once("://")?;
    let host = rest.split('/').next()?.rsplit_once(':').map_or(rest, |(host, _)| host);
    (!host.is_empty()).then(|| format!("http://{host}:16686"))
}

fn stage_report(stage: &StageView) -> StageReport {
    let last = stage.attempts.last();
    let begin = stage.attempts.first().map_or(0, |attempt| attempt.ready_at);
    let end = last.and_then(|attempt| attempt.ended_at).unwrap_or(begin);
    StageReport {
        name: stage.name.to_string(),
        agent: last.and_then(|attempt| attempt.agent.as_ref()).map(ToString::to_string),
        attempts: stage.attempts.len(),
        status: stage.status.as_str(),
        duration_ms: end.saturating_sub(begin),
    }
}

fn stages(view: &RunView) -> Table {
    let mut table = Table::new(["stage", "agent", ">attempts", "status", ">took"]);
    for stage in view.stages.iter().map(stage_report) {
        table.row([
            stage.name.into(),
            stage.agent.unwrap_or_default().into(),
            stage.attempts.to_string().into(),
            Cell::status(stage.status),
            span(stage.duration_ms).into(),
        ]);
    }
    table
}

/// Writes the documentation that is in this binary into a folder, for the agents to read.
fn unpack(folder: &Path) -> anyhow::Result<PathBuf> {
    if DOCUMENTS.is_empty() {
        let message = "this binary was built without Baton's documentation";
        return Err(Failure::usage(message).hint("--sources names a directory to draw on").into());
    }
    for (name, text) in DOCUMENTS {
        let path = folder.join(name);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            fs::write(&path, text)
        };
        write().with_context(|| format!("{} can not be written", path.display()))?;
    }
    Ok(folder.canonicalize()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jaeger_is_where_its_collector_is() {
        for (endpoint, page) in [
            ("http://localhost:4317", Some("http://localhost:16686")),
            ("http://jaeger:4317/", Some("http://jaeger:16686")),
            ("http://[::1]:4317", Some("http://[::1]:16686")),
            ("nonsense", None),
        ] {
            assert_eq!(jaeger(endpoint).as_deref(), page, "{endpoint}");
        }
    }
}
