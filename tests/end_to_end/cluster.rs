//! Losing servers of a broker that is a cluster: articles go on ending as undisturbed ones do, each result counted once.

use std::time::Instant;

use baton_protocol::subject::{self, Shard};
use baton_protocol::{RunId, Service};
use baton_testkit::{Isolation, NatsCluster, wait_for};

use crate::faults::{check, undisturbed};
use crate::fleet::{Fleet, PATIENCE};

/// What happens to a server.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Kill,
    Pause,
    Isolate(Isolation),
}

/// To which server it happens.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    /// The one that leads the log, when all replicas of the log are up to date.
    Leader,
    /// One that does not, when all replicas of the log are up to date.
    Other,
    /// The one after the last victim, which has just come back and need not have caught up.
    NextDuringRecovery,
}

/// Servers that die, one of them while another has just come back.
const DEATHS: [(Fault, Victim); 3] = [
    (Fault::Kill, Victim::Leader),
    (Fault::Isolate(Isolation::Refused), Victim::NextDuringRecovery),
    (Fault::Kill, Victim::Other),
];

/// Servers that go on accepting connections, and answer nobody, or only who is on their side.
const SILENCES: [(Fault, Victim); 2] =
    [(Fault::Pause, Victim::Leader), (Fault::Isolate(Isolation::Silent), Victim::Leader)];

fn log() -> String {
    subject::log_stream(Shard::default())
}

/// Two instances of each service, and agents, on a cluster.
async fn fleet() -> Fleet<NatsCluster> {
    let mut fleet = Fleet::on(NatsCluster::start().await).await;
    fleet.set("BATON_LOG__REPLICAS", "3");
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

/// A run that is under way at each fault, and one that is asked for after it, end while the server is lost.
async fn round(fleet: &mut Fleet<NatsCluster>, faults: &[(Fault, Victim)]) -> Vec<RunId> {
    let mut runs = Vec::new();
    let mut last = 0;
    for &(fault, victim) in faults {
        let size = fleet.nats.size();
        let node = match victim {
            Victim::Leader => fleet.nats.wait_for_stream(&log()).await,
            Victim::Other => (fleet.nats.wait_for_stream(&log()).await + 1) % size,
            Victim::NextDuringRecovery => (last + 1) % size,
        };
        let before = fleet.start_article().await;
        inject(&mut fleet.nats, node, fault).await;
        let since = Instant::now();
        let after = fleet.start_article().await;
        let accepted = since.elapsed();
        for run in [after, before] {
            fleet.wait_for_end(run).await;
        }
        // Shown when the test fails, or with --nocapture.
        println!("{fault:?} of {victim:?}: accepted after {accepted:.1?}, both ended after {:.1?}", since.elapsed());
        mend(&mut fleet.nats, node, fault).await;
        runs.extend([before, after]);
        last = node;
    }
    runs
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_servers_die_one_at_a_time_and_all_at_once_loses_nothing() {
    let mut fleet = fleet().await;
    let undisturbed = undisturbed(&fleet).await;
    let mut runs = round(&mut fleet, &DEATHS).await;
    runs.push(fleet.start_article().await);
    fleet.nats.kill_all().await;
    fleet.nats.restart_all().await;
    runs.push(fleet.start_article().await);
    for run in runs {
        check(&fleet, run, &undisturbed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_leading_server_falls_silent_loses_nothing() {
    let mut fleet = fleet().await;
    let undisturbed = undisturbed(&fleet).await;
    for run in round(&mut fleet, &SILENCES).await {
        check(&fleet, run, &undisturbed).await;
    }
}
