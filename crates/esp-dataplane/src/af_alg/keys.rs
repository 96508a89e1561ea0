//! Accounting of an engine's keys in the kernel: suites, number, failure.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use esp_core::esp::suite::Suite;
use esp_linux::Error;

use crate::events::{Event, Events};

/// Most keys in the kernel: each takes up to ten file descriptors, of 1024 that a process often
/// has. Further keys are the library's.
pub(crate) const MAX_KEYS: usize = 64;

/// An engine's use of `AF_ALG`, until the first failure.
#[derive(Debug)]
pub struct AfAlgKeys {
    suites: Vec<&'static Suite>,
    keys: AtomicUsize,
    failure: OnceLock<Error>,
    events: Arc<Events>,
}

impl AfAlgKeys {
    /// Enables it for these suites; an event reports the failure to the control plane.
    #[must_use]
    pub fn new(suites: Vec<&'static Suite>, events: Arc<Events>) -> Self {
        Self {
            suites,
            keys: AtomicUsize::new(0),
            failure: OnceLock::new(),
            events,
        }
    }

    /// The error that ended its use, if any.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.failure.get().copied()
    }

    /// Disables it for every key: after a failure with one it is not trusted with another.
    pub(crate) fn disable(&self, why: Error) {
        if self.failure.set(why).is_ok() {
            self.events.push(Event::AfAlgLost(why));
        }
    }

    /// True if the kernel may get another key.
    pub(crate) fn has_room(&self) -> bool {
        self.keys.load(Ordering::Relaxed) < MAX_KEYS
    }

    /// Counts a key in the kernel; false at the limit.
    pub(crate) fn count_key(&self) -> bool {
        let count = |keys| (keys < MAX_KEYS).then_some(keys + 1);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        self.keys.fetch_update(set, get, count).is_ok()
    }

    /// Uncounts a key that was removed from the kernel.
    pub(crate) fn forget_key(&self) {
        self.keys.fetch_sub(1, Ordering::Relaxed);
    }

    /// True if the kernel is used for a suite.
    pub(crate) fn has(&self, suite: &Suite) -> bool {
        self.failure().is_none() && self.suites.contains(&suite)
    }
}
