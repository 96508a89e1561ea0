//! Samples of refused packets and of openings.

use std::net::{IpAddr, SocketAddr};

use esp_dataplane::samples;
use pyo3::prelude::*;

/// A packet that was dropped.
#[pyclass(module = "esp_gw_core", frozen, get_all)]
pub(crate) struct Refused {
    reason: &'static str,
    sa: Option<String>,
    source: IpAddr,
    source_port: u16,
    destination: Option<IpAddr>,
    destination_port: u16,
    protocol: u8,
    spi: Option<u32>,
}

impl From<samples::Refused> for Refused {
    fn from(found: samples::Refused) -> Self {
        Self {
            reason: found.reason.name(),
            sa: found.sa.map(|sa| sa.to_string()),
            source: found.source.ip(),
            source_port: found.source.port(),
            destination: found.destination.map(|end| end.ip()),
            destination_port: found.destination.as_ref().map_or(0, SocketAddr::port),
            protocol: found.protocol,
            spi: found.spi,
        }
    }
}

/// The first packet of a flow that asks for an answer.
#[pyclass(module = "esp_gw_core", frozen, get_all)]
pub(crate) struct Opening {
    sa: String,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    destination_port: u16,
}

impl From<samples::Opening> for Opening {
    fn from(found: samples::Opening) -> Self {
        Self {
            sa: found.sa.to_string(),
            source: found.source,
            destination: found.destination.ip(),
            protocol: found.protocol,
            destination_port: found.destination.port(),
        }
    }
}
