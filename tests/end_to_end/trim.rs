//! A log that is trimmed: what is still needed stays, what is forgotten goes, and every service starts from its snapshots.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_nats::jetstream::object_store::{ObjectMetadata, ObjectStore};
use async_nats::jetstream::{self};
use baton_client::{ClientError, ConnectSettings};
use baton_machine::{Machine, Snapshot};
use baton_optimizer::Optimizer;
use baton_protocol::request::{ListRuns, ListSchedules, ListTriggers, ListWorkflows, RegisterWorkflow, StartRun};
use baton_protocol::run::RunStatus;
use baton_protocol::{Json, RunId, Service, WorkflowName, subject};
use baton_resource_manager::ResourceManager;
use baton_sdk::Output;
use baton_shell::{Instance, Settings, ShellError, Telemetry};
use baton_telemetry::{Metrics, Spans};
use baton_workflow_manager::WorkflowManager;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::fleet::Fleet;
use crate::workflows::agent;

/// How many runs are listed after their end.
const LISTED: usize = 3;

/// How long it may take until something is removed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The three services of the log in this process: here runs can be forgotten at once, which settings do not allow.
struct Services {
    running: BTreeMap<Service, (Metrics, JoinHandle<Result<(), ShellError>>)>,
}

impl Services {
    async fn start(fleet: &Fleet, settings: &Settings) -> Self {
        let mut services = Self { running: BTreeMap::new() };
        for service in Service::WRITERS {
            services.start_one(fleet, service, settings);
        }
        for service in Service::WRITERS {
            fleet.wait_for_leader(service).await;
        }
        services
    }

    fn start_one(&mut self, fleet: &Fleet, service: Service, settings: &Settings) {
        fn spawn<M: Machine>(
            fleet: &Fleet,
            settings: &Settings,
            config: M::Config,
        ) -> (Metrics, JoinHandle<Result<(), ShellError>>) {
            let instance = Instance::new(<M::Record as baton_protocol::record::Record>::SERVICE);
            let metrics = Metrics::new(instance.service().as_str(), instance.name());
            let telemetry = Telemetry { spans: Spans::none(), metrics: metrics.clone() };
            let connect = ConnectSettings::server(fleet.nats.client_url());
            let (settings, shutdown) = (settings.clone(), CancellationToken::new());
            let run = baton_shell::run::<M>(instance, connect, settings, config, telemetry, None, shutdown);
            (metrics, tokio::spawn(run))
        }
        let running = match service {
            Service::WorkflowManager => {
                let config = baton_workflow_manager::Config { keep_ended: LISTED, known_ms: 0, ..Default::default() };
                spawn::<WorkflowManager>(fleet, settings, config)
            }
            Service::ResourceManager => {
                let config = baton_resource_manager::Config { lease_ms: 2000, heartbeat_ms: 300, ..Default::default() };
                spawn::<ResourceManager>(fleet, settings, config)
            }
            _ => spawn::<Optimizer>(fleet, settings, baton_optimizer::Config::default()),
        };
        self.running.insert(service, running);
    }

    /// As a process that is killed: nothing is said, nothing kept.
    async fn kill(self) {
        for (_, (_, task)) in self.running {
            task.abort();
            let _ = task.await;
        }
    }

    /// What a service says as it stops by itself.
    async fn error_of(&mut self, service: Service) -> String {
        let (_, task) = self.running.remove(&service).unwrap();
        tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap().unwrap_err().to_string()
    }
}

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.leader.ttl_ms = 1500;
    settings.log.trim = true;
    settings.log.snapshot_records = 20;
    settings.log.snapshot_pause_ms = 0;
    settings.log.trim_messages = 10;
    settings.log.trim_settled_ms = 0;
    settings
}

fn start(workflow: &str) -> StartRun {
    StartRun::new(WorkflowName::new(workflow).unwrap(), Json::of(&json!({})).unwrap())
}

/// A run from its start to its end.
async fn a_run(fleet: &Fleet) -> RunId {
    let run = fleet.start_run("one", &json!({})).await;
    assert_eq!(fleet.wait_for_end(run).await.status, RunStatus::Succeeded);
    run
}

async fn snapshots(fleet: &Fleet) -> ObjectStore {
    let js = jetstream::new(fleet.nats.connect().await);
    js.get_object_store(subject::SNAPSHOTS_BUCKET).await.unwrap()
}

/// A service's snapshots, the oldest first.
async fn kept(store: &ObjectStore, service: Service) -> Vec<String> {
    let mut kept = Vec::new();
    for name in [service.to_string(), format!("{service}.1"), format!("{service}.2")] {
        let Ok(info) = store.info(&name).await else { continue };
        let note: Value = serde_json::from_str(&info.metadata["baton-snapshot"]).unwrap();
        kept.push((note["own"].as_u64().unwrap(), name));
    }
    kept.sort();
    kept.into_iter().map(|(_, name)| name).collect()
}

/// Overwrites a snapshot, as if not all of it were there.
async fn tear(store: &ObjectStore, name: &str) {
    let metadata = store.info(name).await.unwrap().metadata;
    let object = ObjectMetadata { name: name.to_owned(), metadata, ..ObjectMetadata::default() };
    store.put(object, &mut b"{\"log\": \"torn".as_slice()).await.unwrap();
}

/// What the workflow-manager shows of all that it knows.
async fn shown(fleet: &Fleet) -> Value {
    let client = &fleet.client;
    let runs = client.list_runs(&ListRuns { limit: Some(100), ..ListRuns::default() }).await.unwrap();
    let workflows = client.list_workflows(&ListWorkflows::default()).await.unwrap();
    let schedules = client.list_schedules(&ListSchedules::default()).await.unwrap();
    let triggers = client.list_triggers(&ListTriggers::default()).await.unwrap();
    json!([runs, workflows, schedules, triggers])
}

#[tokio::test(flavor = "multi_thread")]
async fn w19_what_is_forgotten_leaves_the_log_and_all_else_goes_on() {
    let fleet = Fleet::bare().await;
    // Snapshots are kept, and nothing is removed: each dies between the two.
    let mut never = settings();
    never.log.trim_messages = u64::MAX;
    let services = Services::start(&fleet, &never).await;
    for (name, kind) in [("one", "step"), ("late", "late")] {
        let source = format!("name: {name}\nstages: [{{name: only, agent_type: {kind}}}]\n");
        let request = RegisterWorkflow { source: Some(source), definition: None };
        fleet.client.register_workflow(&request).await.unwrap();
    }
    fleet.baton(&["schedules", "set", "nightly", "one", "--cron", "0 3 1 1 *"]).await;
    fleet.baton(&["triggers", "set", "orders", "one", "--event", "order_made"]).await;
    let _stop = agent(&fleet, "step-1", "step", 4, |_| async { Output::json(&json!(1)) }).await;
    let mut forgotten = Vec::new();
    for _ in 0..20 {
        forgotten.push(a_run(&fleet).await);
    }
    let live = fleet.client.start_run(StartRun { key: Some("k".to_owned()), ..start("late") }).await.unwrap().run;
    let store = snapshots(&fleet).await;
    let end = Instant::now() + PATIENCE;
    loop {
        a_run(&fleet).await;
        let mut all = true;
        for service in Service::WRITERS {
            all &= kept(&store, service).await.len() == 3;
        }
        if all {
            break;
        }
        assert!(Instant::now() < end, "in vain");
    }
    assert_eq!(fleet.client.log_ends().await.unwrap().first, 1);
    services.kill().await;

    // What is due is removed after the next snapshot.
    let services = Services::start(&fleet, &settings()).await;
    let end = Instant::now() + PATIENCE;
    let (first, listed) = loop {
        let run = a_run(&fleet).await;
        let first = fleet.client.log_ends().await.unwrap().first;
        if first > fleet.client.get_run(forgotten[10]).await.unwrap().first_seq {
            break (first, run);
        }
        assert!(Instant::now() < end, "the log begins with {first}");
    };
    assert!(first <= fleet.client.get_run(live).await.unwrap().first_seq, "{first}");
    let metrics = services.running[&Service::WorkflowManager].0.render();
    assert!(
        metrics.contains("baton_log_trimmed_total") && !metrics.contains("baton_log_trimmed_total{} 0"),
        "{metrics}"
    );

    // What is listed is there with all its records.
    for (run, last) in [(listed, "run_finished"), (live, "stage_ready")] {
        let said = fleet.baton(&["log", &run.to_string(), "--json"]).await;
        let kinds: Vec<_> =
            said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].clone()).collect();
        assert_eq!((kinds[0].as_str(), kinds.last().unwrap().as_str()), (Some("run_started"), Some(last)));
    }
    // What is forgotten still has its document, and says where its records are.
    assert!(fleet.baton(&["show", &forgotten[0].to_string()]).await.contains("succeeded"));
    for more in [&[][..], &["--follow"], &["--stage", "only"]] {
        let run = forgotten[0].to_string();
        let (code, said, error) = fleet.try_baton(&[&["log", run.as_str()], more].concat()).await;
        assert!(code != Some(0) && said.is_empty(), "{code:?}: {said}");
        assert!(error.contains(&format!("no records of run {run} any more")), "{error}");
    }
    let error = fleet.client.run_events(forgotten[0], None).await.err().unwrap();
    assert!(matches!(error, ClientError::Trimmed { run, .. } if run == forgotten[0]), "{error}");
    let (_, said, _) = fleet.try_baton(&["doctor"]).await;
    assert!(said.contains("(trimmed)"), "{said}");

    // Everybody starts from a snapshot, and knows the same.
    let before = shown(&fleet).await;
    services.kill().await;
    let mut quiet = settings();
    quiet.log.snapshot_records = 20_000;
    for _ in 0..2 {
        let services = Services::start(&fleet, &quiet).await;
        fleet.wait_for_agents(1).await;
        assert_eq!(shown(&fleet).await, before);
        let again = StartRun { key: Some("k".to_owned()), ..start("late") };
        assert_eq!(fleet.client.start_run(again).await.unwrap().run, live, "its key is known");
        services.kill().await;
        // Once more, without the newest of each.
        for service in Service::WRITERS {
            if std::env::var_os("BATON_UPDATE").is_some() {
                keep(&store, service).await;
            }
            tear(&store, kept(&store, service).await.last().unwrap()).await;
        }
    }
    let services = Services::start(&fleet, &quiet).await;
    let _late = agent(&fleet, "late-1", "late", 1, |_| async { Output::json(&json!(2)) }).await;
    assert_eq!(fleet.wait_for_end(live).await.status, RunStatus::Succeeded);
    services.kill().await;

    // Without any the one that has none does not start, and the others do.
    for name in kept(&store, Service::ResourceManager).await {
        store.delete(name).await.unwrap();
    }
    let mut services = Services { running: BTreeMap::new() };
    for service in Service::WRITERS {
        services.start_one(&fleet, service, &quiet);
    }
    let error = services.error_of(Service::ResourceManager).await;
    assert!(error.contains("the resource-manager can use none (there is none)"), "{error}");
    fleet.wait_for_leader(Service::WorkflowManager).await;
    fleet.wait_for_leader(Service::Optimizer).await;
    services.kill().await;
}

fn fixture(service: Service) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("end_to_end/snapshots/{service}.json"))
}

/// Writes a snapshot down for [`snapshots_that_were_kept_are_read_by_every_later_version`].
async fn keep(store: &ObjectStore, service: Service) {
    let Some(name) = kept(store, service).await.pop() else { return };
    let mut text = Vec::new();
    store.get(name).await.unwrap().read_to_end(&mut text).await.unwrap();
    if let Ok(stored) = serde_json::from_slice::<Value>(&text) {
        std::fs::create_dir_all(fixture(service).parent().unwrap()).unwrap();
        std::fs::write(fixture(service), serde_json::to_string(&stored["snapshot"]).unwrap() + "\n").unwrap();
    }
}

/// Of a trimmed log the past is in snapshots only. What a version has kept the next one must read: a field that is added has a
/// default, one that is not needed any more is ignored.
#[test]
fn snapshots_that_were_kept_are_read_by_every_later_version() {
    fn read<M: Machine>() -> Snapshot<M> {
        let file = fixture(<M::Record as baton_protocol::record::Record>::SERVICE);
        let text = std::fs::read_to_string(&file).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }
    let workflows: Snapshot<WorkflowManager> = read();
    assert!(workflows.machine.floor().is_some_and(|floor| floor > 0));
    assert_ne!(workflows.machine, WorkflowManager::default());
    assert_ne!(read::<ResourceManager>().machine, ResourceManager::default());
    assert_ne!(read::<Optimizer>().machine, Optimizer::default());
}
