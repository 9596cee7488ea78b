//! Circuit breakers: an agent that fails tasks of a capability is given no more of them for a while. See
//! [`baton_protocol::breaker`].
//!
//! What is counted is the outcome of the last tasks, in order, whatever the settings are: instances with other settings fold
//! the same log alike. The settings decide when a record is written, and each record bears the numbers that it was decided
//! with (until when, how many probes), so that whoever reads it needs no settings.
//!
//! A task that the agent called hopeless, that was cancelled, or that was lost with its agent says nothing of how the agent
//! works, and does not count. What is known belongs to a session: with another process an agent begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Publication, Shelves, Turn};
use baton_protocol::alert::{AlertKind, AlertSeverity};
use baton_protocol::breaker::{BreakerClosed, BreakerHalfOpened, BreakerOpened, BreakerState, BreakerView};
use baton_protocol::message::MessageType;
use baton_protocol::record::{Commit, Outcome, ResourceRecord, StageEnded, WorkflowRecord};
use baton_protocol::request::RestartAgent;
use baton_protocol::{AgentId, Capability, LeaseId, Millis, subject};
use serde::{Deserialize, Serialize};

use crate::{ResourceManager, alert, lease};

/// Outcomes are kept of so many tasks at the most.
pub const MAX_WINDOW: u32 = 64;

/// When breakers open, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerConfig {
    /// Whether any opens.
    pub enabled: bool,
    /// How many of the last tasks are looked at; at most [`MAX_WINDOW`].
    pub window: u32,
    /// With fewer tasks than that it does not open.
    pub min_tasks: u32,
    /// It opens when so many of a hundred have failed.
    pub error_percent: u32,
    /// How long it is open the first time. Each time that a probe fails that doubles.
    pub open_ms: Millis,
    /// How long it is open at the most.
    pub max_open_ms: Millis,
    /// How many tasks must succeed before it closes.
    pub probes: u32,
    /// When it opens for the so-manieth time without having closed in between, its agent is asked to begin anew; 0: never.
    pub restart_after: u32,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            window: 20,
            min_tasks: 5,
            error_percent: 50,
            open_ms: 30_000,
            max_open_ms: 300_000,
            probes: 2,
            restart_after: 3,
        }
    }
}

/// The breakers of all agents.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Breakers {
    by_agent: Shelves<AgentId, Arc<BTreeMap<Capability, Breaker>>>,
    /// Those that are open, by when they are to be tried again.
    open: BTreeSet<(Millis, AgentId, Capability)>,
    /// Those that are half-open.
    half_open: BTreeSet<(AgentId, Capability)>,
    /// The leases under which those are tried.
    probes: BTreeMap<LeaseId, (AgentId, Capability)>,
    /// Agents that are asked to begin anew, and since when.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    restart: BTreeMap<AgentId, Asked>,
}

/// That an agent is asked to begin anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Asked {
    since: Millis,
    /// What it fails.
    capability: Capability,
    /// How often its breaker was opened.
    times: u32,
}

/// The breaker of an agent and a capability.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Breaker {
    /// How the last tasks ended, the latest in the lowest bit; a bit that is set is a failure.
    failures: u64,
    /// Of how many that is known.
    known: u32,
    /// How often it was opened without having been closed in between.
    times: u32,
    state: State,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
enum State {
    #[default]
    Closed,
    Open {
        until: Millis,
    },
    HalfOpen {
        probes: u32,
        /// How many are held.
        held: u32,
        succeeded: u32,
        failed: u32,
    },
}

impl Breaker {
    fn note(&mut self, failed: bool) {
        self.failures = self.failures << 1 | u64::from(failed);
        self.known = (self.known + 1).min(MAX_WINDOW);
    }

    /// Of how many of the last tasks it is known how they ended, and how many of them failed.
    fn last(&self, window: u32) -> (u32, u32) {
        let of = self.known.min(window.clamp(1, MAX_WINDOW));
        let mask = u64::MAX >> (MAX_WINDOW - of.max(1));
        ((self.failures & mask).count_ones(), of)
    }
}

impl Breakers {
    /// A task has ended; it had this lease, and its agent is there or gone.
    pub(crate) fn ended(&mut self, record: &StageEnded, capability: &Capability, lease: Option<LeaseId>, there: bool) {
        // A report that counts under the lease of who handed the task over says nothing of who has taken it.
        let probe = lease.is_some_and(|lease| self.over(lease)) && record.lease == lease;
        if !there {
            return;
        }
        // The lease that the workflow-manager knows of: otherwise it did not end the task for what an agent did.
        let (Some(agent), Some(_)) = (&record.agent, record.lease) else { return };
        let failed = match record.outcome {
            Outcome::Succeeded | Outcome::Delegated => false,
            Outcome::Failed | Outcome::TimedOut if !record.hopeless => true,
            Outcome::Failed | Outcome::TimedOut | Outcome::Lost | Outcome::Cancelled => return,
        };
        if !failed && self.is_spotless(agent, capability) {
            return;
        }
        let breakers = Arc::make_mut(self.by_agent.get_or_insert_with(agent, Arc::default));
        let breaker = match breakers.get_mut(capability) {
            Some(breaker) => breaker,
            None => breakers.entry(capability.clone()).or_default(),
        };
        match &mut breaker.state {
            State::Closed => breaker.note(failed),
            // What had begun before it was opened says nothing new.
            State::Open { .. } => {}
            State::HalfOpen { succeeded, failed: failures, .. } if probe => {
                *(if failed { failures } else { succeeded }) += 1;
            }
            State::HalfOpen { .. } => {}
        }
    }

    /// Whether one success more would change nothing, which is so of nearly all agents at nearly all times.
    fn is_spotless(&self, agent: &AgentId, capability: &Capability) -> bool {
        let breaker = self.by_agent.get(agent).and_then(|breakers| breakers.get(capability));
        breaker.is_some_and(|b| b.state == State::Closed && b.failures == 0 && b.known == MAX_WINDOW)
    }

    /// A task is leased to an agent. While its breaker is half-open that is a probe.
    pub(crate) fn granted(&mut self, agent: &AgentId, capability: &Capability, lease: LeaseId) {
        if let Some(Breaker { state: State::HalfOpen { held, .. }, .. }) = self.change(agent, capability) {
            *held += 1;
            self.probes.insert(lease, (agent.clone(), capability.clone()));
        }
    }

    /// A lease is over. Whether it was a probe.
    pub(crate) fn over(&mut self, lease: LeaseId) -> bool {
        let Some((agent, capability)) = self.probes.remove(&lease) else { return false };
        if let Some(Breaker { state: State::HalfOpen { held, .. }, .. }) = self.change(&agent, &capability) {
            *held = held.saturating_sub(1);
        }
        true
    }

    pub(crate) fn opened(&mut self, at: Millis, record: &BreakerOpened) {
        let BreakerOpened { agent, capability, failed: _, of: _, times, until, restart } = record;
        if *restart {
            let asked = || Asked { since: at, capability: capability.clone(), times: *times };
            self.restart.entry(agent.clone()).or_insert_with(asked);
        }
        self.set(agent, capability, *times, State::Open { until: *until });
        self.open.insert((*until, agent.clone(), capability.clone()));
    }

    pub(crate) fn half_opened(&mut self, record: &BreakerHalfOpened) {
        let BreakerHalfOpened { agent, capability, probes } = record;
        let times = self.get(agent, capability).map_or(1, |breaker| breaker.times);
        self.set(agent, capability, times, State::HalfOpen { probes: *probes, held: 0, succeeded: 0, failed: 0 });
        self.half_open.insert((agent.clone(), capability.clone()));
    }

    pub(crate) fn closed(&mut self, record: &BreakerClosed) {
        self.set(&record.agent, &record.capability, 0, State::Closed);
    }

    /// The session of an agent is over, and with it what is known of how that process works.
    pub(crate) fn forget(&mut self, agent: &AgentId) {
        self.restart.remove(agent);
        let Some(breakers) = self.by_agent.remove(agent) else { return };
        for (capability, breaker) in breakers.iter() {
            self.take_out(agent, capability, &breaker.state);
        }
    }

    fn set(&mut self, agent: &AgentId, capability: &Capability, times: u32, state: State) {
        let breakers = Arc::make_mut(self.by_agent.get_or_insert_with(agent, Arc::default));
        let breaker = Breaker { failures: 0, known: 0, times, state };
        if let Some(before) = breakers.insert(capability.clone(), breaker) {
            self.take_out(agent, capability, &before.state);
        }
    }

    fn take_out(&mut self, agent: &AgentId, capability: &Capability, state: &State) {
        match state {
            State::Closed => {}
            State::Open { until } => {
                self.open.remove(&(*until, agent.clone(), capability.clone()));
            }
            State::HalfOpen { .. } => {
                let of_it = (agent.clone(), capability.clone());
                self.probes.retain(|_, probed| *probed != of_it);
                self.half_open.remove(&of_it);
            }
        }
    }

    fn get(&self, agent: &AgentId, capability: &Capability) -> Option<&Breaker> {
        self.by_agent.get(agent)?.get(capability)
    }

    fn change(&mut self, agent: &AgentId, capability: &Capability) -> Option<&mut Breaker> {
        if self.half_open.is_empty() {
            return None;
        }
        self.by_agent.change(agent)?.get_mut(capability)
    }

    /// Whether the agent may be given a task of that capability; if not, why.
    pub(crate) fn may(&self, agent: &AgentId, capability: &Capability) -> Result<(), String> {
        match self.get(agent, capability).map(|breaker| &breaker.state) {
            None | Some(State::Closed) => Ok(()),
            Some(State::Open { until }) if !is_planted(Bug::BreakerIgnored) => {
                Err(format!("is given no {capability} until {until}: its circuit breaker is open"))
            }
            Some(State::HalfOpen { probes, held, succeeded, failed })
                if (held + succeeded >= *probes || *failed > 0) && !is_planted(Bug::ProbesNotCounted) =>
            {
                Err(format!(
                    "is given no more {capability} now: its circuit breaker is half-open, and {held} of {probes} probes \
                     are under way"
                ))
            }
            Some(State::Open { .. } | State::HalfOpen { .. }) => Ok(()),
        }
    }

    /// Whether a breaker, by what an alert about it is about, is open or half-open.
    pub(crate) fn is_shut(&self, about: &str) -> bool {
        let shut = self.open.iter().map(|(_, agent, capability)| (agent, capability));
        let mut shut = shut.chain(self.half_open.iter().map(|(agent, capability)| (agent, capability)));
        shut.any(|(agent, capability)| alert::of_breaker(agent, capability) == about)
    }

    /// Since when an agent is asked to begin anew, if it is.
    pub(crate) fn restart_asked(&self, agent: &AgentId) -> Option<Millis> {
        self.restart.get(agent).map(|asked| asked.since)
    }

    /// When the first that is open is to be tried again.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.open.first().map(|(until, ..)| *until).filter(|_| !is_planted(Bug::BreakerStaysOpen))
    }

    /// The breakers of an agent that are worth being shown.
    pub(crate) fn views(&self, agent: &AgentId, window: u32) -> Vec<BreakerView> {
        let breakers = self.by_agent.get(agent).into_iter().flat_map(|breakers| breakers.iter());
        let view = |(capability, breaker): (&Capability, &Breaker)| {
            let (failed, of) = breaker.last(window);
            let (state, until, probes_left, failed, of) = match &breaker.state {
                State::Closed => (BreakerState::Closed, None, None, failed, of),
                State::Open { until } => (BreakerState::Open, Some(*until), None, 0, 0),
                State::HalfOpen { probes, succeeded, failed, .. } => {
                    let left = probes.saturating_sub(*succeeded);
                    (BreakerState::HalfOpen, None, Some(left), *failed, failed + succeeded)
                }
            };
            BreakerView { capability: capability.clone(), state, failed, of, until, probes_left }
        };
        breakers.map(view).filter(|view| view.state != BreakerState::Closed || view.failed > 0).collect()
    }
}

/// Decides what follows from how tasks ended.
pub(crate) fn react(turn: &mut Turn<'_, ResourceManager>, commit: &Commit<WorkflowRecord>) {
    let half_open = !turn.state().breakers.half_open.is_empty();
    let mut agents = BTreeSet::new();
    for (_, record) in commit.stamped() {
        let (agent, outcome) = match record {
            WorkflowRecord::StageEnded(record) => (record.agent.as_ref(), record.outcome),
            WorkflowRecord::CopyEnded(record) => (Some(&record.agent), record.outcome),
            _ => continue,
        };
        if half_open || matches!(outcome, Outcome::Failed | Outcome::TimedOut) {
            agents.extend(agent);
        }
    }
    for agent in agents {
        decide(turn, agent);
    }
}

fn decide(turn: &mut Turn<'_, ResourceManager>, agent: &AgentId) {
    let (now, config) = (turn.now(), turn.config().breakers.clone());
    let Some(breakers) = turn.state().breakers.by_agent.get(agent).map(Arc::clone) else { return };
    for (capability, breaker) in breakers.iter() {
        let (failed, of) = match &breaker.state {
            State::Closed => {
                let (failed, of) = breaker.last(config.window);
                let many = of >= config.min_tasks
                    && u64::from(failed) * 100 >= u64::from(config.error_percent) * u64::from(of);
                // It opens at a failure, never at a success that makes the tasks enough to be judged by.
                if !(config.enabled && many && breaker.failures & 1 == 1) {
                    continue;
                }
                (failed, of)
            }
            State::Open { .. } => continue,
            State::HalfOpen { failed, succeeded, .. } if *failed > 0 && !is_planted(Bug::FailedProbeForgotten) => {
                (*failed, failed + succeeded)
            }
            State::HalfOpen { probes, succeeded, .. } => {
                if succeeded >= probes {
                    let about = alert::of_breaker(agent, capability);
                    let closed = BreakerClosed { agent: agent.clone(), capability: capability.clone() };
                    turn.emit(ResourceRecord::BreakerClosed(closed));
                    moved(turn, capability, BreakerState::Closed);
                    alert::clear(turn, AlertKind::BreakerOpened, &about);
                }
                continue;
            }
        };
        let times = breaker.times.saturating_add(1);
        let factor = 1u64.checked_shl(times - 1).unwrap_or(u64::MAX);
        let open_ms = config.open_ms.saturating_mul(factor).min(config.max_open_ms.max(config.open_ms));
        let until = now.saturating_add(open_ms);
        let (agent, capability) = (agent.clone(), capability.clone());
        let about = alert::of_breaker(&agent, &capability);
        alert::raise(turn, AlertSeverity::Warning, AlertKind::BreakerOpened, &about, || {
            format!(
                "{failed} of the last {of} tasks of {agent} for {capability} failed: it is given no more of them for {} s",
                open_ms.div_ceil(1000)
            )
        });
        // Once a session: it is told with every heartbeat.
        let asked = turn.state().breakers.restart_asked(&agent).is_some();
        let restart = !asked && config.restart_after > 0 && times >= config.restart_after;
        if restart {
            alert::raise(turn, AlertSeverity::Warning, AlertKind::AgentRestart, agent.as_str(), || {
                format!("agent {agent} is asked to begin anew: its breaker for {capability} was opened {times} times")
            });
        }
        let opened =
            BreakerOpened { agent: agent.clone(), capability: capability.clone(), failed, of, times, until, restart };
        turn.emit(ResourceRecord::BreakerOpened(opened));
        moved(turn, &capability, BreakerState::Open);
        if restart {
            ask_to_restart(turn, &agent);
        }
    }
    show(turn, agent);
}

/// What an agent is told that is asked to begin anew.
pub(crate) fn restart(state: &ResourceManager, agent: &AgentId) -> Option<RestartAgent> {
    let Asked { since: _, capability, times } = state.breakers.restart.get(agent)?;
    let session = state.agents.present(agent)?.record.session.clone();
    let reason = format!("its circuit breaker for {capability} was opened {times} times without closing in between");
    Some(RestartAgent { session, reason })
}

/// Tells an agent that it should begin anew. Should that get lost, its next heartbeat is answered with it.
fn ask_to_restart(turn: &mut Turn<'_, ResourceManager>, agent: &AgentId) {
    let Some(restart) = restart(turn.state(), agent).filter(|_| !is_planted(Bug::RestartNotTold)) else { return };
    let (subject, body) = (subject::restart(agent), lease::json(&restart));
    turn.publish(Publication { subject, body, kind: MessageType::StatusUpdate, run: None, trace: None });
    lease::sent(turn, "restart");
}

/// Tries those again that were open for long enough.
pub(crate) fn tick(turn: &mut Turn<'_, ResourceManager>) {
    let (now, probes) = (turn.now(), turn.config().breakers.probes.max(1));
    let due = turn.state().breakers.open.iter().take_while(|(until, ..)| *until <= now);
    let due: Vec<_> = due.map(|(_, agent, capability)| (agent.clone(), capability.clone())).collect();
    for (agent, capability) in due.into_iter().filter(|_| !is_planted(Bug::BreakerStaysOpen)) {
        let record = BreakerHalfOpened { agent: agent.clone(), capability: capability.clone(), probes };
        turn.emit(ResourceRecord::BreakerHalfOpened(record));
        moved(turn, &capability, BreakerState::HalfOpen);
        show(turn, &agent);
    }
}

/// Shows all of it, when a term begins.
pub(crate) fn lead(turn: &mut Turn<'_, ResourceManager>) {
    let agents: Vec<_> = turn.state().breakers.by_agent.keys().cloned().collect();
    for agent in agents {
        show(turn, &agent);
    }
}

fn moved(turn: &mut Turn<'_, ResourceManager>, capability: &Capability, to: BreakerState) {
    turn.count("agent_breaker_transitions_total", &[capability.as_str(), to.as_str()], 1.0);
}

/// Sets the gauges of an agent's breakers.
fn show(turn: &mut Turn<'_, ResourceManager>, agent: &AgentId) {
    let value = |breaker: &Breaker| match breaker.state {
        State::Closed => 0.0,
        State::HalfOpen { .. } => 1.0,
        State::Open { .. } => 2.0,
    };
    set(turn, agent, value);
}

/// Sets the gauges of an agent whose session is about to end.
pub(crate) fn hide(turn: &mut Turn<'_, ResourceManager>, agent: &AgentId) {
    set(turn, agent, |_| 0.0);
}

fn set(turn: &mut Turn<'_, ResourceManager>, agent: &AgentId, value: impl Fn(&Breaker) -> f64) {
    let Some(breakers) = turn.state().breakers.by_agent.get(agent).map(Arc::clone) else { return };
    for (capability, breaker) in breakers.iter() {
        turn.gauge("agent_breaker_state", &[agent.as_str(), capability.as_str()], value(breaker));
    }
}
