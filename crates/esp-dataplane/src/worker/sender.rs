//! Sends batches by a worker's sockets, and counts the outcome.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use esp_core::DropReason;
use esp_core::esp::sa::Mode;
use esp_core::wire::inner::{transport_header, transport_header_len};
use esp_linux::udp::path_mtu;
use esp_linux::{Result, SendArena, SendOutcome, Transmit};

use super::batch::{Batch, BatchOutcome, BatchSender, Packet};
use super::targets::Slot;
use crate::events::Event;
use crate::samples::Sampler;
use crate::shared::Shared;
use crate::socket::Socket;
use crate::tables::OutboundEntry;

/// Packets of one sendmmsg.
const SEND_BATCH: usize = 64;
/// Least interval between two path MTU queries of an SA, however many packets were too big.
const MTU_QUESTION_INTERVAL: Duration = Duration::from_millis(200);

/// The sending half of a worker.
pub(super) struct Sender {
    worker: usize,
    shared: Arc<Shared>,
    arena: SendArena,
    began: Instant,
    pub(super) sampler: Sampler,
}

impl Sender {
    pub(super) fn new(worker: usize, shared: Arc<Shared>) -> Self {
        Self {
            worker,
            sampler: Sampler::new(shared.drawer(worker)),
            shared,
            arena: SendArena::new(SEND_BATCH),
            began: Instant::now(),
        }
    }

    pub(super) const fn arena(&self) -> &SendArena {
        &self.arena
    }

    /// Sends the rest of an SA's batch, which lies in `sealed`; without a socket it is dropped.
    ///
    /// # Errors
    /// The error of the system call, if the socket is unusable.
    pub(super) fn send(
        &mut self,
        slot: &mut Slot,
        batch: &mut Batch,
        packets: &[Packet],
        sealed: &[u8],
        socket: Option<&Socket>,
    ) -> Result<BatchOutcome> {
        let tally = slot.entry.tallies.of(self.worker);
        let Some(socket) = socket else {
            let left = packets.len() - batch.packets_done();
            tally.dropped(DropReason::SendError, left as u64);
            return Ok(BatchOutcome::All);
        };
        let mut sender = BatchSender {
            socket,
            arena: &mut self.arena,
            entry: &slot.entry,
            tally,
            events: &self.shared.events,
        };
        let outcome = sender.flush(batch, packets, sealed)?;
        if outcome == BatchOutcome::TooBig && self.ask_path_mtu(slot, batch) {
            self.sample_too_big(&slot.entry, batch, packets, sealed);
        }
        Ok(outcome)
    }

    /// Looks up the path MTU and reports it; false if that was done a moment ago.
    fn ask_path_mtu(&self, slot: &mut Slot, batch: &Batch) -> bool {
        let now = self.began.elapsed();
        if now < slot.next_mtu_question {
            return false;
        }
        slot.next_mtu_question = now + MTU_QUESTION_INTERVAL;
        let remote = batch.dst.ip();
        if let Ok(mtu) = path_mtu(remote, self.shared.fwmark) {
            self.shared.events.push(Event::PathMtuChanged(remote, mtu));
        }
        true
    }

    /// Samples a packet that exceeds the path MTU. It is opened again, because the inner packet is
    /// overwritten by now.
    fn sample_too_big(
        &mut self,
        entry: &OutboundEntry,
        batch: &Batch,
        packets: &[Packet],
        sealed: &[u8],
    ) -> Option<()> {
        if !self.sampler.has_room(DropReason::TooBig) {
            return None;
        }
        // The last of the full size: those behind the first refused one are refused, too.
        let mut full_size = sealed.chunks_exact(batch.segment).zip(packets);
        let (esp, _) = full_size.rfind(|(_, packet)| batch.may_fragment || !packet.any_link)?;
        let spec = &entry.sa.spec;
        let header_len = match spec.mode {
            Mode::Tunnel => 0,
            Mode::Transport => transport_header_len(spec.local),
        };
        let mut opener = spec.opener(&self.shared.aeads).ok()?;
        let mut packet = vec![0; header_len + opener.text_len(esp.len()).ok()?];
        let opened = opener.reopen(esp, &mut packet[header_len..]).ok()?;
        let packet = packet.get_mut(..header_len + opened.payload_len)?;
        if spec.mode == Mode::Transport {
            transport_header(packet, spec.local, spec.remote, opened.next_header, 0).ok()?;
        }
        let sampler = &mut self.sampler;
        sampler.packet(DropReason::TooBig, Some(&spec.name), packet);
        Some(())
    }

    /// Sends a keepalive, of one byte or a sealed dummy packet; it is counted if the kernel takes it.
    ///
    /// # Errors
    /// The error of the system call, if the socket is unusable.
    pub(super) fn keepalive(
        &mut self,
        socket: &Socket,
        peer: SocketAddr,
        payload: &[u8],
    ) -> Result<SendOutcome> {
        let message = Transmit {
            dst: peer,
            payload,
            segment_size: 0,
            tos: 0,
        };
        let outcome = socket.send_gso(&mut self.arena, &message)?.outcome;
        if matches!(outcome, SendOutcome::Sent(_)) {
            self.shared.outbound.of(self.worker).carried(1, 0);
        }
        Ok(outcome)
    }
}
