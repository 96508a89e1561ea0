//! Random bytes from the kernel.

use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Result, Step};

/// Fills at most 256 bytes, which the kernel gives whole.
///
/// # Errors
/// The error of the system call.
pub fn fill(bytes: &mut [u8]) -> Result<()> {
    getrandom(bytes, GetRandomFlags::empty())
        .step("getrandom")
        .map(drop)
}
