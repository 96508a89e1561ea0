//! IPv4 and IPv6 headers (RFC 791, RFC 8200) as selectors see them (RFC 4301 4.4.1.1).

use super::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, Sum, put_u16, u16_at, u32_at, update_checksum};
use crate::DropReason;
use crate::wire::protocol::{
    DCCP, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING, SCTP, TCP, UDP, UDPLITE,
};

/// Limit of the extension-header chain, beyond any real packet; a longer one is malformed.
pub const MAX_EXTENSION_HEADERS: usize = 8;

/// Selector fields of a packet; IPv4 addresses are in the low 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// 4 or 6.
    pub version: u8,
    /// The source address.
    pub src: u128,
    /// The destination address.
    pub dst: u128,
    /// The upper-layer protocol.
    pub protocol: u8,
    /// The source port, if the packet carries one.
    pub src_port: Option<u16>,
    /// The destination port, if the packet carries one.
    pub dst_port: Option<u16>,
    /// The offset of what follows the IPv4 header with its options, or the fixed IPv6 header.
    pub payload: usize,
    /// The offset of the upper-layer header, behind the extension headers.
    pub upper: usize,
    /// True if it is a fragment, the first included.
    pub fragment: bool,
}

/// The version in the first byte of a packet, 0 for none.
#[must_use]
pub fn version(packet: &[u8]) -> u8 {
    packet.first().map_or(0, |first| first >> 4)
}

/// True if a protocol's first four bytes are ports.
#[must_use]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | DCCP | SCTP | UDPLITE)
}

pub(crate) const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS
    )
}

/// Length of the IP packet at the beginning of `available`, at most `available.len()`.
///
/// # Errors
/// `MalformedInner` if the header doesn't fit or contradicts itself.
pub fn packet_length(available: &[u8]) -> Result<usize, DropReason> {
    length(available).ok_or(DropReason::MalformedInner)
}

fn length(available: &[u8]) -> Option<usize> {
    if available.len() < IPV4_HEADER_LEN {
        return None;
    }
    match version(available) {
        4 => {
            let length = usize::from(u16_at(available, 2)?);
            let header = ihl(available);
            (IPV4_HEADER_LEN <= header && header <= length && length <= available.len())
                .then_some(length)
        }
        6 if available.len() >= IPV6_HEADER_LEN => {
            let length = IPV6_HEADER_LEN + usize::from(u16_at(available, 4)?);
            (length <= available.len()).then_some(length)
        }
        _ => None,
    }
}

pub(crate) fn ihl(packet: &[u8]) -> usize {
    packet
        .first()
        .map_or(0, |first| usize::from(first & 15) << 2)
}

/// Reads the headers of a packet; the slice ends where the packet ends.
///
/// # Errors
/// `MalformedInner` for a broken extension header or a cut-off port.
pub fn parse(packet: &[u8]) -> Result<Inner, DropReason> {
    match version(packet) {
        4 => parse_ipv4(packet),
        _ => parse_ipv6(packet),
    }
    .ok_or(DropReason::MalformedInner)
}

fn parse_ipv4(packet: &[u8]) -> Option<Inner> {
    let fragment = u16_at(packet, 6)?;
    let protocol = *packet.get(9)?;
    let upper = ihl(packet);
    let first = fragment & 0x1FFF == 0;
    let (src_port, dst_port) = ports(packet, upper, protocol, first)?;
    Some(Inner {
        version: 4,
        src: u32_at(packet, 12)?.into(),
        dst: u32_at(packet, 16)?.into(),
        protocol,
        src_port,
        dst_port,
        payload: upper,
        upper,
        fragment: fragment & 0x3FFF != 0,
    })
}

fn parse_ipv6(packet: &[u8]) -> Option<Inner> {
    let address = |at: usize| {
        packet
            .get(at..)?
            .first_chunk()
            .map(|a| u128::from_be_bytes(*a))
    };
    let (src, dst) = (address(8)?, address(24)?);
    let mut protocol = *packet.get(6)?;
    let mut upper = IPV6_HEADER_LEN;
    let (mut fragment, mut first) = (false, true);
    let mut headers = 0;
    while first && is_extension(protocol) {
        if headers == MAX_EXTENSION_HEADERS {
            return None;
        }
        headers += 1;
        let header: &[u8; 8] = packet.get(upper..)?.first_chunk()?;
        if protocol == FRAGMENT {
            fragment = true;
            first = u16::from_be_bytes([header[2], header[3]]) & 0xFFF8 == 0;
            upper += 8;
        } else {
            upper += (usize::from(header[1]) + 1) * 8;
        }
        protocol = header[0];
    }
    if upper > packet.len() {
        return None;
    }
    let (src_port, dst_port) = ports(packet, upper, protocol, first)?;
    Some(Inner {
        version: 6,
        src,
        dst,
        protocol,
        src_port,
        dst_port,
        payload: IPV6_HEADER_LEN,
        upper,
        fragment,
    })
}

type Ports = (Option<u16>, Option<u16>);

fn ports(packet: &[u8], upper: usize, protocol: u8, first: bool) -> Option<Ports> {
    if !first || !has_ports(protocol) {
        return Some((None, None));
    }
    Some((
        Some(u16_at(packet, upper)?),
        Some(u16_at(packet, upper + 2)?),
    ))
}

/// DSCP and ECN as one byte (RFC 2474, RFC 3168); 0 if there is no header.
#[must_use]
pub fn traffic_class(packet: &[u8]) -> u8 {
    match *packet {
        [first, tos, ..] if first >> 4 == 4 => tos,
        [first, second, ..] => (first & 15) << 4 | second >> 4,
        _ => 0,
    }
}

/// Sets the ECN field of a packet (RFC 3168); the IPv4 checksum is updated.
pub fn set_ecn(packet: &mut [u8], ecn: u8) {
    let Some(before) = u16_at(packet, 0) else {
        return;
    };
    let ecn = u16::from(ecn & 3);
    if before >> 12 == 6 {
        put_u16(packet, 0, before & 0xFFCF | ecn << 4);
        return;
    }
    let after = before & 0xFFFC | ecn;
    if let Some(checksum) = u16_at(packet, 10) {
        put_u16(packet, 10, update_checksum(checksum, before, after));
        put_u16(packet, 0, after);
    }
}

/// Writes an IPv4 header for a transport-mode payload: DF set, TTL 64, no options.
///
/// `length` is of the whole packet, `out` has 20 bytes or more.
pub fn write_ipv4_header(out: &mut [u8], src: u32, dst: u32, protocol: u8, length: u16, tos: u8) {
    let Some(header) = out.first_chunk_mut::<IPV4_HEADER_LEN>() else {
        return;
    };
    let [len_hi, len_lo] = length.to_be_bytes();
    header[..12].copy_from_slice(&[0x45, tos, len_hi, len_lo, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header[12..16].copy_from_slice(&src.to_be_bytes());
    header[16..].copy_from_slice(&dst.to_be_bytes());
    let checksum = Sum::new().bytes(header).checksum();
    put_u16(header, 10, checksum);
}

/// Writes an IPv6 header for a transport-mode payload: hop limit 64, no flow label.
///
/// `payload_len` is of what follows, `out` has 40 bytes or more.
pub fn write_ipv6_header(
    out: &mut [u8],
    src: u128,
    dst: u128,
    protocol: u8,
    payload_len: u16,
    tos: u8,
) {
    let Some(header) = out.first_chunk_mut::<IPV6_HEADER_LEN>() else {
        return;
    };
    let [len_hi, len_lo] = payload_len.to_be_bytes();
    header[..8].copy_from_slice(&[
        6 << 4 | tos >> 4,
        tos << 4,
        0,
        0,
        len_hi,
        len_lo,
        protocol,
        64,
    ]);
    header[8..24].copy_from_slice(&src.to_be_bytes());
    header[24..].copy_from_slice(&dst.to_be_bytes());
}
