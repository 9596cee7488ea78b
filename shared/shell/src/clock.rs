//! The time that machines are given: [`baton_machine::Clock`] over this machine's clocks.

use std::time::{Duration, Instant};

use baton_protocol::Millis;

use crate::now_ms;

/// A clock that follows the wall clock upwards, and never stands still.
#[derive(Debug)]
pub(crate) struct Clock {
    clock: baton_machine::Clock,
    start: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { clock: baton_machine::Clock::new(now_ms(), 0), start: Instant::now() }
    }

    /// The time, not before `known`: what the log or the machine has seen already.
    pub(crate) fn now(&mut self, known: Millis) -> Millis {
        let running = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.clock.now(now_ms(), running, known)
    }

    /// How long until a time.
    pub(crate) fn until(&mut self, time: Millis, known: Millis) -> Duration {
        Duration::from_millis(time.saturating_sub(self.now(known)))
    }
}
