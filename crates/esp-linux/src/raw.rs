//! Raw sockets of IP protocol 50: ESP without UDP.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{SocketType, ipproto, sockopt};

use crate::batch_socket::BatchSocket;
use crate::bpf::{self, Steering};
use crate::error::{Result, Step};
use crate::sockopt::{self as options, SocketOptions};

/// A bound, nonblocking raw socket. A sent packet begins with the ESP header. A received one begins
/// with the IP header over IPv4 (so it is 20 bytes or more longer), with the ESP header over IPv6.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
    options: SocketOptions,
    /// Belongs to the first IPv6 socket of a group; it only has to stay open.
    _path_mtu_learner: Option<OwnedFd>,
}

impl RawSocket {
    /// Binds sockets to one address, as many as `steering` has; the socket of index i gets the
    /// packets that it steers there (see [`bpf::accept`]).
    ///
    /// # Errors
    /// The error of the system call: EPERM without `CAP_NET_RAW`.
    pub fn bind_group(options: &SocketOptions, steering: &Steering) -> Result<Vec<Self>> {
        let mut options = *options;
        options.local.set_port(0);
        let ipv4 = options.local.is_ipv4();
        let mut group = Vec::new();
        for index in 0..steering.count() {
            let fd = options::open(&options, SocketType::RAW, ipproto::ESP)?;
            if steering.count() > 1 {
                bpf::accept(&fd, ipv4, index, &[steering])?;
            }
            rustix::net::bind(&fd, &options.local).step("bind")?;
            let learner = (!ipv4 && index == 0).then(|| path_mtu_learner(&options));
            group.push(Self {
                fd,
                options,
                _path_mtu_learner: learner.transpose()?,
            });
        }
        Ok(group)
    }

    /// Receives from now on what any of `steerings` gives to the socket of this index.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn accept(&self, index: u32, steerings: &[&Steering]) -> Result<()> {
        bpf::accept(&self.fd, self.is_ipv4(), index, steerings)
    }

    /// Opens a socket of the same address and options whose clones of packets are discarded.
    ///
    /// # Errors
    /// The error of the system call; EMFILE also if few more files could be opened.
    pub fn send_only(&self) -> Result<Self> {
        let fd = options::open_to_send(&self.options, SocketType::RAW, ipproto::ESP)?;
        bpf::accept_nothing(&fd)?;
        rustix::net::bind(&fd, &self.options.local).step("bind")?;
        Ok(Self {
            fd,
            options: self.options,
            _path_mtu_learner: None,
        })
    }

    /// True if received packets begin with their IP header.
    #[must_use]
    pub fn has_ip_header(&self) -> bool {
        self.is_ipv4()
    }
}

/// Opens the IPv6 socket by which the kernel learns path MTUs for all raw sockets of an address: it
/// takes a Packet Too Big for protocol 50 only where a socket has `IPV6_RECVERR`
/// (`net/ipv6/raw.c`, `rawv6_err`).
///
/// On a socket that carries packets, the option would let any ICMP error fail a send or a receive.
/// This one is never read: its error queue ends at the least receive buffer.
fn path_mtu_learner(options: &SocketOptions) -> Result<OwnedFd> {
    let fd = options::open(options, SocketType::RAW, ipproto::ESP)?;
    bpf::accept_nothing(&fd)?;
    // The kernel raises it to its minimum.
    sockopt::set_socket_recv_buffer_size(&fd, 0).step("SO_RCVBUF")?;
    options::set_u32(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1).step("IPV6_RECVERR")?;
    rustix::net::bind(&fd, &options.local).step("bind")?;
    Ok(fd)
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
