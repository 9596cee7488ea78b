//! A task for each item of a list that is found in the run.

use baton_protocol::definition::{Definition, ForEach, Mapping, OnFailure};
use baton_protocol::run::{RunStatus, StageStatus};
use baton_protocol::{LeaseId, RunId, TaskId};
use expect_test::expect;

use super::harness::{World, failed, json as text, succeeded, task};
use super::{attempts, check, workflow};

fn item(run: RunId, stage: &str, item: u32, attempt: u32) -> TaskId {
    TaskId { item: Some(item), ..task(run, stage, attempt) }
}

/// `list`, then `each` of it, then `join`.
fn definition(each: ForEach) -> Definition {
    let mut definition = workflow(&[("list", &[]), ("each", &["list"]), ("join", &["each"])]);
    definition.stages[1].for_each = Some(each);
    definition.stages[1].retry = attempts(2);
    definition
}

fn each() -> ForEach {
    ForEach { items: "results.list".into(), max_parallel: None, max_failures: 0 }
}

fn world(definition: &Definition) -> (World, RunId) {
    let mut world = World::new();
    world.register(definition);
    world.agent("a1", "s0", "x");
    let run = world.start("w");
    world.transcript();
    (world, run)
}

fn gives(world: &mut World, task: &TaskId, result: &str) -> LeaseId {
    let lease = world.assign(task, "a1");
    world.report("a1", succeeded(lease, task, result)).unwrap();
    lease
}

fn fails(world: &mut World, task: &TaskId, retryable: bool) {
    let lease = world.assign(task, "a1");
    world.report("a1", failed(lease, task, "no luck", retryable)).unwrap();
}

#[test]
fn w5_results_are_joined_in_the_order_of_the_items() {
    let mut definition = definition(each());
    definition.stages[1].input = Some(Mapping::One("{'of': item.n, 'at': index}".into()));
    definition.stages[1].output = Some(Mapping::One("{'got': result, 'for': item.n}".into()));
    let (mut world, run) = world(&definition);
    gives(&mut world, &task(run, "list", 1), "[{\"n\":7},{\"n\":8},{\"n\":9}]");
    // The last one is first, the middle one needs two attempts.
    gives(&mut world, &item(run, "each", 2, 1), "\"c\"");
    fails(&mut world, &item(run, "each", 1, 1), true);
    gives(&mut world, &item(run, "each", 0, 1), "\"a\"");
    world.wait(1000);
    gives(&mut world, &item(run, "each", 1, 2), "\"b\"");
    gives(&mut world, &task(run, "join", 1), "1");
    check(&mut world, &expect![[r#""#]]);
    let view = world.view(run);
    let joined = text("[{\"for\":7,\"got\":\"a\"},{\"for\":8,\"got\":\"b\"},{\"for\":9,\"got\":\"c\"}]");
    assert_eq!(view.stages[1].result, Some(joined));
    assert_eq!(view.stages[1].items.iter().map(|item| item.attempts.len()).collect::<Vec<_>>(), [1, 2, 1]);
}

#[test]
fn w5_only_so_many_items_are_under_way_at_a_time() {
    let (mut world, run) = world(&definition(ForEach { max_parallel: Some(2), ..each() }));
    gives(&mut world, &task(run, "list", 1), "[1,2,3,4]");
    let ready = |world: &mut World| {
        let items = world.view(run).stages[1].items.clone();
        items.iter().filter(|item| item.status == StageStatus::Ready).count()
    };
    assert_eq!(ready(&mut world), 2);
    gives(&mut world, &item(run, "each", 1, 1), "1");
    assert_eq!(ready(&mut world), 2);
    assert_eq!(world.view(run).stages[1].items[2].status, StageStatus::Ready, "the next one in order");
    // One that waits for its next attempt is under way.
    fails(&mut world, &item(run, "each", 0, 1), true);
    assert_eq!(ready(&mut world), 1);
}

#[test]
fn w5_so_many_items_may_fail_and_no_more() {
    let (mut world, run) = world(&definition(ForEach { max_failures: 1, ..each() }));
    gives(&mut world, &task(run, "list", 1), "[1,2,3]");
    fails(&mut world, &item(run, "each", 0, 1), false);
    gives(&mut world, &item(run, "each", 2, 1), "3");
    gives(&mut world, &item(run, "each", 1, 1), "2");
    assert_eq!(world.view(run).stages[1].result, Some(text("[null,2,3]")));
    // One more fails the stage: what is under way is given up, what has not begun never will.
    let (mut world, run) = {
        let mut definition = definition(ForEach { max_failures: 1, max_parallel: Some(3), ..each() });
        definition.stages[1].on_failure = OnFailure::Continue;
        self::world(&definition)
    };
    gives(&mut world, &task(run, "list", 1), "[1,2,3,4]");
    let held = world.assign(&item(run, "each", 2, 1), "a1");
    fails(&mut world, &item(run, "each", 0, 1), false);
    world.transcript();
    fails(&mut world, &item(run, "each", 1, 1), false);
    check(&mut world, &expect![[r#""#]]);
    let late = world.report("a1", succeeded(held, &item(run, "each", 2, 1), "1")).unwrap_err();
    assert!(late.message.contains("too many other items have failed"), "{late}");
    gives(&mut world, &task(run, "join", 1), "1");
    assert_eq!(world.view(run).status, RunStatus::Succeeded);
}

#[test]
fn w5_too_many_failures_fail_the_run_unless_it_is_said_otherwise() {
    let (mut world, run) = world(&definition(each()));
    gives(&mut world, &task(run, "list", 1), "[1,2]");
    fails(&mut world, &item(run, "each", 1, 1), false);
    let view = world.view(run);
    assert_eq!(view.status, RunStatus::Failed);
    let reason = "stage each failed: 1 of 2 items failed, and 0 may; item 1: no luck";
    assert_eq!(view.reason.as_deref(), Some(reason));
    assert_eq!(view.stages[1].items[0].status, StageStatus::Cancelled);
}

#[test]
fn w5_an_empty_list_gives_an_empty_list_at_once() {
    let (mut world, run) = world(&definition(each()));
    gives(&mut world, &task(run, "list", 1), "[]");
    check(&mut world, &expect![[r#""#]]);
    assert_eq!(world.view(run).stages[1].result, Some(text("[]")));
}

#[test]
fn w5_what_is_no_list_fails_the_stage() {
    let (mut world, run) = world(&definition(each()));
    gives(&mut world, &task(run, "list", 1), "{\"items\":[]}");
    let view = world.view(run);
    assert_eq!(view.stages[1].attempts[0].code.as_deref(), Some("items_failed"));
    assert!(view.reason.unwrap().contains("it gives no list"));
}

#[test]
fn w5_the_items_of_a_stage_that_runs_alone_run_together_and_with_nobody_else() {
    let mut definition = workflow(&[("each", &[]), ("other", &[])]);
    definition.stages[0].for_each = Some(ForEach { items: "[1, 2, 3]".into(), ..each() });
    definition.stages[0].parallel = false;
    let (mut world, run) = world(&definition);
    let view = world.view(run);
    assert!(view.stages[0].items.iter().all(|item| item.status == StageStatus::Ready));
    assert_eq!(view.stages[1].status, StageStatus::Pending);
    for index in 0..3 {
        gives(&mut world, &item(run, "each", index, 1), "1");
    }
    assert_eq!(world.view(run).stages[1].status, StageStatus::Ready);
}

#[test]
fn w5_a_cancelled_run_cancels_its_items() {
    let (mut world, run) = world(&definition(each()));
    gives(&mut world, &task(run, "list", 1), "[1,2,3]");
    gives(&mut world, &item(run, "each", 0, 1), "1");
    world.assign(&item(run, "each", 1, 1), "a1");
    world.transcript();
    world.cancel(run, Some("enough")).unwrap();
    check(&mut world, &expect![[r#""#]]);
}

#[test]
fn w5_an_item_that_is_lost_with_its_agent_goes_to_another() {
    let (mut world, run) = world(&definition(each()));
    gives(&mut world, &task(run, "list", 1), "[1,2]");
    world.assign(&item(run, "each", 1, 1), "a1");
    world.leave("a1", baton_protocol::record::LeftReason::Lost);
    let lost = world.transcript();
    assert!(lost.contains("stage_ended each.1/1 lost") && lost.contains("stage_ready each.1/2"), "{lost}");
}
