//! Rules and headers of merging packets into a super-packet (generic receive offload, GRO).

use crate::wire::protocol::{TCP, UDP};
use crate::wire::{
    GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, IPV4_HEADER_LEN, IPV6_HEADER_LEN, NEEDS_CSUM, Sum, VnetHdr,
    pseudo_header, put_u16, u16_at, u32_at, version,
};

/// IPv6, and TCP with all options.
pub(crate) const MAX_HEADERS: usize = IPV6_HEADER_LEN + 60;
const UDP_HEADER_LEN: usize = 8;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const DF: u16 = 0x4000;
const MORE_OR_OFFSET: u16 = 0x3FFF;

/// Sizes in bytes of a packet that can be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) protocol: u8,
    pub(crate) ip_len: usize,
    pub(crate) headers_len: usize,
    /// TCP PSH: no packet may follow in the super-packet.
    pub(crate) push: bool,
}

impl Shape {
    /// The shape of a whole packet that carries data of a TCP connection or UDP flow, None for
    /// every other packet: fragments, options of IP, flags other than ACK and PSH.
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        let (ip_len, protocol, length) = match version(packet) {
            4 if packet.first() == Some(&0x45) && u16_at(packet, 6)? & MORE_OR_OFFSET == 0 => (
                IPV4_HEADER_LEN,
                *packet.get(9)?,
                usize::from(u16_at(packet, 2)?),
            ),
            6 => (
                IPV6_HEADER_LEN,
                *packet.get(6)?,
                IPV6_HEADER_LEN + usize::from(u16_at(packet, 4)?),
            ),
            _ => return None,
        };
        let upper = packet.get(ip_len..).filter(|_| length == packet.len())?;
        let (upper_len, push) = match protocol {
            TCP => {
                let flags = *upper.get(13)?;
                let length = usize::from(upper.get(12)? >> 4) * 4;
                let urgent = u16_at(upper, 18)?;
                if flags & !PSH != ACK || length < 20 || urgent != 0 {
                    return None;
                }
                (length, flags & PSH != 0)
            }
            // UDP without a checksum (0) would get one when it is split again.
            UDP if usize::from(u16_at(upper, 4)?) == upper.len() && u16_at(upper, 6)? != 0 => {
                (UDP_HEADER_LEN, false)
            }
            _ => return None,
        };
        (upper.len() > upper_len).then_some(Self {
            protocol,
            ip_len,
            headers_len: ip_len + upper_len,
            push,
        })
    }

    /// True if a packet of this shape may follow one of the other in a super-packet.
    pub(crate) fn extends(&self, first: &Self) -> bool {
        *self
            == Self {
                push: self.push,
                ..*first
            }
    }

    fn checksum_offset(&self) -> u16 {
        if self.protocol == TCP { 16 } else { 6 }
    }
}

/// True if the checksums of a packet hold; headers and payload are separate slices.
pub(crate) fn checksums_hold(shape: &Shape, headers: &[u8], payload: &[u8]) -> bool {
    let (ip, upper) = headers.split_at(shape.ip_len);
    let length = u32::try_from(upper.len() + payload.len()).unwrap_or(u32::MAX);
    let sum = pseudo_header(ip, shape.protocol, length)
        .bytes(upper)
        .bytes(payload);
    let ip_holds = version(ip) == 6 || Sum::new().bytes(ip).folded() == 0xFFFF;
    ip_holds && sum.folded() == 0xFFFF
}

/// True if two headers of one shape differ only in fields in which neighbours may.
pub(crate) fn same_flow(shape: &Shape, first: &[u8], next: &[u8]) -> bool {
    let same = |range: std::ops::Range<usize>| match (first.get(range.clone()), next.get(range)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    };
    // All of IP but length, id and checksum.
    let same_ip = if shape.ip_len == IPV4_HEADER_LEN {
        same(0..2) && same(6..10) && same(12..20)
    } else {
        same(0..4) && same(6..40)
    };
    let at = shape.ip_len;
    // All of TCP but seq, PSH, window and checksum; the ports of UDP.
    let same_upper = if shape.protocol == TCP {
        same(at..at + 4) && same(at + 8..at + 13) && same(at + 18..shape.headers_len)
    } else {
        same(at..at + 4)
    };
    same_ip && same_upper
}

/// True if the IPv4 id of the packet `distance` behind the first continues the sequence: it counts
/// up or, with DF, stays. `fixed` is the kind seen so far.
pub(crate) fn id_fits(first: &[u8], next: &[u8], distance: u16, fixed: &mut Option<bool>) -> bool {
    if version(first) == 6 {
        return true;
    }
    let (Some(id), Some(next_id)) = (u16_at(first, 4), u16_at(next, 4)) else {
        return false;
    };
    let df = u16_at(first, 6).is_some_and(|field| field & DF != 0);
    let is_fixed = if next_id == id.wrapping_add(distance) {
        false
    } else if df && next_id == id {
        true
    } else {
        return false;
    };
    *fixed.get_or_insert(is_fixed) == is_fixed
}

/// The sequence number of a TCP header.
pub(crate) fn tcp_seq(shape: &Shape, headers: &[u8]) -> u32 {
    u32_at(headers, shape.ip_len + 4).unwrap_or_default()
}

/// The window of a TCP header.
pub(crate) fn tcp_window(shape: &Shape, headers: &[u8]) -> u16 {
    u16_at(headers, shape.ip_len + 14).unwrap_or_default()
}

/// Turns the first packet's headers into those of the super-packet and returns its `VnetHdr`.
///
/// The checksum field gets the pseudo-header's sum, not inverted, for the kernel or the network
/// card to complete.
pub(crate) fn finish(
    shape: &Shape,
    packet: &mut [u8],
    gso_size: u16,
    push: bool,
    window: u16,
) -> VnetHdr {
    let is_ipv4 = version(packet) == 4;
    // At most 65535, the limit of merging.
    let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
    let ip_len = u16::try_from(shape.ip_len).unwrap_or_default();
    let upper_len = length.saturating_sub(ip_len);
    if is_ipv4 {
        put_u16(packet, 2, length);
        put_u16(packet, 10, 0);
        let checksum = Sum::new().bytes(&packet[..shape.ip_len]).checksum();
        put_u16(packet, 10, checksum);
    } else {
        put_u16(packet, 4, upper_len);
    }
    let seed = pseudo_header(packet, shape.protocol, upper_len.into()).folded();
    let upper = &mut packet[shape.ip_len..];
    if shape.protocol == TCP {
        if push {
            upper[13] |= PSH;
        }
        put_u16(upper, 14, window);
    } else {
        put_u16(upper, 4, upper_len);
    }
    put_u16(upper, usize::from(shape.checksum_offset()), seed);
    VnetHdr {
        flags: NEEDS_CSUM,
        gso_type: match (shape.protocol, is_ipv4) {
            (UDP, _) => GSO_UDP_L4,
            (_, true) => GSO_TCPV4,
            (_, false) => GSO_TCPV6,
        },
        hdr_len: u16::try_from(shape.headers_len).unwrap_or_default(),
        gso_size,
        csum_start: ip_len,
        csum_offset: shape.checksum_offset(),
    }
}
