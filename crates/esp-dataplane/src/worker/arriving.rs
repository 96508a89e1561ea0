//! Outbound, first stage: packets and super-packets of the TUN, and the SA of each.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use esp_core::DropReason;
use esp_core::offload::segment::Segmenter;
use esp_core::wire::flow::FlowKey;
use esp_core::wire::{GSO_NONE, VnetHdr};
use esp_linux::tun::{MAX_PACKET, TunQueue, TunRead};
use esp_linux::{Error, Result};

use super::outbound::{Arrival, OutboundPath};
use super::own_sockets::SendingSocket;
use super::targets::PacketResult;
use super::turn::Turn;
use super::waiting::Unsealed;
use crate::socket::Sockets;
use crate::stages::Stage;

impl OutboundPath {
    /// Forwards one turn's packets of the TUN; the poller reports what is left.
    ///
    /// # Errors
    /// The error of the system call, if the TUN or a socket is unusable, or the TUN is gone.
    pub fn drain(&mut self, tun: &TunQueue, sockets: &Sockets) -> Result<()> {
        self.clock.begin();
        self.advance_lanes();
        let mut turn = Turn::default();
        while !turn.is_over() {
            let read = tun.read(&mut self.input[..MAX_PACKET])?;
            self.clock.lap(Stage::TunRead);
            let (vnet, length) = match read {
                TunRead::Packet(vnet, length) => (vnet, length),
                TunRead::WouldBlock => break,
                TunRead::Gone => return Err(Error::Argument("the TUN device is gone")),
            };
            let mut packets = 1;
            if let Err(reason) = self.forward(vnet, length, &mut packets, sockets) {
                let tally = self.shared.outbound.of(self.worker);
                tally.dropped(reason, packets as u64);
                let sampler = &mut self.sender.sampler;
                sampler.packet(reason, None, &self.input[..length]);
                self.clock.lap(Stage::LookUp);
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            turn.spend(length, packets);
        }
        self.load += turn.load();
        self.flush(sockets)?;
        self.clock.end(turn.packets(), 0);
        Ok(())
    }

    /// Carries one TUN read, sets `packets` to the number of its segments; an error if they have no
    /// SA.
    fn forward(
        &mut self,
        vnet: VnetHdr,
        length: usize,
        packets: &mut usize,
        sockets: &Sockets,
    ) -> PacketResult<()> {
        let mut segments = Segmenter::new(&vnet, &mut self.input, length)?;
        *packets = segments.count();
        let mut arrival = Arrival {
            vnet,
            length,
            whole: false,
        };
        let mut key = FlowKey::of(&self.input[..length]);
        if key.is_none() {
            if let Some(index) = self.targets.transport_candidate(&self.input[..length])? {
                // Before the look-up: a fragment may lack the ports that the whole packet is
                // matched by.
                let Some(joined) = self.reassemble(index, length) else {
                    return Ok(());
                };
                arrival = Arrival {
                    vnet: VnetHdr::default(),
                    length: joined,
                    whole: true,
                };
                segments = Segmenter::new(&arrival.vnet, &mut self.input, joined)?;
                key = FlowKey::of(&self.input[..joined]);
            }
        }
        self.carry(arrival, &mut segments, key, sockets)
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

    /// Seals the segments of a whole packet, or has it wait for its socket; an error if it has no SA.
    pub(super) fn carry(
        &mut self,
        arrival: Arrival,
        segments: &mut Segmenter,
        key: Option<FlowKey>,
        sockets: &Sockets,
    ) -> PacketResult<()> {
        let index = self.targets.of(&self.input[..arrival.length], key)?;
        self.clock.lap(Stage::LookUp);
        let mut left = segments.count();
        if self.targets[index].is_strange {
            let bulk = &self.shared.bulk_on_lane0;
            bulk.fetch_add(left as u64, Ordering::Relaxed);
        }
        if let Some(full) = self.full_socket_of(index, sockets) {
            self.wait(index, &full, arrival, left);
            return Ok(());
        }
        if let Err(reason) = self.protect(index, segments, &mut left, arrival.whole, sockets) {
            let tally = self.targets[index].entry.tallies.of(self.worker);
            tally.dropped(reason, left as u64);
        }
        self.clock.lap(Stage::Seal);
        Ok(())
    }

    /// Queues the packet in the input buffer for its socket, which is full.
    fn wait(&mut self, index: usize, full: &SendingSocket, arrival: Arrival, packets: usize) {
        let slot = &self.targets[index];
        let Some(waiting) = self.waiting.get_mut(full) else {
            return;
        };
        let packet = Unsealed {
            // The checksum of a packet that is no super-packet was completed.
            vnet: if arrival.vnet.gso_type == GSO_NONE {
                VnetHdr::default()
            } else {
                arrival.vnet
            },
            octets: Box::from(&self.input[..arrival.length]),
            whole: arrival.whole,
            packets,
            sa: Arc::clone(&slot.entry.sa.spec.name),
            since: Instant::now(),
        };
        waiting.push(packet, |oldest| {
            self.targets.dropped(
                &oldest.sa,
                self.worker,
                DropReason::QueueFull,
                oldest.packets,
            );
        });
    }
}
