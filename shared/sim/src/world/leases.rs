//! Who acquires something of pools: agents, for their tasks and for themselves, and clients.

use baton_machine::Reply;
use baton_protocol::request::{Acquire, AcquireAnswer, Release, Renew, ResourceRequest};
use baton_protocol::{AgentId, Amount, LeaseId, Millis};

use super::{Asker, Event, World};
use crate::coverage::Branch;
use crate::request::AnyRequest;
use crate::workload::Wanted;

/// Somebody who wants something of pools.
#[derive(Debug)]
pub(super) struct Leaser {
    agent: Option<AgentId>,
    wanted: Wanted,
    lease: Option<LeaseId>,
    /// What of its time is left to wait.
    wait_until: u64,
}

/// What is done with an acquisition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    Acquire,
    Renew,
    Release,
}

impl World {
    /// Somebody begins to want something.
    pub(super) fn want(&mut self, agent: Option<AgentId>, under: Option<LeaseId>, mut wanted: Wanted) {
        let leaser = self.leasers.len();
        wanted.request.id = format!("{}-{leaser}", wanted.request.id);
        wanted.request.under = under;
        let wait_until = self.now + wanted.request.wait_ms * 1000;
        self.leasers.push(Leaser { agent, wanted, lease: None, wait_until });
        self.lease_deed(leaser, Deed::Acquire);
    }

    pub(super) fn lease_deed(&mut self, leaser: usize, deed: Deed) {
        let it = &self.leasers[leaser];
        let agent = it.agent.clone();
        let request = match (deed, it.lease) {
            (Deed::Acquire, _) => {
                let wait_ms: Millis = it.wait_until.saturating_sub(self.now) / 1000;
                ResourceRequest::Acquire(agent, Acquire { wait_ms, ..it.wanted.request.clone() })
            }
            (_, None) => return,
            (Deed::Renew, Some(lease)) => ResourceRequest::Renew(agent, Renew { lease, ttl_ms: None }),
            (Deed::Release, Some(lease)) => {
                let mut used = baton_protocol::Resources::new();
                for name in it.wanted.request.take.keys().filter(|name| name.as_str().starts_with("budget")) {
                    used.extend(it.wanted.used.map(|used| (name.clone(), Amount::from(used))));
                }
                ResourceRequest::Release(agent, Release { lease, used })
            }
        };
        self.ask(Asker::Leaser(leaser, deed), AnyRequest::Resource(request), true);
    }

    pub(super) fn told_leaser(&mut self, leaser: usize, deed: Deed, reply: Option<&Reply>) {
        let Some(Ok(answer)) = reply.filter(|_| deed == Deed::Acquire) else { return };
        let Ok(answer) = answer.read::<AcquireAnswer>() else { return };
        if answer.waiting.is_some() {
            self.coverage.branch(Branch::AcquisitionWaits);
            self.after(0, Event::Lease(leaser, Deed::Acquire));
        }
        if let Some(granted) = answer.granted {
            self.coverage.branch(Branch::Acquired);
            let it = &mut self.leasers[leaser];
            it.lease = Some(granted.lease);
            let Wanted { hold_ms, renews, forgets, .. } = it.wanted;
            if renews {
                self.after(1000 * hold_ms / 2, Event::Lease(leaser, Deed::Renew));
            }
            if !forgets || self.calm {
                self.after(1000 * hold_ms, Event::Lease(leaser, Deed::Release));
            }
        }
    }

    /// An agent begins a task, and may want something for it.
    pub(super) fn want_for_task(&mut self, agent: &AgentId, lease: LeaseId) {
        if self.workload.pools.is_empty() || !self.draws.chance(150) {
            return;
        }
        let wanted = crate::workload::wanted(&mut self.draws, &self.workload.pools);
        let under = self.draws.chance(700).then_some(lease);
        self.want(Some(agent.clone()), under, wanted);
    }
}
