//! The process of agents that do nothing, as fast as they can.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use baton_client::{ConnectSettings, Connection};
use baton_sdk::{Agent, Output, Task};
use futures::StreamExt;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::measurement::{Latency, histogram};

/// Where the process is asked what it has measured.
pub(crate) const SUBJECT: &str = "baton-bench.agents";

/// How many agents share a connection. Each has subscriptions of its own.
const PER_CONNECTION: usize = 250;

/// Which agents to run.
#[derive(Debug, Clone)]
pub struct AgentsPlan {
    /// The broker.
    pub server: String,
    /// How many.
    pub agents: usize,
    /// How many tasks each does at a time.
    pub slots: u32,
    /// What they are called for: one after the other.
    pub types: Vec<String>,
}

/// What the process has measured since it was asked last.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// How many tasks came.
    pub(crate) tasks: u64,
    /// From the end of the stages before until the next one was here.
    pub(crate) coordination: Latency,
}

/// Runs agents until standard input ends, which it does with whoever started this process.
///
/// # Errors
/// Says which agent could not connect or register.
pub async fn run_agents(plan: AgentsPlan) -> anyhow::Result<()> {
    let waits = Arc::new(Mutex::new(histogram()));
    let settings = ConnectSettings::alone(plan.server.clone());
    let mut agents = JoinSet::new();
    let mut connection = None;
    for index in 0..plan.agents {
        if index % PER_CONNECTION == 0 {
            connection = Some(Connection::open(&settings.clone().named(format!("baton-bench-agents-{index}"))).await?);
        }
        let Some(connection) = connection.clone() else { continue };
        let agent_type = plan.types[index % plan.types.len()].clone();
        let waits = Arc::clone(&waits);
        let builder =
            Agent::builder(format!("{agent_type}-{index}"), agent_type).slots(plan.slots).connection(connection);
        // Fewer agents than types: each does several, so that there is somebody for all.
        let besides = plan.types.iter().skip(index + plan.agents).step_by(plan.agents);
        let builder = besides.fold(builder, |builder, also| builder.capability(also, json!({})));
        let agent = builder.connect().await?;
        let handler = move |task: Task| {
            let now = now_us();
            note(&waits, &task, now);
            async move { Output::json(&Done { at: now_us() }) }
        };
        agents.spawn(agent.run_until(handler, std::future::pending()));
    }
    let nats = connection.context("no agents are to be run")?.nats;
    let mut questions = nats.subscribe(SUBJECT).await?;
    let mut parent_gone = pin!(parent_gone());
    loop {
        tokio::select! {
            Some(question) = questions.next() => {
                let Some(reply) = question.reply else { continue };
                let seen = {
                    let mut waits = waits.lock().unwrap_or_else(PoisonError::into_inner);
                    let seen = Seen { tasks: waits.len(), coordination: Latency::of(&waits) };
                    waits.reset();
                    seen
                };
                nats.publish(reply, serde_json::to_vec(&seen)?.into()).await?;
            }
            Some(ended) = agents.join_next() => ended??,
            () = &mut parent_gone => return Ok(()),
        }
    }
}

/// What a task of these agents gives.
#[derive(Serialize, Deserialize)]
struct Done {
    /// When it was done, in microseconds since 1970.
    at: u64,
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// From when the last of the stages that this one waited for was done. That is more than from when it was ready, by the way
/// of a report; but it is measured by one clock.
fn note(waits: &Mutex<Histogram<u64>>, task: &Task, now: u64) {
    let done = task.results.values().filter_map(|result| result.read::<Done>().ok()).map(|done| done.at).max();
    if let Some(done) = done {
        waits.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(now.saturating_sub(done).max(1));
    }
}

/// Waits until standard input ends. A thread of its own does, for as long as the process lives.
pub(crate) async fn parent_gone() {
    let (tell, gone) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(tell);
    });
    let _ = gone.await;
}
