//! `baton objects`

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::Context as _;
use baton_protocol::ObjectName;
use baton_protocol::object::BYTES;
use clap::Subcommand;

use crate::Context;
use crate::failure::Exit;

/// Keeps what is too large for a message, and gets it
#[derive(Debug, Subcommand)]
pub(crate) enum Objects {
    /// Keep a file as an object, and print the reference to it
    Put {
        /// The file; `-` is standard input
        file: PathBuf,
        /// What it is; `application/json` stands for its value where a reference is given
        #[arg(long = "type", value_name = "TYPE", default_value = BYTES)]
        media_type: String,
    },
    /// Write an object to standard output, or to a file
    Get {
        /// Its name: `sha256-…`
        name: ObjectName,
        /// Write it to this file
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

impl Objects {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        match self {
            Self::Put { file, media_type } => {
                let bytes = crate::files::read_bytes(&file)?;
                let reference = context.client().await?.put_object(bytes.into(), &media_type).await?;
                // A reference is JSON, to be put into an input as it is.
                context.out.json(&reference)?;
            }
            Self::Get { name, output } => {
                let (_, bytes) = context.client().await?.get_object(&name).await?;
                match output {
                    Some(path) => {
                        std::fs::write(&path, &bytes).with_context(|| format!("writing {}", path.display()))?;
                    }
                    None => stdout().write_all(&bytes)?,
                }
            }
        }
        Ok(Exit::Done)
    }
}
