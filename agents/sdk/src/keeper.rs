//! The loop that keeps an agent's word: what it holds, it works on and reports; what it does not hold, it drops.
//!
//! Everything that waits for somebody is a job of its own in one [`JoinSet`]; the loop itself never waits for one thing
//! only. So a heartbeat is on time while a report is being repeated, and ending the loop ends all of it.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use baton_client::{ClientError, Headers, now};
use baton_protocol::message::MessageType;
use baton_protocol::request::{
    AcknowledgeHandoff, Assignment, Assignments, CancelTask, Decline, Done, HandoffAcknowledged, HandoffAnswer,
    HandoffOffer, Heartbeat, HeartbeatAnswer, Leave, RegisterAgent, Registered, Report, ReportAnswer, ReportStatus,
    ReportStored, Reports, ReportsAnswered, RestartAgent,
};
use baton_protocol::subject::{self, AgentVerb};
use baton_protocol::{Code, Json, LeaseId, Millis, Number, Rejection};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::agent::{AgentError, Handler, Spans, Takes, Told};
use crate::output::{Output, TaskError, TaskResult};
use crate::speech::{Voice, backoff, headers, may_pass};
use crate::task::Task;

/// Until the resource-manager says how often it wants a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a heartbeat's answer may take at the most.
const LONGEST_BEAT: Duration = Duration::from_secs(5);
/// How long a task can be at the most, so that adding it to a time can not overflow.
const LONGEST_TASK: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long is tried to give a task back, or to say goodbye.
const DECLINE: Duration = Duration::from_secs(10);
const LEAVE: Duration = Duration::from_secs(3);
/// How many leases that are over are remembered. Ids only grow, and only recent ones are heard of again.
const REMEMBERED: usize = 10_000;
/// How long is waited before reports that were refused together are said again, if the refusal does not say.
const RETRY: Duration = Duration::from_millis(200);
/// How many messages with reports may be under way at a time.
const UNDER_WAY: usize = 4;
/// The most reports that one message holds, and about the most bytes: the services take a message of that size in one piece.
const MAX_REPORTS: usize = 512;
const MAX_REPORTS_BYTES: usize = 256 * 1024;
/// The longest text of an error that is reported, in bytes.
const MAX_ERROR_BYTES: usize = 8 * 1024;

/// How long work may go on, and the agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Whether it ends when it is asked to begin anew.
    pub(crate) restarts: bool,
    /// After the agent was told to stop.
    pub(crate) grace: Duration,
    /// After the task was cancelled.
    pub(crate) patience: Duration,
}

/// A lease in hand.
struct Held {
    task: Task,
    deadline: Instant,
    doing: Doing,
}

/// What is being done under a lease.
enum Doing {
    /// Nothing yet: too many others are.
    Waiting,
    /// The handler works.
    Working,
    /// The report is being stored, unless it is no longer wanted.
    Reporting(CancellationToken),
}

/// A report on its way.
struct Said {
    task: Task,
    report: Report,
    /// Its lease was dropped: nobody wants to hear it.
    dropped: CancellationToken,
}

/// A job that has ended.
enum Ended {
    Register(Result<Registered, Rejection>),
    Beat(Result<HeartbeatAnswer, ClientError>),
    Work(LeaseId, TaskResult),
    Reports(Reported),
    Decline,
    Acknowledged(Box<Acknowledged>),
}

/// What became of the answer to an offer.
struct Acknowledged {
    offer: HandoffOffer,
    /// Whether the agent wanted it.
    accepted: bool,
    answer: Result<HandoffAcknowledged, Rejection>,
}

/// What became of reports.
#[derive(Default)]
struct Reported {
    /// Nothing more is to be said under these leases.
    settled: Vec<LeaseId>,
    /// These were refused, each for itself: they go on alone.
    alone: Vec<Said>,
    /// These were refused as one for so long: one of them may be the reason.
    together: Vec<Said>,
    wait: Duration,
}

/// Keeps one agent's word.
pub(crate) struct Keeper {
    voice: Voice,
    registration: RegisterAgent,
    handler: Handler,
    spans: Option<Spans>,
    told: Option<Told>,
    takes: Option<Takes>,
    limits: Limits,
    held: BTreeMap<LeaseId, Held>,
    /// Offers that are answered, or being answered.
    answered: BTreeSet<Number>,
    /// How many tasks are being taken from others.
    taking: u32,
    /// Leases that must not be started again: reported, dropped or given back.
    over: BTreeSet<LeaseId>,
    jobs: JoinSet<Ended>,
    /// What is done and not reported yet.
    unsaid: Vec<Said>,
    /// How many messages with reports may be under way.
    places: Arc<Semaphore>,
    /// Handlers that have not ended, also those whose lease is forgotten.
    working: u32,
    declining: u32,
    registered: bool,
    stopping: bool,
    /// Why it was asked to begin anew, if it was.
    restart: Option<String>,
    every: Duration,
    /// When the next heartbeat is due; none while one is being answered, or the agent registers.
    beat_at: Option<Instant>,
    beating: Option<AbortHandle>,
    beats_missed: u32,
}

impl Keeper {
    pub(crate) fn new(
        voice: Voice,
        registration: RegisterAgent,
        handler: Handler,
        spans: Option<Spans>,
        told: Option<Told>,
        takes: Option<Takes>,
        limits: Limits,
    ) -> Self {
        Self {
            voice,
            registration,
            handler,
            spans,
            told,
            takes,
            limits,
            held: BTreeMap::new(),
            answered: BTreeSet::new(),
            taking: 0,
            over: BTreeSet::new(),
            jobs: JoinSet::new(),
            unsaid: Vec::new(),
            places: Arc::new(Semaphore::new(UNDER_WAY)),
            working: 0,
            declining: 0,
            registered: false,
            stopping: false,
            restart: None,
            every: HEARTBEAT,
            beat_at: None,
            beating: None,
            beats_missed: 0,
        }
    }

    /// Works until told to stop, or replaced.
    pub(crate) async fn run(
        mut self,
        shutdown: impl Future<Output = ()>,
        hurry: impl Future<Output = ()>,
    ) -> Result<(), AgentError> {
        let ended = self.work(shutdown, hurry).await;
        for held in self.held.values() {
            held.task.cancelled().cancel();
        }
        self.jobs.abort_all();
        if ended.is_ok() {
            self.leave().await;
        }
        match self.restart.filter(|_| self.limits.restarts) {
            Some(reason) => ended.and(Err(AgentError::RestartAsked { agent: self.voice.agent, reason })),
            None => ended,
        }
    }

    async fn work(
        &mut self,
        shutdown: impl Future<Output = ()>,
        hurry: impl Future<Output = ()>,
    ) -> Result<(), AgentError> {
        let (mut shutdown, mut hurry) = (pin!(shutdown), pin!(hurry));
        let mut link = self.voice.link.clone();
        let mut connects = link.borrow_and_update().connects;
        let mut link_gone = false;
        let (mut grace_ends, mut shut_down) = (None, false);
        // Before registering, so that nothing that is assigned from then on is missed.
        let inbox = self.voice.client.nats().subscribe(subject::work_of(&self.voice.agent)).await;
        let mut inbox = inbox.map_err(|error| AgentError::Closed(error.to_string()))?;
        self.register();
        loop {
            if self.restart.is_some() && self.limits.restarts && !self.stopping {
                grace_ends = Some(Instant::now() + self.limits.grace);
                self.stop();
            }
            if self.stopping && self.held.is_empty() && self.declining == 0 && self.taking == 0 {
                return Ok(());
            }
            tokio::select! {
                // In this order: what came before an answer is heard before it.
                biased;
                message = inbox.next() => match message {
                    Some(message) => self.hear(&message),
                    None => return Err(AgentError::Closed("its subscription has ended".to_owned())),
                },
                Some(joined) = self.jobs.join_next() => match joined {
                    Ok(ended) => self.ended(ended)?,
                    Err(error) => pass_on_panic(error),
                },
                // After all that has ended: it goes together.
                Ok(place) = Arc::clone(&self.places).acquire_owned(), if !self.unsaid.is_empty() => self.say(place),
                () = sleep_until(self.beat_at.unwrap_or_else(Instant::now)), if self.beat_at.is_some() => self.beat(),
                changed = link.changed(), if !link_gone => {
                    link_gone = changed.is_err();
                    let now = link.borrow_and_update().clone();
                    self.check_denied(now.denied)?;
                    if now.connects > connects {
                        connects = now.connects;
                        self.reconnected();
                    }
                }
                () = &mut shutdown, if !shut_down => {
                    shut_down = true;
                    // Whoever ends it does not want it to begin anew.
                    self.restart = None;
                    if !self.stopping {
                        grace_ends = Some(Instant::now() + self.limits.grace);
                        self.stop();
                    }
                }
                () = &mut hurry => return Ok(()),
                () = sleep_until(grace_ends.unwrap_or_else(Instant::now)), if grace_ends.is_some() => {
                    tracing::warn!(agent = %self.voice.agent, tasks = self.held.len(), "leaving with work in hand: it took too long");
                    return Ok(());
                }
            }
        }
    }

    // What the agent hears.

    fn hear(&mut self, message: &Message) {
        let agent = &self.voice.agent;
        if message.subject.as_str() == subject::assign(agent) {
            match serde_json::from_slice::<Assignment>(&message.payload) {
                // What is assigned before the agent is registered was meant for an earlier life of it.
                Ok(assignment) if !self.registered => {
                    tracing::debug!(%agent, lease = %assignment.lease, "not taken: not registered yet");
                }
                Ok(assignment) => self.take(assignment),
                Err(error) => tracing::error!(%agent, %error, "an assignment that can not be read"),
            }
        } else if message.subject.as_str() == subject::assignments(agent) {
            match serde_json::from_slice::<Assignments>(&message.payload) {
                Ok(_) if !self.registered => tracing::debug!(%agent, "not taken: not registered yet"),
                Ok(Assignments { assignments }) => assignments.into_iter().for_each(|assignment| self.take(assignment)),
                Err(error) => tracing::error!(%agent, %error, "assignments that can not be read"),
            }
        } else if message.subject.as_str() == subject::cancel(agent) {
            match serde_json::from_slice::<CancelTask>(&message.payload) {
                Ok(cancel) => self.forget(cancel.lease, &cancel.reason),
                Err(error) => tracing::error!(%agent, %error, "a cancellation that can not be read"),
            }
        } else if message.subject.as_str() == subject::restart(agent) {
            match serde_json::from_slice::<RestartAgent>(&message.payload) {
                Ok(restart) => self.asked_to_restart(restart),
                Err(error) => tracing::error!(%agent, %error, "a request to begin anew that can not be read"),
            }
        } else if message.subject.as_str() == subject::handoff(agent) {
            match serde_json::from_slice::<HandoffOffer>(&message.payload) {
                Ok(offer) => self.offered(offer),
                Err(error) => tracing::error!(%agent, %error, "an offer that can not be read"),
            }
        } else if message.subject.as_str() == subject::handed(agent) {
            match serde_json::from_slice::<HandoffAnswer>(&message.payload) {
                Ok(answer) => self.handed(answer),
                Err(error) => tracing::error!(%agent, %error, "an answer to an offer that can not be read"),
            }
        } else {
            tracing::debug!(%agent, subject = message.subject.as_str(), "not understood");
        }
    }

    /// It should begin anew. Whoever stops anyway does not.
    fn asked_to_restart(&mut self, RestartAgent { session, reason }: RestartAgent) {
        if self.stopping || session != self.registration.session || self.restart.is_some() {
            return;
        }
        tracing::warn!(agent = %self.voice.agent, reason, ends = self.limits.restarts, "asked to begin anew");
        self.restart = Some(reason);
    }

    fn take(&mut self, assignment: Assignment) {
        let lease = assignment.lease;
        if self.held.contains_key(&lease) || self.over.contains(&lease) {
            tracing::debug!(agent = %self.voice.agent, %lease, "assigned again");
            return;
        }
        let deadline = Instant::now() + Duration::from_millis(assignment.timeout_ms).min(LONGEST_TASK);
        let task = Task::new(assignment, self.voice.clone(), self.spans.clone());
        if self.stopping {
            self.decline(&task);
            return;
        }
        self.held.insert(lease, Held { task, deadline, doing: Doing::Waiting });
        self.start_waiting();
    }

    /// Another agent offers a task. It is taken, unless there is no room for it or this agent does not want it.
    fn offered(&mut self, offer: HandoffOffer) {
        if !self.registered || !self.answered.insert(offer.handoff) {
            return;
        }
        if self.answered.len() > REMEMBERED {
            self.answered.pop_first();
        }
        let room = (self.held.len() as u64 + u64::from(self.taking)) < u64::from(self.registration.slots);
        let wanted = match &self.takes {
            _ if self.stopping => Err("the agent is stopping".to_owned()),
            _ if !room => Err("the agent has no free slot".to_owned()),
            Some(takes) => takes(&offer),
            None => Ok(Json::null()),
        };
        self.acknowledge(offer, wanted);
    }

    fn acknowledge(&mut self, offer: HandoffOffer, wanted: Result<Json, String>) {
        let (accepted, reason, response) = match wanted {
            Ok(response) => (true, String::new(), response),
            Err(reason) => (false, reason, Json::null()),
        };
        tracing::info!(agent = %self.voice.agent, task = %offer.task, from = %offer.from, accepted, %reason, "offered");
        self.taking += u32::from(accepted);
        let (voice, handoff) = (self.voice.clone(), offer.handoff);
        self.jobs.spawn(async move {
            let request = AcknowledgeHandoff { handoff, accepted, reason, response };
            let headers = headers(AgentVerb::Acknowledge, &voice.agent).of_run(offer.run);
            let stands = Duration::from_millis(offer.timeout_ms).min(LONGEST_TASK) + DECLINE;
            let answer = voice.until_answered::<_, HandoffAcknowledged>(AgentVerb::Acknowledge, &request, headers);
            // Nobody waits for it any longer, and should it have been taken, the heartbeat brings it.
            let late = || Err(Rejection::new(Code::UnknownHandoff, "nobody has answered while the offer stood"));
            let answer = timeout(stands, answer).await.unwrap_or_else(|_| late());
            Ended::Acknowledged(Box::new(Acknowledged { offer, accepted, answer }))
        });
    }

    fn acknowledged(&mut self, offer: HandoffOffer, answer: Result<HandoffAcknowledged, Rejection>) {
        match answer {
            Ok(HandoffAcknowledged { assignment }) => {
                if let Some(assignment) = assignment {
                    self.take(assignment);
                }
            }
            // It would have liked to, and can not: the giver need not wait.
            Err(rejection) if rejection.code == Code::NoCapacity => self.acknowledge(offer, Err(rejection.message)),
            Err(rejection) => {
                tracing::info!(agent = %self.voice.agent, handoff = offer.handoff, %rejection, "not handed over");
            }
        }
    }

    /// An offer of this agent was answered.
    fn handed(&mut self, answer: HandoffAnswer) {
        let lease = answer.lease;
        if let Some(held) = self.held.get(&lease) {
            let (accepted, to) = (answer.accepted, answer.to.clone());
            held.task.handed(answer);
            if accepted {
                self.forget(lease, &format!("agent {to} has taken it"));
            }
        }
    }

    /// Starts what waits. The resource-manager leases no more tasks than there are slots; one more may be here while a
    /// cancelled one takes its time, and what is beyond that waits.
    fn start_waiting(&mut self) {
        for held in self.held.values_mut().filter(|held| matches!(held.doing, Doing::Waiting)) {
            if self.working > self.registration.slots {
                return;
            }
            self.working += 1;
            held.doing = Doing::Working;
            let work = work(self.handler.clone(), held.task.clone(), held.deadline, self.limits.patience);
            self.jobs.spawn(work);
        }
    }

    fn forget(&mut self, lease: LeaseId, reason: &str) {
        self.remember(lease);
        let Some(held) = self.held.remove(&lease) else { return };
        tracing::info!(agent = %self.voice.agent, task = %held.task.id(), %lease, reason, "task dropped");
        held.task.cancelled().cancel();
        if let Doing::Reporting(dropped) = held.doing {
            dropped.cancel();
            self.unsaid.retain(|said| said.report.lease != lease);
        }
    }

    fn remember(&mut self, lease: LeaseId) {
        self.over.insert(lease);
        if self.over.len() > REMEMBERED {
            self.over.pop_first();
        }
    }

    // What becomes of what the agent does.

    fn ended(&mut self, ended: Ended) -> Result<(), AgentError> {
        match ended {
            Ended::Register(answer) => self.registered(answer),
            Ended::Beat(answer) => self.beaten(answer),
            Ended::Work(lease, result) => {
                self.working -= 1;
                self.report(lease, result);
                self.start_waiting();
                Ok(())
            }
            Ended::Reports(reported) => {
                self.reported(reported);
                Ok(())
            }
            Ended::Decline => {
                self.declining -= 1;
                Ok(())
            }
            Ended::Acknowledged(acknowledged) => {
                let Acknowledged { offer, accepted, answer } = *acknowledged;
                self.taking -= u32::from(accepted);
                self.acknowledged(offer, answer);
                Ok(())
            }
        }
    }

    fn register(&mut self) {
        self.beat_at = None;
        let (voice, registration) = (self.voice.clone(), self.registration.clone());
        let headers = headers(AgentVerb::Register, &voice.agent);
        self.jobs.spawn(async move {
            Ended::Register(voice.until_answered(AgentVerb::Register, &registration, headers).await)
        });
    }

    fn registered(&mut self, answer: Result<Registered, Rejection>) -> Result<(), AgentError> {
        let agent = self.voice.agent.clone();
        match answer {
            Ok(Registered { heartbeat_ms, lease_ms }) => {
                tracing::info!(%agent, session = self.registration.session, heartbeat_ms, lease_ms, "registered");
                self.registered = true;
                self.every = Duration::from_millis(heartbeat_ms.max(1));
                // At once: something may have been assigned or cancelled while nobody listened.
                self.beat_at = Some(Instant::now());
                Ok(())
            }
            Err(rejection) if rejection.code == Code::AgentReplaced => Err(AgentError::Replaced(agent)),
            Err(rejection) => Err(AgentError::Refused { agent, rejection }),
        }
    }

    fn beat(&mut self) {
        self.beat_at = None;
        let voice = self.voice.clone();
        let heartbeat =
            Heartbeat { session: self.registration.session.clone(), holds: self.held.keys().copied().collect() };
        let timeout = self.every.clamp(HEARTBEAT, LONGEST_BEAT);
        self.beating = Some(self.jobs.spawn(async move {
            let headers = headers(AgentVerb::Heartbeat, &voice.agent);
            Ended::Beat(voice.once(AgentVerb::Heartbeat, &heartbeat, headers, timeout).await)
        }));
    }

    fn beaten(&mut self, answer: Result<HeartbeatAnswer, ClientError>) -> Result<(), AgentError> {
        self.beating = None;
        let error = match answer {
            Ok(answer) => {
                if self.beats_missed > 0 {
                    tracing::info!(agent = %self.voice.agent, missed = self.beats_missed, "heartbeats are answered again");
                }
                self.beats_missed = 0;
                self.every = Duration::from_millis(answer.heartbeat_ms.max(1));
                self.beat_at = Some(Instant::now() + self.every);
                for lease in answer.drop {
                    self.forget(lease, "it is no longer leased to this agent");
                }
                for assignment in answer.start {
                    self.take(assignment);
                }
                for offer in answer.offers {
                    self.offered(offer);
                }
                if let Some(restart) = answer.restart {
                    self.asked_to_restart(restart);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        match error.code() {
            Some(Code::UnknownAgent) => {
                tracing::warn!(agent = %self.voice.agent, "not known any more: registering again");
                self.register();
                return Ok(());
            }
            Some(Code::AgentReplaced) => return Err(AgentError::Replaced(self.voice.agent.clone())),
            _ => {}
        }
        if self.beats_missed == 0 {
            tracing::warn!(agent = %self.voice.agent, %error, "a heartbeat is not answered");
        } else {
            tracing::debug!(agent = %self.voice.agent, %error, "still no heartbeat is answered");
        }
        let wait = backoff(self.every).nth(self.beats_missed as usize).unwrap_or(self.every);
        self.beats_missed = (self.beats_missed + 1).min(64);
        self.beat_at = Some(Instant::now() + wait.min(self.every));
        Ok(())
    }

    /// The connection is a new one: what was said last may not have been heard, and something may have been missed.
    fn reconnected(&mut self) {
        if let Some(beating) = self.beating.take() {
            beating.abort();
            self.beat_at = Some(Instant::now());
        } else if self.beat_at.is_some() {
            self.beat_at = Some(Instant::now());
        }
    }

    fn report(&mut self, lease: LeaseId, result: TaskResult) {
        let Some(held) = self.held.get_mut(&lease) else {
            tracing::debug!(agent = %self.voice.agent, %lease, "a dropped task has ended");
            return;
        };
        let report = report_of(&held.task, result.and_then(Output::checked));
        let dropped = CancellationToken::new();
        held.doing = Doing::Reporting(dropped.clone());
        self.unsaid.push(Said { task: held.task.clone(), report, dropped });
    }

    /// Reports what is done: all of it in one message, or as much as one holds.
    ///
    /// A few messages are under way at a time, so that one report is on its way at once, and many make larger messages
    /// instead of more of them.
    fn say(&mut self, place: OwnedSemaphorePermit) {
        let mut bytes = 0;
        let mut fits = |Said { report, .. }: &Said| {
            let delegated =
                report.delegate.as_ref().map_or(0, |delegate| delegate.stages.size() + delegate.input.size());
            let error = report.error.as_ref().map_or(0, String::len);
            bytes += 512 + report.result.as_ref().map_or(0, Json::size) + error + delegated;
            bytes <= MAX_REPORTS_BYTES
        };
        let count = self.unsaid.iter().take(MAX_REPORTS).take_while(|said| fits(said)).count().max(1);
        let said: Vec<_> = self.unsaid.drain(..count.min(self.unsaid.len())).collect();
        let (voice, told) = (self.voice.clone(), self.told.clone());
        self.jobs.spawn(store_all(voice, said, told, Some(place), Duration::ZERO));
    }

    fn reported(&mut self, Reported { settled, alone, mut together, wait }: Reported) {
        for lease in settled {
            self.held.remove(&lease);
            self.remember(lease);
        }
        // Halves, until the one that is the reason is alone, and holds up nobody else.
        let other = together.split_off(together.len() / 2);
        let alone = alone.into_iter().map(|said| (vec![said], Duration::ZERO));
        for (said, wait) in alone.chain([(together, wait), (other, wait)]).filter(|(said, _)| !said.is_empty()) {
            self.jobs.spawn(store_all(self.voice.clone(), said, self.told.clone(), None, wait));
        }
    }

    // How it goes.

    fn stop(&mut self) {
        tracing::info!(agent = %self.voice.agent, tasks = self.held.len(), "stopping when the work in hand is done");
        self.stopping = true;
        let waiting = self.held.extract_if(.., |_, held| matches!(held.doing, Doing::Waiting));
        for (_, held) in waiting.collect::<Vec<_>>() {
            self.decline(&held.task);
        }
    }

    /// Gives a task back that was not started.
    fn decline(&mut self, task: &Task) {
        self.remember(task.lease);
        self.declining += 1;
        let (voice, task) = (self.voice.clone(), task.clone());
        self.jobs.spawn(async move {
            let decline = Decline { lease: task.lease, reason: "the agent is stopping".to_owned() };
            let headers = headers(AgentVerb::Decline, &voice.agent).of_run(task.run).in_trace(task.trace);
            let answer = voice.until_answered::<_, Done>(AgentVerb::Decline, &decline, headers);
            if !matches!(timeout(DECLINE, answer).await, Ok(Ok(_))) {
                tracing::debug!(agent = %voice.agent, lease = %task.lease, "could not be given back");
            }
            Ended::Decline
        });
    }

    async fn leave(&self) {
        let leave = Leave { session: self.registration.session.clone() };
        let headers = headers(AgentVerb::Leave, &self.voice.agent);
        let answer = self.voice.until_answered::<_, Done>(AgentVerb::Leave, &leave, headers);
        match timeout(LEAVE, answer).await {
            Ok(Ok(_)) => tracing::info!(agent = %self.voice.agent, "left"),
            Ok(Err(rejection)) => tracing::debug!(agent = %self.voice.agent, %rejection, "left before"),
            Err(_) => tracing::warn!(agent = %self.voice.agent, "gone without goodbye: nobody answered"),
        }
    }

    /// Whether the broker has forbidden something without which an agent can not be one.
    fn check_denied(&self, denied: Option<String>) -> Result<(), AgentError> {
        let agent = &self.voice.agent;
        let inbox = self.voice.client.nats().new_inbox();
        let inbox = inbox.rsplit_once('.').map_or(inbox.as_str(), |(prefix, _)| prefix);
        let ours = [subject::of_agent(agent), subject::to_agent(agent), inbox.to_owned()];
        let ours = ours.map(|subject| subject.trim_end_matches('>').to_owned());
        match denied {
            Some(why) if ours.iter().any(|subject| why.contains(subject)) => {
                Err(AgentError::Forbidden { agent: agent.clone(), why })
            }
            _ => Ok(()),
        }
    }
}

/// Does a task, and shows it as a span.
async fn work(handler: Handler, task: Task, deadline: Instant, patience: Duration) -> Ended {
    let start = now();
    let span =
        tracing::info_span!("task", run = %task.run, trace = %trace_id(&task), task = %task.id(), lease = %task.lease);
    let result = attempt(handler, task.clone(), deadline, patience).instrument(span.clone()).await;
    span.in_scope(|| match &result {
        Ok(_) => tracing::info!(ms = now().saturating_sub(start), "task done"),
        Err(error) => tracing::warn!(ms = now().saturating_sub(start), %error, "task failed"),
    });
    task.show_handled(start, now(), result.as_ref().err().map(ToString::to_string));
    Ended::Work(task.lease, result)
}

async fn attempt(handler: Handler, task: Task, deadline: Instant, patience: Duration) -> TaskResult {
    tracing::info!(stage = %task.id().part(), attempt = task.attempt, "task started");
    let cancelled = task.cancelled().clone();
    let allowed: Millis = task.timeout_ms;
    // The handler gets a task of its own, so that a panic in it ends nothing but itself.
    let doing = async move {
        let client = task.client().clone();
        handler(task.expanded().await?).await?.shrunk(&client).await
    };
    let doing = doing.in_current_span();
    let mut doing = AbortOnDrop(tokio::spawn(doing));
    let too_long = async {
        let why = tokio::select! {
            () = cancelled.cancelled() => "the task was cancelled".to_owned(),
            () = sleep_until(deadline) => format!("the task took longer than its {allowed} ms"),
        };
        cancelled.cancel();
        sleep(patience).await;
        why
    };
    tokio::select! {
        biased;
        joined = &mut doing.0 => joined.unwrap_or_else(|error| Err(TaskError::failed(why_not_joined(error)))),
        why = too_long => Err(TaskError::failed(format!("{why}, and its handler did not stop"))),
    }
}

fn why_not_joined(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => format!("the handler panicked: {}", panic_text(&*panic)),
        Err(error) => format!("the handler was ended: {error}"),
    }
}

pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

/// A defect of this crate, or of the callback that takes spans, is not to be hidden.
fn pass_on_panic(error: JoinError) {
    if let Ok(panic) = error.try_into_panic() {
        std::panic::resume_unwind(panic);
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn report_of(task: &Task, result: TaskResult) -> Report {
    let (lease, task) = (task.lease, task.id().clone());
    match result {
        Ok(Output { result, cost, usage, model, delegate }) => Report {
            lease,
            task,
            status: ReportStatus::Succeeded,
            result: Some(result).filter(|_| delegate.is_none()),
            error: None,
            code: None,
            retryable: true,
            cost: cost.money,
            usage,
            model,
            delegate: delegate.map(|delegate| *delegate),
        },
        Err(TaskError { mut message, code, retryable, cost, usage, model }) => {
            if let Some(wrong) = cost.wrong {
                message = format!("{message} (and {wrong})");
            }
            message.truncate(message.floor_char_boundary(MAX_ERROR_BYTES));
            Report {
                lease,
                task,
                status: ReportStatus::Failed,
                result: None,
                error: Some(message),
                code: code.map(Into::into),
                retryable,
                cost: cost.money,
                usage,
                model: model.map(Into::into),
                delegate: None,
            }
        }
    }
}

/// Reports until there is an answer: each report in it is stored or refused for itself.
async fn store_all(
    voice: Voice,
    mut said: Vec<Said>,
    told: Option<Told>,
    place: Option<OwnedSemaphorePermit>,
    wait: Duration,
) -> Ended {
    // A timer of no time takes a millisecond.
    if !wait.is_zero() {
        sleep(wait).await;
    }
    let dropped = said.extract_if(.., |said| said.dropped.is_cancelled());
    let mut reported = Reported { settled: dropped.map(|said| said.report.lease).collect(), ..Reported::default() };
    if said.len() < 2 {
        if let Some(said) = said.pop() {
            reported.settled.push(said.report.lease);
            store(voice, said, told, place).await;
        }
        return Ended::Reports(reported);
    }
    let request = Reports { reports: said.iter().map(|said| said.report.clone()).collect() };
    let headers = headers(AgentVerb::Reports, &voice.agent);
    let answered = voice.insist(AgentVerb::Reports, &request, headers, place, |_| false).await;
    let answers = match answered {
        Ok(ReportsAnswered { answers }) => answers,
        Err(rejection) => {
            tracing::debug!(agent = %voice.agent, %rejection, "several reports are refused at once");
            reported.wait = rejection.retry_after_ms.map_or(RETRY, Duration::from_millis);
            reported.together = said;
            return Ended::Reports(reported);
        }
    };
    let mut answers = answers.into_iter();
    for said in said {
        let (report, task) = (&said.report, &said.task);
        let answer = match answers.next() {
            Some(ReportAnswer::Stored(_)) => Ok(()),
            Some(ReportAnswer::Refused(rejection)) if is_over(&rejection) => {
                tracing::info!(task = %task.id(), lease = %report.lease, %rejection, "the lease has ended, the report is dropped");
                Err(rejection)
            }
            // Refused for a time, or for good, which is then reported instead.
            Some(ReportAnswer::Refused(_)) | None => {
                reported.alone.push(said);
                continue;
            }
        };
        if let Some(told) = &told {
            told(report, answer.as_ref().copied());
        }
        reported.settled.push(report.lease);
    }
    Ended::Reports(reported)
}

/// Reports until the report is stored, its lease has ended, or nobody wants it.
async fn store(voice: Voice, said: Said, told: Option<Told>, place: Option<OwnedSemaphorePermit>) {
    let Said { task, report, dropped } = said;
    let lease = report.lease;
    let span = tracing::info_span!("report", run = %task.run, trace = %trace_id(&task), task = %task.id(), %lease);
    let stored = async {
        let Err(rejection) = say(&voice, &task, &report, told.as_ref(), place).await else {
            tracing::debug!("report stored");
            return;
        };
        if is_over(&rejection) {
            tracing::info!(%rejection, "the lease has ended, the report is dropped");
            return;
        }
        tracing::error!(%rejection, "the report is refused, reporting a failure instead");
        let error = TaskError::failed(format!("the agent's report was refused: {rejection}")).permanent();
        let failure =
            Report { cost: report.cost, usage: report.usage, model: report.model, ..report_of(&task, Err(error)) };
        if let Err(rejection) = say(&voice, &task, &failure, told.as_ref(), None).await {
            tracing::error!(%rejection, "that is refused too, the task is dropped");
        }
    };
    tokio::select! {
        () = stored.instrument(span) => {}
        () = dropped.cancelled() => {}
    }
}

/// Reports until there is an answer, and passes on what it was.
async fn say(
    voice: &Voice,
    task: &Task,
    report: &Report,
    told: Option<&Told>,
    place: Option<OwnedSemaphorePermit>,
) -> Result<(), Rejection> {
    let headers = report_headers(voice, task, report);
    let answer = voice.insist::<_, ReportStored>(AgentVerb::Report, report, headers, place, may_pass).await.map(drop);
    if let Some(told) = told {
        told(report, answer.as_ref().copied());
    }
    answer
}

/// The trace that a task is in, as it is written elsewhere.
fn trace_id(task: &Task) -> String {
    format!("{:032x}", task.trace.trace)
}

fn report_headers(voice: &Voice, task: &Task, report: &Report) -> Headers {
    let message_type = match report.status {
        ReportStatus::Succeeded => MessageType::TaskComplete,
        ReportStatus::Failed => MessageType::TaskFailed,
    };
    let headers = headers(AgentVerb::Report, &voice.agent).of_run(task.run).in_trace(task.trace_context());
    Headers { message_type: Some(message_type), ..headers }
}

/// Whether nothing that the agent says about the lease counts any more.
fn is_over(rejection: &Rejection) -> bool {
    matches!(rejection.code, Code::StaleLease | Code::RunEnded | Code::UnknownRun)
}
