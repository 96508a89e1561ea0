//! One worker's outer socket: ESP in UDP or as protocol 50.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys::raw::RawSocket;
use crate::sys::udp::UdpSocket;
use crate::sys::{RecvArena, RecvMeta, Result, SendArena, SendOutcome, Transmit};

/// One outer socket of one worker.
#[derive(Debug)]
pub struct Socket {
    kind: Kind,
    /// Whether runs go out in one GSO send; off for good once the kernel refused one.
    gso: Cell<bool>,
}

#[derive(Debug)]
enum Kind {
    Udp(UdpSocket),
    Raw(RawSocket),
}

impl From<UdpSocket> for Socket {
    fn from(udp: UdpSocket) -> Self {
        Self {
            gso: Cell::new(udp.max_segments() > 1),
            kind: Kind::Udp(udp),
        }
    }
}

impl From<RawSocket> for Socket {
    fn from(raw: RawSocket) -> Self {
        Self {
            gso: Cell::new(false),
            kind: Kind::Raw(raw),
        }
    }
}

impl Socket {
    /// Whether ESP is in UDP.
    #[must_use]
    pub const fn is_udp(&self) -> bool {
        matches!(self.kind, Kind::Udp(_))
    }

    /// Whether what is received begins with the IP header.
    #[must_use]
    pub fn has_ip_header(&self) -> bool {
        matches!(&self.kind, Kind::Raw(raw) if raw.has_ip_header())
    }

    /// Packets of `segment_size` bytes that one run may have.
    #[must_use]
    pub fn run_of(&self, segment_size: usize, arena: &SendArena) -> usize {
        match &self.kind {
            Kind::Udp(udp) if self.gso.get() => udp.run_of(segment_size),
            _ => arena.capacity(),
        }
    }

    /// Send a run of packets of one size, of which the last may be shorter, or its beginning; how
    /// many bytes of it were taken comes with the outcome.
    ///
    /// # Errors
    /// The kernel's where the socket is unusable.
    pub fn send_run(
        &self,
        arena: &mut SendArena,
        run: &Transmit<'_>,
    ) -> Result<(SendOutcome, usize)> {
        let all = run.payload.len();
        if let (Kind::Udp(udp), true) = (&self.kind, self.gso.get()) {
            let outcome = udp.send_gso(run)?;
            if !matches!(outcome, SendOutcome::NoOffload | SendOutcome::Invalid) {
                return Ok((outcome, all));
            }
            // To blame is GSO only where the same bytes pass without it.
            let (outcome, taken) = self.send_each(arena, run)?;
            self.gso.set(!matches!(outcome, SendOutcome::Sent(_)));
            return Ok((outcome, taken));
        }
        self.send_each(arena, run)
    }

    fn send_each(&self, arena: &mut SendArena, run: &Transmit<'_>) -> Result<(SendOutcome, usize)> {
        let size = usize::from(run.segment_size).max(1);
        let packets = run.payload.chunks(size).map(|payload| Transmit {
            payload,
            segment_size: 0,
            ..*run
        });
        let outcome = match &self.kind {
            Kind::Udp(udp) => udp.send_batch(arena, packets)?,
            Kind::Raw(raw) => raw.send_batch(arena, packets)?,
        };
        let taken = match outcome {
            SendOutcome::Sent(count) => (count * size).min(run.payload.len()),
            _ => 0,
        };
        Ok((outcome, taken))
    }

    /// Receive into as many buffers as there are.
    ///
    /// # Errors
    /// The kernel's where the socket is unusable.
    pub fn receive<'r, 'b>(
        &self,
        arena: &'r mut RecvArena,
        buffers: impl IntoIterator<Item = &'b mut [u8]>,
    ) -> Result<&'r [RecvMeta]> {
        match &self.kind {
            Kind::Udp(udp) => udp.recv_batch(arena, buffers),
            Kind::Raw(raw) => raw.recv_batch(arena, buffers),
        }
    }

    /// Let the kernel fragment what is sent from now on, or not.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_may_fragment(&self, may: bool) -> Result<()> {
        match &self.kind {
            Kind::Udp(udp) => udp.set_may_fragment(may),
            Kind::Raw(raw) => raw.set_may_fragment(may),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Udp(udp) => udp.as_fd(),
            Kind::Raw(raw) => raw.as_fd(),
        }
    }
}
