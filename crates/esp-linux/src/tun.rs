//! A queue of a TUN device: IP packets and super-packets, each behind a [`VnetHdr`].
//!
//! Documentation/networking/tuntap.rst and drivers/net/tun.c of Linux.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use esp_core::wire::VnetHdr;
use rustix::fs::{Mode, OFlags};

use crate::error::{Errno, Error, Result, Step, check};
use crate::tun_features::{downwards, sensible};

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
    /// The packet and its [`VnetHdr`] don't fit together, it is no IP packet, or the kernel had no
    /// memory for it: it is lost.
    Rejected,
}

/// `struct ifreq` of TUNSETIFF and TUNSETQUEUE.
#[repr(C, align(8))]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

/// One queue of a TUN device, nonblocking.
#[derive(Debug)]
pub struct TunQueue {
    fd: OwnedFd,
    name: String,
    supported: TunFeatures,
    features: TunFeatures,
}

impl TunQueue {
    /// Opens a queue of the device `name`, which is created if it doesn't exist. Each further call
    /// with the same name adds a queue; the device goes with its last queue.
    ///
    /// Of the `wanted` offloads those are set that the kernel has; they belong to the device, so
    /// all queues should want the same.
    ///
    /// # Errors
    /// The error of the system call: EPERM without `CAP_NET_ADMIN`, ENOENT without /dev/net/tun,
    /// EBUSY if it is not a multi-queue device, or another program's.
    pub fn open(name: &str, wanted: TunFeatures) -> Result<Self> {
        let mut request = InterfaceRequest {
            name: [0; libc::IFNAMSIZ],
            flags: flags(
                libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE,
            ),
            rest: [0; 22],
        };
        // One byte less, for the terminating zero.
        let room = &mut request.name[..libc::IFNAMSIZ - 1];
        match room.get_mut(..name.len()) {
            Some(place) if !name.is_empty() => place.copy_from_slice(name.as_bytes()),
            _ => {
                return Err(Error::Argument("an interface name must have 1 to 15 bytes"));
            }
        }
        let how = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/net/tun", how, Mode::empty()).step("/dev/net/tun")?;
        // SAFETY: TUNSETIFF reads and writes a struct ifreq, which InterfaceRequest is as large as.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })
            .step("TUNSETIFF")?;
        let header_len = libc::c_int::from(10u8);
        const { assert!(VnetHdr::LEN == 10) };
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe {
            libc::ioctl(
                fd.as_raw_fd(),
                libc::TUNSETVNETHDRSZ as _,
                &raw const header_len,
            )
        })
        .step("TUNSETVNETHDRSZ")?;
        let end = request.name.iter().position(|&byte| byte == 0);
        let name = &request.name[..end.unwrap_or(libc::IFNAMSIZ)];
        let supported = set_features(fd.as_fd(), TunFeatures::all())?;
        Ok(Self {
            supported,
            features: set_features(fd.as_fd(), wanted & supported)?,
            name: String::from_utf8_lossy(name).into_owned(),
            fd,
        })
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
                Err(
                    Errno::INVAL | Errno::TOOBIG | Errno::MSGSIZE | Errno::NOBUFS | Errno::NOMEM,
                ) => TunWrite::Rejected,
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
        let request = InterfaceRequest {
            name: [0; libc::IFNAMSIZ],
            flags: flags(flag),
            rest: [0; 22],
        };
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

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 16 bits in struct ifreq
fn flags(flags: libc::c_int) -> u16 {
    flags as u16
}

/// Enables the wanted offloads that the kernel has, by trying fewer and fewer; returns them.
fn set_features(fd: BorrowedFd<'_>, wanted: TunFeatures) -> Result<TunFeatures> {
    let mut last = Errno::INVAL;
    for offloads in downwards(sensible(wanted)) {
        // SAFETY: TUNSETOFFLOAD takes a number for its argument, no pointer.
        let returned = unsafe {
            libc::ioctl(
                fd.as_raw_fd(),
                libc::TUNSETOFFLOAD as _,
                libc::c_ulong::from(offloads.bits()),
            )
        };
        match check(returned) {
            Ok(_) => return Ok(offloads),
            Err(errno) => last = errno,
        }
    }
    Err(last).step("TUNSETOFFLOAD")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_large_as_the_kernels() {
        assert!(size_of::<InterfaceRequest>() >= size_of::<libc::ifreq>());
    }
}
