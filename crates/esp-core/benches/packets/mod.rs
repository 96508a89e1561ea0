//! The super-packet of both benchmarks of the core.

use esp_core::esp::suite::TRAILER_ROOM;
use esp_core::wire::{GSO_TCPV4, NEEDS_CSUM, VnetHdr, pseudo_header, write_ipv4_header};

/// TCP segments of a super-packet.
pub const SEGMENTS: usize = 45;
/// Bytes that each of them carries.
pub const GSO_SIZE: usize = 1388;
/// Bytes of its IP and TCP headers.
pub const TCP_HEADERS_LEN: usize = 40;
/// Bytes of a super-packet.
pub const SUPER_LEN: usize = TCP_HEADERS_LEN + SEGMENTS * GSO_SIZE;

/// A TCP super-packet over IPv4 with room for a trailer, its checksum left to be completed.
pub fn super_packet(segments: usize) -> (VnetHdr, Vec<u8>) {
    let size = TCP_HEADERS_LEN + segments * GSO_SIZE;
    let mut packet = vec![7; size + TRAILER_ROOM];
    let length = u16::try_from(size).unwrap();
    write_ipv4_header(&mut packet, 0x0A00_0001, 0x0A00_0002, 6, length, 0);
    packet[20..40].copy_from_slice(&[
        0, 80, 1, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 16, 1, 1, 0, 0, 0, 0,
    ]);
    let seed = pseudo_header(&packet, 6, u32::from(length) - 20).folded();
    packet[36..38].copy_from_slice(&seed.to_be_bytes());
    let vnet = VnetHdr {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 40,
        gso_size: u16::try_from(GSO_SIZE).unwrap(),
        csum_start: 20,
        csum_offset: 16,
    };
    (vnet, packet)
}
