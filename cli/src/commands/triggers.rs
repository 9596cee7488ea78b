//! `baton triggers`, `baton event`

use std::collections::BTreeMap;

use baton_client::now;
use baton_protocol::definition::{Expression, Mapping};
use baton_protocol::request::{ListTriggers, RaiseEvent, SetTrigger, TriggerList, TriggerView};
use baton_protocol::run::RunStatus;
use baton_protocol::trigger::{On, Reaction, RunEnded, SignalBy, StartBy, Then};
use baton_protocol::{EventName, SignalName, Trigger, TriggerName, WorkflowName};
use clap::{Args, Subcommand};

use crate::Context;
use crate::commands::runs::status;
use crate::failure::{Exit, Failure};
use crate::filter::{meta, metadata_of};
use crate::input::{Pair, input, pair};
use crate::output::{Cell, Table};
use crate::style::Tone;
use crate::text::ago;

/// Lists triggers, by which events start or signal runs; makes, changes and removes them
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Triggers {
    #[command(subcommand)]
    command: Option<Change>,
    /// Only those for this event
    #[arg(long, value_name = "NAME")]
    event: Option<EventName>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Make a trigger, or change one: all of it is said anew
    Set(Box<SetArgs>),
    /// Remove a trigger; runs that it has started go on
    Remove {
        /// The trigger
        name: TriggerName,
        /// Write the answer as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct SetArgs {
    /// The trigger
    name: TriggerName,
    /// The workflow that it starts, or whose runs it gives a signal to
    workflow: WorkflowName,
    /// For events that are raised under this name
    #[arg(long, value_name = "NAME", required_unless_present = "run_ended")]
    event: Option<EventName>,
    /// For the ends of this workflow's runs
    #[arg(long, value_name = "WORKFLOW", conflicts_with = "event")]
    run_ended: Option<WorkflowName>,
    /// Of those that ended so only: succeeded, failed, cancelled or timed_out
    #[arg(long, value_name = "WORD", value_parser = status, requires = "run_ended")]
    status: Option<RunStatus>,
    /// Only where this gives true, in CEL: `event.data.rows > 100`
    #[arg(long, value_name = "CEL")]
    when: Option<String>,
    /// Give this signal to live runs of the workflow, and start none
    #[arg(long, value_name = "NAME", conflicts_with_all = ["meta", "tenant", "priority", "version"])]
    signal: Option<SignalName>,
    /// Signal only runs whose metadata has this, in CEL: `order=event.data.order`
    #[arg(long, value_name = "KEY=CEL", value_parser = expression, requires = "signal")]
    only: Vec<(String, String)>,
    /// A part of the input or of what comes with the signal, in CEL: `topic=event.data.topic`
    #[arg(long, short, value_name = "KEY=CEL", value_parser = expression)]
    input: Vec<(String, String)>,
    /// Noted about each run, to find it again: `--meta customer=acme`
    #[arg(long, value_name = "KEY=VALUE", value_parser = meta)]
    meta: Vec<(String, String)>,
    /// Who its runs are for: tenants share agents by their weights. The same as `--meta tenant=NAME`
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Larger goes first
    #[arg(long, default_value_t = 0, value_name = "N", allow_negative_numbers = true)]
    priority: i32,
    /// The workflow's version; the latest one at each start unless given
    #[arg(long, value_name = "N")]
    version: Option<u32>,
    /// Do all stages, whatever was done before
    #[arg(long)]
    no_cache: bool,
    /// Make it, and pass over events until it is set without this
    #[arg(long)]
    paused: bool,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

fn expression(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, expression)) if !key.is_empty() => Ok((key.to_owned(), expression.to_owned())),
        _ => Err("it must look like KEY=EXPRESSION".to_owned()),
    }
}

impl SetArgs {
    fn request(self) -> anyhow::Result<SetTrigger> {
        let on = match (self.event, self.run_ended) {
            (Some(event), _) => On::Event(event),
            (None, Some(workflow)) => On::RunEnded(RunEnded { workflow, status: self.status }),
            (None, None) => return Err(Failure::usage("say --event or --run-ended".to_owned()).into()),
        };
        let each = expressions("input", self.input)?;
        let mapping = (!each.is_empty()).then_some(Mapping::Each(each));
        let workflow = self.workflow;
        let then = match self.signal {
            Some(signal) => {
                let runs = expressions("key", self.only)?;
                Then::Signal(SignalBy { workflow, signal, runs, payload: mapping })
            }
            None => Then::Start(StartBy {
                workflow,
                version: self.version,
                input: mapping,
                priority: self.priority,
                strategy: None,
                due_ms: None,
                budget: None,
                metadata: metadata_of(self.meta, self.tenant)?,
                no_cache: self.no_cache,
            }),
        };
        let when = self.when.map(|when| when.as_str().into());
        Ok(SetTrigger { name: self.name, trigger: Trigger { on, when, then, paused: self.paused } })
    }
}

fn expressions(what: &str, given: Vec<(String, String)>) -> anyhow::Result<BTreeMap<String, Expression>> {
    let mut each = BTreeMap::new();
    for (key, expression) in given {
        if each.insert(key.clone(), expression.as_str().into()).is_some() {
            return Err(Failure::usage(format!("the {what} {key:?} is given twice")).into());
        }
    }
    Ok(each)
}

impl Triggers {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        match self.command {
            None => {
                let mut all = TriggerList { triggers: Vec::new(), more: true };
                while all.more {
                    let after = all.triggers.last().map(|view| view.name.clone());
                    let asked = ListTriggers { name: None, event: self.event.clone(), after };
                    let page = client.list_triggers(&asked).await?;
                    all.more = page.more && !page.triggers.is_empty();
                    all.triggers.extend(page.triggers);
                }
                if self.json { context.out.json(&all)? } else { context.out.table(&table(&all))? }
            }
            Some(Change::Set(set)) => {
                let json = set.json;
                let view = client.set_trigger(&set.request()?).await?;
                if json {
                    context.out.json(&view)?;
                } else {
                    let (does, when) = (does(&view.trigger), on(&view.trigger));
                    context.out.line(&format!("trigger {} {does} {when}", view.name))?;
                }
            }
            Some(Change::Remove { name, json }) => {
                let view = client.remove_trigger(name).await?;
                if json {
                    context.out.json(&view)?;
                } else {
                    context.out.line(&format!("trigger {} is removed; runs that it has started go on", view.name))?;
                }
            }
        }
        Ok(Exit::Done)
    }
}

/// What it does, in words.
fn does(trigger: &Trigger) -> String {
    match &trigger.then {
        Then::Start(start) => format!("starts {}", start.workflow),
        Then::Signal(by) => format!("signals {} to {}", by.signal, by.workflow),
    }
}

/// Which events it is for, in words.
fn on(trigger: &Trigger) -> String {
    match &trigger.on {
        On::Event(event) => format!("on {event}"),
        On::RunEnded(RunEnded { workflow, status: None }) => format!("when {workflow} ends"),
        On::RunEnded(RunEnded { workflow, status: Some(status) }) => format!("when {workflow} has {status}"),
    }
}

fn table(list: &TriggerList) -> Table {
    let mut table = Table::new(["name", "does", "on", "when", "last", "came to"]);
    for view in &list.triggers {
        table.row(row(view));
    }
    table
}

fn row(view: &TriggerView) -> Vec<Cell> {
    let trigger = &view.trigger;
    let (last, outcome) = match &view.last {
        Some(last) => {
            let tone = if matches!(last.outcome, Reaction::Failed(_)) { Tone::Bad } else { Tone::Plain };
            (ago(last.at, now()), Cell::toned(last.outcome.to_string(), tone))
        }
        None if trigger.paused => (String::new(), Cell::toned("paused", Tone::Busy)),
        None => (String::new(), Cell::from(String::new())),
    };
    vec![
        view.name.to_string().into(),
        does(trigger).into(),
        on(trigger).into(),
        trigger.when.as_ref().map(|when| when.as_str().to_owned()).unwrap_or_default().into(),
        last.into(),
        outcome,
    ]
}

/// Raises an event, and says what triggers make of it
#[derive(Debug, Args)]
pub(crate) struct Event {
    /// The name under which it is raised
    name: EventName,
    /// A part of what there is to say about it: `rows=3`; what is not JSON is text
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = pair)]
    data: Vec<Pair>,
    /// Its id: raised once more with the same, it is the same event
    #[arg(long)]
    id: Option<String>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Event {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let id = self.id.unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
        let source = std::env::var("USER").ok().filter(|user| !user.is_empty());
        let data = input(None, &self.data)?;
        let stored = client.raise_event(&RaiseEvent { event: self.name.clone(), id, source, data }).await?;
        if self.json {
            context.out.json(&stored)?;
            return Ok(Exit::Done);
        }
        if stored.existing {
            context.out.line("the event was raised before")?;
        } else if stored.reactions.is_empty() && stored.waiting.is_empty() {
            context.out.line(&format!("no trigger is for {}", self.name))?;
        }
        for reaction in &stored.reactions {
            context.out.line(&format!("{}: {}", reaction.trigger, reaction.outcome))?;
        }
        for trigger in &stored.waiting {
            context.out.line(&format!("{trigger}: starts its run when there is room"))?;
        }
        Ok(Exit::Done)
    }
}
