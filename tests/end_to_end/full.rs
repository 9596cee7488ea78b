//! A log that is full: everybody is told so, in words, and work goes on where it was once there is room.

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use baton_client::ClientError;
use baton_protocol::Code;
use baton_protocol::request::StartRun;
use baton_protocol::run::RunStatus;
use baton_protocol::subject::{Shard, log_stream};
use baton_protocol::{Json, WorkflowName};
use baton_testkit::wait_for;
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE};

fn start() -> StartRun {
    StartRun::new(
        WorkflowName::new("article").unwrap(),
        Json::of(&json!({ "topic": "x".repeat(2000), "sources": "." })).unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_log_is_told_to_everybody_and_heals() {
    let mut fleet = Fleet::bare().await;
    fleet.set("BATON_LOG__MAX_BYTES", "60000");
    fleet.start_services().await;
    fleet.write_sources();
    for role in crate::fleet::STOCK {
        fleet.start_stock(role);
    }
    fleet.wait_for_agents(4).await;
    let url = crate::http::gateway(&mut fleet).await;
    // One run is in the middle of its work.
    fleet.process("research").pause().await;
    let run = fleet.start_article().await;
    fleet.wait_for_assignment(run, "research").await;
    let once = fleet.client.clone().with_deadline(Duration::ZERO);
    let refused = wait_for("the log is full", PATIENCE, || async {
        match once.start_run(start()).await {
            Err(ClientError::Rejected(rejection)) => Some(rejection),
            Ok(_) | Err(_) => None,
        }
    })
    .await;
    assert_eq!(refused.code, Code::Unavailable);
    assert!(refused.message.contains("the log is full"), "{refused}");
    // The agent's report has nowhere to go, and is repeated.
    fleet.process("research").resume();

    // The services meet the limit each when it wants to write, and may find room for little where there was none for much:
    // what they say of themselves is so for a while after somebody asked for much.
    let told = wait_for("doctor says it", PATIENCE, || async {
        let _ = once.start_run(start()).await;
        let (code, stdout, stderr) = fleet.try_baton(&["doctor"]).await;
        let told = stdout.contains("refuses every request, for the log is full");
        told.then_some((code, stdout)).ok_or(stderr)
    });
    let (code, stdout) = told.await;
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.contains("nats stream edit BATON_LOG_0"), "{stdout}");
    let (code, _, stderr) = fleet.try_baton(&["run", "article", "--input", &format!("x={}", "x".repeat(3000))]).await;
    assert_eq!(code, Some(4), "{stderr}");
    assert!(stderr.contains("the log is full") && stderr.contains("ask again in 1000 ms"), "{stderr}");
    let http = reqwest::Client::new();
    wait_for("the door says it", PATIENCE, || async {
        let _ = once.start_run(start()).await;
        let services: Value = http.get(format!("{url}/v1/services")).send().await.unwrap().json().await.unwrap();
        let full = |service: &Value| service["service"] == "workflow-manager" && service["full"].is_string();
        if services["instances"].as_array().unwrap().iter().any(full) { Ok(()) } else { Err(services.to_string()) }
    })
    .await;
    let since = Instant::now();
    let answer = http.post(format!("{url}/v1/runs")).json(&start()).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(since.elapsed() < Duration::from_secs(2), "the gateway waited: {:?}", since.elapsed());
    assert!(answer.headers().contains_key("retry-after"));
    assert!(answer.text().await.unwrap().contains("the log is full"));

    let js = jetstream::new(fleet.nats.connect().await);
    let log = js.get_stream(log_stream(Shard::default())).await.unwrap();
    let config = stream::Config { max_bytes: -1, ..log.cached_info().config.clone() };
    js.update_stream(&config).await.unwrap();
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    let (code, stdout, stderr) = fleet.try_baton(&["doctor"]).await;
    assert_eq!(code, Some(0), "{stdout}\n{stderr}");
}
