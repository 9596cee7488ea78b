//! The graphs of workflows: what a stage is, and what waits for it.
//!
//! The latest version of each workflow is kept, and every one that a live run keeps to.

use std::collections::BTreeMap;
use std::sync::Arc;

use baton_protocol::definition::{Definition, Estimate, StageDefinition};
use baton_protocol::{Capability, Millis, StageName, WorkflowName};
use serde::{Deserialize, Serialize};

use crate::math::ln;

/// What a size is added to before its logarithm is taken, in bytes: below it, size says little.
const SMALL: f64 = 10_000.0;

/// The graphs of all workflows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Graphs {
    workflows: BTreeMap<WorkflowName, Versions>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Versions {
    latest: u32,
    versions: BTreeMap<u32, Version>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Version {
    graph: Arc<Graph>,
    /// How many live runs keep to it.
    runs: u64,
}

/// The graph of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Graph {
    /// Every stage comes after those that it waits for.
    pub(crate) stages: Vec<Node>,
    /// The stages' places, by name.
    by_name: Vec<u32>,
}

/// A stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) name: StageName,
    pub(crate) agent_type: Capability,
    /// No agent has it: people decide, a signal is waited for, or a run does it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) asks: bool,
    /// What kind of work it is: see [`Estimate::kind`].
    pub(crate) kind: Arc<str>,
    /// The logarithm of how much it has to read.
    pub(crate) size: f64,
    /// How long the definition says that it takes.
    pub(crate) duration_ms: Option<Millis>,
    /// How many tokens the definition says that it takes.
    pub(crate) tokens: Option<u64>,
    /// What it is more urgent than its run.
    #[serde(default)]
    pub(crate) priority: i32,
    /// How long after its run's start it should be over.
    #[serde(default)]
    pub(crate) due_ms: Option<Millis>,
    /// The places of those that wait for it.
    pub(crate) children: Vec<u32>,
}

impl Graphs {
    /// A workflow has a new version.
    pub(crate) fn registered(&mut self, version: u32, definition: &Definition) {
        let versions = self.workflows.entry(definition.name.clone()).or_default();
        versions.latest = versions.latest.max(version);
        let latest = versions.latest;
        versions.versions.entry(version).or_insert_with(|| Version { graph: Arc::new(Graph::of(definition)), runs: 0 });
        versions.versions.retain(|version, of| *version == latest || of.runs > 0);
    }

    pub(crate) fn run_started(&mut self, workflow: &WorkflowName, version: u32) {
        let versions = self.workflows.get_mut(workflow);
        if let Some(version) = versions.and_then(|versions| versions.versions.get_mut(&version)) {
            version.runs += 1;
        }
    }

    pub(crate) fn run_finished(&mut self, workflow: &WorkflowName, version: u32) {
        let Some(versions) = self.workflows.get_mut(workflow) else { return };
        let Some(of) = versions.versions.get_mut(&version) else { return };
        of.runs = of.runs.saturating_sub(1);
        if of.runs == 0 && version != versions.latest {
            versions.versions.remove(&version);
        }
    }

    pub(crate) fn get(&self, workflow: &WorkflowName, version: u32) -> Option<&Arc<Graph>> {
        self.workflows.get(workflow)?.versions.get(&version).map(|version| &version.graph)
    }

    /// The latest version of a workflow.
    pub(crate) fn latest(&self, workflow: &WorkflowName) -> Option<(u32, &Arc<Graph>)> {
        let versions = self.workflows.get(workflow)?;
        Some((versions.latest, &versions.versions.get(&versions.latest)?.graph))
    }
}

impl Graph {
    fn of(definition: &Definition) -> Self {
        let stages = &definition.stages;
        let places: BTreeMap<&StageName, usize> =
            stages.iter().enumerate().map(|(n, stage)| (&stage.name, n)).collect();
        let parents = |stage: &StageDefinition| -> Vec<usize> {
            stage.depends_on.iter().filter_map(|parent| places.get(parent).copied()).collect()
        };
        let parents: Vec<_> = stages.iter().map(parents).collect();
        let mut children = vec![Vec::new(); stages.len()];
        for (child, parents) in parents.iter().enumerate() {
            for parent in parents {
                children[*parent].push(child);
            }
        }
        let mut waits: Vec<_> = parents.iter().map(Vec::len).collect();
        let mut order: Vec<_> = (0..stages.len()).filter(|n| waits[*n] == 0).collect();
        let mut next = 0;
        while let Some(stage) = order.get(next).copied() {
            next += 1;
            for child in &children[stage] {
                waits[*child] -= 1;
                if waits[*child] == 0 {
                    order.push(*child);
                }
            }
        }
        // A definition has no cycles; if one ever had, its stages would be ranked as if nothing waited for them.
        order.extend((0..stages.len()).filter(|n| waits[*n] > 0));
        let mut place = vec![0; stages.len()];
        for (at, stage) in order.iter().enumerate() {
            place[*stage] = at;
        }
        let node = |at: &usize| {
            let after = children[*at].iter().map(|child| place[*child]).filter(|child| *child > place[*at]);
            Node::of(&stages[*at], after.map(|child| child as u32).collect())
        };
        let stages: Vec<_> = order.iter().map(node).collect();
        let mut by_name: Vec<_> = (0..stages.len() as u32).collect();
        by_name.sort_unstable_by(|a, b| stages[*a as usize].name.cmp(&stages[*b as usize].name));
        Self { stages, by_name }
    }

    /// Where a stage is.
    pub(crate) fn place(&self, stage: &StageName) -> Option<u32> {
        let name = |place: &u32| &self.stages[*place as usize].name;
        self.by_name.binary_search_by(|place| name(place).cmp(stage)).ok().map(|at| self.by_name[at])
    }
}

impl Node {
    fn of(stage: &StageDefinition, children: Vec<u32>) -> Self {
        let estimate = stage.estimate.clone().unwrap_or_default();
        let Estimate { kind, duration_ms, size, tokens } = estimate;
        let kind = kind.unwrap_or_else(|| without_number(stage.name.as_str()).to_owned());
        Self {
            name: stage.name.clone(),
            agent_type: stage.agent_type.clone(),
            asks: !stage.has_agent(),
            kind: format!("{}/{kind}", stage.agent_type).into(),
            size: ln(size.unwrap_or_default() as f64 + SMALL),
            // How long people take is no work, and nothing is learned of it. What a run takes is known of its own stages.
            duration_ms: if stage.has_agent() { duration_ms } else { Some(1) },
            tokens,
            priority: stage.priority,
            due_ms: stage.due_ms,
            children,
        }
    }
}

/// What is left of a name without the number at its end: `blast` of `blast_id0017`, `blast-17` and `blast17`.
fn without_number(name: &str) -> &str {
    let rest = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if rest.len() == name.len() {
        return name;
    }
    let rest = rest.trim_end_matches(['_', '-']);
    let rest = rest.strip_suffix("_id").or_else(|| rest.strip_suffix("-id")).unwrap_or(rest);
    let rest = rest.trim_end_matches(['_', '-']);
    if rest.is_empty() { name } else { rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o6_stages_that_differ_in_a_number_are_of_one_kind() {
        for (name, kind) in [
            ("blast_id0017", "blast"),
            ("blast-17", "blast"),
            ("blast17", "blast"),
            ("blast", "blast"),
            ("17", "17"),
            ("s1-merge", "s1-merge"),
        ] {
            assert_eq!(without_number(name), kind);
        }
    }

    #[test]
    fn a_stage_comes_after_those_that_it_waits_for_and_old_versions_go() {
        let definition = Definition::builder("w")
            .add_stage("d", "x", &["b", "c"])
            .add_stage("c", "x", &["a"])
            .add_stage("b", "x", &["a"])
            .add_stage("a", "x", &[])
            .build()
            .unwrap();
        let mut graphs = Graphs::default();
        let name = WorkflowName::new("w").unwrap();
        graphs.registered(1, &definition);
        let graph = graphs.get(&name, 1).unwrap();
        let names: Vec<_> = graph.stages.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["a", "c", "b", "d"]);
        assert_eq!(graph.stages[0].children, [1, 2]);
        assert_eq!(graph.place(&StageName::new("d").unwrap()), Some(3));
        assert_eq!(graph.place(&StageName::new("e").unwrap()), None);
        graphs.run_started(&name, 1);
        graphs.registered(2, &definition);
        assert!(graphs.get(&name, 1).is_some());
        graphs.run_finished(&name, 1);
        assert!(graphs.get(&name, 1).is_none() && graphs.latest(&name).is_some_and(|(version, _)| version == 2));
        graphs.run_finished(&name, 1);
        graphs.run_started(&WorkflowName::new("v").unwrap(), 1);
    }
}
