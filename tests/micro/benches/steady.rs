//! What a stage costs in all three machines while many go on, and how that grows with runs and agents.
//!
//! Each figure is for one stage: its report, its end, the next one's readiness, its placement, its lease, decoding and
//! serialising included. The line after it says which machine took how much of it.

use std::time::Duration;

use baton_micro::{Scale, Spent, Work, World};
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};

/// How many stages are measured at a time, at the least.
const LEAST: u64 = 4000;

fn stage(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, scale: Scale) {
    let mut world = None;
    let mut total = (Spent::default(), 0);
    group.throughput(Throughput::Elements(1));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let world = world.get_or_insert_with(|| {
                let mut world = World::filled(scale);
                world.turn(2000.max(scale.runs as u64 / 8));
                world
            });
            // A few would only show what is not in the cache yet.
            let (spent, ended) = world.turn(iterations.max(LEAST));
            total = (
                Spent {
                    workflow: total.0.workflow + spent.workflow,
                    resource: total.0.resource + spent.resource,
                    optimizer: total.0.optimizer + spent.optimizer,
                },
                total.1 + ended,
            );
            let all = spent.workflow + spent.resource + spent.optimizer;
            all.mul_f64(iterations as f64 / ended as f64)
        });
    });
    let (spent, ended) = total;
    if ended > 0 {
        let each = |spent: Duration| format!("{:.2} µs", spent.as_secs_f64() * 1e6 / ended as f64);
        println!(
            "    of it: workflow-manager {}, resource-manager {}, optimizer {}  ({ended} stages)",
            each(spent.workflow),
            each(spent.resource),
            each(spent.optimizer)
        );
    }
}

fn steady(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stage");
    let base = Scale { work: Work::Chain, agents: 4, slots: 512, runs: 512, batch: 32, cpu: 0, skills: 1 };
    stage(&mut group, "chain, 512 runs, 4 agents", base);
    stage(&mut group, "chain, 512 runs, 4 agents, with resources", Scale { cpu: 1, ..base });
    stage(&mut group, "chain, 512 runs, 4 agents, a report a commit", Scale { batch: 1, ..base });
    stage(&mut group, "chain, 512 runs, 1000 agents", Scale { agents: 1000, slots: 4, ..base });
    stage(&mut group, "chain, 512 runs, 10000 agents", Scale { agents: 10_000, slots: 1, ..base });
    stage(&mut group, "chain, 10000 runs, 1000 agents", Scale { agents: 1000, slots: 64, runs: 10_000, ..base });
    stage(
        &mut group,
        "chain, 10000 runs of which 9000 are queued, 1000 agents",
        Scale { agents: 1000, slots: 1, runs: 10_000, ..base },
    );
    stage(&mut group, "chain, 100000 runs, 1000 agents", Scale { agents: 1000, slots: 512, runs: 100_000, ..base });
    stage(
        &mut group,
        "fan 1-100-1, 8 runs, 16 agents",
        Scale { work: Work::Fan(100), agents: 16, slots: 64, runs: 8, ..base },
    );
    stage(
        &mut group,
        "fan 1-1000-1, 8 runs, 16 agents",
        Scale { work: Work::Fan(1000), agents: 16, slots: 64, runs: 8, ..base },
    );
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    targets = steady
}
criterion_main!(benches);
