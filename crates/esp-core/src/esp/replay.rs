//! The anti-replay window of one inbound SA, shared by workers without a lock.

use std::sync::OnceLock;

use crate::DropReason;
use crate::sync::{AtomicU64, Ordering};

/// Numbers in one block of the ring.
const BLOCK: u64 = 16;
const BITS: u64 = 0xFFFF;
const ID_BITS: u32 = 48;

/// Anti-replay window: the last `size` sequence numbers that were seen (RFC 4303 3.4.3).
///
/// The window is, like that of RFC 6479, a ring of blocks indexed by the number, one block longer
/// than the window, so that nothing is shifted when it moves. Each block carries its own number
/// above its 16 bits, so that nothing is cleared either, and one compare-and-swap settles who
/// accepts a number: of any two packets with one number, at most one is accepted, whoever opens
/// them.
///
/// A block's number is kept modulo 2^48; it is unambiguous while the peer's numbers jump by less
/// than 2^51, and `infer` finds none further than 2^32 away.
///
/// The ring is allocated with the first packet: of thousands of SAs many may never see one.
#[derive(Debug)]
#[repr(align(64))]
pub struct ReplayWindow {
    highest: AtomicU64,
    size: u64,
    /// The replay floor that the window began with.
    start: u64,
    ring: OnceLock<Box<[AtomicU64]>>,
}

impl ReplayWindow {
    /// A window of `size` numbers (64 to 8192) in which every number up to `highest` counts as
    /// seen; 0 for none.
    #[must_use]
    pub fn new(size: u16, highest: u64) -> Self {
        let window = Self {
            highest: AtomicU64::new(highest),
            size: u64::from(size.max(1)),
            start: highest,
            ring: OnceLock::new(),
        };
        // The model checker doesn't model the ordering of a OnceLock, so the ring is made here.
        #[cfg(loom)]
        window.ring.get_or_init(|| window.make_ring());
        window
    }

    fn make_ring(&self) -> Box<[AtomicU64]> {
        let blocks = (self.size.div_ceil(BLOCK) + 1).next_power_of_two();
        let newest = self.start / BLOCK;
        let oldest = newest.saturating_sub(blocks - 1);
        let mut ring: Vec<u64> = vec![0; usize::try_from(blocks).unwrap_or(usize::MAX)];
        for block in oldest..=newest {
            let seen = if block == newest {
                (2 << (self.start % BLOCK)) - 1
            } else {
                BITS
            };
            if let Some(place) = ring.get_mut(index(block, blocks)) {
                *place = word(block, seen);
            }
        }
        ring.into_iter().map(AtomicU64::new).collect()
    }

    /// The highest authenticated number, 0 for none.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.highest.load(Ordering::Acquire)
    }

    /// Finds the 64-bit number of which `seq_lo` is the low half (RFC 4303 A2.2): the one among the
    /// 2^32 numbers from the window's left edge upwards. 0, which `check` refuses, where that is no
    /// number of the SA.
    #[must_use]
    pub fn infer(&self, seq_lo: u32) -> u64 {
        let left_edge = i128::from(self.highest()) - i128::from(self.size) + 1;
        let ahead = (i128::from(seq_lo) - left_edge) & i128::from(u32::MAX);
        u64::try_from(left_edge + ahead).unwrap_or(0)
    }

    /// Checks that a packet with this number can be accepted (RFC 4303 3.4.3).
    ///
    /// # Errors
    /// `ReplayOld`, `ReplayDuplicate`.
    pub fn check(&self, seq: u64) -> Result<(), DropReason> {
        self.check_age(seq)?;
        let block = seq / BLOCK;
        let held = self.place(block).load(Ordering::Acquire);
        match ahead(block, held) {
            0 if held & bit(seq) != 0 => Err(DropReason::ReplayDuplicate),
            0.. => Ok(()),
            _ => Err(DropReason::ReplayOld),
        }
    }

    /// Marks the number of an authenticated packet as seen; true if it is the highest so far.
    ///
    /// # Errors
    /// `ReplayOld`, `ReplayDuplicate` if another packet made it so since `check`: drop the packet.
    pub fn commit(&self, seq: u64) -> Result<bool, DropReason> {
        self.check_age(seq)?;
        let block = seq / BLOCK;
        let place = self.place(block);
        let mut held = place.load(Ordering::Acquire);
        loop {
            let next = match ahead(block, held) {
                0 if held & bit(seq) != 0 => return Err(DropReason::ReplayDuplicate),
                0 => held | bit(seq),
                1.. => word(block, bit(seq)),
                _ => return Err(DropReason::ReplayOld),
            };
            match place.compare_exchange_weak(held, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => held = now,
            }
        }
        Ok(self.highest.fetch_max(seq, Ordering::AcqRel) < seq)
    }

    fn check_age(&self, seq: u64) -> Result<(), DropReason> {
        if seq <= self.highest().saturating_sub(self.size) {
            return Err(DropReason::ReplayOld);
        }
        Ok(())
    }

    fn place(&self, block: u64) -> &AtomicU64 {
        let ring = self.ring.get_or_init(|| self.make_ring());
        &ring[index(block, ring.len() as u64)]
    }
}

#[allow(clippy::cast_possible_truncation)] // less than the number of blocks
const fn index(block: u64, blocks: u64) -> usize {
    (block & (blocks - 1)) as usize
}

const fn word(block: u64, bits: u64) -> u64 {
    block << BLOCK | bits
}

const fn bit(seq: u64) -> u64 {
    1 << (seq % BLOCK)
}

/// Distance of a block ahead of the one held, modulo 2^48; negative if it is behind.
#[allow(clippy::cast_possible_wrap)] // the sign is wanted
const fn ahead(block: u64, held: u64) -> i64 {
    (block.wrapping_sub(held >> BLOCK) << (64 - ID_BITS)) as i64
}
