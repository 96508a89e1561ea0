//! The time that a provider of cryptography takes for a packet.

use esp_core::esp::suite::Suite;
use esp_dataplane::measure::seal_time;
use pyo3::prelude::*;

use crate::errors::{os_error, value_error};

/// Measures the nanoseconds a packet to seal `packets` packets of `size` bytes.
#[pyfunction]
pub(crate) fn measure_aead(
    py: Python<'_>,
    provider: &str,
    suite: &str,
    size: usize,
    packets: u32,
) -> PyResult<f64> {
    let suite = Suite::by_name(suite).ok_or_else(|| value_error("no such suite"))?;
    py.detach(|| seal_time(provider, suite, size, packets))
        .map_err(|error| os_error(&error))
}
