//! What agents say to each other.
//!
//! | | reaches | lost when |
//! |---|---|---|
//! | [`send`](Messages::send), [`multicast`](Messages::multicast) | the agents named, if they listen | they do not listen, or have too much waiting |
//! | [`broadcast`](Messages::broadcast) | all that listen | the same |
//! | [`publish`](Messages::publish) | all that have [subscribed](Listen::topic) to the topic | the same |
//! | [`request`](Messages::request) | one agent, which answers | never silently: there is an answer or an error |
//! | [`send_guaranteed`](Messages::send_guaranteed) | the agent named, now or when it comes back | it is older than the stream keeps (a day unless set otherwise), or more than it keeps |
//!
//! A guaranteed message is stored before it is acknowledged, and handed to the handlers at least once: a second time only
//! when the process ends before its cursor is kept (that is once a second), or when the sender repeated it after
//! more than twenty seconds and the reader is another process by then, or the stream was made anew. From one sender they come in the order in which they
//! were stored.
//!
//! ```no_run
//! # async fn example(agent: baton_sdk::Agent) -> anyhow::Result<()> {
//! use baton_sdk::messages::{Answer, Listen, Outgoing, Received};
//! use serde_json::json;
//!
//! let messages = agent.messages();
//! let listen = Listen::new().on_any(|message: Received| async move {
//!     println!("{} says {:?}", message.from(), message.body());
//!     Ok(Answer::json(&json!({ "heard": true }))?)
//! });
//! messages.listen(listen).await?;
//! let bob = "bob".parse()?;
//! messages.send(&bob, Outgoing::json(&json!({ "hello": "bob" }))?).await?;
//! messages.send_guaranteed(&bob, Outgoing::json(&json!({ "keep": "this" }))?).await?;
//! # Ok(())
//! # }
//! ```

mod counts;
mod handlers;
mod letter;
mod mailbox;
mod outbox;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_nats::{Client, Request, RequestErrorKind, Subscriber};
use baton_client::{Connection, Link, now};
use baton_protocol::message::MessageType;
use baton_protocol::post::Ask;
use baton_protocol::{AgentId, Rejection, TopicFilter, TopicName, subject};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{OnceCell, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub use counts::Numbers;
pub use handlers::{Answer, MessageResult};
pub use letter::{Outgoing, Received, Route};
pub use outbox::{Posted, Stored};

use counts::Counts;
use handlers::{Handlers, Rules, Selector, Taken, Wanted};
use mailbox::{Mailbox, Wish};
use outbox::Outbox;

/// How often what was counted is told to the post office.
const TELL: Duration = Duration::from_secs(5);
/// How long work in hand may take once the messages are closed.
const CLOSE: Duration = Duration::from_secs(10);

/// Why a message was not sent, or is not known to have arrived.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MessageError {
    /// It can not be sent: it is too large, or the connection is closed.
    #[error("the message could not be sent: {0}")]
    Unsent(String),
    /// The broker does not store it.
    #[error("the broker does not store the message: {0}")]
    Refused(String),
    /// The broker has not said that it is stored: it may be or not. Sending it once more makes it another message.
    #[error("the message may be stored or not: the broker has not acknowledged it in time")]
    Unknown,
    /// Nobody listens under that id.
    #[error("no agent {0} listens to messages")]
    NobodyThere(AgentId),
    /// There was no answer in time.
    #[error("the agent {to} has not answered within {} ms", after.as_millis())]
    NoAnswer {
        /// Who was asked.
        to: AgentId,
        /// How long was waited.
        after: Duration,
    },
    /// The other agent's handler failed.
    #[error("the agent {to} could not answer: {rejection}")]
    Failed {
        /// Who was asked.
        to: AgentId,
        /// Why.
        rejection: Rejection,
    },
    /// What is listened to can not be changed any more.
    #[error("there is a listener already: handlers and topics are given at once")]
    Listening,
    /// The messages were closed. What was under way may be stored or not.
    #[error("the messages are closed")]
    Closed,
}

/// How messages are sent.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many guaranteed messages may be under way at a time: 1024 unless given. One more waits.
    pub window: usize,
    /// How long a guaranteed message is repeated until it is stored: 30 seconds unless given.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { window: 1024, patience: Duration::from_secs(30) }
    }
}

/// What an agent listens to, and who handles it.
#[derive(Clone)]
#[must_use]
pub struct Listen {
    wanted: Vec<Wanted>,
    topics: Vec<TopicFilter>,
    rules: Rules,
}

impl Default for Listen {
    fn default() -> Self {
        let rules = Rules { queue: 4096, attempts: 3, pause: Duration::from_millis(100) };
        Self { wanted: Vec::new(), topics: Vec::new(), rules }
    }
}

impl Listen {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A handler for messages of that type. A message goes to every handler that is for it. Each handler takes one after
    /// the other; one that fails, panics or takes long holds up no other handler.
    ///
    /// An error or a panic is counted. A guaranteed message is then handled [again](Self::attempts) by that handler, unless
    /// the error is [permanent](crate::TaskError::permanent).
    pub fn on<H, F, A>(self, message_type: MessageType, handler: H) -> Self
    where
        H: Fn(Received) -> F + Send + Sync + 'static,
        F: Future<Output = MessageResult<A>> + Send + 'static,
        A: Into<Answer>,
    {
        self.with(Selector::Type(message_type), handler)
    }

    /// A handler for all messages.
    pub fn on_any<H, F, A>(self, handler: H) -> Self
    where
        H: Fn(Received) -> F + Send + Sync + 'static,
        F: Future<Output = MessageResult<A>> + Send + 'static,
        A: Into<Answer>,
    {
        self.with(Selector::Any, handler)
    }

    /// A handler for what is published to these topics, which are thereby subscribed to.
    pub fn on_topic<H, F, A>(self, filter: TopicFilter, handler: H) -> Self
    where
        H: Fn(Received) -> F + Send + Sync + 'static,
        F: Future<Output = MessageResult<A>> + Send + 'static,
        A: Into<Answer>,
    {
        self.topic(filter.clone()).with(Selector::Topic(filter), handler)
    }

    /// Subscribes to topics, for handlers that are for their messages anyway. A message that two of the filters match comes
    /// twice.
    pub fn topic(mut self, filter: TopicFilter) -> Self {
        if !self.topics.contains(&filter) {
            self.topics.push(filter);
        }
        self
    }

    /// How many messages may wait for each handler, of those that are guaranteed (they go first) and of those that are not:
    /// 4096 unless given. Of one more, what is fire-and-forget is dropped and
    /// [counted](Numbers::dropped); what is guaranteed is fetched again when there is room.
    pub fn queue(mut self, messages: usize) -> Self {
        self.rules.queue = messages.max(1);
        self
    }

    /// How often a handler is given a guaranteed message on which it fails, 3 times unless given, and the pause before the
    /// second time, which doubles. After that the message counts as handled.
    pub fn attempts(mut self, attempts: u32, pause: Duration) -> Self {
        self.rules.attempts = attempts.max(1);
        self.rules.pause = pause;
        self
    }

    fn with<H, F, A>(mut self, selector: Selector, handler: H) -> Self
    where
        H: Fn(Received) -> F + Send + Sync + 'static,
        F: Future<Output = MessageResult<A>> + Send + 'static,
        A: Into<Answer>,
    {
        self.wanted.push(Wanted::new(selector, handler));
        self
    }
}

/// What one agent says, and hears. Copies are the same.
///
/// It ends with its last copy. A handler that has one keeps it alive until it is [closed](Self::close).
#[derive(Clone)]
pub struct Messages(Arc<Inner>);

struct Inner {
    nats: Client,
    link: watch::Receiver<Link>,
    agent: AgentId,
    outbox: Arc<Outbox>,
    outbox_runs: OnceCell<()>,
    counts: Arc<Counts>,
    handlers: OnceLock<Arc<Handlers>>,
    tasks: Mutex<JoinSet<()>>,
    close: Mutex<Option<oneshot::Sender<Wish>>>,
}

impl std::fmt::Debug for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Messages").field(&self.0.agent).finish()
    }
}

impl Messages {
    /// The messages of the agent with that id, over a connection that may be shared. Nothing is heard before
    /// [`listen`](Self::listen).
    #[must_use]
    pub fn new(connection: &Connection, agent: AgentId, options: Options) -> Self {
        let Connection { nats, link } = connection.clone();
        let counts = Arc::new(Counts::default());
        let outbox = Outbox::new(nats.clone(), agent.clone(), options.window.max(1), options.patience, &counts);
        Self(Arc::new(Inner {
            nats,
            link,
            agent,
            outbox: Arc::new(outbox),
            outbox_runs: OnceCell::new(),
            counts,
            handlers: OnceLock::new(),
            tasks: Mutex::default(),
            close: Mutex::default(),
        }))
    }

    /// Whose messages these are.
    #[must_use]
    pub fn agent(&self) -> &AgentId {
        &self.0.agent
    }

    /// Begins to listen; once. When this returns, what is said from now on is heard, and what was guaranteed while the
    /// agent was away is on its way.
    pub async fn listen(&self, listen: Listen) -> Result<(), MessageError> {
        let Inner { nats, link, agent, counts, .. } = &*self.0;
        let mut runners = JoinSet::new();
        let handlers = Arc::new(Handlers::start(listen.wanted, listen.rules, nats, counts, &mut runners));
        self.0.handlers.set(Arc::clone(&handlers)).map_err(|_| MessageError::Listening)?;
        let closed = |error: async_nats::SubscribeError| MessageError::Unsent(error.to_string());
        let mut heard = Vec::new();
        if !handlers.are_none() {
            heard.push(nats.subscribe(subject::said_to(agent)).await.map_err(closed)?);
            heard.push(nats.subscribe(subject::SAID_TO_ALL).await.map_err(closed)?);
        }
        for topic in &listen.topics {
            heard.push(nats.subscribe(subject::topics(topic)).await.map_err(closed)?);
        }
        let mailbox = Mailbox::new(nats.clone(), agent.clone(), Arc::clone(&handlers));
        let mail = if handlers.are_none() { None } else { Some(mailbox.subscribe().await.map_err(closed)?) };
        // A round trip: the broker has taken the subscriptions.
        let round = nats.send_request(nats.new_inbox(), Request::new().timeout(Some(Duration::from_secs(5)))).await;
        drop(round);
        let (close, wishes) = oneshot::channel();
        let mut tasks = self.tasks();
        for subscriber in heard {
            tasks.spawn(hear(subscriber, Arc::clone(&handlers), agent.clone()));
        }
        if let Some(mail) = mail {
            tasks.spawn(mailbox.run(mail, link.clone(), wishes));
            *self.0.close.lock().unwrap_or_else(PoisonError::into_inner) = Some(close);
        }
        tasks.spawn(tell(nats.clone(), agent.clone(), Arc::clone(counts)));
        // The handlers' own tasks end with the rest.
        tasks.spawn(async move { while runners.join_next().await.is_some() {} });
        Ok(())
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something to an agent, which hears it if it listens. It is stored nowhere.
    pub async fn send(&self, to: &AgentId, message: impl Into<Outgoing>) -> Result<(), MessageError> {
        self.say(subject::say(&self.0.agent, to), message.into(), &MessageType::DataUpdate, None).await
    }

    /// Says something to some agents: one message each.
    pub async fn multicast(&self, to: &[AgentId], message: impl Into<Outgoing>) -> Result<(), MessageError> {
        let (message, targets) = (message.into(), targets(to));
        for agent in to {
            let subject = subject::say(&self.0.agent, agent);
            self.say(subject, message.clone(), &MessageType::DataUpdate, Some(&targets)).await?;
        }
        Ok(())
    }

    /// Says something to all agents that listen, also to oneself if one does.
    pub async fn broadcast(&self, message: impl Into<Outgoing>) -> Result<(), MessageError> {
        self.say(subject::to_all(&self.0.agent), message.into(), &MessageType::Broadcast, None).await
    }

    /// Says something to all that have subscribed to the topic.
    pub async fn publish(&self, topic: &TopicName, message: impl Into<Outgoing>) -> Result<(), MessageError> {
        self.say(subject::topic(&self.0.agent, topic), message.into(), &MessageType::DataUpdate, None).await
    }

    async fn say(
        &self,
        subject: String,
        message: Outgoing,
        usual: &MessageType,
        targets: Option<&str>,
    ) -> Result<(), MessageError> {
        let mut headers = message.headers(self.next_id(), now(), usual);
        if let Some(targets) = targets {
            letter::multicast(&mut headers, targets);
        }
        self.0.counts.sent.one();
        let sent = self.0.nats.publish_with_headers(subject, headers, message.body).await;
        sent.map_err(|error| MessageError::Unsent(error.to_string()))
    }

    fn next_id(&self) -> String {
        self.0.outbox.id(self.0.outbox.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks an agent, and gives its answer: what its handler returned, as JSON.
    pub async fn request(
        &self,
        to: &AgentId,
        message: impl Into<Outgoing>,
        timeout: Duration,
    ) -> Result<Bytes, MessageError> {
        let message = message.into();
        let mut headers = message.headers(self.next_id(), now(), &MessageType::DataRequest);
        letter::wants_answer(&mut headers, timeout);
        self.0.counts.sent.one();
        let request = Request::new().payload(message.body).headers(headers).timeout(Some(timeout));
        let answer = match self.0.nats.send_request(subject::say(&self.0.agent, to), request).await {
            Ok(answer) => answer,
            Err(error) => {
                return Err(match error.kind() {
                    RequestErrorKind::NoResponders => MessageError::NobodyThere(to.clone()),
                    RequestErrorKind::TimedOut => MessageError::NoAnswer { to: to.clone(), after: timeout },
                    _ => MessageError::Unsent(error.to_string()),
                });
            }
        };
        let headers = answer.headers.as_ref();
        if headers.is_some_and(|headers| headers.get(async_nats::service::NATS_SERVICE_ERROR_CODE).is_some()) {
            let text = String::from_utf8_lossy(&answer.payload);
            let rejection = serde_json::from_slice(&answer.payload)
                .unwrap_or_else(|_| Rejection::new(baton_protocol::Code::Unknown, text));
            return Err(MessageError::Failed { to: to.clone(), rejection });
        }
        Ok(answer.payload)
    }

    /// Sends a message that is stored before this returns, and handled by the agent even if it is away now.
    ///
    /// To send many, do not wait for each: [`post`](Self::post).
    pub async fn send_guaranteed(&self, to: &AgentId, message: impl Into<Outgoing>) -> Result<Stored, MessageError> {
        self.post(to, message).await?.await
    }

    /// Sends a guaranteed message, and returns as soon as there is room for it in the [window](Options::window). What it
    /// returns tells when the message is stored.
    pub async fn post(&self, to: &AgentId, message: impl Into<Outgoing>) -> Result<Posted, MessageError> {
        self.posted(to, message.into(), None).await
    }

    /// Sends a guaranteed message to some agents: one each, all under way at a time.
    pub async fn multicast_guaranteed(
        &self,
        to: &[AgentId],
        message: impl Into<Outgoing>,
    ) -> Result<Vec<Stored>, MessageError> {
        let (message, targets): (_, Arc<str>) = (message.into(), targets(to).into());
        let mut posted = Vec::new();
        for agent in to {
            posted.push(self.posted(agent, message.clone(), Some(Arc::clone(&targets))).await?);
        }
        futures::future::try_join_all(posted).await
    }

    async fn posted(&self, to: &AgentId, message: Outgoing, targets: Option<Arc<str>>) -> Result<Posted, MessageError> {
        let Inner { outbox, outbox_runs, link, .. } = &*self.0;
        let run = async {
            let heard = outbox.subscribe().await?;
            let mut tasks = self.tasks();
            // It is closed before its tasks are ended: none is begun that nothing would end.
            if outbox.is_closed() {
                return Err(MessageError::Closed);
            }
            tasks.spawn(Arc::clone(outbox).run(heard, link.clone()));
            Ok::<_, MessageError>(())
        };
        outbox_runs.get_or_try_init(|| run).await?;
        outbox.post(to.clone(), message, targets).await
    }

    /// How many messages there were, of each kind.
    #[must_use]
    pub fn numbers(&self) -> Numbers {
        self.0.counts.numbers()
    }

    /// How often each handler has failed, by what it is for: `any`, a type, `topic FILTER`.
    #[must_use]
    pub fn failures(&self) -> BTreeMap<String, u64> {
        self.0.handlers.get().map(|handlers| handlers.failures()).unwrap_or_default()
    }

    /// Stops listening: the guaranteed messages that were taken are handled, for ten seconds at the most, and how far that is
    /// is kept, so that the next process goes on exactly there. What is not guaranteed and waits is dropped.
    ///
    /// Then no guaranteed message is sent any more: those not known to be stored yet, and later ones, give
    /// [`MessageError::Closed`].
    ///
    /// Gives whether it was kept how far all is handled. If not, as the post office did not answer within two seconds or a handler took too
    /// long, the next process may be given once more what this one has handled. True as well where nothing was listened to.
    pub async fn close(&self) -> bool {
        let mut kept = true;
        let close = self.0.close.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(close) = close {
            let (done, told) = oneshot::channel();
            kept = close.send(Wish::Close(done)).is_ok() && matches!(timeout(CLOSE * 2, told).await, Ok(Ok(true)));
        }
        // Only now: the handlers may have had something to send.
        self.0.outbox.close();
        let mut tasks = std::mem::take(&mut *self.tasks());
        tasks.shutdown().await;
        kept
    }
}

fn targets(to: &[AgentId]) -> String {
    to.iter().map(AgentId::as_str).collect::<Vec<_>>().join(",")
}

/// Hears what is stored nowhere.
async fn hear(mut subscriber: Subscriber, handlers: Arc<Handlers>, agent: AgentId) {
    let mut dropped = 0u64;
    while let Some(message) = subscriber.next().await {
        let Some(message) = Received::read(message) else { continue };
        if handlers.take(&message) == Taken::Full {
            handlers.counts.dropped.one();
            dropped += 1;
            if dropped.is_power_of_two() {
                tracing::warn!(%agent, dropped, "messages were dropped: their handler is too slow");
            }
        }
    }
}

/// Tells the post office how many messages there were.
async fn tell(nats: Client, agent: AgentId, counts: Arc<Counts>) {
    let mut told = Numbers::default();
    loop {
        sleep(TELL).await;
        let numbers = counts.numbers();
        let more = numbers.since(&told);
        if !more.is_empty() {
            told = numbers;
            let body = serde_json::to_vec(&Ask::Count { more }).unwrap_or_default();
            let _ = nats.publish(subject::post(&agent), body.into()).await;
        }
    }
}
