//! Stages that people decide on, and stages that wait for a signal to their run.

use baton_protocol::definition::{Approval, Definition, OnFailure, OnTimeout, Otherwise, WaitFor};
use baton_protocol::request::{
    DecideStage, PauseRun, RerunRun, ResumeRun, RunAccepted, SignalRun, SignalStored, StageDecided, WorkflowRequest,
};
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
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready draft/1  (request run.start)
        4.0        +0ms  assigned draft/1 to ann as 1  (request lease.assign)
        5.0       +10ms  stage_ended draft/1 succeeded after 10ms  (request agent.report)
        5.1       +10ms  stage_waits sign  (request agent.report)
        6.0     +1010ms  stage_ended sign/1 succeeded  (request stage.decide)
        6.1     +1010ms  stage_ready publish/1 with sign  (request stage.decide)
        7.0     +1010ms  assigned publish/1 to ann as 2  (request lease.assign)
        8.0     +1010ms  stage_ended publish/1 succeeded  (request agent.report)
        8.1     +1010ms  run_finished succeeded  (request agent.report)
    "#]],
    );
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
    let reason = "stage sign failed: eve rejected it: I read it";
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
    expect![[r#"
        failed nobody decided within 1 h ; stage sign of run RUN is not to be decided on: failed, nobody decided within 1 h
        succeeded  {"approved":true,"timed_out":true}; stage sign of run RUN is not to be decided on: nobody decided in time, which counts as approved
        failed nobody decided in time, which counts as rejected ; stage sign of run RUN is not to be decided on: nobody decided in time, which counts as rejected
        succeeded  {"approved":false,"timed_out":true}; stage sign of run RUN is not to be decided on: nobody decided in time, which counts as rejected
    "#]].assert_eq(&said);
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
    assert!(refused("signs", run).message.contains("did you mean sign?"));
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
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready draft/1  (request run.start)
        3.2        +0ms  stage_waits paid  (request run.start)
        4.0        +0ms  signalled paid by shop: {"sum":3}  (request run.signal)
        4.1        +0ms  stage_ended paid/1 succeeded  (request run.signal)
        5.0        +0ms  assigned draft/1 to ann as 1  (request lease.assign)
        6.0        +0ms  stage_ended draft/1 succeeded  (request agent.report)
        6.1        +0ms  stage_waits also-paid  (request agent.report)
        6.2        +0ms  stage_ended also-paid/1 succeeded  (request agent.report)
        6.3        +0ms  stage_waits asked  (request agent.report)
        7.0   +3600000ms  stage_ended asked/1 succeeded  (timer)
        7.1   +3600000ms  stage_ready publish/1 with paid, also-paid  (timer)
    "#]],
    );
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
    assert_eq!(view.reason.as_deref(), Some("stage paid failed: no signal paid came within 1 h"));
}

#[test]
fn w18_in_a_paused_run_what_is_decided_or_signalled_counts_and_begins_nothing() {
    let mut world = World::new();
    let wait_for = WaitFor { signal: "paid".parse().unwrap(), on_timeout: Otherwise::Fail };
    let definition = Definition::builder("w")
        .add_approval("sign", approval(), &[])
        .add_wait("paid", wait_for, &[])
        .add_approval("late", Approval { on_timeout: OnTimeout::Approve, ..approval() }, &[])
        .with(|stage| stage.timeout_ms = 60_000)
        .add_stage("publish", "x", &["sign", "paid"])
        .add_approval("again", approval(), &["late"])
        .build();
    world.register(&definition.unwrap());
    let run = world.start("w");
    world.transcript();
    let pause = PauseRun { run, reason: None };
    world.ask::<RunAccepted>(WorkflowRequest::PauseRun(pause)).unwrap();
    // Another instance goes on with it.
    world.lead();
    world.wait(1000);
    decide(&mut world, run, true, "eve").unwrap();
    signal(&mut world, run, "paid", "3").unwrap();
    world.wait(60_000);
    let view = world.view(run);
    use StageStatus as S;
    let statuses: Vec<_> = view.stages.iter().map(|stage| stage.status).collect();
    assert_eq!(statuses, [S::Succeeded, S::Succeeded, S::Succeeded, S::Pending, S::Pending]);
    assert!(view.paused.is_some());
    world.ask::<RunAccepted>(WorkflowRequest::ResumeRun(ResumeRun { run })).unwrap();
    check(
        &mut world,
        &expect![[r#"
        4.0        +0ms  run_paused ""  (request run.pause)
        6.0     +1000ms  stage_ended sign/1 succeeded  (request stage.decide)
        7.0     +1000ms  signalled paid by shop: 3  (request run.signal)
        7.1     +1000ms  stage_ended paid/1 succeeded  (request run.signal)
        8.0    +60000ms  stage_ended late/1 succeeded  (timer)
        9.0    +61000ms  run_resumed  (request run.resume)
        9.1    +61000ms  stage_ready publish/1 with sign, paid  (request run.resume)
        9.2    +61000ms  stage_waits again  (request run.resume)
    "#]],
    );
}

#[test]
fn w18_what_was_decided_stands_in_a_run_that_repeats_another_one() {
    let (mut world, run) = world(&definition(approval()));
    decide(&mut world, run, true, "eve").unwrap();
    let publish = task(run, "publish", 1);
    let lease = world.assign(&publish, "ann");
    world.report("ann", succeeded(lease, &publish, "1")).unwrap();
    world.transcript();
    let mut rerun = |from: &str| {
        let request = RerunRun { run, from: from.parse().unwrap(), limit: None, key: None, new_run: None };
        world.ask::<RunAccepted>(WorkflowRequest::RerunRun(request)).unwrap().run
    };
    let (kept, anew) = (rerun("publish"), rerun("sign"));
    assert!(decide(&mut world, kept, true, "bob").unwrap().existing);
    let other = decide(&mut world, kept, false, "bob").unwrap_err();
    assert!(other.message.contains("eve approved it: I read it"), "{other}");
    decide(&mut world, anew, false, "bob").unwrap();
    check(
        &mut world,
        &expect![[r#"
        9.0       +10ms  run_started w v1 again from publish, keeps draft, sign  (request run.rerun)
        9.1       +10ms  stage_ready r2:publish/1 with sign  (request run.rerun)
        10.0      +10ms  run_started w v1 again from sign, keeps draft  (request run.rerun)
        10.1      +10ms  stage_waits sign  (request run.rerun)
        11.0      +10ms  stage_ended r3:sign/1 failed (rejected): bob rejected it: I read it  (request stage.decide)
        11.1      +10ms  run_finished failed: stage sign failed: bob rejected it: I read it  (request stage.decide)
    "#]],
    );
    assert_eq!(world.view(run).stages[1].status, StageStatus::Succeeded);
}
