//! An agent against a real nats-server; the services' side of the conversation is played by the tests.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::header::HeaderMap;
use async_nats::{Client as Nats, Message};
use baton_protocol::request::{
    Assignment, Assignments, CancelTask, Decline, Done, Heartbeat, HeartbeatAnswer, Leave, MAX_JSON_BYTES, Progress,
    RegisterAgent, Registered, Report, ReportAnswer, ReportStatus, ReportStored, Reports, ReportsAnswered,
    RestartAgent,
};
use baton_protocol::trace::{Span, SpanKind, TraceContext};
use baton_protocol::{Capability, Code, Rejection, Resources, WorkflowName, header, subject};
use baton_sdk::{
    Agent, AgentError, AgentId, Builder, CancellationToken, ConnectSettings, Json, LeaseId, Output, RunId, StageName,
    Task, TaskError, TaskId, TaskResult,
};
use baton_testkit::{NatsOptions, NatsServer, wait_for};
use futures::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(20);
const HEARTBEAT_MS: u64 = 50;

type Script = Box<dyn FnMut(&Heartbeat) -> Result<HeartbeatAnswer, Rejection> + Send>;

fn ann() -> AgentId {
    AgentId::new("ann").unwrap()
}

/// The services' side.
struct Side {
    nats: Nats,
    heard: HashMap<&'static str, UnboundedReceiver<Message>>,
    script: Arc<Mutex<Script>>,
    holds: watch::Receiver<Vec<LeaseId>>,
}

/// The reports in a message that holds one or several.
fn reports_in(message: &Message) -> Vec<Report> {
    if message.subject.ends_with(".reports") { read::<Reports>(message).reports } else { vec![read(message)] }
}

impl Side {
    /// Listens to what `ann` says, and answers heartbeats; the tests answer the rest.
    async fn listen(server: &NatsServer) -> Self {
        let nats = server.connect().await;
        let mut all = nats.subscribe("baton.agent.ann.*").await.unwrap();
        let mut sink: HashMap<&'static str, UnboundedSender<Message>> = HashMap::new();
        let mut heard = HashMap::new();
        for verb in ["register", "report", "reports", "decline", "leave", "progress"] {
            let (sender, receiver) = unbounded_channel();
            sink.insert(verb, sender);
            heard.insert(verb, receiver);
        }
        let script: Script = Box::new(|_| Ok(keep_on(vec![], vec![])));
        let script = Arc::new(Mutex::new(script));
        let (told, holds) = watch::channel(Vec::new());
        let (answers, answer) = (nats.clone(), script.clone());
        tokio::spawn(async move {
            while let Some(message) = all.next().await {
                let verb = message.subject.rsplit('.').next().unwrap().to_owned();
                if verb == "heartbeat" {
                    let heartbeat: Heartbeat = read(&message);
                    let decided = answer.lock().unwrap()(&heartbeat);
                    match decided {
                        Ok(body) => reply(&answers, &message, &body).await,
                        Err(rejection) => reject(&answers, &message, &rejection).await,
                    }
                    told.send_replace(heartbeat.holds);
                } else {
                    // A test that does not listen any more is over.
                    let _ = sink[verb.as_str()].send(message);
                }
            }
        });
        // A round trip: what is said from now on is heard.
        let inbox = nats.new_inbox();
        let mut echo = nats.subscribe(inbox.clone()).await.unwrap();
        nats.publish(inbox, "".into()).await.unwrap();
        echo.next().await.unwrap();
        Self { nats, heard, script, holds }
    }

    async fn hear(&mut self, verb: &str) -> Message {
        let heard = self.heard.get_mut(verb).unwrap();
        let message = tokio::time::timeout(SOON, heard.recv()).await;
        message.unwrap_or_else(|_| panic!("no {verb} was heard")).unwrap()
    }

    fn answer_heartbeats(&self, script: impl FnMut(&Heartbeat) -> Result<HeartbeatAnswer, Rejection> + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    async fn register(&mut self) -> RegisterAgent {
        let message = self.hear("register").await;
        reply(&self.nats, &message, &Registered { heartbeat_ms: HEARTBEAT_MS, lease_ms: 1000 }).await;
        read(&message)
    }

    async fn assign(&self, assignment: &Assignment) {
        let body = serde_json::to_vec(assignment).unwrap();
        self.nats.publish(subject::assign(&ann()), body.into()).await.unwrap();
    }

    async fn report(&mut self) -> Report {
        let message = self.hear("report").await;
        let report: Report = read(&message);
        reply(&self.nats, &message, &ReportStored { lease: report.lease }).await;
        report
    }

    /// The next message with one report or several.
    async fn any_report(&mut self) -> Message {
        let heard = &mut self.heard;
        let (mut alone, mut together) = (heard.remove("report").unwrap(), heard.remove("reports").unwrap());
        let message = tokio::time::timeout(SOON, async {
            tokio::select! {
                message = alone.recv() => message,
                message = together.recv() => message,
            }
        })
        .await;
        heard.insert("report", alone);
        heard.insert("reports", together);
        message.expect("no report was heard").unwrap()
    }

    /// Answers a message with reports: each is stored, unless it is to be refused.
    async fn store(&self, message: &Message, refused: &dyn Fn(LeaseId) -> Option<Rejection>) {
        let answer = |report: &Report| match refused(report.lease) {
            Some(rejection) => ReportAnswer::Refused(rejection),
            None => ReportAnswer::Stored(ReportStored { lease: report.lease }),
        };
        let mut answers: Vec<_> = reports_in(message).iter().map(answer).collect();
        if message.subject.ends_with(".reports") {
            return reply(&self.nats, message, &ReportsAnswered { answers }).await;
        }
        match answers.pop().unwrap() {
            ReportAnswer::Stored(stored) => reply(&self.nats, message, &stored).await,
            ReportAnswer::Refused(rejection) => reject(&self.nats, message, &rejection).await,
        }
    }

    /// All messages with reports that come while none is answered: as many as may be under way, or all that there are.
    async fn unanswered(&mut self) -> Vec<Message> {
        let mut messages = vec![self.any_report().await];
        while messages.len() < 4 && messages.iter().flat_map(reports_in).count() < 4 {
            messages.push(self.any_report().await);
        }
        messages
    }

    /// Waits until a heartbeat says that these are held.
    async fn until_held(&mut self, leases: &[u64]) {
        let leases: Vec<_> = leases.iter().map(|lease| LeaseId(*lease)).collect();
        let held = tokio::time::timeout(SOON, self.holds.wait_for(|holds| *holds == leases)).await;
        assert!(held.is_ok(), "never held {leases:?}");
    }

    /// Waits for two more heartbeats, so that what was sent before the first has been taken.
    async fn heartbeats(&mut self) {
        for _ in 0..2 {
            self.holds.mark_unchanged();
            tokio::time::timeout(SOON, self.holds.changed()).await.expect("a heartbeat").unwrap();
        }
    }

    async fn goodbye(&mut self) -> Leave {
        let message = self.hear("leave").await;
        reply(&self.nats, &message, &Done {}).await;
        read(&message)
    }
}

fn keep_on(start: Vec<Assignment>, drop: Vec<LeaseId>) -> HeartbeatAnswer {
    HeartbeatAnswer { start, drop, offers: Vec::new(), restart: None, heartbeat_ms: HEARTBEAT_MS, lease_ms: 1000 }
}

fn read<T: DeserializeOwned>(message: &Message) -> T {
    serde_json::from_slice(&message.payload).unwrap()
}

fn text(message: &Message, name: &str) -> String {
    message.headers.as_ref().and_then(|headers| headers.get(name)).map(ToString::to_string).unwrap_or_default()
}

async fn reply<T: Serialize>(nats: &Nats, request: &Message, body: &T) {
    let subject = request.reply.clone().expect("a request has a reply subject");
    nats.publish(subject, serde_json::to_vec(body).unwrap().into()).await.unwrap();
}

async fn reject(nats: &Nats, request: &Message, rejection: &Rejection) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Service-Error", rejection.message.as_str());
    headers.insert("Nats-Service-Error-Code", rejection.code.http_status().to_string());
    let subject = request.reply.clone().expect("a request has a reply subject");
    nats.publish_with_headers(subject, headers, serde_json::to_vec(rejection).unwrap().into()).await.unwrap();
}

fn assignment(lease: u64) -> Assignment {
    let run = RunId::derive(1000, 7);
    let stage = StageName::new("reading").unwrap();
    let results = [(StageName::new("before").unwrap(), Json::of(&json!({ "x": 1 })).unwrap())];
    Assignment {
        lease: LeaseId(lease),
        task: TaskId { run, stage: stage.clone(), item: None, attempt: 1 },
        run,
        stage,
        attempt: 1,
        item: None,
        index: None,
        workflow: WorkflowName::new("article").unwrap(),
        agent_type: Capability::new("research").unwrap(),
        input: Json::of(&json!({ "topic": "owls" })).unwrap(),
        results: BTreeMap::from(results),
        params: BTreeMap::new(),
        metadata: BTreeMap::new(),
        resources: Resources::new(),
        ready_at: 0,
        timeout_ms: 60_000,
        trace: TraceContext::of_run(run),
        handover: None,
        heartbeat_timeout_ms: None,
        delegated: None,
    }
}

fn builder(server: &NatsServer) -> Builder {
    Agent::builder("ann", "research").settings(ConnectSettings::server(server.client_url()))
}

type Running = (JoinHandle<Result<(), AgentError>>, oneshot::Sender<()>);

async fn run<H, F>(builder: Builder, handler: H) -> Running
where
    H: Fn(Task) -> F + Send + Sync + 'static,
    F: Future<Output = TaskResult> + Send + 'static,
{
    let agent = builder.connect().await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let until = async move {
        // Also where the test is over and has dropped the other end.
        let _ = stopped.await;
    };
    (tokio::spawn(agent.run_until(handler, until)), stop)
}

#[tokio::test]
async fn a1_a_task_is_done_and_reported_until_the_report_is_stored() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let spans = Arc::new(Mutex::new(Vec::<Span>::new()));
    let taken = spans.clone();
    let agent = builder(&server)
        .capability("summaries", json!({ "languages": ["en"] }))
        .resource("cpu", 2)
        .slots(3)
        .spans(Arc::new(move |span| taken.lock().unwrap().push(span)));
    let (_agent, _stop) = run(agent, |task: Task| async move {
        #[derive(serde::Deserialize)]
        struct Input {
            topic: String,
        }
        let input: Input = task.input()?;
        let before: serde_json::Value = task.result_of("before")?;
        task.progress(0.5, "reading").await;
        task.span("chat tiny", 1, 2, [("gen_ai.request.model", "tiny".to_owned())]);
        Ok(Output::json(&json!({ "about": input.topic, "before": before["x"] }))?.cost("0.01").usage(12, 34))
    })
    .await;

    let registration = side.register().await;
    assert_eq!(registration.slots, 3);
    assert_eq!(serde_json::to_value(&registration.resources).unwrap(), json!({ "cpu": 2 }));
    assert_eq!(
        serde_json::to_value(&registration.capabilities).unwrap(),
        json!({ "summaries": { "languages": ["en"] } })
    );
    side.heartbeats().await;
    side.assign(&assignment(5)).await;

    let progress: Progress = read(&side.hear("progress").await);
    assert_eq!(progress, Progress { lease: LeaseId(5), fraction: 0.5, message: "reading".into() });
    // Nobody answers the first report. It is held until the second is answered.
    let first = side.hear("report").await;
    side.until_held(&[5]).await;
    let second = side.hear("report").await;
    assert_eq!(first.payload, second.payload);
    assert_eq!(text(&first, header::ID), text(&second, header::ID));
    assert_eq!(text(&second, header::TYPE), "task_complete");
    assert_eq!(text(&second, header::SOURCE), "ann");
    assert_eq!(text(&second, header::CORRELATION_ID), assignment(5).run.to_string());
    let report: Report = read(&second);
    assert_eq!(report.task, assignment(5).task);
    assert_eq!(report.status, ReportStatus::Succeeded);
    assert_eq!(report.result.unwrap().as_str(), r#"{"about":"owls","before":1}"#);
    assert_eq!((report.cost.to_string(), report.usage.tokens_in, report.usage.tokens_out), ("0.01".into(), 12, 34));
    reply(&side.nats, &second, &ReportStored { lease: LeaseId(5) }).await;
    side.until_held(&[]).await;

    let spans = spans.lock().unwrap();
    let [chat, invoked] = &spans[..] else { panic!("two spans were expected: {spans:?}") };
    let parent = assignment(5).trace;
    assert_eq!((invoked.name.as_str(), invoked.kind), ("invoke_agent research", SpanKind::Consumer));
    assert_eq!((invoked.context.trace, invoked.parent), (parent.trace, Some(parent.span)));
    assert!(invoked.attributes.contains(&("baton.agent.id", "ann".to_owned())));
    assert_eq!((chat.name.as_str(), chat.parent), ("chat tiny", Some(invoked.context.span)));
    assert_eq!(text(&second, header::TRACEPARENT), invoked.context.to_string());
}

#[tokio::test]
async fn what_is_assigned_twice_is_started_once() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let started = Arc::new(AtomicUsize::new(0));
    let (go, gone) = watch::channel(false);
    let count = started.clone();
    let (_agent, _stop) = run(builder(&server), move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        let mut gone = gone.clone();
        async move {
            gone.wait_for(|gone| *gone).await.unwrap();
            Output::json("done")
        }
    })
    .await;
    side.register().await;
    side.heartbeats().await;
    // Pushed twice, and in the answer to every heartbeat, while it runs and after it has been reported.
    side.answer_heartbeats(|_| Ok(keep_on(vec![assignment(5)], vec![])));
    side.assign(&assignment(5)).await;
    side.assign(&assignment(5)).await;
    side.until_held(&[5]).await;
    side.heartbeats().await;
    go.send(true).unwrap();
    side.report().await;
    side.until_held(&[]).await;
    side.assign(&assignment(5)).await;
    side.heartbeats().await;
    assert_eq!(started.load(Ordering::SeqCst), 1);
    assert!(side.holds.borrow().is_empty());
}

#[tokio::test]
async fn a_heartbeat_heals_a_lost_push_and_a_lost_cancellation() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let (tokens, mut token) = unbounded_channel::<CancellationToken>();
    let (_agent, _stop) = run(builder(&server).slots(2), move |task: Task| {
        tokens.send(task.cancelled().clone()).unwrap();
        async move {
            task.cancelled().cancelled().await;
            Output::json("too late")
        }
    })
    .await;
    side.register().await;
    side.answer_heartbeats(|_| Ok(keep_on(vec![assignment(5), assignment(6)], vec![])));
    side.until_held(&[5, 6]).await;
    let (first, second) = (token.recv().await.unwrap(), token.recv().await.unwrap());
    assert!(!first.is_cancelled() && !second.is_cancelled());

    // One is dropped by the answer to a heartbeat, the other by a message.
    side.answer_heartbeats(|_| Ok(keep_on(vec![], vec![LeaseId(5)])));
    first.cancelled().await;
    let cancel = CancelTask { lease: LeaseId(6), task: assignment(6).task, reason: "the run was cancelled".into() };
    side.nats.publish(subject::cancel(&ann()), serde_json::to_vec(&cancel).unwrap().into()).await.unwrap();
    second.cancelled().await;
    side.until_held(&[]).await;
    side.heartbeats().await;
    assert!(side.heard.get_mut("report").unwrap().try_recv().is_err(), "a dropped task was reported");
}

#[tokio::test]
async fn an_agent_that_is_not_known_any_more_registers_again_and_keeps_its_work() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let (go, gone) = watch::channel(false);
    let (_agent, _stop) = run(builder(&server), move |_| {
        let mut gone = gone.clone();
        async move {
            gone.wait_for(|gone| *gone).await.unwrap();
            Output::json("done")
        }
    })
    .await;
    let first = side.register().await;
    side.heartbeats().await;
    side.assign(&assignment(5)).await;
    side.until_held(&[5]).await;
    let mut known = false;
    side.answer_heartbeats(move |_| {
        if std::mem::replace(&mut known, true) {
            Ok(keep_on(vec![], vec![]))
        } else {
            Err(Rejection::new(Code::UnknownAgent, "who?"))
        }
    });
    let second = side.register().await;
    assert_eq!(first, second);
    side.heartbeats().await;
    assert_eq!(*side.holds.borrow(), [LeaseId(5)]);
    go.send(true).unwrap();
    assert_eq!(side.report().await.lease, LeaseId(5));
}

#[tokio::test]
async fn an_agent_that_is_replaced_stops_at_once() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let (tokens, mut token) = unbounded_channel::<CancellationToken>();
    let (agent, _stop) = run(builder(&server), move |task: Task| {
        tokens.send(task.cancelled().clone()).unwrap();
        pending::<TaskResult>()
    })
    .await;
    side.register().await;
    side.heartbeats().await;
    side.assign(&assignment(5)).await;
    let token = token.recv().await.unwrap();
    side.answer_heartbeats(|_| Err(Rejection::new(Code::AgentReplaced, "another session")));
    let error = agent.await.unwrap().unwrap_err();
    assert!(matches!(&error, AgentError::Replaced(agent) if *agent == ann()), "{error}");
    assert!(error.to_string().contains("another process has registered as the agent ann"), "{error}");
    assert!(token.is_cancelled());
    assert!(side.heard.get_mut("leave").unwrap().try_recv().is_err(), "only the one who replaced it may leave");
}

#[tokio::test]
async fn what_goes_wrong_in_a_handler_is_reported_as_a_failure() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let (_agent, _stop) = run(builder(&server).slots(9), |task: Task| async move {
        match task.lease.0 {
            1 => panic!("the {} is on fire", task.stage),
            2 => Err(TaskError::failed("no such source").permanent().cost("0.5")),
            3 => Err(anyhow::anyhow!("inner").context("outer"))?,
            4 => Output::json(&"x".repeat(MAX_JSON_BYTES)),
            5 => Ok(Output::raw(task.result_of::<Json>("nobody")?)),
            _ => Output::json(&task.input::<Vec<u8>>()?),
        }
    })
    .await;
    side.register().await;
    side.heartbeats().await;
    for (lease, error, retryable) in [
        (1, "the handler panicked: the reading is on fire", true),
        (2, "no such source", false),
        (3, "outer: inner", true),
        // It is too large for a message, and nothing here keeps objects.
        (4, "the result can not be kept: there is no store for objects", true),
        (5, "there is no result of the stage \"nobody\"; there are results of: before", false),
        (6, "the run's input can not be used: invalid type: map", false),
    ] {
        side.assign(&assignment(lease)).await;
        let report = side.report().await;
        assert_eq!((report.lease, report.status, report.retryable), (LeaseId(lease), ReportStatus::Failed, retryable));
        let told = report.error.unwrap();
        assert!(told.starts_with(error), "{told}");
        assert_eq!(report.cost.to_string(), if lease == 2 { "0.5" } else { "0" });
    }
}

#[tokio::test]
async fn a_refused_report_is_dropped_if_stale_and_becomes_a_failure_otherwise() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let noted = told.clone();
    let agent = builder(&server).told(Arc::new(move |report: &Report, answer: Result<(), &Rejection>| {
        noted.lock().unwrap().push((report.lease, report.status, answer.err().map(|rejection| rejection.code)));
    }));
    let (_agent, _stop) = run(agent, |_| async { Ok(Output::json("done")?.cost("2").usage(1, 1)) }).await;
    side.register().await;
    side.heartbeats().await;
    side.assign(&assignment(5)).await;
    let stale = side.hear("report").await;
    reject(&side.nats, &stale, &Rejection::new(Code::StaleLease, "lease 5 has ended")).await;
    side.assign(&assignment(6)).await;
    let report = side.hear("report").await;
    assert_eq!(read::<Report>(&report).lease, LeaseId(6));
    // The service has no leader: asked again. It does not take the result: a failure is reported.
    reject(&side.nats, &report, &Rejection::new(Code::Unavailable, "no leader").retry_after(1)).await;
    let report = side.hear("report").await;
    reject(&side.nats, &report, &Rejection::new(Code::TooLarge, "a result has at most 3 bytes")).await;
    let message = side.hear("report").await;
    let failure: Report = read(&message);
    assert_eq!((failure.lease, failure.status, failure.retryable), (LeaseId(6), ReportStatus::Failed, false));
    assert!(failure.error.unwrap().contains("a result has at most 3 bytes"));
    assert_eq!((failure.cost.to_string(), failure.usage.tokens_in), ("2".into(), 1));
    assert_eq!(text(&message, header::TYPE), "task_failed");
    reply(&side.nats, &message, &ReportStored { lease: LeaseId(6) }).await;
    side.until_held(&[]).await;
    // An agent that keeps books hears of all answers but those after which it is asked again.
    wait_for("the last answer", SOON, || async { told.lock().unwrap().len() == 3 }).await;
    assert_eq!(
        *told.lock().unwrap(),
        [
            (LeaseId(5), ReportStatus::Succeeded, Some(Code::StaleLease)),
            (LeaseId(6), ReportStatus::Succeeded, Some(Code::TooLarge)),
            (LeaseId(6), ReportStatus::Failed, None),
        ]
    );
}

#[tokio::test]
async fn a_report_outlives_the_broker() {
    let mut server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let (go, gone) = watch::channel(false);
    let (_agent, _stop) = run(builder(&server), move |_| {
        let mut gone = gone.clone();
        async move {
            gone.wait_for(|gone| *gone).await.unwrap();
            Output::json("done")
        }
    })
    .await;
    side.register().await;
    side.heartbeats().await;
    side.assign(&assignment(5)).await;
    side.until_held(&[5]).await;
    server.kill().await;
    go.send(true).unwrap();
    server.restart().await;
    // Meanwhile something was assigned, and its push got lost.
    side.answer_heartbeats(|_| Ok(keep_on(vec![assignment(6)], vec![])));
    let mut reported = vec![side.report().await.lease];
    while reported.len() < 2 || !reported.contains(&LeaseId(5)) {
        let lease = side.report().await.lease;
        if !reported.contains(&lease) {
            reported.push(lease);
        }
    }
    reported.sort();
    assert_eq!(reported, [LeaseId(5), LeaseId(6)]);
    side.until_held(&[]).await;
}

#[tokio::test]
async fn an_agent_that_is_to_stop_finishes_gives_back_and_leaves() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let (go, gone) = watch::channel(false);
    let (agent, stop) = run(builder(&server), move |_| {
        let mut gone = gone.clone();
        async move {
            gone.wait_for(|gone| *gone).await.unwrap();
            Output::json("done")
        }
    })
    .await;
    let session = side.register().await.session;
    side.heartbeats().await;
    side.assign(&assignment(5)).await;
    side.until_held(&[5]).await;
    stop.send(()).unwrap();
    // Whether the agent knows yet is seen by what it does with new work.
    let mut lease = 100;
    let declined = loop {
        side.assign(&assignment(lease)).await;
        side.heartbeats().await;
        if let Ok(message) = side.heard.get_mut("decline").unwrap().try_recv() {
            break message;
        }
        lease += 1;
        assert!(lease < 200, "new work is not given back");
    };
    assert_eq!(read::<Decline>(&declined).reason, "the agent is stopping");
    reply(&side.nats, &declined, &Done {}).await;
    assert!(side.holds.borrow().contains(&LeaseId(5)), "it still works and says so");
    assert!(!agent.is_finished());
    go.send(true).unwrap();
    assert_eq!(side.report().await.lease, LeaseId(5));
    // What it took before it knew is done as well.
    while !side.holds.borrow().is_empty() && side.holds.borrow().iter().any(|lease| lease.0 >= 100) {
        side.report().await;
    }
    assert_eq!(side.goodbye().await.session, session);
    agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_agent_that_may_not_finish_leaves_all_the_same() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let (tokens, mut token) = unbounded_channel::<CancellationToken>();
    let (agent, stop) = run(builder(&server).grace(Duration::ZERO), move |task: Task| {
        tokens.send(task.cancelled().clone()).unwrap();
        pending::<TaskResult>()
    })
    .await;
    side.register().await;
    side.heartbeats().await;
    side.assign(&assignment(5)).await;
    let token = token.recv().await.unwrap();
    stop.send(()).unwrap();
    side.goodbye().await;
    agent.await.unwrap().unwrap();
    assert!(token.is_cancelled());
}

#[tokio::test]
async fn a_task_that_takes_too_long_is_cancelled_and_stopped() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let (_agent, _stop) = run(builder(&server).slots(2).patience(Duration::from_millis(1)), |task: Task| async move {
        if task.lease == LeaseId(6) {
            return pending().await;
        }
        task.cancelled().cancelled().await;
        Err(TaskError::failed("I was told to stop"))
    })
    .await;
    side.register().await;
    side.heartbeats().await;
    for (lease, why) in [(5, "I was told to stop"), (6, "the task took longer than its 10 ms, and its handler did not")]
    {
        side.assign(&Assignment { timeout_ms: 10, ..assignment(lease) }).await;
        let report = side.report().await;
        let told = report.error.unwrap();
        assert!(told.starts_with(why) && report.retryable, "{told}");
    }
    // The longest time there is does not overflow.
    side.assign(&Assignment { timeout_ms: u64::MAX, ..assignment(7) }).await;
    side.until_held(&[7]).await;
}

#[tokio::test]
async fn no_more_than_one_over_the_slots_are_done_at_a_time() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let (doing, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (go, gone) = watch::channel(false);
    let (now, peak) = (doing.clone(), most.clone());
    let (_agent, _stop) = run(builder(&server).slots(2), move |_| {
        let (now, peak, mut gone) = (now.clone(), peak.clone(), gone.clone());
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            gone.wait_for(|gone| *gone).await.unwrap();
            now.fetch_sub(1, Ordering::SeqCst);
            Output::json("done")
        }
    })
    .await;
    side.register().await;
    side.heartbeats().await;
    for lease in 1..=6 {
        side.assign(&assignment(lease)).await;
    }
    side.until_held(&[1, 2, 3, 4, 5, 6]).await;
    wait_for("three are being done", SOON, async || match doing.load(Ordering::SeqCst) {
        3 => Ok(()),
        other => Err(other),
    })
    .await;
    go.send(true).unwrap();
    let mut reported = 0;
    while reported < 6 {
        let message = side.any_report().await;
        reported += reports_in(&message).len();
        side.store(&message, &|_| None).await;
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a1_what_comes_together_is_taken_and_what_ends_meanwhile_is_reported_together() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let (_agent, _stop) = run(builder(&server).slots(10), |_| async { Output::json("done") }).await;
    assert!(side.register().await.batches);
    side.heartbeats().await;
    let body = serde_json::to_vec(&Assignments { assignments: (1..=4).map(assignment).collect() }).unwrap();
    side.nats.publish(subject::assignments(&ann()), body.into()).await.unwrap();
    // No more messages with reports are under way than may be; what ends after that waits for an answer.
    side.until_held(&[1, 2, 3, 4]).await;
    let first = side.unanswered().await;
    for lease in 5..=8 {
        side.assign(&assignment(lease)).await;
    }
    side.until_held(&[1, 2, 3, 4, 5, 6, 7, 8]).await;
    side.heartbeats().await;
    let mut leases: Vec<_> = first.iter().flat_map(reports_in).map(|report| report.lease.0).collect();
    for message in &first {
        side.store(message, &|_| None).await;
    }
    // One of the others is refused for the moment: it goes again, alone.
    while leases.len() < 8 {
        let message = side.any_report().await;
        let refused = |lease: LeaseId| {
            let alone = reports_in(&message).len() == 1;
            (lease == LeaseId(7) && !alone).then(|| Rejection::new(Code::Unavailable, "later").retry_after(1))
        };
        leases.extend(reports_in(&message).iter().map(|r| r.lease).filter(|l| refused(*l).is_none()).map(|l| l.0));
        side.store(&message, &refused).await;
    }
    leases.sort_unstable();
    assert_eq!(leases, [1, 2, 3, 4, 5, 6, 7, 8]);
    side.until_held(&[]).await;
}

#[tokio::test]
async fn one_report_that_can_not_be_stored_holds_up_no_other() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let (_agent, _stop) = run(builder(&server).slots(10), |_| async { Output::json("done") }).await;
    side.register().await;
    side.heartbeats().await;
    let body = serde_json::to_vec(&Assignments { assignments: (1..=8).map(assignment).collect() }).unwrap();
    side.nats.publish(subject::assignments(&ann()), body.into()).await.unwrap();
    // The workflow-manager has not read lease 7, and never will.
    let mut stored = std::collections::BTreeSet::new();
    while stored.len() < 7 {
        let message = side.any_report().await;
        let leases: Vec<_> = reports_in(&message).iter().map(|report| report.lease.0).collect();
        if leases.contains(&7) {
            reject(&side.nats, &message, &Rejection::new(Code::Unavailable, "not read yet").retry_after(1)).await;
        } else {
            stored.extend(leases);
            side.store(&message, &|_| None).await;
        }
    }
    side.until_held(&[7]).await;
    // Once it is not held any more, nobody says it again.
    side.answer_heartbeats(|_| Ok(keep_on(vec![], vec![LeaseId(7)])));
    side.until_held(&[]).await;
}

#[tokio::test]
async fn work_of_an_earlier_life_is_not_taken() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let (_agent, _stop) = run(builder(&server), |_| async { Output::json("done") }).await;
    let message = side.hear("register").await;
    side.assign(&assignment(4)).await;
    reply(&side.nats, &message, &Registered { heartbeat_ms: HEARTBEAT_MS, lease_ms: 1000 }).await;
    side.heartbeats().await;
    side.assign(&assignment(5)).await;
    assert_eq!(side.report().await.lease, LeaseId(5));
}

#[tokio::test]
async fn an_agent_that_can_not_be_one_says_why() {
    let server = NatsServer::start().await;
    let why = |builder: Builder| {
        let builder = builder.settings(ConnectSettings::server(server.client_url()));
        async move { builder.connect().await.err().unwrap().to_string() }
    };
    assert!(why(Agent::builder("Ann", "research")).await.contains("agent id \"Ann\""));
    assert!(why(Agent::builder("ann", "re search")).await.contains("capability \"re search\""));
    assert!(why(Agent::builder("ann", "research").resource("C", 1)).await.contains("resource name \"C\""));
    assert!(why(Agent::builder("ann", "research").slots(0)).await.contains("slot"));
    assert!(why(Agent::builder("ann", "research").capability("x", 7)).await.contains("\"x\" is not a JSON object"));

    let mut side = Side::listen(&server).await;
    let (agent, _stop) = run(builder(&server), |_| pending::<TaskResult>()).await;
    let message = side.hear("register").await;
    reject(&side.nats, &message, &Rejection::invalid("an agent named ann is not welcome")).await;
    let error = agent.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("not registered: an agent named ann is not welcome (invalid_request)"), "{error}");
}

#[tokio::test]
async fn an_agent_that_the_broker_forbids_to_be_one_stops() {
    let extra_config = r#"authorization { users: [
        { user: ann, password: hush, permissions: { publish: ["other.>"], subscribe: [">"] } }
    ] }"#;
    let server =
        NatsServer::start_with(NatsOptions { extra_config: extra_config.to_owned(), ..NatsOptions::default() }).await;
    let settings = ConnectSettings {
        user: Some("ann".into()),
        password: Some("hush".into()),
        ..ConnectSettings::server(server.client_url())
    };
    let agent = Agent::builder("ann", "research").settings(settings);
    let (agent, _stop) = run(agent, |_| pending::<TaskResult>()).await;
    let error = agent.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("baton.agent.ann.register") && error.contains("must be allowed"), "{error}");
}

#[tokio::test]
async fn w8_an_agent_that_is_asked_to_begin_anew_ends_what_it_has_and_says_so() {
    let server = NatsServer::start().await;
    let mut side = Side::listen(&server).await;
    let (go, gone) = watch::channel(false);
    let (agent, _stop) = run(builder(&server).restarts(), move |_| {
        let mut gone = gone.clone();
        async move {
            gone.wait_for(|gone| *gone).await.unwrap();
            Output::json("done")
        }
    })
    .await;
    let session = side.register().await.session;
    side.heartbeats().await;
    side.assign(&assignment(5)).await;
    side.until_held(&[5]).await;
    let restart = |session: &str| RestartAgent { session: session.to_owned(), reason: "it fails".to_owned() };
    // Another life of it was meant.
    let other = serde_json::to_vec(&restart("another")).unwrap();
    side.nats.publish(subject::restart(&ann()), other.into()).await.unwrap();
    side.heartbeats().await;
    // This one is told with a heartbeat, again and again.
    let asked = restart(&session);
    side.answer_heartbeats(move |_| Ok(HeartbeatAnswer { restart: Some(asked.clone()), ..keep_on(vec![], vec![]) }));
    side.heartbeats().await;
    // It takes nothing more, and ends what it has.
    side.assign(&assignment(6)).await;
    let declined: Decline = read(&side.hear("decline").await);
    assert_eq!(declined.lease, LeaseId(6));
    go.send_replace(true);
    assert_eq!(side.report().await.lease, LeaseId(5));
    assert_eq!(side.goodbye().await.session, session);
    let ended = agent.await.unwrap().unwrap_err();
    assert!(matches!(&ended, AgentError::RestartAsked { reason, .. } if reason == "it fails"), "{ended}");
}
