//! The `virtio_net_hdr` in front of a TUN packet (virtio 1.3, 5.1.6; `linux/virtio_net.h`).

use super::{Sum, put_u16};
use crate::DropReason;

/// Partial checksum at `csum_start + csum_offset`: holds the pseudo-header's sum only.
pub const NEEDS_CSUM: u8 = 1;
/// Not a super-packet.
pub const GSO_NONE: u8 = 0;
/// A super-packet of TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// A super-packet of TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// A super-packet of UDP datagrams (USO).
pub const GSO_UDP_L4: u8 = 5;
/// Flag beside the TCP types: CWR is set and belongs to the first segment only.
pub const GSO_ECN: u8 = 0x80;

/// Metadata of a packet to and from the kernel; all sizes and offsets in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// `NEEDS_CSUM` or 0; other bits may be set on reading.
    pub flags: u8,
    /// One of `GSO_*`.
    pub gso_type: u8,
    /// Bytes of all headers: a hint, not to be trusted on reading.
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

    /// The header that the kernel wrote, in the machine's byte order.
    #[must_use]
    pub const fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let [flags, gso_type, l0, l1, g0, g1, s0, s1, o0, o1] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([l0, l1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }

    /// The header that the kernel reads, in the machine's byte order.
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; Self::LEN] {
        let [l0, l1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, l0, l1, g0, g1, s0, s1, o0, o1]
    }

    /// Reads the header in front of a packet; None if it is cut off.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(Self::from_bytes)
    }

    /// Writes the header; `out` has `LEN` or `LEN_MRG` bytes, `num_buffers` becomes 0.
    pub fn write(&self, out: &mut [u8]) {
        out.fill(0);
        if let Some(header) = out.first_chunk_mut() {
            *header = self.to_bytes();
        }
    }
}

/// Completes the partial checksum of a packet with `NEEDS_CSUM`. A result of 0 becomes 0xFFFF,
/// which UDP requires and other protocols accept.
///
/// # Errors
/// `MalformedInner` if the field is not within the packet.
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
