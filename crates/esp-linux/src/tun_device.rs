//! A TUN device while it is made: its owner, its queues, and what all queues share.
//!
//! Documentation/networking/tuntap.rst and drivers/net/tun.c of Linux.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use esp_core::wire::VnetHdr;
use rustix::fs::{Mode, OFlags};

use crate::error::{Errno, Error, Result, Step, check};
use crate::tun::{InterfaceRequest, TunQueue};
use crate::tun_features::{TunFeatures, downwards, sensible};

/// A multi-queue TUN device that was just made, down, with queues that nothing uses yet.
///
/// The device goes with the last queue. From the moment it is made until it has an owner, any user
/// can open a queue of it, detach that queue, and go on writing to it. So before
/// [`Self::add_queue`] the caller looks at what the kernel counts (`IFLA_TUN_NUM_QUEUES`,
/// `IFLA_TUN_NUM_DISABLED_QUEUES`) and at `IFLA_TUN_OWNER`: where there is one queue and the owner
/// is user 0, no other user can come any more.
#[derive(Debug)]
pub struct TunDevice {
    name: String,
    queues: Vec<OwnedFd>,
}

impl TunDevice {
    /// Creates the device `name` with one queue, and gives it to user 0: then further queues take
    /// that user or `CAP_NET_ADMIN`. Without an owner, whoever can open /dev/net/tun may have one,
    /// and that is everybody.
    ///
    /// # Errors
    /// The kernel's: EPERM without `CAP_NET_ADMIN`, ENOENT without /dev/net/tun, EBUSY if a device
    /// of this name exists, EINVAL at `TUNSETOWNER` in a user namespace without a user 0.
    pub fn create(name: &str) -> Result<Self> {
        let (queue, name) = open(name, libc::IFF_TUN_EXCL)?;
        set_number(&queue, libc::TUNSETOWNER, 0).step("TUNSETOWNER")?;
        Ok(Self {
            name,
            queues: vec![queue],
        })
    }

    /// Number of queues.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Opens a further queue.
    ///
    /// # Errors
    /// The kernel's: EPERM without `CAP_NET_ADMIN`, E2BIG for more than 256 queues.
    pub fn add_queue(&mut self) -> Result<()> {
        let (queue, _) = open(&self.name, 0)?;
        self.queues.push(queue);
        Ok(())
    }

    /// Sets what belongs to the device as a whole, and returns its queues.
    ///
    /// Of the `wanted` offloads those are set that the kernel has. All else that whoever has a
    /// queue can set is put back, for somebody may have had one for a moment.
    ///
    /// # Errors
    /// The kernel's, EBUSY if the device is up.
    pub fn set_up(self, wanted: TunFeatures) -> Result<Vec<TunQueue>> {
        let Some(device) = self.queues.first() else {
            return Ok(Vec::new());
        };
        put_back(device)?;
        set_value(device, libc::TUNSETVNETHDRSZ, 10).step("TUNSETVNETHDRSZ")?;
        const { assert!(VnetHdr::LEN == 10) };
        let supported = set_features(device.as_fd(), TunFeatures::all())?;
        let features = set_features(device.as_fd(), wanted & supported)?;
        let queues = self.queues.into_iter();
        Ok(queues
            .map(|fd| TunQueue::new(fd, self.name.clone(), supported, features))
            .collect())
    }
}

/// Opens a queue, with its device's name as the kernel has it.
fn open(name: &str, exclusive: libc::c_int) -> Result<(OwnedFd, String)> {
    let kind = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let mut request = InterfaceRequest::new(kind | exclusive);
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
    let end = request.name.iter().position(|&byte| byte == 0);
    let name = &request.name[..end.unwrap_or(libc::IFNAMSIZ)];
    Ok((fd, String::from_utf8_lossy(name).into_owned()))
}

/// Sets every value of the device to that of a new one.
fn put_back(device: &OwnedFd) -> Result<()> {
    set_number(device, libc::TUNSETLINK, libc::ARPHRD_NONE.into()).step("TUNSETLINK")?;
    set_value(device, libc::TUNSETSNDBUF, libc::c_int::MAX).step("TUNSETSNDBUF")?;
    for (option, value, step) in [
        (libc::TUNSETVNETLE, 0, "TUNSETVNETLE"),
        (libc::TUNSETVNETBE, 0, "TUNSETVNETBE"),
        (libc::TUNSETSTEERINGEBPF, -1, "TUNSETSTEERINGEBPF"),
        (libc::TUNSETFILTEREBPF, -1, "TUNSETFILTEREBPF"),
        (libc::TUNSETCARRIER, 1, "TUNSETCARRIER"),
    ] {
        match set_value(device, option, value) {
            // An option that the kernel lacks has not been changed by anybody.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno).step(step),
        }
    }
    Ok(())
}

/// Enables the wanted offloads that the kernel has, by trying fewer and fewer; returns them.
fn set_features(device: BorrowedFd<'_>, wanted: TunFeatures) -> Result<TunFeatures> {
    let mut last = Errno::INVAL;
    for offloads in downwards(sensible(wanted)) {
        match set_number(device, libc::TUNSETOFFLOAD, offloads.bits().into()) {
            Ok(()) => return Ok(offloads),
            Err(errno) => last = errno,
        }
    }
    Err(last).step("TUNSETOFFLOAD")
}

/// Sets an option whose argument is a number, no pointer.
fn set_number(
    device: impl AsFd,
    option: libc::Ioctl,
    number: libc::c_ulong,
) -> rustix::io::Result<()> {
    let fd = device.as_fd().as_raw_fd();
    // SAFETY: the options that this is called with take a number for their argument.
    check(unsafe { libc::ioctl(fd, option, number) }).map(drop)
}

/// Sets an option whose argument points to an int.
fn set_value(device: impl AsFd, option: libc::Ioctl, value: libc::c_int) -> rustix::io::Result<()> {
    let fd = device.as_fd().as_raw_fd();
    // SAFETY: the options that this is called with read one int.
    check(unsafe { libc::ioctl(fd, option, &raw const value) }).map(drop)
}
