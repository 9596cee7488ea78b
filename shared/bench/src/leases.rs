//! Leases: pools are acquired and released as fast as goes, beside bare requests on the same broker.
//!
//! An operation is one request and its answer: an acquisition or a release, which are both in the log before they are answered.
//! The bare broker does as much as it takes to ask and to be answered: somebody who answers at once, and keeps nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::Client as Nats;
use baton_client::Client;
use baton_protocol::request::{Acquire, Release};
use baton_protocol::{Amount, LeaseId, Pool, PoolKind, ResourceName, Resources, Take, Takes};
use bytes::Bytes;
use futures::StreamExt;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::measurement::histogram;
use crate::plan::Plan;

/// How many pools there are, so that not everybody wants of the same.
const POOLS: usize = 64;
/// Where the bare broker is asked.
const SUBJECT: &str = "baton-bench.requests";
/// About what an acquisition and its answer take.
const BYTES: usize = 160;

/// What was measured.
pub(crate) struct Counted {
    pub(crate) operations: u64,
    pub(crate) errors: u64,
    pub(crate) took: Duration,
    pub(crate) latency: Histogram<u64>,
}

/// What all workers share.
#[derive(Default)]
struct Shared {
    counting: AtomicBool,
    over: AtomicBool,
    errors: AtomicU64,
}

/// Acquires and releases.
pub(crate) async fn measure(client: &Client, plan: &Plan) -> anyhow::Result<Counted> {
    let mut names = Vec::new();
    for n in 0..POOLS {
        let name = ResourceName::new(&format!("bench/{n}"))?;
        // Always enough: it is measured how fast it is granted, and not how long one waits.
        client.set_pool(name.clone(), Pool::new(PoolKind::Held, 1_000_000)).await.context("making a pool")?;
        names.push(name);
    }
    let work = |worker: usize| Worker::Leases {
        client: client.clone(),
        take: Takes::from([(names[worker % POOLS].clone(), Take::Amount(Amount::from(1)))]),
        held: None,
    };
    run(plan, work).await
}

/// Asks somebody who answers at once.
pub(crate) async fn measure_bare(
    connect: impl AsyncFn(&str) -> anyhow::Result<Nats>,
    plan: &Plan,
) -> anyhow::Result<Counted> {
    let (asks, answers) = (connect("bench-asks").await?, connect("bench-answers").await?);
    let mut questions = answers.subscribe(SUBJECT).await?;
    answers.flush().await?;
    let answering = tokio::spawn(async move {
        let body = Bytes::from(vec![b'x'; BYTES]);
        while let Some(question) = questions.next().await {
            let Some(reply) = question.reply else { continue };
            if answers.publish(reply, body.clone()).await.is_err() {
                return;
            }
        }
    });
    let work = |_| Worker::Bare { asks: asks.clone(), body: Bytes::from(vec![b'x'; BYTES]) };
    let counted = run(plan, work).await;
    answering.abort();
    counted
}

/// Who does one operation after the other.
enum Worker {
    /// Acquires, and gives back.
    Leases { client: Client, take: Takes, held: Option<LeaseId> },
    /// Asks.
    Bare { asks: Nats, body: Bytes },
}

impl Worker {
    async fn step(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Leases { client, take, held } => match held.take() {
                None => {
                    let acquire = Acquire { ttl_ms: 600_000, ..Acquire::new("", take.clone()) };
                    *held = Some(client.acquire(&acquire).await?.lease);
                }
                Some(lease) => {
                    client.release_lease(&Release { lease, used: Resources::new() }).await?;
                }
            },
            Self::Bare { asks, body } => drop(asks.request(SUBJECT, body.clone()).await?),
        }
        Ok(())
    }
}

/// Lets so many work at a time, one operation after the other, or so many operations a second together.
async fn run(plan: &Plan, work: impl Fn(usize) -> Worker) -> anyhow::Result<Counted> {
    let shared = Arc::new(Shared::default());
    let mut workers = JoinSet::new();
    let workers_count = plan.inflight.max(1);
    // Each has its part of the rate, one after the other.
    let every = plan.rate.map(|rate| Duration::from_secs_f64(workers_count as f64 / rate));
    for worker in 0..workers_count {
        let (shared, mut work) = (Arc::clone(&shared), work(worker));
        let offset = every.map(|every| every.mul_f64(worker as f64 / workers_count as f64));
        workers.spawn(async move {
            let (mut count, mut latency) = (0u64, histogram());
            if let Some(offset) = offset {
                sleep(offset).await;
            }
            let mut ticks = every.map(|every| {
                let mut ticks = interval(every);
                // What is late is late: its time counts from when it was due.
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
                ticks
            });
            while !shared.over.load(Ordering::Relaxed) {
                let due = match &mut ticks {
                    Some(ticks) => Some(ticks.tick().await.into_std()),
                    None => None,
                };
                let began = Instant::now();
                let done = work.step().await;
                if !shared.counting.load(Ordering::Relaxed) {
                    continue;
                }
                match done {
                    Ok(()) => {
                        count += 1;
                        let micros = due.unwrap_or(began).elapsed().as_micros();
                        latency.saturating_record(u64::try_from(micros).unwrap_or(u64::MAX).max(1));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "an operation failed");
                        shared.errors.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            (count, latency)
        });
    }
    sleep(plan.warm_up).await;
    shared.counting.store(true, Ordering::Relaxed);
    let begin = Instant::now();
    sleep(plan.seconds).await;
    let took = begin.elapsed();
    shared.counting.store(false, Ordering::Relaxed);
    shared.over.store(true, Ordering::Relaxed);
    let (mut operations, mut latency) = (0, histogram());
    while let Some(worker) = workers.join_next().await {
        let (count, of_worker) = worker?;
        operations += count;
        latency.add(&of_worker)?;
    }
    Ok(Counted { operations, errors: shared.errors.load(Ordering::Relaxed), took, latency })
}
