//! How coordination goes altogether: the figures of the first source document.

use baton_protocol::Millis;
use baton_protocol::request::Figures as View;
use serde::{Deserialize, Serialize};

use crate::Optimizer;

/// Throughput is that of this many minutes.
const MINUTES: usize = 60;

/// Sums over all tasks that an agent had, since the log began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    placed: u64,
    waited_ms: u64,
    succeeded: u64,
    failed: u64,
    took_ms: u64,
    /// How many succeeded in each of the last minutes, the latest last, and which minute that is.
    minutes: Vec<u64>,
    minute: u64,
}

impl Figures {
    /// A task was placed.
    pub(crate) fn placed(&mut self, waited_ms: Millis) {
        self.placed += 1;
        self.waited_ms = self.waited_ms.saturating_add(waited_ms);
    }

    /// A task has ended that an agent had.
    pub(crate) fn ended(&mut self, at: Millis, succeeded: bool, took_ms: Millis) {
        if !succeeded {
            self.failed += 1;
            return;
        }
        self.succeeded += 1;
        self.took_ms = self.took_ms.saturating_add(took_ms);
        self.turn_to(at / 60_000);
        if let Some(last) = self.minutes.last_mut() {
            *last += 1;
        }
    }

    fn turn_to(&mut self, minute: u64) {
        let passed = usize::try_from(minute.saturating_sub(self.minute)).unwrap_or(MINUTES).min(MINUTES);
        let passed = if self.minutes.is_empty() { MINUTES } else { passed };
        self.minutes.drain(..passed.min(self.minutes.len()));
        self.minutes.resize(MINUTES, 0);
        self.minute = self.minute.max(minute);
    }

    /// What is shown, at a time, with what the leader alone knows.
    pub(crate) fn view(&self, state: &Optimizer, now: Millis, regret: Option<f64>) -> View {
        let part = |sum: u64, of: u64| (of > 0).then(|| sum as f64 / of as f64);
        let old = usize::try_from((now / 60_000).saturating_sub(self.minute)).unwrap_or(MINUTES);
        let loads = state.fleet.loads();
        View {
            total_coordinations: self.succeeded + self.failed,
            active_coordinations: loads.held,
            success_rate: part(self.succeeded, self.succeeded + self.failed),
            average_coordination_ms: part(self.took_ms, self.succeeded),
            average_wait_ms: part(self.waited_ms, self.placed),
            resource_efficiency: part(loads.held, loads.slots),
            throughput_per_hour: self.minutes.iter().skip(old).sum(),
            balance: loads.balance(),
            regret,
        }
    }
}
