//! The optimizer alone: the test plays everybody else.

mod ahead;
mod discovery;
mod early;
mod forecast;
mod hedges;
mod pressure;
mod tenants;
mod urgent;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use baton_machine::{Effect, Measure, Processor, RequestContext, Value, answer};
use baton_protocol::definition::{Definition, Estimate};
use baton_protocol::record::{
    Assigned, Outcome, PoolRemoved, PoolSet, ReleaseReason, Released, ResourceRecord, RunStarted, StageReady,
    WorkflowRecord, WorkflowRegistered,
};
use baton_protocol::request::{
    Advise, AssignAnswer, AssignTasks, Candidate, CapacityPlan, ExplainPlacement, ImportLearning, Lesson,
    OptimizerRequest, PlacementExplained, PlacementView, PlanCapacity, Refusal, SetStrategy, Strategy, Subject,
};
use baton_protocol::{Capability, Code, Json, LeaseId, Millis, Pool, PoolKind, Rejection, Resources, TaskId};
use expect_test::{Expect, expect};

use super::{
    Log, START, agent, assigned, declined, ended, finished, left, paused, ready, registered, resumed, run, started,
    task, workflow,
};
use crate::{Config, Optimizer};

/// The log, one optimizer that leads, and what it asked.
struct World {
    log: Log,
    machine: Processor<Optimizer>,
    config: Config,
    workflow_next: u64,
    resource_next: u64,
    now: Millis,
    transcript: String,
    /// Questions that are not answered.
    asked: BTreeMap<u64, AssignTasks>,
    /// Which lease each task has.
    leases: BTreeMap<TaskId, u64>,
    /// How long tasks were measured to have waited, by strategy, in seconds.
    waited: Vec<String>,
    /// What else was measured.
    measured: Vec<(&'static str, f64)>,
}

impl World {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let mut world = Self {
            log: Log::default(),
            machine: Processor::new(config.clone()),
            config,
            workflow_next: 1,
            resource_next: 1,
            now: START,
            transcript: String::new(),
            asked: BTreeMap::new(),
            leases: BTreeMap::new(),
            waited: Vec::new(),
            measured: Vec::new(),
        };
        world.machine.lead("i", world.now);
        world.workflow(vec![workflow()]);
        world
    }

    /// Under ADAPTIVE, of which it is known that the same takes ann and bob so long. Each has one slot and so much of a resource.
    fn adaptive((ann, bob): (Millis, Millis), cpu: u32) -> Self {
        let mut world = Self::new();
        world.resource(["ann", "bob"].map(|id| registered(id, "s", "research", 1, cpu, 0)).into());
        let of = |_| [("ann", Outcome::Succeeded, ann), ("bob", Outcome::Succeeded, bob)];
        practise(&mut world, 1, &(0..10).flat_map(of).collect::<Vec<_>>());
        world.strategy(Strategy::Adaptive);
        world
    }

    fn settle(&mut self) {
        let released = self.log.settle(&mut self.machine, self.now);
        for (_, event) in released.events {
            let line = format!("{} +{} {} ({})", event.position, event.at - START, event.record.as_str(), event.cause);
            self.note(&line);
        }
        for effect in released.effects {
            self.note_effect(effect);
        }
        for effect in self.machine.immediate() {
            let Effect::Ask { endpoint, body, tag, .. } = effect else {
                self.note_effect(effect);
                continue;
            };
            let request: AssignTasks = body.read().unwrap();
            let what: Vec<_> = request.placements.iter().map(|p| format!("{} -> {}", p.task, p.agent)).collect();
            self.note(&format!("+{} ask {endpoint} seen {}: {}", self.now - START, request.seen, what.join(", ")));
            self.asked.insert(tag, request);
        }
        self.log.check(&self.machine, self.config.clone(), self.now);
    }

    fn note_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Answer { reply, .. } => self.note(&format!("answer {reply:?}")),
            Effect::Span(span) => {
                let attributes: Vec<_> = span.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
                let times = format!("+{}..+{}", span.start - START, span.end - START);
                self.note(&format!("span {:?} {} {times} {}", span.kind, span.name, attributes.join(" ")));
            }
            Effect::Measure(Measure { metric: "baton_run_queue", value: Value::Set(value), .. }) => {
                self.note(&format!("gauge baton_run_queue {value}"));
            }
            Effect::Measure(Measure { metric: "baton_placement_seconds", labels, value: Value::Observe(waited) }) => {
                self.waited.push(format!("{} {waited}", labels.join(" ")));
            }
            Effect::Measure(Measure { metric, value: Value::Set(value) | Value::Observe(value), .. }) => {
                self.measured.push((metric, value));
            }
            _ => panic!("{effect:?}"),
        }
    }

    /// What was measured under a name since this was asked last.
    fn measured(&mut self, metric: &str) -> Vec<f64> {
        let of = self.measured.iter().filter(|(name, _)| *name == metric).map(|(_, value)| *value).collect();
        self.measured.retain(|(name, _)| *name != metric);
        of
    }

    fn note(&mut self, line: &str) {
        let mut line = line.to_owned();
        for n in (1..=30).rev() {
            line = line
                .replace(&format!("{}/work", run(n)), &format!("R{n}"))
                .replace(&run(n).to_string(), &format!("R{n}"));
        }
        writeln!(self.transcript, "{line}").unwrap();
    }

    fn workflow(&mut self, records: Vec<WorkflowRecord>) {
        self.log.append(&mut self.workflow_next, self.now, records);
        self.settle();
    }

    fn resource(&mut self, records: Vec<ResourceRecord>) {
        for (record, number) in records.iter().zip(self.resource_next..) {
            if let ResourceRecord::Assigned(record) = record
                && record.beside.is_none()
            {
                self.leases.insert(record.task.clone(), number);
            }
        }
        self.log.append(&mut self.resource_next, self.now, records);
        self.settle();
    }

    /// Run `n` has its stage ready.
    fn ready(&mut self, n: u64, agent_type: &str, priority: i32, cpu: u32) {
        self.workflow(vec![started(n), ready(task(n, 1), agent_type, priority, cpu)]);
    }

    /// Grants all that was asked.
    fn grant(&mut self) -> Vec<(TaskId, String)> {
        let mut granted = Vec::new();
        while let Some((tag, request)) = self.asked.pop_first() {
            let mut records = Vec::new();
            for placement in request.placements {
                let cpu = self.machine.machine().queue.get(&placement.task).map_or(0, |queued| {
                    queued.shape.resources.values().next().map_or(0, |amount| amount.to_string().parse().unwrap())
                });
                let mut record = assigned(placement.task.clone(), placement.agent.as_str(), cpu);
                if let ResourceRecord::Assigned(record) = &mut record {
                    record.beside = placement.beside;
                }
                records.push(record);
                granted.push((placement.task, placement.agent.to_string()));
            }
            let count = records.len() as u32;
            self.resource(records);
            self.machine.answered(tag, answer(&AssignAnswer { granted: count, refused: vec![] }), self.now);
            self.settle();
        }
        granted
    }

    /// Refuses all that was asked in the oldest question.
    fn refuse(&mut self, code: Code) {
        let (tag, request) = self.asked.pop_first().unwrap();
        let refused = request.placements.into_iter().map(|placement| Refusal {
            task: placement.task,
            agent: placement.agent,
            rejection: Rejection::new(code, "no"),
        });
        let reply = answer(&AssignAnswer { granted: 0, refused: refused.collect() });
        self.machine.answered(tag, reply, self.now);
        self.settle();
    }

    fn end(&mut self, n: u64, agent: &str, outcome: Outcome, duration_ms: Millis) {
        let task = task(n, 1);
        let lease = self.leases[&task];
        self.workflow(vec![ended(task, Some((lease, agent)), outcome, duration_ms), finished(n)]);
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

    fn strategy(&mut self, strategy: Strategy) {
        let request = OptimizerRequest::SetStrategy(SetStrategy { strategy });
        self.machine.request(1, "strategy.set", request, RequestContext::default(), self.now);
        self.settle();
    }

    fn view(&self) -> PlacementView {
        crate::view::placement(self.machine.machine(), &self.config, self.now, None)
    }

    fn order(&self) -> String {
        let queue = self.view().queue;
        let numbers: Vec<_> =
            queue.iter().map(|q| (1..=30).find(|n| run(*n) == q.task.run).unwrap().to_string()).collect();
        numbers.join(" ")
    }

    fn check(&mut self, expected: &Expect) {
        expected.assert_eq(&std::mem::take(&mut self.transcript));
    }
}

#[test]
fn o1_priority_first_then_age_and_waiting_counts() {
    let mut world = World::new();
    let mut said = String::new();
    for (n, priority) in [(1, 0), (2, 0), (3, 2), (4, -1), (5, 2)] {
        world.ready(n, "research", priority, 0);
        world.wait(10);
    }
    for _ in 0..4 {
        writeln!(said, "+{}: {}", world.now - START, world.order()).unwrap();
        world.wait(60_000);
        world.ready(6 + (world.now - START) / 60_000, "research", 2, 0);
    }
    expect![[r#"
        +50: 3 5 1 2 4
        +60050: 3 5 7 1 2 4
        +120050: 3 5 7 1 2 8 4
        +180050: 3 5 7 1 2 8 4 9
    "#]]
    .assert_eq(&said);
}

#[test]
fn o1_the_first_in_the_queue_gets_the_slot_across_agent_types() {
    let mut world = World::new();
    world.ready(1, "research", 0, 0);
    world.ready(2, "writing", 3, 0);
    world.ready(3, "common", 2, 0);
    world.transcript.clear();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    world.grant();
    world.resource(vec![registered("bob", "s", "writing", 2, 0, 0)]);
    world.grant();
    world.check(&expect![[r#"
        +0 ask lease.assign seen 7: R3/1 -> ann
        span Internal place common +0..+0 baton.run.id=R3 baton.stage.name=work baton.agent.id=ann baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 2
        +0 ask lease.assign seen 7: R2/1 -> bob
        span Internal place writing +0..+0 baton.run.id=R2 baton.stage.name=work baton.agent.id=bob baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 1
    "#]]);
}

#[test]
fn o1_a_large_task_does_not_starve_behind_small_ones() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 4, 4, 0)]);
    for n in 1..=4 {
        world.ready(n, "research", 0, 1);
    }
    world.grant();
    world.ready(5, "research", 0, 4);
    // Small ones keep coming and keep the agent busy, until the large one has waited for one step of ageing.
    let mut next = 6;
    let mut busy: Vec<u64> = (1..=4).collect();
    while !world.leases.contains_key(&task(5, 1)) {
        assert!(next <= 30, "it starves: {}", world.transcript);
        world.wait(6_000);
        if !busy.is_empty() {
            world.end(busy.remove(0), "ann", Outcome::Succeeded, 1000);
        }
        let mut granted = world.grant();
        world.ready(next, "research", 0, 1);
        next += 1;
        granted.extend(world.grant());
        busy.extend(granted.iter().filter_map(|(task, _)| (1..=30).find(|n| run(*n) == task.run)));
    }
    assert!(world.now - START > 60_000, "it was not kept back");
    assert_eq!(busy, [5]);
}

#[test]
fn o1_one_agent_is_kept_for_large_tasks_of_a_kind() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 4, 4, 0), registered("bob", "s", "research", 4, 4, 0)]);
    for n in 1..=5 {
        world.ready(n, "research", 0, 1);
    }
    world.grant();
    for n in 6..=8 {
        world.ready(n, "research", 0, 4);
    }
    world.wait(60_000);
    world.transcript.clear();
    // Bob holds less, and is kept; ann goes on.
    for n in 9..=10 {
        world.ready(n, "research", 0, 1);
    }
    world.grant();
    for n in [2, 4] {
        world.end(n, "bob", Outcome::Succeeded, 10);
    }
    world.transcript = world.transcript.lines().filter(|l| l.contains("ask")).collect::<Vec<_>>().join("\n");
    world.check(&expect![[r#"
        +60000 ask lease.assign seen 19: R9/1 -> ann
        +60000 ask lease.assign seen 25: R8/1 -> bob"#]]);
}

#[test]
fn r5_o2_the_agent_with_the_smallest_part_in_use() {
    let mut world = World::new();
    world.resource(vec![
        registered("ann", "s", "research", 2, 0, 0),
        registered("bob", "s", "research", 4, 0, 0),
        registered("cid", "s", "research", 1, 0, 0),
        registered("dan", "s", "writing", 9, 0, 9),
    ]);
    for n in 1..=8 {
        world.ready(n, "research", 0, 0);
        world.wait(1);
    }
    world.transcript.clear();
    let granted = world.grant();
    world.check(&expect![[r#"
        span Internal place research +0..+0 baton.run.id=R1 baton.stage.name=work baton.agent.id=ann baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 7
        span Internal place research +1..+1 baton.run.id=R2 baton.stage.name=work baton.agent.id=bob baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 6
        span Internal place research +2..+2 baton.run.id=R3 baton.stage.name=work baton.agent.id=cid baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 5
        span Internal place research +3..+3 baton.run.id=R4 baton.stage.name=work baton.agent.id=bob baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 4
        span Internal place research +4..+4 baton.run.id=R5 baton.stage.name=work baton.agent.id=ann baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 3
        span Internal place research +5..+5 baton.run.id=R6 baton.stage.name=work baton.agent.id=bob baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 2
        span Internal place research +6..+6 baton.run.id=R7 baton.stage.name=work baton.agent.id=bob baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 1
    "#]]);
    let mut said = String::new();
    for (task, agent) in granted {
        writeln!(said, "{agent}").unwrap();
        assert!(world.leases.contains_key(&task));
    }
    expect![[r#"
        ann
        bob
        cid
        bob
        ann
        bob
        bob
    "#]]
    .assert_eq(&said);
}

#[test]
fn r5_o2_ties_go_to_priority_then_score_then_the_longest_idle() {
    let mut world = World::new();
    let mut said = String::new();
    let mut place = |world: &mut World, n| {
        world.ready(n, "research", 0, 0);
        let (_, agent) = world.grant().pop().unwrap();
        writeln!(said, "{n} {agent}").unwrap();
        agent
    };
    world.resource(vec![registered("bob", "s", "research", 1, 0, 0)]);
    world.wait(1);
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    // Both are idle, bob for longer. He is quick to fail: his score falls.
    for n in 1..=2 {
        let agent = place(&mut world, n);
        world.wait(1);
        world.end(n, &agent, if agent == "bob" { Outcome::Failed } else { Outcome::Succeeded }, 10);
    }
    // Ann is better now, though bob has been idle for longer.
    assert_eq!(place(&mut world, 3), "ann");
    world.end(3, "ann", Outcome::Succeeded, 10);
    // Priority goes before score.
    world.resource(vec![registered("bob", "s", "research", 1, 0, 1)]);
    assert_eq!(place(&mut world, 4), "bob");
    assert_eq!(place(&mut world, 5), "ann");
    expect![[r#"
        1 bob
        2 ann
        3 ann
        4 bob
        5 ann
    "#]]
    .assert_eq(&said);
}

#[test]
fn o2_agents_take_turns_and_the_strategy_is_switched_live() {
    let mut world = World::new();
    world.resource(vec![
        registered("ann", "s", "research", 5, 0, 0),
        registered("bob", "s", "research", 1, 0, 0),
        registered("cid", "s", "research", 5, 0, 0),
    ]);
    world.transcript.clear();
    world.strategy(Strategy::RoundRobin);
    world.strategy(Strategy::RoundRobin);
    for n in 1..=6 {
        world.ready(n, "research", 0, 0);
        world.grant();
    }
    world.strategy(Strategy::LoadBalanced);
    world.ready(7, "research", 0, 0);
    let transcript = std::mem::take(&mut world.transcript);
    world.transcript = transcript
        .lines()
        .filter(|l| !l.starts_with("gauge") && !l.starts_with("span"))
        .fold(String::new(), |text, line| text + line + "\n");
    world.check(&expect![[r#"
        4.0 +0 {"strategy_changed":{"strategy":"ROUND_ROBIN"}} (request strategy.set)
        answer Ok({})
        answer Ok({})
        +0 ask lease.assign seen 3: R1/1 -> ann
        +0 ask lease.assign seen 5: R2/1 -> bob
        +0 ask lease.assign seen 7: R3/1 -> cid
        +0 ask lease.assign seen 9: R4/1 -> ann
        +0 ask lease.assign seen 11: R5/1 -> cid
        +0 ask lease.assign seen 13: R6/1 -> ann
        17.0 +0 {"strategy_changed":{"strategy":"LOAD_BALANCED"}} (request strategy.set)
        answer Ok({})
        +0 ask lease.assign seen 15: R7/1 -> cid
    "#]]);
}

/// Agents that do a task each, one after another, so that something is learned of them.
fn practise(world: &mut World, first: u64, each: &[(&str, Outcome, Millis)]) {
    for (n, (agent, outcome, duration_ms)) in (first..).zip(each) {
        world.workflow(vec![started(n), ready(task(n, 1), "research", 0, 0)]);
        world.asked.clear();
        world.resource(vec![assigned(task(n, 1), agent, 0)]);
        world.wait(*duration_ms);
        world.end(n, agent, *outcome, *duration_ms);
    }
}

fn placed(world: &mut World, n: u64, strategy: Strategy) -> Vec<String> {
    let WorkflowRecord::RunStarted(run) = started(n) else { unreachable!() };
    let run = WorkflowRecord::RunStarted(RunStarted { strategy: Some(strategy), ..run });
    world.workflow(vec![run, ready(task(n, 1), "research", 0, 0)]);
    world.grant().into_iter().map(|(_, agent)| agent).collect()
}

#[test]
fn o2_each_run_may_have_a_strategy_of_its_own() {
    use Outcome::{Failed, Succeeded};
    let mut world = World::new();
    world.resource(vec![
        registered("ann", "s", "research", 9, 0, 0),
        registered("bob", "s", "research", 9, 0, 0),
        registered("cid", "s", "research", 9, 0, 5),
        registered("dan", "s", "research", 9, 0, 0),
    ]);
    // Ann is quick, bob as good and slow, cid has the highest priority and fails, dan has done least.
    let lessons: Vec<_> =
        (0..8).flat_map(|_| [("ann", Succeeded, 500), ("bob", Succeeded, 2000), ("cid", Failed, 500)]).collect();
    practise(&mut world, 1, &lessons);
    assert_eq!(placed(&mut world, 25, Strategy::PriorityBased), ["cid"]);
    assert_eq!(placed(&mut world, 26, Strategy::Historical), ["ann"]);
    assert_eq!(placed(&mut world, 27, Strategy::Adaptive), ["ann"]);
    assert_eq!(placed(&mut world, 28, Strategy::RoundRobin), ["ann"]);
    assert_eq!(placed(&mut world, 29, Strategy::RoundRobin), ["bob"]);
    assert_eq!(placed(&mut world, 30, Strategy::LoadBalanced), ["dan"]);
}

#[test]
fn o3_agents_are_drawn_by_trails_that_evaporate() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 9, 0, 0), registered("bob", "s", "research", 9, 0, 0)]);
    practise(&mut world, 1, &[("ann", Outcome::Succeeded, 100); 12]);
    let trail = |world: &World, id: &str| {
        world.machine.machine().learning.trail(&agent(id), &Capability::new("research").unwrap())
    };
    let strong = trail(&world, "ann");
    // Each success adds 0.1, and each step leaves 0.95: a series that goes towards 2.
    let series = (0..12).fold(0.0, |sum, _| sum * 0.95 + 0.1);
    assert!((strong - series).abs() < 1e-9, "{strong} is not {series}");
    practise(&mut world, 13, &[("bob", Outcome::Failed, 100); 8]);
    assert!(trail(&world, "bob") <= 0.0 && (trail(&world, "ann") - series * 0.95_f64.powi(8)).abs() < 1e-9);
    let mut drawn: BTreeMap<String, u32> = BTreeMap::new();
    for n in 101..=300 {
        for agent in placed(&mut world, n, Strategy::Swarm) {
            *drawn.entry(agent.clone()).or_default() += 1;
            let lease = world.leases[&task(n, 1)];
            world.workflow(vec![ended(task(n, 1), Some((lease, &agent)), Outcome::Cancelled, 0), finished(n)]);
        }
    }
    // Odds of about 11 to 1, for who has no trail is drawn now and then.
    assert!((8..=35).contains(&drawn["bob"]) && drawn["ann"] + drawn["bob"] == 200, "{drawn:?}");
}

#[test]
fn o2_a_task_waits_for_a_much_faster_agent_where_that_ends_sooner() {
    let mut world = World::adaptive((1000, 10_000), 0);
    world.ready(21, "research", 0, 0);
    assert_eq!(world.grant(), [(task(21, 1), "ann".to_owned())]);
    world.wait(500);
    // Ann will be done in half a second, and then sooner with this than bob would be.
    world.ready(22, "research", 0, 0);
    assert_eq!(world.grant(), []);
    world.wait(500);
    world.end(21, "ann", Outcome::Succeeded, 1000);
    assert_eq!(world.grant(), [(task(22, 1), "ann".to_owned())]);
    // With so much to do bob is needed.
    for n in 23..=45 {
        world.ready(n, "research", 0, 0);
    }
    let granted = world.grant();
    assert_eq!(granted.len(), 1);
    assert_eq!(granted[0].1, "bob");
    // What waits in vain does not wait for ever: ann seems to hang.
    let bobs = (23..=45).find(|n| run(*n) == granted[0].0.run).unwrap();
    world.workflow((23..=44).filter(|n| *n != bobs).map(finished).collect());
    world.end(bobs, "bob", Outcome::Succeeded, 10_000);
    let mut granted = world.grant();
    for _ in 0..60 {
        if granted.is_empty() {
            world.wait(1000);
            granted = world.grant();
        }
    }
    assert_eq!(granted, [(task(45, 1), "bob".to_owned())]);
}

#[test]
fn o2_a_slow_agent_is_needed_where_much_waits_though_each_task_needs_something_else() {
    let mut world = World::adaptive((1000, 100_000), 200);
    // As many as a walk leaves waiting for ann are not reason enough; all of them are.
    for n in 101..=300 {
        world.workflow(vec![started(n), ready(task(n, 1), "research", 0, (n - 100) as u32)]);
    }
    let mut agents: Vec<_> = world.grant().into_iter().map(|(_, agent)| agent).collect();
    agents.sort();
    assert_eq!(agents, ["ann", "bob"]);
}

#[test]
fn o5_success_is_told_apart_by_task_type_agent_and_strategy() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 9, 0, 0)]);
    for (n, strategy, outcome) in [
        (1, Strategy::Swarm, Outcome::Succeeded),
        (2, Strategy::Historical, Outcome::Failed),
        (3, Strategy::Swarm, Outcome::Succeeded),
    ] {
        placed(&mut world, n, strategy);
        world.end(n, "ann", outcome, 100);
    }
    let learning = &world.machine.machine().learning;
    let patterns = &learning.performance(&agent("ann")).unwrap().types[&Capability::new("research").unwrap()].patterns;
    let said: Vec<_> = patterns.iter().map(|(s, p)| format!("{s} {:.3} of {}", p.success, p.seen)).collect();
    assert_eq!(said, ["HISTORICAL 0.450 of 1", "SWARM 0.595 of 2"]);
}

/// Under ADAPTIVE: ann needs a second, and bob fails at once, again and again.
fn bob_fails(config: Config, slots: u32, cpu: u32) -> World {
    let mut world = World::with(config);
    world.resource(["ann", "bob"].map(|id| registered(id, "s", "research", slots, cpu, 0)).into());
    practise(&mut world, 1, &[("ann", Outcome::Succeeded, 1000); 6]);
    practise(&mut world, 7, &[("bob", Outcome::Failed, 1); 6]);
    world.strategy(Strategy::Adaptive);
    world
}

#[test]
fn o4_an_agent_that_fails_fast_does_not_draw_work() {
    let mut world = bob_fails(Config::default(), 1, 0);
    let mut given: BTreeMap<String, u32> = BTreeMap::new();
    for n in 101..=160 {
        world.ready(n, "research", 0, 0);
        for (task, agent) in world.grant() {
            *given.entry(agent.clone()).or_default() += 1;
            let n = (101..=160).find(|n| run(*n) == task.run).unwrap();
            let (outcome, took) = if agent == "bob" { (Outcome::Failed, 1) } else { (Outcome::Succeeded, 1000) };
            world.wait(took);
            world.end(n, &agent, outcome, took);
        }
    }
    assert!(given.get("bob").is_none_or(|count| *count <= 5) && given["ann"] >= 55, "{given:?}");
}

#[test]
fn o4_an_agent_that_fails_fast_does_not_draw_work_where_much_waits() {
    let mut world = bob_fails(Config::default(), 1, 0);
    (101..=200).for_each(|n| world.ready(n, "research", 0, 0));
    let mut given: BTreeMap<String, u32> = BTreeMap::new();
    let mut anns = None;
    for _ in 0..60 {
        for (task, agent) in world.grant() {
            *given.entry(agent.clone()).or_default() += 1;
            let n = (101..=200).find(|n| run(*n) == task.run).unwrap();
            if agent == "ann" {
                anns = Some(n);
            } else {
                world.wait(1);
                world.end(n, "bob", Outcome::Failed, 1);
            }
        }
        world.wait(1000);
        let n = anns.take().unwrap();
        world.end(n, "ann", Outcome::Succeeded, 1000);
    }
    // One for each twenty of ann's, and one before it was known that it should wait.
    assert!((2..=5).contains(&given["bob"]) && given["ann"] >= 58, "{given:?}");
    // When ann leaves, bob is all there is.
    let mut granted = world.grant();
    world.resource(vec![left("ann")]);
    for _ in 0..5 {
        granted.extend(world.grant());
        let (task, _) = granted.iter().find(|(_, agent)| agent == "bob").unwrap_or_else(|| panic!("{granted:?}"));
        let n = (101..=200).find(|n| run(*n) == task.run).unwrap();
        granted.clear();
        world.wait(1);
        world.end(n, "bob", Outcome::Failed, 1);
    }
}

#[test]
fn o1_an_agent_that_fails_is_not_kept_for_a_large_task_though_it_holds_least() {
    let mut world = bob_fails(Config { ageing_ms: 1000, ..Config::default() }, 4, 4);
    let mut anns: Vec<u64> = Vec::new();
    // Bob is tried once, and not again before all this is over. Small tasks keep coming and keep ann busy.
    for n in 101..=160 {
        world.ready(n, "research", 0, 1);
        if n == 110 {
            world.ready(500, "research", 0, 4);
        }
        for (task, agent) in world.grant() {
            let n = (101..=500).find(|n| run(*n) == task.run).unwrap();
            match agent.as_str() {
                "ann" if n == 500 => return,
                "ann" => anns.push(n),
                _ => world.end(n, "bob", Outcome::Failed, 1),
            }
        }
        world.wait(300);
        if !anns.is_empty() && n > 104 {
            world.end(anns.remove(0), "ann", Outcome::Succeeded, 1000);
        }
    }
    panic!("it starves: {anns:?}");
}

/// Why a stage of run `n` is, or is about to be, where it is.
fn explained(world: &mut World, n: u64, stage: &str) -> String {
    let request = ExplainPlacement { run: run(n), stage: stage.parse().unwrap() };
    let request = OptimizerRequest::ExplainPlacement(request);
    world.machine.request(1, "placement.explain", request, RequestContext::default(), world.now);
    let effects = world.log.settle(&mut world.machine, world.now).effects;
    let answer = effects.into_iter().find_map(|effect| match effect {
        Effect::Answer { reply, .. } => Some(reply.unwrap()),
        _ => None,
    });
    answer.unwrap().read::<PlacementExplained>().unwrap().reason
}

/// A run of two stages, the second of which builds on the first: who gets the second, where both have room and bob did the first.
/// So many tasks that are for neither have waited for longer.
fn builds_on_bob(strategy: Strategy, ann: &[Outcome], bob: &[Outcome], others: u64) -> (String, String) {
    let mut world = World::new();
    let chain = Definition::builder("chain").add_stage("one", "research", &[]).add_stage("two", "research", &["one"]);
    let definition = Arc::new(chain.build().unwrap());
    world.workflow(vec![WorkflowRecord::WorkflowRegistered(WorkflowRegistered { version: 1, definition })]);
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0), registered("bob", "s", "research", 1, 0, 0)]);
    let lessons = |agent: &'static str, outcomes: &[Outcome], took: Millis| -> Vec<_> {
        outcomes.iter().map(|outcome| (agent, *outcome, took)).collect()
    };
    practise(&mut world, 100, &[lessons("bob", bob, 1000), lessons("ann", ann, 992)].concat());
    world.strategy(strategy);
    if others > 0 {
        world.resource(vec![registered("cid", "s", "other", 1, 0, 0)]);
        (1001..=1000 + others).for_each(|n| world.ready(n, "other", 1, 0));
        assert_eq!(world.grant().len(), 1);
    }
    let WorkflowRecord::RunStarted(begun) = started(1) else { unreachable!() };
    let stage = |name: &str| TaskId { stage: name.parse().unwrap(), ..task(1, 1) };
    let run = RunStarted { workflow: "chain".parse().unwrap(), ..begun };
    world.workflow(vec![WorkflowRecord::RunStarted(run), ready(stage("one"), "research", 0, 0)]);
    // Somebody else gave it away.
    world.asked.clear();
    world.resource(vec![assigned(stage("one"), "bob", 0)]);
    world.wait(1000);
    let WorkflowRecord::StageReady(two) = ready(stage("two"), "research", 0, 0) else { unreachable!() };
    let two = StageReady { inputs: vec!["one".parse().unwrap()], ..two };
    let lease = world.leases[&stage("one")];
    let one = ended(stage("one"), Some((lease, "bob")), Outcome::Succeeded, 1000);
    world.workflow(vec![one, WorkflowRecord::StageReady(two)]);
    let why = explained(&mut world, 1, "two");
    let granted = world.grant();
    assert_eq!(granted.len(), 1);
    (granted[0].1.clone(), why)
}

#[test]
fn o1_what_builds_on_something_goes_where_that_was_done_if_that_is_nearly_as_good() {
    use Outcome::{Failed, Succeeded};
    for strategy in [Strategy::LoadBalanced, Strategy::PriorityBased, Strategy::Adaptive] {
        // Ann has done more, is faster by a little, and has idled for longer.
        let (agent, why) = builds_on_bob(strategy, &[Succeeded; 60], &[Succeeded; 40], 0);
        assert_eq!(agent, "bob", "{strategy:?}: {why}");
        assert!(why.contains("it did most of what the task builds on"), "{strategy:?}: {why}");
        // Bob has begun to fail.
        let mut failed = [Succeeded; 40];
        failed[36..].fill(Failed);
        let (agent, why) = builds_on_bob(strategy, &[Succeeded; 60], &failed, 0);
        assert_eq!(agent, "ann", "{strategy:?}: {why}");
        assert!(!why.contains("builds on"), "{strategy:?}: {why}");
    }
}

#[test]
fn o2_what_waits_for_other_agents_does_not_keep_a_task_from_being_weighed() {
    // More than a walk leaves waiting, and all of it comes first.
    let (agent, why) = builds_on_bob(Strategy::Adaptive, &[Outcome::Succeeded; 60], &[Outcome::Succeeded; 40], 80);
    assert_eq!(agent, "bob", "{why}");
}

#[test]
fn o2_each_placement_is_explained() {
    let mut world = World::adaptive((1000, 10_000), 0);
    world.ready(21, "research", 0, 0);
    world.grant();
    world.wait(500);
    world.ready(22, "research", 0, 0);
    world.ready(23, "cooking", 0, 0);
    placed(&mut world, 24, Strategy::LoadBalanced);
    let mut said = String::new();
    for n in [21, 22, 23, 24, 25] {
        let request = ExplainPlacement { run: run(n), stage: task(n, 1).stage };
        let request = OptimizerRequest::ExplainPlacement(request);
        world.machine.request(1, "placement.explain", request, RequestContext::default(), world.now);
        for effect in world.log.settle(&mut world.machine, world.now).effects {
            let Effect::Answer { reply, .. } = effect else { continue };
            match reply {
                Ok(answer) => {
                    let why: PlacementExplained = answer.read().unwrap();
                    let agent = why.agent.map_or("nobody".to_owned(), |agent| agent.to_string());
                    writeln!(said, "R{n} {agent} {}: {}", why.strategy, why.reason).unwrap();
                    for Candidate { agent, has_room, terms } in why.candidates {
                        let terms: Vec<_> = terms.iter().map(|(name, term)| format!("{name} {term:.2}")).collect();
                        writeln!(said, "   {agent} {has_room} {}", terms.join(", ")).unwrap();
                    }
                }
                Err(rejection) => writeln!(said, "R{n} {}", rejection.code).unwrap(),
            }
        }
    }
    expect![[r#"
        R21 ann ADAPTIVE: it was expected to end soonest there
           ann true available_ms 0.00, duration_ms 1511.27, ends_ms 1622.38, failure 0.02, failure_cost_ms 111.12
           bob true available_ms 0.00, duration_ms 9844.15, ends_ms 9955.26, failure 0.02, failure_cost_ms 111.12
        R22 nobody ADAPTIVE: it is expected to end soonest at ann, though that has no room yet
           ann false available_ms 1561.67, duration_ms 1511.27, ends_ms 3184.05, failure 0.02, failure_cost_ms 111.12
           bob false available_ms 13400.50, duration_ms 9844.15, ends_ms 23355.77, failure 0.02, failure_cost_ms 111.12
        R23 nobody ADAPTIVE: no agent that is there can do cooking with what it needs
        R24 bob LOAD_BALANCED: of those with room it had the smallest part of its slots in use
           bob true idle_ms 500.00, load 0.00, priority 0.00, score 0.70
        R25 unknown_run
    "#]]
    .assert_eq(&said);
}

/// A workflow with a stage that divides the work, five that do it, and one that brings it together.
fn fan() -> WorkflowRecord {
    let mut builder = Definition::builder("fan").add_stage("split", "research", &[]);
    for n in 0..5 {
        builder = builder.add_stage(&format!("part-{n}"), "writing", &["split"]).with(|stage| {
            stage.estimate = Some(Estimate { duration_ms: Some(60_000), ..Estimate::default() });
        });
    }
    let parts: Vec<_> = (0..5).map(|n| format!("part-{n}")).collect();
    let parts: Vec<_> = parts.iter().map(String::as_str).collect();
    let definition = builder.add_stage("join", "editing", &parts).build().unwrap();
    WorkflowRecord::WorkflowRegistered(WorkflowRegistered { version: 1, definition: Arc::new(definition) })
}

#[test]
fn o4_o6_what_was_learned_is_exported_and_imported() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 9, 0, 0), registered("bob", "s", "research", 9, 0, 0)]);
    let lessons: Vec<_> =
        (0..8).flat_map(|_| [("ann", Outcome::Succeeded, 500), ("bob", Outcome::Succeeded, 2000)]).collect();
    practise(&mut world, 1, &lessons);
    practise(&mut world, 17, &[("bob", Outcome::Failed, 10)]);
    let page = |world: &World, after: Option<&Subject>| world.machine.machine().learning.page(after);
    let all = page(&world, None);
    assert!(!all.more && all.lessons.len() == 5, "{all:?}");
    for (nth, lesson) in all.lessons.iter().enumerate() {
        let rest = page(&world, Some(&lesson.of)).lessons;
        assert_eq!(rest, all.lessons[nth + 1..], "after {:?}", lesson.of);
    }
    // Another world begins where this one is.
    let mut other = World::new();
    let import = |world: &mut World, lessons: Vec<Lesson>| {
        let request = OptimizerRequest::ImportLearning(ImportLearning { lessons });
        world.machine.request(1, "learning.import", request, RequestContext::default(), world.now);
        world.settle();
    };
    import(&mut other, all.lessons.clone());
    let ours = serde_json::to_value(&world.machine.machine().learning.durations).unwrap();
    assert_eq!(serde_json::to_value(&other.machine.machine().learning.durations).unwrap(), ours);
    other.resource(vec![registered("ann", "s", "research", 9, 0, 0), registered("bob", "s", "research", 9, 0, 0)]);
    assert_eq!(placed(&mut other, 25, Strategy::Adaptive), ["ann"]);
    // What can not be read is refused as a whole.
    let before = other.machine.machine().clone();
    let mut lessons = all.lessons;
    lessons[1].known = Json::from_text("{\"score\":1}".to_owned()).unwrap();
    import(&mut other, lessons);
    assert_eq!(other.machine.machine(), &before);
    assert!(other.transcript.contains("lesson 1, of Agent"), "{}", other.transcript);
}

#[test]
fn o7_capacity_by_the_formula_and_by_what_was_learned() {
    let mut world = World::new();
    world.workflow(vec![fan()]);
    world.resource(vec![registered("ann", "s", "writing", 2, 0, 0)]);
    let plan = |world: &World, runs_per_hour, more: &[(&str, u32)]| {
        let more = more.iter().map(|(of, slots)| (of.parse().unwrap(), *slots)).collect();
        let workflow = "fan".parse().unwrap();
        let request = PlanCapacity { workflow, runs_per_hour, complexity: 2.0, utilization: 0.8, more };
        crate::capacity::plan(world.machine.machine(), &request).unwrap()
    };
    let calm = plan(&world, 6.0, &[]);
    // Seven stages, five side by side, twice as complex.
    assert_eq!(calm.formula.required, 70);
    let writing =
        |plan: &CapacityPlan| plan.agents.iter().find(|of| of.agent_type.as_str() == "writing").cloned().unwrap();
    let (of, busier) = (writing(&calm), writing(&plan(&world, 12.0, &[])));
    assert_eq!((of.stages, of.slots), (5, 2.0));
    assert!((busier.busy / of.busy - 2.0).abs() < 1e-9, "twice the runs, twice the work: {of:?} {busier:?}");
    // Ten minutes of work a run, and a little for attempts that fail; six runs an hour: one slot is always at work.
    assert!((0.9..1.6).contains(&of.busy) && of.needed >= 2.0, "{of:?}");
    let more = writing(&plan(&world, 12.0, &[("writing", 2)]));
    assert!((more.utilization.unwrap() - busier.utilization.unwrap() / 2.0).abs() < 1e-9);
    assert!(calm.advice.iter().any(|line| line.starts_with("research: ")), "{:?}", calm.advice);
    let nobody = PlanCapacity {
        workflow: "none".parse().unwrap(),
        runs_per_hour: 1.0,
        complexity: 1.0,
        utilization: 0.8,
        more: BTreeMap::new(),
    };
    assert_eq!(crate::capacity::plan(world.machine.machine(), &nobody).unwrap_err().code, Code::UnknownWorkflow);
    let full = PlanCapacity { workflow: "fan".parse().unwrap(), utilization: 0.0, ..nobody };
    assert_eq!(crate::capacity::plan(world.machine.machine(), &full).unwrap_err().code, Code::InvalidRequest);
}

#[test]
fn o10_o11_protocol_and_pattern_by_the_rules_of_the_sources() {
    let mut world = World::new();
    world.workflow(vec![fan()]);
    let mut said = String::new();
    let mut ask = |workflow: &str, agents, hierarchy, fault_tolerance| {
        let workflow = workflow.parse().unwrap();
        let request = Advise { workflow, agents: Some(agents), strict_order: None, hierarchy, fault_tolerance };
        let advice = crate::capacity::advise(world.machine.machine(), &request).unwrap();
        let (protocol, pattern) = (advice.protocol.choice, advice.pattern.choice);
        writeln!(said, "{agents}: {protocol:?}, {pattern:?}: {}", advice.pattern.reasons.join("; ")).unwrap();
    };
    ask("article", 4, None, None);
    ask("fan", 2, None, None);
    ask("fan", 200, None, None);
    ask("fan", 200, None, Some(true));
    ask("fan", 3, Some(false), None);
    ask("fan", 5, Some(false), None);
    ask("fan", 8, Some(false), Some(true));
    ask("fan", 200, Some(false), Some(true));
    ask("fan", 200, Some(false), None);
    expect![[r#"
        4: Asynchronous, PeerToPeer: stages need not run in one strict order; there is no natural hierarchy; 4 agents are not more than 100
        2: Synchronous, Hierarchical: stages need not run in one strict order; a stage divides the work, others do it: there is a natural hierarchy
        200: Broadcast, Hybrid(HierarchicalCentralized): stages need not run in one strict order; a stage divides the work, others do it: there is a natural hierarchy; 200 agents are too many for one head; each team has a head, and heads are peers
        200: Broadcast, Hybrid(PeerToPeerHierarchical): stages need not run in one strict order; a stage divides the work, others do it: there is a natural hierarchy; 200 agents are too many for one head; the loss of any agent must not matter: groups of peers, and heads between them
        3: Asynchronous, Centralized: stages need not run in one strict order; there is no natural hierarchy; 3 agents are not more than 100; so few are directed most simply by one
        5: Asynchronous, PeerToPeer: stages need not run in one strict order; there is no natural hierarchy; 5 agents are not more than 100
        8: Broadcast, PeerToPeer: stages need not run in one strict order; there is no natural hierarchy; the loss of any agent must not matter
        200: Broadcast, Swarm: stages need not run in one strict order; there is no natural hierarchy; the loss of any agent must not matter; 200 agents are more than 100
        200: Broadcast, Hybrid(CentralizedSwarm): stages need not run in one strict order; there is no natural hierarchy; 200 agents are more than 100
    "#]].assert_eq(&said);
}

#[test]
fn o9_work_leaves_a_lost_agent_at_once() {
    for strategy in Strategy::ALL {
        let mut world = World::new();
        world.strategy(strategy);
        world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
        world.ready(1, "research", 0, 0);
        world.ready(2, "research", 0, 0);
        world.grant();
        // What waits is bound to nobody: it goes to whoever comes.
        world.resource(vec![registered("bob", "s", "research", 2, 0, 0)]);
        world.wait(1000);
        let (first, second) = if world.leases.contains_key(&task(1, 1)) { (1, 2) } else { (2, 1) };
        assert_eq!(world.grant(), [(task(second, 1), "bob".to_owned())], "{strategy}");
        // Ann is lost, and with her what she had not finished: the next attempt is asked for in the same turn.
        world.resource(vec![left("ann")]);
        let lease = world.leases[&task(first, 1)];
        let lost = ended(task(first, 1), Some((lease, "ann")), Outcome::Lost, 0);
        let before = world.now;
        world.workflow(vec![lost, ready(task(first, 2), "research", 0, 0)]);
        assert_eq!(world.grant(), [(task(first, 2), "bob".to_owned())], "{strategy}");
        assert_eq!(world.now, before);
    }
}

#[test]
fn o12_figures_are_those_of_the_source() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 2, 0, 0), registered("bob", "s", "research", 2, 0, 0)]);
    practise(&mut world, 1, &[("ann", Outcome::Succeeded, 1000), ("bob", Outcome::Succeeded, 3000)]);
    practise(&mut world, 3, &[("bob", Outcome::Failed, 10)]);
    world.ready(4, "research", 0, 0);
    world.wait(500);
    world.grant();
    let figures = world.view().figures;
    assert_eq!((figures.total_coordinations, figures.active_coordinations, figures.throughput_per_hour), (3, 1, 2));
    assert_eq!(figures.average_coordination_ms, Some(2000.0));
    assert_eq!(figures.average_wait_ms, Some(125.0));
    assert_eq!((figures.resource_efficiency, figures.balance), (Some(0.25), Some(0.5)));
    assert!((figures.success_rate.unwrap() - 2.0 / 3.0).abs() < 1e-9);
    world.wait(59 * 60_000);
    assert_eq!(world.view().figures.throughput_per_hour, 2);
    world.wait(60_000);
    assert_eq!(world.view().figures.throughput_per_hour, 0);
}

#[test]
fn o12_how_long_a_task_waits_is_measured_up_to_its_lease() {
    let mut world = World::new();
    world.ready(1, "research", 0, 0);
    world.ready(2, "research", 0, 0);
    world.wait(1500);
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    // The resource-manager takes its time.
    world.wait(250);
    world.grant();
    assert_eq!(world.waited, ["LOAD_BALANCED 1.75"]);
    // What somebody else gave away was not placed.
    world.strategy(Strategy::RoundRobin);
    world.resource(vec![registered("bob", "s", "research", 1, 0, 0), assigned(task(2, 1), "ann", 0)]);
    assert_eq!(world.waited.len(), 1);
}

#[test]
fn o4_the_learning_rate_is_a_setting_that_comes_to_all_through_the_log() {
    let config = Config { learning_rate: 500_000, ..Config::default() };
    let mut world = World::with(config.clone());
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    world.ready(1, "research", 0, 0);
    world.grant();
    world.end(1, "ann", Outcome::Succeeded, 1000);
    // Half of the way from 0.5 to 1.
    assert_eq!((world.view().learning_rate, world.view().agents[0].score), (0.5, 0.75));
    assert_eq!(world.transcript.matches("learning_rate_changed").count(), 1);
    // Who leads next with the same setting has nothing to say; with another one it says so, and what was learned stays. What is no
    // rate becomes the least that is one.
    for (config, records, rate) in [
        (config, 1, 0.5),
        (Config::default(), 2, 0.1),
        (Config { learning_rate: 0, ..Config::default() }, 3, 0.000_001),
    ] {
        let mut next: Processor<Optimizer> = Processor::new(config);
        world.log.feed(&mut next, world.now);
        next.lead("j", world.now);
        world.log.settle(&mut next, world.now);
        let changes = world
            .log
            .messages
            .iter()
            .filter(|(_, text)| String::from_utf8_lossy(text).contains("learning_rate_changed"));
        assert_eq!(changes.count(), records);
        // Who reads the log learns the same, whatever it is set to.
        assert_eq!(next.machine().learning.score(&agent("ann")), 750_000);
        assert!((next.machine().learning.rate.part() - rate).abs() < 1e-12);
    }
}

/// Of a snapshot from before there was a setting.
#[test]
fn o4_what_was_learned_before_the_rate_was_a_setting_is_read() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    practise(&mut world, 1, &[("ann", Outcome::Succeeded, 1000); 3]);
    let mut text = serde_json::to_value(world.machine.machine()).unwrap();
    text["learning"].as_object_mut().unwrap().remove("rate").unwrap();
    assert_eq!(&serde_json::from_value::<Optimizer>(text).unwrap(), world.machine.machine());
}

#[test]
fn o3_an_agent_of_which_nothing_is_known_is_tried() {
    for strategy in [Strategy::Historical, Strategy::Adaptive] {
        let mut world = World::new();
        world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
        // Ann fails now and then.
        let mut lessons = [("ann", Outcome::Succeeded, 1000); 20];
        (lessons[4].1, lessons[14].1) = (Outcome::Failed, Outcome::Failed);
        practise(&mut world, 1, &lessons);
        world.resource(vec![registered("bob", "s", "research", 1, 0, 0)]);
        let mut given = Vec::new();
        for n in 21..=30 {
            for agent in placed(&mut world, n, strategy) {
                let outcome = if agent == "bob" { Outcome::Failed } else { Outcome::Succeeded };
                world.wait(1000);
                world.end(n, &agent, outcome, 1000);
                given.push(agent);
            }
        }
        // Bob is tried at once, and not again soon, as he fails.
        assert_eq!(given[0], "bob", "{strategy:?}");
        assert_eq!(
            (given.len(), given.iter().filter(|agent| *agent == "bob").count()),
            (10, 1),
            "{strategy:?}: {given:?}"
        );
    }
}

#[test]
fn o12_balance_is_shown_when_it_changes() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 1), registered("bob", "s", "research", 2, 0, 0)]);
    world.ready(1, "research", 0, 0);
    world.grant();
    world.ready(2, "research", 0, 0);
    world.grant();
    // Ann has all of hers in use and bob half of his: 1.5² / (2 · 1.25).
    assert_eq!(world.measured("baton_load_balance_ratio"), [1.0, 0.5, 0.9]);
    assert_eq!(world.view().figures.balance, Some(0.9));
    world.resource(vec![left("bob")]);
    world.end(1, "ann", Outcome::Succeeded, 10);
    assert_eq!(world.measured("baton_load_balance_ratio"), [1.0]);
    assert_eq!(world.view().figures.balance, None);
}

#[test]
fn o12_regret_is_what_the_best_agent_with_room_would_have_saved_in_hindsight() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 1), registered("bob", "s", "research", 1, 0, 0)]);
    let regret = |world: &mut World, n: u64, agent: &str, outcome, ms| {
        world.ready(n, "research", 0, 0);
        assert_eq!(world.grant()[0].1, agent);
        world.end(n, agent, outcome, ms);
        world.measured("baton_placement_regret_ratio")
    };
    // Nothing is known of either.
    assert_eq!(regret(&mut world, 1, "ann", Outcome::Succeeded, 4000), [0.0]);
    // Bob is all that has room, twice as fast, and not to be regretted.
    world.ready(20, "research", 0, 0);
    world.grant();
    for n in 2..8 {
        assert_eq!(regret(&mut world, n, "bob", Outcome::Succeeded, 2000), [0.0]);
    }
    world.end(20, "ann", Outcome::Cancelled, 1);
    assert_eq!(world.measured("baton_placement_regret_ratio"), [0.0_f64; 0]);
    // Ann is preferred, though it is known by now that she is slower.
    let slower = regret(&mut world, 8, "ann", Outcome::Succeeded, 4000);
    assert!(slower.len() == 1 && (0.2..0.5).contains(&slower[0]), "{slower:?}");
    // She fails where bob had room, and where he had none.
    assert_eq!(regret(&mut world, 9, "ann", Outcome::Failed, 10), [1.0]);
    world.resource(vec![left("bob")]);
    assert_eq!(regret(&mut world, 10, "ann", Outcome::Failed, 10), [0.0]);
    // The same is what is looked at under ADAPTIVE.
    world.resource(vec![registered("bob", "t", "research", 1, 0, 0)]);
    world.strategy(Strategy::Adaptive);
    assert_eq!(regret(&mut world, 11, "bob", Outcome::Failed, 10), [1.0]);
}

#[test]
fn o12_of_many_agents_it_is_kept_for_some_tasks_who_had_room() {
    let mut sampling = crate::regret::Sampling::default();
    assert_eq!((0..8).filter(|_| sampling.takes(16)).count(), 8);
    // Who has four times as many is looked at in one of four placements.
    assert_eq!((0..80).filter(|_| sampling.takes(64)).count(), 20);
}

#[test]
fn o4_scores_move_by_a_tenth_and_cancelled_does_not_count() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    let mut said = String::new();
    for (n, outcome, duration_ms) in [
        (1, Outcome::Succeeded, 1000),
        (2, Outcome::Succeeded, 2000),
        (3, Outcome::Cancelled, 10),
        (4, Outcome::Failed, 10),
        (5, Outcome::Lost, 10),
        (6, Outcome::TimedOut, 10),
        (7, Outcome::Succeeded, 500),
    ] {
        world.ready(n, "research", 0, 0);
        world.grant();
        world.end(n, "ann", outcome, duration_ms);
        let learned = &world.view().agents[0];
        let (score, yes, no) = (learned.score, learned.succeeded, learned.failed);
        writeln!(said, "{outcome} in {duration_ms}: score {score}, {yes} succeeded, {no} failed").unwrap();
    }
    // What waited too long was nobody's fault.
    world.resource(vec![left("ann")]);
    world.ready(8, "research", 0, 0);
    world.workflow(vec![ended(task(8, 1), None, Outcome::TimedOut, 0)]);
    // It survives the agent's absence.
    world.resource(vec![registered("ann", "s2", "research", 1, 0, 0)]);
    writeln!(said, "back: score {}", world.view().agents[0].score).unwrap();
    expect![[r#"
        succeeded in 1000: score 0.55, 1 succeeded, 0 failed
        succeeded in 2000: score 0.58, 2 succeeded, 0 failed
        cancelled in 10: score 0.58, 2 succeeded, 0 failed
        failed in 10: score 0.522, 2 succeeded, 1 failed
        lost in 10: score 0.4698, 2 succeeded, 2 failed
        timed_out in 10: score 0.42282, 2 succeeded, 3 failed
        succeeded in 500: score 0.480538, 3 succeeded, 3 failed
        back: score 0.480538
    "#]]
    .assert_eq(&said);
}

#[test]
fn o6_durations_are_estimated_from_those_that_succeeded() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    let mut said = String::new();
    for (n, outcome, duration_ms) in [
        (1, Outcome::Succeeded, 1000),
        (2, Outcome::Failed, 9000),
        (3, Outcome::Succeeded, 2000),
        (4, Outcome::Succeeded, 15),
    ] {
        world.ready(n, "research", 0, 0);
        world.grant();
        world.end(n, "ann", outcome, duration_ms);
        let stages = world.view().stages;
        writeln!(said, "{outcome} in {duration_ms}: {}", serde_json::to_string(&stages).unwrap()).unwrap();
    }
    world.resource(vec![left("ann")]);
    world.ready(5, "research", 0, 0);
    writeln!(said, "{:?}", world.view().queue[0].estimate_ms).unwrap();
    expect![[r#"
        succeeded in 1000: [{"workflow":"article","stage":"work","estimate_ms":1000,"samples":1}]
        failed in 9000: [{"workflow":"article","stage":"work","estimate_ms":1000,"samples":1}]
        succeeded in 2000: [{"workflow":"article","stage":"work","estimate_ms":1100,"samples":2}]
        succeeded in 15: [{"workflow":"article","stage":"work","estimate_ms":992,"samples":3}]
        Some(992)
    "#]]
    .assert_eq(&said);
}

#[test]
fn what_is_asked_for_is_not_promised_twice() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 2, 4, 0)]);
    world.transcript.clear();
    world.ready(1, "research", 0, 3);
    // No cpu is left for this one, though the log says that ann is idle; the next two share one slot.
    world.ready(2, "research", 0, 3);
    world.ready(3, "research", 0, 0);
    world.ready(4, "common", 0, 0);
    world.grant();
    world.wait(10);
    world.end(1, "ann", Outcome::Succeeded, 10);
    world.grant();
    world.check(&expect![[r#"
        +0 ask lease.assign seen 3: R1/1 -> ann
        gauge baton_run_queue 1
        gauge baton_run_queue 2
        +0 ask lease.assign seen 7: R3/1 -> ann
        gauge baton_run_queue 3
        gauge baton_run_queue 4
        span Internal place research +0..+0 baton.run.id=R1 baton.stage.name=work baton.agent.id=ann baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 3
        span Internal place research +0..+0 baton.run.id=R3 baton.stage.name=work baton.agent.id=ann baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 2
        +10 ask lease.assign seen 11: R2/1 -> ann
        span Internal place research +0..+10 baton.run.id=R2 baton.stage.name=work baton.agent.id=ann baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 1
    "#]]);
}

#[test]
fn o9_the_next_attempt_goes_to_another_agent_if_there_is_one() {
    let mut world = World::new();
    // Ann is always to be preferred, and never able.
    world.resource(vec![registered("ann", "s", "research", 9, 0, 9), registered("bob", "s", "research", 1, 0, 0)]);
    for (n, strategy) in [(1, Strategy::LoadBalanced), (2, Strategy::RoundRobin)] {
        world.strategy(strategy);
        world.ready(n, "research", 0, 0);
        assert_eq!(world.grant(), [(task(n, 1), "ann".to_owned())]);
        let lease = world.leases[&task(n, 1)];
        world.resource(vec![declined(task(n, 1), lease, "ann")]);
        world.workflow(vec![
            ended(task(n, 1), Some((lease, "ann")), Outcome::Lost, 0),
            ready(task(n, 2), "research", 0, 0),
        ]);
        assert_eq!(world.grant(), [(task(n, 2), "bob".to_owned())]);
        let lease = world.leases[&task(n, 2)];
        let failed = ended(task(n, 2), Some((lease, "bob")), Outcome::Failed, 0);
        world.workflow(vec![failed, ready(task(n, 3), "research", 0, 0)]);
        // Ann may have it again: she was not the last to fail.
        assert_eq!(world.grant(), [(task(n, 3), "ann".to_owned())]);
        world.workflow(vec![finished(n)]);
    }
    world.resource(vec![left("bob")]);
    world.ready(3, "research", 0, 0);
    world.grant();
    let lease = world.leases[&task(3, 1)];
    let failed = ended(task(3, 1), Some((lease, "ann")), Outcome::Failed, 0);
    world.workflow(vec![failed, ready(task(3, 2), "research", 0, 0)]);
    assert_eq!(world.grant(), [(task(3, 2), "ann".to_owned())]);
}

#[test]
fn a_refused_task_goes_elsewhere_or_waits_a_little() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 1), registered("bob", "s", "research", 1, 0, 0)]);
    world.transcript.clear();
    world.ready(1, "research", 0, 0);
    world.refuse(Code::NoCapacity);
    world.refuse(Code::UnknownAgent);
    world.wait(300);
    world.refuse(Code::NotReady);
    world.wait(300);
    // The log tells of a lease before the answer does.
    let (tag, request) = world.asked.pop_first().unwrap();
    world.resource(vec![assigned(request.placements[0].task.clone(), "ann", 0)]);
    world.machine.answered(tag, answer(&AssignAnswer { granted: 1, refused: vec![] }), world.now);
    world.settle();
    world.wait(5000);
    world.check(&expect![[r#"
        +0 ask lease.assign seen 3: R1/1 -> ann
        gauge baton_run_queue 1
        +0 ask lease.assign seen 3: R1/1 -> bob
        +200 ask lease.assign seen 3: R1/1 -> ann
        +500 ask lease.assign seen 3: R1/1 -> ann
        span Internal place research +0..+500 baton.run.id=R1 baton.stage.name=work baton.agent.id=ann baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 0
    "#]]);
}

#[test]
fn a_refusal_holds_for_one_task_and_one_agent() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    world.ready(1, "research", 0, 0);
    world.refuse(Code::NoCapacity);
    world.transcript.clear();
    // The first in the queue may not go to ann now; another one may.
    world.ready(2, "research", 0, 0);
    // It ends before anybody has it: the slot is free at once.
    world.workflow(vec![ended(task(2, 1), None, Outcome::Cancelled, 0)]);
    world.ready(3, "research", 0, 0);
    world.workflow(vec![finished(3)]);
    world.ready(4, "research", 0, 0);
    world.check(&expect![[r#"
        +0 ask lease.assign seen 5: R2/1 -> ann
        gauge baton_run_queue 2
        gauge baton_run_queue 1
        +0 ask lease.assign seen 8: R3/1 -> ann
        gauge baton_run_queue 2
        gauge baton_run_queue 1
        +0 ask lease.assign seen 11: R4/1 -> ann
        gauge baton_run_queue 2
    "#]]);
}

#[test]
fn w19_tasks_of_a_paused_run_are_out_of_the_queue_and_come_back_in_their_place() {
    let mut world = World::new();
    for n in 1..=4 {
        world.ready(n, "research", 0, 0);
        world.wait(10);
    }
    world.workflow(vec![paused(1), paused(3)]);
    assert_eq!(world.order(), "2 4");
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    assert_eq!(world.grant(), [(task(2, 1), "ann".to_owned())]);
    // One that ends in the pause does not come back, nor one that was leased all the same.
    world.workflow(vec![ended(task(3, 1), None, Outcome::TimedOut, 0), resumed(3)]);
    assert_eq!(world.order(), "4");
    world.workflow(vec![resumed(1)]);
    assert_eq!(world.order(), "1 4");
    world.end(2, "ann", Outcome::Succeeded, 10);
    assert_eq!(world.grant(), [(task(1, 1), "ann".to_owned())]);
    world.workflow(vec![paused(4)]);
    world.end(1, "ann", Outcome::Succeeded, 10);
    assert!(world.grant().is_empty());
    world.resource(vec![assigned(task(4, 1), "ann", 0)]);
    world.workflow(vec![resumed(4)]);
    assert_eq!((world.order().as_str(), world.grant().len()), ("", 0));
    world.end(4, "ann", Outcome::Succeeded, 10);
}

#[test]
fn stale_records_do_nothing() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0), left("bob")]);
    world.ready(1, "research", 0, 0);
    world.grant();
    let lease = world.leases[&task(1, 1)];
    let lost = || ended(task(1, 1), Some((lease, "ann")), Outcome::Lost, 0);
    world.workflow(vec![lost(), ready(task(1, 2), "research", 0, 0)]);
    world.grant();
    let before = world.machine.machine().clone();
    world.workflow(vec![lost(), ready(task(1, 2), "research", 0, 0), started(1), ready(task(9, 1), "research", 0, 0)]);
    world.workflow(vec![ended(task(9, 1), None, Outcome::TimedOut, 0), finished(9)]);
    world.resource(vec![
        assigned(task(1, 1), "ann", 0),
        assigned(task(1, 2), "bob", 0),
        declined(task(1, 1), lease, "ann"),
        left("bob"),
    ]);
    assert_eq!(world.machine.machine(), &before);
    // What is left of a run goes with it.
    world.workflow(vec![finished(1)]);
    assert!(world.machine.machine().fleet.is_present(&agent("ann")));
}

#[test]
fn what_is_not_answered_is_asked_again() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    world.transcript.clear();
    world.ready(1, "research", 0, 0);
    let (tag, _) = world.asked.pop_first().unwrap();
    world.machine.answered(tag, Err(Rejection::new(Code::Unavailable, "nobody leads")), world.now);
    world.settle();
    world.wait(400);
    // This one gets no answer at all, and a late one means nothing.
    let (late, _) = world.asked.pop_first().unwrap();
    world.wait(2500);
    world.machine.answered(late, Err(Rejection::new(Code::Unavailable, "late")), world.now);
    let (tag, _) = world.asked.pop_first().unwrap();
    world.machine.answered(tag, Ok(Json::null()), world.now);
    world.settle();
    world.wait(200);
    world.grant();
    world.check(&expect![[r#"
        +0 ask lease.assign seen 3: R1/1 -> ann
        gauge baton_run_queue 1
        +150 ask lease.assign seen 3: R1/1 -> ann
        +2150 ask lease.assign seen 3: R1/1 -> ann
        +3050 ask lease.assign seen 3: R1/1 -> ann
        span Internal place research +0..+3050 baton.run.id=R1 baton.stage.name=work baton.agent.id=ann baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 0
    "#]]);
}

#[test]
fn a_task_that_ends_before_its_lease_is_read_holds_nothing() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    world.ready(1, "research", 0, 0);
    // It waited too long for the workflow-manager, just as it was granted.
    world.workflow(vec![ended(task(1, 1), None, Outcome::TimedOut, 0)]);
    world.grant();
    world.transcript.clear();
    // Declined, and the next attempt.
    world.workflow(vec![ready(task(1, 2), "research", 0, 0)]);
    world.grant();
    let lease = world.leases[&task(1, 2)];
    world.resource(vec![declined(task(1, 2), lease, "ann")]);
    world.ready(2, "research", 0, 0);
    world.grant();
    world
        .workflow(vec![ended(task(1, 2), Some((lease, "ann")), Outcome::Lost, 0), ready(task(1, 3), "research", 0, 0)]);
    // A new session holds nothing of the old one's.
    world.resource(vec![registered("ann", "s2", "research", 1, 0, 0)]);
    world.grant();
    world.check(&expect![[r#"
        +0 ask lease.assign seen 5: R1/2 -> ann
        gauge baton_run_queue 1
        span Internal place research +0..+0 baton.run.id=R1 baton.stage.name=work baton.agent.id=ann baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 0
        +0 ask lease.assign seen 7: R2/1 -> ann
        gauge baton_run_queue 1
        span Internal place research +0..+0 baton.run.id=R2 baton.stage.name=work baton.agent.id=ann baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 0
        gauge baton_run_queue 1
        +0 ask lease.assign seen 9: R1/3 -> ann
        span Internal place research +0..+0 baton.run.id=R1 baton.stage.name=work baton.agent.id=ann baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 0
    "#]]);
}

#[test]
fn a_long_queue_and_a_large_fleet() {
    // Ten thousand tasks and as many agents: what is quadratic anywhere does not come back from this.
    let mut world = World::new();
    let agents = (0..10_000).map(|n| registered(&format!("a{n}"), "s", "research", 2, 8, n % 5));
    world.log.append(&mut world.resource_next, world.now, agents.collect());
    let mut records = Vec::new();
    for n in 1..=30_000 {
        let (priority, cpu) = ((n % 3) as i32, (n % 2) as u32);
        records.extend([started(n), ready(task(n, 1), "research", priority, cpu)]);
    }
    world.log.append(&mut world.workflow_next, world.now, records);
    let released = world.log.settle(&mut world.machine, world.now);
    assert!(released.events.is_empty());
    let mut placed = BTreeMap::new();
    for effect in world.machine.immediate() {
        let Effect::Ask { body, .. } = effect else { continue };
        assert!(body.size() < 250_000);
        for placement in body.read::<AssignTasks>().unwrap().placements {
            *placed.entry(placement.agent).or_insert(0) += 1;
        }
    }
    assert_eq!(placed.len(), 10_000);
    assert!(placed.values().all(|count| *count == 2));
    assert_eq!(placed[&agent("a0")], 2);
    // With all slots promised, a further task costs next to nothing.
    for n in 30_001..30_051 {
        let records = vec![started(n), ready(task(n, 1), "research", 0, 1)];
        world.log.append(&mut world.workflow_next, world.now, records);
        world.log.settle(&mut world.machine, world.now);
    }
    assert!(!world.machine.immediate().iter().any(|effect| matches!(effect, Effect::Ask { .. })));
}

#[test]
fn r3_what_was_refused_for_want_of_a_pool_waits_until_the_pool_is_touched() {
    let pool = |name: &str, size: u32| {
        let pool = Pool::new(PoolKind::Held, size);
        ResourceRecord::PoolSet(PoolSet { name: name.parse().unwrap(), pool })
    };
    let released = |name: &str| {
        let pools = vec![name.parse().unwrap()];
        let reason = ReleaseReason::Released;
        ResourceRecord::Released(Released { lease: LeaseId(1), pools, reason, used: Resources::new() })
    };
    let mut world = World::new();
    // Nobody has a cpu: it is the pool's.
    world.resource(vec![registered("ann", "s", "research", 9, 0, 0), pool("cpu", 1), pool("other", 1)]);
    world.ready(1, "research", 0, 1);
    world.asked.clear();
    let of_pool = Assigned {
        task: task(1, 1),
        agent: agent("ann"),
        resources: [].into(),
        pools: super::resources(1),
        beside: None,
    };
    world.resource(vec![ResourceRecord::Assigned(of_pool)]);
    world.ready(2, "research", 0, 1);
    world.refuse(Code::PoolExhausted);
    world.transcript.clear();
    // Others go on; this one is not asked for again, nor is another one that needs the same.
    world.ready(3, "research", 0, 0);
    world.grant();
    world.ready(4, "research", 0, 1);
    world.resource(vec![released("other")]);
    world.wait(1000);
    world.resource(vec![released("cpu")]);
    world.refuse(Code::PoolExhausted);
    world.end(1, "ann", Outcome::Failed, 5);
    world.refuse(Code::PoolExhausted);
    // Nobody is known to have freed anything: it is asked for again all the same, after a while.
    world.wait(2500);
    world.refuse(Code::PoolExhausted);
    // Without the pool it would be an agent's own, and nobody has any.
    world.resource(vec![ResourceRecord::PoolRemoved(PoolRemoved { name: "cpu".parse().unwrap() })]);
    world.resource(vec![registered("bob", "s", "research", 1, 1, 0)]);
    world.check(&expect![[r#"
        +0 ask lease.assign seen 7: R3/1 -> ann
        gauge baton_run_queue 2
        span Internal place research +0..+0 baton.run.id=R3 baton.stage.name=work baton.agent.id=ann baton.strategy=LOAD_BALANCED
        gauge baton_run_queue 1
        gauge baton_run_queue 2
        +1000 ask lease.assign seen 9: R2/1 -> ann, R4/1 -> ann
        +1000 ask lease.assign seen 11: R2/1 -> ann, R4/1 -> ann
        +3000 ask lease.assign seen 11: R2/1 -> ann, R4/1 -> ann
        +3500 ask lease.assign seen 11: R2/1 -> bob
    "#]]);
}
