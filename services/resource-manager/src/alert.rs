//! Alerts: what a person should know of, raised once, kept until it is over.
//!
//! An alert stands *before* the fact that it tells of, and its end *after* the fact that ends it. So where a turn is cut in
//! two by a crash there may be an alert too many, never one too few; a new leader takes back those that are not so.

use std::collections::BTreeMap;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Reply, Turn, answer};
use baton_protocol::alert::{AlertAcknowledged, AlertCleared, AlertKind, AlertRaised, AlertSeverity, AlertView};
use baton_protocol::record::{Commit, ResourceRecord, RunFinished, Stamp, WorkflowRecord};
use baton_protocol::request::{AcknowledgeAlert, AlertList, Done, ListAlerts};
use baton_protocol::run::RunStatus;
use baton_protocol::{AgentId, Capability, Code, Number, Rejection, RunId, WorkflowName};
use serde::{Deserialize, Serialize};

use crate::ResourceManager;

/// How many alerts are kept. Of more, the oldest that are over are forgotten, and then the oldest.
const MAX_KEPT: usize = 1000;
/// The longest name of who acknowledges, in bytes.
const MAX_BY_BYTES: usize = 200;

/// When alerts are raised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertConfig {
    /// When so many tasks wait for an agent; 0: never. It is over when they are fewer than half of that, and critical when they
    /// are ten times as many.
    pub queue_depth: usize,
    /// When a run fails or takes too long. It is over when a later run of that workflow succeeds.
    pub run_failed: bool,
}

impl Default for AlertConfig {
    fn default() -> Self {
        Self { queue_depth: 1000, run_failed: false }
    }
}

/// The alerts that are active, and the latest of those that are over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Alerts {
    kept: BTreeMap<Number, AlertView>,
    /// Those that are not over, by what they are about: of a kind there is one at a time.
    active: BTreeMap<AlertKind, BTreeMap<String, Number>>,
    /// The latest runs that ended so that an alert may follow, and whose they were.
    ended: BTreeMap<RunId, WorkflowName>,
}

impl Alerts {
    pub(crate) fn raised(&mut self, stamp: Stamp, record: &AlertRaised) {
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
        if self.kept.len() > MAX_KEPT {
            let over = self.kept.iter().find(|(_, alert)| alert.cleared_at.is_some()).map(|(number, _)| *number);
            let forgotten = match over {
                Some(over) => self.kept.remove(&over),
                None => self.kept.pop_first().map(|(_, oldest)| oldest),
            };
            if let Some(forgotten) = forgotten {
                self.end(&forgotten);
            }
        }
    }

    pub(crate) fn cleared(&mut self, stamp: Stamp, record: &AlertCleared) {
        let Some(alert) = self.kept.get_mut(&record.alert) else { return };
        alert.cleared_at.get_or_insert(stamp.at);
        let alert = alert.clone();
        self.end(&alert);
    }

    fn end(&mut self, alert: &AlertView) {
        if let Some(of_kind) = self.active.get_mut(&alert.kind)
            && of_kind.get(&alert.about) == Some(&alert.alert)
        {
            of_kind.remove(&alert.about);
        }
    }

    /// A run has ended. Of a run that is over nothing else is known.
    pub(crate) fn run_finished(&mut self, record: &RunFinished, workflow: &WorkflowName) {
        let recovers =
            record.status == RunStatus::Succeeded && self.active(AlertKind::RunFailed, workflow.as_str()).is_some();
        if recovers || matches!(record.status, RunStatus::Failed | RunStatus::TimedOut) {
            self.ended.insert(record.run, workflow.clone());
            if self.ended.len() > MAX_KEPT {
                self.ended.pop_first();
            }
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
    about: impl Into<String>,
    message: impl Into<String>,
) {
    let about = about.into();
    let known = turn.state().alerts.active(kind, &about).is_some_and(|known| known.severity >= severity);
    if known && !is_planted(Bug::AlertRaisedAgain) {
        return;
    }
    turn.emit(ResourceRecord::AlertRaised(AlertRaised { severity, kind, about, message: message.into() }));
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

/// Looks at how many tasks wait.
pub(crate) fn look_at_queue(turn: &mut Turn<'_, ResourceManager>) {
    const ABOUT: &str = "queue";
    let (most, waiting) = (turn.config().alerts.queue_depth, turn.state().tasks.waiting());
    if most == 0 || waiting < most {
        if waiting < most.div_ceil(2) || most == 0 {
            clear(turn, AlertKind::QueueDepth, ABOUT);
        }
        return;
    }
    let severity = if waiting >= most.saturating_mul(10) { AlertSeverity::Critical } else { AlertSeverity::Warning };
    raise(turn, severity, AlertKind::QueueDepth, ABOUT, format!("{waiting} tasks wait for an agent"));
}

/// Looks at how runs ended, and at the queue. The state has let go of the runs already.
pub(crate) fn react(turn: &mut Turn<'_, ResourceManager>, commit: &Commit<WorkflowRecord>) {
    for (_, record) in commit.stamped() {
        let WorkflowRecord::RunFinished(record) = record else { continue };
        let Some(workflow) = turn.state().alerts.ended.get(&record.run).cloned() else { continue };
        match record.status {
            RunStatus::Succeeded => clear(turn, AlertKind::RunFailed, workflow.as_str()),
            RunStatus::Failed | RunStatus::TimedOut if turn.config().alerts.run_failed => {
                let why = record.reason.as_deref().unwrap_or("no reason was given");
                let message = format!("run {} of {workflow} {}: {why}", record.run, record.status);
                raise(turn, AlertSeverity::Warning, AlertKind::RunFailed, workflow.as_str(), message);
            }
            RunStatus::Failed | RunStatus::TimedOut | RunStatus::Cancelled | RunStatus::Running => {}
        }
    }
    look_at_queue(turn);
}

/// Takes back what is not so: a predecessor may have been cut off between an alert and its fact, or a fact and its end.
pub(crate) fn lead(turn: &mut Turn<'_, ResourceManager>) {
    let active: Vec<_> = {
        let state = turn.state();
        let all = state.alerts.active.iter().flat_map(|(kind, of_kind)| of_kind.keys().map(|about| (*kind, about)));
        let is_over = |(kind, about): &(AlertKind, &String)| match kind {
            AlertKind::AgentLost => AgentId::new(about).is_ok_and(|agent| state.agents.is_present(&agent)),
            AlertKind::BreakerOpened => !state.breakers.is_shut(about),
            AlertKind::QueueDepth | AlertKind::RunFailed => false,
        };
        all.filter(is_over).map(|(kind, about)| (kind, about.clone())).collect()
    };
    for (kind, about) in active {
        clear(turn, kind, &about);
    }
    look_at_queue(turn);
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
