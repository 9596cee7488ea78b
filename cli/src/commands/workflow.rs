//! `baton workflow`

use std::path::PathBuf;

use baton_protocol::definition::OnFailure;
use baton_protocol::request::{GetWorkflow, ListWorkflows, MAX_JSON_BYTES, RegisterWorkflow, WorkflowView};
use baton_protocol::{Definition, Json, StageName, WorkflowName};
use clap::{Args, Subcommand};

use crate::commands::graph::Draw;
use crate::commands::import::Import;
use crate::failure::{Exit, Failure};
use crate::output::{Output, Table};
use crate::text::{count, short, span, time};
use crate::{Context, files};

/// Workflow definitions
#[derive(Debug, Subcommand)]
pub(crate) enum Workflow {
    /// List the workflows
    List(List),
    /// Show a workflow's definition
    Show(Show),
    /// Check a definition, without a server
    Validate(Validate),
    /// Register a definition, or a new version of it
    Register(Register),
    /// Make a workflow of an instance in WfCommons' WfFormat
    Import(Import),
    /// Draw a workflow, or a run
    Graph(Draw),
    /// Write the JSON Schema of definitions, for editors
    Schema(Schema),
}

/// Lists the workflows
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those whose names begin so
    #[arg(value_name = "PREFIX")]
    prefix: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Shows a workflow's definition
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The workflow
    name: WorkflowName,
    /// The version; the latest one unless given
    #[arg(long, value_name = "N")]
    version: Option<u32>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Checks a definition, without a server
#[derive(Debug, Args)]
pub(crate) struct Validate {
    /// The definition, YAML or JSON; `-` is standard input
    file: PathBuf,
    /// Write the definition as JSON, with its defaults left out
    #[arg(long)]
    json: bool,
}

/// Registers a definition, or a new version of it
#[derive(Debug, Args)]
pub(crate) struct Register {
    /// The definition, YAML or JSON; `-` is standard input
    file: PathBuf,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Writes the JSON Schema of definitions
#[derive(Debug, Args)]
#[command(
    after_help = "An editor with a YAML language server completes and checks a definition whose first line is\n\n  \
    # yaml-language-server: $schema=definition.schema.json\n\nwhere that file is what this command writes."
)]
pub(crate) struct Schema {}

impl Workflow {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        match self {
            Self::List(command) => command.run(context).await?,
            Self::Show(command) => command.run(context).await?,
            Self::Validate(command) => command.run(context.out)?,
            Self::Register(command) => command.run(context).await?,
            Self::Import(command) => command.run(context).await?,
            Self::Graph(command) => command.run(context).await?,
            Self::Schema(command) => command.run(context.out)?,
        }
        Ok(Exit::Done)
    }
}

impl List {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let request = ListWorkflows { prefix: self.prefix, limit: Some(self.limit), after: None };
        let list = context.client().await?.list_workflows(&request).await?;
        if self.json {
            return context.out.json(&list);
        }
        let mut table = Table::new(["workflow", ">version", "stages", "what it is for"]);
        for workflow in &list.workflows {
            table.row([
                workflow.name.to_string().into(),
                workflow.version.to_string().into(),
                some(workflow.stages.iter().map(StageName::as_str), workflow.stage_count(), 80).into(),
                short(workflow.description.as_deref().unwrap_or_default(), 120).into(),
            ]);
        }
        context.out.table(&table)?;
        if list.more && context.out.terminal {
            let shown = count(list.workflows.len(), "workflow");
            context
                .out
                .line(&context.out.style.dim(&format!("{shown} shown; there are more: --limit, or a prefix")))?;
        }
        Ok(())
    }
}

impl Show {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let request = GetWorkflow { name: self.name, version: self.version };
        let view = context.client().await?.get_workflow(&request).await?;
        if self.json {
            return context.out.json(&view);
        }
        show(context.out, &view)
    }
}

impl Validate {
    fn run(self, out: Output) -> anyhow::Result<()> {
        let text = files::read(&self.file)?;
        let definition = baton_workflow_manager::definition::parse(&text)
            .map_err(|error| Failure::usage(format!("{}: {error}", self.file.display())))?;
        if self.json {
            return out.json(&definition);
        }
        out.line(&format!("workflow {} is valid: {}", definition.name, summary(&definition)))
    }
}

impl Schema {
    fn run(self, out: Output) -> anyhow::Result<()> {
        out.json(&baton_protocol::schema::definition())
    }
}

impl Register {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let source = files::read(&self.file)?;
        // What is wrong is said without a server, and with the file's name.
        let definition = baton_workflow_manager::definition::parse(&source)
            .map_err(|error| Failure::usage(format!("{}: {error}", self.file.display())))?;
        register(context, source, &definition, self.json).await
    }
}

/// Registers a definition that was checked, and says what came of it.
pub(super) async fn register(
    context: &Context,
    source: String,
    definition: &Definition,
    as_json: bool,
) -> anyhow::Result<()> {
    // As a text within JSON it would be larger than it is, and a large one might not fit into a message.
    let request = if source.len() <= MAX_JSON_BYTES {
        RegisterWorkflow { source: Some(source), definition: None }
    } else {
        RegisterWorkflow { source: None, definition: Some(Json::of(definition)?) }
    };
    let view = context.client().await?.register_workflow(&request).await?;
    if as_json {
        return context.out.json(&view);
    }
    let (name, version) = (&definition.name, view.version);
    context.out.line(&format!("workflow {name} is registered as version {version}: {}", summary(definition)))
}

pub(super) fn summary(definition: &Definition) -> String {
    let stages = definition.stages.iter().map(|stage| stage.name.as_str());
    let total = definition.stages.len();
    format!("{} ({})", count(total, "stage"), some(stages, total, 200))
}

/// Some names of many, as far as they fit into so many characters.
fn some<'a>(names: impl Iterator<Item = &'a str>, total: usize, most: usize) -> String {
    let (mut text, mut shown) = (String::new(), 0);
    for name in names {
        if shown > 0 && text.len() + name.len() > most {
            break;
        }
        if shown > 0 {
            text.push_str(", ");
        }
        text.push_str(name);
        shown += 1;
    }
    if shown < total { format!("{text} and {} more", total - shown) } else { text }
}

fn show(out: Output, view: &WorkflowView) -> anyhow::Result<()> {
    let definition = &view.definition;
    let style = out.style;
    let mut facts = vec![
        ("workflow", style.bold(&format!("{} v{}", definition.name, view.version))),
        ("registered", time(view.registered_at)),
    ];
    if let Some(description) = &definition.description {
        facts.push(("for", description.clone()));
    }
    if !definition.metadata.is_empty() {
        facts.push(("metadata", serde_json::to_string(&definition.metadata)?));
    }
    facts.push(("timeout", span(definition.timeout_ms)));
    let text: String =
        facts.iter().map(|(name, fact)| format!("{}  {fact}\n", style.dim(&format!("{name:<10}")))).collect();
    out.text(&format!("{text}\n"))?;

    let mut table = Table::new(["stage", "agent type", "depends on", ">attempts", ">timeout", "besides"]);
    for stage in &definition.stages {
        let depends: Vec<_> = stage.depends_on.iter().map(ToString::to_string).collect();
        let mut besides = Vec::new();
        if let Some(when) = &stage.when {
            besides.push(short(&format!("when {}", when.as_str()), 60));
        }
        if stage.approval.is_some() {
            besides.push("people decide".to_owned());
        }
        if let Some(wait_for) = &stage.wait_for {
            besides.push(format!("signal {}", wait_for.signal));
        }
        if let Some(workflow) = &stage.workflow {
            let version = stage.workflow_version.map(|version| format!(" v{version}")).unwrap_or_default();
            besides.push(format!("a run of {workflow}{version}"));
        }
        if let Some(each) = &stage.for_each {
            besides.push(short(&format!("for each of {}", each.items.as_str()), 60));
        }
        match (&stage.on_failure, stage.may_fail()) {
            (OnFailure::Fallback(fallback), _) => besides.push(format!("fallback {fallback}")),
            (OnFailure::Fail | OnFailure::Continue, true) => besides.push("optional".to_owned()),
            (OnFailure::Fail | OnFailure::Continue, false) => {}
        }
        if !stage.parallel {
            besides.push("runs alone".to_owned());
        }
        besides.extend(stage.resources.iter().map(|(name, amount)| format!("{name} {amount}")));
        if !stage.params.is_empty() {
            besides.push(short(&serde_json::to_string(&stage.params)?, 60));
        }
        table.row([
            stage.name.to_string().into(),
            if stage.has_agent() { stage.agent_type.to_string().into() } else { "".into() },
            depends.join(", ").into(),
            stage.retry.max_attempts.to_string().into(),
            span(stage.timeout_ms).into(),
            besides.join(", ").into(),
        ]);
    }
    out.table(&table)
}
