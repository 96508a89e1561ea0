//! Sending: one message by sendmsg(2), many by sendmmsg(2) over storage allocated once.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::{Errno, Error, Result, check};
use crate::message::{Slot, Transmit, empty_header};

/// The fate of the first message that was not yet sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendOutcome {
    /// The kernel took this many messages, from the front. The next call reports why it took no
    /// more.
    Sent(usize),
    /// The socket's buffer is full: wait until it is writable.
    WouldBlock,
    /// EIO: the network card has no checksum offload, so no UDP GSO. Send datagrams one by one.
    NoOffload,
    /// EINVAL: a GSO send of more segments than the kernel takes, a blackhole route, and other
    /// reasons. GSO is to blame only if the same bytes pass without it.
    Invalid,
    /// EMSGSIZE: a datagram is larger than the path MTU.
    TooBig,
    /// This message is lost; the socket is still usable (no route, refused, filtered, ...).
    Lost(Errno),
}

fn outcome(errno: Errno, step: &'static str) -> Result<SendOutcome> {
    match errno {
        // ENOBUFS: what a full raw socket says (ip_append_data). A qdisc's ENOBUFS comes to nobody
        // without IP_RECVERR.
        Errno::AGAIN | Errno::NOBUFS => Ok(SendOutcome::WouldBlock),
        Errno::IO => Ok(SendOutcome::NoOffload),
        Errno::INVAL => Ok(SendOutcome::Invalid),
        Errno::MSGSIZE => Ok(SendOutcome::TooBig),
        // No socket, or memory that isn't ours. All others come from the destination, routes,
        // neighbours, devices and filters, and eBPF may return any: they concern this packet only.
        Errno::BADF | Errno::NOTSOCK | Errno::FAULT => Err(Error::System { step, errno }),
        _ => Ok(SendOutcome::Lost(errno)),
    }
}

/// Sends one message with sendmsg(2).
pub(crate) fn send_one(fd: BorrowedFd<'_>, message: &Transmit<'_>) -> Result<SendOutcome> {
    let mut slot = Slot::EMPTY;
    let mut header = empty_header().msg_hdr;
    let (name_len, control_len) = slot.fill(message);
    slot.point(&mut header, name_len, control_len);
    loop {
        // SAFETY: header points to `slot`, which is on this stack frame, and through it to
        // `message.payload`, which is borrowed for the whole call; the lengths are theirs, and
        // sendmsg only reads.
        let returned = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, FLAGS) };
        match check(i64::try_from(returned).unwrap_or(-1)) {
            Ok(_) => return Ok(SendOutcome::Sent(1)),
            Err(Errno::INTR) => {}
            Err(errno) => return outcome(errno, "sendmsg"),
        }
    }
}

const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Storage for sendmmsg(2), allocated once.
pub struct SendArena {
    headers: Box<[libc::mmsghdr]>,
    slots: Box<[Slot]>,
}

impl SendArena {
    /// Makes room for `capacity` messages a call (the kernel takes up to 1024).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            headers: vec![empty_header(); capacity].into(),
            slots: vec![Slot::EMPTY; capacity].into(),
        }
    }

    /// The most messages of a call.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn send<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        messages: impl IntoIterator<Item = Transmit<'a>>,
    ) -> Result<SendOutcome> {
        let mut count = 0;
        let places = self.headers.iter_mut().zip(self.slots.iter_mut());
        // The slots come first in the zip, so that no message is consumed without one.
        for ((header, slot), message) in places.zip(messages) {
            let (name_len, control_len) = slot.fill(&message);
            slot.point(&mut header.msg_hdr, name_len, control_len);
            count += 1;
        }
        if count == 0 {
            return Ok(SendOutcome::Sent(0));
        }
        loop {
            // SAFETY: the first `count` headers were just filled; each points to its slot, which
            // `self` owns and nothing moves, and through it to a payload that is borrowed for 'a,
            // longer than this call. sendmmsg writes nothing but msg_len in the headers.
            let returned = unsafe {
                libc::sendmmsg(fd.as_raw_fd(), self.headers.as_mut_ptr(), count, FLAGS as _)
            };
            match check(returned) {
                Ok(sent) => return Ok(SendOutcome::Sent(sent)),
                Err(Errno::INTR) => {}
                Err(errno) => return outcome(errno, "sendmmsg"),
            }
        }
    }
}

// SAFETY: the pointers in headers and slots are written anew by each call before the kernel reads
// them, and are never followed outside of it: between calls they are no more than stale numbers.
unsafe impl Send for SendArena {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_call_for_another_way_are_told_apart() {
        let step = "sendmsg";
        for (errno, expected) in [
            (Errno::AGAIN, Ok(SendOutcome::WouldBlock)),
            (Errno::IO, Ok(SendOutcome::NoOffload)),
            (Errno::INVAL, Ok(SendOutcome::Invalid)),
            (Errno::MSGSIZE, Ok(SendOutcome::TooBig)),
            (Errno::PERM, Ok(SendOutcome::Lost(Errno::PERM))),
            (
                Errno::AFNOSUPPORT,
                Ok(SendOutcome::Lost(Errno::AFNOSUPPORT)),
            ),
            (Errno::NOBUFS, Ok(SendOutcome::WouldBlock)),
            (
                Errno::BADF,
                Err(Error::System {
                    step,
                    errno: Errno::BADF,
                }),
            ),
        ] {
            assert_eq!(outcome(errno, step), expected);
        }
    }
}
