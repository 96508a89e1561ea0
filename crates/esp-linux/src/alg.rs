//! `AF_ALG`: the kernel's AEADs by sockets (Documentation/crypto/userspace-if.rst).

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::aio::{Read, Reads};
use crate::cmsg;
use crate::error::{Errno, Error, Result, Step, check};
use crate::message::empty_header;

/// Most requests of one key in flight.
pub const MAX_IN_FLIGHT: usize = 8;
/// Deadline of the kernel's answers: a driver that takes longer has lost the request.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

#[allow(clippy::cast_possible_truncation)] // 38
const AF_ALG: libc::sa_family_t = libc::AF_ALG as _;
const NONCE_LEN: usize = 12;
/// Bytes of `struct af_alg_iv`: length and nonce.
const IV_LEN: usize = size_of::<u32>() + NONCE_LEN;
const CONTROL_LEN: usize = 2 * cmsg::space(size_of::<u32>()) + cmsg::space(IV_LEN);
/// Control buffer with the kernel's alignment.
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Operation of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Encrypt a text; the answer is `ciphertext || ICV`.
    Seal,
    /// Decrypt `ciphertext || ICV`; the answer is the text.
    Open,
}

/// One request to the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Seal or open.
    pub operation: Operation,
    /// The nonce.
    pub nonce: &'a [u8; NONCE_LEN],
    /// The first bytes, authenticated and not encrypted.
    pub head: &'a [u8],
    /// The text behind `head`, with its ICV if it is opened.
    pub input: &'a [u8],
    /// Bytes of the AAD: `head`, and the text if nothing is encrypted.
    pub aad_len: usize,
}

/// Reason that there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// EBADMSG: the ICV doesn't hold.
    Forged,
    /// The kernel failed, or gave a wrong answer.
    Lost(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.errno() {
            Some(Errno::BADMSG) => Self::Forged,
            _ => Self::Lost(error),
        }
    }
}

/// A key in the kernel, until this is dropped, with its operation sockets: each has one request at
/// a time, for a request has one IV. They are opened on demand.
#[derive(Debug)]
pub struct AlgKey {
    bound: OwnedFd,
    icv_len: usize,
    sockets: Vec<Read>,
    /// Made when two requests are first in flight together.
    reads: Option<Reads<MAX_IN_FLIGHT>>,
    /// Number of sockets, from the front, with a request in flight.
    sent: usize,
}

impl AlgKey {
    /// Gives the kernel a key for an AEAD of this name, such as `gcm(aes)`; its nonce has 12 bytes.
    ///
    /// # Errors
    /// The error of the system call: EAFNOSUPPORT if it has no `AF_ALG`, ENOENT if it has no such
    /// AEAD, EPERM or EACCES if it may not be used, EINVAL for a key or an ICV of this length.
    pub fn new(algorithm: &str, key: &[u8], icv_len: usize) -> Result<Self> {
        let bound = bound_socket(algorithm)?;
        set_key(&bound, key).step("AF_ALG ALG_SET_KEY")?;
        set_icv_len(&bound, icv_len).step("AF_ALG ALG_SET_AEAD_AUTHSIZE")?;
        let mut key = Self {
            bound,
            icv_len,
            sockets: Vec::new(),
            reads: None,
            sent: 0,
        };
        key.open_socket()?;
        Ok(key)
    }

    /// Asks whether the kernel has an AEAD of this name with this ICV, without a key.
    ///
    /// # Errors
    /// As [`Self::new`], but for the key.
    pub fn probe(algorithm: &str, icv_len: usize) -> Result<()> {
        let bound = bound_socket(algorithm)?;
        set_icv_len(&bound, icv_len).step("AF_ALG ALG_SET_AEAD_AUTHSIZE")
    }

    fn open_socket(&mut self) -> Result<()> {
        let flags = libc::SOCK_CLOEXEC;
        let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: accept4 takes null for an address that nobody wants.
        let fd = unsafe { libc::accept4(self.bound.as_raw_fd(), address, length, flags) };
        check(fd).step("AF_ALG accept")?;
        self.sockets.push(Read {
            // SAFETY: the kernel has just made it, and nothing else has it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            buffer: Vec::new(),
            result: Ok(0),
        });
        Ok(())
    }

    /// True if another request can be sent before the answers are received.
    pub fn has_room(&mut self) -> bool {
        // If no more sockets can be opened, the open ones suffice.
        self.sent < self.sockets.len()
            || (self.sockets.len() < MAX_IN_FLIGHT && self.open_socket().is_ok())
    }

    /// Sends a request to the kernel; its bytes are copied.
    ///
    /// # Errors
    /// `Lost`, also if there is no room.
    pub fn send(&mut self, request: &Request<'_>) -> std::result::Result<(), Failure> {
        let no_room = Error::Argument("AF_ALG has no room for a request");
        let socket = self.sockets.get_mut(self.sent).ok_or(no_room)?;
        let answer_len = match request.operation {
            Operation::Seal => Some(request.input.len() + self.icv_len),
            Operation::Open => request.input.len().checked_sub(self.icv_len),
        };
        let answer_len = answer_len.ok_or(Failure::Forged)?;
        send(&socket.fd, request)?;
        // Exactly the answer's length: for more, the kernel would wait.
        socket.buffer.resize(request.head.len() + answer_len, 0);
        self.sent += 1;
        Ok(())
    }

    /// Waits for the answers to all requests, in their order; each begins with its `head`.
    pub fn receive(&mut self, mut each: impl FnMut(std::result::Result<&[u8], Failure>)) {
        let waiting = &mut self.sockets[..std::mem::take(&mut self.sent)];
        if waiting.len() > 1 && self.reads.is_none() {
            self.reads = Reads::new().ok();
        }
        match &mut self.reads {
            Some(reads) if waiting.len() > 1 => reads.run(waiting, READ_TIMEOUT),
            // A single read, or no asynchronous I/O (left): one after the other.
            _ => waiting.iter_mut().for_each(receive),
        }
        for read in waiting {
            each(match read.result {
                Ok(length) if length == read.buffer.len() => Ok(&read.buffer),
                Ok(_) => Err(Error::Argument("AF_ALG gave a short answer").into()),
                Err(errno) => Err(Error::System {
                    step: "AF_ALG recvmsg",
                    errno,
                }
                .into()),
            });
        }
    }
}

/// The kernel's name and release, such as `Linux 6.1.0`.
#[must_use]
pub fn release() -> String {
    let kernel = rustix::system::uname();
    format!(
        "{} {}",
        kernel.sysname().to_string_lossy(),
        kernel.release().to_string_lossy()
    )
}

fn receive(read: &mut Read) {
    let flags = rustix::net::RecvFlags::DONTWAIT;
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recv(&read.fd, read.buffer.as_mut_slice(), flags)
    });
    read.result = received.map(|(length, _)| length);
}

fn bound_socket(algorithm: &str) -> Result<OwnedFd> {
    let family = AddressFamily::from_raw(AF_ALG);
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let bound = rustix::net::socket_with(family, kind, flags, None).step("AF_ALG socket")?;
    bind(&bound, algorithm).step("AF_ALG bind")?;
    Ok(bound)
}

fn bind(fd: &OwnedFd, algorithm: &str) -> rustix::io::Result<()> {
    // SAFETY: sockaddr_alg is plain C data: integers, for all of which zero is a value.
    let mut address: libc::sockaddr_alg = unsafe { std::mem::zeroed() };
    address.salg_family = AF_ALG;
    address.salg_type[..4].copy_from_slice(b"aead");
    // The last byte stays zero.
    let name = algorithm.as_bytes();
    if name.len() >= address.salg_name.len() {
        return Err(Errno::NOENT);
    }
    address.salg_name[..name.len()].copy_from_slice(name);
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(|_| Errno::INVAL)?;
    // SAFETY: the kernel reads `length` bytes, which is all of the address.
    let returned = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    check(returned).map(drop)
}

fn set_key(fd: &OwnedFd, key: &[u8]) -> rustix::io::Result<()> {
    let length = libc::socklen_t::try_from(key.len()).map_err(|_| Errno::INVAL)?;
    let (fd, value) = (fd.as_raw_fd(), key.as_ptr().cast());
    // SAFETY: the kernel reads `length` bytes, which is all of the key.
    let returned = unsafe { libc::setsockopt(fd, libc::SOL_ALG, libc::ALG_SET_KEY, value, length) };
    check(returned).map(drop)
}

fn set_icv_len(fd: &OwnedFd, icv_len: usize) -> rustix::io::Result<()> {
    let length = libc::socklen_t::try_from(icv_len).map_err(|_| Errno::INVAL)?;
    let (fd, none) = (fd.as_raw_fd(), std::ptr::null());
    // SAFETY: of this option the kernel takes the length itself, and reads nothing.
    let returned =
        unsafe { libc::setsockopt(fd, libc::SOL_ALG, libc::ALG_SET_AEAD_AUTHSIZE, none, length) };
    check(returned).map(drop)
}

fn send(fd: &OwnedFd, request: &Request<'_>) -> Result<()> {
    let operation = match request.operation {
        Operation::Seal => libc::ALG_OP_ENCRYPT,
        Operation::Open => libc::ALG_OP_DECRYPT,
    };
    let mut iv = [0; IV_LEN];
    iv[..4].copy_from_slice(&12u32.to_ne_bytes());
    iv[4..].copy_from_slice(request.nonce);
    let aad_len = u32::try_from(request.aad_len)
        .unwrap_or(u32::MAX)
        .to_ne_bytes();
    let parts: [(libc::c_int, &[u8]); 3] = [
        (libc::ALG_SET_OP, &operation.to_ne_bytes()),
        (libc::ALG_SET_IV, &iv),
        (libc::ALG_SET_AEAD_ASSOCLEN, &aad_len),
    ];
    let mut control = Control([0; CONTROL_LEN]);
    let mut end = 0;
    for (kind, data) in parts {
        end = cmsg::push(&mut control.0, end, libc::SOL_ALG, kind, data).unwrap_or(end);
    }
    let mut bytes = [request.head, request.input].map(|part| libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    });
    let mut header = empty_header().msg_hdr;
    header.msg_iov = bytes.as_mut_ptr();
    header.msg_iovlen = bytes.len() as _;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = end as _;
    let sent = rustix::io::retry_on_intr(|| {
        // SAFETY: header points to `control` and `bytes`, which are on this stack frame, and through
        // these to the request's bytes, which are borrowed for the whole call; the lengths are
        // theirs, and sendmsg only reads.
        let returned = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, FLAGS) };
        check(i64::try_from(returned).unwrap_or(-1))
    });
    if sent.step("AF_ALG sendmsg")? == request.head.len() + request.input.len() {
        Ok(())
    } else {
        Err(Error::Argument("AF_ALG took a part of a packet"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_kernel_can_not_have_is_one_that_it_has_not() {
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(bind(&fd, &"x".repeat(64)), Err(Errno::NOENT));
    }
}
