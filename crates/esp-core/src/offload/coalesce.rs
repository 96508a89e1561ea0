//! GRO: packets are opened in place and merged with others of their flow into super-packets for one
//! TUN write.
//!
//! A text is opened where its payload continues the payload of the packet before it; its headers
//! then lie over the end of that payload, which is saved and restored. A packet that can't continue
//! there moves to the spare buffer. From it, it joins the super-packet of its own flow, or takes
//! that one's place, or begins another.
//!
//! Packets of a flow leave in the order in which they came, those of different flows may not. A
//! packet that belongs to no flow, such as a fragment, leaves behind all with its addresses.

use crate::DropReason;
use crate::offload::merge::{MAX_HEADERS, Shape};
use crate::offload::super_packet::{HEADROOM, Super};
pub use crate::offload::super_packet::{MAX_LEN, Merging, Ready};
use crate::wire::flow::FlowKey;

/// Super-packets that are open at once; the flow that began first gives way to one more.
pub const MAX_OPEN: usize = 8;
/// Beyond the largest packet: a rebuilt header, a trailer.
const TAILROOM: usize = 512;

/// A kind of super-packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeKind {
    /// TCP segments.
    Tcp,
    /// UDP datagrams.
    Udp,
}

/// The place of the packet that is being opened.
#[derive(Clone, Copy, Debug)]
struct Placed {
    at: usize,
    length: usize,
    /// True if it may continue the recent super-packet: it lies in its buffer, over its end.
    continues: bool,
}

/// A buffer, and the super-packet that is open in it.
#[derive(Debug)]
struct Slot {
    buffer: Box<[u8]>,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    building: Super,
    flow: FlowKey,
    /// `Coalescer::begun` when it began.
    since: u64,
}

/// Builds super-packets; one a worker and TUN queue.
#[derive(Debug)]
pub struct Coalescer {
    merging: Merging,
    slots: [Slot; MAX_OPEN],
    /// Bits of the slots with an open super-packet.
    open: u32,
    /// The slot of the packet before; packets come in trains.
    recent: usize,
    /// Super-packets begun so far.
    begun: u64,
    spare: Box<[u8]>,
    placed: Option<Placed>,
    overwritten: [u8; MAX_HEADERS],
    /// Bits of the slots that are to be written, before `due_spare`.
    due: u32,
    due_spare: Option<Super>,
}

impl Coalescer {
    /// Makes the buffers, 65 KiB for each open super-packet and a spare one.
    #[must_use]
    pub fn new(merging: Merging) -> Self {
        let buffer = || vec![0; HEADROOM + MAX_LEN + TAILROOM].into_boxed_slice();
        Self {
            merging: Merging {
                vnet_len: merging.vnet_len.min(HEADROOM),
                ..merging
            },
            slots: std::array::from_fn(|_| Slot {
                buffer: buffer(),
                open: None,
            }),
            open: 0,
            recent: 0,
            begun: 0,
            spare: buffer(),
            placed: None,
            overwritten: [0; MAX_HEADERS],
            due: 0,
            due_spare: None,
        }
    }

    /// Returns the `length` bytes to open a packet into, at the place that continues the recent
    /// super-packet. In transport mode they include the rebuilt IP header in front of the text. An
    /// earlier place that was not accepted is released.
    ///
    /// # Errors
    /// `MalformedInner` for more bytes than any packet has.
    pub fn place(&mut self, length: usize) -> Result<&mut [u8], DropReason> {
        self.cancel();
        let slot = &self.slots[self.recent];
        let placed = match slot.continuation(length) {
            Some((at, headers_len)) => {
                let kept = slot.buffer.get(at..at + headers_len).unwrap_or_default();
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
            &mut self.slots[self.recent].buffer
        } else {
            &mut self.spare
        };
        let place = buffer.get_mut(placed.at..placed.at + length);
        if place.is_some() {
            self.placed = Some(placed);
        }
        place.ok_or(DropReason::MalformedInner)
    }

    /// The current place, empty if there is none.
    pub fn placed(&mut self) -> &mut [u8] {
        let Some(placed) = self.placed else {
            return &mut [];
        };
        let buffer = if placed.continues {
            &mut self.slots[self.recent].buffer
        } else {
            &mut self.spare
        };
        let range = placed.at..placed.at + placed.length;
        buffer.get_mut(range).unwrap_or_default()
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
        let slot = &mut self.slots[self.recent];
        let headers_len = slot.headers_len();
        if let Some(end) = slot.buffer.get_mut(at..at + headers_len) {
            end.copy_from_slice(&self.overwritten[..headers_len]);
        }
    }

    /// Accepts the packet in the first `length` bytes of the place: it is merged or begins a new
    /// super-packet. Whatever `due` returns then must be written before the next `place`. Packets of
    /// different owners (SAs) are not merged.
    pub fn accept(&mut self, length: usize, owner: u64) {
        let Some(placed) = self.placed.take() else {
            return;
        };
        let length = length.min(placed.length);
        if !(placed.continues && self.continue_with(placed.at, length, owner)) {
            self.sort_in(length, owner);
        }
    }

    /// Merges the packet at `at` with the recent super-packet, or moves it to the spare buffer.
    fn continue_with(&mut self, at: usize, length: usize, owner: u64) -> bool {
        let slot = &self.slots[self.recent];
        let Some(Open { building, .. }) = &slot.open else {
            return false;
        };
        let Some(shape) = building.shape else {
            return false;
        };
        let end = HEADROOM + building.length;
        let mut headers = [0; MAX_HEADERS];
        let headers_len = shape.headers_len.min(length);
        let headers = &mut headers[..headers_len];
        let packet = &slot.buffer[at..at + length];
        let fits =
            owner == building.owner && Shape::of(packet).is_some_and(|next| next.extends(&shape));
        headers.copy_from_slice(&packet[..headers_len]);
        self.put_back(at);
        let slot = &mut self.slots[self.recent];
        let (whole, payload) =
            slot.buffer[HEADROOM..end + length - headers_len].split_at(end - HEADROOM);
        if let Some(Open { building, .. }) = slot.open.as_mut().filter(|_| fits) {
            if building.takes(&shape, whole, headers, payload) {
                if !building.is_open(&self.merging) {
                    self.due |= 1 << self.recent;
                }
                return true;
            }
        }
        let moved = &mut self.spare[HEADROOM..HEADROOM + length];
        moved[..headers_len].copy_from_slice(headers);
        moved[headers_len..].copy_from_slice(payload);
        false
    }

    /// Finds a super-packet or a slot for the packet in the spare buffer.
    #[inline(never)]
    fn sort_in(&mut self, length: usize, owner: u64) {
        let packet = &self.spare[HEADROOM..HEADROOM + length];
        let next = Super::of(packet, owner, &self.merging);
        let Some(flow) = FlowKey::of(packet) else {
            let Some(flow) = FlowKey::of_addresses(packet) else {
                self.due_spare = Some(next);
                return;
            };
            self.due |= self.bits(|open| open.flow.has_addresses_of(&flow));
            self.due_spare = Some(next);
            return;
        };
        // Of any owner: a flow that changes its SA leaves in order, too.
        let same = self.bits(|open| open.flow == flow);
        let found = (same != 0).then(|| same.trailing_zeros() as usize);
        if found.is_some_and(|index| self.append(index, &next)) {
            return;
        }
        if !next.is_open(&self.merging) {
            self.due |= same;
            self.due_spare = Some(next);
            return;
        }
        self.recent = found.unwrap_or_else(|| self.free_slot());
        self.open |= 1 << self.recent;
        self.begun += 1;
        let slot = &mut self.slots[self.recent];
        std::mem::swap(&mut slot.buffer, &mut self.spare);
        let before = slot.open.replace(Open {
            building: next,
            flow,
            since: self.begun,
        });
        self.due_spare = before.map(|before| before.building);
    }

    /// Merges the packet in the spare buffer with a super-packet.
    fn append(&mut self, index: usize, next: &Super) -> bool {
        let Slot { buffer, open } = &mut self.slots[index];
        let (Some(Open { building, .. }), Some(shape)) = (open, next.shape) else {
            return false;
        };
        let packet = &self.spare[HEADROOM..HEADROOM + next.length];
        let (headers, payload) = packet.split_at(shape.headers_len);
        let end = HEADROOM + building.length;
        let takes = building.shape.is_some_and(|first| {
            building.owner == next.owner
                && shape.extends(&first)
                && building.takes(&first, &buffer[HEADROOM..end], headers, payload)
        });
        if takes {
            buffer[end..end + payload.len()].copy_from_slice(payload);
            self.recent = index;
            if !building.is_open(&self.merging) {
                self.due |= 1 << index;
            }
        }
        takes
    }

    /// An unused slot, or that of the super-packet that began first.
    fn free_slot(&self) -> usize {
        let unused = self.open.trailing_ones() as usize;
        if unused < MAX_OPEN {
            return unused;
        }
        let since = |index: &usize| self.slots[*index].open.map_or(0, |open| open.since);
        (0..MAX_OPEN).min_by_key(since).unwrap_or_default()
    }

    /// Bits of the open super-packets that are wanted.
    fn bits(&self, wanted: impl Fn(&Open) -> bool) -> u32 {
        let (mut left, mut bits) = (self.open, 0);
        while left != 0 {
            let slot = &self.slots[left.trailing_zeros() as usize];
            if slot.open.as_ref().is_some_and(&wanted) {
                bits |= left & left.wrapping_neg();
            }
            left &= left - 1;
        }
        bits
    }

    /// Merges no more packets of a kind, TCP or UDP, from the next super-packet on.
    pub fn stop(&mut self, kind: MergeKind) {
        match kind {
            MergeKind::Tcp => self.merging.tcp = false,
            MergeKind::Udp => self.merging.udp = false,
        }
    }

    /// Makes every open super-packet due.
    pub fn flush(&mut self) {
        self.cancel();
        self.due = self.open;
    }

    /// Returns the next super-packet that is to be written, which is no longer kept; None once there
    /// is none.
    pub fn due(&mut self) -> Option<Ready<'_>> {
        if self.due == 0 {
            // Without this look the whole value would be moved for nothing.
            self.due_spare.as_ref()?;
            let building = self.due_spare.take()?;
            return Some(building.ready(&self.merging, &mut self.spare));
        }
        let index = self.due.trailing_zeros() as usize;
        self.due &= self.due - 1;
        self.open &= !(1 << index);
        let slot = &mut self.slots[index];
        let open = slot.open.take()?;
        Some(open.building.ready(&self.merging, &mut slot.buffer))
    }
}

impl Slot {
    fn headers_len(&self) -> usize {
        let shape = self
            .open
            .as_ref()
            .and_then(|open| open.building.shape.as_ref());
        shape.map_or(0, |shape| shape.headers_len)
    }

    /// The place at which a packet continues the super-packet, and the length of its headers.
    fn continuation(&self, length: usize) -> Option<(usize, usize)> {
        let building = &self.open.as_ref()?.building;
        let headers_len = building.shape.as_ref()?.headers_len;
        let end = building.length + length.checked_sub(headers_len + 1)?;
        (end < MAX_LEN + TAILROOM).then(|| (HEADROOM + building.length - headers_len, headers_len))
    }
}
