//! Tasks that two agents are at.

use baton_protocol::record::{CopyEnded, OtherCopy};

use super::*;

impl World {
    /// Ann has a task that a second agent may be given as well, and bob and eve are there. Gives ann's lease.
    fn hedged(resources: &str) -> (Self, u64) {
        let mut world = Self::new();
        for (agent, session) in [("ann", "s1"), ("bob", "s2"), ("eve", "s3")] {
            world.register(agent, session, 1);
        }
        let WorkflowRecord::StageReady(record) = ready(task(1, "research", 1), resources) else { unreachable!() };
        let record = StageReady { hedge: true, ..record };
        world.workflow(vec![started(1), WorkflowRecord::StageReady(record)]);
        world.assign(&[(task(1, "research", 1), "ann")]);
        let lease = world.holds("ann").unwrap();
        world.transcript.clear();
        (world, lease)
    }

    fn holds(&self, id: &str) -> Option<u64> {
        self.machine.machine().leases.of(&agent(id)).next().map(|(lease, _)| lease.0)
    }

    /// A second agent is to be given the task that the first one has under this lease. What was answered.
    fn assign_beside(&mut self, id: &str, first: u64) -> String {
        let task = task(1, "research", 1);
        let placement = Placement { task, agent: agent(id), beside: Some(LeaseId(first)) };
        let request = AssignTasks { seen: self.workflow_next - 1, placements: vec![placement] };
        self.transcript.clear();
        self.ask("lease.assign", "", &serde_json::to_value(request).unwrap());
        self.transcript.clone()
    }

    fn copy_ended(&mut self, lease: u64, id: &str, outcome: Outcome) {
        self.workflow(vec![WorkflowRecord::CopyEnded(Box::new(CopyEnded {
            task: task(1, "research", 1),
            lease: LeaseId(lease),
            agent: agent(id),
            outcome,
            error: None,
            code: None,
            duration_ms: 5,
            cost: Money::ZERO,
            usage: Usage::default(),
            model: None,
        }))]);
    }

    fn ended_beside(&mut self, (lease, id): (u64, &str), (other, other_id): (u64, &str), outcome: Outcome) {
        let WorkflowRecord::StageEnded(mut record) = ended(task(1, "research", 1), Some((lease, id)), outcome) else {
            unreachable!()
        };
        record.other = Some(Box::new(OtherCopy { lease: LeaseId(other), agent: agent(other_id) }));
        self.transcript.clear();
        self.workflow(vec![WorkflowRecord::StageEnded(record)]);
    }
}

#[test]
fn o2_a_second_agent_is_given_the_same_task_and_who_is_not_first_is_called_back() {
    let (mut world, first) = World::hedged(r#"{"cpu":2}"#);
    world.wait(1_000);
    world.assign_beside("bob", first);
    world.check(&expect![[r#"
        8.0 +1000 {"assigned":{"task":"RUN1/research/1","agent":"bob","resources":{"cpu":2},"beside":4}} (request lease.assign)
        publish baton.to.bob.assign {"lease":5,"task":"RUN1/research/1","run":"RUN1","stage":"research","attempt":1,"workflow":"article","agent_type":"research","input":{"topic":1},"results":{},"params":{"depth":3},"metadata":{"requires_citations":true},"resources":{"cpu":2},"ready_at":1000000,"timeout_ms":59000,"trace":"00-0000000f4240780d9ef3164331c12185-1db186e7b11955cd-01"} [task_assignment traced]
        answer 5 {"granted":1,"refused":[]}
    "#]]);
    let second = world.holds("bob").unwrap();
    // Two are enough, and nobody has it twice.
    let refused = world.assign_beside("eve", first);
    assert!(refused.contains("has two agents already"), "{refused}");
    world.ended_beside((second, "bob"), (first, "ann"), Outcome::Succeeded);
    world.check(&expect![[r#"
        publish baton.to.ann.cancel {"lease":4,"task":"RUN1/research/1","reason":"agent bob has reported it"} [status_update traced]
    "#]]);
    assert_eq!((world.holds("ann"), world.holds("bob")), (None, None));
}

#[test]
fn o2_when_one_of_two_is_over_the_other_holds_the_task_alone() {
    let (mut world, first) = World::hedged("{}");
    world.assign_beside("bob", first);
    let second = world.holds("bob").unwrap();
    world.copy_ended(first, "ann", Outcome::Failed);
    assert_eq!((world.holds("ann"), world.holds("bob")), (None, Some(second)));
    // Beside the one that is left it may be given to a third one, and not beside the one that is not.
    assert!(world.assign_beside("eve", first).contains(&format!("is not held under lease {first}")));
    world.assign_beside("eve", second);
    let third = world.holds("eve").unwrap();
    world.lead();
    world.agent("eve", "decline", &json!({ "lease": third, "reason": "busy" }));
    world.copy_ended(third, "eve", Outcome::Lost);
    world.transcript.clear();
    world.workflow(vec![ended(task(1, "research", 1), Some((second, "bob")), Outcome::Succeeded)]);
    world.check(&expect![[""]]);
    assert_eq!(world.holds("bob"), None);
}

#[test]
fn o2_who_may_not_be_second_is_told_why() {
    let (mut world, first) = World::hedged("{}");
    assert!(world.assign_beside("ann", first).contains("is held by agent ann already"));
    assert!(world.assign_beside("bob", first + 90).contains("is not held under lease"));
    world.workflow(vec![paused(1)]);
    assert!(world.assign_beside("bob", first).contains("belongs to a run that is paused"));
    world.workflow(vec![resumed(1)]);
    // What is offered to another agent is not given to a third one, and what two are at is handed to nobody.
    world.agent("ann", "handoff", &json!({ "lease": first, "to": "bob", "timeout_ms": 1000 }));
    assert!(world.assign_beside("eve", first).contains("is about to be handed over"));
    world.wait(1_000);
    world.assign_beside("eve", first);
    assert!(world.holds("eve").is_some());
    world.transcript.clear();
    world.agent("ann", "handoff", &json!({ "lease": first, "to": "bob" }));
    assert!(world.transcript.contains("two agents are at task"), "{}", world.transcript);
    // A stage that does not say so has one agent.
    let mut world = World::new();
    world.register("ann", "s1", 1);
    world.register("bob", "s2", 1);
    world.workflow(vec![started(1), ready(task(1, "research", 1), "{}")]);
    world.assign(&[(task(1, "research", 1), "ann")]);
    let first = world.holds("ann").unwrap();
    assert!(world.assign_beside("bob", first).contains("does not say hedge: true"));
}

#[test]
fn o2_money_is_taken_once() {
    let mut world = World::new();
    world.register("ann", "s1", 1);
    world.register("bob", "s2", 1);
    world.ask("pool.set", "", &json!({ "name": "tokens", "pool": { "kind": "held", "size": 10 } }));
    let WorkflowRecord::StageReady(record) = ready(task(1, "research", 1), r#"{"tokens":2}"#) else { unreachable!() };
    let record = StageReady { hedge: true, ..record };
    world.workflow(vec![started(1), WorkflowRecord::StageReady(record)]);
    world.assign(&[(task(1, "research", 1), "ann")]);
    let first = world.holds("ann").unwrap();
    assert!(world.assign_beside("bob", first).contains("takes something of a pool"));
}
