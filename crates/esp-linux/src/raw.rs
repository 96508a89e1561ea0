//! Raw sockets of IP protocol 50: ESP without UDP.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{SocketType, ipproto};

use crate::bpf;
use crate::error::{Result, Step};
use crate::message::Transmit;
use crate::recv::{RecvArena, RecvMeta};
use crate::send::{SendArena, SendOutcome};
use crate::sockopt::{self as options, SocketOptions};

/// A bound, nonblocking raw socket. What is sent begins with the ESP header. What is received begins
/// with the IP header over IPv4 (so it is 20 bytes or more longer), with the ESP header over IPv6.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
    ipv4: bool,
}

impl RawSocket {
    /// Binds `count` sockets to one address; the socket of index i gets the packets whose SPI modulo
    /// `count` is i (see [`bpf::accept_spi`]).
    ///
    /// # Errors
    /// The kernel's: EPERM without `CAP_NET_RAW`.
    pub fn bind_group(options: &SocketOptions, count: u32) -> Result<Vec<Self>> {
        let mut options = *options;
        options.local.set_port(0);
        let ipv4 = options.local.is_ipv4();
        let mut group = Vec::new();
        for index in 0..count {
            let fd = options::open(&options, SocketType::RAW, ipproto::ESP)?;
            if count > 1 {
                bpf::accept_spi(&fd, ipv4, index, count)?;
            }
            rustix::net::bind(&fd, &options.local).step("bind")?;
            group.push(Self { fd, ipv4 });
        }
        Ok(group)
    }

    /// Tells whether received packets begin with their IP header.
    #[must_use]
    pub fn has_ip_header(&self) -> bool {
        self.ipv4
    }

    /// As [`crate::udp::UdpSocket::send_batch`]; ports and segment sizes are ignored.
    ///
    /// # Errors
    /// The kernel's where the socket is unusable.
    pub fn send_batch<'a>(
        &self,
        arena: &mut SendArena,
        messages: impl IntoIterator<Item = Transmit<'a>>,
    ) -> Result<SendOutcome> {
        let messages = messages.into_iter().map(|message| Transmit {
            // IPv6 raw sockets take a port for the protocol and refuse all but 0 and their own.
            dst: SocketAddr::new(message.dst.ip(), 0),
            ..message
        });
        arena.send(self.fd.as_fd(), messages)
    }

    /// As [`crate::udp::UdpSocket::recv_batch`], one packet a buffer.
    ///
    /// # Errors
    /// The kernel's where the socket is unusable.
    pub fn recv_batch<'r, 'b>(
        &self,
        arena: &'r mut RecvArena,
        buffers: impl IntoIterator<Item = &'b mut [u8]>,
    ) -> Result<&'r [RecvMeta]> {
        arena.recv(self.fd.as_fd(), buffers)
    }

    /// As [`crate::udp::UdpSocket::set_may_fragment`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_may_fragment(&self, may: bool) -> Result<()> {
        options::set_may_fragment(self.fd.as_fd(), self.ipv4, may)
    }
}

impl AsFd for RawSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
