//! The post office: where agents get the guaranteed messages that they have missed.
//!
//! Guaranteed messages are kept by the broker, in a stream that the broker also publishes them from as soon as they are
//! stored. So as a rule a message reaches its reader without anybody's help. The post office makes the stream, and answers
//! what agents ask ([`Ask`]): agents never touch JetStream, so it has the broker send them what they missed, and keeps how
//! far they have got. It relays no message itself: the broker sends those straight to the agent's own subjects, which are
//! built from the subject that the agent asked on.
//!
//! Any number of post offices may run; each question goes to one of them. They have no state but the key-value bucket of
//! cursors.
//!
//! What this crate deliberately lacks: consumers (one for each agent would cost the broker more than all messages do), and
//! any knowledge of what messages say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::kv::{self, Store};
use async_nats::jetstream::stream::{self, DiscardPolicy, Republish, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, Message};
use baton_client::{ConnectSettings, Connection};
use baton_protocol::post::{Ask, MAX_FETCH, Opened};
use baton_protocol::{AgentId, subject};
use baton_telemetry::Metrics;
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long a question to JetStream may take.
const API_TIMEOUT: Duration = Duration::from_secs(2);
/// The waits before what did not work is tried again: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often the size of the stream is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How many questions that need an answer of JetStream may wait for it.
const WAITING: usize = 256;
/// The most bytes of messages in one answer to a fetch.
const FETCH_BYTES: u64 = 4 * 1024 * 1024;
/// How long a message's id is remembered by the broker. An id takes about 240 bytes, so that this is 50 MB at ten thousand
/// messages a second; a sender that hears nothing repeats a message after two seconds.
const DUPLICATES: Duration = Duration::from_secs(20);
/// A stream smaller than this is not worth having.
const LEAST_BYTES: i64 = 16 * 1024 * 1024;
/// The kinds of messages that agents count; what else they say is not counted.
const COUNTED: &[&str] = &[
    "sent",
    "stored",
    "repeated",
    "delivered",
    "handled",
    "expired",
    "failed",
    "dropped",
    "duplicate",
    "refetched",
    "unclaimed",
];

/// How guaranteed messages are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Copies of the stream and of the cursors: 1 on one server, 3 in a cluster.
    pub replicas: usize,
    /// How long a message is kept. An agent that is away for longer loses what is older.
    pub max_age: Duration,
    /// The most bytes that are kept. Where more come, the oldest are lost, whether or not they have been read.
    pub max_bytes: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { replicas: 1, max_age: Duration::from_secs(24 * 3600), max_bytes: 1024 * 1024 * 1024 }
    }
}

/// Runs a post office until `shutdown`. A broker that is not there, or has no room, is waited for.
pub async fn run(connect: ConnectSettings, settings: Settings, metrics: Metrics, shutdown: CancellationToken) {
    let mut wait = BACKOFF.0;
    loop {
        let begin = Instant::now();
        let ended = tokio::select! {
            ended = open_and_serve(&connect, settings, &metrics) => ended,
            () = shutdown.cancelled() => return,
        };
        if begin.elapsed() > BACKOFF.1 {
            wait = BACKOFF.0;
        }
        tracing::warn!(error = ended, "no post office: guaranteed messages are not fetched until there is one again");
        tokio::select! {
            () = sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
        wait = (wait * 2).min(BACKOFF.1);
    }
}

async fn open_and_serve(connect: &ConnectSettings, settings: Settings, metrics: &Metrics) -> String {
    let connection = match Connection::open(&connect.clone().named("baton-post")).await {
        Ok(connection) => connection,
        Err(error) => return error.to_string(),
    };
    match Office::open(connection.nats, settings, metrics).await {
        Ok(office) => office.serve().await,
        Err(error) => error,
    }
}

/// What is kept of an agent.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Cursor {
    handled: u64,
    epoch: u64,
}

#[derive(Clone)]
struct Office {
    nats: Client,
    js: Context,
    cursors: Store,
    metrics: Metrics,
}

impl Office {
    async fn open(nats: Client, settings: Settings, metrics: &Metrics) -> Result<Self, String> {
        let js = jetstream::ContextBuilder::new().timeout(API_TIMEOUT).ack_timeout(API_TIMEOUT).build(nats.clone());
        ensure_stream(&js, settings).await?;
        let bucket = kv::Config {
            bucket: subject::CURSORS_BUCKET.to_owned(),
            description: "Baton: how far each agent has handled its guaranteed messages".to_owned(),
            // A cursor that is older than every message says nothing any more.
            max_age: settings.max_age * 3,
            storage: StorageType::File,
            num_replicas: settings.replicas,
            ..kv::Config::default()
        };
        let cursors = match js.get_key_value(subject::CURSORS_BUCKET).await {
            Ok(store) => store,
            Err(_) => js.create_key_value(bucket).await.map_err(|error| format!("the cursors: {error}"))?,
        };
        Ok(Self { nats, js, cursors, metrics: metrics.clone() })
    }

    async fn serve(self) -> String {
        let asked = self.nats.queue_subscribe(subject::POST, "baton-post".to_owned()).await;
        let mut asked = match asked {
            Ok(asked) => asked,
            Err(error) => return error.to_string(),
        };
        tracing::debug!("the post office is open");
        let mut tasks = JoinSet::new();
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                message = asked.next() => match message {
                    Some(message) => self.answer(message, &mut tasks).await,
                    None => return "its subscription has ended".to_owned(),
                },
                Some(done) = tasks.join_next() => {
                    if let Ok(Err(why)) = done {
                        return why;
                    }
                }
                _ = look.tick() => {
                    if tasks.len() < WAITING {
                        tasks.spawn(self.clone().look());
                    }
                }
            }
        }
    }

    async fn answer(&self, message: Message, tasks: &mut JoinSet<Result<(), String>>) {
        let Ok(agent) = subject::parse_agent(&message.subject) else {
            self.metrics.count("baton_post_asked_total", &["unreadable"]);
            return;
        };
        let ask = match serde_json::from_slice::<Ask>(&message.payload) {
            Ok(ask) => ask,
            Err(error) => {
                tracing::warn!(%agent, %error, "a question to the post office that can not be read");
                self.metrics.count("baton_post_asked_total", &["unreadable"]);
                return;
            }
        };
        let name = match ask {
            Ask::Open {} => "open",
            Ask::Fetch { .. } => "fetch",
            Ask::Check { .. } => "check",
            Ask::Handled { .. } => "handled",
            Ask::Count { .. } => "count",
        };
        self.metrics.count("baton_post_asked_total", &[name]);
        let waits = matches!(ask, Ask::Open {} | Ask::Handled { .. } | Ask::Check { .. });
        if waits && tasks.len() >= WAITING {
            // Whoever asked asks again; that is better than to be late for all.
            self.metrics.count("baton_post_asked_total", &["refused"]);
            return;
        }
        // An answer is sent with the rights of the post office, so it goes nowhere but to an inbox.
        let reply = message.reply.filter(|reply| !reply.starts_with("baton.") && !reply.starts_with('$'));
        match ask {
            Ask::Open {} => {
                if let Some(reply) = reply {
                    let office = self.clone();
                    tasks.spawn(async move {
                        office.opened(&agent, reply).await;
                        Ok(())
                    });
                }
            }
            Ask::Fetch { after, max, token } => {
                let request = serde_json::json!({
                    "next_by_subj": subject::mail_to(&agent),
                    "seq": after.saturating_add(1),
                    "batch": max.clamp(1, MAX_FETCH),
                    "max_bytes": FETCH_BYTES,
                });
                self.read(&request, subject::fetched(&agent, token)).await;
            }
            Ask::Check { handled, epoch, token } => {
                let request = serde_json::json!({ "multi_last": [subject::mail_to(&agent)] });
                self.read(&request, subject::checked(&agent, token)).await;
                let office = self.clone();
                tasks.spawn(async move {
                    office.keep(&agent, Cursor { handled, epoch }).await;
                    Ok(())
                });
            }
            Ask::Handled { handled, epoch } => {
                let office = self.clone();
                tasks.spawn(async move {
                    if office.keep(&agent, Cursor { handled, epoch }).await.is_some()
                        && let Some(reply) = reply
                    {
                        let _ = office.nats.publish(reply, Bytes::from_static(b"{}")).await;
                    }
                    Ok(())
                });
            }
            Ask::Count { more } => self.count(&more),
        }
    }

    /// Has the broker send messages of the stream to an agent.
    async fn read(&self, request: &serde_json::Value, to: String) {
        let from = subject::direct_get(subject::MESSAGES_STREAM);
        if let Err(error) = self.nats.publish_with_reply(from, to, request.to_string().into()).await {
            tracing::debug!(%error, "a question to the stream of messages could not be sent");
        }
    }

    async fn opened(&self, agent: &AgentId, reply: async_nats::Subject) {
        let epoch = match self.js.get_stream(subject::MESSAGES_STREAM).await {
            Ok(stream) => epoch(&stream),
            Err(error) => return tracing::warn!(%agent, %error, "the stream of messages can not be looked at"),
        };
        let kept = match self.cursors.get(agent.as_str()).await {
            Ok(kept) => kept.and_then(|bytes| serde_json::from_slice::<Cursor>(&bytes).ok()),
            // To begin at the beginning would give the agent what it has handled: it asks again.
            Err(error) => return tracing::warn!(%agent, %error, "an agent's cursor can not be read"),
        };
        let cursor = kept.filter(|kept| kept.epoch == epoch).map_or(0, |kept| kept.handled);
        let body = serde_json::to_vec(&Opened { cursor, epoch }).unwrap_or_default();
        let _ = self.nats.publish(reply, body.into()).await;
    }

    /// Keeps a cursor. One that is older than the last only makes the agent get again what it knows.
    async fn keep(&self, agent: &AgentId, cursor: Cursor) -> Option<()> {
        let body = serde_json::to_vec(&cursor).unwrap_or_default();
        match self.cursors.put(agent.as_str(), body.into()).await {
            Ok(_) => Some(()),
            Err(error) => {
                tracing::debug!(%agent, %error, "an agent's cursor was not kept");
                None
            }
        }
    }

    fn count(&self, more: &BTreeMap<String, u64>) {
        for (what, more) in more {
            if let Some(what) = COUNTED.iter().find(|known| *known == what) {
                #[expect(clippy::cast_precision_loss, reason = "a count below 2^53")]
                self.metrics.add("baton_agent_messages_total", &[what], *more as f64);
            }
        }
    }

    /// Looks how large the stream is. One that is gone, with its broker's data, is an error: it has to be made again.
    async fn look(self) -> Result<(), String> {
        match self.js.get_stream(subject::MESSAGES_STREAM).await {
            Ok(stream) => {
                let state = &stream.cached_info().state;
                #[expect(clippy::cast_precision_loss, reason = "a count below 2^53")]
                let (messages, bytes) = (state.messages as f64, state.bytes as f64);
                self.metrics.set("baton_messages_stored", &[], messages);
                self.metrics.set("baton_messages_stored_bytes", &[], bytes);
                Ok(())
            }
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    Err(format!("the stream {} is gone", subject::MESSAGES_STREAM))
                }
                _ => Ok(()),
            },
        }
    }
}

/// A stream that was made at another time is another one.
fn epoch(stream: &Stream) -> u64 {
    // Below 2^53, so that a reader in JavaScript keeps it as it is.
    u64::try_from(stream.cached_info().created.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

fn wanted(settings: Settings) -> stream::Config {
    stream::Config {
        name: subject::MESSAGES_STREAM.to_owned(),
        description: Some("Baton: guaranteed messages between agents".to_owned()),
        subjects: vec![subject::MESSAGES_SUBJECTS.to_owned()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: settings.replicas,
        max_age: settings.max_age,
        max_bytes: settings.max_bytes,
        // Nobody may stop others from sending by not reading: what is too old or too much is lost.
        discard: DiscardPolicy::Old,
        allow_direct: true,
        duplicate_window: DUPLICATES.min(settings.max_age),
        republish: Some(Republish {
            source: subject::MESSAGES_SUBJECTS.to_owned(),
            destination: subject::MESSAGES_REPUBLISHED.to_owned(),
            headers_only: false,
        }),
        ..stream::Config::default()
    }
}

/// Makes the stream, or sees that the one that is there will do. Where there is not as much room as wanted, less is taken.
async fn ensure_stream(js: &Context, mut settings: Settings) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("the stream {}: {error}", subject::MESSAGES_STREAM);
    if let Ok(found) = js.get_stream(subject::MESSAGES_STREAM).await {
        let (found, wanted) = (&found.cached_info().config, wanted(settings));
        if found.republish != wanted.republish || found.subjects != wanted.subjects || !found.allow_direct {
            return Err(failed(
                &"it is there with other subjects or without `republish`: delete it, and it is made anew",
            ));
        }
        return Ok(());
    }
    let mut fits = true;
    loop {
        let Err(error) = js.create_stream(wanted(settings)).await else {
            if !fits {
                // The broker sets the room aside. Where there is little, the log and its snapshots need the most of it.
                settings.max_bytes = (settings.max_bytes / 4).max(LEAST_BYTES / 4);
                js.update_stream(wanted(settings)).await.map_err(|error| failed(&error))?;
            }
            return Ok(());
        };
        fits = false;
        let code = match error.kind() {
            CreateStreamErrorKind::JetStream(error) => Some(error.error_code()),
            _ => None,
        };
        let full = [
            ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
            ErrorCode::INSUFFICIENT_RESOURCES,
            ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ];
        if !code.is_some_and(|code| full.contains(&code)) || settings.max_bytes / 2 < LEAST_BYTES {
            // Another post office may have made it at the same moment.
            let there = js.get_stream(subject::MESSAGES_STREAM).await.is_ok();
            return if there { Ok(()) } else { Err(failed(&error)) };
        }
        settings.max_bytes /= 2;
        tracing::warn!(max_bytes = settings.max_bytes, "the broker has less room for guaranteed messages than wanted");
    }
}
