//! Measures Baton as a user would meet it: real processes, a real broker, agents that do nothing.
//!
//! | file | what |
//! |---|---|
//! | `plan.rs` | what is to be measured |
//! | `world.rs` | the processes: broker, services, agents, the collector of traces |
//! | `agents.rs` | the process of agents that do nothing |
//! | `load.rs` | runs, a number of them under way or so many a second |
//! | `messages.rs` | agents that talk to each other |
//! | `dag.rs` | workflow instances on agents that sleep, beside their simulation |
//! | `leases.rs` | pools that are acquired and released |
//! | `floor.rs` | the same hops on the bare broker, as the measure of what is possible |
//! | `sink.rs` | a collector of traces that takes everything and keeps nothing |
//! | `usage.rs` | what processes use of the machine |
//! | `measurement.rs` | one measurement, as a line of JSON or for people |
//!
//! All runs on one machine: broker, services, agents and load share its cores, so every figure is of all of them
//! together. A run's latency is from before it is asked for until its end has been heard of. While something is measured
//! nothing else should run here.

mod agents;
mod dag;
mod floor;
mod leases;
mod load;
mod measurement;
mod messages;
mod plan;
mod sink;
mod usage;
mod world;

use anyhow::Context;

pub use agents::{AgentsPlan, run_agents};
pub use dag::{DagMeans, DagMeasurement, DagPlan, Scale, dag_means, run_dags};
pub use measurement::{Latency, Measurement};
pub use messages::run_messages;
pub use plan::{Plan, Processes, Setup, Work};
pub use sink::run_sink;

/// Measures what the plan says, and tells each measurement as it is made.
///
/// # Errors
/// Says what could not be started or measured. What was started is stopped in any case.
pub async fn run(plan: &Plan, mut tell: impl FnMut(&Measurement)) -> anyhow::Result<Vec<Measurement>> {
    let mut all = Vec::new();
    for _ in 0..plan.repeat.max(1) {
        // A world of its own each time: no measurement begins with the log that another one has filled.
        let world = world::World::start(plan).await.context("starting what is to be measured")?;
        let measured = world.measure(plan).await;
        world.stop().await;
        for measurement in measured? {
            tell(&measurement);
            all.push(measurement);
        }
    }
    Ok(all)
}
