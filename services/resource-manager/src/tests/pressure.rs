//! Pressure.

use baton_protocol::Service;

use super::*;
use crate::{PressureConfig, PressureLimits};

/// Three tasks are many, ten too many.
fn config() -> Config {
    let elevated = PressureLimits { queue: 3, per_slot: 0, memory_percent: 70, below: 0 };
    let critical = PressureLimits { queue: 10, per_slot: 0, memory_percent: 90, below: 1 };
    let pressure = PressureConfig { elevated, critical, longest_ms: 10_000 };
    Config { pressure, alerts: crate::AlertConfig { queue_depth: 0, ..Default::default() }, ..Config::default() }
}

/// Run `n` waits for an agent.
fn waits(n: u64, priority: i32) -> Vec<WorkflowRecord> {
    let WorkflowRecord::StageReady(mut record) = ready(task(n, "research", 1), "{}") else { unreachable!("it is one") };
    record.priority = priority;
    vec![started(n), WorkflowRecord::StageReady(record)]
}

impl World {
    fn takes_memory(&mut self, percent: u32) {
        self.memory = Some(percent);
        self.machine.takes_memory(self.memory);
    }

    /// What was said of pressure since the last time, a line each: also the alerts.
    fn said(&mut self) -> String {
        let transcript = std::mem::take(&mut self.transcript);
        let short = |line: &str| {
            let (_, rest) = line.split_once(" {\"")?;
            let of = ["pressure_changed", "alert_raised", "alert_cleared"].iter().any(|kind| rest.starts_with(kind));
            let (at, _) = line.split_once(' ')?.1.split_once(' ')?;
            of.then(|| format!("{at} {}\n", rest.replace(['"', '{', '}'], "")))
        };
        transcript.lines().filter_map(short).collect()
    }

    fn pressure(&mut self) -> serde_json::Value {
        self.transcript.clear();
        self.ask("pressure.get", "", &json!({}));
        let (_, answer) = self.transcript.lines().last().unwrap().split_once('{').unwrap();
        serde_json::from_str(&format!("{{{answer}")).unwrap()
    }

    /// What was granted of these, and why the first that was not was refused.
    fn try_assign(&mut self, wanted: &[u64]) -> (usize, String) {
        self.transcript.clear();
        let wanted: Vec<_> = wanted.iter().map(|n| (task(*n, "research", 1), "ann")).collect();
        self.assign(&wanted);
        let line = self.transcript.lines().find(|line| line.starts_with("answer")).unwrap();
        let (_, answer) = line.split_once(" {").unwrap();
        let answer: serde_json::Value = serde_json::from_str(&format!("{{{answer}")).unwrap();
        let refused = &answer["refused"][0]["rejection"];
        let why = format!("{}: {}", refused["code"].as_str().unwrap_or(""), refused["message"].as_str().unwrap_or(""));
        (answer["granted"].as_u64().unwrap() as usize, why)
    }
}

#[test]
fn r13_pressure_rises_at_its_limits_falls_well_below_them_and_is_told() {
    let mut world = World::with(config());
    world.register("ann", "s", 2);
    world.transcript.clear();
    let mut steps = Vec::new();
    let mut step = |world: &mut World, what: &str| steps.push(format!("{what}:\n{}", world.said()));
    world.workflow([waits(1, 0), waits(2, 0)].concat());
    step(&mut world, "two wait");
    world.workflow(waits(3, -1));
    step(&mut world, "three");
    world.workflow((4..=10).flat_map(|n| waits(n, 0)).collect());
    step(&mut world, "ten");
    world.wait(1000);
    world.workflow(vec![finished(10), finished(9)]);
    step(&mut world, "eight: it holds");
    world.workflow(vec![finished(8)]);
    step(&mut world, "seven: it is no more critical");
    world.workflow((4..=7).map(finished).collect());
    step(&mut world, "three: it holds");
    world.workflow(vec![finished(1)]);
    step(&mut world, "two: it is over");
    world.workflow(waits(11, 0));
    step(&mut world, "three once more");
    expect![[r#"
        two wait:
        three:
        +0 alert_raised:severity:warning,kind:pressure,about:pressure,message:pressure is elevated (queue): 3 tasks wait, there are 2 slots; what is of less priority than 0 waits (log 5)
        +0 pressure_changed:level:elevated,causes:[queue],below:0,longest_ms:10000,until:1005000,waiting:3,slots:2 (log 5)
        ten:
        +0 alert_raised:severity:critical,kind:pressure,about:pressure,message:pressure is critical (queue): 10 tasks wait, there are 2 slots; what is of less priority than 1 waits (log 7)
        +0 pressure_changed:level:critical,causes:[queue],below:1,longest_ms:10000,until:1005000,waiting:10,slots:2 (log 7)
        eight: it holds:
        seven: it is no more critical:
        +1000 pressure_changed:level:elevated,causes:[queue],below:0,longest_ms:10000,until:1006000,waiting:7,slots:2 (log 10)
        +1000 alert_cleared:alert:4,severity:critical,kind:pressure,about:pressure (log 10)
        +1000 alert_raised:severity:warning,kind:pressure,about:pressure,message:pressure is elevated (queue): 7 tasks wait, there are 2 slots; what is of less priority than 0 waits (log 10)
        three: it holds:
        two: it is over:
        +1000 pressure_changed:level:none,below:0,longest_ms:0,until:1001000,waiting:2,slots:2 (log 13)
        +1000 alert_cleared:alert:8,severity:warning,kind:pressure,about:pressure (log 13)
        three once more:
        +1000 alert_raised:severity:warning,kind:pressure,about:pressure,message:pressure is elevated (queue): 3 tasks wait, there are 2 slots; what is of less priority than 0 waits (log 15)
        +1000 pressure_changed:level:elevated,causes:[queue],below:0,longest_ms:10000,until:1006000,waiting:3,slots:2 (log 15)
    "#]].assert_eq(&steps.concat());
    let view = world.pressure();
    let shown = (view["level"].as_str(), view["waiting"].as_u64(), view["waiting_below"].as_u64());
    assert_eq!(shown, (Some("elevated"), Some(3), Some(1)), "{view}");
}

#[test]
fn r13_what_matters_least_waits_first_and_is_leased_when_nothing_else_waits() {
    let mut world = World::with(config());
    world.register("ann", "s", 8);
    world.workflow([waits(1, -1), waits(2, -2), waits(3, 0), waits(4, 5)].concat());
    // There is room for all of them: the two that matter least are refused as long as any other waits.
    let (granted, why) = world.try_assign(&[2, 1, 3]);
    assert_eq!(granted, 1);
    expect!["not_ready: task RUN2/research/1 is of priority -2: while the pressure is elevated, what is of less than 0 waits for the others"].assert_eq(&why);
    let (granted, why) = world.try_assign(&[1]);
    assert_eq!((granted, why.contains("of priority -1")), (0, true), "{why}");
    // In one question, the one that matters more is leased first: then nothing else waits.
    world.workflow([waits(5, -1), waits(6, -1)].concat());
    assert_eq!(world.try_assign(&[4, 1]).0, 2);
    assert_eq!(world.pressure()["level"], "elevated", "three wait, and all of them are low");
    assert_eq!(world.try_assign(&[2, 5]).0, 2);
    // It is over: who matters more goes first no more.
    world.workflow(waits(7, 3));
    assert_eq!(world.pressure()["level"], "none");
    assert_eq!(world.try_assign(&[6]).0, 1);
}

#[test]
fn r13_nothing_waits_for_others_for_ever() {
    let mut world = World::with(config());
    world.register("ann", "s", 8);
    world.workflow([waits(1, -1), waits(2, -3), waits(3, 0)].concat());
    for _ in 0..9 {
        world.wait(1000);
        world.heartbeat("ann", "s", &[]);
        assert_eq!(world.try_assign(&[1]).0, 0);
    }
    world.wait(999);
    assert_eq!(world.try_assign(&[1]).0, 0);
    world.wait(1);
    assert_eq!(world.try_assign(&[1, 2]).0, 2);
}

#[test]
fn r13_memory_presses_too_and_whoever_waits_is_told_for_how_long() {
    let mut world = World::with(config());
    world.register("ann", "s", 8);
    world.transcript.clear();
    let mut steps = Vec::new();
    for (percent, what) in [(69, "little"), (70, "much"), (90, "too much"), (86, "less"), (85, "still"), (64, "none")] {
        world.takes_memory(percent);
        world.heartbeat("ann", "s", &[]);
        steps.push(format!("{what}:\n{}", world.said()));
    }
    expect![[r#"
        little:
        much:
        +0 alert_raised:severity:warning,kind:pressure,about:pressure,message:pressure is elevated (memory): 0 tasks wait, there are 8 slots, 70 % of the memory is taken; what is of less priority than 0 waits (request agent.heartbeat)
        +0 pressure_changed:level:elevated,causes:[memory],below:0,longest_ms:10000,until:1005000,waiting:0,slots:8,memory_percent:70 (request agent.heartbeat)
        too much:
        +0 alert_raised:severity:critical,kind:pressure,about:pressure,message:pressure is critical (memory): 0 tasks wait, there are 8 slots, 90 % of the memory is taken; what is of less priority than 1 waits (request agent.heartbeat)
        +0 pressure_changed:level:critical,causes:[memory],below:1,longest_ms:10000,until:1005000,waiting:0,slots:8,memory_percent:90 (request agent.heartbeat)
        less:
        still:
        none:
        +0 pressure_changed:level:none,below:0,longest_ms:0,until:1000000,waiting:0,slots:8,memory_percent:64 (request agent.heartbeat)
        +0 alert_cleared:alert:4,severity:critical,kind:pressure,about:pressure (request agent.heartbeat)
    "#]].assert_eq(&steps.concat());
    // Nobody need say anything for it to be seen that it is over.
    world.takes_memory(75);
    world.heartbeat("ann", "s", &[]);
    world.takes_memory(10);
    world.transcript.clear();
    world.wait(5000);
    assert!(world.said().contains("pressure_changed:level:none"));
}

#[test]
fn r13_how_long_it_lasts_follows_from_how_fast_tasks_are_leased() {
    let mut world = World::with(config());
    world.register("ann", "s", 100);
    world.workflow((1..=9).flat_map(|n| waits(n, 0)).collect());
    let retry = |world: &mut World| world.pressure()["retry_after_ms"].as_u64().unwrap();
    assert_eq!(retry(&mut world), 5000, "nothing is known yet");
    // One each 500 ms: seven more must be leased, or rather six, by then.
    for n in 1..=2 {
        world.wait(500);
        assert_eq!(world.try_assign(&[n]).0, 1);
    }
    world.wait(4000);
    world.heartbeat("ann", "s", &[]);
    let measured = retry(&mut world);
    // Two in 4.5 s, and five more than two wait.
    assert_eq!(measured, 11_250);
    // It is said once more only when that is over, and then it is longer: nothing was leased.
    world.transcript.clear();
    for _ in 0..12 {
        world.wait(1000);
        world.heartbeat("ann", "s", &[]);
    }
    assert_eq!(world.said().matches("pressure_changed").count(), 1);
    assert!(retry(&mut world) > 11_250);
}

#[test]
fn r13_lost_agents_make_pressure_of_what_was_none() {
    let elevated = PressureLimits { per_slot: 2, ..PressureLimits::default() };
    let pressure = PressureConfig { elevated, critical: PressureLimits::default(), longest_ms: 10_000 };
    let mut world = World::with(Config { pressure, ..Config::default() });
    world.register("ann", "s", 2);
    world.register("bob", "s", 2);
    world.workflow((1..=7).flat_map(|n| waits(n, 0)).collect());
    assert_eq!(world.pressure()["level"], "none");
    world.agent("bob", "leave", &json!({ "session": "s" }));
    let view = world.pressure();
    assert_eq!((&view["level"], &view["causes"], &view["slots"]), (&json!("elevated"), &json!(["slots"]), &json!(2)));
    world.register("bob", "s2", 3);
    assert_eq!(world.pressure()["level"], "none");
    // Without agents one slot counts: otherwise nothing would be too much.
    world.agent("bob", "leave", &json!({ "session": "s2" }));
    world.agent("ann", "leave", &json!({ "session": "s" }));
    assert_eq!(world.pressure()["slots"], 0);
    assert_eq!(world.pressure()["level"], "elevated");
}

#[test]
fn r13_a_new_leader_goes_on_and_another_setting_counts_at_once() {
    let mut world = World::with(config());
    world.workflow((1..=4).flat_map(|n| waits(n, 0)).collect());
    world.transcript.clear();
    world.lead();
    assert_eq!(world.said(), "", "it is as it was");
    world.config.pressure.elevated.below = 2;
    world.lead();
    assert!(world.said().contains("below:2"));
    world.config.pressure.elevated.queue = 0;
    world.lead();
    let said = world.said();
    assert!(said.contains("pressure_changed:level:none") && said.contains("alert_cleared"), "{said}");
    assert!(world.log.iter().any(|(service, _)| *service == Service::ResourceManager));
}
