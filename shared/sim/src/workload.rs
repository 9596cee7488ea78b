//! What is to be done in a history: random workflows, agents, and clients' wishes.

use std::collections::BTreeMap;

use baton_protocol::definition::{Definition, ForEach, Join, Mapping, OnFailure, RetryPolicy, StageDefinition};
use baton_protocol::request::RegisterAgent;
use baton_protocol::{AgentId, Amount, Capability, Millis, ResourceName, Resources, StageName, WorkflowName};

use crate::check::flow::{CONDITIONS, INPUT, ITEM_INPUT, ITEMS, OUTPUT};
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
    /// To lease some task to some agent, whether that is right or not.
    Assign(u32, u32),
}

/// What is to be done in a history.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) definitions: Vec<Definition>,
    pub(crate) agents: Vec<(AgentId, RegisterAgent)>,
    /// When, in virtual microseconds, and what.
    pub(crate) wishes: Vec<(u64, Wish)>,
}

/// The code that some failures bear.
pub(crate) const FLAKY: &str = "flaky";

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
        let agents = (0..least + draws.below(3)).map(|n| agent(draws, n, kinds)).collect();
        let definitions: Vec<_> = (0..1 + draws.below(3)).map(|n| definition(draws, n, kinds)).collect();
        let mut wishes: Vec<_> = (0..definitions.len()).map(|n| (1000 * n as u64, Wish::Register(n))).collect();
        for _ in 0..1 + draws.below(4) {
            let workflow = draws.below(u32::try_from(definitions.len()).unwrap_or(1)) as usize;
            let key = draws.chance(400).then(|| draws.below(3));
            let start = Wish::Start { workflow, own_id: draws.chance(300), key };
            wishes.push((draws.between(0, length), start));
        }
        for _ in 0..draws.below(12) {
            let wish = match draws.below(12) {
                0 | 8 => Wish::Get(draws.below(4)),
                1 | 9 => Wish::List,
                10 | 11 => Wish::Assign(draws.below(64), draws.below(4)),
                2 => Wish::Cancel(draws.below(4)),
                3 => Wish::Agents,
                4 => Wish::Strategy(draws.chance(500)),
                5 => Wish::Placement,
                6 => Wish::GetNothing,
                _ => Wish::Register(draws.below(u32::try_from(definitions.len()).unwrap_or(1)) as usize),
            };
            wishes.push((draws.between(0, length), wish));
        }
        Self { definitions, agents, wishes }
    }
}

fn agent(draws: &mut Draws, number: u32, kinds: usize) -> (AgentId, RegisterAgent) {
    let id = AgentId::new(&format!("agent-{number}")).expect("a valid id");
    let main = CAPABILITIES[number as usize % kinds];
    let also = draws.chance(400).then(|| (capability(draws.pick::<&str>(&CAPABILITIES)), BTreeMap::new()));
    let registration = RegisterAgent {
        session: String::new(),
        agent_type: capability(main),
        capabilities: also.into_iter().collect(),
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
    let stages: Vec<_> = (0..count)
        .map(|n| {
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
                depends_on,
                join: Join::default(),
                when: None,
                for_each: None,
                parallel: !draws.chance(120),
                optional: draws.chance(200),
                on_failure: OnFailure::default(),
                input: None,
                output: None,
                input_schema: None,
                output_schema: None,
                params: BTreeMap::new(),
                resources: if draws.chance(250) { cpu(1 + draws.below(3)) } else { Resources::new() },
                retry: RetryPolicy {
                    max_attempts: 4 - draws.below(4),
                    initial_ms: draws.between(0, 800),
                    factor: 2.0,
                    max_ms: 3000,
                    jitter: 0.2,
                    non_retryable: Vec::new(),
                },
                start_timeout_ms: millis(draws, 15_000, 2_000),
                timeout_ms: millis(draws, 12_000, 1_500),
                total_timeout_ms: None,
            }
        })
        .collect();
    let mut definition = Definition {
        name: WorkflowName::new(&format!("w{}", number % 2)).expect("a valid name"),
        description: None,
        metadata: BTreeMap::new(),
        timeout_ms: millis(draws, 60_000, 5_000),
        input_schema: None,
        stages,
    };
    if draws.chance(500) {
        flow(draws, &mut definition);
    }
    definition
}

/// Conditions, joins, mappings, schemas, and what failures lead to.
fn flow(draws: &mut Draws, definition: &mut Definition) {
    let count = definition.stages.len();
    for n in 0..count {
        let stage = &mut definition.stages[n];
        let first = stage.depends_on.first().cloned();
        if draws.chance(350) {
            let drawn = if first.is_some() { draws.below(5) as usize } else { 0 };
            let name = first.as_ref().map_or("", |name| name.as_str());
            stage.when = Some(CONDITIONS[drawn].replace('?', name).as_str().into());
        }
        let mapping = |pairs: [(&str, &str); 2], name: &str| {
            Mapping::Each(pairs.map(|(key, value)| (key.to_owned(), value.replace('?', name).as_str().into())).into())
        };
        let name = first.as_ref().map_or("", |name| name.as_str());
        if draws.chance(250) {
            let drawn = draws.below(if first.is_some() { 3 } else { 2 }) as usize;
            stage.for_each = Some(ForEach {
                items: ITEMS[drawn].replace('?', name).as_str().into(),
                max_parallel: draws.chance(400).then(|| 1 + draws.below(2)),
                max_failures: draws.below(3),
            });
            stage.input = draws.chance(400).then(|| mapping(ITEM_INPUT, ""));
            stage.join = if first.is_some() { Join::Always } else { Join::Any };
        } else if let Some(first) = &first {
            stage.join = *draws.pick(&[Join::Any, Join::All, Join::Any, Join::Always]);
            stage.input = draws.chance(250).then(|| mapping(INPUT, first.as_str()));
        }
        stage.output = draws.chance(250).then(|| mapping(OUTPUT, ""));
        stage.output_schema = draws.chance(250).then(|| serde_json::json!({ "type": "object" }));
        if draws.chance(250) {
            stage.retry.non_retryable = vec![FLAKY.to_owned(), "lost".to_owned()];
        }
        if draws.chance(250) {
            stage.total_timeout_ms = Some(draws.between(800, 9_000));
        }
        let before = definition.clone();
        let fallback = n + 1 + draws.below(2) as usize;
        let stage = &mut definition.stages[n];
        match draws.below(4) {
            1 if !stage.optional => stage.on_failure = OnFailure::Continue,
            2 if !stage.optional && fallback < count => {
                stage.on_failure = OnFailure::Fallback(before.stages[fallback].name.clone());
            }
            _ => {}
        }
        // Two of one fallback, or a circle.
        if definition.check().is_err() {
            *definition = before;
        }
    }
    for n in 0..count {
        let OnFailure::Fallback(name) = definition.stages[n].on_failure.clone() else { continue };
        if let Some(fallback) = definition.stages.iter_mut().find(|stage| stage.name == name) {
            (fallback.when, fallback.join) = (None, Join::Any);
        }
    }
}

/// The dull length of time, or a shorter one.
fn millis(draws: &mut Draws, dull: Millis, least: Millis) -> Millis {
    if draws.chance(300) { draws.between(least, dull) } else { dull }
}
