//! Selectors and policies.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use esp_core::policy::{selector, spd};
use pyo3::prelude::*;

use crate::errors::value_error;

/// Ports, both ends included.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct PortRange(RangeInclusive<u16>);

#[pymethods]
impl PortRange {
    #[new]
    fn new(first: u16, last: u16) -> Self {
        Self(first..=last)
    }
}

/// An `IPv4Network` or `IPv6Network` of Python's.
#[derive(FromPyObject)]
struct Network {
    network_address: IpAddr,
    prefixlen: u8,
}

impl Network {
    fn prefix(&self) -> PyResult<selector::Prefix> {
        selector::Prefix::new(self.network_address, self.prefixlen)
            .ok_or_else(|| value_error("too many bits in a prefix"))
    }
}

/// Selector of an SA or a policy.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct Selector(selector::Selector);

#[pymethods]
impl Selector {
    #[new]
    fn new(
        local: Network,
        remote: Network,
        protocol: Option<u8>,
        local_port: Option<&PortRange>,
        remote_port: Option<&PortRange>,
    ) -> PyResult<Self> {
        Ok(Self(selector::Selector {
            local: local.prefix()?,
            remote: remote.prefix()?,
            protocol,
            local_port: local_port.map(|ports| ports.0.clone()),
            remote_port: remote_port.map(|ports| ports.0.clone()),
        }))
    }
}

/// Collects selectors, with room for just as many: there may be thousands of such lists.
pub(crate) fn selectors(given: &[Py<Selector>]) -> Vec<selector::Selector> {
    given.iter().map(|given| given.get().0.clone()).collect()
}

/// The fate of a packet that a policy matches.
#[pyclass(
    module = "esp_gw_core",
    frozen,
    eq,
    hash,
    rename_all = "SCREAMING_SNAKE_CASE"
)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PolicyAction {
    Protect,
    Bypass,
    Discard,
}

impl From<PolicyAction> for spd::PolicyAction {
    fn from(action: PolicyAction) -> Self {
        match action {
            PolicyAction::Protect => Self::Protect,
            PolicyAction::Bypass => Self::Bypass,
            PolicyAction::Discard => Self::Discard,
        }
    }
}

/// One entry of the SPD.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct Policy(pub(crate) spd::Policy);

#[pymethods]
impl Policy {
    #[new]
    fn new(
        name: &str,
        action: PolicyAction,
        selectors: Vec<Py<Selector>>,
        sas: Vec<String>,
    ) -> Self {
        Self(spd::Policy {
            name: name.into(),
            action: action.into(),
            selectors: self::selectors(&selectors),
            sas: sas.into_iter().map(Arc::from).collect(),
        })
    }
}
