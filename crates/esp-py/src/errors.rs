//! Errors of the crates as Python's exceptions.

use esp_dataplane::engine::Refused;
use pyo3::create_exception;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

create_exception!(
    esp_gw_core,
    SaRefusedError,
    PyValueError,
    "An SA that can't be installed: its arguments are the SA's name and the reason."
);

/// Makes a `ValueError` with the text of `error`.
pub(crate) fn value_error(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Makes an `OSError` of a refusal by the kernel, with the file if a file was to be opened, and a
/// `ValueError` of anything else.
pub(crate) fn os_error(error: &esp_linux::Error) -> PyErr {
    match error.errno() {
        Some(errno) => {
            let file = error.step().filter(|step| step.starts_with('/'));
            PyOSError::new_err((errno.raw_os_error(), error.to_string(), file))
        }
        None => value_error(error),
    }
}

/// Makes an [`SaRefusedError`].
pub(crate) fn sa_refused(refused: Refused) -> PyErr {
    SaRefusedError::new_err((refused.sa.to_string(), refused.why.to_string()))
}
