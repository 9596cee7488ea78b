//! What is to come has a say in what begins now.

use baton_protocol::definition::Approval;
use baton_protocol::{RunId, StageName, WorkflowName};

use super::*;

/// What is gathered in a second is written about in ten; to check takes eight, and nothing waits for it.
const REPORT: [(&str, &[&str], Millis); 3] =
    [("gather", &[], 1000), ("write", &["gather"], 10_000), ("check", &[], 8000)];

fn registers() -> WorkflowRecord {
    let mut builder = Definition::builder("report");
    for (stage, after, ms) in REPORT {
        builder = builder.add_stage(stage, "research", after).with(|stage| {
            stage.estimate = Some(Estimate { duration_ms: Some(ms), ..Estimate::default() });
        });
    }
    let definition = Arc::new(builder.build().unwrap());
    WorkflowRecord::WorkflowRegistered(WorkflowRegistered { version: 1, definition })
}

fn starts(n: u64) -> WorkflowRecord {
    let WorkflowRecord::RunStarted(record) = started(n) else { panic!("it is a start") };
    WorkflowRecord::RunStarted(RunStarted { workflow: WorkflowName::new("report").unwrap(), ..record })
}

fn of(run: RunId, stage: &str) -> TaskId {
    TaskId { run, stage: StageName::new(stage).unwrap(), item: None, attempt: 1 }
}

/// An agent is given a task, whatever was asked for, and does it.
fn does(world: &mut World, agent: &str, task: &TaskId, duration_ms: Millis) {
    world.workflow(vec![ready(task.clone(), "research", 0, 0)]);
    world.asked.clear();
    world.resource(vec![assigned(task.clone(), agent, 0)]);
    world.wait(duration_ms);
    let lease = Some((world.leases[task], agent));
    world.workflow(vec![ended(task.clone(), lease, Outcome::Succeeded, duration_ms)]);
}

/// Ann is half as fast again as the others. The report was done some times before, or never. While bob gathers there is to be
/// checked, too.
fn report(agents: &[&str], was_done_before: bool) -> World {
    let mut world = World::new();
    world.resource(agents.iter().map(|id| registered(id, "s", "research", 1, 0, 0)).collect());
    let of_each = |_| agents.iter().map(|id| (*id, Outcome::Succeeded, if *id == "ann" { 1000 } else { 1500 }));
    practise(&mut world, 1, &(0..20).flat_map(of_each).collect::<Vec<_>>());
    world.workflow(vec![registers()]);
    for n in 70..if was_done_before { 73 } else { 70 } {
        world.workflow(vec![starts(n)]);
        for (stage, _, ms) in REPORT {
            does(&mut world, "ann", &of(run(n), stage), ms);
        }
        world.workflow(vec![finished(n)]);
    }
    world.strategy(Strategy::Adaptive);
    let run = run(80);
    world.workflow(vec![starts(80), ready(of(run, "gather"), "research", 0, 0)]);
    world.asked.clear();
    world.resource(vec![assigned(of(run, "gather"), "bob", 0)]);
    world.workflow(vec![ready(of(run, "check"), "research", 0, 0)]);
    world
}

fn who_checks(was_done_before: bool) -> (Option<String>, String) {
    let mut world = report(&["ann", "bob", "cid"], was_done_before);
    let run = run(80);
    let granted = world.grant();
    let request = ExplainPlacement { run, stage: of(run, "check").stage };
    let request = OptimizerRequest::ExplainPlacement(request);
    world.machine.request(1, "placement.explain", request, RequestContext::default(), world.now);
    let effects = world.log.settle(&mut world.machine, world.now).effects;
    let why = effects.into_iter().find_map(|effect| match effect {
        Effect::Answer { reply: Ok(answer), .. } => Some(answer.read::<PlacementExplained>().unwrap()),
        _ => None,
    });
    (granted.into_iter().next().map(|(_, agent)| agent), why.unwrap().reason)
}

#[test]
fn o2_a_fast_agent_is_kept_for_what_is_more_urgent_and_comes_soon() {
    let (agent, why) = who_checks(true);
    assert_eq!(agent.as_deref(), Some("cid"), "{why}");
    assert!(why.contains("kept for what goes before it"), "{why}");
}

#[test]
fn o2_what_was_never_done_before_is_not_planned_ahead() {
    let (agent, why) = who_checks(false);
    assert_eq!(agent.as_deref(), Some("ann"), "{why}");
    assert!(why.contains("expected to end soonest there"), "{why}");
}

#[test]
fn o2_w12_what_is_ready_is_placed_whatever_its_stage_could_have_waited_for() {
    // The first waits for people, and the second began without it.
    let builder = Definition::builder("report").add_approval("approve", Approval::default(), &[]);
    let builder = builder.add_stage("write", "research", &["approve"]);
    let definition = Arc::new(builder.build().unwrap());
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    world.workflow(vec![WorkflowRecord::WorkflowRegistered(WorkflowRegistered { version: 1, definition }), starts(70)]);
    does(&mut world, "ann", &of(run(70), "write"), 1000);
    world.workflow(vec![finished(70)]);
    world.strategy(Strategy::Adaptive);
    world.workflow(vec![starts(80), ready(of(run(80), "write"), "research", 0, 0)]);
    assert_eq!(world.grant(), [(of(run(80), "write"), "ann".to_owned())]);
}

#[test]
fn o2_nobody_is_kept_for_what_comes_after_a_task_that_hangs() {
    let mut world = report(&["ann", "bob"], true);
    assert_eq!(world.grant(), [], "bob will have gathered in a moment, and ann is to write then");
    let mut granted = Vec::new();
    for _ in 0..8 {
        if granted.is_empty() {
            world.wait(500);
            granted = world.grant();
        }
    }
    assert_eq!(granted, [(of(run(80), "check"), "ann".to_owned())]);
}

#[test]
fn o2_nobody_is_kept_for_what_comes_after_a_task_that_nobody_can_do() {
    let builder = Definition::builder("report").add_stage("paint", "painting", &[]);
    let builder = builder.add_stage("write", "research", &["paint"]).add_stage("check", "research", &[]);
    let definition = Arc::new(builder.build().unwrap());
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    world.workflow(vec![WorkflowRecord::WorkflowRegistered(WorkflowRegistered { version: 1, definition }), starts(70)]);
    for (stage, ms) in [("write", 10_000), ("check", 1000)] {
        does(&mut world, "ann", &of(run(70), stage), ms);
    }
    world.workflow(vec![finished(70)]);
    world.strategy(Strategy::Adaptive);
    world.workflow(vec![starts(80), ready(of(run(80), "paint"), "painting", 0, 0)]);
    world.workflow(vec![ready(of(run(80), "check"), "research", 0, 0)]);
    assert_eq!(world.grant(), [(of(run(80), "check"), "ann".to_owned())]);
}
