//! The keys that an engine has in the kernel: for which suites, how many, and until when.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use esp_core::esp::suite::Suite;
use esp_linux::Error;

use crate::events::{Event, Events};

/// Keys in the kernel: each takes up to ten file descriptors, of 1024 that a process often has. All
/// further ones are in the library alone.
pub(crate) const MAX_KEYS: usize = 64;

/// `AF_ALG` as an engine uses it, until it fails.
#[derive(Debug)]
pub struct AfAlgKeys {
    suites: Vec<&'static Suite>,
    keys: AtomicUsize,
    failure: OnceLock<Error>,
    events: Arc<Events>,
}

impl AfAlgKeys {
    /// Uses it for these suites; the control plane is told when that ends.
    #[must_use]
    pub fn new(suites: Vec<&'static Suite>, events: Arc<Events>) -> Self {
        Self {
            suites,
            keys: AtomicUsize::new(0),
            failure: OnceLock::new(),
            events,
        }
    }

    /// Why it is not used any more, where it is not.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.failure.get().copied()
    }

    /// Uses it no more, for no key: what failed for one is not trusted with another.
    pub(crate) fn disable(&self, why: Error) {
        if self.failure.set(why).is_ok() {
            self.events.push(Event::AfAlgLost(why));
        }
    }

    /// Tells whether there may be keys in the kernel at all.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.suites.is_empty()
    }

    /// Tells whether the kernel may get another key.
    pub(crate) fn has_room(&self) -> bool {
        self.keys.load(Ordering::Relaxed) < MAX_KEYS
    }

    /// Counts a key in the kernel; false where there are enough.
    pub(crate) fn count_key(&self) -> bool {
        let count = |keys| (keys < MAX_KEYS).then_some(keys + 1);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        self.keys.fetch_update(set, get, count).is_ok()
    }

    /// Counts a key that is not in the kernel any more.
    pub(crate) fn forget_key(&self) {
        self.keys.fetch_sub(1, Ordering::Relaxed);
    }

    /// Tells whether a suite's packets are the kernel's.
    pub(crate) fn has(&self, suite: &Suite) -> bool {
        self.failure().is_none() && self.suites.contains(&suite)
    }
}
