//! What begins before all is over that it waits for.

use baton_protocol::definition::{Approval, Definition, Mapping, OnFailure, Otherwise, RetryPolicy, Speculative};
use baton_protocol::record::{LeftReason, Outcome};
use baton_protocol::request::{
    DecideStage, Delegate, PauseRun, Report, ReportStatus, ResumeRun, RunAccepted, WorkflowRequest,
};
use baton_protocol::run::{RunStatus, Speculation, StageStatus};
use baton_protocol::{Code, Json, LeaseId, RunId};
use expect_test::expect;

use super::check;
use super::harness::{World, failed, json, succeeded, task};

/// `a` and `b`, which is optional; then `c`, which is given whether `b` gave 7, and begins early as if it did.
fn definition() -> Definition {
    let definition = Definition::builder("w")
        .add_stage("a", "x", &[])
        .add_stage("b", "x", &[])
        .with(|stage| stage.optional = true)
        .add_stage("c", "x", &["a", "b"])
        .with(|stage| {
            stage.input = Some(Mapping::One("{\"a\": results.a, \"good\": results.b == 7}".into()));
            stage.speculative = Some(Speculative { assume: [("b".parse().unwrap(), "7".into())].into() });
            stage.retry = RetryPolicy { max_attempts: 2, jitter: 0.0, ..RetryPolicy::default() };
        });
    definition.build().unwrap()
}

/// A run of which `a` is over and `b` under way, under a lease.
fn begun(definition: &Definition) -> (World, RunId, LeaseId) {
    let mut world = World::new();
    world.register(definition);
    let run = world.start("w");
    let b = world.assign(&task(run, "b", 1), "bob");
    report(&mut world, run, "a", 1, "[1]");
    (world, run, b)
}

fn report(world: &mut World, run: RunId, stage: &str, attempt: u32, result: &str) {
    let task = task(run, stage, attempt);
    let lease = world.assign(&task, "ann");
    world.report("ann", succeeded(lease, &task, result)).unwrap();
}

fn speculations(world: &mut World, run: RunId) -> Vec<(Option<Speculation>, Option<Outcome>)> {
    world.view(run).stages[2].attempts.iter().map(|attempt| (attempt.speculation, attempt.outcome)).collect()
}

#[test]
fn w12_what_was_done_early_counts_when_what_was_assumed_turns_out_so() {
    let (mut world, run, b) = begun(&definition());
    report(&mut world, run, "c", 1, "\"done\"");
    let view = world.view(run);
    assert_eq!((view.stages[2].status, &view.stages[2].result), (StageStatus::Pending, &None));
    assert_eq!(speculations(&mut world, run), [(Some(Speculation::Open), Some(Outcome::Succeeded))]);
    // Whoever leads then knows it as well.
    world.lead();
    world.report("bob", succeeded(b, &task(run, "b", 1), "7")).unwrap();
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        3.2        +0ms  stage_ready b/1  (request run.start)
        4.0        +0ms  assigned b/1 to bob as 1  (request lease.assign)
        5.0        +0ms  assigned a/1 to ann as 2  (request lease.assign)
        6.0        +0ms  stage_ended a/1 succeeded  (request agent.report)
        6.1        +0ms  stage_ready c/1 early given {"a":[1],"good":true}  (request agent.report)
        7.0        +0ms  assigned c/1 to ann as 3  (request lease.assign)
        8.0        +0ms  stage_ended c/1 early succeeded  (request agent.report)
        10.0       +0ms  stage_ended b/1 succeeded  (request agent.report)
        10.1       +0ms  stage_committed c/1  (request agent.report)
        10.2       +0ms  run_finished succeeded  (request agent.report)
    "#]],
    );
    let view = world.view(run);
    assert_eq!(view.stages[2].result, Some(json("\"done\"")));
    assert_eq!(speculations(&mut world, run), [(Some(Speculation::Committed), Some(Outcome::Succeeded))]);
}

#[test]
fn w12_what_is_under_way_then_goes_on_as_one_like_others() {
    let (mut world, run, b) = begun(&definition());
    let c = world.assign(&task(run, "c", 1), "ann");
    world.report("bob", succeeded(b, &task(run, "b", 1), "7")).unwrap();
    assert_eq!(speculations(&mut world, run), [(Some(Speculation::Committed), None)]);
    world.report("ann", failed(c, &task(run, "c", 1), "no", true)).unwrap();
    // It counts: one attempt is left.
    world.wait(1000);
    report(&mut world, run, "c", 2, "2");
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        3.2        +0ms  stage_ready b/1  (request run.start)
        4.0        +0ms  assigned b/1 to bob as 1  (request lease.assign)
        5.0        +0ms  assigned a/1 to ann as 2  (request lease.assign)
        6.0        +0ms  stage_ended a/1 succeeded  (request agent.report)
        6.1        +0ms  stage_ready c/1 early given {"a":[1],"good":true}  (request agent.report)
        7.0        +0ms  assigned c/1 to ann as 3  (request lease.assign)
        8.0        +0ms  stage_ended b/1 succeeded  (request agent.report)
        8.1        +0ms  stage_committed c/1  (request agent.report)
        9.0        +0ms  stage_ended c/1 failed: no; again at +1000ms  (request agent.report)
        10.0    +1000ms  stage_ready c/2 given {"a":[1],"good":true}  (timer)
        11.0    +1000ms  assigned c/2 to ann as 4  (request lease.assign)
        12.0    +1000ms  stage_ended c/2 succeeded  (request agent.report)
        12.1    +1000ms  run_finished succeeded  (request agent.report)
    "#]],
    );
}

#[test]
fn w12_what_was_given_something_else_is_thrown_away() {
    // It was done already.
    let (mut world, run, b) = begun(&definition());
    report(&mut world, run, "c", 1, "\"for nothing\"");
    world.report("bob", succeeded(b, &task(run, "b", 1), "8")).unwrap();
    assert_eq!(speculations(&mut world, run), [(Some(Speculation::Discarded), Some(Outcome::Succeeded)), (None, None)]);
    report(&mut world, run, "c", 2, "\"done\"");
    assert_eq!(world.view(run).stages[2].result, Some(json("\"done\"")));
    world.transcript();

    // It is under way, and its agent is called back.
    let run = world.start("w");
    let b = world.assign(&task(run, "b", 1), "bob");
    report(&mut world, run, "a", 1, "[1]");
    let c = world.assign(&task(run, "c", 1), "ann");
    world.report("bob", failed(b, &task(run, "b", 1), "no", false)).unwrap();
    let late = world.report("ann", succeeded(c, &task(run, "c", 1), "1")).unwrap_err();
    assert_eq!(late.code, Code::StaleLease);
    check(
        &mut world,
        &expect![[r#"
        12.0       +0ms  run_started w v1  (request run.start)
        12.1       +0ms  stage_ready r2:a/1  (request run.start)
        12.2       +0ms  stage_ready r2:b/1  (request run.start)
        13.0       +0ms  assigned r2:b/1 to bob as 5  (request lease.assign)
        14.0       +0ms  assigned r2:a/1 to ann as 6  (request lease.assign)
        15.0       +0ms  stage_ended r2:a/1 succeeded  (request agent.report)
        15.1       +0ms  stage_ready r2:c/1 early given {"a":[1],"good":true}  (request agent.report)
        16.0       +0ms  assigned r2:c/1 to ann as 7  (request lease.assign)
        17.0       +0ms  stage_ended r2:b/1 failed: no  (request agent.report)
        17.1       +0ms  stage_ended r2:c/1 early cancelled: it began early, and what it was given is not what the stage is given  (request agent.report)
        17.2       +0ms  stage_ready r2:c/2 given {"a":[1],"good":false}  (request agent.report)
    "#]],
    );
    expect!["lease 7 of task 019aa2a3-4380-7c26-9803-01d51d4c6e48/c/1 has ended, cancelled: it began early, and what it was given is not what the stage is given"].assert_eq(&late.message);
}

#[test]
fn w12_what_comes_to_nothing_early_is_done_when_it_is_due_with_all_its_attempts() {
    let (mut world, run, b) = begun(&definition());
    let c = world.assign(&task(run, "c", 1), "ann");
    world.leave("ann", LeftReason::Lost);
    assert_eq!(speculations(&mut world, run), [(Some(Speculation::Discarded), Some(Outcome::Lost))]);
    assert!(world.report("ann", succeeded(c, &task(run, "c", 1), "1")).is_err());
    world.report("bob", succeeded(b, &task(run, "b", 1), "7")).unwrap();
    for attempt in [2, 3] {
        let task = task(run, "c", attempt);
        let lease = world.assign(&task, "ann");
        world.report("ann", failed(lease, &task, "no", true)).unwrap();
        world.wait(2000);
    }
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        3.2        +0ms  stage_ready b/1  (request run.start)
        4.0        +0ms  assigned b/1 to bob as 1  (request lease.assign)
        5.0        +0ms  assigned a/1 to ann as 2  (request lease.assign)
        6.0        +0ms  stage_ended a/1 succeeded  (request agent.report)
        6.1        +0ms  stage_ready c/1 early given {"a":[1],"good":true}  (request agent.report)
        7.0        +0ms  assigned c/1 to ann as 3  (request lease.assign)
        8.0        +0ms  agent_left ann  (request agent.leave)
        9.0        +0ms  stage_ended c/1 early lost: agent ann was lost: it was not heard of for the time of a lease  (log 8)
        10.0       +0ms  stage_ended b/1 succeeded  (request agent.report)
        10.1       +0ms  stage_ready c/2 given {"a":[1],"good":true}  (request agent.report)
        11.0       +0ms  assigned c/2 to ann as 5  (request lease.assign)
        12.0       +0ms  stage_ended c/2 failed: no; again at +2000ms  (request agent.report)
        13.0    +2000ms  stage_ready c/3 given {"a":[1],"good":true}  (timer)
        14.0    +2000ms  assigned c/3 to ann as 6  (request lease.assign)
        15.0    +2000ms  stage_ended c/3 failed: no  (request agent.report)
        15.1    +2000ms  run_finished failed: stage c failed after 3 attempts: no  (request agent.report)
    "#]],
    );
}

#[test]
fn w12_nothing_begins_early_where_nothing_can_be_assumed_or_it_would_not_run() {
    let mut definition = definition();
    definition.stages[2].when = Some("results.b != 7".into());
    let (mut world, run, b) = begun(&definition);
    assert_eq!(speculations(&mut world, run), [(Some(Speculation::Discarded), Some(Outcome::Failed))]);
    world.report("bob", succeeded(b, &task(run, "b", 1), "8")).unwrap();
    report(&mut world, run, "c", 2, "2");
    let assume = &mut definition.stages[2].speculative.as_mut().unwrap().assume;
    assume.insert("b".parse().unwrap(), "results.a.missing".into());
    world.register(&definition);
    let run = world.start("w");
    report(&mut world, run, "a", 1, "{}");
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        3.2        +0ms  stage_ready b/1  (request run.start)
        4.0        +0ms  assigned b/1 to bob as 1  (request lease.assign)
        5.0        +0ms  assigned a/1 to ann as 2  (request lease.assign)
        6.0        +0ms  stage_ended a/1 succeeded  (request agent.report)
        6.1        +0ms  stage_ended c/1 early failed (assumption_failed): by what is assumed it does not run: its condition gave false  (request agent.report)
        7.0        +0ms  stage_ended b/1 succeeded  (request agent.report)
        7.1        +0ms  stage_ready c/2 given {"a":[1],"good":false}  (request agent.report)
        8.0        +0ms  assigned c/2 to ann as 3  (request lease.assign)
        9.0        +0ms  stage_ended c/2 succeeded  (request agent.report)
        9.1        +0ms  run_finished succeeded  (request agent.report)
        10.0       +0ms  workflow_registered w v2  (request workflow.register)
        11.0       +0ms  run_started w v2  (request run.start)
        11.1       +0ms  stage_ready r2:a/1  (request run.start)
        11.2       +0ms  stage_ready r2:b/1  (request run.start)
        12.0       +0ms  assigned r2:a/1 to ann as 4  (request lease.assign)
        13.0       +0ms  stage_ended r2:a/1 succeeded  (request agent.report)
        13.1       +0ms  stage_ended r2:c/1 early failed (assumption_failed): what b gives can not be assumed: there is no key "missing"  (request agent.report)
    "#]],
    );
}

#[test]
fn w12_what_it_depends_on_must_have_begun_and_all_else_be_over() {
    let mut definition = definition();
    definition.stages[1].depends_on = vec!["a".parse().unwrap()];
    let mut world = World::new();
    world.register(&definition);
    let run = world.start("w");
    let a = world.assign(&task(run, "a", 1), "ann");
    assert!(world.view(run).stages[2].attempts.is_empty());
    // In a pause nothing begins, early or not.
    world.ask::<RunAccepted>(WorkflowRequest::PauseRun(PauseRun { run, reason: None })).unwrap();
    world.report("ann", succeeded(a, &task(run, "a", 1), "1")).unwrap();
    assert!(world.view(run).stages[2].attempts.is_empty());
    world.ask::<RunAccepted>(WorkflowRequest::ResumeRun(ResumeRun { run })).unwrap();
    assert_eq!(world.view(run).stages[2].attempts.len(), 1);
    // The run ends, and what began early with it.
    world.assign(&task(run, "c", 1), "ann");
    world.cancel(run, None).unwrap();
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        4.0        +0ms  assigned a/1 to ann as 1  (request lease.assign)
        5.0        +0ms  run_paused ""  (request run.pause)
        6.0        +0ms  stage_ended a/1 succeeded  (request agent.report)
        7.0        +0ms  run_resumed  (request run.resume)
        7.1        +0ms  stage_ready b/1 with a  (request run.resume)
        7.2        +0ms  stage_ready c/1 early given {"a":1,"good":true}  (request run.resume)
        8.0        +0ms  assigned c/1 to ann as 2  (request lease.assign)
        9.0        +0ms  stage_ended b/1 cancelled: it was cancelled  (request run.cancel)
        9.1        +0ms  stage_ended c/1 cancelled: it was cancelled  (request run.cancel)
        9.2        +0ms  run_finished cancelled: it was cancelled  (request run.cancel)
    "#]],
    );
}

#[test]
fn w12_while_people_decide_what_follows_is_prepared() {
    let definition = Definition::builder("w")
        .add_approval("ok", Approval { on_reject: Otherwise::Continue, ..Approval::default() }, &[])
        .add_stage("c", "x", &["ok"])
        .with(|stage| {
            stage.when = Some("results.ok.approved".into());
            stage.input = Some(Mapping::One("results.ok.approved".into()));
            let assume = [("ok".parse().unwrap(), "{\"approved\": true}".into())].into();
            stage.speculative = Some(Speculative { assume });
        })
        .build()
        .unwrap();
    let mut world = World::new();
    world.register(&definition);
    for approved in [true, false] {
        let run = world.start("w");
        report(&mut world, run, "c", 1, "\"sent\"");
        let decide = DecideStage { run, stage: "ok".parse().unwrap(), approved, by: None, reason: None };
        world.ask::<serde_json::Value>(WorkflowRequest::DecideStage(decide)).unwrap();
        let view = world.view(run);
        let status = if approved { StageStatus::Succeeded } else { StageStatus::Skipped };
        assert_eq!((view.status, view.stages[1].status), (RunStatus::Succeeded, status));
    }
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_waits ok  (request run.start)
        3.2        +0ms  stage_ready c/1 early given true  (request run.start)
        4.0        +0ms  assigned c/1 to ann as 1  (request lease.assign)
        5.0        +0ms  stage_ended c/1 early succeeded  (request agent.report)
        6.0        +0ms  stage_ended ok/1 succeeded  (request stage.decide)
        6.1        +0ms  stage_committed c/1  (request stage.decide)
        6.2        +0ms  run_finished succeeded  (request stage.decide)
        7.0        +0ms  run_started w v1  (request run.start)
        7.1        +0ms  stage_waits ok  (request run.start)
        7.2        +0ms  stage_ready r2:c/1 early given true  (request run.start)
        8.0        +0ms  assigned r2:c/1 to ann as 2  (request lease.assign)
        9.0        +0ms  stage_ended r2:c/1 early succeeded  (request agent.report)
        10.0       +0ms  stage_ended r2:ok/1 succeeded  (request stage.decide)
        10.1       +0ms  stage_skipped r2:c: condition  (request stage.decide)
        10.2       +0ms  run_finished succeeded  (request stage.decide)
    "#]],
    );
}

#[test]
fn w12_what_began_early_does_not_delegate_and_a_report_that_comes_again_is_answered_the_same() {
    let (mut world, run, b) = begun(&definition());
    let of_c = task(run, "c", 1);
    let c = world.assign(&of_c, "ann");
    let stages = json("[{\"name\":\"s\",\"agent_type\":\"x\"}]");
    let delegate = Some(Delegate { stages, input: Json::null(), aggregate: false });
    let delegates = Report { result: None, delegate, ..succeeded(c, &of_c, "1") };
    assert_eq!(delegates.status, ReportStatus::Succeeded);
    world.report("ann", delegates).unwrap();
    let attempt = &world.view(run).stages[2].attempts[0];
    assert_eq!((attempt.outcome, attempt.code.as_deref()), (Some(Outcome::Failed), Some("invalid_delegation")));

    let (mut other, run, b_of_other) = begun(&definition());
    let of_c = task(run, "c", 1);
    let c = other.assign(&of_c, "ann");
    for _ in 0..2 {
        other.report("ann", succeeded(c, &of_c, "1")).unwrap();
    }
    assert!(other.report("ann", succeeded(c, &of_c, "2")).is_err(), "another one was stored");
    other.report("bob", succeeded(b_of_other, &task(run, "b", 1), "8")).unwrap();
    // Nothing of it is left, and it was stored all the same; the other was not.
    other.report("ann", succeeded(c, &of_c, "1")).unwrap();
    assert!(other.report("ann", succeeded(c, &of_c, "2")).is_err());
    let _ = b;
}

#[test]
fn w12_a_fallback_that_is_depended_on_for_itself_must_be_over() {
    let mut definition = definition();
    definition.stages[1].optional = false;
    definition.stages[1].on_failure = OnFailure::Fallback("d".parse().unwrap());
    let d = Definition::builder("w").add_stage("d", "x", &[]).build().unwrap().stages.remove(0);
    definition.stages.push(d);
    definition.stages[2].depends_on.push("d".parse().unwrap());
    let (mut world, run, b) = begun(&definition);
    assert!(world.view(run).stages[2].attempts.is_empty(), "whether d runs is known when b is over");
    world.report("bob", succeeded(b, &task(run, "b", 1), "7")).unwrap();
    report(&mut world, run, "c", 1, "1");
    assert_eq!(world.view(run).status, RunStatus::Succeeded);
    // Where it is not, it need not be.
    definition.stages[2].depends_on.pop();
    world.register(&definition);
    let run = world.start("w");
    report(&mut world, run, "a", 1, "1");
    assert_eq!(speculations(&mut world, run), [(Some(Speculation::Open), None)]);
}
