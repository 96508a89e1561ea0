//! The inner packet of tunnel and transport mode, outbound and inbound.

use std::net::IpAddr;

use crate::DropReason;
use crate::wire::protocol::{HOP_BY_HOP, IPIP, IPV6, ROUTING};
use crate::wire::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, packet_length, set_ecn, traffic_class, version,
    write_ipv4_header, write_ipv6_header,
};

/// Bytes of the largest IP packet without jumbograms.
pub const MAX_PACKET: usize = 65535;

const NOT_ECT: u8 = 0;
const CE: u8 = 3;

/// The next header of a packet in tunnel mode.
#[must_use]
pub fn tunnel_next_header(packet: &[u8]) -> u8 {
    if version(packet) == 4 { IPIP } else { IPV6 }
}

/// The offset of the payload that transport mode protects, and its protocol.
///
/// # Errors
/// `UnsupportedHeader` for headers that stay in front of ESP (RFC 4303 3.1.1) and that a socket
/// can't send: options of IPv4, hop-by-hop and routing headers of IPv6.
pub fn transport_payload(packet: &[u8]) -> Result<(usize, u8), DropReason> {
    match (packet.first(), packet.get(9), packet.get(6)) {
        (Some(0x45), Some(&protocol), _) => Ok((IPV4_HEADER_LEN, protocol)),
        (Some(first), _, Some(&protocol))
            if first >> 4 == 6 && protocol != HOP_BY_HOP && protocol != ROUTING =>
        {
            Ok((IPV6_HEADER_LEN, protocol))
        }
        _ => Err(DropReason::UnsupportedHeader),
    }
}

/// Checks the payload of a tunnel-mode packet and gives it the outer header's ECN; returns the
/// inner packet's length. The bytes behind it are TFC padding (RFC 4303 2.7).
///
/// # Errors
/// `BadNextHeader`, `MalformedInner`, `EcnNotEct`.
pub fn tunnel_packet(payload: &mut [u8], next_header: u8, tos: u8) -> Result<usize, DropReason> {
    let expected = match next_header {
        IPIP => 4,
        IPV6 => 6,
        _ => return Err(DropReason::BadNextHeader),
    };
    if version(payload) != expected {
        return Err(DropReason::MalformedInner);
    }
    let length = packet_length(payload)?;
    // RFC 6040 4.2: of the outer field only ECT(1) and CE, the odd ones, ever change the inner.
    if tos & 1 != 0 {
        match (tos & 3, traffic_class(payload) & 3) {
            (CE, NOT_ECT) => return Err(DropReason::EcnNotEct),
            (_, NOT_ECT | CE) => {}
            (outer, _) => set_ecn(payload, outer),
        }
    }
    Ok(length)
}

/// Bytes of the header that `transport_header` writes for SAs with this address.
#[must_use]
pub const fn transport_header_len(address: IpAddr) -> usize {
    if address.is_ipv4() {
        IPV4_HEADER_LEN
    } else {
        IPV6_HEADER_LEN
    }
}

/// Writes the IP header of a transport-mode payload that lies `transport_header_len` behind the
/// beginning of `packet`, which ends where the payload ends.
///
/// # Errors
/// `MalformedInner` if the packet would be longer than 65535 bytes.
pub fn transport_header(
    packet: &mut [u8],
    remote: IpAddr,
    local: IpAddr,
    next_header: u8,
    tos: u8,
) -> Result<(), DropReason> {
    let too_long = |_| DropReason::MalformedInner;
    let length = u16::try_from(packet.len()).map_err(too_long)?;
    match (remote, local) {
        (IpAddr::V4(src), IpAddr::V4(dst)) if packet.len() >= IPV4_HEADER_LEN => {
            write_ipv4_header(
                packet,
                src.to_bits(),
                dst.to_bits(),
                next_header,
                length,
                tos,
            );
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) if packet.len() >= IPV6_HEADER_LEN => {
            let payload_len = u16::try_from(packet.len() - IPV6_HEADER_LEN).map_err(too_long)?;
            write_ipv6_header(
                packet,
                src.to_bits(),
                dst.to_bits(),
                next_header,
                payload_len,
                tos,
            );
        }
        _ => return Err(DropReason::MalformedInner),
    }
    Ok(())
}
