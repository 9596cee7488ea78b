//! More to do than can be done: what matters least waits first, and goes on by itself.

use async_nats::jetstream;
use baton_protocol::pressure::PressureLevel;
use baton_protocol::request::{AgentStatus, ListAgents, RegisterWorkflow, Role, StartRun};
use baton_protocol::run::RunStatus;
use baton_protocol::subject::{Shard, log_stream};
use baton_protocol::{Json, LeaseId, RunId, WorkflowName};
use baton_sdk::{Output, Task};
use baton_testkit::wait_for;
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE};
use crate::http::gateway;
use crate::workflows::agent;

async fn start(fleet: &Fleet, workflow: &str, priority: i32) -> RunId {
    let name = WorkflowName::new(workflow).unwrap();
    let request = StartRun { priority, ..StartRun::new(name, Json::of(&json!({})).unwrap()) };
    fleet.client.start_run(request).await.unwrap().run
}

/// Waits until everybody has read what is in the log by now.
async fn wait_until_read(fleet: &Fleet) {
    let leaders = async || {
        let mut all = fleet.client.all_statuses().await.unwrap_or_default();
        all.retain(|status| status.role == Role::Leading);
        all
    };
    let log = jetstream::new(fleet.nats.connect().await).get_stream(log_stream(Shard::default())).await.unwrap();
    let written = log.cached_info().state.last_sequence;
    wait_for("everybody has read it", PATIENCE, || async {
        let all = leaders().await;
        all.len() == 3 && all.iter().all(|status| status.read >= written)
    })
    .await;
}

async fn wait_for_level(fleet: &Fleet, level: PressureLevel) {
    let reached = || async { fleet.client.pressure().await.is_ok_and(|view| view.level == level) };
    wait_for("the pressure is so", PATIENCE, reached).await;
    wait_until_read(fleet).await;
}

async fn lease_of(fleet: &Fleet, run: RunId) -> LeaseId {
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    view.stages[0].attempts[0].lease.unwrap()
}

async fn work(_: Task) -> Result<Output, baton_sdk::TaskError> {
    Output::json(&json!({}))
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_under_pressure_the_lowest_priority_waits_first_and_goes_on_by_itself() {
    let mut fleet = Fleet::bare().await;
    fleet.set("BATON_PRESSURE__ELEVATED__QUEUE", "3");
    // The machine that this runs on may be short of memory.
    fleet.set("BATON_PRESSURE__ELEVATED__MEMORY_PERCENT", "0");
    fleet.set("BATON_PRESSURE__CRITICAL__MEMORY_PERCENT", "0");
    fleet.set("BATON_PRESSURE__LONGEST_MS", "3600000");
    fleet.start_services().await;
    let url = gateway(&mut fleet).await;
    for (name, agent_type) in [("common", "common"), ("rare", "rare")] {
        let source = Some(format!("name: {name}\nstages:\n- {{name: a, agent_type: {agent_type}}}\n"));
        fleet.client.register_workflow(&RegisterWorkflow { source, definition: None }).await.unwrap();
    }
    let low = start(&fleet, "common", -1).await;
    let high = [start(&fleet, "rare", 0).await, start(&fleet, "rare", 3).await];
    wait_for_level(&fleet, PressureLevel::Elevated).await;

    // At the door: what matters less is refused by whatever way it comes, and told when to come back; the rest is not.
    let post = async |priority: i32| {
        let body = json!({ "workflow": "common", "priority": priority });
        reqwest::Client::new().post(format!("{url}/v1/runs")).json(&body).send().await.unwrap()
    };
    let answer = post(-1).await;
    assert_eq!(answer.status(), 503);
    let seconds: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["code"], "overloaded", "{problem}");
    assert_eq!(problem["retry_after_ms"].as_u64().unwrap().div_ceil(1000), seconds, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("of priority -1"), "{problem}");
    let (code, _, stderr) = fleet.try_baton(&["run", "common", "--priority=-1"]).await;
    assert_eq!(code, Some(5), "{stderr}");
    assert!(stderr.contains("ask again in") && stderr.contains("pressure is elevated"), "{stderr}");
    let other: Value = post(0).await.json().await.unwrap();
    let other: RunId = other["run"].as_str().unwrap().parse().unwrap();

    // An agent with room for what was accepted before: that waits all the same, and the rest does not.
    let _ann = agent(&fleet, "ann", "common", 4, work).await;
    lease_of(&fleet, other).await;
    wait_until_read(&fleet).await;
    let why = fleet.baton(&["why-placed", &low.to_string(), "a"]).await;
    assert!(why.contains("of priority -1") && why.contains("elevated"), "{why}");
    let agents = fleet.client.list_agents(&ListAgents::default()).await.unwrap().agents;
    assert_eq!(agents[0].status, AgentStatus::Idle, "{agents:?}");

    // Where one would look.
    let (_, doctor, _) = fleet.try_baton(&["doctor"]).await;
    assert!(doctor.contains("elevated: 3 tasks waiting") && doctor.contains("1 task of less"), "{doctor}");
    let shown: Value = reqwest::get(format!("{url}/v1/pressure")).await.unwrap().json().await.unwrap();
    assert_eq!((&shown["level"], &shown["waiting"], &shown["below"]), (&json!("elevated"), &json!(3), &json!(0)));
    let alerts = fleet.baton(&["alerts", "--kind", "pressure"]).await;
    assert!(alerts.contains("warning") && alerts.contains("3 tasks wait"), "{alerts}");
    let metrics = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
    // Of all services together.
    let value = |name: &str| -> f64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    assert!(value("baton_pressure_level{") > 0.5, "{metrics}");
    assert!(value("baton_runs_refused_total{") > 1.5, "{metrics}");

    // Somebody comes who can do what the others wait for. Then nothing else waits: the low one goes by itself, after them, and
    // so does one that was refused and is patient.
    let patience = PATIENCE.as_secs().to_string();
    let arguments = ["run", "common", "--priority=-1", "--patience", &patience];
    let (patient, leases) = tokio::join!(fleet.try_baton(&arguments), async {
        // With room for both at once: the pressure falls when both have it, and not before.
        let _bob = agent(&fleet, "bob", "rare", 4, work).await;
        let leases = [lease_of(&fleet, high[0]).await, lease_of(&fleet, high[1]).await, lease_of(&fleet, low).await];
        wait_for_level(&fleet, PressureLevel::None).await;
        leases
    });
    assert!(leases[2] > leases[0] && leases[2] > leases[1], "{leases:?}");
    assert_eq!(patient.0, Some(0), "{}", patient.2);
    let patient: RunId = patient.1.trim().parse().unwrap();
    lease_of(&fleet, patient).await;
    let alerts = fleet.baton(&["alerts", "--kind", "pressure"]).await;
    assert!(alerts.contains("over"), "{alerts}");
}
