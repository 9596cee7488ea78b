//! Stages that people decide on, and stages that wait for a signal to their run.

use baton_protocol::Service;
use baton_protocol::request::RegisterWorkflow;
use baton_protocol::run::{RunStatus, StageStatus};
use baton_sdk::{Output, Task};
use baton_testkit::wait_for;
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE};
use crate::http::gateway;
use crate::workflows::agent;

/// Somebody signs, it is paid, and nobody says that there is hurry.
const OFFER: &str = "
name: offer
stages:
- {name: sign, approval: {ask: Send it?}}
- {name: paid, depends_on: [sign], wait_for: {signal: paid}}
- {name: hurry, depends_on: [sign], approval: {on_timeout: reject, on_reject: continue}, timeout_ms: 200}
- {name: send, agent_type: step, depends_on: [paid, hurry], when: '!results.hurry.approved'}
";

#[tokio::test(flavor = "multi_thread")]
async fn w18_people_decide_and_signal_and_what_nobody_decides_goes_another_way() {
    let mut fleet = Fleet::services().await;
    let url = gateway(&mut fleet).await;
    let http = reqwest::Client::new();
    let request = RegisterWorkflow { source: Some(OFFER.to_owned()), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
    let _stop = agent(&fleet, "step-1", "step", 1, |task: Task| async move {
        Output::json(&json!({ "paid": task.result_of::<Value>("paid")?, "hurry": task.result_of::<Value>("hurry")? }))
    })
    .await;
    let run = fleet.start_run("offer", &json!({})).await;
    let why = fleet.baton(&["why", "last", "send"]).await;
    assert!(why.contains("stage sign, which is running and waits for the approval of somebody, for "), "{why}");
    assert!(why.contains("yet: Send it?"), "{why}");

    // Whoever comes after it knows that it is waited for.
    fleet.kill("workflow-manager").await;
    fleet.start_service("workflow-manager", Service::WorkflowManager);
    let said = json!({ "stage": "sign", "by": "ann", "reason": "reads well" });
    let answer = http.post(format!("{url}/v1/runs/{run}/approve")).json(&said).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let again = http.post(format!("{url}/v1/runs/{run}/approve")).json(&said).send().await.unwrap();
    assert_eq!(again.json::<Value>().await.unwrap()["existing"], true);
    let other = http.post(format!("{url}/v1/runs/{run}/reject")).json(&said).send().await.unwrap();
    assert_eq!(other.status(), 409);
    let problem: Value = other.json().await.unwrap();
    assert_eq!(problem["code"], "not_waiting");
    assert!(problem["detail"].as_str().unwrap().contains("ann approved it: reads well"), "{problem}");
    let (code, _, error) = fleet.try_baton(&["reject", "last", "sign"]).await;
    assert!(code != Some(0) && error.contains("ann approved it"), "{error}");

    let why = fleet.baton(&["why", "last", "paid"]).await;
    assert!(why.contains("the signal paid, for "), "{why}");
    wait_for("nobody said that there is hurry", PATIENCE, || async {
        fleet.client.get_run(run).await.unwrap().stages[2].status == StageStatus::Succeeded
    })
    .await;
    fleet.baton(&["signal", "last", "paid", "-d", "sum=12", "--by", "shop"]).await;
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    let result = |stage: usize| view.stages[stage].result.as_ref().unwrap().read::<Value>().unwrap();
    assert_eq!(result(0), json!({ "approved": true, "by": "ann", "reason": "reads well", "timed_out": false }));
    assert_eq!(result(3), json!({ "paid": { "sum": 12 }, "hurry": { "approved": false, "timed_out": true } }));
    let log = fleet.baton(&["log", "last"]).await;
    assert!(log.contains("paid by shop: ") && log.contains("\"ann\""), "who gave each word is written down: {log}");

    let run = fleet.start_run("offer", &json!({})).await;
    let rejected = fleet.baton(&["reject", "last", "sign", "--by", "bob", "--reason", "too dear"]).await;
    assert_eq!(rejected, format!("stage sign of run {run} was rejected\n"));
    let view = fleet.wait_for_end(run).await;
    let reason = "stage sign failed: bob rejected it: too dear";
    assert_eq!((view.status, view.reason.as_deref()), (RunStatus::Failed, Some(reason)));
}
