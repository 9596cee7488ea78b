//! `baton workflow import`

use std::path::{Path, PathBuf};

use clap::Args;

use super::workflow::{register, summary};
use crate::failure::Failure;
use crate::{Context, files, import};

/// Makes a workflow of an instance in WfCommons' WfFormat 1.5: each task a stage that sleeps as long as the task took
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The instance, JSON; `-` is standard input
    file: PathBuf,
    /// By how much the runtimes are multiplied: 0.001 makes an hour 3.6 seconds
    #[arg(long, default_value_t = 1.0, value_name = "X", value_parser = scale)]
    scale: f64,
    /// The workflow's name [default: the file's, or the instance's if it comes from standard input]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Register it
    #[arg(long)]
    register: bool,
    /// Write the definition into a file [default: standard output, unless it is registered]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the answer of the registration as JSON
    #[arg(long, requires = "register")]
    json: bool,
}

impl Import {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let wrong = |error: String| Failure::usage(format!("{}: {error}", self.file.display()));
        let instance = baton_wfformat::parse(&files::read(&self.file)?).map_err(|error| wrong(error.to_string()))?;
        let name = match (&self.name, self.file.file_stem()) {
            (Some(name), _) => name.clone(),
            (None, Some(stem)) if self.file != Path::new("-") => import::workflow_name(&stem.to_string_lossy()),
            (None, _) => import::workflow_name(&instance.name),
        };
        let definition = import::workflow(&instance, &name, self.scale).map_err(|error| wrong(error.to_string()))?;
        let text = serde_json::to_string_pretty(&definition)? + "\n";
        if let Some(out) = &self.out {
            let failed = |error| Failure::usage(format!("{} can not be written: {error}", out.display()));
            std::fs::write(out, &text).map_err(failed)?;
            if !self.register {
                return context.out.line(&format!("{}: workflow {name}, {}", out.display(), summary(&definition)));
            }
        }
        if !self.register {
            return context.out.text(&text);
        }
        register(context, text, &definition, self.json).await
    }
}

/// How times are multiplied: by a positive number.
pub(crate) fn scale(text: &str) -> Result<f64, String> {
    let scale = text.parse::<f64>().ok().filter(|scale| *scale > 0.0 && *scale <= 1e6);
    scale.ok_or_else(|| "it must be a number that is more than 0 and at most 1000000".to_owned())
}
