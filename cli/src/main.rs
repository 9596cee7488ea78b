//! The `baton` command line: one binary that starts everything, asks everything, and is each service.
//!
//! | file | what |
//! |---|---|
//! | `main.rs` | the arguments, and which command they mean |
//! | `commands/` | one module a command |
//! | `fleet.rs`, `services.rs`, `agents.rs` | all of Baton in this process, for `up` and `demo` |
//! | `watch.rs`, `transcript.rs`, `show.rs` | a run: while it runs, as a transcript, as it stands |
//! | `follow.rs` | what a service answers, as it changes |
//! | `groups.rs` | many stages as a few groups, where a line each would be too many |
//! | `import.rs`, `graph.rs`, `graph/` | workflows out of WfFormat; drawings of workflows and runs |
//! | `input.rs`, `pick.rs`, `filter.rs`, `files.rs` | what is given: inputs, which run or runs are meant, files |
//! | `output.rs`, `style.rs`, `text.rs`, `markdown.rs` | how answers are written |
//! | `failure.rs` | exit codes, and what is said when something fails |
//!
//! Answers go to standard output, everything else to standard error. There are no rules of coordination in here: what
//! this binary knows of the services is their requests, their settings and how to start them.

mod agents;
mod commands;
mod failure;
mod files;
mod filter;
mod fleet;
mod follow;
mod graph;
mod groups;
mod import;
mod input;
mod markdown;
mod output;
mod pick;
mod services;
mod show;
mod style;
mod text;
mod transcript;
mod watch;

use std::io::{stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use baton_client::{Client, ConnectSettings};
use baton_shell::Settings;
use baton_telemetry::logs::{self, LogConfig, LogFormat};
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::commands as c;
use crate::failure::Exit;
use crate::output::Output;
use crate::style::{ColorChoice, Style};

/// Services make and drop small values on several threads all the time; `docs/performance.md` tells what it brings.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long a command may take to end once it is done; a task that blocks is not waited for.
const LEAVE: Duration = Duration::from_millis(500);

const AFTER_HELP: &str = "\
Exit codes:
  0  it worked
  1  it ran and failed: the run failed, the doctor found something
  2  the command line, the settings or a file given is wrong
  3  Baton already runs on that data
  4  the broker or a service can not be reached
  5  the broker or a service refused

The broker is looked for as other NATS tools do it: --server, BATON_SERVER, NATS_URL, the selected NATS context, \
nats://127.0.0.1:4222, and at last the context baton-dev, which `baton up` writes.

Begin with `baton demo` or `baton up`.";

/// Coordinates teams of AI agents over NATS.
#[derive(Debug, Parser)]
#[command(name = "baton", version, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What may be said with every command.
#[derive(Debug, Clone, Args)]
struct Global {
    /// The NATS server's URL, or several with commas between [also: BATON_SERVER, NATS_URL]
    #[arg(long, global = true, value_name = "URL", help_heading = "Connection", conflicts_with = "context")]
    server: Option<String>,
    /// A credentials file, JWT and seed [also: BATON_CREDS, NATS_CREDS]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    creds: Option<PathBuf>,
    /// An nkey's seed, or a file with one [also: BATON_NKEY, NATS_NKEY]
    #[arg(long, global = true, value_name = "SEED", help_heading = "Connection")]
    nkey: Option<String>,
    /// A user's name; the password is in BATON_PASSWORD or NATS_PASSWORD [also: BATON_USER, NATS_USER]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Connection")]
    user: Option<String>,
    /// A password here can be read by every user of the machine; the variables can not.
    #[arg(long, global = true, value_name = "WORD", hide = true)]
    password: Option<String>,
    /// The name of a NATS context [also: BATON_CONTEXT, NATS_CONTEXT]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Connection")]
    context: Option<String>,
    /// Settings, as TOML; baton.toml in the working directory if there is one
    #[arg(long, global = true, value_name = "FILE", help_heading = "Output and settings")]
    config: Option<PathBuf>,
    /// When output is coloured: always, never, or auto (on a terminal, unless NO_COLOR is set)
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        hide_possible_values = true,
        help_heading = "Output and settings"
    )]
    color: ColorChoice,
    /// Say more of what happens; twice, still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output and settings")]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything on this machine: broker, services, agents, HTTP API
    Up(c::up::Up),
    /// Start everything, let agents write an article, stop everything
    Demo(c::demo::Demo),
    /// Start a run of a workflow
    Run(c::run::Run),
    /// List runs, the newest first
    Runs(c::runs::Runs),
    /// Show a run with its stages
    Show(c::show::Show),
    /// Say what a stage of a run waits for
    Why(c::why::Why),
    /// Show a run's records as a transcript
    Log(c::log::Log),
    /// Cancel a run, or many
    Cancel(c::cancel::Cancel),
    /// Have a task handed over to another agent
    Handoff(c::handoff::Handoff),
    /// Pause a run: it begins nothing new
    Pause(c::operate::Pause),
    /// Let a paused run go on
    Resume(c::operate::Resume),
    /// Start a run that repeats another one from a stage on
    Rerun(c::operate::Rerun),
    /// Approve a stage that people decide on
    Approve(c::word::Decide),
    /// Reject a stage that people decide on
    Reject(c::word::Decide),
    /// Give a run a signal that a stage waits for
    Signal(c::word::Signal),
    /// List schedules of workflows; make, change and remove them
    Schedules(c::schedules::Schedules),
    /// List triggers, by which events start or signal runs; change them
    Triggers(c::triggers::Triggers),
    /// Keep what is too large for a message, and get it
    #[command(subcommand)]
    Objects(c::objects::Objects),
    /// Raise an event, for triggers
    Event(c::triggers::Event),
    /// List the agents
    Agents(c::agents::Agents),
    /// List pools of resources; make, change and remove them
    Resources(c::resources::Resources),
    /// List budgets and what is left of each; share out what is left
    Budgets(c::budgets::Budgets),
    /// List locks: who shares one, who has one alone, who leads
    Locks(c::resources::Locks),
    /// List what is held of pools; acquire, renew and release
    Leases(c::leases::Leases),
    /// List alerts, or acknowledge them
    Alerts(c::alerts::Alerts),
    /// Messages between agents: send one, watch them
    #[command(subcommand)]
    Message(c::message::Message),
    /// Workflow definitions
    #[command(subcommand)]
    Workflow(c::workflow::Workflow),
    /// Show how tasks are placed, or change it
    Strategy(c::strategy::Strategy),
    /// What was learned of agents and tasks: export it, import it
    #[command(subcommand)]
    Learning(c::learning::Learning),
    /// Say how many agents a workflow needs
    Capacity(c::capacity::Capacity),
    /// Say how agents should work together on a workflow
    Advise(c::advise::Advise),
    /// Say when what waits will be begun, and what will be late
    Forecast(c::forecast::Forecast),
    /// Say why an agent has a task, or why the task waits
    WhyPlaced(c::why_placed::WhyPlaced),
    /// Run one service alone
    Service(c::service::Service),
    /// Run agents
    #[command(subcommand)]
    Agent(c::agent::Agent),
    /// Say by the exit code whether a service is there
    Healthcheck(c::healthcheck::Healthcheck),
    /// Look for what is wrong, and say what to do
    #[command(visible_alias = "status")]
    Doctor(c::doctor::Doctor),
    /// Measure how fast Baton is on this machine
    Bench(c::bench::Bench),
    /// Replay workflows through the optimizer in virtual time, and compare strategies
    Simulate(c::simulate::Simulate),
    #[command(hide = true)]
    BenchMessages(c::bench::BenchMessages),
    #[command(hide = true)]
    BenchAgents(c::bench::BenchAgents),
    /// The collector of traces that `baton bench` starts
    #[command(hide = true)]
    BenchSink,
    /// Write a completion script for a shell
    Completions(c::completions::Completions),
}

/// What every command is given.
#[derive(Debug, Clone)]
struct Context {
    global: Global,
    settings: Settings,
    out: Output,
    /// How to write to standard error.
    err: Style,
}

impl Context {
    /// What the command line says about the connection.
    fn connect_settings(&self) -> ConnectSettings {
        let global = self.global.clone();
        ConnectSettings {
            server: global.server,
            creds: global.creds,
            nkey: global.nkey.map(Into::into),
            user: global.user,
            password: global.password.map(Into::into),
            context: global.context,
            name: Some("baton-cli".to_owned()),
            ..ConnectSettings::default()
        }
    }

    /// Connects as the command line and the surroundings say.
    async fn client(&self) -> anyhow::Result<Client> {
        Ok(commands::connect(&self.connect_settings()).await?.with_source("baton-cli"))
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version are errors to clap, too. Whoever reads them may have gone.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    let err = cli.global.color.style(&stderr());
    let exit = run(cli, err).unwrap_or_else(|error| {
        let exit = failure::exit_of(&error);
        if !error.is::<failure::ClosedPipe>() {
            watch::say(failure::report(&error, err).trim_end());
        }
        exit
    });
    ExitCode::from(exit as u8)
}

fn run(cli: Cli, err: Style) -> anyhow::Result<Exit> {
    if let Command::Completions(completions) = cli.command {
        return completions.run(&mut Cli::command(), Output::new(cli.global.color.style(&stdout())));
    }
    // The only provider that is compiled in; an error says that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = Settings::load(cli.global.config.as_deref())?;
    init_logs(&cli, &settings)?;
    let out = Output::new(cli.global.color.style(&stdout()));
    let context = Context { global: cli.global, settings, out, err };
    // What is measured is Baton, and not how two threads of whoever measures it wake each other up.
    let measures = matches!(cli.command, Command::Bench(_) | Command::BenchAgents(_) | Command::BenchSink);
    let mut runtime = if measures {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = runtime.enable_all().build()?;
    let exit = runtime.block_on(dispatch(cli.command, context));
    runtime.shutdown_timeout(LEAVE);
    exit
}

async fn dispatch(command: Command, context: Context) -> anyhow::Result<Exit> {
    match command {
        Command::Up(command) => command.run(context).await,
        Command::Demo(command) => command.run(context).await,
        Command::Run(command) => command.run(&context).await,
        Command::Runs(command) => command.run(&context).await,
        Command::Show(command) => command.run(&context).await,
        Command::Why(command) => command.run(&context).await,
        Command::Log(command) => command.run(&context).await,
        Command::Cancel(command) => command.run(&context).await,
        Command::Handoff(command) => command.run(&context).await,
        Command::Pause(command) => command.run(&context).await,
        Command::Resume(command) => command.run(&context).await,
        Command::Schedules(command) => command.run(&context).await,
        Command::Triggers(command) => command.run(&context).await,
        Command::Event(command) => command.run(&context).await,
        Command::Objects(command) => command.run(&context).await,
        Command::Rerun(command) => command.run(&context).await,
        Command::Approve(command) => command.run(&context, true).await,
        Command::Reject(command) => command.run(&context, false).await,
        Command::Signal(command) => command.run(&context).await,
        Command::Agents(command) => command.run(&context).await,
        Command::Resources(command) => command.run(&context).await,
        Command::Budgets(command) => command.run(&context).await,
        Command::Locks(command) => command.run(&context).await,
        Command::Leases(command) => command.run(&context).await,
        Command::Alerts(command) => command.run(&context).await,
        Command::Message(command) => command.run(&context).await,
        Command::Workflow(command) => command.run(&context).await,
        Command::Strategy(command) => command.run(&context).await,
        Command::Learning(command) => command.run(&context).await,
        Command::Capacity(command) => command.run(&context).await,
        Command::Advise(command) => command.run(&context).await,
        Command::Forecast(command) => command.run(&context).await,
        Command::WhyPlaced(command) => command.run(&context).await,
        Command::Service(command) => command.run(context).await,
        Command::Agent(command) => command.run(context).await,
        Command::Healthcheck(command) => command.run(&context).await,
        Command::Doctor(command) => command.run(&context).await,
        Command::Bench(command) => command.run(&context).await,
        Command::Simulate(command) => command.run(&context),
        Command::BenchMessages(command) => command.run().await,
        Command::BenchAgents(command) => command.run(&context).await,
        Command::BenchSink => {
            baton_bench::run_sink().await?;
            Ok(Exit::Done)
        }
        Command::Completions(_) => unreachable!("handled before the runtime starts"),
    }
}

/// What runs for long logs as the settings say; a command that answers and ends is quiet unless it is asked to tell.
fn init_logs(cli: &Cli, settings: &Settings) -> anyhow::Result<()> {
    let stays = matches!(cli.command, Command::Service(_) | Command::Agent(_));
    let said = &settings.telemetry.log_filter;
    let filter = match cli.global.verbose {
        0 if stays || *said != Settings::default().telemetry.log_filter => said.clone(),
        // The agents of `baton bench dag` fail as their luck has it.
        0 if matches!(cli.command, Command::Bench(_)) => "warn,baton_sdk::keeper=error".to_owned(),
        0 => "warn".to_owned(),
        1 => "info".to_owned(),
        2 => "debug".to_owned(),
        _ => "trace".to_owned(),
    };
    let format = match settings.telemetry.log_format.parse()? {
        LogFormat::Auto if !stays => LogFormat::Pretty,
        format => format,
    };
    logs::init(&LogConfig { format, filter })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        Cli::command().debug_assert();
    }
}
