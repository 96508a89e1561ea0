//! Sends batches by a worker's sockets, and counts the outcome.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use esp_core::DropReason;
use esp_linux::{Result, SendArena, SendOutcome, Transmit};

use super::batch::{Batch, BatchOutcome, BatchSender, Packet};
use super::targets::Slot;
use crate::samples::Sampler;
use crate::shared::Shared;
use crate::socket::Socket;

/// Packets of one sendmmsg.
const SEND_BATCH: usize = 64;

/// The sending half of a worker.
pub(super) struct Sender {
    worker: usize,
    pub(super) shared: Arc<Shared>,
    arena: SendArena,
    pub(super) began: Instant,
    pub(super) sampler: Sampler,
    /// ICMP errors for the TUN.
    pub(super) answers: Vec<Vec<u8>>,
}

impl Sender {
    pub(super) fn new(worker: usize, shared: Arc<Shared>) -> Self {
        Self {
            worker,
            sampler: Sampler::new(shared.drawer(worker)),
            shared,
            arena: SendArena::new(SEND_BATCH),
            began: Instant::now(),
            answers: Vec::new(),
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
        if outcome == BatchOutcome::TooBig {
            self.too_big(slot, batch, packets, sealed);
        }
        Ok(outcome)
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
        let outcome = self.send_now(socket, peer, payload)?;
        if matches!(outcome, SendOutcome::Sent(_)) {
            self.shared.outbound.of(self.worker).carried(1, 0);
        }
        Ok(outcome)
    }

    /// Sends a datagram that is never queued nor counted.
    ///
    /// # Errors
    /// The error of the system call, if the socket is unusable.
    pub(super) fn send_now(
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
        Ok(socket.send_gso(&mut self.arena, &message)?.outcome)
    }
}
