//! Outbound, last stage: the batch is completed and sent, or waits for a full socket.

use std::sync::Arc;
use std::time::Instant;

use esp_core::esp::encap::SaSealer;
use esp_linux::Result;

use super::batch::BatchOutcome;
use super::outbound::OutboundPath;
use super::waiting::{Sealed, Waiting};
use crate::socket::Sockets;

impl OutboundPath {
    /// Completes and sends the batch; what a full socket doesn't take waits for it.
    ///
    /// # Errors
    /// The error of the system call, if the socket is unusable.
    pub(super) fn flush(&mut self, sockets: &Sockets) -> Result<()> {
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
        // Behind what waits already.
        let full = !self.waiting.is_empty() && self.waiting.contains_key(&slot.outer);
        if !full {
            let sender = &mut self.sender;
            let outcome = sender.send(slot, &mut batch, &self.packets, sealed, sockets)?;
            if outcome != BatchOutcome::Blocked {
                return Ok(());
            }
        }
        let now = Instant::now();
        let waiting = self.waiting.entry(slot.outer);
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
