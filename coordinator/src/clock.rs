//! The coordinator's clock. It stands still while this process does, so that a coordinator that was frozen for a while
//! does not take its own silence for that of all others.

use std::time::Duration;

use tokio::time::Instant;

use crate::machine::NowMs;

/// The clock is looked at this often at least.
const BEAT: Duration = Duration::from_millis(250);
/// A process that is looked after late by more than this did not run.
const LATE: Duration = Duration::from_secs(1);

/// Milliseconds in which this process ran.
pub(crate) struct Clock {
    started: Instant,
    last_beat: Instant,
    /// Time in which it did not run.
    away: Duration,
}

impl Clock {
    pub fn start(now: Instant) -> Self {
        Self { started: now, last_beat: now, away: Duration::ZERO }
    }

    /// When [`Clock::beat`] is due.
    pub fn next_beat(&self) -> Instant {
        self.last_beat + BEAT
    }

    /// Goes on to the present; whether the process did not run for a while before it.
    pub fn beat(&mut self, now: Instant) -> bool {
        let gap = now - std::mem::replace(&mut self.last_beat, now);
        let was_away = gap > BEAT + LATE;
        if was_away {
            self.away += gap;
        }
        was_away
    }

    /// As of the last beat.
    pub fn now(&self) -> NowMs {
        (self.last_beat - self.started - self.away).as_millis() as NowMs
    }

    /// When it will show `at`, if the process runs until then.
    pub fn instant_of(&self, at: NowMs) -> Instant {
        self.started + self.away + Duration::from_millis(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_the_process_did_not_run_does_not_count() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut clock = Clock::start(start);
        assert!([250, 500, 750, 1000].into_iter().all(|ms| !clock.beat(at(ms))));
        assert_eq!((clock.now(), clock.instant_of(2000)), (1000, at(2000)));
        assert!(clock.beat(at(61_000)));
        assert_eq!((clock.now(), clock.instant_of(2000)), (1000, at(62_000)));
        assert!(!clock.beat(at(61_250)));
        assert_eq!(clock.now(), 1250);
    }

    #[test]
    fn a_beat_that_comes_a_little_late_is_no_absence() {
        let start = Instant::now();
        let mut clock = Clock::start(start);
        assert!(!clock.beat(start + Duration::from_millis(900)));
        assert_eq!(clock.now(), 900);
    }
}
