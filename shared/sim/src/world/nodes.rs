//! Instances of the services: what the shell's session does, with the same processor and the same clock, in virtual time.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Clock, Effect, Outgoing, ReadError, Reply, Token};
use baton_protocol::record::AnyCommit;
use baton_protocol::request::{Assignments, Requests, ResourceRequest};
use baton_protocol::run::RunView;
use baton_protocol::{Code, Json, Millis, RunId, Service};

use super::{Asker, EPOCH, Event, Micros, Opaque, SERVICES, Store, Told, World};
use crate::check::{Asked, Checked, broken};
use crate::coverage::{Branch, Fault};
use crate::engine::{Engine, Left, Sent, Start, engine};
use crate::log::{Entry, Message};
use crate::request::AnyRequest;

/// How long a commit's acknowledgement is waited for.
const ACK_TIMEOUT: Micros = 3_000_000;

/// How long an entry that nobody renews keeps others from leading.
const LEADER_TTL: Micros = 2_000_000;

/// One instance of a service, over all its lives.
pub(super) struct Node {
    pub(super) service: Service,
    /// Its name: a new one with each life of its process.
    pub(super) name: String,
    number: usize,
    lives: u32,
    /// Told apart, so that what was meant for an earlier one goes nowhere.
    pub(super) session: u64,
    /// None: it is down, or between two sessions.
    pub(super) engine: Option<Box<dyn Engine>>,
    pub(super) paused_until: Micros,
    /// Until then it reads nothing of the log, and does not learn that it leads no more.
    pub(super) deaf_until: Micros,
    clock: Clock,
    /// How far its wall clock is off, in milliseconds.
    off: i64,
    /// Whether it believes that the campaign is won.
    pub(super) holding: bool,
    /// What is under way, by number.
    flight: Option<u64>,
    flights: u64,
    tick_at: Option<Micros>,
    tail_at: Option<Micros>,
    asked: BTreeMap<Token, (u64, Rc<Asked>)>,
    tokens: Token,
}

impl Node {
    pub(super) fn new(service: Service, number: usize) -> Self {
        Self {
            service,
            name: format!("{service}-{}.0", number % 2),
            number,
            lives: 0,
            session: 0,
            engine: None,
            paused_until: 0,
            deaf_until: 0,
            clock: Clock::new(EPOCH, 0),
            off: 0,
            holding: false,
            flight: None,
            flights: 0,
            tick_at: None,
            tail_at: None,
            asked: BTreeMap::new(),
            tokens: 0,
        }
    }

    /// Its wall clock steps by so many milliseconds.
    pub(super) fn step(&mut self, by: i64) {
        self.off += by;
    }

    fn wall(&self, now: Micros) -> Millis {
        (EPOCH + now / 1000).saturating_add_signed(self.off)
    }

    /// The time for its machine.
    fn now(&mut self, now: Micros) -> Millis {
        let known = self.engine.as_ref().map_or(0, |engine| engine.time());
        self.clock.now(self.wall(now), now / 1000, known)
    }

    /// Whether it leads, and has nothing left to say.
    pub(super) fn leads_in_peace(&self) -> bool {
        self.flight.is_none() && self.engine.as_ref().is_some_and(|engine| engine.is_leading() && engine.is_drained())
    }

    fn leads(&self) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.is_leading())
    }
}

impl World {
    /// Whether an event is of a session that is over; puts it off if the instance stands still.
    fn is_for(&mut self, node: usize, session: u64, event: impl FnOnce() -> Event) -> bool {
        let Node { session: current, paused_until, .. } = self.nodes[node];
        if current != session {
            return false;
        }
        if paused_until > self.now {
            self.at(paused_until, event());
            return false;
        }
        true
    }

    // Sessions.

    pub(super) fn open(&mut self, node: usize, session: u64) -> Checked {
        if !self.is_for(node, session, || Event::Open(node, session)) {
            return Ok(());
        }
        let service = self.nodes[node].service;
        let restored = self.restore(service);
        let mut engine = match restored {
            Some(engine) => engine,
            None => engine(service, &self.configs, None).expect("a fresh one"),
        };
        let wall = self.nodes[node].wall(self.now);
        self.nodes[node].clock = Clock::new(wall, self.now / 1000);
        for seq in engine.position() + 1..=self.log.end() {
            let Some(message) = self.log.get(seq) else { break };
            let now = wall;
            engine.read(seq, &Arc::clone(&message.commit), now).map_err(|error| unreadable(&error))?;
        }
        let place = SERVICES.iter().position(|of| *of == service).unwrap_or(0);
        if let Some(difference) = engine.difference(self.shadows[place].state()) {
            let text = format!("{} at message {}\n{difference}", self.nodes[node].name, self.log.end());
            return Err(broken("a snapshot and what follows it equal a full replay", text));
        }
        engine.takes_memory(self.memory);
        self.nodes[node].engine = Some(engine);
        self.after(1_000, Event::Campaign(node, session));
        Ok(())
    }

    /// A processor from the last snapshot, if there is one that can be used.
    fn restore(&mut self, service: Service) -> Option<Box<dyn Engine>> {
        let mut text = self.snapshots.get(&service)?.clone();
        if !self.calm {
            match self.draws.below(10) {
                8 => {
                    self.coverage.fault(Fault::SnapshotMissing);
                    return None;
                }
                9 => {
                    self.coverage.fault(Fault::SnapshotTorn);
                    let keep = self.draws.below(u32::try_from(text.len()).unwrap_or(u32::MAX)) as usize;
                    text.truncate(keep);
                }
                _ => {}
            }
        }
        let engine = engine(service, &self.configs, Some(&Start { text: &text, log: &self.log }));
        self.coverage.branch(if engine.is_some() { Branch::FromSnapshot } else { Branch::SnapshotUnreadable });
        engine
    }

    /// An instance drops everything, and begins again.
    pub(super) fn end_session(&mut self, node: usize) {
        let service = self.nodes[node].service;
        let session = self.nodes[node].session;
        let ours = |entry: &Entry| entry.node == node && entry.session == session;
        if self.entries.get(&service).is_some_and(ours) {
            self.entries.remove(&service);
        }
        self.close(node);
        let wait = if self.calm { 20_000 } else { self.draws.between(20_000, 800_000) };
        let session = self.nodes[node].session;
        self.after(wait, Event::Open(node, session));
    }

    /// An instance's process dies, and another one is started.
    pub(super) fn crash(&mut self, node: usize, down: Micros) {
        self.close(node);
        let it = &mut self.nodes[node];
        it.lives += 1;
        it.name = format!("{}-{}.{}", it.service, it.number % 2, it.lives);
        (it.paused_until, it.deaf_until) = (0, 0);
        let session = it.session;
        self.after(down, Event::Open(node, session));
    }

    fn close(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        it.session += 1;
        it.engine = None;
        it.holding = false;
        it.flight = None;
        it.tick_at = None;
        it.tail_at = None;
        it.asked.clear();
    }

    // Leadership.

    pub(super) fn campaign(&mut self, node: usize, session: u64) -> Checked {
        if !self.is_for(node, session, || Event::Campaign(node, session)) {
            return Ok(());
        }
        if self.nodes[node].deaf_until > self.now {
            self.at(self.nodes[node].deaf_until, Event::Campaign(node, session));
            return Ok(());
        }
        let service = self.nodes[node].service;
        let entry = self.entries.get(&service).copied();
        if self.nodes[node].holding {
            if !entry.is_some_and(|entry| entry.node == node && entry.session == session) {
                self.tell(|world| format!("{} has lost the lead", world.nodes[node].name));
                self.end_session(node);
                return Ok(());
            }
            self.entries.insert(service, Entry { node, session, until: self.now + LEADER_TTL });
            self.after(LEADER_TTL / 4, Event::Campaign(node, session));
            return Ok(());
        }
        // A ping to a holder whose connection is gone finds no responder.
        let gone = |entry: &Entry| self.nodes[entry.node].session != entry.session;
        if entry.as_ref().is_none_or(|entry| entry.until <= self.now || gone(entry)) {
            self.win(node);
        }
        let wait = if self.calm { 300_000 } else { self.draws.between(200_000, 400_000) };
        self.after(wait, Event::Campaign(node, session));
        Ok(())
    }

    /// An instance takes the entry.
    pub(super) fn win(&mut self, node: usize) {
        let Node { service, session, .. } = self.nodes[node];
        self.nodes[node].holding = true;
        self.entries.insert(service, Entry { node, session, until: self.now + LEADER_TTL });
        let wait = if self.calm { 300 } else { self.draws.between(300, 30_000) };
        self.after(wait, Event::Won(node, session));
    }

    pub(super) fn won(&mut self, node: usize, session: u64) -> Checked {
        if !self.is_for(node, session, || Event::Won(node, session)) {
            return Ok(());
        }
        let end = self.log.end();
        if let Some(engine) = &mut self.nodes[node].engine {
            engine.campaign_won(end);
        }
        self.begin_term(node);
        self.pump(node)
    }

    fn begin_term(&mut self, node: usize) {
        let now = self.nodes[node].now(self.now);
        let Node { name, engine, .. } = &mut self.nodes[node];
        if !engine.as_mut().is_some_and(|engine| engine.begin_term(name, now)) {
            return;
        }
        self.coverage.branch(Branch::Term);
        if self.nodes[node ^ 1].leads() {
            self.coverage.branch(Branch::TwoLead);
        }
        self.tell(|world| format!("{} begins a term", world.nodes[node].name));
    }

    // The log.

    pub(super) fn tail(&mut self, node: usize, session: u64) -> Checked {
        if !self.is_for(node, session, || Event::Tail(node, session)) {
            return Ok(());
        }
        self.nodes[node].tail_at = None;
        if self.nodes[node].deaf_until > self.now {
            self.wake(node);
            return Ok(());
        }
        let end = self.log.end();
        let from = self.nodes[node].engine.as_ref().map_or(end, |engine| engine.position());
        let most = if self.calm { u64::MAX } else { 64 - u64::from(self.draws.below(64)) };
        for seq in from + 1..=end.min(from.saturating_add(most)) {
            let now = self.nodes[node].now(self.now);
            let Some(message) = self.log.get(seq) else { break };
            let commit = Arc::clone(&message.commit);
            let Some(engine) = &mut self.nodes[node].engine else { break };
            match engine.read(seq, &commit, now) {
                Ok(()) => {}
                Err(error @ ReadError::Deposed { .. }) => {
                    self.coverage.branch(Branch::Deposed);
                    self.tell(|world| format!("{}: {error}", world.nodes[node].name));
                    self.end_session(node);
                    return Ok(());
                }
                Err(error) => return Err(unreadable(&error)),
            }
        }
        self.begin_term(node);
        self.wake(node);
        self.pump(node)
    }

    /// Has an instance read on, if there is anything to be read.
    fn wake(&mut self, node: usize) {
        let Node { engine, session, tail_at, .. } = &self.nodes[node];
        let behind = engine.as_ref().is_some_and(|engine| engine.position() < self.log.end());
        if !behind || tail_at.is_some() {
            return;
        }
        let session = *session;
        let mut wait = 150;
        let deaf = self.nodes[node].deaf_until;
        if deaf > self.now {
            wait = deaf - self.now;
        } else if !self.calm {
            let late = self.draws.below(1000);
            wait += u64::from(late);
            if late >= 1000 - self.weather.late / 3 {
                self.coverage.fault(Fault::TailDelayed);
                wait = self.draws.between(10_000, 3_000_000);
            }
        }
        self.nodes[node].tail_at = Some(self.now + wait);
        self.after(wait, Event::Tail(node, session));
    }

    // What is sent.

    /// Has an instance send what it has decided, if nothing is under way.
    fn pump(&mut self, node: usize) -> Checked {
        let Some(engine) = &mut self.nodes[node].engine else { return Ok(()) };
        for effect in engine.immediate() {
            self.carry_out(node, effect)?;
        }
        if self.nodes[node].flight.is_none() {
            let bytes = self.configs.commit_bytes;
            let sent = self.nodes[node].engine.as_mut().and_then(|engine| engine.take(bytes));
            if let Some(Sent { outgoing, state }) = sent {
                self.launch(node, outgoing, state.map(Opaque));
            }
        }
        self.retick(node);
        Ok(())
    }

    fn launch(&mut self, node: usize, outgoing: Outgoing, state: Option<Opaque>) {
        let it = &mut self.nodes[node];
        it.flights += 1;
        let (flight, session) = (it.flights, it.session);
        it.flight = Some(flight);
        self.after(ACK_TIMEOUT, Event::GiveUp(node, session, flight));
        let is_commit = matches!(outgoing, Outgoing::Commit { .. });
        if is_commit && state.is_none() {
            self.coverage.branch(Branch::Split);
        }
        let mut wait = 100;
        let mut silent = false;
        if !self.calm {
            let fate = self.draws.below(1000);
            wait += u64::from(fate / 4);
            let rough = self.weather.commits;
            if fate >= 1000 - rough {
                match self.draws.below(4) {
                    0 => wait = self.draws.between(1_000, 300_000),
                    1 => {
                        self.fault_of(Fault::AckLost, |world| {
                            format!("{}: an acknowledgement will be lost", world.nodes[node].name)
                        });
                        silent = true;
                    }
                    2 => {
                        self.fault_of(Fault::CommitLost, |world| format!("{}: lost", world.nodes[node].name));
                        return;
                    }
                    _ => {
                        self.fault_of(Fault::CommitDelayed, |world| {
                            format!("{}: what it sent is held up", world.nodes[node].name)
                        });
                        wait = self.draws.between(1_000_000, 5_000_000);
                    }
                }
            }
        }
        self.after(wait, Event::Store(Box::new(Store { node, session, flight, outgoing, state, silent })));
    }

    /// What was sent reaches the broker.
    pub(super) fn store(&mut self, store: Store) -> Checked {
        let Store { node, session, flight, outgoing, state, silent } = store;
        let service = self.nodes[node].service;
        let ghost = self.nodes[node].session != session;
        let outcome = match outgoing {
            Outgoing::Prove { fence } => {
                let right = self.log.last(service) == fence || is_planted(Bug::ProofSkipped);
                if !right {
                    self.coverage.branch(Branch::ProofFailed);
                }
                right.then_some(fence)
            }
            Outgoing::Commit { payload, fence, .. } => {
                if self.log.admits(service, fence) {
                    if ghost {
                        self.coverage.branch(Branch::GhostStored);
                    }
                    Some(self.append(service, payload, state)?)
                } else {
                    self.coverage.branch(if ghost { Branch::GhostFenced } else { Branch::Fenced });
                    None
                }
            }
        };
        if !silent && !ghost {
            let wait = if self.calm { 100 } else { 100 + u64::from(self.draws.below(400)) };
            self.after(wait, Event::Landed(node, session, flight, outcome));
        }
        Ok(())
    }

    fn append(&mut self, service: Service, payload: Vec<u8>, state: Option<Opaque>) -> Result<u64, crate::Violation> {
        let commit = AnyCommit::decode(service, &payload)
            .map_err(|error| broken("what is committed can be read", error.to_string()))?;
        let commit = Arc::new(commit);
        for chunk in payload.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.digest = baton_protocol::id::mix(self.digest ^ u64::from_le_bytes(word));
        }
        let message = Message { service, payload, commit: Arc::clone(&commit), on: self.now };
        let seq = self.log.append(message);
        self.count_records(&commit);
        self.facts.take(seq, &commit, self.now)?;
        for shadow in &mut self.shadows {
            shadow.read(seq, &commit, 0).map_err(|error| unreadable(&error))?;
        }
        let place = SERVICES.iter().position(|of| *of == service).unwrap_or(0);
        let difference = state.and_then(|state| self.shadows[place].difference(&*state.0));
        if let Some(difference) = difference {
            let text = format!("{service} at message {seq}\n{difference}");
            return Err(broken("live state equals replayed state", text));
        }
        for node in 0..self.nodes.len() {
            self.wake(node);
        }
        Ok(seq)
    }

    fn count_records(&mut self, commit: &AnyCommit) {
        use baton_protocol::record::Record;
        match commit {
            AnyCommit::Workflow(c) => c.stamped().for_each(|(_, record)| self.coverage.record(record.kind())),
            AnyCommit::Resource(c) => c.stamped().for_each(|(_, record)| self.coverage.record(record.kind())),
            AnyCommit::Optimizer(c) => c.stamped().for_each(|(_, record)| self.coverage.record(record.kind())),
        }
    }

    pub(super) fn landed(&mut self, node: usize, session: u64, flight: u64, outcome: Option<u64>) -> Checked {
        if !self.is_for(node, session, || Event::Landed(node, session, flight, outcome))
            || self.nodes[node].flight != Some(flight)
        {
            return Ok(());
        }
        let Some(seq) = outcome else {
            self.tell(|world| format!("{} is refused by the fence", world.nodes[node].name));
            self.end_session(node);
            return Ok(());
        };
        self.release(node, seq)?;
        self.pump(node)
    }

    pub(super) fn give_up(&mut self, node: usize, session: u64, flight: u64) -> Checked {
        if self.nodes[node].flight != Some(flight)
            || !self.is_for(node, session, || Event::GiveUp(node, session, flight))
        {
            return Ok(());
        }
        if is_planted(Bug::UnknownTakenForStored) {
            let seq = self.log.last(self.nodes[node].service);
            self.release(node, seq)?;
            return self.pump(node);
        }
        self.tell(|world| format!("{} does not know what became of its commit", world.nodes[node].name));
        self.end_session(node);
        Ok(())
    }

    fn release(&mut self, node: usize, seq: u64) -> Checked {
        let it = &mut self.nodes[node];
        it.flight = None;
        let service = it.service;
        let Some(engine) = &mut it.engine else { return Ok(()) };
        let Left { effects, events, snapshot } = engine.acknowledged(seq);
        if let Some(snapshot) = snapshot {
            self.snapshots.insert(service, snapshot);
        }
        for (_, event) in &events {
            self.facts.announced(event)?;
        }
        for effect in effects {
            self.carry_out(node, effect)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, node: usize, effect: Effect) -> Checked {
        let session = self.nodes[node].session;
        match effect {
            Effect::Answer { token, reply } => {
                let Some((id, asked)) = self.nodes[node].asked.remove(&token) else { return Ok(()) };
                self.reply(id, &asked, reply)
            }
            Effect::AnswerDocument { token, bucket: _, key, or } => {
                self.coverage.branch(Branch::DocumentRead);
                let Some((id, asked)) = self.nodes[node].asked.remove(&token) else { return Ok(()) };
                let run: Option<RunId> = key.parse().ok();
                match run.and_then(|run| Some((run, *self.documents.get(&run)?))) {
                    Some((run, status)) => {
                        self.facts.shown(run, status, asked.sent)?;
                        // Only its status was kept here.
                        self.pass_on(id, Ok(Json::null()));
                        Ok(())
                    }
                    None => self.reply(id, &asked, Err(or)),
                }
            }
            Effect::Publish(publication) => {
                self.facts.published(&publication)?;
                if publication.subject.ends_with(".progress") {
                    let term = self.nodes[node].engine.as_ref().map_or(0, |engine| engine.term());
                    self.facts.told(&publication, term, self.now)?;
                }
                let target = publication.subject.strip_prefix("baton.to.").and_then(|rest| rest.split_once('.'));
                let Some((agent, verb)) = target else { return Ok(()) };
                let Some(who) = self.workload.agents.iter().position(|(id, _)| id.as_str() == agent) else {
                    return Ok(());
                };
                let unreadable = |error: serde_json::Error| broken("every message can be read", error.to_string());
                let told = match verb {
                    "assign" => Told::Assign(vec![publication.body.read().map_err(unreadable)?]),
                    "assignments" => {
                        self.coverage.branch(Branch::AssignedTogether);
                        Told::Assign(publication.body.read::<Assignments>().map_err(unreadable)?.assignments)
                    }
                    "handoff" => Told::Offer(publication.body.read().map_err(unreadable)?),
                    "handed" => Told::Handed(publication.body.read().map_err(unreadable)?),
                    "restart" => Told::Restart(publication.body.read().map_err(unreadable)?),
                    _ => {
                        self.coverage.branch(Branch::Recalled);
                        Told::Cancel(publication.body.read().map_err(unreadable)?)
                    }
                };
                let told = Rc::new(told);
                for passage in self.passages().into_iter().flatten() {
                    self.after(passage, Event::ToAgent(who, Rc::clone(&told)));
                }
                Ok(())
            }
            Effect::Ask { service: _, endpoint, body, tag } => {
                let request = ResourceRequest::decode(endpoint, "", body.as_str().as_bytes())
                    .map_err(|rejection| broken("every question can be read", rejection.to_string()))?;
                if let ResourceRequest::Assign(asked) = &request {
                    let (term, time) =
                        self.nodes[node].engine.as_ref().map_or((0, 0), |engine| (engine.term(), engine.time()));
                    self.facts.placements_asked((node, session, term), asked, time)?;
                }
                self.ask(Asker::Node(node, session, tag), AnyRequest::Resource(request), false);
                Ok(())
            }
            Effect::Keep { bucket: _, key, body } => {
                self.keeping += 1;
                let wait = if self.calm { 300 } else { self.draws.between(300, 500_000) };
                self.after(wait, Event::Keep(node, session, key, body));
                Ok(())
            }
            Effect::Span(_) | Effect::Measure(_) => Ok(()),
        }
    }

    pub(super) fn keep(&mut self, node: usize, session: u64, key: &str, body: &Json) -> Checked {
        self.keeping -= 1;
        // What waited to be kept is gone with the session.
        if self.nodes[node].session != session {
            return Ok(());
        }
        let view: RunView = body.read().map_err(|error| broken("every document can be read", error.to_string()))?;
        self.facts.kept(&view)?;
        if key != view.run.to_string() {
            return Err(broken("a document is kept under its run's id", key.to_owned()));
        }
        self.documents.insert(view.run, view.status);
        Ok(())
    }

    fn reply(&mut self, id: u64, asked: &Asked, reply: Reply) -> Checked {
        self.facts.answered(asked, &reply)?;
        if let Err(rejection) = &reply {
            match (rejection.code, &asked.request) {
                (Code::StaleLease, AnyRequest::Workflow(_)) => self.coverage.branch(Branch::ReportRefused),
                (Code::AgentReplaced, _) => self.coverage.branch(Branch::Replaced),
                (Code::Overloaded, _) if rejection.message.contains("the pressure is") => {
                    self.coverage.branch(Branch::Pressed);
                }
                (Code::Overloaded, _) => self.coverage.branch(Branch::Overloaded),
                (Code::PoolExhausted, _) => self.coverage.branch(Branch::Exhausted),
                (Code::PoolInUse, _) => self.coverage.branch(Branch::PoolInUse),
                (Code::KeyConflict, _) => self.coverage.branch(Branch::KeyConflict),
                (Code::Unavailable, _) => self.coverage.branch(Branch::ParkedInVain),
                _ => {}
            }
        }
        let is_held = |answer: &Json| answer.as_str().contains("while the pressure is");
        if matches!(asked.request, AnyRequest::Resource(ResourceRequest::Assign(_)))
            && reply.as_ref().is_ok_and(is_held)
        {
            self.coverage.branch(Branch::HeldBack);
        }
        self.pass_on(id, reply);
        Ok(())
    }

    /// An answer goes to who asked, if it is not lost.
    fn pass_on(&mut self, id: u64, reply: Reply) {
        if let Some(passage) = self.passage() {
            self.after(passage, Event::Answer(id, u32::MAX, Some(Rc::new(reply))));
        }
    }

    // What comes in.

    pub(super) fn deliver_to(&mut self, node: usize, session: u64, id: u64, asked: &Rc<Asked>) -> Checked {
        let again = Rc::clone(asked);
        if !self.is_for(node, session, || Event::DeliverTo(node, session, id, again)) {
            return Ok(());
        }
        let now = self.nodes[node].now(self.now);
        let it = &mut self.nodes[node];
        it.tokens += 1;
        let token = it.tokens;
        it.asked.insert(token, (id, Rc::clone(asked)));
        if let Some(engine) = &mut it.engine {
            engine.request(token, &asked.request, now);
        }
        self.pump(node)
    }

    /// An instance hears what it asked of another.
    pub(super) fn told_node(&mut self, node: usize, session: u64, tag: u64, reply: Option<&Reply>) -> Checked {
        if self.nodes[node].session != session {
            return Ok(());
        }
        let now = self.nodes[node].now(self.now);
        let reply = match reply {
            Some(reply) => reply.clone(),
            None => {
                self.coverage.branch(Branch::AskFailed);
                Err(baton_protocol::Rejection::new(Code::Unavailable, "no answer"))
            }
        };
        let lacking = |json: &Json| {
            json.read().is_ok_and(|a: baton_protocol::request::AssignAnswer| {
                a.refused.iter().any(|refusal| refusal.rejection.code == Code::PoolExhausted)
            })
        };
        if reply.as_ref().is_ok_and(lacking) {
            self.coverage.branch(Branch::PoolLacking);
        }
        let refused =
            |json: &Json| json.read().is_ok_and(|a: baton_protocol::request::AssignAnswer| !a.refused.is_empty());
        if reply.as_ref().is_ok_and(refused) {
            self.coverage.branch(Branch::PlacementRefused);
            self.facts.placement_refused(node);
        }
        if let Some(engine) = &mut self.nodes[node].engine {
            engine.answered(tag, reply, now);
        }
        self.pump(node)
    }

    // Time.

    pub(super) fn tick(&mut self, node: usize, session: u64) -> Checked {
        if !self.is_for(node, session, || Event::Tick(node, session)) {
            return Ok(());
        }
        if self.nodes[node].tick_at.is_some_and(|at| at <= self.now) {
            self.nodes[node].tick_at = None;
        }
        let now = self.nodes[node].now(self.now);
        if let Some(engine) = &mut self.nodes[node].engine
            && engine.deadline().is_some_and(|deadline| deadline <= now)
        {
            engine.tick(now);
        }
        self.pump(node)
    }

    /// Sees to it that an instance is woken at its deadline.
    pub(super) fn retick(&mut self, node: usize) {
        let now = self.nodes[node].now(self.now);
        let Node { engine, session, tick_at, .. } = &mut self.nodes[node];
        let Some(deadline) = engine.as_ref().and_then(|engine| engine.deadline()) else { return };
        let at = self.now + 1000 * deadline.saturating_sub(now).max(1);
        if tick_at.is_none_or(|tick| tick > at) {
            *tick_at = Some(at);
            let session = *session;
            self.at(at, Event::Tick(node, session));
        }
    }

    /// At rest, whoever follows and has read everything has the state that a replay gives.
    pub(super) fn followers_agree(&self) -> Checked {
        for node in &self.nodes {
            let place = SERVICES.iter().position(|of| *of == node.service).unwrap_or(0);
            let Some(engine) = &node.engine else { continue };
            if engine.is_leading() || engine.position() != self.log.end() {
                continue;
            }
            if let Some(difference) = engine.difference(self.shadows[place].state()) {
                let text = format!("{} at message {}\n{difference}", node.name, self.log.end());
                return Err(broken("live state equals replayed state", text));
            }
        }
        Ok(())
    }
}

fn unreadable(error: &ReadError) -> crate::Violation {
    broken("the log can be read", error.to_string())
}
