//! A session: one connection, one load of the log, one processor. It never repairs itself; it ends, and another begins.

use std::collections::HashMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{DiscardPolicy, Stream};
use async_nats::jetstream::{Context, kv, stream};
use baton_client::{ConnectError, Connection};
use baton_machine::{Machine, Outgoing, Processor, ReadError, Reply, Snapshot};
use baton_protocol::record::Record;
use baton_protocol::request::Role;
use baton_protocol::subject::{self, Shard};
use baton_protocol::{Millis, Service};
use baton_telemetry::Metrics;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Settings;
use crate::effects::Hands;
use crate::endpoints::{Endpoints, Incoming};
use crate::feed::{Feed, Read, Reading};
use crate::full::Gate;
use crate::instance::{Instance, serve_status};
use crate::leadership::{Campaign, Leadership, Pulse};
use crate::log::{self, CommitFailure, LogError, TailError, other};
use crate::memory::Memory;
use crate::objects;
use crate::service::{ShellError, Telemetry};
use crate::snapshots::Snapshots;
use crate::trim::Trimmer;

/// How many messages or requests are taken before decisions are sent, so that neither starves the other.
const BATCH: usize = 512;

/// The pause after a snapshot is at least so many times as long as it took.
const SNAPSHOT_PART: u64 = 20;

/// The least that a broker must allow for a message: what nats-server allows unless it is told otherwise.
const MIN_PAYLOAD: usize = 1024 * 1024;

/// How often the loop turns at the least, so that it can be seen to.
const PULSE: Duration = Duration::from_millis(250);

/// How long a drain may take.
const DRAIN: Duration = Duration::from_secs(5);

/// How often an instance shows how it stands, at the most.
const SHOW: Duration = Duration::from_millis(200);

/// How a session ended.
pub(crate) enum End {
    /// As it was asked to.
    Drained,
    /// So that another one should begin.
    Broken(String),
    /// Because the broker stores nothing more; another one should try again.
    Full(String),
    /// Before it began: the broker is not there.
    Unreachable(ConnectError),
    /// For good.
    Fatal(ShellError),
}

impl From<LogError> for End {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Contradiction { .. }
            | LogError::NoJetStream(_)
            | LogError::Replaced(_)
            | LogError::NeverTrimmed(_)
            | LogError::NothingToStartFrom { .. }
            | LogError::SmallMessages(_) => Self::Fatal(error.into()),
            LogError::Other { .. } => Self::Broken(error.to_string()),
        }
    }
}

/// What was sent and is not acknowledged yet.
type Flight = Pin<Box<dyn Future<Output = Result<u64, CommitFailure>> + Send>>;

pub(crate) struct Session<M: Machine> {
    /// Closed while nothing can be stored.
    pub(crate) gate: Gate,
    connection: Connection,
    js: Context,
    stream: Stream,
    stream_name: String,
    subject: String,
    tail: Reading,
    /// Where the log is read for all services of this process.
    feed: Option<Feed>,
    pub(crate) processor: Processor<M>,
    pub(crate) hands: Hands,
    snapshots: Snapshots,
    settings: Settings,
    instance: Instance,
    pub(crate) telemetry: Telemetry,
    /// Requests, where this instance leads.
    pub(crate) endpoints: Option<Endpoints>,
    pub(crate) requests: (mpsc::Sender<Incoming<M>>, mpsc::Receiver<Incoming<M>>),
    answers: mpsc::Receiver<(u64, Reply)>,
    changes: mpsc::Receiver<Leadership>,
    flight: Option<Flight>,
    flight_since: Instant,
    flight_records: Option<u64>,
    saving: JoinSet<Duration>,
    /// Whether a commit has been acknowledged in this session.
    pub(crate) landed: bool,
    /// Since when it is known that there is room again, where there was none.
    pub(crate) room_since: Option<Instant>,
    clock: Clock,
    memory: Memory,
    pulse: Pulse,
    /// How many messages were dropped unread, as far as they are counted.
    dropped: u64,
    /// What was shown last, and when.
    shown: Option<(bool, u64, Instant)>,
    stop_campaign: CancellationToken,
    /// Aborted when dropped: a session that is gone must not go on campaigning.
    campaign: JoinSet<()>,
    _tasks: JoinSet<()>,
}

impl<M: Machine> Session<M> {
    /// Connects, loads, and reads the log to its end.
    pub(crate) async fn open(
        instance: &Instance,
        settings: &Settings,
        config: M::Config,
        telemetry: &Telemetry,
        gate: &Gate,
        known_log: &mut Option<String>,
        shutdown: &CancellationToken,
    ) -> Result<Option<Self>, End> {
        let shard = Shard::default();
        let opening = async {
            let connection = Connection::open(gate.connect_settings()).await.map_err(End::Unreachable)?;
            let client = connection.nats.clone();
            if client.max_payload() < MIN_PAYLOAD {
                return Err(LogError::SmallMessages(client.max_payload()).into());
            }
            let mut tasks = JoinSet::new();
            serve_status(&client, instance, &telemetry.metrics, &mut tasks)
                .await
                .map_err(|error| End::Broken(error.to_string()))?;
            let js = log::context(&client);
            let mut stream = log::ensure(&js, shard, &settings.log).await?;
            ensure_aside(&js, settings).await?;
            let leads_runs = M::Record::SERVICE == Service::WorkflowManager;
            let runs = runs_bucket(&js, settings, leads_runs).await?;
            if leads_runs {
                objects::ensure(&js, settings).await?;
            }
            let log_id = stream.cached_info().created.to_string();
            if known_log.get_or_insert_with(|| log_id.clone()) != &log_id {
                // Going on in an empty log would forget every run as if it had never been.
                return Err(LogError::Replaced(subject::log_stream(shard)).into());
            }
            let state = &stream.info().await.map_err(|error| other("looking at the log", error))?.state;
            let (first, last) = (state.first_sequence, state.last_sequence);
            telemetry.metrics.set("baton_log_first_sequence", &[], first as f64);
            let snapshots = Snapshots::open(&js, settings, log_id, first).await?;
            let mut processor = match snapshots.load::<M>(&stream, first, last).await? {
                Some(snapshot) => Processor::restore(snapshot, config),
                None => Processor::new(config),
            };
            processor.keep_snapshots(settings.log.snapshot_records, settings.log.snapshot_pause_ms);
            if settings.log.trim {
                // Who writes little must not hold the log back: a snapshot that is due waits no longer for a commit than for another.
                processor.checkpoint_after(settings.log.snapshot_records);
            }
            // Who reads what happens in the log of this process reads it of all runs that are traced.
            let all = tracing::enabled!(target: "baton_shell::effects", tracing::Level::DEBUG);
            processor.show_traces(if all { 1.0 } else { telemetry.spans.share() });
            if settings.log.replicas > 1 {
                processor.prove_by_commit();
            }
            let tail = Reading::alone(log::tail(&client, &stream, processor.position() + 1, None).await?);
            let (answers_in, answers) = mpsc::channel(1024);
            let hands = Hands::new(client.clone(), instance.clone(), telemetry.clone(), runs, answers_in);
            let (changes_in, changes) = mpsc::channel(4);
            let mut session = Self {
                gate: gate.clone(),
                connection,
                js,
                stream,
                stream_name: subject::log_stream(shard),
                subject: subject::log(shard, M::Record::SERVICE),
                tail,
                feed: None,
                processor,
                hands,
                snapshots,
                settings: settings.clone(),
                instance: instance.clone(),
                telemetry: telemetry.clone(),
                endpoints: None,
                requests: mpsc::channel(4096),
                answers,
                changes,
                flight: None,
                flight_since: Instant::now(),
                flight_records: None,
                saving: JoinSet::new(),
                landed: false,
                room_since: None,
                clock: Clock::new(),
                memory: Memory::new(),
                pulse: Pulse::new(),
                dropped: 0,
                shown: None,
                stop_campaign: CancellationToken::new(),
                campaign: JoinSet::new(),
                _tasks: tasks,
            };
            session.read_up_to(last).await?;
            session.show(Role::Following);
            let campaign = Campaign::new(&session.js, &client, instance, settings, session.pulse.clone()).await?;
            let stop = session.stop_campaign.clone();
            session.campaign.spawn(campaign.run(changes_in, stop));
            Ok(Some(session))
        };
        tokio::select! {
            session = opening => session,
            () = shutdown.cancelled() => Ok(None),
        }
    }

    async fn read_up_to(&mut self, last: u64) -> Result<(), End> {
        let started = Instant::now();
        let from = self.processor.position();
        while self.processor.position() < last {
            let message = tokio::time::timeout(Duration::from_secs(10), self.tail.next());
            match message.await {
                Ok(message) => self.read(message).await?,
                Err(_) => return Err(End::Broken("the log stayed silent before its end".to_owned())),
            }
        }
        let (read, ms) = (last.saturating_sub(from), started.elapsed().as_millis());
        tracing::debug!(service = %M::Record::SERVICE, from, last, read, ms, "read the log");
        Ok(())
    }

    /// The time for the machine.
    fn now(&mut self) -> u64 {
        self.clock.now(self.processor.time())
    }

    /// Takes what the log's tail brought.
    async fn read(&mut self, read: Option<Result<Read, TailError>>) -> Result<(), End> {
        let read = read.ok_or_else(|| End::Broken("the log's tail ended".to_owned()))?;
        let now = self.now();
        let unreadable = |error: String| {
            let service = M::Record::SERVICE;
            End::Fatal(ShellError::Unreadable { service, error })
        };
        let read = match read {
            Ok(read) => read,
            Err(error @ TailError::Gap { .. }) => return Err(self.gap(error.to_string()).await),
            Err(error) => return Err(End::Broken(format!("the log's tail: {error}"))),
        };
        // Who follows decides nothing.
        let metrics = Some(&self.telemetry.metrics).filter(|_| self.processor.is_leading());
        let taken = match read {
            Read::Ended => return self.follow().await,
            Read::Commit(seq, commit) => timed(metrics, "record", || self.processor.read_commit(seq, &commit, now)),
            Read::Message(message) => {
                let info = message.info().map_err(|error| End::Broken(format!("the log's tail: {error}")))?;
                let seq = info.stream_sequence;
                let Some((_, service)) = subject::parse_log(&message.subject) else {
                    return Err(unreadable(format!("message {seq} has the subject {:?}", message.subject)));
                };
                self.tail.brought(seq);
                timed(metrics, "record", || self.processor.read(seq, service, &message.payload, now))
            }
        };
        match taken {
            Ok(()) => Ok(()),
            Err(error @ ReadError::Deposed { .. }) => Err(End::Broken(error.to_string())),
            Err(error @ ReadError::Undecodable { .. }) => Err(unreadable(error.to_string())),
            Err(error @ ReadError::Gap { .. }) => Err(self.gap(error.to_string()).await),
        }
    }

    /// What follows from a gap in what is read. Where the log was trimmed before it was read here, a snapshot has what is missing;
    /// otherwise it is nowhere.
    async fn gap(&mut self, error: String) -> End {
        match self.stream.get_info().await {
            Ok(info) if info.state.first_sequence > self.processor.position() + 1 => {
                End::Broken(format!("the log was trimmed further than this instance had read: {error}"))
            }
            Ok(_) => End::Fatal(ShellError::Unreadable { service: M::Record::SERVICE, error }),
            Err(_) => End::Broken(error),
        }
    }

    /// Follows the services that the machine observes, from here on.
    async fn follow(&mut self) -> Result<(), End> {
        let from = self.processor.position() + 1;
        let of = Some((Shard::default(), M::FOLLOWS));
        let own = log::tail(&self.connection.nats, &self.stream, from, of).await?;
        self.tail = Reading::with(own, self.feed.as_ref(), M::FOLLOWS);
        Ok(())
    }

    /// Runs until something ends it.
    /// Tells how it ended, and whether it got anything done.
    pub(crate) async fn run(mut self, feed: Option<Feed>, shutdown: &CancellationToken) -> (End, bool) {
        self.feed = feed;
        let end = self.turn_around(shutdown).await;
        self.endpoints = None;
        if matches!(end, End::Full(_)) {
            // Another instance would find no room either: the entry is kept for the next session.
            self.campaign.abort_all();
        }
        self.stop_campaign.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(2), self.campaign.join_next()).await;
        if matches!(end, End::Drained) {
            self.hands.finish().await;
            // What was published last is still in the client's buffer.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.connection.nats.flush()).await;
        }
        (end, self.landed)
    }

    async fn turn_around(&mut self, shutdown: &CancellationToken) -> End {
        let mut draining: Option<Instant> = None;
        let mut link = self.connection.link.clone();
        let mut timer = pin!(sleep_until(Instant::now().into()));
        loop {
            self.pulse.beat();
            if self.memory.is_due() {
                self.processor.takes_memory(self.memory.percent());
            }
            // Under load something else is always ready: time must pass all the same.
            let now = self.now();
            if self.processor.deadline().is_some_and(|deadline| deadline <= now) {
                timed(Some(&self.telemetry.metrics), "timer", || self.processor.tick(now));
            }
            if let Err(end) = self.absorb().await {
                return end;
            }
            if let Err(end) = self.send().await {
                return end;
            }
            if let Some(since) = draining
                && (self.processor.is_drained() || since.elapsed() > DRAIN)
            {
                return self.drained().await;
            }
            if draining.is_none()
                && let Err(end) = self.reopen().await
            {
                return end;
            }
            self.report();
            // One that is moved to an earlier time interrupts the thread's sleep, so it is moved only where it would be late.
            let wanted = (Instant::now() + self.wait()).into();
            if timer.is_elapsed() || wanted < timer.deadline() {
                timer.as_mut().reset(wanted);
            }
            tokio::select! {
                Some(saved) = self.saving.join_next() => {
                    let took = saved.map_or(0, |took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
                    let pause = self.settings.log.snapshot_pause_ms.max(took.saturating_mul(SNAPSHOT_PART));
                    self.processor.keep_snapshots(self.settings.log.snapshot_records, pause);
                }
                outcome = fly(&mut self.flight) => {
                    self.flight = None;
                    if let Err(end) = self.landed(outcome).await { return end }
                }
                message = self.tail.next() => {
                    if let Err(end) = self.read(message).await { return end }
                    for _ in 0..BATCH {
                        match self.tail.next().now_or_never() {
                            Some(message) => if let Err(end) = self.read(message).await { return end },
                            None => break,
                        }
                    }
                    if let Err(end) = self.begin_term().await { return end }
                }
                Some((tag, reply)) = self.answers.recv() => {
                    let now = self.now();
                    timed(Some(&self.telemetry.metrics), "answer", || self.processor.answered(tag, reply, now));
                }
                Some(first) = self.requests.1.recv() => {
                    self.take_request(first);
                    for _ in 0..BATCH {
                        match self.requests.1.try_recv() {
                            Ok(request) => self.take_request(request),
                            Err(_) => break,
                        }
                    }
                }
                Some(change) = self.changes.recv() => match change {
                    Leadership::Won => {
                        let info = self.stream.get_info().await;
                        match info {
                            Ok(info) => self.processor.campaign_won(info.state.last_sequence),
                            Err(error) => return End::Broken(error.to_string()),
                        }
                        if let Err(end) = self.begin_term().await { return end }
                    }
                    Leadership::Elsewhere => self.gate.open().await,
                    Leadership::Full(why) => self.gate.close::<M>(&why).await,
                    Leadership::Lost => return End::Broken("leadership was lost".to_owned()),
                },
                () = timer.as_mut() => {}
                changed = link.changed() => {
                    let now = link.borrow().clone();
                    // A break and a comeback may be seen as one: what was under way or to be read may be gone all the same.
                    if changed.is_err() || !now.connected || now.connects > 1 {
                        return End::Broken("the connection broke".to_owned());
                    }
                    if let Some(denied) = now.denied {
                        // A denied publication vanishes and a denied subscription stays silent: going on would look well
                        // and do nothing.
                        return End::Broken(format!("the broker forbids what this service must do: {denied}"));
                    }
                }
                () = shutdown.cancelled(), if draining.is_none() => {
                    draining = Some(Instant::now());
                    if let Some(endpoints) = self.endpoints.take() {
                        tokio::spawn(endpoints.finish());
                    }
                }
            }
        }
    }

    /// Takes all that is there already before anything is sent: what is decided together is committed together, and each
    /// commit costs the broker and its readers much the same.
    async fn absorb(&mut self) -> Result<(), End> {
        if self.flight.is_some() || self.processor.has_taken_all() {
            return Ok(());
        }
        // Lets the connection read what has come.
        tokio::task::yield_now().await;
        for _ in 0..BATCH {
            match self.tail.next().now_or_never() {
                Some(message) => self.read(message).await?,
                None => break,
            }
        }
        while let Ok((tag, reply)) = self.answers.try_recv() {
            let now = self.now();
            timed(Some(&self.telemetry.metrics), "answer", || self.processor.answered(tag, reply, now));
        }
        for _ in 0..BATCH {
            match self.requests.1.try_recv() {
                Ok(request) => self.take_request(request),
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Until the machine wants to be called, or until what has changed should be shown, and never long: that the loop
    /// turns is what keeps leadership, and what a drain waits for.
    fn wait(&mut self) -> Duration {
        let known = self.processor.time();
        let machine = self.processor.deadline().map(|at| self.clock.until(at, known).max(Duration::from_millis(1)));
        let show = self.is_behind().then_some(SHOW);
        machine.into_iter().chain(show).chain([PULSE]).min().unwrap_or(PULSE)
    }

    fn take_request(&mut self, incoming: Incoming<M>) {
        let Incoming { asked, request, context } = incoming;
        let endpoint = asked.endpoint.name;
        let token = self.hands.remember(asked);
        let now = self.now();
        let metrics = &self.telemetry.metrics;
        timed(Some(metrics), "request", || self.processor.request(token, endpoint, request, context, now));
    }

    /// Begins the term, once the campaign is won and the log has been read to where it ended then.
    async fn begin_term(&mut self) -> Result<(), End> {
        let now = self.now();
        if !self.processor.begin_term(self.instance.name(), now) {
            return Ok(());
        }
        self.follow().await?;
        if self.gate.why().is_none() {
            self.serve().await?;
        }
        tracing::info!(service = %M::Record::SERVICE, term = self.processor.term(), "leading");
        self.telemetry.metrics.set("baton_leading", &[], 1.0);
        Ok(())
    }

    /// Takes requests.
    pub(crate) async fn serve(&mut self) -> Result<(), End> {
        let (client, metrics) = (self.hands.client.clone(), self.telemetry.metrics.clone());
        self.endpoints = Some(Endpoints::start::<M>(&client, &self.instance, &metrics, &self.requests.0).await?);
        Ok(())
    }

    /// Sends what was decided, if nothing is under way.
    async fn send(&mut self) -> Result<(), End> {
        for effect in self.processor.immediate() {
            self.hands.carry_out(effect).await;
        }
        if self.flight.is_some() {
            return Ok(());
        }
        let Some(outgoing) = self.processor.take(self.settings.log.commit_bytes) else { return Ok(()) };
        self.flight_since = Instant::now();
        self.flight = Some(match outgoing {
            Outgoing::Prove { fence } => {
                self.flight_records = None;
                Box::pin(log::prove(self.stream.clone(), self.subject.clone(), fence))
            }
            Outgoing::Commit { payload, fence, records } => {
                self.flight_records = Some(records);
                let (stream, subject) = (self.stream_name.clone(), self.subject.clone());
                Box::pin(log::append(self.js.clone(), stream, subject, payload, fence, HeaderMap::new()))
            }
        });
        Ok(())
    }

    /// Keeps a snapshot, unless the one before is still on its way.
    ///
    /// To write one takes as long as there is state. However large that is, no more than a part of the time goes into it. After the
    /// workflow-manager's the log is trimmed, where it is to be.
    fn keep(&mut self, snapshot: Snapshot<M>) {
        if self.saving.is_empty() {
            let snapshots = self.snapshots.clone();
            let trimmer = self.trimmer(snapshot.clock);
            self.saving.spawn(async move {
                let begin = Instant::now();
                snapshots.save(snapshot).await;
                let took = begin.elapsed();
                if let Some(trimmer) = trimmer {
                    trimmer.trim(false).await;
                }
                took
            });
        }
    }

    /// What trims the log, where it is to be and this service does it.
    pub(crate) fn trimmer(&self, now: Millis) -> Option<Trimmer> {
        let settings = &self.settings.log;
        (settings.trim && M::Record::SERVICE == Service::WorkflowManager).then(|| Trimmer {
            stream: self.stream.clone(),
            snapshots: self.snapshots.clone(),
            settings: settings.clone(),
            metrics: self.telemetry.metrics.clone(),
            now,
        })
    }

    async fn landed(&mut self, outcome: Result<u64, CommitFailure>) -> Result<(), End> {
        let seq = match outcome {
            Ok(seq) => seq,
            Err(CommitFailure::Full(why)) => return Err(self.refused(why).await),
            Err(error @ CommitFailure::Refused(_)) => {
                tracing::error!(service = %M::Record::SERVICE, %error, "nothing can be stored, so nothing is answered");
                return Err(End::Broken(error.to_string()));
            }
            Err(error) => return Err(End::Broken(error.to_string())),
        };
        let metrics = &self.telemetry.metrics;
        self.landed |= self.flight_records.is_some();
        if let Some(records) = self.flight_records {
            metrics.count("baton_commits_total", &[]);
            metrics.observe("baton_commit_records", &[], records as f64);
            metrics.observe("baton_commit_seconds", &[], self.flight_since.elapsed().as_secs_f64());
        }
        let mut released = self.processor.acknowledged(seq);
        if let Some(snapshot) = released.snapshot.take() {
            self.keep(snapshot);
        }
        self.hands.release(released).await;
        Ok(())
    }

    async fn drained(&mut self) -> End {
        while self.saving.join_next().await.is_some() {}
        let processor = &self.processor;
        let worth_it = processor.is_leading() && processor.is_beyond_snapshot() && processor.is_drained();
        if let Some(snapshot) = self.processor.snapshot().filter(|_| worth_it) {
            let _ = tokio::time::timeout(DRAIN, self.snapshots.save(snapshot)).await;
        }
        End::Drained
    }

    fn show(&self, role: Role) {
        let processor = &self.processor;
        self.instance.update(|status| {
            status.role = role;
            status.term = processor.term();
            status.read = processor.reached();
            status.number = processor.number();
        });
        self.telemetry.metrics.set("baton_log_position", &[], processor.reached() as f64);
        self.telemetry.metrics.set("baton_term", &[], processor.term() as f64);
    }

    /// Counts messages that were dropped unread.
    fn count_dropped(&mut self) {
        let dropped = self.connection.link.borrow().dropped;
        if dropped > self.dropped {
            self.telemetry.metrics.add("baton_messages_dropped_total", &[], (dropped - self.dropped) as f64);
            self.dropped = dropped;
        }
    }

    /// Shows how this instance stands: at once when its role changes, otherwise a few times a second.
    fn report(&mut self) {
        let (leading, position) = (self.processor.is_leading(), self.processor.reached());
        if self.shown.is_some_and(|(was, _, at)| was == leading && at.elapsed() < SHOW) {
            return;
        }
        self.count_dropped();
        self.shown = Some((leading, position, Instant::now()));
        self.show(if leading { Role::Leading } else { Role::Following });
    }

    /// Whether something has changed that is not shown yet.
    fn is_behind(&self) -> bool {
        self.shown.is_none_or(|(_, position, _)| position != self.processor.reached())
    }
}

/// Takes the time of a turn, where it is counted: a machine has no clock.
fn timed<T>(metrics: Option<&Metrics>, input: &str, turn: impl FnOnce() -> T) -> T {
    let Some(metrics) = metrics else { return turn() };
    let begin = Instant::now();
    let result = turn();
    metrics.observe("baton_turn_seconds", &[input], begin.elapsed().as_secs_f64());
    result
}

/// Waits for what is under way, or for ever.
async fn fly(flight: &mut Option<Flight>) -> Result<u64, CommitFailure> {
    match flight {
        Some(flight) => flight.await,
        None => std::future::pending().await,
    }
}

/// The bucket of finished runs: created if there is none.
///
/// A document is no truth, the log is: so the broker need not sync each before it says that it has it, which at `power`
/// durability would allow no more than some hundred runs a second. The next leader keeps the last ends anew (at most 256):
/// that is more than a killed broker loses. What is lost with the power may be missed, up to what the broker syncs in the
/// background. In a cluster there are other copies.
///
/// How long and how many are kept is the bucket's own business: old ones go without anybody asking. Whoever leads the runs
/// sees to it that the limits are those of the settings.
async fn runs_bucket(js: &Context, settings: &Settings, leads_runs: bool) -> Result<kv::Store, LogError> {
    let (replicas, workflows) = (settings.log.replicas, &settings.workflows);
    let max_age = Duration::from_millis(workflows.keep_ended_ms);
    let most = match workflows.keep_documents {
        0 => -1,
        most => i64::try_from(most).unwrap_or(i64::MAX),
    };
    if let Ok(store) = js.get_key_value(subject::RUNS_BUCKET).await {
        let known = &store.stream.cached_info().config;
        if leads_runs && (known.max_age, known.max_messages) != (max_age, most) {
            let config = stream::Config { max_age, max_messages: most, discard: DiscardPolicy::Old, ..known.clone() };
            js.update_stream(config).await.map_err(|error| other("changing how long finished runs are kept", error))?;
            tracing::info!(?max_age, most, "finished runs are kept as long, and as many of them");
        }
        return Ok(store);
    }
    let (name, subjects) = subject::runs_stream();
    let config = stream::Config {
        name,
        description: Some("Baton: finished runs, a document each".to_owned()),
        subjects: vec![subjects],
        max_messages_per_subject: 1,
        max_age,
        max_messages: most,
        discard: DiscardPolicy::Old,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        num_replicas: replicas,
        persist_mode: (replicas == 1).then_some(stream::PersistenceMode::Async),
        ..stream::Config::default()
    };
    // Another instance may create it at the same moment.
    let created = js.create_stream(config).await.err().map(|error| error.to_string());
    let found = js.get_key_value(subject::RUNS_BUCKET).await;
    found.map_err(|error| other("opening the bucket of finished runs", created.unwrap_or_else(|| error.to_string())))
}

/// The stream of requests that could not be read: small, and the oldest go first.
async fn ensure_aside(js: &Context, settings: &Settings) -> Result<(), LogError> {
    let config = stream::Config {
        name: subject::ASIDE_STREAM.to_owned(),
        description: Some("Baton: requests that could not be read".to_owned()),
        subjects: vec![subject::ASIDE_SUBJECTS.to_owned()],
        num_replicas: settings.log.replicas,
        max_messages: 10_000,
        max_bytes: 64 * 1024 * 1024,
        max_age: Duration::from_secs(7 * 24 * 60 * 60),
        discard: DiscardPolicy::Old,
        metadata: HashMap::new(),
        ..stream::Config::default()
    };
    if js.get_stream(subject::ASIDE_STREAM).await.is_ok() {
        return Ok(());
    }
    // Another instance may create it at the same moment. Otherwise why it could not be created says more: no room, say.
    let created = js.create_stream(config).await.err().map(|error| error.to_string());
    let found = js.get_stream(subject::ASIDE_STREAM).await;
    let what = "creating the stream of what is set aside";
    found.map_err(|error| other(what, created.unwrap_or_else(|| error.to_string())))?;
    Ok(())
}
