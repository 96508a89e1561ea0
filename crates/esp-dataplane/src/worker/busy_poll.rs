//! Busy polling: the decision when an idle worker sleeps, without clock and poller.

use std::time::{Duration, Instant};

/// Decides the timeout of the next wait.
#[derive(Debug)]
pub struct BusyPoll {
    busy: Duration,
    until: Option<Instant>,
}

impl BusyPoll {
    /// Busy-polls for this time after the last work; zero means to sleep at once.
    #[must_use]
    pub const fn new(busy: Duration) -> Self {
        Self { busy, until: None }
    }

    /// The next wait's timeout: zero while the worker busy-polls, None to sleep until there is
    /// work. The clock is read only if the answer needs it.
    pub fn timeout(&mut self, worked: bool, now: impl FnOnce() -> Instant) -> Option<Duration> {
        if self.busy.is_zero() || (!worked && self.until.is_none()) {
            return None;
        }
        let now = now();
        if worked {
            self.until = now.checked_add(self.busy);
        }
        self.until = self.until.filter(|&until| now < until);
        self.until.map(|_| Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Duration = Duration::from_micros(50);
    const SHORT: Duration = Duration::from_micros(49);

    #[test]
    fn a_worker_looks_for_its_time_after_the_last_work_and_sleeps_then() {
        let began = Instant::now();
        let mut busy_poll = BusyPoll::new(BUSY);
        assert_eq!(busy_poll.timeout(false, || began), None, "nothing yet");
        assert_eq!(busy_poll.timeout(true, || began), Some(Duration::ZERO));
        let soon = began + SHORT;
        assert_eq!(busy_poll.timeout(false, || soon), Some(Duration::ZERO));
        // More work restarts the time.
        assert_eq!(busy_poll.timeout(true, || soon), Some(Duration::ZERO));
        let later = soon + SHORT;
        assert_eq!(busy_poll.timeout(false, || later), Some(Duration::ZERO));
        assert_eq!(busy_poll.timeout(false, || soon + BUSY), None);
        // After a sleep only work starts busy polling.
        assert_eq!(busy_poll.timeout(false, || began), None);
    }

    #[test]
    fn without_busy_polling_the_clock_is_never_read() {
        let mut busy_poll = BusyPoll::new(Duration::ZERO);
        for worked in [true, false] {
            assert_eq!(busy_poll.timeout(worked, || panic!("the clock")), None);
        }
    }
}
