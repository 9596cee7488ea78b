//! Alerts: what a person should know of, raised once, kept until it is over.
//!
//! An alert stands *before* the fact that it tells of, and its end *after* the fact that ends it. So where a turn is cut in
//! two by a crash there may be an alert too many, never one too few; a new leader takes back those that are not so.

use std::collections::{BTreeMap, BTreeSet};

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Reply, Turn, answer};
use baton_protocol::alert::{AlertAcknowledged, AlertCleared, AlertKind, AlertRaised, AlertSeverity, AlertView};
use baton_protocol::pressure::PressureLevel;
use baton_protocol::record::{ResourceRecord, RunFinished, Stamp};
use baton_protocol::request::{AcknowledgeAlert, AlertList, Done, ListAlerts};
use baton_protocol::run::RunStatus;
use baton_protocol::{AgentId, Capability, Code, Millis, Number, PoolKind, Rejection, ResourceName, WorkflowName};
use serde::{Deserialize, Serialize};

use crate::usage::{Says, kind_of};
use crate::{Config, ResourceManager};

/// How many alerts are kept. Of more, the oldest that are over are forgotten, and then the oldest.
const MAX_KEPT: usize = 1000;
/// The longest reason of a run's failure that is repeated, in bytes.
const MAX_WHY_BYTES: usize = 500;
/// Of what may be used, where an alert about that is over: some way below where it was raised, so that it does not come and go.
pub(crate) const OVER_PERCENT: usize = 40;
/// The longest name of who acknowledges, in bytes.
const MAX_BY_BYTES: usize = 200;

/// When alerts are raised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertConfig {
    /// How many tasks should wait for an agent at the most; 0: any number may. An alert is raised when half as many wait, and
    /// matters more with 80 % and with all of them; it is over when they are fewer than 40 %.
    pub queue_depth: usize,
    /// When a run fails or takes too long. It is over when a run of that workflow succeeds.
    pub run_failed: bool,
    /// When 50, 80 or 100 % of a pool are used: of a held one, so much of it was in use for `pool_used_ms`; of a consumed one, so
    /// much of it is spent.
    pub pools: bool,
    /// How long so much of a held pool must be in use until an alert is raised, and so little until it is over, in milliseconds.
    pub pool_used_ms: Millis,
}

impl Default for AlertConfig {
    fn default() -> Self {
        Self { queue_depth: 1000, run_failed: false, pools: true, pool_used_ms: 10_000 }
    }
}

/// The alerts that are active, and the latest of those that are over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Alerts {
    kept: BTreeMap<Number, AlertView>,
    /// Those that are not over, by what they are about: of a kind there is one at a time.
    active: BTreeMap<AlertKind, BTreeMap<String, Number>>,
    /// The workflows of which the run that ended last failed or took too long, and what is to be said of that.
    failing: BTreeMap<WorkflowName, String>,
    /// Those that are failing and have no alert, or have one and are not.
    unsaid: BTreeSet<WorkflowName>,
}

impl Alerts {
    /// An alert is raised; gives one that is not over and is forgotten for it, if there is one.
    pub(crate) fn raised(&mut self, stamp: Stamp, record: &AlertRaised) -> Option<AlertView> {
        let AlertRaised { severity, kind, about, message } = record.clone();
        // One that matters more takes the place of one that mattered less.
        let before = self.active.entry(kind).or_default().insert(about.clone(), stamp.number);
        if let Some(before) = before.and_then(|number| self.kept.get_mut(&number)) {
            before.cleared_at = Some(stamp.at);
        }
        let view = AlertView {
            alert: stamp.number,
            severity,
            kind,
            about,
            message,
            raised_at: stamp.at,
            cleared_at: None,
            acknowledged_at: None,
            acknowledged_by: None,
        };
        self.kept.insert(stamp.number, view);
        let mut lost = None;
        if self.kept.len() > MAX_KEPT {
            let over = self.kept.iter().find(|(_, alert)| alert.cleared_at.is_some()).map(|(number, _)| *number);
            let forgotten = match over {
                Some(over) => self.kept.remove(&over),
                None => self.kept.pop_first().map(|(_, oldest)| oldest),
            };
            if let Some(forgotten) = forgotten {
                // Else it would be raised again, and another one forgotten for it, for ever.
                if forgotten.kind == AlertKind::RunFailed && forgotten.cleared_at.is_none() {
                    self.failing.retain(|workflow, _| workflow.as_str() != forgotten.about);
                }
                lost = self.end(&forgotten).then_some(forgotten);
            }
        }
        self.compare(kind, &record.about);
        lost
    }

    /// An alert is over. Whether it was active.
    pub(crate) fn cleared(&mut self, stamp: Stamp, record: &AlertCleared) -> bool {
        let Some(alert) = self.kept.get_mut(&record.alert) else { return false };
        alert.cleared_at.get_or_insert(stamp.at);
        let alert = alert.clone();
        self.end(&alert)
    }

    /// An alert is active no more. Whether it was.
    fn end(&mut self, alert: &AlertView) -> bool {
        let of_kind = self.active.get_mut(&alert.kind);
        let was = of_kind.is_some_and(|of_kind| {
            let is_it = of_kind.get(&alert.about) == Some(&alert.alert);
            is_it && of_kind.remove(&alert.about).is_some()
        });
        self.compare(alert.kind, &alert.about);
        was
    }

    /// A run has ended. Of one that was cancelled nothing follows.
    pub(crate) fn run_finished(&mut self, record: &RunFinished, workflow: &WorkflowName) {
        match record.status {
            RunStatus::Succeeded => {
                if self.failing.remove(workflow).is_none() {
                    return;
                }
            }
            RunStatus::Failed | RunStatus::TimedOut => {
                let mut why = record.reason.clone().unwrap_or_else(|| "no reason was given".to_owned());
                why.truncate(why.floor_char_boundary(MAX_WHY_BYTES));
                let says = format!("run {} of {workflow} {}: {why}", record.run, record.status);
                self.failing.entry(workflow.clone()).or_insert(says);
            }
            RunStatus::Cancelled | RunStatus::Running => return,
        }
        self.compare(AlertKind::RunFailed, workflow.as_str());
    }

    /// Notes whether something is to be said of a workflow.
    fn compare(&mut self, kind: AlertKind, about: &str) {
        let Some(workflow) = WorkflowName::new(about).ok().filter(|_| kind == AlertKind::RunFailed) else { return };
        if self.failing.contains_key(&workflow) == self.active(kind, about).is_some() {
            self.unsaid.remove(&workflow);
        } else {
            self.unsaid.insert(workflow);
        }
    }

    fn active(&self, kind: AlertKind, about: &str) -> Option<&AlertView> {
        self.kept.get(self.active.get(&kind)?.get(about)?)
    }

    /// How many are active, by severity.
    fn count(&self, severity: AlertSeverity) -> usize {
        let active = self.active.values().flat_map(BTreeMap::values).filter_map(|number| self.kept.get(number));
        active.filter(|alert| alert.severity == severity).count()
    }

    pub(crate) fn acknowledged(&mut self, stamp: Stamp, record: &AlertAcknowledged) {
        if let Some(alert) = self.kept.get_mut(&record.alert).filter(|alert| alert.acknowledged_at.is_none()) {
            (alert.acknowledged_at, alert.acknowledged_by) = (Some(stamp.at), record.by.clone());
        }
    }
}

/// Raises an alert, unless there is one of that kind about the same that matters as much.
pub(crate) fn raise(
    turn: &mut Turn<'_, ResourceManager>,
    severity: AlertSeverity,
    kind: AlertKind,
    about: &str,
    says: impl FnOnce() -> String,
) {
    let known = turn.state().alerts.active(kind, about).is_some_and(|known| known.severity >= severity);
    if known && !is_planted(Bug::AlertRaisedAgain) {
        return;
    }
    turn.emit(ResourceRecord::AlertRaised(AlertRaised { severity, kind, about: about.to_owned(), message: says() }));
    turn.count("baton_alerts_total", &[kind.as_str(), severity.as_str()], 1.0);
    show(turn);
}

/// What an alert was about is over.
pub(crate) fn clear(turn: &mut Turn<'_, ResourceManager>, kind: AlertKind, about: &str) {
    let Some(AlertView { alert, severity, kind, about, .. }) = turn.state().alerts.active(kind, about).cloned() else {
        return;
    };
    if !is_planted(Bug::AlertNeverCleared) {
        turn.emit(ResourceRecord::AlertCleared(AlertCleared { alert, severity, kind, about }));
        show(turn);
    }
}

/// What an alert about a breaker is about.
pub(crate) fn of_breaker(agent: &AgentId, capability: &Capability) -> String {
    format!("{agent}/{capability}")
}

/// The session of an agent is over: what was raised about its breakers is.
pub(crate) fn clear_breakers(turn: &mut Turn<'_, ResourceManager>, agent: &AgentId) {
    let prefix = format!("{agent}/");
    let active = turn.state().alerts.active.get(&AlertKind::BreakerOpened);
    let of_agent = active.into_iter().flat_map(|active| active.range(prefix.clone()..));
    let of_agent: Vec<_> =
        of_agent.map(|(about, _)| about.clone()).take_while(|about| about.starts_with(&prefix)).collect();
    for about in of_agent {
        clear(turn, AlertKind::BreakerOpened, &about);
    }
}

/// How much it matters that so much of something is used, in per cent of what may be; none: it does not.
pub(crate) fn severity_at(percent: usize) -> Option<AlertSeverity> {
    match percent {
        0..50 => None,
        50..80 => Some(AlertSeverity::Informational),
        80..100 => Some(AlertSeverity::Warning),
        100.. => Some(AlertSeverity::Critical),
    }
}

/// Looks at how many tasks wait.
pub(crate) fn look_at_queue(turn: &mut Turn<'_, ResourceManager>) {
    const ABOUT: &str = "queue";
    let (most, waiting) = (turn.config().alerts.queue_depth, turn.state().tasks.waiting());
    let percent = waiting.saturating_mul(100).checked_div(most).unwrap_or(0);
    if let Some(severity) = severity_at(percent) {
        let says = || format!("{waiting} tasks wait for an agent, which is {percent} % of what should");
        raise(turn, severity, AlertKind::QueueDepth, ABOUT, says);
    } else if percent < OVER_PERCENT {
        clear(turn, AlertKind::QueueDepth, ABOUT);
    }
}

/// Looks at how much of pools is used. It costs nothing while there is nothing to say.
pub(crate) fn look_at_pools(turn: &mut Turn<'_, ResourceManager>) {
    if !turn.config().alerts.pools {
        return;
    }
    let used_ms = if is_planted(Bug::AlertTooSoon) { 0 } else { turn.config().alerts.pool_used_ms };
    // Once more, for where an alert is over because there is more now, another one that matters less may have to be raised.
    for _ in 0..2 {
        let then = turn.now().checked_sub(used_ms);
        let due = turn.state().pools.due().until(then);
        if due.is_empty() {
            return;
        }
        for name in due {
            let Some(stock) = turn.state().pools.get(&name) else { continue };
            let Some((kind, says)) = kind_of(stock.pool.kind).zip(stock.says(&name)) else { continue };
            match says {
                Says::Raise(severity, text) => raise(turn, severity, kind, name.as_str(), || text),
                Says::Clear => clear(turn, kind, name.as_str()),
            }
        }
    }
}

/// When it is to be said next how much of a pool is used.
pub(crate) fn deadline(state: &ResourceManager, config: &Config) -> Option<Millis> {
    let AlertConfig { pools, pool_used_ms, .. } = config.alerts;
    // Else time would stand still for it.
    let spoilt = is_planted(Bug::AlertTooSoon) || is_planted(Bug::AlertNeverCleared);
    let oldest = state.pools.due().oldest().filter(|_| pools && !spoilt);
    oldest.map(|since| since.saturating_add(pool_used_ms))
}

/// A pool is gone: what was said of it is over.
pub(crate) fn clear_pool(turn: &mut Turn<'_, ResourceManager>, name: &ResourceName, kind: PoolKind) {
    if let Some(kind) = kind_of(kind) {
        clear(turn, kind, name.as_str());
    }
}

/// Looks at how runs ended, and at the queue.
pub(crate) fn react(turn: &mut Turn<'_, ResourceManager>) {
    look_at_runs(turn);
    look_at_queue(turn);
}

fn look_at_runs(turn: &mut Turn<'_, ResourceManager>) {
    let alerts = &turn.state().alerts;
    if alerts.unsaid.is_empty() {
        return;
    }
    let wanted = turn.config().alerts.run_failed;
    let unsaid: Vec<_> = alerts.unsaid.iter().map(|name| (name.clone(), alerts.failing.get(name).cloned())).collect();
    for (workflow, failing) in unsaid {
        match failing {
            Some(says) if wanted => {
                raise(turn, AlertSeverity::Warning, AlertKind::RunFailed, workflow.as_str(), || says);
            }
            Some(_) => {}
            None => clear(turn, AlertKind::RunFailed, workflow.as_str()),
        }
    }
}

/// Takes back what is not so: a predecessor may have been cut off between an alert and its fact, or a fact and its end.
pub(crate) fn lead(turn: &mut Turn<'_, ResourceManager>) {
    let active: Vec<_> = {
        let state = turn.state();
        let all = state.alerts.active.iter().flat_map(|(kind, of_kind)| of_kind.keys().map(|about| (*kind, about)));
        let is_over = |(kind, about): &(AlertKind, &String)| match kind {
            AlertKind::AgentLost => AgentId::new(about).is_ok_and(|agent| state.agents.is_present(&agent)),
            AlertKind::BreakerOpened => !state.breakers.is_shut(about),
            AlertKind::AgentRestart => {
                !AgentId::new(about).is_ok_and(|agent| state.breakers.restart_asked(&agent).is_some())
            }
            AlertKind::QueueDepth => false,
            AlertKind::RunFailed => !turn.config().alerts.run_failed,
            AlertKind::PoolUsed | AlertKind::BudgetUsed => {
                let stock = ResourceName::new(about).ok().and_then(|name| state.pools.get(&name));
                let said = stock.is_some_and(|stock| kind_of(stock.pool.kind) == Some(*kind) && stock.is_said());
                !said || !turn.config().alerts.pools
            }
            AlertKind::Pressure => state.pressure.level() == PressureLevel::None,
        };
        all.filter(is_over).map(|(kind, about)| (kind, about.clone())).collect()
    };
    for (kind, about) in active {
        clear(turn, kind, &about);
    }
    react(turn);
    look_at_pools(turn);
    show(turn);
}

pub(crate) fn list(turn: &Turn<'_, ResourceManager>, request: &ListAlerts) -> Reply {
    let ListAlerts { all, severity, kind, limit, before } = request;
    let wanted = |alert: &&AlertView| {
        (*all || alert.cleared_at.is_none() || alert.acknowledged_at.is_none())
            && severity.is_none_or(|least| alert.severity >= least)
            && kind.is_none_or(|kind| alert.kind == kind)
            && before.is_none_or(|before| alert.alert < before)
    };
    let limit = limit.map_or(100, |limit| limit as usize).min(MAX_KEPT);
    let found = turn.state().alerts.kept.values().rev().filter(wanted).take(limit);
    answer(&AlertList { alerts: found.cloned().collect() })
}

/// Acknowledging twice is acknowledging once: the answer may have got lost.
pub(crate) fn acknowledge(turn: &mut Turn<'_, ResourceManager>, request: AcknowledgeAlert) -> Reply {
    let AcknowledgeAlert { alert, by } = request;
    if by.as_ref().is_some_and(|by| by.len() > MAX_BY_BYTES) {
        return Err(Rejection::new(Code::TooLarge, format!("by has more than {MAX_BY_BYTES} bytes")));
    }
    let known = turn.state().alerts.kept.get(&alert).ok_or_else(|| {
        let message =
            format!("there is no alert {alert}: its id is wrong, or it is forgotten since {MAX_KEPT} came after it");
        Rejection::new(Code::UnknownAlert, message)
    })?;
    if known.acknowledged_at.is_none() {
        let AlertView { severity, kind, .. } = *known;
        turn.emit(ResourceRecord::AlertAcknowledged(AlertAcknowledged { alert, severity, kind, by }));
    }
    answer(&Done {})
}

/// Sets the gauges.
fn show(turn: &mut Turn<'_, ResourceManager>) {
    for severity in AlertSeverity::ALL {
        let count = turn.state().alerts.count(*severity);
        turn.gauge("baton_alerts_active", &[severity.as_str()], count as f64);
    }
}
