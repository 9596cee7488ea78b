//! What clients and agents noted while it happened: the other half of the history.
//!
//! A note is written when its writer has been told something, never before: what is noted is what somebody outside may
//! rely on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use baton_protocol::run::RunStatus;
use baton_protocol::{AgentId, Code, LeaseId, Millis, RunId, StageName, TaskId, WorkflowName};
use serde::{Deserialize, Serialize};

/// What a client noted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum ClientNote {
    /// It began to ask for a run.
    Submitted {
        /// When, in milliseconds since 1970.
        at: Millis,
        /// The idempotency key, its own for each run.
        key: String,
        /// What is to be run.
        workflow: WorkflowName,
    },
    /// It was told that the run is accepted.
    Accepted {
        /// When.
        at: Millis,
        /// The key it was asked for with.
        key: String,
        /// The run.
        run: RunId,
    },
    /// It was told that the run is refused, for good.
    Refused {
        /// When.
        at: Millis,
        /// The key it was asked for with.
        key: String,
        /// Why.
        code: Code,
        /// Why, in words.
        message: String,
    },
    /// It was told how the run ended.
    Ended {
        /// When.
        at: Millis,
        /// The run.
        run: RunId,
        /// How.
        status: RunStatus,
        /// The results of the stages that have one, as the texts that they are.
        results: BTreeMap<StageName, String>,
    },
    /// It was told that a run that had been accepted is unknown.
    Unknown {
        /// When.
        at: Millis,
        /// The run.
        run: RunId,
    },
}

/// What an agent noted: what it was told of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportNote {
    /// When, in milliseconds since 1970.
    pub at: Millis,
    /// The agent.
    pub agent: AgentId,
    /// The task.
    pub task: TaskId,
    /// The lease that it was done under.
    pub lease: LeaseId,
    /// Whether the report said that it succeeded.
    pub succeeded: bool,
    /// The word, used once, that the report's result or error bears.
    pub token: String,
    /// Why the report was refused; none: it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Code>,
}

/// What an agent of the runner gives as its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task.
    pub task: TaskId,
    /// Who did it.
    pub agent: AgentId,
    /// Under which lease.
    pub lease: LeaseId,
    /// A word used once.
    pub token: String,
}

/// The clients' notes: kept here for the checker, and in a file for people.
#[derive(Debug, Clone)]
pub struct Notebook(Arc<Mutex<Pages>>);

#[derive(Debug)]
struct Pages {
    file: File,
    notes: Vec<ClientNote>,
}

impl Notebook {
    /// A new one, in that file.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(Arc::new(Mutex::new(Pages { file, notes: Vec::new() }))))
    }

    /// Writes a note.
    pub fn note(&self, note: ClientNote) {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The file is for people; what counts is in memory.
        let _ = append(&mut pages.file, &note);
        pages.notes.push(note);
    }

    /// All notes so far.
    #[must_use]
    pub fn notes(&self) -> Vec<ClientNote> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).notes.clone()
    }
}

/// Appends a line of JSON in one write, so that a killed process leaves no half of it.
pub fn append<T: Serialize>(file: &mut File, note: &T) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(note)?;
    line.push(b'\n');
    file.write_all(&line)?;
    Ok(())
}

/// The agents' notes in a folder: every file that ends in `.notes`.
pub fn read_reports(folder: &Path) -> anyhow::Result<Vec<ReportNote>> {
    let mut notes = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "notes") {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        for line in text.lines() {
            notes.push(serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))?);
        }
    }
    Ok(notes)
}
