//! Python bindings of the native data plane: values in, values out, nothing decided here.

#![forbid(unsafe_code)]
#![allow(clippy::needless_pass_by_value)] // what comes from Python is the function's own

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use esp_core::esp::sa::{Encapsulation, KeyMaterial, Mode, SaSpec};
use esp_core::esp::seq::Lease;
use esp_core::esp::suite::Suite;
use esp_core::policy::selector::{Prefix, Selector};
use esp_core::policy::spd::{Policy, PolicyAction};
use esp_core::provider::{Choice, aes_path};
use esp_dataplane::engine::{Engine, Offloads, SaCounters, Settings};
use esp_dataplane::events::Event;
use esp_dataplane::measure::seal_time;
use esp_dataplane::tables::OuterSocket;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

/// Local address and bits, remote address and bits, protocol, local ports, remote ports.
type SelectorTuple = (
    (String, u8),
    (String, u8),
    Option<u8>,
    Option<(u16, u16)>,
    Option<(u16, u16)>,
);
/// Name, action, selectors, SAs.
type PolicyTuple = (String, String, Vec<SelectorTuple>, Vec<String>);
/// Kind, name or address or reason, address, number.
type EventTuple = (&'static str, String, String, u32);
/// Packets, bytes, drops by reason.
type CountersTuple = (u64, u64, Vec<(&'static str, u64)>);
/// Name, whether outbound, counters, seq, end of the lease, peer's address and port.
type SaTuple = (String, bool, CountersTuple, u128, u128, String, u16);

fn value_error(what: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(what.to_string())
}

fn os_error(error: &esp_linux::Error) -> PyErr {
    match error.errno() {
        Some(errno) => PyOSError::new_err((errno.raw_os_error(), error.to_string())),
        None => value_error(error),
    }
}

fn address(text: &str) -> PyResult<IpAddr> {
    text.parse().map_err(value_error)
}

fn prefix((text, bits): &(String, u8)) -> PyResult<Prefix> {
    Prefix::new(address(text)?, *bits).ok_or_else(|| value_error("too many bits in a prefix"))
}

fn selector(
    (local, remote, protocol, local_port, remote_port): &SelectorTuple,
) -> PyResult<Selector> {
    Ok(Selector {
        local: prefix(local)?,
        remote: prefix(remote)?,
        protocol: *protocol,
        local_port: local_port.map(|(first, last)| first..=last),
        remote_port: remote_port.map(|(first, last)| first..=last),
    })
}

fn selectors(given: &[SelectorTuple]) -> PyResult<Vec<Selector>> {
    // Room for as many as there are: a collected result has room for four, and most SAs have one.
    let mut selectors = Vec::with_capacity(given.len());
    for tuple in given {
        selectors.push(selector(tuple)?);
    }
    Ok(selectors)
}

fn encapsulation(text: &str) -> PyResult<Encapsulation> {
    match text {
        "udp" => Ok(Encapsulation::Udp),
        "none" => Ok(Encapsulation::None),
        _ => Err(value_error("encapsulation is udp or none")),
    }
}

/// One SA as it is wanted.
#[derive(FromPyObject)]
struct SaArguments {
    name: String,
    spi: u32,
    suite: String,
    keymat: Vec<u8>,
    mode: String,
    encapsulation: String,
    local: String,
    remote: String,
    remote_port: u16,
    selectors: Vec<SelectorTuple>,
    esn: bool,
    replay_window: u16,
    pair: Option<String>,
    tunnel: Option<String>,
}

impl SaArguments {
    fn spec(self) -> PyResult<SaSpec> {
        let suite = Suite::by_name(&self.suite).ok_or_else(|| value_error("no such suite"))?;
        let keymat = zeroize::Zeroizing::new(self.keymat);
        Ok(SaSpec {
            name: self.name.into(),
            spi: self.spi,
            suite,
            keymat: KeyMaterial::new(suite, &keymat)
                .ok_or_else(|| value_error("the key does not fit the suite"))?,
            mode: match self.mode.as_str() {
                "tunnel" => Mode::Tunnel,
                "transport" => Mode::Transport,
                _ => return Err(value_error("mode is tunnel or transport")),
            },
            encapsulation: encapsulation(&self.encapsulation)?,
            local: address(&self.local)?,
            remote: address(&self.remote)?,
            remote_port: self.remote_port,
            selectors: selectors(&self.selectors)?,
            esn: self.esn,
            replay_window: self.replay_window,
            pair: self.pair.map(Arc::from),
            tunnel: self.tunnel.map(Arc::from),
        })
    }
}

fn lease((first, end): (u64, u128)) -> PyResult<Lease> {
    let last = end.checked_sub(1).and_then(|last| u64::try_from(last).ok());
    let last = last.ok_or_else(|| value_error("a lease ends between 1 and 2**64"))?;
    Ok(Lease { first, last })
}

fn counters(counters: &esp_core::counters::Counters) -> CountersTuple {
    let drops = counters
        .drops()
        .map(|(reason, count)| (reason.name(), count));
    (counters.packets, counters.bytes, drops.collect())
}

fn sa_tuple(name: &str, outbound: bool, sa: &SaCounters) -> SaTuple {
    let (ip, port) = (sa.peer.ip().to_string(), sa.peer.port());
    let name = name.to_string();
    (
        name,
        outbound,
        counters(&sa.counters),
        sa.seq,
        sa.lease_end,
        ip,
        port,
    )
}

fn event_tuple(event: Event) -> EventTuple {
    let name = |name: Arc<str>| name.to_string();
    match event {
        Event::LeaseLow(sa) => ("lease-low", name(sa), String::new(), 0),
        Event::SoftExpired(sa) => ("soft-expired", name(sa), String::new(), 0),
        Event::HardExpired(sa) => ("hard-expired", name(sa), String::new(), 0),
        Event::PeerAddressChanged(sa, peer) => (
            "peer-address-changed",
            name(sa),
            peer.ip().to_string(),
            peer.port().into(),
        ),
        Event::PathMtuChanged(remote, mtu) => {
            ("path-mtu-changed", String::new(), remote.to_string(), mtu)
        }
        Event::GsoRefused(remote, errno) => {
            ("gso-refused", errno.to_string(), remote.to_string(), 0)
        }
        Event::AfAlgLost(why) => ("af-alg-lost", why.to_string(), String::new(), 0),
        Event::EngineFailed(reason) => ("failed", reason, String::new(), 0),
    }
}

/// What the engine opens.
#[derive(FromPyObject)]
struct SettingsArguments {
    interface: String,
    port: u16,
    fwmark: u32,
    workers: Option<usize>,
    pin_workers: bool,
    busy_poll_us: u64,
    provider: String,
    af_alg: Vec<String>,
    offloads: Vec<String>,
}

impl SettingsArguments {
    fn settings(self) -> PyResult<Settings> {
        let offloads = self.offloads.iter().map(|name| {
            Offloads::by_name(name).ok_or_else(|| value_error(format!("no offload {name}")))
        });
        let af_alg = self.af_alg.iter().map(|name| {
            Suite::by_name(name).ok_or_else(|| value_error(format!("no suite {name}")))
        });
        Ok(Settings {
            interface: self.interface,
            port: self.port,
            fwmark: self.fwmark,
            workers: self.workers,
            pin_workers: self.pin_workers,
            busy_poll: Duration::from_micros(self.busy_poll_us),
            provider: Choice::by_name(&self.provider).ok_or_else(|| {
                value_error(format!("this build has no provider {}", self.provider))
            })?,
            af_alg: af_alg.collect::<PyResult<_>>()?,
            offloads: offloads.collect::<PyResult<_>>()?,
        })
    }
}

/// The data plane: worker threads between a TUN device and ESP. See `esp_gw_core.pyi`.
#[pyclass(module = "esp_gw_core")]
struct NativeEngine(Engine);

#[pymethods]
impl NativeEngine {
    #[new]
    fn new(py: Python<'_>, settings: SettingsArguments) -> PyResult<Self> {
        #[cfg(feature = "null-cipher")]
        if std::env::var_os("ESP_GW_NULL_CIPHER").is_none() {
            return Err(value_error(
                "it was built for benchmarks and protects nothing; \
                 'pip install --force-reinstall ./crates/esp-py' brings the ordinary one",
            ));
        }
        let settings = settings.settings()?;
        py.detach(|| Engine::start(settings))
            .map(Self)
            .map_err(|error| os_error(&error))
    }

    fn workers(&self) -> usize {
        self.0.workers()
    }

    fn offloads(&self) -> Vec<(&'static str, bool, String)> {
        let offloads = self.0.offloads().into_iter();
        offloads
            .map(|offload| (offload.name, offload.in_use, offload.why))
            .collect()
    }

    fn providers(&self) -> BTreeMap<&'static str, String> {
        self.0.providers()
    }

    fn event_fd(&self) -> i32 {
        self.0.events().waker().as_fd().as_raw_fd()
    }

    fn take_events(&self) -> Vec<EventTuple> {
        self.0
            .events()
            .take()
            .into_iter()
            .map(event_tuple)
            .collect()
    }

    fn set_sockets(&mut self, py: Python<'_>, wanted: Vec<(String, String)>) -> PyResult<()> {
        let wanted = wanted
            .iter()
            .map(|(text, how)| {
                Ok(OuterSocket {
                    address: address(text)?,
                    encapsulation: encapsulation(how)?,
                })
            })
            .collect::<PyResult<Vec<_>>>()?;
        py.detach(|| self.0.set_sockets(&wanted))
            .map_err(|error| os_error(&error))
    }

    fn install(
        &self,
        py: Python<'_>,
        outbound: Vec<(SaArguments, (u64, u128))>,
        inbound: Vec<(SaArguments, u64)>,
    ) -> PyResult<()> {
        let outbound = outbound
            .into_iter()
            .map(|(sa, numbers)| Ok((sa.spec()?, lease(numbers)?)))
            .collect::<PyResult<Vec<_>>>()?;
        let inbound = inbound
            .into_iter()
            .map(|(sa, highest_seq)| Ok((sa.spec()?, highest_seq)))
            .collect::<PyResult<Vec<_>>>()?;
        py.detach(|| self.0.install(outbound, inbound))
            .map_err(value_error)
    }

    fn remove(&self, py: Python<'_>, names: Vec<String>) -> PyResult<Vec<SaTuple>> {
        let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
        let found = py
            .detach(|| self.0.remove(&wanted))
            .map_err(|error| os_error(&error))?;
        Ok(wanted
            .iter()
            .zip(&found)
            .map(|(name, (outbound, sa))| sa_tuple(name, *outbound, sa))
            .collect())
    }

    fn sent(&self, name: &str) -> PyResult<u64> {
        self.0.sent(name).map_err(|error| os_error(&error))
    }

    fn replace_policies(&self, py: Python<'_>, policies: Vec<PolicyTuple>) -> PyResult<()> {
        let policies = policies
            .into_iter()
            .map(|(name, action, selectors, sas)| {
                Ok(Policy {
                    name: name.into(),
                    action: match action.as_str() {
                        "protect" => PolicyAction::Protect,
                        "bypass" => PolicyAction::Bypass,
                        "discard" => PolicyAction::Discard,
                        _ => return Err(value_error("no such action")),
                    },
                    selectors: self::selectors(&selectors)?,
                    sas: sas.into_iter().map(Arc::from).collect(),
                })
            })
            .collect::<PyResult<Vec<_>>>()?;
        py.detach(|| self.0.replace_policies(policies))
            .map_err(|error| os_error(&error))
    }

    fn extend_lease(&self, name: &str, numbers: (u64, u128)) -> PyResult<()> {
        self.0
            .extend_lease(name, lease(numbers)?)
            .map_err(|error| os_error(&error))
    }

    fn keepalive(&self, name: &str) -> PyResult<()> {
        self.0.keepalive(name).map_err(|error| os_error(&error))
    }

    fn sas(&self) -> Vec<SaTuple> {
        let sas = self.0.sas();
        sas.iter()
            .map(|(name, outbound, sa)| sa_tuple(name, *outbound, sa))
            .collect()
    }

    fn advanced(&self) -> Vec<(String, u64)> {
        let advanced = self.0.advanced_replay_floors().into_iter();
        advanced
            .map(|(name, highest)| (name.to_string(), highest))
            .collect()
    }

    fn rest(&self) -> (CountersTuple, CountersTuple) {
        let (outbound, inbound) = self.0.rest();
        (counters(&outbound), counters(&inbound))
    }
}

/// Nanoseconds a packet to seal `packets` packets of `size` bytes. See `esp_gw_core.pyi`.
#[pyfunction]
fn measure_aead(
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

/// The native data plane of `esp_gw`.
#[pymodule]
fn esp_gw_core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("aes_path", aes_path())?;
    module.add_function(wrap_pyfunction!(measure_aead, module)?)?;
    module.add_class::<NativeEngine>()
}
