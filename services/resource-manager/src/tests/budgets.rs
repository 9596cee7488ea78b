//! Accounts: what is set aside, spent and refused, who is asked, who gets how much of what is left.

use std::collections::BTreeMap;

use baton_protocol::record::{Acquired, PoolSet, ReleaseReason, Released, Stamp};
use baton_protocol::{Amount, Budget, Holder, Pool, ResourceName, Take, Takes};
use proptest::test_runner::Config as Cases;

use super::*;
use crate::pool::Pools;

impl World {
    fn account(&mut self, name: &str, size: &str, parent: Option<&str>, at_limit: &str) {
        let pool = json!({
            "kind": "consumed", "size": size, "measure": "cost", "currency": "EUR", "parent": parent, "at_limit": at_limit
        });
        self.ask("pool.set", "", &json!({ "name": name, "pool": pool }));
    }

    /// What an account has: set aside, spent, left, too much.
    fn books(&mut self, name: &str) -> [String; 4] {
        self.transcript.clear();
        self.ask("pool.list", "", &json!({ "name": name }));
        let said = std::mem::take(&mut self.transcript);
        let answer: serde_json::Value = serde_json::from_str(said.splitn(3, ' ').nth(2).unwrap()).unwrap();
        let pool = &answer["pools"][0];
        ["in_use", "spent", "available", "overrun"].map(|key| match &pool[key] {
            serde_json::Value::Null => "0".to_owned(),
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    }

    fn only(&mut self, wanted: &[&str]) -> Vec<String> {
        let transcript = std::mem::take(&mut self.transcript);
        let wanted = |line: &&str| wanted.iter().any(|wanted| line.contains(wanted));
        transcript.lines().filter(wanted).map(str::to_owned).collect()
    }
}

fn with_budget(n: u64, budget: serde_json::Value) -> WorkflowRecord {
    let WorkflowRecord::RunStarted(record) = started(n) else { panic!("it is a start") };
    let budget: Budget = serde_json::from_value(budget).unwrap();
    budget.check().unwrap();
    WorkflowRecord::RunStarted(RunStarted { budget: Some(budget), ..record })
}

/// An attempt that is paid from its run's account, as the workflow-manager says it.
fn paid(n: u64, attempt: u32, expected: &str) -> WorkflowRecord {
    ready(task(n, "research", attempt), &format!(r#"{{"run:{}": "{expected}"}}"#, run(n)))
}

fn cost(n: u64, attempt: u32, lease: u64, who: &str, outcome: Outcome, cost: &str) -> WorkflowRecord {
    let WorkflowRecord::StageEnded(record) = ended(task(n, "research", attempt), Some((lease, who)), outcome) else {
        panic!("it is an end")
    };
    let (cost, usage) = (cost.parse().unwrap(), Usage { tokens_in: 10, tokens_out: 5 });
    WorkflowRecord::StageEnded(StageEnded { cost, usage, model: Some("small".to_owned()), ..record })
}

#[test]
fn r8_money_is_set_aside_settled_and_void_up_the_whole_line() {
    let mut world = World::new();
    world.register("ann", "s", 4);
    world.account("team", "10", None, "wait");
    world.account("agent:ann", "1", Some("team"), "wait");
    world.workflow(vec![with_budget(1, json!({ "limit": "2.50", "of": "team" })), paid(1, 1, "0.5")]);
    world.transcript.clear();
    world.assign(&[(task(1, "research", 1), "ann")]);
    // Nobody said what an attempt at this stage costs, so that of its agent's own account as good as nothing is set aside.
    assert!(
        world.transcript.contains(r#""pools":{"agent:ann":"0.000000001","run:RUN1":"0.5"}"#),
        "{}",
        world.transcript
    );
    let account = format!("run:{}", run(1));
    assert_eq!(world.books(&account), ["0.5", "0", "2", "0"]);
    // What it costs, it costs its team once.
    assert_eq!(world.books("team"), ["0.5", "0", "9.5", "0"]);
    world.workflow(vec![cost(1, 1, 4, "ann", Outcome::Failed, "0.30"), paid(1, 2, "0.5")]);
    assert_eq!(world.books(&account), ["0", "0.3", "2.2", "0"]);
    assert_eq!(world.books("agent:ann"), ["0", "0.3", "0.7", "0"]);
    assert_eq!(world.books("team"), ["0", "0.3", "9.7", "0"]);
    // An attempt that is lost costs nothing, for nobody knows what it cost.
    world.assign(&[(task(1, "research", 2), "ann")]);
    world.workflow(vec![ended(task(1, "research", 2), Some((5, "ann")), Outcome::TimedOut), paid(1, 3, "0.5")]);
    assert_eq!(world.books(&account), ["0", "0.3", "2.2", "0"]);
    // More than was set aside is spent as far as there is as much, and noted beyond.
    world.assign(&[(task(1, "research", 3), "ann")]);
    world.workflow(vec![cost(1, 3, 6, "ann", Outcome::Succeeded, "2.75")]);
    assert_eq!(world.books(&account), ["0", "2.5", "0", "0.55"]);
    assert_eq!(world.books("agent:ann"), ["0", "1", "0", "2.05"]);
    assert_eq!(world.books("team"), ["0", "2.5", "7.5", "0"]);
    // The account goes with its run; what was spent stays spent of the team.
    world.workflow(vec![finished(1)]);
    world.ask("pool.list", "", &json!({ "name": account }));
    assert!(world.transcript.contains("unknown_resource"), "{}", world.transcript);
    assert_eq!(world.books("team"), ["0", "2.5", "7.5", "0"]);
    // An agent that can not be paid is given nothing; another one is.
    world.register("bob", "s", 1);
    world.workflow(vec![started(2), ready(task(2, "research", 1), "{}")]);
    world.transcript.clear();
    world.assign(&[(task(2, "research", 1), "ann")]);
    let lines = world.only(&["no_capacity"]);
    assert!(lines[0].contains("agent ann can not be paid") && lines[0].contains("retry_after_ms"), "{lines:?}");
    world.assign(&[(task(2, "research", 1), "bob")]);
    assert_eq!(world.only(&["assigned"]).len(), 1);
}

#[test]
fn r8_at_its_limit_an_account_lets_wait_or_fails_or_asks() {
    let mut world = World::new();
    world.register("ann", "s", 9);
    let run_of = |n, at_limit: &str| with_budget(n, json!({ "limit": 1, "currency": "EUR", "at_limit": at_limit }));
    for (n, at_limit) in [(1, "wait"), (2, "fail"), (3, "ask")] {
        world.workflow(vec![run_of(n, at_limit), paid(n, 1, "0.6")]);
        world.assign(&[(task(n, "research", 1), "ann")]);
    }
    world.transcript.clear();
    // Another task of each: while more may come back than it needs, all wait.
    for n in 1..=3 {
        let WorkflowRecord::StageReady(record) = paid(n, 1, "0.6") else { panic!("it is ready") };
        let task = task(n, "writing", 1);
        world.workflow(vec![WorkflowRecord::StageReady(StageReady {
            task: task.clone(),
            agent_type: record.agent_type.clone(),
            ..record
        })]);
        world.assign(&[(task, "ann")]);
    }
    assert_eq!(world.only(&["budget_refused", "approval_asked"]), Vec::<String>::new());
    for (n, lease) in [(1, 2), (2, 3), (3, 4)] {
        world.workflow(vec![cost(n, 1, lease, "ann", Outcome::Succeeded, "0.5")]);
        world.assign(&[(task(n, "writing", 1), "ann")]);
        world.assign(&[(task(n, "writing", 1), "ann")]);
    }
    let lines = world.only(&["budget_refused", "approval_asked", "not_ready"]);
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert!(
        lines[0].contains(r#""task":"RUN2/writing/1","reason":"the budget is used up: 0.6 is wanted of account"#),
        "{lines:#?}"
    );
    assert!(lines[1].contains("not_ready") && lines[1].contains("0.5 spent"), "{lines:#?}");
    assert!(lines[2].contains("not_ready") && lines[2].contains("not paid for"), "{lines:#?}");
    assert!(lines[3].contains(r#""wanted":"0.6","task":"RUN3/writing/1""#), "{lines:#?}");
    // Somebody gives it more, though not enough; then somebody says no.
    let account = format!("run:{}", run(3));
    world.ask("budget.approve", "", &json!({ "name": account, "amount": "0.05" }));
    world.assign(&[(task(3, "writing", 1), "ann")]);
    world.ask("pool.list", "", &json!({ "name": account }));
    let shown = world.only(&["answer"]).pop().unwrap();
    assert!(shown.contains(r#""asked":{"wanted":"0.6","task":"RUN3/writing/1","since":1000000}"#), "{shown}");
    world.ask("budget.deny", "", &json!({ "name": account, "reason": "enough" }));
    world.ask("budget.deny", "", &json!({ "name": account }));
    let lines = world.only(&["budget_refused", "refused "]);
    assert!(lines[0].contains("somebody said no: enough"), "{lines:?}");
    assert!(lines[1].contains("nobody asks for more of it"), "{lines:?}");
    // What was enough goes on.
    world.ask("budget.approve", "", &json!({ "name": format!("run:{}", run(1)), "amount": "0.1" }));
    world.transcript.clear();
    world.assign(&[(task(1, "writing", 1), "ann")]);
    assert_eq!(world.only(&["\"assigned\""]).len(), 1);
}

#[test]
fn r8_a_task_that_goes_without_is_asked_for_nowhere_any_more() {
    let mut world = World::new();
    world.register("ann", "s", 1);
    world.account("team", "1", None, "ask");
    world.account("part", "4", Some("team"), "fail");
    world.workflow(vec![started(1), ready(task(1, "research", 1), r#"{"part": "2"}"#)]);
    world.transcript.clear();
    world.assign(&[(task(1, "research", 1), "ann")]);
    assert_eq!(world.only(&["approval_asked"]).len(), 1);
    // Meanwhile the part has too little itself, and says no at once.
    world.account("part", "1", Some("team"), "fail");
    world.assign(&[(task(1, "research", 1), "ann")]);
    let lines = world.only(&["budget_refused"]);
    assert!(lines.len() == 1 && lines[0].contains(r#""account":"part""#), "{lines:?}");
    world.ask("budget.deny", "", &json!({ "name": "team" }));
    let lines = world.only(&["budget_refused", "refused "]);
    assert!(lines.len() == 1 && lines[0].contains("nobody asks for more of it"), "{lines:?}");
}

#[test]
fn r8_a_budget_that_can_not_be_fails_its_tasks() {
    let mut world = World::new();
    world.register("ann", "s", 9);
    world.account("team", "10", None, "wait");
    world.ask("pool.set", "", &json!({ "name": "tokens", "pool": { "kind": "consumed", "size": 9 } }));
    let wrong = [
        (1, json!({ "limit": 1, "of": "teem" }), "there is no account teem"),
        (2, json!({ "limit": 1, "of": "tokens" }), "pool tokens is no account"),
        (3, json!({ "limit": 1, "currency": "USD" }), "its budget is in USD, and accounts are in EUR here"),
    ];
    for (n, budget, says) in wrong {
        world.workflow(vec![with_budget(n, budget), paid(n, 1, "0.1")]);
        world.assign(&[(task(n, "research", 1), "ann")]);
        let lines = world.only(&["budget_refused"]);
        assert!(lines.len() == 1 && lines[0].contains(says), "{lines:?}");
    }
    // Names and parents that mean something are not anybody's.
    let other = json!({ "kind": "consumed", "size": 1, "measure": "cost", "currency": "USD" });
    world.ask("pool.set", "", &json!({ "name": "other", "pool": other }));
    let of_run = json!({ "kind": "consumed", "size": 1, "measure": "cost", "currency": "EUR" });
    world.ask("pool.set", "", &json!({ "name": "run:a", "pool": of_run }));
    world.workflow(vec![with_budget(4, json!({ "limit": 1, "of": "team" }))]);
    let account = format!("run:{}", run(4));
    world.ask("pool.remove", "", &json!({ "name": account }));
    world.ask("pool.remove", "", &json!({ "name": "team" }));
    world.ask("lease.acquire", "", &json!({ "id": "a", "take": { &account: 1 } }));
    let lines = world.only(&["refused "]);
    for (line, says) in lines.iter().zip([
        "accounts are in EUR here",
        "comes and goes with the run",
        "is there until its run is over",
        "others are a part of it",
        "for the tasks of its run alone",
    ]) {
        assert!(line.contains(says), "{line}");
    }
    assert_eq!(lines.len(), 5, "{lines:?}");
}

#[test]
fn r15_a_running_task_is_given_more_money_or_none() {
    let mut world = World::new();
    world.register("ann", "s", 2);
    world.workflow(vec![with_budget(1, json!({ "limit": 1, "currency": "EUR" })), paid(1, 1, "0.4")]);
    world.assign(&[(task(1, "research", 1), "ann")]);
    let account = format!("run:{}", run(1));
    let more = |id: &str, amount: &str| json!({ "id": id, "take": { &account: amount }, "under": 2 });
    world.transcript.clear();
    world.agent("ann", "acquire", &more("a", "0.5"));
    world.agent("ann", "acquire", &more("b", "0.2"));
    let lines = world.only(&["answer", "refused "]);
    assert!(lines[0].contains("granted") && lines[1].contains("0.2 are wanted"), "{lines:?}");
    assert_eq!(world.books(&account), ["0.9", "0", "0.1", "0"]);
    // What was set aside for it besides is there for what it cost.
    world.workflow(vec![cost(1, 1, 2, "ann", Outcome::Succeeded, "0.95")]);
    assert_eq!(world.books(&account), ["0", "0.95", "0.05", "0"]);
}

#[test]
fn r9_r10_what_is_left_is_shared_out_by_priority_and_by_workload() {
    let mut world = World::new();
    // The agents of the coordination document, with its priorities.
    for (id, priority) in [("research", 7), ("analysis", 5), ("summary", 3)] {
        let body = json!({ "session": "s", "agent_type": "research", "slots": 9, "priority": priority });
        world.agent(id, "register", &body);
    }
    world.account("pool", "150", None, "wait");
    for id in ["research", "analysis", "summary"] {
        world.account(&format!("agent:{id}"), "0", Some("pool"), "wait");
    }
    world.ask("pool.share", "", &json!({ "name": "pool", "by": { "priority": {} } }));
    let left = |world: &mut World| {
        ["research", "analysis", "summary"].map(|id| world.books(&format!("agent:{id}"))[2].clone())
    };
    assert_eq!(left(&mut world), ["70", "50", "30"]);
    // One has a task in hand, another has done one, the third does nothing: 0.7, 0.3 and the least.
    world.workflow((1..=2).flat_map(|n| [started(n), ready(task(n, "research", 1), "{}")]).collect());
    world.transcript.clear();
    world.assign(&[(task(1, "research", 1), "research"), (task(2, "research", 1), "analysis")]);
    let held: Vec<_> = world.machine.machine().leases.of(&agent("analysis")).map(|(id, _)| id.0).collect();
    world.workflow(vec![cost(2, 1, held[0], "analysis", Outcome::Succeeded, "50")]);
    world.ask("pool.share", "", &json!({ "name": "pool", "by": { "workload": { "minimum": 10 } } }));
    let shared = left(&mut world);
    // 100 less what is set aside for the one in hand are left; the idle one has its 10, the others 7 : 3 of the rest.
    assert_eq!(shared, ["62.999999999", "27", "10"]);
    assert_eq!(world.books("pool"), ["0.000000001", "50", "99.999999999", "0"]);
    // Named parts need not be agents; what is no part of it is refused, and nothing is changed then.
    world.transcript.clear();
    world.ask("pool.share", "", &json!({ "name": "pool", "by": { "priority": { "agent:research": 1, "pool": 1 } } }));
    world.ask("pool.share", "", &json!({ "name": "agent:research", "by": { "priority": {} } }));
    let lines = world.only(&["refused ", "pool_set"]);
    assert!(lines.len() == 2 && lines[0].contains("pool is not a part of it"), "{lines:?}");
    assert!(lines[1].contains("no part of it is named, and no agent has one"), "{lines:?}");
    assert_eq!(left(&mut world), shared);
}

#[test]
fn r10_what_is_left_is_shared_out_again_as_workloads_change() {
    let mut world = World::new();
    let team = |every_ms: Option<u64>| {
        let balance = every_ms.map(|every_ms| json!({ "minimum": 10, "every_ms": every_ms }));
        let pool = json!({ "kind": "consumed", "size": 100, "measure": "cost", "currency": "EUR", "balance": balance });
        json!({ "name": "team", "pool": pool })
    };
    world.ask("pool.set", "", &team(Some(5000)));
    // Nobody has a part of it.
    world.wait(6000);
    for who in ["ann", "bob"] {
        world.register(who, "s", 9);
        world.account(&format!("agent:{who}"), "1", Some("team"), "wait");
    }
    world.transcript.clear();
    world.wait(4000);
    let sizes = |world: &mut World| {
        let lines = world.only(&["pool_set"]);
        let of = |line: &String| {
            let (_, rest) = line.split_once("\"name\":\"agent:").unwrap();
            let (name, rest) = rest.split_once('"').unwrap();
            let (_, size) = rest.split_once("\"size\":").unwrap();
            format!("{name} {}", size.split(',').next().unwrap())
        };
        lines.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&mut world), ["ann 10", "bob 10"], "nobody works: the minimum");
    // Ann has two tasks in hand and bob none; what is set aside for them is as good as nothing.
    for n in 1..=2 {
        world.workflow(vec![started(n), ready(task(n, "research", 1), "{}")]);
        world.assign(&[(task(n, "research", 1), "ann")]);
    }
    for who in ["ann", "bob"] {
        world.heartbeat(who, "s", &[]);
    }
    world.transcript.clear();
    world.wait(4999);
    assert_eq!(sizes(&mut world), NOTHING);
    world.wait(1);
    // All that is left, and no more: ann's part also has what is set aside there.
    assert_eq!(sizes(&mut world), ["ann 90"]);
    assert_eq!(world.books("agent:ann")[2], "89.999999998");
    // Nothing changes, and nothing is written. A new leader goes on.
    for who in ["ann", "bob"] {
        world.heartbeat(who, "s", &[]);
    }
    world.transcript.clear();
    world.wait(5000);
    assert_eq!(sizes(&mut world), NOTHING);
    for who in ["ann", "bob"] {
        world.heartbeat(who, "s", &[]);
    }
    world.workflow(vec![finished(1), finished(2), started(3), ready(task(3, "research", 1), "{}")]);
    world.assign(&[(task(3, "research", 1), "bob")]);
    world.lead();
    world.transcript.clear();
    world.wait(5000);
    assert_eq!(sizes(&mut world), ["ann 10", "bob 90"]);
    // Not any more.
    world.ask("pool.set", "", &team(None));
    world.workflow(vec![finished(3)]);
    world.transcript.clear();
    world.wait(20_000);
    assert_eq!(sizes(&mut world), NOTHING);
}

const NOTHING: [&str; 0] = [];

#[test]
fn r8_r14_whoever_takes_a_task_over_pays_for_it() {
    let mut world = World::new();
    for who in ["ann", "bob", "cat"] {
        world.register(who, "s", 4);
    }
    world.account("team", "10", None, "wait");
    for who in ["agent:ann", "agent:bob"] {
        world.account(who, "1", Some("team"), "wait");
    }
    let account = format!("run:{}", run(1));
    world.workflow(vec![with_budget(1, json!({ "limit": 2, "of": "team" })), paid(1, 1, "0.5")]);
    world.assign(&[(task(1, "research", 1), "ann")]);
    let hand_over = |world: &mut World, from: &str, to: &str, lease: LeaseId| {
        world.agent(from, "handoff", &json!({ "lease": lease, "to": to }));
        let handoff = world.machine.machine().handoffs.to(&agent(to)).last().unwrap().0;
        world.transcript.clear();
        world.agent(to, "acknowledge", &json!({ "handoff": handoff, "accepted": true }));
        std::mem::take(&mut world.transcript)
    };
    let lease_of = |world: &World, who: &str| world.machine.machine().leases.of(&agent(who)).next().unwrap().0;
    let lease = lease_of(&world, "ann");
    let said = hand_over(&mut world, "ann", "bob", lease);
    assert!(said.contains(r#""pools":{"agent:bob":"0.000000001","run:RUN1":"0.5"}}}"#), "{said}");
    assert_eq!(world.books("agent:ann"), ["0", "0", "1", "0"]);
    assert_eq!(world.books("agent:bob")[0], "0.000000001");
    // One that has no account of its own is paid by the run alone; and back.
    let lease = lease_of(&world, "bob");
    let said = hand_over(&mut world, "bob", "cat", lease);
    assert!(said.contains(r#""pools":{"run:RUN1":"0.5"}}}"#), "{said}");
    assert_eq!(world.books("agent:bob"), ["0", "0", "1", "0"]);
    let lease = lease_of(&world, "cat");
    hand_over(&mut world, "cat", "bob", lease);
    let lease = lease_of(&world, "bob").0;
    assert_eq!(
        (world.books(&account), world.books("team")[0].as_str()),
        (["0.5", "0", "1.5", "0"].map(String::from), "0.5")
    );
    world.workflow(vec![cost(1, 1, lease, "bob", Outcome::Succeeded, "1")]);
    assert_eq!(world.books("agent:ann"), ["0", "0", "1", "0"]);
    assert_eq!(world.books("agent:bob"), ["0", "1", "0", "0"]);
    assert_eq!(
        (world.books(&account), world.books("team")),
        (["0", "1", "1", "0"].map(String::from), ["0", "1", "9", "0"].map(String::from))
    );
    // Who can not be paid does not get it, and may say so; the giver goes on.
    world.workflow(vec![with_budget(2, json!({ "limit": 2, "of": "team" })), paid(2, 1, "0.5")]);
    world.assign(&[(task(2, "research", 1), "ann")]);
    let lease = lease_of(&world, "ann");
    let said = hand_over(&mut world, "ann", "bob", lease);
    assert!(said.contains("agent bob can not be paid") && said.contains("(no_capacity)"), "{said}");
    assert_eq!(lease_of(&world, "ann"), lease);
}

#[test]
fn r8_what_was_spent_is_added_up_by_run_stage_agent_model_and_attempt() {
    let mut world = World::new();
    world.register("ann", "s", 9);
    for (n, attempt, price, outcome) in
        [(1, 1, "0.1", Outcome::Failed), (1, 2, "0.2", Outcome::Succeeded), (2, 1, "0.0000000001", Outcome::Succeeded)]
    {
        if attempt == 1 {
            world.workflow(vec![started(n)]);
        }
        world.workflow(vec![ready(task(n, "research", attempt), "{}")]);
        world.assign(&[(task(n, "research", attempt), "ann")]);
        let lease = world.machine.machine().leases.of(&agent("ann")).map(|(id, _)| id.0).next().unwrap();
        world.workflow(vec![cost(n, attempt, lease, "ann", outcome, price)]);
    }
    world.transcript.clear();
    for by in ["run", "stage", "agent", "model", "attempt"] {
        world.ask("budget.spending", "", &json!({ "by": by }));
    }
    world.ask("budget.spending", "", &json!({ "by": "attempt", "after": "1" }));
    world.ask("budget.spending", "", &json!({ "by": "attempt", "after": "9" }));
    world.check(&expect![[r#"
        answer 5 {"total":{"attempts":3,"failed":1,"cost":"0.300000001","tokens_in":30,"tokens_out":15},"rest":{"attempts":0,"failed":0,"cost":0,"tokens_in":0,"tokens_out":0},"rows":[{"key":"RUN2","spent":{"attempts":1,"failed":0,"cost":"0.000000001","tokens_in":10,"tokens_out":5}},{"key":"RUN1","spent":{"attempts":2,"failed":1,"cost":"0.3","tokens_in":20,"tokens_out":10}}],"more":false}
        answer 6 {"total":{"attempts":3,"failed":1,"cost":"0.300000001","tokens_in":30,"tokens_out":15},"rest":{"attempts":0,"failed":0,"cost":0,"tokens_in":0,"tokens_out":0},"rows":[{"key":"article/research","spent":{"attempts":3,"failed":1,"cost":"0.300000001","tokens_in":30,"tokens_out":15}}],"more":false}
        answer 7 {"total":{"attempts":3,"failed":1,"cost":"0.300000001","tokens_in":30,"tokens_out":15},"rest":{"attempts":0,"failed":0,"cost":0,"tokens_in":0,"tokens_out":0},"rows":[{"key":"ann","spent":{"attempts":3,"failed":1,"cost":"0.300000001","tokens_in":30,"tokens_out":15}}],"more":false}
        answer 8 {"total":{"attempts":3,"failed":1,"cost":"0.300000001","tokens_in":30,"tokens_out":15},"rest":{"attempts":0,"failed":0,"cost":0,"tokens_in":0,"tokens_out":0},"rows":[{"key":"small","spent":{"attempts":3,"failed":1,"cost":"0.300000001","tokens_in":30,"tokens_out":15}}],"more":false}
        answer 9 {"total":{"attempts":3,"failed":1,"cost":"0.300000001","tokens_in":30,"tokens_out":15},"rest":{"attempts":0,"failed":0,"cost":0,"tokens_in":0,"tokens_out":0},"rows":[{"key":"1","spent":{"attempts":2,"failed":1,"cost":"0.100000001","tokens_in":20,"tokens_out":10}},{"key":"2","spent":{"attempts":1,"failed":0,"cost":"0.2","tokens_in":10,"tokens_out":5}}],"more":false}
        answer 10 {"total":{"attempts":3,"failed":1,"cost":"0.300000001","tokens_in":30,"tokens_out":15},"rest":{"attempts":0,"failed":0,"cost":0,"tokens_in":0,"tokens_out":0},"rows":[{"key":"2","spent":{"attempts":1,"failed":0,"cost":"0.2","tokens_in":10,"tokens_out":5}}],"more":false}
        refused 11 after is "9"; there is no attempt of that name here (invalid_request)
    "#]]);
}

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}

/// What is done with accounts.
#[derive(Debug, Clone)]
enum Move {
    /// A task is paid from these, so much of each.
    Take { of: Vec<(usize, u64)> },
    /// It has cost that; nothing is known of what it cost.
    End { lease: usize, cost: Option<u64> },
    /// An account is given another size.
    Resize { account: usize, size: u64 },
}

fn moves() -> impl Strategy<Value = Move> {
    let of = prop::collection::vec((0..12usize, 1..4_000_000_000u64), 1..4);
    prop_oneof![
        4 => of.prop_map(|of| Move::Take { of }),
        4 => (0..40usize, prop::option::of(0..5_000_000_000u64)).prop_map(|(lease, cost)| Move::End { lease, cost }),
        1 => (0..12usize, 0..20_000_000_000u64).prop_map(|(account, size)| Move::Resize { account, size }),
    ]
}

proptest! {
    #![proptest_config(Cases { cases: 10_000, ..Cases::default() })]

    /// Ten thousand trees of accounts, each task paid from up to three of them: at every step an account's size is what is free, set
    /// aside and spent; what is set aside is what its tasks need, each once; what is spent is what they cost, each once, and the
    /// rest is noted as too much; no part has spent what the whole has not.
    #[test]
    fn r8_what_is_paid_from_several_accounts_is_paid_once_and_conserved(
        parents in prop::collection::vec((0..12usize, 1..20_000_000_000u64), 1..12),
        moves in prop::collection::vec(moves(), 0..40),
    ) {
        let account = |n: usize| name(&format!("a{n:02}"));
        let mut pools = Pools::default();
        let mut parent_of = Vec::new();
        let budget = |n: usize, size: u64, parent: Option<usize>| PoolSet {
            name: account(n),
            pool: Pool { parent: parent.map(account), ..Pool::budget(Amount::from_nanos(size.into()), "EUR") },
        };
        for (n, (parent, size)) in parents.iter().enumerate() {
            let parent = (n > 0 && *parent != 11).then(|| parent % n);
            pools.set(Stamp { number: 1, at: 0, seen: 0 }, &budget(n, *size, parent));
            parent_of.push(parent);
        }
        let line = |from: usize| std::iter::successors(Some(from), |n| parent_of[*n]);
        let count = parent_of.len();
        let mut open = BTreeMap::<LeaseId, BTreeMap<usize, u128>>::new();
        // By account: what the tasks cost that were paid from it or its parts.
        let mut costs = vec![0u128; count];
        let mut too_much = false;
        for (number, step) in (2..).zip(moves) {
            match step {
                Move::Take { of } => {
                    let of: BTreeMap<usize, u128> = of.into_iter().map(|(n, nanos)| (n % count, nanos.into())).collect();
                    let takes: Takes =
                        of.iter().map(|(n, nanos)| (account(*n), Take::Amount(Amount::from_nanos(*nanos)))).collect();
                    let needs = pools.needs(&takes).unwrap();
                    if pools.lacks(&needs, 0).is_none() {
                        let holder = Holder::Client("c".into());
                        let record = Acquired { id: number.to_string(), holder, takes, ttl_ms: 1, under: None };
                        pools.acquired(LeaseId(number), 0, &record);
                        open.insert(LeaseId(number), of);
                    }
                }
                Move::End { lease, cost } if !open.is_empty() => {
                    let lease = *open.keys().nth(lease % open.len()).unwrap();
                    let of = open.remove(&lease).unwrap();
                    let used = |cost: u64| of.keys().map(|n| (account(*n), Amount::from_nanos(cost.into()))).collect();
                    let (used, reason) = match cost {
                        Some(cost) => (used(cost), ReleaseReason::Released),
                        None => (Resources::new(), ReleaseReason::Expired),
                    };
                    let paid: BTreeSet<_> = of.keys().flat_map(|n| line(*n)).collect();
                    paid.iter().for_each(|n| costs[*n] += u128::from(cost.unwrap_or(0)));
                    pools.released(0, &Released { lease, pools: of.keys().map(|n| account(*n)).collect(), reason, used });
                }
                Move::Resize { account: n, size } => {
                    let n = n % count;
                    let stock = pools.get(&account(n)).unwrap();
                    if u128::from(size) >= (stock.in_use + stock.spent).nanos() {
                        pools.set(Stamp { number, at: 0, seen: 0 }, &budget(n, size, parent_of[n]));
                    }
                }
                Move::End { .. } => {}
            }
            for n in 0..count {
                let stock = pools.get(&account(n)).unwrap();
                let (in_use, spent) = (stock.in_use.nanos(), stock.spent.nanos());
                prop_assert_eq!(stock.available(0).unwrap().nanos() + in_use + spent, stock.pool.size.unwrap().nanos());
                let below = |other: usize| line(other).any(|above| above == n);
                let of_lease = |of: &BTreeMap<usize, u128>| {
                    of.iter().filter(|(other, _)| below(**other)).map(|(_, nanos)| *nanos).max().unwrap_or(0)
                };
                prop_assert_eq!(in_use, open.values().map(of_lease).sum::<u128>());
                prop_assert!(spent <= costs[n]);
                too_much |= !stock.overrun.is_zero();
                if let Some(parent) = parent_of[n] {
                    prop_assert!(spent <= pools.get(&account(parent)).unwrap().spent.nanos());
                }
            }
            for (n, cost) in costs.iter().enumerate().filter(|_| !too_much) {
                prop_assert_eq!(pools.get(&account(n)).unwrap().spent.nanos(), *cost);
            }
        }
        let text = serde_json::to_string(&pools).unwrap();
        prop_assert_eq!(serde_json::from_str::<Pools>(&text).unwrap(), pools);
    }
}
