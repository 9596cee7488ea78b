//! Bad messages for every subject that services listen on. (Not for the log: its writers are trusted there.)

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::header::HeaderMap;
use async_nats::{Client, Request};
use baton_protocol::request::{Endpoint, OptimizerRequest, Requests, ResourceRequest, WorkflowRequest};
use baton_protocol::subject::{self, AgentVerb, Shard};
use baton_protocol::{AgentId, RunId, Service, header};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::DropGuard;

use crate::kind::Kind;
use crate::random::Random;

/// How many messages of a kind are kept to be sent again.
const KEPT: usize = 500;

/// How old a message is that is replayed, at least.
const OLD: Duration = Duration::from_secs(2);

/// How long an answer to a bad message is waited for.
const ANSWER: Duration = Duration::from_secs(3);

/// The header of what is sent from here, so that it is not taken for something that was seen.
const OURS: &str = "Faults-Bad";

/// A message that was seen, or made up.
#[derive(Debug, Clone)]
pub struct Message {
    /// Where it goes.
    pub subject: String,
    /// Its headers.
    pub headers: Option<HeaderMap>,
    /// Its body.
    pub payload: Bytes,
}

/// By the name of the endpoint.
type Seen = BTreeMap<String, VecDeque<(Instant, Message)>>;

/// Listens to what clients and agents say, and keeps some of it.
#[derive(Debug)]
pub struct Recorder {
    seen: Arc<Mutex<Seen>>,
    _stop: DropGuard,
}

impl Recorder {
    /// Listens from now on, until dropped.
    pub async fn start(client: &Client) -> anyhow::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::new()));
        let stop = CancellationToken::new();
        let requests = client.subscribe("baton.req.>").await?;
        let agents = client.subscribe("baton.agent.>").await?;
        let stopped = Box::pin(stop.clone().cancelled_owned());
        let mut messages = futures::stream::select(requests, agents).take_until(stopped);
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                if message.headers.as_ref().is_some_and(|headers| headers.get(OURS).is_some()) {
                    continue;
                }
                let topic = message.subject.to_string();
                let message = Message { subject: topic, headers: message.headers, payload: message.payload };
                let mut seen = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let list = seen.entry(family(&message.subject)).or_default();
                list.push_back((Instant::now(), message));
                if list.len() > KEPT {
                    list.pop_front();
                }
            }
        });
        Ok(Self { seen, _stop: stop.drop_guard() })
    }

    /// Some of what was seen: up to `count` of each kind, old ones.
    fn some(&self, count: usize, random: &mut Random) -> Vec<Message> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut some = Vec::new();
        for list in seen.values() {
            let old: Vec<_> = list.iter().filter(|(at, _)| at.elapsed() > OLD).map(|(_, message)| message).collect();
            if !old.is_empty() {
                some.extend((0..count).map(|_| (*random.pick(&old)).clone()));
            }
        }
        some
    }
}

/// What all messages to an endpoint have in common: the subject without the agent.
fn family(subject: &str) -> String {
    match subject.strip_prefix("baton.agent.").and_then(|rest| rest.split_once('.')) {
        Some((_, verb)) => format!("agent.{verb}"),
        None => subject.to_owned(),
    }
}

/// Every subject that a service answers on; agents' subjects for that agent.
fn subjects(agent: &str) -> Vec<String> {
    let of =
        |service: Service, endpoints: &'static [Endpoint]| endpoints.iter().map(move |endpoint| (service, endpoint));
    let all = of(Service::WorkflowManager, WorkflowRequest::ENDPOINTS)
        .chain(of(Service::ResourceManager, ResourceRequest::ENDPOINTS))
        .chain(of(Service::Optimizer, OptimizerRequest::ENDPOINTS));
    all.map(|(service, endpoint)| match endpoint.verb {
        Some(verb) => of_agent(agent, verb),
        None => subject::request(service, endpoint.name),
    })
    .collect()
}

/// Also for an agent whose id is none.
fn of_agent(agent: &str, verb: AgentVerb) -> String {
    match AgentId::new(agent) {
        Ok(agent) => subject::agent(&agent, verb),
        Err(_) => subject::agents(verb).replace('*', agent),
    }
}

/// Makes up the messages of a fault.
pub async fn messages(
    kind: Kind,
    recorder: &Recorder,
    agents: &[String],
    open: Option<RunId>,
    client: &Client,
    random: &mut Random,
) -> anyhow::Result<Vec<Message>> {
    let agent = random.pick(agents).clone();
    let plain = |subject: String, payload: Bytes| Message { subject, headers: None, payload };
    let mut messages = Vec::new();
    match kind {
        Kind::BadGarbage => {
            let nonsense = garbage(open, random);
            for subject in subjects(&agent).into_iter().chain(subjects("Not-An-Id")) {
                messages.extend(nonsense.iter().map(|payload| plain(subject.clone(), payload.clone())));
            }
        }
        Kind::BadTruncated => {
            for mut message in recorder.some(20, random) {
                let length = message.payload.len() as u64;
                if length > 2 {
                    message.payload.truncate(random.within(1..length - 1) as usize);
                    messages.push(message);
                }
            }
        }
        Kind::BadOversized => {
            let most = client.server_info().max_payload as u64;
            for subject in subjects(&agent) {
                let length = random.within(1024 * 1024..most - 4096) as usize;
                messages.push(plain(subject.clone(), padded(b"{}", length)));
                messages.push(plain(subject, Bytes::from(vec![b'['; 1024 * 1024])));
            }
            for mut message in recorder.some(1, random) {
                message.payload = padded(&message.payload, 2 * 1024 * 1024);
                messages.push(message);
            }
        }
        Kind::BadReplayed => {
            messages.extend(recorder.some(30, random));
            let commit = old_commit(client, random).await?;
            messages.extend(subjects(&agent).into_iter().map(|subject| plain(subject, commit.clone())));
        }
        Kind::BadVersioned => {
            for mut message in recorder.some(10, random) {
                let headers = message.headers.get_or_insert_default();
                headers.insert(header::VERSION, "99.0");
                if random.one_in(2) {
                    headers.insert(header::TYPE, "x-from_the_future");
                }
                messages.push(message);
            }
            let body = Bytes::from_static(br#"{"format": 99, "version": "99.0", "body": {"of": ["the", "future"]}}"#);
            messages.extend(subjects(&agent).into_iter().map(|subject| plain(subject, body.clone())));
        }
        _ => {}
    }
    random.shuffle(&mut messages);
    Ok(messages)
}

/// Nonsense, from bytes that are nothing to a report that looks right and is a lie.
fn garbage(open: Option<RunId>, random: &mut Random) -> Vec<Bytes> {
    let noise: Vec<u8> = (0..random.within(1..400)).map(|_| random.number() as u8).collect();
    let run = open.unwrap_or_else(|| RunId::derive(1, 1));
    let lie = |lease: u64| json!({ "lease": lease, "task": format!("{run}/a/1"), "status": "succeeded", "result": { "token": "a lie" } });
    let assign = json!({ "seen": u64::MAX, "placements": [{ "task": format!("{run}/a/1"), "agent": "agent-01" }] });
    let texts = [
        "".to_owned(),
        "null".to_owned(),
        "7".to_owned(),
        "[]".to_owned(),
        "\"\"".to_owned(),
        "{".to_owned(),
        "{\"a\":".repeat(200),
        "[".repeat(100_000),
        "\u{0}\u{feff}{}".to_owned(),
        "{\"run\": 1, \"task\": [], \"lease\": -1, \"session\": null, \"workflow\": {}, \"definition\": 0}".to_owned(),
        lie(1).to_string(),
        lie(u64::MAX).to_string(),
        assign.to_string(),
    ];
    texts.into_iter().map(Bytes::from).chain([Bytes::from(noise), Bytes::from_static(&[0xff, 0xfe, 0x00])]).collect()
}

/// A JSON object with another field, so long that the whole has that length.
fn padded(object: &[u8], length: usize) -> Bytes {
    let open = object.trim_ascii_end().strip_suffix(b"}").unwrap_or(b"{");
    let mut text = open.to_vec();
    if text.trim_ascii_end().last() != Some(&b'{') {
        text.push(b',');
    }
    text.extend_from_slice(b"\"padding\":\"");
    text.resize(length.saturating_sub(2).max(text.len()), b'x');
    text.extend_from_slice(b"\"}");
    text.into()
}

/// The body of some message of the log.
async fn old_commit(client: &Client, random: &mut Random) -> anyhow::Result<Bytes> {
    let context = async_nats::jetstream::new(client.clone());
    let stream = context.get_stream(subject::log_stream(Shard::default())).await?;
    let last = stream.cached_info().state.last_sequence;
    Ok(stream.get_raw_message(random.within(1..last.max(1) + 1)).await?.payload)
}

/// Sends all of them, most with the wish for an answer, and tells how many wanted one, and how many got one.
pub async fn send(client: &Client, messages: Vec<Message>) -> (usize, usize) {
    let ask = |(index, Message { subject, headers, payload }): (usize, Message)| async move {
        let mut headers = headers.unwrap_or_default();
        headers.insert(OURS, "1");
        if index % 5 == 4 {
            let _ = client.publish_with_headers(subject, headers, payload).await;
            return None;
        }
        let request = Request::new().headers(headers).payload(payload).timeout(Some(ANSWER));
        Some(client.send_request(subject, request).await.is_ok())
    };
    let answers: Vec<_> =
        futures::stream::iter(messages.into_iter().enumerate()).map(ask).buffer_unordered(64).collect().await;
    let wanted: Vec<bool> = answers.into_iter().flatten().collect();
    (wanted.len(), wanted.iter().filter(|got| **got).count())
}
