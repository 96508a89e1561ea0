//! A super-packet that grows: the first packet's headers and the payloads of its neighbours.

use crate::offload::merge::{
    Shape, checksums_hold, finish, id_fits, same_flow, tcp_seq, tcp_window,
};
use crate::wire::VnetHdr;
use crate::wire::protocol::{TCP, UDP};

/// Bytes of the largest super-packet.
pub const MAX_LEN: usize = 65535;
/// Room in front of a packet, for the `virtio_net_hdr`; a cache line, so that the packet begins
/// one.
pub(super) const HEADROOM: usize = 64;
/// The limits of merging; `vnet_len` is 10, 12, or 0 for a TUN without `virtio_net_hdr`, to which
/// nothing merged can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merging {
    /// Bytes of the `virtio_net_hdr` in front of each packet.
    pub vnet_len: usize,
    /// True if TCP segments are merged.
    pub tcp: bool,
    /// True if UDP datagrams are merged (USO).
    pub udp: bool,
    /// Packets in one super-packet at most.
    pub max_segments: u16,
}

/// A packet or super-packet, ready to be written to the TUN in one piece.
#[derive(Debug, PartialEq, Eq)]
pub struct Ready<'a> {
    /// The `virtio_net_hdr`, if there is one, and the packet.
    pub frame: &'a mut [u8],
    /// Packets in it, as they were sealed.
    pub packets: u16,
    /// Their bytes.
    pub bytes: u64,
    /// The owner that was given to `accept`.
    pub owner: u64,
    /// Bytes of the `virtio_net_hdr`.
    pub(super) vnet_len: usize,
}

impl Ready<'_> {
    /// The packet, behind the `virtio_net_hdr`.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        self.frame.get(self.vnet_len..).unwrap_or_default()
    }
}

/// A super-packet, from `HEADROOM` on in its buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Super {
    pub(super) owner: u64,
    pub(super) length: usize,
    packets: u16,
    bytes: u64,
    /// None if no packet can be merged with it.
    pub(super) shape: Option<Shape>,
    gso_size: usize,
    push: bool,
    window: u16,
    fixed_id: Option<bool>,
    /// True if the first packet's checksums hold; verified when a second one arrives.
    verified: bool,
}

impl Super {
    /// Begins with one packet.
    pub(super) fn of(packet: &[u8], owner: u64, merging: &Merging) -> Self {
        let length = packet.len();
        let shape = Shape::of(packet).filter(|shape| {
            merging.vnet_len != 0
                && match shape.protocol {
                    TCP => merging.tcp,
                    UDP => merging.udp,
                    _ => false,
                }
        });
        Self {
            owner,
            length,
            packets: 1,
            bytes: length as u64,
            gso_size: shape.map_or(0, |shape| length - shape.headers_len),
            push: shape.is_some_and(|shape| shape.push),
            window: shape.map_or(0, |shape| tcp_window(&shape, packet)),
            shape,
            fixed_id: None,
            verified: false,
        }
    }

    /// True if another packet may follow: a push, a packet shorter than the first and a limit end
    /// it.
    pub(super) fn is_open(&self, merging: &Merging) -> bool {
        self.shape.is_some_and(|shape| {
            !self.push
                && self.packets < merging.max_segments
                && self.bytes
                    == (self.gso_size + shape.headers_len) as u64 * u64::from(self.packets)
                && self.length + self.gso_size <= MAX_LEN
        })
    }

    /// Adds a packet if its headers and checksums allow it, else stays the same; the payload is behind
    /// `whole`.
    pub(super) fn takes(
        &mut self,
        shape: &Shape,
        whole: &[u8],
        headers: &[u8],
        payload: &[u8],
    ) -> bool {
        let (first, merged) = whole.split_at(shape.headers_len);
        let is_tcp = shape.protocol == TCP;
        #[allow(clippy::cast_possible_truncation)] // less than 65536
        let next_seq = tcp_seq(shape, first).wrapping_add(merged.len() as u32);
        let mut fixed_id = self.fixed_id;
        let neighbours = payload.len() <= self.gso_size
            && same_flow(shape, first, headers)
            && id_fits(first, headers, self.packets, &mut fixed_id)
            && (!is_tcp || tcp_seq(shape, headers) == next_seq);
        if !neighbours {
            return false;
        }
        self.verified = self.verified || checksums_hold(shape, first, merged);
        if !self.verified || !checksums_hold(shape, headers, payload) {
            return false;
        }
        self.fixed_id = fixed_id;
        self.length += payload.len();
        self.packets += 1;
        self.bytes += (headers.len() + payload.len()) as u64;
        if is_tcp {
            self.push = headers[shape.ip_len + 13] & 0x08 != 0;
            self.window = tcp_window(shape, headers);
        }
        true
    }

    /// Returns it as it is written to the TUN; `buffer` is where it was built.
    pub(super) fn ready<'a>(&self, merging: &Merging, buffer: &'a mut [u8]) -> Ready<'a> {
        let frame = &mut buffer[HEADROOM - merging.vnet_len..HEADROOM + self.length];
        let (header, packet) = frame.split_at_mut(merging.vnet_len);
        let vnet = match self.shape {
            Some(shape) if self.packets > 1 => {
                let gso_size = u16::try_from(self.gso_size).unwrap_or(u16::MAX);
                finish(&shape, packet, gso_size, self.push, self.window)
            }
            _ => VnetHdr::default(),
        };
        vnet.write(header);
        Ready {
            frame,
            packets: self.packets,
            bytes: self.bytes,
            owner: self.owner,
            vnet_len: merging.vnet_len,
        }
    }
}
