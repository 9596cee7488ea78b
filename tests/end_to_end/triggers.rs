//! Events that start runs.

use baton_protocol::request::RegisterWorkflow;
use baton_protocol::run::RunStatus;
use baton_sdk::{Output, Task};
use baton_testkit::wait_for;
use serde_json::json;

use crate::fleet::{Fleet, PATIENCE};
use crate::workflows::agent;

#[tokio::test(flavor = "multi_thread")]
async fn w21_data_available_triggers_an_analysis_whose_end_triggers_a_report() {
    let fleet = Fleet::services().await;
    for workflow in ["analysis", "report"] {
        let source = format!("name: {workflow}\nstages:\n- {{name: one, agent_type: any}}\n");
        let request = RegisterWorkflow { source: Some(source), definition: None };
        fleet.client.register_workflow(&request).await.unwrap();
    }
    let _stop = agent(&fleet, "any-1", "any", 4, |task: Task| async move {
        Output::json(&json!({ "had": task.input::<serde_json::Value>()? }))
    })
    .await;
    let set = ["triggers", "set", "analyse", "analysis", "--event", "data_available", "--when", "event.data.rows > 10"];
    let said = fleet.baton(&set).await;
    assert!(said.contains("trigger analyse starts analysis on data_available"), "{said}");
    let input = ["--input", "had=event.data.results.one", "--status", "succeeded"];
    let set = ["triggers", "set", "then-report", "report", "--run-ended", "analysis"];
    fleet.baton(&[&set[..], &input[..]].concat()).await;
    let set = ["triggers", "set", "broken", "report", "--event", "data_available", "--input", "n=event.data.none"];
    fleet.baton(&set).await;

    let said = fleet.baton(&["event", "data_available", "--data", "rows=3"]).await;
    assert!(said.contains("analyse: its condition gave false") && said.contains("broken: failed"), "{said}");
    let said = fleet.baton(&["event", "data_available", "--data", "rows=30", "--id", "e-1"]).await;
    assert!(said.contains("analyse: run ") && said.contains("broken: failed"), "{said}");
    assert!(fleet.baton(&["event", "data_available", "--id", "e-1"]).await.contains("was raised before"));

    let request = baton_protocol::request::ListRuns {
        workflow: Some("report".parse().unwrap()),
        ..baton_protocol::request::ListRuns::default()
    };
    wait_for("the report is done", PATIENCE, || async {
        let runs = fleet.client.list_runs(&request).await.map(|list| list.runs).unwrap_or_default();
        runs.iter().any(|run| run.status == RunStatus::Succeeded)
    })
    .await;
    let runs = fleet.client.list_runs(&request).await.unwrap().runs;
    assert_eq!(runs.len(), 1, "{runs:?}");
    let view = fleet.client.get_run(runs[0].run).await.unwrap();
    assert_eq!(view.input.read::<serde_json::Value>().unwrap(), json!({ "had": { "had": { "rows": 30 } } }));
    let shown = fleet.baton(&["triggers"]).await;
    assert!(shown.contains("when analysis has succeeded") && shown.contains("there is no key"), "{shown}");
    fleet.baton(&["triggers", "remove", "broken"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn w21_an_agent_raises_an_event_with_its_own_name() {
    let fleet = Fleet::services().await;
    let source = "name: analysis\nstages:\n- {name: one, agent_type: nobody}\n".to_owned();
    let request = RegisterWorkflow { source: Some(source), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
    fleet.baton(&["triggers", "set", "t", "analysis", "--event", "found", "--input", "by=event.source"]).await;
    // As any agent does that knows NATS and JSON.
    let body = serde_json::to_vec(&json!({ "event": "found", "id": "f-1", "source": "somebody else" })).unwrap();
    let answer = fleet.client.nats().request("baton.agent.ann.raise", body.into()).await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    let run = answer["reactions"][0]["outcome"]["started"].as_str().unwrap().parse().unwrap();
    let view = fleet.client.get_run(run).await.unwrap();
    assert_eq!(view.input.read::<serde_json::Value>().unwrap(), json!({ "by": "ann" }));
}
