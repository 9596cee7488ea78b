//! The rules of handoffs: a task has one holder at every position of the log.

use std::collections::BTreeMap;

use baton_protocol::amount::covers;
use baton_protocol::handoff::{HandedOver, HandoffEnded, HandoffOffered};
use baton_protocol::record::Stamp;
use baton_protocol::request::{
    AcknowledgeHandoff, AskHandoff, HandoffAcknowledged, HandoffAnswer, HandoffAsked, HandoffOffer, OfferHandoff,
};
use baton_protocol::{AgentId, LeaseId, Number};

use super::{Checked, Facts, LATE, Lease, broken, hold};
use crate::coverage::Branch;

const ONE_HOLDER: &str = "a task that is handed over has one holder at every position of the log";
const ASKED: &str = "a task is taken by whom it was offered to, in time, and with what was offered";
const OVER: &str = "an offer ends once, and in time";
const TOLD: &str = "what is told of a handoff is so";

/// What is known of all handoffs.
#[derive(Debug, Default)]
pub(super) struct Handoffs(BTreeMap<Number, Handoff>);

#[derive(Debug)]
struct Handoff {
    record: HandoffOffered,
    /// Virtual time, in microseconds.
    offered_on: u64,
    /// For how long it stands, in milliseconds.
    stands: u64,
    /// The lease that came of it, or none did.
    ended: Option<Option<LeaseId>>,
}

impl Facts {
    pub(super) fn handoff_offered(&mut self, stamp: Stamp, record: &HandoffOffered) -> Checked {
        let (seen, task, lease) = (stamp.seen, &record.task, record.lease);
        let known = self.leases.get(&lease);
        let holds = known.is_some_and(|l| l.agent == record.from && l.task == *task && l.lost.is_none());
        let ended = known.and_then(|lease| lease.ended).is_some_and(|at| at <= seen);
        hold!(holds && !ended, ONE_HOLDER, "{} offers {task} under lease {lease}: {known:?}", record.from);
        let more = known.is_none_or(|held| covers(&held.resources, &record.resources).is_err());
        hold!(!more, ASKED, "{record:?} gives more than {known:?}");
        let other = self.standing(lease);
        hold!(other.is_none(), OVER, "lease {lease} is offered again, and {other:?} stands");
        hold!(record.to != record.from, ASKED, "{record:?} is to itself");
        let stands = record.until.saturating_sub(stamp.at);
        let handoff = Handoff { record: record.clone(), offered_on: self.now, stands, ended: None };
        self.handoffs.0.insert(stamp.number, handoff);
        Ok(())
    }

    /// The offer of a lease that stands.
    fn standing(&self, lease: LeaseId) -> Option<Number> {
        let of_it = |(_, handoff): &(&Number, &Handoff)| handoff.record.lease == lease && handoff.ended.is_none();
        self.handoffs.0.iter().find(of_it).map(|(number, _)| *number)
    }

    pub(super) fn handed_over(&mut self, stamp: Stamp, record: &HandedOver) -> Checked {
        let (seq, now, lease) = (self.seq, self.now, LeaseId(stamp.number));
        let HandedOver { handoff, lease: before, task, from, to, resources, pools } = record;
        let offer = self.handoffs.0.get_mut(handoff).filter(|offer| offer.ended.is_none());
        let Some(offer) = offer else { return Err(broken(OVER, format!("{record:?}, and no such offer stands"))) };
        offer.ended = Some(Some(lease));
        let offered = &offer.record;
        let same = (offered.lease, &offered.task, &offered.from, &offered.to) == (*before, task, from, to);
        hold!(same && offered.resources == *resources, ASKED, "{record:?} is not {offered:?}");
        hold!(
            stamp.at < offered.until,
            ASKED,
            "{record:?} at {}, and the offer stood until {}",
            stamp.at,
            offered.until
        );
        let Some(given) = self.leases.get_mut(before).filter(|given| given.lost.is_none()) else {
            return Err(broken(ONE_HOLDER, format!("{record:?}, and lease {before} had ended")));
        };
        let ended = given.ended;
        hold!(ended.is_none_or(|at| at > stamp.seen), ONE_HOLDER, "{record:?}, and {task} had ended");
        (given.lost, given.moved) = (Some(seq), true);
        self.probe_gone(*before, stamp.seen);
        let run = self.runs.get_mut(&task.run);
        let place = run.as_ref().and_then(|run| run.place_of(task));
        let attempt = run.and_then(|run| run.stages[place?].attempts.get_mut((task.attempt as usize).checked_sub(1)?));
        let Some(attempt) = attempt.filter(|attempt| attempt.lease == Some(*before)) else {
            return Err(broken(ONE_HOLDER, format!("{record:?}, and {task} is held under another lease")));
        };
        attempt.before.push(*before);
        attempt.lease = Some(lease);
        let (what, requires, needs) = (attempt.agent_type.clone(), attempt.requires.clone(), attempt.resources.clone());
        for id in [from, to] {
            if let Some(agent) = self.agents.get_mut(id) {
                agent.changed_on = now;
            }
        }
        let Some(agent) = self.agents.get(to).filter(|agent| agent.gone.is_none()) else {
            return Err(broken(ONE_HOLDER, format!("{task} is handed to {to}, who is not there")));
        };
        let able = super::can(&agent.record, &what) && super::meets(&agent.record, &what, &requires);
        hold!(able, ASKED, "{task} is handed to {to}, who can not do it");
        self.breakers_assigned(stamp, to, &what, lease, ended)?;
        let held = Lease::new((task, to, resources), (seq, stamp.at, now), ended);
        self.leases.insert(lease, held);
        self.pools_handed_over((*before, lease), (from, to), pools.as_ref(), &needs)?;
        let holders = self.leases.values().filter(|lease| lease.task == *task && lease.is_alive()).count();
        hold!(holders == usize::from(ended.is_none()), ONE_HOLDER, "{task} has {holders} holders");
        hold!(self.has_room(&self.agents[to], None), ASKED, "{to} holds more than it has, with {task}");
        self.seen.push(if ended.is_some() { Branch::DeadOnArrival } else { Branch::HandedOver });
        Ok(())
    }

    pub(super) fn handoff_ended(&mut self, stamp: Stamp, record: &HandoffEnded) -> Checked {
        let offer = self.handoffs.0.get_mut(&record.handoff).filter(|offer| offer.ended.is_none());
        let Some(offer) = offer else { return Err(broken(OVER, format!("{record:?}, and no such offer stands"))) };
        offer.ended = Some(None);
        let offered = &offer.record;
        let same = (offered.lease, &offered.from, &offered.to) == (record.lease, &record.from, &record.to);
        hold!(same, ASKED, "{record:?} is not {offered:?}");
        let due = record.rejected || stamp.at >= offered.until;
        hold!(due, OVER, "{record:?} at {}, and it stood until {}", stamp.at, offered.until);
        self.seen.push(if record.rejected { Branch::OfferRejected } else { Branch::OfferOver });
        Ok(())
    }

    /// In the calm, no offer stands longer than it should.
    pub(super) fn offers_are_over_in_time(&self, now: u64, calm: u64) -> Checked {
        for (number, offer) in self.handoffs.0.iter().filter(|(_, offer)| offer.ended.is_none()) {
            let with_its_lease = self.leases.get(&offer.record.lease).is_none_or(|lease| !lease.is_alive());
            let late = now > offer.offered_on.max(calm) + 1000 * offer.stands + LATE;
            hold!(with_its_lease || !late, OVER, "handoff {number} stands still: {:?}", offer.record);
        }
        Ok(())
    }

    /// An agent's offer was taken notice of.
    pub(super) fn handoff_open(&self, from: &AgentId, request: &OfferHandoff, number: Number) -> Checked {
        let known = self.handoffs.0.get(&number).map(|handoff| &handoff.record);
        let same = known.is_some_and(|r| r.from == *from && r.to == request.to && r.lease == request.lease);
        hold!(same, TOLD, "{from} was told that {request:?} is handoff {number}, which is {known:?}");
        Ok(())
    }

    /// Somebody asked for a task to be handed over, and was told that it is offered.
    pub(super) fn handoff_asked(&self, request: &AskHandoff, answer: &HandoffAsked) -> Checked {
        let known = self.handoffs.0.get(&answer.handoff).map(|handoff| &handoff.record);
        let same = known.is_some_and(|r| (&r.task, &r.from, &r.to) == (&answer.task, &answer.from, &answer.to));
        hold!(same, TOLD, "it was said that {answer:?}, which is {known:?}");
        let asked = (answer.task.run, &answer.task.part()) == (request.run, &request.stage);
        let right = asked && request.to.as_ref().is_none_or(|to| *to == answer.to);
        hold!(right, TOLD, "{request:?} was asked, and {answer:?} was done");
        Ok(())
    }

    /// An agent is offered something.
    pub(super) fn offer_told(&self, to: &AgentId, offer: &HandoffOffer) -> Checked {
        let known = self.handoffs.0.get(&offer.handoff).map(|handoff| &handoff.record);
        let same = known.is_some_and(|r| {
            r.to == *to
                && r.from == offer.from
                && r.task == offer.task
                && r.state == offer.state
                && r.results == offer.results
        });
        hold!(same, TOLD, "{to} is offered {offer:?}, which is {known:?}");
        Ok(())
    }

    /// Who gave is told what became of it.
    pub(super) fn answer_told(&self, from: &AgentId, answer: &HandoffAnswer) -> Checked {
        let known = self.handoffs.0.get(&answer.handoff);
        let same = known.is_some_and(|known| {
            let right = known.ended.is_some_and(|ended| ended.is_some() == answer.accepted);
            right && known.record.from == *from && known.record.lease == answer.lease
        });
        hold!(same, TOLD, "{from} is told {answer:?} of {known:?}");
        Ok(())
    }

    /// An acknowledgement was taken notice of.
    pub(super) fn handoff_acknowledged(
        &self,
        to: &AgentId,
        request: &AcknowledgeHandoff,
        answer: &HandoffAcknowledged,
    ) -> Checked {
        let known = self.handoffs.0.get(&request.handoff);
        let same = known.is_some_and(|known| {
            known.record.to == *to && known.ended.is_some_and(|ended| ended.is_some() == request.accepted)
        });
        hold!(same, TOLD, "{to} was answered to {request:?}, and it is {known:?}");
        let Some(assignment) = &answer.assignment else { return Ok(()) };
        let carried = known.zip(assignment.handover.as_ref()).is_some_and(|(known, handover)| {
            let record = &known.record;
            known.ended == Some(Some(assignment.lease))
                && (handover.handoff, &handover.from) == (request.handoff, &record.from)
                && (&handover.state, &handover.results) == (&record.state, &record.results)
        });
        hold!(carried, TOLD, "{to} has taken {known:?}, and is given {assignment:?}");
        Ok(())
    }
}
