//! The time that machines are given: the wall clock, but never back, and never standing still.

use std::time::{Duration, Instant};

use baton_protocol::Millis;

use crate::now_ms;

/// A clock that follows the wall clock upwards. Where the wall clock is behind (it was set back, or the last leader's was
/// ahead), it goes on from where it was at the pace of real time.
#[derive(Debug)]
pub(crate) struct Clock {
    floor: Millis,
    since: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { floor: now_ms(), since: Instant::now() }
    }

    /// The time, not before `known`: what the log or the machine has seen already.
    pub(crate) fn now(&mut self, known: Millis) -> Millis {
        self.at(now_ms(), known)
    }

    fn at(&mut self, wall: Millis, known: Millis) -> Millis {
        let running = self.floor + u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let ahead = wall.max(known);
        if ahead > running {
            (self.floor, self.since) = (ahead, Instant::now());
            return ahead;
        }
        running
    }

    /// How long until a time.
    pub(crate) fn until(&mut self, time: Millis, known: Millis) -> Duration {
        Duration::from_millis(time.saturating_sub(self.now(known)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_on_when_the_wall_clock_is_behind() {
        let mut clock = Clock { floor: 1000, since: Instant::now() - Duration::from_millis(50) };
        assert!((1050..2000).contains(&clock.at(10, 0)));
        // Another leader's clock was an hour ahead: time goes on from there.
        let hour = 3_600_000;
        assert_eq!(clock.at(1100, hour), hour);
        clock.since -= Duration::from_millis(30);
        assert!((hour + 30..hour + 1000).contains(&clock.at(1200, hour)));
        assert_eq!(clock.at(2 * hour, 0), 2 * hour);
    }
}
