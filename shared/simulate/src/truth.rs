//! Everything that can be learned, as if it had been: how fast agents are, how often they fail, how long each task takes.
//!
//! It is told to the optimizer the way lessons come from another installation (`learning.import`). What a strategy does with it
//! says how much of what it misses is for want of knowledge, and how much is luck, or the strategy's own.

use std::collections::BTreeMap;
use std::sync::Arc;

use baton_protocol::Json;
use baton_protocol::request::{Lesson, Subject};
use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::names;
use crate::who::mean;
use crate::workload::Graph;

/// As many outcomes of each agent as the optimizer remembers, and how good such an agent is taken to be, in millionths.
const OUTCOMES: f64 = 200.0;
const SCORE: u32 = 700_000;
/// The variance of a logarithm of which all is known, and of one that says nothing of it: stages are not judged by their kind.
const CERTAIN: f64 = 1e-3;
const OPEN: f64 = 10.0;

/// What there is to know of a fleet and of these workflows.
///
/// # Panics
/// If a time or a speed is no number; a workflow that was read has none such.
#[must_use]
pub fn lessons(fleet: &Fleet, graphs: &[Arc<Graph>]) -> Vec<Lesson> {
    let mut lessons: Vec<Lesson> = (0..fleet.len()).map(|agent| of_agent(fleet, agent)).collect();
    let mut kinds: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for graph in graphs {
        let (workflow, capabilities) = (names::workflow(graph), names::capabilities(graph));
        for place in 0..graph.len() {
            let took = ln_ms(graph.seconds[place]);
            kinds.entry(names::kind(&capabilities[graph.category[place]])).or_default().push(took);
            let duration = json!({ "mean": graph.seconds[place] * 1000.0, "variance": 0.0, "seen": 1 });
            let known = json!({ "log": gauss(took, CERTAIN), "duration": duration, "tokens": nothing() });
            lessons.push(lesson(Subject::Stage(workflow.clone(), names::stage(place)), &known));
        }
    }
    let of_kind = |(kind, took): (String, Vec<f64>)| {
        let known = json!({
            "log": gauss(mean(took), OPEN), "noise": OPEN, "seen": 1, "size": 0.0, "slope": gauss(0.0, CERTAIN), "tokens": nothing(),
        });
        lesson(Subject::Kind(kind), &known)
    };
    lessons.extend(kinds.into_iter().map(of_kind));
    lessons
}

fn of_agent(fleet: &Fleet, agent: usize) -> Lesson {
    let failed = OUTCOMES * fleet.failure[agent];
    let known = json!({
        "score": SCORE, "succeeded": OUTCOMES as u64, "failed": 0,
        "speed": { "log": gauss(fleet.speed[agent].ln(), CERTAIN), "surprise": 0.0 },
        "outcomes": { "succeeded": OUTCOMES - failed, "failed": failed },
    });
    lesson(Subject::Agent(names::agent(agent)), &known)
}

fn lesson(of: Subject, known: &Value) -> Lesson {
    Lesson { of, known: Json::of(known).expect("these are numbers and names") }
}

fn gauss(mean: f64, variance: f64) -> Value {
    json!({ "mean": mean, "variance": variance })
}

fn nothing() -> Value {
    json!({ "mean": 0.0, "variance": 0.0, "seen": 0 })
}

/// The logarithm of a time in milliseconds, of which the least that is told apart is a half.
fn ln_ms(seconds: f64) -> f64 {
    (seconds * 1000.0).max(0.5).ln()
}
