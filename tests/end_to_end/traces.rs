//! One trace a run, from the call to every service and agent, whole also when a service dies on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use baton_protocol::Service;
use baton_protocol::run::RunStatus;
use baton_testkit::Span;
use baton_testkit::{OtlpReceiver, wait_for};
use serde_json::{Value, json};

use crate::fleet::{Fleet, STOCK, TOPIC};
use crate::http::gateway;

async fn traced() -> (Fleet, OtlpReceiver, String) {
    let receiver = OtlpReceiver::start().await;
    let mut fleet = Fleet::bare().await;
    fleet.set("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.endpoint());
    fleet.start_services().await;
    fleet.write_sources();
    for role in STOCK {
        fleet.start_stock(role);
    }
    fleet.wait_for_agents(STOCK.len()).await;
    let url = gateway(&mut fleet).await;
    (fleet, receiver, url)
}

/// The spans of a trace, once the tree is whole: one root, every parent there, and every service and agent in it.
async fn whole_tree(receiver: &OtlpReceiver, trace: &str) -> Vec<Span> {
    wait_for("a whole tree of spans", Duration::from_secs(30), || async {
        let spans: Vec<Span> = receiver.spans().into_iter().filter(|s| s.trace_id == trace).collect();
        let ids: BTreeSet<&str> = spans.iter().map(|s| s.span_id.as_str()).collect();
        let roots: Vec<&Span> = spans.iter().filter(|s| s.parent_id.is_empty()).collect();
        let orphans: Vec<String> = spans
            .iter()
            .filter(|s| !s.parent_id.is_empty() && !ids.contains(s.parent_id.as_str()))
            .map(|s| format!("{} ({})", s.name, s.service_name))
            .collect();
        let services: BTreeSet<&str> = spans.iter().map(|s| s.service_name.as_str()).collect();
        let all = ["baton-gateway", "baton-workflow-manager", "baton-resource-manager", "baton-optimizer"];
        let there = all.iter().all(|name| services.contains(name));
        let stages = spans.iter().filter(|s| s.name.starts_with("stage ")).count();
        let agents = spans.iter().filter(|s| s.name.starts_with("invoke_agent ")).count();
        if roots.len() == 1 && orphans.is_empty() && there && stages >= 4 && agents >= 4 {
            Ok(spans)
        } else {
            let roots: Vec<&str> = roots.iter().map(|s| s.name.as_str()).collect();
            Err(format!(
                "roots {roots:?}, orphans {orphans:?}, services {services:?}, {stages} stages, {agents} agents, {} spans",
                spans.len()
            ))
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_a_run_is_one_whole_trace_from_the_http_call_to_every_agent() {
    let (fleet, receiver, url) = traced().await;
    let body = json!({ "workflow": "article", "input": { "topic": TOPIC, "sources": fleet.sources() } });
    let answer = reqwest::Client::new().post(format!("{url}/v1/runs")).json(&body).send().await.unwrap();
    let accepted: Value = answer.json().await.unwrap();
    let run = accepted["run"].as_str().unwrap().parse().unwrap();
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded);
    assert_eq!(accepted["trace_id"], view.trace_id.as_str());
    let spans = whole_tree(&receiver, &view.trace_id).await;
    let by_id: BTreeMap<&str, &Span> = spans.iter().map(|s| (s.span_id.as_str(), s)).collect();
    // From an agent's work upwards: its stage, its run, the call.
    let agent = spans.iter().find(|s| s.name.starts_with("invoke_agent ")).unwrap();
    let mut path = vec![agent.name.clone()];
    let mut at = agent;
    while let Some(parent) = by_id.get(at.parent_id.as_str()) {
        path.push(parent.name.clone());
        at = parent;
    }
    assert!(path.iter().any(|name| name.starts_with("stage ")), "{path:?}");
    assert!(path.iter().any(|name| name == "invoke_workflow article"), "{path:?}");
    assert_eq!(path.last().map(String::as_str), Some("POST /v1/runs"));
    for span in &spans {
        assert!(span.start_ns <= span.end_ns, "{span:?}");
        assert!(!span.name.contains(&run.to_string()), "a span's name has an id in it: {}", span.name);
    }
    let stage = spans.iter().find(|s| s.name == "stage research").unwrap();
    assert_eq!(stage.attributes["baton.run.id"], run.to_string());
    assert_eq!(stage.attributes["baton.stage.name"], "research");
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_a_trace_is_whole_also_when_a_service_dies_in_mid_run_and_joins_its_caller_s() {
    let (mut fleet, receiver, url) = traced().await;
    fleet.process("writing").pause().await;
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let body = json!({ "workflow": "article", "input": { "topic": TOPIC, "sources": fleet.sources() } });
    let answer = reqwest::Client::new()
        .post(format!("{url}/v1/runs"))
        .header("traceparent", format!("00-{trace}-{parent}-01"))
        .json(&body)
        .send()
        .await
        .unwrap();
    let accepted: Value = answer.json().await.unwrap();
    assert_eq!(accepted["trace_id"], trace);
    let run = accepted["run"].as_str().unwrap().parse().unwrap();
    fleet.wait_for_assignment(run, "writing").await;
    for service in Service::WRITERS {
        fleet.kill(service.as_str()).await;
        fleet.start_service(service.as_str(), service);
    }
    fleet.process("writing").resume();
    assert_eq!(fleet.wait_for_end(run).await.status, RunStatus::Succeeded);
    // The caller's own span is the caller's to export; everything of ours hangs below it.
    wait_for("a whole tree below the caller", Duration::from_secs(30), || async {
        let spans: Vec<Span> = receiver.spans().into_iter().filter(|s| s.trace_id == trace).collect();
        let ids: BTreeSet<&str> = spans.iter().map(|s| s.span_id.as_str()).collect();
        let lost: Vec<&str> = spans
            .iter()
            .filter(|s| s.parent_id != parent && !ids.contains(s.parent_id.as_str()))
            .map(|s| s.name.as_str())
            .collect();
        let whole = lost.is_empty() && spans.iter().any(|s| s.name == "invoke_workflow article");
        if whole { Ok(()) } else { Err(format!("{lost:?} of {}", spans.len())) }
    })
    .await;
}
