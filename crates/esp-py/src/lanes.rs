//! The lanes of tunnels with several SAs.

use esp_dataplane::engine;
use pyo3::prelude::*;

/// State of the lanes' steering.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct LaneStatus(engine::LaneStatus);

impl From<engine::LaneStatus> for LaneStatus {
    fn from(status: engine::LaneStatus) -> Self {
        Self(status)
    }
}

#[pymethods]
impl LaneStatus {
    #[getter]
    const fn steered(&self) -> bool {
        self.0.steered
    }

    #[getter]
    const fn listed(&self) -> usize {
        self.0.listed
    }

    #[getter]
    const fn laned(&self) -> usize {
        self.0.laned
    }

    #[getter]
    fn refused(&self) -> Option<&str> {
        let why = self.0.refused.as_str();
        (!why.is_empty()).then_some(why)
    }

    #[getter]
    const fn limit(&self) -> usize {
        self.0.limit
    }

    #[getter]
    const fn priority(&self) -> Option<i32> {
        self.0.priority
    }

    #[getter]
    fn priority_refused(&self) -> Option<&str> {
        let why = self.0.priority_refused.as_str();
        (!why.is_empty()).then_some(why)
    }
}
