//! CPU affinity: allowed processors, and pinning of a thread.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::error::{Error, Result, Step};

/// The processors that the calling thread may use, in ascending order.
///
/// # Errors
/// The error of the system call.
pub fn allowed() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None).step("sched_getaffinity")?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect())
}

/// Lets the calling thread run on one processor only.
///
/// # Errors
/// The error of the system call: EINVAL if there is no such processor or it isn't allowed.
pub fn pin_current_thread(cpu: usize) -> Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(Error::Argument("there is no processor of that number"));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).step("sched_setaffinity")
}
