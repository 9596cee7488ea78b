//! Pools, locks and elections against a real broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use baton_client::ConnectSettings;
use baton_protocol::request::{Acquire, ListLeases, ListPools, PoolView, RegisterWorkflow};
use baton_protocol::run::RunStatus;
use baton_protocol::{Amount, Code, Pool, PoolKind, ResourceName, Service, Take, Takes};
use baton_sdk::{Agent, Leases, Output, Task, Want};
use baton_testkit::wait_for;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::fleet::{Fleet, PATIENCE};
use crate::http::gateway;
use crate::workflows::agent;

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}

async fn pool(fleet: &Fleet, wanted: &str) -> PoolView {
    let request = ListPools { name: Some(name(wanted)), after: None };
    fleet.client.list_pools(&request).await.unwrap().pools.remove(0)
}

async fn wait_until_free(fleet: &Fleet, wanted: &str) {
    wait_for("nothing is held of the pool", PATIENCE, || async { pool(fleet, wanted).await.leases == 0 }).await;
}

/// Two agents with many slots, and more stages than the pool has: never more at a time than it has, and all get done. What
/// waits is asked for again when something is freed.
#[tokio::test(flavor = "multi_thread")]
async fn r3_r4_stages_and_handlers_share_pools_across_agents_and_a_new_leader() {
    let mut fleet = Fleet::services().await;
    fleet.client.set_pool(name("gpu"), Pool::new(PoolKind::Held, 2)).await.unwrap();
    fleet.client.set_pool(name("model:x/calls"), Pool::new(PoolKind::Held, 1)).await.unwrap();
    fleet.client.set_pool(name("tokens"), Pool::new(PoolKind::Consumed, 1000)).await.unwrap();
    let stages: String =
        (0..12).map(|n| format!("- {{name: s{n}, agent_type: work, resources: {{gpu: 1, tokens: 10}}}}\n")).collect();
    let source = Some(format!("name: shared\nstages:\n{stages}"));
    fleet.client.register_workflow(&RegisterWorkflow { source, definition: None }).await.unwrap();
    let (at_work, calling) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut stops = Vec::new();
    for id in ["ann", "bob"] {
        let (at_work, calling) = (Arc::clone(&at_work), Arc::clone(&calling));
        let handler = move |task: Task| {
            let (at_work, calling) = (Arc::clone(&at_work), Arc::clone(&calling));
            async move {
                let workers = at_work.fetch_add(1, Ordering::SeqCst) + 1;
                let guard = task.acquire(Want::of("model:x/calls", 1).wait(PATIENCE)).await.unwrap();
                let callers = calling.fetch_add(1, Ordering::SeqCst) + 1;
                tokio::task::yield_now().await;
                calling.fetch_sub(1, Ordering::SeqCst);
                drop(guard);
                at_work.fetch_sub(1, Ordering::SeqCst);
                Output::json(&json!({ "workers": workers, "callers": callers }))
            }
        };
        stops.push(agent(&fleet, id, "work", 8, handler).await);
    }
    fleet.wait_for_agents(2).await;
    let run = fleet.start_run("shared", &json!({})).await;
    // The leader dies in the middle: the next one knows what is held.
    fleet.kill("resource-manager").await;
    fleet.start_service("resource-manager", Service::ResourceManager);
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    for stage in &view.stages {
        let result: Value = stage.result.as_ref().unwrap().read().unwrap();
        assert!(result["workers"].as_u64().unwrap() <= 2 && result["callers"] == 1, "{result}");
    }
    wait_until_free(&fleet, "gpu").await;
    wait_until_free(&fleet, "model:x/calls").await;
    let tokens = pool(&fleet, "tokens").await;
    assert_eq!((tokens.spent, tokens.in_use), (Amount::from(120), Amount::ZERO));
    stops.iter().for_each(CancellationToken::cancel);
}

/// A guard renews what it holds, gives it back when it is dropped, and knows when it is lost.
#[tokio::test(flavor = "multi_thread")]
async fn r4_a_guard_renews_gives_back_and_knows_when_it_is_lost() {
    let fleet = Fleet::services().await;
    fleet.client.set_pool(name("gpu"), Pool::new(PoolKind::Held, 1)).await.unwrap();
    let leases = Leases::of_client("test", fleet.client.clone());
    let first = leases.acquire(Want::of("gpu", 1).ttl(Duration::from_millis(1500))).await.unwrap();
    let refused = leases.acquire(Want::of("gpu", 1)).await.unwrap_err();
    assert!(refused.is_exhausted(), "{refused}");
    // Longer than it would be held without being renewed; the other one waits all the while.
    let waits = leases.acquire(Want::of("gpu", 1).wait(Duration::from_secs(3))).await.unwrap_err();
    assert!(waits.is_exhausted() && !first.lost().is_cancelled(), "{waits}");
    let (second, ()) = tokio::join!(leases.acquire(Want::of("gpu", 1).wait(PATIENCE)), async { drop(first) });
    let second = second.unwrap();
    // An operator takes it away.
    let held = fleet.client.list_leases(&ListLeases::default()).await.unwrap().leases;
    assert_eq!((held.len(), held[0].lease.0), (1, second.token()));
    let request = baton_protocol::request::Release { lease: held[0].lease, used: [].into() };
    fleet.client.release_lease(&request).await.unwrap();
    tokio::time::timeout(PATIENCE, second.lost().cancelled()).await.unwrap();
    wait_until_free(&fleet, "gpu").await;
    // Who dies without a word holds it until its time is up.
    let take = Takes::from([(name("gpu"), Take::Amount(Amount::from(1)))]);
    let request = Acquire { ttl_ms: 500, ..Acquire::new("dead", take) };
    let dead = fleet.client.acquire(&request).await.unwrap();
    assert!(dead.lease.0 > second.token());
    assert_eq!(fleet.client.acquire(&request).await.unwrap().lease, dead.lease);
    wait_until_free(&fleet, "gpu").await;
    assert_eq!(fleet.client.acquire(&request).await.unwrap_err().code(), Some(Code::StaleLease));
    let unknown = leases.acquire(Want::of("gpo", 1)).await.unwrap_err();
    assert_eq!(unknown.rejection().unwrap().code, Code::UnknownResource);
    assert!(unknown.to_string().contains("did you mean gpu?"), "{unknown}");
}

/// The least loaded of several pools, by the SDK, the command line and over HTTP.
#[tokio::test(flavor = "multi_thread")]
async fn r5_the_least_loaded_of_several_pools_is_acquired() {
    let mut fleet = Fleet::services().await;
    for gpus in ["gpu-1", "gpu-2"] {
        fleet.client.set_pool(name(gpus), Pool::new(PoolKind::Held, 4)).await.unwrap();
    }
    let used = async |fleet: &Fleet| {
        let of = async |gpus: &str| pool(fleet, gpus).await.in_use.to_string();
        [of("gpu-1").await, of("gpu-2").await]
    };
    let leases = Leases::of_client("test", fleet.client.clone());
    let least = || Want::of_least_loaded(["gpu-1", "gpu-2"], 2);
    let one = leases.acquire(least()).await.unwrap();
    assert_eq!(used(&fleet).await, ["2", "0"], "of equal ones the first");
    let two = leases.acquire(least()).await.unwrap();
    assert_eq!(used(&fleet).await, ["2", "2"]);
    one.release().await.unwrap();
    fleet.baton(&["leases", "acquire", "--least-loaded", "gpu-1,gpu-2=1", "--ttl-ms", "600000"]).await;
    assert_eq!(used(&fleet).await, ["1", "2"]);
    let url = gateway(&mut fleet).await;
    let body = json!({ "id": "h", "least_loaded": { "of": ["gpu-2", "gpu-1"], "take": 1 } });
    let granted = reqwest::Client::new().post(format!("{url}/v1/leases")).json(&body).send().await.unwrap();
    assert_eq!(granted.status(), 201);
    assert_eq!(used(&fleet).await, ["2", "2"]);
    two.release().await.unwrap();
}

/// A task that runs asks for more: it is granted, or refused; what it was given ends with the task.
#[tokio::test(flavor = "multi_thread")]
async fn r15_a_running_task_asks_for_more_and_is_granted_or_refused() {
    let fleet = Fleet::services().await;
    let tokens = Pool { size: Some(Amount::from(100)), ..Pool::refilled(1, 24 * 3600 * 1000) };
    fleet.client.set_pool(name("model:x/tokens"), tokens).await.unwrap();
    fleet.client.set_pool(name("gpu"), Pool::new(PoolKind::Held, 2)).await.unwrap();
    let handler = |task: Task| async move {
        let more = task.acquire(Want::of("model:x/tokens", 40)).await.map(|guard| guard.token() > task.lease.0);
        let too_much = task.acquire(Want::of("model:x/tokens", 40)).await.map_err(|error| error.is_exhausted());
        let _gpu = task.acquire(Want::of("gpu", 1)).await.unwrap();
        Output::json(&json!({ "more": more.unwrap(), "too_much": too_much.map(drop).unwrap_err() }))
    };
    let stop = agent(&fleet, "ann", "work", 1, handler).await;
    let source = "name: asks\nstages: [{name: a, agent_type: work, resources: {\"model:x/tokens\": 50, gpu: 1}}]\n";
    let request = RegisterWorkflow { source: Some(source.to_owned()), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
    let run = fleet.start_run("asks", &json!({})).await;
    let view = fleet.wait_for_end(run).await;
    let result: Value = view.stages[0].result.as_ref().expect("it succeeds").read().unwrap();
    assert_eq!(result, json!({ "more": true, "too_much": true }), "{view:?}");
    wait_until_free(&fleet, "gpu").await;
    stop.cancel();
}

/// Readers share, a writer is alone; an election is a lock, and its term the fencing token.
#[tokio::test(flavor = "multi_thread")]
async fn r6_r7_locks_and_elections() {
    let fleet = Fleet::services().await;
    for lock in ["report.md", "editors"] {
        fleet.client.set_pool(name(lock), Pool::lock()).await.unwrap();
    }
    let leases = Leases::of_client("test", fleet.client.clone());
    let (one, two) = (leases.acquire(Want::shared("report.md")).await, leases.acquire(Want::shared("report.md")).await);
    assert!(leases.acquire(Want::exclusive("report.md")).await.unwrap_err().is_exhausted());
    let writer = leases.acquire(Want::exclusive("report.md").wait(PATIENCE));
    let (writer, ()) = tokio::join!(writer, async { drop((one.unwrap(), two.unwrap())) });
    writer.unwrap().release().await.unwrap();
    wait_until_free(&fleet, "report.md").await;

    let settings = ConnectSettings::server(fleet.nats.client_url());
    let mut agents = Vec::new();
    for id in ["ann", "bob"] {
        let stop = CancellationToken::new();
        let agent = Agent::builder(id, "edit").settings(settings.clone()).connect().await.unwrap();
        let (leases, until) = (agent.leases(), stop.clone());
        let handler = |_: Task| async { Output::json(&json!({})) };
        let done = tokio::spawn(async move { agent.run_until(handler, async move { until.cancelled().await }).await });
        agents.push((leases, stop, done));
    }
    fleet.wait_for_agents(2).await;
    let campaign = |leases: Leases| async move { leases.campaign("editors", PATIENCE, Duration::from_secs(30)).await };
    let [(ann, stop_ann, _), (bob, _, _)] = &agents[..] else { panic!("two agents") };
    let first = campaign(ann.clone()).await.unwrap();
    let leader = fleet.client.holder_of(&name("editors")).await.unwrap().unwrap();
    assert_eq!((leader.lease.0, leader.holder.to_string().as_str()), (first.token(), "agent ann"));
    // The leader leaves: the other one follows, in a greater term.
    let (second, ()) = tokio::join!(campaign(bob.clone()), async { stop_ann.cancel() });
    let second = second.unwrap();
    assert!(second.token() > first.token());
    second.release().await.unwrap();
    assert!(fleet.client.holder_of(&name("editors")).await.unwrap().is_none());
    for (_, stop, done) in agents {
        stop.cancel();
        done.await.unwrap().unwrap();
    }
}

/// Declared in the settings, seen and used from the command line and over HTTP.
#[tokio::test(flavor = "multi_thread")]
async fn r3_r6_pools_from_the_command_line_and_over_http() {
    let mut fleet = Fleet::services().await;
    let set = ["resources", "set", "model:x/tokens", "--kind", "refilled", "--size", "100", "--every-ms", "60000"];
    fleet.baton(&set).await;
    fleet.baton(&["resources", "set", "report.md"]).await;
    let acquire = ["leases", "acquire", "model:x/tokens=60", "report.md=exclusive", "--ttl-ms", "600000"];
    let lease = fleet.baton(&acquire).await;
    let (code, _, stderr) = fleet.try_baton(&["leases", "acquire", "model:x/tokens=60"]).await;
    assert!(code == Some(5) && stderr.contains("model:x/tokens"), "{stderr}");
    let shown = fleet.baton(&["locks"]).await;
    assert!(
        shown.contains("report.md") && shown.contains("exclusive") && shown.contains("client baton-cli"),
        "{shown}"
    );
    let shown = fleet.baton(&["resources"]).await;
    assert!(shown.contains("100 in 60000 ms"), "{shown}");
    let shown = fleet.baton(&["leases"]).await;
    assert!(shown.contains(lease.trim()), "{shown}");
    fleet.baton(&["leases", "renew", lease.trim()]).await;
    fleet.baton(&["leases", "release", lease.trim()]).await;
    fleet.baton(&["resources", "remove", "report.md"]).await;

    let url = gateway(&mut fleet).await;
    let http = reqwest::Client::new();
    let put = http.put(format!("{url}/v1/pools/a%2Fb")).json(&json!({ "kind": "held", "size": 1 })).send();
    assert_eq!(put.await.unwrap().status(), 200);
    let acquire = |id: &str, wait_ms: u64| {
        let body = json!({ "id": id, "take": { "a/b": 1 }, "wait_ms": wait_ms });
        http.post(format!("{url}/v1/leases")).json(&body).send()
    };
    let granted = acquire("one", 0).await.unwrap();
    assert_eq!(granted.status(), 201);
    let lease = granted.json::<Value>().await.unwrap()["granted"]["lease"].as_u64().unwrap();
    assert_eq!(acquire("two", 0).await.unwrap().status(), 503);
    assert_eq!(acquire("two", 5000).await.unwrap().status(), 202);
    let renew = http.post(format!("{url}/v1/leases/{lease}/renew")).json(&json!({ "ttl_ms": 60000 })).send();
    assert_eq!(renew.await.unwrap().status(), 200);
    assert_eq!(http.post(format!("{url}/v1/leases/{lease}/release")).send().await.unwrap().status(), 200);
    let list: Value = http.get(format!("{url}/v1/pools?name=a/b")).send().await.unwrap().json().await.unwrap();
    assert_eq!(list["pools"][0]["pool"]["size"], 1, "{list}");
    // What waited was served: a pool that is in use stays.
    let remove = http.delete(format!("{url}/v1/pools/a%2Fb")).send().await.unwrap();
    assert_eq!(remove.status(), 409);
    assert_eq!(remove.json::<Value>().await.unwrap()["code"], "pool_in_use");
}
