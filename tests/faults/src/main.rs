//! `baton-faults`: see the library.

use std::process::ExitCode;

use baton_faults::{agent, faults, overload, soak};
use clap::{Parser, Subcommand};

/// Injects faults into a running Baton, and checks that nothing is lost and nothing counts twice
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Injects faults under load, then checks the history
    Faults(faults::Options),
    /// Keeps a steady load up and shows that memory and open files stay bounded
    Soak(soak::Options),
    /// Submits ten times what agents can do, and shows what becomes of it
    Overload(overload::Options),
    /// An agent of the runner
    #[command(hide = true)]
    Agent(agent::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let work = async {
        match Cli::parse().command {
            Command::Faults(options) => faults::command(options).await,
            Command::Soak(options) => soak::command(options).await,
            Command::Overload(options) => overload::command(options).await,
            Command::Agent(options) => agent::run(options).await.map(|()| true),
        }
    };
    tokio::pin!(work);
    // An agent hears Ctrl-C itself; for the others, leaving here ends all that was started.
    let ended = tokio::select! {
        ended = &mut work => ended,
        _ = tokio::signal::ctrl_c() => return ExitCode::from(130),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}
