//! The machine through the real processor, on a log in memory. A test plays the workflow-manager, the optimizer and the
//! agents; the transcript shows what the resource-manager says. After every step a replay of the log must give the live
//! state.

mod alerts;
mod breakers;
mod copies;
mod handoffs;
mod items;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use baton_machine::{Effect, Outgoing, Processor, RequestContext, Snapshot, Value};
use baton_protocol::amount::covers;
use baton_protocol::definition::Definition;
use baton_protocol::handoff::HandedOver;
use baton_protocol::record::{
    AgentRegistered, AnyCommit, Assigned, Cause, Commit, FORMAT, Outcome, ResourceRecord, RunFinished, RunPaused,
    RunResumed, RunStarted, StageEnded, StageReady, Turn as LogTurn, WorkflowRecord, WorkflowRegistered,
};
use baton_protocol::request::{AssignTasks, Placement, Requests, ResourceRequest, Usage};
use baton_protocol::run::RunStatus;
use baton_protocol::trace::TraceContext;
use baton_protocol::{
    AgentId, Capability, Json, LeaseId, Millis, Money, Resources, RunId, Service, StageName, TaskId, WorkflowName,
};
use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::json;

use crate::{Config, ResourceManager};

mod budgets;
mod pools;
mod pressure;

const START: Millis = 1_000_000;

/// The log, one resource-manager that leads, and what it said.
struct World {
    log: Vec<(Service, Vec<u8>)>,
    workflow_next: u64,
    machine: Processor<ResourceManager>,
    now: Millis,
    token: u64,
    transcript: String,
    /// Whether the transcript shows measurements and spans.
    telemetry: bool,
    last_snapshot: Option<Snapshot<ResourceManager>>,
    config: Config,
    /// How much of the memory the process takes, in per cent.
    memory: Option<u32>,
}

impl World {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let mut world = Self { config, ..Self::silent() };
        world.act_workflow(vec![WorkflowRecord::WorkflowRegistered(WorkflowRegistered {
            version: 1,
            definition: Arc::new(article()),
        })]);
        world.lead();
        world.transcript.clear();
        world
    }

    fn silent() -> Self {
        Self {
            log: Vec::new(),
            workflow_next: 1,
            machine: Processor::new(Config::default()),
            now: START,
            token: 0,
            transcript: String::new(),
            telemetry: false,
            last_snapshot: None,
            config: Config::default(),
            memory: None,
        }
    }

    /// A new leader takes over, from a snapshot if there is one.
    fn lead(&mut self) {
        self.machine = match self.last_snapshot.take() {
            Some(snapshot) => Processor::restore(snapshot, self.config.clone()),
            None => Processor::new(self.config.clone()),
        };
        self.feed();
        self.machine.takes_memory(self.memory);
        self.machine.lead("i", self.now);
        self.settle();
    }

    fn feed(&mut self) {
        feed(&self.log, &mut self.machine, self.now);
    }

    /// Commits all that is pending and notes what may leave.
    fn settle(&mut self) {
        self.feed();
        while let Some(outgoing) = self.machine.take(100_000) {
            let snapshot = self.machine.snapshot();
            let seq = match outgoing {
                Outgoing::Commit { payload, .. } => {
                    self.log.push((Service::ResourceManager, payload));
                    self.log.len() as u64
                }
                Outgoing::Prove { .. } => 0,
            };
            let released = self.machine.acknowledged(seq);
            for (_, event) in released.events {
                let line =
                    format!("{} +{} {} ({})", event.position, event.at - START, event.record.as_str(), event.cause);
                self.note(&line);
            }
            for effect in released.effects {
                self.note_effect(effect);
            }
            self.last_snapshot = snapshot.filter(|_| seq > 0).map(|s| Snapshot { own: seq, ..s });
        }
        self.feed();
        self.check_replay();
    }

    fn check_replay(&self) {
        let mut replay = Processor::new(self.config.clone());
        feed(&self.log, &mut replay, self.now);
        replay.takes_memory(self.memory);
        // Leading handles what lies beyond the cursor.
        replay.lead("replay", self.now);
        assert_eq!(replay.machine(), self.machine.machine(), "a replay differs from the live state");
        let text = serde_json::to_string(self.machine.machine()).unwrap();
        assert_eq!(&serde_json::from_str::<ResourceManager>(&text).unwrap(), replay.machine(), "a snapshot differs");
    }

    fn note_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Answer { token, reply: Ok(json) } => self.note(&format!("answer {token} {}", json.as_str())),
            Effect::Answer { token, reply: Err(rejection) } => self.note(&format!("refused {token} {rejection}")),
            Effect::Publish(p) => {
                let trace = p.trace.map_or_else(String::new, |_| " traced".to_owned());
                self.note(&format!("publish {} {} [{}{trace}]", p.subject, p.body.as_str(), p.kind));
            }
            Effect::Span(span) if self.telemetry => {
                self.note(&format!(
                    "span {:?} {} +{}..+{}",
                    span.kind,
                    span.name,
                    span.start - START,
                    span.end - START
                ));
                for (key, value) in span.attributes {
                    self.note(&format!("  {key} = {value}"));
                }
            }
            Effect::Measure(m) if self.telemetry => {
                let value = match m.value {
                    Value::Add(by) => format!("+{by}"),
                    Value::Observe(value) => format!("observed {value}"),
                    Value::Set(value) => format!("= {value}"),
                };
                self.note(&format!("measure {}{:?} {value}", m.metric, m.labels));
            }
            Effect::Span(_) | Effect::Measure(_) => {}
            Effect::AnswerDocument { .. } | Effect::Ask { .. } | Effect::Keep { .. } => panic!("{effect:?}"),
        }
    }

    fn note(&mut self, line: &str) {
        let mut line = line.to_owned();
        for n in 1..=9 {
            line = line.replace(&run(n).to_string(), &format!("RUN{n}"));
        }
        writeln!(self.transcript, "{line}").unwrap();
    }

    fn wait(&mut self, ms: Millis) {
        let until = self.now + ms;
        while let Some(deadline) = self.machine.deadline().filter(|deadline| *deadline <= until) {
            self.now = self.now.max(deadline);
            self.machine.tick(self.now);
            self.settle();
        }
        self.now = until;
    }

    fn ask(&mut self, endpoint: &'static str, subject: &str, body: &serde_json::Value) {
        let request = ResourceRequest::decode(endpoint, subject, body.to_string().as_bytes()).unwrap();
        self.token += 1;
        self.machine.request(self.token, endpoint, request, RequestContext::default(), self.now);
        self.settle();
    }

    fn agent(&mut self, agent: &str, verb: &str, body: &serde_json::Value) {
        let endpoint = ResourceRequest::ENDPOINTS.iter().find(|e| e.name == format!("agent.{verb}")).unwrap().name;
        self.ask(endpoint, &format!("baton.agent.{agent}.{verb}"), body);
    }

    fn register(&mut self, agent: &str, session: &str, slots: u32) {
        let body = json!({ "session": session, "agent_type": "research", "slots": slots, "resources": { "cpu": 4 } });
        self.agent(agent, "register", &body);
    }

    fn heartbeat(&mut self, agent: &str, session: &str, holds: &[u64]) {
        self.agent(agent, "heartbeat", &json!({ "session": session, "holds": holds }));
    }

    fn assign(&mut self, placements: &[(TaskId, &str)]) {
        let placements =
            placements.iter().map(|(t, a)| Placement { task: t.clone(), agent: agent(a), beside: None }).collect();
        let body = serde_json::to_value(AssignTasks { seen: self.workflow_next - 1, placements }).unwrap();
        self.ask("lease.assign", "", &body);
    }

    fn act_workflow(&mut self, records: Vec<WorkflowRecord>) {
        let count = records.len() as u64;
        let turns = vec![LogTurn { at: self.now, seen: 0, cause: Cause::Timer, records }];
        let commit =
            Commit { format: FORMAT, instance: "w".into(), term: 1, first: self.workflow_next, handled: 0, turns };
        self.workflow_next += count;
        self.log.push((Service::WorkflowManager, serde_json::to_vec(&commit).unwrap()));
    }

    fn workflow(&mut self, records: Vec<WorkflowRecord>) {
        self.act_workflow(records);
        self.settle();
    }

    /// How many agents are listed.
    fn listed(&mut self, gone: bool) -> usize {
        self.transcript.clear();
        self.ask("agent.list", "", &json!({ "gone": gone }));
        self.transcript.matches("\"agent\":").count()
    }

    fn check(&mut self, expected: &Expect) {
        expected.assert_eq(&std::mem::take(&mut self.transcript));
    }
}

fn feed(log: &[(Service, Vec<u8>)], machine: &mut Processor<ResourceManager>, now: Millis) {
    let from = machine.position() as usize;
    for (index, (service, payload)) in log.iter().enumerate().skip(from) {
        machine.read(index as u64 + 1, *service, payload, now).unwrap();
    }
}

fn article() -> Definition {
    Definition::builder("article")
        .set_metadata("requires_citations", true)
        .add_stage("research", "research", &[])
        .with(|stage| {
            stage.params.insert("depth".into(), json!(3));
            stage.timeout_ms = 60_000;
        })
        .add_stage("writing", "writing", &["research"])
        .build()
        .unwrap()
}

fn agent(id: &str) -> AgentId {
    AgentId::new(id).unwrap()
}

fn run(n: u64) -> RunId {
    RunId::derive(START, n.into())
}

fn task(n: u64, stage: &str, attempt: u32) -> TaskId {
    TaskId { run: run(n), stage: StageName::new(stage).unwrap(), item: None, attempt }
}

fn started(n: u64) -> WorkflowRecord {
    WorkflowRecord::RunStarted(RunStarted {
        run: run(n),
        workflow: WorkflowName::new("article").unwrap(),
        version: 1,
        input: Json::of(&json!({ "topic": n })).unwrap(),
        priority: 0,
        key: None,
        trace: None,
        strategy: None,
        due: None,
        budget: None,
        metadata: Default::default(),
        rerun: None,
        parent: None,
        no_cache: false,
    })
}

fn ready(task: TaskId, resources: &str) -> WorkflowRecord {
    let writing = task.stage.as_str() == "writing";
    WorkflowRecord::StageReady(StageReady {
        agent_type: Capability::new(task.stage.as_str()).unwrap(),
        requires: Default::default(),
        inputs: if writing { vec![StageName::new("research").unwrap()] } else { vec![] },
        input: None,
        cache: None,
        hedge: false,
        speculative: false,
        resources: serde_json::from_str::<Resources>(resources).unwrap(),
        priority: 0,
        task,
    })
}

fn ended(task: TaskId, lease: Option<(u64, &str)>, outcome: Outcome) -> WorkflowRecord {
    WorkflowRecord::StageEnded(StageEnded {
        task,
        lease: lease.map(|(lease, _)| LeaseId(lease)),
        agent: lease.map(|(_, a)| agent(a)),
        outcome,
        result: (outcome == Outcome::Succeeded).then(|| Json::of(&json!({ "notes": 1.5 })).unwrap()),
        error: (outcome == Outcome::Cancelled).then(|| "no longer wanted".to_owned()),
        hopeless: false,
        code: None,
        retry_at: None,
        duration_ms: 0,
        cost: Money::ZERO,
        usage: Usage::default(),
        model: None,
        delegated: None,
        speculative: false,
        other: None,
    })
}

fn finished(n: u64) -> WorkflowRecord {
    finished_as(n, RunStatus::Succeeded)
}

fn paused(n: u64) -> WorkflowRecord {
    WorkflowRecord::RunPaused(RunPaused { run: run(n), reason: None, with_parent: false })
}

fn resumed(n: u64) -> WorkflowRecord {
    WorkflowRecord::RunResumed(RunResumed { run: run(n) })
}

fn finished_as(n: u64, status: RunStatus) -> WorkflowRecord {
    let reason = (status != RunStatus::Succeeded).then(|| "stage research failed".to_owned());
    WorkflowRecord::RunFinished(RunFinished { run: run(n), status, reason })
}

#[test]
fn r3_what_is_leased_together_is_pushed_together_to_who_takes_it_so() {
    let mut world = World::new();
    let register = |batches: bool| json!({ "session": "s", "agent_type": "research", "slots": 3, "batches": batches });
    world.agent("ann", "register", &register(true));
    world.agent("bob", "register", &register(false));
    let ready_in = |n| [started(n), ready(task(n, "research", 1), "{}")];
    world.workflow((1..=5).flat_map(ready_in).collect());
    world.transcript.clear();
    let to = |n, agent| (task(n, "research", 1), agent);
    world.assign(&[to(1, "ann"), to(2, "bob"), to(3, "ann"), to(4, "bob")]);
    world.assign(&[to(5, "ann")]);
    let pushed = |line: &&str| line.starts_with("publish");
    let transcript = std::mem::take(&mut world.transcript);
    let pushes: Vec<_> = transcript.lines().filter(pushed).collect();
    let has = |push: usize, runs: &[&str]| {
        let in_it: Vec<_> = ["RUN1", "RUN2", "RUN3", "RUN4", "RUN5"]
            .into_iter()
            .filter(|run| pushes[push].contains(&format!("\"task\":\"{run}/")))
            .collect();
        assert_eq!(in_it, runs, "{}", pushes[push]);
    };
    // Those that go alone leave as they are decided, the others when the whole question is.
    assert_eq!(pushes.len(), 4, "{pushes:?}");
    assert!(pushes[0].starts_with("publish baton.to.bob.assign "));
    has(0, &["RUN2"]);
    has(1, &["RUN4"]);
    assert!(pushes[2].starts_with("publish baton.to.ann.assignments {\"assignments\":["));
    has(2, &["RUN1", "RUN3"]);
    assert!(pushes[3].starts_with("publish baton.to.ann.assign "), "{}", pushes[3]);
    has(3, &["RUN5"]);
}

#[test]
fn r1_an_agent_comes_works_and_is_lost() {
    let mut world = World::new();
    world.register("ann", "s1", 1);
    world.register("ann", "s1", 1);
    world.workflow(vec![started(1), ready(task(1, "research", 1), "{}")]);
    world.assign(&[(task(1, "research", 1), "ann")]);
    // The push may still be under way; later it is given again, with the time that is left.
    world.heartbeat("ann", "s1", &[]);
    world.wait(600);
    world.heartbeat("ann", "s1", &[]);
    world.wait(2000);
    world.heartbeat("ann", "s1", &[2, 7]);
    world.wait(9_999);
    world.check(&expect![[r#"
        3.0 +0 {"agent_registered":{"agent":"ann","session":"s1","agent_type":"research","resources":{"cpu":4},"slots":1}} (request agent.register)
        answer 1 {"heartbeat_ms":2000,"lease_ms":10000}
        answer 2 {"heartbeat_ms":2000,"lease_ms":10000}
        5.0 +0 {"assigned":{"task":"RUN1/research/1","agent":"ann"}} (request lease.assign)
        publish baton.to.ann.assign {"lease":2,"task":"RUN1/research/1","run":"RUN1","stage":"research","attempt":1,"workflow":"article","agent_type":"research","input":{"topic":1},"results":{},"params":{"depth":3},"metadata":{"requires_citations":true},"resources":{},"ready_at":1000000,"timeout_ms":60000,"trace":"00-0000000f4240780d9ef3164331c12185-1db186e7b11955cd-01"} [task_assignment traced]
        answer 3 {"granted":1,"refused":[]}
        answer 4 {"start":[],"drop":[],"heartbeat_ms":2000,"lease_ms":10000}
        answer 5 {"start":[{"lease":2,"task":"RUN1/research/1","run":"RUN1","stage":"research","attempt":1,"workflow":"article","agent_type":"research","input":{"topic":1},"results":{},"params":{"depth":3},"metadata":{"requires_citations":true},"resources":{},"ready_at":1000000,"timeout_ms":59400,"trace":"00-0000000f4240780d9ef3164331c12185-1db186e7b11955cd-01"}],"drop":[],"heartbeat_ms":2000,"lease_ms":10000}
        answer 6 {"start":[],"drop":[7],"heartbeat_ms":2000,"lease_ms":10000}
    "#]]);
    world.wait(1);
    world.heartbeat("ann", "s1", &[2]);
    world.workflow(vec![ended(task(1, "research", 1), Some((2, "ann")), Outcome::Lost)]);
    world.register("ann", "s1", 1);
    world.heartbeat("ann", "s1", &[2]);
    world.check(&expect![[r#"
        6.0 +12600 {"alert_raised":{"severity":"warning","kind":"agent_lost","about":"ann","message":"agent ann was not heard of for 10000 ms: what it held runs elsewhere (leases: 1)"}} (timer)
        6.1 +12600 {"agent_left":{"agent":"ann","reason":"lost"}} (timer)
        refused 7 agent ann is not registered: it should register (unknown_agent)
        8.0 +12600 {"agent_registered":{"agent":"ann","session":"s1","agent_type":"research","resources":{"cpu":4},"slots":1}} (request agent.register)
        8.1 +12600 {"alert_cleared":{"alert":3,"severity":"warning","kind":"agent_lost","about":"ann"}} (request agent.register)
        answer 8 {"heartbeat_ms":2000,"lease_ms":10000}
        answer 9 {"start":[],"drop":[2],"heartbeat_ms":2000,"lease_ms":10000}
    "#]]);
}

#[test]
fn r1_another_session_ends_what_the_old_one_held() {
    let mut world = World::new();
    world.register("ann", "s1", 2);
    world.workflow(vec![started(1), ready(task(1, "research", 1), "{}")]);
    world.assign(&[(task(1, "research", 1), "ann")]);
    world.transcript.clear();
    world.register("ann", "s2", 2);
    world.heartbeat("ann", "s1", &[2]);
    world.agent("ann", "leave", &json!({ "session": "s1" }));
    world.heartbeat("ann", "s2", &[2]);
    // The task is leased once; the next attempt is another one.
    world.assign(&[(task(1, "research", 1), "ann")]);
    world.workflow(vec![
        ended(task(1, "research", 1), Some((2, "ann")), Outcome::Lost),
        ready(task(1, "research", 2), "{}"),
    ]);
    world.assign(&[(task(1, "research", 2), "ann")]);
    world.agent("ann", "leave", &json!({ "session": "s2" }));
    world.agent("ann", "leave", &json!({ "session": "s2" }));
    world.heartbeat("ann", "s2", &[4]);
    world.check(&expect![[r#"
        6.0 +0 {"agent_registered":{"agent":"ann","session":"s2","agent_type":"research","resources":{"cpu":4},"slots":2}} (request agent.register)
        answer 3 {"heartbeat_ms":2000,"lease_ms":10000}
        refused 4 agent ann has registered again with session "s2"; session "s1" is over: this process should stop (agent_replaced)
        refused 5 agent ann has registered again with session "s2"; session "s1" is over: this process should stop (agent_replaced)
        answer 6 {"start":[],"drop":[2],"heartbeat_ms":2000,"lease_ms":10000}
        answer 7 {"granted":0,"refused":[{"task":"RUN1/research/1","agent":"ann","rejection":{"code":"not_ready","message":"task RUN1/research/1 is or was leased: lease 2; if that has ended, the next attempt is another task"}}]}
        8.0 +0 {"assigned":{"task":"RUN1/research/2","agent":"ann"}} (request lease.assign)
        publish baton.to.ann.assign {"lease":4,"task":"RUN1/research/2","run":"RUN1","stage":"research","attempt":2,"workflow":"article","agent_type":"research","input":{"topic":1},"results":{},"params":{"depth":3},"metadata":{"requires_citations":true},"resources":{},"ready_at":1000000,"timeout_ms":60000,"trace":"00-0000000f4240780d9ef3164331c12185-bb27c7f5d640e7aa-01"} [task_assignment traced]
        answer 8 {"granted":1,"refused":[]}
        9.0 +0 {"agent_left":{"agent":"ann","reason":"left"}} (request agent.leave)
        answer 9 {}
        answer 10 {}
        refused 11 agent ann is not registered: it should register (unknown_agent)
    "#]]);
}

#[test]
fn r1_a_new_leader_and_one_that_slept_give_everybody_time() {
    let mut world = World::new();
    world.register("ann", "s1", 1);
    world.wait(9000);
    world.lead();
    world.transcript.clear();
    world.ask("agent.list", "", &json!({}));
    world.wait(9_999);
    world.check(&expect![[r#"
        answer 2 {"agents":[{"agent":"ann","status":"idle","agent_type":"research","capabilities":{},"resources":{"cpu":4},"in_use":{},"slots":1,"leases":[],"priority":0,"registered_at":1000000}]}
    "#]]);
    // The leader looks an hour too late: it slept. Whoever is heard of within two heartbeats is there.
    world.register("bob", "s1", 1);
    world.now += 3_600_000;
    world.machine.tick(world.now);
    world.settle();
    world.heartbeat("bob", "s1", &[]);
    world.wait(4000);
    world.check(&expect![[r#"
        5.0 +18999 {"agent_registered":{"agent":"bob","session":"s1","agent_type":"research","resources":{"cpu":4},"slots":1}} (request agent.register)
        answer 3 {"heartbeat_ms":2000,"lease_ms":10000}
        answer 4 {"start":[],"drop":[],"heartbeat_ms":2000,"lease_ms":10000}
        6.0 +3622999 {"alert_raised":{"severity":"warning","kind":"agent_lost","about":"ann","message":"agent ann was not heard of for 10000 ms: what it held runs elsewhere (leases: 0)"}} (timer)
        6.1 +3622999 {"agent_left":{"agent":"ann","reason":"lost"}} (timer)
    "#]]);
}

#[test]
fn r1_a_clock_that_is_put_forward_makes_nobody_silent() {
    let mut world = World::new();
    world.register("ann", "s1", 1);
    world.register("bob", "s1", 1);
    world.wait(1000);
    world.heartbeat("bob", "s1", &[]);
    world.transcript.clear();
    // By less than a lease, so that what an agent has been silent for and this together are more: nobody is lost.
    world.now += 9_500;
    world.heartbeat("bob", "s1", &[]);
    world.wait(3_900);
    world.check(&expect![[r#"
        answer 4 {"start":[],"drop":[],"heartbeat_ms":2000,"lease_ms":10000}
    "#]]);
    // Ann has had her time since then.
    world.heartbeat("bob", "s1", &[]);
    world.wait(9_000);
    world.check(&expect![[r#"
        answer 5 {"start":[],"drop":[],"heartbeat_ms":2000,"lease_ms":10000}
        5.0 +19500 {"alert_raised":{"severity":"warning","kind":"agent_lost","about":"ann","message":"agent ann was not heard of for 10000 ms: what it held runs elsewhere (leases: 0)"}} (timer)
        5.1 +19500 {"agent_left":{"agent":"ann","reason":"lost"}} (timer)
    "#]]);
}

#[test]
fn r1_a_session_that_was_replaced_does_not_come_back() {
    let mut world = World::new();
    world.register("ann", "s1", 1);
    world.register("ann", "s2", 1);
    world.agent("ann", "leave", &json!({ "session": "s2" }));
    world.register("ann", "s3", 1);
    world.transcript.clear();
    // Registrations that were held up, or are sent once more by somebody. The same session again is no other one.
    for session in ["s1", "s2", "s3"] {
        world.register("ann", session, 1);
    }
    world.heartbeat("ann", "s3", &[]);
    world.check(&expect![[r#"
        refused 5 agent ann has registered again with session "s3"; session "s1" is over: this process should stop (agent_replaced)
        refused 6 agent ann has registered again with session "s3"; session "s2" is over: this process should stop (agent_replaced)
        answer 7 {"heartbeat_ms":2000,"lease_ms":10000}
        answer 8 {"start":[],"drop":[],"heartbeat_ms":2000,"lease_ms":10000}
    "#]]);
    // One that was lost may come back in its session, and so may one whose replacement is long forgotten.
    world.wait(10_001);
    world.register("ann", "s3", 1);
    for number in 4..=12 {
        world.register("ann", &format!("s{number}"), 1);
    }
    world.transcript.clear();
    world.register("ann", "s1", 1);
    world.check(&expect![[r#"
        18.0 +10001 {"agent_registered":{"agent":"ann","session":"s1","agent_type":"research","resources":{"cpu":4},"slots":1}} (request agent.register)
        answer 19 {"heartbeat_ms":2000,"lease_ms":10000}
    "#]]);
}

#[test]
fn r1_only_the_latest_that_are_gone_are_kept() {
    let mut world = World::new();
    for n in 0..1010 {
        let id = format!("a{n}");
        // Not settled one by one: the replay would take long.
        for (name, body) in [
            ("agent.register", json!({ "session": "s", "agent_type": "x" })),
            ("agent.leave", json!({ "session": "s" })),
        ] {
            let request =
                ResourceRequest::decode(name, &format!("baton.agent.{id}.x"), body.to_string().as_bytes()).unwrap();
            world.machine.request(1, "x", request, RequestContext::default(), world.now);
        }
    }
    world.settle();
    assert_eq!((world.listed(false), world.listed(true)), (0, 1000));
    assert!(!world.transcript.contains("\"a9\"") && world.transcript.contains("\"a10\""));
}

#[test]
fn r1_nonsense_is_refused() {
    let mut world = World::new();
    let long = "s".repeat(129);
    let large: BTreeMap<_, _> = (0..200).map(|n| (format!("c{n}"), json!({ "text": "x".repeat(100) }))).collect();
    for body in [
        json!({ "session": "", "agent_type": "x" }),
        json!({ "session": long, "agent_type": "x" }),
        json!({ "session": "s", "agent_type": "x", "slots": 0 }),
        json!({ "session": "s", "agent_type": "x", "slots": 1025 }),
        json!({ "session": "s", "agent_type": "x", "capabilities": large }),
        json!({ "session": "s", "agent_type": "x", "resources": (0..65).map(|n| (format!("r{n}"), json!(1))).collect::<BTreeMap<_, _>>() }),
    ] {
        world.agent("ann", "register", &body);
    }
    world.ask("agent.list", "", &json!({ "metadata": { "formats": ["json"] } }));
    world.check(&expect![[r#"
        refused 1 session has 0 bytes; it must have 1 to 128 (invalid_request)
        refused 2 session has 129 bytes; it must have 1 to 128 (invalid_request)
        refused 3 slots is 0; it must be from 1 to 1024 (invalid_request)
        refused 4 slots is 1025; it must be from 1 to 1024 (invalid_request)
        refused 5 capabilities take 23691 bytes of JSON; at most 16384 are allowed (too_large)
        refused 6 65 resources; at most 64 are allowed (too_large)
        refused 7 metadata are a capability's: name the capability that should have them (invalid_request)
    "#]]);
}

#[test]
fn r2_agents_are_found_by_capability_and_metadata() {
    let mut world = World::new();
    for (id, capabilities) in [
        ("ann", json!({ "data_analysis": { "algorithms": ["regression", "classification"], "formats": ["json"] } })),
        ("bob", json!({ "data_analysis": { "algorithms": ["clustering"], "gpu": true } })),
        ("cid", json!({ "data_retrieval": { "formats": ["json", "xml"] } })),
    ] {
        world.agent(id, "register", &json!({ "session": "s", "agent_type": "backend", "capabilities": capabilities }));
    }
    let mut found = String::new();
    for query in [
        json!({}),
        json!({ "capability": "data_analysis" }),
        json!({ "capability": "backend" }),
        json!({ "capability": "data_analysis", "metadata": { "algorithms": ["regression"] } }),
        json!({ "capability": "data_analysis", "metadata": { "algorithms": ["regression", "clustering"] } }),
        json!({ "capability": "data_analysis", "metadata": { "algorithms": [] } }),
        json!({ "capability": "data_analysis", "metadata": { "gpu": true } }),
        json!({ "capability": "data_analysis", "metadata": { "gpu": [true] } }),
        json!({ "capability": "data_analysis", "metadata": { "formats": ["json"], "algorithms": ["regression"] } }),
        json!({ "capability": "backend", "metadata": { "gpu": true } }),
    ] {
        world.transcript.clear();
        world.ask("agent.list", "", &query);
        let ids: Vec<_> = ["ann", "bob", "cid"]
            .into_iter()
            .filter(|id| world.transcript.contains(&format!("\"agent\":\"{id}\"")))
            .collect();
        writeln!(found, "{query}: {}", ids.join(" ")).unwrap();
    }
    expect![[r#"
        {}: ann bob cid
        {"capability":"data_analysis"}: ann bob
        {"capability":"backend"}: ann bob cid
        {"capability":"data_analysis","metadata":{"algorithms":["regression"]}}: ann
        {"capability":"data_analysis","metadata":{"algorithms":["regression","clustering"]}}: 
        {"capability":"data_analysis","metadata":{"algorithms":[]}}: ann bob
        {"capability":"data_analysis","metadata":{"gpu":true}}: bob
        {"capability":"data_analysis","metadata":{"gpu":[true]}}: 
        {"capability":"data_analysis","metadata":{"algorithms":["regression"],"formats":["json"]}}: ann
        {"capability":"backend","metadata":{"gpu":true}}: 
    "#]]
    .assert_eq(&found);
}

#[test]
fn r3_a_task_gets_all_that_it_needs_or_nothing() {
    let mut world = World::new();
    world.register("ann", "s1", 3);
    let body = json!({ "session": "s", "agent_type": "writing", "capabilities": { "research": {} } });
    world.agent("bob", "register", &body);
    let tasks: Vec<_> = (1..=5).map(|n| task(n, "research", 1)).collect();
    for (task, cpu) in tasks.iter().zip(["2.5", "2", "1.5", "0", "0"]) {
        let n = tasks.iter().position(|t| t == task).unwrap() as u64 + 1;
        world.act_workflow(vec![started(n), ready(task.clone(), &format!("{{\"cpu\": {cpu}}}"))]);
    }
    world.workflow(vec![ready(task(1, "writing", 1), "{}")]);
    world.transcript.clear();
    world.assign(&[
        (tasks[0].clone(), "ann"),
        (tasks[0].clone(), "bob"),
        (tasks[1].clone(), "ann"),
        (tasks[1].clone(), "bob"),
        (tasks[2].clone(), "ann"),
        (task(1, "writing", 1), "ann"),
        (tasks[3].clone(), "ann"),
        (tasks[4].clone(), "ann"),
        (tasks[4].clone(), "bob"),
        (tasks[4].clone(), "nobody"),
        (task(5, "research", 2), "bob"),
        (task(9, "research", 1), "bob"),
    ]);
    let answer = world.transcript.lines().last().unwrap().to_owned();
    let body: serde_json::Value = serde_json::from_str(answer.splitn(3, ' ').nth(2).unwrap()).unwrap();
    let mut said = format!("granted {}\n", body["granted"]);
    for refusal in body["refused"].as_array().unwrap() {
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        writeln!(said, "{}: {}", text(&refusal["rejection"]["code"]), text(&refusal["rejection"]["message"])).unwrap();
    }
    expect![[r#"
        granted 4
        not_ready: task RUN1/research/1 is or was leased: lease 3; if that has ended, the next attempt is another task
        no_capacity: agent ann has not enough cpu: the task needs 2, 2.5 of 4 are leased
        no_capacity: agent bob has not enough cpu: the task needs 2, 0 of 0 are leased
        no_capacity: agent ann can not do writing: it is of type research, and has no such capability
        no_capacity: agent ann has no free slot: all 3 are leased
        not_ready: task RUN5/research/1 is or was leased: lease 6; if that has ended, the next attempt is another task
        not_ready: task RUN5/research/2 is not waiting for an agent: it is not ready, or has ended
        not_ready: task RUN9/research/1 is not waiting for an agent: it is not ready, or has ended
    "#]]
    .assert_eq(&said);
    world.transcript.clear();
    // What is held can not be taken away by registering with less.
    world.register("ann", "s1", 2);
    world.workflow(vec![ended(tasks[0].clone(), Some((3, "ann")), Outcome::Succeeded)]);
    world.register("ann", "s1", 2);
    world.ask("agent.list", "", &json!({}));
    world.check(&expect![[r#"
        refused 4 agent ann can not shrink its slots now: its 3 leases hold more; register so when they have ended (no_capacity)
        13.0 +0 {"agent_registered":{"agent":"ann","session":"s1","agent_type":"research","resources":{"cpu":4},"slots":2}} (request agent.register)
        answer 5 {"heartbeat_ms":2000,"lease_ms":10000}
        answer 6 {"agents":[{"agent":"ann","status":"busy","agent_type":"research","capabilities":{},"resources":{"cpu":4},"in_use":{"cpu":"1.5"},"slots":2,"leases":[{"lease":4,"task":"RUN3/research/1","since":1000000},{"lease":5,"task":"RUN4/research/1","since":1000000}],"priority":0,"registered_at":1000000,"heard_at":1000000},{"agent":"bob","status":"busy","agent_type":"writing","capabilities":{"research":{}},"resources":{},"in_use":{"cpu":0},"slots":1,"leases":[{"lease":6,"task":"RUN5/research/1","since":1000000}],"priority":0,"registered_at":1000000,"heard_at":1000000}]}
    "#]]);
}

#[test]
fn w10_what_is_cancelled_or_timed_out_is_recalled() {
    let mut world = World::new();
    world.register("ann", "s1", 9);
    world.workflow((1..=4).flat_map(|n| [started(n), ready(task(n, "research", 1), "{}")]).collect());
    let tasks: Vec<_> = (1..=4).map(|n| (task(n, "research", 1), "ann")).collect();
    world.assign(&tasks);
    world.transcript.clear();
    world.workflow(vec![
        ended(task(1, "research", 1), Some((2, "ann")), Outcome::Cancelled),
        ended(task(2, "research", 1), Some((3, "ann")), Outcome::TimedOut),
        finished(1),
    ]);
    // The workflow-manager ended this one before it had read of the lease.
    world.workflow(vec![ended(task(3, "research", 1), None, Outcome::TimedOut)]);
    world.workflow(vec![ended(task(4, "research", 1), Some((5, "ann")), Outcome::Succeeded)]);
    world.heartbeat("ann", "s1", &[2, 3, 4, 5]);
    world.check(&expect![[r#"
        publish baton.to.ann.cancel {"lease":2,"task":"RUN1/research/1","reason":"no longer wanted"} [status_update traced]
        publish baton.to.ann.cancel {"lease":3,"task":"RUN2/research/1","reason":"timed_out"} [status_update traced]
        publish baton.to.ann.cancel {"lease":4,"task":"RUN3/research/1","reason":"timed_out"} [status_update traced]
        answer 3 {"start":[],"drop":[2,3,4,5],"heartbeat_ms":2000,"lease_ms":10000}
    "#]]);
    assert_eq!(world.machine.machine().leases.len(), 0);
}

#[test]
fn w19_a_task_of_a_paused_run_is_leased_when_the_run_goes_on() {
    let mut world = World::new();
    world.register("ann", "s1", 4);
    let tasks = [1, 2].map(|n| task(n, "research", 1));
    world.workflow(vec![started(1), started(2), ready(tasks[0].clone(), "{}"), ready(tasks[1].clone(), "{}")]);
    world.workflow(vec![paused(1), paused(2)]);
    // A successor knows of it from a snapshot.
    world.lead();
    world.transcript.clear();
    world.assign(&[(tasks[0].clone(), "ann")]);
    assert!(world.transcript.contains("belongs to a run that is paused"), "{}", world.transcript);
    world.workflow(vec![resumed(1), ended(tasks[1].clone(), None, Outcome::TimedOut), resumed(2)]);
    world.transcript.clear();
    world.assign(&[(tasks[0].clone(), "ann")]);
    assert!(world.transcript.contains("\"granted\":1"), "{}", world.transcript);
    assert_eq!(world.machine.machine().tasks.waiting(), 0);
}

#[test]
fn stale_records_do_nothing_and_a_run_takes_all_with_it() {
    let mut world = World::new();
    world.register("ann", "s1", 9);
    world.workflow(vec![started(1), ready(task(1, "research", 1), "{}")]);
    world.assign(&[(task(1, "research", 1), "ann")]);
    let lost = || ended(task(1, "research", 1), Some((2, "ann")), Outcome::Lost);
    world.workflow(vec![lost(), ready(task(1, "research", 2), "{}")]);
    world.assign(&[(task(1, "research", 2), "ann")]);
    let before = world.machine.machine().clone();
    world.workflow(vec![lost(), ready(task(1, "research", 2), "{}"), started(1), finished(9)]);
    world.workflow(vec![ready(task(9, "research", 1), "{}"), ended(task(9, "research", 1), None, Outcome::TimedOut)]);
    assert_eq!(world.machine.machine(), &before);
    world.transcript.clear();
    world.workflow(vec![finished(1)]);
    world.ask("agent.list", "", &json!({}));
    world.check(&expect![[r#"
        publish baton.to.ann.cancel {"lease":3,"task":"RUN1/research/2","reason":"the run is over"} [status_update traced]
        answer 4 {"agents":[{"agent":"ann","status":"idle","agent_type":"research","capabilities":{},"resources":{"cpu":4},"in_use":{},"slots":9,"leases":[],"priority":0,"registered_at":1000000,"heard_at":1000000}]}
    "#]]);
}

#[test]
fn a_task_comes_with_all_that_it_takes_to_do_it() {
    let mut world = World::new();
    let body = json!({ "session": "s1", "agent_type": "x", "capabilities": { "research": {}, "writing": {} }, "slots": 4, "resources": { "cpu": 4 } });
    world.agent("ann", "register", &body);
    let trace: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    let WorkflowRecord::RunStarted(mut start) = started(1) else { unreachable!() };
    start.trace = Some(trace);
    world.workflow(vec![WorkflowRecord::RunStarted(start), ready(task(1, "research", 1), "{}")]);
    world.assign(&[(task(1, "research", 1), "ann")]);
    world.wait(250);
    world.workflow(vec![
        ended(task(1, "research", 1), Some((2, "ann")), Outcome::Succeeded),
        ready(task(1, "writing", 1), "{\"cpu\":\"0.5\"}"),
    ]);
    world.wait(250);
    world.transcript.clear();
    world.telemetry = true;
    world.assign(&[(task(1, "writing", 1), "ann")]);
    world.check(&expect![[r#"
        7.0 +500 {"assigned":{"task":"RUN1/writing/1","agent":"ann","resources":{"cpu":"0.5"}}} (request lease.assign)
        measure agent_messages_total["task_assignment"] +1
        measure messages_sent_total[] +1
        publish baton.to.ann.assign {"lease":3,"task":"RUN1/writing/1","run":"RUN1","stage":"writing","attempt":1,"workflow":"article","agent_type":"writing","input":{"topic":1},"results":{"research":{"notes":1.5}},"params":{},"metadata":{"requires_citations":true},"resources":{"cpu":"0.5"},"ready_at":1000250,"timeout_ms":3600000,"trace":"00-4bf92f3577b34da6a3ce929d0e0e4736-56dcdf762a1e67fd-01"} [task_assignment traced]
        span Producer publish baton.to.{agent}.assign +500..+500
          messaging.system = nats
          messaging.operation.type = send
          messaging.destination.name = baton.to.ann.assign
          messaging.destination.template = baton.to.{agent}.assign
          messaging.message.conversation_id = RUN1
          baton.run.id = RUN1
          baton.stage.name = writing
          baton.agent.id = ann
        measure agent_message_latency_seconds["task_assignment"] observed 0.25
        measure agent_utilization_ratio["ann"] = 0.25
        measure resource_allocations_total["cpu", "granted"] +1
        measure resource_allocations_total["slot", "granted"] +1
        measure resource_acquisitions_total[] +1
        answer 3 {"granted":1,"refused":[]}
    "#]]);
}

#[test]
fn declining_and_progress_need_the_lease() {
    let mut world = World::new();
    world.register("ann", "s1", 1);
    world.register("bob", "s1", 1);
    world.workflow(vec![started(1), ready(task(1, "research", 1), "{}")]);
    world.assign(&[(task(1, "research", 1), "ann")]);
    world.transcript.clear();
    world.agent("ann", "progress", &json!({ "lease": 3, "fraction": 0.25, "message": "reading" }));
    world.agent("bob", "progress", &json!({ "lease": 3, "fraction": 0.25 }));
    world.agent("ann", "progress", &json!({ "lease": 3, "fraction": 1.5 }));
    world.agent("ann", "progress", &json!({ "lease": 3, "fraction": 0.5, "message": "x".repeat(501) }));
    world.agent("bob", "decline", &json!({ "lease": 3, "reason": "not mine" }));
    world.agent("ann", "decline", &json!({ "lease": 3, "reason": "no model" }));
    world.agent("ann", "decline", &json!({ "lease": 3, "reason": "no model" }));
    world.check(&expect![[r#"
        publish baton.event.run.RUN1.progress {"task":"RUN1/research/1","agent":"ann","fraction":0.25,"message":"reading","at":1000000} [status_update traced]
        answer 4 {}
        refused 5 agent bob does not hold lease 3: it has ended, or was never given (stale_lease)
        refused 6 fraction is 1.5; it must be from 0 to 1 (invalid_request)
        refused 7 message has 501 bytes; at most 500 are allowed (too_large)
        refused 8 agent bob does not hold lease 3: it has ended, or was never given (stale_lease)
        7.0 +0 {"lease_ended":{"lease":3,"task":"RUN1/research/1","agent":"ann","reason":"no model"}} (request agent.decline)
        answer 9 {}
        refused 10 agent ann does not hold lease 3: it has ended, or was never given (stale_lease)
    "#]]);
}

#[test]
fn w10_a_task_of_which_nothing_is_heard_is_taken_from_its_agent() {
    let mut world = World::new();
    let mut definition = article();
    definition.stages[0].heartbeat_timeout_ms = Some(5000);
    let definition = Arc::new(definition);
    world.workflow(vec![WorkflowRecord::WorkflowRegistered(WorkflowRegistered { version: 2, definition })]);
    let begin = |n| {
        let WorkflowRecord::RunStarted(record) = started(n) else { unreachable!() };
        WorkflowRecord::RunStarted(RunStarted { version: 2, ..record })
    };
    world.register("ann", "s1", 2);
    let tasks = [1, 2].map(|n| task(n, "research", 1));
    world.workflow(vec![begin(1), begin(2), ready(tasks[0].clone(), "{}"), ready(tasks[1].clone(), "{}")]);
    world.assign(&[(tasks[0].clone(), "ann"), (tasks[1].clone(), "ann")]);
    // Its heartbeats say that it lives, and that it holds both. Of one of them it tells something.
    for _ in 0..2 {
        world.wait(2000);
        world.heartbeat("ann", "s1", &[2, 3]);
        world.agent("ann", "progress", &json!({ "lease": 3, "fraction": 0.5 }));
    }
    world.transcript.clear();
    world.wait(2000);
    world.heartbeat("ann", "s1", &[2, 3]);
    world.check(&expect![[r#"
        7.0 +5000 {"lease_ended":{"lease":2,"task":"RUN1/research/1","agent":"ann","reason":"nothing was heard of it for 5000 ms","silent":true}} (timer)
        publish baton.to.ann.cancel {"lease":2,"task":"RUN1/research/1","reason":"nothing was heard of it for 5000 ms"} [status_update traced]
        answer 7 {"start":[],"drop":[2],"heartbeat_ms":2000,"lease_ms":10000}
    "#]]);
    // A new leader does not know what was heard, and gives the other one the whole time, and that of a lease at the least.
    world.lead();
    world.transcript.clear();
    for _ in 0..5 {
        world.heartbeat("ann", "s1", &[3]);
        world.wait(1900);
    }
    world.transcript.clear();
    world.wait(500);
    world.check(&expect![[r#"
        9.0 +16000 {"lease_ended":{"lease":3,"task":"RUN2/research/1","agent":"ann","reason":"nothing was heard of it for 5000 ms","silent":true}} (timer)
        publish baton.to.ann.cancel {"lease":3,"task":"RUN2/research/1","reason":"nothing was heard of it for 5000 ms"} [status_update traced]
    "#]]);
    // What was ended is ended once.
    world.heartbeat("ann", "s1", &[]);
    world.wait(5000);
    assert_eq!(world.machine.machine().leases.len(), 0);
}

#[test]
fn a_heartbeat_s_answer_is_not_larger_than_a_message() {
    let mut world = World::new();
    world.register("ann", "s1", 9);
    let input = "x".repeat(200_000);
    for n in 1..=5 {
        let WorkflowRecord::RunStarted(mut start) = started(n) else { unreachable!() };
        start.input = Json::of(&json!({ "text": input })).unwrap();
        world.act_workflow(vec![WorkflowRecord::RunStarted(start), ready(task(n, "research", 1), "{}")]);
    }
    world.settle();
    let tasks: Vec<_> = (1..=5).map(|n| (task(n, "research", 1), "ann")).collect();
    world.assign(&tasks);
    world.wait(1000);
    let mut given = Vec::new();
    for _ in 0..3 {
        world.transcript.clear();
        world.heartbeat("ann", "s1", &given);
        let answer: serde_json::Value = serde_json::from_str(world.transcript.splitn(3, ' ').nth(2).unwrap()).unwrap();
        let start = answer["start"].as_array().unwrap();
        assert!(start.len() <= 2);
        given.extend(start.iter().map(|assignment| assignment["lease"].as_u64().unwrap()));
    }
    assert_eq!(given, [2, 3, 4, 5, 6]);
}

/// What the protocol says of the resource-manager's records, and nothing of how it keeps to it.
#[derive(Default)]
struct Checker {
    agents: BTreeMap<AgentId, AgentRegistered>,
    open: BTreeSet<TaskId>,
    paused: BTreeSet<RunId>,
    leased: BTreeSet<TaskId>,
    leases: BTreeMap<u64, Assigned>,
}

impl Checker {
    /// Takes the log in the order of its messages.
    fn of(log: &[(Service, Vec<u8>)]) -> Self {
        let mut checker = Self::default();
        for (service, payload) in log {
            match AnyCommit::decode(*service, payload).unwrap() {
                AnyCommit::Workflow(commit) => commit.stamped().for_each(|(_, record)| checker.workflow(record)),
                AnyCommit::Resource(commit) => {
                    commit.stamped().for_each(|(stamp, record)| checker.resource(stamp.number, record, false));
                }
                AnyCommit::Optimizer(_) => {}
            }
        }
        checker
    }

    /// Takes the log in the order in which the resource-manager took it. It may know of the end of a task later than it
    /// is in the log, never sooner.
    fn in_own_order(log: &[(Service, Vec<u8>)]) -> Self {
        let mut checker = Self::default();
        let mut seen = 0;
        for (service, payload) in log {
            let AnyCommit::Resource(commit) = AnyCommit::decode(*service, payload).unwrap() else { continue };
            for (stamp, record) in commit.stamped() {
                for (service, payload) in log.iter().take(stamp.seen as usize).skip(seen) {
                    if let AnyCommit::Workflow(commit) = AnyCommit::decode(*service, payload).unwrap() {
                        commit.stamped().for_each(|(_, record)| checker.workflow(record));
                    }
                }
                seen = seen.max(stamp.seen as usize);
                checker.resource(stamp.number, record, true);
            }
        }
        checker
    }

    fn workflow(&mut self, record: &WorkflowRecord) {
        match record {
            WorkflowRecord::StageReady(record) => {
                self.open.insert(record.task.clone());
            }
            WorkflowRecord::StageEnded(record) => {
                self.open.remove(&record.task);
                self.leases.retain(|_, lease| lease.task != record.task);
            }
            WorkflowRecord::RunFinished(record) => {
                self.open.retain(|task| task.run != record.run);
                self.leases.retain(|_, lease| lease.task.run != record.run);
                self.paused.remove(&record.run);
            }
            WorkflowRecord::RunPaused(record) => {
                self.paused.insert(record.run);
            }
            WorkflowRecord::RunResumed(record) => {
                self.paused.remove(&record.run);
            }
            WorkflowRecord::WorkflowRegistered(_)
            | WorkflowRecord::RunStarted(_)
            | WorkflowRecord::StageSkipped(_)
            | WorkflowRecord::StageExpanded(_)
            | WorkflowRecord::RunsForgotten(_)
            | WorkflowRecord::StageWaits(_)
            | WorkflowRecord::StageCached(_)
            | WorkflowRecord::StageCommitted(_)
            | WorkflowRecord::CopyEnded(_)
            | WorkflowRecord::Signalled(_)
            | WorkflowRecord::ScheduleSet(_)
            | WorkflowRecord::ScheduleRemoved(_)
            | WorkflowRecord::ScheduleFired(_)
            | WorkflowRecord::TriggerSet(_)
            | WorkflowRecord::TriggerRemoved(_)
            | WorkflowRecord::EventRaised(_)
            | WorkflowRecord::TriggerFired(_) => {}
        }
    }

    fn resource(&mut self, number: u64, record: &ResourceRecord, own_order: bool) {
        match record {
            ResourceRecord::AgentRegistered(record) => {
                let before = self.agents.insert(record.agent.clone(), record.clone());
                if before.is_none_or(|before| before.session != record.session) {
                    self.leases.retain(|_, lease| lease.agent != record.agent);
                }
            }
            ResourceRecord::AgentLeft(record) => {
                assert!(self.agents.remove(&record.agent).is_some(), "{} left twice", record.agent);
                self.leases.retain(|_, lease| lease.agent != record.agent);
            }
            ResourceRecord::Assigned(record) => {
                assert!(self.leased.insert(record.task.clone()), "{} is leased twice", record.task);
                assert!(!own_order || !self.paused.contains(&record.task.run), "the run of {} is paused", record.task);
                assert!(self.agents.contains_key(&record.agent), "{} is not there", record.agent);
                assert!(!own_order || self.open.contains(&record.task), "{} is not open", record.task);
                // In the log's order it may have ended meanwhile: then there is no lease.
                if self.open.contains(&record.task) {
                    self.leases.insert(number, record.clone());
                }
            }
            ResourceRecord::LeaseEnded(record) => {
                let ended = self.leases.remove(&record.lease.0);
                assert!(!own_order || ended.is_some_and(|lease| lease.agent == record.agent));
            }
            ResourceRecord::HandedOver(record) => {
                let HandedOver { lease, task, from, to, resources, .. } = record.clone();
                let before = self.leases.remove(&lease.0);
                let held = before.as_ref().is_some_and(|lease| lease.agent == from && lease.task == task);
                assert!(!own_order || held, "{from} hands over what it does not hold");
                if let Some(Assigned { pools, .. }) = before {
                    self.leases.insert(number, Assigned { task, agent: to, resources, pools, beside: None });
                }
            }
            ResourceRecord::HandoffOffered(_)
            | ResourceRecord::HandoffEnded(_)
            | ResourceRecord::BreakerOpened(_)
            | ResourceRecord::BreakerHalfOpened(_)
            | ResourceRecord::BreakerClosed(_)
            | ResourceRecord::AlertRaised(_)
            | ResourceRecord::AlertCleared(_)
            | ResourceRecord::AlertAcknowledged(_)
            | ResourceRecord::PressureChanged(_) => {}
            ResourceRecord::PoolSet(_)
            | ResourceRecord::PoolRemoved(_)
            | ResourceRecord::Acquired(_)
            | ResourceRecord::Renewed(_)
            | ResourceRecord::Released(_)
            | ResourceRecord::ApprovalAsked(_)
            | ResourceRecord::BudgetRefused(_) => {}
        }
        self.check_capacity();
    }

    fn check_capacity(&self) {
        for (id, agent) in &self.agents {
            let mut used = Resources::new();
            let mut slots = 0;
            for lease in self.leases.values().filter(|lease| lease.agent == *id) {
                slots += 1;
                for (name, amount) in &lease.resources {
                    let sum = used.entry(name.clone()).or_default();
                    *sum = *sum + *amount;
                }
            }
            assert!(slots <= agent.slots, "{id} holds {slots} leases in {} slots", agent.slots);
            assert_eq!(covers(&agent.resources, &used), Ok(()), "{id} holds {used:?} of {:?}", agent.resources);
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Register {
        agent: u8,
        session: u8,
        slots: u8,
        cpu: u8,
    },
    Heartbeat {
        agent: u8,
        session: u8,
        holds: Vec<u8>,
    },
    Leave {
        agent: u8,
        session: u8,
    },
    Decline {
        agent: u8,
        lease: u8,
    },
    Ready {
        run: u8,
        cpu: u8,
    },
    End {
        run: u8,
        knows: bool,
        outcome: u8,
    },
    Finish {
        run: u8,
    },
    Pause {
        run: u8,
    },
    Resume {
        run: u8,
    },
    /// The placements, and whether what the workflow-manager wrote is read first.
    Assign {
        placements: Vec<(u8, u8)>,
        reads: bool,
    },
    Wait(u16),
    Settle,
    Lead,
}

fn act() -> impl Strategy<Value = Act> {
    let small = || 0..4u8;
    prop_oneof![
        3 => (small(), 0..2u8, 1..4u8, 0..4u8).prop_map(|(agent, session, slots, cpu)| Act::Register { agent, session, slots, cpu }),
        4 => (small(), 0..2u8, prop::collection::vec(0..40u8, 0..4)).prop_map(|(agent, session, holds)| Act::Heartbeat { agent, session, holds }),
        1 => (small(), 0..2u8).prop_map(|(agent, session)| Act::Leave { agent, session }),
        1 => (small(), 0..40u8).prop_map(|(agent, lease)| Act::Decline { agent, lease }),
        6 => (0..8u8, 0..3u8).prop_map(|(run, cpu)| Act::Ready { run, cpu }),
        4 => (0..8u8, any::<bool>(), 0..5u8).prop_map(|(run, knows, outcome)| Act::End { run, knows, outcome }),
        1 => (0..8u8).prop_map(|run| Act::Finish { run }),
        1 => (0..8u8).prop_map(|run| Act::Pause { run }),
        1 => (0..8u8).prop_map(|run| Act::Resume { run }),
        6 => (prop::collection::vec((0..8u8, 0..4u8), 1..6), any::<bool>()).prop_map(|(placements, reads)| Act::Assign { placements, reads }),
        3 => (0..8000u16).prop_map(Act::Wait),
        4 => Just(Act::Settle),
        1 => Just(Act::Lead),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever comes in whatever order: capacity holds at every position, and every lease ends.
    #[test]
    fn r3_leases_never_exceed_capacity(acts in prop::collection::vec(act(), 1..60)) {
        let mut world = World::new();
        // Each run has one stage; this is its attempt, and whether that is open.
        let mut attempts: BTreeMap<u8, (u32, bool)> = BTreeMap::new();
        let mut over: BTreeSet<u8> = BTreeSet::new();
        let id = |agent: u8| format!("a{agent}");
        for act in acts {
            match act {
                Act::Register { agent, session, slots, cpu } => {
                    let body = json!({ "session": format!("s{session}"), "agent_type": "research", "slots": slots, "resources": { "cpu": cpu } });
                    world.agent(&id(agent), "register", &body);
                }
                Act::Heartbeat { agent, session, holds } => {
                    let holds: Vec<_> = holds.into_iter().map(u64::from).collect();
                    world.heartbeat(&id(agent), &format!("s{session}"), &holds);
                }
                Act::Leave { agent, session } => world.agent(&id(agent), "leave", &json!({ "session": format!("s{session}") })),
                Act::Decline { agent, lease } => world.agent(&id(agent), "decline", &json!({ "lease": lease, "reason": "" })),
                Act::Ready { run, cpu } => {
                    let (attempt, open) = attempts.get(&run).copied().unwrap_or_default();
                    if open || over.contains(&run) {
                        continue;
                    }
                    let mut records = if attempt == 0 { vec![started(run.into())] } else { vec![] };
                    records.push(ready(task(run.into(), "research", attempt + 1), &format!("{{\"cpu\": {cpu}}}")));
                    attempts.insert(run, (attempt + 1, true));
                    world.act_workflow(records);
                }
                Act::End { run, knows, outcome } => {
                    let Some((attempt, true)) = attempts.get(&run).copied() else { continue };
                    let task = task(run.into(), "research", attempt);
                    let lease = world.machine.machine().tasks.open(&task).and_then(|open| open.lease);
                    let holder = lease.and_then(|id| world.machine.machine().leases.agent_of(id).map(|a| (id.0, a.to_string())));
                    let outcome = [Outcome::Succeeded, Outcome::Failed, Outcome::Lost, Outcome::TimedOut, Outcome::Cancelled][outcome as usize];
                    let holder = holder.filter(|_| knows);
                    world.act_workflow(vec![ended(task, holder.as_ref().map(|(lease, agent)| (*lease, agent.as_str())), outcome)]);
                    attempts.insert(run, (attempt, false));
                }
                Act::Finish { run } => {
                    if attempts.contains_key(&run) && over.insert(run) {
                        attempts.insert(run, (0, false));
                        world.act_workflow(vec![finished(run.into())]);
                    }
                }
                Act::Pause { run } if attempts.contains_key(&run) && !over.contains(&run) => {
                    world.act_workflow(vec![paused(run.into())]);
                }
                Act::Pause { .. } => {}
                Act::Resume { run } => world.act_workflow(vec![resumed(run.into())]),
                Act::Assign { placements, reads } => {
                    let placements = placements.into_iter().map(|(run, agent)| {
                        let attempt = attempts.get(&run).map_or(1, |(attempt, _)| (*attempt).max(1));
                        Placement { task: task(run.into(), "research", attempt), agent: self::agent(&id(agent)), beside: None }
                    });
                    let seen = if reads { world.workflow_next - 1 } else { 0 };
                    let request = ResourceRequest::Assign(AssignTasks { seen, placements: placements.collect() });
                    // What the others wrote meanwhile is read after it has decided.
                    world.token += 1;
                    world.machine.request(world.token, "lease.assign", request, RequestContext::default(), world.now);
                }
                Act::Wait(ms) => world.wait(ms.into()),
                Act::Settle => world.settle(),
                Act::Lead => {
                    world.settle();
                    world.lead();
                }
            }
            Checker::of(&world.log);
        }
        // Calm: nobody says anything any more.
        world.settle();
        world.wait(20_000);
        let end = Checker::of(&world.log);
        let own = Checker::in_own_order(&world.log);
        prop_assert!(end.agents.is_empty() && end.leases.is_empty() && own.leases.is_empty());
        prop_assert_eq!(world.machine.machine().leases.len(), 0);
    }
}
