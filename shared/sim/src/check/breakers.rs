//! The rules of circuit breakers, and of what a stage requires of an agent.
//!
//! The resource-manager decides by what it has read: how tasks ended counts from the message on in which it stands, and a
//! decision is held against the messages that its writer had seen.

use std::collections::BTreeMap;

use baton_protocol::breaker::{BreakerClosed, BreakerHalfOpened, BreakerOpened};
use baton_protocol::record::{AgentRegistered, Outcome, StageEnded, Stamp};
use baton_protocol::{AgentId, Capability, LeaseId, Millis, Requirements};
use baton_resource_manager::BreakerConfig;
use serde_json::Value;

use super::{Checked, Facts, LATE, broken, hold};
use crate::coverage::Branch;

const OPEN: &str = "no task is leased to an agent whose breaker is open";
const PROBES: &str = "a breaker that is half-open lets no more than its probes through";
const JUSTIFIED: &str = "a breaker changes for a reason";
const CHANGES: &str = "a breaker changes when it should";

/// What is known of all breakers.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    config: BreakerConfig,
    breakers: BTreeMap<(AgentId, Capability), Breaker>,
    /// From where in the log on it counts how an agent's tasks end: where its session began.
    since: BTreeMap<AgentId, u64>,
    /// Who is asked to begin anew, and since when, in virtual microseconds.
    restarts: BTreeMap<AgentId, u64>,
}

#[derive(Debug, Default)]
struct Breaker {
    /// How tasks ended that count: where in the log, and whether they failed.
    ended: Vec<(u64, bool)>,
    /// How often it was opened in a row.
    times: u32,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Closed,
    Open {
        until: Millis,
        /// Virtual time, in microseconds.
        until_on: u64,
    },
    HalfOpen {
        probes: u32,
        /// The leases under which it is tried, and how each ended: where in the log, and whether it failed if that counts.
        leases: BTreeMap<LeaseId, Option<(u64, Option<bool>)>>,
    },
}

/// How the probes of a breaker stand, as far as the log is read.
struct Probed {
    under_way: u32,
    succeeded: u32,
    failed: u32,
}

impl Breaker {
    /// How many of the last tasks failed, and of how many, as far as the log is read.
    fn last(&self, read: u64, window: u32) -> (u32, u32) {
        let known: Vec<_> = self.ended.iter().filter(|(seq, _)| *seq <= read).collect();
        let last = &known[known.len().saturating_sub(window as usize)..];
        (last.iter().filter(|(_, failed)| *failed).count() as u32, last.len() as u32)
    }
}

fn probed(leases: &BTreeMap<LeaseId, Option<(u64, Option<bool>)>>, read: u64) -> Probed {
    let mut probed = Probed { under_way: 0, succeeded: 0, failed: 0 };
    for ended in leases.values() {
        match ended.filter(|(seq, _)| *seq <= read) {
            None => probed.under_way += 1,
            Some((_, Some(false))) => probed.succeeded += 1,
            Some((_, Some(true))) => probed.failed += 1,
            Some((_, None)) => {}
        }
    }
    probed
}

impl Breakers {
    pub(super) fn new(config: BreakerConfig) -> Self {
        Self { config, ..Self::default() }
    }

    fn should_open(&self, failed: u32, of: u32) -> bool {
        of >= self.config.min_tasks && failed * 100 >= self.config.error_percent * of
    }
}

impl Facts {
    /// An agent begins another session, or is gone: nothing is known of how it works.
    pub(super) fn breakers_reset(&mut self, agent: &AgentId, stamp: Stamp) {
        for (_, breaker) in self.breakers.breakers.iter_mut().filter(|((other, _), _)| other == agent) {
            // What stands in the log already and the writer had not read counts for the session that is there by then.
            let ended = breaker.ended.iter().filter(|(seq, _)| *seq > stamp.seen).copied().collect();
            *breaker = Breaker { ended, ..Breaker::default() };
        }
        self.breakers.since.insert(agent.clone(), stamp.seen);
        self.breakers.restarts.remove(agent);
    }

    /// Who is asked to begin anew, and since when, in virtual microseconds.
    pub(crate) fn restarts(&self) -> impl Iterator<Item = (&AgentId, u64)> {
        self.breakers.restarts.iter().map(|(agent, since)| (agent, *since))
    }

    /// A task has ended under this lease.
    pub(super) fn breakers_ended(&mut self, record: &StageEnded, capability: &Capability, lease: Option<LeaseId>) {
        let seq = self.seq;
        let counts = match record.outcome {
            Outcome::Succeeded | Outcome::Delegated => Some(false),
            Outcome::Failed | Outcome::TimedOut if !record.hopeless => Some(true),
            Outcome::Failed | Outcome::TimedOut | Outcome::Lost | Outcome::Cancelled => None,
        };
        let counts = counts.filter(|_| record.lease.is_some());
        // What is reported by who handed it over says nothing of who has taken it.
        if let Some(lease) = lease {
            self.probe_over(lease, seq, counts.filter(|_| record.lease == Some(lease)));
        }
        if let (Some(agent), Some(failed)) = (&record.agent, counts) {
            let key = (agent.clone(), capability.clone());
            self.breakers.breakers.entry(key).or_default().ended.push((seq, failed));
        }
    }

    /// The task of a lease has ended.
    fn probe_over(&mut self, lease: LeaseId, seq: u64, counts: Option<bool>) {
        for breaker in self.breakers.breakers.values_mut() {
            if let State::HalfOpen { leases, .. } = &mut breaker.state
                && let Some(ended) = leases.get_mut(&lease)
            {
                ended.get_or_insert((seq, counts));
            }
        }
    }

    /// A lease is over without a report, or another agent has it now. What was reported under it says nothing of the breaker where
    /// the writer had not read that.
    pub(super) fn probe_gone(&mut self, lease: LeaseId, seen: u64) {
        for breaker in self.breakers.breakers.values_mut() {
            if let State::HalfOpen { leases, .. } = &mut breaker.state
                && let Some(ended) = leases.get_mut(&lease).filter(|ended| ended.is_none_or(|(seq, _)| seq > seen))
            {
                *ended = Some((0, None));
            }
        }
    }

    /// A task is leased, which may have ended in the log already, where the writer has not read.
    pub(super) fn breakers_assigned(
        &mut self,
        stamp: Stamp,
        agent: &AgentId,
        capability: &Capability,
        lease: LeaseId,
        ended: Option<u64>,
    ) -> Checked {
        let Some(breaker) = self.breakers.breakers.get_mut(&(agent.clone(), capability.clone())) else { return Ok(()) };
        match &mut breaker.state {
            State::Closed => Ok(()),
            State::Open { until, .. } => {
                Err(broken(OPEN, format!("lease {lease} of {agent} for {capability}, which is open until {until}")))
            }
            State::HalfOpen { probes, leases } => {
                let Probed { under_way, succeeded, failed } = probed(leases, stamp.seen);
                let may = failed == 0 && under_way + succeeded < *probes;
                hold!(may, PROBES, "lease {lease} of {agent} for {capability}: {leases:?}, and {probes} may be");
                leases.insert(lease, ended.map(|seq| (seq, None)));
                self.seen.push(Branch::Probed);
                Ok(())
            }
        }
    }

    pub(super) fn breaker_opened(&mut self, stamp: Stamp, record: &BreakerOpened) -> Checked {
        let BreakerOpened { agent, capability, failed, of, times, until, restart } = record;
        let there = self.agents.get(agent).is_some_and(|agent| agent.gone.is_none());
        hold!(there, JUSTIFIED, "the breaker of {agent} opened, which is not there");
        let (since, now) = (self.breakers.since.get(agent).copied().unwrap_or(0), self.now);
        let config = self.breakers.config.clone();
        let key = (agent.clone(), capability.clone());
        let breaker = self.breakers.breakers.entry(key).or_default();
        breaker.ended.retain(|(seq, _)| *seq > since);
        match &breaker.state {
            State::Closed => {
                let (failures, known) = breaker.last(stamp.seen, config.window);
                let right = (failures, known) == (*failed, *of) && *times == 1;
                hold!(
                    right,
                    JUSTIFIED,
                    "it opened for {failed} of {of} and {times}, not {failures} of {known} and 1: {record:?}"
                );
                let many = *of >= config.min_tasks && failed * 100 >= config.error_percent * of;
                hold!(many, JUSTIFIED, "it opened for {failed} of {of}: {record:?}");
                self.seen.push(Branch::BreakerOpened);
            }
            State::Open { .. } => return Err(broken(JUSTIFIED, format!("it opened and was open: {record:?}"))),
            State::HalfOpen { leases, .. } => {
                let reason = probed(leases, stamp.seen).failed > 0 && *times == breaker.times + 1;
                hold!(reason, JUSTIFIED, "it opened again and no probe failed: {record:?}, {leases:?}");
                self.seen.push(Branch::BreakerReopened);
            }
        }
        let wait = (config.open_ms << (times - 1).min(20)).min(config.max_open_ms);
        hold!(*until == stamp.at + wait, JUSTIFIED, "it opened for {} ms, not {wait}", until - stamp.at);
        let asked = self.breakers.restarts.contains_key(agent);
        let should = !asked && config.restart_after > 0 && *times >= config.restart_after;
        hold!(*restart == should, JUSTIFIED, "its agent is asked to begin anew: {restart}, asked before: {asked}");
        if should {
            self.breakers.restarts.insert(agent.clone(), now);
        }
        breaker.times = *times;
        breaker.state = State::Open { until: *until, until_on: now + wait * 1000 };
        Ok(())
    }

    pub(super) fn breaker_half_opened(&mut self, stamp: Stamp, record: &BreakerHalfOpened) -> Checked {
        let (probes, now) = (self.breakers.config.probes, self.now);
        let key = (record.agent.clone(), record.capability.clone());
        let breaker = self.breakers.breakers.entry(key).or_default();
        let State::Open { until, .. } = breaker.state else {
            return Err(broken(JUSTIFIED, format!("it half-opened and was not open: {record:?}")));
        };
        hold!(stamp.at >= until, JUSTIFIED, "it half-opened at {}, before {until}", stamp.at);
        hold!(record.probes == probes, JUSTIFIED, "it lets {} through, not {probes}", record.probes);
        breaker.state = State::HalfOpen { probes, leases: BTreeMap::new() };
        if let Some(agent) = self.agents.get_mut(&record.agent) {
            agent.changed_on = now;
        }
        Ok(())
    }

    pub(super) fn breaker_closed(&mut self, stamp: Stamp, record: &BreakerClosed) -> Checked {
        let now = self.now;
        let key = (record.agent.clone(), record.capability.clone());
        let breaker = self.breakers.breakers.entry(key).or_default();
        let State::HalfOpen { probes, leases } = &breaker.state else {
            return Err(broken(JUSTIFIED, format!("it closed and was not half-open: {record:?}")));
        };
        let Probed { succeeded, failed, .. } = probed(leases, stamp.seen);
        let reason = failed == 0 && succeeded >= *probes;
        hold!(reason, JUSTIFIED, "it closed after {succeeded} probes that succeeded and {failed} that did not");
        *breaker = Breaker { ended: std::mem::take(&mut breaker.ended), ..Breaker::default() };
        breaker.ended.retain(|(seq, _)| *seq > stamp.seen);
        if let Some(agent) = self.agents.get_mut(&record.agent) {
            agent.changed_on = now;
        }
        self.seen.push(Branch::BreakerClosed);
        Ok(())
    }

    /// What the resource-manager has handled must have led to what follows from it. What it has read beyond that may have
    /// entered its decision too: then nothing is asked here.
    pub(super) fn breakers_decided(&self, handled: u64) -> Checked {
        for ((agent, capability), breaker) in &self.breakers.breakers {
            let since = self.breakers.since.get(agent).copied().unwrap_or(0);
            let there = self.agents.get(agent).is_some_and(|agent| agent.gone.is_none());
            let counted = || breaker.ended.iter().filter(|(seq, _)| *seq > since);
            if !there || breaker.ended.iter().any(|(seq, _)| *seq > handled) {
                continue;
            }
            match &breaker.state {
                State::Closed => {
                    let last: Vec<_> = counted().copied().collect();
                    let alone = Breaker { ended: last, ..Breaker::default() };
                    let (failed, of) = alone.last(handled, self.breakers.config.window);
                    let ends_so = counted().next_back().is_some_and(|(_, failed)| *failed);
                    let must = ends_so && self.breakers.should_open(failed, of);
                    hold!(!must, CHANGES, "{agent} failed {failed} of {of} {capability}, and its breaker is closed");
                }
                State::Open { .. } => {}
                State::HalfOpen { probes, leases } => {
                    let Probed { succeeded, failed, .. } = probed(leases, handled);
                    hold!(
                        failed == 0,
                        CHANGES,
                        "{agent} failed a probe for {capability}, and its breaker is half-open"
                    );
                    hold!(
                        succeeded < *probes,
                        CHANGES,
                        "{agent} did {succeeded} probes for {capability}, and it is half-open"
                    );
                }
            }
        }
        Ok(())
    }

    /// In the calm, no breaker stays open for longer than it should.
    pub(super) fn breakers_half_open_in_time(&self, now: u64, calm: u64) -> Checked {
        for ((agent, capability), breaker) in &self.breakers.breakers {
            let there = self.agents.get(agent).is_some_and(|agent| agent.gone.is_none());
            if let State::Open { until_on, .. } = breaker.state {
                let late = there && now > until_on.max(calm) + LATE;
                hold!(!late, CHANGES, "the breaker of {agent} for {capability} should have been half-open by now");
            }
        }
        Ok(())
    }

    /// Whether the breaker of an agent that is there is not closed.
    pub(super) fn is_shut(&self, agent: &AgentId, capability: &Capability) -> bool {
        let there = self.agents.get(agent).is_some_and(|agent| agent.gone.is_none());
        let breaker = self.breakers.breakers.get(&(agent.clone(), capability.clone()));
        there && breaker.is_some_and(|breaker| !matches!(breaker.state, State::Closed))
    }

    /// Whose breakers are not closed.
    pub(super) fn shut(&self) -> impl Iterator<Item = (&AgentId, &Capability)> {
        let all = self.breakers.breakers.keys().map(|(agent, capability)| (agent, capability));
        all.filter(|(agent, capability)| self.is_shut(agent, capability))
    }

    /// Whether an agent's breaker lets a task through.
    pub(super) fn is_let_through(&self, agent: &AgentId, capability: &Capability) -> bool {
        match self.breakers.breakers.get(&(agent.clone(), capability.clone())).map(|breaker| &breaker.state) {
            None | Some(State::Closed) => true,
            Some(State::Open { .. }) => false,
            Some(State::HalfOpen { probes, leases }) => {
                let Probed { under_way, succeeded, failed } = probed(leases, self.seq);
                failed == 0 && under_way + succeeded < *probes
            }
        }
    }
}

/// Whether an agent is what a stage requires: `algorithms` a list of names, `size` at least a number, `version` a caret.
/// What the generator draws, and no more.
pub(super) fn meets(agent: &AgentRegistered, capability: &Capability, requires: &Requirements) -> bool {
    let wanted = serde_json::to_value(requires).unwrap_or_default();
    let none = BTreeMap::new();
    let has = agent.capabilities.get(capability).unwrap_or(&none);
    let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
    wanted.as_object().into_iter().flatten().all(|(key, wanted)| match (key.as_str(), wanted, has.get(key)) {
        ("algorithms", Value::Array(wanted), Some(Value::Array(has))) => wanted.iter().all(|one| has.contains(one)),
        ("size", Value::String(wanted), Some(has)) => {
            wanted.strip_prefix(">= ").is_some_and(|least| has.as_u64().is_some_and(|has| has >= number(least)))
        }
        ("version", Value::String(wanted), Some(Value::String(has))) => {
            let minor = |text: &str| text.strip_prefix("1.").map(number);
            let (least, has) = (wanted.strip_prefix('^').and_then(minor), has.strip_suffix(".0").and_then(minor));
            least.zip(has).is_some_and(|(least, has)| has >= least)
        }
        _ => false,
    })
}
