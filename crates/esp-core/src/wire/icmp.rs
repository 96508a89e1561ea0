//! The packet that an ICMP error quotes, by which its SA is found (RFC 4301 6.2).
//!
//! Sources: RFC 792, RFC 4443.

use super::protocol::{ICMP, ICMPV6};
use super::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, Inner, ihl, parse, version};

const HEADER_LEN: usize = 8;

/// The selector fields of the flow that an ICMP error answers, in the error's direction: those of
/// the quoted packet, reversed.
///
/// None if the packet is no whole ICMP error, or doesn't go to the source of what it quotes. `inner`
/// is what `parse` returned for the packet.
#[must_use]
pub fn answered(packet: &[u8], inner: &Inner) -> Option<Inner> {
    let (header, quoted) = packet
        .get(inner.upper..)?
        .split_first_chunk::<HEADER_LEN>()?;
    let is_error = match (inner.version, inner.protocol) {
        (4, ICMP) => matches!(header[0], 3 | 4 | 11 | 12),
        (6, ICMPV6) => matches!(header[0], 1..=4),
        _ => false,
    };
    if !is_error || inner.fragment || version(quoted) != inner.version {
        return None;
    }
    let header_len = match inner.version {
        4 => ihl(quoted),
        _ => IPV6_HEADER_LEN,
    };
    if header_len < IPV4_HEADER_LEN || header_len > quoted.len() {
        return None;
    }
    let sent = parse(quoted).ok()?;
    (sent.src == inner.dst).then_some(Inner {
        src: sent.dst,
        dst: sent.src,
        src_port: sent.dst_port,
        dst_port: sent.src_port,
        ..sent
    })
}
