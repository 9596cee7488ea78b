//! The time that machines are given: near the wall clock, but never back, never standing still, and never in leaps that are
//! not real.

use baton_protocol::Millis;

/// Where the wall clock is ahead by more than this, it was set right, or the machine was suspended: time leaps after it. Where
/// it is ahead by less, it was put forward a little: time catches up slowly, so that no wait is cut short by much.
const LEAP_MS: Millis = 60_000;

/// A clock that catches up goes by an eighth faster than real time.
const CATCH_UP: Millis = 8;

/// A clock that follows the wall clock upwards. Where the wall clock is behind (it was set back, or the last leader's was
/// ahead), it goes on from where it was at the pace of real time.
///
/// It reads no clock itself: `wall` is the wall clock in milliseconds since 1970, `running` any clock in milliseconds that
/// only ever goes on.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    shows: Millis,
    /// What `running` was when it showed that.
    at: Millis,
    /// What real time has gone by since and is not made use of for catching up, in eighths of a millisecond.
    spare: Millis,
}

impl Clock {
    /// A clock that shows the wall clock.
    #[must_use]
    pub fn new(wall: Millis, running: Millis) -> Self {
        Self { shows: wall, at: running, spare: 0 }
    }

    /// The time, not before `known`: what the log or the machine has seen already.
    pub fn now(&mut self, wall: Millis, running: Millis, known: Millis) -> Millis {
        let gone_by = running.saturating_sub(self.at);
        self.at = self.at.max(running);
        self.shows = self.shows.saturating_add(gone_by).max(known);
        let behind = wall.saturating_sub(self.shows);
        self.spare = if behind == 0 { 0 } else { self.spare.saturating_add(gone_by) };
        if behind > LEAP_MS {
            self.shows = wall;
        } else {
            let by = behind.min(self.spare / CATCH_UP);
            self.spare -= by * CATCH_UP;
            self.shows += by;
        }
        self.shows
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
    }

    #[test]
    fn it_leaps_after_a_clock_that_was_set_and_catches_up_with_one_that_was_put_forward() {
        let mut clock = Clock::new(1000, 0);
        assert_eq!(clock.now(1000 + LEAP_MS + 1, 0, 0), 1000 + LEAP_MS + 1);
        let mut clock = Clock::new(1000, 0);
        let put_forward = |running: Millis| 1000 + running + 500;
        assert_eq!(clock.now(put_forward(0), 0, 0), 1000);
        // However often it is looked at, it goes by an eighth faster.
        let shows: Vec<_> = (1..=800).map(|running| clock.now(put_forward(running), running, 0)).collect();
        assert_eq!((shows[799], shows.is_sorted()), (1000 + 800 + 100, true));
        assert_eq!(clock.now(put_forward(4000), 4000, 0), 1000 + 4000 + 500);
        assert_eq!(clock.now(put_forward(9000), 9000, 0), 1000 + 9000 + 500);
    }
}
