//! The gateway in front of the real services, on a real nats-server: one run, from its definition to its last event.

use std::time::Duration;

use async_nats::Client;
use baton_client::ConnectSettings;
use baton_protocol::request::Assignment;
use baton_protocol::subject::{self, AgentVerb};
use baton_protocol::{AgentId, Service};
use baton_shell::{Instance, Settings, Telemetry};
use baton_telemetry::{Metrics, Spans};
use baton_testkit::{NatsServer, wait_for};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(30);

/// An agent, as a program without Baton's libraries would be one.
async fn agent(nats: Client) {
    let ann = AgentId::new("ann").unwrap();
    let mut work = nats.subscribe(subject::assign(&ann)).await.unwrap();
    let register = json!({ "session": "1", "agent_type": "research" });
    ask(&nats, subject::agent(&ann, AgentVerb::Register), &register).await;
    while let Some(message) = work.next().await {
        let task: Assignment = serde_json::from_slice(&message.payload).unwrap();
        let report = json!({
            "lease": task.lease, "task": task.task, "status": "succeeded", "result": { "found": task.input },
        });
        ask(&nats, subject::agent(&ann, AgentVerb::Report), &report).await;
    }
}

/// Asks until somebody answers.
async fn ask(nats: &Client, subject: String, body: &Value) {
    wait_for("an answer", SOON, async || {
        let answer = nats.request(subject.clone(), body.to_string().into()).await.map_err(|error| error.to_string())?;
        match answer.headers.as_ref().and_then(|headers| headers.get("Nats-Service-Error")) {
            Some(error) => Err(error.to_string()),
            None => Ok(()),
        }
    })
    .await;
}

#[tokio::test]
async fn g1_a_run_goes_from_http_through_the_services_and_back() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = NatsServer::start().await;
    let connect = ConnectSettings::server(server.client_url());
    let mut settings = Settings::default();
    settings.http.listen = "127.0.0.1:0".to_owned();
    let shutdown = CancellationToken::new();
    let _end = shutdown.clone().drop_guard();
    let start = |service: Service| {
        let instance = Instance::new(service);
        let metrics = Metrics::new(service.as_str(), instance.name());
        (instance, connect.clone(), settings.clone(), Telemetry { spans: Spans::none(), metrics })
    };
    let (i, c, s, t) = start(Service::WorkflowManager);
    let config = baton_workflow_manager::Config::default();
    tokio::spawn(baton_shell::run::<baton_workflow_manager::WorkflowManager>(
        i,
        c,
        s,
        config,
        t,
        None,
        shutdown.clone(),
    ));
    let (i, c, s, t) = start(Service::ResourceManager);
    // The agent sends no heartbeats.
    let config = baton_resource_manager::Config { lease_ms: 120_000, ..Default::default() };
    tokio::spawn(baton_shell::run::<baton_resource_manager::ResourceManager>(
        i,
        c,
        s,
        config,
        t,
        None,
        shutdown.clone(),
    ));
    let (i, c, s, t) = start(Service::Optimizer);
    let config = baton_optimizer::Config::default();
    tokio::spawn(baton_shell::run::<baton_optimizer::Optimizer>(i, c, s, config, t, None, shutdown.clone()));
    let (bound, address) = oneshot::channel();
    let (i, c, s, t) = start(Service::Gateway);
    tokio::spawn(baton_gateway::run(i, c, s, t, shutdown.clone(), Some(bound)));
    let base = format!("http://{}", address.await.unwrap());
    let http = reqwest::Client::new();
    wait_for("readiness", SOON, async || {
        let answer = http.get(format!("{base}/readyz")).send().await.unwrap();
        if answer.status() == 200 { Ok(()) } else { Err(answer.text().await.unwrap()) }
    })
    .await;
    tokio::spawn(agent(server.connect().await));

    let yaml = "name: study\nstages:\n  - {name: read, agent_type: research}\n  - {name: reread, agent_type: research, depends_on: [read]}\n";
    let sent = http.post(format!("{base}/v1/workflows")).header("content-type", "application/yaml").body(yaml);
    let sent = sent.send().await.unwrap();
    assert_eq!(sent.status(), 201, "{}", sent.text().await.unwrap());
    let start = async |input: Value| {
        let body = json!({ "workflow": "study", "input": input });
        let request = http.post(format!("{base}/v1/runs")).header("idempotency-key", "k").json(&body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, run) = start(json!({ "topic": "x" })).await;
    assert_eq!(status, 201, "{run}");
    let (status, again) = start(json!({ "topic": "x" })).await;
    assert_eq!((status, &again["run"]), (200, &run["run"]), "{again}");
    let (status, other) = start(json!({ "topic": "y" })).await;
    assert_eq!((status, &other["code"]), (409, &json!("key_conflict")));

    let run = run["run"].as_str().unwrap();
    let events = http.get(format!("{base}/v1/runs/{run}/events")).send();
    let events = tokio::time::timeout(SOON, async { events.await.unwrap().text().await.unwrap() }).await.unwrap();
    let kinds: Vec<_> = events.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let expected = [
        "run_started",
        "stage_ready",
        "assigned",
        "stage_ended",
        "stage_ready",
        "assigned",
        "stage_ended",
        "run_finished",
        "end",
    ];
    assert_eq!(kinds, expected, "{events}");
    let last = events.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().unwrap();
    let over = http.get(format!("{base}/v1/runs/{run}/events")).header("last-event-id", last).send().await.unwrap();
    assert_eq!(over.status(), 204);
    for path in ["/v1/runs", "/v1/agents", "/v1/placement", "/v1/services", "/metrics", "/v1/workflows/study"] {
        let answer = http.get(format!("{base}{path}")).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
    let view: Value = http.get(format!("{base}/v1/runs/{run}")).send().await.unwrap().json().await.unwrap();
    assert_eq!(view["status"], "succeeded");
    let cancel = http.delete(format!("{base}/v1/runs/{run}")).send().await.unwrap();
    assert_eq!(cancel.status(), 409);
}
