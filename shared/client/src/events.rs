//! What happens, complete and in order: read from the log.
//!
//! The events on core NATS come from several services and may overtake each other or get lost, and no reader could
//! tell. The log has one order and loses nothing, so records are read there, by an ordered consumer that heals by itself
//! when a connection breaks; only progress, which is nowhere else, comes from core NATS.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Subscriber;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::{Ordered, OrderedConfig, OrderedErrorKind};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{ClusterInfo, RawMessageErrorKind};
use async_nats::jetstream::{self, ErrorCode};
use baton_protocol::record::{AnyCommit, Event, Topic};
use baton_protocol::request::ProgressEvent;
use baton_protocol::subject::{self, Shard};
use baton_protocol::{Position, RunId};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::client::Client;
use crate::error::ClientError;

/// How long a question to JetStream may take.
const ASK: Duration = Duration::from_secs(2);
/// How long the log may be out of reach before a reader gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// The waits between attempts: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long the server that answers for the log may not have heard of most others; they tell each other every second.
/// One that was paused or cut off takes itself for the leader until it hears better, and knows nothing of what has been
/// written meanwhile.
const HEARD: Duration = Duration::from_secs(3);
/// How often a reader that gets nothing looks whether its connection has been a new one since.
const LOOK: Duration = Duration::from_millis(200);
/// The kind of a run's first record.
const FIRST_KIND: &str = "run_started";
/// The kind of a run's last record.
const LAST_KIND: &str = "run_finished";

/// Something that happens to a run.
#[derive(Debug, Clone, PartialEq)]
pub enum RunEvent {
    /// A record.
    Record(Event),
    /// Progress of a task. It is kept nowhere, and may be missed.
    Progress(ProgressEvent),
}

/// Where the log begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEnds {
    /// The sequence of its first message.
    pub first: u64,
    /// The sequence of its last message; 0 if there has been none.
    pub last: u64,
}

/// The records of a run.
pub type RunRecordStream = BoxStream<'static, Result<Event, ClientError>>;

/// The events of a run.
pub type RunEventStream = BoxStream<'static, Result<RunEvent, ClientError>>;

/// Messages of the log, each with its sequence.
pub type CommitStream = BoxStream<'static, Result<(u64, AnyCommit), ClientError>>;

impl Client {
    /// The events of a run, from its first record (or from the one after `after`) to its last: every record once, in
    /// the order of the log, and between them the progress that is told meanwhile. A broken connection is waited for.
    ///
    /// The log may lack the beginning of a run that was forgotten: [`ClientError::Trimmed`].
    pub async fn run_events(&self, run: RunId, after: Option<Position>) -> Result<RunEventStream, ClientError> {
        let topic = subject::event(Topic::Run(&run), "progress");
        let progress = self.nats().subscribe(topic).await;
        let progress = progress.map_err(|error| ClientError::Connection(format!("can not subscribe: {error}")))?;
        let view = self.get_run(run).await?;
        // The end of a run that has ended is in the log already; there is nothing to wait for behind it.
        let ends = if view.status.is_end() { Some(self.log_ends().await?) } else { None };
        let from = after.map_or(view.first_seq, |after| after.seq.max(view.first_seq));
        let mut watch = Watch::new(self, run, (from, ends.map(|ends| ends.last)), after, Some(progress));
        // Where the beginning may be missing, that is said at once.
        let first = match ends {
            Some(ends) if ends.first > from.max(1) => watch.next().await.transpose()?,
            _ => None,
        };
        let rest = stream::unfold(watch, |mut watch| async move { Some((watch.next().await?, watch)) });
        Ok(stream::iter(first.map(Ok)).chain(rest).boxed())
    }

    /// The records of a run that are in the log by now, in its order, as [`Client::run_events`] gives them.
    pub async fn run_records(&self, run: RunId) -> Result<RunRecordStream, ClientError> {
        let from = self.get_run(run).await?.first_seq;
        let to = self.log_ends().await?.last;
        let watch = Watch::new(self, run, (from, Some(to)), None, None);
        let events = stream::unfold(watch, |mut watch| async move { Some((watch.next().await?, watch)) });
        let records = events.filter_map(async |event| match event {
            Ok(RunEvent::Record(record)) => Some(Ok(record)),
            Ok(RunEvent::Progress(_)) => None,
            Err(error) => Some(Err(error)),
        });
        Ok(records.boxed())
    }

    /// The messages of the log from one sequence to another, or from one sequence on without an end.
    ///
    /// With an end the stream also ends at what is the log's last message when it begins.
    #[must_use]
    pub fn log(&self, from: u64, to: Option<u64>) -> CommitStream {
        let mut context = jetstream::new(self.nats().clone());
        context.set_timeout(ASK);
        let log = Log { context, stream: subject::log_stream(Shard::default()) };
        let reader = Reader { log, next: from.max(1), to, open: None };
        stream::unfold(Some(reader), |reader| async move {
            let mut reader = reader?;
            match reader.next().await? {
                Ok(read) => Some((Ok(read), Some(reader))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    /// Where the log begins and ends.
    pub async fn log_ends(&self) -> Result<LogEnds, ClientError> {
        let mut context = jetstream::new(self.nats().clone());
        context.set_timeout(ASK);
        let name = subject::log_stream(Shard::default());
        retry(|| async { stream_of(&context, &name).await.map(|stream| ends(&stream)) }).await
    }
}

/// A run's events, being read.
struct Watch {
    client: Client,
    run: RunId,
    after: Option<Position>,
    /// Where reading begins.
    from: u64,
    log: CommitStream,
    progress: Option<Subscriber>,
    ready: VecDeque<Event>,
    /// Whether a record has come.
    begun: bool,
    ended: bool,
}

impl Watch {
    fn new(
        client: &Client,
        run: RunId,
        (from, to): (u64, Option<u64>),
        after: Option<Position>,
        progress: Option<Subscriber>,
    ) -> Self {
        let (client, log) = (client.clone(), client.log(from, to));
        Self { client, run, after, from, log, progress, ready: VecDeque::new(), begun: false, ended: false }
    }

    async fn next(&mut self) -> Option<Result<RunEvent, ClientError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if !std::mem::replace(&mut self.begun, true)
                    && (self.after.is_some() || event.kind != FIRST_KIND)
                    && let Err(error) = self.check_begin().await
                {
                    self.ended = true;
                    self.ready.clear();
                    return Some(Err(error));
                }
                if event.kind == LAST_KIND {
                    self.ended = true;
                    self.ready.clear();
                }
                return Some(Ok(RunEvent::Record(event)));
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                biased;
                read = self.log.next() => match read {
                    Some(Ok((seq, commit))) => {
                        if let Err(error) = self.take(seq, &commit) {
                            self.ended = true;
                            return Some(Err(error));
                        }
                    }
                    Some(Err(error)) => return Some(Err(error)),
                    None => {
                        self.ended = true;
                        let whole = if self.begun { Ok(()) } else { self.check_begin().await };
                        return whole.err().map(Err);
                    }
                },
                Some(message) = next_of(&mut self.progress) => match serde_json::from_slice(&message.payload) {
                    Ok(progress) => return Some(Ok(RunEvent::Progress(progress))),
                    Err(error) => tracing::debug!(run = %self.run, %error, "progress that can not be read"),
                },
            }
        }
    }

    /// Whether the log still has what was to be read first.
    async fn check_begin(&mut self) -> Result<(), ClientError> {
        let first = self.client.log_ends().await?.first;
        if first > self.from.max(1) { Err(ClientError::Trimmed { run: self.run, first }) } else { Ok(()) }
    }

    fn take(&mut self, seq: u64, commit: &AnyCommit) -> Result<(), ClientError> {
        let events = commit.events(seq).map_err(|error| ClientError::Log(format!("message {seq}: {error}")))?;
        let wanted = |event: &Event| event.is_of(self.run) && self.after.is_none_or(|after| event.position > after);
        self.ready.extend(events.into_iter().filter(wanted));
        Ok(())
    }
}

/// The next message, if anything is listened to.
async fn next_of(subscriber: &mut Option<Subscriber>) -> Option<async_nats::Message> {
    match subscriber {
        Some(subscriber) => subscriber.next().await,
        None => std::future::pending().await,
    }
}

/// Where the log is.
#[derive(Clone)]
struct Log {
    context: jetstream::Context,
    stream: String,
}

/// The log, being read.
struct Reader {
    log: Log,
    /// The first sequence that has not been given out.
    next: u64,
    /// The last one to be given out.
    to: Option<u64>,
    open: Option<Open>,
}

/// A consumer of the log, and its messages.
struct Open {
    messages: Pin<Box<Ordered>>,
    /// How many connections there had been when it was opened.
    connects: u64,
    _consumer: Consumer,
}

/// A consumer at the server. The server forgets one that nobody listens to after half a minute; dropping this is
/// quicker.
struct Consumer {
    log: Log,
    name: String,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let (log, name) = (self.log.clone(), std::mem::take(&mut self.name));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { log.context.delete_consumer_from_stream(name, log.stream).await });
        }
    }
}

impl Reader {
    async fn next(&mut self) -> Option<Result<(u64, AnyCommit), ClientError>> {
        loop {
            if self.to.is_some_and(|to| self.next > to) {
                return None;
            }
            if self.open.is_none() {
                let (log, next, to) = (&self.log, self.next, self.to);
                match retry(|| log.begin(next, to)).await {
                    Ok((open, to)) => (self.open, self.to) = (open, to),
                    Err(error) => return Some(Err(error)),
                }
            }
            let open = self.open.as_mut()?;
            let message = tokio::select! {
                biased;
                message = open.messages.next() => message,
                () = sleep(LOOK) => {
                    // The consumer watches the connection too, but misses a restart that is over before it looks; it
                    // would then be silent until its heartbeats are found missing, ten seconds later.
                    if open.connects != self.log.connects() {
                        self.open = None;
                    }
                    continue;
                }
            };
            let message = match message {
                Some(Ok(message)) => message,
                Some(Err(error)) if error.kind() == OrderedErrorKind::MissingHeartbeat => continue,
                other => {
                    tracing::debug!(error = ?other.map(|r| r.map(|_| ())), "reading the log from a new consumer");
                    self.open = None;
                    continue;
                }
            };
            let (seq, pending) = match message.info() {
                Ok(info) => (info.stream_sequence, info.pending),
                Err(error) => return Some(Err(ClientError::Log(format!("a message without a sequence: {error}")))),
            };
            if seq < self.next {
                // A consumer that is made anew before it has delivered anything starts at the log's beginning.
                self.open = None;
                continue;
            }
            if self.to.is_some_and(|to| seq > to) {
                return None;
            }
            self.next = seq + 1;
            if let Some(to) = self.to.filter(|&to| seq < to && pending == 0) {
                // Nothing follows: it has been removed from the log, or the consumer is on a server that lags behind.
                let log = &self.log;
                match retry(|| log.holds(to)).await {
                    Ok(true) => {}
                    Ok(false) => self.to = Some(seq),
                    Err(error) => return Some(Err(error)),
                }
            }
            let decoded = match subject::parse_log(&message.subject) {
                Some((_, service)) => AnyCommit::decode(service, &message.payload).map_err(|error| error.to_string()),
                None => Err(format!("{} is no subject of a log", message.subject.as_str())),
            };
            return Some(
                decoded.map(|commit| (seq, commit)).map_err(|why| ClientError::Log(format!("message {seq}: {why}"))),
            );
        }
    }
}

impl Log {
    /// How many connections there have been.
    fn connects(&self) -> u64 {
        self.context.client().statistics().connects.load(Ordering::Relaxed)
    }

    /// A consumer from `next` on, and where reading is to end; no consumer if there is nothing to read.
    async fn begin(&self, next: u64, to: Option<u64>) -> Result<(Option<Open>, Option<u64>), Failure> {
        let connects = self.connects();
        let stream = stream_of(&self.context, &self.stream).await?;
        let to = to.map(|to| to.min(ends(&stream).last));
        if to.is_some_and(|to| next > to) {
            return Ok((None, to));
        }
        let config = OrderedConfig {
            name: Some(format!("baton-read-{}", Uuid::new_v4().simple())),
            description: Some("a reader of the log".to_owned()),
            deliver_subject: self.context.client().new_inbox(),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: next },
            ..OrderedConfig::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| Failure::passing(&error))?;
        let info = consumer.cached_info();
        let guard = Consumer { log: self.clone(), name: info.name.clone() };
        if let Some(to) = to.filter(|_| info.num_pending == 0)
            && !self.holds(to).await?
        {
            // What was to be read has been removed from the log.
            return Ok((None, Some(next - 1)));
        }
        let messages = consumer.messages().await.map_err(|error| Failure::passing(&error))?;
        Ok((Some(Open { messages: Box::pin(messages), connects, _consumer: guard }), to))
    }

    /// Whether the log holds that message.
    async fn holds(&self, seq: u64) -> Result<bool, Failure> {
        match stream_of(&self.context, &self.stream).await?.get_raw_message(seq).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
            Err(error) => Err(Failure::passing(&error)),
        }
    }
}

/// Why JetStream could not be asked.
struct Failure {
    why: String,
    /// Whether it may pass.
    passing: bool,
}

impl Failure {
    fn passing(error: &dyn std::fmt::Display) -> Self {
        Self { why: error.to_string(), passing: true }
    }
}

async fn stream_of(context: &jetstream::Context, name: &str) -> Result<jetstream::stream::Stream, Failure> {
    let stream = context.get_stream(name).await.map_err(|error| match error.kind() {
        GetStreamErrorKind::JetStream(inner) if inner.error_code() == ErrorCode::STREAM_NOT_FOUND => Failure {
            why: format!(
                "the broker has no stream {name}: no service of Baton has run on it yet (`baton up` starts them)"
            ),
            passing: false,
        },
        _ => Failure::passing(&error),
    })?;
    match &stream.cached_info().cluster {
        Some(cluster) if !leads(cluster) => Err(Failure::passing(&format!(
            "the server that answers for {name} has not heard of most others for {HEARD:?}"
        ))),
        _ => Ok(stream),
    }
}

/// Whether the server that answers can still be the leader: most of the stream's servers, itself among them, are in touch.
fn leads(cluster: &ClusterInfo) -> bool {
    let heard = cluster.replicas.iter().filter(|peer| !peer.offline && peer.active < HEARD).count();
    2 * (heard + 1) > cluster.replicas.len() + 1
}

fn ends(stream: &jetstream::stream::Stream) -> LogEnds {
    let state = &stream.cached_info().state;
    LogEnds { first: state.first_sequence, last: state.last_sequence }
}

/// Asks JetStream again while it is out of reach.
async fn retry<T, F: Future<Output = Result<T, Failure>>>(mut ask: impl FnMut() -> F) -> Result<T, ClientError> {
    let end = Instant::now() + PATIENCE;
    let mut wait = BACKOFF.0;
    loop {
        let failure = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        if !failure.passing || Instant::now() + wait >= end {
            return Err(ClientError::Log(failure.why));
        }
        tracing::debug!(why = failure.why, "asking JetStream again");
        sleep(wait).await;
        wait = (wait * 2).min(BACKOFF.1);
    }
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream::PeerInfo;

    use super::*;

    fn peer(active: u64, offline: bool) -> PeerInfo {
        PeerInfo { active: Duration::from_millis(active), offline, ..PeerInfo::default() }
    }

    #[test]
    fn a_server_that_was_cut_off_is_not_believed() {
        let cluster = |replicas: &[PeerInfo]| ClusterInfo { replicas: replicas.to_vec(), ..ClusterInfo::default() };
        assert!(leads(&cluster(&[])), "a stream on one server");
        assert!(leads(&cluster(&[peer(0, false), peer(900, false)])));
        assert!(leads(&cluster(&[peer(60_000, false), peer(900, false)])), "one of three is lost");
        assert!(!leads(&cluster(&[peer(9_500, false), peer(9_700, false)])), "just resumed");
        assert!(!leads(&cluster(&[peer(0, true), peer(9_700, false)])));
        assert!(!leads(&cluster(&[peer(5_000, false)])), "one of two is not most");
    }
}
