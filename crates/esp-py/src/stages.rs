//! The workers' time by stage.

use std::collections::HashMap;

use esp_dataplane::stages;
use pyo3::prelude::*;

/// One worker's sums of the profiles so far.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct StageTimes(stages::StageTimes);

impl From<stages::StageTimes> for StageTimes {
    fn from(times: stages::StageTimes) -> Self {
        Self(times)
    }
}

#[pymethods]
impl StageTimes {
    #[getter]
    fn ns(&self) -> HashMap<&'static str, u64> {
        let stages = stages::Stage::ALL.iter().zip(self.0.ns);
        stages.map(|((_, name), ns)| (*name, ns)).collect()
    }

    #[getter]
    const fn packets_out(&self) -> u64 {
        self.0.packets_out
    }

    #[getter]
    const fn packets_in(&self) -> u64 {
        self.0.packets_in
    }

    #[getter]
    const fn clock_reads(&self) -> u64 {
        self.0.clock_reads
    }
}

/// The nanoseconds that one read of the stages' clock takes.
#[pyfunction]
pub(crate) fn stage_clock_ns() -> f64 {
    stages::clock_cost().as_secs_f64() * 1e9
}
