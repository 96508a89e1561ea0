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
pub struct Kernel {
    suites: Vec<&'static Suite>,
    keys: AtomicUsize,
    lost: OnceLock<Error>,
    events: Arc<Events>,
}

impl Kernel {
    /// Use it for these suites; the control plane is told when that ends.
    #[must_use]
    pub fn new(suites: Vec<&'static Suite>, events: Arc<Events>) -> Self {
        Self {
            suites,
            keys: AtomicUsize::new(0),
            lost: OnceLock::new(),
            events,
        }
    }

    /// Why it is not used any more, where it is not.
    #[must_use]
    pub fn lost(&self) -> Option<Error> {
        self.lost.get().copied()
    }

    /// Use it no more, for no key: what failed for one is not trusted with another.
    pub(crate) fn lose(&self, why: Error) {
        if self.lost.set(why).is_ok() {
            self.events.push(Event::AfAlgLost(why));
        }
    }

    /// Whether there may be keys in the kernel at all.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.suites.is_empty()
    }

    /// Whether the kernel may get another key.
    pub(crate) fn has_room(&self) -> bool {
        self.keys.load(Ordering::Relaxed) < MAX_KEYS
    }

    /// Count a key in the kernel; false where there are enough.
    pub(crate) fn count_key(&self) -> bool {
        let count = |keys| (keys < MAX_KEYS).then_some(keys + 1);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        self.keys.fetch_update(set, get, count).is_ok()
    }

    /// Count a key that is not in the kernel any more.
    pub(crate) fn forget_key(&self) {
        self.keys.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether a suite's packets are the kernel's.
    pub(crate) fn has(&self, suite: &Suite) -> bool {
        self.lost().is_none() && self.suites.contains(&suite)
    }
}
