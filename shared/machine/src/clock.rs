//! The time that machines are given: the wall clock, but never back, and never standing still.

use baton_protocol::Millis;

/// A clock that follows the wall clock upwards. Where the wall clock is behind (it was set back, or the last leader's was
/// ahead), it goes on from where it was at the pace of real time.
///
/// It reads no clock itself: `wall` is the wall clock in milliseconds since 1970, `running` any clock in milliseconds that
/// only ever goes on.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    floor: Millis,
    since: Millis,
}

impl Clock {
    /// A clock that shows the wall clock.
    #[must_use]
    pub fn new(wall: Millis, running: Millis) -> Self {
        Self { floor: wall, since: running }
    }

    /// The time, not before `known`: what the log or the machine has seen already.
    pub fn now(&mut self, wall: Millis, running: Millis, known: Millis) -> Millis {
        let on = self.floor.saturating_add(running.saturating_sub(self.since));
        let ahead = wall.max(known);
        if ahead > on {
            *self = Self::new(ahead, running);
            return ahead;
        }
        on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_on_when_the_wall_clock_is_behind() {
        let mut clock = Clock::new(1000, 7);
        assert_eq!(clock.now(10, 57, 0), 1050);
        // Another leader's clock was an hour ahead: time goes on from there.
        let hour = 3_600_000;
        assert_eq!(clock.now(1100, 60, hour), hour);
        assert_eq!(clock.now(1200, 90, hour), hour + 30);
        assert_eq!(clock.now(2 * hour, 91, 0), 2 * hour);
    }
}
