//! A run: ESP packets of one size to one peer, sealed one behind the other and sent in one call.

use std::net::SocketAddr;

use crate::shared::{Event, Events, Outbound};
use crate::socket::Socket;
use crate::sys::{Result, SendArena, SendOutcome, Transmit};

/// ESP packets of one SA and one size, sealed one behind the other, not yet sent.
pub(crate) struct Run {
    pub(crate) slot: usize,
    pub(crate) dst: SocketAddr,
    pub(crate) tos: u8,
    pub(crate) segment: usize,
    pub(crate) len: usize,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// Packets that it may have.
    pub(crate) most: u64,
    /// Bytes that were sent already, when the socket was full.
    pub(crate) sent: usize,
    /// The last one was shorter: nothing may follow it.
    pub(crate) closed: bool,
    pub(crate) may_fragment: bool,
    /// All of it are IPv6 packets that any link takes.
    pub(crate) any_link: bool,
}

/// Packets of `size` bytes that a run to the SA's peer may have.
pub(crate) fn longest(socket: &Socket, entry: &Outbound, size: usize, arena: &SendArena) -> usize {
    let gso = entry.gso_refused.get().is_none();
    gso.then(|| socket.gso_run_of(size))
        .flatten()
        .unwrap_or(arena.capacity())
}

/// Send what is left of a run, all of it or until the kernel says no.
pub(crate) fn send(
    socket: &Socket,
    arena: &mut SendArena,
    run: &mut Run,
    sealed: &[u8],
    entry: &Outbound,
    events: &Events,
) -> Result<SendOutcome> {
    if run.may_fragment {
        socket.set_may_fragment(true)?;
    }
    let mut outcome = SendOutcome::Sent(0);
    while run.sent < run.len {
        let message = Transmit {
            dst: run.dst,
            payload: &sealed[run.sent..run.len],
            segment_size: u16::try_from(run.segment).unwrap_or(0),
            tos: run.tos,
        };
        // What is to be fragmented the kernel takes only one by one.
        let sending = if run.may_fragment || entry.gso_refused.get().is_some() {
            socket.send_each(arena, &message)?
        } else {
            socket.send_run(arena, &message)?
        };
        if let Some(errno) = sending.gso_refused {
            if entry.gso_refused.set(errno).is_ok() {
                events.push(Event::GsoRefused(run.dst.ip(), errno));
            }
        }
        outcome = sending.outcome;
        if !matches!(outcome, SendOutcome::Sent(_)) {
            break;
        }
        run.sent += sending.taken;
    }
    if run.may_fragment {
        socket.set_may_fragment(false)?;
    }
    Ok(outcome)
}
