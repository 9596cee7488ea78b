//! Tasks that two agents are at.

use baton_protocol::definition::{Definition, RetryPolicy};
use baton_protocol::record::{LeftReason, Outcome};
use baton_protocol::run::{RunStatus, StageStatus};
use baton_protocol::{Code, Json, LeaseId, RunId};
use expect_test::expect;

use super::check;
use super::harness::{World, failed, json, succeeded, task};

fn definition() -> Definition {
    let definition = Definition::builder("w").add_stage("a", "x", &[]).with(|stage| {
        stage.hedge = true;
        stage.timeout_ms = 5_000;
        stage.retry = RetryPolicy { max_attempts: 2, jitter: 0.0, ..RetryPolicy::default() };
        stage.retry.non_retryable = vec!["bad".to_owned()];
    });
    definition.build().unwrap()
}

/// A run of whose stage ann has a task, and 100 ms later bob as well: their leases.
fn begun() -> (World, RunId, LeaseId, LeaseId) {
    let mut world = World::new();
    world.register(&definition());
    let run = world.start("w");
    let first = world.assign(&task(run, "a", 1), "ann");
    world.wait(100);
    let second = world.assign_beside(&task(run, "a", 1), "bob", first);
    world.wait(100);
    world.transcript();
    (world, run, first, second)
}

#[test]
fn o2_of_two_that_are_at_a_task_the_first_result_counts_and_the_other_is_called_back() {
    let (mut world, run, first, second) = begun();
    world.report("bob", succeeded(second, &task(run, "a", 1), "[7]")).unwrap();
    check(
        &mut world,
        &expect![[r#"
            6.0      +200ms  stage_ended a/1 succeeded after 100ms  (request agent.report)
            6.1      +200ms  run_finished succeeded  (request agent.report)
        "#]],
    );
    let view = world.view(run);
    let attempt = &view.stages[0].attempts[0];
    assert_eq!(
        (view.status, attempt.lease, attempt.agent.as_ref().map(|a| a.as_str())),
        (RunStatus::Succeeded, Some(second), Some("bob"))
    );
    let copy = &attempt.copies[0];
    assert_eq!((copy.agent.as_str(), copy.lease, copy.outcome), ("ann", first, Some(Outcome::Cancelled)));
    // A report under either lease is answered as it must be, by whoever leads then too.
    world.lead();
    assert_eq!(world.report("bob", succeeded(second, &task(run, "a", 1), "[7]")), Ok(()));
    let late = world.report("ann", succeeded(first, &task(run, "a", 1), "[7]")).unwrap_err();
    assert_eq!(late.code, Code::StaleLease);
    assert!(late.message.contains("has ended, cancelled: the attempt is over"), "{late}");
}

#[test]
fn o2_where_one_of_two_fails_the_other_goes_on_as_if_it_were_alone() {
    let (mut world, run, first, second) = begun();
    let report = failed(first, &task(run, "a", 1), "no luck", true);
    world.report("ann", report.clone()).unwrap();
    world.report("ann", report).unwrap();
    let other = world.report("ann", failed(first, &task(run, "a", 1), "something else", true)).unwrap_err();
    assert!(other.message.contains("another report was stored under it"), "{other}");
    assert_eq!(world.view(run).stages[0].status, StageStatus::Running);
    world.lead();
    // It may be given to a third one.
    let third = world.assign_beside(&task(run, "a", 1), "eve", second);
    world.leave("bob", LeftReason::Lost);
    world.report("eve", succeeded(third, &task(run, "a", 1), "1")).unwrap();
    check(
        &mut world,
        &expect![[r#"
            6.0      +200ms  copy_ended a/1 of ann failed: no luck  (request agent.report)
            8.0      +200ms  assigned a/1 to eve as 3  (request lease.assign)
            9.0      +200ms  agent_left bob  (request agent.leave)
            10.0     +200ms  copy_ended a/1 of bob lost: agent bob was lost: it was not heard of for the time of a lease  (log 9)
            11.0     +200ms  stage_ended a/1 succeeded  (request agent.report)
            11.1     +200ms  run_finished succeeded  (request agent.report)
        "#]],
    );
    let copies: Vec<_> = world.view(run).stages[0].attempts[0].copies.iter().map(|c| (c.lease, c.outcome)).collect();
    assert_eq!(copies, [(first, Some(Outcome::Failed)), (second, Some(Outcome::Lost))]);
}

#[test]
fn o2_what_is_of_no_use_to_try_again_ends_both_and_so_does_time() {
    let (mut world, run, first, second) = begun();
    let mut report = failed(second, &task(run, "a", 1), "the input is wrong", true);
    report.code = Some("bad".to_owned());
    world.report("bob", report).unwrap();
    assert_eq!(world.view(run).status, RunStatus::Failed);
    let view = world.view(run);
    assert_eq!(view.stages[0].attempts[0].lease, Some(second));
    assert!(world.report("ann", succeeded(first, &task(run, "a", 1), "1")).is_err());
    // The time of an attempt is counted from when the first one had it.
    let run = world.start("w");
    let first = world.assign(&task(run, "a", 1), "ann");
    world.wait(4_000);
    let second = world.assign_beside(&task(run, "a", 1), "bob", first);
    world.wait(1_000);
    let view = world.view(run);
    assert_eq!(view.stages[0].attempts[0].outcome, Some(Outcome::TimedOut));
    assert!(world.report("bob", succeeded(second, &task(run, "a", 1), "1")).is_err());
    assert_eq!(view.stages[0].attempts.len(), 1);
}

#[test]
fn o2_a_second_agent_comes_too_late_when_the_attempt_is_over() {
    let mut world = World::new();
    world.register(&definition());
    let run = world.start("w");
    let first = world.assign(&task(run, "a", 1), "ann");
    world.report("ann", failed(first, &task(run, "a", 1), "no luck", true)).unwrap();
    let late = world.assign_beside(&task(run, "a", 1), "bob", first);
    assert!(world.view(run).stages[0].attempts[0].copies.is_empty());
    let refused = world.report("bob", succeeded(late, &task(run, "a", 1), "1")).unwrap_err();
    assert_eq!(refused.code, Code::StaleLease);
    world.wait(1_000);
    let again = world.assign(&task(run, "a", 2), "ann");
    world.report("ann", succeeded(again, &task(run, "a", 2), "2")).unwrap();
    assert_eq!(world.view(run).stages[0].result, Some(json("2")));
    assert_eq!(world.view(run).stages[0].result.as_ref().map(Json::as_str), Some("2"));
}
