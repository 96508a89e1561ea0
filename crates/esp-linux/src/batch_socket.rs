//! Batched sending and receiving, the same for both kinds of outer sockets.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use crate::error::Result;
use crate::message::Transmit;
use crate::recv::{RecvArena, RecvMeta};
use crate::send::{SendArena, SendOutcome};
use crate::sockopt as options;

/// An outer socket that carries packets by sendmmsg(2) and recvmmsg(2).
pub trait BatchSocket: AsFd {
    /// True if a destination has a port. IPv6 raw sockets take one for the protocol, and refuse all
    /// but 0 and their own.
    const HAS_PORTS: bool;

    /// True if the socket is bound to an IPv4 address.
    fn is_ipv4(&self) -> bool;

    /// Sends as many messages as the arena has room for and the kernel takes, in one call. Over UDP
    /// each may be a GSO batch of its own.
    ///
    /// # Errors
    /// The error of the system call, if the socket is unusable.
    fn send_batch<'a>(
        &self,
        arena: &mut SendArena,
        messages: impl IntoIterator<Item = Transmit<'a>>,
    ) -> Result<SendOutcome> {
        let messages = messages.into_iter().map(|mut message| {
            if !Self::HAS_PORTS {
                message.dst = SocketAddr::new(message.dst.ip(), 0);
            }
            message
        });
        arena.send(self.as_fd(), messages)
    }

    /// Receives into as many buffers as there are and the arena has room for, in one call.
    ///
    /// Returns what arrived, in the order of the buffers; nothing if nothing waits. A buffer should
    /// have 65,535 bytes if GRO is on; without it, a buffer gets one packet.
    ///
    /// # Errors
    /// The error of the system call, if the socket is unusable.
    fn recv_batch<'r, 'b>(
        &self,
        arena: &'r mut RecvArena,
        buffers: impl IntoIterator<Item = &'b mut [u8]>,
    ) -> Result<&'r [RecvMeta]> {
        arena.recv(self.as_fd(), buffers)
    }

    /// Lets the kernel fragment later packets (transport mode's large datagrams), or not.
    ///
    /// # Errors
    /// The error of the system call.
    fn set_may_fragment(&self, may: bool) -> Result<()> {
        options::set_may_fragment(self.as_fd(), self.is_ipv4(), may)
    }
}
