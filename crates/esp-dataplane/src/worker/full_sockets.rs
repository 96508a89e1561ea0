//! Outbound, beside the path: full sockets are tried again, and what waits too long is dropped.

use std::sync::Arc;
use std::time::Instant;

use esp_core::DropReason;
use esp_core::offload::segment::Segmenter;
use esp_core::wire::flow::FlowKey;
use esp_linux::Result;
use esp_linux::poll::Poller;

use super::batch::BatchOutcome;
use super::outbound::{Arrival, OutboundPath};
use super::own_sockets::SendingSocket;
use super::waiting::{Sealed, Unsealed, Waiting};
use crate::socket::Sockets;
use crate::stages::Stage;
use crate::tables::{OuterSocket, Tables};

impl OutboundPath {
    /// True if any socket is full.
    pub fn has_full_sockets(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The outer sockets that are full.
    pub fn full_outer_sockets(&self) -> impl Iterator<Item = OuterSocket> {
        let shared = self.waiting.keys().filter(|full| full.peer.is_none());
        shared.map(|full| full.outer)
    }

    /// Polls the sockets of peers for writing while they are full, and only then.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn poll_own_sockets(&mut self, poller: &Poller) -> Result<()> {
        let waits = |socket: &SendingSocket| self.waiting.contains_key(socket);
        self.own.poll(poller, waits)
    }

    /// The socket of a peer that has this poll token.
    pub fn own_socket(&self, token: u64) -> Option<SendingSocket> {
        self.own.by_token(token)
    }

    /// The full socket that packets of an SA have to wait for; None if there is one that has room.
    #[inline]
    pub(super) fn full_socket_of(
        &mut self,
        index: usize,
        sockets: &Sockets,
    ) -> Option<SendingSocket> {
        if self.waiting.is_empty() {
            return None;
        }
        let slot = &self.targets[index];
        let (outer, address) = (slot.outer, slot.entry.peer.address().ip());
        let peer = self.own.of(outer, address).map(|_| address);
        let to = SendingSocket { outer, peer };
        if !self.waiting.contains_key(&to) {
            return None;
        }
        if let (None, Some(shared)) = (peer, sockets.get(&outer)) {
            let waits = |socket: &SendingSocket| self.waiting.contains_key(socket);
            let opened = self
                .own
                .open(address, (outer, shared), Instant::now(), waits);
            if opened.is_some() {
                return None;
            }
        }
        Some(to)
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
        self.clock.begin();
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
        let due: Vec<SendingSocket> = due.map(|(socket, _)| *socket).collect();
        for socket in due {
            self.retry(&socket, now, sockets)?;
        }
        self.clock.end(0, 0);
        Ok(())
    }

    /// Sends what waits for a socket that was reported writable.
    ///
    /// # Errors
    /// The error of the system call, if a socket is unusable.
    pub fn writable(
        &mut self,
        socket: &SendingSocket,
        now: Instant,
        sockets: &Sockets,
    ) -> Result<()> {
        self.clock.begin();
        if self.is_full(socket) && !self.retry(socket, now, sockets)? {
            // It has room and refuses: waiting for more room would spin.
            let waiting = self.waiting.get_mut(socket);
            if let Some(sealed) = waiting.and_then(Waiting::pop_refused) {
                sealed.dropped(self.worker, DropReason::SendError);
            }
        }
        self.clock.end(0, 0);
        Ok(())
    }

    /// Drops what waits for an outer socket that is to be closed, and closes the sockets of its
    /// peers.
    pub fn close(&mut self, outer: &OuterSocket) {
        self.own.close(*outer);
        let reason = DropReason::SendError;
        self.waiting.retain(|full, waiting| {
            if full.outer != *outer {
                return true;
            }
            for sealed in &waiting.sealed {
                sealed.dropped(self.worker, reason);
            }
            while let Some(packet) = waiting.pop() {
                let Unsealed { sa, packets, .. } = &packet;
                self.targets.dropped(sa, self.worker, reason, *packets);
            }
            false
        });
    }

    /// Closes the sockets of peers that no SA has any more. What waits for them goes by the outer
    /// socket.
    pub(super) fn close_unused_sockets(&mut self, tables: &Tables) {
        let is_used = |own: &SendingSocket| {
            tables.outbound.values().any(|entry| {
                OuterSocket::of(&entry.sa.spec) == own.outer
                    && own.peer == Some(entry.peer.address().ip())
            })
        };
        for own in self.own.close_unused(is_used) {
            if let Some(waiting) = self.waiting.remove(&own) {
                let shared = self.waiting.entry(SendingSocket::shared(own.outer));
                let shared = shared.or_insert_with(|| Waiting::new(Instant::now()));
                shared.join(waiting);
            }
        }
    }

    /// Sends what waits for a socket until that is full again; true if it took anything.
    fn retry(&mut self, socket: &SendingSocket, now: Instant, sockets: &Sockets) -> Result<bool> {
        let Some(mut waiting) = self.waiting.remove(socket) else {
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
            let outcome = self.send_sealed(&mut sealed, socket, sockets)?;
            self.clock.lap(Stage::Send);
            progress |= sealed.batch.done != before;
            if outcome == BatchOutcome::Blocked {
                waiting.sealed.push_front(sealed);
                waiting.refused(now, progress);
                self.own.found_full(socket, now);
                self.waiting.insert(*socket, waiting);
                return Ok(progress);
            }
        }
        while let Some(packet) = waiting.pop() {
            self.resume(&packet, sockets);
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            if let Some(again) = self.waiting.get_mut(socket) {
                again.follow(waiting);
                again.refused(now, true);
                return Ok(true);
            }
        }
        self.flush(sockets)?;
        Ok(true)
    }

    fn send_sealed(
        &mut self,
        sealed: &mut Sealed,
        socket: &SendingSocket,
        sockets: &Sockets,
    ) -> Result<BatchOutcome> {
        let Some(slot) = self.targets.get_mut(sealed.batch.slot) else {
            return Ok(BatchOutcome::All);
        };
        let Sealed {
            batch,
            packets,
            octets,
            ..
        } = sealed;
        let own = self.own.get(socket);
        let socket = own.or_else(|| sockets.get(&socket.outer).map(Arc::as_ref));
        self.sender.send(slot, batch, packets, octets, socket)
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
