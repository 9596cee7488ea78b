//! A task for each item of a list that is found in the run.

use baton_protocol::definition::{Definition, ForEach, MAX_ITEMS, Mapping, OnFailure};
use baton_protocol::record::LeftReason;
use baton_protocol::request::{ListRuns, MAX_MESSAGE_BYTES, Report, RunList, WorkflowRequest};
use baton_protocol::run::{RunStatus, StageStatus};
use baton_protocol::{Code, Json, LeaseId, RunId, TaskId};
use expect_test::expect;

use super::harness::{World, failed, id, json as text, succeeded, task};
use super::{attempts, check, crashes, workflow};

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
    check(
        &mut world,
        &expect![[r#"
        5.0        +0ms  assigned list/1 to a1 as 2  (request lease.assign)
        6.0        +0ms  stage_ended list/1 succeeded  (request agent.report)
        6.1        +0ms  stage_expanded each to [{"n":7},{"n":8},{"n":9}]  (request agent.report)
        6.2        +0ms  stage_ready each.0/1 with list given {"at":0,"of":7}  (request agent.report)
        6.3        +0ms  stage_ready each.1/1 with list given {"at":1,"of":8}  (request agent.report)
        6.4        +0ms  stage_ready each.2/1 with list given {"at":2,"of":9}  (request agent.report)
        7.0        +0ms  assigned each.2/1 to a1 as 3  (request lease.assign)
        8.0        +0ms  stage_ended each.2/1 succeeded  (request agent.report)
        9.0        +0ms  assigned each.1/1 to a1 as 4  (request lease.assign)
        10.0       +0ms  stage_ended each.1/1 failed: no luck; again at +1000ms  (request agent.report)
        11.0       +0ms  assigned each.0/1 to a1 as 5  (request lease.assign)
        12.0       +0ms  stage_ended each.0/1 succeeded  (request agent.report)
        13.0    +1000ms  stage_ready each.1/2 with list given {"at":1,"of":8}  (timer)
        14.0    +1000ms  assigned each.1/2 to a1 as 6  (request lease.assign)
        15.0    +1000ms  stage_ended each.1/2 succeeded  (request agent.report)
        15.1    +1000ms  stage_ended each/1 succeeded  (request agent.report)
        15.2    +1000ms  stage_ready join/1 with each  (request agent.report)
        16.0    +1000ms  assigned join/1 to a1 as 7  (request lease.assign)
        17.0    +1000ms  stage_ended join/1 succeeded  (request agent.report)
        17.1    +1000ms  run_finished succeeded  (request agent.report)
    "#]],
    );
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
    check(
        &mut world,
        &expect![[r#"
        10.0       +0ms  assigned each.1/1 to a1 as 5  (request lease.assign)
        11.0       +0ms  stage_ended each.1/1 failed: no luck  (request agent.report)
        11.1       +0ms  stage_ended each.2/1 cancelled: too many other items have failed  (request agent.report)
        11.2       +0ms  stage_ended each.3/1 cancelled: too many other items have failed  (request agent.report)
        11.3       +0ms  stage_ended each/1 failed: 2 of 4 items failed, and 1 may; item 0: no luck  (request agent.report)
        11.4       +0ms  stage_ready join/1  (request agent.report)
    "#]],
    );
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
    check(
        &mut world,
        &expect![[r#"
        5.0        +0ms  assigned list/1 to a1 as 2  (request lease.assign)
        6.0        +0ms  stage_ended list/1 succeeded  (request agent.report)
        6.1        +0ms  stage_expanded each to []  (request agent.report)
        6.2        +0ms  stage_ended each/1 succeeded  (request agent.report)
        6.3        +0ms  stage_ready join/1 with each  (request agent.report)
    "#]],
    );
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
    check(
        &mut world,
        &expect![[r#"
        10.0       +0ms  stage_ended each/1 cancelled: enough  (request run.cancel)
        10.1       +0ms  stage_ended each.1/1 cancelled: enough  (request run.cancel)
        10.2       +0ms  stage_ended each.2/1 cancelled: enough  (request run.cancel)
        10.3       +0ms  run_finished cancelled: enough  (request run.cancel)
    "#]],
    );
}

#[test]
fn w5_an_item_that_is_lost_with_its_agent_goes_to_another() {
    let (mut world, run) = world(&definition(each()));
    gives(&mut world, &task(run, "list", 1), "[1,2]");
    world.assign(&item(run, "each", 1, 1), "a1");
    world.leave("a1", LeftReason::Lost);
    let lost = world.transcript();
    assert!(lost.contains("stage_ended each.1/1 lost") && lost.contains("stage_ready each.1/2"), "{lost}");
}

#[test]
fn w5_each_item_is_paid_for_and_tried_again_for_itself() {
    let mut definition = definition(ForEach { max_failures: 1, ..each() });
    definition.budget = Some(serde_json::from_str(r#"{"limit": "5", "currency": "EUR"}"#).unwrap());
    definition.stages[1].budget = Some("0.5".parse().unwrap());
    let (mut world, run) = world(&definition);
    let account = baton_protocol::budget::run_account(run);
    gives(&mut world, &task(run, "list", 1), "[1,2,3]");
    let needs: Vec<_> = world.ready_resources().skip(1).collect();
    assert_eq!(needs, vec![[(account.clone(), "0.5".parse().unwrap())].into(); 3]);
    world.transcript();
    // What nobody pays for is not tried again, what went wrong is.
    world.unpaid(&account, &item(run, "each", 0, 1), "the budget is used up");
    fails(&mut world, &item(run, "each", 1, 1), true);
    let lease = world.assign(&item(run, "each", 2, 1), "a1");
    let report = Report { cost: "0.3".parse().unwrap(), ..succeeded(lease, &item(run, "each", 2, 1), "3") };
    world.report("a1", report).unwrap();
    world.wait(1000);
    let lease = world.assign(&item(run, "each", 1, 2), "a1");
    let report = Report { cost: "0.4".parse().unwrap(), ..succeeded(lease, &item(run, "each", 1, 2), "2") };
    world.report("a1", report.clone()).unwrap();
    world.report("a1", report).unwrap();
    check(
        &mut world,
        &expect![[r#"
        7.0        +0ms  budget_refused each.0/1 of run:019aa2a3-4380-7c26-8d5f-724332b66540: the budget is used up  (request lease.assign)
        8.0        +0ms  stage_ended each.0/1 failed: the budget is used up  (log 7)
        9.0        +0ms  assigned each.1/1 to a1 as 4  (request lease.assign)
        10.0       +0ms  stage_ended each.1/1 failed: no luck; again at +1000ms  (request agent.report)
        11.0       +0ms  assigned each.2/1 to a1 as 5  (request lease.assign)
        12.0       +0ms  stage_ended each.2/1 succeeded  (request agent.report)
        13.0    +1000ms  stage_ready each.1/2 with list  (timer)
        14.0    +1000ms  assigned each.1/2 to a1 as 6  (request lease.assign)
        15.0    +1000ms  stage_ended each.1/2 succeeded  (request agent.report)
        15.1    +1000ms  stage_ended each/1 succeeded  (request agent.report)
        15.2    +1000ms  stage_ready join/1 with each  (request agent.report)
    "#]],
    );
    let view = world.view(run);
    assert_eq!(view.stages[1].result, Some(text("[null,2,3]")));
    // The list and the attempt that failed cost a cent each.
    assert_eq!(view.cost, "0.72".parse().unwrap());
    assert_eq!(world.ready_resources().nth(4), Some([(account, "0.5".parse().unwrap())].into()));
}

#[test]
fn w5_an_item_is_handed_over_and_no_other() {
    let (mut world, run) = world(&definition(each()));
    gives(&mut world, &task(run, "list", 1), "[1,2]");
    world.agent("a2", "s0", "x");
    let (first, second) = (item(run, "each", 0, 1), item(run, "each", 1, 1));
    let (given, kept) = (world.assign(&first, "a1"), world.assign(&second, "a1"));
    let taken = world.hand_over(given, &first, "a1", "a2");
    assert_eq!(world.report("a1", succeeded(given, &first, "1")).unwrap_err().code, Code::StaleLease);
    world.leave("a1", LeftReason::Lost);
    assert_eq!(world.report("a1", succeeded(kept, &second, "2")).unwrap_err().code, Code::StaleLease);
    world.report("a2", succeeded(taken, &first, "1")).unwrap();
    let lease = world.assign(&item(run, "each", 1, 2), "a2");
    world.report("a2", succeeded(lease, &item(run, "each", 1, 2), "2")).unwrap();
    assert_eq!(world.view(run).stages[1].result, Some(text("[1,2]")));
}

#[test]
fn w5_a_fallback_stands_for_the_whole_list() {
    let mut definition = workflow(&[("each", &[]), ("other", &[]), ("join", &["each"])]);
    definition.stages[0].for_each = Some(ForEach { items: "[1, 2]".into(), ..each() });
    definition.stages[0].on_failure = OnFailure::Fallback("other".parse().unwrap());
    let (mut world, run) = world(&definition);
    fails(&mut world, &item(run, "each", 0, 1), false);
    gives(&mut world, &task(run, "other", 1), "[0,0]");
    check(
        &mut world,
        &expect![[r#"
        5.0        +0ms  assigned each.0/1 to a1 as 2  (request lease.assign)
        6.0        +0ms  stage_ended each.0/1 failed: no luck  (request agent.report)
        6.1        +0ms  stage_ended each.1/1 cancelled: too many other items have failed  (request agent.report)
        6.2        +0ms  stage_ended each/1 failed: 1 of 2 items failed, and 0 may; item 0: no luck  (request agent.report)
        6.3        +0ms  stage_ready other/1  (request agent.report)
        7.0        +0ms  assigned other/1 to a1 as 3  (request lease.assign)
        8.0        +0ms  stage_ended other/1 succeeded  (request agent.report)
        8.1        +0ms  stage_ready join/1 with each  (request agent.report)
    "#]],
    );
}

#[test]
fn w5_what_is_cut_off_while_items_are_given_up_is_finished_by_the_next_leader() {
    let results = crashes(
        |world| {
            world.register(&definition(each()));
            world.agent("a1", "s0", "x");
            let run = world.start("w");
            gives(world, &task(run, "list", 1), "[1,2,3,4]");
            // The third one waits to be tried again, two are under way.
            fails(world, &item(run, "each", 2, 1), true);
            world.assign(&item(run, "each", 3, 1), "a1");
            world.assign(&item(run, "each", 0, 1), "a1");
        },
        |world| {
            let run = *world.processor.machine().runs.keys().next().unwrap();
            let lease = world.view(run).stages[1].items[0].attempts[0].lease.unwrap();
            let report = failed(lease, &item(run, "each", 0, 1), "no luck", false);
            world.try_ask(WorkflowRequest::Report(id("a1"), report), None);
        },
        |world| {
            // Whoever was not answered says it again.
            let list: RunList = world.ask(WorkflowRequest::ListRuns(ListRuns::default())).unwrap();
            let run = list.runs[0].run;
            let lease = world.view(run).stages[1].items[0].attempts[0].lease.unwrap();
            world.report("a1", failed(lease, &item(run, "each", 0, 1), "no luck", false)).unwrap();
            let view = world.view(run);
            let reason = "stage each failed: 1 of 4 items failed, and 0 may; item 0: no luck";
            assert_eq!(view.reason.as_deref(), Some(reason));
            let status: Vec<_> = view.stages[1].items.iter().map(|item| item.status).collect();
            let given_up = StageStatus::Cancelled;
            assert_eq!(status, [StageStatus::Failed, given_up, given_up, given_up]);
        },
    );
    // It died before each of five records (of the item, of two that were under way, of the stage and of the run), after them, and
    // not at all.
    assert_eq!(results, vec!["failed 2/3 ".to_owned(); 7]);
}

#[test]
fn w5_as_many_items_as_there_may_be_are_joined_in_their_order_and_shown_as_far_as_they_fit() {
    let mut world = World::new();
    world.check = false;
    let mut definition = definition(ForEach { max_parallel: Some(100), ..each() });
    definition.stages[1].output = Some(Mapping::One("index".into()));
    world.register(&definition);
    world.agent("a1", "s0", "x");
    let run = world.start("w");
    let count = u32::try_from(MAX_ITEMS).unwrap();
    gives(&mut world, &task(run, "list", 1), &format!("{:?}", (0..count).collect::<Vec<_>>()));
    // Of those that are under way, the last one is done first.
    for from in (0..count).step_by(100) {
        for index in (from..from + 100).rev() {
            let task = item(run, "each", index, 1);
            let lease = world.assign(&task, "a1");
            world.report("a1", succeeded(lease, &task, "{}")).unwrap();
        }
    }
    world.verify();
    let view = world.view(run);
    assert_eq!(view.stages[1].status, StageStatus::Succeeded);
    let reason = view.reason.clone().unwrap();
    assert!(reason.contains("attempts at items left out here") || reason.contains("items left out here"), "{reason}");
    let size = Json::of(&view).unwrap().size();
    assert!(size <= MAX_MESSAGE_BYTES, "{size}");
    gives(&mut world, &task(run, "join", 1), "1");
    let (state, _) = world.processor.machine().run(run).unwrap();
    let joined: Vec<u32> = state.stages[1].result.as_ref().unwrap().read().unwrap();
    assert_eq!(joined, (0..count).collect::<Vec<_>>());
}
