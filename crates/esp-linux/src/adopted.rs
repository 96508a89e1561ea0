//! A unix datagram socket that another part of the process has made, by its number.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::error::{Error, Result, Step, check};

/// A nonblocking copy of a connected unix datagram socket, of which the caller keeps its own.
///
/// # Errors
/// The error of the system call; `Argument` for a file of another kind.
pub fn unix_datagram(fd: RawFd) -> Result<UnixDatagram> {
    // SAFETY: fcntl checks the number, and no pointer is passed.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    check(copy).step("F_DUPFD_CLOEXEC")?;
    // SAFETY: the descriptor was made by the call above, and nothing else owns it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    if sockopt::socket_domain(&copy).step("SO_DOMAIN")? != AddressFamily::UNIX
        || sockopt::socket_type(&copy).step("SO_TYPE")? != SocketType::DGRAM
    {
        return Err(Error::Argument("this is no unix datagram socket"));
    }
    let socket = UnixDatagram::from(copy);
    rustix::io::ioctl_fionbio(&socket, true).step("FIONBIO")?;
    Ok(socket)
}
