//! Pausing, repeating, finding, cancelling many, forgetting.

use baton_protocol::request::{CancelRuns, PauseRun, RerunRun, ResumeRun, RunFilter, RunsCancelled};
use baton_protocol::run::Metadata;

use super::*;

fn pause(world: &mut World, run: RunId) -> Result<RunAccepted, Rejection> {
    world.ask(WorkflowRequest::PauseRun(PauseRun { run, reason: Some("lunch".to_owned()) }))
}

fn resume(world: &mut World, run: RunId) -> Result<RunAccepted, Rejection> {
    world.ask(WorkflowRequest::ResumeRun(ResumeRun { run }))
}

fn rerun(world: &mut World, run: RunId, from: &str) -> Result<RunAccepted, Rejection> {
    let request =
        RerunRun { run, from: from.parse().unwrap(), limit: None, key: Some("again".to_owned()), new_run: None };
    world.ask(WorkflowRequest::RerunRun(request))
}

#[test]
fn w19_a_paused_run_begins_nothing_and_its_waits_stand_still() {
    let mut world = World::new();
    let mut definition = workflow(&[("a", &[]), ("b", &["a"]), ("c", &[]), ("d", &[])]);
    definition.stages[2].start_timeout_ms = 10_000;
    definition.stages[3].retry = RetryPolicy { initial_ms: 5000, ..attempts(2) };
    world.register(&definition);
    world.agent("ann", "s1", "x");
    let run = world.start("w");
    let (a, d) = (task(run, "a", 1), task(run, "d", 1));
    let (lease_a, lease_d) = (world.assign(&a, "ann"), world.assign(&d, "ann"));
    world.wait(4000);
    world.transcript();

    assert!(pause(&mut world, run).unwrap().paused);
    assert!(pause(&mut world, run).unwrap().existing);
    // What runs goes on, and what failed waits; nothing begins, however long it takes.
    world.report("ann", succeeded(lease_a, &a, "1")).unwrap();
    world.report("ann", failed(lease_d, &d, "no", true)).unwrap();
    world.wait(100_000);
    let view = world.view(run);
    assert_eq!(view.paused.unwrap().reason.as_deref(), Some("lunch"));
    assert_eq!(view.status, RunStatus::Running);
    let statuses: Vec<_> = view.stages.iter().map(|stage| stage.status).collect();
    use StageStatus as S;
    assert_eq!(statuses, [S::Succeeded, S::Pending, S::Ready, S::Waiting]);

    // What is left of each wait begins again: 6 s for c, 5 s for d.
    assert!(!resume(&mut world, run).unwrap().paused);
    assert!(resume(&mut world, run).unwrap().existing);
    world.wait(6000);
    assert_eq!(world.view(run).paused, None);
    check(
        &mut world,
        &expect![[r#"
        7.0     +4000ms  run_paused "lunch"  (request run.pause)
        8.0     +4000ms  stage_ended a/1 succeeded after 4000ms  (request agent.report)
        9.0     +4000ms  stage_ended d/1 failed after 4000ms: no; again at +9000ms  (request agent.report)
        10.0  +104000ms  run_resumed  (request run.resume)
        10.1  +104000ms  stage_ready b/1 with a  (request run.resume)
        11.0  +109000ms  stage_ready d/2  (timer)
        12.0  +110000ms  stage_ended c/1 timed_out: no agent took it within 10 s: 1 agent can do x; again at +110952ms  (timer)
    "#]],
    );
    world.cancel(run, None).unwrap();
    assert_eq!(pause(&mut world, run).unwrap_err().code, Code::RunEnded);
    assert_eq!(resume(&mut world, RunId::derive(1, 1)).unwrap_err().code, Code::UnknownRun);
}

#[test]
fn w19_a_pause_ends_with_the_time_of_the_run_and_a_lost_attempt_waits_for_its_end() {
    let mut world = World::new();
    let mut definition = workflow(&[("a", &[])]);
    definition.timeout_ms = 60_000;
    world.register(&definition);
    world.agent("ann", "s1", "x");
    let run = world.start("w");
    world.assign(&task(run, "a", 1), "ann");
    pause(&mut world, run).unwrap();
    world.leave("ann", LeftReason::Lost);
    // A successor knows what its predecessor did.
    world.lead();
    world.transcript();
    resume(&mut world, run).unwrap();
    world.wait(0);
    pause(&mut world, run).unwrap();
    world.wait(60_000);
    check(
        &mut world,
        &expect![[r#"
        10.0       +0ms  run_resumed  (request run.resume)
        11.0       +0ms  stage_ready a/2  (timer)
        12.0       +0ms  run_paused "lunch"  (request run.pause)
        13.0   +60000ms  stage_ended a/2 cancelled: the run took longer than 1 min  (timer)
        13.1   +60000ms  run_finished timed_out: the run took longer than 1 min  (timer)
    "#]],
    );
}

#[test]
fn w19_a_run_repeats_another_one_from_a_stage_on() {
    let mut world = World::new();
    let definition = workflow(&[("a", &[]), ("b", &["a"]), ("c", &["b"]), ("d", &["a"]), ("e", &["c", "d"])]);
    world.register(&with_attempts(definition, 1));
    world.agent("ann", "s1", "x");
    let mut request = start("w");
    request.metadata = Metadata::from([("customer".to_owned(), "acme".to_owned())]);
    let run = world.ask::<RunAccepted>(WorkflowRequest::StartRun(request)).unwrap().run;
    assert!(rerun(&mut world, run, "c").unwrap_err().message.contains("has not ended"));
    for stage in ["a", "b", "d"] {
        world.work(run, stage, "ann", 10);
    }
    let c = task(run, "c", 1);
    let lease = world.assign(&c, "ann");
    world.report("ann", failed(lease, &c, "no", true)).unwrap();
    world.transcript();

    let wrong = rerun(&mut world, run, "z").unwrap_err();
    assert!(wrong.code == Code::InvalidRequest && wrong.message.contains("a, b, c, d, e"), "{wrong}");
    let again = rerun(&mut world, run, "b").unwrap();
    assert_eq!(rerun(&mut world, run, "b").unwrap(), RunAccepted { existing: true, ..again.clone() });
    assert_eq!(rerun(&mut world, run, "c").unwrap_err().code, Code::KeyConflict);
    let again = again.run;
    for stage in ["b", "c", "e"] {
        world.work(again, stage, "ann", 10);
    }
    check(
        &mut world,
        &expect![[r#"
        13.0      +30ms  run_started w v1 again from b, keeps a, d  (request run.rerun)
        13.1      +30ms  stage_ready r2:b/1 with a  (request run.rerun)
        14.0      +30ms  assigned r2:b/1 to ann as 6  (request lease.assign)
        15.0      +40ms  stage_ended r2:b/1 succeeded after 10ms  (request agent.report)
        15.1      +40ms  stage_ready r2:c/1 with b  (request agent.report)
        16.0      +40ms  assigned r2:c/1 to ann as 7  (request lease.assign)
        17.0      +50ms  stage_ended r2:c/1 succeeded after 10ms  (request agent.report)
        17.1      +50ms  stage_ready r2:e/1 with c, d  (request agent.report)
        18.0      +50ms  assigned r2:e/1 to ann as 8  (request lease.assign)
        19.0      +60ms  stage_ended r2:e/1 succeeded after 10ms  (request agent.report)
        19.1      +60ms  run_finished succeeded  (request agent.report)
    "#]],
    );
    let view = world.view(again);
    let repeats = view.rerun.unwrap();
    assert_eq!((repeats.of, repeats.from.as_str(), repeats.kept), (run, "b", 2));
    assert_eq!(view.metadata["customer"], "acme");
    assert_eq!(view.stages[0].result.as_ref().unwrap().as_str(), "\"a done\"");
    assert!(view.stages[0].attempts.is_empty() && view.stages[0].status == StageStatus::Succeeded);
    assert_eq!(view.cost.to_string(), "0.03", "what was kept was paid for there");
    // Also a run of which everything is kept but the last stage has an end; and one that repeats is repeated.
    let request = RerunRun { run: again, from: "e".parse().unwrap(), limit: None, key: None, new_run: None };
    let third = world.ask::<RunAccepted>(WorkflowRequest::RerunRun(request)).unwrap().run;
    world.work(third, "e", "ann", 10);
    assert_eq!(world.view(third).status, RunStatus::Succeeded);
    assert_eq!(world.view(third).rerun.unwrap().kept, 4);
}

#[test]
fn w19_what_failed_is_done_anew_with_what_waits_for_it_and_what_was_skipped_is_looked_at_again() {
    let mut world = World::new();
    let mut definition = workflow(&[("a", &[]), ("o", &[]), ("y", &["a", "o"]), ("z", &["y"]), ("s", &["a"])]);
    definition = with_attempts(definition, 1);
    definition.stages[1].optional = true;
    definition.stages[4].when = Some("false".into());
    world.register(&definition);
    world.agent("ann", "s1", "x");
    let run = world.start("w");
    world.work(run, "a", "ann", 10);
    let o = task(run, "o", 1);
    let lease = world.assign(&o, "ann");
    world.report("ann", failed(lease, &o, "no", true)).unwrap();
    world.work(run, "y", "ann", 10);
    world.work(run, "z", "ann", 10);
    assert_eq!(world.view(run).status, RunStatus::Succeeded);
    // Its result did not have what `o` may give now.
    let again = rerun(&mut world, run, "z").unwrap().run;
    let view = world.view(again);
    let statuses: Vec<_> = view.stages.iter().map(|stage| stage.status).collect();
    use StageStatus as S;
    assert_eq!(statuses, [S::Succeeded, S::Ready, S::Pending, S::Pending, S::Skipped]);
    assert_eq!(view.rerun.unwrap().kept, 1);
}

#[test]
fn w19_a_run_that_is_repeated_has_the_same_budget_or_another_limit() {
    let mut world = World::new();
    let definition = workflow(&[("a", &[])]);
    world.register(&definition);
    let again = |world: &mut World, budget: Option<&str>, limit: Option<&str>| {
        let budget = budget.map(|budget| serde_json::from_str::<Budget>(budget).unwrap());
        let started: RunAccepted = world.ask(WorkflowRequest::StartRun(StartRun { budget, ..start("w") })).unwrap();
        world.cancel(started.run, None).unwrap();
        let limit = limit.map(|limit| limit.parse().unwrap());
        let request = RerunRun { run: started.run, from: "a".parse().unwrap(), limit, key: None, new_run: None };
        let run = world.ask::<RunAccepted>(WorkflowRequest::RerunRun(request))?.run;
        Ok::<_, Rejection>(world.view(run).budget)
    };
    let of_run = r#"{"limit": "1", "currency": "EUR", "at_limit": "ask"}"#;
    let budget: Budget = serde_json::from_str(of_run).unwrap();
    assert_eq!(again(&mut world, Some(of_run), None), Ok(Some(budget.clone())));
    let more = Budget { limit: Some("5".parse().unwrap()), ..budget };
    assert_eq!(again(&mut world, Some(of_run), Some("5")), Ok(Some(more)));
    assert_eq!(again(&mut world, None, None), Ok(None));
    for none in [None, Some(r#"{"of": "team"}"#)] {
        let refused = again(&mut world, none, Some("5")).unwrap_err();
        assert!(refused.code == Code::InvalidRequest && refused.message.contains("had none of its own"), "{refused}");
    }
}

#[test]
fn w19_runs_are_found_and_cancelled_by_what_they_have_in_common() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[])]));
    let mut other = workflow(&[("a", &[])]);
    other.name = name("v");
    world.register(&other);
    let mut runs = Vec::new();
    for (workflow, customer) in [("w", "acme"), ("w", "umbrella"), ("v", "acme"), ("w", "acme")] {
        let mut request = start(workflow);
        request.metadata = Metadata::from([("customer".to_owned(), customer.to_owned())]);
        runs.push(world.ask::<RunAccepted>(WorkflowRequest::StartRun(request)).unwrap().run);
        world.wait(1000);
    }
    let started = |n: u64| START + 1000 * n;
    let acme = Metadata::from([("customer".to_owned(), "acme".to_owned())]);
    let found = |world: &mut World, request: ListRuns| -> Vec<usize> {
        let list: RunList = world.ask(WorkflowRequest::ListRuns(request)).unwrap();
        let place = |run: RunId| runs.iter().position(|known| *known == run).unwrap();
        list.runs.iter().map(|run| place(run.run)).collect()
    };
    let all = ListRuns::default;
    assert_eq!(found(&mut world, ListRuns { metadata: acme.clone(), ..all() }), [3, 2, 0]);
    assert_eq!(found(&mut world, ListRuns { metadata: acme.clone(), workflow: Some(name("w")), ..all() }), [3, 0]);
    assert_eq!(found(&mut world, ListRuns { since: Some(started(1)), until: Some(started(3)), ..all() }), [2, 1]);
    assert_eq!(found(&mut world, ListRuns { metadata: acme.clone(), before: Some(runs[2]), ..all() }), [0]);
    pause(&mut world, runs[1]).unwrap();
    assert_eq!(found(&mut world, ListRuns { paused: Some(true), ..all() }), [1]);
    assert_eq!(
        found(&mut world, ListRuns { paused: Some(false), status: Some(RunStatus::Running), ..all() }),
        [3, 2, 0]
    );

    let cancel = |world: &mut World, filter: RunFilter, all: bool, limit: Option<u32>| {
        let request = CancelRuns { filter, all, reason: Some("closing".to_owned()), limit };
        world.ask::<RunsCancelled>(WorkflowRequest::CancelRuns(request))
    };
    let none = cancel(&mut world, RunFilter::default(), false, None).unwrap_err();
    assert!(none.code == Code::InvalidRequest && none.message.contains("`all`"), "{none}");
    let filter = RunFilter { metadata: acme, ..RunFilter::default() };
    let first = cancel(&mut world, filter.clone(), false, Some(2)).unwrap();
    assert_eq!((first.runs.as_slice(), first.more), ([runs[0], runs[2]].as_slice(), true));
    let second = cancel(&mut world, filter, false, Some(2)).unwrap();
    assert_eq!((second.runs.as_slice(), second.more), ([runs[3]].as_slice(), false));
    assert_eq!(world.view(runs[3]).reason.as_deref(), Some("closing"));
    let rest = cancel(&mut world, RunFilter::default(), true, None).unwrap();
    assert_eq!((rest.runs.as_slice(), rest.more), ([runs[1]].as_slice(), false));
    assert_eq!(found(&mut world, ListRuns { status: Some(RunStatus::Cancelled), ..all() }), [3, 2, 1, 0]);
}

#[test]
fn w19_metadata_that_is_too_much_is_refused_with_what_is_wrong() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[])]));
    let mut refused = |metadata: &[(&str, &str)]| {
        let mut request = start("w");
        request.metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let rejection = world.ask::<RunAccepted>(WorkflowRequest::StartRun(request)).unwrap_err();
        assert_eq!(rejection.code, Code::InvalidRequest);
        rejection.message
    };
    let many: Vec<String> = (0..17).map(|n| format!("k{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "")).collect();
    assert!(refused(&many).contains("17 keys; at most 16"));
    assert!(refused(&[("", "x")]).contains("must have 1 to 63"));
    assert!(refused(&[(&"k".repeat(64), "x")]).contains("has 64 bytes"));
    assert!(refused(&[("k", &"x".repeat(256))]).contains("at most 255"));
    assert!(refused(&[("k", "a\nb")]).contains("control characters"));
}

#[test]
fn w19_the_log_is_wanted_from_the_first_run_on_that_is_known() {
    let mut world = World::new();
    world.config.keep_ended = 1;
    world.lead();
    world.register(&workflow(&[("a", &[])]));
    world.agent("ann", "s1", "x");
    let floor = |world: &World| baton_machine::Machine::floor(world.processor.machine());
    assert_eq!(floor(&world), None);
    let first = world.start("w");
    let begin = world.view(first).first_seq;
    assert_eq!(floor(&world), Some(begin));
    // An end changes nothing: it is listed.
    world.cancel(first, None).unwrap();
    let second = world.start("w");
    world.work(second, "a", "ann", 1000);
    let third = world.start("w");
    assert_eq!(floor(&world), Some(begin));
    world.work(third, "a", "ann", 1000);
    world.wait(120_000);
    let later = world.view(third).first_seq;
    assert!(later > begin);
    assert_eq!(floor(&world), Some(later), "the others are forgotten");
}

#[test]
fn w19_runs_that_ended_long_ago_are_forgotten_and_live_ones_are_kept() {
    let mut world = World::new();
    world.config.keep_ended = 2;
    world.config.keep_ended_ms = 1_000_000;
    world.lead();
    world.register(&workflow(&[("a", &[])]));
    world.agent("ann", "s1", "x");
    let live = world.start("w");
    let mut keyed = start("w");
    keyed.key = Some("k".to_owned());
    let first = world.ask::<RunAccepted>(WorkflowRequest::StartRun(keyed.clone())).unwrap().run;
    world.work(first, "a", "ann", 1000);
    let run = world.start("w");
    world.work(run, "a", "ann", 1000);
    // One whose starter's clock is ahead: its id says nothing of how old others are.
    let ahead = StartRun { run: Some(RunId::derive(START + 10_000_000, 1)), ..start("w") };
    let ahead = world.ask::<RunAccepted>(WorkflowRequest::StartRun(ahead)).unwrap().run;
    world.work(ahead, "a", "ann", 1000);
    world.transcript();
    // One too many is known a while longer, so that whoever asks again finds it.
    assert!(world.ask::<RunAccepted>(WorkflowRequest::StartRun(keyed.clone())).unwrap().existing);
    world.wait(120_000);
    check(
        &mut world,
        &expect![[r#"
        15.0  +121000ms  runs_forgotten r2  (timer)
    "#]],
    );
    let list =
        |world: &mut World| world.ask::<RunList>(WorkflowRequest::ListRuns(ListRuns::default())).unwrap().runs.len();
    assert_eq!(list(&mut world), 3);
    assert_eq!(world.cancel(first, None).unwrap_err().code, Code::UnknownRun);
    // Its document is there as long as the bucket keeps it. Its id is used no more, its key may be.
    assert_eq!(world.view(first).run, first);
    let mut old = start("w");
    old.run = Some(first);
    let refused = world.ask::<RunAccepted>(WorkflowRequest::StartRun(old)).unwrap_err();
    assert!(refused.message.contains("older than runs that were"), "{refused}");
    let again = world.ask::<RunAccepted>(WorkflowRequest::StartRun(keyed)).unwrap();
    assert!(!again.existing && again.run != first);
    world.transcript();
    // The others go when they are too old; those that live stay.
    world.lead();
    world.wait(1_100_000);
    check(
        &mut world,
        &expect![[r#"
        18.0  +1012000ms  runs_forgotten r3 r4  (timer)
    "#]],
    );
    assert_eq!(world.view(live).status, RunStatus::Running);
    assert_eq!(list(&mut world), 2);
    // Nor is the id used again that was ahead, though others as young may be.
    let repeated = StartRun { run: Some(ahead), ..start("w") };
    let refused = world.ask::<RunAccepted>(WorkflowRequest::StartRun(repeated)).unwrap_err();
    assert!(refused.message.contains("forgotten"), "{refused}");
    let new = StartRun { run: Some(RunId::derive(START + 1_300_000, 1)), ..start("w") };
    assert!(!world.ask::<RunAccepted>(WorkflowRequest::StartRun(new)).unwrap().existing);
}
