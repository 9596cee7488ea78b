//! Workflows and runs as graphs that can be drawn: [`lanes`] for a terminal, [`svg`] for everything else.

mod fold;
pub(crate) mod lanes;
pub(crate) mod svg;

use std::collections::BTreeMap;

use baton_protocol::run::{RunView, StageStatus};
use baton_protocol::{Definition, StageDefinition};

/// A graph of stages, or of groups of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Graph {
    /// What it shows: `article v1`, or a run of it.
    pub(crate) title: String,
    pub(crate) nodes: Vec<Node>,
    /// Each node before all that depend on it, and near to them.
    pub(crate) order: Vec<usize>,
}

/// A stage, or stages that stand at the same place in the graph.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) label: String,
    /// Which agents it is for.
    pub(crate) agents: String,
    /// How many stages it stands for.
    pub(crate) stages: usize,
    pub(crate) optional: bool,
    /// How many of them stand how; empty for a workflow that does not run.
    pub(crate) states: BTreeMap<StageStatus, usize>,
    pub(crate) parents: Vec<usize>,
    pub(crate) children: Vec<usize>,
    /// How many stages the longest path to it has before it.
    pub(crate) depth: usize,
}

/// Which agents have a stage, or whose word it waits for.
fn who(stage: &StageDefinition) -> String {
    match (&stage.approval, &stage.wait_for) {
        (Some(_), _) => "people".to_owned(),
        (None, Some(wait_for)) => format!("signal {}", wait_for.signal),
        (None, None) => stage.workflow.as_ref().map_or_else(|| stage.agent_type.to_string(), ToString::to_string),
    }
}

impl Graph {
    /// A workflow's stages.
    pub(crate) fn of(title: String, definition: &Definition) -> Self {
        let places: BTreeMap<_, _> =
            definition.stages.iter().enumerate().map(|(place, stage)| (&stage.name, place)).collect();
        let nodes = definition.stages.iter().map(|stage| Node {
            label: stage.name.to_string(),
            agents: who(stage),
            stages: 1,
            optional: stage.optional,
            parents: stage.depends_on.iter().filter_map(|dependency| places.get(dependency)).copied().collect(),
            ..Node::default()
        });
        Self::finish(title, nodes.collect())
    }

    /// Says how the stages of a run stand.
    pub(crate) fn with_states(mut self, view: &RunView) -> Self {
        let states: BTreeMap<_, _> = view.stages.iter().map(|stage| (stage.name.as_str(), stage.status)).collect();
        for node in &mut self.nodes {
            node.states.extend(states.get(node.label.as_str()).map(|status| (*status, 1)));
        }
        self
    }

    /// Makes one node of those that have the same agents, and the same kinds of nodes before and after them.
    pub(crate) fn folded(&self) -> Self {
        let (classes, count) = fold::classes(&self.nodes);
        let mut nodes = vec![Node::default(); count];
        for (node, &class) in self.nodes.iter().zip(&classes) {
            let group = &mut nodes[class];
            group.stages += node.stages;
            group.label =
                if group.stages == 1 { node.label.clone() } else { format!("{} ×{}", node.agents, group.stages) };
            group.agents.clone_from(&node.agents);
            group.optional = node.optional;
            for (status, count) in &node.states {
                *group.states.entry(*status).or_default() += count;
            }
            group.parents.extend(node.parents.iter().map(|&parent| classes[parent]));
        }
        for node in &mut nodes {
            node.parents.sort_unstable();
            node.parents.dedup();
        }
        Self::finish(self.title.clone(), nodes)
    }

    /// Fills in what follows from the parents.
    fn finish(title: String, mut nodes: Vec<Node>) -> Self {
        for at in 0..nodes.len() {
            for parent in nodes[at].parents.clone() {
                nodes[parent].children.push(at);
            }
        }
        // Depth first, so that a node's children follow it as soon as they can.
        let mut waits: Vec<usize> = nodes.iter().map(|node| node.parents.len()).collect();
        let mut stack: Vec<usize> = (0..nodes.len()).rev().filter(|&at| waits[at] == 0).collect();
        let mut order = Vec::with_capacity(nodes.len());
        while let Some(at) = stack.pop() {
            order.push(at);
            for &child in nodes[at].children.iter().rev() {
                waits[child] -= 1;
                if waits[child] == 0 {
                    stack.push(child);
                }
            }
        }
        for &at in &order {
            let depth = nodes[at].parents.iter().map(|&parent| nodes[parent].depth + 1).max();
            nodes[at].depth = depth.unwrap_or(0);
        }
        Self { title, nodes, order }
    }

    /// How many stages it stands for.
    pub(crate) fn stages(&self) -> usize {
        self.nodes.iter().map(|node| node.stages).sum()
    }
}

impl Node {
    /// The state that is worth the most attention.
    pub(crate) fn state(&self) -> Option<StageStatus> {
        let rank = |status: &StageStatus| match status {
            StageStatus::Failed => 0,
            StageStatus::Running => 1,
            StageStatus::Waiting => 2,
            StageStatus::Ready => 3,
            StageStatus::Pending => 4,
            StageStatus::Cancelled => 5,
            StageStatus::Succeeded => 6,
            _ => 7,
        };
        self.states.keys().copied().min_by_key(rank)
    }

    /// How its stages stand: `running`, `3 of 8 succeeded, 2 running`.
    pub(crate) fn says(&self) -> String {
        match self.state() {
            None => String::new(),
            Some(state) if self.states.len() == 1 => state.to_string(),
            Some(_) => {
                let all: Vec<_> = self.states.iter().map(|(status, count)| format!("{count} {status}")).collect();
                all.join(", ")
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A graph of `name: dependency dependency` lines; the agents are what a name is without its number.
    pub(crate) fn graph(text: &str) -> Graph {
        let mut builder = Definition::builder("w");
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (name, needs) = line.split_once(':').unwrap();
            let needs: Vec<_> = needs.split_whitespace().collect();
            builder = builder.add_stage(name, name.trim_end_matches(|c: char| c.is_ascii_digit()), &needs);
        }
        Graph::of("w v1".to_owned(), &builder.build().unwrap())
    }

    #[test]
    fn c2_stages_at_the_same_place_are_one_node() {
        let folded = graph(
            "split1:
             sort1: split1
             sort2: split1
             sort3: split1
             check1: sort1
             merge1: sort1 sort2 sort3
             sort4:
            ",
        )
        .folded();
        let nodes: Vec<_> = folded.nodes.iter().map(|node| (node.label.as_str(), node.parents.clone())).collect();
        assert_eq!(
            nodes,
            [
                ("split1", vec![]),
                ("sort1", vec![0]),
                ("sort ×2", vec![0]),
                ("check1", vec![1]),
                ("merge1", vec![1, 2]),
                ("sort4", vec![]),
            ]
        );
        assert_eq!(folded.stages(), 7);
    }
}
