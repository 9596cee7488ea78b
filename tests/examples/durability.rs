//! What durability costs, to run by hand: the two kinds side by side on this machine's disk.
//!
//! `cargo run -p baton-tests --example durability -- [ROUNDS]`
//!
//! Each round starts a nats-server of each kind on a fresh directory in `TMPDIR` (on a disk, not in memory), appends
//! commits as the shell does (one under way at a time, behind the fence), then starts the services and the stock agents
//! and has them write articles, one after another. The kinds take turns, so that a disturbance meets both.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::message::PublishMessage;
use baton_client::{Client, ConnectSettings};
use baton_protocol::request::{AgentStatus, ListAgents, Role, StartRun};
use baton_protocol::run::RunStatus;
use baton_protocol::{Json, Service, WorkflowName};
use baton_testkit::{Durability, NatsOptions, NatsServer, Process, baton_binary, wait_for};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);
/// How long commits of each size are appended.
const APPENDING: Duration = Duration::from_secs(2);
const SIZES: [usize; 3] = [300, 4000, 60_000];
const ARTICLES: usize = 10;
const KINDS: [(&str, Durability); 2] = [("process", Durability::Process), ("power", Durability::Power)];

type Times = BTreeMap<(String, &'static str), Vec<Duration>>;

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn server(durability: Durability) -> NatsServer {
    NatsServer::start_with(NatsOptions { durability, ..NatsOptions::default() }).await
}

/// Appends commits of a size for a while; gives how long each took.
async fn commits(nats: &NatsServer, size: usize) -> Vec<Duration> {
    let js = jetstream::new(nats.connect().await);
    let name = format!("COMMITS_{size}");
    let subject = format!("commits.{size}");
    let stream = jetstream::stream::Config { name, subjects: vec![subject.clone()], ..Default::default() };
    js.create_stream(stream).await.expect("a stream");
    let (payload, begin) = (bytes(size), Instant::now());
    let (mut fence, mut times) = (0, Vec::new());
    while begin.elapsed() < APPENDING {
        let since = Instant::now();
        let message = PublishMessage::build().payload(payload.clone().into()).expected_last_subject_sequence(fence);
        let sent = js.send_publish(subject.clone(), message).await.expect("sent");
        fence = sent.await.expect("stored").sequence;
        times.push(since.elapsed());
    }
    times
}

fn bytes(size: usize) -> Vec<u8> {
    b"{\"a\": \"record\"}".iter().copied().cycle().take(size).collect()
}

/// Has articles written, one after another; gives how long each took, as the log tells it.
async fn articles(nats: &NatsServer) -> Vec<Duration> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let docs = docs.to_str().expect("a path");
    let url = nats.client_url();
    let start = |arguments: &[&str]| {
        let arguments = arguments.iter().copied().chain(["--server", &url]);
        Process::command(baton_binary()).args(arguments).env("BATON_TELEMETRY__LOG_FILTER", "warn").start()
    };
    let _services = Service::WRITERS.map(|service| start(&["service", service.as_str()]));
    let roles = ["research", "writing", "editing", "verification"];
    let _agents = roles.map(|role| start(&["agent", "stock", role, "--sources", docs]));
    let client = Client::connect(&ConnectSettings::server(&url)).await.expect("a client").with_deadline(PATIENCE);
    for service in Service::WRITERS {
        wait_for("a leader", PATIENCE, || async {
            client.statuses(service).await.is_ok_and(|all| all.iter().any(|status| status.role == Role::Leading))
        })
        .await;
    }
    wait_for("the agents", PATIENCE, || async {
        let list = client.list_agents(&ListAgents::default()).await;
        list.is_ok_and(|list| list.agents.iter().filter(|agent| agent.status == AgentStatus::Idle).count() == 4)
    })
    .await;
    let mut times = Vec::new();
    // The first one warms up.
    for article in 0..=ARTICLES {
        let request = StartRun::new(
            WorkflowName::new("article").expect("a name"),
            Json::of(&json!({ "topic": "leases of agents", "sources": docs })).expect("JSON"),
        );
        let run = client.start_run(request).await.expect("started").run;
        let view = wait_for("the article", PATIENCE, || async {
            client.get_run(run).await.ok().filter(|view| view.status.is_end())
        })
        .await;
        assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
        if article > 0 {
            times.push(Duration::from_millis(view.ended_at.unwrap_or_default() - view.started_at));
        }
    }
    times
}

#[tokio::main]
async fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(3, |text| text.parse().expect("ROUNDS"));
    let mut times = Times::new();
    for round in 1..=rounds {
        for (kind, durability) in KINDS {
            eprintln!("round {round} of {rounds}: {kind}");
            let nats = server(durability).await;
            for size in SIZES {
                let label = format!("commit of {size:>5} B");
                times.entry((label, kind)).or_default().extend(commits(&nats, size).await);
            }
            let nats = server(durability).await;
            times.entry(("the article".to_owned(), kind)).or_default().extend(articles(&nats).await);
        }
    }
    println!(
        "| what, one at a time | `process`: p50 | a second | `power`: p50 | a second | ratio |\n|---|---|---|---|---|---|"
    );
    let labels: Vec<String> = times.keys().map(|(label, _)| label.clone()).collect();
    for label in labels.chunks(2).map(|pair| &pair[0]) {
        let [process, power] = KINDS.map(|(kind, _)| {
            let times = times.get_mut(&(label.clone(), kind)).expect("measured");
            let mean = times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap_or(u32::MAX);
            (median(times), 1.0 / mean.as_secs_f64())
        });
        println!(
            "| {label} | {:.2?} | {:.0} | {:.2?} | {:.0} | {:.1} |",
            process.0,
            process.1,
            power.0,
            power.1,
            power.0.as_secs_f64() / process.0.as_secs_f64()
        );
    }
}
