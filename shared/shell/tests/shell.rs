//! The shell against a real nats-server: leadership, takeover, the fence, replay, what can not be read.

mod feed;
mod full;
mod trim;

use std::time::Duration;

use async_nats::jetstream;
use baton_client::{Client, ConnectSettings, Headers};
use baton_machine::{Foreign, Machine, Processor, Reply, RequestContext, Turn, answer};
use baton_protocol::record::{AnyCommit, OptimizerRecord, Stamp, StrategyChanged};
use baton_protocol::request::{Done, OptimizerRequest, Role, SetStrategy, Strategy};
use baton_protocol::subject::{self, Shard};
use baton_protocol::{Millis, Service};
use baton_shell::{Feed, Instance, Settings, ShellError, Telemetry};
use baton_telemetry::{Metrics, Spans};
use baton_testkit::{NatsServer, Proxy, wait_for};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A machine that counts: enough to see what is lost, repeated or out of order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Counter {
    count: u64,
    numbers: u64,
}

impl Machine for Counter {
    type Record = OptimizerRecord;
    type Request = OptimizerRequest;
    type Soft = ();
    type Config = ();

    const FOLLOWS: &'static [Service] = &[Service::WorkflowManager, Service::ResourceManager];

    fn apply(&mut self, stamp: Stamp, _: &OptimizerRecord) {
        self.count += 1;
        self.numbers += stamp.number;
    }
    fn observe(&mut self, _: Stamp, _: Foreign<'_>) {}
    fn react(turn: &mut Turn<'_, Self>, commit: &AnyCommit) {
        if commit.service() == Service::WorkflowManager {
            turn.emit(OptimizerRecord::StrategyChanged(StrategyChanged { strategy: Strategy::RoundRobin }));
        }
    }
    fn request(turn: &mut Turn<'_, Self>, request: OptimizerRequest, _: &RequestContext) -> Reply {
        match request {
            OptimizerRequest::SetStrategy(SetStrategy { strategy }) => {
                turn.emit(OptimizerRecord::StrategyChanged(StrategyChanged { strategy }));
                answer(&Done {})
            }
            _ => answer(&turn.state().count),
        }
    }
    fn answered(_: &mut Turn<'_, Self>, _: u64, _: Reply) {}
    fn lead(_: &mut Turn<'_, Self>) {}
    fn tick(_: &mut Turn<'_, Self>) {}
    fn deadline(&self, (): &(), (): &()) -> Option<Millis> {
        None
    }
}

struct Running {
    instance: Instance,
    metrics: Metrics,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ShellError>>,
}

impl Running {
    fn start(url: &str, settings: &Settings) -> Self {
        Self::start_with(url, settings, None)
    }

    fn start_with(url: &str, settings: &Settings, feed: Option<Feed>) -> Self {
        let instance = Instance::new(Service::Optimizer);
        let shutdown = CancellationToken::new();
        let metrics = Metrics::new("optimizer", instance.name());
        let telemetry = Telemetry { spans: Spans::none(), metrics: metrics.clone() };
        let task = tokio::spawn(baton_shell::run::<Counter>(
            instance.clone(),
            ConnectSettings::server(url),
            settings.clone(),
            (),
            telemetry,
            feed,
            shutdown.clone(),
        ));
        Self { instance, metrics, shutdown, task }
    }

    async fn is(&self, role: Role) {
        let what = format!("{} is {}", self.instance.name(), role.as_str());
        wait_for(&what, Duration::from_secs(20), || async { self.instance.status().role == role }).await;
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

async fn set(client: &Client) {
    client.set_strategy(Strategy::RoundRobin).await.unwrap();
}

async fn count(client: &Client) -> u64 {
    client.request(Service::Optimizer, "placement.get", &serde_json::json!({}), Headers::default()).await.unwrap()
}

async fn replay(client: &Client) -> Counter {
    let mut processor: Processor<Counter> = Processor::new(());
    let mut messages = 0;
    let js = jetstream::new(client.nats().clone());
    let stream = js.get_stream(subject::log_stream(Shard(0))).await.unwrap();
    let last = stream.cached_info().state.last_sequence;
    for seq in 1..=last {
        let message = stream.get_raw_message(seq).await.unwrap();
        let (_, service) = subject::parse_log(&message.subject).unwrap();
        processor.read(seq, service, &message.payload, 0).unwrap();
        messages += 1;
    }
    assert!(messages > 0);
    processor.machine().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_is_replaced_and_nothing_is_lost_or_repeated() {
    let nats = NatsServer::start().await;
    let settings = Settings::default();
    let first = Running::start(&nats.client_url(), &settings);
    first.is(Role::Leading).await;
    let second = Running::start(&nats.client_url(), &settings);
    second.is(Role::Following).await;
    let client = Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap();
    for _ in 0..20 {
        set(&client).await;
    }
    assert_eq!(count(&client).await, 20);
    // The follower folds along, so that it can take over at once.
    wait_for("the follower has read everything", Duration::from_secs(10), || async {
        second.instance.status().number == 20
    })
    .await;
    // Dies without a word: the task is dropped, and with it the connection.
    first.task.abort();
    second.is(Role::Leading).await;
    set(&client).await;
    assert_eq!(count(&client).await, 21);
    assert_eq!(replay(&client).await, Counter { count: 21, numbers: (1..=21).sum() });
    // A drained leader gives way at once, and a third instance starts where it left, from its snapshot.
    let third = Running::start(&nats.client_url(), &settings);
    third.is(Role::Following).await;
    second.stop().await;
    third.is(Role::Leading).await;
    set(&client).await;
    assert_eq!(count(&client).await, 22);
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_only_stays_silent_is_replaced_when_its_entry_has_expired() {
    let nats = NatsServer::start().await;
    let link = Proxy::start(([127, 0, 0, 1], nats.port()).into()).await;
    let mut settings = Settings::default();
    settings.leader.ttl_ms = 1000;
    let first = Running::start(&link.url(), &settings);
    first.is(Role::Leading).await;
    let second = Running::start(&nats.client_url(), &settings);
    second.is(Role::Following).await;
    // Its connection stands, and nothing comes over it any more: a ping to it is answered by nobody, not even the broker.
    link.stall();
    wait_for("the second instance leads", Duration::from_millis(4500), || async {
        second.instance.status().role == Role::Leading
    })
    .await;
    link.heal().await;
    first.is(Role::Following).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_and_comes_back_finds_everything_as_it_was() {
    let mut nats = NatsServer::start().await;
    let running = Running::start(&nats.client_url(), &Settings::default());
    running.is(Role::Leading).await;
    let client = Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap();
    let client = client.with_deadline(Duration::from_secs(30));
    for _ in 0..5 {
        set(&client).await;
    }
    nats.kill().await;
    nats.restart().await;
    let counted = count(&client).await;
    assert_eq!(counted, 5);
    assert_eq!(replay(&client).await.count, 5);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_a_start_as_good_as_the_whole_log() {
    let nats = NatsServer::start().await;
    let mut settings = Settings::default();
    settings.log.snapshot_records = 10;
    let running = Running::start(&nats.client_url(), &settings);
    running.is(Role::Leading).await;
    let client = Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap();
    for _ in 0..25 {
        set(&client).await;
    }
    running.stop().await;
    let js = jetstream::new(client.nats().clone());
    let store = js.get_object_store(subject::SNAPSHOTS_BUCKET).await.unwrap();
    assert!(store.info("optimizer").await.is_ok(), "no snapshot was kept");
    let again = Running::start(&nats.client_url(), &settings);
    again.is(Role::Leading).await;
    assert_eq!(count(&client).await, 25);
    again.stop().await;
    // A torn snapshot is passed over.
    store.put("optimizer", &mut b"{\"log\": \"torn".as_slice()).await.unwrap();
    let torn = Running::start(&nats.client_url(), &settings);
    torn.is(Role::Leading).await;
    assert_eq!(count(&client).await, 25);
    torn.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_other_settings_is_refused_by_name_and_left_alone() {
    let nats = NatsServer::start().await;
    let js = jetstream::new(nats.connect().await);
    let config = jetstream::stream::Config {
        name: subject::log_stream(Shard(0)),
        subjects: vec![subject::log_subjects(Shard(0))],
        max_messages: 5,
        ..Default::default()
    };
    js.create_stream(config).await.unwrap();
    let running = Running::start(&nats.client_url(), &Settings::default());
    let error = running.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("max_msgs is 5, not -1") && error.contains("nats stream edit BATON_LOG_0"), "{error}");
    let stream = js.get_stream(subject::log_stream(Shard(0))).await.unwrap();
    assert_eq!(stream.cached_info().config.max_messages, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_can_not_be_read_stops_the_service() {
    let nats = NatsServer::start().await;
    let running = Running::start(&nats.client_url(), &Settings::default());
    running.is(Role::Leading).await;
    let js = jetstream::new(nats.connect().await);
    js.publish(subject::log(Shard(0), Service::WorkflowManager), "garbage".into()).await.unwrap().await.unwrap();
    let error = running.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("the optimizer stops") && error.contains("workflow-manager"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_can_not_be_read_is_refused_kept_and_counted() {
    let nats = NatsServer::start().await;
    let running = Running::start(&nats.client_url(), &Settings::default());
    running.is(Role::Leading).await;
    let client = nats.connect().await;
    let subject = subject::request(Service::Optimizer, "strategy.set");
    let garbage = [b"{\"strategy\": 7".as_slice(), b"\xff\xfe", b"[[[[", b"{\"strategy\": \"NO_SUCH\"}"];
    for payload in garbage {
        let message = client.request(subject.clone(), payload.into()).await.unwrap();
        let rejection: baton_protocol::Rejection = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(rejection.code, baton_protocol::Code::InvalidRequest);
        assert_eq!(message.headers.unwrap().get("Nats-Service-Error-Code").unwrap().as_str(), "400");
    }
    assert_eq!(running.instance.status().set_aside, garbage.len() as u64);
    let js = jetstream::new(client.clone());
    wait_for("they are kept", Duration::from_secs(10), || async {
        let stream = js.get_stream(subject::ASIDE_STREAM).await.unwrap();
        stream.cached_info().state.messages == garbage.len() as u64
    })
    .await;
    let stream = js.get_stream(subject::ASIDE_STREAM).await.unwrap();
    let kept = stream.get_raw_message(1).await.unwrap();
    assert_eq!(kept.headers.get("Baton-Subject").unwrap().as_str(), subject);
    assert_eq!(&kept.payload[..], garbage[0]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_commits_is_refused_by_the_fence() {
    let nats = NatsServer::start().await;
    let running = Running::start(&nats.client_url(), &Settings::default());
    running.is(Role::Leading).await;
    let client = Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap();
    set(&client).await;
    // A deposed leader that has read everything but the last commit, and does not know.
    let js = jetstream::new(nats.connect().await);
    let message = jetstream::message::PublishMessage::build()
        .payload("whatever it decided".into())
        .expected_last_subject_sequence(1);
    let sent = js.send_publish(subject::log(Shard(0), Service::Optimizer), message).await.unwrap().await;
    let error = sent.unwrap_err();
    assert_eq!(error.kind(), jetstream::context::PublishErrorKind::WrongLastSequence);
    // Another one that did write (say, with the right fence, a moment ago) deposes the one that leads. It is not sent its own
    // service's commits: it learns of it when it wants to commit, is refused, answers nobody, and loads again.
    let term = running.instance.status().term;
    let last = js.get_stream(subject::log_stream(Shard(0))).await.unwrap().cached_info().state.last_sequence;
    let commit = serde_json::json!({
        "format": 1, "instance": "other", "term": term + 1, "first": 2, "handled": 0, "turns": []
    });
    let message = jetstream::message::PublishMessage::build()
        .payload(commit.to_string().into())
        .expected_last_subject_sequence(last);
    js.send_publish(subject::log(Shard(0), Service::Optimizer), message).await.unwrap().await.unwrap();
    set(&client).await;
    wait_for("it leads again in a newer term", Duration::from_secs(20), || async {
        let status = running.instance.status();
        status.role == Role::Leading && status.term > term + 1
    })
    .await;
    assert_eq!(count(&client).await, 2);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoints_are_a_nats_micro_service_with_schemas() {
    let nats = NatsServer::start().await;
    let running = Running::start(&nats.client_url(), &Settings::default());
    running.is(Role::Leading).await;
    let client = nats.connect().await;
    let info = client.request("$SRV.INFO.baton-optimizer", "".into()).await.unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.payload).unwrap();
    let endpoints = info["endpoints"].as_array().unwrap();
    let set = endpoints.iter().find(|e| e["name"] == "strategy-set").unwrap();
    assert_eq!(set["subject"], "baton.req.optimizer.strategy.set");
    assert!(set["metadata"]["request_schema"].as_str().unwrap().contains("ROUND_ROBIN"));
    let stats = client.request("$SRV.STATS.baton-optimizer", "".into()).await.unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&stats.payload).unwrap();
    assert_eq!(stats["endpoints"].as_array().unwrap().len(), endpoints.len());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn m2_observers_see_records_as_events_after_their_commit() {
    let nats = NatsServer::start().await;
    let running = Running::start(&nats.client_url(), &Settings::default());
    running.is(Role::Leading).await;
    let watcher = nats.connect().await;
    let mut events = watcher.subscribe(subject::EVENTS).await.unwrap();
    watcher.flush().await.unwrap();
    let client = Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap();
    set(&client).await;
    let event = events.next().await.unwrap();
    assert_eq!(event.subject.as_str(), "baton.event.service.optimizer.strategy_changed");
    // There are more events than anything else: all that headers would say is in the body, which is plain JSON.
    assert!(event.headers.is_none());
    let event: baton_protocol::record::Event = serde_json::from_slice(&event.payload).unwrap();
    assert_eq!((event.number, event.position.seq), (1, 2));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_to_inboxes_only() {
    let nats = NatsServer::start().await;
    let running = Running::start(&nats.client_url(), &Settings::default());
    running.is(Role::Leading).await;
    let asker = nats.connect().await;
    let log = subject::log(Shard(0), Service::Optimizer);
    // Who may ask could otherwise have the service write into its own log, with the service's rights.
    for asked in [subject::request(Service::Optimizer, "placement.get"), subject::status(Service::Optimizer)] {
        for reply in [log.as_str(), "$JS.API.STREAM.DELETE.BATON_LOG_0"] {
            asker.publish_with_reply(asked.clone(), reply.to_owned(), "{}".into()).await.unwrap();
        }
    }
    asker.flush().await.unwrap();
    wait_for("they are counted", Duration::from_secs(10), || async { running.instance.status().set_aside == 2 }).await;
    let client = Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap();
    set(&client).await;
    assert_eq!(replay(&client).await.count, 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_is_answered_also_when_there_is_no_room_to_wait() {
    const ASKED: usize = 20_000;
    let nats = NatsServer::start().await;
    let running = Running::start(&nats.client_url(), &Settings::default());
    running.is(Role::Leading).await;
    let asker = nats.connect().await;
    let inbox = asker.new_inbox();
    let mut answers = asker.subscribe(inbox.clone()).await.unwrap();
    let subject = subject::request(Service::Optimizer, "strategy.set");
    let body = serde_json::to_vec(&SetStrategy { strategy: Strategy::RoundRobin }).unwrap();
    let floods = tokio::spawn({
        let asker = nats.connect().await;
        async move {
            for _ in 0..ASKED {
                asker.publish_with_reply(subject.clone(), inbox.clone(), body.clone().into()).await.unwrap();
            }
            asker.flush().await.unwrap();
        }
    });
    let (mut done, mut refused) = (0, 0);
    for _ in 0..ASKED {
        let answer = tokio::time::timeout(Duration::from_secs(20), answers.next()).await.unwrap().unwrap();
        match serde_json::from_slice::<baton_protocol::Rejection>(&answer.payload) {
            Ok(rejection) => {
                assert_eq!(rejection.code, baton_protocol::Code::Overloaded);
                assert!(rejection.retry_after_ms.is_some());
                refused += 1;
            }
            Err(_) => done += 1,
        }
    }
    assert_eq!(done + refused, ASKED);
    floods.await.unwrap();
    // What was refused did nothing, what was answered is in the log.
    let client = Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap();
    assert_eq!(count(&client).await, done as u64);
    assert_eq!(replay(&client).await.count, done as u64);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_log_that_lost_its_end_is_not_used() {
    let nats = NatsServer::start().await;
    let settings = Settings::default();
    let running = Running::start(&nats.client_url(), &settings);
    running.is(Role::Leading).await;
    let client = Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap();
    for _ in 0..5 {
        set(&client).await;
    }
    running.stop().await;
    let js = jetstream::new(client.nats().clone());
    let store = js.get_object_store(subject::SNAPSHOTS_BUCKET).await.unwrap();
    let mut text = Vec::new();
    let mut object = store.get("optimizer").await.unwrap();
    tokio::io::AsyncReadExt::read_to_end(&mut object, &mut text).await.unwrap();
    let mut stored: serde_json::Value = serde_json::from_slice(&text).unwrap();
    // As if five more records had been in the log when it was made.
    let own = stored["snapshot"]["own"].as_u64().unwrap();
    stored["snapshot"]["next"] = 11.into();
    stored["snapshot"]["machine"]["count"] = 10.into();
    for seq in [own, own + 1000] {
        stored["snapshot"]["own"] = seq.into();
        store.put("optimizer", &mut stored.to_string().as_bytes()).await.unwrap();
        let running = Running::start(&nats.client_url(), &settings);
        running.is(Role::Leading).await;
        assert_eq!(count(&client).await, 5);
        running.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_writes_nothing_is_snapshotted_too() {
    let nats = NatsServer::start().await;
    let mut settings = Settings::default();
    settings.log.snapshot_records = 100;
    let running = Running::start(&nats.client_url(), &settings);
    running.is(Role::Leading).await;
    // What another service writes moves the log on; the cursor is committed once in a while, and a snapshot goes with it.
    let js = jetstream::new(nats.connect().await);
    let subject = subject::log(Shard(0), Service::WorkflowManager);
    for seq in 0..1100 {
        let commit = serde_json::json!({
            "format": 1, "instance": "w", "term": seq + 1, "first": 1, "handled": 0, "turns": []
        });
        js.publish(subject.clone(), commit.to_string().into()).await.unwrap().await.unwrap();
    }
    let store = js.get_object_store(subject::SNAPSHOTS_BUCKET).await.unwrap();
    wait_for("a snapshot", Duration::from_secs(20), || async { store.info("optimizer").await.is_ok() }).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_with_small_messages_is_refused() {
    let options = baton_testkit::NatsOptions { max_payload: 64 * 1024, ..Default::default() };
    let nats = NatsServer::start_with(options).await;
    let running = Running::start(&nats.client_url(), &Settings::default());
    let error = running.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("65536") && error.contains("max_payload"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_deleted_underneath_stops_the_service() {
    let nats = NatsServer::start().await;
    let running = Running::start(&nats.client_url(), &Settings::default());
    running.is(Role::Leading).await;
    let js = jetstream::new(nats.connect().await);
    js.delete_stream(subject::log_stream(Shard(0))).await.unwrap();
    let client = Client::connect(&ConnectSettings::server(nats.client_url())).await.unwrap();
    let _ = client.with_deadline(Duration::ZERO).set_strategy(Strategy::RoundRobin).await;
    let error = running.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("deleted and made anew"), "{error}");
}
