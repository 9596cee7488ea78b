//! Alerts.

use super::*;

impl World {
    fn kinds(&mut self) -> Vec<String> {
        let transcript = std::mem::take(&mut self.transcript);
        let alerts = transcript.lines().filter_map(|line| line.split_once("{\"alert_"));
        alerts.map(|(_, rest)| rest.split_once("}}").unwrap_or((rest, "")).0.to_owned()).collect()
    }

    fn alerts(&mut self, request: &serde_json::Value) -> Vec<serde_json::Value> {
        self.transcript.clear();
        self.ask("alert.list", "", request);
        let (_, answer) = self.transcript.trim().split_once(' ').unwrap().1.split_once(' ').unwrap();
        let list: serde_json::Value = serde_json::from_str(answer).unwrap();
        self.transcript.clear();
        list["alerts"].as_array().unwrap().clone()
    }
}

#[test]
fn r11_an_agent_that_is_lost_raises_one_alert_until_it_is_back() {
    let mut world = World::new();
    world.register("ann", "s1", 1);
    world.transcript.clear();
    world.wait(20_000);
    assert_eq!(
        world.kinds(),
        [
            r#"raised":{"severity":"warning","kind":"agent_lost","about":"ann","message":"agent ann was not heard of for 10000 ms: what it held runs elsewhere (leases: 0)""#
        ]
    );
    let alert = world.alerts(&json!({}))[0]["alert"].as_u64().unwrap();
    assert!(world.alerts(&json!({ "severity": "critical" })).is_empty());
    assert!(world.alerts(&json!({ "kind": "queue_depth" })).is_empty());
    assert!(world.alerts(&json!({ "before": alert })).is_empty());
    world.register("ann", "s2", 1);
    assert_eq!(
        world.kinds(),
        [format!(r#"cleared":{{"alert":{alert},"severity":"warning","kind":"agent_lost","about":"ann""#)]
    );
    // It is over, and nobody has seen it.
    assert_eq!(world.alerts(&json!({})).len(), 1);
    for _ in 0..2 {
        world.ask("alert.acknowledge", "", &json!({ "alert": alert, "by": "bob" }));
    }
    assert_eq!(world.kinds().len(), 1);
    assert!(world.alerts(&json!({})).is_empty());
    let all = world.alerts(&json!({ "all": true }));
    assert_eq!((all.len(), &all[0]["acknowledged_by"]), (1, &json!("bob")));
    world.ask("alert.acknowledge", "", &json!({ "alert": 999 }));
    assert!(world.transcript.contains("(unknown_alert)"), "{}", world.transcript);
    // Whoever leaves with a word is not lost.
    world.agent("ann", "leave", &json!({ "session": "s2" }));
    assert!(world.kinds().is_empty());
}

#[test]
fn r11_a_breaker_raises_an_alert_until_it_is_closed_or_its_agent_begins_anew() {
    let mut world = World::new();
    world.register("ann", "s1", 4);
    let fail = |world: &mut World, n: u64| {
        world.workflow(vec![started(n), ready(task(n, "research", 1), "{}")]);
        world.transcript.clear();
        world.assign(&[(task(n, "research", 1), "ann")]);
        let (_, rest) = world.transcript.split_once("publish baton.to.ann.assign {\"lease\":").unwrap();
        let lease = rest.split_once(',').unwrap().0.parse().unwrap();
        world.transcript.clear();
        world.workflow(vec![ended(task(n, "research", 1), Some((lease, "ann")), Outcome::Failed)]);
    };
    (1..=5).for_each(|n| fail(&mut world, n));
    let raised = world.kinds();
    assert!(raised[0].contains(r#""kind":"breaker_opened","about":"ann/research""#), "{raised:?}");
    assert!(raised[0].contains("5 of the last 5 tasks"), "{raised:?}");
    // It opens again: still the same alert.
    world.heartbeat("ann", "s1", &[]);
    for _ in 0..6 {
        world.wait(5_000);
        world.heartbeat("ann", "s1", &[]);
    }
    fail(&mut world, 6);
    assert!(world.kinds().is_empty());
    world.register("ann", "s2", 4);
    assert!(world.kinds()[0].starts_with("cleared"));
}

#[test]
fn r11_a_long_queue_raises_an_alert_that_grows_and_ends() {
    let none = crate::PressureLimits::default();
    let pressure = crate::PressureConfig { elevated: none.clone(), critical: none, ..crate::PressureConfig::default() };
    let mut world = World::with(Config { pressure, ..Config::default() });
    let mut waiting = 0;
    let mut grow = |world: &mut World, to: u64| {
        let more = (waiting..to).flat_map(|n| [started(n), ready(task(n, "research", 1), "{}")]);
        waiting = to;
        world.transcript.clear();
        world.workflow(more.collect());
        world.kinds()
    };
    for (to, severity, says) in [
        (499, None, ""),
        (500, Some("informational"), "500 tasks wait for an agent, which is 50 %"),
        (799, None, ""),
        (800, Some("warning"), "80 %"),
        (999, None, ""),
        (1000, Some("critical"), "100 %"),
        (1100, None, ""),
    ] {
        let kinds = grow(&mut world, to);
        let Some(severity) = severity else {
            assert!(kinds.is_empty(), "{to}: {kinds:?}");
            continue;
        };
        let start = format!(r#"raised":{{"severity":"{severity}","kind":"queue_depth","about":"queue","message":""#);
        assert!(kinds.len() == 1 && kinds[0].starts_with(&start) && kinds[0].contains(says), "{kinds:?}");
    }
    let all = world.alerts(&json!({}));
    let over: Vec<_> = all.iter().map(|alert| alert["cleared_at"].is_u64()).collect();
    assert_eq!(over, [false, true, true], "the one that matters more takes the place of the other: {all:?}");
    world.workflow((0..700).map(finished).collect());
    assert!(world.kinds().is_empty(), "400 wait");
    // A task that is leased waits no more.
    world.register("ann", "s1", 1);
    world.transcript.clear();
    world.assign(&[(task(700, "research", 1), "ann")]);
    let kinds = world.kinds();
    assert!(kinds.len() == 1 && kinds[0].starts_with("cleared"), "{kinds:?}");
    // One of a run that is paused waits for somebody, and not for an agent.
    let waiting = |world: &World| world.machine.machine().tasks.waiting();
    let others = |record: fn(u64) -> WorkflowRecord| (700..1000).map(record).collect();
    assert_eq!(waiting(&world), 399);
    world.workflow(others(paused));
    assert_eq!(waiting(&world), 100);
    world.workflow(vec![ended(task(701, "research", 1), None, Outcome::TimedOut), finished(702)]);
    world.workflow(others(resumed));
    assert_eq!(waiting(&world), 397);
}

#[test]
fn r11_a_workflow_whose_runs_fail_raises_one_alert_until_a_run_succeeds() {
    let runs = |from: u64, statuses: &[RunStatus]| -> Vec<_> {
        let pairs = statuses.iter().zip(from..);
        pairs.flat_map(|(status, n)| [started(n), finished_as(n, *status)]).collect()
    };
    let mut world = World::new();
    world.workflow(runs(1, &[RunStatus::Failed]));
    assert!(world.kinds().is_empty(), "it is not wanted unless it is asked for");

    let alerts = crate::AlertConfig { run_failed: true, ..crate::AlertConfig::default() };
    let mut world = World::with(Config { alerts, ..Config::default() });
    world.workflow(runs(1, &[RunStatus::Cancelled]));
    assert!(world.kinds().is_empty(), "somebody wanted that");
    world.workflow(runs(2, &[RunStatus::Failed, RunStatus::TimedOut]));
    assert_eq!(
        world.kinds(),
        [
            r#"raised":{"severity":"warning","kind":"run_failed","about":"article","message":"run RUN2 of article failed: stage research failed""#
        ]
    );
    world.workflow(runs(4, &[RunStatus::Failed, RunStatus::Succeeded]));
    let kinds = world.kinds();
    assert!(kinds.len() == 1 && kinds[0].starts_with("cleared"), "{kinds:?}");
    // What fails and succeeds before anybody looks is nothing to tell.
    world.workflow(runs(6, &[RunStatus::Failed, RunStatus::Succeeded]));
    assert!(world.kinds().is_empty());
    // Where it is wanted no more, what was raised is taken back.
    world.workflow(runs(8, &[RunStatus::Failed]));
    assert_eq!(world.kinds().len(), 1);
    world.config = Config::default();
    world.lead();
    let kinds = world.kinds();
    assert!(kinds.len() == 1 && kinds[0].starts_with("cleared"), "{kinds:?}");
}

/// A pool of that many.
fn pool(world: &mut World, name: &str, pool: &serde_json::Value) {
    world.ask("pool.set", "", &json!({ "name": name, "pool": pool }));
    world.transcript.clear();
}

/// Acquires something; gives the lease, and what alerts there were.
fn hold(world: &mut World, id: &str, take: &serde_json::Value) -> (u64, Vec<String>) {
    world.transcript.clear();
    world.ask("lease.acquire", "", &json!({ "id": id, "take": take, "ttl_ms": 3_600_000, "client": "c" }));
    let granted = world.transcript.split_once(r#"{"granted":{"lease":"#).expect("it is granted").1;
    let lease = granted.split_once(',').unwrap().0.parse().unwrap();
    (lease, world.kinds())
}

fn release(world: &mut World, lease: u64, used: &serde_json::Value) -> Vec<String> {
    world.transcript.clear();
    world.ask("lease.release", "", &json!({ "lease": lease, "used": used }));
    world.kinds()
}

fn wait(world: &mut World, ms: Millis) -> Vec<String> {
    world.transcript.clear();
    world.wait(ms);
    world.kinds()
}

const NONE: [&str; 0] = [];

#[test]
fn r11_a_pool_raises_an_alert_when_it_is_used_for_a_while_and_none_when_it_swings() {
    let mut world = World::new();
    pool(&mut world, "gpu", &json!({ "kind": "held", "size": 10 }));
    // It is half in use again and again, and never for long.
    for n in 0..50 {
        let (lease, said) = hold(&mut world, &format!("swing-{n}"), &json!({ "gpu": 9 }));
        assert_eq!((said, wait(&mut world, 9_999)), (vec![], vec![]));
        assert_eq!(release(&mut world, lease, &json!({})), NONE);
    }
    let (four, _) = hold(&mut world, "four", &json!({ "gpu": 4 }));
    let (mut one, _) = hold(&mut world, "one", &json!({ "gpu": 1 }));
    assert_eq!(wait(&mut world, 9_999), NONE);
    assert_eq!(
        wait(&mut world, 1),
        [
            r#"raised":{"severity":"informational","kind":"pool_used","about":"gpu","message":"5 of 10 of pool gpu are in use, which is 50 %""#
        ]
    );
    // It swings around a half, and above: that is known.
    for n in 0..50 {
        assert_eq!(release(&mut world, one, &json!({})), NONE);
        assert_eq!(wait(&mut world, 11_000), NONE);
        let (lease, said) = hold(&mut world, &format!("again-{n}"), &json!({ "gpu": 3 }));
        assert_eq!((said, wait(&mut world, 11_000)), (vec![], vec![]));
        one = lease;
    }
    // What matters more is told, and no more than it was all the while.
    let (three, _) = hold(&mut world, "three", &json!({ "gpu": 3 }));
    assert_eq!(wait(&mut world, 5_000), NONE);
    release(&mut world, three, &json!({}));
    let (two, _) = hold(&mut world, "two", &json!({ "gpu": 2 }));
    assert_eq!(wait(&mut world, 9_999), NONE);
    let said = wait(&mut world, 1);
    assert!(said.len() == 1 && said[0].contains(r#""warning","kind":"pool_used","about":"gpu""#), "{said:?}");
    assert!(said[0].contains("9 of 10 of pool gpu are in use, which is 90 %"), "{said:?}");
    // It is over when little was in use for a while.
    for lease in [four, one] {
        assert_eq!(release(&mut world, lease, &json!({})), NONE);
    }
    assert_eq!(wait(&mut world, 9_000), NONE);
    let (five, _) = hold(&mut world, "five", &json!({ "gpu": 5 }));
    release(&mut world, five, &json!({}));
    assert_eq!(wait(&mut world, 9_999), NONE);
    let said = wait(&mut world, 1);
    assert!(said.len() == 1 && said[0].starts_with("cleared"), "{said:?}");
    release(&mut world, two, &json!({}));
    // Whoever has it alone has all of it; when it is gone nothing is to be told of it.
    let (alone, _) = hold(&mut world, "alone", &json!({ "gpu": "exclusive" }));
    let said = wait(&mut world, 10_000);
    assert!(said.len() == 1 && said[0].contains("somebody has pool gpu alone: none of 10 is left"), "{said:?}");
    release(&mut world, alone, &json!({}));
    world.ask("pool.remove", "", &json!({ "name": "gpu" }));
    let said = world.kinds();
    assert!(said.len() == 1 && said[0].starts_with("cleared"), "{said:?}");
    assert!(world.machine.machine().pools.due().until(Some(Millis::MAX)).is_empty());
}

#[test]
fn r11_a_budget_raises_an_alert_as_soon_as_much_of_it_is_spent() {
    let mut world = World::new();
    let money = |size: u32| json!({ "kind": "consumed", "size": size, "measure": "cost", "currency": "EUR" });
    pool(&mut world, "team", &money(10));
    let mut spent = 0;
    let mut spend = |world: &mut World, take: &str, used: &str| {
        spent += 1;
        let (lease, said) = hold(world, &format!("spent-{spent}"), &json!({ "team": take }));
        assert_eq!(said, NONE, "what is set aside may come back");
        release(world, lease, &json!({ "team": used }))
    };
    assert_eq!(spend(&mut world, "10", "4.99"), NONE);
    let said = spend(&mut world, "1", "0.01");
    assert!(said.len() == 1 && said[0].contains(r#""informational","kind":"budget_used","about":"team""#), "{said:?}");
    assert!(said[0].contains("of 10 EUR of account team are spent, which is 50 %"), "{said:?}");
    assert_eq!(spend(&mut world, "1", "0.5"), NONE);
    let said = spend(&mut world, "4.5", "4.5");
    assert!(said.len() == 1 && said[0].contains("critical") && said[0].contains("100 %"), "{said:?}");
    // Somebody gives it more: it matters less, and then no more.
    world.ask("budget.approve", "", &json!({ "name": "team", "amount": 1 }));
    assert_eq!(world.kinds(), NONE, "by so little it may be back soon");
    world.ask("budget.approve", "", &json!({ "name": "team", "amount": 1 }));
    let said = world.kinds();
    assert!(said.len() == 2 && said[0].starts_with("cleared") && said[1].contains("warning"), "{said:?}");
    world.ask("budget.approve", "", &json!({ "name": "team", "amount": 10 }));
    let said = world.kinds();
    assert!(said.len() == 1 && said[0].starts_with("cleared"), "{said:?}");
    // Of what comes back by itself, or goes with its run, nothing is said.
    pool(
        &mut world,
        "calls",
        &json!({ "kind": "refilled", "size": 2, "refill": { "amount": 1, "every_ms": 1_000_000 } }),
    );
    assert_eq!(hold(&mut world, "calls", &json!({ "calls": 2 })).1, NONE);
    assert_eq!(wait(&mut world, 20_000), NONE);
    world.register("ann", "s", 1);
    let WorkflowRecord::RunStarted(record) = started(1) else { panic!("it is a start") };
    let budget = serde_json::from_value(json!({ "limit": 1, "currency": "EUR" })).unwrap();
    let account = format!(r#"{{"run:{}": "1"}}"#, run(1));
    let begun = WorkflowRecord::RunStarted(RunStarted { budget: Some(budget), ..record });
    world.workflow(vec![begun, ready(task(1, "research", 1), &account)]);
    world.transcript.clear();
    world.assign(&[(task(1, "research", 1), "ann")]);
    let (_, rest) = world.transcript.split_once("publish baton.to.ann.assign {\"lease\":").unwrap();
    let lease = rest.split_once(',').unwrap().0.parse().unwrap();
    let end = ended(task(1, "research", 1), Some((lease, "ann")), Outcome::Succeeded);
    let WorkflowRecord::StageEnded(record) = end else { panic!("it is an end") };
    world.transcript.clear();
    world.workflow(vec![WorkflowRecord::StageEnded(StageEnded { cost: "1".parse().unwrap(), ..record })]);
    assert_eq!(world.kinds(), NONE);
    // Where it is wanted no more, what was raised is taken back.
    pool(&mut world, "other", &money(1));
    let (lease, _) = hold(&mut world, "other", &json!({ "other": 1 }));
    assert_eq!(release(&mut world, lease, &json!({})).len(), 1);
    world.config = Config { alerts: crate::AlertConfig { pools: false, ..Default::default() }, ..Config::default() };
    world.lead();
    let said = world.kinds();
    assert!(said.len() == 1 && said[0].starts_with("cleared"), "{said:?}");
}

#[test]
fn r11_a_new_leader_goes_on_counting_where_the_last_one_was() {
    let mut world = World::new();
    pool(&mut world, "gpu", &json!({ "kind": "held", "size": 1 }));
    hold(&mut world, "a", &json!({ "gpu": 1 }));
    assert_eq!(wait(&mut world, 6_000), NONE);
    world.lead();
    assert_eq!(wait(&mut world, 3_999), NONE);
    let said = wait(&mut world, 1);
    assert!(said.len() == 1 && said[0].contains("critical"), "{said:?}");
    // What is so when it comes is told at once.
    pool(&mut world, "gpu", &json!({ "kind": "held", "size": 3 }));
    assert_eq!(wait(&mut world, 9_999), NONE);
    world.now += 1;
    world.lead();
    let said = world.kinds();
    assert!(said.len() == 1 && said[0].starts_with("cleared"), "{said:?}");
}

#[test]
fn r11_an_alert_about_a_pool_that_was_forgotten_is_not_raised_again_until_it_was_over() {
    use baton_protocol::alert::AlertSeverity;
    use baton_protocol::record::{PoolSet, Stamp};
    use baton_protocol::{Amount, Pool, PoolKind, ResourceName, Take, Takes};

    let name = ResourceName::new("gpu").unwrap();
    let mut pools = crate::pool::Pools::default();
    pools
        .set(Stamp { number: 1, at: 0, seen: 0 }, &PoolSet { name: name.clone(), pool: Pool::new(PoolKind::Held, 10) });
    let take = |amount: u32| Takes::from([(name.clone(), Take::Amount(Amount::from(amount)))]);
    let due = |pools: &crate::pool::Pools| !pools.due().until(Some(1000)).is_empty();
    pools.take(&take(5), 1);
    assert!(due(&pools));
    pools.said(2, "gpu", Some(AlertSeverity::Informational));
    assert!(!due(&pools));
    pools.forgotten(3, "gpu");
    assert!(!due(&pools));
    pools.take(&take(5), 4);
    assert!(!due(&pools));
    pools.give_back(&take(5), 5, |_, _| None);
    assert!(!due(&pools));
    pools.give_back(&take(5), 6, |_, _| None);
    pools.take(&take(5), 7);
    assert!(due(&pools));
    let text = serde_json::to_string(&pools).unwrap();
    assert_eq!(serde_json::from_str::<crate::pool::Pools>(&text).unwrap(), pools);
}
