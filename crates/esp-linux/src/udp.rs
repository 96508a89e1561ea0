//! UDP sockets with segmentation offload (`UDP_SEGMENT`, `UDP_GRO`), one for each worker.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{SocketType, ipproto, sockopt};

use crate::batch_socket::BatchSocket;
use crate::bpf::{self, Steering};
use crate::error::{Errno, Error, Result, Step};
use crate::message::Transmit;
use crate::send::{SendOutcome, send_one};
use crate::sockopt::{self as options, SocketOptions};

pub use crate::sockopt::path_mtu;

/// The most payload of one GSO send over IPv4. With more the packet is larger than the 64 KiB that
/// network devices take whole: the kernel would split it in software, silently.
pub const MAX_GSO_PAYLOAD_V4: usize = 65_493;
/// The same over IPv6, whose header is 20 bytes longer.
pub const MAX_GSO_PAYLOAD_V6: usize = 65_473;

/// `UDP_MAX_SEGMENTS` of kernels from 6.9 on.
const MAX_SEGMENTS: usize = 128;
/// `UDP_MAX_SEGMENTS` of older kernels.
const MAX_SEGMENTS_BEFORE_6_9: usize = 64;

/// Wanted offloads of a socket; the socket itself reports those in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpFeatures {
    /// Send batches of equal-sized datagrams in one call (`UDP_SEGMENT`).
    pub gso: bool,
    /// Receive batches of datagrams as one (`UDP_GRO`).
    pub gro: bool,
}

/// A bound, nonblocking UDP socket.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    options: SocketOptions,
    max_segments: usize,
    gro: bool,
}

impl UdpSocket {
    /// Binds sockets to one address and port, as many as `steering` has; the socket of index i gets
    /// the packets that it steers there (see [`bpf::steer`]).
    ///
    /// The kernel keeps the order while no socket of the group is closed, so keep all of them open
    /// until the last is dropped. Sockets of [`Self::send_only`] come behind them.
    ///
    /// # Errors
    /// The error of the system call: EADDRINUSE also if another program shares the port by
    /// `SO_REUSEPORT`.
    pub fn bind_group(
        options: &SocketOptions,
        wanted: UdpFeatures,
        steering: &Steering,
    ) -> Result<Vec<Self>> {
        let open = |options| options::open(options, SocketType::DGRAM, ipproto::UDP);
        let first = open(options)?;
        // Steered from the first packet on, also where the group comes later.
        share_port(&first, true)?;
        bpf::steer(&first, steering)?;
        // With SO_REUSEPORT the first bind could join another program's group and lose packets to
        // it. Without, the kernel doesn't look at the group.
        share_port(&first, false)?;
        rustix::net::bind(&first, &options.local).step("bind")?;
        let first = Self::new(first, options, wanted)?;
        let options = SocketOptions {
            // With port 0 the first socket chooses.
            local: first.local()?,
            ..*options
        };
        let mut group = vec![Self { options, ..first }];
        for _ in 1..steering.count() {
            let fd = open(&options)?;
            group[0].join(&fd)?;
            group.push(Self::new(fd, &options, wanted)?);
        }
        Ok(group)
    }

    /// Steers the group of this socket anew, in one step.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn steer(&self, steering: &Steering) -> Result<()> {
        bpf::steer(&self.fd, steering)
    }

    /// Opens a socket of the same address, port and options that steering never leads to: the
    /// kernel puts it behind the others of the group, and into another's place only if that is
    /// closed. Close it before this one. Never connect it: the kernel would prefer it to the group.
    ///
    /// # Errors
    /// The error of the system call; EMFILE also if few more files could be opened.
    pub fn send_only(&self) -> Result<Self> {
        let fd = options::open_to_send(&self.options, SocketType::DGRAM, ipproto::UDP)?;
        self.leave_checksums_out(&fd)?;
        if self.gro {
            // GRO asks any socket of the group if packets may be merged.
            set_gro(&fd).step("UDP_GRO")?;
        }
        self.join(&fd)?;
        Ok(Self { fd, ..*self })
    }

    /// Binds a socket to the same address and port.
    fn join(&self, fd: &OwnedFd) -> Result<()> {
        share_port(&self.fd, true)?;
        share_port(fd, true)?;
        rustix::net::bind(fd, &self.options.local).step("bind")
    }

    fn new(fd: OwnedFd, options: &SocketOptions, wanted: UdpFeatures) -> Result<Self> {
        let max_segments = if wanted.gso {
            probe_segments(options.local.ip())?
        } else {
            1
        };
        let gro = wanted.gro && set_gro(&fd).is_ok();
        let socket = Self {
            fd,
            options: *options,
            max_segments,
            gro,
        };
        socket.leave_checksums_out(&socket.fd)?;
        Ok(socket)
    }

    /// Leaves the checksums of sent datagrams out, over IPv4 and without GSO (RFC 3948 2.1): the
    /// kernel refuses GSO without them (net/ipv4/udp.c, `udp_send_skb`).
    fn leave_checksums_out(&self, fd: &OwnedFd) -> Result<()> {
        if self.max_segments > 1 || !self.is_ipv4() {
            return Ok(());
        }
        options::set_u32(fd.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).step("SO_NO_CHECK")
    }

    /// The address and port that the socket is bound to.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn local(&self) -> Result<SocketAddr> {
        let address = rustix::net::getsockname(&self.fd).step("getsockname")?;
        SocketAddr::try_from(address).step("getsockname")
    }

    /// Most segments of one GSO send; 1 if the kernel has no UDP GSO or it isn't wanted.
    #[must_use]
    pub fn max_segments(&self) -> usize {
        self.max_segments
    }

    /// True if received datagrams are merged (GRO).
    #[must_use]
    pub fn gro(&self) -> bool {
        self.gro
    }

    /// Number of datagrams of `segment_size` bytes that one send takes, at least 1. (One more,
    /// shorter, may fit at the end.)
    #[must_use]
    pub fn gso_capacity(&self, segment_size: usize) -> usize {
        let fit = self.max_payload() / segment_size.max(1);
        fit.clamp(1, self.max_segments)
    }

    fn max_payload(&self) -> usize {
        if self.is_ipv4() {
            MAX_GSO_PAYLOAD_V4
        } else {
            MAX_GSO_PAYLOAD_V6
        }
    }

    /// Sends a batch of datagrams of `segment_size` bytes (the last may be shorter) in one call.
    ///
    /// A batch has at most [`Self::max_segments`] datagrams and [`MAX_GSO_PAYLOAD_V4`] or
    /// [`MAX_GSO_PAYLOAD_V6`] bytes.
    ///
    /// # Errors
    /// `Argument` if the batch is over the limits; the error of the system call, if the socket is
    /// unusable.
    pub fn send_gso(&self, message: &Transmit<'_>) -> Result<SendOutcome> {
        let (len, segment) = (message.payload.len(), usize::from(message.segment_size));
        if message.is_segmented()
            && (len > self.max_payload() || len.div_ceil(segment) > self.max_segments)
        {
            return Err(Error::Argument(
                "a GSO send is over the segments or bytes that the kernel takes",
            ));
        }
        send_one(self.fd.as_fd(), message)
    }
}

impl BatchSocket for UdpSocket {
    const HAS_PORTS: bool = true;

    fn is_ipv4(&self) -> bool {
        self.options.local.is_ipv4()
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn share_port(fd: &OwnedFd, share: bool) -> Result<()> {
    sockopt::set_socket_reuseport(fd, share).step("SO_REUSEPORT")
}

fn set_gro(fd: &OwnedFd) -> rustix::io::Result<()> {
    options::set_u32(fd.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Probes the most segments that the kernel takes, by a send from a socket to itself.
///
/// The kernel checks the count after the route and before the device, so it needs no more than a
/// local address (a wildcard is sent to over the loopback). Without one yet, the older limit is
/// assumed.
fn probe_segments(local: IpAddr) -> Result<usize> {
    let options = SocketOptions {
        local: SocketAddr::new(local, 0),
        mark: 0,
        buffer: 0,
    };
    let fd = options::open(&options, SocketType::DGRAM, ipproto::UDP)?;
    if options::set_u32(fd.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_err() {
        return Ok(1);
    }
    rustix::net::bind(&fd, &options.local).step("bind")?;
    let address = rustix::net::getsockname(&fd).step("getsockname")?;
    let message = Transmit {
        dst: SocketAddr::try_from(address).step("getsockname")?,
        payload: &[0; MAX_SEGMENTS],
        segment_size: 1,
        tos: 0,
    };
    Ok(match send_one(fd.as_fd(), &message)? {
        SendOutcome::Sent(_) | SendOutcome::Lost(Errno::NETDOWN) => MAX_SEGMENTS,
        _ => MAX_SEGMENTS_BEFORE_6_9,
    })
}
