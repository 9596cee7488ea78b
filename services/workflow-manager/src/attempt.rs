//! An attempt at a stage: who was given it, and what came of it.

use baton_protocol::record::{Delegated, Outcome};
use baton_protocol::request::Usage;
use baton_protocol::run::Speculation;
use baton_protocol::{AgentId, LeaseId, Millis, Money, RunId};
use serde::{Deserialize, Serialize};

/// An attempt at a stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Attempt {
    pub(crate) ready_at: Millis,
    pub(crate) assigned_at: Option<Millis>,
    pub(crate) agent: Option<AgentId>,
    pub(crate) lease: Option<LeaseId>,
    /// The run that makes it, if no agent does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) child: Option<RunId>,
    pub(crate) ended_at: Option<Millis>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<String>,
    pub(crate) duration_ms: Millis,
    pub(crate) cost: Money,
    pub(crate) usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<Box<str>>,
    /// What its agent handed on to others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delegated: Option<Box<Delegated>>,
    /// Where it stands if it began early.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) speculation: Option<Speculation>,
    /// If it began early and is over: a hash of its result, which may be thrown away, by which a report is known again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gave: Option<u64>,
    /// Others that were given it as well. At most one of them is at it still.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) copies: Vec<Copy>,
}

/// An agent that was given the task of an attempt as well as another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Copy {
    pub(crate) agent: AgentId,
    pub(crate) lease: LeaseId,
    pub(crate) assigned_at: Millis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ended_at: Option<Millis>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<Outcome>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<Box<str>>,
}

/// Who is at an attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Under<'a> {
    pub(crate) lease: LeaseId,
    pub(crate) agent: &'a AgentId,
    pub(crate) assigned_at: Millis,
}

impl Attempt {
    /// Whether it is one of those that the definition speaks of: not one that began early and does not count, or not yet.
    pub(crate) fn counts(&self) -> bool {
        !matches!(self.speculation, Some(Speculation::Open | Speculation::Discarded))
    }

    /// Who is at it: the one that had it first of those that are, and the other one.
    pub(crate) fn under(&self) -> (Option<Under<'_>>, Option<Under<'_>>) {
        let first = self.lease.zip(self.agent.as_ref()).zip(self.assigned_at);
        let first = first.map(|((lease, agent), assigned_at)| Under { lease, agent, assigned_at });
        let other = self.copies.iter().find(|copy| copy.ended_at.is_none());
        (first, other.map(|copy| Under { lease: copy.lease, agent: &copy.agent, assigned_at: copy.assigned_at }))
    }

    /// Whether it was done by one that was given it while another one was at it.
    pub(crate) fn won_by_second(&self) -> bool {
        let before = self.copies.iter().map(|copy| copy.lease).min();
        self.outcome == Some(Outcome::Succeeded) && before.zip(self.lease).is_some_and(|(before, lease)| before < lease)
    }

    /// The leases that it has, or had.
    pub(crate) fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.lease.into_iter().chain(self.copies.iter().map(|copy| copy.lease))
    }

    /// A lease of one that is at it with another one is over. Whether that was so.
    pub(crate) fn copy_over(
        &mut self,
        lease: LeaseId,
        at: Millis,
        outcome: Outcome,
        error: Option<&str>,
        code: Option<&str>,
    ) -> bool {
        let Some(place) = self.copies.iter().position(|copy| copy.ended_at.is_none()) else { return false };
        if self.lease == Some(lease) {
            // The other one has it alone.
            let copy = &mut self.copies[place];
            let (Some(agent), Some(assigned_at)) = (&mut self.agent, &mut self.assigned_at) else { return false };
            std::mem::swap(agent, &mut copy.agent);
            std::mem::swap(assigned_at, &mut copy.assigned_at);
            self.lease = Some(std::mem::replace(&mut copy.lease, lease));
        }
        let copy = &mut self.copies[place];
        if copy.lease != lease {
            return false;
        }
        (copy.ended_at, copy.outcome) = (Some(at), Some(outcome));
        (copy.error, copy.code) = (error.map(Into::into), code.map(Into::into));
        true
    }
}
