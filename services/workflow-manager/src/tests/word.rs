//! Stages that people decide on, and stages that wait for a signal to their run.

use baton_protocol::definition::{Approval, Definition, OnFailure, OnTimeout, Otherwise, WaitFor};
use baton_protocol::request::{DecideStage, SignalRun, SignalStored, StageDecided, WorkflowRequest};
use baton_protocol::run::{RunStatus, StageStatus, Waits};
use baton_protocol::{Code, Json, Rejection, RunId};
use expect_test::expect;

use super::check;
use super::harness::{START, World, json as text, succeeded, task};

const HOUR: u64 = 60 * 60 * 1000;

fn approval() -> Approval {
    Approval { ask: Some("Publish it?".to_owned()), ..Approval::default() }
}

/// `draft`, then `sign`, then `publish`.
fn definition(approval: Approval) -> Definition {
    let definition = Definition::builder("w")
        .add_stage("draft", "x", &[])
        .add_approval("sign", approval, &["draft"])
        .add_stage("publish", "x", &["sign"]);
    definition.build().unwrap()
}

/// The draft is there.
fn world(definition: &Definition) -> (World, RunId) {
    let mut world = World::new();
    world.register(definition);
    let run = world.start("w");
    world.work(run, "draft", "ann", 10);
    (world, run)
}

fn decide(world: &mut World, run: RunId, approved: bool, by: &str) -> Result<StageDecided, Rejection> {
    let (stage, by, reason) = ("sign".parse().unwrap(), Some(by.to_owned()), Some("I read it".to_owned()));
    world.ask(WorkflowRequest::DecideStage(DecideStage { run, stage, approved, by, reason }))
}

fn signal(world: &mut World, run: RunId, signal: &str, payload: &str) -> Result<SignalStored, Rejection> {
    let (signal, payload, by) = (signal.parse().unwrap(), text(payload), Some("shop".to_owned()));
    world.ask(WorkflowRequest::SignalRun(SignalRun { run, signal, payload, by }))
}

#[test]
fn w18_a_stage_waits_until_somebody_approves() {
    let (mut world, run) = world(&definition(approval()));
    let waits = Waits::Approval { ask: Some("Publish it?".to_owned()), until: world.now + HOUR };
    let view = world.view(run);
    assert_eq!((view.stages[1].status, view.stages[1].waits.clone()), (StageStatus::Running, Some(waits)));
    world.wait(1000);
    let decided = decide(&mut world, run, true, "eve").unwrap();
    assert!(decided.approved && !decided.existing);
    // The answer may have got lost. Who comes later with another opinion is told so.
    assert!(decide(&mut world, run, true, "eve").unwrap().existing);
    let late = decide(&mut world, run, false, "bob").unwrap_err();
    assert_eq!(late.code, Code::NotWaiting);
    assert!(late.message.contains("eve approved it: I read it"), "{late}");
    let lease = world.assign(&task(run, "publish", 1), "ann");
    world.report("ann", succeeded(lease, &task(run, "publish", 1), "1")).unwrap();
    check(&mut world, &expect![[r#""#]]);
    let view = world.view(run);
    assert_eq!(view.status, RunStatus::Succeeded);
    let result = "{\"approved\":true,\"by\":\"eve\",\"reason\":\"I read it\",\"timed_out\":false}";
    assert_eq!((view.stages[1].result.clone(), view.stages[1].waits.clone()), (Some(text(result)), None));
    assert!(decide(&mut world, run, true, "eve").unwrap().existing, "also when the run is over");
}

#[test]
fn w18_what_is_rejected_fails_or_says_so() {
    let (mut world, run) = world(&definition(approval()));
    decide(&mut world, run, false, "eve").unwrap();
    assert!(decide(&mut world, run, false, "eve").unwrap().existing);
    let view = world.view(run);
    let reason = "stage sign failed after 1 attempt: eve rejected it: I read it";
    assert_eq!((view.status, view.reason.as_deref()), (RunStatus::Failed, Some(reason)));
    assert_eq!(view.stages[1].attempts[0].code.as_deref(), Some("rejected"));
    let late = decide(&mut world, run, true, "bob").unwrap_err();
    assert!(late.message.contains("eve rejected it"), "{late}");

    // A fallback stands for it.
    let mut fallback = definition(approval());
    fallback.stages[1].on_failure = OnFailure::Fallback("mend".parse().unwrap());
    let mend = Definition::builder("w").add_stage("mend", "x", &[]).build().unwrap();
    fallback.stages.extend(mend.stages);
    let (mut world, run) = self::world(&fallback);
    decide(&mut world, run, false, "eve").unwrap();
    assert_eq!(world.view(run).stages[3].status, StageStatus::Ready);

    // A condition may look at it.
    let mut branch = definition(Approval { on_reject: Otherwise::Continue, ..approval() });
    branch.stages[2].when = Some("results.sign.approved".into());
    let (mut world, run) = self::world(&branch);
    decide(&mut world, run, false, "eve").unwrap();
    let view = world.view(run);
    assert_eq!((view.status, view.stages[2].status), (RunStatus::Succeeded, StageStatus::Skipped));
}

#[test]
fn w18_what_nobody_decides_in_time_fails_or_counts_as_decided() {
    let ends = |approval: Approval| {
        let (mut world, run) = world(&definition(approval));
        world.wait(HOUR - 1);
        assert_eq!(world.view(run).stages[1].status, StageStatus::Running);
        world.wait(1);
        let late = decide(&mut world, run, true, "eve").unwrap_err();
        let view = world.view(run);
        let of = &view.stages[1];
        let result = of.result.as_ref().map_or("", Json::as_str);
        format!("{} {} {result}; {}", of.status, of.attempts[0].error.as_deref().unwrap_or_default(), late.message)
            .replace(&run.to_string(), "RUN")
    };
    let on_timeout = |on_timeout| Approval { on_timeout, ..approval() };
    let all = [
        on_timeout(OnTimeout::Fail),
        on_timeout(OnTimeout::Approve),
        on_timeout(OnTimeout::Reject),
        Approval { on_reject: Otherwise::Continue, ..on_timeout(OnTimeout::Reject) },
    ];
    let said: String = all.map(|approval| ends(approval) + "\n").concat();
    expect![[r#""#]].assert_eq(&said);
}

#[test]
fn w18_a_decision_on_what_asks_nobody_or_has_not_begun_is_refused() {
    let mut world = World::new();
    world.register(&definition(approval()));
    let run = world.start("w");
    let early = decide(&mut world, run, true, "eve").unwrap_err();
    assert!(early.code == Code::NotWaiting && early.message.contains("it has not begun"), "{early}");
    let mut refused = |stage: &str, run| {
        let (stage, by) = (stage.parse().unwrap(), None);
        let request = DecideStage { run, stage, approved: true, by, reason: None };
        world.ask::<StageDecided>(WorkflowRequest::DecideStage(request)).unwrap_err()
    };
    assert!(refused("draft", run).message.contains("stage draft of workflow w asks nobody"));
    assert!(refused("sing", run).message.contains("did you mean sign?"));
    assert_eq!(refused("sign", RunId::derive(START, 99)).code, Code::UnknownRun);
    world.cancel(run, None).unwrap();
    assert_eq!(decide(&mut world, run, true, "eve").unwrap_err().code, Code::NotWaiting);
}

/// `first`, and three that wait: one at once, two after it, of which one may be left without a signal.
fn waiting() -> Definition {
    let wait_for = |signal: &str, on_timeout| WaitFor { signal: signal.parse().unwrap(), on_timeout };
    Definition::builder("w")
        .add_stage("draft", "x", &[])
        .add_wait("paid", wait_for("paid", Otherwise::Fail), &[])
        .add_wait("also-paid", wait_for("paid", Otherwise::Fail), &["draft"])
        .add_wait("asked", wait_for("asked", Otherwise::Continue), &["draft"])
        .add_stage("publish", "x", &["paid", "also-paid", "asked"])
        .build()
        .unwrap()
}

#[test]
fn w18_a_signal_lets_go_on_what_waits_for_it_and_what_will() {
    let mut world = World::new();
    world.register(&waiting());
    let run = world.start("w");
    assert!(!signal(&mut world, run, "paid", "{\"sum\":3}").unwrap().existing);
    assert!(signal(&mut world, run, "paid", "{\"sum\":3}").unwrap().existing);
    let other = signal(&mut world, run, "paid", "{\"sum\":4}").unwrap_err();
    assert!(other.code == Code::NotWaiting && other.message.contains("already, with something else"), "{other}");
    let unknown = signal(&mut world, run, "pait", "1").unwrap_err();
    assert!(
        unknown.message.contains("no stage of workflow w waits for the signal pait; did you mean paid?"),
        "{unknown}"
    );
    let lease = world.assign(&task(run, "draft", 1), "ann");
    world.report("ann", succeeded(lease, &task(run, "draft", 1), "0")).unwrap();
    world.wait(HOUR);
    check(&mut world, &expect![[r#""#]]);
    let view = world.view(run);
    assert_eq!(view.stages[2].result, Some(text("{\"sum\":3}")));
    assert_eq!((view.stages[3].status, view.stages[3].result.clone()), (StageStatus::Succeeded, None));
    world.cancel(run, None).unwrap();
    assert_eq!(signal(&mut world, run, "asked", "1").unwrap_err().code, Code::RunEnded);
    assert!(signal(&mut world, run, "paid", "{\"sum\":3}").unwrap().existing);
}

#[test]
fn w18_a_signal_that_does_not_come_fails_the_stage() {
    let mut world = World::new();
    world.register(&waiting());
    let run = world.start("w");
    world.wait(HOUR);
    let view = world.view(run);
    assert_eq!(view.status, RunStatus::Failed);
    assert_eq!(view.reason.as_deref(), Some("stage paid failed after 1 attempt: no signal paid came within 1 h"));
}
