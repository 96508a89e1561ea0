//! Requests for a short wake-up latency of idle processors
//! (PM `QoS`, `Documentation/power/pm_qos_interface.rst`).

use std::fs::File;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

use crate::error::{Error, Result, Step};

/// The device that takes the requests.
pub const DEVICE: &str = "/dev/cpu_dma_latency";
/// No time to wake up, in microseconds.
const NONE: i32 = 0;
/// Asks for nothing: `PM_QOS_CPU_LATENCY_DEFAULT_VALUE`, 2,000 s.
const ANY: i32 = 2_000 * 1_000_000;

/// One request. The kernel follows the smallest of all, and drops this one when its file is closed,
/// which a killed process does, too.
#[derive(Debug)]
pub struct LatencyRequest(File);

impl LatencyRequest {
    /// Opens a request that asks for nothing yet.
    ///
    /// # Errors
    /// The error of the system call: EACCES for a user without the device, ENOENT for a kernel
    /// without idle states, EPERM from a cgroup, ENXIO for a FIFO.
    pub fn open(device: impl AsRef<Path>) -> Result<Self> {
        // A FIFO in its place would let the start wait for a reader.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open(device.as_ref(), flags, Mode::empty()).step("open")?;
        Ok(Self(file.into()))
    }

    /// Keeps the processors out of every idle state that takes time to leave.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn hold(&self) -> Result<()> {
        self.write(NONE)
    }

    /// Asks for nothing any more.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn release(&self) -> Result<()> {
        self.write(ANY)
    }

    fn write(&self, microseconds: i32) -> Result<()> {
        match rustix::io::write(&self.0, &microseconds.to_ne_bytes()) {
            Ok(4) => Ok(()),
            Ok(_) => Err(Error::Argument(
                "the latency device took a part of a request",
            )),
            Err(errno) => Err(errno).step("write"),
        }
    }
}
