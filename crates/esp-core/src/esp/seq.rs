//! Outbound sequence numbers, taken from leases by any number of workers (RFC 4303 2.2, 3.3.3).

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crate::DropReason;
use crate::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, lock};

/// Sentinel: threshold already reported.
const NEVER: u64 = u64::MAX;

/// Sequence numbers `first` to `last`, both included and on disk as used; none where `last` is
/// `first - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The lowest number.
    pub first: u64,
    /// The highest number.
    pub last: u64,
}

/// Numbers reserved for one worker: `count` from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqRange {
    /// The lowest number.
    pub first: u64,
    /// Number of sequence numbers, at least one.
    pub count: u32,
}

impl SeqRange {
    /// The highest number.
    #[must_use]
    pub const fn last(self) -> u64 {
        self.first + (self.count as u64 - 1)
    }
}

/// A lease that begins at 0, overlaps an earlier one, or goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseError {
    /// The refused lease.
    pub lease: Lease,
    /// The highest number leased so far.
    pub leased: u64,
}

impl fmt::Display for LeaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the lease of {} to {} goes back: sequence numbers to {} are leased already",
            self.lease.first, self.lease.last, self.leased
        )
    }
}

impl std::error::Error for LeaseError {}

/// The sequence numbers of one outbound SA, and of the SA with the same key that replaces it.
///
/// The 64-bit sequence number is the IV, so no number may be given out twice: `used` only grows,
/// by a compare-and-swap that stays within the lease. An SA and its replacement draw from one
/// counter, and each stays within its own last number.
#[derive(Debug)]
pub struct SeqCounter {
    numbers: Arc<Numbers>,
    lifetime: Arc<Lifetime>,
}

/// The numbers of one key.
#[derive(Debug)]
#[repr(align(64))]
struct Numbers {
    /// The highest number given out; the next is one more.
    used: AtomicU64,
    /// The highest number that may be given out now.
    limit: AtomicU64,
    /// Threshold of `used`: half of the numbers that were left at the last extension.
    low: AtomicU64,
    /// Leases behind a gap, each the numbers above the first value up to the second.
    later: Mutex<VecDeque<(u64, u64)>>,
}

/// The end of the numbers: without ESN another than with it.
#[derive(Debug)]
struct Lifetime {
    last_seq: u64,
    soft: AtomicU64,
    expired: AtomicBool,
}

impl Lifetime {
    fn new(last_seq: u64) -> Arc<Self> {
        Arc::new(Self {
            last_seq,
            // Soft lifetime with an eighth of the numbers left: without ESN, hours at a gigabit.
            soft: AtomicU64::new((last_seq - last_seq / 8).saturating_sub(1)),
            expired: AtomicBool::new(false),
        })
    }
}

impl SeqCounter {
    /// Begins at the lease's first number; `last_seq` is the highest that the SA may use.
    ///
    /// # Errors
    /// `LeaseError` for a lease that begins at 0 or ends before it begins.
    pub fn new(last_seq: u64, lease: Lease) -> Result<Self, LeaseError> {
        let before = lease
            .first
            .checked_sub(1)
            .ok_or(LeaseError { lease, leased: 0 })?;
        let used = before.min(last_seq);
        let counter = Self {
            numbers: Arc::new(Numbers {
                used: AtomicU64::new(used),
                limit: AtomicU64::new(used),
                low: AtomicU64::new(NEVER),
                later: Mutex::new(VecDeque::new()),
            }),
            lifetime: Lifetime::new(last_seq),
        };
        counter.extend(lease)?;
        Ok(counter)
    }

    /// The same numbers for an SA with the same key, which may use those up to `last_seq`.
    #[must_use]
    pub fn continued(&self, last_seq: u64) -> Self {
        let lifetime = if last_seq == self.lifetime.last_seq {
            Arc::clone(&self.lifetime)
        } else {
            Lifetime::new(last_seq)
        };
        let numbers = Arc::clone(&self.numbers);
        Self { numbers, lifetime }
    }

    /// True if both draw from one counter: the SAs are one, or one replaces the other.
    #[must_use]
    pub fn continues(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.numbers, &other.numbers)
    }

    /// Adds the numbers of a lease that begins where the last one ends, or later; numbers beyond
    /// the SA's last one are left out.
    ///
    /// # Errors
    /// `LeaseError` for a lease that overlaps an earlier one or goes back.
    pub fn extend(&self, lease: Lease) -> Result<(), LeaseError> {
        let numbers = &self.numbers;
        let mut later = lock(&numbers.later);
        let limit = numbers.limit.load(Ordering::Acquire);
        let leased = later.back().map_or(limit, |&(_, last)| last);
        let error = LeaseError { lease, leased };
        let before = lease.first.checked_sub(1).ok_or(error)?;
        if before < leased || lease.last < before {
            return Err(error);
        }
        // More than the last number may be leased, to an SA with ESN that this one replaced.
        let bound = self.lifetime.last_seq.max(leased);
        let (before, last) = (before.min(bound), lease.last.min(bound));
        if before == limit && later.is_empty() {
            numbers.limit.store(last, Ordering::Release);
        } else {
            later.push_back((before, last));
        }
        numbers
            .low
            .store(numbers.half_used(&later), Ordering::Relaxed);
        Ok(())
    }

    /// Reserves up to `n` consecutive numbers; may return fewer, never none.
    ///
    /// # Errors
    /// `LeaseExhausted`, `SeqExhausted`.
    pub fn reserve(&self, n: u32) -> Result<SeqRange, DropReason> {
        let numbers = &self.numbers;
        let mut used = numbers.used.load(Ordering::Acquire);
        loop {
            // Read after `used`: if a new lease is seen here, the swap below fails.
            let limit = numbers.limit.load(Ordering::Acquire);
            let limit = limit.min(self.lifetime.last_seq);
            if used >= limit {
                self.next_lease()?;
                used = numbers.used.load(Ordering::Acquire);
                continue;
            }
            let left = u32::try_from(limit - used).unwrap_or(u32::MAX);
            let count = n.clamp(1, left);
            let last = used + u64::from(count);
            match numbers.used.compare_exchange_weak(
                used,
                last,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    return Ok(SeqRange {
                        first: used + 1,
                        count,
                    });
                }
                Err(now) => used = now,
            }
        }
    }

    /// Moves to the next lease, unless another worker has.
    fn next_lease(&self) -> Result<(), DropReason> {
        let Numbers { used, limit, .. } = &*self.numbers;
        let last_seq = self.lifetime.last_seq;
        let mut later = lock(&self.numbers.later);
        loop {
            let leased = limit.load(Ordering::Acquire);
            if used.load(Ordering::Acquire) < leased.min(last_seq) {
                return Ok(());
            }
            if leased >= last_seq {
                return Err(DropReason::SeqExhausted);
            }
            let (before, last) = later.pop_front().ok_or(DropReason::LeaseExhausted)?;
            // First `used`, then `limit`: between the two stores no number can be reserved.
            used.store(before, Ordering::Release);
            limit.store(last, Ordering::Release);
        }
    }

    /// True if the SA's last number is given out: no lease helps.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.used() >= self.lifetime.last_seq
    }

    /// The highest number given out, 0 for none; the next packet's is one more, or the next
    /// lease's first.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.numbers.used.load(Ordering::Relaxed)
    }

    /// The highest number that may be given out before a gap or the end of the leases.
    #[must_use]
    pub fn limit(&self) -> u64 {
        let limit = self.numbers.limit.load(Ordering::Relaxed);
        limit.min(self.lifetime.last_seq.max(self.used()))
    }

    /// True if half of the numbers are used since the last extension; once for each extension.
    #[must_use]
    pub fn passed_low(&self) -> bool {
        self.passed(&self.numbers.low)
    }

    /// Reports the low threshold once more if it was reported: with a name that the SA has no more.
    pub fn report_low_again(&self) {
        let now = self.used();
        let low = &self.numbers.low;
        let _ = low.compare_exchange(NEVER, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// True if an eighth of the SA's numbers, or less, is left; once.
    #[must_use]
    pub fn passed_soft(&self) -> bool {
        self.passed(&self.lifetime.soft)
    }

    /// Records that the last number is used; true once.
    #[must_use]
    pub fn expire(&self) -> bool {
        !self.lifetime.expired.swap(true, Ordering::Relaxed)
    }

    fn passed(&self, mark: &AtomicU64) -> bool {
        let at = mark.load(Ordering::Relaxed);
        at != NEVER
            && self.used() >= at
            && mark
                .compare_exchange(at, NEVER, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl Numbers {
    fn half_used(&self, later: &MutexGuard<'_, VecDeque<(u64, u64)>>) -> u64 {
        let used = self.used.load(Ordering::Acquire);
        let now = (used, self.limit.load(Ordering::Acquire).max(used));
        let leases = || std::iter::once(&now).chain(later.iter());
        let mut half = leases().map(|&(before, last)| last - before).sum::<u64>() / 2;
        for &(before, last) in leases() {
            if half < last - before {
                return before + half;
            }
            half -= last - before;
        }
        used
    }
}
