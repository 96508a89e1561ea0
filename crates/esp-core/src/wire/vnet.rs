//! The `virtio_net_hdr` in front of a TUN packet (virtio 1.3, 5.1.6; `linux/virtio_net.h`).

use super::{Sum, put_u16};
use crate::DropReason;

/// The checksum at `csum_start + csum_offset` is yet to be completed.
pub const NEEDS_CSUM: u8 = 1;
/// Not a super-packet.
pub const GSO_NONE: u8 = 0;
/// A super-packet of TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// A super-packet of TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// A super-packet of UDP datagrams (USO).
pub const GSO_UDP_L4: u8 = 5;
/// A bit beside the others: the TCP header has CWR set.
pub const GSO_ECN: u8 = 0x80;

/// The kernel's notes on a packet, beyond its bytes; all sizes and offsets in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// `NEEDS_CSUM` or 0.
    pub flags: u8,
    /// One of `GSO_*`.
    pub gso_type: u8,
    /// Bytes of all headers, a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// The offset at which the checksum's data begins.
    pub csum_start: u16,
    /// The offset of the checksum from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHdr {
    /// Bytes without `num_buffers`, what a TUN has by default.
    pub const LEN: usize = 10;
    /// Bytes with `num_buffers`.
    pub const LEN_MRG: usize = 12;

    /// Reads the header, in the machine's byte order as the kernel writes it; None where it is cut
    /// off.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let h: &[u8; Self::LEN] = bytes.first_chunk()?;
        Some(Self {
            flags: h[0],
            gso_type: h[1],
            hdr_len: u16::from_ne_bytes([h[2], h[3]]),
            gso_size: u16::from_ne_bytes([h[4], h[5]]),
            csum_start: u16::from_ne_bytes([h[6], h[7]]),
            csum_offset: u16::from_ne_bytes([h[8], h[9]]),
        })
    }

    /// Writes the header; `out` has `LEN` or `LEN_MRG` bytes, `num_buffers` becomes 0.
    pub fn write(&self, out: &mut [u8]) {
        out.fill(0);
        let Some(h) = out.first_chunk_mut::<{ Self::LEN }>() else {
            return;
        };
        h[0] = self.flags;
        h[1] = self.gso_type;
        h[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        h[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        h[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        h[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
    }
}

/// Completes the checksum of a packet that says `NEEDS_CSUM`: the field holds the pseudo-header's
/// sum; a result of 0 becomes 0xFFFF, which UDP needs and others don't mind.
///
/// # Errors
/// `MalformedInner` where the field is not within the packet.
pub fn complete_checksum(vnet: &VnetHdr, packet: &mut [u8]) -> Result<(), DropReason> {
    if vnet.flags & NEEDS_CSUM == 0 {
        return Ok(());
    }
    let start = usize::from(vnet.csum_start);
    let offset = usize::from(vnet.csum_offset);
    let data = packet
        .get_mut(start..)
        .filter(|data| offset + 2 <= data.len())
        .ok_or(DropReason::MalformedInner)?;
    let checksum = Sum::new().bytes(data).checksum();
    put_u16(data, offset, if checksum == 0 { 0xFFFF } else { checksum });
    Ok(())
}
