//! Stages that are more urgent than the rest of their run, or due.

use baton_protocol::{RunId, StageName, WorkflowName};

use super::*;

fn registers(name: &str, stages: &[(&str, i32, Option<Millis>)]) -> WorkflowRecord {
    let mut builder = Definition::builder(name);
    for (stage, priority, due_ms) in stages {
        builder = builder.add_stage(stage, "research", &[]).with(|stage| {
            (stage.priority, stage.due_ms) = (*priority, *due_ms);
        });
    }
    let definition = Arc::new(builder.build().unwrap());
    WorkflowRecord::WorkflowRegistered(WorkflowRegistered { version: 1, definition })
}

fn starts(n: u64, workflow: &str) -> WorkflowRecord {
    let WorkflowRecord::RunStarted(record) = started(n) else { panic!("it is a start") };
    WorkflowRecord::RunStarted(RunStarted { workflow: WorkflowName::new(workflow).unwrap(), ..record })
}

fn waits(run: RunId, stage: &str, priority: i32) -> WorkflowRecord {
    let task = TaskId { run, stage: StageName::new(stage).unwrap(), item: None, attempt: 1 };
    let WorkflowRecord::StageReady(record) = ready(task, "research", priority, 0) else { panic!("it is ready") };
    WorkflowRecord::StageReady(record)
}

/// Which tasks get the one slot that there is, one after another.
fn in_turns(world: &mut World) -> Vec<String> {
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    let mut order = Vec::new();
    while let Some((task, _)) = world.grant().into_iter().next() {
        order.push(task.stage.to_string());
        let lease = world.leases[&task];
        world.workflow(vec![ended(task, Some((lease, "ann")), Outcome::Succeeded, 10)]);
    }
    order
}

#[test]
fn o1_w3_a_stage_of_a_greater_priority_goes_first_under_every_strategy() {
    for strategy in Strategy::ALL {
        let mut world = World::new();
        world.strategy(strategy);
        world.workflow(vec![
            registers("three", &[("a", 0, None), ("b", 1, None), ("c", -1, None)]),
            starts(50, "three"),
        ]);
        world.workflow(vec![waits(run(50), "a", 0), waits(run(50), "b", 1), waits(run(50), "c", -1)]);
        assert_eq!(in_turns(&mut world), ["b", "a", "c"], "{strategy}");
    }
}

#[test]
fn o1_w3_a_run_is_as_urgent_as_the_first_of_its_stages_that_is_due() {
    for (due_ms, first) in [(None, "calm"), (Some(50), "soon")] {
        let mut world = World::new();
        world.strategy(Strategy::Adaptive);
        world.workflow(vec![registers("early", &[("calm", 0, None)]), registers("late", &[("soon", 0, due_ms)])]);
        world.workflow(vec![starts(50, "early"), waits(run(50), "calm", 0)]);
        world.wait(1);
        world.workflow(vec![starts(51, "late"), waits(run(51), "soon", 0)]);
        assert_eq!(in_turns(&mut world)[0], first);
    }
}
