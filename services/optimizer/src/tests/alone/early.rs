//! Stages that begin early.

use baton_protocol::record::{StageCommitted, StageEnded};

use super::*;

/// The first stage of a run's workflow has an attempt that began early, and ended.
fn ended_early(world: &mut World, n: u64, lease: u64) {
    let WorkflowRecord::StageEnded(record) = ended(task(n, 1), Some((lease, "ann")), Outcome::Succeeded, 100) else {
        panic!("it is an end")
    };
    world.workflow(vec![WorkflowRecord::StageEnded(StageEnded { speculative: true, ..record })]);
}

fn is_over(world: &World, n: u64) -> bool {
    let state = world.machine.machine();
    let run = state.runs.get(run(n)).unwrap();
    let place = state.graphs.get(&run.workflow, run.version).unwrap().place(&task(n, 1).stage).unwrap();
    run.is_over(place)
}

fn commits(n: u64) -> WorkflowRecord {
    WorkflowRecord::StageCommitted(StageCommitted { task: task(n, 1) })
}

#[test]
fn w12_a_stage_is_over_when_what_it_gave_early_counts_and_not_before() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 2, 0, 0)]);
    // It ends before it counts.
    world.workflow(vec![started(1), ready(task(1, 1), "research", 0, 0)]);
    world.resource(vec![assigned(task(1, 1), "ann", 0)]);
    ended_early(&mut world, 1, 2);
    assert!(!is_over(&world, 1));
    world.workflow(vec![commits(1)]);
    assert!(is_over(&world, 1));
    // It counts before it ends.
    world.workflow(vec![started(2), ready(task(2, 1), "research", 0, 0)]);
    world.resource(vec![assigned(task(2, 1), "ann", 0)]);
    world.workflow(vec![commits(2)]);
    assert!(!is_over(&world, 2));
    world.workflow(vec![ended(task(2, 1), Some((3, "ann")), Outcome::Succeeded, 100)]);
    assert!(is_over(&world, 2));
}
