//! How many agents a workflow needs, and which way of working together suits it.
//!
//! Two answers to the first. The formula of the source document multiplies stages, parallel stages and complexity: a count of
//! agents for one request, whatever they can do. The other follows from what was learned: work arrives at a rate, and by
//! Little's law (1961) so many slots of each type are at work on average as the rate times the time that a run needs them;
//! failed attempts are done again, and a part of the slots is kept free so that little waits.

use std::collections::BTreeMap;

use baton_protocol::request::{
    Advice, Advise, AgentsNeeded, CapacityPlan, Formula, Hybrid, Pattern, PlanCapacity, Protocol, Suggestion,
};
use baton_protocol::{Capability, Code, Rejection, WorkflowName};

use crate::Optimizer;
use crate::durations::{Place, unknown_run};
use crate::graph::Graph;
use crate::math::exp;

/// Of agents that fail every time, tasks are not given up sooner than after so many attempts on average.
const MAX_ATTEMPTS: f64 = 10.0;
/// From how many agents on a group is large.
const LARGE: usize = 100;
/// Up to how many one that directs them is the simplest.
const FEW: usize = 3;

/// What a graph looks like.
struct Outline {
    /// The longest path, in stages.
    depth: usize,
    /// The most stages that are equally far from the beginning.
    width: usize,
}

impl Outline {
    fn of(graph: &Graph) -> Self {
        let mut level = vec![0; graph.stages.len()];
        let mut widths: BTreeMap<usize, usize> = BTreeMap::new();
        for (at, node) in graph.stages.iter().enumerate() {
            *widths.entry(level[at]).or_default() += 1;
            for child in &node.children {
                level[*child as usize] = level[*child as usize].max(level[at] + 1);
            }
        }
        Self { depth: widths.len(), width: widths.values().copied().max().unwrap_or(0) }
    }
}

fn latest<'a>(state: &'a Optimizer, workflow: &WorkflowName) -> Result<&'a Graph, Rejection> {
    let latest = state.graphs.latest(workflow).map(|(_, graph)| graph.as_ref());
    latest.ok_or_else(|| Rejection::new(Code::UnknownWorkflow, format!("there is no workflow {workflow}")))
}

/// How many agents of which type a workflow and a rate of runs need.
pub(crate) fn plan(state: &Optimizer, request: &PlanCapacity) -> Result<CapacityPlan, Rejection> {
    let graph = latest(state, &request.workflow)?;
    let wrong =
        |what: &str, value: f64, rule: &str| Err(Rejection::invalid(format!("{what} is {value}; it must be {rule}")));
    if !(request.runs_per_hour.is_finite() && request.runs_per_hour >= 0.0) {
        return wrong("runs_per_hour", request.runs_per_hour, "0 or more");
    }
    if !(request.utilization > 0.0 && request.utilization <= 1.0) {
        return wrong("utilization", request.utilization, "more than 0, and at most 1");
    }
    if !(request.complexity.is_finite() && request.complexity > 0.0) {
        return wrong("complexity", request.complexity, "more than 0");
    }
    let durations = &state.learning.durations;
    let mut path = vec![0.0_f64; graph.stages.len()];
    let mut work: BTreeMap<&Capability, (usize, f64)> = BTreeMap::new();
    let (mut learned, mut tokens) = (0, 0.0);
    for (at, node) in graph.stages.iter().enumerate() {
        let place = Place { workflow: &request.workflow, node, run: unknown_run() };
        let takes = durations.work(place).expected() * request.complexity;
        if !node.asks {
            let of = work.entry(&node.agent_type).or_default();
            (of.0, of.1) = (of.0 + 1, of.1 + takes);
        }
        tokens += durations.tokens(&request.workflow, node).map_or(0.0, |tokens| tokens.mean);
        learned += usize::from(durations.is_known(place));
        path[at] += takes;
        for child in &node.children {
            path[*child as usize] = path[*child as usize].max(path[at]);
        }
    }
    let agents = work.into_iter().map(|(agent_type, (stages, work_ms))| {
        let more = request.more.get(agent_type).copied().unwrap_or(0);
        needed(state, request, agent_type, stages, work_ms, more)
    });
    let outline = Outline::of(graph);
    let agents: Vec<_> = agents.collect();
    let short = agents.iter().filter(|of| of.slots + f64::from(of.more) < of.needed);
    let mut advice: Vec<_> = short
        .map(|of| {
            let missing = (of.needed - of.slots - f64::from(of.more)).ceil();
            format!("{}: {missing} more slots are needed, or the queue will grow", of.agent_type)
        })
        .collect();
    if learned < graph.stages.len() {
        let unknown = graph.stages.len() - learned;
        advice.push(format!(
            "of {unknown} of the {} stages nothing was learned yet: their times are guesses",
            graph.stages.len()
        ));
    }
    let base = graph.stages.len() as f64;
    Ok(CapacityPlan {
        workflow: request.workflow.clone(),
        formula: Formula {
            stages: graph.stages.len() as u64,
            parallel_stages: outline.width as u64,
            complexity: request.complexity,
            required: (base * outline.width as f64 * request.complexity).ceil() as u64,
        },
        shortest_run_ms: path.iter().copied().fold(0.0, f64::max).round() as u64,
        tokens: (tokens * request.complexity).round() as u64,
        agents,
        advice,
    })
}

fn needed(
    state: &Optimizer,
    request: &PlanCapacity,
    agent_type: &Capability,
    stages: usize,
    work_ms: f64,
    more: u32,
) -> AgentsNeeded {
    let (mut slots, mut speed, mut failure) = (0.0, 0.0, 0.0);
    for (id, agent) in state.fleet.iter().filter(|(_, agent)| agent.capabilities.contains_key(agent_type)) {
        let each = f64::from(agent.slots());
        slots += each;
        speed += each * state.learning.performance(id).map_or(1.0, |known| exp(known.speed.log.mean));
        failure += each * state.learning.failure(id, agent_type);
    }
    let (speed, failure) = if slots > 0.0 { (speed / slots, failure / slots) } else { (1.0, 0.0) };
    let attempts = (1.0 / (1.0 - failure).max(1.0 / MAX_ATTEMPTS)).min(MAX_ATTEMPTS);
    // A failed attempt takes half as long as one that succeeds, on average.
    let again = 1.0 + (attempts - 1.0) / 2.0;
    let busy = request.runs_per_hour / 3_600_000.0 * work_ms * again / speed;
    let there = slots + f64::from(more);
    AgentsNeeded {
        agent_type: agent_type.clone(),
        stages: stages as u64,
        work_ms: work_ms.round() as u64,
        busy,
        needed: (busy / request.utilization).ceil().max(1.0),
        slots,
        more,
        utilization: (there > 0.0).then(|| busy / there),
    }
}

/// How agents should work together on a workflow, and what they should be told by, each with its reasons.
pub(crate) fn advise(state: &Optimizer, request: &Advise) -> Result<Advice, Rejection> {
    let graph = latest(state, &request.workflow)?;
    let outline = Outline::of(graph);
    let can =
        |agent: &crate::fleet::Agent| graph.stages.iter().any(|node| agent.capabilities.contains_key(&node.agent_type));
    let agents = request.agents.map_or_else(
        || state.fleet.iter().filter(|(_, agent)| can(agent)).count(),
        |agents| usize::try_from(agents).unwrap_or(usize::MAX),
    );
    Ok(Advice {
        protocol: protocol(graph, &outline, agents),
        pattern: pattern(graph, &outline, agents, request),
        agents: agents as u64,
    })
}

/// Which protocol: the rule of the first source document.
fn protocol(graph: &Graph, outline: &Outline, agents: usize) -> Suggestion<Protocol> {
    let stages = graph.stages.len();
    let (choice, why) = if outline.width == 1 && stages > 1 {
        (Protocol::Pipeline, format!("its {stages} stages follow one another, so that each hands on to the next"))
    } else if agents <= 2 {
        (Protocol::Synchronous, format!("{agents} agents are few enough to wait for each other's answers"))
    } else if agents <= 5 {
        (Protocol::Asynchronous, format!("{agents} agents would hold each other up if they waited for answers"))
    } else {
        let width = outline.width;
        (
            Protocol::Broadcast,
            format!("{agents} agents, and up to {width} stages at a time: one word to all costs least"),
        )
    };
    Suggestion { choice, reasons: vec![why] }
}

/// Which pattern: the decision tree of the third source document, asked in its order.
fn pattern(graph: &Graph, outline: &Outline, agents: usize, request: &Advise) -> Suggestion<Pattern> {
    let mut reasons = Vec::new();
    let stages = graph.stages.len();
    let strict = request.strict_order.unwrap_or(outline.depth == stages && stages > 1);
    if strict {
        reasons.push(if request.strict_order.is_some() {
            "the order must be controlled strictly".to_owned()
        } else {
            "every stage waits for the one before it: the order must be controlled strictly".to_owned()
        });
        return Suggestion { choice: Pattern::Centralized, reasons };
    }
    reasons.push("stages need not run in one strict order".to_owned());
    // One that all others wait for, and one that waits for all others: who divides the work, and who brings it together.
    let begin = graph.stages.first().is_some_and(|first| first.children.len() > 1);
    let hierarchy = request.hierarchy.unwrap_or(outline.depth >= 3 && outline.width >= 3 && begin);
    if hierarchy {
        reasons.push("a stage divides the work, others do it: there is a natural hierarchy".to_owned());
        if agents <= LARGE {
            return Suggestion { choice: Pattern::Hierarchical, reasons };
        }
        reasons.push(format!("{agents} agents are too many for one head"));
        let hybrid = if request.fault_tolerance == Some(true) {
            reasons.push("the loss of any agent must not matter: groups of peers, and heads between them".to_owned());
            Hybrid::PeerToPeerHierarchical
        } else {
            reasons.push("each team has a head, and heads are peers".to_owned());
            Hybrid::HierarchicalCentralized
        };
        return Suggestion { choice: Pattern::Hybrid(hybrid), reasons };
    }
    reasons.push("there is no natural hierarchy".to_owned());
    let critical = request.fault_tolerance.unwrap_or(false);
    if critical {
        reasons.push("the loss of any agent must not matter".to_owned());
    }
    if agents > LARGE {
        reasons.push(format!("{agents} agents are more than {LARGE}"));
        let choice = if critical { Pattern::Swarm } else { Pattern::Hybrid(Hybrid::CentralizedSwarm) };
        return Suggestion { choice, reasons };
    }
    if critical {
        return Suggestion { choice: Pattern::PeerToPeer, reasons };
    }
    reasons.push(format!("{agents} agents are not more than {LARGE}"));
    if agents <= FEW {
        reasons.push("so few are directed most simply by one".to_owned());
        return Suggestion { choice: Pattern::Centralized, reasons };
    }
    Suggestion { choice: Pattern::PeerToPeer, reasons }
}
