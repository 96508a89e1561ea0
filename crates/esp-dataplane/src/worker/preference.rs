//! The priority of lane 0's worker over the others, while it carries little.

use std::time::{Duration, Instant};

use esp_core::sync::lock;
use esp_linux::priority::{nice, set_nice};
use esp_linux::{Errno, Result};

use crate::shared::Shared;

/// The nice value of a worker that carries sparse flows alone. One that carries bulk keeps its own: a
/// worker that preempts the sender at each packet finds batches of one.
const PREFERRED: i32 = -11;
/// Time in which the load of turns is counted together.
const INTERVAL: Duration = Duration::from_millis(100);
/// Load of an interval, of both directions, from which on a worker carries bulk: 42 Mbit/s, or 10,000
/// small packets a second.
const LOTS: usize = 512 * 1024;
/// Time after the last such interval in which it still counts as one that does.
const REST: Duration = Duration::from_secs(2);

/// Decides if a worker carries bulk, without clock and system call.
#[derive(Debug, Default)]
struct Load {
    since: Option<Instant>,
    sum: usize,
    until: Option<Instant>,
}

impl Load {
    /// Counts the load of a turn that ends now; true if the worker carries bulk.
    fn is_bulk(&mut self, load: usize, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= INTERVAL {
            self.since = Some(now);
            self.sum = 0;
        }
        self.sum = self.sum.saturating_add(load);
        if self.sum >= LOTS {
            self.until = now.checked_add(REST);
        }
        self.until.is_some_and(|until| now < until)
    }
}

/// The nice value of one worker's thread.
#[derive(Debug, Default)]
pub(super) struct Preference {
    /// True if the worker receives for lane 0 alone, and the kernel has not refused.
    is_allowed: bool,
    /// The nice value before it was preferred.
    before: Option<i32>,
    load: Load,
}

impl Preference {
    /// True if the load decides.
    pub(super) const fn is_allowed(&self) -> bool {
        self.is_allowed
    }

    /// Prefers this thread while it carries little, or no longer.
    pub(super) fn allow(&mut self, is_allowed: bool, shared: &Shared) {
        self.is_allowed = is_allowed;
        self.load = Load::default();
        self.set(is_allowed, shared);
    }

    /// Follows a turn of this load.
    pub(super) fn after(&mut self, load: usize, now: Instant, shared: &Shared) {
        let is_preferred = !self.load.is_bulk(load, now);
        if is_preferred != self.before.is_some() {
            self.set(is_preferred, shared);
        }
    }

    /// A refusal of the kernel is recorded for the status, and the change not tried again.
    fn set(&mut self, is_preferred: bool, shared: &Shared) {
        let changed = self.change(is_preferred);
        let priority = self.before.and_then(|_| nice().ok());
        let refused = changed
            .err()
            .map(|error| error.errno().unwrap_or(Errno::PERM));
        self.is_allowed &= refused.is_none();
        let refused = refused.map_or_else(String::new, |errno| errno.to_string());
        *lock(&shared.priority) = (priority, refused);
    }

    fn change(&mut self, is_preferred: bool) -> Result<()> {
        match (self.before, is_preferred) {
            (None, true) => {
                let before = nice()?;
                set_nice(PREFERRED.min(before))?;
                self.before = Some(before);
            }
            (Some(before), false) => {
                set_nice(before)?;
                self.before = None;
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_carries_bulk_from_much_in_an_interval_on_until_it_has_rested() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut load = Load::default();
        assert!(!load.is_bulk(LOTS - 1, at(0)));
        assert!(!load.is_bulk(LOTS - 1, at(100)), "another interval");
        assert!(load.is_bulk(1, at(199)));
        assert!(load.is_bulk(84, at(2198)));
        assert!(!load.is_bulk(84, at(2199)));
        assert!(load.is_bulk(usize::MAX, at(2200)));
    }
}
