//! Reassembly of the local kernel's fragments, before transport mode seals the whole datagram.
//!
//! RFC 4301 4.1 lets transport mode protect whole datagrams only, while the kernel fragments a
//! large datagram before the TUN sees it. The fragments come from this host, in order or nearly so.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::DropReason;
use crate::wire::protocol::FRAGMENT;
use crate::wire::{IPV6_HEADER_LEN, ihl, put_u16, u16_at, version};

/// Datagrams in reassembly at a time.
pub const MAX_DATAGRAMS: usize = 16;
/// Fragments of one datagram: 64 KiB over an MTU of 300 bytes.
pub const MAX_FRAGMENTS: usize = 256;
/// Bytes of the largest datagram.
pub const MAX_DATAGRAM_LEN: usize = 65535;
/// Deadline of an unfinished datagram; a local kernel sends all fragments at once.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// Collects fragments of at most 16 datagrams; the oldest makes room for a new one.
#[derive(Debug, Default)]
pub struct Reassembler {
    datagrams: VecDeque<Datagram>,
    dropped: u64,
}

#[derive(Debug)]
struct Datagram {
    key: Vec<u8>,
    began: Duration,
    parts: BTreeMap<usize, Vec<u8>>,
    received: usize,
    total: Option<usize>,
    header: Vec<u8>,
    next_header: u8,
}

struct Fragment<'a> {
    key: Vec<u8>,
    header: &'a [u8],
    part: &'a [u8],
    offset: usize,
    more: bool,
    next_header: u8,
}

impl Reassembler {
    /// Fragments that were accepted and never became part of a whole packet.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes a fragment; returns the whole packet when it was the last one missing. `now` is of any
    /// monotonic clock.
    ///
    /// An overlap or a size that contradicts another fragment forgets the datagram (RFC 5722).
    ///
    /// # Errors
    /// `UnsupportedHeader` if the fragment header isn't the first one, `MalformedInner` where
    /// the packet is cut off.
    pub fn add(&mut self, packet: &[u8], now: Duration) -> Result<Option<Vec<u8>>, DropReason> {
        let fragment = match version(packet) {
            4 => read_ipv4(packet).ok_or(DropReason::MalformedInner)?,
            _ if packet.get(6) != Some(&FRAGMENT) => return Err(DropReason::UnsupportedHeader),
            _ => read_ipv6(packet).ok_or(DropReason::MalformedInner)?,
        };
        while self
            .datagrams
            .front()
            .is_some_and(|d| now.saturating_sub(d.began) > TIMEOUT)
        {
            self.forget(0);
        }
        let at = self.find(&fragment, now);
        let Some(datagram) = self.datagrams.get_mut(at) else {
            return Ok(None);
        };
        if !datagram.takes(&fragment) {
            self.dropped += 1;
            self.forget(at);
            return Ok(None);
        }
        datagram.insert(&fragment);
        if datagram.total != Some(datagram.received) {
            return Ok(None);
        }
        let whole = datagram.join();
        if whole.is_none() {
            self.forget(at);
        } else {
            self.datagrams.remove(at);
        }
        Ok(whole)
    }

    fn find(&mut self, fragment: &Fragment<'_>, now: Duration) -> usize {
        if let Some(at) = self.datagrams.iter().position(|d| d.key == fragment.key) {
            return at;
        }
        if self.datagrams.len() >= MAX_DATAGRAMS {
            self.forget(0);
        }
        self.datagrams.push_back(Datagram {
            key: fragment.key.clone(),
            began: now,
            parts: BTreeMap::new(),
            received: 0,
            total: None,
            header: Vec::new(),
            next_header: 0,
        });
        self.datagrams.len() - 1
    }

    fn forget(&mut self, at: usize) {
        if let Some(datagram) = self.datagrams.remove(at) {
            self.dropped += datagram.parts.len() as u64;
        }
    }
}

impl Datagram {
    /// True if a fragment is consistent with the fragments received so far.
    fn takes(&self, fragment: &Fragment<'_>) -> bool {
        let Fragment {
            part, offset, more, ..
        } = *fragment;
        let end = offset + part.len();
        let sound = !part.is_empty()
            && (!more || part.len() % 8 == 0)
            && end <= MAX_DATAGRAM_LEN - IPV6_HEADER_LEN
            && self.total.is_none_or(|total| more && end <= total)
            && self.parts.len() < MAX_FRAGMENTS;
        // The last one ends the datagram: nothing lies behind it.
        sound
            && !self
                .parts
                .iter()
                .any(|(&start, other)| offset < start + other.len() && (start < end || !more))
    }

    fn insert(&mut self, fragment: &Fragment<'_>) {
        let Fragment {
            part, offset, more, ..
        } = *fragment;
        self.parts.insert(offset, part.to_vec());
        self.received += part.len();
        if !more {
            self.total = Some(offset + part.len());
        }
        if offset == 0 {
            self.header = fragment.header.to_vec();
            self.next_header = fragment.next_header;
        }
    }

    /// Joins the parts: they don't overlap and are as long as the whole, so none is missing.
    /// None if the whole would be longer than an IPv4 packet can be.
    fn join(&self) -> Option<Vec<u8>> {
        let mut whole = self.header.clone();
        whole.extend(self.parts.values().flatten());
        let header_len = self.header.len();
        if version(&whole) == 4 {
            put_u16(
                &mut whole,
                2,
                u16::try_from(header_len + self.received).ok()?,
            );
            put_u16(&mut whole, 6, 0);
        } else {
            *whole.get_mut(6)? = self.next_header;
            put_u16(&mut whole, 4, u16::try_from(self.received).ok()?);
        }
        Some(whole)
    }
}

fn read_ipv4(packet: &[u8]) -> Option<Fragment<'_>> {
    let field = u16_at(packet, 6)?;
    let (header, part) = packet.split_at_checked(ihl(packet))?;
    let key = [header.get(4..6)?, header.get(9..10)?, header.get(12..20)?].concat();
    Some(Fragment {
        key,
        header,
        part,
        offset: usize::from(field & 0x1FFF) * 8,
        more: field & 0x2000 != 0,
        next_header: *header.get(9)?,
    })
}

fn read_ipv6(packet: &[u8]) -> Option<Fragment<'_>> {
    let (header, rest) = packet.split_at_checked(IPV6_HEADER_LEN)?;
    let (fragment, part) = rest.split_first_chunk::<8>()?;
    let field = u16_at(fragment, 2)?;
    Some(Fragment {
        key: [&fragment[4..8], header.get(8..40)?].concat(),
        header,
        part,
        offset: usize::from(field & 0xFFF8),
        more: field & 1 != 0,
        next_header: fragment[0],
    })
}
