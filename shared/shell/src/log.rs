//! The log stream: created or verified at start, appended behind the fence.

use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::push::{self, Messages, MessagesError};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::context::{GetStreamErrorKind, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use baton_protocol::Service;
use baton_protocol::subject::{self, Shard};

use crate::config::LogSettings;
use crate::full;

/// How long a commit's acknowledgement is waited for. After that its outcome is unknown.
const ACK_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a question to JetStream may take. While a cluster has no leader nobody answers: asking again soon finds the next.
const API_TIMEOUT: Duration = Duration::from_secs(2);

/// The log says that it is there when it has been silent for this long; when nothing has come for twice as long, the server
/// that was to send it is gone.
const HEARTBEAT: Duration = Duration::from_millis(1500);

/// Why the log can not be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The stream is there, but is not the one that this Baton would make.
    #[error(
        "the stream {stream} has other settings than this Baton wants: {difference}. It is left as it is. Either change \
         Baton's settings, or change the stream yourself (`nats stream edit {stream}`), or give Baton another account"
    )]
    Contradiction {
        /// The stream.
        stream: String,
        /// Each setting that differs, with both values.
        difference: String,
    },
    /// The log is to be trimmed, and can not be.
    #[error(
        "log.trim is on, and the stream {0} was made never to be purged (deny_purge), which can not be taken back. It is left as \
         it is. Turn log.trim off; or, to begin with a log that can be trimmed, give Baton another account, or delete the stream \
         while no service runs: that forgets every run"
    )]
    NeverTrimmed(String),
    /// The log's beginning has been removed, and no snapshot has what was in it.
    #[error(
        "the stream {stream} begins with message {first}, and what came before it is in snapshots only, of which the {service} can \
         use none ({why}). It does not start: without its past it would forget or do again what it had decided. If this Baton \
         is older or newer than the one that ran before, start that one. Otherwise restore {stream} and OBJ_{} from one backup; or, \
         if all runs may be forgotten, delete {stream} while no service runs",
        subject::SNAPSHOTS_BUCKET
    )]
    NothingToStartFrom {
        /// The stream.
        stream: String,
        /// The sequence of its first message.
        first: u64,
        /// Who has nothing to start from.
        service: Service,
        /// Why none of its snapshots is of use.
        why: String,
    },
    /// JetStream is off.
    #[error("the NATS server has no JetStream for this account: start it with `jetstream` enabled ({0})")]
    NoJetStream(String),
    /// The stream was deleted and made anew while this process lived.
    #[error(
        "the stream {0} is not the one that this service had read: it was deleted and made anew. Going on would forget every \
         run. Restore it from a backup, or restart the services to begin with an empty log"
    )]
    Replaced(String),
    /// The broker allows small messages only.
    #[error(
        "the broker allows messages of {0} bytes; Baton needs at least 1048576: set max_payload in its configuration"
    )]
    SmallMessages(usize),
    /// Something else.
    #[error("{what}: {error}")]
    Other {
        /// What was being done.
        what: &'static str,
        /// What went wrong.
        error: String,
    },
}

pub(crate) fn other(what: &'static str, error: impl std::fmt::Display) -> LogError {
    LogError::Other { what, error: error.to_string() }
}

/// A JetStream context with our timeouts.
pub(crate) fn context(client: &async_nats::Client) -> Context {
    jetstream::ContextBuilder::new().timeout(API_TIMEOUT).ack_timeout(ACK_TIMEOUT).build(client.clone())
}

fn wanted(shard: Shard, settings: &LogSettings) -> Config {
    Config {
        name: subject::log_stream(shard),
        description: Some("Baton: every fact of coordination, one commit a message".to_owned()),
        subjects: vec![subject::log_subjects(shard)],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: settings.replicas,
        max_bytes: settings.max_bytes,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_age: Duration::ZERO,
        // A full log refuses, it never forgets.
        discard: DiscardPolicy::New,
        deny_delete: true,
        // Nobody purges by accident what is not to be trimmed.
        deny_purge: !settings.trim,
        allow_direct: true,
        // The fence makes deduplication by id needless; the shortest window keeps its memory small.
        duplicate_window: Duration::from_secs(1),
        ..Config::default()
    }
}

/// The log stream: created if there is none, refused if it is not as it must be.
pub(crate) async fn ensure(js: &Context, shard: Shard, settings: &LogSettings) -> Result<Stream, LogError> {
    let wanted = wanted(shard, settings);
    let stream = match js.get_stream(&wanted.name).await {
        Ok(stream) => stream,
        Err(error) => {
            if let GetStreamErrorKind::JetStream(error) = error.kind() {
                if error.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
                    || error.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED
                {
                    return Err(LogError::NoJetStream(error.to_string()));
                }
                if error.error_code() != ErrorCode::STREAM_NOT_FOUND {
                    return Err(other("looking for the log", error));
                }
            } else {
                return Err(other("looking for the log (is JetStream enabled?)", error));
            }
            // Another instance may create it at the same moment: the same settings are no conflict.
            let created = js.create_stream(wanted.clone()).await.err().map(|error| error.to_string());
            let found = js.get_stream(&wanted.name).await;
            found.map_err(|error| other("creating the log", created.unwrap_or_else(|| error.to_string())))?
        }
    };
    let limits = (wanted.max_bytes, stream.cached_info().config.max_bytes);
    if limits.0 != limits.1 {
        // No fact is in danger: the stream's limit counts. So a full log may be given room while services run.
        tracing::info!(setting = limits.0, stream = limits.1, "log.max_bytes is not the stream's limit, which counts");
    }
    match difference(&wanted, &stream.cached_info().config) {
        // One that could be trimmed is as good where it is not to be.
        None if settings.trim && stream.cached_info().config.deny_purge => Err(LogError::NeverTrimmed(wanted.name)),
        None => Ok(stream),
        Some(difference) => Err(LogError::Contradiction { stream: wanted.name, difference }),
    }
}

fn difference(wanted: &Config, found: &Config) -> Option<String> {
    let mut list = Vec::new();
    let mut compare = |name: &str, wanted: String, found: String| {
        if wanted != found {
            list.push(format!("{name} is {found}, not {wanted}"));
        }
    };
    compare("subjects", format!("{:?}", wanted.subjects), format!("{:?}", found.subjects));
    compare("retention", format!("{:?}", wanted.retention), format!("{:?}", found.retention));
    compare("storage", format!("{:?}", wanted.storage), format!("{:?}", found.storage));
    compare("replicas", wanted.num_replicas.to_string(), found.num_replicas.to_string());
    compare("max_msgs", wanted.max_messages.to_string(), found.max_messages.to_string());
    let per_subject = (wanted.max_messages_per_subject, found.max_messages_per_subject);
    compare("max_msgs_per_subject", per_subject.0.to_string(), per_subject.1.to_string());
    compare("max_msg_size", wanted.max_message_size.to_string(), found.max_message_size.to_string());
    compare("max_age", format!("{:?}", wanted.max_age), format!("{:?}", found.max_age));
    compare("discard", format!("{:?}", wanted.discard), format!("{:?}", found.discard));
    compare("deny_delete", wanted.deny_delete.to_string(), found.deny_delete.to_string());
    compare("no_ack", wanted.no_ack.to_string(), found.no_ack.to_string());
    compare("sealed", wanted.sealed.to_string(), found.sealed.to_string());
    compare("allow_rollup_hdrs", wanted.allow_rollup.to_string(), found.allow_rollup.to_string());
    compare("mirror", "none".to_owned(), found.mirror.as_ref().map_or_else(|| "none".to_owned(), |m| m.name.clone()));
    compare("sources", "0".to_owned(), found.sources.as_ref().map_or(0, Vec::len).to_string());
    let transform = found.subject_transform.as_ref().map_or_else(|| "none".to_owned(), |t| format!("{t:?}"));
    compare("subject_transform", "none".to_owned(), transform);
    (!list.is_empty()).then(|| list.join("; "))
}

/// The messages of the log from a sequence on.
///
/// It does not repair itself, as a session does not either: it ends with an error when a message is missing, or when the
/// server that sends it is gone, which in a cluster need not be the one that this connection goes to.
pub(crate) struct Tail {
    messages: Messages,
    /// How many messages have come.
    count: u64,
    /// The sequence of the next one, where all are sent.
    next: Option<u64>,
}

/// Why there is no more of the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TailError {
    #[error(transparent)]
    Messages(#[from] MessagesError),
    #[error("a message can not be placed: {0}")]
    Info(String),
    #[error("messages were lost on the way: number {found} came after {before}")]
    Lost { before: u64, found: u64 },
    #[error("message {found} of the log came where {expected} was to come: the log has a gap")]
    Gap { expected: u64, found: u64 },
}

impl futures::Stream for Tail {
    type Item = Result<jetstream::Message, TailError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(message) = ready!(Pin::new(&mut self.messages).poll_next(context)) else { return Poll::Ready(None) };
        Poll::Ready(Some(message.map_err(TailError::from).and_then(|message| {
            let info = message.info().map_err(|error| TailError::Info(error.to_string()))?;
            let (found, sequence) = (info.consumer_sequence, info.stream_sequence);
            let before = std::mem::replace(&mut self.count, found);
            if found != before + 1 {
                return Err(TailError::Lost { before, found });
            }
            match &mut self.next {
                // What was to come may have been removed from the log before it was sent.
                Some(expected) if *expected != sequence => Err(TailError::Gap { expected: *expected, found: sequence }),
                Some(expected) => {
                    *expected += 1;
                    Ok(message)
                }
                None => Ok(message),
            }
        })))
    }
}

/// Follows the log. A push consumer: the first message comes as soon as there is one.
///
/// A leader need not be sent its own commits, which are most of what it would read: it follows only certain services. That
/// another instance has committed shows at its next commit, or proof, which the fence refuses.
pub(crate) async fn tail(
    client: &async_nats::Client,
    stream: &Stream,
    from: u64,
    of: Option<(Shard, &[Service])>,
) -> Result<Tail, LogError> {
    let from = from.max(1);
    let next = of.is_none().then_some(from);
    let of: Vec<_> = of
        .map(|(shard, services)| services.iter().map(|service| subject::log(shard, *service)).collect())
        .unwrap_or_default();
    let (filter_subject, filter_subjects) = match of.as_slice() {
        // The broker finds what one subject has faster than what several have.
        [one] => (one.clone(), Vec::new()),
        _ => (String::new(), of),
    };
    let config = push::Config {
        filter_subject,
        filter_subjects,
        deliver_subject: client.new_inbox(),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
        ack_policy: AckPolicy::None,
        flow_control: true,
        idle_heartbeat: HEARTBEAT,
        // It need not outlive anything: a session that loses it makes another one.
        num_replicas: 1,
        memory_storage: true,
        inactive_threshold: Duration::from_secs(30),
        ..push::Config::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|error| other("following the log", error))?;
    let messages = consumer.messages().await.map_err(|error| other("following the log", error))?;
    Ok(Tail { messages, count: 0, next })
}

/// How a commit ended, other than well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitFailure {
    #[error("another instance has committed: the fence refused this one")]
    Fenced,
    #[error("the broker refused the commit: {0}")]
    Refused(String),
    /// It is certain that nothing was stored, and that nothing will be until there is room.
    #[error("there is no room for the commit: {0}")]
    Full(String),
    #[error("the outcome of the commit is unknown: {0}")]
    Unknown(String),
}

/// Appends a commit behind the fence.
pub(crate) async fn append(
    js: Context,
    stream: String,
    subject: String,
    payload: Vec<u8>,
    fence: u64,
    headers: HeaderMap,
) -> Result<u64, CommitFailure> {
    let payload = bytes::Bytes::from(payload);
    let since = Instant::now();
    loop {
        let message = PublishMessage::build()
            .headers(headers.clone())
            .payload(payload.clone())
            .expected_stream(&stream)
            .expected_last_subject_sequence(fence);
        let sent = js.send_publish(subject.clone(), message).await;
        let outcome = match sent {
            Ok(acknowledgement) => acknowledgement.await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(acknowledgement) => return Ok(acknowledgement.sequence),
            Err(error) if is_busy(&error) && since.elapsed() < ACK_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => return Err(failure(&error)),
        }
    }
}

/// A cluster answers so while the previous conditional write of the subject is in process.
fn is_busy(error: &PublishError) -> bool {
    code(error).is_some_and(|code| code == 10164)
}

fn code(error: &PublishError) -> Option<u64> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<jetstream::Error>().map(|error| error.error_code().0)
}

fn failure(error: &PublishError) -> CommitFailure {
    match error.kind() {
        _ if is_busy(error) => CommitFailure::Unknown(error.to_string()),
        PublishErrorKind::WrongLastSequence => CommitFailure::Fenced,
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => CommitFailure::Unknown(error.to_string()),
        PublishErrorKind::MaxPayloadExceeded => CommitFailure::Refused(error.to_string()),
        _ => match (full::reason(error), code(error)) {
            (Some(why), _) => CommitFailure::Full(why),
            (None, Some(_)) => CommitFailure::Refused(error.to_string()),
            (None, None) => CommitFailure::Unknown(error.to_string()),
        },
    }
}

/// Proves that the last message on a subject of the log is still the one at `fence`: nobody else has committed.
///
/// The request goes to the stream's leader, so on one server it sees every acknowledged commit. In a cluster, where a server
/// may believe that it leads the stream, leading is proved by a commit instead.
pub(crate) async fn prove(stream: Stream, subject: String, fence: u64) -> Result<u64, CommitFailure> {
    match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) if message.sequence == fence => Ok(fence),
        Ok(_) => Err(CommitFailure::Fenced),
        Err(error) => {
            use async_nats::jetstream::stream::LastRawMessageErrorKind as Kind;
            match error.kind() {
                Kind::NoMessageFound if fence == 0 => Ok(0),
                Kind::NoMessageFound => Err(CommitFailure::Fenced),
                _ => Err(CommitFailure::Unknown(error.to_string())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn what_was_removed_before_it_was_sent_is_missed() {
        let nats = baton_testkit::NatsServer::start().await;
        let client = nats.connect().await;
        let js = context(&client);
        let settings = LogSettings { trim: true, ..LogSettings::default() };
        let stream = ensure(&js, Shard(0), &settings).await.unwrap();
        for _ in 0..9 {
            let subject = subject::log(Shard(0), Service::Optimizer);
            js.publish(subject, "{}".into()).await.unwrap().await.unwrap();
        }
        stream.purge().sequence(6).await.unwrap();
        let mut whole = tail(&client, &stream, 6, None).await.unwrap();
        for _ in 6..=9 {
            whole.next().await.unwrap().unwrap();
        }
        let mut late = tail(&client, &stream, 3, None).await.unwrap();
        let error = late.next().await.unwrap().unwrap_err();
        assert!(matches!(error, TailError::Gap { expected: 3, found: 6 }), "{error}");
    }

    #[test]
    fn every_setting_that_differs_is_named() {
        let settings = LogSettings::default();
        let wanted = wanted(Shard(0), &settings);
        assert_eq!(difference(&wanted, &wanted), None);
        let found = Config { num_replicas: 3, discard: DiscardPolicy::Old, ..wanted.clone() };
        let text = difference(&wanted, &found).unwrap();
        assert_eq!(text, "replicas is 3, not 1; discard is Old, not New");
        let purgeable = Config { deny_purge: false, ..wanted.clone() };
        assert_eq!((wanted.deny_purge, difference(&wanted, &purgeable)), (true, None));
    }
}
