//! The anti-replay window of one inbound SA, shared by workers without a lock.

use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};

use crate::DropReason;
use crate::sync::{AtomicU64, Ordering};

/// Numbers in one block of the ring.
const BLOCK: u64 = 16;
const BITS: u64 = 0xFFFF;
const ID_BITS: u32 = 48;

/// Anti-replay window: the last `size` sequence numbers that were seen (RFC 4303 3.4.3).
///
/// An SA and the SA with the same key that replaces it share one ring, so that of any two packets
/// with one number at most one is accepted, by whichever of the two SAs they are opened.
///
/// A window of another size has a ring of its own. Until nobody uses the former window alone, the
/// new one accepts what both rings accept, and so the former ring decides for all. Then `settled`
/// takes over what that has seen, and the new ring decides.
#[derive(Debug)]
pub struct ReplayWindow {
    ring: Arc<Ring>,
    former: Option<Arc<Ring>>,
}

impl ReplayWindow {
    /// A window of `size` numbers (64 to 8192) in which every number up to `highest` counts as
    /// seen; 0 for none.
    #[must_use]
    pub fn new(size: u16, highest: u64) -> Self {
        Self {
            ring: Arc::new(Ring::new(size, highest, highest)),
            former: None,
        }
    }

    /// The window, perhaps of another size, of an SA that replaces this one's.
    ///
    /// It is used beside this one. If it is not [`Self::is_settled`], it becomes so once this one
    /// is used no more.
    #[must_use]
    pub fn continued(&self, size: u16) -> Self {
        let ring = Arc::clone(&self.ring);
        if u64::from(size) == self.ring.size {
            let former = self.former.clone();
            return Self { ring, former };
        }
        // The new ring knows of no number yet.
        Self {
            ring: Arc::new(Ring::new(size, ring.highest(), 0)),
            former: Some(ring),
        }
    }

    /// True if the window has one ring.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.former.is_none()
    }

    /// The window on its own, when the one that it continues is used no more, except through it.
    /// Numbers left of that one count as seen.
    #[must_use]
    pub fn settled(&self) -> Self {
        if let Some(former) = &self.former {
            self.ring.take_over(former);
        }
        let ring = Arc::clone(&self.ring);
        Self { ring, former: None }
    }

    /// The highest authenticated number, 0 for none.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.ring.highest()
    }

    /// Finds the 64-bit number of which `seq_lo` is the low half (RFC 4303 A2.2): the one among the
    /// 2^32 numbers from the window's left edge upwards. 0, which `check` refuses, where that is no
    /// number of the SA.
    #[must_use]
    pub fn infer(&self, seq_lo: u32) -> u64 {
        let left_edge = i128::from(self.highest()) - i128::from(self.ring.size) + 1;
        let ahead = (i128::from(seq_lo) - left_edge) & i128::from(u32::MAX);
        u64::try_from(left_edge + ahead).unwrap_or(0)
    }

    /// Finds the other number that a packet inferred as `seq` may have had: 2^32 lower, left of the
    /// window; None unless that is nearer to the window, and a number of the SA.
    ///
    /// A packet that the window has passed is taken for one of the next 2^32 numbers, and its ICV
    /// does not hold.
    #[must_use]
    pub fn passed(&self, seq: u64) -> Option<u64> {
        let ahead = seq.checked_sub(self.highest())?;
        (ahead > 1 << 31)
            .then(|| seq.checked_sub(1 << 32))
            .flatten()
            .filter(|&passed| passed != 0)
    }

    /// Checks that a packet with this number can be accepted (RFC 4303 3.4.3).
    ///
    /// # Errors
    /// `ReplayOld`, `ReplayDuplicate`.
    pub fn check(&self, seq: u64) -> Result<(), DropReason> {
        if let Some(former) = &self.former {
            former.check(seq)?;
        }
        self.ring.check(seq)
    }

    /// Marks the number of an authenticated packet as seen; true if it is the highest so far.
    ///
    /// # Errors
    /// `ReplayOld`, `ReplayDuplicate` if another packet made it so since `check`: drop the packet.
    pub fn commit(&self, seq: u64) -> Result<bool, DropReason> {
        let newest = self.ring.commit(seq)?;
        match &self.former {
            // Second: what both accept is in the new ring before the former one lets it pass.
            Some(former) => Ok(former.commit(seq)? && newest),
            None => Ok(newest),
        }
    }
}

/// The numbers that a window of one size has seen.
///
/// Like the window of RFC 6479, it is a ring of blocks indexed by the number, one block longer than
/// the window, so that nothing is shifted when it moves. Each block carries its own number above
/// its 16 bits, so that nothing is cleared either, and one compare-and-swap settles who accepts a
/// number: of any two packets with one number, at most one is accepted, whoever opens them.
///
/// A block's number is kept modulo 2^48; it is unambiguous while the peer's numbers jump by less
/// than 2^51, and `infer` finds none further than 2^32 away.
///
/// The ring is allocated with the first packet: of thousands of SAs many may never see one.
#[derive(Debug)]
#[repr(align(64))]
struct Ring {
    highest: AtomicU64,
    size: u64,
    /// The highest number that the ring began with.
    start: u64,
    /// Numbers up to this one count as seen from the start.
    floor: u64,
    blocks: OnceLock<Box<[AtomicU64]>>,
}

impl Ring {
    fn new(size: u16, start: u64, floor: u64) -> Self {
        let ring = Self {
            highest: AtomicU64::new(start),
            size: u64::from(size.max(1)),
            start,
            floor,
            blocks: OnceLock::new(),
        };
        // The model checker doesn't model the ordering of a OnceLock, so the ring is made here.
        #[cfg(loom)]
        ring.blocks.get_or_init(|| ring.make_blocks());
        ring
    }

    const fn len(&self) -> u64 {
        (self.size.div_ceil(BLOCK) + 1).next_power_of_two()
    }

    fn make_blocks(&self) -> Box<[AtomicU64]> {
        let mut words: Vec<u64> = vec![0; usize::try_from(self.len()).unwrap_or(usize::MAX)];
        for block in self.blocks_up_to(self.start) {
            if let Some(place) = words.get_mut(index(block, self.len())) {
                *place = word(block, up_to(block, self.floor));
            }
        }
        words.into_iter().map(AtomicU64::new).collect()
    }

    /// The blocks of the ring when `highest` is its highest number.
    const fn blocks_up_to(&self, highest: u64) -> RangeInclusive<u64> {
        let newest = highest / BLOCK;
        newest.saturating_sub(self.len() - 1)..=newest
    }

    /// Marks what a ring of another size has seen, and everything left of its window. Packets may
    /// be committed to both rings meanwhile, to this one first.
    fn take_over(&self, former: &Self) {
        let highest = former.highest();
        let left = highest.saturating_sub(former.size);
        for block in self.blocks_up_to(highest) {
            self.mark(block, former.seen(block) | up_to(block, left));
        }
        self.highest.fetch_max(highest, Ordering::AcqRel);
    }

    /// The bits of a block; all of them if it has left the ring.
    fn seen(&self, block: u64) -> u64 {
        let held = self.place(block).load(Ordering::Acquire);
        match ahead(block, held) {
            0 => held & BITS,
            1.. => 0,
            _ => BITS,
        }
    }

    /// Adds bits to a block, unless it has left the ring.
    fn mark(&self, block: u64, bits: u64) {
        let place = self.place(block);
        let mut held = place.load(Ordering::Acquire);
        loop {
            let next = match ahead(block, held) {
                0 => held | bits,
                1.. => word(block, bits),
                _ => return,
            };
            match place.compare_exchange_weak(held, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => held = now,
            }
        }
    }

    fn highest(&self) -> u64 {
        self.highest.load(Ordering::Acquire)
    }

    fn check(&self, seq: u64) -> Result<(), DropReason> {
        self.check_age(seq)?;
        let block = seq / BLOCK;
        let held = self.place(block).load(Ordering::Acquire);
        match ahead(block, held) {
            0 if held & bit(seq) != 0 => Err(DropReason::ReplayDuplicate),
            0.. => Ok(()),
            _ => Err(DropReason::ReplayOld),
        }
    }

    fn commit(&self, seq: u64) -> Result<bool, DropReason> {
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
        let blocks = self.blocks.get_or_init(|| self.make_blocks());
        &blocks[index(block, blocks.len() as u64)]
    }
}

#[allow(clippy::cast_possible_truncation)] // less than the number of blocks
const fn index(block: u64, blocks: u64) -> usize {
    (block & (blocks - 1)) as usize
}

const fn word(block: u64, bits: u64) -> u64 {
    block << BLOCK | bits
}

/// The bits of a block for the numbers up to this one.
const fn up_to(block: u64, number: u64) -> u64 {
    let newest = number / BLOCK;
    if block == newest {
        (2 << (number % BLOCK)) - 1
    } else if block < newest {
        BITS
    } else {
        0
    }
}

const fn bit(seq: u64) -> u64 {
    1 << (seq % BLOCK)
}

/// Distance of a block ahead of the one held, modulo 2^48; negative if it is behind.
#[allow(clippy::cast_possible_wrap)] // the sign is wanted
const fn ahead(block: u64, held: u64) -> i64 {
    (block.wrapping_sub(held >> BLOCK) << (64 - ID_BITS)) as i64
}
