//! One worker's outer socket: ESP in UDP or as protocol 50.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use esp_core::esp::sa::Encapsulation;
use esp_linux::bpf::Steering;
use esp_linux::raw::RawSocket;
use esp_linux::udp::UdpSocket;
use esp_linux::{
    BatchSocket, Error, RecvArena, RecvMeta, Result, SendArena, SendOutcome, Transmit,
};

use crate::tables::OuterSocket;

/// The outer sockets of a worker.
pub type Sockets = HashMap<OuterSocket, Arc<Socket>>;

/// One outer socket of one worker.
#[derive(Debug)]
pub enum Socket {
    /// ESP in UDP.
    Udp(UdpSocket),
    /// ESP as protocol 50.
    Raw(RawSocket),
}

/// The outcome of sending one or several packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// The kernel's last answer.
    pub outcome: SendOutcome,
    /// Bytes that the kernel has taken, from the front.
    pub taken: usize,
    /// Errno of a refused GSO send whose packets passed one by one.
    pub gso_refused: Option<&'static str>,
}

impl Socket {
    /// Opens a socket of the same address and options that receives nothing. Close it before this
    /// one.
    ///
    /// # Errors
    /// The error of the system call; EMFILE also if few more files could be opened.
    pub fn send_only(&self) -> Result<Self> {
        match self {
            Self::Udp(udp) => udp.send_only().map(Self::Udp),
            Self::Raw(raw) => raw.send_only().map(Self::Raw),
        }
    }

    /// Steers the sockets of a group, in the order of their indices, by `after` in place of
    /// `before`.
    ///
    /// A packet that comes in between goes to one socket of a UDP group; to one raw socket or to
    /// two, of which the replay window drops one packet.
    ///
    /// # Errors
    /// The error of the system call; the group is steered by `before` or `after`, or by both.
    pub fn steer(group: &[Arc<Self>], before: &Steering, after: &Steering) -> Result<()> {
        if group.len() < 2 {
            return Ok(());
        }
        for steerings in [&[before, after][..], &[after]] {
            for (index, socket) in (0..).zip(group) {
                match &**socket {
                    Self::Udp(udp) if index == 0 => udp.steer(after)?,
                    Self::Udp(_) => {}
                    Self::Raw(raw) => raw.accept(index, steerings)?,
                }
            }
        }
        Ok(())
    }

    /// The address and port that a UDP socket is bound to.
    ///
    /// # Errors
    /// The error of the system call; `Argument` for a raw socket.
    pub fn local(&self) -> Result<SocketAddr> {
        match self {
            Self::Udp(udp) => udp.local(),
            Self::Raw(_) => Err(Error::Argument("a raw socket has no port")),
        }
    }

    /// True if ESP is in UDP.
    #[must_use]
    pub const fn is_udp(&self) -> bool {
        matches!(self, Self::Udp(_))
    }

    /// The encapsulation of the ESP packets that arrive here.
    pub const fn encapsulation(&self) -> Encapsulation {
        match self {
            Self::Udp(_) => Encapsulation::Udp,
            Self::Raw(_) => Encapsulation::None,
        }
    }

    /// True if received packets begin with the IP header.
    #[must_use]
    pub fn has_ip_header(&self) -> bool {
        matches!(self, Self::Raw(raw) if raw.has_ip_header())
    }

    /// Packets of `segment_size` bytes that one GSO send takes; None if there is no GSO.
    #[must_use]
    pub fn gso_capacity(&self, segment_size: usize) -> Option<usize> {
        match self {
            Self::Udp(udp) if udp.max_segments() > 1 => Some(udp.gso_capacity(segment_size)),
            _ => None,
        }
    }

    /// Sends a batch of packets of one size, of which the last may be shorter, in one GSO send; one
    /// by one if the kernel refuses that or there is no GSO.
    ///
    /// # Errors
    /// The error of the system call, if the socket is unusable.
    pub fn send_gso(&self, arena: &mut SendArena, message: &Transmit<'_>) -> Result<Sending> {
        let udp = match self {
            Self::Udp(udp) if udp.max_segments() > 1 => udp,
            _ => return self.send_each(arena, message),
        };
        let outcome = udp.send_gso(message)?;
        let is_segmented = message.is_segmented();
        let refused = match outcome {
            SendOutcome::NoOffload if is_segmented => "EIO",
            SendOutcome::Invalid if is_segmented => "EINVAL",
            SendOutcome::TooBig if is_segmented => "EMSGSIZE",
            _ => {
                return Ok(Sending {
                    outcome,
                    taken: message.payload.len(),
                    gso_refused: None,
                });
            }
        };
        let sending = self.send_each(arena, message)?;
        // GSO is to blame only if the same bytes pass without it.
        Ok(Sending {
            gso_refused: (sending.taken > 0).then_some(refused),
            ..sending
        })
    }

    /// Sends the packets of a batch, or as many of them as the arena has room for, one by one.
    ///
    /// # Errors
    /// The error of the system call, if the socket is unusable.
    pub fn send_each(&self, arena: &mut SendArena, message: &Transmit<'_>) -> Result<Sending> {
        let size = if message.is_segmented() {
            message.segment_size.into()
        } else {
            message.payload.len().max(1)
        };
        let packets = message.payload.chunks(size).map(|payload| Transmit {
            payload,
            segment_size: 0,
            ..*message
        });
        let outcome = match self {
            Self::Udp(udp) => udp.send_batch(arena, packets)?,
            Self::Raw(raw) => raw.send_batch(arena, packets)?,
        };
        let taken = match outcome {
            SendOutcome::Sent(count) => (count * size).min(message.payload.len()),
            _ => 0,
        };
        Ok(Sending {
            outcome,
            taken,
            gso_refused: None,
        })
    }

    /// Receives into as many buffers as there are.
    ///
    /// # Errors
    /// The error of the system call, if the socket is unusable.
    pub fn receive<'r, 'b>(
        &self,
        arena: &'r mut RecvArena,
        buffers: impl IntoIterator<Item = &'b mut [u8]>,
    ) -> Result<&'r [RecvMeta]> {
        match self {
            Self::Udp(udp) => udp.recv_batch(arena, buffers),
            Self::Raw(raw) => raw.recv_batch(arena, buffers),
        }
    }

    /// Lets the kernel fragment later packets, or not.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn set_may_fragment(&self, may: bool) -> Result<()> {
        match self {
            Self::Udp(udp) => udp.set_may_fragment(may),
            Self::Raw(raw) => raw.set_may_fragment(may),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Udp(udp) => udp.as_fd(),
            Self::Raw(raw) => raw.as_fd(),
        }
    }
}
