//! ICMP errors: the packet that one quotes, by which its SA is found (RFC 4301 6.2), and the one
//! that tells a sender how large its packets may be.
//!
//! Sources: RFC 792, RFC 1122 3.2.2, RFC 1191 4, RFC 1812 4.3.2.3, RFC 4443.

use super::fragments::Fragment;
use super::protocol::{ICMP, ICMPV6};
use super::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, Inner, Sum, ihl, parse, pseudo_header, put_u16, version,
    write_ipv4_header, write_ipv6_header,
};

const HEADER_LEN: usize = 8;
/// Most bytes of an ICMP error, IP header included (RFC 1812 4.3.2.3, RFC 4443 2.4).
const MAX_ERROR_V4: usize = 576;
const MAX_ERROR_V6: usize = 1280;
/// Internetwork control (RFC 1812 4.3.2.5).
const TOS: u8 = 0xC0;

/// The ICMP error that tells the sender of a packet the largest that passes, in bytes; from the
/// packet's destination, whose replies come by the same way.
///
/// None where no error may be sent (RFC 1122 3.2.2, RFC 4443 2.4): on an ICMP error, a later
/// fragment, from or to what is no single host.
#[must_use]
pub fn too_big(packet: &[u8], mtu: u32) -> Option<Vec<u8>> {
    let inner = parse(packet).ok()?;
    let may_be_answered = is_host(inner.version, inner.src)
        && is_host(inner.version, inner.dst)
        && !is_error(packet, &inner)
        && (!inner.fragment || Fragment::of(packet, &inner)?.is_first);
    if !may_be_answered {
        return None;
    }
    let mtu = mtu.to_be_bytes();
    Some(if inner.version == 4 {
        let quoted = packet
            .len()
            .min(MAX_ERROR_V4 - IPV4_HEADER_LEN - HEADER_LEN);
        let mut error = vec![0; IPV4_HEADER_LEN];
        error.extend([3, 4, 0, 0, 0, 0, mtu[2], mtu[3]]);
        error.extend(&packet[..quoted]);
        let (src, dst) = (
            u32::try_from(inner.dst).ok()?,
            u32::try_from(inner.src).ok()?,
        );
        let length = u16::try_from(error.len()).ok()?;
        write_ipv4_header(&mut error, src, dst, ICMP, length, TOS);
        let checksum = Sum::new().bytes(&error[IPV4_HEADER_LEN..]).checksum();
        put_u16(&mut error, IPV4_HEADER_LEN + 2, checksum);
        error
    } else {
        let quoted = packet
            .len()
            .min(MAX_ERROR_V6 - IPV6_HEADER_LEN - HEADER_LEN);
        let mut error = vec![0; IPV6_HEADER_LEN];
        error.extend([2, 0, 0, 0]);
        error.extend(mtu);
        error.extend(&packet[..quoted]);
        let length = u16::try_from(error.len() - IPV6_HEADER_LEN).ok()?;
        write_ipv6_header(&mut error, inner.dst, inner.src, ICMPV6, length, 0);
        let pseudo = pseudo_header(&error[..IPV6_HEADER_LEN], ICMPV6, length.into());
        let checksum = pseudo.bytes(&error[IPV6_HEADER_LEN..]).checksum();
        put_u16(&mut error, IPV6_HEADER_LEN + 2, checksum);
        error
    })
}

/// True for an address of a single host: no multicast, broadcast, loopback or unspecified one.
const fn is_host(version: u8, address: u128) -> bool {
    if version == 4 {
        let first = address >> 24;
        first != 0 && first != 127 && first < 224
    } else {
        address > 1 && address >> 120 != 0xFF
    }
}

/// True for an ICMP error or a redirect, and where the packet ends before its type.
fn is_error(packet: &[u8], inner: &Inner) -> bool {
    let kind = packet.get(inner.upper).copied();
    match (inner.version, inner.protocol) {
        (4, ICMP) => kind.is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12)),
        (6, ICMPV6) => kind.is_none_or(|kind| kind < 128 || kind == 137),
        _ => false,
    }
}

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
