//! Load: clients that keep a number of runs under way, and note all that they are told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use baton_client::{Client, ClientError, Headers, now};
use baton_protocol::message::MessageType;
use baton_protocol::request::{CancelRun, GetRun, RegisterWorkflow, RunAccepted, StartRun};
use baton_protocol::run::RunView;
use baton_protocol::{Code, Json, RunId, Service, WorkflowName, subject};
use futures::StreamExt;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::agent::{AGENT_TYPE, FAILS};
use crate::fleet::Gateways;
use crate::notes::{ClientNote, Notebook};
use crate::random::Random;

/// The workflows of the load.
const WORKFLOWS: [&str; 3] = ["chain", "fan", "wobbly"];

/// The workflow that recovery is measured with.
const PROBE: &str = "chain";

/// How long a submission that is not repeated waits for its answer.
const SUBMIT: Duration = Duration::from_secs(5);

/// How often a client looks at its run when nothing is said about it.
const LOOK: Duration = Duration::from_millis(700);

/// How long an attempt of the probe waits for its answer, and how long it pauses before the next one. Ordinary clients
/// wait longer; the probe is there to see the moment when the system is back.
const PROBE_ATTEMPT: Duration = Duration::from_millis(250);
const PROBE_PAUSE: Duration = Duration::from_millis(20);

/// Registers what is run: a chain of four, a fan-out with a join, and one with stages that fail at first or for good.
pub async fn register(client: &Client) -> anyhow::Result<()> {
    let stage =
        |name: &str, depends_on: &[&str]| json!({ "name": name, "agent_type": AGENT_TYPE, "depends_on": depends_on });
    let retry = |attempts: u32| json!({ "max_attempts": attempts, "initial_ms": 50, "max_ms": 1000 });
    // Enough attempts that no number of lost agents makes a run fail.
    let patient = |mut stage: serde_json::Value| {
        stage["retry"] = retry(1000);
        stage
    };
    let mut failing = stage("optional", &["first"]);
    (failing["optional"], failing["params"], failing["retry"]) = (json!(true), json!({ FAILS: 1000 }), retry(2));
    let mut late = patient(stage("late", &["first"]));
    late["params"] = json!({ FAILS: 1 });
    let definitions = [
        json!({ "name": "chain", "stages": [
            patient(stage("a", &[])), patient(stage("b", &["a"])), patient(stage("c", &["b"])), patient(stage("d", &["c"])),
        ]}),
        json!({ "name": "fan", "stages": [
            patient(stage("split", &[])), patient(stage("one", &["split"])), patient(stage("two", &["split"])),
            patient(stage("three", &["split"])), patient(stage("join", &["one", "two", "three"])),
        ]}),
        json!({ "name": "wobbly", "stages": [
            patient(stage("first", &[])), failing, late, patient(stage("last", &["optional", "late"])),
        ]}),
    ];
    for definition in definitions {
        let request = RegisterWorkflow { source: None, definition: Some(Json::of(&definition)?) };
        client.register_workflow(&request).await.with_context(|| format!("registering {}", definition["name"]))?;
    }
    Ok(())
}

/// What all clients share.
#[derive(Clone)]
pub struct Clients {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    http: reqwest::Client,
    gateways: Gateways,
    notes: Notebook,
    /// Distinguishes this runner's keys from those of others on the same log.
    prefix: String,
    keys: AtomicU64,
    accepted: AtomicU64,
    ended: AtomicU64,
    stages: AtomicU64,
    by_http: AtomicU64,
    /// Accepted and not ended.
    open: Mutex<BTreeSet<RunId>>,
    /// Who waits for which run's end.
    waiting: Mutex<HashMap<RunId, oneshot::Sender<()>>>,
}

impl Clients {
    /// Clients that note in that book.
    pub async fn new(client: &Client, gateways: &Gateways, notes: &Notebook, seed: u64) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let inner = Inner {
            client: client.clone().with_deadline(Duration::from_secs(5)),
            http: reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?,
            gateways: gateways.clone(),
            notes: notes.clone(),
            prefix: format!("{seed:x}-{}", now()),
            keys: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            stages: AtomicU64::new(0),
            by_http: AtomicU64::new(0),
            open: Mutex::default(),
            waiting: Mutex::default(),
        };
        let clients = Self { inner: Arc::new(inner) };
        // Said once and perhaps not heard; who waits looks for himself now and then.
        let mut ends = client.nats().subscribe("baton.event.run.*.run_finished").await?;
        let weak = Arc::downgrade(&clients.inner);
        tokio::spawn(async move {
            while let Some(message) = ends.next().await {
                let Some(inner) = weak.upgrade() else { return };
                let run = message.subject.split('.').nth(3).and_then(|run| run.parse::<RunId>().ok());
                let waiter = run.and_then(|run| lock(&inner.waiting).remove(&run));
                if let Some(waiter) = waiter {
                    let _ = waiter.send(());
                }
            }
        });
        Ok(clients)
    }

    /// Runs that were accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.inner.accepted.load(Ordering::Relaxed)
    }

    /// Runs whose end was told so far.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.inner.ended.load(Ordering::Relaxed)
    }

    /// Stages with a result in those runs.
    #[must_use]
    pub fn stages(&self) -> u64 {
        self.inner.stages.load(Ordering::Relaxed)
    }

    /// Runs that were started over HTTP.
    #[must_use]
    pub fn by_http(&self) -> u64 {
        self.inner.by_http.load(Ordering::Relaxed)
    }

    /// The runs that are under way.
    #[must_use]
    pub fn open(&self) -> BTreeSet<RunId> {
        lock(&self.inner.open).clone()
    }

    fn request(&self, workflow: &str) -> anyhow::Result<StartRun> {
        let number = self.inner.keys.fetch_add(1, Ordering::Relaxed);
        Ok(StartRun {
            key: Some(format!("{}-{number}", self.inner.prefix)),
            ..StartRun::new(WorkflowName::new(workflow)?, Json::of(&json!({ "number": number }))?)
        })
    }

    /// One run from its start to its end, as a client sees it.
    async fn drive(&self, random: &mut Random) -> anyhow::Result<()> {
        let request = self.request(random.pick::<&str>(&WORKFLOWS))?;
        let key = request.key.clone().unwrap_or_default();
        self.note(ClientNote::Submitted { at: now(), key: key.clone(), workflow: request.workflow.clone() });
        let over_http = random.one_in(4);
        let Some(run) = self.start(&request, &key, over_http).await else { return Ok(()) };
        lock(&self.inner.open).insert(run);
        self.inner.accepted.fetch_add(1, Ordering::Relaxed);
        if random.one_in(6) {
            // As a client does whose answer got lost, perhaps at another door.
            self.start(&request, &key, random.one_in(2)).await;
        }
        if random.one_in(10) {
            sleep(Duration::from_millis(random.within(0..250))).await;
            self.cancel(run).await;
        }
        self.until_end(run).await;
        lock(&self.inner.open).remove(&run);
        Ok(())
    }

    /// Asks for a run until there is an answer, and notes it. None: it is refused.
    async fn start(&self, request: &StartRun, key: &str, over_http: bool) -> Option<RunId> {
        let mut over_http = over_http;
        loop {
            if std::mem::take(&mut over_http)
                && let Some(run) = self.start_over_http(request, key).await
            {
                self.inner.by_http.fetch_add(1, Ordering::Relaxed);
                self.note(ClientNote::Accepted { at: now(), key: key.to_owned(), run });
                return Some(run);
            }
            match self.inner.client.start_run(request.clone()).await {
                Ok(accepted) => {
                    self.note(ClientNote::Accepted { at: now(), key: key.to_owned(), run: accepted.run });
                    return Some(accepted.run);
                }
                Err(ClientError::Rejected(rejection))
                    if rejection.retry_after_ms.is_none() && !may_pass(rejection.code) =>
                {
                    let (code, message) = (rejection.code, rejection.message);
                    self.note(ClientNote::Refused { at: now(), key: key.to_owned(), code, message });
                    return None;
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Asks one of the gateways, once. Whatever goes wrong, the same key is good at every door.
    async fn start_over_http(&self, request: &StartRun, key: &str) -> Option<RunId> {
        let gateways: Vec<_> = lock(&self.inner.gateways).values().cloned().collect();
        let first = key.len() % gateways.len().max(1);
        for url in gateways.iter().cycle().skip(first).take(gateways.len()) {
            let post = self.inner.http.post(format!("{url}/v1/runs")).header("Idempotency-Key", key).json(request);
            if let Ok(answer) = post.send().await
                && answer.status().is_success()
                && let Ok(accepted) = answer.json::<RunAccepted>().await
            {
                return Some(accepted.run);
            }
        }
        None
    }

    /// Asks for a run once, notes what is told, and does not wait for the run.
    pub async fn submit(&self, random: &mut Random) -> Submitted {
        let Ok(request) = self.request(random.pick::<&str>(&WORKFLOWS)) else { return Submitted::Unanswered };
        let key = request.key.clone().unwrap_or_default();
        self.note(ClientNote::Submitted { at: now(), key: key.clone(), workflow: request.workflow.clone() });
        let topic = subject::request(Service::WorkflowManager, "run.start");
        let headers = Headers::of(MessageType::CoordinationRequest);
        let client = &self.inner.client;
        let answer = client.request_once(Service::WorkflowManager, &topic, &request, headers, SUBMIT).await;
        match answer {
            Ok(RunAccepted { run, .. }) => {
                self.inner.accepted.fetch_add(1, Ordering::Relaxed);
                self.note(ClientNote::Accepted { at: now(), key, run });
                Submitted::Accepted
            }
            Err(ClientError::Rejected(rejection)) => {
                let retry_after = rejection.retry_after_ms.is_some();
                let (code, message) = (rejection.code, rejection.message);
                self.note(ClientNote::Refused { at: now(), key, code, message });
                Submitted::Refused { retry_after }
            }
            Err(_) => Submitted::Unanswered,
        }
    }

    async fn cancel(&self, run: RunId) {
        let request = CancelRun { run, reason: Some("the client has changed its mind".to_owned()) };
        loop {
            match self.inner.client.cancel_run(&request).await {
                Ok(_) => return,
                Err(ClientError::Rejected(rejection)) if !may_pass(rejection.code) => return,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Waits for a run's end, and notes what is told of it.
    async fn until_end(&self, run: RunId) {
        loop {
            let (sender, told) = oneshot::channel();
            lock(&self.inner.waiting).insert(run, sender);
            match self.inner.client.get_run(run).await {
                Ok(view) if view.status.is_end() => {
                    lock(&self.inner.waiting).remove(&run);
                    self.note_end(&view);
                    return;
                }
                Ok(_) => drop(timeout(LOOK, told).await),
                Err(ClientError::Rejected(rejection)) if rejection.code == Code::UnknownRun => {
                    self.note(ClientNote::Unknown { at: now(), run });
                    return;
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn note_end(&self, view: &RunView) {
        let result = |stage: &baton_protocol::run::StageView| {
            Some((stage.name.clone(), stage.result.as_ref()?.as_str().to_owned()))
        };
        let results: BTreeMap<_, _> = view.stages.iter().filter_map(result).collect();
        self.inner.ended.fetch_add(1, Ordering::Relaxed);
        self.inner.stages.fetch_add(results.len() as u64, Ordering::Relaxed);
        self.note(ClientNote::Ended { at: now(), run: view.run, status: view.status, results });
    }

    fn note(&self, note: ClientNote) {
        self.inner.notes.note(note);
    }

    /// Starts a run and waits for its end, asking much more often than a client would; gives when it ended.
    pub async fn probe(&self) -> anyhow::Result<Instant> {
        let request = self.request(PROBE)?;
        let key = request.key.clone().unwrap_or_default();
        self.note(ClientNote::Submitted { at: now(), key: key.clone(), workflow: request.workflow.clone() });
        let accepted: RunAccepted = self.insist("run.start", &request).await?;
        let run = accepted.run;
        self.note(ClientNote::Accepted { at: now(), key, run });
        self.inner.accepted.fetch_add(1, Ordering::Relaxed);
        loop {
            let view: RunView = self.insist("run.get", &GetRun { run }).await?;
            if view.status.is_end() {
                self.note_end(&view);
                return Ok(Instant::now());
            }
            sleep(PROBE_PAUSE).await;
        }
    }

    async fn insist<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
        &self,
        endpoint: &str,
        request: &Q,
    ) -> anyhow::Result<A> {
        let service = Service::WorkflowManager;
        let topic = subject::request(service, endpoint);
        loop {
            let headers = Headers::of(MessageType::CoordinationRequest);
            match self.inner.client.request_once(service, &topic, request, headers, PROBE_ATTEMPT).await {
                Ok(answer) => return Ok(answer),
                Err(ClientError::Rejected(rejection)) if !may_pass(rejection.code) => {
                    anyhow::bail!("the probe was refused: {rejection}")
                }
                Err(_) => sleep(PROBE_PAUSE).await,
            }
        }
    }
}

/// How a submission was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    /// The run is accepted.
    Accepted,
    /// It is refused.
    Refused {
        /// Whether it was said when to ask again.
        retry_after: bool,
    },
    /// There was no answer.
    Unanswered,
}

/// Whether asking again may help.
fn may_pass(code: Code) -> bool {
    code.is_retryable() || matches!(code, Code::Internal | Code::Unknown)
}

/// Clients at work.
pub struct Load {
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Load {
    /// Keeps that many runs under way until stopped.
    #[must_use]
    pub fn start(clients: &Clients, in_flight: usize, random: &Random) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for number in 0..in_flight as u64 {
            let (clients, stop, mut random) = (clients.clone(), stop.clone(), random.fork(number));
            tasks.spawn(async move {
                while !stop.is_cancelled() {
                    clients.drive(&mut random).await?;
                }
                Ok(())
            });
        }
        Self { stop, tasks }
    }

    /// Starts no more runs, and waits until those under way have ended. False: some have not in that time.
    pub async fn stop(mut self, patience: Duration) -> anyhow::Result<bool> {
        self.stop.cancel();
        let end = Instant::now() + patience;
        while let Ok(joined) = tokio::time::timeout_at(end, self.tasks.join_next()).await {
            match joined {
                Some(joined) => joined??,
                None => return Ok(true),
            }
        }
        Ok(false)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
