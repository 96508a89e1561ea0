//! `struct virtio_net_hdr`, which goes before every packet of a TUN queue (virtio 1.2, 5.1.6).

use bitflags::bitflags;

/// Bytes of the header on the wire between the kernel and us.
pub const VNET_HDR_LEN: usize = 10;

bitflags! {
    /// `virtio_net_hdr.flags`.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct VnetFlags: u8 {
        /// The checksum at `csum_start + csum_offset` holds only the pseudo-header's sum, so far.
        const NEEDS_CSUM = 1;
        /// The checksum was verified.
        const DATA_VALID = 2;
        /// Others that a kernel may set.
        const _ = !0;
    }
}

/// No segmentation: one packet.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4, to be cut into segments of `gso_size`.
pub const GSO_TCPV4: u8 = 1;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP over either, to be cut into datagrams (`USO`).
pub const GSO_UDP_L4: u8 = 5;
/// A bit beside the TCP types: CWR is set and belongs to the first segment only.
pub const GSO_ECN: u8 = 0x80;

/// The notes on a packet that go with it to and from the kernel, in the machine's byte order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// True if a checksum is to be completed.
    pub flags: VnetFlags,
    /// One of the `GSO_` constants.
    pub gso_type: u8,
    /// Bytes of all headers together: a hint, not to be trusted on reading.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// The beginning of the checksummed part: the transport header's offset from the IP header.
    pub csum_start: u16,
    /// The offset of the checksum from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHdr {
    /// The header as the kernel reads it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; VNET_HDR_LEN] {
        let [l0, l1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        let flags = self.flags.bits();
        [flags, self.gso_type, l0, l1, g0, g1, s0, s1, o0, o1]
    }

    /// The header as the kernel wrote it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; VNET_HDR_LEN]) -> Self {
        let [flags, gso_type, l0, l1, g0, g1, s0, s1, o0, o1] = *bytes;
        Self {
            flags: VnetFlags::from_bits_retain(flags),
            gso_type,
            hdr_len: u16::from_ne_bytes([l0, l1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }
}
