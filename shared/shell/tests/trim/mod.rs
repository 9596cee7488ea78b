//! A log whose beginning is gone: a service starts from a snapshot, or not at all, and who lags behind begins anew.

use std::time::{Duration, Instant};

use super::{Running, count, set};
use async_nats::jetstream::object_store::{ObjectMetadata, ObjectStore};
use async_nats::jetstream::{self, stream};
use baton_client::{Client, ConnectSettings};
use baton_protocol::Service;
use baton_protocol::request::Role;
use baton_protocol::subject::{self, Shard};
use baton_shell::Settings;
use baton_testkit::{NatsServer, Proxy, wait_for};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

/// The names of a service's snapshots.
const NAMES: [&str; 3] = ["optimizer", "optimizer.1", "optimizer.2"];

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.log.trim = true;
    settings.log.snapshot_records = 5;
    settings.log.snapshot_pause_ms = 0;
    settings.log.trim_settled_ms = 0;
    settings
}

/// What the workflow-manager could have written: commits without records. The service answers each with one.
async fn write(js: &jetstream::Context, commits: u64, bytes: usize) {
    for _ in 0..commits {
        let commit = serde_json::json!({
            "format": 1, "instance": "w".repeat(bytes), "term": 1, "first": 1, "handled": 0, "turns": []
        });
        let subject = subject::log(Shard(0), Service::WorkflowManager);
        js.publish(subject, commit.to_string().into()).await.unwrap().await.unwrap();
    }
}

async fn store(js: &jetstream::Context) -> ObjectStore {
    js.get_object_store(subject::SNAPSHOTS_BUCKET).await.unwrap()
}

/// What is noted of each snapshot, the oldest first, with its name.
async fn notes(store: &ObjectStore) -> Vec<(u64, Value, &'static str)> {
    let mut notes = Vec::new();
    for name in NAMES {
        let Ok(info) = store.info(name).await else { continue };
        let Some(note) = info.metadata.get("baton-snapshot") else { continue };
        let note: Value = serde_json::from_str(note).unwrap();
        notes.push((note["position"].as_u64().unwrap(), note, name));
    }
    notes.sort_by_key(|(position, ..)| *position);
    notes
}

/// Writes until three snapshots are kept, all of them of what follows that message, and all is read; how many commits that were.
async fn write_until_kept(client: &Client, js: &jetstream::Context, after: u64) -> u64 {
    let (kept, end, before) = (store(js).await, Instant::now() + SOON, count(client).await);
    let mut written = 0;
    loop {
        write(js, 5, 1).await;
        written += 5;
        let notes = notes(&kept).await;
        if notes.len() == 3 && notes[0].0 > after {
            break;
        }
        assert!(Instant::now() < end, "in vain: {notes:?}");
    }
    wait_for("all is read", SOON, || async { count(client).await == before + written }).await;
    written
}

async fn log(js: &jetstream::Context) -> stream::Stream {
    js.get_stream(subject::log_stream(Shard(0))).await.unwrap()
}

/// Removes what the oldest snapshot does not need.
async fn trim(js: &jetstream::Context) -> u64 {
    let oldest = notes(&store(js).await).await[0].0;
    log(js).await.purge().sequence(oldest).await.unwrap();
    assert_eq!(log(js).await.cached_info().state.first_sequence, oldest);
    oldest
}

/// Overwrites a snapshot, as if not all of it were there.
async fn tear(store: &ObjectStore, name: &str) {
    let metadata = store.info(name).await.unwrap().metadata;
    let object = ObjectMetadata { name: name.to_owned(), metadata, ..ObjectMetadata::default() };
    store.put(object, &mut b"{\"log\": \"torn".as_slice()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trimmed_log_is_started_from_any_snapshot_and_never_from_nothing() {
    let nats = NatsServer::start().await;
    let settings = settings();
    let running = Running::start(&nats.client_url(), &settings);
    running.is(Role::Leading).await;
    let client = Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap();
    let js = jetstream::new(client.nats().clone());
    let kept = store(&js).await;
    let written = write_until_kept(&client, &js, 0).await;
    running.task.abort();
    let _ = running.task.await;
    let first = trim(&js).await;
    assert!(first > 1);
    // What is kept from now on is not to be replaced.
    let mut quiet = settings.clone();
    quiet.log.snapshot_records = 20_000;
    let names: Vec<_> = notes(&kept).await.into_iter().map(|(.., name)| name).collect();
    for broken in 0..3 {
        let running = Running::start(&nats.client_url(), &quiet);
        running.is(Role::Leading).await;
        assert_eq!(count(&client).await, written, "{broken} snapshots are broken");
        running.task.abort();
        let _ = running.task.await;
        // The newest that is left.
        tear(&kept, names[2 - broken]).await;
    }
    let before = log(&js).await.cached_info().state.last_sequence;
    let refused = async |settings: &Settings| {
        Running::start(&nats.client_url(), settings).task.await.unwrap().unwrap_err().to_string()
    };
    let error = refused(&quiet).await;
    assert!(error.contains(&format!("begins with message {first}")), "{error}");
    assert!(error.contains("the optimizer can use none") && error.contains("It does not start"), "{error}");
    assert!(NAMES.iter().all(|name| error.contains(&format!("{name} can not be read"))), "{error}");
    for name in NAMES {
        kept.delete(name).await.unwrap();
    }
    // Also where it is not to be trimmed any further.
    quiet.log.trim = false;
    let error = refused(&quiet).await;
    assert!(error.contains("the optimizer can use none (there is none)"), "{error}");
    assert_eq!(log(&js).await.cached_info().state.last_sequence, before, "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_from_before_the_logs_beginning_is_not_used() {
    let nats = NatsServer::start().await;
    let running = Running::start(&nats.client_url(), &settings());
    running.is(Role::Leading).await;
    let client = Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap();
    let js = jetstream::new(client.nats().clone());
    write_until_kept(&client, &js, 0).await;
    running.task.abort();
    let _ = running.task.await;
    let last = log(&js).await.cached_info().state.last_sequence;
    log(&js).await.purge().sequence(last).await.unwrap();
    let error = Running::start(&nats.client_url(), &settings()).task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("would read on after message") && error.contains(&format!("begins with {last}")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_lags_behind_what_is_removed_loads_again() {
    let nats = NatsServer::start().await;
    let link = Proxy::start(([127, 0, 0, 1], nats.port()).into()).await;
    let settings = settings();
    let leader = Running::start(&nats.client_url(), &settings);
    leader.is(Role::Leading).await;
    let client = Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap();
    let js = jetstream::new(client.nats().clone());
    let follower = Running::start(&link.url(), &settings);
    follower.is(Role::Following).await;
    link.stall();
    // More than the broker sends before it hears that something has been read.
    write(&js, 100, 60_000).await;
    let end = log(&js).await.cached_info().state.last_sequence;
    let written = 100 + write_until_kept(&client, &js, end).await;
    let before = follower.instance.status().read;
    assert!(trim(&js).await > before + 1, "{before}");
    link.heal().await;
    wait_for("the follower has all", SOON, || async {
        let status = follower.instance.status();
        status.role == Role::Following && status.number == written
    })
    .await;
    leader.task.abort();
    follower.is(Role::Leading).await;
    set(&client).await;
    assert_eq!(count(&client).await, written + 1);
    follower.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_log_that_is_to_be_trimmed_can_be() {
    let nats = NatsServer::start().await;
    let running = Running::start(&nats.client_url(), &Settings::default());
    running.is(Role::Leading).await;
    running.stop().await;
    let js = jetstream::new(nats.connect().await);
    assert!(log(&js).await.cached_info().config.deny_purge);
    log(&js).await.purge().sequence(2).await.unwrap_err();
    let error = Running::start(&nats.client_url(), &settings()).task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("log.trim is on") && error.contains("Turn log.trim off"), "{error}");
    js.delete_stream(subject::log_stream(Shard(0))).await.unwrap();
    for settings in [settings(), Settings::default()] {
        let running = Running::start(&nats.client_url(), &settings);
        running.is(Role::Leading).await;
        assert!(!log(&js).await.cached_info().config.deny_purge);
        running.stop().await;
    }
}
