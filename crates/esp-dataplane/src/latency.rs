//! The workers' requests for a short wake-up latency, for `status`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use esp_linux::Errno;

/// The outcome of the workers' requests.
#[derive(Debug, Default)]
pub struct LatencyRequests {
    held: AtomicUsize,
    refused: OnceLock<Errno>,
}

impl LatencyRequests {
    /// Counts one more request as held.
    pub(crate) fn add(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one request less as held.
    pub(crate) fn remove(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    /// Records why there is no request; the first reason stays.
    pub(crate) fn refuse(&self, errno: Errno) {
        let _ = self.refused.set(errno);
    }

    /// True if a worker holds a request.
    #[must_use]
    pub fn held(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }

    /// The reason that a worker has no request, if it was to have one.
    #[must_use]
    pub fn refused(&self) -> Option<Errno> {
        self.refused.get().copied()
    }
}
