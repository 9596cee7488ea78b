//! Handoffs: a task goes from one agent to another, with what was done so far.
//!
//! One record moves the lease: [`HandedOver`] ends the giver's and begins the taker's. Until then the giver holds the task,
//! and may report it, which ends the offer too. An offer stands for its time and no longer, and is told to the taker with each
//! heartbeat until it is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Effect, Publication, Reply, Turn, answer};
use baton_protocol::amount::covers;
use baton_protocol::handoff::{HandedOver, HandoffEnded, HandoffOffered, Handover};
use baton_protocol::message::MessageType;
use baton_protocol::record::{ResourceRecord, Stamp};
use baton_protocol::request::{
    AcknowledgeHandoff, AskHandoff, HandoffAcknowledged, HandoffAnswer, HandoffAsked, HandoffOffer, HandoffOpen,
    MAX_JSON_BYTES, OfferHandoff,
};
use baton_protocol::trace::{Span, SpanKind, part_span, task_span};
use baton_protocol::{AgentId, Code, Json, LeaseId, Millis, Number, Rejection, Resources, subject};
use serde::{Deserialize, Serialize};

use crate::lease::{self, json};
use crate::task::Open;
use crate::{ResourceManager, agent, silence};

/// How long an offer stands if nothing is said, and at the most.
const TIMEOUT_MS: Millis = 30_000;
const MAX_TIMEOUT_MS: Millis = 3_600_000;
/// The longest reason, in bytes.
const MAX_REASON_BYTES: usize = 2000;
/// About the most of offers that the answer to one heartbeat carries. The next one carries on.
const MAX_OFFERS_BYTES: usize = 256 * 1024;

/// The offers that stand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Handoffs {
    offers: BTreeMap<Number, Arc<Offer>>,
    /// By the giver's lease: of each there is one at a time.
    by_lease: BTreeMap<LeaseId, Number>,
    by_taker: BTreeMap<AgentId, BTreeSet<Number>>,
    due: BTreeSet<(Millis, Number)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Offer {
    record: HandoffOffered,
    at: Millis,
}

/// How a task came to who holds it, if another agent handed it over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Carried {
    pub(crate) handover: Handover,
    /// Since when the task is under way: its time does not begin anew.
    pub(crate) begun: Millis,
}

impl Handoffs {
    pub(crate) fn offered(&mut self, stamp: Stamp, record: &HandoffOffered) {
        let number = stamp.number;
        self.by_lease.insert(record.lease, number);
        self.by_taker.entry(record.to.clone()).or_default().insert(number);
        self.due.insert((record.until, number));
        self.offers.insert(number, Arc::new(Offer { record: record.clone(), at: stamp.at }));
    }

    /// An offer is over, however.
    pub(crate) fn over(&mut self, handoff: Number) -> Option<HandoffOffered> {
        let Offer { record, .. } = Arc::unwrap_or_clone(self.offers.remove(&handoff)?);
        self.by_lease.remove(&record.lease);
        self.due.remove(&(record.until, handoff));
        if let Some(to_it) = self.by_taker.get_mut(&record.to) {
            to_it.remove(&handoff);
            if to_it.is_empty() {
                self.by_taker.remove(&record.to);
            }
        }
        Some(record)
    }

    /// Whether the task of a lease is offered to another agent.
    pub(crate) fn is_offered(&self, lease: LeaseId) -> bool {
        self.by_lease.contains_key(&lease)
    }

    /// A lease is over, and with it the offer of its task.
    pub(crate) fn lease_over(&mut self, lease: LeaseId) {
        if let Some(handoff) = self.by_lease.get(&lease).copied() {
            self.over(handoff);
        }
    }

    /// An agent holds nothing any more. What it was offered it may still take, when it is back.
    pub(crate) fn giver_gone(&mut self, agent: &AgentId) {
        let of_it = self.offers.iter().filter(|(_, offer)| offer.record.from == *agent).map(|(number, _)| *number);
        for handoff in of_it.collect::<Vec<_>>() {
            self.over(handoff);
        }
    }

    /// What an agent is offered, the most urgent first.
    pub(crate) fn to(&self, agent: &AgentId) -> Vec<(Number, &Offer)> {
        let numbers = self.by_taker.get(agent).into_iter().flatten();
        let mut offers: Vec<_> = numbers.filter_map(|n| Some((*n, self.offers.get(n)?.as_ref()))).collect();
        offers.sort_by_key(|(number, offer)| (std::cmp::Reverse(offer.record.priority), *number));
        offers
    }

    /// When the first offer is over.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.due.first().map(|(until, _)| *until).filter(|_| !is_planted(Bug::OfferNeverOver))
    }
}

/// An agent offers what it holds to another one.
pub(crate) fn offer(turn: &mut Turn<'_, ResourceManager>, from: &AgentId, request: OfferHandoff) -> Reply {
    lease::received(turn, "handoff");
    let open = open(turn, from.clone(), request)?;
    let now = turn.now();
    turn.soft.heard.note(from, now);
    answer(&open)
}

/// Somebody who does not hold a task asks for it to be handed over: it is offered in the name of who does.
pub(crate) fn ask(turn: &mut Turn<'_, ResourceManager>, request: AskHandoff) -> Reply {
    let AskHandoff { run, stage, from: known, to, reason, timeout_ms } = request;
    let state = turn.state();
    let found = state.tasks.of_part(run, &stage).ok_or_else(|| {
        Rejection::new(Code::UnknownRun, format!("there is no run {run} under way: it has ended, or never was"))
    })?;
    let not_ready = |why: &str| Rejection::new(Code::NotReady, format!("stage {stage} of run {run} {why}"));
    let (task, open_task) =
        found.ok_or_else(|| not_ready("has no task under way: it waits for others, or has ended"))?;
    let held = open_task.lease.and_then(|lease| Some((lease, state.leases.get(lease)?)));
    let (lease, held) = held.ok_or_else(|| not_ready("is held by no agent now: there is nobody to hand it over"))?;
    let from = held.agent.clone();
    if let Some(known) = known.filter(|known| *known != from) {
        // It may be that very handoff that was asked for, and the answer got lost.
        let handover = held.carried.as_ref().map(|carried| &carried.handover).filter(|h| h.from == known);
        let handoff = handover.map(|handover| handover.handoff).ok_or_else(|| {
            let message = format!("task {task} is held by {from}, and not by {known}");
            Rejection::new(Code::StaleLease, message)
        })?;
        return answer(&HandoffAsked { handoff, task, from: known, to: from, timeout_ms: 0 });
    }
    let stands = state.handoffs.by_lease.get(&lease).and_then(|number| state.handoffs.offers.get(number));
    let to = match (to, stands) {
        (Some(to), _) => to,
        (None, Some(offer)) => offer.record.to.clone(),
        (None, None) => most_free(state, open_task, &from, &held.resources).ok_or_else(|| {
            let message = format!("no agent but {from} can do {task} and has room for it now");
            Rejection::new(Code::NoCapacity, message)
        })?,
    };
    let reason = if reason.is_empty() { "somebody asked for it".to_owned() } else { reason };
    let (state, results, resources, priority) = (Json::default(), Json::default(), None, 0);
    let offer = OfferHandoff { lease, to: to.clone(), state, results, resources, reason, priority, timeout_ms };
    let HandoffOpen { handoff, timeout_ms } = open(turn, from.clone(), offer)?;
    answer(&HandoffAsked { handoff, task, from, to, timeout_ms })
}

/// Of the agents that can take a task now the one that has the most of its slots free.
fn most_free(state: &ResourceManager, open: &Open, from: &AgentId, resources: &Resources) -> Option<AgentId> {
    let others = state.agents.iter_present().filter(|(agent, _)| *agent != from);
    let able = others.filter(|(agent, _)| lease::may_go_to(state, open, agent, resources).is_ok());
    let rank = |(agent, entry): &(&AgentId, &agent::Agent)| {
        let (held, slots) = (state.leases.count_of(agent) as u64, u64::from(entry.record.slots).max(1));
        // In millionths, so that it is exact enough for any number of slots, and the same everywhere.
        (1_000_000 * held / slots, std::cmp::Reverse(entry.record.priority), (*agent).clone())
    };
    able.min_by_key(rank).map(|(agent, _)| agent.clone())
}

/// Opens an offer, or finds that it stands already.
fn open(turn: &mut Turn<'_, ResourceManager>, from: AgentId, request: OfferHandoff) -> Result<HandoffOpen, Rejection> {
    check(&request)?;
    let OfferHandoff { lease, to, state, results, resources, reason, priority, timeout_ms } = request;
    let now = turn.now();
    let state_of = turn.state();
    let held = state_of.leases.held_by(lease, &from)?;
    if let Some((handoff, offer)) =
        state_of.handoffs.by_lease.get(&lease).and_then(|n| Some((n, state_of.handoffs.offers.get(n)?)))
    {
        if offer.record.to == to {
            let timeout_ms = offer.record.until.saturating_sub(now);
            return Ok(HandoffOpen { handoff: *handoff, timeout_ms });
        }
        let message = format!("lease {lease} is offered to {} already, as handoff {handoff}", offer.record.to);
        return Err(Rejection::new(Code::NotReady, message).retry_after(offer.record.until.saturating_sub(now)));
    }
    let task = held.task.clone();
    if let Some(wanted) = &resources
        && let Err(name) = covers(&held.resources, wanted)
    {
        let of = |resources: &Resources| resources.get(&name).copied().unwrap_or_default();
        let (wanted, has) = (of(wanted), of(&held.resources));
        let message =
            format!("of {name} {wanted} are to go over, and lease {lease} has {has}: there is not more to give");
        return Err(Rejection::invalid(message));
    }
    let resources = resources.unwrap_or_else(|| held.resources.clone());
    if to == from {
        return Err(Rejection::invalid(format!("agent {from} holds the task already: it can not hand it to itself")));
    }
    let open = state_of.tasks.open(&task);
    if open.is_some_and(|open| open.second.is_some()) {
        let message =
            format!("two agents are at task {task}, and the first one that reports it ends it: it is not handed over");
        return Err(Rejection::new(Code::NotReady, message));
    }
    let taker = state_of.agents.present(&to).ok_or_else(|| agent::unknown(&to))?;
    if let Some(open) = open {
        lease::may_do(taker, open)?;
    }
    let timeout_ms = timeout_ms.unwrap_or(TIMEOUT_MS);
    let until = now.saturating_add(timeout_ms);
    let record = HandoffOffered { lease, task, from, to, resources, state, results, reason, priority, until };
    let handoff = turn.grant(ResourceRecord::HandoffOffered(record.clone())).0;
    if let Some(offer) = offer_of(turn.state(), handoff, &record, now) {
        tell(turn, subject::handoff(&record.to), MessageType::HandoffInitiate, &record, json(&offer));
        lease::sent(turn, "handoff");
    }
    Ok(HandoffOpen { handoff, timeout_ms })
}

fn check(request: &OfferHandoff) -> Result<(), Rejection> {
    let bytes = request.state.size() + request.results.size();
    if bytes > MAX_JSON_BYTES {
        let message = format!(
            "state and results have {bytes} bytes; at most {MAX_JSON_BYTES} are allowed: keep what is large elsewhere and pass \
             references"
        );
        return Err(Rejection::new(Code::TooLarge, message));
    }
    short(&request.reason)?;
    match request.timeout_ms {
        Some(timeout_ms) if !(1..=MAX_TIMEOUT_MS).contains(&timeout_ms) => {
            Err(Rejection::invalid(format!("timeout_ms is {timeout_ms}; it must be from 1 to {MAX_TIMEOUT_MS}")))
        }
        _ => Ok(()),
    }
}

fn short(reason: &str) -> Result<(), Rejection> {
    let length = reason.len();
    if length > MAX_REASON_BYTES {
        let message = format!("reason has {length} bytes; at most {MAX_REASON_BYTES} are allowed");
        return Err(Rejection::new(Code::TooLarge, message));
    }
    Ok(())
}

/// An offer as its taker is told.
fn offer_of(state: &ResourceManager, handoff: Number, record: &HandoffOffered, now: Millis) -> Option<HandoffOffer> {
    let open = state.tasks.open(&record.task)?;
    Some(HandoffOffer {
        handoff,
        from: record.from.clone(),
        run: record.task.run,
        stage: record.task.stage.clone(),
        workflow: state.tasks.workflow_of(record.task.run)?.clone(),
        agent_type: open.agent_type.clone(),
        task: record.task.clone(),
        state: record.state.clone(),
        results: record.results.clone(),
        resources: record.resources.clone(),
        reason: record.reason.clone(),
        priority: record.priority,
        timeout_ms: record.until.saturating_sub(now),
    })
}

/// What an agent is offered and has not answered, for the answer to its heartbeat.
pub(crate) fn offered(turn: &Turn<'_, ResourceManager>, agent: &AgentId) -> Vec<HandoffOffer> {
    let (state, now) = (turn.state(), turn.now());
    let mut bytes = 0;
    let offers = state.handoffs.to(agent).into_iter().filter(|(_, offer)| offer.record.until > now);
    let offers = offers.filter_map(|(number, offer)| offer_of(state, number, &offer.record, now));
    let fits = |offer: &HandoffOffer| {
        let first = bytes == 0;
        bytes += 512 + offer.state.size() + offer.results.size();
        first || bytes <= MAX_OFFERS_BYTES
    };
    offers.take_while(fits).collect()
}

/// An agent takes what it was offered, or does not. Who has taken it already is answered the same again.
pub(crate) fn acknowledge(turn: &mut Turn<'_, ResourceManager>, agent: &AgentId, request: AcknowledgeHandoff) -> Reply {
    lease::received(turn, "acknowledge");
    let AcknowledgeHandoff { handoff, accepted, reason, response } = request;
    short(&reason)?;
    if response.size() > MAX_JSON_BYTES {
        let message = format!("response has {} bytes; at most {MAX_JSON_BYTES} are allowed", response.size());
        return Err(Rejection::new(Code::TooLarge, message));
    }
    let now = turn.now();
    let state = turn.state();
    let offer = state.handoffs.offers.get(&handoff).filter(|offer| {
        let to_it = offer.record.to == *agent || is_planted(Bug::OfferTakenByAnyone);
        to_it && (offer.record.until > now || is_planted(Bug::OfferNeverOver))
    });
    let Some(offer) = offer.map(Arc::clone) else {
        let taken = state.leases.taken(agent, handoff).filter(|_| accepted);
        let message = || format!("there is no handoff {handoff} to agent {agent}: it is over, or never was");
        let lease = taken.ok_or_else(|| Rejection::new(Code::UnknownHandoff, message()))?;
        return answer(&HandoffAcknowledged { assignment: lease::assignment(turn, lease) });
    };
    let HandoffOffered { lease, ref task, ref from, ref resources, .. } = offer.record;
    if !accepted {
        turn.soft.heard.note(agent, now);
        end(turn, handoff, &offer.record, true, reason, response);
        return answer(&HandoffAcknowledged { assignment: None });
    }
    if let Some(open) = state.tasks.open(task) {
        lease::may_go_to(state, open, agent, resources)?;
    }
    let pools = lease::paid_by(turn, lease, agent)?;
    turn.soft.heard.note(agent, now);
    let record = HandedOver {
        handoff,
        lease,
        task: task.clone(),
        from: from.clone(),
        to: agent.clone(),
        resources: resources.clone(),
        pools,
    };
    let taken = turn.grant(ResourceRecord::HandedOver(record));
    silence::heard(turn, taken);
    turn.measure_value("agent_handoff_duration_seconds", &[], now.saturating_sub(offer.at) as f64 / 1000.0);
    show(turn, &offer, None);
    tell_giver(turn, handoff, &offer.record, true, String::new(), response);
    for changed in [from, agent] {
        lease::show_utilization(turn, changed);
    }
    let assignment = lease::assignment(turn, taken);
    lease::delivered(turn, taken);
    answer(&HandoffAcknowledged { assignment })
}

/// Ends the offers whose time is up.
pub(crate) fn tick(turn: &mut Turn<'_, ResourceManager>) {
    while let Some(handoff) = due(turn) {
        let Some(offer) = turn.state().handoffs.offers.get(&handoff).map(Arc::clone) else { return };
        let reason = format!(
            "agent {} has not answered within {} ms",
            offer.record.to,
            offer.record.until.saturating_sub(offer.at)
        );
        end(turn, handoff, &offer.record, false, reason, Json::default());
    }
}

fn due(turn: &Turn<'_, ResourceManager>) -> Option<Number> {
    let first = turn.state().handoffs.due.first().filter(|(until, _)| *until <= turn.now());
    first.map(|(_, handoff)| *handoff).filter(|_| !is_planted(Bug::OfferNeverOver))
}

/// The giver goes on.
fn end(
    turn: &mut Turn<'_, ResourceManager>,
    handoff: Number,
    record: &HandoffOffered,
    rejected: bool,
    reason: String,
    response: Json,
) {
    let HandoffOffered { lease, task, from, to, .. } = record.clone();
    let offer = turn.state().handoffs.offers.get(&handoff).map(Arc::clone);
    let ended = HandoffEnded { handoff, lease, task, from, to, rejected, reason: reason.clone() };
    turn.emit(ResourceRecord::HandoffEnded(ended));
    if let Some(offer) = offer {
        show(turn, &offer, Some(&reason));
    }
    tell_giver(turn, handoff, record, false, reason, response);
}

fn tell_giver(
    turn: &mut Turn<'_, ResourceManager>,
    handoff: Number,
    record: &HandoffOffered,
    accepted: bool,
    reason: String,
    response: Json,
) {
    let (lease, task, to) = (record.lease, record.task.clone(), record.to.clone());
    let body = json(&HandoffAnswer { handoff, lease, task, to, accepted, reason, response });
    tell(turn, subject::handed(&record.from), MessageType::HandoffAcknowledge, record, body);
    lease::sent(turn, "handoff_acknowledge");
}

fn tell(turn: &mut Turn<'_, ResourceManager>, subject: String, kind: MessageType, record: &HandoffOffered, body: Json) {
    let (run, trace) = (Some(record.task.run), Some(turn.state().tasks.trace(&record.task)));
    turn.publish(Publication { subject, body, kind, run, trace });
}

/// Shows an offer as a part of its task's span, from when it was made to when it was answered.
fn show(turn: &mut Turn<'_, ResourceManager>, offer: &Offer, error: Option<&str>) {
    let (now, record) = (turn.now(), &offer.record);
    let trace = turn.state().tasks.trace(&record.task);
    if !turn.shows(trace) {
        return;
    }
    turn.effect(Effect::Span(Span {
        context: trace.at(part_span(&record.task, &format!("handoff {}", record.lease))),
        parent: Some(task_span(&record.task)),
        name: "handoff".to_owned(),
        kind: SpanKind::Internal,
        start: offer.at,
        end: now,
        attributes: vec![
            ("baton.run.id", record.task.run.to_string()),
            ("baton.stage.name", record.task.part().to_string()),
            ("baton.agent.id", record.from.to_string()),
            ("baton.handoff.to", record.to.to_string()),
            ("baton.handoff.reason", record.reason.clone()),
        ],
        error: error.map(str::to_owned),
    }));
}

/// How a task came to an agent, by the offer that it accepted.
pub(crate) fn carried(offer: HandoffOffered, handoff: Number, begun: Millis) -> Carried {
    let HandoffOffered { from, state, results, reason, priority, .. } = offer;
    Carried { handover: Handover { handoff, from, state, results, reason, priority }, begun }
}
