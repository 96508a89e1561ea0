//! Raw sockets of IP protocol 50: ESP without UDP.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{SocketType, ipproto};

use crate::batch_socket::BatchSocket;
use crate::bpf;
use crate::error::{Result, Step};
use crate::sockopt::{self as options, SocketOptions};

/// A bound, nonblocking raw socket. A sent packet begins with the ESP header. A received one begins
/// with the IP header over IPv4 (so it is 20 bytes or more longer), with the ESP header over IPv6.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
    options: SocketOptions,
}

impl RawSocket {
    /// Binds `count` sockets to one address; the socket of index i gets the packets whose SPI
    /// modulo `count` is i (see [`bpf::accept_spi`]).
    ///
    /// # Errors
    /// The error of the system call: EPERM without `CAP_NET_RAW`.
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
            group.push(Self { fd, options });
        }
        Ok(group)
    }

    /// Opens a socket of the same address and options whose clones of packets are discarded.
    ///
    /// # Errors
    /// The error of the system call; EMFILE also if few more files could be opened.
    pub fn send_only(&self) -> Result<Self> {
        let fd = options::open_to_send(&self.options, SocketType::RAW, ipproto::ESP)?;
        bpf::accept_nothing(&fd)?;
        rustix::net::bind(&fd, &self.options.local).step("bind")?;
        let options = self.options;
        Ok(Self { fd, options })
    }

    /// True if received packets begin with their IP header.
    #[must_use]
    pub fn has_ip_header(&self) -> bool {
        self.is_ipv4()
    }
}

impl BatchSocket for RawSocket {
    const HAS_PORTS: bool = false;

    fn is_ipv4(&self) -> bool {
        self.options.local.is_ipv4()
    }
}

impl AsFd for RawSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
