//! Stages that runs do.

use baton_protocol::Budget;
use baton_protocol::definition::{ForEach, Mapping, OnFailure};
use baton_protocol::request::{CancelRun, PauseRun, RerunRun, ResumeRun};

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
    check(&mut world, &expect![[r#""#]]);
    let view = world.view(run);
    assert_eq!(view.status, RunStatus::Succeeded);
    assert_eq!(view.stages[1].workflow, Some(name("inner")));
    assert_eq!(view.stages[1].result, Some(harness::json("\"y done\"")));
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
    check(&mut world, &expect![[r#""#]]);
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
    check(&mut world, &expect![[r#""#]]);
    let late = world.report("ann", succeeded(lease, &x, "1")).unwrap_err();
    assert_eq!(late.code, Code::StaleLease);
    world.work(run, "publish", "ann", 0);
    assert_eq!(world.view(run).status, RunStatus::Succeeded);
    // The run that it is a part of is cancelled, and one that is a part of it ends too.
    let (mut outer, mut inner) = definitions();
    inner.stages.insert(0, Definition::builder("i").add_workflow("deep", "deepest", &[]).build().unwrap().stages.remove(0));
    outer.stages.remove(0);
    outer.stages[0].depends_on.clear();
    let mut world = World::new();
    for definition in [&outer, &inner, &Definition::builder("deepest").add_stage("z", "x", &[]).build().unwrap()] {
        world.register(definition);
    }
    let run = world.start("w");
    world.transcript();
    world.cancel(run, Some("enough")).unwrap();
    check(&mut world, &expect![[r#""#]]);
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
    check(&mut world, &expect![[r#""#]]);
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
    check(&mut world, &expect![[r#""#]]);
    assert_eq!(world.view(run).stages[1].result, Some(harness::json("[\"y done0\",\"y done1\"]")));
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
    assert!(attempt.error.as_deref().unwrap().contains("at most 8 may be"), "{attempt:?}");
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
    check(&mut world, &expect![[r#""#]]);
    assert!(list(&mut world, true, None).is_empty());
}

#[test]
fn w6_a_crash_at_any_moment_leaves_no_run_behind() {
    let (mut outer, inner) = definitions();
    (outer.stages[1].timeout_ms, outer.stages[1].retry) = (5000, attempts(1));
    let done = |world: &mut World| {
        world.wait(10 * 60_000);
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
        world.try_ask(WorkflowRequest::Report(harness::id("ann"), succeeded(lease, &y, "1")), None);
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
