//! Reads workflow instances in WfCommons' WfFormat 1.5: what scientific workflows really did, as graphs of tasks with
//! their durations, files and needs.
//!
//! ```
//! let text = r#"{
//!   "name": "two-steps", "schemaVersion": "1.5",
//!   "workflow": {
//!     "specification": {
//!       "tasks": [
//!         {"id": "split_ID1", "name": "split_ID1", "parents": [], "children": ["count_ID2"], "outputFiles": ["part"]},
//!         {"id": "count_ID2", "name": "count_ID2", "parents": ["split_ID1"], "children": [], "inputFiles": ["part"]}
//!       ],
//!       "files": [{"id": "part", "sizeInBytes": 1000}]
//!     },
//!     "execution": {"tasks": [{"id": "split_ID1", "runtimeInSeconds": 1.5}, {"id": "count_ID2", "runtimeInSeconds": 0}]}
//!   }
//! }"#;
//! let instance = baton_wfformat::parse(text)?;
//! assert_eq!(instance.tasks[1].parents, [0]);
//! assert_eq!(instance.tasks[0].category, "split");
//! assert_eq!(instance.edge_bytes(0, 1), 1000);
//! assert_eq!(instance.order, [0, 1]);
//! # Ok::<(), baton_wfformat::Error>(())
//! ```
//!
//! Tasks and files are told by their places in [`Instance::tasks`] and [`Instance::files`]: ids of the format hold dots,
//! capitals and a hundred characters, and are names to nobody else.
//!
//! Deliberately absent: dates (they come in four spellings, some of them wrong), machines, and everything of Baton.

mod read;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A workflow instance: a graph of tasks, and what each took when it ran.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// Its name, as its authors gave it. It need not be unique.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// How long the whole took where it ran, in seconds.
    pub makespan: Option<Duration>,
    /// The tasks, in the order of the text.
    pub tasks: Vec<Task>,
    /// The files, in the order of the text; those that tasks name without their size stand at the end.
    pub files: Vec<File>,
    /// The tasks' places in an order in which every task comes after its parents.
    pub order: Vec<usize>,
}

/// One task of an [`Instance`].
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Its id, unique within the instance.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What kind of work it is: the program, if `command.program` is one word of less than 64 characters; otherwise the
    /// name without the number that ends it. Tasks of one category are alike.
    pub category: String,
    /// The tasks that must have ended before, ascending. An edge counts whichever of its ends names it, and also where
    /// one task alone writes a file that the other reads.
    pub parents: Vec<usize>,
    /// The tasks that wait for this one, ascending.
    pub children: Vec<usize>,
    /// The files that it reads, ascending.
    pub inputs: Vec<usize>,
    /// The files that it writes, ascending.
    pub outputs: Vec<usize>,
    /// How long it took where it ran. Zero is a measurement like any other.
    pub runtime: Duration,
    /// How much memory it took at the most, in bytes, if that was measured.
    pub memory_bytes: Option<u64>,
    /// How many cores it was given, if that was written down.
    pub core_count: Option<f64>,
    /// How many percent of a core it used on average, if that was measured: more than 100 if it used several.
    pub average_cpu: Option<f64>,
}

impl Task {
    /// How many cores it needs: those it was given, or those it kept busy if they were more; at least one. A core that was
    /// busy for a twentieth of the time or less is not counted.
    #[must_use]
    pub fn cores(&self) -> u32 {
        let busy = self.average_cpu.unwrap_or(100.0) / 100.0;
        let cores = self.core_count.unwrap_or(1.0).max(busy);
        ((cores - 0.05).ceil().clamp(1.0, f64::from(u32::MAX))) as u32
    }
}

/// A file that tasks write or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its id, unique within the instance.
    pub id: String,
    /// How large it is, in bytes; zero if nobody says.
    pub bytes: u64,
}

impl Instance {
    /// How many bytes of what a task writes another one reads.
    #[must_use]
    pub fn edge_bytes(&self, parent: usize, child: usize) -> u64 {
        let written: BTreeSet<_> = self.tasks[parent].outputs.iter().collect();
        let shared = self.tasks[child].inputs.iter().filter(|file| written.contains(file));
        shared.map(|&file| self.files[file].bytes).fold(0, u64::saturating_add)
    }

    /// How many bytes a task reads, files from outside included: known before it runs.
    #[must_use]
    pub fn input_bytes(&self, task: usize) -> u64 {
        self.tasks[task].inputs.iter().map(|&file| self.files[file].bytes).fold(0, u64::saturating_add)
    }

    /// How many edges there are.
    #[must_use]
    pub fn edges(&self) -> usize {
        self.tasks.iter().map(|task| task.parents.len()).sum()
    }

    /// How many stand on each other at the most: the number of tasks on the longest path.
    #[must_use]
    pub fn depth(&self) -> usize {
        let mut depths = vec![0; self.tasks.len()];
        for &task in &self.order {
            depths[task] = 1 + self.tasks[task].parents.iter().map(|&parent| depths[parent]).max().unwrap_or(0);
        }
        depths.into_iter().max().unwrap_or(0)
    }

    /// The longest time that tasks take which wait for each other: no number of agents is faster.
    #[must_use]
    pub fn critical_path(&self) -> Duration {
        let mut ends = vec![Duration::ZERO; self.tasks.len()];
        for &task in &self.order {
            let start = self.tasks[task].parents.iter().map(|&parent| ends[parent]).max().unwrap_or_default();
            ends[task] = start + self.tasks[task].runtime;
        }
        ends.into_iter().max().unwrap_or_default()
    }
}

/// What is wrong with a file, and where.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can not be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// What is wrong in a file that was read.
    #[error("{}: {error}", path.display())]
    In {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        error: Box<Error>,
    },
    /// It is not JSON, or not an instance: a key is missing, a value has a wrong type. The text says line and column.
    #[error("it is not an instance of WfFormat 1.5: {0}")]
    Syntax(String),
    /// Another version of the format.
    #[error("schemaVersion is {0:?}; only \"1.5\" can be read")]
    Version(String),
    /// Something in the text contradicts the rest of it.
    #[error("{place}: {what}")]
    Meaning {
        /// Where, as a path of keys: `workflow.specification.tasks[3] (sort_ID4).parents`.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// Tasks that wait for each other.
    #[error("workflow.specification.tasks: they wait for each other in a cycle: {0}")]
    Cycle(String),
}

/// Reads an instance from text.
pub fn parse(text: &str) -> Result<Instance, Error> {
    read::parse(text)
}

/// Reads an instance from a file. Errors name the file.
pub fn open(path: &Path) -> Result<Instance, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::Io { path: path.to_owned(), error })?;
    parse(&text).map_err(|error| Error::In { path: path.to_owned(), error: Box::new(error) })
}
