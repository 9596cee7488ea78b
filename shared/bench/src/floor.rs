//! The bare broker: the hops of an article without Baton, as the measure of what is possible.
//!
//! An article has four stages, and a stage has three hops, as in Baton's log: *ready*, *assigned*, *ended*. Each hop is a
//! stored message, read by a consumer that pushes; who reads it writes the next one. In the first form each record is a
//! message of its own, at least once: a message is acknowledged to its consumer when the next one is stored, and as many
//! are under way as there are. In the second form who writes has one message under way at a time, behind a fence as
//! Baton's commits are, and the next one holds all records that have come meanwhile; readers acknowledge nothing, as the
//! followers of Baton's log do not.
//!
//! It knows no workflows, no leases and no results, and its parts are tasks of one process with a connection each: Baton
//! has more to do and more processes to do it in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, push};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType, Stream};
use async_nats::jetstream::{self};
use async_nats::{Client, HeaderMap, Subject};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::measurement::histogram;

const STREAM: &str = "BATON_BENCH_FLOOR";
/// About what a record of Baton's takes in the log.
const RECORD: usize = 256;
/// About the largest message, as Baton's largest commit.
const MESSAGE: usize = 128 * 1024;
/// How many stages an article has.
const STAGES: u8 = 4;

/// In which form records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A message each.
    Each,
    /// Many a message.
    Many,
}

impl Form {
    pub(crate) const ALL: [Self; 2] = [Self::Each, Self::Many];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Each => "a message each",
            Self::Many => "many records a message",
        }
    }
}

/// What was measured.
pub(crate) struct Floor {
    pub(crate) articles: u64,
    pub(crate) took: Duration,
    pub(crate) latency: Histogram<u64>,
    /// What the stream grew by, in bytes.
    pub(crate) bytes: u64,
    /// And in messages.
    pub(crate) messages: u64,
}

/// Measures the bare broker with so many articles under way at a time.
pub(crate) async fn measure(
    connect: impl AsyncFn(&str) -> anyhow::Result<Client>,
    form: Form,
    inflight: usize,
    warm_up: Duration,
    seconds: Duration,
) -> anyhow::Result<Floor> {
    let clients = [connect("floor-manager").await?, connect("floor-placer").await?, connect("floor-agent").await?];
    let js = jetstream::new(clients[0].clone());
    let _ = js.delete_stream(STREAM).await;
    let mut stream = js
        .create_stream(Config {
            name: STREAM.to_owned(),
            subjects: vec!["baton-bench.floor.*".to_owned()],
            storage: StorageType::File,
            discard: DiscardPolicy::New,
            duplicate_window: Duration::from_secs(1),
            allow_direct: true,
            ..Config::default()
        })
        .await
        .context("creating the floor's stream")?;
    let mut tasks = JoinSet::new();
    let [manager, placer, agent] = clients;
    for (client, from, to) in [(placer, "ready", "assigned"), (agent, "assigned", "ended")] {
        let records = follow(&client, &stream, form, from).await?;
        tasks.spawn(pass_on(client, form, records, to));
    }
    let mut ended = follow(&manager, &stream, form, "ended").await?;
    let (ready, records) = mpsc::unbounded_channel();
    tasks.spawn(pass_on(manager.clone(), form, records, "ready"));

    let mut begun = vec![Instant::now(); inflight];
    for place in 0..inflight {
        let _ = ready.send(Record { body: record(place, 0), of: None });
    }
    let (begin, mut counting) = (Instant::now(), None);
    let (mut articles, mut latency) = (0, histogram());
    let mut before = (0, 0);
    let took = loop {
        let batch = tokio::time::timeout(Duration::from_secs(10), ended.recv()).await;
        let Some(one) = batch.context("the bare broker stopped")? else { anyhow::bail!("the bare broker stopped") };
        let (place, stage) = read(&one.body).context("a record of the floor")?;
        if stage + 1 < STAGES {
            let _ = ready.send(Record { body: record(place, stage + 1), of: one.of });
            continue;
        }
        if let Some(of) = one.of {
            manager.publish(of, Bytes::new()).await?;
        }
        let now = Instant::now();
        match counting {
            None if now.duration_since(begin) >= warm_up => {
                let state = &stream.info().await?.state;
                before = (state.bytes, state.messages);
                counting = Some(Instant::now());
            }
            None => {}
            Some(since) => {
                articles += 1;
                let micros = u64::try_from(now.duration_since(begun[place]).as_micros()).unwrap_or(u64::MAX);
                latency.saturating_record(micros.max(1));
                let took = now.duration_since(since);
                if took >= seconds {
                    break took;
                }
            }
        }
        begun[place] = Instant::now();
        let _ = ready.send(Record { body: record(place, 0), of: None });
    };
    tasks.shutdown().await;
    let state = &stream.info().await?.state;
    let (bytes, messages) = (state.bytes - before.0, state.messages - before.1);
    js.delete_stream(STREAM).await?;
    Ok(Floor { articles, took, latency, bytes, messages })
}

fn record(place: usize, stage: u8) -> Bytes {
    let mut record = BytesMut::zeroed(RECORD);
    record[..8].copy_from_slice(&(place as u64).to_le_bytes());
    record[8] = stage;
    record.freeze()
}

fn read(record: &[u8]) -> Option<(usize, u8)> {
    let place = u64::from_le_bytes(record.get(..8)?.try_into().ok()?);
    Some((usize::try_from(place).ok()?, *record.get(8)?))
}

/// A record, and where the message that it came in, or that led to it, is acknowledged.
struct Record {
    body: Bytes,
    of: Option<Subject>,
}

/// The records on a subject, one by one, as they come.
async fn follow(
    client: &Client,
    stream: &Stream,
    form: Form,
    hop: &str,
) -> anyhow::Result<mpsc::UnboundedReceiver<Record>> {
    let inbox = client.new_inbox();
    let mut messages = client.subscribe(inbox.clone()).await?;
    client.flush().await?;
    stream
        .create_consumer(push::Config {
            deliver_subject: inbox,
            filter_subject: subject(hop),
            deliver_policy: DeliverPolicy::All,
            ack_policy: if form == Form::Each { AckPolicy::Explicit } else { AckPolicy::None },
            max_ack_pending: if form == Form::Each { 100_000 } else { 0 },
            memory_storage: true,
            ..push::Config::default()
        })
        .await?;
    let (out, records) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            let mut payload = message.payload;
            let of = message.reply.filter(|_| form == Form::Each);
            while !payload.is_empty() {
                let body = payload.split_to(RECORD.min(payload.len()));
                if out.send(Record { body, of: of.clone() }).is_err() {
                    return;
                }
            }
        }
    });
    Ok(records)
}

fn subject(hop: &str) -> String {
    format!("baton-bench.floor.{hop}")
}

/// Writes what comes as records of the next hop.
async fn pass_on(
    client: Client,
    form: Form,
    mut records: mpsc::UnboundedReceiver<Record>,
    to: &'static str,
) -> anyhow::Result<()> {
    let subject = subject(to);
    match form {
        Form::Each => {
            let inbox = client.new_inbox();
            let mut acknowledgements = client.subscribe(inbox.clone()).await?;
            // They come in the order in which was published.
            let mut waiting = VecDeque::new();
            loop {
                tokio::select! {
                    Some(_) = acknowledgements.next() => {
                        if let Some(Some(of)) = waiting.pop_front() {
                            client.publish::<Subject>(of, Bytes::new()).await?;
                        }
                    }
                    record = records.recv() => {
                        let Some(Record { body, of }) = record else { break };
                        waiting.push_back(of);
                        client.publish_with_reply(subject.clone(), inbox.clone(), body).await?;
                    }
                }
            }
        }
        Form::Many => {
            let js = jetstream::new(client);
            let mut fence = 0;
            while let Some(first) = records.recv().await {
                let mut payload = BytesMut::from(&first.body[..]);
                while payload.len() < MESSAGE
                    && let Ok(record) = records.try_recv()
                {
                    payload.extend_from_slice(&record.body);
                }
                let message = PublishMessage::build()
                    .headers(HeaderMap::new())
                    .payload(payload.freeze())
                    .expected_last_subject_sequence(fence);
                fence = js.send_publish(subject.clone(), message).await?.await?.sequence;
            }
        }
    }
    Ok(())
}
