//! A load test to run by hand: ten times as many starts as the agents can do.
//!
//! `cargo run --release -p baton-tests --example overload -- [SECONDS] [TIMES]`
//!
//! It starts a nats-server, the three services as processes and an agent, measures how many runs a second end when there is
//! always just enough to do, then asks for TIMES as many for SECONDS, and tells how quickly the refusals came, how many
//! runs still ended, and how soon all was as before. The line `(a ping)` is what the machine itself took at that time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use baton_client::{Client, ClientError, ConnectSettings};
use baton_protocol::request::{ListRuns, RegisterWorkflow, Role, StartRun};
use baton_protocol::run::RunStatus;
use baton_protocol::{Code, Json, Service, WorkflowName, subject};
use baton_sdk::{Agent, Output, Task};
use baton_testkit::{NatsServer, Process, baton_binary, wait_for};
use serde_json::json;
use tokio::sync::mpsc;

/// How many tasks the agent does at a time, and how long each takes.
const SLOTS: u32 = 16;
const TASK: Duration = Duration::from_millis(150);
/// How many runs may be live.
const LIMIT: usize = 200;
/// How long it is measured what can be done.
const PEAK: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);

/// How one start was answered.
enum Answer {
    Accepted,
    Overloaded,
    Failed(ClientError),
}

fn start() -> StartRun {
    StartRun::new(WorkflowName::new("load").expect("a name"), Json::of(&json!({ "topic": "load" })).expect("JSON"))
}

async fn ask(client: &Client) -> Answer {
    match client.start_run(start()).await {
        Ok(_) => Answer::Accepted,
        Err(error) if error.code() == Some(Code::Overloaded) => Answer::Overloaded,
        Err(error) => Answer::Failed(error),
    }
}

async fn ended(client: &Client) -> u64 {
    let list = client.list_runs(&ListRuns { limit: Some(1), ..ListRuns::default() }).await.expect("a list");
    list.counts.get(&RunStatus::Succeeded).copied().unwrap_or(0)
}

async fn live(client: &Client) -> u64 {
    let list = client.list_runs(&ListRuns { limit: Some(1), ..ListRuns::default() }).await.expect("a list");
    list.counts.get(&RunStatus::Running).copied().unwrap_or(0)
}

/// A process's memory, in MB.
fn memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn part(sorted: &[Duration], part: f64) -> Duration {
    let index = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let slow = times.iter().filter(|time| **time > Duration::from_millis(50)).count();
    println!(
        "{what:<12} {:>8}  p50 {:>9.2?}  p99 {:>9.2?}  p99.9 {:>9.2?}  max {:>9.2?}  over 50 ms: {slow}",
        times.len(),
        part(&times, 0.5),
        part(&times, 0.99),
        part(&times, 0.999),
        times.last().copied().unwrap_or_default()
    );
}

/// What the machine itself adds at that time: a task of the same process as the workflow-manager's session, that has
/// nothing to do, is asked again and again.
async fn noise(client: Client, for_long: Duration) -> Vec<Duration> {
    let statuses = client.statuses(Service::WorkflowManager).await.expect("statuses");
    let subject = subject::ping(Service::WorkflowManager, &statuses[0].instance);
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < for_long {
        let since = Instant::now();
        if client.nats().request(subject.clone(), "".into()).await.is_ok() {
            times.push(since.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    times
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds: u64 = arguments.next().map_or(30, |text| text.parse().expect("SECONDS"));
    let times: f64 = arguments.next().map_or(10.0, |text| text.parse().expect("TIMES"));

    let nats = NatsServer::start().await;
    let settings = ConnectSettings::server(nats.client_url());
    let services = Service::WRITERS.map(|service| {
        Process::command(baton_binary())
            .args(["service", service.as_str(), "--server", &nats.client_url()])
            .env("BATON_WORKFLOWS__MAX_LIVE_RUNS", LIMIT.to_string())
            .env("BATON_TELEMETRY__LOG_FILTER", "warn")
            .start()
    });
    let client = Client::connect(&settings).await.expect("a connection").with_deadline(PATIENCE);
    for service in Service::WRITERS {
        wait_for(&format!("a leading {service}"), PATIENCE, || async {
            let statuses = client.statuses(service).await.unwrap_or_default();
            statuses.iter().any(|status| status.role == Role::Leading)
        })
        .await;
    }
    let source = Some("name: load\nstages:\n- {name: a, agent_type: load}\n".to_owned());
    client.register_workflow(&RegisterWorkflow { source, definition: None }).await.expect("registered");
    let agent =
        Agent::builder("load-1", "load").slots(SLOTS).settings(settings.clone()).connect().await.expect("an agent");
    tokio::spawn(agent.run(|_: Task| async {
        tokio::time::sleep(TASK).await;
        Output::json(&json!({}))
    }));

    // Always a few more runs than the agent has slots.
    let (before, since) = (ended(&client).await, Instant::now());
    while since.elapsed() < PEAK {
        for _ in live(&client).await..u64::from(SLOTS) * 3 {
            if let Answer::Failed(error) = ask(&client).await {
                println!("failed: {error}");
            }
        }
    }
    let peak = (ended(&client).await - before) as f64 / since.elapsed().as_secs_f64();
    println!("peak         {peak:.0} runs/s, {LIMIT} runs may be live");

    // Ten times as many, come what may, each asked for once.
    let once = Client::connect(&settings).await.expect("a connection").with_deadline(Duration::ZERO);
    let once = once.waits_when_refused(false);
    let rate = peak * times;
    let (answers, mut answered) = mpsc::unbounded_channel();
    let (before, since) = (ended(&client).await, Instant::now());
    let under_way = Arc::new(AtomicU64::new(0));
    let (mut sent, mut most_memory) = (0u64, 0);
    let noise = tokio::spawn(noise(once.clone(), Duration::from_secs(seconds)));
    while since.elapsed() < Duration::from_secs(seconds) {
        let due = (since.elapsed().as_secs_f64() * rate) as u64;
        for _ in sent..due {
            let (once, answers, under_way) = (once.clone(), answers.clone(), Arc::clone(&under_way));
            under_way.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let since = Instant::now();
                let answer = ask(&once).await;
                let _ = answers.send((answer, since.elapsed()));
                under_way.fetch_sub(1, Ordering::Relaxed);
            });
        }
        sent = due;
        most_memory = most_memory.max(memory(services[0].pid().unwrap_or_default()));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let goodput = (ended(&client).await - before) as f64 / since.elapsed().as_secs_f64();
    let calm = Instant::now();
    drop(answers);
    let (mut accepted, mut refused, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    while let Some((answer, time)) = answered.recv().await {
        match answer {
            Answer::Accepted => accepted.push(time),
            Answer::Overloaded => refused.push(time),
            Answer::Failed(error) => {
                if failed.is_empty() {
                    println!("failed: {error}");
                }
                failed.push(time);
            }
        }
    }
    println!("asked for    {sent} in {seconds} s, {rate:.0}/s; the workflow-manager took at most {most_memory} MB");
    tell("(a ping)", noise.await.expect("pings"));
    tell("accepted", accepted);
    tell("overloaded", refused);
    tell("no answer", failed);
    println!("goodput      {goodput:.0} runs/s, {:.0} % of peak", goodput / peak * 100.0);
    while live(&client).await > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("calm         all that was accepted has ended after {:.1?}", calm.elapsed());
}
