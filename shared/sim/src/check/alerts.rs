//! The rules of alerts.

use std::collections::BTreeMap;

use baton_protocol::alert::{AlertAcknowledged, AlertCleared, AlertKind, AlertRaised, AlertSeverity, AlertView};
use baton_protocol::pressure::PressureLevel;
use baton_protocol::record::Stamp;
use baton_protocol::run::RunStatus;
use baton_protocol::{AgentId, Capability, Number, PoolKind, ResourceName, WorkflowName};
use baton_resource_manager::AlertConfig;

use super::{Checked, Facts, LATE, broken, hold};
use crate::coverage::Branch;

const ONE: &str = "of a kind there is one alert at a time about the same";
const ENDS: &str = "an alert ends once, and when it is over";
const TOLD: &str = "what a person should know of is told";
const SHOWN: &str = "an alert is shown as the log says";
const USED: &str = "an alert about a pool tells how much of it is used, and has been for long enough";

/// What is known of all alerts.
#[derive(Debug, Default)]
pub(super) struct Alerts {
    config: AlertConfig,
    alerts: BTreeMap<Number, Alert>,
    /// Whether the last run of a workflow that succeeded or not did not, and since when, in virtual microseconds.
    failing: BTreeMap<WorkflowName, u64>,
    /// Since when half of the tasks that may wait do, in virtual microseconds.
    queued: Option<u64>,
    /// Since when there is no alert that tells how much of a pool is used, in virtual microseconds.
    untold: BTreeMap<ResourceName, u64>,
}

#[derive(Debug)]
struct Alert {
    record: AlertRaised,
    over: bool,
    acknowledged: bool,
    /// When what it is about was last seen to be so, in virtual microseconds.
    so_on: u64,
}

impl Alerts {
    pub(super) fn new(config: AlertConfig) -> Self {
        Self { config, ..Self::default() }
    }

    fn active(&self, kind: AlertKind, about: &str) -> Option<(&Number, &Alert)> {
        let same = |(_, alert): &(&Number, &Alert)| alert.record.kind == kind && alert.record.about == about;
        self.alerts.iter().filter(|(_, alert)| !alert.over).find(same)
    }
}

impl Facts {
    pub(super) fn alert_raised(&mut self, stamp: Stamp, record: &AlertRaised) -> Checked {
        let now = self.now;
        let before =
            self.alerts.active(record.kind, &record.about).map(|(number, alert)| (*number, alert.record.severity));
        if let Some((number, severity)) = before {
            hold!(severity < record.severity, ONE, "{record:?} is raised, and alert {number} is not over");
            if let Some(alert) = self.alerts.alerts.get_mut(&number) {
                alert.over = true;
            }
            self.seen.push(Branch::AlertGrew);
        }
        self.pool_alert_raised(stamp, record)?;
        let alert = Alert { record: record.clone(), over: false, acknowledged: false, so_on: now };
        self.alerts.alerts.insert(stamp.number, alert);
        Ok(())
    }

    /// How much of a pool is used is told.
    fn pool_alert_raised(&mut self, stamp: Stamp, record: &AlertRaised) -> Checked {
        if !record.kind.is_of_pool() {
            return Ok(());
        }
        let name = ResourceName::new(&record.about).ok();
        let Some((name, (kind, percent))) = name.and_then(|name| Some((name.clone(), self.pools.used(&name)?))) else {
            return Err(broken(USED, format!("{record:?}, and there is no such pool")));
        };
        match record.kind {
            AlertKind::PoolUsed => {
                let since = self.pools.used_since(&name, least(record.severity));
                let long = since.is_some_and(|since| stamp.at >= since + self.alerts.config.pool_used_ms);
                hold!(kind == PoolKind::Held && long, USED, "{record:?}, at {}: it is so since {since:?}", stamp.at);
                self.seen.push(Branch::PoolAlert);
            }
            _ => {
                let right = kind == PoolKind::Consumed && Some(record.severity) == severity_of(percent);
                hold!(right, USED, "{record:?}, and {percent} % are spent");
                self.seen.push(Branch::BudgetAlert);
            }
        }
        Ok(())
    }

    /// It is said that less of a pool is used.
    fn pool_alert_cleared(&mut self, record: &AlertCleared) -> Checked {
        let used = ResourceName::new(&record.about).ok().and_then(|name| self.pools.used(&name));
        let Some((_, percent)) = used.filter(|_| record.kind.is_of_pool()) else { return Ok(()) };
        let over = match record.kind {
            AlertKind::PoolUsed => percent < 40,
            _ => severity_of(percent + 10) < Some(record.severity),
        };
        hold!(over, ENDS, "{record:?}, and {percent} % are used");
        self.seen.push(Branch::PoolAlertOver);
        Ok(())
    }

    pub(super) fn alert_cleared(&mut self, record: &AlertCleared) -> Checked {
        let known = self.alerts.alerts.get_mut(&record.alert).filter(|alert| !alert.over);
        let Some(alert) = known else { return Err(broken(ENDS, format!("{record:?}, and it had ended"))) };
        let same = (alert.record.severity, alert.record.kind, &alert.record.about)
            == (record.severity, record.kind, &record.about);
        hold!(same, ENDS, "{record:?} is not {:?}", alert.record);
        alert.over = true;
        self.pool_alert_cleared(record)
    }

    pub(super) fn alert_acknowledged(&mut self, record: &AlertAcknowledged) -> Checked {
        let known = self.alerts.alerts.get_mut(&record.alert).filter(|alert| !alert.acknowledged);
        let Some(alert) = known else { return Err(broken(ENDS, format!("{record:?}, and it was already"))) };
        alert.acknowledged = true;
        Ok(())
    }

    /// Whether what an alert tells is so.
    fn is_so(&self, alert: &AlertRaised) -> bool {
        match alert.kind {
            AlertKind::AgentLost => AgentId::new(&alert.about)
                .is_ok_and(|agent| self.agents.get(&agent).is_some_and(|agent| agent.gone.is_some())),
            AlertKind::BreakerOpened => alert.about.split_once('/').is_some_and(|(agent, capability)| {
                let names = AgentId::new(agent).ok().zip(Capability::new(capability).ok());
                names.is_some_and(|(agent, capability)| self.is_shut(&agent, &capability))
            }),
            AlertKind::AgentRestart => self.restarts().any(|(agent, _)| agent.as_str() == alert.about),
            AlertKind::QueueDepth => 10 * self.waiting() >= 4 * self.alerts.config.queue_depth,
            AlertKind::RunFailed => self.alerts.failing.keys().any(|workflow| workflow.as_str() == alert.about),
            AlertKind::PoolUsed | AlertKind::BudgetUsed => {
                let used = ResourceName::new(&alert.about).ok().and_then(|name| self.pools.used(&name));
                used.is_some_and(|(kind, percent)| match kind {
                    PoolKind::Held => percent >= 40,
                    PoolKind::Refilled | PoolKind::Consumed => severity_of(percent + 10) >= Some(alert.severity),
                })
            }
            AlertKind::Pressure => self.pressure.level() > PressureLevel::None,
        }
    }

    /// In the calm, an alert is over soon after what it tells is, and none is lacking.
    pub(super) fn alerts_are_so(&mut self, now: u64, calm: u64) -> Checked {
        let so: Vec<_> =
            self.alerts.alerts.iter().filter(|(_, a)| a.over || self.is_so(&a.record)).map(|(n, _)| *n).collect();
        for number in so {
            if let Some(alert) = self.alerts.alerts.get_mut(&number) {
                alert.so_on = now;
            }
        }
        for (number, alert) in &self.alerts.alerts {
            let late = now > alert.so_on.max(calm) + LATE;
            hold!(!late, ENDS, "alert {number} goes on, and what it tells is over: {:?}", alert.record);
        }
        for (agent, capability) in self.shut() {
            let about = format!("{agent}/{capability}");
            let told = self.alerts.active(AlertKind::BreakerOpened, &about).is_some();
            hold!(told, TOLD, "the breaker of {about} is not closed, and there is no alert");
        }
        for (agent, _) in self.restarts() {
            let told = self.alerts.active(AlertKind::AgentRestart, agent.as_str()).is_some();
            hold!(told, TOLD, "{agent} is asked to begin anew, and there is no alert");
        }
        let waiting = self.waiting();
        // One queue may end and another begin between two looks: while it is told, nobody waits to be told.
        let told = self.alerts.active(AlertKind::QueueDepth, "queue").is_some();
        let since = self.alerts.queued.filter(|_| !told).unwrap_or(now);
        let queued = (2 * waiting >= self.alerts.config.queue_depth).then_some(since);
        self.alerts.queued = queued;
        let failing = self.alerts.failing.iter().map(|(workflow, on)| (AlertKind::RunFailed, workflow.as_str(), *on));
        for (kind, about, on) in failing.chain(queued.map(|on| (AlertKind::QueueDepth, "queue", on))) {
            let told = self.alerts.active(kind, about).is_some() || now <= on.max(calm) + LATE;
            hold!(told, TOLD, "there is no {kind} alert about {about} ({waiting} tasks wait)");
        }
        self.pools_are_told(now, calm)
    }

    /// Of which pools much is used is told soon.
    fn pools_are_told(&mut self, now: u64, calm: u64) -> Checked {
        let mut untold = BTreeMap::new();
        for (name, kind, percent, since) in self.pools.to_be_told() {
            let kind = if kind == PoolKind::Held { AlertKind::PoolUsed } else { AlertKind::BudgetUsed };
            let active = self.alerts.active(kind, name.as_str()).map(|(_, alert)| alert.record.severity);
            // Of a held pool it may be less that it was all the while.
            let told = match kind {
                AlertKind::PoolUsed => active.is_some(),
                _ => (severity_of(percent)..=severity_of(percent + 10)).contains(&active),
            };
            if !told {
                let on = self.alerts.untold.get(&name).copied().unwrap_or(now).max(since);
                hold!(now <= on.max(calm) + LATE, TOLD, "{percent} % of {name} are used, and there is no alert");
                untold.insert(name, on);
            }
        }
        self.alerts.untold = untold;
        Ok(())
    }

    /// A run has ended.
    pub(super) fn alerts_run_finished(&mut self, workflow: WorkflowName, status: RunStatus) {
        match status {
            RunStatus::Succeeded => {
                self.alerts.failing.remove(&workflow);
            }
            RunStatus::Failed | RunStatus::TimedOut => {
                self.alerts.failing.entry(workflow).or_insert(self.now);
            }
            RunStatus::Cancelled | RunStatus::Running => {}
        }
    }

    /// An agent is lost: it was told before.
    pub(super) fn loss_is_told(&self, agent: &AgentId) -> Checked {
        let told = self.alerts.active(AlertKind::AgentLost, agent.as_str()).is_some();
        hold!(told, TOLD, "{agent} is lost, and there is no alert");
        Ok(())
    }

    /// Whether there is an alert of that kind about that, which matters at least so much.
    pub(super) fn alert_stands(&self, kind: AlertKind, about: &str, severity: AlertSeverity) -> bool {
        self.alerts.active(kind, about).is_some_and(|(_, alert)| alert.record.severity >= severity)
    }

    /// An alert was shown.
    pub(super) fn alert_shown(&self, view: &AlertView) -> Checked {
        let known = self.alerts.alerts.get(&view.alert);
        let Some(alert) = known else { return Err(broken(SHOWN, format!("{view:?}, and it was never raised"))) };
        let same = alert.record.kind == view.kind
            && alert.record.severity == view.severity
            && alert.record.about == view.about;
        hold!(same, SHOWN, "{view:?} is {:?}", alert.record);
        hold!(alert.over || view.cleared_at.is_none(), SHOWN, "{view:?}, and it goes on");
        hold!(alert.acknowledged || view.acknowledged_at.is_none(), SHOWN, "{view:?}, and nobody has acknowledged it");
        Ok(())
    }

    /// Whether an alert was acknowledged.
    pub(super) fn is_acknowledged(&self, alert: Number) -> bool {
        self.alerts.alerts.get(&alert).is_some_and(|alert| alert.acknowledged)
    }

    /// Whether there was an alert of that number.
    pub(super) fn is_alert(&self, alert: Number) -> bool {
        self.alerts.alerts.contains_key(&alert)
    }

    /// The number of the last alert, if there was one.
    pub(crate) fn last_alert(&self) -> Option<Number> {
        self.alerts.alerts.keys().next_back().copied()
    }
}

/// How much of a pool is used at the least, in per cent, for an alert that matters so much.
fn least(severity: AlertSeverity) -> u128 {
    match severity {
        AlertSeverity::Informational => 50,
        AlertSeverity::Warning => 80,
        AlertSeverity::Critical => 100,
    }
}

/// How much it matters that so much is used, in per cent.
fn severity_of(percent: u128) -> Option<AlertSeverity> {
    AlertSeverity::ALL.iter().rev().copied().find(|severity| percent >= least(*severity))
}
