//! Handoffs of tasks.

use super::*;

impl World {
    /// Ann and bob are there, and ann holds a task. Gives the lease.
    fn ann_at_work() -> (Self, u64) {
        let mut world = Self::new();
        world.register("ann", "s1", 1);
        world.register("bob", "s2", 1);
        world.workflow(vec![started(1), ready(task(1, "research", 1), r#"{"cpu":2}"#)]);
        world.assign(&[(task(1, "research", 1), "ann")]);
        let lease = world.lease_of("ann").unwrap();
        world.transcript.clear();
        (world, lease)
    }

    fn lease_of(&self, id: &str) -> Option<u64> {
        self.machine.machine().leases.of(&agent(id)).next().map(|(lease, _)| lease.0)
    }

    /// The last that an agent is offered.
    fn offered_to(&self, id: &str) -> Option<u64> {
        self.machine.machine().handoffs.to(&agent(id)).last().map(|(handoff, _)| *handoff)
    }

    fn offer(&mut self, lease: u64, body: &serde_json::Value) -> u64 {
        let mut request = json!({
            "lease": lease, "to": "bob", "state": { "phase": 2 }, "results": { "records": 1000 },
            "reason": "load_balancing", "priority": 5, "timeout_ms": 5000,
        });
        for (key, value) in body.as_object().unwrap() {
            request[key] = value.clone();
        }
        self.agent("ann", "handoff", &request);
        let (_, rest) = self.transcript.rsplit_once("\"handoff\":").unwrap_or(("", "0,"));
        rest.split([',', '}']).next().unwrap().parse().unwrap_or(0)
    }

    fn acknowledge(&mut self, agent: &str, handoff: u64, accepted: bool, reason: &str) {
        let response = if accepted { json!({ "estimated_completion": 120 }) } else { json!(null) };
        let body = json!({ "handoff": handoff, "accepted": accepted, "reason": reason, "response": response });
        self.agent(agent, "acknowledge", &body);
    }
}

#[test]
fn r14_a_task_goes_to_another_agent_with_its_state_in_one_record() {
    let (mut world, lease) = World::ann_at_work();
    world.wait(1_000);
    let handoff = world.offer(lease, &json!({}));
    world.wait(1_000);
    world.acknowledge("bob", handoff, true, "");
    world.check(&expect![[r#"
        7.0 +1000 {"handoff_offered":{"lease":3,"task":"RUN1/research/1","from":"ann","to":"bob","resources":{"cpu":2},"state":{"phase":2},"results":{"records":1000},"reason":"load_balancing","priority":5,"until":1006000}} (request agent.handoff)
        publish baton.to.bob.handoff {"handoff":4,"from":"ann","task":"RUN1/research/1","run":"RUN1","stage":"research","workflow":"article","agent_type":"research","state":{"phase":2},"results":{"records":1000},"resources":{"cpu":2},"reason":"load_balancing","priority":5,"timeout_ms":5000} [handoff_initiate traced]
        answer 4 {"handoff":4,"timeout_ms":5000}
        8.0 +2000 {"handed_over":{"handoff":4,"lease":3,"task":"RUN1/research/1","from":"ann","to":"bob","resources":{"cpu":2}}} (request agent.acknowledge)
        publish baton.to.ann.handed {"handoff":4,"lease":3,"task":"RUN1/research/1","to":"bob","accepted":true,"reason":"","response":{"estimated_completion":120}} [handoff_acknowledge traced]
        answer 5 {"assignment":{"lease":5,"task":"RUN1/research/1","run":"RUN1","stage":"research","attempt":1,"workflow":"article","agent_type":"research","input":{"topic":1},"results":{},"params":{"depth":3},"metadata":{"requires_citations":true},"resources":{"cpu":2},"ready_at":1000000,"timeout_ms":58000,"trace":"00-0000000f4240780d9ef3164331c12185-1db186e7b11955cd-01","handover":{"handoff":4,"from":"ann","state":{"phase":2},"results":{"records":1000},"reason":"load_balancing","priority":5}}}
    "#]]);
    assert_eq!((world.lease_of("ann"), world.lease_of("bob").is_some()), (None, true));
    // The answer may have got lost: it is the same again, and the heartbeats of both say the same.
    world.acknowledge("bob", handoff, true, "");
    world.heartbeat("ann", "s1", &[lease]);
    world.wait(1_000);
    world.heartbeat("bob", "s2", &[]);
    world.check(&expect![[r#"
        answer 6 {"assignment":{"lease":5,"task":"RUN1/research/1","run":"RUN1","stage":"research","attempt":1,"workflow":"article","agent_type":"research","input":{"topic":1},"results":{},"params":{"depth":3},"metadata":{"requires_citations":true},"resources":{"cpu":2},"ready_at":1000000,"timeout_ms":58000,"trace":"00-0000000f4240780d9ef3164331c12185-1db186e7b11955cd-01","handover":{"handoff":4,"from":"ann","state":{"phase":2},"results":{"records":1000},"reason":"load_balancing","priority":5}}}
        answer 7 {"start":[],"drop":[3],"heartbeat_ms":2000,"lease_ms":10000}
        answer 8 {"start":[{"lease":5,"task":"RUN1/research/1","run":"RUN1","stage":"research","attempt":1,"workflow":"article","agent_type":"research","input":{"topic":1},"results":{},"params":{"depth":3},"metadata":{"requires_citations":true},"resources":{"cpu":2},"ready_at":1000000,"timeout_ms":57000,"trace":"00-0000000f4240780d9ef3164331c12185-1db186e7b11955cd-01","handover":{"handoff":4,"from":"ann","state":{"phase":2},"results":{"records":1000},"reason":"load_balancing","priority":5}}],"drop":[],"heartbeat_ms":2000,"lease_ms":10000}
    "#]]);
    // Whoever gave it away has nothing to report, and a new leader knows that too.
    world.lead();
    world.agent("ann", "decline", &json!({ "lease": lease, "reason": "busy" }));
    assert!(world.transcript.contains("(stale_lease)"), "{}", world.transcript);
    let taken = world.lease_of("bob").unwrap();
    world.workflow(vec![ended(task(1, "research", 1), Some((taken, "bob")), Outcome::Succeeded)]);
    assert_eq!(world.lease_of("bob"), None);
}

#[test]
fn r14_an_offer_that_is_rejected_or_not_answered_leaves_the_giver_in_charge() {
    let (mut world, lease) = World::ann_at_work();
    let handoff = world.offer(lease, &json!({}));
    world.acknowledge("bob", handoff, false, "too busy");
    world.check(&expect![[r#"
        7.0 +0 {"handoff_offered":{"lease":3,"task":"RUN1/research/1","from":"ann","to":"bob","resources":{"cpu":2},"state":{"phase":2},"results":{"records":1000},"reason":"load_balancing","priority":5,"until":1005000}} (request agent.handoff)
        publish baton.to.bob.handoff {"handoff":4,"from":"ann","task":"RUN1/research/1","run":"RUN1","stage":"research","workflow":"article","agent_type":"research","state":{"phase":2},"results":{"records":1000},"resources":{"cpu":2},"reason":"load_balancing","priority":5,"timeout_ms":5000} [handoff_initiate traced]
        answer 4 {"handoff":4,"timeout_ms":5000}
        8.0 +0 {"handoff_ended":{"handoff":4,"lease":3,"task":"RUN1/research/1","from":"ann","to":"bob","rejected":true,"reason":"too busy"}} (request agent.acknowledge)
        publish baton.to.ann.handed {"handoff":4,"lease":3,"task":"RUN1/research/1","to":"bob","accepted":false,"reason":"too busy"} [handoff_acknowledge traced]
        answer 5 {}
    "#]]);
    world.acknowledge("bob", handoff, true, "");
    assert!(world.transcript.contains("(unknown_handoff)"), "{}", world.transcript);
    world.transcript.clear();
    let handoff = world.offer(lease, &json!({ "timeout_ms": 3000, "reason": "" }));
    world.transcript.clear();
    world.wait(2_999);
    world.check(&expect![[""]]);
    world.wait(1);
    world.check(&expect![[r#"
        10.0 +3000 {"handoff_ended":{"handoff":6,"lease":3,"task":"RUN1/research/1","from":"ann","to":"bob","rejected":false,"reason":"agent bob has not answered within 3000 ms"}} (timer)
        publish baton.to.ann.handed {"handoff":6,"lease":3,"task":"RUN1/research/1","to":"bob","accepted":false,"reason":"agent bob has not answered within 3000 ms"} [handoff_acknowledge traced]
    "#]]);
    world.acknowledge("bob", handoff, true, "");
    assert!(world.transcript.contains("(unknown_handoff)"), "{}", world.transcript);
    assert_eq!((world.lease_of("ann"), world.lease_of("bob")), (Some(lease), None));
    // It may be offered again, and is under way under the same lease all the time.
    let handoff = world.offer(lease, &json!({}));
    world.acknowledge("bob", handoff, true, "");
    assert!(world.lease_of("bob").is_some());
}

#[test]
fn r14_an_offer_ends_with_the_lease_that_it_is_of() {
    let (mut world, lease) = World::ann_at_work();
    let handoff = world.offer(lease, &json!({}));
    world.workflow(vec![ended(task(1, "research", 1), Some((lease, "ann")), Outcome::Succeeded)]);
    world.acknowledge("bob", handoff, true, "");
    assert!(world.transcript.contains("(unknown_handoff)"), "{}", world.transcript);
    world.transcript.clear();
    world.wait(6_000);
    assert!(!world.transcript.contains("handoff"), "{}", world.transcript);

    let (mut world, lease) = World::ann_at_work();
    let handoff = world.offer(lease, &json!({}));
    world.agent("ann", "leave", &json!({ "session": "s1" }));
    world.acknowledge("bob", handoff, true, "");
    assert!(world.transcript.contains("(unknown_handoff)"), "{}", world.transcript);
    assert_eq!(world.lease_of("bob"), None);
}

#[test]
fn r14_an_offer_is_told_with_each_heartbeat_until_it_is_answered() {
    let (mut world, lease) = World::ann_at_work();
    world.offer(lease, &json!({}));
    for _ in 0..2 {
        world.transcript.clear();
        world.wait(1_000);
        world.heartbeat("bob", "s2", &[]);
        assert!(world.transcript.contains(r#""offers":[{"handoff":"#), "{}", world.transcript);
    }
    // A new process of it may take it as well.
    world.register("bob", "s3", 1);
    world.transcript.clear();
    world.heartbeat("bob", "s3", &[]);
    assert!(world.transcript.contains(r#""state":{"phase":2}"#), "{}", world.transcript);
    // Offering it again is asking what became of it.
    world.transcript.clear();
    world.offer(lease, &json!({}));
    assert!(!world.transcript.contains("handoff_offered"), "{}", world.transcript);
    world.offer(lease, &json!({ "to": "eve" }));
    assert!(world.transcript.contains("(not_ready)"), "{}", world.transcript);
}

#[test]
fn r14_what_can_not_be_handed_over_is_refused() {
    let (mut world, lease) = World::ann_at_work();
    let register = json!({ "session": "s", "agent_type": "writing" });
    world.agent("eve", "register", &register);
    let long = "x".repeat(300_000);
    for (body, says) in [
        (json!({ "to": "ann" }), "can not hand it to itself"),
        (json!({ "to": "nobody" }), "(unknown_agent)"),
        (json!({ "to": "eve" }), "can not do research"),
        (json!({ "resources": { "cpu": 3 } }), "there is not more to give"),
        (json!({ "resources": { "gpu": 1 } }), "there is not more to give"),
        (json!({ "state": long }), "(too_large)"),
        (json!({ "timeout_ms": 0 }), "timeout_ms is 0"),
        (json!({ "lease": 1 }), "(stale_lease)"),
    ] {
        world.transcript.clear();
        world.offer(lease, &body);
        assert!(world.transcript.contains(says), "{says}: {}", world.transcript);
        assert!(!world.transcript.contains("handoff_offered"), "{}", world.transcript);
    }
    // Bob is at work himself: he has no room, the offer stands, and nobody else can take it.
    world.workflow(vec![started(2), ready(task(2, "research", 1), r#"{"cpu":1}"#)]);
    world.assign(&[(task(2, "research", 1), "bob")]);
    let of_bob = world.lease_of("bob").unwrap();
    let handoff = world.offer(lease, &json!({ "resources": { "cpu": 1 } }));
    world.transcript.clear();
    world.acknowledge("bob", handoff, true, "");
    assert!(world.transcript.contains("has no free slot"), "{}", world.transcript);
    world.acknowledge("eve", handoff, true, "");
    assert!(world.transcript.contains("(unknown_handoff)"), "{}", world.transcript);
    world.workflow(vec![ended(task(2, "research", 1), Some((of_bob, "bob")), Outcome::Succeeded)]);
    world.acknowledge("bob", handoff, true, "");
    // Of the resources so much goes with it as was said.
    let in_use = world.machine.machine().leases.in_use(&agent("bob"));
    assert_eq!(serde_json::to_value(in_use).unwrap(), json!({ "cpu": 1 }));
}

#[test]
fn r14_a_report_that_counts_before_the_handoff_is_read_calls_the_taker_back() {
    let (mut world, lease) = World::ann_at_work();
    let handoff = world.offer(lease, &json!({}));
    world.acknowledge("bob", handoff, true, "");
    let taken = world.lease_of("bob").unwrap();
    world.transcript.clear();
    // The workflow-manager had not read of bob.
    world.workflow(vec![ended(task(1, "research", 1), Some((lease, "ann")), Outcome::Succeeded)]);
    let told = format!("publish baton.to.bob.cancel {{\"lease\":{taken},");
    assert!(world.transcript.contains(&told), "{}", world.transcript);
    assert_eq!((world.lease_of("ann"), world.lease_of("bob")), (None, None));
}

#[test]
fn r14_an_operator_has_a_task_handed_over() {
    let (mut world, lease) = World::ann_at_work();
    world.agent("eve", "register", &json!({ "session": "s", "agent_type": "writing" }));
    let ask = |world: &mut World, more: serde_json::Value| {
        let mut request = json!({ "run": run(1), "stage": "research" });
        for (key, value) in more.as_object().unwrap() {
            request[key] = value.clone();
        }
        world.transcript.clear();
        world.ask("handoff.ask", "", &request);
        world.transcript.clone()
    };
    for (more, says) in [
        (json!({ "run": run(9) }), "(unknown_run)"),
        (json!({ "stage": "writing" }), "has no task under way"),
        (json!({ "to": "ann" }), "can not hand it to itself"),
        (json!({ "to": "nobody" }), "(unknown_agent)"),
        (json!({ "to": "eve" }), "can not do research"),
        (json!({ "from": "bob" }), "is held by ann, and not by bob (stale_lease)"),
        (json!({ "timeout_ms": 0 }), "timeout_ms is 0"),
    ] {
        let said = ask(&mut world, more);
        assert!(said.contains(says) && !said.contains("handoff_offered"), "{says}: {said}");
    }
    // Whoever has room for it, and no state: only ann could say how far it is.
    ask(&mut world, json!({ "from": "ann", "timeout_ms": 5000 }));
    world.check(&expect![[r#"
        8.0 +0 {"handoff_offered":{"lease":3,"task":"RUN1/research/1","from":"ann","to":"bob","resources":{"cpu":2},"reason":"somebody asked for it","until":1005000}} (request handoff.ask)
        publish baton.to.bob.handoff {"handoff":5,"from":"ann","task":"RUN1/research/1","run":"RUN1","stage":"research","workflow":"article","agent_type":"research","resources":{"cpu":2},"reason":"somebody asked for it","priority":0,"timeout_ms":5000} [handoff_initiate traced]
        answer 12 {"handoff":5,"task":"RUN1/research/1","from":"ann","to":"bob","timeout_ms":5000}
    "#]]);
    let handoff = world.offered_to("bob").unwrap();
    // Asked again it is the same, also by somebody who does not say to whom; another one is refused.
    for more in [json!({}), json!({ "to": "bob" })] {
        let said = ask(&mut world, more);
        assert!(said.contains(&format!("\"handoff\":{handoff},")) && !said.contains("offered\""), "{said}");
    }
    world.acknowledge("bob", handoff, true, "");
    let taken = world.lease_of("bob").unwrap();
    assert!(taken > lease && world.lease_of("ann").is_none());
    // The answer got lost, and by now it was taken: it is not handed on once more.
    let said = ask(&mut world, json!({ "from": "ann" }));
    let same = format!("\"handoff\":{handoff},\"task\":\"RUN1/research/1\",\"from\":\"ann\",\"to\":\"bob\"");
    assert!(said.contains(&same) && !said.contains("handoff_offered"), "{said}");
    // Ann is offered it back, and is too busy.
    let said = ask(&mut world, json!({ "from": "bob", "to": "ann", "reason": "maintenance of bob" }));
    assert!(said.contains("\"reason\":\"maintenance of bob\""), "{said}");
    let back = world.offered_to("ann").unwrap();
    world.acknowledge("ann", back, false, "too busy");
    assert_eq!(world.lease_of("bob"), Some(taken));
    // Nobody else can do it, or it waits for an agent.
    world.agent("ann", "leave", &json!({ "session": "s1" }));
    let said = ask(&mut world, json!({}));
    assert!(said.contains("no agent but bob can do") && said.contains("(no_capacity)"), "{said}");
    world.workflow(vec![started(2), ready(task(2, "research", 1), "{}")]);
    let said = ask(&mut world, json!({ "run": run(2) }));
    assert!(said.contains("is held by no agent now"), "{said}");
}

#[test]
fn r14_an_operator_s_handoff_goes_to_whom_has_the_most_room() {
    let mut world = World::new();
    for (id, slots, priority) in [("ann", 4, 0), ("bob", 2, 0), ("cat", 4, 0), ("dan", 4, 5)] {
        let body = json!({ "session": "s", "agent_type": "research", "slots": slots, "priority": priority });
        world.agent(id, "register", &body);
    }
    for (n, who) in [(1, "ann"), (2, "bob"), (3, "cat"), (4, "dan")] {
        world.workflow(vec![started(n), ready(task(n, "research", 1), "{}")]);
        world.assign(&[(task(n, "research", 1), who)]);
    }
    // A half of bob's slots are in use, a quarter of the others'; dan is of higher priority.
    let ask = |world: &mut World| world.ask("handoff.ask", "", &json!({ "run": run(1), "stage": "research" }));
    ask(&mut world);
    let handoff = world.offered_to("dan").unwrap();
    world.acknowledge("dan", handoff, true, "");
    // Then ann's are free, and cat's are less in use than bob's.
    world.agent("ann", "leave", &json!({ "session": "s" }));
    ask(&mut world);
    assert!(world.offered_to("cat").is_some());
}
