//! How much memory a live run and an agent take in each machine: bytes that are allocated, counted by the allocator.
//!
//! A machine is measured as a snapshot restores it, so that it shares nothing with the others, nor with the log.

use baton_machine::{Machine, Processor, Snapshot};
use baton_micro::{Scale, Work, World, service};
use baton_protocol::request::Strategy;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// What a machine takes, in bytes.
fn bytes<M: Machine>(processor: &Processor<M>) -> usize {
    let snapshot = processor.snapshot().expect("all is committed");
    let text = serde_json::to_vec(&snapshot).expect("a snapshot can be written");
    drop(snapshot);
    let before = ALLOCATED.current_usage();
    let restored: Snapshot<M> = serde_json::from_slice(&text).expect("a snapshot can be read");
    let after = ALLOCATED.current_usage();
    drop(restored);
    after - before
}

fn all(world: &World) -> [usize; 3] {
    [bytes(&world.workflow), bytes(&world.resource), bytes(&world.optimizer)]
}

fn show(what: &str, more: [usize; 3], less: [usize; 3], count: usize) {
    let names = [
        service::<baton_workflow_manager::WorkflowManager>(),
        service::<baton_resource_manager::ResourceManager>(),
        service::<baton_optimizer::Optimizer>(),
    ];
    let each: Vec<_> = more.iter().zip(less).map(|(more, less)| more.saturating_sub(less) / count).collect();
    let parts: Vec<_> = names.iter().zip(&each).map(|(name, each)| format!("{name} {each}")).collect();
    println!("bytes {what}: {} ({})", each.iter().sum::<usize>(), parts.join(", "));
}

/// What ADAPTIVE keeps is in no snapshot, as the leader alone knows it: what changes when it begins to place.
fn adaptive() {
    let (agents, queued) = (1000, 10_000);
    let scale = Scale { work: Work::Chain, agents, slots: 1, runs: queued + agents, batch: 32, cpu: 0, skills: 1 };
    let mut world = World::filled(scale);
    let machine = bytes(&world.optimizer);
    let before = ALLOCATED.current_usage();
    world.place_by(Strategy::Adaptive);
    let more = ALLOCATED.current_usage().saturating_sub(before);
    println!(
        "bytes of the optimizer, {queued} tasks that wait and {agents} agents: {machine}; {more} more under ADAPTIVE"
    );
}

fn main() {
    let scale = Scale { work: Work::Chain, agents: 1000, slots: 512, runs: 0, batch: 32, cpu: 0, skills: 1 };
    let nothing = all(&World::new(Scale { agents: 0, ..scale }, false));
    let agents = all(&World::new(Scale { agents: 10_000, ..scale }, false));
    show("an idle agent", agents, nothing, 10_000);
    let idle = all(&World::new(scale, false));
    for (what, work, runs) in [
        ("a live run of four stages in its first", Work::Chain, 100_000),
        ("a live run of 1-100-1 with a hundred under way", Work::Fan(100), 1000),
    ] {
        let mut world = World::filled(Scale { work, runs, ..scale });
        if matches!(work, Work::Fan(_)) {
            // The first stage of each.
            world.report(runs);
            world.settle();
        }
        show(what, all(&world), idle, runs);
    }
    adaptive();
    let mut world = World::filled(Scale { runs: 1000, ..scale });
    world.turn(8000);
    let few = all(&world);
    world.turn(60_000);
    show("a run that has ended, in the history", all(&world), few, 8000);
}
