//! Several reads at once by Linux's asynchronous I/O (`io_submit`), with one wait for all.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use crate::error::{Errno, check};

/// `IOCB_CMD_PREAD` of `linux/aio_abi.h`.
const PREAD: u16 = 0;

/// `struct io_event` of `linux/aio_abi.h`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// One read: file, buffer and result.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) fd: OwnedFd,
    pub(crate) buffer: Vec<u8>,
    pub(crate) result: Result<usize, Errno>,
}

/// No context; the kernel's are addresses.
const NONE: libc::c_ulong = 0;

/// The kernel's context for at most `N` reads at once.
#[derive(Debug)]
pub(crate) struct Reads<const N: usize>(libc::c_ulong);

impl<const N: usize> Reads<N> {
    /// Makes a context.
    ///
    /// # Errors
    /// The error of the system call: EAGAIN over fs.aio-max-nr, ENOSYS, EPERM.
    pub(crate) fn new() -> Result<Self, Errno> {
        let mut context: libc::c_ulong = NONE;
        // SAFETY: io_setup writes one aio_context_t, which is an unsigned long, into `context`.
        let returned = unsafe { libc::syscall(libc::SYS_io_setup, N, &raw mut context) };
        check(returned).map(|_| Self(context))
    }

    /// Runs at most `N` reads and waits until all have ended, at most for `limit`; each buffer
    /// is filled from its beginning.
    ///
    /// A read without an answer by then has the result ETIME and an empty buffer, and no later read
    /// is begun.
    pub(crate) fn run(&mut self, reads: &mut [Read], limit: Duration) {
        let count = reads.len().min(N);
        // SAFETY: iocb is plain C data: integers, for all of which zero is a value.
        let mut requests: [libc::iocb; N] = [const { unsafe { std::mem::zeroed() } }; N];
        let mut pointers = [std::ptr::null_mut::<libc::iocb>(); N];
        for (index, (request, read)) in requests.iter_mut().zip(&mut *reads).enumerate() {
            read.result = Err(Errno::TIME);
            request.aio_data = index as u64;
            request.aio_lio_opcode = PREAD;
            request.aio_fildes = read.fd.as_raw_fd().unsigned_abs();
            request.aio_buf = read.buffer.as_mut_ptr().expose_provenance() as u64;
            request.aio_nbytes = read.buffer.len() as u64;
            pointers[index] = request;
        }
        let submitted = self.submit(&mut pointers[..count], reads);
        self.wait(submitted, reads, limit);
        for read in reads.iter_mut().take(submitted) {
            if read.result == Err(Errno::TIME) {
                // The kernel may still write there, so it never becomes anything else; and to
                // destroy the context would be to wait for it.
                std::mem::forget(std::mem::take(&mut read.buffer));
                self.0 = NONE;
            }
        }
    }

    /// Number of reads, from the front, that the kernel has begun.
    fn submit(&self, pointers: &mut [*mut libc::iocb], reads: &mut [Read]) -> usize {
        let mut submitted = 0;
        while submitted < pointers.len() {
            let rest = &mut pointers[submitted..];
            // SAFETY: `rest` holds pointers to whole iocbs, which the kernel has copied when it
            // returns. Each names a buffer and its length that `reads` owns and nothing touches
            // until the read has ended, or that is given up for good where it does not end.
            let returned = unsafe {
                libc::syscall(libc::SYS_io_submit, self.0, rest.len(), rest.as_mut_ptr())
            };
            match check(returned) {
                Ok(0) => break,
                Ok(more) => submitted += more,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    for read in &mut reads[submitted..] {
                        read.result = Err(errno);
                    }
                    break;
                }
            }
        }
        submitted
    }

    fn wait(&self, mut left: usize, reads: &mut [Read], limit: Duration) {
        let mut events = [Event::default(); N];
        while left > 0 {
            let mut timeout = libc::timespec {
                tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
                tv_nsec: limit.subsec_nanos().into(),
            };
            // SAFETY: there is room for `left` events, at most N, each of the kernel's layout;
            // `timeout` is read only.
            let returned = unsafe {
                let (room, until) = (events.as_mut_ptr(), &raw mut timeout);
                libc::syscall(libc::SYS_io_getevents, self.0, left, left, room, until)
            };
            let ended = match check(returned) {
                Err(Errno::INTR) => continue,
                Ok(0) | Err(_) => return,
                Ok(ended) => ended,
            };
            for event in &events[..ended.min(N)] {
                let read = usize::try_from(event.data).ok();
                if let Some(read) = read.and_then(|index| reads.get_mut(index)) {
                    read.result = usize::try_from(event.res).map_err(|_| errno_of(event.res));
                }
            }
            left = left.saturating_sub(ended);
        }
    }
}

impl<const N: usize> Drop for Reads<N> {
    fn drop(&mut self) {
        if self.0 != NONE {
            // SAFETY: the context is this one's own, and every read of it has ended.
            unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
        }
    }
}

fn errno_of(negative: i64) -> Errno {
    let errno = i32::try_from(negative.unsigned_abs()).unwrap_or(libc::EIO);
    Errno::from_raw_os_error(errno)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn read(file: &File, len: usize) -> Read {
        Read {
            fd: file.try_clone().unwrap().into(),
            buffer: vec![0; len],
            result: Ok(0),
        }
    }

    #[test]
    fn each_read_has_its_own_bytes_or_its_own_error() {
        let memory = rustix::fs::memfd_create("aio", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut data = File::from(memory);
        data.write_all(b"0123456789").unwrap();
        let write_only = File::create("/dev/null").unwrap();
        let mut reads = [read(&data, 4), read(&write_only, 4), read(&data, 20)];
        let mut context = Reads::<4>::new().unwrap();
        for _ in 0..3 {
            context.run(&mut reads, PATIENCE);
            assert_eq!(reads[0].result, Ok(4));
            assert_eq!(reads[0].buffer, b"0123");
            // The kernel refuses the second read on submission and accepts none behind it.
            assert_eq!(reads[1].result, Err(Errno::BADF));
            assert_eq!(reads[2].result, Err(Errno::BADF));
        }
        reads.swap(1, 2);
        context.run(&mut reads, PATIENCE);
        assert_eq!(reads[1].result, Ok(10));
        assert_eq!(&reads[1].buffer[..10], b"0123456789");
    }
}
