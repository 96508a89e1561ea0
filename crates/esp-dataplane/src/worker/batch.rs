//! A run: ESP packets of one size to one peer, sealed one behind the other and sent in one call.

use std::net::SocketAddr;
use std::ops::Range;

use esp_core::DropReason;
use esp_core::counters::Tally;

use crate::events::{Event, Events};
use crate::socket::Socket;
use crate::tables::Outbound;
use esp_linux::{Result, SendArena, SendOutcome, Transmit};

/// ESP packets of one SA and one size, sealed one behind the other, not yet sent.
pub(crate) struct Run {
    pub(crate) slot: usize,
    pub(crate) dst: SocketAddr,
    pub(crate) tos: u8,
    pub(crate) segment: usize,
    pub(crate) len: usize,
    /// Packets that it may have.
    pub(crate) most: usize,
    /// Bytes that were sent or dropped already.
    pub(crate) done: usize,
    /// The last one was shorter: nothing may follow it.
    pub(crate) closed: bool,
    pub(crate) may_fragment: bool,
}

impl Run {
    /// How many of its packets were sent or dropped already.
    pub(crate) const fn packets_done(&self) -> usize {
        self.done.div_ceil(self.segment)
    }

    /// Where the next packet lies that was not sent.
    fn next_packet(&self) -> Range<usize> {
        self.done..self.len.min(self.done + self.segment)
    }
}

/// One packet of a run, as it was before it was sealed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) bytes: u64,
    /// It is an IPv6 packet that any link takes.
    pub(crate) any_link: bool,
}

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Every packet was sent or dropped.
    All,
    /// Likewise, some because they are larger than the path MTU.
    TooBig,
    /// The socket is full: what is left has to wait.
    Blocked,
}

/// Packets of `size` bytes that a run to the SA's peer may have.
pub(crate) fn longest(socket: &Socket, entry: &Outbound, size: usize, arena: &SendArena) -> usize {
    let gso = entry.gso_refused.get().is_none();
    gso.then(|| socket.gso_run_of(size))
        .flatten()
        .unwrap_or(arena.capacity())
}

/// What runs of one SA are sent with, and where that is told and counted.
pub(crate) struct Sender<'a> {
    pub(crate) socket: &'a Socket,
    pub(crate) arena: &'a mut SendArena,
    pub(crate) entry: &'a Outbound,
    pub(crate) tally: &'a Tally,
    pub(crate) events: &'a Events,
}

impl Sender<'_> {
    /// Send what is left of a run that lies in `sealed`; each packet is counted as carried or
    /// dropped.
    ///
    /// # Errors
    /// The kernel's, where the socket is unusable.
    pub(crate) fn flush(
        &mut self,
        run: &mut Run,
        packets: &[Packet],
        sealed: &[u8],
    ) -> Result<Flushed> {
        // Packets of this size or larger do not go out whole.
        let mut too_big = usize::MAX;
        while run.done < run.len {
            let (first, next) = (run.packets_done(), run.next_packet());
            let alone = next.len() >= too_big;
            // No IPv6 link is smaller than what any link takes (RFC 8200 5): the outer packet is
            // fragmented.
            if alone && (run.may_fragment || !packets[first].any_link) {
                self.tally.dropped(DropReason::TooBig, 1);
                run.done = next.end;
                continue;
            }
            let part = &sealed[..if alone { next.end } else { run.len }];
            let outcome = self.send(run, part, run.may_fragment || alone)?;
            let carried = &packets[first..run.packets_done()];
            let bytes = carried.iter().map(|packet| packet.bytes).sum();
            self.tally.carried(carried.len() as u64, bytes);
            match outcome {
                SendOutcome::Sent(_) => {}
                SendOutcome::WouldBlock => return Ok(Flushed::Blocked),
                SendOutcome::TooBig if !alone => too_big = run.next_packet().len(),
                SendOutcome::TooBig
                | SendOutcome::NoOffload
                | SendOutcome::Invalid
                | SendOutcome::Lost(_) => {
                    let left = packets.len() - run.packets_done();
                    self.tally.dropped(DropReason::SendError, left as u64);
                    break;
                }
            }
        }
        Ok(if too_big == usize::MAX {
            Flushed::All
        } else {
            Flushed::TooBig
        })
    }

    /// Send what is left of a run, or of its beginning: all of `sealed`, or until the kernel says
    /// no.
    fn send(&mut self, run: &mut Run, sealed: &[u8], may_fragment: bool) -> Result<SendOutcome> {
        if may_fragment {
            self.socket.set_may_fragment(true)?;
        }
        let mut outcome = SendOutcome::Sent(0);
        while run.done < sealed.len() {
            let message = Transmit {
                dst: run.dst,
                payload: &sealed[run.done..],
                segment_size: u16::try_from(run.segment).unwrap_or(0),
                tos: run.tos,
            };
            // What is to be fragmented the kernel takes only one by one.
            let sending = if may_fragment || self.entry.gso_refused.get().is_some() {
                self.socket.send_each(self.arena, &message)?
            } else {
                self.socket.send_run(self.arena, &message)?
            };
            if let Some(errno) = sending.gso_refused {
                if self.entry.gso_refused.set(errno).is_ok() {
                    let remote = run.dst.ip();
                    self.events.push(Event::GsoRefused(remote, errno));
                }
            }
            outcome = sending.outcome;
            if !matches!(outcome, SendOutcome::Sent(_)) {
                break;
            }
            run.done += sending.taken;
        }
        if may_fragment {
            self.socket.set_may_fragment(false)?;
        }
        Ok(outcome)
    }
}
