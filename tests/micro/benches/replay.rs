//! How fast a log is folded: records a second, with decoding and without.

use std::time::Duration;

use baton_machine::Machine;
use baton_micro::{Message, Scale, Work, World, fold, records, replay, service};
use baton_optimizer::Optimizer;
use baton_resource_manager::ResourceManager;
use baton_workflow_manager::{Config, WorkflowManager};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn machine<M: Machine>(criterion: &mut Criterion, log: &[Message], config: &M::Config) {
    let mut group = criterion.benchmark_group("records");
    group.throughput(Throughput::Elements(records(log)));
    group.bench_function(BenchmarkId::new("decoded and applied", service::<M>()), |bencher| {
        bencher.iter_batched(|| (), |()| replay::<M>(log, config.clone()), BatchSize::PerIteration);
    });
    group.bench_function(BenchmarkId::new("applied", service::<M>()), |bencher| {
        bencher.iter_batched(|| (), |()| fold::<M>(log, config.clone()), BatchSize::PerIteration);
    });
    group.finish();
}

fn all(criterion: &mut Criterion) {
    let scale = Scale { work: Work::Chain, agents: 1000, slots: 64, runs: 10_000, batch: 32, cpu: 0, skills: 1 };
    let mut world = World::new(scale, true);
    world.turn(40_000);
    let log: Vec<_> = world.messages().cloned().collect();
    drop(world);
    println!("a log of {} messages with {} records", log.len(), records(&log));
    machine::<WorkflowManager>(criterion, &log, &Config::default());
    machine::<ResourceManager>(criterion, &log, &Default::default());
    machine::<Optimizer>(criterion, &log, &Default::default());
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(3));
    targets = all
}
criterion_main!(benches);
