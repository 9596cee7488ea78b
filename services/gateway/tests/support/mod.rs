//! A gateway in front of a real nats-server, and services that answer by a script.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::header::HeaderMap;
use async_nats::jetstream::{self, stream};
use async_nats::{Client, Message};
use baton_client::ConnectSettings;
use baton_gateway::GatewayError;
use baton_protocol::definition::Definition;
use baton_protocol::pressure::{PressureCause, PressureLevel, PressureView};
use baton_protocol::record::{Cause, FORMAT, RunFinished, RunStarted, StageReady, Turn};
use baton_protocol::request::{
    AgentList, AgentsFound, AlertList, BackPressure, DecideStage, Done, ExplainPlacement, Figures, Forecast,
    LearningPage, LeaseList, PlacementExplained, PlacementView, PoolList, Role, RunAccepted, RunList, RunsCancelled,
    SignalRun, SignalStored, Spending, Spent, StageDecided, StartRun, Strategy, Usage, WorkflowList, WorkflowSummary,
    WorkflowView,
};
use baton_protocol::run::{RunStatus, RunView};
use baton_protocol::subject::{self, Shard};
use baton_protocol::{
    Capability, Code, Commit, Json, Money, Rejection, Resources, RunId, Service, StageName, TaskId, WorkflowName,
    WorkflowRecord,
};
use baton_shell::{Instance, Settings, Telemetry};
use baton_telemetry::{Metrics, Spans};
use baton_testkit::NatsServer;
use futures::{Stream, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What a service was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) endpoint: String,
    pub(crate) body: Value,
    pub(crate) traceparent: Option<String>,
}

/// A gateway and what it stands before.
pub(crate) struct House {
    pub(crate) server: NatsServer,
    pub(crate) nats: Client,
    pub(crate) address: SocketAddr,
    pub(crate) base: String,
    pub(crate) http: reqwest::Client,
    pub(crate) shutdown: CancellationToken,
    pub(crate) gateway: JoinHandle<Result<(), GatewayError>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    runs: Arc<Mutex<BTreeMap<RunId, RunView>>>,
    services: BTreeMap<Service, JoinSet<()>>,
    document: Value,
    next: u64,
}

/// An answer, checked against the document.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
    pub(crate) json: Value,
}

impl House {
    /// A gateway and all services.
    pub(crate) async fn open() -> Self {
        Self::open_with(Spans::none()).await
    }

    /// The same, with a place for its spans.
    pub(crate) async fn open_with(spans: Spans) -> Self {
        let server = NatsServer::start().await;
        let nats = server.connect().await;
        let mut house = Self::enter(server, nats, spans).await;
        for service in Service::WRITERS {
            house.lead(service).await;
        }
        house.answer_requests().await;
        house
    }

    async fn enter(server: NatsServer, nats: Client, spans: Spans) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut settings = Settings::default();
        settings.http.listen = "127.0.0.1:0".to_owned();
        let instance = Instance::new(Service::Gateway);
        let telemetry = Telemetry { spans, metrics: Metrics::new("gateway", instance.name()) };
        let shutdown = CancellationToken::new();
        let (bound, address) = oneshot::channel();
        let connect = ConnectSettings::server(server.client_url());
        let gateway = baton_gateway::run(instance, connect, settings, telemetry, shutdown.clone(), Some(bound));
        let gateway = tokio::spawn(gateway);
        let address = address.await.expect("the gateway listens");
        Self {
            server,
            nats,
            address,
            base: format!("http://{address}"),
            http: reqwest::Client::new(),
            shutdown,
            gateway,
            asked: Arc::default(),
            runs: Arc::default(),
            services: BTreeMap::new(),
            document: baton_gateway::document(),
            next: 1,
        }
    }

    /// A leading instance of a service says so.
    pub(crate) async fn lead(&mut self, service: Service) {
        let instance = Instance::new(service);
        instance.update(|status| status.role = Role::Leading);
        let metrics = Metrics::new(service.as_str(), instance.name());
        let tasks = self.services.entry(service).or_default();
        baton_shell::serve_status(&self.nats, &instance, &metrics, tasks).await.unwrap();
        self.nats.flush().await.unwrap();
    }

    /// No instance of the service is there any more.
    pub(crate) async fn stop(&mut self, service: Service) {
        self.services.remove(&service).expect("it was there").shutdown().await;
        self.nats.flush().await.unwrap();
    }

    async fn answer_requests(&mut self) {
        let mut requests = self.nats.subscribe("baton.req.>").await.unwrap();
        self.nats.flush().await.unwrap();
        let (nats, asked, runs) = (self.nats.clone(), Arc::clone(&self.asked), Arc::clone(&self.runs));
        let tasks = self.services.entry(Service::WorkflowManager).or_default();
        tasks.spawn(async move {
            let mut script = Script { runs, keys: BTreeMap::new() };
            while let Some(message) = requests.next().await {
                let endpoint = message.subject.splitn(4, '.').nth(3).unwrap_or_default().to_owned();
                let body: Value = serde_json::from_slice(&message.payload).unwrap();
                let header = message.headers.as_ref().and_then(|headers| headers.get("traceparent"));
                let traceparent = header.map(ToString::to_string);
                asked.lock().unwrap().push(Asked { endpoint: endpoint.clone(), body: body.clone(), traceparent });
                if let Some(answer) = script.answer(&endpoint, body) {
                    reply(&nats, &message, answer).await;
                }
            }
        });
    }

    /// What the services were asked last.
    pub(crate) fn last_asked(&self) -> Asked {
        self.asked.lock().unwrap().last().expect("something was asked").clone()
    }

    /// How often something was asked.
    pub(crate) fn times_asked(&self, endpoint: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| asked.endpoint == endpoint).count()
    }

    /// Shows a run in answers to `run.get` from now on.
    pub(crate) fn show(&self, run: RunId, status: RunStatus, first_seq: u64) {
        self.runs.lock().unwrap().insert(run, view(run, status, first_seq));
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[], None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(Method::POST, path, &[("content-type", "application/json")], Some(&body.to_string())).await
    }

    /// Asks, and holds the answer against the document: the status is in it, the body is as it says, and an error is a
    /// problem.
    pub(crate) async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Option<&str>) -> Answer {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.body(body.to_owned());
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = tokio::time::timeout(SOON, response.text()).await.expect("an answer comes in time").unwrap();
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        let answer = Answer { status, headers, text, json };
        self.hold_against_the_document(&method, path, &answer);
        answer
    }

    fn hold_against_the_document(&self, method: &Method, path: &str, answer: &Answer) {
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        let media = answer.header("content-type").split(';').next().unwrap_or_default().to_owned();
        if answer.status >= 400 {
            assert_eq!(media, "application/problem+json", "{answer:?}");
            self.matches(&json!({ "$ref": "#/components/schemas/Problem" }), &answer.json);
            assert_eq!(answer.json["status"], answer.status);
            assert!(answer.json["instance"].as_str().unwrap().starts_with("urn:uuid:"));
            assert!(!answer.json["detail"].as_str().unwrap().is_empty());
            return;
        }
        let path = path.split('?').next().unwrap();
        let operation =
            self.operation(method, path).unwrap_or_else(|| panic!("{method} {path} is not in the document"));
        let response = &operation["responses"][answer.status.to_string()];
        assert!(response.is_object(), "{method} {path}: {} is not in the document", answer.status);
        if response["content"].is_null() {
            assert!(answer.text.is_empty());
            return;
        }
        let content = &response["content"][&media];
        assert!(content.is_object(), "{method} {path}: {media} is not in the document");
        if media == "application/json" {
            self.matches(&content["schema"], &answer.json);
        }
        assert_eq!(response["headers"]["Location"].is_object(), answer.headers.contains_key("location"));
    }

    fn operation(&self, method: &Method, path: &str) -> Option<&Value> {
        let is = |template: &str| {
            let (one, other): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
            one.len() == other.len() && one.iter().zip(&other).all(|(t, p)| t.starts_with('{') || t == p)
        };
        let paths = self.document["paths"].as_object().unwrap();
        let method = method.as_str().to_ascii_lowercase();
        // A path as it is written comes before one with parameters.
        let exact = paths.get(path).into_iter();
        let others = paths.iter().filter(|(template, _)| is(template)).map(|(_, item)| item);
        exact.chain(others).find_map(|item| item.get(&method))
    }

    fn matches(&self, schema: &Value, value: &Value) {
        let schema = json!({ "allOf": [schema], "components": self.document["components"] });
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<_> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{value} is not as the document says: {errors:?}");
    }

    /// Makes the log.
    pub(crate) async fn make_log(&self) {
        let config = stream::Config {
            name: subject::log_stream(Shard::default()),
            subjects: vec![subject::log_subjects(Shard::default())],
            ..stream::Config::default()
        };
        jetstream::new(self.nats.clone()).create_stream(config).await.unwrap();
    }

    /// Writes a commit to the log; gives its sequence.
    pub(crate) async fn commit(&mut self, records: Vec<WorkflowRecord>) -> u64 {
        let count = records.len() as u64;
        let turns = vec![Turn { at: 1000, seen: 0, cause: Cause::Timer, records }];
        let commit = Commit { format: FORMAT, instance: "i".into(), term: 1, first: self.next, handled: 0, turns };
        self.next += count;
        let subject = subject::log(Shard::default(), Service::WorkflowManager);
        let body = serde_json::to_vec(&commit).unwrap();
        jetstream::new(self.nats.clone()).publish(subject, body.into()).await.unwrap().await.unwrap().sequence
    }

    /// Reads an event stream.
    pub(crate) async fn events(&self, path: &str, last: Option<&str>) -> Events {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { chunks: Box::pin(response.bytes_stream()), buffer: String::new() }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    pub(crate) fn code(&self) -> (u16, &str) {
        (self.status, self.json["code"].as_str().unwrap_or_default())
    }
}

/// An event stream, being read.
pub(crate) struct Events {
    chunks: std::pin::Pin<Box<dyn Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    buffer: String,
}

/// An event as it was sent.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Sent {
    pub(crate) kind: String,
    pub(crate) id: Option<String>,
    pub(crate) data: Value,
}

impl Events {
    /// The next event, comments left out; none at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Sent> {
        loop {
            let Some((block, rest)) = self.buffer.split_once("\n\n") else {
                let chunk = tokio::time::timeout(SOON, self.chunks.next()).await.expect("an event comes in time")?;
                self.buffer.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
                continue;
            };
            let (block, rest) = (block.to_owned(), rest.to_owned());
            self.buffer = rest;
            let mut sent = Sent::default();
            let mut data = String::new();
            for line in block.lines() {
                let (field, value) = line.split_once(':').unwrap();
                let value = value.strip_prefix(' ').unwrap_or(value);
                match field {
                    "event" => sent.kind = value.to_owned(),
                    "id" => sent.id = Some(value.to_owned()),
                    "data" => {
                        data.push_str(value);
                        data.push('\n');
                    }
                    "" | "retry" => {}
                    other => panic!("a field {other:?}"),
                }
            }
            if !data.is_empty() {
                sent.data = serde_json::from_str(&data).unwrap();
                return Some(sent);
            }
        }
    }

    /// The kind and the id of the next event.
    pub(crate) async fn next_kind(&mut self) -> (String, Option<String>) {
        let sent = self.next().await.expect("the stream goes on");
        (sent.kind, sent.id)
    }
}

/// The services' side.
struct Script {
    runs: Arc<Mutex<BTreeMap<RunId, RunView>>>,
    keys: BTreeMap<String, (RunId, StartRun)>,
}

impl Script {
    /// The answer; none: the request is left unanswered.
    fn answer(&mut self, endpoint: &str, body: Value) -> Option<Result<Value, Rejection>> {
        fn is<T: serde::Serialize>(answer: &T) -> Option<Result<Value, Rejection>> {
            Some(Ok(serde_json::to_value(answer).unwrap()))
        }
        let no = |code, message: &str| Some(Err(Rejection::new(code, message)));
        match endpoint {
            "workflow.register" | "workflow.validate" if body["source"] == "nonsense" => {
                no(Code::InvalidWorkflow, "line 1: nonsense is no definition")
            }
            "workflow.register" => is(&workflow_view(3)),
            "workflow.validate" => is(&workflow_view(0)),
            "workflow.list" => {
                let summary = WorkflowSummary {
                    name: article(),
                    version: 3,
                    description: None,
                    stages: vec![StageName::new("research").unwrap()],
                    stage_count: Some(1),
                    registered_at: 1000,
                };
                is(&WorkflowList { workflows: vec![summary], more: false })
            }
            "workflow.get" if body["name"] == "absent" => no(Code::UnknownWorkflow, "there is no workflow absent"),
            "workflow.get" => is(&workflow_view(3)),
            "run.start" => self.start(serde_json::from_value(body).unwrap()),
            "run.list" => is(&RunList { runs: vec![], counts: BTreeMap::from([(RunStatus::Running, 2)]), more: false }),
            "run.get" => {
                let run: RunId = serde_json::from_value(body["run"].clone()).unwrap();
                match self.runs.lock().unwrap().get(&run) {
                    Some(view) => is(view),
                    None => no(Code::UnknownRun, "there is no such run"),
                }
            }
            "run.cancel" if body["reason"] == "too late" => no(Code::RunEnded, "the run has already ended"),
            "stage.decide" if body["stage"] == "pending" => no(Code::NotWaiting, "it has not begun"),
            "stage.decide" => {
                let DecideStage { run, stage, approved, .. } = serde_json::from_value(body).unwrap();
                is(&StageDecided { run, stage, approved, existing: false })
            }
            "run.signal" => {
                let SignalRun { run, signal, payload, .. } = serde_json::from_value(body).unwrap();
                is(&SignalStored { run, signal, existing: payload.is_null() })
            }
            "run.cancel" => is(&accepted(serde_json::from_value(body["run"].clone()).unwrap(), RunStatus::Cancelled)),
            "runs.cancel" => is(&RunsCancelled { runs: vec![], more: false }),
            "run.pause" | "run.resume" => {
                let run = serde_json::from_value(body["run"].clone()).unwrap();
                is(&RunAccepted { paused: endpoint == "run.pause", ..accepted(run, RunStatus::Running) })
            }
            "run.rerun" if body["from"] == "absent" => no(Code::InvalidRequest, "the run has no stage absent"),
            "run.rerun" => {
                let existing = body["key"] == "again";
                is(&RunAccepted { existing, ..accepted(RunId::derive(1000, 99), RunStatus::Running) })
            }
            "agent.list" => is(&AgentList { agents: vec![] }),
            "alert.list" => is(&AlertList { alerts: vec![] }),
            "alert.acknowledge" => is(&Done {}),
            "pressure.get" => is(&PressureView {
                level: PressureLevel::Elevated,
                causes: vec![PressureCause::Queue],
                since: Some(5),
                below: Some(0),
                retry_after_ms: Some(2000),
                waiting: 1200,
                waiting_below: 200,
                slots: 8,
                memory_percent: None,
            }),
            "agent.find" => is(&AgentsFound { found: 0, agents: vec![] }),
            "pool.list" => is(&PoolList { pools: vec![], more: false }),
            "lease.list" => is(&LeaseList { leases: vec![], more: false }),
            "budget.spending" => {
                is(&Spending { total: Spent::default(), rest: Spent::default(), rows: vec![], more: false })
            }
            "strategy.set" => is(&Done {}),
            "placement.get" => is(&PlacementView {
                strategy: Strategy::RoundRobin,
                learning_rate: 0.1,
                queued: 0,
                queue: vec![],
                agents: vec![],
                stages: vec![],
                figures: Figures::default(),
                tenants: vec![],
            }),
            "learning.get" => is(&LearningPage { lessons: vec![], more: false }),
            "learning.import" => is(&Done {}),
            "capacity.plan" => no(Code::UnknownWorkflow, "there is no such workflow"),
            "queue.forecast" => is(&Forecast {
                at: 0,
                due: 0,
                late: 0,
                held_up: 0,
                first: vec![],
                queues: vec![],
                back_pressure: BackPressure::None,
                retry_after_ms: None,
                advice: vec![],
            }),
            "advice.get" => no(Code::UnknownWorkflow, "there is no such workflow"),
            "placement.explain" => {
                let ExplainPlacement { run, stage } = serde_json::from_value(body).unwrap();
                is(&PlacementExplained {
                    task: TaskId { run, stage, item: None, attempt: 1 },
                    strategy: Strategy::RoundRobin,
                    agent: None,
                    since: None,
                    at: None,
                    reason: "nobody can do it".into(),
                    candidates: vec![],
                })
            }
            _ => panic!("nobody knows {endpoint}"),
        }
    }

    /// As the workflow-manager does it.
    fn start(&mut self, request: StartRun) -> Option<Result<Value, Rejection>> {
        let count = self.keys.len() as u128;
        let trace = request.trace.map(|trace| format!("{:032x}", trace.trace));
        match request.workflow.as_str() {
            "silent" => return None,
            "garbled" => return Some(Ok(json!({ "run": 7 }))),
            "busy" => return Some(Err(Rejection::new(Code::Unavailable, "busy").retry_after(9000))),
            "crowded" => return Some(Err(Rejection::new(Code::Overloaded, "crowded").retry_after(1200))),
            "absent" => return Some(Err(Rejection::new(Code::UnknownWorkflow, "there is no workflow absent"))),
            _ => {}
        }
        let known = request.key.as_ref().and_then(|key| self.keys.get(key));
        let answer = match known {
            Some((run, first)) if first.input == request.input && request.run.is_none() => {
                RunAccepted { existing: true, ..accepted(*run, RunStatus::Running) }
            }
            Some(_) => return Some(Err(Rejection::new(Code::KeyConflict, "the key was used for another request"))),
            None => accepted(request.run.unwrap_or_else(|| RunId::derive(1000, count)), RunStatus::Running),
        };
        if let Some(key) = request.key.clone() {
            self.keys.entry(key).or_insert((answer.run, request));
        }
        let trace_id = trace.unwrap_or(answer.trace_id);
        Some(Ok(serde_json::to_value(RunAccepted { trace_id, ..answer }).unwrap()))
    }
}

async fn reply(nats: &Client, message: &Message, answer: Result<Value, Rejection>) {
    let subject = message.reply.clone().expect("a request has a reply subject");
    match answer {
        Ok(body) => nats.publish(subject, body.to_string().into()).await.unwrap(),
        Err(rejection) => {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Service-Error", rejection.message.as_str());
            headers.insert("Nats-Service-Error-Code", rejection.code.http_status().to_string());
            let body = serde_json::to_vec(&rejection).unwrap();
            nats.publish_with_headers(subject, headers, body.into()).await.unwrap();
        }
    }
}

pub(crate) fn article() -> WorkflowName {
    WorkflowName::new("article").unwrap()
}

fn workflow_view(version: u32) -> WorkflowView {
    let definition = Definition::builder("article").add_stage("research", "research", &[]).build().unwrap();
    WorkflowView { version, registered_at: 1000, definition }
}

fn accepted(run: RunId, status: RunStatus) -> RunAccepted {
    let trace_id = run.as_uuid().simple().to_string();
    RunAccepted { run, workflow: article(), version: 3, status, existing: false, paused: false, trace_id }
}

fn view(run: RunId, status: RunStatus, first_seq: u64) -> RunView {
    RunView {
        run,
        workflow: article(),
        version: 3,
        status,
        reason: None,
        input: Json::null(),
        priority: 0,
        key: None,
        trace_id: run.as_uuid().simple().to_string(),
        started_at: 1000,
        ended_at: None,
        cost: Money::ZERO,
        usage: Usage::default(),
        budget: None,
        first_seq,
        metadata: BTreeMap::new(),
        paused: None,
        rerun: None,
        parent: None,
        definition: None,
        stages: vec![],
    }
}

/// A run begins. Its input has line breaks in it, as people write JSON.
pub(crate) fn started(run: RunId) -> WorkflowRecord {
    WorkflowRecord::RunStarted(RunStarted {
        run,
        workflow: article(),
        version: 3,
        input: Json::from_text("{\n  \"topic\":\r\n  \"x\"\n}".to_owned()).unwrap(),
        priority: 0,
        key: None,
        trace: None,
        strategy: None,
        due: None,
        budget: None,
        metadata: Default::default(),
        rerun: None,
        parent: None,
        no_cache: false,
    })
}

pub(crate) fn ready(run: RunId, stage: &str) -> WorkflowRecord {
    WorkflowRecord::StageReady(StageReady {
        task: task(run, stage),
        agent_type: Capability::new("research").unwrap(),
        requires: Default::default(),
        inputs: vec![],
        input: None,
        cache: None,
        hedge: false,
        speculative: false,
        resources: Resources::new(),
        priority: 0,
    })
}

pub(crate) fn finished(run: RunId) -> WorkflowRecord {
    WorkflowRecord::RunFinished(RunFinished { run, status: RunStatus::Succeeded, reason: None })
}

pub(crate) fn task(run: RunId, stage: &str) -> TaskId {
    TaskId { run, stage: StageName::new(stage).unwrap(), item: None, attempt: 1 }
}
