//! The log read once for all services of a process: nothing is lost or taken twice when the feed comes, breaks or lags.

use std::time::{Duration, Instant};

use super::{Running, count};
use async_nats::jetstream;
use baton_client::{Client, ConnectSettings};
use baton_protocol::RunId;
use baton_protocol::Service;
use baton_protocol::record::{Cause, Commit, FORMAT, RunFinished, Turn, WorkflowRecord};
use baton_protocol::request::Role;
use baton_protocol::run::RunStatus;
use baton_protocol::subject::{self, Shard};
use baton_shell::{Feed, Settings};
use baton_testkit::{NatsServer, Proxy, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// Writes what a workflow-manager could have written, a record a commit.
struct Writer {
    js: jetstream::Context,
    written: u64,
}

impl Writer {
    async fn write(&mut self, commits: u64) {
        for _ in 0..commits {
            let record = RunFinished { run: RunId::derive(1, 1), status: RunStatus::Succeeded, reason: None };
            let records = vec![WorkflowRecord::RunFinished(record)];
            let turns = vec![Turn { at: 1, seen: 0, cause: Cause::Request("run.start".into()), records }];
            let (instance, first) = ("w".into(), self.written + 1);
            let commit = Commit { format: FORMAT, instance, term: 1, first, handled: 0, turns };
            let subject = subject::log(Shard(0), Service::WorkflowManager);
            let sent = self.js.publish(subject, serde_json::to_vec(&commit).unwrap().into()).await.unwrap();
            sent.await.unwrap();
            self.written += 1;
        }
    }

    /// Every commit is followed by one record of the service that observes it.
    async fn all_are_taken(&self, client: &Client) {
        wait_for("all commits have been taken", SOON, || async { count(client).await >= self.written }).await;
        assert_eq!(count(client).await, self.written, "none is taken twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_feed_brings_is_taken_once_also_when_it_breaks_or_stalls() {
    let nats = NatsServer::start().await;
    let link = Proxy::start(([127, 0, 0, 1], nats.port()).into()).await;
    let (feed, reading) = Feed::new(ConnectSettings::server(link.url()));
    let reading = tokio::spawn(reading);
    let running = Running::start_with(&nats.client_url(), &Settings::default(), Some(feed));
    running.is(Role::Leading).await;
    let client = Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap();
    let mut writer = Writer { js: jetstream::new(client.nats().clone()), written: 0 };
    let is_joined = || async { link.connections() > 0 };
    wait_for("the feed is there", SOON, is_joined).await;
    writer.write(200).await;
    writer.all_are_taken(&client).await;

    // It breaks while there is much to read, and comes back.
    writer.write(50).await;
    link.cut().await;
    writer.write(50).await;
    writer.all_are_taken(&client).await;
    link.heal().await;
    wait_for("the feed is back", SOON, is_joined).await;
    // What is written from here on is brought by the feed alone, once it has brought what the other consumer has, too. Its
    // silence has to be noticed first, which takes seconds.
    let begin = Instant::now();
    loop {
        writer.write(1).await;
        writer.all_are_taken(&client).await;
        link.stall();
        let since = Instant::now();
        writer.write(1).await;
        writer.all_are_taken(&client).await;
        link.heal().await;
        if since.elapsed() > Duration::from_secs(1) {
            break;
        }
        assert!(begin.elapsed() < SOON, "the service goes on reading by itself");
    }
    writer.write(50).await;
    writer.all_are_taken(&client).await;

    running.stop().await;
    tokio::time::timeout(SOON, reading).await.expect("nobody reads, so reading ends").unwrap();
}
