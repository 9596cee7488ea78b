//! A task that goes from one agent to another.

use std::sync::Arc;
use std::time::Duration;

use baton_client::ConnectSettings;
use baton_protocol::AgentId;
use baton_protocol::request::{AgentStatus, RegisterWorkflow};
use baton_protocol::run::{RunStatus, RunView};
use baton_sdk::{Agent, Handoff, HandoffError, Output, Task, TaskError};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::fleet::Fleet;
use crate::http::gateway;

const SOURCE: &str = "name: count\nstages:\n  - name: count\n    agent_type: count\n    resources: {memory_mb: 512}\n";

async fn register(fleet: &Fleet, source: &str) {
    let request = RegisterWorkflow { source: Some(source.to_owned()), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
}

fn builder(fleet: &Fleet, id: &str) -> baton_sdk::Builder {
    Agent::builder(id, "count").resource("memory_mb", 1024).settings(ConnectSettings::server(fleet.nats.client_url()))
}

/// Runs an agent of this process.
async fn run<F>(
    fleet: &Fleet,
    builder: baton_sdk::Builder,
    handler: impl Fn(Task) -> F + Send + Sync + 'static,
) -> DropGuard
where
    F: Future<Output = baton_sdk::TaskResult> + Send + 'static,
{
    let shutdown = CancellationToken::new();
    let agent = builder.connect().await.unwrap();
    let id = agent.id().to_string();
    tokio::spawn(agent.run_until(handler, shutdown.clone().cancelled_owned()));
    fleet.wait_for_agent(&id, AgentStatus::Idle).await;
    shutdown.drop_guard()
}

/// Counts to three, and begins where another one was.
async fn finish(task: Task, by: &str) -> baton_sdk::TaskResult {
    let done: Vec<u32> = task.resumed()?.unwrap_or_default();
    let from = task.handover.as_ref().map(|handover| handover.from.to_string());
    let so_far: Value = match &task.handover {
        Some(handover) => handover.results.read().map_err(|error| TaskError::failed(error.to_string()))?,
        None => Value::Null,
    };
    Output::json(&json!({ "by": by, "from": from, "begun": done, "so_far": so_far }))
}

fn result(view: &RunView) -> Value {
    view.stages[0].result.as_ref().unwrap().read().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_a_task_is_handed_over_and_goes_on_where_it_was() {
    let fleet = Fleet::services().await;
    register(&fleet, SOURCE).await;
    let go = Arc::new(Notify::new());
    let giver = {
        let go = Arc::clone(&go);
        move |task: Task| {
            let go = Arc::clone(&go);
            async move {
                go.notified().await;
                let handoff = Handoff {
                    state: json!([1, 2]),
                    results: json!({ "records": 1000 }),
                    reason: "load_balancing".to_owned(),
                    ..Handoff::default()
                };
                let bob = AgentId::new("bob").unwrap();
                let told = task.hand_over(&bob, handoff).await.map_err(|error| TaskError::failed(error.to_string()))?;
                assert_eq!(told.read::<Value>().unwrap(), json!({ "estimated_completion": 120 }));
                // What is returned now is of no account.
                Output::json(&json!({ "by": "ann" }))
            }
        }
    };
    let _ann = run(&fleet, builder(&fleet, "ann"), giver).await;
    let id = fleet.start_run("count", &json!({})).await;
    fleet.wait_for_agent("ann", AgentStatus::Busy).await;
    let bob = builder(&fleet, "bob").takes(|_| Ok(serde_json::from_str(r#"{"estimated_completion":120}"#).unwrap()));
    let _bob = run(&fleet, bob, |task| finish(task, "bob")).await;
    go.notify_one();
    let view = fleet.wait_for_end(id).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    assert_eq!(result(&view), json!({ "by": "bob", "from": "ann", "begun": [1, 2], "so_far": { "records": 1000 } }));
    assert_eq!(view.stages[0].attempts.len(), 1, "it is the same attempt");
    let log = fleet.baton(&["log", &id.to_string()]).await;
    for shown in ["handoff_offered", "by ann to bob", "load_balancing", "handed_over", "from ann to bob"] {
        assert!(log.contains(shown), "{shown}: {log}");
    }
    fleet.wait_for_agent("ann", AgentStatus::Idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_an_offer_that_is_not_taken_leaves_the_task_where_it_is() {
    let fleet = Fleet::services().await;
    register(&fleet, SOURCE).await;
    let go = Arc::new(Notify::new());
    let giver = {
        let go = Arc::clone(&go);
        move |task: Task| {
            let go = Arc::clone(&go);
            async move {
                go.notified().await;
                let mut said = Vec::new();
                for to in ["bob", "deaf", "nobody"] {
                    let handoff = Handoff { timeout: Some(Duration::from_millis(500)), ..Handoff::default() };
                    said.push(match task.hand_over(&AgentId::new(to).unwrap(), handoff).await {
                        Err(HandoffError::NotTaken(why)) => format!("not taken: {why}"),
                        Err(HandoffError::Refused(rejection)) => rejection.code.to_string(),
                        other => format!("{other:?}"),
                    });
                }
                Output::json(&json!({ "by": "ann", "said": said }))
            }
        }
    };
    let _ann = run(&fleet, builder(&fleet, "ann"), giver).await;
    let id = fleet.start_run("count", &json!({})).await;
    fleet.wait_for_agent("ann", AgentStatus::Busy).await;
    let bob = builder(&fleet, "bob").takes(|offer| Err(format!("{} is not for me", offer.stage)));
    let _bob = run(&fleet, bob, |task| finish(task, "bob")).await;
    // One that registers and does not listen.
    let registration = json!({ "session": "s", "agent_type": "count", "resources": { "memory_mb": 1024 } });
    let nats = fleet.nats.connect().await;
    let answer = nats.request("baton.agent.deaf.register", registration.to_string().into()).await.unwrap();
    assert!(answer.headers.is_none(), "{answer:?}");
    go.notify_one();
    let view = fleet.wait_for_end(id).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    let said = result(&view)["said"].clone();
    assert_eq!(said[0], "not taken: count is not for me");
    assert!(said[1].as_str().unwrap().contains("agent deaf has not answered within 500 ms"), "{said}");
    assert_eq!(said[2], "unknown_agent");
    let log = fleet.baton(&["log", &id.to_string()]).await;
    for shown in ["rejected by bob, ann goes on", "not answered by deaf, ann goes on"] {
        assert!(log.contains(shown), "{shown}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_an_operator_hands_tasks_over_by_command_and_over_http() {
    let mut fleet = Fleet::services().await;
    register(&fleet, SOURCE).await;
    // Ann never ends by herself.
    let endless = |task: Task| async move {
        task.cancelled().cancelled().await;
        Err(TaskError::failed("told to stop"))
    };
    let _ann = run(&fleet, builder(&fleet, "ann"), endless).await;
    let id = fleet.start_run("count", &json!({})).await;
    fleet.wait_for_agent("ann", AgentStatus::Busy).await;
    let bob = builder(&fleet, "bob").takes(|offer| Err(format!("{} is not for me", offer.stage)));
    let _bob = run(&fleet, bob, |task| finish(task, "bob")).await;
    let (code, _, stderr) = fleet.try_baton(&["handoff", "last", "count", "--to", "nobody"]).await;
    assert!(code == Some(5) && stderr.contains("nobody"), "{stderr}");
    let (code, stdout, stderr) = fleet.try_baton(&["handoff", "last", "count", "--to", "bob"]).await;
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("stays with ann: count is not for me"), "{stdout}");
    let _cat = run(&fleet, builder(&fleet, "cat"), |task| finish(task, "cat")).await;
    let moved = fleet.baton(&["handoff", "last", "count", "--to", "cat", "--reason", "maintenance of ann"]).await;
    assert!(moved.contains(&format!("count/1 of run {id} went from ann to cat, lease ")), "{moved}");
    let view = fleet.wait_for_end(id).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    assert_eq!(result(&view), json!({ "by": "cat", "from": "ann", "begun": [], "so_far": null }));
    let log = fleet.baton(&["log", "last"]).await;
    assert!(log.contains("by ann to cat") && log.contains("maintenance of ann"), "{log}");
    fleet.wait_for_agent("ann", AgentStatus::Idle).await;
    // It is over: there is nothing to hand over.
    let (code, _, stderr) = fleet.try_baton(&["handoff", "last", "count"]).await;
    assert!(code == Some(5) && stderr.contains("no run"), "{stderr}");

    // Over HTTP; where nobody is named, whoever has room is asked.
    register(&fleet, "name: slow\nstages:\n  - name: slow\n    agent_type: slow\n").await;
    let slow = |id: &str| Agent::builder(id, "slow").settings(ConnectSettings::server(fleet.nats.client_url()));
    let _dan = run(&fleet, slow("dan"), endless).await;
    let second = fleet.start_run("slow", &json!({})).await;
    fleet.wait_for_agent("dan", AgentStatus::Busy).await;
    let _eve = run(&fleet, slow("eve"), |task| finish(task, "eve")).await;
    let url = gateway(&mut fleet).await;
    let ask = |body: Value| reqwest::Client::new().post(format!("{url}/v1/runs/{second}/handoff")).json(&body).send();
    let wrong = ask(json!({ "stage": "slow", "from": "eve" })).await.unwrap();
    assert_eq!(wrong.status(), 409);
    assert_eq!(wrong.json::<Value>().await.unwrap()["code"], "stale_lease");
    let asked = ask(json!({ "stage": "slow", "from": "dan" })).await.unwrap();
    assert_eq!(asked.status(), 202);
    let asked: Value = asked.json().await.unwrap();
    let told = ["task", "from", "to"].map(|key| asked[key].clone());
    assert_eq!(told, [json!(format!("{second}/slow/1")), json!("dan"), json!("eve")]);
    let view = fleet.wait_for_end(second).await;
    assert_eq!(result(&view)["by"], "eve", "{view:?}");
}

/// The second program on the page for agent authors.
fn documented() -> String {
    let page = include_str!("../../docs/agents.md");
    let code = page.split("```python\n").nth(2).expect("docs/agents.md shows a handoff in Python");
    code.split_once("```").unwrap().0.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_agents_in_plain_nats_py_hand_over_to_each_other() {
    let fleet = Fleet::services().await;
    register(&fleet, "name: longest\nstages:\n  - name: longest\n    agent_type: longest\n").await;
    let mut agents = Vec::new();
    for (id, peer) in [("left", "right"), ("right", "left")] {
        let names = format!("import os\nos.environ.update(AGENT=\"{id}\", PEER=\"{peer}\")\n");
        let start = fleet.python(&format!("{id}.py"), &(names + &documented())).await;
        agents.push(start());
        fleet.wait_for_agent(id, AgentStatus::Idle).await;
    }
    let id = fleet.start_run("longest", &json!({ "text": "a bee sees tulips in spring" })).await;
    let view = fleet.wait_for_end(id).await;
    let logs: Vec<_> = agents.iter().map(|agent| agent.log_tail()).collect();
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?} {logs:?}");
    assert_eq!(result(&view)["longest"], "tulips", "{view:?}");
    let log = fleet.baton(&["log", &id.to_string()]).await;
    let by = result(&view)["by"].as_str().unwrap().to_owned();
    assert!(log.contains("handed_over") && log.contains(&format!("to {by}, handoff")), "{log}");
}
