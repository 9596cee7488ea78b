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
    let mut world = World::new();
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
