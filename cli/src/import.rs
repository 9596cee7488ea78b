//! From an instance of WfFormat to a workflow: each task a stage, its runtime a time to sleep.
//!
//! What the instance calls its tasks and their kinds may be a hundred characters long, with dots and capitals; a stage's
//! name is a token of subjects. [`Names`] makes the one from the other, and the stage keeps the task's id as a parameter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use baton_protocol::definition::DefinitionError;
use baton_protocol::{Definition, Millis};
use baton_stock::sleep;
use baton_wfformat::Instance;
use serde_json::{Value, json};

/// The longest name there may be.
const MAX_NAME: usize = 63;

/// A run may take as long as four agents would that do one task after another, each a quarter as fast.
const PATIENCE: u32 = 4;

/// Below this much work, the times that a definition allows by itself will do.
const SHORT: Duration = Duration::from_secs(3600);

const DAY: Millis = 24 * 3_600_000;
const YEAR: Millis = 366 * DAY;

/// Makes a workflow of an instance. The runtimes are multiplied by `scale`.
pub(crate) fn workflow(instance: &Instance, name: &str, scale: f64) -> Result<Definition, DefinitionError> {
    let mut stages = Names::new("task");
    let names: Vec<String> = instance.tasks.iter().map(|task| stages.give(&task.id)).collect();
    let mut kinds = Names::new("work");
    let mut capabilities = BTreeMap::new();
    for task in &instance.tasks {
        capabilities.entry(&task.category).or_insert_with(|| kinds.give(&task.category));
    }
    let work: Duration = instance.tasks.iter().map(|task| scaled(task.runtime, scale)).sum();
    let patience = millis(work * PATIENCE);

    let mut builder = Definition::builder(name).description(describe(instance, scale));
    for (at, task) in instance.tasks.iter().enumerate() {
        let depends_on: Vec<&str> = task.parents.iter().map(|&parent| names[parent].as_str()).collect();
        let slept = scaled(task.runtime, scale);
        builder = builder.add_stage(&names[at], &capabilities[&task.category], &depends_on).with(|stage| {
            stage.params.insert("task".to_owned(), Value::from(task.id.as_str()));
            stage.params.insert(sleep::PARAM.to_owned(), milliseconds(slept));
            let bytes = instance.input_bytes(at);
            if bytes > 0 {
                stage.params.insert("input_bytes".to_owned(), json!(bytes));
            }
            if work > SHORT {
                stage.start_timeout_ms = patience.clamp(stage.start_timeout_ms, YEAR);
                stage.timeout_ms = millis(slept * PATIENCE).clamp(stage.timeout_ms, YEAR);
            }
        });
    }
    let mut definition = builder.build()?;
    definition.timeout_ms = patience.clamp(definition.timeout_ms, YEAR);
    Ok(definition)
}

/// What a file, or an instance, is called as a workflow.
pub(crate) fn workflow_name(text: &str) -> String {
    Names::new("workflow").give(text)
}

fn describe(instance: &Instance, scale: f64) -> String {
    let scaled = if (scale - 1.0).abs() < f64::EPSILON { String::new() } else { format!(", runtimes × {scale}") };
    format!(
        "{}: {} tasks, {} edges, {} on the longest path of {:.1} s; from WfFormat 1.5{scaled}",
        instance.name,
        instance.tasks.len(),
        instance.edges(),
        instance.depth(),
        instance.critical_path().as_secs_f64(),
    )
}

/// A runtime as it is slept; three hundred years at the most, so that sums of them are times too.
fn scaled(runtime: Duration, scale: f64) -> Duration {
    Duration::from_secs_f64((runtime.as_secs_f64() * scale).clamp(0.0, 1e10))
}

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
}

/// To the microsecond, and whole where it is whole: there are thousands of them.
fn milliseconds(time: Duration) -> Value {
    let micros = time.as_micros();
    match u64::try_from(micros / 1000) {
        Ok(whole) if micros.is_multiple_of(1000) => json!(whole),
        _ => json!(micros as f64 / 1000.0),
    }
}

/// Names that are tokens, each once.
#[derive(Debug)]
struct Names {
    given: BTreeSet<String>,
    /// What is called so when nothing is left of its name.
    otherwise: &'static str,
}

impl Names {
    fn new(otherwise: &'static str) -> Self {
        Self { given: BTreeSet::new(), otherwise }
    }

    /// A name like that text which was not given yet. Of a long text the end is kept: numbers stand there.
    fn give(&mut self, text: &str) -> String {
        let lower = text.to_ascii_lowercase();
        let safe: String =
            lower.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '-' }).collect();
        let base = tail(&safe, MAX_NAME).trim_matches(['-', '_']);
        let base = if base.is_empty() { self.otherwise } else { base };
        let mut name = base.to_owned();
        let mut number = 1;
        while !self.given.insert(name.clone()) {
            number += 1;
            let suffix = format!("-{number}");
            name = format!("{}{suffix}", tail(base, MAX_NAME - suffix.len()).trim_start_matches(['-', '_']));
        }
        name
    }
}

/// The last characters of a text in ASCII.
fn tail(text: &str, most: usize) -> &str {
    &text[text.len().saturating_sub(most)..]
}

#[cfg(test)]
mod tests {
    use baton_protocol::{StageName, WorkflowName};

    use super::*;

    #[test]
    fn w22_any_id_becomes_a_name_and_no_two_the_same() {
        let mut names = Names::new("task");
        for (id, name) in [
            ("sort_ID0000001", "sort_id0000001"),
            ("SORT_ID0000001", "sort_id0000001-2"),
            ("NFCORE_MAG.MAG.BOWTIE2_1", "nfcore_mag-mag-bowtie2_1"),
            ("__x", "x"),
            ("é", "task"),
            ("", "task-2"),
        ] {
            assert_eq!(names.give(id), name);
        }
        let long = format!("{}.ALIGN_17", "a".repeat(80));
        let (first, second) = (names.give(&long), names.give(&long));
        assert!(first.ends_with("-align_17") && second.ends_with("-align_17-2"), "{first} {second}");
        assert!(StageName::new(&first).is_ok() && StageName::new(&second).is_ok());
        assert!(WorkflowName::new(&workflow_name("1000Genome 10ch.json")).is_ok());
    }

    #[test]
    fn w22_runtimes_are_scaled_and_nothing_waits_too_short() {
        let instance = |seconds: f64| {
            let text = json!({
                "name": "two", "schemaVersion": "1.5",
                "workflow": {
                    "specification": {
                        "tasks": [
                            { "id": "a.1", "name": "a_1", "parents": [], "children": ["b.2"], "inputFiles": ["in"] },
                            { "id": "b.2", "name": "b_2", "parents": ["a.1"], "children": [] },
                            { "id": "c.3", "name": "c_3", "parents": [], "children": [] },
                        ],
                        "files": [{ "id": "in", "sizeInBytes": 70 }]
                    },
                    "execution": { "tasks": [
                        { "id": "a.1", "runtimeInSeconds": seconds }, { "id": "b.2", "runtimeInSeconds": 0 },
                        { "id": "c.3", "runtimeInSeconds": 0.0005 },
                    ] }
                }
            });
            baton_wfformat::parse(&text.to_string()).unwrap()
        };
        let short = workflow(&instance(2.0), "two", 0.5).unwrap();
        assert_eq!(
            serde_json::to_value(&short.stages).unwrap(),
            json!([
                { "name": "a-1", "agent_type": "a", "params": { "task": "a.1", "sleep_ms": 1000, "input_bytes": 70 } },
                { "name": "b-2", "agent_type": "b", "depends_on": ["a-1"], "params": { "task": "b.2", "sleep_ms": 0 } },
                { "name": "c-3", "agent_type": "c", "params": { "task": "c.3", "sleep_ms": 0.25 } },
            ])
        );
        assert_eq!(short.timeout_ms, DAY);
        let long = workflow(&instance(100_000.0), "two", 1.0).unwrap();
        assert_eq!(
            (long.timeout_ms, long.stages[0].start_timeout_ms, long.stages[1].timeout_ms),
            (400_000_002, 400_000_002, 3_600_000)
        );
        assert!(workflow(&instance(1e9), "two", 1.0).is_ok(), "longer than may be waited, but still a workflow");
    }
}
