//! Conditions, joins, mappings, schemas, failures and what they lead to.

use std::collections::BTreeMap;

use baton_protocol::definition::{Definition, Join, Mapping, OnFailure, RetryPolicy};
use baton_protocol::record::{Outcome, SkipReason, WorkflowRecord};
use baton_protocol::request::{Report, RunAccepted, StartRun, WorkflowRequest};
use baton_protocol::run::{RunStatus, StageStatus};
use baton_protocol::{Code, Json, Rejection, RunId, StageName};
use expect_test::expect;
use serde_json::json;

use super::harness::{START, World, failed, json as text, start, succeeded, task};
use super::{check, workflow};
use crate::definition;

fn with_input(world: &mut World, input: &str) -> Result<RunId, Rejection> {
    let request = StartRun { input: text(input), ..start("w") };
    world.ask::<RunAccepted>(WorkflowRequest::StartRun(request)).map(|accepted| accepted.run)
}

fn world(definition: &Definition) -> World {
    let mut world = World::new();
    world.register(definition);
    world.agent("a1", "s0", "x");
    world.transcript();
    world
}

fn named(name: &str) -> StageName {
    StageName::new(name).unwrap()
}

/// Reports a result for the first attempt at a stage, at once.
fn gives(world: &mut World, run: RunId, stage: &str, result: &str) {
    let task = task(run, stage, 1);
    let lease = world.assign(&task, "a1");
    world.report("a1", succeeded(lease, &task, result)).unwrap();
}

fn fails(world: &mut World, run: RunId, stage: &str, attempt: u32, retryable: bool) {
    let task = task(run, stage, attempt);
    let lease = world.assign(&task, "a1");
    world.report("a1", failed(lease, &task, "no luck", retryable)).unwrap();
}

#[test]
fn w4_a_branch_is_taken_and_the_other_one_is_skipped_up_to_the_join() {
    let definition = definition::parse(
        "name: w
stages:
  - { name: triage, agent_type: x }
  - { name: quick, agent_type: x, depends_on: [triage], when: results.triage.urgent }
  - { name: slow, agent_type: x, depends_on: [triage], when: '!results.triage.urgent' }
  - { name: review, agent_type: x, depends_on: [slow] }
  - { name: answer, agent_type: x, depends_on: [quick, review] }
",
    )
    .unwrap();
    let mut world = world(&definition);
    let run = world.start("w");
    gives(&mut world, run, "triage", "{\"urgent\":true}");
    gives(&mut world, run, "quick", "\"now\"");
    gives(&mut world, run, "answer", "\"done\"");
    check(
        &mut world,
        &expect![[r#"
        4.0        +0ms  run_started w v1  (request run.start)
        4.1        +0ms  stage_ready triage/1  (request run.start)
        5.0        +0ms  assigned triage/1 to a1 as 2  (request lease.assign)
        6.0        +0ms  stage_ended triage/1 succeeded  (request agent.report)
        6.1        +0ms  stage_ready quick/1 with triage  (request agent.report)
        6.2        +0ms  stage_skipped slow: condition  (request agent.report)
        6.3        +0ms  stage_skipped review: dependencies  (request agent.report)
        7.0        +0ms  assigned quick/1 to a1 as 3  (request lease.assign)
        8.0        +0ms  stage_ended quick/1 succeeded  (request agent.report)
        8.1        +0ms  stage_ready answer/1 with quick  (request agent.report)
        9.0        +0ms  assigned answer/1 to a1 as 4  (request lease.assign)
        10.0       +0ms  stage_ended answer/1 succeeded  (request agent.report)
        10.1       +0ms  run_finished succeeded  (request agent.report)
    "#]],
    );
    let view = world.view(run);
    assert_eq!(view.status, RunStatus::Succeeded);
    let skipped: Vec<_> = view.stages.iter().filter_map(|stage| stage.skipped).collect();
    assert_eq!(skipped, [SkipReason::Condition, SkipReason::Dependencies]);
    assert_eq!(view.stages[2].status, StageStatus::Skipped);
}

#[test]
fn w4_joins_say_which_dependencies_must_have_run() {
    let mut definition =
        workflow(&[("a", &[]), ("b", &[]), ("any", &["a", "b"]), ("all", &["a", "b"]), ("end", &["a"])]);
    definition.stages[0].when = Some("false".into());
    definition.stages[3].join = Join::All;
    definition.stages[4].join = Join::Always;
    let mut world = world(&definition);
    let run = world.start("w");
    gives(&mut world, run, "b", "1");
    let status: Vec<_> = world.view(run).stages.iter().map(|stage| stage.status).collect();
    use StageStatus::{Ready, Skipped, Succeeded};
    assert_eq!(status, [Skipped, Succeeded, Ready, Skipped, Ready]);
}

#[test]
fn w4_a_run_all_of_whose_stages_are_skipped_succeeds_at_once() {
    let mut definition = workflow(&[("a", &[]), ("b", &["a"]), ("c", &["b"])]);
    definition.stages[0].when = Some("input.go == true".into());
    let mut world = world(&definition);
    with_input(&mut world, "{\"go\":false}").unwrap();
    check(
        &mut world,
        &expect![[r#"
        4.0        +0ms  run_started w v1  (request run.start)
        4.1        +0ms  stage_skipped a: condition  (request run.start)
        4.2        +0ms  stage_skipped b: dependencies  (request run.start)
        4.3        +0ms  stage_skipped c: dependencies  (request run.start)
        4.4        +0ms  run_finished succeeded  (request run.start)
    "#]],
    );
}

#[test]
fn w4_a_condition_that_can_not_be_evaluated_fails_the_stage() {
    let mut definition = workflow(&[("a", &[]), ("b", &["a"])]);
    definition.stages[1].when = Some("results.a.score > 0.5".into());
    let mut world = world(&definition);
    let run = world.start("w");
    gives(&mut world, run, "a", "{\"points\":7}");
    check(
        &mut world,
        &expect![[r#"
        4.0        +0ms  run_started w v1  (request run.start)
        4.1        +0ms  stage_ready a/1  (request run.start)
        5.0        +0ms  assigned a/1 to a1 as 2  (request lease.assign)
        6.0        +0ms  stage_ended a/1 succeeded  (request agent.report)
        6.1        +0ms  stage_ended b/1 failed (condition_failed): its condition (when) fails: there is no key "score"  (request agent.report)
        6.2        +0ms  run_finished failed: stage b failed after 1 attempt: its condition (when) fails: there is no key "score"  (request agent.report)
    "#]],
    );
    let view = world.view(run);
    assert_eq!(view.stages[1].attempts[0].code.as_deref(), Some("condition_failed"));
    assert_eq!(view.stages[1].attempts[0].outcome, Some(Outcome::Failed));
}

#[test]
fn w4_a_stage_that_runs_alone_is_looked_at_when_it_would_begin() {
    let mut definition = workflow(&[("a", &[]), ("b", &[])]);
    definition.stages[1].parallel = false;
    definition.stages[1].when = Some("false".into());
    let mut world = world(&definition);
    let run = world.start("w");
    assert_eq!(world.view(run).stages[1].status, StageStatus::Pending);
    gives(&mut world, run, "a", "1");
    assert_eq!(world.view(run).status, RunStatus::Succeeded);
}

#[test]
fn w3_inputs_and_outputs_are_mapped() {
    let mut definition = workflow(&[("a", &[]), ("b", &["a"])]);
    definition.stages[0].output = Some(Mapping::Each(
        [("words", "size(result.text)"), ("topic", "input.topic")].map(|(k, v)| (k.to_owned(), v.into())).into(),
    ));
    definition.stages[1].input = Some(Mapping::One("{'topic': results.a.topic, 'most': results.a.words * 2}".into()));
    let mut world = world(&definition);
    let run = world.start("w");
    let first = task(run, "a", 1);
    let lease = world.assign(&first, "a1");
    world.report("a1", succeeded(lease, &first, "{\"text\":\"four\"}")).unwrap();
    // The same report is the same report, though its result is kept in another form; another one is not.
    world.report("a1", succeeded(lease, &first, "{\"text\":\"four\"}")).unwrap();
    let other = world.report("a1", succeeded(lease, &first, "{\"text\":\"three\"}")).unwrap_err();
    assert_eq!(other.code, Code::StaleLease);
    check(
        &mut world,
        &expect![[r#"
        4.0        +0ms  run_started w v1  (request run.start)
        4.1        +0ms  stage_ready a/1  (request run.start)
        5.0        +0ms  assigned a/1 to a1 as 2  (request lease.assign)
        6.0        +0ms  stage_ended a/1 succeeded  (request agent.report)
        6.1        +0ms  stage_ready b/1 with a given {"most":8,"topic":"tea"}  (request agent.report)
    "#]],
    );
    let view = world.view(run);
    assert_eq!(view.stages[0].result, Some(text("{\"topic\":\"tea\",\"words\":4}")));
}

#[test]
fn w8_every_attempt_is_given_the_same_input() {
    let mut definition = workflow(&[("a", &[])]);
    definition.stages[0].input = Some(Mapping::One("{'t': input.topic}".into()));
    let mut world = world(&definition);
    let run = world.start("w");
    fails(&mut world, run, "a", 1, true);
    world.wait(1000);
    let transcript = world.transcript();
    assert_eq!(transcript.matches("given {\"t\":\"tea\"}").count(), 2, "{transcript}");
}

#[test]
fn w3_the_input_of_a_run_must_fit_its_schema() {
    let mut definition = workflow(&[("a", &[])]);
    definition.input_schema = Some(json!({
        "type": "object",
        "required": ["topic"],
        "properties": { "topic": { "type": "string" }, "words": { "type": "integer", "maximum": 100 } },
    }));
    let mut world = world(&definition);
    let refusals = ["{}", "{\"topic\":7}", "{\"topic\":\"tea\",\"words\":1000}"].map(|input| {
        let rejection = with_input(&mut world, input).unwrap_err();
        assert_eq!(rejection.code, Code::InvalidRequest);
        rejection.message + "\n"
    });
    expect![[r#"
        the input does not fit the input_schema of workflow w: as a whole: "topic" is a required property
        the input does not fit the input_schema of workflow w: at /topic: the value is not of type "string"
        the input does not fit the input_schema of workflow w: at /words: the value is greater than the maximum of 100
    "#]]
    .assert_eq(&refusals.concat());
    with_input(&mut world, "{\"topic\":\"tea\"}").unwrap();
    assert_eq!(world.transcript().matches("run_started").count(), 1);
}

#[test]
fn w3_what_an_agent_is_given_and_gives_must_fit_its_schemas() {
    let mut definition = workflow(&[("a", &[]), ("b", &["a"])]);
    definition.stages[0].output_schema = Some(json!({ "type": "object", "required": ["text"] }));
    definition.stages[1].input = Some(Mapping::One("results.a.text".into()));
    definition.stages[1].input_schema = Some(json!({ "type": "string", "minLength": 3 }));
    definition.stages[1].optional = true;
    let mut world = world(&definition);
    let run = world.start("w");
    let first = task(run, "a", 1);
    let lease = world.assign(&first, "a1");
    world.report("a1", succeeded(lease, &first, "[1]")).unwrap();
    world.report("a1", succeeded(lease, &first, "[1]")).unwrap();
    world.wait(1000);
    let second = task(run, "a", 2);
    let lease = world.assign(&second, "a1");
    world.report("a1", succeeded(lease, &second, "{\"text\":\"no\"}")).unwrap();
    check(
        &mut world,
        &expect![[r#"
        4.0        +0ms  run_started w v1  (request run.start)
        4.1        +0ms  stage_ready a/1  (request run.start)
        5.0        +0ms  assigned a/1 to a1 as 2  (request lease.assign)
        6.0        +0ms  stage_ended a/1 failed (invalid_result): the result does not fit output_schema: as a whole: the value is not of type "object"; again at +860ms  (request agent.report)
        7.0      +860ms  stage_ready a/2  (timer)
        8.0     +1000ms  assigned a/2 to a1 as 3  (request lease.assign)
        9.0     +1000ms  stage_ended a/2 succeeded  (request agent.report)
        9.1     +1000ms  stage_ended b/1 failed (invalid_input): its input does not fit input_schema: as a whole: the value is shorter than 3 characters  (request agent.report)
        9.2     +1000ms  run_finished succeeded  (request agent.report)
    "#]],
    );
}

#[test]
fn w9_a_fallback_stands_in_for_a_stage_that_fails() {
    let mut definition = workflow(&[("a", &[]), ("plan_b", &[]), ("end", &["a"])]);
    definition.stages[0].on_failure = OnFailure::Fallback(named("plan_b"));
    definition.stages[2].input = Some(Mapping::One("{'a': results.a, 'status': status.a}".into()));
    let mut world = world(&definition);
    let run = world.start("w");
    fails(&mut world, run, "a", 1, false);
    gives(&mut world, run, "plan_b", "\"instead\"");
    gives(&mut world, run, "end", "1");
    check(
        &mut world,
        &expect![[r#"
        4.0        +0ms  run_started w v1  (request run.start)
        4.1        +0ms  stage_ready a/1  (request run.start)
        5.0        +0ms  assigned a/1 to a1 as 2  (request lease.assign)
        6.0        +0ms  stage_ended a/1 failed: no luck  (request agent.report)
        6.1        +0ms  stage_ready plan_b/1  (request agent.report)
        7.0        +0ms  assigned plan_b/1 to a1 as 3  (request lease.assign)
        8.0        +0ms  stage_ended plan_b/1 succeeded  (request agent.report)
        8.1        +0ms  stage_ready end/1 with a given {"a":"instead","status":"failed"}  (request agent.report)
        9.0        +0ms  assigned end/1 to a1 as 4  (request lease.assign)
        10.0       +0ms  stage_ended end/1 succeeded  (request agent.report)
        10.1       +0ms  run_finished succeeded  (request agent.report)
    "#]],
    );
    // It is skipped where it is not needed.
    let run = world.start("w");
    gives(&mut world, run, "a", "\"itself\"");
    assert_eq!(world.view(run).stages[1].skipped, Some(SkipReason::NotNeeded));
    gives(&mut world, run, "end", "1");
    assert_eq!(world.view(run).status, RunStatus::Succeeded);
}

#[test]
fn w9_fallbacks_form_a_chain_and_the_last_one_decides() {
    let mut definition = workflow(&[("a", &[]), ("b", &["a"]), ("c", &[]), ("end", &["a"])]);
    definition.stages[0].on_failure = OnFailure::Fallback(named("b"));
    definition.stages[1].on_failure = OnFailure::Fallback(named("c"));
    let mut world = world(&definition);
    let run = world.start("w");
    fails(&mut world, run, "a", 1, false);
    fails(&mut world, run, "b", 1, false);
    gives(&mut world, run, "c", "3");
    let end = world.transcript();
    assert!(end.contains("stage_ready end/1 with a"), "{end}");
    let run = world.start("w");
    for stage in ["a", "b", "c"] {
        fails(&mut world, run, stage, 1, false);
    }
    let view = world.view(run);
    assert_eq!(view.status, RunStatus::Failed);
    assert_eq!(view.reason.as_deref(), Some("stage c failed after 1 attempt: no luck"));
}

#[test]
fn w9_a_failure_cascades_as_declared_and_no_further() {
    // What continues leaves a stage without a result, and nothing else.
    let mut definition = workflow(&[("a", &[]), ("b", &[]), ("end", &["a", "b"])]);
    definition.stages[0].on_failure = OnFailure::Continue;
    let mut world = world(&definition);
    let run = world.start("w");
    fails(&mut world, run, "a", 1, false);
    assert_eq!(world.view(run).stages[1].status, StageStatus::Ready, "what runs beside it goes on");
    gives(&mut world, run, "b", "2");
    let transcript = world.transcript();
    assert!(transcript.contains("stage_ready end/1 with b"), "{transcript}");
    // What fails the run cancels what runs beside it.
    let run = world.start("w");
    fails(&mut world, run, "b", 1, false);
    let view = world.view(run);
    assert_eq!((view.status, view.stages[0].status), (RunStatus::Failed, StageStatus::Cancelled));
}

#[test]
fn w8_some_failures_are_not_tried_again() {
    let mut definition = workflow(&[("a", &[])]);
    definition.stages[0].retry = RetryPolicy {
        non_retryable: vec!["forbidden".to_owned(), "timed_out".to_owned()],
        jitter: 0.0,
        ..RetryPolicy::default()
    };
    definition.stages[0].timeout_ms = 5000;
    let mut world = world(&definition);
    let run = world.start("w");
    let coded = |code: &str, report: Report| Report { code: Some(code.to_owned()), ..report };
    for (attempt, code) in [(1, "busy"), (2, "forbidden")] {
        let task = task(run, "a", attempt);
        let lease = world.assign(&task, "a1");
        world.report("a1", coded(code, failed(lease, &task, "no", true))).unwrap();
        world.wait(1000);
    }
    let run = world.start("w");
    world.assign(&task(run, "a", 1), "a1");
    world.wait(5000);
    check(
        &mut world,
        &expect![[r#"
        4.0        +0ms  run_started w v1  (request run.start)
        4.1        +0ms  stage_ready a/1  (request run.start)
        5.0        +0ms  assigned a/1 to a1 as 2  (request lease.assign)
        6.0        +0ms  stage_ended a/1 failed (busy): no; again at +1000ms  (request agent.report)
        7.0     +1000ms  stage_ready a/2  (timer)
        8.0     +1000ms  assigned a/2 to a1 as 3  (request lease.assign)
        9.0     +1000ms  stage_ended a/2 failed (forbidden): no  (request agent.report)
        9.1     +1000ms  run_finished failed: stage a failed after 2 attempts: no  (request agent.report)
        10.0    +2000ms  run_started w v1  (request run.start)
        10.1    +2000ms  stage_ready r2:a/1  (request run.start)
        11.0    +2000ms  assigned r2:a/1 to a1 as 4  (request lease.assign)
        12.0    +7000ms  stage_ended r2:a/1 timed_out after 5000ms: no report came within 5 s  (timer)
        12.1    +7000ms  run_finished failed: stage a failed after 1 attempt: no report came within 5 s  (timer)
    "#]],
    );
}

#[test]
fn w10_all_attempts_together_may_take_no_longer_than_that() {
    let mut definition = workflow(&[("a", &[])]);
    definition.stages[0].retry = RetryPolicy { max_attempts: 9, jitter: 0.0, factor: 1.0, ..RetryPolicy::default() };
    definition.stages[0].total_timeout_ms = Some(2500);
    let mut world = world(&definition);
    // The third attempt is cut short.
    let run = world.start("w");
    fails(&mut world, run, "a", 1, true);
    world.wait(1000);
    fails(&mut world, run, "a", 2, true);
    world.wait(1000);
    world.assign(&task(run, "a", 3), "a1");
    world.wait(500);
    check(
        &mut world,
        &expect![[r#"
        4.0        +0ms  run_started w v1  (request run.start)
        4.1        +0ms  stage_ready a/1  (request run.start)
        5.0        +0ms  assigned a/1 to a1 as 2  (request lease.assign)
        6.0        +0ms  stage_ended a/1 failed: no luck; again at +1000ms  (request agent.report)
        7.0     +1000ms  stage_ready a/2  (timer)
        8.0     +1000ms  assigned a/2 to a1 as 3  (request lease.assign)
        9.0     +1000ms  stage_ended a/2 failed: no luck; again at +2000ms  (request agent.report)
        10.0    +2000ms  stage_ready a/3  (timer)
        11.0    +2000ms  assigned a/3 to a1 as 4  (request lease.assign)
        12.0    +2500ms  stage_ended a/3 timed_out after 500ms: it took longer than 2500 ms in all  (timer)
        12.1    +2500ms  run_finished failed: stage a failed after 3 attempts: it took longer than 2500 ms in all  (timer)
    "#]],
    );
    // An attempt that could only begin afterwards is not made.
    let run = world.start("w");
    world.wait(1600);
    fails(&mut world, run, "a", 1, true);
    let view = world.view(run);
    assert_eq!((view.status, view.stages[0].attempts.len()), (RunStatus::Failed, 1));
}

#[test]
fn a_stage_without_any_of_this_is_as_it_was() {
    let definition = workflow(&[("a", &[]), ("b", &["a"])]);
    let json = Json::of(&definition).unwrap();
    assert_eq!(
        json.as_str(),
        "{\"name\":\"w\",\"stages\":[{\"name\":\"a\",\"agent_type\":\"x\"},{\"name\":\"b\",\"agent_type\":\"x\",\
         \"depends_on\":[\"a\"]}]}"
    );
    let flows = crate::flow::Flows::of(&definition);
    assert!(flows.get(0).is_none() && flows.get(1).is_none());
}

#[test]
fn w3_the_builder_gives_what_yaml_gives_with_all_of_it() {
    let yaml = definition::parse(
        "name: w
input_schema: { required: [topic] }
stages:
  - name: a
    agent_type: x
    output: { words: size(result) }
    output_schema: { type: string }
    on_failure: { fallback: b }
    retry: { non_retryable: [forbidden] }
    total_timeout_ms: 5000
  - { name: b, agent_type: x }
  - name: c
    agent_type: x
    depends_on: [a]
    when: results.a.words > 3
    join: all
    input: results.a
    on_failure: continue
",
    )
    .unwrap();
    let built = Definition::builder("w")
        .input_schema(json!({ "required": ["topic"] }))
        .add_stage("a", "x", &[])
        .with(|stage| {
            stage.output = Some(Mapping::Each([("words".to_owned(), "size(result)".into())].into()));
            stage.output_schema = Some(json!({ "type": "string" }));
            stage.on_failure = OnFailure::Fallback(named("b"));
            stage.retry.non_retryable = vec!["forbidden".to_owned()];
            stage.total_timeout_ms = Some(5000);
        })
        .add_stage("b", "x", &[])
        .add_stage("c", "x", &["a"])
        .when("results.a.words > 3")
        .with(|stage| {
            stage.join = Join::All;
            stage.input = Some(Mapping::One("results.a".into()));
            stage.on_failure = OnFailure::Continue;
        })
        .build()
        .unwrap();
    assert_eq!(yaml, built);
    // And so does the JSON that either is written as.
    assert_eq!(definition::parse(Json::of(&built).unwrap().as_str()).unwrap(), built);
}

#[test]
fn w3_a_stage_may_be_more_urgent_than_its_run_and_due_and_so_is_the_run_that_does_it() {
    let mut world = World::new();
    world.register(&Definition::builder("inner").add_stage("i", "x", &[]).build().unwrap());
    let definition = Definition::builder("w")
        .add_stage("a", "x", &[])
        .add_stage("b", "x", &[])
        .with(|stage| stage.priority = 3)
        .add_workflow("c", "inner", &[])
        .with(|stage| (stage.priority, stage.due_ms) = (-1, Some(5000)))
        .build()
        .unwrap();
    world.register(&definition);
    let request = StartRun { priority: 2, ..start("w") };
    world.ask::<RunAccepted>(WorkflowRequest::StartRun(request)).unwrap();
    let ready = world.own_records().filter_map(|record| match record {
        WorkflowRecord::StageReady(record) => Some((record.task.stage.to_string(), record.priority)),
        _ => None,
    });
    let ready: BTreeMap<_, _> = ready.collect();
    assert_eq!(ready, [("a".to_owned(), 2), ("b".to_owned(), 5), ("i".to_owned(), 1)].into());
    let child = world.own_records().find_map(|record| match record {
        WorkflowRecord::RunStarted(record) if record.parent.is_some() => Some((record.priority, record.due)),
        _ => None,
    });
    assert_eq!(child, Some((1, Some(START + 5000))));
}
