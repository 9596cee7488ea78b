//! Circuit breakers, and what a stage requires of an agent.

use super::*;

impl World {
    /// A task of another run, leased to ann if that is granted. Gives the lease.
    fn give(&mut self, n: u64) -> Option<u64> {
        self.workflow(vec![started(n), ready(task(n, "research", 1), "{}")]);
        self.give_again(n)
    }

    fn give_again(&mut self, n: u64) -> Option<u64> {
        self.transcript.clear();
        self.assign(&[(task(n, "research", 1), "ann")]);
        let (_, rest) = self.transcript.split_once("publish baton.to.ann.assign {\"lease\":")?;
        rest.split_once(',')?.0.parse().ok()
    }

    fn end(&mut self, n: u64, lease: u64, outcome: Outcome) {
        self.transcript.clear();
        self.workflow(vec![ended(task(n, "research", 1), Some((lease, "ann")), outcome)]);
    }

    /// The next task is given and ends so.
    fn next(&mut self, n: &mut u64, outcome: Outcome) {
        *n += 1;
        let lease = self.give(*n).unwrap_or_else(|| panic!("{}", self.transcript));
        self.end(*n, lease, outcome);
    }

    fn breaker(&mut self) -> serde_json::Value {
        self.transcript.clear();
        self.ask("agent.list", "", &json!({}));
        let (_, answer) = self.transcript.trim().split_once(' ').unwrap().1.split_once(' ').unwrap();
        let list: serde_json::Value = serde_json::from_str(answer).unwrap();
        list["agents"][0]["breakers"].clone()
    }
}

#[test]
fn r12_an_agent_that_fails_is_given_no_more_until_a_probe_succeeds() {
    let mut world = World::new();
    world.register("ann", "s1", 4);
    let mut n = 0;
    for outcome in [Outcome::Succeeded, Outcome::Succeeded, Outcome::Failed, Outcome::TimedOut] {
        world.next(&mut n, outcome);
        assert!(!world.transcript.contains("breaker"), "{}", world.transcript);
    }
    assert_eq!(world.breaker(), json!([{ "capability": "research", "state": "closed", "failed": 2, "of": 4 }]));
    // Two more are under way as it opens.
    let (before, other) = (world.give(91).unwrap(), world.give(92).unwrap());
    world.next(&mut n, Outcome::Failed);
    world.check(&expect![[r#"
        23.0 +0 {"alert_raised":{"severity":"warning","kind":"breaker_opened","about":"ann/research","message":"3 of the last 5 tasks of ann for research failed: it is given no more of them for 30 s"}} (log 22)
        23.1 +0 {"breaker_opened":{"agent":"ann","capability":"research","failed":3,"of":5,"times":1,"until":1030000}} (log 22)
    "#]]);
    assert_eq!(world.give(6), None);
    assert!(world.transcript.contains("its circuit breaker is open"), "{}", world.transcript);
    // What had begun before says nothing new.
    world.end(91, before, Outcome::Failed);
    for _ in 0..5 {
        world.wait(5_800);
        world.heartbeat("ann", "s1", &[]);
    }
    assert_eq!(world.breaker()[0]["state"], "open");
    world.transcript.clear();
    world.wait(1_000);
    assert!(world.transcript.contains(r#"{"breaker_half_opened":{"agent":"ann","capability":"research","probes":2}}"#));
    // Two probes and no more; one fails.
    let probe = world.give_again(6).unwrap();
    world.end(92, other, Outcome::Succeeded);
    let second = world.give(7).unwrap();
    assert_eq!(world.give(8), None);
    assert!(world.transcript.contains("2 of 2 probes"), "{}", world.transcript);
    world.end(6, probe, Outcome::Succeeded);
    assert_eq!(world.give_again(8), None);
    world.end(7, second, Outcome::Failed);
    assert!(world.transcript.contains(r#""failed":1,"of":2,"times":2,"until":1090000"#), "{}", world.transcript);
    assert_eq!(world.give_again(8), None);
    // A new leader knows it, and when its time has come.
    world.last_snapshot = None;
    world.lead();
    for _ in 0..10 {
        world.wait(6_000);
        world.heartbeat("ann", "s1", &[]);
    }
    // A probe that is given back, or cancelled, makes room for another one.
    let probe = world.give_again(8).unwrap();
    world.agent("ann", "decline", &json!({ "lease": probe, "reason": "busy" }));
    world.end(8, probe, Outcome::Lost);
    for n in 9..11 {
        let probe = world.give(n).unwrap();
        world.end(n, probe, Outcome::Cancelled);
    }
    for n in 11..13 {
        let probe = world.give(n).unwrap();
        world.end(n, probe, Outcome::Succeeded);
    }
    assert!(world.transcript.contains(r#"{"breaker_closed":{"agent":"ann","capability":"research"}}"#));
    assert_eq!(world.breaker(), json!(null));
    assert!(world.give(14).is_some() && world.give(15).is_some() && world.give(16).is_some());
}

#[test]
fn r12_a_breaker_belongs_to_a_session_and_what_is_hopeless_does_not_count() {
    let mut world = World::new();
    world.register("ann", "s1", 4);
    let mut n = 0;
    for _ in 0..6 {
        n += 1;
        let lease = world.give(n).unwrap();
        let WorkflowRecord::StageEnded(mut record) =
            ended(task(n, "research", 1), Some((lease, "ann")), Outcome::Failed)
        else {
            unreachable!("it is one")
        };
        record.hopeless = true;
        world.workflow(vec![WorkflowRecord::StageEnded(record)]);
    }
    assert_eq!(world.breaker(), json!(null));
    for _ in 0..5 {
        world.next(&mut n, Outcome::Failed);
    }
    assert_eq!(world.breaker()[0]["state"], "open");
    world.register("ann", "s2", 4);
    assert_eq!(world.breaker(), json!(null));
    world.next(&mut n, Outcome::Failed);
    assert_eq!(world.breaker()[0]["failed"], 1);
}

#[test]
fn r12_breakers_are_shown() {
    let mut world = World::new();
    world.register("ann", "s1", 4);
    let mut n = 0;
    for _ in 0..4 {
        world.next(&mut n, Outcome::Failed);
    }
    world.telemetry = true;
    let shown = |world: &World| {
        let breakers = world.transcript.lines().filter(|line| line.contains("agent_breaker_"));
        breakers.filter(|line| line.starts_with("measure")).map(str::to_owned).collect::<Vec<_>>()
    };
    world.next(&mut n, Outcome::Failed);
    let open = r#"measure agent_breaker_state["ann", "research"] = 2"#;
    assert_eq!(shown(&world), [r#"measure agent_breaker_transitions_total["research", "open"] +1"#, open]);
    world.transcript.clear();
    world.last_snapshot = None;
    world.lead();
    for effect in world.machine.immediate() {
        world.note_effect(effect);
    }
    assert_eq!(shown(&world), [open], "{}", world.transcript);
    world.transcript.clear();
    world.agent("ann", "leave", &json!({ "session": "s1" }));
    assert_eq!(shown(&world), [r#"measure agent_breaker_state["ann", "research"] = 0"#]);
}

#[test]
fn r2_a_task_is_leased_to_an_agent_that_is_what_its_stage_requires() {
    let mut world = World::new();
    let register = |tokens: u64| {
        json!({
            "session": "s", "agent_type": "research", "slots": 3,
            "capabilities": { "research": { "algorithms": ["regression", "pca"], "context_tokens": tokens, "version": "1.4" } },
        })
    };
    world.agent("ann", "register", &register(16_000));
    world.agent("bob", "register", &register(64_000));
    world.register("cid", "s", 1);
    let WorkflowRecord::StageReady(mut record) = ready(task(1, "research", 1), "{}") else { unreachable!("it is one") };
    let wanted = json!({ "algorithms": ["pca"], "context_tokens": ">= 32000", "version": "^1.2" });
    record.requires = serde_json::from_value(wanted.clone()).unwrap();
    world.workflow(vec![started(1), WorkflowRecord::StageReady(record)]);
    world.transcript.clear();
    world.assign(&[(task(1, "research", 1), "ann")]);
    world.assign(&[(task(1, "research", 1), "cid")]);
    let why = "is not what the task asks for: research requires algorithms: [\\\"pca\\\"], context_tokens: >= 32000, \
               version: ^1.2 of it, and its ";
    assert!(world.transcript.contains(&format!("agent ann {why}context_tokens is not so")), "{}", world.transcript);
    assert!(world.transcript.contains(&format!("agent cid {why}algorithms is not so")), "{}", world.transcript);
    world.assign(&[(task(1, "research", 1), "bob")]);
    assert!(world.transcript.contains("\"assigned\""), "{}", world.transcript);
    // The same, asked for.
    world.transcript.clear();
    world.ask("agent.list", "", &json!({ "capability": "research", "requires": wanted }));
    world.ask("agent.list", "", &json!({ "capability": "research", "metadata": { "algorithms": ["pca"] } }));
    let found: Vec<_> = world.transcript.lines().map(|line| line.matches("\"agent\":").count()).collect();
    assert_eq!(found, [1, 2], "{}", world.transcript);
}

#[test]
fn w8_an_agent_whose_breaker_opens_again_is_asked_to_begin_anew() {
    let mut world = World::new();
    world.register("ann", "s1", 4);
    let mut n = 0;
    let fail_again = |world: &mut World, n: &mut u64, ms: Millis| {
        for _ in 0..ms / 6_000 {
            world.wait(6_000);
            world.heartbeat("ann", "s1", &[]);
        }
        world.next(n, Outcome::Failed);
    };
    for _ in 0..5 {
        world.next(&mut n, Outcome::Failed);
    }
    assert!(world.transcript.contains("breaker_opened") && !world.transcript.contains("restart"));
    fail_again(&mut world, &mut n, 30_000);
    assert!(world.transcript.contains(r#""times":2"#) && !world.transcript.contains("restart"), "{}", world.transcript);
    fail_again(&mut world, &mut n, 60_000);
    world.check(&expect![[r#"
        29.0 +90000 {"alert_raised":{"severity":"warning","kind":"agent_restart","about":"ann","message":"agent ann is asked to begin anew: its breaker for research was opened 3 times"}} (log 28)
        29.1 +90000 {"breaker_opened":{"agent":"ann","capability":"research","failed":1,"of":1,"times":3,"until":1210000,"restart":true}} (log 28)
        publish baton.to.ann.restart {"session":"s1","reason":"its circuit breaker for research was opened 3 times without closing in between"} [status_update]
    "#]]);
    // A new leader knows it. Should that message be lost, every heartbeat is answered with it.
    world.lead();
    world.transcript.clear();
    world.heartbeat("ann", "s1", &[]);
    assert!(world.transcript.contains(r#""restart":{"session":"s1","reason":"its circuit breaker for research"#));
    // It goes on as it is: it is asked once.
    fail_again(&mut world, &mut n, 120_000);
    let said = &world.transcript;
    assert!(said.contains(r#""times":4"#) && !said.contains("restart"), "{said}");
    world.transcript.clear();
    world.ask("agent.list", "", &json!({}));
    assert!(world.transcript.contains(r#""restart_asked":1090000"#), "{}", world.transcript);
    world.transcript.clear();
    world.register("ann", "s2", 4);
    assert!(world.transcript.contains(r#""kind":"agent_restart","about":"ann"}"#), "{}", world.transcript);
    world.transcript.clear();
    world.heartbeat("ann", "s2", &[]);
    assert!(!world.transcript.contains("restart"), "{}", world.transcript);
}
