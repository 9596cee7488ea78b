//! Results that are used again.

use baton_protocol::definition::{Cache, Definition, Mapping};
use baton_protocol::request::{
    ListRuns, RaiseEvent, RemoveSchedule, RerunRun, RunAccepted, RunList, SetSchedule, SetTrigger, WorkflowRequest,
};
use baton_protocol::run::{RunStatus, StageStatus};
use baton_protocol::{LeaseId, RunId};
use expect_test::expect;

use super::check;
use super::harness::{World, failed, json as text, start, succeeded, task};

const MINUTE: u64 = 60_000;

/// `facts`, then `text`; both may be used again for a minute.
fn definition() -> Definition {
    let cache = || Some(Cache { ttl_ms: MINUTE, key: None });
    let definition = Definition::builder("w")
        .add_stage("facts", "x", &[])
        .with(|stage| stage.cache = cache())
        .add_stage("text", "x", &["facts"])
        .with(|stage| stage.cache = cache());
    definition.build().unwrap()
}

fn begin(world: &mut World, input: &str, no_cache: bool) -> RunId {
    let mut request = start("w");
    (request.input, request.no_cache) = (text(input), no_cache);
    world.ask::<RunAccepted>(WorkflowRequest::StartRun(request)).unwrap().run
}

fn report(world: &mut World, run: RunId, stage: &str, result: &str) {
    let task = task(run, stage, 1);
    let lease: LeaseId = world.assign(&task, "ann");
    world.report("ann", succeeded(lease, &task, result)).unwrap();
}

/// A run in which both stages were done, and nothing is written down of it any more.
fn done(definition: &Definition) -> World {
    let mut world = World::new();
    world.register(definition);
    let run = begin(&mut world, "{\"topic\":\"tea\"}", false);
    report(&mut world, run, "facts", "[1,2]");
    report(&mut world, run, "text", "\"so\"");
    world.transcript();
    world
}

#[test]
fn w11_what_was_done_for_the_same_is_not_done_again() {
    let mut world = done(&definition());
    // Whoever leads then knows it as well.
    world.lead();
    let run = begin(&mut world, "{\"topic\":\"tea\"}", false);
    check(
        &mut world,
        &expect![[r#"
        9.0        +0ms  run_started w v1  (request run.start)
        9.1        +0ms  stage_cached r2:facts of r1: [1,2]  (request run.start)
        9.2        +0ms  stage_cached r2:text of r1: "so"  (request run.start)
        9.3        +0ms  run_finished succeeded  (request run.start)
    "#]],
    );
    let view = world.view(run);
    assert_eq!((view.status, view.cost.is_zero()), (RunStatus::Succeeded, true));
    let stage = &view.stages[1];
    assert_eq!((stage.status, stage.result.clone()), (StageStatus::Succeeded, Some(text("\"so\""))));
    assert!(stage.attempts.is_empty() && stage.cached.is_some_and(|of| of != run));
}

#[test]
fn w11_another_input_or_another_result_before_it_is_something_else() {
    let mut world = done(&definition());
    let run = begin(&mut world, "{\"topic\":\"coffee\"}", false);
    report(&mut world, run, "facts", "[1,2]");
    // The facts are the same, and the input is not.
    assert_eq!(world.view(run).stages[1].status, StageStatus::Ready);
    report(&mut world, run, "text", "\"so so\"");
    world.transcript();
    let run = begin(&mut world, "{\"topic\":\"tea\"}", true);
    report(&mut world, run, "facts", "[3]");
    report(&mut world, run, "text", "\"otherwise\"");
    // What a run gave that used nothing again is what is used from then on.
    begin(&mut world, "{\"topic\":\"tea\"}", false);
    check(
        &mut world,
        &expect![[r#"
        13.0       +0ms  run_started w v1  (request run.start)
        13.1       +0ms  stage_ready r3:facts/1  (request run.start)
        14.0       +0ms  assigned r3:facts/1 to ann as 5  (request lease.assign)
        15.0       +0ms  stage_ended r3:facts/1 succeeded  (request agent.report)
        15.1       +0ms  stage_ready r3:text/1 with facts  (request agent.report)
        16.0       +0ms  assigned r3:text/1 to ann as 6  (request lease.assign)
        17.0       +0ms  stage_ended r3:text/1 succeeded  (request agent.report)
        17.1       +0ms  run_finished succeeded  (request agent.report)
        18.0       +0ms  run_started w v1  (request run.start)
        18.1       +0ms  stage_cached r4:facts of r3: [3]  (request run.start)
        18.2       +0ms  stage_cached r4:text of r3: "otherwise"  (request run.start)
        18.3       +0ms  run_finished succeeded  (request run.start)
    "#]],
    );
}

#[test]
fn w11_a_result_is_used_for_as_long_as_its_stage_says() {
    let mut world = done(&definition());
    world.wait(MINUTE - 1);
    let run = begin(&mut world, "{\"topic\":\"tea\"}", false);
    assert_eq!(world.view(run).status, RunStatus::Succeeded);
    // It is not younger for having been used.
    world.wait(1);
    let run = begin(&mut world, "{\"topic\":\"tea\"}", false);
    assert_eq!(world.view(run).stages[0].status, StageStatus::Ready);
}

#[test]
fn w11_a_failure_is_not_kept_and_a_rerun_uses_nothing_again() {
    let mut world = World::new();
    let mut definition = definition();
    definition.stages[0].retry.max_attempts = 1;
    world.register(&definition);
    let run = begin(&mut world, "{}", false);
    let facts = task(run, "facts", 1);
    let lease = world.assign(&facts, "ann");
    world.report("ann", failed(lease, &facts, "no", true)).unwrap();
    let run = begin(&mut world, "{}", false);
    assert_eq!(world.view(run).stages[0].status, StageStatus::Ready);
    report(&mut world, run, "facts", "[]");
    report(&mut world, run, "text", "1");
    let request = RerunRun { run, from: "text".parse().unwrap(), limit: None, key: None, new_run: None };
    let again = world.ask::<RunAccepted>(WorkflowRequest::RerunRun(request)).unwrap().run;
    let view = world.view(again);
    assert_eq!((view.stages[0].status, view.stages[1].status), (StageStatus::Succeeded, StageStatus::Ready));
}

#[test]
fn w11_a_key_says_what_a_result_depends_on() {
    let mut definition = definition();
    for stage in &mut definition.stages {
        stage.output = Some(Mapping::One("result".into()));
        stage.cache = Some(Cache { ttl_ms: MINUTE, key: Some("input.topic".into()) });
    }
    let mut world = done(&definition);
    // What else is in the input does not matter.
    let run = begin(&mut world, "{\"topic\":\"tea\",\"asked\":\"by eve\"}", false);
    assert_eq!(world.view(run).status, RunStatus::Succeeded);
    let run = begin(&mut world, "{\"asked\":\"by eve\"}", false);
    let view = world.view(run);
    assert_eq!(view.status, RunStatus::Failed);
    assert_eq!(view.stages[0].attempts[0].code.as_deref(), Some("cache_failed"));
    let why = view.reason.unwrap_or_default();
    expect![[r#"stage facts failed after 1 attempt: the key of its cache can not be made: there is no key "topic""#]]
        .assert_eq(&why);
}

/// The run that was started last of those with this key in their metadata.
fn newest(world: &mut World, key: &str) -> RunId {
    let metadata = [(key.to_owned(), key[..1].to_owned())].into();
    let list: RunList = world.ask(WorkflowRequest::ListRuns(ListRuns { metadata, ..ListRuns::default() })).unwrap();
    list.runs[0].run
}

#[test]
fn w11_w19_w21_schedules_and_triggers_may_use_nothing_again() {
    let mut world = done(&definition());
    let says = |no_cache: bool| {
        let schedule =
            serde_json::json!({ "workflow": "w", "every_ms": 1000, "input": { "topic": "tea" }, "no_cache": no_cache });
        let start = serde_json::json!({ "workflow": "w", "no_cache": no_cache });
        let trigger = serde_json::json!({ "on": { "event": "e" }, "start": start });
        (schedule, trigger)
    };
    for (no_cache, status) in [(true, StageStatus::Ready), (false, StageStatus::Succeeded)] {
        let (schedule, trigger) = says(no_cache);
        let set = SetSchedule { name: "s".parse().unwrap(), schedule: serde_json::from_value(schedule).unwrap() };
        world.ask::<serde_json::Value>(WorkflowRequest::SetSchedule(Box::new(set))).unwrap();
        world.wait(1000);
        let by_schedule = newest(&mut world, "schedule");
        let remove = RemoveSchedule { name: "s".parse().unwrap() };
        world.ask::<serde_json::Value>(WorkflowRequest::RemoveSchedule(remove)).unwrap();
        let set = SetTrigger { name: "t".parse().unwrap(), trigger: serde_json::from_value(trigger).unwrap() };
        world.ask::<serde_json::Value>(WorkflowRequest::SetTrigger(Box::new(set))).unwrap();
        let raise = RaiseEvent {
            event: "e".parse().unwrap(),
            id: format!("{no_cache}"),
            source: None,
            data: text("{\"topic\":\"tea\"}"),
        };
        world.ask::<serde_json::Value>(WorkflowRequest::RaiseEvent(None, raise)).unwrap();
        let by_trigger = newest(&mut world, "trigger");
        assert_eq!(world.view(by_schedule).stages[0].status, status);
        assert_eq!(world.view(by_trigger).stages[0].status, status);
    }
}
