//! What people do with runs: pause them, repeat them, find them, cancel many.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_nats::jetstream;
use baton_protocol::request::{RegisterWorkflow, StartRun};
use baton_protocol::run::{RunStatus, StageStatus};
use baton_sdk::{Output, Task, TaskError};
use baton_testkit::wait_for;
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE};
use crate::workflows::agent;

async fn register(fleet: &Fleet, source: &str) {
    let request = RegisterWorkflow { source: Some(source.to_owned()), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn w19_a_run_is_paused_resumed_and_repeated_from_a_stage_on() {
    let mut fleet = Fleet::services().await;
    register(
        &fleet,
        "name: steps\nstages:\n- {name: one, agent_type: step}\n- {name: two, agent_type: step, depends_on: [one]}\n\
         - {name: three, agent_type: step, depends_on: [two], retry: {max_attempts: 1}}\n",
    )
    .await;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let open = Arc::clone(&gate);
    let _stop = agent(&fleet, "step-1", "step", 4, move |task: Task| {
        let (counted, gate) = (Arc::clone(&counted), Arc::clone(&gate));
        async move {
            let before = counted.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            if task.stage.as_str() == "three" && before < 3 {
                return Err(TaskError::failed("not today"));
            }
            Output::json(&json!({ "by": task.run.to_string(), "had": task.results.len() }))
        }
    })
    .await;
    let said = fleet.baton(&["run", "steps", "--meta", "customer=acme"]).await;
    let run = said.trim().parse().unwrap();
    fleet.wait_for_assignment(run, "one").await;
    let paused = fleet.baton(&["pause", "last", "--reason", "lunch"]).await;
    assert!(paused.contains("is paused; `baton resume"), "{paused}");
    // What the agent has goes on; nothing else begins.
    open.add_permits(1);
    wait_for("the first stage is over", PATIENCE, || async {
        let view = fleet.client.get_run(run).await.unwrap();
        view.stages[0].status == StageStatus::Succeeded
    })
    .await;
    let shown = fleet.baton(&["show", "last"]).await;
    assert!(
        shown.contains("paused    since") && shown.contains(": lunch") && shown.contains("customer=acme"),
        "{shown}"
    );
    assert!(fleet.baton(&["runs", "--paused", "--meta", "customer=acme"]).await.contains(&run.to_string()));
    let why = fleet.baton(&["why", "last", "two"]).await;
    assert!(
        why.contains("stage two is pending") && why.contains("the run to be resumed") && why.contains("(lunch)"),
        "{why}"
    );
    // Another workflow-manager knows it as well.
    fleet.kill("workflow-manager").await;
    fleet.start_service("workflow-manager", baton_protocol::Service::WorkflowManager);
    let view = fleet.client.get_run(run).await.unwrap();
    assert_eq!((view.stages[1].status, view.paused.is_some()), (StageStatus::Pending, true));
    open.add_permits(2);
    assert!(fleet.baton(&["resume", "last"]).await.contains("goes on"));
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Failed, "{view:?}");

    open.add_permits(1);
    let again = fleet.baton(&["rerun", "last", "--from", "three", "--key", "k"]).await;
    let again: baton_protocol::RunId = again.trim().parse().unwrap();
    let view = fleet.wait_for_end(again).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    assert_eq!(count.load(Ordering::SeqCst), 4, "two of the three stages were kept");
    let result = |stage: usize| view.stages[stage].result.as_ref().unwrap().read::<Value>().unwrap();
    assert_eq!(result(1)["by"], run.to_string());
    assert_eq!(result(2), json!({ "by": again.to_string(), "had": 1 }), "it was given the result that was kept");
    let shown = fleet.baton(&["show", &again.to_string()]).await;
    assert!(shown.contains(&format!("repeats   run {run} from three on; 2 stages kept")), "{shown}");
    let (code, _, error) = fleet.try_baton(&["rerun", &run.to_string(), "--from", "four"]).await;
    assert!(code == Some(5) && error.contains("its stages are: one, two, three"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn w19_many_runs_are_cancelled_by_what_they_have_in_common() {
    let fleet = Fleet::services().await;
    register(&fleet, "name: idle\nstages: [{name: never, agent_type: nobody}]\n").await;
    for n in 0..130 {
        let parity = if n % 10 == 0 { "tenth" } else { "other" };
        let start = StartRun {
            metadata: [("parity".to_owned(), parity.to_owned())].into(),
            ..StartRun::new("idle".parse().unwrap(), baton_protocol::Json::of(&json!({})).unwrap())
        };
        fleet.client.start_run(start).await.unwrap();
    }
    let why = fleet.baton(&["why", "last", "never"]).await;
    assert_eq!(why, "stage never is ready and waits for\n  - an agent that can do nobody: none is there\n");
    let (code, _, error) = fleet.try_baton(&["why", "last", "ever"]).await;
    assert!(code == Some(5) && error.contains("its stages are: never"), "{error}");
    let (code, _, error) = fleet.try_baton(&["cancel", "--workflow", "idle"]).await;
    assert!(code == Some(2) && error.contains("--all"), "{error}");
    let cancelled = fleet.baton(&["cancel", "--workflow", "idle", "--meta", "parity=other", "--all"]).await;
    assert_eq!(cancelled.lines().count(), 117);
    let live = fleet.baton(&["runs", "--status", "running", "--limit", "1000", "--since", "1h"]).await;
    assert_eq!(live.lines().count(), 1 + 13, "{live}");
    assert_eq!(fleet.baton(&["cancel", "--all"]).await.lines().count(), 13);
}

/// Runs that have ended are kept as documents, and as many of them as the settings of whoever leads say.
#[tokio::test(flavor = "multi_thread")]
async fn w19_the_oldest_documents_go_where_settings_say_so() {
    let mut fleet = Fleet::services().await;
    register(&fleet, "name: one\nstages: [{name: only, agent_type: step}]\n").await;
    let _stop = agent(&fleet, "step-1", "step", 4, |_| async { Output::json(&json!(1)) }).await;
    let mut runs = Vec::new();
    for _ in 0..4 {
        let run = fleet.start_run("one", &json!({})).await;
        fleet.wait_for_end(run).await;
        runs.push(run.to_string());
    }
    let js = jetstream::new(fleet.nats.connect().await);
    let kept = || async {
        let store = js.get_key_value("baton-runs").await.unwrap();
        let mut kept = Vec::new();
        for run in &runs {
            if store.get(run).await.unwrap().is_some() {
                kept.push(run.clone());
            }
        }
        kept
    };
    wait_for("all are kept", PATIENCE, || async { kept().await == runs }).await;
    fleet.kill("workflow-manager").await;
    fleet.set("BATON_WORKFLOWS__KEEP_DOCUMENTS", "2");
    fleet.set("BATON_WORKFLOWS__KEEP_ENDED_MS", "3600000");
    fleet.start_service("workflow-manager", baton_protocol::Service::WorkflowManager);
    wait_for("two are kept", PATIENCE, || async { kept().await.len() == 2 }).await;
    let mut store = js.get_stream("KV_baton-runs").await.unwrap();
    let config = &store.info().await.unwrap().config;
    assert_eq!((config.max_messages, config.max_age.as_secs()), (2, 3600));
}
