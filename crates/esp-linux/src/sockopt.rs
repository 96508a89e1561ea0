//! The options that UDP and raw outer sockets share, and their order.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, getrlimit};

use crate::error::{Errno, Result, Step, check};

/// Open files that a send-only socket, which is optional, has to leave to the rest of the process.
const FILES_FOR_OTHERS: u64 = 128;
/// From `asm-generic/socket.h`; libc lacks it.
const SO_MEMINFO: i32 = 55;
/// From `linux/udp.h`; libc lacks it.
const UDP_NO_CHECK6_RX: i32 = 102;
/// `SK_MEMINFO_DROPS` and `SK_MEMINFO_VARS` of `linux/sock_diag.h`.
const MEMINFO_DROPS: usize = 8;
const MEMINFO_LEN: usize = 9;

/// Options of an outer socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOptions {
    /// The local address; it may come later than the socket (`IP_FREEBIND`). Raw sockets ignore the
    /// port.
    pub local: SocketAddr,
    /// The firewall mark of sent packets (`SO_MARK`); 0 for none.
    pub mark: u32,
    /// Bytes of the receive and of the send buffer. Over `net.core.rmem_max` and
    /// `wmem_max` only with `CAP_NET_ADMIN`; without it the kernel clamps them.
    pub buffer: usize,
}

/// Opens an unbound, nonblocking socket with all options that both kinds share.
pub(crate) fn open(
    options: &SocketOptions,
    kind: SocketType,
    protocol: Protocol,
) -> Result<OwnedFd> {
    let ipv4 = options.local.is_ipv4();
    let family = if ipv4 {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(family, kind, flags, Some(protocol)).step("socket")?;
    if options.mark != 0 {
        set_u32(fd.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, options.mark).step("SO_MARK")?;
    }
    sockopt::set_socket_recv_buffer_size_force(&fd, options.buffer)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&fd, options.buffer))
        .step("SO_RCVBUF")?;
    sockopt::set_socket_send_buffer_size_force(&fd, options.buffer)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&fd, options.buffer))
        .step("SO_SNDBUF")?;
    if ipv4 {
        sockopt::set_ip_freebind(&fd, true).step("IP_FREEBIND")?;
        sockopt::set_ip_recvtos(&fd, true).step("IP_RECVTOS")?;
    } else {
        if kind == SocketType::DGRAM {
            sockopt::set_ipv6_v6only(&fd, true).step("IPV6_V6ONLY")?;
            // RFC 6935 5, RFC 6936 4: a tunnel may leave the checksum out; the ICV protects.
            set_u32(fd.as_fd(), libc::SOL_UDP, UDP_NO_CHECK6_RX, 1).step("UDP_NO_CHECK6_RX")?;
        }
        sockopt::set_ipv6_freebind(&fd, true).step("IPV6_FREEBIND")?;
        sockopt::set_ipv6_recvtclass(&fd, true).step("IPV6_RECVTCLASS")?;
    }
    set_may_fragment(fd.as_fd(), ipv4, false)?;
    Ok(fd)
}

/// Opens a send-only socket, with the options of [`open`].
///
/// # Errors
/// The error of the system call; EMFILE also if few more files could be opened.
pub(crate) fn open_to_send(
    options: &SocketOptions,
    kind: SocketType,
    protocol: Protocol,
) -> Result<OwnedFd> {
    let fd = open(options, kind, protocol)?;
    let number = u64::try_from(fd.as_raw_fd()).unwrap_or(0);
    // The kernel gives the lowest free number: those below it are open.
    let limit = getrlimit(Resource::Nofile).current;
    if limit.is_some_and(|limit| limit.saturating_sub(number) <= FILES_FOR_OTHERS) {
        return Err(Errno::MFILE).step("socket");
    }
    // The kernel raises it to its minimum.
    sockopt::set_socket_recv_buffer_size(&fd, 0).step("SO_RCVBUF")?;
    Ok(fd)
}

/// Lets the kernel fragment sent packets, or (the default here) sets DF and reports `TooBig`.
pub(crate) fn set_may_fragment(fd: BorrowedFd<'_>, ipv4: bool, may: bool) -> Result<()> {
    use sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
    if ipv4 {
        let value = if may {
            Ipv4PathMtuDiscovery::DONT
        } else {
            Ipv4PathMtuDiscovery::DO
        };
        sockopt::set_ip_mtu_discover(fd, value).step("IP_MTU_DISCOVER")
    } else {
        let value = if may {
            Ipv6PathMtuDiscovery::DONT
        } else {
            Ipv6PathMtuDiscovery::DO
        };
        sockopt::set_ipv6_mtu_discover(fd, value).step("IPV6_MTU_DISCOVER")
    }
}

/// The path MTU to `dst` that the kernel knows, IP header included, in bytes.
///
/// Queries a temporary socket connected to `dst`; nothing is sent. `mark` as in [`SocketOptions`],
/// since it may choose the route.
///
/// # Errors
/// The error of the system call: there is no route, or a mark without `CAP_NET_ADMIN`.
pub fn path_mtu(dst: IpAddr, mark: u32) -> Result<u32> {
    let family = if dst.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let fd = rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .step("socket")?;
    if mark != 0 {
        set_u32(fd.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, mark).step("SO_MARK")?;
    }
    // Any port: connecting a UDP socket looks up the route and sends nothing.
    rustix::net::connect(&fd, &SocketAddr::new(dst, 9)).step("connect")?;
    if dst.is_ipv4() {
        sockopt::ip_mtu(&fd).step("IP_MTU")
    } else {
        sockopt::ipv6_mtu(&fd).step("IPV6_MTU")
    }
}

/// The datagrams that the kernel has dropped at a socket, modulo 2^32: for want of room in its
/// receive buffer, and for a wrong checksum where that is verified by the receiving call. Clones
/// that a filter rejects are not among them.
///
/// # Errors
/// The error of the system call: Linux before 4.12 has no `SO_MEMINFO`.
pub fn received_drops(fd: impl AsFd) -> Result<u32> {
    let mut info = [0_u32; MEMINFO_LEN];
    let mut len = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or(0);
    // SAFETY: the kernel writes at most `len` bytes, which is all of `info`, and keeps nothing.
    let returned = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    check(returned).step("SO_MEMINFO")?;
    Ok(info[MEMINFO_DROPS])
}

/// Sets an option that takes an unsigned int and that rustix has no function for.
pub(crate) fn set_u32(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: u32,
) -> rustix::io::Result<()> {
    // SAFETY: the kernel reads a u32 and keeps nothing.
    unsafe { set(fd, level, name, &value) }
}

/// Attaches a classic BPF program by `SO_ATTACH_FILTER` or `SO_ATTACH_REUSEPORT_CBPF`.
pub(crate) fn attach(
    fd: BorrowedFd<'_>,
    name: i32,
    program: &[libc::sock_filter],
) -> rustix::io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        // The kernel only reads it; the type is shared with getsockopt.
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: sock_fprog says where the instructions are and how many, they are borrowed for the
    // call, and the kernel copies and verifies them before it returns.
    unsafe { set(fd, libc::SOL_SOCKET, name, &program) }
}

/// # Safety
/// The option must take a `T`, and what `value` points to must live through the call.
unsafe fn set<T>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> rustix::io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| Errno::INVAL)?;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the kernel reads `len` bytes, which is all of the value; the rest is the caller's.
    let returned = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value, len) };
    check(returned).map(drop)
}
