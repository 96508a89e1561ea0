//! Counters, and the state of offloads and latency requests.

use std::collections::BTreeMap;
use std::net::IpAddr;

use esp_core::counters;
use esp_dataplane::engine;
use pyo3::prelude::*;

/// Direction of an SA or a packet, seen from this gateway.
#[pyclass(
    module = "esp_gw_core",
    frozen,
    eq,
    hash,
    rename_all = "SCREAMING_SNAKE_CASE"
)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    Outbound,
    Inbound,
}

fn drops(counters: &counters::Counters) -> BTreeMap<&'static str, u64> {
    let drops = counters.drops();
    drops
        .map(|(reason, count)| (reason.name(), count))
        .collect()
}

/// Counters outside SAs: NAT keepalives as `packets`, and packets dropped before an SA was found.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct Counters(pub(crate) counters::Counters);

#[pymethods]
impl Counters {
    #[getter]
    fn packets(&self) -> u64 {
        self.0.packets
    }

    #[getter]
    fn bytes(&self) -> u64 {
        self.0.bytes
    }

    #[getter]
    fn drops(&self) -> BTreeMap<&'static str, u64> {
        drops(&self.0)
    }
}

/// Counters of one SA, with its sequence numbers and its peer's address.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct SaCounters {
    #[pyo3(get)]
    name: String,
    #[pyo3(get)]
    direction: Direction,
    counters: engine::SaCounters,
}

impl SaCounters {
    pub(crate) fn new(name: &str, outbound: bool, counters: engine::SaCounters) -> Self {
        Self {
            name: name.into(),
            direction: if outbound {
                Direction::Outbound
            } else {
                Direction::Inbound
            },
            counters,
        }
    }
}

#[pymethods]
impl SaCounters {
    #[getter]
    fn packets(&self) -> u64 {
        self.counters.counters.packets
    }

    #[getter]
    fn bytes(&self) -> u64 {
        self.counters.counters.bytes
    }

    #[getter]
    fn drops(&self) -> BTreeMap<&'static str, u64> {
        drops(&self.counters.counters)
    }

    #[getter]
    fn seq(&self) -> u128 {
        self.counters.seq
    }

    #[getter]
    fn lease_end(&self) -> u128 {
        self.counters.lease_end
    }

    #[getter]
    fn remote(&self) -> IpAddr {
        self.counters.peer.ip()
    }

    #[getter]
    fn remote_port(&self) -> u16 {
        self.counters.peer.port()
    }
}

/// State of the workers' requests for a short wake-up latency; `refused` is the errno of one.
#[pyclass(module = "esp_gw_core", frozen, get_all)]
pub(crate) struct LatencyStatus {
    pub(crate) held: bool,
    pub(crate) refused: Option<i32>,
}

/// State of one offload; `why` is the reason if it is unused, or used only in part.
#[pyclass(module = "esp_gw_core", frozen, get_all)]
pub(crate) struct OffloadStatus {
    in_use: bool,
    why: String,
}

impl From<engine::OffloadStatus> for OffloadStatus {
    fn from(status: engine::OffloadStatus) -> Self {
        Self {
            in_use: status.in_use,
            why: status.why,
        }
    }
}
