//! Counters of carried and dropped packets, one set for each worker.

use std::ops::AddAssign;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::DropReason;

/// Inner packets and their bytes, and the drops by reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Packets carried.
    pub packets: u64,
    /// Bytes of inner packets carried.
    pub bytes: u64,
    /// Packets dropped, by `DropReason::index`.
    pub drops: [u64; DropReason::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            packets: 0,
            bytes: 0,
            drops: [0; DropReason::COUNT],
        }
    }
}

impl Counters {
    /// The drops for one reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason.index()).copied().unwrap_or_default()
    }

    /// The reasons that occurred, each with its count.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|&reason| (reason, self.dropped(reason)))
            .filter(|&(_, count)| count != 0)
    }
}

impl AddAssign<&Self> for Counters {
    fn add_assign(&mut self, other: &Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        for (mine, theirs) in self.drops.iter_mut().zip(&other.drops) {
            *mine = mine.wrapping_add(*theirs);
        }
    }
}

/// Counters that one thread writes and others may read at any time, without a lock or a
/// read-modify-write. Memory for the drops is allocated with the first one.
#[derive(Debug, Default)]
pub struct Tally {
    packets: AtomicU64,
    bytes: AtomicU64,
    drops: OnceLock<Box<[AtomicU64; DropReason::COUNT]>>,
}

impl Tally {
    /// Counts carried packets. Called by the owning thread only.
    pub fn carried(&self, packets: u64, bytes: u64) {
        add(&self.packets, packets);
        add(&self.bytes, bytes);
    }

    /// Counts dropped packets. Called by the owning thread only.
    pub fn dropped(&self, reason: DropReason, packets: u64) {
        let drops = self
            .drops
            .get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
        if let Some(counter) = drops.get(reason.index()) {
            add(counter, packets);
        }
    }

    /// A copy of the counts.
    #[must_use]
    pub fn snapshot(&self) -> Counters {
        let mut counters = Counters {
            packets: self.packets.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            ..Counters::default()
        };
        if let Some(drops) = self.drops.get() {
            for (copy, counter) in counters.drops.iter_mut().zip(drops.iter()) {
                *copy = counter.load(Relaxed);
            }
        }
        counters
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(count), Relaxed);
}
