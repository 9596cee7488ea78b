//! Agents that talk to each other, over a real nats-server with a post office.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use baton_post::Settings;
use baton_protocol::header::Priority;
use baton_protocol::message::MessageType;
use baton_protocol::post::Ask;
use baton_protocol::subject;
use baton_sdk::messages::{
    Answer, Listen, MessageError, MessageResult, Messages, Numbers, Options, Outgoing, Received, Route,
};
use baton_sdk::{AgentId, CancellationToken, ConnectSettings, Connection, TaskError, TopicFilter, TopicName};
use baton_telemetry::Metrics;
use baton_testkit::{NatsServer, wait_for};
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(30);

struct World {
    server: NatsServer,
    metrics: Metrics,
    post: JoinHandle<()>,
}

impl World {
    async fn start() -> Self {
        let server = NatsServer::start().await;
        let metrics = Metrics::new("resource-manager", "1");
        let world = Self { post: post_office(&server, &metrics), server, metrics };
        let js = async_nats::jetstream::new(world.server.connect().await);
        wait_for("the stream", SOON, async || js.get_stream(subject::MESSAGES_STREAM).await.is_ok()).await;
        world
    }

    async fn close_the_post_office(&mut self) {
        self.post.abort();
        let _ = (&mut self.post).await;
    }

    async fn connection(&self) -> Connection {
        Connection::open(&ConnectSettings::alone(self.server.client_url())).await.unwrap()
    }

    async fn agent(&self, id: &str) -> Messages {
        Messages::new(&self.connection().await, agent(id), Options::default())
    }
}

fn post_office(server: &NatsServer, metrics: &Metrics) -> JoinHandle<()> {
    let settings = ConnectSettings::alone(server.client_url());
    tokio::spawn(baton_post::run(settings, Settings::default(), metrics.clone(), CancellationToken::new()))
}

impl Drop for World {
    fn drop(&mut self) {
        self.post.abort();
    }
}

fn agent(id: &str) -> AgentId {
    AgentId::new(id).unwrap()
}

fn says(what: impl Into<Value>) -> Outgoing {
    Outgoing::json(&what.into()).unwrap()
}

/// What a handler was given.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Received>>>);

impl Heard {
    fn handler(&self) -> impl Fn(Received) -> std::future::Ready<MessageResult> + Send + Sync + 'static {
        let heard = self.0.clone();
        move |message| {
            heard.lock().unwrap().push(message);
            std::future::ready(Ok(()))
        }
    }

    fn all(&self) -> Vec<Received> {
        self.0.lock().unwrap().clone()
    }

    fn numbers(&self) -> Vec<u64> {
        self.all().iter().map(|message| message.json().unwrap()).collect()
    }

    async fn until(&self, count: usize) -> Vec<Received> {
        wait_for("messages", SOON, async || {
            let heard = self.all();
            if heard.len() >= count { Ok(heard) } else { Err(heard.len()) }
        })
        .await
    }

    /// What was said by now has been heard when what is said after it has.
    async fn nothing_more_than(&self, count: usize, from: &Messages, to: &Messages) {
        from.send(to.agent(), says("the end")).await.unwrap();
        let heard = self.until(count + 1).await;
        assert_eq!(heard.len(), count + 1, "{heard:?}");
        assert_eq!(heard.last().unwrap().json::<String>().unwrap(), "the end");
    }
}

async fn listening(world: &World, id: &str) -> (Messages, Heard) {
    let (messages, heard) = (world.agent(id).await, Heard::default());
    messages.listen(Listen::new().on_any(heard.handler())).await.unwrap();
    (messages, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn m3_direct_multicast_broadcast_and_topics_reach_whom_they_are_for() {
    let world = World::start().await;
    let ann = world.agent("ann").await;
    let (bob, bob_heard) = listening(&world, "bob").await;
    let (cid, cid_heard) = listening(&world, "cid").await;
    let (dan, dan_heard) = (world.agent("dan").await, Heard::default());
    let wheat: TopicFilter = "prices.*.wheat".parse().unwrap();
    dan.listen(Listen::new().on_topic(wheat, dan_heard.handler())).await.unwrap();

    ann.send(bob.agent(), says("direct")).await.unwrap();
    let message = bob_heard.until(1).await.remove(0);
    assert_eq!((message.from(), message.route()), (&agent("ann"), &Route::Direct));
    assert_eq!(message.json::<String>().unwrap(), "direct");
    assert_eq!(message.message_type(), &MessageType::DataUpdate);
    assert!(message.id().is_some() && message.time().is_some() && !message.wants_answer());
    cid_heard.nothing_more_than(0, &ann, &cid).await;

    ann.multicast(&[agent("bob"), agent("cid")], says("some")).await.unwrap();
    for heard in [&bob_heard, &cid_heard] {
        let message = heard.until(2).await.remove(1);
        assert_eq!(message.header("Baton-Targets"), Some("bob,cid"));
        assert_eq!(message.header("Baton-Routing"), Some("multicast"));
    }

    ann.broadcast(says("all").priority(Priority::High).correlation("c-1")).await.unwrap();
    for heard in [&bob_heard, &cid_heard] {
        let message = heard.until(3).await.remove(2);
        assert_eq!((message.route(), message.message_type()), (&Route::Broadcast, &MessageType::Broadcast));
        assert_eq!((message.priority(), message.correlation()), (Priority::High, Some("c-1")));
    }

    for topic in ["prices.eu.wheat", "prices.eu.rye"] {
        ann.publish(&topic.parse::<TopicName>().unwrap(), says(topic)).await.unwrap();
    }
    let message = dan_heard.until(1).await.remove(0);
    assert_eq!(message.route(), &Route::Topic("prices.eu.wheat".to_owned()));
    bob_heard.nothing_more_than(3, &ann, &bob).await;
    assert_eq!(dan_heard.all().len(), 1);
    // A broadcast is heard too, and dan has no handler for it.
    wait_for("dan's numbers", SOON, async || dan.numbers().unclaimed == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_a_request_is_answered_or_says_why_not() {
    let world = World::start().await;
    let ann = world.agent("ann").await;
    let bob = world.agent("bob").await;
    let listen = Listen::new().on(MessageType::DataRequest, |message: Received| async move {
        match message.json::<String>()?.as_str() {
            "fail" => Err(TaskError::failed("no such thing")),
            "wait" => std::future::pending().await,
            other => Ok(Answer::json(&json!({ "echo": other }))?),
        }
    });
    bob.listen(listen).await.unwrap();
    let answer = ann.request(bob.agent(), says("hello"), SOON).await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&answer).unwrap(), json!({ "echo": "hello" }));
    let error = ann.request(bob.agent(), says("fail"), SOON).await.unwrap_err();
    assert!(
        matches!(&error, MessageError::Failed { rejection, .. } if rejection.message == "no such thing"),
        "{error}"
    );
    let error = ann.request(&agent("nobody"), says("hello"), SOON).await.unwrap_err();
    assert!(matches!(&error, MessageError::NobodyThere(to) if to.as_str() == "nobody"), "{error}");
    let error = ann.request(bob.agent(), says("wait"), Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, MessageError::NoAnswer { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_a_message_that_comes_too_late_is_not_handled_but_counted() {
    let world = World::start().await;
    let ann = world.agent("ann").await;
    // Long enough to be stored in time where the machine is busy.
    let lives = Duration::from_secs(1);
    ann.send_guaranteed(&agent("bob"), says("late").ttl(lives)).await.unwrap();
    ann.send_guaranteed(&agent("bob"), says("in time").ttl(SOON)).await.unwrap();
    tokio::time::sleep(lives).await;
    let (bob, heard) = listening(&world, "bob").await;
    assert_eq!(heard.until(1).await[0].json::<String>().unwrap(), "in time");
    assert_eq!((bob.numbers().expired, bob.numbers().delivered), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_a_guaranteed_message_waits_for_its_reader_and_comes_once_in_order() {
    let world = World::start().await;
    let ann = world.agent("ann").await;
    for number in 0..700u64 {
        drop(ann.post(&agent("bob"), says(number)).await.unwrap());
    }
    // Acknowledgements come in the order of the sendings.
    let stored = ann.send_guaranteed(&agent("bob"), says(700)).await.unwrap();
    assert_eq!(stored.sequence, 701, "{stored:?}");
    // Where the machine is busy, an acknowledgement may take so long that a message is said again.
    let numbers = ann.numbers();
    assert_eq!(numbers, Numbers { sent: 701, stored: 701, repeated: numbers.repeated, ..Numbers::default() });

    let (bob, heard) = listening(&world, "bob").await;
    heard.until(701).await;
    assert_eq!(heard.numbers(), (0..=700).collect::<Vec<_>>());
    wait_for("bob's numbers", SOON, async || {
        let numbers = bob.numbers();
        if (numbers.refetched, numbers.delivered) == (701, 701) { Ok(()) } else { Err(numbers) }
    })
    .await;
    for number in 701..800u64 {
        ann.send_guaranteed(bob.agent(), says(number)).await.unwrap();
    }
    heard.until(800).await;
    assert_eq!(heard.numbers(), (0..800).collect::<Vec<_>>());
    assert_eq!(bob.numbers().refetched, 701, "the fast path was fast");
    // Its next life goes on exactly there; or before, and it was said, where the machine is so busy that this was not kept in time.
    let kept = bob.close().await;
    ann.send_guaranteed(bob.agent(), says(800)).await.unwrap();
    let (_bob, again) = listening(&world, "bob").await;
    ann.send_guaranteed(bob.agent(), says(801)).await.unwrap();
    wait_for("the last message", SOON, async || {
        let numbers = again.numbers();
        if numbers.last() == Some(&801) { Ok(()) } else { Err(numbers) }
    })
    .await;
    let first = again.numbers()[0];
    assert_eq!(again.numbers(), (first..=801).collect::<Vec<_>>());
    assert!(first == 800 || !kept, "it begins with {first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_guaranteed_messages_survive_the_kill_of_the_broker() {
    const COUNT: u64 = 3000;
    let mut world = World::start().await;
    let (bob, heard) = listening(&world, "bob").await;
    let senders = [world.agent("ann").await, world.agent("cid").await];
    let sending: Vec<_> = senders
        .into_iter()
        .map(|sender| {
            tokio::spawn(async move {
                let mut posted = Vec::new();
                for number in 0..COUNT {
                    posted.push(sender.post(&agent("bob"), says(number)).await.unwrap());
                    tokio::time::sleep(Duration::from_micros(300)).await;
                }
                for stored in posted {
                    stored.await.unwrap();
                }
                sender.numbers()
            })
        })
        .collect();
    for part in 1..=2usize {
        heard.until(part * 1000).await;
        world.server.kill().await;
        world.server.restart().await;
    }
    let mut repeated = 0;
    for sender in sending {
        let numbers = sender.await.unwrap();
        assert_eq!((numbers.sent, numbers.stored), (COUNT, COUNT));
        repeated += numbers.repeated;
    }
    let all = heard.until(2 * COUNT as usize).await;
    let each: BTreeSet<(String, u64)> =
        all.iter().map(|message| (message.from().to_string(), message.json().unwrap())).collect();
    assert_eq!((all.len(), each.len()), (2 * COUNT as usize, 2 * COUNT as usize), "{:?}", bob.numbers());
    println!("{repeated} sent again; {:?}", bob.numbers());
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_what_is_lost_on_the_fast_path_is_found_though_nothing_follows() {
    let world = World::start().await;
    let ann = world.agent("ann").await;
    let (bob, heard) = listening(&world, "bob").await;
    ann.send_guaranteed(bob.agent(), says(1)).await.unwrap();
    heard.until(1).await;
    // The broker publishes nothing any more, as if it all were lost.
    let js = async_nats::jetstream::new(world.server.connect().await);
    let mut stream = js.get_stream(subject::MESSAGES_STREAM).await.unwrap();
    let config = stream.info().await.unwrap().config.clone();
    js.update_stream(async_nats::jetstream::stream::Config { republish: None, ..config.clone() }).await.unwrap();
    ann.send_guaranteed(bob.agent(), says(2)).await.unwrap();
    ann.send_guaranteed(bob.agent(), says(3)).await.unwrap();
    wait_for("the lost messages", Duration::from_secs(60), async || heard.all().len() == 3).await;
    js.update_stream(config).await.unwrap();
    // A gap is seen by what follows it, too.
    ann.send_guaranteed(bob.agent(), says(4)).await.unwrap();
    heard.until(4).await;
    assert_eq!(heard.numbers(), [1, 2, 3, 4]);
    assert!(bob.numbers().refetched >= 2, "{:?}", bob.numbers());
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_a_slow_handler_loses_no_guaranteed_message() {
    let world = World::start().await;
    let ann = world.agent("ann").await;
    let (bob, heard) = (world.agent("bob").await, Heard::default());
    let handler = heard.handler();
    let slow = move |message| {
        let done = handler(message);
        async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            done.await
        }
    };
    bob.listen(Listen::new().on_any(slow).queue(8)).await.unwrap();
    for number in 0..500u64 {
        drop(ann.post(bob.agent(), says(number)).await.unwrap());
    }
    heard.until(500).await;
    assert_eq!(heard.numbers(), (0..500).collect::<Vec<_>>());
    assert!(bob.numbers().refetched > 0, "{:?}", bob.numbers());
    // What is fire-and-forget has no such luck.
    for number in 0..500u64 {
        ann.send(bob.agent(), says(number)).await.unwrap();
    }
    wait_for("what is dropped", SOON, async || {
        let numbers = bob.numbers();
        if numbers.dropped > 0 && numbers.dropped + numbers.handled == 1000 { Ok(()) } else { Err(numbers) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sender_writes_into_the_broker_s_headers_is_not_believed() {
    let world = World::start().await;
    let ann = world.agent("ann").await;
    let (bob, heard) = listening(&world, "bob").await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Subject", "baton.agent.cid.say.bob");
    headers.insert("Nats-Sequence", "999999");
    headers.insert("Nats-Last-Sequence", "0");
    let nats = world.server.connect().await;
    for subject in [subject::say(&agent("mal"), bob.agent()), subject::mail(&agent("mal"), bob.agent())] {
        nats.publish_with_headers(subject, headers.clone(), "0".into()).await.unwrap();
    }
    heard.until(2).await;
    for number in 1..=3u64 {
        ann.send_guaranteed(bob.agent(), says(number)).await.unwrap();
    }
    heard.until(5).await;
    assert_eq!(heard.numbers(), [0, 0, 1, 2, 3]);
    for message in &heard.all()[..2] {
        assert_eq!(message.from().as_str(), "mal");
        assert!(message.sequence().is_none_or(|sequence| sequence == 1), "{message:?}");
    }
    bob.close().await;
    // Nor when it is fetched.
    nats.publish_with_headers(subject::mail(&agent("mal"), bob.agent()), headers, "4".into()).await.unwrap();
    nats.flush().await.unwrap();
    let (_bob, again) = listening(&world, "bob").await;
    again.until(1).await;
    ann.send_guaranteed(bob.agent(), says(5)).await.unwrap();
    again.until(2).await;
    assert_eq!(again.numbers(), [4, 5]);
    assert_eq!(again.all()[0].sequence(), Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_a_stream_that_was_lost_begins_anew() {
    let world = World::start().await;
    let ann = world.agent("ann").await;
    let (bob, heard) = listening(&world, "bob").await;
    for number in 0..3u64 {
        ann.send_guaranteed(bob.agent(), says(number)).await.unwrap();
    }
    heard.until(3).await;
    let js = async_nats::jetstream::new(world.server.connect().await);
    js.delete_stream(subject::MESSAGES_STREAM).await.unwrap();
    // The sender waits for it to be made again.
    let stored = ann.send_guaranteed(bob.agent(), says(3)).await.unwrap();
    assert_eq!(stored.sequence, 1);
    wait_for("the message", Duration::from_secs(60), async || heard.all().len() == 4).await;
    assert_eq!(heard.numbers(), [0, 1, 2, 3]);
}

/// Hears what an agent asks of the post office.
async fn asked(world: &World, id: &str) -> (async_nats::Client, async_nats::Subscriber) {
    let nats = world.server.connect().await;
    let asked = nats.subscribe(subject::post(&agent(id))).await.unwrap();
    nats.flush().await.unwrap();
    (nats, asked)
}

/// How far an agent says it has handled its messages in its next check, and the check's token.
async fn next_check(asked: &mut async_nats::Subscriber) -> (u64, u64) {
    let check = async {
        loop {
            let message = asked.next().await.unwrap();
            if let Ask::Check { handled, token, .. } = serde_json::from_slice(&message.payload).unwrap() {
                return (handled, token);
            }
        }
    };
    tokio::time::timeout(SOON, check).await.expect("a check")
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_a_stream_that_lost_its_end_does_not_make_the_cursor_pass_what_waits() {
    let mut world = World::start().await;
    let (nats, mut asks) = asked(&world, "bob").await;
    let ann = world.agent("ann").await;
    let (bob, heard, gate) = (world.agent("bob").await, Heard::default(), Arc::new(Semaphore::new(0)));
    let (handler, closed) = (heard.handler(), gate.clone());
    let waits = move |message| {
        let (done, gate) = (handler(message), closed.clone());
        async move {
            gate.acquire().await.unwrap().forget();
            done.await
        }
    };
    bob.listen(Listen::new().on_any(waits)).await.unwrap();
    for number in 0..3u64 {
        ann.send_guaranteed(bob.agent(), says(number)).await.unwrap();
    }
    wait_for("the first three", SOON, async || bob.numbers().delivered == 3).await;
    // The answer to a check that is asked after that makes the floor more than 1.
    let mut answers = nats.subscribe("baton.to.bob.post.check.*").await.unwrap();
    nats.flush().await.unwrap();
    while asks.next().now_or_never().flatten().is_some() {}
    ann.send_guaranteed(bob.agent(), says(3)).await.unwrap();
    let (_, token) = next_check(&mut asks).await;
    let answered = async {
        loop {
            let answer = answers.next().await.unwrap();
            if answer.status.is_some() && answer.subject.ends_with(&format!(".{token}")) {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, answered).await.expect("an answer");
    world.close_the_post_office().await;
    ann.send_guaranteed(bob.agent(), says(4)).await.unwrap();
    let (handled, token) = next_check(&mut asks).await;
    assert_eq!(handled, 0);
    // Only the broker writes a status: so this is written as the broker would.
    let subject = format!("baton.to.bob.post.check.{token}");
    let head = "NATS/1.0 204\r\nNats-UpTo-Sequence: 1\r\n\r\n";
    let mut raw = tokio::net::TcpStream::connect(("127.0.0.1", world.server.port())).await.unwrap();
    let size = head.len();
    let publish =
        format!("CONNECT {{\"verbose\":false,\"headers\":true}}\r\nHPUB {subject} {size} {size}\r\n{head}\r\n");
    raw.write_all(publish.as_bytes()).await.unwrap();
    world.post = post_office(&world.server, &world.metrics);
    wait_for("what was fetched again", SOON, async || {
        let numbers = bob.numbers();
        if numbers.duplicate >= 4 && numbers.delivered == 5 { Ok(()) } else { Err(numbers) }
    })
    .await;
    assert_eq!(next_check(&mut asks).await.0, 0, "nothing has been handled");
    gate.add_permits(5);
    heard.until(5).await;
    bob.close().await;
    assert_eq!(heard.numbers(), [0, 1, 2, 3, 4]);
    let (again, again_heard) = listening(&world, "bob").await;
    again_heard.nothing_more_than(0, &ann, &again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_who_waits_for_a_guaranteed_message_is_told_that_the_messages_were_closed() {
    let mut world = World::start().await;
    let options = Options { window: 1, ..Options::default() };
    let ann = Messages::new(&world.connection().await, agent("ann"), options);
    let bob = agent("bob");
    ann.send_guaranteed(&bob, says(0)).await.unwrap();
    world.server.kill().await;
    let posted = ann.post(&bob, says(1)).await.unwrap();
    let (waits, to) = (ann.clone(), bob.clone());
    let no_room = tokio::spawn(async move { waits.post(&to, says(2)).await.map(drop) });
    let closed = async {
        ann.close().await;
        assert!(matches!(posted.await, Err(MessageError::Closed)));
        assert!(matches!(no_room.await.unwrap(), Err(MessageError::Closed)));
        assert!(matches!(ann.send_guaranteed(&bob, says(3)).await, Err(MessageError::Closed)));
    };
    tokio::time::timeout(SOON / 3, closed).await.expect("they are told");
    world.server.restart().await;
    // One that has sent none yet begins nothing either.
    let cid = world.agent("cid").await;
    cid.close().await;
    assert!(matches!(cid.send_guaranteed(&bob, says(4)).await, Err(MessageError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_a_post_office_that_does_not_answer_holds_up_no_close() {
    let mut world = World::start().await;
    world.close_the_post_office().await;
    // There is somebody to ask, who says nothing.
    let (_nats, mut asks) = asked(&world, "bob").await;
    let (bob, _) = listening(&world, "bob").await;
    for _ in 0..2 {
        tokio::time::timeout(SOON, asks.next()).await.expect("a question").unwrap();
    }
    let kept = tokio::time::timeout(SOON / 3, bob.close()).await.expect("it closes");
    assert!(!kept, "it says that its next life may begin before");
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_a_broker_that_is_away_holds_up_no_close() {
    let mut world = World::start().await;
    let (_nats, mut asks) = asked(&world, "bob").await;
    let (bob, _) = listening(&world, "bob").await;
    next_check(&mut asks).await;
    world.server.kill().await;
    let kept = tokio::time::timeout(SOON / 3, bob.close()).await.expect("it closes");
    assert!(!kept, "it says that its next life may begin before");
}

#[tokio::test(flavor = "multi_thread")]
async fn m5_agents_talk_peer_to_peer_with_handlers() {
    let world = World::start().await;
    let (ann, bob) = (world.agent("ann").await, world.agent("bob").await);
    let (me, told) = (bob.clone(), Heard::default());
    let pong = move |message: Received| {
        let me = me.clone();
        async move {
            let number: u64 = message.json()?;
            me.send_guaranteed(message.from(), says(number + 1)).await?;
            Ok(())
        }
    };
    bob.listen(Listen::new().on(MessageType::Proposal, pong)).await.unwrap();
    ann.listen(Listen::new().on_any(told.handler())).await.unwrap();
    for number in 0..10u64 {
        ann.send(bob.agent(), says(number).of(MessageType::Proposal)).await.unwrap();
    }
    told.until(10).await;
    assert_eq!(told.numbers(), (1..=10).collect::<Vec<_>>());
    assert!(told.all().iter().all(|message| message.from() == bob.agent()));
    bob.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn m9_a_handler_s_failure_or_panic_silences_no_other() {
    let world = World::start().await;
    let ann = world.agent("ann").await;
    let (bob, heard) = (world.agent("bob").await, Heard::default());
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    let second_time = move |_: Received| {
        let before = counted.fetch_add(1, Ordering::Relaxed);
        async move { if before == 0 { Err(TaskError::failed("not yet")) } else { Ok(()) } }
    };
    let listen = Listen::new()
        .on(MessageType::Vote, |_: Received| -> std::future::Ready<MessageResult> { panic!("a defect") })
        .on(MessageType::Vote, |_: Received| std::future::ready(Err::<(), _>(TaskError::failed("no").permanent())))
        .on(MessageType::Decision, second_time)
        .on_any(heard.handler())
        .attempts(2, Duration::from_millis(1));
    bob.listen(listen).await.unwrap();
    for _ in 0..3 {
        ann.send(bob.agent(), says(1).of(MessageType::Vote)).await.unwrap();
    }
    heard.until(3).await;
    // A guaranteed one is tried again, by the handler that failed only.
    ann.send_guaranteed(bob.agent(), says(2).of(MessageType::Decision)).await.unwrap();
    heard.until(4).await;
    wait_for("the second attempt", SOON, async || tries.load(Ordering::Relaxed) == 2).await;
    wait_for("the failures", SOON, async || {
        let failures = bob.failures();
        let wanted = [("any".to_owned(), 0), ("decision".to_owned(), 1), ("vote".to_owned(), 6)].into();
        if failures == wanted { Ok(()) } else { Err(failures) }
    })
    .await;
    assert_eq!(heard.all().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn m10_what_became_of_messages_is_counted_here_and_in_the_metrics() {
    let world = World::start().await;
    let ann = world.agent("ann").await;
    let (bob, heard) = listening(&world, "bob").await;
    for number in 0..5 {
        ann.send(bob.agent(), says(number)).await.unwrap();
    }
    ann.send_guaranteed(bob.agent(), says(5)).await.unwrap();
    heard.until(6).await;
    assert_eq!(ann.numbers(), Numbers { sent: 6, stored: 1, ..Numbers::default() });
    wait_for("bob's numbers", SOON, async || {
        let numbers = bob.numbers();
        // The guaranteed one is fetched if it was sent while bob was still asking how far he was.
        let wanted = Numbers { delivered: 6, handled: 6, refetched: numbers.refetched, ..Numbers::default() };
        if numbers == wanted { Ok(()) } else { Err(numbers) }
    })
    .await;
    wait_for("the post office's metrics", SOON, async || {
        let text = world.metrics.render();
        let line = |what: &str| text.lines().any(|line| line.contains(&format!("what=\"{what}\"}} 6")));
        if line("handled") && line("delivered") && text.contains("baton_post_asked_total") { Ok(()) } else { Err(text) }
    })
    .await;
}
