//! The inbound path, in its order: socket, SPI, window, open, selectors, merge, TUN.
//!
//!   drain       one turn: receive merged datagrams
//!   split       one buffer into its datagrams
//!     submit      accelerators only: announce several datagrams
//!     receive     one ESP packet: SPI and SA
//!       accept      window, open into place, commit, peer, inner packet, selectors (RFC 4301 5.2)
//!       deliver     merge with its neighbours
//!   write       TUN

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use esp_core::DropReason;
use esp_core::esp::aead::{Aead, BatchAead, MAX_ANNOUNCED};
use esp_core::esp::decap::{BatchOpener, Datagram, Opener, SaOpener, classify, read_trailer};
use esp_core::esp::sa::Encapsulation;
use esp_core::offload::coalesce::{Coalescer, MergeKind, Merging};
use esp_core::wire;
use esp_core::wire::flow::{FlowCache, FlowKey, WORKER_FLOWS};
use esp_core::wire::inner::tunnel_packet;
use esp_linux::mem::Slots;
use esp_linux::tun::{TunFeatures, TunQueue};
use esp_linux::{RecvArena, RecvMeta, Result};

use super::carried::CarriedFragments;
use super::newest::take_newest;
use super::sa_group::{SaGroup, Slot};
use super::turn::Turn;
use super::writing::write;
use crate::events::Event;
use crate::merge_refusal::name_of;
use crate::samples::Sampler;
use crate::shared::Shared;
use crate::socket::Socket;
use crate::stages::{Stage, StageClock};
use crate::tables::{InboundEntry, Tables};

/// Buffers of one recvmmsg; with UDP GRO each holds up to 64 KiB of datagrams.
const BUFFERS: usize = 16;
const BUFFER_LEN: usize = 65535;
/// Most packets of a super-packet.
const MAX_SEGMENTS: u16 = 64;

/// The kind and the slot of an SA.
#[derive(Clone, Copy)]
enum Place {
    Plain(usize),
    Batched(usize),
}

/// One worker's inbound path.
pub struct InboundPath {
    worker: usize,
    tables: Arc<Tables>,
    arena: RecvArena,
    buffers: Slots,
    /// Bytes of the longest buffer of the call before: as many buffers are given as a turn has left.
    longest: usize,
    /// SAs opened by a library.
    plain: SaGroup<dyn Aead>,
    /// SAs opened by an accelerator.
    batched: SaGroup<dyn BatchAead>,
    by_spi: HashMap<u32, Place>,
    /// The SAs of both groups, in the order of their first packets.
    entries: Vec<Arc<InboundEntry>>,
    /// The flows of this turn that came by a bulk lane, with their bytes; neighbours once.
    bulk_flows: Vec<(FlowKey, usize)>,
    /// The load of the turns since it was last asked for.
    load: usize,
    clock: StageClock,
    delivery: Delivery,
}

/// The part of the path that both kinds of AEAD share.
struct Delivery {
    shared: Arc<Shared>,
    /// The SA, as an index of `InboundPath::entries`, that was last allowed to carry a flow.
    flows: FlowCache<usize>,
    fragments: CarriedFragments,
    coalescer: Coalescer,
    sampler: Sampler,
}

/// The outer facts of an ESP packet.
struct Outer {
    src: SocketAddr,
    tos: u8,
    in_udp: bool,
    encapsulation: Encapsulation,
}

impl InboundPath {
    /// Makes the buffers and the tables of a worker.
    ///
    /// # Errors
    /// The error of the system call, for memory.
    pub fn new(worker: usize, shared: Arc<Shared>, offloads: TunFeatures) -> Result<Self> {
        Ok(Self {
            worker,
            tables: shared.tables.load_full(),
            arena: RecvArena::new(BUFFERS),
            buffers: Slots::new(BUFFERS, BUFFER_LEN)?,
            longest: BUFFER_LEN,
            plain: SaGroup::new(),
            batched: SaGroup::new(),
            by_spi: HashMap::new(),
            entries: Vec::new(),
            bulk_flows: Vec::new(),
            load: 0,
            clock: StageClock::new(worker, Arc::clone(&shared.stages)),
            delivery: Delivery {
                sampler: Sampler::new(shared.drawer(worker)),
                shared,
                flows: FlowCache::new(WORKER_FLOWS),
                fragments: CarriedFragments::default(),
                coalescer: Coalescer::new(Merging {
                    vnet_len: wire::VnetHdr::LEN,
                    tcp: offloads.contains(TunFeatures::CSUM),
                    udp: offloads.contains(TunFeatures::USO4),
                    max_segments: MAX_SEGMENTS,
                }),
            },
        })
    }

    /// Uses new tables from the next packet on; merged packets have been written.
    pub fn use_tables(&mut self, tables: Arc<Tables>) {
        self.tables = tables;
        self.plain.slots.clear();
        self.batched.slots.clear();
        self.by_spi.clear();
        self.entries.clear();
        self.forget_flows();
    }

    pub(super) fn forget_flows(&mut self) {
        self.delivery.flows.clear();
        self.delivery.fragments.clear();
    }

    /// Receives one turn's datagrams; the poller reports what is left.
    ///
    /// # Errors
    /// The error of the system call, if the socket or the TUN is unusable.
    pub fn drain(&mut self, socket: &Socket, tun: &TunQueue) -> Result<()> {
        self.clock.begin();
        self.bulk_flows.clear();
        let mut turn = Turn::default();
        while !turn.is_over() {
            let wanted = turn.reads_left(self.longest).min(BUFFERS);
            let buffers = self.buffers.iter_mut().take(wanted);
            let metas = socket.receive(&mut self.arena, buffers)?;
            self.clock.lap(Stage::Receive);
            let received = metas.len();
            if let Some(longest) = metas.iter().map(|meta| meta.len).max() {
                self.longest = longest;
            }
            // By index: the buffers lie in one region, which `split` borrows.
            for index in 0..received {
                let Some(meta) = self.arena.meta(index) else {
                    break;
                };
                let packets = meta.len.div_ceil(meta.segment_size.max(1));
                turn.spend(meta.len, packets.max(1));
                // Two copies of the loop: where no profile runs, none of it is a packet's cost.
                if self.clock.is_on() {
                    self.split::<true>(index, &meta, socket, tun)?;
                } else {
                    self.split::<false>(index, &meta, socket, tun)?;
                }
            }
            if received < wanted {
                break;
            }
        }
        self.load += turn.load();
        self.flush(tun)?;
        self.clock.end(0, turn.packets());
        Ok(())
    }

    /// Splits a received buffer into its datagrams; measured by stage with `TIMED`.
    fn split<const TIMED: bool>(
        &mut self,
        index: usize,
        meta: &RecvMeta,
        socket: &Socket,
        tun: &TunQueue,
    ) -> Result<()> {
        let size = meta.segment_size.max(1);
        // Datagrams that are announced together before the first of them is opened.
        let submits = !self.batched.slots.is_empty();
        let announced = if submits {
            MAX_ANNOUNCED * size
        } else {
            meta.len
        };
        let mut at = 0;
        if meta.len == 0 {
            self.dropped(DropReason::TooShort);
        }
        while at < meta.len {
            let end = meta.len.min(at + announced);
            if submits {
                self.submit(index, at..end, size, meta, socket);
            }
            while at < end {
                let datagram = at..(at + size).min(end);
                at = datagram.end;
                let verdict = if meta.truncated {
                    Err(DropReason::Truncated)
                } else {
                    self.receive::<TIMED>(index, datagram, meta, socket, tun)?
                };
                if let Err(reason) = verdict {
                    self.dropped(reason);
                    self.clock.lap(Stage::Open);
                }
            }
        }
        Ok(())
    }

    /// Counts a datagram that belongs to no SA.
    fn dropped(&self, reason: DropReason) {
        let tally = self.delivery.shared.inbound.of(self.worker);
        tally.dropped(reason, 1);
    }

    /// Announces the next datagrams of a buffer to their AEADs. They are not checked yet.
    fn submit(
        &mut self,
        index: usize,
        datagrams: Range<usize>,
        size: usize,
        meta: &RecvMeta,
        socket: &Socket,
    ) {
        if meta.truncated || !socket.is_udp() {
            return;
        }
        let end = datagrams.end;
        for start in datagrams.step_by(size) {
            let range = start..end.min(start + size);
            let Ok(Datagram::Esp(spi)) = classify(part(&self.buffers, index, &range), true) else {
                continue;
            };
            if self.plain.of_train(spi).is_some() {
                continue;
            }
            if let Some(Place::Batched(slot)) = self.look_up(spi) {
                let Slot { entry, opener, .. } = &mut self.batched.slots[slot];
                let esp = part(&self.buffers, index, &range);
                opener.submit(&entry.sa.window, esp);
            }
        }
    }

    /// Finds the SA of a datagram, opens and delivers it; an error if it has none.
    fn receive<const TIMED: bool>(
        &mut self,
        index: usize,
        range: Range<usize>,
        meta: &RecvMeta,
        socket: &Socket,
        tun: &TunQueue,
    ) -> Result<std::result::Result<(), DropReason>> {
        let datagram = part(&self.buffers, index, &range);
        let (mut start, mut tos) = (range.start, meta.tos);
        if socket.has_ip_header() {
            let Some([first, outer_tos, ..]) = datagram.first_chunk::<20>() else {
                return Ok(Err(DropReason::TooShort));
            };
            start += usize::from(first & 15) * 4;
            tos = *outer_tos;
        }
        let esp = datagram.get(start - range.start..).unwrap_or_default();
        let spi = match classify(esp, socket.is_udp()) {
            Ok(Datagram::Esp(spi)) => spi,
            Ok(Datagram::Keepalive) => {
                let tally = self.delivery.shared.inbound.of(self.worker);
                tally.carried(1, 0);
                return Ok(Ok(()));
            }
            Err(DropReason::IkeDatagram) => {
                let relay = &self.delivery.shared.ike;
                return Ok(relay.pass(esp, meta.src, || socket.local()));
            }
            Err(reason) => return Ok(Err(reason)),
        };
        let outer = Outer {
            src: meta.src,
            tos,
            in_udp: socket.is_udp(),
            encapsulation: socket.encapsulation(),
        };
        let esp = start..range.end;
        // A train of a library's SA takes the first way, which has nothing of a batch in it.
        let train = self.plain.of_train(spi).map(Place::Plain);
        let Some(place) = train.or_else(|| self.look_up(spi)) else {
            let (reason, sampler) = (DropReason::UnknownSpi, &mut self.delivery.sampler);
            sampler.outer(reason, None, spi, outer.src, outer.in_udp);
            return Ok(Err(reason));
        };
        let (owner, verdict) = match place {
            Place::Plain(slot) => {
                let slot = &mut self.plain.slots[slot];
                let esp = part(&self.buffers, index, &esp);
                let verdict = self.delivery.accept(slot, Opener::open, esp, &outer);
                (slot.owner, verdict)
            }
            Place::Batched(slot) => {
                let slot = &mut self.batched.slots[slot];
                let esp = part(&self.buffers, index, &esp);
                let verdict = self
                    .delivery
                    .accept(slot, BatchOpener::complete, esp, &outer);
                (slot.owner, verdict)
            }
        };
        if TIMED {
            self.clock.lap(Stage::Open);
        }
        match verdict {
            Ok(length) => self.deliver::<TIMED>(owner, length, tun)?,
            Err(reason) => {
                self.delivery.coalescer.cancel();
                let InboundEntry { sa, tallies, .. } = &*self.entries[owner];
                tallies.of(self.worker).dropped(reason, 1);
                let (sampler, name) = (&mut self.delivery.sampler, Some(&sa.spec.name));
                sampler.outer(reason, name, spi, outer.src, outer.in_udp);
            }
        }
        Ok(Ok(()))
    }

    /// Finds an SA that is not the plain one of the packet before.
    fn look_up(&mut self, spi: u32) -> Option<Place> {
        if let Some(slot) = self.batched.of_train(spi) {
            return Some(Place::Batched(slot));
        }
        let place = match self.by_spi.get(&spi) {
            Some(&place) => place,
            None => self.add(spi)?,
        };
        match place {
            Place::Plain(slot) => self.plain.recent = slot,
            Place::Batched(slot) => self.batched.recent = slot,
        }
        Some(place)
    }

    fn add(&mut self, spi: u32) -> Option<Place> {
        let entry = self.tables.inbound.get(&spi)?;
        let owner = self.entries.len();
        let place = match entry.sa.opener(&self.delivery.shared.aeads).ok()? {
            SaOpener::Plain(opener) => Place::Plain(self.plain.add(entry, opener, owner)),
            SaOpener::Batched(opener) => Place::Batched(self.batched.add(entry, opener, owner)),
        };
        self.entries.push(Arc::clone(entry));
        self.by_spi.insert(spi, place);
        Some(place)
    }

    /// Merges the packet in place with others of its flow, and writes what can't grow.
    fn deliver<const TIMED: bool>(
        &mut self,
        owner: usize,
        length: usize,
        tun: &TunQueue,
    ) -> Result<()> {
        self.delivery.coalescer.accept(length, owner as u64);
        if TIMED {
            self.clock.lap(Stage::Merge);
        }
        self.write_due(tun)
    }

    /// Writes the merged packets.
    ///
    /// # Errors
    /// The error of the system call, if the TUN is unusable.
    pub fn flush(&mut self, tun: &TunQueue) -> Result<()> {
        self.delivery.coalescer.flush();
        self.clock.lap(Stage::Merge);
        self.write_due(tun)
    }

    /// The load of the turns since the last call.
    pub const fn take_load(&mut self) -> usize {
        std::mem::replace(&mut self.load, 0)
    }

    /// The flows of the last turn that came by a bulk lane, with their bytes.
    pub fn bulk_flows(&self) -> &[(FlowKey, usize)] {
        &self.bulk_flows
    }

    fn write_due(&mut self, tun: &TunQueue) -> Result<()> {
        while let Some(mut ready) = self.delivery.coalescer.due() {
            let entry = usize::try_from(ready.owner).ok();
            let entry = entry.and_then(|owner| self.entries.get(owner));
            if entry.is_some_and(|entry| entry.sa.spec.lane > Some(0)) {
                let bytes = ready.packet().len();
                match (FlowKey::of_any(ready.packet()), self.bulk_flows.last_mut()) {
                    (Some(flow), Some((last, sum))) if flow == *last => *sum += bytes,
                    (flow, _) => self.bulk_flows.extend(flow.map(|flow| (flow, bytes))),
                }
            }
            let refused = write(&mut ready, &self.entries, self.worker, tun)?;
            self.delivery.stop_merging(refused);
            self.clock.lap(Stage::TunWrite);
        }
        Ok(())
    }
}

impl Delivery {
    /// Merges no more packets of a kind that the TUN has refused.
    fn stop_merging(&mut self, refused: Option<MergeKind>) {
        if let Some(kind) = refused {
            self.coalescer.stop(kind);
            if self.shared.merge_refusal.record(kind) {
                self.shared.events.push(Event::MergeRefused(name_of(kind)));
            }
        }
    }

    /// Opens a packet into place by `open`; the inner packet's length, if it may be delivered.
    #[allow(clippy::inline_always)] // Two copies of `receive` would make it a call for each packet.
    #[inline(always)]
    fn accept<A: ?Sized>(
        &mut self,
        slot: &mut Slot<A>,
        open: impl Fn(&mut Opener<A>, u64, &[u8], &mut [u8]) -> std::result::Result<(), DropReason>,
        esp: &[u8],
        outer: &Outer,
    ) -> std::result::Result<usize, DropReason> {
        let (entry, opener) = (&slot.entry, &mut slot.opener);
        if !entry.sa.comes_by(outer.encapsulation, outer.src.is_ipv4()) {
            return Err(DropReason::WrongEncapsulation);
        }
        let window = &entry.sa.window;
        let seq = opener.check(window, esp)?;
        let text_len = opener.text_len(esp.len())?;
        let place = self.coalescer.place(slot.header_len + text_len)?;
        let text = &mut place[slot.header_len..];
        if open(opener, seq, esp, text).is_err() {
            return Err(opener.refusal(window, seq, esp, text, open));
        }
        let newest = window.commit(seq)?;
        // Only the newest packet counts: an old one, delayed or resent, must not turn replies away.
        // The content of an authentic packet decides nothing about where it came from.
        if newest {
            take_newest(entry, seq, outer.src, &self.shared);
        }
        let opened = read_trailer(text)?;
        let spec = &entry.sa.spec;
        let length = if slot.header_len == 0 {
            let payload = &mut text[..opened.payload_len];
            tunnel_packet(payload, opened.next_header, outer.tos)?
        } else {
            let length = slot.header_len + opened.payload_len;
            let (packet, sa) = (&mut place[..length], &entry.sa);
            sa.transport_packet(packet, opened.next_header, outer.tos)?;
            length
        };
        let packet = &place[..length];
        let key = FlowKey::of(packet);
        let known = key.as_ref().and_then(|key| self.flows.get(key));
        if known != Some(&slot.owner) {
            let inner = wire::parse(packet)?;
            let fragments = &mut self.fragments;
            if !fragments.carry(&entry.sa, slot.owner, packet, &inner) {
                if !entry.sa.carries_error(packet, &inner) {
                    let reason = DropReason::SelectorMismatch;
                    self.sampler.inner(reason, Some(&spec.name), &inner);
                    return Err(reason);
                }
            } else if let Some(key) = key {
                self.sampler.opening(&spec.name, packet, &inner);
                self.flows.insert(key, slot.owner);
            }
        }
        Ok(length)
    }
}

/// A part of a received buffer; empty if it is out of bounds.
fn part<'a>(buffers: &'a Slots, index: usize, range: &Range<usize>) -> &'a [u8] {
    let buffer = buffers.get(index).unwrap_or_default();
    buffer.get(range.clone()).unwrap_or_default()
}
