//! `baton completions`

use clap::{Args, Command};
use clap_complete::Shell;

use crate::failure::Exit;
use crate::output::Output;

/// Writes a completion script for a shell: `baton completions bash > ~/.local/share/bash-completion/completions/baton`
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self, command: &mut Command, out: Output) -> anyhow::Result<Exit> {
        // The generator panics at a closed pipe: it writes into memory first.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, command, "baton", &mut script);
        out.text(&String::from_utf8_lossy(&script))?;
        Ok(Exit::Done)
    }
}
