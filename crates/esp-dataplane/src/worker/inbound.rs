//! The way in, in the order in which it happens: socket, SPI, window, open, selectors, merge, TUN.
//!
//!   drain       receive merged datagrams, at most BUDGET buffers a call
//!   submit      several at once, where the kernel opens them
//!   receive     one ESP packet: its SA
//!     accept      window, opened into place, who sent it
//!     inner       the inner packet of tunnel mode; the header that transport mode's payload had
//!     deliver     the SA's selectors (RFC 4301 5.2); merged with its neighbours
//!   write       TUN

use std::collections::HashMap;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use esp_core::DropReason;
use esp_core::esp::decap::{Datagram, Opener, classify, read_trailer};
use esp_core::esp::sa::{Encapsulation, Mode};
use esp_core::offload::coalesce::{Coalescer, Merging, Ready};
use esp_core::wire;
use esp_core::wire::flow::{FlowCache, FlowKey};
use esp_core::wire::inner::{transport_header, transport_header_len, tunnel_packet};
use esp_linux::alg::MAX_IN_FLIGHT;
use esp_linux::mem::Slots;
use esp_linux::tun::{TunFeatures, TunQueue, TunWrite};
use esp_linux::{RecvArena, RecvMeta, Result};

use crate::events::Event;
use crate::shared::Shared;
use crate::socket::Socket;
use crate::tables::{InboundEntry, Tables};

/// Buffers of one recvmmsg; with UDP GRO each holds up to 64 KiB of datagrams.
const BUFFERS: usize = 16;
/// Calls of recvmmsg a turn, then the other direction has its own.
const BUDGET: usize = 4;
const BUFFER_LEN: usize = 65535;
/// Flows whose SA is remembered.
const FLOWS: usize = 8192;
/// Packets in one super-packet at most.
const MAX_SEGMENTS: u16 = 64;
const VNET_LEN: usize = 10;

/// An SA as this worker uses it.
struct Slot {
    entry: Arc<InboundEntry>,
    opener: Opener,
    /// Bytes in front of the text for the header that transport mode's payload had.
    header_len: usize,
}

/// One worker's way in.
pub struct InboundPath {
    worker: usize,
    shared: Arc<Shared>,
    tables: Arc<Tables>,
    buffers: Slots,
    slots: Vec<Slot>,
    by_spi: HashMap<u32, usize>,
    /// The slot of the packet before; packets come in trains.
    recent: usize,
    /// The SA, as an index of `slots`, that was last found to be allowed to carry a flow.
    flows: FlowCache<usize>,
    /// True if packets are announced to the AEADs before they are opened.
    submits: bool,
    coalescer: Coalescer,
}

impl InboundPath {
    /// Makes the buffers and the tables of a worker.
    ///
    /// # Errors
    /// The kernel's, for memory.
    pub fn new(worker: usize, shared: Arc<Shared>, offloads: TunFeatures) -> Result<Self> {
        let submits = shared.aeads.works_in_batches();
        Ok(Self {
            worker,
            tables: shared.tables.load_full(),
            shared,
            buffers: Slots::new(BUFFERS, BUFFER_LEN)?,
            slots: Vec::new(),
            by_spi: HashMap::new(),
            recent: 0,
            flows: FlowCache::new(FLOWS),
            submits,
            coalescer: Coalescer::new(Merging {
                vnet_len: VNET_LEN,
                tcp: offloads.contains(TunFeatures::CSUM),
                udp: offloads.contains(TunFeatures::USO4),
                max_segments: MAX_SEGMENTS,
            }),
        })
    }

    /// Uses new tables from the next packet on; what was merged has been written.
    pub fn use_tables(&mut self, tables: Arc<Tables>) {
        self.tables = tables;
        self.slots.clear();
        self.by_spi.clear();
        self.flows.clear();
    }

    /// Takes what the socket has, at most `BUDGET` calls' worth; the poller tells of the rest.
    ///
    /// # Errors
    /// The kernel's, where the socket or the TUN is unusable.
    pub fn drain(&mut self, socket: &Socket, arena: &mut RecvArena, tun: &TunQueue) -> Result<()> {
        for _ in 0..BUDGET {
            let received = socket.receive(arena, self.buffers.iter_mut())?.len();
            // The buffers lie in one region, so that each is looked at by its index.
            for index in 0..received {
                let Some(meta) = arena.meta(index) else { break };
                self.split(index, &meta, socket, tun)?;
            }
            if received < BUFFERS {
                break;
            }
        }
        self.flush(tun)
    }

    /// Takes a received buffer apart into its datagrams.
    fn split(
        &mut self,
        index: usize,
        meta: &RecvMeta,
        socket: &Socket,
        tun: &TunQueue,
    ) -> Result<()> {
        let size = meta.segment_size.max(1);
        let mut at = 0;
        if meta.len == 0 {
            self.shared
                .inbound
                .of(self.worker)
                .dropped(DropReason::TooShort, 1);
        }
        while at < meta.len {
            if self.submits && at % (MAX_IN_FLIGHT * size) == 0 {
                self.submit(index, at, size, meta, socket);
            }
            let end = (at + size).min(meta.len);
            let verdict = if meta.truncated {
                Err(DropReason::Truncated)
            } else {
                self.receive(index, at..end, meta, socket, tun)?
            };
            if let Err(reason) = verdict {
                self.shared.inbound.of(self.worker).dropped(reason, 1);
            }
            at = end;
        }
        Ok(())
    }

    /// Announces the datagrams that are next in a buffer to their AEADs: as many as a kernel is given
    /// at once. They may be anything.
    fn submit(&mut self, index: usize, at: usize, size: usize, meta: &RecvMeta, socket: &Socket) {
        if meta.truncated || !socket.is_udp() {
            return;
        }
        let end = meta.len.min(at + MAX_IN_FLIGHT * size);
        for start in (at..end).step_by(size) {
            let range = start..end.min(start + size);
            let Ok(Datagram::Esp(spi)) = classify(part(&self.buffers, index, &range), true) else {
                continue;
            };
            if let Some(slot) = self.slot(spi) {
                let Slot { entry, opener, .. } = &mut self.slots[slot];
                let esp = part(&self.buffers, index, &range);
                opener.submit(&entry.sa.window, esp);
            }
        }
    }

    /// Finds the SA of a datagram; an error where it has none.
    fn receive(
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
                self.shared.inbound.of(self.worker).carried(1, 0);
                return Ok(Ok(()));
            }
            Err(reason) => return Ok(Err(reason)),
        };
        let Some(slot) = self.slot(spi) else {
            return Ok(Err(DropReason::UnknownSpi));
        };
        let verdict = self.accept(slot, index, start..range.end, tos, meta.src, socket);
        match verdict {
            Ok(length) => self.deliver(slot, length, tun)?,
            Err(reason) => {
                self.coalescer.cancel();
                self.slots[slot]
                    .entry
                    .tallies
                    .of(self.worker)
                    .dropped(reason, 1);
            }
        }
        Ok(Ok(()))
    }

    fn slot(&mut self, spi: u32) -> Option<usize> {
        let recent = self.slots.get(self.recent);
        if recent.is_none_or(|slot| slot.entry.sa.spec.spi != spi) {
            self.recent = self.look_up(spi)?;
        }
        Some(self.recent)
    }

    fn look_up(&mut self, spi: u32) -> Option<usize> {
        if let Some(&index) = self.by_spi.get(&spi) {
            return Some(index);
        }
        let entry = Arc::clone(self.tables.inbound.get(&spi)?);
        let spec = &entry.sa.spec;
        self.slots.push(Slot {
            opener: entry.sa.opener(&self.shared.aeads).ok()?,
            header_len: match spec.mode {
                Mode::Tunnel => 0,
                Mode::Transport => transport_header_len(spec.local),
            },
            entry,
        });
        let index = self.slots.len() - 1;
        self.by_spi.insert(spi, index);
        Some(index)
    }

    /// Opens a packet into place; the inner packet's length, when it may be delivered.
    fn accept(
        &mut self,
        index: usize,
        buffer: usize,
        range: Range<usize>,
        tos: u8,
        src: SocketAddr,
        socket: &Socket,
    ) -> std::result::Result<usize, DropReason> {
        let esp = part(&self.buffers, buffer, &range);
        let slot = &mut self.slots[index];
        let encapsulation = if socket.is_udp() {
            Encapsulation::Udp
        } else {
            Encapsulation::None
        };
        if !slot.entry.sa.comes_by(encapsulation, src.is_ipv4()) {
            return Err(DropReason::WrongEncapsulation);
        }
        let window = &slot.entry.sa.window;
        let seq = slot.opener.check(window, esp)?;
        let text_len = slot.opener.text_len(esp.len())?;
        let place = self.coalescer.place(slot.header_len + text_len)?;
        let text = &mut place[slot.header_len..];
        slot.opener.open(seq, esp, text)?;
        let newest = window.commit(seq)?;
        let opened = read_trailer(text)?;
        // Only the newest packet counts: an old one, delayed or resent, must not turn replies away.
        let entry = &slot.entry;
        if newest && socket.is_udp() && !entry.peer.is_at(src, &entry.heard) {
            follow(entry, src, &self.shared);
        }
        let spec = &slot.entry.sa.spec;
        let length = if slot.header_len == 0 {
            tunnel_packet(&mut text[..opened.payload_len], opened.next_header, tos)?
        } else {
            let length = slot.header_len + opened.payload_len;
            let packet = &mut place[..length];
            transport_header(packet, spec.remote, spec.local, opened.next_header, tos)?;
            length
        };
        let packet = &place[..length];
        let key = FlowKey::of(packet);
        let known = key.as_ref().and_then(|key| self.flows.get(key));
        if known != Some(&index) {
            if !slot.entry.sa.carries(&wire::parse(packet)?) {
                return Err(DropReason::SelectorMismatch);
            }
            if let Some(key) = key {
                self.flows.insert(key, index);
            }
        }
        Ok(length)
    }

    /// Merges the packet in place with those before it, or writes those.
    fn deliver(&mut self, slot: usize, length: usize, tun: &TunQueue) -> Result<()> {
        match self.coalescer.accept(length, slot as u64) {
            Some(ready) => write(&ready, &self.slots, self.worker, tun),
            None => Ok(()),
        }
    }

    /// Writes what was merged.
    ///
    /// # Errors
    /// The kernel's, where the TUN is unusable.
    pub fn flush(&mut self, tun: &TunQueue) -> Result<()> {
        match self.coalescer.flush() {
            Some(ready) => write(&ready, &self.slots, self.worker, tun),
            None => Ok(()),
        }
    }
}

/// A part of a received buffer; empty where there is no such part.
fn part<'a>(buffers: &'a Slots, index: usize, range: &Range<usize>) -> &'a [u8] {
    let buffer = buffers.get(index).unwrap_or_default();
    buffer.get(range.clone()).unwrap_or_default()
}

fn follow(entry: &InboundEntry, src: SocketAddr, shared: &Shared) {
    if entry.peer.follow(src, &entry.heard, Instant::now()) {
        let name = Arc::clone(&entry.sa.spec.name);
        shared.events.push(Event::PeerAddressChanged(name, src));
    }
}

fn write(ready: &Ready<'_>, slots: &[Slot], worker: usize, tun: &TunQueue) -> Result<()> {
    let written = tun.write_parts(&[IoSlice::new(ready.frame)])?;
    let slot = usize::try_from(ready.owner)
        .ok()
        .and_then(|index| slots.get(index));
    if let Some(slot) = slot {
        let tally = slot.entry.tallies.of(worker);
        match written {
            TunWrite::Written => tally.carried(ready.packets.into(), ready.bytes),
            TunWrite::WouldBlock => tally.dropped(DropReason::TunQueueFull, ready.packets.into()),
            TunWrite::Down | TunWrite::Gone | TunWrite::Rejected => {
                tally.dropped(DropReason::TunError, ready.packets.into());
            }
        }
    }
    Ok(())
}
