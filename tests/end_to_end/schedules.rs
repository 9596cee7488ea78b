//! Workflows that are started by themselves.

use baton_protocol::request::{RegisterWorkflow, ScheduleView};
use baton_testkit::wait_for;
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn w19_a_schedule_starts_runs_also_after_a_restart_and_none_twice() {
    let mut fleet = Fleet::services().await;
    let source = "name: nothing\nstages:\n- {name: one, agent_type: nobody}\n";
    let request = RegisterWorkflow { source: Some(source.to_owned()), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
    let arguments = ["schedules", "set", "often", "nothing", "--every", "1s", "--overlap", "cancel", "--meta", "by=me"];
    let said = fleet.baton(&arguments).await;
    assert!(said.contains("schedule often starts nothing: every 1000 ms"), "{said}");
    let runs = |fleet: &Fleet| {
        let client = fleet.client.clone();
        async move {
            let request = baton_protocol::request::ListRuns {
                metadata: [("schedule".to_owned(), "often".to_owned())].into(),
                limit: Some(1000),
                ..baton_protocol::request::ListRuns::default()
            };
            client.list_runs(&request).await.map(|list| list.runs).unwrap_or_default()
        }
    };
    wait_for("two runs", PATIENCE, || async { runs(&fleet).await.len() >= 2 }).await;
    fleet.kill("workflow-manager").await;
    let before = {
        fleet.start_service("workflow-manager", baton_protocol::Service::WorkflowManager);
        wait_for("somebody leads", PATIENCE, || async { !runs(&fleet).await.is_empty() }).await;
        runs(&fleet).await.len()
    };
    wait_for("it goes on", PATIENCE, || async { runs(&fleet).await.len() > before }).await;

    let view: ScheduleView =
        serde_json::from_str(&fleet.baton(&["schedules", "pause", "often", "--json"]).await).unwrap();
    assert!(view.next.is_empty() && view.schedule.paused, "{view:?}");
    let all = runs(&fleet).await;
    let mut times: Vec<_> = all.iter().map(|run| run.metadata["scheduled_for"].clone()).collect();
    times.sort_unstable();
    let count = times.len();
    times.dedup();
    assert_eq!(times.len(), count, "no time comes to two runs: {all:?}");
    // Of those that it started, all but the last one gave way.
    assert_eq!(all.iter().filter(|run| !run.status.is_end()).count(), 1, "{all:?}");
    let shown = fleet.baton(&["schedules"]).await;
    assert!(shown.contains("often") && shown.contains("paused") && shown.contains("was started"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn w19_schedules_over_http() {
    let mut fleet = Fleet::services().await;
    let door = crate::http::gateway(&mut fleet).await;
    let url = |path: &str| format!("{door}/v1/schedules{path}");
    let client = reqwest::Client::new();
    let body = json!({ "workflow": "article", "cron": "30 9 * * mon-fri", "time_zone": "Europe/Berlin",
        "input": { "topic": "leases" } });
    let answer = client.put(url("/digest")).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let view: Value = answer.json().await.unwrap();
    assert_eq!(view["next"].as_array().unwrap().len(), 5, "{view}");
    let wrong = json!({ "workflow": "article", "cron": "30 25 * * *" });
    let answer = client.put(url("/wrong")).json(&wrong).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    let problem: Value = answer.json().await.unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("its fields are minute, hour"), "{problem}");
    let unknown = json!({ "workflow": "article", "crno": "30 5 * * *" });
    assert_eq!(client.put(url("/wrong")).json(&unknown).send().await.unwrap().status(), 400);
    let paused: Value = client.post(url("/digest/pause")).send().await.unwrap().json().await.unwrap();
    assert_eq!(paused["schedule"]["paused"], true, "{paused}");
    let resumed: Value = client.post(url("/digest/resume")).send().await.unwrap().json().await.unwrap();
    assert_eq!(resumed["next"].as_array().unwrap().len(), 5, "{resumed}");
    let list: Value = client.get(url("?workflow=article")).send().await.unwrap().json().await.unwrap();
    assert_eq!(list["schedules"][0]["name"], "digest", "{list}");
    assert_eq!(client.delete(url("/digest")).send().await.unwrap().status(), 200);
    assert_eq!(client.get(url("/digest")).send().await.unwrap().status(), 404);
}
