//! Outbound, second stage: numbers, and each segment sealed behind the one before it.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use esp_core::DropReason;
use esp_core::esp::encap::{BatchSealer, SaSealer, Sealer};
use esp_core::esp::sa::Encapsulation;
use esp_core::esp::suite::Suite;
use esp_core::offload::segment::Segmenter;
use esp_core::wire;
use esp_core::wire::inner::{transport_payload, tunnel_next_header};

use super::batch::{Batch, MAX_BATCH, OUT_LEN, Packet, max_packets};
use super::outbound::OutboundPath;
use super::targets::PacketResult;
use crate::events::Event;
use crate::socket::Sockets;

/// RFC 8200 5: no IPv6 link takes less.
pub(super) const MIN_IPV6_MTU: usize = 1280;
/// Don't fragment, in the byte of IPv4's flags.
const DF: u8 = 0x40;

impl OutboundPath {
    /// Seals the segments of a packet; `left` counts the unsealed ones, which an error drops.
    pub(super) fn protect(
        &mut self,
        index: usize,
        segments: &mut Segmenter,
        left: &mut usize,
        whole: bool,
        sockets: &Sockets,
    ) -> PacketResult<()> {
        let (offset, next_header) = if self.targets[index].transport {
            transport_payload(&self.input)?
        } else {
            (0, tunnel_next_header(&self.input))
        };
        let shape = Shape {
            offset,
            next_header,
            tos: wire::traffic_class(&self.input),
            fragmented_len: fragmented_len(&self.input),
            whole,
        };
        self.seal(index, segments, left, shape, sockets)
    }

    /// Seals the segments in the input buffer as payloads of this shape; where an SA has used its
    /// last number, the rest by another lane.
    #[inline]
    pub(super) fn seal(
        &mut self,
        mut index: usize,
        segments: &mut Segmenter,
        left: &mut usize,
        shape: Shape,
        sockets: &Sockets,
    ) -> PacketResult<()> {
        let Shape {
            offset,
            next_header,
            tos,
            fragmented_len,
            whole,
        } = shape;
        // Empty: refilled before the first segment.
        let mut numbers = RangeInclusive::new(1, 0);
        let mut next = segments.next(&mut self.input);
        while let Some(range) = next {
            if numbers.is_empty() {
                let wanted = (*left).min(MAX_BATCH);
                let mut taken = self.numbers(index, wanted);
                if taken == Err(DropReason::SeqExhausted) {
                    let packet = &self.input[range.clone()];
                    index = self.targets.instead_of(index, packet)?;
                    taken = self.numbers(index, wanted);
                }
                numbers = taken?;
            }
            let spec = &self.targets[index].entry.sa.spec;
            let suite = spec.suite;
            let headers = outer_headers(spec.remote.is_ipv4(), spec.encapsulation);
            let any_path = self.shared.min_mtu.saturating_sub(headers);
            let size = suite.esp_len(range.len() - offset);
            if !self.fits(index, size, tos, whole) {
                self.replace_batch(index, size, tos, whole, sockets)?;
            }
            let run = Run {
                batch: self.batch.as_mut().ok_or(DropReason::SendError)?,
                packets: &mut self.packets,
                input: &mut self.input,
                output: &mut self.output,
                segments,
                numbers: &mut numbers,
                left,
                suite,
                offset,
                next_header,
                fragmented_len,
                any_path,
            };
            // Dispatch once per run, not per packet; flush dispatches once more per batch.
            next = match &mut self.targets[index].sealer {
                SaSealer::Plain(sealer) => run.seal(range, sealer, Sealer::seal)?,
                SaSealer::Batched(sealer) => run.seal(range, sealer, BatchSealer::submit)?,
            };
        }
        Ok(())
    }

    /// Sends the batch, and begins one whose first packet has `size` bytes.
    fn replace_batch(
        &mut self,
        index: usize,
        size: usize,
        tos: u8,
        whole: bool,
        sockets: &Sockets,
    ) -> PacketResult<()> {
        if let Err(error) = self.flush(sockets) {
            self.failed = Some(error);
            return Err(DropReason::SendError);
        }
        let slot = &self.targets[index];
        let max_packets = sockets.get(&slot.outer).map_or(1, |socket| {
            max_packets(socket, &slot.entry, size, self.sender.arena())
        });
        self.begin(index, size, tos, whole, max_packets);
        Ok(())
    }

    /// Reserves consecutive sequence numbers for at most `count` packets.
    ///
    /// No more than go into one batch: numbers that this worker holds and has not sent fall behind
    /// those that others send for the SA, and the replay window tolerates no more reordering.
    fn numbers(&self, index: usize, count: usize) -> PacketResult<RangeInclusive<u64>> {
        let entry = &self.targets[index].entry;
        let seq = &entry.sa.seq;
        let name = || Arc::clone(&entry.sa.spec.name);
        let numbers = seq.reserve(u32::try_from(count).unwrap_or(u32::MAX));
        if seq.passed_low() {
            self.shared.events.push(Event::LeaseLow(name()));
        }
        if seq.passed_soft() {
            self.shared.events.push(Event::SoftExpired(name()));
        }
        if numbers == Err(DropReason::SeqExhausted) && seq.expire() {
            self.shared.events.push(Event::HardExpired(name()));
        }
        numbers.map(|numbers| numbers.first..=numbers.last())
    }

    /// True if a packet of `size` bytes may follow those of the batch.
    fn fits(&self, index: usize, size: usize, tos: u8, whole: bool) -> bool {
        self.batch.as_ref().is_some_and(|batch| {
            (batch.slot, batch.tos, batch.may_fragment) == (index, tos, whole)
                && batch.has_room(size, self.packets.len())
        })
    }

    fn begin(&mut self, index: usize, size: usize, tos: u8, whole: bool, max_packets: usize) {
        self.packets.clear();
        self.batch = Some(Batch {
            slot: index,
            dst: self.targets[index].entry.peer.address(),
            tos,
            segment: size,
            len: 0,
            max_packets: max_packets.min(OUT_LEN / size.max(1)).clamp(1, MAX_BATCH),
            done: 0,
            closed: false,
            may_fragment: whole,
        });
    }
}

/// Common properties of the segments of a TUN read.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Bytes of a segment in front of its payload.
    pub(super) offset: usize,
    pub(super) next_header: u8,
    pub(super) tos: u8,
    /// Bytes of an inner packet up to which its outer packet is fragmented, never refused.
    pub(super) fragmented_len: usize,
    /// True if the outer packet may be fragmented.
    pub(super) whole: bool,
}

/// Segments of one super-packet that are sealed into one batch by one sealer.
struct Run<'a> {
    batch: &'a mut Batch,
    packets: &'a mut Vec<Packet>,
    input: &'a mut [u8],
    output: &'a mut [u8],
    segments: &'a mut Segmenter,
    numbers: &'a mut RangeInclusive<u64>,
    /// Segments of the super-packet that are not sealed yet.
    left: &'a mut usize,
    suite: &'static Suite,
    /// Bytes of a segment in front of its payload.
    offset: usize,
    next_header: u8,
    fragmented_len: usize,
    /// Bytes of an ESP packet that every path has to take.
    any_path: usize,
}

/// Bytes of an inner packet up to which its outer packet is fragmented: what any IPv6 link takes, and
/// all of IPv4 that may be fragmented (RFC 4301 8.1).
fn fragmented_len(packet: &[u8]) -> usize {
    match packet.get(6) {
        _ if wire::version(packet) == 6 => MIN_IPV6_MTU,
        Some(flags) if flags & DF != 0 => 0,
        _ => usize::MAX,
    }
}

/// Bytes in front of an ESP packet.
pub(super) const fn outer_headers(ipv4: bool, encapsulation: Encapsulation) -> usize {
    let udp = match encapsulation {
        Encapsulation::Udp => 8,
        Encapsulation::None => 0,
    };
    udp + if ipv4 { 20 } else { 40 }
}

impl Run<'_> {
    /// Seals the segment in `range`, and those after it while numbers and room last; returns the
    /// first that is left.
    fn seal<S>(
        self,
        mut range: Range<usize>,
        sealer: &mut S,
        seal: impl Fn(&mut S, u64, &mut [u8], usize, u8, &mut [u8]) -> PacketResult<usize>,
    ) -> PacketResult<Option<Range<usize>>> {
        let Self { batch, packets, .. } = self;
        loop {
            let Some(seq) = self.numbers.next() else {
                return Ok(Some(range));
            };
            let size = seal(
                sealer,
                seq,
                &mut self.input[range.start + self.offset..],
                range.len() - self.offset,
                self.next_header,
                &mut self.output[batch.len..],
            )?;
            batch.len += size;
            batch.closed = size < batch.segment;
            packets.push(Packet {
                bytes: range.len() as u64,
                any_link: range.len() <= self.fragmented_len || size <= self.any_path,
            });
            *self.left -= 1;
            range = match self.segments.next(self.input) {
                Some(range) => range,
                None => return Ok(None),
            };
            let size = self.suite.esp_len(range.len() - self.offset);
            if !batch.has_room(size, packets.len()) {
                return Ok(Some(range));
            }
        }
    }
}
