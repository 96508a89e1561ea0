//! GRO: packets are opened in place and merged with their neighbours into super-packets for one TUN
//! write.
//!
//! A text is opened where its payload continues the payload before it; its headers then lie over
//! the end of that payload, which is saved and restored. A packet that can't be merged moves to the
//! other of two buffers and begins a new super-packet there.

use crate::DropReason;
use crate::offload::merge::{
    MAX_HEADERS, Shape, checksums_hold, finish, id_fits, same_flow, tcp_seq, tcp_window,
};
use crate::wire::VnetHdr;
use crate::wire::protocol::{TCP, UDP};

/// Bytes of the largest super-packet.
pub const MAX_LEN: usize = 65535;
/// Room in front of a packet, for the `virtio_net_hdr`; a cache line, so that the packet begins
/// one.
const HEADROOM: usize = 64;
/// Beyond the largest packet: a rebuilt header, a trailer.
const TAILROOM: usize = 512;

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

/// A kind of super-packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeKind {
    /// TCP segments.
    Tcp,
    /// UDP datagrams.
    Udp,
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
}

/// The open super-packet, from `HEADROOM` on in its buffer.
#[derive(Clone, Copy, Debug)]
struct Super {
    owner: u64,
    length: usize,
    packets: u16,
    bytes: u64,
    /// None if no packet can be merged with it.
    shape: Option<Shape>,
    gso_size: usize,
    push: bool,
    window: u16,
    fixed_id: Option<bool>,
    /// True if the first packet's checksums hold; verified when a second one arrives.
    verified: bool,
}

/// The place of the packet that is being opened.
#[derive(Clone, Copy, Debug)]
struct Placed {
    at: usize,
    length: usize,
    /// True if it may continue the super-packet: it lies in the same buffer, over its end.
    continues: bool,
}

/// Builds super-packets; one a worker and TUN queue.
#[derive(Debug)]
pub struct Coalescer {
    merging: Merging,
    current: Box<[u8]>,
    other: Box<[u8]>,
    building: Option<Super>,
    placed: Option<Placed>,
    overwritten: [u8; MAX_HEADERS],
}

impl Coalescer {
    /// Makes the two buffers, 130 KiB in all.
    #[must_use]
    pub fn new(merging: Merging) -> Self {
        let buffer = || vec![0; HEADROOM + MAX_LEN + TAILROOM].into_boxed_slice();
        Self {
            merging: Merging {
                vnet_len: merging.vnet_len.min(HEADROOM),
                ..merging
            },
            current: buffer(),
            other: buffer(),
            building: None,
            placed: None,
            overwritten: [0; MAX_HEADERS],
        }
    }

    /// Returns the `length` bytes to open a packet into, at the place that continues the
    /// super-packet. In transport mode they include the rebuilt IP header in front of the text. An
    /// earlier place that was not accepted is released.
    ///
    /// # Errors
    /// `MalformedInner` for more bytes than any packet has.
    pub fn place(&mut self, length: usize) -> Result<&mut [u8], DropReason> {
        self.cancel();
        let over = self
            .building
            .as_ref()
            .and_then(|building| self.continuation(building, length));
        let placed = match over {
            Some((at, headers_len)) => {
                let kept = self.current.get(at..at + headers_len).unwrap_or_default();
                self.overwritten[..kept.len()].copy_from_slice(kept);
                Placed {
                    at,
                    length,
                    continues: true,
                }
            }
            None => Placed {
                at: HEADROOM,
                length,
                continues: false,
            },
        };
        let buffer = if placed.continues {
            &mut self.current
        } else {
            &mut self.other
        };
        let place = buffer.get_mut(placed.at..placed.at + length);
        if place.is_some() {
            self.placed = Some(placed);
        }
        place.ok_or(DropReason::MalformedInner)
    }

    /// The place at which a packet continues the super-packet, and the length of its headers.
    fn continuation(&self, building: &Super, length: usize) -> Option<(usize, usize)> {
        let shape = building.shape.as_ref()?;
        let open = !building.push
            && building.packets < self.merging.max_segments
            // A packet shorter than the first ends the super-packet.
            && building.bytes
                == (building.gso_size + shape.headers_len) as u64 * u64::from(building.packets)
            && length > shape.headers_len
            && building.length + length - shape.headers_len <= MAX_LEN + TAILROOM;
        open.then(|| {
            (
                HEADROOM + building.length - shape.headers_len,
                shape.headers_len,
            )
        })
    }

    /// The current place, empty if there is none.
    pub fn placed(&mut self) -> &mut [u8] {
        let Some(Placed {
            at,
            length,
            continues,
        }) = self.placed
        else {
            return &mut [];
        };
        let buffer = if continues {
            &mut self.current
        } else {
            &mut self.other
        };
        buffer.get_mut(at..at + length).unwrap_or_default()
    }

    /// Releases the place of a dropped packet.
    pub fn cancel(&mut self) {
        if let Some(Placed {
            at,
            continues: true,
            ..
        }) = self.placed.take()
        {
            self.put_back(at);
        }
    }

    fn put_back(&mut self, at: usize) {
        let headers_len = self
            .building
            .as_ref()
            .and_then(|b| b.shape.as_ref())
            .map_or(0, |s| s.headers_len);
        if let Some(end) = self.current.get_mut(at..at + headers_len) {
            end.copy_from_slice(&self.overwritten[..headers_len]);
        }
    }

    /// Accepts the packet in the first `length` bytes of the place: it is merged or begins a new
    /// super-packet. A super-packet that it can't join is returned, and must be written before the
    /// next `place`. Packets of different owners (SAs) are not merged.
    pub fn accept(&mut self, length: usize, owner: u64) -> Option<Ready<'_>> {
        let placed = self.placed.take()?;
        let length = length.min(placed.length);
        if placed.continues && self.continue_with(placed.at, length, owner) {
            return None;
        }
        let before = self.building.take();
        std::mem::swap(&mut self.current, &mut self.other);
        self.building = Some(self.begin(length, owner));
        before.map(|before| ready(&self.merging, &mut self.other, &before))
    }

    /// Merges the packet at `at`, or moves it to the other buffer.
    fn continue_with(&mut self, at: usize, length: usize, owner: u64) -> bool {
        let Some(mut building) = self.building else {
            return false;
        };
        let Some(shape) = building.shape else {
            return false;
        };
        let mut headers = [0; MAX_HEADERS];
        let headers_len = shape.headers_len.min(length);
        let headers = &mut headers[..headers_len];
        let packet = &self.current[at..at + length];
        let fits = owner == building.owner
            && building.length + length.saturating_sub(headers_len) <= MAX_LEN
            && Shape::of(packet).is_some_and(|next| {
                next == Shape {
                    push: next.push,
                    ..shape
                }
            });
        headers.copy_from_slice(&packet[..headers_len]);
        self.put_back(at);
        let end = HEADROOM + building.length;
        let (whole, payload) =
            self.current[HEADROOM..end + length - headers_len].split_at(end - HEADROOM);
        if fits && building.takes(&shape, whole, headers, payload) {
            self.building = Some(building);
            return true;
        }
        let moved = &mut self.other[HEADROOM..HEADROOM + length];
        moved[..headers_len].copy_from_slice(headers);
        moved[headers_len..].copy_from_slice(payload);
        false
    }

    /// Begins a super-packet with the packet at the beginning of the current buffer.
    fn begin(&self, length: usize, owner: u64) -> Super {
        let packet = &self.current[HEADROOM..HEADROOM + length];
        let shape = Shape::of(packet).filter(|shape| {
            self.merging.vnet_len != 0
                && match shape.protocol {
                    TCP => self.merging.tcp,
                    UDP => self.merging.udp,
                    _ => false,
                }
        });
        Super {
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

    /// Merges no more packets of a kind, TCP or UDP, from the next super-packet on.
    pub fn stop(&mut self, kind: MergeKind) {
        match kind {
            MergeKind::Tcp => self.merging.tcp = false,
            MergeKind::Udp => self.merging.udp = false,
        }
    }

    /// Returns the open super-packet, which must be written before the next `place`.
    pub fn flush(&mut self) -> Option<Ready<'_>> {
        self.cancel();
        let building = self.building.take()?;
        Some(ready(&self.merging, &mut self.current, &building))
    }
}

impl Super {
    /// Adds a packet if its headers and checksums allow it; the payload is behind `whole`.
    fn takes(&mut self, shape: &Shape, whole: &[u8], headers: &[u8], payload: &[u8]) -> bool {
        let (first, merged) = whole.split_at(shape.headers_len);
        let is_tcp = shape.protocol == TCP;
        #[allow(clippy::cast_possible_truncation)] // less than 65536
        let next_seq = tcp_seq(shape, first).wrapping_add(merged.len() as u32);
        let neighbours = payload.len() <= self.gso_size
            && same_flow(shape, first, headers)
            && id_fits(first, headers, self.packets, &mut self.fixed_id)
            && (!is_tcp || tcp_seq(shape, headers) == next_seq);
        if !neighbours {
            return false;
        }
        self.verified = self.verified || checksums_hold(shape, first, merged);
        if !self.verified || !checksums_hold(shape, headers, payload) {
            return false;
        }
        self.length += payload.len();
        self.packets += 1;
        self.bytes += (headers.len() + payload.len()) as u64;
        if is_tcp {
            self.push = headers[shape.ip_len + 13] & 0x08 != 0;
            self.window = tcp_window(shape, headers);
        }
        true
    }
}

fn ready<'a>(merging: &Merging, buffer: &'a mut [u8], building: &Super) -> Ready<'a> {
    let frame = &mut buffer[HEADROOM - merging.vnet_len..HEADROOM + building.length];
    let (header, packet) = frame.split_at_mut(merging.vnet_len);
    let vnet = match building.shape {
        Some(shape) if building.packets > 1 => {
            let gso_size = u16::try_from(building.gso_size).unwrap_or(u16::MAX);
            finish(&shape, packet, gso_size, building.push, building.window)
        }
        _ => VnetHdr::default(),
    };
    vnet.write(header);
    Ready {
        frame,
        packets: building.packets,
        bytes: building.bytes,
        owner: building.owner,
    }
}
