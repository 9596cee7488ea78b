//! What is to be done in a history: random workflows, agents, and clients' wishes.

use std::collections::BTreeMap;

use baton_protocol::definition::{Definition, RetryPolicy, StageDefinition};
use baton_protocol::request::RegisterAgent;
use baton_protocol::{
    AgentId, Amount, Capability, Metadata, Millis, Requirements, ResourceName, Resources, StageName, WorkflowName,
};
use serde_json::json;

use crate::draws::Draws;

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// To register a definition.
    Register(usize),
    /// To start a run of a workflow.
    Start { workflow: usize, own_id: bool, key: Option<u32> },
    /// To cancel a run that it knows of.
    Cancel(u32),
    /// To see a run that it knows of.
    Get(u32),
    /// To see a run that does not exist.
    GetNothing,
    /// To see all runs.
    List,
    /// To see all agents.
    Agents,
    /// To change how tasks are placed.
    Strategy(bool),
    /// To see how tasks are placed.
    Placement,
    /// To see all alerts.
    Alerts,
    /// To acknowledge the last alert, or the one after it.
    Acknowledge(bool),
    /// To find the best agents for something.
    Find(u32),
    /// To lease some task to some agent, whether that is right or not.
    Assign(u32, u32),
}

/// What is to be done in a history.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) definitions: Vec<Definition>,
    pub(crate) agents: Vec<(AgentId, RegisterAgent)>,
    /// By agent: from when to when it fails all tasks of what it mainly does, in virtual microseconds.
    pub(crate) sick: Vec<Option<(u64, u64)>>,
    /// When, in virtual microseconds, and what.
    pub(crate) wishes: Vec<(u64, Wish)>,
}

const CAPABILITIES: [&str; 3] = ["a", "b", "c"];

fn capability(name: &str) -> Capability {
    Capability::new(name).expect("a valid name")
}

fn cpu(amount: u32) -> Resources {
    if amount == 0 {
        return Resources::new();
    }
    BTreeMap::from([(ResourceName::new("cpu").expect("a valid name"), Amount::from(amount))])
}

impl Workload {
    /// A random one, to be done within so many virtual microseconds.
    pub(crate) fn draw(draws: &mut Draws, length: u64) -> Self {
        let kinds = 1 + draws.below(3);
        // Mostly there is somebody for everything.
        let least = if draws.chance(100) { 1 } else { kinds };
        let kinds = kinds as usize;
        let agents: Vec<_> = (0..least + draws.below(3)).map(|n| agent(draws, n, kinds)).collect();
        let sick = agents.iter().map(|_| draws.chance(150).then(|| sick(draws, length))).collect();
        let definitions: Vec<_> = (0..1 + draws.below(3)).map(|n| definition(draws, n, kinds)).collect();
        let mut wishes: Vec<_> = (0..definitions.len()).map(|n| (1000 * n as u64, Wish::Register(n))).collect();
        for _ in 0..1 + draws.below(4) {
            let workflow = draws.below(u32::try_from(definitions.len()).unwrap_or(1)) as usize;
            let key = draws.chance(400).then(|| draws.below(3));
            let start = Wish::Start { workflow, own_id: draws.chance(300), key };
            wishes.push((draws.between(0, length), start));
        }
        for _ in 0..draws.below(12) {
            let wish = match draws.below(16) {
                0 | 8 => Wish::Get(draws.below(4)),
                1 | 9 => Wish::List,
                10 | 11 => Wish::Assign(draws.below(64), draws.below(4)),
                2 => Wish::Cancel(draws.below(4)),
                3 => Wish::Agents,
                4 => Wish::Strategy(draws.chance(500)),
                5 => Wish::Placement,
                6 => Wish::GetNothing,
                13 => Wish::Alerts,
                14 | 15 => Wish::Acknowledge(draws.chance(100)),
                12 => Wish::Find(draws.below(3)),
                _ => Wish::Register(draws.below(u32::try_from(definitions.len()).unwrap_or(1)) as usize),
            };
            wishes.push((draws.between(0, length), wish));
        }
        Self { definitions, agents, sick, wishes }
    }
}

/// What the main capability of an agent is like. Most agents are what most stages require.
fn metadata(draws: &mut Draws) -> Metadata {
    let algorithms = draws.pick::<&[&str]>(&[&["x", "y"], &["x", "y"], &["x"], &[]]);
    let size = u64::from(8 - draws.below(8));
    let version = format!("1.{}.0", 4 - draws.below(4));
    [
        ("algorithms".to_owned(), json!(algorithms)),
        ("size".to_owned(), json!(size)),
        ("version".to_owned(), json!(version)),
    ]
    .into()
}

/// What a stage requires of such an agent.
fn requires(draws: &mut Draws) -> Requirements {
    let mut requires = Requirements::none();
    let wanted = match draws.below(4) {
        0 => ("algorithms", json!(["x"])),
        1 => ("algorithms", json!(["y", "x"])),
        2 => ("size", json!(format!(">= {}", 1 + draws.below(6)))),
        _ => ("version", json!(format!("^1.{}", 1 + draws.below(3)))),
    };
    requires.add(wanted.0, wanted.1).expect("it can be asked for");
    requires
}

/// From when to when an agent is sick.
fn sick(draws: &mut Draws, length: u64) -> (u64, u64) {
    let from = draws.between(0, length / 2);
    (from, from + draws.between(length / 8, length))
}

fn agent(draws: &mut Draws, number: u32, kinds: usize) -> (AgentId, RegisterAgent) {
    let id = AgentId::new(&format!("agent-{number}")).expect("a valid id");
    let main = CAPABILITIES[number as usize % kinds];
    let also = draws.chance(400).then(|| (capability(draws.pick::<&str>(&CAPABILITIES)), BTreeMap::new()));
    let mut capabilities: BTreeMap<_, _> = also.into_iter().collect();
    if !draws.chance(100) {
        capabilities.insert(capability(main), metadata(draws));
    }
    let registration = RegisterAgent {
        session: String::new(),
        agent_type: capability(main),
        capabilities,
        resources: cpu(4 - draws.below(4)),
        slots: 1 + draws.below(4),
        priority: 0,
        batches: draws.chance(500),
    };
    (id, registration)
}

fn definition(draws: &mut Draws, number: u32, kinds: usize) -> Definition {
    let count = 1 + draws.below(5) as usize;
    let name = |n: usize| StageName::new(&format!("s{n}")).expect("a valid name");
    let stages = (0..count).map(|n| {
        let mut depends_on = Vec::new();
        for other in (0..n).rev().take(3) {
            if draws.below(5) < 2 {
                depends_on.push(name(other));
            }
        }
        let nobody_can = draws.chance(20);
        StageDefinition {
            name: name(n),
            agent_type: if nobody_can {
                capability("z")
            } else {
                capability(draws.pick::<&str>(&CAPABILITIES[..kinds]))
            },
            requires: if draws.chance(150) { requires(draws) } else { Requirements::none() },
            depends_on,
            parallel: !draws.chance(120),
            optional: draws.chance(200),
            params: BTreeMap::new(),
            resources: if draws.chance(250) { cpu(1 + draws.below(3)) } else { Resources::new() },
            retry: RetryPolicy {
                max_attempts: 4 - draws.below(4),
                initial_ms: draws.between(0, 800),
                factor: 2.0,
                max_ms: 3000,
                jitter: 0.2,
            },
            start_timeout_ms: millis(draws, 15_000, 2_000),
            timeout_ms: millis(draws, 12_000, 1_500),
        }
    });
    let stages = stages.collect();
    Definition {
        name: WorkflowName::new(&format!("w{}", number % 2)).expect("a valid name"),
        description: None,
        metadata: BTreeMap::new(),
        timeout_ms: millis(draws, 60_000, 5_000),
        stages,
    }
}

/// The dull length of time, or a shorter one.
fn millis(draws: &mut Draws, dull: Millis, least: Millis) -> Millis {
    if draws.chance(300) { draws.between(least, dull) } else { dull }
}
