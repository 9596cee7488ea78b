//! The processor: turns a machine, in production and in the simulator.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use baton_protocol::record::{AnyCommit, Cause, Commit, CommitError, Event, FORMAT, Record, Stamp, Turn as LogTurn};
use baton_protocol::request::{Mark, Requests};
use baton_protocol::{Code, Json, Millis, Number, Position, Rejection, Service};

use crate::planted::{Bug, is_planted};
use crate::snapshot::Snapshot;
use crate::turn::Emitted;
use crate::{Effect, Foreign, Machine, Measure, Reply, RequestContext, Token, Turn, Value};

/// How many messages of other services may be handled before the cursor is committed, if nothing else is. Bounds what a
/// follower keeps and a successor handles again.
const CHECKPOINT: u64 = 1024;

/// The least that it may be set to: commits without records are read by others, who must not answer each with one of theirs.
const LEAST_CHECKPOINT: u64 = 16;

/// How long a request waits for the record that it names to be read.
const PARK_MS: Millis = 2000;

/// A machine and where it stands in the log.
#[derive(Debug)]
pub struct Processor<M: Machine> {
    machine: M,
    config: M::Config,
    /// The number of the next own record.
    next: Number,
    /// The sequence of the last message read.
    read: u64,
    /// The sequence of the last own commit: the fence.
    own: u64,
    /// The sequence of the last message of others that was observed.
    seen: u64,
    /// The sequence of the last message of others that was handled to the end.
    handled: u64,
    /// The number of the last record that was observed of each other service.
    marks: BTreeMap<Service, Number>,
    /// The number of the last record that was read of each other service, observed or not.
    known: BTreeMap<Service, Number>,
    term: u64,
    /// Time never goes backwards.
    clock: Millis,
    /// Whether leading is proved by an empty commit instead of a read.
    prove_by_commit: bool,
    /// Messages of others beyond `handled`.
    backlog: VecDeque<(u64, Arc<AnyCommit>)>,
    /// The campaign was won when the log ended here; the term begins when it has been read that far.
    won_at: Option<u64>,
    /// A snapshot is made after this many records of its own, or after as many messages of the log; 0 for never.
    snapshot_every: u64,
    /// But not so soon after the last one.
    snapshot_pause: Millis,
    /// When the last one was made.
    snapshot_at: Millis,
    /// How many of its own records it has committed since the last snapshot.
    records_since_snapshot: u64,
    /// How far it had read at the last snapshot.
    snapshot_position: u64,
    /// Which share of all traces is shown.
    shown_traces: f64,
    /// How much of the memory that the process may take it takes, in per cent.
    memory: Option<u32>,
    /// How far the cursor may move on before it is committed.
    checkpoint: u64,
    lead: Option<Lead<M>>,
}

#[derive(Debug)]
struct Lead<M: Machine> {
    instance: String,
    soft: M::Soft,
    /// The next flight must be a commit, also without records.
    must_commit: bool,
    /// The cursor in the last commit that was taken.
    committed_handled: u64,
    entries: VecDeque<Entry>,
    /// Effects that wait for nothing.
    immediate: Vec<Effect>,
    flight: Option<Flight<M>>,
    parked: Vec<Parked<M::Request>>,
}

/// One turn that is not committed yet.
#[derive(Debug)]
struct Entry {
    at: Millis,
    seen: u64,
    cause: Cause,
    handled: u64,
    records: VecDeque<Emitted>,
    effects: Vec<Effect>,
}

/// What was taken and is not acknowledged yet.
#[derive(Debug)]
struct Flight<M> {
    commit: bool,
    term: u64,
    first: Number,
    events: Vec<(Millis, Cause, Emitted)>,
    effects: Vec<Effect>,
    snapshot: Option<Snapshot<M>>,
}

#[derive(Debug)]
struct Parked<R> {
    mark: Mark,
    until: Millis,
    token: Token,
    endpoint: &'static str,
    request: R,
    context: RequestContext,
}

/// Something to be sent. There is at most one under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// Append this to the service's log subject, if its last message there is still `fence`.
    Commit {
        /// The message.
        payload: Vec<u8>,
        /// The sequence of the service's last commit; 0 for none.
        fence: u64,
        /// How many records it holds.
        records: u64,
    },
    /// Prove that the service's last commit is still `fence`.
    Prove {
        /// The sequence of the service's last commit; 0 for none.
        fence: u64,
    },
}

/// What may leave, now that its commit is acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub struct Released<M> {
    /// What to do.
    pub effects: Vec<Effect>,
    /// The records as events, with the subjects to publish them on.
    pub events: Vec<(String, Event)>,
    /// The state at this commit, where one is to be kept to start from: see [`Processor::keep_snapshots`].
    pub snapshot: Option<Snapshot<M>>,
}

impl<M> Default for Released<M> {
    fn default() -> Self {
        Self { effects: Vec::new(), events: Vec::new(), snapshot: None }
    }
}

/// Why a message of the log can not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It can not be decoded. The service must stop: it would fold wrongly.
    #[error("message {seq} of the log: {error}")]
    Undecodable {
        /// Its sequence.
        seq: u64,
        /// Why.
        error: CommitError,
    },
    /// Another instance has committed: this one leads no more.
    #[error("message {seq} of the log was committed by {instance} in term {term}: this instance leads no more")]
    Deposed {
        /// Its sequence.
        seq: u64,
        /// Who.
        instance: String,
        /// Its term.
        term: u64,
    },
    /// A message is missing or came twice: the log was changed under us.
    #[error("message {seq} of the log starts with record {found} of its service, not {expected}: the log has a gap")]
    Gap {
        /// Its sequence.
        seq: u64,
        /// The number it starts with.
        found: Number,
        /// The number it should start with.
        expected: Number,
    },
}

impl<M: Machine> Processor<M> {
    /// A machine at the beginning of the log.
    #[must_use]
    pub fn new(config: M::Config) -> Self {
        let snapshot = Snapshot {
            format: FORMAT,
            machine: M::default(),
            next: 1,
            own: 0,
            seen: 0,
            handled: 0,
            marks: BTreeMap::new(),
            term: 0,
            clock: 0,
        };
        Self::restore(snapshot, config)
    }

    /// A machine where a snapshot left it.
    #[must_use]
    pub fn restore(snapshot: Snapshot<M>, config: M::Config) -> Self {
        let Snapshot { format: _, machine, next, own, seen, handled, marks, term, clock } = snapshot;
        Self {
            machine,
            config,
            next,
            read: own.min(handled),
            own,
            seen,
            handled,
            known: marks.clone(),
            marks,
            term,
            clock,
            prove_by_commit: false,
            backlog: VecDeque::new(),
            won_at: None,
            snapshot_every: 0,
            snapshot_pause: 0,
            snapshot_at: 0,
            records_since_snapshot: 0,
            snapshot_position: own.min(handled),
            shown_traces: 1.0,
            memory: None,
            checkpoint: CHECKPOINT,
            lead: None,
        }
    }

    /// Commits the cursor once it has moved on by so many messages of the log, if nothing else is committed; from 16 to 1024, which
    /// it is unless it is set. A snapshot goes with a commit only.
    pub fn checkpoint_after(&mut self, messages: u64) {
        self.checkpoint = messages.clamp(LEAST_CHECKPOINT, CHECKPOINT);
    }

    /// Proves leading by empty commits from now on. In a cluster a read may be answered by a server that was deposed and
    /// does not know; a commit needs a majority.
    pub fn prove_by_commit(&mut self) {
        self.prove_by_commit = true;
    }

    /// Makes a snapshot after every so many records of its own, or messages of the log: a service that writes little still
    /// reads everything. It comes out with what its commit releases ([`Released::snapshot`]). One costs as much as there is
    /// state, whatever has happened since the last one: so there is a pause between two, in milliseconds.
    pub fn keep_snapshots(&mut self, every: u64, pause: Millis) {
        self.snapshot_every = every;
        self.snapshot_pause = pause;
    }

    /// Shows only that share of all traces, from 0 to 1, and what fails: spans that nobody wants are not even made.
    pub fn show_traces(&mut self, share: f64) {
        self.shown_traces = share;
    }

    /// How much of the memory that the process may take it takes, in per cent; none where that can not be known. Decisions may
    /// depend on it, as on settings; the fold does not.
    pub fn takes_memory(&mut self, percent: Option<u32>) {
        self.memory = percent;
    }

    /// The state as it is, to start from later. There is one only where nothing is pending but what is under way; `own` is
    /// then the last commit that was acknowledged, and not yet the one under way.
    #[must_use]
    pub fn snapshot(&self) -> Option<Snapshot<M>> {
        if !self.has_taken_all() {
            return None;
        }
        Some(Snapshot {
            format: FORMAT,
            machine: self.machine.clone(),
            next: self.next,
            own: self.own,
            seen: self.seen,
            handled: self.handled + u64::from(is_planted(Bug::SnapshotSkipsAMessage)),
            marks: self.marks.clone(),
            term: self.term,
            clock: self.clock,
        })
    }

    /// The machine's state.
    #[must_use]
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The sequence of the last message read: go on with the next one.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.read
    }

    /// How far it is in the log, for those who look at it: a leader may not be sent its own commits, and is as far as its last.
    #[must_use]
    pub fn reached(&self) -> u64 {
        self.read.max(self.own)
    }

    /// The number of the last own record.
    #[must_use]
    pub fn number(&self) -> Number {
        self.next - 1
    }

    /// The last term.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The latest time that it has seen: in the log, or given to it.
    #[must_use]
    pub fn time(&self) -> Millis {
        self.clock
    }

    /// Whether this instance leads, as far as it knows.
    #[must_use]
    pub fn is_leading(&self) -> bool {
        self.lead.is_some()
    }

    /// Whether everything that was decided has been taken to be sent.
    #[must_use]
    pub fn has_taken_all(&self) -> bool {
        self.lead.as_ref().is_none_or(|lead| lead.entries.is_empty())
    }

    /// Whether there is nothing left to commit or to release.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.lead.as_ref().is_none_or(|lead| lead.entries.is_empty() && lead.flight.is_none() && !lead.must_commit)
    }

    /// Whether anything has happened since the last snapshot.
    #[must_use]
    pub fn is_beyond_snapshot(&self) -> bool {
        self.records_since_snapshot > 0 || self.read > self.snapshot_position
    }

    /// Reads message `seq` of the log.
    pub fn read(&mut self, seq: u64, service: Service, payload: &[u8], now: Millis) -> Result<(), ReadError> {
        if !self.is_news(seq, service) {
            self.read = self.read.max(seq);
            return Ok(());
        }
        let commit = AnyCommit::decode(service, payload).map_err(|error| ReadError::Undecodable { seq, error })?;
        self.read_commit(seq, &Arc::new(commit), now)
    }

    /// Reads message `seq` of the log where it is decoded already: several readers of one log need not do it each.
    pub fn read_commit(&mut self, seq: u64, commit: &Arc<AnyCommit>, now: Millis) -> Result<(), ReadError> {
        if self.is_news(seq, commit.service()) {
            match M::Record::commit(commit) {
                Some(own) => self.read_own(seq, own)?,
                None => {
                    self.follows(seq, commit)?;
                    // What follows from a record is not before it, though its writer's clock may be ahead.
                    let at = commit.at().filter(|_| !is_planted(Bug::ClocksApart));
                    self.clock = self.clock.max(at.unwrap_or(0));
                    self.backlog.push_back((seq, Arc::clone(commit)));
                    if self.lead.is_some() {
                        self.handle_backlog(now);
                    }
                }
            }
        }
        self.read = self.read.max(seq);
        Ok(())
    }

    /// Whether a message is not in the state yet, nor waits to be handled, and is to be.
    fn is_news(&self, seq: u64, service: Service) -> bool {
        if service != M::Record::SERVICE && !M::FOLLOWS.contains(&service) {
            return false;
        }
        let known = if service == M::Record::SERVICE { self.own } else { self.handled };
        seq > self.read.max(known)
    }

    /// Takes note of a commit of another service, which must be the next of that service: what lay between may have been
    /// removed from the log before it was read.
    fn follows(&mut self, seq: u64, commit: &AnyCommit) -> Result<(), ReadError> {
        let known = self.known.entry(commit.service()).or_default();
        let (found, expected) = (first_of(commit), *known + 1);
        // After a start from a snapshot what was observed and not handled comes again.
        if seq > self.seen && found != expected {
            return Err(ReadError::Gap { seq, found, expected });
        }
        *known = (*known).max(commit.next() - 1);
        Ok(())
    }

    fn read_own(&mut self, seq: u64, commit: &Commit<M::Record>) -> Result<(), ReadError> {
        if let Some(lead) = &self.lead {
            let ours = lead.flight.as_ref().is_some_and(|flight| {
                flight.commit
                    && flight.term == commit.term
                    && flight.first == commit.first
                    && lead.instance == commit.instance
            });
            if ours {
                // The tail was faster than the acknowledgement, which is still to come.
                return Ok(());
            }
            return Err(ReadError::Deposed { seq, instance: commit.instance.clone(), term: commit.term });
        }
        if commit.first != self.next {
            return Err(ReadError::Gap { seq, found: commit.first, expected: self.next });
        }
        let mut number = commit.first;
        for turn in &commit.turns {
            if !is_planted(Bug::SeenIgnored) {
                self.observe_up_to(turn.seen);
            }
            for record in &turn.records {
                self.machine.apply(Stamp { number, at: turn.at, seen: turn.seen }, record);
                number += 1;
            }
            self.clock = self.clock.max(turn.at);
        }
        self.observe_up_to(commit.handled);
        self.handled = self.handled.max(commit.handled);
        while self.backlog.front().is_some_and(|(seq, _)| *seq <= self.handled) {
            self.backlog.pop_front();
        }
        self.next = number;
        self.own = seq;
        self.term = commit.term;
        Ok(())
    }

    fn observe_up_to(&mut self, seq: u64) {
        let from = self.seen;
        for (_, commit) in self.backlog.iter().filter(|(s, _)| *s > from && *s <= seq) {
            observe(&mut self.machine, &mut self.marks, commit);
        }
        self.seen = self.seen.max(seq);
    }

    /// The campaign is won. The term begins once the log has been read to `last`, where it ended then.
    pub fn campaign_won(&mut self, last: u64) {
        self.won_at = Some(last);
    }

    /// Begins the term if the campaign is won and the log has been read far enough. Whether it has begun just now.
    pub fn begin_term(&mut self, instance: &str, now: Millis) -> bool {
        if self.lead.is_some() || self.won_at.is_none_or(|last| self.read < last) {
            return false;
        }
        self.won_at = None;
        self.lead(instance, now);
        true
    }

    /// Begins a term. The log must have been read to its end; the fence tells if it was not.
    pub fn lead(&mut self, instance: &str, now: Millis) {
        if !is_planted(Bug::TermNotRaised) {
            self.term += 1;
        }
        self.lead = Some(Lead {
            instance: instance.to_owned(),
            soft: M::Soft::default(),
            must_commit: true,
            committed_handled: self.handled,
            entries: VecDeque::new(),
            immediate: Vec::new(),
            flight: None,
            parked: Vec::new(),
        });
        self.turn(Cause::Lead, None, now, |turn| M::lead(turn));
        if is_planted(Bug::BacklogForgotten) {
            self.forget_backlog();
        }
        self.handle_backlog(now);
    }

    /// Observes what waits and reacts to nothing: what [`Bug::BacklogForgotten`] does.
    fn forget_backlog(&mut self) {
        let last = self.backlog.back().map_or(self.seen, |(seq, _)| *seq);
        self.observe_up_to(last);
        self.handled = self.handled.max(last);
        self.backlog.clear();
    }

    fn handle_backlog(&mut self, now: Millis) {
        while let Some((seq, commit)) = self.backlog.pop_front() {
            if seq > self.seen {
                observe(&mut self.machine, &mut self.marks, &commit);
                self.seen = seq;
            }
            self.handled = self.handled.max(seq);
            self.turn(Cause::Log(seq), None, now, |turn| M::react(turn, &commit));
        }
        self.unpark(now);
    }

    /// Takes a request. Does nothing where this instance does not lead: who asked will ask again.
    pub fn request(
        &mut self,
        token: Token,
        endpoint: &'static str,
        request: M::Request,
        context: RequestContext,
        now: Millis,
    ) {
        let now = self.advance(now);
        let mark = request.waits_for().filter(|mark| !self.has_read(*mark));
        let Some(lead) = &mut self.lead else { return };
        match mark {
            Some(mark) => {
                lead.parked.push(Parked { mark, until: now + PARK_MS, token, endpoint, request, context });
            }
            None => self.decide(token, endpoint, request, &context, now),
        }
    }

    fn has_read(&self, mark: Mark) -> bool {
        mark.service == M::Record::SERVICE || self.marks.get(&mark.service).copied().unwrap_or(0) >= mark.number
    }

    fn decide(
        &mut self,
        token: Token,
        endpoint: &'static str,
        request: M::Request,
        context: &RequestContext,
        now: Millis,
    ) {
        self.turn(Cause::Request(endpoint.into()), Some(token), now, |turn| {
            let reply = M::request(turn, request, context);
            if !turn.answered {
                turn.effect(Effect::Answer { token, reply });
            }
        });
    }

    fn unpark(&mut self, now: Millis) {
        let Some(lead) = &mut self.lead else { return };
        if lead.parked.is_empty() {
            return;
        }
        let parked = std::mem::take(&mut lead.parked);
        let mut waiting = Vec::new();
        for request in parked {
            if self.has_read(request.mark) {
                self.decide(request.token, request.endpoint, request.request, &request.context, now);
            } else if request.until <= self.clock {
                let Mark { service, number } = request.mark;
                let read = self.marks.get(&service).copied().unwrap_or(0);
                let message = format!(
                    "the request names record {number} of the {service}, but only {read} have been read; if that record \
                     exists, ask again"
                );
                let reply = Err(Rejection::new(Code::Unavailable, message).retry_after(PARK_MS));
                let token = request.token;
                self.turn(Cause::Timer, None, now, |turn| turn.effect(Effect::Answer { token, reply }));
            } else {
                waiting.push(request);
            }
        }
        if let Some(lead) = &mut self.lead {
            lead.parked = waiting;
        }
    }

    /// Takes the answer to an [`Effect::Ask`].
    pub fn answered(&mut self, tag: u64, reply: Reply, now: Millis) {
        self.turn(Cause::Answer, None, now, |turn| M::answered(turn, tag, reply));
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: Millis) {
        let now = self.advance(now);
        self.unpark(now);
        if let Some(lead) = &self.lead
            && self.machine.deadline(&lead.soft, &self.config).is_some_and(|deadline| deadline <= now)
        {
            self.turn(Cause::Timer, None, now, |turn| M::tick(turn));
        }
    }

    /// When [`Processor::tick`] should be called, if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Millis> {
        let lead = self.lead.as_ref()?;
        let parked = lead.parked.iter().map(|parked| parked.until).min();
        parked.into_iter().chain(self.machine.deadline(&lead.soft, &self.config)).min()
    }

    fn advance(&mut self, now: Millis) -> Millis {
        self.clock = self.clock.max(now);
        self.clock
    }

    fn turn(&mut self, cause: Cause, token: Option<Token>, now: Millis, act: impl FnOnce(&mut Turn<'_, M>)) {
        let now = self.advance(now);
        let Some(lead) = &mut self.lead else { return };
        let mut turn = Turn {
            machine: &mut self.machine,
            soft: &mut lead.soft,
            config: &self.config,
            now,
            seen: self.seen,
            token,
            workflow_number: self.marks.get(&Service::WorkflowManager).copied().unwrap_or(0),
            next: &mut self.next,
            shown_traces: self.shown_traces,
            memory: self.memory,
            emitted: Vec::new(),
            effects: Vec::new(),
            answered: false,
        };
        act(&mut turn);
        let Turn { emitted, effects, .. } = turn;
        // What is only shown promises nothing: without a record it needs no proof. But a gauge that is set must not overtake
        // one that waits.
        let nothing_decided = emitted.is_empty();
        let waits = |effect: &Effect| matches!(effect, Effect::Measure(Measure { value: Value::Set(_), .. }));
        let nothing_waits = lead.entries.is_empty() && lead.flight.is_none();
        let leaves_at_once = |effect: &Effect| {
            matches!(effect, Effect::Ask { .. })
                || (nothing_decided
                    && matches!(effect, Effect::Span(_) | Effect::Measure(_))
                    && (nothing_waits || !waits(effect)))
                || (is_planted(Bug::AnsweredTooEarly) && matches!(effect, Effect::Answer { .. }))
                || (is_planted(Bug::PushedTooEarly) && matches!(effect, Effect::Publish(_)))
        };
        let (immediate, effects): (Vec<_>, Vec<_>) = effects.into_iter().partition(leaves_at_once);
        lead.immediate.extend(immediate);
        if !emitted.is_empty() || !effects.is_empty() {
            let (seen, handled, records) = (self.seen, self.handled, emitted.into());
            lead.entries.push_back(Entry { at: now, seen, cause, handled, records, effects });
        }
    }

    /// The effects that wait for nothing.
    pub fn immediate(&mut self) -> Vec<Effect> {
        self.lead.as_mut().map(|lead| std::mem::take(&mut lead.immediate)).unwrap_or_default()
    }

    /// What to send next, if nothing is under way and there is anything to send: one commit of at most about `max_bytes`
    /// (more only where a single record is larger), or a proof.
    pub fn take(&mut self, max_bytes: usize) -> Option<Outgoing> {
        let handled = self.handled;
        let lead = self.lead.as_mut().filter(|lead| lead.flight.is_none())?;
        let checkpoint = handled.saturating_sub(lead.committed_handled) >= self.checkpoint;
        if lead.entries.is_empty() && !lead.must_commit && !checkpoint {
            return None;
        }
        let pending: u64 = lead.entries.iter().map(|entry| entry.records.len() as u64).sum();
        let first = self.next - pending;
        let mut turns: Vec<LogTurn<Json>> = Vec::new();
        let (events, effects) = (Vec::new(), Vec::new());
        let mut flight = Flight { commit: false, term: self.term, first, events, effects, snapshot: None };
        let (mut bytes, mut records, mut cursor) = (0, 0, lead.committed_handled);
        while let Some(entry) = lead.entries.front_mut() {
            let mut turn = LogTurn { at: entry.at, seen: entry.seen, cause: entry.cause.clone(), records: Vec::new() };
            while let Some(emitted) = entry.records.front() {
                if bytes > 0 && bytes + emitted.json.size() > max_bytes {
                    break;
                }
                bytes += emitted.json.size();
                turn.records.push(emitted.json.clone());
                flight.events.extend(entry.records.pop_front().map(|e| (entry.at, entry.cause.clone(), e)));
                records += 1;
            }
            if !turn.records.is_empty() {
                turns.push(turn);
            }
            if !entry.records.is_empty() {
                break;
            }
            cursor = entry.handled;
            flight.effects.append(&mut entry.effects);
            lead.entries.pop_front();
        }
        if lead.entries.is_empty() {
            cursor = handled;
        }
        let fence = self.own;
        if records == 0 && !lead.must_commit && !checkpoint && !self.prove_by_commit {
            lead.flight = Some(flight);
            return Some(Outgoing::Prove { fence });
        }
        flight.commit = true;
        lead.must_commit = false;
        lead.committed_handled = cursor;
        let commit =
            Commit { format: FORMAT, instance: lead.instance.clone(), term: self.term, first, handled: cursor, turns };
        let payload = serde_json::to_vec(&commit).expect("a commit can be written as JSON");
        flight.snapshot = self.due_snapshot(records);
        if let Some(lead) = &mut self.lead {
            lead.flight = Some(flight);
        }
        Some(Outgoing::Commit { payload, fence, records })
    }

    /// The snapshot that goes with a commit of so many records, if one is due. There is none while a turn is split over
    /// commits; then the next commit may have one.
    fn due_snapshot(&mut self, records: u64) -> Option<Snapshot<M>> {
        self.records_since_snapshot += records;
        let read = self.read.saturating_sub(self.snapshot_position);
        if self.snapshot_every == 0 || self.records_since_snapshot.max(read) < self.snapshot_every {
            return None;
        }
        if self.clock < self.snapshot_at.saturating_add(self.snapshot_pause) {
            return None;
        }
        let snapshot = self.snapshot()?;
        self.snapshot_at = self.clock;
        self.records_since_snapshot = 0;
        self.snapshot_position = self.read;
        Some(snapshot)
    }

    /// What was taken is acknowledged: the commit as message `seq` of the log, or the proof.
    pub fn acknowledged(&mut self, seq: u64) -> Released<M> {
        let Some(mut flight) = self.lead.as_mut().and_then(|lead| lead.flight.take()) else {
            return Released::default();
        };
        if flight.commit {
            self.own = seq;
            if let Some(snapshot) = &mut flight.snapshot {
                snapshot.own = seq;
            }
        }
        let first = flight.first;
        let events = flight.events.into_iter().enumerate().map(|(index, (at, cause, emitted))| {
            let position = Position { seq, index: u32::try_from(index).unwrap_or(u32::MAX) };
            let event = Event {
                position,
                service: M::Record::SERVICE,
                number: first + index as u64,
                at,
                cause,
                kind: emitted.kind.into(),
                run: emitted.run,
                part_of: emitted.part_of,
                record: emitted.json,
            };
            (emitted.subject, event)
        });
        Released { effects: flight.effects, events: events.collect(), snapshot: flight.snapshot }
    }
}

/// The number of the first record in a commit, or of the next one if it has none.
fn first_of(commit: &AnyCommit) -> Number {
    match commit {
        AnyCommit::Workflow(commit) => commit.first,
        AnyCommit::Resource(commit) => commit.first,
        AnyCommit::Optimizer(commit) => commit.first,
    }
}

fn observe<M: Machine>(machine: &mut M, marks: &mut BTreeMap<Service, Number>, commit: &AnyCommit) {
    match commit {
        AnyCommit::Workflow(c) => c.stamped().for_each(|(s, r)| machine.observe(s, Foreign::Workflow(r))),
        AnyCommit::Resource(c) => c.stamped().for_each(|(s, r)| machine.observe(s, Foreign::Resource(r))),
        AnyCommit::Optimizer(c) => c.stamped().for_each(|(s, r)| machine.observe(s, Foreign::Optimizer(r))),
    }
    marks.insert(commit.service(), commit.next() - 1);
}
