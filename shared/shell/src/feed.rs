//! The log, read once for all services of a process.
//!
//! A service that leads has a consumer of its own for what it observes. Where several services are in one process, a commit
//! would be delivered to each, and decoded by each. A feed reads the log once and hands every commit, decoded, to those
//! that observe it.
//!
//! Nothing rests on a feed. Who joins keeps its own consumer until that has brought a message which the feed has brought,
//! too: from there on the feed misses nothing. When a feed ends, for whatever reason, its readers go on with consumers of
//! their own from where they are, and join again. So a feed need not repair itself, and one that lags is left.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::jetstream::Message;
use baton_client::{ConnectSettings, Connection};
use baton_protocol::Service;
use baton_protocol::record::AnyCommit;
use baton_protocol::subject::{self, Shard};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;

use crate::log::{self, Tail, TailError};

/// How many commits may wait for a reader. One that is so far behind goes on alone.
const WAITING: usize = 512;

/// The pause before the log is read again.
const PAUSE: Duration = Duration::from_millis(500);

/// A commit, and its place in the log.
type Placed = (u64, Arc<AnyCommit>);

/// The log, read once for all services of this process. Reading ends when nobody has a clone any more.
#[derive(Debug, Clone)]
pub struct Feed {
    joins: mpsc::UnboundedSender<Reader>,
}

#[derive(Debug)]
struct Reader {
    /// Whose commits it observes.
    of: &'static [Service],
    to: mpsc::Sender<Placed>,
}

impl Feed {
    /// A feed, and what reads the log for it: to be run beside the services, best on a thread of its own.
    pub fn new(connect: ConnectSettings) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (joins, joining) = mpsc::unbounded_channel();
        (Self { joins }, read(connect.named("baton-log"), joining))
    }

    fn join(&self, of: &'static [Service]) -> Option<mpsc::Receiver<Placed>> {
        let (to, commits) = mpsc::channel(WAITING);
        self.joins.send(Reader { of, to }).ok()?;
        Some(commits)
    }
}

/// Reads as long as somebody may join.
async fn read(connect: ConnectSettings, mut joining: mpsc::UnboundedReceiver<Reader>) {
    // Nothing is read for nobody.
    while let Some(first) = joining.recv().await {
        let mut readers = vec![first];
        match follow(&connect, &mut joining, &mut readers).await {
            Ok(()) => {}
            Err(why) => {
                tracing::debug!(why, "the log is not read for all services at once: each reads on its own");
                drop(readers);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Reads the log from its end on, until there are no more readers.
async fn follow(
    connect: &ConnectSettings,
    joining: &mut mpsc::UnboundedReceiver<Reader>,
    readers: &mut Vec<Reader>,
) -> Result<(), String> {
    let connection = Connection::open(connect).await.map_err(|error| error.to_string())?;
    let stream = log::context(&connection.nats).get_stream(subject::log_stream(Shard::default())).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let from = stream.cached_info().state.last_sequence + 1;
    let mut tail = log::tail(&connection.nats, &stream, from, None).await.map_err(|error| error.to_string())?;
    let mut link = connection.link.clone();
    while !readers.is_empty() {
        tokio::select! {
            message = tail.next() => {
                let message = message.ok_or("the log's tail ended")?.map_err(|error| error.to_string())?;
                let (seq, commit) = placed(&message)?;
                let is_reached = |reader: &Reader| reader.to.try_send((seq, Arc::clone(&commit))).is_ok();
                readers.retain(|reader| !reader.of.contains(&commit.service()) || is_reached(reader));
            }
            joined = joining.recv() => match joined {
                Some(reader) => readers.push(reader),
                None => return Ok(()),
            },
            changed = link.changed() => {
                let now = link.borrow();
                if changed.is_err() || !now.connected || now.connects > 1 {
                    return Err("the connection broke".to_owned());
                }
                if let Some(denied) = &now.denied {
                    return Err(format!("the broker forbids it: {denied}"));
                }
            }
        }
    }
    Ok(())
}

fn placed(message: &Message) -> Result<Placed, String> {
    let seq = message.info().map_err(|error| error.to_string())?.stream_sequence;
    let Some((_, service)) = subject::parse_log(&message.subject) else {
        return Err(format!("message {seq} has the subject {:?}", message.subject));
    };
    let commit = AnyCommit::decode(service, &message.payload).map_err(|error| format!("message {seq}: {error}"))?;
    Ok((seq, Arc::new(commit)))
}

/// Something of the log.
#[expect(clippy::large_enum_variant, reason = "it is taken at once, and a box would be one for every message")]
pub(crate) enum Read {
    /// As it came from the broker.
    Message(Message),
    /// As the feed had read it.
    Commit(u64, Arc<AnyCommit>),
    /// The feed has ended: what follows is to be had from a consumer of one's own.
    Ended,
}

/// What a service reads of the log: by itself, until a feed has caught up with it.
pub(crate) struct Reading {
    own: Option<Tail>,
    feed: Option<mpsc::Receiver<Placed>>,
    /// The first that the feed brought, while there is a consumer of one's own.
    first: Option<Placed>,
}

impl Reading {
    /// Reads by itself.
    pub(crate) fn alone(own: Tail) -> Self {
        Self { own: Some(own), feed: None, first: None }
    }

    /// Reads from a consumer of those services' commits, and then from a feed of the same.
    pub(crate) fn with(own: Tail, feed: Option<&Feed>, of: &'static [Service]) -> Self {
        Self { feed: feed.and_then(|feed| feed.join(of)), ..Self::alone(own) }
    }

    /// Its own consumer has brought this message. All before it have been brought as well, and the feed has what follows its
    /// first.
    pub(crate) fn brought(&mut self, seq: u64) {
        if self.own.is_some() && self.first.as_ref().is_some_and(|(first, _)| *first <= seq) {
            (self.own, self.first) = (None, None);
        }
    }
}

impl Stream for Reading {
    type Item = Result<Read, TailError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let reading = &mut *self;
        if reading.own.is_none() || reading.first.is_none() {
            match reading.feed.as_mut().map(|feed| feed.poll_recv(context)) {
                Some(Poll::Ready(Some(placed))) if reading.own.is_some() => reading.first = Some(placed),
                Some(Poll::Ready(Some((seq, commit)))) => return Poll::Ready(Some(Ok(Read::Commit(seq, commit)))),
                Some(Poll::Ready(None)) => {
                    reading.feed = None;
                    if reading.own.is_none() {
                        return Poll::Ready(Some(Ok(Read::Ended)));
                    }
                }
                Some(Poll::Pending) | None => {}
            }
        }
        match reading.own.as_mut() {
            Some(own) => own.poll_next_unpin(context).map(|next| next.map(|message| message.map(Read::Message))),
            None if reading.feed.is_none() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}
