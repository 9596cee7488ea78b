//! From the text of an instance to the checked [`Instance`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;

use crate::{Error, File, Instance, Task};

/// The longest name of a program that is taken for a category. Some writers put a whole script there.
const MAX_PROGRAM_BYTES: usize = 63;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    name: String,
    #[serde(default)]
    description: Option<String>,
    schema_version: String,
    workflow: Workflow,
}

#[derive(Deserialize)]
struct Workflow {
    specification: Specification,
    execution: Execution,
}

#[derive(Deserialize)]
struct Specification {
    tasks: Vec<Specified>,
    #[serde(default)]
    files: Vec<Sized>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Specified {
    id: String,
    name: String,
    parents: Vec<String>,
    children: Vec<String>,
    #[serde(default)]
    input_files: Option<Vec<String>>,
    #[serde(default)]
    output_files: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sized {
    id: String,
    size_in_bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Execution {
    #[serde(default)]
    makespan_in_seconds: Option<f64>,
    tasks: Vec<Executed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Executed {
    id: String,
    runtime_in_seconds: f64,
    #[serde(default)]
    command: Option<Command>,
    #[serde(default)]
    core_count: Option<f64>,
    #[serde(default, rename = "avgCPU")]
    average_cpu: Option<f64>,
    #[serde(default)]
    memory_in_bytes: Option<u64>,
}

#[derive(Deserialize)]
struct Command {
    #[serde(default)]
    program: Option<String>,
}

pub(crate) fn parse(text: &str) -> Result<Instance, Error> {
    let document = serde_json::from_str::<Document>(text);
    let Document { name, description, schema_version, workflow } =
        document.map_err(|error| Error::Syntax(error.to_string()))?;
    if schema_version != "1.5" {
        return Err(Error::Version(schema_version));
    }
    let Workflow { specification, execution } = workflow;
    if specification.tasks.is_empty() {
        return Err(meaning("workflow.specification.tasks", "there are none; an instance has at least one"));
    }
    let places = places(&specification.tasks)?;
    let mut files = Files::new(specification.files)?;
    let mut executed = executed(execution.tasks, &places)?;
    let mut edges = BTreeSet::new();
    let mut tasks = Vec::with_capacity(specification.tasks.len());
    for (i, task) in specification.tasks.into_iter().enumerate() {
        let place = format!("workflow.specification.tasks[{i}] ({})", task.id);
        for parent in &task.parents {
            edges.insert((find(&places, parent, &place, "parents")?, i));
        }
        for child in &task.children {
            edges.insert((i, find(&places, child, &place, "children")?));
        }
        let Some(measured) = executed.remove(&i) else {
            return Err(meaning(&place, "it has no runtime: no entry of workflow.execution.tasks has this id"));
        };
        let program = measured.command.and_then(|command| command.program);
        tasks.push(Task {
            category: category(&task.name, program.as_deref()),
            parents: Vec::new(),
            children: Vec::new(),
            inputs: files.all(task.input_files.unwrap_or_default()),
            outputs: files.all(task.output_files.unwrap_or_default()),
            runtime: measured.runtime,
            memory_bytes: measured.memory_bytes,
            core_count: measured.core_count,
            average_cpu: measured.average_cpu,
            id: task.id,
            name: task.name,
        });
    }
    edges.extend(file_edges(&tasks, files.list.len()));
    for (parent, child) in edges {
        tasks[parent].children.push(child);
        tasks[child].parents.push(parent);
    }
    let makespan =
        execution.makespan_in_seconds.map(|makespan| seconds(makespan, "workflow.execution", "makespanInSeconds"));
    let makespan = makespan.transpose()?;
    let order = order(&tasks)?;
    Ok(Instance { name, description, makespan, tasks, files: files.list, order })
}

fn meaning(place: &str, what: impl Into<String>) -> Error {
    Error::Meaning { place: place.to_owned(), what: what.into() }
}

/// The place of each task by its id.
fn places(tasks: &[Specified]) -> Result<BTreeMap<String, usize>, Error> {
    let mut places = BTreeMap::new();
    for (i, task) in tasks.iter().enumerate() {
        if let Some(first) = places.insert(task.id.clone(), i) {
            let place = format!("workflow.specification.tasks[{i}].id");
            return Err(meaning(&place, format!("{:?} is the id of tasks[{first}] already", task.id)));
        }
    }
    Ok(places)
}

fn find(places: &BTreeMap<String, usize>, id: &str, place: &str, key: &str) -> Result<usize, Error> {
    let unknown = || meaning(&format!("{place}.{key}"), format!("{id:?} is not the id of a task"));
    places.get(id).copied().ok_or_else(unknown)
}

/// What was measured of a task.
struct Measured {
    runtime: Duration,
    command: Option<Command>,
    core_count: Option<f64>,
    average_cpu: Option<f64>,
    memory_bytes: Option<u64>,
}

/// What was measured, by the place of the task.
fn executed(tasks: Vec<Executed>, places: &BTreeMap<String, usize>) -> Result<BTreeMap<usize, Measured>, Error> {
    let mut executed = BTreeMap::new();
    for (i, task) in tasks.into_iter().enumerate() {
        let place = format!("workflow.execution.tasks[{i}] ({})", task.id);
        let of = find(places, &task.id, &place, "id")?;
        let positive = |value: Option<f64>, key: &str| match value {
            Some(value) if value < 0.0 => {
                Err(meaning(&format!("{place}.{key}"), format!("it is {value}; it must not be negative")))
            }
            value => Ok(value),
        };
        let measured = Measured {
            runtime: seconds(task.runtime_in_seconds, &place, "runtimeInSeconds")?,
            command: task.command,
            core_count: positive(task.core_count, "coreCount")?,
            average_cpu: positive(task.average_cpu, "avgCPU")?,
            memory_bytes: task.memory_in_bytes,
        };
        if executed.insert(of, measured).is_some() {
            return Err(meaning(&place, "the task was measured twice"));
        }
    }
    Ok(executed)
}

fn seconds(value: f64, place: &str, key: &str) -> Result<Duration, Error> {
    Duration::try_from_secs_f64(value)
        .map_err(|error| meaning(&format!("{place}.{key}"), format!("{value} is no span of time: {error}")))
}

/// The files, each once.
struct Files {
    list: Vec<File>,
    places: BTreeMap<String, usize>,
}

impl Files {
    fn new(sized: Vec<Sized>) -> Result<Self, Error> {
        let mut files = Self { list: Vec::with_capacity(sized.len()), places: BTreeMap::new() };
        for (i, file) in sized.into_iter().enumerate() {
            if let Some(first) = files.places.insert(file.id.clone(), i) {
                let place = format!("workflow.specification.files[{i}].id");
                return Err(meaning(&place, format!("{:?} is the id of files[{first}] already", file.id)));
            }
            files.list.push(File { id: file.id, bytes: file.size_in_bytes });
        }
        Ok(files)
    }

    /// The places of these files. One that nobody described has no size.
    fn all(&mut self, ids: Vec<String>) -> Vec<usize> {
        let mut places = BTreeSet::new();
        for id in ids {
            let next = self.list.len();
            let place = *self.places.entry(id.clone()).or_insert(next);
            if place == next {
                self.list.push(File { id, bytes: 0 });
            }
            places.insert(place);
        }
        places.into_iter().collect()
    }
}

/// The edges that files say: from the one task that writes a file to those that read it. A file that several tasks write
/// orders nobody, because which of them is meant is not known.
fn file_edges(tasks: &[Task], files: usize) -> BTreeSet<(usize, usize)> {
    let mut writers = vec![Vec::new(); files];
    for (i, task) in tasks.iter().enumerate() {
        task.outputs.iter().for_each(|&file| writers[file].push(i));
    }
    let mut edges = BTreeSet::new();
    for (reader, task) in tasks.iter().enumerate() {
        for &file in &task.inputs {
            if let [writer] = writers[file][..]
                && writer != reader
            {
                edges.insert((writer, reader));
            }
        }
    }
    edges
}

/// What kind of work a task is.
fn category(name: &str, program: Option<&str>) -> String {
    let is_word = |program: &&str| {
        !program.is_empty() && program.len() <= MAX_PROGRAM_BYTES && !program.contains(char::is_whitespace)
    };
    match program.filter(is_word) {
        Some(program) => program.to_owned(),
        None => without_number(name).to_owned(),
    }
}

/// A name without the `_ID000001` or `_7` that ends it.
fn without_number(name: &str) -> &str {
    let word = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if word.len() == name.len() {
        return name;
    }
    let kind = word.strip_suffix("_ID").or_else(|| word.strip_suffix('_'));
    kind.filter(|kind| !kind.is_empty()).unwrap_or(name)
}

/// The tasks in an order in which each comes after its parents: of those that may come next, the one that stands first in
/// the text.
fn order(tasks: &[Task]) -> Result<Vec<usize>, Error> {
    let mut waits: Vec<usize> = tasks.iter().map(|task| task.parents.len()).collect();
    let mut free: BTreeSet<usize> = (0..tasks.len()).filter(|&task| waits[task] == 0).collect();
    let mut order = Vec::with_capacity(tasks.len());
    while let Some(task) = free.pop_first() {
        order.push(task);
        for &child in &tasks[task].children {
            waits[child] -= 1;
            if waits[child] == 0 {
                free.insert(child);
            }
        }
    }
    match waits.iter().position(|&waits| waits > 0) {
        None => Ok(order),
        Some(stuck) => Err(Error::Cycle(cycle(tasks, &waits, stuck))),
    }
}

/// A cycle among tasks that wait. Each of them waits for another such one, so that going from one to the next comes round.
fn cycle(tasks: &[Task], waits: &[usize], from: usize) -> String {
    let mut path = Vec::new();
    let mut seen = BTreeMap::new();
    let mut task = from;
    while !seen.contains_key(&task) {
        seen.insert(task, path.len());
        path.push(task);
        let Some(&next) = tasks[task].parents.iter().find(|&&parent| waits[parent] > 0) else { break };
        task = next;
    }
    path.push(task);
    let round = &path[seen.get(&task).copied().unwrap_or(0)..];
    let names: Vec<_> = round.iter().rev().map(|&task| tasks[task].id.as_str()).collect();
    names.join(" -> ")
}
