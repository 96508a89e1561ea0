//! Batched receiving by recvmmsg(2) over storage allocated once.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::cmsg;
use crate::error::{Errno, Error, Result, check};
use crate::message::{CONTROL_LEN, Slot, empty_header};
use crate::sockaddr::Name;

/// Metadata of one received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecvMeta {
    /// Bytes that were written to the buffer.
    pub len: usize,
    /// Bytes of each datagram in the buffer but the last, which may be shorter (UDP GRO); equals
    /// `len` for one datagram.
    pub segment_size: usize,
    /// The sender; of raw sockets with port 0.
    pub src: SocketAddr,
    /// The TOS byte or traffic class: DSCP and ECN.
    pub tos: u8,
    /// True if the message was larger than the buffer; the rest is lost.
    pub truncated: bool,
}

/// Storage for recvmmsg(2), allocated once.
pub struct RecvArena {
    headers: Box<[libc::mmsghdr]>,
    slots: Box<[Slot]>,
    metas: Vec<RecvMeta>,
}

impl RecvArena {
    /// Makes room for `capacity` messages a call.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            headers: vec![empty_header(); capacity].into(),
            slots: vec![Slot::EMPTY; capacity].into(),
            metas: Vec::with_capacity(capacity),
        }
    }

    /// Most messages of a call.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Metadata of the last call's message in the buffer of this index.
    #[must_use]
    pub fn meta(&self, index: usize) -> Option<RecvMeta> {
        self.metas.get(index).copied()
    }

    pub(crate) fn recv<'b>(
        &mut self,
        fd: BorrowedFd<'_>,
        buffers: impl IntoIterator<Item = &'b mut [u8]>,
    ) -> Result<&[RecvMeta]> {
        self.metas.clear();
        let mut count = 0;
        let places = self.headers.iter_mut().zip(self.slots.iter_mut());
        for ((header, slot), buffer) in places.zip(buffers) {
            slot.iov.iov_base = buffer.as_mut_ptr().cast();
            slot.iov.iov_len = buffer.len();
            slot.point(&mut header.msg_hdr, Name::LEN, CONTROL_LEN);
            count += 1;
        }
        if count == 0 {
            return Ok(&self.metas);
        }
        let received = loop {
            // SAFETY: the first `count` headers were just filled; each points to its slot, which
            // `self` owns and nothing moves, and through it to a buffer of its own, borrowed
            // mutably for 'b, longer than this call. All lengths are those of what they belong to.
            let returned = unsafe {
                libc::recvmmsg(
                    fd.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    count,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            };
            match check(returned) {
                Ok(received) => break received,
                Err(Errno::AGAIN) => break 0,
                // INTR: retry. The others are asynchronous errors of earlier sends, reported once.
                Err(
                    Errno::INTR
                    | Errno::CONNREFUSED
                    | Errno::HOSTUNREACH
                    | Errno::NETUNREACH
                    | Errno::MSGSIZE,
                ) => {}
                Err(errno) => {
                    let step = "recvmmsg";
                    return Err(Error::System { step, errno });
                }
            }
        };
        for (header, slot) in self.headers.iter().zip(&self.slots).take(received) {
            self.metas.push(meta(header, slot));
        }
        Ok(&self.metas)
    }
}

#[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)] // msghdr's types differ by libc
fn meta(header: &libc::mmsghdr, slot: &Slot) -> RecvMeta {
    let len = header.msg_len as usize;
    let control_len = header.msg_hdr.msg_controllen as usize;
    let mut meta = RecvMeta {
        len,
        segment_size: len,
        src: slot
            .name
            .get(header.msg_hdr.msg_namelen as usize)
            .unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0))),
        tos: 0,
        truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
    };
    for message in cmsg::Messages(slot.control.0.get(..control_len).unwrap_or(&[])) {
        match message {
            (libc::SOL_UDP, libc::UDP_GRO, &[a, b, c, d]) => {
                let size = usize::try_from(i32::from_ne_bytes([a, b, c, d])).unwrap_or(0);
                meta.segment_size = if size == 0 { len } else { size.min(len) };
            }
            (libc::IPPROTO_IP, libc::IP_TOS, &[tos]) => meta.tos = tos,
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &[a, b, c, d]) => {
                meta.tos = u8::try_from(i32::from_ne_bytes([a, b, c, d])).unwrap_or(0);
            }
            _ => {}
        }
    }
    meta
}

// SAFETY: the pointers in headers and slots are written anew by each call before the kernel reads
// them, and are never followed outside of it: between calls they are no more than stale numbers.
unsafe impl Send for RecvArena {}
