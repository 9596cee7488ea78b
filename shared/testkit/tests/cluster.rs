//! The cluster, with nothing of Baton.

use std::time::Duration;

use async_nats::jetstream::{self, Context, stream};
use baton_testkit::{Isolation, NatsCluster, wait_for};
use futures::FutureExt;

const SOON: Duration = Duration::from_secs(60);

/// A context that does not wait long for what gets lost.
async fn context(cluster: &NatsCluster, node: usize) -> Context {
    let second = Duration::from_secs(1);
    jetstream::ContextBuilder::new().timeout(second).ack_timeout(second).build(cluster.connect_to(node).await)
}

async fn create(context: &Context) {
    let config = stream::Config { name: "log".to_owned(), num_replicas: 3, ..stream::Config::default() };
    wait_for("a stream", SOON, || context.create_stream(config.clone()).map(|made| made.map(drop))).await;
}

async fn publish(context: &Context, word: &str) {
    wait_for("an acknowledgement", SOON, || async {
        let sent = context.publish("log", word.to_owned().into()).await.map_err(|error| error.to_string())?;
        sent.await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

/// The distinct words in the log. A server that has just come back may refuse to tell for a moment.
async fn words(context: &Context) -> Vec<String> {
    let read = async || {
        let mut stream = context.get_stream("log").await.map_err(|error| error.to_string())?;
        let last = stream.info().await.map_err(|error| error.to_string())?.state.last_sequence;
        let mut words = Vec::new();
        for sequence in 1..=last {
            let message = stream.get_raw_message(sequence).await.map_err(|error| error.to_string())?;
            words.push(String::from_utf8_lossy(&message.payload).into_owned());
        }
        words.dedup();
        Ok::<_, String>(words)
    };
    wait_for("the words in the log", SOON, read).await
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Kill,
    Pause,
    Isolate(Isolation),
}

/// The leader of a stream is lost: another one leads, nothing acknowledged is missing, and the lost one catches up.
async fn check(cluster: &mut NatsCluster, fault: Fault) {
    create(&context(cluster, 0).await).await;
    let leader = cluster.wait_for_stream("log").await;
    let (inside, outside) = (context(cluster, leader).await, context(cluster, (leader + 1) % cluster.size()).await);
    publish(&inside, "before").await;
    match fault {
        Fault::Kill => cluster.kill(leader).await,
        Fault::Pause => cluster.pause(leader).await,
        Fault::Isolate(how) => cluster.isolate_with(leader, how).await,
    }
    publish(&outside, "during").await;
    assert_ne!(wait_for("another leader", SOON, || cluster.stream_leader("log")).await, leader);
    if matches!(fault, Fault::Isolate(_)) {
        // Its clients reach it, and it can store nothing.
        let sent = inside.publish("log", "lost".into()).await.unwrap().await;
        assert!(sent.is_err(), "{sent:?}");
    }
    match fault {
        Fault::Kill => cluster.restart(leader).await,
        Fault::Pause => cluster.resume(leader),
        Fault::Isolate(_) => cluster.rejoin(leader).await,
    }
    cluster.wait_for_stream("log").await;
    publish(&outside, "after").await;
    assert_eq!(words(&outside).await, ["before", "during", "after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlives_a_killed_leader_and_the_death_of_all() {
    let mut cluster = NatsCluster::start().await;
    check(&mut cluster, Fault::Kill).await;
    let context = context(&cluster, 0).await;
    cluster.kill_all().await;
    assert_eq!(cluster.meta_leader().await, None);
    cluster.restart_all().await;
    cluster.wait_for_stream("log").await;
    let anywhere = cluster.connect().await;
    assert!(anywhere.server_info().server_name.starts_with('n'));
    publish(&context, "at last").await;
    assert_eq!(words(&context).await, ["before", "during", "after", "at last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlives_a_paused_leader() {
    check(&mut NatsCluster::start().await, Fault::Pause).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlives_a_leader_that_is_cut_off() {
    check(&mut NatsCluster::start().await, Fault::Isolate(Isolation::Refused)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlives_a_leader_whose_words_get_lost() {
    check(&mut NatsCluster::start().await, Fault::Isolate(Isolation::Silent)).await;
}
