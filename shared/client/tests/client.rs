//! The client against a real nats-server; the services' side is played by a few lines each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::header::HeaderMap;
use async_nats::jetstream::{self, object_store, stream};
use async_nats::{Message, Subscriber};
use baton_client::{Client, ClientError, ConnectSettings, Connection, RunEvent, Shown};
use baton_protocol::alert::{AlertKind, AlertSeverity, AlertView};
use baton_protocol::record::{AnyCommit, Cause, FORMAT, RunFinished, RunStarted, StageReady, Topic, Turn};
use baton_protocol::request::{
    AlertList, InstanceStatus, ListAlerts, ListRuns, ListWorkflows, ProgressEvent, Role, RunAccepted, RunList, StartRun,
};
use baton_protocol::run::{RunStatus, RunView};
use baton_protocol::subject::{self, Shard};
use baton_protocol::{
    AgentId, Capability, Code, Commit, Json, Money, Position, Rejection, Resources, RunId, Service, StageName, TaskId,
    WorkflowName, WorkflowRecord, header,
};
use baton_testkit::{NatsCluster, NatsOptions, NatsServer, wait_for};
use futures::StreamExt;
use serde::Serialize;
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

async fn answer<T: Serialize>(nats: &async_nats::Client, request: &Message, body: &T) {
    let reply = request.reply.clone().expect("a request has a reply subject");
    nats.publish(reply, serde_json::to_vec(body).unwrap().into()).await.unwrap();
}

async fn reject(nats: &async_nats::Client, request: &Message, rejection: &Rejection) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Service-Error", rejection.message.as_str());
    headers.insert("Nats-Service-Error-Code", rejection.code.http_status().to_string());
    let reply = request.reply.clone().expect("a request has a reply subject");
    nats.publish_with_headers(reply, headers, serde_json::to_vec(rejection).unwrap().into()).await.unwrap();
}

/// Waits until the server has taken all that was sent to it. (A flush only hands it to the kernel.)
async fn round_trip(nats: &async_nats::Client) {
    let inbox = nats.new_inbox();
    let mut echo = nats.subscribe(inbox.clone()).await.unwrap();
    nats.publish(inbox, "".into()).await.unwrap();
    echo.next().await.unwrap();
}

async fn listen(nats: &async_nats::Client, endpoint: &str) -> Subscriber {
    let requests = nats.subscribe(subject::request(Service::WorkflowManager, endpoint)).await.unwrap();
    round_trip(nats).await;
    requests
}

fn text(message: &Message, name: &str) -> String {
    message.headers.as_ref().and_then(|headers| headers.get(name)).map(ToString::to_string).unwrap_or_default()
}

fn workflow() -> WorkflowName {
    WorkflowName::new("article").unwrap()
}

#[tokio::test]
async fn a_request_is_repeated_until_the_service_answers() {
    let server = NatsServer::start().await;
    let client = Client::connect(&ConnectSettings::server(server.client_url())).await.unwrap().with_source("ann");
    let start = StartRun::new(workflow(), Json::of(&serde_json::json!({ "topic": "x" })).unwrap());
    // Nobody listens yet.
    let started = tokio::spawn({
        let client = client.clone();
        async move { client.start_run(start).await }
    });
    let nats = server.connect().await;
    let mut requests = listen(&nats, "run.start").await;
    let first = requests.next().await.unwrap();
    reject(&nats, &first, &Rejection::new(Code::Unavailable, "no leader").retry_after(1)).await;
    let second = requests.next().await.unwrap();
    assert_eq!(first.payload, second.payload);
    assert_eq!(text(&first, header::ID), text(&second, header::ID));
    let request: StartRun = serde_json::from_slice(&second.payload).unwrap();
    let run = request.run.expect("a run id is always sent");
    assert_eq!(run.as_uuid().get_version_num(), 7);
    assert_eq!(text(&second, header::CORRELATION_ID), run.to_string());
    assert_eq!(text(&second, header::SOURCE), "ann");
    assert_eq!(text(&second, header::TYPE), "coordination_request");
    let accepted = RunAccepted {
        run,
        workflow: workflow(),
        version: 1,
        status: RunStatus::Running,
        existing: false,
        paused: false,
        trace_id: run.as_uuid().simple().to_string(),
    };
    answer(&nats, &second, &accepted).await;
    assert_eq!(started.await.unwrap().unwrap(), accepted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_a_server_that_is_cut_off_moves_to_another_one() {
    let mut cluster = NatsCluster::start().await;
    let client = Client::connect(&ConnectSettings::server(cluster.client_urls())).await.unwrap();
    let client = client.with_deadline(Duration::from_secs(60));
    // Whichever server the client went to, the service is at another one.
    let ours = client.nats().server_info().server_name;
    let lost: usize = ours.strip_prefix('n').unwrap().parse().unwrap();
    let service = cluster.connect_to((lost + 1) % cluster.size()).await;
    let mut requests = listen(&service, "run.list").await;
    let answering = service.clone();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            answer(&answering, &request, &RunList { runs: Vec::new(), counts: BTreeMap::new(), more: false }).await;
        }
    });
    client.list_runs(&ListRuns::default()).await.unwrap();

    cluster.isolate(lost).await;
    client.list_runs(&ListRuns::default()).await.unwrap();
    assert_ne!(client.nats().server_info().server_name, ours);
}

#[tokio::test]
async fn an_overload_is_waited_out_unless_the_caller_would_rather_know() {
    let server = NatsServer::start().await;
    let client = Client::connect(&ConnectSettings::server(server.client_url())).await.unwrap();
    let nats = server.connect().await;
    let mut requests = listen(&nats, "run.list").await;
    let ask = |client: Client| tokio::spawn(async move { client.list_runs(&ListRuns::default()).await });
    let crowded = Rejection::new(Code::Overloaded, "too much").retry_after(300);

    let waits = ask(client.clone());
    let first = requests.next().await.unwrap();
    reject(&nats, &first, &crowded).await;
    let since = Instant::now();
    let second = requests.next().await.unwrap();
    // Not before it was told to; how much later is for chance to say.
    assert!(since.elapsed() >= Duration::from_millis(290), "asked again after {:?}", since.elapsed());
    answer(&nats, &second, &RunList { runs: Vec::new(), counts: BTreeMap::new(), more: false }).await;
    assert!(waits.await.unwrap().is_ok());

    let knows = ask(client.waits_when_refused(false));
    let only = requests.next().await.unwrap();
    reject(&nats, &only, &crowded).await;
    let error = knows.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(Code::Overloaded));
}

#[tokio::test]
async fn errors_say_what_happened() {
    let server = NatsServer::start().await;
    let settings = ConnectSettings::server(server.client_url());
    let client = Client::connect(&settings).await.unwrap().with_deadline(Duration::ZERO);
    let error = client.list_runs(&ListRuns::default()).await.unwrap_err();
    assert!(matches!(error, ClientError::NoService(Service::WorkflowManager)), "{error}");
    assert!(error.to_string().contains("workflow-manager") && error.to_string().contains("baton up"), "{error}");

    let nats = server.connect().await;
    let mut requests = listen(&nats, "run.get").await;
    let run = RunId::derive(1, 1);
    let asked = tokio::spawn({
        let client = client.clone();
        async move { (client.get_run(run).await, client.get_run(run).await) }
    });
    reject(&nats, &requests.next().await.unwrap(), &Rejection::new(Code::UnknownRun, "there is no run 7")).await;
    answer(&nats, &requests.next().await.unwrap(), &serde_json::json!({ "run": 7 })).await;
    let (rejected, unreadable) = asked.await.unwrap();
    let rejected = rejected.unwrap_err();
    assert_eq!(rejected.code(), Some(Code::UnknownRun));
    assert_eq!(rejected.to_string(), "there is no run 7 (unknown_run)");
    let unreadable = unreadable.unwrap_err().to_string();
    assert!(unreadable.contains("run.get") && unreadable.contains("can not be read"), "{unreadable}");
}

#[tokio::test]
async fn every_instance_answers_how_it_stands() {
    let server = NatsServer::start().await;
    let client = Client::new(server.connect().await);
    assert!(client.all_statuses().await.unwrap().is_empty());
    let nats = server.connect().await;
    let mut listeners = Vec::new();
    for (instance, role) in [("a", Role::Leading), ("b", Role::Following)] {
        let status = InstanceStatus {
            service: Service::Optimizer,
            instance: instance.to_owned(),
            version: "0.1.0".to_owned(),
            role,
            term: 1,
            read: 2,
            number: 3,
            set_aside: 0,
            full: None,
            now: 4,
            started_at: 5,
        };
        let mut asked = nats.subscribe(subject::status(Service::Optimizer)).await.unwrap();
        let mut measured = nats.subscribe(subject::metrics(Service::Optimizer)).await.unwrap();
        let nats = nats.clone();
        listeners.push(tokio::spawn(async move {
            answer(&nats, &asked.next().await.unwrap(), &status).await;
            let reply = measured.next().await.unwrap().reply.unwrap();
            nats.publish(reply, format!("baton_up{{instance=\"{}\"}} 1\n", status.instance).into()).await.unwrap();
        }));
    }
    round_trip(&nats).await;
    let statuses = client.all_statuses().await.unwrap();
    let seen: Vec<_> = statuses.iter().map(|status| (status.instance.as_str(), status.role)).collect();
    assert_eq!(seen, [("a", Role::Leading), ("b", Role::Following)]);
    let metrics = client.metrics().await.unwrap();
    assert_eq!(metrics.len(), 2);
    assert!(metrics.iter().all(|(service, text)| *service == Service::Optimizer && text.contains("baton_up")));
}

#[tokio::test]
async fn what_the_broker_forbids_is_seen() {
    let extra_config = r#"authorization { users: [
        { user: ann, password: hush, permissions: { publish: ["baton.agent.ann.>"] } }
    ] }"#;
    let server =
        NatsServer::start_with(NatsOptions { extra_config: extra_config.to_owned(), ..NatsOptions::default() }).await;
    let url = server.client_url();
    let error = Connection::open(&ConnectSettings::server(&url)).await.unwrap_err().to_string();
    assert!(error.contains("does not let us in without credentials") && error.contains("--creds"), "{error}");
    let settings =
        ConnectSettings { user: Some("ann".into()), password: Some("hush".into()), ..ConnectSettings::server(&url) };
    let mut connection = Connection::open(&settings).await.unwrap();
    connection.nats.publish("baton.log.0.optimizer", "{}".into()).await.unwrap();
    let link = connection.link.wait_for(|link| link.denied.is_some()).await.unwrap().clone();
    assert!(link.denied.unwrap().contains("baton.log.0.optimizer"));
    assert!(link.connected && link.connects == 1);
}

/// A log, and the workflow-manager that writes it.
struct Writer {
    nats: async_nats::Client,
    next: u64,
}

impl Writer {
    async fn new(server: &NatsServer) -> Self {
        let nats = server.connect().await;
        let config = stream::Config {
            name: subject::log_stream(Shard::default()),
            subjects: vec![subject::log_subjects(Shard::default())],
            ..stream::Config::default()
        };
        jetstream::new(nats.clone()).create_stream(config).await.unwrap();
        Self { nats, next: 1 }
    }

    async fn commit(&mut self, records: Vec<WorkflowRecord>) -> u64 {
        let count = records.len() as u64;
        let turns = vec![Turn { at: 1000, seen: 0, cause: Cause::Timer, records }];
        let commit = Commit { format: FORMAT, instance: "i".into(), term: 1, first: self.next, handled: 0, turns };
        self.next += count;
        let subject = subject::log(Shard::default(), Service::WorkflowManager);
        let context = jetstream::new(self.nats.clone());
        let stored = context.publish(subject, serde_json::to_vec(&commit).unwrap().into()).await.unwrap();
        stored.await.unwrap().sequence
    }

    /// Answers `run.get` for that run from now on.
    async fn show(&self, run: RunId, status: RunStatus, first_seq: u64) -> tokio::task::JoinHandle<()> {
        let mut requests = listen(&self.nats, "run.get").await;
        let nats = self.nats.clone();
        tokio::spawn(async move {
            let view = RunView {
                run,
                workflow: workflow(),
                version: 1,
                status,
                reason: None,
                input: Json::null(),
                priority: 0,
                key: None,
                trace_id: String::new(),
                started_at: 1000,
                ended_at: None,
                cost: Money::ZERO,
                usage: baton_protocol::request::Usage::default(),
                budget: None,
                first_seq,
                metadata: Default::default(),
                paused: None,
                rerun: None,
                parent: None,
                definition: None,
                stages: vec![],
            };
            while let Some(request) = requests.next().await {
                answer(&nats, &request, &view).await;
            }
        })
    }
}

fn started(run: RunId) -> WorkflowRecord {
    WorkflowRecord::RunStarted(RunStarted {
        run,
        workflow: workflow(),
        version: 1,
        input: Json::null(),
        priority: 0,
        key: None,
        trace: None,
        strategy: None,
        due: None,
        budget: None,
        metadata: Default::default(),
        rerun: None,
        parent: None,
        no_cache: false,
    })
}

fn ready(run: RunId, stage: &str) -> WorkflowRecord {
    WorkflowRecord::StageReady(StageReady {
        task: TaskId { run, stage: StageName::new(stage).unwrap(), item: None, attempt: 1 },
        agent_type: Capability::new("research").unwrap(),
        requires: Default::default(),
        inputs: vec![],
        input: None,
        cache: None,
        hedge: false,
        speculative: false,
        resources: Resources::new(),
        priority: 0,
    })
}

fn finished(run: RunId) -> WorkflowRecord {
    WorkflowRecord::RunFinished(RunFinished { run, status: RunStatus::Succeeded, reason: None })
}

async fn next_record(events: &mut baton_client::RunEventStream) -> Option<(String, Position)> {
    let event = tokio::time::timeout(SOON, events.next()).await.expect("an event comes in time")?;
    match event.unwrap() {
        RunEvent::Record(event) => Some((event.kind, event.position)),
        RunEvent::Progress(progress) => {
            Some((format!("progress {}", progress.fraction), Position { seq: 0, index: 0 }))
        }
    }
}

#[tokio::test]
async fn a_run_s_events_come_once_and_in_order_also_across_a_restart_of_the_broker() {
    let mut server = NatsServer::start().await;
    let mut writer = Writer::new(&server).await;
    let (run, other) = (RunId::derive(1, 1), RunId::derive(1, 2));
    writer.commit(vec![started(other)]).await;
    let first = writer.commit(vec![started(run), ready(other, "x"), ready(run, "a")]).await;
    let _answers = writer.show(run, RunStatus::Running, first).await;
    let client = Client::connect(&ConnectSettings::server(server.client_url())).await.unwrap();
    let mut events = client.run_events(run, None).await.unwrap();
    let at = |seq, index| Position { seq, index };
    assert_eq!(next_record(&mut events).await, Some(("run_started".into(), at(first, 0))));
    assert_eq!(next_record(&mut events).await, Some(("stage_ready".into(), at(first, 2))));

    // Live: records and progress.
    let progress = ProgressEvent {
        task: TaskId { run, stage: StageName::new("a").unwrap(), item: None, attempt: 1 },
        agent: AgentId::new("ann").unwrap(),
        fraction: 0.5,
        message: "reading".to_owned(),
        at: 1,
    };
    let topic = subject::event(Topic::Run(&run), "progress");
    writer.nats.publish(topic, serde_json::to_vec(&progress).unwrap().into()).await.unwrap();
    assert_eq!(next_record(&mut events).await, Some(("progress 0.5".into(), at(0, 0))));
    let second = writer.commit(vec![ready(run, "b")]).await;
    assert_eq!(next_record(&mut events).await, Some(("stage_ready".into(), at(second, 0))));

    // The broker dies, and a record is written as soon as it is back.
    server.kill().await;
    server.restart().await;
    wait_for("the writer is connected again", SOON, async || {
        writer.nats.connection_state() == async_nats::connection::State::Connected
    })
    .await;
    let third = writer.commit(vec![ready(run, "c"), ready(other, "x")]).await;
    let last = writer.commit(vec![finished(run), ready(run, "never")]).await;
    assert_eq!(next_record(&mut events).await, Some(("stage_ready".into(), at(third, 0))));
    assert_eq!(next_record(&mut events).await, Some(("run_finished".into(), at(last, 0))));
    assert_eq!(next_record(&mut events).await, None);
}

#[tokio::test]
async fn reading_goes_on_behind_a_position_and_ends_with_a_run_that_has_ended() {
    let server = NatsServer::start().await;
    let mut writer = Writer::new(&server).await;
    let run = RunId::derive(1, 1);
    let seq = writer.commit(vec![started(run), ready(run, "a"), finished(run)]).await;
    writer.commit(vec![started(RunId::derive(1, 2))]).await;
    let _answers = writer.show(run, RunStatus::Succeeded, 1).await;
    let client = Client::new(server.connect().await);
    let after = |index| Some(Position { seq, index });
    let mut events = client.run_events(run, after(0)).await.unwrap();
    assert_eq!(next_record(&mut events).await.unwrap().0, "stage_ready");
    assert_eq!(next_record(&mut events).await.unwrap().0, "run_finished");
    assert_eq!(next_record(&mut events).await, None);
    let mut events = client.run_events(run, after(2)).await.unwrap();
    assert_eq!(next_record(&mut events).await, None);
}

#[tokio::test]
async fn a_part_of_the_log_is_read_to_its_end_and_leaves_no_consumer() {
    let server = NatsServer::start().await;
    let client = Client::new(server.connect().await);
    let error = client.log_ends().await.unwrap_err().to_string();
    assert!(error.contains("BATON_LOG_0") && error.contains("baton up"), "{error}");

    let mut writer = Writer::new(&server).await;
    for _ in 0..5 {
        writer.commit(vec![started(RunId::derive(1, 1))]).await;
    }
    let read = |from, to| {
        let log = client.log(from, Some(to));
        async move { log.map(|read| read.unwrap().0).collect::<Vec<_>>().await }
    };
    assert_eq!(read(2, 4).await, [2, 3, 4]);
    assert_eq!(read(0, 100).await, [1, 2, 3, 4, 5]);
    assert_eq!(read(6, 100).await, [0u64; 0]);
    let stream = jetstream::new(writer.nats.clone()).get_stream("BATON_LOG_0").await.unwrap();
    for seq in [3, 4, 5] {
        stream.delete_message(seq).await.unwrap();
    }
    assert_eq!(read(2, 100).await, [2]);
    assert_eq!(read(3, 100).await, [0u64; 0]);
    wait_for("no consumers are left", SOON, async || match stream.get_info().await.unwrap().state.consumer_count {
        0 => Ok(()),
        count => Err(count),
    })
    .await;

    let broken = subject::log(Shard::default(), Service::Optimizer);
    jetstream::new(writer.nats.clone()).publish(broken, "{".into()).await.unwrap().await.unwrap();
    let (good, bad): (Vec<_>, Vec<_>) =
        client.log(1, Some(9)).collect::<Vec<_>>().await.into_iter().partition(Result::is_ok);
    let commits: Vec<_> = good.into_iter().map(|read| read.unwrap().1).collect();
    assert!(matches!(commits[..], [AnyCommit::Workflow(_), AnyCommit::Workflow(_)]));
    let error = bad.into_iter().next().unwrap().unwrap_err().to_string();
    assert!(error.contains("message 6") && error.contains("optimizer"), "{error}");
}

#[tokio::test]
async fn a_run_whose_records_were_removed_is_not_shown_as_if_it_had_none() {
    let server = NatsServer::start().await;
    let client = Client::new(server.connect().await);
    let mut writer = Writer::new(&server).await;
    let (gone, cut, whole) = (RunId::derive(1, 1), RunId::derive(1, 2), RunId::derive(1, 3));
    let finished = |run| WorkflowRecord::RunFinished(RunFinished { run, status: RunStatus::Succeeded, reason: None });
    for record in [started(gone), finished(gone), started(cut), finished(cut), started(whole), finished(whole)] {
        writer.commit(vec![record]).await;
    }
    let stream = jetstream::new(writer.nats.clone()).get_stream("BATON_LOG_0").await.unwrap();
    stream.purge().sequence(4).await.unwrap();
    for run in [gone, cut] {
        let shown = writer.show(run, RunStatus::Succeeded, 1).await;
        let error = client.run_events(run, None).await.err().unwrap();
        assert!(matches!(error, ClientError::Trimmed { run: of, first: 4 } if of == run), "{error}");
        let records = client.run_records(run).await.unwrap().collect::<Vec<_>>().await;
        assert!(matches!(records[..], [Err(ClientError::Trimmed { .. })]), "{records:?}");
        shown.abort();
        let _ = shown.await;
    }
    // Where a run begins is not known exactly.
    let _shown = writer.show(whole, RunStatus::Succeeded, 1).await;
    let mut events = client.run_events(whole, None).await.unwrap();
    let kinds = [next_record(&mut events).await, next_record(&mut events).await, next_record(&mut events).await];
    let kinds = kinds.map(|event| event.map(|(kind, _)| kind));
    assert_eq!(kinds, [Some("run_started".into()), Some("run_finished".into()), None]);
    assert_eq!(client.run_records(whole).await.unwrap().collect::<Vec<_>>().await.len(), 2);
}

#[tokio::test]
async fn many_askers_share_a_connection() {
    let server = NatsServer::start().await;
    let nats = server.connect().await;
    let mut requests = listen(&nats, "workflow.list").await;
    let client = Client::new(server.connect().await);
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            count.fetch_add(1, Ordering::Relaxed);
            answer(&nats, &request, &serde_json::json!({ "workflows": [] })).await;
        }
    });
    let all = ListWorkflows::default();
    let asked = futures::future::join_all((0..100).map(|_| client.list_workflows(&all))).await;
    assert!(asked.into_iter().all(|list| list.unwrap().workflows.is_empty()));
    assert_eq!(served.load(Ordering::Relaxed), 100);
}

/// An answer that is another one is told as soon as an event says that it may be, also one of a service that is away for a while;
/// one that is the same is told as that.
#[tokio::test(flavor = "multi_thread")]
async fn r11_a_live_view_asks_when_something_happens() {
    /// Well below the time after which it is asked anyway.
    const AT_ONCE: Duration = Duration::from_secs(3);
    let server = NatsServer::start().await;
    let client = Client::connect(&ConnectSettings::server(server.client_url())).await.unwrap();
    let client = client.with_deadline(Duration::from_millis(200));
    let nats = server.connect().await;
    let mut requests = nats.subscribe(subject::request(Service::ResourceManager, "alert.list")).await.unwrap();
    round_trip(&nats).await;
    let alerts = Arc::new(std::sync::Mutex::new(Some(AlertList { alerts: Vec::new() })));
    let (service, said) = (nats.clone(), Arc::clone(&alerts));
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let said = said.lock().unwrap().clone();
            match said {
                Some(list) => answer(&service, &request, &list).await,
                None => reject(&service, &request, &Rejection::new(Code::Unavailable, "no leader")).await,
            }
        }
    });
    let tell = async || {
        nats.publish("baton.event.alert.critical.agent_lost.alert_raised", "{}".into()).await.unwrap();
        nats.flush().await.unwrap();
    };
    let mut live = client.live_alerts(ListAlerts::default()).await.unwrap();
    let mut next = async || tokio::time::timeout(AT_ONCE, live.next()).await.expect("it is asked").unwrap();
    assert_eq!(next().await.unwrap(), Shown { answer: AlertList { alerts: Vec::new() }, changed: true });
    tell().await;
    assert!(!next().await.unwrap().changed);
    let one = AlertView {
        alert: 7,
        severity: AlertSeverity::Critical,
        kind: AlertKind::AgentLost,
        about: "ann".to_owned(),
        message: "gone".to_owned(),
        raised_at: 1,
        cleared_at: None,
        acknowledged_at: None,
        acknowledged_by: None,
    };
    let list = AlertList { alerts: vec![one] };
    *alerts.lock().unwrap() = Some(list.clone());
    tell().await;
    // What was asked before may still be under way.
    let shown = loop {
        let shown = next().await.unwrap();
        if shown.changed {
            break shown;
        }
    };
    assert_eq!(shown.answer, list);
    // An error that may pass is told once, and is no end.
    *alerts.lock().unwrap() = None;
    let error = loop {
        tell().await;
        if let Err(error) = next().await {
            break error;
        }
    };
    assert!(error.is_transient(), "{error}");
    *alerts.lock().unwrap() = Some(AlertList { alerts: Vec::new() });
    tell().await;
    assert_eq!(next().await.unwrap(), Shown { answer: AlertList { alerts: Vec::new() }, changed: true });
}

#[tokio::test]
async fn w1_what_is_too_large_becomes_references_and_comes_back_whole() {
    let server = NatsServer::start().await;
    let client = Client::new(server.connect().await);
    let js = jetstream::new(server.connect().await);
    let large = Json::of(&json!({ "text": "x".repeat(300_000), "pages": 3 })).unwrap();
    let nowhere = client.shrink(large.clone()).await.unwrap_err();
    assert!(nowhere.to_string().contains("there is no store for objects"), "{nowhere}");
    let config = object_store::Config { bucket: subject::OBJECTS_BUCKET.to_owned(), ..Default::default() };
    let store = js.create_object_store(config).await.unwrap();

    let small = client.shrink(large.clone()).await.unwrap();
    let read: serde_json::Value = small.read().unwrap();
    assert_eq!((&read["pages"], &read["text"]["bytes"]), (&json!(3), &json!(300_002)));
    let whole = |json: Json| {
        let client = client.clone();
        async move { client.expand(json, 10_000_000).await.unwrap().read::<serde_json::Value>().unwrap() }
    };
    assert_eq!(whole(small.clone()).await, large.read::<serde_json::Value>().unwrap());
    assert_eq!(client.expand(small.clone(), 300_000).await.unwrap(), small, "it is too much, and stays as it is");

    // Of many small values none is worth a reference.
    let many: BTreeMap<_, _> = (0..30_000).map(|n| (format!("key {n}"), n)).collect();
    let many = Json::of(&many).unwrap();
    let small = client.shrink(many.clone()).await.unwrap();
    assert!(small.size() < 200 && small.as_str().starts_with("{\"$object\""), "{small:?}");
    assert_eq!(whole(small).await, many.read::<serde_json::Value>().unwrap());

    // Somebody puts something else under its name.
    let reference = client.put_object("right".into(), "text/plain").await.unwrap();
    assert_eq!(client.get_object(&reference.name).await.unwrap().1, "right");
    store.put(reference.name.as_str(), &mut "wrong".as_bytes()).await.unwrap();
    let error = client.get_object(&reference.name).await.unwrap_err();
    assert!(error.to_string().contains("not what its name says"), "{error}");
}
