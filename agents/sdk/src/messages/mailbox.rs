//! The agent's guaranteed messages, as they come: in order, each once, and none left out.
//!
//! As a rule the broker publishes a message to us when it is stored, and says which message of the same sender to us was
//! the one before (`Nats-Last-Sequence`). So a gap is seen as soon as anything follows. What is missing is *fetched*,
//! together with everything behind it. The last message before a silence has none behind it: hence the *check*, once a
//! second while there is something new and rarely otherwise, which asks for the last message of each sender. When all of
//! those are here, everything up to where the stream was then is here: that is the *floor*, and no message that comes
//! later can be below it. The *cursor* that is kept for the agent's next life is the floor, or what is just below the first
//! message that the handlers have not finished.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use baton_client::Link;
use baton_protocol::AgentId;
use baton_protocol::post::{Ask, Opened};
use baton_protocol::subject;
use futures::{FutureExt, StreamExt};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::CLOSE;
use super::handlers::{Handlers, Taken};
use super::letter::{NATS_LAST_SEQUENCE, NATS_SEQUENCE, NATS_SUBJECT, Received, number, text};

/// How often the cursor is brought up to date while messages come.
const CHECK: Duration = Duration::from_secs(1);
/// How often is looked whether something has been lost while none come: between this and twice this.
const IDLE_CHECK: Duration = Duration::from_secs(20);
/// How long the post office may take.
const ANSWER: Duration = Duration::from_secs(2);
/// How long messages that a check tells of may still be on their way.
const ON_ITS_WAY: Duration = Duration::from_millis(500);
/// How soon is looked again when there was no room, or a message was on its way.
const SOON: Duration = Duration::from_millis(5);
/// The most messages fetched at a time.
const FETCH: usize = 500;
/// How many messages that come while others are fetched are kept.
const ASIDE: usize = 4096;
/// The most messages that are taken one after the other before anything else is looked at.
const AT_ONCE: usize = 256;
/// How many ids are remembered, to know a message that was stored twice.
const REMEMBERED: usize = 65_536;

/// The header of a check's end.
const UP_TO: async_nats::HeaderName = async_nats::HeaderName::from_static("Nats-UpTo-Sequence");
/// The header of a fetch's end.
const PENDING: async_nats::HeaderName = async_nats::HeaderName::from_static("Nats-Num-Pending");

/// What it is doing.
enum State {
    /// It is asking how far it was, and asks again then.
    Opening(Instant),
    /// It takes what comes.
    Live,
    /// It waits for room in the handlers' queues before it fetches.
    Full(Instant),
    /// It is fetching, and asks again after that.
    Fetching(Instant),
}

/// A check under way.
struct Check {
    token: u64,
    since: Instant,
    last: Vec<(AgentId, u64)>,
    up_to: Option<u64>,
}

pub(crate) struct Mailbox {
    nats: async_nats::Client,
    agent: AgentId,
    handlers: Arc<Handlers>,
    epoch: u64,
    /// The question how far it was, while it is under way. Everything else goes on meanwhile.
    asked: JoinSet<Option<Opened>>,
    /// The stream ends here, before the floor: it is read again from what is left of it.
    ends: Option<u64>,
    floor: u64,
    heads: HashMap<AgentId, u64>,
    aside: BTreeMap<u64, Message>,
    remembered: Remembered,
    state: State,
    token: u64,
    /// Whether the fetch with the current token still counts.
    taking: bool,
    check: Option<Check>,
    /// Whether the last check found that everything is here.
    settled: bool,
    check_at: Instant,
    /// When the check under way is judged again.
    judge_at: Instant,
    told: u64,
    /// Something came since the last check.
    news: bool,
}

/// A question from outside.
pub(crate) enum Wish {
    /// Bring the cursor up to date, say whether it is, and stop.
    Close(oneshot::Sender<bool>),
}

impl Mailbox {
    pub(crate) fn new(nats: async_nats::Client, agent: AgentId, handlers: Arc<Handlers>) -> Self {
        Self {
            nats,
            agent,
            handlers,
            epoch: 0,
            asked: JoinSet::new(),
            ends: None,
            floor: 0,
            heads: HashMap::new(),
            aside: BTreeMap::new(),
            remembered: Remembered::default(),
            state: State::Opening(Instant::now()),
            token: 0,
            taking: false,
            check: None,
            settled: false,
            check_at: Instant::now(),
            judge_at: Instant::now(),
            told: 0,
            news: false,
        }
    }

    /// Subscribes; from then on nothing that is published is missed.
    pub(crate) async fn subscribe(&self) -> Result<(Subscriber, Subscriber), async_nats::SubscribeError> {
        let stored = self.nats.subscribe(subject::stored_mail(&self.agent)).await?;
        let post = self.nats.subscribe(subject::from_post(&self.agent)).await?;
        Ok((stored, post))
    }

    pub(crate) async fn run(
        mut self,
        (mut stored, mut post): (Subscriber, Subscriber),
        mut link: watch::Receiver<Link>,
        mut wishes: oneshot::Receiver<Wish>,
    ) {
        let mut connects = link.borrow_and_update().connects;
        let mut link_gone = false;
        loop {
            let wake = self.wake_at();
            tokio::select! {
                biased;
                // First, or it would never be its turn while messages come.
                () = sleep_until(wake) => self.woken().await,
                Some(answer) = self.asked.join_next() => self.opened(answer.ok().flatten()).await,
                message = post.next() => match message {
                    Some(message) => self.hear_post(message).await,
                    None => return,
                },
                message = stored.next() => match message {
                    Some(message) => {
                        self.live(message).await;
                        // Those that are here already, without a look at everything else for each.
                        for _ in 0..AT_ONCE {
                            let Some(Some(message)) = stored.next().now_or_never() else { break };
                            self.live(message).await;
                        }
                    }
                    None => return,
                },
                changed = link.changed(), if !link_gone => {
                    link_gone = changed.is_err();
                    let now = link.borrow_and_update().connects;
                    if std::mem::replace(&mut connects, now) != now {
                        // The broker may have come back without its data, with sequences that begin anew.
                        self.taking = false;
                        self.check = None;
                        self.state = State::Opening(Instant::now());
                    }
                }
                wish = &mut wishes => {
                    if let Ok(Wish::Close(done)) = wish {
                        // What comes from now on is for the next life.
                        drop(stored);
                        let _ = done.send(self.last_words(&mut post, &link).await);
                    }
                    return;
                }
            }
        }
    }

    fn wake_at(&self) -> Instant {
        match self.state {
            State::Opening(at) | State::Full(at) | State::Fetching(at) => at,
            State::Live if self.check.is_some() => self.judge_at,
            State::Live => self.check_at,
        }
    }

    async fn woken(&mut self) {
        match self.state {
            State::Opening(_) => self.open(),
            State::Full(_) if self.handlers.room() == 0 => self.state = State::Full(Instant::now() + SOON),
            State::Full(_) | State::Fetching(_) => self.fetch().await,
            State::Live if self.check.is_some() => self.judge().await,
            State::Live => self.ask_check().await,
        }
    }

    // What comes.

    async fn live(&mut self, message: Message) {
        let Some(sequence) = number(&message, NATS_SEQUENCE) else { return };
        if !std::mem::replace(&mut self.news, true) {
            self.check_at = self.check_at.min(Instant::now() + CHECK);
        }
        if !matches!(self.state, State::Live) {
            // There is a limit: what does not fit is fetched as well.
            if self.aside.len() < ASIDE {
                self.aside.insert(sequence, message);
            }
            return;
        }
        if !self.take_live(sequence, message) {
            self.fetch().await;
        }
    }

    /// Takes a message that was published as it was stored. Not if one before it is missing, or if there is no room.
    fn take_live(&mut self, sequence: u64, message: Message) -> bool {
        let before = number(&message, NATS_LAST_SEQUENCE).unwrap_or(0);
        let Some(message) = Received::read(message) else { return true };
        let head = self.head(message.from());
        if sequence <= head {
            return true;
        }
        before <= head && self.take(sequence, &message)
    }

    fn head(&self, from: &AgentId) -> u64 {
        self.heads.get(from).copied().unwrap_or(0).max(self.floor)
    }

    fn take(&mut self, sequence: u64, message: &Received) -> bool {
        let key = message.id().map(|id| self.remembered.key(message.from(), id));
        if key.is_some_and(|key| self.remembered.has(key)) {
            self.handlers.counts.duplicate.one();
        } else {
            if self.handlers.take(message) == Taken::Full {
                return false;
            }
            if let Some(key) = key {
                self.remembered.put(key);
            }
        }
        match self.heads.get_mut(message.from()) {
            Some(head) => *head = sequence,
            None => drop(self.heads.insert(message.from().clone(), sequence)),
        }
        true
    }

    // The start.

    fn open(&mut self) {
        self.state = State::Opening(Instant::now() + ANSWER * 2);
        // An answer to an earlier question counts no more.
        self.asked = JoinSet::new();
        self.asked.spawn(ask_open(self.nats.clone(), subject::post(&self.agent)));
    }

    async fn opened(&mut self, answer: Option<Opened>) {
        let Some(Opened { cursor, epoch }) = answer else {
            self.state = State::Opening(Instant::now() + ANSWER / 4);
            return;
        };
        let ends = self.ends.take();
        let is_another = epoch != self.epoch;
        if is_another {
            self.epoch = epoch;
            self.floor = cursor;
            self.handlers.unfinished.read_another();
            // What still waits in the queues may be stored here as well, and is then unfinished here.
            self.remembered.forget();
        } else if let Some(ends) = ends {
            self.floor = cursor.min(ends);
            self.handlers.unfinished.read_again();
        }
        if is_another || ends.is_some() {
            self.told = self.floor;
            self.heads.clear();
            // It was stored before the fetch that follows.
            self.aside.clear();
        }
        self.fetch().await;
    }

    // Fetching.

    async fn ask(&self, ask: &Ask) {
        let body = serde_json::to_vec(ask).unwrap_or_default();
        // While the broker is away there may be no room for it, and it is asked again anyway.
        match timeout(ANSWER, self.nats.publish(subject::post(&self.agent), body.into())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the post office can not be asked"),
            Err(_) => tracing::debug!("the post office can not be asked in time"),
        }
    }

    async fn fetch(&mut self) {
        self.check = None;
        self.token += 1;
        let room = self.handlers.room().min(FETCH);
        if room == 0 {
            self.taking = false;
            self.state = State::Full(Instant::now() + SOON);
            return;
        }
        self.taking = true;
        self.state = State::Fetching(Instant::now() + ANSWER);
        let max = u32::try_from(room).unwrap_or(u32::MAX);
        self.ask(&Ask::Fetch { after: self.floor, max, token: self.token }).await;
    }

    async fn hear_post(&mut self, message: Message) {
        let Some((what, token)) = subject::parse_from_post(&message.subject) else { return };
        match what {
            "fetch" if token == self.token && self.taking => self.fetched(message).await,
            "check" => self.checked(&message, token).await,
            _ => {}
        }
    }

    async fn fetched(&mut self, message: Message) {
        match message.status {
            None => {
                let Some(sequence) = number(&message, NATS_SEQUENCE) else { return };
                self.state = State::Fetching(Instant::now() + ANSWER);
                let Some(message) = Received::read(message) else { return };
                if sequence > self.head(message.from()) {
                    if !self.take(sequence, &message) {
                        self.taking = false;
                        self.state = State::Full(Instant::now() + SOON);
                        return;
                    }
                    self.handlers.counts.refetched.one();
                }
                // Fetched messages leave none out.
                self.floor = self.floor.max(sequence);
            }
            Some(StatusCode::NO_RESPONDERS) => self.state = State::Fetching(Instant::now() + ANSWER / 8),
            Some(status) => {
                let more = status == StatusCode::from_u16(204).unwrap_or_default()
                    && number(&message, PENDING).is_some_and(|pending| pending > 0);
                if more {
                    return self.fetch().await;
                }
                if status.as_u16() >= 405 {
                    tracing::debug!(?status, "the stream of messages can not be read: trying again");
                    self.state = State::Fetching(Instant::now() + ANSWER / 8);
                    return;
                }
                self.caught_up().await;
            }
        }
    }

    /// Everything that was stored when the fetch ended is here. What came meanwhile follows.
    async fn caught_up(&mut self) {
        self.taking = false;
        self.state = State::Live;
        while let Some((sequence, message)) = self.aside.pop_first() {
            if !self.take_live(sequence, message) {
                // It is fetched, and so is all behind it.
                self.aside.clear();
                return self.fetch().await;
            }
        }
        self.check_at = Instant::now() + CHECK;
    }

    // The cursor.

    /// Everything up to this has been handled.
    fn handled(&self) -> u64 {
        match self.handlers.unfinished.first() {
            Some(first) => self.floor.min(first.saturating_sub(1)),
            None => self.floor,
        }
    }

    async fn ask_check(&mut self) {
        self.token += 1;
        self.news = false;
        self.settled = false;
        self.check = Some(Check { token: self.token, since: Instant::now(), last: Vec::new(), up_to: None });
        self.judge_at = Instant::now() + SOON;
        self.told = self.handled();
        self.ask(&Ask::Check { handled: self.told, epoch: self.epoch, token: self.token }).await;
    }

    async fn checked(&mut self, message: &Message, token: u64) {
        let Some(check) = self.check.as_mut().filter(|check| check.token == token) else { return };
        match message.status {
            None => {
                let stored = text(message, NATS_SUBJECT).and_then(subject::parse_said);
                let from = stored.and_then(|(from, _)| AgentId::new(from).ok());
                if let (Some(from), Some(sequence)) = (from, number(message, NATS_SEQUENCE)) {
                    check.last.push((from, sequence));
                }
            }
            Some(status) => {
                match number(message, UP_TO) {
                    Some(up_to) => check.up_to = Some(up_to),
                    // There is nothing for us: nothing can be missing.
                    None if status.as_u16() == 404 => check.up_to = Some(self.floor),
                    // Too many senders to tell all of: a fetch tells as well.
                    None => return self.fetch().await,
                }
                self.judge().await;
            }
        }
    }

    /// Whether everything that the check told of is here.
    async fn judge(&mut self) {
        let Some(check) = self.check.take() else { return };
        self.judge_at = Instant::now() + SOON;
        let is_late = check.since.elapsed() > if check.up_to.is_some() { ON_ITS_WAY } else { ANSWER };
        let Some(up_to) = check.up_to else {
            if is_late {
                // Nothing is known: what the check was to find may be missing, and is looked for again soon.
                self.check_at = Instant::now() + CHECK;
            } else {
                self.check = Some(check);
            }
            return;
        };
        if up_to < self.floor {
            tracing::warn!(agent = %self.agent, up_to, floor = self.floor, "the stream of messages is not what it was");
            // It is another one, or the same and has lost its end with its broker's power.
            self.ends = Some(up_to);
            return self.open();
        }
        let missing = check.last.iter().any(|(from, last)| self.head(from) < *last);
        if missing && is_late {
            return self.fetch().await;
        }
        if missing {
            self.check = Some(check);
            return;
        }
        self.floor = up_to;
        self.settled = true;
        let floor = self.floor;
        self.heads.retain(|_, head| *head > floor);
        self.rest();
    }

    /// Until the next check.
    fn rest(&mut self) {
        let spread = Duration::from_millis(RandomState::new().hash_one(&self.agent) % 20_000);
        let pause = if self.news || self.handled() > self.told { CHECK } else { IDLE_CHECK + spread };
        self.check_at = Instant::now() + pause;
    }

    /// Brings the cursor up to date, if that can be done soon. Whether it is: nothing that was handled comes again.
    async fn last_words(&mut self, post: &mut Subscriber, link: &watch::Receiver<Link>) -> bool {
        if matches!(self.state, State::Opening(_)) {
            return false;
        }
        // What was taken is handled first.
        let end = Instant::now() + CLOSE;
        while self.handlers.unfinished.first().is_some() && Instant::now() < end {
            tokio::time::sleep(SOON).await;
        }
        if !link.borrow().connected {
            return false;
        }
        // Until a check has said so, what was handled above the floor comes again.
        self.settled = false;
        if matches!(self.state, State::Live) {
            self.ask_check().await;
            let end = Instant::now() + ANSWER;
            while self.check.is_some() && matches!(self.state, State::Live) && Instant::now() < end {
                tokio::select! {
                    message = post.next() => match message {
                        Some(message) => self.hear_post(message).await,
                        None => break,
                    },
                    () = tokio::time::sleep(SOON) => self.judge().await,
                }
            }
            // The floor is not one of this stream.
            if self.ends.is_some() {
                return false;
            }
        }
        let ask = Ask::Handled { handled: self.handled(), epoch: self.epoch };
        let body = serde_json::to_vec(&ask).unwrap_or_default();
        let kept = timeout(ANSWER, self.nats.request(subject::post(&self.agent), body.into())).await;
        let kept = matches!(kept, Ok(Ok(_)));
        if !kept {
            tracing::debug!("the post office did not keep how far the messages were handled");
        }
        kept && self.settled && self.handlers.unfinished.first().is_none()
    }
}

/// Asks the post office how far it was. `None` when there is no answer.
async fn ask_open(nats: async_nats::Client, post: String) -> Option<Opened> {
    let body = serde_json::to_vec(&Ask::Open {}).unwrap_or_default();
    let answer = match timeout(ANSWER, nats.request(post, body.into())).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::debug!(%error, "no post office answers");
            return None;
        }
        Err(_) => {
            tracing::debug!("no post office answers in time");
            return None;
        }
    };
    match serde_json::from_slice(&answer.payload) {
        Ok(opened) => Some(opened),
        Err(error) => {
            tracing::warn!(%error, "the post office's answer can not be read");
            None
        }
    }
}

/// The ids of the last messages.
#[derive(Default)]
struct Remembered {
    hashers: (RandomState, RandomState),
    known: HashSet<(u64, u64)>,
    order: VecDeque<(u64, u64)>,
}

impl Remembered {
    fn key(&self, from: &AgentId, id: &str) -> (u64, u64) {
        (self.hashers.0.hash_one((from, id)), self.hashers.1.hash_one((from, id)))
    }

    fn has(&self, key: (u64, u64)) -> bool {
        self.known.contains(&key)
    }

    fn forget(&mut self) {
        self.known.clear();
        self.order.clear();
    }

    fn put(&mut self, key: (u64, u64)) {
        if self.known.insert(key) {
            self.order.push_back(key);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}
