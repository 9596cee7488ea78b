//! What is shown as it changes: by the command line and over HTTP.

use baton_client::now;
use baton_protocol::request::{AgentStatus, Release};
use baton_protocol::{LeaseId, Pool, PoolKind, ResourceName};
use baton_sdk::{Leases, Output, Task, Want};
use baton_testkit::{Process, wait_for};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE};
use crate::http::gateway;
use crate::workflows::agent;

/// What a view has shown so far, one answer a line.
fn answers(view: &Process) -> Vec<Value> {
    let text = view.stdout();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until what a view shows last is right.
async fn shows(fleet: &mut Fleet, view: &str, what: &str, right: impl Fn(&Value) -> bool) {
    let view = &*fleet.process(view);
    wait_for(what, PATIENCE, || async { answers(view).last().is_some_and(&right) }).await;
}

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}

/// Starts the views of the command line, each showing what there is.
async fn follow(fleet: &mut Fleet) {
    for view in ["agents", "resources", "budgets", "leases", "locks", "alerts"] {
        fleet.start(view, &[view, "--follow", "--json"]);
        shows(fleet, view, &format!("{view} are shown"), |_| true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_r4_r6_r8_r11_views_of_the_command_line_follow_what_changes() {
    let mut fleet = Fleet::services().await;
    fleet.client.set_pool(name("gpu"), Pool::new(PoolKind::Held, 4)).await.unwrap();
    follow(&mut fleet).await;
    fleet.start("table", &["resources", "--follow"]);
    fleet.process("table").wait_for_output("gpu", PATIENCE).await;

    // Pools and locks: made, taken, given back.
    fleet.client.set_pool(name("editors"), Pool::lock()).await.unwrap();
    shows(&mut fleet, "locks", "the lock is there", |list| list["pools"][0]["name"] == "editors").await;
    let leases = Leases::of_client("test", fleet.client.clone());
    let held = leases.acquire(Want::of("gpu", 3)).await.unwrap();
    let leads = leases.acquire(Want::exclusive("editors")).await.unwrap();
    let (gpu, term) = (held.token(), leads.token());
    let shown = |list: &Value, lease: u64| list["leases"].as_array().unwrap().iter().any(|held| held["lease"] == lease);
    shows(&mut fleet, "leases", "both are held", |list| shown(list, gpu) && shown(list, term)).await;
    shows(&mut fleet, "locks", "who leads", |list| list["pools"][0]["holders"][0]["lease"] == term).await;
    let in_use = |list: &Value, amount: u64| {
        list["pools"].as_array().unwrap().iter().any(|pool| pool["name"] == "gpu" && pool["in_use"] == amount)
    };
    shows(&mut fleet, "resources", "three are in use", |list| in_use(list, 3)).await;
    held.release().await.unwrap();
    shows(&mut fleet, "resources", "none is in use", |list| in_use(list, 0)).await;
    shows(&mut fleet, "leases", "one is held", |list| !shown(list, gpu) && shown(list, term)).await;
    // Another one leads: the lock is had alone as before, and by somebody else.
    leads.release().await.unwrap();
    let next = leases.acquire(Want::exclusive("editors")).await.unwrap();
    let next_term = next.token();
    shows(&mut fleet, "locks", "the next one leads", |list| list["pools"][0]["holders"][0]["lease"] == next_term).await;
    next.release().await.unwrap();

    // Budgets, and what is told of them.
    fleet.client.set_pool(name("team"), Pool::budget(10, "EUR")).await.unwrap();
    let spent = leases.acquire(Want::of("team", 8)).await.unwrap();
    shows(&mut fleet, "budgets", "8 are set aside", |list| list["pools"][0]["in_use"] == 8).await;
    let all = Release { lease: LeaseId(spent.token()), used: [].into() };
    fleet.client.release_lease(&all).await.unwrap();
    shows(&mut fleet, "budgets", "8 are spent", |list| list["pools"][0]["spent"] == 8).await;
    let raised = |list: &Value| {
        let alert = &list["alerts"][0];
        alert["kind"] == "budget_used" && alert["severity"] == "warning" && alert["about"] == "team"
    };
    shows(&mut fleet, "alerts", "an alert is raised", raised).await;
    fleet.baton(&["budgets", "approve", "team", "100"]).await;
    shows(&mut fleet, "alerts", "it is over", |list| list["alerts"][0]["cleared_at"].is_u64()).await;

    // Agents: one comes, works, goes.
    let stop = agent(&fleet, "ann", "work", 1, |_: Task| async { Output::json(&json!({})) }).await;
    fleet.wait_for_agent("ann", AgentStatus::Idle).await;
    shows(&mut fleet, "agents", "ann is there", |list| list["agents"][0]["status"] == "idle").await;
    stop.cancel();
    shows(&mut fleet, "agents", "ann is gone", |list| list["agents"].as_array().unwrap().is_empty()).await;

    for view in ["agents", "resources", "budgets", "leases", "locks", "alerts"] {
        let shown = answers(fleet.process(view));
        // When an agent was heard of is another time in every answer, and no change.
        let still: Vec<_> = shown.iter().map(without_heard).collect();
        assert!(still.windows(2).all(|two| two[0] != two[1]), "{view}: {shown:#?}");
    }
    let table = fleet.process("table").stdout();
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("gpu")).collect();
    assert!(rows.len() >= 3, "{table}");
    assert!(table.contains("\n\nPOOL"), "one after the other, with a line between: {table}");
    // Whoever ends it ends it well.
    let leases = fleet.process("leases");
    leases.terminate();
    leases.wait_success(PATIENCE).await;
}

fn without_heard(list: &Value) -> Value {
    let mut list = list.clone();
    for agent in list["agents"].as_array_mut().into_iter().flatten() {
        agent["heard_at"] = Value::Null;
    }
    list
}

/// A stream of server-sent events.
struct Events {
    kind: &'static str,
    stream: BoxStream<'static, reqwest::Result<Vec<u8>>>,
    text: String,
}

impl Events {
    async fn open(url: &str, kind: &'static str, query: &str) -> Self {
        let answer = reqwest::get(format!("{url}/v1/live/{kind}{query}")).await.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let stream = answer.bytes_stream().map(|chunk| chunk.map(|bytes| bytes.to_vec())).boxed();
        Self { kind, stream, text: String::new() }
    }

    /// The data of the next event.
    async fn next(&mut self) -> Value {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                if let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")) {
                    assert!(event.contains(&format!("event: {}", self.kind)), "{event}");
                    return serde_json::from_str(data).unwrap();
                }
            }
            let chunk = tokio::time::timeout(PATIENCE, self.stream.next()).await.expect("the stream goes on");
            self.text += std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap();
        }
    }

    async fn until(&mut self, right: impl Fn(&Value) -> bool) -> Value {
        loop {
            let list = self.next().await;
            if right(&list) {
                return list;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_r4_r6_r8_r11_views_over_http_follow_what_changes() {
    let mut fleet = Fleet::services().await;
    fleet.client.set_pool(name("gpu"), Pool::new(PoolKind::Held, 4)).await.unwrap();
    fleet.client.set_pool(name("editors"), Pool::lock()).await.unwrap();
    fleet.client.set_pool(name("team"), Pool::budget(10, "EUR")).await.unwrap();
    let url = gateway(&mut fleet).await;
    let mut agents = Events::open(&url, "agents", "?capability=work").await;
    let mut pools = Events::open(&url, "pools", "").await;
    let mut budgets = Events::open(&url, "budgets", "").await;
    let mut locks = Events::open(&url, "locks", "?name=editors").await;
    let mut leases = Events::open(&url, "leases", "?pool=gpu").await;
    let mut alerts = Events::open(&url, "alerts", "?severity=critical").await;
    assert_eq!(agents.next().await, json!({ "agents": [] }));
    assert_eq!(pools.next().await["pools"].as_array().unwrap().len(), 3);
    assert_eq!(budgets.next().await["pools"][0]["name"], "team");
    assert_eq!(locks.next().await["pools"][0]["holders"], json!([]));
    assert_eq!(leases.next().await["leases"], json!([]));
    assert_eq!(alerts.next().await, json!({ "alerts": [] }));

    let begun = now();
    let client = Leases::of_client("test", fleet.client.clone());
    let held = client.acquire(Want::of("gpu", 1)).await.unwrap();
    let shown = leases.until(|list| !list["leases"].as_array().unwrap().is_empty()).await;
    assert!(shown["leases"][0]["lease"] == held.token() && shown["leases"][0]["since"].as_u64().unwrap() >= begun);
    held.release().await.unwrap();
    leases.until(|list| list["leases"].as_array().unwrap().is_empty()).await;
    let leads = client.acquire(Want::exclusive("editors")).await.unwrap();
    let shown = locks.until(|list| list["pools"][0]["exclusive"] == true).await;
    assert_eq!(shown["pools"][0]["holders"][0]["lease"], leads.token());
    let spent = client.acquire(Want::of("team", 10)).await.unwrap();
    let all = Release { lease: LeaseId(spent.token()), used: [].into() };
    fleet.client.release_lease(&all).await.unwrap();
    budgets.until(|list| list["pools"][0]["spent"] == 10).await;
    pools.until(|list| list["pools"].as_array().unwrap().iter().any(|pool| pool["spent"] == 10)).await;
    let shown = alerts.until(|list| !list["alerts"].as_array().unwrap().is_empty()).await;
    assert_eq!((&shown["alerts"][0]["kind"], &shown["alerts"][0]["about"]), (&json!("budget_used"), &json!("team")));
    let stop = agent(&fleet, "ann", "work", 1, |_: Task| async { Output::json(&json!({})) }).await;
    agents.until(|list| list["agents"][0]["agent"] == "ann").await;
    stop.cancel();
    agents.until(|list| list["agents"].as_array().unwrap().is_empty()).await;

    // What can not be shown is refused at once, as elsewhere.
    let unknown = reqwest::get(format!("{url}/v1/live/leases?pool=gpo")).await.unwrap();
    assert_eq!(unknown.status(), 404);
    assert!(unknown.text().await.unwrap().contains("did you mean gpu?"));
    // A stream goes on when the service that answers is another one.
    fleet.kill("resource-manager").await;
    fleet.start_service("resource-manager", baton_protocol::Service::ResourceManager);
    let found = client.acquire(Want::of("gpu", 2)).await.unwrap();
    let shown = leases.until(|list| !list["leases"].as_array().unwrap().is_empty()).await;
    assert_eq!(shown["leases"][0]["lease"], found.token());
}
