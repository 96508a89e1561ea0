//! Verdicts on fragmented packets: only the first fragment has the ports (RFC 4301 7.3).

use std::collections::VecDeque;

use super::protocol::FRAGMENT;
use super::{IPV6_HEADER_LEN, Inner, u16_at, u32_at};

/// Most fragmented packets that are remembered; the oldest makes room for a new one.
pub const MAX_DATAGRAMS: usize = 64;

type Datagram = (u8, u128, u128, u8, u32);

/// Identity of the packet that a fragment is a part of, and the place of the fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    datagram: Datagram,
    /// True if the fragment has the ports.
    pub is_first: bool,
}

impl Fragment {
    /// The packet that a fragment belongs to; `inner` is what `parse` returned for it.
    ///
    /// None for a whole packet, and where the fragment header isn't the first extension header.
    #[must_use]
    pub fn of(packet: &[u8], inner: &Inner) -> Option<Self> {
        if !inner.fragment {
            return None;
        }
        let (ident, offset) = if inner.version == 4 {
            (u16_at(packet, 4)?.into(), u16_at(packet, 6)? & 0x1FFF)
        } else if packet.get(6) == Some(&FRAGMENT) {
            let at = IPV6_HEADER_LEN;
            (u32_at(packet, at + 4)?, u16_at(packet, at + 2)? & 0xFFF8)
        } else {
            return None;
        };
        Some(Self {
            datagram: (inner.version, inner.src, inner.dst, inner.protocol, ident),
            is_first: offset == 0,
        })
    }
}

/// Verdicts on the first fragments of the latest packets. A later fragment can't replace the ports:
/// it begins behind them.
#[derive(Debug)]
pub struct Fragments<V> {
    verdicts: VecDeque<(Datagram, V)>,
}

impl<V> Default for Fragments<V> {
    fn default() -> Self {
        Self {
            verdicts: VecDeque::new(),
        }
    }
}

impl<V: Copy> Fragments<V> {
    /// Keeps the verdict on a first fragment for those that follow it.
    pub fn remember(&mut self, fragment: Fragment, verdict: V) {
        let known = self.verdicts.iter_mut();
        if let Some((_, held)) = known.into_iter().find(|(d, _)| *d == fragment.datagram) {
            *held = verdict;
            return;
        }
        if self.verdicts.len() >= MAX_DATAGRAMS {
            self.verdicts.pop_front();
        }
        self.verdicts.push_back((fragment.datagram, verdict));
    }

    /// The verdict on the first fragment of the same packet, if it is known.
    #[must_use]
    pub fn get(&self, fragment: &Fragment) -> Option<V> {
        let mut known = self.verdicts.iter();
        known
            .find(|(datagram, _)| *datagram == fragment.datagram)
            .map(|&(_, verdict)| verdict)
    }

    /// Forgets all verdicts.
    pub fn clear(&mut self) {
        self.verdicts.clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire;

    /// A fragment of a UDP packet: its identification, and its offset in units of 8 bytes.
    fn fragment(ident: u8, offset: u8) -> Fragment {
        let packet = [
            0x45, 0, 0, 28, 0, ident, 0x20, offset, 64, 17, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1, 0, 1,
            0x1b, 0x59, 0, 8, 0, 0,
        ];
        Fragment::of(&packet, &wire::parse(&packet).unwrap()).unwrap()
    }

    #[test]
    fn the_oldest_packets_are_forgotten_first() {
        let mut table = Fragments::default();
        for ident in 0..=u8::try_from(MAX_DATAGRAMS).unwrap() {
            assert!(fragment(ident, 0).is_first);
            table.remember(fragment(ident, 0), ident);
        }
        assert_eq!(table.get(&fragment(0, 1)), None);
        for ident in 1..=u8::try_from(MAX_DATAGRAMS).unwrap() {
            assert_eq!(table.get(&fragment(ident, 1)), Some(ident));
        }
    }

    #[test]
    fn a_reused_identification_has_the_newest_verdict() {
        let mut table = Fragments::default();
        let later = fragment(7, 1);
        assert!(!later.is_first);
        table.remember(fragment(7, 0), "old");
        table.remember(fragment(7, 0), "new");
        assert_eq!(table.get(&later), Some("new"));
        table.clear();
        assert_eq!(table.get(&later), None);
    }
}
