//! Errors of the crates as Python's exceptions.

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

/// Makes a `ValueError` with the text of `error`.
pub(crate) fn value_error(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Makes an `OSError` of what the kernel refused, and a `ValueError` of anything else.
pub(crate) fn os_error(error: &esp_linux::Error) -> PyErr {
    match error.errno() {
        Some(errno) => PyOSError::new_err((errno.raw_os_error(), error.to_string())),
        None => value_error(error),
    }
}
