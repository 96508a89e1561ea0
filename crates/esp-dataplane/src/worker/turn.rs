//! A turn: the budget of one direction in an iteration of the worker's loop.

/// Bytes of a turn, a millisecond at 2 Gbit/s; the last read may exceed it.
const BYTES: usize = 256 * 1024;
/// Packets of a turn, as they are sealed or opened: small ones cost as much as large ones.
const PACKETS: usize = 512;

/// The bytes and packets of one turn so far.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    bytes: usize,
    packets: usize,
}

impl Turn {
    /// Adds what was read: a super-packet of `packets` packets.
    pub(crate) const fn spend(&mut self, bytes: usize, packets: usize) {
        self.bytes += bytes;
        self.packets += packets;
    }

    /// Its packets so far.
    pub(crate) const fn packets(&self) -> usize {
        self.packets
    }

    /// Its load so far: bytes, and for each packet those that cost as much.
    pub(crate) const fn load(&self) -> usize {
        self.bytes + self.packets * (BYTES / PACKETS)
    }

    /// True if the others' turn has come.
    pub(crate) const fn is_over(&self) -> bool {
        self.bytes >= BYTES || self.packets >= PACKETS
    }

    /// Reads of `bytes` that are left of the turn, at least one.
    pub(crate) fn reads_left(&self, bytes: usize) -> usize {
        BYTES
            .saturating_sub(self.bytes)
            .div_ceil(bytes.max(1))
            .max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_ends_by_its_bytes_and_by_its_packets() {
        let mut large = Turn::default();
        let mut reads = 0;
        while !large.is_over() {
            assert_eq!(large.reads_left(65_536), 4 - reads);
            large.spend(65_536, 45);
            reads += 1;
        }
        assert_eq!((reads, large.reads_left(1)), (4, 1));
        let mut small = Turn::default();
        for _ in 0..PACKETS {
            assert!(!small.is_over());
            small.spend(40, 1);
        }
        assert!(small.is_over());
        let mut split = Turn::default();
        split.spend(40_000, 1000);
        assert!(split.is_over());
    }
}
