//! `msghdr` of one message: address, bytes, control messages.

use std::net::SocketAddr;

use crate::cmsg;
use crate::sockaddr::Name;

/// Room for the two control messages of a datagram, each of up to one int: TOS and segment size.
pub(crate) const CONTROL_LEN: usize = 2 * cmsg::space(size_of::<i32>());

#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control(pub(crate) [u8; CONTROL_LEN]);

/// One message to send: a datagram, or with `segment_size` a batch of datagrams (UDP GSO).
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    /// The destination; raw sockets ignore the port.
    pub dst: SocketAddr,
    /// The bytes after the UDP or IP header.
    pub payload: &'a [u8],
    /// Bytes of each datagram but the last, which may be shorter; 0 or `payload.len()` or more: one
    /// datagram. UDP only.
    pub segment_size: u16,
    /// The TOS byte or traffic class: DSCP and ECN.
    pub tos: u8,
}

impl Transmit<'_> {
    /// True for more than one datagram.
    #[must_use]
    pub fn is_segmented(&self) -> bool {
        self.segment_size != 0 && usize::from(self.segment_size) < self.payload.len()
    }
}

/// Storage that the `msghdr` of one message points to, without the payload.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) iov: libc::iovec,
    pub(crate) control: Control,
    pub(crate) name: Name,
}

impl Slot {
    pub(crate) const EMPTY: Self = Self {
        iov: libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        },
        control: Control([0; CONTROL_LEN]),
        name: Name::EMPTY,
    };

    /// Writes the address and control messages and returns their lengths.
    pub(crate) fn fill(&mut self, message: &Transmit<'_>) -> (usize, usize) {
        self.iov.iov_base = message.payload.as_ptr().cast_mut().cast();
        self.iov.iov_len = message.payload.len();
        let mut end = 0;
        let mut push = |level, kind, data: &[u8]| {
            end = cmsg::push(&mut self.control.0, end, level, kind, data).unwrap_or(end);
        };
        if message.tos != 0 {
            let (level, kind) = match message.dst {
                SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            push(level, kind, &i32::from(message.tos).to_ne_bytes());
        }
        if message.is_segmented() {
            let size = message.segment_size.to_ne_bytes();
            push(libc::SOL_UDP, libc::UDP_SEGMENT, &size);
        }
        (self.name.set(message.dst), end)
    }

    /// Makes `header` point to this slot, which must not move afterwards.
    #[allow(clippy::cast_possible_truncation)] // msghdr's types differ by libc; lengths are small
    pub(crate) fn point(&mut self, header: &mut libc::msghdr, name_len: usize, control_len: usize) {
        header.msg_name = self.name.as_mut_ptr().cast();
        header.msg_namelen = name_len as _;
        header.msg_iov = &raw mut self.iov;
        header.msg_iovlen = 1;
        header.msg_control = self.control.0.as_mut_ptr().cast();
        header.msg_controllen = control_len as _;
        header.msg_flags = 0;
    }
}

pub(crate) fn empty_header() -> libc::mmsghdr {
    // SAFETY: mmsghdr is plain C data: integers and pointers, for all of which zero is a value.
    unsafe { std::mem::zeroed() }
}
