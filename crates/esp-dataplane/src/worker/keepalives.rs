//! Outbound, beside the path: keepalives and IKE datagrams, which are never queued.

use std::iter::once;
use std::net::SocketAddr;
use std::sync::Arc;

use esp_core::DropReason;
use esp_core::esp::encap::SaSealer;
use esp_core::offload::segment::Segmenter;
use esp_core::wire::protocol::NO_NEXT_HEADER;
use esp_linux::{Result, SendOutcome};

use super::outbound::OutboundPath;
use super::sealing::Shape;
use super::targets::PacketResult;
use crate::socket::Sockets;
use crate::tables::OuterSocket;

const NAT_KEEPALIVE: [u8; 1] = [0xFF];
/// Bytes of a dummy packet's payload, all zero.
const DUMMY_LEN: usize = 4;
const DUMMY: Shape = Shape {
    offset: 0,
    next_header: NO_NEXT_HEADER,
    tos: 0,
    fragmented_len: 0,
    whole: false,
};

impl OutboundPath {
    /// Sends a NAT keepalive (RFC 3948 2.3); a failure is ignored.
    pub fn keepalive(&mut self, outer: OuterSocket, peer: SocketAddr, sockets: &Sockets) {
        if peer.ip().is_unspecified() {
            return;
        }
        let own = self.own.of(outer, peer.ip());
        if let Some(socket) = own.or_else(|| sockets.get(&outer).map(Arc::as_ref)) {
            let _ = self.sender.keepalive(socket, peer, &NAT_KEEPALIVE);
        }
    }

    /// Sends an IKE datagram, marker included; a failure is ignored: IKE sends it again.
    pub fn ike(
        &mut self,
        outer: OuterSocket,
        peer: SocketAddr,
        datagram: &[u8],
        sockets: &Sockets,
    ) {
        if let Some(socket) = sockets.get(&outer) {
            let _ = self.sender.send_now(socket, peer, datagram);
        }
    }

    /// Sends a dummy packet (RFC 4303 2.6) by an SA, between two turns. A refusal by the socket is
    /// counted as a drop of the SA.
    ///
    /// # Errors
    /// The error of the system call, if the socket is unusable.
    pub fn dummy(&mut self, sa: &str, sockets: &Sockets) -> Result<()> {
        let Some(index) = self.targets.named(sa) else {
            return Ok(());
        };
        if self.targets[index].entry.peer.is_nowhere() {
            return Ok(());
        }
        if let Err(reason) = self.send_dummy(index, sockets)? {
            let tally = self.targets[index].entry.tallies.of(self.worker);
            tally.dropped(reason, 1);
        }
        Ok(())
    }

    fn send_dummy(&mut self, index: usize, sockets: &Sockets) -> Result<PacketResult<()>> {
        // Waiting packets come first: the sealed ones have earlier numbers.
        if self.full_socket_of(index, sockets).is_some() {
            return Ok(Err(DropReason::QueueFull));
        }
        self.input[..DUMMY_LEN].fill(0);
        let mut segments = Segmenter::whole(DUMMY_LEN);
        let mut left = segments.count();
        if let Err(reason) = self.seal(index, &mut segments, &mut left, DUMMY, sockets) {
            return Ok(Err(reason));
        }
        let Some(batch) = self.batch.take() else {
            return Ok(Err(DropReason::SendError));
        };
        let slot = &mut self.targets[index];
        let sealed = &mut self.output[..batch.len];
        if let SaSealer::Batched(sealer) = &mut slot.sealer {
            if let Err(reason) = sealer.complete(once(&mut *sealed)) {
                return Ok(Err(reason));
            }
        }
        let own = self.own.of(slot.outer, batch.dst.ip());
        let Some(socket) = own.or_else(|| sockets.get(&slot.outer).map(Arc::as_ref)) else {
            return Ok(Err(DropReason::SendError));
        };
        Ok(match self.sender.keepalive(socket, batch.dst, sealed)? {
            SendOutcome::Sent(_) => Ok(()),
            SendOutcome::WouldBlock => Err(DropReason::QueueFull),
            SendOutcome::TooBig => Err(DropReason::TooBig),
            SendOutcome::NoOffload | SendOutcome::Invalid | SendOutcome::Lost(_) => {
                Err(DropReason::SendError)
            }
        })
    }
}
