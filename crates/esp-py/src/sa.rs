//! SAs to install. Keys go in and are never returned.

use std::net::IpAddr;
use std::sync::Arc;

use esp_core::esp::sa::{self, KeyMaterial, SaSpec};
use esp_core::esp::seq;
use esp_core::esp::suite::Suite;
use esp_dataplane::engine::Numbers;
use pyo3::prelude::*;

use crate::counters::Direction;
use crate::errors::value_error;
use crate::policy::{Selector, selectors};
use crate::settings::Encapsulation;

/// The part of a packet that ESP protects.
#[pyclass(
    module = "esp_gw_core",
    frozen,
    eq,
    hash,
    rename_all = "SCREAMING_SNAKE_CASE"
)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    Tunnel,
    Transport,
}

impl From<Mode> for sa::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Tunnel => Self::Tunnel,
            Mode::Transport => Self::Transport,
        }
    }
}

/// Specification of one SA.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct Sa(SaSpec);

#[pymethods]
impl Sa {
    #[new]
    #[pyo3(signature = (*, name, spi, suite, keymat, mode, encapsulation, local, remote,
                        remote_port, local_original, remote_original, selectors, esn, replay_window,
                        pair, tunnel, lane))]
    #[allow(clippy::too_many_arguments)] // by name alone
    fn new(
        name: &str,
        spi: u32,
        suite: &str,
        keymat: &[u8],
        mode: Mode,
        encapsulation: Encapsulation,
        local: IpAddr,
        remote: IpAddr,
        remote_port: u16,
        local_original: Option<IpAddr>,
        remote_original: Option<IpAddr>,
        selectors: Vec<Py<Selector>>,
        esn: bool,
        replay_window: u16,
        pair: Option<&str>,
        tunnel: Option<&str>,
        lane: Option<u8>,
    ) -> PyResult<Self> {
        let suite = Suite::by_name(suite).ok_or_else(|| value_error("no such suite"))?;
        Ok(Self(SaSpec {
            name: name.into(),
            spi,
            suite,
            keymat: KeyMaterial::new(suite, keymat)
                .ok_or_else(|| value_error("the key does not fit the suite"))?,
            mode: mode.into(),
            encapsulation: encapsulation.into(),
            local,
            remote,
            remote_port,
            local_original,
            remote_original,
            selectors: self::selectors(&selectors),
            esn,
            replay_window,
            pair: pair.map(Arc::from),
            tunnel: tunnel.map(Arc::from),
            lane,
        }))
    }
}

/// Sequence numbers that an outbound SA may use.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct Lease(pub(crate) seq::Lease);

#[pymethods]
impl Lease {
    #[new]
    fn new(first: u64, end: u128) -> PyResult<Self> {
        let last = end.checked_sub(1).and_then(|last| u64::try_from(last).ok());
        let last = last.ok_or_else(|| value_error("a lease ends between 1 and 2**64"))?;
        Ok(Self(seq::Lease { first, last }))
    }
}

/// An outbound SA with its first lease.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct OutboundSa {
    sa: Py<Sa>,
    lease: seq::Lease,
}

#[pymethods]
impl OutboundSa {
    #[new]
    fn new(sa: Py<Sa>, lease: &Lease) -> Self {
        let lease = lease.0;
        Self { sa, lease }
    }
}

impl OutboundSa {
    /// Gives what the engine installs.
    pub(crate) fn wanted(&self) -> (SaSpec, seq::Lease) {
        (self.sa.get().0.clone(), self.lease)
    }
}

/// An inbound SA with the numbers that it begins with.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct InboundSa {
    sa: Py<Sa>,
    numbers: Numbers,
}

#[pymethods]
impl InboundSa {
    #[new]
    fn new(sa: Py<Sa>, highest_seq: u64, fence: u64, notice_at: u64) -> Self {
        let numbers = Numbers {
            highest_seq,
            fence,
            notice_at,
        };
        Self { sa, numbers }
    }
}

impl InboundSa {
    /// Gives what the engine installs.
    pub(crate) fn wanted(&self) -> (SaSpec, Numbers) {
        (self.sa.get().0.clone(), self.numbers)
    }
}

/// The present name of an SA, and the SA with the same key that replaces it.
#[pyclass(module = "esp_gw_core", frozen)]
pub(crate) struct ReplacedSa {
    name: Arc<str>,
    pub(crate) direction: Direction,
    sa: Py<Sa>,
}

#[pymethods]
impl ReplacedSa {
    #[new]
    fn new(name: &str, direction: Direction, sa: Py<Sa>) -> Self {
        let name = Arc::from(name);
        Self {
            name,
            direction,
            sa,
        }
    }
}

impl ReplacedSa {
    /// Gives what the engine replaces.
    pub(crate) fn wanted(&self) -> (Arc<str>, SaSpec) {
        (Arc::clone(&self.name), self.sa.get().0.clone())
    }
}
