//! The one error type of the system layer.

use std::fmt;

pub use rustix::io::Errno;

/// The result of a function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error that the caller can't continue from; normal events are outcomes, not errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// The kernel refused a step.
    System {
        /// The call or option that failed, in the kernel's words.
        step: &'static str,
        /// The errno.
        errno: Errno,
    },
    /// An invalid argument, described in one sentence.
    Argument(&'static str),
}

impl Error {
    /// The kernel's errno, if a system call failed.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::System { errno, .. } => Some(*errno),
            Self::Argument(_) => None,
        }
    }
}

impl Error {
    /// The call, option or file that the kernel refused.
    #[must_use]
    pub fn step(&self) -> Option<&'static str> {
        match self {
            Self::System { step, .. } => Some(step),
            Self::Argument(_) => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System { step, errno } => write!(f, "{step}: {errno}"),
            Self::Argument(sentence) => f.write_str(sentence),
        }
    }
}

impl std::error::Error for Error {}

/// Names the step that a bare errno came from.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T>;
}

impl<T> Step<T> for rustix::io::Result<T> {
    fn step(self, step: &'static str) -> Result<T> {
        self.map_err(|errno| Error::System { step, errno })
    }
}

/// Converts the return value of a libc call; a negative one becomes errno.
pub(crate) fn check(returned: impl Into<i64>) -> rustix::io::Result<usize> {
    usize::try_from(returned.into())
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
