//! Snapshot and restore of 100,000 live runs: how long the machine stands still for one, how long it takes to write and to
//! read, how large it is, and what the first changes after it cost.

use std::time::{Duration, Instant};

use baton_machine::{Machine, Processor, Snapshot};
use baton_micro::{Scale, Work, World, service};
use criterion::{Criterion, criterion_group, criterion_main};

const RUNS: usize = 100_000;

fn machine<M: Machine>(criterion: &mut Criterion, processor: &Processor<M>, config: &M::Config) {
    let mut group = criterion.benchmark_group(format!("{RUNS} live runs, {}", service::<M>()));
    group.bench_function("standing still", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                let before = Instant::now();
                let snapshot = processor.snapshot();
                spent += before.elapsed();
                assert!(snapshot.is_some(), "all is committed");
            }
            spent
        });
    });
    let snapshot = processor.snapshot().expect("all is committed");
    let text = serde_json::to_vec(&snapshot).expect("a snapshot can be written");
    println!("    {} bytes as JSON, {} a run", text.len(), text.len() / RUNS);
    group.bench_function("writing", |bencher| {
        bencher.iter_with_large_drop(|| serde_json::to_vec(&snapshot).expect("a snapshot can be written"));
    });
    drop(snapshot);
    group.bench_function("restoring", |bencher| {
        bencher.iter_with_large_drop(|| {
            let snapshot: Snapshot<M> = serde_json::from_slice(&text).expect("a snapshot can be read");
            Processor::restore(snapshot, config.clone())
        });
    });
    group.finish();
}

/// What a stage costs while a snapshot is being written, from the first one on.
fn under_snapshot(world: &mut World) {
    world.turn(2000);
    for kept in [false, true] {
        let snapshots =
            kept.then(|| (world.workflow.snapshot(), world.resource.snapshot(), world.optimizer.snapshot()));
        let (spent, ended) = world.turn(10_000);
        let each = |spent: Duration| format!("{:.2} µs", spent.as_secs_f64() * 1e6 / ended as f64);
        println!(
            "{RUNS} live runs, a stage {}: workflow-manager {}, resource-manager {}, optimizer {}",
            if kept { "while a snapshot is kept" } else { "with no snapshot" },
            each(spent.workflow),
            each(spent.resource),
            each(spent.optimizer)
        );
        drop(snapshots);
    }
}

fn all(criterion: &mut Criterion) {
    let scale = Scale { work: Work::Chain, agents: 1000, slots: 512, runs: RUNS, batch: 32, cpu: 0, skills: 1 };
    let mut world = World::filled(scale);
    under_snapshot(&mut world);
    let config = baton_workflow_manager::Config { max_live_runs: usize::MAX, ..Default::default() };
    machine(criterion, &world.workflow, &config);
    machine(criterion, &world.resource, &Default::default());
    machine(criterion, &world.optimizer, &Default::default());
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = all
}
criterion_main!(benches);
