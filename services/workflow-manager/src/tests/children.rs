//! Stages that runs do.

use baton_protocol::definition::{ForEach, Mapping, OnFailure};
use baton_protocol::request::{CancelRun, Delegate, PauseRun, RerunRun, ResumeRun, SetTrigger, TriggerView};
use baton_protocol::{Budget, TaskId};

use super::*;

/// `plan`, then a run of `inner`, then `publish`; `inner` has `x`, then `y`.
fn definitions() -> (Definition, Definition) {
    let outer = Definition::builder("w")
        .add_stage("plan", "x", &[])
        .add_workflow("write", "inner", &["plan"])
        .with(|stage| stage.retry = attempts(2))
        .add_stage("publish", "x", &["write"]);
    let inner = Definition::builder("inner").add_stage("x", "x", &[]).add_stage("y", "x", &["x"]);
    (outer.build().unwrap(), inner.build().unwrap())
}

/// They are registered, one agent is there, and a run of the outer one has done its first stage.
fn begun(outer: &Definition, inner: &Definition) -> (World, RunId) {
    let mut world = World::new();
    world.register(inner);
    world.register(outer);
    world.agent("ann", "s1", "x");
    let run = world.start("w");
    world.work(run, "plan", "ann", 1000);
    (world, run)
}

fn statuses(world: &mut World, run: RunId) -> Vec<StageStatus> {
    world.view(run).stages.iter().map(|stage| stage.status).collect()
}

#[test]
fn w6_a_run_of_another_workflow_does_a_stage() {
    let (mut outer, inner) = definitions();
    outer.stages[1].input = Some(Mapping::One("{'about': input.topic, 'plan': results.plan}".into()));
    outer.stages[1].output = Some(Mapping::One("result.y".into()));
    let (mut world, run) = begun(&outer, &inner);
    let child = world.nth_run(2);
    // What is registered meanwhile is nothing to it.
    world.register(&Definition::builder("inner").add_stage("z", "x", &[]).build().unwrap());
    world.work(child, "x", "ann", 1000);
    world.work(child, "y", "ann", 1000);
    world.work(run, "publish", "ann", 1000);
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered inner v1  (request workflow.register)
        3.0        +0ms  workflow_registered w v1  (request workflow.register)
        4.0        +0ms  agent_registered ann session s1  (request agent.register)
        5.0        +0ms  run_started w v1  (request run.start)
        5.1        +0ms  stage_ready plan/1  (request run.start)
        6.0        +0ms  assigned plan/1 to ann as 2  (request lease.assign)
        7.0     +1000ms  stage_ended plan/1 succeeded after 1000ms  (request agent.report)
        7.1     +1000ms  run_started inner v1 as r2  given {"about":"tea","plan":"plan done"} does write/1  (request agent.report)
        7.2     +1000ms  stage_ready r2:x/1  (request agent.report)
        8.0     +1000ms  workflow_registered inner v2  (request workflow.register)
        9.0     +1000ms  assigned r2:x/1 to ann as 3  (request lease.assign)
        10.0    +2000ms  stage_ended r2:x/1 succeeded after 1000ms  (request agent.report)
        10.1    +2000ms  stage_ready r2:y/1 with x  (request agent.report)
        11.0    +2000ms  assigned r2:y/1 to ann as 4  (request lease.assign)
        12.0    +3000ms  stage_ended r2:y/1 succeeded after 1000ms  (request agent.report)
        12.1    +3000ms  run_finished r2 succeeded  (request agent.report)
        12.2    +3000ms  stage_ended write/1 succeeded  (request agent.report)
        12.3    +3000ms  stage_ready publish/1 with write  (request agent.report)
        13.0    +3000ms  assigned publish/1 to ann as 5  (request lease.assign)
        14.0    +4000ms  stage_ended publish/1 succeeded after 1000ms  (request agent.report)
        14.1    +4000ms  run_finished succeeded  (request agent.report)
    "#]],
    );
    let view = world.view(run);
    assert_eq!(view.status, RunStatus::Succeeded);
    assert_eq!(view.stages[1].workflow, Some(name("inner")));
    assert_eq!(view.stages[1].result, Some(json("\"y done\"")));
    let attempt = &view.stages[1].attempts[0];
    assert_eq!((attempt.child, attempt.cost.to_string()), (Some(child), "0.02".to_owned()));
    assert_eq!(view.cost.to_string(), "0.04", "what the other run cost is what this one cost");
    let view = world.view(child);
    let parent = view.parent.unwrap();
    assert_eq!((parent.task, parent.depth), (task(run, "write", 1), 1));
    assert_eq!(view.trace_id, world.view(run).trace_id);
}

#[test]
fn w6_what_comes_of_a_run_are_the_results_of_its_last_stages_in_their_order() {
    let (outer, mut inner) = definitions();
    inner = Definition {
        stages: Definition::builder("inner")
            .add_stage("b", "x", &[])
            .add_stage("first", "x", &[])
            .add_stage("a", "x", &["first"])
            .with(|stage| stage.on_failure = OnFailure::Fallback("instead".parse().unwrap()))
            .add_stage("instead", "x", &[])
            .add_stage("c", "x", &["first"])
            .with(|stage| stage.when = Some("false".into()))
            .build()
            .unwrap()
            .stages,
        ..inner
    };
    inner.stages[2].retry = attempts(1);
    let (mut world, run) = begun(&outer, &inner);
    let child = world.nth_run(2);
    world.work(child, "b", "ann", 0);
    world.work(child, "first", "ann", 0);
    let a = task(child, "a", 1);
    let lease = world.assign(&a, "ann");
    world.report("ann", failed(lease, &a, "no", false)).unwrap();
    world.work(child, "instead", "ann", 0);
    let result = world.view(run).stages[1].result.clone().unwrap();
    assert_eq!(result.as_str(), r#"{"b":"b done","a":"instead done","c":null}"#);
}

#[test]
fn w6_a_run_that_fails_is_followed_by_another_one_and_one_that_is_cancelled_by_none() {
    let (outer, mut inner) = definitions();
    inner.stages[0].retry = attempts(1);
    let (mut world, run) = begun(&outer, &inner);
    world.transcript();
    let x = task(world.nth_run(2), "x", 1);
    let lease = world.assign(&x, "ann");
    world.report("ann", failed(lease, &x, "no luck", true)).unwrap();
    world.wait(1000);
    let second = world.nth_run(3);
    world.cancel(second, Some("enough")).unwrap();
    check(
        &mut world,
        &expect![[r#"
        8.0     +1000ms  assigned r2:x/1 to ann as 3  (request lease.assign)
        9.0     +1000ms  stage_ended r2:x/1 failed: no luck  (request agent.report)
        9.1     +1000ms  run_finished r2 failed: stage x failed after 1 attempt: no luck  (request agent.report)
        9.2     +1000ms  stage_ended write/1 failed (run_failed): run 019aa2a3-4768-7a3d-b046-0ef89664a85f failed: stage x failed after 1 attempt: no luck; again at +2000ms  (request agent.report)
        10.0    +2000ms  run_started inner v1 as r3  given {"topic":"tea"} does write/2  (timer)
        10.1    +2000ms  stage_ready r3:x/1  (timer)
        11.0    +2000ms  stage_ended r3:x/1 cancelled: enough  (request run.cancel)
        11.1    +2000ms  run_finished r3 cancelled: enough  (request run.cancel)
        11.2    +2000ms  stage_ended write/2 failed (run_cancelled): run 019aa2a3-4b50-7064-814c-29aa320ad04a was cancelled: enough  (request run.cancel)
        11.3    +2000ms  run_finished failed: stage write failed after 2 attempts: run 019aa2a3-4b50-7064-814c-29aa320ad04a was cancelled: enough  (request run.cancel)
    "#]],
    );
    assert_eq!(world.view(run).status, RunStatus::Failed);
    assert_eq!(world.view(run).stages[1].attempts[1].code.as_deref(), Some("run_cancelled"));
}

#[test]
fn w6_a_run_ends_with_the_stage_that_it_does() {
    // The stage takes too long.
    let (mut outer, inner) = definitions();
    (outer.stages[1].timeout_ms, outer.stages[1].retry) = (5000, attempts(1));
    outer.stages[1].on_failure = OnFailure::Continue;
    let (mut world, run) = begun(&outer, &inner);
    let x = task(world.nth_run(2), "x", 1);
    let lease = world.assign(&x, "ann");
    world.transcript();
    world.wait(5000);
    check(
        &mut world,
        &expect![[r#"
        9.0     +6000ms  stage_ended write/1 timed_out: run 019aa2a3-4768-7a3d-b046-0ef89664a85f took longer than 5 s  (timer)
        9.1     +6000ms  stage_ended r2:x/1 cancelled after 5000ms: stage write of run 019aa2a3-4380-7c26-acef-60358003b85f, which it did, ended: timed_out  (timer)
        9.2     +6000ms  run_finished r2 cancelled: stage write of run 019aa2a3-4380-7c26-acef-60358003b85f, which it did, ended: timed_out  (timer)
        9.3     +6000ms  stage_ready publish/1  (timer)
    "#]],
    );
    let late = world.report("ann", succeeded(lease, &x, "1")).unwrap_err();
    assert_eq!(late.code, Code::StaleLease);
    world.work(run, "publish", "ann", 0);
    assert_eq!(world.view(run).status, RunStatus::Succeeded);
    // The run that it is a part of is cancelled, and one that is a part of it ends too.
    let (mut outer, mut inner) = definitions();
    inner
        .stages
        .insert(0, Definition::builder("i").add_workflow("deep", "deepest", &[]).build().unwrap().stages.remove(0));
    outer.stages.remove(0);
    outer.stages[0].depends_on.clear();
    let mut world = World::new();
    for definition in [&outer, &inner, &Definition::builder("deepest").add_stage("z", "x", &[]).build().unwrap()] {
        world.register(definition);
    }
    let run = world.start("w");
    world.transcript();
    world.cancel(run, Some("enough")).unwrap();
    check(
        &mut world,
        &expect![[r#"
        6.0        +0ms  stage_ended write/1 cancelled: enough  (request run.cancel)
        6.1        +0ms  stage_ended r2:deep/1 cancelled: stage write of run 019aa2a3-4380-7c26-806e-d4a7c950a8c4, which it did, ended: cancelled  (request run.cancel)
        6.2        +0ms  stage_ended r3:z/1 cancelled: stage deep of run 019aa2a3-4380-7c26-b927-56014344809a, which it did, ended: cancelled  (request run.cancel)
        6.3        +0ms  run_finished r3 cancelled: stage deep of run 019aa2a3-4380-7c26-b927-56014344809a, which it did, ended: cancelled  (request run.cancel)
        6.4        +0ms  stage_ended r2:x/1 cancelled: stage write of run 019aa2a3-4380-7c26-806e-d4a7c950a8c4, which it did, ended: cancelled  (request run.cancel)
        6.5        +0ms  run_finished r2 cancelled: stage write of run 019aa2a3-4380-7c26-806e-d4a7c950a8c4, which it did, ended: cancelled  (request run.cancel)
        6.6        +0ms  run_finished cancelled: enough  (request run.cancel)
    "#]],
    );
}

#[test]
fn w6_runs_within_a_paused_one_are_paused_and_go_on_with_it() {
    let (outer, inner) = definitions();
    let (mut world, run) = begun(&outer, &inner);
    let child = world.nth_run(2);
    let x = task(child, "x", 1);
    let lease = world.assign(&x, "ann");
    world.transcript();
    let pause = |run| WorkflowRequest::PauseRun(PauseRun { run, reason: Some("lunch".to_owned()) });
    let resume = |run| WorkflowRequest::ResumeRun(ResumeRun { run });
    world.ask::<RunAccepted>(pause(run)).unwrap();
    world.report("ann", succeeded(lease, &x, "1")).unwrap();
    let refused = world.ask::<RunAccepted>(resume(child)).unwrap_err();
    assert!(refused.message.contains("resume that one"), "{refused}");
    world.ask::<RunAccepted>(resume(run)).unwrap();
    check(
        &mut world,
        &expect![[r#"
        9.0     +1000ms  run_paused "lunch"  (request run.pause)
        9.1     +1000ms  run_paused r2 "lunch"  (request run.pause)
        10.0    +1000ms  stage_ended r2:x/1 succeeded  (request agent.report)
        11.0    +1000ms  run_resumed  (request run.resume)
        11.1    +1000ms  run_resumed r2  (request run.resume)
        11.2    +1000ms  stage_ready r2:y/1 with x  (request run.resume)
    "#]],
    );
    // One that was paused by itself stays so.
    world.ask::<RunAccepted>(pause(child)).unwrap();
    world.ask::<RunAccepted>(pause(run)).unwrap();
    world.ask::<RunAccepted>(resume(run)).unwrap();
    assert!(world.view(child).paused.is_some() && world.view(run).paused.is_none());
    world.ask::<RunAccepted>(resume(child)).unwrap();
    world.work(child, "y", "ann", 0);
    world.work(run, "publish", "ann", 0);
    assert_eq!(world.view(run).status, RunStatus::Succeeded);
}

#[test]
fn w6_a_run_for_each_item() {
    let (mut outer, inner) = definitions();
    outer.stages[1].for_each = Some(ForEach { items: "[7, 8]".into(), max_parallel: Some(1), max_failures: 0 });
    outer.stages[1].input = Some(Mapping::One("{'chapter': item}".into()));
    outer.stages[1].output = Some(Mapping::One("result.y + string(index)".into()));
    let (mut world, run) = begun(&outer, &inner);
    world.transcript();
    for number in [2, 3] {
        let child = world.nth_run(number);
        world.work(child, "x", "ann", 0);
        world.work(child, "y", "ann", 0);
    }
    check(
        &mut world,
        &expect![[r#"
        8.0     +1000ms  assigned r2:x/1 to ann as 3  (request lease.assign)
        9.0     +1000ms  stage_ended r2:x/1 succeeded  (request agent.report)
        9.1     +1000ms  stage_ready r2:y/1 with x  (request agent.report)
        10.0    +1000ms  assigned r2:y/1 to ann as 4  (request lease.assign)
        11.0    +1000ms  stage_ended r2:y/1 succeeded  (request agent.report)
        11.1    +1000ms  run_finished r2 succeeded  (request agent.report)
        11.2    +1000ms  stage_ended write.0/1 succeeded  (request agent.report)
        11.3    +1000ms  run_started inner v1 as r3  given {"chapter":8} does write.1/1  (request agent.report)
        11.4    +1000ms  stage_ready r3:x/1  (request agent.report)
        12.0    +1000ms  assigned r3:x/1 to ann as 5  (request lease.assign)
        13.0    +1000ms  stage_ended r3:x/1 succeeded  (request agent.report)
        13.1    +1000ms  stage_ready r3:y/1 with x  (request agent.report)
        14.0    +1000ms  assigned r3:y/1 to ann as 6  (request lease.assign)
        15.0    +1000ms  stage_ended r3:y/1 succeeded  (request agent.report)
        15.1    +1000ms  run_finished r3 succeeded  (request agent.report)
        15.2    +1000ms  stage_ended write.1/1 succeeded  (request agent.report)
        15.3    +1000ms  stage_ended write/1 succeeded  (request agent.report)
        15.4    +1000ms  stage_ready publish/1 with write  (request agent.report)
    "#]],
    );
    assert_eq!(world.view(run).stages[1].result, Some(json("[\"y done0\",\"y done1\"]")));
}

#[test]
fn w6_a_run_that_can_not_begin_fails_its_stage() {
    let (mut outer, mut inner) = definitions();
    inner.input_schema = Some(serde_json::json!({ "required": ["depth"] }));
    outer.stages[1].on_failure = OnFailure::Continue;
    let code = |world: &mut World, run| world.view(run).stages[1].attempts[0].code.clone().unwrap();
    let (mut world, run) = begun(&outer, &inner);
    assert_eq!(code(&mut world, run), "invalid_input");
    for (input, expected) in [("[1]", "invalid_input"), ("{'a': results.plan.none}", "input_failed")] {
        outer.stages[1].input = Some(Mapping::One(input.into()));
        let (mut world, run) = begun(&outer, &inner);
        assert_eq!(code(&mut world, run), expected);
    }
    outer.stages[1].input = None;
    outer.stages[1].workflow_version = Some(2);
    let (mut world, run) = begun(&outer, &inner);
    assert_eq!(code(&mut world, run), "unknown_workflow");
    let error = world.view(run).stages[1].attempts[0].error.clone().unwrap();
    assert_eq!(error, "workflow inner has no version 2; its versions are 1 to 1");
}

#[test]
fn w6_workflows_that_run_each_other_without_end_fail_at_once() {
    let mut world = World::new();
    for (workflow, other) in [("w", "v"), ("v", "w")] {
        world.register(&Definition::builder(workflow).add_workflow("s", other, &[]).build().unwrap());
    }
    let run = world.start("w");
    assert_eq!(world.view(run).status, RunStatus::Failed);
    let all = ListRuns { children: true, ..ListRuns::default() };
    let list: RunList = world.ask(WorkflowRequest::ListRuns(all)).unwrap();
    assert_eq!(list.runs.len(), 9, "no level is tried again");
    let attempt = &world.view(run).stages[0].attempts[0];
    assert_eq!(attempt.code.as_deref(), Some("too_deep"));
    assert!(attempt.error.as_deref().unwrap().contains("it may be within 8"), "{attempt:?}");
    assert_eq!(list.counts.values().sum::<u64>(), 1, "those within others are not counted");
    let error = Definition::builder("w").add_workflow("s", "w", &[]).build().unwrap_err();
    assert!(error.to_string().contains("this workflow itself"), "{error}");
}

#[test]
fn w6_a_run_is_paid_out_of_what_the_one_around_it_may_cost() {
    let money = |limit: &str| Budget { limit: Some(limit.parse().unwrap()), ..Budget::default() };
    let (mut outer, mut inner) = definitions();
    let of_run = |world: &World, number| format!("run:{}", world.nth_run(number));
    let budget = |world: &mut World, number| world.view(world.nth_run(number)).budget.unwrap();
    outer.budget = Some(Budget { currency: Some("EUR".to_owned()), ..money("10") });
    // It spends what that one has.
    let (mut world, _) = begun(&outer, &inner);
    let of = of_run(&world, 1).parse().ok();
    assert_eq!(budget(&mut world, 2), Budget { of: of.clone(), ..Budget::default() });
    assert!(world.ready_resources().last().unwrap().contains_key(&of.unwrap()));
    // No more of it than the stage says, or its own workflow.
    outer.stages[1].budget = Some("3".parse().unwrap());
    let (mut world, _) = begun(&outer, &inner);
    assert_eq!(budget(&mut world, 2), Budget { of: of_run(&world, 1).parse().ok(), ..money("3") });
    inner.budget = Some(Budget { of: "team".parse().ok(), ..money("2") });
    let (mut world, _) = begun(&outer, &inner);
    assert_eq!(budget(&mut world, 2), Budget { of: of_run(&world, 1).parse().ok(), ..money("2") });
    // Where nobody says what the one around it may cost, it is for its own workflow to say.
    outer.budget = None;
    let (mut world, _) = begun(&outer, &inner);
    assert_eq!(Some(budget(&mut world, 2)), inner.budget);
}

#[test]
fn w6_runs_within_others_are_listed_if_asked_for_and_go_with_them() {
    let (outer, inner) = definitions();
    let (mut world, run) = begun(&outer, &inner);
    let child = world.nth_run(2);
    let list = |world: &mut World, children, parent| -> Vec<RunId> {
        let request = ListRuns { children, parent, ..ListRuns::default() };
        let list: RunList = world.ask(WorkflowRequest::ListRuns(request)).unwrap();
        list.runs.iter().map(|run| run.run).collect()
    };
    assert_eq!(list(&mut world, false, None), [run]);
    assert_eq!(list(&mut world, false, Some(run)), [child]);
    let mut both = list(&mut world, true, None);
    both.sort_unstable();
    assert_eq!(both, [run.min(child), run.max(child)]);
    let rerun = RerunRun { run: child, from: "x".parse().unwrap(), limit: None, key: None, new_run: None };
    world.work(child, "x", "ann", 0);
    world.work(child, "y", "ann", 0);
    let refused = world.ask::<RunAccepted>(WorkflowRequest::RerunRun(rerun)).unwrap_err();
    assert!(refused.message.contains("repeat that one"), "{refused}");
    // However old it is, it is known as long as the one around it.
    world.config.keep_ended_ms = 200_000;
    world.lead();
    world.wait(300_000);
    assert_eq!(list(&mut world, false, Some(run)), [child]);
    world.work(run, "publish", "ann", 0);
    world.transcript();
    world.wait(300_000);
    check(
        &mut world,
        &expect![[r#"
        15.0  +503000ms  runs_forgotten r1  (timer)
    "#]],
    );
    assert!(list(&mut world, true, None).is_empty());
}

#[test]
fn w6_a_crash_at_any_moment_leaves_no_run_behind() {
    let (mut outer, inner) = definitions();
    (outer.stages[1].timeout_ms, outer.stages[1].retry) = (5000, attempts(1));
    let done = |world: &mut World| {
        world.wait(25 * 60 * 60_000);
        let all = ListRuns { children: true, ..ListRuns::default() };
        let list: RunList = world.ask(WorkflowRequest::ListRuns(all)).unwrap();
        assert!(list.runs.iter().all(|run| run.status != RunStatus::Running), "{list:?}");
        assert_eq!(world.processor.machine().live_children, 0);
    };
    let prepare = |world: &mut World| {
        world.register(&inner);
        world.register(&outer);
        world.agent("ann", "s1", "x");
        let run = world.start("w");
        world.work(run, "plan", "ann", 1000);
    };
    // The stage takes too long; the outer run is cancelled; the inner one ends.
    crashes(prepare, |world| world.wait(5000), done);
    let outermost = |world: &mut World| world.nth_run(1);
    let cancel = |world: &mut World| {
        let run = outermost(world);
        let request = CancelRun { run, reason: None };
        world.try_ask(WorkflowRequest::CancelRun(request), None);
    };
    crashes(prepare, cancel, done);
    let first = |world: &mut World| {
        let child = world.nth_run(2);
        world.work(child, "x", "ann", 0);
    };
    let ends = |world: &mut World| {
        let y = task(world.nth_run(2), "y", 1);
        let lease = world.assign(&y, "ann");
        world.try_ask(WorkflowRequest::Report(id("ann"), succeeded(lease, &y, "1")), None);
    };
    crashes(
        |world| {
            prepare(world);
            first(world);
        },
        ends,
        done,
    );
    let pause = |world: &mut World| {
        let run = outermost(world);
        world.try_ask(WorkflowRequest::PauseRun(PauseRun { run, reason: None }), None);
    };
    let resume = |world: &mut World| {
        let run = outermost(world);
        world.try_ask(WorkflowRequest::ResumeRun(ResumeRun { run }), None);
    };
    crashes(prepare, pause, |world| {
        resume(world);
        done(world);
    });
}

// ---- delegation ------------------------------------------------------------------------------------------------------

/// One stage, for which there is an agent.
fn director() -> (World, RunId) {
    let mut world = World::new();
    let mut definition = workflow(&[("a", &[]), ("b", &["a"])]);
    definition.stages[0].retry = attempts(2);
    definition.metadata.insert("tone".to_owned(), "dry".into());
    world.register(&definition);
    world.agent("ann", "s1", "x");
    let run = world.start("w");
    world.transcript();
    (world, run)
}

fn delegate(stages: &str, aggregate: bool) -> Delegate {
    Delegate { stages: json(stages), aggregate, ..Delegate::default() }
}

const TWO: &str = r#"[{"name": "p", "agent_type": "x"}, {"name": "q", "agent_type": "x", "depends_on": ["p"]}]"#;
const BESIDE: &str = r#"[{"name": "q", "agent_type": "x"}, {"name": "p", "agent_type": "x"}]"#;

/// Its agent hands a task on.
fn hands_on(world: &mut World, task: &TaskId, delegate: Delegate) -> Report {
    let lease = world.assign(task, "ann");
    let report = Report { result: None, delegate: Some(delegate), ..succeeded(lease, task, "null") };
    world.report("ann", report.clone()).unwrap();
    report
}

#[test]
fn w6_what_is_delegated_is_done_by_a_run_and_its_results_are_the_stages() {
    let (mut world, run) = director();
    let report = hands_on(&mut world, &task(run, "a", 1), delegate(BESIDE, false));
    let child = world.nth_run(2);
    // Again is answered the same; with something else it is refused.
    world.report("ann", report.clone()).unwrap();
    let other = Report { delegate: Some(delegate(TWO, false)), ..report };
    assert_eq!(world.report("ann", other).unwrap_err().code, Code::StaleLease);
    world.work(child, "p", "ann", 10);
    world.work(child, "q", "ann", 10);
    check(
        &mut world,
        &expect![[r#"
        5.0        +0ms  assigned a/1 to ann as 2  (request lease.assign)
        6.0        +0ms  stage_ended a/1 delegated q, p; again at +0ms  (request agent.report)
        6.1        +0ms  run_started w v0 as r2  given {"topic":"tea"} does a/2  (request agent.report)
        6.2        +0ms  stage_ready r2:q/1  (request agent.report)
        6.3        +0ms  stage_ready r2:p/1  (request agent.report)
        7.0        +0ms  assigned r2:p/1 to ann as 3  (request lease.assign)
        8.0       +10ms  stage_ended r2:p/1 succeeded after 10ms  (request agent.report)
        9.0       +10ms  assigned r2:q/1 to ann as 4  (request lease.assign)
        10.0      +20ms  stage_ended r2:q/1 succeeded after 10ms  (request agent.report)
        10.1      +20ms  run_finished r2 succeeded  (request agent.report)
        10.2      +20ms  stage_ended a/2 succeeded  (request agent.report)
        10.3      +20ms  stage_ready b/1 with a  (request agent.report)
    "#]],
    );
    assert_eq!(world.view(run).stages[0].result, Some(json(r#"{"q":"q done","p":"p done"}"#)));
    let view = world.view(child);
    assert_eq!((view.workflow, view.version), (name("w"), 0));
    assert_eq!(view.definition.unwrap().metadata["tone"], "dry");
    world.work(run, "b", "ann", 0);
    assert_eq!(world.view(run).cost.to_string(), "0.04");
}

#[test]
fn w6_an_agent_puts_together_what_was_delegated_and_may_delegate_again() {
    let (mut world, run) = director();
    hands_on(&mut world, &task(run, "a", 1), delegate(TWO, true));
    let first = world.nth_run(2);
    let p = task(first, "p", 1);
    let lease = world.assign(&p, "ann");
    world.report("ann", failed(lease, &p, "no", false)).unwrap();
    // The one that puts it together is told that it failed, and has it done otherwise.
    hands_on(&mut world, &task(run, "a", 3), delegate(BESIDE, true));
    let second = world.nth_run(3);
    world.work(second, "q", "ann", 0);
    world.work(second, "p", "ann", 0);
    let last = task(run, "a", 5);
    let lease = world.assign(&last, "ann");
    world.report("ann", succeeded(lease, &last, "\"both\"")).unwrap();
    check(
        &mut world,
        &expect![[r#"
        5.0        +0ms  assigned a/1 to ann as 2  (request lease.assign)
        6.0        +0ms  stage_ended a/1 delegated p, q; again at +0ms  (request agent.report)
        6.1        +0ms  run_started w v0 as r2  given {"topic":"tea"} does a/2  (request agent.report)
        6.2        +0ms  stage_ready r2:p/1  (request agent.report)
        7.0        +0ms  assigned r2:p/1 to ann as 3  (request lease.assign)
        8.0        +0ms  stage_ended r2:p/1 failed: no  (request agent.report)
        8.1        +0ms  run_finished r2 failed: stage p failed after 1 attempt: no  (request agent.report)
        8.2        +0ms  stage_ended a/2 delegated {"run":"RUN","status":"failed","reason":"stage p failed after 1 attempt: no","stages":[{"name":"p","status":"failed","error":"no"},{"name":"q","status":"cancelled"}]}; again at +0ms  (request agent.report)
        8.3        +0ms  stage_ready a/3  (request agent.report)
        9.0        +0ms  assigned a/3 to ann as 4  (request lease.assign)
        10.0       +0ms  stage_ended a/3 delegated q, p; again at +0ms  (request agent.report)
        10.1       +0ms  run_started w v0 as r3  given {"topic":"tea"} does a/4  (request agent.report)
        10.2       +0ms  stage_ready r3:q/1  (request agent.report)
        10.3       +0ms  stage_ready r3:p/1  (request agent.report)
        11.0       +0ms  assigned r3:q/1 to ann as 5  (request lease.assign)
        12.0       +0ms  stage_ended r3:q/1 succeeded  (request agent.report)
        13.0       +0ms  assigned r3:p/1 to ann as 6  (request lease.assign)
        14.0       +0ms  stage_ended r3:p/1 succeeded  (request agent.report)
        14.1       +0ms  run_finished r3 succeeded  (request agent.report)
        14.2       +0ms  stage_ended a/4 delegated {"run":"RUN","status":"succeeded","stages":[{"name":"q","status":"succeeded","result":"q done"},{"name":"p","status":"succeeded","result":"p done"}]}; again at +0ms  (request agent.report)
        14.3       +0ms  stage_ready a/5  (request agent.report)
        15.0       +0ms  assigned a/5 to ann as 7  (request lease.assign)
        16.0       +0ms  stage_ended a/5 succeeded  (request agent.report)
        16.1       +0ms  stage_ready b/1 with a  (request agent.report)
    "#]],
    );
    assert_eq!(world.view(run).stages[0].result, Some(json("\"both\"")));
}

#[test]
fn w6_a_failure_between_delegations_counts_and_they_do_not() {
    let (mut world, run) = director();
    hands_on(&mut world, &task(run, "a", 1), delegate(TWO, false));
    world.cancel(world.nth_run(2), None).unwrap();
    assert_eq!(world.view(run).status, RunStatus::Failed, "somebody wanted it to end");
    let (mut world, run) = director();
    hands_on(&mut world, &task(run, "a", 1), delegate(TWO, true));
    let child = world.nth_run(2);
    world.work(child, "p", "ann", 0);
    world.work(child, "q", "ann", 0);
    let third = task(run, "a", 3);
    let lease = world.assign(&third, "ann");
    world.report("ann", failed(lease, &third, "no", true)).unwrap();
    world.wait(10_000);
    let fourth = task(run, "a", 4);
    let lease = world.assign(&fourth, "ann");
    world.report("ann", succeeded(lease, &fourth, "1")).unwrap();
    assert_eq!(world.view(run).stages[0].status, StageStatus::Succeeded);
}

#[test]
fn w6_what_is_wrong_with_what_is_delegated_is_said_with_its_place() {
    let x = r#""agent_type": "x""#;
    let bad = [
        ("no list", "{}".to_owned()),
        ("nothing", "[]".to_owned()),
        ("no stage", "[1]".to_owned()),
        ("unknown key", format!(r#"[{{"name": "p", {x}}}, {{"name": "q", {x}, "depend_on": ["p"]}}]"#)),
        ("unknown dependency", format!(r#"[{{"name": "piece", {x}}}, {{"name": "q", {x}, "depends_on": ["peace"]}}]"#)),
        ("cycle", format!(r#"[{{"name": "p", {x}, "depends_on": ["p"]}}]"#)),
        ("condition", format!(r#"[{{"name": "p", {x}, "when": "input.n >"}}]"#)),
        ("key twice", format!(r#"[{{"name": "p", {x}, "name": "q"}}]"#)),
        ("itself", r#"[{"name": "p", "workflow": "w"}]"#.to_owned()),
    ];
    let mut said = String::new();
    for (what, stages) in bad {
        let (mut world, run) = director();
        hands_on(&mut world, &task(run, "a", 1), delegate(&stages, false));
        let attempt = world.view(run).stages[0].attempts[0].clone();
        assert_eq!(attempt.code.as_deref(), Some("invalid_delegation"), "{what}");
        said += &format!("{what}: {}\n", attempt.error.unwrap());
        world.wait(2000);
        assert_eq!(world.view(run).stages[0].attempts.len(), 2, "another attempt may do better");
    }
    let (mut world, run) = director();
    let a = task(run, "a", 1);
    let lease = world.assign(&a, "ann");
    let both = Report { delegate: Some(delegate(TWO, false)), ..succeeded(lease, &a, "1") };
    world.report("ann", both).unwrap();
    said += &format!("both: {}\n", world.view(run).stages[0].attempts[0].error.clone().unwrap());
    let (mut world, run) = director();
    let input = Delegate { input: json("[1]"), ..delegate(TWO, false) };
    hands_on(&mut world, &task(run, "a", 1), input);
    said += &format!("input: {}\n", world.view(run).stages[0].attempts[0].error.clone().unwrap());
    expect![[r#"
        no list: delegate.stages: expected a list of stages
        nothing: delegate.stages: workflow w has no stages: give it at least one
        no stage: delegate.stages: stage 1: invalid type: integer `1`, expected struct StageDefinition
        unknown key: delegate.stages: stage 2: unknown field `depend_on`, expected one of `name`, `agent_type`, `approval`, `wait_for`, `workflow`, `workflow_version`, `requires`, `depends_on`, `join`, `when`, `for_each`, `parallel`, `optional`, `on_failure`, `input`, `output`, `cache`, `speculative`, `hedge`, `input_schema`, `output_schema`, `params`, `resources`, `budget`, `estimate`, `priority`, `due_ms`, `retry`, `start_timeout_ms`, `timeout_ms`, `heartbeat_timeout_ms`, `total_timeout_ms`; did you mean `depends_on`?
        unknown dependency: delegate.stages: stage q depends on peace, which is not a stage of this workflow; did you mean piece?
        cycle: delegate.stages: the stages wait for each other in a cycle: p -> p
        condition: delegate.stages: stage p: when: the expression can not be read: it ends too soon (its character 10)
        key twice: delegate.stages: stage 1: duplicate key `name`
        itself: delegate.stages: stage p: workflow: w is this workflow itself: a run of it would begin without end
        both: it has a result, and delegates: give one of the two
        input: delegate.input: the input of a run must be a JSON object
    "#]].assert_eq(&said);
}

#[test]
fn w6_a_stage_is_delegated_so_often_and_so_deep_and_no_more() {
    let (mut world, run) = director();
    let mut attempt = 1;
    for number in 2..10 {
        hands_on(&mut world, &task(run, "a", attempt), delegate(r#"[{"name": "p", "agent_type": "x"}]"#, true));
        world.work(world.nth_run(number), "p", "ann", 0);
        attempt += 2;
    }
    hands_on(&mut world, &task(run, "a", attempt), delegate(TWO, true));
    let view = world.view(run);
    let last = view.stages[0].attempts.last().unwrap();
    assert_eq!((view.status, last.code.as_deref()), (RunStatus::Failed, Some("too_many_delegations")));
    // A director, a lead, a worker, and so on.
    let (mut world, run) = director();
    let (mut deepest, mut stage) = (run, "a");
    for number in 2..11 {
        hands_on(&mut world, &task(deepest, stage, 1), delegate(r#"[{"name": "p", "agent_type": "x"}]"#, false));
        if number < 10 {
            (deepest, stage) = (world.nth_run(number), "p");
        }
    }
    assert_eq!(world.view(deepest).parent.unwrap().depth, 8);
    let view = world.view(run);
    let last = view.stages[0].attempts.last().unwrap();
    assert_eq!((view.status, last.code.as_deref()), (RunStatus::Failed, Some("too_deep")));
}

#[test]
fn w6_a_run_has_so_many_parts_over_its_life_and_no_more() {
    let (mut world, run) = director();
    world.config.max_parts = 2;
    world.lead();
    hands_on(&mut world, &task(run, "a", 1), delegate(TWO, false));
    let child = world.nth_run(2);
    hands_on(&mut world, &task(child, "p", 1), delegate(BESIDE, false));
    let within = world.nth_run(3);
    world.work(within, "p", "ann", 0);
    world.work(within, "q", "ann", 0);
    // What is over counts, and so does what is within another part. No level is tried again.
    hands_on(&mut world, &task(child, "q", 1), delegate(BESIDE, false));
    let ends = |world: &mut World, run, stage: usize| {
        let view = world.view(run);
        let last = view.stages[stage].attempts.last().unwrap();
        (view.status, last.code.clone(), last.error.clone().unwrap_or_default())
    };
    let (status, code, error) = ends(&mut world, child, 1);
    assert_eq!((status, code.as_deref()), (RunStatus::Failed, Some("too_many_parts")));
    assert_eq!(error, format!("2 runs were a part of run {run} so far; no more may be"));
    let (status, code, _) = ends(&mut world, run, 0);
    assert_eq!((status, code.as_deref()), (RunStatus::Failed, Some("too_many_parts")));
    // Another run has its own.
    let other = world.start("w");
    hands_on(&mut world, &task(other, "a", 1), delegate(TWO, false));
    assert_eq!(world.view(other).status, RunStatus::Running);
}

#[test]
fn w6_the_end_of_a_part_fires_no_trigger_and_that_of_the_run_around_it_does() {
    let (mut world, run) = director();
    let (outer, inner) = definitions();
    world.register(&inner);
    world.register(&Definition { name: name("outer"), ..outer });
    world.register(&Definition { name: name("then"), ..workflow(&[("a", &[])]) });
    for ended in ["w", "inner"] {
        let trigger = format!(
            r#"{{"on": {{"run_ended": {{"workflow": "{ended}"}}}}, "start": {{"workflow": "then", "priority": 1}}}}"#
        );
        let request = SetTrigger { name: ended.parse().unwrap(), trigger: json(&trigger).read().unwrap() };
        world.ask::<TriggerView>(WorkflowRequest::SetTrigger(Box::new(request))).unwrap();
    }
    let started = |world: &mut World| {
        world.wait(0);
        let filter = ListRuns { workflow: Some(name("then")), ..ListRuns::default() };
        world.ask::<RunList>(WorkflowRequest::ListRuns(filter)).unwrap().runs.len()
    };
    // What is delegated bears the name of the workflow around it.
    hands_on(&mut world, &task(run, "a", 1), delegate(BESIDE, false));
    let child = world.nth_run(2);
    world.work(child, "p", "ann", 0);
    world.work(child, "q", "ann", 0);
    let outer = world.start("outer");
    world.work(outer, "plan", "ann", 0);
    let child = world.nth_run(4);
    world.work(child, "x", "ann", 0);
    world.work(child, "y", "ann", 0);
    assert_eq!(world.view(child).status, RunStatus::Succeeded);
    assert_eq!(started(&mut world), 0);
    world.work(run, "b", "ann", 0);
    assert_eq!(started(&mut world), 1);
}

#[test]
fn w6_what_is_delegated_in_a_pause_begins_when_the_run_goes_on() {
    let (mut world, run) = director();
    let a = task(run, "a", 1);
    let lease = world.assign(&a, "ann");
    world.ask::<RunAccepted>(WorkflowRequest::PauseRun(PauseRun { run, reason: None })).unwrap();
    let report = Report { result: None, delegate: Some(delegate(TWO, false)), ..succeeded(lease, &a, "null") };
    world.report("ann", report).unwrap();
    world.wait(60_000);
    world.ask::<RunAccepted>(WorkflowRequest::ResumeRun(ResumeRun { run })).unwrap();
    world.wait(0);
    check(
        &mut world,
        &expect![[r#"
        5.0        +0ms  assigned a/1 to ann as 2  (request lease.assign)
        6.0        +0ms  run_paused ""  (request run.pause)
        7.0        +0ms  stage_ended a/1 delegated p, q; again at +0ms  (request agent.report)
        8.0    +60000ms  run_resumed  (request run.resume)
        9.0    +60000ms  run_started w v0 as r2  given {"topic":"tea"} does a/2  (timer)
        9.1    +60000ms  stage_ready r2:p/1  (timer)
    "#]],
    );
    assert_eq!(statuses(&mut world, run), [StageStatus::Running, StageStatus::Pending]);
}

#[test]
fn w6_a_crash_at_any_moment_of_a_delegation_loses_nothing() {
    let prepare = |world: &mut World| {
        let mut definition = workflow(&[("a", &[])]);
        definition.stages[0].retry = attempts(2);
        world.register(&definition);
        world.agent("ann", "s1", "x");
        let run = world.start("w");
        world.assign(&task(run, "a", 1), "ann");
    };
    let said = |world: &mut World| {
        let a = task(world.nth_run(1), "a", 1);
        let delegate = Some(delegate(r#"[{"name": "p", "agent_type": "x"}]"#, true));
        let report = Report { result: None, delegate, ..succeeded(LeaseId(2), &a, "null") };
        world.try_ask(WorkflowRequest::Report(id("ann"), report), None);
    };
    let end = |world: &mut World| {
        said(world);
        world.wait(0);
        world.work(world.nth_run(2), "p", "ann", 0);
        let a = task(world.nth_run(1), "a", 3);
        let lease = world.assign(&a, "ann");
        world.report("ann", succeeded(lease, &a, "1")).unwrap();
    };
    let results = crashes(prepare, said, end);
    assert!(results.iter().all(|ends| ends == "succeeded 1/1 "), "{results:?}");
    let delegated = |world: &mut World| {
        prepare(world);
        said(world);
        let p = task(world.nth_run(2), "p", 1);
        world.assign(&p, "ann");
    };
    let done = |world: &mut World| {
        let p = task(world.nth_run(2), "p", 1);
        world.try_ask(WorkflowRequest::Report(id("ann"), succeeded(LeaseId(3), &p, "1")), None);
    };
    let results = crashes(delegated, done, |world| {
        done(world);
        world.wait(0);
        let a = task(world.nth_run(1), "a", 3);
        let lease = world.assign(&a, "ann");
        world.report("ann", succeeded(lease, &a, "1")).unwrap();
    });
    assert!(results.iter().all(|ends| ends == "succeeded 1/1 "), "{results:?}");
}

#[test]
fn w6_the_builder_and_a_text_give_the_same() {
    let text = "name: w\nstages:\n  - name: a\n    workflow: inner\n    workflow_version: 2\n    input: { topic: input.topic }\n";
    let mapping = Mapping::Each([("topic".to_owned(), "input.topic".into())].into());
    let built = Definition::builder("w").add_workflow("a", "inner", &[]).with(|stage| {
        stage.workflow_version = Some(2);
        stage.input = Some(mapping);
    });
    assert_eq!(definition::parse(text).unwrap(), built.build().unwrap());
    assert!(Definition::builder("w").add_workflow("a", "No Name", &[]).build().is_err());
}
