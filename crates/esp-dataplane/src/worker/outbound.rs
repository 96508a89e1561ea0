//! The outbound path, in its order: TUN, selectors, numbers, segments, seal, socket.
//!
//!   drain        read super-packets from the TUN, at most BUDGET a call
//!   forward      one super-packet
//!     reassemble   fragments of transport mode
//!     targets      selectors, once a flow: targets.rs
//!     protect      numbers; each segment sealed behind the one before it
//!   flush        complete and send the batch of equal-sized ESP packets of one SA

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::{Duration, Instant};

use esp_core::DropReason;
use esp_core::esp::encap::{BatchSealer, SaSealer, Sealer};
use esp_core::esp::suite::{Suite, TRAILER_ROOM};
use esp_core::offload::segment::Segmenter;
use esp_core::wire::flow::FlowKey;
use esp_core::wire::inner::{transport_payload, tunnel_next_header};
use esp_core::wire::reassembly::Reassembler;
use esp_core::wire::{self, VnetHdr};
use esp_linux::mem::Region;
use esp_linux::tun::{MAX_PACKET, TunQueue, TunRead};
use esp_linux::udp::path_mtu;
use esp_linux::{Error, Result, SendArena, SendOutcome, Transmit};

use super::batch::{Batch, BatchOutcome, BatchSender, Packet, max_packets};
use super::targets::{PacketResult, Targets};
use crate::events::Event;
use crate::shared::Shared;
use crate::socket::Socket;
use crate::tables::{OuterSocket, Tables};

/// Super-packets of one call, up to 4 MiB, before the other direction's turn.
const BUDGET: usize = 64;
/// Bytes of a batch's sealed packets, with room for one more packet.
const OUT_LEN: usize = 2 * (MAX_PACKET + 512);
/// Packets of one sendmmsg.
const SEND_BATCH: usize = 64;
/// Most packets of a batch; at least the capacity of one send.
const MAX_BATCH: usize = 128;
/// RFC 8200 5: no IPv6 link takes less.
const MIN_IPV6_MTU: usize = 1280;

/// Least interval between two path MTU queries of an SA, however many packets were too big.
const MTU_QUESTION_INTERVAL: Duration = Duration::from_millis(200);

/// Reason that draining has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// The TUN has no more.
    Empty,
    /// There may be more.
    Budget,
    /// The outer socket is full.
    Blocked,
    /// The device was deleted.
    Gone,
}

/// One worker's outbound path.
pub struct OutboundPath {
    worker: usize,
    shared: Arc<Shared>,
    targets: Targets,
    input: Region,
    output: Region,
    arena: SendArena,
    batch: Option<Batch>,
    /// Per-packet bookkeeping of the current batch.
    packets: Vec<Packet>,
    /// The error that made a socket unusable, until `drain` ends the worker with it.
    failed: Option<Error>,
    reassembler: Reassembler,
    began: Instant,
}

impl OutboundPath {
    /// Makes the buffers and the tables of a worker.
    ///
    /// # Errors
    /// The error of the system call, for memory.
    pub fn new(worker: usize, shared: Arc<Shared>) -> Result<Self> {
        Ok(Self {
            worker,
            targets: Targets::new(Arc::clone(&shared)),
            shared,
            input: Region::new(MAX_PACKET + TRAILER_ROOM)?,
            output: Region::new(OUT_LEN)?,
            arena: SendArena::new(SEND_BATCH),
            batch: None,
            packets: Vec::with_capacity(MAX_BATCH),
            failed: None,
            reassembler: Reassembler::default(),
            began: Instant::now(),
        })
    }

    /// Uses new tables from the next packet on; keeps an unsent batch.
    pub fn use_tables(&mut self, tables: Arc<Tables>) {
        // Keep the unsent batch if its SA survived the table change.
        let waiting = self.batch.take().and_then(|batch| {
            let entry = Arc::clone(&self.targets.get(batch.slot)?.entry);
            Some((batch, entry))
        });
        self.targets.replace(tables);
        if let Some((mut batch, entry)) = waiting {
            if let Some(index) = self.targets.again(&entry) {
                batch.slot = index;
                self.batch = Some(batch);
            } else {
                let left = self.packets.len() - batch.packets_done();
                let tally = entry.tallies.of(self.worker);
                tally.dropped(DropReason::SendError, left as u64);
            }
        }
    }

    /// Forwards at most `BUDGET` super-packets of the TUN.
    ///
    /// # Errors
    /// The error of the system call, if the TUN or a socket is unusable.
    pub fn drain(
        &mut self,
        tun: &TunQueue,
        sockets: &HashMap<OuterSocket, Socket>,
    ) -> Result<Drained> {
        // Back-pressure: a batch that a full socket left behind is sent before the TUN is read.
        if !self.flush(sockets)? {
            return Ok(Drained::Blocked);
        }
        let mut drained = Drained::Budget;
        for _ in 0..BUDGET {
            match tun.read(&mut self.input[..MAX_PACKET])? {
                TunRead::Packet(vnet, length) => {
                    let mut packets = 1;
                    let forwarded = self.forward(&vnet, length, &mut packets, sockets);
                    if let Err(reason) = forwarded {
                        let tally = self.shared.outbound.of(self.worker);
                        tally.dropped(reason, packets as u64);
                    }
                    if let Some(error) = self.failed.take() {
                        return Err(error);
                    }
                }
                TunRead::WouldBlock => {
                    drained = Drained::Empty;
                    break;
                }
                TunRead::Gone => return Ok(Drained::Gone),
            }
        }
        Ok(if self.flush(sockets)? {
            drained
        } else {
            Drained::Blocked
        })
    }

    /// Seals the segments of one TUN read, sets `packets` to their number; an error if they have no
    /// SA.
    fn forward(
        &mut self,
        vnet: &VnetHdr,
        length: usize,
        packets: &mut usize,
        sockets: &HashMap<OuterSocket, Socket>,
    ) -> PacketResult<()> {
        let mut segments = Segmenter::new(vnet, &mut self.input, length)?;
        *packets = segments.count();
        let mut length = length;
        let mut key = FlowKey::of(&self.input[..length]);
        let mut whole = false;
        if key.is_none() {
            if let Some(index) = self.targets.transport_candidate(&self.input[..length])? {
                // Before the look-up: a fragment may lack the ports that the whole packet is
                // matched by.
                let Some(joined) = self.reassemble(index, length) else {
                    return Ok(());
                };
                segments = Segmenter::new(&VnetHdr::default(), &mut self.input, joined)?;
                length = joined;
                key = FlowKey::of(&self.input[..length]);
                whole = true;
            }
        }
        let index = self.targets.of(&self.input[..length], key)?;
        let mut left = segments.count();
        if let Err(reason) = self.protect(index, &mut segments, &mut left, whole, sockets) {
            let tally = self.targets[index].entry.tallies.of(self.worker);
            tally.dropped(reason, left as u64);
        }
        Ok(())
    }

    /// Reassembles a fragment; returns the length of the whole packet, which is then in the buffer.
    fn reassemble(&mut self, index: usize, length: usize) -> Option<usize> {
        let before = self.reassembler.dropped();
        let joined = self
            .reassembler
            .add(&self.input[..length], self.began.elapsed());
        let tally = self.targets[index].entry.tallies.of(self.worker);
        let lost = self.reassembler.dropped() - before;
        if lost != 0 {
            tally.dropped(DropReason::Fragment, lost);
        }
        match joined {
            Ok(joined) => joined.map(|datagram| {
                self.input[..datagram.len()].copy_from_slice(&datagram);
                datagram.len()
            }),
            Err(reason) => {
                tally.dropped(reason, 1);
                None
            }
        }
    }

    /// Seals the segments of a packet; `left` counts the unsealed ones, which an error drops.
    fn protect(
        &mut self,
        index: usize,
        segments: &mut Segmenter,
        left: &mut usize,
        whole: bool,
        sockets: &HashMap<OuterSocket, Socket>,
    ) -> PacketResult<()> {
        let (offset, next_header) = if self.targets[index].transport {
            transport_payload(&self.input)?
        } else {
            (0, tunnel_next_header(&self.input))
        };
        let tos = wire::traffic_class(&self.input);
        let ipv6 = wire::version(&self.input) == 6;
        // Empty: refilled before the first segment.
        let mut numbers = RangeInclusive::new(1, 0);
        let mut next = segments.next(&mut self.input);
        while let Some(range) = next {
            if numbers.is_empty() {
                numbers = self.numbers(index, *left)?;
            }
            let suite = self.targets[index].entry.sa.spec.suite;
            let size = suite.esp_len(range.len() - offset);
            if !self.fits(index, size, tos, whole) {
                self.replace_batch(index, size, tos, whole, sockets)?;
            }
            let run = Run {
                batch: self.batch.as_mut().ok_or(DropReason::QueueFull)?,
                packets: &mut self.packets,
                input: &mut self.input,
                output: &mut self.output,
                segments,
                numbers: &mut numbers,
                left,
                suite,
                offset,
                next_header,
                ipv6,
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
        sockets: &HashMap<OuterSocket, Socket>,
    ) -> PacketResult<()> {
        match self.flush(sockets) {
            Ok(true) => {}
            // The socket is full: the sealed packets wait, the rest is lost.
            Ok(false) => return Err(DropReason::QueueFull),
            Err(error) => {
                self.failed = Some(error);
                return Err(DropReason::SendError);
            }
        }
        let slot = &self.targets[index];
        let max_packets = sockets.get(&slot.outer).map_or(1, |socket| {
            max_packets(socket, &slot.entry, size, &self.arena)
        });
        self.begin(index, size, tos, whole, max_packets);
        Ok(())
    }

    /// Reserves consecutive sequence numbers for at most `left` segments.
    fn numbers(&self, index: usize, left: usize) -> PacketResult<RangeInclusive<u64>> {
        let entry = &self.targets[index].entry;
        let seq = &entry.sa.seq;
        let name = || Arc::clone(&entry.sa.spec.name);
        let numbers = seq.reserve(u32::try_from(left).unwrap_or(u32::MAX));
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
            complete: false,
            may_fragment: whole,
        });
    }

    /// Sends a NAT keepalive (RFC 3948 2.3); a failure is ignored.
    pub fn keepalive(&mut self, socket: &Socket, peer: SocketAddr) {
        let message = Transmit {
            dst: peer,
            payload: &[0xFF],
            segment_size: 0,
            tos: 0,
        };
        let sending = socket.send_gso(&mut self.arena, &message);
        if sending.is_ok_and(|sending| matches!(sending.outcome, SendOutcome::Sent(_))) {
            self.shared.outbound.of(self.worker).carried(1, 0);
        }
    }

    /// Completes and sends the batch; false if the socket is full and the batch has to wait.
    ///
    /// # Errors
    /// The error of the system call, if the socket is unusable.
    pub fn flush(&mut self, sockets: &HashMap<OuterSocket, Socket>) -> Result<bool> {
        let Some(mut batch) = self.batch.take() else {
            return Ok(true);
        };
        let Some(slot) = self.targets.get_mut(batch.slot) else {
            return Ok(true);
        };
        let tally = slot.entry.tallies.of(self.worker);
        if let SaSealer::Batched(sealer) = &mut slot.sealer {
            // Once per batch: one that waited for a full socket is complete already.
            if !batch.complete {
                let sealed = self.output[..batch.len].chunks_mut(batch.segment.max(1));
                if let Err(reason) = sealer.complete(sealed) {
                    tally.dropped(reason, self.packets.len() as u64);
                    return Ok(true);
                }
                batch.complete = true;
            }
        }
        let Some(socket) = sockets.get(&slot.outer) else {
            let left = self.packets.len() - batch.packets_done();
            tally.dropped(DropReason::SendError, left as u64);
            return Ok(true);
        };
        let mut sender = BatchSender {
            socket,
            arena: &mut self.arena,
            entry: &slot.entry,
            tally,
            events: &self.shared.events,
        };
        let flushed = sender.flush(&mut batch, &self.packets, &self.output)?;
        if flushed == BatchOutcome::Blocked {
            batch.closed = true;
            self.batch = Some(batch);
            return Ok(false);
        }
        if flushed == BatchOutcome::TooBig {
            self.ask_path_mtu(&batch);
        }
        Ok(true)
    }

    fn ask_path_mtu(&mut self, batch: &Batch) {
        let now = self.began.elapsed();
        let slot = &mut self.targets[batch.slot];
        if now < slot.next_mtu_question {
            return;
        }
        slot.next_mtu_question = now + MTU_QUESTION_INTERVAL;
        let remote = batch.dst.ip();
        if let Ok(mtu) = path_mtu(remote, self.shared.fwmark) {
            self.shared.events.push(Event::PathMtuChanged(remote, mtu));
        }
    }
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
    ipv6: bool,
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
                any_link: self.ipv6 && range.len() <= MIN_IPV6_MTU,
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
