//! The nice value of a thread.

use rustix::process::{getpriority_process, setpriority_process};

use crate::error::{Result, Step};

/// The nice value of the calling thread: -20 to 19, the lowest runs first.
///
/// # Errors
/// The error of the system call.
pub fn nice() -> Result<i32> {
    getpriority_process(None).step("getpriority")
}

/// Gives the calling thread a nice value; other threads of the process keep theirs (sched(7)).
///
/// # Errors
/// The error of the system call: EACCES for a lower value than `RLIMIT_NICE` allows without
/// `CAP_SYS_NICE`.
pub fn set_nice(nice: i32) -> Result<()> {
    setpriority_process(None, nice).step("setpriority")
}
