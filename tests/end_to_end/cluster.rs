//! Losing servers of a broker that is a cluster: articles go on ending as undisturbed ones do, each result counted once.

use std::time::Instant;

use baton_protocol::Service;
use baton_protocol::subject::{self, Shard};
use baton_testkit::{Isolation, NatsCluster, wait_for};

use crate::faults::{check, undisturbed};
use crate::fleet::{Fleet, PATIENCE};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Kill,
    Pause,
    Isolate(Isolation),
}

fn log() -> String {
    subject::log_stream(Shard::default())
}

/// Two instances of each service, and agents, on a cluster.
async fn fleet() -> Fleet<NatsCluster> {
    let mut fleet = Fleet::on(NatsCluster::start().await).await;
    fleet.set("BATON_LOG__REPLICAS", "3");
    fleet.set("BATON_TELEMETRY__LOG_FORMAT", "json");
    fleet.set("RUST_LOG", "debug,async_nats=info");
    fleet.start_services().await;
    for service in Service::WRITERS {
        fleet.start_service(&format!("{service}-2"), service);
        let client = fleet.client.clone();
        wait_for("two instances", PATIENCE, || {
            let client = client.clone();
            async move { client.statuses(service).await.is_ok_and(|statuses| statuses.len() == 2) }
        })
        .await;
    }
    fleet.stock().await;
    fleet
}

async fn inject(cluster: &mut NatsCluster, node: usize, fault: Fault) {
    match fault {
        Fault::Kill => cluster.kill(node).await,
        Fault::Pause => cluster.pause(node).await,
        Fault::Isolate(how) => cluster.isolate_with(node, how).await,
    }
}

async fn mend(cluster: &mut NatsCluster, node: usize, fault: Fault) {
    match fault {
        Fault::Kill => cluster.restart(node).await,
        Fault::Pause => cluster.resume(node),
        Fault::Isolate(_) => cluster.rejoin(node).await,
    }
}

/// A run that is under way at the fault and one that is asked for after it both end as they should.
async fn survive(fleet: &mut Fleet<NatsCluster>, node: usize, fault: Fault, undisturbed: &str) {
    let before = fleet.start_article().await;
    inject(&mut fleet.nats, node, fault).await;
    let since = Instant::now();
    let after = fleet.start_article().await;
    let accepted = since.elapsed();
    fleet.wait_for_end(after).await;
    let ended = since.elapsed();
    fleet.wait_for_end(before).await;
    println!(
        "{fault:?} of n{node}: accepted after {accepted:.1?}, ended after {ended:.1?}, both {:.1?}",
        since.elapsed()
    );
    mend(&mut fleet.nats, node, fault).await;
    fleet.nats.wait_for_stream(&log()).await;
    println!("whole {:.1?}", since.elapsed());
    check(fleet, before, undisturbed).await;
    check(fleet, after, undisturbed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_one_server_at_a_time_loses_nothing() {
    let mut fleet = fleet().await;
    let undisturbed = undisturbed(&fleet).await;
    let faults = [Fault::Kill, Fault::Pause, Fault::Isolate(Isolation::Refused), Fault::Isolate(Isolation::Silent)];
    for fault in faults {
        let leader = fleet.nats.wait_for_stream(&log()).await;
        for node in [leader, (leader + 1) % fleet.nats.size()] {
            survive(&mut fleet, node, fault, &undisturbed).await;
        }
    }
    fleet.nats.kill_all().await;
    let since = Instant::now();
    fleet.nats.restart_all().await;
    let run = fleet.start_article().await;
    check(&fleet, run, &undisturbed).await;
    println!("all: ended after {:.1?}", since.elapsed());
}
