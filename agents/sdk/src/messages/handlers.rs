//! Handlers: each has its own queues and its own task, so that one that fails, panics or takes long holds up no other.
//!
//! What is guaranteed has a queue of its own, which goes first: a flood of what is not must not keep it out.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use baton_protocol::header;
use baton_protocol::message::MessageType;
use baton_protocol::{Code, Json, Rejection, TopicFilter};
use futures::FutureExt;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::counts::Counts;
use super::letter::{Received, Route};
use crate::keeper::panic_text;
use crate::output::TaskError;

/// The longest wait before a guaranteed message is handled again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What a handler of messages returns.
pub type MessageResult<A = ()> = Result<A, TaskError>;

/// What is answered to a message whose sender waits for an answer: `null` unless the handler says something.
#[derive(Debug, Clone, Default)]
pub struct Answer(Option<Json>);

impl Answer {
    /// An answer: anything that is JSON.
    pub fn json<T: Serialize + ?Sized>(answer: &T) -> Result<Self, serde_json::Error> {
        Ok(Self(Some(Json::of(answer)?)))
    }
}

impl From<()> for Answer {
    fn from((): ()) -> Self {
        Self(None)
    }
}

impl From<Json> for Answer {
    fn from(answer: Json) -> Self {
        Self(Some(answer))
    }
}

type Work = Arc<dyn Fn(Received) -> Pin<Box<dyn Future<Output = MessageResult<Answer>> + Send>> + Send + Sync>;

/// Which messages a handler is for.
#[derive(Debug, Clone)]
pub(crate) enum Selector {
    Any,
    Type(MessageType),
    Topic(TopicFilter),
}

impl Selector {
    fn takes(&self, message: &Received) -> bool {
        match self {
            Self::Any => true,
            Self::Type(wanted) => wanted == message.message_type(),
            Self::Topic(filter) => matches!(message.route(), Route::Topic(topic) if filter.matches(topic)),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Any => "any".to_owned(),
            Self::Type(wanted) => wanted.to_string(),
            Self::Topic(filter) => format!("topic {filter}"),
        }
    }
}

/// A handler to be.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) selector: Selector,
    work: Work,
}

impl Wanted {
    pub(crate) fn new<H, F, A>(selector: Selector, handler: H) -> Self
    where
        H: Fn(Received) -> F + Send + Sync + 'static,
        F: Future<Output = MessageResult<A>> + Send + 'static,
        A: Into<Answer>,
    {
        let work: Work = Arc::new(move |message| handler(message).map(|done| done.map(Into::into)).boxed());
        Self { selector, work }
    }
}

/// A message in a handler's queue.
struct Job {
    message: Received,
    ticket: Option<Arc<Ticket>>,
}

/// A guaranteed message that some handlers have yet to finish.
struct Ticket {
    sequence: u64,
    reading: u64,
    left: AtomicUsize,
}

/// The sequences that were taken and are not finished. The lowest of them bounds the cursor.
#[derive(Debug, Default)]
pub(crate) struct Unfinished(Mutex<Readings>);

/// A stream that has lost its end gives the same sequence to another message. So it counts in which reading one was taken.
#[derive(Debug, Default)]
struct Readings {
    reading: u64,
    taken: BTreeSet<(u64, u64)>,
}

impl Unfinished {
    fn all(&self) -> MutexGuard<'_, Readings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn first(&self) -> Option<u64> {
        self.all().taken.first().map(|(sequence, _)| *sequence)
    }

    /// The same stream is read once more. What was taken from it is still to be finished.
    pub(crate) fn read_again(&self) {
        self.all().reading += 1;
    }

    /// Another stream is read. What is still in the queues says nothing of it.
    pub(crate) fn read_another(&self) {
        let mut all = self.all();
        all.reading += 1;
        all.taken.clear();
    }

    fn taken(&self, sequence: u64, left: usize) -> Ticket {
        let mut all = self.all();
        let reading = all.reading;
        all.taken.insert((sequence, reading));
        Ticket { sequence, reading, left: AtomicUsize::new(left) }
    }

    fn finished(&self, ticket: &Ticket) {
        self.all().taken.remove(&(ticket.sequence, ticket.reading));
    }
}

struct Handler {
    name: String,
    selector: Selector,
    mail: mpsc::Sender<Job>,
    said: mpsc::Sender<Job>,
    failed: Arc<AtomicU64>,
}

impl Handler {
    fn queue(&self, message: &Received) -> &mpsc::Sender<Job> {
        if message.sequence().is_some() { &self.mail } else { &self.said }
    }
}

/// All handlers.
pub(crate) struct Handlers {
    handlers: Vec<Handler>,
    pub(crate) unfinished: Arc<Unfinished>,
    pub(crate) counts: Arc<Counts>,
}

/// What became of a message that was to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is in the queues, or nobody's.
    Yes,
    /// A queue is full.
    Full,
}

/// How handlers work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) queue: usize,
    pub(crate) attempts: u32,
    pub(crate) pause: Duration,
}

impl Handlers {
    /// Starts a task for each handler. They end when this is dropped and their queues are empty.
    pub(crate) fn start(
        wanted: Vec<Wanted>,
        rules: Rules,
        nats: &async_nats::Client,
        counts: &Arc<Counts>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let unfinished = Arc::new(Unfinished::default());
        let start = |Wanted { selector, work }: Wanted| {
            let (mail, mail_jobs) = mpsc::channel(rules.queue);
            let (said, said_jobs) = mpsc::channel(rules.queue);
            let failed = Arc::new(AtomicU64::new(0));
            let runner = Runner {
                name: selector.name(),
                work,
                rules,
                nats: nats.clone(),
                failed: Arc::clone(&failed),
                unfinished: Arc::clone(&unfinished),
                counts: Arc::clone(counts),
            };
            tasks.spawn(runner.run(mail_jobs, said_jobs));
            Handler { name: selector.name(), selector, mail, said, failed }
        };
        let handlers = wanted.into_iter().map(start).collect();
        Self { handlers, unfinished, counts: Arc::clone(counts) }
    }

    /// Puts a message into the queues of all handlers that are for it, or into none.
    pub(crate) fn take(&self, message: &Received) -> Taken {
        if message.is_expired() {
            self.counts.expired.one();
            return Taken::Yes;
        }
        let mut for_it = self.handlers.iter().filter(|handler| handler.selector.takes(message));
        let Some(first) = for_it.next() else {
            self.counts.unclaimed.one();
            return Taken::Yes;
        };
        let mut rooms = Vec::new();
        let Ok(room) = first.queue(message).try_reserve() else { return Taken::Full };
        for handler in for_it {
            let Ok(room) = handler.queue(message).try_reserve() else { return Taken::Full };
            rooms.push(room);
        }
        self.counts.delivered.one();
        let ticket = message.sequence().map(|sequence| Arc::new(self.unfinished.taken(sequence, 1 + rooms.len())));
        for room in rooms {
            room.send(Job { message: message.clone(), ticket: ticket.clone() });
        }
        room.send(Job { message: message.clone(), ticket });
        Taken::Yes
    }

    /// How many guaranteed messages every handler has room for.
    pub(crate) fn room(&self) -> usize {
        self.handlers.iter().map(|handler| handler.mail.capacity()).min().unwrap_or(usize::MAX)
    }

    pub(crate) fn are_none(&self) -> bool {
        self.handlers.is_empty()
    }

    /// How often each handler has failed.
    pub(crate) fn failures(&self) -> BTreeMap<String, u64> {
        let mut failures = BTreeMap::new();
        for handler in &self.handlers {
            *failures.entry(handler.name.clone()).or_default() += handler.failed.load(Ordering::Relaxed);
        }
        failures
    }
}

/// One handler at work.
struct Runner {
    name: String,
    work: Work,
    rules: Rules,
    nats: async_nats::Client,
    failed: Arc<AtomicU64>,
    unfinished: Arc<Unfinished>,
    counts: Arc<Counts>,
}

impl Runner {
    async fn run(self, mut mail: mpsc::Receiver<Job>, mut said: mpsc::Receiver<Job>) {
        loop {
            let Job { message, ticket } = tokio::select! {
                biased;
                Some(job) = mail.recv() => job,
                Some(job) = said.recv() => job,
                else => return,
            };
            // It may have waited for long.
            if message.is_expired() {
                self.counts.expired.one();
            } else {
                self.handle(message).await;
            }
            if let Some(ticket) = ticket
                && ticket.left.fetch_sub(1, Ordering::AcqRel) == 1
            {
                self.unfinished.finished(&ticket);
            }
        }
    }

    async fn handle(&self, message: Received) {
        let mut attempt = 1;
        let mut pause = self.rules.pause;
        loop {
            let error = match self.attempt(message.clone()).await {
                Ok(answer) => {
                    self.counts.handled.one();
                    return self.answer(&message, Ok(answer)).await;
                }
                Err(error) => error,
            };
            self.counts.failed.one();
            self.failed.fetch_add(1, Ordering::Relaxed);
            let is_last = attempt >= self.rules.attempts || message.sequence().is_none() || !error.is_retryable();
            let (handler, from) = (&self.name, message.from());
            tracing::warn!(handler, %from, id = message.id(), %error, attempt, given_up = is_last, "a handler failed");
            if is_last {
                return self.answer(&message, Err(error)).await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_WAIT);
            attempt += 1;
        }
    }

    async fn attempt(&self, message: Received) -> MessageResult<Answer> {
        // The call itself may panic, before there is a future.
        let work = AssertUnwindSafe(async { (self.work)(message).await });
        work.catch_unwind()
            .await
            .unwrap_or_else(|panic| Err(TaskError::failed(format!("the handler panicked: {}", panic_text(&*panic)))))
    }

    async fn answer(&self, message: &Received, answer: MessageResult<Answer>) {
        let Some(reply) = message.reply().cloned() else { return };
        let mut headers = HeaderMap::new();
        let body = match answer {
            Ok(Answer(answer)) => {
                headers.insert(header::TYPE, MessageType::DataResponse.name().as_ref());
                answer.unwrap_or_default().as_str().to_owned()
            }
            Err(error) => {
                let rejection = Rejection::new(Code::Internal, error.message());
                headers.insert(header::TYPE, MessageType::Error.name().as_ref());
                headers.insert(async_nats::service::NATS_SERVICE_ERROR, rejection.code.as_str());
                headers.insert(async_nats::service::NATS_SERVICE_ERROR_CODE, "500");
                serde_json::to_string(&rejection).unwrap_or_default()
            }
        };
        if let Err(error) = self.nats.publish_with_headers(reply, headers, body.into()).await {
            tracing::debug!(%error, "an answer could not be sent");
        }
    }
}
