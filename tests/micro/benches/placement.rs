//! What a placement costs the optimizer with 10,000 tasks in the queue and 1,000 agents.
//!
//! One at a time: a slot becomes free, the optimizer reads so, chooses the task and the agent, asks, reads the answer and
//! then the lease. In bulk: 1,000 agents with ten slots each come to 10,000 tasks that wait.

use std::time::Duration;

use baton_micro::{Scale, Work, World};
use baton_protocol::request::Strategy;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const QUEUED: usize = 10_000;
const AGENTS: usize = 1000;
/// How many placements percentiles are taken of.
const SAMPLES: usize = 20_000;

fn percentiles(name: &str, scale: Scale, strategy: Strategy) {
    let mut world = World::filled(scale);
    if strategy != Strategy::default() {
        world.place_by(strategy);
    }
    world.turn(2000);
    let mut samples: Vec<Duration> = (0..SAMPLES)
        .map(|_| {
            let (before, ended) = (world.spent.optimizer, world.ended);
            while world.ended == ended {
                world.round();
            }
            world.spent.optimizer - before
        })
        .collect();
    samples.sort_unstable();
    let sum: Duration = samples.iter().sum();
    let at = |part: f64| samples[((samples.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    println!(
        "placement, {strategy}, {name}: p50 {:.1} µs, p90 {:.1} µs, p99 {:.1} µs, most {:.1} µs; {:.0} placements/s",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        SAMPLES as f64 / sum.as_secs_f64()
    );
}

fn placement(criterion: &mut Criterion) {
    let scale =
        Scale { work: Work::Chain, agents: AGENTS, slots: 1, runs: QUEUED + AGENTS, batch: 1, cpu: 0, skills: 1 };
    let slots = Scale { slots: 64, runs: QUEUED + AGENTS * 64, ..scale };
    for strategy in [Strategy::LoadBalanced, Strategy::Adaptive] {
        percentiles("a slot an agent", scale, strategy);
        percentiles("a slot an agent, with resources", Scale { cpu: 1, ..scale }, strategy);
        percentiles("a slot an agent, each can do two types of four", Scale { skills: 2, ..scale }, strategy);
        percentiles("64 slots an agent, with resources", Scale { cpu: 1, ..slots }, strategy);
        percentiles("no queue, 1000 agents with free slots", Scale { slots: 64, runs: QUEUED, ..scale }, strategy);
    }

    let mut group = criterion.benchmark_group("placement");
    group.throughput(Throughput::Elements(QUEUED as u64));
    group.bench_function("in bulk", |bencher| {
        bencher.iter_custom(|iterations| {
            (0..iterations)
                .map(|_| {
                    let scale = Scale { agents: 0, slots: 10, runs: QUEUED, batch: 1000, ..scale };
                    let mut world = World::filled(Scale { work: Work::Fan(1), ..scale });
                    let before = world.spent.optimizer;
                    world.with_agents(AGENTS);
                    world.join();
                    world.spent.optimizer - before
                })
                .sum()
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = placement
}
criterion_main!(benches);
