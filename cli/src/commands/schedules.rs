//! `baton schedules`

use std::path::PathBuf;

use baton_client::now;
use baton_protocol::request::{ListSchedules, ScheduleList, ScheduleView, SetSchedule, Strategy};
use baton_protocol::schedule::{Firing, Overlap};
use baton_protocol::{Amount, AtLimit, Budget, Millis, Schedule, ScheduleName, WorkflowName};
use clap::{Args, Subcommand};

use crate::Context;
use crate::failure::Exit;
use crate::filter::{meta, metadata_of};
use crate::input::{Pair, input, pair};
use crate::output::{Cell, Table};
use crate::style::Tone;
use crate::text::{ago, json, span, time};

/// Lists schedules, by which workflows are started again and again; makes, changes and removes them
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Schedules {
    #[command(subcommand)]
    command: Option<Change>,
    /// Only those of this workflow
    #[arg(long, value_name = "WORKFLOW")]
    workflow: Option<WorkflowName>,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Make a schedule, or change one: all of it is said anew
    Set(Box<SetArgs>),
    /// Show a schedule, when it starts runs next, and what came of the last time
    Show(Named),
    /// Start nothing until it is resumed
    Pause(Named),
    /// Go on; times that came meanwhile are left out
    Resume(Named),
    /// Remove a schedule; runs that it has started go on
    Remove(Named),
}

#[derive(Debug, Args)]
struct Named {
    /// The schedule
    name: ScheduleName,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct SetArgs {
    /// The schedule
    name: ScheduleName,
    /// The workflow that it starts
    workflow: WorkflowName,
    /// When: minute, hour, day of the month, month, day of the week; `30 9 * * mon-fri`, `@daily`
    #[arg(long, value_name = "CRON", required_unless_present = "every")]
    cron: Option<String>,
    /// Where that is the time: `Europe/Berlin`; UTC unless given
    #[arg(long, value_name = "NAME", requires = "cron")]
    time_zone: Option<String>,
    /// In place of a time: every so long; `90s`, `15m`, `2h`, `7d`
    #[arg(long, value_name = "SPAN", value_parser = length, conflicts_with = "cron")]
    every: Option<Millis>,
    /// A part of each run's input: `topic=leases`; what is not JSON is text
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = pair)]
    input: Vec<Pair>,
    /// The input, a JSON object, from a file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    input_file: Option<PathBuf>,
    /// What happens when the run before is still live: skip, allow or cancel
    #[arg(long, value_name = "WHAT", default_value_t)]
    overlap: Overlap,
    /// How late a run may still start that could not start in time: `90s`, `15m`, `2h`; an hour unless given
    #[arg(long, value_name = "SPAN", value_parser = length)]
    late: Option<Millis>,
    /// Noted about each run, to find it again: `--meta customer=acme`
    #[arg(long, value_name = "KEY=VALUE", value_parser = meta)]
    meta: Vec<(String, String)>,
    /// Who its runs are for: tenants share agents by their weights. The same as `--meta tenant=NAME`
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Larger goes first
    #[arg(long, default_value_t = 0, value_name = "N", allow_negative_numbers = true)]
    priority: i32,
    /// How the tasks of its runs are placed: ADAPTIVE, ROUND_ROBIN …
    #[arg(long, value_name = "STRATEGY")]
    strategy: Option<Strategy>,
    /// What each run may cost at the most, instead of what the definition says
    #[arg(long, value_name = "AMOUNT")]
    budget: Option<Amount>,
    /// The currency of that
    #[arg(long, value_name = "CODE", requires = "budget")]
    currency: Option<String>,
    /// The workflow's version; the latest one at each start unless given
    #[arg(long, value_name = "N")]
    version: Option<u32>,
    /// Do all stages, whatever was done before
    #[arg(long)]
    no_cache: bool,
    /// Make it, and start nothing yet
    #[arg(long)]
    paused: bool,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

/// A span of time: `90s`, `15m`, `2h`, `7d`.
fn length(text: &str) -> Result<Millis, String> {
    const UNITS: [(char, Millis); 4] = [('s', 1000), ('m', 60_000), ('h', 3_600_000), ('d', 86_400_000)];
    let parsed = text.chars().last().and_then(|last| {
        let (_, unit) = UNITS.into_iter().find(|(name, _)| *name == last)?;
        text[..text.len() - 1].parse::<Millis>().ok()?.checked_mul(unit)
    });
    parsed.ok_or_else(|| "it must be a number and s, m, h or d: 90s, 15m, 2h".to_owned())
}

impl SetArgs {
    fn request(self) -> anyhow::Result<SetSchedule> {
        let budget = self.budget.map(|limit| Budget {
            limit: Some(limit),
            currency: self.currency,
            at_limit: AtLimit::default(),
            of: None,
        });
        let schedule = Schedule {
            workflow: self.workflow,
            version: self.version,
            cron: self.cron,
            time_zone: self.time_zone,
            every_ms: self.every,
            input: input(self.input_file.as_deref(), &self.input)?,
            priority: self.priority,
            strategy: self.strategy,
            due_ms: None,
            budget,
            metadata: metadata_of(self.meta, self.tenant)?,
            no_cache: self.no_cache,
            overlap: self.overlap,
            late_ms: self.late,
            paused: self.paused,
        };
        Ok(SetSchedule { name: self.name, schedule })
    }
}

impl Schedules {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let (view, as_json, gone) = match self.command {
            None => return list(context, &client, self.workflow, self.json).await,
            Some(Change::Set(set)) => {
                let as_json = set.json;
                (client.set_schedule(&set.request()?).await?, as_json, false)
            }
            Some(Change::Show(Named { name, json })) => (client.get_schedule(name).await?, json, false),
            Some(Change::Pause(Named { name, json })) => (client.pause_schedule(name, true).await?, json, false),
            Some(Change::Resume(Named { name, json })) => (client.pause_schedule(name, false).await?, json, false),
            Some(Change::Remove(Named { name, json })) => (client.remove_schedule(name).await?, json, true),
        };
        if as_json {
            context.out.json(&view)?;
        } else if gone {
            context.out.line(&format!("schedule {} is removed; runs that it has started go on", view.name))?;
        } else {
            context.out.text(&shown(&view))?;
        }
        Ok(Exit::Done)
    }
}

async fn list(
    context: &Context,
    client: &baton_client::Client,
    workflow: Option<WorkflowName>,
    as_json: bool,
) -> anyhow::Result<Exit> {
    let mut all = ScheduleList { schedules: Vec::new(), more: true };
    while all.more {
        let after = all.schedules.last().map(|view| view.name.clone());
        let page =
            client.list_schedules(&ListSchedules { workflow: workflow.clone(), limit: Some(1000), after }).await?;
        all.more = page.more && !page.schedules.is_empty();
        all.schedules.extend(page.schedules);
    }
    if as_json {
        context.out.json(&all)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(["name", "workflow", "when", "next", "last time", "came to"]);
    for view in &all.schedules {
        table.row(row(view, now()));
    }
    context.out.table(&table)?;
    Ok(Exit::Done)
}

/// When it starts runs, in words.
fn when(schedule: &Schedule) -> String {
    match (&schedule.cron, schedule.every_ms) {
        (Some(cron), _) => format!("{cron} {}", schedule.time_zone.as_deref().unwrap_or("UTC")),
        (None, Some(every)) => format!("every {}", span(every)),
        (None, None) => String::new(),
    }
}

fn row(view: &ScheduleView, now: Millis) -> Vec<Cell> {
    let next = match view.next.first() {
        Some(next) => Cell::from(format!("in {}", span(next.saturating_sub(now)))),
        None if view.schedule.paused => Cell::toned("paused", Tone::Busy),
        None => Cell::toned("never", Tone::Bad),
    };
    let (last, outcome) = match &view.last {
        Some(last) => {
            let tone = if matches!(last.outcome, Firing::Started(_)) { Tone::Plain } else { Tone::Bad };
            (ago(last.due, now), Cell::toned(last.outcome.to_string(), tone))
        }
        None => (String::new(), Cell::from(String::new())),
    };
    let schedule = &view.schedule;
    vec![
        view.name.to_string().into(),
        schedule.workflow.to_string().into(),
        when(schedule).into(),
        next,
        last.into(),
        outcome,
    ]
}

fn shown(view: &ScheduleView) -> String {
    let schedule = &view.schedule;
    let version = schedule.version.map(|version| format!(" v{version}")).unwrap_or_default();
    let mut lines = vec![
        format!("schedule {} starts {}{version}: {}", view.name, schedule.workflow, when(schedule)),
        format!("  if the run before is live  {}", schedule.overlap),
        format!("  at the latest              {} after its time", span(schedule.late_ms())),
        format!("  input                      {}", json(&schedule.input, 200)),
    ];
    for (key, value) in &schedule.metadata {
        lines.push(format!("  noted                      {key}={value}"));
    }
    if schedule.paused {
        lines.push("  it is paused".to_owned());
    }
    lines.extend(view.next.iter().map(|next| format!("  next                       {}", time(*next))));
    if let Some(last) = &view.last {
        lines.push(format!("  {}  {}", time(last.due), last.outcome));
    }
    lines.join("\n") + "\n"
}
