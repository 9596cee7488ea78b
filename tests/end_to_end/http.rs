//! The HTTP door of the real services.

use std::time::Duration;

use baton_protocol::Service;
use baton_testkit::wait_for;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE, TOPIC};

/// Starts the gateway and gives its address.
pub(crate) async fn gateway(fleet: &mut Fleet) -> String {
    let _ = rustls::crypto::ring::default_provider().install_default();
    fleet.set("BATON_HTTP__LISTEN", "127.0.0.1:0");
    fleet.start_service("gateway", Service::Gateway);
    let process = fleet.process("gateway");
    process.wait_for_output("http://127.0.0.1:", PATIENCE).await;
    let text = process.stdout() + &process.stderr();
    let (_, rest) = text.split_once("http://127.0.0.1:").unwrap();
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let url = format!("http://127.0.0.1:{port}");
    let ready = format!("{url}/readyz");
    wait_for("the gateway is ready", PATIENCE, || {
        let ready = ready.clone();
        async move { reqwest::get(ready).await.is_ok_and(|answer| answer.status().is_success()) }
    })
    .await;
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn g1_a_run_over_http_with_an_idempotency_key_and_its_events() {
    let mut fleet = Fleet::stocked().await;
    let url = gateway(&mut fleet).await;
    let http = reqwest::Client::new();
    let start = || {
        let body = json!({ "workflow": "article", "input": { "topic": TOPIC, "sources": fleet.sources() } });
        http.post(format!("{url}/v1/runs")).header("Idempotency-Key", "k-1").json(&body).send()
    };
    let answer = start().await.unwrap();
    assert_eq!(answer.status(), 201);
    let accepted: Value = answer.json().await.unwrap();
    let run = accepted["run"].as_str().unwrap().to_owned();
    let again = start().await.unwrap();
    assert_eq!(again.status(), 200);
    assert_eq!(again.json::<Value>().await.unwrap()["run"], run.as_str());

    // The whole stream of events, from the first one to the end.
    let (ids, kinds) = events(&http, &format!("{url}/v1/runs/{run}/events"), None).await;
    // Progress is live: it may come before the records that are read from the log.
    assert_eq!(kinds.iter().find(|kind| *kind != "progress").map(String::as_str), Some("run_started"));
    assert_eq!(kinds.iter().filter(|k| *k == "stage_ended").count(), 4);
    assert!(kinds.contains(&"run_finished".to_owned()));
    // From the middle on, after a reconnect.
    let (rest, _) = events(&http, &format!("{url}/v1/runs/{run}/events"), Some(&ids[5])).await;
    assert_eq!(rest, ids[6..]);

    let view: Value = http.get(format!("{url}/v1/runs/{run}")).send().await.unwrap().json().await.unwrap();
    assert_eq!(view["status"], "succeeded", "{view}");
    let list: Value = http.get(format!("{url}/v1/runs?status=succeeded")).send().await.unwrap().json().await.unwrap();
    assert_eq!(list["runs"][0]["run"], run.as_str());
    let agents: Value = http.get(format!("{url}/v1/agents")).send().await.unwrap().json().await.unwrap();
    assert_eq!(agents["agents"].as_array().unwrap().len(), 4);

    // Every error is a problem document with a stable code.
    let unknown = http.get(format!("{url}/v1/runs/{}", uuid_like())).send().await.unwrap();
    assert_eq!(unknown.status(), 404);
    assert_eq!(unknown.headers()["content-type"], "application/problem+json");
    assert_eq!(unknown.json::<Value>().await.unwrap()["code"], "unknown_run");

    let openapi: Value = http.get(format!("{url}/openapi.json")).send().await.unwrap().json().await.unwrap();
    assert!(openapi["openapi"].as_str().unwrap().starts_with("3.1"));
}

fn uuid_like() -> &'static str {
    "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"
}

/// The ids and kinds of the events of a stream, to its end.
async fn events(http: &reqwest::Client, url: &str, after: Option<&str>) -> (Vec<String>, Vec<String>) {
    let mut request = http.get(url);
    if let Some(after) = after {
        request = request.header("Last-Event-ID", after);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut stream = answer.bytes_stream();
    let mut text = String::new();
    while let Some(chunk) = tokio::time::timeout(PATIENCE, stream.next()).await.expect("the stream goes on") {
        text += std::str::from_utf8(&chunk.unwrap()).unwrap();
    }
    let field = |name: &str| {
        let prefix = format!("{name}:");
        text.lines().filter_map(|l| l.strip_prefix(&prefix)).map(|v| v.trim().to_owned()).collect::<Vec<_>>()
    };
    (field("id"), field("event"))
}

#[tokio::test(flavor = "multi_thread")]
async fn g4_the_metrics_of_the_sources_by_their_exact_names() {
    let mut fleet = Fleet::stocked().await;
    let url = gateway(&mut fleet).await;
    let run = fleet.start_article().await;
    fleet.wait_for_end(run).await;
    let metrics = format!("{url}/metrics");
    let text = wait_for("the metrics of the run", Duration::from_secs(20), || {
        let metrics = metrics.clone();
        async move {
            let text = reqwest::get(metrics).await.ok()?.text().await.ok()?;
            text.contains("workflows_executed_total{").then_some(text)
        }
    })
    .await;
    for name in [
        "coordination_efficiency_seconds",
        "resource_allocations_total",
        "active_coordinations",
        "agent_utilization_ratio",
        "agent_messages_total",
        "agent_message_latency_seconds",
        "agent_handoff_duration_seconds",
        "workflows_executed_total",
        "stages_executed_total",
        "messages_sent_total",
        "messages_received_total",
        "resource_acquisitions_total",
        "coordination_overhead_seconds_total",
        // Of the rules of placement (O12): how long a task waits for them, and how long they take.
        "baton_placement_seconds",
        "baton_turn_seconds",
        "baton_ask_seconds",
    ] {
        assert!(text.contains(&format!("# TYPE {name} ")), "{name} is missing in:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g1_a_killed_gateway_loses_nothing() {
    let mut fleet = Fleet::stocked().await;
    let url = gateway(&mut fleet).await;
    fleet.process("writing").pause().await;
    let http = reqwest::Client::new();
    let body = json!({ "workflow": "article", "input": { "topic": TOPIC, "sources": fleet.sources() } });
    let accepted: Value = http.post(format!("{url}/v1/runs")).json(&body).send().await.unwrap().json().await.unwrap();
    let run = accepted["run"].as_str().unwrap().to_owned();
    fleet.wait_for_assignment(run.parse().unwrap(), "writing").await;
    let watched = http.get(format!("{url}/v1/runs/{run}/events")).send().await.unwrap();
    fleet.kill("gateway").await;
    drop(watched);
    fleet.process("writing").resume();
    let url = gateway(&mut fleet).await;
    let (_, kinds) = events(&http, &format!("{url}/v1/runs/{run}/events"), None).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "stage_ended").count(), 4);
    let view: Value = http.get(format!("{url}/v1/runs/{run}")).send().await.unwrap().json().await.unwrap();
    assert_eq!(view["status"], "succeeded", "{view}");
}
