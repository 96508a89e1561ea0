//! A queue of a TUN device: IP packets and super-packets, each behind a [`VnetHdr`].
//!
//! Documentation/networking/tuntap.rst and drivers/net/tun.c of Linux.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use esp_core::wire::VnetHdr;

use crate::error::{Errno, Result, Step, check};

pub use crate::tun_features::TunFeatures;

/// Bytes of the largest packet of a read: an IPv6 header and 65,535 bytes.
pub const MAX_PACKET: usize = 40 + 65_535;

/// The outcome of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunRead {
    /// A packet of this many bytes.
    Packet(VnetHdr, usize),
    /// No packet is queued.
    WouldBlock,
    /// The device was deleted.
    Gone,
}

/// The fate of a packet that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunWrite {
    /// The kernel took the packet.
    Written,
    /// The kernel has no room now.
    WouldBlock,
    /// The interface is down (EIO): the packet is lost, later ones may pass.
    Down,
    /// The device was deleted.
    Gone,
    /// The packet and its [`VnetHdr`] don't fit together, or it is no IP packet (EINVAL).
    Invalid,
    /// It is too large, or the kernel had no memory for it: it is lost.
    Rejected,
}

/// `struct ifreq` of TUNSETIFF and TUNSETQUEUE.
#[repr(C, align(8))]
pub(crate) struct InterfaceRequest {
    pub(crate) name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

impl InterfaceRequest {
    /// A request without a name.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 16 bits in struct ifreq
    pub(crate) fn new(flags: libc::c_int) -> Self {
        Self {
            name: [0; libc::IFNAMSIZ],
            flags: flags as u16,
            rest: [0; 22],
        }
    }
}

/// One queue of a [`TunDevice`](crate::tun_device::TunDevice), nonblocking.
#[derive(Debug)]
pub struct TunQueue {
    fd: OwnedFd,
    name: String,
    supported: TunFeatures,
    features: TunFeatures,
}

impl TunQueue {
    /// A queue whose device has these offloads.
    pub(crate) fn new(
        fd: OwnedFd,
        name: String,
        supported: TunFeatures,
        features: TunFeatures,
    ) -> Self {
        Self {
            fd,
            name,
            supported,
            features,
        }
    }

    /// The device's name, as the kernel has it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The offloads that the kernel has, enabled or not. Super-packets of these kinds can be
    /// written.
    #[must_use]
    pub fn supported(&self) -> TunFeatures {
        self.supported
    }

    /// The enabled offloads.
    #[must_use]
    pub fn features(&self) -> TunFeatures {
        self.features
    }

    /// Reads one packet into `buffer`, which should have [`MAX_PACKET`] bytes: the kernel
    /// truncates a longer packet silently.
    ///
    /// # Errors
    /// The error of the system call, unless it is one of the outcomes.
    pub fn read(&self, buffer: &mut [u8]) -> Result<TunRead> {
        let mut header = [0; VnetHdr::LEN];
        loop {
            let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)];
            let outcome = match rustix::io::readv(&self.fd, &mut parts) {
                Ok(len) => {
                    let header = VnetHdr::from_bytes(&header);
                    TunRead::Packet(header, len.saturating_sub(VnetHdr::LEN))
                }
                Err(Errno::AGAIN) => TunRead::WouldBlock,
                Err(Errno::BADFD) => TunRead::Gone,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno).step("read from the TUN"),
            };
            return Ok(outcome);
        }
    }

    /// Writes one packet or super-packet.
    ///
    /// # Errors
    /// The error of the system call, unless it is one of the outcomes.
    pub fn write(&self, header: &VnetHdr, packet: &[u8]) -> Result<TunWrite> {
        let header = header.to_bytes();
        self.write_parts(&[IoSlice::new(&header), IoSlice::new(packet)])
    }

    /// Writes one packet from several places (at most 1024); the first ten bytes are its
    /// [`VnetHdr::to_bytes`].
    ///
    /// # Errors
    /// The error of the system call, unless it is one of the outcomes.
    pub fn write_parts(&self, parts: &[IoSlice<'_>]) -> Result<TunWrite> {
        loop {
            let outcome = match rustix::io::writev(&self.fd, parts) {
                Ok(_) => TunWrite::Written,
                Err(Errno::AGAIN) => TunWrite::WouldBlock,
                Err(Errno::IO) => TunWrite::Down,
                Err(Errno::BADFD) => TunWrite::Gone,
                Err(Errno::INVAL) => TunWrite::Invalid,
                Err(Errno::TOOBIG | Errno::MSGSIZE | Errno::NOBUFS | Errno::NOMEM) => {
                    TunWrite::Rejected
                }
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno).step("write to the TUN"),
            };
            return Ok(outcome);
        }
    }

    /// Takes the queue out of the device's flow hashing, until [`Self::attach`]: the other queues
    /// get its flows. Writes to it still pass.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn detach(&self) -> Result<()> {
        self.set_queue(libc::IFF_DETACH_QUEUE, "detach the TUN queue")
    }

    /// Puts a detached queue back.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn attach(&self) -> Result<()> {
        self.set_queue(libc::IFF_ATTACH_QUEUE, "attach the TUN queue")
    }

    fn set_queue(&self, flag: libc::c_int, step: &'static str) -> Result<()> {
        let request = InterfaceRequest::new(flag);
        let fd = self.fd.as_raw_fd();
        // SAFETY: TUNSETQUEUE reads a struct ifreq, which InterfaceRequest is as large as.
        check(unsafe { libc::ioctl(fd, libc::TUNSETQUEUE as _, &raw const request) })
            .step(step)
            .map(drop)
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_large_as_the_kernels() {
        assert!(size_of::<InterfaceRequest>() >= size_of::<libc::ifreq>());
    }
}
