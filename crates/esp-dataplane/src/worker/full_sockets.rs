//! Outbound, beside the path: full sockets are tried again, and what waits too long is dropped.

use std::time::Instant;

use esp_core::DropReason;
use esp_core::offload::segment::Segmenter;
use esp_core::wire::flow::FlowKey;
use esp_linux::Result;

use super::batch::BatchOutcome;
use super::outbound::{Arrival, OutboundPath};
use super::waiting::{Sealed, Unsealed, Waiting};
use crate::socket::Sockets;
use crate::tables::OuterSocket;

impl OutboundPath {
    /// The full sockets.
    pub fn full_sockets(&self) -> impl Iterator<Item = &OuterSocket> {
        self.waiting.keys()
    }

    /// The moment at which `tend` has a packet to drop.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.values().filter_map(Waiting::deadline).min()
    }

    /// Drops what has waited too long, and tries the sockets whose time has come.
    ///
    /// # Errors
    /// The error of the system call, if a socket is unusable.
    pub fn tend(&mut self, now: Instant, sockets: &Sockets) -> Result<()> {
        for waiting in self.waiting.values_mut() {
            while let Some(sealed) = waiting.pop_late_batch(now) {
                sealed.dropped(self.worker, DropReason::QueueTimeout);
            }
            while let Some(packet) = waiting.pop_late(now) {
                let Unsealed { sa, packets, .. } = &packet;
                let reason = DropReason::QueueTimeout;
                self.targets.dropped(sa, self.worker, reason, *packets);
            }
        }
        let due = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.is_due(now));
        let due: Vec<OuterSocket> = due.map(|(outer, _)| *outer).collect();
        for outer in due {
            self.retry(&outer, now, sockets)?;
        }
        Ok(())
    }

    /// Sends what waits for a socket that was reported writable.
    ///
    /// # Errors
    /// The error of the system call, if a socket is unusable.
    pub fn writable(&mut self, outer: &OuterSocket, now: Instant, sockets: &Sockets) -> Result<()> {
        if self.is_full(outer) && !self.retry(outer, now, sockets)? {
            // It has room and refuses: waiting for more room would spin.
            let waiting = self.waiting.get_mut(outer);
            if let Some(sealed) = waiting.and_then(Waiting::pop_refused) {
                sealed.dropped(self.worker, DropReason::SendError);
            }
        }
        Ok(())
    }

    /// Drops what waits for a socket that is closed.
    pub fn close(&mut self, outer: &OuterSocket) {
        let Some(mut waiting) = self.waiting.remove(outer) else {
            return;
        };
        let reason = DropReason::SendError;
        for sealed in &waiting.sealed {
            sealed.dropped(self.worker, reason);
        }
        while let Some(packet) = waiting.pop() {
            let Unsealed { sa, packets, .. } = &packet;
            self.targets.dropped(sa, self.worker, reason, *packets);
        }
    }

    /// Sends what waits for a socket until that is full again; true if it took anything.
    fn retry(&mut self, outer: &OuterSocket, now: Instant, sockets: &Sockets) -> Result<bool> {
        let Some(mut waiting) = self.waiting.remove(outer) else {
            return Ok(false);
        };
        let mut progress = false;
        while let Some(mut sealed) = waiting.sealed.pop_front() {
            let ahead = waiting.sealed.iter().map(Sealed::left).sum();
            if sealed.is_passed(ahead) {
                sealed.dropped(self.worker, DropReason::QueueTimeout);
                continue;
            }
            let before = sealed.batch.done;
            let outcome = self.send_sealed(&mut sealed, sockets)?;
            progress |= sealed.batch.done != before;
            if outcome == BatchOutcome::Blocked {
                waiting.sealed.push_front(sealed);
                waiting.refused(now, progress);
                self.waiting.insert(*outer, waiting);
                return Ok(progress);
            }
        }
        while let Some(packet) = waiting.pop() {
            self.resume(&packet, sockets);
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            if let Some(again) = self.waiting.get_mut(outer) {
                again.follow(waiting);
                again.refused(now, true);
                return Ok(true);
            }
        }
        self.flush(sockets)?;
        Ok(true)
    }

    fn send_sealed(&mut self, sealed: &mut Sealed, sockets: &Sockets) -> Result<BatchOutcome> {
        let Some(slot) = self.targets.get_mut(sealed.batch.slot) else {
            return Ok(BatchOutcome::All);
        };
        let Sealed {
            batch,
            packets,
            octets,
            ..
        } = sealed;
        self.sender.send(slot, batch, packets, octets, sockets)
    }

    /// Carries a packet that has waited, from its look-up on.
    fn resume(&mut self, packet: &Unsealed, sockets: &Sockets) {
        let arrival = Arrival {
            vnet: packet.vnet,
            length: packet.octets.len(),
            whole: packet.whole,
        };
        let input = &mut self.input[..arrival.length];
        input.copy_from_slice(&packet.octets);
        let key = FlowKey::of(input);
        let segments = Segmenter::new(&arrival.vnet, &mut self.input, arrival.length);
        let carried =
            segments.and_then(|mut segments| self.carry(arrival, &mut segments, key, sockets));
        if let Err(reason) = carried {
            let tally = self.shared.outbound.of(self.worker);
            tally.dropped(reason, packet.packets as u64);
        }
    }
}
