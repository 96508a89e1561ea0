//! Outbound, last stage: the batch is completed and sent, or waits for a full socket.

use std::sync::Arc;
use std::time::Instant;

use esp_core::esp::encap::SaSealer;
use esp_linux::Result;

use super::batch::BatchOutcome;
use super::outbound::OutboundPath;
use super::own_sockets::SendingSocket;
use super::waiting::{Sealed, Waiting};
use crate::socket::Sockets;
use crate::stages::Stage;

impl OutboundPath {
    /// Completes and sends the batch. What the outer socket doesn't take goes by the peer's own
    /// socket, which is opened if possible; the rest is queued.
    ///
    /// # Errors
    /// The error of the system call, if the socket is unusable.
    pub(super) fn flush(&mut self, sockets: &Sockets) -> Result<()> {
        self.complete_and_send(sockets)?;
        self.clock.lap(Stage::Send);
        Ok(())
    }

    fn complete_and_send(&mut self, sockets: &Sockets) -> Result<()> {
        let Some(mut batch) = self.batch.take() else {
            return Ok(());
        };
        let Some(slot) = self.targets.get_mut(batch.slot) else {
            return Ok(());
        };
        let sealed = &mut self.output[..batch.len];
        if let SaSealer::Batched(sealer) = &mut slot.sealer {
            let packets = sealed.chunks_mut(batch.segment.max(1));
            if let Err(reason) = sealer.complete(packets) {
                let tally = slot.entry.tallies.of(self.worker);
                tally.dropped(reason, self.packets.len() as u64);
                return Ok(());
            }
        }
        // The packets of an accelerator are complete here.
        self.clock.lap(Stage::Seal);
        let (outer, dst) = (slot.outer, batch.dst.ip());
        let (packets, sender) = (&self.packets, &mut self.sender);
        let (shared, own) = (
            sockets.get(&outer).map(Arc::as_ref),
            self.own.of(outer, dst),
        );
        let peer = own.map(|_| dst);
        let mut to = SendingSocket { outer, peer };
        // Behind what waits already.
        let full = !self.waiting.is_empty() && self.waiting.contains_key(&to);
        if !full {
            let socket = own.or(shared);
            let outcome = sender.send(slot, &mut batch, packets, sealed, socket)?;
            if outcome != BatchOutcome::Blocked {
                return Ok(());
            }
        }
        let now = Instant::now();
        if let (None, Some(shared)) = (peer, shared) {
            let waits = |socket: &SendingSocket| self.waiting.contains_key(socket);
            let opened = self.own.open(dst, (outer, shared), now, waits);
            if opened.is_some() {
                let outcome = sender.send(slot, &mut batch, packets, sealed, opened)?;
                if outcome != BatchOutcome::Blocked {
                    return Ok(());
                }
                to.peer = Some(dst);
            }
        }
        self.own.found_full(&to, now);
        let waiting = self.waiting.entry(to);
        let waiting = waiting.or_insert_with(|| Waiting::new(now));
        waiting.sealed.push_back(Sealed {
            entry: Arc::clone(&slot.entry),
            batch,
            packets: self.packets.clone(),
            octets: Box::from(&*sealed),
            since: now,
        });
        Ok(())
    }
}
