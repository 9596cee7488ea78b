//! Agents in any language.

use baton_protocol::request::{AgentStatus, ListAgents, ListRuns, RegisterWorkflow};
use baton_protocol::run::RunStatus;
use serde_json::{Value, json};

use crate::fleet::Fleet;

/// The Python program on the page for agent authors.
fn documented_agent() -> String {
    let page = include_str!("../../docs/agents.md");
    let (_, rest) = page.split_once("```python\n").expect("docs/agents.md shows an agent in Python");
    rest.split_once("```").unwrap().0.to_owned()
}

/// The director, leads and workers on that page.
#[tokio::test(flavor = "multi_thread")]
async fn w6_the_documented_director_lead_and_worker_do_a_task_three_levels_deep() {
    let page = include_str!("../../docs/agents.md");
    let code = page.split("```python\n").nth(3).expect("docs/agents.md shows a supervisor in Python");
    let code = code.split("```").next().unwrap();
    let fleet = Fleet::services().await;
    let mut agents = Vec::new();
    for kind in ["director", "lead", "worker", "writing"] {
        let with_type = format!("import os\nos.environ['TYPE'] = '{kind}'\n{code}");
        let start = fleet.python(&format!("{kind}.py"), &with_type).await;
        agents.push(start());
        fleet.wait_for_agent(&format!("{kind}-1"), AgentStatus::Idle).await;
    }
    let source = include_str!("../../examples/supervisor.yaml").to_owned();
    let request = RegisterWorkflow { source: Some(source), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
    let run = fleet.start_run("supervisor", &json!({ "topic": "tea" })).await;
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}\n{}", agents[0].log_tail());
    let result: Value = view.stages[1].result.as_ref().unwrap().read().unwrap();
    assert_eq!(result, json!({ "text": "((11 of tea + 12 of tea) + (21 of tea + 22 of tea))" }));
    // Every level is a part of the one around it, and told in one trace.
    let children = ListRuns { parent: Some(run), ..ListRuns::default() };
    let leads = fleet.client.list_runs(&children).await.unwrap().runs;
    assert_eq!(leads.len(), 1, "{leads:?}");
    let workers =
        fleet.client.list_runs(&ListRuns { parent: Some(leads[0].run), ..ListRuns::default() }).await.unwrap();
    assert_eq!(workers.runs.len(), 2, "{workers:?}");
    let deepest = fleet.client.get_run(workers.runs[0].run).await.unwrap();
    assert_eq!((deepest.parent.unwrap().depth, deepest.trace_id), (2, view.trace_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a2_the_documented_agent_in_plain_nats_py_registers_and_does_a_stage() {
    let code = documented_agent();
    let lines = code.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines <= 30, "{lines} lines: an agent should stay this small");
    let fleet = Fleet::services().await;
    let start = fleet.python("agent.py", &code).await;
    let agent = start();
    fleet.wait_for_agent("counter-1", AgentStatus::Idle).await;
    let request = RegisterWorkflow {
        source: Some("name: count\nstages:\n  - name: count\n    agent_type: count\n".to_owned()),
        definition: None,
    };
    fleet.client.register_workflow(&request).await.unwrap();
    let run = fleet.start_run("count", &json!({ "text": "one two three" })).await;
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}\n{}", agent.log_tail());
    let result: Value = view.stages[0].result.as_ref().unwrap().read().unwrap();
    assert_eq!(result, json!({ "words": 3 }));
    // What the agent can not do it reports, and goes on.
    let wrong = fleet.start_run("count", &json!({})).await;
    let view = fleet.wait_for_end(wrong).await;
    assert_eq!(view.status, RunStatus::Failed);
    assert!(view.reason.as_ref().is_some_and(|reason| reason.contains("KeyError")), "{view:?}");
    assert_eq!(view.stages[0].attempts.len(), 1, "what the input has not, no other attempt finds: {view:?}");
    // Anything else may be the agent's own fault: it is tried again, and counts against its breaker.
    let strange = fleet.start_run("count", &json!({ "text": 5 })).await;
    let view = fleet.wait_for_end(strange).await;
    assert_eq!(view.status, RunStatus::Failed);
    assert!(view.stages[0].attempts.len() > 1, "{view:?}");
    let agents = fleet.client.list_agents(&ListAgents::default()).await.unwrap().agents;
    assert!(agents[0].breakers.iter().any(|breaker| breaker.failed > 0), "{agents:?}");
    let run = fleet.start_run("count", &json!({ "text": "four more words here" })).await;
    assert_eq!(fleet.wait_for_end(run).await.status, RunStatus::Succeeded);
}
