//! Runs: a number of them under way, or so many a second.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use baton_client::Client;
use baton_protocol::request::{RegisterWorkflow, StartRun};
use baton_protocol::run::RunStatus;
use baton_protocol::{Json, RunId, WorkflowName};
use futures::StreamExt;
use hdrhistogram::Histogram;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use crate::measurement::histogram;
use crate::plan::{Plan, Work};

/// A run of which nothing is heard for this long counts as an error.
const PATIENCE: Duration = Duration::from_secs(30);

/// How wide the fan-out is.
const WIDTH: usize = 100;

/// The workflow that nobody works on.
const IDLE: &str = "bench-idle";

/// Starts runs and waits for their ends.
pub(crate) struct Load {
    shared: Arc<Shared>,
    workers: JoinSet<()>,
}

struct Shared {
    client: Client,
    workflow: WorkflowName,
    input: Json,
    /// Whether a run counts when it has ended; otherwise when it was accepted.
    to_the_end: bool,
    waiting: Mutex<HashMap<RunId, oneshot::Sender<bool>>>,
    counting: AtomicBool,
    count: AtomicU64,
    errors: AtomicU64,
    latency: Mutex<Histogram<u64>>,
}

/// What was counted.
pub(crate) struct Counted {
    pub(crate) count: u64,
    pub(crate) errors: u64,
    pub(crate) latency: Histogram<u64>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers the workflows.
pub(crate) async fn register(client: &Client, types: &[&str]) -> anyhow::Result<()> {
    let kind = |index: usize| types[index % types.len()];
    let stage = |name: String, index: usize, depends_on: &[String]| json!({ "name": name, "agent_type": kind(index), "depends_on": depends_on });
    let article: Vec<Value> = (0..4)
        .map(|index| {
            let before = (index > 0).then(|| format!("s{}", index - 1));
            stage(format!("s{index}"), index, before.as_slice())
        })
        .collect();
    let middle: Vec<String> = (0..WIDTH).map(|index| format!("m{index}")).collect();
    let mut fanout = vec![stage("split".to_owned(), 0, &[])];
    fanout.extend(middle.iter().enumerate().map(|(index, name)| stage(name.clone(), index, &["split".to_owned()])));
    fanout.push(stage("join".to_owned(), 0, &middle));
    let idle = json!([{ "name": "wait", "agent_type": "bench-nobody", "timeout_ms": 86_400_000 }]);
    for (name, stages) in [("bench-article", json!(article)), ("bench-fanout", json!(fanout)), (IDLE, idle)] {
        let definition = Some(Json::of(&json!({ "name": name, "timeout_ms": 86_400_000, "stages": stages }))?);
        let request = RegisterWorkflow { source: None, definition };
        client.register_workflow(&request).await.with_context(|| format!("registering {name}"))?;
    }
    Ok(())
}

fn start_of(workflow: &WorkflowName, input: &Json, run: RunId) -> StartRun {
    StartRun { run: Some(run), ..StartRun::new(workflow.clone(), input.clone()) }
}

/// Starts runs that nobody works on.
pub(crate) async fn fill(client: &Client, count: usize) -> anyhow::Result<()> {
    let (workflow, input) = (WorkflowName::new(IDLE)?, Json::of(&json!({ "topic": "nothing" }))?);
    let starts = futures::stream::iter(0..count).map(|_| {
        let request = start_of(&workflow, &input, RunId::from_uuid(Uuid::now_v7()));
        async move { client.start_run(request).await }
    });
    let mut starts = starts.buffer_unordered(512);
    while let Some(started) = starts.next().await {
        started.context("starting a run that waits")?;
    }
    Ok(())
}

impl Load {
    /// Begins.
    pub(crate) async fn start(client: &Client, plan: &Plan) -> anyhow::Result<Self> {
        let (workflow, to_the_end) = match plan.work {
            Work::Fanout => ("bench-fanout", true),
            Work::Submit => (IDLE, false),
            Work::Article | Work::Messages | Work::Agents | Work::Leases | Work::Floor => ("bench-article", true),
        };
        let shared = Arc::new(Shared {
            client: client.clone().with_deadline(PATIENCE),
            workflow: WorkflowName::new(workflow)?,
            input: Json::of(&json!({ "topic": "how fast is it" }))?,
            to_the_end,
            waiting: Mutex::default(),
            counting: AtomicBool::new(false),
            count: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            latency: Mutex::new(histogram()),
        });
        let mut workers = JoinSet::new();
        if to_the_end {
            let ends = client.nats().subscribe(ENDS).await?;
            client.nats().flush().await?;
            workers.spawn(hear(Arc::clone(&shared), ends));
        }
        match plan.rate {
            None => {
                for _ in 0..plan.inflight {
                    let shared = Arc::clone(&shared);
                    workers.spawn(async move {
                        loop {
                            shared.one(Instant::now()).await;
                        }
                    });
                }
            }
            Some(rate) => {
                workers.spawn(at_rate(Arc::clone(&shared), rate));
            }
        }
        Ok(Self { shared, workers })
    }

    /// Counts for so long.
    pub(crate) async fn count(&self, time: Duration) -> (Counted, Duration) {
        let shared = &self.shared;
        shared.count.store(0, Ordering::Relaxed);
        shared.errors.store(0, Ordering::Relaxed);
        lock(&shared.latency).reset();
        shared.counting.store(true, Ordering::Relaxed);
        let begin = Instant::now();
        tokio::time::sleep(time).await;
        shared.counting.store(false, Ordering::Relaxed);
        let took = begin.elapsed();
        let latency = lock(&shared.latency).clone();
        let count = shared.count.load(Ordering::Relaxed);
        (Counted { count, errors: shared.errors.load(Ordering::Relaxed), latency }, took)
    }

    /// Ends, without waiting for what is under way.
    pub(crate) async fn stop(mut self) {
        self.workers.shutdown().await;
    }
}

impl Shared {
    async fn one(&self, since: Instant) {
        let run = RunId::from_uuid(Uuid::now_v7());
        let (tell, ended) = oneshot::channel();
        if self.to_the_end {
            lock(&self.waiting).insert(run, tell);
        }
        let well = match self.client.start_run(start_of(&self.workflow, &self.input, run)).await {
            Ok(_) if self.to_the_end => matches!(timeout(PATIENCE, ended).await, Ok(Ok(true))),
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "a run was not started");
                false
            }
        };
        if self.to_the_end {
            lock(&self.waiting).remove(&run);
        }
        if !well {
            self.errors.fetch_add(1, Ordering::Relaxed);
        } else if self.counting.load(Ordering::Relaxed) {
            self.count.fetch_add(1, Ordering::Relaxed);
            let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
            lock(&self.latency).saturating_record(micros.max(1));
        }
    }
}

/// Starts so many a second, on time: a run that starts late because others are slow counts from when it was due.
async fn at_rate(shared: Arc<Shared>, rate: f64) {
    let begin = Instant::now();
    let mut under_way = JoinSet::new();
    for index in 0u64.. {
        let due = begin + Duration::from_secs_f64(index as f64 / rate);
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        let shared = Arc::clone(&shared);
        under_way.spawn(async move { shared.one(due).await });
        while under_way.try_join_next().is_some() {}
    }
}

#[derive(Deserialize)]
struct Ended {
    record: EndedRecord,
}

#[derive(Deserialize)]
struct EndedRecord {
    run_finished: Finished,
}

/// That a run has ended.
#[derive(Deserialize)]
pub(crate) struct Finished {
    pub(crate) run: RunId,
    pub(crate) status: RunStatus,
}

/// Where all ends of runs are told.
pub(crate) const ENDS: &str = "baton.event.run.*.run_finished";

/// The end that an event tells.
pub(crate) fn finished(event: &[u8]) -> Option<Finished> {
    Some(serde_json::from_slice::<Ended>(event).ok()?.record.run_finished)
}

async fn hear(shared: Arc<Shared>, mut ends: async_nats::Subscriber) {
    while let Some(message) = ends.next().await {
        let Some(Finished { run, status }) = finished(&message.payload) else { continue };
        if let Some(waiter) = lock(&shared.waiting).remove(&run) {
            let _ = waiter.send(status == RunStatus::Succeeded);
        }
    }
}
