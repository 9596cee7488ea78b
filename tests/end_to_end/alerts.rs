//! Alerts: raised, seen, acknowledged, over.

use baton_protocol::request::RegisterWorkflow;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE};
use crate::http::gateway;

#[tokio::test(flavor = "multi_thread")]
async fn r11_an_agent_that_is_lost_is_told_of_seen_and_over_when_it_is_back() {
    let mut fleet = Fleet::bare().await;
    fleet.set("BATON_ALERTS__RUN_FAILED", "true");
    fleet.start_services().await;
    let url = gateway(&mut fleet).await;
    let nats = fleet.nats.connect().await;
    let mut lost = nats.subscribe("baton.event.alert.*.agent_lost.>").await.unwrap();
    let mut failed = nats.subscribe("baton.event.alert.warning.run_failed.alert_raised").await.unwrap();
    nats.flush().await.unwrap();
    fleet.write_sources();
    fleet.start_stock("research");
    fleet.wait_for_agents(1).await;
    fleet.kill("research").await;
    let mut next = async || {
        let event = tokio::time::timeout(PATIENCE, lost.next()).await.unwrap().unwrap();
        let kind = event.subject.rsplit('.').next().unwrap().to_owned();
        (kind, serde_json::from_slice::<Value>(&event.payload).unwrap())
    };
    let (kind, raised) = next().await;
    assert_eq!(kind, "alert_raised");
    // Its name begins with that of the machine.
    let about = raised["record"]["alert_raised"]["about"].as_str().unwrap().to_owned();
    assert!(about.ends_with("research-1"), "{raised}");
    let id = raised["number"].to_string();

    // By the command line and over HTTP; acknowledging twice is acknowledging once.
    let shown = fleet.baton(&["alerts"]).await;
    assert!(shown.contains(&about) && shown.contains("warning") && shown.contains("new"), "{shown}");
    fleet.baton(&["alerts", "--ack", &id, "--by", "ann"]).await;
    assert_eq!(next().await.0, "alert_acknowledged");
    let http = reqwest::Client::new();
    let acknowledge = async |id: &str| http.post(format!("{url}/v1/alerts/{id}/acknowledge")).send().await.unwrap();
    assert_eq!(acknowledge(&id).await.status(), 200);
    let unknown = acknowledge("999999").await;
    assert_eq!(unknown.status(), 404);
    assert_eq!(unknown.json::<Value>().await.unwrap()["code"], "unknown_alert");
    let list = async |query: &str| {
        let answer = reqwest::get(format!("{url}/v1/alerts{query}")).await.unwrap();
        answer.json::<Value>().await.unwrap()["alerts"].as_array().unwrap().clone()
    };
    let listed = list("?severity=warning&kind=agent_lost").await;
    assert_eq!((listed.len(), &listed[0]["acknowledged_by"]), (1, &json!("ann")), "{listed:?}");
    assert!(list("?severity=critical").await.is_empty());
    let (code, _, error) = fleet.try_baton(&["alerts", "--severity", "urgent"]).await;
    assert_eq!(code, Some(2));
    assert!(error.contains("informational, warning, critical"), "{error}");

    // It is back: over, and as it was seen it is only history.
    fleet.start_stock("research");
    assert_eq!(next().await.0, "alert_cleared");
    assert!(list("").await.is_empty());
    assert_eq!(list("?all=true").await.len(), 1);

    // A run that fails, of a workflow that fails again and again: one alert.
    let source = "name: vain\nstages:\n  - name: a\n    agent_type: nothing\n    start_timeout_ms: 200\n    retry: {max_attempts: 1}\n";
    let request = RegisterWorkflow { source: Some(source.to_owned()), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
    for _ in 0..2 {
        let run = fleet.start_run("vain", &json!({})).await;
        fleet.wait_for_end(run).await;
    }
    let event = tokio::time::timeout(PATIENCE, failed.next()).await.unwrap().unwrap();
    let event: Value = serde_json::from_slice(&event.payload).unwrap();
    assert_eq!(event["record"]["alert_raised"]["about"], "vain");
    let shown = fleet.baton(&["alerts", "--kind", "run_failed"]).await;
    assert_eq!(shown.matches("run_failed").count(), 1, "{shown}");
}
