//! Agents that are found by what they say of themselves, and agents that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use baton_client::ConnectSettings;
use baton_protocol::breaker::BreakerState;
use baton_protocol::request::{AgentStatus, AgentsFound, FindAgents, ListAgents, RegisterWorkflow};
use baton_protocol::run::RunStatus;
use baton_protocol::{AgentId, Capability, Resources};
use baton_sdk::{Agent, Output, Task, TaskError};
use baton_testkit::wait_for;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::fleet::{Fleet, PATIENCE};
use crate::http::gateway;

/// Runs an agent of this process that fails while `well` is not set.
async fn agent(fleet: &Fleet, id: &str, metadata: Value, well: Arc<AtomicBool>) -> DropGuard {
    let shutdown = CancellationToken::new();
    let settings = ConnectSettings::server(fleet.nats.client_url());
    let agent = Agent::builder(id, "analysis").capability("analysis", metadata).slots(2).settings(settings);
    let agent = agent.connect().await.unwrap();
    let handler = move |_: Task| {
        let well = well.load(Ordering::SeqCst);
        async move {
            match well {
                true => Output::json(&json!({})),
                false => Err(TaskError::failed("it does not work today")),
            }
        }
    };
    tokio::spawn(agent.run_until(handler, shutdown.clone().cancelled_owned()));
    fleet.wait_for_agent(id, AgentStatus::Idle).await;
    shutdown.drop_guard()
}

async fn register(fleet: &Fleet, source: &str) {
    let request = RegisterWorkflow { source: Some(source.to_owned()), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
}

fn well() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(true))
}

#[tokio::test(flavor = "multi_thread")]
async fn r2_a_stage_goes_to_an_agent_that_is_what_it_requires_and_agents_are_found_by_it() {
    let mut fleet = Fleet::services().await;
    let url = gateway(&mut fleet).await;
    let small = json!({ "algorithms": ["regression"], "context_tokens": 8000, "version": "1.9.0" });
    let large = json!({ "algorithms": ["regression", "classification"], "context_tokens": 64000, "version": "1.4.2" });
    let _small = agent(&fleet, "small", small, well()).await;
    let _large = agent(&fleet, "large", large, well()).await;
    register(
        &fleet,
        "name: analyse\nstages:\n  - name: analyse\n    agent_type: analysis\n    requires:\n      algorithms: [regression]\n      \
         context_tokens: \">= 32000\"\n      version: ^1.2\n",
    )
    .await;
    for _ in 0..4 {
        let run = fleet.start_run("analyse", &json!({})).await;
        let view = fleet.wait_for_end(run).await;
        assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
        let agent = view.stages[0].attempts[0].agent.as_ref().map(AgentId::as_str);
        assert_eq!(agent, Some("large"));
    }

    // By the command line, over HTTP, over NATS.
    let both = fleet.baton(&["agents", "--capability", "analysis", "--require", "algorithms=regression"]).await;
    assert!(both.contains("small") && both.contains("large"), "{both}");
    let one =
        fleet.baton(&["agents", "--capability", "analysis", "--require", "context_tokens>=32000", "--best"]).await;
    assert!(!one.contains("small") && one.contains("large"), "{one}");
    let (code, _, error) = fleet.try_baton(&["agents", "--capability", "analysis", "--require", "size>=much"]).await;
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("--require") && error.contains("much"), "{error}");
    let get = async |query: &str| reqwest::get(format!("{url}/v1/agents{query}")).await.unwrap();
    let ids = |list: &Value| {
        let agents = list["agents"].as_array().unwrap().iter();
        agents.map(|agent| agent["agent"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let list = get("?capability=analysis&require=version%5E1.5").await.json().await.unwrap();
    assert_eq!(ids(&list), ["small"]);
    let list =
        get("/best?capability=analysis&require=algorithms=%5B%22classification%22%5D").await.json().await.unwrap();
    assert_eq!(ids(&list), ["large"]);
    assert_eq!(get("?capability=analysis&require=size%3E%3Dmuch").await.status(), 400);
    let nats = fleet.nats.connect().await;
    let body = json!({ "capability": "analysis", "requires": { "context_tokens": "< 32000" } }).to_string();
    let answer = nats.request("baton.req.optimizer.agent.find", body.into()).await.unwrap();
    let found: AgentsFound = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!((found.found, found.agents[0].agent.as_str(), found.agents[0].has_room), (1, "small", true));

    // What nobody is waits, and says what it waits for.
    register(
        &fleet,
        "name: huge\nstages:\n  - name: analyse\n    agent_type: analysis\n    start_timeout_ms: 300\n    retry: {max_attempts: 1}\n    \
         requires: {context_tokens: \">= 1000000\"}\n",
    )
    .await;
    let run = fleet.start_run("huge", &json!({})).await;
    let view = fleet.wait_for_end(run).await;
    let reason = view.reason.unwrap_or_default();
    assert!(
        reason.contains("2 agents can do analysis, and the stage requires of it context_tokens: >= 1000000"),
        "{reason}"
    );
    let wrong = "name: wrong\nstages:\n  - name: a\n    agent_type: analysis\n    requires: {size: \">= much\"}\n";
    let wrong = RegisterWorkflow { source: Some(wrong.to_owned()), definition: None };
    let error = fleet.client.register_workflow(&wrong).await.unwrap_err().to_string();
    assert!(error.contains("line 5") && error.contains(">= much"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_an_agent_that_fails_is_shut_out_and_comes_back_when_it_works() {
    let mut fleet = Fleet::bare().await;
    fleet.set("BATON_BREAKERS__OPEN_MS", "1000");
    fleet.set("BATON_BREAKERS__MIN_TASKS", "3");
    fleet.start_services().await;
    let nats = fleet.nats.connect().await;
    let mut events = nats.subscribe("baton.event.agent.sick.*").await.unwrap();
    nats.flush().await.unwrap();
    let health = Arc::new(AtomicBool::new(false));
    let _sick = agent(&fleet, "sick", json!({}), health.clone()).await;
    register(
        &fleet,
        "name: analyse\nstages:\n  - name: analyse\n    agent_type: analysis\n    retry: {max_attempts: 20, initial_ms: 20, max_ms: 20}\n",
    )
    .await;
    let run = fleet.start_run("analyse", &json!({})).await;
    let state = |state: BreakerState| {
        let client = fleet.client.clone();
        move || {
            let client = client.clone();
            async move {
                let list = client.list_agents(&ListAgents::default()).await.map(|list| list.agents).unwrap_or_default();
                list.iter().flat_map(|agent| &agent.breakers).any(|breaker| breaker.state == state)
            }
        }
    };
    wait_for("the breaker opens", PATIENCE, state(BreakerState::Open)).await;
    let shown = fleet.baton(&["agents"]).await;
    assert!(shown.contains("analysis open for") || shown.contains("analysis half-open"), "{shown}");
    let (capability, requires) = (Capability::new("analysis").unwrap(), Default::default());
    let find = FindAgents { capability, requires, resources: Resources::new(), limit: Some(1) };
    let found = fleet.client.find_agents(&find).await.unwrap();
    assert!(found.agents[0].breaker != BreakerState::Closed, "{found:?}");
    // The run waits meanwhile, and is done by another agent as soon as there is one.
    let other = agent(&fleet, "well", json!({}), well()).await;
    assert_eq!(fleet.wait_for_end(run).await.status, RunStatus::Succeeded);
    // The agent works again: its probes succeed.
    health.store(true, Ordering::SeqCst);
    drop(other);
    fleet.wait_for_agent("well", AgentStatus::Gone).await;
    for _ in 0..3 {
        let run = fleet.start_run("analyse", &json!({})).await;
        assert_eq!(fleet.wait_for_end(run).await.status, RunStatus::Succeeded);
    }
    let mut kinds = Vec::new();
    while !kinds.contains(&"breaker_closed".to_owned()) {
        let event = tokio::time::timeout(PATIENCE, futures::StreamExt::next(&mut events)).await.unwrap().unwrap();
        kinds.push(event.subject.rsplit('.').next().unwrap().to_owned());
    }
    let half = kinds.iter().position(|kind| kind == "breaker_half_opened");
    let open = kinds.iter().position(|kind| kind == "breaker_opened");
    assert!(open.is_some() && open < half, "{kinds:?}");
    let metrics = fleet.client.metrics().await.unwrap();
    assert!(metrics.iter().any(|(_, text)| text.contains("agent_breaker_transitions_total")), "{metrics:?}");
}
