//! Workflows of the user's own: parallel stages, retries, cancellation, versions, bad definitions.

use std::sync::Arc;
use std::time::Duration;

use baton_client::{ClientError, ConnectSettings};
use baton_protocol::record::Outcome;
use baton_protocol::request::{CancelRun, RegisterWorkflow, ReportStatus};
use baton_protocol::run::{RunStatus, StageStatus};
use baton_protocol::{Code, Definition, Json};
use baton_sdk::{Agent, Output, Task, TaskError};
use baton_testkit::wait_for;
use serde_json::json;
use tokio::sync::{Barrier, Notify};
use tokio_util::sync::CancellationToken;

use crate::fleet::{Fleet, PATIENCE};

/// An agent in this process, until the token is cancelled.
pub(crate) async fn agent<F, R>(fleet: &Fleet, id: &str, kind: &str, slots: u32, handler: F) -> CancellationToken
where
    F: Fn(Task) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Output, TaskError>> + Send + 'static,
{
    let stop = CancellationToken::new();
    let settings = ConnectSettings::server(fleet.nats.client_url());
    let agent = Agent::builder(id, kind).slots(slots).settings(settings.clone()).connect().await.unwrap();
    let until = stop.clone();
    tokio::spawn(async move { agent.run_until(handler, async move { until.cancelled().await }).await });
    fleet.wait_for_agents(1).await;
    stop
}

async fn register(fleet: &Fleet, source: &str) {
    let request = RegisterWorkflow { source: Some(source.to_owned()), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn w4_parallel_stages_overlap_on_different_agents() {
    let fleet = Fleet::services().await;
    register(
        &fleet,
        "name: diamond\nstages:\n- {name: a, agent_type: meet}\n- {name: b, agent_type: meet}\n\
         - {name: c, agent_type: sum, depends_on: [a, b]}\n",
    )
    .await;
    // Nobody passes the barrier before both stages run.
    let barrier = Arc::new(Barrier::new(2));
    let mut stops = Vec::new();
    for id in ["meet-1", "meet-2"] {
        let barrier = Arc::clone(&barrier);
        stops.push(
            agent(&fleet, id, "meet", 1, move |task: Task| {
                let barrier = Arc::clone(&barrier);
                async move {
                    barrier.wait().await;
                    Output::json(&json!({ "stage": task.stage.as_str() }))
                }
            })
            .await,
        );
    }
    stops.push(
        agent(&fleet, "sum-1", "sum", 1, |task: Task| async move {
            let results: Vec<_> = task.results.keys().map(ToString::to_string).collect();
            Output::json(&results)
        })
        .await,
    );
    let run = fleet.start_run("diamond", &json!({})).await;
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    let [a, b, c] = &view.stages[..] else { panic!("three stages") };
    let (a, b) = (&a.attempts[0], &b.attempts[0]);
    assert_ne!(a.agent, b.agent);
    assert!(a.assigned_at.unwrap() <= b.ended_at.unwrap() && b.assigned_at.unwrap() <= a.ended_at.unwrap());
    assert_eq!(c.result.as_ref().unwrap().as_str(), "[\"a\",\"b\"]");
}

#[tokio::test(flavor = "multi_thread")]
async fn w10_a_cancelled_run_reaches_the_agent_and_frees_it() {
    let fleet = Fleet::services().await;
    register(&fleet, "name: long\nstages:\n- {name: wait, agent_type: wait}\n").await;
    let cancelled = Arc::new(Notify::new());
    let told = Arc::clone(&cancelled);
    let _stop = agent(&fleet, "wait-1", "wait", 1, move |task: Task| {
        let told = Arc::clone(&told);
        async move {
            if task.input::<serde_json::Value>()?["quick"].is_null() {
                task.cancelled().cancelled().await;
                told.notify_one();
            }
            Output::json(&json!({}))
        }
    })
    .await;
    let run = fleet.start_run("long", &json!({})).await;
    fleet.wait_for_assignment(run, "wait").await;
    fleet.client.cancel_run(&CancelRun { run, reason: Some("changed my mind".into()) }).await.unwrap();
    tokio::time::timeout(PATIENCE, cancelled.notified()).await.expect("the agent is told");
    let view = fleet.wait_for_end(run).await;
    assert_eq!((view.status, view.reason.as_deref()), (RunStatus::Cancelled, Some("changed my mind")));
    assert_eq!(view.stages[0].status, StageStatus::Cancelled);
    // The agent is free: the next run gets it.
    let next = fleet.start_run("long", &json!({ "quick": true })).await;
    assert_eq!(fleet.wait_for_end(next).await.status, RunStatus::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn w8_a_failed_attempt_is_followed_by_another_and_a_late_report_changes_nothing() {
    let fleet = Fleet::services().await;
    register(
        &fleet,
        "name: flaky\nstages:\n- {name: try, agent_type: try, retry: {max_attempts: 3, initial_ms: 50}}\n\
         - {name: never, agent_type: try, optional: true, retry: {max_attempts: 1}}\n",
    )
    .await;
    let _stop = agent(&fleet, "try-1", "try", 1, |task: Task| async move {
        if task.stage.as_str() == "never" {
            return Err(TaskError::failed("it is not to be").permanent());
        }
        if task.attempt < 3 {
            return Err(TaskError::failed(format!("attempt {} failed", task.attempt)));
        }
        Output::json(&json!({ "attempt": task.attempt }))
    })
    .await;
    let run = fleet.start_run("flaky", &json!({})).await;
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    let outcomes: Vec<_> = view.stages[0].attempts.iter().map(|a| a.outcome.unwrap()).collect();
    assert_eq!(outcomes, [Outcome::Failed, Outcome::Failed, Outcome::Succeeded]);
    assert_eq!(view.stages[1].status, StageStatus::Failed);
    // The first attempt's agent wakes up and says that it succeeded after all.
    let first = &view.stages[0].attempts[0];
    let late = json!({
        "lease": first.lease, "task": format!("{run}/try/1"), "status": ReportStatus::Succeeded, "result": { "late": true }
    });
    let nats = fleet.nats.connect().await;
    let answer = nats.request("baton.agent.try-1.report", late.to_string().into()).await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    // That attempt did end with a report, so a report under its lease is answered as stored; nothing has changed.
    assert!(answer["lease"] == json!(first.lease) || answer["code"] == "stale_lease", "{answer}");
    assert_eq!(fleet.client.get_run(run).await.unwrap(), view);
}

#[tokio::test(flavor = "multi_thread")]
async fn w1_w7_a_bad_definition_is_refused_with_the_place() {
    let fleet = Fleet::services().await;
    for (source, says) in [
        (
            "name: w\nstages:\n- {name: a, agent_type: x, depends_on: [b]}\n- {name: b, agent_type: x, depends_on: [a]}\n",
            "a -> b -> a",
        ),
        ("name: w\nstages:\n- {name: a, agent_type: x, depends_on: [c]}\n", "stage a depends on c"),
        ("name: w\nstages:\n- {name: a, agent_type: x}\n- {name: a, agent_type: x}\n", "stage a is defined twice"),
        ("name: w\nstages:\n- name: a\n  agent_type: x\n  depend_on: [b]\n", "depend_on"),
        ("name: w\nstages:\n- name: a\n  agent_type: x\n  depend_on: [b]\n", "line 5"),
        ("name: Big\nstages: []\n", "Big"),
        ("name: w\nstages: [\n", "line"),
        ("{\"name\": \"w\", \"stages\": [}", "line 1"),
    ] {
        let request = RegisterWorkflow { source: Some(source.to_owned()), definition: None };
        let Err(ClientError::Rejected(rejection)) = fleet.client.register_workflow(&request).await else {
            panic!("accepted: {source}")
        };
        assert_eq!(rejection.code, Code::InvalidWorkflow);
        assert!(rejection.message.contains(says), "{:?} does not say {says:?}", rejection.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn w3_a_running_run_keeps_its_version_and_a_key_gives_the_same_run() {
    let fleet = Fleet::services().await;
    register(&fleet, "name: grow\nstages:\n- {name: one, agent_type: later}\n").await;
    let run = fleet.start_run("grow", &json!({})).await;
    let second =
        Definition::builder("grow").add_stage("one", "later", &[]).add_stage("two", "later", &["one"]).build().unwrap();
    let request = RegisterWorkflow { source: None, definition: Some(Json::of(&second).unwrap()) };
    assert_eq!(fleet.client.register_workflow(&request).await.unwrap().version, 2);
    // The same definition as YAML is the same version.
    let yaml =
        "name: grow\nstages:\n- {name: one, agent_type: later}\n- {name: two, agent_type: later, depends_on: [one]}\n";
    let request = RegisterWorkflow { source: Some(yaml.to_owned()), definition: None };
    assert_eq!(fleet.client.register_workflow(&request).await.unwrap().version, 2);
    let _stop = agent(&fleet, "later-1", "later", 2, |_| async { Output::json(&json!({})) }).await;
    let old = fleet.wait_for_end(run).await;
    assert_eq!((old.version, old.stages.len()), (1, 1));

    let keyed = |key: &str, input: &str| baton_protocol::request::StartRun {
        key: Some(key.to_owned()),
        ..baton_protocol::request::StartRun::new("grow".parse().unwrap(), Json::from_text(input.to_owned()).unwrap())
    };
    let first = fleet.client.start_run(keyed("k", "{}")).await.unwrap();
    let again = fleet.client.start_run(keyed("k", "{}")).await.unwrap();
    assert_eq!((first.run, first.existing, again.existing), (again.run, false, true));
    assert_eq!(first.version, 2);
    let other = fleet.client.start_run(keyed("k", "{\"x\":1}")).await.unwrap_err();
    assert_eq!(other.code(), Some(Code::KeyConflict));
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_o2_leases_never_exceed_what_agents_have_and_everything_is_done() {
    let fleet = Fleet::services().await;
    let wide: String =
        (0..40).map(|i| format!("- {{name: s{i}, agent_type: work, resources: {{cpu: 2}}}}\n")).collect();
    register(&fleet, &format!("name: wide\nstages:\n{wide}")).await;
    fleet.baton(&["strategy", "ROUND_ROBIN"]).await;
    let settings = ConnectSettings::server(fleet.nats.client_url());
    let most = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let now = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for id in ["w-1", "w-2"] {
        use std::sync::atomic::Ordering::SeqCst;
        // Ten slots, but cpu for two tasks only.
        let agent =
            Agent::builder(id, "work").slots(10).resource("cpu", 5).settings(settings.clone()).connect().await.unwrap();
        let (most, now) = (Arc::clone(&most), Arc::clone(&now));
        let handler = move |_: Task| {
            let (most, now) = (Arc::clone(&most), Arc::clone(&now));
            async move {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, SeqCst);
                Output::json(&json!({}))
            }
        };
        tokio::spawn(agent.run_until(handler, std::future::pending()));
    }
    let run = fleet.start_run("wide", &json!({})).await;
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded);
    assert!(most.load(std::sync::atomic::Ordering::SeqCst) <= 4, "two agents with cpu for two each");
    let agents: std::collections::BTreeSet<_> =
        view.stages.iter().map(|s| s.attempts[0].agent.clone().unwrap()).collect();
    assert_eq!(agents.len(), 2);
    wait_for("nothing is held any more", Duration::from_secs(10), || async {
        let list = fleet.client.list_agents(&Default::default()).await.unwrap();
        list.agents.iter().all(|a| a.leases.is_empty() && a.in_use.values().all(|v| v.is_zero()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn w10_a_task_of_which_its_agent_tells_nothing_is_taken_from_it_and_tried_again() {
    let fleet = Fleet::services().await;
    register(&fleet, "name: told\nstages: [{name: only, agent_type: step, heartbeat_timeout_ms: 1000}]\n").await;
    let dropped = Arc::new(Notify::new());
    let told = Arc::clone(&dropped);
    let _stop = agent(&fleet, "step-1", "step", 2, move |task: Task| {
        let told = Arc::clone(&told);
        async move {
            if task.attempt == 1 {
                // It lives, and is stuck in the task, until it is told to drop it.
                task.cancelled().cancelled().await;
                told.notify_one();
                return Err(TaskError::failed("nobody hears this"));
            }
            // Three times as long as it may be silent.
            let mut often = tokio::time::interval(Duration::from_millis(200));
            for part in 1..=15 {
                often.tick().await;
                task.progress(f64::from(part) / 15.0, "going on").await;
            }
            Output::json(&json!({ "may_be_silent": task.heartbeat_timeout_ms }))
        }
    })
    .await;
    let run = fleet.start_run("told", &json!({})).await;
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    let [first, second] = &view.stages[0].attempts[..] else { panic!("two attempts: {view:?}") };
    assert_eq!((first.outcome, second.outcome), (Some(Outcome::Lost), Some(Outcome::Succeeded)));
    let error = first.error.as_deref().unwrap();
    assert_eq!(error, "agent step-1 is given no more time: nothing was heard of it for 1000 ms");
    assert_eq!(view.stages[0].result.as_ref().unwrap().as_str(), r#"{"may_be_silent":1000}"#);
    tokio::time::timeout(PATIENCE, dropped.notified()).await.expect("the agent was told to drop it");
}
