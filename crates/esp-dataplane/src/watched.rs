//! Numbers of an inbound SA that mean something to the control plane: what may be a replay from before
//! a crash, and where the ceiling on disk has to be raised.

use std::sync::atomic::{AtomicU64, Ordering};

/// The fence of an inbound SA, and the number whose passing is reported.
#[derive(Debug)]
pub struct Watched {
    fence: u64,
    notice_at: AtomicU64,
}

impl Watched {
    /// Numbers up to `fence` don't tell where a peer is that may be anywhere; the first above
    /// `notice_at` is reported.
    #[must_use]
    pub const fn new(fence: u64, notice_at: u64) -> Self {
        Self {
            fence,
            notice_at: AtomicU64::new(notice_at),
        }
    }

    /// True if a number was received by this process first: no former one has accepted it.
    #[must_use]
    pub const fn is_new(&self, seq: u64) -> bool {
        seq > self.fence
    }

    /// True for a number that has to be reported, if [`Self::take`] agrees.
    #[inline]
    #[must_use]
    pub fn is_passed(&self, seq: u64) -> bool {
        seq > self.notice_at.load(Ordering::Relaxed)
    }

    /// True for the one packet, of those of all workers, by which the passing is reported.
    #[cold]
    pub fn take(&self, seq: u64) -> bool {
        self.notice_at.swap(u64::MAX, Ordering::Relaxed) < seq
    }

    /// Reports the next number above this one.
    pub fn watch(&self, notice_at: u64) {
        self.notice_at.store(notice_at, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passed_number_is_reported_once_until_another_one_is_watched() {
        let watched = Watched::new(10, 20);
        assert!(!watched.is_new(10) && watched.is_new(11));
        assert!(!watched.is_passed(20));
        assert!(watched.is_passed(21) && watched.take(21));
        assert!(!watched.is_passed(u64::MAX) && !watched.take(30));
        watched.watch(25);
        assert!(watched.is_passed(30) && watched.take(30));
    }
}
