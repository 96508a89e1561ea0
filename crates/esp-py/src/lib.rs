//! Python bindings of the native data plane: typed values in, typed values out, no decisions.
//!
//! The classes are described in `esp_gw_core.pyi`.

#![forbid(unsafe_code)]
#![allow(clippy::needless_pass_by_value)] // an argument from Python is the function's own

mod counters;
mod engine;
mod errors;
mod events;
mod lanes;
mod measure;
mod policy;
mod sa;
mod samples;
mod settings;
mod stages;

use esp_core::provider::aes_path;
use pyo3::prelude::*;

/// The native data plane of `esp_gw`.
#[pymodule]
fn esp_gw_core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("aes_path", aes_path())?;
    module.add_function(wrap_pyfunction!(measure::measure_aead, module)?)?;
    module.add_function(wrap_pyfunction!(stages::stage_clock_ns, module)?)?;
    module.add(
        "SaRefusedError",
        module.py().get_type::<errors::SaRefusedError>(),
    )?;
    module.add_class::<engine::NativeEngine>()?;
    module.add_class::<settings::Encapsulation>()?;
    module.add_class::<settings::Offloads>()?;
    module.add_class::<settings::OuterSocket>()?;
    module.add_class::<settings::Settings>()?;
    module.add_class::<policy::Policy>()?;
    module.add_class::<policy::PolicyAction>()?;
    module.add_class::<policy::PortRange>()?;
    module.add_class::<policy::Selector>()?;
    module.add_class::<sa::InboundSa>()?;
    module.add_class::<sa::Lease>()?;
    module.add_class::<sa::Mode>()?;
    module.add_class::<sa::OutboundSa>()?;
    module.add_class::<sa::ReplacedSa>()?;
    module.add_class::<sa::Sa>()?;
    module.add_class::<counters::Counters>()?;
    module.add_class::<counters::Direction>()?;
    module.add_class::<counters::LatencyStatus>()?;
    module.add_class::<counters::OffloadStatus>()?;
    module.add_class::<counters::SaCounters>()?;
    module.add_class::<lanes::LaneStatus>()?;
    module.add_class::<samples::Opening>()?;
    module.add_class::<samples::Refused>()?;
    module.add_class::<stages::StageTimes>()?;
    events::add_classes(module)
}
