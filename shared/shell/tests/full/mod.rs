//! A log that is full, against a real nats-server: whoever asks is told, nothing is half done, and it heals by itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Running, count, replay, set};
use async_nats::jetstream::{self, stream};
use baton_client::{Client, ClientError, ConnectSettings};
use baton_protocol::request::{Role, Strategy};
use baton_protocol::subject::{self, Shard};
use baton_protocol::{Code, Rejection};
use baton_shell::Settings;
use baton_testkit::{NatsOptions, NatsServer, wait_for};
use futures::future::join_all;

const SOON: Duration = Duration::from_secs(20);
/// How soon it must be well again.
const HEALED: Duration = Duration::from_secs(10);

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.leader.ttl_ms = 1000;
    settings
}

async fn client(nats: &NatsServer) -> Client {
    Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap().with_deadline(Duration::ZERO)
}

/// Several ask for records at a time, each until it is refused; gives how many were stored, and a refusal.
async fn fill(client: &Client) -> (u64, Rejection) {
    let fill = async || {
        for stored in 0..10_000 {
            match client.set_strategy(Strategy::RoundRobin).await {
                Ok(_) => {}
                Err(ClientError::Rejected(rejection)) => return (stored, rejection),
                Err(error) => panic!("neither stored nor refused: {error}"),
            }
        }
        panic!("it is never full");
    };
    let mut all = join_all((0..8).map(|_| fill())).await;
    let stored = all.iter().map(|(stored, _)| stored).sum();
    (stored, all.remove(0).1)
}

/// Several ask, and each is refused, time and again, and quickly, also while sessions come and go. Where a commit of several
/// records found no room, a smaller one still may; gives how many more were stored so. Only a request that is on its way in
/// the moment in which the instance begins to take requests again may stay without an answer.
async fn refuses(client: &Client) -> u64 {
    let ask = async || {
        let (mut stored, mut refused, mut silent) = (0, 0, 0);
        while refused < 100 {
            let since = Instant::now();
            match client.set_strategy(Strategy::RoundRobin).await {
                Ok(_) => (stored, refused) = (stored + 1, 0),
                Err(ClientError::Timeout { .. }) => silent += 1,
                Err(error) => {
                    assert_eq!(error.code(), Some(Code::Unavailable), "{error}");
                    assert!(error.to_string().contains("the log is full"), "{error}");
                    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
                    refused += 1;
                }
            }
            assert!(stored < 50, "it is not full");
            assert!(silent < 3, "nobody answers");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stored
    };
    join_all((0..8).map(|_| ask())).await.iter().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_refuses_and_heals_when_it_may_hold_more() {
    let nats = NatsServer::start().await;
    let mut small = settings();
    small.log.max_bytes = 20_000;
    let running = Running::start(&nats.client_url(), &small);
    running.is(Role::Leading).await;
    let client = client(&nats).await;
    let (mut stored, refused) = fill(&client).await;
    assert_eq!(refused.code, Code::Unavailable);
    assert!(refused.message.contains("the log is full") && refused.message.contains("maximum bytes"), "{refused}");
    assert!(refused.retry_after_ms.is_some());
    stored += refuses(&client).await;
    // It says so of itself, once an instance. If there was room for the records of a new leader, it has to be asked again.
    let more = AtomicU64::new(0);
    wait_for("it says that its log is full", SOON, || async {
        if client.set_strategy(Strategy::RoundRobin).await.is_ok() {
            more.fetch_add(1, Ordering::Relaxed);
        }
        let statuses = client.statuses(baton_protocol::Service::Optimizer).await.unwrap();
        assert_eq!(statuses.len(), 1, "{statuses:?}");
        let metrics = running.metrics.render();
        assert!(metrics.contains("baton_commits_refused_total"), "{metrics}");
        statuses[0].full.as_ref().is_some_and(|why| why.contains("maximum bytes"))
            && metrics.lines().any(|line| line.starts_with("baton_log_full{") && line.ends_with(" 1"))
    })
    .await;
    stored += more.into_inner();
    // A standby that comes now does not take requests either.
    let standby = Running::start(&nats.client_url(), &small);
    standby.is(Role::Following).await;
    stored += refuses(&client).await;
    standby.stop().await;

    // The log never forgets, so room is made by allowing more.
    let js = jetstream::new(client.nats().clone());
    let stream = js.get_stream(subject::log_stream(Shard(0))).await.unwrap();
    let config = stream::Config { max_bytes: 1_000_000, ..stream.cached_info().config.clone() };
    js.update_stream(&config).await.unwrap();
    let since = Instant::now();
    let patient = client.clone().with_deadline(HEALED);
    set(&patient).await;
    println!("well again after {:.1?}", since.elapsed());
    assert_eq!(running.instance.status().full, None);
    assert_eq!(count(&patient).await, stored + 1, "what was refused did nothing");
    assert_eq!(replay(&client).await.count, stored + 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_refuses_and_heals_when_something_else_is_purged() {
    // Baton reserves 64 MiB of it for what it sets aside.
    let store = 80 * 1024 * 1024;
    let nats = NatsServer::start_with(NatsOptions { max_file_store: Some(store), ..NatsOptions::default() }).await;
    let first = Running::start(&nats.client_url(), &settings());
    first.is(Role::Leading).await;
    let second = Running::start(&nats.client_url(), &settings());
    second.is(Role::Following).await;
    let client = client(&nats).await;
    for _ in 0..5 {
        set(&client).await;
    }
    // Something that is not Baton's takes all the room there is.
    let js = jetstream::new(nats.connect().await);
    let ballast = stream::Config { name: "BALLAST".into(), subjects: vec!["ballast".into()], ..Default::default() };
    js.create_stream(ballast).await.unwrap();
    for size in [1_000_000, 10_000, 100, 1] {
        while let Ok(sent) = js.publish("ballast", vec![b'x'; size].into()).await
            && sent.await.is_ok()
        {}
    }
    let (mut stored, refused) = fill(&client).await;
    assert!(refused.message.contains("the log is full"), "{refused}");
    stored += refuses(&client).await;
    // No leader's entry can be stored either: after its time nobody leads, and whoever asks is still told.
    for instance in [&first, &second] {
        wait_for("it knows", SOON, || async { instance.instance.status().full.is_some() }).await;
    }
    stored += refuses(&client).await;

    js.get_stream("BALLAST").await.unwrap().purge().await.unwrap();
    let since = Instant::now();
    let patient = client.clone().with_deadline(HEALED);
    set(&patient).await;
    println!("well again after {:.1?}", since.elapsed());
    assert_eq!(count(&patient).await, 5 + stored + 1, "what was refused did nothing");
    wait_for("both know", SOON, || async {
        first.instance.status().full.is_none() && second.instance.status().full.is_none()
    })
    .await;
    // Live state is the log's.
    assert_eq!(replay(&client).await.count, 5 + stored + 1);
    for _ in 0..50 {
        set(&client).await;
    }
    assert_eq!(replay(&client).await.count, count(&client).await);
    first.stop().await;
    second.stop().await;
}
