//! Budgets against a real broker.

use baton_protocol::request::{ListPools, PoolView, RegisterWorkflow, StartRun};
use baton_protocol::run::RunStatus;
use baton_protocol::{Json, ResourceName, RunId};
use baton_sdk::{Output, Task};
use baton_testkit::wait_for;
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE};
use crate::http::gateway;
use crate::workflows::agent;

async fn account(fleet: &Fleet, name: &str) -> Option<PoolView> {
    let request = ListPools { name: Some(ResourceName::new(name).unwrap()), after: None };
    Some(fleet.client.list_pools(&request).await.ok()?.pools.remove(0))
}

async fn start(fleet: &Fleet, workflow: &str, budget: Value) -> RunId {
    let request = json!({ "workflow": workflow, "input": {}, "budget": budget });
    let request: StartRun = serde_json::from_value(request).unwrap();
    fleet.client.start_run(request).await.unwrap().run
}

/// A stage costs 0.4, and 0.5 is set aside for it: a limit of 1 is enough for two of three. One run waits for ever, one fails, one asks
/// and is given more, one asks and is not.
#[tokio::test(flavor = "multi_thread")]
async fn r8_runs_are_held_to_their_budgets_and_teams_to_theirs() {
    let fleet = Fleet::services().await;
    fleet.baton(&["budgets", "set", "team", "100", "--currency", "EUR"]).await;
    let stages = "- {name: a, agent_type: pay, budget: 0.5}\n\
                  - {name: b, agent_type: pay, budget: 0.5, depends_on: [a]}\n\
                  - {name: c, agent_type: pay, budget: 0.5, depends_on: [b]}\n";
    let source = format!("name: three\nbudget: {{limit: 1, of: team, at_limit: fail}}\nstages:\n{stages}");
    let request = RegisterWorkflow { source: Some(source), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
    let _stop = agent(&fleet, "ann", "pay", 4, |task: Task| async move {
        let said: Value = serde_json::from_str(Json::of(&task.resources)?.as_str())?;
        Ok(Output::json(&said)?.cost("0.4").usage(10, 5).model("small"))
    })
    .await;

    let fails = fleet.start_run("three", &json!({})).await;
    let view = fleet.wait_for_end(fails).await;
    assert_eq!(view.status, RunStatus::Failed, "{view:?}");
    assert!(
        view.reason.as_ref().unwrap().contains("stage c failed after 1 attempt: the budget is used up"),
        "{view:?}"
    );
    assert_eq!(view.cost.to_string(), "0.8");
    // Its agent was told what there is for it.
    let said: Value = view.stages[0].result.as_ref().unwrap().read().unwrap();
    assert_eq!(said, json!({ format!("run:{fails}"): "0.5" }));

    let asks = start(&fleet, "three", json!({ "limit": 1, "of": "team", "at_limit": "ask" })).await;
    let name = format!("run:{asks}");
    let asked = || async { account(&fleet, &name).await.is_some_and(|view| view.asked.is_some()) };
    wait_for("somebody is asked", PATIENCE, asked).await;
    let shown = fleet.baton(&["budgets"]).await;
    assert!(shown.contains(&format!("0.5 for {asks}/c/1")), "{shown}");
    fleet.baton(&["budgets", "approve", &name, "0.3"]).await;
    let view = fleet.wait_for_end(asks).await;
    assert_eq!((view.status, view.cost.to_string().as_str()), (RunStatus::Succeeded, "1.2"), "{view:?}");

    let denied = start(&fleet, "three", json!({ "limit": 1, "of": "team", "at_limit": "ask" })).await;
    let name = format!("run:{denied}");
    let asked = || async { account(&fleet, &name).await.is_some_and(|view| view.asked.is_some()) };
    wait_for("somebody is asked", PATIENCE, asked).await;
    fleet.baton(&["budgets", "deny", &name, "--reason", "enough"]).await;
    let view = fleet.wait_for_end(denied).await;
    assert!(view.reason.as_ref().unwrap().ends_with("somebody said no: enough"), "{view:?}");

    // One that waits goes on as soon as there is more.
    let run = fleet.baton(&["run", "three", "--budget", "0.9", "--budget-of", "team"]).await;
    let waits: RunId = run.trim().parse().unwrap();
    let name = format!("run:{waits}");
    let short = || async { account(&fleet, &name).await.is_some_and(|view| view.spent.to_string() == "0.8") };
    wait_for("two stages are paid", PATIENCE, short).await;
    let budget = json!({ "kind": "consumed", "size": 2, "measure": "cost", "currency": "EUR", "parent": "team" });
    fleet.client.set_pool(name.parse().unwrap(), serde_json::from_value(budget).unwrap()).await.unwrap();
    assert_eq!(fleet.wait_for_end(waits).await.status, RunStatus::Succeeded);
    let gone = || async { account(&fleet, &name).await.is_none() };
    wait_for("its account is gone", PATIENCE, gone).await;
    let team = account(&fleet, "team").await.unwrap();
    assert_eq!((team.spent.to_string().as_str(), team.in_use.to_string().as_str()), ("4", "0"));
    let shown = fleet.baton(&["budgets", "spending", "--by", "model"]).await;
    assert!(shown.lines().any(|line| line.split_whitespace().eq(["small", "10", "0", "4", "100", "50"])), "{shown}");
}

/// By the command line and over HTTP: shares, approvals, what was spent.
#[tokio::test(flavor = "multi_thread")]
async fn r9_r10_budgets_are_shared_out_from_the_command_line_and_over_http() {
    let mut fleet = Fleet::services().await;
    fleet.baton(&["budgets", "set", "pool", "150", "--currency", "EUR"]).await;
    for part in ["pool/a", "pool/b", "pool/c"] {
        fleet.baton(&["budgets", "set", part, "0", "--of", "pool", "--at-limit", "ask"]).await;
    }
    let shown =
        fleet.baton(&["budgets", "share", "pool", "--by", "priority", "pool/a=7", "pool/b=5", "pool/c=3"]).await;
    let row = |name: &str, left: &str| shown.lines().any(|line| line.starts_with(name) && line.contains(left));
    assert!(row("pool/a", "70") && row("pool/b", "50") && row("pool/c", "30"), "{shown}");
    // By itself from now on: there are agents, and nobody works.
    for part in ["agent:ann", "agent:bob"] {
        fleet.baton(&["budgets", "set", part, "0", "--of", "pool"]).await;
    }
    let balance = ["budgets", "share", "pool", "--by", "workload", "--minimum", "2", "--every-ms", "1000"];
    fleet.baton(&balance).await;
    fleet.baton(&["budgets", "set", "agent:bob", "0", "--of", "pool"]).await;
    let shared = || async { account(&fleet, "agent:bob").await.unwrap().pool.size.unwrap().to_string() == "2" };
    wait_for("it is shared out again", PATIENCE, shared).await;
    fleet.baton(&["budgets", "share", "pool", "--by", "workload", "--every-ms", "0"]).await;
    assert!(account(&fleet, "pool").await.unwrap().pool.balance.is_none());
    let (code, _, stderr) = fleet.try_baton(&["budgets", "set", "other", "1", "--currency", "USD"]).await;
    assert!(code != Some(0) && stderr.contains("EUR"), "{stderr}");

    let url = gateway(&mut fleet).await;
    let http = reqwest::Client::new();
    let post = |path: &str, body: Value| http.post(format!("{url}/v1/pools/{path}")).json(&body).send();
    let by =
        json!({ "workload": { "of": { "pool/a": { "recent": 10 }, "pool/b": { "pending": 10 } }, "minimum": 10 } });
    let shared: Value = post("pool/share", by).await.unwrap().json().await.unwrap();
    let sizes: Vec<_> = shared["pools"].as_array().unwrap().iter().map(|view| view["pool"]["size"].clone()).collect();
    assert_eq!(sizes, [150, 45, 105].map(Value::from));
    assert_eq!(post("pool%2Fc/approve", json!({ "amount": "0.5" })).await.unwrap().status(), 200);
    assert_eq!(account(&fleet, "pool/c").await.unwrap().pool.size.unwrap().to_string(), "30.5");
    assert_eq!(post("pool%2Fc/deny", json!({ "reason": "no" })).await.unwrap().status(), 400);
    let spent: Value = http.get(format!("{url}/v1/spending?by=agent")).send().await.unwrap().json().await.unwrap();
    assert_eq!(spent["total"]["attempts"], 0, "{spent}");
}
