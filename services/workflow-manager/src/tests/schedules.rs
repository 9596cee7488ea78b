//! Workflows that are started by themselves.

use baton_protocol::Schedule;
use baton_protocol::request::{
    GetSchedule, ListSchedules, PauseSchedule, RemoveSchedule, ScheduleList, ScheduleView, SetSchedule,
};
use baton_protocol::schedule::{Firing, Overlap};

use super::*;

const HOUR: u64 = 3_600_000;

fn every(ms: u64) -> Schedule {
    Schedule { every_ms: Some(ms), ..schedule("* * * * *", None) }.without_cron()
}

/// Of workflow `w`.
fn schedule(cron: &str, zone: Option<&str>) -> Schedule {
    let text = serde_json::json!({ "workflow": "w", "cron": cron, "time_zone": zone });
    serde_json::from_value(text).unwrap()
}

trait WithoutCron {
    fn without_cron(self) -> Self;
}

impl WithoutCron for Schedule {
    fn without_cron(self) -> Self {
        Self { cron: None, ..self }
    }
}

fn set(world: &mut World, name: &str, schedule: Schedule) -> Result<ScheduleView, Rejection> {
    let request = SetSchedule { name: name.parse().unwrap(), schedule };
    world.ask(WorkflowRequest::SetSchedule(Box::new(request)))
}

fn get(world: &mut World, name: &str) -> Result<ScheduleView, Rejection> {
    world.ask(WorkflowRequest::GetSchedule(GetSchedule { name: name.parse().unwrap() }))
}

fn pause(world: &mut World, name: &str, paused: bool) -> ScheduleView {
    let request = PauseSchedule { name: name.parse().unwrap(), paused };
    world.ask(WorkflowRequest::PauseSchedule(request)).unwrap()
}

fn list(world: &mut World, request: ListSchedules) -> ScheduleList {
    world.ask(WorkflowRequest::ListSchedules(request)).unwrap()
}

/// A world with a workflow of one stage.
fn world() -> World {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[])]));
    world.transcript();
    world
}

/// Ends every run that is live.
fn end_all(world: &mut World) {
    let live: Vec<RunId> = world.processor.machine().runs.keys().copied().collect();
    for run in live {
        world.cancel(run, None).unwrap();
    }
}

/// When times are, as they are told in their zone.
fn told(view: &ScheduleView, zone: &str) -> Vec<String> {
    let zone = jiff::tz::TimeZoneDatabase::bundled().get(zone).unwrap();
    let zoned = |ms: &u64| jiff::Timestamp::from_millisecond(*ms as i64).unwrap().to_zoned(zone.clone());
    view.next.iter().map(|ms| zoned(ms).strftime("%a %F %H:%M %:z").to_string()).collect()
}

#[test]
fn w19_a_schedule_starts_a_run_at_each_of_its_times() {
    let mut world = world();
    let minutely = Schedule { input: json("{\"n\":1}"), priority: 3, ..schedule("*/20 * * * *", Some("Asia/Kolkata")) };
    let view = set(&mut world, "often", minutely.clone()).unwrap();
    assert_eq!(view.next.len(), 5);
    // Saying the same again changes nothing.
    set(&mut world, "often", minutely).unwrap();
    world.wait(HOUR / 2);
    end_all(&mut world);
    world.wait(HOUR / 3);
    check(
        &mut world,
        &expect![[r#"
            3.0        +0ms  schedule_set often, next +600000ms  (request schedule.set)
            4.0   +600000ms  run_started w v1  (timer)
            4.1   +600000ms  stage_ready a/1  (timer)
            4.2   +600000ms  schedule_fired often of +600000ms: started r1, next +1800000ms  (timer)
            5.0   +1800000ms  schedule_fired often of +1800000ms: skipped r1, next +3000000ms  (timer)
            6.0   +1800000ms  stage_ended a/1 cancelled: it was cancelled  (request run.cancel)
            6.1   +1800000ms  run_finished cancelled: it was cancelled  (request run.cancel)
            7.0   +3000000ms  run_started w v1  (timer)
            7.1   +3000000ms  stage_ready r2:a/1  (timer)
            7.2   +3000000ms  schedule_fired often of +3000000ms: started r2, next +4200000ms  (timer)
        "#]],
    );
    let run = *world.processor.machine().runs.keys().next_back().unwrap();
    let view = world.view(run);
    assert_eq!(view.metadata["schedule"], "often");
    assert_eq!(view.metadata["scheduled_for"], "2025-11-21T01:20:00+05:30");
    assert_eq!((view.priority, view.input), (3, json("{\"n\":1}")));
    let view = get(&mut world, "often").unwrap();
    assert_eq!(view.last_run, Some(run));
    assert_eq!(view.last.unwrap().outcome, Firing::Started(run));
}

#[test]
fn w19_a_schedule_keeps_to_the_clock_of_its_time_zone() {
    let mut world = world();
    let next = |world: &mut World, cron: &str, zone: &str| {
        let view = set(world, "s", schedule(cron, Some(zone))).unwrap();
        told(&view, zone).join("\n")
    };
    let berlin = next(&mut world, "30 9 * * mon-fri", "Europe/Berlin");
    expect![[r#"
        Fri 2025-11-21 09:30 +01:00
        Mon 2025-11-24 09:30 +01:00
        Tue 2025-11-25 09:30 +01:00
        Wed 2025-11-26 09:30 +01:00
        Thu 2025-11-27 09:30 +01:00"#]]
    .assert_eq(&berlin);
    // Clocks go forward on 29 March 2026, and back on 25 October: half past two is left out once, and comes twice once.
    let spring = next(&mut world, "30 2 28-30 3 *", "Europe/Berlin");
    expect![[r#"
        Sat 2026-03-28 02:30 +01:00
        Sun 2026-03-29 03:00 +02:00
        Mon 2026-03-30 02:30 +02:00
        Sun 2027-03-28 03:00 +02:00
        Mon 2027-03-29 02:30 +02:00"#]]
    .assert_eq(&spring);
    let autumn = next(&mut world, "30 2 24-26 10 *", "Europe/Berlin");
    expect![[r#"
        Sat 2026-10-24 02:30 +02:00
        Sun 2026-10-25 02:30 +02:00
        Mon 2026-10-26 02:30 +01:00
        Sun 2027-10-24 02:30 +02:00
        Mon 2027-10-25 02:30 +02:00"#]]
    .assert_eq(&autumn);
    let last = next(&mut world, "0 0 L * *", "America/New_York");
    expect![[r#"
        Sun 2025-11-30 00:00 -05:00
        Wed 2025-12-31 00:00 -05:00
        Sat 2026-01-31 00:00 -05:00
        Sat 2026-02-28 00:00 -05:00
        Tue 2026-03-31 00:00 -04:00"#]]
    .assert_eq(&last);
    let view = set(&mut world, "s", every(90 * 60_000)).unwrap();
    expect![[r#"
        Thu 2025-11-20 19:30 +00:00
        Thu 2025-11-20 21:00 +00:00
        Thu 2025-11-20 22:30 +00:00
        Fri 2025-11-21 00:00 +00:00
        Fri 2025-11-21 01:30 +00:00"#]]
    .assert_eq(&told(&view, "UTC").join("\n"));
}

#[test]
fn w19_what_is_wrong_with_a_schedule_is_said() {
    let mut world = world();
    let mut definition = workflow(&[("a", &[])]);
    definition.name = name("strict");
    definition.input_schema = Some(serde_json::json!({ "required": ["topic"] }));
    world.register(&definition);
    let good = || schedule("0 9 * * *", None);
    let big = json(&format!("{{\"text\":\"{}\"}}", "x".repeat(65 * 1024)));
    let metadata = |key: &str| [(key.to_owned(), "x".to_owned())].into();
    let bad = [
        ("neither", good().without_cron()),
        ("both", Schedule { every_ms: Some(5000), ..good() }),
        ("too few fields", schedule("0 9 *", None)),
        ("no such minute", schedule("61 * * * *", None)),
        ("no such day", schedule("0 9 * * someday", None)),
        ("empty", schedule("", None)),
        ("a year", schedule("0 0 9 * * * 2030", None)),
        ("never", schedule("0 9 30 2 *", None)),
        ("no such zone", schedule("0 9 * * *", Some("Europe/Berln"))),
        ("a zone for nothing", Schedule { time_zone: Some("Europe/Berlin".to_owned()), ..every(5000) }),
        ("too often", every(10)),
        ("too seldom", every(101 * 24 * HOUR)),
        ("no such workflow", Schedule { workflow: name("nothing"), ..good() }),
        ("no such version", Schedule { version: Some(9), ..good() }),
        ("not an object", Schedule { input: json("[1]"), ..good() }),
        ("input", Schedule { workflow: name("strict"), ..good() }),
        ("too large", Schedule { input: big, ..good() }),
        ("too large without it", schedule(&format!("{}0 9 * * *", " ".repeat(9000)), None)),
        ("its own key", Schedule { metadata: metadata("schedule"), ..good() }),
        ("empty key", Schedule { metadata: metadata(""), ..good() }),
    ];
    let mut text = String::new();
    for (what, schedule) in bad {
        let rejection = set(&mut world, "s", schedule).unwrap_err();
        text += &format!("{what}: {} ({})\n", rejection.message, rejection.code);
    }
    expect![[r#"
        neither: the schedule is not valid: say when, with `cron` (as "30 9 * * mon-fri") or with `every_ms` (invalid_request)
        both: the schedule is not valid: give either `cron` or `every_ms`, not both (invalid_request)
        too few fields: the schedule is not valid: cron "0 9 *": Pattern must have 5 or 6 fields when years are disallowed; its fields are minute, hour, day of the month, month, day of the week, as in "30 9 * * mon-fri" (invalid_request)
        no such minute: the schedule is not valid: cron "61 * * * *": Number out of bounds; its fields are minute, hour, day of the month, month, day of the week, as in "30 9 * * mon-fri" (invalid_request)
        no such day: the schedule is not valid: cron "0 9 * * someday": CronPattern contains illegal character 'S' in part 'SOMEDAY'; its fields are minute, hour, day of the month, month, day of the week, as in "30 9 * * mon-fri" (invalid_request)
        empty: the schedule is not valid: cron "": it is empty; its fields are minute, hour, day of the month, month, day of the week, as in "30 9 * * mon-fri" (invalid_request)
        a year: the schedule is not valid: cron "0 0 9 * * * 2030": Pattern must have 5 or 6 fields when years are disallowed; its fields are minute, hour, day of the month, month, day of the week, as in "30 9 * * mon-fri" (invalid_request)
        never: the schedule is not valid: no time will ever fit it (invalid_request)
        no such zone: the schedule is not valid: time_zone: no time zone is called "Europe/Berln"; they are called as in Europe/Berlin; did you mean Europe/Berlin? (invalid_request)
        a zone for nothing: the schedule is not valid: time_zone: it says where `cron` tells the time; `every_ms` is the same everywhere (invalid_request)
        too often: the schedule is not valid: every_ms: it must be 1000 to 8640000000, not 10 (invalid_request)
        too seldom: the schedule is not valid: every_ms: it must be 1000 to 8640000000, not 8726400000 (invalid_request)
        no such workflow: there is no workflow nothing; there are: article, paper, strict, w (unknown_workflow)
        no such version: workflow w has no version 9; its versions are 1 to 1 (unknown_workflow)
        not an object: the input must be a JSON object (invalid_request)
        input: the input does not fit the input_schema of workflow strict: as a whole: "topic" is a required property (invalid_request)
        too large: the schedule is not valid: the input has 66571 bytes; at most 65536 are allowed here (too_large)
        too large without it: the schedule is not valid: without its input it has 9035 bytes; at most 8192 are allowed (too_large)
        its own key: the schedule is not valid: metadata: the key "schedule" is written by the schedule itself (invalid_request)
        empty key: the metadata is not valid: the key "" has 0 bytes; it must have 1 to 63 (invalid_request)
    "#]].assert_eq(&text);
    set(&mut world, "nightly", good()).unwrap();
    let rejection = get(&mut world, "nightl").unwrap_err();
    assert_eq!(rejection.message, "there is no schedule nightl; did you mean nightly?");
    assert_eq!(rejection.code, Code::UnknownSchedule);
}

#[test]
fn w19_when_the_run_before_is_live_a_schedule_does_as_it_says() {
    let mut world = world();
    for (name, overlap) in [("skips", Overlap::Skip), ("allows", Overlap::Allow), ("cancels", Overlap::Cancel)] {
        set(&mut world, name, Schedule { overlap, ..every(HOUR) }).unwrap();
    }
    world.wait(2 * HOUR);
    check(
        &mut world,
        &expect![[r#"
        3.0        +0ms  schedule_set skips, next +3600000ms  (request schedule.set)
        4.0        +0ms  schedule_set allows, next +3600000ms  (request schedule.set)
        5.0        +0ms  schedule_set cancels, next +3600000ms  (request schedule.set)
        6.0   +3600000ms  run_started w v1  (timer)
        6.1   +3600000ms  stage_ready a/1  (timer)
        6.2   +3600000ms  schedule_fired allows of +3600000ms: started r1, next +7200000ms  (timer)
        6.3   +3600000ms  run_started w v1  (timer)
        6.4   +3600000ms  stage_ready r2:a/1  (timer)
        6.5   +3600000ms  schedule_fired cancels of +3600000ms: started r2, next +7200000ms  (timer)
        6.6   +3600000ms  run_started w v1  (timer)
        6.7   +3600000ms  stage_ready r3:a/1  (timer)
        6.8   +3600000ms  schedule_fired skips of +3600000ms: started r3, next +7200000ms  (timer)
        7.0   +7200000ms  stage_ended r3:a/1 timed_out: no agent took it within 1 h: no agent is there that can do x; again at +7200847ms  (timer)
        7.1   +7200000ms  stage_ended r2:a/1 timed_out: no agent took it within 1 h: no agent is there that can do x; again at +7200886ms  (timer)
        7.2   +7200000ms  stage_ended a/1 timed_out: no agent took it within 1 h: no agent is there that can do x; again at +7200973ms  (timer)
        7.3   +7200000ms  run_started w v1  (timer)
        7.4   +7200000ms  stage_ready r4:a/1  (timer)
        7.5   +7200000ms  schedule_fired allows of +7200000ms: started r4, next +10800000ms  (timer)
        7.6   +7200000ms  run_started w v1  (timer)
        7.7   +7200000ms  stage_ready r5:a/1  (timer)
        7.8   +7200000ms  run_finished cancelled: schedule cancels has started the next run  (timer)
        7.9   +7200000ms  schedule_fired cancels of +7200000ms: started r5, next +10800000ms  (timer)
        7.10  +7200000ms  schedule_fired skips of +7200000ms: skipped r3, next +10800000ms  (timer)
    "#]],
    );
}

#[test]
fn w19_times_that_were_missed_are_made_up_for_by_one_run_unless_it_is_too_late() {
    let mut world = world();
    set(&mut world, "patient", Schedule { late_ms: Some(2 * HOUR), ..every(HOUR / 2) }).unwrap();
    set(&mut world, "strict", Schedule { late_ms: Some(60_000), ..every(HOUR / 2) }).unwrap();
    world.transcript();
    // Nobody leads for an hour and three quarters.
    world.now += HOUR / 4 * 7;
    world.lead();
    world.wait(0);
    check(
        &mut world,
        &expect![[r#"
        6.0   +6300000ms  run_started w v1  (timer)
        6.1   +6300000ms  stage_ready a/1  (timer)
        6.2   +6300000ms  schedule_fired patient of +5400000ms: started r1, next +7200000ms  (timer)
        6.3   +6300000ms  schedule_fired strict of +5400000ms: late, next +7200000ms  (timer)
    "#]],
    );
}

#[test]
fn w19_a_schedule_that_is_paused_starts_nothing_and_one_that_is_removed_is_gone() {
    let mut world = world();
    set(&mut world, "b", every(HOUR)).unwrap();
    set(&mut world, "a", Schedule { paused: true, ..every(HOUR) }).unwrap();
    assert!(pause(&mut world, "b", true).next.is_empty());
    world.wait(3 * HOUR);
    pause(&mut world, "a", false);
    world.wait(HOUR);
    let names = |list: &ScheduleList| list.schedules.iter().map(|view| view.name.to_string()).collect::<Vec<_>>();
    let all = list(&mut world, ListSchedules::default());
    assert_eq!((names(&all), all.more), (vec!["a".to_owned(), "b".to_owned()], false));
    let first = list(&mut world, ListSchedules { limit: Some(1), ..ListSchedules::default() });
    assert_eq!((names(&first), first.more), (vec!["a".to_owned()], true));
    let rest = list(&mut world, ListSchedules { after: Some("a".parse().unwrap()), ..ListSchedules::default() });
    assert_eq!((names(&rest), rest.more), (vec!["b".to_owned()], false));
    let none = list(&mut world, ListSchedules { workflow: Some(name("other")), ..ListSchedules::default() });
    assert!(none.schedules.is_empty());
    for schedule in ["a", "b"] {
        let request = RemoveSchedule { name: schedule.parse().unwrap() };
        world.ask::<ScheduleView>(WorkflowRequest::RemoveSchedule(request)).unwrap();
    }
    assert_eq!(get(&mut world, "a").unwrap_err().code, Code::UnknownSchedule);
    end_all(&mut world);
    world.wait(3 * HOUR);
    check(
        &mut world,
        &expect![[r#"
        3.0        +0ms  schedule_set b, next +3600000ms  (request schedule.set)
        4.0        +0ms  schedule_set a, next not at all  (request schedule.set)
        5.0        +0ms  schedule_set b, next not at all  (request schedule.pause)
        6.0   +10800000ms  schedule_set a, next +14400000ms  (request schedule.pause)
        7.0   +14400000ms  run_started w v1  (timer)
        7.1   +14400000ms  stage_ready a/1  (timer)
        7.2   +14400000ms  schedule_fired a of +14400000ms: started r1, next +18000000ms  (timer)
        8.0   +14400000ms  schedule_removed a  (request schedule.remove)
        9.0   +14400000ms  schedule_removed b  (request schedule.remove)
        10.0  +14400000ms  stage_ended a/1 cancelled: it was cancelled  (request run.cancel)
        10.1  +14400000ms  run_finished cancelled: it was cancelled  (request run.cancel)
    "#]],
    );
}

#[test]
fn w19_a_schedule_waits_while_too_much_is_under_way_and_what_matters_more_goes_first() {
    let mut world = World::empty();
    world.config.max_live_runs = 1;
    world.lead();
    world.register(&workflow(&[("a", &[])]));
    let live = world.start("w");
    set(&mut world, "low", every(HOUR)).unwrap();
    world.wait(HOUR + 7000);
    set(&mut world, "high", Schedule { priority: 1, ..every(1000) }).unwrap();
    world.transcript();
    world.wait(1000);
    world.cancel(live, None).unwrap();
    world.wait(6000);
    end_all(&mut world);
    pause(&mut world, "high", true);
    world.wait(6000);
    check(
        &mut world,
        &expect![[r#"
            8.0   +3608000ms  stage_ended a/2 cancelled: it was cancelled  (request run.cancel)
            8.1   +3608000ms  run_finished cancelled: it was cancelled  (request run.cancel)
            9.0   +3609000ms  run_started w v1  (timer)
            9.1   +3609000ms  stage_ready r2:a/1  (timer)
            9.2   +3609000ms  schedule_fired high of +3609000ms: started r2, next +3610000ms  (timer)
            10.0  +3610000ms  schedule_fired high of +3610000ms: skipped r2, next +3611000ms  (timer)
            11.0  +3612000ms  schedule_fired high of +3612000ms: skipped r2, next +3613000ms  (timer)
            12.0  +3614000ms  stage_ended r2:a/1 cancelled: it was cancelled  (request run.cancel)
            12.1  +3614000ms  run_finished cancelled: it was cancelled  (request run.cancel)
            13.0  +3614000ms  schedule_set high, next not at all  (request schedule.pause)
            14.0  +3616000ms  run_started w v1  (timer)
            14.1  +3616000ms  stage_ready r3:a/1  (timer)
            14.2  +3616000ms  schedule_fired low of +3600000ms: started r3, next +7200000ms  (timer)
        "#]],
    );
}

#[test]
fn w19_a_start_that_can_not_be_is_written_down() {
    let mut world = world();
    set(&mut world, "s", every(HOUR)).unwrap();
    let mut strict = workflow(&[("a", &[])]);
    strict.input_schema = Some(serde_json::json!({ "required": ["topic"] }));
    world.register(&strict);
    world.wait(HOUR);
    check(
        &mut world,
        &expect![[r#"
        3.0        +0ms  schedule_set s, next +3600000ms  (request schedule.set)
        4.0        +0ms  workflow_registered w v2  (request workflow.register)
        5.0   +3600000ms  schedule_fired s of +3600000ms: refused: the input does not fit the input_schema of workflow w: as a whole: "topic" is a required property, next +7200000ms  (timer)
    "#]],
    );
}

#[test]
fn w19_a_crash_at_any_commit_starts_nothing_twice() {
    for stores in 0.. {
        let mut world = World::empty();
        world.lead();
        world.register(&workflow(&[("a", &[])]));
        set(&mut world, "s", Schedule { overlap: Overlap::Cancel, ..every(HOUR) }).unwrap();
        // Each record is a commit of its own from here on.
        world.max_bytes = 1;
        world.stores = stores;
        world.wait(2 * HOUR);
        let died = world.stores == 0;
        world.lead();
        world.wait(0);
        let machine = world.processor.machine();
        let started = machine.history.len() + machine.runs.len();
        let expected = 1 + usize::from(world.now >= START + 2 * HOUR);
        assert_eq!(started, expected, "after {stores} commits");
        assert_eq!(machine.runs.len(), 1, "after {stores} commits");
        if !died {
            assert!(stores > 5, "there was a commit to die at");
            return;
        }
    }
}

#[test]
fn w19_a_run_that_a_leader_started_before_it_died_counts_however_late_that_is_seen() {
    let mut world = World::empty();
    world.lead();
    world.register(&workflow(&[("a", &[])]));
    set(&mut world, "s", Schedule { late_ms: Some(1000), ..every(HOUR) }).unwrap();
    world.transcript();
    // The run is stored, and what the time came to is not.
    (world.max_bytes, world.stores) = (1, 1);
    world.wait(HOUR);
    world.now += 5000;
    world.lead();
    world.wait(0);
    check(
        &mut world,
        &expect![[r#"
        4.0   +3600000ms  run_started w v1  (timer)
        5.0   +3605000ms  stage_ready a/1  (term began)
        6.0   +3605000ms  schedule_fired s of +3600000ms: started r1, next +7200000ms  (timer)
    "#]],
    );
    // Nobody else has such a key.
    let request = StartRun { key: Some("schedule:s:1".to_owned()), ..start("w") };
    let rejection = world.ask::<RunAccepted>(WorkflowRequest::StartRun(request)).unwrap_err();
    assert_eq!(rejection.message, "keys that begin with \"schedule:\" are those of runs that start by themselves");
}
