//! What a stage requires of an agent, agents whose circuit breaker is not closed, and finding the best.

use baton_protocol::breaker::{BreakerClosed, BreakerHalfOpened, BreakerOpened};
use baton_protocol::request::FindAgents;
use baton_protocol::{Capability, Metadata, Requirements};
use serde_json::{Value as Any, json};

use super::*;

fn research() -> Capability {
    Capability::new("research").unwrap()
}

fn with(id: &str, slots: u32, metadata: &Any) -> ResourceRecord {
    let ResourceRecord::AgentRegistered(mut record) = registered(id, "s", "research", slots, 0, 0) else {
        unreachable!("it is one")
    };
    record.capabilities.insert(research(), serde_json::from_value::<Metadata>(metadata.clone()).unwrap());
    ResourceRecord::AgentRegistered(record)
}

fn requires(wanted: Any) -> Requirements {
    serde_json::from_value(wanted).unwrap()
}

impl World {
    fn ready_requiring(&mut self, n: u64, wanted: Any) {
        let WorkflowRecord::StageReady(mut record) = ready(task(n, 1), "research", 0, 0) else {
            unreachable!("it is one")
        };
        record.requires = requires(wanted);
        self.workflow(vec![started(n), WorkflowRecord::StageReady(record)]);
    }

    fn granted_to(&mut self) -> Vec<String> {
        self.grant().into_iter().map(|(_, agent)| agent).collect()
    }

    fn found(&self, wanted: Any) -> Vec<(String, bool)> {
        let (capability, requires, resources) = (research(), requires(wanted), Default::default());
        let request = FindAgents { capability, requires, resources, limit: None };
        let found = crate::find::agents(self.machine.machine(), &request);
        found.agents.into_iter().map(|one| (one.agent.to_string(), one.has_room)).collect()
    }
}

#[test]
fn r2_a_task_goes_to_an_agent_that_is_what_its_stage_requires() {
    let mut world = World::new();
    world.resource(vec![
        with("ann", 2, &json!({ "algorithms": ["pca"], "size": 8 })),
        with("bob", 1, &json!({ "algorithms": ["pca", "regression"], "size": 16 })),
    ]);
    world.ready_requiring(1, json!({ "algorithms": ["regression"] }));
    assert_eq!(world.granted_to(), ["bob"]);
    // Ann has room, and is not what is wanted; a task that wants nothing goes to her.
    world.ready_requiring(2, json!({ "size": "> 8" }));
    world.ready_requiring(3, json!({}));
    world.ready_requiring(4, json!({ "size": ">= 8", "algorithms": "pca" }));
    assert_eq!(world.granted_to(), ["ann", "ann"]);
    world.end(1, "bob", Outcome::Succeeded, 10);
    assert_eq!(world.granted_to(), ["bob"]);
    // She registers again, and is more than she was.
    world.ready_requiring(5, json!({ "size": 32 }));
    world.end(3, "ann", Outcome::Succeeded, 10);
    assert!(world.granted_to().is_empty());
    world.resource(vec![with("ann", 2, &json!({ "size": 32 }))]);
    assert_eq!(world.granted_to(), ["ann"]);
}

#[test]
fn r12_nobody_is_asked_whose_breaker_is_open_and_no_more_than_its_probes_while_it_is_half_open() {
    let mut world = World::new();
    let (agent, capability) = (agent("ann"), research());
    world.resource(vec![with("ann", 4, &json!({}))]);
    let opened = BreakerOpened {
        agent: agent.clone(),
        capability: capability.clone(),
        failed: 5,
        of: 9,
        times: 1,
        until: 0,
        restart: false,
    };
    world.resource(vec![ResourceRecord::BreakerOpened(opened)]);
    for n in 1..=4 {
        world.ready_requiring(n, json!({}));
    }
    assert!(world.asked.is_empty());
    assert_eq!(world.found(json!({})), [("ann".to_owned(), false)]);
    let half = BreakerHalfOpened { agent: agent.clone(), capability: capability.clone(), probes: 2 };
    world.resource(vec![ResourceRecord::BreakerHalfOpened(half)]);
    assert_eq!(world.granted_to(), ["ann", "ann"]);
    // The first ends: there is no room for a third before its breaker closes, but for another probe there may be.
    world.end(1, "ann", Outcome::Succeeded, 10);
    assert_eq!(world.asked.values().map(|request| request.placements.len()).sum::<usize>(), 1);
    world.refuse(Code::NoCapacity);
    world.resource(vec![ResourceRecord::BreakerClosed(BreakerClosed { agent, capability })]);
    world.wait(200);
    assert_eq!(world.granted_to(), ["ann", "ann"]);
    // Another capability of the same agent was never shut.
    assert_eq!(world.found(json!({})), [("ann".to_owned(), true)]);
}

#[test]
fn r2_agents_are_found_by_room_load_and_score() {
    let mut world = World::new();
    let any = json!({ "formats": ["json"] });
    let (ann, bob, cid, dan) =
        (with("ann", 2, &any), with("bob", 2, &any), with("cid", 1, &any), with("dan", 2, &json!({})));
    world.resource(vec![ann, bob, cid, dan]);
    for n in 1..=3 {
        world.ready_requiring(n, json!({ "formats": "json" }));
    }
    let granted = world.grant();
    let who = |n: u64| granted.iter().find(|(done, _)| *done == task(n, 1)).unwrap().1.clone();
    assert_eq!(world.found(json!({ "formats": "json" })).last().unwrap(), &("cid".to_owned(), false));
    // Whoever did well comes first of two that do nothing.
    world.end(2, &who(2), Outcome::Failed, 10);
    world.end(1, &who(1), Outcome::Succeeded, 10);
    let found: Vec<_> = world.found(json!({ "formats": "json" })).into_iter().map(|(agent, _)| agent).collect();
    assert_eq!(found, [who(1), who(2), who(3)]);
    assert_eq!(world.found(json!({})).len(), 4);
}
