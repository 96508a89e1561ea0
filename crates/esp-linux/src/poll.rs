//! Waiting for readiness: epoll(7), and an eventfd(2) that wakes a worker from another thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use bitflags::bitflags;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use crate::error::{Errno, Error, Result, Step};

bitflags! {
    /// Kinds of readiness to wait for.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Interest: u32 {
        /// Something to read.
        const READ = epoll::EventFlags::IN.bits();
        /// Room to write.
        const WRITE = epoll::EventFlags::OUT.bits();
    }
}

/// One file that is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The token that the file was added with.
    pub token: u64,
    /// Readable, or an error that reading reports.
    pub readable: bool,
    /// Writable, or an error that writing reports.
    pub writable: bool,
}

/// Room for events, made once.
pub struct Events(Vec<epoll::Event>);

impl Events {
    /// Makes room for `capacity` events a wait.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// The events that the last wait found.
    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.0.iter().map(|event| {
            let flags = event.flags;
            let failed = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            Event {
                token: event.data.u64(),
                readable: failed || flags.contains(epoll::EventFlags::IN),
                writable: failed || flags.contains(epoll::EventFlags::OUT),
            }
        })
    }
}

/// A set of files to wait for, level-triggered.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// Makes an empty set.
    ///
    /// # Errors
    /// The error of the system call: EMFILE or ENFILE.
    pub fn new() -> Result<Self> {
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC).step("epoll_create")?;
        Ok(Self(fd))
    }

    /// Adds a file; `token` comes back with its events. Remove a shared file before it is closed.
    ///
    /// # Errors
    /// The error of the system call: EEXIST if it is there.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> Result<()> {
        epoll::add(&self.0, fd, data(token), flags(interest)).step("epoll_ctl add")
    }

    /// Changes the interest in a file.
    ///
    /// # Errors
    /// The error of the system call: ENOENT if the file isn't there.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> Result<()> {
        epoll::modify(&self.0, fd, data(token), flags(interest)).step("epoll_ctl mod")
    }

    /// Removes a file.
    ///
    /// # Errors
    /// The error of the system call: ENOENT if the file isn't there.
    pub fn remove(&self, fd: impl AsFd) -> Result<()> {
        epoll::delete(&self.0, fd).step("epoll_ctl del")
    }

    /// Waits until a file is ready, or for `timeout` (`None`: for ever). A signal ends it early,
    /// with no events.
    ///
    /// # Errors
    /// The error of the system call; `Argument` if the timeout is beyond its clock.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> Result<()> {
        let timeout = match timeout.map(Timespec::try_from) {
            None => None,
            Some(Ok(timeout)) => Some(timeout),
            Some(Err(_)) => return Err(Error::Argument("a timeout is beyond the kernel's clock")),
        };
        events.0.clear();
        let room = rustix::buffer::spare_capacity(&mut events.0);
        match epoll::wait(&self.0, room, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno).step("epoll_wait"),
        }
    }
}

fn data(token: u64) -> epoll::EventData {
    epoll::EventData::new_u64(token)
}

fn flags(interest: Interest) -> epoll::EventFlags {
    epoll::EventFlags::from_bits_retain(interest.bits())
}

/// Wakes a [`Poller`] that it was added to, from any thread.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// Makes a waker that is not set.
    ///
    /// # Errors
    /// The error of the system call: EMFILE or ENFILE.
    pub fn new() -> Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self(eventfd(0, flags).step("eventfd")?))
    }

    /// Sets the waker; setting it again before `clear` has no effect.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn wake(&self) -> Result<()> {
        match rustix::io::write(&self.0, &1u64.to_ne_bytes()) {
            // A full counter is set already.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno).step("write to the eventfd"),
        }
    }

    /// Clears the waker. Call it before reading the state that the waking thread left.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn clear(&self) -> Result<()> {
        match rustix::io::read(&self.0, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno).step("read from the eventfd"),
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
