//! The settings of an engine, and its outer sockets.

use std::net::IpAddr;
use std::time::Duration;

use esp_core::esp::sa;
use esp_core::esp::suite::Suite;
use esp_core::provider::Choice;
use esp_dataplane::{engine, tables};
use pyo3::prelude::*;

use crate::errors::value_error;

/// Encapsulation of ESP.
#[pyclass(
    module = "esp_gw_core",
    frozen,
    eq,
    hash,
    rename_all = "SCREAMING_SNAKE_CASE"
)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Encapsulation {
    Udp,
    None,
}

impl From<Encapsulation> for sa::Encapsulation {
    fn from(encapsulation: Encapsulation) -> Self {
        match encapsulation {
            Encapsulation::Udp => Self::Udp,
            Encapsulation::None => Self::None,
        }
    }
}

/// One outer socket of the gateway.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct OuterSocket(pub(crate) tables::OuterSocket);

#[pymethods]
impl OuterSocket {
    #[new]
    fn new(address: IpAddr, encapsulation: Encapsulation) -> Self {
        let encapsulation = encapsulation.into();
        Self(tables::OuterSocket {
            address,
            encapsulation,
        })
    }
}

/// The offloads that are wanted.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct Offloads(engine::Offloads);

#[pymethods]
impl Offloads {
    #[new]
    #[pyo3(signature = (*, tso, uso, udp_gso, udp_gro, merge))]
    #[allow(clippy::fn_params_excessive_bools)] // by name alone
    fn new(tso: bool, uso: bool, udp_gso: bool, udp_gro: bool, merge: bool) -> Self {
        let mut wanted = engine::Offloads::empty();
        wanted.set(engine::Offloads::TSO, tso);
        wanted.set(engine::Offloads::USO, uso);
        wanted.set(engine::Offloads::UDP_GSO, udp_gso);
        wanted.set(engine::Offloads::UDP_GRO, udp_gro);
        wanted.set(engine::Offloads::MERGE, merge);
        Self(wanted)
    }
}

/// The settings of an engine, fixed when it starts.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct Settings(pub(crate) engine::Settings);

#[pymethods]
impl Settings {
    #[new]
    #[pyo3(signature = (*, interface, port, fwmark, min_mtu, workers, pin_workers, low_latency_ms,
                        provider, af_alg, offloads))]
    #[allow(clippy::too_many_arguments)] // by name alone
    fn new(
        interface: String,
        port: u16,
        fwmark: u32,
        min_mtu: usize,
        workers: Option<usize>,
        pin_workers: bool,
        low_latency_ms: Option<u64>,
        provider: &str,
        af_alg: Vec<String>,
        offloads: &Offloads,
    ) -> PyResult<Self> {
        let af_alg = af_alg.iter().map(|name| {
            Suite::by_name(name).ok_or_else(|| value_error(format!("no suite {name}")))
        });
        Ok(Self(engine::Settings {
            interface,
            port,
            fwmark,
            min_mtu,
            workers,
            pin_workers,
            low_latency: low_latency_ms.map(Duration::from_millis),
            provider: Choice::by_name(provider)
                .ok_or_else(|| value_error(format!("this build has no provider {provider}")))?,
            af_alg: af_alg.collect::<PyResult<_>>()?,
            offloads: offloads.0,
        }))
    }
}
