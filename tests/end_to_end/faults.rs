//! Killing things: whatever dies during an article, it ends the same, with each stage's result counted once.

use std::collections::BTreeMap;

use baton_protocol::record::Outcome;
use baton_protocol::request::AgentStatus;
use baton_protocol::run::{RunStatus, RunView};
use baton_protocol::{RunId, Service};
use serde_json::Value;

use crate::article::successes;
use crate::fleet::{Broker, Fleet, STOCK};

fn document(view: &RunView) -> String {
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    let result: Value = view.stages.last().unwrap().result.as_ref().unwrap().read().unwrap();
    result["document"].as_str().unwrap().to_owned()
}

/// The run has ended as the undisturbed one did, and every result counted once.
pub(crate) async fn check(fleet: &Fleet<impl Broker>, run: RunId, undisturbed: &str) {
    let view = fleet.wait_for_end(run).await;
    assert_eq!(document(&view), undisturbed);
    let once: BTreeMap<String, usize> = STOCK.iter().map(|stage| ((*stage).to_owned(), 1)).collect();
    assert_eq!(successes(fleet, run).await, once);
}

pub(crate) async fn undisturbed(fleet: &Fleet<impl Broker>) -> String {
    let run = fleet.start_article().await;
    document(&fleet.wait_for_end(run).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_service_started_again_ends_in_the_same_article() {
    let mut fleet = Fleet::stocked().await;
    let undisturbed = undisturbed(&fleet).await;
    for service in Service::WRITERS {
        for stage in ["research", "writing"] {
            // The agent of that stage is stopped, so that the service dies in the middle of the run for certain.
            fleet.process(stage).pause().await;
            let run = fleet.start_article().await;
            fleet.wait_for_assignment(run, stage).await;
            fleet.kill(service.as_str()).await;
            fleet.process(stage).resume();
            fleet.start_service(service.as_str(), service);
            check(&fleet, run, &undisturbed).await;
            fleet.wait_for_leader(service).await;
        }
        // And while nobody holds anything up: the run goes on as far as it can, or waits.
        let run = fleet.start_article().await;
        fleet.kill(service.as_str()).await;
        fleet.start_service(service.as_str(), service);
        check(&fleet, run, &undisturbed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_w8_a_killed_agent_started_again_ends_in_the_same_article() {
    let mut fleet = Fleet::stocked().await;
    let undisturbed = undisturbed(&fleet).await;
    for stage in ["research", "editing"] {
        fleet.process(stage).pause().await;
        let run = fleet.start_article().await;
        fleet.wait_for_assignment(run, stage).await;
        fleet.kill(stage).await;
        fleet.start_stock(stage);
        check(&fleet, run, &undisturbed).await;
        let view = fleet.wait_for_end(run).await;
        let attempts = &view.stages.iter().find(|s| s.name.as_str() == stage).unwrap().attempts;
        let outcomes: Vec<_> = attempts.iter().map(|a| a.outcome).collect();
        assert_eq!(outcomes, [Some(Outcome::Lost), Some(Outcome::Succeeded)], "{attempts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_a_dead_agent_s_task_runs_elsewhere() {
    let mut fleet = Fleet::stocked().await;
    let undisturbed = undisturbed(&fleet).await;
    fleet.process("writing").pause().await;
    let run = fleet.start_article().await;
    let first = fleet.wait_for_assignment(run, "writing").await;
    fleet.kill("writing").await;
    let sources = fleet.sources();
    let arguments = ["agent", "stock", "writing", "--id-prefix", "spare", "--sources", sources.to_str().unwrap()];
    fleet.start("spare", &arguments);
    check(&fleet, run, &undisturbed).await;
    let view = fleet.wait_for_end(run).await;
    let attempts = &view.stages[1].attempts;
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_ne!(attempts[1].agent.as_ref(), Some(&first));
    fleet.wait_for_agent(first.as_str(), AgentStatus::Gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_started_again_ends_in_the_same_article() {
    let mut fleet = Fleet::stocked().await;
    let undisturbed = undisturbed(&fleet).await;
    for stage in ["research", "verification"] {
        fleet.process(stage).pause().await;
        let run = fleet.start_article().await;
        fleet.wait_for_assignment(run, stage).await;
        fleet.nats.kill().await;
        fleet.process(stage).resume();
        fleet.nats.restart().await;
        check(&fleet, run, &undisturbed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_instance_takes_over_and_a_paused_leader_is_refused() {
    let mut fleet = Fleet::stocked().await;
    let undisturbed = undisturbed(&fleet).await;
    for service in Service::WRITERS {
        let name = format!("{service}-2");
        fleet.start_service(&name, service);
        let standby = &name;
        let client = fleet.client.clone();
        baton_testkit::wait_for("two instances", crate::fleet::PATIENCE, || {
            let client = client.clone();
            async move { client.statuses(service).await.is_ok_and(|s| s.len() == 2) }
        })
        .await;
        // Killed: the other one leads within a moment.
        fleet.process("editing").pause().await;
        let run = fleet.start_article().await;
        fleet.wait_for_assignment(run, "editing").await;
        fleet.kill(service.as_str()).await;
        fleet.wait_for_leader(service).await;
        fleet.process("editing").resume();
        check(&fleet, run, &undisturbed).await;
        // Paused for longer than leadership lasts: the other one leads. Awake again, it is refused and follows.
        fleet.start_service(service.as_str(), service);
        baton_testkit::wait_for("two instances again", crate::fleet::PATIENCE, || {
            let client = client.clone();
            async move { client.statuses(service).await.is_ok_and(|s| s.len() == 2) }
        })
        .await;
        let before = leader(&fleet, service).await;
        fleet.process(standby).pause().await;
        baton_testkit::wait_for("another leader", crate::fleet::PATIENCE, || {
            let (client, before) = (client.clone(), before.clone());
            async move { leading(&client, service).await.is_some_and(|leader| leader != before) }
        })
        .await;
        let run = fleet.start_article().await;
        fleet.process(standby).resume();
        check(&fleet, run, &undisturbed).await;
        fleet.kill(standby).await;
        fleet.wait_for_leader(service).await;
    }
}

async fn leader(fleet: &Fleet, service: Service) -> String {
    let client = fleet.client.clone();
    baton_testkit::wait_for("a leader", crate::fleet::PATIENCE, || {
        let client = client.clone();
        async move { leading(&client, service).await }
    })
    .await
}

async fn leading(client: &baton_client::Client, service: Service) -> Option<String> {
    let statuses = client.statuses(service).await.ok()?;
    let leading = statuses.into_iter().filter(|s| s.role == baton_protocol::request::Role::Leading);
    // One that was paused and has not noticed yet may believe that it leads: the newest term does.
    leading.max_by_key(|s| s.term).map(|s| s.instance)
}
