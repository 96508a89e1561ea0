//! A batch: ESP packets of one size to one peer, sealed one behind the other and sent in one call.

use std::net::SocketAddr;
use std::ops::Range;

use esp_core::DropReason;
use esp_core::counters::Tally;
use esp_linux::tun::MAX_PACKET;
use esp_linux::{Result, SendArena, SendOutcome, Transmit};

use crate::events::{Event, Events};
use crate::socket::Socket;
use crate::tables::OutboundEntry;

/// Bytes of a batch's sealed packets, with room for one more packet.
pub(crate) const OUT_LEN: usize = 2 * (MAX_PACKET + 512);
/// Most packets of a batch; at least the capacity of one send.
pub(crate) const MAX_BATCH: usize = 128;

/// ESP packets of one SA and one size, sealed one behind the other, not yet sent.
pub(crate) struct Batch {
    pub(crate) slot: usize,
    pub(crate) dst: SocketAddr,
    pub(crate) tos: u8,
    pub(crate) segment: usize,
    pub(crate) len: usize,
    /// Most packets of the batch.
    pub(crate) max_packets: usize,
    /// Bytes that were sent or dropped already.
    pub(crate) done: usize,
    /// True if the last packet was shorter, so that none may follow.
    pub(crate) closed: bool,
    pub(crate) may_fragment: bool,
}

impl Batch {
    /// True if a packet of `size` bytes may follow the `packets` that it has.
    #[inline]
    pub(crate) const fn has_room(&self, size: usize, packets: usize) -> bool {
        !self.closed && size <= self.segment && packets < self.max_packets
    }

    /// Number of its packets that were sent or dropped already.
    pub(crate) const fn packets_done(&self) -> usize {
        self.done.div_ceil(self.segment)
    }

    /// Place of the next unsent packet.
    fn next_packet(&self) -> Range<usize> {
        self.done..self.len.min(self.done + self.segment)
    }
}

/// Bookkeeping of one packet of a batch: the inner packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) bytes: u64,
    /// True if every path has to take it: an IPv6 packet that any link takes, an IPv4 packet that may
    /// be fragmented, or a small outer packet.
    pub(crate) any_link: bool,
}

/// The fate of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BatchOutcome {
    /// Every packet was sent or dropped.
    All,
    /// Every packet was sent or dropped, some because they exceed the path MTU.
    TooBig,
    /// The socket is full: the rest has to wait.
    Blocked,
}

/// Packets of `size` bytes that a batch to the SA's peer may have.
pub(crate) fn max_packets(
    socket: &Socket,
    entry: &OutboundEntry,
    size: usize,
    arena: &SendArena,
) -> usize {
    let gso = entry.gso_refused.at(entry.peer.address().ip()).is_none();
    gso.then(|| socket.gso_capacity(size))
        .flatten()
        .unwrap_or(arena.capacity())
}

/// Sends one SA's batches, and records the outcome in tally and events.
pub(crate) struct BatchSender<'a> {
    pub(crate) socket: &'a Socket,
    pub(crate) arena: &'a mut SendArena,
    pub(crate) entry: &'a OutboundEntry,
    pub(crate) tally: &'a Tally,
    pub(crate) events: &'a Events,
}

impl BatchSender<'_> {
    /// Sends the rest of a batch, which lies in `sealed`; each packet is counted as carried or
    /// dropped.
    ///
    /// # Errors
    /// The error of the system call, if the socket is unusable.
    pub(crate) fn flush(
        &mut self,
        batch: &mut Batch,
        packets: &[Packet],
        sealed: &[u8],
    ) -> Result<BatchOutcome> {
        // Packets of this size or larger exceed the path MTU.
        let mut too_big = usize::MAX;
        while batch.done < batch.len {
            let (first, next) = (batch.packets_done(), batch.next_packet());
            let alone = next.len() >= too_big;
            // An IPv6 packet that any link takes (RFC 8200 5) is never refused, nor an IPv4 packet
            // without DF, nor an outer packet of `min_mtu`: it is fragmented.
            if alone && (batch.may_fragment || !packets[first].any_link) {
                self.tally.dropped(DropReason::TooBig, 1);
                batch.done = next.end;
                continue;
            }
            let part = &sealed[..if alone { next.end } else { batch.len }];
            let outcome = self.send(batch, part, batch.may_fragment || alone)?;
            let carried = &packets[first..batch.packets_done()];
            let bytes = carried.iter().map(|packet| packet.bytes).sum();
            self.tally.carried(carried.len() as u64, bytes);
            match outcome {
                SendOutcome::Sent(_) => {}
                SendOutcome::WouldBlock => return Ok(BatchOutcome::Blocked),
                SendOutcome::TooBig if !alone => too_big = batch.next_packet().len(),
                SendOutcome::TooBig
                | SendOutcome::NoOffload
                | SendOutcome::Invalid
                | SendOutcome::Lost(_) => {
                    let left = packets.len() - batch.packets_done();
                    self.tally.dropped(DropReason::SendError, left as u64);
                    break;
                }
            }
        }
        Ok(if too_big == usize::MAX {
            BatchOutcome::All
        } else {
            BatchOutcome::TooBig
        })
    }

    /// Sends the rest of `sealed`, which is the batch or its beginning, until the kernel refuses.
    fn send(
        &mut self,
        batch: &mut Batch,
        sealed: &[u8],
        may_fragment: bool,
    ) -> Result<SendOutcome> {
        if may_fragment {
            self.socket.set_may_fragment(true)?;
        }
        let mut outcome = SendOutcome::Sent(0);
        while batch.done < sealed.len() {
            let message = Transmit {
                dst: batch.dst,
                payload: &sealed[batch.done..],
                segment_size: u16::try_from(batch.segment).unwrap_or(0),
                tos: batch.tos,
            };
            // The kernel fragments single datagrams only.
            let remote = batch.dst.ip();
            let sending = if may_fragment || self.entry.gso_refused.at(remote).is_some() {
                self.socket.send_each(self.arena, &message)?
            } else {
                self.socket.send_gso(self.arena, &message)?
            };
            if let Some(errno) = sending.gso_refused {
                if self.entry.gso_refused.record(remote, errno) {
                    self.events.push(Event::GsoRefused(remote, errno));
                }
            }
            outcome = sending.outcome;
            if !matches!(outcome, SendOutcome::Sent(_)) {
                break;
            }
            batch.done += sending.taken;
        }
        if may_fragment {
            self.socket.set_may_fragment(false)?;
        }
        Ok(outcome)
    }
}
