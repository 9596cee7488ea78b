//! What graphs and agents are called in Baton.

use std::collections::BTreeSet;
use std::sync::Arc;

use baton_protocol::definition::{Definition, Estimate};
use baton_protocol::{AgentId, Capability, Millis, StageName, WorkflowName};

use crate::draws::fnv1a;
use crate::fleet::Fleet;
use crate::workload::Graph;

/// A stage may wait, and take, as long as a definition allows: in a simulation nothing is given up.
const FOREVER_MS: Millis = 366 * 24 * 60 * 60 * 1000;
/// The most attempts that a definition allows.
const MANY: u32 = 1000;
/// How much of a text is kept where it has to be changed to be a name.
const KEPT: usize = 50;

/// A text as a name: as it is, if it is one; otherwise cut, with `-` for what names do not hold, and with a hash of the whole.
fn name_of(text: &str) -> String {
    if Capability::new(text).is_ok() {
        return text.to_owned();
    }
    let kept = text.chars().take(KEPT).map(|c| c.to_ascii_lowercase());
    let kept: String = kept.map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    let kept = kept.trim_start_matches(['-', '_']);
    format!("{}{}{:08x}", kept, if kept.is_empty() { "" } else { "-" }, fnv1a(text) as u32)
}

/// What agents that can do a category are called for.
///
/// # Panics
/// Never: whatever the category is called, a name is made of it.
#[must_use]
pub fn capability(category: &str) -> Capability {
    Capability::new(&name_of(category)).expect("it was made to be a name")
}

/// What a graph's workflow is called.
///
/// # Panics
/// Never: whatever the graph is called, a name is made of it.
#[must_use]
pub fn workflow(graph: &Graph) -> WorkflowName {
    WorkflowName::new(&name_of(&graph.name)).expect("it was made to be a name")
}

/// What a graph's task is called.
pub(crate) fn stage(place: usize) -> StageName {
    StageName::new(&format!("t{place}")).expect("it is a name")
}

/// What an agent is called.
///
/// # Panics
/// Never: it is a name.
#[must_use]
pub fn agent(place: usize) -> AgentId {
    AgentId::new(&format!("agent-{place:04}")).expect("it is a name")
}

/// What the tasks of a graph are called for, by category.
#[must_use]
pub fn capabilities(graph: &Graph) -> Vec<Capability> {
    graph.categories.iter().map(|category| capability(category)).collect()
}

/// What kind of work the optimizer takes the tasks of a category to be: their stages differ in a number.
pub(crate) fn kind(capability: &Capability) -> String {
    format!("{capability}/t")
}

/// What an agent can do of all that these graphs ask for.
#[must_use]
pub fn held(fleet: &Fleet, agent: usize, graphs: &[Arc<Graph>]) -> BTreeSet<Capability> {
    let categories = graphs.iter().flat_map(|graph| &graph.categories);
    categories.filter(|category| fleet.holds[agent][fleet.class_of(category)]).map(|held| capability(held)).collect()
}

/// The task that is called so.
#[must_use]
pub fn place_of_stage(stage: &StageName) -> Option<usize> {
    stage.as_str().strip_prefix('t')?.parse().ok()
}

/// The agent that is called so.
pub(crate) fn place_of_agent(agent: &AgentId) -> Option<usize> {
    agent.as_str().strip_prefix("agent-")?.parse().ok()
}

/// What agents are called for besides: their type, which no task asks for.
pub const WORKER: &str = "worker";

/// The definition of a graph: what Baton is told of it. How long tasks take is not in it. A task that fails is tried again at
/// once, as often as a definition allows.
///
/// # Panics
/// If the graph has a cycle, or more tasks than a definition may have stages.
#[must_use]
pub fn definition(graph: &Graph) -> Arc<Definition> {
    let stages: Vec<StageName> = (0..graph.len()).map(stage).collect();
    let capabilities = capabilities(graph);
    let mut builder = Definition::builder(workflow(graph).as_str());
    for (place, parents) in graph.parents.iter().enumerate() {
        let parents: Vec<&str> = parents.iter().map(|&parent| stages[parent].as_str()).collect();
        let capability = capabilities[graph.category[place]].as_str();
        builder = builder.add_stage(stages[place].as_str(), capability, &parents).with(|stage| {
            stage.estimate = Some(Estimate { size: Some(graph.input_bytes[place]), ..Estimate::default() });
            // As in a simulation, unless that is without second copies.
            stage.hedge = true;
            stage.retry.max_attempts = MANY;
            stage.retry.initial_ms = 0;
            stage.start_timeout_ms = FOREVER_MS;
            stage.timeout_ms = FOREVER_MS;
        });
    }
    let mut definition = builder.build().expect("a graph is a definition");
    definition.timeout_ms = FOREVER_MS;
    Arc::new(definition)
}
