//! Agents: who is there, what each can do and has, and when it was last heard of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Reply, Shelves, Turn, answer};
use baton_protocol::alert::{AlertKind, AlertSeverity};
use baton_protocol::amount::covers;
use baton_protocol::record::{AgentLeft, AgentRegistered, LeftReason, ResourceRecord, Stamp};
use baton_protocol::request::{
    AgentList, AgentStatus, AgentView, Done, Heartbeat, HeartbeatAnswer, LeaseView, Leave, ListAgents, RegisterAgent,
    Registered,
};
use baton_protocol::{AgentId, Capability, Code, LeaseId, Metadata, Millis, Number, Rejection};
use serde::{Deserialize, Serialize};

use crate::{ResourceManager, acquire, alert, breaker, handoff, lease};

/// How many agents that are gone are kept, to be shown.
const MAX_GONE: usize = 1000;
/// How many sessions that were replaced are remembered of each agent.
const MAX_REPLACED: usize = 8;
/// The longest session, in bytes.
const MAX_SESSION_BYTES: usize = 128;
/// The most slots of an agent.
const MAX_SLOTS: u32 = 1024;
/// The most capabilities and metadata of an agent, in bytes of JSON.
const MAX_CAPABILITIES_BYTES: usize = 16 * 1024;
/// The most kinds of resources of an agent.
const MAX_RESOURCES: usize = 64;

/// The registry: agents that are there, and the latest of those that are gone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Kept", into = "Kept")]
pub(crate) struct Agents {
    agents: Shelves<AgentId, Arc<Agent>>,
    /// Those that are gone, by the number of the record that said so.
    gone: BTreeMap<Number, AgentId>,
    /// How many slots those have that are there. Follows from the agents.
    slots: u64,
}

/// What a snapshot keeps of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    agents: Shelves<AgentId, Arc<Agent>>,
    gone: BTreeMap<Number, AgentId>,
}

impl From<Kept> for Agents {
    fn from(Kept { agents, gone }: Kept) -> Self {
        let slots = agents.iter().map(|(_, agent)| agent.slots()).sum();
        Self { agents, gone, slots }
    }
}

impl From<Agents> for Kept {
    fn from(Agents { agents, gone, slots: _ }: Agents) -> Self {
        Self { agents, gone }
    }
}

/// An agent, as it registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Agent {
    /// What it said of itself.
    pub(crate) record: AgentRegistered,
    registered_at: Millis,
    /// The record that said it is gone.
    gone: Option<Number>,
    /// Sessions that another one has replaced, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    replaced: Vec<String>,
}

impl Agent {
    /// Whether it can do what asks for this: it is of this type, or has a capability of this name.
    pub(crate) fn can(&self, what: &Capability) -> bool {
        self.record.agent_type == *what || self.record.capabilities.contains_key(what)
    }

    /// How many slots there are of it: none if it is gone.
    fn slots(&self) -> u64 {
        if self.gone.is_none() { u64::from(self.record.slots) } else { 0 }
    }

    /// What it says of a capability.
    pub(crate) fn metadata(&self, capability: &Capability) -> Option<&Metadata> {
        self.record.capabilities.get(capability)
    }

    /// Whether it can do this, and the capability's metadata are as they should be.
    fn matches(&self, request: &ListAgents) -> bool {
        let Some(capability) = &request.capability else { return true };
        self.can(capability) && request.requires.are_met(self.metadata(capability))
    }
}

impl Agents {
    /// Takes an agent in. True if this is another session than before: nothing is held in it.
    pub(crate) fn registered(&mut self, stamp: Stamp, record: &AgentRegistered) -> bool {
        let before = self.agents.get(&record.agent);
        self.slots = self.slots - before.map_or(0, |agent| agent.slots()) + u64::from(record.slots);
        if let Some(number) = before.and_then(|agent| agent.gone) {
            self.gone.remove(&number);
        }
        let kept = before.filter(|agent| agent.gone.is_none() && agent.record.session == record.session);
        let registered_at = kept.map_or(stamp.at, |agent| agent.registered_at);
        let another = kept.is_none();
        let mut replaced = before.map(|agent| agent.replaced.clone()).unwrap_or_default();
        replaced.extend(before.map(|agent| agent.record.session.clone()).filter(|session| *session != record.session));
        let forgotten = replaced.len().saturating_sub(MAX_REPLACED);
        replaced.drain(..forgotten);
        let agent = Agent { record: record.clone(), registered_at, gone: None, replaced };
        self.agents.insert(record.agent.clone(), Arc::new(agent));
        another
    }

    /// Takes an agent out.
    pub(crate) fn left(&mut self, stamp: Stamp, agent: &AgentId) {
        let Some(entry) = self.agents.change(agent).filter(|entry| entry.gone.is_none()) else { return };
        self.slots -= u64::from(entry.record.slots);
        entry.gone = Some(stamp.number);
        self.gone.insert(stamp.number, agent.clone());
        while self.gone.len() > MAX_GONE {
            if let Some((_, oldest)) = self.gone.pop_first() {
                self.agents.remove(&oldest);
            }
        }
    }

    /// How many slots the agents have that are there.
    pub(crate) fn slots(&self) -> u64 {
        self.slots
    }

    /// The agent, if it is there.
    pub(crate) fn present(&self, agent: &AgentId) -> Option<&Agent> {
        self.agents.get(agent).map(Arc::as_ref).filter(|agent| agent.gone.is_none())
    }

    pub(crate) fn is_present(&self, agent: &AgentId) -> bool {
        self.present(agent).is_some()
    }

    /// The agents that are there, by id.
    pub(crate) fn iter_present(&self) -> impl Iterator<Item = (&AgentId, &Agent)> {
        self.agents.iter().filter(|(_, agent)| agent.gone.is_none()).map(|(id, agent)| (id, agent.as_ref()))
    }

    fn all_present(&self) -> impl Iterator<Item = &AgentId> {
        self.agents.iter().filter(|(_, agent)| agent.gone.is_none()).map(|(id, _)| id)
    }

    /// A session that another one has replaced is over, also where its registration comes late or once more: the process
    /// that the agent has now must not be replaced by one that is gone.
    fn may_register(&self, agent: &AgentId, session: &str) -> Result<(), Rejection> {
        match self.agents.get(agent).filter(|entry| entry.replaced.iter().any(|replaced| replaced == session)) {
            Some(entry) if !is_planted(Bug::ReplacedComesBack) => Err(replaced(agent, &entry.record.session, session)),
            _ => Ok(()),
        }
    }

    /// The agent, if it is there in this session.
    fn in_session(&self, agent: &AgentId, session: &str) -> Result<&Agent, Rejection> {
        let entry = self.present(agent).ok_or_else(|| unknown(agent))?;
        if entry.record.session == session {
            return Ok(entry);
        }
        Err(replaced(agent, &entry.record.session, session))
    }
}

fn replaced(agent: &AgentId, by: &str, session: &str) -> Rejection {
    let message = format!(
        "agent {agent} has registered again with session {by:?}; session {session:?} is over: this process should stop"
    );
    Rejection::new(Code::AgentReplaced, message)
}

/// The agent is not there.
pub(crate) fn unknown(agent: &AgentId) -> Rejection {
    Rejection::new(Code::UnknownAgent, format!("agent {agent} is not registered: it should register"))
}

/// When agents were last heard of.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    at: BTreeMap<AgentId, (Millis, Known)>,
    order: BTreeSet<(Millis, AgentId)>,
}

/// How it is known that an agent was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It said something.
    Heard,
    /// A term began, or the leader slept: it is given time.
    Assumed,
}

impl Heard {
    /// The agent has said something.
    pub(crate) fn note(&mut self, agent: &AgentId, now: Millis) {
        self.set(agent, now, Known::Heard);
    }

    /// The agent is given time as if it had been heard of then.
    fn assume(&mut self, agent: &AgentId, at: Millis) {
        self.set(agent, at, Known::Assumed);
    }

    fn set(&mut self, agent: &AgentId, at: Millis, known: Known) {
        self.forget(agent);
        self.at.insert(agent.clone(), (at, known));
        self.order.insert((at, agent.clone()));
    }

    /// Everybody was silent for less by that, and was last heard of at `least` or later.
    fn forgive(&mut self, by: Millis, least: Millis) {
        for (agent, (at, known)) in &mut self.at {
            self.order.remove(&(*at, agent.clone()));
            (*at, *known) = (at.saturating_add(by).max(least), Known::Assumed);
            self.order.insert((*at, agent.clone()));
        }
    }

    fn forget(&mut self, agent: &AgentId) {
        if let Some((at, _)) = self.at.remove(agent) {
            self.order.remove(&(at, agent.clone()));
        }
    }

    /// When the one was heard of that was silent for longest.
    pub(crate) fn oldest(&self) -> Option<Millis> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Those that were last heard of at that time or before.
    fn silent_since(&self, at: Millis) -> Vec<AgentId> {
        self.order.iter().take_while(|(heard, _)| *heard <= at).map(|(_, agent)| agent.clone()).collect()
    }

    fn heard_at(&self, agent: &AgentId) -> Option<Millis> {
        self.at.get(agent).filter(|(_, known)| *known == Known::Heard).map(|(at, _)| *at)
    }
}

pub(crate) fn register(turn: &mut Turn<'_, ResourceManager>, agent: AgentId, request: RegisterAgent) -> Reply {
    lease::received(turn, "register");
    check(&request)?;
    turn.state().agents.may_register(&agent, &request.session)?;
    let RegisterAgent { session, agent_type, capabilities, resources, slots, priority, batches } = request;
    let record = AgentRegistered { agent, session, agent_type, capabilities, resources, slots, priority, batches };
    let state = turn.state();
    let before = state.agents.present(&record.agent);
    let same_session = before.filter(|before| before.record.session == record.session);
    if same_session.is_some() {
        // What it holds it keeps, so that must fit into what it has from now on.
        let slots_in_use = state.leases.count_of(&record.agent);
        let in_use = state.leases.in_use(&record.agent);
        let short = covers(&record.resources, &in_use).err().map(|name| name.to_string());
        let short = if slots_in_use > record.slots as usize { Some("slots".to_owned()) } else { short };
        if let Some(what) = short {
            let message = format!(
                "agent {} can not shrink its {what} now: its {slots_in_use} leases hold more; register so when they have \
                 ended",
                record.agent
            );
            return Err(Rejection::new(Code::NoCapacity, message).retry_after(turn.config().heartbeat_ms));
        }
    }
    let agent = record.agent.clone();
    if same_session.is_none_or(|before| before.record != record) {
        let another = same_session.is_none();
        if another {
            lease::forget_pushes(turn, &agent);
            breaker::hide(turn, &agent);
            acquire::forget_agent(turn, &agent);
        }
        turn.emit(ResourceRecord::AgentRegistered(record));
        alert::clear(turn, AlertKind::AgentLost, agent.as_str());
        if another {
            alert::clear(turn, AlertKind::AgentRestart, agent.as_str());
            alert::clear_breakers(turn, &agent);
        }
        lease::show_utilization(turn, &agent);
    }
    let now = turn.now();
    turn.soft.heard.note(&agent, now);
    let config = turn.config();
    answer(&Registered { heartbeat_ms: config.heartbeat_ms, lease_ms: config.lease_ms })
}

fn check(request: &RegisterAgent) -> Result<(), Rejection> {
    let session = &request.session;
    if session.is_empty() || session.len() > MAX_SESSION_BYTES {
        let length = session.len();
        return Err(Rejection::invalid(format!("session has {length} bytes; it must have 1 to {MAX_SESSION_BYTES}")));
    }
    if !(1..=MAX_SLOTS).contains(&request.slots) {
        return Err(Rejection::invalid(format!("slots is {}; it must be from 1 to {MAX_SLOTS}", request.slots)));
    }
    if request.resources.len() > MAX_RESOURCES {
        let count = request.resources.len();
        return Err(Rejection::new(Code::TooLarge, format!("{count} resources; at most {MAX_RESOURCES} are allowed")));
    }
    let bytes = serde_json::to_vec(&request.capabilities).map_or(usize::MAX, |text| text.len());
    if bytes > MAX_CAPABILITIES_BYTES {
        let message = format!("capabilities take {bytes} bytes of JSON; at most {MAX_CAPABILITIES_BYTES} are allowed");
        return Err(Rejection::new(Code::TooLarge, message));
    }
    Ok(())
}

pub(crate) fn heartbeat(turn: &mut Turn<'_, ResourceManager>, agent: &AgentId, request: &Heartbeat) -> Reply {
    lease::received(turn, "heartbeat");
    turn.state().agents.in_session(agent, &request.session)?;
    let now = turn.now();
    turn.soft.heard.note(agent, now);
    let holds: BTreeSet<LeaseId> = request.holds.iter().copied().collect();
    let drop = holds.iter().copied().filter(|lease| !turn.state().leases.is_of(*lease, agent)).collect();
    let start = match is_planted(Bug::HeartbeatDoesNotHeal) {
        true => Vec::new(),
        false => lease::undelivered(turn, agent, &holds),
    };
    let offers = handoff::offered(turn, agent);
    let restart = breaker::restart(turn.state(), agent).filter(|_| !is_planted(Bug::RestartNotTold));
    let (heartbeat_ms, lease_ms) = (turn.config().heartbeat_ms, turn.config().lease_ms);
    answer(&HeartbeatAnswer { start, drop, offers, restart, heartbeat_ms, lease_ms })
}

/// Leaving twice is leaving once: the answer may have got lost.
pub(crate) fn leave(turn: &mut Turn<'_, ResourceManager>, agent: &AgentId, request: &Leave) -> Reply {
    lease::received(turn, "leave");
    let entry = turn.state().agents.agents.get(agent);
    if entry.is_some_and(|entry| entry.gone.is_some() && entry.record.session == request.session) {
        return answer(&Done {});
    }
    turn.state().agents.in_session(agent, &request.session)?;
    take_out(turn, agent, LeftReason::Left);
    answer(&Done {})
}

fn take_out(turn: &mut Turn<'_, ResourceManager>, agent: &AgentId, reason: LeftReason) {
    turn.soft.heard.forget(agent);
    lease::forget_pushes(turn, agent);
    breaker::hide(turn, agent);
    acquire::forget_agent(turn, agent);
    if reason == LeftReason::Lost {
        let (held, ms) = (turn.state().leases.count_of(agent), turn.config().lease_ms);
        alert::raise(turn, AlertSeverity::Warning, AlertKind::AgentLost, agent.as_str(), || {
            format!("agent {agent} was not heard of for {ms} ms: what it held runs elsewhere (leases: {held})")
        });
    }
    turn.emit(ResourceRecord::AgentLeft(AgentLeft { agent: agent.clone(), reason }));
    alert::clear(turn, AlertKind::AgentRestart, agent.as_str());
    alert::clear_breakers(turn, agent);
    lease::show_utilization(turn, agent);
}

/// A new leader has heard of nobody: everybody is given the time of a lease.
pub(crate) fn begin_term(turn: &mut Turn<'_, ResourceManager>) {
    let now = turn.now();
    turn.soft.nothing_expires_before = now.saturating_add(turn.config().lease_ms);
    let present: Vec<_> = turn.state().agents.all_present().cloned().collect();
    for agent in &present {
        turn.soft.heard.assume(agent, now);
        lease::show_utilization(turn, agent);
    }
}

/// Takes out the agents that were not heard of for the time of a lease.
pub(crate) fn lose_the_silent(turn: &mut Turn<'_, ResourceManager>) {
    if is_planted(Bug::SilenceTolerated) {
        turn.soft.heard = Heard::default();
    }
    let silent = turn.soft.heard.silent_since(turn.now().saturating_sub(turn.config().lease_ms));
    for agent in silent {
        if turn.state().agents.is_present(&agent) {
            take_out(turn, &agent, LeftReason::Lost);
        } else {
            turn.soft.heard.forget(&agent);
        }
    }
}

/// Looks at the clock, which a leader does with everything it does, and at least once a heartbeat.
///
/// A leader that itself slept (a suspended laptop, a stalled process) can not tell an agent's silence from its own, and
/// one whose clock was put forward can not tell it from that. So what goes by between two looks beyond two heartbeats is
/// nobody's silence, and after it everybody has two heartbeats to be heard.
pub(crate) fn look(turn: &mut Turn<'_, ResourceManager>) {
    let (now, config) = (turn.now(), turn.config().clone());
    let last = turn.soft.looked.replace(now).unwrap_or(now);
    let gone_by = now.saturating_sub(last);
    if gone_by > 2 * config.heartbeat_ms {
        let grace = (2 * config.heartbeat_ms).min(config.lease_ms);
        let least = (now + grace).saturating_sub(config.lease_ms);
        turn.soft.heard.forgive(gone_by, least);
        turn.soft.silences.forgive(gone_by, now + grace);
        turn.soft.nothing_expires_before = turn.soft.nothing_expires_before.max(now.saturating_add(grace));
    }
}

pub(crate) fn list(turn: &mut Turn<'_, ResourceManager>, request: &ListAgents) -> Reply {
    if request.capability.is_none() && !request.requires.is_empty() {
        return Err(Rejection::invalid("metadata are a capability's: name the capability that should have them"));
    }
    let window = turn.config().breakers.window;
    let state = turn.state();
    let shown = state.agents.agents.iter().filter(|(_, agent)| request.gone || agent.gone.is_none());
    let shown = shown.filter(|(_, agent)| agent.matches(request));
    answer(&AgentList { agents: shown.map(|(id, agent)| view(state, &turn.soft.heard, window, id, agent)).collect() })
}

fn view(state: &ResourceManager, heard: &Heard, window: u32, id: &AgentId, agent: &Agent) -> AgentView {
    let lease =
        |(lease, held): (LeaseId, &lease::Lease)| LeaseView { lease, task: held.task.clone(), since: held.since };
    let leases: Vec<_> = state.leases.of(id).map(lease).collect();
    let status = match agent.gone {
        Some(_) => AgentStatus::Gone,
        None if leases.is_empty() => AgentStatus::Idle,
        None => AgentStatus::Busy,
    };
    let AgentRegistered { agent: _, session: _, agent_type, capabilities, resources, slots, priority, batches: _ } =
        &agent.record;
    AgentView {
        agent: id.clone(),
        status,
        agent_type: agent_type.clone(),
        capabilities: capabilities.clone(),
        resources: resources.clone(),
        in_use: state.leases.in_use(id),
        slots: *slots,
        leases,
        breakers: state.breakers.views(id, window),
        restart_asked: state.breakers.restart_asked(id),
        priority: *priority,
        registered_at: agent.registered_at,
        heard_at: heard.heard_at(id),
    }
}
