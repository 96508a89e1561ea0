//! The way out, in the order in which it happens: TUN, selectors, numbers, segments, seal, socket.
//!
//!   drain        read super-packets from the TUN, at most BUDGET a call
//!   forward      what happens to one of them
//!     reassemble   transport mode's fragments
//!     target       selectors, once a flow
//!     protect      its segments, each sealed behind the one before it
//!   flush        send the run of equal-sized ESP packets, whatever flows they are of

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use esp_core::DropReason;
use esp_core::encap::Sealer;
use esp_core::flow::{FlowCache, FlowKey};
use esp_core::inner::{transport_payload, tunnel_next_header};
use esp_core::provider::Choice;
use esp_core::reassembly::Reassembler;
use esp_core::sa::Mode;
use esp_core::segment::Segmenter;
use esp_core::seq::SeqRange;
use esp_core::spd::Action;
use esp_core::suite::TRAILER_ROOM;
use esp_core::wire::{self, VnetHdr};

use crate::run::{Run, longest, send};
use crate::shared::{Event, Outbound as Entry, Outer, Shared, Tables};
use crate::socket::Socket;
use crate::sys::mem::Region;
use crate::sys::tun::{MAX_PACKET, TunQueue, TunRead};
use crate::sys::udp::path_mtu;
use crate::sys::{Result, SendArena, SendOutcome, Transmit};

/// Super-packets a call: up to 4 MiB, then the other direction has its turn.
const BUDGET: usize = 64;
/// Flows whose SA is remembered.
const FLOWS: usize = 8192;
/// Bytes of sealed packets that one run may have, and room for one more packet.
const OUT_LEN: usize = 2 * (MAX_PACKET + 512);
/// Packets of one sendmmsg.
const SEND_BATCH: usize = 64;
/// RFC 8200 5: no IPv6 link takes less.
const MIN_IPV6_MTU: usize = 1280;

/// Why the queue is not drained further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// The TUN has no more.
    Empty,
    /// There may be more.
    Budget,
    /// The outer socket takes no more now.
    Blocked,
    /// The device was deleted.
    Gone,
}

/// Of one packet: what came of it, or why it goes no further.
type Verdict<T> = std::result::Result<T, DropReason>;

#[derive(Clone, Copy)]
enum Target {
    Sa(usize),
    Drop(DropReason),
}

/// An SA as this worker uses it.
struct Slot {
    entry: Arc<Entry>,
    sealer: Sealer,
    outer: Outer,
    transport: bool,
}

/// One worker's way out.
pub struct OutboundPath {
    worker: usize,
    provider: Choice,
    shared: Arc<Shared>,
    tables: Arc<Tables>,
    input: Region,
    output: Region,
    arena: SendArena,
    slots: Vec<Slot>,
    by_name: HashMap<Arc<str>, usize>,
    flows: FlowCache<Target>,
    run: Option<Run>,
    reassembler: Reassembler,
    began: Instant,
}

impl OutboundPath {
    /// Make the buffers and the tables of a worker.
    ///
    /// # Errors
    /// The kernel's, for memory.
    pub fn new(worker: usize, provider: Choice, shared: Arc<Shared>) -> Result<Self> {
        Ok(Self {
            worker,
            provider,
            tables: shared.tables.load_full(),
            shared,
            input: Region::new(MAX_PACKET + TRAILER_ROOM)?,
            output: Region::new(OUT_LEN)?,
            arena: SendArena::new(SEND_BATCH),
            slots: Vec::new(),
            by_name: HashMap::new(),
            flows: FlowCache::new(FLOWS),
            run: None,
            reassembler: Reassembler::default(),
            began: Instant::now(),
        })
    }

    /// Use new tables from the next packet on; what is sealed has been flushed.
    pub fn use_tables(&mut self, tables: Arc<Tables>) {
        self.tables = tables;
        // What waits for a full socket is of an SA that may be gone.
        if let Some(run) = self.run.take() {
            if let Some(slot) = self.slots.get(run.slot) {
                let tally = slot.entry.tallies.of(self.worker);
                tally.dropped(DropReason::QueueFull, run.packets);
            }
        }
        self.slots.clear();
        self.by_name.clear();
        self.flows.clear();
    }

    /// Forward what the TUN has, at most `BUDGET` super-packets.
    ///
    /// # Errors
    /// The kernel's, where the TUN or a socket is unusable.
    pub fn drain(&mut self, tun: &TunQueue, sockets: &HashMap<Outer, Socket>) -> Result<Drained> {
        // What a full socket left behind goes first; until it is gone, nothing is read.
        if !self.flush(sockets)? {
            return Ok(Drained::Blocked);
        }
        let mut drained = Drained::Budget;
        for _ in 0..BUDGET {
            match tun.read(&mut self.input[..MAX_PACKET])? {
                TunRead::Packet(header, length) => {
                    let vnet = VnetHdr {
                        flags: header.flags.bits(),
                        gso_type: header.gso_type,
                        hdr_len: header.hdr_len,
                        gso_size: header.gso_size,
                        csum_start: header.csum_start,
                        csum_offset: header.csum_offset,
                    };
                    if let Err(reason) = self.forward(&vnet, length, sockets) {
                        self.shared.outbound.of(self.worker).dropped(reason, 1);
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

    /// Seal the segments of a packet that was read; an error where it has no SA.
    fn forward(
        &mut self,
        vnet: &VnetHdr,
        length: usize,
        sockets: &HashMap<Outer, Socket>,
    ) -> Verdict<()> {
        if wire::packet_length(&self.input[..length])? != length {
            return Err(DropReason::MalformedInner);
        }
        let (mut vnet, mut length) = (*vnet, length);
        let mut key = FlowKey::of(&self.input[..length]);
        let mut whole = false;
        if key.is_none() {
            if let Some(index) = self.transport_candidate(length)? {
                // Before the look-up: a fragment may have no ports to match, while the whole has.
                let Some(joined) = self.reassemble(index, length) else {
                    return Ok(());
                };
                length = joined;
                vnet = VnetHdr::default();
                key = FlowKey::of(&self.input[..length]);
                whole = true;
            }
        }
        let index = self.target(length, key)?;
        if let Err(reason) = self.protect(index, &vnet, length, whole, sockets) {
            self.slots[index]
                .entry
                .tallies
                .of(self.worker)
                .dropped(reason, 1);
        }
        Ok(())
    }

    /// The SA of a packet, as an index of `slots`.
    fn target(&mut self, length: usize, key: Option<FlowKey>) -> Verdict<usize> {
        let known = key.as_ref().and_then(|key| self.flows.get(key)).copied();
        let target = if let Some(target) = known {
            target
        } else {
            let packet = &self.input[..length];
            let inner = wire::parse(packet)?;
            // Without ports at a fixed place, as in all but the first fragment, the addresses alone.
            let flow = key.or_else(|| FlowKey::of_addresses(packet));
            let target = self.look_up(&inner, flow.as_ref().map_or(0, FlowKey::spread));
            if let Some(key) = key {
                self.flows.insert(key, target);
            }
            target
        };
        match target {
            Target::Sa(index) => Ok(index),
            Target::Drop(reason) => Err(reason),
        }
    }

    fn look_up(&mut self, inner: &wire::Inner, spread: u64) -> Target {
        let tables = Arc::clone(&self.tables);
        let Some(policy) = tables.spd.lookup(inner) else {
            return Target::Drop(DropReason::NoPolicy);
        };
        match policy.action {
            Action::Discard => return Target::Drop(DropReason::PolicyDiscard),
            Action::Bypass => return Target::Drop(DropReason::PolicyBypass),
            Action::Protect => {}
        }
        let entry = policy
            .sa_of(spread)
            .and_then(|name| tables.outbound.get(name));
        let Some(entry) = entry else {
            return Target::Drop(DropReason::NoSa);
        };
        // While a reload replaces SAs, a policy of before may name an SA of after, which leads to
        // another peer.
        if !entry.sa.carries(inner) {
            return Target::Drop(DropReason::SelectorMismatch);
        }
        match self.slot(entry) {
            Some(index) => Target::Sa(index),
            None => Target::Drop(DropReason::NoSa),
        }
    }

    fn slot(&mut self, entry: &Arc<Entry>) -> Option<usize> {
        let name = &entry.sa.spec.name;
        if let Some(&index) = self.by_name.get(name) {
            return Some(index);
        }
        let spec = &entry.sa.spec;
        self.slots.push(Slot {
            sealer: entry.sa.sealer(self.provider).ok()?,
            outer: Outer {
                address: spec.local,
                encapsulation: spec.encapsulation,
            },
            transport: spec.mode == Mode::Transport,
            entry: Arc::clone(entry),
        });
        let index = self.slots.len() - 1;
        self.by_name.insert(Arc::clone(name), index);
        Some(index)
    }

    /// The transport-mode SA that may carry what a packet is a fragment of, if any.
    fn transport_candidate(&mut self, length: usize) -> Verdict<Option<usize>> {
        let packet = &self.input[..length];
        let inner = wire::parse(packet)?;
        if !inner.fragment {
            return Ok(None);
        }
        let spread = FlowKey::of_addresses(packet).map_or(0, |flow| flow.spread());
        let tables = Arc::clone(&self.tables);
        Ok(tables.spd.candidates(&inner).find_map(|policy| {
            let entry = tables.outbound.get(policy.sa_of(spread)?)?;
            let index = self.slot(entry)?;
            self.slots[index].transport.then_some(index)
        }))
    }

    /// Join a fragment with those before it; the length of the whole, now in the buffer.
    fn reassemble(&mut self, index: usize, length: usize) -> Option<usize> {
        let before = self.reassembler.dropped();
        let joined = self
            .reassembler
            .add(&self.input[..length], self.began.elapsed());
        let tally = self.slots[index].entry.tallies.of(self.worker);
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

    fn protect(
        &mut self,
        index: usize,
        vnet: &VnetHdr,
        length: usize,
        whole: bool,
        sockets: &HashMap<Outer, Socket>,
    ) -> Verdict<()> {
        let packet = &self.input[..length];
        let (offset, next_header) = if self.slots[index].transport {
            transport_payload(packet)?
        } else {
            (0, tunnel_next_header(packet))
        };
        let tos = wire::traffic_class(packet);
        let ipv6 = wire::version(packet) == 6;
        let mut segments = Segmenter::new(vnet, &mut self.input, length)?;
        let mut left = segments.count();
        let mut numbers = SeqRange { first: 0, count: 0 };
        loop {
            let Some(range) = segments.next(&mut self.input) else {
                return Ok(());
            };
            if numbers.count == 0 {
                numbers = self.numbers(index, left)?;
            }
            let size = self.slots[index].sealer.esp_len(range.len() - offset);
            if !self.fits(index, size, tos, whole) {
                if self.flush(sockets).unwrap_or(false) {
                    self.begin(index, size, tos, whole, sockets);
                } else {
                    // The socket is full: what is sealed waits, the rest is lost.
                    let tally = self.slots[index].entry.tallies.of(self.worker);
                    tally.dropped(DropReason::QueueFull, left as u64);
                    return Ok(());
                }
            }
            self.seal(index, numbers.first, range, (offset, next_header, ipv6))?;
            numbers = SeqRange {
                first: numbers.first + 1,
                count: numbers.count - 1,
            };
            left -= 1;
        }
    }

    /// Sequence numbers for as many of `left` segments as there are in one piece.
    fn numbers(&self, index: usize, left: usize) -> Verdict<SeqRange> {
        let entry = &self.slots[index].entry;
        let seq = &entry.sa.seq;
        let name = || Arc::clone(&entry.sa.spec.name);
        let numbers = seq.reserve(u32::try_from(left).unwrap_or(u32::MAX));
        if seq.passed_low() {
            self.shared.events.push(Event::LeaseLow(name()));
        }
        if seq.passed_soft() {
            self.shared.events.push(Event::SoftExpired(name()));
        }
        numbers.inspect_err(|&reason| {
            if reason == DropReason::SeqExhausted && seq.expire() {
                self.shared.events.push(Event::HardExpired(name()));
            }
            // All that is left of the packet but the one that the caller counts.
            let rest = (left as u64).saturating_sub(1);
            entry.tallies.of(self.worker).dropped(reason, rest);
        })
    }

    /// Whether a packet of `size` bytes may follow those of the run.
    fn fits(&self, index: usize, size: usize, tos: u8, whole: bool) -> bool {
        self.run.as_ref().is_some_and(|run| {
            run.slot == index
                && run.tos == tos
                && run.may_fragment == whole
                && !run.closed
                && size <= run.segment
                && run.packets < run.most
        })
    }

    fn begin(
        &mut self,
        index: usize,
        size: usize,
        tos: u8,
        whole: bool,
        sockets: &HashMap<Outer, Socket>,
    ) {
        let slot = &self.slots[index];
        let most = sockets
            .get(&slot.outer)
            .map_or(1, |socket| longest(socket, &slot.entry, size, &self.arena))
            .min(OUT_LEN / size.max(1))
            .max(1);
        self.run = Some(Run {
            slot: index,
            dst: **slot.entry.peer.load(),
            tos,
            segment: size,
            len: 0,
            packets: 0,
            bytes: 0,
            most: most as u64,
            sent: 0,
            closed: false,
            may_fragment: whole,
            any_link: true,
        });
    }

    fn seal(
        &mut self,
        index: usize,
        seq: u64,
        range: Range<usize>,
        (offset, next_header, ipv6): (usize, u8, bool),
    ) -> Verdict<()> {
        let Some(run) = self.run.as_mut() else {
            return Err(DropReason::QueueFull);
        };
        let payload_len = range.len() - offset;
        let size = self.slots[index].sealer.seal(
            seq,
            &mut self.input[range.start + offset..],
            payload_len,
            next_header,
            &mut self.output[run.len..],
        )?;
        run.len += size;
        run.packets += 1;
        run.bytes += range.len() as u64;
        run.closed = size < run.segment;
        run.any_link &= ipv6 && range.len() <= MIN_IPV6_MTU;
        Ok(())
    }

    /// Send a NAT keepalive (RFC 3948 2.3), whatever becomes of it.
    pub fn keepalive(&mut self, socket: &Socket, peer: SocketAddr) {
        let message = Transmit {
            dst: peer,
            payload: &[0xFF],
            segment_size: 0,
            tos: 0,
        };
        let _ = socket.send_run(&mut self.arena, &message);
        self.shared.outbound.of(self.worker).carried(1, 0);
    }

    /// Send the run; false where the socket is full and it has to wait.
    ///
    /// # Errors
    /// The kernel's, where the socket is unusable.
    pub fn flush(&mut self, sockets: &HashMap<Outer, Socket>) -> Result<bool> {
        let Some(mut run) = self.run.take() else {
            return Ok(true);
        };
        let Some(slot) = self.slots.get(run.slot) else {
            return Ok(true);
        };
        let tally = slot.entry.tallies.of(self.worker);
        let Some(socket) = sockets.get(&slot.outer) else {
            tally.dropped(DropReason::SendError, run.packets);
            return Ok(true);
        };
        let (entry, events) = (&slot.entry, &self.shared.events);
        let mut attempt =
            |run: &mut Run| send(socket, &mut self.arena, run, &self.output, entry, events);
        let mut outcome = attempt(&mut run)?;
        if outcome == SendOutcome::TooBig && run.any_link && !run.may_fragment {
            // No IPv6 link is smaller than this (RFC 8200 5): the outer packet is fragmented.
            run.may_fragment = true;
            outcome = attempt(&mut run)?;
        }
        match outcome {
            SendOutcome::Sent(_) => tally.carried(run.packets, run.bytes),
            SendOutcome::WouldBlock => {
                run.closed = true;
                self.run = Some(run);
                return Ok(false);
            }
            SendOutcome::TooBig => {
                tally.dropped(DropReason::TooBig, run.packets);
                let remote = run.dst.ip();
                if let Ok(mtu) = path_mtu(remote, self.shared.fwmark) {
                    self.shared.events.push(Event::PathMtuChanged(remote, mtu));
                }
            }
            SendOutcome::NoOffload | SendOutcome::Invalid | SendOutcome::Lost(_) => {
                tally.dropped(DropReason::SendError, run.packets);
            }
        }
        Ok(true)
    }
}
